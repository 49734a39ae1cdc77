//! Bootstrap tokens: Secrets of `kube-system` with which a machine proves that it may join.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::{Authentication, AuthnError, with_groups};
use crate::access::UserInfo;

/// Type of the Secrets.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";

/// A text of a Secret's data.
pub(crate) fn text(secret: &Value, key: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(secret["data"][key].as_str()?).ok()?).ok()
}

/// Whether a token's Secret has expired; an expiration that cannot be read counts as passed.
pub(crate) fn expired(secret: &Value, now: Timestamp) -> bool {
    secret["data"].get("expiration").is_some()
        && text(secret, "expiration").and_then(|t| t.parse::<Timestamp>().ok()).is_none_or(|t| t <= now)
}

impl Authentication {
    pub(super) fn bootstrap_token(&self, id: &str, secret: &str, now: Timestamp) -> Result<UserInfo, AuthnError> {
        let refused = || AuthnError("invalid bearer token".into());
        let name = format!("bootstrap-token-{id}");
        let object = self.objects.object("", "v1", "secrets", "kube-system", &name).ok_or_else(refused)?;
        let known = text(&object, "token-secret").ok_or_else(refused)?;
        let good = object["type"] == SECRET_TYPE
            && object["metadata"].get("deletionTimestamp").is_none()
            && text(&object, "token-id").as_deref() == Some(id)
            && text(&object, "usage-bootstrap-authentication").as_deref() == Some("true");
        if !keelson_pki::token::equal(known.as_bytes(), secret.as_bytes()) || !good || expired(&object, now) {
            return Err(refused());
        }
        let mut groups = vec!["system:bootstrappers".to_owned()];
        for group in text(&object, "auth-extra-groups").unwrap_or_default().split(',').filter(|g| !g.is_empty()) {
            if !group.starts_with("system:bootstrappers:") {
                return Err(refused());
            }
            groups.push(group.to_owned());
        }
        Ok(with_groups(format!("system:bootstrap:{id}"), groups))
    }
}
