//! Tokens of service accounts that are kept as Secrets: the day on which one was used last is noted on its Secret, and one
//! that was marked as invalid for lack of use is refused.
//!
//! Every member notes what it is shown; a label that says today's date already is left alone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::resources::find;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{ApiServer, crd};

/// Label: the day of a token's last use.
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// Label: the day from which a token is not accepted.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Where it says since when uses are noted.
const TRACKING: (&str, &str) = ("kube-system", "kube-apiserver-legacy-service-account-token-tracking");
const KIND: &str = "kubernetes.io/service-account-token";
/// Pause before what was not done is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Uses that wait to be noted; the next use of a token that was left out is noted instead.
const WAITING: usize = 4096;

/// Uses that are to be noted.
#[derive(Default)]
pub struct Uses {
    waiting: Mutex<BTreeSet<(String, String)>>,
    wake: Notify,
}

fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

/// Whether `token` is the one that the Secret keeps.
fn keeps(secret: &Value, token: &str) -> bool {
    let kept = secret["data"]["token"].as_str().and_then(|text| STANDARD.decode(text).ok());
    secret["type"] == KIND && kept.is_some_and(|kept| kept == token.as_bytes())
}

impl Uses {
    /// A token was shown that is bound to a Secret: refuses it if it was marked as invalid, and notes the use of one that the
    /// Secret keeps.
    pub fn shown(&self, secret: &Value, account: &str, token: &str) -> Result<(), String> {
        if !keeps(secret, token) {
            return Ok(());
        }
        let (metadata, labels) = (&secret["metadata"], &secret["metadata"]["labels"]);
        let (namespace, name) =
            (metadata["namespace"].as_str().unwrap_or_default(), metadata["name"].as_str().unwrap_or_default());
        if labels[INVALID_SINCE].as_str().is_some_and(|since| !since.is_empty()) {
            return Err(format!(
                "the token in secret {namespace}/{name} for service account {namespace}/{account} has been marked invalid. \
                 Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the \
                 '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
            ));
        }
        if labels[LAST_USED] != today() {
            let mut waiting = self.waiting.lock();
            if waiting.len() < WAITING && waiting.insert((namespace.to_owned(), name.to_owned())) {
                self.wake.notify_one();
            }
        }
        Ok(())
    }
}

/// Starts the task that notes uses.
pub fn start(server: &Arc<ApiServer>) {
    let (server, stop) = (server.clone(), server.stop.clone());
    tokio::spawn(async move { stop.run_until_cancelled(keep(server)).await });
}

async fn keep(server: Arc<ApiServer>) {
    while !begin(&server).await {
        tokio::time::sleep(RETRY).await;
    }
    loop {
        server.token_uses.wake.notified().await;
        let used = std::mem::take(&mut *server.token_uses.waiting.lock());
        for (namespace, name) in used {
            let metadata = json!({"name": name, "labels": {LAST_USED: today()}});
            let body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata});
            // One that cannot be noted now is with its next use.
            if exists(&server, "secrets", &namespace, &name) {
                apply(&server, "secrets", &namespace, &body).await;
            }
        }
    }
}

fn exists(server: &ApiServer, plural: &str, namespace: &str, name: &str) -> bool {
    find("", "v1", plural).is_some_and(|def| server.objects.find(def, namespace, name).is_some())
}

async fn apply(server: &Arc<ApiServer>, plural: &str, namespace: &str, body: &Value) -> bool {
    let name = body["metadata"]["name"].as_str().unwrap_or_default();
    let path = format!("/api/v1/namespaces/{namespace}/{plural}/{name}?fieldManager=kube-apiserver&force=true");
    matches!(crd::controller::apply(server, &path, body).await, 200..300)
}

/// Says since when uses are noted, unless that is said already.
async fn begin(server: &Arc<ApiServer>) -> bool {
    let (namespace, name) = TRACKING;
    if !exists(server, "namespaces", "", namespace) {
        return false;
    }
    if exists(server, "configmaps", namespace, name) {
        return true;
    }
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"since": today()}});
    apply(server, "configmaps", namespace, &body).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_noted_once_a_day_and_marked_tokens_are_refused() {
        let yesterday = "2001-01-01";
        for (what, kind, kept, labels, refused, noted) in [
            ("never used", KIND, "t", json!({}), false, true),
            ("used long ago", KIND, "t", json!({LAST_USED: yesterday}), false, true),
            ("used today", KIND, "t", json!({LAST_USED: today()}), false, false),
            ("marked", KIND, "t", json!({INVALID_SINCE: yesterday}), true, false),
            ("the mark was taken off", KIND, "t", json!({INVALID_SINCE: ""}), false, true),
            ("bound to a Secret that keeps another", KIND, "u", json!({INVALID_SINCE: yesterday}), false, false),
            ("bound to a Secret of another kind", "Opaque", "t", json!({}), false, false),
        ] {
            let secret = json!({"type": kind, "data": {"token": STANDARD.encode(kept)},
                "metadata": {"namespace": "n", "name": "s", "labels": labels}});
            let uses = Uses::default();
            assert_eq!(uses.shown(&secret, "a", "t").is_err(), refused, "{what}");
            assert_eq!(uses.waiting.lock().contains(&("n".into(), "s".into())), noted, "{what}");
        }
    }
}
