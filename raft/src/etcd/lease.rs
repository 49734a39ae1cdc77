//! The Lease service.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use keelson_proto::etcd::etcdserverpb as pb;
use keelson_store::KvError;
use pb::lease_server::Lease;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Front;
use super::auth::Caller;
use super::error::{of_guarded, of_kv};
use super::limits::STREAM_ANSWERS;

/// The service.
pub struct LeaseService(pub Arc<Front>);

type Renewals = Pin<Box<dyn Stream<Item = Result<pb::LeaseKeepAliveResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Lease for LeaseService {
    async fn lease_grant(
        &self,
        request: Request<pb::LeaseGrantRequest>,
    ) -> Result<Response<pb::LeaseGrantResponse>, Status> {
        Caller::of(&self.0, &request)?.known()?;
        self.0.quota.check()?;
        let request = request.into_inner();
        let ttl = request.ttl.max(self.0.options.min_lease_ttl_seconds);
        let id = self.0.kv.lease_grant(request.id, ttl).await.map_err(of_kv)?;
        Ok(Response::new(pb::LeaseGrantResponse { header: self.0.header_now(), id, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Result<Response<pb::LeaseRevokeResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let id = request.into_inner().id;
        caller.revoke(&self.0.kv.view(), id)?;
        self.0.kv.lease_revoke_if(caller.guards(), id).await.map_err(of_guarded)?;
        Ok(Response::new(pb::LeaseRevokeResponse { header: self.0.header_now() }))
    }

    type LeaseKeepAliveStream = Renewals;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Result<Response<Renewals>, Status> {
        Caller::of(&self.0, &request)?.known()?;
        let mut requests = request.into_inner();
        let (answers, received) = tokio::sync::mpsc::channel(STREAM_ANSWERS);
        let front = self.0.clone();
        crate::task::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                let answer = renew(&front, request.id).await;
                let failed = answer.is_err();
                if answers.send(answer).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(received))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Result<Response<pb::LeaseTimeToLiveResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let request = request.into_inner();
        if request.keys {
            caller.list_lease(&self.0.kv.view(), request.id)?;
        } else {
            caller.known()?;
        }
        let header = self.0.header_now();
        let answer = match self.0.kv.lease_status(request.id).await {
            Ok(lease) => pb::LeaseTimeToLiveResponse {
                header,
                id: lease.id,
                ttl: lease.remaining_ttl,
                granted_ttl: lease.granted_ttl,
                keys: if request.keys { lease.keys } else { Vec::new() },
            },
            // etcd's way to say that there is none.
            Err(KvError::LeaseNotFound) => {
                pb::LeaseTimeToLiveResponse { header, id: request.id, ttl: -1, ..Default::default() }
            }
            Err(error) => return Err(of_kv(error)),
        };
        Ok(Response::new(answer))
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Result<Response<pb::LeaseLeasesResponse>, Status> {
        Caller::of(&self.0, &request)?.known()?;
        let leases = self.0.kv.leases().into_iter().map(|id| pb::LeaseStatus { id }).collect();
        Ok(Response::new(pb::LeaseLeasesResponse { header: self.0.header_now(), leases }))
    }
}

/// Renews a lease; one that is not there is answered with a TTL of 0.
async fn renew(front: &Front, id: i64) -> Result<pb::LeaseKeepAliveResponse, Status> {
    let ttl = match front.kv.lease_keep_alive(id).await {
        Ok(ttl) => ttl,
        Err(KvError::LeaseNotFound) => 0,
        Err(error) => return Err(of_kv(error)),
    };
    Ok(pb::LeaseKeepAliveResponse { header: front.header_now(), id, ttl })
}
