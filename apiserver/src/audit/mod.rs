//! Audit: who asked for what, and what became of it, as a policy says, to a file and to a webhook.
//!
//! The layers of a request add to its record through a task-local, so nothing is handed around and a request that is not
//! recorded pays for one look at it. Invariant: nothing waits without bound; what a full buffer cannot take is counted.

mod event;
mod log;
mod policy;
mod sink;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::BodyExt;
use keelson_client::Body;
use keelson_machinery::status::Status;
use keelson_machinery::{cbor, decode, protobuf};
use parking_lot::Mutex;
use rand::RngExt;
use serde_json::{Value, json};

use crate::access::{Attributes, UserInfo};
use crate::admission::review::user_info;
use crate::authn::Acting;
use crate::body;
use event::{Event, ObjectRef, now};
pub use log::Rotation;
pub use policy::{Level, Policy, Stage};
use sink::Sink;
pub use sink::{Mode, WebhookSettings};

/// Header with a request's audit id.
pub const AUDIT_ID: &str = "audit-id";
/// Longest audit id that a client may choose, bytes.
const MAX_ID_BYTES: usize = 64;
/// Longest name of a client that is recorded, bytes.
const MAX_AGENT_BYTES: usize = 1024;
/// Answers to deletions up to this size are looked into for their Status, bytes.
const MAX_STATUS_BYTES: usize = 64 << 10;

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub std::net::SocketAddr);

/// What is recorded, and where to.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The policy.
    pub policy: Option<PathBuf>,
    /// The log file; `-` is standard output.
    pub log: Option<PathBuf>,
    /// Whether the log has the old one-line form.
    pub legacy: bool,
    /// How the log is kept.
    pub rotation: Rotation,
    /// How the log is written.
    pub log_mode: Mode,
    /// The webhook.
    pub webhook: Option<WebhookSettings>,
}

/// Records requests.
#[derive(Default)]
pub struct Auditor {
    policy: ArcSwap<Policy>,
    sinks: Vec<Sink>,
}

/// What is known of a request so far.
pub struct Record {
    verdict: policy::Verdict,
    draft: Mutex<Event>,
}

tokio::task_local! {
    static CURRENT: Arc<Record>;
}

/// Adds an annotation to the record of the request that is carried out, if it is recorded.
pub fn annotate(key: impl Into<String>, value: impl FnOnce() -> String) {
    let _ = CURRENT.try_with(|record| record.draft.lock().annotations.insert(key.into(), value()));
}

/// Whether the request that is carried out is recorded with its body.
pub fn records_bodies() -> bool {
    CURRENT.try_with(|record| record.verdict.level >= Level::Request).unwrap_or(false)
}

/// Notes as whom a request acts, and what permits it.
pub(crate) fn impersonated(acting: &Acting) {
    let _ = CURRENT.try_with(|record| {
        let mut draft = record.draft.lock();
        draft.impersonated_user = user_info(&acting.user);
        if !acting.constraint.is_empty() {
            draft.authentication_metadata = json!({"impersonationConstraint": acting.constraint});
        }
    });
}

/// Notes the object that a request brings: it says its name where the path does not.
pub fn brought(object: &Value) {
    let _ = CURRENT.try_with(|record| record.bring(object));
}

/// Notes with which Status a request was refused.
pub fn refused(status: &Status) {
    let _ = CURRENT.try_with(|record| {
        let value = status.to_value();
        let mut draft = record.draft.lock();
        if record.verdict.level == Level::RequestResponse {
            draft.response_object = value.clone();
        }
        draft.response_status = status_of(&value, status.code);
    });
}

/// A Status as events have it: without what names its kind.
fn status_of(value: &Value, code: u16) -> Value {
    let mut value = value.clone();
    if let Some(map) = value.as_object_mut() {
        map.remove("kind");
        map.remove("apiVersion");
        map.insert("code".into(), code.into());
    }
    value
}

impl Record {
    fn bring(&self, object: &Value) {
        let mut draft = self.draft.lock();
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
        if let Some(reference) = draft.object_ref.as_mut() {
            for (field, key) in [
                (&mut reference.name, "name"),
                (&mut reference.namespace, "namespace"),
                (&mut reference.uid, "uid"),
                (&mut reference.resource_version, "resourceVersion"),
            ] {
                if field.is_empty() {
                    *field = text(key);
                }
            }
        }
        if self.verdict.level >= Level::Request {
            draft.request_object = self.shown(object.clone());
        }
    }

    /// A body as it is recorded.
    fn shown(&self, mut object: Value) -> Value {
        if self.verdict.omit_managed_fields {
            let strip = |object: &mut Value| {
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("managedFields");
                }
            };
            strip(&mut object);
            object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(strip);
        }
        object
    }

    fn event(&self, stage: Stage) -> Option<Event> {
        if self.verdict.omitted.contains(&stage) {
            return None;
        }
        let mut event = self.draft.lock().clone();
        event.stage = stage;
        event.stage_timestamp =
            if stage == Stage::RequestReceived { event.request_received_timestamp.clone() } else { now() };
        Some(event)
    }
}

impl Auditor {
    /// As the settings say; nothing is recorded without a policy and a place to record to.
    pub fn load(settings: &Settings) -> Result<Self, String> {
        if settings.policy.is_none() {
            return Ok(Self::default());
        }
        let policy = ArcSwap::from_pointee(Self::policy_of(settings)?);
        let mut sinks = Vec::new();
        if let Some(path) = &settings.log {
            let target = log::Target::open(path, settings.rotation.clone())?;
            sinks.push(Sink::log(target, settings.legacy, settings.log_mode));
        }
        if let Some(webhook) = &settings.webhook {
            sinks.push(Sink::webhook(webhook)?);
        }
        Ok(Self { policy, sinks })
    }

    /// The policy of the settings.
    pub fn policy_of(settings: &Settings) -> Result<Policy, String> {
        settings.policy.as_ref().map_or_else(|| Ok(Policy::default()), |path| Policy::load(path))
    }

    /// Goes by another policy from now on.
    pub fn replace(&self, policy: Policy) {
        self.policy.store(Arc::new(policy));
    }

    /// Begins the record of a request. `None`: it is not recorded.
    fn begin(
        &self,
        id: &str,
        user: Option<&UserInfo>,
        asked: &Attributes,
        request: (&HeaderMap, &http::Uri, Option<Peer>),
    ) -> Option<Arc<Record>> {
        let verdict = self.policy.load().verdict(user, asked);
        if verdict.level == Level::None {
            return None;
        }
        let (headers, uri, peer) = request;
        let received = now();
        let draft = Event {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: verdict.level,
            audit_id: id.to_owned(),
            stage: Stage::RequestReceived,
            request_uri: uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string),
            verb: asked.verb.clone(),
            user: user.map_or_else(|| json!({}), user_info),
            impersonated_user: Value::Null,
            authentication_metadata: Value::Null,
            source_ips: source_ips(headers, peer),
            user_agent: agent(headers),
            object_ref: ObjectRef::of(asked),
            response_status: Value::Null,
            request_object: Value::Null,
            response_object: Value::Null,
            stage_timestamp: received.clone(),
            request_received_timestamp: received,
            annotations: Default::default(),
        };
        Some(Arc::new(Record { verdict, draft: Mutex::new(draft) }))
    }

    /// Carries out a request and records it.
    pub async fn around<F>(
        self: &Arc<Self>,
        user: UserInfo,
        request: Request<Bytes>,
        carry_out: impl FnOnce(UserInfo, Request<Bytes>) -> F,
    ) -> Response<Body>
    where
        F: Future<Output = Response<Body>>,
    {
        let id = audit_id(request.headers());
        let record = if self.sinks.is_empty() {
            None
        } else {
            let asked = crate::request::attributes_of(request.method(), request.uri());
            let peer = request.extensions().get::<Peer>().copied();
            self.begin(&id, Some(&user), &asked, (request.headers(), request.uri(), peer))
        };
        let mut response = match record {
            None => carry_out(user, request).await,
            Some(record) => self.recorded(record, request, |request| carry_out(user, request)).await,
        };
        if let Ok(value) = HeaderValue::try_from(id) {
            response.headers_mut().insert(AUDIT_ID, value);
        }
        response
    }

    async fn recorded<F>(
        self: &Arc<Self>,
        record: Arc<Record>,
        request: Request<Bytes>,
        carry_out: impl FnOnce(Request<Bytes>) -> F,
    ) -> Response<Body>
    where
        F: Future<Output = Response<Body>>,
    {
        if let Err(why) = self.write(record.event(Stage::RequestReceived)).await {
            return body::refusal(&Status::internal(&format!("the request could not be recorded: {why}")));
        }
        let long_running = is_long_running(&record.draft.lock());
        // Patches and options of deletions are no objects, but what they hold is what was asked for.
        if record.verdict.level >= Level::Request
            && let Some(sent) = readable(request.headers(), request.body())
        {
            record.draft.lock().request_object = record.shown(sent);
        }
        let response = CURRENT.scope(record.clone(), carry_out(request)).await;
        let code = response.status().as_u16();
        {
            let mut draft = record.draft.lock();
            if draft.response_status.is_null() {
                draft.response_status = json!({"metadata": {}, "code": code});
            }
        }
        if long_running && code < 400 {
            let _ = self.write(record.event(Stage::ResponseStarted)).await;
            return self.until_its_end(record, response);
        }
        let response = look_into(&record, response).await;
        if let Err(why) = self.write(record.event(Stage::ResponseComplete)).await {
            tracing::error!(%why, "the end of a request could not be recorded");
        }
        response
    }

    /// A panic of the request that is carried out.
    pub async fn panicked(&self) {
        let Ok(record) = CURRENT.try_with(Arc::clone) else { return };
        record.draft.lock().response_status = json!({"metadata": {}, "status": "Failure", "message": "APIServer panic'd", "reason": "InternalError", "code": 500});
        let _ = self.write(record.event(Stage::Panic)).await;
    }

    /// The answer of a request that goes on; its end is recorded when its body ends.
    fn until_its_end(self: &Arc<Self>, record: Arc<Record>, response: Response<Body>) -> Response<Body> {
        struct End(Arc<Auditor>, Arc<Record>);
        impl Drop for End {
            fn drop(&mut self) {
                if let Some(event) = self.1.event(Stage::ResponseComplete) {
                    self.0.sinks.iter().for_each(|sink| sink.offer(&event));
                }
            }
        }
        body::holding(response, End(self.clone(), record))
    }

    /// Records a request whose sender could not be told.
    pub async fn unauthenticated(
        &self,
        request: (&http::Method, &HeaderMap, &http::Uri, Option<Peer>),
        with_certificate: bool,
    ) {
        if self.sinks.is_empty() {
            return;
        }
        let (method, headers, uri, peer) = request;
        let asked = crate::request::attributes_of(method, uri);
        let Some(record) = self.begin(&audit_id(headers), None, &asked, (headers, uri, peer)) else { return };
        let tried = tried(headers, with_certificate);
        record.draft.lock().response_status =
            json!({"metadata": {}, "status": "Failure", "message": tried, "reason": "Unauthorized", "code": 401});
        let _ = self.write(record.event(Stage::ResponseStarted)).await;
    }

    async fn write(&self, event: Option<Event>) -> Result<(), String> {
        let Some(event) = event else { return Ok(()) };
        for sink in &self.sinks {
            sink.write(&event).await?;
        }
        Ok(())
    }

    /// Waits until what was taken is written, or the time is over.
    pub async fn flush(&self, patience: Duration) {
        for sink in &self.sinks {
            sink.flush(patience).await;
        }
    }
}

/// The id that the client chose, or a new one.
fn audit_id(headers: &HeaderMap) -> String {
    let given = headers.get(AUDIT_ID).and_then(|v| v.to_str().ok()).filter(|id| !id.is_empty());
    given.filter(|id| id.len() <= MAX_ID_BYTES).map_or_else(random_id, str::to_owned)
}

/// A random UUID, for which the kernel need not be asked each time.
fn random_id() -> String {
    uuid::Builder::from_random_bytes(rand::rng().random()).into_uuid().to_string()
}

fn agent(headers: &HeaderMap) -> String {
    let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match agent.get(..MAX_AGENT_BYTES) {
        Some(start) if agent.len() > MAX_AGENT_BYTES => format!("{start}...TRUNCATED"),
        _ => agent.to_owned(),
    }
}

/// What proxies say of where the request came from, and the connection's other end.
fn source_ips(headers: &HeaderMap, peer: Option<Peer>) -> Vec<String> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let ip = |text: &str| text.trim().parse::<std::net::IpAddr>().ok();
    let mut out: Vec<String> = text("x-forwarded-for").split(',').filter_map(ip).map(|ip| ip.to_string()).collect();
    let more = [ip(text("x-real-ip")), Some(peer.map_or(std::net::Ipv6Addr::LOCALHOST.into(), |p| p.0.ip()))];
    for ip in more.into_iter().flatten().map(|ip| ip.to_string()) {
        if !out.contains(&ip) {
            out.push(ip);
        }
    }
    out
}

fn tried(headers: &HeaderMap, with_certificate: bool) -> String {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let scheme = authorization.split(' ').next().unwrap_or_default().to_lowercase();
    let mut methods: Vec<&str> = ["basic", "bearer"].into_iter().filter(|known| *known == scheme).collect();
    if with_certificate {
        methods.push("x509");
    }
    match methods.is_empty() {
        true => "Authentication failed, no credentials provided".into(),
        false => format!("Authentication failed, attempted: {}", methods.join(", ")),
    }
}

fn is_long_running(draft: &Event) -> bool {
    let sub = draft.object_ref.as_ref().map_or("", |o| o.subresource.as_str());
    draft.verb == "watch" || crate::subresources::is_stream(sub)
}

/// A body that holds a document.
fn readable(headers: &HeaderMap, bytes: &[u8]) -> Option<Value> {
    if bytes.is_empty() {
        return None;
    }
    match body::content_type(headers) {
        protobuf::MEDIA_TYPE => protobuf::decode(bytes, ("", "")).ok(),
        kind if kind.ends_with("cbor") => cbor::decode(bytes).ok(),
        kind if kind.contains("yaml") => decode::yaml(bytes).ok().map(|decoded| decoded.value),
        kind if kind.contains("json") => serde_json::from_slice(bytes).ok(),
        _ => None,
    }
}

/// Takes from an answer what is recorded of it.
async fn look_into(record: &Record, response: Response<Body>) -> Response<Body> {
    let whole = record.verdict.level == Level::RequestResponse && record.draft.lock().response_object.is_null();
    let deletes = record.draft.lock().verb == "delete" && response.status().is_success();
    if !whole && !deletes || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let (parts, incoming) = response.into_parts();
    let bytes = match incoming.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => return body::refusal(&Status::internal(&error.to_string())),
    };
    if whole || bytes.len() <= MAX_STATUS_BYTES {
        let told = readable(&parts.headers, &bytes).unwrap_or_default();
        let mut draft = record.draft.lock();
        if told["kind"] == "Status" && told["apiVersion"] == "v1" {
            draft.response_status = status_of(&told, parts.status.as_u16());
        }
        if whole {
            draft.response_object = record.shown(told);
        }
    }
    Response::from_parts(parts, body::full(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_request_came_from() {
        let mut headers = HeaderMap::new();
        let peer = Some(Peer("10.0.0.9:1234".parse().unwrap()));
        assert_eq!(source_ips(&headers, peer), ["10.0.0.9"]);
        assert_eq!(source_ips(&headers, None), ["::1"], "the server itself");
        headers.insert("x-forwarded-for", "1.2.3.4, nonsense, 10.0.0.9".parse().unwrap());
        headers.insert("x-real-ip", "5.6.7.8".parse().unwrap());
        assert_eq!(source_ips(&headers, peer), ["1.2.3.4", "10.0.0.9", "5.6.7.8"]);
    }

    #[test]
    fn what_was_tried_is_told() {
        let mut headers = HeaderMap::new();
        assert_eq!(tried(&headers, false), "Authentication failed, no credentials provided");
        headers.insert(header::AUTHORIZATION, "Bearer x".parse().unwrap());
        assert_eq!(tried(&headers, true), "Authentication failed, attempted: bearer, x509");
    }
}
