//! Security contexts: the pod's and the container's, as one answer for the runtime.

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext,
};
use keelson_proto::cri::security_profile::ProfileType;
use keelson_proto::cri::{self, Capability, Int64Value, NamespaceMode, NamespaceOption, SecurityProfile};

use super::{SpecError, pod};
use crate::cri::Features;
use crate::userns::LENGTH;

/// Where profiles named by pods are, as upstream has it.
const SECCOMP_ROOT: &str = "/var/lib/kubelet/seccomp";
/// Of containers that see all of `/proc`.
const UNMASKED: &str = "Unmasked";
/// Paths that an ordinary container does not see.
const HIDDEN: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Paths that it can only read.
const FIXED: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn shared(of: &Pod) -> PodSecurityContext {
    of.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default()
}

fn id(value: Option<i64>) -> Option<Int64Value> {
    value.map(|value| Int64Value { value })
}

/// The namespaces of a pod's sandbox and, with `target`, those of a container that looks into another one.
pub fn namespaces(of: &Pod, target: Option<&str>, ids: Option<u32>) -> NamespaceOption {
    let spec = pod::spec(of);
    let mode = |host: Option<bool>, other: NamespaceMode| -> i32 {
        if host == Some(true) { NamespaceMode::Node.into() } else { other.into() }
    };
    let together = spec.share_process_namespace == Some(true);
    let own = if together { NamespaceMode::Pod } else { NamespaceMode::Container };
    let mut options = NamespaceOption {
        network: mode(spec.host_network, NamespaceMode::Pod),
        pid: mode(spec.host_pid, own),
        ipc: mode(spec.host_ipc, NamespaceMode::Pod),
        target_id: String::new(),
        userns_options: ids.map(|first| cri::UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: mappings(first),
            gids: mappings(first),
        }),
    };
    if let Some(target) = target {
        options.pid = NamespaceMode::Target.into();
        options.target_id = target.into();
    }
    options
}

/// Where the ids of a pod's own user namespace are on the node.
pub fn mappings(first: u32) -> Vec<cri::IdMapping> {
    vec![cri::IdMapping { host_id: first, container_id: 0, length: LENGTH }]
}

/// Which of an image's own groups a container keeps.
fn groups_policy(shared: &PodSecurityContext) -> i32 {
    let strict = shared.supplemental_groups_policy.as_deref() == Some("Strict");
    let policy = if strict { cri::SupplementalGroupsPolicy::Strict } else { cri::SupplementalGroupsPolicy::Merge };
    policy.into()
}

fn seccomp(profile: Option<&SeccompProfile>) -> Option<SecurityProfile> {
    let profile = profile?;
    let kind = match profile.type_.as_str() {
        "RuntimeDefault" => ProfileType::RuntimeDefault,
        "Localhost" => ProfileType::Localhost,
        _ => ProfileType::Unconfined,
    };
    let file = profile.localhost_profile.as_deref().filter(|_| kind == ProfileType::Localhost);
    let localhost_ref = file.map(|f| format!("{SECCOMP_ROOT}/{f}")).unwrap_or_default();
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref })
}

fn apparmor(profile: Option<&AppArmorProfile>) -> Option<SecurityProfile> {
    let profile = profile?;
    let kind = match profile.type_.as_str() {
        "RuntimeDefault" => ProfileType::RuntimeDefault,
        "Localhost" => ProfileType::Localhost,
        _ => ProfileType::Unconfined,
    };
    Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: profile.localhost_profile.clone().unwrap_or_default(),
    })
}

fn is_privileged(own: Option<&SecurityContext>) -> bool {
    own.is_some_and(|s| s.privileged == Some(true))
}

/// What this agent or its runtime cannot do is refused, so that nobody believes to be protected by it.
pub fn refusals(of: &Pod, features: &Features, handler: &str) -> Option<String> {
    let spec = pod::spec(of);
    let shared = shared(of);
    let contexts = || pod::all(of).filter_map(|(_, c)| c.security_context.as_ref());
    if spec.host_users == Some(false) && !features.user_namespaces.contains(handler) {
        return Some(format!(
            "hostUsers: false: the container runtime does not support user namespaces for the handler {handler:?}"
        ));
    }
    let labelled = shared.se_linux_options.is_some() || contexts().any(|c| c.se_linux_options.is_some());
    // Without SELinux there is nothing that the labels would mean.
    if labelled && std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        return Some("seLinuxOptions are not supported by this node".into());
    }
    if shared.supplemental_groups_policy.as_deref() == Some("Strict") && !features.groups_policy {
        return Some("supplementalGroupsPolicy Strict is not supported by this node's runtime".into());
    }
    // The API asks for both together; without it root of the pod would be the node's.
    if spec.host_users != Some(false) && contexts().any(|c| c.proc_mount.as_deref() == Some(UNMASKED)) {
        return Some("procMount Unmasked without hostUsers: false is not supported by this node".into());
    }
    None
}

/// The sandbox's security.
pub fn sandbox(of: &Pod, ids: Option<u32>) -> cri::LinuxSandboxSecurityContext {
    let shared = shared(of);
    let mut supplemental_groups = shared.supplemental_groups.clone().unwrap_or_default();
    supplemental_groups.extend(shared.fs_group);
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(of, None, ids)),
        supplemental_groups_policy: groups_policy(&shared),
        run_as_user: id(shared.run_as_user),
        run_as_group: id(shared.run_as_group.filter(|_| shared.run_as_user.is_some())),
        supplemental_groups,
        privileged: pod::all(of).any(|(_, c)| is_privileged(c.security_context.as_ref())),
        // The pause container does nothing that a profile could forbid.
        seccomp: Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        }),
        ..Default::default()
    }
}

/// A container's security; `target` is the container whose processes it shares.
pub fn container(
    of: &Pod,
    container: &Container,
    image: &cri::Image,
    target: Option<&str>,
    ids: Option<u32>,
) -> Result<cri::LinuxContainerSecurityContext, SpecError> {
    let shared = shared(of);
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let user = own.run_as_user.or(shared.run_as_user);
    if own.run_as_non_root.or(shared.run_as_non_root) == Some(true) {
        not_root(user, image)?;
    }
    let bare = privileged || own.proc_mount.as_deref() == Some(UNMASKED);
    let unless = |paths: &[&str]| if bare { vec![] } else { paths.iter().map(|p| (*p).into()).collect() };
    let mut supplemental_groups = shared.supplemental_groups.clone().unwrap_or_default();
    supplemental_groups.extend(shared.fs_group);
    // Without a user of the spec the image's is taken.
    let image_user = image.uid.as_ref().map(|u| u.value).filter(|_| user.is_none());
    let name = image.username.clone();
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: own.capabilities.map(|c| Capability {
            add_capabilities: c.add.unwrap_or_default(),
            drop_capabilities: c.drop.unwrap_or_default(),
        }),
        privileged,
        namespace_options: Some(namespaces(of, target, ids)),
        supplemental_groups_policy: groups_policy(&shared),
        run_as_user: id(user.or(image_user)),
        run_as_username: if user.is_none() && image_user.is_none() { name } else { String::new() },
        run_as_group: id(own.run_as_group.or(shared.run_as_group)),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups,
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: unless(HIDDEN),
        readonly_paths: unless(FIXED),
        seccomp: seccomp(own.seccomp_profile.as_ref().or(shared.seccomp_profile.as_ref())),
        apparmor: apparmor(own.app_armor_profile.as_ref().or(shared.app_armor_profile.as_ref())),
    })
}

fn not_root(user: Option<i64>, image: &cri::Image) -> Result<(), SpecError> {
    let of_image = image.uid.as_ref().map(|u| u.value);
    match (user, of_image) {
        (Some(0), _) => Err(SpecError::new("container's runAsUser breaks non-root policy")),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(SpecError::new("container has runAsNonRoot and image will run as root")),
        (None, Some(_)) => Ok(()),
        (None, None) if image.username.is_empty() => {
            Err(SpecError::new("container has runAsNonRoot and image will run as root"))
        }
        (None, None) => Err(SpecError::new(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root",
            image.username
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(shared: &Value, own: &Value) -> Pod {
        serde_json::from_value(json!({"spec": {"securityContext": shared,
            "containers": [{"name": "c", "securityContext": own}]}}))
        .unwrap()
    }

    #[test]
    fn the_containers_word_is_the_last() {
        let of = of(&json!({"runAsUser": 1, "fsGroup": 9, "supplementalGroups": [5]}), &json!({"runAsUser": 2}));
        let got = container(&of, &pod::containers(&of)[0], &cri::Image::default(), None, None).unwrap();
        assert_eq!(got.run_as_user.unwrap().value, 2);
        assert_eq!(got.supplemental_groups, [5, 9]);
        assert!(!got.masked_paths.is_empty());
    }

    #[test]
    fn root_is_found_out() {
        let image =
            |uid: Option<i64>, name: &str| cri::Image { uid: id(uid), username: name.into(), ..Default::default() };
        for (user, image, good) in [
            (Some(0), image(None, ""), false),
            (Some(7), image(Some(0), ""), true),
            (None, image(Some(0), ""), false),
            (None, image(Some(5), ""), true),
            (None, image(None, "www"), false),
            (None, image(None, ""), false),
        ] {
            assert_eq!(not_root(user, &image).is_ok(), good, "{user:?} {image:?}");
        }
    }

    #[test]
    fn what_is_not_done_is_said() {
        let none = Features::default();
        assert!(refusals(&of(&json!({}), &json!({})), &none, "").is_none());
        let labels = std::path::Path::new("/sys/fs/selinux/enforce").exists();
        assert_eq!(refusals(&of(&json!({"seLinuxOptions": {}}), &json!({})), &none, "").is_some(), labels);
        assert!(refusals(&of(&json!({}), &json!({"procMount": "Unmasked"})), &none, "").is_some());
        let strict = of(&json!({"supplementalGroupsPolicy": "Strict"}), &json!({}));
        let all = Features { user_namespaces: [String::new()].into(), groups_policy: true, ..Features::default() };
        assert!(refusals(&strict, &none, "").is_some() && refusals(&strict, &all, "").is_none());
        let mut own = of(&json!({}), &json!({}));
        own.spec.as_mut().unwrap().host_users = Some(false);
        for (features, handler, good) in [(&none, "", false), (&all, "", true), (&all, "other", false)] {
            assert_eq!(refusals(&own, features, handler).is_none(), good, "{handler}");
        }
        let options = namespaces(&own, None, Some(LENGTH)).userns_options.unwrap();
        assert_eq!((options.uids[0].host_id, options.uids[0].length), (LENGTH, LENGTH));
    }
}
