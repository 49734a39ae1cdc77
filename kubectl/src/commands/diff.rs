//! `diff`: what applying files would change.

use std::path::Path;
use std::process::Command as Process;

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, switch, text};
use crate::kinds;
use crate::objects::{FILES, from_files, place};
use crate::session::{Session, encode, query};
use crate::value::{Read, or};

use super::create::manager;
use super::history;

/// Flags of `diff`.
pub const FLAGS: &[&[Flag]] = &[
    FILES,
    &[
        text("concurrency", "1", "Number of objects to process in parallel when diffing against the live version."),
        manager("kubectl-client-side-apply"),
        switch("force-conflicts", "If true, server-side apply will force the changes against conflicts."),
        switch("prune", "Include resources that would be deleted by pruning."),
        repeated("prune-allowlist", "Overwrite the default allowlist with <group/version/kind> for --prune"),
        text("selector", "", "Selector (label query) to filter on").short('l'),
        switch("server-side", "If true, apply runs in the server instead of the client."),
        text("since", "", "Compare objects as they are with how they were at a revision, a time or so long ago (5m)."),
        switch("show-managed-fields", "If true, include managed fields in the diff."),
    ],
];

/// Runs `diff`: it fails with 1 if there are differences, with more if something is wrong.
pub async fn diff(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if !parsed.text("since").is_empty() {
        return since(session).await.map_err(beyond);
    }
    if !parsed.is_set("filename") && !parsed.is_set("kustomize") {
        return Err(beyond(Failure::new("must specify one of -f and -k")));
    }
    if !parsed.args.is_empty() {
        return Err(beyond(parsed.usage(format!("Unexpected args: [{}]", parsed.args.join(" ")))));
    }
    compare(session).await.map_err(beyond)
}

/// Says what is wrong; 1 already means that there are differences.
fn beyond(failure: Failure) -> Failure {
    match failure {
        code @ Failure::Code(_) => code,
        other => {
            eprintln!("{other}");
            Failure::Code(2)
        }
    }
}

async fn compare(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let objects = from_files(session).await?;
    let selector = parsed.text("selector");
    let selector = keelson_machinery::selector::LabelSelector::parse(selector).map_err(Failure::new)?;
    let (live, merged) = (directory("LIVE-")?, directory("MERGED-")?);
    let mut seen = Vec::new();
    for object in objects {
        let labels = &object["metadata"]["labels"];
        if !selector.matches(|key| labels[key].as_str()) {
            continue;
        }
        let kind = kinds::of_object(session, &object).await?;
        let (namespace, name) = place(session, &object)?;
        let before = match session.get(&kind.object(&namespace, &encode(&name))).await {
            Ok(before) => Some(before),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        let after = applied(session, &kind, object, before.as_ref()).await?;
        let group = if kind.group.is_empty() { String::new() } else { format!("{}.", kind.group) };
        let scope = if kind.namespaced { format!("{namespace}.") } else { String::new() };
        let file = format!("{group}{}.{}.{scope}{name}", kind.version, kind.kind);
        write(session, live.path(), &file, before.as_ref(), Some((&after, "before")))?;
        write(session, merged.path(), &file, Some(&after), before.as_ref().map(|b| (b, "after")))?;
        seen.push(kind.object(&namespace, &name));
    }
    if parsed.on("prune") {
        for (kind, object) in super::prune::candidates(session, &seen).await? {
            let metadata = &object["metadata"];
            let group = if kind.group.is_empty() { String::new() } else { format!("{}.", kind.group) };
            let scope = if kind.namespaced { format!("{}.", metadata["namespace"].text()) } else { String::new() };
            let file = format!("{group}{}.{}.{scope}{}", kind.version, kind.kind, metadata["name"].text());
            write(session, live.path(), &file, Some(&object), None)?;
            write(session, merged.path(), &file, None, None)?;
        }
    }
    external(live.path(), merged.path())
}

/// What has changed of the objects that are named: `diff --since=5m deployments`, `diff --since=1234 deploy/web`.
async fn since(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let revision = history::revision(session, parsed.text("since")).await?;
    let namespace = session.namespace()?;
    let targets = crate::objects::targets(session, &parsed.args).await?;
    if targets.is_empty() {
        return Err(parsed.usage("--since needs to know of what: TYPE, TYPE NAME or TYPE/NAME"));
    }
    let (before, after) = (directory("LIVE-")?, directory("MERGED-")?);
    for target in targets {
        let kind = &target.kind;
        let file = |object: &Value| {
            let group = if kind.group.is_empty() { String::new() } else { format!("{}.", kind.group) };
            let scope = if kind.namespaced { format!("{namespace}.") } else { String::new() };
            format!("{group}{}.{}.{scope}{}", kind.version, kind.kind, object["metadata"]["name"].text())
        };
        let names: Vec<Option<&str>> = match target.names.is_empty() {
            true => vec![None],
            false => target.names.iter().map(|n| Some(n.as_str())).collect(),
        };
        for name in names {
            let old = history::read(session, kind, Some(&namespace), name, &revision).await?;
            let new = match name {
                Some(name) => history::now(session, kind, &namespace, name).await?.into_iter().collect(),
                None => {
                    let mut list = session.get(&kind.path(Some(&namespace))).await?;
                    crate::output::items_of(kind, &mut list)
                }
            };
            let twin = |of: &[Value], object: &Value| {
                of.iter().find(|o| o["metadata"]["name"] == object["metadata"]["name"]).cloned()
            };
            for object in &old {
                write(
                    session,
                    before.path(),
                    &file(object),
                    Some(object),
                    twin(&new, object).as_ref().map(|o| (o, "before")),
                )?;
            }
            for object in &new {
                write(
                    session,
                    after.path(),
                    &file(object),
                    Some(object),
                    twin(&old, object).as_ref().map(|o| (o, "after")),
                )?;
            }
        }
    }
    external(before.path(), after.path())
}

fn directory(prefix: &str) -> Outcome<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix(prefix).tempdir()?)
}

/// What the object would be; the server says so without doing it.
async fn applied(session: &Session, kind: &kinds::Kind, mut object: Value, before: Option<&Value>) -> Outcome<Value> {
    let parsed = &session.parsed;
    let (namespace, name) = place(session, &object)?;
    let path = kind.object(&namespace, &encode(&name));
    if kind.namespaced && object["metadata"]["namespace"].is_null() {
        object["metadata"]["namespace"] = namespace.clone().into();
    }
    if parsed.on("server-side") {
        let force = if parsed.on("force-conflicts") { "true" } else { "false" };
        let manager = if parsed.is_set("field-manager") { parsed.text("field-manager") } else { "kubectl" };
        let query = query(&[("fieldManager", manager), ("force", force), ("dryRun", "All")]);
        return session.patch(&format!("{path}{query}"), "apply-patch", &object).await;
    }
    if !object["metadata"]["annotations"].is_object() {
        // The annotation that is not in the file stays as it is.
        object["metadata"]["annotations"] = serde_json::json!({});
    }
    let manager = or(parsed.text("field-manager"), "kubectl-client-side-apply");
    let query = query(&[("dryRun", "All"), ("fieldManager", manager)]);
    let Some(before) = before else {
        return session.post(&format!("{}{query}", kind.path(Some(&namespace))), &object).await;
    };
    let (form, patch) = super::apply::patch(kind, &object, before);
    if patch.as_object().is_none_or(serde_json::Map::is_empty) {
        return Ok(before.clone());
    }
    session.patch(&format!("{path}{query}"), form, &patch).await
}

/// Writes an object as YAML; of a secret only what differs from the `other`, not how.
fn write(session: &Session, dir: &Path, file: &str, object: Option<&Value>, other: Option<(&Value, &str)>) -> Outcome {
    let text = match object {
        None => String::new(),
        Some(object) => {
            let mut object = object.clone();
            if !session.parsed.on("show-managed-fields") {
                crate::output::strip_managed(&mut object);
            }
            mask(&mut object, other);
            keelson_machinery::yaml::write(&object)?
        }
    };
    Ok(std::fs::write(dir.join(file), text)?)
}

fn mask(object: &mut Value, other: Option<(&Value, &str)>) {
    if object["kind"] != "Secret" || object["apiVersion"] != "v1" {
        return;
    }
    for (key, value) in object["data"].as_object_mut().into_iter().flatten() {
        // Both are shown as the same, unless both are there and differ.
        *value = match other {
            Some((other, word)) if other["data"][key].is_there() && other["data"][key] != *value => {
                format!("*** ({word})").into()
            }
            _ => "***".into(),
        };
    }
}

/// Runs `diff`, or what KUBECTL_EXTERNAL_DIFF names.
fn external(live: &Path, merged: &Path) -> Outcome {
    let named = std::env::var("KUBECTL_EXTERNAL_DIFF").unwrap_or_default();
    let words: Vec<&str> = named.split_whitespace().collect();
    let allowed = |w: &&str| w.chars().all(|c| c.is_ascii_alphanumeric() || "-=_./,:".contains(c));
    let (program, arguments) = match words.split_first() {
        Some((program, rest)) => (*program, rest.iter().copied().filter(|w| allowed(w)).collect()),
        None => ("diff", vec!["-u", "-N"]),
    };
    match Process::new(program).args(arguments).arg(live).arg(merged).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::Code(u8::try_from(status.code().unwrap_or(2)).unwrap_or(2))),
        Err(error) => Err(Failure::new(format!("failed to run {program:?}: {error}"))),
    }
}
