//! The texts that describe types and fields, for explaining tools. They are kept compressed and unpacked for each use, which
//! is rare: a quarter of the binary's memory would be prose otherwise.

use std::collections::HashMap;
use std::io::Read;

/// The table that `build.rs` derives.
const TABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/docs.bin"));

/// The unpacked texts.
pub struct Docs {
    text: String,
    /// Where the text of a type, or of a field of it (`type.field`), is.
    places: HashMap<String, (usize, usize)>,
}

impl Docs {
    /// Unpacks the table.
    pub fn unpack() -> Self {
        let mut text = String::new();
        // The table is a part of the binary; a damaged one means no texts, which harms nobody.
        let _ = flate2::read::ZlibDecoder::new(TABLE).read_to_string(&mut text);
        let mut places = HashMap::new();
        let (mut at, mut of) = (0, "");
        for line in text.split_inclusive('\n') {
            let mut words = line.splitn(3, ' ');
            let (mark, name, words) =
                (words.next(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let end = at + line.trim_end_matches('\n').len();
            let place = (at + line.len() - words.len(), end);
            if mark == Some("T") {
                of = name;
                places.insert(name.to_owned(), place);
            } else {
                places.insert(format!("{of}.{name}"), place);
            }
            at += line.len();
        }
        Self { text, places }
    }

    /// The text of a type (`api.core.v1.PodSpec`) or of a field (`api.core.v1.PodSpec.nodeName`).
    pub fn of(&self, path: &str) -> Option<String> {
        let (start, end) = *self.places.get(path)?;
        let mut out = String::with_capacity(end - start);
        let mut letters = self.text.get(start..end)?.chars();
        while let Some(letter) = letters.next() {
            match (letter, letter == '\\') {
                (_, true) => out.push(if letters.next() == Some('n') { '\n' } else { '\\' }),
                (letter, _) => out.push(letter),
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_fields_are_described() {
        let docs = Docs::unpack();
        assert_eq!(
            docs.of("api.core.v1.ConfigMap").unwrap(),
            "ConfigMap holds configuration data for pods to consume."
        );
        assert!(docs.of("api.core.v1.PodSpec.nodeName").unwrap().starts_with("NodeName indicates in which node"));
        assert!(docs.of("apimachinery.pkg.util.intstr.IntOrString").unwrap().contains("int"));
        assert!(
            docs.of("api.core.v1.PodSpec.hostUsers").is_some_and(|text| text.contains('\n') || !text.contains("\\n"))
        );
        assert_eq!(docs.of("api.core.v1.PodSpec.nothing"), None);
    }
}
