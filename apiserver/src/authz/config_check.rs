//! What an AuthorizationConfiguration may say, with upstream's words for what it may not.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use keelson_machinery::status::Cause;
use serde_json::Value;

use crate::settings::duration;
use crate::strict::{ANY, Fields};

/// Longest that a webhook may take.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);
/// Most match conditions of a webhook.
const MAX_CONDITIONS: usize = 64;
/// Authorizers by name, sorted as messages have them.
const TYPES: [&str; 6] = ["ABAC", "AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];

/// All fields of the file.
pub const FIELDS: Fields = Fields(&[
    ("apiVersion", ANY),
    ("kind", ANY),
    (
        "authorizers",
        Fields(&[
            ("type", ANY),
            ("name", ANY),
            (
                "webhook",
                Fields(&[
                    ("authorizedTTL", ANY),
                    ("cacheAuthorizedRequests", ANY),
                    ("unauthorizedTTL", ANY),
                    ("cacheUnauthorizedRequests", ANY),
                    ("timeout", ANY),
                    ("subjectAccessReviewVersion", ANY),
                    ("matchConditionSubjectAccessReviewVersion", ANY),
                    ("failurePolicy", ANY),
                    ("connectionInfo", Fields(&[("type", ANY), ("kubeConfigFile", ANY)])),
                    ("matchConditions", Fields(&[("expression", ANY)])),
                ]),
            ),
        ]),
    ),
]);

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

/// All that is wrong with a configuration, but for its expressions.
pub fn problems(config: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let list = config["authorizers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() {
        causes.push(Cause::required("authorizers", "at least one authorization mode must be defined"));
    }
    let (mut types, mut names) = (HashSet::new(), HashSet::new());
    for (index, authorizer) in list.iter().enumerate() {
        let at = format!("authorizers[{index}]");
        let (kind, name) = (text(authorizer, "type"), text(authorizer, "name"));
        if kind.is_empty() {
            causes.push(Cause::required(format!("{at}.type"), ""));
            continue;
        }
        if !TYPES.contains(&kind) {
            causes.push(Cause::not_supported(format!("{at}.type"), &authorizer["type"], &TYPES));
            continue;
        }
        if !types.insert(kind) && kind != "Webhook" {
            causes.push(Cause::duplicate(format!("{at}.type"), &authorizer["type"]));
            continue;
        }
        if name.is_empty() {
            causes.push(Cause::required(format!("{at}.name"), ""));
        } else if !names.insert(name) {
            causes.push(Cause::duplicate(format!("{at}.name"), &authorizer["name"]));
        } else if let Some(why) = keelson_machinery::names::dns_subdomain(name) {
            let why = format!("authorizer name is invalid: {why}");
            causes.push(Cause::invalid(format!("{at}.name"), &authorizer["name"], &why));
        }
        match (kind, &authorizer["webhook"]) {
            ("Webhook", Value::Null) => {
                causes.push(Cause::required(format!("{at}.webhook"), "required when type=Webhook"));
            }
            ("Webhook", of) => webhook(of, &at, &mut causes),
            (_, Value::Null) => {}
            _ => {
                let why = "may only be specified when type=Webhook";
                causes.push(Cause::invalid(format!("{at}.webhook"), &Value::from("non-null"), why));
            }
        }
    }
    causes
}

/// Upstream leaves the webhook's own name out of the paths.
fn webhook(of: &Value, at: &str, causes: &mut Vec<Cause>) {
    match (text(of, "timeout"), duration(text(of, "timeout"))) {
        ("", _) => causes.push(Cause::required(format!("{at}.timeout"), "")),
        (_, Some(given)) if !given.is_zero() && given <= MAX_TIMEOUT => {}
        (given, parsed) => {
            let shown = parsed.map_or_else(|| given.to_owned(), shown);
            causes.push(Cause::invalid(format!("{at}.timeout"), &Value::from(shown), "must be > 0s and <= 30s"));
        }
    }
    for key in ["authorizedTTL", "unauthorizedTTL"] {
        let given = text(of, key);
        if !given.is_empty() && duration(given).is_none_or(|d| d.is_zero()) {
            causes.push(Cause::invalid(format!("{at}.{key}"), &of[key], "must be > 0s"));
        }
    }
    choice(of, at, "subjectAccessReviewVersion", &["v1", "v1beta1"], Some(""), causes);
    let conditions = of["matchConditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let needed = (!conditions.is_empty()).then_some("required if match conditions are specified");
    choice(of, at, "matchConditionSubjectAccessReviewVersion", &["v1"], needed, causes);
    choice(of, at, "failurePolicy", &["NoOpinion", "Deny"], Some(""), causes);
    connection(&of["connectionInfo"], &format!("{at}.connectionInfo"), causes);
    if conditions.len() > MAX_CONDITIONS {
        causes.push(Cause::too_many(format!("{at}.matchConditions"), conditions.len(), MAX_CONDITIONS));
        return;
    }
    let mut seen = HashSet::new();
    for (index, condition) in conditions.iter().enumerate() {
        let at = format!("{at}.matchConditions[{index}].expression");
        match text(condition, "expression") {
            source if source.trim().is_empty() => causes.push(Cause::required(at, "")),
            source if !seen.insert(source) => causes.push(Cause::duplicate(at, &condition["expression"])),
            _ => {}
        }
    }
}

/// A duration as Go writes it.
fn shown(of: Duration) -> String {
    let (minutes, seconds) = (of.as_secs() / 60, of.as_secs() % 60);
    match minutes {
        0 => format!("{}s", of.as_secs_f64()),
        1..60 => format!("{minutes}m{seconds}s"),
        _ => format!("{}h{}m{seconds}s", minutes / 60, minutes % 60),
    }
}

/// One of a few words; `missing` is what is told if it must be there and is not.
fn choice(of: &Value, at: &str, key: &str, known: &[&str], missing: Option<&str>, causes: &mut Vec<Cause>) {
    match (text(of, key), missing) {
        ("", Some(why)) => causes.push(Cause::required(format!("{at}.{key}"), why)),
        ("", None) => {}
        (given, _) if known.contains(&given) => {}
        _ => causes.push(Cause::not_supported(format!("{at}.{key}"), &of[key], known)),
    }
}

fn connection(of: &Value, at: &str, causes: &mut Vec<Cause>) {
    let file = text(of, "kubeConfigFile");
    let at_file = format!("{at}.kubeConfigFile");
    match text(of, "type") {
        "" => causes.push(Cause::required(format!("{at}.type"), "")),
        "InClusterConfig" if !file.is_empty() => {
            let why = "can only be set when type=KubeConfigFile";
            causes.push(Cause::invalid(at_file, &of["kubeConfigFile"], why));
        }
        "InClusterConfig" => {}
        "KubeConfigFile" if file.is_empty() => causes.push(Cause::required(at_file, "")),
        "KubeConfigFile" if !Path::new(file).is_absolute() => {
            causes.push(Cause::invalid(at_file, &of["kubeConfigFile"], "must be an absolute path"));
        }
        "KubeConfigFile" => match std::fs::metadata(file) {
            Ok(about) if about.is_file() => {}
            Ok(_) => causes.push(Cause::invalid(at_file, &of["kubeConfigFile"], "must be a regular file")),
            Err(error) => {
                let why = format!("error loading file: {error}");
                causes.push(Cause::invalid(at_file, &of["kubeConfigFile"], &why));
            }
        },
        _ => {
            causes.push(Cause::not_supported(format!("{at}.type"), &of["type"], &["InClusterConfig", "KubeConfigFile"]))
        }
    }
}
