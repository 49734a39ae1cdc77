//! The names of a cluster, by Kubernetes' DNS specification: Services, endpoints, pods, ports and addresses. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::message::{Code, Data, Record, kind};

/// The version of the specification that these names follow.
const SPECIFICATION: &str = "1.1.0";

/// What the cluster has.
pub trait Cluster {
    /// A Service.
    fn service(&self, namespace: &str, name: &str) -> Option<std::sync::Arc<Service>>;
    /// The slices of a Service.
    fn slices(&self, namespace: &str, name: &str) -> Vec<std::sync::Arc<EndpointSlice>>;
    /// Whether there is such a namespace, as far as Services tell.
    fn has_namespace(&self, namespace: &str) -> bool;
    /// The Service that has this address.
    fn service_at(&self, ip: IpAddr) -> Option<(String, String)>;
    /// The name of an endpoint that has this address: host, Service, namespace.
    fn endpoint_at(&self, ip: IpAddr) -> Option<(String, String, String)>;
}

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The name is not the cluster's.
    Elsewhere,
    /// It is, with these records; maybe none of the type asked for.
    Ours(Code, Vec<Record>),
}

fn good(records: Vec<Record>) -> Answer {
    Answer::Ours(Code::Good, records)
}

fn none() -> Answer {
    Answer::Ours(Code::NoName, Vec::new())
}

fn wants(asked: u16, kind: u16) -> bool {
    asked == kind || asked == kind::ANY
}

fn address(name: &str, ip: IpAddr, asked: u16) -> Option<Record> {
    let (kind, data) = match ip {
        IpAddr::V4(ip) => (kind::A, Data::A(ip)),
        IpAddr::V6(ip) => (kind::AAAA, Data::Aaaa(ip)),
    };
    wants(asked, kind).then(|| Record { name: name.to_owned(), data })
}

/// The address as a label: dots and colons become dashes.
fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

fn undashed(label: &str) -> Option<IpAddr> {
    label.replace('-', ".").parse().ok().or_else(|| label.replace('-', ":").parse().ok())
}

/// Answers a question about `name`, which is in lower case.
pub fn resolve(cluster: &dyn Cluster, zone: &str, name: &str, asked: u16) -> Answer {
    if let Some(ip) = reversed(name) {
        return reverse(cluster, zone, name, ip, asked);
    }
    let Some(below) = name.strip_suffix(zone) else { return Answer::Elsewhere };
    let Some(below) = below.strip_suffix('.').or_else(|| below.is_empty().then_some("")) else {
        return Answer::Elsewhere;
    };
    let labels: Vec<&str> = below.split('.').filter(|l| !l.is_empty()).rev().collect();
    match labels[..] {
        [] | ["svc"] | ["pod"] => good(Vec::new()),
        ["dns-version"] => {
            let record = Record { name: name.into(), data: Data::Txt(SPECIFICATION.into()) };
            good(if wants(asked, kind::TXT) { vec![record] } else { vec![] })
        }
        ["svc" | "pod", namespace] if cluster.has_namespace(namespace) => good(Vec::new()),
        ["pod", namespace, ip] if cluster.has_namespace(namespace) => match undashed(ip) {
            Some(ip) => good(address(name, ip, asked).into_iter().collect()),
            None => none(),
        },
        ["svc", namespace, service] => of_service(cluster, name, namespace, service, asked),
        ["svc", namespace, service, host] => match host.strip_prefix('_') {
            Some(_) if cluster.service(namespace, service).is_some() => good(Vec::new()),
            _ => of_host(cluster, name, namespace, service, host, asked),
        },
        ["svc", namespace, service, protocol, port] => match (protocol.strip_prefix('_'), port.strip_prefix('_')) {
            (Some(protocol), Some(port)) => of_port(cluster, zone, name, (namespace, service), (protocol, port), asked),
            _ => none(),
        },
        _ => none(),
    }
}

fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let spec = service.spec.as_ref();
    let many = spec.and_then(|s| s.cluster_ips.clone()).filter(|l| !l.is_empty());
    let one = spec.and_then(|s| s.cluster_ip.clone()).into_iter().collect();
    many.unwrap_or(one).iter().filter_map(|ip| ip.parse().ok()).collect()
}

fn external(service: &Service) -> Option<String> {
    let spec = service.spec.as_ref()?;
    let is = spec.type_.as_deref() == Some("ExternalName");
    spec.external_name.clone().filter(|_| is).map(|n| n.trim_end_matches('.').to_ascii_lowercase())
}

/// Name, protocol and number of a port.
type NamedPort = (String, String, u16);

/// The endpoints of a headless Service that may be named.
fn endpoints(cluster: &dyn Cluster, service: &Service, namespace: &str, name: &str) -> Vec<(Endpoint, Vec<NamedPort>)> {
    let early = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let mut found = Vec::new();
    for slice in cluster.slices(namespace, name) {
        let ports: Vec<NamedPort> = (slice.ports.iter().flatten())
            .filter_map(|p| {
                let protocol = p.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
                Some((p.name.clone().unwrap_or_default(), protocol, u16::try_from(p.port?).ok()?))
            })
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready) != Some(false);
            if ready || early {
                found.push((endpoint.clone(), ports.clone()));
            }
        }
    }
    found
}

fn ips(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> {
    endpoint.addresses.iter().filter_map(|ip| ip.parse().ok())
}

fn of_service(cluster: &dyn Cluster, name: &str, namespace: &str, service: &str, asked: u16) -> Answer {
    let Some(found) = cluster.service(namespace, service) else { return none() };
    if let Some(target) = external(&found) {
        return good(vec![Record { name: name.into(), data: Data::Cname(target) }]);
    }
    let own = cluster_ips(&found);
    if !own.is_empty() {
        return good(own.into_iter().filter_map(|ip| address(name, ip, asked)).collect());
    }
    let all = endpoints(cluster, &found, namespace, service);
    if all.is_empty() {
        return none();
    }
    good(all.iter().flat_map(|(e, _)| ips(e)).filter_map(|ip| address(name, ip, asked)).collect())
}

fn host_label(endpoint: &Endpoint, ip: IpAddr) -> String {
    endpoint.hostname.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| dashed(ip))
}

fn of_host(cluster: &dyn Cluster, name: &str, namespace: &str, service: &str, host: &str, asked: u16) -> Answer {
    let Some(found) = cluster.service(namespace, service) else { return none() };
    if !cluster_ips(&found).is_empty() {
        return none();
    }
    let mut named = false;
    let mut records = Vec::new();
    for (endpoint, _) in endpoints(cluster, &found, namespace, service) {
        for ip in ips(&endpoint).filter(|ip| host_label(&endpoint, *ip) == host) {
            named = true;
            records.extend(address(name, ip, asked));
        }
    }
    if named { good(records) } else { none() }
}

fn of_port(
    cluster: &dyn Cluster,
    zone: &str,
    name: &str,
    (namespace, service): (&str, &str),
    (protocol, port): (&str, &str),
    asked: u16,
) -> Answer {
    let Some(found) = cluster.service(namespace, service) else { return none() };
    let base = format!("{service}.{namespace}.svc.{zone}");
    let mut targets: Vec<(u16, String)> = Vec::new();
    if cluster_ips(&found).is_empty() {
        for (endpoint, ports) in endpoints(cluster, &found, namespace, service) {
            for (_, _, number) in ports.iter().filter(|(n, p, _)| n == port && p == protocol) {
                targets.extend(ips(&endpoint).map(|ip| (*number, format!("{}.{base}", host_label(&endpoint, ip)))));
            }
        }
    } else {
        let ports = found.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
        let fits = |p: &&k8s_openapi::api::core::v1::ServicePort| {
            p.name.as_deref() == Some(port) && p.protocol.as_deref().unwrap_or("TCP").eq_ignore_ascii_case(protocol)
        };
        targets.extend(ports.iter().filter(fits).filter_map(|p| Some((u16::try_from(p.port).ok()?, base.clone()))));
    }
    if targets.is_empty() {
        return none();
    }
    let record = |(port, host)| Record { name: name.into(), data: Data::Srv(port, host) };
    good(if wants(asked, kind::SRV) { targets.into_iter().map(record).collect() } else { vec![] })
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let mut parts: Vec<&str> = labels.split('.').collect();
        parts.reverse();
        return parts.join(".").parse().ok();
    }
    let labels: Vec<&str> = name.strip_suffix(".ip6.arpa")?.split('.').rev().collect();
    let digits = labels.concat();
    let groups: Vec<&str> = (0..8).filter_map(|i| digits.get(i * 4..i * 4 + 4)).collect();
    (digits.len() == 32).then(|| groups.join(":").parse().ok()).flatten()
}

fn reverse(cluster: &dyn Cluster, zone: &str, name: &str, ip: IpAddr, asked: u16) -> Answer {
    let target = match (cluster.service_at(ip), cluster.endpoint_at(ip)) {
        (Some((namespace, service)), _) => format!("{service}.{namespace}.svc.{zone}"),
        (None, Some((host, service, namespace))) => format!("{host}.{service}.{namespace}.svc.{zone}"),
        (None, None) => return Answer::Elsewhere,
    };
    let record = Record { name: name.into(), data: Data::Ptr(target) };
    good(if wants(asked, kind::PTR) { vec![record] } else { vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    struct Fixed;

    impl Cluster for Fixed {
        fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
            let spec = match (namespace, name) {
                ("n", "web") => json!({"clusterIP": "10.96.0.5", "ports": [{"name": "http", "port": 80}]}),
                ("n", "db") => json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}),
                ("n", "ext") => json!({"type": "ExternalName", "externalName": "example.com"}),
                ("n", "empty") => json!({"clusterIP": "None"}),
                _ => return None,
            };
            Some(Arc::new(serde_json::from_value(json!({"spec": spec})).unwrap()))
        }
        fn slices(&self, _: &str, name: &str) -> Vec<Arc<EndpointSlice>> {
            if name != "db" {
                return vec![];
            }
            let slice = json!({"addressType": "IPv4", "ports": [{"name": "sql", "port": 5432}], "endpoints": [
                {"addresses": ["10.1.0.2"], "hostname": "db-0"}, {"addresses": ["10.1.0.3"]},
                {"addresses": ["10.1.0.4"], "conditions": {"ready": false}}]});
            vec![Arc::new(serde_json::from_value(slice).unwrap())]
        }
        fn has_namespace(&self, namespace: &str) -> bool {
            namespace == "n"
        }
        fn service_at(&self, ip: IpAddr) -> Option<(String, String)> {
            (ip.to_string() == "10.96.0.5").then(|| ("n".into(), "web".into()))
        }
        fn endpoint_at(&self, ip: IpAddr) -> Option<(String, String, String)> {
            (ip.to_string() == "10.1.0.2").then(|| ("db-0".into(), "db".into(), "n".into()))
        }
    }

    #[test]
    fn names_of_a_cluster() {
        for (name, asked, wanted) in [
            ("web.n.svc.c.local", kind::A, "A(10.96.0.5)"),
            ("web.n.svc.c.local", kind::AAAA, ""),
            ("none.n.svc.c.local", kind::A, "none"),
            ("db.n.svc.c.local", kind::A, "A(10.1.0.2) A(10.1.0.3)"),
            ("db-0.db.n.svc.c.local", kind::A, "A(10.1.0.2)"),
            ("10-1-0-3.db.n.svc.c.local", kind::A, "A(10.1.0.3)"),
            ("10-1-0-2.db.n.svc.c.local", kind::A, "none"),
            ("empty.n.svc.c.local", kind::A, "none"),
            ("_http._tcp.web.n.svc.c.local", kind::SRV, "Srv(80, \"web.n.svc.c.local\")"),
            (
                "_sql._tcp.db.n.svc.c.local",
                kind::SRV,
                "Srv(5432, \"db-0.db.n.svc.c.local\") Srv(5432, \"10-1-0-3.db.n.svc.c.local\")",
            ),
            ("_sql._udp.db.n.svc.c.local", kind::SRV, "none"),
            ("ext.n.svc.c.local", kind::A, "Cname(\"example.com\")"),
            ("10-1-0-9.n.pod.c.local", kind::A, "A(10.1.0.9)"),
            ("x.n.pod.c.local", kind::A, "none"),
            ("n.svc.c.local", kind::A, ""),
            ("other.svc.c.local", kind::A, "none"),
            ("dns-version.c.local", kind::TXT, "Txt(\"1.1.0\")"),
            ("5.0.96.10.in-addr.arpa", kind::PTR, "Ptr(\"web.n.svc.c.local\")"),
            ("2.0.1.10.in-addr.arpa", kind::PTR, "Ptr(\"db-0.db.n.svc.c.local\")"),
            ("9.9.9.9.in-addr.arpa", kind::PTR, "elsewhere"),
            ("example.com", kind::A, "elsewhere"),
            ("xc.local", kind::A, "elsewhere"),
        ] {
            let got = match resolve(&Fixed, "c.local", name, asked) {
                Answer::Elsewhere => "elsewhere".to_owned(),
                Answer::Ours(Code::Good, list) => {
                    list.iter().map(|r| format!("{:?}", r.data)).collect::<Vec<_>>().join(" ")
                }
                Answer::Ours(..) => "none".into(),
            };
            assert_eq!(got, wanted, "{name}");
        }
    }

    #[test]
    fn addresses_read_backwards() {
        let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
        assert_eq!(reversed(six), "2001:db8::1".parse().ok());
        assert_eq!(reversed("4.3.2.1.in-addr.arpa"), "1.2.3.4".parse().ok());
        assert_eq!(reversed("example.com"), None);
    }
}
