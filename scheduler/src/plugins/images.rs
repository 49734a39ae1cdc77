//! ImageLocality: nodes that have the pod's images already.

use super::{Context, MAX_SCORE, State};
use crate::config::Profile;
use crate::view::{PodInfo, Slot, View};

/// Images below this size do not matter, bytes.
const MIN_BYTES: i64 = 23 << 20;
/// Images beyond this size per container count no more, bytes.
const MAX_CONTAINER_BYTES: i64 = 1000 << 20;

/// It matters only if some node has an image of the pod.
pub fn pre_score(view: &mut View, pod: &PodInfo, _: &Profile, _: &mut State, _: &[Slot]) -> bool {
    pod.class.images.iter().any(|i| view.image_nodes.contains_key(i))
}

/// Sizes of the images that are there, each by the part of all nodes that have it: so that not all pods go to one node.
pub fn score(context: &Context<'_>, nodes: &[Slot], scores: &mut [i64]) {
    let class = &context.pod.class;
    let all = context.view.node_count() as f64;
    let most = MAX_CONTAINER_BYTES * i64::from(class.containers);
    for (score, slot) in scores.iter_mut().zip(nodes) {
        let present = &context.view.nodes[*slot as usize].images;
        let sum: i64 = class
            .images
            .iter()
            .filter_map(|image| {
                let at = present.binary_search_by_key(image, |(name, _)| *name).ok()?;
                let nodes = context.view.image_nodes.get(image).copied().unwrap_or(0);
                Some((present[at].1 as f64 * (f64::from(nodes) / all)) as i64)
            })
            .sum();
        *score = MAX_SCORE * (sum.clamp(MIN_BYTES, most) - MIN_BYTES) / (most - MIN_BYTES);
    }
}
