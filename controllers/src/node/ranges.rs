//! Ranges of pod addresses: each node gets one that no other has.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use keelson_client::{Key, PatchType};
use serde_json::json;

use crate::context::{Context, NodeCidrMaskSizes};
use crate::runtime::{Keys, Outcome, watch_own};

/// Bits of the addresses of a range's family.
fn width(range: &str) -> u32 {
    if range.contains(':') { 128 } else { 32 }
}

/// First and last address of a range.
fn bounds(range: &str) -> Option<(u128, u128)> {
    let (base, bits) = range.split_once('/')?;
    let width = width(range);
    let bits = bits.parse::<u32>().ok().filter(|b| *b <= width)?;
    let all = u128::MAX >> (128 - width);
    let hosts = all.checked_shr(bits).unwrap_or(0);
    let base = match base.parse::<IpAddr>().ok()? {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    Some((base & !hosts, (base & !hosts) | hosts))
}

/// The address of this number in a range's family.
fn address(number: u128, width: u32) -> Option<IpAddr> {
    if width == 128 {
        return Some(IpAddr::V6(number.into()));
    }
    Some(IpAddr::V4(u32::try_from(number).ok()?.into()))
}

/// The first range of a node's size out of the cluster's that meets none of those taken.
fn free_range(cluster: &str, bits: u32, taken: &[&str]) -> Option<String> {
    let (first, last) = bounds(cluster)?;
    let width = width(cluster);
    let size = 1_u128.checked_shl(width.checked_sub(bits)?)?;
    let same = taken.iter().filter(|range| self::width(range) == width);
    let mut taken: Vec<(u128, u128)> = same.filter_map(|range| bounds(range)).collect();
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
    let fits = base.checked_add(size - 1)? <= last;
    fits.then(|| address(base, width)).flatten().map(|base| format!("{base}/{bits}"))
}

/// A free range of each family that the cluster has, the first one's first; or the family of which there is none.
fn free_ranges(cluster: &str, sizes: NodeCidrMaskSizes, taken: &[&str]) -> Result<Vec<String>, String> {
    let of = |cluster: &str| {
        let bits = if width(cluster) == 128 { sizes.v6 } else { sizes.v4 }.into();
        free_range(cluster, bits, taken).ok_or_else(|| cluster.to_owned())
    };
    cluster.split(',').map(str::trim).map(of).collect()
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
    let specs = nodes.iter().filter_map(|n| n.spec.as_ref());
    let taken: Vec<&str> =
        specs.flat_map(|s| s.pod_cidrs.iter().flatten().chain(&s.pod_cidr)).map(String::as_str).collect();
    let config = &context.config;
    let ranges = match free_ranges(&config.cluster_cidr, config.node_cidr_mask_sizes, &taken) {
        Ok(ranges) => ranges,
        Err(full) => {
            tracing::warn!(node = key.1, range = full, "no range of pod addresses is left for a node");
            let recorder = context.recorder("cidrAllocator");
            let message = format!("Node {} status is now: CIDRNotAvailable", key.1);
            recorder.normal(&*node, "CIDRNotAvailable", message);
            return Ok(Some(std::time::Duration::from_secs(30)));
        }
    };
    let patch = json!({"metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
        "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges}});
    let written = context.client.cluster::<Node>().patch(&key.1, None, PatchType::Merge, &patch).await?;
    context.settle(&context.cache.nodes, &written).await;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gets_a_range_of_each_family() {
        let both = "10.244.0.0/16,fd00:244::/48";
        let taken = ["10.244.0.0/24", "fd00:244::/64"];
        let usual = NodeCidrMaskSizes::default();
        assert_eq!(free_ranges(both, usual, &taken).unwrap(), ["10.244.1.0/24", "fd00:244:0:1::/64"]);
        assert_eq!(free_ranges("10.244.0.0/24,fd00:244::/48", usual, &taken).unwrap_err(), "10.244.0.0/24");
        assert_eq!(free_ranges("fd00:244::/48", usual, &[]).unwrap(), ["fd00:244::/64"]);
        let other = NodeCidrMaskSizes { v4: 26, v6: 112 };
        assert_eq!(free_ranges(both, other, &taken).unwrap(), ["10.244.1.0/26", "fd00:244:0:1::/112"]);
    }

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
            ("fd00:244::/48", 64, &["10.244.0.0/24", "fd00:244::/64"], Some("fd00:244:0:1::/64")),
            ("fd00:244::/64", 64, &["fd00:244::/64"], None),
            ("0.0.0.0/0", 8, &[], Some("0.0.0.0/8")),
        ] {
            assert_eq!(free_range(cluster, bits, taken).as_deref(), wanted, "{cluster} {bits} {taken:?}");
        }
    }
}
