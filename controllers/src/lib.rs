//! The controllers: each a pure plan (what is, to what is to be done) and a thin runner.
//!
//! Invariant: a plan reads no clock, no randomness and no network; the runner writes only through a fenced client.

mod csr;
mod deployment;
mod namespace;
mod node;
mod replicaset;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use keelson_client::{Cache, Client, Error, Key, Object};
use keelson_pki::ClusterPki;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Work that failed is looked at again after this.
const RETRY: Duration = Duration::from_secs(1);
/// Work that found its cache behind is looked at again after this.
const BEHIND: Duration = Duration::from_millis(20);

/// What the controllers share: one decoded copy of each object.
pub struct Context {
    client: Client,
    cluster_cidr: String,
    authority: Arc<ClusterPki>,
    requests: Arc<Cache<CertificateSigningRequest>>,
    namespaces: Arc<Cache<Namespace>>,
    nodes: Arc<Cache<Node>>,
    pods: Arc<Cache<Pod>>,
    replica_sets: Arc<Cache<ReplicaSet>>,
    deployments: Arc<Cache<Deployment>>,
}

/// Runs all controllers until `stop` is cancelled.
pub async fn run(client: Client, cluster_cidr: String, authority: Arc<ClusterPki>, stop: CancellationToken) {
    let notify = Arc::new(Notify::new());
    let context = Context {
        namespaces: Cache::start(&client, notify.clone(), stop.clone()),
        nodes: Cache::start(&client, notify.clone(), stop.clone()),
        pods: Cache::start(&client, notify.clone(), stop.clone()),
        replica_sets: Cache::start(&client, notify.clone(), stop.clone()),
        deployments: Cache::start(&client, notify.clone(), stop.clone()),
        requests: Cache::start(&client, notify.clone(), stop.clone()),
        client,
        cluster_cidr,
        authority,
    };
    tokio::join!(
        context.namespaces.synced(),
        context.nodes.synced(),
        context.pods.synced(),
        context.replica_sets.synced(),
        context.deployments.synced(),
        context.requests.synced()
    );
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = notify.notified() => context.step().await,
        }
    }
}

impl Context {
    /// Looks at everything that changed since the last step.
    async fn step(&self) {
        let mut replica_sets = self.replica_sets.drain();
        for (namespace, name) in self.pods.drain() {
            // A pod that is gone no longer says whose it was; its name does, since controllers derive it.
            let pod = self.pods.get(&(namespace.clone(), name.clone()));
            let owner = pod.as_ref().and_then(|p| replicaset::owner(&p.metadata));
            let owner = owner.or_else(|| name.rsplit_once('-').map(|(owner, _)| owner.to_owned()));
            if let Some(owner) = owner {
                replica_sets.insert((namespace, owner));
            }
        }
        let mut deployments = self.deployments.drain();
        for key in &replica_sets {
            let owner = self.replica_sets.get(key).and_then(|r| deployment::owner(&r.metadata));
            let owner = owner.or_else(|| key.1.rsplit_once('-').map(|(owner, _)| owner.to_owned()));
            if let Some(owner) = owner {
                deployments.insert((key.0.clone(), owner));
            }
        }
        for key in self.nodes.drain() {
            let result = node::reconcile(self, &key).await;
            self.settle("node", &self.nodes, &key, result);
        }
        for key in self.requests.drain() {
            let result = csr::reconcile(self, &key).await;
            self.settle("certificate signing", &self.requests, &key, result);
        }
        for key in deployments {
            let result = deployment::reconcile(self, &key).await;
            self.settle("deployment", &self.deployments, &key, result);
        }
        for key in replica_sets {
            let result = replicaset::reconcile(self, &key).await;
            self.settle("replicaset", &self.replica_sets, &key, result);
        }
        for key in self.namespaces.drain() {
            let result = namespace::reconcile(self, &key).await;
            self.settle("namespace", &self.namespaces, &key, result);
        }
    }

    /// A conflict means that the cache was behind; like any other failure it is looked at again after a pause.
    fn settle<K: Object>(&self, controller: &str, cache: &Arc<Cache<K>>, key: &Key, result: Result<(), Error>) {
        let Err(error) = result else { return };
        let pause = if error.is_conflict() || error.is_not_found() {
            debug!(controller, name = key.1, %error, "the cache was behind");
            BEHIND
        } else {
            warn!(controller, namespace = key.0, name = key.1, %error, "failed; trying again");
            RETRY
        };
        let (cache, key) = (cache.clone(), key.clone());
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            cache.touch(key);
        });
    }
}
