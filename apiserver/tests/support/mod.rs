//! An API server on a store of its own, called without a network.
// Each test binary compiles this anew and uses a part of it.
#![allow(dead_code)]

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::BodyExt;
use keelson_apiserver::access::UserInfo;
use keelson_apiserver::{ApiServer, Config, bootstrap};
use keelson_client::Body;
use keelson_store::{Kv, LocalKv};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// A server that is gone with the test.
pub struct Cluster {
    pub server: Arc<ApiServer>,
    pub kv: Arc<dyn Kv>,
    _directory: tempfile::TempDir,
}

impl Cluster {
    /// With Services in one range.
    pub async fn new() -> Self {
        Self::with_services_in("10.96.0.0/16").await
    }

    /// With Services in these ranges.
    pub async fn with_services_in(ranges: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kv: Arc<dyn Kv> = Arc::new(LocalKv::open(directory.path()).unwrap());
        bootstrap::ensure(kv.as_ref(), bootstrap::objects()).await.unwrap();
        let server = ApiServer::new(Config {
            kv: kv.clone(),
            pki: Arc::new(keelson_pki::ClusterPki::create().unwrap()),
            service_cidr: ranges.into(),
            extensions: Vec::new(),
            settings: Default::default(),
            stop: CancellationToken::new(),
        })
        .unwrap();
        Self { server, kv, _directory: directory }
    }

    /// Carries out a request of an admin.
    pub async fn send(&self, request: Request<Bytes>) -> Response<Body> {
        let user = UserInfo { name: "admin".into(), groups: vec!["system:masters".into()], ..UserInfo::default() };
        self.server.call(user, request).await
    }

    /// A request in JSON: status code and answer.
    pub async fn json(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, kind);
        let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let response = self.send(request.body(bytes).unwrap()).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap())
    }
}
