//! What to do about the volumes of one node: which attachments to make, to end, and what the node's status says of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{AttachedVolume, Node, PersistentVolume, PersistentVolumeSpec};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use sha2::{Digest, Sha256};

use crate::kept::Pod;
use crate::node::health::ready_status;
use crate::pods;
use crate::volumes::{inline, migration};

/// Says that attaching is this controller's work, not the kubelet's.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// Says that volumes stay attached when their pods have ended.
const KEEP_TERMINATED: &str = "volumes.kubernetes.io/keep-terminated-pod-volumes";
/// Taint of nodes that are known to be off.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A volume that can be attached.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachable {
    /// The PersistentVolume.
    pub volume: String,
    /// Its CSI driver.
    pub driver: String,
    /// What the driver calls it.
    pub handle: String,
    /// Several nodes may have it at a time.
    pub shared: bool,
    /// What pods that name the volume themselves say of it; there is no PersistentVolume then.
    pub inline: Option<Box<PersistentVolumeSpec>>,
}

impl Attachable {
    /// Of a PersistentVolume; none if its driver attaches nothing. `attaches` says whether a driver does.
    pub fn of(volume: &PersistentVolume, attaches: impl Fn(&str) -> bool) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let (driver, handle) = migration::csi(volume).filter(|(driver, _)| attaches(driver))?;
        let name = volume.metadata.name.clone()?;
        Some(Self { volume: name, driver, handle, shared: is_shared(spec), inline: None })
    }

    /// Of a volume that pods name themselves, which events call `name`.
    pub fn inline(name: String, spec: PersistentVolumeSpec, attaches: impl Fn(&str) -> bool) -> Option<Self> {
        let csi = spec.csi.as_ref().filter(|csi| attaches(&csi.driver))?;
        let (driver, handle) = (csi.driver.clone(), csi.volume_handle.clone());
        Some(Self { volume: name, driver, handle, shared: is_shared(&spec), inline: Some(Box::new(spec)) })
    }

    /// What attachments are found by in their index.
    pub fn key(&self) -> String {
        self.inline.as_ref().and_then(|spec| inline::key(spec)).unwrap_or_else(|| self.volume.clone())
    }

    /// The name that nodes know it by.
    pub fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }

    /// The name of its attachment to a node.
    pub fn attachment(&self, node: &str) -> String {
        let hash = Sha256::digest(format!("{}{}{node}", self.handle, self.driver));
        hash.iter().fold("csi-".to_owned(), |name, byte| format!("{name}{byte:02x}"))
    }
}

fn is_shared(spec: &PersistentVolumeSpec) -> bool {
    let mut modes = spec.access_modes.iter().flatten().peekable();
    // A volume that states no mode is not known to be exclusive.
    modes.peek().is_none() || !modes.all(|m| matches!(m.as_str(), "ReadWriteOnce" | "ReadWriteOncePod"))
}

/// Whether this controller attaches volumes to a node.
pub fn is_managed(node: &Node) -> bool {
    node.metadata.annotations.as_ref().and_then(|a| a.get(MANAGED)).is_some_and(|v| v == "true")
}

/// Whether a pod on `node` needs its volumes attached.
pub fn needs_volumes(pod: &Pod, node: &Node) -> bool {
    let annotations = node.metadata.annotations.as_ref();
    if annotations.and_then(|a| a.get(KEEP_TERMINATED)).is_some_and(|v| v == "true") {
        return true;
    }
    let runs = |pod: &Pod| {
        let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
        // A state that says nothing is none that has ended.
        statuses.into_iter().any(|s| s.state.as_ref().is_none_or(|s| s.terminated.is_none() && s.waiting.is_none()))
    };
    !pods::is_finished(pod) && (!pods::is_going(pod) || runs(pod))
}

/// A volume that pods of the node need, and where else it is.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The volume.
    pub volume: Attachable,
    /// Who needs it.
    pub pods: Vec<Arc<Pod>>,
    /// Another node that has it.
    pub elsewhere: Option<String>,
}

/// What is to be done about one node.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Attachments to make: indexes of `wanted`.
    pub attach: Vec<usize>,
    /// Volumes that another node has: indexes of `wanted`.
    pub blocked: Vec<usize>,
    /// Attachments to end, by name, after the status is written.
    pub detach: Vec<String>,
    /// Attachments that are still in use and not wanted, by name.
    pub held: Vec<String>,
    /// `status.volumesAttached`, if it has to change.
    pub status: Option<Vec<AttachedVolume>>,
}

/// An attachment to the node.
pub struct Attached {
    /// The object.
    pub object: Arc<VolumeAttachment>,
    /// The name that the node knows the volume by.
    pub unique_name: String,
    /// It was not wanted for longer than a node is waited for.
    pub overdue: bool,
}

/// Whether the node said that it has a volume mounted.
fn in_use(node: Option<&Node>, unique_name: &str) -> bool {
    let status = node.and_then(|n| n.status.as_ref());
    status.is_some_and(|s| s.volumes_in_use.iter().flatten().any(|v| v == unique_name))
}

/// Whether nothing on the node can write any more, because somebody made sure that it is off.
fn is_off(node: &Node) -> bool {
    node.spec.iter().flat_map(|s| s.taints.iter().flatten()).any(|t| t.key == OUT_OF_SERVICE)
}

/// Decides. `node` is none if it is gone; then nothing is wanted.
pub fn plan(node: Option<&Node>, wanted: &[Wanted], there: &[Attached]) -> Plan {
    let mut plan = Plan::default();
    let name_of = |a: &Attached| a.object.metadata.name.clone().unwrap_or_default();
    let names: BTreeSet<String> = there.iter().map(name_of).collect();
    let node_name = node.and_then(|n| n.metadata.name.as_deref()).unwrap_or_default();
    for (index, one) in wanted.iter().enumerate() {
        if names.contains(&one.volume.attachment(node_name)) {
            continue;
        }
        let blocked = !one.volume.shared && one.elsewhere.is_some();
        if blocked { &mut plan.blocked } else { &mut plan.attach }.push(index);
    }
    let needed: BTreeSet<String> = wanted.iter().map(|w| w.volume.unique_name()).collect();
    let mut reported = BTreeMap::new();
    for one in there {
        let done = one.object.status.as_ref().is_some_and(|s| s.attached);
        let going = one.object.metadata.deletion_timestamp.is_some();
        let detach = !needed.contains(&one.unique_name) && !going;
        let unsafe_now = detach && in_use(node, &one.unique_name);
        let healthy = node.is_none_or(|n| ready_status(n) == "True");
        let forced = node.is_some_and(is_off) || (one.overdue && !healthy);
        if detach && (!unsafe_now || forced) {
            plan.detach.push(name_of(one));
        } else if detach {
            plan.held.push(name_of(one));
        }
        let leaves = going || plan.detach.last() == Some(&name_of(one));
        if done && !leaves {
            reported.insert(one.unique_name.clone(), String::new());
        }
    }
    let Some(node) = node else { return plan };
    let before = node.status.as_ref().and_then(|s| s.volumes_attached.clone()).unwrap_or_default();
    let said: BTreeSet<&String> = before.iter().map(|v| &v.name).collect();
    if said != reported.keys().collect() {
        let volume = |(name, device_path)| AttachedVolume { name, device_path };
        plan.status = Some(reported.into_iter().map(volume).collect());
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(ready: &str, in_use: &[&str], attached: &[&str], off: bool) -> Node {
        let unique = |n: &&str| format!("kubernetes.io/csi/d^{n}");
        let taints = if off { json!([{"key": OUT_OF_SERVICE, "effect": "NoExecute"}]) } else { json!([]) };
        let attached: Vec<Value> = attached.iter().map(|n| json!({"name": unique(n), "devicePath": ""})).collect();
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}, "status": {
            "conditions": [{"type": "Ready", "status": ready}], "volumesAttached": attached,
            "volumesInUse": in_use.iter().map(unique).collect::<Vec<_>>()}}))
        .unwrap()
    }

    fn volume(name: &str, shared: bool) -> Attachable {
        Attachable { volume: name.into(), driver: "d".into(), handle: name.into(), shared, inline: None }
    }

    fn wanted(name: &str, shared: bool, elsewhere: Option<&str>) -> Wanted {
        Wanted { volume: volume(name, shared), pods: Vec::new(), elsewhere: elsewhere.map(str::to_owned) }
    }

    fn there(name: &str, attached: bool, going: bool, overdue: bool) -> Attached {
        let mut value = json!({"metadata": {"name": volume(name, false).attachment("n")},
            "spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": name}},
            "status": {"attached": attached}});
        if going {
            value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        let object = Arc::new(serde_json::from_value(value).unwrap());
        Attached { object, unique_name: volume(name, false).unique_name(), overdue }
    }

    #[test]
    fn decides() {
        type Row =
            (&'static str, Option<Node>, Vec<Wanted>, Vec<Attached>, (usize, usize, usize, usize), Option<usize>);
        let ready = |in_use: &[&str], attached: &[&str]| Some(node("True", in_use, attached, false));
        let table: Vec<Row> = vec![
            ("a volume is attached", ready(&[], &[]), vec![wanted("a", false, None)], vec![], (1, 0, 0, 0), None),
            ("not from another node", ready(&[], &[]), vec![wanted("a", false, Some("m"))], vec![], (0, 1, 0, 0), None),
            ("unless it is shared", ready(&[], &[]), vec![wanted("a", true, Some("m"))], vec![], (1, 0, 0, 0), None),
            (
                "the driver works",
                ready(&[], &[]),
                vec![wanted("a", false, None)],
                vec![there("a", false, false, false)],
                (0, 0, 0, 0),
                None,
            ),
            (
                "it is attached and told",
                ready(&[], &[]),
                vec![wanted("a", false, None)],
                vec![there("a", true, false, false)],
                (0, 0, 0, 0),
                Some(1),
            ),
            ("in use", ready(&["a"], &["a"]), vec![], vec![there("a", true, false, false)], (0, 0, 0, 1), None),
            ("in use, late", ready(&["a"], &["a"]), vec![], vec![there("a", true, false, true)], (0, 0, 0, 1), None),
            (
                "in use, late, not ready",
                Some(node("Unknown", &["a"], &["a"], false)),
                vec![],
                vec![there("a", true, false, true)],
                (0, 0, 1, 0),
                Some(0),
            ),
            (
                "in use, the node is off",
                Some(node("Unknown", &["a"], &["a"], true)),
                vec![],
                vec![there("a", true, false, false)],
                (0, 0, 1, 0),
                Some(0),
            ),
            ("not in use", ready(&[], &["a"]), vec![], vec![there("a", true, false, false)], (0, 0, 1, 0), Some(0)),
            ("the node is gone", None, vec![], vec![there("a", true, false, false)], (0, 0, 1, 0), None),
            ("it goes", ready(&[], &[]), vec![], vec![there("a", true, true, false)], (0, 0, 0, 0), None),
            (
                "it goes and comes again",
                ready(&[], &[]),
                vec![wanted("a", false, None)],
                vec![there("a", true, true, false)],
                (0, 0, 0, 0),
                None,
            ),
        ];
        for (what, node, wanted, there, counts, status) in table {
            let plan = plan(node.as_ref(), &wanted, &there);
            let got = (plan.attach.len(), plan.blocked.len(), plan.detach.len(), plan.held.len());
            assert_eq!((got, plan.status.map(|s| s.len())), (counts, status), "{what}");
        }
    }

    #[test]
    fn names_are_upstreams() {
        // The hash is that of handle, driver and node joined.
        let name = volume("vol", false).attachment("node");
        assert_eq!(name.len(), 68);
        let hash = Sha256::digest("voldnode");
        assert!(name.ends_with(&format!("{:02x}{:02x}", hash[30], hash[31])));
    }

    #[test]
    fn modes_and_drivers_decide_what_is_attached() {
        let volume = |modes: &[&str]| -> PersistentVolume {
            serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": {"accessModes": modes,
                "csi": {"driver": "d", "volumeHandle": "h"}}}))
            .unwrap()
        };
        let shared = |modes: &[&str]| Attachable::of(&volume(modes), |_| true).map(|a| a.shared);
        assert_eq!(shared(&["ReadWriteOnce"]), Some(false));
        assert_eq!(shared(&["ReadWriteOncePod"]), Some(false));
        assert_eq!(shared(&["ReadWriteOnce", "ReadOnlyMany"]), Some(true));
        assert_eq!(shared(&[]), Some(true));
        assert_eq!(Attachable::of(&volume(&[]), |_| false), None);
        // A disk of a plugin that moved is its driver's.
        let mut old = volume(&["ReadWriteOnce"]);
        let spec = old.spec.as_mut().unwrap();
        spec.csi = None;
        spec.aws_elastic_block_store = Some(serde_json::from_value(json!({"volumeID": "vol-1"})).unwrap());
        let name = Attachable::of(&old, |_| true).map(|a| a.unique_name());
        assert_eq!(name.as_deref(), Some("kubernetes.io/csi/ebs.csi.aws.com^vol-1"));
    }

    #[test]
    fn pods_need_volumes_until_their_containers_have_ended() {
        let node = node("True", &[], &[], false);
        for (phase, going, state, expected) in [
            ("Running", false, json!({"running": {}}), true),
            ("Pending", false, json!(null), true),
            ("Succeeded", false, json!({"terminated": {"exitCode": 0}}), false),
            ("Running", true, json!({"running": {}}), true),
            ("Running", true, json!({"terminated": {"exitCode": 0}}), false),
        ] {
            let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": []}, "status": {"phase": phase}});
            if going {
                pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            if !state.is_null() {
                pod["status"]["containerStatuses"] = json!([{"name": "c", "image": "i", "imageID": "", "ready": true,
                    "restartCount": 0, "state": state}]);
            }
            let pod: Pod = serde_json::from_value(pod).unwrap();
            assert_eq!(needs_volumes(&pod, &node), expected, "{phase} {going} {state}");
        }
    }
}
