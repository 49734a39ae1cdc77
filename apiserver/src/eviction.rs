//! Eviction: the deletion of a pod that its PodDisruptionBudget may refuse.
//!
//! Invariant: an eviction that a budget allows is first written into the budget, in one compare-and-set; so two evictions
//! at once never use the same allowance.

use http::Response;
use keelson_client::Body;
use keelson_machinery::selector::LabelSelector;
use keelson_machinery::status::{Cause, Status};
use serde_json::{Value, json};

use crate::objects::WriteError;
use crate::request::ResourceRequest;
use crate::verbs::Call;
use crate::{ApiServer, strategy};

/// Attempts of the budget's write when others write it too.
const ATTEMPTS: usize = 10;
/// Most pods whose eviction may be under way for one budget.
const MAX_DISRUPTED_PODS: usize = 2000;
/// Seconds after which a client tries again when the budget is not up to date.
const RETRY_SECONDS: i32 = 10;

type Answer = Result<Response<Body>, Status>;

/// What the budget's status says of another eviction.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    /// Refused: the cause, and seconds after which to try again.
    Refused(String, i32),
}

fn judge(budget: &Value) -> Verdict {
    let (name, status) = (budget["metadata"]["name"].as_str().unwrap_or_default(), &budget["status"]);
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    if number(&status["observedGeneration"]) < number(&budget["metadata"]["generation"]) {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Verdict::Refused(why, RETRY_SECONDS);
    }
    if number(&status["disruptionsAllowed"]) <= 0 {
        let (desired, healthy) = (number(&status["desiredHealthy"]), number(&status["currentHealthy"]));
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let failed = conditions.into_iter().any(|c| c["type"] == "DisruptionAllowed" && c["reason"] == "SyncFailed");
        let why = if failed || healthy > desired {
            format!("The disruption budget {name} does not allow evicting pods currently")
        } else {
            format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently")
        };
        return Verdict::Refused(why, 0);
    }
    if status["disruptedPods"].as_object().is_some_and(|d| d.len() > MAX_DISRUPTED_PODS) {
        return Verdict::Refused(
            format!("The disruption budget {name} has too many evictions under way"),
            RETRY_SECONDS,
        );
    }
    Verdict::Allowed
}

/// Whether a pod may go whatever its budget says: it has ended, goes already, or has not begun.
fn is_free(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"))
        || pod["metadata"]["deletionTimestamp"].is_string()
}

fn is_ready(pod: &Value) -> bool {
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Whether the budget lets a pod go that is not ready.
fn unready_may_go(budget: &Value) -> bool {
    let (status, always) = (&budget["status"], budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow");
    let number = |key: &str| status[key].as_i64().unwrap_or(0);
    always || (number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0)
}

fn refused(why: String, retry_after_seconds: i32) -> Status {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let mut status = Status::too_many_requests(message, retry_after_seconds);
    let cause = Cause { reason: "DisruptionBudget".into(), message: why, field: String::new() };
    let details = status.details.get_or_insert_default();
    details.causes.push(cause);
    status
}

/// Serves `pods/eviction`.
pub(crate) async fn evict(server: &ApiServer, call: &Call<'_>) -> Answer {
    let input = call.object()?.value;
    let kind = input["kind"].as_str().unwrap_or("Eviction");
    if kind != "Eviction" {
        let (version, kind) = (input["apiVersion"].as_str().unwrap_or_default(), kind);
        return Err(Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a Eviction: converting ({version}.{kind}) to \
             (policy.Eviction): unknown conversion"
        )));
    }
    let name = &call.request.name;
    if input["metadata"]["name"].as_str().is_some_and(|n| n != name) {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let request = ResourceRequest { subresource: String::new(), ..call.request.clone() };
    let Some((pod, _)) = server.current(&request)? else { return Err(Status::not_found("", "pods", name)) };
    let options = if input["deleteOptions"].is_object() { input["deleteOptions"].clone() } else { json!({}) };
    check_uid(&pod, &options)?;
    let dry_run = call.dry_run()? || options["dryRun"].as_array().is_some_and(|d| !d.is_empty());
    if !is_free(&pod) {
        charge(server, call, &pod, dry_run).await?;
    }
    if !dry_run {
        server.delete_named(call, &request, &options).await?;
    }
    let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    call.answer(201, &done, &[])
}

fn check_uid(pod: &Value, options: &Value) -> Result<(), Status> {
    let found = pod["metadata"]["uid"].as_str().unwrap_or_default();
    let Some(wanted) = options["preconditions"]["uid"].as_str().filter(|wanted| *wanted != found) else {
        return Ok(());
    };
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let why = format!(
        "the UID in the precondition ({wanted}) does not match the UID in record ({found}). The object might have been \
         deleted and then recreated"
    );
    Err(Status::conflict("", "Pod", name, &why))
}

/// The budgets that choose a pod.
fn budgets(server: &ApiServer, pod: &Value) -> Result<Vec<Value>, Status> {
    let Some(def) = keelson_machinery::resources::find("policy", "v1", "poddisruptionbudgets") else {
        return Ok(Vec::new());
    };
    let mut all = server.objects.list(def, pod["metadata"]["namespace"].as_str().unwrap_or_default())?;
    let labels = &pod["metadata"]["labels"];
    all.retain(|b| {
        b["spec"]["selector"].is_object()
            && LabelSelector::from_object(&b["spec"]["selector"]).is_ok_and(|s| s.matches(|k| labels[k].as_str()))
    });
    Ok(all)
}

/// Charges the pod's budget with the eviction, if the budget allows it.
async fn charge(server: &ApiServer, call: &Call<'_>, pod: &Value, dry_run: bool) -> Result<(), Status> {
    let found = budgets(server, pod)?;
    let [budget] = &found[..] else {
        if found.is_empty() {
            return Ok(());
        }
        let message =
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        return Err(Status { reason: String::new(), details: None, message: message.into(), ..Status::internal("") });
    };
    let def =
        keelson_machinery::resources::find("policy", "v1", "poddisruptionbudgets").ok_or_else(Status::no_such_path)?;
    let text = |value: &Value, key: &str| value["metadata"][key].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text(budget, "namespace"), text(budget, "name"));
    for _ in 0..ATTEMPTS {
        let Some((mut budget, revision)) = server.objects.get(def, &namespace, &name)? else { return Ok(()) };
        if !is_ready(pod) && unready_may_go(&budget) {
            return Ok(());
        }
        if let Verdict::Refused(why, retry) = judge(&budget) {
            return Err(refused(why, retry));
        }
        if dry_run {
            return Ok(());
        }
        let allowed = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(1);
        budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
        if !budget["status"]["disruptedPods"].is_object() {
            budget["status"]["disruptedPods"] = json!({});
        }
        budget["status"]["disruptedPods"][text(pod, "name")] = strategy::now().into();
        match server.objects.put(def, &budget, revision, call.fence, Default::default()).await {
            Ok(_) => return Ok(()),
            Err(WriteError::Changed) => {}
            Err(WriteError::Status(status)) => return Err(status),
        }
    }
    Err(Status::modified("policy", "poddisruptionbudgets", &name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(status: Value) -> Value {
        json!({"metadata": {"name": "p", "generation": 1}, "spec": {}, "status": status})
    }

    #[test]
    fn budgets_allow_and_refuse() {
        for (status, expected) in [
            (json!({"observedGeneration": 1, "disruptionsAllowed": 1}), Verdict::Allowed),
            (json!({}), Verdict::Refused("The disruption budget p is still being processed by the server.".into(), 10)),
            (
                json!({"observedGeneration": 1, "disruptionsAllowed": 0, "desiredHealthy": 2, "currentHealthy": 2}),
                Verdict::Refused("The disruption budget p needs 2 healthy pods and has 2 currently".into(), 0),
            ),
            (
                json!({"observedGeneration": 1, "disruptionsAllowed": 0, "desiredHealthy": 1, "currentHealthy": 2}),
                Verdict::Refused("The disruption budget p does not allow evicting pods currently".into(), 0),
            ),
        ] {
            assert_eq!(judge(&budget(status.clone())), expected, "{status}");
        }
    }

    #[test]
    fn pods_that_nobody_misses_are_free() {
        for (pod, expected) in [
            (json!({"status": {"phase": "Running"}}), false),
            (json!({"status": {"phase": "Pending"}}), true),
            (json!({"status": {"phase": "Failed"}}), true),
            (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}}), true),
        ] {
            assert_eq!(is_free(&pod), expected, "{pod}");
        }
        let status = |healthy: i64| budget(json!({"desiredHealthy": 2, "currentHealthy": healthy}));
        assert!(unready_may_go(&status(2)) && !unready_may_go(&status(1)));
    }
}
