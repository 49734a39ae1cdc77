//! Every pod has a service account that exists, and its token mounted unless somebody said no.

use std::time::Duration;

use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::mirror_pods::{SECRETS, mentions};
use super::pods::{created, list};
use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::objects::Objects;
use crate::strategy;

/// Where containers find the token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What the names of the volumes with it begin with.
const VOLUME: &str = "kube-api-access-";
/// Lifetime of a mounted token in seconds: an hour, and some for renewal.
const TOKEN_SECONDS: i64 = 3607;
/// Annotation of pods that a kubelet mirrors from files; those have no account.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The account of pods that name none.
const DEFAULT: &str = "default";
/// How often that one is looked for, as upstream, and the pause between.
const DEFAULT_TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(100);
/// Annotation of accounts whose pods may use no secrets but the account's.
const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";

/// Whether a pod refers only to secrets that its account lists, if the account wants that.
fn mountable(account: &Value, spec: &Value) -> Result<(), String> {
    if !account["metadata"]["annotations"][ENFORCE].as_str().is_some_and(is_true) {
        return Ok(());
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let name = text(&account["metadata"]["name"]);
    let known = |key: &str, wanted: &str| list(&account[key]).iter().any(|secret| secret["name"] == wanted);
    for volume in list(&spec["volumes"]) {
        let secret = text(&volume["secret"]["secretName"]);
        if !secret.is_empty() && !known("secrets", &secret) {
            return Err(format!(
                "volume with secret.secretName={secret:?} is not allowed because service account {name} does not \
                 reference that secret"
            ));
        }
    }
    for (key, what) in [
        ("initContainers", "init container"),
        ("containers", "container"),
        ("ephemeralContainers", "ephemeral container"),
    ] {
        for container in list(&spec[key]) {
            let own = text(&container["name"]);
            for variable in list(&container["env"]) {
                let secret = text(&variable["valueFrom"]["secretKeyRef"]["name"]);
                if !secret.is_empty() && !known("secrets", &secret) {
                    return Err(format!(
                        "{what} {own} with envVar {} referencing secret.secretName={secret:?} is not allowed because \
                         service account {name} does not reference that secret",
                        text(&variable["name"])
                    ));
                }
            }
            for source in list(&container["envFrom"]) {
                let secret = text(&source["secretRef"]["name"]);
                if !secret.is_empty() && !known("secrets", &secret) {
                    return Err(format!(
                        "{what} {own} with envFrom referencing secret.secretName={secret:?} is not allowed because \
                         service account {name} does not reference that secret"
                    ));
                }
            }
        }
    }
    for pulled in list(&spec["imagePullSecrets"]) {
        let secret = text(&pulled["name"]);
        if !known("imagePullSecrets", &secret) {
            return Err(format!(
                "imagePullSecret {secret:?} is not allowed because service account {name} does not reference that \
                 imagePullSecret"
            ));
        }
    }
    Ok(())
}

/// What Go's `strconv.ParseBool` takes for true.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

pub(super) struct ServiceAccount(pub(super) Objects);

#[async_trait::async_trait]
impl AdmissionPlugin for ServiceAccount {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        let (namespace, pod_name) = (request.namespace.to_owned(), request.name.to_owned());
        let Some(pod) = created(request, "pods") else { return Ok(()) };
        if !pod["spec"].is_object() {
            return Ok(());
        }
        if is_mirror(pod) {
            return mirrored(pod).map_err(|why| Status::forbidden("", "pods", &pod_name, why));
        }
        let spec = &mut pod["spec"];
        let name = spec["serviceAccountName"].as_str().filter(|name| !name.is_empty()).unwrap_or(DEFAULT).to_owned();
        let account = self.known(&namespace, &name, &pod_name).await?;
        spec["serviceAccountName"] = name.clone().into();
        spec["serviceAccount"] = name.into();
        let secrets = account["imagePullSecrets"].as_array().filter(|list| !list.is_empty());
        if let (Some(secrets), true) = (secrets, spec["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)) {
            spec["imagePullSecrets"] = json!(secrets);
        }
        let mount = spec["automountServiceAccountToken"].as_bool();
        mountable(&account, spec).map_err(|why| Status::forbidden("", "pods", &pod_name, &why))?;
        if mount.or(account["automountServiceAccountToken"].as_bool()).unwrap_or(true) {
            mount_token(spec);
        }
        Ok(())
    }

    /// Once more, after webhooks had their turn; and secrets of the containers that are added to a pod.
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let Some(pod) = request.object.as_deref().filter(|_| (request.def.group, request.def.plural) == ("", "pods"))
        else {
            return Ok(());
        };
        let (spec, new) = (&pod["spec"], request.operation == Operation::Create && request.subresource.is_empty());
        let more = (request.operation, request.subresource) == (Operation::Update, "ephemeralcontainers");
        let judged = new || (more && !is_mirror(pod));
        let refuse = |why: &str| Status::forbidden("", "pods", request.name, why);
        if new && is_mirror(pod) {
            return mirrored(pod).map_err(refuse);
        }
        let name = spec["serviceAccountName"].as_str().unwrap_or_default();
        if new && name.is_empty() {
            let why = format!("no service account specified for pod {}/{}", request.namespace, request.name);
            return Err(refuse(&why));
        }
        if !judged {
            return Ok(());
        }
        let account = self.known(request.namespace, name, request.name).await?;
        mountable(&account, spec).map_err(|why| refuse(&why))
    }
}

/// Whether a pod is a node's own, which the API only shows.
fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"].get(MIRROR).is_some()
}

/// What such a pod may not refer to.
fn mirrored(pod: &Value) -> Result<(), &'static str> {
    if pod["spec"]["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return Err("a mirror pod may not reference service accounts");
    }
    if mentions(&pod["spec"], SECRETS) {
        return Err("a mirror pod may not reference secrets");
    }
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let mut sources = volumes.flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten());
    if sources.any(|source| source["serviceAccountToken"].is_object()) {
        return Err("a mirror pod may not use ServiceAccountToken volume projections");
    }
    Ok(())
}

impl ServiceAccount {
    /// A pod's account, which must be there.
    async fn known(&self, namespace: &str, name: &str, pod: &str) -> Result<Value, Status> {
        self.account(namespace, name).await.ok_or_else(|| {
            let why = format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
            Status::forbidden("", "pods", pod, &why)
        })
    }

    /// A pod's account. That of a new namespace is made by a controller, which gets a moment for it.
    async fn account(&self, namespace: &str, name: &str) -> Option<Value> {
        let find = || self.0.object("", "v1", "serviceaccounts", namespace, name);
        let tries = if name == DEFAULT { DEFAULT_TRIES } else { 1 };
        for _ in 1..tries {
            if let Some(account) = find() {
                return Some(account);
            }
            tokio::time::sleep(PAUSE).await;
        }
        find()
    }
}

fn mount_token(spec: &mut Value) {
    // One of the name is taken for it: the pod was made from another one.
    let there = spec["volumes"].as_array().into_iter().flatten().filter_map(|volume| volume["name"].as_str());
    let there = there.into_iter().find(|name| name.starts_with(VOLUME)).map(str::to_owned);
    let volume = there.clone().unwrap_or_else(|| strategy::generate_name(VOLUME));
    let mut used = false;
    for key in ["initContainers", "containers"] {
        for container in spec.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(mounts) = list(container, "volumeMounts")
                && !mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH)
            {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
                used = true;
            }
        }
    }
    let sources = json!([
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace",
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]);
    if let (true, Some(volumes)) = (used && there.is_none(), list(spec, "volumes")) {
        volumes.push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": sources}}));
    }
}
