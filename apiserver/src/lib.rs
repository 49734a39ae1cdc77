//! The request pipeline of the Kubernetes API over a [`keelson_store::Kv`].

pub mod access;
pub mod admission;
pub mod authn;
pub mod authz;
pub mod bootstrap;
pub mod objects;
