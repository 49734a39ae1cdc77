//! `label` and `annotate`.

use keelson_machinery::names::label_value_problems;
use serde_json::{Map, Value};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, RECORD, switch, text};
use crate::objects::{self, FILES, SELECT};
use crate::output::{self, changed};
use crate::session::{Session, encode};

use super::create::{WRITE, is_client_dry_run, manager, write_query};

/// Flags of both.
pub const LABEL: &[&[Flag]] = &[output::FLAGS, FILES, SELECT, COMMON, &[manager("kubectl-label")]];
/// Flags of `annotate`.
pub const ANNOTATE: &[&[Flag]] = &[output::FLAGS, FILES, SELECT, COMMON, &[manager("kubectl-annotate")]];
const COMMON: &[Flag] = &[
    WRITE[0],
    RECORD,
    switch("list", "If true, display the labels or annotations for a given resource."),
    switch("local", "If true, it will NOT contact the api-server but run locally."),
    switch("overwrite", "If true, allow labels or annotations to be overwritten."),
    text("resource-version", "", "If non-empty, the update will only succeed if this is the current resource-version."),
];

/// Runs `label`.
pub async fn label(session: &Session) -> Outcome {
    run(session, "label", "labels").await
}

/// Runs `annotate`.
pub async fn annotate(session: &Session) -> Outcome {
    run(session, "annotation", "annotations").await
}

async fn run(session: &Session, word: &str, field: &str) -> Outcome {
    let parsed = &session.parsed;
    let is_pair = |a: &&String| a.find('=').is_some_and(|at| at > 0) || a.ends_with('-');
    let first = parsed.args.iter().position(|a| is_pair(&a)).unwrap_or(parsed.args.len());
    let (resources, pairs) = parsed.args.split_at(first);
    if resources.is_empty() && !parsed.is_set("filename") {
        return Err(Failure::new("one or more resources must be specified as <resource> <name> or <resource>/<name>"));
    }
    let (mut set, mut remove) = (Map::new(), Vec::new());
    for pair in pairs {
        match (pair.split_once('='), pair.strip_suffix('-')) {
            (Some((key, value)), _) if !key.is_empty() && (word != "label" || !value.contains('=')) => {
                let problems = if word == "label" { label_value_problems(value) } else { Vec::new() };
                if !problems.is_empty() {
                    return Err(Failure::new(format!(
                        "invalid label value: {pair:?}: {}",
                        problems.join(";").replace("no more than 63 bytes", "no more than 63 characters")
                    )));
                }
                set.insert(key.to_owned(), value.into());
            }
            (None, Some(key)) if !key.is_empty() => remove.push(key.to_owned()),
            _ => return Err(Failure::new(format!("unknown {word} spec: {pair}"))),
        }
    }
    if remove.iter().any(|key| set.contains_key(key)) {
        return Err(Failure::new(format!(
            "can not both modify and remove a{} {word} in the same command",
            if word == "label" { "" } else { "n" }
        )));
    }
    if pairs.is_empty() && !parsed.on("list") {
        return Err(Failure::new(format!("at least one {word} update is required")));
    }
    if parsed.on("all") && (parsed.is_set("selector") || parsed.is_set("field-selector")) {
        return Err(Failure::new("cannot set --all and --selector at the same time"));
    }
    let (found, mut failed) = objects::each(session, resources).await?;
    let many = found.len() > 1;
    if many && !parsed.text("resource-version").is_empty() {
        return Err(Failure::new("--resource-version may only be used with a single resource"));
    }
    for (kind, object) in found {
        if parsed.on("list") {
            if many {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                println!("Listing {field} for {}.{}/{name}:", kind.kind, kind.group);
            }
            let mut shown = object.clone();
            let mut values = set.clone();
            values.extend(remove.iter().map(|key| (key.clone(), Value::Null)));
            keelson_machinery::patch::merge(&mut shown, &serde_json::json!({"metadata": {field: values}}));
            list(&shown, field, many);
            continue;
        }
        let path = {
            let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
            format!(
                "{}{}",
                kind.object(text("namespace"), &encode(text("name"))),
                write_query(session, if word == "label" { "kubectl-label" } else { "kubectl-annotate" })?
            )
        };
        match change(session, &object, &path, word, field, (&set, &remove)).await {
            Ok(()) => {}
            Err(error) => failed = Some(super::say(failed, error)),
        }
    }
    failed.map_or(Ok(()), Err)
}

fn list(object: &Value, field: &str, indented: bool) {
    for (key, value) in object["metadata"][field].as_object().into_iter().flatten() {
        println!("{}{key}={}", if indented { " " } else { "" }, value.as_str().unwrap_or_default());
    }
}

async fn change(
    session: &Session,
    object: &Value,
    path: &str,
    word: &str,
    field: &str,
    (set, remove): (&Map<String, Value>, &[String]),
) -> Outcome {
    let parsed = &session.parsed;
    let have = &object["metadata"][field];
    if !parsed.on("overwrite") {
        // What changed an object last is always the newest.
        let taken = |(key, value): &(&String, &Value)| {
            have.get(*key).is_some_and(|old| old != *value) && key.as_str() != super::create::CHANGE_CAUSE
        };
        if let Some((key, _)) = set.iter().find(taken) {
            return Err(Failure::new(match word {
                "label" => format!(
                    "'{key}' already has a value ({}), and --overwrite is false",
                    have[key].as_str().unwrap_or_default()
                ),
                _ => format!(
                    "--overwrite is false but found the following declared annotation(s): '{key}' already has a value ({})",
                    have[key].as_str().unwrap_or_default()
                ),
            }));
        }
    }
    for key in remove.iter().filter(|key| have.get(key.as_str()).is_none()) {
        if word == "label" && set.is_empty() {
            println!("label {key:?} not found.");
        }
    }
    let mut patch: Map<String, Value> = set.clone();
    patch.extend(remove.iter().filter(|k| have.get(k.as_str()).is_some()).map(|key| (key.clone(), Value::Null)));
    let asks_version = !parsed.text("resource-version").is_empty();
    let same = !asks_version && patch.iter().all(|(key, value)| have.get(key).unwrap_or(&Value::Null) == value);
    let mut patch = serde_json::json!({"metadata": {field: patch}});
    if !parsed.text("resource-version").is_empty() {
        patch["metadata"]["resourceVersion"] = parsed.text("resource-version").into();
    }
    super::create::record(session, &mut patch);
    let result = match parsed.on("local") || is_client_dry_run(session)? || (same && word == "label") {
        true => {
            let mut result = object.clone();
            keelson_machinery::patch::merge(&mut result, &patch);
            result
        }
        false => session.patch(path, "merge-patch", &patch).await?,
    };
    let done = match word {
        "label" if same => "not labeled",
        "label" if set.is_empty() => "unlabeled",
        "label" => "labeled",
        _ => "annotated",
    };
    changed(parsed, &result, done)
}
