//! Tokens that users get for their password. All members can check them, since the cluster's secret signs them; they
//! survive restarts, and end when the password changes.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use keelson_proto::etcd::authpb::User;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How tokens are made, as `--auth-token` says.
#[derive(Clone)]
pub enum TokenKind {
    /// By the cluster's secret.
    Simple {
        /// How long they are good.
        ttl: Duration,
    },
    /// JSON web tokens by keys that others may have too.
    Jwt(Box<JwtKeys>),
}

/// Keys of JSON web tokens.
#[derive(Clone)]
pub struct JwtKeys {
    algorithm: Algorithm,
    sign: Option<EncodingKey>,
    check: DecodingKey,
    ttl: Duration,
}

impl Default for TokenKind {
    fn default() -> Self {
        Self::Simple { ttl: super::super::limits::TOKEN_TTL }
    }
}

/// What a token says.
#[derive(Serialize, Deserialize)]
struct Claims {
    username: String,
    revision: u64,
    exp: u64,
    /// Of the password that it was given for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mark: Option<String>,
}

/// Whom a token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// The user.
    pub user: String,
    /// The auth revision at which it was made; `None` where that does not matter.
    pub revision: Option<u64>,
    mark: Option<String>,
}

impl Bearer {
    /// Whether the user's password is still the one that the token was given for.
    pub fn is_current(&self, user: &User) -> bool {
        self.mark.as_ref().is_none_or(|found| *found == mark(user))
    }
}

/// Tells one password of a user from the next, without telling the password.
fn mark(user: &User) -> String {
    let sum = Sha256::new_with_prefix(b"keelson token").chain_update(&user.password).finalize();
    sum[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl TokenKind {
    /// Reads `--auth-token`: `simple`, or `jwt,pub-key=FILE,priv-key=FILE,sign-method=RS256,ttl=5m`.
    pub fn parse(text: &str, simple_ttl: Duration, duration: fn(&str) -> Option<Duration>) -> Result<Self, String> {
        let mut parts = text.split(',');
        match parts.next() {
            Some("simple" | "") => return Ok(Self::Simple { ttl: simple_ttl }),
            Some("jwt") => {}
            Some(other) => return Err(format!("--auth-token {other} is unknown: simple and jwt are known")),
            None => return Err("--auth-token is empty".into()),
        }
        let (mut public, mut private, mut method, mut ttl) = (None, None, None, super::super::limits::TOKEN_TTL);
        for part in parts {
            let (name, value) =
                part.split_once('=').ok_or_else(|| format!("--auth-token: {part} is not NAME=VALUE"))?;
            match name {
                "pub-key" => public = Some(PathBuf::from(value)),
                "priv-key" => private = Some(PathBuf::from(value)),
                "sign-method" => method = Some(value.to_owned()),
                "ttl" => ttl = duration(value).ok_or_else(|| format!("--auth-token: ttl {value} is no duration"))?,
                _ => return Err(format!("--auth-token: {name} is unknown")),
            }
        }
        let method = method.ok_or("--auth-token jwt needs sign-method")?;
        let algorithm: Algorithm = method.parse().map_err(|_| format!("--auth-token: {method} is no method"))?;
        keys(algorithm, public.as_deref(), private.as_deref(), ttl).map(|keys| Self::Jwt(Box::new(keys)))
    }

    /// A token for a user who has shown the right password.
    pub fn issue(&self, secret: &[u8], user: &User, revision: u64) -> Result<String, String> {
        let ttl = match self {
            Self::Simple { ttl } => *ttl,
            Self::Jwt(keys) => keys.ttl,
        };
        let username = String::from_utf8_lossy(&user.name).into_owned();
        let claims = Claims { username, revision, exp: now() + ttl.as_secs(), mark: Some(mark(user)) };
        let signed = match self {
            Self::Simple { .. } => {
                jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret))
            }
            Self::Jwt(keys) => match &keys.sign {
                Some(key) => jsonwebtoken::encode(&Header::new(keys.algorithm), &claims, key),
                None => return Err("this member has no key that signs tokens".into()),
            },
        };
        signed.map_err(|error| error.to_string())
    }

    /// Whom a token is for, if it is good.
    pub fn check(&self, secret: &Bytes, token: &str) -> Option<Bearer> {
        let (algorithm, key) = match self {
            Self::Simple { .. } => (Algorithm::HS256, DecodingKey::from_secret(secret)),
            Self::Jwt(keys) => (keys.algorithm, keys.check.clone()),
        };
        if secret.is_empty() && matches!(self, Self::Simple { .. }) {
            return None;
        }
        let mut validation = Validation::new(algorithm);
        validation.leeway = 0;
        let Claims { username, revision, mark, .. } =
            jsonwebtoken::decode::<Claims>(token, &key, &validation).ok()?.claims;
        let revision = matches!(self, Self::Jwt(_)).then_some(revision);
        Some(Bearer { user: username, revision, mark })
    }
}

fn keys(algorithm: Algorithm, public: Option<&Path>, private: Option<&Path>, ttl: Duration) -> Result<JwtKeys, String> {
    use Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512};
    let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let bad = |error: jsonwebtoken::errors::Error| format!("--auth-token: a key cannot be used: {error}");
    let private = private.map(read).transpose()?;
    let public = public.map(read).transpose()?;
    let (sign, check) = match algorithm {
        HS256 | HS384 | HS512 => {
            let secret = private.as_deref().ok_or("--auth-token jwt needs priv-key for this sign-method")?;
            (Some(EncodingKey::from_secret(secret)), DecodingKey::from_secret(secret))
        }
        _ => {
            let public = public.as_deref().ok_or("--auth-token jwt needs pub-key for this sign-method")?;
            let sign = |key: &[u8]| match algorithm {
                ES256 | ES384 => EncodingKey::from_ec_pem(key),
                EdDSA => EncodingKey::from_ed_pem(key),
                _ => EncodingKey::from_rsa_pem(key),
            };
            let check = match algorithm {
                ES256 | ES384 => DecodingKey::from_ec_pem(public),
                EdDSA => DecodingKey::from_ed_pem(public),
                _ => DecodingKey::from_rsa_pem(public),
            };
            (private.as_deref().map(sign).transpose().map_err(bad)?, check.map_err(bad)?)
        }
    };
    Ok(JwtKeys { algorithm, sign, check, ttl })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_of_their_user_secret_and_password() -> Result<(), String> {
        let user = User { name: "ann".into(), password: "hash".into(), ..User::default() };
        let kind = TokenKind::default();
        let token = kind.issue(b"secret", &user, 3)?;
        let bearer = kind.check(&"secret".into(), &token).ok_or("refused")?;
        assert_eq!((bearer.user.as_str(), bearer.revision), ("ann", None));
        assert!(bearer.is_current(&user));
        assert!(!bearer.is_current(&User { password: "other".into(), ..user.clone() }));
        for (secret, token) in [("other", token.as_str()), ("secret", "x.y.z"), ("", token.as_str())] {
            assert_eq!(kind.check(&secret.into(), token), None);
        }
        let expired = TokenKind::Simple { ttl: Duration::ZERO }.issue(b"secret", &user, 3)?;
        std::thread::sleep(Duration::from_millis(1100));
        assert_eq!(kind.check(&"secret".into(), &expired), None);
        Ok(())
    }

    #[test]
    fn settings_of_tokens() {
        let parse = |text| TokenKind::parse(text, Duration::from_secs(1), |_| None);
        assert!(matches!(parse("simple"), Ok(TokenKind::Simple { .. })));
        for bad in ["other", "jwt", "jwt,sign-method=HS256", "jwt,sign-method=none", "jwt,x=y", "jwt,ttl=x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
