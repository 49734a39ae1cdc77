//! Label and field selectors: parsed once, matched against the head of a stored object.

use serde_json::Value;

use crate::names;
use crate::resource::{ResourceDef, Scope};
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
    ///
    /// # Errors
    /// What is wrong with it: a key or value that no label has, an operator that there is not, values that do not go
    /// with theirs.
    pub fn from_object(object: &Value) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for (key, value) in object["matchLabels"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push((key.clone(), LabelOp::In(vec![value])));
        }
        for expression in object["matchExpressions"].as_array().into_iter().flatten() {
            let list = expression["values"].as_array().into_iter().flatten();
            let values: Vec<String> = list.filter_map(Value::as_str).map(str::to_owned).collect();
            let op = match (expression["operator"].as_str().unwrap_or_default(), values.is_empty()) {
                ("In", false) => LabelOp::In(values),
                ("NotIn", false) => LabelOp::NotIn(values),
                ("Exists", true) => LabelOp::Exists,
                ("DoesNotExist", true) => LabelOp::DoesNotExist,
                ("In" | "NotIn", _) => return Err("for 'in', 'notin' operators, values set can't be empty".into()),
                ("Exists" | "DoesNotExist", _) => {
                    return Err("values set must be empty for exists and does not exist".into());
                }
                (other, _) => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            requirements.push((expression["key"].as_str().unwrap_or_default().to_owned(), op));
        }
        for (key, op) in &requirements {
            let values = match op {
                LabelOp::In(values) | LabelOp::NotIn(values) => values.as_slice(),
                _ => &[],
            };
            let of_values = values.iter().flat_map(|value| names::label_value_problems(value));
            if let Some(problem) = names::qualified_name_problems(key).into_iter().chain(of_values).next() {
                return Err(problem);
            }
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
    /// What no object has.
    Nothing,
}

impl Field {
    fn find(def: &ResourceDef, field: &str) -> Option<Self> {
        match (field, def.group, def.plural) {
            ("metadata.name", ..) => Some(Self::Name),
            ("metadata.namespace", ..) => knows_namespace(def).then_some(Self::Namespace),
            // The name of the field before there were nodes, and one that upstream takes but fills in for no pod.
            ("spec.host", "", "pods") => Self::find(def, "spec.nodeName"),
            ("status.podIPs", "", "pods") => Some(Self::Nothing),
            _ => def.selectable_fields.iter().position(|f| *f == field).map(Self::Other),
        }
    }
}

/// Whether the namespace may be asked for. Kinds without one may be asked, too, unless they say what else they know.
fn knows_namespace(def: &ResourceDef) -> bool {
    let says = def.custom || !def.selectable_fields.is_empty();
    def.scope == Scope::Namespaced || !says
}

/// What is said of a field that a row does not offer.
fn unknown_field(def: &ResourceDef, field: &str) -> String {
    match (def.group, def.plural) {
        _ if def.custom => format!("field label not supported: {field}"),
        ("batch", "jobs") => format!("field label {field:?} not supported for batchv1.Job"),
        ("resource.k8s.io", "resourceslices") => {
            format!("field label not supported for {}, Kind={}: {field}", def.api_version(), def.kind)
        }
        _ if def.selectable_fields.is_empty() => {
            format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
        }
        _ => format!("field label not supported: {field}"),
    }
}

impl FieldSelector {
    /// Parses the form of `fieldSelector=` for a row; fields that the row does not offer are an error.
    pub fn parse(def: &ResourceDef, text: &str) -> Result<Self, String> {
        let mut terms = Vec::new();
        for term in terms_of(text).into_iter().filter(|t| !t.is_empty()) {
            let Some((field, value, equal)) = operator_of(term) else {
                return Err(format!("invalid selector: '{text}'; can't understand '{term}'"));
            };
            let value = unescape(value)?;
            let field = Field::find(def, field).ok_or_else(|| unknown_field(def, field))?;
            terms.push((field, value, equal));
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
                Field::Nothing => "",
            };
            (actual == value) == *equal
        })
    }

    /// The first of the row's own fields (its place among the selectable ones) of which one value is asked for.
    pub fn field(&self) -> Option<(usize, &str)> {
        self.0.iter().find_map(|(field, value, equal)| match field {
            Field::Other(index) if *equal => Some((*index, value.as_str())),
            _ => None,
        })
    }

    /// The name that the selector asks for, if it asks for exactly one.
    pub fn name(&self) -> Option<&str> {
        self.0.iter().find(|(field, _, equal)| *field == Field::Name && *equal).map(|(_, value, _)| value.as_str())
    }
}

/// The terms of a selector: a comma that is escaped separates none.
fn terms_of(text: &str) -> Vec<&str> {
    let (mut out, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                out.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

/// Field, value and whether they are to be equal: the first operator counts.
fn operator_of(term: &str) -> Option<(&str, &str, bool)> {
    term.char_indices().find_map(|(at, _)| {
        let rest = &term[at..];
        [("!=", false), ("==", true), ("=", true)]
            .into_iter()
            .find_map(|(operator, equal)| rest.strip_prefix(operator).map(|value| (&term[..at], value, equal)))
    })
}

/// A value without its escapes; only what has a meaning in selectors is escaped, and must be.
fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next @ ('\\' | ',' | '=')) => out.push(next),
                Some(next) => return Err(format!("invalid field selector: invalid escape sequence: \\{next}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".into()),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {c}")),
            c => out.push(c),
        }
    }
    Ok(out)
}

/// Values of a row's selectable fields in an object, as text; absent ones are "" (booleans: "false").
pub fn fields_of(def: &ResourceDef, object: &Value) -> Vec<String> {
    def.selectable_fields
        .iter()
        .map(|path| {
            let value = path.split('.').try_fold(object, |at, key| at.get(key));
            match value {
                // An event's source is who reported it.
                _ if *path == "source" => {
                    let old = object["source"]["component"].as_str().filter(|c| !c.is_empty());
                    old.or(object["reportingComponent"].as_str()).unwrap_or_default().to_owned()
                }
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

    #[test]
    fn selectors_of_objects() {
        let expression = |operator: &str, values: &[&str]| serde_json::json!({"matchExpressions": [{"key": "a", "operator": operator, "values": values}]});
        for (object, good) in [
            (serde_json::json!({"matchLabels": {"a": "b"}}), true),
            (serde_json::json!({"matchLabels": {"a b": "b"}}), false),
            (serde_json::json!({"matchLabels": {"a": "b c"}}), false),
            (expression("In", &["b"]), true),
            (expression("In", &[]), false),
            (expression("NotIn", &["b c"]), false),
            (expression("Exists", &[]), true),
            (expression("Exists", &["b"]), false),
            (expression("Is", &["b"]), false),
        ] {
            assert_eq!(LabelSelector::from_object(&object).is_ok(), good, "{object}");
        }
    }

    #[test]
    fn field_selectors() {
        let def = crate::resources::find("", "v1", "pods").unwrap();
        for (text, expected) in [
            ("metadata.name=a\\,b", Ok("a,b")),
            ("metadata.name==a", Ok("a")),
            ("metadata.name=a\\=b", Ok("a=b")),
            ("metadata.name=a=b", Err("invalid field selector: unescaped character in value: =")),
            ("metadata.name=\\x", Err("invalid field selector: invalid escape sequence: \\x")),
            ("metadata.name", Err("invalid selector: 'metadata.name'; can't understand 'metadata.name'")),
            ("bogus=1", Err("field label not supported: bogus")),
        ] {
            let parsed = FieldSelector::parse(def, text);
            match expected {
                Ok(name) => assert_eq!(parsed.unwrap().name(), Some(name), "{text}"),
                Err(why) => assert_eq!(parsed.unwrap_err(), why, "{text}"),
            }
        }
    }

    #[test]
    fn kinds_say_which_fields_they_know() {
        let custom =
            |scope| ResourceDef { custom: true, scope, ..*crate::resources::find("", "v1", "configmaps").unwrap() };
        let of = |group, plural| *crate::resources::find(group, "v1", plural).unwrap();
        let unknown = |field: &str| Some(format!("field label not supported: {field}"));
        for (def, field, expected) in [
            (of("", "pods"), "spec.host", None),
            (of("", "pods"), "status.podIPs", None),
            (of("", "pods"), "status.hostIP", unknown("status.hostIP")),
            (of("", "nodes"), "metadata.namespace", unknown("metadata.namespace")),
            (of("", "namespaces"), "metadata.namespace", unknown("metadata.namespace")),
            (of("", "persistentvolumes"), "metadata.namespace", None),
            (
                of("", "configmaps"),
                "spec.host",
                Some(
                    "\"spec.host\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                        .into(),
                ),
            ),
            (of("batch", "jobs"), "spec.x", Some("field label \"spec.x\" not supported for batchv1.Job".into())),
            (
                of("resource.k8s.io", "resourceslices"),
                "spec.pool.name",
                Some("field label not supported for resource.k8s.io/v1, Kind=ResourceSlice: spec.pool.name".into()),
            ),
            (custom(Scope::Cluster), "metadata.namespace", unknown("metadata.namespace")),
            (custom(Scope::Namespaced), "metadata.namespace", None),
            (custom(Scope::Namespaced), "spec.x", unknown("spec.x")),
        ] {
            let told = FieldSelector::parse(&def, &format!("{field}=x")).err();
            assert_eq!(told, expected, "{} {field}", def.plural);
        }
        let pods = of("", "pods");
        let head =
            Head { fields: fields_of(&pods, &serde_json::json!({"spec": {"nodeName": "n"}})), ..Head::default() };
        for (text, chosen) in [("spec.host=n", true), ("spec.host=m", false), ("status.podIPs!=x", true)] {
            assert_eq!(FieldSelector::parse(&pods, text).unwrap().matches(&head), chosen, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text: String) {
            let _ = LabelSelector::parse(&text);
        }
    }
}
