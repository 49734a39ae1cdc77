//! The Election service.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use keelson_proto::etcd::v3electionpb as pb;
use keelson_store::{
    Compare, DeleteRequest, KeyRange, KeyValue, KvError, Op, PutRequest, Revision, Txn, View, WatchRequest,
};
use pb::election_server::Election;
use tokio::sync::mpsc::Sender;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::auth::Caller;
use super::error::{Refusal, of_guarded, of_kv};
use super::limits::STREAM_ANSWERS;
use super::session::{Session, Waiting, join, queue, queue_is, wait_turn};
use super::{Front, convert};

/// The service.
pub struct ElectionService(pub Arc<Front>);

fn not_leader() -> Status {
    Status::unknown("election: not leader")
}

/// Who leads: the oldest key of the queue.
fn leader(view: &View, name: &[u8]) -> Option<Arc<KeyValue>> {
    view.range(&queue(name)).min_by_key(|kv| kv.create_revision).cloned()
}

impl ElectionService {
    /// Runs `op` while `leader`'s key is the one it was elected with.
    async fn as_leader(&self, caller: &Caller, leader: &pb::LeaderKey, op: Op) -> Result<Revision, Status> {
        let compare = vec![Compare::create_revision(leader.key.clone(), leader.rev)];
        let txn = Txn { compare, success: vec![op], failure: Vec::new() };
        let answer = self.0.kv.txn_if(caller.guards(), txn).await.map_err(of_guarded)?;
        if answer.succeeded { Ok(answer.revision) } else { Err(not_leader()) }
    }
}

fn required(leader: Option<pb::LeaderKey>) -> Result<pb::LeaderKey, Status> {
    match leader {
        Some(leader) if !leader.key.is_empty() => Ok(leader),
        Some(_) => Err(Refusal::EmptyKey.into()),
        None => Err(Status::invalid_argument("\"leader\" field must be provided")),
    }
}

type Leaders = Pin<Box<dyn Stream<Item = Result<pb::LeaderResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Election for ElectionService {
    async fn campaign(&self, request: Request<pb::CampaignRequest>) -> Result<Response<pb::CampaignResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let request = request.into_inner();
        queue_is(&caller, &queue(&request.name))?;
        let kv = &self.0.kv;
        let session = Session::open(&self.0, request.lease).await?;
        let key = session.key(&request.name);
        let place = join(kv.as_ref(), &caller, &key, request.value.clone(), session.lease).await?;
        let waiting = Waiting::new(kv.clone(), key.clone());
        let leader =
            pb::LeaderKey { name: request.name.clone(), key: key.clone(), rev: place.joined, lease: session.lease };
        if place.before.is_some_and(|kv| kv.value != request.value) {
            self.as_leader(&caller, &leader, put(key.clone(), request.value, session.lease)).await?;
        }
        wait_turn(kv.as_ref(), &queue(&request.name), place.joined).await?;
        let view = kv.view();
        if view.get(&key).is_none_or(|kv| kv.create_revision != place.joined) {
            return Err(Status::unknown("election: session is expired"));
        }
        waiting.done();
        Ok(Response::new(pb::CampaignResponse { header: self.0.header(view.revision()), leader: Some(leader) }))
    }

    async fn proclaim(&self, request: Request<pb::ProclaimRequest>) -> Result<Response<pb::ProclaimResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let request = request.into_inner();
        let leader = required(request.leader)?;
        caller.write(&KeyRange::Key(leader.key.clone()))?;
        let op = put(leader.key.clone(), request.value, leader.lease);
        let revision = self.as_leader(&caller, &leader, op).await?;
        Ok(Response::new(pb::ProclaimResponse { header: self.0.header(revision) }))
    }

    async fn leader(&self, request: Request<pb::LeaderRequest>) -> Result<Response<pb::LeaderResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let name = request.into_inner().name;
        caller.read(&queue(&name))?;
        self.0.kv.barrier().await.map_err(of_kv)?;
        let view = self.0.kv.view();
        let kv = leader(&view, &name).ok_or_else(|| Status::unknown("election: no leader"))?;
        let header = self.0.header(view.revision());
        Ok(Response::new(pb::LeaderResponse { header, kv: Some(convert::key_value(&kv)) }))
    }

    type ObserveStream = Leaders;

    async fn observe(&self, request: Request<pb::LeaderRequest>) -> Result<Response<Leaders>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let name = request.into_inner().name;
        caller.read(&queue(&name))?;
        self.0.kv.barrier().await.map_err(of_kv)?;
        let (answers, received) = tokio::sync::mpsc::channel(STREAM_ANSWERS);
        let front = self.0.clone();
        crate::task::spawn(async move {
            let gone = answers.clone();
            tokio::select! {
                done = observe(&front, &name, &answers) => if let Err(error) = done {
                    let _ = answers.send(Err(of_kv(error))).await;
                },
                () = gone.closed() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(received))))
    }

    async fn resign(&self, request: Request<pb::ResignRequest>) -> Result<Response<pb::ResignResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let leader = required(request.into_inner().leader)?;
        caller.write(&KeyRange::Key(leader.key.clone()))?;
        let delete = DeleteRequest { range: KeyRange::Key(leader.key.clone()), prev_kv: false };
        let revision = match self.as_leader(&caller, &leader, Op::Delete(delete)).await {
            Ok(revision) => revision,
            // Who does not lead any more has nothing to give up.
            Err(status) if status.message() == not_leader().message() => self.0.kv.view().revision(),
            Err(status) => return Err(status),
        };
        Ok(Response::new(pb::ResignResponse { header: self.0.header(revision) }))
    }
}

fn put(key: Bytes, value: Bytes, lease: i64) -> Op {
    Op::Put(PutRequest { lease, ..PutRequest::new(key, value) })
}

type Answers = Sender<Result<pb::LeaderResponse, Status>>;

/// Tells each leader and each of its proclamations, from the current one on.
async fn observe(front: &Front, name: &[u8], answers: &Answers) -> Result<(), KvError> {
    let mut told = (0, 0);
    loop {
        let view = front.kv.view();
        if let Some(kv) = leader(&view, name)
            && told != (kv.create_revision, kv.mod_revision)
        {
            told = (kv.create_revision, kv.mod_revision);
            let answer =
                pb::LeaderResponse { header: front.header(view.revision()), kv: Some(convert::key_value(&kv)) };
            if answers.send(Ok(answer)).await.is_err() {
                return Ok(());
            }
        }
        let start_revision = view.revision() + 1;
        drop(view);
        let mut watch = front.kv.watch(WatchRequest::new(queue(name), start_revision))?;
        match watch.next().await {
            Some(Err(KvError::Compacted(_)) | Ok(_)) => {}
            Some(Err(error)) => return Err(error),
            None => return Ok(()),
        }
    }
}
