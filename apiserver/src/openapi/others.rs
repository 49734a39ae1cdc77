//! What version 2 has beyond the built-in kinds: custom resources, and what other servers say of their groups.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::convert::each_reference;
use super::sink::{Section, Sink};
use crate::aggregation::Remote;
use crate::crd;

const SECTIONS: [Section; 3] = [Section::Paths, Section::Schemas, Section::Parameters];

/// Kinds that are not in the table.
pub struct Others<'a> {
    customs: &'a crd::Table,
    foreign: Vec<Foreign>,
}

/// What another server's document says of one group and version.
#[derive(Default)]
struct Foreign {
    paths: Map<String, Value>,
    definitions: Map<String, Value>,
    parameters: Map<String, Value>,
}

impl Foreign {
    /// Takes the paths of a group's version out of a document, and all that these name.
    fn of(document: &Value, group: &str, version: &str) -> Self {
        let (prefix, about) = (format!("/apis/{group}/{version}/"), format!("/apis/{group}/"));
        let paths = document["paths"].as_object().into_iter().flatten();
        let own = paths.filter(|(path, _)| path.starts_with(&prefix) || **path == about);
        let mut out = Self { paths: own.map(|(path, item)| (path.clone(), item.clone())).collect(), ..Self::default() };
        let mut open: Vec<String> = Vec::new();
        out.paths.values_mut().for_each(|item| each_reference(item, &mut |name| open.push(name.clone())));
        while let Some(reference) = open.pop() {
            let Some((section, name)) = reference.strip_prefix("#/").and_then(|r| r.split_once('/')) else { continue };
            let place = match section {
                "definitions" => &mut out.definitions,
                "parameters" => &mut out.parameters,
                _ => continue,
            };
            let found = &document[section][name];
            if found.is_object() && !place.contains_key(name) {
                let mut found = found.clone();
                each_reference(&mut found, &mut |name| open.push(name.clone()));
                place.insert(name.to_owned(), found);
            }
        }
        out
    }

    /// Gives other names to what others mean something else by, and then to what names that.
    fn apart_from(&mut self, others: &[Self]) {
        while self.rename(others) {}
    }

    /// One step of that; whether there was anything to do.
    fn rename(&mut self, others: &[Self]) -> bool {
        let mut renamed: BTreeMap<String, String> = BTreeMap::new();
        for (section, of) in [("definitions", Self::definitions as fn(&Self) -> &_), ("parameters", Self::parameters)] {
            for (name, value) in of(self) {
                let taken =
                    |name: &str| others.iter().filter_map(|other| of(other).get(name)).any(|other| other != value);
                if taken(name) {
                    let free = (2..).map(|number| format!("{name}_v{number}")).find(|name| !taken(name));
                    if let Some(free) = free {
                        renamed.insert(format!("#/{section}/{name}"), free);
                    }
                }
            }
        }
        let rename = |map: &mut Map<String, Value>, section: &str| {
            let old = std::mem::take(map);
            map.extend(old.into_iter().map(|(name, mut value)| {
                each_reference(&mut value, &mut |reference| {
                    if let (Some(new), Some((place, _))) = (renamed.get(reference), reference.rsplit_once('/')) {
                        *reference = format!("{place}/{new}");
                    }
                });
                (renamed.get(&format!("#/{section}/{name}")).cloned().unwrap_or(name), value)
            }));
        };
        rename(&mut self.paths, "paths");
        rename(&mut self.definitions, "definitions");
        rename(&mut self.parameters, "parameters");
        !renamed.is_empty()
    }

    fn definitions(&self) -> &Map<String, Value> {
        &self.definitions
    }

    fn parameters(&self) -> &Map<String, Value> {
        &self.parameters
    }
}

impl<'a> Others<'a> {
    /// Custom resources, and the groups of servers that can be asked.
    pub fn new(customs: &'a crd::Table, remotes: &[Arc<Remote>]) -> Self {
        let mut foreign: Vec<Foreign> = Vec::new();
        for row in remotes.iter().filter(|row| row.available) {
            let Some(document) = row.document() else { continue };
            let mut found = Foreign::of(&document, &row.group, &row.version);
            found.apart_from(&foreign);
            foreign.push(found);
        }
        Self { customs, foreign }
    }

    /// Hands over the entries of a section.
    fn entries(&self, section: Section, take: &mut dyn FnMut(&str, &Value) -> io::Result<()>) -> io::Result<()> {
        if section != Section::Parameters {
            crd::openapi::version_2(self.customs, section == Section::Paths, take)?;
        }
        for foreign in &self.foreign {
            let entries = match section {
                Section::Paths => &foreign.paths,
                Section::Schemas => &foreign.definitions,
                Section::Parameters => &foreign.parameters,
            };
            entries.iter().try_for_each(|(name, value)| take(name, value))?;
        }
        Ok(())
    }
}

/// Puts other kinds behind the built-in ones, section by section; of the same name the first counts.
pub struct Merged<'a> {
    inner: &'a mut dyn Sink,
    others: &'a Others<'a>,
    open: usize,
    seen: HashSet<String>,
}

impl<'a> Merged<'a> {
    /// Nothing yet.
    pub fn new(inner: &'a mut dyn Sink, others: &'a Others<'a>) -> Self {
        Self { inner, others, open: 0, seen: HashSet::new() }
    }

    /// Ends the section that is open.
    fn next(&mut self) -> io::Result<()> {
        let section = SECTIONS[self.open];
        let (inner, seen) = (&mut *self.inner, &mut self.seen);
        self.others.entries(section, &mut |name, value| match seen.insert(name.to_owned()) {
            true => inner.entry(section, name, value),
            false => Ok(()),
        })?;
        self.seen.clear();
        self.open += 1;
        Ok(())
    }

    /// Writes what is left.
    pub fn finish(mut self) -> io::Result<()> {
        while self.open < SECTIONS.len() {
            self.next()?;
        }
        Ok(())
    }
}

impl Sink for Merged<'_> {
    fn entry(&mut self, section: Section, name: &str, value: &Value) -> io::Result<()> {
        while SECTIONS.get(self.open).is_some_and(|open| *open < section) {
            self.next()?;
        }
        self.seen.insert(name.to_owned());
        self.inner.entry(section, name, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn of_another_document_only_its_group_is_taken() {
        let uses =
            |name: &str| json!({"get": {"responses": {"200": {"schema": {"$ref": format!("#/definitions/{name}")}}}}});
        let document = json!({
            "paths": {"/apis/g/v1/things": uses("Thing"), "/apis/g/v2/things": uses("Other"), "/apis/": uses("Groups"), "/apis/g/": uses("Group")},
            "definitions": {"Thing": {"properties": {"part": {"$ref": "#/definitions/Part"}}}, "Part": {"type": "string"},
                "Other": {}, "Groups": {}, "Group": {}},
        });
        let taken = Foreign::of(&document, "g", "v1");
        let names = |map: &Map<String, Value>| map.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&taken.paths), ["/apis/g/", "/apis/g/v1/things"]);
        assert_eq!(names(&taken.definitions), ["Group", "Part", "Thing"]);
        // Another server means something else by a name.
        let mut other = document.clone();
        other["definitions"]["Part"] = json!({"type": "integer"});
        let mut second = Foreign::of(&other, "g", "v1");
        second.apart_from(&[taken]);
        assert_eq!(second.definitions["Part_v2"], json!({"type": "integer"}));
        assert_eq!(second.definitions["Thing_v2"]["properties"]["part"]["$ref"], "#/definitions/Part_v2");
    }
}
