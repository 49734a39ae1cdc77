//! Who asks the agent, and whether they may: certificates of the cluster's CA or tokens, judged by the API.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, header};
use keelson_client::Client;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Refusal;

/// How long a yes holds.
const ALLOWED_FOR: Duration = Duration::from_secs(300);
/// How long a no holds.
const REFUSED_FOR: Duration = Duration::from_secs(30);
/// How long a token's user is remembered.
const TOKEN_FOR: Duration = Duration::from_secs(120);
/// Answers that are remembered at most; beyond, all are forgotten.
const REMEMBERED: usize = 1000;

/// An authenticated user, as reviews have it.
#[derive(Clone, Debug)]
pub struct User {
    name: String,
    uid: String,
    groups: Vec<String>,
}

type Answers<K, V> = Mutex<HashMap<K, (Instant, V)>>;

/// Authentication and authorization with their memory.
pub struct Access {
    client: Client,
    node: String,
    /// By the hash of the token: the token itself is not kept.
    users: Answers<[u8; 32], User>,
    decisions: Answers<(String, String, &'static str, String), bool>,
}

fn known<K: std::hash::Hash + Eq, V: Clone>(
    answers: &Answers<K, V>,
    key: &K,
    fresh: impl Fn(&V) -> Duration,
) -> Option<V> {
    answers.lock().get(key).filter(|(when, value)| when.elapsed() < fresh(value)).map(|(_, value)| value.clone())
}

fn remember<K: std::hash::Hash + Eq, V>(answers: &Answers<K, V>, key: K, value: V) {
    let mut answers = answers.lock();
    if answers.len() >= REMEMBERED {
        answers.clear();
    }
    answers.insert(key, (Instant::now(), value));
}

/// The verb and the subresources of `nodes` of which one must be allowed.
fn attributes(method: &Method, path: &str) -> (&'static str, &'static [&'static str]) {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let subresources: &[&str] = match first {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "healthz" | "livez" => &["healthz", "proxy"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    };
    (verb, subresources)
}

impl Access {
    /// Asks the API through `client` about access to `node`.
    pub fn new(client: Client, node: String) -> Self {
        Self { client, node, users: Mutex::default(), decisions: Mutex::default() }
    }

    /// The user of a request.
    pub async fn user(
        &self,
        certificate: Option<&CertificateDer<'static>>,
        headers: &HeaderMap,
    ) -> Result<User, Refusal> {
        if let Some(certificate) = certificate {
            let subject = keelson_pki::subject_of(certificate);
            let (name, mut groups) = subject.map_err(|_| Refusal(401, "Unauthorized".into()))?;
            groups.push("system:authenticated".into());
            return Ok(User { name, uid: String::new(), groups });
        }
        let header = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let token = header.and_then(|v| v.strip_prefix("Bearer ")).map(str::trim).filter(|t| !t.is_empty());
        let token = token.ok_or_else(|| Refusal(401, "Unauthorized".into()))?;
        let hash: [u8; 32] = Sha256::digest(token).into();
        if let Some(user) = known(&self.users, &hash, |_| TOKEN_FOR) {
            return Ok(user);
        }
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let status = self.review("/apis/authentication.k8s.io/v1/tokenreviews", &review).await?;
        if status["authenticated"] != true {
            return Err(Refusal(401, "Unauthorized".into()));
        }
        let text = |key: &str| status["user"][key].as_str().unwrap_or_default().to_owned();
        let groups = status["user"]["groups"].as_array().into_iter().flatten();
        let groups = groups.filter_map(|g| g.as_str().map(str::to_owned)).collect();
        let user = User { name: text("username"), uid: text("uid"), groups };
        remember(&self.users, hash, user.clone());
        Ok(user)
    }

    /// Whether the user may do this.
    pub async fn authorize(&self, user: &User, method: &Method, path: &str) -> Result<(), Refusal> {
        let (verb, subresources) = attributes(method, path);
        for subresource in subresources {
            let key = (user.name.clone(), user.groups.join(","), verb, (*subresource).to_owned());
            let fresh = |yes: &bool| if *yes { ALLOWED_FOR } else { REFUSED_FOR };
            let allowed = match known(&self.decisions, &key, fresh) {
                Some(allowed) => allowed,
                None => {
                    let allowed = self.ask(user, verb, subresource).await?;
                    remember(&self.decisions, key, allowed);
                    allowed
                }
            };
            if allowed {
                return Ok(());
            }
        }
        let wanted = subresources.last().copied().unwrap_or_default();
        let text = format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{wanted}])", user.name);
        Err(Refusal(403, text))
    }

    async fn ask(&self, user: &User, verb: &str, subresource: &str) -> Result<bool, Refusal> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": user.name, "uid": user.uid, "groups": user.groups, "resourceAttributes": {
                "verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": self.node}},
        });
        Ok(self.review("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await?["allowed"] == true)
    }

    async fn review(&self, path: &str, review: &Value) -> Result<Value, Refusal> {
        let body = review.to_string().into();
        let answer: Result<Value, _> = self.client.request(Method::POST, path, Some("application/json"), body).await;
        answer.map(|a| a["status"].clone()).map_err(|e| Refusal(500, format!("Authorization error: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_path_asks_for() {
        for (method, path, verb, subresources) in [
            (Method::GET, "/stats/summary", "get", &["stats"][..]),
            (Method::POST, "/exec/n/p/c", "create", &["proxy"]),
            (Method::GET, "/pods", "get", &["pods", "proxy"]),
            (Method::GET, "/metrics/resource", "get", &["metrics"]),
        ] {
            assert_eq!(attributes(&method, path), (verb, subresources), "{path}");
        }
    }

    #[test]
    fn answers_are_remembered_and_bounded() {
        let answers: Answers<usize, bool> = Mutex::default();
        for i in 0..REMEMBERED {
            remember(&answers, i, true);
        }
        assert_eq!(known(&answers, &0, |_| ALLOWED_FOR), Some(true));
        assert_eq!(known(&answers, &0, |_| Duration::ZERO), None);
        remember(&answers, REMEMBERED, true);
        assert_eq!(answers.lock().len(), 1);
    }
}
