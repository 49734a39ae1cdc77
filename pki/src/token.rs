//! Bootstrap tokens: `id.secret`, six and sixteen of `[a-z0-9]`, as kubeadm makes them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngExt;
use serde_json::json;
use sha2::{Digest, Sha256};

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
/// Length of the public part.
pub const ID_LENGTH: usize = 6;
/// Length of the secret part.
pub const SECRET_LENGTH: usize = 16;

/// Makes a new token.
pub fn generate() -> String {
    format!("{}.{}", random(ID_LENGTH), random(SECRET_LENGTH))
}

fn random(length: usize) -> String {
    let mut rng = rand::rng();
    (0..length).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

/// Splits a token into id and secret; `None` if it is not of the form.
pub fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let good = |part: &str, length| part.len() == length && part.bytes().all(|b| ALPHABET.contains(&b));
    (good(id, ID_LENGTH) && good(secret, SECRET_LENGTH)).then_some((id, secret))
}

/// Compares secrets in a time that does not depend on where they differ.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}

/// The token's id and the detached HS256 JWS of `text` under the token's secret.
pub fn signature(text: &str, token: &str) -> Option<(String, String)> {
    let (id, secret) = parse(token)?;
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
    fn tokens() {
        let token = generate();
        assert!(parse(&token).is_some(), "{token}");
        for bad in [
            "",
            "abcdef",
            "abcdef.0123",
            "ABCDEF.0123456789abcdef",
            "abcdef.0123456789abcdeF",
            "abcdefg.0123456789abcdef",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert!(equal(b"abc", b"abc") && !equal(b"abc", b"abd") && !equal(b"abc", b"ab"));
    }

    #[test]
    fn hmac_of_rfc_4231() {
        let mac = hmac_sha256(b"Jefe", b"what do ya want for nothing?");
        let hex: String = mac.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }
}
