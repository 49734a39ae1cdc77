//! Authorization by a service: SubjectAccessReviews posted to where a kubeconfig says, answers remembered for a while.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use keelson_machinery::cel::{Bindings, Budget, Env, Program, Type, Value as Cel};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;

use crate::access::{Attributes, Decision, UserInfo};
use crate::remote::Remote;

/// Answers that are remembered; more and the oldest half is forgotten.
const MAX_REMEMBERED: usize = 8192;
/// Longest request that is remembered, bytes of its review.
const MAX_REMEMBERED_BYTES: usize = 10_000;
/// Calls at once; each holds up a thread.
const MAX_CALLS: usize = 64;
/// What the conditions of a request may cost.
const BUDGET: u64 = 1_000_000;

/// How the service is used.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name in messages.
    pub name: String,
    /// Where it is.
    pub kubeconfig: PathBuf,
    /// `v1` or `v1beta1`.
    pub version: String,
    /// For how long a yes is remembered.
    pub allowed_ttl: Duration,
    /// For how long a no is remembered.
    pub denied_ttl: Duration,
    /// Longest that an answer may take.
    pub timeout: Duration,
    /// Whether a service that fails says no.
    pub failure_denies: bool,
    /// Expressions that must all hold for the service to be asked.
    pub conditions: Vec<String>,
}

/// A service that decides.
pub struct Webhook {
    settings: Settings,
    remote: Remote,
    conditions: Vec<Program>,
    known: Mutex<HashMap<String, (Decision, Instant)>>,
    calls: Semaphore,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("name", &self.settings.name).finish_non_exhaustive()
    }
}

impl Webhook {
    /// Reads the kubeconfig and compiles the conditions.
    pub fn load(settings: Settings) -> Result<Self, String> {
        let remote = Remote::load(&settings.kubeconfig).map_err(|why| format!("authorization webhook: {why}"))?;
        let env = Env::of([("request", Type::Dyn)]);
        let compile = |text: &String| {
            let program = Program::compile(text, &env).map_err(|e| format!("matchConditions: {text:?}: {e}"))?;
            match program.kind() {
                Type::Bool | Type::Dyn => Ok(program),
                _ => Err(format!("matchConditions: {text:?}: must evaluate to bool")),
            }
        };
        let conditions = settings.conditions.iter().map(compile).collect::<Result<Vec<_>, String>>()?;
        let known = Mutex::default();
        Ok(Self { settings, remote, conditions, known, calls: Semaphore::new(MAX_CALLS) })
    }

    /// The service's word. The calling thread waits for it, which other work does not notice.
    pub fn decide(&self, user: &UserInfo, asked: &Attributes) -> Decision {
        let spec = spec(user, asked);
        match self.applies(&spec) {
            Ok(true) => {}
            Ok(false) => return Decision::NoOpinion(String::new()),
            Err(why) => return self.failed(&why),
        }
        let key = spec.to_string();
        if let Some((decision, until)) = self.known.lock().get(&key)
            && *until > Instant::now()
        {
            return decision.clone();
        }
        let decision = match self.ask(&spec) {
            Ok(status) => decision_of(&status),
            Err(why) => return self.failed(&why),
        };
        let ttl = if decision == Decision::Allow { self.settings.allowed_ttl } else { self.settings.denied_ttl };
        if key.len() <= MAX_REMEMBERED_BYTES && !ttl.is_zero() {
            self.remember(key, decision.clone(), Instant::now() + ttl);
        }
        decision
    }

    fn failed(&self, why: &str) -> Decision {
        tracing::warn!(webhook = self.settings.name, why, "an authorization webhook failed");
        match self.settings.failure_denies {
            true => Decision::Deny("webhook authorizer failed".into()),
            false => Decision::NoOpinion(String::new()),
        }
    }

    fn remember(&self, key: String, decision: Decision, until: Instant) {
        let mut known = self.known.lock();
        if known.len() >= MAX_REMEMBERED {
            let mut ends: Vec<Instant> = known.values().map(|(_, until)| *until).collect();
            ends.sort_unstable();
            let middle = ends[ends.len() / 2];
            known.retain(|_, (_, until)| *until > middle);
        }
        known.insert(key, (decision, until));
    }

    fn applies(&self, spec: &Value) -> Result<bool, String> {
        for condition in &self.conditions {
            let mut bindings = Bindings::default();
            bindings.insert("request", Cel::of(spec, None));
            match condition.eval(&bindings, &Budget::new(BUDGET)) {
                Ok(Cel::Bool(true)) => {}
                Ok(_) => return Ok(false),
                Err(why) => return Err(why.to_string()),
            }
        }
        Ok(true)
    }

    fn ask(&self, spec: &Value) -> Result<Value, String> {
        let version = &self.settings.version;
        let mut spec = spec.clone();
        if version == "v1beta1"
            && let Some(groups) = spec.as_object_mut().and_then(|spec| spec.remove("groups"))
        {
            spec["group"] = groups;
        }
        let review = json!({"kind": "SubjectAccessReview", "apiVersion": format!("authorization.k8s.io/{version}"),
            "metadata": {}, "spec": spec});
        let handle = Handle::try_current().map_err(|e| e.to_string())?;
        if handle.runtime_flavor() == RuntimeFlavor::CurrentThread {
            return Err("a runtime of one thread cannot wait for a webhook".into());
        }
        let call = async {
            let _permit = self.calls.acquire().await.map_err(|e| e.to_string())?;
            self.remote.post(&review, self.settings.timeout).await
        };
        let answer = tokio::task::block_in_place(|| handle.block_on(call))?;
        match answer["status"].is_object() {
            true => Ok(answer["status"].clone()),
            false => Err("the answer has no status".into()),
        }
    }
}

fn decision_of(status: &Value) -> Decision {
    let reason = status["reason"].as_str().unwrap_or_default().to_owned();
    match (status["allowed"] == true, status["denied"] == true) {
        (true, false) => Decision::Allow,
        (false, true) => Decision::Deny(reason),
        _ => Decision::NoOpinion(reason),
    }
}

/// The spec of the review.
fn spec(user: &UserInfo, asked: &Attributes) -> Value {
    let mut spec = json!({"user": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        spec["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        spec["extra"] = json!(user.extra);
    }
    if asked.resource.is_empty() {
        spec["nonResourceAttributes"] = json!({"path": asked.path, "verb": asked.verb});
        return spec;
    }
    let mut resource = json!({});
    for (key, value) in [
        ("namespace", &asked.namespace),
        ("verb", &asked.verb),
        ("group", &asked.group),
        ("version", &asked.version),
        ("resource", &asked.resource),
        ("subresource", &asked.subresource),
        ("name", &asked.name),
    ] {
        if !value.is_empty() {
            resource[key] = value.as_str().into();
        }
    }
    if !asked.fields.is_empty() {
        let requirements = asked.fields.iter().map(|(k, v)| json!({"key": k, "operator": "In", "values": [v]}));
        resource["fieldSelector"] = json!({"requirements": requirements.collect::<Vec<_>>()});
    }
    spec["resourceAttributes"] = resource;
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reviews_say_what_is_asked_and_answers_are_understood() {
        let user = UserInfo { name: "eve".into(), groups: vec!["g".into()], ..UserInfo::default() };
        let asked = Attributes {
            verb: "list".into(),
            resource: "pods".into(),
            fields: vec![("spec.nodeName".into(), "n".into())],
            ..Attributes::default()
        };
        assert_eq!(
            spec(&user, &asked),
            json!({"user": "eve", "groups": ["g"], "resourceAttributes": {"verb": "list", "resource": "pods",
                "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n"]}]}}})
        );
        for (status, decision) in [
            (json!({"allowed": true}), Decision::Allow),
            (json!({"allowed": false, "denied": true, "reason": "r"}), Decision::Deny("r".into())),
            (json!({"allowed": true, "denied": true}), Decision::NoOpinion(String::new())),
            (json!({"reason": "r"}), Decision::NoOpinion("r".into())),
        ] {
            assert_eq!(decision_of(&status), decision, "{status}");
        }
    }
}
