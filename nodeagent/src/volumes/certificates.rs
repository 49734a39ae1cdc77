//! Keys and certificates of pods (`podCertificate` in projected volumes), where the servers serve requests for them: the agent
//! makes the key, asks, and waits for a signer. Keys are in the pod's volume and in memory only.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::{PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use parking_lot::Mutex;

use super::sources::{Sources, blocks};
use crate::spec::{SpecError, pod, text};

/// How often a request is looked at, and how many times before the pod's volumes are tried again later.
const LOOK: Duration = Duration::from_millis(200);
const LOOKS: u32 = 25;
/// Pause before the next request after one that failed, seconds.
const AFTER_FAILURE: i64 = 60;

/// What one projection has, and what it waits for.
#[derive(Clone, Default)]
struct Held {
    /// The key and the certificates, and when others are to be asked for.
    issued: Option<(String, String, Timestamp)>,
    /// The name of the request that nobody has answered yet, and its key.
    asked: Option<(String, String)>,
    /// Why the last request came to nothing, and until when there is no other.
    failed: Option<(String, Timestamp)>,
}

/// The keys and certificates of one pod, by projection.
#[derive(Default)]
pub struct Certificates(Mutex<HashMap<String, Held>>);

/// The key and the chain of one projection.
pub async fn credentials(
    of: &Pod,
    part: &PodCertificateProjection,
    sources: &Sources,
) -> Result<(String, String), SpecError> {
    let place = [&part.credential_bundle_path, &part.key_path, &part.certificate_chain_path].map(|p| text(p.as_ref()));
    let place = format!("{} {} {}", part.signer_name, part.key_type, place.join(" "));
    let mut held = sources.certificates.0.lock().get(&place).cloned().unwrap_or_default();
    let now = Timestamp::now();
    if let Some((key, chain, _)) = held.issued.as_ref().filter(|(_, _, refresh)| now < *refresh) {
        return Ok((key.clone(), chain.clone()));
    }
    let result = ask(of, part, sources, &mut held, now).await;
    let present = held.issued.clone();
    sources.certificates.0.lock().insert(place, held);
    // What is there is good until it is replaced.
    match (result, present) {
        (_, Some((key, chain, _))) => Ok((key, chain)),
        (Err(why), None) => Err(why),
        (Ok(()), None) => Err(SpecError::new("the certificate is not there yet")),
    }
}

/// Takes the next steps towards a certificate.
async fn ask(
    of: &Pod,
    part: &PodCertificateProjection,
    sources: &Sources,
    held: &mut Held,
    now: Timestamp,
) -> Result<(), SpecError> {
    if let Some((why, _)) = held.failed.as_ref().filter(|(_, until)| now < *until) {
        return Err(SpecError::new(why.clone()));
    }
    let api = sources.client.namespaced::<PodCertificateRequest>(&text(of.metadata.namespace.as_ref()));
    if held.asked.is_none() {
        let (key, csr) = keelson_pki::pod_key(&part.key_type).map_err(|e| SpecError::new(e.to_string()))?;
        let request = request(of, part, sources, csr).await?;
        let name = text(request.metadata.name.as_ref());
        api.create(&request).await?;
        held.asked = Some((name, key));
    }
    for look in 0..LOOKS {
        let Some((name, key)) = held.asked.clone() else { break };
        let Some(found) = api.get_opt(&name).await? else {
            held.asked = None;
            return Err(SpecError::new(format!("PodCertificateRequest \"{name}\" is gone; another one follows")));
        };
        match verdict(&found) {
            Some(Ok((chain, refresh))) => {
                *held = Held { issued: Some((key, chain, refresh)), ..Held::default() };
                return Ok(());
            }
            Some(Err(why)) => {
                let why = format!("PodCertificateRequest \"{name}\" was {why}");
                held.asked = None;
                held.failed = Some((why.clone(), now + jiff::SignedDuration::from_secs(AFTER_FAILURE)));
                return Err(SpecError::new(why));
            }
            None if look + 1 < LOOKS && held.issued.is_none() => tokio::time::sleep(LOOK).await,
            None => return Err(SpecError::new(format!("PodCertificateRequest \"{name}\" has not been issued yet"))),
        }
    }
    Ok(())
}

async fn request(
    of: &Pod,
    part: &PodCertificateProjection,
    sources: &Sources,
    csr: Vec<u8>,
) -> Result<PodCertificateRequest, SpecError> {
    let (namespace, pod_name) = (text(of.metadata.namespace.as_ref()), text(of.metadata.name.as_ref()));
    let account = of.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".into());
    let found = sources.client.namespaced::<ServiceAccount>(&namespace).get(&account).await?;
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        name: pod_name.clone(),
        uid: pod::uid(of),
        ..OwnerReference::default()
    };
    let metadata = ObjectMeta {
        name: Some(format!("req-{}-{:08x}", pod_name.chars().take(200).collect::<String>(), rand::random::<u32>())),
        namespace: Some(namespace),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    let spec = PodCertificateRequestSpec {
        max_expiration_seconds: part.max_expiration_seconds,
        node_name: sources.facts.node.clone(),
        node_uid: sources.node_uid.clone(),
        pod_name,
        pod_uid: pod::uid(of),
        service_account_name: account,
        service_account_uid: text(found.metadata.uid.as_ref()),
        signer_name: part.signer_name.clone(),
        stub_pkc_s10_request: ByteString(csr),
        unverified_user_annotations: part.user_annotations.clone(),
        ..PodCertificateRequestSpec::default()
    };
    Ok(PodCertificateRequest { metadata, spec, status: None })
}

/// The chain and when to ask for another, or why there is none; `None` while nobody has decided.
fn verdict(request: &PodCertificateRequest) -> Option<Result<(String, Timestamp), String>> {
    let status = request.status.as_ref()?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let decided = conditions.iter().find(|c| matches!(c.type_.as_str(), "Issued" | "Denied" | "Failed"))?;
    if decided.type_ != "Issued" {
        let what = if decided.type_ == "Denied" { "denied" } else { "not answered: its signer failed" };
        return Some(Err(format!("{what}: {} ({})", decided.message, decided.reason)));
    }
    let chain = blocks(status.certificate_chain.as_deref().unwrap_or_default()).concat();
    if chain.is_empty() {
        return Some(Err("issued without a certificate".into()));
    }
    let refresh = status.begin_refresh_at.as_ref().or(status.not_after.as_ref()).map_or(Timestamp::MAX, |time| time.0);
    Some(Ok((chain, refresh)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(status: &Value) -> Option<Result<(String, Timestamp), String>> {
        let request = json!({"metadata": {"name": "r"}, "spec": {"nodeName": "n", "nodeUID": "u", "podName": "p", "podUID": "u",
            "serviceAccountName": "s", "serviceAccountUID": "u", "signerName": "x/y", "stubPKCS10Request": ""}, "status": status});
        verdict(&serde_json::from_value(request).unwrap())
    }

    #[test]
    fn signers_decide() {
        let condition = |kind: &str| {
            json!([{"type": kind, "status": "True", "reason": "Because", "message": "of that",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}])
        };
        assert!(of(&json!({})).is_none());
        assert!(of(&json!({"conditions": condition("Other")})).is_none());
        assert_eq!(of(&json!({"conditions": condition("Denied")})), Some(Err("denied: of that (Because)".into())));
        assert!(of(&json!({"conditions": condition("Issued")})).unwrap().is_err(), "no certificate");
        let chain = "text\n-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\nmore\n";
        let (found, refresh) = of(&json!({"conditions": condition("Issued"), "certificateChain": chain,
            "beginRefreshAt": "2030-01-01T00:00:00Z", "notAfter": "2031-01-01T00:00:00Z"}))
        .unwrap()
        .unwrap();
        assert_eq!(found, "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n");
        assert_eq!(refresh.to_string(), "2030-01-01T00:00:00Z");
    }
}
