//! The columns of every built-in kind's table, and the functions that fill them.
//!
//! A description that begins with `@` is the text of that field of the API; the others are of the column itself.

use std::collections::HashMap;
use std::sync::LazyLock;

use keelson_machinery::docs::Docs;
use keelson_machinery::resource::{Column, ResourceDef};
use serde_json::{Value, json};

use super::text::{age_of, name};
use super::{network, others, pod, storage, workloads};

/// How the objects of a kind are shown.
#[derive(Debug)]
pub struct Printer {
    group: &'static str,
    plural: &'static str,
    /// Columns.
    pub columns: &'static [Column],
    /// The cells of an object.
    pub cells: fn(&Value) -> Vec<Value>,
}

const fn printer(
    group: &'static str,
    plural: &'static str,
    columns: &'static [Column],
    cells: fn(&Value) -> Vec<Value>,
) -> Printer {
    Printer { group, plural, columns, cells }
}

const fn text(name: &'static str, description: &'static str) -> Column {
    Column::new(name, "string", description)
}

const fn number(name: &'static str, description: &'static str) -> Column {
    Column::new(name, "integer", description)
}

const fn truth(name: &'static str, description: &'static str) -> Column {
    Column::new(name, "boolean", description)
}

/// The name of an object.
pub const NAME: Column = text("Name", "@meta.ObjectMeta.name").named();
const AGE: Column = text("Age", "@meta.ObjectMeta.creationTimestamp");
const PLAIN: &[Column] = &[NAME, AGE];
const CREATED: &[Column] = &[NAME, Column::new("Created At", "date", "@meta.ObjectMeta.creationTimestamp")];
const EVENT: &[Column] = &[
    text("Last Seen", "@api.core.v1.Event.lastTimestamp"),
    text("Type", "@api.core.v1.Event.type"),
    text("Reason", "@api.core.v1.Event.reason"),
    text("Object", "@api.core.v1.Event.involvedObject"),
    text("Subobject", "@api.core.v1.ObjectReference.fieldPath").wide(),
    text("Source", "@api.core.v1.Event.source").wide(),
    text("Message", "@api.core.v1.Event.message"),
    text("First Seen", "@api.core.v1.Event.firstTimestamp").wide(),
    text("Count", "@api.core.v1.Event.count").wide(),
    text("Name", "@meta.ObjectMeta.name").wide().named(),
];

/// What is shown of kinds without a row in [`PRINTERS`].
pub static OTHER: Printer = printer("", "", PLAIN, plain);
/// What is shown of a scale.
pub static SCALE: Printer = printer(
    "autoscaling",
    "scale",
    &[
        text("Name", "@meta.ObjectMeta.name"),
        number("Desired", "@api.autoscaling.v1.ScaleSpec.replicas"),
        number("Available", "@api.autoscaling.v1.ScaleStatus.replicas"),
        AGE,
    ],
    workloads::scale,
);

/// The rows.
pub static PRINTERS: &[Printer] = &[
    printer("", "configmaps", &[NAME, text("Data", "@api.core.v1.ConfigMap.data"), AGE], others::config_map),
    printer("", "endpoints", &[NAME, text("Endpoints", "@api.core.v1.Endpoints.subsets"), AGE], network::endpoints),
    printer("", "events", EVENT, others::event),
    printer("events.k8s.io", "events", EVENT, others::event),
    printer("", "namespaces", &[NAME, text("Status", "The status of the namespace"), AGE], others::namespace),
    printer(
        "",
        "nodes",
        &[
            NAME,
            text("Status", "The status of the node"),
            text("Roles", "The roles of the node"),
            AGE,
            text("Version", "@api.core.v1.NodeSystemInfo.kubeletVersion"),
            text("Internal-IP", "@api.core.v1.NodeStatus.addresses").wide(),
            text("External-IP", "@api.core.v1.NodeStatus.addresses").wide(),
            text("OS-Image", "@api.core.v1.NodeSystemInfo.osImage").wide(),
            text("Kernel-Version", "@api.core.v1.NodeSystemInfo.kernelVersion").wide(),
            text("Container-Runtime", "@api.core.v1.NodeSystemInfo.containerRuntimeVersion").wide(),
        ],
        others::node,
    ),
    printer(
        "",
        "persistentvolumeclaims",
        &[
            NAME,
            text("Status", "@api.core.v1.PersistentVolumeClaimStatus.phase"),
            text("Volume", "@api.core.v1.PersistentVolumeClaimSpec.volumeName"),
            text("Capacity", "@api.core.v1.PersistentVolumeClaimStatus.capacity"),
            text("Access Modes", "@api.core.v1.PersistentVolumeClaimStatus.accessModes"),
            text("StorageClass", "StorageClass of the pvc"),
            text("VolumeAttributesClass", "VolumeAttributesClass of the pvc"),
            AGE,
            text("VolumeMode", "@api.core.v1.PersistentVolumeClaimSpec.volumeMode").wide(),
        ],
        storage::claim,
    ),
    printer(
        "",
        "persistentvolumes",
        &[
            NAME,
            text("Capacity", "@api.core.v1.PersistentVolumeSpec.capacity"),
            text("Access Modes", "@api.core.v1.PersistentVolumeSpec.accessModes"),
            text("Reclaim Policy", "@api.core.v1.PersistentVolumeSpec.persistentVolumeReclaimPolicy"),
            text("Status", "@api.core.v1.PersistentVolumeStatus.phase"),
            text("Claim", "@api.core.v1.PersistentVolumeSpec.claimRef"),
            text("StorageClass", "StorageClass of the pv"),
            text("VolumeAttributesClass", "VolumeAttributesClass of the pv"),
            text("Reason", "@api.core.v1.PersistentVolumeStatus.reason"),
            AGE,
            text("VolumeMode", "@api.core.v1.PersistentVolumeSpec.volumeMode").wide(),
        ],
        storage::volume,
    ),
    printer(
        "",
        "pods",
        &[
            NAME,
            text("Ready", "The aggregate readiness state of this pod for accepting traffic."),
            text("Status", "The aggregate status of the containers in this pod."),
            text(
                "Restarts",
                "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
            ),
            AGE,
            text("IP", "@api.core.v1.PodStatus.podIP").wide(),
            text("Node", "@api.core.v1.PodSpec.nodeName").wide(),
            text("Nominated Node", "@api.core.v1.PodStatus.nominatedNodeName").wide(),
            text("Readiness Gates", "@api.core.v1.PodSpec.readinessGates").wide(),
        ],
        pod::pod,
    ),
    printer(
        "",
        "podtemplates",
        &[
            NAME,
            text("Containers", "Names of each container in the template."),
            text("Images", "Images referenced by each container in the template."),
            text("Pod Labels", "The labels for the pod template."),
        ],
        workloads::pod_template,
    ),
    printer(
        "",
        "replicationcontrollers",
        &[
            NAME,
            number("Desired", "@api.core.v1.ReplicationControllerSpec.replicas"),
            number("Current", "@api.core.v1.ReplicationControllerStatus.replicas"),
            number("Ready", "@api.core.v1.ReplicationControllerStatus.readyReplicas"),
            AGE,
            text("Containers", "Names of each container in the template.").wide(),
            text("Images", "Images referenced by each container in the template.").wide(),
            text("Selector", "@api.core.v1.ReplicationControllerSpec.selector").wide(),
        ],
        workloads::replication_controller,
    ),
    printer(
        "",
        "resourcequotas",
        &[
            NAME,
            text("Request", "Request represents a minimum amount of cpu/memory that a container may consume."),
            text(
                "Limit",
                "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node.",
            ),
            AGE,
        ],
        others::quota,
    ),
    printer(
        "",
        "secrets",
        &[NAME, text("Type", "@api.core.v1.Secret.type"), text("Data", "@api.core.v1.Secret.data"), AGE],
        others::secret,
    ),
    printer(
        "",
        "services",
        &[
            NAME,
            text("Type", "@api.core.v1.ServiceSpec.type"),
            text("Cluster-IP", "@api.core.v1.ServiceSpec.clusterIP"),
            text("External-IP", "@api.core.v1.ServiceSpec.externalIPs"),
            text("Port(s)", "@api.core.v1.ServiceSpec.ports"),
            AGE,
            text("Selector", "@api.core.v1.ServiceSpec.selector").wide(),
        ],
        network::service,
    ),
    printer(
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicies",
        &[
            NAME,
            number("Mutations", "Mutation indicates the number of mutations rules defined in this configuration"),
            text("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
            AGE,
        ],
        others::mutating_policy,
    ),
    printer(
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicybindings",
        &[
            NAME,
            text("PolicyName", "PolicyName indicates the policy definition which the policy binding binded to"),
            text("ParamRef", "ParamRef indicates the param resource which sets the configuration param"),
            AGE,
        ],
        others::policy_binding,
    ),
    printer(
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        &[NAME, number("Webhooks", "Webhooks indicates the number of webhooks registered in this configuration"), AGE],
        others::webhooks,
    ),
    printer(
        "admissionregistration.k8s.io",
        "validatingadmissionpolicies",
        &[
            NAME,
            number("Validations", "Validations indicates the number of validation rules defined in this configuration"),
            text("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
            AGE,
        ],
        others::validating_policy,
    ),
    printer(
        "admissionregistration.k8s.io",
        "validatingadmissionpolicybindings",
        &[
            NAME,
            text("PolicyName", "PolicyName indicates the policy definition which the policy binding binded to"),
            text("ParamRef", "ParamRef indicates the param resource which sets the configuration param"),
            AGE,
        ],
        others::policy_binding,
    ),
    printer(
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
        &[NAME, number("Webhooks", "Webhooks indicates the number of webhooks registered in this configuration"), AGE],
        others::webhooks,
    ),
    printer(
        "apiregistration.k8s.io",
        "apiservices",
        &[
            NAME,
            text("Service", "The reference to the service that hosts this API endpoint."),
            text("Available", "Whether this service is available."),
            AGE,
        ],
        others::api_service,
    ),
    printer(
        "apps",
        "controllerrevisions",
        &[
            NAME,
            text("Controller", "Controller of the object"),
            text("Revision", "@api.apps.v1.ControllerRevision.revision"),
            AGE,
        ],
        workloads::controller_revision,
    ),
    printer(
        "apps",
        "daemonsets",
        &[
            NAME,
            number("Desired", "@api.apps.v1.DaemonSetStatus.desiredNumberScheduled"),
            number("Current", "@api.apps.v1.DaemonSetStatus.currentNumberScheduled"),
            number("Ready", "@api.apps.v1.DaemonSetStatus.numberReady"),
            number("Up-to-date", "@api.apps.v1.DaemonSetStatus.updatedNumberScheduled"),
            number("Available", "@api.apps.v1.DaemonSetStatus.numberAvailable"),
            text("Node Selector", "@api.core.v1.PodSpec.nodeSelector"),
            AGE,
            text("Containers", "Names of each container in the template.").wide(),
            text("Images", "Images referenced by each container in the template.").wide(),
            text("Selector", "@api.apps.v1.DaemonSetSpec.selector").wide(),
        ],
        workloads::daemon_set,
    ),
    printer(
        "apps",
        "deployments",
        &[
            NAME,
            text("Ready", "Number of the pod with ready state"),
            text("Up-to-date", "@api.apps.v1.DeploymentStatus.updatedReplicas"),
            text("Available", "@api.apps.v1.DeploymentStatus.availableReplicas"),
            AGE,
            text("Containers", "Names of each container in the template.").wide(),
            text("Images", "Images referenced by each container in the template.").wide(),
            text("Selector", "@api.apps.v1.DeploymentSpec.selector").wide(),
        ],
        workloads::deployment,
    ),
    printer(
        "apps",
        "replicasets",
        &[
            NAME,
            number("Desired", "@api.apps.v1.ReplicaSetSpec.replicas"),
            number("Current", "@api.apps.v1.ReplicaSetStatus.replicas"),
            number("Ready", "@api.apps.v1.ReplicaSetStatus.readyReplicas"),
            AGE,
            text("Containers", "Names of each container in the template.").wide(),
            text("Images", "Images referenced by each container in the template.").wide(),
            text("Selector", "@api.apps.v1.ReplicaSetSpec.selector").wide(),
        ],
        workloads::replica_set,
    ),
    printer(
        "apps",
        "statefulsets",
        &[
            NAME,
            text("Ready", "Number of the pod with ready state"),
            AGE,
            text("Containers", "Names of each container in the template.").wide(),
            text("Images", "Images referenced by each container in the template.").wide(),
        ],
        workloads::stateful_set,
    ),
    printer(
        "autoscaling",
        "horizontalpodautoscalers",
        &[
            NAME,
            text("Reference", "@api.autoscaling.v2.HorizontalPodAutoscalerSpec.scaleTargetRef"),
            text("Targets", "@api.autoscaling.v2.HorizontalPodAutoscalerSpec.metrics"),
            text("MinPods", "@api.autoscaling.v2.HorizontalPodAutoscalerSpec.minReplicas"),
            text("MaxPods", "@api.autoscaling.v2.HorizontalPodAutoscalerSpec.maxReplicas"),
            text("Replicas", "@api.autoscaling.v2.HorizontalPodAutoscalerStatus.currentReplicas"),
            AGE,
        ],
        workloads::autoscaler,
    ),
    printer(
        "batch",
        "cronjobs",
        &[
            NAME,
            text("Schedule", "@api.batch.v1.CronJobSpec.schedule"),
            text("Timezone", "@api.batch.v1.CronJobSpec.timeZone"),
            truth("Suspend", "@api.batch.v1.CronJobSpec.suspend"),
            number("Active", "@api.batch.v1.CronJobStatus.active"),
            text("Last Schedule", "@api.batch.v1.CronJobStatus.lastScheduleTime"),
            AGE,
            text("Containers", "Names of each container in the template.").wide(),
            text("Images", "Images referenced by each container in the template.").wide(),
            text("Selector", "@api.batch.v1.JobSpec.selector").wide(),
        ],
        workloads::cron_job,
    ),
    printer(
        "batch",
        "jobs",
        &[
            NAME,
            text("Status", "Status of the job."),
            text("Completions", "@api.batch.v1.JobStatus.succeeded"),
            text("Duration", "Time required to complete the job."),
            AGE,
            text("Containers", "Names of each container in the template.").wide(),
            text("Images", "Images referenced by each container in the template.").wide(),
            text("Selector", "@api.batch.v1.JobSpec.selector").wide(),
        ],
        workloads::job,
    ),
    printer(
        "certificates.k8s.io",
        "certificatesigningrequests",
        &[
            NAME,
            AGE,
            text(
                "SignerName",
                "Requested signer for the request. It is a qualified name in the form: `scope-hostname.io/name`. If empty, it will be defaulted:\n 1. If it's a kubelet client certificate, it is assigned\n    \"kubernetes.io/kube-apiserver-client-kubelet\".\n 2. If it's a kubelet serving certificate, it is assigned\n    \"kubernetes.io/kubelet-serving\".\n 3. Otherwise, it is assigned \"kubernetes.io/legacy-unknown\".\nDistribution of trust for signers happens out of band. You can select on this field using `spec.signerName`.",
            ),
            text("Requestor", "Base64-encoded PKCS#10 CSR data"),
            text("RequestedDuration", "@api.certificates.v1.CertificateSigningRequestSpec.expirationSeconds"),
            text("Condition", "Conditions applied to the request, such as approval or denial."),
        ],
        others::signing_request,
    ),
    printer(
        "coordination.k8s.io",
        "leases",
        &[NAME, text("Holder", "@api.coordination.v1.LeaseSpec.holderIdentity"), AGE],
        others::lease,
    ),
    printer(
        "discovery.k8s.io",
        "endpointslices",
        &[
            NAME,
            text("AddressType", "@api.discovery.v1.EndpointSlice.addressType"),
            text("Ports", "@api.discovery.v1.EndpointSlice.ports"),
            text("Endpoints", "@api.discovery.v1.EndpointSlice.endpoints"),
            AGE,
        ],
        network::endpoint_slice,
    ),
    printer(
        "flowcontrol.apiserver.k8s.io",
        "flowschemas",
        &[
            NAME,
            text("PriorityLevel", "@api.flowcontrol.v1.PriorityLevelConfigurationReference.name"),
            text("MatchingPrecedence", "@api.flowcontrol.v1.FlowSchemaSpec.matchingPrecedence"),
            text("DistinguisherMethod", "@api.flowcontrol.v1.FlowSchemaSpec.distinguisherMethod"),
            AGE,
            text("MissingPL", "references a broken or non-existent PriorityLevelConfiguration"),
        ],
        others::flow_schema,
    ),
    printer(
        "flowcontrol.apiserver.k8s.io",
        "prioritylevelconfigurations",
        &[
            NAME,
            text("Type", "@api.flowcontrol.v1.PriorityLevelConfigurationSpec.type"),
            text(
                "NominalConcurrencyShares",
                "@api.flowcontrol.v1.LimitedPriorityLevelConfiguration.nominalConcurrencyShares",
            ),
            text("Queues", "@api.flowcontrol.v1.QueuingConfiguration.queues"),
            text("HandSize", "@api.flowcontrol.v1.QueuingConfiguration.handSize"),
            text("QueueLengthLimit", "@api.flowcontrol.v1.QueuingConfiguration.queueLengthLimit"),
            AGE,
        ],
        others::priority_level,
    ),
    printer(
        "networking.k8s.io",
        "ingressclasses",
        &[
            NAME,
            text("Controller", "Controller that is responsible for handling this class"),
            text("Parameters", "A reference to a resource with additional parameters"),
            AGE,
        ],
        network::ingress_class,
    ),
    printer(
        "networking.k8s.io",
        "ingresses",
        &[
            NAME,
            text("Class", "The name of the IngressClass resource that should be used for additional configuration"),
            text("Hosts", "Hosts that incoming requests are matched against before the ingress rule"),
            text("Address", "Address is a list containing ingress points for the load-balancer"),
            text("Ports", "Ports of TLS configurations that open"),
            AGE,
        ],
        network::ingress,
    ),
    printer(
        "networking.k8s.io",
        "ipaddresses",
        &[NAME, text("ParentRef", "@api.networking.v1.IPAddressSpec.parentRef")],
        network::ip_address,
    ),
    printer(
        "networking.k8s.io",
        "networkpolicies",
        &[NAME, text("Pod-Selector", "@api.networking.v1.NetworkPolicySpec.podSelector"), AGE],
        network::network_policy,
    ),
    printer(
        "networking.k8s.io",
        "servicecidrs",
        &[NAME, text("CIDRs", "@api.networking.v1.ServiceCIDRSpec.cidrs"), AGE],
        network::service_cidr,
    ),
    printer("node.k8s.io", "runtimeclasses", &[NAME, text("Handler", ""), AGE], others::runtime_class),
    printer(
        "policy",
        "poddisruptionbudgets",
        &[
            NAME,
            text("Min Available", "The minimum number of pods that must be available."),
            text("Max Unavailable", "The maximum number of pods that may be unavailable."),
            number("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."),
            AGE,
        ],
        workloads::disruption_budget,
    ),
    printer(
        "rbac.authorization.k8s.io",
        "clusterrolebindings",
        &[
            NAME,
            text(
                "Role",
                "RoleRef can only reference a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.",
            ),
            AGE,
            text("Users", "Users in the clusterRoleBinding").wide(),
            text("Groups", "Groups in the clusterRoleBinding").wide(),
            text("ServiceAccounts", "ServiceAccounts in the clusterRoleBinding").wide(),
        ],
        others::role_binding,
    ),
    printer(
        "rbac.authorization.k8s.io",
        "rolebindings",
        &[
            NAME,
            text(
                "Role",
                "RoleRef can reference a Role in the current namespace or a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.",
            ),
            AGE,
            text("Users", "Users in the roleBinding").wide(),
            text("Groups", "Groups in the roleBinding").wide(),
            text("ServiceAccounts", "ServiceAccounts in the roleBinding").wide(),
        ],
        others::role_binding,
    ),
    printer(
        "resource.k8s.io",
        "resourceclaims",
        &[NAME, text("State", "A summary of the current state (allocated, pending, reserved, etc.)."), AGE],
        others::resource_claim,
    ),
    printer(
        "resource.k8s.io",
        "resourceslices",
        &[
            NAME,
            text("Node", "@api.resource.v1.ResourceSliceSpec.nodeName"),
            text("Driver", "@api.resource.v1.ResourceSliceSpec.driver"),
            text("Pool", "@api.resource.v1.ResourcePool.name"),
            AGE,
        ],
        others::resource_slice,
    ),
    printer(
        "scheduling.k8s.io",
        "priorityclasses",
        &[
            NAME,
            number("Value", "@api.scheduling.v1.PriorityClass.value"),
            truth("Global-Default", "@api.scheduling.v1.PriorityClass.globalDefault"),
            AGE,
            text("PreemptionPolicy", "@api.scheduling.v1.PriorityClass.preemptionPolicy"),
        ],
        others::priority_class,
    ),
    printer(
        "storage.k8s.io",
        "csidrivers",
        &[
            NAME,
            truth("AttachRequired", "@api.storage.v1.CSIDriverSpec.attachRequired"),
            truth("PodInfoOnMount", "@api.storage.v1.CSIDriverSpec.podInfoOnMount"),
            truth("StorageCapacity", "@api.storage.v1.CSIDriverSpec.storageCapacity"),
            text("TokenRequests", "@api.storage.v1.CSIDriverSpec.tokenRequests"),
            truth("RequiresRepublish", "@api.storage.v1.CSIDriverSpec.requiresRepublish"),
            text("Modes", "@api.storage.v1.CSIDriverSpec.volumeLifecycleModes"),
            AGE,
        ],
        storage::csi_driver,
    ),
    printer(
        "storage.k8s.io",
        "csinodes",
        &[NAME, number("Drivers", "Drivers indicates the number of CSI drivers registered on the node"), AGE],
        storage::csi_node,
    ),
    printer(
        "storage.k8s.io",
        "storageclasses",
        &[
            NAME,
            text("Provisioner", "@api.storage.v1.StorageClass.provisioner"),
            text("ReclaimPolicy", "@api.storage.v1.StorageClass.reclaimPolicy"),
            text("VolumeBindingMode", "@api.storage.v1.StorageClass.volumeBindingMode"),
            text("AllowVolumeExpansion", "@api.storage.v1.StorageClass.allowVolumeExpansion"),
            AGE,
        ],
        storage::storage_class,
    ),
    printer(
        "storage.k8s.io",
        "volumeattachments",
        &[
            NAME,
            text("Attacher", "@api.storage.v1.VolumeAttachmentSpec.attacher").named(),
            text("PV", "@api.storage.v1.VolumeAttachmentSource.persistentVolumeName"),
            text("Node", "@api.storage.v1.VolumeAttachmentSpec.nodeName"),
            truth("Attached", "@api.storage.v1.VolumeAttachmentStatus.attached"),
            AGE,
        ],
        storage::attachment,
    ),
    printer(
        "storage.k8s.io",
        "volumeattributesclasses",
        &[NAME, text("DriverName", "@api.storage.v1.VolumeAttributesClass.driverName"), AGE],
        storage::attributes_class,
    ),
    printer(
        "",
        "componentstatuses",
        &[
            NAME,
            text("Status", "Status of the component conditions"),
            text("Message", "Message of the component conditions"),
            text("Error", "Error of the component conditions"),
            AGE,
        ],
        others::component,
    ),
    printer("", "limitranges", CREATED, created),
    printer("rbac.authorization.k8s.io", "clusterroles", CREATED, created),
    printer("rbac.authorization.k8s.io", "roles", CREATED, created),
    printer("storage.k8s.io", "csistoragecapacities", CREATED, created),
    printer("apiextensions.k8s.io", "customresourcedefinitions", CREATED, created),
];

fn plain(object: &Value) -> Vec<Value> {
    vec![name(object), age_of(object)]
}

fn created(object: &Value) -> Vec<Value> {
    vec![name(object), object["metadata"]["creationTimestamp"].as_str().unwrap_or("0001-01-01T00:00:00Z").into()]
}

/// How the objects of a built-in row are shown.
pub fn of(def: &ResourceDef) -> &'static Printer {
    PRINTERS.iter().find(|p| p.plural == def.plural && p.group == def.group).unwrap_or(&OTHER)
}

/// Texts of the fields that descriptions name: read from the whole documentation once.
static TEXTS: LazyLock<HashMap<&'static str, String>> = LazyLock::new(|| {
    let docs = Docs::unpack();
    let columns = PRINTERS.iter().chain([&OTHER, &SCALE]).flat_map(|p| p.columns);
    let fields = columns.filter_map(|c| c.description.strip_prefix('@'));
    fields
        .map(|field| {
            let path =
                field.replacen("meta.", "apimachinery.pkg.apis.meta.v1.", usize::from(field.starts_with("meta.")));
            (field, docs.of(&path).unwrap_or_default())
        })
        .collect()
});

/// A column as tables define it.
pub fn definition(column: &Column) -> Value {
    let description = match column.description.strip_prefix('@') {
        Some(field) => TEXTS.get(field).map_or("", String::as_str),
        None => column.description,
    };
    json!({
        "name": column.name, "type": column.kind, "format": column.format, "description": description,
        "priority": column.priority,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_machinery::resources::{RESOURCES, find};

    #[test]
    fn every_row_has_a_cell_for_each_column() {
        for def in RESOURCES {
            // A bookmark has neither name nor contents.
            let object = json!({"metadata": {"resourceVersion": "5"}});
            let printer = of(def);
            let nulls = (printer.cells)(&object).iter().filter(|cell| cell.is_null()).count();
            assert_eq!(nulls, 0, "{}", def.qualified());
            // Upstream fills one cell more than it has columns for addresses.
            let more = usize::from(def.plural == "ipaddresses");
            assert_eq!((printer.cells)(&object).len(), printer.columns.len() + more, "{}", def.qualified());
        }
    }

    #[test]
    fn rows_are_of_kinds_and_described() {
        for printer in PRINTERS {
            let served = RESOURCES.iter().any(|r| r.group == printer.group && r.plural == printer.plural);
            assert!(served, "{} {}", printer.group, printer.plural);
            for column in printer.columns {
                let described = definition(column)["description"].as_str().is_some_and(|d| !d.is_empty());
                assert!(described || column.name == "Handler", "{}: {}", printer.plural, column.name);
            }
        }
        assert_eq!(definition(&of(find("", "v1", "pods").unwrap()).columns[0])["format"], "name");
    }
}
