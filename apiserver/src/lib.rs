//! The request pipeline of the Kubernetes API over a [`keelson_store::Kv`]: authentication, authorization, admission, the
//! verbs and subresources of every row, discovery.
//!
//! Invariants: there is one call site of authorization; a request writes with one transaction; a panic fails one request.

pub mod access;
pub mod admission;
mod aggregation;
pub mod audit;
pub mod authn;
pub mod authz;
mod bindings;
pub mod body;
pub mod bootstrap;
mod certificates;
mod components;
mod crd;
mod deletion;
mod devices;
mod discovery;
mod earlier;
mod encryption;
pub mod endpoints;
mod eviction;
mod flow;
mod flow_status;
mod health;
pub mod hooks;
mod introspection;
mod legacy_tokens;
mod listing;
mod metrics;
pub mod name_service;
mod negotiate;
pub mod objects;
mod offered;
mod openapi;
mod options;
mod ownership;
mod pipeline;
mod quota;
mod reload;
mod remote;
pub mod request;
mod respond;
mod reviews;
mod scale;
pub mod scheduling;
mod server;
mod service_ranges;
mod services;
pub mod settings;
mod strategy;
mod streams;
mod strict;
mod subresources;
mod table;
mod tokens;
mod usage;
mod verbs;
mod wire;

pub use metrics::Figures;
pub use pipeline::{ApiServer, Config, Extension, InProcess};
pub use server::serve;
pub use service_ranges::first_address as first_service_address;
pub use services::repair::sweep as sweep_addresses;
pub use settings::Settings;
