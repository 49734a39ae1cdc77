//! The KV service: reads, writes, deletions, transactions, compaction.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use keelson_proto::etcd::etcdserverpb as pb;
use keelson_store::{KeyRange, Op, OpResponse, RangeRequest, RangeResponse, Revision, Txn, TxnResponse, View};
use pb::kv_server::Kv;
use prost::Message;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::auth::Caller;
use super::error::{Refusal, of_guarded, of_kv};
use super::limits::{
    INLINE_RANGE_KEYS, MESSAGE_OVERHEAD_BYTES, RANGE_STREAM_PART_BYTES, RANGE_STREAM_PART_KEYS, STREAM_ANSWERS,
};
use super::{Front, convert};

/// The service.
pub struct KvService(pub Arc<Front>);

impl KvService {
    /// Largest message that is read.
    pub fn most_bytes(&self) -> usize {
        self.0.options.max_request_bytes + MESSAGE_OVERHEAD_BYTES
    }

    /// Refuses a message over the request limit.
    fn fits(&self, message: &impl Message) -> Result<(), Status> {
        let fits = message.encoded_len() <= self.0.options.max_request_bytes;
        if fits { Ok(()) } else { Err(Refusal::TooLarge.into()) }
    }

    /// The picture that a read is answered from.
    async fn view(&self, serializable: bool) -> Result<View, Status> {
        if !serializable {
            self.0.kv.barrier().await.map_err(of_kv)?;
        }
        Ok(self.0.kv.view())
    }

    /// Runs one write.
    async fn write(&self, caller: &Caller, op: Op) -> Result<(Revision, OpResponse), Status> {
        let txn = Txn { success: vec![op], ..Txn::default() };
        let written = self.0.kv.txn_if(caller.guards(), txn).await;
        let TxnResponse { revision, mut responses, .. } = written.map_err(of_guarded)?;
        let response = responses.pop().ok_or_else(|| Status::internal("the store gave no answer"))?;
        Ok((revision, response))
    }
}

/// Whether a read may take long: it reads history, or many keys.
fn takes_long(view: &View, request: &RangeRequest) -> bool {
    let past = request.revision > 0 && request.revision < view.revision();
    let many = !matches!(request.range, KeyRange::Key(_)) && view.len() as i64 > INLINE_RANGE_KEYS;
    past || many
}

/// Answers a read, away from the threads of short requests if it may take long.
pub(super) async fn query(view: View, request: RangeRequest) -> Result<RangeResponse, Status> {
    if !takes_long(&view, &request) {
        return view.query(&request).map_err(of_kv);
    }
    let run = move || view.query(&request);
    crate::task::blocking(run).await.map_err(|error| Status::internal(error.to_string()))?.map_err(of_kv)
}

fn serializable(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|op| match &op.request {
        Some(pb::request_op::Request::RequestRange(range)) => range.serializable,
        Some(pb::request_op::Request::RequestTxn(inner)) => serializable(inner),
        _ => true,
    })
}

type Parts = Pin<Box<dyn Stream<Item = Result<pb::RangeStreamResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<pb::RangeResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let request = request.into_inner();
        let serializable = request.serializable;
        let request = convert::range(request)?;
        caller.read(&request.range)?;
        let view = self.view(serializable).await?;
        let header = self.0.header(view.revision());
        let response = query(view, request).await?;
        Ok(Response::new(convert::range_response(header, &response)))
    }

    type RangeStreamStream = Parts;

    async fn range_stream(&self, request: Request<pb::RangeRequest>) -> Result<Response<Parts>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let request = request.into_inner();
        let serializable = request.serializable;
        let request = convert::range(request)?;
        caller.read(&request.range)?;
        let view = self.view(serializable).await?;
        let header = self.0.header(view.revision());
        let (parts, received) = tokio::sync::mpsc::channel(STREAM_ANSWERS);
        crate::task::spawn(stream_range(view, request, header, parts));
        Ok(Response::new(Box::pin(ReceiverStream::new(received))))
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let request = request.into_inner();
        self.fits(&request)?;
        let put = convert::put(request)?;
        caller.put(&self.0.kv.view(), &put)?;
        self.0.quota.check()?;
        let (revision, response) = self.write(&caller, Op::Put(put)).await?;
        let OpResponse::Put(previous) = response else { return Err(Status::internal("a put got another answer")) };
        let prev_kv = previous.as_ref().map(|kv| convert::key_value(kv));
        Ok(Response::new(pb::PutResponse { header: self.0.header(revision), prev_kv }))
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let delete = convert::delete(request.into_inner())?;
        caller.write(&delete.range)?;
        if delete.prev_kv {
            caller.read(&delete.range)?;
        }
        let (revision, response) = self.write(&caller, Op::Delete(delete)).await?;
        let OpResponse::Delete(deleted, previous) = response else {
            return Err(Status::internal("a deletion got another answer"));
        };
        Ok(Response::new(convert::delete_response(self.0.header(revision), deleted, &previous)))
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let request = request.into_inner();
        self.fits(&request)?;
        let serializable = serializable(&request);
        let txn = convert::txn(request, self.0.options.max_txn_ops)?;
        caller.txn(&self.0.kv.view(), &txn)?;
        self.0.quota.check_txn(&txn)?;
        let response = if keelson_store::only_reads(&txn) {
            let view = self.view(serializable).await?;
            let run = move || view.read_txn(&txn);
            crate::task::blocking(run).await.map_err(|error| Status::internal(error.to_string()))?
        } else {
            self.0.kv.txn_if(caller.guards(), txn).await
        };
        let TxnResponse { revision, succeeded, responses } = response.map_err(of_guarded)?;
        let responses = convert::op_responses(revision, &responses);
        Ok(Response::new(pb::TxnResponse { header: self.0.header(revision), succeeded, responses }))
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        Caller::of(&self.0, &request)?.known()?;
        let request = request.into_inner();
        self.0.kv.compact(request.revision).await.map_err(of_kv)?;
        if request.physical {
            self.0.cluster.compacted(request.revision).await.map_err(of_kv)?;
        }
        Ok(Response::new(pb::CompactionResponse { header: self.0.header_now() }))
    }
}

/// Answers a read in parts from one picture: keys first, the count and the header with the last part. What must be
/// sorted is collected first, as there is no order to stream it in.
async fn stream_range(
    view: View,
    request: RangeRequest,
    header: Option<pb::ResponseHeader>,
    parts: tokio::sync::mpsc::Sender<Result<pb::RangeStreamResponse, Status>>,
) {
    let revision = if request.revision > 0 { request.revision } else { view.revision() };
    let streams = request.sort == Default::default() && !request.descend && !request.count_only;
    let (mut range, mut count, mut left) = (request.range.clone(), None, request.limit);
    loop {
        let limit = if left > 0 { left.min(RANGE_STREAM_PART_KEYS) } else { RANGE_STREAM_PART_KEYS };
        let limit = if streams { limit } else { request.limit };
        let part = RangeRequest { range: range.clone(), revision, limit, ..request.clone() };
        let answer = match query(view.clone(), part).await {
            Ok(answer) => answer,
            Err(status) => return drop(parts.send(Err(status)).await),
        };
        // The first part's interval is the whole one.
        let count = *count.get_or_insert(answer.count);
        let next = answer.kvs.last().filter(|_| streams && answer.more && left != limit).map(|kv| after(&kv.key));
        left -= if left > 0 { answer.kvs.len() as i64 } else { 0 };
        let mut pending = answer.kvs.as_slice();
        loop {
            let (now, rest) = pending.split_at(part_len(pending));
            if rest.is_empty() && next.is_none() {
                let last = RangeResponse { kvs: now.to_vec(), more: answer.more, count };
                let _ = send(&parts, convert::range_response(header, &last)).await;
                return;
            }
            let kvs = now.iter().map(|kv| convert::key_value(kv)).collect();
            if send(&parts, pb::RangeResponse { kvs, ..pb::RangeResponse::default() }).await.is_err() {
                return;
            }
            pending = rest;
            if pending.is_empty() {
                break;
            }
        }
        let Some(next) = next else { return };
        range = from(&range, next);
    }
}

async fn send(
    parts: &tokio::sync::mpsc::Sender<Result<pb::RangeStreamResponse, Status>>,
    response: pb::RangeResponse,
) -> Result<(), ()> {
    parts.send(Ok(pb::RangeStreamResponse { range_response: Some(response) })).await.map_err(|_| ())
}

/// How many keys make one part.
fn part_len(kvs: &[Arc<keelson_store::KeyValue>]) -> usize {
    let mut bytes = 0;
    let fits = kvs.iter().take_while(|kv| {
        let before = bytes;
        bytes += kv.key.len() + kv.value.len();
        before < RANGE_STREAM_PART_BYTES
    });
    fits.count()
}

/// The first key after `key`.
fn after(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// The rest of an interval from a key on.
fn from(range: &KeyRange, start: Bytes) -> KeyRange {
    match range {
        KeyRange::Key(_) => KeyRange::Range(start.clone(), start),
        KeyRange::Range(_, end) => KeyRange::Range(start, end.clone()),
        KeyRange::From(_) => KeyRange::From(start),
    }
}
