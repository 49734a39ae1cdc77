//! The table of built-in resources of Kubernetes v1.36: names, scope, verbs and subresources as its discovery lists them.
//! Rows of alpha versions are served only where an operator asks for them ([`ResourceDef::is_alpha`]).

use crate::resource::{ResourceDef, Scope, Subresource};

/// The eight verbs of an ordinary resource.
const STANDARD: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

const STATUS: Subresource = Subresource { name: "status", kind: ("", "", ""), verbs: &["get", "patch", "update"] };
const SCALE: Subresource =
    Subresource { name: "scale", kind: ("autoscaling", "v1", "Scale"), verbs: &["get", "patch", "update"] };

const fn row(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    scope: Scope,
) -> ResourceDef {
    ResourceDef {
        group,
        version,
        kind,
        plural,
        singular,
        short_names: &[],
        categories: &[],
        scope,
        verbs: STANDARD,
        subresources: &[],
        selectable_fields: &[],
        has_status: false,
        list_kind: "",
        custom: false,
        columns: &[],
    }
}

impl ResourceDef {
    const fn names(mut self, short: &'static [&'static str], categories: &'static [&'static str]) -> Self {
        self.short_names = short;
        self.categories = categories;
        self
    }

    const fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.verbs = verbs;
        self
    }

    const fn fields(mut self, fields: &'static [&'static str]) -> Self {
        self.selectable_fields = fields;
        self
    }

    const fn subresources(mut self, subresources: &'static [Subresource]) -> Self {
        self.subresources = subresources;
        let mut i = 0;
        while i < subresources.len() {
            if matches!(subresources[i].name.as_bytes(), b"status") {
                self.has_status = true;
            }
            i += 1;
        }
        self
    }
}

/// The rows, in discovery's order: groups, their versions by preference, resources by name.
pub static RESOURCES: &[ResourceDef] = &[
    row("", "v1", "Binding", "bindings", "binding", Scope::Namespaced).verbs(&["create"]),
    row("", "v1", "ComponentStatus", "componentstatuses", "componentstatus", Scope::Cluster)
        .names(&["cs"], &[])
        .verbs(&["get", "list"]),
    row("", "v1", "ConfigMap", "configmaps", "configmap", Scope::Namespaced).names(&["cm"], &[]),
    row("", "v1", "Endpoints", "endpoints", "endpoints", Scope::Namespaced).names(&["ep"], &[]),
    row("", "v1", "Event", "events", "event", Scope::Namespaced).names(&["ev"], &[]).fields(&[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ]),
    row("", "v1", "LimitRange", "limitranges", "limitrange", Scope::Namespaced).names(&["limits"], &[]),
    row("", "v1", "Namespace", "namespaces", "namespace", Scope::Cluster)
        .names(&["ns"], &[])
        .verbs(&["create", "delete", "get", "list", "patch", "update", "watch"])
        .subresources(&[Subresource { name: "finalize", kind: ("", "", "Namespace"), verbs: &["update"] }, STATUS])
        .fields(&["status.phase"]),
    row("", "v1", "Node", "nodes", "node", Scope::Cluster)
        .names(&["no"], &[])
        .subresources(&[
            Subresource {
                name: "proxy",
                kind: ("", "", "NodeProxyOptions"),
                verbs: &["create", "delete", "get", "patch", "update"],
            },
            STATUS,
        ])
        .fields(&["spec.unschedulable"]),
    row("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim", Scope::Namespaced)
        .names(&["pvc"], &[])
        .subresources(&[STATUS]),
    row("", "v1", "PersistentVolume", "persistentvolumes", "persistentvolume", Scope::Cluster)
        .names(&["pv"], &[])
        .subresources(&[STATUS]),
    row("", "v1", "Pod", "pods", "pod", Scope::Namespaced)
        .names(&["po"], &["all"])
        .subresources(&[
            Subresource { name: "attach", kind: ("", "", "PodAttachOptions"), verbs: &["create", "get"] },
            Subresource { name: "binding", kind: ("", "", "Binding"), verbs: &["create"] },
            Subresource { name: "ephemeralcontainers", kind: ("", "", "Pod"), verbs: &["get", "patch", "update"] },
            Subresource { name: "eviction", kind: ("policy", "v1", "Eviction"), verbs: &["create"] },
            Subresource { name: "exec", kind: ("", "", "PodExecOptions"), verbs: &["create", "get"] },
            Subresource { name: "log", kind: ("", "", "Pod"), verbs: &["get"] },
            Subresource { name: "portforward", kind: ("", "", "PodPortForwardOptions"), verbs: &["create", "get"] },
            Subresource {
                name: "proxy",
                kind: ("", "", "PodProxyOptions"),
                verbs: &["create", "delete", "get", "patch", "update"],
            },
            Subresource { name: "resize", kind: ("", "", "Pod"), verbs: &["get", "patch", "update"] },
            STATUS,
        ])
        .fields(&[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ]),
    row("", "v1", "PodTemplate", "podtemplates", "podtemplate", Scope::Namespaced),
    row("", "v1", "ReplicationController", "replicationcontrollers", "replicationcontroller", Scope::Namespaced)
        .names(&["rc"], &["all"])
        .subresources(&[SCALE, STATUS])
        .fields(&["status.replicas"]),
    row("", "v1", "ResourceQuota", "resourcequotas", "resourcequota", Scope::Namespaced)
        .names(&["quota"], &[])
        .subresources(&[STATUS]),
    row("", "v1", "Secret", "secrets", "secret", Scope::Namespaced).fields(&["type"]),
    row("", "v1", "ServiceAccount", "serviceaccounts", "serviceaccount", Scope::Namespaced)
        .names(&["sa"], &[])
        .subresources(&[Subresource {
            name: "token",
            kind: ("authentication.k8s.io", "v1", "TokenRequest"),
            verbs: &["create"],
        }]),
    row("", "v1", "Service", "services", "service", Scope::Namespaced)
        .names(&["svc"], &["all"])
        .subresources(&[
            Subresource {
                name: "proxy",
                kind: ("", "", "ServiceProxyOptions"),
                verbs: &["create", "delete", "get", "patch", "update"],
            },
            STATUS,
        ])
        .fields(&["spec.clusterIP", "spec.type"]),
    row("apiregistration.k8s.io", "v1", "APIService", "apiservices", "apiservice", Scope::Cluster)
        .names(&[], &["api-extensions"])
        .subresources(&[STATUS]),
    row("apps", "v1", "ControllerRevision", "controllerrevisions", "controllerrevision", Scope::Namespaced),
    row("apps", "v1", "DaemonSet", "daemonsets", "daemonset", Scope::Namespaced)
        .names(&["ds"], &["all"])
        .subresources(&[STATUS]),
    row("apps", "v1", "Deployment", "deployments", "deployment", Scope::Namespaced)
        .names(&["deploy"], &["all"])
        .subresources(&[SCALE, STATUS]),
    row("apps", "v1", "ReplicaSet", "replicasets", "replicaset", Scope::Namespaced)
        .names(&["rs"], &["all"])
        .subresources(&[SCALE, STATUS]),
    row("apps", "v1", "StatefulSet", "statefulsets", "statefulset", Scope::Namespaced)
        .names(&["sts"], &["all"])
        .subresources(&[SCALE, STATUS]),
    row("events.k8s.io", "v1", "Event", "events", "event", Scope::Namespaced).names(&["ev"], &[]).fields(&[
        "reason",
        "regarding.kind",
        "regarding.namespace",
        "regarding.name",
        "regarding.uid",
        "regarding.apiVersion",
        "regarding.resourceVersion",
        "regarding.fieldPath",
        "reportingController",
        "type",
    ]),
    row("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", "selfsubjectreview", Scope::Cluster)
        .verbs(&["create"]),
    row("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", "tokenreview", Scope::Cluster).verbs(&["create"]),
    row(
        "authorization.k8s.io",
        "v1",
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
        Scope::Namespaced,
    )
    .verbs(&["create"]),
    row(
        "authorization.k8s.io",
        "v1",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        Scope::Cluster,
    )
    .verbs(&["create"]),
    row(
        "authorization.k8s.io",
        "v1",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        Scope::Cluster,
    )
    .verbs(&["create"]),
    row(
        "authorization.k8s.io",
        "v1",
        "SubjectAccessReview",
        "subjectaccessreviews",
        "subjectaccessreview",
        Scope::Cluster,
    )
    .verbs(&["create"]),
    row(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
        Scope::Namespaced,
    )
    .names(&["hpa"], &["all"])
    .subresources(&[STATUS]),
    row(
        "autoscaling",
        "v1",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
        Scope::Namespaced,
    )
    .names(&["hpa"], &["all"])
    .subresources(&[STATUS]),
    row("batch", "v1", "CronJob", "cronjobs", "cronjob", Scope::Namespaced)
        .names(&["cj"], &["all"])
        .subresources(&[STATUS]),
    row("batch", "v1", "Job", "jobs", "job", Scope::Namespaced)
        .names(&[], &["all"])
        .subresources(&[STATUS])
        .fields(&["status.successful"]),
    row(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
        "certificatesigningrequest",
        Scope::Cluster,
    )
    .names(&["csr"], &[])
    .subresources(&[
        Subresource {
            name: "approval",
            kind: ("", "", "CertificateSigningRequest"),
            verbs: &["get", "patch", "update"],
        },
        STATUS,
    ])
    .fields(&["spec.signerName"]),
    row("networking.k8s.io", "v1", "IngressClass", "ingressclasses", "ingressclass", Scope::Cluster),
    row("networking.k8s.io", "v1", "Ingress", "ingresses", "ingress", Scope::Namespaced)
        .names(&["ing"], &[])
        .subresources(&[STATUS]),
    row("networking.k8s.io", "v1", "IPAddress", "ipaddresses", "ipaddress", Scope::Cluster).names(&["ip"], &[]),
    row("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", "networkpolicy", Scope::Namespaced)
        .names(&["netpol"], &[]),
    row("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", "servicecidr", Scope::Cluster)
        .subresources(&[STATUS]),
    row("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", "poddisruptionbudget", Scope::Namespaced)
        .names(&["pdb"], &[])
        .subresources(&[STATUS]),
    row(
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        "clusterrolebinding",
        Scope::Cluster,
    ),
    row("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", "clusterrole", Scope::Cluster),
    row("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", "rolebinding", Scope::Namespaced),
    row("rbac.authorization.k8s.io", "v1", "Role", "roles", "role", Scope::Namespaced),
    row("storage.k8s.io", "v1", "CSIDriver", "csidrivers", "csidriver", Scope::Cluster),
    row("storage.k8s.io", "v1", "CSINode", "csinodes", "csinode", Scope::Cluster),
    row("storage.k8s.io", "v1", "CSIStorageCapacity", "csistoragecapacities", "csistoragecapacity", Scope::Namespaced),
    row("storage.k8s.io", "v1", "StorageClass", "storageclasses", "storageclass", Scope::Cluster).names(&["sc"], &[]),
    row("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments", "volumeattachment", Scope::Cluster)
        .subresources(&[STATUS]),
    row(
        "storage.k8s.io",
        "v1",
        "VolumeAttributesClass",
        "volumeattributesclasses",
        "volumeattributesclass",
        Scope::Cluster,
    )
    .names(&["vac"], &[]),
    row(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingAdmissionPolicy",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicy",
        Scope::Cluster,
    )
    .names(&[], &["api-extensions"]),
    row(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingAdmissionPolicyBinding",
        "mutatingadmissionpolicybindings",
        "mutatingadmissionpolicybinding",
        Scope::Cluster,
    )
    .names(&[], &["api-extensions"]),
    row(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        "mutatingwebhookconfiguration",
        Scope::Cluster,
    )
    .names(&[], &["api-extensions"]),
    row(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        "validatingadmissionpolicy",
        Scope::Cluster,
    )
    .names(&[], &["api-extensions"])
    .subresources(&[STATUS]),
    row(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        "validatingadmissionpolicybinding",
        Scope::Cluster,
    )
    .names(&[], &["api-extensions"]),
    row(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        "validatingwebhookconfiguration",
        Scope::Cluster,
    )
    .names(&[], &["api-extensions"]),
    row(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        "customresourcedefinition",
        Scope::Cluster,
    )
    .names(&["crd", "crds"], &["api-extensions"])
    .subresources(&[STATUS]),
    row("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", "priorityclass", Scope::Cluster)
        .names(&["pc"], &[]),
    row("scheduling.k8s.io", "v1alpha2", "PodGroup", "podgroups", "podgroup", Scope::Namespaced)
        .subresources(&[STATUS]),
    row("scheduling.k8s.io", "v1alpha2", "Workload", "workloads", "workload", Scope::Namespaced),
    row(
        "storagemigration.k8s.io",
        "v1beta1",
        "StorageVersionMigration",
        "storageversionmigrations",
        "storageversionmigration",
        Scope::Cluster,
    )
    .subresources(&[STATUS]),
    row("coordination.k8s.io", "v1", "Lease", "leases", "lease", Scope::Namespaced),
    row("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", "runtimeclass", Scope::Cluster),
    row("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", "endpointslice", Scope::Namespaced),
    row("resource.k8s.io", "v1", "DeviceClass", "deviceclasses", "deviceclass", Scope::Cluster),
    row("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims", "resourceclaim", Scope::Namespaced)
        .subresources(&[STATUS]),
    row(
        "resource.k8s.io",
        "v1",
        "ResourceClaimTemplate",
        "resourceclaimtemplates",
        "resourceclaimtemplate",
        Scope::Namespaced,
    ),
    row("resource.k8s.io", "v1", "ResourceSlice", "resourceslices", "resourceslice", Scope::Cluster)
        .fields(&["spec.driver", "spec.nodeName"]),
    row("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema", "flowschemas", "flowschema", Scope::Cluster)
        .subresources(&[STATUS]),
    row(
        "flowcontrol.apiserver.k8s.io",
        "v1",
        "PriorityLevelConfiguration",
        "prioritylevelconfigurations",
        "prioritylevelconfiguration",
        Scope::Cluster,
    )
    .subresources(&[STATUS]),
];

/// The row of a group, version and plural.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static ResourceDef> {
    RESOURCES.iter().find(|r| r.plural == plural && r.group == group && r.version == version)
}

/// The row of a group, version and kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static ResourceDef> {
    RESOURCES.iter().find(|r| r.kind == kind && r.group == group && r.version == version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn rows_are_unique_and_well_formed() {
        let mut seen = BTreeSet::new();
        for row in RESOURCES {
            assert!(seen.insert((row.group, row.version, row.plural)), "{} twice", row.qualified());
            assert!(!row.kind.is_empty() && !row.verbs.is_empty(), "{}", row.qualified());
            assert!(row.verbs.is_sorted(), "{}", row.qualified());
            assert_eq!(row.plural, row.plural.to_lowercase());
        }
        assert!(find("apps", "v1", "deployments").is_some_and(|r| r.has_status && r.short_names == ["deploy"]));
        assert!(find("apps", "v1", "pods").is_none());
    }
}
