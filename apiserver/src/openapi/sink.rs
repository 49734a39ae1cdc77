//! Where a document goes, part by part: a whole one is megabytes, and nobody needs it in memory as values.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::schema::Flavour;

/// A part of a document that has entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// The paths.
    Paths,
    /// The schemas.
    Schemas,
    /// The parameters that version 2 writes once.
    Parameters,
}

/// Takes the entries of a document, the sections in order.
pub trait Sink {
    /// Takes one entry.
    fn entry(&mut self, section: Section, name: &str, value: &Value) -> io::Result<()>;
}

/// Kubernetes' version, as the documents name it.
const VERSION: &str = "1.36";

/// What a document says of itself.
pub fn info() -> Value {
    json!({"title": "Kubernetes", "version": VERSION})
}

/// How clients authenticate.
pub fn bearer_token() -> Value {
    json!({"BearerToken": {
        "type": "apiKey", "description": "Bearer Token authentication", "name": "authorization", "in": "header",
    }})
}

/// Writes JSON.
pub struct Text<W> {
    out: W,
    flavour: Flavour,
    /// The section that is open, and whether it has entries.
    open: Option<(Section, bool)>,
}

impl<W: Write> Text<W> {
    /// Nothing yet.
    pub fn new(out: W, flavour: Flavour) -> Self {
        Self { out, flavour, open: None }
    }

    /// Opens the sections up to this one.
    fn reach(&mut self, section: Section) -> io::Result<()> {
        while self.open.is_none_or(|(open, _)| open < section) {
            let (next, head) = match (self.open, self.flavour) {
                (None, Flavour::V2) => {
                    (Section::Paths, format!("{{\"swagger\":\"2.0\",\"info\":{},\"paths\":{{", info()))
                }
                (None, Flavour::V3) => {
                    (Section::Paths, format!("{{\"openapi\":\"3.0.0\",\"info\":{},\"paths\":{{", info()))
                }
                (Some((Section::Paths, _)), Flavour::V2) => (Section::Schemas, "},\"definitions\":{".into()),
                (Some((Section::Paths, _)), Flavour::V3) => {
                    (Section::Schemas, "},\"components\":{\"schemas\":{".into())
                }
                _ => (Section::Parameters, "},\"parameters\":{".into()),
            };
            self.out.write_all(head.as_bytes())?;
            self.open = Some((next, false));
        }
        Ok(())
    }

    /// Closes the document.
    pub fn finish(mut self) -> io::Result<W> {
        let tail = match self.flavour {
            Flavour::V2 => {
                self.reach(Section::Parameters)?;
                format!("}},\"securityDefinitions\":{},\"security\":[{{\"BearerToken\":[]}}]}}", bearer_token())
            }
            Flavour::V3 => {
                self.reach(Section::Schemas)?;
                format!("}},\"securitySchemes\":{}}}}}", bearer_token())
            }
        };
        self.out.write_all(tail.as_bytes())?;
        Ok(self.out)
    }
}

impl<W: Write> Sink for Text<W> {
    fn entry(&mut self, section: Section, name: &str, value: &Value) -> io::Result<()> {
        self.reach(section)?;
        if let Some((_, filled)) = &mut self.open
            && std::mem::replace(filled, true)
        {
            self.out.write_all(b",")?;
        }
        serde_json::to_writer(&mut self.out, name)?;
        self.out.write_all(b":")?;
        serde_json::to_writer(&mut self.out, value)?;
        Ok(())
    }
}
