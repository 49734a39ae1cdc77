//! gRPC's health checks: serving while the store answers and a leader is known.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use keelson_proto::health as pb;
use pb::health_check_response::ServingStatus;
use pb::health_server::Health;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Front;
use super::limits::STREAM_ANSWERS;

/// How often a watched health is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The service.
pub struct HealthService(pub Arc<Front>);

fn status(front: &Front) -> ServingStatus {
    let standing = front.cluster.standing();
    let serves = standing.leader != 0 && standing.errors.is_empty();
    if serves { ServingStatus::Serving } else { ServingStatus::NotServing }
}

type Changes = Pin<Box<dyn Stream<Item = Result<pb::HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<pb::HealthCheckRequest>,
    ) -> Result<Response<pb::HealthCheckResponse>, Status> {
        if !request.get_ref().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(pb::HealthCheckResponse { status: status(&self.0).into() }))
    }

    type WatchStream = Changes;

    async fn watch(&self, request: Request<pb::HealthCheckRequest>) -> Result<Response<Changes>, Status> {
        let known = request.get_ref().service.is_empty();
        let (answers, received) = tokio::sync::mpsc::channel(STREAM_ANSWERS);
        let front = self.0.clone();
        crate::task::spawn(async move {
            let mut told = None;
            loop {
                let now = if known { status(&front) } else { ServingStatus::ServiceUnknown };
                if told != Some(now) {
                    told = Some(now);
                    if answers.send(Ok(pb::HealthCheckResponse { status: now.into() })).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = answers.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(received))))
    }
}
