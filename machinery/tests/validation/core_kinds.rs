//! Kinds of the core group that are neither pods nor volumes.

use serde_json::{Value, json};

use crate::{changed, created, expect};

/// Rows of a kind: what is created, and its problems.
#[track_caller]
fn rows(plural: &str, rows: &[(Value, &[&str])]) {
    for (object, expected) in rows {
        let mut object = object.clone();
        object["metadata"]["namespace"] = "d".into();
        expect(created("", plural, object.clone()), expected, &object);
    }
}

#[test]
fn quotas_and_limits() {
    let quota = |spec: Value| json!({"spec": spec});
    rows(
        "resourcequotas",
        &[
            (
                quota(
                    json!({"scopes": ["BestEffort", "NotBestEffort", "Terminating", "NotTerminating"], "hard": {"pods": "1"}}),
                ),
                &[
                    "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\",\"Terminating\",\"NotTerminating\"]: \
                     conflicting scopes",
                    "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\",\"Terminating\",\"NotTerminating\"]: \
                     conflicting scopes",
                ],
            ),
            (
                quota(json!({"scopes": ["BestEffort", "BestEffort"], "hard": {"requests.hugepages-2Mi": "1"}})),
                &[
                    "spec.scopes: Invalid value: [\"BestEffort\",\"BestEffort\"]: unsupported scope applied to resource",
                    "spec.scopes: Invalid value: [\"BestEffort\",\"BestEffort\"]: unsupported scope applied to resource",
                ],
            ),
        ],
    );
    rows(
        "limitranges",
        &[(
            json!({"spec": {"limits": [{"type": "Pod", "max": {"cpu": "1"}, "default": {"cpu": "2"}}]}}),
            &["spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'"],
        )],
    );
}

#[test]
fn nodes() {
    let node = |spec: Value, status: Value| json!({"metadata": {"name": "n"}, "spec": spec, "status": status});
    let features = |names: Value| node(json!({}), json!({"declaredFeatures": names}));
    let form = "must start with an UpperCamelCase segment, with subsequent segments separated by '/' (e.g., MyFeature or \
                MyFeature/mySubFeature), and contain only alphanumeric characters and slashes";
    let bad = format!("status.declaredFeatures[0]: Invalid value: \"a-b\": invalid feature name \"a-b\": {form}");
    for (object, expected) in [
        (features(json!(["A", "B/c"])), &[][..]),
        (features(json!(["a-b"])), &[bad.as_str()]),
        (
            features(json!(["B", "A", "A"])),
            &[
                "status.declaredFeatures[1]: Invalid value: \"A\": list must be sorted alphabetically",
                "status.declaredFeatures[2]: Duplicate value: \"A\"",
            ],
        ),
        (
            node(json!({}), json!({"nodeInfo": {"swap": {"capacity": 0}}})),
            &["metadata.nodeSwapStatus.capacity: Invalid value: 0: must be greater than zero"],
        ),
        (
            node(json!({"podCIDRs": ["10.0.0.0/24", "10.0.0.0/24"]}), json!({})),
            &[
                "spec.podCIDRs: Invalid value: [\"10.0.0.0/24\",\"10.0.0.0/24\"]: may specify no more than one CIDR for each IP \
                 family",
            ],
        ),
        (
            node(json!({"podCIDRs": ["10.0.0.0/24", "x"]}), json!({})),
            &[
                "spec.podCIDRs[1]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                "spec.podCIDRs: Internal error: invalid PodCIDRs. failed to check with dual stack with error:invalid CIDR[1]: \
                 <nil> (invalid CIDR address: x)",
                "spec.podCIDRs: Invalid value: [\"10.0.0.0/24\",\"x\"]: may specify no more than one CIDR for each IP family",
            ],
        ),
    ] {
        expect(created("", "nodes", object.clone()), expected, &object);
    }
    // One looks at a new status, two look at a new node.
    let (old, new) =
        (node(json!({}), json!({})), node(json!({}), json!({"capacity": {"cpu": "-1"}, "allocatable": {"cpu": "1"}})));
    let why = "status.capacity.cpu: Invalid value: \"-1\": must be greater than or equal to 0";
    assert_eq!(changed("", "nodes", "status", new.clone(), Some(old.clone())), [why]);
    assert_eq!(changed("", "nodes", "", new, Some(old)), [why, why]);
}

#[test]
fn endpoints() {
    let at = |ip: &str| json!({"metadata": {}, "subsets": [{"addresses": [{"ip": ip}]}]});
    rows(
        "endpoints",
        &[
            (
                at("x"),
                &[
                    "subsets[0].addresses[0].ip: Invalid value: \"x\": must be a valid IP address",
                    "subsets[0].addresses[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or \
                     2001:db8::ffff)",
                ],
            ),
            // What can be read without the zeros is looked at that way by the second rule.
            (
                at("127.0.0.01"),
                &[
                    "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.01\": may not be in the loopback range (127.0.0.0/8, \
                     ::1/128)",
                    "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.01\": must not have leading 0s",
                ],
            ),
        ],
    );
    assert_eq!(changed("", "endpoints", "", at("127.0.0.01"), Some(at("127.0.0.01"))), [""; 0]);
}

#[test]
fn services() {
    let service = |fields: Value| {
        let mut spec = json!({"ports": [{"port": 1}]});
        for (key, value) in fields.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        json!({"metadata": {"name": "s"}, "spec": spec})
    };
    let classed = service(json!({"loadBalancerClass": "a/b"}));
    let why = "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'";
    assert_eq!(created("", "services", classed.clone()), [why]);
    // A change of it is looked at by two.
    assert_eq!(changed("", "services", "", classed, Some(service(json!({})))), [why, why]);
    let name = "a".repeat(254) + "_";
    let found = created("", "services", service(json!({"type": "ExternalName", "externalName": name})));
    assert_eq!(
        found.iter().filter(|text| text.starts_with("spec.externalName: Invalid value")).count(),
        2,
        "{found:?}"
    );
}
