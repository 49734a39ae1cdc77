//! Network policies: which packets the pods of this node may receive and send. Pods that no policy selects are left alone;
//! what the node itself sends to its pods (probes) always passes, and so do answers.
//!
//! Invariant: the table is replaced as a whole by one transaction, so no packet ever meets half of a policy.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::Cache;
use keelson_machinery::selector;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::nft;
use super::service::Family;
use crate::agent::Agent;
use crate::spec::pod;

/// Changes that come within this time are made together.
const GATHER: Duration = Duration::from_millis(50);
/// Pause after the packet filter refused.
const RETRY: Duration = Duration::from_secs(5);
/// The table's name.
pub(crate) const TABLE: &str = "keelson_policies";

type Labels = BTreeMap<String, String>;

/// What policies are judged by.
pub struct World<'a> {
    /// The node whose pods are guarded.
    pub node: &'a str,
    /// All policies.
    pub policies: &'a [Arc<NetworkPolicy>],
    /// All pods.
    pub pods: &'a [Arc<Pod>],
    /// Labels of all namespaces.
    pub namespaces: &'a BTreeMap<String, Labels>,
    /// The cluster's name server, which every pod may ask.
    pub names: Option<IpAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

fn fits(selector: Option<&LabelSelector>, labels: Option<&Labels>) -> bool {
    let Some(selector) = selector else { return true };
    let Ok(value) = serde_json::to_value(selector) else { return false };
    let parsed = selector::LabelSelector::from_object(&value);
    parsed.is_ok_and(|s| s.matches(|key| labels.and_then(|l| l.get(key)).map(String::as_str)))
}

fn namespace_of(of: &Pod) -> &str {
    of.metadata.namespace.as_deref().unwrap_or_default()
}

/// The pod's addresses of a family; none for pods that use the node's network or have ended.
fn addresses(of: &Pod, family: Family) -> Vec<IpAddr> {
    if pod::host_network(of) || pod::is_finished(of) {
        return Vec::new();
    }
    let ips = of.status.as_ref().and_then(|s| s.pod_ips.as_deref()).unwrap_or_default();
    ips.iter().filter_map(|ip| ip.ip.parse().ok()).filter(|ip| Family::of(*ip) == family).collect()
}

fn applies(policy: &NetworkPolicy, way: Way) -> bool {
    let Some(spec) = &policy.spec else { return false };
    match &spec.policy_types {
        Some(types) if !types.is_empty() => {
            types.iter().any(|t| t == if way == Way::In { "Ingress" } else { "Egress" })
        }
        _ => way == Way::In || spec.egress.is_some(),
    }
}

/// The transport protocol and the ports that a rule names; `Err` for a named port that the pod does not have.
fn port(wanted: &NetworkPolicyPort, of: Option<&Pod>) -> Option<String> {
    let name = wanted.protocol.as_deref().unwrap_or("TCP");
    let protocol = name.to_lowercase();
    Some(match (&wanted.port, wanted.end_port) {
        (None, _) => format!("meta l4proto {protocol}"),
        (Some(IntOrString::Int(from)), Some(to)) => format!("{protocol} dport {from}-{to}"),
        (Some(IntOrString::Int(port)), None) => format!("{protocol} dport {port}"),
        (Some(IntOrString::String(wanted)), _) => {
            let ports = pod::containers(of?).iter().flat_map(|c| c.ports.iter().flatten());
            let mut ports = ports.filter(|p| p.name.as_deref() == Some(wanted));
            let found = ports.find(|p| p.protocol.as_deref().unwrap_or("TCP") == name)?;
            format!("{protocol} dport {}", found.container_port)
        }
    })
}

fn block(block: &IPBlock, family: Family, side: &str) -> Option<String> {
    if block.cidr.contains(':') != (family == Family::V6) {
        return None;
    }
    let word = family.word();
    let except: Vec<&str> = block.except.iter().flatten().map(String::as_str).collect();
    let mut text = format!("{word} {side} {}", block.cidr);
    if !except.is_empty() {
        let _ = write!(text, " {word} {side} != {{ {} }}", except.join(", "));
    }
    Some(text)
}

/// One side of a rule: which addresses, and the pod that is there, for named ports.
struct Match<'a> {
    text: String,
    pod: Option<&'a Pod>,
}

impl World<'_> {
    fn peer_pods(&self, policy: &NetworkPolicy, peer: &NetworkPolicyPeer) -> impl Iterator<Item = &Pod> {
        let own = policy.metadata.namespace.clone().unwrap_or_default();
        let (pods, spaces) = (peer.pod_selector.clone(), peer.namespace_selector.clone());
        self.pods.iter().map(AsRef::as_ref).filter(move |of| {
            let namespace = namespace_of(of);
            let here = match &spaces {
                Some(selector) => fits(Some(selector), self.namespaces.get(namespace)),
                None => namespace == own,
            };
            here && fits(pods.as_ref(), of.metadata.labels.as_ref())
        })
    }

    /// The other sides that a rule names. `each`: one for each pod, since named ports differ.
    fn peers(
        &self,
        policy: &NetworkPolicy,
        peers: &[NetworkPolicyPeer],
        family: Family,
        way: Way,
        each: bool,
    ) -> Vec<Match<'_>> {
        let side = if way == Way::In { "saddr" } else { "daddr" };
        let word = family.word();
        if peers.is_empty() && !each {
            return vec![Match { text: String::new(), pod: None }];
        }
        let mut matches = Vec::new();
        let everyone = [NetworkPolicyPeer { namespace_selector: Some(LabelSelector::default()), ..Default::default() }];
        for peer in if peers.is_empty() { &everyone } else { peers } {
            if let Some(range) = &peer.ip_block {
                matches.extend(block(range, family, side).map(|text| Match { text, pod: None }));
                continue;
            }
            let found = self.peer_pods(policy, peer).map(|of| (of, addresses(of, family)));
            let found: Vec<(&Pod, IpAddr)> =
                found.flat_map(|(of, ips)| ips.into_iter().map(move |ip| (of, ip))).collect();
            if each {
                matches.extend(
                    found.into_iter().map(|(of, ip)| Match { text: format!("{word} {side} {ip}"), pod: Some(of) }),
                );
            } else if !found.is_empty() {
                let list: Vec<String> = found.iter().map(|(_, ip)| ip.to_string()).collect();
                matches.push(Match { text: format!("{word} {side} {{ {} }}", list.join(", ")), pod: None });
            }
        }
        matches
    }

    /// The rules of one policy for one pod and way.
    fn rules(&self, policy: &NetworkPolicy, of: &Pod, family: Family, way: Way, out: &mut String) {
        let Some(spec) = &policy.spec else { return };
        let none: (Vec<NetworkPolicyPeer>, Vec<NetworkPolicyPort>) = Default::default();
        let rules: Vec<(&[NetworkPolicyPeer], &[NetworkPolicyPort])> = match way {
            Way::In => (spec.ingress.iter().flatten())
                .map(|r| (r.from.as_deref().unwrap_or(&none.0), r.ports.as_deref().unwrap_or(&none.1)))
                .collect(),
            Way::Out => (spec.egress.iter().flatten())
                .map(|r| (r.to.as_deref().unwrap_or(&none.0), r.ports.as_deref().unwrap_or(&none.1)))
                .collect(),
        };
        for (peers, ports) in rules {
            if ports.is_empty() {
                for other in self.peers(policy, peers, family, way, false) {
                    let _ = writeln!(out, "{} return", other.text);
                }
            }
            for wanted in ports {
                let named = matches!(wanted.port, Some(IntOrString::String(_)));
                for other in self.peers(policy, peers, family, way, named && way == Way::Out) {
                    let owner = if way == Way::In { Some(of) } else { other.pod };
                    if let Some(port) = port(wanted, owner) {
                        let _ = writeln!(out, "{} {port} return", other.text);
                    }
                }
            }
        }
    }

    /// The whole table of a family.
    pub fn table(&self, family: Family) -> String {
        let word = family.word();
        let (mut chains, mut maps) = (String::new(), [Vec::new(), Vec::new()]);
        let here = |of: &&Arc<Pod>| of.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(self.node);
        for of in self.pods.iter().filter(here) {
            for (way, map, prefix) in [(Way::In, 0, "in"), (Way::Out, 1, "out")] {
                let selecting: Vec<_> = (self.policies.iter())
                    .filter(|p| p.metadata.namespace.as_deref() == Some(namespace_of(of)) && applies(p, way))
                    .filter(|p| {
                        let selector = p.spec.as_ref().and_then(|s| s.pod_selector.as_ref());
                        fits(selector, of.metadata.labels.as_ref())
                    })
                    .collect();
                let ips = addresses(of, family);
                if selecting.is_empty() || ips.is_empty() {
                    continue;
                }
                let name = format!("{prefix}_{}", pod::uid(of).replace(|c: char| !c.is_ascii_alphanumeric(), "_"));
                let _ = writeln!(chains, "chain {name} {{");
                for ip in ips {
                    maps[map].push(format!("{ip} : jump {name}"));
                    // A pod may always reach itself, also by way of a Service.
                    let side = if way == Way::In { "saddr" } else { "daddr" };
                    let _ = writeln!(chains, "{word} {side} {ip} return");
                }
                selecting.iter().for_each(|policy| self.rules(policy, of, family, way, &mut chains));
                chains += "drop\n}\n";
            }
        }
        self.frame(family, &chains, &maps)
    }

    fn frame(&self, family: Family, chains: &str, maps: &[Vec<String>; 2]) -> String {
        let (word, kind) = (family.word(), family.kind());
        let replaced = format!("add table {word} {TABLE}\ndelete table {word} {TABLE}\n");
        if chains.is_empty() {
            return replaced;
        }
        let elements = |list: &Vec<String>| {
            if list.is_empty() { String::new() } else { format!(" elements = {{ {} }};", list.join(", ")) }
        };
        let names = self.names.filter(|ip| Family::of(*ip) == family);
        let names =
            names.map(|ip| format!("{word} daddr {ip} udp dport 53 accept\n{word} daddr {ip} tcp dport 53 accept\n"));
        format!(
            "{replaced}table {word} {TABLE} {{\n{chains}\
             map receivers {{ type {kind} : verdict;{} }}\nmap senders {{ type {kind} : verdict;{} }}\n\
             chain forward {{\ntype filter hook forward priority filter; policy accept;\n\
             ct state established,related accept\n{word} saddr vmap @senders\n{word} daddr vmap @receivers\n}}\n\
             chain input {{\ntype filter hook input priority filter; policy accept;\n\
             ct state established,related accept\n{}{word} saddr vmap @senders\n}}\n}}\n",
            elements(&maps[0]),
            elements(&maps[1]),
            names.unwrap_or_default(),
        )
    }
}

/// Enforces policies on this node for ever.
pub async fn run(agent: Arc<Agent>, stop: CancellationToken) {
    let changed = Arc::new(Notify::new());
    let client = &agent.config.client;
    let policies = Cache::<NetworkPolicy>::start(client, changed.clone(), stop.clone());
    policies.synced().await;
    let mut applied = String::new();
    // What an earlier agent left is replaced, also if there are no policies any more.
    while policies.list().is_empty() {
        if applied.is_empty() {
            applied = World { node: "", policies: &[], pods: &[], namespaces: &BTreeMap::new(), names: None }.both();
            if let Err(error) = nft::apply(&applied).await {
                tracing::error!(%error, "old network policies could not be removed");
            }
        }
        changed.notified().await;
    }
    // Only now it is worth to know every pod of the cluster.
    let pods = Cache::<Pod>::start(client, changed.clone(), stop.clone());
    let spaces = Cache::<Namespace>::start(client, changed.clone(), stop);
    tokio::join!(pods.synced(), spaces.synced());
    loop {
        policies.drain();
        pods.drain();
        let named = spaces.list();
        spaces.drain();
        let namespaces = named
            .iter()
            .filter_map(|n| Some((n.metadata.name.clone()?, n.metadata.labels.clone().unwrap_or_default())));
        let (all, known) = (policies.list(), pods.list());
        let world = World {
            node: &agent.config.node_name,
            policies: &all,
            pods: &known,
            namespaces: &namespaces.collect(),
            names: agent.config.cluster_dns,
        };
        let wanted = world.both();
        if wanted != applied {
            match nft::apply(&wanted).await {
                Ok(()) => applied = wanted,
                Err(error) => {
                    tracing::error!(%error, "network policies could not be set up; trying again");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        changed.notified().await;
        tokio::time::sleep(GATHER).await;
    }
}

impl World<'_> {
    /// The tables of both families, as one script. The same world gives the same text.
    fn both(&self) -> String {
        let mut pods = self.pods.to_vec();
        pods.sort_by(|a, b| a.metadata.uid.cmp(&b.metadata.uid));
        let mut policies = self.policies.to_vec();
        policies.sort_by(|a, b| a.metadata.uid.cmp(&b.metadata.uid));
        let sorted = World { pods: &pods, policies: &policies, ..*self };
        Family::ALL.iter().map(|family| sorted.table(*family)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn make(namespace: &str, name: &str, ip: &str, node: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"namespace": namespace, "name": name, "uid": name, "labels": {"app": name}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"podIPs": [{"ip": ip}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn chain(spec: &Value, which: &str) -> Option<String> {
        let policy = json!({"metadata": {"namespace": "n", "name": "p"}, "spec": spec});
        let policies = [Arc::new(serde_json::from_value::<NetworkPolicy>(policy).unwrap())];
        let pods = [
            make("n", "a", "10.1.0.2", "here"),
            make("n", "b", "10.1.1.2", "there"),
            make("m", "c", "10.1.1.3", "there"),
        ];
        let namespaces = BTreeMap::from([
            ("m".to_owned(), Labels::from([("team".into(), "x".into())])),
            ("n".to_owned(), Labels::new()),
        ]);
        let world = World {
            node: "here",
            policies: &policies,
            pods: &pods,
            namespaces: &namespaces,
            names: "10.96.0.10".parse().ok(),
        };
        let text = world.both();
        if nix::unistd::geteuid().is_root() && std::path::Path::new("/usr/sbin/nft").exists() {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &text).unwrap();
            let checked =
                std::process::Command::new("unshare").args(["--net", "nft", "-f"]).arg(file.path()).output().unwrap();
            assert!(checked.status.success(), "{} {text}", String::from_utf8_lossy(&checked.stderr));
        }
        let begin = text.find(&format!("chain {which} {{\n"))?;
        let body = text[begin..].split("{\n").nth(1)?.split("\n}").next()?;
        Some(body.lines().skip(1).map(str::trim).collect::<Vec<_>>().join("|"))
    }

    #[test]
    fn policies_become_chains() {
        for (spec, which, wanted) in [
            (json!({"podSelector": {}}), "in_a", Some("drop")),
            (json!({"podSelector": {}}), "out_a", None),
            (json!({"podSelector": {}}), "in_b", None),
            (json!({"podSelector": {"matchLabels": {"app": "z"}}}), "in_a", None),
            (json!({"podSelector": {}, "policyTypes": ["Egress"]}), "out_a", Some("drop")),
            (json!({"podSelector": {}, "ingress": [{}]}), "in_a", Some("return|drop")),
            (
                json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": 80}, {"port": 90, "endPort": 99, "protocol": "UDP"}]}]}),
                "in_a",
                Some("ip saddr { 10.1.1.2 } tcp dport 80 return|ip saddr { 10.1.1.2 } udp dport 90-99 return|drop"),
            ),
            (
                json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "x"}}}], "ports": [{"port": "web"}]}]}),
                "in_a",
                Some("ip saddr { 10.1.1.3 } tcp dport 8080 return|drop"),
            ),
            (
                json!({"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.5.0.0/16"]}}]}], "policyTypes": ["Egress"]}),
                "out_a",
                Some("ip daddr 10.0.0.0/8 ip daddr != { 10.5.0.0/16 } return|drop"),
            ),
            (
                json!({"podSelector": {}, "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": "web"}, {"port": "none"}]}], "policyTypes": ["Egress"]}),
                "out_a",
                Some("ip daddr 10.1.1.2 tcp dport 8080 return|drop"),
            ),
            (
                json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "nobody"}}}]}]}),
                "in_a",
                Some("drop"),
            ),
        ] {
            assert_eq!(chain(&spec, which).as_deref(), wanted, "{spec}");
        }
    }
}
