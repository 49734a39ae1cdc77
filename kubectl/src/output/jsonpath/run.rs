//! Filling JSONPath templates in: each step takes all values that the one before found.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use super::parse::{Node, Slice};

/// What a piece of a template found.
pub type Found<'a> = Vec<Cow<'a, Value>>;

/// A template's walk over a value.
pub struct Walk {
    /// Whether fields that are missing are errors.
    pub strict: bool,
    ranges: usize,
    begins: bool,
    ends: bool,
}

impl Walk {
    /// Before the first piece.
    pub fn new(strict: bool) -> Self {
        Self { strict, ranges: 0, begins: false, ends: false }
    }

    /// What each piece finds, with ranges taken apart; and how many pieces were used.
    pub fn pieces<'a>(
        &mut self,
        nodes: &'a [Node],
        here: Option<&'a Value>,
    ) -> Result<(Vec<Found<'a>>, usize), String> {
        let mut all = Vec::new();
        let mut at = 0;
        while at < nodes.len() {
            let input = here.map(Cow::Borrowed).into_iter().collect();
            let found = self.step(&nodes[at], input)?;
            at += 1;
            if std::mem::take(&mut self.ends) {
                return Ok((all, at));
            }
            if !std::mem::take(&mut self.begins) {
                all.push(found);
                continue;
            }
            self.ranges += 1;
            let mut used = nodes.len() - at;
            if found.is_empty() {
                used = self.pieces(&nodes[at..], None)?.1;
            }
            for value in found {
                let (inner, taken) = self.each(&nodes[at..], value)?;
                all.extend(inner);
                used = taken;
            }
            self.ranges -= 1;
            at += used;
        }
        Ok((all, at))
    }

    /// The pieces of a range for one of its values.
    fn each<'a>(&mut self, nodes: &'a [Node], value: Cow<'a, Value>) -> Result<(Vec<Found<'a>>, usize), String> {
        match value {
            Cow::Borrowed(value) => self.pieces(nodes, Some(value)),
            Cow::Owned(value) => {
                let (all, used) = self.pieces(nodes, Some(&value))?;
                let owned = |found: Found<'_>| found.into_iter().map(|v| Cow::Owned(v.into_owned())).collect();
                Ok((all.into_iter().map(owned).collect(), used))
            }
        }
    }

    fn steps<'a>(&mut self, nodes: &'a [Node], input: Found<'a>) -> Result<Found<'a>, String> {
        nodes.iter().try_fold(input, |found, node| self.step(node, found))
    }

    fn step<'a>(&mut self, node: &'a Node, input: Found<'a>) -> Result<Found<'a>, String> {
        match node {
            Node::List(nodes) => self.steps(nodes, input),
            Node::Text(text) => Ok(vec![Cow::Owned(Value::from(text.as_str()))]),
            Node::Literal(value) => Ok(input.iter().map(|_| Cow::Borrowed(value)).collect()),
            Node::Field(name) if name.is_empty() => Ok(input),
            Node::Field(name) => {
                let any = !input.is_empty();
                let found: Found<'_> = input.into_iter().filter_map(|value| field(value, name)).collect();
                if any && found.is_empty() && self.strict {
                    return Err(format!("{name} is not found"));
                }
                Ok(found)
            }
            Node::Slice(slice) => {
                let mut found = Vec::new();
                for value in input {
                    part(slice, value, &mut found)?;
                }
                Ok(found)
            }
            Node::Wildcard => Ok(input.into_iter().flat_map(children).collect()),
            Node::Recursive => Ok(descend(input)),
            Node::Union(parts) => {
                let mut found = Vec::new();
                for part in parts {
                    found.extend(self.steps(part, input.clone())?);
                }
                Ok(found)
            }
            Node::Filter(left, operator, right) => self.filter(left, operator, right, input),
            Node::Word(word) => {
                match word.as_str() {
                    "range" => self.begins = true,
                    "end" if self.ranges > 0 => self.ends = true,
                    "end" => return Err("not in range, nothing to end".into()),
                    word => return Err(format!("unrecognized identifier {word}")),
                }
                Ok(input)
            }
        }
    }

    fn filter<'a>(
        &mut self,
        left: &'a [Node],
        operator: &str,
        right: &'a [Node],
        input: Found<'a>,
    ) -> Result<Found<'a>, String> {
        let mut found = Vec::new();
        for value in input {
            if !value.is_array() {
                return Err(format!("{} is not array or slice and cannot be filtered", go_value(&value)));
            }
            for item in children(value) {
                let lefts = self.steps(left, vec![item.clone()]);
                if operator == "exists" {
                    if lefts.is_ok_and(|lefts| !lefts.is_empty()) {
                        found.push(item);
                    }
                    continue;
                }
                let (lefts, rights) = (lefts?, self.steps(right, vec![item.clone()])?);
                if lefts.len() > 1 || (!lefts.is_empty() && rights.len() > 1) {
                    return Err("can only compare one element at a time".into());
                }
                let (Some(left), Some(right)) = (lefts.first(), rights.first()) else { continue };
                if holds(left, operator, right)? {
                    found.push(item);
                }
            }
        }
        Ok(found)
    }
}

fn field<'a>(value: Cow<'a, Value>, name: &str) -> Option<Cow<'a, Value>> {
    match value {
        Cow::Borrowed(value) => value.get(name).map(Cow::Borrowed),
        Cow::Owned(mut value) => value.get_mut(name).map(|value| Cow::Owned(value.take())),
    }
}

fn children(value: Cow<'_, Value>) -> Found<'_> {
    match value {
        Cow::Borrowed(Value::Array(items)) => items.iter().map(Cow::Borrowed).collect(),
        Cow::Borrowed(Value::Object(map)) => map.values().map(Cow::Borrowed).collect(),
        Cow::Owned(Value::Array(items)) => items.into_iter().map(Cow::Owned).collect(),
        Cow::Owned(Value::Object(map)) => map.into_iter().map(|(_, value)| Cow::Owned(value)).collect(),
        _ => Vec::new(),
    }
}

fn descend(input: Found<'_>) -> Found<'_> {
    let mut found = Vec::new();
    for value in input {
        let inner = children(value.clone());
        if !inner.is_empty() {
            found.push(value);
            found.extend(descend(inner));
        }
    }
    found
}

fn part<'a>(slice: &Slice, value: Cow<'a, Value>, found: &mut Found<'a>) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    if !value.is_array() {
        return Err(format!("{} is not array or slice", go_type(&value)));
    }
    let items = children(value);
    let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
    let mut start = slice.start.unwrap_or(0);
    if start < 0 {
        start += length;
    }
    let mut end = slice.end.unwrap_or(length);
    if end < 0 || (end == 0 && slice.single) {
        end += length;
    }
    if start == end {
        return Ok(());
    }
    let out = |index: i64| Err(format!("array index out of bounds: index {index}, length {length}"));
    if start >= length || start < 0 {
        return out(start);
    }
    if end > length || end < 0 {
        return out(end - 1);
    }
    if start > end {
        return Err(format!("starting index {start} is greater than ending index {end}"));
    }
    let step = slice.step.unwrap_or(1);
    let step = usize::try_from(step).ok().filter(|step| *step > 0).ok_or("step must be > 0")?;
    let (start, end) = (usize::try_from(start).unwrap_or(0), usize::try_from(end).unwrap_or(0));
    found.extend(items.into_iter().take(end).skip(start).step_by(step));
    Ok(())
}

/// Compares as Go's templates do: only what is of one sort.
fn holds(left: &Value, operator: &str, right: &Value) -> Result<bool, String> {
    let order = match (left, right) {
        (Value::Array(_) | Value::Object(_) | Value::Null, _)
        | (_, Value::Array(_) | Value::Object(_) | Value::Null) => {
            return Err("invalid type for comparison".into());
        }
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) if matches!(operator, "==" | "!=") => a.cmp(b),
        (Value::Bool(_), Value::Bool(_)) => return Err("invalid type for comparison".into()),
        (Value::Number(a), Value::Number(b)) if a.is_f64() == b.is_f64() => {
            a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal)
        }
        _ => return Err("incompatible types for comparison".into()),
    };
    Ok(match operator {
        "==" => order.is_eq(),
        "!=" => order.is_ne(),
        "<" => order.is_lt(),
        ">" => order.is_gt(),
        "<=" => order.is_le(),
        ">=" => order.is_ge(),
        other => return Err(format!("unrecognized filter operator {other}")),
    })
}

/// What Go calls a value's type.
fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// A value as Go's `%v` prints it.
pub fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_value).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", go_value(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}
