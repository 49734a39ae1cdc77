//! DynamicResources: nodes that have the devices of a pod's claims (KEP-4381).

use std::sync::Arc;

use k8s_openapi::api::resource::v1::AllocationResult;

use super::{Context, Fit, Reasons, Rejection, State as All};
use crate::config::Profile;
use crate::devices::allocate::{Node, Refusal, Wanted, allocate};
use crate::queue::Happening;
use crate::selector::NodeTerm;
use crate::view::{PodInfo, Slot, View};
use crate::volumes::ClaimKey;

/// Users that a claim can have at once (upstream's `ResourceClaimReservedForMaxSize`).
const MAX_USERS: usize = 256;

/// What is worked out once per pod.
#[derive(Default)]
pub struct State {
    /// Claims that have their devices: which nodes can use them.
    bound: Vec<(ClaimKey, Option<Vec<NodeTerm>>)>,
    /// Claims that get devices now.
    wanted: Vec<Wanted>,
}

/// What is written of a claim before its pod is bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Reservation {
    /// The claim.
    pub key: ClaimKey,
    /// Its uid.
    pub uid: String,
    /// The devices it gets, if it has none yet.
    pub allocation: Option<Arc<AllocationResult>>,
}

/// Finds the pod's claims.
pub fn pre_filter(view: &mut View, pod: &PodInfo, _: &Profile, state: &mut All) -> Result<bool, Rejection> {
    state.devices = State::default();
    let namespace = &pod.class.namespace;
    if pod.awaits_claims {
        return Err(Rejection::never(format!("pod \"{}\": ResourceClaim not created yet", pod.full_name())));
    }
    for (name, own) in pod.claims.iter().flat_map(|claims| claims.iter()) {
        let key = (namespace.clone(), name.clone());
        let claim = view.devices.claims.get(&key).cloned();
        let claim =
            claim.ok_or_else(|| Rejection::never(format!("resourceclaim.resource.k8s.io {name:?} not found")))?;
        if claim.deleting {
            return Err(Rejection::never(format!("resourceclaim {name:?} is being deleted")));
        }
        if *own && claim.owner.as_deref() != Some(&*pod.uid) {
            let why = format!(
                "ResourceClaim {namespace}/{name} was not created for Pod {} (Pod is not owner)",
                pod.full_name()
            );
            return Err(Rejection::never(why));
        }
        match view.devices.allocation(&key).cloned() {
            Some(allocation) => {
                let reserved = claim.reserved.iter().any(|uid| **uid == *pod.uid);
                if !reserved && claim.reserved.len() >= MAX_USERS {
                    return Err(Rejection { reason: "resourceclaim in use".into(), never: false });
                }
                let selector = allocation.node_selector.as_ref();
                let terms = selector.map(|s| s.node_selector_terms.iter().map(|t| NodeTerm::new(t, &mut view.syms)));
                state.devices.bound.push((key, terms.map(Iterator::collect)));
            }
            None => {
                let wanted = Wanted::new(&view.devices, &key, &claim).map_err(Rejection::never)?;
                state.devices.wanted.push(wanted);
            }
        }
    }
    Ok(pod.claims.is_some())
}

/// The node must have what the claims have or want.
pub fn filter(context: &Context<'_>, slot: Slot, why: Option<&mut Reasons>) -> Fit {
    let (view, state) = (context.view, &context.state.devices);
    let there = |terms: &[NodeTerm]| satisfies(view, slot, terms);
    let (fit, reason) = if !state.bound.iter().all(|(_, terms)| terms.as_deref().is_none_or(there)) {
        (Fit::No, "resourceclaim not available on the node".into())
    } else {
        match chosen(context, slot) {
            Ok(_) => return Fit::Yes,
            Err(Refusal::Lacking) => (Fit::No, "cannot allocate all claims".into()),
            Err(Refusal::Failed(why)) => (Fit::Never, why.into()),
        }
    };
    if let Some(reasons) = why {
        reasons.push(reason);
    }
    fit
}

fn satisfies(view: &View, slot: Slot, terms: &[NodeTerm]) -> bool {
    let node = &view.nodes[slot as usize];
    terms.iter().any(|term| term.matches(&node.name, &node.labels, &view.syms))
}

fn chosen(context: &Context<'_>, slot: Slot) -> Result<Vec<AllocationResult>, Refusal> {
    let (view, wanted) = (context.view, &context.state.devices.wanted);
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let satisfies = |terms: &[NodeTerm]| satisfies(view, slot, terms);
    let node = Node { name: &view.nodes[slot as usize].name, satisfies: &satisfies };
    allocate(&view.devices, wanted, &node)
}

/// What the pod's claims get on a node, and that they are used by it.
pub fn reservations(context: &Context<'_>, slot: Slot) -> Vec<Reservation> {
    let (view, state) = (context.view, &context.state.devices);
    let uid = |key: &ClaimKey| view.devices.claims.get(key).map(|claim| claim.uid.clone()).unwrap_or_default();
    let bound = state.bound.iter().map(|(key, _)| Reservation {
        key: key.clone(),
        uid: uid(key),
        // It may have been promised to another pod a moment ago: whoever writes first writes it.
        allocation: view.devices.allocation(key).cloned(),
    });
    let new = chosen(context, slot).unwrap_or_default().into_iter().map(Arc::new);
    let new = state.wanted.iter().zip(new).map(|(wanted, allocation)| Reservation {
        uid: uid(&wanted.key),
        key: wanted.key.clone(),
        allocation: Some(allocation),
    });
    bound.chain(new).collect()
}

/// Claims, classes, slices or nodes changed.
pub fn hint(_: &View, _: &PodInfo, what: &Happening) -> bool {
    match what {
        Happening::Devices => true,
        Happening::Node { change, .. } => change.added || change.labels,
        _ => false,
    }
}
