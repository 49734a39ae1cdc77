//! The pods of this node: as the API last said, by uid, each with the worker that looks after it.
//!
//! Invariant: every entry has exactly one worker. A pod that the API no longer has keeps its entry until its worker has
//! removed what is left of it.

use std::collections::HashMap;
use std::sync::Arc;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use keelson_client::{Error, ListParams, WatchEvent};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::agent::Agent;
use crate::cri::{Fingerprint, Running};
use crate::pod_status::Doom;
use crate::spec::pod;
use crate::worker;

/// One pod.
struct Entry {
    pod: Option<Arc<Pod>>,
    wake: Arc<Notify>,
    worker: Option<AbortHandle>,
    /// What the worker last saw of it in the runtime.
    seen: Option<Fingerprint>,
    /// Why the node ends it, if it does.
    doom: Option<Doom>,
}

/// All pods.
#[derive(Default)]
pub struct Pods(Mutex<Known>);

#[derive(Default)]
struct Known {
    entries: HashMap<String, Entry>,
    /// Whether the pods were listed once: before, nothing is an orphan.
    listed: bool,
}

impl Pods {
    /// A pod as the API last said.
    pub fn get(&self, uid: &str) -> Option<Arc<Pod>> {
        self.0.lock().entries.get(uid)?.pod.clone()
    }

    /// All of them.
    pub fn list(&self) -> Vec<Arc<Pod>> {
        self.0.lock().entries.values().filter_map(|e| e.pod.clone()).collect()
    }

    /// Lets a pod's worker look again.
    pub fn wake(&self, uid: &str) {
        if let Some(entry) = self.0.lock().entries.get(uid) {
            entry.wake.notify_one();
        }
    }

    /// Lets all workers look again.
    pub fn wake_all(&self) {
        self.0.lock().entries.values().for_each(|e| e.wake.notify_one());
    }

    /// Why the node ends a pod.
    pub fn doom(&self, uid: &str) -> Option<Doom> {
        self.0.lock().entries.get(uid)?.doom.clone()
    }

    /// Ends a pod.
    pub fn condemn(&self, uid: &str, doom: Doom) {
        if let Some(entry) = self.0.lock().entries.get_mut(uid) {
            entry.doom = Some(doom);
            entry.wake.notify_one();
        }
    }

    /// Forgets a pod of which nothing is left. False if it is wanted again.
    pub fn end(&self, uid: &str) -> bool {
        let mut known = self.0.lock();
        if known.entries.get(uid).is_some_and(|e| e.pod.is_some()) {
            return false;
        }
        known.entries.remove(uid);
        true
    }

    /// Ends all workers; pods go on running.
    pub fn dismiss(&self) {
        for entry in self.0.lock().entries.values_mut() {
            if let Some(worker) = entry.worker.take() {
                worker.abort();
            }
        }
    }

    /// Notes what a worker saw of its pod in the runtime.
    pub fn saw(&self, uid: &str, seen: Fingerprint) {
        if let Some(entry) = self.0.lock().entries.get_mut(uid) {
            entry.seen = Some(seen);
        }
    }

    /// Takes what the API made of our own write, unless something newer came.
    pub fn written(&self, before: &Pod, written: Pod) {
        if let Some(entry) = self.0.lock().entries.get_mut(&pod::uid(&written)) {
            let known = entry.pod.as_ref().and_then(|p| p.metadata.resource_version.as_ref());
            if known == before.metadata.resource_version.as_ref() {
                entry.pod = Some(Arc::new(written));
            }
        }
    }
}

fn selector(node: &str) -> Option<String> {
    Some(format!("spec.nodeName={node}"))
}

impl Agent {
    /// Takes a pod from the API, or its absence.
    fn take(self: &Arc<Self>, uid: String, of: Option<Pod>) {
        let mut known = self.pods.0.lock();
        if let Some(entry) = known.entries.get_mut(&uid) {
            entry.pod = of.map(Arc::new);
            entry.wake.notify_one();
            return;
        }
        if of.is_some() {
            self.employ(&mut known, uid, of);
        }
    }

    /// Gives a pod its worker.
    fn employ(self: &Arc<Self>, known: &mut Known, uid: String, of: Option<Pod>) {
        let wake = Arc::new(Notify::new());
        // The lock that the caller holds keeps the worker from asking for its entry before it is there.
        let worker = tokio::spawn(worker::run(self.clone(), uid.clone(), wake.clone())).abort_handle();
        let entry = Entry { pod: of.map(Arc::new), wake, worker: Some(worker), seen: None, doom: None };
        known.entries.insert(uid, entry);
    }

    /// Follows this node's pods until the watch ends.
    pub(crate) async fn watch_pods(self: &Arc<Self>) -> Result<(), Error> {
        let api = self.config.client.all::<Pod>();
        let mut params = ListParams { field_selector: selector(&self.config.node_name), ..ListParams::default() };
        let list = api.list(&params).await?;
        let mut present: HashMap<String, Pod> = list.items.into_iter().map(|p| (pod::uid(&p), p)).collect();
        let gone: Vec<String> = {
            let mut known = self.pods.0.lock();
            known.listed = true;
            known.entries.keys().filter(|uid| !present.contains_key(*uid)).cloned().collect()
        };
        gone.into_iter().for_each(|uid| self.take(uid, None));
        present.drain().for_each(|(uid, of)| self.take(uid, Some(of)));
        // Now it is known what is an orphan.
        self.relist.notify_one();
        params.resource_version = Some(list.resource_version);
        let mut events = std::pin::pin!(api.watch(&params).await?);
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(of) | WatchEvent::Modified(of) => self.take(pod::uid(&of), Some(of)),
                WatchEvent::Deleted(of) => self.take(pod::uid(&of), None),
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(status) => return Err(Error::Status(status)),
            }
        }
        Ok(())
    }

    /// Compares all that the runtime has with what the workers saw: what no event told is found here, and what belongs
    /// to no pod gets a worker that ends it.
    pub(crate) async fn relist_once(self: &Arc<Self>) -> Result<(), tonic::Status> {
        let mut found = self.runtime.fingerprints().await?;
        let mut known = self.pods.0.lock();
        for (uid, entry) in &known.entries {
            let now = found.remove(uid).unwrap_or_default();
            if entry.seen.as_ref().is_some_and(|seen| *seen != now) {
                entry.wake.notify_one();
            }
        }
        if known.listed {
            found.into_keys().for_each(|uid| self.employ(&mut known, uid, None));
        }
        Ok(())
    }

    /// Notes what a worker saw, and whose the containers are.
    pub(crate) fn saw(&self, uid: &str, seen: &Running) {
        let print = seen.fingerprint();
        let mut owners = self.owners.lock();
        owners.retain(|id, owner| owner != uid || print.iter().any(|(seen, _)| seen == id));
        owners.extend(print.iter().map(|(id, _)| (id.clone(), uid.to_owned())));
        drop(owners);
        self.pods.saw(uid, print);
    }

    /// The runtime tells of a change of a container.
    pub(crate) fn changed(&self, id: &str) {
        let owner = self.owners.lock().get(id).cloned();
        match owner {
            Some(uid) => self.pods.wake(&uid),
            None => self.relist.notify_one(),
        }
    }
}
