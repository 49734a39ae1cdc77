//! Namespaces: a default service account and the cluster's CA in each, and an end that takes everything in it along.

use std::collections::BTreeMap;

use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{Error, Key};
use keelson_machinery::resource::Scope;
use keelson_machinery::resources::RESOURCES;
use serde_json::Value;

use crate::Context;

/// Where pods find the certificate to check the API server by.
const ROOT_CA: &str = "kube-root-ca.crt";

pub(crate) async fn reconcile(context: &Context, key: &Key) -> Result<(), Error> {
    let Some(namespace) = context.namespaces.get(key) else { return Ok(()) };
    if namespace.metadata.deletion_timestamp.is_some() {
        return end(context, &namespace, &key.1).await;
    }
    let accounts = context.client.namespaced::<ServiceAccount>(&key.1);
    if accounts.get_opt("default").await?.is_none() {
        let metadata =
            ObjectMeta { name: Some("default".into()), namespace: Some(key.1.clone()), ..ObjectMeta::default() };
        match accounts.create(&ServiceAccount { metadata, ..ServiceAccount::default() }).await {
            Err(error) if error.is_already_exists() => {}
            result => {
                result?;
            }
        }
    }
    publish_root_ca(context, &key.1).await
}

/// Makes or repairs the ConfigMap that holds the cluster's CA.
async fn publish_root_ca(context: &Context, namespace: &str) -> Result<(), Error> {
    let maps = context.client.namespaced::<ConfigMap>(namespace);
    let data = Some(BTreeMap::from([("ca.crt".to_owned(), context.authority.cluster.certificate().to_owned())]));
    if let Some(mut there) = maps.get_opt(ROOT_CA).await? {
        if there.data != data {
            there.data = data;
            maps.replace(ROOT_CA, &there).await?;
        }
        return Ok(());
    }
    let about = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such \
                 as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
                 distributions of Kubernetes clusters.";
    let metadata = ObjectMeta {
        name: Some(ROOT_CA.into()),
        namespace: Some(namespace.into()),
        annotations: Some(BTreeMap::from([("kubernetes.io/description".to_owned(), about.to_owned())])),
        ..ObjectMeta::default()
    };
    match maps.create(&ConfigMap { metadata, data, ..ConfigMap::default() }).await {
        Err(error) if !error.is_already_exists() => Err(error),
        _ => Ok(()),
    }
}

/// Deletes what is in the namespace; when nothing is left the namespace is let go.
async fn end(context: &Context, namespace: &Namespace, name: &str) -> Result<(), Error> {
    let mut remaining = 0;
    for row in RESOURCES.iter().filter(|r| r.scope == Scope::Namespaced && r.verbs.contains(&"deletecollection")) {
        let root = if row.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", row.group) };
        let path = format!("{root}/{}/namespaces/{name}/{}", row.version, row.plural);
        let list: Value = context.client.request(Method::GET, &path, None, Default::default()).await?;
        if list["items"].as_array().is_some_and(|items| !items.is_empty()) {
            let _: Value = context.client.request(Method::DELETE, &path, None, Default::default()).await?;
            let list: Value = context.client.request(Method::GET, &path, None, Default::default()).await?;
            remaining += list["items"].as_array().map_or(0, Vec::len);
        }
    }
    if remaining > 0 {
        // Pods end on their nodes first: another look follows.
        return Err(Error::Transport(std::io::Error::other(format!("{remaining} objects are still ending"))));
    }
    let mut done = namespace.clone();
    done.spec.get_or_insert_default().finalizers = Some(Vec::new());
    let _: Value = context.client.cluster::<Namespace>().replace_subresource(name, "finalize", &done).await?;
    Ok(())
}
