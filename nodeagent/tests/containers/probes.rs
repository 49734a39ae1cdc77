//! Probes over gRPC: a server of the test's own says how its services fare.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use keelson_proto::health::health_check_response::ServingStatus;
use keelson_proto::health::health_server::{Health, HealthServer};
use keelson_proto::health::{HealthCheckRequest, HealthCheckResponse};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use crate::{Node, first, pod, ready, shell};

/// How the services fare; of others nothing is known.
#[derive(Clone, Default)]
struct Services(Arc<Mutex<HashMap<&'static str, ServingStatus>>>);

impl Services {
    fn set(&self, name: &'static str, status: ServingStatus) {
        self.0.lock().insert(name, status);
    }

    /// Serves on a port of the machine.
    async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = futures::stream::unfold(listener, |listener| async {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        });
        let router = tonic::transport::Server::builder().add_service(HealthServer::new(self.clone()));
        tokio::spawn(router.serve_with_incoming(incoming));
        address
    }
}

#[tonic::async_trait]
impl Health for Services {
    type WatchStream = futures::stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn check(&self, asked: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let name = asked.into_inner().service;
        let status = self.0.lock().get(name.as_str()).copied().ok_or_else(|| Status::not_found("unknown service"))?;
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("probes ask once"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_ask_over_grpc() {
    let Some(mut node) = Node::start().await else { return };
    let services = Services::default();
    let port = services.serve().await.port();
    services.set("", ServingStatus::Serving);
    services.set("live", ServingStatus::Serving);
    services.set("ready", ServingStatus::NotServing);
    let probe = |service: Option<&str>| json!({"grpc": {"port": port, "service": service}, "periodSeconds": 1, "failureThreshold": 1});
    let with = |startup: Value, live: Value, ready: Value| {
        let mut container = json!({"command": shell("exec /bin/busybox sleep 1000")});
        (container["startupProbe"], container["livenessProbe"], container["readinessProbe"]) = (startup, live, ready);
        pod("Always", container)
    };
    node.api.create("asked", with(probe(None), probe(Some("live")), probe(Some("ready"))));
    node.api.create("steady", with(Value::Null, probe(None), Value::Null));
    node.api.create("unknown", with(Value::Null, Value::Null, probe(Some("none"))));
    let runs = |p: &Value| p["status"]["phase"] == "Running" && first(p)["started"] == true;
    for name in ["asked", "steady", "unknown"] {
        node.until(name, "runs", runs).await;
    }
    assert!(!ready(&node.api.pod("asked")), "its service does not serve");
    services.set("ready", ServingStatus::Serving);
    node.until("asked", "is ready", ready).await;
    services.set("live", ServingStatus::NotServing);
    node.until("asked", "is started anew", |p| first(p)["restartCount"].as_i64() >= Some(1)).await;
    assert_eq!(first(&node.api.pod("steady"))["restartCount"], 0);
    assert!(!ready(&node.api.pod("unknown")), "nothing is known of its service");
    for name in ["asked", "steady", "unknown"] {
        node.api.delete(name, 1);
        node.until(name, "is confirmed as deleted", Value::is_null).await;
    }
    node.is_clean().await;
    node.kill_agent().await;
}
