//! Label and field selectors: parsed once, matched against the head of a stored object.

use serde_json::Value;

use crate::resource::ResourceDef;
use crate::stored::Head;

/// How a requirement compares a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelOp {
    /// The value is one of these.
    In(Vec<String>),
    /// The label is absent or its value none of these.
    NotIn(Vec<String>),
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
    /// The value is a number greater than this.
    Greater(i64),
    /// The value is a number less than this.
    Less(i64),
}

/// A label selector: all requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(pub Vec<(String, LabelOp)>);

impl LabelSelector {
    /// Parses the form of `labelSelector=`: `a=b,c!=d,e in (f,g),!h,i`.
    pub fn parse(text: &str) -> Result<Self, String> {
        crate::labels::parse(text).map(Self)
    }

    /// Reads the object form: `matchLabels` and `matchExpressions`.
    pub fn from_object(object: &Value) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for (key, value) in object["matchLabels"].as_object().into_iter().flatten() {
            requirements.push((key.clone(), LabelOp::In(vec![value.as_str().unwrap_or_default().to_owned()])));
        }
        for expression in object["matchExpressions"].as_array().into_iter().flatten() {
            let values = || {
                let list = expression["values"].as_array().into_iter().flatten();
                list.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
            };
            let op = match expression["operator"].as_str().unwrap_or_default() {
                "In" => LabelOp::In(values()),
                "NotIn" => LabelOp::NotIn(values()),
                "Exists" => LabelOp::Exists,
                "DoesNotExist" => LabelOp::DoesNotExist,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            requirements.push((expression["key"].as_str().unwrap_or_default().to_owned(), op));
        }
        Ok(Self(requirements))
    }

    /// Whether labels, looked up with `label`, satisfy all requirements.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|(key, op)| {
            let value = label(key);
            match op {
                LabelOp::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
                LabelOp::NotIn(values) => value.is_none_or(|v| values.iter().all(|w| w != v)),
                LabelOp::Exists => value.is_some(),
                LabelOp::DoesNotExist => value.is_none(),
                LabelOp::Greater(n) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *n),
                LabelOp::Less(n) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *n),
            }
        })
    }
}

/// A field selector: terms `field=value` or `field!=value`, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<(Field, String, bool)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
    /// Index into the row's selectable fields.
    Other(usize),
}

impl FieldSelector {
    /// Parses the form of `fieldSelector=` for a row; fields that the row does not offer are an error.
    pub fn parse(def: &ResourceDef, text: &str) -> Result<Self, String> {
        let mut terms = Vec::new();
        for term in text.split(',').filter(|t| !t.is_empty()) {
            let (field, value, equal) = if let Some((f, v)) = term.split_once("!=") {
                (f, v, false)
            } else if let Some((f, v)) = term.split_once("==").or_else(|| term.split_once('=')) {
                (f, v, true)
            } else {
                return Err(format!("invalid selector: '{term}'; can't understand '{term}'"));
            };
            let field = match field {
                "metadata.name" => Field::Name,
                "metadata.namespace" => Field::Namespace,
                other => match def.selectable_fields.iter().position(|f| *f == other) {
                    Some(index) => Field::Other(index),
                    None if def.selectable_fields.is_empty() => {
                        return Err(format!(
                            "{other:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                        ));
                    }
                    None => return Err(format!("field label not supported: {other}")),
                },
            };
            terms.push((field, unescape(value), equal));
        }
        Ok(Self(terms))
    }

    /// Whether an object satisfies all terms.
    pub fn matches(&self, head: &Head) -> bool {
        self.0.iter().all(|(field, value, equal)| {
            let actual = match field {
                Field::Name => &head.name,
                Field::Namespace => &head.namespace,
                Field::Other(index) => head.fields.get(*index).map_or("", String::as_str),
            };
            (actual == value) == *equal
        })
    }

    /// The name that the selector asks for, if it asks for exactly one.
    pub fn name(&self) -> Option<&str> {
        self.0.iter().find(|(field, _, equal)| *field == Field::Name && *equal).map(|(_, value, _)| value.as_str())
    }
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

/// Values of a row's selectable fields in an object, as text; absent ones are "" (booleans: "false").
pub fn fields_of(def: &ResourceDef, object: &Value) -> Vec<String> {
    def.selectable_fields
        .iter()
        .map(|path| {
            let value = path.split('.').try_fold(object, |at, key| at.get(key));
            match value {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Bool(b)) => b.to_string(),
                Some(Value::Number(n)) => n.to_string(),
                _ if *path == "spec.unschedulable" || *path == "spec.hostNetwork" => "false".into(),
                _ if *path == "status.successful" => "0".into(),
                _ => String::new(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_selectors() {
        let labels = |key: &str| match key {
            "app" => Some("web"),
            "n" => Some("5"),
            _ => None,
        };
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,n", true),
            ("app!=web", false),
            ("x!=web", true),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("!x", true),
            ("!app", false),
            ("x", false),
            ("n>4,n<6", true),
            ("n>5", false),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(labels), expected, "{text}");
        }
        for bad in ["a in b", "a=b,", ",", "a in (b", "a b", "=a", "a>x", "a=b c"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text: String) {
            let _ = LabelSelector::parse(&text);
        }
    }
}
