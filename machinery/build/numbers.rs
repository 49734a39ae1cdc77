//! Derives the table of protobuf field numbers from the sources of the `k8s-pb` crate and the rows in `newer.rs`.
//!
//! Fields of the schema are found in the messages by name: lower case, without separators. A message field that no JSON
//! field has the name of is a struct that JSON inlines; the fields of its message are looked for in the same type.
//! Output, one item per line: `M <type>`, `P <json name> <number> <note>`, and `I <number>` ... `E` around the fields of an
//! inlined struct. Notes: `-` none, `raw` JSON in a bytes field, `wrap` a list in a message of its own, others by name.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::Path;

use crate::Outcome;
use crate::newer::NEWER;

/// A field of a message as the generated source has it.
struct Field {
    /// Name, lower case without separators.
    name: String,
    number: u32,
    /// Last word of its Rust type: the message's name for messages.
    kind: String,
    /// Key of its message, if it is one.
    message: String,
    /// `message, optional`: one message, not a list or map of them.
    single: bool,
}

type Messages = HashMap<String, Vec<Field>>;

/// The table for the types in `schema` (in the form of `schema.txt`) from the message sources below `root`.
pub fn derive(schema: &str, root: &Path) -> Outcome<String> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    let mut messages = Messages::new();
    for file in &files {
        let relative = file.strip_prefix(root)?;
        let module: Vec<&str> =
            relative.parent().into_iter().flat_map(Path::iter).filter_map(|part| part.to_str()).collect();
        read(&module.join("."), &std::fs::read_to_string(file)?, &mut messages)?;
    }
    let newer: HashMap<&str, &[(&str, u32)]> = NEWER.iter().copied().collect();
    let mut out = String::new();
    for (path, mut fields) in types(schema) {
        let own = newer.get(path.as_str()).copied().unwrap_or_default();
        let known = messages.contains_key(&key(&path));
        if !known && own.is_empty() {
            continue;
        }
        writeln!(out, "M {path}")?;
        // Fields come in the order of the API's types; new ones are mostly at the end.
        let mut last = String::new();
        for (name, number) in own {
            let kind = fields.remove(&plain(name)).ok_or_else(|| format!("{path} has no field {name}"))?;
            writeln!(last, "P {name} {number} {}", if kind.1 == "any" { "empty" } else { "-" })?;
        }
        if known {
            message(&messages, &path, &key(&path), &mut fields, &mut out)?;
        }
        out.push_str(&last);
        if let Some((name, _)) = fields.values().find(|(name, _)| !matches!(name.as_str(), "apiVersion" | "kind")) {
            return Err(format!("no protobuf number for {path}.{name}").into());
        }
    }
    Ok(out)
}

/// Fields of a type by plain name: JSON name and type expression.
type Fields = BTreeMap<String, (String, String)>;

/// The types of a schema table with their fields.
fn types(schema: &str) -> Vec<(String, Fields)> {
    let mut types: Vec<(String, Fields)> = Vec::new();
    for line in schema.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["T", path, ..] => types.push((path.to_owned(), BTreeMap::new())),
            ["F", name, kind, ..] => {
                if let Some((_, fields)) = types.last_mut() {
                    fields.insert(plain(name), (name.to_owned(), kind.trim_start_matches('!').to_owned()));
                }
            }
            _ => {}
        }
    }
    types
}

/// Writes the fields of `message` that the type has, and takes them out of `fields`.
fn message(messages: &Messages, path: &str, message_key: &str, fields: &mut Fields, out: &mut String) -> Outcome<()> {
    let Some(list) = messages.get(message_key) else { return Err(format!("no message {message_key}").into()) };
    for field in list {
        if let Some((name, kind)) = fields.remove(&field.name) {
            writeln!(out, "P {name} {} {}", field.number, note(&kind, field, path)?)?;
            continue;
        }
        let inlined = messages.get(&field.message).filter(|_| field.single);
        if inlined.is_some_and(|list| list.iter().any(|f| fields.contains_key(&f.name) || f.single)) {
            let mut inside = String::new();
            self::message(messages, path, &field.message, fields, &mut inside)?;
            if !inside.is_empty() {
                write!(out, "I {}\n{inside}E\n", field.number)?;
            }
        }
    }
    Ok(())
}

/// What the JSON type does not say of how a field is encoded.
fn note(kind: &str, field: &Field, path: &str) -> Outcome<&'static str> {
    let item = kind.trim_start_matches(['[', '{']);
    Ok(match (item, field.kind.as_str()) {
        ("any", "RawExtension" | "FieldsV1" | "Json") => "raw",
        ("any", "JsonSchemaPropsOrBool") => "orbool",
        ("any", "JsonSchemaPropsOrArray") => "orarray",
        ("any", "JsonSchemaPropsOrStringArray") => "orstrings",
        ("any", "CustomResourceSubresourceStatus" | "BasicSchedulingPolicy" | "StorageVersionSpec") => "empty",
        ("any", other) => return Err(format!("{path}: no rule for a {other}").into()),
        ("string", "String" | "str") => "-",
        ("string", _) if kind.starts_with('[') && field.single || kind.starts_with("{[") => "wrap",
        ("string", other) => return Err(format!("{path}: a text of type {other}").into()),
        _ => "-",
    })
}

/// Key of a type that is named relative to a module.
fn resolve(module: &str, name: &str) -> String {
    let mut parts: Vec<&str> = module.split('.').collect();
    for word in name.split("::") {
        if word == "super" {
            parts.pop();
        } else {
            parts.push(word);
        }
    }
    key(&parts.join("."))
}

/// Name without case and separators.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
}

/// Path of a type in the form in which both sources agree.
fn key(path: &str) -> String {
    let (module, name) = path.rsplit_once('.').unwrap_or(("", path));
    format!("{module}.{}", plain(name))
}

/// Reads the messages of one source file.
fn read(module: &str, source: &str, messages: &mut Messages) -> Outcome<()> {
    let mut lines = source.lines().map(str::trim);
    let mut current: Option<String> = None;
    let mut attribute = String::new();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("pub struct ") {
            let name = name.split([' ', '{', ';']).next().unwrap_or_default();
            let path = key(&format!("{module}.{name}"));
            messages.insert(path.clone(), Vec::new());
            current = Some(path);
        } else if line.starts_with("#[prost(") {
            attribute = line.to_owned();
            while !attribute.ends_with(")]") {
                attribute += lines.next().ok_or("an attribute without end")?;
            }
        } else if let (Some(rest), false) = (line.strip_prefix("pub "), attribute.is_empty()) {
            let mut declaration = rest.to_owned();
            while !(declaration.ends_with(',') && declaration.matches('<').count() == declaration.matches('>').count())
            {
                declaration += lines.next().ok_or("a field without end")?;
            }
            let (name, kind) = declaration.split_once(':').ok_or("a field without type")?;
            let number = attribute.split("tag = \"").nth(1).and_then(|t| t.split('"').next());
            let innermost = kind.trim_end_matches([',', '>']).rsplit(['<', ' ']).next().unwrap_or_default();
            let field = Field {
                name: plain(name.trim_start_matches("r#")),
                number: number.ok_or("a field without number")?.parse()?,
                kind: innermost.rsplit(':').next().unwrap_or_default().to_owned(),
                message: resolve(module, innermost),
                single: attribute.contains("message, optional"),
            };
            if let Some(list) = current.as_ref().and_then(|c| messages.get_mut(c)) {
                list.push(field);
            }
            attribute.clear();
        }
    }
    Ok(())
}

fn collect(dir: &Path, files: &mut Vec<std::path::PathBuf>) -> Outcome<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.file_name().is_some_and(|n| n == "mod.rs") {
            files.push(path);
        }
    }
    Ok(())
}
