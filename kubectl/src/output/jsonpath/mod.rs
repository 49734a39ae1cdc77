//! kubectl's JSONPath templates: text with `{...}` in it, ranges, filters, unions and slices, as client-go reads and runs them.

mod parse;
mod run;

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::output::json;
use parse::Node;
pub use run::go_value;
use run::{Found, Walk};

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    nodes: Vec<Node>,
    as_json: bool,
    strict: bool,
    source: String,
}

impl Template {
    /// Parses a template.
    pub fn parse(text: &str, as_json: bool) -> Outcome<Self> {
        let nodes = Self::bare(text).map_err(|why| Failure::new(format!("error parsing jsonpath {text}, {why}")))?;
        Ok(Self { as_json, ..nodes })
    }

    /// Parses a template; what is wrong with it is told without naming it.
    pub fn bare(text: &str) -> Result<Self, String> {
        Ok(Self { nodes: parse::parse(text)?, as_json: false, strict: false, source: text.to_owned() })
    }

    /// With fields that are missing refused.
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Fills the template in.
    pub fn execute(&self, value: &Value) -> Outcome<String> {
        let wrong = |why: String| {
            Failure::new(format!(
                "error executing jsonpath {}: Error executing template: {why}. Printing more information for debugging the \
                 template:\n\ttemplate was:\n\t\t{}\n\tobject given to jsonpath engine was:\n\t\t{}\n\n",
                crate::value::quoted(&self.source),
                self.source,
                go_syntax(value)
            ))
        };
        let found = self.find(value).map_err(wrong)?;
        Ok(found.into_iter().map(|piece| self.shown(&piece)).collect())
    }

    fn shown(&self, piece: &Found<'_>) -> String {
        if self.as_json {
            let values = piece.iter().map(|value| value.clone().into_owned()).collect();
            return json::pretty(&Value::Array(values)) + "\n";
        }
        piece.iter().map(|value| text_of(value)).collect::<Vec<_>>().join(" ")
    }

    /// What each piece of the template finds.
    pub fn find<'a>(&'a self, value: &'a Value) -> Result<Vec<Found<'a>>, String> {
        Ok(Walk::new(self.strict).pieces(&self.nodes, Some(value))?.0)
    }

    /// The values that the template finds, none if it cannot be walked to its end.
    pub fn values<'a>(&'a self, value: &'a Value) -> Found<'a> {
        self.find(value).unwrap_or_default().into_iter().flatten().collect()
    }
}

/// Paths as people type them: `.spec.x`, `spec.x`, `{spec.x}` and `{.spec.x}` are the same.
pub fn relaxed(text: &str) -> Outcome<String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let inside = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
    let path = inside.strip_prefix('.').unwrap_or(inside);
    if path.is_empty() || path.contains(['{', '}']) {
        return Err(Failure::new(
            "unexpected path string, expected a 'name1.name2' or '.name1.name2' or '{name1.name2}' or '{.name1.name2}'",
        ));
    }
    Ok(format!("{{.{path}}}"))
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

/// A value as templates print it.
pub fn text_of(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Object(_) | Value::Array(_) => json::compact(value),
        other => other.to_string(),
    }
}

/// The text inside of quotes with its escapes resolved, if they are ones that Go knows.
fn unquoted(text: &str) -> Option<String> {
    let quote = text.chars().next()?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    let (mut out, mut letters) = (String::new(), inner.chars());
    while let Some(c) = letters.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match letters.next()? {
            'a' => '\x07',
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            'x' => coded(&mut letters, 2)?,
            'u' => coded(&mut letters, 4)?,
            'U' => coded(&mut letters, 8)?,
            c @ ('\\' | '"' | '\'') => c,
            _ => return None,
        });
    }
    Some(out)
}

/// A letter by its number in so many hexadecimal digits.
fn coded(letters: &mut std::str::Chars<'_>, digits: usize) -> Option<char> {
    let text: String = letters.by_ref().take(digits).collect();
    char::from_u32(u32::from_str_radix(&text, 16).ok().filter(|_| text.len() == digits)?)
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
            ("{.items[0].metadata.labels['x\\.y/z']}", "1"),
            ("{.items[0].metadata.labels['x.y/z']}", ""),
            ("{..name}", "a b"),
            ("{.items[0].spec}", "{\"n\":1,\"ports\":[80,443]}"),
            ("{.items[*]['metadata.name', 'kind']}", "a b"),
            ("{.items[0].spec.n}{true}{5}{3.5}", "1true53.5"),
            ("{.items[:1].metadata.name}{.items[1:].metadata.name}", "ab"),
            ("{range .items[*]}{.metadata.name}{range .spec.ports[*]}:{@}{end};{end}", "a:80:443;b;"),
            ("{range .nothing[*]}x{end}y", "y"),
            ("{range .items[*]}{.metadata.name}", "ab"),
            ("{'it\\'s'}{\"\\u00e9\"}", "it'sé"),
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
            ("{.items[", "unterminated array"),
            ("{.items", "unclosed action"),
            ("{.a[x]}", "invalid array index x"),
            ("{.a[\"x\"]}", "invalid array index \"x\""),
            ("{.a[?(@.b)}", "unclosed array expect ]"),
            ("{.a[?(@.b==1 || @.c==2)]}", "unrecognized character in action: U+007C '|'"),
            ("{\"a}", "unterminated quoted string"),
        ] {
            let error = Template::parse(template, false).unwrap_err().to_string();
            assert!(error.contains(expected), "{template}: {error}");
        }
        let object = json!({"a": [], "l": [1, 2, 3], "s": "t"});
        for (template, expected) in [
            ("{.a[5]}", "array index out of bounds: index 5, length 0"),
            ("{.l[2:1]}", "starting index 2 is greater than ending index 1"),
            ("{.l[::0]}", "step must be > 0"),
            ("{.s[0]}", "string is not array or slice"),
            ("{.s[?(@.x)]}", "t is not array or slice and cannot be filtered"),
            ("{.l[?(@==\"x\")]}", "incompatible types for comparison"),
            ("{end}", "not in range, nothing to end"),
            ("{word}", "unrecognized identifier word"),
        ] {
            let error = Template::parse(template, false).unwrap().execute(&object).unwrap_err().to_string();
            assert!(error.contains(expected), "{template}: {error}");
        }
    }
}
