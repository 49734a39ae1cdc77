//! Ranges of pod addresses: how much of them a node gets, and whether that fits.

use anyhow::{Context, Result, bail};
use clap::Args as Flags;
use keelson_controllers::NodeCidrMaskSizes;

/// How long the prefixes of nodes' ranges are.
#[derive(Flags, Clone, Debug)]
pub struct MaskSizes {
    /// Length of the prefix of each node's range of pod addresses; with a /16 for all pods, 24 is enough for 256 nodes
    #[arg(long, env = "KEELSON_NODE_CIDR_MASK_SIZE", value_parser = clap::value_parser!(u8).range(8..=128))]
    pub node_cidr_mask_size: Option<u8>,
    /// The same for IPv4 where pods have addresses of both families [default: 24]
    #[arg(long, env = "KEELSON_NODE_CIDR_MASK_SIZE_IPV4", value_parser = clap::value_parser!(u8).range(8..=30))]
    pub node_cidr_mask_size_ipv4: Option<u8>,
    /// The same for IPv6 where pods have addresses of both families [default: 64]
    #[arg(long, env = "KEELSON_NODE_CIDR_MASK_SIZE_IPV6", value_parser = clap::value_parser!(u8).range(8..=126))]
    pub node_cidr_mask_size_ipv6: Option<u8>,
}

impl MaskSizes {
    /// The sizes for a cluster's ranges, if they are one of each family at most and those of nodes fit into them.
    pub fn within(&self, cluster_cidr: &str) -> Result<NodeCidrMaskSizes> {
        let parts: Vec<&str> = cluster_cidr.split(',').map(str::trim).collect();
        let both = parts.len() == 2;
        if parts.len() > 2 || both && parts[0].contains(':') == parts[1].contains(':') {
            bail!("--cluster-cidr {cluster_cidr}: one range, or one of IPv4 and one of IPv6");
        }
        if both && self.node_cidr_mask_size.is_some() {
            bail!(
                "--node-cidr-mask-size is for pods of one family; with both give --node-cidr-mask-size-ipv4 and \
                 --node-cidr-mask-size-ipv6"
            );
        }
        if !both && (self.node_cidr_mask_size_ipv4.is_some() || self.node_cidr_mask_size_ipv6.is_some()) {
            bail!(
                "--node-cidr-mask-size-ipv4 and --node-cidr-mask-size-ipv6 are for pods of both families; with one give \
                 --node-cidr-mask-size"
            );
        }
        let usual = NodeCidrMaskSizes::default();
        let sizes = NodeCidrMaskSizes {
            v4: self.node_cidr_mask_size.or(self.node_cidr_mask_size_ipv4).unwrap_or(usual.v4),
            v6: self.node_cidr_mask_size.or(self.node_cidr_mask_size_ipv6).unwrap_or(usual.v6),
        };
        for part in parts {
            let bits = part.split_once('/').and_then(|(_, bits)| bits.parse::<u8>().ok());
            let bits = bits.with_context(|| format!("--cluster-cidr {part}: write for example 10.244.0.0/16"))?;
            let (node, longest) = if part.contains(':') { (sizes.v6, 126) } else { (sizes.v4, 30) };
            if node < bits || node > longest {
                bail!("--node-cidr-mask-size {node}: the range of a node does not fit into --cluster-cidr {part}");
            }
        }
        Ok(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_families_that_there_are() {
        let sizes = |one, v4, v6, cidr: &str| {
            let flags =
                MaskSizes { node_cidr_mask_size: one, node_cidr_mask_size_ipv4: v4, node_cidr_mask_size_ipv6: v6 };
            flags.within(cidr).map(|s| (s.v4, s.v6)).map_err(|e| e.to_string())
        };
        let both = "10.244.0.0/16,fd00:244::/48";
        for (one, v4, v6, cidr, expected) in [
            (None, None, None, "10.244.0.0/16", (24, 64)),
            (None, None, None, both, (24, 64)),
            (Some(26), None, None, "10.244.0.0/16", (26, 26)),
            (Some(112), None, None, "fd00:244::/96", (112, 112)),
            (None, Some(26), Some(112), both, (26, 112)),
        ] {
            assert_eq!(sizes(one, v4, v6, cidr), Ok(expected), "{one:?} {v4:?} {v6:?} {cidr}");
        }
        for (one, v4, v6, cidr, says) in [
            (Some(24), None, None, both, "--node-cidr-mask-size is for pods of one family"),
            (None, Some(24), None, "10.244.0.0/16", "are for pods of both families"),
            (Some(12), None, None, "10.244.0.0/16", "does not fit"),
            (Some(64), None, None, "10.244.0.0/16", "does not fit"),
            (None, None, Some(40), both, "does not fit"),
            (None, None, None, "10.0.0.0/8,10.1.0.0/16", "one of IPv4 and one of IPv6"),
            (None, None, None, "nonsense", "write for example"),
        ] {
            let refused = sizes(one, v4, v6, cidr).unwrap_err();
            assert!(refused.contains(says), "{cidr}: {refused}");
        }
    }
}
