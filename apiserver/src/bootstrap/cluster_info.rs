//! `kube-public/cluster-info`: where the cluster is and its CA, signed with each bootstrap token so that who has one
//! can trust it.

use keelson_pki::token::signature;
use serde_json::{Value, json};

/// `kube-system/extension-apiserver-authentication`: what servers behind this one need to believe what it tells them.
/// `client_ca` signs users' certificates, `proxy_ca` the one with which requests are handed on.
pub fn extension_authentication(client_ca: &str, proxy_ca: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {
            "client-ca-file": client_ca,
            "requestheader-allowed-names": json!([crate::aggregation::FRONT_PROXY]).to_string(),
            "requestheader-client-ca-file": proxy_ca,
            "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]",
            "requestheader-group-headers": "[\"X-Remote-Group\"]",
            "requestheader-uid-headers": "[\"X-Remote-Uid\"]",
            "requestheader-username-headers": "[\"X-Remote-User\"]",
        },
    })
}

/// The ConfigMap, signed for each of `tokens` (`id.secret`); a text that is no token is left out.
pub fn cluster_info(server: &str, ca: &str, tokens: &[String]) -> Value {
    let config = keelson_pki::kubeconfig("", server, ca, "", keelson_pki::Credential::None);
    let mut data = json!({ "kubeconfig": config });
    for (id, signed) in tokens.iter().filter_map(|token| signature(&config, token)) {
        data[format!("jws-kubeconfig-{id}")] = signed.into();
    }
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "cluster-info", "namespace": "kube-public"},
        "data": data,
    })
}
