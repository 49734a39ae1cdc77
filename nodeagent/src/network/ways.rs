//! The ways to the pods of other nodes, as routes of this one. They follow the nodes as the API tells of them, so that a new
//! node's pods are reached as soon as it has its range, and what is left of a node that went is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use keelson_client::{Informer, ListParams};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::overlay;
use crate::agent::Agent;
use crate::cni::{self, PodNetwork};

/// Marks our routes in the kernel's tables (a number that no routing program has), so that those of nodes that went while
/// no agent ran are found.
pub(crate) const PROTOCOL: &str = "107";
/// All routes are set anew after this time: the kernel drops those of a device that was down for a moment.
const AGAIN: Duration = Duration::from_secs(30);
/// Pause after some could not be set.
const RETRY: Duration = Duration::from_secs(10);

/// Range of addresses to the node that has it.
type Ways = BTreeMap<String, IpAddr>;

/// What is read of other nodes, and nothing else: there may be thousands.
fn trim(node: &mut Node) {
    node.metadata.annotations = None;
    node.metadata.labels.iter_mut().for_each(|labels| labels.retain(|name, _| name == cni::HOLLOW));
    let ranges = cni::ranges(node);
    let spec = node.spec.insert(Default::default());
    spec.pod_cidrs = Some(ranges);
    let addresses = node.status.take().and_then(|status| status.addresses);
    node.status.insert(Default::default()).addresses = addresses;
}

/// Whether two trimmed nodes differ in what matters.
fn differ(old: Option<&Arc<Node>>, new: Option<&Arc<Node>>) -> bool {
    let parts = |node: Option<&Arc<Node>>| {
        node.map(|n| (n.spec.clone(), n.status.clone().and_then(|s| s.addresses), n.metadata.labels.clone()))
    };
    parts(old) != parts(new)
}

/// Follows the nodes for ever.
pub async fn run(agent: Arc<Agent>, stop: CancellationToken) {
    if agent.config.pod_network == PodNetwork::None {
        return std::future::pending().await;
    }
    let changed = Arc::new(Notify::new());
    let client = &agent.config.client;
    let nodes = Informer::<Node>::start_trimmed(client, ListParams::default(), &[], Some(Box::new(trim)), stop);
    let told = changed.clone();
    nodes.subscribe(move |change| {
        if differ(change.old.as_ref(), change.new.as_ref()) {
            told.notify_one();
        }
    });
    nodes.synced().await;
    let mut known = left_behind().await;
    let mut whole = tokio::time::Instant::now();
    loop {
        let wanted = wanted(&agent, &nodes.list_all());
        if whole.elapsed() >= AGAIN {
            // All of them once more: those that are not known are set.
            known.values_mut().for_each(|via| *via = None);
            whole = tokio::time::Instant::now();
        }
        let pause = match bring_about(&agent, &wanted, &mut known).await {
            Ok(()) => AGAIN.saturating_sub(whole.elapsed()),
            Err(error) => {
                tracing::warn!(%error, "some other nodes' pods may not be reached");
                RETRY
            }
        };
        tokio::select! {
            () = changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn wanted(agent: &Agent, nodes: &[Arc<Node>]) -> Ways {
    let (me, own) = (&agent.config.node_name, agent.config.node_ip);
    if agent.config.pod_network == PodNetwork::Vxlan { cni::overlaid(me, nodes, own) } else { cni::routes(me, nodes) }
}

/// What the kernel has: to which node a range leads, if that is known.
type Known = BTreeMap<String, Option<IpAddr>>;

/// Lines for `ip` and for `bridge` that turn what the kernel has into what is wanted; each line of the first with the range
/// that it is for.
fn changes(wanted: &Ways, known: &Known, overlaid: bool) -> (Vec<(String, String)>, Vec<String>) {
    let (mut routes, mut bridge) = (Vec::new(), Vec::new());
    for cidr in known.keys().filter(|cidr| !wanted.contains_key(*cidr)) {
        routes.push((cidr.clone(), format!("route del {cidr} proto {PROTOCOL}")));
    }
    for (cidr, via) in wanted.iter().filter(|(cidr, via)| known.get(*cidr) != Some(&Some(**via))) {
        if overlaid {
            let [neighbour, entry, route] = overlay::way(cidr, *via);
            routes.push((cidr.clone(), neighbour));
            routes.push((cidr.clone(), format!("{route} proto {PROTOCOL}")));
            bridge.push(entry);
        } else {
            routes.push((cidr.clone(), format!("route replace {cidr} via {via} proto {PROTOCOL}")));
        }
    }
    (routes, bridge)
}

async fn bring_about(agent: &Agent, wanted: &Ways, known: &mut Known) -> io::Result<()> {
    let overlaid = agent.config.pod_network == PodNetwork::Vxlan;
    if overlaid {
        let own = agent.seen_node.lock().as_ref().map(|node| cni::ranges(node)).unwrap_or_default();
        overlay::device(agent.config.node_ip, &own).await?;
    }
    let (routes, bridge) = changes(wanted, known, overlaid);
    // Entries of the device first: a route without them leads nowhere.
    batch("bridge", &bridge).await?;
    let lines: Vec<String> = routes.iter().map(|(_, line)| line.clone()).collect();
    let failed = batch("ip", &lines).await?;
    let refused: BTreeSet<&String> = failed.0.iter().filter_map(|at| routes.get(*at)).map(|(cidr, _)| cidr).collect();
    // What was to go is gone either way: the kernel may have dropped it before.
    known.retain(|cidr, _| wanted.contains_key(cidr));
    for (cidr, via) in wanted.iter().filter(|(cidr, _)| !refused.contains(cidr)) {
        known.insert(cidr.clone(), Some(*via));
    }
    match refused.iter().find(|cidr| wanted.contains_key(**cidr)) {
        Some(cidr) => Err(io::Error::other(format!("{cidr}: {}", failed.1))),
        None => Ok(()),
    }
}

/// Ranges to which routes of ours lead, of this agent or one before it.
async fn left_behind() -> Known {
    let mut found = Known::new();
    for family in ["-4", "-6"] {
        let shown = Command::new("ip").args([family, "route", "show", "proto", PROTOCOL]).output().await;
        let shown = shown.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        found.extend(shown.lines().filter_map(|line| line.split(' ').next()).map(|cidr| (cidr.to_owned(), None)));
    }
    found
}

/// Runs many commands of a program in one process. Returns which of them failed, and why.
async fn batch(program: &str, lines: &[String]) -> io::Result<(Vec<usize>, String)> {
    if lines.is_empty() {
        return Ok(Default::default());
    }
    let mut child = Command::new(program)
        .args(["-force", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other(format!("{program} has no input")))?;
    let text = lines.join("\n") + "\n";
    let writing = tokio::spawn(async move { stdin.write_all(text.as_bytes()).await });
    let output = child.wait_with_output().await?;
    // A program that ended early is heard of by its errors.
    let _ = writing.await;
    Ok(if output.status.success() { Default::default() } else { failures(&String::from_utf8_lossy(&output.stderr)) })
}

/// The numbers of the lines that failed, counted from 0, and the first words about it.
fn failures(errors: &str) -> (Vec<usize>, String) {
    let number = |line: &str| line.rsplit_once(':')?.1.trim().parse::<usize>().ok()?.checked_sub(1);
    let failed = errors.lines().filter(|line| line.starts_with("Command failed")).filter_map(number);
    let said = errors.lines().find(|line| !line.starts_with("Command failed")).unwrap_or_default();
    (failed.collect(), said.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ways(of: &[(&str, &str)]) -> Ways {
        of.iter().map(|(cidr, via)| ((*cidr).to_owned(), via.parse().unwrap())).collect()
    }

    #[test]
    fn only_what_differs_is_changed() {
        let known: Known = [
            ("10.244.1.0/24".to_owned(), Some("10.0.0.1".parse().unwrap())),
            ("10.244.2.0/24".to_owned(), Some("10.0.0.2".parse().unwrap())),
            ("10.244.3.0/24".to_owned(), None),
        ]
        .into();
        let wanted = ways(&[("10.244.1.0/24", "10.0.0.1"), ("10.244.2.0/24", "10.0.0.9"), ("fd00:1::/64", "fd00::1")]);
        let (lines, bridge) = changes(&wanted, &known, false);
        let lines: Vec<_> = lines.iter().map(|(_, line)| line.as_str()).collect();
        assert_eq!(
            lines,
            [
                "route del 10.244.3.0/24 proto 107",
                "route replace 10.244.2.0/24 via 10.0.0.9 proto 107",
                "route replace fd00:1::/64 via fd00::1 proto 107",
            ]
        );
        assert!(bridge.is_empty());
        let (lines, bridge) = changes(&wanted, &known, true);
        assert_eq!((lines.len(), bridge.len()), (5, 2), "{lines:?} {bridge:?}");
    }

    #[test]
    fn failures_are_told_by_line() {
        let said = "Error: Nexthop has invalid gateway.\nCommand failed -:2\nError: x\nCommand failed -:5\n";
        assert_eq!(failures(said), (vec![1, 4], "Error: Nexthop has invalid gateway.".to_owned()));
        assert_eq!(failures(""), (vec![], String::new()));
    }

    #[test]
    fn what_does_not_matter_is_not_kept() {
        let mut node: Node = serde_json::from_value(json!({
            "metadata": {"name": "a", "labels": {"x": "y", "keelson.dev/hollow": "true"}, "annotations": {"b": "c"}},
            "spec": {"podCIDR": "10.244.1.0/24", "taints": [{"key": "t", "effect": "NoSchedule"}]},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "images": [{"names": ["i"]}]},
        }))
        .unwrap();
        trim(&mut node);
        let before = Arc::new(node.clone());
        let wanted = json!({"metadata": {"name": "a", "labels": {"keelson.dev/hollow": "true"}},
            "spec": {"podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}});
        let mut got = serde_json::to_value(&node).unwrap();
        got.as_object_mut().unwrap().retain(|key, _| wanted.get(key).is_some());
        assert_eq!(got, wanted);
        node.metadata.resource_version = Some("9".into());
        assert!(!differ(Some(&before), Some(&Arc::new(node.clone()))));
        node.status = None;
        assert!(differ(Some(&before), Some(&Arc::new(node))) && differ(None, Some(&before)));
    }
}
