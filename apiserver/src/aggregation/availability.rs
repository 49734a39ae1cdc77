//! Follows the APIServices and their backends, and says whether they can be asked.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::{HeaderMap, Method, header};
use http_body_util::BodyExt;
use keelson_machinery::resources::find;
use keelson_store::{KeyRange, WatchRequest};
use serde_json::{Value, json};

use super::{GROUP, Remote, aggregator, available, local, proxy, specs};
use crate::{ApiServer, crd, strategy};

/// How often a backend is asked that is well, and one that is not.
const INTERVALS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));
/// Changes that come within this are taken together.
const GATHER: Duration = Duration::from_millis(50);
/// A backend must answer a check within this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest discovery document, bytes.
const MAX_DOCUMENT_BYTES: usize = 4 << 20;
/// Backends checked at once.
const CHECKS_AT_ONCE: usize = 16;

/// Starts the task that keeps the table and the conditions.
pub fn start(server: &Arc<ApiServer>) {
    let (server, stop) = (server.clone(), server.stop.clone());
    tokio::spawn(async move { stop.run_until_cancelled(follow(server)).await });
}

/// What a change may concern: APIServices and definitions.
fn ranges() -> [KeyRange; 2] {
    let services = find(GROUP, "v1", "apiservices").map(|def| def.prefix()).unwrap_or_default();
    [KeyRange::prefix(services), crd::range()]
}

async fn follow(server: Arc<ApiServer>) {
    loop {
        let start_revision = server.objects.kv.view().revision() + 1;
        let watches = ranges().map(|range| server.objects.kv.watch(WatchRequest::new(range, start_revision)));
        let [Ok(services), Ok(definitions)] = watches else {
            tokio::time::sleep(INTERVALS.1).await;
            continue;
        };
        let mut changes = futures::stream::select(services, definitions);
        loop {
            let pause = settle(&server).await;
            match tokio::time::timeout(pause, changes.next()).await {
                Ok(Some(Ok(_))) => tokio::time::sleep(GATHER).await,
                Ok(_) => break,
                Err(_) => {}
            }
        }
        tokio::time::sleep(INTERVALS.1).await;
    }
}

/// Does what is due; gives how long there is nothing to do unless something changes.
async fn settle(server: &Arc<ApiServer>) -> Duration {
    let leads = server.objects.kv.status().is_leader;
    let mut well = !leads || local::settle(server).await;
    server.aggregated.refresh(&server.objects);
    let rows = server.aggregated.all();
    let one = |(server, row): (Arc<ApiServer>, Arc<Remote>)| async move {
        let found = check(&server, &row).await;
        let passed = found.is_ok();
        if passed {
            specs::refresh(&server, &row).await;
        }
        (passed, tell(&server, &row, found).await)
    };
    let checks: Vec<_> = rows.iter().map(|row| one((server.clone(), row.clone()))).collect();
    let results: Vec<(bool, bool)> = futures::stream::iter(checks).buffer_unordered(CHECKS_AT_ONCE).collect().await;
    well &= results.iter().all(|(passed, told)| *passed && *told);
    if results.is_empty() && well && leads {
        return Duration::from_secs(3600);
    }
    // Who does not lead may do so later: a server that starts does not yet, and nothing tells of it here.
    if well { INTERVALS.0 } else { INTERVALS.1 }
}

/// Why a backend cannot be asked: reason and message of the condition.
type Problem = (&'static str, String);

async fn check(server: &ApiServer, row: &Remote) -> Result<(), Problem> {
    reachable(server, row)?;
    let path = format!("/apis/{}", row.group_version());
    let url = || format!("https://{}.{}.svc:{}{path}", row.service, row.namespace, row.port);
    let failed = |why: String| ("FailedDiscoveryCheck", format!("failing or missing response from {}: {why}", url()));
    let document = match tokio::time::timeout(PATIENCE, get(server, row, &path)).await {
        Ok(result) => result.map_err(failed)?,
        Err(_) => return Err(failed(format!("Get {:?}: context deadline exceeded", url()))),
    };
    row.resources.store(Arc::new(resources(&document)));
    Ok(())
}

/// Whether there is a Service with the port, and something behind it.
fn reachable(server: &ApiServer, row: &Remote) -> Result<(), Problem> {
    let (namespace, name) = (row.namespace.as_str(), row.service.as_str());
    let Some(service) = server.objects.object("", "v1", "services", namespace, name) else {
        return Err(("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")));
    };
    if service["spec"]["type"] == "ExternalName" {
        return Ok(());
    }
    let mut ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let Some(port) = ports.find(|port| port["port"] == row.port) else {
        let what = format!("service/{name} in {namespace:?} is not listening on port {}", row.port);
        return Err(("ServicePortError", what));
    };
    let slices = find("discovery.k8s.io", "v1", "endpointslices").map(|def| server.objects.all(def, namespace));
    let own = |slice: &&Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == name;
    let slices: Vec<Value> = slices.unwrap_or_default().into_iter().filter(|slice| own(&slice)).collect();
    if slices.is_empty() {
        let what = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return Err(("EndpointsNotFound", what));
    }
    let port_name = port["name"].as_str().unwrap_or_default();
    let live = slices.iter().any(|slice| {
        let mut ports = slice["ports"].as_array().into_iter().flatten();
        let mut endpoints = slice["endpoints"].as_array().into_iter().flatten();
        ports.any(|port| port["name"].as_str().unwrap_or_default() == port_name)
            && endpoints.any(|endpoint| endpoint["conditions"]["ready"] != false)
    });
    if live {
        return Ok(());
    }
    let what =
        format!("endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}");
    Err(("MissingEndpoints", what))
}

/// A document of the backend, asked for by the aggregator itself.
async fn get(server: &ApiServer, row: &Remote, path: &str) -> Result<Value, String> {
    let user = aggregator();
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, header::HeaderValue::from_static("application/json"));
    let request = proxy::Passed { method: &Method::GET, headers: &headers, path, body: Default::default(), peer: None };
    let response = proxy::send(server, row, &user, request, None).await?;
    let code = response.status();
    let body = http_body_util::Limited::new(response.into_body(), MAX_DOCUMENT_BYTES).collect().await;
    let bytes = body.map_err(|e| e.to_string())?.to_bytes();
    if !code.is_success() {
        return Err(format!("bad status from {path}: {}", code.as_u16()));
    }
    serde_json::from_slice(&bytes).map_err(|e| e.to_string())
}

/// The resources of an APIResourceList as aggregated discovery lists them.
fn resources(list: &Value) -> Value {
    let (group, version) = list["groupVersion"].as_str().and_then(|gv| gv.split_once('/')).unwrap_or_default();
    let kind = |of: &Value| {
        let text = |key: &str, other: &str| match of[key].as_str() {
            Some(text) if !text.is_empty() => text.to_owned(),
            _ => other.to_owned(),
        };
        json!({"group": text("group", group), "version": text("version", version), "kind": of["kind"]})
    };
    let all: Vec<&Value> = list["resources"].as_array().into_iter().flatten().collect();
    let mut out: Vec<Value> = Vec::new();
    for of in &all {
        let name = of["name"].as_str().unwrap_or_default();
        if let Some((parent, sub)) = name.split_once('/') {
            let entry = json!({"subresource": sub, "responseKind": kind(of), "verbs": of["verbs"]});
            let Some(parent) = out.iter_mut().find(|r| r["resource"] == parent) else { continue };
            match parent["subresources"].as_array_mut() {
                Some(list) => list.push(entry),
                None => parent["subresources"] = json!([entry]),
            }
            continue;
        }
        let scope = if of["namespaced"] == true { "Namespaced" } else { "Cluster" };
        let mut made = json!({"resource": name, "responseKind": kind(of), "scope": scope,
            "singularResource": of["singularName"], "verbs": of["verbs"]});
        for key in ["shortNames", "categories"] {
            if of[key].is_array() {
                made[key] = of[key].clone();
            }
        }
        out.push(made);
    }
    out.into()
}

/// Writes the condition, if this member leads and it is another; whether it is as it should be now.
async fn tell(server: &Arc<ApiServer>, row: &Remote, found: Result<(), Problem>) -> bool {
    if !server.objects.kv.status().is_leader {
        return true;
    }
    let Some(object) = server.objects.object(GROUP, "v1", "apiservices", "", &row.name()) else { return true };
    let (status, reason, message) = match found {
        Ok(()) => ("True", "Passed", "all checks passed".to_owned()),
        Err((reason, message)) => ("False", reason, message),
    };
    let known = available(&object);
    if known.is_some_and(|c| c["status"] == status && c["reason"] == reason && c["message"] == message) {
        return true;
    }
    let since = known.filter(|c| c["status"] == status).map(|c| c["lastTransitionTime"].clone());
    let condition = json!({"type": "Available", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since.unwrap_or_else(|| strategy::now().into())});
    let body = json!({"metadata": {"uid": object["metadata"]["uid"]}, "status": {"conditions": [condition]}});
    let path = format!("/apis/{GROUP}/v1/apiservices/{}/status", row.name());
    matches!(crd::controller::call(server, Method::PATCH, &path, Some(&body)).await, 200..300 | 404 | 409)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_resources_become_aggregated_ones() {
        let list = json!({"groupVersion": "g/v1", "resources": [
            {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get"], "shortNames": ["t"]},
            {"name": "things/scale", "singularName": "", "namespaced": true, "kind": "Scale", "group": "autoscaling", "version": "v1", "verbs": ["get"]}]});
        assert_eq!(
            resources(&list),
            json!([{"resource": "things", "singularResource": "thing", "scope": "Namespaced", "verbs": ["get"], "shortNames": ["t"],
                "responseKind": {"group": "g", "version": "v1", "kind": "Thing"},
                "subresources": [{"subresource": "scale", "verbs": ["get"],
                    "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}}]}])
        );
    }
}
