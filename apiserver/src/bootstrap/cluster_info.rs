//! `kube-public/cluster-info`: where the cluster is and its CA, signed with each bootstrap token so that who has one
//! can trust it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

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

/// The token's id and the detached HS256 JWS of `text` under the token's secret.
pub fn signature(text: &str, token: &str) -> Option<(String, String)> {
    let (id, secret) = keelson_pki::token::parse(token)?;
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": id}).to_string());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(text));
    let mac = hmac_sha256(secret.as_bytes(), signed.as_bytes());
    Some((id.to_owned(), format!("{header}..{}", URL_SAFE_NO_PAD.encode(mac))))
}

/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;

/// HMAC (RFC 2104) for keys of at most one block; a bootstrap token's secret has sixteen bytes.
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let (mut inner, mut outer) = ([0x36_u8; BLOCK], [0x5c_u8; BLOCK]);
    for (i, byte) in key.iter().take(BLOCK).enumerate() {
        inner[i] ^= byte;
        outer[i] ^= byte;
    }
    let digest = Sha256::new().chain_update(inner).chain_update(message).finalize();
    Sha256::new().chain_update(outer).chain_update(digest).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_of_rfc_4231() {
        let mac = hmac_sha256(b"Jefe", b"what do ya want for nothing?");
        let hex: String = mac.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
