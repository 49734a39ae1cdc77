//! Tokens of service accounts that were made by themselves, as clusters did once: those that nobody used for a year are
//! marked as invalid, and deleted a year later.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use k8s_openapi::jiff::civil::Date;
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp, ToSpan};
use keelson_client::{Error, Key, PatchType};
use serde_json::json;
use tracing::info;

use super::token_secrets::{ACCOUNT_NAME, ACCOUNT_UID, annotation};
use crate::context::Context;
use crate::kept::Pod;
use crate::runtime::{Keys, Outcome};

/// Label: the day of a token's last use.
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
/// Label: the day from which a token is not accepted.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Where the API server says since when it notes the days of use.
const TRACKING: (&str, &str) = ("kube-system", "kube-apiserver-legacy-service-account-token-tracking");
/// So long a token may be unused.
const CLEAN_UP_AFTER: SignedDuration = SignedDuration::from_hours(365 * 24);
/// How often all are looked at.
const PERIOD: Duration = Duration::from_secs(24 * 3600);

/// What becomes of a token.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Leave,
    Invalidate,
    Delete,
}

fn day(secret: &Secret, label: &str) -> Option<Result<Date, ()>> {
    secret.metadata.labels.as_ref()?.get(label).map(|text| text.parse().map_err(drop))
}

/// Names of the Secrets that a pod mounts or reads.
fn mounts(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let pulls = spec.image_pull_secrets.iter().flatten().any(|r| r.name == name);
    let volumes = spec.volumes.iter().flatten().any(|v| {
        v.secret.as_ref().and_then(|s| s.secret_name.as_deref()) == Some(name)
            || v.projected
                .iter()
                .flat_map(|p| p.sources.iter().flatten())
                .any(|s| s.secret.as_ref().is_some_and(|s| s.name == name))
    });
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let reads = containers.into_iter().any(|c| {
        let whole = c.env_from.iter().flatten().any(|e| e.secret_ref.as_ref().is_some_and(|s| s.name == name));
        let one = |e: &k8s_openapi::api::core::v1::EnvVar| {
            let from = e.value_from.as_ref().and_then(|f| f.secret_key_ref.as_ref());
            from.is_some_and(|s| s.name == name)
        };
        whole || c.env.iter().flatten().any(one)
    });
    pulls || volumes || reads
}

/// Decides. `account` is the one that the Secret names.
fn plan(secret: &Secret, account: Option<&ServiceAccount>, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let Ok(keep) = now.checked_sub(CLEAN_UP_AFTER) else { return Plan::Leave };
    let keep_day = keep.to_zoned(TimeZone::UTC).date();
    let metadata = &secret.metadata;
    let young = metadata.creation_timestamp.as_ref().is_none_or(|t| t.0 >= keep);
    // A day that cannot be read says nothing: such a token is left.
    let used = day(secret, LAST_USED).is_some_and(|day| day.is_err() || day.is_ok_and(|d| d >= keep_day));
    if metadata.deletion_timestamp.is_some() || young || used {
        return Plan::Leave;
    }
    let name = metadata.name.as_deref().unwrap_or_default();
    let theirs = account.filter(|a| {
        annotation(secret, ACCOUNT_UID).is_none_or(|uid| a.metadata.uid.as_deref() == Some(uid))
            && a.secrets.iter().flatten().any(|s| s.name.as_deref() == Some(name))
    });
    // One that its account does not name was made by somebody on purpose.
    if theirs.is_none() || pods.iter().any(|p| mounts(p, name)) {
        return Plan::Leave;
    }
    match day(secret, INVALID_SINCE) {
        Some(Ok(since)) if since >= keep_day => Plan::Leave,
        Some(Ok(_)) => Plan::Delete,
        _ => Plan::Invalidate,
    }
}

/// Whether uses have been noted for long enough to know what is not used.
fn is_known(tracking: &ConfigMap, now: Timestamp) -> bool {
    let since = tracking.data.as_ref().and_then(|d| d.get("since")).and_then(|text| text.parse::<Date>().ok());
    let from = since.and_then(|day| day.checked_add(1.day()).ok()?.to_zoned(TimeZone::UTC).ok());
    from.is_some_and(|from| from.timestamp().checked_add(CLEAN_UP_AFTER).is_ok_and(|at| now >= at))
}

/// One key for all: a look at every token each day.
pub(crate) fn watch(_: &Arc<Context>, queue: &Keys) {
    queue.add((String::new(), String::new()));
}

pub(crate) async fn reconcile(context: Arc<Context>, _: Key) -> Outcome {
    let now = Timestamp::now();
    let tracking = context.client.namespaced::<ConfigMap>(TRACKING.0).get_opt(TRACKING.1).await?;
    if !tracking.is_some_and(|t| is_known(&t, now)) {
        return Ok(Some(PERIOD));
    }
    for secret in context.cache.account_secrets.list_all() {
        let namespace = secret.metadata.namespace.as_deref().unwrap_or_default();
        let account = annotation(&secret, ACCOUNT_NAME).unwrap_or_default();
        let account = context.cache.service_accounts.named(namespace, account);
        let plan = plan(&secret, account.as_deref(), &context.cache.pods.in_namespace(namespace), now);
        match act(&context, &secret, plan, now).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
            _ => {}
        }
    }
    Ok(Some(PERIOD))
}

async fn act(context: &Context, secret: &Secret, plan: Plan, now: Timestamp) -> Result<(), Error> {
    let metadata = &secret.metadata;
    let (namespace, name) =
        (metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default());
    let api = context.client.namespaced::<Secret>(namespace);
    match plan {
        Plan::Leave => Ok(()),
        Plan::Invalidate => {
            let today = now.to_zoned(TimeZone::UTC).date().to_string();
            info!(namespace, name, "an unused token of a service account is invalid from now on");
            let patch = json!({"metadata": {"uid": metadata.uid, "labels": {INVALID_SINCE: today}}});
            api.patch(name, None, PatchType::Merge, &patch).await.map(drop)
        }
        Plan::Delete => {
            info!(namespace, name, "deleting an unused token of a service account");
            api.delete(name, &json!({"preconditions": {"resourceVersion": metadata.resource_version}})).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn tokens_that_nobody_uses_go_in_two_steps() {
        let now: Timestamp = "2026-06-01T12:00:00Z".parse().unwrap();
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": "a", "uid": "u"}, "secrets": [{"name": "a-token-x"}]}))
                .unwrap();
        let pod = |spec: Value| -> Arc<Pod> { Arc::new(serde_json::from_value(json!({"spec": spec})).unwrap()) };
        let idle = pod(json!({"containers": [{"name": "c"}]}));
        let mounting =
            pod(json!({"containers": [], "volumes": [{"name": "v", "secret": {"secretName": "a-token-x"}}]}));
        let reading = pod(json!({"containers": [{"name": "c", "env": [{"name": "T", "valueFrom":
            {"secretKeyRef": {"name": "a-token-x", "key": "token"}}}]}]}));
        let old = "2024-01-01T00:00:00Z";
        for (what, name, created, labels, uid, pod, expected) in [
            ("never used", "a-token-x", old, json!({}), "u", &idle, Plan::Invalidate),
            ("used long ago", "a-token-x", old, json!({LAST_USED: "2025-05-31"}), "u", &idle, Plan::Invalidate),
            ("used within a year", "a-token-x", old, json!({LAST_USED: "2025-06-01"}), "u", &idle, Plan::Leave),
            ("used at some time", "a-token-x", old, json!({LAST_USED: "then"}), "u", &idle, Plan::Leave),
            ("young", "a-token-x", "2026-01-01T00:00:00Z", json!({}), "u", &idle, Plan::Leave),
            ("mounted", "a-token-x", old, json!({}), "u", &mounting, Plan::Leave),
            ("read", "a-token-x", old, json!({}), "u", &reading, Plan::Leave),
            ("another account of that name", "a-token-x", old, json!({}), "w", &idle, Plan::Leave),
            ("made by hand", "mine", old, json!({}), "u", &idle, Plan::Leave),
            ("marked", "a-token-x", old, json!({INVALID_SINCE: "2026-01-01"}), "u", &idle, Plan::Leave),
            ("marked wrongly", "a-token-x", old, json!({INVALID_SINCE: "soon"}), "u", &idle, Plan::Invalidate),
            ("marked long ago", "a-token-x", old, json!({INVALID_SINCE: "2025-01-01"}), "u", &idle, Plan::Delete),
        ] {
            let secret: Secret =
                serde_json::from_value(json!({"metadata": {"name": name, "creationTimestamp": created,
                "labels": labels, "annotations": {ACCOUNT_NAME: "a", ACCOUNT_UID: uid}}}))
                .unwrap();
            assert_eq!(plan(&secret, Some(&account), std::slice::from_ref(pod), now), expected, "{what}");
            assert_eq!(plan(&secret, None, &[], now), Plan::Leave, "{what}, without an account");
        }
    }

    #[test]
    fn nothing_is_known_before_a_year_of_notes() {
        let now: Timestamp = "2026-06-01T12:00:00Z".parse().unwrap();
        for (since, expected) in [
            (json!({"since": "2025-05-01"}), true),
            (json!({"since": "2025-06-01"}), false),
            (json!({"since": "nonsense"}), false),
            (json!({}), false),
        ] {
            let tracking: ConfigMap = serde_json::from_value(json!({"data": since})).unwrap();
            assert_eq!(is_known(&tracking, now), expected, "{since}");
        }
    }
}
