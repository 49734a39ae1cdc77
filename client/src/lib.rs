//! One client API for Kubernetes' API, over two transports: in the same process and HTTPS.
//!
//! Invariant: a component cannot tell which transport it runs on, except by speed.

pub mod api;
pub mod cache;
pub mod connection;
pub mod discovery;
pub mod election;
pub mod events;
pub mod https;
pub mod informer;
pub mod lean;
pub mod queue;
mod revisions;
pub mod spdy;
pub mod transport;

pub use api::{Api, Client, Error, List, ListParams, Object, PatchType, WatchEvent};
pub use cache::Cache;
pub use events::Recorder;
pub use https::{Https, access};
pub use informer::{Change, Informer, Key};
pub use queue::Queue;
pub use transport::{Body, Fence, Transport};
