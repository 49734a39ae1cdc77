//! Counts what comes over the etcd API: calls by method and code, bytes, watch streams.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use http::HeaderMap;
use keelson_metrics::{family, sample};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::{Code, Status};

use super::authority::AuthorityFix;

/// A method: its path, and its kind under gRPC's name.
type Method = (&'static str, &'static str);

/// Methods that are counted, ordered by path.
const METHODS: &[Method] = &[
    ("/etcdserverpb.Auth/AuthDisable", "unary"),
    ("/etcdserverpb.Auth/AuthEnable", "unary"),
    ("/etcdserverpb.Auth/AuthStatus", "unary"),
    ("/etcdserverpb.Auth/Authenticate", "unary"),
    ("/etcdserverpb.Auth/RoleAdd", "unary"),
    ("/etcdserverpb.Auth/RoleDelete", "unary"),
    ("/etcdserverpb.Auth/RoleGet", "unary"),
    ("/etcdserverpb.Auth/RoleGrantPermission", "unary"),
    ("/etcdserverpb.Auth/RoleList", "unary"),
    ("/etcdserverpb.Auth/RoleRevokePermission", "unary"),
    ("/etcdserverpb.Auth/UserAdd", "unary"),
    ("/etcdserverpb.Auth/UserChangePassword", "unary"),
    ("/etcdserverpb.Auth/UserDelete", "unary"),
    ("/etcdserverpb.Auth/UserGet", "unary"),
    ("/etcdserverpb.Auth/UserGrantRole", "unary"),
    ("/etcdserverpb.Auth/UserList", "unary"),
    ("/etcdserverpb.Auth/UserRevokeRole", "unary"),
    ("/etcdserverpb.Cluster/MemberAdd", "unary"),
    ("/etcdserverpb.Cluster/MemberList", "unary"),
    ("/etcdserverpb.Cluster/MemberPromote", "unary"),
    ("/etcdserverpb.Cluster/MemberRemove", "unary"),
    ("/etcdserverpb.Cluster/MemberUpdate", "unary"),
    ("/etcdserverpb.KV/Compact", "unary"),
    ("/etcdserverpb.KV/DeleteRange", "unary"),
    ("/etcdserverpb.KV/Put", "unary"),
    ("/etcdserverpb.KV/Range", "unary"),
    ("/etcdserverpb.KV/RangeStream", "server_stream"),
    ("/etcdserverpb.KV/Txn", "unary"),
    ("/etcdserverpb.Lease/LeaseGrant", "unary"),
    ("/etcdserverpb.Lease/LeaseKeepAlive", "bidi_stream"),
    ("/etcdserverpb.Lease/LeaseLeases", "unary"),
    ("/etcdserverpb.Lease/LeaseRevoke", "unary"),
    ("/etcdserverpb.Lease/LeaseTimeToLive", "unary"),
    ("/etcdserverpb.Maintenance/Alarm", "unary"),
    ("/etcdserverpb.Maintenance/Defragment", "unary"),
    ("/etcdserverpb.Maintenance/Downgrade", "unary"),
    ("/etcdserverpb.Maintenance/Hash", "unary"),
    ("/etcdserverpb.Maintenance/HashKV", "unary"),
    ("/etcdserverpb.Maintenance/MoveLeader", "unary"),
    ("/etcdserverpb.Maintenance/Snapshot", "server_stream"),
    ("/etcdserverpb.Maintenance/Status", "unary"),
    ("/etcdserverpb.Watch/Watch", "bidi_stream"),
    ("/grpc.health.v1.Health/Check", "unary"),
    ("/grpc.health.v1.Health/Watch", "server_stream"),
    ("/v3electionpb.Election/Campaign", "unary"),
    ("/v3electionpb.Election/Leader", "unary"),
    ("/v3electionpb.Election/Observe", "server_stream"),
    ("/v3electionpb.Election/Proclaim", "unary"),
    ("/v3electionpb.Election/Resign", "unary"),
    ("/v3lockpb.Lock/Lock", "unary"),
    ("/v3lockpb.Lock/Unlock", "unary"),
];

/// gRPC's codes by number, under the names that its metrics use.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

#[derive(Debug, Default)]
struct Row {
    started: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

/// The counts of one front.
#[derive(Debug)]
pub struct Calls {
    rows: Box<[Row]>,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// Watch streams that are open.
    pub watch_streams: AtomicU64,
    /// Events sent to watchers.
    pub events: AtomicU64,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            rows: METHODS.iter().map(|_| Row::default()).collect(),
            received_bytes: AtomicU64::default(),
            sent_bytes: AtomicU64::default(),
            watch_streams: AtomicU64::default(),
            events: AtomicU64::default(),
        }
    }
}

/// A call under way; one that is dropped was canceled.
#[derive(Debug)]
pub struct UnderWay {
    calls: Arc<Calls>,
    row: usize,
    told: bool,
}

impl UnderWay {
    /// It ended so.
    pub fn ended(&mut self, code: Code) {
        if !std::mem::replace(&mut self.told, true) {
            self.calls.rows[self.row].handled[code as usize].fetch_add(1, Relaxed);
        }
    }

    /// It ended as these headers or trailers say, if they say it.
    pub fn ended_as(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(Status::GRPC_STATUS) {
            self.ended(Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.ended(Code::Cancelled);
    }
}

impl Calls {
    /// A call begins; `None` for what is not a method.
    pub fn begin(self: &Arc<Self>, path: &str) -> Option<UnderWay> {
        let row = METHODS.binary_search_by(|(found, _)| (*found).cmp(path)).ok()?;
        self.rows[row].started.fetch_add(1, Relaxed);
        Some(UnderWay { calls: self.clone(), row, told: false })
    }

    /// Writes all counts.
    pub fn write(&self, out: &mut String) {
        let labels = |(path, kind): &Method| {
            let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
            format!("grpc_method=\"{method}\",grpc_service=\"{service}\",grpc_type=\"{kind}\"")
        };
        let name = "grpc_server_started_total";
        family(out, name, "counter", "Calls that began.");
        for (method, row) in METHODS.iter().zip(&self.rows) {
            sample(out, name, &labels(method), row.started.load(Relaxed) as f64);
        }
        let name = "grpc_server_handled_total";
        family(out, name, "counter", "Calls that ended, by their code.");
        for (method, row) in METHODS.iter().zip(&self.rows) {
            for (code, count) in CODES.iter().zip(&row.handled) {
                let count = count.load(Relaxed);
                // Series that are all zero would be most of the text.
                if count > 0 || *code == CODES[0] {
                    sample(out, name, &format!("grpc_code=\"{code}\",{}", labels(method)), count as f64);
                }
            }
        }
        for (name, kind, help, value) in [
            (
                "etcd_network_client_grpc_received_bytes_total",
                "counter",
                "Bytes received from clients.",
                &self.received_bytes,
            ),
            ("etcd_network_client_grpc_sent_bytes_total", "counter", "Bytes sent to clients.", &self.sent_bytes),
            ("etcd_debugging_mvcc_watch_stream_total", "gauge", "Watch streams that are open.", &self.watch_streams),
            ("etcd_debugging_mvcc_events_total", "counter", "Events sent to watchers.", &self.events),
        ] {
            family(out, name, kind, help);
            sample(out, name, "", value.load(Relaxed) as f64);
        }
    }
}

/// A client's stream whose bytes are counted; what is read from it is mended.
pub struct Metered<S> {
    inner: AuthorityFix<S>,
    calls: Arc<Calls>,
}

impl<S> Metered<S> {
    /// Counts what passes a stream.
    pub fn new(inner: S, calls: Arc<Calls>) -> Self {
        Self { inner: AuthorityFix::new(inner), calls }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        self.calls.received_bytes.fetch_add((buffer.filled().len() - before) as u64, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner.inner).poll_write(context, bytes))?;
        self.calls.sent_bytes.fetch_add(written as u64, Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner.inner).poll_write_vectored(context, bytes))?;
        self.calls.sent_bytes.fetch_add(written as u64, Relaxed);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_found_and_counted() {
        assert!(METHODS.is_sorted(), "they are searched");
        let calls = Arc::new(Calls::default());
        calls.begin("/etcdserverpb.KV/Put").expect("a method").ended(Code::Ok);
        let mut refused = calls.begin("/etcdserverpb.KV/Put").expect("a method");
        let mut trailers = HeaderMap::new();
        refused.ended_as(&trailers);
        trailers.insert(Status::GRPC_STATUS, "11".parse().expect("a header"));
        refused.ended_as(&trailers);
        drop(refused);
        drop(calls.begin("/etcdserverpb.Watch/Watch"));
        assert!(calls.begin("/health").is_none());
        let mut out = String::new();
        calls.write(&mut out);
        let put = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
        let watch = "grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"";
        for line in [
            format!("grpc_server_started_total{{{put}}} 2"),
            format!("grpc_server_handled_total{{grpc_code=\"OK\",{put}}} 1"),
            format!("grpc_server_handled_total{{grpc_code=\"OutOfRange\",{put}}} 1"),
            format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{watch}}} 1"),
            format!("grpc_server_handled_total{{grpc_code=\"OK\",{watch}}} 0"),
        ] {
            assert!(out.lines().any(|found| found == line), "{line} in {out}");
        }
    }
}
