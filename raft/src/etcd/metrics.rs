//! `/metrics`: etcd's names where the meaning is the same, so that its dashboards and alerts work.

use std::fs;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;
use keelson_metrics::{family, sample};
use keelson_proto::etcd::etcdserverpb::AlarmType;

use super::{API_VERSION, Front, alarm};

/// Linux counts times of processes in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;
/// Of Linux on all its machines that are built for.
const PAGE_BYTES: f64 = 4096.0;

/// Answers with all numbers.
pub async fn answer(State(front): State<Arc<Front>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], exposition(&front))
}

fn exposition(front: &Front) -> String {
    let (standing, status, view) = (front.cluster.standing(), front.kv.status(), front.kv.view());
    let own = front.cluster.member_id();
    let alarms = alarm::list(front, own, AlarmType::None).len() as u64;
    let damaged = !alarm::list(front, own, AlarmType::Corrupt).is_empty();
    let flag = u64::from;
    let values: &[(&str, &str, u64)] = &[
        ("etcd_server_has_leader", "Whether a leader is known.", flag(standing.leader != 0)),
        ("etcd_server_is_leader", "Whether this member leads.", flag(standing.leader == own)),
        ("etcd_server_is_learner", "Whether this member is a learner.", flag(standing.is_learner)),
        ("etcd_server_proposals_committed_total", "Index of the last committed entry.", standing.committed),
        ("etcd_server_proposals_applied_total", "Index of the last applied entry.", standing.applied),
        ("etcd_server_quota_backend_bytes", "Size from which writes are refused.", front.options.quota_bytes),
        ("etcd_mvcc_db_total_size_in_bytes", "Size of the data on disk.", status.db_size),
        ("etcd_mvcc_db_total_size_in_use_in_bytes", "Size of the data in use.", status.db_size),
        ("etcd_debugging_mvcc_keys_total", "Number of keys.", view.len() as u64),
        ("etcd_debugging_mvcc_current_revision", "Current revision.", view.revision() as u64),
        ("etcd_debugging_mvcc_compact_revision", "Compacted revision.", view.compact_revision() as u64),
        ("etcd_debugging_lease_count", "Number of leases.", view.leases().count() as u64),
        ("keelson_raft_term", "Current term.", standing.term),
        ("keelson_store_alarms", "Alarms of this member.", alarms),
        ("keelson_store_damaged", "Whether this member was found to differ from the others.", flag(damaged)),
        ("keelson_store_failed", "Whether this member has stopped.", flag(!standing.errors.is_empty())),
    ];
    let mut out = String::with_capacity(16 << 10);
    for (name, help, value) in values {
        gauge(&mut out, name, help, "", *value as f64);
    }
    let (cluster_version, _) = API_VERSION.rsplit_once('.').unwrap_or((API_VERSION, ""));
    gauge(&mut out, "etcd_server_id", "The id of this member.", &format!("server_id=\"{own:x}\""), 1.0);
    let version = format!("server_version=\"{API_VERSION}\"");
    gauge(&mut out, "etcd_server_version", "The version of etcd whose API is served.", &version, 1.0);
    let version = format!("cluster_version=\"{cluster_version}\"");
    gauge(&mut out, "etcd_cluster_version", "The version that all members have in common.", &version, 1.0);
    front.cluster.write_figures(&mut out);
    front.calls.write(&mut out);
    process(&mut out);
    out
}

fn gauge(out: &mut String, name: &str, help: &str, labels: &str, value: f64) {
    family(out, name, "gauge", help);
    sample(out, name, labels, value);
}

/// What the operating system says of this process; what it does not say is left out.
fn process(out: &mut String) {
    let read = |path: &str| fs::read_to_string(path).ok();
    // The name in it may have spaces.
    let stat = read("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |at: usize| fields.get(at)?.parse::<f64>().ok();
    if let (Some(user), Some(system)) = (field(11), field(12)) {
        let name = "process_cpu_seconds_total";
        family(out, name, "counter", "Time of processors that was spent.");
        sample(out, name, "", (user + system) / TICKS_PER_SECOND);
    }
    if let (Some(since_boot), Some(started)) = (uptime(), field(19)) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let at = now - since_boot + started / TICKS_PER_SECOND;
        gauge(out, "process_start_time_seconds", "When the process started, since 1970.", "", at);
    }
    if let Some(bytes) = field(20) {
        gauge(out, "process_virtual_memory_bytes", "Virtual memory.", "", bytes);
    }
    if let Some(pages) = field(21) {
        gauge(out, "process_resident_memory_bytes", "Resident memory.", "", pages * PAGE_BYTES);
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        gauge(out, "process_open_fds", "Open file descriptors.", "", files.count() as f64);
    }
    let limits = read("/proc/self/limits").unwrap_or_default();
    let most =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
    if let Some(most) = most {
        gauge(out, "process_max_fds", "Most open file descriptors.", "", most);
    }
}

/// Seconds since the machine started.
fn uptime() -> Option<f64> {
    fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()
}
