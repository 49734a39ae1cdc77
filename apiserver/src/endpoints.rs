//! The `kubernetes` Service: its cluster address, and the live servers behind it.
//!
//! Each server keeps a key with its address under a lease and, like upstream's lease reconciler, brings the Service, its
//! Endpoints and its EndpointSlice in line with the keys that are there. All servers do the same work; whoever comes
//! second finds nothing to do or loses the comparison of versions and looks again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use keelson_client::{Client, Error};
use keelson_store::{KeyRange, Kv, KvError, LeaseId, Op, PutRequest, Txn, WatchRequest};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::services::repair;
use crate::{name_service, service_ranges};

/// Keys of the servers' addresses.
const PREFIX: &str = "/keelson/servers/";
/// A server that does not renew its key is gone after this, seconds (upstream: 15).
const TTL_SECONDS: i64 = 15;
/// How often it renews the key and looks whether all is in line (upstream: 10 s).
const INTERVAL: Duration = Duration::from_secs(5);
/// How long a server counts after its identity Lease was renewed last, seconds, and how often it is renewed.
const IDENTITY_SECONDS: i32 = 3600;
const IDENTITY_INTERVAL: Duration = Duration::from_secs(60);
/// How often addresses are looked for that no Service has.
const REPAIR_INTERVAL: Duration = Duration::from_secs(600);
/// The name of all three objects.
const NAME: &str = "kubernetes";
/// Time for taking this server out when it stops.
const LEAVE: Duration = Duration::from_secs(1);

/// This server's place behind the Service.
pub struct Place {
    /// The store.
    pub kv: Arc<dyn Kv>,
    /// Writes the objects.
    pub client: Client,
    /// The member's id.
    pub id: u64,
    /// Where this server's API is reached.
    pub address: SocketAddr,
    /// Addresses of Services; the first is the Service's own.
    pub service_cidr: String,
}

impl Place {
    /// Keeps this server among those behind the Service until `stop`; then takes it out.
    pub async fn keep(self, stop: CancellationToken) {
        let key = Bytes::from(format!("{PREFIX}{:016x}", self.id));
        let mut lease = 0;
        let (mut renewed, mut repaired) = (None, None);
        while !stop.is_cancelled() {
            // Opened before the keys are read, so that no change falls between.
            let changes = self.kv.watch(WatchRequest::new(KeyRange::prefix(PREFIX), 0));
            match register(self.kv.as_ref(), &key, lease, reachable(self.address)).await {
                Ok(held) => lease = held,
                Err(error) => warn!(%error, "cannot tell the other servers of this one yet"),
            }
            if let Err(error) = self.reconcile().await {
                info!(%error, "the kubernetes Service is not in line yet");
            }
            if renewed.is_none_or(|at: Instant| at.elapsed() >= IDENTITY_INTERVAL) {
                match self.renew_identity().await {
                    Ok(()) => renewed = Some(Instant::now()),
                    Err(error) => info!(%error, "this server's identity lease is not renewed yet"),
                }
            }
            if repaired.is_none_or(|at: Instant| at.elapsed() >= REPAIR_INTERVAL) {
                match repair::sweep(self.kv.as_ref(), jiff::Timestamp::now()).await {
                    Ok(count) => {
                        repaired = Some(Instant::now());
                        if count > 0 {
                            info!(count, "gave back addresses that no Service has");
                        }
                    }
                    Err(error) => info!(%error, "addresses that no Service has are not given back yet"),
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(INTERVAL) => {}
                () = changed(changes, &key) => {}
            }
        }
        if lease != 0 && !matches!(tokio::time::timeout(LEAVE, self.kv.lease_revoke(lease)).await, Ok(Ok(()))) {
            info!("the kubernetes Service names this server until its lease ends");
        }
    }

    async fn reconcile(&self) -> Result<(), Error> {
        let servers = servers(self.kv.as_ref());
        if servers.is_empty() {
            return Ok(());
        }
        self.ensure_service().await?;
        if let Err(error) = name_service::ensure(&self.client, &self.service_cidr).await {
            info!(%error, "the kube-dns Service is not there yet");
        }
        let endpoints = self.client.namespaced::<Endpoints>("default");
        let wanted: Endpoints = serde_json::from_value(endpoints_of(&servers))?;
        match endpoints.get_opt(NAME).await? {
            None => drop(endpoints.create(&wanted).await?),
            Some(found) if found.subsets != wanted.subsets => {
                drop(endpoints.replace(NAME, &Endpoints { subsets: wanted.subsets, ..found }).await?);
            }
            Some(_) => {}
        }
        let slices = self.client.namespaced::<EndpointSlice>("default");
        let wanted: EndpointSlice = serde_json::from_value(slice_of(&servers))?;
        match slices.get_opt(NAME).await? {
            None => drop(slices.create(&wanted).await?),
            Some(found) if found.endpoints != wanted.endpoints || found.ports != wanted.ports => {
                let changed = EndpointSlice { endpoints: wanted.endpoints, ports: wanted.ports, ..found };
                drop(slices.replace(NAME, &changed).await?);
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Keeps up the Lease by which tools count the servers.
    async fn renew_identity(&self) -> Result<(), Error> {
        let name = format!("apiserver-{:016x}", self.id);
        let leases = self.client.namespaced::<Lease>("kube-system");
        let now = MicroTime(jiff::Timestamp::now());
        let Some(mut found) = leases.get_opt(&name).await? else {
            let lease = json!({
                "metadata": {
                    "name": name,
                    "labels": {"apiserver.kubernetes.io/identity": "kube-apiserver", "kubernetes.io/hostname": name},
                    "annotations": {"kubernetes.io/peer-advertise-address": self.address.to_string()},
                },
                "spec": {"holderIdentity": name, "leaseDurationSeconds": IDENTITY_SECONDS, "renewTime": now},
            });
            return leases.create(&serde_json::from_value(lease)?).await.map(drop);
        };
        found.spec.get_or_insert_default().renew_time = Some(now);
        leases.replace(&name, &found).await.map(drop)
    }

    async fn ensure_service(&self) -> Result<(), Error> {
        let services = self.client.namespaced::<Service>("default");
        if services.get_opt(NAME).await?.is_some() {
            return Ok(());
        }
        let mut service = json!({
            "metadata": {"name": NAME, "labels": {"component": "apiserver", "provider": "kubernetes"}},
            "spec": {
                "type": "ClusterIP",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": self.address.port()}],
            },
        });
        if let Some(first) = service_ranges::first_address(&self.service_cidr) {
            service["spec"]["clusterIP"] = first.to_string().into();
        }
        services.create(&serde_json::from_value(service)?).await.map(drop)
    }
}

/// Waits until another server's key has changed, or the watch ends.
async fn changed(watch: Result<keelson_store::Watch, KvError>, own: &Bytes) {
    let Ok(mut watch) = watch else { return std::future::pending().await };
    while let Some(Ok(batch)) = watch.next().await {
        if batch.events.iter().any(|event| event.kv.key != *own) {
            return;
        }
    }
    // The next round reads everything; a watch that cannot be had must not make it spin.
    std::future::pending().await
}

/// Renews the lease, or takes a new one and writes the key.
/// Where others reach a server that listens on an address of this machine alone: loopback addresses may not be endpoints.
fn reachable(address: SocketAddr) -> SocketAddr {
    if !address.ip().is_loopback() || !address.is_ipv4() {
        return address;
    }
    // No packet is sent: connecting a datagram socket only asks which of the machine's addresses would be used.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|s| s.connect("192.0.2.1:9").map(|()| s));
    match socket.and_then(|s| s.local_addr()) {
        Ok(own) if !own.ip().is_loopback() && !own.ip().is_unspecified() => SocketAddr::new(own.ip(), address.port()),
        _ => address,
    }
}

async fn register(kv: &dyn Kv, key: &Bytes, lease: LeaseId, address: SocketAddr) -> Result<LeaseId, KvError> {
    let value = Bytes::from(address.to_string());
    let there = kv.view().get(key).is_some_and(|kv| kv.value == value && kv.lease == lease);
    if lease != 0 && there && kv.lease_keep_alive(lease).await.is_ok() {
        return Ok(lease);
    }
    let lease = kv.lease_grant(0, TTL_SECONDS).await?;
    let put = Op::Put(PutRequest { lease, ..PutRequest::new(key.clone(), value) });
    kv.txn(Txn { success: vec![put], ..Txn::default() }).await?;
    Ok(lease)
}

/// The servers that live, sorted.
fn servers(kv: &dyn Kv) -> Vec<SocketAddr> {
    let view = kv.view();
    let keys = KeyRange::prefix(PREFIX);
    let found = view.range(&keys);
    let mut servers: Vec<_> =
        found.filter_map(|kv| std::str::from_utf8(&kv.value).ok().and_then(|text| text.parse().ok())).collect();
    servers.sort();
    servers.dedup();
    servers
}

fn ports(port: u16) -> Value {
    json!([{"name": "https", "port": port, "protocol": "TCP"}])
}

/// The Endpoints: servers of one port share a subset.
fn endpoints_of(servers: &[SocketAddr]) -> Value {
    let subset = |port: u16| {
        let of_port = servers.iter().filter(|s| s.port() == port);
        let addresses: Vec<Value> = of_port.map(|s| json!({"ip": s.ip().to_string()})).collect();
        json!({"addresses": addresses, "ports": ports(port)})
    };
    let distinct: BTreeSet<u16> = servers.iter().map(SocketAddr::port).collect();
    json!({
        "metadata": {"name": NAME, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": distinct.into_iter().map(subset).collect::<Vec<_>>(),
    })
}

/// The EndpointSlice; a slice has one list of ports, so that it holds the servers on the first server's port.
fn slice_of(servers: &[SocketAddr]) -> Value {
    let (port, v4) = servers.first().map_or((0, true), |first| (first.port(), first.is_ipv4()));
    let alike = servers.iter().filter(|s| s.port() == port && s.is_ipv4() == v4);
    let endpoints: Vec<Value> =
        alike.map(|s| json!({"addresses": [s.ip().to_string()], "conditions": {"ready": true}})).collect();
    json!({
        "metadata": {"name": NAME, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": if v4 { "IPv4" } else { "IPv6" },
        "endpoints": endpoints,
        "ports": ports(port),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_on_two_ports_are_two_subsets() {
        let servers: Vec<SocketAddr> =
            ["10.0.0.1:6443", "10.0.0.1:7443", "10.0.0.2:6443"].iter().map(|s| s.parse().unwrap()).collect();
        let endpoints = endpoints_of(&servers);
        assert_eq!(endpoints["subsets"][0]["addresses"], json!([{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]));
        assert_eq!(endpoints["subsets"][1]["ports"][0]["port"], 7443);
        let slice = slice_of(&servers);
        assert_eq!(slice["endpoints"].as_array().unwrap().len(), 2);
        assert_eq!(slice["addressType"], "IPv4");
    }
}
