//! What carries requests to other members: connections of the machine, or a simulated network.
//!
//! Invariant: both carry the same requests to the same service; only what lies between differs.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::{BoxFuture, MapErr, TryFutureExt};
use tonic::body::Body;
use tonic::transport::Channel;
use tower::Service;
use tower::util::BoxCloneSyncService;

use crate::wal::files::Files;

/// An error below the service.
pub type Failure = tonic::Status;
/// A way to a simulated member.
pub type Line = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Failure>;

fn failure(error: tonic::transport::Error) -> Failure {
    Failure::from_error(error.into())
}

/// A simulated network.
pub trait Wire: Send + Sync {
    /// The way to the member at an address.
    fn line(&self, address: &str) -> Line;

    /// Whether the host at an address answers and says that nobody listens there.
    fn refuses(&self, address: &str) -> BoxFuture<'static, bool>;
}

/// What a replica stands on where that is not the machine.
#[derive(Clone, Default)]
pub struct World {
    /// The network.
    pub wire: Option<Arc<dyn Wire>>,
    /// Where the log is.
    pub files: Option<Arc<dyn Files>>,
}

/// The way to one member.
#[derive(Clone)]
pub enum Transport {
    /// Over a connection.
    Channel(Channel),
    /// Over a simulated network.
    Line(Line),
}

/// An answer under way on a connection.
type OverChannel = MapErr<<Channel as Service<http::Request<Body>>>::Future, fn(tonic::transport::Error) -> Failure>;

/// An answer under way.
pub enum Answering {
    /// Over a connection.
    Channel(OverChannel),
    /// Over a simulated network.
    Line(BoxFuture<'static, Result<http::Response<Body>, Failure>>),
}

impl Future for Answering {
    type Output = Result<http::Response<Body>, Failure>;

    fn poll(self: std::pin::Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Channel(answering) => answering.poll_unpin(context),
            Self::Line(answering) => answering.poll_unpin(context),
        }
    }
}

impl Service<http::Request<Body>> for Transport {
    type Response = http::Response<Body>;
    type Error = Failure;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        match self {
            Self::Channel(channel) => Service::poll_ready(channel, context).map_err(failure),
            Self::Line(line) => line.poll_ready(context),
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Answering {
        match self {
            Self::Channel(channel) => Answering::Channel(Service::call(channel, request).map_err(failure)),
            Self::Line(line) => Answering::Line(line.call(request).boxed()),
        }
    }
}
