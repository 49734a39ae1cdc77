//! The JSONPath of printer columns and subresource paths: fields, indexes, wildcards, slices, recursive descent and simple
//! filters.

use serde_json::Value;

/// One step of a path.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    Slice(Option<i64>, Option<i64>),
    Descend,
    Filter(Box<JsonPath>, String, Value),
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Parses a path that starts with a dot or a bracket (`.spec.items[0]['a.b']`).
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut steps = Vec::new();
        let mut rest = text.trim().trim_start_matches('$');
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix("..") {
                steps.push(Step::Descend);
                rest = after;
                if !rest.starts_with('[') {
                    rest = field(rest, &mut steps);
                }
            } else if let Some(after) = rest.strip_prefix('.') {
                rest = after;
                if !rest.is_empty() && !rest.starts_with('[') {
                    rest = field(rest, &mut steps);
                }
            } else if let Some(after) = rest.strip_prefix('[') {
                let end = bracket_end(after).ok_or_else(|| format!("unterminated array in {text:?}"))?;
                steps.push(bracket(&after[..end])?);
                rest = &after[end + 1..];
            } else {
                return Err(format!("unexpected {rest:?} in {text:?}"));
            }
        }
        Ok(Self(steps))
    }

    /// All values that the path names.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![value];
        for step in &self.0 {
            found = found.into_iter().flat_map(|value| step.of(value)).collect();
        }
        found
    }

    /// The names of a path that is made of plain fields only.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.0.iter().map(|step| if let Step::Field(name) = step { Some(name.as_str()) } else { None }).collect()
    }
}

/// Takes a field's name off the front; a backslash takes the next character as it is.
fn field<'a>(text: &'a str, steps: &mut Vec<Step>) -> &'a str {
    let (mut name, mut escaped) = (String::new(), false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => {
                name.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '.' | '[' => {
                steps.push(if name == "*" { Step::All } else { Step::Field(name) });
                return &text[at..];
            }
            _ => name.push(c),
        }
    }
    steps.push(if name == "*" { Step::All } else { Step::Field(name) });
    ""
}

/// Where the bracket that was opened ends; quotes and nested brackets are skipped.
fn bracket_end(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(inner: &str) -> Result<Step, String> {
    let inner = inner.trim();
    if inner == "*" {
        return Ok(Step::All);
    }
    if let Some(condition) = inner.strip_prefix("?(").and_then(|c| c.strip_suffix(')')) {
        return filter(condition);
    }
    if let Some(name) = unquote(inner) {
        return Ok(Step::Field(name.to_owned()));
    }
    let number = |text: &str| text.trim().parse::<i64>().map_err(|_| format!("invalid array index {text}"));
    if let Some((from, to)) = inner.split_once(':') {
        let bound = |text: &str| if text.trim().is_empty() { Ok(None) } else { number(text).map(Some) };
        return Ok(Step::Slice(bound(from)?, bound(to)?));
    }
    number(inner).map(Step::Index)
}

fn unquote(text: &str) -> Option<&str> {
    ['\'', '"'].iter().find_map(|q| text.strip_prefix(*q).and_then(|t| t.strip_suffix(*q)))
}

fn filter(condition: &str) -> Result<Step, String> {
    for operator in ["==", "!=", ">=", "<=", ">", "<"] {
        if let Some((left, right)) = condition.split_once(operator) {
            let path = JsonPath::parse(left.trim().trim_start_matches('@'))?;
            let right = right.trim();
            let value = match unquote(right) {
                Some(text) => text.into(),
                None => serde_json::from_str(right).map_err(|_| format!("unrecognized value {right} in a filter"))?,
            };
            return Ok(Step::Filter(Box::new(path), operator.to_owned(), value));
        }
    }
    let path = JsonPath::parse(condition.trim().trim_start_matches('@'))?;
    Ok(Step::Filter(Box::new(path), "exists".into(), Value::Null))
}

impl Step {
    fn of<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match (self, value) {
            (Self::Field(name), Value::Object(map)) => map.get(name).into_iter().collect(),
            (Self::All, Value::Object(map)) => map.values().collect(),
            (Self::All, Value::Array(list)) => list.iter().collect(),
            (Self::Index(index), Value::Array(list)) => at(list, *index).into_iter().collect(),
            (Self::Slice(from, to), Value::Array(list)) => {
                let bound =
                    |n: i64| (if n < 0 { n + list.len() as i64 } else { n }).clamp(0, list.len() as i64) as usize;
                let (from, to) = (from.map_or(0, bound), to.map_or(list.len(), bound));
                list.get(from..to).unwrap_or_default().iter().collect()
            }
            (Self::Descend, _) => descend(value),
            (Self::Filter(path, operator, wanted), Value::Array(list)) => {
                list.iter().filter(|item| holds(path, operator, wanted, item)).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn at(list: &[Value], index: i64) -> Option<&Value> {
    let index = if index < 0 { index + list.len() as i64 } else { index };
    usize::try_from(index).ok().and_then(|index| list.get(index))
}

fn descend(value: &Value) -> Vec<&Value> {
    let mut all = vec![value];
    match value {
        Value::Object(map) => all.extend(map.values().flat_map(descend)),
        Value::Array(list) => all.extend(list.iter().flat_map(descend)),
        _ => {}
    }
    all
}

fn holds(path: &JsonPath, operator: &str, wanted: &Value, item: &Value) -> bool {
    let Some(found) = path.find(item).into_iter().next() else { return false };
    let order = match (found.as_f64(), wanted.as_f64(), found.as_str(), wanted.as_str()) {
        (Some(a), Some(b), ..) => a.partial_cmp(&b),
        (.., Some(a), Some(b)) => Some(a.cmp(b)),
        _ => (found == wanted).then_some(std::cmp::Ordering::Equal),
    };
    match operator {
        "exists" => true,
        "==" => order.is_some_and(|o| o.is_eq()),
        "!=" => order.is_none_or(|o| o.is_ne()),
        ">" => order.is_some_and(|o| o.is_gt()),
        "<" => order.is_some_and(|o| o.is_lt()),
        ">=" => order.is_some_and(|o| o.is_ge()),
        _ => order.is_some_and(|o| o.is_le()),
    }
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
