//! What the controllers share: configuration, client, one informer of each kind, event recorders, the clock.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, ReplicationController,
    ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceSlice};
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass, VolumeAttachment, VolumeAttributesClass};
use k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use keelson_client::informer::Trim;
use keelson_client::{Client, Informer, ListParams, Recorder};
use keelson_machinery::features::{self, Feature};
use keelson_metrics::Source;
use keelson_pki::service_account::SigningKey;
use keelson_pki::{Authority, ClusterPki};
use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

use crate::device_taints::BY_POOL;
use crate::kept::Pod;
use crate::node::ranges::Ranges;
use crate::pod_groups;
use crate::volumes;
use crate::volumes::attachment::{self, ATTACHED_TO, ATTACHMENTS_OF};

/// Longest wait for an informer to show a write just made; it takes milliseconds.
const CATCH_UP: Duration = Duration::from_secs(5);

/// What the controllers sign with and publish.
#[derive(Clone)]
pub enum Credentials {
    /// All keys of the cluster.
    Cluster(Arc<ClusterPki>),
    /// What somebody else's cluster gave; without a key nothing of its kind is signed.
    Given {
        /// Certificate of the CA, which is published.
        root: String,
        /// Signs certificate requests.
        signer: Option<Arc<Authority>>,
        /// Signs tokens of service accounts that are kept as Secrets.
        tokens: Option<Arc<SigningKey>>,
    },
}

impl Credentials {
    /// Certificates of the CAs that are trusted, as PEM.
    pub fn root(&self) -> Arc<str> {
        match self {
            Self::Cluster(pki) => pki.cluster.trusted(),
            Self::Given { root, .. } => root.as_str().into(),
        }
    }

    /// Who signs certificate requests.
    pub fn signer(&self) -> Option<&Authority> {
        match self {
            Self::Cluster(pki) => Some(&pki.cluster),
            Self::Given { signer, .. } => signer.as_deref(),
        }
    }

    /// What signs tokens.
    pub fn tokens(&self) -> Option<&SigningKey> {
        match self {
            Self::Cluster(pki) => Some(&pki.service_account),
            Self::Given { tokens, .. } => tokens.as_deref(),
        }
    }
}

/// How long the prefix of a node's range of pod addresses is, by family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeCidrMaskSizes {
    /// Of IPv4.
    pub v4: u8,
    /// Of IPv6.
    pub v6: u8,
}

impl Default for NodeCidrMaskSizes {
    fn default() -> Self {
        Self { v4: 24, v6: 64 }
    }
}

/// What controllers are told from outside.
#[derive(Clone)]
pub struct Config {
    /// Addresses of pods; nodes get ranges of it.
    pub cluster_cidr: String,
    /// Addresses of Services, which no node gets; with a comma between families. May be empty.
    pub service_cidr: String,
    /// The lengths of the prefixes of each node's ranges.
    pub node_cidr_mask_sizes: NodeCidrMaskSizes,
    /// What is signed with and published.
    pub credentials: Credentials,
    /// A node that says nothing for this long is unreachable.
    pub node_monitor_grace_period: Duration,
    /// Whether claims of a cluster without storage classes get directories of nodes.
    pub local_path: bool,
    /// Addresses that belong to servers: no node gets a certificate for them.
    pub reserved_addresses: Vec<IpAddr>,
    /// Where numbers of what the controllers do are shown.
    pub metrics: keelson_metrics::Sources,
}

impl Config {
    /// The usual configuration of a cluster with these keys.
    pub fn new(cluster_cidr: String, pki: Arc<ClusterPki>) -> Self {
        Self::with(cluster_cidr, Credentials::Cluster(pki))
    }

    /// The usual configuration.
    pub fn with(cluster_cidr: String, credentials: Credentials) -> Self {
        Self {
            cluster_cidr,
            service_cidr: String::new(),
            node_cidr_mask_sizes: NodeCidrMaskSizes::default(),
            credentials,
            node_monitor_grace_period: Duration::from_secs(40),
            local_path: true,
            reserved_addresses: Vec::new(),
            metrics: Default::default(),
        }
    }
}

/// Pods by the node they are on.
pub const BY_NODE: &str = "node";
/// Pods of a namespace that no controller owns.
pub const ORPHANS: &str = "orphans";

fn node_of(pod: &Pod) -> Vec<String> {
    pod.spec.iter().filter_map(|s| s.node_name.clone()).collect()
}

fn orphan_of(pod: &Pod) -> Vec<String> {
    if crate::owners::controller_of(&pod.metadata).is_some() {
        return Vec::new();
    }
    vec![pod.metadata.namespace.clone().unwrap_or_default()]
}

/// Declares the informers: field, kind, further indexes, field selector, and what is taken off each object.
macro_rules! informers {
    ($($(#[$doc:meta])* $field:ident: $kind:ty, $indexes:expr, $fields:expr $(, $trim:expr)?;)*) => {
        /// One informer of each kind that a controller reads.
        pub struct Informers { $($(#[$doc])* pub $field: Arc<Informer<$kind>>,)* }

        impl Informers {
            fn start(client: &Client, stop: &CancellationToken) -> Self {
                Self { $($field: {
                    let fields: Option<&str> = $fields;
                    let params = ListParams { field_selector: fields.map(str::to_owned), ..ListParams::default() };
                    let trim: Option<Trim<$kind>> = None $(.or(Some(Box::new($trim) as Trim<$kind>)))?;
                    Informer::start_trimmed(client, params, $indexes, trim, stop.clone())
                },)* }
            }

            async fn synced(&self) {
                $(self.$field.synced().await;)*
            }

            #[cfg(test)]
            fn empty() -> Self {
                Self { $($field: Informer::of(Vec::new(), $indexes),)* }
            }
        }
    };
}

informers! {
    /// Pods, without what no controller reads.
    pods: Pod, &[(BY_NODE, node_of), (ORPHANS, orphan_of), (volumes::BY_CLAIM, volumes::claims_index),
        (pod_groups::BY_GROUP, pod_groups::group_index)], None, crate::kept::trimmer();
    /// Nodes.
    nodes: Node, &[], None;
    /// Namespaces.
    namespaces: Namespace, &[], None;
    /// Services.
    services: Service, &[], None;
    /// Endpoints.
    endpoints: Endpoints, &[], None;
    /// EndpointSlices.
    endpoint_slices: EndpointSlice, &[], None;
    /// ReplicaSets.
    replica_sets: ReplicaSet, &[], None;
    /// ReplicationControllers.
    replication_controllers: ReplicationController, &[], None;
    /// Deployments.
    deployments: Deployment, &[], None;
    /// StatefulSets.
    stateful_sets: StatefulSet, &[], None;
    /// DaemonSets.
    daemon_sets: DaemonSet, &[], None;
    /// ControllerRevisions.
    revisions: ControllerRevision, &[], None;
    /// Jobs.
    jobs: Job, &[], None;
    /// CronJobs.
    cron_jobs: CronJob, &[], None;
    /// HorizontalPodAutoscalers.
    autoscalers: HorizontalPodAutoscaler, &[], None;
    /// PodDisruptionBudgets.
    budgets: PodDisruptionBudget, &[], None;
    /// ResourceQuotas.
    quotas: ResourceQuota, &[], None;
    /// ServiceAccounts.
    service_accounts: ServiceAccount, &[], None;
    /// The ConfigMaps with the cluster's CA.
    root_cas: ConfigMap, &[], Some("metadata.name=kube-root-ca.crt");
    /// The ConfigMap that joining nodes read first.
    cluster_info: ConfigMap, &[], Some("metadata.name=cluster-info");
    /// Bootstrap tokens.
    tokens: Secret, &[], Some("type=bootstrap.kubernetes.io/token");
    /// Tokens of service accounts kept as Secrets.
    account_secrets: Secret, &[], Some("type=kubernetes.io/service-account-token");
    /// Certificate requests.
    requests: CertificateSigningRequest, &[], None;
    /// Leases; those of nodes are their heartbeats.
    leases: Lease, &[], None;
    /// PersistentVolumeClaims.
    claims: PersistentVolumeClaim, &[(volumes::WAITING, volumes::waiting_index)], None;
    /// PersistentVolumes.
    volumes: PersistentVolume, &[(volumes::RESERVED, volumes::reserved_index), (volumes::FREE, volumes::free_index)], None;
    /// StorageClasses.
    storage_classes: StorageClass, &[], None;
    /// VolumeAttachments.
    attachments: VolumeAttachment, &[(ATTACHED_TO, attachment::node_index), (ATTACHMENTS_OF, attachment::volume_index)], None;
    /// Policies of admission.
    policies: ValidatingAdmissionPolicy, &[], None;
    /// CSIDrivers.
    csi_drivers: CSIDriver, &[], None;
    /// VolumeAttributesClasses.
    attributes_classes: VolumeAttributesClass, &[], None;
    /// Ranges of Services' addresses.
    service_cidrs: ServiceCIDR, &[], None;
    /// Addresses of Services.
    addresses: IPAddress, &[], None;
    /// CSINodes.
    csi_nodes: CSINode, &[], None;
    /// ResourceClaims.
    resource_claims: ResourceClaim, &[], None;
    /// ResourceSlices.
    resource_slices: ResourceSlice, &[(BY_POOL, crate::device_taints::pool_index)], None;
    /// ClusterRoles.
    cluster_roles: ClusterRole, &[], None;
}

/// What the controllers share.
pub struct Context {
    /// Writes under this; fenced.
    pub client: Client,
    /// What was told from outside.
    pub config: Config,
    /// The informers.
    pub cache: Informers,
    /// Groups of pods, where there are such.
    pub pod_groups: Option<Arc<Informer<PodGroup>>>,
    /// Storage version migrations, where there are such.
    pub storage_migrations: Option<Arc<Informer<StorageVersionMigration>>>,
    /// What the attach/detach controller remembers.
    pub attachments: attachment::Memory,
    /// How long daemons that failed stay.
    pub failed_daemons: crate::daemonset::Backoff,
    /// Failures of Jobs that go on.
    pub job_failures: crate::job::Failed,
    /// Pods that are to be evicted later.
    pub evictions: crate::node::eviction::Pending,
    /// Ranges of pod addresses.
    pub ranges: Arc<Ranges>,
    /// Who uses claims that go.
    pub claim_users: volumes::protection::Live,
    /// Cancelled when the controllers must stop.
    pub stop: CancellationToken,
    recorders: Mutex<HashMap<&'static str, Recorder>>,
    listeners: RwLock<Vec<Listener>>,
}

/// Hears the namespace of an object that came or went.
pub type Listener = Box<dyn Fn(&str) + Send + Sync>;

impl Context {
    /// Starts the informers and waits for their first lists.
    pub async fn start(client: Client, config: Config, stop: CancellationToken) -> Arc<Self> {
        let cache = Informers::start(&client, &stop);
        cache.synced().await;
        let (attachments, failed_daemons, job_failures, evictions, claim_users) = Default::default();
        let (recorders, listeners) = Default::default();
        // These are not waited for: the kinds are served only if that is asked for, too.
        let groups = features::is_open(Feature::GenericWorkload);
        let migrations = features::is_open(Feature::StorageVersionMigrator);
        let ranges = Ranges::new(&config.cluster_cidr, &config.service_cidr, config.node_cidr_mask_sizes);
        let ranges = Arc::new(ranges);
        let numbers: Arc<dyn Source> = ranges.clone();
        config.metrics.add(&numbers);
        let pod_groups = groups.then(|| Informer::start(&client, &[], stop.clone()));
        let storage_migrations = migrations.then(|| Informer::start(&client, &[], stop.clone()));
        Arc::new(Self {
            client,
            config,
            cache,
            pod_groups,
            storage_migrations,
            attachments,
            failed_daemons,
            job_failures,
            evictions,
            ranges,
            claim_users,
            stop,
            recorders,
            listeners,
        })
    }

    /// The recorder of events of `component`.
    pub fn recorder(&self, component: &'static str) -> Recorder {
        self.recorders.lock().entry(component).or_insert_with(|| Recorder::start(&self.client, component)).clone()
    }

    /// Calls `listener` whenever an object of any kind came to a namespace or went.
    pub fn on_object(&self, listener: Listener) {
        self.listeners.write().push(listener);
    }

    /// Tells the listeners.
    pub fn tell_object(&self, namespace: &str) {
        self.listeners.read().iter().for_each(|listener| listener(namespace));
    }

    /// The time, in whole seconds as the API has it.
    pub fn now(&self) -> Time {
        let now = Timestamp::now();
        Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
    }

    /// Waits until `informer` shows the object that a write answered with.
    pub async fn settle<K: keelson_client::Object>(&self, informer: &Informer<K>, written: &K) {
        if let Some(version) = &written.metadata().resource_version {
            informer.caught_up(version, CATCH_UP).await;
        }
    }

    /// Waits until `informer` shows what was written at this version.
    pub async fn settle_at<K: keelson_client::Object>(&self, informer: &Informer<K>, version: &str) {
        informer.caught_up(version, CATCH_UP).await;
    }

    /// Waits until `informer` shows that an object goes.
    pub async fn settle_gone<K: keelson_client::Object>(&self, informer: &Informer<K>, deleted: &K) {
        let metadata = deleted.metadata();
        let uid = metadata.uid.as_deref().unwrap_or_default();
        informer.going(&keelson_client::informer::key(deleted), uid, CATCH_UP).await;
    }

    /// A context of empty informers whose client reaches nothing.
    #[cfg(test)]
    pub fn for_tests() -> Arc<Self> {
        struct Nowhere;
        impl keelson_client::Transport for Nowhere {
            fn call(
                &self,
                _: http::Request<bytes::Bytes>,
            ) -> futures::future::BoxFuture<'_, std::io::Result<http::Response<keelson_client::Body>>> {
                Box::pin(async { Err(std::io::Error::other("there is no server in this test")) })
            }
        }
        Arc::new(Self::of_client(Client::new(Arc::new(Nowhere), "test")))
    }

    /// A context of empty informers.
    #[cfg(test)]
    pub fn of_client(client: Client) -> Self {
        // Keys take their time to make; all tests may share them.
        static KEYS: std::sync::OnceLock<Arc<ClusterPki>> = std::sync::OnceLock::new();
        let keys = KEYS.get_or_init(|| Arc::new(ClusterPki::create().expect("keys"))).clone();
        Self {
            client,
            config: Config::new("10.244.0.0/16".into(), keys),
            cache: Informers::empty(),
            pod_groups: Some(Informer::of(Vec::new(), &[])),
            storage_migrations: Some(Informer::of(Vec::new(), &[])),
            attachments: attachment::Memory::default(),
            failed_daemons: Default::default(),
            job_failures: Default::default(),
            evictions: Default::default(),
            ranges: Arc::new(Ranges::new("10.244.0.0/16", "", NodeCidrMaskSizes::default())),
            claim_users: Default::default(),
            stop: CancellationToken::new(),
            recorders: Mutex::default(),
            listeners: RwLock::default(),
        }
    }
}
