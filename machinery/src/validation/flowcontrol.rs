//! Flow schemas and priority levels.

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::{has, items, text};
use crate::shown;

/// Highest precedence of a flow schema.
const MAX_PRECEDENCE: i64 = 10_000;
/// Most queues of a level.
const MAX_QUEUES: i64 = 10_000_000;

/// An object of the group.
pub fn validate(plural: &str, subresource: &str, new: &Value, p: &mut Problems) {
    if subresource == "status" {
        return conditions(&new["status"]["conditions"], p);
    }
    match plural {
        "flowschemas" => schema(new, p),
        "prioritylevelconfigurations" => level(new, p),
        _ => {}
    }
    unchanged(plural, new, p);
}

/// Conditions of a status: each kind once.
fn conditions(list: &Value, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, condition) in items(list).enumerate() {
        let field = format!("status.conditions[{index}].type");
        let kind = text(condition, "type");
        if seen.contains(&kind) {
            p.duplicate(&field, &or_empty(&condition["type"]));
        }
        seen.push(kind);
        if kind.is_empty() {
            p.required(field, "must not be empty");
        }
    }
}

/// The spec of an object that every cluster has and that nobody may change.
pub fn mandatory(plural: &str, name: &str) -> Option<Value> {
    let everything = |subjects: Value| {
        json!([{
            "subjects": subjects,
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }])
    };
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    Some(match (plural, name) {
        ("prioritylevelconfigurations", "exempt") => {
            json!({"type": "Exempt", "exempt": {"lendablePercent": 0, "nominalConcurrencyShares": 0}})
        }
        ("prioritylevelconfigurations", "catch-all") => json!({"type": "Limited", "limited": {
            "nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"}}}),
        ("flowschemas", "exempt") => json!({
            "priorityLevelConfiguration": {"name": "exempt"}, "matchingPrecedence": 1,
            "rules": everything(json!([group("system:masters")])),
        }),
        ("flowschemas", "catch-all") => json!({
            "priorityLevelConfiguration": {"name": "catch-all"}, "matchingPrecedence": MAX_PRECEDENCE,
            "distinguisherMethod": {"type": "ByUser"},
            "rules": everything(json!([group("system:unauthenticated"), group("system:authenticated")])),
        }),
        _ => return None,
    })
}

/// Objects that every cluster has stay as they are; only what the exempt level lends may be changed.
fn unchanged(plural: &str, new: &Value, p: &mut Problems) {
    let name = text(&new["metadata"], "name");
    let Some(mut fixed) = mandatory(plural, name) else { return };
    let (mut spec, lends) = (new["spec"].clone(), (plural, name) == ("prioritylevelconfigurations", "exempt"));
    for spec in [&mut fixed, &mut spec].into_iter().filter(|_| lends) {
        spec.as_object_mut().map(|spec| spec.remove("exempt"));
    }
    if spec != fixed {
        let except = if lends { " except the 'spec.exempt' field" } else { "" };
        let kind = if plural == "flowschemas" { "FlowSchemaSpec" } else { "PriorityLevelConfigurationSpec" };
        let why = format!("spec of '{name}'{except} must equal the fixed value");
        p.invalid_shown("spec", &shown::compact(kind, &new["spec"]), &why);
    }
}

/// Most bits of a flow's hash.
const MAX_HASH_BITS: u32 = 60;

/// How many bits it takes to deal a hand from a deck.
fn entropy_bits(deck: i64, hand: i64) -> u32 {
    let bits: f64 = (0..hand).map(|dealt| ((deck - dealt) as f64).log2()).sum();
    bits.ceil() as u32
}

fn schema(new: &Value, p: &mut Problems) {
    let (spec, name) = (&new["spec"], text(&new["metadata"], "name"));
    let precedence = spec["matchingPrecedence"].as_i64().unwrap_or(0);
    let shown = json!(precedence);
    if precedence <= 0 {
        p.invalid("spec.matchingPrecedence", &shown, "must be a positive value");
    }
    if precedence > MAX_PRECEDENCE {
        p.invalid("spec.matchingPrecedence", &shown, &format!("must not be greater than {MAX_PRECEDENCE}"));
    }
    if precedence == 1 && name != "exempt" {
        let why = "only the schema named 'exempt' may have matchingPrecedence 1";
        p.invalid("spec.matchingPrecedence", &shown, why);
    }
    let method = &spec["distinguisherMethod"];
    if method.is_object() && !matches!(text(method, "type"), "ByNamespace" | "ByUser") {
        let shown = shown::compact("FlowDistinguisherMethod", method);
        p.not_supported_shown("spec.distinguisherMethod.type", &shown, &["ByNamespace", "ByUser"]);
    }
    let level = text(&spec["priorityLevelConfiguration"], "name");
    if level.is_empty() {
        p.required("spec.priorityLevelConfiguration.name", "must reference a priority level");
    } else {
        let problem = crate::names::dns_subdomain(level);
        p.named("spec.priorityLevelConfiguration.name", &spec["priorityLevelConfiguration"]["name"], problem);
    }
    for (index, rule) in items(&spec["rules"]).enumerate() {
        self::rule(rule, &format!("spec.rules[{index}]"), p);
    }
}

fn rule(rule: &Value, at: &str, p: &mut Problems) {
    if items(&rule["subjects"]).next().is_none() {
        p.required(format!("{at}.subjects"), "subjects must contain at least one value");
    }
    for (index, subject) in items(&rule["subjects"]).enumerate() {
        self::subject(subject, &format!("{at}.subjects[{index}]"), p);
    }
    if items(&rule["resourceRules"]).next().is_none() && items(&rule["nonResourceRules"]).next().is_none() {
        p.required(at, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for (index, resource) in items(&rule["resourceRules"]).enumerate() {
        resource_rule(resource, &format!("{at}.resourceRules[{index}]"), p);
    }
    for (index, path) in items(&rule["nonResourceRules"]).enumerate() {
        let at = format!("{at}.nonResourceRules[{index}]");
        verbs(path, &at, p);
        let urls: Vec<&Value> = items(&path["nonResourceURLs"]).collect();
        if urls.is_empty() {
            p.required(format!("{at}.nonResourceURLs"), "nonResourceURLs must contain at least one value");
        } else if urls.iter().any(|u| **u == "*") {
            if urls.len() > 1 {
                let why = "if '*' is present, must not specify other non-resource URLs";
                p.invalid(format!("{at}.nonResourceURLs"), &path["nonResourceURLs"], why);
            }
        } else {
            for (i, url) in urls.iter().enumerate() {
                if let Some(why) = path_problem(url.as_str().unwrap_or_default()) {
                    p.invalid(format!("{at}.nonResourceURLs[{i}]"), url, why);
                }
            }
        }
    }
}

/// What is wrong with a path; a star stands for what follows a slash.
fn path_problem(path: &str) -> Option<&'static str> {
    let stars = path.matches('*').count();
    match path {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !path.starts_with('/') => Some("must start with slash"),
        _ if path.contains(' ') => Some("must not contain white-space"),
        _ if path.contains("//") => Some("must not contain double slash"),
        _ if stars > 1 || stars == 1 && !path.ends_with("/*") => Some("wildcard can only do suffix matching"),
        _ => None,
    }
}

fn verbs(rule: &Value, at: &str, p: &mut Problems) {
    const KNOWN: &[&str] =
        &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
    let list: Vec<&Value> = items(&rule["verbs"]).collect();
    if list.is_empty() {
        p.required(format!("{at}.verbs"), "verbs must contain at least one value");
    } else if list.iter().any(|v| **v == "*") {
        if list.len() > 1 {
            let why = "if '*' is present, must not specify other verbs";
            p.invalid(format!("{at}.verbs"), &rule["verbs"], why);
        }
    } else if list.iter().any(|v| !KNOWN.contains(&v.as_str().unwrap_or_default())) {
        p.not_supported(format!("{at}.verbs"), &rule["verbs"], KNOWN);
    }
}

fn resource_rule(rule: &Value, at: &str, p: &mut Problems) {
    verbs(rule, at, p);
    for (field, missing, what) in [
        ("apiGroups", "resource rules must supply at least one api group", "api groups"),
        ("resources", "resource rules must supply at least one resource", "resources"),
    ] {
        let list: Vec<&Value> = items(&rule[field]).collect();
        if list.is_empty() {
            p.required(format!("{at}.{field}"), missing);
        } else if list.len() > 1 && list.iter().any(|v| **v == "*") {
            let why = format!("if '*' is present, must not specify other {what}");
            p.invalid(format!("{at}.{field}"), &rule[field], &why);
        }
    }
    let namespaces: Vec<&Value> = items(&rule["namespaces"]).collect();
    if namespaces.is_empty() && rule["clusterScope"] != true {
        let why = "resource rules that are not cluster scoped must supply at least one namespace";
        p.required(format!("{at}.namespaces"), why);
    } else if namespaces.iter().any(|n| **n == "*") {
        if namespaces.len() > 1 {
            let why = "if '*' is present, must not specify other namespaces";
            p.invalid(format!("{at}.namespaces"), &rule["namespaces"], why);
        }
    } else {
        for (i, namespace) in namespaces.iter().enumerate() {
            for problem in crate::names::label_problems(namespace.as_str().unwrap_or_default()) {
                let why = format!("each member of this list must be '*' or a DNS-1123 label; {problem}");
                p.invalid(format!("{at}.namespaces[{i}]"), namespace, &why);
            }
        }
    }
}

fn subject(subject: &Value, at: &str, p: &mut Problems) {
    let kinds = [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];
    let kind = text(subject, "kind");
    let Some((_, own)) = kinds.iter().find(|(k, _)| *k == kind) else {
        return p.not_supported(
            format!("{at}.kind"),
            &or_empty(&subject["kind"]),
            &["Group", "ServiceAccount", "User"],
        );
    };
    for (other, field) in kinds.iter().filter(|(_, field)| field != own && has(subject, field)) {
        let _ = other;
        let what = if *field == "serviceAccount" { "service account" } else { field };
        p.forbidden(
            format!("{at}.{field}"),
            &format!(
                "{field} is forbidden when subject kind is not '{}'",
                kinds.iter().find(|(_, f)| f == field).map_or(what, |(k, _)| k)
            ),
        );
    }
    let inner = &subject[*own];
    if !inner.is_object() {
        return p.required(format!("{at}.{own}"), &format!("{own} is required when subject kind is '{kind}'"));
    }
    let at = format!("{at}.{own}");
    if *own == "serviceAccount" {
        match text(inner, "name") {
            "" => p.required(format!("{at}.name"), ""),
            "*" => {}
            name => p.named(format!("{at}.name"), &inner["name"], crate::names::dns_subdomain(name)),
        }
        if text(inner, "namespace").is_empty() {
            p.required(format!("{at}.namespace"), "must specify namespace for service account");
        } else {
            p.label(format!("{at}.namespace"), &inner["namespace"]);
        }
    } else if text(inner, "name").is_empty() {
        p.required(format!("{at}.name"), "");
    }
}

fn level(new: &Value, p: &mut Problems) {
    let (spec, name) = (&new["spec"], text(&new["metadata"], "name"));
    let kind = text(spec, "type");
    if (name == "exempt") != (kind == "Exempt") {
        let why = "must be 'Exempt' if and only if `name` is 'exempt'";
        p.invalid("spec.type", &spec["type"], why);
    }
    match kind {
        "Exempt" => {
            if has(spec, "limited") {
                p.forbidden("spec.limited", "must be nil if the type is not Limited");
            }
            shares(&spec["exempt"], "spec.exempt", p);
        }
        "Limited" => {
            if has(spec, "exempt") {
                p.forbidden("spec.exempt", "must be nil if the type is Limited");
            }
            if has(spec, "limited") {
                limited(&spec["limited"], p);
            } else {
                p.required("spec.limited", "must not be empty when type is Limited");
            }
        }
        _ => p.not_supported("spec.type", &or_empty(&spec["type"]), &["Exempt", "Limited"]),
    }
}

fn shares(part: &Value, at: &str, p: &mut Problems) {
    let own = &part["nominalConcurrencyShares"];
    if own.as_i64().is_some_and(|n| n < 0) {
        p.invalid(format!("{at}.nominalConcurrencyShares"), own, "must be a non-negative integer");
    }
    let lent = &part["lendablePercent"];
    if lent.as_i64().is_some_and(|n| !(0..=100).contains(&n)) {
        p.invalid(format!("{at}.lendablePercent"), lent, "must be between 0 and 100, inclusive");
    }
}

fn limited(limited: &Value, p: &mut Problems) {
    let at = "spec.limited";
    shares(limited, at, p);
    let borrowed = &limited["borrowingLimitPercent"];
    if borrowed.as_i64().is_some_and(|n| n < 0) {
        p.invalid(format!("{at}.borrowingLimitPercent"), borrowed, "if specified, must be a non-negative integer");
    }
    let (response, at) = (&limited["limitResponse"], format!("{at}.limitResponse"));
    let queuing = &response["queuing"];
    match text(response, "type") {
        "Reject" if !queuing.is_null() => {
            let why = "must be nil if limited.limitResponse.type is not Limited";
            p.forbidden(format!("{at}.queuing"), why);
        }
        "Reject" => {}
        "Queue" if queuing.is_null() => {
            p.required(format!("{at}.queuing"), "must not be empty if limited.limitResponse.type is Limited");
        }
        "Queue" => queues(queuing, &format!("{at}.queuing"), p),
        _ => p.not_supported(format!("{at}.type"), &or_empty(&response["type"]), &["Queue", "Reject"]),
    }
}

fn queues(queuing: &Value, at: &str, p: &mut Problems) {
    let number = |key: &str| queuing[key].as_i64().unwrap_or(0);
    for key in ["queueLengthLimit", "queues", "handSize"] {
        if number(key) <= 0 {
            p.invalid(format!("{at}.{key}"), &json!(number(key)), "must be positive");
        }
    }
    if number("queues") > MAX_QUEUES {
        let why = format!("must not be greater than {MAX_QUEUES}");
        p.invalid(format!("{at}.queues"), &queuing["queues"], &why);
    }
    let (deck, hand) = (number("queues"), number("handSize"));
    if hand > deck {
        let why = format!("should not be greater than queues ({deck})");
        p.invalid(format!("{at}.handSize"), &queuing["handSize"], &why);
    } else if hand > 0 && entropy_bits(deck, hand) > MAX_HASH_BITS {
        let why = format!(
            "required entropy bits of deckSize {deck} and handSize {hand} should not be greater than {MAX_HASH_BITS}"
        );
        p.invalid(format!("{at}.handSize"), &queuing["handSize"], &why);
    }
}
