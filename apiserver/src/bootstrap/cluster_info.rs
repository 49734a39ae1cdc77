//! `kube-public/cluster-info`: where the cluster is and its CA, signed with each bootstrap token so that who has one
//! can trust it.

use keelson_pki::token::signature;
use serde_json::{Value, json};

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
