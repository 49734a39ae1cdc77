//! The network of the agent's node: made once it is known which addresses pods get, and followed from then on.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use keelson_client::{Error, PatchType};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{dns, policy, proxy, ways};
use crate::agent::Agent;
use crate::cni::{self, PodNetwork};
use crate::node;

impl Agent {
    /// Serves Services, policies and names, once the node has its network.
    pub(crate) async fn network(self: Arc<Self>, stop: CancellationToken) {
        self.networked.notified().await;
        let names = async {
            match self.config.cluster_dns.filter(|_| self.config.serve_dns) {
                Some(address) => {
                    let own = self.gateway.lock().filter(|own| own.is_ipv4() == address.is_ipv4());
                    dns::run(self.clone(), std::iter::once(address).chain(own).collect()).await;
                }
                None => std::future::pending().await,
            }
        };
        let services =
            async { if self.config.proxy { proxy::run(self.clone()).await } else { std::future::pending().await } };
        let policies = async {
            if self.config.proxy { policy::run(self.clone(), stop.clone()).await } else { std::future::pending().await }
        };
        tokio::join!(names, services, policies, ways::run(self.clone(), stop.clone()));
    }

    /// Makes the pods' network on this node.
    pub(crate) async fn pod_network(&self, ranges: &[String], node: &Node, prepared: &mut bool) -> Result<(), Error> {
        let cidr = ranges.iter().find(|range| !range.contains(':')).or(ranges.first());
        let Some(cidr) = cidr.map(String::as_str) else { return Ok(()) };
        let vxlan = self.config.pod_network == PodNetwork::Vxlan;
        let mtu = if vxlan { cni::inner_mtu(self.config.node_ip) } else { None };
        if let Err(error) = cni::write(&self.config.cni_conf_dir, ranges, mtu) {
            tracing::error!(%error, "the network configuration could not be written");
        }
        self.name_server(cidr, node).await?;
        if !*prepared {
            match cni::prepare(&self.config.cluster_cidr).await {
                Ok(()) => {
                    *prepared = true;
                    self.networked.notify_one();
                }
                Err(error) => tracing::error!(%error, "the node's network could not be prepared"),
            }
        }
        Ok(())
    }

    /// Says on the node where names are served beside the name service's own address: every node and pod can reach that.
    async fn name_server(&self, cidr: &str, node: &Node) -> Result<(), Error> {
        let gateway = cni::gateway(cidr);
        *self.gateway.lock() = gateway;
        let address = gateway.filter(|_| self.config.serve_dns && self.config.cluster_dns.is_some());
        let wanted = address.map(|address| address.to_string());
        if node.metadata.annotations.as_ref().and_then(|a| a.get(node::NAME_SERVER)) == wanted.as_ref() {
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": {node::NAME_SERVER: wanted}}});
        let nodes = self.config.client.cluster::<Node>();
        nodes.patch(&self.config.node_name, None, PatchType::Merge, &patch).await.map(drop)
    }
}
