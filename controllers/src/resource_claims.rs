//! ResourceClaims of pods: made from their templates, named in the pod's status, reserved no longer than the pod lives.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PodResourceClaim, PodResourceClaimStatus};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use keelson_client::informer::key;
use keelson_client::{Change, Error, Key};
use serde_json::json;

use crate::context::Context;
use crate::kept::Pod;
use crate::owners::{controller_of, controller_reference, is_controlled_by};
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_own, watch_with};

const COMPONENT: &str = "resource_claim";
/// Who applies the names of claims to the statuses of pods.
const MANAGER: &str = "ResourceClaimController";
/// Longest base of a claim's generated name, in bytes.
const LONGEST_BASE: usize = 57;
/// Annotation of a claim: its name in the pod.
const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// Finalizer of an allocated claim.
const ALLOCATED: &str = "resource.kubernetes.io/delete-protection";

fn claims(pod: &Pod) -> &[PodResourceClaim] {
    pod.spec.as_ref().and_then(|s| s.resource_claims.as_deref()).unwrap_or_default()
}

/// The names of the claims that a pod uses as far as they are known, and whether each was made for it.
pub fn names_of(pod: &Pod) -> Vec<(String, bool)> {
    let status = pod.status.as_ref();
    let made = |name: &str| {
        let mut known = status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
        known.find(|s| s.name == name)?.resource_claim_name.clone()
    };
    let own = claims(pod).iter().filter_map(|claim| match &claim.resource_claim_name {
        Some(name) => Some((name.clone(), false)),
        None => Some((made(&claim.name)?, true)),
    });
    let extended = status.and_then(|s| s.extended_resource_claim_status.as_ref());
    own.chain(extended.map(|e| (e.resource_claim_name.clone(), true))).collect()
}

/// Whether a claim was made for a pod, and not for an earlier one of its name.
pub fn is_made_for(claim: &ResourceClaim, pod: &Pod) -> bool {
    is_controlled_by(&claim.metadata, pod.metadata.uid.as_deref())
}

/// Whether a pod may use a claim.
pub fn reserves(claim: &ResourceClaim, pod: &Pod) -> bool {
    let reserved = claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten());
    reserved.into_iter().any(|r| Some(&r.uid) == pod.metadata.uid.as_ref())
}

/// What the name of a pod's claim begins with: both names are cut in proportion if they are long.
fn prefix(pod: &str, claim: &str) -> String {
    let length = pod.len() + 1 + claim.len();
    let cut = |name: &str| match length > LONGEST_BASE {
        true => name.get(..name.len() * LONGEST_BASE / length).unwrap_or(name).to_owned(),
        false => name.to_owned(),
    };
    format!("{}-{}-", cut(pod), cut(claim))
}

/// The claim for one of a pod's.
fn claim(pod: &Pod, name: &str, template: &ResourceClaimTemplate) -> ResourceClaim {
    let given = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = given.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM.into(), name.into());
    // The pod may go before the claim: nothing blocks it.
    let owner = OwnerReference { block_owner_deletion: None, ..controller_reference(pod) };
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(prefix(pod.metadata.name.as_deref().unwrap_or_default(), name)),
            namespace: pod.metadata.namespace.clone(),
            labels: given.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_with(&context.cache.pods, queue, |change: &Change<Pod>| {
        let new = change.new.as_ref().filter(|p| !claims(p).is_empty());
        new.map(|p| key(&**p)).into_iter().collect()
    });
}

/// Makes the claims of one pod.
pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(pod) = context.cache.pods.get(&key) else { return Ok(None) };
    if pods::is_going(&pod) || pods::is_finished(&pod) {
        return Ok(None);
    }
    let before = pod.status.as_ref().and_then(|s| s.resource_claim_statuses.clone()).unwrap_or_default();
    let mut after = before.clone();
    for wanted in claims(&pod) {
        let Some(template) = &wanted.resource_claim_template_name else { continue };
        if after.iter().any(|s| s.name == wanted.name) {
            continue;
        }
        let made = make(&context, &pod, &wanted.name, template).await?;
        after.push(PodResourceClaimStatus { name: wanted.name.clone(), resource_claim_name: made.metadata.name });
    }
    if after != before {
        let fields = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": key.0, "name": key.1, "uid": pod.metadata.uid},
            "status": {"resourceClaimStatuses": after}});
        let api = context.client.namespaced::<Pod>(&key.0);
        let written = api.apply(&key.1, Some("status"), MANAGER, &fields).await?;
        context.settle(&context.cache.pods, &written).await;
    }
    Ok(None)
}

async fn make(context: &Context, pod: &Pod, name: &str, template: &str) -> Result<ResourceClaim, Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let there = context.cache.resource_claims.owned_by(pod.metadata.uid.as_deref().unwrap_or_default());
    let ours = |c: &&Arc<ResourceClaim>| {
        c.metadata.annotations.as_ref().and_then(|a| a.get(POD_CLAIM)).is_some_and(|n| n == name)
    };
    if let Some(found) = there.iter().find(ours) {
        return Ok((**found).clone());
    }
    let result = match context.client.namespaced::<ResourceClaimTemplate>(namespace).get(template).await {
        Ok(template) => {
            context.client.namespaced::<ResourceClaim>(namespace).create(&claim(pod, name, &template)).await
        }
        Err(error) if error.is_not_found() => {
            let why = format!(
                "resource claim template {template:?}: resourceclaimtemplate.resource.k8s.io {template:?} not found"
            );
            let message = format!("PodResourceClaim {name}: {why}");
            context.recorder(COMPONENT).warning(pod, "FailedResourceClaimCreation", message);
            return Err(error);
        }
        Err(error) => Err(error),
    };
    match result {
        Ok(written) => {
            context.settle(&context.cache.resource_claims, &written).await;
            Ok(written)
        }
        Err(error) => {
            let message = format!("PodResourceClaim {name}: {error}");
            context.recorder(COMPONENT).warning(pod, "FailedResourceClaimCreation", message);
            Err(error)
        }
    }
}

pub(crate) fn watch_claims(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.resource_claims, queue);
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.pods, queue, move |change: &Change<Pod>| {
        let ended = change.new.as_ref().is_none_or(|p| pods::is_finished(p));
        let (Some(pod), Some(context)) = (change.object().filter(|_| ended), weak.upgrade()) else { return Vec::new() };
        // Also the claim that the scheduler made for extended resources.
        if claims(pod).is_empty() && names_of(pod).is_empty() {
            return Vec::new();
        }
        let all = context.cache.resource_claims.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
        all.iter().filter(|c| reserves(c, pod) || is_made_for(c, pod)).map(|c| key(&**c)).collect()
    });
}

/// Ends reservations of pods that ended, then the allocation if nobody has one; a claim that was made for a pod which has
/// ended goes.
pub(crate) async fn release(context: Arc<Context>, key: Key) -> Outcome {
    let Some(claim) = context.cache.resource_claims.get(&key) else { return Ok(None) };
    let lives = |uid: &str, name: &str| {
        let pod = context.cache.pods.named(&key.0, name);
        pod.is_some_and(|p| p.metadata.uid.as_deref() == Some(uid) && !pods::is_finished(&p))
    };
    let api = context.client.namespaced::<ResourceClaim>(&key.0);
    let mut current = (*claim).clone();
    let before = current.status.clone().unwrap_or_default();
    let mut after = before.clone();
    if let Some(list) = &mut after.reserved_for {
        list.retain(|r| r.resource != "pods" || lives(&r.uid, &r.name));
    }
    after.reserved_for = after.reserved_for.filter(|r| !r.is_empty());
    let owner = controller_of(&claim.metadata).filter(|o| o.kind == "Pod");
    let ended = owner.is_some_and(|o| {
        let pod = context.cache.pods.named(&key.0, &o.name);
        pod.is_some_and(|p| p.metadata.uid.as_ref() == Some(&o.uid) && pods::is_finished(&p))
    });
    let idle = after.reserved_for.is_none() && before.reserved_for.is_some();
    if after.reserved_for.is_none() && (idle || claim.metadata.deletion_timestamp.is_some()) {
        after.allocation = None;
    }
    if after != before {
        current.status = Some(after.clone());
        current = api.replace_status(&key.1, &current).await?;
        context.settle(&context.cache.resource_claims, &current).await;
    }
    let held = current.metadata.finalizers.iter().flatten().any(|f| f == ALLOCATED);
    // A scheduler that gives the claim devices sets the finalizer first: it is not to lose it again in between.
    let over = before.allocation.is_some() || claim.metadata.deletion_timestamp.is_some();
    if held && after.allocation.is_none() && over {
        current.metadata.finalizers.get_or_insert_default().retain(|f| f != ALLOCATED);
        current = api.replace(&key.1, &current).await?;
        context.settle(&context.cache.resource_claims, &current).await;
    }
    if ended && current.metadata.deletion_timestamp.is_none() {
        match api.delete(&key.1, &json!({"preconditions": {"uid": current.metadata.uid}})).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_says_what_it_is_in_the_pod() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}})).unwrap();
        let template: ResourceClaimTemplate =
            serde_json::from_value(json!({"spec": {"metadata": {"labels": {"a": "b"}}, "spec": {}}})).unwrap();
        let made = claim(&pod, "dev", &template);
        assert_eq!(made.metadata.generate_name.as_deref(), Some("p-dev-"));
        assert!(is_made_for(&made, &pod) && !reserves(&made, &pod));
        let owner = controller_of(&made.metadata).unwrap();
        assert_eq!((owner.kind.as_str(), owner.block_owner_deletion), ("Pod", None));
        for (pod, claim, expected) in [(3, 4, 9), (50, 6, 58), (60, 60, 58), (63, 1, 57)] {
            let prefix = prefix(&"p".repeat(pod), &"c".repeat(claim));
            assert_eq!(prefix.len(), expected, "{pod} {claim}");
        }
        assert_eq!(made.metadata.annotations.unwrap()[POD_CLAIM], "dev");
    }

    #[test]
    fn a_pod_uses_the_claims_that_it_names_and_those_made_for_it() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"},
            "spec": {"containers": [], "resourceClaims": [{"name": "a", "resourceClaimName": "shared"},
                {"name": "b", "resourceClaimTemplateName": "t"}, {"name": "c", "resourceClaimTemplateName": "t"}]},
            "status": {"resourceClaimStatuses": [{"name": "b", "resourceClaimName": "p-b-x"}, {"name": "c"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "p-extended", "requestMappings": []}}}))
        .unwrap();
        let expected = [("shared", false), ("p-b-x", true), ("p-extended", true)];
        assert_eq!(names_of(&pod), expected.map(|(name, made)| (name.to_owned(), made)));
        assert!(names_of(&Pod::default()).is_empty());
    }
}
