//! Tokens of service accounts that people keep as Secrets: filled in when the Secret is made, deleted with the account.

use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use keelson_client::{Change, Key};
use keelson_pki::service_account::{Bound, Claims, ISSUER, Kubernetes};
use serde_json::json;

use crate::context::Context;
use crate::runtime::{Keys, Outcome, watch_own, watch_with};

pub(super) const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
pub(super) const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// Such a token has no end; this is the longest that a token may say.
const LIFE_SECONDS: i64 = 1 << 32;

pub(super) fn annotation<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(key).map(String::as_str).filter(|v| !v.is_empty())
}

/// What is to be done with a Secret.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Leave,
    Fill,
    Delete,
}

fn plan(secret: &Secret, account: Option<&ServiceAccount>) -> Plan {
    if secret.metadata.deletion_timestamp.is_some() || annotation(secret, ACCOUNT_NAME).is_none() {
        return Plan::Leave;
    }
    let Some(account) = account else { return Plan::Delete };
    if annotation(secret, ACCOUNT_UID).is_some_and(|uid| account.metadata.uid.as_deref() != Some(uid)) {
        return Plan::Delete;
    }
    let data = secret.data.as_ref();
    let full = ["token", "ca.crt", "namespace"].iter().all(|k| data.is_some_and(|d| d.contains_key(*k)));
    if full && annotation(secret, ACCOUNT_UID).is_some() { Plan::Leave } else { Plan::Fill }
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.account_secrets, queue);
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.service_accounts, queue, move |change: &Change<ServiceAccount>| {
        let (Some(account), Some(context)) = (change.object(), weak.upgrade()) else { return Vec::new() };
        let namespace = account.metadata.namespace.as_deref().unwrap_or_default();
        let mut secrets = context.cache.account_secrets.in_namespace(namespace);
        secrets.retain(|s| annotation(s, ACCOUNT_NAME) == account.metadata.name.as_deref());
        secrets.iter().map(|s| keelson_client::informer::key(&**s)).collect()
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(secret) = context.cache.account_secrets.get(&key) else { return Ok(None) };
    let name = annotation(&secret, ACCOUNT_NAME).unwrap_or_default();
    let api = context.client.namespaced::<Secret>(&key.0);
    let account = match context.cache.service_accounts.named(&key.0, name) {
        Some(account) => Some((*account).clone()),
        // It may be newer than the cache; only the API's word deletes.
        None if name.is_empty() => None,
        None => context.client.namespaced::<ServiceAccount>(&key.0).get_opt(name).await?,
    };
    match plan(&secret, account.as_ref()) {
        Plan::Leave => {}
        Plan::Delete => match api.delete(&key.1, &json!({"preconditions": {"uid": secret.metadata.uid}})).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        },
        Plan::Fill => {
            let Some(account) = account else { return Ok(None) };
            let Some(filled) = fill(&context, &secret, &account)? else { return Ok(None) };
            let written = api.replace(&key.1, &filled).await?;
            context.settle(&context.cache.account_secrets, &written).await;
        }
    }
    Ok(None)
}

/// The Secret with the account's token; none without a key to sign one.
fn fill(context: &Context, secret: &Secret, account: &ServiceAccount) -> Result<Option<Secret>, keelson_client::Error> {
    let credentials = &context.config.credentials;
    let Some(key) = credentials.tokens() else { return Ok(None) };
    let bound = |metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| Bound {
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
    };
    let namespace = secret.metadata.namespace.clone().unwrap_or_default();
    let now = context.now().0.as_second();
    let account_bound = bound(&account.metadata);
    let claims = Claims {
        aud: vec![ISSUER.into()],
        exp: now + LIFE_SECONDS,
        iat: now,
        nbf: now,
        iss: ISSUER.into(),
        jti: secret.metadata.uid.clone().unwrap_or_default(),
        sub: format!("system:serviceaccount:{namespace}:{}", account_bound.name),
        kubernetes: Kubernetes {
            namespace: namespace.clone(),
            secret: Some(bound(&secret.metadata)),
            serviceaccount: account_bound,
            ..Kubernetes::default()
        },
    };
    let token = key.sign(&claims).map_err(std::io::Error::other)?;
    let mut filled = secret.clone();
    let data = filled.data.get_or_insert_default();
    data.insert("token".into(), ByteString(token.into_bytes()));
    data.insert("ca.crt".into(), ByteString(credentials.root().as_bytes().to_vec()));
    data.insert("namespace".into(), ByteString(namespace.into_bytes()));
    let uid = account.metadata.uid.clone().unwrap_or_default();
    filled.metadata.annotations.get_or_insert_default().insert(ACCOUNT_UID.into(), uid);
    Ok(Some(filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_live_with_their_account() {
        let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "a", "uid": "u"}})).unwrap();
        let secret = |annotations: serde_json::Value, full: bool| -> Secret {
            let data = if full { json!({"token": "", "ca.crt": "", "namespace": ""}) } else { json!({}) };
            serde_json::from_value(json!({"metadata": {"annotations": annotations}, "data": data})).unwrap()
        };
        let named = json!({ACCOUNT_NAME: "a"});
        let bound = json!({ACCOUNT_NAME: "a", ACCOUNT_UID: "u"});
        for (secret, account, expected) in [
            (secret(json!({}), false), Some(&account), Plan::Leave),
            (secret(named.clone(), false), Some(&account), Plan::Fill),
            (secret(named.clone(), true), Some(&account), Plan::Fill),
            (secret(bound.clone(), true), Some(&account), Plan::Leave),
            (secret(bound, false), Some(&account), Plan::Fill),
            (secret(named, true), None, Plan::Delete),
            (secret(json!({ACCOUNT_NAME: "a", ACCOUNT_UID: "old"}), true), Some(&account), Plan::Delete),
        ] {
            assert_eq!(plan(&secret, account), expected, "{secret:?}");
        }
    }
}
