//! The pods of this node: as the API last said, by uid, each with the worker that looks after it.
//!
//! Invariant: every entry has exactly one worker. A pod that the API no longer has keeps its entry until its worker has
//! removed what is left of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use keelson_client::{Error, Key, ListParams, WatchEvent};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::agent::Agent;
use crate::cri::{Fingerprint, Running};
use crate::manifests;
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
    /// Whether it comes from a manifest of the node.
    is_static: bool,
    /// Namespace and name, if the pod was ever known.
    named: Option<Key>,
    /// The versions before and after our own last write.
    ours: Option<(String, String)>,
}

/// All pods.
#[derive(Default)]
pub struct Pods(Mutex<Known>);

#[derive(Default)]
struct Known {
    entries: HashMap<String, Entry>,
    /// Whether the pods were listed once: before, nothing is an orphan.
    listed: bool,
    /// The same of the manifests.
    manifests_read: bool,
    /// What the API has of static pods.
    mirrors: HashMap<Key, Arc<Pod>>,
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

    /// Lets the workers of static pods look again.
    pub fn wake_static(&self) {
        self.0.lock().entries.values().filter(|e| e.is_static).for_each(|e| e.wake.notify_one());
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

    /// Whether a pod comes from a manifest.
    pub fn is_static(&self, uid: &str) -> bool {
        self.0.lock().entries.get(uid).is_some_and(|e| e.is_static)
    }

    /// Whether the API's pods are known.
    pub fn is_listed(&self) -> bool {
        self.0.lock().listed
    }

    /// Notes that all manifests were read; says whether that is new.
    pub fn manifests_read(&self) -> bool {
        !std::mem::replace(&mut self.0.lock().manifests_read, true)
    }

    /// Keeps the status of a static pod, which the API knows of its mirror only.
    pub fn set_status(&self, uid: &str, status: &PodStatus) {
        if let Some(entry) = self.0.lock().entries.get_mut(uid)
            && let Some(pod) = &entry.pod
        {
            entry.pod = Some(Arc::new(Pod { status: Some(status.clone()), ..(**pod).clone() }));
        }
    }

    /// The mirror of a static pod.
    pub fn mirror(&self, key: &Key) -> Option<Arc<Pod>> {
        self.0.lock().mirrors.get(key).cloned()
    }

    /// Takes a mirror, or its absence.
    pub fn set_mirror(&self, key: &Key, mirror: Option<Pod>) {
        let mut known = self.0.lock();
        match mirror {
            Some(mirror) => known.mirrors.insert(key.clone(), Arc::new(mirror)),
            None => known.mirrors.remove(key),
        };
    }

    /// The mirrors whose pod is not there.
    pub fn orphaned_mirrors(&self) -> Vec<Arc<Pod>> {
        let known = self.0.lock();
        let statics: HashSet<Key> = known.statics().map(|(_, key)| key).collect();
        known.mirrors.iter().filter(|(key, _)| !statics.contains(key)).map(|(_, mirror)| mirror.clone()).collect()
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

    /// What our own write made of a pod, if nothing else has happened to it: who still has the pod from before may go on
    /// with this.
    pub fn newer(&self, than: &Pod) -> Option<Arc<Pod>> {
        let known = self.0.lock();
        let entry = known.entries.get(&pod::uid(than))?;
        let ((before, after), current) = (entry.ours.as_ref()?, entry.pod.as_ref()?);
        let version = |p: &Pod| p.metadata.resource_version.clone();
        let follows = version(than).as_ref() == Some(before) && version(current).as_ref() == Some(after);
        follows.then(|| current.clone())
    }

    /// Takes what the API made of our own write, unless something newer came.
    pub fn written(&self, before: &Pod, written: Pod) {
        if let Some(entry) = self.0.lock().entries.get_mut(&pod::uid(&written)) {
            let known = entry.pod.as_ref().and_then(|p| p.metadata.resource_version.as_ref());
            if known == before.metadata.resource_version.as_ref() {
                let versions = [before, &written].map(|p| p.metadata.resource_version.clone().unwrap_or_default());
                entry.ours = Some(versions.into());
                entry.pod = Some(Arc::new(written));
            }
        }
    }
}

impl Known {
    /// Uid, namespace and name of the static pods; one that only ends has the name of its last pod.
    fn statics(&self) -> impl Iterator<Item = (&String, Key)> {
        let statics = self.entries.iter().filter(|(_, e)| e.is_static);
        statics.filter_map(|(uid, e)| Some((uid, e.named.clone()?)))
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
            self.employ(&mut known, uid, of, false);
        }
    }

    /// Takes what the API says of a pod of this node: it is run, or it mirrors one that is.
    fn take_from_api(self: &Arc<Self>, of: Pod, present: bool) {
        if !manifests::is_mirror(&of) {
            return self.take(pod::uid(&of), present.then_some(of));
        }
        let key = manifests::key_of(&of);
        let mut known = self.pods.0.lock();
        if present {
            known.mirrors.insert(key.clone(), Arc::new(of));
        } else if known.mirrors.get(&key).is_some_and(|m| m.metadata.uid == of.metadata.uid) {
            known.mirrors.remove(&key);
        }
        match known.statics().find(|(_, name)| *name == key).and_then(|(uid, _)| known.entries.get(uid)) {
            Some(entry) => entry.wake.notify_one(),
            None => self.manifests_changed.notify_one(),
        }
    }

    /// Takes the pods of all manifests: what is no longer among them ends, what is new starts once its name is free.
    pub(crate) fn take_static<'a>(self: &Arc<Self>, wanted: impl Iterator<Item = (&'a String, &'a Pod)>) {
        let wanted: HashMap<&String, &Pod> = wanted.collect();
        let mut known = self.pods.0.lock();
        for (uid, entry) in known.entries.iter_mut().filter(|(_, e)| e.is_static) {
            if entry.pod.is_some() && !wanted.contains_key(uid) {
                entry.pod = None;
                entry.wake.notify_one();
            }
        }
        let mut taken: HashSet<Key> = known.statics().map(|(_, key)| key).collect();
        for (uid, of) in wanted {
            let new = match known.entries.get_mut(uid) {
                // It was there before the agent: the runtime's containers were taken for an orphan's.
                Some(entry) if !entry.is_static => {
                    (entry.pod, entry.is_static) = (Some(Arc::new(of.clone())), true);
                    entry.named = Some(manifests::key_of(of));
                    entry.wake.notify_one();
                    false
                }
                Some(_) => false,
                None => true,
            };
            if new && taken.insert(manifests::key_of(of)) {
                self.employ(&mut known, uid.clone(), Some(of.clone()), true);
            }
        }
    }

    /// Gives a pod its worker.
    fn employ(self: &Arc<Self>, known: &mut Known, uid: String, of: Option<Pod>, is_static: bool) {
        let wake = Arc::new(Notify::new());
        // The lock that the caller holds keeps the worker from asking for its entry before it is there.
        let worker = tokio::spawn(worker::run(self.clone(), uid.clone(), wake.clone())).abort_handle();
        let named = of.as_ref().map(manifests::key_of);
        let entry = Entry {
            pod: of.map(Arc::new),
            wake,
            worker: Some(worker),
            seen: None,
            doom: None,
            is_static,
            named,
            ours: None,
        };
        known.entries.insert(uid, entry);
    }

    /// Follows this node's pods until the watch ends.
    pub(crate) async fn watch_pods(self: &Arc<Self>) -> Result<(), Error> {
        let api = self.config.client.all::<Pod>();
        let mut params = ListParams { field_selector: selector(&self.config.node_name), ..ListParams::default() };
        let list = api.list(&params).await?;
        let present: HashMap<String, Pod> = list.items.into_iter().map(|p| (pod::uid(&p), p)).collect();
        let gone: Vec<String> = {
            let mut known = self.pods.0.lock();
            known.listed = true;
            known.mirrors.clear();
            let entries = known.entries.iter().filter(|(_, entry)| !entry.is_static);
            entries.map(|(uid, _)| uid).filter(|uid| !present.contains_key(*uid)).cloned().collect()
        };
        gone.into_iter().for_each(|uid| self.take(uid, None));
        present.into_values().for_each(|of| self.take_from_api(of, true));
        self.pods.wake_static();
        // Now it is known what is an orphan.
        self.relist.notify_one();
        params.resource_version = Some(list.resource_version);
        let mut events = std::pin::pin!(api.watch(&params).await?);
        while let Some(event) = events.try_next().await? {
            match event {
                WatchEvent::Added(of) | WatchEvent::Modified(of) => self.take_from_api(of, true),
                WatchEvent::Deleted(of) => self.take_from_api(of, false),
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
        let directories = self.pod_directories();
        let mut known = self.pods.0.lock();
        for (uid, entry) in &known.entries {
            let now = found.remove(uid).unwrap_or_default();
            if entry.seen.as_ref().is_some_and(|seen| *seen != now) {
                entry.wake.notify_one();
            }
        }
        if known.listed && known.manifests_read {
            let strays: HashSet<String> = found.into_keys().chain(directories).collect();
            let strays: Vec<String> = strays.into_iter().filter(|uid| !known.entries.contains_key(uid)).collect();
            strays.into_iter().for_each(|uid| self.employ(&mut known, uid, None, false));
        }
        Ok(())
    }

    /// The uids of pods that have a directory: one may be left of a pod that ended with the machine.
    fn pod_directories(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.config.data_dir.join("pods")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
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
