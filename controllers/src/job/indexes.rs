//! Completion indexes as a Job's status writes them: `1,3-5,7`.

use std::collections::BTreeSet;

/// A set of indexes.
pub type Indexes = BTreeSet<i32>;

/// Reads a list; parts that cannot be read, and indexes that the Job does not have, are left out.
pub fn parse(text: &str, completions: i32) -> Indexes {
    let mut indexes = Indexes::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            indexes.extend(first.max(0)..=last.min(completions - 1));
        }
    }
    indexes
}

/// Writes a list; three and more in a row, and two, become a range or a pair as upstream writes them.
pub fn format(indexes: &Indexes) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut iter = indexes.iter().copied().peekable();
    while let Some(first) = iter.next() {
        let mut last = first;
        while let Some(next) = iter.next_if(|n| *n == last + 1) {
            last = next;
        }
        match last - first {
            0 => parts.push(first.to_string()),
            1 => parts.push(format!("{first},{last}")),
            _ => parts.push(format!("{first}-{last}")),
        }
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_round_trip() {
        for text in ["", "0", "0,2", "1,2", "1-3", "0,2,3,5-9"] {
            assert_eq!(format(&parse(text, 10)), text);
        }
        assert_eq!(format(&parse("0-2000000000,x,3-1", 4)), "0-3");
    }
}
