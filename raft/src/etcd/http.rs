//! etcd's HTTP endpoints: health, version, metrics.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::IntoResponse;
use axum::routing::get;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use keelson_proto::etcd::etcdserverpb::AlarmType;

use super::{API_VERSION, Front, alarm};

/// The endpoints.
pub fn routes(front: &Arc<Front>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .with_state(front.clone())
}

/// What keeps this member from serving, if anything does.
async fn ill(front: &Front, query: Option<String>) -> Option<String> {
    let query = query.unwrap_or_default();
    let excluded = |name: &str| query.split('&').any(|part| part == format!("exclude={name}"));
    for (kind, name) in [(AlarmType::Nospace, "NOSPACE"), (AlarmType::Corrupt, "CORRUPT")] {
        if !excluded(name) && !alarm::list(front, 0, kind).is_empty() {
            return Some(format!("ALARM {name}"));
        }
    }
    let standing = front.cluster.standing();
    if let Some(error) = standing.errors.first() {
        return Some(error.clone());
    }
    if standing.leader == 0 {
        return Some("RAFT NO LEADER".into());
    }
    if query.split('&').any(|part| part == "serializable=true") {
        return None;
    }
    front.kv.barrier().await.err().map(|error| format!("QGET ERROR: {error}"))
}

async fn health(State(front): State<Arc<Front>>, RawQuery(query): RawQuery) -> impl IntoResponse {
    let reason = ill(&front, query).await;
    let status = if reason.is_some() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let health = if reason.is_some() { "false" } else { "true" };
    let body = serde_json::json!({ "health": health, "reason": reason.unwrap_or_default() });
    (status, [(CONTENT_TYPE, "application/json")], body.to_string())
}

async fn live(State(front): State<Arc<Front>>) -> impl IntoResponse {
    match front.cluster.standing().errors.first() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("[-]store failed: {error}\n")),
    }
}

async fn ready(State(front): State<Arc<Front>>) -> impl IntoResponse {
    match ill(&front, Some("exclude=NOSPACE".into())).await {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("[-]linearizable_read failed: {reason}\n")),
    }
}

async fn version() -> impl IntoResponse {
    let (major_minor, _) = API_VERSION.rsplit_once('.').unwrap_or((API_VERSION, ""));
    let body = serde_json::json!({ "etcdserver": API_VERSION, "etcdcluster": format!("{major_minor}.0") });
    ([(CONTENT_TYPE, "application/json")], body.to_string())
}

async fn metrics(State(front): State<Arc<Front>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], exposition(&front))
}

/// What the operating system says of this process; what it does not say is left out.
fn process() -> String {
    /// Of Linux on all its machines.
    const PAGE_BYTES: u64 = 4096;
    let mut out = String::new();
    if let Ok(text) = std::fs::read_to_string("/proc/self/statm")
        && let Some(pages) = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok())
    {
        let bytes = pages * PAGE_BYTES;
        let _ = writeln!(out, "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {bytes}");
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        let _ = writeln!(out, "# TYPE process_open_fds gauge\nprocess_open_fds {}", files.count());
    }
    out
}

/// etcd's names where the meaning is the same, so that its dashboards and alerts work.
fn exposition(front: &Front) -> String {
    let (standing, status, view) = (front.cluster.standing(), front.kv.status(), front.kv.view());
    let own = front.cluster.member_id();
    let alarms = alarm::list(front, own, AlarmType::None).len() as u64;
    let flag = u64::from;
    let values: &[(&str, &str, &str, u64)] = &[
        ("etcd_server_has_leader", "gauge", "Whether a leader is known.", flag(standing.leader != 0)),
        ("etcd_server_is_leader", "gauge", "Whether this member leads.", flag(standing.leader == own)),
        ("etcd_server_is_learner", "gauge", "Whether this member is a learner.", flag(standing.is_learner)),
        ("etcd_server_proposals_committed_total", "gauge", "Index of the last committed entry.", standing.committed),
        ("etcd_server_proposals_applied_total", "gauge", "Index of the last applied entry.", standing.applied),
        ("etcd_server_quota_backend_bytes", "gauge", "Size from which writes are refused.", front.options.quota_bytes),
        ("etcd_mvcc_db_total_size_in_bytes", "gauge", "Size of the data on disk.", status.db_size),
        ("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge", "Size of the data in use.", status.db_size),
        ("etcd_debugging_mvcc_keys_total", "gauge", "Number of keys.", view.len() as u64),
        ("etcd_debugging_mvcc_current_revision", "gauge", "Current revision.", view.revision() as u64),
        ("etcd_debugging_mvcc_compact_revision", "gauge", "Compacted revision.", view.compact_revision() as u64),
        ("etcd_debugging_lease_count", "gauge", "Number of leases.", view.leases().count() as u64),
        ("keelson_raft_term", "gauge", "Current term.", standing.term),
        ("keelson_store_alarms", "gauge", "Alarms of this member.", alarms),
        ("keelson_store_failed", "gauge", "Whether this member has stopped.", flag(!standing.errors.is_empty())),
    ];
    let mut out = String::new();
    for (name, kind, help, value) in values {
        // Writing to a string does not fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    out.push_str(&process());
    let _ = writeln!(out, "# TYPE etcd_server_id gauge\netcd_server_id{{server_id=\"{own:x}\"}} 1");
    out
}
