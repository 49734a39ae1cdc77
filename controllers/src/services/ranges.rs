//! ServiceCIDRs: ready once they are known, and not gone before no Service's address depends on them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::{Change, Key, PatchType};
use serde_json::{Value, json};

use crate::context::Context;
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_own, watch_with};

/// Who applies the status.
const MANAGER: &str = "service-cidr-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// A range that is deleted stays for this long, so that every server knows before its addresses are free.
const DELETION_GRACE: Duration = Duration::from_secs(10);
const READY: &str = "Kubernetes Service CIDR is ready";
const IN_USE: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

/// Whether a range such as `10.0.0.0/24` has an address in it.
fn contains(cidr: &str, address: IpAddr) -> bool {
    let Some((base, bits)) = cidr.split_once('/') else { return false };
    let (Ok(base), Ok(bits)) = (base.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) if bits <= 32 => {
            let differ = u32::from(base) ^ u32::from(address);
            differ.checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(base), IpAddr::V6(address)) if bits <= 128 => {
            let differ = u128::from(base) ^ u128::from(address);
            differ.checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

fn has(range: &ServiceCIDR, address: IpAddr) -> bool {
    range.spec.iter().flat_map(|s| s.cidrs.iter().flatten()).any(|cidr| contains(cidr, address))
}

/// Whether an address depends on `range`, since no other that stays has it.
fn is_needed(range: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]) -> bool {
    let others = || {
        let stays =
            |r: &&Arc<ServiceCIDR>| r.metadata.name != range.metadata.name && r.metadata.deletion_timestamp.is_none();
        all.iter().filter(stays)
    };
    let parsed = addresses.iter().filter_map(|a| a.metadata.name.as_ref()?.parse::<IpAddr>().ok());
    parsed.into_iter().any(|address| has(range, address) && !others().any(|other| has(other, address)))
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.service_cidrs, queue);
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.addresses, queue, move |change: &Change<IPAddress>| {
        let gone = change.old.as_ref().filter(|_| change.new.is_none());
        let address = gone.and_then(|a| a.metadata.name.as_ref()?.parse::<IpAddr>().ok());
        let (Some(address), Some(context)) = (address, weak.upgrade()) else { return Vec::new() };
        let going = |r: &&Arc<ServiceCIDR>| r.metadata.deletion_timestamp.is_some() && has(r, address);
        let all = context.cache.service_cidrs.list_all();
        all.iter().filter(going).map(|r| keelson_client::informer::key(&**r)).collect()
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(range) = context.cache.service_cidrs.get(&key) else { return Ok(None) };
    let finalizers = range.metadata.finalizers.clone().unwrap_or_default();
    let held = finalizers.iter().any(|f| f == FINALIZER);
    let Some(since) = &range.metadata.deletion_timestamp else {
        if !held {
            let finalizers: Vec<String> = finalizers.into_iter().chain([FINALIZER.into()]).collect();
            finalize(&context, &range, &finalizers).await?;
        }
        return say(&context, &range, "True", "", READY).await;
    };
    if !held {
        return Ok(None);
    }
    if is_needed(&range, &context.cache.service_cidrs.list_all(), &context.cache.addresses.list_all()) {
        return say(&context, &range, "False", "Terminating", IN_USE).await;
    }
    let free = since.0.checked_add(DELETION_GRACE).ok();
    let wait = free.and_then(|at| pods::until(at, context.now().0)).filter(|wait| !wait.is_zero());
    if wait.is_some() {
        return Ok(wait);
    }
    let rest: Vec<String> = finalizers.into_iter().filter(|f| f != FINALIZER).collect();
    finalize(&context, &range, &rest).await?;
    Ok(None)
}

async fn finalize(context: &Context, range: &ServiceCIDR, finalizers: &[String]) -> Result<(), keelson_client::Error> {
    let metadata = &range.metadata;
    let patch = json!({"metadata": {
        "uid": metadata.uid, "resourceVersion": metadata.resource_version, "finalizers": finalizers,
    }});
    let name = metadata.name.as_deref().unwrap_or_default();
    context.client.cluster::<ServiceCIDR>().patch(name, None, PatchType::Merge, &patch).await.map(drop)
}

/// The Ready condition; an empty reason is left out.
fn condition(status: &str, reason: &str, message: &str, now: &Time) -> Value {
    let mut condition = json!({"type": "Ready", "status": status, "message": message, "lastTransitionTime": now});
    if !reason.is_empty() {
        condition["reason"] = reason.into();
    }
    condition
}

/// Writes the Ready condition unless it says so already.
async fn say(context: &Context, range: &ServiceCIDR, status: &str, reason: &str, message: &str) -> Outcome {
    let conditions = range.status.iter().flat_map(|s| s.conditions.iter().flatten());
    if conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == status) {
        return Ok(None);
    }
    let condition = condition(status, reason, message, &context.now());
    let name = range.metadata.name.as_deref().unwrap_or_default();
    let fields = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": name, "uid": range.metadata.uid}, "status": {"conditions": [condition]}});
    context.client.cluster::<ServiceCIDR>().apply(name, Some("status"), MANAGER, &fields).await?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_without_a_reason_has_none() {
        let now = Time("2026-01-01T00:00:00Z".parse().unwrap());
        assert!(condition("True", "", READY, &now).get("reason").is_none());
        assert_eq!(condition("False", "Terminating", IN_USE, &now)["reason"], "Terminating");
    }

    #[test]
    fn ranges_and_addresses() {
        for (cidr, address, expected) in [
            ("10.0.0.0/24", "10.0.0.255", true),
            ("10.0.0.0/24", "10.0.1.0", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("10.0.0.1/32", "10.0.0.1", true),
            ("2001:db8::/64", "2001:db8::5", true),
            ("2001:db8::/64", "10.0.0.1", false),
            ("nonsense", "10.0.0.1", false),
            ("10.0.0.0/99", "10.0.0.1", false),
        ] {
            assert_eq!(contains(cidr, address.parse().unwrap()), expected, "{cidr} {address}");
        }
    }

    #[test]
    fn a_range_is_needed_while_an_address_has_no_other() {
        let range = |name: &str, cidr: &str, going: bool| -> Arc<ServiceCIDR> {
            let mut value = json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr]}});
            if going {
                value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let address = |name: &str| -> Arc<IPAddress> {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name}})).unwrap())
        };
        let goes = range("a", "10.0.0.0/24", true);
        let used = [address("10.0.0.5")];
        for (what, others, addresses, expected) in [
            ("nothing uses it", vec![], &[][..], false),
            ("an address is in it", vec![], &used[..], true),
            ("another range has the address", vec![range("b", "10.0.0.0/16", false)], &used[..], false),
            ("the other goes too", vec![range("b", "10.0.0.0/16", true)], &used[..], true),
            ("the other is elsewhere", vec![range("b", "10.1.0.0/16", false)], &used[..], true),
        ] {
            let all: Vec<Arc<ServiceCIDR>> = others.into_iter().chain([goes.clone()]).collect();
            assert_eq!(is_needed(&goes, &all, addresses), expected, "{what}");
        }
    }
}
