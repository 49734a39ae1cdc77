//! Follows the definitions: puts rows into the table, accepts names, and deletes the objects of a definition that goes.
//!
//! Every member runs this. Writes name the version of the definition that they were decided on, so of several members
//! one writes and the others see that nothing is left to do.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request};
use keelson_machinery::resource::ResourceDef;
use keelson_store::{EventKind, KeyRange, KeyValue, WatchRequest};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{debug, error, warn};

use super::{Definition, GROUP, PLURAL, brief, definition, names, range};
use crate::ApiServer;
use crate::access::UserInfo;

/// Changes that may wait for the part that writes.
const MAX_WAITING: usize = 1024;
/// Definitions that are written at once: enough that a write's way to the disk is used by others, few enough that what
/// they take while they are changed is not much.
const WRITES_AT_ONCE: usize = 8;
/// Pause before what failed or is not done is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Name that the server's own writes are recorded under.
const AGENT: &str = "kube-apiserver";

/// A definition that changed: its name, and what the writing part needs to know of it.
type Change = (String, Option<Value>);
/// A definition as the store has it, by its key there.
type Stored = (String, Option<Arc<KeyValue>>);

/// Starts the tasks that follow the definitions.
pub fn start(server: &Arc<ApiServer>) {
    let (changed, changes) = mpsc::channel(MAX_WAITING);
    tokio::spawn(stopped_by(server.clone(), follow(server.clone(), changed)));
    tokio::spawn(stopped_by(server.clone(), reconcile(server.clone(), changes)));
}

async fn stopped_by(server: Arc<ApiServer>, task: impl Future<Output = ()>) {
    let stop = server.stop.clone();
    drop(server);
    stop.run_until_cancelled(task).await;
}

/// Keeps the table up to date; what changed goes on to [`reconcile`].
async fn follow(server: Arc<ApiServer>, changed: mpsc::Sender<Change>) {
    loop {
        let view = server.objects.kv.view();
        let mut changes: Vec<Stored> = view.range(&range()).map(|kv| (text(&kv.key), Some(kv.clone()))).collect();
        for (group, definitions) in server.customs.groups() {
            for name in definitions.iter().map(|d| &d.name) {
                let key = format!("/registry/{GROUP}/{PLURAL}/{name}");
                if !changes.iter().any(|(known, _)| *known == key) {
                    debug!(group, name, "a definition went unseen");
                    changes.push((key, None));
                }
            }
        }
        if tell(&server, &changed, changes).await.is_err() {
            return;
        }
        let request = WatchRequest::new(range(), view.revision() + 1);
        drop(view);
        let Ok(mut watch) = server.objects.kv.watch(request) else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        while let Some(Ok(batch)) = watch.next().await {
            let changes = batch.events.iter().map(|event| {
                let now = (event.kind == EventKind::Put).then(|| event.kv.clone());
                (text(&event.kv.key), now)
            });
            if tell(&server, &changed, changes.collect()).await.is_err() {
                return;
            }
        }
        // Too far behind, or another store: begin anew.
        tokio::time::sleep(RETRY).await;
    }
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

/// Puts changed definitions into the table, then tells the writing part, each read once.
async fn tell(server: &ApiServer, changed: &mpsc::Sender<Change>, changes: Vec<Stored>) -> Result<(), ()> {
    let (mut rows, mut told) = (Vec::new(), Vec::new());
    for (key, stored) in changes {
        let name = key.rsplit('/').next().unwrap_or_default().to_owned();
        let read = stored.as_ref().and_then(|kv| Some((kv, read(kv)?)));
        rows.push((name.clone(), read.as_ref().and_then(|(kv, of)| Definition::of(of, kv, server.customs.hooks()))));
        told.push((name, read.map(|(_, object)| light(object))));
    }
    server.customs.change(rows);
    for change in told {
        changed.send(change).await.map_err(|_| ())?;
    }
    Ok(())
}

/// A definition without its schemas, which are nearly all of it and are read when they are first needed.
fn read(kv: &KeyValue) -> Option<Value> {
    brief::without(kv, "openAPIV3Schema").inspect_err(|e| error!(error = e.message, "a definition cannot be read")).ok()
}

/// What the writing part remembers of a definition: everything but its versions.
type Known = HashMap<String, Value>;

/// Something to write.
enum Step {
    /// The status of a definition.
    Status(Value),
    /// Its objects, then its finalizer, are to go.
    CleanUp(Value),
}

/// Writes what definitions need. What is decided on one counts for the next at once, so many can be written together.
async fn reconcile(server: Arc<ApiServer>, mut changes: mpsc::Receiver<Change>) {
    let mut known = Known::new();
    let mut again = BTreeSet::new();
    loop {
        let mut batch = Vec::new();
        let due = if again.is_empty() {
            if changes.recv_many(&mut batch, MAX_WAITING).await == 0 {
                return;
            }
            BTreeSet::new()
        } else {
            match tokio::time::timeout(RETRY, changes.recv_many(&mut batch, MAX_WAITING)).await {
                Ok(0) => return,
                Ok(_) => BTreeSet::new(),
                Err(_) => std::mem::take(&mut again),
            }
        };
        let due = batch.into_iter().fold(due, |due, change| note(&mut known, change, due));
        let steps: Vec<(String, Step)> =
            due.into_iter().filter_map(|name| decide(&mut known, &name).map(|step| (name, step))).collect();
        // Tasks of their own: most of a write is work for the processor.
        let work = steps.into_iter().map(|(name, step)| {
            let server = server.clone();
            let told = name.clone();
            let task = async move { carry_out(&server, &name, step).await };
            async move { (tokio::spawn(task).await.unwrap_or(false), told) }
        });
        let mut done = futures::stream::iter(work).buffer_unordered(WRITES_AT_ONCE);
        while let Some((settled, name)) = done.next().await {
            if !settled {
                remember(&server, &mut known, &name);
                again.insert(name);
            }
        }
    }
}

/// Takes over a change; what it is due for now is added to `due`, and what waited for names that it had.
fn note(known: &mut Known, (name, object): Change, mut due: BTreeSet<String>) -> BTreeSet<String> {
    let before = known.remove(&name);
    if let Some(object) = object {
        known.insert(name.clone(), object);
    }
    let names_of = |object: Option<&Value>| object.map(|o| o["status"]["acceptedNames"].clone());
    if names_of(before.as_ref()) != names_of(known.get(&name)) {
        let group = before.as_ref().or(known.get(&name)).map(|o| o["spec"]["group"].clone());
        let waiting = known.iter().filter(|(other, object)| {
            **other != name && Some(&object["spec"]["group"]) == group.as_ref() && !accepted(object)
        });
        due.extend(waiting.map(|(other, _)| other.clone()));
    }
    due.insert(name);
    due
}

/// Looks again at a definition after a write of it failed.
fn remember(server: &ApiServer, known: &mut Known, name: &str) {
    let key = format!("/registry/{GROUP}/{PLURAL}/{name}");
    let stored = server.objects.kv.view().get(key.as_bytes()).and_then(|kv| read(kv));
    match stored {
        Some(object) => drop(known.insert(name.to_owned(), light(object))),
        None => drop(known.remove(name)),
    }
}

fn light(mut object: Value) -> Value {
    if let Some(spec) = object["spec"].as_object_mut() {
        spec.remove("versions");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
        annotations.retain(|key, _| key == definition::APPROVED);
    }
    object
}

fn accepted(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.is_some_and(|list| list.iter().any(|c| c["type"] == "NamesAccepted" && c["status"] == "True"))
}

/// What a definition needs; nothing if all is as it should be, or only time can change it.
fn decide(known: &mut Known, name: &str) -> Option<Step> {
    let object = known.get(name)?;
    if object["metadata"]["deletionTimestamp"].is_string() {
        return Some(Step::CleanUp(object.clone()));
    }
    let same_group = |other: &&Value| other["spec"]["group"] == object["spec"]["group"];
    let others: Vec<&Value> =
        known.iter().filter(|(key, _)| *key != name).map(|(_, value)| value).filter(same_group).collect();
    let status = names::status(object, &others)?;
    let patch = json!({"metadata": {"resourceVersion": object["metadata"]["resourceVersion"]}, "status": status});
    known.get_mut(name)?["status"] = status;
    Some(Step::Status(patch))
}

/// Writes it; whether that is done.
async fn carry_out(server: &Arc<ApiServer>, name: &str, step: Step) -> bool {
    match step {
        Step::CleanUp(object) => clean_up(server, &object, name).await,
        // A conflict means that a newer version is on its way here.
        Step::Status(patch) => {
            let code = write(server, Method::PATCH, &format!("{name}/status"), Some(&patch)).await;
            matches!(code, 200..300 | 404 | 409)
        }
    }
}

async fn clean_up(server: &Arc<ApiServer>, object: &Value, name: &str) -> bool {
    let finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    if !finalizers.iter().any(|f| f == definition::CLEANUP) {
        return true;
    }
    let group = object["spec"]["group"].as_str().unwrap_or_default();
    let plural = object["spec"]["names"]["plural"].as_str().unwrap_or_default();
    let served = server.customs.groups().into_iter().filter(|(g, _)| g == group).flat_map(|(_, all)| all);
    let def = served.filter(|d| d.name == name).find_map(|d| d.versions.iter().find(|v| v.served).map(|v| v.def));
    if let Some(def) = def
        && !delete_all(server, def).await
    {
        return false;
    }
    let left = server.objects.kv.view().count(&KeyRange::prefix(format!("/registry/{group}/{plural}/")));
    if left > 0 && def.is_some() {
        debug!(name, left, "objects of a definition wait for their finalizers");
        return false;
    }
    let rest: Vec<&Value> = finalizers.iter().filter(|f| *f != definition::CLEANUP).collect();
    let patch = json!({"metadata": {"resourceVersion": object["metadata"]["resourceVersion"], "finalizers": rest}});
    matches!(write(server, Method::PATCH, name, Some(&patch)).await, 200..300 | 404 | 409)
}

async fn delete_all(server: &Arc<ApiServer>, def: &'static ResourceDef) -> bool {
    if server.objects.kv.view().count(&KeyRange::prefix(def.prefix())) == 0 {
        return true;
    }
    let path = format!("/apis/{}/{}/{}", def.group, def.version, def.plural);
    matches!(call(server, Method::DELETE, &path, None).await, 200..300)
}

async fn write(server: &Arc<ApiServer>, method: Method, tail: &str, body: Option<&Value>) -> u16 {
    call(server, method, &format!("/apis/{GROUP}/v1/{PLURAL}/{tail}"), body).await
}

/// A request of the server to itself; gives the code of the answer.
pub async fn call(server: &Arc<ApiServer>, method: Method, path: &str, body: Option<&Value>) -> u16 {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    send(server, method, path, kind, body).await
}

/// The same, for a configuration that is applied.
pub async fn apply(server: &Arc<ApiServer>, path: &str, body: &Value) -> u16 {
    send(server, Method::PATCH, path, "application/apply-patch+yaml", Some(body)).await
}

async fn send(server: &Arc<ApiServer>, method: Method, path: &str, kind: &str, body: Option<&Value>) -> u16 {
    let bytes = body.map_or_else(Bytes::new, |body| body.to_string().into());
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, kind)
        .header(http::header::USER_AGENT, AGENT)
        .body(bytes);
    let Ok(request) = request else { return 400 };
    let user = UserInfo {
        name: "system:apiserver".into(),
        groups: vec!["system:masters".into(), "system:authenticated".into()],
        ..UserInfo::default()
    };
    let response = server.call(user, request).await;
    let code = response.status().as_u16();
    if code >= 400 && code != 404 && code != 409 {
        let body =
            http_body_util::BodyExt::collect(response.into_body()).await.map(|b| b.to_bytes()).unwrap_or_default();
        warn!(path, code, answer = %String::from_utf8_lossy(&body[..body.len().min(500)]), "the server's own request was refused");
    }
    code
}
