//! `auth reconcile`: makes roles allow at least what a file says, and bindings bind at least whom it names.

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch};
use crate::kinds;
use crate::objects::{FILES, from_sources, place, unmapped};
use crate::output::{self, changed};
use crate::session::{Session, encode};
use crate::value::Read;

use super::create::{WRITE, is_client_dry_run, write_query};

/// Flags of `auth reconcile`.
pub const FLAGS: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    &[
        WRITE[0],
        switch("remove-extra-permissions", "If true, removes extra permissions added to roles"),
        switch("remove-extra-subjects", "If true, removes extra subjects added to rolebindings"),
    ],
];

/// An object with this is left as it is.
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// Runs `auth reconcile`.
pub async fn reconcile(session: &Session) -> Outcome {
    if session.parsed.text("dry-run") == "server" {
        return Err(Failure::new("--dry-run=server for command reconcile is not supported yet"));
    }
    let parsed = &session.parsed;
    if !parsed.is_set("filename") && !parsed.is_set("kustomize") {
        return Err(Failure::new("must specify one of -f and -k"));
    }
    if !parsed.args.is_empty() {
        return Err(Failure::new("no arguments are allowed"));
    }
    let mut failed = None;
    for (source, object) in from_sources(session).await? {
        if let Err(error) = one(session, &source, object).await {
            failed = Some(super::say(failed, error));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// What has to be done, and what is told of it.
struct Plan {
    operation: &'static str,
    object: Value,
    notes: Vec<String>,
}

async fn one(session: &Session, source: &str, mut object: Value) -> Outcome {
    let kind = kinds::of_object(session, &object).await.map_err(|error| unmapped(source, &object, error))?;
    if kind.group != "rbac.authorization.k8s.io" {
        // As elsewhere, only what concerns access is looked at.
        return Ok(());
    }
    let (namespace, name) = place(session, &object)?;
    if kind.namespaced && object["metadata"]["namespace"].is_null() {
        object["metadata"]["namespace"] = namespace.clone().into();
    }
    let path = kind.object(&namespace, &encode(&name));
    let have = match session.get(&path).await {
        Ok(have) => Some(have),
        Err(error) if error.is_not_found() => None,
        Err(error) => return Err(error),
    };
    let parsed = &session.parsed;
    let plan = match kind.plural.as_str() {
        "roles" | "clusterroles" => role(have.as_ref(), object, parsed.on("remove-extra-permissions")),
        _ => binding(have.as_ref(), object, parsed.on("remove-extra-subjects")),
    };
    let protected = have.as_ref().is_some_and(|have| have["metadata"]["annotations"][AUTOUPDATE] == "false");
    let mut result = plan.object;
    if !protected && !is_client_dry_run(session)? {
        let query = write_query(session, "kubectl-auth-reconcile")?;
        let list = kind.path(Some(&namespace));
        result = match plan.operation {
            "" => result,
            "create" => session.post(&format!("{list}{query}"), &result).await?,
            "update" => session.put(&format!("{path}{query}"), &result).await?,
            _ => {
                // The role of a binding cannot be changed.
                session
                    .delete(&path, &json!({"preconditions": {"uid": have.unwrap_or_default()["metadata"]["uid"]}}))
                    .await?;
                session.post(&format!("{list}{query}"), &result).await?
            }
        };
    }
    changed(parsed, &result, "reconciled")?;
    if !plan.operation.is_empty() {
        let caveat = if protected { format!(", but object opted out ({AUTOUPDATE}: false)") } else { String::new() };
        eprintln!("\treconciliation required {}{caveat}", plan.operation);
        plan.notes.iter().for_each(|note| eprintln!("{note}"));
    }
    Ok(())
}

fn note(notes: &mut Vec<String>, title: &str, items: &[Value], shown: fn(&Value) -> String) {
    if !items.is_empty() {
        notes.push(format!("\t{title}:"));
        notes.extend(items.iter().map(|item| format!("\t\t{}", shown(item))));
    }
}

fn role(have: Option<&Value>, wanted: Value, remove: bool) -> Plan {
    let rules = |object: &Value| object["rules"].items().to_vec();
    let Some(have) = have else {
        let mut notes = Vec::new();
        note(&mut notes, "missing rules added", &rules(&wanted), rule_shown);
        return Plan { operation: "create", object: wanted, notes };
    };
    let missing = uncovered(&rules(have), &rules(&wanted));
    let extra = uncovered(&rules(&wanted), &rules(have));
    let mut object = have.clone();
    let mut notes = Vec::new();
    let mut operation = merge_metadata(&mut object, &wanted);
    let aggregates = wanted["aggregationRule"].is_there() && wanted["aggregationRule"] != have["aggregationRule"];
    if aggregates {
        object["aggregationRule"] = wanted["aggregationRule"].clone();
        operation = "update";
    }
    if !missing.is_empty() || (remove && !extra.is_empty()) {
        operation = "update";
        object["rules"] = match remove {
            true => wanted["rules"].clone(),
            false => rules(have).into_iter().chain(missing.iter().cloned()).collect(),
        };
    }
    note(&mut notes, "missing rules added", &missing, rule_shown);
    if remove {
        note(&mut notes, "extra rules removed", &extra, rule_shown);
    }
    Plan { operation, object, notes }
}

fn binding(have: Option<&Value>, wanted: Value, remove: bool) -> Plan {
    let subjects = |object: &Value| object["subjects"].items().to_vec();
    let mut notes = Vec::new();
    let Some(have) = have else {
        note(&mut notes, "missing subjects added", &subjects(&wanted), subject_shown);
        return Plan { operation: "create", object: wanted, notes };
    };
    let same = |a: &Value, b: &Value| ["kind", "name", "namespace"].iter().all(|k| a[k].text() == b[k].text());
    let without = |of: &[Value], others: &[Value]| -> Vec<Value> {
        of.iter().filter(|s| !others.iter().any(|o| same(s, o))).cloned().collect()
    };
    let missing = without(&subjects(&wanted), &subjects(have));
    let extra = without(&subjects(have), &subjects(&wanted));
    let role_changed = ["kind", "name"].iter().any(|k| have["roleRef"][k].text() != wanted["roleRef"][k].text());
    let mut object = have.clone();
    let mut operation = merge_metadata(&mut object, &wanted);
    if !missing.is_empty() || (remove && !extra.is_empty()) {
        operation = "update";
        object["subjects"] = match remove {
            true => wanted["subjects"].clone(),
            false => subjects(have).into_iter().chain(missing.iter().cloned()).collect(),
        };
    }
    note(&mut notes, "missing subjects added", &missing, subject_shown);
    if remove {
        note(&mut notes, "extra subjects removed", &extra, subject_shown);
    }
    if role_changed {
        object["roleRef"] = wanted["roleRef"].clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            ["uid", "resourceVersion", "creationTimestamp"].iter().for_each(|key| drop(metadata.remove(*key)));
        }
        return Plan { operation: "recreate", object, notes };
    }
    Plan { operation, object, notes }
}

/// Adds labels and annotations that are missing; says what that makes necessary.
fn merge_metadata(object: &mut Value, wanted: &Value) -> &'static str {
    let mut operation = "";
    for field in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][field].as_object().into_iter().flatten() {
            if object["metadata"][field][key] != *value {
                object["metadata"][field][key] = value.clone();
                operation = "update";
            }
        }
    }
    operation
}

/// A rule taken apart: one verb on one thing each.
fn apart(rule: &Value) -> Vec<Value> {
    let list = |key: &str| rule[key].items().to_vec();
    let mut all = Vec::new();
    for group in list("apiGroups") {
        for resource in list("resources") {
            for verb in list("verbs") {
                let plain = json!({"verbs": [verb], "apiGroups": [group], "resources": [resource]});
                if list("resourceNames").is_empty() {
                    all.push(plain.clone());
                }
                for name in list("resourceNames") {
                    let mut named = plain.clone();
                    named["resourceNames"] = json!([name]);
                    all.push(named);
                }
            }
        }
    }
    for url in list("nonResourceURLs") {
        for verb in list("verbs") {
            all.push(json!({"verbs": [verb], "nonResourceURLs": [url]}));
        }
    }
    all
}

/// The parts of `servant` rules that no `owner` rule allows.
fn uncovered(owner: &[Value], servant: &[Value]) -> Vec<Value> {
    let allowed = |rule: &Value| owner.iter().any(|o| covers(o, rule));
    servant.iter().flat_map(apart).filter(|rule| !allowed(rule)).collect()
}

fn covers(owner: &Value, rule: &Value) -> bool {
    let has = |key: &str, fits: &dyn Fn(&str, &str) -> bool| {
        let wanted = rule[key][0].text();
        owner[key].items().iter().any(|have| fits(have.text(), wanted))
    };
    let plain = |have: &str, wanted: &str| have == "*" || have == wanted;
    let resource = |have: &str, wanted: &str| {
        let of_any = |sub: &str| wanted.split_once('/').is_some_and(|(_, s)| s == sub);
        plain(have, wanted) || have.strip_prefix("*/").is_some_and(of_any)
    };
    let url = |have: &str, wanted: &str| {
        plain(have, wanted) || have.strip_suffix('*').is_some_and(|prefix| wanted.starts_with(prefix))
    };
    if rule["nonResourceURLs"].is_there() {
        return has("verbs", &plain) && has("nonResourceURLs", &url);
    }
    let named = owner["resourceNames"].items().is_empty()
        || (rule["resourceNames"].is_there() && has("resourceNames", &|have, wanted| have == wanted));
    has("verbs", &plain) && has("apiGroups", &plain) && has("resources", &resource) && named
}

fn words(value: &Value) -> String {
    value.items().iter().map(Read::text).collect::<Vec<_>>().join(" ")
}

fn rule_shown(rule: &Value) -> String {
    format!(
        "{{Verbs:[{}] APIGroups:[{}] Resources:[{}] ResourceNames:[{}] NonResourceURLs:[{}]}}",
        words(&rule["verbs"]),
        words(&rule["apiGroups"]),
        words(&rule["resources"]),
        words(&rule["resourceNames"]),
        words(&rule["nonResourceURLs"])
    )
}

fn subject_shown(subject: &Value) -> String {
    let text = |key: &str| subject[key].text();
    format!(
        "{{Kind:{} APIGroup:{} Name:{} Namespace:{}}}",
        text("kind"),
        text("apiGroup"),
        text("name"),
        text("namespace")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Value {
        json!({"verbs": verbs, "apiGroups": groups, "resources": resources})
    }

    #[test]
    fn what_is_missing_is_told_part_by_part() {
        let have = [rule(&["get"], &[""], &["pods"])];
        for (wanted, parts) in [
            (rule(&["get"], &[""], &["pods"]), 0),
            (rule(&["get", "list"], &[""], &["pods"]), 1),
            (rule(&["get", "list"], &["", "apps"], &["pods", "x"]), 7),
        ] {
            assert_eq!(uncovered(&have, &[wanted]).len(), parts);
        }
        let all = [rule(&["*"], &["*"], &["*"])];
        assert!(uncovered(&all, &have).is_empty());
        let named = [json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]})];
        assert_eq!(uncovered(&named, &have).len(), 1);
        assert!(uncovered(&have, &named).is_empty());
    }

    #[test]
    fn a_role_keeps_what_it_has() {
        let (have, wanted) = (
            json!({"metadata": {"name": "r"}, "rules": [rule(&["get"], &[""], &["pods"])]}),
            json!({"metadata": {"name": "r", "labels": {"a": "b"}}, "rules": [rule(&["list"], &[""], &["pods"])]}),
        );
        let plan = role(Some(&have), wanted.clone(), false);
        assert_eq!((plan.operation, plan.object["rules"].items().len()), ("update", 2));
        assert_eq!(plan.object["metadata"]["labels"]["a"], "b");
        let plan = role(Some(&have), wanted, true);
        assert_eq!(plan.object["rules"].items().len(), 1);
        assert_eq!(role(Some(&have), have.clone(), true).operation, "");
    }

    #[test]
    fn a_binding_to_another_role_is_made_anew() {
        let binding_of = |role: &str, subjects: &[&str]| {
            let subjects: Vec<Value> = subjects.iter().map(|s| json!({"kind": "User", "name": s})).collect();
            json!({"metadata": {"name": "b", "uid": "1"}, "roleRef": {"kind": "Role", "name": role}, "subjects": subjects})
        };
        let plan = binding(Some(&binding_of("r", &["a"])), binding_of("s", &["b"]), false);
        assert_eq!((plan.operation, plan.object["subjects"].items().len()), ("recreate", 2));
        assert!(plan.object["metadata"]["uid"].is_null());
    }
}
