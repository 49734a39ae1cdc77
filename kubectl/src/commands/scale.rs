//! `scale` and `autoscale`.

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, RECORD, text};
use crate::kinds::Kind;
use crate::objects::{FILES, SELECT};
use crate::output::{self, changed};
use crate::session::{Session, query};

use super::change::{each_named, path_of};
use super::create::{SAVE, WRITE, is_client_dry_run, manager, write_query};

/// Flags of `scale`.
pub const FLAGS: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    &[
        SELECT[0],
        SELECT[3],
        WRITE[0],
        RECORD,
        text(
            "current-replicas",
            "-1",
            "Precondition for current size. Requires that the current size of the resource match this value.",
        ),
        text("replicas", "0", "The new desired number of replicas. Required."),
        text("resource-version", "", "Precondition for resource version."),
        text("timeout", "0s", "The length of time to wait before giving up on a scale operation."),
    ],
];

/// Flags of `autoscale`.
pub const AUTOSCALE: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    &[
        WRITE[0],
        manager("kubectl-autoscale"),
        RECORD,
        SAVE,
        text("cpu", "", "Target CPU utilization over all the pods, such as 80%."),
        text("cpu-percent", "-1", "The target average CPU utilization over all the pods."),
        text("max", "-1", "The upper limit for the number of pods that can be set by the autoscaler. Required."),
        text("min", "-1", "The lower limit for the number of pods that can be set by the autoscaler."),
        text("name", "", "The name for the newly created object."),
    ],
];

/// Runs `scale`.
pub async fn scale(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if !parsed.is_set("replicas") {
        return Err(Failure::new("required flag(s) \"replicas\" not set"));
    }
    let replicas = parsed.number("replicas")?;
    if replicas < 0 {
        return Err(Failure::new(
            "The --replicas=COUNT flag is required, and COUNT must be greater than or equal to 0",
        ));
    }
    let current = parsed.number("current-replicas")?;
    if parsed.args.is_empty() && parsed.is_set("selector") {
        return Err(Failure::new("at least one resource must be specified to use a selector"));
    }
    let (found, mut failed) = each_named(session, &parsed.args).await?;
    if found.is_empty() {
        return Err(match failed {
            Some(Failure::Server(status)) if status["code"] == 404 => {
                Failure::new(format!("no objects passed to scale {}", status["message"].as_str().unwrap_or_default()))
            }
            Some(error) => error,
            None => Failure::new("no objects passed to scale"),
        });
    }
    for (kind, object) in found {
        if let Err(error) = scale_one(session, &kind, &object, (replicas, current)).await {
            failed = Some(super::say(failed, error));
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn scale_one(session: &Session, kind: &Kind, object: &Value, (replicas, current): (i64, i64)) -> Outcome {
    let parsed = &session.parsed;
    let path = format!("{}/scale", path_of(kind, object));
    if !is_client_dry_run(session)? {
        let scale = session.get(&path).await?;
        let has = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if current >= 0 && has != current {
            return Err(Failure::new(format!("Expected replicas to be {current}, was {has}")));
        }
        let version = parsed.text("resource-version");
        if !version.is_empty() && scale["metadata"]["resourceVersion"] != version {
            return Err(Failure::new(format!(
                "Expected resource version to be {version}, was {}",
                scale["metadata"]["resourceVersion"].as_str().unwrap_or_default()
            )));
        }
        let dry_run = if parsed.text("dry-run") == "server" { "All" } else { "" };
        let patch = json!({"spec": {"replicas": replicas}});
        session.patch(&format!("{path}{}", query(&[("dryRun", dry_run)])), "merge-patch", &patch).await?;
        if parsed.on("record") {
            let mut patch = json!({"metadata": {}});
            super::create::record(session, &mut patch);
            let path = format!("{}{}", path_of(kind, object), query(&[("dryRun", dry_run)]));
            session.patch(&path, "merge-patch", &patch).await?;
        }
    }
    changed(parsed, object, "scaled")
}

/// Runs `autoscale`.
pub async fn autoscale(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if !parsed.is_set("max") {
        return Err(Failure::new("required flag(s) \"max\" not set"));
    }
    let (max, min, cpu) = (parsed.number("max")?, parsed.number("min")?, parsed.number("cpu-percent")?);
    if max < 1 {
        return Err(Failure::new(format!("--max=MAXPODS is required and must be at least 1, max: {max}")));
    }
    if max < min {
        return Err(Failure::new(format!(
            "--max=MAXPODS must be larger or equal to --min=MINPODS, max: {max}, min: {min}"
        )));
    }
    let percent = match parsed.text("cpu") {
        "" => cpu,
        given => given
            .trim_end_matches('%')
            .parse()
            .map_err(|_| Failure::new(format!("--cpu {given:?} is not a percentage")))?,
    };
    let (found, mut failed) = each_named(session, &parsed.args).await?;
    for (kind, object) in found {
        if let Err(error) = autoscale_one(session, &kind, &object, (max, min, percent)).await {
            failed = Some(super::say(failed, error));
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn autoscale_one(
    session: &Session,
    kind: &Kind,
    object: &Value,
    (max, min, percent): (i64, i64, i64),
) -> Outcome {
    let parsed = &session.parsed;
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    const SCALABLE: [&str; 4] = ["deployments", "replicasets", "statefulsets", "replicationcontrollers"];
    let scales = SCALABLE.contains(&kind.plural.as_str())
        || session.get(&format!("{}/scale", path_of(kind, object))).await.is_ok();
    if !scales {
        return Err(Failure::new(format!(
            "cannot autoscale a {}: could not find scale subresource for {}/{}, Resource={} in discovery information",
            kind.kind, kind.group, kind.version, kind.plural
        )));
    }
    let own = if parsed.text("name").is_empty() { name } else { parsed.text("name") };
    let mut autoscaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": own},
        "spec": {
            "maxReplicas": max,
            "scaleTargetRef": {"apiVersion": kind.api_version(), "kind": kind.kind, "name": name},
        },
    });
    if min > 0 {
        autoscaler["spec"]["minReplicas"] = min.into();
    }
    if percent >= 0 {
        let target = json!({"type": "Utilization", "averageUtilization": percent});
        autoscaler["spec"]["metrics"] = json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]);
    }
    super::create::record(session, &mut autoscaler);
    create_autoscaler(session, autoscaler, object).await
}

async fn create_autoscaler(session: &Session, object: Value, target: &Value) -> Outcome {
    let kind = crate::kinds::of_object(session, &object).await?;
    if is_client_dry_run(session)? {
        return changed(&session.parsed, &object, "created");
    }
    let namespace = target["metadata"]["namespace"].as_str().unwrap_or_default();
    let path = format!("{}{}", kind.path(Some(namespace)), write_query(session, "kubectl-autoscale")?);
    let made = session.post(&path, &object).await?;
    changed(&session.parsed, &made, "autoscaled")
}
