//! Extenders: programs that are asked over HTTP which nodes suit a pod, how well, and that may bind it.
//!
//! A cycle does no I/O. A pod for which an extender has a say is decided on in two steps: the nodes that the plugins accept
//! go out as a question, and with the answer the cycle runs again on the cluster as it is then.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use keelson_client::connection::Tls;
use keelson_client::{Client, connection};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::warn;

use crate::config::ConfigError;
use crate::intern::{Interner, Sym};
use crate::plugins::MAX_SCORE;
use crate::view::PodInfo;

/// The best score that an extender gives.
const MAX_EXTENDER_SCORE: i64 = 10;
/// Largest answer, bytes.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How long an extender may take unless its configuration says otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An extender as it is configured.
#[derive(Clone, Debug)]
pub struct Extender {
    host: String,
    port: u16,
    prefix: String,
    tls: Option<Tls>,
    filter: String,
    prioritize: String,
    bind: String,
    preempt: String,
    weight: i64,
    timeout: Duration,
    /// It knows the nodes and needs only their names.
    names_only: bool,
    /// It has a say only for pods that request one of these; empty: for all.
    resources: Vec<Sym>,
    /// Pods are scheduled without it when it does not answer.
    ignorable: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Wire {
    url_prefix: String,
    filter_verb: String,
    prioritize_verb: String,
    bind_verb: String,
    preempt_verb: String,
    weight: i64,
    #[serde(rename = "enableHTTPS")]
    enable_https: bool,
    tls_config: Option<WireTls>,
    #[serde(rename = "httpTimeout")]
    http_timeout: Option<String>,
    node_cache_capable: bool,
    managed_resources: Vec<Managed>,
    ignorable: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct WireTls {
    insecure: bool,
    server_name: String,
    cert_file: String,
    key_file: String,
    ca_file: String,
    cert_data: String,
    key_data: String,
    ca_data: String,
}

impl WireTls {
    /// A certificate or key: given in base64, or in a file; "" if not at all.
    fn pem(data: &str, file: &str) -> Result<String, ConfigError> {
        if !data.is_empty() {
            let bytes = STANDARD.decode(data).map_err(|e| refused(format!("extenders: tlsConfig: {e}")))?;
            return String::from_utf8(bytes).map_err(|e| refused(format!("extenders: tlsConfig: {e}")));
        }
        if file.is_empty() {
            return Ok(String::new());
        }
        std::fs::read_to_string(file).map_err(|e| refused(format!("extenders: tlsConfig: {file}: {e}")))
    }

    fn tls(&self, host: &str) -> Result<Tls, ConfigError> {
        let ca = Self::pem(&self.ca_data, &self.ca_file)?;
        let certificate = Self::pem(&self.cert_data, &self.cert_file)?;
        let key = Self::pem(&self.key_data, &self.key_file)?;
        if self.insecure && !ca.is_empty() {
            return Err(refused("extenders: tlsConfig: a CA and insecure exclude each other"));
        }
        let name = if self.server_name.is_empty() { host } else { &self.server_name };
        Tls::new(&ca, &certificate, &key, name).map_err(|e| refused(format!("extenders: tlsConfig: {e}")))
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Managed {
    name: String,
}

fn refused(why: impl Into<String>) -> ConfigError {
    ConfigError::Refused(why.into())
}

/// `5s`, `500ms`, `1m`.
fn duration(text: &str) -> Option<Duration> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..at].parse().ok()?;
    Some(match &text[at..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        _ => return None,
    })
}

impl Extender {
    /// From the configuration. What is not served is refused.
    pub fn parse(value: &Value, syms: &mut Interner) -> Result<Self, ConfigError> {
        let wire: Wire =
            serde_json::from_value(value.clone()).map_err(|e| ConfigError::Form(format!("extenders: {e}")))?;
        if !wire.prioritize_verb.is_empty() && wire.weight <= 0 {
            return Err(refused("extenders: must have a positive weight applied to it"));
        }
        let bad = || refused(format!("extenders: urlPrefix {:?} is not http[s]://HOST[:PORT]/PATH", wire.url_prefix));
        let (scheme, rest) = wire.url_prefix.split_once("://").ok_or_else(bad)?;
        if !matches!(scheme, "http" | "https") {
            return Err(bad());
        }
        let secure = scheme == "https" || wire.enable_https;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':').filter(|_| !authority.ends_with(']')) {
            Some((host, port)) => (host, port.parse().map_err(|_| bad())?),
            None => (authority, if secure { 443 } else { 80 }),
        };
        let host = host.trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(bad());
        }
        let timeout = match &wire.http_timeout {
            Some(text) => duration(text).ok_or_else(|| refused(format!("extenders: httpTimeout {text:?}")))?,
            None => TIMEOUT,
        };
        Ok(Self {
            host: host.to_owned(),
            port,
            tls: secure.then(|| wire.tls_config.unwrap_or_default().tls(host)).transpose()?,
            prefix: format!("/{}", path.trim_end_matches('/')).trim_end_matches('/').to_owned(),
            filter: wire.filter_verb,
            prioritize: wire.prioritize_verb,
            bind: wire.bind_verb,
            preempt: wire.preempt_verb,
            weight: wire.weight,
            timeout,
            names_only: wire.node_cache_capable,
            resources: wire.managed_resources.iter().map(|r| syms.sym(&r.name)).collect(),
            ignorable: wire.ignorable,
        })
    }

    /// Whether it has a say for a pod.
    pub fn concerns(&self, pod: &PodInfo) -> bool {
        let requests = |sym: &Sym| pod.class.requests.extra.iter().any(|(resource, _)| resource == sym);
        self.resources.is_empty() || self.resources.iter().any(requests)
    }

    /// Whether it is asked before a node is chosen.
    pub fn advises(&self) -> bool {
        !(self.filter.is_empty() && self.prioritize.is_empty())
    }

    /// Whether it is asked who may be pushed out.
    pub fn preempts(&self) -> bool {
        !self.preempt.is_empty()
    }

    /// Whether it binds pods itself.
    pub fn binds(&self) -> bool {
        !self.bind.is_empty()
    }

    async fn post<T: DeserializeOwned>(&self, verb: &str, body: &Value) -> std::io::Result<T> {
        let exchange = async {
            let stream = connection::connect_as(&self.host, self.port, self.tls.as_ref()).await?;
            let request = http::Request::post(format!("{}/{verb}", self.prefix))
                .header(http::header::HOST, format!("{}:{}", self.host, self.port))
                .header(http::header::CONTENT_TYPE, "application/json")
                .body(Full::new(Bytes::from(body.to_string())))
                .map_err(std::io::Error::other)?;
            let response = connection::exchange(stream, request).await?;
            if !response.status().is_success() {
                return Err(std::io::Error::other(format!("the extender answered {}", response.status())));
            }
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
            let bytes = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
            serde_json::from_slice(&bytes).map_err(std::io::Error::other)
        };
        let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "the extender did not answer in time");
        tokio::time::timeout(self.timeout, exchange).await.map_err(late)?
    }

    /// Lets it bind a pod.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> std::io::Result<()> {
        let body = json!({
            "PodName": &*pod.name, "PodNamespace": &*pod.class.namespace, "PodUID": &*pod.uid, "Node": node,
        });
        let answer: Answered = self.post(&self.bind, &body).await?;
        if answer.error.is_empty() { Ok(()) } else { Err(std::io::Error::other(answer.error)) }
    }
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Answered {
    error: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Filtered {
    nodes: Option<Items>,
    node_names: Option<Vec<String>>,
    failed_nodes: Option<BTreeMap<String, String>>,
    failed_and_unresolvable_nodes: Option<BTreeMap<String, String>>,
    error: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Items {
    items: Vec<crate::wire::Node>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Prioritized {
    host: String,
    score: i64,
}

/// What extenders say of nodes.
#[derive(Clone, Debug, Default)]
pub struct Advice {
    /// Points of the nodes that they accept.
    pub scores: HashMap<Arc<str>, i64>,
    /// Reasons and how many nodes they keep out.
    pub reasons: BTreeMap<String, usize>,
}

/// A question to extenders.
#[derive(Clone, Debug, Serialize)]
struct Args<'a> {
    #[serde(rename = "Pod")]
    pod: &'a Value,
    #[serde(rename = "Nodes")]
    nodes: Option<Value>,
    #[serde(rename = "NodeNames")]
    names: Option<Vec<&'a str>>,
}

/// Asks the extenders that have a say. An error: the pod cannot be scheduled now.
pub async fn ask(client: &Client, extenders: &[Extender], pod: &PodInfo, nodes: &[Arc<str>]) -> Result<Advice, String> {
    let object = read(client, pod).await.map_err(|e| e.to_string())?;
    let mut advice = Advice { scores: nodes.iter().map(|n| (n.clone(), 0)).collect(), ..Advice::default() };
    let concerned = || extenders.iter().filter(|e| e.concerns(pod));
    for extender in concerned().filter(|e| !e.filter.is_empty()) {
        let result = filter(client, extender, &object, &mut advice).await;
        tolerate(extender, result)?;
        if advice.scores.is_empty() {
            return Ok(advice);
        }
    }
    for extender in concerned().filter(|e| !e.prioritize.is_empty()) {
        let result = prioritize(client, extender, &object, &mut advice).await;
        // Upstream goes on without the points of an extender that does not answer.
        if let Err(error) = result {
            warn!(extender = extender.host, %error, "the extender gave no scores");
        }
    }
    Ok(advice)
}

fn tolerate(extender: &Extender, result: std::io::Result<()>) -> Result<(), String> {
    match result {
        Err(error) if extender.ignorable => {
            warn!(extender = extender.host, %error, "an ignorable extender does not answer; its say is ignored");
            Ok(())
        }
        other => other.map_err(|e| format!("extender {}:{}: {e}", extender.host, extender.port)),
    }
}

async fn question(client: &Client, extender: &Extender, pod: &Value, advice: &Advice) -> std::io::Result<Value> {
    let mut names: Vec<&str> = advice.scores.keys().map(|n| &**n).collect();
    names.sort_unstable();
    if extender.names_only {
        return Ok(json!(Args { pod, nodes: None, names: Some(names) }));
    }
    let list: Value = client.read("/api/v1/nodes", "application/json").await.map_err(std::io::Error::other)?;
    let wanted = |node: &&Value| advice.scores.contains_key(node["metadata"]["name"].as_str().unwrap_or_default());
    let items: Vec<&Value> = list["items"].as_array().into_iter().flatten().filter(wanted).collect();
    let nodes = json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {}, "items": items});
    Ok(json!(Args { pod, nodes: Some(nodes), names: None }))
}

async fn filter(client: &Client, extender: &Extender, pod: &Value, advice: &mut Advice) -> std::io::Result<()> {
    let question = question(client, extender, pod, advice).await?;
    let answer: Filtered = extender.post(&extender.filter, &question).await?;
    if !answer.error.is_empty() {
        return Err(std::io::Error::other(answer.error));
    }
    let listed = answer.nodes.map(|n| n.items.into_iter().map(|n| n.metadata.name).collect());
    let accepted: Vec<String> = answer.node_names.or(listed).unwrap_or_default();
    for reason in
        answer.failed_nodes.into_iter().chain(answer.failed_and_unresolvable_nodes).flat_map(|m| m.into_values())
    {
        *advice.reasons.entry(reason).or_default() += 1;
    }
    advice.scores.retain(|node, _| accepted.iter().any(|name| **name == **node));
    Ok(())
}

async fn prioritize(client: &Client, extender: &Extender, pod: &Value, advice: &mut Advice) -> std::io::Result<()> {
    let question = question(client, extender, pod, advice).await?;
    let answer: Vec<Prioritized> = extender.post(&extender.prioritize, &question).await?;
    for Prioritized { host, score } in answer {
        if let Some(sum) = advice.scores.get_mut(host.as_str()) {
            *sum += score.clamp(0, MAX_EXTENDER_SCORE) * extender.weight * (MAX_SCORE / MAX_EXTENDER_SCORE);
        }
    }
    Ok(())
}

/// A node on which room can be made.
#[derive(Clone, Debug)]
pub struct Victims {
    /// The node.
    pub node: Arc<str>,
    /// Who has to go.
    pub pods: Vec<Arc<PodInfo>>,
    /// How many of them a budget protects.
    pub violations: usize,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Preempted {
    node_name_to_meta_victims: BTreeMap<String, Option<MetaVictims>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct MetaVictims {
    #[serde(rename = "Pods")]
    pods: Vec<MetaPod>,
    #[serde(rename = "NumPDBViolations")]
    violations: usize,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct MetaPod {
    #[serde(rename = "UID")]
    uid: String,
}

/// Asks the extenders that have a say who may be pushed out. An error: nobody is.
pub async fn consult(
    client: &Client,
    extenders: &[Extender],
    pod: &PodInfo,
    mut candidates: Vec<Victims>,
) -> Result<Vec<Victims>, String> {
    let object = read(client, pod).await.map_err(|e| e.to_string())?;
    for extender in extenders.iter().filter(|e| e.preempts() && e.concerns(pod)) {
        match preempt(client, extender, &object, &candidates).await {
            Ok(kept) => candidates = kept,
            Err(error) => tolerate(extender, Err(error))?,
        }
        if candidates.is_empty() {
            break;
        }
    }
    Ok(candidates)
}

async fn read(client: &Client, pod: &PodInfo) -> std::io::Result<Value> {
    let path = format!("/api/v1/namespaces/{}/pods/{}", pod.class.namespace, pod.name);
    client.read(&path, "application/json").await.map_err(std::io::Error::other)
}

async fn preempt(
    client: &Client,
    extender: &Extender,
    pod: &Value,
    candidates: &[Victims],
) -> std::io::Result<Vec<Victims>> {
    let mut victims = serde_json::Map::new();
    for candidate in candidates {
        let mut pods = Vec::with_capacity(candidate.pods.len());
        for victim in &candidate.pods {
            pods.push(match extender.names_only {
                true => json!({"UID": &*victim.uid}),
                false => read(client, victim).await?,
            });
        }
        let one = json!({"Pods": pods, "NumPDBViolations": candidate.violations});
        victims.insert(candidate.node.to_string(), one);
    }
    let key = if extender.names_only { "NodeNameToMetaVictims" } else { "NodeNameToVictims" };
    let answer: Preempted = extender.post(&extender.preempt, &json!({"Pod": pod, key: victims})).await?;
    let kept = candidates.iter().filter_map(|candidate| {
        let said = answer.node_name_to_meta_victims.get(&*candidate.node)?.as_ref()?;
        let named = |victim: &&Arc<PodInfo>| said.pods.iter().any(|p| *p.uid == *victim.uid);
        let pods = candidate.pods.iter().filter(named).cloned().collect();
        Some(Victims { node: candidate.node.clone(), pods, violations: said.violations })
    });
    Ok(kept.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations() {
        let mut syms = Interner::default();
        let mut parse = |value: Value| Extender::parse(&value, &mut syms).map_err(|e| e.to_string());
        let extender = parse(json!({
            "urlPrefix": "http://127.0.0.1:8888/scheduler/", "filterVerb": "filter", "prioritizeVerb": "prioritize",
            "weight": 2, "httpTimeout": "500ms", "nodeCacheCapable": true,
            "managedResources": [{"name": "example.com/foo", "ignoredByScheduler": true}],
        }))
        .unwrap();
        assert_eq!(
            (extender.host.as_str(), extender.port, extender.prefix.as_str()),
            ("127.0.0.1", 8888, "/scheduler")
        );
        assert_eq!(extender.timeout, Duration::from_millis(500));
        assert!(extender.advises() && !extender.binds());
        let secure = parse(json!({"urlPrefix": "https://[::1]/b", "enableHTTPS": true})).unwrap();
        assert_eq!((secure.host.as_str(), secure.port, secure.tls.is_some()), ("::1", 443, true));
        assert!(extender.tls.is_none());
        for (value, part) in [
            (json!({"urlPrefix": "ftp://a/b"}), "urlPrefix"),
            (json!({"urlPrefix": "https://a/b", "tlsConfig": {"caData": "!"}}), "tlsConfig"),
            (json!({"urlPrefix": "https://a/b", "tlsConfig": {"caFile": "/nowhere"}}), "/nowhere"),
            (json!({"urlPrefix": "http://a/b", "prioritizeVerb": "p"}), "positive weight"),
            (json!({"urlPrefix": "a/b"}), "urlPrefix"),
            (json!({"urlPrefix": "http://a/b", "httpTimeout": "soon"}), "httpTimeout"),
            (json!({"url": "http://a/b"}), "unknown field"),
        ] {
            let error = parse(value.clone()).unwrap_err();
            assert!(error.contains(part), "{value}: {error}");
        }
    }
}
