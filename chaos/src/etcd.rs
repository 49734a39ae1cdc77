//! A client of the etcd API that tells apart what certainly failed and what may have taken effect.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use keelson_proto::etcd::etcdserverpb as pb;
use keelson_proto::etcd::mvccpb::KeyValue;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::request_op::Request as Op;
use pb::watch_client::WatchClient;
use tonic::Code;
use tonic::body::Body;
use tonic::transport::Endpoint;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

/// How long connecting to a member may take.
const CONNECT: Duration = Duration::from_secs(1);
/// How long an operation may take before its outcome is unknown.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Largest answer in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// Why an operation has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was refused, and took no effect.
    Refused(String),
    /// It may have taken effect, or may yet.
    Unknown(String),
}

/// The result of an operation.
pub type Answer<T> = Result<T, Failure>;

/// What carries requests to a member.
pub type Line = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, tonic::Status>;

/// A connection to one member; it is made again when it breaks.
#[derive(Clone)]
pub struct Client {
    channel: Line,
}

impl Client {
    /// Does not connect before it is used. Must be called in a runtime.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(url.to_owned())?.connect_timeout(CONNECT).timeout(TIMEOUT);
        let endpoint =
            endpoint.http2_keep_alive_interval(CONNECT).keep_alive_timeout(CONNECT).keep_alive_while_idle(true);
        let failed = |error: tonic::transport::Error| tonic::Status::from_error(error.into());
        Ok(Self { channel: Line::new(ServiceExt::map_err(endpoint.connect_lazy(), failed)) })
    }

    /// Over a network of another kind.
    pub fn over(channel: Line) -> Self {
        Self { channel }
    }

    fn kv(&self) -> KvClient<Line> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// For streams, whose life is not limited.
    pub fn watches(&self) -> WatchClient<Line> {
        WatchClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER)
    }

    /// For leases.
    pub fn leases(&self) -> LeaseClient<Line> {
        LeaseClient::new(self.channel.clone())
    }

    /// For the state of a member.
    pub fn maintenance(&self) -> MaintenanceClient<Line> {
        MaintenanceClient::new(self.channel.clone())
    }

    /// For the membership.
    pub fn members(&self) -> ClusterClient<Line> {
        ClusterClient::new(self.channel.clone())
    }

    /// Reads keys.
    pub async fn range(&self, request: pb::RangeRequest) -> Answer<pb::RangeResponse> {
        limited(self.kv().range(request)).await
    }

    /// Writes a key.
    pub async fn put(&self, key: &str, value: String, lease: i64) -> Answer<pb::PutResponse> {
        let request = pb::PutRequest { key: bytes(key), value: value.into(), lease, ..Default::default() };
        limited(self.kv().put(request)).await
    }

    /// Deletes a key.
    pub async fn delete(&self, key: &str) -> Answer<pb::DeleteRangeResponse> {
        let request = pb::DeleteRangeRequest { key: bytes(key), ..Default::default() };
        limited(self.kv().delete_range(request)).await
    }

    /// A transaction.
    pub async fn txn(&self, request: pb::TxnRequest) -> Answer<pb::TxnResponse> {
        limited(self.kv().txn(request)).await
    }

    /// Compacts history.
    pub async fn compact(&self, revision: i64) -> Answer<pb::CompactionResponse> {
        limited(self.kv().compact(pb::CompactionRequest { revision, physical: false })).await
    }

    /// The value of a metric without labels; `None` if the member does not have it.
    pub async fn metric(&self, name: &str) -> Answer<Option<f64>> {
        let failed = |error: tonic::Status| Failure::Unknown(error.to_string());
        let request = http::Request::get("/metrics").body(Body::empty());
        let request = request.map_err(|error| Failure::Refused(error.to_string()))?;
        let asked = async {
            let body = self.channel.clone().oneshot(request).await?.into_body();
            Ok::<_, tonic::Status>(http_body_util::Limited::new(body, MAX_ANSWER).collect().await)
        };
        let told = tokio::time::timeout(TIMEOUT, asked).await;
        let told = told.map_err(|_| Failure::Unknown("no metrics in time".into()))?.map_err(failed)?;
        let told = told.map_err(|error| Failure::Unknown(error.to_string()))?.to_bytes();
        let told = String::from_utf8_lossy(&told);
        let value = told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.and_then(|value| value.parse().ok()))
    }

    /// What a member says of itself.
    pub async fn status(&self) -> Answer<pb::StatusResponse> {
        limited(self.maintenance().status(pb::StatusRequest {})).await
    }
}

/// Waits for an answer for a limited time and says what its lack means.
pub async fn limited<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Answer<T> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(failure(&status)),
        Err(_) => Err(Failure::Unknown("no answer in time".into())),
    }
}

/// Only what a server says before it proposes anything is a refusal.
fn failure(status: &tonic::Status) -> Failure {
    let what = format!("{:?}: {}", status.code(), status.message());
    let unconnected = status.message().contains("tcp connect error");
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::OutOfRange
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Unimplemented => Failure::Refused(what),
        _ if unconnected => Failure::Refused(what),
        _ => Failure::Unknown(what),
    }
}

/// A key or value.
pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// The end of the range of keys that begin with `prefix`, which ends in a letter, digit or `/`.
pub fn prefix_end(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// A read of one key.
pub fn read(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(key), ..Default::default() }
}

/// A read of all keys that begin with `prefix`.
pub fn read_all(prefix: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(prefix), range_end: prefix_end(prefix), ..Default::default() }
}

/// A read as a part of a transaction.
pub fn range_op(request: pb::RangeRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(Op::RequestRange(request)) }
}

/// A write as a part of a transaction.
pub fn put_op(key: &str, value: String) -> pb::RequestOp {
    put_with_lease_op(key, value, 0)
}

/// A write with a lease as a part of a transaction.
pub fn put_with_lease_op(key: &str, value: String, lease: i64) -> pb::RequestOp {
    let put = pb::PutRequest { key: bytes(key), value: value.into(), lease, ..Default::default() };
    pb::RequestOp { request: Some(Op::RequestPut(put)) }
}

/// That a key was last written at a revision; 0 if it is not there.
pub fn written_at(key: &str, revision: i64) -> pb::Compare {
    use pb::compare::{CompareTarget, TargetUnion};
    pb::Compare {
        target: CompareTarget::Mod.into(),
        key: bytes(key),
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Default::default()
    }
}

/// That a key was created at a revision.
pub fn created_at(key: &str, revision: i64) -> pb::Compare {
    use pb::compare::{CompareTarget, TargetUnion};
    pb::Compare {
        target: CompareTarget::Create.into(),
        key: bytes(key),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

/// That a key has a value.
pub fn has_value(key: &str, value: &str) -> pb::Compare {
    use pb::compare::{CompareTarget, TargetUnion};
    pb::Compare {
        target: CompareTarget::Value.into(),
        key: bytes(key),
        target_union: Some(TargetUnion::Value(bytes(value))),
        ..Default::default()
    }
}

/// The ranges in a transaction's answer, in order.
pub fn ranges(answer: &pb::TxnResponse) -> Vec<&pb::RangeResponse> {
    use pb::response_op::Response;
    let range = |op: &'_ pb::ResponseOp| matches!(op.response, Some(Response::ResponseRange(_)));
    let found = answer.responses.iter().filter(|op| range(op)).filter_map(|op| match &op.response {
        Some(Response::ResponseRange(range)) => Some(range),
        _ => None,
    });
    found.collect()
}

/// The revision of an answer.
pub fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().map_or(0, |header| header.revision)
}

/// A value as text.
pub fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A value as a number.
pub fn number<T: std::str::FromStr>(pair: &KeyValue) -> Option<T> {
    std::str::from_utf8(&pair.value).ok()?.parse().ok()
}
