//! What a policy fills in where a pod says nothing.

use serde_json::{Value, json};

use super::context::{CONTAINERS, effective, least, profile_of, put, set, text};

/// Annotations of policies that name default profiles.
const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/defaultProfileName";
const APP_ARMOR: &str = "apparmor.security.beta.kubernetes.io/defaultProfileName";

/// The pod with what the policy sets by default.
pub fn applied(policy: &Value, pod: &Value) -> Value {
    let mut pod = pod.clone();
    of_pod(policy, &mut pod);
    for key in CONTAINERS {
        let Some(mut list) = pod["spec"].get_mut(key).and_then(Value::as_array_mut).map(std::mem::take) else {
            continue;
        };
        list.iter_mut().for_each(|container| of_container(policy, &pod, container));
        pod["spec"][key] = list.into();
    }
    pod
}

fn must_run_as(strategy: &Value) -> Option<Value> {
    (strategy["rule"] == "MustRunAs").then(|| least(strategy)).flatten()
}

fn of_pod(policy: &Value, pod: &mut Value) {
    let spec = &policy["spec"];
    let own = |pod: &Value, key: &str| pod["spec"]["securityContext"][key].clone();
    if own(pod, "supplementalGroups").is_null()
        && let Some(group) = must_run_as(&spec["supplementalGroups"])
    {
        put(&mut pod["spec"], "supplementalGroups", json!([group]));
    }
    if own(pod, "fsGroup").is_null()
        && let Some(group) = must_run_as(&spec["fsGroup"])
    {
        put(&mut pod["spec"], "fsGroup", group);
    }
    if own(pod, "seLinuxOptions").is_null() && spec["seLinux"]["rule"] == "MustRunAs" {
        put(&mut pod["spec"], "seLinuxOptions", spec["seLinux"]["seLinuxOptions"].clone());
    }
    if own(pod, "seccompProfile").is_null()
        && let Some(profile) = profile_of(text(&policy["metadata"]["annotations"][SECCOMP]))
    {
        put(&mut pod["spec"], "seccompProfile", profile);
    }
    let class = &spec["runtimeClass"]["defaultRuntimeClassName"];
    if pod["spec"]["runtimeClassName"].is_null() && class.is_string() {
        pod["spec"]["runtimeClassName"] = class.clone();
    }
}

fn of_container(policy: &Value, pod: &Value, container: &mut Value) {
    let spec = &policy["spec"];
    for key in ["runAsUser", "runAsGroup"] {
        if effective(pod, container, key).is_null()
            && let Some(id) = must_run_as(&spec[key])
        {
            put(container, key, id);
        }
    }
    if effective(pod, container, "seLinuxOptions").is_null() && spec["seLinux"]["rule"] == "MustRunAs" {
        put(container, "seLinuxOptions", spec["seLinux"]["seLinuxOptions"].clone());
    }
    if container["securityContext"]["appArmorProfile"].is_null()
        && let Some(profile) = profile_of(text(&policy["metadata"]["annotations"][APP_ARMOR]))
    {
        put(container, "appArmorProfile", profile);
    }
    // The agent looks at the image's user where nobody says who the container runs as.
    let said = ["runAsNonRoot", "runAsUser"].iter().any(|key| !effective(pod, container, key).is_null());
    if !said && spec["runAsUser"]["rule"] == "MustRunAsNonRoot" {
        put(container, "runAsNonRoot", true.into());
    }
    capabilities(spec, container);
    if spec["readOnlyRootFilesystem"] == true && container["securityContext"]["readOnlyRootFilesystem"].is_null() {
        put(container, "readOnlyRootFilesystem", true.into());
    }
    if container["securityContext"]["allowPrivilegeEscalation"].is_null() {
        let default = &spec["defaultAllowPrivilegeEscalation"];
        if default.is_boolean() {
            put(container, "allowPrivilegeEscalation", default.clone());
        } else if spec["allowPrivilegeEscalation"] == false {
            put(container, "allowPrivilegeEscalation", false.into());
        }
    }
}

fn capabilities(spec: &Value, container: &mut Value) {
    let own = &container["securityContext"]["capabilities"];
    let (add, drop) = (set(&own["add"]), set(&own["drop"]));
    // What the container drops is not added to it.
    let more = set(&spec["defaultAddCapabilities"]).into_iter().filter(|name| !drop.contains(name));
    let added: std::collections::BTreeSet<String> = add.iter().cloned().chain(more).collect();
    let dropped: std::collections::BTreeSet<String> =
        drop.iter().cloned().chain(set(&spec["requiredDropCapabilities"])).collect();
    if added.len() == add.len() && dropped.len() == drop.len() {
        return;
    }
    let mut made = json!({});
    for (key, list) in [("add", added), ("drop", dropped)] {
        if !list.is_empty() {
            made[key] = list.into_iter().collect::<Vec<_>>().into();
        }
    }
    put(container, "capabilities", made);
}
