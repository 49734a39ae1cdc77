//! Service account tokens: JWTs signed with RS256 (or ES256 by the keys of older clusters), bound to their audience and to objects.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PublicKeyData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

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

/// The public part of a key, as JWKS has it.
enum Public {
    /// ECDSA P-256: the coordinates.
    Curve { x: String, y: String },
    /// RSA: modulus and exponent.
    Rsa { n: String, e: String },
}

/// The key that signs tokens.
pub struct SigningKey {
    pem: String,
    id: String,
    public: Public,
    algorithm: Algorithm,
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl SigningKey {
    /// Makes a new key (RSA, 2048 bits: what every verifier of tokens knows).
    pub fn create() -> Result<Self, Error> {
        let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)?;
        Self::load(&key.serialize_pem())
    }

    /// Reads a PKCS #8 PEM: RSA, or ECDSA P-256 as clusters had before.
    pub fn load(pem: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem(pem)?;
        let info = key.subject_public_key_info();
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(&info));
        let malformed = || Error::Malformed("the service account key is neither RSA nor ECDSA P-256".into());
        let (_, parsed) = SubjectPublicKeyInfo::from_der(&info).map_err(|_| malformed())?;
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match parsed.parsed().map_err(|_| malformed())? {
            PublicKey::RSA(rsa) => {
                let without_zero = |bytes: &[u8]| {
                    let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(0);
                    encode(&bytes[start..])
                };
                let (n, e) = (without_zero(rsa.modulus), without_zero(rsa.exponent));
                let encoding = EncodingKey::from_rsa_pem(pem.as_bytes())?;
                let decoding = DecodingKey::from_rsa_components(&n, &e)?;
                let public = Public::Rsa { n, e };
                Ok(Self { pem: pem.to_owned(), id, public, algorithm: Algorithm::RS256, encoding, decoding })
            }
            // 0x04, x, y: an uncompressed P-256 point.
            PublicKey::EC(point) if point.data().len() == 65 => {
                let (x, y) = (encode(&point.data()[1..33]), encode(&point.data()[33..65]));
                let encoding = EncodingKey::from_ec_pem(pem.as_bytes())?;
                let decoding = DecodingKey::from_ec_components(&x, &y)?;
                let public = Public::Curve { x, y };
                Ok(Self { pem: pem.to_owned(), id, public, algorithm: Algorithm::ES256, encoding, decoding })
            }
            _ => Err(malformed()),
        }
    }

    /// The private key.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The algorithm's name, such as `RS256`.
    pub fn algorithm(&self) -> &'static str {
        match self.public {
            Public::Rsa { .. } => "RS256",
            Public::Curve { .. } => "ES256",
        }
    }

    /// Signs a token.
    pub fn sign(&self, claims: &Claims) -> Result<String, Error> {
        self.sign_any(claims)
    }

    /// Signs claims of any form, as other issuers' tokens have them.
    pub fn sign_any(&self, claims: &impl Serialize) -> Result<String, Error> {
        let header = Header { kid: Some(self.id.clone()), typ: None, ..Header::new(self.algorithm) };
        Ok(jsonwebtoken::encode(&header, claims, &self.encoding)?)
    }

    /// Verifies signature, issuer, times and that one of `audiences` is among the token's. Whether the account and the
    /// bound objects still exist is for the caller to check.
    pub fn verify(&self, token: &str, audiences: &[&str]) -> Result<Claims, Error> {
        let mut validation = Validation::new(self.algorithm);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(audiences);
        validation.validate_nbf = true;
        Ok(jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)?.claims)
    }

    /// The audiences of a token that is good but for them: signature, issuer and times are verified.
    pub fn audiences(&self, token: &str) -> Result<Vec<String>, Error> {
        let mut validation = Validation::new(self.algorithm);
        validation.set_issuer(&[ISSUER]);
        validation.validate_aud = false;
        validation.validate_nbf = true;
        Ok(jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)?.claims.aud)
    }

    /// The public keys as `/openid/v1/jwks` serves them.
    pub fn jwks(&self) -> Value {
        let key = match &self.public {
            Public::Rsa { n, e } => json!({"use": "sig", "kty": "RSA", "kid": self.id, "alg": "RS256", "n": n, "e": e}),
            Public::Curve { x, y } => {
                json!({"use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256", "x": x, "y": y})
            }
        };
        json!({"keys": [key]})
    }
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
        // A cluster that has an ECDSA key keeps it, and its tokens stay good.
        let old = SigningKey::load(&KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let new = SigningKey::create().unwrap();
        assert_eq!((old.algorithm(), new.algorithm()), ("ES256", "RS256"));
        assert_eq!(new.jwks()["keys"][0]["kty"], "RSA");
        check(&old);
        check(&new);
        assert!(new.verify(&old.sign(&claims(ISSUER, 600)).unwrap(), &[ISSUER]).is_err());
    }

    fn check(key: &SigningKey) {
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
