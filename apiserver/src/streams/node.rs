//! How a node's agent is reached: its address from the Node object, TLS checked against the cluster's CA.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use keelson_client::connection::{self, Stream};
use keelson_machinery::resources::find;
use keelson_machinery::status::Status;
use keelson_pki::{ClusterPki, Identity};
use parking_lot::Mutex;
use rustls::ClientConfig;
use serde_json::Value;

use crate::ApiServer;

/// The user as which the API server calls agents; it is a master, as whoever holds the authority's key could be.
pub const USER: &str = "kube-apiserver-kubelet-client";
/// Port of agents that do not say theirs.
const DEFAULT_PORT: u16 = 10250;
/// Kinds of node addresses, the preferred first.
const ADDRESSES: [&str; 3] = ["InternalIP", "ExternalIP", "Hostname"];
/// The label of nodes without an agent.
const PRETENDED: &str = "keelson.dev/hollow";
/// The protocol of raw connections into the pod network of a node.
const TUNNEL: &str = "keelson-tunnel";

/// The identity with which agents are called.
pub struct Agents {
    pki: Arc<ClusterPki>,
    issued: Mutex<Option<Issued>>,
}

/// A certificate in use, and by which CA and when it was made.
struct Issued {
    generation: u64,
    at: Instant,
    tls: Arc<ClientConfig>,
}

impl Agents {
    /// An identity signed by the cluster's CA. It is made anew when half of its life is over and when the CA changes.
    pub fn new(pki: &Arc<ClusterPki>) -> Self {
        Self { pki: pki.clone(), issued: Mutex::new(None) }
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, Status> {
        let cluster = &self.pki.cluster;
        let (generation, life) = (cluster.generation(), cluster.lifetime());
        let mut issued = self.issued.lock();
        if let Some(issued) = issued.as_ref().filter(|i| i.generation == generation && i.at.elapsed() < life / 2) {
            return Ok(issued.tls.clone());
        }
        let made = cluster.issue_client(USER, &[crate::authz::MASTERS]).and_then(|issued| {
            keelson_pki::client_config(&cluster.trusted(), Identity::Certificate(&issued)).map(Arc::new)
        });
        let tls = made.map_err(|why| Status::internal(&format!("no identity for calls to nodes: {why}")))?;
        *issued = Some(Issued { generation, at: Instant::now(), tls: tls.clone() });
        Ok(tls)
    }
}

/// Where an agent is.
pub struct Agent {
    pub host: String,
    pub port: u16,
}

impl Agent {
    /// As a request's Host header.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// The agent of a node.
pub fn agent(server: &ApiServer, name: &str) -> Result<Agent, Status> {
    let def = find("", "v1", "nodes").ok_or_else(Status::no_such_path)?;
    let (node, _) = server.objects.get(def, "", name)?.ok_or_else(|| Status::not_found("", "nodes", name))?;
    if !node["metadata"]["labels"][PRETENDED].is_null() {
        let message = format!("node {name} only pretends to run pods: it has no containers, logs or connections");
        return Err(Status { code: 501, reason: "NotImplemented".into(), ..Status::bad_request(message) });
    }
    address(&node).ok_or_else(|| {
        Status::internal(&format!("no preferred addresses found for node {name:?}; known addresses: []"))
    })
}

fn address(node: &Value) -> Option<Agent> {
    let status = &node["status"];
    let addresses = status["addresses"].as_array()?;
    let host = ADDRESSES.iter().find_map(|kind| addresses.iter().find(|a| a["type"] == *kind)?["address"].as_str())?;
    let port = status["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64().and_then(|p| u16::try_from(p).ok());
    Some(Agent { host: host.into(), port: port.filter(|p| *p > 0).unwrap_or(DEFAULT_PORT) })
}

/// A connection to an agent.
pub async fn connect(server: &ApiServer, agent: &Agent) -> Result<Box<dyn Stream>, Status> {
    let connected = connection::connect(&agent.host, agent.port, Some(server.agents.tls()?)).await;
    connected.map_err(|e| Status::internal(&format!("error dialing backend: {e}")))
}

/// Reads a path of the agent of `node`; an answer is at most `limit` bytes.
pub async fn read(server: &ApiServer, node: &str, path: &str, limit: usize) -> Result<Bytes, Status> {
    let agent = agent(server, node)?;
    let stream = connect(server, &agent).await?;
    let failed = |e: &dyn std::fmt::Display| Status::internal(&format!("error reading {path} of node {node}: {e}"));
    let request = Request::get(path).header("host", agent.authority()).body(Full::<Bytes>::default());
    let response = connection::exchange(stream, request.map_err(|e| failed(&e))?).await.map_err(|e| failed(&e))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), limit).collect().await.map_err(|e| failed(&e))?.to_bytes();
    if status != http::StatusCode::OK {
        return Err(failed(&format!("{status}: {}", String::from_utf8_lossy(&body[..body.len().min(500)]).trim())));
    }
    Ok(body)
}

/// A connection to an address of the pod network, through the agent of `node`: servers need no route to pods.
pub async fn tunnel(server: &ApiServer, node: &str, ip: &str, port: u16) -> Result<Box<dyn Stream>, Status> {
    let agent = agent(server, node)?;
    let stream = connect(server, &agent).await?;
    let request = Request::get(format!("/tunnel/{ip}/{port}"))
        .header("host", agent.authority())
        .header("connection", "Upgrade")
        .header("upgrade", TUNNEL)
        .body(Full::<Bytes>::default())
        .map_err(|e| Status::internal(&e.to_string()))?;
    let failed = |e: &dyn std::fmt::Display| Status::unavailable(format!("error trying to reach service: {e}"));
    let mut response = connection::exchange(stream, request).await.map_err(|e| failed(&e))?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        let why = Limited::new(response.into_body(), 4096).collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        return Err(failed(&String::from_utf8_lossy(&why).trim()));
    }
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(|e| failed(&e))?;
    Ok(Box::new(TokioIo::new(upgraded)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_agent_is_at_its_internal_address() {
        let node = json!({"status": {
            "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10350}}}});
        assert_eq!(address(&node).unwrap().authority(), "10.0.0.1:10350");
        let named = json!({"status": {"addresses": [{"type": "Hostname", "address": "n"}]}});
        assert_eq!(address(&named).unwrap().authority(), "n:10250");
        assert!(address(&json!({})).is_none());
    }
}
