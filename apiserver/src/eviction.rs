//! Evictions: deletions of pods that ask the disruption budgets first.

use http::Response;
use keelson_client::Body;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources;
use keelson_machinery::selector::LabelSelector;
use keelson_machinery::status::{Cause, Details, Status};
use keelson_store::Revision;
use serde_json::{Value, json};

use crate::access::{Admission, Operation};
use crate::objects::WriteError;
use crate::request::ResourceRequest;
use crate::verbs::Call;
use crate::{ApiServer, deletion, options, ownership, strategy};

/// Attempts while other writers come between.
const ATTEMPTS: usize = 5;
/// Seconds until a budget that is behind is asked again.
const RETRY_SECONDS: i32 = 10;
/// Most pods that a budget remembers as going.
const MAX_DISRUPTED_PODS: usize = 2000;
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// Evicts the pod that the request names.
pub async fn evict(server: &ApiServer, call: &Call<'_>) -> Result<Response<Body>, Status> {
    let request = call.request;
    options::check(call, "CreateOptions", false)?;
    let mut warnings = Vec::new();
    let mut eviction = read(server, call, &mut warnings)?;
    let mut given = delete_options(&eviction["deleteOptions"], request.query.all("dryRun"))?;
    let dry_run = deletion::is_dry_run(&given);
    server.fresh(None).await?;
    let (pod, _) = server.current(request)?.ok_or_else(|| call.not_found())?;
    let mut admission = Admission {
        operation: Operation::Create,
        def: request.def,
        subresource: &request.subresource,
        namespace: &request.namespace,
        name: &request.name,
        user: call.user,
        object: Some(&mut eviction),
        old: None,
        dry_run,
        warnings: &mut warnings,
    };
    server.admit(&mut admission).await?;
    if !needs_no_budget(&pod) {
        ask_budget(server, call, &pod, dry_run).await?;
    }
    deletion::validate(&given)?;
    if !dry_run {
        let revision = mark(server, call, &given).await?;
        // Who names a version means the one that the pod had until now.
        if given["preconditions"]["resourceVersion"].is_string() {
            given["preconditions"]["resourceVersion"] = revision.to_string().into();
        }
    }
    server.delete_with(call, &given).await?;
    let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    call.answer(201, &done, &warnings)
}

/// The options of the deletion; that nothing is to be stored may be said in the request, in the options or in both alike.
fn delete_options(given: &Value, asked: &[String]) -> Result<Value, Status> {
    let mut given = given.clone();
    if given.is_null() {
        given = json!({});
    }
    let said: Vec<&str> = given["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if said.is_empty() && !asked.is_empty() {
        given["dryRun"] = json!(asked);
    } else if !asked.is_empty() && said != *asked {
        let (asked, said) = (asked.join(" "), said.join(" "));
        return Err(Status::unknown(format!(
            "Non-matching dry-run options in request and content: [{asked}] and [{said}]"
        )));
    }
    Ok(given)
}

fn read(server: &ApiServer, call: &Call<'_>, warnings: &mut Vec<String>) -> Result<Value, Status> {
    let mut body = call.object()?;
    let eviction = &body.value;
    let text = |key: &str| eviction[key].as_str().unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let known = matches!(version, "" | "policy/v1" | "policy/v1beta1") && matches!(kind, "" | "Eviction");
    if !known {
        return Err(strategy::other_than(("policy", "Eviction"), call.request.def.group, version, kind));
    }
    server.conform_as(call, ("policy", "v1", "Eviction"), &mut body, warnings)?;
    if body.value["metadata"]["name"].as_str().unwrap_or_default() != call.request.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    Ok(body.value)
}

/// A pod that does not run, or goes already, disrupts nothing.
fn needs_no_budget(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"))
        || pod["metadata"]["deletionTimestamp"].is_string()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Takes one disruption off the pod's budget, or refuses.
async fn ask_budget(server: &ApiServer, call: &Call<'_>, pod: &Value, dry_run: bool) -> Result<(), Status> {
    let Some(def) = resources::find("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
    for _ in 0..ATTEMPTS {
        let mut matching = budgets(server, def, &call.request.namespace, pod)?;
        let Some((mut budget, revision)) = matching.pop() else { return Ok(()) };
        if !matching.is_empty() {
            return Err(Status::unknown(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
        if !is_ready(pod) && unhealthy_may_go(&budget) {
            return Ok(());
        }
        let before = budget.clone();
        take(&mut budget, &call.request.name, &strategy::now())?;
        ownership::track_as(
            &ResourceRequest::about(def, &before),
            "status",
            ownership::SERVER,
            Some(&before),
            &mut budget,
        );
        if dry_run {
            return Ok(());
        }
        match server.objects.put(def, &budget, revision, call.fence, Default::default()).await {
            Ok(_) => return Ok(()),
            Err(WriteError::Changed) => {}
            Err(WriteError::Status(status)) => return Err(status),
        }
    }
    Err(Status::too_many_requests(REFUSED, RETRY_SECONDS))
}

/// The budgets that cover a pod.
fn budgets(
    server: &ApiServer,
    def: &'static ResourceDef,
    namespace: &str,
    pod: &Value,
) -> Result<Vec<(Value, i64)>, Status> {
    let labels = &pod["metadata"]["labels"];
    let mut out = Vec::new();
    for kv in server.objects.kv.view().range(&crate::objects::Objects::range(def, namespace)) {
        let budget = crate::objects::parse(kv)?;
        let selector = &budget["spec"]["selector"];
        let covers = selector.is_object()
            && LabelSelector::from_object(selector).is_ok_and(|s| s.matches(|key| labels[key].as_str()));
        if covers {
            out.push((budget, kv.mod_revision));
        }
    }
    Ok(out)
}

/// Whether pods that are not ready may go without using up the budget.
fn unhealthy_may_go(budget: &Value) -> bool {
    let status = |key: &str| budget["status"][key].as_i64().unwrap_or(0);
    match budget["spec"]["unhealthyPodEvictionPolicy"].as_str() {
        Some("AlwaysAllow") => true,
        _ => status("currentHealthy") >= status("desiredHealthy") && status("desiredHealthy") > 0,
    }
}

fn refused(why: String, retry_after_seconds: i32) -> Status {
    let cause = Cause { reason: "DisruptionBudget".into(), message: why, field: String::new() };
    let details = Details { causes: vec![cause], retry_after_seconds, ..Details::default() };
    Status { details: Some(Box::new(details)), ..Status::too_many_requests(REFUSED, retry_after_seconds) }
}

/// Why a budget allows no disruption. Its numbers say nothing if they could not be counted.
fn why_none(status: &Value) -> String {
    const NOT_NOW: &str = "does not allow evicting pods currently";
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let told =
        conditions.filter(|c| c["type"] == "DisruptionAllowed" && c["status"] == "False").find_map(|condition| {
            let message = condition["message"].as_str().filter(|message| !message.is_empty())?;
            Some((condition["reason"].as_str().unwrap_or_default(), message))
        });
    let number = |key: &str| status[key].as_i64().unwrap_or(0);
    let (needed, healthy) = (number("desiredHealthy"), number("currentHealthy"));
    match told {
        Some(("SyncFailed", message)) => format!("{NOT_NOW} because it failed sync: {message}"),
        _ if healthy <= needed => format!("needs {needed} healthy pods and has {healthy} currently"),
        Some((reason, message)) => format!("{NOT_NOW} ({reason}): {message}"),
        None => NOT_NOW.into(),
    }
}

/// Notes in a budget that a pod goes.
fn take(budget: &mut Value, pod: &str, now: &str) -> Result<(), Status> {
    let name = budget["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let generation = budget["metadata"]["generation"].as_i64().unwrap_or(0);
    let status = &mut budget["status"];
    let number = |status: &Value, key: &str| status[key].as_i64().unwrap_or(0);
    if number(status, "observedGeneration") < generation {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refused(why, RETRY_SECONDS));
    }
    let allowed = number(status, "disruptionsAllowed");
    if allowed < 0 {
        return Err(Status::forbidden("policy", "poddisruptionbudget", &name, "pdb disruptions allowed is negative"));
    }
    if status["disruptedPods"].as_object().is_some_and(|pods| pods.len() > MAX_DISRUPTED_PODS) {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Status::forbidden("policy", "poddisruptionbudget", &name, why));
    }
    if allowed == 0 {
        return Err(refused(format!("The disruption budget {name} {}", why_none(status)), 0));
    }
    status["disruptionsAllowed"] = (allowed - 1).into();
    status["disruptedPods"][pod] = now.into();
    if allowed == 1 {
        let condition = json!({"type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
            "observedGeneration": generation, "lastTransitionTime": now});
        set_condition(status, condition);
    }
    Ok(())
}

/// Puts a condition in the place of the one of its type; it keeps its time if it said so already.
pub(crate) fn set_condition(status: &mut Value, condition: Value) {
    let mut list = status["conditions"].as_array().cloned().unwrap_or_default();
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(old) => {
            let since = old["lastTransitionTime"].clone();
            let same = old["status"] == condition["status"];
            *old = condition;
            if same {
                old["lastTransitionTime"] = since;
            }
        }
        None => list.push(condition),
    }
    status["conditions"] = list.into();
}

/// Writes into the pod why it goes, if it is the one that is meant. Gives the revision of that.
async fn mark(server: &ApiServer, call: &Call<'_>, given: &Value) -> Result<Revision, Status> {
    let request = call.request;
    for _ in 0..ATTEMPTS {
        let (mut pod, revision) = server.current(request)?.ok_or_else(|| call.not_found())?;
        deletion::preconditions(request.def, given, &pod)?;
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": strategy::now()});
        set_condition(&mut pod["status"], condition);
        match server.objects.put(request.def, &pod, revision, call.fence, Default::default()).await {
            Ok(written) => return Ok(written),
            Err(WriteError::Changed) => {}
            Err(WriteError::Status(status)) => return Err(status),
        }
    }
    Err(Status::modified("", "pods", &request.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_to_be_stored_is_said_alike() {
        let all = || vec!["All".to_owned()];
        for (given, asked, expected) in [
            (Value::Null, all(), Some(json!({"dryRun": ["All"]}))),
            (json!({"gracePeriodSeconds": 1}), Vec::new(), Some(json!({"gracePeriodSeconds": 1}))),
            (json!({"dryRun": ["All"]}), Vec::new(), Some(json!({"dryRun": ["All"]}))),
            (json!({"dryRun": ["All"]}), all(), Some(json!({"dryRun": ["All"]}))),
            (json!({"dryRun": ["Some"]}), all(), None),
        ] {
            assert_eq!(delete_options(&given, &asked).ok(), expected, "{given} {asked:?}");
        }
    }

    #[test]
    fn budgets_are_used_up() {
        let mut budget = json!({"metadata": {"name": "b", "generation": 1},
            "status": {"observedGeneration": 1, "disruptionsAllowed": 1, "desiredHealthy": 1, "currentHealthy": 2}});
        take(&mut budget, "p", "now").unwrap();
        assert_eq!(budget["status"]["disruptionsAllowed"], 0);
        assert_eq!(budget["status"]["disruptedPods"], json!({"p": "now"}));
        assert_eq!(budget["status"]["conditions"][0]["reason"], "InsufficientPods");
        assert_eq!(take(&mut budget, "q", "now").unwrap_err().code, 429);
        let failed = |reason: &str, message: &str| json!([{"type": "DisruptionAllowed", "status": "False", "reason": reason, "message": message}]);
        for (healthy, conditions, expected) in [
            (0, failed("SyncFailed", "boom"), "does not allow evicting pods currently because it failed sync: boom"),
            (0, failed("SyncFailed", ""), "needs 1 healthy pods and has 0 currently"),
            (1, failed("Other", "why"), "needs 1 healthy pods and has 1 currently"),
            (2, failed("Other", "why"), "does not allow evicting pods currently (Other): why"),
            (2, json!([]), "does not allow evicting pods currently"),
        ] {
            budget["status"]["conditions"] = conditions;
            budget["status"]["currentHealthy"] = healthy.into();
            let details = take(&mut budget, "q", "now").unwrap_err().details.unwrap();
            assert_eq!(details.causes[0].message, format!("The disruption budget b {expected}"));
        }
        budget["metadata"]["generation"] = 2.into();
        let details = take(&mut budget, "q", "now").unwrap_err().details.unwrap();
        assert_eq!(details.retry_after_seconds, RETRY_SECONDS);
    }
}
