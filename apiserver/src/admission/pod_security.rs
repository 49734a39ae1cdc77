//! Pod Security Standards: what pods of a namespace may ask of their nodes, by the namespace's labels.

use std::collections::BTreeMap;

use keelson_machinery::resources::find;
use keelson_machinery::status::{Cause, Status};
use serde_json::Value;

use super::security_checks::{self, Level, Violation};
use crate::access::{Admission, AdmissionPlugin, Operation};
use crate::audit;
use crate::objects::Objects;

/// The ways to tell of a violation.
const MODES: [&str; 3] = ["enforce", "audit", "warn"];
const PREFIX: &str = "pod-security.kubernetes.io/";
/// Pods that are looked at when a namespace becomes stricter, as upstream.
const MAX_PODS_LOOKED_AT: usize = 3000;

pub(super) struct PodSecurity {
    objects: Objects,
    /// What holds for namespaces without labels: labels of the three modes.
    defaults: Value,
    exempt: Exemptions,
}

/// Who and what is not looked at.
#[derive(Default)]
struct Exemptions {
    users: Vec<String>,
    namespaces: Vec<String>,
    runtime_classes: Vec<String>,
}

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

/// Whether an update of a pod touches what the standards are about: its images, and the annotations of old. Of what
/// else may be changed they say nothing.
fn matters(new: &Value, old: &Value) -> bool {
    let seccomp = |pod: &Value| -> Vec<(String, Value)> {
        let annotations = pod["metadata"]["annotations"].as_object().into_iter().flatten();
        let told = annotations.filter(|(key, _)| key.contains("seccomp.security.alpha.kubernetes.io/"));
        told.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    if seccomp(new) != seccomp(old) {
        return true;
    }
    let images = |pod: &Value, key: &str| -> Vec<Value> {
        pod["spec"][key].as_array().into_iter().flatten().map(|c| c["image"].clone()).collect()
    };
    ["containers", "initContainers", "ephemeralContainers"].iter().any(|key| images(new, key) != images(old, key))
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
    /// With a PodSecurityConfiguration, or null.
    pub fn new(objects: Objects, config: &Value) -> Result<Self, String> {
        if !config.is_null() && config["kind"] != "PodSecurityConfiguration" {
            return Err(
                "PodSecurity: must be a PodSecurityConfiguration of pod-security.admission.config.k8s.io/v1".into()
            );
        }
        let mut defaults = Value::Null;
        for mode in MODES {
            for (key, label) in [
                (mode.to_owned(), format!("{PREFIX}{mode}")),
                (format!("{mode}-version"), format!("{PREFIX}{mode}-version")),
            ] {
                if let Some(value) = config["defaults"][&key].as_str().filter(|value| !value.is_empty()) {
                    defaults[label] = value.into();
                }
            }
        }
        let mut causes = Vec::new();
        MODES.iter().for_each(|mode| {
            policy(&defaults, mode, &mut causes);
        });
        if let Some(cause) = causes.first() {
            return Err(format!("PodSecurity: defaults: {}", cause.message));
        }
        let texts = |key: &str| {
            let list = config["exemptions"][key].as_array().into_iter().flatten();
            list.filter_map(|text| text.as_str().map(str::to_owned)).collect()
        };
        let exempt = Exemptions {
            users: texts("usernames"),
            namespaces: texts("namespaces"),
            runtime_classes: texts("runtimeClasses"),
        };
        Ok(Self { objects, defaults, exempt })
    }

    /// The policy of a mode for a namespace with these labels.
    fn policy(&self, labels: &Value, mode: &str) -> Policy {
        let level = format!("{PREFIX}{mode}");
        let mut own = labels.clone();
        for key in [format!("{level}-version"), level] {
            if own[&key].is_null() && self.defaults[&key].is_string() {
                own[key.as_str()] = self.defaults[&key].clone();
            }
        }
        let found = policy(&own, mode, &mut Vec::new());
        let said = |key: &str| labels[format!("{PREFIX}{key}")].as_str();
        // Who enforces and says nothing of warnings is warned of the same.
        if mode == "warn"
            && said("warn").is_none()
            && let Some(level) = said("enforce").and_then(Level::parse).filter(|level| *level > found.level)
        {
            let version =
                if said("warn-version").is_none() { self.policy(labels, "enforce").version } else { found.version };
            return Policy { level, version };
        }
        found
    }

    /// Why a request is not looked at.
    fn exemption(&self, request: &Admission<'_>, pod: &Value) -> Option<&'static str> {
        let among = |list: &[String], name: &str| !name.is_empty() && list.iter().any(|known| known == name);
        if among(&self.exempt.namespaces, request.namespace) {
            Some("namespace")
        } else if among(&self.exempt.users, &request.user.name) {
            Some("user")
        } else if self.is_exempt_class(pod) {
            Some("runtimeClass")
        } else {
            None
        }
    }

    fn is_exempt_class(&self, pod: &Value) -> bool {
        let class = pod["spec"]["runtimeClassName"].as_str().filter(|class| !class.is_empty());
        class.is_some_and(|class| self.exempt.runtime_classes.iter().any(|known| known == class))
    }

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
        let mut pods = self.objects.all(def, namespace);
        pods.retain(|pod| !self.is_exempt_class(pod));
        for pod in pods.iter().take(MAX_PODS_LOOKED_AT) {
            let violations = security_checks::violations(policy.level, policy.version, pod);
            if !violations.is_empty() {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                by_reason.entry(reasons(&violations)).or_default().push(name);
            }
        }
        let mut out = Vec::new();
        if pods.len() > MAX_PODS_LOOKED_AT {
            out.push(format!(
                "new PodSecurity enforce level only checked against the first {MAX_PODS_LOOKED_AT} of {} existing pods",
                pods.len()
            ));
        }
        if by_reason.is_empty() {
            return out;
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
        out.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {:?}",
            policy.shown()
        ));
        out.extend(lines);
        out
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
                let new = self.policy(&object["metadata"]["labels"], "enforce");
                let old = self.policy(&before, "enforce");
                let laxer = new.version == old.version && new.level <= old.level;
                let exempt = self.exempt.namespaces.iter().any(|name| name == request.name);
                if new != old && new.level != Level::Privileged && !laxer && !exempt {
                    request.warnings.extend(self.warn_of_existing(request.name, &new));
                }
            }
            return Ok(());
        }
        self.pod(request)
    }
}

impl PodSecurity {
    /// Judges a pod, or what pods are made from.
    fn pod(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let is_pod = (request.def.group, request.def.plural) == ("", "pods");
        let relevant = match request.subresource {
            "" => true,
            subresource => is_pod && matches!(subresource, "ephemeralcontainers" | "resize"),
        };
        let Some(object) = request.object.as_deref().filter(|_| relevant) else { return Ok(()) };
        let Some(pod) = template(request.def.plural, object).filter(|pod| pod["spec"].is_object()) else {
            return Ok(());
        };
        if is_pod && request.old.is_some_and(|old| !matters(pod, old)) {
            return Ok(());
        }
        if let Some(why) = self.exemption(request, pod) {
            audit::annotate(format!("{PREFIX}exempt"), || why.into());
            return Ok(());
        }
        let Some(namespace) = self.objects.object("", "v1", "namespaces", "", request.namespace) else { return Ok(()) };
        let labels = &namespace["metadata"]["labels"];
        let judged = |mode: &str| {
            let policy = self.policy(labels, mode);
            let violations = security_checks::violations(policy.level, policy.version, pod);
            (policy.shown(), violations)
        };
        let (audited, violations) = judged("audit");
        if !violations.is_empty() {
            audit::annotate(format!("{PREFIX}audit-violations"), || {
                format!("would violate PodSecurity {audited:?}: {}", details(&violations))
            });
        }
        if is_pod {
            let (enforced, violations) = judged("enforce");
            audit::annotate(format!("{PREFIX}enforce-policy"), || enforced.clone());
            if !violations.is_empty() {
                let why = format!("violates PodSecurity {enforced:?}: {}", details(&violations));
                return Err(Status::forbidden("", "pods", request.name, &why));
            }
        }
        let (warned, violations) = judged("warn");
        if !violations.is_empty() {
            request.warnings.push(format!("would violate PodSecurity {warned:?}: {}", details(&violations)));
        }
        Ok(())
    }
}
