//! Deployments, replica sets, replication controllers, stateful sets, daemon sets, jobs and cron jobs.

use serde_json::Value;

use super::common::{
    conditions, controller, events, labels_at, list, marks, names, on_a_line, owner, selector, selector_or_none,
};
use super::pod::{template, yes};
use super::sheet::{Sheet, row};
use crate::failure::Outcome;
use crate::session::Session;
use crate::value::{Read, amount, between, date, human, or};

/// How many pods of a controller are in which phase, as a description's line.
pub async fn phases(session: &Session, object: &Value) -> Outcome<String> {
    let spec = &object["spec"]["selector"];
    let selector = if spec["matchLabels"].is_there() || spec["matchExpressions"].is_there() {
        selector(spec)
    } else {
        spec.pairs().into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
    };
    let path = format!("/api/v1/namespaces/{}/pods", object["metadata"]["namespace"].text());
    let pods = list(session, &path, &[("labelSelector", &selector)]).await?;
    let uid = &object["metadata"]["uid"];
    let count = |phase: &str| {
        let own = |p: &&Value| owner(p).is_some_and(|o| o["uid"] == *uid) && p["status"]["phase"] == phase;
        pods.iter().filter(own).count()
    };
    Ok(format!(
        "{} Running / {} Waiting / {} Succeeded / {} Failed",
        count("Running"),
        count("Pending"),
        count("Succeeded"),
        count("Failed")
    ))
}

/// Describes a deployment; `sets` are its replica sets.
pub fn deployment(w: &mut Sheet, object: &Value, sets: &[Value], found: Option<Vec<Value>>) {
    let (spec, status) = (&object["spec"], &object["status"]);
    names(w, object);
    row!(w, 0, "CreationTimestamp:\t{}", date(&object["metadata"]["creationTimestamp"]));
    marks(w, object);
    row!(w, 0, "Selector:\t{}", selector(&spec["selector"]));
    row!(
        w,
        0,
        "Replicas:\t{} desired | {} updated | {} total | {} available | {} unavailable",
        spec["replicas"].number(),
        status["updatedReplicas"].number(),
        status["replicas"].number(),
        status["availableReplicas"].number(),
        status["unavailableReplicas"].number()
    );
    row!(w, 0, "StrategyType:\t{}", spec["strategy"]["type"].text());
    row!(w, 0, "MinReadySeconds:\t{}", spec["minReadySeconds"].number());
    let rolling = &spec["strategy"]["rollingUpdate"];
    if rolling.is_there() {
        let (down, up) = (rolling["maxUnavailable"].shown(), rolling["maxSurge"].shown());
        row!(w, 0, "RollingUpdateStrategy:\t{down} max unavailable, {up} max surge");
    }
    template(w, &spec["template"]);
    conditions(w, object);
    replica_sets(w, object, sets);
    events(w, found);
}

fn replica_sets(w: &mut Sheet, object: &Value, sets: &[Value]) {
    let mut own: Vec<&Value> =
        sets.iter().filter(|s| owner(s).is_some_and(|o| o["uid"] == object["metadata"]["uid"])).collect();
    own.sort_by(|a, b| {
        let key =
            |s: &Value| (s["metadata"]["creationTimestamp"].text().to_owned(), s["metadata"]["name"].text().to_owned());
        key(a).cmp(&key(b))
    });
    if own.is_empty() {
        return;
    }
    let is_new = |set: &Value| {
        let mut template = set["spec"]["template"].clone();
        if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
            labels.remove("pod-template-hash");
        }
        template == object["spec"]["template"]
    };
    let new = own.iter().position(|set| is_new(set));
    let text = |sets: Vec<&Value>| {
        let one = |s: &Value| {
            let (have, want) = (s["status"]["replicas"].number(), s["spec"]["replicas"].number());
            format!("{} ({have}/{want} replicas created)", s["metadata"]["name"].text())
        };
        or(&sets.into_iter().map(one).collect::<Vec<_>>().join(", "), "<none>").to_owned()
    };
    let old = own.iter().enumerate().filter(|(at, _)| Some(*at) != new).map(|(_, s)| *s).collect();
    row!(w, 0, "OldReplicaSets:\t{}", text(old));
    row!(w, 0, "NewReplicaSet:\t{}", text(new.map(|at| own[at]).into_iter().collect()));
}

/// Describes a replica set or a replication controller.
pub fn replicas(w: &mut Sheet, object: &Value, phases: &str, found: Option<Vec<Value>>) {
    let (spec, status) = (&object["spec"], &object["status"]);
    names(w, object);
    let is_set = object["kind"] == "ReplicaSet";
    let selector = if is_set { selector_or_none(&spec["selector"]) } else { on_a_line(&spec["selector"]) };
    row!(w, 0, "Selector:\t{selector}");
    marks(w, object);
    if is_set {
        controller(w, object);
    }
    row!(w, 0, "Replicas:\t{} current / {} desired", status["replicas"].number(), spec["replicas"].number());
    row!(w, 0, "Pods Status:\t{phases}");
    template(w, &spec["template"]);
    conditions(w, object);
    events(w, found);
}

/// Describes a stateful set.
pub fn stateful_set(w: &mut Sheet, object: &Value, phases: &str, found: Option<Vec<Value>>) {
    let spec = &object["spec"];
    names(w, object);
    row!(w, 0, "CreationTimestamp:\t{}", date(&object["metadata"]["creationTimestamp"]));
    row!(w, 0, "Selector:\t{}", selector(&spec["selector"]));
    marks(w, object);
    let (want, have) = (spec["replicas"].number(), object["status"]["replicas"].number());
    row!(w, 0, "Replicas:\t{want} desired | {have} total");
    row!(w, 0, "Update Strategy:\t{}", spec["updateStrategy"]["type"].text());
    let rolling = &spec["updateStrategy"]["rollingUpdate"];
    if rolling["partition"].is_there() {
        row!(w, 1, "Partition:\t{}", rolling["partition"].number());
        if rolling["maxUnavailable"].is_there() {
            row!(w, 1, "MaxUnavailable:\t{}", rolling["maxUnavailable"].shown());
        }
    }
    row!(w, 0, "Pods Status:\t{phases}");
    template(w, &spec["template"]);
    claims(w, spec["volumeClaimTemplates"].items());
    events(w, found);
}

fn claims(w: &mut Sheet, claims: &[Value]) {
    if claims.is_empty() {
        row!(w, 0, "Volume Claims:\t<none>");
        return;
    }
    row!(w, 0, "Volume Claims:");
    for claim in claims {
        row!(w, 1, "Name:\t{}", claim["metadata"]["name"].text());
        row!(w, 1, "StorageClass:\t{}", claim["spec"]["storageClassName"].text());
        labels_at(w, "  ", "Labels", &claim["metadata"]["labels"]);
        labels_at(w, "  ", "Annotations", &claim["metadata"]["annotations"]);
        let storage = &claim["spec"]["resources"]["requests"]["storage"];
        let capacity = if storage.is_there() { amount(storage) } else { "<default>".into() };
        row!(w, 1, "Capacity:\t{capacity}");
        row!(w, 1, "Access Modes:\t[{}]", claim["spec"]["accessModes"].texts().join(" "));
    }
}

/// Describes a daemon set.
pub fn daemon_set(w: &mut Sheet, object: &Value, phases: &str, found: Option<Vec<Value>>) {
    let (spec, status) = (&object["spec"], &object["status"]);
    names(w, object);
    row!(w, 0, "Selector:\t{}", selector(&spec["selector"]));
    row!(w, 0, "Node-Selector:\t{}", on_a_line(&spec["template"]["spec"]["nodeSelector"]));
    marks(w, object);
    for (label, field) in [
        ("Desired Number of Nodes Scheduled", "desiredNumberScheduled"),
        ("Current Number of Nodes Scheduled", "currentNumberScheduled"),
        ("Number of Nodes Scheduled with Up-to-date Pods", "updatedNumberScheduled"),
        ("Number of Nodes Scheduled with Available Pods", "numberAvailable"),
        ("Number of Nodes Misscheduled", "numberMisscheduled"),
    ] {
        row!(w, 0, "{label}: {}", status[field].number());
    }
    row!(w, 0, "Pods Status:\t{phases}");
    template(w, &spec["template"]);
    events(w, found);
}

/// Describes a job.
pub fn job(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    let (spec, status) = (&object["spec"], &object["status"]);
    names(w, object);
    row!(w, 0, "Selector:\t{}", selector(&spec["selector"]));
    marks(w, object);
    controller(w, object);
    if spec["parallelism"].is_there() {
        row!(w, 0, "Parallelism:\t{}", spec["parallelism"].number());
    }
    row!(w, 0, "Completions:\t{}", or(&spec["completions"].shown(), "<unset>"));
    for (label, field) in [
        ("Completion Mode", "completionMode"),
        ("Suspend", "suspend"),
        ("Backoff Limit", "backoffLimit"),
        ("TTL Seconds After Finished", "ttlSecondsAfterFinished"),
    ] {
        if spec[field].is_there() {
            row!(w, 0, "{label}:\t{}", spec[field].shown());
        }
    }
    let (start, end) = (&status["startTime"], &status["completionTime"]);
    for (label, time) in [("Start Time", start), ("Completed At", end)] {
        if time.is_there() {
            row!(w, 0, "{label}:\t{}", date(time));
        }
    }
    if start.is_there() && end.is_there() {
        row!(w, 0, "Duration:\t{}", human(between(start, end)));
    }
    if spec["activeDeadlineSeconds"].is_there() {
        row!(w, 0, "Active Deadline Seconds:\t{}s", spec["activeDeadlineSeconds"].number());
    }
    let ready = match status["ready"].is_there() {
        true => format!(" ({} Ready)", status["ready"].number()),
        false => String::new(),
    };
    let count = |field: &str| status[field].number();
    let (active, succeeded, failed) = (count("active"), count("succeeded"), count("failed"));
    row!(w, 0, "Pods Statuses:\t{active} Active{ready} / {succeeded} Succeeded / {failed} Failed");
    if spec["completionMode"] == "Indexed" {
        row!(w, 0, "Completed Indexes:\t{}", indexes(status["completedIndexes"].text()));
    }
    template(w, &spec["template"]);
    events(w, found);
}

/// A list of indexes, cut after the first comma behind so many letters.
fn indexes(list: &str) -> String {
    const SOFT_LIMIT: usize = 50;
    match list.get(SOFT_LIMIT..).and_then(|rest| rest.find(',')) {
        _ if list.is_empty() => "<none>".into(),
        Some(at) => format!("{}...", &list[..=SOFT_LIMIT + at]),
        None => list.to_owned(),
    }
}

/// Describes a cron job.
pub fn cron_job(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    let (spec, status) = (&object["spec"], &object["status"]);
    names(w, object);
    marks(w, object);
    row!(w, 0, "Schedule:\t{}", spec["schedule"].text());
    row!(w, 0, "Concurrency Policy:\t{}", spec["concurrencyPolicy"].text());
    row!(w, 0, "Suspend:\t{}", if spec["suspend"].is_there() { yes(&spec["suspend"]) } else { "<unset>" });
    let unset = |value: &Value| or(&value.shown(), "<unset>").to_owned();
    row!(w, 0, "Successful Job History Limit:\t{}", unset(&spec["successfulJobsHistoryLimit"]));
    row!(w, 0, "Failed Job History Limit:\t{}", unset(&spec["failedJobsHistoryLimit"]));
    let deadline = &spec["startingDeadlineSeconds"];
    let seconds = if deadline.is_there() { format!("{}s", deadline.number()) } else { "<unset>".into() };
    row!(w, 0, "Starting Deadline Seconds:\t{seconds}");
    let job = &spec["jobTemplate"]["spec"];
    row!(w, 0, "Selector:\t{}", if job["selector"].is_there() { selector(&job["selector"]) } else { "<unset>".into() });
    row!(w, 0, "Parallelism:\t{}", unset(&job["parallelism"]));
    row!(w, 0, "Completions:\t{}", unset(&job["completions"]));
    if job["activeDeadlineSeconds"].is_there() {
        row!(w, 0, "Active Deadline Seconds:\t{}s", job["activeDeadlineSeconds"].number());
    }
    template(w, &job["template"]);
    let last = &status["lastScheduleTime"];
    row!(w, 0, "Last Schedule Time:\t{}", if last.is_there() { date(last) } else { "<unset>".into() });
    let active: Vec<&str> = status["active"].items().iter().map(|j| j["name"].text()).collect();
    row!(w, 0, "Active Jobs:\t{}", or(&active.join(", "), "<none>"));
    events(w, found);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_of_indexes_are_cut() {
        assert_eq!(indexes(""), "<none>");
        assert_eq!(indexes("0,1,2"), "0,1,2");
        let long = "1000,".repeat(20);
        assert_eq!(indexes(&long), format!("{}...", "1000,".repeat(11)));
    }
}
