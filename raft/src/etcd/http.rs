//! etcd's HTTP endpoints: health and version; metrics are [`super::metrics`]'s.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::IntoResponse;
use axum::routing::get;
use http::StatusCode;
use http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use keelson_proto::etcd::etcdserverpb::AlarmType;

use super::{API_VERSION, Front, alarm, metrics};

/// The endpoints.
pub fn routes(front: &Arc<Front>) -> Router {
    let router = checked(Router::new(), "/livez", &Check::LIVE);
    checked(router, "/readyz", &Check::READY)
        .route("/health", get(health))
        .route("/version", get(version))
        .route("/metrics", get(metrics::answer))
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

/// A check of `/livez` and `/readyz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Check {
    const LIVE: [Self; 1] = [Self::SerializableRead];
    const READY: [Self; 4] = [Self::DataCorruption, Self::SerializableRead, Self::LinearizableRead, Self::NonLearner];

    fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }

    /// Why it fails, if it does.
    async fn failure(self, front: &Front) -> Option<String> {
        let standing = front.cluster.standing();
        match self {
            Self::DataCorruption => {
                let alarmed = !alarm::list(front, 0, AlarmType::Corrupt).is_empty();
                alarmed.then(|| "alarm activated: CORRUPT".to_owned())
            }
            Self::SerializableRead => standing.errors.first().map(|error| format!("range error: {error}")),
            Self::LinearizableRead if standing.leader == 0 => Some("range error: etcdserver: no leader".to_owned()),
            Self::LinearizableRead => front.kv.barrier().await.err().map(|error| format!("range error: {error}")),
            Self::NonLearner => standing.is_learner.then(|| "not supported for learner".to_owned()),
        }
    }
}

/// Adds `/livez` or `/readyz`, and each of its checks below it.
fn checked(mut router: Router<Arc<Front>>, path: &'static str, checks: &'static [Check]) -> Router<Arc<Front>> {
    let all = move |State(front): State<Arc<Front>>, RawQuery(query): RawQuery| async move {
        let query = query.unwrap_or_default();
        let excluded = |check: &Check| query.split('&').any(|part| part.strip_prefix("exclude=") == Some(check.name()));
        let chosen = checks.iter().copied().filter(|check| !excluded(check)).collect();
        answer_checks(&front, chosen, &query).await
    };
    router = router.route(path, get(all));
    for check in checks {
        let one = move |State(front): State<Arc<Front>>, RawQuery(query): RawQuery| async move {
            answer_checks(&front, vec![*check], &query.unwrap_or_default()).await
        };
        router = router.route(&format!("{path}/{}", check.name()), get(one));
    }
    router
}

/// Runs checks; tells which ones failed, and of all if asked to.
async fn answer_checks(front: &Front, checks: Vec<Check>, query: &str) -> impl IntoResponse + use<> {
    let (mut told, mut failed) = (String::new(), false);
    for check in checks {
        let failure = check.failure(front).await;
        failed |= failure.is_some();
        // Writing to a string does not fail.
        let _ = match failure {
            Some(why) => writeln!(told, "[-]{} failed: {why}", check.name()),
            None => writeln!(told, "[+]{} ok", check.name()),
        };
    }
    let verbose = query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="));
    let (status, body) = match (failed, verbose) {
        // An empty line ends it, as Go's errors do.
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, format!("{told}\n")),
        (false, true) => (StatusCode::OK, format!("{told}ok\n")),
        (false, false) => (StatusCode::OK, "ok\n".to_owned()),
    };
    (status, [(CONTENT_TYPE, "text/plain; charset=utf-8"), (X_CONTENT_TYPE_OPTIONS, "nosniff")], body)
}

async fn version() -> impl IntoResponse {
    let (major_minor, _) = API_VERSION.rsplit_once('.').unwrap_or((API_VERSION, ""));
    let body = serde_json::json!({ "etcdserver": API_VERSION, "etcdcluster": format!("{major_minor}.0") });
    ([(CONTENT_TYPE, "application/json")], body.to_string())
}
