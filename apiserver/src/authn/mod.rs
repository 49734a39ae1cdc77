//! Who asks: a proxy's word, client certificates, tokens of a file, of accounts, of other issuers, for joining or known to
//! a service, and nobody in particular.

mod bootstrap_token;
mod certificates;
mod front_proxy;
mod impersonation;
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
use keelson_pki::{ClientVerifier, ClusterPki};

use crate::access::UserInfo;
use crate::objects::Objects;
use jwt_config::Anonymous;

pub use certificates::Certificates;
pub use front_proxy::Settings as FrontProxySettings;
pub(crate) use impersonation::{Acting, NODE_NAME, account_of, impersonate};
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
