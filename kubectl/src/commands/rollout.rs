//! `rollout`: status, history, undo, pause, resume, restart.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch, text};
use crate::kinds::{Kind, resolve};
use crate::objects::{self, FILES, SELECT};
use crate::output::{self, Format, changed, name_of};
use crate::session::{Session, query};

use super::change::path_of;
use super::create::{WRITE, manager};
use crate::describe::sheet::Sheet;

/// Flags of pause, resume and restart.
pub const FLAGS: &[&[Flag]] = &[output::FLAGS, FILES, &[SELECT[0], manager("kubectl-rollout")]];
/// Flags of `rollout history`.
pub const HISTORY: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    &[SELECT[0], text("revision", "0", "See the details, including podTemplate of the revision specified")],
];
/// Flags of `rollout undo`.
pub const UNDO: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    &[SELECT[0], WRITE[0], text("to-revision", "0", "The revision to rollback to. Default to 0 (last revision).")],
];
/// Flags of `rollout status`.
pub const STATUS: &[&[Flag]] = &[
    FILES,
    &[
        SELECT[0],
        text("revision", "0", "Pin to a specific revision for showing its status."),
        text("timeout", "0s", "The length of time to wait before ending watch, zero means never."),
        switch("watch", "Watch the status of the rollout until it's done.").short('w').or("true"),
    ],
];

/// Pause between looks at a rollout.
const POLL: Duration = Duration::from_millis(100);
const REVISION: &str = "deployment.kubernetes.io/revision";
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";

/// A kind with its group, as refusals name it: `ReplicaSet.apps`.
fn grouped(kind: &Kind) -> String {
    if kind.group.is_empty() { kind.kind.clone() } else { format!("{}.{}", kind.kind, kind.group) }
}

/// Does something with each workload that is named; what fails with one is told after the others.
async fn with_each<F>(session: &Session, mut each: impl FnMut(Kind, Value) -> F) -> Outcome
where
    F: Future<Output = Outcome>,
{
    let (found, mut failed) = workloads(session).await?;
    if found.is_empty() && failed.is_none() {
        eprintln!("No resources found in {} namespace.", session.namespace()?);
    }
    for (kind, object) in found {
        if let Err(error) = each(kind, object).await {
            failed = Some(super::say(failed, error));
        }
    }
    failed.map_or(Ok(()), Err)
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The workloads that the command line names; without names all of the kinds that it names.
async fn workloads(session: &Session) -> Outcome<(Vec<(Kind, Value)>, Option<Failure>)> {
    let parsed = &session.parsed;
    if parsed.args.is_empty() && !parsed.is_set("filename") && !parsed.is_set("kustomize") {
        return Err(Failure::new("required resource not specified"));
    }
    objects::each_of_all(session, &parsed.args).await
}

async fn pause_or_resume(session: &Session, paused: bool) -> Outcome {
    with_each(session, |kind, object| async move {
        let word = if paused { "paus" } else { "resum" };
        if kind.plural != "deployments" {
            return Err(Failure::new(format!(
                "{} {:?} {word}ing is not supported",
                kind.qualified_plural(),
                name(&object)
            )));
        }
        if object["spec"]["paused"].as_bool().unwrap_or(false) == paused {
            let why = if paused { "is already paused" } else { "is not paused" };
            return Err(Failure::new(format!("{} {:?} {why}", kind.qualified_plural(), name(&object))));
        }
        let patch = json!({"spec": {"paused": if paused { Value::Bool(true) } else { Value::Null }}});
        let after = session.patch(&path_of(&kind, &object), "merge-patch", &patch).await?;
        changed(&session.parsed, &after, &format!("{word}ed"))
    })
    .await
}

/// Runs `rollout pause`.
pub async fn pause(session: &Session) -> Outcome {
    pause_or_resume(session, true).await
}

/// Runs `rollout resume`.
pub async fn resume(session: &Session) -> Outcome {
    pause_or_resume(session, false).await
}

/// Runs `rollout restart`.
pub async fn restart(session: &Session) -> Outcome {
    with_each(session, |kind, object| async move {
        let named = format!("{} {:?}", kind.qualified_plural(), name(&object));
        if !matches!(kind.plural.as_str(), "deployments" | "daemonsets" | "statefulsets") {
            return Err(Failure::new(format!("{named} restarting is not supported")));
        }
        if object["spec"]["paused"] == true {
            return Err(Failure::new(format!("{named} can't restart paused deployment (run rollout resume first)")));
        }
        let now = jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%:z").to_string().replace("+00:00", "Z");
        let had = &object["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"];
        if *had == now.as_str() {
            return Err(Failure::new(format!(
                "failed to create patch for {}: if restart has already been triggered within the past second, please wait \
                 before attempting to trigger another",
                name(&object)
            )));
        }
        let annotations = json!({"kubectl.kubernetes.io/restartedAt": now});
        let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
        let after = session.patch(&path_of(&kind, &object), "merge-patch", &patch).await?;
        changed(&session.parsed, &after, "restarted")
    })
    .await
}

/// A revision of a workload.
struct Revision {
    number: i64,
    cause: String,
    template: Value,
    /// What it is printed as: the replica set, or the workload as it was.
    object: Value,
}

/// The revisions of a workload, oldest first.
async fn revisions(session: &Session, kind: &Kind, object: &Value) -> Outcome<Vec<Revision>> {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let owned_by = |o: &Value| {
        o["metadata"]["ownerReferences"].as_array().into_iter().flatten().any(|r| r["uid"] == object["metadata"]["uid"])
    };
    let selector = selector_of(&object["spec"]["selector"]);
    let plural = match kind.plural.as_str() {
        "deployments" => "replicasets.apps",
        "daemonsets" | "statefulsets" => "controllerrevisions.apps",
        "replicasets" | "jobs" | "cronjobs" | "pods" | "replicationcontrollers" => {
            return Err(Failure::new(format!("no history viewer has been implemented for {:?}", grouped(kind))));
        }
        _ => {
            let (shown, group) = (grouped(kind), &kind.group);
            return Err(Failure::new(format!(
                "error retrieving history for {shown:?}, no visitor method exists for {{{group} {}}}",
                kind.kind
            )));
        }
    };
    let of = resolve(session, plural).await?;
    let list = session.get(&format!("{}{}", of.path(Some(namespace)), query(&[("labelSelector", &selector)]))).await?;
    let mut found = Vec::new();
    for item in list["items"].as_array().into_iter().flatten().filter(|i| owned_by(i)) {
        let annotation = |key: &str| item["metadata"]["annotations"][key].as_str().unwrap_or_default().to_owned();
        let (number, template, shown) = match of.plural.as_str() {
            "replicasets" => {
                let mut set = item.clone();
                (set["apiVersion"], set["kind"]) = (of.api_version().into(), of.kind.clone().into());
                (annotation(REVISION).parse().unwrap_or(0), item["spec"]["template"].clone(), set)
            }
            _ => {
                let mut template = item["data"]["spec"]["template"].clone();
                if let Some(template) = template.as_object_mut() {
                    template.remove("$patch");
                }
                let mut then = object.clone();
                then["spec"]["template"] = template.clone();
                (item["revision"].as_i64().unwrap_or(0), template, then)
            }
        };
        found.push(Revision { number, cause: annotation(CHANGE_CAUSE), template, object: shown });
    }
    found.sort_by_key(|revision| revision.number);
    Ok(found)
}

/// A label selector as text.
pub fn selector_of(selector: &Value) -> String {
    let mut parts: Vec<String> = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for rule in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = rule["key"].as_str().unwrap_or_default();
        let values: Vec<&str> = rule["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match rule["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    parts.join(",")
}

/// Runs `rollout history`.
pub async fn history(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let wanted = parsed.number("revision")?;
    if wanted < 0 {
        return Err(Failure::new(format!("revision must be a positive integer: {wanted}")));
    }
    let format = Format::of(parsed)?;
    let format = &format;
    with_each(session, |kind, object| async move {
        let mut revisions = revisions(session, &kind, &object).await?;
        if wanted > 0 {
            revisions.retain(|revision| revision.number == wanted);
            if revisions.is_empty() {
                return Err(Failure::new("unable to find the specified revision"));
            }
        }
        match (format, revisions.first()) {
            (Format::Default, Some(revision)) if wanted > 0 => {
                println!("{} with revision #{wanted}", name_of(&object));
                let mut template = revision.template.clone();
                if !revision.cause.is_empty() {
                    template["metadata"]["annotations"][CHANGE_CAUSE] = revision.cause.as_str().into();
                }
                println!("{}", template_text(&template));
            }
            (Format::Default, _) => print_history(&object, &revisions),
            _ => {
                for revision in &revisions {
                    changed(parsed, &revision.object, "")?;
                }
            }
        }
        Ok(())
    })
    .await
}

fn print_history(object: &Value, revisions: &[Revision]) {
    println!("{} ", name_of(object));
    if revisions.is_empty() {
        println!("No rollout history found.");
        return;
    }
    let mut rows = vec![("REVISION".to_owned(), "CHANGE-CAUSE")];
    rows.extend(revisions.iter().map(|r| (r.number.to_string(), crate::value::or(&r.cause, "<none>"))));
    // This table is set with two spaces between its columns.
    let width = rows.iter().map(|(number, _)| number.len()).max().unwrap_or(0) + 2;
    for (number, cause) in rows {
        println!("{number:<width$}{cause}");
    }
    println!();
}

fn template_text(template: &Value) -> String {
    let mut sheet = Sheet::default();
    crate::describe::pod::template(&mut sheet, template);
    sheet.raw()
}

/// Runs `rollout undo`.
pub async fn undo(session: &Session) -> Outcome {
    let wanted = session.parsed.number("to-revision")?;
    with_each(session, |kind, object| async move { undo_one(session, &kind, object, wanted).await }).await
}

async fn undo_one(session: &Session, kind: &Kind, object: Value, wanted: i64) -> Outcome {
    let parsed = &session.parsed;
    if !matches!(kind.plural.as_str(), "deployments" | "daemonsets" | "statefulsets") {
        let (shown, group) = (grouped(kind), &kind.group);
        const KNOWN: [&str; 5] = ["replicasets", "jobs", "cronjobs", "pods", "replicationcontrollers"];
        return Err(Failure::new(match KNOWN.contains(&kind.plural.as_str()) {
            true => format!("no rollbacker has been implemented for {shown:?}"),
            false => {
                let word = &kind.kind;
                format!("error retrieving rollbacker for {shown:?}, no visitor method exists for {{{group} {word}}}")
            }
        }));
    }
    let revisions = revisions(session, kind, &object).await?;
    let target = match wanted {
        0 => revisions.len().checked_sub(2).and_then(|at| revisions.get(at)),
        wanted => revisions.iter().find(|revision| revision.number == wanted),
    };
    let Some(Revision { template, .. }) = target else {
        return Err(match wanted {
            0 if kind.plural != "deployments" => Failure::new("no last revision to roll back to"),
            0 => Failure::new(format!("no rollout history found for {} {:?}", kind.kind.to_lowercase(), name(&object))),
            wanted => Failure::new(format!("unable to find specified revision {wanted} in history")),
        });
    };
    if object["spec"]["paused"] == true {
        return Err(Failure::new(
            "you cannot rollback a paused deployment; resume it first with 'kubectl rollout resume' and try again",
        ));
    }
    let (mut template, mut before) = (template.clone(), object["spec"]["template"].clone());
    for template in [&mut template, &mut before] {
        if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
            labels.remove("pod-template-hash");
        }
    }
    if before == template {
        let number = target.map_or(0, |t| t.number);
        println!("{} skipped rollback (current template already matches revision {number})", name_of(&object));
        return Ok(());
    }
    let patch = json!([{"op": "replace", "path": "/spec/template", "value": template}]);
    let dry_run = if parsed.text("dry-run") == "server" { "All" } else { "" };
    let after = match parsed.text("dry-run") {
        "client" | "unchanged" => object,
        _ => {
            let path = format!("{}{}", path_of(kind, &object), query(&[("dryRun", dry_run)]));
            session.patch(&path, "json-patch", &patch).await?
        }
    };
    changed(parsed, &after, "rolled back")
}

/// Runs `rollout status`.
pub async fn status(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let timeout = parsed.duration("timeout")?;
    let started = Instant::now();
    let wanted = parsed.number("revision")?;
    with_each(session, |kind, object| async move {
        let running = object["metadata"]["annotations"][REVISION].as_str().and_then(|r| r.parse().ok()).unwrap_or(0);
        if wanted > 0 && kind.plural == "deployments" && wanted != running {
            return Err(Failure::new(format!(
                "desired revision ({wanted}) is different from the running revision ({running})"
            )));
        }
        let path = path_of(&kind, &object);
        let mut said = String::new();
        loop {
            let object = session.get(&path).await?;
            let (text, done) = standing(&kind, &object)?;
            if text != said {
                println!("{text}");
                said = text;
            }
            if done || !parsed.on("watch") {
                return Ok(());
            }
            if !timeout.is_zero() && started.elapsed() > timeout {
                return Err(Failure::new("timed out waiting for the condition"));
            }
            tokio::time::sleep(POLL).await;
        }
    })
    .await
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// How a rollout stands: what to say, and whether it is over.
fn standing(kind: &Kind, object: &Value) -> Outcome<(String, bool)> {
    let waits_for = match kind.plural.as_str() {
        "deployments" => "deployment",
        "daemonsets" => "daemon set",
        "statefulsets" => "statefulset",
        _ => {
            super::known(kind)?;
            return Err(Failure::new(format!("no status viewer has been implemented for {}", grouped(kind))));
        }
    };
    let rolls = object["spec"]["updateStrategy"]["type"] == "RollingUpdate";
    if kind.plural != "deployments" && !rolls {
        return Err(Failure::new("rollout status is only available for RollingUpdate strategy type"));
    }
    if number(&object["metadata"]["generation"]) > number(&object["status"]["observedGeneration"]) {
        return Ok((format!("Waiting for {waits_for} spec update to be observed..."), false));
    }
    match kind.plural.as_str() {
        "deployments" => deployment_standing(object),
        "daemonsets" => Ok(daemon_set_standing(object)),
        _ => Ok(stateful_set_standing(object)),
    }
}

fn deployment_standing(object: &Value) -> Outcome<(String, bool)> {
    let (name, spec, status) = (name(object), &object["spec"], &object["status"]);
    let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    if conditions.iter().any(|c| c["type"] == "Progressing" && c["reason"] == "ProgressDeadlineExceeded") {
        return Err(Failure::new(format!("deployment {name:?} exceeded its progress deadline")));
    }
    let replicas = spec["replicas"].as_i64().unwrap_or(1);
    let (updated, total, available) =
        (number(&status["updatedReplicas"]), number(&status["replicas"]), number(&status["availableReplicas"]));
    let waiting = format!("Waiting for deployment {name:?} rollout to finish: ");
    Ok(if updated < replicas {
        (format!("{waiting}{updated} out of {replicas} new replicas have been updated..."), false)
    } else if total > updated {
        (format!("{waiting}{} old replicas are pending termination...", total - updated), false)
    } else if available < updated {
        (format!("{waiting}{available} of {updated} updated replicas are available..."), false)
    } else {
        (format!("deployment {name:?} successfully rolled out"), true)
    })
}

fn daemon_set_standing(object: &Value) -> (String, bool) {
    let (name, status) = (name(object), &object["status"]);
    let (desired, updated, available) = (
        number(&status["desiredNumberScheduled"]),
        number(&status["updatedNumberScheduled"]),
        number(&status["numberAvailable"]),
    );
    let waiting = format!("Waiting for daemon set {name:?} rollout to finish: ");
    if updated < desired {
        (format!("{waiting}{updated} out of {desired} new pods have been updated..."), false)
    } else if available < desired {
        (format!("{waiting}{available} of {desired} updated pods are available..."), false)
    } else {
        (format!("daemon set {name:?} successfully rolled out"), true)
    }
}

fn stateful_set_standing(object: &Value) -> (String, bool) {
    let (spec, status) = (&object["spec"], &object["status"]);
    let replicas = spec["replicas"].as_i64().unwrap_or(1);
    let (ready, updated) = (number(&status["readyReplicas"]), number(&status["updatedReplicas"]));
    let partition = spec["updateStrategy"]["rollingUpdate"]["partition"].as_i64();
    let revision = status["updateRevision"].as_str().unwrap_or_default();
    if ready < replicas {
        return (format!("Waiting for {} pods to be ready...", replicas - ready), false);
    }
    if let Some(partition) = partition {
        let wanted = replicas - partition;
        return match updated < wanted {
            true => (
                format!(
                    "Waiting for partitioned roll out to finish: {updated} out of {wanted} new pods have been updated..."
                ),
                false,
            ),
            false => (format!("partitioned roll out complete: {updated} new pods have been updated..."), true),
        };
    }
    if status["updateRevision"] != status["currentRevision"] {
        let text =
            format!("waiting for statefulset rolling update to complete {updated} pods at revision {revision}...");
        return (text, false);
    }
    let current = number(&status["currentReplicas"]);
    (format!("statefulset rolling update complete {current} pods at revision {revision}..."), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deployments_on_their_way() {
        let kind = crate::kinds::all_built_in().into_iter().find(|k| k.plural == "deployments").unwrap();
        let standing = |status: Value| {
            let object =
                json!({"metadata": {"name": "web", "generation": 2}, "spec": {"replicas": 3}, "status": status});
            standing(&kind, &object).map_err(|e| e.to_string())
        };
        for (status, expected, done) in [
            (json!({"observedGeneration": 1}), "Waiting for deployment spec update to be observed...", false),
            (
                json!({"observedGeneration": 2, "updatedReplicas": 1}),
                "Waiting for deployment \"web\" rollout to finish: 1 out of 3 new replicas have been updated...",
                false,
            ),
            (
                json!({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 4}),
                "Waiting for deployment \"web\" rollout to finish: 1 old replicas are pending termination...",
                false,
            ),
            (
                json!({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 2}),
                "Waiting for deployment \"web\" rollout to finish: 2 of 3 updated replicas are available...",
                false,
            ),
            (
                json!({"observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 3}),
                "deployment \"web\" successfully rolled out",
                true,
            ),
        ] {
            assert_eq!(standing(status).unwrap(), (expected.to_owned(), done));
        }
        let late = json!({"observedGeneration": 2, "conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]});
        assert_eq!(standing(late).unwrap_err(), "error: deployment \"web\" exceeded its progress deadline");
    }
}
