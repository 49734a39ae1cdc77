//! `create service` and `create ingress`.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, text};
use crate::output;
use crate::session::Session;

use super::super::create::{SAVE, WRITE, generate};
use super::{name, object, required};

const TCP: Flag = repeated("tcp", "Port pairs can be specified as '<port>:<targetPort>'.");
/// Flags of `create service clusterip`.
pub const CLUSTER_IP: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        TCP,
        text(
            "clusterip",
            "",
            "Assign your own ClusterIP or set to 'None' for a 'headless' service (no loadbalancing).",
        ),
    ],
];
/// Flags of `create service externalname`.
pub const EXTERNAL_NAME: &[&[Flag]] =
    &[output::FLAGS, WRITE, &[SAVE, TCP, text("external-name", "", "External name of service")]];
/// Flags of `create service nodeport`.
pub const NODE_PORT: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[SAVE, TCP, text("node-port", "0", "Port used to expose the service on each node in a cluster.")],
];
/// Flags of `create service loadbalancer`.
pub const LOAD_BALANCER: &[&[Flag]] = &[output::FLAGS, WRITE, &[SAVE, TCP]];
/// Flags of `create ingress`.
pub const INGRESS: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        repeated("annotation", "Annotation to insert in the ingress object, in the format annotation=value"),
        text("class", "", "Ingress Class to be used"),
        text("default-backend", "", "Default service for backend, in format of svcname:port"),
        repeated("rule", "Rule in format host/path=service:port[,tls=secretname]."),
    ],
];
async fn service(session: &Session, kind: &str) -> Outcome {
    let (name, parsed) = (name(session)?, &session.parsed);
    let mut ports = Vec::new();
    for pair in parsed.list("tcp") {
        let (port, target) = pair.split_once(':').unwrap_or((&pair, &pair));
        let number: u16 =
            port.parse().map_err(|_| Failure::new(format!("strconv.ParseUint: parsing {port:?}: invalid syntax")))?;
        let target = match target.parse::<i64>() {
            Ok(number) if !(0..=65535).contains(&number) => {
                return Err(Failure::new("must be between 1 and 65535, inclusive"));
            }
            Ok(number) => json!(number),
            Err(_) => json!(target),
        };
        let label = pair.replace(':', "-");
        let mut entry = json!({"name": label, "port": number, "protocol": "TCP", "targetPort": target});
        if parsed.is_set("node-port") && parsed.number("node-port")? != 0 {
            entry["nodePort"] = parsed.number("node-port")?.into();
        }
        ports.push(entry);
    }
    let mut object = object("v1", "Service", name);
    object["metadata"]["labels"] = json!({"app": name});
    object["spec"] = json!({"type": kind, "selector": {"app": name}});
    if kind == "ExternalName" {
        let external = required(session, "external-name")?;
        if !keelson_machinery::names::subdomain_problems(&external).is_empty() {
            return Err(Failure::new(format!("invalid service external name {external}")));
        }
        object["spec"]["externalName"] = external.into();
    } else if ports.is_empty() && parsed.text("clusterip") != "None" {
        return Err(Failure::new("at least one tcp port specifier must be provided"));
    }
    if !ports.is_empty() {
        object["spec"]["ports"] = ports.into();
    }
    if !parsed.text("clusterip").is_empty() {
        object["spec"]["clusterIP"] = parsed.text("clusterip").into();
    }
    object["status"] = json!({"loadBalancer": {}});
    generate(session, object).await
}

/// Runs `create service clusterip`.
pub async fn cluster_ip(session: &Session) -> Outcome {
    service(session, "ClusterIP").await
}

/// Runs `create service nodeport`.
pub async fn node_port(session: &Session) -> Outcome {
    service(session, "NodePort").await
}

/// Runs `create service loadbalancer`.
pub async fn load_balancer(session: &Session) -> Outcome {
    service(session, "LoadBalancer").await
}

/// Runs `create service externalname`.
pub async fn external_name(session: &Session) -> Outcome {
    service(session, "ExternalName").await
}

fn backend(text: &str) -> Outcome<Value> {
    let (service, port) = text
        .split_once(':')
        .ok_or_else(|| Failure::new("default-backend should be in format servicename:serviceport"))?;
    let port = port.parse::<u16>().map_or_else(|_| json!({"name": port}), |n| json!({"number": n}));
    Ok(json!({"service": {"name": service, "port": port}}))
}

/// Notes that a host is served with TLS; hosts of one secret share an entry.
fn secured(tls: &mut Vec<Value>, host: &str, secure: &str) {
    let secret = secure.split_once('=').map(|(_, secret)| secret).filter(|secret| !secret.is_empty());
    let same = |entry: &&mut Value| entry["secretName"].as_str() == secret;
    if let Some(hosts) = tls.iter_mut().find(same).and_then(|entry| entry["hosts"].as_array_mut()) {
        hosts.push(host.into());
        return;
    }
    let mut entry = json!({"hosts": [host]});
    if let Some(secret) = secret {
        entry["secretName"] = secret.into();
    }
    tls.push(entry);
}

/// What a rule looks like: host, path, service and port; what follows is looked at apart.
static RULE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^([\w*.-]*)/(.*)=([\w-]+:[\w-]+)(?:,(.*))?").ok());

/// Runs `create ingress`.
pub async fn ingress(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let mut object = object("networking.k8s.io/v1", "Ingress", name(session)?);
    object["spec"] = json!({});
    let (mut rules, mut tls): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    for rule in parsed.all("rule") {
        let wrong = || {
            Failure::new(format!(
                "rule {rule} is invalid and should be in format host/path=svcname:svcport[,tls[=secret]]"
            ))
        };
        let parts = RULE.as_ref().and_then(|pattern| pattern.captures(&rule)).ok_or_else(wrong)?;
        let part = |at: usize| parts.get(at).map(|part| part.as_str());
        let (host, path) = (part(1).unwrap_or_default(), part(2).unwrap_or_default());
        let (service, secure) = (part(3).unwrap_or_default(), part(4));
        let (path, kind) = match path.strip_suffix('*') {
            Some(prefix) => (prefix, "Prefix"),
            None => (path, "Exact"),
        };
        let entry =
            json!({"path": format!("/{path}"), "pathType": kind, "backend": backend(service).map_err(|_| wrong())?});
        match rules.iter_mut().find(|r| r["host"].as_str().unwrap_or_default() == host) {
            Some(rule) => rule["http"]["paths"].as_array_mut().map(|p| p.push(entry)).unwrap_or_default(),
            None => {
                let mut rule = json!({"http": {"paths": [entry]}});
                if !host.is_empty() {
                    rule["host"] = host.into();
                }
                rules.push(rule);
            }
        }
        if let Some(secure) = secure {
            secured(&mut tls, host, secure);
        }
    }
    if rules.is_empty() && parsed.text("default-backend").is_empty() {
        return Err(Failure::new(
            "not enough information provided: every ingress has to either specify a default-backend (which catches all traffic) or a list of rules (which catch specific paths)",
        ));
    }
    if !rules.is_empty() {
        object["spec"]["rules"] = rules.into();
    }
    if !tls.is_empty() {
        object["spec"]["tls"] = tls.into();
    }
    if !parsed.text("class").is_empty() {
        object["spec"]["ingressClassName"] = parsed.text("class").into();
    }
    if !parsed.text("default-backend").is_empty() {
        object["spec"]["defaultBackend"] = backend(parsed.text("default-backend"))?;
    }
    for annotation in parsed.all("annotation") {
        let (key, value) = annotation.split_once('=').ok_or_else(|| {
            Failure::new(format!("annotation {annotation} is invalid and should be in format key=[value]"))
        })?;
        object["metadata"]["annotations"][key] = value.into();
    }
    object["status"] = json!({"loadBalancer": {}});
    generate(session, object).await
}
