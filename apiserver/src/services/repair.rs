//! Gives back addresses whose Service was never written: a server that ends between the two writes leaves one behind.

use jiff::{SignedDuration, Timestamp};
use keelson_machinery::resources;
use keelson_store::{Compare, KeyValue, Kv, KvError, Txn};
use serde_json::Value;

use super::allocator::{MANAGED_BY, MANAGER, delete};
use crate::objects::{self, Objects};

/// How long an address may be without its Service, which may be on its way (upstream: 60 s).
const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// Deletes the addresses that no Service has. Returns how many.
pub async fn sweep(kv: &dyn Kv, now: Timestamp) -> Result<usize, KvError> {
    let Some(def) = resources::find("networking.k8s.io", "v1", "ipaddresses") else { return Ok(0) };
    let view = kv.view();
    let lost: Vec<(KeyValue, String)> = view
        .range(&Objects::range(def, ""))
        .filter_map(|kv| {
            let service = service_key(&objects::parse(kv).ok()?, now)?;
            view.get(service.as_bytes()).is_none().then(|| ((**kv).clone(), service))
        })
        .collect();
    let mut count = 0;
    for (address, service) in lost {
        let compare = vec![
            Compare::mod_revision(address.key.clone(), address.mod_revision),
            Compare::create_revision(service, 0),
        ];
        let key = String::from_utf8_lossy(&address.key).into_owned();
        let response = kv.txn(Txn { compare, success: vec![delete(key)], failure: vec![] }).await?;
        count += usize::from(response.succeeded);
    }
    Ok(count)
}

/// The key of the Service that an address was given to, if it is old enough for that to be there.
fn service_key(address: &Value, now: Timestamp) -> Option<String> {
    let (metadata, parent) = (&address["metadata"], &address["spec"]["parentRef"]);
    let of_service = parent["resource"] == "services" && parent["group"].as_str().unwrap_or_default().is_empty();
    if metadata["labels"][MANAGED_BY] != MANAGER || !of_service {
        return None;
    }
    let created: Timestamp = metadata["creationTimestamp"].as_str()?.parse().ok()?;
    if now.duration_since(created) < GRACE {
        return None;
    }
    let services = resources::find("", "v1", "services")?;
    Some(services.key(parent["namespace"].as_str()?, parent["name"].as_str()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_old_addresses_of_services_are_looked_at() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let address = |by: &str, resource: &str, created: &str| {
            json!({"metadata": {"labels": {MANAGED_BY: by}, "creationTimestamp": created},
                "spec": {"parentRef": {"resource": resource, "namespace": "n", "name": "s"}}})
        };
        let (old, new) = ("2026-01-01T00:09:00Z", "2026-01-01T00:09:30Z");
        let key = resources::find("", "v1", "services").unwrap().key("n", "s");
        for (address, expected) in [
            (address(MANAGER, "services", old), Some(key)),
            (address(MANAGER, "services", new), None),
            (address("me", "services", old), None),
            (address(MANAGER, "gateways", old), None),
        ] {
            assert_eq!(service_key(&address, now), expected, "{address}");
        }
    }
}
