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
        let mut namespace = None;
        for hook in &cached.1 {
            let Some(def) = self.version(hook, request) else { continue };
            if namespace.is_none() {
                namespace = Some(namespace_of(request, &self.objects)?);
            }
            if selected(&hook.config, request, namespace.as_ref().and_then(Option::as_ref)) {
                out.push((hook.clone(), def));
            }
        }
        Ok(out)
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
    /// `place` names it in the audit log: which phase, round and number.
    async fn call(&self, hook: &Hook, body: Value, place: (&str, u32, usize)) -> Result<Option<Value>, Status> {
        let seconds = hook.config["timeoutSeconds"].as_u64().unwrap_or(DEFAULT_TIMEOUT_SECONDS).clamp(1, 30);
        let uid = body["request"]["uid"].clone();
        let answer = self.client.call(&hook.config["clientConfig"], body.to_string().into_bytes(), seconds).await;
        let checked = answer.and_then(|answer| {
            let response = &answer["response"];
            if !response.is_object() {
                return Err("invalid admission response: the answer has no response".to_owned());
            }
            if response["uid"] != uid {
                return Err(format!(
                    "invalid admission response: expected response.uid={uid}, got {}",
                    response["uid"]
                ));
            }
            Ok(answer["response"].clone())
        });
        match checked {
            Ok(response) => Ok(Some(response)),
            Err(why) if ignores_failure(hook) => {
                tracing::warn!(webhook = hook.name, %why, "a webhook failed; its policy is to go on");
                let (phase, round, index) = place;
                let key = format!("failed-open.{phase}.webhook.admission.k8s.io/round_{round}_index_{index}");
                audit::annotate(key, || hook.name.clone());
                Ok(None)
            }
            Err(why) => Err(Status::internal(&format!("failed calling webhook {:?}: {why}", hook.name))),
        }
    }
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
        let answers = calling.map(|(index, (hook, body))| self.0.call(hook, body.clone(), ("validating", 0, index)));
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

    /// Asks one webhook; whether it changed the object. `place` is its round and its number in it.
    async fn ask(
        &self,
        hook: &Hook,
        request: &mut Admission<'_>,
        def: &'static ResourceDef,
        place: (u32, usize),
    ) -> Result<bool, Status> {
        if !self.0.applies(hook, request, def)? {
            return Ok(false);
        }
        check_effects(hook, request)?;
        let asked = body(hook, request, def);
        let called = self.0.call(hook, asked.clone(), ("mutating", place.0, place.1)).await?;
        let Some(response) = called else { return Ok(false) };
        judge(hook, &response, request.warnings)?;
        let changed = self.change(hook, &response, asked, request, def)?;
        let at = format!("round_{}_index_{}", place.0, place.1);
        let told = |extra: Value| {
            let mut told = json!({"configuration": hook.configuration, "webhook": hook.name});
            if let (Some(told), Value::Object(extra)) = (told.as_object_mut(), extra) {
                told.extend(extra);
            }
            told.to_string()
        };
        audit::annotate(format!("mutation.webhook.admission.k8s.io/{at}"), || told(json!({"mutated": changed})));
        if changed && audit::records_bodies() {
            let patch = STANDARD.decode(response["patch"].as_str().unwrap_or_default()).unwrap_or_default();
            let patch: Value = serde_json::from_slice(&patch).unwrap_or_default();
            audit::annotate(format!("patch.webhook.admission.k8s.io/{at}"), || {
                told(json!({"patch": patch, "patchType": "JSONPatch"}))
            });
        }
        Ok(changed)
    }

    /// Carries out what a webhook answered; whether the object is another now.
    fn change(
        &self,
        hook: &Hook,
        response: &Value,
        asked: Value,
        request: &mut Admission<'_>,
        def: &'static ResourceDef,
    ) -> Result<bool, Status> {
        let Some(encoded) = response["patch"].as_str().filter(|p| !p.is_empty()) else { return Ok(false) };
        let failed = |why: String| Status::internal(&format!("failed calling webhook {:?}: {why}", hook.name));
        if response["patchType"] != "JSONPatch" {
            return Err(failed(format!("invalid admission response: unknown patchType {}", response["patchType"])));
        }
        let bytes = STANDARD.decode(encoded).map_err(|e| failed(e.to_string()))?;
        let changes: Value = serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))?;
        if changes.as_array().is_some_and(Vec::is_empty) {
            return Ok(false);
        }
        let mut changed = asked["request"]["object"].clone();
        patch::json(&mut changed, &changes).map_err(|status| failed(status.message))?;
        if def.version != request.def.version {
            changed = in_version(&changed, request.def);
        }
        refit(request, &self.0.customs, changed)
    }
}

#[async_trait::async_trait]
impl AdmissionPlugin for Mutating {
    async fn mutate(&self, request: &mut Admission<'_>, round: &mut Round) -> Result<(), Status> {
        let chosen = self.0.chosen(request)?;
        if chosen.is_empty() {
            return Ok(());
        }
        round.enter(STEP, request.object.as_deref());
        for (index, (hook, def)) in chosen.iter().enumerate() {
            let key = format!("{}/{}", hook.configuration, hook.index);
            if round.asks(STEP, &key) {
                // What an earlier webhook changed may be what a later one looks for.
                let place = (u32::from(round.is_again()), index);
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
