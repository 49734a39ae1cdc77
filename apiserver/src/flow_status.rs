//! Says of each FlowSchema whether the priority level that it names exists, in its status.
//!
//! Every member runs this; what one has written the others see and leave alone.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use keelson_machinery::resources::find;
use keelson_store::{KeyRange, WatchRequest};
use serde_json::{Value, json};

use crate::{ApiServer, crd, strategy};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// The manager of the condition, upstream's name.
const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";
/// Pause before what was not done is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Starts the task that keeps the conditions.
pub fn start(server: &Arc<ApiServer>) {
    let (server, stop) = (server.clone(), server.stop.clone());
    tokio::spawn(async move { stop.run_until_cancelled(follow(server)).await });
}

async fn follow(server: Arc<ApiServer>) {
    loop {
        let start_revision = server.objects.kv.view().revision() + 1;
        let range = KeyRange::prefix(format!("/registry/{GROUP}/"));
        let Ok(mut watch) = server.objects.kv.watch(WatchRequest::new(range, start_revision)) else {
            tokio::time::sleep(RETRY).await;
            continue;
        };
        let mut done = settle(&server).await;
        loop {
            let batch = match done {
                true => watch.next().await,
                false => match tokio::time::timeout(RETRY, watch.next()).await {
                    Ok(batch) => batch,
                    Err(_) => {
                        done = settle(&server).await;
                        continue;
                    }
                },
            };
            match batch {
                Some(Ok(batch)) if batch.events.is_empty() => {}
                Some(Ok(_)) => done = settle(&server).await,
                _ => break,
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Writes the conditions that are not as they should be; whether all are now.
async fn settle(server: &Arc<ApiServer>) -> bool {
    let (Some(schemas), Some(levels)) =
        (find(GROUP, "v1", "flowschemas"), find(GROUP, "v1", "prioritylevelconfigurations"))
    else {
        return true;
    };
    let mut done = true;
    for schema in server.objects.all(schemas, "") {
        let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
        let exists = server.objects.find(levels, "", level).is_some();
        let Some(condition) = wanted(&schema, level, exists) else { continue };
        let name = schema["metadata"]["name"].as_str().unwrap_or_default();
        let body = json!({"apiVersion": format!("{GROUP}/v1"), "kind": "FlowSchema",
            "metadata": {"name": name, "uid": schema["metadata"]["uid"]}, "status": {"conditions": [condition]}});
        let path = format!("/apis/{GROUP}/v1/flowschemas/{name}/status?fieldManager={MANAGER}&force=true");
        let code = crd::controller::apply(server, &path, &body).await;
        done &= matches!(code, 200..300 | 404 | 409);
    }
    done
}

/// The condition that a schema lacks.
fn wanted(schema: &Value, level: &str, exists: bool) -> Option<Value> {
    let conditions = schema["status"]["conditions"].as_array();
    let known = conditions.into_iter().flatten().find(|c| c["type"] == "Dangling");
    let (status, reason, what) = match exists {
        true => ("False", "Found", "and it exists"),
        false => ("True", "NotFound", "but there is no such object"),
    };
    let message = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {what}");
    if known.is_some_and(|c| c["status"] == status && c["reason"] == reason && c["message"] == message) {
        return None;
    }
    let since = known.filter(|c| c["status"] == status).map(|c| c["lastTransitionTime"].clone());
    let since = since.unwrap_or_else(|| strategy::now().into());
    Some(json!({"type": "Dangling", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_written_when_it_changes() {
        let schema = |condition: Value| json!({"status": {"conditions": [condition]}});
        let first = wanted(&json!({}), "low", false).unwrap();
        assert_eq!((&first["status"], &first["reason"]), (&json!("True"), &json!("NotFound")));
        assert!(wanted(&schema(first.clone()), "low", false).is_none(), "it is there already");
        let found = wanted(&schema(first.clone()), "low", true).unwrap();
        assert_eq!(found["status"], "False");
        let other = json!({"type": "Dangling", "status": "True", "lastTransitionTime": "t"});
        assert_eq!(wanted(&schema(other), "low", false).unwrap()["lastTransitionTime"], "t", "the status is the same");
    }
}
