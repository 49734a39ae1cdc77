//! The cluster's CA in each namespace, where pods find it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{Change, Key};

use crate::context::Context;
use crate::runtime::{Keys, Outcome, watch_own, watch_with};

/// Where pods find the certificate to check the API server by.
const NAME: &str = "kube-root-ca.crt";
const ABOUT: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the \
     internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes \
     clusters.",
);

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.namespaces, queue);
    watch_with(&context.cache.root_cas, queue, |change: &Change<ConfigMap>| {
        let namespace = change.object().and_then(|m| m.metadata.namespace.clone());
        namespace.map(|n| (String::new(), n)).into_iter().collect()
    });
}

/// The ConfigMap as it should be; `None` if it is.
fn plan(namespace: &str, certificate: &str, before: Option<&ConfigMap>) -> Option<ConfigMap> {
    let data = Some(BTreeMap::from([("ca.crt".to_owned(), certificate.to_owned())]));
    let mut wanted = before.cloned().unwrap_or_else(|| ConfigMap {
        metadata: ObjectMeta { name: Some(NAME.into()), namespace: Some(namespace.into()), ..ObjectMeta::default() },
        ..ConfigMap::default()
    });
    wanted.data = data;
    wanted.metadata.annotations.get_or_insert_default().insert(ABOUT.0.into(), ABOUT.1.into());
    (before != Some(&wanted)).then_some(wanted)
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(namespace) = context.cache.namespaces.get(&key) else { return Ok(None) };
    if namespace.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let before = context.cache.root_cas.named(&key.1, NAME);
    let certificate = context.config.credentials.root();
    let Some(wanted) = plan(&key.1, &certificate, before.as_deref()) else { return Ok(None) };
    let api = context.client.namespaced::<ConfigMap>(&key.1);
    let result = match before {
        Some(_) => api.replace(NAME, &wanted).await,
        None => api.create(&wanted).await,
    };
    match result {
        Ok(written) => context.settle(&context.cache.root_cas, &written).await,
        // The namespace began to end meanwhile.
        Err(error) if error.code() == 403 || error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_and_repaired() {
        let made = plan("d", "CERT", None).unwrap();
        assert_eq!(made.data.as_ref().unwrap()["ca.crt"], "CERT");
        assert!(plan("d", "CERT", Some(&made)).is_none());
        let tampered = ConfigMap { data: None, ..made.clone() };
        assert_eq!(plan("d", "CERT", Some(&tampered)), Some(made.clone()));
        assert!(plan("d", "NEW", Some(&made)).is_some());
    }
}
