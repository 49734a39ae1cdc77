//! `explain`: the fields of a kind, from the server's own description of its API.

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch, text};
use crate::kinds::{self, Kind};
use crate::session::Session;
use crate::value::Read;

/// Flags of `explain`.
pub const FLAGS: &[&[Flag]] = &[&[
    text("api-version", "", "Use given api-version (group/version) of the resource."),
    text(
        "output",
        "plaintext",
        "Format in which to render the schema. Valid values are: (plaintext, plaintext-openapiv2).",
    )
    .short('o'),
    switch(
        "recursive",
        "When true, print the name of all the fields recursively. Otherwise, print the available fields with their description.",
    ),
]];

/// Columns that a description has, besides its indentation.
const WIDTH: usize = 76;
/// Values of an enumeration that a list of fields names.
const SHOWN_VALUES: usize = 4;

/// Runs `explain`.
pub async fn explain(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let path = match parsed.args.as_slice() {
        [path] => path,
        [] => {
            return Err(Failure::new(
                "You must specify the type of resource to explain. Use \"kubectl api-resources\" for a complete list of \
                 supported resources.",
            ));
        }
        _ => return Err(Failure::new("We accept only this format: explain RESOURCE")),
    };
    let old = match parsed.text("output") {
        "plaintext" => false,
        "plaintext-openapiv2" => true,
        other => return Err(Failure::new(format!("unrecognized format: {other}"))),
    };
    let (mut kind, fields) = find(session, path).await?;
    if let Some((group, version)) = split_version(parsed.text("api-version")) {
        let all = kinds::discover(session).await?;
        let found = all.into_iter().find(|k| k.group == group && k.version == version && k.plural == kind.plural);
        kind = found.ok_or_else(|| {
            Failure::new(format!("couldn't find resource for \"{group}/{version}, Resource={}\"", kind.plural))
        })?;
    }
    let root = if kind.group.is_empty() { "api".to_owned() } else { format!("apis/{}", kind.group) };
    let document = session.get(&format!("/openapi/v3/{root}/{}", kind.version)).await?;
    let schemas = Schemas(&document["components"]["schemas"]);
    let of_kind = |schema: &&Value| {
        schema["x-kubernetes-group-version-kind"]
            .items()
            .iter()
            .any(|g| g["group"] == kind.group && g["version"] == kind.version && g["kind"] == kind.kind)
    };
    let Some(schema) = schemas.0.as_object().into_iter().flatten().map(|(_, s)| s).find(of_kind) else {
        return Err(Failure::new(format!("couldn't find resource for \"{}, Kind={}\"", kind.api_version(), kind.kind)));
    };
    let text = if old {
        old::text(&schemas, &kind, schema, &fields, parsed.on("recursive"))
    } else {
        plain(&schemas, &kind, schema, &fields, parsed.on("recursive"))
    };
    match text {
        Ok(text) => {
            print!("{text}");
            Ok(())
        }
        Err((shown, missing)) => {
            print!("{shown}");
            Err(Failure::new(format!("field {missing:?} does not exist")))
        }
    }
}

fn split_version(text: &str) -> Option<(&str, &str)> {
    match text {
        "" => None,
        text => Some(text.split_once('/').unwrap_or(("", text))),
    }
}

/// The kind that a path begins with, and the fields after it: `deployments.apps.spec` has a group in between.
async fn find(session: &Session, path: &str) -> Outcome<(Kind, Vec<String>)> {
    let parts: Vec<&str> = path.split('.').collect();
    let first = match kinds::resolve(session, parts[0]).await {
        Ok(kind) => kind,
        Err(Failure::Error(why)) => return Err(Failure::Plain(why)),
        Err(error) => return Err(error),
    };
    if parts.len() > 1 {
        let all = kinds::discover(session).await?;
        let named: Vec<Kind> = all.into_iter().filter(|k| k.is_called(&parts[0].to_lowercase())).collect();
        for length in (2..=parts.len()).rev() {
            let rest = parts[1..length].join(".");
            let fits = |k: &&Kind| rest == k.group || rest == format!("{}.{}", k.version, k.group);
            if let Some(kind) = named.iter().find(fits).filter(|k| !k.group.is_empty()) {
                return Ok((kind.clone(), parts[length..].iter().map(|p| (*p).to_owned()).collect()));
            }
        }
    }
    Ok((first, parts[1..].iter().filter(|p| !p.is_empty()).map(|p| (*p).to_owned()).collect()))
}

/// The schemas of a document.
struct Schemas<'a>(&'a Value);

impl<'a> Schemas<'a> {
    fn name_of(reference: &str) -> &str {
        reference.rsplit('/').next().unwrap_or(reference)
    }

    fn referred(&self, schema: &'a Value) -> Option<&'a Value> {
        let reference = schema["$ref"].as_str()?;
        self.0.get(Self::name_of(reference))
    }

    /// What a schema says after references, lists and maps are followed.
    fn object(&self, schema: &'a Value) -> &'a Value {
        if let Some(referred) = self.referred(schema) {
            return self.object(referred);
        }
        if let [one] = schema["allOf"].items() {
            return self.object(one);
        }
        if schema["items"].is_object() {
            return self.object(&schema["items"]);
        }
        if schema["additionalProperties"].is_object() {
            return self.object(&schema["additionalProperties"]);
        }
        schema
    }

    /// A type's name.
    fn guess(&self, schema: &'a Value) -> String {
        if let Some(referred) = self.referred(schema) {
            return match referred["type"].text() {
                plain @ ("string" | "integer" | "boolean" | "number") => plain.to_owned(),
                _ => {
                    let name = Self::name_of(schema["$ref"].text());
                    name.rsplit('.').next().unwrap_or(name).to_owned()
                }
            };
        }
        if let [one] = schema["allOf"].items() {
            return self.guess(one);
        }
        match schema["type"].text() {
            "array" => format!("[]{}", self.guess(&schema["items"])),
            "" | "object" if schema["additionalProperties"].is_object() => {
                format!("map[string]{}", self.guess(&schema["additionalProperties"]))
            }
            "" | "object" => "Object".into(),
            plain => plain.to_owned(),
        }
    }

    /// The descriptions of a schema and of what it refers to.
    fn descriptions(&self, schema: &'a Value, out: &mut Vec<&'a str>) {
        if !schema["description"].text().is_empty() {
            out.push(schema["description"].text());
        }
        if let Some(referred) = self.referred(schema) {
            self.descriptions(referred, out);
        }
        for part in schema["allOf"].items() {
            self.descriptions(part, out);
        }
        for field in ["items", "additionalProperties"] {
            if schema[field].is_object() {
                self.descriptions(&schema[field], out);
            }
        }
    }
}

/// Breaks lines at spaces so that they fit; what is broken already stays so.
fn wrapped(text: &str, width: usize) -> String {
    let (mut out, mut word, mut space) = (String::new(), String::new(), String::new());
    let (mut column, mut word_length) = (0, 0);
    for c in text.chars() {
        if c == '\n' {
            if !word.is_empty() || column + space.len() <= width {
                out += &space;
            }
            out += &word;
            out.push('\n');
            space.clear();
            word.clear();
            (column, word_length) = (0, 0);
        } else if c.is_whitespace() {
            if space.is_empty() || !word.is_empty() {
                column += space.chars().count() + word_length;
                out += &space;
                out += &word;
                space.clear();
                word.clear();
                word_length = 0;
            }
            space.push(c);
        } else {
            word.push(c);
            word_length += 1;
            if column + word_length + space.chars().count() > width && word_length < width {
                out.push('\n');
                column = 0;
                space.clear();
            }
        }
    }
    if !word.is_empty() || column + space.len() <= width {
        out += &space;
    }
    out + &word
}

fn indented(text: &str, by: usize) -> String {
    let space = " ".repeat(by);
    text.split('\n').map(|line| format!("{space}{line}")).collect::<Vec<_>>().join("\n")
}

fn head(kind: &Kind) -> String {
    let group = if kind.group.is_empty() { String::new() } else { format!("GROUP:      {}\n", kind.group) };
    format!("{group}KIND:       {}\nVERSION:    {}\n\n", kind.kind, kind.version)
}

/// Walks to a field; what is missing is handed back.
fn walk<'a>(schemas: &Schemas<'a>, schema: &'a Value, fields: &[String]) -> Result<&'a Value, String> {
    let mut here = schema;
    for field in fields {
        here = schemas.object(here)["properties"].get(field).ok_or_else(|| field.clone())?;
    }
    Ok(here)
}

fn plain(
    schemas: &Schemas<'_>,
    kind: &Kind,
    schema: &Value,
    fields: &[String],
    deep: bool,
) -> Result<String, (String, String)> {
    let mut out = head(kind);
    let here = match walk(schemas, schema, fields) {
        Ok(here) => here,
        Err(missing) => return Err((out, missing)),
    };
    if let Some(name) = fields.last() {
        out += &format!("FIELD: {name} <{}>\n", schemas.guess(here));
        let values = schemas.object(here)["enum"].items();
        if !values.is_empty() {
            out += "ENUM:\n";
        }
        values.iter().for_each(|v| out += &format!("    {}\n", v.shown()));
        out += if values.is_empty() { "\n\n" } else { "\n" };
    }
    let mut texts = Vec::new();
    schemas.descriptions(here, &mut texts);
    out += "DESCRIPTION:\n";
    match texts.is_empty() {
        true => out += "    <empty>\n",
        false => texts.iter().for_each(|text| out += &(indented(&wrapped(text, WIDTH), 4) + "\n")),
    }
    if !texts.is_empty() {
        out += "    \n";
    }
    let object = schemas.object(here);
    if let Some(properties) = object["properties"].as_object().filter(|p| !p.is_empty()) {
        out += "FIELDS:\n";
        let required = object["required"].texts();
        for (name, field) in properties {
            line(schemas, name, field, required.contains(&name.as_str()), 1, &mut out);
            if deep {
                nested(schemas, field, 2, &mut vec![here as *const Value as usize], &mut out);
            } else {
                let own = field["description"].text();
                let own = if own.is_empty() { "<no description>" } else { own };
                out += &(indented(&wrapped(own, WIDTH), 4) + "\n\n");
            }
        }
    }
    Ok(out + "\n")
}

fn line(schemas: &Schemas<'_>, name: &str, field: &Value, required: bool, level: usize, out: &mut String) {
    let space = "  ".repeat(level);
    let mark = if required { " -required-" } else { "" };
    *out += &format!("{space}{name}\t<{}>{mark}\n", schemas.guess(field));
    let shown = |v: &Value| if v == "" { "\"\"".to_owned() } else { v.shown() };
    let values: Vec<String> = field["enum"].items().iter().map(shown).collect();
    if !values.is_empty() {
        let more = if values.len() > SHOWN_VALUES { ", ...." } else { "" };
        *out += &format!("{space}enum: {}{more}\n", values[..values.len().min(SHOWN_VALUES)].join(", "));
    }
}

/// All fields below a field; a type inside of itself is not opened again.
fn nested(schemas: &Schemas<'_>, schema: &Value, level: usize, open: &mut Vec<usize>, out: &mut String) {
    let object = schemas.object(schema);
    let id = object as *const Value as usize;
    if open.contains(&id) {
        return;
    }
    open.push(id);
    let required = object["required"].texts();
    for (name, field) in object["properties"].as_object().into_iter().flatten() {
        line(schemas, name, field, required.contains(&name.as_str()), level, out);
        nested(schemas, field, level + 1, open, out);
    }
    open.pop();
}

/// The form that older versions had.
mod old {
    use super::*;

    /// Columns of a line.
    const WIDTH: usize = 80;

    pub(super) fn text(
        schemas: &Schemas<'_>,
        kind: &Kind,
        schema: &Value,
        fields: &[String],
        deep: bool,
    ) -> Result<String, (String, String)> {
        let here = walk(schemas, schema, fields).map_err(|missing| (String::new(), missing))?;
        let mut out = format!("KIND:     {}\nVERSION:  {}\n\n", kind.kind, kind.api_version());
        let object = schemas.object(here);
        let properties = object["properties"].as_object().filter(|p| !p.is_empty());
        if let Some(name) = fields.last() {
            let label = if properties.is_some() { "RESOURCE:" } else { "FIELD:   " };
            out += &format!("{label} {name} <{}>\n\n", type_of(schemas, here));
        }
        let mut texts = Vec::new();
        schemas.descriptions(here, &mut texts);
        out += "DESCRIPTION:\n";
        match texts.is_empty() {
            true => out += "     <empty>\n",
            false => {
                let all: Vec<String> = texts.iter().map(|t| lines(t, WIDTH - 5, 5)).collect();
                out += &all.join("\n");
            }
        }
        let Some(properties) = properties else { return Ok(out) };
        out += "\nFIELDS:\n";
        let required = object["required"].texts();
        for (name, field) in properties {
            let mark = if required.contains(&name.as_str()) { " -required-" } else { "" };
            out += &format!("   {name}\t<{}>{mark}\n", type_of(schemas, field));
            if deep {
                inner(schemas, field, 2, &mut vec![object as *const Value as usize], &mut out);
            } else {
                let text = field["description"].text();
                let text = if text.is_empty() { "<no description>" } else { text };
                out += &(lines(text, WIDTH - 5, 5) + "\n");
            }
        }
        Ok(out)
    }

    fn inner(schemas: &Schemas<'_>, schema: &Value, level: usize, open: &mut Vec<usize>, out: &mut String) {
        let object = schemas.object(schema);
        let id = object as *const Value as usize;
        if open.contains(&id) {
            return;
        }
        open.push(id);
        for (name, field) in object["properties"].as_object().into_iter().flatten() {
            *out += &format!("{}{name}\t<{}>\n", "   ".repeat(level), type_of(schemas, field));
            inner(schemas, field, level + 1, open, out);
        }
        open.pop();
    }

    fn type_of(schemas: &Schemas<'_>, schema: &Value) -> String {
        let guess = schemas.guess(schema);
        let (prefix, name) = match guess.rfind(']') {
            Some(at) => guess.split_at(at + 1),
            None => ("", guess.as_str()),
        };
        let is_plain = matches!(name, "string" | "integer" | "boolean" | "number");
        format!("{prefix}{}", if is_plain { name } else { "Object" })
    }

    /// Words in lines; indented lines and lists keep theirs.
    fn lines(text: &str, width: usize, indent: usize) -> String {
        let (mut out, mut line): (Vec<String>, String) = (Vec::new(), String::new());
        for raw in text.split('\n') {
            if raw.starts_with("    ") || (raw.trim().is_empty() && !(out.is_empty() && line.is_empty())) {
                if !line.is_empty() {
                    out.push(std::mem::take(&mut line));
                }
                out.push(if raw.trim().is_empty() { String::new() } else { raw.to_owned() });
                continue;
            }
            let first = raw.split_whitespace().next().unwrap_or("");
            let is_list = matches!(first, "-" | "*") || first.trim_end_matches('.').parse::<u32>().is_ok();
            if !line.is_empty() && (is_list || line.ends_with(':')) {
                out.push(std::mem::take(&mut line));
            }
            for word in raw.split_whitespace() {
                if !line.is_empty() && line.len() + 1 + word.len() > width {
                    out.push(std::mem::take(&mut line));
                }
                if !line.is_empty() {
                    line.push(' ');
                }
                line += word;
            }
        }
        if !line.is_empty() {
            out.push(line);
        }
        out.iter().map(|l| format!("{}{l}\n", " ".repeat(indent))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_are_broken_at_spaces_and_kept_where_broken() {
        for (text, expected) in [
            ("one two three", "one two\nthree"),
            ("a\n  bcd efghijk", "a\n  bcd\nefghijk"),
            ("averyveryverylongword x", "averyveryverylongword\nx"),
            ("a\n\nb", "a\n\nb"),
        ] {
            assert_eq!(wrapped(text, 9), expected);
        }
    }

    #[test]
    fn names_of_types() {
        let types =
            json!({"a.b.Time": {"type": "string"}, "a.b.Spec": {"type": "object"}, "a.b.Quantity": {"oneOf": []}});
        let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
        for (schema, expected) in [
            (json!({"type": "string"}), "string"),
            (reference("a.b.Time"), "string"),
            (json!({"allOf": [reference("a.b.Spec")]}), "Spec"),
            (json!({"type": "array", "items": reference("a.b.Spec")}), "[]Spec"),
            (json!({"type": "object", "additionalProperties": reference("a.b.Quantity")}), "map[string]Quantity"),
            (json!({"type": "object"}), "Object"),
        ] {
            let both = [types.clone(), schema];
            assert_eq!(Schemas(&both[0]).guess(&both[1]), expected);
        }
    }
}
