//! The node's pod network: addresses of the node's pod CIDR, routes to the other nodes and masquerading.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::network::{nft, overlay};

/// Label of nodes whose pods do not run.
pub(crate) const HOLLOW: &str = "keelson.dev/hollow";
/// The table of the packet filter.
pub(crate) const TABLE: &str = "keelson_pods";
/// Where the addresses of our network are kept while pods have them.
pub(crate) const ADDRESSES: &str = "/var/lib/cni/networks/keelson";
/// The file in the CNI's configuration directory.
pub(crate) const FILE: &str = "10-keelson.conflist";

/// Who makes the pods' network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNetwork {
    /// The agent, with routes between nodes: they must be neighbours.
    #[default]
    Routes,
    /// The agent, with VXLAN between nodes.
    Vxlan,
    /// Somebody else, who gives the runtime its configuration.
    None,
}

impl std::str::FromStr for PodNetwork {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "routes" => Ok(Self::Routes),
            "vxlan" => Ok(Self::Vxlan),
            "none" => Ok(Self::None),
            other => Err(format!("{other:?} is none of routes, vxlan and none")),
        }
    }
}

/// The network configuration for pods of `cidr`. Every pod has a link of its own to the node, and every packet, also one
/// to a pod of the same node, is routed there: Services and policies see it without help of a bridge.
fn conflist(cidrs: &[String], mtu: Option<u32>) -> String {
    // One set of ranges for each family, so that a pod gets an address of each.
    let ranges: Vec<_> = cidrs.iter().map(|cidr| json!([{"subnet": cidr}])).collect();
    let everywhere = |cidr: &String| json!({"dst": if cidr.contains(':') { "::/0" } else { "0.0.0.0/0" }});
    let routes: Vec<_> = cidrs.iter().map(everywhere).collect();
    let mut value = json!({
        "cniVersion": "0.4.0",
        "name": "keelson",
        "plugins": [
            {"type": "ptp", "ipMasq": false,
             "ipam": {"type": "host-local", "ranges": ranges, "routes": routes}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    if let Some(mtu) = mtu {
        value["plugins"][0]["mtu"] = mtu.into();
    }
    format!("{value:#}\n")
}

/// Writes the configuration if it is not there yet, whole or not at all.
pub fn write(dir: &Path, cidrs: &[String], mtu: Option<u32>) -> std::io::Result<()> {
    let (path, wanted) = (dir.join(FILE), conflist(cidrs, mtu));
    if std::fs::read_to_string(&path).is_ok_and(|present| present == wanted) {
        return Ok(());
    }
    std::fs::create_dir_all(dir)?;
    let new = dir.join(".keelson.new");
    std::fs::write(&new, wanted)?;
    std::fs::rename(new, path)
}

/// The first address of a range: the node's own, to which the links of its pods lead.
pub fn gateway(cidr: &str) -> Option<IpAddr> {
    match cidr.split_once('/')?.0.parse().ok()? {
        IpAddr::V4(ip) => Some(IpAddr::V4((u32::from(ip).checked_add(1)?).into())),
        IpAddr::V6(ip) => Some(IpAddr::V6((u128::from(ip).checked_add(1)?).into())),
    }
}

/// The ranges of a node's pods, one of each family that it has.
pub fn ranges(node: &Node) -> Vec<String> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.clone().filter(|all| !all.is_empty());
    all.unwrap_or_else(|| spec.pod_cidr.iter().cloned().collect())
}

/// The routes that this node needs: pod CIDR to node address of the same family, of all other nodes.
pub fn routes<N: Borrow<Node>>(me: &str, nodes: &[N]) -> BTreeMap<String, IpAddr> {
    ways(me, nodes, |cidr, ip| ip.is_ipv6() == cidr.contains(':'))
}

/// The same where packets of both families go inside of others: to the nodes' addresses of one family.
pub fn overlaid<N: Borrow<Node>>(me: &str, nodes: &[N], outer: IpAddr) -> BTreeMap<String, IpAddr> {
    ways(me, nodes, |_, ip| ip.is_ipv6() == outer.is_ipv6())
}

fn ways<N: Borrow<Node>>(me: &str, nodes: &[N], fits: impl Fn(&str, &IpAddr) -> bool) -> BTreeMap<String, IpAddr> {
    let others = nodes.iter().map(Borrow::borrow).filter(|n| n.metadata.name.as_deref() != Some(me));
    let hollow = |n: &&Node| n.metadata.labels.as_ref().is_some_and(|l| l.contains_key(HOLLOW));
    let mut found = BTreeMap::new();
    for node in others.filter(|n: &&Node| !hollow(n)) {
        let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
        let internal = addresses.filter(|a| a.type_ == "InternalIP");
        let ips: Vec<IpAddr> = internal.filter_map(|a| a.address.parse().ok()).collect();
        for cidr in ranges(node) {
            if let Some(via) = ips.iter().find(|ip| fits(&cidr, ip)) {
                found.insert(cidr, *via);
            }
        }
    }
    found
}

/// The largest packet that pods may send when others' headers are put around it: that of the device with this address.
pub fn inner_mtu(node: IpAddr) -> Option<u32> {
    let addresses = nix::ifaddrs::getifaddrs().ok()?;
    let has = |a: &nix::ifaddrs::InterfaceAddress| {
        let of = a.address.as_ref();
        let four = of.and_then(|a| a.as_sockaddr_in()).map(|a| IpAddr::V4(a.ip()));
        let six = of.and_then(|a| a.as_sockaddr_in6()).map(|a| IpAddr::V6(a.ip()));
        four.or(six) == Some(node)
    };
    let device = addresses.into_iter().find(has)?.interface_name;
    let mtu: u32 = std::fs::read_to_string(format!("/sys/class/net/{device}/mtu")).ok()?.trim().parse().ok()?;
    mtu.checked_sub(overlay::headers(node))
}

/// Lets packets be forwarded, and hides pods behind the node's address when they leave the cluster's network.
pub async fn prepare(cluster_cidr: &str) -> std::io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let mut script = String::new();
    for (word, multicast, six) in [("ip", "224.0.0.0/4", false), ("ip6", "ff00::/8", true)] {
        let pods: Vec<&str> = cluster_cidr.split(',').filter(|cidr| cidr.contains(':') == six).collect();
        if pods.is_empty() {
            continue;
        }
        if six {
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        }
        let pods = pods.join(", ");
        script += &format!(
            "add table {word} {TABLE}\ndelete table {word} {TABLE}\ntable {word} {TABLE} {{\nchain leaving {{\n\
             type nat hook postrouting priority srcnat; policy accept;\n\
             {word} saddr {{ {pods} }} {word} daddr != {{ {pods} }} {word} daddr != {multicast} ct status & dnat == 0 \
             masquerade\n}}\n}}\n"
        );
    }
    nft::apply(&script).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_lead_to_the_other_real_nodes() {
        let node = |name: &str, cidr: &str, ip: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"podCIDR": cidr},
                "status": {"addresses": [{"type": "InternalIP", "address": ip}]}}))
            .unwrap()
        };
        let mut hollow = node("h", "10.244.2.0/24", "172.31.0.1");
        hollow.metadata.labels = Some([("keelson.dev/hollow".to_owned(), "true".to_owned())].into());
        let mut both = node("c", "10.244.3.0/24", "10.0.0.3");
        both.spec.as_mut().unwrap().pod_cidrs = Some(vec!["10.244.3.0/24".into(), "fd00:244:0:3::/64".into()]);
        let six = serde_json::from_value(json!({"type": "InternalIP", "address": "fd00::3"})).unwrap();
        both.status.as_mut().unwrap().addresses.as_mut().unwrap().push(six);
        let mut without = node("d", "10.244.4.0/24", "10.0.0.4");
        without.spec.as_mut().unwrap().pod_cidrs = Some(vec!["10.244.4.0/24".into(), "fd00:244:0:4::/64".into()]);
        let nodes =
            [node("a", "10.244.0.0/24", "10.0.0.1"), node("b", "10.244.1.0/24", "10.0.0.2"), hollow, both, without];
        let routes = routes("a", &nodes).into_iter().map(|(cidr, via)| format!("{cidr} {via}"));
        let wanted =
            ["10.244.1.0/24 10.0.0.2", "10.244.3.0/24 10.0.0.3", "10.244.4.0/24 10.0.0.4", "fd00:244:0:3::/64 fd00::3"];
        assert_eq!(routes.collect::<Vec<_>>(), wanted);
        let inside = overlaid("a", &nodes, "10.0.0.1".parse().unwrap());
        assert_eq!((inside.len(), inside["fd00:244:0:4::/64"].to_string().as_str()), (5, "10.0.0.4"));
        assert_eq!(overlaid("a", &nodes, "fd00::1".parse().unwrap()).len(), 2);
    }

    #[test]
    fn the_configuration_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let both = ["10.244.1.0/24".to_owned(), "fd00:244:0:1::/64".to_owned()];
        write(dir.path(), &both, None).unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(text.contains("10.244.1.0/24"));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let ipam = &value["plugins"][0]["ipam"];
        assert_eq!((&ipam["ranges"][1][0]["subnet"], &ipam["routes"][1]["dst"]), (&json!(both[1]), &json!("::/0")));
        write(dir.path(), &both, None).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
