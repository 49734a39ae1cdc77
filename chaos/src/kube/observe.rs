//! Informers: a list and a watch of every kind at every server, resumed where a connection broke. What they were told is
//! judged against one another: each must have had every change, in order, once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::reduce::{self, Fact};
use super::{Kind, Kube, OBSERVED, code, text, version};
use crate::checkers::watch::{Event, Said, Watched};

/// Pause before a list or watch is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// How long a watch may be silent before it is made anew: bookmarks come more often.
const SILENCE: Duration = Duration::from_secs(90);
/// How long informers may take to have what a list has at the end.
const CATCH_UP: Duration = Duration::from_secs(120);

/// A version of an object, or its removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The store's revision.
    pub revision: i64,
    /// The kind's plural name.
    pub kind: &'static str,
    /// Whether the object is gone.
    pub removed: bool,
    /// The object, or its last version.
    pub fact: Fact,
}

/// All that informers were told.
#[derive(Default)]
pub struct Seen {
    /// Every change that any informer was told, by revision and place.
    pub log: BTreeMap<(i64, String), (Change, Option<String>)>,
    /// What each informer was told.
    pub watched: Vec<Watched>,
    /// What was seen that must not be, beside that.
    pub wrong: Vec<String>,
}

/// One informer: what it knows.
struct Informer {
    server: usize,
    kube: Kube,
    kind: Kind,
    /// Versions of the objects that it knows.
    known: Mutex<BTreeMap<String, i64>>,
    watched: Mutex<Watched>,
}

/// All informers.
pub struct Observers {
    informers: Vec<Arc<Informer>>,
    running: Mutex<Vec<JoinHandle<()>>>,
    stop: CancellationToken,
    seen: Arc<Mutex<Seen>>,
}

/// The place of an object: its kind, namespace and name.
fn place(kind: &Kind, object: &Value) -> String {
    format!("{}/{}/{}", kind.plural, text(object, "/metadata/namespace"), text(object, "/metadata/name"))
}

impl Observers {
    /// Starts an informer of every kind at every server.
    pub fn start(servers: &[Kube]) -> Self {
        let stop = CancellationToken::new();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (mut informers, mut running) = (Vec::new(), Vec::new());
        for (server, kube) in servers.iter().enumerate() {
            for kind in OBSERVED {
                let name = format!("{} at server {}", kind.plural, server + 1);
                let prefix = format!("{}/", kind.plural);
                let watched = Watched { name, prefix, with_previous: false, said: Vec::new() };
                let (known, watched) = (Mutex::default(), Mutex::new(watched));
                let informer = Arc::new(Informer { server, kube: kube.clone(), kind: *kind, known, watched });
                informers.push(informer.clone());
                let (seen, stop) = (seen.clone(), stop.clone());
                running.push(tokio::spawn(async move {
                    tokio::select! {
                        () = informer.run(&seen) => {}
                        () = stop.cancelled() => {}
                    }
                }));
            }
        }
        Self { informers, running: Mutex::new(running), stop, seen }
    }

    /// Waits until every informer has what a list has, ends them, and returns what they were told.
    pub async fn finish(&self) -> anyhow::Result<Seen> {
        let deadline = tokio::time::Instant::now() + CATCH_UP;
        let mut wrong = Vec::new();
        for informer in &self.informers {
            while let Some(difference) = informer.difference().await {
                if tokio::time::Instant::now() > deadline {
                    wrong.push(format!("{}: {difference}", informer.watched.lock().name));
                    break;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
        self.stop.cancel();
        let running = std::mem::take(&mut *self.running.lock());
        for task in running {
            task.await?;
        }
        let mut seen = std::mem::take(&mut *self.seen.lock());
        seen.watched = self.informers.iter().map(|informer| informer.watched.lock().clone()).collect();
        seen.wrong.extend(wrong);
        Ok(seen)
    }
}

impl Informer {
    async fn run(&self, seen: &Mutex<Seen>) {
        let mut after: Option<i64> = None;
        loop {
            if after.is_none() {
                after = self.list(seen).await;
            }
            if let Some(from) = after {
                after = self.follow(from, seen).await;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Begins with what is there; the version of the list.
    async fn list(&self, seen: &Mutex<Seen>) -> Option<i64> {
        let list = self.kube.get(&self.kind.path("", "")).await.ok()?;
        let at = version(&list);
        let mut known = BTreeMap::new();
        for object in list["items"].as_array().into_iter().flatten() {
            known.insert(place(&self.kind, object), version(object));
        }
        *self.known.lock() = known;
        let mut watched = self.watched.lock();
        // Beginning is one thing, beginning again after a gap that the server admits another.
        let first = watched.said.is_empty();
        watched.said.push(if first { Said::Began(at + 1) } else { Said::Compacted(at + 1) });
        drop(watched);
        let mut seen = seen.lock();
        for object in list["items"].as_array().into_iter().flatten() {
            let (change, digest) = self.change(object, false);
            seen.log.entry((change.revision, place(&self.kind, object))).or_insert((change, digest));
        }
        Some(at)
    }

    fn change(&self, object: &Value, removed: bool) -> (Change, Option<String>) {
        let fact = reduce::reduce(self.kind.plural, object);
        let change = Change { revision: version(object), kind: self.kind.plural, removed, fact };
        (change, (!removed).then(|| reduce::digest(object)))
    }

    /// Follows changes after a version; returns where to go on, or nothing if that is forgotten.
    async fn follow(&self, mut from: i64, seen: &Mutex<Seen>) -> Option<i64> {
        let mut events = match self.kube.watch(&self.kind.path("", ""), &from.to_string()).await {
            Ok(events) => events,
            Err(failure) => return (code(&failure) != 410).then_some(from),
        };
        self.watched.lock().said.push(Said::Began(from + 1));
        while let Ok(Some(Ok(event))) = tokio::time::timeout(SILENCE, events.next()).await {
            let object = &event["object"];
            match event["type"].as_str() {
                Some("BOOKMARK") => {
                    from = from.max(version(object));
                    self.watched.lock().said.push(Said::Progress(from));
                }
                Some("ADDED" | "MODIFIED") => self.take(object, false, &mut from, seen),
                Some("DELETED") => self.take(object, true, &mut from, seen),
                Some("ERROR") if object["code"] == 410 => return None,
                _ => return Some(from),
            }
        }
        Some(from)
    }

    fn take(&self, object: &Value, removed: bool, from: &mut i64, seen: &Mutex<Seen>) {
        let (change, digest) = self.change(object, removed);
        let place = place(&self.kind, object);
        let event = Event {
            revision: change.revision,
            key: place.clone(),
            value: digest.clone(),
            created: 0,
            version: 0,
            previous: None,
        };
        *from = (*from).max(change.revision);
        match removed {
            true => drop(self.known.lock().remove(&place)),
            false => drop(self.known.lock().insert(place.clone(), change.revision)),
        }
        self.watched.lock().said.push(Said::Events(vec![event]));
        seen.lock().log.entry((change.revision, place)).or_insert((change, digest));
    }

    /// How what it knows differs from a list at its server; it may be ahead.
    async fn difference(&self) -> Option<String> {
        let list = match self.kube.get(&self.kind.path("", "")).await {
            Ok(list) => list,
            Err(failure) => return Some(format!("no list: {failure:?}")),
        };
        let known = self.known.lock().clone();
        let at = version(&list);
        let mut there = BTreeMap::new();
        for object in list["items"].as_array().into_iter().flatten() {
            there.insert(place(&self.kind, object), version(object));
        }
        for (place, version) in &there {
            match known.get(place) {
                Some(has) if has >= version => {}
                has => return Some(format!("{place} is at {version}, the informer has {has:?}")),
            }
        }
        let extra = known.iter().find(|(place, version)| **version <= at && !there.contains_key(*place));
        extra.map(|(place, version)| format!("server {}: {place} is gone, the informer has {version}", self.server + 1))
    }
}

impl Seen {
    /// The log as the watch checker takes it.
    pub fn events(&self) -> Vec<Event> {
        let event = |((revision, key), (_, digest)): (&(i64, String), &(Change, Option<String>))| Event {
            revision: *revision,
            key: key.clone(),
            value: digest.clone(),
            created: 0,
            version: 0,
            previous: None,
        };
        self.log.iter().map(event).collect()
    }

    /// All changes in order.
    pub fn changes(&self) -> Vec<Change> {
        self.log.values().map(|(change, _)| change.clone()).collect()
    }
}
