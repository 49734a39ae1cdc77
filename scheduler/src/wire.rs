//! Pods and nodes as the scheduler reads them: only the fields it needs, so that decoding is cheap.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, PodSchedulingGate, Taint, Toleration, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Deserializer};

/// Absent and null are both the default.
fn lenient<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Declares structs whose fields are all optional, camelCase on the wire.
macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        #[allow(missing_docs)]
        pub struct $name { $($(#[$attr])* #[serde(deserialize_with = "lenient")] pub $field: $kind,)* }
    )*};
}

/// Amounts by resource name.
pub type Quantities = BTreeMap<String, Quantity>;

wire! {
    /// Metadata of any object.
    Meta {
        name: String,
        namespace: String,
        uid: String,
        resource_version: String,
        generation: i64,
        labels: BTreeMap<String, String>,
        creation_timestamp: Option<String>,
        deletion_timestamp: Option<String>,
        owner_references: Vec<Owner>,
    }
    /// An owner.
    Owner {
        kind: String,
        name: String,
        uid: String,
        controller: bool,
    }
    /// A pod.
    Pod {
        metadata: Meta,
        spec: PodSpec,
        status: PodStatus,
    }
    /// What a pod wants.
    PodSpec {
        node_name: String,
        scheduler_name: String,
        priority: Option<i32>,
        priority_class_name: String,
        preemption_policy: String,
        node_selector: BTreeMap<String, String>,
        affinity: Option<Affinity>,
        tolerations: Vec<Toleration>,
        topology_spread_constraints: Vec<TopologySpreadConstraint>,
        scheduling_gates: Vec<PodSchedulingGate>,
        containers: Vec<Container>,
        init_containers: Vec<Container>,
        resources: Resources,
        overhead: Quantities,
        volumes: Vec<Volume>,
        host_network: bool,
        host_users: Option<bool>,
        resource_claims: Vec<PodClaim>,
        scheduling_group: Option<SchedulingGroup>,
    }
    /// The group that a pod is scheduled with.
    SchedulingGroup {
        pod_group_name: String,
    }
    /// A claim for devices, or what it is made from.
    PodClaim {
        name: String,
        resource_claim_name: Option<String>,
        resource_claim_template_name: Option<String>,
    }
    /// A container.
    Container {
        name: String,
        image: String,
        resources: Resources,
        ports: Vec<Port>,
        restart_policy: String,
        restart_policy_rules: Vec<RestartRule>,
    }
    /// What follows when a container ends.
    RestartRule {
        action: String,
    }
    /// Requests.
    Resources {
        requests: Quantities,
        limits: Quantities,
    }
    /// A port of a container.
    Port {
        host_port: i32,
        protocol: String,
        #[serde(rename = "hostIP")] host_ip: String,
    }
    /// A volume.
    Volume {
        name: String,
        persistent_volume_claim: Option<ClaimSource>,
        ephemeral: Option<serde::de::IgnoredAny>,
        gce_persistent_disk: Option<GceDisk>,
        aws_elastic_block_store: Option<AwsDisk>,
        iscsi: Option<Iscsi>,
        rbd: Option<Rbd>,
        csi: Option<CsiSource>,
    }
    /// A claim.
    ClaimSource {
        claim_name: String,
        read_only: bool,
    }
    /// A disk of Google's cloud.
    GceDisk {
        pd_name: String,
        read_only: bool,
    }
    /// A disk of Amazon's cloud.
    AwsDisk {
        #[serde(rename = "volumeID")] volume_id: String,
        read_only: bool,
    }
    /// A disk over iSCSI.
    Iscsi {
        iqn: String,
        read_only: bool,
    }
    /// A disk of Ceph.
    Rbd {
        monitors: Vec<String>,
        pool: String,
        image: String,
        read_only: bool,
    }
    /// An inline volume of a CSI driver.
    CsiSource {
        driver: String,
    }
    /// What became of a pod.
    PodStatus {
        phase: String,
        nominated_node_name: String,
        start_time: Option<String>,
        conditions: Vec<Condition>,
        container_statuses: Vec<ContainerStatus>,
        init_container_statuses: Vec<ContainerStatus>,
        resource_claim_statuses: Vec<PodClaim>,
        allocated_resources: Quantities,
        resources: Option<Resources>,
    }
    /// What became of a container.
    ContainerStatus {
        name: String,
        allocated_resources: Quantities,
        resources: Option<Resources>,
    }
    /// A condition.
    Condition {
        #[serde(rename = "type")] kind: String,
        status: String,
        reason: String,
        message: String,
        last_transition_time: Option<String>,
        observed_generation: i64,
    }
    /// A group of pods.
    PodGroup {
        metadata: Meta,
        spec: PodGroupSpec,
        status: PodGroupStatus,
    }
    /// How a group's pods are scheduled.
    PodGroupSpec {
        scheduling_policy: SchedulingPolicy,
    }
    /// One of the ways.
    SchedulingPolicy {
        gang: Option<GangPolicy>,
    }
    /// Together.
    GangPolicy {
        min_count: i64,
    }
    /// What became of a group.
    PodGroupStatus {
        conditions: Vec<Condition>,
    }
    /// A node.
    Node {
        metadata: Meta,
        spec: NodeSpec,
        status: NodeStatus,
    }
    /// What is wanted of a node.
    NodeSpec {
        unschedulable: bool,
        taints: Vec<Taint>,
    }
    /// What a node has.
    NodeStatus {
        allocatable: Quantities,
        images: Vec<Image>,
        declared_features: Vec<String>,
    }
    /// An image on a node.
    Image {
        names: Vec<String>,
        size_bytes: i64,
    }
}
