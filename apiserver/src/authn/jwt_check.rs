//! What an AuthenticationConfiguration may say, with upstream's words for what it may not.

use std::collections::HashSet;

use keelson_machinery::cel::{Expr, Kind, Program};
use keelson_machinery::status::Cause;
use serde_json::Value;

use crate::strict::{ANY, Fields};

/// Most issuers.
const MAX_ISSUERS: usize = 64;

const CLAIM_OR_EXPRESSION: Fields = Fields(&[("claim", ANY), ("prefix", ANY), ("expression", ANY)]);
const ISSUER: Fields = Fields(&[
    ("url", ANY),
    ("discoveryURL", ANY),
    ("certificateAuthority", ANY),
    ("audiences", ANY),
    ("audienceMatchPolicy", ANY),
    ("egressSelectorType", ANY),
]);
const JWT: Fields = Fields(&[
    ("issuer", ISSUER),
    ("claimValidationRules", Fields(&[("claim", ANY), ("requiredValue", ANY), ("expression", ANY), ("message", ANY)])),
    (
        "claimMappings",
        Fields(&[
            ("username", CLAIM_OR_EXPRESSION),
            ("groups", CLAIM_OR_EXPRESSION),
            ("uid", Fields(&[("claim", ANY), ("expression", ANY)])),
            ("extra", Fields(&[("key", ANY), ("valueExpression", ANY)])),
        ]),
    ),
    ("userValidationRules", Fields(&[("expression", ANY), ("message", ANY)])),
]);
/// All fields of the file.
pub const FIELDS: Fields = Fields(&[
    ("apiVersion", ANY),
    ("kind", ANY),
    ("jwt", JWT),
    ("anonymous", Fields(&[("enabled", ANY), ("conditions", Fields(&[("path", ANY)]))])),
]);

fn list(of: &Value) -> impl Iterator<Item = (usize, &Value)> {
    of.as_array().into_iter().flatten().enumerate()
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

/// All that is wrong with a configuration, but for its expressions. `own` are the issuers of service accounts' tokens.
pub fn problems(config: &Value, own: &[&str]) -> Vec<Cause> {
    let mut causes = Vec::new();
    let issuers = config["jwt"].as_array().map_or(0, Vec::len);
    if issuers > MAX_ISSUERS {
        causes.push(Cause::too_many("jwt", issuers, MAX_ISSUERS));
        return causes;
    }
    let (mut urls, mut places) = (HashSet::new(), HashSet::new());
    for (index, jwt) in list(&config["jwt"]) {
        let (at, of) = (format!("jwt[{index}]"), &jwt["issuer"]);
        issuer(of, &format!("{at}.issuer"), own, &mut causes);
        claim_rules(&jwt["claimValidationRules"], &format!("{at}.claimValidationRules"), &mut causes);
        mappings(&jwt["claimMappings"], &format!("{at}.claimMappings"), &mut causes);
        user_rules(&jwt["userValidationRules"], &format!("{at}.userValidationRules"), &mut causes);
        if !urls.insert(text(of, "url")) {
            causes.push(Cause::duplicate(format!("{at}.issuer.url"), &of["url"]));
        }
        if !text(of, "discoveryURL").is_empty() && !places.insert(text(of, "discoveryURL")) {
            causes.push(Cause::duplicate(format!("{at}.issuer.discoveryURL"), &of["discoveryURL"]));
        }
    }
    let anonymous = &config["anonymous"];
    let conditions = anonymous["conditions"].as_array().is_some_and(|list| !list.is_empty());
    if anonymous.is_object() && anonymous["enabled"] != true && conditions {
        let why = "enabled should be set to true when conditions are defined";
        causes.push(Cause::invalid("anonymous.conditions", &anonymous["conditions"], why));
    }
    causes
}

fn issuer(of: &Value, at: &str, own: &[&str], causes: &mut Vec<Cause>) {
    let (url, place) = (text(of, "url"), text(of, "discoveryURL"));
    if url.is_empty() {
        causes.push(Cause::required(format!("{at}.url"), ""));
    } else {
        if own.contains(&url) {
            let why = format!("URL must not overlap with disallowed issuers: [{}]", own.join(" "));
            causes.push(Cause::invalid(format!("{at}.url"), &of["url"], &why));
        }
        self::url(url, &format!("{at}.url"), causes);
    }
    if !place.is_empty() {
        if url.trim_end_matches('/') == place.trim_end_matches('/') {
            let why = "discoveryURL must be different from URL";
            causes.push(Cause::invalid(format!("{at}.discoveryURL"), &of["discoveryURL"], why));
        }
        self::url(place, &format!("{at}.discoveryURL"), causes);
    }
    audiences(of, at, causes);
    let authority = text(of, "certificateAuthority");
    if !authority.is_empty() && keelson_pki::client_config(authority, keelson_pki::Identity::None).is_err() {
        let why = "data does not contain any valid RSA or ECDSA certificates";
        causes.push(Cause::invalid(format!("{at}.certificateAuthority"), &Value::from("<omitted>"), why));
    }
    if !text(of, "egressSelectorType").is_empty() {
        let why = "egress selectors are not there: the issuer is asked directly";
        causes.push(Cause::invalid(format!("{at}.egressSelectorType"), &of["egressSelectorType"], why));
    }
}

fn url(given: &str, at: &str, causes: &mut Vec<Cause>) {
    let mut wrong = |why: &str| causes.push(Cause::invalid(at, &Value::from(given), why));
    let (rest, fragment) = given.split_once('#').unwrap_or((given, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let Some(place) = rest.strip_prefix("https://") else { return wrong("URL scheme must be https") };
    if place.split('/').next().is_some_and(|host| host.contains('@')) {
        wrong("URL must not contain a username or password");
    }
    if !query.is_empty() {
        wrong("URL must not contain a query");
    }
    if !fragment.is_empty() {
        wrong("URL must not contain a fragment");
    }
}

fn audiences(of: &Value, at: &str, causes: &mut Vec<Cause>) {
    let (field, policy_at) = (format!("{at}.audiences"), format!("{at}.audienceMatchPolicy"));
    let count = of["audiences"].as_array().map_or(0, Vec::len);
    if count == 0 {
        causes.push(Cause::required(field.clone(), &format!("at least one {field} is required")));
        return;
    }
    let mut seen = HashSet::new();
    for (index, audience) in list(&of["audiences"]) {
        let field = format!("{field}[{index}]");
        if audience.as_str().is_none_or(str::is_empty) {
            causes.push(Cause::required(field.clone(), ""));
        }
        if !seen.insert(audience.to_string()) {
            causes.push(Cause::duplicate(field, audience));
        }
    }
    let policy = text(of, "audienceMatchPolicy");
    let policy_value = Value::from(policy);
    if count > 1 && policy != "MatchAny" {
        let why = "audienceMatchPolicy must be MatchAny for multiple audiences";
        causes.push(Cause::invalid(policy_at, &policy_value, why));
    } else if !matches!(policy, "" | "MatchAny") {
        let why = "audienceMatchPolicy must be empty or MatchAny for single audience";
        causes.push(Cause::invalid(policy_at, &policy_value, why));
    }
}

fn claim_rules(rules: &Value, at: &str, causes: &mut Vec<Cause>) {
    let (mut claims, mut expressions) = (HashSet::new(), HashSet::new());
    for (index, rule) in list(rules) {
        let at = format!("{at}[{index}]");
        match (text(rule, "claim"), text(rule, "expression")) {
            ("", "") => causes.push(Cause::required(at, "claim or expression is required")),
            (claim, "") => {
                if !text(rule, "message").is_empty() {
                    let why = "may not be specified when claim is set";
                    causes.push(Cause::invalid(format!("{at}.message"), &rule["message"], why));
                }
                if !claims.insert(claim) {
                    causes.push(Cause::duplicate(format!("{at}.claim"), &rule["claim"]));
                }
            }
            ("", expression) => {
                if !text(rule, "requiredValue").is_empty() {
                    let why = "may not be specified when expression is set";
                    causes.push(Cause::invalid(format!("{at}.requiredValue"), &rule["requiredValue"], why));
                }
                if !expressions.insert(expression) {
                    causes.push(Cause::duplicate(format!("{at}.expression"), &rule["expression"]));
                }
            }
            _ => causes.push(Cause::invalid(at, &rule["claim"], "claim and expression can't both be set")),
        }
    }
}

fn mappings(of: &Value, at: &str, causes: &mut Vec<Cause>) {
    for (key, required) in [("username", true), ("groups", false), ("uid", false)] {
        let (mapping, at) = (&of[key], format!("{at}.{key}"));
        match (text(mapping, "claim"), text(mapping, "expression")) {
            ("", "") if required => causes.push(Cause::required(at, "claim or expression is required")),
            ("", "") => {}
            (_, "") if key != "uid" && mapping["prefix"].is_null() => {
                let why = "prefix is required when claim is set. It can be set to an empty string to disable prefixing";
                causes.push(Cause::required(format!("{at}.prefix"), why));
            }
            (_, "") => {}
            ("", _) if !mapping["prefix"].is_null() => {
                let why = "may not be specified when expression is set";
                causes.push(Cause::invalid(format!("{at}.prefix"), &mapping["prefix"], why));
            }
            ("", _) => {}
            _ => causes.push(Cause::invalid(at, &Value::from(""), "claim and expression can't both be set")),
        }
    }
    let mut seen = HashSet::new();
    for (index, extra) in list(&of["extra"]) {
        let (at, key) = (format!("{at}.extra[{index}]"), text(extra, "key"));
        extra_key(key, &format!("{at}.key"), causes);
        if !seen.insert(key) {
            causes.push(Cause::duplicate(format!("{at}.key"), &extra["key"]));
        } else if text(extra, "valueExpression").is_empty() {
            causes.push(Cause::required(format!("{at}.valueExpression"), ""));
        }
    }
}

fn extra_key(key: &str, at: &str, causes: &mut Vec<Cause>) {
    let value = Value::from(key);
    if key.is_empty() {
        causes.push(Cause::required(at, ""));
    } else {
        let problems = keelson_machinery::names::domain_path_problems(key);
        causes.extend(problems.into_iter().map(|(part, why)| Cause::invalid(at, &Value::from(part), &why)));
    }
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    if key != key.to_lowercase() {
        causes.push(Cause::invalid(at, &value, "must be lowercase"));
    }
    let reserved = |of: &str| domain == of || domain.ends_with(&format!(".{of}"));
    if reserved("kubernetes.io") || reserved("k8s.io") {
        let why = "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use";
        causes.push(Cause::invalid(at, &value, why));
    }
}

fn user_rules(rules: &Value, at: &str, causes: &mut Vec<Cause>) {
    let mut seen = HashSet::new();
    for (index, rule) in list(rules) {
        let at = format!("{at}[{index}].expression");
        match text(rule, "expression") {
            "" => causes.push(Cause::required(at, "")),
            source if !seen.insert(source) => causes.push(Cause::duplicate(at, &rule["expression"])),
            _ => {}
        }
    }
}

/// Whether an expression reads a claim.
pub fn reads(program: &Program, claim: &str) -> bool {
    fn walk(expr: &Expr, claim: &str) -> bool {
        let own = |operand: &Expr| matches!(&operand.kind, Kind::Ident(name) if name == "claims");
        match &expr.kind {
            Kind::Select { operand, field, .. } | Kind::Has { operand, field } => {
                (own(operand) && field == claim) || walk(operand, claim)
            }
            Kind::Call { target, arguments, .. } => {
                target.as_deref().is_some_and(|target| walk(target, claim)) || arguments.iter().any(|a| walk(a, claim))
            }
            Kind::List(items) => items.iter().any(|(item, _)| walk(item, claim)),
            Kind::Map(entries) => entries.iter().any(|(key, value, _)| walk(key, claim) || walk(value, claim)),
            Kind::Struct { fields, .. } => fields.iter().any(|(_, value, _)| walk(value, claim)),
            Kind::Macro { range, arguments, .. } => walk(range, claim) || arguments.iter().any(|a| walk(a, claim)),
            _ => false,
        }
    }
    walk(program.expr(), claim)
}
