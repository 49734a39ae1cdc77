//! The garbage collector: objects go with their last owner; an owner waits for its dependents if it is deleted in the
//! foreground, or frees them first if they are to be orphaned. It knows every kind that the server has, also custom ones.

mod graph;
mod monitor;

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use http::Method;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use keelson_client::discovery::{self, ApiResource, METADATA_ONLY, PartialObject};
use keelson_client::{Client, Error, Queue};
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::context::Context;
use graph::{FOREGROUND, Graph, Item, ORPHAN, Owner, Place, Work};

const COMPONENT: &str = "garbage-collector-controller";
/// How often the server is asked for kinds that came or went.
const REFRESH: Duration = Duration::from_secs(10);
/// Items that are looked at at a time.
const WORKERS: usize = 20;
/// Longest wait for the first lists of all kinds.
const FIRST_LISTS: Duration = Duration::from_secs(30);

/// What monitors and workers share.
pub(crate) struct Collector {
    context: Arc<Context>,
    client: Client,
    graph: Mutex<Graph>,
    queue: Queue<Work>,
    resources: RwLock<Vec<Arc<ApiResource>>>,
}

/// A conflict that is settled by another look.
fn again(why: &str) -> Error {
    Error::Transport(std::io::Error::other(why.to_owned()))
}

pub(crate) fn run(context: Arc<Context>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let collector = Arc::new(Collector {
            client: context.client.clone(),
            context: context.clone(),
            graph: Mutex::default(),
            queue: Queue::default(),
            resources: RwLock::default(),
        });
        let stop = context.stop.child_token();
        let _guard = stop.clone().drop_guard();
        let mut monitors: HashMap<Arc<ApiResource>, CancellationToken> = HashMap::new();
        let synced = collector.refresh(&mut monitors, &stop).await;
        // Who looks before all owners are known asks the API for each of them.
        if tokio::time::timeout(FIRST_LISTS, futures::future::join_all(synced)).await.is_err() {
            warn!("some kinds could not be listed yet; the garbage collector starts without them");
        }
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..WORKERS {
            workers.spawn(collector.clone().work());
        }
        loop {
            tokio::time::sleep(REFRESH).await;
            collector.refresh(&mut monitors, &stop).await;
        }
    })
}

impl Collector {
    /// Starts and stops monitors so that there is one for each kind.
    async fn refresh(
        self: &Arc<Self>,
        monitors: &mut HashMap<Arc<ApiResource>, CancellationToken>,
        stop: &CancellationToken,
    ) -> Vec<tokio::sync::oneshot::Receiver<()>> {
        let (found, failed) = match discovery::resources(&self.client).await {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "cannot ask which kinds there are; trying again");
                return Vec::new();
            }
        };
        for (group, error) in &failed {
            debug!(group, %error, "a group cannot be asked for its kinds");
        }
        let collected = |r: &ApiResource| {
            ["list", "watch", "delete"].iter().all(|v| r.can(v)) && !(r.plural == "events" && r.kind == "Event")
        };
        let mut wanted: BTreeMap<Arc<ApiResource>, ()> = BTreeMap::new();
        for resource in found.into_iter().filter(collected) {
            wanted.insert(Arc::new(resource), ());
        }
        monitors.retain(|resource, stop| {
            let down = failed.iter().any(|(g, _)| *g == format!("{}/{}", resource.group, resource.version));
            let keep = wanted.contains_key(resource) || down;
            if !keep {
                stop.cancel();
                let mut graph = self.graph.lock();
                for uid in graph.of_resource(resource) {
                    graph.remove(&uid).into_iter().for_each(|work| self.queue.add(work));
                }
            }
            keep
        });
        let mut synced = Vec::new();
        for resource in wanted.into_keys() {
            if !monitors.contains_key(&resource) {
                let stop = stop.child_token();
                monitors.insert(resource.clone(), stop.clone());
                let (first, listed) = tokio::sync::oneshot::channel();
                synced.push(listed);
                tokio::spawn(monitor::run(self.clone(), resource, first, stop));
            }
        }
        *self.resources.write() = monitors.keys().cloned().collect();
        synced
    }

    async fn work(self: Arc<Self>) {
        loop {
            let work = self.queue.next().await;
            let result = AssertUnwindSafe(async {
                match &work {
                    Work::Delete(uid) => self.attempt_delete(uid).await,
                    Work::Orphan(uid) => self.attempt_orphan(uid).await,
                }
            });
            match result.catch_unwind().await {
                Ok(Ok(())) => self.queue.forget(&work),
                Ok(Err(error)) => {
                    debug!(?work, %error, "not yet; trying again");
                    self.queue.retry(work.clone());
                }
                Err(_) => {
                    error!(?work, "the garbage collector panicked; trying again");
                    self.queue.retry(work.clone());
                }
            }
            self.queue.done(&work);
        }
    }

    async fn metadata(&self, place: &Place) -> Result<Option<PartialObject>, Error> {
        match self.client.read(&place.resource.path(&place.namespace, &place.name), METADATA_ONLY).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn patch(&self, place: &Place, patch: &Value) -> Result<(), Error> {
        let path = place.resource.path(&place.namespace, &place.name);
        let body = serde_json::to_vec(patch)?.into();
        let sent = self
            .client
            .request::<serde::de::IgnoredAny>(Method::PATCH, &path, Some("application/merge-patch+json"), body)
            .await;
        match sent {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether an item is to go, and lets it.
    async fn attempt_delete(&self, uid: &str) -> Result<(), Error> {
        let Some(item) = self.graph.lock().get(uid).cloned() else { return Ok(()) };
        if item.going && !item.foreground {
            return Ok(());
        }
        let Some(live) = self.metadata(&item.place).await? else { return self.gone(uid) };
        if live.metadata.uid.as_deref() != Some(uid) {
            return self.gone(uid);
        }
        if item.foreground {
            return self.attempt_release(uid, &item).await;
        }
        let fresh = Item::new(item.place.resource.clone(), &live.metadata);
        if fresh.owners.is_empty() {
            return Ok(());
        }
        let (mut solid, mut waiting, mut dangling) = (0, Vec::new(), Vec::new());
        for owner in &*fresh.owners {
            match self.judge(&fresh, owner).await? {
                Some(Owner::Waiting) => waiting.push(owner.uid.clone()),
                Some(_) => solid += 1,
                None => dangling.push(owner.uid.clone()),
            }
        }
        if solid > 0 {
            if dangling.is_empty() && waiting.is_empty() {
                return Ok(());
            }
            let owners: Vec<&OwnerReference> =
                fresh.owners.iter().filter(|o| !dangling.contains(&o.uid) && !waiting.contains(&o.uid)).collect();
            return self.set_owners(&fresh.place, &live, json!(owners)).await;
        }
        let has = |finalizer: &str| live.metadata.finalizers.iter().flatten().any(|f| f == finalizer);
        let policy = if !waiting.is_empty() && !self.graph.lock().dependents_of(uid).is_empty() {
            self.unblock_cycle(uid, &fresh, &live).await?;
            "Foreground"
        } else if has(ORPHAN) {
            "Orphan"
        } else if has(FOREGROUND) {
            "Foreground"
        } else {
            "Background"
        };
        self.delete(&fresh.place, uid, policy).await
    }

    /// If something that depends on the item waits itself, owners of both wait in a circle: it no longer blocks its own.
    async fn unblock_cycle(&self, uid: &str, item: &Item, live: &PartialObject) -> Result<(), Error> {
        let circular = {
            let graph = self.graph.lock();
            graph.dependents_of(uid).iter().any(|d| graph.get(d).is_some_and(|i| i.foreground))
        };
        if !circular || item.owners.iter().all(|o| o.block_owner_deletion != Some(true)) {
            return Ok(());
        }
        let free = |o: &OwnerReference| OwnerReference { block_owner_deletion: Some(false), ..o.clone() };
        let owners: Vec<OwnerReference> = item.owners.iter().map(free).collect();
        self.set_owners(&item.place, live, json!(owners)).await
    }

    async fn set_owners(&self, place: &Place, live: &PartialObject, owners: Value) -> Result<(), Error> {
        let owners = if owners.as_array().is_some_and(Vec::is_empty) { Value::Null } else { owners };
        let patch = json!({"metadata": {
            "uid": live.metadata.uid, "resourceVersion": live.metadata.resource_version, "ownerReferences": owners,
        }});
        self.patch(place, &patch).await
    }

    async fn delete(&self, place: &Place, uid: &str, policy: &str) -> Result<(), Error> {
        let path = place.resource.path(&place.namespace, &place.name);
        let body = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy, "preconditions": {"uid": uid}});
        let body = serde_json::to_vec(&body)?.into();
        debug!(path, policy, "collecting");
        let sent =
            self.client.request::<serde::de::IgnoredAny>(Method::DELETE, &path, Some("application/json"), body).await;
        match sent {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// An owner that waits goes when nothing blocks it any more.
    async fn attempt_release(&self, uid: &str, item: &Item) -> Result<(), Error> {
        let blocking = self.graph.lock().blocking(uid);
        if !blocking.is_empty() {
            let idle = blocking.into_iter().filter(|(_, dependent)| !dependent.going);
            idle.for_each(|(dependent, _)| self.queue.add(Work::Delete(dependent)));
            return Ok(());
        }
        self.drop_finalizer(item, uid, FOREGROUND).await
    }

    async fn drop_finalizer(&self, item: &Item, uid: &str, finalizer: &str) -> Result<(), Error> {
        let Some(live) = self.metadata(&item.place).await? else { return self.gone(uid) };
        if live.metadata.uid.as_deref() != Some(uid) {
            return self.gone(uid);
        }
        let mut finalizers = live.metadata.finalizers.clone().unwrap_or_default();
        let count = finalizers.len();
        finalizers.retain(|f| f != finalizer);
        if finalizers.len() == count {
            return Ok(());
        }
        let patch = json!({"metadata": {
            "uid": uid, "resourceVersion": live.metadata.resource_version,
            "finalizers": if finalizers.is_empty() { Value::Null } else { json!(finalizers) },
        }});
        self.patch(&item.place, &patch).await
    }

    /// Frees the dependents of an owner, then lets the owner go.
    async fn attempt_orphan(&self, uid: &str) -> Result<(), Error> {
        let Some(item) = self.graph.lock().get(uid).cloned() else { return Ok(()) };
        if !item.orphan {
            return Ok(());
        }
        let dependents: Vec<Item> = {
            let graph = self.graph.lock();
            graph.dependents_of(uid).iter().filter_map(|d| graph.get(d).cloned()).collect()
        };
        for dependent in dependents {
            let Some(live) = self.metadata(&dependent.place).await? else { continue };
            let mut owners = live.metadata.owner_references.clone().unwrap_or_default();
            let count = owners.len();
            owners.retain(|o| o.uid != uid);
            if owners.len() != count {
                self.set_owners(&dependent.place, &live, json!(owners)).await?;
            }
        }
        self.drop_finalizer(&item, uid, ORPHAN).await
    }

    /// What an owner is: there, waiting, or gone (`None`).
    async fn judge(&self, item: &Item, reference: &OwnerReference) -> Result<Option<Owner>, Error> {
        let known = self.graph.lock().owner(item, reference);
        if known != Owner::Unknown {
            return Ok(Some(known));
        }
        let (group, _) = reference.api_version.rsplit_once('/').unwrap_or(("", &reference.api_version));
        let resource = {
            let resources = self.resources.read();
            resources.iter().find(|r| r.group == group && r.kind == reference.kind).cloned()
        };
        let Some(resource) = resource else {
            // A kind that is not served now may be again: nothing is deleted for it.
            return Err(again(&format!("no kind {} in {} is known", reference.kind, reference.api_version)));
        };
        if resource.namespaced && item.place.namespace.is_empty() {
            // A namespaced owner of a cluster-wide object cannot be looked up; the object stays.
            return Ok(Some(Owner::Solid));
        }
        let namespace = if resource.namespaced { item.place.namespace.clone() } else { "".into() };
        let place = Place { resource: resource.clone(), namespace, name: reference.name.as_str().into() };
        let Some(owner) = self.metadata(&place).await? else { return Ok(None) };
        if owner.metadata.uid.as_deref() != Some(&reference.uid) {
            return Ok(None);
        }
        let owner = Item::new(resource, &owner.metadata);
        Ok(Some(if owner.foreground { Owner::Waiting } else { Owner::Solid }))
    }

    /// The item is gone before its watch said so.
    fn gone(&self, uid: &str) -> Result<(), Error> {
        let (work, namespace) = {
            let mut graph = self.graph.lock();
            let namespace = graph.get(uid).map(|i| i.place.namespace.clone());
            (graph.remove(uid), namespace)
        };
        work.into_iter().for_each(|work| self.queue.add(work));
        self.tell(namespace.as_deref());
        Ok(())
    }

    /// Tells who counts objects that one came or went.
    fn tell(&self, namespace: Option<&str>) {
        if let Some(namespace) = namespace.filter(|n| !n.is_empty()) {
            self.context.tell_object(namespace);
        }
    }

    /// Uids of what is known of a resource.
    fn known(&self, resource: &ApiResource) -> Vec<String> {
        self.graph.lock().of_resource(resource)
    }

    fn upsert(&self, resource: &Arc<ApiResource>, object: &PartialObject) {
        let Some(uid) = object.metadata.uid.as_deref() else { return };
        let (work, new, misplaced) = {
            let mut graph = self.graph.lock();
            let (item, before) = (Item::new(resource.clone(), &object.metadata), graph.get(uid));
            let (new, other) = (before.is_none(), before.is_none_or(|b| b.owners != item.owners));
            let work = graph.upsert(uid, item);
            (work, new, if other { graph.misplaced(uid, new) } else { Vec::new() })
        };
        work.into_iter().for_each(|work| self.queue.add(work));
        for (item, uid, reference) in misplaced {
            self.warn_of(&item, &uid, &reference);
        }
        self.tell(object.metadata.namespace.as_deref().filter(|_| new));
    }

    /// Says that an object names an owner in another namespace, where it cannot have one.
    fn warn_of(&self, item: &Item, uid: &str, reference: &OwnerReference) {
        let place = &item.place;
        let version = match place.resource.group.as_str() {
            "" => place.resource.version.clone(),
            group => format!("{group}/{}", place.resource.version),
        };
        let about = ObjectReference {
            api_version: Some(version),
            kind: Some(place.resource.kind.clone()),
            namespace: Some(place.namespace.to_string()),
            name: Some(place.name.to_string()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        let OwnerReference { api_version, kind, name, uid: owner, .. } = reference;
        let message = format!(
            "ownerRef [{api_version}/{kind}, namespace: {}, name: {name}, uid: {owner}] does not exist in namespace {:?}",
            place.namespace, place.namespace
        );
        self.context.recorder(COMPONENT).tell(about, "Warning", "OwnerRefInvalidNamespace", message);
    }
}
