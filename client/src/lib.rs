//! One client API for Kubernetes' API, over two transports: in the same process and HTTPS.
//!
//! Invariant: a component cannot tell which transport it runs on, except by speed.

pub mod api;
pub mod cache;
pub mod connection;
pub mod https;
pub mod transport;

pub use api::{Api, Client, Error, List, ListParams, Object, PatchType, WatchEvent};
pub use cache::{Cache, Key};
pub use transport::{Body, Fence, Transport};
