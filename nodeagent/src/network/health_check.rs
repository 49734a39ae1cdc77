//! Health check ports of Services: balancers outside ask each node whether it has endpoints of the Service itself.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::Key;
use parking_lot::RwLock;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Questions at once for one Service.
const AT_ONCE: usize = 100;
/// A connection is closed after this time.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// What a port tells.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    service: Key,
    local: usize,
}

/// One port that is listened on; it is closed with this.
struct Port {
    told: Arc<RwLock<Told>>,
    listening: JoinHandle<()>,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// All health check ports of this node.
#[derive(Default)]
pub struct HealthChecks(HashMap<u16, Port>);

/// The port on which a Service's health is asked for.
fn port_of(service: &Service) -> Option<u16> {
    let spec = service.spec.as_ref()?;
    let wanted =
        spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local");
    u16::try_from(spec.health_check_node_port.filter(|_| wanted)?).ok().filter(|port| *port > 0)
}

/// How many endpoints of a Service are ready on this node.
fn local(slices: &[&EndpointSlice], node: &str) -> usize {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|e| e.conditions.as_ref().is_none_or(|c| c.ready != Some(false)));
    let here = ready.filter(|e| e.node_name.as_deref() == Some(node)).filter_map(|e| e.addresses.first());
    here.collect::<std::collections::HashSet<_>>().len()
}

impl HealthChecks {
    /// Takes a Service as it is now (`None`: it is gone).
    pub async fn take(&mut self, key: &Key, service: Option<&Service>, slices: &[&EndpointSlice], node: &str) {
        let wanted = service.and_then(port_of);
        self.0.retain(|number, port| Some(*number) == wanted || port.told.read().service != *key);
        let Some(number) = wanted else { return };
        let told = Told { service: key.clone(), local: local(slices, node) };
        if let Some(port) = self.0.get(&number) {
            *port.told.write() = told;
            return;
        }
        match listen(number).await {
            Ok(listener) => {
                let told = Arc::new(RwLock::new(told));
                let listening = tokio::spawn(serve(listener, told.clone()));
                self.0.insert(number, Port { told, listening });
            }
            Err(error) => tracing::error!(port = number, %error, "the health of a Service cannot be asked for"),
        }
    }
}

/// On all addresses of both families, or of IPv4 where there is no other.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await,
    }
}

fn answer(told: &Told) -> Response<Full<Bytes>> {
    let (namespace, name) = &told.service;
    let body = json!({"service": {"namespace": namespace, "name": name}, "localEndpoints": told.local,
        "serviceProxyHealthy": true});
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    if told.local == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    headers.insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    headers.insert("x-load-balancing-endpoint-weight", http::HeaderValue::from(told.local));
    response
}

async fn serve(listener: TcpListener, told: Arc<RwLock<Told>>) {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
        let told = told.clone();
        tokio::spawn(async move {
            let service = service_fn(move |_: Request<Incoming>| {
                let response = answer(&told.read());
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A client that goes away does not matter.
            let _ = tokio::time::timeout(PATIENCE, connection).await;
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(port: u16) -> Service {
        serde_json::from_value(json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": port}}))
        .unwrap()
    }

    async fn ask(port: u16) -> Option<(u16, serde_json::Value)> {
        use http_body_util::BodyExt;
        let stream = keelson_client::connection::connect("127.0.0.1", port, None).await.ok()?;
        let request = Request::get("/").header("host", "x").body(Full::<Bytes>::default()).unwrap();
        let response = keelson_client::connection::exchange(stream, request).await.ok()?;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((code, serde_json::from_slice(&body).ok()?))
    }

    #[tokio::test]
    async fn ports_tell_of_local_endpoints() {
        // The test holds no port itself: what it gets from the system it uses at once, and tries another if it is gone.
        let slice: EndpointSlice = serde_json::from_value(json!({"addressType": "IPv4", "endpoints": [
            {"addresses": ["10.0.0.1"], "nodeName": "a"}, {"addresses": ["10.0.0.2"], "nodeName": "b"},
            {"addresses": ["10.0.0.3"], "nodeName": "a", "conditions": {"ready": false}}]}))
        .unwrap();
        let key = ("n".to_owned(), "s".to_owned());
        let mut checks = HealthChecks::default();
        let mut port = 0;
        for _ in 0..100 {
            port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
            checks.take(&key, Some(&service(port)), &[&slice], "a").await;
            if !checks.0.is_empty() {
                break;
            }
        }
        let (code, body) = ask(port).await.unwrap();
        assert_eq!((code, &body["localEndpoints"], &body["service"]["name"]), (200, &json!(1), &json!("s")));
        checks.take(&key, Some(&service(port)), &[], "a").await;
        assert_eq!(ask(port).await.unwrap().0, 503);
        checks.take(&key, None, &[], "a").await;
        assert!(checks.0.is_empty());
        let plain: Service =
            serde_json::from_value(json!({"spec": {"type": "NodePort", "healthCheckNodePort": 1}})).unwrap();
        assert_eq!(port_of(&plain), None);
    }
}
