//! Ranges of pod addresses: each node gets one that no other has.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use keelson_client::{Key, PatchType};
use serde_json::json;

use crate::context::Context;
use crate::runtime::{Keys, Outcome, watch_own};

/// Each node gets a /24.
const NODE_BITS: u32 = 24;

/// The first free range for a node out of the cluster's.
fn free_range(cluster: &str, taken: &HashSet<&str>) -> Option<String> {
    let (base, bits) = cluster.split_once('/')?;
    let (base, bits) =
        (u32::from(base.parse::<Ipv4Addr>().ok()?), bits.parse::<u32>().ok().filter(|b| *b <= NODE_BITS)?);
    (0..1_u32 << (NODE_BITS - bits))
        .map(|i| format!("{}/{NODE_BITS}", Ipv4Addr::from(base + (i << (32 - NODE_BITS)))))
        .find(|range| !taken.contains(range.as_str()))
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.nodes, queue);
}

/// Looks at one node. There is one worker, and it waits until the cache shows what it wrote: so no range is given twice.
pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(node) = context.cache.nodes.get(&key) else { return Ok(None) };
    if node.metadata.deletion_timestamp.is_some() || node.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some()) {
        return Ok(None);
    }
    let nodes = context.cache.nodes.list_all();
    let taken = nodes.iter().filter_map(|n| n.spec.as_ref()?.pod_cidr.as_deref()).collect();
    let Some(range) = free_range(&context.config.cluster_cidr, &taken) else {
        let recorder = context.recorder("cidrAllocator");
        let message = format!("Node {} status is now: CIDRNotAvailable", key.1);
        recorder.normal(&*node, "CIDRNotAvailable", message);
        return Ok(Some(std::time::Duration::from_secs(30)));
    };
    let patch = json!({"metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
        "spec": {"podCIDR": range, "podCIDRs": [range]}});
    let written = context.client.cluster::<Node>().patch(&key.1, None, PatchType::Merge, &patch).await?;
    context.settle(&context.cache.nodes, &written).await;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_unique() {
        let taken = HashSet::from(["10.244.0.0/24", "10.244.1.0/24"]);
        assert_eq!(free_range("10.244.0.0/16", &taken).as_deref(), Some("10.244.2.0/24"));
        assert_eq!(free_range("10.244.0.0/23", &taken), None);
        assert_eq!(free_range("nonsense", &taken), None);
    }
}
