//! What the server itself keeps up to date in stored objects: whether FlowSchemas name priority levels that exist.
//!
//! Every member runs this; a write names the version that it was decided on, so of several members one writes and the
//! others see that nothing is left to do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources;
use keelson_machinery::status::Status;
use keelson_store::{KeyRange, WatchRequest};
use serde_json::{Value, json};

use crate::objects::WriteError;
use crate::request::ResourceRequest;
use crate::{ApiServer, ownership, strategy};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Who is said to have written the condition.
const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";
/// Pause after a round that failed.
const RETRY: Duration = Duration::from_millis(500);

/// Starts what goes on as long as the server runs.
pub fn start(server: &Arc<ApiServer>) {
    let (server, stop) = (server.clone(), server.stop.clone());
    tokio::spawn(async move { stop.run_until_cancelled(follow(&server)).await });
}

/// Looks again whenever a FlowSchema or a priority level has changed.
async fn follow(server: &ApiServer) {
    loop {
        let revision = server.objects.kv.view().revision();
        if let Err(status) = round(server).await {
            tracing::debug!(%status, "flow schemas are looked at again");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        let range = KeyRange::prefix(format!("/registry/{GROUP}/"));
        match server.objects.kv.watch(WatchRequest { range, start_revision: revision + 1 }) {
            Ok(mut watch) => match watch.next().await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => tokio::time::sleep(RETRY).await,
            },
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn round(server: &ApiServer) -> Result<(), Status> {
    let row = |plural| resources::find(GROUP, "v1", plural);
    let (Some(schemas), Some(levels)) = (row("flowschemas"), row("prioritylevelconfigurations")) else { return Ok(()) };
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let there: BTreeSet<String> = server.objects.all(levels, "").iter().map(name).collect();
    for schema in server.objects.all(schemas, "") {
        let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
        if let Some(condition) = dangling(&schema, level, there.contains(level), &strategy::now()) {
            write(server, schemas, &schema, condition).await?;
        }
    }
    Ok(())
}

/// The condition that a FlowSchema lacks; `None` if it has the right one.
fn dangling(schema: &Value, level: &str, exists: bool, now: &str) -> Option<Value> {
    let what = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = match exists {
        true => ("False", "Found", format!("{what} and it exists")),
        false => ("True", "NotFound", format!("{what} but there is no such object")),
    };
    let mut since = json!(now);
    let conditions = schema["status"]["conditions"].as_array().into_iter().flatten();
    if let Some(old) = conditions.into_iter().find(|c| c["type"] == "Dangling") {
        if old["status"] == status && old["reason"] == reason && old["message"] == message.as_str() {
            return None;
        }
        if old["status"] == status {
            since = old["lastTransitionTime"].clone();
        }
    }
    Some(json!({
        "type": "Dangling", "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
    }))
}

async fn write(server: &ApiServer, def: &'static ResourceDef, schema: &Value, condition: Value) -> Result<(), Status> {
    let config = json!({
        "apiVersion": def.api_version(), "kind": def.kind, "metadata": {"name": schema["metadata"]["name"]},
        "status": {"conditions": [condition]},
    });
    let request = ResourceRequest::about(def, schema);
    let new = ownership::apply_as(&request, "status", MANAGER, Some(schema), &config, true)?;
    let revision = schema["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or_default();
    match server.objects.put(def, &new, revision, None, Default::default()).await {
        Ok(_) => Ok(()),
        Err(WriteError::Changed) => Err(Status::modified(def.group, def.plural, &request.name)),
        Err(WriteError::Status(status)) => Err(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_dangles_without_its_level() {
        let schema = json!({"status": {}});
        let lost = dangling(&schema, "x", false, "t1").unwrap();
        assert_eq!((&lost["status"], &lost["reason"]), (&json!("True"), &json!("NotFound")));
        let schema = json!({"status": {"conditions": [lost]}});
        assert_eq!(dangling(&schema, "x", false, "t2"), None);
        let found = dangling(&schema, "x", true, "t2").unwrap();
        assert_eq!((&found["status"], &found["lastTransitionTime"]), (&json!("False"), &json!("t2")));
    }
}
