//! PodSecurityPolicy (`policy/v1beta1`), from earlier releases: a pod is made if a policy that its maker or its account may
//! `use` allows it, with what the policy fills in. Off by default; where it is on, the server serves the kind.

mod checks;
mod context;
mod defaults;
mod kind;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use keelson_machinery::status::{Cause, Status};
use serde_json::{Value, json};

use super::Parts;
use crate::access::{Admission, AdmissionPlugin, Attributes, Authorizer, Decision, Operation, Round, UserInfo};
use crate::authz::Authorization;
use crate::objects::Objects;
use crate::{audit, crd};

pub(crate) use kind::definition;

/// This step's name in the chain.
pub(crate) const NAME: &str = "PodSecurityPolicy";
/// Annotation of a pod that names the policy that let it in.
const ANNOTATION: &str = "kubernetes.io/psp";
/// What annotations of audit events begin with.
const AUDITED: &str = "podsecuritypolicy.policy.admission.k8s.io";

pub(super) struct PodSecurityPolicy {
    objects: Objects,
    customs: Arc<crd::Table>,
    authorization: Arc<Authorization>,
}

/// A policy's word on a pod.
#[derive(Debug)]
enum Verdict {
    /// This policy allows it, as it then is.
    Allowed(Box<Value>, String),
    /// None does; what those found that may be used.
    Refused(Vec<Cause>),
}

/// Looks for the policy that counts: by name, but first the one that let the pod in before; one that changes nothing
/// before one that fills something in. `mutating` says whether a policy may fill in anything at all.
fn judge(pod: &Value, policies: &[Value], mutating: bool, usable: impl Fn(&str) -> bool) -> Verdict {
    let name_of = |policy: &Value| policy["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let hint = if mutating { None } else { pod["metadata"]["annotations"][ANNOTATION].as_str() };
    let mut ordered: Vec<(String, &Value)> = policies.iter().map(|policy| (name_of(policy), policy)).collect();
    ordered.sort_by_key(|(name, _)| (hint != Some(name), name.clone()));
    let mut first_changing = None;
    let mut found = Vec::new();
    for (name, policy) in ordered {
        let changed = defaults::applied(policy, pod);
        let causes = checks::violations(policy, &changed);
        let same = changed == *pod;
        if !causes.is_empty() {
            found.push((name, causes));
        } else if (!same && (!mutating || first_changing.is_some())) || !usable(&name) {
            // It would have to change what may not be changed, another was first, or it is not for these.
        } else if same {
            return Verdict::Allowed(Box::new(changed), name);
        } else {
            first_changing = Some((changed, name));
        }
    }
    match first_changing {
        Some((pod, name)) => Verdict::Allowed(Box::new(pod), name),
        None => Verdict::Refused(
            found.into_iter().filter(|(name, _)| usable(name)).flat_map(|(_, causes)| causes).collect(),
        ),
    }
}

/// What was found, as a refusal shows it.
fn listed(causes: &[Cause]) -> String {
    let list: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    format!("[{}]", list.join(" "))
}

impl PodSecurityPolicy {
    pub fn new(parts: &Parts) -> Self {
        let (objects, customs) = (parts.objects.clone(), parts.customs.clone());
        Self { objects, customs, authorization: parts.authorization.clone() }
    }

    fn policies(&self) -> Vec<Value> {
        let custom = self.customs.find(kind::GROUP, kind::VERSION, kind::PLURAL);
        custom.map(|custom| self.objects.all(custom.def(), "")).unwrap_or_default()
    }

    fn may_use(&self, who: &UserInfo, namespace: &str, policy: &str) -> bool {
        let attributes = Attributes {
            verb: "use".into(),
            group: kind::GROUP.into(),
            version: "*".into(),
            resource: kind::PLURAL.into(),
            namespace: namespace.into(),
            name: policy.into(),
            ..Attributes::default()
        };
        self.authorization.authorize(who, &attributes) == Decision::Allow
    }

    /// Judges a pod; a pod that no policy is there for is refused.
    fn judge(&self, request: &Admission<'_>, pod: &Value, mutating: bool) -> Result<Verdict, Status> {
        let policies = self.policies();
        if policies.is_empty() {
            let why = "PodSecurityPolicy: no providers available to validate pod request";
            return Err(Status::forbidden("", "pods", request.name, why));
        }
        let account = account(request.namespace, pod["spec"]["serviceAccountName"].as_str().unwrap_or_default());
        let usable = |name: &str| {
            let of_account = account.as_ref().is_some_and(|account| self.may_use(account, request.namespace, name));
            of_account || self.may_use(request.user, request.namespace, name)
        };
        Ok(judge(pod, &policies, mutating, usable))
    }
}

/// A pod's account as a user.
fn account(namespace: &str, name: &str) -> Option<UserInfo> {
    let groups = ["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    let groups = groups.into_iter().chain(["system:authenticated".to_owned()]).collect();
    let name = (!name.is_empty()).then(|| format!("system:serviceaccount:{namespace}:{name}"))?;
    Some(UserInfo { name, groups, ..UserInfo::default() })
}

/// Whether a request is looked at: pods that are made or changed, beyond what garbage collection changes.
fn concerns(request: &Admission<'_>) -> bool {
    let pods = (request.def.group, request.def.plural) == ("", "pods");
    let written = matches!(request.operation, Operation::Create | Operation::Update);
    if !pods || !written || !matches!(request.subresource, "" | "ephemeralcontainers") {
        return false;
    }
    let (Some(new), Some(old)) = (request.object.as_deref(), request.old) else { return true };
    let other = ["labels", "annotations"].iter().any(|key| new["metadata"][key] != old["metadata"][key]);
    other || new["spec"] != old["spec"]
}

#[async_trait::async_trait]
impl AdmissionPlugin for PodSecurityPolicy {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        if !concerns(request) || request.operation != Operation::Create {
            return Ok(());
        }
        let Some(pod) = request.object.as_deref().cloned() else { return Ok(()) };
        match self.judge(request, &pod, true)? {
            Verdict::Allowed(mut allowed, policy) => {
                if !allowed["metadata"]["annotations"].is_object() {
                    allowed["metadata"]["annotations"] = json!({});
                }
                allowed["metadata"]["annotations"][ANNOTATION] = policy.as_str().into();
                audit::annotate(format!("{AUDITED}/admit-policy"), || policy);
                if let Some(object) = request.object.as_deref_mut() {
                    *object = *allowed;
                }
                Ok(())
            }
            Verdict::Refused(causes) => {
                let why = format!("PodSecurityPolicy: unable to admit pod: {}", listed(&causes));
                Err(Status::forbidden("", "pods", request.name, &why))
            }
        }
    }

    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        if !concerns(request) {
            return Ok(());
        }
        let Some(pod) = request.object.as_deref() else { return Ok(()) };
        match self.judge(request, pod, false)? {
            Verdict::Allowed(_, policy) => {
                audit::annotate(format!("{AUDITED}/validate-policy"), || policy);
                Ok(())
            }
            Verdict::Refused(causes) => {
                let why = format!("PodSecurityPolicy: unable to validate pod: {}", listed(&causes));
                Err(Status::forbidden("", "pods", request.name, &why))
            }
        }
    }
}
