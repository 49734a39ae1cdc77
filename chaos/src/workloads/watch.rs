//! Watches: writers change keys, watchers follow them at a member each and resume where a connection broke. At the end
//! one watch of everything from the beginning is the log that the others are judged by.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use async_trait::async_trait;
use keelson_proto::etcd::etcdserverpb as pb;
use keelson_proto::etcd::mvccpb;
use parking_lot::Mutex;
use pb::watch_request::RequestUnion;
use tokio_stream::wrappers::ReceiverStream;

use super::{Checked, Workload, persist};
use crate::checkers::Verdict;
use crate::checkers::durability::{self, Acknowledged, Member};
use crate::checkers::watch::{self, Event, Said, Watched};
use crate::context::Process;
use crate::etcd::{self, Client};

/// Keys that are written, in two groups.
const KEYS: u64 = 12;
/// Longest pause between writes of a client.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a watch is awaited: after that it is made anew.
const SILENCE: Duration = Duration::from_secs(5);
/// How often a watcher asks how far it is, so that one whose member is cut off from the others stays with it.
const ASK: Duration = Duration::from_secs(2);
/// How long a watcher may make no headway at the end.
const CATCH_UP: Duration = Duration::from_secs(60);
/// Messages that wait in a watch's request stream.
const REQUESTS: usize = 4;

/// The workload.
#[derive(Default)]
pub struct Watches {
    watched: Mutex<Vec<Watched>>,
    acknowledged: Mutex<Vec<Acknowledged>>,
    log: Mutex<Vec<Event>>,
    members: Mutex<Vec<Member>>,
    writes: Mutex<usize>,
}

#[async_trait]
impl Workload for Watches {
    async fn client(&self, process: &mut Process) {
        // Half of the clients write, half watch, each at its own member.
        if process.id.is_multiple_of(2) { self.write(process).await } else { self.watch(process).await }
    }

    async fn finish(&self, process: &mut Process) -> anyhow::Result<()> {
        let clients = process.clients().to_vec();
        let marker = persist("the marker", || clients[0].put("watch/end", "end".into(), 0)).await?;
        let end = etcd::revision(&marker.header);
        *self.log.lock() = log(&clients[0], end).await?;
        for (i, client) in clients.iter().enumerate() {
            let member = member(client, i, end).await?;
            self.members.lock().push(member);
        }
        Ok(())
    }

    fn check(&self) -> Checked {
        let (watched, log) = (self.watched.lock(), self.log.lock());
        let verdict = watch::check(&watched, &log);
        let durable = durability::check(&self.acknowledged.lock(), &self.members.lock(), &deletions(&log));
        let missing = missing(&self.acknowledged.lock(), &log);
        let delivered = |said: &Said| if let Said::Events(events) = said { events.len() } else { 0 };
        let events: usize = watched.iter().flat_map(|watch| &watch.said).map(delivered).sum();
        Checked { operations: *self.writes.lock() + events, verdict: verdict.and(durable).and(missing) }
    }
}

/// The last deletion of each key.
fn deletions(log: &[Event]) -> BTreeMap<String, i64> {
    log.iter().filter(|event| event.value.is_none()).map(|event| (event.key.clone(), event.revision)).collect()
}

/// Every acknowledged write is in the log, at its revision.
fn missing(acknowledged: &[Acknowledged], log: &[Event]) -> Verdict {
    let places: BTreeMap<(i64, &str), &Event> = log.iter().map(|e| ((e.revision, e.key.as_str()), e)).collect();
    let lost = acknowledged.iter().filter(|write| {
        places.get(&(write.revision, write.key.as_str())).is_none_or(|event| event.value != write.value)
    });
    let fault = |write: &Acknowledged| crate::checkers::Fault::new("lost", format!("{write:?} is not in the log"));
    Verdict::of(lost.map(fault).collect())
}

impl Watches {
    async fn write(&self, process: &mut Process) {
        while process.goes_on() {
            let n = process.below(KEYS);
            let key = format!("watch/{}/{n}", if n < KEYS / 2 { "a" } else { "b" });
            let client = process.client();
            *self.writes.lock() += 1;
            match process.below(5) {
                0 => {
                    let call = client.delete(&key);
                    let (_, answer) = process.perform((), true, call, |_| ()).await;
                    if let Some(answer) = answer.filter(|answer| answer.deleted > 0) {
                        self.acknowledge(key, None, etcd::revision(&answer.header));
                    }
                }
                1 => self.write_two(process).await,
                _ => {
                    let value = process.shared.unique().to_string();
                    let call = client.put(&key, value.clone(), 0);
                    let (_, answer) = process.perform((), true, call, |_| ()).await;
                    if let Some(answer) = answer {
                        self.acknowledge(key, Some(value), etcd::revision(&answer.header));
                    }
                }
            }
            process.think(PAUSE).await;
        }
    }

    /// Two keys in one transaction, so that a revision has more than one event.
    async fn write_two(&self, process: &mut Process) {
        let n = process.below(KEYS / 2 - 1);
        let writes = [n, n + 1].map(|n| (format!("watch/a/{n}"), process.shared.unique().to_string()));
        let success = writes.iter().map(|(key, value)| etcd::put_op(key, value.clone())).collect();
        let client = process.client();
        let call = client.txn(pb::TxnRequest { success, ..Default::default() });
        let (_, answer) = process.perform((), true, call, |_| ()).await;
        if let Some(answer) = answer {
            for (key, value) in writes {
                self.acknowledge(key, Some(value), etcd::revision(&answer.header));
            }
        }
    }

    fn acknowledge(&self, key: String, value: Option<String>, revision: i64) {
        self.acknowledged.lock().push(Acknowledged { key, value, revision });
    }

    async fn watch(&self, process: &mut Process) {
        let group = if process.below(2) == 0 { "watch/a/" } else { "watch/" };
        let with_previous = process.below(2) == 0;
        let name = format!("client {} on {group}", process.id);
        let mut watched = Watched { name, prefix: group.into(), with_previous, said: Vec::new() };
        let members = process.clients().len();
        let (mut next, mut at) = (1, process.id as usize % members);
        while process.goes_on() {
            let client = process.clients()[at].clone();
            tokio::select! {
                () = follow(&client, &mut watched, &mut next, process.shared.ours) => {}
                () = process.shared.stop.cancelled() => {}
            }
            at = (at + 1) % members;
            process.pause(PAUSE * 10).await;
        }
        self.watched.lock().push(watched);
    }
}

fn request(watched: &Watched, next: i64) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest {
        key: etcd::bytes(&watched.prefix),
        range_end: etcd::prefix_end(&watched.prefix),
        start_revision: next,
        progress_notify: true,
        prev_kv: watched.with_previous,
        ..Default::default()
    };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// Asks a watch for its progress now and then, for as long as somebody reads.
async fn ask(requests: tokio::sync::mpsc::Sender<pb::WatchRequest>) {
    loop {
        tokio::time::sleep(ASK).await;
        let request = RequestUnion::ProgressRequest(pb::WatchProgressRequest {});
        if requests.send(pb::WatchRequest { request_union: Some(request) }).await.is_err() {
            return;
        }
    }
}

/// Watches from `next` until the connection breaks or nothing is heard.
async fn follow(client: &Client, watched: &mut Watched, next: &mut i64, asks: bool) {
    let (requests, stream) = tokio::sync::mpsc::channel(REQUESTS);
    if requests.send(request(watched, *next)).await.is_err() {
        return;
    }
    let mut watches = client.watches();
    let answer = tokio::time::timeout(SILENCE, watches.watch(ReceiverStream::new(stream))).await;
    let Ok(Ok(answer)) = answer else { return };
    let mut answers = answer.into_inner();
    let mut parts: Vec<Event> = Vec::new();
    // The channel's end would end the watch's requests, not the watch.
    let asking = asks.then(|| tokio::spawn(ask(requests)));
    let _asking = Asking(asking);
    while let Ok(Ok(Some(message))) = tokio::time::timeout(SILENCE, answers.message()).await {
        if message.created {
            watched.said.push(Said::Began(*next));
        }
        if message.compact_revision > 0 {
            watched.said.push(Said::Compacted(message.compact_revision));
            *next = (*next).max(message.compact_revision);
        }
        if message.canceled {
            return;
        }
        parts.extend(message.events.iter().filter_map(event));
        if message.fragment || message.created {
            continue;
        }
        if let Some(last) = parts.last() {
            *next = last.revision + 1;
            watched.said.push(Said::Events(std::mem::take(&mut parts)));
        } else {
            let revision = etcd::revision(&message.header);
            watched.said.push(Said::Progress(revision));
            *next = (*next).max(revision + 1);
        }
    }
}

/// Ends with the watch.
struct Asking(Option<tokio::task::JoinHandle<()>>);

impl Drop for Asking {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

/// An event as checkers take it.
pub(super) fn event(event: &mvccpb::Event) -> Option<Event> {
    let pair = event.kv.as_ref()?;
    let deleted = event.r#type == i32::from(mvccpb::event::EventType::Delete);
    Some(Event {
        revision: pair.mod_revision,
        key: etcd::text(&pair.key),
        value: (!deleted).then(|| etcd::text(&pair.value)),
        created: if deleted { 0 } else { pair.create_revision },
        version: if deleted { 0 } else { pair.version },
        previous: event.prev_kv.as_ref().map(|previous| etcd::text(&previous.value)),
    })
}

/// All changes up to `end`, and itself checked: every value follows from the one before.
async fn log(client: &Client, end: i64) -> anyhow::Result<Vec<Event>> {
    let mut watched = Watched { name: "log".into(), prefix: "watch/".into(), with_previous: true, said: Vec::new() };
    let mut next = 1;
    let mut deadline = tokio::time::Instant::now() + CATCH_UP;
    while next <= end {
        let before = next;
        if tokio::time::Instant::now() > deadline {
            bail!("a watch from the beginning came only to revision {} of {end}", next - 1);
        }
        tokio::select! {
            () = follow(client, &mut watched, &mut next, false) => {}
            // Ends by itself only after a silence.
            () = tokio::time::sleep(SILENCE) => {}
        }
        // A long history takes long.
        if next > before {
            deadline = tokio::time::Instant::now() + CATCH_UP;
        }
    }
    if watched.said.iter().any(|said| matches!(said, Said::Compacted(_))) {
        bail!("history was compacted before the log was read");
    }
    let events = watched.said.into_iter().filter_map(|said| match said {
        Said::Events(events) => Some(events),
        _ => None,
    });
    let mut log: Vec<Event> = events.flatten().collect();
    truth(&mut log);
    Ok(log)
}

/// Previous values, creations and versions as they follow from the order of the changes, whatever the log's watch said.
fn truth(log: &mut [Event]) {
    let mut keys: BTreeMap<String, (Option<String>, i64, i64)> = BTreeMap::new();
    for event in log {
        let (value, created, version) = keys.entry(event.key.clone()).or_default();
        event.previous = value.clone();
        (*created, *version) = match (&event.value, &value) {
            (None, _) => (0, 0),
            (Some(_), None) => (event.revision, 1),
            (Some(_), Some(_)) => (*created, *version + 1),
        };
        (event.created, event.version) = (*created, *version);
        value.clone_from(&event.value);
    }
}

/// What a member has at `revision`, by its own state.
async fn member(client: &Client, index: usize, revision: i64) -> anyhow::Result<Member> {
    let request = pb::RangeRequest { revision, serializable: true, ..etcd::read_all("watch/") };
    let answer = persist("a member's state", || client.range(request.clone())).await?;
    let hash = persist("a member's hash", || {
        let mut maintenance = client.maintenance();
        async move { etcd::limited(maintenance.hash_kv(pb::HashKvRequest { revision })).await }
    })
    .await
    .context("hashes")?;
    let pair = |pair: &mvccpb::KeyValue| (etcd::text(&pair.key), (etcd::text(&pair.value), pair.mod_revision));
    Ok(Member {
        name: format!("member {}", index + 1),
        revision,
        keys: answer.kvs.iter().map(pair).collect(),
        hash: Some((hash.hash, hash.compact_revision)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_brought_to_its_truth() {
        let event = |revision, value: Option<&str>| Event {
            revision,
            key: "a".into(),
            value: value.map(str::to_owned),
            created: 9,
            version: 9,
            previous: None,
        };
        let mut log = [event(2, Some("x")), event(3, Some("y")), event(4, None), event(5, Some("z"))];
        truth(&mut log);
        let got: Vec<_> = log.iter().map(|e| (e.created, e.version, e.previous.as_deref())).collect();
        assert_eq!(got, [(2, 1, None), (2, 2, Some("x")), (0, 0, Some("y")), (5, 1, None)]);
    }
}
