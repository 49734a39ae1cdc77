//! Smaller groups: storage classes and attachments, ingresses and ranges, autoscaling, flow control, workloads, quotas, roles.

use keelson_machinery::{defaults, resources, validation};
use serde_json::{Value, json};

use crate::{changed, created, expect};

#[track_caller]
fn check(group: &str, plural: &str, object: Value, expected: &[&str]) {
    expect(created(group, plural, object.clone()), expected, &object);
}

#[test]
fn storage_classes_and_drivers() {
    let check = |plural, object, expected: &[&str]| check("storage.k8s.io", plural, object, expected);
    check("storageclasses", json!({"provisioner": "x/y", "reclaimPolicy": ""}), &[]);
    check(
        "storageclasses",
        json!({"provisioner": "x/y", "volumeBindingMode": ""}),
        &["volumeBindingMode: Unsupported value: \"\": supported values: \"Immediate\", \"WaitForFirstConsumer\""],
    );
    let twice = "matchLabelExpressions: Duplicate value: \"\"";
    let (first, second) = (format!("allowedTopologies[0].{twice}"), format!("allowedTopologies[1].{twice}"));
    check(
        "storageclasses",
        json!({"provisioner": "x/y", "allowedTopologies": [{}, {}]}),
        &[&first, &first, &second, &second, &second],
    );
    check("volumeattributesclasses", json!({"driverName": "x/Y", "parameters": {"a": "b"}}), &[]);
    check(
        "csidrivers",
        json!({"spec": {"tokenRequests": [{}, {"expirationSeconds": 1}]}}),
        &["spec.tokenRequests[1].audience: Duplicate value: \"\""],
    );
    check(
        "csidrivers",
        json!({"spec": {"serviceAccountTokenInSecrets": true}}),
        &[
            "spec.serviceAccountTokenInSecrets: Invalid value: true: serviceAccountTokenInSecrets is set but no tokenRequests are \
             specified",
        ],
    );
    let many: serde_json::Map<String, Value> = (0..513).map(|n| (format!("k{n}"), json!("v"))).collect();
    check(
        "storageclasses",
        json!({"provisioner": "x/y", "parameters": many}),
        &["parameters: Too long: may not be more than 512 bytes"],
    );
}

#[test]
fn attachments_tell_of_their_volume_and_their_errors() {
    let with = |source: Value, status: Value| json!({"spec": {"attacher": "d", "nodeName": "n", "source": source}, "status": status});
    let found = created("storage.k8s.io", "volumeattachments", with(json!({"persistentVolumeName": "A"}), json!({})));
    assert!(
        found.len() == 1 && found[0].starts_with("spec.source.persistentVolumeName: Invalid value: \"A\""),
        "{found:?}"
    );
    let old = with(json!({"persistentVolumeName": "a"}), json!({}));
    for (status, expected) in [
        (json!({"attachError": {"message": "m", "errorCode": 3}}), &[][..]),
        (
            json!({"detachError": {"errorCode": -1}}),
            &["status.detachError.errorCode: Invalid value: -1: must be between 0 and 2147483647, inclusive"],
        ),
        (
            json!({"attachError": {"message": "m".repeat(1025)}}),
            &["status.attachError.message: Too long: may not be more than 262144 bytes"],
        ),
    ] {
        let new = with(json!({"persistentVolumeName": "a"}), status.clone());
        expect(changed("storage.k8s.io", "volumeattachments", "status", new, Some(old.clone())), expected, &status);
    }
}

#[test]
fn nodes_of_drivers_may_count_otherwise_and_nothing_else() {
    let node = |driver: Value| json!({"spec": {"drivers": [driver]}});
    let old = node(json!({"name": "d", "nodeID": "a", "allocatable": {"count": 1}}));
    for (driver, expected) in [
        (json!({"name": "d", "nodeID": "a", "allocatable": {"count": 2}}), &[][..]),
        (
            json!({"name": "d", "nodeID": "b", "allocatable": {"count": 2}}),
            &[
                "spec.drivers: Invalid value: {\"Name\":\"d\",\"NodeID\":\"b\",\"TopologyKeys\":null,\"Allocatable\":null}: \
               field is immutable",
            ],
        ),
    ] {
        expect(changed("storage.k8s.io", "csinodes", "", node(driver.clone()), Some(old.clone())), expected, &driver);
    }
    let found = created("storage.k8s.io", "csinodes", node(json!({"name": "d", "nodeID": "a", "topologyKeys": [""]})));
    assert!(found.contains(&"spec.drivers[0]: Required value".to_owned()), "{found:?}");
}

#[test]
fn ingresses() {
    let ingress = |rule: Value| json!({"spec": {"rules": [rule]}});
    let host = "spec.rules[0].host: Invalid value: \"010.1.1.1\": must be a DNS name, not an IP address";
    check("networking.k8s.io", "ingresses", ingress(json!({"host": "010.1.1.1"})), &[host]);
    check(
        "networking.k8s.io",
        "ingresses",
        ingress(json!({"http": {"paths": [{"path": "x"}]}})),
        &["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"],
    );
    let backend = json!({"service": {"name": "s", "port": {"number": 1}}});
    check(
        "networking.k8s.io",
        "ingresses",
        ingress(json!({"http": {"paths": [{"path": "/", "pathType": "", "backend": backend}]}})),
        &["spec.rules[0].http.paths[0].pathType: Unsupported value: \"\": supported values: \"Exact\", \
           \"ImplementationSpecific\", \"Prefix\""],
    );
    check(
        "networking.k8s.io",
        "ingresses",
        json!({"metadata": {"name": "n", "annotations": {"kubernetes.io/ingress.class": "a"}},
            "spec": {"ingressClassName": "b", "defaultBackend": backend}}),
        &[
            "annotations.kubernetes.io/ingress.class: Invalid value: \"a\": must match `ingressClassName` when both are \
           specified",
        ],
    );
}

#[test]
fn ranges_of_services_grow_by_a_family() {
    let range = |cidrs: Value| json!({"spec": {"cidrs": cidrs}});
    for (before, after, expected) in [
        (json!(["10.1.0.0/24"]), json!(["10.1.0.0/24", "fd00::/64"]), &[][..]),
        (
            json!(["10.1.0.0/24"]),
            json!(["10.2.0.0/24"]),
            &["spec.cidrs[0]: Invalid value: \"10.2.0.0/24\": field is immutable"],
        ),
        (
            json!(["10.1.0.0/24", "fd00::/64"]),
            json!(["10.1.0.0/24"]),
            &["spec.cidrs: Invalid value: [\"10.1.0.0/24\"]: field is immutable"],
        ),
        (
            json!(["10.1.0.0/24"]),
            json!(["10.2.0.0/24", "fd00::/64"]),
            &["spec.cidrs[0]: Invalid value: \"10.2.0.0/24\": field is immutable"],
        ),
    ] {
        let found = changed("networking.k8s.io", "servicecidrs", "", range(after.clone()), Some(range(before)));
        expect(found, expected, &after);
    }
}

#[test]
fn budgets_tell_of_their_conditions_first() {
    let budget = |status: Value| json!({"metadata": {"name": "b", "namespace": "d"}, "spec": {}, "status": status});
    let bad = budget(json!({"disruptionsAllowed": -1, "conditions": [{"type": "T", "status": "True", "reason": ""}]}));
    let found = changed("policy", "poddisruptionbudgets", "status", bad, Some(budget(json!({}))));
    let fields: Vec<&str> = found.iter().map(|told| told.split(": ").next().unwrap_or_default()).collect();
    assert_eq!(
        fields,
        ["status.conditions[0].lastTransitionTime", "status.conditions[0].reason", "status.disruptionsAllowed"]
    );
}

#[test]
fn autoscalers() {
    let scaler = |fields: Value| {
        let mut spec =
            json!({"maxReplicas": 2, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}});
        for (key, value) in fields.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        json!({"spec": spec})
    };
    let unknown = "spec.metrics[0].type: Unsupported value: \"\": supported values: \"ContainerResource\", \"External\", \
                   \"Object\", \"Pods\", \"Resource\"";
    for (fields, expected) in [
        (
            json!({"behavior": {"scaleUp": {"policies": []}}}),
            &["spec.behavior.scaleUp.policies: Required value: must specify at least one Policy"][..],
        ),
        (
            json!({"metrics": [{}]}),
            &["spec.metrics[0].type: Required value: must specify a metric source type", unknown, unknown],
        ),
        (
            json!({"metrics": [{"type": "Pods", "resource": {"name": "cpu", "target": {"type": ""}}}]}),
            &[
                "spec.metrics[0].pods: Required value: must populate information for the given metric source",
                "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a \
                 target utilization",
                "spec.metrics[0].resource.target.type: Invalid value: \"\": must be either Utilization, Value, or AverageValue",
                "spec.metrics[0].resource.target.type: Required value: must specify a metric target type",
            ],
        ),
        (
            json!({"metrics": [{"type": "ContainerResource", "containerResource": {
                "name": "cpu", "container": "A_b", "target": {"type": "Utilization", "averageUtilization": 50}}}]}),
            &[
                "spec.metrics[0].containerResource.container: Invalid value: \"A_b\": a lowercase RFC 1123 label must consist \
               of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. \
               'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            ],
        ),
    ] {
        // The second version has these fields.
        let def = resources::find("autoscaling", "v2", "horizontalpodautoscalers").expect("a row");
        let mut object = scaler(fields.clone());
        object["metadata"] = json!({"name": "n"});
        defaults::set(def, &mut object);
        let causes = validation::validate(def, "", &object, None);
        let mut found: Vec<String> = causes.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        found.sort();
        expect(found, expected, &fields);
    }
}

#[test]
fn flow_control_keeps_what_every_cluster_has() {
    use keelson_machinery::validation::mandatory_flow_control as mandatory;
    for (plural, name, path, value, expected) in [
        ("flowschemas", "exempt", "", json!(null), ""),
        ("flowschemas", "exempt", "/matchingPrecedence", json!(5), "must equal the fixed value"),
        ("flowschemas", "catch-all", "/matchingPrecedence", json!(5), "must equal the fixed value"),
        ("prioritylevelconfigurations", "exempt", "/exempt/lendablePercent", json!(5), ""),
        (
            "prioritylevelconfigurations",
            "catch-all",
            "/limited/nominalConcurrencyShares",
            json!(7),
            "spec of 'catch-all' must equal the fixed value",
        ),
    ] {
        let mut spec = mandatory(plural, name).expect("every cluster has it");
        if !path.is_empty() {
            *spec.pointer_mut(path).expect("a field") = value;
        }
        let found = created("flowcontrol.apiserver.k8s.io", plural, json!({"metadata": {"name": name}, "spec": spec}));
        let told = found.iter().any(|text| text.starts_with("spec: Invalid value: {") && text.ends_with(expected));
        assert_eq!(told, !expected.is_empty(), "{plural} {name} {path}: {found:?}");
    }
}

fn workload(fields: Value) -> Value {
    let mut spec = json!({"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}}});
    for (key, value) in fields.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"spec": spec})
}

#[test]
fn selectors_of_workloads() {
    check(
        "apps",
        "replicasets",
        workload(json!({"selector": {}})),
        &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
    );
    let bad = json!({"selector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}, "template": {"spec": {}}});
    let operator = "spec.selector.matchExpressions[0].operator: Invalid value: \"Near\": not a valid selector operator";
    let selector = "spec.selector: Invalid value: {\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"Near\"}]}";
    check("apps", "deployments", workload(bad.clone()), &[operator, &format!("{selector}: invalid label selector")]);
    let restart = "spec.template.spec.restartPolicy: Unsupported value: \"\": supported values: \"Always\"";
    let found = created("apps", "statefulsets", workload(bad));
    assert!(found.contains(&selector.to_owned()) && !found.contains(&restart.to_owned()), "{found:?}");
}

#[test]
fn numbers_of_workloads() {
    let strategy = json!({"strategy": {"rollingUpdate": {"maxUnavailable": "x", "maxSurge": 0}}});
    let found = created("apps", "deployments", workload(strategy));
    let zero = "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"x\": may not be 0 when `maxSurge` is 0";
    assert!(found.len() == 2 && found.contains(&zero.to_owned()), "{found:?}");
    for plural in ["deployments", "daemonsets", "statefulsets"] {
        let with = |count: Value| {
            let mut object = workload(json!({}));
            object["status"] = json!({"collisionCount": count});
            object
        };
        for (before, after, expected) in [
            (json!(1), json!(2), &[][..]),
            (json!(2), json!(1), &["status.collisionCount: Invalid value: 1: cannot be decremented"]),
            (json!(2), json!(null), &["status.collisionCount: Invalid value: 0: cannot be decremented"]),
        ] {
            expect(changed("apps", plural, "status", with(after.clone()), Some(with(before))), expected, &after);
        }
    }
}

#[test]
fn roles_and_quotas() {
    let urls = json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"], "resources": ["pods"]}]});
    check(
        "rbac.authorization.k8s.io",
        "roles",
        urls,
        &[
            "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
            "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: rules cannot apply to both regular resources and \
             non-resource URLs",
        ],
    );
    check(
        "",
        "resourcequotas",
        json!({"spec": {"hard": {"storage": "1"}}}),
        &["spec.hard[storage]: Invalid value: \"storage\": must be a standard resource for quota"],
    );
    check(
        "",
        "limitranges",
        json!({"spec": {"limits": [{"type": "Container", "max": {"bogus": "1"}}]}}),
        // A maximum is a default, too.
        &["default", "defaultRequest", "max"].map(|field| {
            ["container resources", "type"].map(|what| match what {
                "type" => format!(
                    "spec.limits[0].{field}[bogus]: Invalid value: \"bogus\": must be a standard resource type or fully qualified"
                ),
                _ => format!(
                    "spec.limits[0].{field}[bogus]: Invalid value: \"bogus\": must be a standard resource for containers"
                ),
            })
        })
        .concat()
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>(),
    );
    check(
        "apiregistration.k8s.io",
        "apiservices",
        json!({"metadata": {"name": "v1.x.io"}, "spec": {"group": "x.io", "version": "v1", "groupPriorityMinimum": 1,
            "versionPriority": 1}}),
        &[],
    );
    let service =
        json!({"metadata": {"name": "v1.x.io"}, "status": {"conditions": [{"type": "Available", "status": "Yes"}]}});
    expect(
        changed("apiregistration.k8s.io", "apiservices", "status", service.clone(), Some(service.clone())),
        &[
            "status.conditions[0].status: Unsupported value: \"Yes\": supported values: \"True\", \"False\", \"Unknown\"",
        ],
        &service,
    );
}

#[test]
fn generated_selectors_of_jobs() {
    let job = |labels: Value, selector: Value| {
        json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"selector": selector,
            "template": {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never",
                "containers": [{"name": "c", "image": "i"}]}}}})
    };
    let own = json!({"controller-uid": "u", "job-name": "j", "batch.kubernetes.io/controller-uid": "u",
        "batch.kubernetes.io/job-name": "j"});
    check("batch", "jobs", job(own.clone(), json!({"matchLabels": {"job-name": "j"}})), &[]);
    let mut other = own.clone();
    other["job-name"] = json!("k");
    let found = created("batch", "jobs", job(other, json!({"matchLabels": {"controller-uid": "u"}})));
    assert!(
        found.len() == 1
            && found[0].starts_with("spec.template.metadata.labels[job-name]: Invalid value: {")
            && found[0].ends_with(": must be 'j'"),
        "{found:?}"
    );
}

#[test]
fn fields_that_are_empty_or_stand_in_a_template() {
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
    let odd = json!({"matchExpressions": [{"key": "a", "operator": "Odd"}]});
    check(
        "batch",
        "cronjobs",
        json!({"spec": {"schedule": "@daily", "jobTemplate": {"spec": {"template": template, "selector": odd}}}}),
        &[
            "spec.jobTemplate.spec.selector: Invalid value: {\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"Odd\"}]}: \
           `selector` will be auto-generated",
        ],
    );
    check(
        "scheduling.k8s.io",
        "priorityclasses",
        json!({"value": 1, "preemptionPolicy": ""}),
        &["preemptionPolicy: Required value"],
    );
    check(
        "apiregistration.k8s.io",
        "apiservices",
        json!({"metadata": {"name": "v1.a.b"}, "spec": {"group": "a.b", "version": "v1", "groupPriorityMinimum": 1,
            "versionPriority": 1, "caBundle": "aGVsbG8="}}),
        &["spec.caBundle: Invalid value: \"5 bytes\": local APIServices may not have a caBundle"],
    );
    let set = json!({"metadata": {"namespace": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": -1}});
    let told = changed("apps", "deployments", "status", set.clone(), Some(set));
    let expected = "status.readyReplicas: Invalid value: 0: cannot be greater than status.replicas".to_owned();
    assert!(told.contains(&expected), "{told:?}");
}
