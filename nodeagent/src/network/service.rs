//! What one Service wants of the packet filter, from its spec and its endpoints. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use sha2::{Digest, Sha256};

use super::sets::Wanted;

/// Endpoints of one port that are used at most.
const MAX_ENDPOINTS: usize = 65_536;
/// How long a client keeps its endpoint if the Service does not say, seconds.
const AFFINITY: i32 = 10_800;

/// The families of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The type of its addresses in the packet filter.
    pub fn kind(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    /// As the packet filter calls it.
    pub fn word(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }
}

/// Where the Service is looked at from.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// The node's name.
    pub node: String,
    /// The node's zone.
    pub zone: Option<String>,
    /// Addresses that are the agent's own and not to be translated.
    pub own: Vec<IpAddr>,
}

/// A chain of its own: for clients that keep their endpoint.
pub type Chains = BTreeMap<String, String>;

/// What a Service wants in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contribution {
    /// Elements of sets.
    pub elements: Wanted,
    /// Chains with their rules; each has a map of the same name for its clients.
    pub chains: Chains,
    /// The same clients' endpoints, by chain.
    pub kept: BTreeMap<String, Kept>,
    /// Numbers of endpoints for which chains that choose are needed.
    pub sizes: Vec<usize>,
}

/// Endpoints among which clients keep theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The endpoints.
    pub targets: Vec<Target>,
    /// For how long after their last connection.
    pub seconds: i32,
}

/// An address and port.
pub type Target = (IpAddr, u16);

struct Builder<'a> {
    family: Family,
    service: &'a Service,
    site: &'a Site,
    out: Contribution,
}

fn protocol(port: &ServicePort) -> &'static str {
    match port.protocol.as_deref() {
        Some("UDP") => "udp",
        Some("SCTP") => "sctp",
        _ => "tcp",
    }
}

fn parse(list: &[String]) -> impl Iterator<Item = IpAddr> {
    list.iter().filter_map(|ip| ip.parse().ok())
}

/// What the Service wants in one family of addresses.
pub fn contribution(family: Family, service: &Service, slices: &[&EndpointSlice], site: &Site) -> Contribution {
    let mut builder = Builder { family, service, site, out: Contribution::default() };
    builder.build(slices);
    builder.out
}

/// The endpoints of one port: those that are ready, or else those that still serve while they end.
fn usable<'a>(
    slices: &'a [&'a EndpointSlice],
    port: &ServicePort,
    filter: &dyn Fn(&Endpoint) -> bool,
) -> Vec<(&'a Endpoint, u16)> {
    let name = port.name.as_deref().unwrap_or_default();
    let (mut ready, mut ending) = (Vec::new(), Vec::new());
    for slice in slices {
        let ports = slice.ports.iter().flatten();
        let mut ports = ports.filter(|p| p.name.as_deref().unwrap_or_default() == name);
        let Some(number) = ports.find_map(|p| u16::try_from(p.port?).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten().filter(|e| filter(e)) {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            if conditions.ready != Some(false) {
                ready.push((endpoint, number));
            } else if conditions.serving == Some(true) && conditions.terminating == Some(true) {
                ending.push((endpoint, number));
            }
        }
    }
    if ready.is_empty() { ending } else { ready }
}

/// Those meant for this zone or node, if all endpoints say for whom they are.
fn hinted<'a>(all: Vec<(&'a Endpoint, u16)>, site: &Site) -> Vec<(&'a Endpoint, u16)> {
    let hints = |e: &Endpoint| e.hints.clone().unwrap_or_default();
    let for_node = |e: &Endpoint| hints(e).for_nodes.iter().flatten().any(|n| n.name == site.node);
    let for_zone = |e: &Endpoint| hints(e).for_zones.iter().flatten().any(|z| Some(&z.name) == site.zone.as_ref());
    let by_node: Vec<_> = all.iter().copied().filter(|(e, _)| for_node(e)).collect();
    if !by_node.is_empty() {
        return by_node;
    }
    let complete = all.iter().all(|(e, _)| hints(e).for_zones.is_some_and(|z| !z.is_empty()));
    let by_zone: Vec<_> = all.iter().copied().filter(|(e, _)| for_zone(e)).collect();
    if complete && !by_zone.is_empty() { by_zone } else { all }
}

impl Builder<'_> {
    fn targets(&self, endpoints: Vec<(&Endpoint, u16)>) -> Vec<Target> {
        let of = |(endpoint, port): (&Endpoint, u16)| -> Option<Target> {
            let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
            (Family::of(ip) == self.family).then_some((ip, port))
        };
        let mut targets: Vec<Target> = endpoints.into_iter().filter_map(of).collect();
        targets.sort_unstable();
        targets.dedup();
        targets.truncate(MAX_ENDPOINTS);
        targets
    }

    fn mine(&self, ip: &IpAddr) -> bool {
        Family::of(*ip) == self.family && !self.site.own.contains(ip)
    }

    fn build(&mut self, slices: &[&EndpointSlice]) {
        let Some(spec) = &self.service.spec else { return };
        if spec.type_.as_deref() == Some("ExternalName") {
            return;
        }
        let cluster_ips: Vec<IpAddr> = match spec.cluster_ips.as_deref() {
            Some(list) if !list.is_empty() => parse(list).collect(),
            _ => spec.cluster_ip.iter().filter_map(|ip| ip.parse().ok()).collect(),
        };
        if cluster_ips.is_empty() {
            return;
        }
        let node = self.site.node.clone();
        let local = move |e: &Endpoint| e.node_name.as_deref() == Some(node.as_str());
        let outside: Vec<IpAddr> = self.outside();
        for port in spec.ports.iter().flatten() {
            let every = self.targets(hinted(usable(slices, port, &|_| true), self.site));
            let here = self.targets(usable(slices, port, &local));
            let inner_local = spec.internal_traffic_policy.as_deref() == Some("Local");
            let outer_local = spec.external_traffic_policy.as_deref() == Some("Local");
            let inner = if inner_local { &here } else { &every };
            let outer = if outer_local { &here } else { &every };
            let refused = |local: bool| if local && !every.is_empty() { "dropped" } else { "refused" };
            for ip in cluster_ips.iter().filter(|ip| self.mine(ip)).copied().collect::<Vec<_>>() {
                self.add("cluster_ips", ip.to_string(), String::new());
                self.address(ip, port, inner, refused(inner_local));
            }
            for ip in outside.iter().filter(|ip| self.mine(ip)).copied().collect::<Vec<_>>() {
                if !outer_local {
                    self.add("masqueraded", ip.to_string(), String::new());
                }
                self.address(ip, port, outer, refused(outer_local));
            }
            if let Some(number) = port.node_port.filter(|p| *p > 0) {
                self.node_port(number, port, outer, outer_local);
            }
            for (ip, _) in here {
                self.add("hairpins", format!("{ip} . {ip}"), String::new());
            }
        }
    }

    /// Addresses beyond the cluster's own.
    fn outside(&self) -> Vec<IpAddr> {
        let spec = self.service.spec.as_ref();
        let external = spec.and_then(|s| s.external_ips.as_deref()).unwrap_or_default();
        let balancer = self.service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        let ingress = balancer.and_then(|b| b.ingress.as_deref()).unwrap_or_default();
        let through = ingress.iter().filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
        parse(external).chain(through.filter_map(|i| i.ip.as_ref()?.parse().ok())).collect()
    }

    fn add(&mut self, set: &'static str, key: String, data: String) {
        self.out.elements.insert((set, key), data);
    }

    /// Seconds that clients keep their endpoint, if they do.
    fn affinity(&self) -> Option<i32> {
        let spec = self.service.spec.as_ref()?;
        if spec.session_affinity.as_deref() != Some("ClientIP") {
            return None;
        }
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        Some(config.and_then(|c| c.timeout_seconds).unwrap_or(AFFINITY))
    }

    /// One address and port with its endpoints.
    fn address(&mut self, ip: IpAddr, port: &ServicePort, targets: &[Target], otherwise: &'static str) {
        let key = format!("{ip} . {} . {}", protocol(port), port.port);
        if targets.is_empty() {
            return self.add(otherwise, key, String::new());
        }
        if let Some(seconds) = self.affinity() {
            let chain = self.sticky(&key, targets, seconds);
            return self.add("services", key, format!("goto {chain}"));
        }
        for (index, (to, to_port)) in targets.iter().enumerate() {
            self.add("endpoints", format!("{key} . {index}"), format!("{to} . {to_port}"));
        }
        self.out.sizes.push(targets.len());
        self.add("services", key, format!("goto pick{}", targets.len()));
    }

    fn node_port(&mut self, number: i32, port: &ServicePort, targets: &[Target], local: bool) {
        let key = format!("{} . {number}", protocol(port));
        if !local {
            let set = match protocol(port) {
                "udp" => "masqueraded_udp",
                "sctp" => "masqueraded_sctp",
                _ => "masqueraded_tcp",
            };
            self.add(set, number.to_string(), String::new());
        }
        if targets.is_empty() {
            return self.add("node_ports_refused", key, String::new());
        }
        if let Some(seconds) = self.affinity() {
            let chain = self.sticky(&key, targets, seconds);
            return self.add("node_ports", key, format!("goto {chain}"));
        }
        for (index, (to, to_port)) in targets.iter().enumerate() {
            self.add("node_port_endpoints", format!("{key} . {index}"), format!("{to} . {to_port}"));
        }
        self.out.sizes.push(targets.len());
        self.add("node_ports", key, format!("goto node_pick{}", targets.len()));
    }

    /// A chain that remembers each client's endpoint: one rule for each endpoint, taken with the chance that makes all
    /// of them equally likely.
    fn sticky(&mut self, key: &str, targets: &[Target], seconds: i32) -> String {
        let word = self.family.word();
        let digest = Sha256::digest(format!("{key}|{targets:?}|{seconds}"));
        let name = format!("sticky_{}", digest[..8].iter().map(|b| format!("{b:02x}")).collect::<String>());
        let transport = key.split(" . ").find(|part| matches!(*part, "tcp" | "udp" | "sctp")).unwrap_or("tcp");
        self.out.kept.insert(name.clone(), Kept { targets: targets.to_vec(), seconds });
        let send = format!("meta l4proto {transport} dnat {word} to {word} saddr map @{name}\n");
        let mut rules = send.clone();
        if self.family == Family::V6 {
            // `nft` 1.0 cannot remember an address and port of this length, so the client's address itself chooses.
            let choices: Vec<String> =
                targets.iter().enumerate().map(|(i, (to, port))| format!("{i} : {to} . {port}")).collect();
            let (count, choices) = (targets.len(), choices.join(", "));
            rules = format!("meta l4proto {transport} dnat ip6 to jhash ip6 saddr mod {count} map {{ {choices} }}\n");
            self.out.chains.insert(name.clone(), rules);
            return name;
        }
        for (index, (to, port)) in targets.iter().enumerate() {
            let left = targets.len() - index;
            if left > 1 {
                rules += &format!("numgen random mod {left} 0 ");
            }
            rules += &format!("update @{name} {{ {word} saddr timeout {seconds}s : {to} . {port} }}\n");
            rules += &send;
        }
        self.out.chains.insert(name.clone(), rules);
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(spec: &Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})).unwrap()
    }

    fn slice(endpoints: &Value) -> EndpointSlice {
        serde_json::from_value(json!({"metadata": {"name": "x"}, "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080}], "endpoints": endpoints}))
        .unwrap()
    }

    fn endpoint(ip: &str, node: &str, ready: bool) -> Value {
        json!({"addresses": [ip], "nodeName": node, "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
    }

    fn wanted(spec: &Value, endpoints: &Value) -> Vec<String> {
        let site = Site { node: "a".into(), ..Site::default() };
        let slice = slice(endpoints);
        let got = contribution(Family::V4, &service(spec), &[&slice], &site);
        got.elements.iter().map(|((set, key), data)| format!("{set} {key} {data}").trim_end().to_owned()).collect()
    }

    #[test]
    fn addresses_and_ports() {
        let two = json!([endpoint("10.1.0.2", "a", true), endpoint("10.1.1.2", "b", true)]);
        let ending = json!([endpoint("10.1.0.2", "a", false)]);
        let far = json!([endpoint("10.1.1.2", "b", true)]);
        let plain = json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]});
        let node_port = json!({"type": "NodePort", "clusterIP": "10.96.0.5", "externalTrafficPolicy": "Local",
            "ports": [{"port": 80, "nodePort": 30080}]});
        let inner = json!({"clusterIP": "10.96.0.5", "internalTrafficPolicy": "Local", "ports": [{"port": 80}]});
        for (spec, endpoints, lines) in [
            (
                &plain,
                &two,
                "cluster_ips 10.96.0.5|endpoints 10.96.0.5 . tcp . 80 . 0 10.1.0.2 . 8080|endpoints 10.96.0.5 . tcp . 80 . 1 10.1.1.2 . 8080|hairpins 10.1.0.2 . 10.1.0.2|services 10.96.0.5 . tcp . 80 goto pick2",
            ),
            (
                &plain,
                &ending,
                "cluster_ips 10.96.0.5|endpoints 10.96.0.5 . tcp . 80 . 0 10.1.0.2 . 8080|hairpins 10.1.0.2 . 10.1.0.2|services 10.96.0.5 . tcp . 80 goto pick1",
            ),
            (&plain, &json!([]), "cluster_ips 10.96.0.5|refused 10.96.0.5 . tcp . 80"),
            (&inner, &far, "cluster_ips 10.96.0.5|dropped 10.96.0.5 . tcp . 80"),
            (
                &node_port,
                &far,
                "cluster_ips 10.96.0.5|endpoints 10.96.0.5 . tcp . 80 . 0 10.1.1.2 . 8080|node_ports_refused tcp . 30080|services 10.96.0.5 . tcp . 80 goto pick1",
            ),
            (&json!({"clusterIP": "None", "ports": [{"port": 80}]}), &two, ""),
        ] {
            assert_eq!(wanted(spec, endpoints).join("|"), lines, "{spec}");
        }
    }

    #[test]
    fn clients_that_stay() {
        let spec = json!({"clusterIP": "10.96.0.5", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
        let slice = slice(&json!([endpoint("10.1.0.2", "a", true), endpoint("10.1.1.2", "b", true)]));
        let got = contribution(Family::V4, &service(&spec), &[&slice], &Site::default());
        let (name, rules) = got.chains.first_key_value().unwrap();
        assert!(
            rules.contains("numgen random mod 2 0 update") && rules.contains("timeout 10800s : 10.1.1.2 . 8080"),
            "{rules}"
        );
        assert!(got.elements.values().any(|data| *data == format!("goto {name}")));
        assert!(contribution(Family::V6, &service(&spec), &[&slice], &Site::default()).elements.is_empty());
    }

    #[test]
    fn hints_choose_the_zone() {
        let zone = |ip: &str, zone: &str| json!({"addresses": [ip], "hints": {"forZones": [{"name": zone}]}});
        let site = Site { zone: Some("z1".into()), ..Site::default() };
        let both = slice(&json!([zone("10.1.0.2", "z1"), zone("10.1.1.2", "z2")]));
        let spec = json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]});
        assert_eq!(contribution(Family::V4, &service(&spec), &[&both], &site).sizes, [1]);
        assert_eq!(contribution(Family::V4, &service(&spec), &[&both], &Site::default()).sizes, [2]);
    }
}
