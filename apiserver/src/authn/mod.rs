//! Who asks: client certificates, service account tokens, bootstrap tokens, and nobody in particular.

mod bootstrap_token;
mod service_account;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use keelson_machinery::status::Status;
use keelson_pki::ClusterPki;
use rustls::pki_types::CertificateDer;

use crate::access::{Attributes, Authorizer, Decision, UserInfo};
use crate::authz;
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
                let uid = keelson_pki::uid_of(certificate).map_err(|e| AuthnError(e.to_string()))?;
                return Ok(UserInfo { uid, ..with_groups(name, groups) });
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
        self.service_account(token, audiences).map(|(user, _)| user)
    }

    /// The same, with the audiences that the token is meant for.
    pub fn token_for(&self, token: &str, audiences: &[&str]) -> Result<(UserInfo, Vec<String>), AuthnError> {
        if let Some((id, secret)) = keelson_pki::token::parse(token) {
            let user = self.bootstrap_token(id, secret, jiff::Timestamp::now())?;
            return Ok((user, audiences.iter().map(|a| (*a).to_owned()).collect()));
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

/// The user that a request wants to act as, if it asks for that and `user` may.
pub fn impersonate(
    headers: &HeaderMap,
    user: &UserInfo,
    authorizer: &dyn Authorizer,
) -> Result<Option<UserInfo>, Status> {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
    };
    let (names, groups, uids) = (all("impersonate-user"), all("impersonate-group"), all("impersonate-uid"));
    let extras: Vec<(String, Vec<String>)> = headers
        .keys()
        .filter_map(|k| k.as_str().strip_prefix("impersonate-extra-"))
        .map(|key| (crate::request::percent_decoded(key), all(&format!("impersonate-extra-{key}"))))
        .collect();
    let Some(name) = names.into_iter().next().filter(|name| !name.is_empty()) else {
        if groups.is_empty() && uids.is_empty() && extras.is_empty() {
            return Ok(None);
        }
        return Err(without_a_name(&groups, uids.first(), &extras));
    };
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
            Decision::Deny(why) | Decision::NoOpinion(why) => Err(authz::refusal(user, &attributes, &why)),
        }
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

/// The refusal of headers that say as whom a request acts, but for the name; in Go's words, as upstream's.
fn without_a_name(groups: &[String], uid: Option<&String>, extras: &[(String, Vec<String>)]) -> Status {
    let list = |values: &[String]| {
        format!("[]string{{{}}}", values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(", "))
    };
    let groups = if groups.is_empty() { "[]string(nil)".into() } else { list(groups) };
    let entries: Vec<String> = extras.iter().map(|(key, values)| format!("{key:?}:{}", list(values))).collect();
    let extra = match entries.is_empty() {
        true => "map[string][]string(nil)".to_owned(),
        false => format!("map[string][]string{{{}}}", entries.join(", ")),
    };
    Status::bad_request(format!(
        "requested &user.DefaultInfo{{Name:\"\", UID:{:?}, Groups:{groups}, Extra:{extra}}} without impersonating a user name",
        uid.map_or("", String::as_str)
    ))
}
