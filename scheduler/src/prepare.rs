//! What is written before a binding: volumes and devices of the pod's claims, and waiting until they are ready. What a failed
//! attempt wrote is taken back.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::resource::v1::{
    AllocationResult, ResourceClaim, ResourceClaimConsumerReference, ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use keelson_client::{Client, Error, PatchType};
use rand::RngExt;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use crate::act::{complain, patch_status};
use crate::awaited::{Awaited, Expected, Kind};
use crate::devices::extended::ANNOTATION;
use crate::devices::readiness::{Readiness, conditional, readiness};
use crate::events::{Events, Note};
use crate::plugins::devices::{Release, Reservation, Special};
use crate::plugins::volumes::Promise;
use crate::view::PodInfo;
use crate::volumes::{ClaimKey, SELECTED_NODE};

/// Says that a volume was bound by its claim's controller.
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Keeps a claim that has devices from going.
const CLAIM_FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// How often a claim is written when others write to it at the same moment.
const CLAIM_TRIES: u32 = 5;

/// The preparation of one binding.
pub(crate) struct Preparation<'a> {
    client: &'a Client,
    events: &'a Events,
    awaited: &'a Arc<Awaited>,
    pod: &'a Arc<PodInfo>,
    node: &'a str,
    /// The right to write; given back while it waits for others.
    turn: Option<OwnedSemaphorePermit>,
    /// Claims for devices that were reserved by this attempt.
    reserved: Vec<ClaimKey>,
    /// The claim that was made for the pod's extended resources.
    made: Option<ResourceClaim>,
}

/// Why a binding cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unready {
    /// The API server says no, or nothing.
    #[error("{0}")]
    Client(#[from] Error),
    /// What was promised cannot be had.
    #[error("{0}")]
    Failed(String),
}

impl Unready {
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Client(error) if error.is_conflict())
    }
}

fn failed(why: impl Into<String>) -> Unready {
    Unready::Failed(why.into())
}

impl<'a> Preparation<'a> {
    pub(crate) fn new(
        client: &'a Client,
        events: &'a Events,
        awaited: &'a Arc<Awaited>,
        pod: &'a Arc<PodInfo>,
        node: &'a str,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self { client, events, awaited, pod, node, turn, reserved: Vec::new(), made: None }
    }

    /// Writes what is promised and waits until it is there.
    ///
    /// # Errors
    /// The plugin that it failed for, and why.
    pub(crate) async fn run(&mut self, promise: &Promise) -> Result<(), (&'static str, Unready)> {
        if !promise.is_empty() && *self.pod.nominated != *self.node {
            // Who makes volumes or devices ready may want to know for which node.
            let patch = json!({"metadata": {"uid": &*self.pod.uid}, "status": {"nominatedNodeName": self.node}});
            if let Err(error) = patch_status(self.client, self.pod, &patch).await {
                complain(self.pod, "cannot write the expected node", &error);
            }
        }
        self.volumes(promise).await.map_err(|error| ("VolumeBinding", error))?;
        self.devices(promise).await.map_err(|error| ("DynamicResources", error))
    }

    /// Gives claims their volumes, or has volumes made, and waits until they are bound.
    async fn volumes(&mut self, promise: &Promise) -> Result<(), Unready> {
        let client = self.client;
        let keys = promise.bind.iter().map(|(_, claim)| claim).chain(&promise.provision);
        let expected: Vec<Expected> = keys.map(|key| self.awaited.expect_volume(key)).collect();
        for (volume, (namespace, name)) in &promise.bind {
            let claim = client.namespaced::<PersistentVolumeClaim>(namespace).get(name).await?;
            let reference = json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": &**namespace, "name": &**name,
                "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version,
            });
            let patch = json!({
                "metadata": {"annotations": {BOUND_BY_CONTROLLER: "yes"}}, "spec": {"claimRef": reference},
            });
            client.cluster::<PersistentVolume>().patch_unread(volume, None, PatchType::Merge, &patch).await?;
        }
        for (namespace, name) in &promise.provision {
            let patch = json!({"metadata": {"annotations": {SELECTED_NODE: self.node}}});
            let claims = client.namespaced::<PersistentVolumeClaim>(namespace);
            claims.patch_unread(name, None, PatchType::Merge, &patch).await?;
        }
        if expected.is_empty() {
            return Ok(());
        }
        self.turn = self.awaited.park(self.turn.take());
        let bound = async {
            for claim in expected {
                let (namespace, name) = claim.key().clone();
                let api = client.namespaced::<PersistentVolumeClaim>(&namespace);
                let look = || async {
                    let claim = api.get(&name).await?;
                    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
                    Ok::<_, Error>((phase == Some("Bound")).then_some(()))
                };
                claim.bound(look).await?;
            }
            Ok::<_, Unready>(())
        };
        let late = |_| failed("binding volumes: context deadline exceeded");
        tokio::time::timeout(promise.patience.volumes, bound).await.map_err(late)?
    }

    /// Gives claims their devices, says that the pod uses them, and waits until they are ready.
    async fn devices(&mut self, promise: &Promise) -> Result<(), Unready> {
        let mut waiting = Vec::new();
        for reservation in &promise.devices {
            let key = match &reservation.special {
                Some(special) => self.make(reservation, special).await?,
                None => reservation.key.clone(),
            };
            let claim = self.reserve(reservation, &key).await?;
            let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
            if allocation.is_some_and(conditional) {
                waiting.push(key);
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        self.tell_of_waiting();
        self.turn = self.awaited.park(self.turn.take());
        let ready = async {
            for key in &waiting {
                let api = self.client.namespaced::<ResourceClaim>(&key.0);
                self.awaited.until(Kind::Devices, key, || async { ready(&api.get(&key.1).await?) }).await?;
            }
            Ok::<_, Unready>(())
        };
        let late = |_| failed("device binding timeout");
        tokio::time::timeout(promise.patience.devices, ready).await.map_err(late)?
    }

    fn tell_of_waiting(&self) {
        self.events.tell(Note {
            pod: self.pod.clone(),
            related: None,
            kind: "Normal",
            reason: "BindingConditionsPending",
            action: "Scheduling",
            message: format!("waiting for binding conditions for device on node {}", self.node),
            time: jiff::Timestamp::now(),
        });
    }

    /// Makes the claim for the pod's extended resources, and says in the pod's status which it is.
    async fn make(&mut self, reservation: &Reservation, special: &Special) -> Result<ClaimKey, Unready> {
        let namespace = &reservation.key.0;
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            name: self.pod.name.to_string(),
            uid: self.pod.uid.to_string(),
            controller: Some(true),
            block_owner_deletion: None,
        };
        let claim = ResourceClaim {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-extended-resources-", self.pod.name)),
                namespace: Some(namespace.to_string()),
                annotations: Some([(ANNOTATION.to_owned(), "true".to_owned())].into()),
                owner_references: Some(vec![owner]),
                finalizers: Some(vec![CLAIM_FINALIZER.into()]),
                ..ObjectMeta::default()
            },
            spec: ResourceClaimSpec { devices: Some(special.spec.clone()) },
            status: None,
        };
        let claim = self.client.namespaced::<ResourceClaim>(namespace).create(&claim).await?;
        let name = claim.metadata.name.clone().unwrap_or_default();
        self.made = Some(claim);
        let mappings = special.mappings.iter().map(|[container, resource, request]| {
            json!({"containerName": &**container, "resourceName": &**resource, "requestName": &**request})
        });
        let status = json!({"resourceClaimName": name, "requestMappings": mappings.collect::<Vec<_>>()});
        let patch = json!({"metadata": {"uid": &*self.pod.uid}, "status": {"extendedResourceClaimStatus": status}});
        patch_status(self.client, self.pod, &patch).await?;
        Ok((namespace.clone(), name.into()))
    }

    async fn reserve(&mut self, reservation: &Reservation, key: &ClaimKey) -> Result<ResourceClaim, Unready> {
        let mut tries = 1;
        // Others write to a claim too: its controller, drivers, users.
        loop {
            match self.reserve_once(reservation, key).await {
                Err(error) if error.is_conflict() && tries < CLAIM_TRIES => tries += 1,
                result => return result,
            }
        }
    }

    async fn reserve_once(&mut self, reservation: &Reservation, key: &ClaimKey) -> Result<ResourceClaim, Unready> {
        let Reservation { uid, allocation, special, .. } = reservation;
        let (namespace, name) = key;
        let api = self.client.namespaced::<ResourceClaim>(namespace);
        let mut claim = api.get(name).await?;
        let changed = |why: &str| failed(format!("resourceclaim {namespace}/{name} {why}"));
        if special.is_none() && claim.metadata.uid.as_ref() != Some(uid) {
            return Err(changed("is another one now"));
        }
        let finalizers = claim.metadata.finalizers.get_or_insert_default();
        if !finalizers.iter().any(|finalizer| finalizer == CLAIM_FINALIZER) {
            finalizers.push(CLAIM_FINALIZER.into());
            claim = api.replace(name, &claim).await?;
        }
        let status = claim.status.get_or_insert_default();
        if status.allocation.is_none() {
            let allocation = allocation.as_ref().ok_or_else(|| changed("has lost its devices"))?;
            status.allocation = Some(stamped(allocation));
        } else if allocation.as_ref().is_some_and(|ours| !same_devices(ours, status.allocation.as_ref())) {
            return Err(changed("got other devices meanwhile"));
        }
        let users = status.reserved_for.get_or_insert_default();
        if users.iter().any(|user| *user.uid == *self.pod.uid) {
            return Ok(claim);
        }
        users.push(ResourceClaimConsumerReference {
            api_group: None,
            name: self.pod.name.to_string(),
            resource: "pods".into(),
            uid: self.pod.uid.to_string(),
        });
        let claim = api.replace_status(name, &claim).await?;
        self.reserved.push(key.clone());
        Ok(claim)
    }

    /// Takes back what can be taken back, since the pod is not bound.
    pub(crate) async fn undo(&mut self) {
        let made = self.made.take();
        let own = made.as_ref().and_then(|claim| claim.metadata.name.clone());
        for key in std::mem::take(&mut self.reserved) {
            if own.as_deref() == Some(&*key.1) {
                continue;
            }
            if let Err(error) = unreserve(self.client, self.pod, &key).await {
                complain(self.pod, "cannot take back the reservation of a claim", &error);
            }
        }
        if let Some(claim) = made
            && let Err(error) = remove(self.client, &claim).await
        {
            complain(self.pod, "cannot delete the claim for extended resources", &error);
        }
    }
}

/// An allocation as it is stored: with its time, and names for the shares of devices.
fn stamped(allocation: &AllocationResult) -> AllocationResult {
    let mut allocation = allocation.clone();
    allocation.allocation_timestamp = Some(Time(jiff::Timestamp::now()));
    let results = allocation.devices.iter_mut().flat_map(|devices| devices.results.iter_mut().flatten());
    for result in results.filter(|result| result.consumed_capacity.is_some() && result.share_id.is_none()) {
        result.share_id = Some(random_uuid());
    }
    allocation
}

/// A random UUID (version 4).
fn random_uuid() -> String {
    let random: u128 = rand::rng().random();
    let bits = (random & !(0xf << 76) & !(0b11 << 62)) | (4 << 76) | (0b10 << 62);
    let text = format!("{bits:032x}");
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

/// Whether the stored allocation is ours, whatever its shares are called.
fn same_devices(ours: &AllocationResult, stored: Option<&AllocationResult>) -> bool {
    let plain = |allocation: &AllocationResult| {
        let mut devices = allocation.devices.clone();
        for result in devices.iter_mut().flat_map(|devices| devices.results.iter_mut().flatten()) {
            result.share_id = None;
            result.consumed_capacity = result.consumed_capacity.take().filter(|amounts| !amounts.is_empty());
        }
        devices
    };
    stored.is_some_and(|stored| plain(stored) == plain(ours))
}

/// Whether a claim's devices are ready; an error if they never will be.
fn ready(claim: &ResourceClaim) -> Result<Option<()>, Unready> {
    let status = claim.status.as_ref();
    let Some(allocation) = status.and_then(|status| status.allocation.as_ref()) else {
        return Err(failed("the claim has lost its devices"));
    };
    let statuses = status.and_then(|status| status.devices.as_deref()).unwrap_or_default();
    match readiness(allocation, statuses) {
        Readiness::Ready => Ok(Some(())),
        Readiness::Waiting => Ok(None),
        Readiness::Failed(why) => Err(failed(why)),
    }
}

async fn unreserve(client: &Client, pod: &PodInfo, (namespace, name): &ClaimKey) -> Result<(), Error> {
    let api = client.namespaced::<ResourceClaim>(namespace);
    let mut tries = 1;
    loop {
        let mut claim = api.get(name).await?;
        let users = claim.status.get_or_insert_default().reserved_for.get_or_insert_default();
        users.retain(|user| *user.uid != *pod.uid);
        match api.replace_status(name, &claim).await {
            Err(error) if error.is_conflict() && tries < CLAIM_TRIES => tries += 1,
            result => return result.map(drop),
        }
    }
}

/// Deletes a claim that the scheduler made, with what keeps it.
async fn remove(client: &Client, claim: &ResourceClaim) -> Result<(), Error> {
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let api = client.namespaced::<ResourceClaim>(namespace);
    let patch = json!({"metadata": {"uid": claim.metadata.uid, "finalizers": null}});
    api.patch(name, None, PatchType::Merge, &patch).await?;
    match api.delete(name, &json!({"preconditions": {"uid": claim.metadata.uid}})).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Lets a claim that nobody else uses go of its devices, so that a pod can go elsewhere.
pub(crate) async fn let_go(client: &Client, pod: &PodInfo, release: &Release) -> Result<(), Error> {
    let (namespace, name) = &release.key;
    let api = client.namespaced::<ResourceClaim>(namespace);
    let mut claim = api.get(name).await?;
    if claim.metadata.uid.as_ref() != Some(&release.uid) {
        return Ok(());
    }
    if release.delete {
        return remove(client, &claim).await;
    }
    let status = claim.status.get_or_insert_default();
    if status.reserved_for.iter().flatten().any(|user| *user.uid != *pod.uid) {
        return Ok(());
    }
    (status.allocation, status.reserved_for, status.devices) = (None, None, None);
    // The version that was read makes sure that nobody reserved it meanwhile.
    api.replace_status(name, &claim).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_get_names_and_are_still_the_same() {
        let ours: AllocationResult = serde_json::from_value(json!({"devices": {"results": [
            {"request": "r", "driver": "d", "pool": "p", "device": "a", "consumedCapacity": {"memory": "1Gi"}},
            {"request": "s", "driver": "d", "pool": "p", "device": "b"}]}}))
        .unwrap();
        let stored = stamped(&ours);
        let ids: Vec<_> = stored.devices.iter().flat_map(|d| d.results.iter().flatten()).map(|r| &r.share_id).collect();
        let id = ids[0].as_deref().unwrap();
        assert_eq!((id.len(), &id[14..15], ids[1]), (36, "4", &None));
        assert!("89ab".contains(&id[19..20]), "{id}");
        assert!(stored.allocation_timestamp.is_some() && same_devices(&ours, Some(&stored)));
        let mut other = stored;
        other.devices.as_mut().unwrap().results.as_mut().unwrap()[0].device = "c".into();
        assert!(!same_devices(&ours, Some(&other)) && !same_devices(&ours, None));
    }
}
