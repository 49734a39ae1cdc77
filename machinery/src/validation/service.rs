//! Services.

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::{has, items, meta, networking, text};
use crate::shown;

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
/// Longest session affinity, seconds.
const MAX_AFFINITY_SECONDS: i64 = 86_400;

/// A Service, or a change of it. What needs the allocators is checked with them.
pub fn validate(subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    if subresource == "status" {
        return load_balancer_status(new, p);
    }
    let spec = &new["spec"];
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
        let field = format!("spec.externalIPs[{index}]");
        networking::ip(address, &field, p);
        networking::not_special(address, &field, p);
    }
    load_balancer(spec, p);
    traffic(spec, p);
    if let Some(old) = old {
        update(new, old, p);
    }
}

fn load_balancer_status(new: &Value, p: &mut Problems) {
    if text(&new["spec"], "type") != "LoadBalancer" && items(&new["status"]["loadBalancer"]["ingress"]).next().is_some()
    {
        p.forbidden("status.loadBalancer.ingress", "may only be used when `spec.type` is 'LoadBalancer'");
    }
    for (index, entry) in items(&new["status"]["loadBalancer"]["ingress"]).enumerate() {
        let at = format!("status.loadBalancer.ingress[{index}]");
        if !text(entry, "ip").is_empty() {
            networking::ip(&entry["ip"], &format!("{at}.ip"), p);
        }
        if !text(entry, "hostname").is_empty() {
            p.subdomain(format!("{at}.hostname"), &entry["hostname"]);
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
        "LoadBalancer" => {
            for (index, port) in items(&spec["ports"]).enumerate() {
                if port["port"] == 10250 {
                    let why = "may not expose port 10250 externally since it is used by kubelet";
                    p.invalid(format!("spec.ports[{index}]"), &port["port"], why);
                }
            }
            if spec["clusterIP"] == "None" {
                p.invalid("spec.clusterIPs[0]", &json!("None"), "may not be set to 'None' for LoadBalancer services");
            }
        }
        "NodePort" if spec["clusterIP"] == "None" => {
            p.invalid("spec.clusterIPs[0]", &json!("None"), "may not be set to 'None' for NodePort services");
        }
        "ExternalName" => external_name(spec, p),
        "ClusterIP" | "NodePort" => {}
        "" => p.required("spec.type", ""),
        _ => p.not_supported("spec.type", &spec["type"], TYPES),
    }
    if !matches!(kind, "NodePort" | "LoadBalancer") {
        for (index, port) in items(&spec["ports"]).enumerate() {
            if port["nodePort"].as_i64().unwrap_or(0) != 0 && kind == "ClusterIP" {
                p.forbidden(format!("spec.ports[{index}].nodePort"), "may not be used when `type` is 'ClusterIP'");
            }
        }
    }
    node_port_duplicates(spec, p);
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
    let name = text(spec, "externalName");
    if name.is_empty() {
        p.required("spec.externalName", "");
    } else {
        let without_dot = name.strip_suffix('.').unwrap_or(name);
        p.named("spec.externalName", &spec["externalName"], crate::names::dns_subdomain(without_dot));
    }
}

fn ports(spec: &Value, p: &mut Problems) {
    let list: Vec<&Value> = items(&spec["ports"]).collect();
    let headless = spec["clusterIP"] == "None";
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
        let _ = headless;
    }
    let key = |port: &Value| (port["port"].clone(), text(port, "protocol").to_owned());
    for (index, port) in list.iter().enumerate() {
        if list[..index].iter().any(|other| key(other) == key(port)) {
            let shown = json!({"protocol": text(port, "protocol"), "port": port["port"]});
            p.duplicate_shown(format!("spec.ports[{index}]"), &shown::compact("ServicePort", &shown));
        }
    }
}

fn node_port_duplicates(spec: &Value, p: &mut Problems) {
    let mut seen = Vec::new();
    for (index, port) in items(&spec["ports"]).enumerate() {
        let number = port["nodePort"].as_i64().unwrap_or(0);
        if number == 0 {
            continue;
        }
        let key = (number, text(port, "protocol"));
        if seen.contains(&key) {
            p.duplicate(format!("spec.ports[{index}].nodePort"), &json!(number));
        }
        seen.push(key);
    }
}

fn affinity_config(spec: &Value, p: &mut Problems) {
    let config = &spec["sessionAffinityConfig"];
    match text(spec, "sessionAffinity") {
        "ClientIP" => {
            let seconds = config["clientIP"]["timeoutSeconds"].as_i64();
            if config.is_null() {
                p.required("spec.sessionAffinityConfig", "when session affinity type is ClientIP");
            } else if !seconds.is_some_and(|s| (1..=MAX_AFFINITY_SECONDS).contains(&s)) {
                let why = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
                let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
                p.invalid(field, &config["clientIP"]["timeoutSeconds"], &why);
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
    for (index, family) in families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        p.one_of(&field, family, &["IPv4", "IPv6"]);
        if families[..index].contains(family) {
            p.duplicate(field, family);
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    p.one_of_if_set("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], &policies);
    if let Some(first) = ips.first()
        && !text(spec, "clusterIP").is_empty()
        && spec["clusterIP"] != **first
    {
        p.invalid("spec.clusterIPs", &spec["clusterIPs"], "first value must match `clusterIP`");
    }
    if ips.len() > 2 {
        p.invalid("spec.clusterIPs", &spec["clusterIPs"], "may only hold up to 2 values");
    }
    for (index, ip) in ips.iter().enumerate() {
        let field = format!("spec.clusterIPs[{index}]");
        if **ip == "None" {
            if ips.len() > 1 {
                p.invalid("spec.clusterIPs", &spec["clusterIPs"], "'None' must be the first and only value");
            }
            continue;
        }
        if let Some(why) = networking::ip_problem(ip.as_str().unwrap_or_default()) {
            p.invalid(&field, ip, why);
            continue;
        }
        let is_six = ip.as_str().unwrap_or_default().contains(':');
        match families.get(index).and_then(|f| f.as_str()) {
            Some("IPv6") if !is_six => {
                p.invalid(field, ip, &format!("expected an IPv6 value as indicated by `ipFamilies[{index}]`"));
            }
            Some("IPv4") if is_six => {
                p.invalid(field, ip, &format!("expected an IPv4 value as indicated by `ipFamilies[{index}]`"));
            }
            _ => {}
        }
    }
}

fn load_balancer(spec: &Value, p: &mut Problems) {
    let kind = text(spec, "type");
    if kind != "LoadBalancer" {
        if items(&spec["loadBalancerSourceRanges"]).next().is_some() {
            p.forbidden("spec.LoadBalancerSourceRanges", "may only be used when `type` is 'LoadBalancer'");
        }
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if has(spec, field) {
                p.forbidden(format!("spec.{field}"), "may only be used when `type` is 'LoadBalancer'");
            }
        }
        return;
    }
    for (index, range) in items(&spec["loadBalancerSourceRanges"]).enumerate() {
        let text = range.as_str().unwrap_or_default().trim();
        if networking::parse_cidr(text).is_none() {
            let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            p.invalid(format!("spec.LoadBalancerSourceRanges[{index}]"), range, why);
        }
    }
    if !has(spec, "allocateLoadBalancerNodePorts") {
        p.required("spec.allocateLoadBalancerNodePorts", "");
    }
    if has(spec, "loadBalancerClass") {
        p.qualified_name("spec.loadBalancerClass", text(spec, "loadBalancerClass"));
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
    if has(spec, "internalTrafficPolicy") {
        p.one_of("spec.internalTrafficPolicy", &spec["internalTrafficPolicy"], &["Cluster", "Local"]);
    } else if matches!(text(spec, "type"), "ClusterIP" | "NodePort" | "LoadBalancer") {
        p.required("spec.internalTrafficPolicy", "");
    }
    let health = spec["healthCheckNodePort"].as_i64().unwrap_or(0);
    if health != 0 && !needs_health_check(spec) {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        p.invalid("spec.healthCheckNodePort", &json!(health), why);
    }
    if has(spec, "trafficDistribution") {
        let known = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        p.one_of("spec.trafficDistribution", &or_empty(&spec["trafficDistribution"]), &known);
    }
}

fn update(new: &Value, old: &Value, p: &mut Problems) {
    let (spec, before) = (&new["spec"], &old["spec"]);
    let kept_kind = spec["type"] == before["type"];
    if kept_kind && text(spec, "type") == "LoadBalancer" && has(before, "loadBalancerClass") {
        if spec["loadBalancerClass"] != before["loadBalancerClass"] {
            p.invalid("spec.loadBalancerClass", &spec["loadBalancerClass"], "may not change once set");
        }
    } else if text(spec, "type") == "LoadBalancer"
        && kept_kind
        && spec["loadBalancerClass"] != before["loadBalancerClass"]
    {
        p.invalid("spec.loadBalancerClass", &spec["loadBalancerClass"], "may not change once set");
    }
    if needs_health_check(spec)
        && needs_health_check(before)
        && spec["healthCheckNodePort"] != before["healthCheckNodePort"]
    {
        p.forbidden("spec.healthCheckNodePort", "field is immutable");
    }
    if text(before, "type") == "ExternalName" || text(spec, "type") == "ExternalName" {
        return;
    }
    // The first address stays as long as the Service has one.
    let first = |spec: &Value| items(&spec["clusterIPs"]).next().and_then(Value::as_str).unwrap_or_default().to_owned();
    if !first(before).is_empty() && first(before) != first(spec) {
        p.invalid("spec.clusterIPs[0]", &spec["clusterIPs"], "may not change once set");
    }
}
