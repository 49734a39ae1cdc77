//! The network of a node: its pods' addresses, Services, policies and names.

pub mod dns;
pub mod endpoints;
pub mod flows;
pub mod health_check;
pub mod iptables;
pub mod measure;
mod netlink;
#[cfg(test)]
mod netlink_tests;
pub mod nft;
mod node;
pub mod overlay;
pub mod policy;
pub mod proxy;
mod service;
mod sets;
pub mod ways;
