//! The Secret that makes a bootstrap token valid.

use serde_json::{Value, json};

/// A bootstrap token to be.
#[derive(Clone, Debug)]
pub struct BootstrapTokenSecret {
    /// `id.secret`, as `keelson_pki::token::generate` makes it.
    pub token: String,
    /// When it stops being valid; `None` is never.
    pub expiration: Option<jiff::Timestamp>,
    /// For people.
    pub description: String,
}

impl BootstrapTokenSecret {
    /// The Secret; `None` if the token is not of the form.
    pub fn to_value(&self) -> Option<Value> {
        use base64::Engine;
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let (id, secret) = keelson_pki::token::parse(&self.token)?;
        let mut object = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
            "data": {
                "token-id": encode(id),
                "token-secret": encode(secret),
                "usage-bootstrap-authentication": encode("true"),
                "usage-bootstrap-signing": encode("true"),
            },
        });
        if let Some(expiration) = self.expiration {
            object["data"]["expiration"] = encode(&expiration.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()).into();
        }
        if !self.description.is_empty() {
            object["data"]["description"] = encode(&self.description).into();
        }
        Some(object)
    }
}
