//! Where changes come from: each kind is listed, then watched. Only what the scheduler reads is decoded.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http_body_util::{BodyExt, BodyStream};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, ReplicationController, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass};
use keelson_client::Client;
use keelson_client::api::MAX_WATCH_EVENT_BYTES;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::core::Change;
use crate::plugins::preemption::Budget;
use crate::selector::{Selector, labels};
use crate::wire::{Meta, Node, Pod, PodGroup};

/// Pause after a failed list or watch.
const RETRY: Duration = Duration::from_millis(500);
/// Objects per page of a list.
const PAGE: usize = 5000;

/// What a source says: a change, or that the first list is through.
pub enum News {
    /// A change.
    Change(Change),
    /// All of this kind is known.
    Listed(&'static str),
}

/// Turns an object, there (`true`) or gone, into a change.
type Convert = fn(&str, bool) -> serde_json::Result<Option<Change>>;

/// A kind that is watched.
pub struct Source {
    /// Where it is.
    pub path: &'static str,
    convert: Convert,
    /// A cluster may lack it.
    optional: bool,
}

const fn source(path: &'static str, convert: Convert) -> Source {
    Source { path, convert, optional: true }
}

/// All kinds that can be watched.
static SOURCES: &[Source] = &[
    Source { path: "/api/v1/nodes", convert: node, optional: false },
    Source { path: "/api/v1/pods", convert: pod, optional: false },
    Source { path: "/api/v1/namespaces", convert: namespace, optional: false },
    source("/api/v1/services", service),
    source("/api/v1/replicationcontrollers", replication_controller),
    source("/apis/apps/v1/replicasets", replica_set),
    source("/apis/apps/v1/statefulsets", stateful_set),
    source("/apis/policy/v1/poddisruptionbudgets", budget),
    source("/api/v1/persistentvolumeclaims", claim),
    source("/api/v1/persistentvolumes", volume),
    source("/apis/storage.k8s.io/v1/storageclasses", storage_class),
    source("/apis/storage.k8s.io/v1/csinodes", csi_node),
    source("/apis/storage.k8s.io/v1/csidrivers", csi_driver),
    source("/apis/storage.k8s.io/v1/csistoragecapacities", capacity),
    source("/apis/storage.k8s.io/v1/volumeattachments", attachment),
    source("/apis/resource.k8s.io/v1/resourceclaims", resource_claim),
    source("/apis/resource.k8s.io/v1/deviceclasses", device_class),
    source("/apis/resource.k8s.io/v1/resourceslices", resource_slice),
    source("/apis/scheduling.k8s.io/v1alpha2/podgroups", pod_group),
];

/// The kinds that are watched; groups of pods only if they are looked at.
pub fn sources(groups: bool) -> &'static [Source] {
    // The last row is that of the groups.
    if groups { SOURCES } else { &SOURCES[..SOURCES.len() - 1] }
}

fn node(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let node: Node = serde_json::from_str(text)?;
    Ok(Some(if there { Change::Node(Box::new(node)) } else { Change::NodeGone(node.metadata.name) }))
}

fn pod(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let pod: Pod = serde_json::from_str(text)?;
    Ok(Some(if there { Change::Pod(Box::new(pod)) } else { Change::PodGone(pod.metadata.uid) }))
}

fn namespace(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: Namespace = serde_json::from_str(text)?;
    let meta = object.metadata;
    let labels = there.then(|| labels(&meta.labels.unwrap_or_default()));
    Ok(Some(Change::Namespace(meta.name.unwrap_or_default(), labels)))
}

fn service(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: Service = serde_json::from_str(text)?;
    let meta = object.metadata;
    let selector = object.spec.and_then(|s| s.selector).filter(|_| there);
    Ok(Some(Change::Service(meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default(), selector)))
}

fn replication_controller(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: ReplicationController = serde_json::from_str(text)?;
    let selector = object.spec.and_then(|s| s.selector).filter(|_| there);
    let selector = selector.map(|s: BTreeMap<String, String>| Selector::of_labels(&s));
    let meta = object.metadata;
    let (namespace, name) = (meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
    Ok(Some(Change::Owner("ReplicationController", namespace, name, selector)))
}

fn replica_set(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: ReplicaSet = serde_json::from_str(text)?;
    let selector = object.spec.filter(|_| there).map(|s| Selector::new(&s.selector));
    let meta = object.metadata;
    let (namespace, name) = (meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
    Ok(Some(Change::Owner("ReplicaSet", namespace, name, selector)))
}

fn stateful_set(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: StatefulSet = serde_json::from_str(text)?;
    let selector = object.spec.filter(|_| there).map(|s| Selector::new(&s.selector));
    let meta = object.metadata;
    let (namespace, name) = (meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default());
    Ok(Some(Change::Owner("StatefulSet", namespace, name, selector)))
}

fn budget(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: PodDisruptionBudget = serde_json::from_str(text)?;
    let meta = object.metadata;
    let budget = there.then(|| {
        let status = object.status.unwrap_or_default();
        Budget {
            selector: object.spec.and_then(|s| s.selector).as_ref().map(Selector::new),
            allowed: status.disruptions_allowed.unwrap_or(0).into(),
            disrupted: status.disrupted_pods.unwrap_or_default().into_keys().collect(),
        }
    });
    Ok(Some(Change::Budget(meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default(), budget)))
}

fn claim(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: PersistentVolumeClaim = serde_json::from_str(text)?;
    if there {
        return Ok(Some(Change::Claim(Box::new(object))));
    }
    let meta = object.metadata;
    Ok(Some(Change::ClaimGone(meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default())))
}

fn volume(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: PersistentVolume = serde_json::from_str(text)?;
    let name = object.metadata.name.clone().unwrap_or_default();
    Ok(Some(if there { Change::Volume(Box::new(object)) } else { Change::VolumeGone(name) }))
}

fn storage_class(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: StorageClass = serde_json::from_str(text)?;
    let name = object.metadata.name.clone().unwrap_or_default();
    Ok(Some(if there { Change::StorageClass(Box::new(object)) } else { Change::StorageClassGone(name) }))
}

fn csi_node(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: CSINode = serde_json::from_str(text)?;
    let name = object.metadata.name.clone().unwrap_or_default();
    Ok(Some(if there { Change::CsiNode(Box::new(object)) } else { Change::CsiNodeGone(name) }))
}

fn csi_driver(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: CSIDriver = serde_json::from_str(text)?;
    let reports = there && object.spec.storage_capacity == Some(true);
    Ok(Some(Change::CsiDriver(object.metadata.name.unwrap_or_default(), reports)))
}

fn resource_claim(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: ResourceClaim = serde_json::from_str(text)?;
    if there {
        return Ok(Some(Change::ResourceClaim(Box::new(object))));
    }
    let meta = object.metadata;
    Ok(Some(Change::ResourceClaimGone(meta.namespace.unwrap_or_default(), meta.name.unwrap_or_default())))
}

fn device_class(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: DeviceClass = serde_json::from_str(text)?;
    let name = object.metadata.name.clone().unwrap_or_default();
    Ok(Some(if there { Change::DeviceClass(Box::new(object)) } else { Change::DeviceClassGone(name) }))
}

fn resource_slice(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: ResourceSlice = serde_json::from_str(text)?;
    let name = object.metadata.name.clone().unwrap_or_default();
    Ok(Some(if there { Change::ResourceSlice(Box::new(object)) } else { Change::ResourceSliceGone(name) }))
}

fn pod_group(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    let object: PodGroup = serde_json::from_str(text)?;
    if there {
        return Ok(Some(Change::PodGroup(Box::new(object))));
    }
    Ok(Some(Change::PodGroupGone(object.metadata.namespace, object.metadata.name)))
}

fn capacity(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    Ok(Some(Change::Capacity(serde_json::from_str(text)?, !there)))
}

fn attachment(text: &str, there: bool) -> serde_json::Result<Option<Change>> {
    Ok(Some(Change::Attachment(serde_json::from_str(text)?, !there)))
}

#[derive(Deserialize)]
struct RawList<'a> {
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    continue_token: Option<String>,
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct OnlyMeta {
    metadata: Meta,
}

/// Why a source stops for a moment.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Client(#[from] keelson_client::Error),
    #[error("unexpected answer: {0}")]
    Decode(#[from] serde_json::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("the server answered {0}")]
    Refused(u16),
    #[error("stopped")]
    Stopped,
}

/// Follows one kind until `stop`.
pub async fn follow(source: &'static Source, client: Client, news: mpsc::Sender<News>, stop: CancellationToken) {
    // Objects that are known, so that those which a new list lacks are known to be gone.
    let mut known: HashSet<(String, String)> = HashSet::new();
    while !stop.is_cancelled() {
        let result = tokio::select! {
            () = stop.cancelled() => return,
            result = once(source, &client, &news, &mut known) => result,
        };
        match result {
            Ok(()) => debug!(path = source.path, "watch ended; listing again"),
            Err(Error::Stopped) => return,
            Err(Error::Refused(404)) if source.optional => {
                let _ = news.send(News::Listed(source.path)).await;
                debug!(path = source.path, "not served by this cluster");
                return;
            }
            Err(error) => warn!(path = source.path, %error, "cannot list or watch; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn once(
    source: &'static Source,
    client: &Client,
    news: &mpsc::Sender<News>,
    known: &mut HashSet<(String, String)>,
) -> Result<(), Error> {
    let mut version = list(source, client, news, known).await?;
    news.send(News::Listed(source.path)).await.map_err(|_| Error::Stopped)?;
    // A watch that ends in order is asked for again from where it was.
    loop {
        let before = version.clone();
        watch(source, client, news, known, &mut version).await?;
        if before == version {
            tokio::time::sleep(RETRY / 10).await;
        }
    }
}

async fn list(
    source: &'static Source,
    client: &Client,
    news: &mpsc::Sender<News>,
    known: &mut HashSet<(String, String)>,
) -> Result<String, Error> {
    let is_pods = source.path == "/api/v1/pods";
    let mut uids: HashSet<String> = HashSet::new();
    let mut seen: HashSet<(String, String)> = HashSet::new();
    let mut token = String::new();
    let version = loop {
        let path = match token.as_str() {
            "" => format!("{}?limit={PAGE}", source.path),
            token => format!("{}?limit={PAGE}&continue={}", source.path, escape(token)),
        };
        let bytes = get(client, &path).await?;
        let page: RawList<'_> = serde_json::from_slice(&bytes)?;
        for item in page.items.iter().flatten() {
            let meta: OnlyMeta = serde_json::from_str(item.get())?;
            if is_pods {
                uids.insert(meta.metadata.uid);
            } else {
                let key = (meta.metadata.namespace, meta.metadata.name);
                seen.insert(key);
            }
            send(source, item.get(), true, news).await?;
        }
        match page.metadata.continue_token {
            Some(next) if !next.is_empty() => token = next,
            _ => break page.metadata.resource_version,
        }
    };
    if is_pods {
        // The scheduler itself knows which pods it knows.
        news.send(News::Change(Change::OnlyPods(uids))).await.map_err(|_| Error::Stopped)?;
        return Ok(version);
    }
    for (namespace, name) in known.difference(&seen) {
        let gone = serde_json::json!({"metadata": {"namespace": namespace, "name": name}});
        send(source, &gone.to_string(), false, news).await?;
    }
    *known = seen;
    Ok(version)
}

async fn watch(
    source: &'static Source,
    client: &Client,
    news: &mpsc::Sender<News>,
    known: &mut HashSet<(String, String)>,
    version: &mut String,
) -> Result<(), Error> {
    let path = format!("{}?watch=true&allowWatchBookmarks=true&resourceVersion={version}", source.path);
    let response = client.send(http::Method::GET, &path, None, Bytes::new()).await?;
    if !response.status().is_success() {
        return Err(Error::Refused(response.status().as_u16()));
    }
    let frames = BodyStream::new(response.into_body()).try_filter_map(|f| async { Ok(f.into_data().ok()) }).boxed();
    let codec = tokio_util::codec::LinesCodec::new_with_max_length(MAX_WATCH_EVENT_BYTES);
    let mut lines = tokio_util::codec::FramedRead::new(tokio_util::io::StreamReader::new(frames), codec);
    while let Some(line) = lines.next().await {
        let line = line.map_err(std::io::Error::other)?;
        let event: RawEvent<'_> = serde_json::from_str(&line)?;
        if event.kind == "ERROR" {
            return Err(Error::Refused(410));
        }
        let OnlyMeta { metadata } = serde_json::from_str(event.object.get())?;
        if !metadata.resource_version.is_empty() {
            *version = metadata.resource_version;
        }
        if event.kind == "BOOKMARK" {
            continue;
        }
        let there = event.kind != "DELETED";
        if source.path != "/api/v1/pods" {
            let key = (metadata.namespace, metadata.name);
            if there {
                known.insert(key);
            } else {
                known.remove(&key);
            }
        }
        send(source, event.object.get(), there, news).await?;
    }
    Ok(())
}

async fn send(source: &'static Source, text: &str, there: bool, news: &mpsc::Sender<News>) -> Result<(), Error> {
    if let Some(change) = (source.convert)(text, there)? {
        news.send(News::Change(change)).await.map_err(|_| Error::Stopped)?;
    }
    Ok(())
}

async fn get(client: &Client, path: &str) -> Result<Bytes, Error> {
    let response = client.send(http::Method::GET, path, None, Bytes::new()).await?;
    let code = response.status();
    let bytes = response.into_body().collect().await?.to_bytes();
    if code.is_success() { Ok(bytes) } else { Err(Error::Refused(code.as_u16())) }
}

fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// Everything the cluster has now, for explanations.
pub async fn snapshot(client: &Client, groups: bool) -> Result<Vec<Change>, keelson_client::Error> {
    let mut all = Vec::new();
    for source in sources(groups) {
        let (sender, mut receiver) = mpsc::channel(1024);
        let mut known = HashSet::new();
        let client = client.clone();
        let task = tokio::spawn(async move { list(source, &client, &sender, &mut known).await.map(drop) });
        while let Some(news) = receiver.recv().await {
            if let News::Change(change) = news {
                all.push(change);
            }
        }
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(Error::Refused(404))) if source.optional => {}
            Ok(Err(Error::Client(error))) => return Err(error),
            Ok(Err(error)) => return Err(std::io::Error::other(format!("{}: {error}", source.path)).into()),
            Err(error) => return Err(std::io::Error::other(error).into()),
        }
    }
    Ok(all)
}
