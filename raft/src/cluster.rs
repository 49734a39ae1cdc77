//! What a store's cluster is, apart from its keys: members, leadership, hashes. One member alone is a cluster too.
//!
//! Invariant: member ids are never 0 and never used twice in a cluster.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use keelson_store::{ChainHash, Kv, KvError, LocalKv, Revision, StateMachine};
use parking_lot::RwLock;
use sha2::{Digest, Sha256};

/// A member of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its id, never 0.
    pub id: u64,
    /// Its name; empty until it has started.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has started.
    pub client_urls: Vec<String>,
    /// Whether it only receives the log and has no vote.
    pub is_learner: bool,
}

/// How this member stands in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The current term.
    pub term: u64,
    /// The leader's id, 0 if none is known.
    pub leader: u64,
    /// Index of the last entry known to be committed.
    pub committed: u64,
    /// Index of the last entry applied here.
    pub applied: u64,
    /// Whether this member is a learner.
    pub is_learner: bool,
    /// What is wrong with this member, in words for an operator; empty if nothing is.
    pub errors: Vec<String>,
}

/// What a change of the cluster is refused for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum ClusterError {
    /// No member has this id.
    #[error("member not found")]
    MemberNotFound,
    /// A member has one of these peer URLs.
    #[error("Peer URLs already exists")]
    PeerUrlExists,
    /// A URL is malformed, or there is none.
    #[error("given member URLs are invalid")]
    BadUrls,
    /// Too few members would be running after the change.
    #[error("re-configuration failed due to not enough started members")]
    NotEnoughStarted,
    /// Only learners can be promoted.
    #[error("can only promote a learner member")]
    NotLearner,
    /// The learner lags behind.
    #[error("can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    /// There are enough learners.
    #[error("too many learner members in cluster")]
    TooManyLearners,
    /// Leadership cannot go to this member.
    #[error("bad leader transferee")]
    BadTransferee,
    /// This member does not lead.
    #[error("not leader")]
    NotLeader,
    /// This cluster cannot do this at all; says why.
    #[error("{0}")]
    Unsupported(String),
    /// What the store said.
    #[error(transparent)]
    Kv(#[from] KvError),
}

/// The cluster as one of its members sees it.
pub trait Cluster: Send + Sync + 'static {
    /// Id of the cluster.
    fn cluster_id(&self) -> u64;

    /// Id of this member.
    fn member_id(&self) -> u64;

    /// How this member stands.
    fn standing(&self) -> Standing;

    /// The current term; asked for with each answer.
    fn term(&self) -> u64 {
        self.standing().term
    }

    /// The members ordered by id; asked of the leader if `linearizable`.
    fn members(&self, linearizable: bool) -> BoxFuture<'_, Result<Vec<Member>, ClusterError>>;

    /// Adds a member that is reached at `peer_urls`; it is not started by this.
    fn add(&self, peer_urls: Vec<String>, learner: bool) -> BoxFuture<'_, Result<Member, ClusterError>>;

    /// Removes a member for good.
    fn remove(&self, id: u64) -> BoxFuture<'_, Result<(), ClusterError>>;

    /// Changes where a member is reached.
    fn update(&self, id: u64, peer_urls: Vec<String>) -> BoxFuture<'_, Result<(), ClusterError>>;

    /// Gives a learner its vote.
    fn promote(&self, id: u64) -> BoxFuture<'_, Result<(), ClusterError>>;

    /// Hands leadership over from this member; returns once it has moved.
    fn move_leader(&self, to: u64) -> BoxFuture<'_, Result<(), ClusterError>>;

    /// Adds this member's own numbers to its metrics, as text for Prometheus.
    fn write_figures(&self, _out: &mut String) {}

    /// The chain hash of this member's history at a revision that is not compacted (0: the current one), and that
    /// revision.
    fn hash_at(&self, revision: Revision) -> Result<(Revision, ChainHash), KvError>;

    /// Returns once history below `revision` is gone from this member's disk.
    fn compacted(&self, revision: Revision) -> BoxFuture<'_, Result<(), KvError>>;
}

/// The id of a member that a cluster is made with: every member computes the same from the same settings.
pub fn member_id_of(peer_urls: &[String], cluster_token: &str) -> u64 {
    let mut urls = peer_urls.to_vec();
    urls.sort();
    digest(urls.iter().map(String::as_bytes).chain([cluster_token.as_bytes()]))
}

/// The id of a cluster that is made of these members.
pub fn cluster_id_of(members: &[u64]) -> u64 {
    let mut ids: Vec<_> = members.iter().map(|id| id.to_be_bytes()).collect();
    ids.sort_unstable();
    digest(ids.iter().map(<[u8; 8]>::as_slice))
}

/// A number made of parts, never 0 nor all ones.
fn digest<'a>(parts: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let sum: [u8; 32] = hash.finalize().into();
    let mut head = [0; 8];
    head.copy_from_slice(&sum[..8]);
    u64::from_be_bytes(head).clamp(1, u64::MAX - 1)
}

/// Whether text can be a member's URL: `http` or `https`, a host, a port, no path.
pub fn is_member_url(text: &str) -> bool {
    let Some(authority) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else { return false };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    match authority.rsplit_once(':') {
        Some((host, port)) => !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok(),
        None => false,
    }
}

/// The cluster of a local store: one member that always leads.
pub struct SingleMember {
    kv: Arc<LocalKv>,
    cluster_id: u64,
    member: RwLock<Member>,
}

impl SingleMember {
    /// A cluster of `member` alone, over its store.
    pub fn new(kv: Arc<LocalKv>, cluster_id: u64, member: Member) -> Self {
        Self { kv, cluster_id, member: RwLock::new(member) }
    }

    fn unsupported<T: Send + 'static>(&self) -> BoxFuture<'_, Result<T, ClusterError>> {
        let why = "this store was started for one member alone and cannot grow".to_owned();
        futures::future::ready(Err(ClusterError::Unsupported(why))).boxed()
    }

    /// `Ok` if `id` is this member's.
    fn known(&self, id: u64) -> Result<(), ClusterError> {
        if id == self.member.read().id { Ok(()) } else { Err(ClusterError::MemberNotFound) }
    }
}

impl Cluster for SingleMember {
    fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    fn member_id(&self) -> u64 {
        self.member.read().id
    }

    fn standing(&self) -> Standing {
        let applied = self.kv.view().applied_index();
        let errors = self.kv.machine().failure().map(|fatal| fatal.to_string()).into_iter().collect();
        Standing { term: 1, leader: self.member_id(), committed: applied, applied, is_learner: false, errors }
    }

    fn members(&self, _linearizable: bool) -> BoxFuture<'_, Result<Vec<Member>, ClusterError>> {
        futures::future::ready(Ok(vec![self.member.read().clone()])).boxed()
    }

    fn add(&self, peer_urls: Vec<String>, _learner: bool) -> BoxFuture<'_, Result<Member, ClusterError>> {
        if peer_urls.is_empty() || !peer_urls.iter().all(|url| is_member_url(url)) {
            return futures::future::ready(Err(ClusterError::BadUrls)).boxed();
        }
        if peer_urls.iter().any(|url| self.member.read().peer_urls.contains(url)) {
            return futures::future::ready(Err(ClusterError::PeerUrlExists)).boxed();
        }
        self.unsupported()
    }

    fn remove(&self, id: u64) -> BoxFuture<'_, Result<(), ClusterError>> {
        let answer = self.known(id).and(Err(ClusterError::NotEnoughStarted));
        futures::future::ready(answer).boxed()
    }

    fn update(&self, id: u64, peer_urls: Vec<String>) -> BoxFuture<'_, Result<(), ClusterError>> {
        let answer = self.known(id).and_then(|()| {
            if peer_urls.is_empty() || !peer_urls.iter().all(|url| is_member_url(url)) {
                return Err(ClusterError::BadUrls);
            }
            self.member.write().peer_urls = peer_urls;
            Ok(())
        });
        futures::future::ready(answer).boxed()
    }

    fn promote(&self, id: u64) -> BoxFuture<'_, Result<(), ClusterError>> {
        let answer = self.known(id).and(Err(ClusterError::NotLearner));
        futures::future::ready(answer).boxed()
    }

    fn move_leader(&self, to: u64) -> BoxFuture<'_, Result<(), ClusterError>> {
        let answer = if self.known(to).is_ok() { Ok(()) } else { Err(ClusterError::BadTransferee) };
        futures::future::ready(answer).boxed()
    }

    fn hash_at(&self, revision: Revision) -> Result<(Revision, ChainHash), KvError> {
        let view = self.kv.view();
        if revision <= 0 || revision == view.revision() {
            return Ok((view.revision(), view.hash()));
        }
        Ok((revision, self.kv.machine().hash_at(revision)?))
    }

    fn compacted(&self, revision: Revision) -> BoxFuture<'_, Result<(), KvError>> {
        wait_compacted(self.kv.machine(), revision).boxed()
    }
}

/// Waits until a state machine has forgotten what lies below `revision`.
pub async fn wait_compacted(machine: &StateMachine, revision: Revision) -> Result<(), KvError> {
    const LOOK: Duration = Duration::from_millis(10);
    loop {
        if let Some(fatal) = machine.failure() {
            return Err(fatal.into());
        }
        if machine.compacted_on_disk()? >= revision {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::is_member_url;

    #[test]
    fn urls_of_members_have_scheme_host_and_port_only() {
        for (url, good) in [
            ("http://127.0.0.1:2380", true),
            ("https://a.example:2380", true),
            ("https://[::1]:2380", true),
            ("127.0.0.1:2380", false),
            ("http://127.0.0.1", false),
            ("http://:2380", false),
            ("http://a:99999", false),
            ("http://a/b:1", false),
            ("unix://x:1", false),
        ] {
            assert_eq!(is_member_url(url), good, "{url}");
        }
    }
}
