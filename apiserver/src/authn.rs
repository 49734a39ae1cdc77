//! Who a request is from: client certificate, service account token, bootstrap token, or anonymous.
//!
//! Invariant: a credential that is presented and not good is refused; it never falls back to anonymous.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources;
use keelson_pki::service_account::{self, Claims};
use keelson_pki::{ClusterPki, token};
use rustls::pki_types::CertificateDer;
use serde_json::Value;

use crate::access::UserInfo;
use crate::objects::Objects;

const AUTHENTICATED: &str = "system:authenticated";

/// Finds out who a request is from.
pub struct Authenticator {
    objects: Objects,
    pki: Arc<ClusterPki>,
}

impl Authenticator {
    /// Reads accounts and tokens from `objects`.
    pub fn new(objects: Objects, pki: Arc<ClusterPki>) -> Self {
        Self { objects, pki }
    }

    /// The user. TLS has verified `certificates` already. The error says why, for the log; the client sees 401.
    pub fn authenticate(&self, headers: &HeaderMap, certificates: &[CertificateDer<'_>]) -> Result<UserInfo, String> {
        if let Some(certificate) = certificates.first() {
            let (name, mut groups) = keelson_pki::subject_of(certificate).map_err(|e| e.to_string())?;
            if name.is_empty() {
                return Err("the certificate has no common name".into());
            }
            groups.push(AUTHENTICATED.into());
            return Ok(UserInfo { name, groups, ..UserInfo::default() });
        }
        let Some(header) = headers.get(http::header::AUTHORIZATION) else {
            let groups = vec!["system:unauthenticated".into()];
            return Ok(UserInfo { name: "system:anonymous".into(), groups, ..UserInfo::default() });
        };
        let bearer = header
            .to_str()
            .ok()
            .and_then(|v| v.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let bearer = bearer.map(|(_, token)| token.trim()).ok_or("not a bearer token")?;
        self.token(bearer, &[service_account::ISSUER])
    }

    /// The user of a bearer token that is meant for one of `audiences`.
    pub fn token(&self, bearer: &str, audiences: &[&str]) -> Result<UserInfo, String> {
        match token::parse(bearer) {
            Some((id, secret)) => self.bootstrap(id, secret),
            None => {
                self.service_account(&self.pki.service_account.verify(bearer, audiences).map_err(|e| e.to_string())?)
            }
        }
    }

    fn row(plural: &str) -> Result<&'static ResourceDef, String> {
        resources::find("", "v1", plural).ok_or_else(|| format!("no row for {plural}"))
    }

    fn service_account(&self, claims: &Claims) -> Result<UserInfo, String> {
        let private = &claims.kubernetes;
        let exists = |plural: &str, namespace: &str, bound: &service_account::Bound| -> Result<(), String> {
            let found = self.objects.get(Self::row(plural)?, namespace, &bound.name).map_err(|s| s.message)?;
            match found {
                Some((object, _)) if object["metadata"]["uid"] == bound.uid.as_str() => Ok(()),
                _ => Err(format!("{plural} {:?} that the token is bound to is gone", bound.name)),
            }
        };
        exists("serviceaccounts", &private.namespace, &private.serviceaccount)?;
        for (plural, bound) in [("pods", &private.pod), ("secrets", &private.secret)] {
            if let Some(bound) = bound {
                exists(plural, &private.namespace, bound)?;
            }
        }
        let mut user = UserInfo {
            name: format!("system:serviceaccount:{}:{}", private.namespace, private.serviceaccount.name),
            uid: private.serviceaccount.uid.clone(),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{}", private.namespace),
                AUTHENTICATED.into(),
            ],
            ..UserInfo::default()
        };
        let mut extra = |key: &str, value: &str| {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()])
        };
        extra("credential-id", &format!("JTI={}", claims.jti));
        if let Some(pod) = &private.pod {
            extra("pod-name", &pod.name);
            extra("pod-uid", &pod.uid);
        }
        if let Some(node) = &private.node {
            extra("node-name", &node.name);
            extra("node-uid", &node.uid);
        }
        Ok(user)
    }

    /// A bootstrap token: a Secret `bootstrap-token-<id>` in kube-system.
    fn bootstrap(&self, id: &str, secret: &str) -> Result<UserInfo, String> {
        let row = Self::row("secrets")?;
        let found = self.objects.get(row, "kube-system", &format!("bootstrap-token-{id}")).map_err(|s| s.message)?;
        let (object, _) = found.ok_or("no such bootstrap token")?;
        let field = |key: &str| decoded(&object["data"][key]);
        let good = object["type"] == "bootstrap.kubernetes.io/token"
            && field("token-id").as_deref() == Some(id)
            && field("token-secret").is_some_and(|s| token::equal(s.as_bytes(), secret.as_bytes()))
            && field("usage-bootstrap-authentication").as_deref() == Some("true");
        if !good || object["metadata"]["deletionTimestamp"].is_string() {
            return Err("the bootstrap token is not good".into());
        }
        if let Some(expiration) = field("expiration") {
            let at: jiff::Timestamp =
                expiration.parse().map_err(|_| "the bootstrap token's expiration is not a time")?;
            if at <= jiff::Timestamp::now() {
                return Err("the bootstrap token is expired".into());
            }
        }
        let mut groups = vec!["system:bootstrappers".to_owned()];
        let extra = field("auth-extra-groups").unwrap_or_default();
        groups.extend(extra.split(',').filter(|g| g.starts_with("system:bootstrappers:")).map(str::to_owned));
        groups.push(AUTHENTICATED.into());
        Ok(UserInfo { name: format!("system:bootstrap:{id}"), groups, ..UserInfo::default() })
    }
}

fn decoded(value: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()
}
