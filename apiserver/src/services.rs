//! Cluster IPs and node ports: one key per allocated value, created in the transaction that writes the Service.

use std::net::Ipv4Addr;

use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::{Cause, Status};
use keelson_store::{Compare, DeleteRequest, KeyRange, Op, PutRequest};
use rand::RngExt;
use serde_json::{Value, json};

use crate::ApiServer;
use crate::objects::Extra;

/// Ports that Services get on every node.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// The lower part of a range is kept for values that are asked for: a sixteenth, at least 16 and at most 256.
const STATIC_BAND: (u32, u32) = (16, 256);
/// Tries before a free value is declared not to be found.
const TRIES: u32 = 2000;

fn ip_key(ip: &str) -> String {
    format!("/registry/keelson/clusterips/{ip}")
}

fn port_key(port: u16) -> String {
    format!("/registry/keelson/nodeports/{port}")
}

/// Fills in cluster IPs and node ports of a Service that is created or changed; for other kinds there is nothing to do.
pub fn allocate(server: &ApiServer, def: &ResourceDef, new: &mut Value, old: Option<&Value>) -> Result<Extra, Status> {
    let mut extra = Extra::default();
    if def.plural != "services" || !def.group.is_empty() {
        return Ok(extra);
    }
    let kind = new["spec"]["type"].as_str().unwrap_or("ClusterIP").to_owned();
    let old_spec = old.map(|o| &o["spec"]);
    if kind != "ExternalName" {
        cluster_ip(server, new, old_spec, &mut extra)?;
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        node_ports(server, new, old_spec, &mut extra)?;
    }
    Ok(extra)
}

/// The address of the `kubernetes` Service: the first of the range.
pub fn first_address(cidr: &str) -> Option<Ipv4Addr> {
    range(cidr).ok().map(|(base, _)| Ipv4Addr::from(base + 1))
}

fn claim(extra: &mut Extra, key: String, owner: &str) {
    let race =
        Status { reason: "AllocationRace".into(), ..Status::internal("the value was allocated at the same moment") };
    extra.guards.push((Compare::create_revision(key.clone(), 0), race));
    extra.ops.push(Op::Put(PutRequest::new(key, owner.to_owned())));
}

fn owner(object: &Value) -> String {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

fn invalid(object: &Value, cause: Cause) -> Status {
    Status::invalid("", "Service", object["metadata"]["name"].as_str().unwrap_or_default(), vec![cause])
}

fn cluster_ip(server: &ApiServer, new: &mut Value, old: Option<&Value>, extra: &mut Extra) -> Result<(), Status> {
    let had = old.and_then(|o| o["clusterIP"].as_str()).filter(|ip| !ip.is_empty());
    let wanted = new["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    if let Some(had) = had {
        if wanted.is_empty() {
            new["spec"]["clusterIP"] = had.into();
        } else if wanted != had {
            return Err(invalid(
                new,
                Cause::invalid("spec.clusterIPs[0]", &json!([wanted]), "may not change once set"),
            ));
        }
    } else if wanted.is_empty() {
        let (base, size) = range(&server.service_cidr)?;
        let band = (size / 16).clamp(STATIC_BAND.0, STATIC_BAND.1);
        let view = server.objects.kv.view();
        let mut rng = rand::rng();
        let free = (0..TRIES)
            .map(|i| {
                if i < TRIES / 2 && band < size - 1 {
                    rng.random_range(band..size - 1)
                } else {
                    rng.random_range(1..size - 1)
                }
            })
            .map(|offset| Ipv4Addr::from(base + offset).to_string())
            .find(|ip| view.get(ip_key(ip).as_bytes()).is_none());
        let ip = free.ok_or_else(|| Status::internal("failed to allocate a serviceIP: range is full"))?;
        claim(extra, ip_key(&ip), &owner(new));
        new["spec"]["clusterIP"] = ip.into();
    } else if wanted != "None" {
        let (base, size) = range(&server.service_cidr)?;
        let inside = wanted.parse::<Ipv4Addr>().is_ok_and(|ip| u32::from(ip) > base && u32::from(ip) - base < size - 1);
        if !inside {
            let why = "failed to allocate IP ".to_owned() + &wanted + ": the provided IP is not in the valid range";
            return Err(invalid(new, Cause::invalid("spec.clusterIPs", &json!([wanted]), &why)));
        }
        if server.objects.kv.view().get(ip_key(&wanted).as_bytes()).is_some() {
            let why = format!("failed to allocate IP {wanted}: provided IP is already allocated");
            return Err(invalid(new, Cause::invalid("spec.clusterIPs", &json!([wanted]), &why)));
        }
        claim(extra, ip_key(&wanted), &owner(new));
    }
    new["spec"]["clusterIPs"] = json!([new["spec"]["clusterIP"]]);
    Ok(())
}

fn node_ports(server: &ApiServer, new: &mut Value, old: Option<&Value>, extra: &mut Extra) -> Result<(), Status> {
    let had: Vec<i64> =
        old.and_then(|o| o["ports"].as_array()).into_iter().flatten().filter_map(|p| p["nodePort"].as_i64()).collect();
    let owner = owner(new);
    let view = server.objects.kv.view();
    let mut taken = Vec::new();
    for index in 0..new["spec"]["ports"].as_array().map_or(0, Vec::len) {
        let wanted = new["spec"]["ports"][index]["nodePort"].as_i64().unwrap_or(0);
        if wanted != 0 && had.contains(&wanted) {
            continue;
        }
        let field = format!("spec.ports[{index}].nodePort");
        let free = |port: u16| view.get(port_key(port).as_bytes()).is_none();
        let port = if wanted == 0 {
            let mut rng = rand::rng();
            let upper = *NODE_PORTS.start() + 86..=*NODE_PORTS.end();
            (0..TRIES).map(|_| rng.random_range(upper.clone())).find(|p| free(*p) && !taken.contains(p))
        } else {
            let port = u16::try_from(wanted).ok().filter(|p| NODE_PORTS.contains(p)).ok_or_else(|| {
                let why = format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    NODE_PORTS.start(),
                    NODE_PORTS.end()
                );
                invalid(new, Cause::invalid(&field, &json!(wanted), &why))
            })?;
            free(port).then_some(port)
        };
        let Some(port) = port else {
            return Err(invalid(new, Cause::invalid(&field, &json!(wanted), "provided port is already allocated")));
        };
        taken.push(port);
        claim(extra, port_key(port), &owner);
        new["spec"]["ports"][index]["nodePort"] = port.into();
    }
    Ok(())
}

/// What a deleted Service gives back.
pub fn release(def: &ResourceDef, object: &Value) -> Extra {
    let mut extra = Extra::default();
    if def.plural == "services" && def.group.is_empty() {
        let mut free = |key: String| {
            extra.ops.push(Op::Delete(DeleteRequest { range: KeyRange::Key(key.into()), prev_kv: false }))
        };
        if let Some(ip) = object["spec"]["clusterIP"].as_str().filter(|ip| !ip.is_empty() && *ip != "None") {
            free(ip_key(ip));
        }
        for port in object["spec"]["ports"].as_array().into_iter().flatten().filter_map(|p| p["nodePort"].as_u64()) {
            free(port_key(port as u16));
        }
    }
    extra
}

/// First address and size of an IPv4 range.
fn range(cidr: &str) -> Result<(u32, u32), Status> {
    let parsed =
        cidr.split_once('/').and_then(|(ip, bits)| Some((ip.parse::<Ipv4Addr>().ok()?, bits.parse::<u32>().ok()?)));
    match parsed {
        Some((ip, bits)) if (8..=28).contains(&bits) => {
            let size = 1_u32 << (32 - bits);
            Ok((u32::from(ip) & !(size - 1), size))
        }
        _ => Err(Status::internal(&format!("the service CIDR {cidr:?} is not an IPv4 range between /8 and /28"))),
    }
}
