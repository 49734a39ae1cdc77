//! When a pod that could not be scheduled is tried again: for each plugin something that happens and helps, and something that
//! does not.

use std::collections::BTreeSet;

use keelson_scheduler::config::{Config, ConfigError};
use keelson_scheduler::core::{Act, Change, Core};
use keelson_scheduler::plugins::{PLUGINS, points};
use serde_json::{Value, json};

/// When a pause after a failure is over, and before a pod that waits is tried again without a reason, milliseconds.
const LATER: u64 = 60_000;

/// One plugin: a cluster in which it refuses the pod, what does not help, what does.
struct Row {
    plugin: &'static str,
    before: fn() -> Vec<Change>,
    pod: fn() -> Value,
    useless: fn() -> Change,
    useful: fn() -> Change,
}

fn parsed<T: serde::de::DeserializeOwned>(value: Value) -> Box<T> {
    Box::new(serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{e}: {value}")))
}

/// The node `n`, with more in its labels, spec and allocatable resources.
fn node(labels: Value, spec: Value, allocatable: Value) -> Change {
    let mut object = json!({"metadata": {"name": "n", "labels": {"kubernetes.io/hostname": "n"}}, "spec": spec,
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}}});
    for (at, more) in [(&["metadata", "labels"], labels), (&["status", "allocatable"], allocatable)] {
        for (key, value) in more.as_object().into_iter().flatten() {
            object[at[0]][at[1]][key] = value.clone();
        }
    }
    Change::Node(parsed(object))
}

fn plain() -> Change {
    node(json!({}), json!({}), json!({}))
}

/// A pod; `spec` is added to what it needs, `node` may be empty.
fn object(name: &str, labels: Value, node: &str, spec: Value) -> Value {
    let mut object = json!({"metadata": {"name": name, "uid": name, "namespace": "d", "labels": labels},
        "spec": {"schedulerName": "default-scheduler", "nodeName": node, "containers": [{"name": "c", "image": "i"}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

fn placed(name: &str, labels: Value, spec: Value) -> Change {
    Change::Pod(parsed(object(name, labels, "n", spec)))
}

fn asking(spec: Value) -> Value {
    object("waits", json!({"app": "waits"}), "", spec)
}

fn port(number: u32) -> Value {
    json!({"containers": [{"name": "c", "ports": [{"hostPort": number, "protocol": "TCP"}]}]})
}

fn cpu(amount: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": amount}}}]})
}

fn term(kind: &str, app: &str) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": app}}}]}}})
}

fn spread() -> Value {
    json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "waits"}}}]})
}

fn claiming(claim: &str) -> Value {
    json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]})
}

fn claim(name: &str, mode: &str, volume: &str) -> Change {
    Change::Claim(parsed(json!({
        "metadata": {"name": name, "namespace": "d", "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
        "spec": {"accessModes": [mode], "volumeName": volume, "resources": {"requests": {"storage": "1Gi"}}}})))
}

fn volume(name: &str, zone: &str, more: Value) -> Change {
    let mut spec = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
        "csi": {"driver": "disks", "volumeHandle": name}});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let labels = if zone.is_empty() { json!({}) } else { json!({"topology.kubernetes.io/zone": zone}) };
    Change::Volume(parsed(json!({"metadata": {"name": name, "labels": labels}, "spec": spec})))
}

fn gone(name: &str) -> Change {
    Change::PodGone(name.into())
}

fn csi_node(count: u32) -> Change {
    let drivers = json!([{"name": "disks", "nodeID": "n", "allocatable": {"count": count}}]);
    Change::CsiNode(parsed(json!({"metadata": {"name": "n"}, "spec": {"drivers": drivers}})))
}

/// The node `n`, whose agent can do this.
fn declaring(features: &[&str]) -> Change {
    let Change::Node(mut node) = plain() else { panic!("a node") };
    node.status.declared_features = features.iter().map(|f| (*f).to_owned()).collect();
    Change::Node(node)
}

fn taints(keys: &[&str]) -> Value {
    let all: Vec<Value> = keys.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
    json!({"taints": all})
}

const ROWS: &[Row] = &[
    Row {
        plugin: "NodeUnschedulable",
        before: || vec![node(json!({}), json!({"unschedulable": true}), json!({}))],
        pod: || asking(json!({})),
        useless: || node(json!({"more": "labels"}), json!({"unschedulable": true}), json!({})),
        useful: plain,
    },
    Row {
        plugin: "TaintToleration",
        before: || vec![node(json!({}), taints(&["a", "b"]), json!({}))],
        pod: || asking(json!({})),
        useless: || node(json!({}), taints(&["a"]), json!({})),
        useful: plain,
    },
    Row {
        plugin: "NodeAffinity",
        before: || vec![plain()],
        pod: || asking(json!({"nodeSelector": {"disk": "ssd"}})),
        useless: || node(json!({"disk": "hdd"}), json!({}), json!({})),
        useful: || node(json!({"disk": "ssd"}), json!({}), json!({})),
    },
    Row {
        plugin: "NodePorts",
        before: || vec![plain(), placed("a", json!({}), port(80)), placed("b", json!({}), port(81))],
        pod: || asking(port(80)),
        useless: || gone("b"),
        useful: || gone("a"),
    },
    Row {
        plugin: "NodeResourcesFit",
        before: || vec![plain(), placed("a", json!({}), cpu("1500m")), placed("b", json!({}), cpu("100m"))],
        pod: || asking(cpu("1")),
        useless: || gone("b"),
        useful: || gone("a"),
    },
    Row {
        plugin: "NodeResourcesFit",
        before: || vec![plain()],
        pod: || asking(cpu("3")),
        useless: || node(json!({"more": "labels"}), json!({}), json!({})),
        useful: || node(json!({}), json!({}), json!({"cpu": "4"})),
    },
    Row {
        plugin: "VolumeRestrictions",
        before: || {
            let used = placed("a", json!({}), claiming("c"));
            vec![
                plain(),
                volume("v", "", json!({})),
                claim("c", "ReadWriteOncePod", "v"),
                used,
                placed("b", json!({}), json!({})),
            ]
        },
        pod: || asking(claiming("c")),
        useless: || gone("b"),
        useful: || gone("a"),
    },
    Row {
        plugin: "NodeVolumeLimits",
        before: || {
            let volumes = ["v", "w"].map(|name| volume(name, "", json!({})));
            let claims = [claim("c", "ReadWriteOnce", "v"), claim("e", "ReadWriteOnce", "w")];
            let pods = [placed("a", json!({}), claiming("c")), placed("b", json!({}), json!({}))];
            [plain(), csi_node(1)].into_iter().chain(volumes).chain(claims).chain(pods).collect()
        },
        pod: || asking(claiming("e")),
        useless: || gone("b"),
        useful: || csi_node(2),
    },
    Row {
        plugin: "VolumeBinding",
        before: || {
            let far = json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "disk", "operator": "Exists"}]}]}}});
            vec![plain(), volume("v", "", far), claim("c", "ReadWriteOnce", "v"), placed("b", json!({}), json!({}))]
        },
        pod: || asking(claiming("c")),
        useless: || gone("b"),
        useful: || node(json!({"disk": "x"}), json!({}), json!({})),
    },
    Row {
        // The first of the plugins that need the claim.
        plugin: "VolumeRestrictions",
        before: || vec![plain(), volume("v", "", json!({}))],
        pod: || asking(claiming("c")),
        useless: || claim("other", "ReadWriteOnce", "v"),
        useful: || claim("c", "ReadWriteOnce", "v"),
    },
    Row {
        plugin: "VolumeZone",
        before: || {
            let here = node(json!({"topology.kubernetes.io/zone": "z1"}), json!({}), json!({}));
            vec![
                here,
                volume("v", "z2", json!({})),
                claim("c", "ReadWriteOnce", "v"),
                placed("b", json!({}), json!({})),
            ]
        },
        pod: || asking(claiming("c")),
        useless: || gone("b"),
        useful: || node(json!({"topology.kubernetes.io/zone": "z2"}), json!({}), json!({})),
    },
    Row {
        plugin: "PodTopologySpread",
        before: || vec![plain()],
        pod: || asking(spread()),
        useless: || node(json!({"disk": "ssd"}), json!({}), json!({})),
        useful: || node(json!({"zone": "a"}), json!({}), json!({})),
    },
    Row {
        plugin: "InterPodAffinity",
        before: || vec![plain(), placed("b", json!({"app": "other"}), json!({}))],
        pod: || asking(term("podAffinity", "near")),
        useless: || gone("b"),
        useful: || placed("a", json!({"app": "near"}), json!({})),
    },
    Row {
        plugin: "InterPodAffinity",
        before: || vec![plain(), placed("a", json!({"app": "foe"}), json!({})), placed("b", json!({}), json!({}))],
        pod: || asking(term("podAntiAffinity", "foe")),
        useless: || gone("b"),
        useful: || placed("a", json!({"app": "friend"}), json!({})),
    },
    Row {
        plugin: "NodeDeclaredFeatures",
        before: || vec![plain()],
        pod: || {
            let rule = json!({"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}});
            asking(json!({"containers": [{"name": "c", "restartPolicyRules": [rule]}]}))
        },
        useless: || declaring(&["InPlacePodLevelResourcesVerticalScaling"]),
        useful: || declaring(&["RestartAllContainersOnContainerExits"]),
    },
    Row {
        plugin: "DynamicResources",
        before: || {
            let class = Change::DeviceClass(parsed(json!({"metadata": {"name": "gpu"}, "spec": {}})));
            let claim = json!({"metadata": {"name": "c", "namespace": "d", "uid": "c"},
                "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}]}}});
            vec![plain(), class, Change::ResourceClaim(parsed(claim)), placed("b", json!({}), json!({}))]
        },
        pod: || asking(json!({"resourceClaims": [{"name": "x", "resourceClaimName": "c"}]})),
        useless: || gone("b"),
        useful: || {
            Change::ResourceSlice(parsed(
                json!({"metadata": {"name": "s"}, "spec": {"driver": "gpu.example.com", "nodeName": "n",
                "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "a"}]}}),
            ))
        },
    },
];

#[test]
fn pods_are_tried_again_when_it_can_help() {
    for (number, Row { plugin, before, pod, useless, useful }) in ROWS.iter().enumerate() {
        let mut core = Core::new(|syms| Ok::<_, ConfigError>(Config::standard(syms)), 1).unwrap();
        for change in before() {
            core.apply(change, 0);
        }
        core.apply(Change::Pod(parsed(pod())), 0);
        let Some(Act::Fail { message, .. }) = core.next(0) else { panic!("{number} {plugin}: it has to be refused") };
        core.told("waits", 0);
        let refused: BTreeSet<&str> =
            core.queue.refusals().filter(|(_, pods)| *pods > 0).map(|(index, _)| PLUGINS[index].name).collect();
        assert_eq!(refused, BTreeSet::from([*plugin]), "{number} {message}");
        core.apply(useless(), LATER);
        assert!(core.next(LATER).is_none(), "{number} {plugin}: nothing has changed for it");
        core.apply(useful(), LATER);
        let act = core.next(LATER);
        assert!(matches!(act, Some(Act::Bind { .. })), "{number} {plugin}: {act:?}");
    }
}

#[test]
fn every_filter_has_a_row() {
    let filters = PLUGINS.iter().filter(|plugin| plugin.points & points::FILTER != 0).map(|plugin| plugin.name);
    // A pod that names a node it is not on is never in the queue.
    let missing: Vec<&str> =
        filters.filter(|name| *name != "NodeName" && !ROWS.iter().any(|r| r.plugin == *name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
