//! Housekeeping: namespaces' ends, service accounts and their tokens, the cluster's CA in each namespace, bootstrap tokens,
//! aggregated roles.

pub mod accounts;
pub mod aggregation;
pub mod bootstrap;
pub mod legacy_tokens;
pub mod namespace;
pub mod root_ca;
pub mod token_secrets;
