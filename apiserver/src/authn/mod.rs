//! Who asks: client certificates, service account tokens, bootstrap tokens, and nobody in particular.

mod bootstrap_token;
mod service_account;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use keelson_pki::ClusterPki;
use rustls::pki_types::CertificateDer;

use crate::access::{Attributes, Authorizer, Decision, UserInfo};
use crate::objects::Objects;

/// Group of everybody who proved who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of everybody else.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Name of somebody who gave no proof.
pub const ANONYMOUS: &str = "system:anonymous";

/// The proof given is not good: answer 401.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AuthnError(pub String);

/// Finds out who asks.
pub struct Authentication {
    pub(crate) objects: Objects,
    pub(crate) pki: Arc<ClusterPki>,
}

impl Authentication {
    /// With the keys and the replica.
    pub fn new(objects: Objects, pki: Arc<ClusterPki>) -> Self {
        Self { objects, pki }
    }

    /// The user of a request. `peer_certs` were verified by TLS against the cluster's CA. A certificate goes before a
    /// token; with neither the user is anonymous.
    pub fn authenticate(&self, headers: &HeaderMap, peer_certs: &[CertificateDer<'_>]) -> Result<UserInfo, AuthnError> {
        if let Some(certificate) = peer_certs.first() {
            let (name, groups) = keelson_pki::subject_of(certificate).map_err(|e| AuthnError(e.to_string()))?;
            if !name.is_empty() {
                return Ok(with_groups(name, groups));
            }
        }
        match bearer(headers)? {
            Some(token) => self.token(token, &[keelson_pki::service_account::ISSUER]),
            None => {
                Ok(UserInfo { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..UserInfo::default() })
            }
        }
    }

    /// The user of a token that is meant for one of `audiences` (TokenReview asks with its own).
    pub fn token(&self, token: &str, audiences: &[&str]) -> Result<UserInfo, AuthnError> {
        if let Some((id, secret)) = keelson_pki::token::parse(token) {
            return self.bootstrap_token(id, secret, jiff::Timestamp::now());
        }
        self.service_account(token, audiences)
    }
}

fn with_groups(name: String, mut groups: Vec<String>) -> UserInfo {
    if !groups.iter().any(|g| g == AUTHENTICATED) {
        groups.push(AUTHENTICATED.into());
    }
    UserInfo { name, groups, ..UserInfo::default() }
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>, AuthnError> {
    let Some(header) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let text = header.to_str().map_err(|_| AuthnError("the Authorization header is not text".into()))?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(Some(token.trim()))
        }
        // Other schemes and an empty token prove nothing, and are no wrong proof either.
        _ => Ok(None),
    }
}

/// The user that a request wants to act as, if it asks for that and `user` may; `Err` holds why not (answer 403), with
/// the attributes that were refused.
pub fn impersonate(
    headers: &HeaderMap,
    user: &UserInfo,
    authorizer: &dyn Authorizer,
) -> Result<Option<UserInfo>, Box<(Attributes, String)>> {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
    };
    let (names, groups, uids) = (all("impersonate-user"), all("impersonate-group"), all("impersonate-uid"));
    let extras: Vec<(String, Vec<String>)> = headers
        .keys()
        .filter_map(|k| k.as_str().strip_prefix("impersonate-extra-"))
        .map(|key| (key.to_owned(), all(&format!("impersonate-extra-{key}"))))
        .collect();
    let check = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let attributes = Attributes {
            verb: "impersonate".into(),
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        };
        match authorizer.authorize(user, &attributes) {
            Decision::Allow => Ok(()),
            Decision::Deny(why) | Decision::NoOpinion(why) => Err(Box::new((attributes, why))),
        }
    };
    let Some(name) = names.into_iter().next() else {
        if groups.is_empty() && uids.is_empty() && extras.is_empty() {
            return Ok(None);
        }
        let why = "requested impersonation without impersonating a user".to_owned();
        return Err(Box::new((Attributes { verb: "impersonate".into(), ..Attributes::default() }, why)));
    };
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, account)) => check("", "serviceaccounts", "", namespace, account)?,
        None => check("", "users", "", "", &name)?,
    }
    groups.iter().try_for_each(|group| check("", "groups", "", "", group))?;
    uids.iter().try_for_each(|uid| check("authentication.k8s.io", "uids", "", "", uid))?;
    for (key, values) in &extras {
        values.iter().try_for_each(|value| check("authentication.k8s.io", "userextras", key, "", value))?;
    }
    let mut groups = groups;
    if let (true, Some((namespace, _))) = (groups.is_empty(), account) {
        groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let mut acting = if name == ANONYMOUS {
        UserInfo { name, groups: vec![UNAUTHENTICATED.into()], ..UserInfo::default() }
    } else {
        with_groups(name, groups)
    };
    acting.uid = uids.into_iter().next().unwrap_or_default();
    acting.extra = extras.into_iter().collect();
    Ok(Some(acting))
}
