//! The report: what a server tells of its cluster. Machines read it too: keys are added, not renamed.

use serde::{Deserialize, Serialize};

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// The cluster's id, hexadecimal.
    pub cluster_id: String,
    /// When it was written, seconds since 1970.
    pub time: i64,
    /// Name of the server that wrote it.
    pub server: String,
    /// Version of that server's program.
    pub version: String,
    /// The servers.
    pub members: Vec<Member>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Pods, by phase.
    pub pods: Pods,
    /// Deployments, StatefulSets and DaemonSets.
    pub workloads: Vec<Workload>,
    /// The latest events, newest first.
    pub events: Vec<Event>,
    /// What is not as it should be, the gravest first.
    pub findings: Vec<Finding>,
}

/// A server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Member {
    /// Its id, hexadecimal.
    pub id: String,
    /// Its name.
    pub name: String,
    /// leader, follower or learner.
    pub role: String,
    /// Where other servers reach it.
    pub address: String,
    /// Why it does not answer; then the rest is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its term.
    pub term: u64,
    /// Last entry of the log that it has applied.
    pub applied_index: u64,
    /// Entries that it is behind the one that is furthest.
    pub lag_entries: u64,
    /// Its revision.
    pub revision: i64,
    /// Bytes of its store.
    pub store_bytes: u64,
    /// What it tells of itself; an older version tells less.
    #[serde(flatten)]
    pub figures: Figures,
}

/// What a server tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Figures {
    /// Version of its program.
    pub version: String,
    /// How long it runs.
    pub uptime_seconds: u64,
    /// Time of a write to the log's disk: half are faster.
    pub sync_median_micros: u32,
    /// One in a hundred is slower.
    pub sync_slow_micros: u32,
    /// Open watches of its store.
    pub watchers: u64,
    /// Requests answered since it started.
    pub requests: u64,
    /// Of them, those that it could not serve (5xx).
    pub errors: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// Resident memory.
    pub memory_bytes: u64,
    /// Room on its disk.
    pub disk_free_bytes: u64,
    /// Its clock, milliseconds since 1970.
    pub clock_millis: i64,
    /// Its certificates.
    pub certificates: Vec<Certificate>,
    /// Its latest copy of the store, if it makes any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    /// The virtual address, if it holds it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub virtual_address: String,
    /// Webhooks that it cannot reach.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<Webhook>,
}

/// A webhook that cannot be reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Webhook {
    /// Its host and port.
    pub place: String,
    /// Calls in a row that failed.
    pub failures: u32,
    /// How the latest one did.
    pub error: String,
}

/// A certificate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Certificate {
    /// What it is for: api, peer, ca, peer-ca.
    pub name: String,
    /// Its subject.
    pub subject: String,
    /// Its issuer.
    pub issuer: String,
    /// From when it is good, seconds since 1970.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
    /// Whether the server replaces it by itself.
    pub renews: bool,
}

/// The latest copies of the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Backup {
    /// Where they go.
    pub place: String,
    /// How often, in seconds.
    pub interval_seconds: u64,
    /// When the latest was made, seconds since 1970; 0 if none was.
    pub latest: i64,
    /// Why the last try failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its condition Ready: True, False, Unknown.
    pub ready: String,
    /// Why it is not.
    pub message: String,
    /// Version of its agent.
    pub version: String,
    /// Its address.
    pub address: String,
    /// Whether no new pods go there.
    pub cordoned: bool,
    /// Conditions that hold and should not.
    pub pressures: Vec<String>,
    /// Pods that are bound to it.
    pub pods: u64,
    /// Pods that it takes.
    pub pod_capacity: u64,
}

/// Pods, by phase.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pods {
    /// All.
    pub total: u64,
    /// Not bound, or not started.
    pub pending: u64,
    /// At work.
    pub running: u64,
    /// Ended well.
    pub succeeded: u64,
    /// Ended badly.
    pub failed: u64,
}

/// Something that keeps pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Workload {
    /// Deployment, StatefulSet or DaemonSet.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Pods that it wants.
    pub desired: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods of the newest form.
    pub updated: i32,
    /// Why it is not whole, as far as it says.
    pub message: String,
}

impl Workload {
    /// Whether all that it wants is there.
    pub fn is_whole(&self) -> bool {
        self.ready >= self.desired
    }
}

/// An event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Event {
    /// When, seconds since 1970.
    pub time: i64,
    /// Normal or Warning.
    pub kind: String,
    /// Why.
    pub reason: String,
    /// Whom it is about: Kind/name.
    pub object: String,
    /// Its namespace.
    pub namespace: String,
    /// What.
    pub message: String,
    /// How often.
    pub count: i32,
}

/// How grave a finding is; the order is that of gravity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work.
    Critical,
    /// Something will not work, or works badly.
    #[default]
    Warning,
    /// Good to know.
    Info,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Finding {
    /// How grave.
    pub severity: Severity,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub advice: String,
}
