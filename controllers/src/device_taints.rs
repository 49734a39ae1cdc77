//! Eviction by taints of devices: a pod whose claim has a device with a NoExecute taint that it does not tolerate is
//! deleted, one that tolerates it for a while when that is over.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{
    DeviceRequestAllocationResult, DeviceTaint, DeviceToleration, ResourceClaim, ResourceSlice,
};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use keelson_client::informer::key;
use keelson_client::{Change, Key};

use crate::context::Context;
use crate::kept::Pod;
use crate::node::eviction::{self, Reason};
use crate::pods;
use crate::resource_claims::{is_made_for, names_of, reserves};
use crate::runtime::{Keys, Outcome, watch_with};

const COMPONENT: &str = "device-taint-eviction";
const EVICTS: &str = "NoExecute";
/// Index of slices by the pool that they are of.
pub const BY_POOL: &str = "pool";

/// For the index [`BY_POOL`].
pub fn pool_index(slice: &ResourceSlice) -> Vec<String> {
    vec![pool(&slice.spec.driver, &slice.spec.pool.name)]
}

fn pool(driver: &str, name: &str) -> String {
    format!("{driver}/{name}")
}

/// Taints that evict, by the devices of the newest generation of a pool.
fn taints(slices: &[Arc<ResourceSlice>]) -> HashMap<&str, Vec<&DeviceTaint>> {
    let newest = slices.iter().map(|s| s.spec.pool.generation).max();
    let current = slices.iter().filter(|s| Some(s.spec.pool.generation) == newest);
    let devices = current.flat_map(|s| s.spec.devices.iter().flatten());
    let mut all: HashMap<&str, Vec<&DeviceTaint>> = HashMap::new();
    for device in devices {
        let evicting = device.taints.iter().flatten().filter(|t| t.effect == EVICTS);
        all.entry(&device.name).or_default().extend(evicting);
    }
    all.retain(|_, taints| !taints.is_empty());
    all
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let given = |value: &Option<String>| value.clone().filter(|text| !text.is_empty());
    let exists = toleration.operator.as_deref() == Some("Exists");
    given(&toleration.effect).is_none_or(|effect| effect == taint.effect)
        && given(&toleration.key).map_or(exists, |key| key == taint.key)
        && (exists || given(&toleration.value) == given(&taint.value))
}

/// When a taint ends the use of an allocated device; `None`: it is tolerated for ever.
fn ends_at(taint: &DeviceTaint, device: &DeviceRequestAllocationResult) -> Option<Timestamp> {
    let since = taint.time_added.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    let matching: Vec<&DeviceToleration> =
        device.tolerations.iter().flatten().filter(|t| tolerates(t, taint)).collect();
    if matching.iter().any(|t| t.toleration_seconds.is_none()) {
        return None;
    }
    // Of several the shortest counts.
    let seconds = matching.iter().filter_map(|t| t.toleration_seconds).min().unwrap_or(0);
    Some(since.checked_add(SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX))
}

/// When the pods of a claim are evicted, if one of its devices has to be left.
fn claim_ends_at(claim: &ResourceClaim, pools: impl Fn(&str) -> Vec<Arc<ResourceSlice>>) -> Option<Timestamp> {
    let allocation = claim.status.as_ref()?.allocation.as_ref()?;
    let results = allocation.devices.as_ref()?.results.iter().flatten();
    let ends = results.filter_map(|device| {
        let slices = pools(&pool(&device.driver, &device.pool));
        let tainted = taints(&slices);
        tainted.get(device.device.as_str())?.iter().filter_map(|taint| ends_at(taint, device)).min()
    });
    ends.min()
}

/// When a pod is evicted. Only claims that are reserved for it count.
fn pod_ends_at(context: &Context, pod: &Pod) -> Option<Timestamp> {
    pod.spec.as_ref()?.node_name.as_ref().filter(|n| !n.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let claims = names_of(pod).into_iter().filter_map(|(name, made)| {
        let claim = context.cache.resource_claims.named(namespace, &name)?;
        (reserves(&claim, pod) && (!made || is_made_for(&claim, pod))).then_some(claim)
    });
    let pools = |name: &str| context.cache.resource_slices.by(BY_POOL, name);
    claims.filter_map(|claim| claim_ends_at(&claim, pools)).min()
}

/// The pods that a claim is reserved for.
fn users(claim: &ResourceClaim) -> impl Iterator<Item = Key> + '_ {
    let reserved = claim.status.iter().flat_map(|s| s.reserved_for.iter().flatten());
    let pods = reserved.filter(|r| r.resource == "pods" && r.api_group.as_deref().unwrap_or_default().is_empty());
    pods.map(|r| (claim.metadata.namespace.clone().unwrap_or_default(), r.name.clone()))
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_with(&context.cache.pods, queue, |change: &Change<Pod>| {
        let judged = |pod: &Option<Arc<Pod>>| {
            pod.as_ref().map(|p| (p.spec.as_ref().and_then(|s| s.node_name.clone()), names_of(p)))
        };
        let Some(new) = change.new.as_ref().filter(|p| !names_of(p).is_empty()) else { return Vec::new() };
        if judged(&change.old) == judged(&change.new) { Vec::new() } else { vec![key(&**new)] }
    });
    watch_with(&context.cache.resource_claims, queue, |change: &Change<ResourceClaim>| {
        change.new.iter().flat_map(|claim| users(claim)).collect()
    });
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.resource_slices, queue, move |change: &Change<ResourceSlice>| {
        let tainted = |slice: &Option<Arc<ResourceSlice>>| {
            let slice = slice.as_ref()?;
            let devices = slice.spec.devices.iter().flatten();
            let taints: Vec<_> = devices.filter_map(|d| Some((d.name.clone(), d.taints.clone()?))).collect();
            Some((slice.spec.pool.clone(), taints)).filter(|(_, taints)| !taints.is_empty())
        };
        let (Some(slice), Some(context)) = (change.object(), weak.upgrade()) else { return Vec::new() };
        if tainted(&change.old) == tainted(&change.new) {
            return Vec::new();
        }
        let of_pool = |claim: &Arc<ResourceClaim>| {
            let devices = claim.status.iter().filter_map(|s| s.allocation.as_ref()?.devices.as_ref()?.results.as_ref());
            let mut devices = devices.flatten();
            devices.any(|d| d.driver == slice.spec.driver && d.pool == slice.spec.pool.name)
        };
        let claims = context.cache.resource_claims.list_all();
        claims.iter().filter(|c| of_pool(c)).flat_map(|c| users(c)).collect()
    });
}

/// Looks at one pod.
pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(pod) = context.cache.pods.get(&key) else {
        eviction::forget(&context, COMPONENT, key);
        return Ok(None);
    };
    if pods::is_going(&pod) || pods::is_finished(&pod) {
        return Ok(None);
    }
    const WHY: Reason = Reason {
        component: COMPONENT,
        event: "DeviceTaintManagerEviction",
        named: false,
        condition: ("DeletionByDeviceTaintManager", "Device Taint manager: deleting due to NoExecute taint"),
    };
    eviction::evict_at(&context, &pod, pod_ends_at(&context, &pod), &WHY).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn slice(name: &str, generation: i64, taints: Value) -> Arc<ResourceSlice> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"driver": "d", "nodeName": "n",
                "pool": {"name": "p", "generation": generation, "resourceSliceCount": 1},
                "devices": [{"name": "dev", "taints": taints}]}}))
            .unwrap(),
        )
    }

    fn claim(device: &str, tolerations: Value) -> ResourceClaim {
        serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {"devices": {}}, "status": {"allocation":
            {"devices": {"results": [{"request": "r", "driver": "d", "pool": "p", "device": device,
                "tolerations": tolerations}]}}}}))
        .unwrap()
    }

    #[test]
    fn tolerations_of_the_allocation_decide_when() {
        let evicting = json!([{"key": "k", "value": "v", "effect": EVICTS, "timeAdded": "2026-01-01T00:00:00Z"}]);
        let softer = json!([{"key": "k", "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z"}]);
        let seconds = |n: i64| json!({"key": "k", "operator": "Exists", "effect": EVICTS, "tolerationSeconds": n});
        let now = "2026-01-01T00:00:00Z";
        for (what, device, taints, tolerations, expected) in [
            ("no taint", "dev", json!([]), json!([]), None),
            ("it only keeps others away", "dev", softer, json!([]), None),
            ("not tolerated", "dev", evicting.clone(), json!([]), Some(now)),
            ("another device", "other", evicting.clone(), json!([]), None),
            ("for ever", "dev", evicting.clone(), json!([{"operator": "Exists"}]), None),
            ("by its value", "dev", evicting.clone(), json!([{"key": "k", "operator": "Equal", "value": "v"}]), None),
            ("another value", "dev", evicting.clone(), json!([{"key": "k", "value": "w"}]), Some(now)),
            (
                "another effect",
                "dev",
                evicting.clone(),
                json!([{"operator": "Exists", "effect": "NoSchedule"}]),
                Some(now),
            ),
            ("for a while", "dev", evicting.clone(), json!([seconds(60)]), Some("2026-01-01T00:01:00Z")),
            ("the shortest", "dev", evicting.clone(), json!([seconds(60), seconds(5)]), Some("2026-01-01T00:00:05Z")),
            ("below nothing", "dev", evicting, json!([seconds(-5)]), Some(now)),
        ] {
            let slices = [slice("s", 1, taints)];
            let at =
                claim_ends_at(
                    &claim(device, tolerations),
                    |name| {
                        if name == "d/p" { slices.to_vec() } else { Vec::new() }
                    },
                );
            assert_eq!(at, expected.map(|at| at.parse().unwrap()), "{what}");
        }
    }

    #[test]
    fn only_the_newest_generation_of_a_pool_counts() {
        let evicting = json!([{"key": "k", "effect": EVICTS, "timeAdded": "2026-01-01T00:00:00Z"}]);
        let at = |slices: Vec<Arc<ResourceSlice>>| claim_ends_at(&claim("dev", json!([])), |_| slices.clone());
        assert!(at(vec![slice("old", 1, json!([])), slice("new", 2, evicting.clone())]).is_some());
        assert_eq!(at(vec![slice("old", 1, evicting), slice("new", 2, json!([]))]), None);
        assert_eq!(claim_ends_at(&ResourceClaim::default(), |_| Vec::new()), None);
    }
}
