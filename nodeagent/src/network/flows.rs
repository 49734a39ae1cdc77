//! Flows of UDP that the kernel remembers: without a connection that ends, a client would go on to an endpoint that is
//! gone, or to none though one has come.

use std::collections::{BTreeMap, BTreeSet};

use tokio::process::Command;

use super::sets::Wanted;

/// Flows that are forgotten one by one; beyond, the kernel forgets them when they are silent.
const MAX_FLOWS: usize = 1000;

/// Flows to be forgotten: the address and port that clients ask, and the endpoint that is gone (`None`: all of them).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    address: String,
    port: String,
    endpoint: Option<String>,
}

/// The endpoints of UDP by address and port of the Service, as elements of the proxy's maps have them.
fn endpoints(elements: &Wanted) -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut found: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for ((set, key), data) in elements {
        let parts: Vec<&str> = key.split(" . ").collect();
        match (*set, &parts[..]) {
            ("endpoints", [address, "udp", port, _]) => {
                let endpoint = data.split(" . ").next().unwrap_or_default();
                found.entry(((*address).into(), (*port).into())).or_default().insert(endpoint.into());
            }
            ("refused" | "dropped", [address, "udp", port]) => {
                found.entry(((*address).into(), (*port).into())).or_default();
            }
            _ => {}
        }
    }
    found
}

/// The flows that a change of a Service makes wrong.
pub fn outdated(old: &Wanted, new: &Wanted) -> Vec<Flow> {
    let (old, new) = (endpoints(old), endpoints(new));
    let mut flows = Vec::new();
    for ((address, port), before) in &old {
        let after = new.get(&(address.clone(), port.clone())).cloned().unwrap_or_default();
        let flow = |endpoint| Flow { address: address.clone(), port: port.clone(), endpoint };
        if before.is_empty() && !after.is_empty() {
            flows.push(flow(None));
        }
        flows.extend(before.difference(&after).map(|endpoint| flow(Some(endpoint.clone()))));
    }
    flows
}

impl Flow {
    fn arguments(&self) -> Vec<&str> {
        let mut arguments = vec!["-D", "-p", "udp"];
        if self.address.contains(':') {
            arguments.extend(["-f", "ipv6"]);
        }
        arguments.extend(["--orig-dst", &self.address, "--dport", &self.port]);
        if let Some(endpoint) = &self.endpoint {
            arguments.extend(["--dst-nat", endpoint]);
        }
        arguments
    }
}

/// Lets the kernel forget them.
pub async fn forget(flows: &[Flow]) {
    for flow in flows.iter().take(MAX_FLOWS) {
        match Command::new("conntrack").args(flow.arguments()).output().await {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                // It also fails when there is no such flow.
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                if !said.contains("0 flow entries") {
                    tracing::warn!(?flow, said, "flows of UDP to an endpoint that is gone may go on");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "conntrack (package conntrack) cannot be run: flows of UDP to endpoints that are gone may go on");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(list: &[(&'static str, &str, &str)]) -> Wanted {
        list.iter().map(|(set, key, data)| ((*set, (*key).to_owned()), (*data).to_owned())).collect()
    }

    #[test]
    fn flows_to_what_is_gone() {
        let two = wanted(&[
            ("endpoints", "10.96.0.5 . udp . 53 . 0", "10.1.0.2 . 53"),
            ("endpoints", "10.96.0.5 . udp . 53 . 1", "10.1.0.3 . 53"),
            ("endpoints", "10.96.0.5 . tcp . 53 . 0", "10.1.0.2 . 53"),
        ]);
        let one = wanted(&[("endpoints", "10.96.0.5 . udp . 53 . 0", "10.1.0.3 . 53")]);
        let none = wanted(&[("refused", "10.96.0.5 . udp . 53", "")]);
        let flow = |endpoint: Option<&str>| Flow {
            address: "10.96.0.5".into(),
            port: "53".into(),
            endpoint: endpoint.map(str::to_owned),
        };
        for (old, new, expected) in [
            (&two, &two, vec![]),
            (&two, &one, vec![flow(Some("10.1.0.2"))]),
            (&one, &two, vec![]),
            (&one, &none, vec![flow(Some("10.1.0.3"))]),
            (&none, &one, vec![flow(None)]),
            (&one, &Wanted::new(), vec![flow(Some("10.1.0.3"))]),
        ] {
            assert_eq!(outdated(old, new), expected, "{old:?} {new:?}");
        }
        let wanted = ["-D", "-p", "udp", "--orig-dst", "10.96.0.5", "--dport", "53", "--dst-nat", "10.1.0.2"];
        assert_eq!(flow(Some("10.1.0.2")).arguments(), wanted);
    }
}
