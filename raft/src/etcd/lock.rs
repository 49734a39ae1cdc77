//! The Lock service.

use std::sync::Arc;

use keelson_proto::etcd::v3lockpb as pb;
use pb::lock_server::Lock;
use tonic::{Request, Response, Status};

use super::Front;
use super::auth::Caller;
use super::error::of_kv;
use super::session::{Session, Waiting, join, leave, queue, queue_is, wait_turn};

/// The service.
pub struct LockService(pub Arc<Front>);

#[tonic::async_trait]
impl Lock for LockService {
    async fn lock(&self, request: Request<pb::LockRequest>) -> Result<Response<pb::LockResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let request = request.into_inner();
        queue_is(&caller, &queue(&request.name))?;
        let kv = &self.0.kv;
        let session = Session::open(&self.0, request.lease).await?;
        let key = session.key(&request.name);
        let place = join(kv.as_ref(), &caller, &key, Default::default(), session.lease).await?;
        let waiting = Waiting::new(kv.clone(), key.clone());
        wait_turn(kv.as_ref(), &queue(&request.name), place.joined).await?;
        kv.barrier().await.map_err(of_kv)?;
        let view = kv.view();
        if view.get(&key).is_none_or(|kv| kv.create_revision != place.joined) {
            return Err(Status::unknown("mutex: session is expired"));
        }
        waiting.done();
        Ok(Response::new(pb::LockResponse { header: self.0.header(view.revision()), key }))
    }

    async fn unlock(&self, request: Request<pb::UnlockRequest>) -> Result<Response<pb::UnlockResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let key = request.into_inner().key;
        caller.write(&keelson_store::KeyRange::Key(key.clone()))?;
        let revision = leave(self.0.kv.as_ref(), caller.guards(), key).await?;
        Ok(Response::new(pb::UnlockResponse { header: self.0.header(revision) }))
    }
}
