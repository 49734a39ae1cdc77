//! Tokens that a service knows (`--authentication-token-webhook-config-file`): TokenReviews posted, answers remembered.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{AuthnError, with_groups};
use crate::access::UserInfo;
use crate::remote::Remote;

/// Tokens of which the answer is remembered.
const MAX_REMEMBERED: usize = 8192;
/// Longest that an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct Settings {
    /// kubeconfig of the service.
    pub kubeconfig: PathBuf,
    /// `v1` or `v1beta1`.
    pub version: String,
    /// For how long an answer is remembered.
    pub ttl: Duration,
}

type Answer = Option<(UserInfo, Vec<String>)>;

/// A service that knows tokens.
pub struct Webhook {
    settings: Settings,
    remote: Remote,
    /// By hash of token and audiences: nothing that is remembered is a credential.
    known: Mutex<HashMap<[u8; 32], (Answer, Instant)>>,
}

impl Webhook {
    /// Reads the kubeconfig.
    pub fn load(settings: &Settings) -> Result<Self, String> {
        if !matches!(settings.version.as_str(), "v1" | "v1beta1") {
            return Err(format!("unsupported TokenReview version {:?}: use v1 or v1beta1", settings.version));
        }
        let remote = Remote::load(&settings.kubeconfig).map_err(|why| format!("token webhook: {why}"))?;
        Ok(Self { settings: settings.clone(), remote, known: Mutex::default() })
    }

    /// The user of a token and the audiences that it is good for; `None`: the service does not know it.
    pub async fn user(&self, token: &str, audiences: &[&str]) -> Result<Answer, AuthnError> {
        let mut hash = Sha256::new();
        hash.update(token);
        audiences.iter().for_each(|audience| hash.update(format!("\0{audience}")));
        let key: [u8; 32] = hash.finalize().into();
        if let Some((answer, until)) = self.known.lock().get(&key)
            && *until > Instant::now()
        {
            return Ok(answer.clone());
        }
        let review = json!({"kind": "TokenReview", "apiVersion": format!("authentication.k8s.io/{}", self.settings.version),
            "metadata": {}, "spec": {"token": token, "audiences": audiences}});
        let answer = self.remote.post(&review, TIMEOUT).await;
        let answer = answer.map_err(|why| AuthnError(format!("webhook authenticator failed: {why}")))?;
        let answer = understood(&answer["status"], audiences);
        if !self.settings.ttl.is_zero() {
            let mut known = self.known.lock();
            if known.len() >= MAX_REMEMBERED {
                let now = Instant::now();
                known.retain(|_, (_, until)| *until > now);
                if known.len() >= MAX_REMEMBERED {
                    known.clear();
                }
            }
            known.insert(key, (answer.clone(), Instant::now() + self.settings.ttl));
        }
        Ok(answer)
    }
}

fn texts(of: &Value) -> Vec<String> {
    of.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What a review's status means.
fn understood(status: &Value, audiences: &[&str]) -> Answer {
    if status["authenticated"] != true {
        return None;
    }
    let user = &status["user"];
    let text = |key: &str| user[key].as_str().unwrap_or_default().to_owned();
    // A service that says nothing of audiences knows nothing of them: its tokens are for the API.
    let own = texts(&status["audiences"]);
    let shared: Vec<String> = match own.is_empty() {
        true => audiences.iter().map(|a| (*a).to_owned()).collect(),
        false => own.into_iter().filter(|a| audiences.contains(&a.as_str())).collect(),
    };
    if shared.is_empty() {
        return None;
    }
    let extra = user["extra"].as_object().into_iter().flatten();
    let extra = extra.map(|(key, values)| (key.to_lowercase(), texts(values))).collect();
    Some((UserInfo { uid: text("uid"), extra, ..with_groups(text("username"), texts(&user["groups"])) }, shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood() {
        let user = json!({"username": "eve", "uid": "u", "groups": ["g"], "extra": {"K": ["v"]}});
        let (found, audiences) = understood(&json!({"authenticated": true, "user": user}), &["api"]).unwrap();
        assert_eq!((found.name.as_str(), found.extra["k"].as_slice()), ("eve", &["v".to_owned()][..]));
        assert_eq!(audiences, ["api"]);
        for status in [
            json!({"authenticated": false, "user": user}),
            json!({"authenticated": true, "user": user, "audiences": ["other"]}),
            json!({}),
        ] {
            assert!(understood(&status, &["api"]).is_none(), "{status}");
        }
    }
}
