//! kubectl's JSONPath templates: text with `{...}` in it, ranges, filters, unions and slices.

use keelson_machinery::jsonpath::{JsonPath, quoted};
use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::output::json;

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    nodes: Vec<Node>,
    as_json: bool,
    strict: bool,
    source: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Path(JsonPath),
    Range(JsonPath, Vec<Node>),
}

impl Template {
    /// Parses a template.
    pub fn parse(text: &str, as_json: bool) -> Outcome<Self> {
        let wrong = |why: String| Failure::new(format!("error parsing jsonpath {text}, {why}"));
        let mut parser = Parser { rest: text };
        let nodes = parser.nodes(false).map_err(wrong)?;
        Ok(Self { nodes, as_json, strict: false, source: text.to_owned() })
    }

    /// With fields that are missing refused.
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Fills the template in.
    pub fn execute(&self, value: &Value) -> Outcome<String> {
        let mut out = String::new();
        let wrong = |why: String| {
            Failure::new(format!(
                "error executing jsonpath {}: Error executing template: {why}. Printing more information for debugging the \
                 template:\n\ttemplate was:\n\t\t{}\n\tobject given to jsonpath engine was:\n\t\t{}\n\n",
                crate::value::quoted(&self.source),
                self.source,
                go_syntax(value)
            ))
        };
        if self.as_json {
            let mut found = Vec::new();
            for node in &self.nodes {
                if let Node::Path(path) = node {
                    found.extend(path.walk(value, value).map_err(wrong)?.into_iter().cloned());
                }
            }
            return Ok(json::pretty(&Value::Array(found)) + "\n");
        }
        run(&self.nodes, self.strict, value, value, &mut out).map_err(wrong)?;
        Ok(out)
    }

    /// The values of the template's paths.
    pub fn values<'a>(&'a self, value: &'a Value) -> Vec<&'a Value> {
        let paths = self.nodes.iter().filter_map(|n| if let Node::Path(path) = n { Some(path) } else { None });
        paths.flat_map(|path| path.find(value)).collect()
    }
}

/// Paths as people type them: `.spec.x`, `spec.x` and `{.spec.x}` are the same.
pub fn relaxed(text: &str) -> String {
    if text.contains('{') || text.is_empty() {
        return text.to_owned();
    }
    if text.starts_with(['.', '[', '$', '@']) { format!("{{{text}}}") } else { format!("{{.{text}}}") }
}

/// A value as Go writes it in its source.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Null => "interface {}(nil)".into(),
        Value::String(text) => crate::value::quoted(text),
        Value::Array(items) => {
            format!("[]interface {{}}{{{}}}", items.iter().map(go_syntax).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_unstable();
            let pairs = keys.iter().map(|key| format!("{}:{}", crate::value::quoted(key), go_syntax(&map[*key])));
            format!("map[string]interface {{}}{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

fn run(nodes: &[Node], strict: bool, root: &Value, here: &Value, out: &mut String) -> Result<(), String> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Path(path) => {
                if let Some(name) = path.missing(root, here).filter(|_| strict) {
                    return Err(format!("{name} is not found"));
                }
                let texts: Vec<String> = path.walk(root, here)?.into_iter().map(text_of).collect();
                out.push_str(&texts.join(" "));
            }
            Node::Range(path, inner) => {
                for value in path.walk(root, here)? {
                    run(inner, strict, root, value, out)?;
                }
            }
        }
    }
    Ok(())
}

/// A value as templates print it.
pub fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(_) | Value::Array(_) => json::compact(value),
        other => other.to_string(),
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn nodes(&mut self, in_range: bool) -> Result<Vec<Node>, String> {
        let mut nodes = Vec::new();
        loop {
            let Some(open) = self.rest.find('{') else {
                if in_range {
                    return Err("unexpected end of range".into());
                }
                if !self.rest.is_empty() {
                    nodes.push(Node::Text(self.rest.to_owned()));
                }
                return Ok(nodes);
            };
            if open > 0 {
                nodes.push(Node::Text(self.rest[..open].to_owned()));
            }
            let inside = &self.rest[open + 1..];
            let close = closing(inside).ok_or("unclosed action")?;
            let action = inside[..close].trim();
            self.rest = &inside[close + 1..];
            if action == "end" {
                return if in_range { Ok(nodes) } else { Err("not in range, nothing to end".into()) };
            }
            if let Some(path) = action.strip_prefix("range ") {
                let inner = self.nodes(true)?;
                nodes.push(Node::Range(JsonPath::parse(path)?, inner));
                continue;
            }
            // Several paths or texts in one pair of braces are printed one after the other.
            let mut rest = action;
            while !rest.is_empty() {
                let (word, after) = word(rest);
                nodes.push(match quoted(word) {
                    Some(text) => Node::Text(text),
                    None => Node::Path(JsonPath::parse(word)?),
                });
                rest = after.trim_start();
            }
        }
    }
}

/// Where the brace closes that is open before `text`; braces in quotes do not count.
fn closing(text: &str) -> Option<usize> {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (Some(open), c) if open == c => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '}') => return Some(at),
            _ => {}
        }
    }
    None
}

/// Takes one word off the front: up to a space outside of quotes and brackets.
fn word(text: &str) -> (&str, &str) {
    let (mut quote, mut depth, mut escaped) = (None, 0, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (Some(open), c) if open == c => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '[' | '(') => depth += 1,
            (None, ']' | ')') => depth -= 1,
            (None, ' ') if depth == 0 => return (&text[..at], &text[at..]),
            _ => {}
        }
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates() {
        let object = json!({"kind": "List", "items": [
            {"metadata": {"name": "a", "labels": {"x.y/z": "1"}}, "spec": {"n": 1, "ports": [80, 443]},
             "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}},
            {"metadata": {"name": "b"}, "spec": {"n": 2, "ports": []}, "status": {"conditions": []}},
        ]});
        for (template, expected) in [
            ("{.items[*].metadata.name}", "a b"),
            ("hello", "hello"),
            ("{.items[0].metadata['name','nothing']}", "a"),
            ("{.items[-1:].metadata.name}", "b"),
            ("{range .items[*]}{.metadata.name}{\"\\t\"}{.spec.n}{\"\\n\"}{end}", "a\t1\nb\t2\n"),
            ("{range .items[*]}{.metadata.name},{end}", "a,b,"),
            ("{.items[?(@.spec.n>1)].metadata.name}", "b"),
            ("{.items[?(@.metadata.name==\"a\")].spec.n}", "1"),
            ("{.items[0].status.conditions[?(@.type=='Ready')].status}", "True"),
            ("{.items[0].metadata.labels.x\\.y/z}", "1"),
            ("{.items[0].metadata.labels['x.y/z']}", "1"),
            ("{..name}", "a b"),
            ("{.items[0].spec}", "{\"n\":1,\"ports\":[80,443]}"),
            ("{.items[*]['metadata.name', 'kind']}", ""),
            ("{.items[0,1].metadata.name}", "a b"),
            ("{.items[0].spec.ports[0:1]}", "80"),
            ("{.nothing.here}", ""),
            ("n={.items[0].spec.n}!", "n=1!"),
            ("{range .items[*]}{@.metadata.name}{end}{$.kind}", "abList"),
        ] {
            assert_eq!(Template::parse(template, false).unwrap().execute(&object).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn wrong_templates() {
        for (template, expected) in [
            ("{.items[", "unclosed action"),
            ("{range .items[*]}x", "unexpected end of range"),
            ("{end}", "not in range"),
            ("{.a[x]}", "invalid array index x"),
        ] {
            let error = Template::parse(template, false).unwrap_err().to_string();
            assert!(error.contains(expected), "{template}: {error}");
        }
        let error = Template::parse("{.a[5]}", false).unwrap().execute(&json!({"a": []})).unwrap_err().to_string();
        assert!(error.contains("array index out of bounds: index 5, length 0"), "{error}");
    }
}
