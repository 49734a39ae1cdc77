//! Devices: what is asked for, what there is, and what was given.

use serde_json::{Value, json};

use crate::{changed, created, expect};

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end \
                     with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

fn merged(mut object: Value, fields: &Value) -> Value {
    for (key, value) in fields.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    object
}

fn claim(devices: &Value) -> Value {
    let request = json!({"name": "r", "exactly": {"deviceClassName": "c"}});
    json!({"metadata": {"name": "n", "namespace": "d"}, "spec": {"devices": merged(json!({"requests": [request]}), devices)}})
}

#[test]
fn requests() {
    let many: Vec<Value> = (0..33).map(|n| json!({"name": format!("r{n}")})).collect();
    let subs: Vec<Value> = (0..9).map(|n| json!({"name": format!("r{n}"), "deviceClassName": "c"})).collect();
    for (exactly, expected) in [
        (
            json!({"tolerations": [{"operator": "Exists", "value": "x"}]}),
            "value: Invalid value: \"x\": must be empty for operator `Exists`",
        ),
        (
            json!({"tolerations": [{"operator": "Near"}]}),
            "operator: Unsupported value: \"Near\": supported values: \"Equal\", \"Exists\"",
        ),
        (
            json!({"tolerations": [{"operator": "Exists", "effect": "PreferNoSchedule"}]}),
            "effect: Unsupported value: \"PreferNoSchedule\": supported values: \"NoExecute\", \"NoSchedule\", \"None\"",
        ),
    ] {
        let devices =
            json!({"requests": [{"name": "r", "exactly": merged(json!({"deviceClassName": "c"}), &exactly)}]});
        let expected = format!("spec.devices.requests[0].exactly.tolerations[0].{expected}");
        expect(created("resource.k8s.io", "resourceclaims", claim(&devices)), &[&expected], &exactly);
    }
    for (devices, expected) in [
        (json!({"requests": many}), "requests: Too many: 33: must have at most 32 items"),
        (
            json!({"requests": [{"name": "r", "firstAvailable": subs}]}),
            "requests[0].firstAvailable: Too many: 9: must have at most 8 items",
        ),
        (
            json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}, "firstAvailable": [{"name": "s"}]}]}),
            "requests[0]: Invalid value: null: exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
        ),
        (
            json!({"constraints": [{}]}),
            "constraints[0]: Required value: exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple \
             fields are set",
        ),
        (
            json!({"constraints": [{"matchAttribute": "/x"}]}),
            "constraints[0].matchAttribute: Invalid value: \"\": the domain must not be empty",
        ),
        (
            json!({"config": [{"requests": ["r/s"], "opaque": {"driver": "d", "parameters": {}}}]}),
            "config[0].requests[0]: Invalid value: \"r/s\": must be the name of a request in the claim or the name of a request and \
             a subrequest separated by '/'",
        ),
        (
            json!({"config": [{"opaque": {"driver": "d", "parameters": {"a": "x".repeat(11 << 10)}}}]}),
            "config[0].opaque.parameters: Too long: may not be more than 10240 bytes",
        ),
    ] {
        let expected = format!("spec.devices.{expected}");
        expect(created("resource.k8s.io", "resourceclaims", claim(&devices)), &[&expected], &devices);
    }
    let class = json!({"spec": {"extendedResourceName": "cpu"}});
    let expected = ["spec.extendedResourceName: Invalid value: \"cpu\": must be a valid extended resource name"];
    expect(created("resource.k8s.io", "deviceclasses", class), &expected, &Value::Null);
    let nested = (0..7).fold("true".to_owned(), |body, i| format!("[1, 2, 3, 4, 5, 6, 7, 8, 9].all(x{i}, {body})"));
    for (expression, expected) in [
        (nested.as_str(), &["spec.selectors[0].cel.expression: Forbidden: too complex, exceeds cost limit"][..]),
        ("cel.bind(dra, device.attributes['dra.example.com'], dra.name)", &[]),
    ] {
        let class = json!({"spec": {"selectors": [{"cel": {"expression": expression}}]}});
        expect(created("resource.k8s.io", "deviceclasses", class), expected, &Value::Null);
    }
}

fn slice(spec: &Value) -> Value {
    let pool = json!({"name": "p", "generation": 1, "resourceSliceCount": 1});
    json!({"spec": merged(json!({"driver": "d.example", "pool": pool, "allNodes": true}), spec)})
}

#[test]
fn slices() {
    for (spec, expected) in [
        (
            json!({"sharedCounters": [], "devices": []}),
            "spec: Invalid value: \"\": only one of `sharedCounters` or `devices` is allowed",
        ),
        (json!({"sharedCounters": [{"name": "a"}]}), "spec.sharedCounters[0].counters: Required value"),
        (
            json!({"allNodes": null, "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": []}, {"matchExpressions": []}]}}),
            "spec.nodeSelector.nodeSelectorTerms: Invalid value: [{\"MatchExpressions\":[],\"MatchFields\":null},\
             {\"MatchExpressions\":[],\"MatchFields\":null}]: must have exactly one node selector term",
        ),
        (
            json!({"nodeName": ""}),
            "spec.nodeName: Invalid value: \"\": must be either unset or set to a non-empty string",
        ),
        (
            json!({"perDeviceNodeSelection": false}),
            "spec.perDeviceNodeSelection: Invalid value: false: must be either unset or set to true",
        ),
        (json!({"driver": "d".repeat(64)}), "spec.driver: Too long: may not be more than 63 bytes"),
    ] {
        let found = created("resource.k8s.io", "resourceslices", slice(&spec));
        assert!(found.contains(&expected.to_owned()), "{spec}: {found:?}");
    }
    let rich: Vec<Value> =
        (0..65).map(|n| json!({"name": format!("d{n}"), "taints": [{"key": "k", "effect": "None"}]})).collect();
    let expected = ["spec.devices: Too many: 65: must have at most 64 items"];
    expect(created("resource.k8s.io", "resourceslices", slice(&json!({"devices": rich}))), &expected, &Value::Null);
}

#[test]
fn devices() {
    let attributes: Value =
        (0..33).map(|n| (format!("a{n}"), json!({"int": n}))).collect::<serde_json::Map<_, _>>().into();
    for (device, expected) in [
        (json!({"name": ""}), format!(".name: Invalid value: \"\": {LABEL}")),
        (json!({"attributes": attributes}), ": Invalid value: 33: the total number of attributes and capacities must not exceed 32".into()),
        (json!({"attributes": {"a": {}}}), ".attributes[a]: Invalid value: \"\": exactly one value must be specified".into()),
        (
            json!({"attributes": {"a": {"version": "1.0"}}}),
            ".attributes[a].version: Invalid value: \"1.0\": must be a string compatible with semver.org spec 2.0.0".into(),
        ),
        (
            json!({"attributes": {"a": {"version": "1.0.0-01"}}}),
            ".attributes[a].version: Invalid value: \"1.0.0-01\": must be a string compatible with semver.org spec 2.0.0".into(),
        ),
        (json!({"attributes": {"a": {"string": "x".repeat(65)}}}), ".attributes[a].string: Too long: may not be more than 64 bytes".into()),
        (
            json!({"capacity": {"m": {"value": "1", "requestPolicy": {"default": "1"}}}}),
            ".capacity[m].requestPolicy: Forbidden: allowMultipleAllocations must be true".into(),
        ),
        (
            json!({"allowMultipleAllocations": true, "capacity": {"m": {"value": "4", "requestPolicy": {"default": "2",
                "validValues": ["1", "3"]}}}}),
            ".capacity[m].requestPolicy.validValues: Invalid value: \"2\": default value is not valid according to the requestPolicy"
                .into(),
        ),
        (
            json!({"allowMultipleAllocations": true, "capacity": {"m": {"value": "4", "requestPolicy": {"default": "3",
                "validRange": {"min": "1", "max": "3", "step": "2"}}}}}),
            String::new(),
        ),
        (json!({"taints": [{"key": "k"}]}), ".taints[0].effect: Required value".into()),
        (
            json!({"nodeName": "n"}),
            ": Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to \
             true in the ResourceSlice spec"
                .into(),
        ),
        (
            json!({"bindingConditions": ["a"]}),
            ".bindingFailureConditions: Invalid value: null: bindingFailureConditions are required to use bindingConditions".into(),
        ),
        (json!({"consumesCounters": [{"counterSet": "c"}]}), ".consumesCounters[0].counters: Required value".into()),
    ] {
        let spec = json!({"devices": [merged(json!({"name": "d"}), &device)]});
        let expected = format!("spec.devices[0]{expected}");
        let expected: &[&str] = if expected == "spec.devices[0]" { &[] } else { &[&expected] };
        expect(created("resource.k8s.io", "resourceslices", slice(&spec)), expected, &device);
    }
}

#[test]
fn what_was_given() {
    let result = json!({"request": "r", "driver": "d.example", "pool": "p", "device": "d"});
    let given = json!({"allocation": {"devices": {"results": [result]}}});
    for (status, expected) in [
        (
            json!({"reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}]}),
            &["status.reservedFor: Forbidden: may not be specified when `allocated` is not set"][..],
        ),
        (
            merged(
                given.clone(),
                &json!({"reservedFor": [{"resource": "pods", "name": "p", "uid": "u"}, {"uid": "u"}]}),
            ),
            &[
                "status.reservedFor[1].name: Required value",
                "status.reservedFor[1].resource: Required value",
                "status.reservedFor[1]: Duplicate value: \"u\"",
            ],
        ),
        (
            json!({"allocation": {"devices": {"results": [merged(result.clone(), &json!({"request": "s"}))]}}}),
            &[
                "status.allocation.devices.results[0].request: Invalid value: \"s\": must be the name of a request in the claim or \
                 the name of a request and a subrequest separated by '/'",
            ],
        ),
        (
            merged(
                given.clone(),
                &json!({"devices": [{"driver": "d.example", "pool": "p", "device": "e",
                "networkData": {"ips": ["10.0.0.1"]}}]}),
            ),
            &[
                "status.devices[0].networkData.ips[0]: Invalid value: \"10.0.0.1\": must be a valid address in CIDR form, (e.g. \
                 10.9.8.7/24 or 2001:db8::1/64)",
                "status.devices[0]: Invalid value: d.example/p/e: must be an allocated device in the claim",
            ],
        ),
    ] {
        let (old, mut new) = (claim(&Value::Null), claim(&Value::Null));
        new["status"] = status.clone();
        expect(changed("resource.k8s.io", "resourceclaims", "status", new, Some(old)), expected, &status);
    }
    let (mut old, mut new) = (claim(&Value::Null), claim(&Value::Null));
    old["status"] = given;
    new["status"] = json!({"allocation": {}});
    let expected =
        ["status.allocation: Invalid value: {\"Devices\":{\"Results\":null,\"Config\":null},\"NodeSelector\":null,\
                     \"AllocationTimestamp\":null}: field is immutable"];
    expect(changed("resource.k8s.io", "resourceclaims", "status", new, Some(old)), &expected, &Value::Null);
}
