//! Patches and ownership against simple models, over many cases that are made at random but always the same.

use std::collections::{BTreeMap, BTreeSet};

use keelson_machinery::fields::{ApplyError, FieldSet, Kind, Managed, Node, Writer};
use keelson_machinery::{operations, schema};
use serde_json::{Value, json};

/// Numbers that look random (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end).unwrap()).unwrap()
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 3 } else { 6 }) {
            0 => json!(self.below(5)),
            1 => json!(["x", "a/b", "~", ""][self.below(4)]),
            2 => json!(self.below(2) == 0),
            3 => (0..self.below(4)).map(|_| self.value(depth - 1)).collect::<Vec<_>>().into(),
            _ => self.object(depth - 1),
        }
    }

    fn object(&mut self, depth: usize) -> Value {
        let keys = ["a", "b", "c", "a/b", "m~n", ""];
        let count = self.below(4);
        let fields = (0..count).map(|_| (keys[self.below(keys.len())].to_owned(), self.value(depth)));
        Value::Object(fields.collect())
    }
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// A JSON patch from one document to another.
fn operations_between(from: &Value, to: &Value, at: &str, out: &mut Vec<Value>) {
    match (from, to) {
        _ if from == to => {}
        (Value::Object(from), Value::Object(to)) => {
            for (key, value) in from {
                let at = format!("{at}/{}", escaped(key));
                match to.get(key) {
                    Some(wanted) => operations_between(value, wanted, &at, out),
                    None => out.push(json!({"op": "remove", "path": at})),
                }
            }
            for (key, value) in to.iter().filter(|(key, _)| !from.contains_key(*key)) {
                out.push(json!({"op": "add", "path": format!("{at}/{}", escaped(key)), "value": value}));
            }
        }
        (Value::Array(from), Value::Array(to)) => {
            for index in 0..from.len().min(to.len()) {
                operations_between(&from[index], &to[index], &format!("{at}/{index}"), out);
            }
            for index in (to.len()..from.len()).rev() {
                out.push(json!({"op": "remove", "path": format!("{at}/{index}")}));
            }
            for value in to.iter().skip(from.len()) {
                out.push(json!({"op": "add", "path": format!("{at}/-"), "value": value}));
            }
        }
        _ => out.push(json!({"op": "replace", "path": at, "value": to})),
    }
}

/// A merge patch from one document to another.
fn merge_between(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else { return to.clone() };
    let gone = from.keys().filter(|key| !to.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = to.iter().filter(|(key, value)| from.get(*key) != Some(*value));
    let changed = changed.map(|(key, value)| {
        (key.clone(), merge_between(from.get(key).filter(|v| v.is_object()).unwrap_or(&Value::Null), value))
    });
    Value::Object(gone.chain(changed).collect())
}

#[test]
fn patches_lead_from_any_document_to_any_other() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..3000 {
        let (from, to) = (random.object(3), random.object(3));
        let mut steps = Vec::new();
        operations_between(&from, &to, "", &mut steps);
        let mut document = from.clone();
        assert_eq!(operations::apply(&mut document, &steps.clone().into()), Ok(()), "{from} {steps:?}");
        assert_eq!(document, to, "{from} {steps:?}");
        let patch = merge_between(&from, &to);
        let mut document = from.clone();
        operations::merge(&mut document, &patch);
        assert_eq!(document, to, "{from} {patch}");
        operations::merge(&mut document, &patch);
        assert_eq!(document, to, "again {from} {patch}");
    }
}

#[test]
fn what_is_moved_or_copied_is_found_there() {
    let mut random = Random(7);
    for _ in 0..2000 {
        let mut document = random.object(3);
        let Some((key, value)) =
            document.as_object().and_then(|o| o.iter().next()).map(|(k, v)| (k.clone(), v.clone()))
        else {
            continue;
        };
        let from = format!("/{}", escaped(&key));
        let copy =
            json!([{"op": "copy", "from": from, "path": "/new"}, {"op": "test", "path": "/new", "value": value}]);
        assert_eq!(operations::apply(&mut document, &copy), Ok(()), "{document} {copy}");
        let back = json!([
            {"op": "move", "from": "/new", "path": "/other"},
            {"op": "test", "path": "/other", "value": value},
            {"op": "remove", "path": "/new"},
        ]);
        assert_eq!(operations::apply(&mut document, &back), Err(operations::Unfit), "{document}");
        assert_eq!(document.get("new"), None);
        assert_eq!(document.get("other"), Some(&value));
    }
}

/// The simple model of ownership: what each manager owns, and what each field holds.
#[derive(Clone, Default)]
struct Model {
    live: BTreeMap<String, String>,
    owners: BTreeMap<String, BTreeSet<String>>,
}

impl Model {
    /// Fields that others own with another value.
    fn conflicts(&self, manager: &str, config: &BTreeMap<String, String>) -> BTreeSet<(String, String)> {
        let mut out = BTreeSet::new();
        for (other, fields) in self.owners.iter().filter(|(other, _)| *other != manager) {
            let lost =
                config.iter().filter(|(key, value)| fields.contains(*key) && self.live.get(*key) != Some(*value));
            out.extend(lost.map(|(key, _)| (other.clone(), key.clone())));
        }
        out
    }

    fn apply(&mut self, manager: &str, config: &BTreeMap<String, String>) {
        for (other, field) in self.conflicts(manager, config) {
            self.owners.entry(other).or_default().remove(&field);
        }
        let before = self.owners.insert(manager.to_owned(), config.keys().cloned().collect()).unwrap_or_default();
        for field in before {
            if !self.owners.values().any(|fields| fields.contains(&field)) {
                self.live.remove(&field);
            }
        }
        self.live.extend(config.clone());
    }

    fn update(&mut self, manager: &str, new: BTreeMap<String, String>) {
        let changed: BTreeSet<String> =
            new.iter().filter(|(key, value)| self.live.get(*key) != Some(*value)).map(|(key, _)| key.clone()).collect();
        for fields in self.owners.values_mut() {
            fields.retain(|field| !changed.contains(field) && new.contains_key(field));
        }
        self.owners.entry(manager.to_owned()).or_default().extend(changed);
        self.live = new;
    }
}

fn config_map() -> Node<'static> {
    Node::Object(schema::of_kind("", "v1", "ConfigMap").unwrap())
}

fn same<'a>(_: &str, object: &Value) -> Option<(Node<'a>, Value)> {
    schema::of_kind("", "v1", "ConfigMap").map(|definition| (Node::Object(definition), object.clone()))
}

/// Fields as an object: `d…` of the data, `f…` of the finalizers, which are a set.
fn object(fields: &BTreeMap<String, String>) -> Value {
    let mut out = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "n"}});
    for (key, value) in fields {
        if key.starts_with('d') {
            out["data"][key] = value.as_str().into();
        } else if let Some(list) = out["metadata"]["finalizers"].as_array_mut() {
            list.push(key.as_str().into());
        } else {
            out["metadata"]["finalizers"] = json!([key]);
        }
    }
    out
}

fn fields(object: &Value) -> BTreeMap<String, String> {
    let data = object["data"].as_object().into_iter().flatten();
    let list = object["metadata"]["finalizers"].as_array().into_iter().flatten();
    data.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
        .chain(list.map(|name| (name.as_str().unwrap().to_owned(), String::new())))
        .collect()
}

/// Who owns which of the fields, as `metadata.managedFields` says.
fn owners(managed: &Managed) -> BTreeMap<String, BTreeSet<String>> {
    let mut out = BTreeMap::new();
    for entry in managed.encode().unwrap_or_default().as_array().into_iter().flatten() {
        let name = format!("{} {}", entry["manager"].as_str().unwrap(), entry["operation"].as_str().unwrap());
        let data = entry["fieldsV1"]["f:data"].as_object().into_iter().flatten();
        let set = entry["fieldsV1"]["f:metadata"]["f:finalizers"].as_object().into_iter().flatten();
        let names = data.filter_map(|(key, _)| key.strip_prefix("f:").map(str::to_owned));
        let items = set.filter_map(|(key, _)| key.strip_prefix("v:").map(|v| v.trim_matches('"').to_owned()));
        let owned: BTreeSet<String> = names.chain(items).collect();
        if !owned.is_empty() {
            out.insert(name, owned);
        }
    }
    out
}

fn some_fields(random: &mut Random) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for key in ["d1", "d2", "d3", "f/1", "f/2"] {
        if random.below(3) == 0 {
            let value = if key.starts_with('d') { random.below(3).to_string() } else { String::new() };
            out.insert(key.to_owned(), value);
        }
    }
    out
}

/// One random write of one of three managers, to the server's way and to the model.
fn step(random: &mut Random, managed: &mut Managed, live: &mut Value, model: &mut Model, at: usize) {
    let manager = ["one", "two", "three"][random.below(3)];
    let ignored = FieldSet::default();
    let kind = Kind { node: config_map(), convert: &same, ignored: &ignored };
    let now = format!("2026-01-01T00:{:02}:{:02}Z", at / 60, at % 60);
    let writer = Writer { manager, api_version: "v1", subresource: "", now: &now };
    let given = some_fields(random);
    if random.below(4) == 0 {
        let new = object(&given);
        managed.update(&kind, &writer, live, &new);
        *live = new;
        model.update(&format!("{manager} Update"), given);
        return;
    }
    let (name, force) = (format!("{manager} Apply"), random.below(2) == 0);
    let expected = model.conflicts(&name, &given);
    let mut tried = managed.clone();
    match tried.apply(&kind, &writer, live, &object(&given), force) {
        Err(ApplyError::Conflicts(list)) => {
            assert!(!force);
            assert_eq!(list.len(), expected.len(), "{list:?} {expected:?}");
        }
        Err(ApplyError::Merge(why)) => panic!("{why}"),
        Ok(new) => {
            assert!(force || expected.is_empty(), "{given:?} {expected:?}");
            *live = new.unwrap_or_else(|| live.clone());
            *managed = tried;
            model.apply(&name, &given);
        }
    }
}

#[test]
fn appliers_and_updaters_own_what_the_model_says() {
    let mut random = Random(42);
    for _ in 0..400 {
        let (mut managed, mut live, mut model) = (Managed::default(), object(&BTreeMap::new()), Model::default());
        for at in 0..12 {
            step(&mut random, &mut managed, &mut live, &mut model, at);
            assert_eq!(fields(&live), model.live);
            model.owners.retain(|_, fields| !fields.is_empty());
            assert_eq!(owners(&managed), model.owners, "{live}");
            let encoded = managed.encode();
            assert_eq!(Managed::decode(encoded.as_ref()).unwrap().encode(), encoded);
        }
    }
}
