//! What carries a request to an apiserver: a socket ([`crate::https`]) or a call in the same process
//! (implemented by `keelson-apiserver`).

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;

/// A response body: chunks as they arrive; a watch stays open.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Carries one request. The identity belongs to the transport (certificate, token, or the in-process user).
/// `uri` holds path and query only. An error means that no answer came; the request may have been carried out.
pub trait Transport: Send + Sync + 'static {
    /// Sends the request and returns as soon as the response's head is there.
    fn call(&self, request: http::Request<Bytes>) -> BoxFuture<'_, std::io::Result<http::Response<Body>>>;
}

/// Put into a request's extensions by in-process callers: the write succeeds only while `key` still has this
/// create revision (a leader lease held by the caller), otherwise it fails with 409 Conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The store key of the lease.
    pub key: Bytes,
    /// Its create revision when the lease was won.
    pub create_revision: i64,
}
