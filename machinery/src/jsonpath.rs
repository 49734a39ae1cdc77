//! JSONPath as Kubernetes has it: fields, indexes, wildcards, slices, unions, recursive descent and filters. Printer columns,
//! paths of subresources and kubectl's templates share it.

use std::cmp::Ordering;

use serde_json::Value;

/// A parsed path.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Parses a path that starts with a dot, a bracket, `$` or `@` (`.spec.items[0]['a.b']`), or a number.
    pub fn parse(text: &str) -> Result<Self, String> {
        path_of(text.trim()).map(Self)
    }

    /// All values that the path names; none if it cannot be walked to its end.
    pub fn find<'a>(&'a self, value: &'a Value) -> Vec<&'a Value> {
        self.walk(value, value).unwrap_or_default()
    }

    /// All values that the path names from `here` on; `$` is `root`.
    pub fn walk<'a>(&'a self, root: &'a Value, here: &'a Value) -> Result<Vec<&'a Value>, String> {
        walk(&self.0, root, here)
    }

    /// The first field on the way that is not there.
    pub fn missing(&self, root: &Value, here: &Value) -> Option<&str> {
        let mut at: Vec<&Value> = vec![here];
        for (done, step) in self.0.iter().enumerate() {
            let next = walk(&self.0[..=done], root, here).ok()?;
            if let Step::Field(name) = step
                && next.is_empty()
                && !at.is_empty()
            {
                return Some(name);
            }
            at = next;
        }
        None
    }

    /// The names of a path that is made of plain fields only.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.0.iter().map(|step| if let Step::Field(name) = step { Some(name.as_str()) } else { None }).collect()
    }
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

/// A value as text, for comparisons and for output: what is no text is JSON.
pub fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
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

/// The text inside of quotes, with its escapes resolved; `None` if there are no quotes.
pub fn quoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    // `'a','b'` is two texts.
    let mut escaped = false;
    let ends_before = inner.chars().any(|c| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    if ends_before {
        return None;
    }
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

/// Where the bracket that was opened ends; quotes, nested brackets and parentheses are skipped.
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
    fn paths() {
        let object = json!({"spec": {"a": 1, "l": ["x", "y", "z"], "c": [{"type": "Ready", "status": "True"}, {"type": "B", "n": 3}]},
            "metadata": {"annotations": {"a.b/c": "v"}}});
        for (path, expected) in [
            (".spec.a", json!([1])),
            (".spec.l[*]", json!(["x", "y", "z"])),
            (".spec.l[-1]", json!(["z"])),
            (".spec.l[0:2]", json!(["x", "y"])),
            (".spec.c[?(@.type==\"Ready\")].status", json!(["True"])),
            (".spec.c[?(@.n>2)].type", json!(["B"])),
            (".spec.c[?(@.n)].type", json!(["B"])),
            (".metadata.annotations.a\\.b/c", json!(["v"])),
            (".metadata.annotations['a.b/c']", json!(["v"])),
            ("..n", json!([3])),
            (".nope.x", json!([])),
        ] {
            assert_eq!(json!(JsonPath::parse(path).unwrap().find(&object)), expected, "{path}");
        }
        for bad in ["spec", ".a[", ".a[x]"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }
}
