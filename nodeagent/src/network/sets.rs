//! The elements of the sets and maps of a table, counted by who needs them, and the difference that a change makes.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

/// Elements that go into one command.
const BATCH: usize = 500;

/// A set or map and the key of an element.
pub type Place = (&'static str, String);

/// What one owner wants: elements with their data (empty in sets).
pub type Wanted = BTreeMap<Place, String>;

/// All elements with how many owners want each.
#[derive(Default)]
pub struct Elements {
    counted: HashMap<Place, (String, usize)>,
}

/// What has to be done to the kernel's sets.
#[derive(Default)]
pub struct Change {
    removed: BTreeMap<&'static str, Vec<String>>,
    added: BTreeMap<&'static str, Vec<String>>,
}

fn render(key: &str, data: &str) -> String {
    if data.is_empty() { key.to_owned() } else { format!("{key} : {data}") }
}

impl Change {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }

    /// Sets with their elements, and whether those are added; removals come first, since a key can have one value only.
    pub fn parts(&self) -> impl Iterator<Item = (bool, &'static str, &[String])> {
        let of = |adds: bool, sets| {
            let sets: &BTreeMap<&'static str, Vec<String>> = sets;
            sets.iter().map(move |(set, elements)| (adds, *set, elements.as_slice()))
        };
        of(false, &self.removed).chain(of(true, &self.added))
    }

    /// The commands.
    pub fn script(&self, table: &str) -> String {
        let mut script = String::new();
        for (adds, set, elements) in self.parts() {
            let verb = if adds { "add" } else { "delete" };
            for batch in elements.chunks(BATCH) {
                // Writing to a string cannot fail.
                let _ = writeln!(script, "{verb} element {table} {set} {{ {} }}", batch.join(", "));
            }
        }
        script
    }
}

impl Elements {
    /// Replaces what one owner wants, and notes the difference.
    pub fn replace(&mut self, old: &Wanted, new: &Wanted, change: &mut Change) {
        for (place, data) in old {
            if new.get(place) == Some(data) {
                continue;
            }
            let Some((kept, count)) = self.counted.get_mut(place) else { continue };
            *count -= 1;
            if *count == 0 {
                change.removed.entry(place.0).or_default().push(render(&place.1, kept));
                self.counted.remove(place);
            }
        }
        for (place, data) in new {
            if old.get(place) == Some(data) {
                continue;
            }
            match self.counted.get_mut(place) {
                // Two owners of one key with different data: the first has it, as long as it wants it.
                Some((_, count)) => *count += 1,
                None => {
                    change.added.entry(place.0).or_default().push(render(&place.1, data));
                    self.counted.insert(place.clone(), (data.clone(), 1));
                }
            }
        }
    }

    /// All elements, for a new table.
    pub fn all(&self) -> Change {
        let mut change = Change::default();
        for ((set, key), (data, _)) in &self.counted {
            change.added.entry(set).or_default().push(render(key, data));
        }
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(list: &[(&'static str, &str, &str)]) -> Wanted {
        list.iter().map(|(set, key, data)| ((*set, (*key).to_owned()), (*data).to_owned())).collect()
    }

    #[test]
    fn only_differences_are_told() {
        let mut elements = Elements::default();
        let mut change = Change::default();
        let first = wanted(&[("m", "a", "1"), ("s", "x", "")]);
        elements.replace(&Wanted::new(), &first, &mut change);
        assert_eq!(change.script("t"), "add element t m { a : 1 }\nadd element t s { x }\n");
        let mut change = Change::default();
        // Another owner of the same element changes nothing.
        elements.replace(&Wanted::new(), &wanted(&[("s", "x", "")]), &mut change);
        assert!(change.is_empty());
        elements.replace(&first, &wanted(&[("m", "a", "2")]), &mut change);
        assert_eq!(change.script("t"), "delete element t m { a : 1 }\nadd element t m { a : 2 }\n");
        let mut change = Change::default();
        elements.replace(&wanted(&[("s", "x", "")]), &Wanted::new(), &mut change);
        assert_eq!(change.script("t"), "delete element t s { x }\n");
        assert_eq!(elements.all().script("t"), "add element t m { a : 2 }\n");
    }
}
