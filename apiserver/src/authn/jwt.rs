//! Tokens of other issuers (OpenID Connect): JWTs checked with the issuer's published keys, claims mapped to a user.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use keelson_client::{Https, Transport};
use keelson_machinery::cel::{Bindings, Budget, Program, Value as Cel};
use serde_json::{Map, Value, json};

use super::jwt_config::{Issuer, Mapping, Rule};
use super::{AuthnError, with_groups};
use crate::access::UserInfo;

/// The issuer must answer within this.
const PATIENCE: Duration = Duration::from_secs(10);
/// Keys are fetched no more often than this.
const FETCH_INTERVAL: Duration = Duration::from_secs(1);
/// Largest document of an issuer, bytes.
const MAX_DOCUMENT_BYTES: usize = 1 << 20;
/// What all expressions of a token may cost.
const BUDGET: u64 = 1_000_000;

/// The claims of a token that its issuer signed.
type Claims = Map<String, Value>;

/// Believes one issuer.
pub struct Authenticator {
    issuer: Issuer,
    keys: ArcSwap<JwkSet>,
    fetched: tokio::sync::Mutex<Option<Instant>>,
}

fn refused(why: impl std::fmt::Display) -> AuthnError {
    AuthnError(format!("oidc: {why}"))
}

/// The issuer that a token names, whoever signed it.
pub fn issuer_of(token: &str) -> Option<String> {
    use base64::Engine;
    let payload = token.split('.').nth(1)?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?;
    let claims: Value = serde_json::from_slice(&bytes).ok()?;
    claims["iss"].as_str().map(str::to_owned)
}

impl Authenticator {
    /// For an issuer; its keys are fetched when the first token comes.
    pub fn new(issuer: Issuer) -> Self {
        Self { issuer, keys: ArcSwap::from_pointee(JwkSet { keys: Vec::new() }), fetched: Default::default() }
    }

    /// The issuer's URL.
    pub fn url(&self) -> &str {
        &self.issuer.url
    }

    /// The user of a token.
    pub async fn user(&self, token: &str) -> Result<UserInfo, AuthnError> {
        let claims = self.claims(token).await?;
        self.check(&claims)?;
        let budget = Budget::new(BUDGET);
        let claims = Value::Object(claims);
        let name = self.username(&claims, &budget)?;
        let groups = mapped(&self.issuer.groups, &claims, &budget)?;
        let groups =
            texts("groups", groups)?.into_iter().map(|group| format!("{}{group}", self.issuer.groups.prefix()));
        let mut user = with_groups(name, groups.filter(|group| !group.is_empty()).collect());
        if let Some(uid) = mapped(&self.issuer.uid, &claims, &budget)?.as_str() {
            user.uid = uid.to_owned();
        }
        for (key, program) in &self.issuer.extra {
            let values = texts(key, evaluated(program, "claims", &claims, &budget)?)?;
            if !values.is_empty() {
                user.extra.insert(key.clone(), values);
            }
        }
        let shown = json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
        for rule in &self.issuer.user_rules {
            hold(rule, "user", &shown, &budget)?;
        }
        Ok(user)
    }

    fn username(&self, claims: &Value, budget: &Budget) -> Result<String, AuthnError> {
        let name = mapped(&self.issuer.username, claims, budget)?;
        let name = name.as_str().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| refused("the token has no username"))?;
        if self.issuer.username.claim() == Some("email") && claims.get("email_verified").is_some_and(|v| *v != true) {
            return Err(refused("email not verified"));
        }
        Ok(format!("{}{name}", self.issuer.username.prefix()))
    }

    fn check(&self, claims: &Claims) -> Result<(), AuthnError> {
        let budget = Budget::new(BUDGET);
        for (claim, wanted) in &self.issuer.required {
            if claims.get(claim).and_then(Value::as_str) != Some(wanted) {
                return Err(refused(format!("required claim {claim} not present in ID token, or of another value")));
            }
        }
        let all = Value::Object(claims.clone());
        self.issuer.claim_rules.iter().try_for_each(|rule| hold(rule, "claims", &all, &budget))
    }

    async fn claims(&self, token: &str) -> Result<Claims, AuthnError> {
        let header = jsonwebtoken::decode_header(token).map_err(refused)?;
        if !self.issuer.algorithms.contains(&header.alg) {
            return Err(refused(format!("unexpected signature algorithm {:?}", header.alg)));
        }
        let mut keys = self.fitting(header.kid.as_deref());
        if keys.is_empty() {
            self.fetch().await?;
            keys = self.fitting(header.kid.as_deref());
        }
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.issuer.url]);
        validation.set_audience(&self.issuer.audiences);
        validation.set_required_spec_claims(&["exp", "aud", "iss"]);
        validation.validate_nbf = true;
        let mut why = refused("no key of the issuer fits the token");
        for key in keys {
            match jsonwebtoken::decode::<Claims>(token, &key, &validation) {
                Ok(token) => return Ok(token.claims),
                Err(error) => why = refused(format!("verify token: {error}")),
            }
        }
        Err(why)
    }

    fn fitting(&self, kid: Option<&str>) -> Vec<DecodingKey> {
        let keys = self.keys.load();
        let known = keys.keys.iter().filter(|key| kid.is_none() || key.common.key_id.as_deref() == kid);
        known.filter_map(|key| DecodingKey::from_jwk(key).ok()).collect()
    }

    /// Fetches the issuer's keys, unless that was done a moment ago.
    async fn fetch(&self) -> Result<(), AuthnError> {
        let mut fetched = self.fetched.lock().await;
        if fetched.is_some_and(|at| at.elapsed() < FETCH_INTERVAL) {
            return Ok(());
        }
        *fetched = Some(Instant::now());
        let place = self.issuer.discovery_url.clone();
        let place = place
            .unwrap_or_else(|| format!("{}/.well-known/openid-configuration", self.issuer.url.trim_end_matches('/')));
        let document = self.get(&place).await?;
        if document["issuer"] != self.issuer.url.as_str() {
            return Err(refused(format!("the issuer calls itself {}", document["issuer"])));
        }
        let keys = document["jwks_uri"].as_str().ok_or_else(|| refused("the issuer names no keys"))?;
        let keys: JwkSet = serde_json::from_value(self.get(keys).await?).map_err(refused)?;
        self.keys.store(Arc::new(keys));
        Ok(())
    }

    async fn get(&self, url: &str) -> Result<Value, AuthnError> {
        let failed = |why: String| refused(format!("GET {url}: {why}"));
        let rest = url.strip_prefix("https://").ok_or_else(|| failed("not an https URL".into()))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let tls = keelson_pki::client_config(&self.issuer.ca, keelson_pki::Identity::None);
        let transport = Https::new(&format!("https://{host}"), tls.map_err(|e| failed(e.to_string()))?, None);
        let request = http::Request::get(format!("/{path}")).body(Bytes::new()).map_err(|e| failed(e.to_string()))?;
        let exchange = async {
            let response = transport.call(request).await.map_err(|e| e.to_string())?;
            if !response.status().is_success() {
                return Err(format!("the answer is {}", response.status()));
            }
            let body = Limited::new(response.into_body(), MAX_DOCUMENT_BYTES).collect().await;
            serde_json::from_slice(&body.map_err(|e| e.to_string())?.to_bytes()).map_err(|e| e.to_string())
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(result) => result.map_err(failed),
            Err(_) => Err(failed("no answer in time".into())),
        }
    }
}

fn evaluated(program: &Program, name: &'static str, value: &Value, budget: &Budget) -> Result<Value, AuthnError> {
    let mut bindings = Bindings::default();
    bindings.insert(name, Cel::of(value, None));
    let result = program.eval(&bindings, budget).map_err(refused)?;
    result.to_json().ok_or_else(|| refused("an expression gives no value"))
}

/// What a mapping makes of the claims; null for a claim that is not there.
fn mapped(mapping: &Mapping, claims: &Value, budget: &Budget) -> Result<Value, AuthnError> {
    match mapping {
        Mapping::None => Ok(Value::Null),
        Mapping::Claim { claim, .. } => Ok(claims[claim].clone()),
        Mapping::Expression(program) => evaluated(program, "claims", claims, budget),
    }
}

/// A text or a list of texts.
fn texts(what: &str, value: Value) -> Result<Vec<String>, AuthnError> {
    let wrong = || refused(format!("{what}: neither a text nor a list of texts"));
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        Value::String(text) => Ok(vec![text]),
        Value::Array(list) => list.into_iter().map(|v| v.as_str().map(str::to_owned).ok_or_else(wrong)).collect(),
        _ => Err(wrong()),
    }
}

fn hold(rule: &Rule, name: &'static str, value: &Value, budget: &Budget) -> Result<(), AuthnError> {
    match evaluated(&rule.program, name, value, budget)? {
        Value::Bool(true) => Ok(()),
        _ if rule.message.is_empty() => Err(refused(format!("validation expression '{}' failed", rule.source))),
        _ => Err(refused(&rule.message)),
    }
}

/// Every algorithm that an issuer may use.
pub const ALGORITHMS: [(&str, Algorithm); 8] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
];
