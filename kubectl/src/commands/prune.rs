//! What `apply --prune` deletes: objects that were applied before and are in no file any more.

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::kinds::{self, Kind};
use crate::output::name_of;
use crate::session::{Session, encode, query};
use crate::value::Read;

use super::create::{LAST_APPLIED, is_client_dry_run};

/// Kinds that are looked at when none are named; of namespaces only whole ones.
const KINDS: [&str; 15] = [
    "configmaps",
    "endpoints",
    "namespaces",
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "replicationcontrollers",
    "secrets",
    "services",
    "jobs.batch",
    "cronjobs.batch",
    "ingresses.networking.k8s.io",
    "daemonsets.apps",
    "deployments.apps",
    "statefulsets.apps",
];

/// Checks the flags of pruning before anything is applied.
pub fn check(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if !parsed.on("prune") {
        return Ok(());
    }
    if !parsed.text("applyset").is_empty() {
        return match (parsed.on("all"), parsed.text("selector").is_empty()) {
            (true, _) => Err(Failure::new("--all is incompatible with --applyset")),
            (_, false) => Err(Failure::new("--selector is incompatible with --applyset")),
            _ => Ok(()),
        };
    }
    match (parsed.on("all"), parsed.text("selector").is_empty()) {
        (true, false) => Err(Failure::new("cannot set --all and --selector at the same time")),
        (false, true) => Err(Failure::new(
            "all resources selected for prune without explicitly passing --all. To prune all resources, pass the --all flag. If you did not mean to prune all resources, specify a label selector",
        )),
        _ => Ok(()),
    }
}

async fn kinds_of(session: &Session) -> Outcome<Vec<Kind>> {
    let mut kinds = Vec::new();
    let listed = session.parsed.list("prune-allowlist");
    if listed.is_empty() {
        let now = jiff::Timestamp::now().strftime("%m%d %H:%M:%S%.6f");
        eprintln!(
            "W{now}   {} prune.go:71] Deprecated: kubectl apply will no longer prune non-namespaced resources by default \
             when used with the --namespace flag in a future release. To preserve the current behaviour, list the \
             resources you want to target explicitly in the --prune-allowlist.",
            std::process::id()
        );
        for name in KINDS {
            kinds.push(kinds::resolve(session, name).await?);
        }
        return Ok(kinds);
    }
    for text in listed {
        let parts: Vec<&str> = text.split('/').map(str::trim).collect();
        let [group, version, kind] = parts.as_slice() else {
            return Err(Failure::new(format!(
                "invalid GroupVersionKind format: {text}, please follow <group/version/kind>"
            )));
        };
        let api_version = if *group == "core" { (*version).to_owned() } else { format!("{group}/{version}") };
        kinds.push(kinds::of_object(session, &json!({"apiVersion": api_version, "kind": kind})).await?);
    }
    Ok(kinds)
}

/// Checks that the kinds that are named can be looked at.
pub async fn allowed(session: &Session) -> Outcome {
    if session.parsed.list("prune-allowlist").is_empty() {
        return Ok(());
    }
    kinds_of(session).await.map(|_| ())
}

/// Objects that were applied and are not among `seen`, which are paths.
pub async fn candidates(session: &Session, seen: &[String]) -> Outcome<Vec<(Kind, Value)>> {
    let namespace = session.namespace()?;
    let selector = query(&[("labelSelector", session.parsed.text("selector"))]);
    let mut found = Vec::new();
    for kind in kinds_of(session).await? {
        // A namespace is only looked for where objects of other namespaces were applied.
        if kind.plural == "namespaces" && session.parsed.list("prune-allowlist").is_empty() {
            continue;
        }
        let mut list = session.get(&format!("{}{selector}", kind.path(Some(&namespace)))).await?;
        for object in crate::output::items_of(&kind, &mut list) {
            let metadata = &object["metadata"];
            let was_applied = metadata["annotations"][LAST_APPLIED].is_there();
            let path = kind.object(metadata["namespace"].text(), metadata["name"].text());
            if was_applied && metadata["deletionTimestamp"].is_null() && !seen.contains(&path) {
                found.push((kind.clone(), object));
            }
        }
    }
    Ok(found)
}

/// Deletes objects and tells so.
pub async fn delete(session: &Session, all: Vec<(Kind, Value)>) -> Outcome {
    let parsed = &session.parsed;
    let policy = match parsed.text("cascade") {
        "foreground" => "Foreground",
        "orphan" => "Orphan",
        _ => "Background",
    };
    let mut options = json!({"propagationPolicy": policy});
    let grace = parsed.number("grace-period")?;
    if grace >= 0 {
        options["gracePeriodSeconds"] = grace.into();
    }
    let suffix = match parsed.text("dry-run") {
        "client" | "unchanged" => " (dry run)",
        "server" => " (server dry run)",
        _ => "",
    };
    if parsed.text("dry-run") == "server" {
        options["dryRun"] = json!(["All"]);
    }
    for (kind, object) in all {
        if !is_client_dry_run(session)? {
            let metadata = &object["metadata"];
            let path = kind.object(metadata["namespace"].text(), &encode(metadata["name"].text()));
            match session.delete(&path, &options).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        match parsed.text("output") {
            "name" => println!("{}", name_of(&object)),
            _ => println!("{} pruned{suffix}", name_of(&object)),
        }
    }
    Ok(())
}
