//! `rollout`: status, history, undo, pause, resume, restart.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch, text};
use crate::kinds::{Kind, resolve};
use crate::objects::{self, FILES, SELECT};
use crate::output::{self, changed, name_of};
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

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The workloads that the command line names; without names all of the kinds that it names.
async fn workloads(session: &Session) -> Outcome<Vec<(Kind, Value)>> {
    let parsed = &session.parsed;
    if parsed.args.is_empty() && !parsed.is_set("filename") && !parsed.is_set("kustomize") {
        return Err(Failure::new("required resource not specified"));
    }
    objects::all_of(session, &parsed.args).await
}

async fn pause_or_resume(session: &Session, paused: bool) -> Outcome {
    let word = if paused { "pause" } else { "resume" };
    for (kind, object) in workloads(session).await? {
        if kind.plural != "deployments" {
            return Err(Failure::new(format!(
                "{} {:?} {} is not supported",
                kind.qualified_plural(),
                name(&object),
                if paused { "pausing" } else { "resuming" }
            )));
        }
        if object["spec"]["paused"].as_bool().unwrap_or(false) == paused {
            let why = if paused { "is already paused" } else { "is not paused" };
            return Err(Failure::new(format!("{} {:?} {why}", kind.qualified_plural(), name(&object))));
        }
        let patch = json!({"spec": {"paused": if paused { Value::Bool(true) } else { Value::Null }}});
        let after = session.patch(&path_of(&kind, &object), "merge-patch", &patch).await?;
        changed(&session.parsed, &after, &format!("{word}d"))?;
    }
    Ok(())
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
    for (kind, object) in workloads(session).await? {
        if !matches!(kind.plural.as_str(), "deployments" | "daemonsets" | "statefulsets") {
            return Err(Failure::new(format!(
                "{}s {:?} restarting is not supported",
                kind.kind.to_lowercase(),
                name(&object)
            )));
        }
        if object["spec"]["paused"] == true {
            return Err(Failure::new("can't restart paused deployment (run rollout resume first)"));
        }
        let now = jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%:z").to_string().replace("+00:00", "Z");
        let annotations = json!({"kubectl.kubernetes.io/restartedAt": now});
        let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
        let after = session.patch(&path_of(&kind, &object), "merge-patch", &patch).await?;
        changed(&session.parsed, &after, "restarted")?;
    }
    Ok(())
}

/// The revisions of a workload, oldest first: number, change cause, pod template.
async fn revisions(session: &Session, kind: &Kind, object: &Value) -> Outcome<Vec<(i64, String, Value)>> {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let owned_by = |o: &Value| {
        o["metadata"]["ownerReferences"].as_array().into_iter().flatten().any(|r| r["uid"] == object["metadata"]["uid"])
    };
    let selector = selector_of(&object["spec"]["selector"]);
    let plural = match kind.plural.as_str() {
        "deployments" => "replicasets.apps",
        "daemonsets" | "statefulsets" => "controllerrevisions.apps",
        _ => return Err(Failure::new(format!("no history viewer has been implemented for {:?}", kind.kind))),
    };
    let of = resolve(session, plural).await?;
    let list = session.get(&format!("{}{}", of.path(Some(namespace)), query(&[("labelSelector", &selector)]))).await?;
    let mut found: Vec<(i64, String, Value)> = Vec::new();
    for item in list["items"].as_array().into_iter().flatten().filter(|i| owned_by(i)) {
        let annotation = |key: &str| item["metadata"]["annotations"][key].as_str().unwrap_or_default().to_owned();
        let (revision, template) = match of.plural.as_str() {
            "replicasets" => (annotation(REVISION).parse().unwrap_or(0), item["spec"]["template"].clone()),
            _ => (item["revision"].as_i64().unwrap_or(0), item["data"]["spec"]["template"].clone()),
        };
        found.push((revision, annotation(CHANGE_CAUSE), template));
    }
    found.sort_by_key(|(revision, ..)| *revision);
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
    let wanted = session.parsed.number("revision")?;
    for (kind, object) in workloads(session).await? {
        let revisions = revisions(session, &kind, &object).await?;
        if wanted > 0 {
            let found = revisions.iter().find(|(revision, ..)| *revision == wanted);
            let Some((revision, _, template)) = found else {
                return Err(Failure::new("unable to find the specified revision"));
            };
            println!("{} with revision #{revision}", name_of(&object));
            print!("{}", template_text(template));
            continue;
        }
        println!("{} ", name_of(&object));
        let mut rows = vec![vec!["REVISION".to_owned(), "CHANGE-CAUSE".to_owned()]];
        rows.extend(revisions.into_iter().map(|(revision, cause, _)| {
            vec![revision.to_string(), if cause.is_empty() { "<none>".into() } else { cause }]
        }));
        // This table is set with two spaces between its columns.
        let width = rows.iter().map(|r| r[0].len()).max().unwrap_or(0) + 2;
        for row in rows {
            println!("{:<width$}{}", row[0], row[1]);
        }
        println!();
    }
    Ok(())
}

fn template_text(template: &Value) -> String {
    let mut sheet = Sheet::default();
    crate::describe::pod::template(&mut sheet, template);
    sheet.raw()
}

/// Runs `rollout undo`.
pub async fn undo(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let wanted = parsed.number("to-revision")?;
    for (kind, object) in workloads(session).await? {
        if object["spec"]["paused"] == true {
            return Err(Failure::new(format!(
                "you cannot rollback a paused deployment; resume it first with 'kubectl rollout resume {}' and try again",
                name_of(&object)
            )));
        }
        if !matches!(kind.plural.as_str(), "deployments" | "daemonsets" | "statefulsets") {
            return Err(Failure::new(format!("no rollbacker has been implemented for {:?}", kind.kind)));
        }
        let revisions = revisions(session, &kind, &object).await?;
        let target = match wanted {
            0 => revisions.len().checked_sub(2).and_then(|at| revisions.get(at)),
            wanted => revisions.iter().find(|(revision, ..)| *revision == wanted),
        };
        let Some((_, _, template)) = target else {
            return Err(match wanted {
                0 if kind.plural != "deployments" => Failure::new("no last revision to roll back to"),
                0 => Failure::new(format!(
                    "no rollout history found for {} {:?}",
                    kind.kind.to_lowercase(),
                    name(&object)
                )),
                wanted => Failure::new(format!("unable to find specified revision {wanted} in history")),
            });
        };
        let mut template = template.clone();
        if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
            labels.remove("pod-template-hash");
        }
        let mut before = object["spec"]["template"].clone();
        if let Some(labels) = before["metadata"]["labels"].as_object_mut() {
            labels.remove("pod-template-hash");
        }
        if before == template {
            println!(
                "{} skipped rollback (current template already matches revision {})",
                name_of(&object),
                target.map_or(0, |t| t.0)
            );
            continue;
        }
        let patch = json!([{"op": "replace", "path": "/spec/template", "value": template}]);
        let dry_run = if parsed.text("dry-run") == "server" { "All" } else { "" };
        let after = match parsed.text("dry-run") {
            "client" | "unchanged" => object,
            _ => {
                let path = format!("{}{}", path_of(&kind, &object), query(&[("dryRun", dry_run)]));
                session.patch(&path, "json-patch", &patch).await?
            }
        };
        changed(parsed, &after, "rolled back")?;
    }
    Ok(())
}

/// Runs `rollout status`.
pub async fn status(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let timeout = parsed.duration("timeout")?;
    let started = Instant::now();
    let wanted = parsed.number("revision")?;
    for (kind, object) in workloads(session).await? {
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
                break;
            }
            if !timeout.is_zero() && started.elapsed() > timeout {
                return Err(Failure::new("timed out waiting for the condition"));
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
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
        _ => return Err(Failure::new(format!("no status viewer has been implemented for {}", kind.kind))),
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
