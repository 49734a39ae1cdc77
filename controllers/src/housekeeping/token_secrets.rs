//! Tokens of service accounts that people keep as Secrets: filled in when the Secret is made, deleted with the account.

use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use keelson_client::{Change, Key};
use keelson_pki::service_account::{Bound, Claims, ISSUER, Kubernetes};
use serde_json::json;

use crate::context::Context;
use crate::runtime::{Keys, Outcome, watch_own, watch_with};

pub(super) const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
pub(super) const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// Keys of the Secret's data.
const TOKEN: &str = "token";
const NAMESPACE: &str = "namespace";
const CA: &str = "ca.crt";
/// Such a token has no end; this is the longest that a token may say.
const LIFE_SECONDS: i64 = 1 << 32;

pub(super) fn annotation<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(key).map(String::as_str).filter(|v| !v.is_empty())
}

/// What a Secret lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lacks {
    token: bool,
    namespace: bool,
    /// The CA's certificate, or it has that of another time.
    ca: bool,
}

/// What is to be done with a Secret.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Leave,
    Fill(Lacks),
    Delete,
}

/// Whether a Secret is meant for this account and no earlier one of its name.
fn is_of(secret: &Secret, account: &ServiceAccount) -> bool {
    annotation(secret, ACCOUNT_UID).is_none_or(|uid| account.metadata.uid.as_deref() == Some(uid))
}

fn plan(secret: &Secret, account: Option<&ServiceAccount>, ca: &str) -> Plan {
    if secret.metadata.deletion_timestamp.is_some() || annotation(secret, ACCOUNT_NAME).is_none() {
        return Plan::Leave;
    }
    if !account.is_some_and(|account| is_of(secret, account)) {
        return Plan::Delete;
    }
    let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map_or(&[][..], |value| &value.0);
    let lacks = Lacks {
        token: data(TOKEN).is_empty(),
        namespace: data(NAMESPACE).is_empty(),
        ca: !ca.is_empty() && data(CA) != ca.as_bytes(),
    };
    if lacks.token || lacks.namespace || lacks.ca { Plan::Fill(lacks) } else { Plan::Leave }
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.account_secrets, queue);
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.service_accounts, queue, move |change: &Change<ServiceAccount>| {
        let (Some(account), Some(context)) = (change.object(), weak.upgrade()) else { return Vec::new() };
        let namespace = account.metadata.namespace.as_deref().unwrap_or_default();
        let mut secrets = context.cache.account_secrets.in_namespace(namespace);
        secrets.retain(|s| annotation(s, ACCOUNT_NAME) == account.metadata.name.as_deref());
        secrets.iter().map(|s| keelson_client::informer::key(&**s)).collect()
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(secret) = context.cache.account_secrets.get(&key) else { return Ok(None) };
    let name = annotation(&secret, ACCOUNT_NAME).unwrap_or_default();
    let api = context.client.namespaced::<Secret>(&key.0);
    let cached = context.cache.service_accounts.named(&key.0, name).filter(|account| is_of(&secret, account));
    let account = match cached {
        Some(account) => Some((*account).clone()),
        // It may be newer than the cache; only the API's word deletes.
        None if name.is_empty() => None,
        None => context.client.namespaced::<ServiceAccount>(&key.0).get_opt(name).await?,
    };
    match plan(&secret, account.as_ref(), &context.config.credentials.root()) {
        Plan::Leave => {}
        Plan::Delete => match api.delete(&key.1, &json!({"preconditions": {"uid": secret.metadata.uid}})).await {
            // Another of its name is looked at on its own.
            Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
            _ => {}
        },
        Plan::Fill(lacks) => {
            let Some(account) = account else { return Ok(None) };
            let Some(filled) = fill(&context, &secret, &account, lacks)? else { return Ok(None) };
            let written = api.replace(&key.1, &filled).await?;
            context.settle(&context.cache.account_secrets, &written).await;
        }
    }
    Ok(None)
}

/// Each Secret that went with its account's name, as `account/secret`.
pub(crate) fn watch_references(context: &Arc<Context>, queue: &Keys) {
    watch_with(&context.cache.account_secrets, queue, |change: &Change<Secret>| {
        let Some(gone) = change.old.as_ref().filter(|_| change.new.is_none()) else { return Vec::new() };
        let (Some(account), Some(name)) = (annotation(gone, ACCOUNT_NAME), &gone.metadata.name) else {
            return Vec::new();
        };
        vec![(gone.metadata.namespace.clone().unwrap_or_default(), format!("{account}/{name}"))]
    });
}

/// Takes a Secret that is gone out of its account's list.
pub(crate) async fn unreference(context: Arc<Context>, key: Key) -> Outcome {
    let Some((account, secret)) = key.1.split_once('/') else { return Ok(None) };
    let api = context.client.namespaced::<ServiceAccount>(&key.0);
    let known = context.cache.service_accounts.named(&key.0, account);
    if context.cache.account_secrets.named(&key.0, secret).is_some() || !known.is_some_and(|a| names(&a, secret)) {
        return Ok(None);
    }
    let Some(mut account) = api.get_opt(account).await?.filter(|account| names(account, secret)) else {
        return Ok(None);
    };
    account.secrets.iter_mut().for_each(|all| all.retain(|reference| reference.name.as_deref() != Some(secret)));
    let name = account.metadata.name.clone().unwrap_or_default();
    match api.replace(&name, &account).await {
        Err(error) if error.is_not_found() => Ok(None),
        result => result.map(|_| None),
    }
}

fn names(account: &ServiceAccount, secret: &str) -> bool {
    account.secrets.iter().flatten().any(|reference| reference.name.as_deref() == Some(secret))
}

/// The Secret with what it lacks; none without a key to sign a token.
fn fill(
    context: &Context,
    secret: &Secret,
    account: &ServiceAccount,
    lacks: Lacks,
) -> Result<Option<Secret>, keelson_client::Error> {
    let credentials = &context.config.credentials;
    let Some(key) = credentials.tokens() else { return Ok(None) };
    let namespace = secret.metadata.namespace.clone().unwrap_or_default();
    let mut filled = secret.clone();
    let data = filled.data.get_or_insert_default();
    if lacks.token {
        let token = key.sign(&claims(context, secret, account)).map_err(std::io::Error::other)?;
        data.insert(TOKEN.into(), ByteString(token.into_bytes()));
    }
    if lacks.ca {
        data.insert(CA.into(), ByteString(credentials.root().as_bytes().to_vec()));
    }
    if lacks.namespace {
        data.insert(NAMESPACE.into(), ByteString(namespace.into_bytes()));
    }
    let uid = account.metadata.uid.clone().unwrap_or_default();
    filled.metadata.annotations.get_or_insert_default().insert(ACCOUNT_UID.into(), uid);
    Ok(Some(filled))
}

/// What the token says.
fn claims(context: &Context, secret: &Secret, account: &ServiceAccount) -> Claims {
    let bound = |metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| Bound {
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
    };
    let namespace = secret.metadata.namespace.clone().unwrap_or_default();
    let now = context.now().0.as_second();
    let account = bound(&account.metadata);
    Claims {
        aud: vec![ISSUER.into()],
        exp: now + LIFE_SECONDS,
        iat: now,
        nbf: now,
        iss: ISSUER.into(),
        jti: secret.metadata.uid.clone().unwrap_or_default(),
        sub: format!("system:serviceaccount:{namespace}:{}", account.name),
        kubernetes: Kubernetes {
            namespace,
            secret: Some(bound(&secret.metadata)),
            serviceaccount: account,
            ..Kubernetes::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_live_with_their_account() {
        let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "a", "uid": "u"}})).unwrap();
        let named = json!({ACCOUNT_NAME: "a"});
        let bound = json!({ACCOUNT_NAME: "a", ACCOUNT_UID: "u"});
        let full = json!({"token": "dA==", "ca.crt": "Y2E=", "namespace": "bg=="});
        let lacks = |token, namespace, ca| Plan::Fill(Lacks { token, namespace, ca });
        for (annotations, data, account, ca, expected) in [
            (json!({}), json!({}), Some(&account), "ca", Plan::Leave),
            (named.clone(), json!({}), Some(&account), "ca", lacks(true, true, true)),
            (bound.clone(), json!({}), Some(&account), "", lacks(true, true, false)),
            (
                bound.clone(),
                json!({"token": "", "ca.crt": "Y2E=", "namespace": "bg=="}),
                Some(&account),
                "ca",
                lacks(true, false, false),
            ),
            (named.clone(), full.clone(), Some(&account), "ca", Plan::Leave),
            (bound.clone(), full.clone(), Some(&account), "ca", Plan::Leave),
            (bound.clone(), full.clone(), Some(&account), "another", lacks(false, false, true)),
            (named, full.clone(), None, "ca", Plan::Delete),
            (json!({ACCOUNT_NAME: "a", ACCOUNT_UID: "old"}), full, Some(&account), "ca", Plan::Delete),
        ] {
            let secret = json!({"metadata": {"annotations": annotations}, "data": data});
            let secret: Secret = serde_json::from_value(secret).unwrap();
            assert_eq!(plan(&secret, account, ca), expected, "{secret:?}");
        }
    }

    #[test]
    fn only_what_a_secret_lacks_is_filled_in() {
        let context = Context::for_tests();
        let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "a", "uid": "u"}})).unwrap();
        let secret = json!({"metadata": {"namespace": "n", "name": "s", "annotations": {ACCOUNT_NAME: "a"}},
            "data": {"token": "dA==", "mine": "bQ=="}});
        let secret: Secret = serde_json::from_value(secret).unwrap();
        let root = context.config.credentials.root();
        for (token, kept) in [(false, true), (true, false)] {
            let lacks = Lacks { token, namespace: true, ca: true };
            let filled = fill(&context, &secret, &account, lacks).unwrap().unwrap();
            let data = filled.data.as_ref().unwrap();
            assert_eq!(data[TOKEN].0 == b"t", kept);
            assert_eq!((&*data[NAMESPACE].0, &*data[CA].0, data["mine"].0.len()), (&b"n"[..], root.as_bytes(), 1));
            assert_eq!(annotation(&filled, ACCOUNT_UID), Some("u"));
        }
    }

    #[test]
    fn an_account_names_its_secrets() {
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {}, "secrets": [{"name": "s"}, {}]})).unwrap();
        for (account, secret, expected) in
            [(&account, "s", true), (&account, "t", false), (&ServiceAccount::default(), "s", false)]
        {
            assert_eq!(names(account, secret), expected, "{secret}");
        }
    }
}
