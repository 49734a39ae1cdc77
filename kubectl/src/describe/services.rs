//! Services, endpoints, ingresses, addresses and network policies.

use std::collections::BTreeSet;

use serde_json::Value;

use super::common::{dated_conditions, events, labels, list, marks, names, on_a_line, selector_or_none};
use super::sheet::{Sheet, row};
use crate::session::{Session, encode};
use crate::value::{Read, or};

/// Endpoints that are listed; of the others only the number.
const SHOWN_ENDPOINTS: usize = 3;

/// The endpoint slices of a service.
pub async fn slices(session: &Session, namespace: &str, service: &str) -> Vec<Value> {
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    list(session, &path, &[("labelSelector", &format!("kubernetes.io/service-name={service}"))])
        .await
        .unwrap_or_default()
}

fn is_ready(endpoint: &Value) -> bool {
    endpoint["conditions"]["ready"].as_bool().unwrap_or(true)
}

/// The endpoints behind a service's port.
fn endpoints(slices: &[Value], port_name: &str) -> String {
    if slices.is_empty() {
        return "<none>".into();
    }
    let (mut shown, mut count, mut more) = (Vec::new(), 0, false);
    for slice in slices {
        let all = slice["ports"].items();
        let ports: Vec<Option<&Value>> = match all {
            [] => vec![None],
            some => some.iter().filter(|p| p["name"].text() == port_name).map(Some).collect(),
        };
        for port in ports {
            for endpoint in slice["endpoints"].items() {
                more |= shown.len() == SHOWN_ENDPOINTS;
                if !is_ready(endpoint) {
                    continue;
                }
                count += 1;
                let address = endpoint["addresses"][0].text();
                let host =
                    if address.contains(':') && port.is_some() { format!("[{address}]") } else { address.into() };
                if !more {
                    shown.push(port.map_or(host.clone(), |p| format!("{host}:{}", p["port"].number())));
                }
            }
        }
    }
    match more {
        true => format!("{} + {} more...", shown.join(","), count as i64 - SHOWN_ENDPOINTS as i64),
        false => shown.join(","),
    }
}

/// Describes a service.
pub fn service(w: &mut Sheet, object: &Value, slices: &[Value], found: Option<Vec<Value>>) {
    let spec = &object["spec"];
    names(w, object);
    marks(w, object);
    row!(w, 0, "Selector:\t{}", on_a_line(&spec["selector"]));
    row!(w, 0, "Type:\t{}", spec["type"].text());
    if spec["ipFamilyPolicy"].is_there() {
        row!(w, 0, "IP Family Policy:\t{}", spec["ipFamilyPolicy"].text());
    }
    row!(w, 0, "IP Families:\t{}", or(&spec["ipFamilies"].texts().join(","), "<none>"));
    row!(w, 0, "IP:\t{}", spec["clusterIP"].text());
    row!(w, 0, "IPs:\t{}", or(&spec["clusterIPs"].texts().join(","), "<none>"));
    if !spec["externalIPs"].items().is_empty() {
        row!(w, 0, "External IPs:\t{}", spec["externalIPs"].texts().join(","));
    }
    for (label, field) in [("Desired LoadBalancer IP", "loadBalancerIP"), ("External Name", "externalName")] {
        if !spec[field].text().is_empty() {
            row!(w, 0, "{label}:\t{}", spec[field].text());
        }
    }
    let ingress = object["status"]["loadBalancer"]["ingress"].items();
    if !ingress.is_empty() {
        row!(w, 0, "LoadBalancer Ingress:\t{}", ingress.iter().map(balanced).collect::<Vec<_>>().join(", "));
    }
    for port in spec["ports"].items() {
        let (name, protocol) = (or(port["name"].text(), "<unset>"), port["protocol"].text());
        row!(w, 0, "Port:\t{name}\t{}/{protocol}", port["port"].number());
        row!(w, 0, "TargetPort:\t{}/{protocol}", port["targetPort"].shown());
        if port["nodePort"].number() != 0 {
            row!(w, 0, "NodePort:\t{name}\t{}/{protocol}", port["nodePort"].number());
        }
        row!(w, 0, "Endpoints:\t{}", endpoints(slices, port["name"].text()));
    }
    row!(w, 0, "Session Affinity:\t{}", spec["sessionAffinity"].text());
    for (label, field) in
        [("External Traffic Policy", "externalTrafficPolicy"), ("Internal Traffic Policy", "internalTrafficPolicy")]
    {
        if !spec[field].text().is_empty() {
            row!(w, 0, "{label}:\t{}", spec[field].text());
        }
    }
    if spec["healthCheckNodePort"].number() != 0 {
        row!(w, 0, "HealthCheck NodePort:\t{}", spec["healthCheckNodePort"].number());
    }
    if !spec["loadBalancerSourceRanges"].items().is_empty() {
        row!(w, 0, "LoadBalancer Source Ranges:\t{}", spec["loadBalancerSourceRanges"].texts().join(","));
    }
    if !spec["trafficDistribution"].text().is_empty() {
        row!(w, 0, "Traffic Distribution:\t{}", spec["trafficDistribution"].text());
    }
    events(w, found);
}

fn balanced(ingress: &Value) -> String {
    match (ingress["ip"].text(), ingress["ipMode"].text()) {
        ("", _) => ingress["hostname"].text().to_owned(),
        (ip, "") => ip.to_owned(),
        (ip, mode) => format!("{ip} ({mode})"),
    }
}

/// Describes endpoints of the old kind.
pub fn old_endpoints(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    names(w, object);
    marks(w, object);
    row!(w, 0, "Subsets:");
    for subset in object["subsets"].items() {
        for (label, field) in [("Addresses", "addresses"), ("NotReadyAddresses", "notReadyAddresses")] {
            let ips: Vec<&str> = subset[field].items().iter().map(|a| a["ip"].text()).collect();
            row!(w, 1, "{label}:\t{}", or(&ips.join(","), "<none>"));
        }
        if !subset["ports"].items().is_empty() {
            row!(w, 1, "Ports:");
            row!(w, 2, "Name\tPort\tProtocol");
            row!(w, 2, "----\t----\t--------");
        }
        for port in subset["ports"].items() {
            let name = or(port["name"].text(), "<unset>");
            row!(w, 2, "{name}\t{}\t{}", port["port"].number(), port["protocol"].text());
        }
        row!(w, 0, "");
    }
    events(w, found);
}

/// Describes an endpoint slice.
pub fn endpoint_slice(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    names(w, object);
    marks(w, object);
    row!(w, 0, "AddressType:\t{}", object["addressType"].text());
    match object["ports"].items() {
        [] => row!(w, 0, "Ports: <unset>"),
        ports => {
            row!(w, 0, "Ports:");
            row!(w, 1, "Name\tPort\tProtocol");
            row!(w, 1, "----\t----\t--------");
            for port in ports {
                let (name, number) = (or(port["name"].text(), "<unset>"), port["port"].shown());
                row!(w, 1, "{name}\t{}\t{}", or(&number, "<unset>"), port["protocol"].text());
            }
        }
    }
    let all = object["endpoints"].items();
    row!(w, 0, "Endpoints:{}", if all.is_empty() { " <none>" } else { "" });
    for endpoint in all {
        row!(w, 1, "- Addresses:\t{}", or(&endpoint["addresses"].texts().join(", "), "<none>"));
        row!(w, 2, "Conditions:");
        row!(w, 3, "Ready:\t{}", or(&endpoint["conditions"]["ready"].shown(), "<unset>"));
        row!(w, 2, "Hostname:\t{}", or(endpoint["hostname"].text(), "<unset>"));
        let target = &endpoint["targetRef"];
        if target.is_there() {
            row!(w, 2, "TargetRef:\t{}/{}", target["kind"].text(), target["name"].text());
        }
        row!(w, 2, "NodeName:\t{}", or(endpoint["nodeName"].text(), "<unset>"));
        row!(w, 2, "Zone:\t{}", or(endpoint["zone"].text(), "<unset>"));
    }
    events(w, found);
}

/// What an ingress sends requests to.
async fn backend(session: &Session, namespace: &str, backend: &Value) -> String {
    let (to, resource) = (&backend["service"], &backend["resource"]);
    if to.is_there() {
        let (name, port) = (to["name"].text(), &to["port"]);
        let shown = format!("{name}:{}", or(&port["number"].shown(), port["name"].text()));
        let path = format!("/api/v1/namespaces/{namespace}/services/{}", encode(name));
        let service = match session.get(&path).await {
            Ok(service) => service,
            Err(crate::failure::Failure::Server(status)) => {
                return format!("{shown} (<error: {}>)", status["message"].text());
            }
            Err(error) => return format!("{shown} (<error: {error}>)"),
        };
        let mut found = "";
        for p in service["spec"]["ports"].items() {
            let by_number = port["number"].number() != 0 && port["number"] == p["port"];
            let by_name = !port["name"].text().is_empty() && port["name"] == p["name"];
            if by_number || by_name {
                found = p["name"].text();
            }
        }
        return format!("{shown} ({})", endpoints(&slices(session, namespace, name).await, found));
    }
    if resource.is_there() {
        let group = or(resource["apiGroup"].text(), "<none>");
        return format!("APIGroup: {group}, Kind: {}, Name: {}", resource["kind"].text(), resource["name"].text());
    }
    String::new()
}

/// Describes an ingress.
pub async fn ingress(session: &Session, w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    let spec = &object["spec"];
    let namespace = object["metadata"]["namespace"].text();
    row!(w, 0, "Name:\t{}", object["metadata"]["name"].text());
    labels(w, "Labels", &object["metadata"]["labels"]);
    row!(w, 0, "Namespace:\t{namespace}");
    let addresses: BTreeSet<&str> = object["status"]["loadBalancer"]["ingress"]
        .items()
        .iter()
        .map(|i| or(i["ip"].text(), i["hostname"].text()))
        .filter(|a| !a.is_empty())
        .collect();
    row!(w, 0, "Address:\t{}", addresses.into_iter().collect::<Vec<_>>().join(","));
    row!(w, 0, "Ingress Class:\t{}", or(spec["ingressClassName"].text(), "<none>"));
    let default = match spec["defaultBackend"].is_there() {
        true => backend(session, namespace, &spec["defaultBackend"]).await,
        false => "<default>".into(),
    };
    row!(w, 0, "Default backend:\t{default}");
    if !spec["tls"].items().is_empty() {
        row!(w, 0, "TLS:");
    }
    for tls in spec["tls"].items() {
        let hosts = tls["hosts"].texts().join(",");
        match tls["secretName"].text() {
            "" => row!(w, 1, "SNI routes {hosts}"),
            secret => row!(w, 1, "{secret} terminates {hosts}"),
        }
    }
    w.put("Rules:\n  Host\tPath\tBackends\n");
    row!(w, 1, "----\t----\t--------");
    let rules: Vec<&Value> = spec["rules"].items().iter().filter(|r| r["http"].is_there()).collect();
    if rules.is_empty() {
        row!(w, 1, "*\t*\t{default}");
    }
    for rule in rules {
        row!(w, 1, "{}\t", or(rule["host"].text(), "*"));
        for path in rule["http"]["paths"].items() {
            let to = backend(session, namespace, &path["backend"]).await;
            row!(w, 2, "\t{} \t{to}", path["path"].text());
        }
    }
    super::common::annotations(w, "Annotations", &object["metadata"]["annotations"]);
    events(w, found);
}

/// Describes a class of ingresses.
pub fn ingress_class(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    row!(w, 0, "Name:\t{}", object["metadata"]["name"].text());
    marks(w, object);
    row!(w, 0, "Controller:\t{}", object["spec"]["controller"].text());
    let parameters = &object["spec"]["parameters"];
    if parameters.is_there() {
        row!(w, 0, "Parameters:");
        if parameters["apiGroup"].is_there() {
            row!(w, 1, "APIGroup:\t{}", parameters["apiGroup"].text());
        }
        row!(w, 1, "Kind:\t{}", parameters["kind"].text());
        row!(w, 1, "Name:\t{}", parameters["name"].text());
    }
    events(w, found);
}

/// Describes a range of service addresses.
pub fn service_cidr(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    row!(w, 0, "Name:\t{}", object["metadata"]["name"].text());
    marks(w, object);
    row!(w, 0, "CIDRs:\t{}", object["spec"]["cidrs"].texts().join(", "));
    if !object["status"]["conditions"].items().is_empty() {
        row!(w, 0, "Status:");
        dated_conditions(w, object);
    }
    events(w, found);
}

/// Describes an address that a service has.
pub fn ip_address(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    row!(w, 0, "Name:\t{}", object["metadata"]["name"].text());
    marks(w, object);
    let parent = &object["spec"]["parentRef"];
    if parent.is_there() {
        row!(w, 0, "Parent Reference:");
        for (label, field) in
            [("Group", "group"), ("Resource", "resource"), ("Namespace", "namespace"), ("Name", "name")]
        {
            row!(w, 1, "{label}:\t{}", parent[field].text());
        }
    }
    events(w, found);
}

/// Describes a network policy.
pub fn network_policy(w: &mut Sheet, object: &Value) {
    let spec = &object["spec"];
    names(w, object);
    let created = match object["metadata"]["creationTimestamp"].text().parse::<jiff::Timestamp>() {
        Ok(time) => time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string(),
        Err(_) => String::new(),
    };
    row!(w, 0, "Created on:\t{created}");
    marks(w, object);
    row!(w, 0, "Spec:");
    let of = &spec["podSelector"];
    match selector_or_none(of).as_str() {
        "<none>" => {
            w.put("  PodSelector:     <none> (Allowing the specific traffic to all pods in this namespace)\n");
        }
        selector => w.put(&format!("  PodSelector:     {selector}\n")),
    }
    let types = spec["policyTypes"].texts();
    for (kind, field, peers, word) in [("Ingress", "ingress", "from", "From"), ("Egress", "egress", "to", "To")] {
        match types.contains(&kind) {
            true => {
                row!(w, 1, "Allowing {field} traffic:");
                rules(w, field, spec[field].items(), peers, word);
            }
            false => row!(w, 1, "Not affecting {field} traffic"),
        }
    }
    row!(w, 1, "Policy Types: {}", or(&types.join(", "), "<none>"));
}

fn rules(w: &mut Sheet, direction: &str, rules: &[Value], peers: &str, word: &str) {
    if rules.is_empty() {
        row!(w, 2, "<none> (Selected pods are isolated for {direction} connectivity)");
    }
    for (at, rule) in rules.iter().enumerate() {
        if rule["ports"].items().is_empty() {
            row!(w, 2, "To Port: <any> (traffic allowed to all ports)");
        }
        for port in rule["ports"].items() {
            let (number, protocol) = (port["port"].shown(), or(port["protocol"].text(), "TCP"));
            match port["endPort"].is_there() {
                true => row!(w, 2, "To Port Range: {number}-{}/{protocol}", port["endPort"].number()),
                false => row!(w, 2, "To Port: {}/{protocol}", or(&number, "<nil>")),
            }
        }
        if rule[peers].items().is_empty() {
            let end = if word == "From" { "source" } else { "destination" };
            row!(w, 2, "{word}: <any> (traffic not restricted by {end})");
        }
        for peer in rule[peers].items() {
            row!(w, 2, "{word}:");
            for (label, field) in [("NamespaceSelector", "namespaceSelector"), ("PodSelector", "podSelector")] {
                if peer[field].is_there() {
                    row!(w, 3, "{label}: {}", selector_or_none(&peer[field]));
                }
            }
            let block = &peer["ipBlock"];
            if block.is_there() {
                row!(w, 3, "IPBlock:");
                row!(w, 4, "CIDR: {}", block["cidr"].text());
                row!(w, 4, "Except: {}", block["except"].texts().join(", "));
            }
        }
        if at + 1 < rules.len() {
            row!(w, 2, "----------");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn endpoints_that_do_not_fit_are_counted() {
        let endpoint =
            |n: i64, ready: bool| json!({"addresses": [format!("10.0.0.{n}")], "conditions": {"ready": ready}});
        let slice = |n: i64| json!({"ports": [{"name": "", "port": 80}], "endpoints": (1..=n).map(|n| endpoint(n, n != 2)).collect::<Vec<_>>()});
        assert_eq!(endpoints(&[], ""), "<none>");
        assert_eq!(endpoints(&[slice(2)], ""), "10.0.0.1:80");
        assert_eq!(endpoints(&[slice(6)], ""), "10.0.0.1:80,10.0.0.3:80,10.0.0.4:80 + 2 more...");
        assert_eq!(endpoints(&[slice(2)], "other"), "");
    }
}
