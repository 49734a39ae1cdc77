//! Reading a pod: its containers of all sorts, policies and names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, Probe};

use super::text;
use crate::cri::{POD_NAME, POD_NAMESPACE, POD_UID};

/// The grace of pods that do not say theirs, seconds.
pub const DEFAULT_GRACE: i64 = 30;

/// The sorts of containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Runs to its end before the others.
    Init,
    /// An init container that goes on running.
    Sidecar,
    /// The pod's purpose.
    Main,
    /// Added to a running pod for a look inside.
    Ephemeral,
}

/// The spec; pods of the API always have one.
pub fn spec(pod: &Pod) -> PodSpec {
    pod.spec.clone().unwrap_or_default()
}

/// Namespace and name for people.
pub fn title(pod: &Pod) -> String {
    format!("{}/{}", text(pod.metadata.namespace.as_ref()), text(pod.metadata.name.as_ref()))
}

/// The pod's uid.
pub fn uid(pod: &Pod) -> String {
    text(pod.metadata.uid.as_ref())
}

/// Containers that run before the others, in order; sidecars among them.
pub fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
}

/// The pod's main containers.
pub fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default()
}

/// Containers added to the running pod.
pub fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default()
}

/// Whether an init container goes on running.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Every container of the pod but the ephemeral ones.
pub fn all(pod: &Pod) -> impl Iterator<Item = (Sort, &Container)> {
    let init = init_containers(pod).iter().map(|c| (if is_sidecar(c) { Sort::Sidecar } else { Sort::Init }, c));
    init.chain(containers(pod).iter().map(|c| (Sort::Main, c)))
}

/// The container of this name.
pub fn find<'a>(pod: &'a Pod, name: &str) -> Option<(Sort, &'a Container)> {
    all(pod).find(|(_, c)| c.name == name)
}

/// The names of all containers of the pod.
pub fn names(pod: &Pod) -> impl Iterator<Item = &str> {
    all(pod).map(|(_, c)| c.name.as_str()).chain(ephemeral_containers(pod).iter().map(|c| c.name.as_str()))
}

/// An ephemeral container as if it were an ordinary one.
pub fn plain(container: &EphemeralContainer) -> Container {
    Container {
        name: container.name.clone(),
        args: container.args.clone(),
        command: container.command.clone(),
        env: container.env.clone(),
        env_from: container.env_from.clone(),
        image: container.image.clone(),
        image_pull_policy: container.image_pull_policy.clone(),
        resources: container.resources.clone(),
        security_context: container.security_context.clone(),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        termination_message_path: container.termination_message_path.clone(),
        termination_message_policy: container.termination_message_policy.clone(),
        tty: container.tty,
        volume_devices: container.volume_devices.clone(),
        volume_mounts: container.volume_mounts.clone(),
        working_dir: container.working_dir.clone(),
        ..Container::default()
    }
}

/// Whether a container that ended with `code` is started again.
pub fn restarts(pod: &Pod, sort: Sort, container: &Container, code: i32) -> bool {
    let of_pod = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|value| *value == code);
        if listed == (codes.operator == "In") && rule.action == "Restart" {
            return true;
        }
    }
    match (sort, container.restart_policy.as_deref().or(of_pod)) {
        (Sort::Ephemeral, _) => false,
        (Sort::Sidecar, _) => true,
        (_, Some("Never")) => false,
        (Sort::Init, _) | (_, Some("OnFailure")) => code != 0,
        _ => true,
    }
}

/// Why a container waits, as the status says.
pub fn waiting_reason<'a>(pod: &'a Pod, container: &str) -> Option<&'a str> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let found = lists.into_iter().flatten().flatten().find(|c| c.name == container)?;
    found.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

/// Whether the pod uses the node's network.
pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|s| s.host_network == Some(true))
}

/// The grace with which the pod ends, seconds.
pub fn grace(pod: &Pod) -> i64 {
    let of_spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    pod.metadata.deletion_grace_period_seconds.or(of_spec).unwrap_or(DEFAULT_GRACE)
}

/// The grace of one container that ends because of a probe.
pub fn probe_grace(pod: &Pod, probe: Option<&Probe>) -> i64 {
    let of_spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    probe.and_then(|p| p.termination_grace_period_seconds).or(of_spec).unwrap_or(DEFAULT_GRACE)
}

/// Whether the pod has ended for good, as the API says.
pub fn is_finished(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|s| matches!(s.phase.as_deref(), Some("Succeeded" | "Failed")))
}

/// The labels by which sandboxes and containers are found again.
pub fn labels(pod: &Pod) -> HashMap<String, String> {
    let meta = &pod.metadata;
    let ours = [(POD_NAME, &meta.name), (POD_NAMESPACE, &meta.namespace), (POD_UID, &meta.uid)];
    ours.into_iter().map(|(k, v)| (k.to_owned(), text(v.as_ref()))).collect()
}

/// The directory of a pod's logs: `NAMESPACE_NAME_UID` as kubelets have it.
pub fn log_directory(root: &Path, pod: &Pod) -> PathBuf {
    let meta = &pod.metadata;
    let parts = [&meta.namespace, &meta.name, &meta.uid].map(|p| text(p.as_ref()));
    root.join(parts.join("_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_started_again() {
        let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
        for (policy, own, rules, sort, code, wanted) in [
            ("Always", None, json!([]), Sort::Main, 0, true),
            ("OnFailure", None, json!([]), Sort::Main, 0, false),
            ("OnFailure", None, json!([]), Sort::Main, 1, true),
            ("Never", None, json!([]), Sort::Main, 1, false),
            ("Never", None, rules.clone(), Sort::Main, 42, true),
            ("Never", None, rules, Sort::Main, 1, false),
            ("Always", Some("Never"), json!([]), Sort::Main, 1, false),
            ("Never", Some("Always"), json!([]), Sort::Sidecar, 0, true),
            ("Always", None, json!([]), Sort::Init, 0, false),
            ("Always", None, json!([]), Sort::Init, 1, true),
            ("Never", None, json!([]), Sort::Init, 1, false),
            ("Always", None, json!([]), Sort::Ephemeral, 1, false),
        ] {
            let pod: Pod = serde_json::from_value(json!({"spec": {"restartPolicy": policy, "containers": [
                {"name": "c", "restartPolicy": own, "restartPolicyRules": rules}]}}))
            .unwrap();
            assert_eq!(restarts(&pod, sort, &containers(&pod)[0], code), wanted, "{policy} {own:?} {sort:?} {code}");
        }
    }
}
