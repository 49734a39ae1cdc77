//! Which issuers are believed and how: the `--oidc-*` flags, or an AuthenticationConfiguration.

use std::path::{Path, PathBuf};

use jsonwebtoken::Algorithm;
use keelson_machinery::cel::{Env, Program, Type};
use keelson_machinery::decode;
use serde_json::Value;

use super::jwt::ALGORITHMS;
use super::jwt_check;
use crate::strict;

/// Certificate authorities of the host, for issuers without one of their own.
const HOST_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// An address that its owner never confirmed may be anybody's.
const UNVERIFIED: &str = "claims.email_verified must be used in claimMappings.username.expression or \
    claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in \
    claimMappings.username.expression";

/// The `--oidc-*` flags.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// URL of the issuer; empty: none.
    pub issuer_url: String,
    /// The audience.
    pub client_id: String,
    /// Claim with the user's name.
    pub username_claim: String,
    /// What is put before it; `-`: nothing.
    pub username_prefix: String,
    /// Claim with groups.
    pub groups_claim: String,
    /// What is put before each.
    pub groups_prefix: String,
    /// `key=value` of claims that a token must have.
    pub required_claims: Vec<String>,
    /// Names of algorithms.
    pub signing_algs: Vec<String>,
    /// The issuer's authority.
    pub ca_file: Option<PathBuf>,
}

/// How a part of the user is found in the claims.
pub enum Mapping {
    /// Not at all.
    None,
    /// By a claim.
    Claim {
        /// Its name.
        claim: String,
        /// What is put before its value.
        prefix: String,
    },
    /// By an expression over `claims`.
    Expression(Program),
}

impl Mapping {
    /// The claim, if it is one.
    pub fn claim(&self) -> Option<&str> {
        if let Self::Claim { claim, .. } = self { Some(claim) } else { None }
    }

    /// What is put before values.
    pub fn prefix(&self) -> &str {
        if let Self::Claim { prefix, .. } = self { prefix } else { "" }
    }
}

/// An expression that must be true.
pub struct Rule {
    /// As it is written.
    pub source: String,
    /// Ready to run.
    pub program: Program,
    /// What is told if it is not.
    pub message: String,
}

/// An issuer.
pub struct Issuer {
    /// URL, as tokens name it.
    pub url: String,
    /// Where its discovery document is, if not below the URL.
    pub discovery_url: Option<String>,
    /// Authorities that sign for it, PEM.
    pub ca: String,
    /// Audiences, one of which a token must be for.
    pub audiences: Vec<String>,
    /// Algorithms that may sign.
    pub algorithms: Vec<Algorithm>,
    /// Claims and the values that they must have.
    pub required: Vec<(String, String)>,
    /// Expressions over `claims`.
    pub claim_rules: Vec<Rule>,
    /// The user's name.
    pub username: Mapping,
    /// Groups.
    pub groups: Mapping,
    /// uid.
    pub uid: Mapping,
    /// Further attributes.
    pub extra: Vec<(String, Program)>,
    /// Expressions over `user`.
    pub user_rules: Vec<Rule>,
}

/// Who may ask without proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anonymous {
    /// Whether anybody may.
    pub enabled: bool,
    /// Paths on which they may; none: all.
    pub paths: Vec<String>,
}

impl Default for Anonymous {
    fn default() -> Self {
        Self { enabled: true, paths: Vec::new() }
    }
}

fn authorities(file: Option<&Path>) -> Result<String, String> {
    let path = file.unwrap_or(Path::new(HOST_AUTHORITIES));
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

impl Settings {
    /// The issuer of the flags.
    pub fn load(&self) -> Result<Option<Issuer>, String> {
        if self.issuer_url.is_empty() {
            return Ok(None);
        }
        if self.client_id.is_empty() {
            return Err(
                "oidc-issuer-url and oidc-client-id must be specified together when any oidc-* flags are set".into()
            );
        }
        https(&self.issuer_url).map_err(|why| format!("--oidc-issuer-url: {why}"))?;
        let claim = if self.username_claim.is_empty() { "sub" } else { &self.username_claim };
        let prefix = match (self.username_prefix.as_str(), claim) {
            ("-", _) | ("", "email") => String::new(),
            // A name alone may be another's in the cluster.
            ("", _) => format!("{}#", self.issuer_url),
            (prefix, _) => prefix.to_owned(),
        };
        let mut algorithms = Vec::new();
        for name in &self.signing_algs {
            let found = ALGORITHMS.iter().find(|(known, _)| known == name).map(|(_, algorithm)| *algorithm);
            algorithms.push(found.ok_or_else(|| format!("--oidc-signing-algs: {name:?} is not supported"))?);
        }
        if algorithms.is_empty() {
            algorithms.push(Algorithm::RS256);
        }
        let required = self.required_claims.iter().map(|pair| {
            let parts = pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
            parts.ok_or_else(|| format!("--oidc-required-claim: {pair:?} is not key=value"))
        });
        let groups = match self.groups_claim.as_str() {
            "" => Mapping::None,
            claim => Mapping::Claim { claim: claim.into(), prefix: self.groups_prefix.clone() },
        };
        Ok(Some(Issuer {
            url: self.issuer_url.clone(),
            discovery_url: None,
            ca: authorities(self.ca_file.as_deref()).map_err(|why| format!("--oidc-ca-file: {why}"))?,
            audiences: vec![self.client_id.clone()],
            algorithms,
            required: required.collect::<Result<_, _>>()?,
            claim_rules: Vec::new(),
            username: Mapping::Claim { claim: claim.into(), prefix },
            groups,
            uid: Mapping::None,
            extra: Vec::new(),
            user_rules: Vec::new(),
        }))
    }
}

fn https(url: &str) -> Result<(), String> {
    let good = url.starts_with("https://") && url.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some());
    if good { Ok(()) } else { Err(format!("Invalid value: {url:?}: URL scheme must be https")) }
}

fn list(of: &Value) -> impl Iterator<Item = (usize, &Value)> {
    of.as_array().into_iter().flatten().enumerate()
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

fn compile(source: &str, variable: &str, at: &str) -> Result<Program, String> {
    let env = Env::of([(variable, Type::Dyn)]);
    Program::compile(source, &env).map_err(|e| format!("{at}: Invalid value: {source:?}: compilation failed: {e}"))
}

/// Reads an AuthenticationConfiguration.
pub fn configured(path: &Path) -> Result<(Vec<Issuer>, Option<Anonymous>), String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    parse(&decode::yaml(&bytes)?.value)
}

fn parse(config: &Value) -> Result<(Vec<Issuer>, Option<Anonymous>), String> {
    let known = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];
    if config["kind"] != "AuthenticationConfiguration" || !known.iter().any(|v| config["apiVersion"] == *v) {
        return Err("must be an AuthenticationConfiguration of apiserver.config.k8s.io/v1".into());
    }
    strict::known(config, &jwt_check::FIELDS)?;
    let causes = jwt_check::problems(config, &[keelson_pki::service_account::ISSUER]);
    if !causes.is_empty() {
        let told: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        return Err(told.join(", "));
    }
    let issuers = list(&config["jwt"]).map(|(index, jwt)| issuer(jwt, &format!("jwt[{index}]")));
    let issuers = issuers.collect::<Result<Vec<Issuer>, String>>()?;
    let anonymous = &config["anonymous"];
    let anonymous = anonymous.is_object().then(|| Anonymous {
        enabled: anonymous["enabled"] == true,
        paths: list(&anonymous["conditions"]).map(|(_, c)| text(c, "path").to_owned()).collect(),
    });
    Ok((issuers, anonymous))
}

fn issuer(jwt: &Value, at: &str) -> Result<Issuer, String> {
    let issuer = &jwt["issuer"];
    let url = text(issuer, "url");
    let audiences = list(&issuer["audiences"]).filter_map(|(_, a)| a.as_str()).map(str::to_owned).collect();
    let ca = match text(issuer, "certificateAuthority") {
        "" => authorities(None)?,
        pem => pem.to_owned(),
    };
    let (mut required, mut claim_rules) = (Vec::new(), Vec::new());
    for (index, rule) in list(&jwt["claimValidationRules"]) {
        match text(rule, "expression") {
            "" => required.push((text(rule, "claim").to_owned(), text(rule, "requiredValue").to_owned())),
            _ => claim_rules.push(self::rule(rule, "claims", &format!("{at}.claimValidationRules[{index}]"))?),
        }
    }
    let mappings = &jwt["claimMappings"];
    let mapped = |key: &str| mapping(&mappings[key], &format!("{at}.claimMappings.{key}"));
    let username = mapped("username")?;
    let extra = list(&mappings["extra"]).map(|(index, entry)| {
        let at = format!("{at}.claimMappings.extra[{index}].valueExpression");
        Ok((text(entry, "key").to_owned(), compile(text(entry, "valueExpression"), "claims", &at)?))
    });
    let user_rules = list(&jwt["userValidationRules"])
        .map(|(index, rule)| self::rule(rule, "user", &format!("{at}.userValidationRules[{index}]")));
    let extra = extra.collect::<Result<Vec<_>, String>>()?;
    if let Mapping::Expression(program) = &username
        && jwt_check::reads(program, "email")
    {
        let rules = claim_rules.iter().map(|rule: &Rule| &rule.program);
        let mut all = extra.iter().map(|(_, program)| program).chain(rules).chain([program]);
        if !all.any(|program| jwt_check::reads(program, "email_verified")) {
            return Err(format!(
                "{at}.claimMappings.username.expression: Invalid value: {}: {UNVERIFIED}",
                mappings["username"]["expression"]
            ));
        }
    }
    Ok(Issuer {
        url: url.to_owned(),
        discovery_url: Some(text(issuer, "discoveryURL")).filter(|u| !u.is_empty()).map(str::to_owned),
        ca,
        audiences,
        algorithms: ALGORITHMS.iter().map(|(_, algorithm)| *algorithm).collect(),
        required,
        claim_rules,
        username,
        groups: mapped("groups")?,
        uid: mapped("uid")?,
        extra,
        user_rules: user_rules.collect::<Result<_, _>>()?,
    })
}

fn rule(rule: &Value, variable: &str, at: &str) -> Result<Rule, String> {
    let source = text(rule, "expression").to_owned();
    let program = compile(&source, variable, &format!("{at}.expression"))?;
    if !matches!(program.kind(), Type::Bool | Type::Dyn) {
        return Err(format!("{at}.expression: Invalid value: {source:?}: must evaluate to bool"));
    }
    Ok(Rule { program, source, message: text(rule, "message").to_owned() })
}

fn mapping(of: &Value, at: &str) -> Result<Mapping, String> {
    match (text(of, "claim"), text(of, "expression")) {
        ("", "") => Ok(Mapping::None),
        (claim, "") => Ok(Mapping::Claim { claim: claim.into(), prefix: text(of, "prefix").to_owned() }),
        (_, source) => Ok(Mapping::Expression(compile(source, "claims", &format!("{at}.expression"))?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn configurations_are_read_and_checked() {
        let ca = keelson_pki::Authority::create("ca").unwrap();
        let of = |issuer: Value, mappings: Value| {
            json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
                "anonymous": {"enabled": true, "conditions": [{"path": "/livez"}]},
                "jwt": [{"issuer": issuer, "claimMappings": mappings}]})
        };
        let good = json!({"url": "https://issuer", "audiences": ["a"], "certificateAuthority": ca.certificate()});
        let (issuers, anonymous) =
            parse(&of(good.clone(), json!({"username": {"expression": "'x:' + claims.sub"}}))).unwrap();
        assert_eq!((issuers.len(), anonymous.unwrap().paths), (1, vec!["/livez".to_owned()]));
        let named = json!({"username": {"claim": "sub", "prefix": ""}});
        let with = |key: &str, value: Value| {
            let mut issuer = good.clone();
            issuer[key] = value;
            issuer
        };
        let extra = |key: &str| json!({"username": {"claim": "sub", "prefix": ""}, "extra": [{"key": key, "valueExpression": "claims.x"}]});
        for (issuer, mappings, why) in [
            (
                with("url", "http://x".into()),
                named.clone(),
                "jwt[0].issuer.url: Invalid value: \"http://x\": URL scheme must be https",
            ),
            (with("url", "https://a@x".into()), named.clone(), "must not contain a username or password"),
            (with("url", "https://x?a=b".into()), named.clone(), "must not contain a query"),
            (
                with("url", keelson_pki::service_account::ISSUER.into()),
                named.clone(),
                "must not overlap with disallowed issuers",
            ),
            (with("discoveryURL", "https://issuer/".into()), named.clone(), "discoveryURL must be different from URL"),
            (
                with("certificateAuthority", "none".into()),
                named.clone(),
                "certificateAuthority: Invalid value: \"<omitted>\"",
            ),
            (
                with("audiences", json!([])),
                named.clone(),
                "audiences: Required value: at least one jwt[0].issuer.audiences is required",
            ),
            (
                with("audiences", json!(["a", "b"])),
                named.clone(),
                "audienceMatchPolicy must be MatchAny for multiple audiences",
            ),
            (with("audiences", json!(["a", "a"])), named.clone(), "audiences[1]: Duplicate value"),
            (with("bogus", json!(1)), named.clone(), "unknown field \"jwt[0].issuer.bogus\""),
            (good.clone(), json!({}), "claimMappings.username: Required value: claim or expression is required"),
            (
                good.clone(),
                json!({"username": {"claim": "sub"}}),
                "username.prefix: Required value: prefix is required",
            ),
            (good.clone(), json!({"username": {"expression": "claims."}}), "compilation failed"),
            (good.clone(), json!({"username": {"expression": "claims.email"}}), "claims.email_verified must be used"),
            (good.clone(), json!({"username": {"expression": "'a'", "claim": "b"}}), "can't both be set"),
            (good.clone(), extra("plain"), "extra[0].key: Invalid value: \"plain\": must be a domain-prefixed path"),
            (good.clone(), extra("A.example/b"), "must be lowercase"),
            (good.clone(), extra("x.k8s.io/b"), "reserved for Kubernetes use"),
        ] {
            let told = parse(&of(issuer, mappings)).err().unwrap();
            assert!(told.contains(why), "{told}");
        }
    }

    #[test]
    fn flags_make_an_issuer() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.crt");
        std::fs::write(&file, keelson_pki::Authority::create("ca").unwrap().certificate().as_bytes()).unwrap();
        let flags = Settings {
            issuer_url: "https://issuer".into(),
            client_id: "me".into(),
            ca_file: Some(file),
            required_claims: vec!["hd=example".into()],
            ..Settings::default()
        };
        let issuer = flags.load().unwrap().unwrap();
        assert_eq!((issuer.username.claim(), issuer.username.prefix()), (Some("sub"), "https://issuer#"));
        assert!(Settings::default().load().unwrap().is_none());
        assert!(Settings { client_id: String::new(), ..flags.clone() }.load().is_err());
        assert!(Settings { signing_algs: vec!["HS256".into()], ..flags }.load().is_err());
    }
}
