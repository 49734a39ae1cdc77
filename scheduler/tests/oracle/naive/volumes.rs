//! What volumes demand of nodes: VolumeRestrictions, NodeVolumeLimits, VolumeBinding, VolumeZone.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Cluster, amount, label, list, name, namespace, term_holds, text};

/// The driver whose volumes nodes attach a limited number of.
pub const DRIVER: &str = "disks.example.com";
const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

fn claim_names(pod: &Value) -> impl Iterator<Item = &str> {
    list(&pod["spec"]["volumes"]).filter_map(|v| v["persistentVolumeClaim"]["claimName"].as_str())
}

/// Whether two volumes of pods on one node are the same disk and must not be.
fn conflict(a: &Value, b: &Value) -> bool {
    let same = |kind: &str, field: &str| a[kind][field].is_string() && a[kind][field] == b[kind][field];
    let reads = |kind: &str| a[kind]["readOnly"] == true && b[kind]["readOnly"] == true;
    let overlap = || list(&a["rbd"]["monitors"]).any(|m| list(&b["rbd"]["monitors"]).any(|n| m == n));
    same("awsElasticBlockStore", "volumeID")
        || (same("gcePersistentDisk", "pdName") && !reads("gcePersistentDisk"))
        || (same("iscsi", "iqn") && !reads("iscsi"))
        || (same("rbd", "image") && a["rbd"]["pool"] == b["rbd"]["pool"] && overlap() && !reads("rbd"))
}

impl Cluster {
    fn claim(&self, pod: &Value, name: &str) -> Option<&Value> {
        self.claims.get(&(namespace(pod).to_owned(), name.to_owned()))
    }

    fn is_bound(&self, claim: &Value) -> bool {
        claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"].is_string()
    }

    fn class(&self, claim: &Value) -> Option<&Value> {
        self.classes.get(text(&claim["spec"]["storageClassName"]))
    }

    /// The plugin that refuses the pod whatever the node.
    pub fn rejects(&self, pod: &Value) -> Option<&'static str> {
        if claim_names(pod).any(|name| self.claim(pod, name).is_none()) {
            return Some("VolumeRestrictions");
        }
        let immediate = |name: &str| {
            let claim = self.claim(pod, name).unwrap_or(&Value::Null);
            let waits = self.class(claim).is_some_and(|c| c["volumeBindingMode"] == "WaitForFirstConsumer");
            !self.is_bound(claim) && !waits
        };
        claim_names(pod).any(immediate).then_some("VolumeBinding")
    }

    /// The plugin for volumes that refuses a node, if one does.
    pub fn volumes_refuse(&self, pod: &Value, node: &Value) -> Option<&'static str> {
        let disks = list(&pod["spec"]["volumes"]);
        let taken = |volume: &Value| self.on(node).any(|p| list(&p["spec"]["volumes"]).any(|v| conflict(volume, v)));
        if disks.clone().any(taken) || self.exclusive_in_use(pod) {
            return Some("VolumeRestrictions");
        }
        if self.over_limit(pod, node) {
            return Some("NodeVolumeLimits");
        }
        if !self.can_bind(pod, node) {
            return Some("VolumeBinding");
        }
        (!self.in_zones(pod, node)).then_some("VolumeZone")
    }

    fn exclusive_in_use(&self, pod: &Value) -> bool {
        claim_names(pod).any(|name| {
            let claim = self.claim(pod, name).unwrap_or(&Value::Null);
            let exclusive = list(&claim["spec"]["accessModes"]).any(|m| m == "ReadWriteOncePod");
            let uses = |p: &Value| namespace(p) == namespace(pod) && claim_names(p).any(|other| other == name);
            exclusive && self.pods.iter().any(uses)
        })
    }

    fn is_of_driver(&self, volume: &str) -> bool {
        self.volumes.get(volume).is_some_and(|v| v["spec"]["csi"]["driver"] == DRIVER)
    }

    /// The volumes of pods' claims that the driver attaches. A claim without a volume counts as itself; two claims that name
    /// one volume are two.
    fn used_by<'a>(&'a self, pods: impl Iterator<Item = &'a Value>) -> BTreeSet<(String, String, String)> {
        let mut found = BTreeSet::new();
        for pod in pods {
            for claimed in claim_names(pod) {
                let Some(claim) = self.claim(pod, claimed) else { continue };
                let volume = text(&claim["spec"]["volumeName"]);
                let by_driver = match volume {
                    "" => self.class(claim).is_some_and(|c| c["provisioner"] == DRIVER),
                    volume => self.is_of_driver(volume),
                };
                if by_driver {
                    found.insert((namespace(pod).to_owned(), claimed.to_owned(), volume.to_owned()));
                }
            }
        }
        found
    }

    fn over_limit(&self, pod: &Value, node: &Value) -> bool {
        let Some(limit) = self.limits.get(name(node)) else { return false };
        let there = self.used_by(self.on(node));
        let attached: BTreeSet<&str> =
            self.attachments.values().filter(|(at, _)| at == name(node)).map(|(_, v)| &**v).collect();
        let new = self.used_by(std::iter::once(pod));
        let new = new.difference(&there).filter(|(.., volume)| !attached.contains(volume.as_str())).count();
        let left =
            attached.iter().filter(|v| self.is_of_driver(v) && !there.iter().any(|(.., used)| used == *v)).count();
        new > 0 && (there.len() + left + new) as i64 > *limit
    }

    fn usable(&self, volume: &Value, node: &Value) -> bool {
        let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
        terms.is_null() || list(terms).any(|t| term_holds(t, node))
    }

    fn can_bind(&self, pod: &Value, node: &Value) -> bool {
        let mut open: Vec<&Value> = Vec::new();
        for claim in claim_names(pod).filter_map(|name| self.claim(pod, name)) {
            if !self.is_bound(claim) {
                open.push(claim);
            } else if !self.volumes.get(text(&claim["spec"]["volumeName"])).is_some_and(|v| self.usable(v, node)) {
                return false;
            }
        }
        let size = |object: &Value| amount(object, false);
        open.sort_by_key(|claim| size(&claim["spec"]["resources"]["requests"]["storage"]));
        let mut chosen: Vec<&str> = Vec::new();
        for claim in open {
            let request = size(&claim["spec"]["resources"]["requests"]["storage"]);
            let suits = |v: &&Value| {
                v["spec"]["claimRef"].is_null()
                    && v["spec"]["storageClassName"] == claim["spec"]["storageClassName"]
                    && size(&v["spec"]["capacity"]["storage"]) >= request
                    && list(&claim["spec"]["accessModes"]).all(|m| list(&v["spec"]["accessModes"]).any(|n| m == n))
                    && self.usable(v, node)
                    && !chosen.contains(&name(v))
            };
            let smallest = self.volumes.values().filter(suits).min_by_key(|v| size(&v["spec"]["capacity"]["storage"]));
            match smallest {
                Some(volume) => chosen.push(name(volume)),
                None if self.can_provision(claim, node) => {}
                None => return false,
            }
        }
        true
    }

    fn can_provision(&self, claim: &Value, node: &Value) -> bool {
        let Some(class) = self.class(claim).filter(|c| c["provisioner"] != "kubernetes.io/no-provisioner") else {
            return false;
        };
        let topologies = &class["allowedTopologies"];
        let holds = |e: &Value| label(node, text(&e["key"])).is_some_and(|v| list(&e["values"]).any(|w| text(w) == v));
        list(topologies).count() == 0 || list(topologies).any(|t| list(&t["matchLabelExpressions"]).all(holds))
    }

    fn in_zones(&self, pod: &Value, node: &Value) -> bool {
        if LABELS.iter().all(|l| label(node, l).is_none()) {
            return true;
        }
        let volumes = claim_names(pod).filter_map(|name| self.claim(pod, name));
        let volumes = volumes.filter_map(|claim| self.volumes.get(claim["spec"]["volumeName"].as_str()?));
        let agrees = |volume: &Value| {
            LABELS.iter().all(|l| {
                label(volume, l).is_none_or(|zones| label(node, l).is_some_and(|z| zones.split("__").any(|w| w == z)))
            })
        };
        volumes.into_iter().all(agrees)
    }
}
