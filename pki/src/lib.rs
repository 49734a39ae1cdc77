//! The cluster's keys and certificates: CA hierarchy, issuing, signing requests, TLS configurations, tokens, kubeconfigs.
//!
//! Invariants: private keys are written with mode 0600 and never logged (`Debug` leaves them out); every rustls
//! configuration names its crypto provider (aws-lc-rs), none relies on a process-wide default.

mod authority;
mod bundle;
mod kubeconfig;
mod pod;
pub mod service_account;
mod subject;
mod tls;
pub mod token;

pub use authority::{Authority, CsrSubject, Issued, certificate_request, read_csr};
pub use bundle::ClusterPki;
pub use kubeconfig::{Credential, kubeconfig};
pub use pod::pod_key;
pub(crate) use tls::name_of;
pub use tls::{
    CertificateSlot, ClientVerifier, Facts, Identity, ServerSlot, client_config, client_config_pinned,
    client_config_unverified, facts_of, fingerprint_of, has_key_hash, is_bundle, key_problem, mutual_server_config,
    peer_client_config, peer_server_config, public_key_hash, server_config, subject_of, uid_of,
};

/// The subject's attribute that holds a user's uid (Kubernetes' own, under the foundation's number).
pub const UID_OID: [u64; 8] = [1, 3, 6, 1, 4, 1, 57683, 2];

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate could not be made or read.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// PEM or DER that cannot be read.
    #[error("{0}")]
    Malformed(String),
    /// TLS refused what it was given.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A token that is not good.
    #[error("token: {0}")]
    Token(#[from] jsonwebtoken::errors::Error),
    /// A file could not be read or written.
    #[error("{0}: {1}")]
    File(String, std::io::Error),
}
