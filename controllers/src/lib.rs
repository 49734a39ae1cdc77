//! The controllers: each a pure plan (what is, to what is to be done) and a thin runner.
//!
//! Invariant: a plan reads no clock, no randomness and no network; the runner writes only through a fenced client.

mod autoscaler;
mod context;
mod cronjob;
mod csr;
mod daemonset;
mod deployment;
mod device_taints;
mod disruption;
#[cfg(test)]
mod failures;
mod garbage;
mod history;
mod housekeeping;
mod job;
mod kept;
mod metrics;
mod node;
mod owners;
mod pod_gc;
mod pod_groups;
mod pods;
mod policies;
mod quota;
mod replicaset;
mod resource_claims;
mod runtime;
mod services;
mod statefulset;
mod storage_migrations;
mod volumes;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use keelson_client::Client;
use tokio_util::sync::CancellationToken;

use context::Context;
pub use context::{Config, Credentials, NodeCidrMaskSizes};
pub use cronjob::schedule::Schedule;
use runtime::Controller;
use runtime::Work::{Keyed, Loop};

/// Declares a row for a controller that looks at keys.
macro_rules! keyed {
    ($name:literal, $workers:literal, $watch:expr, $reconcile:expr) => {
        Controller {
            name: $name,
            work: Keyed {
                workers: $workers,
                watch: $watch,
                reconcile: |context, key| Box::pin($reconcile(context, key)),
            },
        }
    };
}

const fn looped(
    name: &'static str,
    body: fn(std::sync::Arc<Context>) -> futures::future::BoxFuture<'static, ()>,
) -> Controller {
    Controller { name, work: Loop(body) }
}

/// All controllers. Names are upstream's.
static CONTROLLERS: &[Controller] = &[
    keyed!("deployment-controller", 16, deployment::watch, deployment::reconcile),
    keyed!("replicaset-controller", 16, replicaset::watch::<ReplicaSet>, replicaset::reconcile::<ReplicaSet>),
    keyed!(
        "replicationcontroller-controller",
        8,
        replicaset::watch::<ReplicationController>,
        replicaset::reconcile::<ReplicationController>
    ),
    keyed!("statefulset-controller", 8, statefulset::watch, statefulset::reconcile),
    keyed!("daemonset-controller", 4, daemonset::watch, daemonset::reconcile),
    keyed!("job-controller", 8, job::watch, job::reconcile),
    keyed!("cronjob-controller", 4, cronjob::watch, cronjob::reconcile),
    keyed!("ttl-after-finished-controller", 2, job::ttl::watch, job::ttl::reconcile),
    keyed!("horizontal-pod-autoscaler-controller", 4, autoscaler::watch, autoscaler::reconcile),
    keyed!("disruption-controller", 4, disruption::watch, disruption::reconcile),
    keyed!("stale-disruption-controller", 2, disruption::stale::watch, disruption::stale::reconcile),
    keyed!("resourcequota-controller", 4, quota::watch, quota::reconcile),
    keyed!("endpoints-controller", 8, services::endpoints::watch, services::endpoints::reconcile),
    keyed!("endpointslice-controller", 8, services::slices::watch, services::slices::reconcile),
    keyed!("validatingadmissionpolicy-status-controller", 2, policies::watch, policies::reconcile),
    keyed!("service-cidr-controller", 2, services::ranges::watch, services::ranges::reconcile),
    keyed!("endpointslice-mirroring-controller", 4, services::mirroring::watch, services::mirroring::reconcile),
    keyed!("name-service-controller", 1, services::names::watch, services::names::reconcile),
    // Of two claims that choose the same volume, the second finds it changed and chooses again.
    keyed!(
        "persistentvolumeclaim-binder-controller",
        // Each waits for its writes, three one after the other; a class of node directories may have to make thousands of
        // volumes.
        64,
        volumes::binder::watch_claims,
        volumes::binder::reconcile_claim
    ),
    keyed!("persistentvolume-binder-controller", 4, volumes::binder::watch_volumes, volumes::binder::reconcile_volume),
    keyed!(
        "persistentvolumeclaim-protection-controller",
        4,
        volumes::protection::watch_claims,
        volumes::protection::reconcile_claim
    ),
    keyed!(
        "persistentvolume-protection-controller",
        4,
        volumes::protection::watch_volumes,
        volumes::protection::reconcile_volume
    ),
    keyed!(
        "volumeattributesclass-protection-controller",
        1,
        volumes::protection::watch_classes,
        volumes::protection::reconcile_class
    ),
    keyed!("storage-version-migrator-controller", 5, storage_migrations::watch, storage_migrations::reconcile),
    keyed!("podgroup-protection-controller", 1, pod_groups::watch, pod_groups::reconcile),
    keyed!("persistentvolume-attach-detach-controller", 8, volumes::attachment::watch, volumes::attachment::reconcile),
    keyed!("persistentvolume-expander-controller", 2, volumes::expansion::watch, volumes::expansion::reconcile),
    keyed!("ephemeral-volume-controller", 4, volumes::ephemeral::watch, volumes::ephemeral::reconcile),
    keyed!("resourceclaim-controller", 4, resource_claims::watch, resource_claims::reconcile),
    keyed!("resourceclaim-release-controller", 2, resource_claims::watch_claims, resource_claims::release),
    looped("local-path-provisioner", volumes::local_path::run),
    keyed!("node-ipam-controller", 30, node::ranges::watch, node::ranges::reconcile),
    keyed!("ttl-controller", 1, node::ttl::watch, node::ttl::reconcile),
    looped("node-lifecycle-controller", node::lifecycle::run),
    keyed!("taint-eviction-controller", 16, node::eviction::watch, node::eviction::reconcile),
    keyed!("device-taint-eviction-controller", 8, device_taints::watch, device_taints::reconcile),
    keyed!(
        "legacy-serviceaccount-token-cleaner-controller",
        1,
        housekeeping::legacy_tokens::watch,
        housekeeping::legacy_tokens::reconcile
    ),
    looped("pod-garbage-collector-controller", pod_gc::run),
    looped("garbage-collector-controller", garbage::run),
    keyed!("namespace-controller", 8, housekeeping::namespace::watch, housekeeping::namespace::reconcile),
    keyed!("serviceaccount-controller", 4, housekeeping::accounts::watch, housekeeping::accounts::reconcile),
    keyed!(
        "serviceaccount-token-controller",
        4,
        housekeeping::token_secrets::watch,
        housekeeping::token_secrets::reconcile
    ),
    keyed!(
        "serviceaccount-token-reference-controller",
        1,
        housekeeping::token_secrets::watch_references,
        housekeeping::token_secrets::unreference
    ),
    keyed!(
        "root-ca-certificate-publisher-controller",
        4,
        housekeeping::root_ca::watch,
        housekeeping::root_ca::reconcile
    ),
    keyed!(
        "clusterrole-aggregation-controller",
        2,
        housekeeping::aggregation::watch,
        housekeeping::aggregation::reconcile
    ),
    keyed!("bootstrap-signer-controller", 1, housekeeping::bootstrap::watch_signer, housekeeping::bootstrap::sign),
    keyed!("token-cleaner-controller", 1, housekeeping::bootstrap::watch_cleaner, housekeeping::bootstrap::clean),
    keyed!("certificatesigningrequest-approving-and-signing-controller", 4, csr::watch, csr::reconcile),
    keyed!("certificatesigningrequest-cleaner-controller", 1, csr::watch, csr::clean),
];

/// Runs all controllers until `stop` is cancelled. `client` is fenced: what it writes is refused once it is not the
/// leader's any more.
pub async fn run(client: Client, config: Config, stop: CancellationToken) {
    // Whatever is started here ends with this call, also when its future is dropped.
    let running = stop.child_token();
    let _guard = running.clone().drop_guard();
    let context = tokio::select! {
        () = stop.cancelled() => return,
        context = Context::start(client, config, running) => context,
    };
    runtime::run(context, CONTROLLERS).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sound() {
        let mut names: Vec<&str> = CONTROLLERS.iter().map(|c| c.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a name twice: {names:?}");
        assert!(CONTROLLERS.iter().all(|c| !matches!(c.work, Keyed { workers: 0, .. })));
    }
}
