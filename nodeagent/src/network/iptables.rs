//! Services by iptables, for nodes whose other rules are iptables': what nftables has in maps is a chain for each address
//! here, so that rules grow with Services. Pure but for handing them over.
//!
//! Invariant: one `iptables-restore` replaces all of our chains of a table at once; chains of others are not touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::io;
use std::process::Stdio;

use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::service::{Contribution, Family, Target};

/// The mark of packets whose sender is to be hidden; kube-proxy's, so that both never disagree about it.
const MARK: &str = "0x4000";
/// Where our chains begin: table, chain of the kernel, our chain, what is asked before.
const HOOKS: &[(&str, &str, &str, &[&str])] = &[
    ("nat", "PREROUTING", "KEELSON-SERVICES", &[]),
    ("nat", "OUTPUT", "KEELSON-SERVICES", &[]),
    ("nat", "POSTROUTING", "KEELSON-POSTROUTING", &[]),
    ("filter", "INPUT", "KEELSON-REFUSE", &["-m", "conntrack", "--ctstate", "NEW"]),
    ("filter", "FORWARD", "KEELSON-REFUSE", &["-m", "conntrack", "--ctstate", "NEW"]),
    ("filter", "OUTPUT", "KEELSON-REFUSE", &["-m", "conntrack", "--ctstate", "NEW"]),
];

/// The chains of one family.
#[derive(Default)]
pub struct Chains {
    /// Rules by chain.
    nat: BTreeMap<String, Vec<String>>,
    /// Rules that lead to the chains of addresses, and then those of ports of the node.
    services: Vec<String>,
    node_ports: Vec<String>,
    refused: BTreeSet<String>,
    /// Addresses of Services: what is not served there is refused last.
    cluster_ips: BTreeSet<String>,
}

fn name(prefix: &str, of: &str) -> String {
    Sha256::digest(of)[..8].iter().fold(format!("{prefix}-"), |name, byte| name + &format!("{byte:02x}"))
}

/// The parts of a key of the packet filter's maps.
fn parts(key: &str) -> Vec<&str> {
    key.split(" . ").collect()
}

/// An address and port as rules have it.
fn destination((ip, port): &Target) -> String {
    if ip.is_ipv6() { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

/// The endpoints of one key.
fn endpoints(wanted: &Contribution, map: &'static str, key: &str) -> Vec<Target> {
    let start = format!("{key} . ");
    let mine = wanted.elements.iter().filter(|((set, k), _)| *set == map && k.starts_with(&start));
    let target = |(_, data): (_, &String)| {
        let (ip, port) = data.split_once(" . ")?;
        Some((ip.parse().ok()?, port.parse().ok()?))
    };
    mine.filter_map(target).collect()
}

impl Chains {
    /// What all Services of a family want.
    pub fn of<'a>(family: Family, wanted: impl Iterator<Item = &'a Contribution>, pods: &[String]) -> Self {
        let pods = pods.iter().find(|cidr| cidr.contains(':') == (family == Family::V6));
        let mut chains = Self::default();
        for one in wanted {
            chains.add(one, pods.map(String::as_str));
        }
        chains
    }

    fn add(&mut self, wanted: &Contribution, pods: Option<&str>) {
        let has = |set: &'static str, key: &str| wanted.elements.contains_key(&(set, key.to_owned()));
        for ((set, key), data) in &wanted.elements {
            match (*set, &parts(key)[..]) {
                ("services", [ip, protocol, port]) => {
                    let chain = name("KSVC", key);
                    let hide = if has("masqueraded", ip) {
                        Some(String::new())
                    } else {
                        pods.filter(|_| has("cluster_ips", ip)).map(|pods| format!("! -s {pods} "))
                    };
                    self.choose(&chain, wanted, ("endpoints", key, data, protocol), hide);
                    self.services.push(format!("-d {ip} -p {protocol} -m {protocol} --dport {port} -j {chain}"));
                }
                ("node_ports", [protocol, port]) => {
                    let chain = name("KSVC", key);
                    let hidden = match *protocol {
                        "udp" => has("masqueraded_udp", port),
                        "sctp" => has("masqueraded_sctp", port),
                        _ => has("masqueraded_tcp", port),
                    };
                    let hide = hidden.then(String::new);
                    self.choose(&chain, wanted, ("node_port_endpoints", key, data, protocol), hide);
                    let local = "-m addrtype --dst-type LOCAL";
                    self.node_ports.push(format!("{local} -p {protocol} -m {protocol} --dport {port} -j {chain}"));
                }
                ("refused" | "dropped", [ip, protocol, port]) => {
                    let verdict = if *set == "refused" { "REJECT" } else { "DROP" };
                    self.refused.insert(format!("-d {ip} -p {protocol} -m {protocol} --dport {port} -j {verdict}"));
                }
                ("node_ports_refused", [protocol, port]) => {
                    let local = "-m addrtype --dst-type LOCAL";
                    self.refused.insert(format!("{local} -p {protocol} -m {protocol} --dport {port} -j REJECT"));
                }
                ("cluster_ips", [ip]) => drop(self.cluster_ips.insert((*ip).to_owned())),
                _ => {}
            }
        }
    }

    /// A chain that chooses an endpoint. `hide` are the packets whose sender is hidden, if there are any.
    fn choose(
        &mut self,
        chain: &str,
        wanted: &Contribution,
        (map, key, data, protocol): (&'static str, &str, &str, &str),
        hide: Option<String>,
    ) {
        let kept = data.strip_prefix("goto ").and_then(|chain| wanted.kept.get(chain));
        let (targets, seconds) = match kept {
            Some(kept) => (kept.targets.clone(), Some(kept.seconds)),
            None => (endpoints(wanted, map, key), None),
        };
        let mut rules: Vec<String> = hide.map(|from| format!("{from}-j KEELSON-MARK")).into_iter().collect();
        let ends: Vec<String> = targets.iter().map(|t| name("KSEP", &format!("{key}|{}", destination(t)))).collect();
        if let Some(seconds) = seconds {
            let stay = |end: &String| format!("-m recent --name {end} --rcheck --seconds {seconds} --reap -j {end}");
            rules.extend(ends.iter().map(stay));
        }
        for (index, (end, target)) in ends.iter().zip(&targets).enumerate() {
            let left = targets.len() - index;
            rules.push(match left {
                1 => format!("-j {end}"),
                left => format!("-m statistic --mode random --probability {:.10} -j {end}", 1.0 / left as f64),
            });
            let note = if seconds.is_some() { format!("-m recent --name {end} --set ") } else { String::new() };
            let send = format!("-p {protocol} {note}-j DNAT --to-destination {}", destination(target));
            self.nat.insert(end.clone(), vec![format!("-s {} -j KEELSON-MARK", target.0), send]);
        }
        self.nat.insert(chain.to_owned(), rules);
    }

    /// The chains that are made beside those that are always there.
    pub fn names(&self) -> BTreeSet<String> {
        self.nat.keys().cloned().collect()
    }

    /// The script that replaces all of our chains; those of `before` that are not needed any more go.
    pub fn script(&self, before: &BTreeSet<String>) -> String {
        let mut out = String::from("*nat\n");
        // Writing to a string cannot fail.
        let fixed = ["KEELSON-SERVICES", "KEELSON-POSTROUTING", "KEELSON-MARK"];
        let gone: Vec<&String> = before.iter().filter(|chain| !self.nat.contains_key(*chain)).collect();
        for chain in
            fixed.iter().copied().chain(self.nat.keys().map(String::as_str)).chain(gone.iter().map(|c| c.as_str()))
        {
            let _ = writeln!(out, ":{chain} - [0:0]");
        }
        let _ = writeln!(out, "-A KEELSON-MARK -j MARK --or-mark {MARK}");
        let _ = writeln!(out, "-A KEELSON-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN");
        let _ = writeln!(out, "-A KEELSON-POSTROUTING -j MARK --xor-mark {MARK}");
        let _ = writeln!(out, "-A KEELSON-POSTROUTING -j MASQUERADE --random-fully");
        for rule in self.services.iter().chain(&self.node_ports) {
            let _ = writeln!(out, "-A KEELSON-SERVICES {rule}");
        }
        for (chain, rules) in &self.nat {
            for rule in rules {
                let _ = writeln!(out, "-A {chain} {rule}");
            }
        }
        for chain in gone {
            let _ = writeln!(out, "-X {chain}");
        }
        out += "COMMIT\n*filter\n:KEELSON-REFUSE - [0:0]\n";
        for rule in &self.refused {
            let _ = writeln!(out, "-A KEELSON-REFUSE {rule}");
        }
        for ip in &self.cluster_ips {
            let _ = writeln!(out, "-A KEELSON-REFUSE -d {ip} -j REJECT");
        }
        out + "COMMIT\n"
    }
}

fn program(family: Family) -> &'static str {
    if family == Family::V4 { "iptables" } else { "ip6tables" }
}

async fn run(program: &str, arguments: &[&str]) -> io::Result<bool> {
    let output = Command::new(program).args(arguments).output().await;
    let absent = |e: io::Error| io::Error::new(e.kind(), format!("{program} (package iptables) cannot be run: {e}"));
    Ok(output.map_err(absent)?.status.success())
}

/// Hands over a script and makes sure that packets come to its chains.
pub async fn apply(family: Family, script: &str) -> io::Result<()> {
    let program = program(family);
    let restore = format!("{program}-restore");
    let mut child = Command::new(&restore)
        .args(["-w", "5", "--noflush"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("{restore} (package iptables) cannot be run: {e}")))?;
    let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("no input"))?;
    let script = script.to_owned();
    let writing = tokio::spawn(async move { stdin.write_all(script.as_bytes()).await });
    let output = child.wait_with_output().await?;
    // A script that is refused half-way is not read to its end.
    let _ = writing.await;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("{restore}: {}", text.lines().take(3).collect::<Vec<_>>().join(" "))));
    }
    for (table, hook, chain, asked) in HOOKS {
        let rule = |verb: &'static str| [&["-w", "5", "-t", *table, verb, *hook][..], *asked, &["-j", *chain]].concat();
        if !run(program, &rule("-C")).await? && !run(program, &rule("-I")).await? {
            return Err(io::Error::other(format!("{program}: no rule leads from {hook} to {chain}")));
        }
    }
    Ok(())
}

/// The chains that an earlier agent made beside those that are always there.
pub async fn present(family: Family) -> io::Result<BTreeSet<String>> {
    let list = Command::new(program(family)).args(["-w", "5", "-t", "nat", "-S"]).output().await?;
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let chains = list.lines().filter_map(|line| line.strip_prefix("-N "));
    Ok(chains.filter(|chain| chain.starts_with("KSVC-") || chain.starts_with("KSEP-")).map(str::to_owned).collect())
}

/// Removes all of it, if it is there: the node serves Services in another way now.
pub async fn remove(family: Family) -> io::Result<()> {
    let program = program(family);
    let present = run(program, &["-w", "5", "-t", "nat", "-S", "KEELSON-SERVICES"]).await;
    if !matches!(present, Ok(true)) {
        // It was never there, or there are no iptables at all.
        return Ok(());
    }
    for (table, hook, chain, asked) in HOOKS {
        run(program, &[&["-w", "5", "-t", *table, "-D", *hook][..], *asked, &["-j", *chain]].concat()).await?;
    }
    for table in ["nat", "filter"] {
        let list = Command::new(program).args(["-w", "5", "-t", table, "-S"]).output().await?;
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        let chains = list.lines().filter_map(|line| line.strip_prefix("-N "));
        let ours = |chain: &&str| ["KEELSON-", "KSVC-", "KSEP-"].iter().any(|start| chain.starts_with(start));
        let chains: Vec<&str> = chains.filter(ours).collect();
        // They lead to each other, so all are emptied before any goes.
        for verb in ["-F", "-X"] {
            for chain in &chains {
                run(program, &["-w", "5", "-t", table, verb, chain]).await?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::service::{Site, contribution};
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use serde_json::{Value, json};

    fn wanted(family: Family, spec: &Value, ips: &[&str]) -> Contribution {
        let service: Service = serde_json::from_value(json!({"spec": spec})).unwrap();
        let ends: Vec<Value> = ips.iter().map(|ip| json!({"addresses": [ip], "nodeName": "a"})).collect();
        let slice: EndpointSlice = serde_json::from_value(json!({"addressType": "any",
            "ports": [{"name": "", "port": 8080}], "endpoints": ends}))
        .unwrap();
        contribution(family, &service, &[&slice], &Site { node: "a".into(), ..Site::default() })
    }

    fn script(spec: &Value, ips: &[&str]) -> String {
        let one = wanted(Family::V4, spec, ips);
        Chains::of(Family::V4, std::iter::once(&one), &["10.244.0.0/16".into()]).script(&BTreeSet::new())
    }

    #[test]
    fn rules_of_services() {
        let plain = json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]});
        let open = json!({"type": "NodePort", "clusterIP": "10.96.0.5", "externalIPs": ["1.2.3.4"],
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "UDP"}]});
        let sticky = json!({"clusterIP": "10.96.0.5", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
        let two = ["10.1.0.2", "10.1.0.3"];
        for (spec, ips, parts) in [
            (
                &plain,
                &two[..],
                &[
                    "-A KEELSON-SERVICES -d 10.96.0.5 -p tcp -m tcp --dport 80 -j KSVC-",
                    " ! -s 10.244.0.0/16 -j KEELSON-MARK",
                    "--probability 0.5000000000 -j KSEP-",
                    "-s 10.1.0.2 -j KEELSON-MARK",
                    "-p tcp -j DNAT --to-destination 10.1.0.3:8080",
                    "-A KEELSON-REFUSE -d 10.96.0.5 -j REJECT",
                ][..],
            ),
            (&plain, &[], &["-A KEELSON-REFUSE -d 10.96.0.5 -p tcp -m tcp --dport 80 -j REJECT"]),
            (&open, &two, &["-m addrtype --dst-type LOCAL -p udp -m udp --dport 30080 -j KSVC-", "-d 1.2.3.4 -p udp"]),
            (
                &sticky,
                &two,
                &["--rcheck --seconds 10800 --reap -j KSEP-", "--set -j DNAT --to-destination 10.1.0.2:8080"],
            ),
        ] {
            let script = script(spec, ips);
            for part in parts {
                assert!(script.contains(part), "{part}\n{script}");
            }
        }
    }

    /// Gives scripts to iptables in a network namespace of its own, one after another, and says what is there then.
    fn result(family: Family, scripts: &[String]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let program = program(family);
        let mut command = String::from("true");
        for (i, script) in scripts.iter().enumerate() {
            let path = dir.path().join(i.to_string());
            std::fs::write(&path, script).unwrap();
            command += &format!(" && {program}-restore -w 5 --noflush < {}", path.display());
        }
        command += &format!(" && {program} -t nat -S");
        let output = std::process::Command::new("unshare").args(["--net", "sh", "-c", &command]).output().unwrap();
        assert!(output.status.success(), "{} {scripts:?}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn the_kernel_takes_them() {
        if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/usr/sbin/iptables-restore").exists() {
            eprintln!("skipped: not root, or no iptables");
            return;
        }
        for (family, ip, ends) in
            [(Family::V4, "10.96.0.5", ["10.1.0.2", "10.1.0.3"]), (Family::V6, "fd00::5", ["fd01::2", "fd01::3"])]
        {
            let pods = ["10.244.0.0/16".to_owned(), "fd02::/48".to_owned()];
            for affinity in ["None", "ClientIP"] {
                let spec = json!({"type": "NodePort", "clusterIP": ip, "externalIPs": [ip], "sessionAffinity": affinity,
                    "ports": [{"port": 80, "nodePort": 30080, "protocol": "UDP"}, {"name": "x", "port": 81}]});
                let (two, one) = (wanted(family, &spec, &ends), wanted(family, &spec, &ends[..1]));
                let two = Chains::of(family, std::iter::once(&two), &pods);
                let one = Chains::of(family, std::iter::once(&one), &pods);
                let none = Chains::default();
                let scripts = [two.script(&BTreeSet::new()), one.script(&two.names()), two.script(&one.names())];
                assert!(result(family, &scripts).contains(&destination(&(ends[1].parse().unwrap(), 8080))));
                let after = result(family, &[scripts[0].clone(), none.script(&two.names())]);
                assert!(!after.contains("KSVC-") && !after.contains("KSEP-"), "{after}");
            }
        }
    }
}
