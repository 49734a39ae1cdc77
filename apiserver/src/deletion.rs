//! What a deletion does to an object before it goes: grace, finalizers, preconditions. Decided here, carried out by the verb.

use jiff::{SignedDuration, Timestamp};
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::rules;
use keelson_machinery::status::{Cause, Status};
use serde_json::{Value, json};

use crate::verbs::Call;
use crate::{body, crd, options};

/// Grace of a pod that says nothing else, seconds.
const DEFAULT_GRACE_SECONDS: i64 = 30;
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Plan {
    /// Nothing: the object waits already.
    Wait,
    /// The object is written like this and waits.
    Mark(Value),
    /// The object is written like this and then goes.
    MarkAndRemove(Value),
    /// The object goes.
    Remove,
}

/// `DeleteOptions` from the body or, if there is none, from the query.
pub fn read_options(call: &Call<'_>) -> Result<Value, Status> {
    let query = &call.request.query;
    let mut given = if call.body.is_empty() {
        let mut given = json!({});
        if let Some(seconds) = query.number("gracePeriodSeconds")? {
            given["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(policy) = query.all("propagationPolicy").first() {
            given["propagationPolicy"] = policy.as_str().into();
        }
        if query.has("orphanDependents") {
            given["orphanDependents"] = query.flag("orphanDependents").into();
        }
        for key in ["uid", "resourceVersion"] {
            if let Some(wanted) = query.get(key).filter(|wanted| !wanted.is_empty()) {
                given["preconditions"][key] = wanted.into();
            }
        }
        given
    } else {
        let given = body::options(call.headers, call.body, ("v1", "DeleteOptions"))?;
        let text = |key: &str| given[key].as_str().unwrap_or_default();
        let (version, kind) = (text("apiVersion"), text("kind"));
        // Options may come under any group's name.
        if !matches!(kind, "" | "DeleteOptions") {
            let version = if version.is_empty() { "meta.k8s.io/v1" } else { version };
            return Err(Status::bad_request(format!(
                "no kind {kind:?} is registered for version {version:?} in scheme \
                 \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\""
            )));
        }
        conformed(given)?
    };
    // A body says it all; else the query does.
    if call.body.is_empty() && !query.all("dryRun").is_empty() {
        given["dryRun"] = json!(query.all("dryRun"));
    }
    validate(&given)?;
    Ok(given)
}

fn conformed(mut given: Value) -> Result<Value, Status> {
    let definition = keelson_machinery::schema::definition("apimachinery.pkg.apis.meta.v1.DeleteOptions");
    if let Some(definition) = definition {
        given["kind"] = "DeleteOptions".into();
        keelson_machinery::conform::conform_to(definition, &mut given).map_err(Status::bad_request)?;
    }
    Ok(given)
}

/// Refuses options of a deletion that say what there is not.
pub fn validate(given: &Value) -> Result<(), Status> {
    let mut causes = Vec::new();
    let policy = &given["propagationPolicy"];
    if !policy.is_null() && given["orphanDependents"].is_boolean() {
        let why = "orphanDependents and deletionPropagation cannot be both set";
        causes.push(Cause::invalid("propagationPolicy", policy, why));
    }
    if !policy.is_null() && !matches!(policy.as_str(), Some("Foreground" | "Background" | "Orphan")) {
        let known = ["Foreground", "Background", "Orphan", "nil"];
        causes.push(Cause::not_supported("propagationPolicy", policy, &known));
    }
    let dry: Vec<String> =
        given["dryRun"].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect();
    causes.extend(options::dry_run(&dry));
    options::refuse("DeleteOptions", causes)
}

/// The code of a deletion's answer: 202 says to who asked for the dependents to go, too, that the object is there still.
pub fn code(given: &Value, is_gone: bool) -> u16 {
    if !is_gone && given["orphanDependents"] == false { 202 } else { 200 }
}

/// Whether options say that nothing is to be stored.
pub fn is_dry_run(given: &Value) -> bool {
    given["dryRun"].as_array().is_some_and(|list| list.iter().any(|v| v == "All"))
}

/// Refuses to delete what every cluster needs.
pub fn allowed(def: &ResourceDef, name: &str) -> Result<(), Status> {
    let system = matches!(name, "system-cluster-critical" | "system-node-critical");
    if system && def.group == "scheduling.k8s.io" && def.plural == "priorityclasses" {
        let why = "this is a system priority class and cannot be deleted";
        return Err(Status::forbidden(def.group, def.plural, name, why));
    }
    Ok(())
}

/// Refuses a deletion that is meant for another object.
pub fn preconditions(def: &ResourceDef, given: &Value, old: &Value) -> Result<(), Status> {
    let name = old["metadata"]["name"].as_str().unwrap_or_default();
    for (field, label, end) in [
        ("uid", "UID", "The object might have been deleted and then recreated"),
        ("resourceVersion", "ResourceVersion", "The object might have been modified"),
    ] {
        let Some(wanted) = given["preconditions"][field].as_str() else { continue };
        let found = old["metadata"][field].as_str().unwrap_or_default();
        if wanted != found && def.group.is_empty() && def.plural == "namespaces" {
            let why =
                format!("Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {found}");
            return Err(Status::conflict(def.group, def.plural, name, &why));
        }
        if wanted != found {
            let why = format!(
                "the {label} in the precondition ({wanted}) does not match the {label} in record ({found}). {end}"
            );
            return Err(Status::conflict(rules::error_group(def), def.kind, name, &why));
        }
    }
    Ok(())
}

/// Decides on a deletion at a moment.
pub fn plan(def: &ResourceDef, given: &Value, old: &Value, now: Timestamp) -> Plan {
    let mut new = old.clone();
    if def.group.is_empty() && def.plural == "namespaces" {
        if old["metadata"]["deletionTimestamp"].is_null() {
            return namespace(given, new, now);
        }
        if !is_empty(&old["spec"]["finalizers"]) {
            return Plan::Wait;
        }
    }
    let grace = match grace(def, given, &mut new, now) {
        Grace::Pending => return Plan::Wait,
        Grace::None => None,
        Grace::Seconds(seconds) => Some(seconds),
    };
    set_finalizers(def, given, &mut new);
    if crd::is_definition(def) {
        crd::definition::terminate(&mut new);
    }
    let waits = !is_empty(&new["metadata"]["finalizers"]);
    match (grace, waits) {
        (None, false) => Plan::Remove,
        (None, true) => {
            mark(&mut new, now);
            if new == *old { Plan::Wait } else { Plan::Mark(new) }
        }
        (Some(0), false) => Plan::MarkAndRemove(new),
        (Some(_), _) => Plan::Mark(new),
    }
}

fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}

fn written(at: Timestamp) -> Value {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()
}

/// Marks an object that has no grace as going.
fn mark(new: &mut Value, now: Timestamp) {
    let metadata = &mut new["metadata"];
    if metadata["deletionGracePeriodSeconds"].is_null() {
        count(metadata);
    }
    let later =
        metadata["deletionTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok()).is_none_or(|t| t > now);
    if later {
        metadata["deletionTimestamp"] = written(now);
    }
    metadata["deletionGracePeriodSeconds"] = 0.into();
}

/// The first mark counts a generation, if there is one.
fn count(metadata: &mut Value) {
    if let Some(generation) = metadata["generation"].as_i64().filter(|g| *g > 0) {
        metadata["generation"] = (generation + 1).into();
    }
}

enum Grace {
    /// The kind has none.
    None,
    /// It runs already.
    Pending,
    /// It is set now.
    Seconds(i64),
}

/// Only pods have grace; it may be shortened while it runs.
fn grace(def: &ResourceDef, given: &Value, new: &mut Value, now: Timestamp) -> Grace {
    if !(def.group.is_empty() && def.plural == "pods") {
        return Grace::None;
    }
    let asked = given["gracePeriodSeconds"].as_i64().map(|s| if s < 0 { 1 } else { s });
    let running = new["metadata"]["deletionGracePeriodSeconds"].as_i64();
    if new["metadata"]["deletionTimestamp"].is_string() {
        // Marked and removed are two writes: who was stopped between them left a mark without grace, and the next one removes.
        let Some(before) = running.filter(|seconds| *seconds != 0) else { return Grace::None };
        let Some(asked) = asked.filter(|asked| *asked < before) else { return Grace::Pending };
        let end =
            new["metadata"]["deletionTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok()).unwrap_or(now);
        new["metadata"]["deletionTimestamp"] = written(end - SignedDuration::from_secs(before - asked));
        new["metadata"]["deletionGracePeriodSeconds"] = asked.into();
        return Grace::Seconds(asked);
    }
    let own = new["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(DEFAULT_GRACE_SECONDS);
    let mut seconds = asked.unwrap_or(own);
    let idle = new["spec"]["nodeName"].as_str().unwrap_or_default().is_empty()
        || matches!(new["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if idle {
        seconds = 0;
    }
    if seconds < 0 {
        seconds = 1;
    }
    new["metadata"]["deletionTimestamp"] = written(now + SignedDuration::from_secs(seconds));
    new["metadata"]["deletionGracePeriodSeconds"] = seconds.into();
    count(&mut new["metadata"]);
    Grace::Seconds(seconds)
}

/// Finalizers for the garbage collector, as the options, the object and the kind's default say, in this order.
fn set_finalizers(def: &ResourceDef, given: &Value, new: &mut Value) {
    let before: Vec<Value> = new["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let has = |name: &str| before.iter().any(|f| f == name);
    let (orphan, foreground) = match (given["orphanDependents"].as_bool(), given["propagationPolicy"].as_str()) {
        // Nothing depends on events.
        _ if def.plural == "events" && !def.custom => (false, false),
        (Some(orphan), _) => (orphan, false),
        (_, Some("Orphan")) => (true, false),
        (_, Some("Foreground")) => (false, true),
        (_, Some(_)) => (false, false),
        (None, None) if has(ORPHAN) => (true, false),
        (None, None) if has(FOREGROUND) => (false, true),
        (None, None) => (rules::of(def).orphans, false),
    };
    put_finalizers(new, &before, orphan, foreground);
}

/// Writes the two finalizers of the garbage collector into an object that had `before`, or takes them out.
fn put_finalizers(new: &mut Value, before: &[Value], orphan: bool, foreground: bool) {
    let has = |name: &str| before.iter().any(|f| f == name);
    if (orphan, foreground) == (has(ORPHAN), has(FOREGROUND)) {
        return;
    }
    let mut list: Vec<Value> = before.iter().filter(|f| **f != ORPHAN && **f != FOREGROUND).cloned().collect();
    if orphan {
        list.push(ORPHAN.into());
    }
    if foreground {
        list.push(FOREGROUND.into());
    }
    match new["metadata"].as_object_mut() {
        Some(metadata) if list.is_empty() => {
            metadata.remove("finalizers");
        }
        Some(metadata) => {
            metadata.insert("finalizers".into(), list.into());
        }
        None => {}
    }
}

/// A namespace that is not going yet waits until what is in it is gone.
fn namespace(given: &Value, mut new: Value, now: Timestamp) -> Plan {
    new["metadata"]["deletionTimestamp"] = written(now);
    new["status"]["phase"] = "Terminating".into();
    let before: Vec<Value> = new["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    // Unlike other kinds' dependents a namespace's are waited for, too, where they are not to be left.
    let (orphan, foreground) = match (given["orphanDependents"].as_bool(), given["propagationPolicy"].as_str()) {
        (Some(orphan), _) => (orphan, !orphan),
        (None, Some(policy)) => (policy == "Orphan", policy == "Foreground"),
        (None, None) => (before.iter().any(|f| f == ORPHAN), before.iter().any(|f| f == FOREGROUND)),
    };
    put_finalizers(&mut new, &before, orphan, foreground);
    Plan::Mark(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_machinery::resources::find;

    fn decide(plural: &str, given: Value, old: &Value) -> Plan {
        plan(find("", "v1", plural).unwrap(), &given, old, "2026-01-01T00:00:00Z".parse().unwrap())
    }

    #[test]
    fn pods_have_grace_that_can_be_shortened() {
        let running =
            json!({"metadata": {"generation": 1}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 20}});
        let Plan::Mark(marked) = decide("pods", json!({}), &running) else { panic!("it waits") };
        let metadata =
            json!({"generation": 2, "deletionTimestamp": "2026-01-01T00:00:20Z", "deletionGracePeriodSeconds": 20});
        assert_eq!(marked["metadata"], metadata);
        assert_eq!(decide("pods", json!({"gracePeriodSeconds": 25}), &marked), Plan::Wait);
        let Plan::Mark(shorter) = decide("pods", json!({"gracePeriodSeconds": 5}), &marked) else { panic!("it waits") };
        assert_eq!(shorter["metadata"]["deletionTimestamp"], "2026-01-01T00:00:05Z");
        let Plan::MarkAndRemove(last) = decide("pods", json!({"gracePeriodSeconds": 0}), &marked) else {
            panic!("it goes")
        };
        assert_eq!(last["metadata"]["generation"], 2);
        // A server died after the mark: whoever deletes again removes it, with or without saying that it must not wait.
        assert_eq!(decide("pods", json!({}), &last), Plan::Remove);
        assert_eq!(decide("pods", json!({"gracePeriodSeconds": 0}), &last), Plan::Remove);
    }

    #[test]
    fn a_namespace_waits_for_what_the_options_say() {
        for (given, before, after) in [
            (json!({}), json!(["a/b"]), json!(["a/b"])),
            (json!({}), json!(["orphan"]), json!(["orphan"])),
            (
                json!({"propagationPolicy": "Foreground"}),
                json!(["a/b", "orphan"]),
                json!(["a/b", "foregroundDeletion"]),
            ),
            (json!({"propagationPolicy": "Orphan"}), Value::Null, json!(["orphan"])),
            (json!({"propagationPolicy": "Background"}), json!(["foregroundDeletion"]), Value::Null),
            (json!({"orphanDependents": true}), json!([]), json!(["orphan"])),
            (json!({"orphanDependents": false}), json!([]), json!(["foregroundDeletion"])),
        ] {
            let old = json!({"metadata": {"finalizers": before}, "spec": {"finalizers": ["kubernetes"]}});
            let Plan::Mark(new) = decide("namespaces", given.clone(), &old) else { panic!("it waits") };
            assert_eq!(new["metadata"].get("finalizers").unwrap_or(&Value::Null), &after, "{given} {before}");
        }
    }

    #[test]
    fn finalizers_hold_objects_back() {
        for (plural, given, old, waits) in [
            ("configmaps", json!({}), json!({"metadata": {}}), false),
            ("configmaps", json!({}), json!({"metadata": {"finalizers": ["a/b"]}}), true),
            ("configmaps", json!({"propagationPolicy": "Foreground"}), json!({"metadata": {}}), true),
            (
                "configmaps",
                json!({"propagationPolicy": "Background"}),
                json!({"metadata": {"finalizers": ["orphan"]}}),
                false,
            ),
            ("replicationcontrollers", json!({}), json!({"metadata": {}}), true),
            ("events", json!({"propagationPolicy": "Orphan"}), json!({"metadata": {}}), false),
            ("events", json!({}), json!({"metadata": {"finalizers": ["orphan"]}}), false),
            ("namespaces", json!({}), json!({"metadata": {}, "spec": {"finalizers": ["kubernetes"]}}), true),
            (
                "namespaces",
                json!({}),
                json!({"metadata": {"deletionTimestamp": "2025-01-01T00:00:00Z", "finalizers": ["a/b"]}, "spec": {}}),
                true,
            ),
            ("namespaces", json!({}), json!({"metadata": {"deletionTimestamp": "2025-01-01T00:00:00Z"}}), false),
        ] {
            let plan = decide(plural, given.clone(), &old);
            assert_eq!(matches!(plan, Plan::Mark(_)), waits, "{plural} {given} {plan:?}");
        }
    }
}
