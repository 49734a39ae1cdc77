//! Services.

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::{has, items, meta, networking, text};
use crate::shown;

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
/// Longest session affinity, seconds.
const MAX_AFFINITY_SECONDS: i64 = 86_400;

/// Annotations that say the same thing twice, and that are ranges of sources.
const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const MODE: &str = "service.kubernetes.io/topology-mode";
const RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// A Service, or a change of it. What needs the allocators is checked with them.
pub fn validate(subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    if subresource == "status" {
        return load_balancer_status(new, p);
    }
    if let Some(old) = old {
        update(new, old, p);
    }
    let (spec, annotations) = (&new["spec"], &new["metadata"]["annotations"]);
    if has(annotations, MODE) && has(annotations, HINTS) && annotations[MODE] != annotations[HINTS] {
        let why = format!("must match annotations[{HINTS}] when both are specified");
        p.invalid(format!("metadata.annotations[{MODE}]"), &annotations[MODE], &why);
    }
    kinds(spec, p);
    ports(spec, p);
    meta::labels(&spec["selector"], "spec.selector", p);
    match text(spec, "sessionAffinity") {
        "" => p.required("spec.sessionAffinity", ""),
        _ => p.one_of("spec.sessionAffinity", &spec["sessionAffinity"], &["ClientIP", "None"]),
    }
    affinity_config(spec, p);
    cluster_ips(spec, p);
    for (index, address) in items(&spec["externalIPs"]).enumerate() {
        let (field, before) = (format!("spec.externalIPs[{index}]"), p.0.len());
        networking::ip(address, &field, p);
        if p.0.len() == before {
            networking::not_special(address, &field, p);
        }
    }
    match text(spec, "type") {
        "" => p.required("spec.type", ""),
        _ => p.one_of("spec.type", &spec["type"], TYPES),
    }
    port_numbers(spec, p);
    source_ranges(spec, annotations, p);
    load_balancer(spec, p);
    balancer_class(spec, p);
    traffic(spec, p);
}

/// From where a load balancer takes traffic: the field, or without it the annotation.
fn source_ranges(spec: &Value, annotations: &Value, p: &mut Problems) {
    const WHY: &str = "may only be used when `type` is 'LoadBalancer'";
    let balanced = text(spec, "type") == "LoadBalancer";
    if items(&spec["loadBalancerSourceRanges"]).next().is_some() {
        let field = "spec.LoadBalancerSourceRanges";
        if !balanced {
            p.forbidden(field, WHY);
        }
        for (index, range) in items(&spec["loadBalancerSourceRanges"]).enumerate() {
            let trimmed = json!(range.as_str().unwrap_or_default().trim());
            networking::cidr(&trimmed, &format!("{field}[{index}]"), p);
        }
    } else if let Some(ranges) = annotations[RANGES].as_str() {
        let field = format!("metadata.annotations[{RANGES}]");
        if !balanced {
            p.forbidden(&field, WHY);
        }
        for range in ranges.split(',').map(str::trim).filter(|_| !ranges.trim().is_empty()) {
            networking::cidr(&json!(range), &field, p);
        }
    }
}

fn load_balancer_status(new: &Value, p: &mut Problems) {
    let list = &new["status"]["loadBalancer"]["ingress"];
    if text(&new["spec"], "type") != "LoadBalancer" && items(list).next().is_some() {
        p.forbidden("status.loadBalancer.ingress", "may only be used when `spec.type` is 'LoadBalancer'");
        return;
    }
    for (index, entry) in items(list).enumerate() {
        let at = format!("status.loadBalancer.ingress[{index}]");
        let has_ip = !text(entry, "ip").is_empty();
        if has_ip {
            networking::ip(&entry["ip"], &format!("{at}.ip"), p);
        }
        match (has(entry, "ipMode"), has_ip) {
            (false, true) => p.required(format!("{at}.ipMode"), "must be specified when `ip` is set"),
            (true, false) => p.forbidden(format!("{at}.ipMode"), "may not be specified when `ip` is not set"),
            (true, true) => p.one_of(format!("{at}.ipMode"), &entry["ipMode"], &["Proxy", "VIP"]),
            (false, false) => {}
        }
        if !text(entry, "hostname").is_empty() {
            p.subdomain(format!("{at}.hostname"), &entry["hostname"]);
            if text(entry, "hostname").parse::<std::net::IpAddr>().is_ok() {
                let why = "must be a DNS name, not an IP address";
                p.invalid(format!("{at}.hostname"), &entry["hostname"], why);
            }
        }
    }
}

fn kinds(spec: &Value, p: &mut Problems) {
    let kind = text(spec, "type");
    let any_port = items(&spec["ports"]).next().is_some();
    if !any_port && spec["clusterIP"] != "None" && kind != "ExternalName" {
        p.required("spec.ports", "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if spec["clusterIP"] == "None" => {
            let why = format!("may not be set to 'None' for {kind} services");
            p.invalid("spec.clusterIPs[0]", &json!("None"), &why);
        }
        "ExternalName" => external_name(spec, p),
        _ => {}
    }
}

/// Ports of nodes only where there are some, and no port twice.
fn port_numbers(spec: &Value, p: &mut Problems) {
    let node_port = |port: &Value| port["nodePort"].as_i64().unwrap_or(0);
    let within = text(spec, "type") == "ClusterIP";
    for (index, _) in items(&spec["ports"]).enumerate().filter(|(_, port)| within && node_port(port) != 0) {
        p.forbidden(format!("spec.ports[{index}].nodePort"), "may not be used when `type` is 'ClusterIP'");
    }
    let mut seen = Vec::new();
    for (index, port) in items(&spec["ports"]).enumerate().filter(|(_, port)| node_port(port) != 0) {
        let key = (node_port(port), text(port, "protocol"));
        if seen.contains(&key) {
            p.duplicate(format!("spec.ports[{index}].nodePort"), &port["nodePort"]);
        }
        seen.push(key);
    }
    let mut seen = Vec::new();
    for (index, port) in items(&spec["ports"]).enumerate() {
        let key = (&port["port"], text(port, "protocol"));
        if seen.contains(&key) {
            let shown = json!({"protocol": text(port, "protocol"), "port": port["port"]});
            p.duplicate_shown(format!("spec.ports[{index}]"), &shown::compact("ServicePort", &shown));
        }
        seen.push(key);
    }
}

fn external_name(spec: &Value, p: &mut Problems) {
    for field in ["clusterIPs", "ipFamilies"] {
        if items(&spec[field]).next().is_some() {
            p.forbidden(format!("spec.{field}"), "may not be set for ExternalName services");
        }
    }
    if has(spec, "ipFamilyPolicy") {
        p.forbidden("spec.ipFamilyPolicy", "may not be set for ExternalName services");
    }
    // Who means it to be whole may end it with a dot.
    let name = text(spec, "externalName");
    match name.strip_suffix('.').unwrap_or(name) {
        "" => p.required("spec.externalName", ""),
        name => p.subdomain("spec.externalName", &json!(name)),
    }
}

fn ports(spec: &Value, p: &mut Problems) {
    let list: Vec<&Value> = items(&spec["ports"]).collect();
    let mut seen_names: Vec<&str> = Vec::new();
    for (index, port) in list.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        let name = text(port, "name");
        if name.is_empty() {
            if list.len() > 1 {
                p.required(format!("{at}.name"), "");
            }
        } else {
            p.label(format!("{at}.name"), &port["name"]);
            if seen_names.contains(&name) {
                p.duplicate(format!("{at}.name"), &port["name"]);
            }
            seen_names.push(name);
        }
        p.port(format!("{at}.port"), &port["port"]);
        match text(port, "protocol") {
            "" => p.required(format!("{at}.protocol"), ""),
            _ => p.one_of(format!("{at}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]),
        }
        p.port_or_name(&format!("{at}.targetPort"), &port["targetPort"]);
        if has(port, "appProtocol") {
            p.qualified_name(&format!("{at}.appProtocol"), text(port, "appProtocol"));
        }
    }
}

fn affinity_config(spec: &Value, p: &mut Problems) {
    let config = &spec["sessionAffinityConfig"];
    match text(spec, "sessionAffinity") {
        "ClientIP" => {
            let why = "when session affinity type is ClientIP";
            let (at, client) = ("spec.sessionAffinityConfig", &config["clientIP"]);
            if config.is_null() {
                p.required(at, why);
            } else if client.is_null() {
                p.required(format!("{at}.clientIP"), why);
            } else if client["timeoutSeconds"].is_null() {
                p.required(format!("{at}.clientIP.timeoutSeconds"), why);
            } else if !client["timeoutSeconds"].as_i64().is_some_and(|s| (1..=MAX_AFFINITY_SECONDS).contains(&s)) {
                let why = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
                p.invalid(format!("{at}.clientIP.timeoutSeconds"), &client["timeoutSeconds"], &why);
            }
        }
        "None" if !config.is_null() => {
            p.forbidden("spec.sessionAffinityConfig", "must not be set when session affinity is None");
        }
        _ => {}
    }
}

/// Problems of addresses and families, which are looked at before any are given out.
pub fn address_problems(spec: &Value) -> Vec<crate::status::Cause> {
    let mut problems = Problems::default();
    cluster_ips(spec, &mut problems);
    problems.0
}

fn cluster_ips(spec: &Value, p: &mut Problems) {
    if text(spec, "type") == "ExternalName" {
        return;
    }
    let ips: Vec<&Value> = items(&spec["clusterIPs"]).collect();
    let families: Vec<&Value> = items(&spec["ipFamilies"]).collect();
    let field = "spec.clusterIPs";
    match (text(spec, "clusterIP"), ips.first()) {
        ("", Some(_)) => p.invalid(field, &spec["clusterIPs"], "must be empty when `clusterIP` is not specified"),
        ("", None) => {}
        (_, None) => p.required(field, ""),
        (own, Some(first)) if **first != *own => {
            p.invalid(field, &spec["clusterIPs"], "first value must match `clusterIP`");
        }
        _ => {}
    }
    for (index, family) in families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        p.one_of(&field, family, &["IPv4", "IPv6"]);
        if families[..index].contains(family) {
            p.duplicate(field, family);
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    p.one_of_if_set("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], &policies);
    let mut bad = false;
    for (index, ip) in ips.iter().enumerate() {
        if index == 0 && **ip == "None" {
            if ips.len() > 1 {
                bad = true;
                p.invalid(field, &spec["clusterIPs"], "'None' must be the first and only value");
            }
        } else if let Some(why) = networking::ip_problem(ip.as_str().unwrap_or_default()) {
            bad = true;
            p.invalid(format!("{field}[{index}]"), ip, why);
        }
    }
    if ips.len() > 2 {
        p.invalid(field, &spec["clusterIPs"], "may only hold up to 2 values");
    }
    if bad {
        return;
    }
    let is_six = |ip: &Value| ip.as_str().unwrap_or_default().contains(':');
    if ips.len() > 1 && (ips.iter().all(|ip| is_six(ip)) || !ips.iter().any(|ip| is_six(ip))) {
        p.invalid(field, &spec["clusterIPs"], "may specify no more than one IP for each IP family");
    }
    if ips.first().is_some_and(|ip| **ip == "None") {
        return;
    }
    for (index, (ip, family)) in ips.iter().zip(&families).enumerate() {
        let wrong = if is_six(ip) { "IPv4" } else { "IPv6" };
        if **family == wrong {
            let why = format!("expected an {wrong} value as indicated by `ipFamilies[{index}]`");
            p.invalid(format!("{field}[{index}]"), ip, &why);
        }
    }
}

fn load_balancer(spec: &Value, p: &mut Problems) {
    let kind = text(spec, "type");
    if kind != "LoadBalancer" {
        if has(spec, "allocateLoadBalancerNodePorts") {
            let why = "may only be used when `type` is 'LoadBalancer'";
            p.forbidden("spec.allocateLoadBalancerNodePorts", why);
        }
        return;
    }
    if !has(spec, "allocateLoadBalancerNodePorts") {
        p.required("allocateLoadBalancerNodePorts", "");
    }
}

/// Who balances.
fn balancer_class(spec: &Value, p: &mut Problems) {
    let field = "spec.loadBalancerClass";
    if !has(spec, "loadBalancerClass") {
    } else if text(spec, "type") == "LoadBalancer" {
        p.qualified_name(field, text(spec, "loadBalancerClass"));
    } else {
        p.forbidden(field, "may only be used when `type` is 'LoadBalancer'");
    }
}

/// Whether traffic comes from outside.
pub fn is_external(spec: &Value) -> bool {
    matches!(text(spec, "type"), "LoadBalancer" | "NodePort")
        || text(spec, "type") == "ClusterIP" && items(&spec["externalIPs"]).next().is_some()
}

/// Whether a health check port is needed.
pub fn needs_health_check(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

fn traffic(spec: &Value, p: &mut Problems) {
    let external = &spec["externalTrafficPolicy"];
    if is_external(spec) {
        match external.as_str().unwrap_or_default() {
            "" => p.required("spec.externalTrafficPolicy", ""),
            _ => p.one_of("spec.externalTrafficPolicy", external, &["Cluster", "Local"]),
        }
    } else if has(spec, "externalTrafficPolicy") {
        p.invalid("spec.externalTrafficPolicy", external, "may only be set for externally-accessible services");
    }
    let health = spec["healthCheckNodePort"].as_i64().unwrap_or(0);
    if health != 0 && needs_health_check(spec) {
        p.port("spec.healthCheckNodePort", &json!(health));
    }
    if health != 0 && !needs_health_check(spec) {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        p.invalid("spec.healthCheckNodePort", &json!(health), why);
    }
    if has(spec, "internalTrafficPolicy") {
        p.one_of("spec.internalTrafficPolicy", &spec["internalTrafficPolicy"], &["Cluster", "Local"]);
    } else if matches!(text(spec, "type"), "ClusterIP" | "NodePort" | "LoadBalancer") {
        p.required("spec.internalTrafficPolicy", "");
    }
    if has(spec, "trafficDistribution") {
        let known = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        p.one_of("spec.trafficDistribution", &or_empty(&spec["trafficDistribution"]), &known);
    }
}

fn update(new: &Value, old: &Value, p: &mut Problems) {
    let (spec, before) = (&new["spec"], &old["spec"]);
    if text(before, "type") != "ExternalName" && text(spec, "type") != "ExternalName" {
        addresses_update(spec, before, p);
        families_update(spec, before, p);
    }
    let balanced = |spec: &Value| text(spec, "type") == "LoadBalancer";
    if balanced(spec) && balanced(before) && spec["loadBalancerClass"] != before["loadBalancerClass"] {
        p.invalid("spec.loadBalancerClass", &spec["loadBalancerClass"], "may not change once set");
    }
    // An update is looked at by two, who both look at this.
    balancer_class(spec, p);
    if needs_health_check(spec)
        && needs_health_check(before)
        && spec["healthCheckNodePort"] != before["healthCheckNodePort"]
    {
        p.forbidden("spec.healthCheckNodePort", "field is immutable");
    }
}

/// The addresses of a Service stay; a second may come, and may go if the Service says that it has one family.
fn addresses_update(spec: &Value, before: &Value, p: &mut Problems) {
    const CHANGED: &str = "may not change once set";
    let field = "spec.clusterIPs";
    let headless = |spec: &Value| spec["clusterIPs"] == json!(["None"]);
    if headless(spec) && headless(before) {
        return;
    }
    let (new, old): (Vec<&Value>, Vec<&Value>) =
        (items(&spec["clusterIPs"]).collect(), items(&before["clusterIPs"]).collect());
    let shown = &spec["clusterIPs"];
    if new.len() == old.len() {
        for (index, _) in old.iter().zip(&new).enumerate().filter(|(_, (old, new))| old != new) {
            p.invalid(format!("{field}[{index}]"), shown, CHANGED);
        }
        return;
    }
    if !old.is_empty() && new.is_empty() {
        p.invalid(format!("{field}[0]"), shown, "primary clusterIP can not be unset");
    }
    if !old.is_empty() && !new.is_empty() && new[0] != old[0] {
        p.invalid(format!("{field}[0]"), shown, CHANGED);
    }
    if old.len() > 1 && new.len() == 1 && spec["ipFamilyPolicy"] != "SingleStack" {
        let why = "must be set to 'SingleStack' when releasing the secondary clusterIP";
        p.invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], why);
    }
}

fn families_update(spec: &Value, before: &Value, p: &mut Problems) {
    const CHANGED: &str = "may not change once set";
    let field = "spec.ipFamilies[0]";
    let headless = |spec: &Value| spec["clusterIPs"] == json!(["None"]);
    if headless(spec) || headless(before) {
        return;
    }
    let (new, old): (Vec<&Value>, Vec<&Value>) =
        (items(&spec["ipFamilies"]).collect(), items(&before["ipFamilies"]).collect());
    if new.len() == old.len() {
        for _ in old.iter().zip(&new).filter(|(old, new)| old != new) {
            p.invalid(field, &spec["ipFamilies"], CHANGED);
        }
        return;
    }
    if new.len() < old.len() && items(&spec["clusterIPs"]).next().is_none() {
        p.invalid(field, &spec["ipFamilies"], "primary ipFamily can not be unset");
    }
    if !old.is_empty() && !new.is_empty() && new[0] != old[0] {
        p.invalid(field, &spec["clusterIPs"], CHANGED);
    }
    if old.len() > 1 && new.len() == 1 && spec["ipFamilyPolicy"] != "SingleStack" {
        let why = "must be set to 'SingleStack' when releasing the secondary ipFamily";
        p.invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], why);
    }
}
