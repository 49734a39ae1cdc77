//! Services, slices, ingresses, and who decides over the server's time.

use serde_json::{Value, json};

use crate::{changed, created, expect};

fn service(fields: Value) -> Value {
    let mut spec =
        json!({"type": "ClusterIP", "ports": [{"port": 80}], "clusterIP": "10.0.0.9", "clusterIPs": ["10.0.0.9"]});
    for (key, value) in fields.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec})
}

#[test]
fn services() {
    for (fields, expected) in [
        (
            json!({"clusterIPs": ["10.0.0.9", "10.0.0.10"]}),
            &[
                "spec.clusterIPs: Invalid value: [\"10.0.0.9\",\"10.0.0.10\"]: may specify no more than one IP for each IP \
                 family",
            ][..],
        ),
        (
            json!({"externalIPs": ["1.2.3.04"]}),
            &["spec.externalIPs[0]: Invalid value: \"1.2.3.04\": must not have leading 0s"],
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 90000}}}),
            &[
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 90000: must be greater than 0 and less \
                 than 86400",
            ],
        ),
        (
            json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.1/8", " 10.0.0.0/8 "]}),
            &[
                "spec.LoadBalancerSourceRanges[0]: Invalid value: \"10.0.0.1/8\": must not have bits set beyond the prefix \
                 length",
            ],
        ),
    ] {
        expect(created("", "services", service(fields.clone())), expected, &fields);
    }
}

#[test]
fn addresses_of_a_load_balancer() {
    for (entry, expected) in [
        (json!({"ip": "1.2.3.4", "ipMode": "VIP"}), &[][..]),
        (
            json!({"ip": "x", "ipMode": "Odd"}),
            &[
                "status.loadBalancer.ingress[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or \
                 2001:db8::ffff)",
                "status.loadBalancer.ingress[0].ipMode: Unsupported value: \"Odd\": supported values: \"Proxy\", \"VIP\"",
            ],
        ),
        (
            json!({"hostname": "1.2.3.4", "ipMode": "VIP"}),
            &[
                "status.loadBalancer.ingress[0].hostname: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
                "status.loadBalancer.ingress[0].ipMode: Forbidden: may not be specified when `ip` is not set",
            ],
        ),
    ] {
        let mut new = service(json!({"type": "LoadBalancer"}));
        let old = new.clone();
        new["status"] = json!({"loadBalancer": {"ingress": [entry]}});
        expect(changed("", "services", "status", new, Some(old)), expected, &entry);
    }
}

#[test]
fn slices_and_ingresses() {
    let slice = json!({"metadata": {"name": "s", "namespace": "d"}, "addressType": "FQDN",
        "endpoints": [{"addresses": ["host", "a.b."], "hints": {"forNodes": [{"name": "a"}, {"name": "a"}]}}]});
    let expected = [
        "endpoints[0].addresses[0]: Invalid value: \"host\": should be a domain with at least two segments separated by dots",
        "endpoints[0].hints.forNodes[1].name: Duplicate value: \"a\"",
    ];
    assert_eq!(created("discovery.k8s.io", "endpointslices", slice), expected);
    let ingress =
        json!({"metadata": {"name": "i", "namespace": "d"}, "spec": {"defaultBackend": {"resource": {"kind": ""}}}});
    let expected =
        ["spec.defaultBackend.resource.kind: Required value", "spec.defaultBackend.resource.name: Required value"];
    assert_eq!(created("networking.k8s.io", "ingresses", ingress), expected);
}

#[test]
fn addresses_and_ranges_have_one_form() {
    let reference = json!({"parentRef": {"resource": "services", "namespace": "d", "name": "s"}});
    for (name, told) in [
        ("2001:db8::1", None),
        ("2001:DB8::1", Some("must be in canonical form (\"2001:db8::1\")")),
        ("::FFFF:1.2.3.4", Some("must not be an IPv4-mapped IPv6 address")),
    ] {
        let object = json!({"metadata": {"name": name}, "spec": reference});
        let told = told.map(|told| format!("metadata.name: Invalid value: {name:?}: {told}"));
        let told: Vec<&str> = told.iter().map(String::as_str).collect();
        expect(created("networking.k8s.io", "ipaddresses", object), &told, &name.into());
    }
    let range = json!({"metadata": {"name": "r"}, "spec": {"cidrs": ["10.0.0.0/24", "2001:DB8::/64"]}});
    let told = ["spec.cidrs[1]: Invalid value: \"2001:DB8::/64\": must be in canonical form (\"2001:db8::/64\")"];
    expect(created("networking.k8s.io", "servicecidrs", range), &told, &Value::Null);
    // Two ranges are to be of both families before anything else is looked at.
    let pair = json!({"metadata": {"name": "r"}, "spec": {"cidrs": ["10.0.0.0/24", "bad"]}});
    let told =
        ["spec.cidrs: Invalid value: [\"10.0.0.0/24\",\"bad\"]: may specify no more than one IP for each IP family, \
                 i.e 192.168.0.0/24 and 2001:db8::/64"];
    expect(created("networking.k8s.io", "servicecidrs", pair), &told, &Value::Null);
}

#[test]
fn what_was_found_of_expressions() {
    let status = json!({"typeChecking": {"expressionWarnings": [{"fieldRef": " "}]},
        "conditions": [{"type": "T", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}]});
    let told = [
        "status.conditions[0].reason: Required value: must be set",
        "status.typeChecking.expressionWarnings[0].fieldRef: Required value",
        "status.typeChecking.expressionWarnings[0].warning: Required value",
    ];
    let (group, plural) = ("admissionregistration.k8s.io", "validatingadmissionpolicies");
    expect(changed(group, plural, "status", json!({ "status": status }), Some(json!({}))), &told, &Value::Null);
}

#[test]
fn flows_and_levels() {
    let group = "flowcontrol.apiserver.k8s.io";
    let schema = json!({"metadata": {"name": "f"}, "spec": {"matchingPrecedence": 5, "priorityLevelConfiguration": {"name": "l"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": "u"}}],
            "nonResourceRules": [{"verbs": ["fly"], "nonResourceURLs": ["a", "/b c", "/d//e", "/f*", "/g/*"]}]}]}});
    let at = "spec.rules[0].nonResourceRules[0]";
    let mut expected = [
        format!("{at}.nonResourceURLs[0]: Invalid value: \"a\": must start with slash"),
        format!("{at}.nonResourceURLs[1]: Invalid value: \"/b c\": must not contain white-space"),
        format!("{at}.nonResourceURLs[2]: Invalid value: \"/d//e\": must not contain double slash"),
        format!("{at}.nonResourceURLs[3]: Invalid value: \"/f*\": wildcard can only do suffix matching"),
        format!(
            "{at}.verbs: Unsupported value: [\"fly\"]: supported values: \"create\", \"delete\", \"deletecollection\", \"get\", \
             \"list\", \"patch\", \"proxy\", \"update\", \"watch\""
        ),
    ];
    expected.sort();
    assert_eq!(created(group, "flowschemas", schema), expected);
    let level = json!({"metadata": {"name": "l"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue",
        "queuing": {"queues": 1000, "handSize": 10, "queueLengthLimit": 5}}}}});
    let expected = [
        "spec.limited.limitResponse.queuing.handSize: Invalid value: 10: required entropy bits of deckSize 1000 and handSize 10 \
         should not be greater than 60",
    ];
    assert_eq!(created(group, "prioritylevelconfigurations", level), expected);
}
