//! The annotation that tells kubelets how long they may keep Secrets and ConfigMaps: the more nodes, the longer.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use keelson_client::{Key, PatchType};
use serde_json::json;

use crate::context::Context;
use crate::runtime::{Keys, Outcome, watch_own};

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";
/// Least and most nodes of a cluster, and the seconds that are right for it. Sizes overlap, so that a cluster at the edge of
/// two does not change its nodes back and forth.
const STEPS: &[(usize, usize, u32)] =
    &[(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, usize::MAX, 300)];

/// What a node's annotation is to be in a cluster of `nodes`; the present one stays while it fits.
fn wanted(nodes: usize, present: Option<&str>) -> u32 {
    let fits = |&&(least, most, _): &&(usize, usize, u32)| (least..=most).contains(&nodes);
    let present = present.and_then(|text| text.parse().ok());
    let kept = STEPS.iter().filter(fits).find(|(.., seconds)| Some(*seconds) == present);
    kept.or_else(|| STEPS.iter().find(fits)).map_or(0, |(.., seconds)| *seconds)
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.nodes, queue);
}

/// Looks at one node.
pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(node) = context.cache.nodes.get(&key) else { return Ok(None) };
    let present = node.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION)).map(String::as_str);
    let wanted = wanted(context.cache.nodes.count(), present).to_string();
    if node.metadata.deletion_timestamp.is_some() || present == Some(wanted.as_str()) {
        return Ok(None);
    }
    let patch = json!({"metadata": {"uid": node.metadata.uid, "annotations": {ANNOTATION: wanted}}});
    let written = context.client.cluster::<Node>().patch(&key.1, None, PatchType::Merge, &patch).await?;
    context.settle(&context.cache.nodes, &written).await;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_nodes_the_longer() {
        for (nodes, present, seconds) in [
            (1, None, 0),
            (100, None, 0),
            (101, None, 15),
            (101, Some("0"), 15),
            (95, Some("15"), 15),
            (89, Some("15"), 0),
            (501, Some("15"), 30),
            (1900, Some("300"), 300),
            (1900, Some("60"), 60),
            (5000, Some("0"), 300),
            (5000, Some("soon"), 300),
        ] {
            assert_eq!(wanted(nodes, present), seconds, "{nodes} {present:?}");
        }
    }
}
