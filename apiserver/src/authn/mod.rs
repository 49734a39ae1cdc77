//! Who asks: a proxy's word, client certificates, tokens of a file, of accounts, of other issuers, for joining or known to
//! a service, and nobody in particular.

mod bootstrap_token;
mod certificates;
mod front_proxy;
mod jwt;
mod jwt_check;
mod jwt_config;
mod service_account;
#[cfg(test)]
mod tests;
mod token_file;
mod webhook;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use keelson_machinery::status::Status;
use keelson_pki::{ClientVerifier, ClusterPki};

use crate::access::{Attributes, Authorizer, Decision, UserInfo};
use crate::authz;
use crate::objects::Objects;
use jwt_config::Anonymous;

pub use certificates::Certificates;
pub use front_proxy::Settings as FrontProxySettings;
pub use jwt_config::Settings as OidcSettings;
pub use webhook::Settings as WebhookSettings;

/// Group of everybody who proved who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of everybody else.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Name of somebody who gave no proof.
pub const ANONYMOUS: &str = "system:anonymous";

/// Extra attribute that names the proof itself, so that what it was used for can be found (KEP-4193).
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// The proof given is not good: answer 401.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AuthnError(pub String);

/// What an operator may choose.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Tokens of a file.
    pub token_file: Option<PathBuf>,
    /// A service that knows tokens.
    pub webhook: Option<webhook::Settings>,
    /// An issuer of tokens.
    pub oidc: jwt_config::Settings,
    /// Issuers, and who may ask without proof (AuthenticationConfiguration).
    pub config: Option<PathBuf>,
    /// Whether nobody in particular may ask; `None`: they may.
    pub anonymous: Option<bool>,
    /// A proxy that says who asks.
    pub front_proxy: front_proxy::Settings,
    /// Further authorities whose certificates prove who a user is.
    pub client_ca_file: Option<PathBuf>,
}

impl Settings {
    /// The authorities (PEM) for whose certificates TLS must ask, beside the cluster's own.
    pub fn authorities(&self) -> Result<String, String> {
        let mut all = String::new();
        for path in [&self.client_ca_file, &self.front_proxy.ca_file].into_iter().flatten() {
            all += &std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            all.push('\n');
        }
        Ok(all)
    }
}

/// Finds out who asks.
pub struct Authentication {
    pub(crate) objects: Objects,
    pub(crate) pki: Arc<ClusterPki>,
    tokens: HashMap<String, UserInfo>,
    webhook: Option<webhook::Webhook>,
    issuers: Vec<jwt::Authenticator>,
    anonymous: jwt_config::Anonymous,
    front_proxy: Option<front_proxy::FrontProxy>,
    /// Checks users' certificates, where TLS accepts those of others too.
    users: Option<ClientVerifier>,
    /// Uses of tokens that Secrets keep.
    uses: Arc<crate::legacy_tokens::Uses>,
}

impl Authentication {
    /// With the keys and the replica: certificates, accounts and bootstrap tokens.
    pub fn new(objects: Objects, pki: Arc<ClusterPki>) -> Self {
        Self {
            objects,
            pki,
            tokens: HashMap::new(),
            webhook: None,
            issuers: Vec::new(),
            anonymous: jwt_config::Anonymous::default(),
            front_proxy: None,
            users: None,
            uses: Arc::default(),
        }
    }

    /// The same, with where uses of tokens that Secrets keep are noted.
    pub fn noting(self, uses: Arc<crate::legacy_tokens::Uses>) -> Self {
        Self { uses, ..self }
    }

    /// The same, with what an operator chose.
    pub fn load(objects: Objects, pki: Arc<ClusterPki>, settings: &Settings) -> Result<Self, String> {
        let mut made = Self::new(objects, pki);
        if let Some(path) = &settings.token_file {
            made.tokens = token_file::load(path)?;
        }
        made.webhook = settings.webhook.as_ref().map(webhook::Webhook::load).transpose()?;
        let mut issuers: Vec<_> = settings.oidc.load()?.into_iter().collect();
        if let Some(path) = &settings.config {
            let failed = |why: String| format!("--authentication-config {}: {why}", path.display());
            if !issuers.is_empty() {
                return Err("--authentication-config and --oidc-* flags are mutually exclusive".into());
            }
            let (configured, anonymous) = jwt_config::configured(path).map_err(failed)?;
            if anonymous.is_some() && settings.anonymous.is_some() {
                return Err("--anonymous-auth flag cannot be set when anonymous field is configured in authentication configuration file".into());
            }
            issuers = configured;
            made.anonymous = anonymous.unwrap_or_default();
        }
        if let Some(enabled) = settings.anonymous {
            made.anonymous.enabled = enabled;
        }
        made.issuers = issuers.into_iter().map(jwt::Authenticator::new).collect();
        made.front_proxy = front_proxy::FrontProxy::load(&settings.front_proxy)?;
        let mut users = made.pki.cluster.trusted().to_string();
        if let Some(path) = &settings.client_ca_file {
            users += &std::fs::read_to_string(path).map_err(|e| format!("--client-ca-file {}: {e}", path.display()))?;
        }
        // TLS may still accept what was taken out of the file since.
        if made.front_proxy.is_some() || settings.client_ca_file.is_some() {
            made.users = Some(ClientVerifier::new(&users).map_err(|e| e.to_string())?);
        }
        Ok(made)
    }

    /// The user of a request to `path`. `peer`'s certificates were verified by TLS against all authorities that count. The proxy's
    /// word goes before a certificate, that before a token; with none of them the user is anonymous.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        path: &str,
        peer: &Certificates,
    ) -> Result<UserInfo, AuthnError> {
        if let Some(front_proxy) = &self.front_proxy
            && let Some(user) = front_proxy.user(headers, peer.chain())?
        {
            return Ok(user);
        }
        let own = self.users.as_ref().is_none_or(|users| users.accepts(peer.chain()));
        if own && let Some(user) = peer.user()? {
            return Ok(user.clone());
        }
        if let Some(token) = bearer(headers)? {
            return self.token_for(token, &[keelson_pki::service_account::ISSUER]).await.map(|(user, _)| user);
        }
        let Anonymous { enabled, paths } = &self.anonymous;
        if !enabled || !(paths.is_empty() || paths.iter().any(|known| known == path)) {
            return Err(AuthnError("anonymous requests are not allowed".into()));
        }
        Ok(UserInfo { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..UserInfo::default() })
    }

    /// The user of a token that is meant for one of `audiences` (TokenReview asks with its own), and which of them it is for.
    pub async fn token_for(&self, token: &str, audiences: &[&str]) -> Result<(UserInfo, Vec<String>), AuthnError> {
        let all = || audiences.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
        if let Some(user) = self.tokens.get(token) {
            return Ok((user.clone(), all()));
        }
        let result = match keelson_pki::token::parse(token) {
            Some((id, secret)) => self.bootstrap_token(id, secret, jiff::Timestamp::now()).map(|user| (user, all())),
            None => match self.issuer(token) {
                Some(issuer) => {
                    let user = issuer.user(token).await;
                    if let Err(why) = &user {
                        tracing::debug!(%why, "a token was refused");
                    }
                    user.map(|user| (user, all())).map_err(|_| AuthnError("invalid bearer token".into()))
                }
                None => self.service_account(token, audiences),
            },
        };
        if let (Err(_), Some(webhook)) = (&result, &self.webhook)
            && let Some(known) = webhook.user(token, audiences).await?
        {
            return Ok(known);
        }
        result
    }

    /// The issuer that a token names, if it is believed.
    fn issuer(&self, token: &str) -> Option<&jwt::Authenticator> {
        if self.issuers.is_empty() {
            return None;
        }
        let named = jwt::issuer_of(token)?;
        self.issuers.iter().find(|issuer| issuer.url() == named)
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
