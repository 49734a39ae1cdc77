//! Service account tokens: JWTs signed with ES256, bound to their audience and to objects.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Error;

/// Issuer of the tokens, and their default audience.
pub const ISSUER: &str = "https://kubernetes.default.svc";

/// An object that a token is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Name.
    pub name: String,
    /// uid; the token dies with it.
    pub uid: String,
}

/// The private claims.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubernetes {
    /// Namespace of the account.
    pub namespace: String,
    /// Node of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Bound>,
    /// Pod that the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Bound>,
    /// Secret that the token is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Bound>,
    /// The account.
    pub serviceaccount: Bound,
}

/// The claims of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Audiences.
    pub aud: Vec<String>,
    /// Expiry, seconds since 1970.
    pub exp: i64,
    /// Issued at.
    pub iat: i64,
    /// Issuer.
    pub iss: String,
    /// Token id.
    pub jti: String,
    /// Private claims.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Kubernetes,
    /// Not before.
    pub nbf: i64,
    /// `system:serviceaccount:<namespace>:<name>`
    pub sub: String,
}

/// The key that signs tokens.
pub struct SigningKey {
    pem: String,
    id: String,
    point: Vec<u8>,
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl SigningKey {
    /// Makes a new key (ECDSA P-256).
    pub fn create() -> Result<Self, Error> {
        Self::load(&KeyPair::generate()?.serialize_pem())
    }

    /// Reads a PKCS #8 PEM.
    pub fn load(pem: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem(pem)?;
        let point = key.public_key_raw().to_vec();
        // 0x04, x, y: an uncompressed P-256 point.
        if point.len() != 65 {
            return Err(Error::Malformed("the service account key is not an ECDSA P-256 key".into()));
        }
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(key.subject_public_key_info()));
        let encoding = EncodingKey::from_ec_pem(pem.as_bytes())?;
        let (x, y) = coordinates(&point);
        let decoding = DecodingKey::from_ec_components(&x, &y)?;
        Ok(Self { pem: pem.to_owned(), id, point, encoding, decoding })
    }

    /// The private key.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs a token.
    pub fn sign(&self, claims: &Claims) -> Result<String, Error> {
        let header = Header { kid: Some(self.id.clone()), typ: None, ..Header::new(Algorithm::ES256) };
        Ok(jsonwebtoken::encode(&header, claims, &self.encoding)?)
    }

    /// Verifies signature, issuer, times and that one of `audiences` is among the token's. Whether the account and the
    /// bound objects still exist is for the caller to check.
    pub fn verify(&self, token: &str, audiences: &[&str]) -> Result<Claims, Error> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(audiences);
        validation.validate_nbf = true;
        Ok(jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)?.claims)
    }

    /// The audiences of a token that is good but for them: signature, issuer and times are verified.
    pub fn audiences(&self, token: &str) -> Result<Vec<String>, Error> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[ISSUER]);
        validation.validate_aud = false;
        validation.validate_nbf = true;
        Ok(jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)?.claims.aud)
    }

    /// The public keys as `/openid/v1/jwks` serves them.
    pub fn jwks(&self) -> Value {
        let (x, y) = coordinates(&self.point);
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256", "x": x, "y": y}]})
    }
}

fn coordinates(point: &[u8]) -> (String, String) {
    (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..65]))
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(audience: &str, lifetime: i64) -> Claims {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        Claims {
            aud: vec![audience.into()],
            exp: now + lifetime,
            iat: now - 600,
            nbf: now - 600,
            iss: ISSUER.into(),
            sub: "system:serviceaccount:default:default".into(),
            ..Claims::default()
        }
    }

    #[test]
    fn tokens_are_checked() {
        let key = SigningKey::create().unwrap();
        let good = key.sign(&claims(ISSUER, 600)).unwrap();
        assert_eq!(key.verify(&good, &[ISSUER]).unwrap().aud, [ISSUER]);
        for (what, result) in [
            ("another key", SigningKey::create().unwrap().verify(&good, &[ISSUER])),
            ("another audience", key.verify(&good, &["vault"])),
            ("expired", key.verify(&key.sign(&claims(ISSUER, -500)).unwrap(), &[ISSUER])),
            (
                "another issuer",
                key.verify(&key.sign(&Claims { iss: "x".into(), ..claims(ISSUER, 600) }).unwrap(), &[ISSUER]),
            ),
            ("cut", key.verify(&good[..good.len() - 4], &[ISSUER])),
            ("no token", key.verify("a.b.c", &[ISSUER])),
        ] {
            assert!(result.is_err(), "{what}");
        }
    }
}
