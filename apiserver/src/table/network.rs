//! The cells of Services and what leads to them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::text::{NONE, UNSET, age_of, cut, items, joined, labels, name, or, selector, word};

/// Entries of a list that are shown.
const SHOWN: usize = 3;

/// Addresses or host names of a load balancer, each once and sorted.
fn balancer(status: &Value) -> BTreeSet<&str> {
    let entries = items(&status["loadBalancer"]["ingress"]);
    let all = entries.map(|i| if word(&i["ip"]).is_empty() { word(&i["hostname"]) } else { word(&i["ip"]) });
    all.filter(|address| !address.is_empty()).collect()
}

/// Cells of a Service.
pub fn service(object: &Value) -> Vec<Value> {
    let spec = &object["spec"];
    let kind = word(&spec["type"]);
    let own: Vec<&str> = items(&spec["externalIPs"]).map(word).collect();
    let external = match kind {
        "ExternalName" => word(&spec["externalName"]).into(),
        "LoadBalancer" => or(&joined(balancer(&object["status"]).into_iter().chain(own), ","), "<pending>"),
        "ClusterIP" | "NodePort" => or(&own.join(","), NONE),
        _ => "<unknown>".into(),
    };
    let ports: Vec<String> = items(&spec["ports"])
        .map(|p| {
            let protocol = p["protocol"].as_str().unwrap_or("TCP");
            match p["nodePort"].as_i64().filter(|n| *n != 0) {
                Some(node) => format!("{}:{node}/{protocol}", p["port"]),
                None => format!("{}/{protocol}", p["port"]),
            }
        })
        .collect();
    let address = items(&spec["clusterIPs"]).next().map_or_else(|| word(&spec["clusterIP"]), word);
    vec![
        name(object),
        kind.into(),
        or(address, NONE),
        external,
        or(&ports.join(","), NONE),
        age_of(object),
        labels(&spec["selector"]).into(),
    ]
}

/// Cells of an Endpoints.
pub fn endpoints(object: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in items(&object["subsets"]) {
        let addresses = || items(&subset["addresses"]).map(|a| word(&a["ip"]));
        if items(&subset["ports"]).len() == 0 {
            all.extend(addresses().map(str::to_owned));
        }
        for port in items(&subset["ports"]) {
            all.extend(addresses().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{}", port["port"]),
                false => format!("{ip}:{}", port["port"]),
            }));
        }
    }
    let shown = if items(&object["subsets"]).len() == 0 { NONE.into() } else { cut(&all, SHOWN, ",") };
    vec![name(object), shown.into(), age_of(object)]
}

/// Cells of an EndpointSlice.
pub fn endpoint_slice(object: &Value) -> Vec<Value> {
    let port = |p: &Value| match (&p["port"], p["name"].as_str()) {
        (Value::Number(number), _) => number.to_string(),
        (_, Some(name)) => name.to_owned(),
        _ => "*".into(),
    };
    let ports: Vec<String> = items(&object["ports"]).map(port).collect();
    let addresses = items(&object["endpoints"]).flat_map(|e| items(&e["addresses"])).map(|a| word(a).to_owned());
    let addresses: Vec<String> = addresses.collect();
    vec![
        name(object),
        word(&object["addressType"]).into(),
        or(&cut(&ports, SHOWN, ","), UNSET),
        or(&cut(&addresses, SHOWN, ","), UNSET),
        age_of(object),
    ]
}

/// Cells of an Ingress.
pub fn ingress(object: &Value) -> Vec<Value> {
    let spec = &object["spec"];
    // Rules without a host are passed over, but any rule after the last host that is shown makes for more.
    let named = items(&spec["rules"]).enumerate().filter(|(_, rule)| !word(&rule["host"]).is_empty());
    let named: Vec<(usize, &str)> = named.map(|(at, rule)| (at, word(&rule["host"]))).take(SHOWN).collect();
    let (rules, shown) = (items(&spec["rules"]).len(), joined(named.iter().map(|(_, host)| *host), ","));
    let hosts = match named.last() {
        None => "*".to_owned(),
        Some((last, _)) if named.len() == SHOWN && last + 1 < rules => format!("{shown} + {} more...", rules - SHOWN),
        Some(_) => shown,
    };
    let ports = if items(&spec["tls"]).len() > 0 { "80, 443" } else { "80" };
    vec![
        name(object),
        or(word(&spec["ingressClassName"]), NONE),
        hosts.into(),
        joined(balancer(&object["status"]).into_iter(), ",").into(),
        ports.into(),
        age_of(object),
    ]
}

/// Cells of an IngressClass.
pub fn ingress_class(object: &Value) -> Vec<Value> {
    let (spec, parameters) = (&object["spec"], &object["spec"]["parameters"]);
    let shown = if parameters.is_object() {
        let group = parameters["apiGroup"].as_str().map(|g| format!(".{g}")).unwrap_or_default();
        format!("{}{group}/{}", word(&parameters["kind"]), word(&parameters["name"]))
    } else {
        NONE.into()
    };
    let is_default = object["metadata"]["annotations"]["ingressclass.kubernetes.io/is-default-class"] == "true";
    let name = format!("{}{}", word(&object["metadata"]["name"]), if is_default { " (default)" } else { "" });
    vec![name.into(), word(&spec["controller"]).into(), shown.into(), age_of(object)]
}

/// Cells of an IPAddress. Upstream gives the age without a column for it.
pub fn ip_address(object: &Value) -> Vec<Value> {
    let parent = &object["spec"]["parentRef"];
    let part = |key: &str, before: &str, after: &str| match word(&parent[key]) {
        "" => String::new(),
        text => format!("{before}{text}{after}"),
    };
    let parent = format!(
        "{}{}/{}{}",
        word(&parent["resource"]),
        part("group", ".", ""),
        part("namespace", "", "/"),
        word(&parent["name"])
    );
    vec![name(object), parent.into(), age_of(object)]
}

/// Cells of a NetworkPolicy.
pub fn network_policy(object: &Value) -> Vec<Value> {
    vec![name(object), selector(&object["spec"]["podSelector"]), age_of(object)]
}

/// Cells of a ServiceCIDR.
pub fn service_cidr(object: &Value) -> Vec<Value> {
    vec![name(object), joined(items(&object["spec"]["cidrs"]).map(word), ",").into(), age_of(object)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn services_from_outside() {
        let external = |spec: Value, status: Value| service(&json!({"spec": spec, "status": status}))[3].clone();
        let balanced = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}, {"hostname": "a.example"}]}});
        for (spec, status, expected) in [
            (json!({"type": "ClusterIP"}), json!({}), NONE),
            (json!({"type": "NodePort", "externalIPs": ["192.0.2.9"]}), json!({}), "192.0.2.9"),
            (json!({"type": "LoadBalancer"}), json!({}), "<pending>"),
            (json!({"type": "LoadBalancer", "externalIPs": ["192.0.2.9"]}), balanced, "192.0.2.2,a.example,192.0.2.9"),
            (json!({"type": "ExternalName", "externalName": "db"}), json!({}), "db"),
        ] {
            assert_eq!(external(spec, status), expected);
        }
    }

    #[test]
    fn long_lists_are_cut() {
        let object = json!({"subsets": [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "fd00::1"}], "ports": [{"port": 80}, {"port": 81}]}]});
        assert_eq!(endpoints(&object)[1], "192.0.2.1:80,[fd00::1]:80,192.0.2.1:81 + 1 more...");
        assert_eq!(endpoints(&json!({}))[1], NONE);
        let slice = json!({"ports": [{"port": 80}, {"name": "all"}, {}], "endpoints": []});
        assert_eq!(endpoint_slice(&slice)[2..4], [json!("80,all,*"), json!(UNSET)]);
        let rule = |host: &str| json!({"host": host});
        let object = json!({"spec": {"rules": [rule("a"), rule("b"), rule("c"), rule("d")], "tls": [{}]}});
        assert_eq!(ingress(&object)[2..5], [json!("a,b,c + 1 more..."), json!(""), json!("80, 443")]);
        for (hosts, expected) in [
            (&["", "a", "b", "c"][..], "a,b,c"),
            (&["a", "", "b"], "a,b"),
            (&["a", "b", "c", ""], "a,b,c + 1 more..."),
            (&["", "a", "b", "c", "d"], "a,b,c + 2 more..."),
            (&["", "", "", ""], "*"),
        ] {
            let rules: Vec<Value> = hosts.iter().map(|host| rule(host)).collect();
            assert_eq!(ingress(&json!({"spec": {"rules": rules}}))[2], expected, "{hosts:?}");
        }
        let balanced =
            json!([{"ip": "192.0.2.9"}, {"hostname": "a.example"}, {"ip": "192.0.2.2"}, {"ip": "192.0.2.9"}]);
        let object = json!({"status": {"loadBalancer": {"ingress": balanced}}});
        assert_eq!(ingress(&object)[3], "192.0.2.2,192.0.2.9,a.example");
    }

    #[test]
    fn the_class_of_ingresses_without_one_is_marked() {
        for (value, expected) in [("true", "c (default)"), ("false", "c")] {
            let annotations = json!({"ingressclass.kubernetes.io/is-default-class": value});
            let object = json!({"metadata": {"name": "c", "annotations": annotations}, "spec": {"controller": "x"}});
            assert_eq!(ingress_class(&object)[0], expected);
        }
    }

    #[test]
    fn parents_of_addresses() {
        let parent = json!({"group": "g.example", "resource": "things", "name": "x"});
        assert_eq!(ip_address(&json!({"spec": {"parentRef": parent}}))[1], "things.g.example/x");
        let parent = json!({"resource": "services", "namespace": "d", "name": "x"});
        assert_eq!(ip_address(&json!({"spec": {"parentRef": parent}}))[1], "services/d/x");
    }
}
