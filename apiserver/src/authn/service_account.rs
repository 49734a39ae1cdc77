//! Service account tokens: signed by the cluster, and alive only as long as what they are bound to.

use keelson_pki::service_account::Bound;
use serde_json::Value;

use super::{Authentication, AuthnError, with_groups};
use crate::access::UserInfo;

impl Authentication {
    pub(super) fn service_account(
        &self,
        token: &str,
        audiences: &[&str],
    ) -> Result<(UserInfo, Vec<String>), AuthnError> {
        let claims = self
            .pki
            .service_account
            .verify(token, audiences)
            .map_err(|_| AuthnError(self.why_not(token, audiences)))?;
        let private = &claims.kubernetes;
        let namespace = private.namespace.as_str();
        let account = &private.serviceaccount;
        let subject = format!("system:serviceaccount:{namespace}:{}", account.name);
        if subject != claims.sub {
            return Err(AuthnError("service account token has been invalidated".into()));
        }
        self.still("serviceaccounts", namespace, account)?;
        if let Some(secret) = &private.secret {
            self.still("secrets", namespace, secret)?;
            if let Some(kept) = self.objects.object("", "v1", "secrets", namespace, &secret.name) {
                self.uses.shown(&kept, &account.name, token).map_err(AuthnError)?;
            }
        }
        if let Some(pod) = &private.pod {
            self.still("pods", namespace, pod)?;
        }
        if let (Some(node), None) = (&private.node, &private.pod) {
            self.still("nodes", "", node)?;
        }
        let groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        let mut user = with_groups(subject, groups);
        user.uid = account.uid.clone();
        user.extra.insert(super::CREDENTIAL_ID.into(), vec![format!("JTI={}", claims.jti)]);
        for (kind, bound) in [("pod", &private.pod), ("node", &private.node)] {
            if let Some(bound) = bound {
                user.extra.insert(format!("authentication.kubernetes.io/{kind}-name"), vec![bound.name.clone()]);
                user.extra.insert(format!("authentication.kubernetes.io/{kind}-uid"), vec![bound.uid.clone()]);
            }
        }
        Ok((user, claims.aud))
    }

    /// Why a token is not good for these audiences: only whether it is for others is told.
    fn why_not(&self, token: &str, audiences: &[&str]) -> String {
        let own = match self.pki.service_account.audiences(token) {
            Ok(own) if !own.iter().any(|a| audiences.contains(&a.as_str())) => own,
            _ => return "invalid bearer token".into(),
        };
        let shown = |list: Vec<String>| list.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(" ");
        let wanted = audiences.iter().map(|a| (*a).to_owned()).collect();
        format!("token audiences [{}] is invalid for the target audiences [{}]", shown(own), shown(wanted))
    }

    /// Whether a bound object is still the one that the token was made for.
    fn still(&self, plural: &str, namespace: &str, bound: &Bound) -> Result<(), AuthnError> {
        let object = self.objects.object("", "v1", plural, namespace, &bound.name);
        let uid = object.as_ref().map(|o| &o["metadata"]["uid"]);
        if uid.and_then(Value::as_str) == Some(bound.uid.as_str()) {
            return Ok(());
        }
        if plural == "serviceaccounts" && object.is_none() {
            return Err(AuthnError(format!("serviceaccounts {:?} not found", bound.name)));
        }
        Err(AuthnError("service account token has been invalidated".into()))
    }
}
