//! Pods' packets between nodes inside of UDP (VXLAN), for networks that would not route pods' addresses.
//!
//! Each node's device has a hardware address that follows from the node's own address, so that nodes need to tell each
//! other nothing but what the API has anyway.

use std::io;
use std::net::IpAddr;

use sha2::{Digest, Sha256};
use tokio::process::Command;

/// The device.
pub(crate) const DEVICE: &str = "keelson.1";
/// The network's number, and the port that Linux has always used for it.
const NETWORK: &str = "1";
const PORT: &str = "8472";

/// Bytes that the outer headers take between nodes with such addresses.
pub fn headers(node: IpAddr) -> u32 {
    if node.is_ipv4() { 50 } else { 70 }
}

/// The hardware address of a node's device.
fn hardware(node: IpAddr) -> String {
    let (first, [a, b, c, d]) = match node {
        IpAddr::V4(ip) => ("0e:6b", ip.octets()),
        IpAddr::V6(ip) => {
            let digest = Sha256::digest(ip.octets());
            ("0e:6c", [digest[0], digest[1], digest[2], digest[3]])
        }
    };
    format!("{first}:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// The first address of a range: nobody has it, so it stands for the node.
fn network(cidr: &str) -> &str {
    cidr.split_once('/').map_or(cidr, |(ip, _)| ip)
}

async fn run(program: &str, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(program).args(arguments).output().await?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{program} {}: {message}", arguments.join(" "))))
}

/// Makes this node's device if it is not there as it should be.
pub async fn device(node: IpAddr, ranges: &[String]) -> io::Result<()> {
    let (mac, local) = (hardware(node), node.to_string());
    let shown = Command::new("ip").args(["-d", "link", "show", DEVICE]).output().await?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    if !(shown.contains(&mac) && shown.contains(&format!("local {local} "))) {
        if !shown.is_empty() {
            run("ip", &["link", "delete", DEVICE]).await?;
        }
        let kind = ["type", "vxlan", "id", NETWORK, "dstport", PORT, "local", &local, "nolearning"];
        run("ip", &[&["link", "add", DEVICE, "address", &mac], &kind[..]].concat()).await?;
    }
    for cidr in ranges {
        let bits = if cidr.contains(':') { 128 } else { 32 };
        run("ip", &["address", "replace", &format!("{}/{bits}", network(cidr)), "dev", DEVICE]).await?;
    }
    run("ip", &["link", "set", DEVICE, "up"]).await
}

/// What leads to the pods of one other node: lines for `ip`, `bridge` and `ip`.
pub fn way(cidr: &str, node: IpAddr) -> [String; 3] {
    let (mac, at) = (hardware(node), network(cidr));
    [
        format!("neighbor replace {at} lladdr {mac} dev {DEVICE} nud permanent"),
        format!("fdb replace {mac} dev {DEVICE} dst {node}"),
        format!("route replace {cidr} via {at} dev {DEVICE} onlink"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_follow_from_addresses() {
        let node = "10.0.0.7".parse().unwrap();
        let six = way("fd00:244:0:3::/64", node);
        assert_eq!(six[2], "route replace fd00:244:0:3::/64 via fd00:244:0:3:: dev keelson.1 onlink");
        assert_eq!(
            way("10.244.3.0/24", node),
            [
                "neighbor replace 10.244.3.0 lladdr 0e:6b:0a:00:00:07 dev keelson.1 nud permanent",
                "fdb replace 0e:6b:0a:00:00:07 dev keelson.1 dst 10.0.0.7",
                "route replace 10.244.3.0/24 via 10.244.3.0 dev keelson.1 onlink",
            ]
        );
        let [one, two] = ["fd00::1", "fd00::2"].map(|ip| hardware(ip.parse().unwrap()));
        assert!(one.starts_with("0e:6c:") && one != two);
    }
}
