//! Pod Security Standards: what pods of a namespace may ask of their nodes, by the namespace's labels.

use std::collections::BTreeMap;

use keelson_machinery::resources::find;
use keelson_machinery::status::{Cause, Status};
use serde_json::Value;

use super::security_checks::{self, Level, Violation};
use crate::access::{Admission, AdmissionPlugin, Operation};
use crate::objects::Objects;

const PREFIX: &str = "pod-security.kubernetes.io/";
/// Pods that are looked at when a namespace becomes stricter, as upstream.
const MAX_PODS_LOOKED_AT: usize = 3000;

pub(super) struct PodSecurity(pub(super) Objects);

/// A level and the version of its definition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Policy {
    level: Level,
    /// `latest`, or the minor version.
    version: Option<u32>,
}

impl Policy {
    fn shown(&self) -> String {
        match self.version {
            None => format!("{}:latest", self.level.name()),
            Some(minor) => format!("{}:v1.{minor}", self.level.name()),
        }
    }
}

/// The policy of a mode, as the labels say it; what is wrong with them is told beside it.
fn policy(labels: &Value, mode: &str, causes: &mut Vec<Cause>) -> Policy {
    let level_key = format!("{PREFIX}{mode}");
    let version_key = format!("{level_key}-version");
    let mut level = Level::Privileged;
    let mut broken = false;
    if let Some(text) = labels[&level_key].as_str() {
        match Level::parse(text) {
            Some(known) => level = known,
            None => {
                broken = true;
                let why = "must be one of privileged, baseline, restricted";
                causes.push(Cause::invalid(format!("metadata.labels[{level_key}]"), &labels[&level_key], why));
            }
        }
    }
    let mut version = None;
    if let Some(text) = labels[&version_key].as_str().filter(|text| *text != "latest") {
        let minor = text.strip_prefix("v1.").filter(|m| *m == "0" || !m.starts_with('0')).and_then(|m| m.parse().ok());
        version = minor;
        if minor.is_none() {
            let why = "must be \"latest\" or \"v1.x\"";
            causes.push(Cause::invalid(format!("metadata.labels[{version_key}]"), &labels[&version_key], why));
        }
    }
    // A level that cannot be read is enforced as the strictest one.
    if broken && mode == "enforce" {
        level = Level::Restricted;
    }
    Policy { level, version }
}

/// The pod template of a row's objects.
fn template<'a>(plural: &str, object: &'a Value) -> Option<&'a Value> {
    Some(match plural {
        "pods" => object,
        "podtemplates" => &object["template"],
        "cronjobs" => &object["spec"]["jobTemplate"]["spec"]["template"],
        "deployments" | "replicasets" | "daemonsets" | "statefulsets" | "replicationcontrollers" | "jobs" => {
            &object["spec"]["template"]
        }
        _ => return None,
    })
}

/// Problems with their details, as refusals and warnings list them.
fn details(violations: &[Violation]) -> String {
    let list: Vec<String> = violations.iter().map(|v| format!("{} ({})", v.reason, v.detail)).collect();
    list.join(", ")
}

fn reasons(violations: &[Violation]) -> String {
    violations.iter().map(|v| v.reason.as_str()).collect::<Vec<_>>().join(", ")
}

impl PodSecurity {
    fn namespace(&self, request: &Admission<'_>) -> Result<(), Status> {
        let Some(object) = request.object.as_deref() else { return Ok(()) };
        let (mut causes, labels) = (Vec::new(), &object["metadata"]["labels"]);
        policy(labels, "enforce", &mut causes);
        for mode in ["audit", "warn"] {
            policy(labels, mode, &mut causes);
        }
        let old_labels = request.old.map(|old| &old["metadata"]["labels"]);
        if !causes.is_empty() {
            // What was wrong before does not keep other changes from being made.
            let mut before = Vec::new();
            for mode in ["enforce", "audit", "warn"] {
                old_labels.map(|labels| policy(labels, mode, &mut before));
            }
            if before != causes {
                return Err(Status::invalid("", "Namespace", request.name, causes));
            }
        }
        Ok(())
    }

    /// What pods that are already there would violate.
    fn warn_of_existing(&self, namespace: &str, policy: &Policy) -> Vec<String> {
        let Some(def) = find("", "v1", "pods") else { return Vec::new() };
        let mut by_reason: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pod in self.0.all(def, namespace).iter().take(MAX_PODS_LOOKED_AT) {
            let violations = security_checks::violations(policy.level, policy.version, pod);
            if !violations.is_empty() {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                by_reason.entry(reasons(&violations)).or_default().push(name);
            }
        }
        if by_reason.is_empty() {
            return Vec::new();
        }
        let mut lines: Vec<String> = by_reason
            .into_iter()
            .map(|(reasons, names)| match &names[..] {
                [one] => format!("{one}: {reasons}"),
                [one, _] => format!("{one} (and 1 other pod): {reasons}"),
                [one, rest @ ..] => format!("{one} (and {} other pods): {reasons}", rest.len()),
                [] => reasons,
            })
            .collect();
        lines.sort();
        let first = format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {:?}",
            policy.shown()
        );
        std::iter::once(first).chain(lines).collect()
    }
}

#[async_trait::async_trait]
impl AdmissionPlugin for PodSecurity {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        if !matches!(request.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        if (request.def.group, request.def.plural, request.subresource) == ("", "namespaces", "") {
            let before = request.old.map(|old| old["metadata"]["labels"].clone());
            self.namespace(request)?;
            if let (Some(before), Some(object)) = (before, request.object.as_deref()) {
                let new = policy(&object["metadata"]["labels"], "enforce", &mut Vec::new());
                let old = policy(&before, "enforce", &mut Vec::new());
                let stricter = new != old && new.level != Level::Privileged && new.level >= old.level;
                if stricter {
                    request.warnings.extend(self.warn_of_existing(request.name, &new));
                }
            }
            return Ok(());
        }
        let is_pod = (request.def.group, request.def.plural) == ("", "pods");
        let relevant = match request.subresource {
            "" => request.operation == Operation::Create || !is_pod,
            subresource => is_pod && subresource == "ephemeralcontainers",
        };
        let Some(object) = request.object.as_deref().filter(|_| relevant) else { return Ok(()) };
        let Some(pod) = template(request.def.plural, object).filter(|pod| pod["spec"].is_object()) else {
            return Ok(());
        };
        let Some(namespace) = self.0.object("", "v1", "namespaces", "", request.namespace) else { return Ok(()) };
        let labels = &namespace["metadata"]["labels"];
        let enforced = policy(labels, "enforce", &mut Vec::new());
        if is_pod {
            let violations = security_checks::violations(enforced.level, enforced.version, pod);
            if !violations.is_empty() {
                let why = format!("violates PodSecurity {:?}: {}", enforced.shown(), details(&violations));
                return Err(Status::forbidden("", "pods", request.name, &why));
            }
        }
        let warned = policy(labels, "warn", &mut Vec::new());
        let violations = security_checks::violations(warned.level, warned.version, pod);
        if !violations.is_empty() {
            request.warnings.push(format!("would violate PodSecurity {:?}: {}", warned.shown(), details(&violations)));
        }
        Ok(())
    }
}
