//! What a running server knows of itself, and what it answers other servers about that.

use std::sync::{Arc, OnceLock};

use futures::FutureExt;
use keelson_apiserver::ApiServer;
use keelson_raft::Replica;
use keelson_status::Figures;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use super::certs::{Keeper, Order};
use crate::identity::{DataDir, Identity};

/// What servers ask one another.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Question {
    /// How are you?
    Figures,
    /// Change your certificates. It may hold keys: it goes over the servers' own mutually authenticated connections.
    Certificates(Order),
}

/// A server's knowledge of itself.
pub struct Care {
    /// Its part of the store.
    pub replica: Replica,
    /// Who it is.
    pub identity: Identity,
    /// Its certificates and keys.
    pub keeper: Arc<Keeper>,
    /// Its latest snapshots, if it makes any.
    pub backup: RwLock<Option<keelson_status::Backup>>,
    /// The virtual address while it holds it.
    pub virtual_address: RwLock<String>,
    /// Its API, as soon as it is there.
    server: OnceLock<Arc<ApiServer>>,
    data_dir: std::path::PathBuf,
}

impl Care {
    /// Begins to answer others.
    pub fn new(replica: Replica, identity: Identity, keeper: Arc<Keeper>, data: &DataDir) -> Arc<Self> {
        let care = Arc::new(Self {
            replica: replica.clone(),
            identity,
            keeper,
            backup: RwLock::new(None),
            virtual_address: RwLock::new(String::new()),
            server: OnceLock::new(),
            data_dir: data.join(""),
        });
        let answers = care.clone();
        replica.answer_others(Box::new(move |question| {
            let care = answers.clone();
            async move { care.answer(&question).await }.boxed()
        }));
        care
    }

    /// Names the API whose requests are counted.
    pub fn serves(&self, server: Arc<ApiServer>) {
        let _ = self.server.set(server);
    }

    /// A client of this server's own API, once it is there.
    pub fn client(&self) -> Option<keelson_client::Client> {
        self.server.get().map(|server| crate::server::client(server, "system:keelson", "keelson"))
    }

    async fn answer(&self, question: &[u8]) -> Result<Vec<u8>, String> {
        // The text of the error is left out: it may quote what was asked.
        let question = serde_json::from_slice(question).map_err(|_| "this version does not know the question")?;
        let answer = match question {
            Question::Figures => serde_json::to_vec(&self.figures()),
            Question::Certificates(order) => {
                self.keeper.follow(order).await.map_err(|error| format!("{error:#}"))?;
                Ok(b"{}".to_vec())
            }
        };
        answer.map_err(|error| error.to_string())
    }

    /// Asks another server, or this one.
    pub async fn ask(&self, id: u64, question: &Question) -> Result<Vec<u8>, String> {
        let question = serde_json::to_vec(question).map_err(|error| error.to_string())?;
        self.replica.ask_other(id, question).await.map_err(|error| error.to_string())
    }

    /// How this server is.
    pub fn figures(&self) -> Figures {
        let requests = self.server.get().map(|server| server.figures()).unwrap_or_default();
        let sync = self.replica.sync_times();
        let now = jiff::Timestamp::now();
        Figures {
            version: super::version::own().into(),
            uptime_seconds: requests.uptime.as_secs(),
            sync_median_micros: sync.median_micros,
            sync_slow_micros: sync.slow_micros,
            watchers: self.replica.machine().watchers() as u64,
            requests: requests.requests,
            errors: requests.errors,
            in_flight: requests.in_flight,
            memory_bytes: resident_bytes(),
            disk_free_bytes: free_bytes(&self.data_dir),
            clock_millis: now.as_millisecond(),
            certificates: self.keeper.list(),
            backup: self.backup.read().clone(),
            virtual_address: self.virtual_address.read().clone(),
            webhooks: self.server.get().map(|server| failing_webhooks(server)).unwrap_or_default(),
        }
    }
}

fn failing_webhooks(server: &ApiServer) -> Vec<keelson_status::Webhook> {
    let failing = server.failing_webhooks().into_iter();
    failing.map(|one| keelson_status::Webhook { place: one.place, failures: one.failures, error: one.error }).collect()
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn free_bytes(dir: &std::path::Path) -> u64 {
    nix::sys::statvfs::statvfs(dir).map_or(0, |stat| stat.blocks_available().saturating_mul(stat.fragment_size()))
}
