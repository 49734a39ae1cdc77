//! Kinds and versions of kinds that are not resources here, but that upstream's decoders know: a body of an older version of what
//! is served is read, and refused for its version only. The list is that of the types of `k8s.io/api` v1.36 beside those of the
//! resource table.

use keelson_machinery::resource::ResourceDef;

/// The webhook configurations and policies.
const ADMISSION: &[&str] = &[
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
];
const FLOW: &[&str] = &["FlowSchema", "PriorityLevelConfiguration"];
const RBAC: &[&str] = &["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
const CLAIMS: &[&str] = &["DeviceClass", "ResourceClaim", "ResourceClaimTemplate", "ResourceSlice"];
const REVIEWS: &[&str] =
    &["LocalSubjectAccessReview", "SelfSubjectAccessReview", "SelfSubjectRulesReview", "SubjectAccessReview"];
const STORAGE: &[&str] =
    &["CSIDriver", "CSINode", "CSIStorageCapacity", "StorageClass", "VolumeAttachment", "VolumeAttributesClass"];

/// What the core group has for the options and answers of its subresources.
const CORE: &[&str] = &[
    "NodeProxyOptions",
    "PodAttachOptions",
    "PodExecOptions",
    "PodLogOptions",
    "PodPortForwardOptions",
    "PodProxyOptions",
    "PodStatusResult",
    "RangeAllocation",
    "SerializedReference",
    "ServiceProxyOptions",
];

/// Group, version and kinds.
const KINDS: &[(&str, &str, &[&str])] = &[
    ("", "v1", CORE),
    ("admissionregistration.k8s.io", "v1alpha1", &[ADMISSION[0], ADMISSION[1], ADMISSION[3], ADMISSION[4]]),
    ("admissionregistration.k8s.io", "v1beta1", ADMISSION),
    ("apiextensions.k8s.io", "v1beta1", &["CustomResourceDefinition"]),
    ("apiregistration.k8s.io", "v1beta1", &["APIService"]),
    ("apps", "v1beta1", &["ControllerRevision", "Deployment", "DeploymentRollback", "Scale", "StatefulSet"]),
    ("apps", "v1beta2", &["ControllerRevision", "DaemonSet", "Deployment", "ReplicaSet", "Scale", "StatefulSet"]),
    ("authentication.k8s.io", "v1", &["TokenRequest"]),
    ("authentication.k8s.io", "v1beta1", &["SelfSubjectReview", "TokenReview"]),
    ("authorization.k8s.io", "v1beta1", REVIEWS),
    ("autoscaling", "v1", &["Scale"]),
    ("batch", "v1beta1", &["CronJob"]),
    ("certificates.k8s.io", "v1alpha1", &["ClusterTrustBundle"]),
    ("certificates.k8s.io", "v1beta1", &["CertificateSigningRequest", "ClusterTrustBundle", "PodCertificateRequest"]),
    ("coordination.k8s.io", "v1alpha2", &["LeaseCandidate"]),
    ("coordination.k8s.io", "v1beta1", &["Lease", "LeaseCandidate"]),
    ("discovery.k8s.io", "v1beta1", &["EndpointSlice"]),
    ("events.k8s.io", "v1beta1", &["Event"]),
    (
        "extensions",
        "v1beta1",
        &["DaemonSet", "Deployment", "DeploymentRollback", "Ingress", "NetworkPolicy", "ReplicaSet", "Scale"],
    ),
    ("flowcontrol.apiserver.k8s.io", "v1beta1", FLOW),
    ("flowcontrol.apiserver.k8s.io", "v1beta2", FLOW),
    ("flowcontrol.apiserver.k8s.io", "v1beta3", FLOW),
    ("networking.k8s.io", "v1beta1", &["IPAddress", "Ingress", "IngressClass", "ServiceCIDR"]),
    ("node.k8s.io", "v1alpha1", &["RuntimeClass"]),
    ("node.k8s.io", "v1beta1", &["RuntimeClass"]),
    ("policy", "v1", &["Eviction"]),
    ("policy", "v1beta1", &["Eviction", "PodDisruptionBudget"]),
    ("rbac.authorization.k8s.io", "v1alpha1", RBAC),
    ("rbac.authorization.k8s.io", "v1beta1", RBAC),
    ("resource.k8s.io", "v1alpha3", &["DeviceTaintRule", "ResourcePoolStatusRequest"]),
    ("resource.k8s.io", "v1beta1", CLAIMS),
    ("resource.k8s.io", "v1beta2", CLAIMS),
    ("resource.k8s.io", "v1beta2", &["DeviceTaintRule"]),
    ("scheduling.k8s.io", "v1beta1", &["PriorityClass"]),
    ("storage.k8s.io", "v1alpha1", &["CSIStorageCapacity", "VolumeAttachment", "VolumeAttributesClass"]),
    ("storage.k8s.io", "v1beta1", STORAGE),
];

/// Whether a kind is known though it is no resource.
pub fn is_known(group: &str, version: &str, kind: &str) -> bool {
    KINDS.iter().any(|(g, v, kinds)| (*g, *v) == (group, version) && kinds.contains(&kind))
}

/// Whether objects of a kind that is known in some version of a group are those of a row: kinds have moved between groups, and
/// events are of two.
pub fn is_of(def: &ResourceDef, group: &str, kind: &str) -> bool {
    let home = |group: &str| match (group, kind) {
        (_, "Scale") => "autoscaling".to_owned(),
        ("extensions", "Ingress" | "NetworkPolicy") => "networking.k8s.io".to_owned(),
        ("extensions", _) => "apps".to_owned(),
        ("events.k8s.io", "Event") => String::new(),
        (group, _) => group.to_owned(),
    };
    kind == def.kind && home(group) == home(def.group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_machinery::resources::find;

    #[test]
    fn kinds_that_moved_are_those_of_their_rows() {
        for (row, group, kind, expected) in [
            (("apps", "v1", "deployments"), "apps", "Deployment", true),
            (("apps", "v1", "deployments"), "extensions", "Deployment", true),
            (("apps", "v1", "deployments"), "extensions", "DaemonSet", false),
            (("networking.k8s.io", "v1", "ingresses"), "extensions", "Ingress", true),
            (("", "v1", "events"), "events.k8s.io", "Event", true),
            (("events.k8s.io", "v1", "events"), "", "Event", true),
            (("", "v1", "configmaps"), "apps", "ConfigMap", false),
        ] {
            let def = find(row.0, row.1, row.2).unwrap();
            assert_eq!(is_of(def, group, kind), expected, "{row:?} {group} {kind}");
        }
    }

    #[test]
    fn no_row_is_listed_twice() {
        for (group, version, kinds) in KINDS {
            for kind in *kinds {
                let row = keelson_machinery::resources::find_kind(group, version, kind);
                assert!(row.is_none(), "{group}/{version} {kind}");
            }
        }
    }
}
