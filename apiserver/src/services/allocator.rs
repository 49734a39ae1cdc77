//! Takes cluster IPs and node ports for one Service. An address is an object of its own, written before the Service; a
//! node port is a key that is written with it.

use std::collections::HashSet;
use std::net::IpAddr;

use keelson_machinery::resources;
use keelson_machinery::status::{Cause, Status};
use keelson_machinery::stored;
use keelson_machinery::validation::needs_health_check;
use keelson_store::{Compare, DeleteRequest, KeyRange, Op, PutRequest};
use rand::RngExt;
use serde_json::{Value, json};

use super::{invalid, needs_cluster_ip, needs_node_ports, ports};
use crate::ApiServer;
use crate::objects::{Extra, First};
use crate::service_ranges::{Range, family_of, parse_all};
use crate::strategy;

/// The label that says who made an address, and who that is.
pub(super) const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "ipallocator.k8s.io";

/// Ports that Services get on every node.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// The lower part of the node ports is kept for those that are asked for.
const STATIC_NODE_PORTS: u16 = 86;
/// The lower part of a range is kept for values that are asked for: a sixteenth, at least 16 and at most 256.
const STATIC_BAND: (u128, u128) = (16, 256);
/// Tries before a free value is declared not to be found.
const TRIES: u32 = 2000;
/// What a dry run shows as its first node port; one that follows another is one higher.
const DRY_RUN_PORT: u16 = 32769;

fn port_key(port: u16) -> String {
    format!("/registry/keelson/nodeports/{port}")
}

/// Takes values for one Service.
pub(super) struct Allocator<'a> {
    pub(super) server: &'a ApiServer,
    /// Namespace and name.
    pub(super) owner: (String, String),
    pub(super) dry_run: bool,
    pub(super) extra: &'a mut Extra,
    /// Node ports that this write takes.
    pub(super) taken: Vec<u16>,
}

/// Whether addresses may be taken of a ServiceCIDR.
fn is_ready(object: &Value) -> bool {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.any(|c| c["type"] == "Ready" && c["status"] == "True");
    ready && object["metadata"]["deletionTimestamp"].is_null()
}

fn race() -> Status {
    Status { reason: "AllocationRace".into(), ..Status::internal("the value was allocated at the same moment") }
}

/// The key of an address's object.
fn address_key(ip: &str) -> Option<String> {
    resources::find("networking.k8s.io", "v1", "ipaddresses").map(|def| def.key("", &canonical(ip)))
}

/// An address in the one form that its object's name has.
fn canonical(ip: &str) -> String {
    ip.parse::<IpAddr>().map_or_else(|_| ip.to_owned(), |ip| ip.to_string())
}

impl Allocator<'_> {
    fn is_free(&self, key: &str) -> bool {
        self.server.objects.kv.view().get(key.as_bytes()).is_none()
    }

    fn claim_address(&mut self, ip: &str) -> Result<(), Status> {
        let Some(def) = resources::find("networking.k8s.io", "v1", "ipaddresses") else { return Ok(()) };
        let ip = &canonical(ip);
        let object = address(ip, &self.owner);
        let value = stored::encode(def, &object).map_err(|e| Status::internal(&e.to_string()))?;
        let key = def.key("", ip);
        let value = crate::encryption::seal(def, key.as_bytes(), value)?;
        if !self.dry_run {
            self.extra.first.push(First { key: key.into(), value, taken: race() });
        }
        Ok(())
    }

    pub(super) fn cluster_ips(&mut self, new: &mut Value, before: &Value) -> Result<(), Status> {
        let list = |spec: &Value| -> Vec<String> {
            let ips = spec["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
            ips.map(str::to_owned).collect()
        };
        let had = if needs_cluster_ip(before) { list(before) } else { Vec::new() };
        let mut wanted = list(&new["spec"]);
        if let Some(first) = new["spec"]["clusterIP"].as_str().filter(|ip| !ip.is_empty())
            && wanted.is_empty()
        {
            wanted.push(first.to_owned());
        }
        if had.first().is_some_and(|ip| ip == "None") {
            return Ok(());
        }
        if wanted.first().is_some_and(|ip| ip == "None") {
            new["spec"]["clusterIPs"] = json!(["None"]);
            new["spec"]["clusterIP"] = "None".into();
            return Ok(());
        }
        let families = new["spec"]["ipFamilies"].as_array().cloned().unwrap_or_default();
        // A Service that had addresses may only get a second one; validation tells of other changes.
        let fixed = if is_created(before) || !needs_cluster_ip(before) {
            0
        } else if before["ipFamilies"].as_array().map_or(0, Vec::len) == 1 && had.len() == 1 {
            1
        } else {
            families.len()
        };
        let mut ips = Vec::new();
        for (index, family) in families.iter().filter_map(Value::as_str).enumerate() {
            let ip = match wanted.get(index).filter(|ip| !ip.is_empty()) {
                Some(ip) if had.contains(ip) || index < fixed => ip.clone(),
                Some(ip) => {
                    self.check_address(new, ip)?;
                    self.claim_address(ip)?;
                    ip.clone()
                }
                None => {
                    let ip = self.next_address(family)?;
                    self.claim_address(&ip)?;
                    ip
                }
            };
            ips.push(ip);
        }
        new["spec"]["clusterIP"] = ips.first().cloned().unwrap_or_default().into();
        new["spec"]["clusterIPs"] = json!(ips);
        Ok(())
    }

    /// The ranges that addresses may be of: the server's own, then those of the ServiceCIDRs that are ready.
    fn ranges(&self) -> Result<Vec<Range>, Status> {
        let mut ranges = parse_all(&self.server.service_cidr)?;
        let Some(def) = resources::find("networking.k8s.io", "v1", "servicecidrs") else { return Ok(ranges) };
        for object in self.server.objects.all(def, "").iter().filter(|object| is_ready(object)) {
            let cidrs = object["spec"]["cidrs"].as_array().into_iter().flatten().filter_map(Value::as_str);
            for found in cidrs.filter_map(|cidr| Range::parse(cidr).ok()) {
                if !ranges.contains(&found) {
                    ranges.push(found);
                }
            }
        }
        Ok(ranges)
    }

    fn next_address(&self, family: &str) -> Result<String, Status> {
        let mut ranges = self.ranges()?;
        ranges.retain(|range| range.family() == family);
        if let (true, Some(range)) = (self.dry_run, ranges.first()) {
            return Ok(range.address(0).to_string());
        }
        let free = ranges.iter().find_map(|range| self.free_address(range));
        free.ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))
    }

    fn free_address(&self, range: &Range) -> Option<String> {
        let size = range.size;
        let band = (size / 16).clamp(STATIC_BAND.0, STATIC_BAND.1);
        let mut rng = rand::rng();
        (0..TRIES)
            .map(|i| {
                let upper = i < TRIES / 2 && band < size - 1;
                if upper { rng.random_range(band..size - 1) } else { rng.random_range(1..size - 1) }
            })
            .map(|offset| range.address(offset).to_string())
            .find(|ip| address_key(ip).is_some_and(|key| self.is_free(&key)))
    }

    fn check_address(&self, new: &Value, wanted: &str) -> Result<(), Status> {
        let ranges = self.ranges()?;
        let refused = |why: &str| {
            let why = format!("failed to allocate IP {wanted}: {why}");
            Err(invalid(new, Cause::invalid("spec.clusterIPs", &new["spec"]["clusterIPs"], &why)))
        };
        let parsed = wanted.parse::<IpAddr>();
        if !parsed.is_ok_and(|ip| ranges.iter().any(|range| range.offers(ip))) {
            return refused("the provided network does not match the current range");
        }
        if !address_key(wanted).is_some_and(|key| self.is_free(&key)) {
            return refused("provided IP is already allocated");
        }
        Ok(())
    }

    /// Takes the node ports that are asked for, and those that are missing where the Service has them.
    pub(super) fn node_ports(&mut self, new: &mut Value, before: &Value) -> Result<(), Status> {
        let number = |port: &Value, key: &str| port[key].as_i64().unwrap_or(0);
        let had: Vec<i64> = ports(before).map(|p| number(p, "nodePort")).collect();
        let (created, all) = (is_created(before), needs_node_ports(&new["spec"]));
        let asked: Vec<_> = ports(&new["spec"]).map(|p| (number(p, "port"), number(p, "nodePort"))).collect();
        let mut given: Vec<(i64, u16)> = Vec::new();
        let mut seen = HashSet::new();
        for (index, (port, mut wanted)) in asked.iter().copied().enumerate() {
            let protocol = new["spec"]["ports"][index]["protocol"].as_str().unwrap_or("TCP");
            if !created && wanted != 0 && !seen.insert((protocol.to_owned(), wanted)) {
                // An error of the server's own, as upstream has it.
                return Err(Status::unknown(format!("duplicate nodePort: {{{protocol} {wanted}}}")));
            }
            if if wanted == 0 { !all } else { had.contains(&wanted) } {
                continue;
            }
            // At creation, one port for several protocols has one node port, which any of them may name.
            let shared = given.iter().find(|(p, _)| created && *p == port).map(|(_, node)| i64::from(*node));
            if created && shared.is_none() {
                wanted = asked.iter().find(|(p, node)| *p == port && *node != 0).map_or(0, |(_, node)| *node);
            } else if wanted == 0 {
                wanted = shared.unwrap_or(0);
            }
            let known = self.taken.iter().copied().find(|p| i64::from(*p) == wanted);
            let chosen = match known {
                Some(known) if !created || shared == Some(wanted) => known,
                _ if wanted == 0 => self.next_port()?,
                _ => self.check_port(new, wanted, &format!("spec.ports[{index}].nodePort"))?,
            };
            if known.is_none() {
                self.take_port(chosen);
            }
            given.push((port, chosen));
            new["spec"]["ports"][index]["nodePort"] = chosen.into();
        }
        Ok(())
    }

    fn is_free_port(&self, port: u16) -> bool {
        !self.taken.contains(&port) && self.is_free(&port_key(port))
    }

    fn take_port(&mut self, port: u16) {
        self.taken.push(port);
        if !self.dry_run {
            let (key, owner) = (port_key(port), format!("{}/{}", self.owner.0, self.owner.1));
            self.extra.guards.push((Compare::create_revision(key.clone(), 0), race()));
            self.extra.ops.push(Op::Put(PutRequest::new(key, owner)));
        }
    }

    fn next_port(&self) -> Result<u16, Status> {
        if self.dry_run {
            return Ok(self.taken.iter().max().map_or(DRY_RUN_PORT, |port| port.saturating_add(1)));
        }
        let mut rng = rand::rng();
        let upper = *NODE_PORTS.start() + STATIC_NODE_PORTS..=*NODE_PORTS.end();
        let free = (0..TRIES).map(|_| rng.random_range(upper.clone())).find(|port| self.is_free_port(*port));
        free.ok_or_else(|| Status::internal("failed to allocate a nodePort: range is full"))
    }

    fn check_port(&self, new: &Value, wanted: i64, field: &str) -> Result<u16, Status> {
        let Some(port) = in_range(wanted) else {
            return Err(invalid(new, Cause::invalid(field, &json!(wanted), &out_of_range())));
        };
        if !self.is_free_port(port) {
            return Err(invalid(new, Cause::invalid(field, &json!(wanted), "provided port is already allocated")));
        }
        Ok(port)
    }

    pub(super) fn health_check_port(&mut self, new: &mut Value, before: &Value) -> Result<(), Status> {
        let wanted = new["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0);
        if needs_health_check(before) {
            // It may not change, which validation tells of.
            return Ok(());
        }
        let port = match wanted {
            0 => self.next_port()?,
            wanted => {
                let refused = |why: &str| {
                    Status::internal(&format!("failed to allocate requested HealthCheck NodePort {wanted}: {why}"))
                };
                let port = in_range(wanted).ok_or_else(|| refused(&out_of_range()))?;
                if !self.is_free_port(port) {
                    return Err(refused("provided port is already allocated"));
                }
                port
            }
        };
        self.take_port(port);
        new["spec"]["healthCheckNodePort"] = port.into();
        Ok(())
    }

    /// What the Service had and has no longer.
    pub(super) fn give_back(&mut self, before: &Value, after: &Value) {
        if self.dry_run {
            return;
        }
        let kept = keys_of(after);
        let gone = keys_of(before).into_iter().filter(|key| !kept.contains(key));
        self.extra.ops.extend(gone.map(delete));
    }
}

/// Whether what a Service was before tells that it was not.
fn is_created(before: &Value) -> bool {
    before.get("type").is_none()
}

/// A port that a client asks for, if it is one that may be given out.
fn in_range(wanted: i64) -> Option<u16> {
    u16::try_from(wanted).ok().filter(|port| NODE_PORTS.contains(port))
}

fn out_of_range() -> String {
    let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
    format!("provided port is not in the valid range. The range of valid ports is {first}-{last}")
}

pub(super) fn delete(key: String) -> Op {
    Op::Delete(DeleteRequest { range: KeyRange::Key(key.into()), prev_kv: false })
}

/// The keys of all values that a Service has.
pub(super) fn keys_of(spec: &Value) -> Vec<String> {
    let mut keys = Vec::new();
    let ips = spec["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    keys.extend(ips.filter(|ip| *ip != "None" && !ip.is_empty()).filter_map(address_key));
    let numbers = ports(spec).map(|p| &p["nodePort"]).chain([&spec["healthCheckNodePort"]]);
    for port in numbers.filter_map(Value::as_u64).filter_map(|p| u16::try_from(p).ok()).filter(|p| *p != 0) {
        if !keys.contains(&port_key(port)) {
            keys.push(port_key(port));
        }
    }
    keys
}

/// The object that says who has an address.
fn address(ip: &str, owner: &(String, String)) -> Value {
    let now = strategy::now();
    json!({
        "kind": "IPAddress",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": {
            "name": ip,
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": now,
            "labels": {
                "ipaddress.kubernetes.io/ip-family": family_of(ip),
                MANAGED_BY: MANAGER,
            },
            "managedFields": [{
                "manager": "kube-apiserver", "operation": "Update", "apiVersion": "networking.k8s.io/v1", "time": now,
                "fieldsType": "FieldsV1",
                "fieldsV1": {
                    "f:metadata": {"f:labels": {
                        ".": {}, "f:ipaddress.kubernetes.io/ip-family": {}, "f:ipaddress.kubernetes.io/managed-by": {},
                    }},
                    "f:spec": {"f:parentRef": {".": {}, "f:name": {}, "f:namespace": {}, "f:resource": {}}},
                },
            }],
        },
        "spec": {"parentRef": {"resource": "services", "namespace": owner.0, "name": owner.1}},
    })
}
