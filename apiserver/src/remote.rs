//! Calls of services that a kubeconfig names: what audit, authentication and authorization ask elsewhere.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Limited};
use keelson_client::{Https, Transport, access};
use serde_json::Value;

/// Largest answer, bytes.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// A service that is posted to.
pub struct Remote {
    transport: Https,
    /// The path that the kubeconfig's server has.
    path: String,
}

impl Remote {
    /// The service of a kubeconfig's current context.
    pub fn load(kubeconfig: &Path) -> Result<Self, String> {
        let failed = |why: String| format!("{}: {why}", kubeconfig.display());
        let access = access(kubeconfig).map_err(|e| failed(e.to_string()))?;
        let rest = access.server.strip_prefix("https://");
        let rest = rest.ok_or_else(|| failed(format!("the server {:?} is not an https URL", access.server)))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let transport = Https::new(&format!("https://{host}"), access.tls, access.token);
        Ok(Self { transport, path: format!("/{path}") })
    }

    /// Posts a document and gives the answer, which is JSON or nothing.
    pub async fn post(&self, document: &Value, patience: Duration) -> Result<Value, String> {
        let request = Request::post(&self.path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "kube-apiserver")
            .body(Bytes::from(document.to_string()))
            .map_err(|e| e.to_string())?;
        let exchange = async {
            let response = self.transport.call(request).await.map_err(|e| e.to_string())?;
            let code = response.status();
            let bytes = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            Ok::<_, String>((code, bytes.map_err(|e| e.to_string())?.to_bytes()))
        };
        let (code, bytes) = match tokio::time::timeout(patience, exchange).await {
            Ok(result) => result?,
            Err(_) => return Err("context deadline exceeded".into()),
        };
        if !code.is_success() {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).trim().to_owned();
            return Err(format!("the service answered {code}: {text}"));
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|e| format!("the answer is not JSON: {e}"))
    }
}
