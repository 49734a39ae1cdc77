//! Compaction while keys change: each client has keys of its own, so that it knows what every revision of them holds. It
//! forgets history up to one of its changes and looks whether that change and all after it are still there.

use std::time::Duration;

use async_trait::async_trait;
use keelson_proto::etcd::etcdserverpb as pb;
use parking_lot::Mutex;
use pb::watch_request::RequestUnion;
use tokio_stream::wrappers::ReceiverStream;

use super::{Checked, Workload};
use crate::checkers::compaction::{self, Change, Look, Told};
use crate::context::Process;
use crate::etcd::{self, Client, Failure};

/// Keys of a client.
const KEYS: u64 = 4;
/// Changes between looks, at most.
const CHANGES: u64 = 6;
/// Longest pause between changes.
const PAUSE: Duration = Duration::from_millis(30);
/// How long a watch may bring nothing before the look ends.
const SILENCE: Duration = Duration::from_secs(2);
/// Messages that wait in a watch's request stream.
const REQUESTS: usize = 1;

/// The workload.
#[derive(Default)]
pub struct Compactions {
    told: Mutex<Vec<Told>>,
}

/// What a client knows of its keys, below a prefix that it leaves when it loses track of them.
struct Own {
    prefix: String,
    told: Told,
}

#[async_trait]
impl Workload for Compactions {
    async fn client(&self, process: &mut Process) {
        while process.goes_on() {
            let mut own = Own { prefix: format!("compaction/{}/", process.shared.unique()), told: Told::default() };
            while process.goes_on() && own.change(process).await {
                own.look(process).await;
            }
            self.told.lock().push(own.told);
        }
    }

    fn check(&self) -> Checked {
        let told = self.told.lock();
        let operations = told.iter().map(|told| told.changes.len() + told.looks.len()).sum();
        Checked { operations, verdict: compaction::check(&told) }
    }
}

impl Own {
    fn note(&mut self, look: Look) {
        self.told.looks.push((self.told.changes.len(), look));
    }

    /// Some changes; false when the outcome of one is unknown.
    async fn change(&mut self, process: &mut Process) -> bool {
        for _ in 0..=process.below(CHANGES) {
            let key = format!("{}{}", self.prefix, process.below(KEYS));
            let value = (process.below(3) > 0).then(|| process.shared.unique().to_string());
            let client = process.client();
            let call = async {
                match &value {
                    Some(value) => client.put(&key, value.clone(), 0).await.map(|answer| (answer.header, 1)),
                    None => client.delete(&key).await.map(|answer| (answer.header, answer.deleted)),
                }
            };
            let (operation, answer) = process.perform((), true, call, |_| ()).await;
            match answer {
                Some((header, changed)) if changed > 0 => {
                    self.told.changes.push(Change { revision: etcd::revision(&header), key, value });
                }
                Some(_) => {}
                None if operation.outcome == crate::history::Outcome::Failed => {}
                None => return false,
            }
            process.think(PAUSE).await;
        }
        true
    }

    /// Forgets history up to one of the latest changes, now and then, and looks at what is left.
    async fn look(&mut self, process: &mut Process) {
        let recent = self.told.changes.len().min(CHANGES as usize);
        if recent == 0 {
            return;
        }
        let back = process.below(recent as u64) as usize;
        let Some(revision) = self.told.changes.iter().rev().nth(back).map(|change| change.revision) else { return };
        let mut forgotten = false;
        if process.below(2) == 0 {
            let client = process.client();
            let call = client.compact(revision);
            forgotten = process.perform((), true, call, |_| ()).await.1.is_some();
        }
        // At any member: not only at the one that forgot.
        let at = process.below(process.clients().len() as u64) as usize;
        let client = process.clients()[at].clone();
        if let Some(look) = self.read(process, &client, revision).await {
            self.note(look);
        }
        if forgotten && revision > 2 {
            let request = pb::RangeRequest { revision: revision - 1, ..etcd::read_all(&self.prefix) };
            let call = client.range(request);
            if process.perform((), false, call, |_| ()).await.1.is_some() {
                self.note(Look::Unforgotten(revision - 1, revision));
            }
        }
        let wanted = self.told.changes.iter().filter(|change| change.revision >= revision).count();
        let look = Look::Watched(revision, watch(&client, &self.prefix, revision, wanted).await);
        self.note(look);
    }

    /// What was there at a revision; nothing if somebody else made it forgotten, or nobody answers.
    async fn read(&self, process: &mut Process, client: &Client, revision: i64) -> Option<Look> {
        let request = pb::RangeRequest { revision, ..etcd::read_all(&self.prefix) };
        let call = async {
            match client.range(request).await {
                Err(Failure::Refused(_)) => Ok(None),
                answer => answer.map(Some),
            }
        };
        let answer = process.perform((), false, call, |_| ()).await.1??;
        let pairs = answer.kvs.iter().map(|pair| (etcd::text(&pair.key), etcd::text(&pair.value)));
        Some(Look::Read(revision, pairs.collect()))
    }
}

/// The events that a watch from a revision brings, until there are as many as wanted or nothing more comes.
async fn watch(client: &Client, prefix: &str, revision: i64, wanted: usize) -> Vec<Change> {
    let mut found = Vec::new();
    let (requests, stream) = tokio::sync::mpsc::channel(REQUESTS);
    let create = pb::WatchCreateRequest {
        key: etcd::bytes(prefix),
        range_end: etcd::prefix_end(prefix),
        start_revision: revision,
        ..Default::default()
    };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    if requests.send(request).await.is_err() {
        return found;
    }
    let mut watches = client.watches();
    let answer = tokio::time::timeout(SILENCE, watches.watch(ReceiverStream::new(stream))).await;
    let Ok(Ok(answer)) = answer else { return found };
    let mut answers = answer.into_inner();
    while found.len() < wanted
        && let Ok(Ok(Some(message))) = tokio::time::timeout(SILENCE, answers.message()).await
        && !message.canceled
    {
        found.extend(message.events.iter().filter_map(super::watch::event).map(|event| Change {
            revision: event.revision,
            key: event.key,
            value: event.value,
        }));
    }
    found
}
