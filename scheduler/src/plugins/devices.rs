//! DynamicResources: nodes that have the devices of a pod's claims (KEP-4381).

use std::sync::Arc;

use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClaim};

use super::{Context, Fit, Reasons, Rejection, State as All};
use crate::config::Profile;
use crate::devices::allocate::{Node, Refusal, Wanted, allocate};
use crate::devices::extended::{Ask, claim};
use crate::devices::{Claim, special_key};
use crate::queue::Happening;
use crate::selector::NodeTerm;
use crate::view::{PodInfo, Slot, View};
use crate::volumes::ClaimKey;

/// Users that a claim can have at once (upstream's `ResourceClaimReservedForMaxSize`).
const MAX_USERS: usize = 256;
/// Alternatives that a request can have (upstream's `FirstAvailableDeviceRequestMaxSize`).
const MAX_ALTERNATIVES: usize = 8;
/// What a node says if a claim's devices are elsewhere, or of no use.
const ELSEWHERE: &str = "resourceclaim not available on the node";

/// What is worked out once per pod.
#[derive(Default)]
pub struct State {
    /// Claims that have their devices.
    bound: Vec<Bound>,
    /// Claims that get devices now.
    wanted: Vec<Wanted>,
    /// Extended resources that classes stand behind.
    extended: Extended,
}

/// A claim that has its devices.
struct Bound {
    key: ClaimKey,
    /// Which nodes can use them; `None`: all.
    terms: Option<Vec<NodeTerm>>,
    /// They will never be ready.
    stuck: bool,
}

#[derive(Default)]
enum Extended {
    /// The pod asks for none.
    #[default]
    None,
    /// It gets a claim for them.
    New,
    /// It has a claim of an attempt before, which has to go first.
    Stale(ClaimKey),
}

/// What is written of a claim before its pod is bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Reservation {
    /// The claim.
    pub key: ClaimKey,
    /// Its uid; empty if it is still to be made.
    pub uid: String,
    /// The devices it gets, if it has none yet.
    pub allocation: Option<Arc<AllocationResult>>,
    /// What the claim is that is to be made for the pod's extended resources.
    pub special: Option<Arc<Special>>,
}

/// A claim for extended resources.
#[derive(Clone, Debug, PartialEq)]
pub struct Special {
    /// What it asks for.
    pub spec: DeviceClaim,
    /// Container, resource and request of each.
    pub mappings: Vec<[Arc<str>; 3]>,
}

/// A claim that lets go of its devices, so that its pod can go elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The claim.
    pub key: ClaimKey,
    /// Its uid.
    pub uid: String,
    /// It was made for a pod's extended resources by an attempt before: it goes as a whole.
    pub delete: bool,
}

/// Finds the pod's claims.
pub fn pre_filter(view: &mut View, pod: &PodInfo, profile: &Profile, state: &mut All) -> Result<bool, Rejection> {
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
                    return Err(Rejection::never("resourceclaim in use"));
                }
                let selector = allocation.node_selector.as_ref();
                let terms = selector.map(|s| s.node_selector_terms.iter().map(|t| NodeTerm::new(t, &mut view.syms)));
                let stuck = claim.is_stuck(view.now, profile.device_patience.as_secs() as i64);
                state.devices.bound.push(Bound { key, terms: terms.map(Iterator::collect), stuck });
            }
            None => {
                let wanted = Wanted::new(&view.devices, &key, &claim).map_err(Rejection::never)?;
                state.devices.wanted.push(wanted);
            }
        }
    }
    if pod.class.extended.iter().any(|ask| view.devices.backed.class(ask.resource).is_some()) {
        state.devices.extended = match view.devices.special(&pod.uid) {
            Some(key) => Extended::Stale(key.clone()),
            None => Extended::New,
        };
    }
    Ok(pod.claims.is_some() || !matches!(state.devices.extended, Extended::None))
}

/// What a pod asks for of resources that a node has none of and classes stand behind.
fn lacking<'a>(view: &'a View, pod: &'a PodInfo, slot: Slot) -> impl Iterator<Item = (&'a Ask, &'a Arc<str>)> {
    let node = &view.nodes[slot as usize];
    let asks = pod.class.extended.iter().filter(|ask| node.extra(ask.resource).0 == 0);
    asks.filter_map(|ask| Some((ask, view.devices.backed.class(ask.resource)?)))
}

/// The claim that a pod gets on a node for its extended resources.
fn special(context: &Context<'_>, slot: Slot) -> Option<Arc<DeviceClaim>> {
    let made = claim(lacking(context.view, context.pod, slot));
    let new = matches!(context.state.devices.extended, Extended::New);
    (new && made.requests.as_ref().is_some_and(|requests| !requests.is_empty())).then(|| Arc::new(made))
}

/// The node must have what the claims have or want.
pub fn filter(context: &Context<'_>, slot: Slot, why: Option<&mut Reasons>) -> Fit {
    let (view, state) = (context.view, &context.state.devices);
    let reason = if matches!(state.extended, Extended::Stale(_)) {
        "cannot schedule extended resource claim".into()
    } else if state.bound.iter().any(|bound| bound.stuck || !is_near(view, slot, bound)) {
        ELSEWHERE.into()
    } else {
        match chosen(context, slot) {
            Ok(_) => return Fit::Yes,
            Err(Refusal::Lacking) => "cannot allocate all claims".into(),
            Err(Refusal::Failed(why)) => why.into(),
        }
    };
    if let Some(reasons) = why {
        reasons.push(reason);
    }
    // Devices are not among what pods that are pushed out leave behind.
    Fit::Never
}

fn is_near(view: &View, slot: Slot, bound: &Bound) -> bool {
    bound.terms.as_deref().is_none_or(|terms| satisfies(view, slot, terms))
}

/// A claim that keeps the pod from nodes, so that it would help if it let go of its devices; `refusing` are nodes that this
/// plugin refused.
pub fn release(context: &Context<'_>, refusing: &[Slot]) -> Option<Release> {
    let (view, state) = (context.view, &context.state.devices);
    let of = |key: &ClaimKey, delete: bool| {
        let claim = view.devices.claims.get(key)?;
        let others = claim.reserved.iter().any(|uid| **uid != *context.pod.uid);
        let idle = delete || (claim.allocation.is_some() && !others);
        idle.then(|| Release { key: key.clone(), uid: claim.uid.clone(), delete })
    };
    let blocks = |bound: &&Bound| refusing.iter().any(|slot| bound.stuck || !is_near(view, *slot, bound));
    let idle = state.bound.iter().filter(blocks).find_map(|bound| of(&bound.key, false));
    idle.or_else(|| match &state.extended {
        Extended::Stale(key) => of(key, true),
        _ => None,
    })
}

/// Whether a node satisfies one of the terms.
pub fn satisfies(view: &View, slot: Slot, terms: &[NodeTerm]) -> bool {
    let node = &view.nodes[slot as usize];
    terms.iter().any(|term| term.matches(&node.name, &node.labels, &view.syms))
}

/// What the claims that have nothing yet get on a node: those of the user in their order, then that for extended resources.
fn chosen(context: &Context<'_>, slot: Slot) -> Result<Vec<AllocationResult>, Refusal> {
    let (view, pod) = (context.view, context.pod);
    let special = match special(context, slot) {
        Some(spec) => {
            let claim = Claim { spec, ..Claim::default() };
            let key = special_key(&pod.class.namespace, &pod.uid);
            Some(Wanted::new(&view.devices, &key, &claim).map_err(Refusal::Failed)?)
        }
        None => None,
    };
    let wanted: Vec<&Wanted> = context.state.devices.wanted.iter().chain(&special).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let satisfies = |terms: &[NodeTerm]| satisfies(view, slot, terms);
    let node = Node { name: &view.nodes[slot as usize].name, satisfies: &satisfies };
    allocate(&view.devices, &wanted, &node)
}

/// What the pod's claims get on a node, and that they are used by it.
pub fn reservations(context: &Context<'_>, slot: Slot) -> Vec<Reservation> {
    let (view, pod, state) = (context.view, context.pod, &context.state.devices);
    let uid = |key: &ClaimKey| view.devices.claims.get(key).map(|claim| claim.uid.clone()).unwrap_or_default();
    let bound = state.bound.iter().map(|bound| Reservation {
        key: bound.key.clone(),
        uid: uid(&bound.key),
        // It may have been promised to another pod a moment ago: whoever writes first writes it.
        allocation: view.devices.allocation(&bound.key).cloned(),
        special: None,
    });
    let mut reservations: Vec<Reservation> = bound.collect();
    let mut given = chosen(context, slot).unwrap_or_default().into_iter().map(Arc::new);
    for (wanted, allocation) in state.wanted.iter().zip(given.by_ref()) {
        let key = wanted.key.clone();
        reservations.push(Reservation { uid: uid(&key), key, allocation: Some(allocation), special: None });
    }
    if let (Some(spec), Some(allocation)) = (special(context, slot), given.next()) {
        let mapping =
            |(ask, _): (&Ask, _)| [ask.container.clone(), view.syms.text(ask.resource).clone(), ask.request.clone()];
        let mappings = lacking(view, pod, slot).map(mapping).collect();
        reservations.push(Reservation {
            key: special_key(&pod.class.namespace, &pod.uid),
            uid: String::new(),
            allocation: Some(allocation),
            special: Some(Arc::new(Special { spec: DeviceClaim::clone(&spec), mappings })),
        });
    }
    reservations
}

/// Whether nodes differ in which alternatives they have.
pub fn pre_score(_: &mut View, _: &PodInfo, _: &Profile, state: &mut All, _: &[Slot]) -> bool {
    state.devices.wanted.iter().any(Wanted::has_alternatives)
}

/// The earlier the alternatives that a node has, the better.
pub fn score(context: &Context<'_>, nodes: &[Slot], scores: &mut [i64]) {
    let wanted = &context.state.devices.wanted;
    for (score, slot) in scores.iter_mut().zip(nodes) {
        let given = chosen(context, *slot).unwrap_or_default();
        let ranks = wanted.iter().zip(&given).flat_map(|(wanted, allocation)| wanted.ranks(allocation));
        *score = ranks.map(|rank| MAX_ALTERNATIVES.saturating_sub(rank) as i64).sum();
    }
    super::normalize(scores, false);
}

/// Claims, classes, slices or nodes changed.
pub fn hint(_: &View, _: &PodInfo, what: &Happening) -> bool {
    match what {
        Happening::Devices => true,
        Happening::Node { change, .. } => change.added || change.labels || change.allocatable,
        _ => false,
    }
}
