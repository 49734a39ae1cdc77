//! What a connection's client proved with its certificate.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use rustls::pki_types::CertificateDer;

use super::{AuthnError, CREDENTIAL_ID, with_groups};
use crate::access::UserInfo;

/// The certificates of a connection's client, the client's own first. Who it is is read from it once, not with each request.
#[derive(Default)]
pub struct Certificates {
    chain: Vec<CertificateDer<'static>>,
    user: OnceLock<Result<Option<UserInfo>, AuthnError>>,
}

impl Certificates {
    /// As TLS verified them; none if the client showed none.
    pub fn new(chain: &[CertificateDer<'static>]) -> Self {
        Self { chain: chain.to_vec(), user: OnceLock::new() }
    }

    /// The certificates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Whom the client's certificate names; `None` without a certificate or a common name.
    pub fn user(&self) -> Result<Option<&UserInfo>, AuthnError> {
        let read = self.user.get_or_init(|| self.chain.first().map_or(Ok(None), read));
        read.as_ref().map(Option::as_ref).map_err(Clone::clone)
    }
}

fn read(certificate: &CertificateDer<'_>) -> Result<Option<UserInfo>, AuthnError> {
    let (name, groups) = keelson_pki::subject_of(certificate).map_err(|e| AuthnError(e.to_string()))?;
    if name.is_empty() {
        return Ok(None);
    }
    let uid = keelson_pki::uid_of(certificate).map_err(|e| AuthnError(e.to_string()))?;
    let mut extra = BTreeMap::new();
    // Who may do everything has one certificate for all that they do: which it is says nothing of them.
    if !groups.iter().any(|group| group == crate::authz::MASTERS) {
        let id = format!("X509SHA256={}", keelson_pki::fingerprint_of(certificate));
        extra.insert(CREDENTIAL_ID.to_owned(), vec![id]);
    }
    Ok(Some(UserInfo { uid, extra, ..with_groups(name, groups) }))
}
