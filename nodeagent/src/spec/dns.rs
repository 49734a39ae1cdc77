//! What pods find in `/etc/resolv.conf` and `/etc/hosts`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use keelson_proto::cri::DnsConfig;

use super::{SpecError, pod, text};

/// Name servers that a resolver looks at.
const MAX_SERVERS: usize = 3;
/// Search domains that resolvers take.
const MAX_SEARCHES: usize = 32;

/// The node's own resolver configuration.
pub fn parse(resolv_conf: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        let Some(key) = words.next() else { continue };
        let words = words.map(str::to_owned);
        match key {
            "nameserver" => config.servers.extend(words.take(1)),
            "search" => config.searches = words.collect(),
            "options" => config.options.extend(words),
            _ => {}
        }
    }
    config
}

/// The resolver configuration of a pod.
pub fn config(of: &Pod, cluster: Option<IpAddr>, domain: &str, node: &DnsConfig) -> Result<DnsConfig, SpecError> {
    let spec = pod::spec(of);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let host_network = spec.host_network == Some(true);
    let mut config = match policy {
        "None" => DnsConfig::default(),
        "Default" => node.clone(),
        "ClusterFirst" if host_network => node.clone(),
        "ClusterFirst" | "ClusterFirstWithHostNet" => match cluster {
            None => node.clone(),
            Some(server) => {
                let namespace = text(of.metadata.namespace.as_ref());
                let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
                let searches = own.into_iter().chain(node.searches.iter().cloned()).collect();
                DnsConfig { servers: vec![server.to_string()], searches, options: vec!["ndots:5".into()] }
            }
        },
        other => return Err(SpecError::new(format!("dnsPolicy {other:?} is not known"))),
    };
    if let Some(own) = spec.dns_config {
        let mut servers = own.nameservers.unwrap_or_default();
        servers.extend(std::mem::take(&mut config.servers));
        if policy == "None" && servers.is_empty() {
            return Err(SpecError::new("dnsPolicy None needs a nameserver in dnsConfig"));
        }
        config.servers = servers;
        config.searches.extend(own.searches.unwrap_or_default());
        for option in own.options.unwrap_or_default() {
            let name = text(option.name.as_ref());
            config.options.retain(|o| o.split(':').next() != Some(name.as_str()));
            config.options.push(match option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    let mut seen = std::collections::HashSet::new();
    config.servers.retain(|s| seen.insert(s.clone()));
    seen.clear();
    config.searches.retain(|s| seen.insert(s.clone()));
    config.servers.truncate(MAX_SERVERS);
    config.searches.truncate(MAX_SEARCHES);
    Ok(config)
}

/// The hostname of a pod and, if it has a subdomain, its full name.
pub fn names(of: &Pod, domain: &str) -> Result<(String, Option<String>), SpecError> {
    let spec = pod::spec(of);
    if let Some(name) = spec.hostname_override.filter(|n| !n.is_empty()) {
        return Ok((name, None));
    }
    let mut hostname = spec.hostname.filter(|h| !h.is_empty()).unwrap_or_else(|| {
        let mut name = text(of.metadata.name.as_ref());
        name.truncate(63);
        name.trim_end_matches(['-', '.']).to_owned()
    });
    let full = spec
        .subdomain
        .filter(|s| !s.is_empty())
        .map(|subdomain| format!("{hostname}.{subdomain}.{}.svc.{domain}", text(of.metadata.namespace.as_ref())));
    if spec.set_hostname_as_fqdn == Some(true)
        && let Some(full) = &full
    {
        if full.len() > 64 {
            return Err(SpecError::new(format!("the full name {full} is too long for a hostname: 64 characters")));
        }
        hostname = full.clone();
    }
    Ok((hostname, full))
}

/// The hosts file of a pod.
pub fn hosts(of: &Pod, addresses: &[String], domain: &str, node_file: &str) -> Result<String, SpecError> {
    let mut file = if pod::host_network(of) {
        format!("# Kubernetes-managed hosts file (host network).\n{node_file}")
    } else {
        let mut file = String::from(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let (hostname, full) = names(of, domain)?;
        for address in addresses {
            match &full {
                Some(full) if *full != hostname => file += &format!("{address}\t{full}\t{hostname}\n"),
                _ => file += &format!("{address}\t{hostname}\n"),
            }
        }
        file
    };
    let aliases = pod::spec(of).host_aliases.unwrap_or_default();
    if !aliases.is_empty() {
        file += "\n# Entries added by HostAliases.\n";
    }
    for alias in aliases {
        file += &format!("{}\t{}\n", alias.ip, alias.hostnames.unwrap_or_default().join("\t"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(spec: &Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})).unwrap()
    }

    #[test]
    fn resolver_configurations() {
        let node = parse("# x\nnameserver 9.9.9.9\nsearch corp.example\noptions timeout:1\n");
        let cluster = Some("10.96.0.10".parse().unwrap());
        let own = json!({"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        for (spec, servers, options) in [
            (json!({"containers": []}), "10.96.0.10", "ndots:5"),
            (json!({"containers": [], "hostNetwork": true}), "9.9.9.9", "timeout:1"),
            (
                json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                "10.96.0.10",
                "ndots:5",
            ),
            (json!({"containers": [], "dnsPolicy": "Default"}), "9.9.9.9", "timeout:1"),
            (json!({"containers": [], "dnsPolicy": "None", "dnsConfig": own}), "1.1.1.1", "ndots:2 edns0"),
            (json!({"containers": [], "dnsConfig": own}), "1.1.1.1 10.96.0.10", "ndots:2 edns0"),
        ] {
            let got = config(&of(&spec), cluster, "cluster.local", &node).unwrap();
            assert_eq!((got.servers.join(" "), got.options.join(" ")), (servers.into(), options.into()), "{spec}");
        }
        let searches = config(&of(&json!({"containers": []})), cluster, "cluster.local", &node).unwrap().searches;
        assert_eq!(searches, ["n.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"]);
        assert!(config(&of(&json!({"containers": [], "dnsPolicy": "x"})), cluster, "c", &node).is_err());
    }

    #[test]
    fn names_and_hosts() {
        let plain = of(&json!({"containers": [], "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let file = hosts(&plain, &["10.0.0.2".into()], "c.local", "").unwrap();
        assert!(file.contains("10.0.0.2\tp\n") && file.ends_with("1.2.3.4\ta\tb\n"), "{file}");
        let sub = json!({"containers": [], "hostname": "h", "subdomain": "s"});
        assert_eq!(names(&of(&sub), "c.local").unwrap(), ("h".into(), Some("h.s.n.svc.c.local".into())));
        assert!(
            hosts(&of(&sub), &["10.0.0.2".into()], "c.local", "").unwrap().contains("10.0.0.2\th.s.n.svc.c.local\th\n")
        );
        let full = json!({"containers": [], "hostname": "h", "subdomain": "s", "setHostnameAsFQDN": true});
        assert_eq!(names(&of(&full), "c.local").unwrap().0, "h.s.n.svc.c.local");
    }
}
