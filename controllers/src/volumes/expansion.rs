//! Claims that ask for more than they have: who expands their volume is told by an event.
//!
//! Every volume plugin that could be expanded from here has moved to CSI, whose sidecar does it; what is left is to say so.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use keelson_client::{Change, Key};
use keelson_machinery::quantity::Quantity;

use crate::context::Context;
use crate::runtime::{Keys, Outcome, watch_with};

const COMPONENT: &str = "volume_expand";

/// Whether a bound claim asks for more than its volume has.
fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    let (Some(spec), Some(status)) = (&claim.spec, &claim.status) else { return false };
    let storage = |amounts: Option<&std::collections::BTreeMap<String, _>>| {
        let amount: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> = amounts?.get("storage");
        Quantity::parse(&amount?.0).ok()
    };
    let asked = storage(spec.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let has = storage(status.capacity.as_ref());
    let bound = status.phase.as_deref() == Some("Bound") && spec.volume_name.is_some();
    bound && matches!((asked, has), (Some(asked), Some(has)) if asked > has)
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_with(&context.cache.claims, queue, |change: &Change<PersistentVolumeClaim>| {
        let wants = |claim: &Option<Arc<PersistentVolumeClaim>>| claim.as_ref().is_some_and(|c| wants_more(c));
        let new = change.new.as_ref().filter(|_| wants(&change.new) && !wants(&change.old));
        new.map(|c| keelson_client::informer::key(&**c)).into_iter().collect()
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(claim) = context.cache.claims.get(&key).filter(|c| wants_more(c)) else { return Ok(None) };
    let message = "waiting for an external controller to expand this PVC";
    context.recorder(COMPONENT).normal(&*claim, "ExternalExpanding", message);
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_bound_claims_that_ask_for_more() {
        for (phase, asked, has, expected) in [
            ("Bound", "2Gi", "1Gi", true),
            ("Bound", "1Gi", "1Gi", false),
            ("Bound", "1Gi", "1073741824", false),
            ("Pending", "2Gi", "1Gi", false),
            ("Bound", "nonsense", "1Gi", false),
        ] {
            let claim = serde_json::from_value(json!({
                "spec": {"volumeName": "v", "resources": {"requests": {"storage": asked}}},
                "status": {"phase": phase, "capacity": {"storage": has}},
            }))
            .unwrap();
            assert_eq!(wants_more(&claim), expected, "{phase} {asked} {has}");
        }
    }
}
