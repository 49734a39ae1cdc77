//! Addresses, and the kinds of the networking and discovery groups.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::{has, items, meta, selectors, text};
use crate::names;
use crate::shown;

const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NOT_A_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
/// Limits of an EndpointSlice.
const MAX_ENDPOINTS: usize = 1000;
const MAX_ENDPOINT_ADDRESSES: usize = 100;
const MAX_SLICE_PORTS: usize = 20_000;
const MAX_ZONE_HINTS: usize = 8;
const MAX_NODE_HINTS: usize = 8;
const MAX_TOPOLOGY_LABELS: usize = 16;

/// An object of one of the groups, or a change of it.
pub fn validate(plural: &str, subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    match plural {
        "ingresses" if subresource == "status" => ingress_status(&new["status"]["loadBalancer"]["ingress"], p),
        "servicecidrs" if subresource == "status" => {
            meta::conditions(&new["status"]["conditions"], "status.conditions", p);
        }
        "ingresses" => ingress(new, old, p),
        "ingressclasses" => ingress_class(new, old, p),
        "networkpolicies" => network_policy(&new["spec"], p),
        "ipaddresses" => ip_address(new, old, p),
        "servicecidrs" => service_cidr(new, old, p),
        "endpointslices" => endpoint_slice(new, old, p),
        _ => {}
    }
}

/// What is wrong with an address, if anything is: leading zeros are refused, which some readers take for octal, and so
/// are addresses of one family written as the other's.
pub fn ip_problem(text: &str) -> Option<&'static str> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => Some("must not be an IPv4-mapped IPv6 address"),
        Ok(_) => None,
        Err(_) if without_zeros(text).is_some() => Some("must not have leading 0s"),
        Err(_) => Some(NOT_AN_IP),
    }
}

/// An IPv4 address without the zeros in front of its numbers, if it is one then.
fn without_zeros(text: &str) -> Option<Ipv4Addr> {
    let zeros = text.split('.').map(|part| part.trim_start_matches('0'));
    let stripped: Vec<&str> = zeros.map(|part| if part.is_empty() { "0" } else { part }).collect();
    let good = text.split('.').all(|part| !part.is_empty());
    good.then(|| stripped.join(".").parse().ok()).flatten()
}

/// An address as it was read before the zeros in front of numbers were refused.
pub fn loose_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| without_zeros(text).map(IpAddr::V4))
}

/// A range of addresses as it was read before its form was looked at closely.
pub fn loose_cidr(text: &str) -> Option<(IpAddr, u32)> {
    let (ip, bits) = text.split_once('/')?;
    let digits = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
    let (ip, bits) = (loose_ip(ip)?, digits.then(|| bits.parse().ok()).flatten()?);
    (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, bits))
}

/// Whether addresses are all good and of both families; else which one is not good.
pub fn is_dual_stack(list: &[&str]) -> Result<bool, String> {
    let mut seen = [false; 2];
    for (index, text) in list.iter().enumerate() {
        let ip = loose_ip(text).ok_or_else(|| format!("invalid IP[{index}]: {text}"))?;
        seen[usize::from(family_of(ip) == 6)] = true;
    }
    Ok(seen == [true; 2])
}

/// 4 or 6; an address of the one family written as one of the other is of the first.
fn family_of(ip: IpAddr) -> u8 {
    if ip.to_canonical().is_ipv4() { 4 } else { 6 }
}

/// An address.
pub fn ip(value: &Value, field: &str, p: &mut Problems) {
    if let Some(why) = ip_problem(value.as_str().unwrap_or_default()) {
        p.invalid(field, value, why);
    }
}

/// What is wrong with a range of addresses, if anything is.
pub fn cidr_problem(text: &str) -> Option<&'static str> {
    const ZEROS: &str = "must not have leading 0s in IP or prefix length";
    let (ip, bits) = text.split_once('/')?;
    let padded = bits.len() > 1 && bits.starts_with('0');
    match parse_cidr(text) {
        Some(_) if padded => Some(ZEROS),
        Some((IpAddr::V6(ip), _)) if ip.to_ipv4_mapped().is_some() => Some("must not have an IPv4-mapped IPv6 address"),
        Some((ip, bits)) if !is_network(ip, bits) => Some("must not have bits set beyond the prefix length"),
        Some(_) => None,
        None if without_zeros(ip).is_some() && bits.parse::<u32>().is_ok_and(|b| b <= 32) => Some(ZEROS),
        None => Some(NOT_A_CIDR),
    }
}

/// A range of addresses.
pub fn cidr(value: &Value, field: &str, p: &mut Problems) {
    let text = value.as_str().unwrap_or_default();
    let problem = if text.contains('/') { cidr_problem(text) } else { Some(NOT_A_CIDR) };
    if let Some(why) = problem {
        p.invalid(field, value, why);
    }
}

/// Address and length of a range.
pub fn parse_cidr(text: &str) -> Option<(IpAddr, u32)> {
    let (ip, bits) = text.split_once('/')?;
    let digits = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
    let (ip, bits): (IpAddr, u32) = (ip.parse().ok()?, digits.then(|| bits.parse().ok()).flatten()?);
    (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, bits))
}

fn is_network(ip: IpAddr, bits: u32) -> bool {
    match ip {
        IpAddr::V4(ip) => bits == 32 || u32::from(ip) << bits == 0,
        IpAddr::V6(ip) => bits == 128 || u128::from(ip) << bits == 0,
    }
}

/// Addresses that never leave a host or a link are not endpoints.
pub fn not_special(value: &Value, field: &str, p: &mut Problems) {
    let Some(ip) = loose_ip(value.as_str().unwrap_or_default()).map(|ip| ip.to_canonical()) else { return };
    let v6 = |prefix: u16, mask: u16| matches!(ip, IpAddr::V6(ip) if ip.segments()[0] & mask == prefix);
    let v4_multicast = matches!(ip, IpAddr::V4(ip) if ip.octets()[..3] == [224, 0, 0]);
    if ip.is_unspecified() {
        p.invalid(field, value, &format!("may not be unspecified ({})", value.as_str().unwrap_or_default()));
    }
    if ip.is_loopback() {
        p.invalid(field, value, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if matches!(ip, IpAddr::V4(ip) if ip.is_link_local()) || v6(0xfe80, 0xffc0) {
        p.invalid(field, value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if v4_multicast || v6(0xff02, 0xffff) {
        p.invalid(field, value, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

fn ingress(new: &Value, old: Option<&Value>, p: &mut Problems) {
    let spec = &new["spec"];
    if items(&spec["rules"]).next().is_none() && !has(spec, "defaultBackend") {
        p.invalid("spec", &spec["rules"], "either `defaultBackend` or `rules` must be specified");
    }
    if has(spec, "defaultBackend") {
        backend(&spec["defaultBackend"], "spec.defaultBackend", p);
    }
    for (index, rule) in items(&spec["rules"]).enumerate() {
        let at = format!("spec.rules[{index}]");
        host(&rule["host"], &format!("{at}.host"), p);
        if has(rule, "http") {
            paths(&rule["http"], &format!("{at}.http.paths"), p);
        }
    }
    for (index, tls) in items(&spec["tls"]).enumerate() {
        for (i, name) in items(&tls["hosts"]).enumerate() {
            let field = format!("spec.tls[{index}].hosts[{i}]");
            let host = name.as_str().unwrap_or_default();
            if host.contains('*') {
                p.named(field, name, names::wildcard_subdomain(host));
            } else {
                p.subdomain(field, name);
            }
        }
        if !text(tls, "secretName").is_empty() {
            p.subdomain(format!("spec.tls[{index}].secretName"), &tls["secretName"]);
        }
    }
    let class = &spec["ingressClassName"];
    if has(spec, "ingressClassName") {
        p.subdomain("spec.ingressClassName", class);
        let annotation = "kubernetes.io/ingress.class";
        let given = &new["metadata"]["annotations"][annotation];
        if old.is_none() && !given.is_null() && given != class {
            let why = "must match `ingressClassName` when both are specified";
            p.invalid(format!("annotations.{annotation}"), given, why);
        }
    }
}

/// Where an Ingress is reached.
fn ingress_status(list: &Value, p: &mut Problems) {
    for (index, entry) in items(list).enumerate() {
        let at = format!("status.loadBalancer.ingress[{index}]");
        if !text(entry, "ip").is_empty() {
            ip(&entry["ip"], &format!("{at}.ip"), p);
        }
        if !text(entry, "hostname").is_empty() {
            p.subdomain(format!("{at}.hostname"), &entry["hostname"]);
            if text(entry, "hostname").parse::<IpAddr>().is_ok() {
                let why = "must be a DNS name, not an IP address";
                p.invalid(format!("{at}.hostname"), &entry["hostname"], why);
            }
        }
    }
}

fn host(value: &Value, field: &str, p: &mut Problems) {
    let name = value.as_str().unwrap_or_default();
    if name.is_empty() {
        return;
    }
    if name.parse::<IpAddr>().is_ok() || without_zeros(name).is_some() {
        p.invalid(field, value, "must be a DNS name, not an IP address");
    }
    if name.contains('*') {
        p.named(field, value, names::wildcard_subdomain(name));
    } else {
        p.subdomain(field, value);
    }
}

fn paths(http: &Value, path: &str, p: &mut Problems) {
    if items(&http["paths"]).next().is_none() {
        p.required(path, "");
    }
    for (index, entry) in items(&http["paths"]).enumerate() {
        let at = format!("{path}[{index}]");
        let value = text(entry, "path");
        if !has(entry, "pathType") {
            // Nothing else is looked at then.
            p.required(format!("{at}.pathType"), "pathType must be specified");
            continue;
        }
        match text(entry, "pathType") {
            "Exact" | "Prefix" => {
                if !value.starts_with('/') {
                    p.invalid(format!("{at}.path"), &or_empty(&entry["path"]), "must be an absolute path");
                }
                for part in ["//", "/./", "/../", "%2f", "%2F"] {
                    if value.contains(part) {
                        p.invalid(format!("{at}.path"), &entry["path"], &format!("must not contain '{part}'"));
                    }
                }
                for end in ["/..", "/."] {
                    if value.ends_with(end) {
                        p.invalid(format!("{at}.path"), &entry["path"], &format!("cannot end with '{end}'"));
                    }
                }
            }
            "ImplementationSpecific" => {
                if !value.is_empty() && !value.starts_with('/') {
                    p.invalid(format!("{at}.path"), &entry["path"], "must be an absolute path");
                }
            }
            _ => {
                let types = ["Exact", "ImplementationSpecific", "Prefix"];
                p.not_supported(format!("{at}.pathType"), &entry["pathType"], &types);
            }
        }
        backend(&entry["backend"], &format!("{at}.backend"), p);
    }
}

fn backend(backend: &Value, at: &str, p: &mut Problems) {
    match (has(backend, "resource"), has(backend, "service")) {
        (true, true) => p.invalid(at, &json!(""), "cannot set both resource and service backends"),
        (true, false) => {
            let resource = &backend["resource"];
            local_reference(resource, &format!("{at}.resource"), p);
        }
        (false, true) => {
            let service = &backend["service"];
            if p.present(service, "name", &format!("{at}.service")) {
                p.named(format!("{at}.service.name"), &service["name"], names::dns_label(text(service, "name")));
            }
            let (name, number) = (text(&service["port"], "name"), service["port"]["number"].as_i64().unwrap_or(0));
            match (name.is_empty(), number != 0) {
                (false, true) => p.invalid(at, &json!(""), "cannot set both port name & port number"),
                (false, false) => {
                    for problem in names::port_name_problems(name) {
                        p.invalid(format!("{at}.service.port.name"), &service["port"]["name"], &problem);
                    }
                }
                (true, true) => p.port(format!("{at}.service.port.number"), &service["port"]["number"]),
                (true, false) => p.required(at, "port name or number is required"),
            }
        }
        (false, false) => p.invalid(at, &json!(""), "resource or service backend is required"),
    }
}

/// A reference to an object by its kind and name.
fn local_reference(reference: &Value, at: &str, p: &mut Problems) {
    if has(reference, "apiGroup") {
        p.subdomain(format!("{at}.apiGroup"), &reference["apiGroup"]);
    }
    for field in ["kind", "name"] {
        if text(reference, field).is_empty() {
            p.required(format!("{at}.{field}"), "");
        } else {
            p.named(format!("{at}.{field}"), &reference[field], names::path_segment(text(reference, field)));
        }
    }
}

fn ingress_class(new: &Value, old: Option<&Value>, p: &mut Problems) {
    let spec = &new["spec"];
    if text(spec, "controller").len() > 250 {
        p.too_long("spec.controller", 250);
    }
    super::batch::domain_path(&or_empty(&spec["controller"]), "spec.controller", p);
    if let Some(old) = old {
        p.immutable("spec.controller", &spec["controller"], &old["spec"]["controller"]);
    }
    let parameters = &spec["parameters"];
    if !parameters.is_object() {
        return;
    }
    local_reference(parameters, "spec.parameters", p);
    match text(parameters, "scope") {
        "Cluster" if has(parameters, "namespace") => {
            p.forbidden("spec.parameters.namespace", "`parameters.scope` is set to 'Cluster'");
        }
        "Namespace" if !has(parameters, "namespace") => {
            p.required("spec.parameters.namespace", "`parameters.scope` is set to 'Namespace'");
        }
        "Namespace" => p.label("spec.parameters.namespace", &parameters["namespace"]),
        "Cluster" => {}
        _ if !has(parameters, "scope") => p.required("spec.parameters.scope", ""),
        _ => p.one_of("spec.parameters.scope", &parameters["scope"], &["Cluster", "Namespace"]),
    }
}

fn network_policy(spec: &Value, p: &mut Problems) {
    selectors::label_selector(&spec["podSelector"], "spec.podSelector", p);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in items(&spec[direction]).enumerate() {
            let at = format!("spec.{direction}[{index}]");
            for (i, port) in items(&rule["ports"]).enumerate() {
                policy_port(port, &format!("{at}.ports[{i}]"), p);
            }
            for (i, peer) in items(&rule[peers]).enumerate() {
                policy_peer(peer, &format!("{at}.{peers}[{i}]"), p);
            }
        }
    }
    let types: Vec<&Value> = items(&spec["policyTypes"]).collect();
    if types.len() > 2 {
        p.invalid("spec.policyTypes", &spec["policyTypes"], "may not specify more than two policyTypes");
        return;
    }
    for (index, kind) in types.iter().enumerate() {
        p.one_of(format!("spec.policyTypes[{index}]"), kind, &["Ingress", "Egress"]);
    }
}

fn policy_port(port: &Value, at: &str, p: &mut Problems) {
    p.one_of_if_set(format!("{at}.protocol"), &port["protocol"], &["TCP", "UDP", "SCTP"]);
    let end = &port["endPort"];
    match &port["port"] {
        Value::Null => {
            if !end.is_null() {
                p.invalid(format!("{at}.endPort"), end, "may not be specified when `port` is not specified");
            }
        }
        Value::String(_) => {
            p.port_or_name(&format!("{at}.port"), &port["port"]);
            if !end.is_null() {
                p.invalid(format!("{at}.endPort"), end, "may not be specified when `port` is non-numeric");
            }
        }
        number => {
            p.port(format!("{at}.port"), number);
            if end.as_i64().is_some_and(|end| end < number.as_i64().unwrap_or(0)) {
                // Upstream shows the port here.
                p.invalid(format!("{at}.endPort"), number, "must be greater than or equal to `port`");
            }
            if !end.is_null() {
                p.port(format!("{at}.endPort"), end);
            }
        }
    }
}

fn policy_peer(peer: &Value, at: &str, p: &mut Problems) {
    let mut count = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if has(peer, field) {
            count += 1;
            selectors::label_selector(&peer[field], &format!("{at}.{field}"), p);
        }
    }
    if has(peer, "ipBlock") {
        if count > 0 {
            p.forbidden(at, "may not specify both ipBlock and another peer");
        }
        count += 1;
        ip_block(&peer["ipBlock"], &format!("{at}.ipBlock"), p);
    }
    if count == 0 {
        p.required(at, "must specify a peer");
    }
}

fn ip_block(block: &Value, at: &str, p: &mut Problems) {
    if text(block, "cidr").is_empty() {
        return p.required(format!("{at}.cidr"), "");
    }
    cidr(&block["cidr"], &format!("{at}.cidr"), p);
    let Some((base, bits)) = parse_cidr(text(block, "cidr")) else { return };
    for (index, except) in items(&block["except"]).enumerate() {
        let field = format!("{at}.except[{index}]");
        cidr(except, &field, p);
        match parse_cidr(except.as_str().unwrap_or_default()) {
            None => {}
            Some((ip, inner)) if inner <= bits || !contains(base, bits, ip) => {
                p.invalid(field, except, "must be a strict subset of `cidr`");
            }
            Some(_) => {}
        }
    }
}

fn contains(base: IpAddr, bits: u32, ip: IpAddr) -> bool {
    match (base, ip) {
        (IpAddr::V4(base), IpAddr::V4(ip)) => bits == 0 || (u32::from(base) ^ u32::from(ip)) >> (32 - bits) == 0,
        (IpAddr::V6(base), IpAddr::V6(ip)) => bits == 0 || (u128::from(base) ^ u128::from(ip)) >> (128 - bits) == 0,
        _ => false,
    }
}

fn ip_address(new: &Value, old: Option<&Value>, p: &mut Problems) {
    if old.is_none() {
        let name = &new["metadata"]["name"];
        let before = p.0.len();
        ip(name, "metadata.name", p);
        if let Ok(ip) = name.as_str().unwrap_or_default().parse::<IpAddr>() {
            canonical(name, &ip.to_string(), "metadata.name", before, p);
        }
    }
    let reference = &new["spec"]["parentRef"];
    if reference.is_object() {
        if !text(reference, "group").is_empty() {
            p.subdomain("spec.parentRef.group", &reference["group"]);
        }
        for field in ["resource", "name"] {
            if p.present(reference, field, "spec.parentRef") {
                let problem = names::path_segment(text(reference, field));
                p.named(format!("spec.parentRef.{field}"), &reference[field], problem);
            }
        }
        if !text(reference, "namespace").is_empty() {
            let problem = names::path_segment(text(reference, "namespace"));
            p.named("spec.parentRef.namespace", &reference["namespace"], problem);
        }
    } else {
        p.required("spec.parentRef", "");
    }
    if let Some(old) = old
        && old["spec"]["parentRef"] != *reference
    {
        p.invalid_shown("spec.parentRef", &shown::compact("ParentReference", reference), "field is immutable");
    }
}

fn service_cidr(new: &Value, old: Option<&Value>, p: &mut Problems) {
    let list: Vec<&Value> = items(&new["spec"]["cidrs"]).collect();
    let field = "spec.cidrs";
    if let Some(old) = old {
        let before: Vec<&Value> = items(&old["spec"]["cidrs"]).collect();
        // A second family may be added; what was there stays, and is not looked at again.
        let grown = before.len() == 1 && list.len() == 2;
        if before.len() != list.len() && !grown {
            return p.invalid(field, &new["spec"]["cidrs"], "field is immutable");
        }
        for (index, _) in before.iter().zip(&list).enumerate().filter(|(_, (was, is))| was != is) {
            p.invalid(format!("{field}[{index}]"), list[index], "field is immutable");
        }
        if !grown {
            return;
        }
    }
    if list.is_empty() {
        return p.required(field, "at least one CIDR required");
    }
    if list.len() > 2 {
        let shown = shown::compact("ServiceCIDRSpec", &new["spec"]);
        return p.invalid_shown(field, &shown, "may only hold up to 2 values");
    }
    let parsed: Vec<_> = list.iter().map(|c| parse_cidr(c.as_str().unwrap_or_default())).collect();
    let of_both = |one: &Option<(IpAddr, u32)>, other: &Option<(IpAddr, u32)>| {
        one.zip(*other).is_some_and(|((one, _), (other, _))| one.is_ipv4() != other.is_ipv4())
    };
    if let [one, other] = &parsed[..]
        && !of_both(one, other)
    {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        return p.invalid(field, &new["spec"]["cidrs"], why);
    }
    for (index, value) in list.iter().enumerate() {
        let (at, before) = (format!("{field}[{index}]"), p.0.len());
        cidr(value, &at, p);
        if let Some((ip, bits)) = parse_cidr(value.as_str().unwrap_or_default()) {
            canonical(value, &format!("{ip}/{bits}"), &at, before, p);
        }
    }
}

/// An address or a range that nothing was told of since there were `before` problems has one way to be written.
fn canonical(value: &Value, canonical: &str, field: &str, before: usize, p: &mut Problems) {
    if p.0.len() == before && value != canonical {
        p.invalid(field, value, &format!("must be in canonical form ({canonical:?})"));
    }
}

fn endpoint_slice(new: &Value, old: Option<&Value>, p: &mut Problems) {
    let kind = &new["addressType"];
    match kind.as_str().unwrap_or_default() {
        "" => p.required("addressType", ""),
        _ => p.one_of("addressType", kind, &["FQDN", "IPv4", "IPv6"]),
    }
    if let Some(old) = old {
        p.immutable("addressType", kind, &old["addressType"]);
    }
    let endpoints: Vec<&Value> = items(&new["endpoints"]).collect();
    if endpoints.len() > MAX_ENDPOINTS {
        return p.too_many("endpoints", endpoints.len(), MAX_ENDPOINTS);
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        self::endpoint(endpoint, kind.as_str().unwrap_or_default(), &format!("endpoints[{index}]"), p);
    }
    slice_ports(&new["ports"], p);
}

fn endpoint(endpoint: &Value, kind: &str, at: &str, p: &mut Problems) {
    let addresses: Vec<&Value> = items(&endpoint["addresses"]).collect();
    let field = format!("{at}.addresses");
    if addresses.is_empty() {
        p.required(&field, "must contain at least 1 address");
    } else if addresses.len() > MAX_ENDPOINT_ADDRESSES {
        p.too_many(&field, addresses.len(), MAX_ENDPOINT_ADDRESSES);
    }
    for (i, address) in addresses.iter().enumerate() {
        let one = format!("{field}[{i}]");
        let parsed = address.as_str().unwrap_or_default().parse::<IpAddr>();
        match kind {
            "IPv4" | "IPv6" => {
                if let Some(why) = ip_problem(address.as_str().unwrap_or_default()) {
                    p.invalid(&one, address, why);
                } else if parsed.as_ref().is_ok_and(|ip| ip.is_ipv4() != (kind == "IPv4")) {
                    p.invalid(&field, address, &format!("must be an {kind} address"));
                }
                not_special(address, &one, p);
            }
            "FQDN" => domain_name(address, &one, p),
            _ => {}
        }
    }
    if has(endpoint, "nodeName") {
        p.subdomain(format!("{at}.nodeName"), &endpoint["nodeName"]);
    }
    let topology = format!("{at}.deprecatedTopology");
    let count = super::entries(&endpoint["deprecatedTopology"]).count();
    if count > MAX_TOPOLOGY_LABELS {
        p.too_many(&topology, count, MAX_TOPOLOGY_LABELS);
    }
    meta::labels(&endpoint["deprecatedTopology"], &topology, p);
    if has(endpoint, "hostname") {
        p.label(format!("{at}.hostname"), &endpoint["hostname"]);
    }
    let zones: Vec<&Value> = items(&endpoint["hints"]["forZones"]).collect();
    if zones.len() > MAX_ZONE_HINTS {
        p.too_many(format!("{at}.hints.forZones"), zones.len(), MAX_ZONE_HINTS);
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, zone) in zones.iter().enumerate() {
        let field = format!("{at}.hints.forZones[{i}].name");
        if seen.contains(&text(zone, "name")) {
            p.duplicate(&field, &zone["name"]);
        }
        seen.push(text(zone, "name"));
        for problem in names::label_value_problems(text(zone, "name")) {
            p.invalid(&field, &zone["name"], &problem);
        }
    }
    node_hints(&endpoint["hints"]["forNodes"], &format!("{at}.hints.forNodes"), p);
}

fn node_hints(list: &Value, path: &str, p: &mut Problems) {
    let nodes: Vec<&Value> = items(list).collect();
    if nodes.len() > MAX_NODE_HINTS {
        p.too_many(path, nodes.len(), MAX_NODE_HINTS);
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        let field = format!("{path}[{i}].name");
        if seen.contains(&text(node, "name")) {
            p.duplicate(&field, &or_empty(&node["name"]));
        }
        seen.push(text(node, "name"));
        p.subdomain(field, &node["name"]);
    }
}

/// A name in the domain name system of at least two labels; a dot may end it.
fn domain_name(value: &Value, field: &str, p: &mut Problems) {
    let name = value.as_str().unwrap_or_default();
    if name.is_empty() {
        return p.required(field, "");
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let problems = names::subdomain_problems(name);
    if !problems.is_empty() {
        return p.invalid(field, &json!(name), &problems.join(","));
    }
    if !name.contains('.') {
        return p.invalid(field, &json!(name), "should be a domain with at least two segments separated by dots");
    }
    let bad = name.split('.').map(|label| (label, names::label_problems(label))).find(|(_, found)| !found.is_empty());
    if let Some((label, problems)) = bad {
        p.invalid(field, &json!(label), &problems.join(","));
    }
}

fn slice_ports(list: &Value, p: &mut Problems) {
    let ports: Vec<&Value> = items(list).collect();
    if ports.len() > MAX_SLICE_PORTS {
        return p.too_many("ports", ports.len(), MAX_SLICE_PORTS);
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let at = format!("ports[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            p.label(format!("{at}.name"), &port["name"]);
        }
        if seen.contains(&name) {
            p.duplicate(format!("{at}.name"), &or_empty(&port["name"]));
        }
        seen.push(name);
        match &port["protocol"] {
            Value::Null => p.required(format!("{at}.protocol"), ""),
            protocol => p.one_of(format!("{at}.protocol"), protocol, &["SCTP", "TCP", "UDP"]),
        }
        if has(port, "appProtocol") {
            p.qualified_name(&format!("{at}.appProtocol"), text(port, "appProtocol"));
        }
    }
}
