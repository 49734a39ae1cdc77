//! What probes and lifecycle hooks do: run a command, ask over HTTP, connect, ask for gRPC health, sleep.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::connection;
use keelson_proto::health::health_check_response::ServingStatus;
use keelson_proto::health::{HealthCheckRequest, health_client::HealthClient};

use crate::cri::Runtime;

/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 10 << 10;
/// Bytes of output that a message shows.
const MAX_SHOWN: usize = 1024;
/// Redirects that are followed.
const MAX_REDIRECTS: usize = 10;

/// The container that is asked.
#[derive(Clone)]
pub struct Target {
    /// The runtime.
    pub runtime: Runtime,
    /// Its id in the runtime.
    pub id: String,
    /// The pod's address.
    pub ip: String,
    /// Its spec, for the names of ports.
    pub container: Container,
}

/// Why an action failed, for an event.
pub type Failure = String;

fn port(wanted: &IntOrString, container: &Container) -> Result<u16, Failure> {
    let number = match wanted {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            named.map(|p| p.container_port).or_else(|| name.parse().ok())
        }
    };
    let number = number.ok_or_else(|| format!("couldn't find port: {wanted:?}"))?;
    u16::try_from(number).ok().filter(|p| *p > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_SHOWN)]).into_owned()
}

impl Target {
    /// Does what a probe says, within its timeout.
    pub async fn probe(&self, probe: &Probe) -> Result<(), Failure> {
        let timeout = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1).unsigned_abs().into());
        if let Some(exec) = &probe.exec {
            return self.exec(exec.command.as_deref().unwrap_or_default(), timeout).await;
        }
        let action = async {
            if let Some(action) = &probe.http_get {
                self.http(action, "kube-probe/1.36").await
            } else if let Some(action) = &probe.tcp_socket {
                self.tcp(action).await
            } else if let Some(action) = &probe.grpc {
                self.grpc(action).await
            } else {
                Err("missing probe handler".into())
            }
        };
        tokio::time::timeout(timeout, action)
            .await
            .unwrap_or_else(|_| Err(format!("context deadline exceeded: no answer within {} s", timeout.as_secs())))
    }

    /// Does what a lifecycle hook says.
    pub async fn hook(&self, hook: &LifecycleHandler, timeout: Duration) -> Result<(), Failure> {
        if let Some(exec) = &hook.exec {
            return self.exec(exec.command.as_deref().unwrap_or_default(), timeout).await;
        }
        let action = async {
            if let Some(sleep) = &hook.sleep {
                tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
                Ok(())
            } else if let Some(action) = &hook.http_get {
                self.http(action, "kube-lifecycle/1.36").await
            } else if let Some(action) = &hook.tcp_socket {
                self.tcp(action).await
            } else {
                Err("invalid handler: no action".into())
            }
        };
        tokio::time::timeout(timeout, action).await.unwrap_or_else(|_| Err("the hook took too long".into()))
    }

    async fn exec(&self, command: &[String], timeout: Duration) -> Result<(), Failure> {
        match self.runtime.exec(&self.id, command, timeout).await {
            Ok(done) if done.exit_code == 0 => Ok(()),
            Ok(done) => Err(shown(&[done.stdout, done.stderr].concat())),
            Err(status) => Err(status.message().to_owned()),
        }
    }

    async fn tcp(&self, action: &TCPSocketAction) -> Result<(), Failure> {
        let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&self.ip);
        let port = port(&action.port, &self.container)?;
        let dialled = connection::connect(host, port, None).await;
        dialled.map(|_| ()).map_err(|e| e.to_string())
    }

    async fn http(&self, action: &HTTPGetAction, agent: &str) -> Result<(), Failure> {
        let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&self.ip).to_owned();
        let port = port(&action.port, &self.container)?;
        let secure = action.scheme.as_deref() == Some("HTTPS");
        let mut path = action.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".into());
        if !path.starts_with('/') {
            path.insert(0, '/');
        }
        for _ in 0..MAX_REDIRECTS {
            let (code, location, body) = self.get(&host, port, secure, &path, action, agent).await?;
            let here = location.as_deref().and_then(|l| same_server(l, &host));
            match (code, here) {
                (200..=299, _) | (300..=399, None) => return Ok(()),
                (300..=399, Some(next)) => path = next,
                _ => return Err(format!("HTTP probe failed with statuscode: {code}{body}")),
            }
        }
        Err(format!("stopped after {MAX_REDIRECTS} redirects"))
    }

    async fn get(
        &self,
        host: &str,
        port: u16,
        secure: bool,
        path: &str,
        action: &HTTPGetAction,
        agent: &str,
    ) -> Result<(u16, Option<String>, String), Failure> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let tls = if secure {
            Some(keelson_pki::client_config_unverified(keelson_pki::Identity::None).map_err(|e| text(&e))?)
        } else {
            None
        };
        let stream = connection::connect(host, port, tls.map(std::sync::Arc::new)).await.map_err(|e| text(&e))?;
        let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut request = Request::get(path).header(header::CONNECTION, "close");
        let own = |name: &str| action.http_headers.iter().flatten().any(|h| h.name.eq_ignore_ascii_case(name));
        for (name, value) in [("host", authority.as_str()), ("user-agent", agent), ("accept", "*/*")] {
            if !own(name) {
                request = request.header(name, value);
            }
        }
        for header in action.http_headers.iter().flatten() {
            request = request.header(&header.name, &header.value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|e| text(&e))?;
        let response = connection::exchange(stream, request).await.map_err(|e| text(&e))?;
        let code = response.status().as_u16();
        let location = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok()).map(str::to_owned);
        // A longer answer is as good as a short one.
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map(|b| shown(&b.to_bytes())).unwrap_or_default();
        Ok((code, location, if body.is_empty() { body } else { format!(" {body}") }))
    }

    async fn grpc(&self, action: &GRPCAction) -> Result<(), Failure> {
        let port = u16::try_from(action.port).map_err(|_| format!("invalid port number: {}", action.port))?;
        let host = if self.ip.contains(':') { format!("[{}]", self.ip) } else { self.ip.clone() };
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{host}:{port}"));
        let channel = endpoint.map_err(|e| e.to_string())?.connect().await;
        let channel = channel.map_err(|e| format!("timeout: failed to connect service \"{host}:{port}\": {e}"))?;
        let ask = HealthCheckRequest { service: action.service.clone().unwrap_or_default() };
        match HealthClient::new(channel).check(ask).await {
            Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
            Ok(answer) => {
                let status = answer.get_ref().status().as_str_name();
                Err(format!("service unhealthy (responded with \"{status}\")"))
            }
            Err(status) => Err(format!("error: health rpc failed: {}", status.message())),
        }
    }
}

/// The path of a redirect if it stays with the same host.
fn same_server(location: &str, host: &str) -> Option<String> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(location.to_owned());
    }
    let uri: http::Uri = location.parse().ok()?;
    let same = uri.host().is_some_and(|h| h.trim_matches(['[', ']']) == host);
    same.then(|| uri.path_and_query().map_or("/".into(), |p| p.as_str().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_by_number_and_name() {
        let container: Container =
            serde_json::from_value(serde_json::json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}))
                .unwrap();
        for (wanted, port_number) in [
            (IntOrString::Int(80), Some(80)),
            (IntOrString::String("web".into()), Some(8080)),
            (IntOrString::String("81".into()), Some(81)),
            (IntOrString::String("none".into()), None),
            (IntOrString::Int(0), None),
            (IntOrString::Int(70_000), None),
        ] {
            assert_eq!(port(&wanted, &container).ok(), port_number, "{wanted:?}");
        }
    }

    #[test]
    fn redirects() {
        for (location, wanted) in
            [("/x?y", Some("/x?y")), ("http://1.2.3.4:80/z", Some("/z")), ("http://other/z", None), ("//other/z", None)]
        {
            assert_eq!(same_server(location, "1.2.3.4").as_deref(), wanted, "{location}");
        }
    }
}
