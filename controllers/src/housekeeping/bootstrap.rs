//! Bootstrap tokens: those that expired are deleted, and `cluster-info` is signed with each of the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::Timestamp;
use keelson_client::{Change, Key};
use keelson_pki::token;
use serde_json::json;
use tracing::info;

use crate::context::Context;
use crate::pods::until;
use crate::runtime::{Keys, Outcome, watch_own, watch_with};

/// Where the tokens are.
const TOKENS: &str = "kube-system";
/// Where joining nodes look.
const INFO: (&str, &str) = ("kube-public", "cluster-info");
const KUBECONFIG: &str = "kubeconfig";
/// Prefix of the keys with signatures.
const SIGNATURE: &str = "jws-kubeconfig-";

fn text(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
}

/// When a token ends; one whose end cannot be read has ended.
fn expires(secret: &Secret) -> Option<Timestamp> {
    secret.data.as_ref()?.get("expiration")?;
    Some(text(secret, "expiration").and_then(|t| t.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The token that a Secret is, if it is for signing and good now.
fn signing_token(secret: &Secret, now: Timestamp) -> Option<String> {
    let good = text(secret, "usage-bootstrap-signing").as_deref() == Some("true")
        && expires(secret).is_none_or(|at| at > now)
        && secret.metadata.deletion_timestamp.is_none();
    let token = format!("{}.{}", text(secret, "token-id")?, text(secret, "token-secret")?);
    let named = format!("bootstrap-token-{}", text(secret, "token-id")?);
    (good && secret.metadata.name.as_ref() == Some(&named)).then_some(token)
}

/// The data of `cluster-info` with exactly the signatures of these tokens; `None` if it has them.
fn signed(data: &BTreeMap<String, String>, tokens: &[String]) -> Option<BTreeMap<String, String>> {
    let config = data.get(KUBECONFIG)?;
    let mut wanted = data.clone();
    wanted.retain(|key, _| !key.starts_with(SIGNATURE));
    for (id, signature) in tokens.iter().filter_map(|t| token::signature(config, t)) {
        wanted.insert(format!("{SIGNATURE}{id}"), signature);
    }
    (wanted != *data).then_some(wanted)
}

pub(crate) fn watch_cleaner(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.tokens, queue);
}

/// Deletes one token if it has expired.
pub(crate) async fn clean(context: Arc<Context>, key: Key) -> Outcome {
    let Some(secret) = context.cache.tokens.get(&key).filter(|_| key.0 == TOKENS) else { return Ok(None) };
    let Some(at) = expires(&secret) else { return Ok(None) };
    let now = Timestamp::now();
    if at > now {
        return Ok(until(at, now));
    }
    let options = json!({"preconditions": {"uid": secret.metadata.uid}});
    match context.client.namespaced::<Secret>(&key.0).delete(&key.1, &options).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => {
            info!(secret = key.1, "deleted a bootstrap token that expired");
            Ok(None)
        }
    }
}

pub(crate) fn watch_signer(context: &Arc<Context>, queue: &Keys) {
    let info = || vec![(INFO.0.to_owned(), INFO.1.to_owned())];
    watch_with(&context.cache.tokens, queue, move |_: &Change<Secret>| info());
    watch_with(&context.cache.cluster_info, queue, move |_: &Change<ConfigMap>| info());
}

/// Signs `cluster-info`.
pub(crate) async fn sign(context: Arc<Context>, key: Key) -> Outcome {
    let Some(info) = context.cache.cluster_info.get(&key) else { return Ok(None) };
    let now = Timestamp::now();
    let secrets = context.cache.tokens.in_namespace(TOKENS);
    let tokens: Vec<String> = secrets.iter().filter_map(|s| signing_token(s, now)).collect();
    // The next token that expires takes its signature along.
    let next = secrets.iter().filter_map(|s| expires(s)).filter(|at| *at > now).min().and_then(|at| until(at, now));
    let Some(data) = signed(info.data.as_ref().unwrap_or(&BTreeMap::new()), &tokens) else { return Ok(next) };
    let changed = ConfigMap { data: Some(data), ..(*info).clone() };
    let written = context.client.namespaced::<ConfigMap>(&key.0).replace(&key.1, &changed).await?;
    context.settle(&context.cache.cluster_info, &written).await;
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(id: &str, expiration: Option<&str>, signing: bool) -> Secret {
        let mut data = BTreeMap::from([
            ("token-id".to_owned(), ByteString(id.into())),
            ("token-secret".to_owned(), ByteString("0123456789abcdef".into())),
        ]);
        if signing {
            data.insert("usage-bootstrap-signing".into(), ByteString("true".into()));
        }
        if let Some(text) = expiration {
            data.insert("expiration".into(), ByteString(text.into()));
        }
        let mut secret = Secret { data: Some(data), ..Secret::default() };
        secret.metadata.name = Some(format!("bootstrap-token-{id}"));
        secret
    }

    #[test]
    fn only_good_tokens_sign() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (secret, good) in [
            (secret("abcdef", None, true), true),
            (secret("abcdef", Some("2026-01-01T00:00:01Z"), true), true),
            (secret("abcdef", Some("2026-01-01T00:00:00Z"), true), false),
            (secret("abcdef", Some("soon"), true), false),
            (secret("abcdef", None, false), false),
        ] {
            assert_eq!(signing_token(&secret, now).is_some(), good);
        }
        let mut renamed = secret("abcdef", None, true);
        renamed.metadata.name = Some("other".into());
        assert_eq!(signing_token(&renamed, now), None);
    }

    #[test]
    fn signatures_come_and_go_with_their_tokens() {
        let data = BTreeMap::from([(KUBECONFIG.to_owned(), "config".to_owned())]);
        let tokens = vec!["abcdef.0123456789abcdef".to_owned()];
        let first = signed(&data, &tokens).unwrap();
        assert!(first["jws-kubeconfig-abcdef"].contains(".."));
        assert_eq!(signed(&first, &tokens), None);
        assert_eq!(signed(&first, &[]), Some(data));
        assert_eq!(signed(&BTreeMap::new(), &tokens), None);
    }
}
