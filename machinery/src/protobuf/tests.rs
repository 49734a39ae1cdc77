//! What goes in comes out, and what never was an object does no harm.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::wire::put_bytes;
use super::*;
use crate::resources::{RESOURCES, find};
use crate::stored;

const POD: (&str, &str) = ("v1", "Pod");

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "d", "labels": {"a": "b", "c": ""}, "generation": 1,
            "creationTimestamp": "2026-01-02T03:04:05Z", "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n",
            "uid": "u", "controller": false}], "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}]},
        "spec": {"priority": 0, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false, "securityContext": {},
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "h", "hostPath": {"path": "/", "type": ""}},
                {"name": "c", "configMap": {"name": "c", "items": [{"key": "k", "path": "p", "mode": 0}]}}],
            "containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"port": "http", "path": "/"}, "periodSeconds": 10},
                "readinessProbe": {"tcpSocket": {"port": -1}},
                "env": [{"name": "E", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k", "optional": false}}}]}]},
        "status": {"startTime": "1969-12-31T23:59:59Z"}})
}

#[test]
fn zeros_that_say_something_come_back() {
    let pod = pod();
    assert_eq!(decode(&encode(&pod).unwrap(), ("", "")).unwrap(), pod);
}

#[test]
fn zeros_that_say_nothing_are_left_out() {
    // As a Go client sends it: every field that is no pointer is on the wire.
    let sent = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "generateName": "", "namespace": "", "generation": 0},
        "spec": {"hostNetwork": false, "nodeName": "", "containers": [{"name": "", "image": "", "tty": false,
            "ports": [{"containerPort": 0, "hostPort": 0}], "resources": {}}]}, "status": {}});
    let read = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "", "ports": [{"containerPort": 0}], "resources": {}}]}, "status": {}});
    assert_eq!(decode(&encode(&sent).unwrap(), ("", "")).unwrap(), read);
}

#[test]
fn a_stored_object_is_encoded_with_its_revision() {
    let mut object = pod();
    let value = stored::encode(find("", "v1", "pods").unwrap(), &object).unwrap();
    let stored = Stored::parse(&value).unwrap();
    object["metadata"]["resourceVersion"] = "77".into();
    assert_eq!(encode_stored("v1", "Pod", &stored, 77).unwrap(), encode(&object).unwrap());
    let mut list = List::new("v1", "Pod").unwrap();
    list.push_stored(&stored, 77).unwrap();
    let metadata = json!({"resourceVersion": "99", "continue": "x"});
    let whole = json!({"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": [object]});
    assert_eq!(list.finish(&metadata).unwrap(), encode(&whole).unwrap());
}

#[test]
fn kinds_of_the_machinery_are_known() {
    for (api_version, kind) in [
        ("v1", "DeleteOptions"),
        ("apps/v1", "DeleteOptions"),
        ("v1", "Status"),
        ("meta.k8s.io/v1", "PartialObjectMetadata"),
        ("autoscaling/v1", "Scale"),
        ("policy/v1", "Eviction"),
        ("authentication.k8s.io/v1", "TokenRequest"),
        ("v1", "APIResourceList"),
    ] {
        assert!(is_known(api_version, kind), "{api_version} {kind}");
    }
    assert!(!is_known("example.com/v1", "Thing"));
    let partial = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "x"}});
    assert_eq!(decode(&encode(&partial).unwrap(), ("", "")).unwrap(), partial);
    assert_eq!(encode(&json!({"apiVersion": "example.com/v1", "kind": "Thing"})), Err(Error::UnknownKind));
}

#[test]
fn json_schemas_have_their_unions() {
    let schema = json!({"type": "object", "additionalProperties": false, "properties": {
        "a": {"type": "array", "items": {"type": "integer", "minimum": 0.5, "x-kubernetes-int-or-string": true}, "default": [1, null]},
        "b": {"additionalProperties": {"type": "string"}, "enum": ["x", 2, {"y": []}], "x-kubernetes-preserve-unknown-fields": false},
        "c": {"additionalItems": true, "items": {"$ref": ""}}}});
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "x"},
        "spec": {"group": "g", "names": {"kind": "K", "plural": "ks"}, "scope": "Cluster", "versions": [{"name": "v1", "served": true,
        "storage": false, "schema": {"openAPIV3Schema": schema}, "subresources": {"status": {}}}]}});
    assert_eq!(decode(&encode(&crd).unwrap(), ("", "")).unwrap(), crd);
}

/// JSON schemas in one another, as messages.
fn nested(levels: usize) -> Vec<u8> {
    let mut inner = Vec::new();
    for _ in 0..levels {
        // `not`
        let mut outer = Vec::new();
        put_bytes(&mut outer, 28, &inner);
        inner = outer;
    }
    // openAPIV3Schema of a validation, schema of a version, versions of the spec, the spec.
    for number in [1, 4, 7, 2] {
        let mut outer = Vec::new();
        put_bytes(&mut outer, number, &inner);
        inner = outer;
    }
    inner
}

#[test]
fn depth_and_size_are_limited() {
    let body = |raw: &[u8], kind: &str, api_version: &str| envelope(api_version, kind, raw);
    let crd = |levels| body(&nested(levels), "CustomResourceDefinition", "apiextensions.k8s.io/v1");
    assert!(super::decode(&crd(50), POD).is_ok());
    let refused = |body: &[u8]| match super::decode(body, POD) {
        Err(Error::Of { why, .. }) => Some(*why),
        _ => None,
    };
    assert_eq!(refused(&crd(4000)), Some(Error::TooDeep));
    // Containers without content: two bytes each.
    let mut spec = Vec::new();
    put_bytes(&mut spec, 2, &[0x12, 0].repeat(super::decode::MAX_VALUES + 1));
    assert_eq!(refused(&body(&spec, "Pod", "v1")), Some(Error::TooLarge));
}

#[test]
fn bodies_without_kind_are_of_the_expected_one() {
    let body = [&MAGIC[..], &[0x12, 0]].concat();
    assert_eq!(decode(&body, POD).unwrap(), json!({"apiVersion": "v1", "kind": "Pod"}));
    assert_eq!(decode(b"{}", POD), Err(Error::NoMagic));
    assert_eq!(decode(b"k8s\0\xff", POD), Err(Error::UnexpectedEnd));
}

proptest! {
    /// Any bytes as the message of any kind are read or refused.
    #[test]
    fn any_bytes_are_read_or_refused(row in 0..RESOURCES.len(), raw in prop::collection::vec(any::<u8>(), 0..400)) {
        let row = &RESOURCES[row];
        if let Ok(object) = decode(&envelope(&row.api_version(), row.kind, &raw), POD) {
            // What was read can be written, and reads as the same.
            let again = encode(&object).unwrap();
            prop_assert_eq!(decode(&again, POD).unwrap(), object);
        }
    }

    /// A body with some bytes changed or cut is read or refused.
    #[test]
    fn damaged_bodies_are_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut in any::<prop::sample::Index>(), cuts in any::<bool>()
    ) {
        let mut body = encode(&pod()).unwrap();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if cuts {
            body.truncate(cut.index(body.len()));
        }
        if let Ok(object) = decode(&body, POD)
            && let Ok(again) = encode(&object)
        {
            prop_assert_eq!(decode(&again, POD).unwrap(), object);
        }
    }
}
