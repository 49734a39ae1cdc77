//! `create deployment`, `create job` and `create cronjob`.

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, text};
use crate::kinds;
use crate::output;
use crate::session::{Session, encode};

use super::super::create::{SAVE, WRITE, generate};
use super::{all_set, command, name, object};

/// Flags of `create deployment`.
pub const DEPLOYMENT: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        repeated("image", "Image names to run. A deployment can have multiple images set for multi-container pod."),
        text("port", "-1", "The containerPort that this deployment exposes."),
        text("replicas", "1", "Number of replicas to create. Default is 1.").short('r'),
    ],
];
/// Flags of `create job`.
pub const JOB: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        text("image", "", "Image name to run."),
        text("from", "", "The name of the resource to create a Job from (only cronjob is supported)."),
    ],
];
/// Flags of `create cronjob`.
pub const CRON_JOB: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        text("image", "", "Image name to run."),
        text("restart", "", "Job's restart policy. supported values: OnFailure, Never"),
        text("schedule", "", "A schedule in the Cron format the job should be run with."),
    ],
];
/// A container's name from its image: the last part of the path, without tag and digest.
fn container_name(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    let name = name.split(['@', ':']).next().unwrap_or(name);
    match name.contains(['_', '.']) {
        // What had to be changed to be a name might be the same as another one.
        true => format!("{}-{}", name.replace(['_', '.'], "-"), crate::commands::debug::letters()),
        false => name.to_owned(),
    }
}

/// Runs `create deployment`.
pub async fn deployment(session: &Session) -> Outcome {
    all_set(session, &["image"])?;
    let (name, parsed) = (name(session)?, &session.parsed);
    let images = parsed.list("image");
    if images.len() > 1 && parsed.after_dash.is_some() {
        return Err(Failure::new("cannot specify multiple --image options and command"));
    }
    let port = parsed.number("port")?;
    let container = |(at, image): (usize, &String)| {
        let mut container = json!({"name": container_name(image), "image": image, "resources": {}});
        if let Some(command) = command(session) {
            container["command"] = command;
        }
        if port >= 0 && at == 0 {
            container["ports"] = json!([{"containerPort": port}]);
        }
        container
    };
    let mut object = object("apps/v1", "Deployment", name);
    object["metadata"]["labels"] = json!({"app": name});
    object["spec"] = json!({
        "replicas": parsed.number("replicas")?,
        "selector": {"matchLabels": {"app": name}},
        "strategy": {},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": images.iter().enumerate().map(container).collect::<Vec<_>>()}},
    });
    object["status"] = json!({});
    generate(session, object).await
}

fn job_spec(session: &Session, name: &str, restart: &str) -> Value {
    let image = session.parsed.text("image");
    let mut container = json!({"name": name, "image": image, "resources": {}});
    if let Some(command) = command(session) {
        container["command"] = command;
    }
    json!({"template": {"metadata": {}, "spec": {"containers": [container], "restartPolicy": restart}}})
}

/// Runs `create job`.
pub async fn job(session: &Session) -> Outcome {
    let (name, parsed) = (name(session)?, &session.parsed);
    let mut object = object("batch/v1", "Job", name);
    if parsed.is_set("image") == parsed.is_set("from") {
        return Err(Failure::new("either --image or --from must be specified"));
    }
    if parsed.is_set("from") && command(session).is_some() {
        return Err(Failure::new("cannot specify --from and command"));
    }
    match parsed.text("from").split_once('/') {
        Some((kind, from)) => {
            let kind = kinds::resolve(session, kind).await?;
            if kind.plural != "cronjobs" {
                session.get(&kind.object(&session.namespace()?, &encode(from))).await?;
                return Err(Failure::new(format!("unknown object type *{}.{}", kind.version, kind.kind)));
            }
            let cron = session.get(&kind.object(&session.namespace()?, &encode(from))).await?;
            let template = &cron["spec"]["jobTemplate"];
            object["spec"] = template["spec"].clone();
            for field in ["labels", "annotations"] {
                if template["metadata"][field].is_object() {
                    object["metadata"][field] = template["metadata"][field].clone();
                }
            }
            object["metadata"]["annotations"]["cronjob.kubernetes.io/instantiate"] = "manual".into();
            object["metadata"]["ownerReferences"] = json!([{"apiVersion": "batch/v1", "kind": "CronJob", "name": from,
                "uid": cron["metadata"]["uid"], "controller": true}]);
        }
        None if parsed.is_set("from") => {
            kinds::resolve(session, parsed.text("from")).await?;
            return Err(Failure::new("resource(s) were provided, but no name was specified"));
        }
        None => {
            object["spec"] = job_spec(session, name, "Never");
        }
    }
    object["status"] = json!({});
    generate(session, object).await
}

/// Runs `create cronjob`.
pub async fn cron_job(session: &Session) -> Outcome {
    all_set(session, &["image", "schedule"])?;
    let (name, parsed) = (name(session)?, &session.parsed);
    let restart = if parsed.text("restart").is_empty() { "OnFailure" } else { parsed.text("restart") };
    let mut object = object("batch/v1", "CronJob", name);
    object["spec"] = json!({
        "schedule": parsed.text("schedule"),
        "jobTemplate": {"metadata": {"name": name}, "spec": job_spec(session, name, restart)},
    });
    object["status"] = json!({});
    generate(session, object).await
}
