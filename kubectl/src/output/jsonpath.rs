//! kubectl's JSONPath templates: text with `{...}` in it, ranges, filters, unions and slices.

use std::cmp::Ordering;

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::output::json;

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    nodes: Vec<Node>,
    as_json: bool,
    source: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Path(Vec<Step>),
    Range(Vec<Step>, Vec<Node>),
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Root,
    Field(String),
    Wildcard,
    Recursive,
    Slice(Option<i64>, Option<i64>, Option<i64>),
    Index(i64),
    Union(Vec<Vec<Step>>),
    Filter(Vec<Step>, &'static str, Operand),
    Literal(Value),
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    None,
    Path(Vec<Step>),
    Literal(Value),
}

const OPERATORS: [&str; 6] = ["==", "!=", "<=", ">=", "<", ">"];

impl Template {
    /// Parses a template; without braces the whole text is one path.
    pub fn parse(text: &str, as_json: bool) -> Outcome<Self> {
        let text = relaxed(text);
        let wrong = |why: String| Failure::new(format!("error parsing jsonpath {text}, {why}"));
        let mut parser = Parser { rest: &text };
        let nodes = parser.nodes(false).map_err(wrong)?;
        Ok(Self { nodes, as_json, source: text.clone() })
    }

    /// Fills the template in.
    pub fn execute(&self, value: &Value) -> Outcome<String> {
        let mut out = String::new();
        let wrong = |why: String| {
            Failure::new(format!("error executing jsonpath {:?}: Error executing template: {why}.", self.source))
        };
        if self.as_json {
            let mut found = Vec::new();
            for node in &self.nodes {
                if let Node::Path(path) = node {
                    found.extend(walk(path, value, value).map_err(wrong)?.into_iter().cloned());
                }
            }
            return Ok(json::pretty(&Value::Array(found)) + "\n");
        }
        run(&self.nodes, value, value, &mut out).map_err(wrong)?;
        Ok(out)
    }

    /// The values of the template's paths.
    pub fn values<'a>(&'a self, value: &'a Value) -> Vec<&'a Value> {
        let paths = self.nodes.iter().filter_map(|n| if let Node::Path(path) = n { Some(path) } else { None });
        paths.flat_map(|path| walk(path, value, value).unwrap_or_default()).collect()
    }
}

/// Paths as people type them: `.spec.x`, `spec.x` and `{.spec.x}` are the same.
pub fn relaxed(text: &str) -> String {
    if text.contains('{') || text.is_empty() {
        return text.to_owned();
    }
    if text.starts_with(['.', '[', '$', '@']) { format!("{{{text}}}") } else { format!("{{.{text}}}") }
}

fn run(nodes: &[Node], root: &Value, here: &Value, out: &mut String) -> Result<(), String> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Path(path) => {
                let texts: Vec<String> = walk(path, root, here)?.into_iter().map(text_of).collect();
                out.push_str(&texts.join(" "));
            }
            Node::Range(path, inner) => {
                for value in walk(path, root, here)? {
                    run(inner, root, value, out)?;
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

fn walk<'a>(path: &'a [Step], root: &'a Value, here: &'a Value) -> Result<Vec<&'a Value>, String> {
    let mut found = vec![here];
    for step in path {
        let mut next = Vec::new();
        for value in found {
            step.apply(root, value, &mut next)?;
        }
        found = next;
    }
    Ok(found)
}

fn descend<'a>(value: &'a Value, out: &mut Vec<&'a Value>) {
    out.push(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| descend(item, out)),
        Value::Object(map) => map.values().for_each(|item| descend(item, out)),
        _ => {}
    }
}

fn at(index: i64, len: usize) -> Option<usize> {
    let index = if index < 0 { index + i64::try_from(len).ok()? } else { index };
    usize::try_from(index).ok()
}

impl Step {
    fn apply<'a>(&'a self, root: &'a Value, value: &'a Value, out: &mut Vec<&'a Value>) -> Result<(), String> {
        match self {
            Self::Root => out.push(root),
            Self::Literal(literal) => out.push(literal),
            Self::Field(name) => out.extend(value.get(name)),
            Self::Wildcard => match value {
                Value::Array(items) => out.extend(items),
                Value::Object(map) => out.extend(map.values()),
                _ => {}
            },
            Self::Recursive => descend(value, out),
            Self::Index(index) => {
                let Some(items) = value.as_array() else { return Ok(()) };
                match at(*index, items.len()).and_then(|at| items.get(at)) {
                    Some(item) => out.push(item),
                    None => {
                        return Err(format!("array index out of bounds: index {index}, length {}", items.len()));
                    }
                }
            }
            Self::Slice(start, end, step) => {
                let Some(items) = value.as_array() else { return Ok(()) };
                let start = start.and_then(|s| at(s, items.len())).unwrap_or(0);
                let end = end.map_or(Some(items.len()), |e| at(e, items.len())).unwrap_or(0).min(items.len());
                let step = usize::try_from(step.unwrap_or(1)).unwrap_or(1).max(1);
                out.extend(items.get(start..end.max(start)).unwrap_or_default().iter().step_by(step));
            }
            Self::Union(paths) => {
                for path in paths {
                    out.extend(walk(path, root, value)?);
                }
            }
            Self::Filter(left, operator, right) => {
                let items: Vec<&Value> = match value {
                    Value::Array(items) => items.iter().collect(),
                    Value::Object(map) => map.values().collect(),
                    _ => return Ok(()),
                };
                for item in items {
                    if holds(left, operator, right, root, item)? {
                        out.push(item);
                    }
                }
            }
        }
        Ok(())
    }
}

fn holds(left: &[Step], operator: &str, right: &Operand, root: &Value, item: &Value) -> Result<bool, String> {
    let left = walk(left, root, item)?;
    let right: Vec<&Value> = match right {
        Operand::None => return Ok(!left.is_empty()),
        Operand::Path(path) => walk(path, root, item)?,
        Operand::Literal(literal) => vec![literal],
    };
    let (Some(left), Some(right)) = (left.first(), right.first()) else { return Ok(false) };
    let order = match (left.as_f64(), right.as_f64()) {
        (Some(a), Some(b)) => a.partial_cmp(&b),
        _ => Some(text_of(left).cmp(&text_of(right))),
    };
    Ok(match operator {
        "==" => order == Some(Ordering::Equal),
        "!=" => order != Some(Ordering::Equal),
        "<" => order == Some(Ordering::Less),
        ">" => order == Some(Ordering::Greater),
        "<=" => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        _ => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
    })
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
                nodes.push(Node::Range(path_of(path.trim())?, inner));
                continue;
            }
            // Several paths or texts in one pair of braces are printed one after the other.
            let mut rest = action;
            while !rest.is_empty() {
                let (word, after) = word(rest);
                nodes.push(match quoted(word) {
                    Some(text) => Node::Text(text),
                    None => Node::Path(path_of(word)?),
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

fn quoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    let (mut out, mut chars) = (String::new(), inner.chars());
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some(other) => out.push(other),
                None => {}
            },
            (c, false) => out.push(c),
        }
    }
    Some(out)
}

fn path_of(text: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    let mut rest = text;
    if let Some(after) = rest.strip_prefix('$') {
        steps.push(Step::Root);
        rest = after;
    } else if let Some(after) = rest.strip_prefix('@') {
        rest = after;
    } else if let Ok(number) = rest.parse::<serde_json::Number>() {
        return Ok(vec![Step::Literal(Value::Number(number))]);
    } else if !rest.starts_with(['.', '[']) {
        return Err(format!("unrecognized identifier {text}"));
    }
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("..") {
            steps.push(Step::Recursive);
            rest = name_into(after, &mut steps);
        } else if let Some(after) = rest.strip_prefix('.') {
            rest = name_into(after, &mut steps);
        } else if let Some(after) = rest.strip_prefix('[') {
            let close = bracket_end(after).ok_or("unterminated array")?;
            steps.push(bracket(after[..close].trim())?);
            rest = &after[close + 1..];
        } else {
            return Err(format!(
                "unrecognized character in action: U+{:04X} {:?}",
                rest.chars().next().map_or(0, u32::from),
                rest.chars().next().unwrap_or(' ')
            ));
        }
    }
    Ok(steps)
}

fn name_into<'a>(text: &'a str, steps: &mut Vec<Step>) -> &'a str {
    let (mut name, mut escaped) = (String::new(), false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => {
                name.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '.' | '[' => {
                push_name(name, steps);
                return &text[at..];
            }
            c => name.push(c),
        }
    }
    push_name(name, steps);
    ""
}

fn push_name(name: String, steps: &mut Vec<Step>) {
    match name.as_str() {
        "" => {}
        "*" => steps.push(Step::Wildcard),
        _ => steps.push(Step::Field(name)),
    }
}

fn bracket_end(text: &str) -> Option<usize> {
    let (mut quote, mut depth) = (None, 0);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[' | '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(text: &str) -> Result<Step, String> {
    if text == "*" {
        return Ok(Step::Wildcard);
    }
    if let Some(filter) = text.strip_prefix("?(") {
        return filter_of(filter.strip_suffix(')').ok_or("unterminated filter")?.trim());
    }
    if let Some(name) = quoted(text) {
        return Ok(Step::Field(name));
    }
    let invalid = || format!("invalid array index {text}");
    if text.contains(',') {
        let parts = text.split(',').map(|part| match bracket(part.trim()) {
            Ok(step) => Ok(vec![step]),
            Err(_) => path_of(part.trim()),
        });
        return parts.collect::<Result<_, _>>().map(Step::Union);
    }
    if text.contains(':') {
        let mut numbers = text.split(':').map(|part| match part.trim() {
            "" => Ok(None),
            part => part.parse().map(Some).map_err(|_| invalid()),
        });
        let mut next = || numbers.next().unwrap_or(Ok(None));
        return Ok(Step::Slice(next()?, next()?, next()?));
    }
    text.parse().map(Step::Index).map_err(|_| invalid())
}

fn filter_of(text: &str) -> Result<Step, String> {
    let found =
        OPERATORS.iter().filter_map(|op| text.find(op).map(|at| (at, *op))).min_by_key(|(at, op)| (*at, 2 - op.len()));
    let Some((at, operator)) = found else { return Ok(Step::Filter(path_of(text)?, "exists", Operand::None)) };
    let right = text[at + operator.len()..].trim();
    let operand = match (quoted(right), right) {
        (Some(text), _) => Operand::Literal(Value::String(text)),
        (None, "true") => Operand::Literal(true.into()),
        (None, "false") => Operand::Literal(false.into()),
        (None, path) if path.starts_with(['@', '$', '.']) => Operand::Path(path_of(path)?),
        (None, number) => {
            Operand::Literal(Value::Number(number.parse().map_err(|_| format!("unrecognized identifier {number}"))?))
        }
    };
    Ok(Step::Filter(path_of(text[..at].trim())?, operator, operand))
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
            (".items[0].metadata.name", "a"),
            ("items[0].metadata.name", "a"),
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
