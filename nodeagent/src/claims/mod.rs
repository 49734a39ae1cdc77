//! Devices that pods claim (dynamic resource allocation): a driver makes the devices of a claim ready on the node before
//! the pod's sandbox is made, and takes them back when no pod of the node has the claim any more.
//!
//! Invariant: a claim is written down in the pod's directory before its driver is asked, so that it can be given back
//! whoever asks and whenever.

pub mod cdi;
mod driver;
mod record;
pub mod slices;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Instant;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use keelson_client::Client;
use parking_lot::Mutex;

use crate::spec::{SpecError, pod, text};
use driver::Driver;
use record::{Device, Record};

/// The claims of one pod that are ready, by the pod's own names of them.
pub type Ready = BTreeMap<String, Vec<Device>>;

/// The drivers of this node and what they made ready.
pub struct Claims {
    drivers: Mutex<HashMap<String, Driver>>,
    /// Drivers that are gone, and since when.
    gone: Mutex<HashMap<String, Instant>>,
    /// One pod at a time: a claim must not be taken back from one while it is made ready for another.
    turn: tokio::sync::Mutex<()>,
    /// The directory of the pods.
    pods: PathBuf,
}

/// The names of the pod's claims: its own and the object's. A claim that needs no object has none.
fn names(of: &Pod) -> Result<Vec<(String, String)>, SpecError> {
    let made = of.status.as_ref().and_then(|s| s.resource_claim_statuses.as_deref()).unwrap_or_default();
    let mut names = Vec::new();
    for claim in of.spec.iter().flat_map(|s| s.resource_claims.iter().flatten()) {
        if let Some(object) = &claim.resource_claim_name {
            names.push((claim.name.clone(), object.clone()));
            continue;
        }
        let status = made.iter().find(|s| s.name == claim.name);
        let status = status.ok_or_else(|| {
            SpecError::new(format!("pod claim {}: the ResourceClaim has not been created yet", claim.name))
        })?;
        names.extend(status.resource_claim_name.clone().map(|object| (claim.name.clone(), object)));
    }
    Ok(names)
}

/// Whether the pod asks for claims.
pub fn wants(of: &Pod) -> bool {
    of.spec.as_ref().is_some_and(|s| s.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()))
}

/// What is written down of a claim, if the pod may use it.
fn record_of(of: &Pod, own: &str, claim: &ResourceClaim) -> Result<Record, SpecError> {
    let name = text(claim.metadata.name.as_ref());
    let status = claim.status.clone().unwrap_or_default();
    let Some(allocation) = status.allocation else {
        return Err(SpecError::new(format!("resource claim {name} is not allocated")));
    };
    let uid = pod::uid(of);
    if !status.reserved_for.iter().flatten().any(|user| user.resource == "pods" && user.uid == uid) {
        let pod = text(of.metadata.name.as_ref());
        return Err(SpecError::new(format!("pod {pod} ({uid}) is not allowed to use resource claim {name}")));
    }
    let results = allocation.devices.and_then(|d| d.results).unwrap_or_default();
    Ok(Record {
        namespace: text(claim.metadata.namespace.as_ref()),
        name,
        uid: text(claim.metadata.uid.as_ref()),
        own_names: vec![own.to_owned()],
        drivers: results.into_iter().map(|result| (result.driver, None)).collect(),
    })
}

impl Claims {
    /// No driver yet; `root` is the agent's directory.
    pub fn new(root: &Path) -> Self {
        Self {
            drivers: Mutex::default(),
            gone: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            pods: root.join("pods"),
        }
    }

    /// Takes a driver, instead of an earlier one of its name.
    pub fn welcome(&self, name: &str, socket: &Path, versions: &[String]) -> Result<(), String> {
        let driver = Driver::new(name, socket, versions)?;
        self.drivers.lock().insert(name.to_owned(), driver);
        self.gone.lock().remove(name);
        tracing::info!(driver = name, "a driver of claimed devices is registered");
        Ok(())
    }

    /// A driver that is gone; what it made ready stays until it is back.
    pub fn dismiss(&self, name: &str) {
        self.drivers.lock().remove(name);
        self.gone.lock().insert(name.to_owned(), Instant::now());
        tracing::info!(driver = name, "a driver of claimed devices is gone");
    }

    fn driver(&self, name: &str) -> Result<Driver, SpecError> {
        let known = self.drivers.lock().get(name).cloned();
        known.ok_or_else(|| SpecError::new(format!("DRA driver {name} is not registered")))
    }

    /// Makes the claims of a pod ready. With `known`, what was written down before is believed: the pod runs with it.
    pub async fn prepare(&self, client: &Client, of: &Pod, known: bool) -> Result<Ready, SpecError> {
        let uid = pod::uid(of);
        if known && let Some(ready) = record::ready(record::of_pod(&self.pods, &uid)) {
            return Ok(ready);
        }
        let names = names(of)?;
        let api = client.namespaced::<ResourceClaim>(&text(of.metadata.namespace.as_ref()));
        let mut records: BTreeMap<String, Record> = BTreeMap::new();
        for (own, object) in names {
            let claim = api.get(&object).await?;
            let wanted = record_of(of, &own, &claim)?;
            let entry = records.entry(wanted.uid.clone()).or_insert_with(|| Record { own_names: vec![], ..wanted });
            entry.own_names.push(own);
        }
        let _turn = self.turn.lock().await;
        for record in records.values_mut() {
            record.write(&self.pods, &uid)?;
            for name in record.drivers.keys().cloned().collect::<Vec<_>>() {
                let devices = self.driver(&name)?.prepare(record).await.map_err(|why| {
                    SpecError::new(format!("prepare dynamic resources of claim {}: driver {name}: {why}", record.name))
                })?;
                record.drivers.insert(name, Some(devices));
            }
            record.write(&self.pods, &uid)?;
        }
        record::ready(records.into_values().collect())
            .ok_or_else(|| SpecError::new("a driver did not make its claims ready"))
    }

    /// Gives back what was made ready for a pod, unless others have it too.
    pub async fn give_back(&self, uid: &str) -> Result<(), SpecError> {
        let mine = record::of_pod(&self.pods, uid);
        if mine.is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        for record in mine {
            if !record::others_have(&self.pods, uid, &record.uid) {
                for name in record.drivers.keys() {
                    self.driver(name)?.unprepare(&record).await.map_err(|why| {
                        SpecError::new(format!(
                            "unprepare dynamic resources of claim {}: driver {name}: {why}",
                            record.name
                        ))
                    })?;
                }
            }
            record.remove(&self.pods, uid)?;
        }
        Ok(())
    }
}

/// The names of the devices that a container is to have, each once.
pub fn devices_of(container: &Container, ready: &Ready) -> Vec<String> {
    let mut ids = Vec::new();
    for asked in container.resources.iter().flat_map(|r| r.claims.iter().flatten()) {
        for device in ready.get(&asked.name).into_iter().flatten() {
            if asked.request.as_ref().is_none_or(|request| device.serves(request)) {
                for id in &device.ids {
                    if !ids.contains(id) {
                        ids.push(id.clone());
                    }
                }
            }
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(claims: &Value, made: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u"},
            "spec": {"containers": [], "resourceClaims": claims}, "status": {"resourceClaimStatuses": made}}))
        .unwrap()
    }

    #[test]
    fn claims_have_objects() {
        let template = json!([{"name": "t", "resourceClaimTemplateName": "x"}]);
        for (claims, made, wanted) in [
            (json!([{"name": "a", "resourceClaimName": "b"}]), json!([]), Some(vec![("a", "b")])),
            (template.clone(), json!([{"name": "t", "resourceClaimName": "p-t-1"}]), Some(vec![("t", "p-t-1")])),
            // It turned out that none is needed.
            (template.clone(), json!([{"name": "t"}]), Some(vec![])),
            (template, json!([]), None),
        ] {
            let got = names(&of(&claims, &made)).ok();
            let wanted = wanted.map(|w| w.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect::<Vec<_>>());
            assert_eq!(got, wanted, "{claims} {made}");
        }
    }

    #[test]
    fn only_reserved_claims_are_used() {
        let claim = |status: Value| -> ResourceClaim {
            serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n", "uid": "1"},
                "spec": {}, "status": status}))
            .unwrap()
        };
        let allocation = json!({"devices": {"results": [
            {"driver": "d", "pool": "p", "device": "x", "request": "r"},
            {"driver": "d", "pool": "p", "device": "y", "request": "r"}]}});
        let of = of(&json!([]), &json!([]));
        let user = |uid: &str| json!([{"resource": "pods", "name": "p", "uid": uid}]);
        let good = record_of(&of, "own", &claim(json!({"allocation": allocation, "reservedFor": user("u")}))).unwrap();
        assert_eq!((good.drivers.len(), good.uid.as_str()), (1, "1"));
        for (status, why) in [
            (json!({"reservedFor": user("u")}), "not allocated"),
            (json!({"allocation": allocation, "reservedFor": user("other")}), "not allowed to use"),
            (json!({"allocation": allocation}), "not allowed to use"),
        ] {
            let got = record_of(&of, "own", &claim(status)).unwrap_err().to_string();
            assert!(got.contains(why), "{got}");
        }
    }

    #[test]
    fn containers_get_the_devices_of_their_requests() {
        let device = |request: &str, ids: &[&str]| Device {
            requests: if request.is_empty() { vec![] } else { vec![request.to_owned()] },
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        };
        let ready = Ready::from([
            ("a".to_owned(), vec![device("r", &["v/c=1", "v/c=all"]), device("s/first", &["v/c=2", "v/c=all"])]),
            ("b".to_owned(), vec![device("", &["v/c=3"])]),
        ]);
        for (claims, wanted) in [
            (json!([]), vec![]),
            (json!([{"name": "a"}]), vec!["v/c=1", "v/c=all", "v/c=2"]),
            (json!([{"name": "a", "request": "r"}]), vec!["v/c=1", "v/c=all"]),
            (json!([{"name": "a", "request": "s"}]), vec!["v/c=2", "v/c=all"]),
            // What a driver gives for all requests belongs to each.
            (json!([{"name": "b", "request": "any"}]), vec!["v/c=3"]),
            (json!([{"name": "none"}]), vec![]),
        ] {
            let container = serde_json::from_value(json!({"name": "c", "resources": {"claims": claims}})).unwrap();
            assert_eq!(devices_of(&container, &ready), wanted, "{claims}");
        }
    }
}
