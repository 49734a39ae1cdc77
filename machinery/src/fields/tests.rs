//! Tests of merging, comparing and ownership.

use serde_json::{Value, json};

use super::managers::Kind;
use super::*;
use crate::schema;

fn deployment() -> Node<'static> {
    Node::Object(schema::of_kind("apps", "v1", "Deployment").unwrap())
}

fn same_version<'a>(_: &str, object: &Value) -> Option<(Node<'a>, Value)> {
    schema::of_kind("apps", "v1", "Deployment").map(|d| (Node::Object(d), object.clone()))
}

fn applied(
    managed: &mut Managed,
    live: &Value,
    manager: &str,
    config: Value,
    force: bool,
) -> Result<Value, Vec<String>> {
    let ignored = FieldSet::of(&[&["status"]]);
    let kind = Kind { node: deployment(), convert: &same_version, ignored: &ignored };
    let writer = Writer { manager, api_version: "apps/v1", subresource: "", now: "2026-01-01T00:00:00Z" };
    match managed.apply(&kind, &writer, live, &config, force) {
        Ok(new) => Ok(new.unwrap_or_else(|| live.clone())),
        Err(ApplyError::Conflicts(list)) => {
            Err(list.into_iter().map(|c| format!("{} {}", c.manager, c.path)).collect())
        }
        Err(ApplyError::Merge(why)) => Err(vec![why]),
    }
}

fn containers(list: Value) -> Value {
    json!({"spec": {"template": {"spec": {"containers": list}}}})
}

#[test]
fn sets_read_and_write_fields_v1() {
    for text in [
        json!({"f:data": {".": {}, "f:a": {}}}),
        json!({"f:spec": {"f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}}}}}),
        json!({"f:finalizers": {"v:\"x\"": {}}, "f:l": {"i:3": {}}}),
    ] {
        assert_eq!(FieldSet::from_v1(&text).unwrap().to_v1(), text);
    }
    for bad in [json!([]), json!({"data": {}}), json!({"k:{": {}}), json!({"f:a": 1})] {
        assert!(FieldSet::from_v1(&bad).is_err(), "{bad}");
    }
}

#[test]
fn appliers_own_what_they_send_and_others_conflict() {
    let mut managed = Managed::default();
    let first = containers(json!([{"name": "a", "image": "1", "ports": [{"containerPort": 80}]}]));
    let live = applied(&mut managed, &json!({}), "one", first, false).unwrap();
    let other = containers(json!([{"name": "a", "image": "2"}]));
    assert_eq!(
        applied(&mut managed.clone(), &live, "two", other.clone(), false).unwrap_err(),
        [r#""one" .spec.template.spec.containers[name="a"].image"#]
    );
    let live = applied(&mut managed, &live, "two", other, true).unwrap();
    assert_eq!(live.pointer("/spec/template/spec/containers/0/image"), Some(&json!("2")));
    let entries = managed.encode().unwrap();
    assert_eq!(entries.as_array().unwrap().len(), 2);
    assert_eq!(
        entries[0]["fieldsV1"].pointer("/f:spec/f:template/f:spec/f:containers/k:{\"name\":\"a\"}/f:image"),
        None,
        "the first lost the image"
    );
    // A port without a protocol is keyed by TCP.
    let ports = "/f:spec/f:template/f:spec/f:containers/k:{\"name\":\"a\"}/f:ports";
    let key = "k:{\"containerPort\":80,\"protocol\":\"TCP\"}";
    assert!(entries[0]["fieldsV1"].pointer(ports).is_some_and(|p| p.get(key).is_some()));
}

#[test]
fn what_an_applier_leaves_out_goes_unless_another_owns_it() {
    let mut managed = Managed::default();
    let both = containers(
        json!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}]),
    );
    let live = applied(&mut managed, &json!({}), "one", both, false).unwrap();
    let shared = containers(json!([{"name": "a", "env": [{"name": "X", "value": "1"}]}]));
    let live = applied(&mut managed, &live, "two", shared, false).unwrap();
    let less = containers(json!([{"name": "a", "image": "1"}]));
    let live = applied(&mut managed, &live, "one", less, false).unwrap();
    assert_eq!(live.pointer("/spec/template/spec/containers/0/env"), Some(&json!([{"name": "X", "value": "1"}])));
    let none = applied(&mut managed, &live, "two", json!({}), false).unwrap();
    assert_eq!(none.pointer("/spec/template/spec/containers/0"), Some(&json!({"name": "a", "image": "1"})));
    assert_eq!(managed.encode().unwrap().as_array().unwrap().len(), 1);
}

#[test]
fn merged_lists_keep_the_appliers_order() {
    let items = |names: &[&str]| containers(names.iter().map(|n| json!({"name": n})).collect());
    for (live, config, expected) in [
        (vec!["a", "b", "c"], vec!["c", "a"], vec!["b", "c", "a"]),
        (vec!["a", "b"], vec!["x", "b"], vec!["a", "x", "b"]),
        (vec![], vec!["b", "a"], vec!["b", "a"]),
        (vec!["a", "b"], vec![], vec!["a", "b"]),
    ] {
        let merged = merge(deployment(), Some(&items(&live)), Some(&items(&config))).unwrap().unwrap();
        let names: Vec<&str> = merged["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|c| c["name"].as_str())
            .collect();
        assert_eq!(names, expected, "{live:?} {config:?}");
    }
}

#[test]
fn updates_take_changed_fields_from_appliers() {
    let mut managed = Managed::default();
    let live =
        applied(&mut managed, &json!({}), "one", json!({"spec": {"replicas": 1, "paused": true}}), false).unwrap();
    let ignored = FieldSet::of(&[&["status"]]);
    let kind = Kind { node: deployment(), convert: &same_version, ignored: &ignored };
    let writer = Writer { manager: "hand", api_version: "apps/v1", subresource: "", now: "2026-01-02T00:00:00Z" };
    let new = json!({"spec": {"replicas": 2, "paused": true}, "status": {"replicas": 9}});
    managed.update(&kind, &writer, &live, &new);
    let sets: Vec<Value> =
        managed.encode().unwrap().as_array().unwrap().iter().map(|e| e["fieldsV1"].clone()).collect();
    assert_eq!(sets, [json!({"f:spec": {"f:paused": {}}}), json!({"f:spec": {"f:replicas": {}}})]);
    for round in 0..20 {
        let name = format!("m{round}");
        let writer = Writer { manager: &name, api_version: "apps/v1", subresource: "", now: "2026-01-03T00:00:00Z" };
        let labelled = json!({"metadata": {"labels": {(name.clone()): "x"}}});
        managed.update(&kind, &writer, &json!({"metadata": {"labels": {}}}), &labelled);
    }
    let entries = managed.encode().unwrap();
    let updates = entries.as_array().unwrap().iter().filter(|e| e["operation"] == "Update").count();
    assert_eq!(updates, 10);
    assert!(entries.as_array().unwrap().iter().any(|e| e["manager"] == "ancient-changes"));
}

#[test]
fn values_that_do_not_fit_are_told_by_path() {
    for (object, expected) in [
        (json!({"bogus": 1}), ".bogus: field not declared in schema"),
        (
            json!({"metadata": {"bogus": 1}, "spec": {"bogus": 1, "replicas": "x"}}),
            "errors:\n  .metadata.bogus: field not declared in schema\n  .spec.bogus: field not declared in schema",
        ),
        (json!({"metadata": {"labels": ["x"]}}), ".metadata.labels: expected map, got &{[x]}"),
        (
            json!({"metadata": {"name": ["x"]}}),
            ".metadata.name: expected string, got &value.valueUnstructured{Value:[]interface {}{\"x\"}}",
        ),
        (json!({"spec": {"replicas": "x"}}), ".spec.replicas: expected numeric (int or float), got string"),
        (
            containers(json!([{"name": "a"}, {"name": "a"}])),
            ".spec.template.spec.containers: duplicate entries for key [name=\"a\"]",
        ),
    ] {
        assert_eq!(validate(deployment(), &object).unwrap_err(), expected);
    }
    let broken = json!([{"manager": "x", "operation": "Guess", "apiVersion": "v1"}]);
    assert!(Managed::decode(Some(&broken)).is_err());
}

/// Each update once as it is done in short, where it can be, and once at length.
#[test]
fn renewed_managers_are_what_an_update_makes_of_them() {
    let ignored = FieldSet::of(&[&["status"]]);
    let kind = Kind { node: deployment(), convert: &same_version, ignored: &ignored };
    let entry = |manager: &str, operation: &str, time: &str, fields: Value| {
        json!({"manager": manager, "operation": operation, "apiVersion": "apps/v1", "time": time,
            "fieldsType": "FieldsV1", "fieldsV1": fields})
    };
    let (replicas, paused) = (json!({"f:spec": {"f:replicas": {}}}), json!({"f:spec": {"f:paused": {}}}));
    let both = json!({"f:spec": {"f:paused": {}, "f:replicas": {}}});
    let labels = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}});
    let mine = || entry("me", "Update", "1", both.clone());
    let scaled = |n: i64| json!({"spec": {"replicas": n, "paused": true}});
    let old_version = {
        let mut entry = mine();
        entry["apiVersion"] = "apps/v1beta1".into();
        entry
    };
    for (case, list, old, new, short) in [
        ("another value", vec![mine()], scaled(1), scaled(2), true),
        ("beside others", vec![entry("you", "Update", "0", labels.clone()), mine()], scaled(1), scaled(2), true),
        (
            "it moves behind later ones",
            vec![mine(), entry("you", "Update", "5", labels.clone())],
            scaled(1),
            scaled(2),
            true,
        ),
        ("beside an applier", vec![entry("me", "Apply", "9", labels.clone()), mine()], scaled(1), scaled(2), true),
        ("a field that comes and was owned", vec![mine()], json!({"spec": {"paused": true}}), scaled(2), true),
        ("nothing", vec![mine()], scaled(1), scaled(1), false),
        (
            "only what nobody owns",
            vec![mine()],
            json!({"metadata": {"generation": 1}}),
            json!({"metadata": {"generation": 2}}),
            false,
        ),
        ("a field that goes", vec![mine()], scaled(1), json!({"spec": {"replicas": 1}}), false),
        (
            "a field of another's",
            vec![entry("me", "Update", "1", paused.clone()), entry("you", "Update", "1", replicas.clone())],
            scaled(1),
            scaled(2),
            false,
        ),
        ("a field of two", vec![mine(), entry("you", "Apply", "1", replicas.clone())], scaled(1), scaled(2), false),
        ("a field of nobody's", vec![entry("me", "Update", "1", paused.clone())], scaled(1), scaled(2), false),
        ("a new writer", vec![entry("you", "Update", "1", paused)], scaled(1), scaled(2), false),
        ("an applier that updates", vec![entry("me", "Apply", "1", both.clone())], scaled(1), scaled(2), false),
        ("an earlier version", vec![old_version], scaled(1), scaled(2), false),
        (
            "what the request cannot change",
            vec![mine()],
            json!({"status": {"replicas": 1}}),
            json!({"status": {"replicas": 2}}),
            false,
        ),
    ] {
        let list = Value::Array(list);
        let writer = Writer { manager: "me", api_version: "apps/v1", subresource: "", now: "3" };
        let got = renewed(&kind, &list, &writer, &kind.changes(&old, &new));
        assert_eq!(got.is_some(), short, "{case}");
        let mut managed = Managed::decode(Some(&list)).unwrap();
        managed.update(&kind, &writer, &old, &new);
        if let Some(got) = got {
            assert_eq!(Some(got), managed.encode(), "{case}");
        }
    }
}

#[test]
fn kinds_of_steps_that_nobody_knows_are_left_out() {
    let set = FieldSet::from_v1(&json!({"x:data": {"f:y": {}}, "f:data": {"f:a": {}, "z:1": 1}})).unwrap();
    assert_eq!(set.to_v1(), json!({"f:data": {"f:a": {}}}));
}

#[test]
fn sets_of_an_earlier_schema_are_put_right() {
    let item = json!({"type": "object", "properties": {"name": {"type": "string"}, "value": {"type": "string"}}});
    let schema = |list: &str, map: &str| {
        json!({"type": "object", "properties": {
            "list": {"type": "array", "items": item, "x-kubernetes-list-type": list, "x-kubernetes-list-map-keys": ["name"]},
            "map": {"type": "object", "additionalProperties": {"type": "string"}, "x-kubernetes-map-type": map},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }})
    };
    let (apart, whole) = (schema("map", "granular"), schema("atomic", "atomic"));
    let items = json!({".": {}, "k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:value": {}}});
    let leaf = || json!({});
    for (case, schema, set, expected) in [
        ("one value before, merged now", &apart, json!({"f:list": {}, "f:map": {}, "f:free": {}}), None),
        (
            "merged before, one value now",
            &whole,
            json!({"f:list": items, "f:map": {"f:x": {}}}),
            Some(json!({"f:list": leaf(), "f:map": leaf()})),
        ),
        ("as it is merged", &apart, json!({"f:list": items, "f:map": {"f:x": {}}}), None),
        ("as one value", &whole, json!({"f:list": {}, "f:map": {}}), None),
        ("what is not in the schema", &apart, json!({"f:other": {"f:x": {}}}), None),
    ] {
        let node = Node::Custom(schema);
        let got = super::reconcile::reconciled(node, &FieldSet::from_v1(&set).unwrap());
        assert_eq!(got.map(|set| set.to_v1()), expected, "{case}");
        let stale = super::reconcile::is_stale(node, set.as_object().unwrap());
        assert_eq!(stale, expected.is_some(), "{case}");
    }
}

#[test]
fn conflicts_are_told_in_the_order_of_their_managers() {
    let mut managed = Managed::default();
    let ignored = FieldSet::default();
    let kind = Kind { node: deployment(), convert: &same_version, ignored: &ignored };
    let (mut live, now) = (json!({}), "2026-01-01T00:00:00Z");
    for (subresource, field) in [("", "replicas"), ("status", "minReadySeconds")] {
        let writer = Writer { manager: "m", api_version: "apps/v1", subresource, now };
        let mut new = live.clone();
        new["spec"][field] = 1.into();
        managed.update(&kind, &writer, &live, &new);
        live = new;
    }
    live = applied(&mut managed, &live, "m", json!({"spec": {"progressDeadlineSeconds": 1}}), false).unwrap();
    let all = json!({"spec": {"replicas": 2, "minReadySeconds": 2, "progressDeadlineSeconds": 2}});
    assert_eq!(
        applied(&mut managed, &live, "n", all, false).unwrap_err(),
        [
            "\"m\" .spec.progressDeadlineSeconds",
            "\"m\" with subresource \"status\" using apps/v1 .spec.minReadySeconds",
            "\"m\" using apps/v1 .spec.replicas"
        ]
    );
}

fn custom(properties: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}})
}

#[test]
fn what_is_emptied_stays_as_an_empty_value() {
    let schema = custom(json!({
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "maps": {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": {"type": "string"}}},
        "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
    }));
    let node = Node::Custom(&schema);
    let spec = |spec: Value| json!({"kind": "K", "spec": spec});
    for (before, gone, after) in [
        (json!({"map": {"a": "b"}}), json!({"f:map": {"f:a": {}}}), json!({"map": {}})),
        (json!({"map": {"a": "b"}}), json!({"f:map": {}}), json!({})),
        (json!({"maps": {"m": {"a": "b"}}}), json!({"f:maps": {"f:m": {"f:a": {}}}}), json!({"maps": {"m": {}}})),
        (json!({"set": ["x"]}), json!({"f:set": {"v:\"x\"": {}}}), json!({"set": []})),
        (json!({"set": ["x", "y"]}), json!({"f:set": {"v:\"x\"": {}}}), json!({"set": ["y"]})),
    ] {
        let gone = FieldSet::from_v1(&json!({"f:spec": gone})).unwrap();
        assert_eq!(remove(node, &spec(before.clone()), &gone), Some(spec(after)), "{before}");
    }
}

#[test]
fn fields_that_become_of_another_kind_lose_what_was_below_them() {
    let schema = custom(json!({"free": {"x-kubernetes-preserve-unknown-fields": true},
        "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}}));
    let spec = |spec: &Value| json!({ "spec": spec });
    let leaf = |set: &FieldSet| set.to_v1()["f:spec"].clone();
    for (old, new, added, modified, removed) in [
        (
            json!({"free": {"a": 1}}),
            json!({"free": 1}),
            json!(null),
            json!({"f:free": {}}),
            json!({"f:free": {"f:a": {}}}),
        ),
        (
            json!({"free": 1}),
            json!({"free": {"a": 1}}),
            json!({"f:free": {"f:a": {}}}),
            json!({"f:free": {}}),
            json!(null),
        ),
        (json!({"free": [1]}), json!({"free": {}}), json!(null), json!({"f:free": {}}), json!(null)),
        (json!({"free": 1}), json!({"free": "1"}), json!(null), json!({"f:free": {}}), json!(null)),
        (
            json!({"set": ["a", "a"]}),
            json!({"set": ["a"]}),
            json!({"f:set": {"v:\"a\"": {}}}),
            json!(null),
            json!({"f:set": {"v:\"a\"": {}}}),
        ),
    ] {
        let changes = compare(Node::Custom(&schema), &spec(&old), &spec(&new));
        let got = (leaf(&changes.added), leaf(&changes.modified), leaf(&changes.removed));
        assert_eq!(got, (added, modified, removed), "{old} {new}");
    }
}
