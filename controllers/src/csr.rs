//! Certificate signing requests of nodes: approved by upstream's rules for them, and signed by the cluster's authority.
//!
//! Who may have a node's client certificate is asked of the authorizer: `create` of `nodeclient` for anybody's, of
//! `selfnodeclient` for a node's own.
//!
//! Invariant: only requests that an approver (this one or an administrator) approved are signed, and no signature is
//! made for a subject or usage that the signer's rules do not allow.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use keelson_client::{Error, Key};
use keelson_pki::{CsrSubject, read_csr};
use serde_json::json;
use tracing::info;

use crate::context::Context;
use crate::pods::until;
use crate::runtime::{Keys, Outcome, watch_own};

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const NODE_PREFIX: &str = "system:node:";
const NODES: &str = "system:nodes";
/// What a node may create to get its own client certificate, and what it is told.
const SELF_NODE_CLIENT: (&str, &str) =
    ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.");
/// What one may create to get the client certificate of any node.
const NODE_CLIENT: (&str, &str) =
    ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.");
/// Lifetime of a certificate unless less is asked for.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// A request that was decided is kept for this long.
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
/// One that nobody decided, or nobody signed.
const PENDING: SignedDuration = SignedDuration::from_hours(24);
const PENDING_APPROVED: SignedDuration = SignedDuration::from_hours(1);
/// Shortest lifetime that the API lets one ask for.
const SHORTEST: Duration = Duration::from_secs(600);

/// What is to be done with a request.
#[derive(Debug, PartialEq)]
enum Plan {
    /// Nothing: not ours, finished, or for an administrator to decide.
    Leave,
    /// Approve it, with this message.
    Approve(&'static str),
    /// Approve it if who asked may create one of these subresources, with the message of the first.
    Ask(Vec<(&'static str, &'static str)>),
    /// Sign it.
    Sign,
    /// It was approved but must not be signed: say why.
    Fail(String),
}

fn has(request: &CertificateSigningRequest, condition: &str) -> bool {
    let conditions = request.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == condition && c.status == "True")
}

/// The signer's own rules, which hold whoever approves; the words are upstream's.
fn signer_allows(spec: &CertificateSigningRequestSpec, subject: &CsrSubject) -> Result<(), String> {
    let usages: Vec<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    match spec.signer_name.as_str() {
        CLIENT => {
            let allowed = ["client auth", "digital signature", "key encipherment"];
            if let Some(odd) = usages.iter().find(|u| !allowed.contains(u)) {
                return Err(format!("invalid usage for client certificate: {odd}"));
            }
            if !usages.contains(&"client auth") {
                return Err("missing required usage for client certificate: client auth".into());
            }
            if subject.organizations.iter().any(|o| o == "system:masters") {
                return Err("subject organization must not be system:masters".into());
            }
            Ok(())
        }
        KUBELET_CLIENT => node_allows(subject, &usages, "client auth"),
        KUBELET_SERVING => node_allows(subject, &usages, "server auth"),
        _ => Ok(()),
    }
}

/// The rules of the signers of nodes' certificates, for clients or servers.
fn node_allows(subject: &CsrSubject, usages: &[&str], purpose: &str) -> Result<(), String> {
    let serving = purpose == "server auth";
    let refused = if subject.organizations != [NODES] {
        "subject organization is not system:nodes"
    } else if serving && subject.dns.is_empty() && subject.ips.is_empty() {
        "DNS or IP subjectAltName is required"
    } else if !serving && !subject.dns.is_empty() {
        "DNS subjectAltNames are not allowed"
    } else if !serving && !subject.ips.is_empty() {
        "IP subjectAltNames are not allowed"
    } else if subject.other_names {
        "Email and URI subjectAltNames are not allowed"
    } else {
        let mut wanted = vec![purpose, "digital signature", "key encipherment"];
        wanted.sort_unstable();
        // Keys that cannot encipher do without the last of them.
        let is = |set: &[&str]| set.iter().all(|u| usages.contains(u)) && usages.iter().all(|u| set.contains(u));
        if !is(&wanted) && !is(&[purpose, "digital signature"]) {
            return Err(format!("usages did not match [{}]", wanted.join(" ")));
        }
        if subject.common_name.strip_prefix(NODE_PREFIX).is_none_or(str::is_empty) {
            "subject common name does not begin with system:node: "
        } else {
            return Ok(());
        }
    };
    Err(refused.to_owned())
}

/// Whether each name asked for is one of the node's own: its name, or an address that its Node object shows.
fn names_are_the_nodes(subject: &CsrSubject, node: Option<&Node>, taken: &[IpAddr]) -> bool {
    let Some(node) = node else { return false };
    let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let known: Vec<&str> = addresses.map(|a| a.address.as_str()).chain(node.metadata.name.as_deref()).collect();
    let reserved = |name: &str| name == "localhost" || name == "kubernetes" || name.starts_with("kubernetes.");
    subject.dns.iter().all(|d| known.contains(&d.as_str()) && !reserved(d))
        && subject
            .ips
            .iter()
            .all(|ip| known.contains(&ip.to_string().as_str()) && !ip.is_loopback() && !taken.contains(ip))
}

/// Decides; `node` is the Node that the subject names, `taken` are addresses that no node may claim.
fn plan(
    request: &CertificateSigningRequest,
    subject: &Result<CsrSubject, String>,
    node: Option<&Node>,
    taken: &[IpAddr],
) -> Plan {
    let spec = &request.spec;
    let issued = request.status.as_ref().is_some_and(|s| s.certificate.is_some());
    if ![CLIENT, KUBELET_CLIENT, KUBELET_SERVING].contains(&spec.signer_name.as_str())
        || issued
        || has(request, "Denied")
        || has(request, "Failed")
    {
        return Plan::Leave;
    }
    let allowed = subject.as_ref().map_err(Clone::clone).and_then(|s| signer_allows(spec, s));
    if has(request, "Approved") {
        return match allowed {
            Ok(()) => Plan::Sign,
            Err(why) => Plan::Fail(why),
        };
    }
    let (Ok(()), Ok(subject)) = (allowed, subject) else { return Plan::Leave };
    let user = spec.username.as_deref().unwrap_or_default();
    match spec.signer_name.as_str() {
        KUBELET_CLIENT if user == subject.common_name => Plan::Ask(vec![SELF_NODE_CLIENT, NODE_CLIENT]),
        KUBELET_CLIENT => Plan::Ask(vec![NODE_CLIENT]),
        KUBELET_SERVING if user == subject.common_name && names_are_the_nodes(subject, node, taken) => {
            Plan::Approve("Auto approving kubelet serving certificate for the node's own names.")
        }
        _ => Plan::Leave,
    }
}

fn condition(kind: &str, reason: &str, message: &str) -> CertificateSigningRequestCondition {
    let now = Some(Time(Timestamp::now()));
    CertificateSigningRequestCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: now.clone(),
        last_transition_time: now,
    }
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.requests, queue);
}

/// The question whether who made a request may create this subresource of requests.
fn question(spec: &CertificateSigningRequestSpec, subresource: &str) -> SubjectAccessReview {
    let resource = ResourceAttributes {
        group: Some("certificates.k8s.io".into()),
        resource: Some("certificatesigningrequests".into()),
        subresource: Some(subresource.into()),
        verb: Some("create".into()),
        version: Some("*".into()),
        ..ResourceAttributes::default()
    };
    let asked = SubjectAccessReviewSpec {
        user: spec.username.clone(),
        uid: spec.uid.clone(),
        groups: spec.groups.clone(),
        extra: spec.extra.clone(),
        resource_attributes: Some(resource),
        ..SubjectAccessReviewSpec::default()
    };
    SubjectAccessReview { spec: asked, ..SubjectAccessReview::default() }
}

/// The message of the first of `ways` that the authorizer allows.
async fn allowed(
    context: &Context,
    spec: &CertificateSigningRequestSpec,
    ways: Vec<(&'static str, &'static str)>,
) -> Result<Option<&'static str>, Error> {
    let api = context.client.cluster::<SubjectAccessReview>();
    for (subresource, message) in ways {
        let review = api.create(&question(spec, subresource)).await?;
        if review.status.is_some_and(|s| s.allowed) {
            return Ok(Some(message));
        }
    }
    Ok(None)
}

/// Approves or signs one request.
pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(request) = context.cache.requests.get(&key) else { return Ok(None) };
    let pem = String::from_utf8_lossy(&request.spec.request.0).into_owned();
    let subject = read_csr(&pem).map_err(|e| e.to_string());
    let node = subject.as_ref().ok().and_then(|s| s.common_name.strip_prefix(NODE_PREFIX));
    let node = node.and_then(|n| context.cache.nodes.named("", n));
    let mut changed = (*request).clone();
    let status = changed.status.get_or_insert_default();
    let api = context.client.cluster::<CertificateSigningRequest>();
    let plan = match plan(&request, &subject, node.as_deref(), &context.config.reserved_addresses) {
        Plan::Ask(ways) => allowed(&context, &request.spec, ways).await?.map_or(Plan::Leave, Plan::Approve),
        plan => plan,
    };
    let written = match plan {
        Plan::Leave | Plan::Ask(_) => return Ok(None),
        Plan::Approve(message) => {
            status.conditions.get_or_insert_default().push(condition("Approved", "AutoApproved", message));
            info!(request = key.1, "approving a certificate request");
            api.replace_subresource(&key.1, "approval", &changed).await?
        }
        Plan::Fail(why) => {
            status.conditions.get_or_insert_default().push(condition("Failed", "SignerValidationFailure", &why));
            api.replace_status(&key.1, &changed).await?
        }
        Plan::Sign => {
            // Without a key it is somebody else's to sign.
            let Some(signer) = context.config.credentials.signer() else { return Ok(None) };
            let asked = request.spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
            let lifetime = asked.unwrap_or(LIFETIME).clamp(SHORTEST, LIFETIME);
            let usages = request.spec.usages.clone().unwrap_or_default();
            match signer.sign_csr(&pem, &usages, lifetime) {
                Ok(certificate) => status.certificate = Some(ByteString(certificate.into_bytes())),
                Err(error) => {
                    let failed = condition("Failed", "SigningError", &error.to_string());
                    status.conditions.get_or_insert_default().push(failed);
                }
            }
            info!(request = key.1, signer = request.spec.signer_name, "signing a certificate request");
            api.replace_status(&key.1, &changed).await?
        }
    };
    context.settle(&context.cache.requests, &written).await;
    Ok(None)
}

/// When a request has served its purpose and is deleted: an hour after it was decided, a day after it was made, and once
/// its certificate has expired. `None` if nothing is known yet.
fn useless_at(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let after = |from: Timestamp, age: SignedDuration| from.checked_add(age).ok();
    let since = |kind: &str| {
        let conditions = request.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let decided = conditions.into_iter().find(|c| c.type_ == kind)?;
        decided.last_update_time.as_ref().map(|t| t.0)
    };
    let issued = request.status.as_ref().is_some_and(|s| s.certificate.is_some());
    let decided = since("Denied").or_else(|| since("Failed")).or_else(|| since("Approved").filter(|_| issued));
    let approved = since("Approved").is_some() && !issued;
    let age = if approved { PENDING_APPROVED } else { PENDING };
    let created = request.metadata.creation_timestamp.as_ref().map(|t| t.0);
    match decided {
        Some(at) => after(at, DECIDED),
        None => after(created?, age),
    }
}

/// Deletes one request that has served its purpose.
pub(crate) async fn clean(context: Arc<Context>, key: Key) -> Outcome {
    let Some(request) = context.cache.requests.get(&key) else { return Ok(None) };
    let Some(at) = useless_at(&request) else { return Ok(None) };
    let now = Timestamp::now();
    if at > now {
        return Ok(until(at, now));
    }
    let options = json!({"preconditions": {"uid": request.metadata.uid}});
    match context.client.cluster::<CertificateSigningRequest>().delete(&key.1, &options).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn request(
        signer: &str,
        user: &str,
        groups: &[&str],
        usages: &[&str],
        conditions: Value,
    ) -> CertificateSigningRequest {
        serde_json::from_value(json!({
            "metadata": {"name": "c"},
            "spec": {"signerName": signer, "request": "eA==", "username": user, "groups": groups, "usages": usages},
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn subject(name: &str, dns: &[&str]) -> Result<CsrSubject, String> {
        Ok(CsrSubject {
            common_name: name.into(),
            organizations: vec![NODES.into()],
            dns: dns.iter().map(|d| (*d).to_owned()).collect(),
            ..CsrSubject::default()
        })
    }

    const CLIENT_USE: &[&str] = &["digital signature", "client auth"];
    const SERVER_USE: &[&str] = &["digital signature", "server auth"];

    #[test]
    fn who_may_have_a_client_certificate_is_asked() {
        let node = subject("system:node:a", &[]);
        let (own, any) = (vec![SELF_NODE_CLIENT, NODE_CLIENT], vec![NODE_CLIENT]);
        for (what, user, usages, subject, expected) in [
            ("who joins", "system:bootstrap:abcdef", CLIENT_USE, &node, Some(any.clone())),
            ("its own", "system:node:a", CLIENT_USE, &node, Some(own)),
            ("another node", "system:node:b", CLIENT_USE, &node, Some(any)),
            ("another use", "system:node:a", SERVER_USE, &node, None),
            ("no node", "system:bootstrap:abcdef", CLIENT_USE, &subject("admin", &[]), None),
            ("with names", "system:bootstrap:abcdef", CLIENT_USE, &subject("system:node:a", &["a"]), None),
            ("unreadable", "system:bootstrap:abcdef", CLIENT_USE, &Err("broken".into()), None),
        ] {
            let plan = plan(&request(KUBELET_CLIENT, user, &[], usages, json!([])), subject, None, &[]);
            assert_eq!(plan, expected.map_or(Plan::Leave, Plan::Ask), "{what}");
        }
    }

    #[test]
    fn the_question_is_about_who_made_the_request() {
        let mut request = request(KUBELET_CLIENT, "u", &["g"], CLIENT_USE, json!([]));
        request.spec.uid = Some("id".into());
        let asked = serde_json::to_value(question(&request.spec, "nodeclient")).unwrap();
        let expected = json!({"user": "u", "uid": "id", "groups": ["g"], "resourceAttributes": {"verb": "create",
            "group": "certificates.k8s.io", "version": "*", "resource": "certificatesigningrequests",
            "subresource": "nodeclient"}});
        assert_eq!(asked["spec"], expected);
    }

    #[test]
    fn serving_certificates_are_for_the_nodes_own_names() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "a"},
            "status": {"addresses": [{"type": "Hostname", "address": "a.example"}, {"type": "Hostname", "address": "localhost"}]}}))
        .unwrap();
        let request = request(KUBELET_SERVING, "system:node:a", &[NODES], SERVER_USE, json!([]));
        for (names, node, good) in [
            (&["a", "a.example"][..], Some(&node), true),
            (&["a"], None, false),
            (&["kubernetes"], Some(&node), false),
            (&["localhost"], Some(&node), false),
            (&[], Some(&node), false),
        ] {
            let plan = plan(&request, &subject("system:node:a", names), node, &[]);
            assert_eq!(matches!(plan, Plan::Approve(_)), good, "{names:?}");
        }
    }

    #[test]
    fn only_approved_requests_are_signed() {
        let node = subject("system:node:a", &[]);
        let approved = json!([{"type": "Approved", "status": "True"}]);
        let at = |signer, conditions| request(signer, "someone", &[], CLIENT_USE, conditions);
        assert_eq!(plan(&at(KUBELET_CLIENT, json!([])), &node, None, &[]), Plan::Ask(vec![NODE_CLIENT]));
        assert_eq!(plan(&at(KUBELET_CLIENT, approved.clone()), &node, None, &[]), Plan::Sign);
        assert_eq!(plan(&at("example.com/other", approved.clone()), &node, None, &[]), Plan::Leave);
        assert!(matches!(plan(&at(KUBELET_CLIENT, approved.clone()), &subject("x", &[]), None, &[]), Plan::Fail(_)));
        let mut masters = subject("root", &[]).unwrap();
        masters.organizations = vec!["system:masters".into()];
        assert!(matches!(plan(&at(CLIENT, approved), &Ok(masters), None, &[]), Plan::Fail(_)));
        let denied = json!([{"type": "Approved", "status": "True"}, {"type": "Denied", "status": "True"}]);
        assert_eq!(plan(&at(KUBELET_CLIENT, denied), &node, None, &[]), Plan::Leave);
    }

    #[test]
    fn requests_go_when_they_are_of_no_use() {
        for (status, hours) in [
            (json!({}), 24),
            (
                json!({"conditions": [{"type": "Approved", "status": "True", "lastUpdateTime": "2026-01-01T05:00:00Z"}]}),
                1,
            ),
            (
                json!({"certificate": "eA==", "conditions":
                [{"type": "Approved", "status": "True", "lastUpdateTime": "2026-01-01T05:00:00Z"}]}),
                6,
            ),
            (
                json!({"conditions": [{"type": "Denied", "status": "True", "lastUpdateTime": "2026-01-01T07:00:00Z"}]}),
                8,
            ),
            (
                json!({"conditions": [{"type": "Failed", "status": "True", "lastUpdateTime": "2026-01-01T02:00:00Z"}]}),
                3,
            ),
        ] {
            let mut request = request(CLIENT, "u", &[], CLIENT_USE, json!([]));
            let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
            request.metadata.creation_timestamp = Some(Time(start));
            request.status = serde_json::from_value(status.clone()).unwrap();
            assert_eq!(useless_at(&request), start.checked_add(SignedDuration::from_hours(hours)).ok(), "{status}");
        }
    }
}
