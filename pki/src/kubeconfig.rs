//! Writes kubeconfig files.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::Issued;

/// How the user of a kubeconfig proves who it is.
pub enum Credential<'a> {
    /// A client certificate.
    Certificate(&'a Issued),
    /// A bearer token.
    Token(&'a str),
    /// Nothing (the `cluster-info` of token discovery).
    None,
}

/// A kubeconfig with one cluster, one user and one context. JSON is YAML, and unlike a hand-made template it is always
/// quoted right.
pub fn kubeconfig(cluster: &str, server: &str, ca: &str, user: &str, credential: Credential<'_>) -> String {
    let user_value = match credential {
        Credential::Certificate(issued) => json!({
            "client-certificate-data": STANDARD.encode(&issued.certificate),
            "client-key-data": STANDARD.encode(&issued.key),
        }),
        Credential::Token(token) => json!({ "token": token }),
        Credential::None => json!({}),
    };
    let context = format!("{user}@{cluster}");
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": STANDARD.encode(ca)}}],
        "users": [{"name": user, "user": user_value}],
        "contexts": [{"name": context, "context": {"cluster": cluster, "user": user}}],
        "current-context": context,
    });
    format!("{config:#}\n")
}
