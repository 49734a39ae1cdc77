//! Nodes: a range of pod addresses for each, and the taint that keeps pods away until it is ready.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{Node, Taint};
use keelson_client::{Error, Key};

use crate::Context;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Each node gets a /24.
const NODE_BITS: u32 = 24;

/// The first free range for a node out of the cluster's.
fn free_range(cluster: &str, taken: &BTreeSet<String>) -> Option<String> {
    let (base, bits) = cluster.split_once('/')?;
    let (base, bits) =
        (u32::from(base.parse::<Ipv4Addr>().ok()?), bits.parse::<u32>().ok().filter(|b| *b <= NODE_BITS)?);
    (0..1_u32 << (NODE_BITS - bits))
        .map(|i| format!("{}/{NODE_BITS}", Ipv4Addr::from(base + (i << (32 - NODE_BITS)))))
        .find(|range| !taken.contains(range))
}

/// The node as it should be, if it is not.
fn plan(node: &Node, range: Option<String>) -> Option<Node> {
    let mut wanted = node.clone();
    let spec = wanted.spec.get_or_insert_default();
    if spec.pod_cidr.is_none()
        && let Some(range) = range
    {
        spec.pod_cidr = Some(range.clone());
        spec.pod_cidrs = Some(vec![range]);
    }
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
    let mut taints = spec.taints.take().unwrap_or_default();
    let tainted = taints.iter().any(|t| t.key == NOT_READY && t.effect == "NoSchedule");
    if ready && tainted {
        taints.retain(|t| t.key != NOT_READY);
    } else if !ready && !tainted {
        taints.push(Taint { key: NOT_READY.into(), effect: "NoSchedule".into(), ..Taint::default() });
    }
    spec.taints = (!taints.is_empty()).then_some(taints);
    (wanted != *node).then_some(wanted)
}

pub(crate) async fn reconcile(context: &Context, key: &Key) -> Result<(), Error> {
    let Some(node) = context.nodes.get(key) else { return Ok(()) };
    let range = match node.spec.as_ref().and_then(|s| s.pod_cidr.as_ref()) {
        Some(_) => None,
        None => {
            // Read from the store: two nodes must not get the same range because the cache is behind.
            let nodes = context.client.cluster::<Node>().list(&Default::default()).await?.items;
            let taken = nodes.into_iter().filter_map(|n| n.spec?.pod_cidr).collect();
            free_range(&context.cluster_cidr, &taken)
        }
    };
    if let Some(wanted) = plan(&node, range) {
        context.client.cluster::<Node>().replace(&key.1, &wanted).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ranges_are_unique() {
        let taken = BTreeSet::from(["10.244.0.0/24".to_owned(), "10.244.1.0/24".to_owned()]);
        assert_eq!(free_range("10.244.0.0/16", &taken).as_deref(), Some("10.244.2.0/24"));
        assert_eq!(free_range("10.244.0.0/23", &taken), None);
        assert_eq!(free_range("nonsense", &taken), None);
    }

    #[test]
    fn the_taint_follows_the_condition() {
        let node = |ready: &str, tainted: bool| -> Node {
            let taints = if tainted { json!([{"key": NOT_READY, "effect": "NoSchedule"}]) } else { json!([]) };
            serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "x", "taints": taints},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap()
        };
        let tainted = |n: Node| n.spec.and_then(|s| s.taints).is_some();
        assert_eq!(plan(&node("True", true), None).map(tainted), Some(false));
        assert_eq!(plan(&node("False", false), None).map(tainted), Some(true));
        assert_eq!(plan(&node("Unknown", true), None), None);
    }
}
