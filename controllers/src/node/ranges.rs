//! Ranges of pod addresses: each node gets one that no other has.

use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use keelson_client::{Key, PatchType};
use serde_json::json;

use crate::context::Context;
use crate::runtime::{Keys, Outcome, watch_own};

/// First and last address of an IPv4 range.
fn bounds(range: &str) -> Option<(u32, u32)> {
    let (base, bits) = range.split_once('/')?;
    let bits = bits.parse::<u32>().ok().filter(|b| *b <= 32)?;
    let hosts = u32::MAX.checked_shr(bits).unwrap_or(0);
    let base = u32::from(base.parse::<Ipv4Addr>().ok()?) & !hosts;
    Some((base, base | hosts))
}

/// The first range of a node's size out of the cluster's that meets none of those taken.
fn free_range(cluster: &str, bits: u32, taken: &[&str]) -> Option<String> {
    let (first, last) = bounds(cluster)?;
    let size = 1_u32.checked_shl(32_u32.checked_sub(bits)?)?;
    let mut taken: Vec<(u32, u32)> = taken.iter().filter_map(|range| bounds(range)).collect();
    taken.sort_unstable();
    let mut base = first;
    for (from, to) in taken {
        if base.checked_add(size - 1)? < from {
            break;
        }
        if to >= base {
            // Ranges of several sizes may lie side by side: go on at the next multiple of ours.
            base = to.checked_add(1)?.checked_next_multiple_of(size)?;
        }
    }
    (base.checked_add(size - 1)? <= last).then(|| format!("{}/{bits}", Ipv4Addr::from(base)))
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
    let taken: Vec<&str> = nodes.iter().filter_map(|n| n.spec.as_ref()?.pod_cidr.as_deref()).collect();
    let config = &context.config;
    let Some(range) = free_range(&config.cluster_cidr, config.node_cidr_mask_size.into(), &taken) else {
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
    fn ranges_meet_no_other() {
        let two = ["10.244.0.0/24", "10.244.1.0/24"];
        for (cluster, bits, taken, wanted) in [
            ("10.244.0.0/16", 24, &two[..], Some("10.244.2.0/24")),
            ("10.244.0.0/23", 24, &two, None),
            ("10.244.0.0/16", 26, &two, Some("10.244.2.0/26")),
            ("10.244.0.0/16", 22, &two, Some("10.244.4.0/22")),
            ("10.244.0.0/16", 24, &["10.244.1.0/24", "10.244.0.0/26"], Some("10.244.2.0/24")),
            ("10.244.0.0/16", 26, &["10.244.1.0/24", "10.244.0.0/26"], Some("10.244.0.64/26")),
            ("10.0.0.0/8", 24, &["172.16.0.0/24"], Some("10.0.0.0/24")),
            ("255.255.255.0/24", 24, &["255.255.255.0/24"], None),
            ("nonsense", 24, &[], None),
            ("10.244.0.0/16", 12, &[], None),
        ] {
            assert_eq!(free_range(cluster, bits, taken).as_deref(), wanted, "{cluster} {bits} {taken:?}");
        }
    }
}
