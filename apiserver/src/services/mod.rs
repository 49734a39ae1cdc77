//! Cluster IPs and node ports. An address is taken by its IPAddress object, a node port by a key; whoever writes one first
//! has it, so that two Services never share one.

mod allocator;
pub(crate) mod repair;

use std::collections::{HashMap, HashSet};

use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources;
use keelson_machinery::status::{Cause, Status};
use keelson_machinery::validation::{address_problems, is_external, needs_health_check};
use serde_json::{Value, json};

use crate::ApiServer;
use crate::objects::Extra;
use crate::service_ranges::{Range, family_of, parse_all};
use allocator::{Allocator, delete, keys_of};

fn is_service(def: &ResourceDef) -> bool {
    def.plural == "services" && def.group.is_empty()
}

fn kind_of(spec: &Value) -> &str {
    spec["type"].as_str().unwrap_or("ClusterIP")
}

fn needs_cluster_ip(spec: &Value) -> bool {
    matches!(kind_of(spec), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn needs_node_ports(spec: &Value) -> bool {
    match kind_of(spec) {
        "NodePort" => true,
        "LoadBalancer" => spec["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// What a Service keeps of its values when an update does not name them, and loses when its type changes. Comes before
/// validation.
pub fn prepare(def: &ResourceDef, new: &mut Value, old: Option<&Value>) {
    if !is_service(def) || !new["spec"].is_object() {
        return;
    }
    let empty = json!({});
    let old = old.map_or(&empty, |o| &o["spec"]);
    let spec = &mut new["spec"];
    normalize_cluster_ips(spec, old);
    if old.get("type").is_none() {
        return;
    }
    keep_allocated(spec, old);
    trim_second(spec, old);
    drop_by_type(spec, old);
    if kind_of(spec) != "LoadBalancer" && new["status"].is_object() {
        // There is none any more, though taking it down may still go on.
        new["status"]["loadBalancer"] = json!({});
    }
}

/// `clusterIP` and `clusterIPs` say the same.
fn normalize_cluster_ips(spec: &mut Value, old: &Value) {
    let single = spec["clusterIP"].as_str().unwrap_or_default().to_owned();
    let same_list = spec.get("clusterIPs") == old.get("clusterIPs");
    let none = spec["clusterIPs"].as_array().is_none_or(Vec::is_empty);
    if old.get("clusterIP").is_none() {
        if !single.is_empty() && none {
            spec["clusterIPs"] = json!([single]);
        }
        return;
    }
    if spec["clusterIP"] == old["clusterIP"] {
        return;
    }
    if single.is_empty() && same_list {
        remove(spec, "clusterIPs");
    } else if !single.is_empty() && (same_list || none) {
        spec["clusterIPs"] = json!([single]);
    }
}

fn remove(object: &mut Value, key: &str) {
    if let Some(map) = object.as_object_mut() {
        map.remove(key);
    }
}

/// Values that the update leaves out stay.
fn keep_allocated(spec: &mut Value, old: &Value) {
    if needs_cluster_ip(spec) && needs_cluster_ip(old) {
        if spec["clusterIP"].as_str().unwrap_or_default().is_empty() {
            spec["clusterIP"] = old["clusterIP"].clone();
        }
        if spec["clusterIPs"].as_array().is_none_or(Vec::is_empty) && spec["clusterIP"] == old["clusterIP"] {
            spec["clusterIPs"] = old["clusterIPs"].clone();
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if spec.get(key).is_none_or(Value::is_null)
                && let Some(value) = old.get(key)
            {
                spec[key] = value.clone();
            }
        }
    }
    if needs_node_ports(spec) && needs_node_ports(old) {
        let name = |port: &Value| port["name"].as_str().unwrap_or_default().to_owned();
        let number = |port: &Value| port["nodePort"].as_i64().filter(|n| *n != 0);
        // Ports are the same by name, whatever else of them changed.
        let before: HashMap<String, i64> = ports(old).filter_map(|p| Some((name(p), number(p)?))).collect();
        let taken: Vec<i64> = ports(spec).filter_map(number).collect();
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if number(port).is_none()
                && let Some(kept) = before.get(&name(port)).filter(|n| !taken.contains(n))
            {
                port["nodePort"] = (*kept).into();
            }
        }
    }
    if needs_health_check(spec)
        && needs_health_check(old)
        && spec["healthCheckNodePort"].as_i64().unwrap_or(0) == 0
        && let Some(port) = old.get("healthCheckNodePort")
    {
        spec["healthCheckNodePort"] = port.clone();
    }
}

/// A Service that goes from two families to one loses the second, unless the update named others.
fn trim_second(spec: &mut Value, old: &Value) {
    let dual = |spec: &Value| matches!(spec["ipFamilyPolicy"].as_str(), Some("PreferDualStack" | "RequireDualStack"));
    if spec["ipFamilyPolicy"] != "SingleStack" || !dual(old) {
        return;
    }
    for key in ["clusterIPs", "ipFamilies"] {
        if spec.get(key) == old.get(key)
            && let Some(list) = spec.get_mut(key).and_then(Value::as_array_mut)
        {
            list.truncate(1);
        }
    }
}

fn ports(spec: &Value) -> impl Iterator<Item = &Value> {
    spec["ports"].as_array().into_iter().flatten()
}

/// What only the old type had goes, unless the update set it to something else.
fn drop_by_type(spec: &mut Value, old: &Value) {
    if kind_of(spec) == kind_of(old)
        && is_external(spec) == is_external(old)
        && needs_health_check(spec) == needs_health_check(old)
    {
        return;
    }
    let (cluster, health, external, balancer) = (
        needs_cluster_ip(old) && !needs_cluster_ip(spec),
        needs_health_check(old) && !needs_health_check(spec),
        is_external(old) && !is_external(spec),
        kind_of(old) == "LoadBalancer" && kind_of(spec) != "LoadBalancer",
    );
    let node_ports =
        matches!(kind_of(old), "NodePort" | "LoadBalancer") && !matches!(kind_of(spec), "NodePort" | "LoadBalancer");
    for (condition, keys) in [
        (cluster, &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"][..]),
        (health, &["healthCheckNodePort"]),
        (external, &["externalTrafficPolicy"]),
        (balancer, &["allocateLoadBalancerNodePorts", "loadBalancerClass"]),
    ] {
        for key in keys {
            if condition && spec.get(*key) == old.get(*key) {
                remove(spec, key);
            }
        }
    }
    let numbers = |spec: &Value| ports(spec).filter_map(|p| p["nodePort"].as_i64()).filter(|n| *n != 0).collect();
    let (now, had): (HashSet<i64>, HashSet<i64>) = (numbers(spec), numbers(old));
    // Ports may come, go and change, as long as no node port is new.
    if node_ports && now.is_subset(&had) {
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            remove(port, "nodePort");
        }
    }
}

/// Fills in cluster IPs and node ports of a Service that is created or changed; for other kinds there is nothing to do.
pub fn allocate(
    server: &ApiServer,
    def: &ResourceDef,
    new: &mut Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<Extra, Status> {
    let mut extra = Extra::default();
    if !is_service(def) {
        return Ok(extra);
    }
    let problems = address_problems(&new["spec"]);
    if !problems.is_empty() {
        let name = new["metadata"]["name"].as_str().unwrap_or_default();
        return Err(Status::invalid("", "Service", name, problems));
    }
    let empty = json!({});
    let before = old.map_or(&empty, |o| &o["spec"]);
    let mut allocator = Allocator { server, owner: owner(new), dry_run, extra: &mut extra, taken: Vec::new() };
    if needs_cluster_ip(&new["spec"]) {
        families(new, before, &parse_all(&server.service_cidr)?)?;
        allocator.cluster_ips(new, before)?;
    }
    if matches!(kind_of(&new["spec"]), "NodePort" | "LoadBalancer") {
        allocator.node_ports(new, before)?;
    }
    if needs_health_check(&new["spec"]) {
        allocator.health_check_port(new, before)?;
    }
    if old.is_some() {
        allocator.give_back(before, &new["spec"]);
    }
    Ok(extra)
}

fn owner(object: &Value) -> (String, String) {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn invalid(object: &Value, cause: Cause) -> Status {
    Status::invalid("", "Service", object["metadata"]["name"].as_str().unwrap_or_default(), vec![cause])
}

/// The causes for which a policy does not fit the addresses and families beside it.
fn policy_problems(spec: &Value, before: &Value) -> Vec<Cause> {
    let count = |spec: &Value, key: &str| spec[key].as_array().map_or(0, Vec::len);
    let single = spec["ipFamilyPolicy"] == "SingleStack";
    let named = [
        ("clusterIPs", "secondary cluster IP", "multiple cluster IPs"),
        ("ipFamilies", "secondary IP family", "multiple IP families"),
    ];
    let why = named.into_iter().filter_map(|(key, second, both)| {
        let (now, had) = (count(spec, key), count(before, key));
        if single && now == 2 {
            Some(format!("must be 'RequireDualStack' or 'PreferDualStack' when {both} are specified"))
        } else if !single && now > 0 && now < had {
            Some(format!("must be 'SingleStack' to release the {second}"))
        } else {
            None
        }
    });
    why.map(|why| Cause::invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], &why)).collect()
}

/// The families of the addresses that a Service names, after those that it names itself; causes for those not served.
fn families_of_addresses(spec: &Value, served: impl Fn(&str) -> bool) -> (Vec<Value>, Vec<Cause>) {
    let mut wanted: Vec<Value> = spec["ipFamilies"].as_array().cloned().unwrap_or_default();
    let mut problems = Vec::new();
    let ips = spec["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for (index, ip) in ips.enumerate().take_while(|(_, ip)| *ip != "None") {
        let family = family_of(ip);
        if ip.is_empty() || index < wanted.len() {
            continue;
        }
        if served(family) {
            wanted.push(family.into());
        } else {
            let why = format!("{family} is not configured on this cluster");
            problems.push(Cause::invalid(format!("spec.clusterIPs[{index}]"), &spec["clusterIPs"], &why));
        }
    }
    (wanted, problems)
}

/// The policy of a Service that names none: that from before, or the one that its sort starts with.
fn policy_of(spec: &Value, before: &Value, selectorless: bool) -> Value {
    match (&spec["ipFamilyPolicy"], &before["ipFamilyPolicy"]) {
        (Value::Null, Value::Null) => if selectorless { "RequireDualStack" } else { "SingleStack" }.into(),
        (Value::Null, before) => before.clone(),
        (policy, _) => policy.clone(),
    }
}

/// Families that a Service says nothing of; those that there are no addresses of are refused.
fn families(new: &mut Value, before: &Value, ranges: &[Range]) -> Result<(), Status> {
    let spec = &new["spec"];
    let same = |key: &str| spec.get(key) == before.get(key);
    if spec["ipFamilyPolicy"] == "PreferDualStack"
        && ["type", "ipFamilyPolicy", "ipFamilies", "clusterIPs"].into_iter().all(same)
    {
        // It stays as it is, though the cluster may have got or lost a family.
        return Ok(());
    }
    // Nobody looks for the endpoints of a headless Service without a selector here, so they may be of any family.
    let headless = spec["clusterIP"] == "None" || spec["clusterIPs"][0] == "None";
    let selectorless = headless && spec["selector"].as_object().is_none_or(serde_json::Map::is_empty);
    let policy = policy_of(spec, before, selectorless);
    new["spec"]["ipFamilyPolicy"] = policy.clone();
    let served = |family: &str| ranges.iter().any(|range| range.family() == family);
    let mut problems = policy_problems(&new["spec"], before);
    let (mut wanted, unserved) = families_of_addresses(&new["spec"], served);
    problems.extend(unserved);
    if problems.is_empty() && !selectorless {
        if policy == "RequireDualStack" && ranges.len() < 2 {
            let why = "this cluster is not configured for dual-stack services";
            problems.push(Cause::invalid("spec.ipFamilyPolicy", &policy, why));
        }
        for (index, family) in wanted.iter().enumerate().filter(|(_, f)| !served(f.as_str().unwrap_or_default())) {
            let why = "not configured on this cluster";
            problems.push(Cause::invalid(format!("spec.ipFamilies[{index}]"), family, why));
        }
    }
    if !problems.is_empty() {
        let name = new["metadata"]["name"].as_str().unwrap_or_default();
        return Err(Status::invalid("", "Service", name, problems));
    }
    if wanted.is_empty() {
        wanted.push(ranges[0].family().into());
    }
    if policy != "SingleStack" && wanted.len() == 1 && (selectorless || ranges.len() > 1) {
        wanted.push(if wanted[0] == "IPv4" { "IPv6" } else { "IPv4" }.into());
    }
    new["spec"]["ipFamilies"] = wanted.into();
    Ok(())
}

/// What a deleted Service gives back. Its Endpoints go with it, so that a new Service of its name does not start with them.
pub fn release(def: &ResourceDef, object: &Value) -> Extra {
    if !is_service(def) {
        return Extra::default();
    }
    let (namespace, name) = owner(object);
    let endpoints = resources::find("", "v1", "endpoints").map(|def| def.key(&namespace, &name));
    let ops = keys_of(&object["spec"]).into_iter().chain(endpoints).map(delete).collect();
    Extra { ops, ..Extra::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_keeps_its_values_and_loses_those_of_its_old_type() {
        let def = resources::find("", "v1", "services").unwrap();
        let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.0.0.5", "clusterIPs": ["10.0.0.5"],
            "externalTrafficPolicy": "Cluster", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30100}]}});
        let mut kept = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
        prepare(def, &mut kept, Some(&old));
        assert_eq!(kept["spec"]["clusterIPs"], json!(["10.0.0.5"]));
        assert_eq!(kept["spec"]["ports"][0]["nodePort"], 30100);
        let mut changed = old.clone();
        changed["spec"]["type"] = "ClusterIP".into();
        prepare(def, &mut changed, Some(&old));
        assert_eq!(changed["spec"]["ports"], json!([{"port": 80, "protocol": "TCP"}]));
        assert_eq!(changed["spec"].get("externalTrafficPolicy"), None);
    }

    #[test]
    fn families_follow_the_policy_and_what_the_cluster_has() {
        let one = parse_all("10.0.0.0/24").unwrap();
        let both = parse_all("10.0.0.0/24,fd00::/112").unwrap();
        let none = json!({});
        let dual = json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4"], "clusterIPs": ["10.0.0.5"]});
        for (ranges, spec, before, expected) in [
            (&one, json!({}), &none, Ok(("SingleStack", json!(["IPv4"])))),
            (&one, json!({"ipFamilyPolicy": "PreferDualStack"}), &none, Ok(("PreferDualStack", json!(["IPv4"])))),
            (&one, json!({"ipFamilyPolicy": "RequireDualStack"}), &none, Err("not configured for dual-stack")),
            (&one, json!({"ipFamilies": ["IPv6"]}), &none, Err("not configured on this cluster")),
            (&one, json!({"clusterIPs": ["fd00::5"]}), &none, Err("IPv6 is not configured on this cluster")),
            (&both, json!({}), &none, Ok(("SingleStack", json!(["IPv4"])))),
            (&both, json!({"clusterIPs": ["fd00::5"]}), &none, Ok(("SingleStack", json!(["IPv6"])))),
            (
                &both,
                json!({"ipFamilyPolicy": "PreferDualStack"}),
                &none,
                Ok(("PreferDualStack", json!(["IPv4", "IPv6"]))),
            ),
            (
                &both,
                json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
                &none,
                Ok(("RequireDualStack", json!(["IPv6", "IPv4"]))),
            ),
            (&both, json!({"clusterIPs": ["None"]}), &none, Ok(("RequireDualStack", json!(["IPv4", "IPv6"])))),
            (&both, dual.clone(), &dual, Ok(("PreferDualStack", json!(["IPv4"])))),
            (
                &both,
                json!({"clusterIPs": ["None"], "ipFamilies": ["IPv6"]}),
                &none,
                Ok(("RequireDualStack", json!(["IPv6", "IPv4"]))),
            ),
            (&both, json!({"ipFamilies": ["IPv4", "IPv6"]}), &none, Err("when multiple IP families are specified")),
            (&both, json!({"clusterIPs": ["10.0.0.5", "fd00::5"]}), &none, Err("when multiple cluster IPs")),
            (
                &both,
                json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4"]}),
                &json!({"ipFamilies": ["IPv4", "IPv6"]}),
                Err("must be 'SingleStack' to release the secondary IP family"),
            ),
        ] {
            let mut new = json!({"metadata": {"name": "s"}, "spec": spec});
            match (families(&mut new, before, ranges), expected) {
                (Ok(()), Ok((policy, families))) => {
                    assert_eq!(
                        (&new["spec"]["ipFamilyPolicy"], &new["spec"]["ipFamilies"]),
                        (&json!(policy), &families),
                        "{spec}"
                    );
                }
                (Err(status), Err(part)) => assert!(status.message.contains(part), "{spec}: {}", status.message),
                (found, _) => panic!("{spec}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_service_of_one_family_loses_the_other() {
        let def = resources::find("", "v1", "services").unwrap();
        let old = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.0.0.5", "clusterIPs": ["10.0.0.5", "fd00::5"],
            "ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"]}});
        let mut new = old.clone();
        new["spec"]["ipFamilyPolicy"] = "SingleStack".into();
        prepare(def, &mut new, Some(&old));
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.0.0.5"]));
        assert_eq!(new["spec"]["ipFamilies"], json!(["IPv4"]));
    }
}
