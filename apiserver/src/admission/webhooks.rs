//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: others' servers change or refuse objects.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::cel::{Budget, Program};
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::Status;
use keelson_machinery::{conversion, patch};
use serde_json::{Value, json};

use super::cache::{Cache, Cached};
use super::matching::{is_exempt, matching_version, namespace_of, selected};
use super::review::{BUDGET, Seen, compile_conditions, conditions, describe, env};
use super::{Parts, refit};
use crate::access::{Admission, AdmissionPlugin, Round};
use crate::authz::Authorization;
use crate::hooks::Hooks;
use crate::objects::Objects;
use crate::{audit, crd};

/// Seconds that a webhook has if its configuration does not say.
const DEFAULT_TIMEOUT_SECONDS: u64 = 10;

/// This step's name in the chain.
const STEP: &str = "MutatingAdmissionWebhook";
/// The version of reviews whose answers are looked at closely.
const REVIEW: &str = "admission.k8s.io/v1";
/// The one form of patches.
const JSON_PATCH: &str = "JSONPatch";

/// A webhook of a configuration.
struct Hook {
    /// The configuration's name, and which of its webhooks this is.
    configuration: String,
    index: usize,
    config: Value,
    name: String,
    conditions: Vec<(String, Result<Program, String>)>,
}

/// What both plugins are made of.
struct Common {
    objects: Objects,
    authorization: Arc<Authorization>,
    customs: Arc<crd::Table>,
    client: Arc<Hooks>,
    hooks: Cache<Vec<Arc<Hook>>>,
}

impl Common {
    fn new(parts: &Parts, plurals: &'static [&'static str]) -> Self {
        Self {
            objects: parts.objects.clone(),
            authorization: parts.authorization.clone(),
            customs: parts.customs.clone(),
            client: parts.hooks.clone(),
            hooks: Cache::new(parts.objects.clone(), plurals),
        }
    }

    /// Whether a webhook is about such requests, whatever their objects.
    fn is_about(&self, request: &Admission<'_>) -> bool {
        let cached = (!is_exempt(request)).then(|| self.cached()).flatten();
        cached.is_some_and(|cached| cached.1.iter().any(|hook| self.version(hook, request).is_some()))
    }

    fn cached(&self) -> Option<Arc<Cached<Vec<Arc<Hook>>>>> {
        self.hooks.get(|lists| lists.into_iter().flatten().flat_map(|c| hooks_of(&c)).collect())
    }

    /// The version in which a webhook wants to see a request's object, if its rules are about it.
    fn version(&self, hook: &Hook, request: &Admission<'_>) -> Option<&'static ResourceDef> {
        let exact = hook.config["matchPolicy"] == "Exact";
        matching_version(&hook.config["rules"], &Value::Null, exact, request, &self.customs)
    }

    /// The webhooks that may be about a request, with the version in which they want to see it.
    fn chosen(&self, request: &Admission<'_>) -> Result<Vec<(Arc<Hook>, &'static ResourceDef)>, Status> {
        if is_exempt(request) {
            return Ok(Vec::new());
        }
        let Some(cached) = self.cached() else { return Ok(Vec::new()) };
        let mut out = Vec::new();
        for hook in &cached.1 {
            if let Some(def) = self.version(hook, request)
                && self.is_selected(hook, request)?
            {
                out.push((hook.clone(), def));
            }
        }
        Ok(out)
    }

    /// Whether a webhook's selectors choose the object as it is now.
    fn is_selected(&self, hook: &Hook, request: &Admission<'_>) -> Result<bool, Status> {
        let asks = hook.config["namespaceSelector"].as_object().is_some_and(|selector| !selector.is_empty());
        let namespace = if asks { namespace_of(request, &self.objects)? } else { None };
        Ok(selected(&hook.config, request, namespace.as_ref()))
    }

    /// Whether a webhook's conditions hold; a refusal if they cannot be told and the webhook must be asked.
    fn applies(&self, hook: &Hook, request: &Admission<'_>, def: &ResourceDef) -> Result<bool, Status> {
        if hook.conditions.is_empty() {
            return Ok(true);
        }
        let namespace = namespace_of(request, &self.objects)?;
        let seen = Seen::new(request, def, namespace.as_ref(), &self.authorization);
        match conditions(&hook.conditions, &seen, &Budget::new(BUDGET)) {
            Ok(applies) => Ok(applies),
            Err(_) if ignores_failure(hook) => Ok(false),
            Err(why) => Err(Status::forbidden(request.def.group, request.def.plural, request.name, &why)),
        }
    }

    /// Calls a webhook: its `response`, or `None` if it failed and failures are ignored.
    async fn call(&self, hook: &Hook, body: Value, place: Place) -> Result<Option<Value>, Status> {
        let seconds = hook.config["timeoutSeconds"].as_u64().unwrap_or(DEFAULT_TIMEOUT_SECONDS).clamp(1, 30);
        let answer = self.client.call(&hook.config["clientConfig"], body.to_string().into_bytes(), seconds).await;
        let checked = answer.and_then(|answer| {
            let response = verified(&body, &answer, matches!(place, Place::Mutating { .. }));
            response.map_err(|why| format!("received invalid webhook response: {why}"))
        });
        checked.map(Some).or_else(|why| failed(hook, &why, place).map(|()| None))
    }
}

/// Where a webhook is asked, as the audit log names it.
#[derive(Clone, Copy)]
enum Place {
    /// Its number among all that change objects.
    Mutating { round: u32, index: usize },
    /// Its number among those that are asked.
    Validating { index: usize },
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mutating { round, index } => {
                write!(f, "mutation.webhook.admission.k8s.io/round_{round}_index_{index}")
            }
            Self::Validating { index } => write!(f, "validating.webhook.admission.k8s.io/round_0_index_{index}"),
        }
    }
}

/// What becomes of a request whose webhook failed: it goes on, if that is the webhook's policy.
fn failed(hook: &Hook, why: &str, place: Place) -> Result<(), Status> {
    if !ignores_failure(hook) {
        return Err(Status::internal(&format!("failed calling webhook {:?}: {why}", hook.name)));
    }
    tracing::warn!(webhook = hook.name, %why, "a webhook failed; its policy is to go on");
    audit::annotate(format!("failed-open.{place}"), || hook.name.clone());
    Ok(())
}

/// The response of an answer that fits what was asked. Of v1beta1 little is asked, as ever.
fn verified(asked: &Value, answer: &Value, mutating: bool) -> Result<Value, String> {
    let response = &answer["response"];
    if !response.is_object() {
        return Err("webhook response was absent".into());
    }
    let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
    let patch = text(&response["patch"]);
    if asked["apiVersion"] != REVIEW {
        let mut response = response.clone();
        response["patchType"] = if patch.is_empty() { Value::Null } else { JSON_PATCH.into() };
        return Ok(response);
    }
    let (uid, told) = (text(&asked["request"]["uid"]), text(&response["uid"]));
    if uid != told {
        return Err(format!("expected response.uid={uid:?}, got {told:?}"));
    }
    if answer["apiVersion"] != REVIEW || answer["kind"] != "AdmissionReview" {
        let version = text(&answer["apiVersion"]);
        let version = if version.contains('/') { version } else { format!("/{version}") };
        let got = format!("{version}, Kind={}", text(&answer["kind"]));
        return Err(format!("expected webhook response of {REVIEW}, Kind=AdmissionReview, got {got}"));
    }
    let kind = &response["patchType"];
    let wrong = match (patch.is_empty(), kind.is_null()) {
        (false, _) if !mutating => Some("validating webhook may not return response.patch".into()),
        (_, false) if !mutating => Some("validating webhook may not return response.patchType".into()),
        (false, true) => Some("webhook returned response.patch but not response.patchType".into()),
        (true, false) => Some("webhook returned response.patchType but not response.patch".into()),
        (_, false) if *kind == "" => Some(format!("webhook returned invalid response.patchType of {kind}")),
        _ => None,
    };
    wrong.map_or_else(|| Ok(response.clone()), Err)
}

fn ignores_failure(hook: &Hook) -> bool {
    hook.config["failurePolicy"] == "Ignore"
}

fn hooks_of(configuration: &Value) -> Vec<Arc<Hook>> {
    let list = configuration["webhooks"].as_array().cloned().unwrap_or_default();
    let configuration = configuration["metadata"]["name"].as_str().unwrap_or_default();
    list.into_iter()
        .enumerate()
        .map(|(index, config)| {
            Arc::new(Hook {
                configuration: configuration.to_owned(),
                index,
                name: config["name"].as_str().unwrap_or_default().to_owned(),
                conditions: compile_conditions(&config["matchConditions"], &env(false, false, false)),
                config,
            })
        })
        .collect()
}

/// Refuses a dry run that would have effects elsewhere.
fn check_effects(hook: &Hook, request: &Admission<'_>) -> Result<(), Status> {
    if request.dry_run && !matches!(hook.config["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")) {
        return Err(Status::bad_request(format!("admission webhook {:?} does not support dry run", hook.name)));
    }
    Ok(())
}

/// An object in the version that a webhook wants.
fn in_version(object: &Value, def: &'static ResourceDef) -> Value {
    if object["apiVersion"] == def.api_version() || object["kind"] != def.kind {
        return object.clone();
    }
    if def.custom {
        let mut object = object.clone();
        object["apiVersion"] = def.api_version().into();
        return object;
    }
    conversion::convert(object, def).unwrap_or_else(|| object.clone())
}

fn body(hook: &Hook, request: &Admission<'_>, def: &'static ResourceDef) -> Value {
    let versions = hook.config["admissionReviewVersions"].as_array();
    let version = versions.into_iter().flatten().filter_map(Value::as_str).find(|v| matches!(*v, "v1" | "v1beta1"));
    let mut asked = describe(request, def);
    asked["uid"] = uuid::Uuid::new_v4().to_string().into();
    asked["object"] = request.object.as_deref().map(|o| in_version(o, def)).unwrap_or_default();
    asked["oldObject"] = request.old.map(|o| in_version(o, def)).unwrap_or_default();
    json!({
        "kind": "AdmissionReview",
        "apiVersion": format!("admission.k8s.io/{}", version.unwrap_or("v1")),
        "request": asked,
    })
}

/// What a webhook's response means: warnings are kept, a refusal becomes one.
fn judge(hook: &Hook, response: &Value, warnings: &mut Vec<String>) -> Result<(), Status> {
    for (key, value) in response["auditAnnotations"].as_object().into_iter().flatten() {
        if let Some(value) = value.as_str() {
            audit::annotate(format!("{}/{key}", hook.name), || value.to_owned());
        }
    }
    warnings.extend(response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
    if response["allowed"] == true {
        return Ok(());
    }
    let told = &response["status"];
    let text = |key: &str| told[key].as_str().unwrap_or_default();
    let denied = format!("admission webhook {:?} denied the request", hook.name);
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code = told["code"].as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| (400..600).contains(c));
    let details = serde_json::from_value(told["details"].clone()).ok();
    let reason = text("reason").to_owned();
    Err(Status { status: "Failure".into(), message, reason, details, code: code.unwrap_or(400), ..Status::default() })
}

pub(super) struct Validating(Common);

impl Validating {
    pub fn new(parts: &Parts) -> Self {
        Self(Common::new(parts, &["validatingwebhookconfigurations"]))
    }
}

#[async_trait::async_trait]
impl AdmissionPlugin for Validating {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let mut calls = Vec::new();
        for (hook, def) in self.0.chosen(request)? {
            if self.0.applies(&hook, request, def)? {
                check_effects(&hook, request)?;
                let body = body(&hook, request, def);
                calls.push((hook, body));
            }
        }
        // All are asked at once; the first refusal in their order is told.
        let calling = calls.iter().enumerate();
        let answers = calling.map(|(index, (hook, body))| self.0.call(hook, body.clone(), Place::Validating { index }));
        let answers = futures::future::join_all(answers).await;
        for ((hook, _), answer) in calls.iter().zip(answers) {
            if let Some(response) = answer? {
                judge(hook, &response, request.warnings)?;
            }
        }
        Ok(())
    }

    fn sees_each(&self, request: &Admission<'_>) -> bool {
        self.0.is_about(request)
    }
}

pub(super) struct Mutating(Common);

impl Mutating {
    pub fn new(parts: &Parts) -> Self {
        Self(Common::new(parts, &["mutatingwebhookconfigurations"]))
    }

    /// Asks one webhook; whether it changed the object.
    async fn ask(
        &self,
        hook: &Hook,
        request: &mut Admission<'_>,
        def: &'static ResourceDef,
        place: Place,
    ) -> Result<bool, Status> {
        let outcome = self.invoke(hook, request, def, place).await;
        let mutated = matches!(outcome, Ok(true));
        audit::annotate(place.to_string(), || format!("{{{},\"mutated\":{mutated}}}", origin(hook)));
        outcome
    }

    async fn invoke(
        &self,
        hook: &Hook,
        request: &mut Admission<'_>,
        def: &'static ResourceDef,
        place: Place,
    ) -> Result<bool, Status> {
        check_effects(hook, request)?;
        let asked = body(hook, request, def);
        let Some(response) = self.0.call(hook, asked.clone(), place).await? else { return Ok(false) };
        judge(hook, &response, request.warnings)?;
        let changes = match changes(&response) {
            Ok(Some(changes)) => changes,
            Ok(None) => return Ok(false),
            Err(why) => return failed(hook, &why, place).map(|()| false),
        };
        let mut changed = asked["request"]["object"].clone();
        if changed.is_null() {
            return Err(Status::internal(&format!(
                "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                hook.name
            )));
        }
        patch::json(&mut changed, &changes).map_err(|status| Status::internal(&status.message))?;
        if def.version != request.def.version {
            changed = in_version(&changed, request.def);
        }
        let differs = refit(request, &self.0.customs, changed)?;
        if audit::records_bodies() {
            let key = place.to_string().replacen("mutation.", "patch.", 1);
            audit::annotate(key, || format!("{{{},\"patch\":{changes},\"patchType\":\"{JSON_PATCH}\"}}", origin(hook)));
        }
        Ok(differs)
    }
}

/// Who a webhook is, as annotations of the audit log begin.
fn origin(hook: &Hook) -> String {
    format!("\"configuration\":{},\"webhook\":{}", json!(hook.configuration), json!(hook.name))
}

/// What a webhook wants to be changed, if anything.
fn changes(response: &Value) -> Result<Option<Value>, String> {
    let Some(encoded) = response["patch"].as_str().filter(|patch| !patch.is_empty()) else { return Ok(None) };
    let undecodable = |why: String| format!("received undecodable patch in webhook response: {why}");
    let bytes = STANDARD.decode(encoded).map_err(|why| undecodable(why.to_string()))?;
    let changes: Value = serde_json::from_slice(&bytes).map_err(|why| undecodable(why.to_string()))?;
    if response["patchType"] != JSON_PATCH {
        return Err(format!("unsupported patch type {}", response["patchType"]));
    }
    match changes.as_array() {
        Some(list) => Ok((!list.is_empty()).then_some(changes)),
        None => Err(undecodable("it is no list of operations".into())),
    }
}

#[async_trait::async_trait]
impl AdmissionPlugin for Mutating {
    async fn mutate(&self, request: &mut Admission<'_>, round: &mut Round) -> Result<(), Status> {
        if !self.0.is_about(request) {
            return Ok(());
        }
        let Some(cached) = self.0.cached() else { return Ok(()) };
        round.enter(STEP, request.object.as_deref());
        for (index, hook) in cached.1.iter().enumerate() {
            // What an earlier webhook changed may be what a later one looks for.
            let Some(def) = self.0.version(hook, request) else { continue };
            if !self.0.is_selected(hook, request)? || !self.0.applies(hook, request, def)? {
                continue;
            }
            let key = format!("{}/{}", hook.configuration, hook.index);
            if round.asks(STEP, &key) {
                let place = Place::Mutating { round: u32::from(round.is_again()), index };
                let changed = self.ask(hook, request, def, place).await?;
                round.note(STEP, &key, hook.config["reinvocationPolicy"] == "IfNeeded", changed);
            }
        }
        round.leave(STEP, request.object.as_deref());
        Ok(())
    }

    fn sees_each(&self, request: &Admission<'_>) -> bool {
        self.0.is_about(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_fit_what_was_asked() {
        let review = |response: Value| json!({"apiVersion": REVIEW, "kind": "AdmissionReview", "response": response});
        let good = json!({"uid": "u", "allowed": true});
        let with = |key: &str, value: &str| {
            let mut response = good.clone();
            response[key] = value.into();
            response
        };
        let mut both = with("patch", "W10=");
        both["patchType"] = JSON_PATCH.into();
        let absent = json!({"apiVersion": REVIEW, "kind": "AdmissionReview"});
        // Version of the question, the answer, whether a patch may come, and what is wrong.
        for (version, answer, mutating, expected) in [
            ("v1", review(good.clone()), true, ""),
            ("v1", review(both.clone()), true, ""),
            ("v1", absent.clone(), true, "webhook response was absent"),
            ("v1", review(json!({"uid": "x"})), true, "expected response.uid=\"u\", got \"x\""),
            ("v1", review(json!({})), true, "expected response.uid=\"u\", got \"\""),
            (
                "v1",
                json!({"response": good}),
                true,
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /, Kind=",
            ),
            (
                "v1",
                json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "response": good}),
                true,
                "got admission.k8s.io/v1beta1, Kind=AdmissionReview",
            ),
            ("v1", review(with("patch", "W10=")), true, "webhook returned response.patch but not response.patchType"),
            (
                "v1",
                review(with("patchType", JSON_PATCH)),
                true,
                "webhook returned response.patchType but not response.patch",
            ),
            ("v1", review(both.clone()), false, "validating webhook may not return response.patch"),
            (
                "v1",
                review(with("patchType", JSON_PATCH)),
                false,
                "validating webhook may not return response.patchType",
            ),
            ("v1beta1", json!({"response": {"allowed": true}}), true, ""),
            ("v1beta1", json!({"response": {"allowed": true, "patch": "W10="}}), true, ""),
            ("v1beta1", json!({"response": {"allowed": true, "patch": "W10="}}), false, ""),
            ("v1beta1", absent, true, "webhook response was absent"),
        ] {
            let asked = json!({"apiVersion": format!("admission.k8s.io/{version}"), "request": {"uid": "u"}});
            match verified(&asked, &answer, mutating) {
                Ok(response) => {
                    assert_eq!(expected, "", "{answer}");
                    assert_eq!(response["patchType"] == JSON_PATCH, response["patch"].is_string());
                }
                Err(why) => assert!(!expected.is_empty() && why.ends_with(expected), "{answer}: {why}"),
            }
        }
    }

    #[test]
    fn changes_are_lists_of_operations() {
        for (patch, kind, expected) in [
            ("", JSON_PATCH, Ok(None)),
            ("[]", JSON_PATCH, Ok(None)),
            (r#"[{"op":"test"}]"#, JSON_PATCH, Ok(Some(json!([{"op": "test"}])))),
            ("{}", JSON_PATCH, Err("received undecodable patch in webhook response: ")),
            ("[", JSON_PATCH, Err("received undecodable patch in webhook response: ")),
            ("[]", "Other", Err("unsupported patch type \"Other\"")),
        ] {
            let found = changes(&json!({"patch": STANDARD.encode(patch), "patchType": kind}));
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(why), Err(begins)) => assert!(why.starts_with(begins), "{why}"),
                (found, _) => panic!("{patch}: {found:?}"),
            }
        }
    }
}
