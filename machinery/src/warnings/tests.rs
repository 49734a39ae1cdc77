//! Tables of what is told of which object.

use serde_json::{Value, json};

use super::of;
use crate::resources::find;

/// What is told of a new object.
fn told(group: &str, version: &str, plural: &str, object: &Value) -> Vec<String> {
    of(find(group, version, plural).unwrap(), "", object, None)
}

#[test]
fn finalizers_of_custom_resources_should_have_a_domain() {
    let custom = crate::resource::ResourceDef { custom: true, ..*find("", "v1", "configmaps").unwrap() };
    let object = |finalizers: Value| json!({"metadata": {"name": "n", "finalizers": finalizers}});
    let why = |name: &str| {
        format!(
            "metadata.finalizers: \"{name}\": prefer a domain-qualified finalizer name including a path (/) to avoid \
             accidental conflicts with other finalizer writers"
        )
    };
    let new = object(json!(["z", "a.example.com/x", "kubernetes", "orphan", "a.example.com", "z"]));
    assert_eq!(of(&custom, "", &new, None), [why("a.example.com"), why("z")]);
    assert_eq!(of(&custom, "", &new, Some(&object(json!(["z"])))), [why("a.example.com")]);
    assert_eq!(of(&custom, "status", &new, None), [""; 0]);
}

#[test]
fn odd_things_in_pods_are_told() {
    for (spec, expected) in [
        (json!({"containers": [{"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}]}]}), vec![]),
        (
            json!({"initContainers": [{"env": [{"name": "A"}, {"name": "A", "value": "$(A)"}]}]}),
            vec![
                "spec.initContainers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
            ],
        ),
        (
            json!({"hostAliases": [{"ip": "1.2.3.4"}, {"ip": "1.2.3.4"}]}),
            vec!["spec.hostAliases[1].ip: duplicate ip \"1.2.3.4\""],
        ),
        (
            json!({"imagePullSecrets": [{"name": ""}, {}]}),
            vec![
                "spec.imagePullSecrets[1].name: duplicate name \"\"",
                "spec.imagePullSecrets[0].name: invalid empty name \"\"",
                "spec.imagePullSecrets[1].name: invalid empty name \"\"",
            ],
        ),
        (
            json!({"terminationGracePeriodSeconds": -1}),
            vec![
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
            ],
        ),
        (
            json!({"dnsConfig": {"nameservers": ["2001:DB8:0:0::1"]}}),
            vec![
                "spec.dnsConfig.nameservers[0]: IPv6 address \"2001:DB8:0:0::1\" should be in RFC 5952 canonical format \
                 (\"2001:db8::1\")",
            ],
        ),
        (
            json!({"topologySpreadConstraints": [{"topologyKey": "beta.kubernetes.io/os", "labelSelector": {}}]}),
            vec![
                "spec.topologySpreadConstraints[0].topologyKey: beta.kubernetes.io/os is deprecated since v1.14; use \
                 \"kubernetes.io/os\" instead",
            ],
        ),
        (
            json!({"overhead": {"memory": "100m", "cpu": "100m"}}),
            vec!["spec.overhead[memory]: fractional byte value \"100m\" is invalid, must be an integer"],
        ),
        (
            json!({"volumes": [{"name": "v", "storageos": {}}, {"name": "w", "gitRepo": {}}]}),
            vec![
                "spec.volumes[0].storageOS: deprecated in v1.22, non-functional in v1.25+",
                "spec.volumes[1].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
            ],
        ),
        (
            json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
                [{"podAffinityTerm": {"topologyKey": "t"}}]}}}),
            vec![
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector: \
                 a null labelSelector results in matching no pod",
            ],
        ),
    ] {
        assert_eq!(told("", "v1", "pods", &json!({"metadata": {"name": "p"}, "spec": spec})), expected, "{spec}");
    }
}

#[test]
fn ports_that_are_in_each_others_way_are_told() {
    let port = |host: i64, ip: &str| json!({"containerPort": 80, "protocol": "TCP", "hostPort": host, "hostIP": ip});
    let first = "spec.containers[0].ports[0]";
    for (one, other, expected) in [
        (port(0, ""), port(0, ""), vec![format!("duplicate port definition with {first}")]),
        (port(0, ""), port(8080, ""), vec![format!("overlapping port definition with {first}")]),
        (port(8080, ""), port(8080, "1.2.3.4"), vec![format!("dangerously ambiguous port definition with {first}")]),
        (port(8080, ""), port(8081, ""), vec![]),
        (
            port(81, ""),
            port(0, "1.2.3.4"),
            vec![
                "hostIP set without hostPort: {Name: HostPort:0 ContainerPort:80 Protocol:TCP HostIP:1.2.3.4}"
                    .to_owned(),
                format!("overlapping port definition with {first}"),
            ],
        ),
    ] {
        let object = json!({"spec": {"containers": [{"ports": [one]}, {"ports": [other]}]}});
        let expected: Vec<String> = expected.iter().map(|e| format!("spec.containers[1].ports[0]: {e}")).collect();
        assert_eq!(told("", "v1", "pods", &object), expected, "{object}");
    }
}

#[test]
fn files_that_hide_each_other_are_told() {
    for (volume, expected) in [
        (
            json!({"configMap": {"name": "c", "items": [{"path": "a"}, {"path": "a/b"}, {"path": "ab"}]}}),
            vec!["volume \"v\" (ConfigMap \"c\"): overlapping paths: \"a/b\" with \"a\""],
        ),
        (
            json!({"secret": {"secretName": "s", "items": [{"path": "a/"}, {"path": "a"}]}}),
            vec!["volume \"v\" (Secret \"s\"): overlapping paths: \"a\" with \"a\""],
        ),
        (
            json!({"projected": {"sources": [
                {"configMap": {"name": "c", "items": [{"path": "t"}]}},
                {"serviceAccountToken": {"path": "t/f"}},
            ]}}),
            vec![
                "volume \"v\" (Projected): overlapping paths: \"t/f\" (ServiceAccountToken) with \"t\" (ConfigMap \"c\")",
            ],
        ),
        (json!({"projected": {"sources": [{}]}}), vec!["volume \"v\" (Projected) has no sources provided"]),
        (
            json!({"projected": {"sources": [{"secret": {"name": "s"}}, {"serviceAccountToken": {"path": "t"}}]}}),
            vec![],
        ),
        (
            json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}, {"secret": {"name": "s"}}]}}),
            vec![
                "volume \"v\" (Projected): overlapping paths: \"t\" (ServiceAccountToken) with \"t\" (ServiceAccountToken)",
            ],
        ),
    ] {
        let mut volume = volume;
        volume["name"] = "v".into();
        assert_eq!(told("", "v1", "pods", &json!({"spec": {"volumes": [volume]}})), expected, "{volume}");
    }
}

#[test]
fn old_annotations_are_told_where_no_field_says_the_same() {
    const SECCOMP: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    let annotations = json!({
        "seccomp.security.alpha.kubernetes.io/pod": "x",
        "container.seccomp.security.alpha.kubernetes.io/a": "x",
        "container.seccomp.security.alpha.kubernetes.io/other": "x",
        "container.apparmor.security.beta.kubernetes.io/a": "unconfined",
        "scheduler.alpha.kubernetes.io/critical-pod": "",
    });
    let template = json!({"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "a"}]}});
    let at = |key: &str| format!("spec.template.metadata.annotations[{key}]");
    let object = json!({"metadata": {"name": "d"}, "spec": {"template": template}});
    assert_eq!(
        told("apps", "v1", "deployments", &object),
        [
            format!(
                "{}: non-functional in v1.16+; use the \"priorityClassName\" field instead",
                at("scheduler.alpha.kubernetes.io/critical-pod")
            ),
            format!("{}: {SECCOMP}", at("seccomp.security.alpha.kubernetes.io/pod")),
            format!("{}: {SECCOMP}", at("container.seccomp.security.alpha.kubernetes.io/a")),
            format!(
                "{}: deprecated since v1.30; use the \"appArmorProfile\" field instead",
                at("container.apparmor.security.beta.kubernetes.io/a")
            ),
        ]
    );
    let profile = json!({"seccompProfile": {"type": "RuntimeDefault"}, "appArmorProfile": {"type": "Unconfined"}});
    let mut said = object.clone();
    said["spec"]["template"]["spec"]["securityContext"] = profile.clone();
    said["spec"]["template"]["spec"]["containers"][0]["securityContext"] = profile;
    assert_eq!(told("apps", "v1", "deployments", &said).len(), 1, "only the critical pod is left");
}

#[test]
fn odd_things_in_other_kinds_are_told() {
    const NAME: &str = "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a \
                        DNS label is recommended: [must not contain dots]";
    for (group, plural, object, expected) in [
        (
            "",
            "nodes",
            json!({"spec": {"externalID": "x", "configSource": {"configMap": {}}}}),
            vec![
                "spec.configSource: the feature is removed",
                "spec.externalID: this field is deprecated, and is unused by Kubernetes",
            ],
        ),
        ("", "nodes", json!({"spec": {"externalID": "", "configSource": null}}), vec![]),
        ("apps", "deployments", json!({"metadata": {"name": "a.b"}}), vec![NAME]),
        ("apps", "statefulsets", json!({"metadata": {"name": "a.b"}}), vec![]),
        ("batch", "cronjobs", json!({"metadata": {"name": "a.b"}}), vec![NAME]),
        (
            "apps",
            "statefulsets",
            json!({"spec": {"revisionHistoryLimit": -1,
                "volumeClaimTemplates": [{"spec": {"resources": {"requests": {"storage": "100m"}}}}]}}),
            vec![
                "spec.volumeClaimTemplates[0].resources.requests[storage]: fractional byte value \"100m\" is invalid, must be \
                 an integer",
                "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended",
            ],
        ),
        (
            "batch",
            "jobs",
            json!({"metadata": {"name": "j"},
                "spec": {"completionMode": "Indexed", "completions": 100_001, "parallelism": 10_001}}),
            vec![
                "spec: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
                 Kubernetes might not be able to track completedIndexes when a big number of indexes fail",
            ],
        ),
        (
            "",
            "services",
            json!({"spec": {"externalName": "x", "type": "ClusterIP"}}),
            vec!["spec.externalName is ignored when spec.type is not \"ExternalName\""],
        ),
        (
            "",
            "services",
            json!({"metadata": {"annotations": {"service.kubernetes.io/topology-aware-hints": "Auto"}},
                "spec": {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "externalIPs": ["1.2.3.4"],
                "loadBalancerIP": "1.2.3.4", "sessionAffinity": "ClientIP"}}),
            vec![
                "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use \
                 service.kubernetes.io/topology-mode instead",
                "spec.loadBalancerIP is ignored for headless services",
                "spec.externalIPs is ignored for headless services",
                "spec.SessionAffinity is ignored for headless services",
            ],
        ),
    ] {
        assert_eq!(told(group, "v1", plural, &object), expected, "{plural} {object}");
    }
}

#[test]
fn odd_things_in_storage_and_devices_are_told() {
    for (group, plural, object, expected) in [
        (
            "",
            "persistentvolumes",
            json!({"spec": {"rbd": {}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "beta.kubernetes.io/arch"}]}]}}}}),
            vec![
                "spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].key: beta.kubernetes.io/arch is deprecated \
                 since v1.14; use \"kubernetes.io/arch\" instead",
                "spec.rbd: deprecated in v1.28, non-functional in v1.31+",
            ],
        ),
        (
            "storage.k8s.io",
            "storageclasses",
            json!({"allowedTopologies": [{"matchLabelExpressions": [{"key": "failure-domain.beta.kubernetes.io/zone"}]}]}),
            vec![
                "allowedTopologies[0].matchLabelExpressions[0].key: deprecated since v1.17; use \
                 \"topology.kubernetes.io/zone\" instead",
            ],
        ),
        (
            "storage.k8s.io",
            "csistoragecapacities",
            json!({"nodeTopology": {"matchLabels": {"beta.kubernetes.io/os": "linux"}}}),
            vec![
                "nodeTopology.matchLabels.beta.kubernetes.io/os: deprecated since v1.14; use \"kubernetes.io/os\" instead",
            ],
        ),
        (
            "resource.k8s.io",
            "resourceslices",
            json!({"spec": {"driver": "Gpu.example.com"}}),
            vec!["spec.driver: driver names should be lowercase; \"Gpu.example.com\" contains uppercase characters"],
        ),
        (
            "node.k8s.io",
            "runtimeclasses",
            json!({"scheduling": {"nodeSelector": {"node-role.kubernetes.io/master": ""}}}),
            vec!["scheduling.nodeSelector: use \"node-role.kubernetes.io/control-plane\" instead"],
        ),
    ] {
        assert_eq!(told(group, "v1", plural, &object), expected, "{plural} {object}");
    }
}

#[test]
fn odd_things_in_networks_are_told() {
    for (group, plural, object, expected) in [
        (
            "networking.k8s.io",
            "networkpolicies",
            json!({"spec": {"egress": [{"to": [{"ipBlock": {"cidr": "2001:DB8::/32"}}]}]}}),
            vec![
                "spec.egress[0].to[0].ipBlock.cidr: IPv6 CIDR value \"2001:DB8::/32\" should be in RFC 5952 canonical format \
                 (\"2001:db8::/32\")",
            ],
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "IPv6", "endpoints": [{"addresses": ["fe80::0001"]}]}),
            vec![
                "endpoints[0].addresses[0]: IPv6 address \"fe80::0001\" should be in RFC 5952 canonical format (\"fe80::1\")",
            ],
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"addressType": "FQDN", "endpoints": [{"addresses": ["a.b"]}]}),
            vec!["spec.addressType: FQDN endpoints are deprecated"],
        ),
        (
            "discovery.k8s.io",
            "endpointslices",
            json!({"metadata": {"labels": {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
                "endpoints": [{"addresses": ["fe80::0001"]}]}),
            vec![],
        ),
    ] {
        assert_eq!(told(group, "v1", plural, &object), expected, "{plural} {object}");
    }
}

#[test]
fn a_change_is_told_of_what_the_kind_looks_at_then() {
    let spread = json!({"template": {"spec": {"topologySpreadConstraints": [{"topologyKey": "zone"}]}}});
    let at = |generation: i64| json!({"metadata": {"name": "a.b", "generation": generation}, "spec": spread});
    let def = find("apps", "v1", "deployments").unwrap();
    assert_eq!(of(def, "", &at(2), Some(&at(1))).len(), 1, "the template is told of, the name is not");
    assert!(of(def, "", &at(1), Some(&at(1))).is_empty(), "nothing changed that counts");
    let pods = find("", "v1", "pods").unwrap();
    let pod = json!({"metadata": {"name": "a.b"}, "status": {"podIPs": [{"ip": "FD00::1"}]}});
    assert!(of(pods, "", &pod, Some(&pod)).is_empty());
    assert_eq!(
        of(pods, "status", &pod, Some(&pod)),
        ["status.podIPs[0].ip: IPv6 address \"FD00::1\" should be in RFC 5952 canonical format (\"fd00::1\")"]
    );
    let cron = |schedule: &str| json!({"metadata": {"generation": 1}, "spec": {"schedule": schedule}});
    assert_eq!(
        of(find("batch", "v1", "cronjobs").unwrap(), "", &cron("TZ=UTC 0 0 * * *"), Some(&cron(""))),
        ["cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see \
             https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"]
    );
}
