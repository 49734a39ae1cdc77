//! A proxy in front of this server that says who asks (`--requestheader-*`): it is believed if its certificate is of its own
//! authority and has one of the names that are allowed.

use std::path::PathBuf;

use http::HeaderMap;
use keelson_pki::ClientVerifier;
use rustls::pki_types::CertificateDer;

use super::{AuthnError, with_groups};
use crate::access::UserInfo;

/// What an operator may choose.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The authority that signs the proxy's certificate; none: there is no such proxy.
    pub ca_file: Option<PathBuf>,
    /// Common names of the proxy; none: any.
    pub allowed_names: Vec<String>,
    /// Headers with the user's name.
    pub username_headers: Vec<String>,
    /// Headers with the user's uid.
    pub uid_headers: Vec<String>,
    /// Headers with groups.
    pub group_headers: Vec<String>,
    /// What headers with further attributes begin with.
    pub extra_prefixes: Vec<String>,
}

/// Believes a proxy.
pub struct FrontProxy {
    verifier: ClientVerifier,
    allowed_names: Vec<String>,
    username: Vec<String>,
    uid: Vec<String>,
    groups: Vec<String>,
    extra: Vec<String>,
}

impl FrontProxy {
    /// As the settings say; `None` without an authority.
    pub fn load(settings: &Settings) -> Result<Option<Self>, String> {
        let Some(path) = &settings.ca_file else { return Ok(None) };
        let failed = |why: String| format!("--requestheader-client-ca-file {}: {why}", path.display());
        let pem = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        let lower = |list: &[String]| list.iter().map(|name| name.trim().to_lowercase()).collect::<Vec<_>>();
        let username = lower(&settings.username_headers);
        if username.is_empty() {
            return Err("--requestheader-username-headers is required with --requestheader-client-ca-file".into());
        }
        Ok(Some(Self {
            verifier: ClientVerifier::new(&pem).map_err(|e| failed(e.to_string()))?,
            allowed_names: settings.allowed_names.clone(),
            username,
            uid: lower(&settings.uid_headers),
            groups: lower(&settings.group_headers),
            extra: lower(&settings.extra_prefixes),
        }))
    }

    /// The user whom the proxy names; `None` if the request is none of the proxy's.
    pub fn user(&self, headers: &HeaderMap, peer: &[CertificateDer<'_>]) -> Result<Option<UserInfo>, AuthnError> {
        let Some(certificate) = peer.first() else { return Ok(None) };
        let values = |name: &str| -> Vec<String> {
            headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
        };
        let first = |names: &[String]| names.iter().find_map(|name| values(name).into_iter().find(|v| !v.is_empty()));
        let Some(name) = first(&self.username) else { return Ok(None) };
        if !self.verifier.accepts(peer) {
            return Ok(None);
        }
        let (own, _) = keelson_pki::subject_of(certificate).map_err(|e| AuthnError(e.to_string()))?;
        if !self.allowed_names.is_empty() && !self.allowed_names.contains(&own) {
            return Err(AuthnError(format!("x509: subject with cn={own} is not in the allowed list")));
        }
        let groups = self.groups.iter().flat_map(|name| values(name)).filter(|group| !group.is_empty()).collect();
        let mut user = UserInfo { uid: first(&self.uid).unwrap_or_default(), ..with_groups(name, groups) };
        for prefix in &self.extra {
            for name in headers.keys() {
                if let Some(key) = name.as_str().strip_prefix(prefix.as_str()) {
                    let key = crate::request::percent_decoded(key);
                    user.extra.insert(key, values(name.as_str()));
                }
            }
        }
        Ok(Some(user))
    }
}
