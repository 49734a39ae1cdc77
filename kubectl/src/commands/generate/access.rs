//! `create role`, `create rolebinding` and what they are in the whole cluster.

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, text};
use crate::kinds;
use crate::output;
use crate::session::Session;

use super::super::create::{SAVE, WRITE, generate};
use super::super::run::pairs;
use super::{all_set, name, object, required};

/// Flags of `create role`.
pub const ROLE: &[&[Flag]] = &[output::FLAGS, WRITE, RULE];
/// Flags of `create clusterrole`.
pub const CLUSTER_ROLE: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    RULE,
    &[
        repeated("non-resource-url", "A partial url that user should have access to."),
        text("aggregation-rule", "", "An aggregation label selector for combining ClusterRoles."),
    ],
];
const RULE: &[Flag] = &[
    SAVE,
    repeated("verb", "Verb that applies to the resources contained in the rule"),
    repeated("resource", "Resource that the rule applies to"),
    repeated(
        "resource-name",
        "Resource in the white list that the rule applies to, repeat this flag for multiple items",
    ),
];
/// Flags of `create rolebinding`.
pub const BINDING: &[&[Flag]] =
    &[output::FLAGS, WRITE, SUBJECTS, &[text("role", "", "Role this RoleBinding should reference")]];
/// Flags of `create clusterrolebinding`.
pub const CLUSTER_BINDING: &[&[Flag]] = &[output::FLAGS, WRITE, SUBJECTS];
const SUBJECTS: &[Flag] = &[
    SAVE,
    text("clusterrole", "", "ClusterRole this binding should reference"),
    repeated("user", "Usernames to bind to the role. The flag can be repeated to add multiple users."),
    repeated("group", "Groups to bind to the role. The flag can be repeated to add multiple groups."),
    repeated("serviceaccount", "Service accounts to bind to the role, in the format <namespace>:<name>."),
];
/// Checks verbs: those of paths must be HTTP's, others are warned of.
fn check_verbs(verbs: &[String], urls: &[String]) -> Outcome {
    if !urls.is_empty() {
        const VERBS: [&str; 8] = ["get", "post", "put", "delete", "patch", "head", "options", "*"];
        if let Some(verb) = verbs.iter().find(|v| !VERBS.contains(&v.as_str())) {
            return Err(Failure::new(format!("invalid verb: '{verb}' for nonResourceURL")));
        }
        if urls.iter().any(|url| url != "*" && !url.starts_with('/')) {
            return Err(Failure::new("nonResourceURL should start with /"));
        }
    }
    const STANDARD_VERBS: [&str; 13] = [
        "*",
        "get",
        "list",
        "watch",
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
        "use",
        "bind",
        "escalate",
        "impersonate",
    ];
    if urls.is_empty() {
        for verb in verbs.iter().filter(|v| !STANDARD_VERBS.contains(&v.as_str())) {
            eprintln!("Warning: '{verb}' is not a standard resource verb");
        }
    }
    Ok(())
}

/// Verbs that only some resources have: the verb, then the resources with their groups.
const SPECIAL: [(&str, &[(&str, &str)]); 4] = [
    ("use", &[("policy", "podsecuritypolicies")]),
    ("bind", &[("rbac.authorization.k8s.io", "roles"), ("rbac.authorization.k8s.io", "clusterroles")]),
    ("escalate", &[("rbac.authorization.k8s.io", "roles"), ("rbac.authorization.k8s.io", "clusterroles")]),
    ("impersonate", &[("", "users"), ("", "serviceaccounts"), ("", "groups"), ("authentication.k8s.io", "userextras")]),
];

/// Whether a verb makes a resource known that the API has not; a verb that the resource cannot have is refused.
fn check_special(verbs: &[String], (group, plural): &(String, String)) -> Outcome<bool> {
    let mut known = false;
    for (verb, of) in SPECIAL.iter().filter(|(verb, _)| verbs.iter().any(|v| v == verb)) {
        if !of.iter().any(|(g, p)| g == group && p == plural) {
            return Err(Failure::new(format!("can not perform '{verb}' on '{plural}' in group '{group}'")));
        }
        known = true;
    }
    Ok(known)
}

/// The refusal of a resource that the API does not have.
fn unknown(error: Failure, resource: &str) -> Failure {
    match (error, resource.split_once('.')) {
        (Failure::Error(_), Some((name, group))) => {
            Failure::Plain(format!("the server doesn't have a resource type {name:?} in group {group:?}"))
        }
        (Failure::Error(said), None) => Failure::Plain(said),
        (other, _) => other,
    }
}

async fn rules(session: &Session) -> Outcome<Vec<Value>> {
    let parsed = &session.parsed;
    let (verbs, names, urls) = (parsed.list("verb"), parsed.list("resource-name"), parsed.list("non-resource-url"));
    if verbs.is_empty() {
        return Err(Failure::new("at least one verb must be specified"));
    }
    // All verbs are all verbs, whatever is named beside.
    let verbs = if verbs.iter().any(|v| v == "*") { vec!["*".to_owned()] } else { verbs };
    check_verbs(&verbs, &urls)?;
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    let mut all_resources = false;
    for text in parsed.list("resource") {
        let (resource, subresource) = text.split_once('/').map_or((text.as_str(), ""), |(r, s)| (r, s));
        if resource.is_empty() {
            return Err(Failure::new("resource must be specified if apiGroup/subresource specified"));
        }
        let (name, group) = resource.split_once('.').unwrap_or((resource, ""));
        // What comes after all resources is not looked at.
        all_resources |= name == "*";
        let known = kinds::resolve(session, resource).await.map(|kind| (kind.group, kind.plural));
        let given = (group.to_owned(), name.to_owned());
        let (group, plural) = match known {
            _ if all_resources => known.unwrap_or(given),
            Ok(known) => check_special(&verbs, &known).map(|_| known)?,
            Err(error) => match check_special(&verbs, &given)? {
                true => given,
                false => return Err(unknown(error, resource)),
            },
        };
        let full = if subresource.is_empty() { plural } else { format!("{plural}/{subresource}") };
        match groups.iter_mut().find(|(g, _)| *g == group) {
            Some((_, list)) if list.contains(&full) => {}
            Some((_, list)) => list.push(full),
            None => groups.push((group, vec![full])),
        }
    }
    if groups.is_empty() && urls.is_empty() {
        return Err(Failure::new(match parsed.command.ends_with("clusterrole") {
            true => "one of resource or nonResourceURL must be specified",
            false => "at least one resource must be specified",
        }));
    }
    groups.sort();
    let rule = |(group, resources): &(String, Vec<String>)| {
        let mut rule = json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
        if !names.is_empty() {
            rule["resourceNames"] = json!(names);
        }
        rule
    };
    let mut all: Vec<Value> = groups.iter().map(rule).collect();
    if !urls.is_empty() {
        all.push(json!({"nonResourceURLs": urls, "verbs": verbs}));
    }
    Ok(all)
}

/// Runs `create role`.
pub async fn role(session: &Session) -> Outcome {
    let mut object = object("rbac.authorization.k8s.io/v1", "Role", name(session)?);
    object["rules"] = rules(session).await?.into();
    generate(session, object).await
}

/// Runs `create clusterrole`.
pub async fn cluster_role(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let mut object = object("rbac.authorization.k8s.io/v1", "ClusterRole", name(session)?);
    match parsed.text("aggregation-rule") {
        "" => object["rules"] = rules(session).await?.into(),
        labels => {
            if ["verb", "resource", "resource-name", "non-resource-url"].iter().any(|flag| parsed.is_set(flag)) {
                return Err(Failure::new(
                    "aggregation rule must be specified without nonResourceURLs, verbs, resources or resourceNames",
                ));
            }
            let wrong = |_| {
                let usage = format!("See '{} --help' for usage.", parsed.command);
                Failure::new(format!(
                    "invalid argument {labels:?} for \"--aggregation-rule\" flag: malformed pair, expect string=string\n{usage}"
                ))
            };
            let labels = pairs(labels).map_err(wrong)?;
            object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
            object["rules"] = Value::Null;
        }
    }
    generate(session, object).await
}

fn subjects(session: &Session) -> Outcome<Vec<Value>> {
    let parsed = &session.parsed;
    let group = "rbac.authorization.k8s.io";
    let mut subjects = Vec::new();
    for user in parsed.all("user") {
        subjects.push(json!({"apiGroup": group, "kind": "User", "name": user}));
    }
    for name in parsed.all("group") {
        subjects.push(json!({"apiGroup": group, "kind": "Group", "name": name}));
    }
    for account in parsed.all("serviceaccount") {
        let parts = account.split_once(':').filter(|(namespace, name)| !namespace.is_empty() && !name.contains(':'));
        let Some((namespace, name)) = parts.filter(|(_, name)| !name.is_empty()) else {
            return Err(Failure::new("serviceaccount must be <namespace>:<name>"));
        };
        subjects.push(json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}));
    }
    Ok(subjects)
}

async fn binding(session: &Session, kind: &str, role: (&str, &str)) -> Outcome {
    let group = "rbac.authorization.k8s.io";
    let mut object = object("rbac.authorization.k8s.io/v1", kind, name(session)?);
    object["roleRef"] = json!({"apiGroup": group, "kind": role.0, "name": role.1});
    let subjects = subjects(session)?;
    if !subjects.is_empty() {
        object["subjects"] = subjects.into();
    }
    generate(session, object).await
}

/// Runs `create rolebinding`.
pub async fn role_binding(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    name(session)?;
    match (parsed.text("clusterrole"), parsed.text("role")) {
        ("", "") => Err(Failure::new("exactly one of clusterrole or role must be specified")),
        (role, "") => binding(session, "RoleBinding", ("ClusterRole", role)).await,
        ("", role) => binding(session, "RoleBinding", ("Role", role)).await,
        _ => Err(Failure::new("exactly one of clusterrole or role must be specified")),
    }
}

/// Runs `create clusterrolebinding`.
pub async fn cluster_role_binding(session: &Session) -> Outcome {
    all_set(session, &["clusterrole"])?;
    let role = required(session, "clusterrole")?;
    binding(session, "ClusterRoleBinding", ("ClusterRole", &role)).await
}
