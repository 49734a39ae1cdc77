//! Every namespace has a service account `default`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{Change, Key};

use crate::context::Context;
use crate::runtime::{Keys, Outcome, watch_own, watch_with};

/// The account that pods have unless they name another.
const DEFAULT: &str = "default";

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.namespaces, queue);
    watch_with(&context.cache.service_accounts, queue, |change: &Change<ServiceAccount>| {
        let gone = change.old.as_ref().filter(|_| change.new.is_none());
        let gone = gone.filter(|a| a.metadata.name.as_deref() == Some(DEFAULT));
        gone.and_then(|a| a.metadata.namespace.clone()).map(|n| (String::new(), n)).into_iter().collect()
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(namespace) = context.cache.namespaces.get(&key) else { return Ok(None) };
    let active = namespace.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Active");
    if !active || context.cache.service_accounts.named(&key.1, DEFAULT).is_some() {
        return Ok(None);
    }
    let metadata = ObjectMeta { name: Some(DEFAULT.into()), namespace: Some(key.1.clone()), ..ObjectMeta::default() };
    let account = ServiceAccount { metadata, ..ServiceAccount::default() };
    match context.client.namespaced::<ServiceAccount>(&key.1).create(&account).await {
        Ok(written) => context.settle(&context.cache.service_accounts, &written).await,
        Err(error) if error.is_already_exists() => {}
        Err(error) => return Err(error),
    }
    Ok(None)
}
