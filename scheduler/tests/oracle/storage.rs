//! Random volumes, claims and configurations.

use serde_json::{Value, json};

use super::naive::DRIVER;
use super::random::Maker;

const ZONE: &str = "topology.kubernetes.io/zone";
const CLASSES: [&str; 4] = ["made", "made-near", "static", "at-once"];
/// Claims in each namespace, volumes in all.
const CLAIMS: usize = 4;
const VOLUMES: usize = 8;

/// The classes of the cluster: they stay as they are.
pub fn classes() -> Vec<Value> {
    let class = |name: &str, provisioner: &str, mode: &str| json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
    let mut near = class("made-near", DRIVER, "WaitForFirstConsumer");
    near["allowedTopologies"] = json!([{"matchLabelExpressions": [{"key": ZONE, "values": ["z1", "z2"]}]}]);
    vec![
        class("made", DRIVER, "WaitForFirstConsumer"),
        near,
        class("static", "kubernetes.io/no-provisioner", "WaitForFirstConsumer"),
        class("at-once", DRIVER, "Immediate"),
    ]
}

impl Maker {
    /// A volume that no claim has, if it is of a class; otherwise one that [`Self::claim`] may be bound to.
    pub fn volume(&mut self) -> Value {
        let number = self.below(VOLUMES);
        let free = number < VOLUMES / 2;
        let mut labels = json!({});
        if self.once_in(3) {
            labels[ZONE] = self.one(&["z1", "z2", "z1__z3"]).into();
        }
        let mut volume = json!({"metadata": {"name": format!("volume-{number}"), "labels": labels},
            "spec": {"capacity": {"storage": self.one(&["1Gi", "2Gi", "4Gi"])}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": if free { "static" } else { "" }},
            "status": {"phase": if free { "Available" } else { "Bound" }}});
        if !free {
            volume["spec"]["claimRef"] = json!({"namespace": "other", "name": "other", "uid": "other"});
        }
        if self.once_in(2) {
            volume["spec"]["csi"] = json!({"driver": DRIVER, "volumeHandle": format!("volume-{number}")});
        }
        if self.once_in(2) {
            volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [self.node_term()]}});
        }
        volume
    }

    /// A claim, bound or not.
    pub fn claim(&mut self, namespace: &str) -> Value {
        let mode = if self.once_in(5) { "ReadWriteOncePod" } else { "ReadWriteOnce" };
        let mut claim = json!({"metadata": {"name": format!("claim-{}", self.below(CLAIMS)), "namespace": namespace},
            "spec": {"accessModes": [mode], "resources": {"requests": {"storage": self.one(&["1Gi", "2Gi", "3Gi"])}},
                "storageClassName": ""}, "status": {"phase": "Pending"}});
        if self.once_in(2) {
            claim["spec"]["storageClassName"] = self.one(&CLASSES).into();
            return claim;
        }
        claim["spec"]["volumeName"] = format!("volume-{}", VOLUMES / 2 + self.below(VOLUMES / 2)).into();
        claim["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
        claim["status"]["phase"] = "Bound".into();
        claim
    }

    /// How many volumes of the driver a node attaches.
    pub fn limit(&mut self) -> i64 {
        self.below(3) as i64 + 1
    }

    /// Volumes of a pod.
    pub fn pod_volumes(&mut self) -> Value {
        let mut volumes = Vec::new();
        for i in 0..self.below(5).saturating_sub(2) {
            let claim = format!("claim-{}", self.below(CLAIMS));
            let same = |v: &Value| v["persistentVolumeClaim"]["claimName"] == *claim;
            if !volumes.iter().any(same) {
                volumes.push(json!({"name": format!("v{i}"), "persistentVolumeClaim": {"claimName": claim}}));
            }
        }
        if self.once_in(4) {
            let reads = self.once_in(2);
            let disk = self.one(&["a", "b"]);
            let monitors = self.one(&[&["m1", "m2"][..], &["m2", "m3"], &["m3"]]);
            volumes.push(match self.below(4) {
                0 => json!({"name": "d", "gcePersistentDisk": {"pdName": disk, "readOnly": reads}}),
                1 => json!({"name": "d", "awsElasticBlockStore": {"volumeID": disk, "readOnly": reads}}),
                2 => json!({"name": "d", "iscsi": {"iqn": disk, "targetPortal": "p", "lun": 0, "readOnly": reads}}),
                _ => {
                    json!({"name": "d", "rbd": {"monitors": monitors, "pool": "rbd", "image": disk, "readOnly": reads}})
                }
            });
        }
        volumes.into()
    }

    /// Arguments of plugins.
    pub fn arguments(&mut self) -> Vec<(&'static str, Value)> {
        let mut all = Vec::new();
        if self.once_in(2) {
            let mut strategy =
                json!({"type": self.one(&["LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"])});
            if strategy["type"] == "RequestedToCapacityRatio" {
                let shape = self.one(&[[(0, 0), (100, 10)], [(0, 10), (100, 0)], [(20, 3), (70, 9)]]);
                let points = shape.map(|(at, score)| json!({"utilization": at, "score": score}));
                strategy["requestedToCapacityRatio"] = json!({"shape": points});
            }
            if self.once_in(2) {
                strategy["resources"] =
                    json!([{"name": "cpu", "weight": 1 + self.below(5)}, {"name": "example.com/gpu", "weight": 3}]);
            }
            all.push(("NodeResourcesFit", json!({"scoringStrategy": strategy})));
        }
        if self.once_in(3) {
            let mut added = json!({});
            if self.once_in(2) {
                added["requiredDuringSchedulingIgnoredDuringExecution"] =
                    json!({"nodeSelectorTerms": [self.node_term()]});
            }
            added["preferredDuringSchedulingIgnoredDuringExecution"] =
                json!([{"weight": 1 + self.below(50), "preference": self.node_term()}]);
            all.push(("NodeAffinity", json!({"addedAffinity": added})));
        }
        if self.once_in(3) {
            let args = json!({"hardPodAffinityWeight": self.below(101), "ignorePreferredTermsOfExistingPods": self.once_in(2)});
            all.push(("InterPodAffinity", args));
        }
        all
    }
}
