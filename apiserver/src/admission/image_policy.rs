//! ImagePolicyWebhook: a service says which images pods may be made from. Its answers are remembered for a while.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use keelson_machinery::status::Status;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::audit;
use crate::remote::Remote;

/// Annotations of a pod whose keys hold this are for the service.
const FOR_THE_SERVICE: &str = ".image-policy.k8s.io/";
/// Told in a pod that was let in because the service failed.
const FAILED_OPEN: &str = "alpha.image-policy.k8s.io/failed-open";
/// For the audit log.
const AUDIT_PREFIX: &str = "imagepolicywebhook.image-policy.k8s.io/";
/// For how long answers are remembered unless told otherwise, seconds: yes and no.
const TTL_SECONDS: (u64, u64) = (300, 30);
/// Longest span that may be configured, seconds.
const MAX_TTL_SECONDS: u64 = 30 * 60;
/// Longest that the service may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Answers that are remembered.
const MAX_REMEMBERED: usize = 1024;

/// The service's word on images.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    allowed: bool,
    reason: String,
    annotations: BTreeMap<String, String>,
}

pub(super) struct ImagePolicyWebhook {
    remote: Remote,
    ttl: (Duration, Duration),
    default_allow: bool,
    known: Mutex<HashMap<String, (Answer, Instant)>>,
}

impl ImagePolicyWebhook {
    /// With the plugin's configuration: `imagePolicy` with the kubeconfig of the service and what holds when it fails.
    pub fn new(config: &Value) -> Result<Self, String> {
        let policy = &config["imagePolicy"];
        let failed = |why: String| format!("ImagePolicyWebhook: {why}");
        let file = policy["kubeConfigFile"].as_str().filter(|file| !file.is_empty());
        let file = file.ok_or_else(|| failed("imagePolicy.kubeConfigFile: Required value".into()))?;
        let seconds = |key: &str, default: u64| match policy[key].as_i64() {
            None | Some(0) => Ok(default),
            Some(-1) => Ok(0),
            Some(n) => u64::try_from(n)
                .ok()
                .filter(|n| (1..=MAX_TTL_SECONDS).contains(n))
                .ok_or_else(|| failed(format!("valid value for {key} is between 1s and 30m, got {n}s"))),
        };
        let ttl = (seconds("allowTTL", TTL_SECONDS.0)?, seconds("denyTTL", TTL_SECONDS.1)?);
        Ok(Self {
            remote: Remote::load(Path::new(file)).map_err(failed)?,
            ttl: (Duration::from_secs(ttl.0), Duration::from_secs(ttl.1)),
            default_allow: policy["defaultAllow"] == true,
            known: Mutex::default(),
        })
    }

    async fn ask(&self, spec: Value) -> Result<Answer, String> {
        let key = spec.to_string();
        if let Some((answer, until)) = self.known.lock().get(&key)
            && *until > Instant::now()
        {
            return Ok(answer.clone());
        }
        let review =
            json!({"kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1", "metadata": {}, "spec": spec});
        let answer = understood(&self.remote.post(&review, TIMEOUT).await?["status"]);
        let ttl = if answer.allowed { self.ttl.0 } else { self.ttl.1 };
        if !ttl.is_zero() {
            let mut known = self.known.lock();
            if known.len() >= MAX_REMEMBERED {
                known.clear();
            }
            known.insert(key, (answer.clone(), Instant::now() + ttl));
        }
        Ok(answer)
    }
}

fn understood(status: &Value) -> Answer {
    let texts = status["auditAnnotations"].as_object().into_iter().flatten();
    Answer {
        allowed: status["allowed"] == true,
        reason: status["reason"].as_str().unwrap_or_default().to_owned(),
        annotations: texts.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect(),
    }
}

/// What the service is asked of a pod.
fn spec_of(pod: &Value, namespace: &str) -> Value {
    let keys = ["containers", "initContainers", "ephemeralContainers"];
    let containers = keys.iter().flat_map(|key| pod["spec"][key].as_array().into_iter().flatten());
    let images: Vec<Value> = containers.map(|container| json!({"image": container["image"]})).collect();
    let mut spec = json!({"containers": images, "namespace": namespace});
    let annotations = pod["metadata"]["annotations"].as_object().into_iter().flatten();
    for (key, value) in annotations.filter(|(key, _)| key.contains(FOR_THE_SERVICE)) {
        spec["annotations"][key] = value.clone();
    }
    spec
}

fn concerns(request: &Admission<'_>) -> bool {
    (request.def.group, request.def.plural) == ("", "pods")
        && matches!(request.subresource, "" | "ephemeralcontainers")
        && matches!(request.operation, Operation::Create | Operation::Update)
}

#[async_trait::async_trait]
impl AdmissionPlugin for ImagePolicyWebhook {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        // Only the service's failure lets a pod say so.
        if concerns(request)
            && request.operation == Operation::Create
            && let Some(pod) = request.object.as_deref_mut()
            && let Some(annotations) = pod["metadata"]["annotations"].as_object_mut()
        {
            annotations.remove(FAILED_OPEN);
        }
        Ok(())
    }

    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        if !concerns(request) {
            return Ok(());
        }
        let Some(pod) = request.object.as_deref_mut() else { return Ok(()) };
        let refused = |why: &str| Status::forbidden("", "pods", request.name, why);
        match self.ask(spec_of(pod, request.namespace)).await {
            Ok(answer) => {
                for (key, value) in answer.annotations {
                    audit::annotate(format!("{AUDIT_PREFIX}{key}"), || value);
                }
                match (answer.allowed, answer.reason.as_str()) {
                    (true, _) => Ok(()),
                    (false, "") => Err(refused("image policy webhook backend denied one or more images")),
                    (false, why) => {
                        Err(refused(&format!("image policy webhook backend denied one or more images: {why}")))
                    }
                }
            }
            Err(why) if self.default_allow => {
                tracing::warn!(%why, "the image policy's service failed; a pod was let in without its word");
                audit::annotate(format!("{AUDIT_PREFIX}failed-open"), || "true".into());
                if request.operation == Operation::Create {
                    if !pod["metadata"]["annotations"].is_object() {
                        pod["metadata"]["annotations"] = json!({});
                    }
                    pod["metadata"]["annotations"][FAILED_OPEN] = "true".into();
                }
                Ok(())
            }
            Err(why) => Err(refused(&why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_asked_of_every_image() {
        let pod = json!({"metadata": {"annotations": {"a.image-policy.k8s.io/ticket": "1", "other": "2"}},
            "spec": {"containers": [{"image": "a"}, {"image": "b"}], "initContainers": [{"image": "c"}]}});
        assert_eq!(
            spec_of(&pod, "ns"),
            json!({"containers": [{"image": "a"}, {"image": "b"}, {"image": "c"}], "namespace": "ns",
                "annotations": {"a.image-policy.k8s.io/ticket": "1"}})
        );
    }

    #[test]
    fn answers_and_configurations_are_understood() {
        for (status, allowed, reason) in
            [(json!({"allowed": true}), true, ""), (json!({"reason": "no"}), false, "no"), (Value::Null, false, "")]
        {
            let answer = understood(&status);
            assert_eq!((answer.allowed, answer.reason.as_str()), (allowed, reason), "{status}");
        }
        for (config, why) in [
            (json!({}), "kubeConfigFile: Required value"),
            (json!({"imagePolicy": {"kubeConfigFile": "/absent", "allowTTL": 9999}}), "between 1s and 30m"),
            (json!({"imagePolicy": {"kubeConfigFile": "/absent"}}), "/absent"),
        ] {
            let told = ImagePolicyWebhook::new(&config).err().unwrap();
            assert!(told.starts_with("ImagePolicyWebhook: ") && told.contains(why), "{told}");
        }
    }
}
