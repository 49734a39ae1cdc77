//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy: rules in CEL, bound to resources and parameters.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use keelson_machinery::cel::{Bindings, Budget, EvalError, LazyMap, Program, Value as Cel};
use keelson_machinery::fields::{self, Node};
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::selector::LabelSelector;
use keelson_machinery::status::{Cause, Details, Status};
use keelson_machinery::{resources, schema};
use serde_json::{Value, json};

use super::cache::{Cache, Cached};
use super::matching::{is_exempt, matching_version, namespace_of, selected};
use super::review::{BUDGET, Seen, compile_conditions, conditions, env};
use super::{Parts, refit};
use crate::access::{Admission, AdmissionPlugin, Round};
use crate::authz::Authorization;
use crate::objects::Objects;
use crate::{audit, crd};

/// Longest value of an audit annotation, bytes.
const MAX_ANNOTATION_BYTES: usize = 10 * 1024;
/// Audit annotation that lists the validations that did not hold.
const FAILURE_ANNOTATION: &str = "validation.policy.admission.k8s.io/validation_failure";
/// The mutating step's name in the chain.
const STEP: &str = "MutatingAdmissionPolicy";

type Compiled = Result<Program, String>;

/// One of a policy's validations or mutations.
struct Step {
    source: String,
    program: Compiled,
    message: String,
    message_program: Option<Program>,
    reason: String,
    is_patch: bool,
}

/// A policy, ready to run.
struct Policy {
    name: String,
    spec: Value,
    conditions: Vec<(String, Compiled)>,
    variables: Vec<(String, Compiled)>,
    steps: Vec<Step>,
    /// Key, source and expression of what is recorded.
    annotations: Vec<(String, String, Compiled)>,
    bindings: Vec<Value>,
}

fn compile(text: &str, patches: bool) -> Compiled {
    Program::compile(text, &env(true, true, patches)).map_err(|e| e.to_string())
}

fn text(of: &Value, key: &str) -> String {
    of[key].as_str().unwrap_or_default().to_owned()
}

fn list(of: &Value) -> impl Iterator<Item = &Value> {
    of.as_array().into_iter().flatten()
}

impl Policy {
    fn new(object: &Value, bindings: &[Value]) -> Self {
        let (name, spec) = (text(&object["metadata"], "name"), &object["spec"]);
        let validations = list(&spec["validations"]).map(|v| Step {
            source: text(v, "expression").trim().to_owned(),
            program: compile(v["expression"].as_str().unwrap_or_default(), false),
            message: text(v, "message").trim().to_owned(),
            message_program: v["messageExpression"].as_str().and_then(|text| compile(text, false).ok()),
            reason: text(v, "reason"),
            is_patch: false,
        });
        let mutations = list(&spec["mutations"]).map(|m| {
            let is_patch = m["patchType"] == "JSONPatch";
            let source = text(&m[if is_patch { "jsonPatch" } else { "applyConfiguration" }], "expression");
            Step {
                program: compile(&source, true),
                source,
                message: String::new(),
                message_program: None,
                reason: String::new(),
                is_patch,
            }
        });
        Self {
            conditions: compile_conditions(&spec["matchConditions"], &env(true, false, false)),
            variables: list(&spec["variables"])
                .map(|v| (text(v, "name"), compile(v["expression"].as_str().unwrap_or_default(), true)))
                .collect(),
            steps: validations.chain(mutations).collect(),
            annotations: list(&spec["auditAnnotations"])
                .map(|a| {
                    let source = text(a, "valueExpression");
                    (format!("{name}/{}", text(a, "key")), source.trim().to_owned(), compile(&source, false))
                })
                .collect(),
            bindings: bindings.iter().filter(|b| b["spec"]["policyName"] == name.as_str()).cloned().collect(),
            spec: spec.clone(),
            name,
        }
    }

    fn ignores_failure(&self) -> bool {
        self.spec["failurePolicy"] == "Ignore"
    }
}

/// The variables of a policy that are known so far.
#[derive(Default)]
struct Known<'a>(RefCell<BTreeMap<String, Result<Cel<'a>, EvalError>>>);

impl<'a> LazyMap<'a> for Known<'a> {
    fn get(&self, key: &str) -> Option<Result<Cel<'a>, EvalError>> {
        self.0.borrow().get(key).cloned()
    }
}

/// What the expressions of a policy see: the request, the parameters, and the variables, which see those before them.
fn bindings<'a>(policy: &'a Policy, seen: &'a Seen, params: &'a Value, budget: &Budget) -> Bindings<'a> {
    let mut out = seen.bindings();
    out.insert("params", Cel::of(params, None));
    let known = Rc::new(Known::default());
    out.insert("variables", Cel::Lazy(known.clone()));
    for (name, program) in &policy.variables {
        let result = match program {
            Ok(program) => program.eval(&out, budget),
            Err(why) => Err(EvalError::new(why.clone())),
        };
        // A variable that held the variables would keep them alive for ever.
        let result = match result {
            Ok(Cel::Lazy(_)) => Err(EvalError::new("a variable cannot be all variables")),
            other => other,
        };
        known.0.borrow_mut().insert(name.clone(), result);
    }
    out
}

/// What both plugins are made of.
struct Common {
    objects: Objects,
    authorization: Arc<Authorization>,
    customs: Arc<crd::Table>,
    policies: Cache<Vec<Arc<Policy>>>,
}

/// A policy that is about a request, with one of its bindings and what it is bound to.
struct Match {
    policy: Arc<Policy>,
    binding: Value,
    def: &'static ResourceDef,
    params: Result<Vec<Value>, String>,
}

impl Common {
    fn new(parts: &Parts, plurals: &'static [&'static str]) -> Self {
        Self {
            objects: parts.objects.clone(),
            authorization: parts.authorization.clone(),
            customs: parts.customs.clone(),
            policies: Cache::new(parts.objects.clone(), plurals),
        }
    }

    fn cached(&self) -> Option<Arc<Cached<Vec<Arc<Policy>>>>> {
        self.policies.get(|lists| {
            let empty = Vec::new();
            let bindings = lists.get(1).unwrap_or(&empty);
            lists.first().unwrap_or(&empty).iter().map(|policy| Arc::new(Policy::new(policy, bindings))).collect()
        })
    }

    /// Whether a policy is about such requests, whatever their objects.
    fn is_about(&self, request: &Admission<'_>) -> bool {
        let cached = (!is_exempt(request)).then(|| self.cached()).flatten();
        let bound = |policy: &&Arc<Policy>| !policy.bindings.is_empty();
        cached.is_some_and(|cached| {
            cached.1.iter().filter(bound).any(|policy| {
                let constraints = &policy.spec["matchConstraints"];
                // A rule that names objects may be about one of them.
                let mut rules = list(&constraints["resourceRules"]);
                rules.any(|rule| rule["resourceNames"].is_array()) || self.version(constraints, request).is_some()
            })
        })
    }

    fn version(&self, constraints: &Value, request: &Admission<'_>) -> Option<&'static ResourceDef> {
        let exact = constraints["matchPolicy"] == "Exact";
        let (rules, excluded) = (&constraints["resourceRules"], &constraints["excludeResourceRules"]);
        matching_version(rules, excluded, exact, request, &self.customs)
    }

    fn matches(&self, request: &Admission<'_>) -> Result<(Option<Value>, Vec<Match>), Status> {
        if is_exempt(request) {
            return Ok((None, Vec::new()));
        }
        let Some(cached) = self.cached() else { return Ok((None, Vec::new())) };
        let namespace = namespace_of(request, &self.objects)?;
        let mut out = Vec::new();
        for policy in cached.1.iter().filter(|policy| !policy.bindings.is_empty()) {
            let Some(def) = self.within(&policy.spec["matchConstraints"], request, namespace.as_ref()) else {
                continue;
            };
            for binding in &policy.bindings {
                let narrower = &binding["spec"]["matchResources"];
                let narrower_rules = narrower["resourceRules"].as_array().is_some_and(|rules| !rules.is_empty());
                let chosen = match narrower_rules {
                    true => self.within(narrower, request, namespace.as_ref()).is_some(),
                    false => selected(narrower, request, namespace.as_ref()),
                };
                if chosen {
                    let params = self.params(&policy.spec["paramKind"], &binding["spec"]["paramRef"], request);
                    out.push(Match { policy: policy.clone(), binding: binding.clone(), def, params });
                }
            }
        }
        Ok((namespace, out))
    }

    fn within(
        &self,
        constraints: &Value,
        request: &Admission<'_>,
        namespace: Option<&Value>,
    ) -> Option<&'static ResourceDef> {
        let def = self.version(constraints, request)?;
        selected(constraints, request, namespace).then_some(def)
    }

    /// The parameters that a binding names: one null if the policy takes none.
    fn params(&self, kind: &Value, reference: &Value, request: &Admission<'_>) -> Result<Vec<Value>, String> {
        if !kind.is_object() {
            return Ok(vec![Value::Null]);
        }
        if !reference.is_object() {
            return Ok(vec![Value::Null]);
        }
        let (version, name) = (text(kind, "apiVersion"), text(kind, "kind"));
        let (group, version) = version.split_once('/').unwrap_or(("", version.as_str()));
        let def = resources::find_kind(group, version, &name).or_else(|| self.customs.find_kind(group, version, &name));
        let def = def.ok_or_else(|| {
            format!("failed to find resource referenced by paramKind: '{group}/{version}, Kind={name}'")
        })?;
        let namespace = match (def.scope, text(reference, "namespace").as_str()) {
            (Scope::Cluster, "") => String::new(),
            (Scope::Cluster, _) => {
                return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
            }
            (Scope::Namespaced, "") if request.namespace.is_empty() => {
                let why = "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
                return Err(why.into());
            }
            (Scope::Namespaced, "") => request.namespace.to_owned(),
            (Scope::Namespaced, given) => given.to_owned(),
        };
        let name = text(reference, "name");
        let found: Vec<Value> = if name.is_empty() {
            let selector = LabelSelector::from_object(&reference["selector"])?;
            let all = self.objects.all(def, &namespace);
            all.into_iter().filter(|o| selector.matches(|key| o["metadata"]["labels"][key].as_str())).collect()
        } else {
            self.objects
                .get(def, &namespace, &name)
                .map_err(|e| e.message)?
                .map(|(object, _)| object)
                .into_iter()
                .collect()
        };
        if found.is_empty() && reference["parameterNotFoundAction"] == "Deny" {
            return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
        }
        Ok(found)
    }

    fn applies(&self, found: &Match, seen: &Seen, budget: &Budget) -> Result<bool, String> {
        conditions(&found.policy.conditions, seen, budget)
    }
}

/// A validation that did not hold.
struct Failure {
    /// Which of the policy's validations.
    index: usize,
    message: String,
    reason: String,
}

impl Failure {
    fn plain(index: usize, message: String) -> Self {
        Self { index, message, reason: String::new() }
    }
}

/// The validations that did not hold; what the policy wants recorded is added to `recorded`.
fn validations(
    found: &Match,
    seen: &Seen,
    budget: &Budget,
    recorded: &mut BTreeMap<String, Vec<String>>,
) -> Vec<Failure> {
    let policy = &*found.policy;
    let params = match &found.params {
        Ok(params) => params,
        Err(_) if policy.ignores_failure() => return Vec::new(),
        Err(why) => return vec![Failure::plain(0, format!("failed to configure binding: {why}"))],
    };
    let mut out = Vec::new();
    for params in params {
        let bindings = bindings(policy, seen, params, budget);
        for (key, source, program) in &policy.annotations {
            match annotation(source, program, &bindings, budget) {
                Ok(Some(value)) => recorded.entry(key.clone()).or_default().push(value),
                Ok(None) => {}
                Err(_) if policy.ignores_failure() => {}
                Err(why) => out.push(Failure::plain(0, why)),
            }
        }
        for (index, step) in policy.steps.iter().enumerate() {
            let result = match &step.program {
                Ok(program) => program.eval(&bindings, budget).map_err(|e| e.to_string()),
                Err(why) => Err(format!("compilation error: {why}")),
            };
            match result {
                Ok(Cel::Bool(true)) => {}
                Ok(_) => {
                    out.push(Failure { index, message: step.told(&bindings, budget), reason: step.reason.clone() })
                }
                Err(_) if policy.ignores_failure() => {}
                Err(why) => {
                    out.push(Failure::plain(index, format!("expression '{}' resulted in error: {why}", step.source)))
                }
            }
        }
    }
    out
}

/// The value of an audit annotation; none if it is null or empty.
fn annotation<'a>(
    source: &str,
    program: &'a Compiled,
    bindings: &Bindings<'a>,
    budget: &Budget,
) -> Result<Option<String>, String> {
    let failed = |why: String| format!("valueExpression '{source}' resulted in error: {why}");
    let program = program.as_ref().map_err(|why| failed(format!("compilation error: {why}")))?;
    match program.eval(bindings, budget).map_err(|e| failed(e.to_string()))? {
        Cel::Null => Ok(None),
        Cel::String(text) => {
            let mut text = text.trim().to_owned();
            let mut end = text.len().min(MAX_ANNOTATION_BYTES);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            Ok((!text.is_empty()).then_some(text))
        }
        _ => Err(format!(
            "valueExpression '{source}' resulted in unsupported return type. Return type must be either string or null."
        )),
    }
}

impl Step {
    fn told<'a>(&'a self, bindings: &Bindings<'a>, budget: &Budget) -> String {
        let made = self.message_program.as_ref().and_then(|program| match program.eval(bindings, budget) {
            Ok(Cel::String(text)) if !text.trim().is_empty() && !text.contains('\n') => Some(text.trim().to_owned()),
            _ => None,
        });
        match made {
            Some(text) => text,
            None if self.message.is_empty() => format!("failed expression: {}", self.source),
            None => self.message.clone(),
        }
    }
}

fn denied(request: &Admission<'_>, reason: &str, message: String, prefixed: bool) -> Status {
    let (reason, code) = match reason {
        "Unauthorized" => ("Unauthorized", 401),
        "Forbidden" => ("Forbidden", 403),
        "RequestEntityTooLarge" => ("RequestEntityTooLarge", 413),
        _ if prefixed => ("Invalid", 422),
        _ => ("Invalid", 403),
    };
    let def = request.def;
    let causes = vec![Cause { message: message.clone(), ..Cause::default() }];
    let details = Details {
        name: request.name.into(),
        group: def.group.into(),
        kind: def.plural.into(),
        causes,
        ..Details::default()
    };
    let full = Status::forbidden(def.group, def.plural, request.name, &message).message;
    let message = if prefixed { full } else { message };
    Status {
        status: "Failure".into(),
        message,
        reason: reason.into(),
        details: Some(Box::new(details)),
        code,
        ..Status::default()
    }
}

pub(super) struct Validating(Common);

impl Validating {
    pub fn new(parts: &Parts) -> Self {
        Self(Common::new(parts, &["validatingadmissionpolicies", "validatingadmissionpolicybindings"]))
    }
}

#[async_trait::async_trait]
impl AdmissionPlugin for Validating {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let (namespace, matches) = self.0.matches(request)?;
        let (mut refusal, mut recorded, mut audited) = (None, BTreeMap::new(), Vec::new());
        for found in matches {
            let seen = Seen::new(request, found.def, namespace.as_ref(), &self.0.authorization);
            let budget = Budget::new(BUDGET);
            let failures = match self.0.applies(&found, &seen, &budget) {
                Ok(true) => validations(&found, &seen, &budget, &mut recorded),
                Ok(false) => continue,
                Err(_) if found.policy.ignores_failure() => continue,
                Err(message) => vec![Failure::plain(0, message)],
            };
            let (policy, binding) = (&found.policy.name, text(&found.binding["metadata"], "name"));
            let asks = |action: &str| list(&found.binding["spec"]["validationActions"]).any(|a| a == action);
            for Failure { index, message, reason } in failures {
                if asks("Audit") {
                    audited.push(
                        json!({"message": message, "policy": policy, "binding": binding, "expressionIndex": index,
                        "validationActions": found.binding["spec"]["validationActions"]}),
                    );
                }
                if asks("Deny") && refusal.is_none() {
                    let told = format!(
                        "ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {message}"
                    );
                    refusal = Some(denied(request, &reason, told, true));
                }
                if asks("Warn") {
                    request.warnings.push(format!(
                        "Validation failed for ValidatingAdmissionPolicy '{policy}' with binding '{binding}': {message}"
                    ));
                }
            }
        }
        for (key, values) in recorded {
            audit::annotate(key, || values.join(", "));
        }
        if !audited.is_empty() {
            audit::annotate(FAILURE_ANNOTATION, || Value::from(audited).to_string());
        }
        refusal.map_or(Ok(()), Err)
    }

    fn sees_each(&self, request: &Admission<'_>) -> bool {
        self.0.is_about(request)
    }
}

pub(super) struct Mutating(Common);

impl Mutating {
    pub fn new(parts: &Parts) -> Self {
        Self(Common::new(parts, &["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"]))
    }

    /// Lets one policy change the object; whether it did.
    fn apply(&self, found: &Match, namespace: Option<&Value>, request: &mut Admission<'_>) -> Result<bool, String> {
        let mut differs = false;
        let budget = Budget::new(BUDGET);
        let params = found.params.as_ref().map_err(|why| format!("failed to configure binding: {why}"))?;
        for params in params {
            for step in &found.policy.steps {
                let seen = Seen::new(request, found.def, namespace, &self.0.authorization);
                if !self.0.applies(found, &seen, &budget)? {
                    return Ok(differs);
                }
                let program = step.program.as_ref().map_err(|why| format!("compilation error: {why}"))?;
                let bindings = bindings(&found.policy, &seen, params, &budget);
                let result = program.eval(&bindings, &budget).map_err(|e| e.to_string())?;
                let result = result.to_json().ok_or("the expression gives no object")?;
                let changed = match step.is_patch {
                    true => patched(&seen.object, &result)?,
                    false => merged(request.def, &self.0.customs, &seen.object, &result)?,
                };
                differs |= refit(request, &self.0.customs, changed).map_err(|status| status.message)?;
            }
        }
        Ok(differs)
    }
}

fn patched(object: &Value, patch: &Value) -> Result<Value, String> {
    let mut out = object.clone();
    for operation in list(patch) {
        let op = operation["op"].as_str().unwrap_or_default();
        let path = operation["path"].as_str().unwrap_or_default();
        if matches!(op, "remove" | "replace") && object.pointer(path).is_none() && out.pointer(path).is_none() {
            return Err(format!(
                "JSON Patch: {op} operation does not apply: doc is missing path: {path:?}: missing value"
            ));
        }
        keelson_machinery::patch::json(&mut out, &Value::Array(vec![operation.clone()]))
            .map_err(|status| format!("JSON Patch: {}", status.message))?;
    }
    Ok(out)
}

fn merged(def: &ResourceDef, customs: &crd::Table, object: &Value, applied: &Value) -> Result<Value, String> {
    let custom = customs.find(def.group, def.version, def.plural);
    let node = match &custom {
        Some(custom) => Node::Custom(custom.definition.schema_given(custom.index)),
        None => schema::of_kind(def.group, def.version, def.kind).map_or(Node::Free, Node::Object),
    };
    fields::validate(node, applied).map_err(|why| format!("error applying patch: {why}"))?;
    Ok(fields::merge(node, Some(object), Some(applied))?.unwrap_or_else(|| object.clone()))
}

#[async_trait::async_trait]
impl AdmissionPlugin for Mutating {
    async fn mutate(&self, request: &mut Admission<'_>, round: &mut Round) -> Result<(), Status> {
        let (namespace, matches) = self.0.matches(request)?;
        if matches.is_empty() {
            return Ok(());
        }
        round.enter(STEP, request.object.as_deref());
        for found in matches {
            let binding = text(&found.binding["metadata"], "name");
            let key = format!("{}/{binding}", found.policy.name);
            if !round.asks(STEP, &key) {
                continue;
            }
            match self.apply(&found, namespace.as_ref(), request) {
                Ok(changed) => {
                    round.note(STEP, &key, found.policy.spec["reinvocationPolicy"] == "IfNeeded", changed);
                }
                Err(_) if found.policy.ignores_failure() => {}
                Err(why) => {
                    let policy = &found.policy.name;
                    let message = format!("policy '{policy}' with binding '{binding}' denied request: {why}");
                    return Err(denied(request, "", message, false));
                }
            }
        }
        round.leave(STEP, request.object.as_deref());
        Ok(())
    }

    fn sees_each(&self, request: &Admission<'_>) -> bool {
        self.0.is_about(request)
    }
}
