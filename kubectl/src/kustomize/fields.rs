//! Paths to fields, through lists, and what is done at their ends.

use serde_json::{Map, Value};

/// Calls `change` for each value at `path` (`spec/template/metadata/labels`); lists on the way are walked. With `create`,
/// maps that are missing are made.
pub fn each(value: &mut Value, path: &str, create: bool, change: &mut dyn FnMut(&mut Value)) {
    let Some((first, rest)) = path.split_once('/').map_or(Some((path, "")), Some) else { return };
    if let Value::Array(items) = value {
        items.iter_mut().for_each(|item| each(item, path, create, change));
        return;
    }
    let Value::Object(map) = value else { return };
    if !map.contains_key(first) {
        if !create {
            return;
        }
        map.insert(first.to_owned(), Value::Object(Map::new()));
    }
    let Some(inner) = map.get_mut(first) else { return };
    if inner.is_null() && create {
        *inner = Value::Object(Map::new());
    }
    match rest {
        "" => change(inner),
        rest => each(inner, rest, create, change),
    }
}

/// A step of a path as replacements write it: `spec.containers.[name=x].image`, `metadata.annotations.a\.b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A field, or an index.
    Field(String),
    /// The items whose field has a value.
    Item(String, String),
    /// All items.
    All,
}

/// Parses a path.
pub fn steps(path: &str) -> Vec<Step> {
    let (mut parts, mut part, mut letters, mut depth) = (Vec::new(), String::new(), path.chars(), 0);
    while let Some(c) = letters.next() {
        match c {
            '\\' => part.extend(letters.next()),
            '[' => {
                depth += 1;
                part.push(c);
            }
            ']' => {
                depth -= 1;
                part.push(c);
            }
            '.' if depth == 0 => parts.push(std::mem::take(&mut part)),
            c => part.push(c),
        }
    }
    parts.push(part);
    let step = |part: String| match part.strip_prefix('[').and_then(|p| p.strip_suffix(']')) {
        Some(inner) => match inner.split_once('=') {
            Some((key, value)) => Step::Item(key.to_owned(), value.to_owned()),
            None => Step::Field(inner.to_owned()),
        },
        None if part == "*" => Step::All,
        None => Step::Field(part),
    };
    parts.into_iter().filter(|p| !p.is_empty()).map(step).collect()
}

/// The values at a path; with `create`, maps that are missing are made.
pub fn at<'a>(value: &'a mut Value, steps: &[Step], create: bool) -> Vec<&'a mut Value> {
    let Some((first, rest)) = steps.split_first() else { return vec![value] };
    match (first, value) {
        (Step::Field(name), Value::Object(map)) => {
            if create && !map.contains_key(name) {
                let empty = if rest.is_empty() { Value::Null } else { Value::Object(Map::new()) };
                map.insert(name.clone(), empty);
            }
            map.get_mut(name).map(|inner| at(inner, rest, create)).unwrap_or_default()
        }
        (Step::Field(name), Value::Array(items)) => {
            let index = name.parse::<usize>().ok();
            index.and_then(|i| items.get_mut(i)).map(|inner| at(inner, rest, create)).unwrap_or_default()
        }
        (Step::Item(key, wanted), Value::Array(items)) => {
            let fits = |item: &&mut Value| match item.get(key) {
                Some(Value::String(text)) => text == wanted,
                Some(other) => crate::value::Read::shown(other).as_str() == wanted,
                None => key.is_empty() && item.as_str() == Some(wanted),
            };
            items.iter_mut().filter(fits).flat_map(|inner| at(inner, rest, create)).collect()
        }
        (Step::All, Value::Array(items)) => items.iter_mut().flat_map(|inner| at(inner, rest, create)).collect(),
        (Step::All, Value::Object(map)) => map.values_mut().flat_map(|inner| at(inner, rest, create)).collect(),
        _ => Vec::new(),
    }
}
