//! Pods as the controllers keep them: 150,000 of them are in memory at a time.
//!
//! What pods of one template have in common is there once: a spec without what differs from pod to pod, and labels, are shared
//! by all that have the same. Of a status only what is read is kept.
//!
//! Invariant: nothing is left out that a controller reads. Who writes to a pod patches it, or reads it anew.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Weak};

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{
    self as core, Affinity, Container, EnvVar, PodCondition, PodExtendedResourceClaimStatus, PodIP,
    PodResourceClaimStatus, PodSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use parking_lot::Mutex;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::owners::Labelled;
use crate::volumes::inline;

/// Specs (or labels) that are alike at first sight and are compared with a new one, at most.
const CANDIDATES: usize = 8;
/// So many come before those that nobody has any more are looked for, beside as many as were there the last time.
const SWEEP: usize = 1024;
/// Conditions that a node keeps for itself: only a policy on failed pods may ask for them.
const QUIET: [&str; 3] = ["ContainersReady", "Initialized", "PodReadyToStartContainers"];

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Its metadata, all but who manages which field.
    pub metadata: Metadata,
    /// What it is to be.
    pub spec: Option<Spec>,
    /// What it is.
    pub status: Option<Status>,
}

/// Labels of pods.
pub type Labels = BTreeMap<String, String>;

/// A pod's metadata: its labels, which it shares, and all else. Derefs to the latter, which has no labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    /// Its labels; an `ObjectMeta` would need as much memory for them as for all else.
    pub labels: Option<Arc<Labels>>,
    own: ObjectMeta,
}

impl Metadata {
    /// The metadata as the API has them.
    pub fn whole(&self) -> ObjectMeta {
        ObjectMeta { labels: self.labels.as_deref().cloned(), ..self.own.clone() }
    }
}

impl Deref for Metadata {
    type Target = ObjectMeta;

    fn deref(&self) -> &ObjectMeta {
        &self.own
    }
}

impl DerefMut for Metadata {
    fn deref_mut(&mut self) -> &mut ObjectMeta {
        &mut self.own
    }
}

impl From<ObjectMeta> for Metadata {
    fn from(mut own: ObjectMeta) -> Self {
        let labels = own.labels.take().map(Arc::new);
        Self { labels, own }
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ObjectMeta::deserialize(deserializer).map(Self::from)
    }
}

impl Labelled for Metadata {
    fn label(&self, key: &str) -> Option<&str> {
        self.labels.as_ref()?.get(key).map(String::as_str)
    }
}

/// A pod's spec: what is its own, and what it shares. Derefs to the latter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spec {
    /// The node it is on.
    pub node_name: Option<String>,
    /// Its host name.
    pub hostname: Option<String>,
    /// What it wants to be near to; a daemon's names its node.
    pub affinity: Option<Box<Affinity>>,
    rest: Arc<PodSpec>,
}

impl Deref for Spec {
    type Target = PodSpec;

    fn deref(&self) -> &PodSpec {
        &self.rest
    }
}

impl From<PodSpec> for Spec {
    fn from(mut spec: PodSpec) -> Self {
        let (node_name, hostname) = (spec.node_name.take(), spec.hostname.take());
        let affinity = spec.affinity.take().map(Box::new);
        spec.dns_config = None;
        spec.host_aliases = None;
        spec.security_context = None;
        spec.containers.iter_mut().for_each(container);
        spec.init_containers.iter_mut().flatten().for_each(container);
        shrink(&mut spec.init_containers);
        shrink(&mut spec.tolerations);
        if let Some(volumes) = &mut spec.volumes {
            volumes.retain_mut(is_read);
        }
        spec.volumes = spec.volumes.take().filter(|volumes| !volumes.is_empty());
        shrink(&mut spec.volumes);
        Self { node_name, hostname, affinity, rest: Arc::new(spec) }
    }
}

impl<'de> Deserialize<'de> for Spec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PodSpec::deserialize(deserializer).map(Self::from)
    }
}

/// What is read of a pod's status.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Status {
    /// How far it is.
    pub phase: Option<String>,
    /// Since when.
    pub start_time: Option<Time>,
    /// What holds.
    pub conditions: Option<Vec<PodCondition>>,
    /// Its containers.
    pub container_statuses: Option<Vec<ContainerStatus>>,
    /// Its init containers.
    pub init_container_statuses: Option<Vec<ContainerStatus>>,
    /// Its address.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    /// Its addresses.
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIP>>,
    /// Claims for devices that were made for it.
    pub resource_claim_statuses: Option<Vec<PodResourceClaimStatus>>,
    /// The claim for its extended resources.
    pub extended_resource_claim_status: Option<Box<PodExtendedResourceClaimStatus>>,
}

/// What is read of a container's status.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerStatus {
    /// Which container.
    pub name: String,
    /// How often it was started again.
    pub restart_count: i32,
    /// What it does.
    pub state: Option<State>,
}

/// What a container does.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct State {
    /// It runs.
    pub running: Option<IgnoredAny>,
    /// It waits.
    pub waiting: Option<IgnoredAny>,
    /// It has ended.
    pub terminated: Option<Terminated>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Terminated {
    /// Its exit code.
    pub exit_code: i32,
    /// When.
    pub finished_at: Option<Time>,
}

impl Pod {
    /// The pod as the API has it, without what is not kept: of its status there is the phase.
    pub fn whole(&self) -> core::Pod {
        let spec = self.spec.as_ref().map(|spec| PodSpec {
            node_name: spec.node_name.clone(),
            hostname: spec.hostname.clone(),
            affinity: spec.affinity.as_deref().cloned(),
            ..(*spec.rest).clone()
        });
        let phase = |status: &Status| core::PodStatus { phase: status.phase.clone(), ..core::PodStatus::default() };
        core::Pod { metadata: self.metadata.whole(), spec, status: self.status.as_ref().map(phase) }
    }
}

/// What is written is not a pod that the API should get: it is what counts for a quota.
impl Serialize for Pod {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.whole().serialize(serializer)
    }
}

impl k8s_openapi::Resource for Pod {
    const API_VERSION: &'static str = core::Pod::API_VERSION;
    const GROUP: &'static str = core::Pod::GROUP;
    const KIND: &'static str = core::Pod::KIND;
    const VERSION: &'static str = core::Pod::VERSION;
    const URL_PATH_SEGMENT: &'static str = core::Pod::URL_PATH_SEGMENT;
    type Scope = NamespaceResourceScope;
}

impl k8s_openapi::Metadata for Pod {
    type Ty = ObjectMeta;

    /// Has no labels: who wants those of a pod asks the pod.
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata.own
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata.own
    }
}

/// Takes what nobody reads off pods, and lets those share their specs and labels that have the same.
pub fn trimmer() -> impl Fn(&mut Pod) + Send + Sync + 'static {
    let (specs, labels) = (Mutex::new(Shared::default()), Mutex::new(Shared::default()));
    move |pod| {
        trim(pod);
        if let Some(spec) = &mut pod.spec {
            specs.lock().share(look(&spec.rest), &mut spec.rest);
        }
        if let Some(own) = &mut pod.metadata.labels {
            let mut hasher = DefaultHasher::new();
            own.hash(&mut hasher);
            labels.lock().share(hasher.finish(), own);
        }
    }
}

fn trim(pod: &mut Pod) {
    pod.metadata.generate_name = None;
    shrink(&mut pod.metadata.owner_references);
    shrink(&mut pod.metadata.finalizers);
    let going = pod.metadata.deletion_timestamp.is_some();
    let Some(status) = &mut pod.status else { return };
    let failed = going || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if let Some(conditions) = status.conditions.as_mut().filter(|_| !failed) {
        conditions.retain(|condition| !QUIET.contains(&condition.type_.as_str()));
    }
    shrink(&mut status.conditions);
    shrink(&mut status.container_statuses);
    shrink(&mut status.init_container_statuses);
    shrink(&mut status.pod_ips);
}

fn shrink<T>(list: &mut Option<Vec<T>>) {
    if let Some(list) = list {
        list.shrink_to_fit();
    }
}

/// Names, images, ports, resources and restart policies are read, and which Secrets a container gets.
fn container(container: &mut Container) {
    let whole = std::mem::take(container);
    let secret = |e: &EnvVar| e.value_from.as_ref().is_some_and(|from| from.secret_key_ref.is_some());
    let env: Option<Vec<EnvVar>> = whole.env.map(|all| all.into_iter().filter(secret).collect());
    *container = Container {
        name: whole.name,
        image: whole.image,
        env: env.filter(|env| !env.is_empty()),
        env_from: whole.env_from,
        ports: whole.ports,
        resources: whole.resources,
        restart_policy: whole.restart_policy,
        ..Container::default()
    };
    shrink(&mut container.ports);
}

/// Whether a volume is looked at: claims, disks that are attached, and Secrets.
fn is_read(volume: &mut Volume) -> bool {
    if let Some(projected) = &mut volume.projected {
        projected.sources.iter_mut().for_each(|sources| sources.retain(|s| s.secret.is_some()));
        return projected.sources.as_ref().is_some_and(|sources| !sources.is_empty());
    }
    volume.persistent_volume_claim.is_some()
        || volume.ephemeral.is_some()
        || volume.secret.is_some()
        || inline::translated(volume).is_some()
}

/// What pods have in common.
struct Shared<T> {
    /// By what tells most of them apart.
    known: HashMap<u64, Vec<Weak<T>>>,
    /// How many came since it was looked for those that nobody has, and how many were left then.
    come: usize,
    left: usize,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { known: HashMap::new(), come: 0, left: 0 }
    }
}

impl<T: PartialEq> Shared<T> {
    /// Takes the one that others have in place of an equal one, which looks so.
    fn share(&mut self, look: u64, own: &mut Arc<T>) {
        let alike = self.known.entry(look).or_default();
        if let Some(same) = alike.iter().filter_map(Weak::upgrade).find(|other| **other == **own) {
            *own = same;
            return;
        }
        if alike.len() == CANDIDATES {
            alike.remove(0);
        }
        alike.push(Arc::downgrade(own));
        self.come += 1;
        if self.come > self.left + SWEEP {
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        self.known.retain(|_, alike| {
            alike.retain(|one| one.strong_count() > 0);
            !alike.is_empty()
        });
        self.come = 0;
        self.left = self.known.values().map(Vec::len).sum();
    }
}

/// A hash of what a spec looks like at first sight.
fn look(spec: &PodSpec) -> u64 {
    let mut hasher = DefaultHasher::new();
    for container in &spec.containers {
        (&container.name, &container.image).hash(&mut hasher);
    }
    (&spec.service_account_name, &spec.subdomain, &spec.priority_class_name).hash(&mut hasher);
    spec.volumes.iter().flatten().for_each(|volume| volume.name.hash(&mut hasher));
    for claim in spec.volumes.iter().flatten().filter_map(|v| v.persistent_volume_claim.as_ref()) {
        claim.claim_name.hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_read_stays() {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "generateName": "x", "annotations": {"a": "b"}},
            "spec": {
                "nodeName": "n", "hostname": "h", "securityContext": {"runAsUser": 1}, "dnsConfig": {},
                "tolerations": [{"operator": "Exists"}], "affinity": {"nodeAffinity": {}},
                "containers": [{"name": "c", "image": "i", "command": ["x"], "args": ["y"],
                    "ports": [{"containerPort": 80}], "resources": {"requests": {"cpu": "1"}},
                    "livenessProbe": {"tcpSocket": {"port": 1}}, "volumeMounts": [{"name": "claim", "mountPath": "/"}],
                    "envFrom": [{"secretRef": {"name": "s"}}],
                    "env": [{"name": "A", "value": "1"}, {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}],
                "initContainers": [{"name": "side", "restartPolicy": "Always", "command": ["x"]}],
                "volumes": [
                    {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
                    {"name": "both", "projected": {"sources": [{"downwardAPI": {}}, {"secret": {"name": "s"}}]}},
                    {"name": "empty", "emptyDir": {}}, {"name": "config", "configMap": {"name": "m"}},
                    {"name": "secret", "secret": {"secretName": "s"}},
                    {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "disk", "cinder": {"volumeID": "d"}}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "podIP": "10.0.0.1", "hostIP": "10.1.0.1",
                "startTime": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "Ready", "status": "True"}, {"type": "Initialized", "status": "True"}],
                "containerStatuses": [{"name": "c", "restartCount": 2, "image": "i", "imageID": "", "ready": true,
                    "state": {"terminated": {"exitCode": 3, "finishedAt": "2026-01-01T00:00:00Z"}}}]},
        }))
        .unwrap();
        trim(&mut pod);
        let kept: core::Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "annotations": {"a": "b"}},
            "spec": {
                "nodeName": "n", "hostname": "h", "tolerations": [{"operator": "Exists"}],
                "affinity": {"nodeAffinity": {}},
                "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
                    "resources": {"requests": {"cpu": "1"}}, "envFrom": [{"secretRef": {"name": "s"}}],
                    "env": [{"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}],
                "initContainers": [{"name": "side", "restartPolicy": "Always"}],
                "volumes": [
                    {"name": "both", "projected": {"sources": [{"secret": {"name": "s"}}]}},
                    {"name": "secret", "secret": {"secretName": "s"}},
                    {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "disk", "cinder": {"volumeID": "d"}}]},
            "status": {"phase": "Running"},
        }))
        .unwrap();
        assert_eq!(pod.whole(), kept);
        let status = pod.status.unwrap();
        assert_eq!(status.pod_ips.unwrap()[0].ip, "10.0.0.1");
        assert!(status.start_time.is_some());
        let conditions: Vec<String> = status.conditions.unwrap().into_iter().map(|c| c.type_).collect();
        assert_eq!(conditions, ["Ready"]);
        let container = &status.container_statuses.unwrap()[0];
        let ended = container.state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!((container.restart_count, ended.exit_code, ended.finished_at.is_some()), (2, 3, true));
    }

    #[test]
    fn of_a_pod_that_failed_or_goes_all_conditions_stay() {
        let conditions = |phase: &str, going: bool| {
            let mut pod: Pod = serde_json::from_value(json!({"metadata": {}, "status": {"phase": phase,
                "conditions": [{"type": "Initialized", "status": "False"}, {"type": "Mine", "status": "True"}]}}))
            .unwrap();
            if going {
                pod.metadata.deletion_timestamp = Some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
            }
            trim(&mut pod);
            pod.status.unwrap().conditions.unwrap().len()
        };
        for (phase, going, expected) in [("Running", false, 1), ("Running", true, 2), ("Failed", false, 2)] {
            assert_eq!(conditions(phase, going), expected, "{phase} {going}");
        }
    }

    #[test]
    fn equal_specs_and_labels_are_one() {
        let trim = trimmer();
        let pod = |node: &str, cpu: &str| {
            let mut pod: Pod = serde_json::from_value(
                json!({"metadata": {"labels": {"cpu": cpu}}, "spec": {"nodeName": node, "containers": [
                {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}),
            )
            .unwrap();
            trim(&mut pod);
            let labels = pod.metadata.labels.clone().unwrap();
            assert_eq!((labels.len(), pod.metadata.label("cpu"), pod.metadata.label("x")), (1, Some(cpu), None));
            assert_eq!(pod.whole().metadata.labels.as_ref(), Some(&*labels));
            (pod.spec.unwrap(), labels)
        };
        let ((one, labels), (other, same), (third, different)) = (pod("a", "1"), pod("b", "1"), pod("a", "2"));
        assert!(Arc::ptr_eq(&labels, &same) && !Arc::ptr_eq(&labels, &different));
        assert!(Arc::ptr_eq(&one.rest, &other.rest) && !Arc::ptr_eq(&one.rest, &third.rest));
        assert_eq!((one.node_name.as_deref(), other.node_name.as_deref()), (Some("a"), Some("b")));
    }

    #[test]
    fn specs_that_nobody_has_are_forgotten() {
        let mut shared = Shared::default();
        let spec = |name: usize| {
            let containers = vec![Container { name: name.to_string(), ..Container::default() }];
            Arc::new(PodSpec { containers, ..PodSpec::default() })
        };
        let mut share = |spec: &mut Arc<PodSpec>| {
            shared.share(look(spec), spec);
            shared.known.len()
        };
        let mut held = spec(0);
        share(&mut held);
        for name in 1..10 * SWEEP {
            let known = share(&mut spec(name));
            // Beside the one that is held, the last one was when it was looked for those that nobody has.
            assert!(known <= SWEEP + 4, "{known}");
        }
        let mut again = spec(0);
        share(&mut again);
        assert!(Arc::ptr_eq(&held, &again));
    }
}
