//! How a further server gets the cluster's keys: it asks with a token over a connection pinned to the CA's hash.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::FutureExt;
use http_body_util::BodyExt;
use keelson_apiserver::Extension;
use keelson_client::Transport;
use keelson_client::https::Https;
use keelson_machinery::status::Status;
use keelson_pki::ClusterPki;
use keelson_raft::Replica;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::identity::Identity;

/// Where a server asks; the role of server tokens names it.
pub const PATH: &str = "/keelson/v1/join";
/// Largest answer that a joining server reads.
const WELCOME_BYTES: usize = 1024 * 1024;

/// What a server that joins is told.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Welcome {
    /// The cluster's id.
    pub cluster_id: u64,
    /// Addresses of Services.
    pub service_cidr: String,
    /// Addresses of pods.
    pub cluster_cidr: String,
    /// Peer addresses of the members.
    pub peers: Vec<String>,
    /// The cluster's keys. Never logged.
    pub keys: Box<RawValue>,
}

/// Answers servers that join. Who may ask is RBAC's matter.
pub fn extension(replica: Replica, identity: Identity, pki: Arc<ClusterPki>) -> (&'static str, Extension) {
    let answer = move |method: http::Method, _body: Bytes| {
        let welcome = welcome(&replica, &identity, &pki);
        async move {
            if method != http::Method::POST {
                return Err(Status::method_not_allowed());
            }
            let bytes = welcome.map_err(|error| Status::internal(&format!("cannot gather the keys: {error}")))?;
            Ok(keelson_apiserver::body::json(200, bytes))
        }
        .boxed()
    };
    (PATH, Arc::new(answer))
}

fn welcome(replica: &Replica, identity: &Identity, pki: &ClusterPki) -> Result<Vec<u8>> {
    let keys = RawValue::from_string(String::from_utf8(pki.to_bundle()?)?)?;
    Ok(serde_json::to_vec(&Welcome {
        cluster_id: identity.cluster_id,
        service_cidr: identity.service_cidr.clone(),
        cluster_cidr: identity.cluster_cidr.clone(),
        peers: replica.nodes().into_iter().map(|(_, node, _)| node.peer_address).collect(),
        keys,
    })?)
}

/// Asks the server at `url` for what a further server needs.
pub async fn ask(url: &str, token: &str, ca_hash: &str) -> Result<Welcome> {
    let tls = keelson_pki::client_config_pinned(ca_hash)?;
    let transport = Https::new(url, tls, Some(token.to_owned()));
    let request = http::Request::post(PATH).body(Bytes::new())?;
    let response = transport.call(request).await.with_context(|| {
        format!("cannot reach a server of the cluster with CA {ca_hash} at {url}: check --join and --ca-hash")
    })?;
    let status = response.status();
    let body = http_body_util::Limited::new(response.into_body(), WELCOME_BYTES).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("{url} broke off: {error}"))?.to_bytes();
    match status {
        http::StatusCode::OK => serde_json::from_slice(&body).with_context(|| format!("{url} is no keelson server")),
        http::StatusCode::UNAUTHORIZED => {
            bail!("{url} does not know the token, or it has expired: make one there with keelson token create --server")
        }
        http::StatusCode::FORBIDDEN => {
            bail!("the token is not one for servers: make one with keelson token create --server")
        }
        _ => {
            let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            bail!("{url} refused ({status}): {}", said["message"].as_str().unwrap_or("it did not say why"))
        }
    }
}
