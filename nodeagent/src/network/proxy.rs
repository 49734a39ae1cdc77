//! Services on this node: what Services and their endpoints want becomes elements of a few maps, changed by one
//! transaction for each round of changes. Rules do not grow with the number of Services.
//!
//! Invariant: what `applied` says is in the kernel; after any failure the whole table is made anew.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::Key;

use super::flows::{self, Flow};
use super::health_check::HealthChecks;
use super::netlink::{Batch, Filter};
use super::service::{Chains, Contribution, Family, Site, contribution};
use super::sets::{Change, Elements};
use super::{iptables, nft};
use crate::agent::Agent;

/// Changes that come within this time after one was made are made together: the first of many is not held up.
const GATHER: Duration = Duration::from_millis(20);
/// Pause after the packet filter refused.
const RETRY: Duration = Duration::from_secs(5);
/// The table's name.
pub(crate) const TABLE: &str = "keelson_services";

/// Chains that choose among so many endpoints are there from the start. `nft` 1.0 cannot add a rule that looks into a map
/// which it did not declare in the same script, so a larger number makes the table anew.
const SIZES: usize = 64;

/// What is in one family's table.
#[derive(Default)]
pub(super) struct Table {
    elements: Elements,
    /// Numbers of endpoints beyond [`SIZES`] for which there are chains.
    sizes: HashSet<usize>,
    /// Whether the kernel's table must be made anew.
    outgrown: bool,
    chains: Chains,
    contributions: HashMap<Key, Contribution>,
}

fn pick(family: Family, size: usize) -> String {
    let word = family.word();
    let number = format!("numgen random mod {size}");
    format!(
        "add chain {word} {TABLE} pick{size}\nadd chain {word} {TABLE} node_pick{size}\n\
         add rule {word} {TABLE} pick{size} dnat {word} to {word} daddr . meta l4proto . th dport . {number} map @endpoints\n\
         add rule {word} {TABLE} node_pick{size} dnat {word} to meta l4proto . th dport . {number} map @node_port_endpoints\n"
    )
}

fn sticky(family: Family, name: &str, rules: &str) -> String {
    let (word, address) = (family.word(), family.kind());
    let mut script = format!(
        "add map {word} {TABLE} {name} {{ type {address} : {address} . inet_service; \
         size 65536; flags dynamic,timeout; timeout 3h; }}\nadd chain {word} {TABLE} {name}\n"
    );
    for rule in rules.lines() {
        let _ = writeln!(script, "add rule {word} {TABLE} {name} {rule}");
    }
    script
}

/// The table with everything but elements. It replaces what is there.
fn skeleton(family: Family, pods: &[String]) -> String {
    let word = family.word();
    let address = family.kind();
    let mine = pods.iter().filter(|cidr| cidr.contains(':') == (family == Family::V6));
    let mine = mine.cloned().collect::<Vec<_>>().join(", ");
    let from_outside = if mine.is_empty() {
        String::new()
    } else {
        format!("ct status dnat {word} saddr != {{ {mine} }} ct original {word} daddr @cluster_ips masquerade\n")
    };
    let reject = if family == Family::V4 { "icmp" } else { "icmpv6" };
    format!(
        "add table {word} {TABLE}\ndelete table {word} {TABLE}\ntable {word} {TABLE} {{
map services {{ typeof {word} daddr . meta l4proto . th dport : verdict; }}
map endpoints {{ typeof {word} daddr . meta l4proto . th dport . numgen random mod 65536 : {word} daddr . th dport; }}
map node_ports {{ typeof meta l4proto . th dport : verdict; }}
map node_port_endpoints {{ typeof meta l4proto . th dport . numgen random mod 65536 : {word} daddr . th dport; }}
set refused {{ typeof {word} daddr . meta l4proto . th dport; }}
set dropped {{ typeof {word} daddr . meta l4proto . th dport; }}
set node_ports_refused {{ typeof meta l4proto . th dport; }}
set hairpins {{ type {address} . {address}; }}
set cluster_ips {{ type {address}; }}
set masqueraded {{ type {address}; }}
set masqueraded_tcp {{ type inet_service; }}
set masqueraded_udp {{ type inet_service; }}
set masqueraded_sctp {{ type inet_service; }}
chain translate {{
{word} daddr . meta l4proto . th dport vmap @services
fib daddr type local meta l4proto . th dport vmap @node_ports
}}
chain refuse {{
{word} daddr . meta l4proto . th dport @refused reject with {reject} type port-unreachable
{word} daddr . meta l4proto . th dport @dropped drop
fib daddr type local meta l4proto . th dport @node_ports_refused reject with {reject} type port-unreachable
}}
chain prerouting {{ type nat hook prerouting priority dstnat - 10; policy accept; jump translate; }}
chain output {{ type nat hook output priority -110; policy accept; jump translate; }}
chain postrouting {{
type nat hook postrouting priority srcnat; policy accept;
{word} saddr . {word} daddr @hairpins ct status dnat masquerade
ct status dnat ct original {word} daddr @masqueraded masquerade
ct status dnat meta l4proto tcp ct original proto-dst @masqueraded_tcp masquerade
ct status dnat meta l4proto udp ct original proto-dst @masqueraded_udp masquerade
ct status dnat meta l4proto sctp ct original proto-dst @masqueraded_sctp masquerade
{from_outside}}}
chain refuse_input {{ type filter hook input priority -110; policy accept; ct state new jump refuse; }}
chain refuse_forward {{ type filter hook forward priority -110; policy accept; ct state new jump refuse; {word} daddr @cluster_ips reject with {reject} type port-unreachable; }}
chain refuse_output {{ type filter hook output priority -90; policy accept; ct state new jump refuse; {word} daddr @cluster_ips reject with {reject} type port-unreachable; }}
}}\n"
    )
}

impl Table {
    /// Takes what a Service wants now; the difference goes to `change` and `script`.
    /// Returns the flows of UDP that the change makes wrong.
    pub(super) fn take(
        &mut self,
        family: Family,
        key: &Key,
        new: Contribution,
        change: &mut Change,
        script: &mut String,
    ) -> Vec<Flow> {
        let old = self.contributions.remove(key).unwrap_or_default();
        if old == new {
            if !new.elements.is_empty() {
                self.contributions.insert(key.clone(), new);
            }
            return Vec::new();
        }
        let outdated = flows::outdated(&old.elements, &new.elements);
        for size in new.sizes.iter().filter(|size| **size > SIZES) {
            self.outgrown |= self.sizes.insert(*size);
        }
        for (name, rules) in &new.chains {
            if self.chains.insert(name.clone(), rules.clone()).is_none() {
                *script += &sticky(family, name, rules);
            }
        }
        self.elements.replace(&old.elements, &new.elements, change);
        if !new.elements.is_empty() {
            self.contributions.insert(key.clone(), new);
        }
        outdated
    }

    /// Chains for clients that no Service needs any more, to be removed after the elements that lead to them.
    pub(super) fn unused(&mut self, family: Family) -> String {
        if self.chains.is_empty() {
            return String::new();
        }
        let needed: HashSet<&String> = self.contributions.values().flat_map(|c| c.chains.keys()).collect();
        let gone: Vec<String> = self.chains.keys().filter(|name| !needed.contains(name)).cloned().collect();
        let word = family.word();
        let mut script = String::new();
        for name in gone {
            self.chains.remove(&name);
            let _ = writeln!(
                script,
                "flush chain {word} {TABLE} {name}\ndelete chain {word} {TABLE} {name}\ndelete map {word} {TABLE} {name}"
            );
        }
        script
    }

    /// The whole table.
    pub(super) fn whole(&self, family: Family, pods: &[String]) -> String {
        let mut script = skeleton(family, pods);
        (1..=SIZES).chain(self.sizes.iter().copied()).for_each(|size| script += &pick(family, size));
        self.chains.iter().for_each(|(name, rules)| script += &sticky(family, name, rules));
        script + &self.elements.all().script(&format!("{} {TABLE}", family.word()))
    }
}

/// How Services are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProxyMode {
    /// Maps of nftables: rules do not grow with Services.
    #[default]
    Nftables,
    /// Chains of iptables.
    Iptables,
}

impl std::str::FromStr for ProxyMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "nftables" => Ok(Self::Nftables),
            "iptables" => Ok(Self::Iptables),
            "ipvs" | "userspace" => {
                let why = if text == "userspace" {
                    "copied every byte and upstream has removed it"
                } else if std::path::Path::new("/proc/net/ip_vs").exists() {
                    "is deprecated upstream in favour of nftables"
                } else {
                    "needs a kernel with ip_vs, which this one does not have, and is deprecated upstream"
                };
                Err(format!(
                    "{text} is not served, for it {why}: nftables and iptables are; to use another proxy, run it beside \
                     --no-proxy"
                ))
            }
            other => Err(format!("{other:?} is neither nftables nor iptables")),
        }
    }
}

struct Proxy {
    agent: Arc<Agent>,
    mode: ProxyMode,
    /// The chains of iptables that are there.
    chains: BTreeMap<Family, BTreeSet<String>>,
    tables: BTreeMap<Family, Table>,
    site: Site,
    health_checks: HealthChecks,
    pods: Vec<String>,
    /// Whether the kernel has what the tables say.
    applied: bool,
    /// The packet filter, for changes of elements alone.
    filter: Option<Filter>,
}

/// What a round changes in one family's table.
pub(super) struct Step {
    pub(super) family: Family,
    pub(super) change: Change,
    /// Chains that elements will lead to, and such that no element leads to any more.
    pub(super) chains: String,
    pub(super) removed: String,
    /// The whole table, if it is made anew.
    pub(super) whole: Option<String>,
}

impl Step {
    fn is_empty(&self) -> bool {
        self.whole.is_none() && self.change.is_empty() && self.chains.is_empty()
    }

    fn script(&self) -> String {
        if let Some(whole) = &self.whole {
            return whole.clone();
        }
        let change = self.change.script(&format!("{} {TABLE}", self.family.word()));
        format!("{}{change}{}", self.chains, self.removed)
    }
}

/// Does the steps as one transaction: changes of elements by the kernel's own messages, all else by `nft`.
pub(super) async fn carry_out(steps: &[Step], filter: Option<&Filter>) -> std::io::Result<()> {
    if let Some(filter) = filter {
        let mut batch = Some(Batch::default());
        for step in steps {
            let elements = step.whole.is_none() && step.chains.is_empty() && step.removed.is_empty();
            batch = batch.filter(|_| elements).and_then(|mut batch| {
                batch.add(step.family, TABLE, &step.change)?;
                Some(batch)
            });
        }
        if let Some(batch) = batch {
            return filter.apply(batch).await;
        }
    }
    nft::apply(&steps.iter().map(Step::script).collect::<String>()).await
}

/// Serves Services on this node for ever.
pub async fn run(agent: Arc<Agent>) {
    agent.services.synced().await;
    agent.endpoints.synced().await;
    let mut tables: BTreeMap<Family, Table> = BTreeMap::new();
    for family in Family::ALL {
        tables.insert(family, Table::default());
    }
    let site = Site {
        node: agent.config.node_name.clone(),
        zone: agent.zone(),
        own: agent.config.cluster_dns.into_iter().collect(),
    };
    let pods = agent.config.cluster_cidr.split(',').map(str::to_owned).collect();
    let mut proxy = Proxy {
        agent: agent.clone(),
        mode: agent.config.proxy_mode,
        chains: BTreeMap::new(),
        tables,
        site,
        health_checks: HealthChecks::default(),
        pods,
        applied: false,
        filter: Filter::open()
            .inspect_err(|error| tracing::warn!(%error, "every change of Services goes through nft, which is slower"))
            .ok(),
    };
    if let Err(error) = proxy.clear_other_mode().await {
        tracing::warn!(%error, "rules of another mode may be left");
    }
    for service in agent.services.list() {
        agent.services.touch(keelson_client::informer::key(&*service));
    }
    loop {
        let began = tokio::time::Instant::now();
        if let Err(error) = proxy.round().await {
            proxy.applied = false;
            tracing::error!(%error, "Services could not be set up on this node; trying again");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        tokio::select! {
            () = agent.services_changed.notified() => {}
            () = agent.endpoints.changed.notified() => {}
        }
        tokio::time::sleep_until(began + GATHER).await;
    }
}

impl Proxy {
    /// What the node served Services with before it was told to use another mode.
    async fn clear_other_mode(&mut self) -> std::io::Result<()> {
        for family in Family::ALL {
            match self.mode {
                ProxyMode::Nftables => iptables::remove(family).await?,
                ProxyMode::Iptables => {
                    let word = family.word();
                    nft::apply(&format!("add table {word} {TABLE}\ndelete table {word} {TABLE}\n")).await?;
                    self.chains.insert(family, iptables::present(family).await?);
                }
            }
        }
        Ok(())
    }

    async fn apply_chains(&mut self) -> std::io::Result<()> {
        for (family, table) in &self.tables {
            let chains = iptables::Chains::of(*family, table.contributions.values(), &self.pods);
            let before = self.chains.entry(*family).or_default();
            iptables::apply(*family, &chains.script(before)).await?;
            *before = chains.names();
        }
        Ok(())
    }

    async fn round(&mut self) -> std::io::Result<()> {
        let mut dirty = self.agent.services.drain();
        dirty.extend(self.agent.endpoints.drain());
        if dirty.is_empty() && self.applied {
            return Ok(());
        }
        for key in &dirty {
            let (service, slices) = (self.agent.services.get(key), self.agent.endpoints.of(key));
            let slices: Vec<&EndpointSlice> = slices.iter().map(AsRef::as_ref).collect();
            self.health_checks.take(key, service.as_deref(), &slices, &self.site.node).await;
        }
        let (mut steps, mut outdated) = (Vec::new(), Vec::new());
        for (family, table) in &mut self.tables {
            let (mut change, mut chains) = (Change::default(), String::new());
            for key in &dirty {
                let service = self.agent.services.get(key);
                let slices = self.agent.endpoints.of(key);
                let slices: Vec<&EndpointSlice> = slices.iter().map(AsRef::as_ref).collect();
                let new = service.map(|s| contribution(*family, &s, &slices, &self.site)).unwrap_or_default();
                outdated.extend(table.take(*family, key, new, &mut change, &mut chains));
            }
            let removed = table.unused(*family);
            let anew = !self.applied || std::mem::take(&mut table.outgrown);
            let whole = (anew && self.mode == ProxyMode::Nftables).then(|| table.whole(*family, &self.pods));
            steps.push(Step { family: *family, change, chains, removed, whole });
        }
        steps.retain(|step| !step.is_empty());
        match self.mode {
            ProxyMode::Nftables if steps.is_empty() => {}
            ProxyMode::Nftables => carry_out(&steps, self.filter.as_ref()).await?,
            ProxyMode::Iptables => self.apply_chains().await?,
        }
        self.applied = true;
        flows::forget(&outdated).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_whole_and_then_changes() {
        let mut table = Table::default();
        let key = ("n".to_owned(), "s".to_owned());
        let (mut change, mut script) = (Change::default(), String::new());
        let mut wanted = Contribution { sizes: vec![2], ..Contribution::default() };
        wanted.elements.insert(("services", "1.1.1.1 . tcp . 80".into()), "goto pick2".into());
        wanted.chains.insert("sticky_1".into(), "rule\n".into());
        table.take(Family::V4, &key, wanted.clone(), &mut change, &mut script);
        assert!(script.contains("sticky_1 rule"));
        assert!(table.whole(Family::V4, &["10.0.0.0/8".into()]).contains("goto pick2"));
        let (mut change, mut script) = (Change::default(), String::new());
        table.take(Family::V4, &key, wanted, &mut change, &mut script);
        assert!(change.is_empty() && script.is_empty() && table.unused(Family::V4).is_empty());
        table.take(Family::V4, &key, Contribution::default(), &mut change, &mut script);
        assert!(change.script("t").starts_with("delete element t services"));
        assert!(table.unused(Family::V4).contains("delete chain ip keelson_services sticky_1"));
    }

    /// Gives scripts to the packet filter of a network namespace of its own, one after another.
    fn refused(scripts: &[&str]) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let mut command = String::from("true");
        for (i, script) in scripts.iter().enumerate() {
            let path = dir.path().join(i.to_string());
            std::fs::write(&path, script).unwrap();
            command += &format!(" && nft -f {}", path.display());
        }
        let output = std::process::Command::new("unshare").args(["--net", "sh", "-c", &command]).output().unwrap();
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[test]
    fn the_packet_filter_takes_it() {
        if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/usr/sbin/nft").exists() {
            eprintln!("skipped: not root, or no nft");
            return;
        }
        let site = Site { node: "a".into(), ..Site::default() };
        for family in Family::ALL {
            let (ip, to) = if family == Family::V4 { ("10.96.0.5", "10.1.0.2") } else { ("fd00::5", "fd01::2") };
            let mut table = Table::default();
            let mut whole = String::new();
            for affinity in ["None", "ClientIP"] {
                let service = serde_json::from_value(serde_json::json!({"spec": {"type": "NodePort", "clusterIP": ip,
                    "externalIPs": [ip], "sessionAffinity": affinity,
                    "ports": [{"port": 80, "nodePort": 30080, "protocol": "UDP"}, {"name": "x", "port": 81}]}}))
                .unwrap();
                let slice: EndpointSlice = serde_json::from_value(
                    serde_json::json!({"addressType": "any", "ports": [{"name": "", "port": 8080}],
                    "endpoints": [{"addresses": [to], "nodeName": "a"}]}),
                )
                .unwrap();
                let wanted = contribution(family, &service, &[&slice], &site);
                let (mut change, mut script) = (Change::default(), String::new());
                table.take(family, &("n".into(), "s".into()), wanted, &mut change, &mut script);
                let unused = table.unused(family);
                let words = format!("{} {TABLE}", family.word());
                script = format!("{script}{}{unused}", change.script(&words));
                if !whole.is_empty() {
                    assert_eq!(refused(&[&whole, &script]), None, "{script}");
                }
                whole = table.whole(family, &["10.244.0.0/16".into(), "fd01::/48".into()]);
                assert_eq!(refused(&[&whole, &whole]), None, "{whole}");
            }
        }
    }
}
