//! A request as webhooks and expressions see it.

use std::rc::Rc;
use std::sync::Arc;

pub(super) use keelson_machinery::cel::admission::env;
use keelson_machinery::cel::{Bindings, Budget, Env, EvalError, Opaque, Outcome, Program, Value as Cel};
use keelson_machinery::resource::ResourceDef;
use serde_json::{Value, json};

use super::matching::operation;
use crate::access::{Admission, Attributes, Authorizer, Decision, Operation, UserInfo};
use crate::authz::Authorization;

/// What the expressions of one webhook or policy may cost for one request.
pub(super) const BUDGET: u64 = 10_000_000;

/// The `request` of an AdmissionReview.
pub(super) fn describe(request: &Admission<'_>, def: &ResourceDef) -> Value {
    let named = |def: &ResourceDef| {
        let subresource = def.subresources.iter().find(|s| s.name == request.subresource).map(|s| s.kind);
        let (group, version, kind) = match subresource {
            Some((group, version, kind)) if !version.is_empty() => (group, version, kind),
            Some((_, _, kind)) if !kind.is_empty() => (def.group, def.version, kind),
            _ => (def.group, def.version, def.kind),
        };
        (
            json!({"group": group, "version": version, "kind": kind}),
            json!({"group": def.group, "version": def.version, "resource": def.plural}),
        )
    };
    let ((kind, resource), (own_kind, own_resource)) = (named(def), named(request.def));
    let options = match request.operation {
        Operation::Create => json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}),
        Operation::Update => json!({"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1"}),
        Operation::Delete => json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"}),
        Operation::Connect => Value::Null,
    };
    let mut out = json!({
        "kind": kind, "resource": resource, "requestKind": own_kind, "requestResource": own_resource,
        "operation": operation(request), "userInfo": user_info(request.user), "dryRun": request.dry_run,
        "options": options,
    });
    for (key, value) in [
        ("name", request.name),
        ("namespace", request.namespace),
        ("subResource", request.subresource),
        ("requestSubResource", request.subresource),
    ] {
        if !value.is_empty() {
            out[key] = value.into();
        }
    }
    if (request.def.group, request.def.plural) == ("", "namespaces") && !request.name.is_empty() {
        out["namespace"] = request.name.into();
    }
    out
}

/// A user as reviews show one.
pub(crate) fn user_info(user: &UserInfo) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.clone().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// What the expressions of a request see, kept while they run.
pub(super) struct Seen {
    pub object: Value,
    pub old: Value,
    pub request: Value,
    pub namespace: Value,
    authorizer: Asked,
    resource: Asked,
}

impl Seen {
    pub fn new(
        request: &Admission<'_>,
        def: &ResourceDef,
        namespace: Option<&Value>,
        authorization: &Arc<Authorization>,
    ) -> Self {
        let authorizer = Asked {
            authorization: authorization.clone(),
            user: request.user.clone(),
            attributes: Attributes::default(),
        };
        Self {
            object: request.object.as_deref().cloned().unwrap_or_default(),
            old: request.old.cloned().unwrap_or_default(),
            request: describe(request, def),
            namespace: namespace.cloned().unwrap_or_default(),
            resource: Asked { attributes: request.attributes(""), ..authorizer.clone() },
            authorizer,
        }
    }

    pub fn bindings(&self) -> Bindings<'_> {
        let mut out = Bindings::new();
        out.insert("object", Cel::of(&self.object, None));
        out.insert("oldObject", Cel::of(&self.old, None));
        out.insert("request", Cel::of(&self.request, None));
        out.insert("namespaceObject", Cel::of(&self.namespace, None));
        out.insert("authorizer", Cel::Opaque(Rc::new(self.authorizer.clone())));
        out.insert("authorizer.requestResource", Cel::Opaque(Rc::new(self.resource.clone())));
        out
    }
}

/// Conditions that all must hold; `Ok(false)` if one does not.
pub(super) fn conditions(
    list: &[(String, Result<Program, String>)],
    seen: &Seen,
    budget: &Budget,
) -> Result<bool, String> {
    let mut failed = Vec::new();
    for (name, program) in list {
        let result = match program {
            Ok(program) => program.eval(&seen.bindings(), budget).map_err(|e| e.to_string()),
            Err(why) => Err(why.clone()),
        };
        match result {
            Ok(Cel::Bool(true)) => {}
            Ok(_) => return Ok(false),
            Err(why) => failed.push(format!("matchCondition {name:?}: {why}")),
        }
    }
    // A condition that is false decides, whatever is wrong with another.
    if failed.is_empty() { Ok(true) } else { Err(failed.join(", ")) }
}

/// Compiles `matchConditions`.
pub(super) fn compile_conditions(list: &Value, env: &Env) -> Vec<(String, Result<Program, String>)> {
    let list = list.as_array().into_iter().flatten();
    list.map(|condition| {
        let expression = condition["expression"].as_str().unwrap_or_default();
        let name = condition["name"].as_str().unwrap_or_default().to_owned();
        (name, Program::compile(expression, env).map_err(|e| e.to_string()))
    })
    .collect()
}

/// The authorizer, and the checks that are put together of it.
#[derive(Clone)]
struct Asked {
    authorization: Arc<Authorization>,
    user: UserInfo,
    attributes: Attributes,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.user.name, self.attributes)
    }
}

impl Opaque for Asked {
    fn call(&self, function: &str, arguments: &[&str]) -> Result<Outcome, EvalError> {
        let mut next = self.clone();
        let attributes = &mut next.attributes;
        match (function, arguments) {
            ("path", [path]) => attributes.path = (*path).into(),
            ("group", [group]) => attributes.group = (*group).into(),
            ("resource", [resource]) => attributes.resource = (*resource).into(),
            ("subresource", [subresource]) => attributes.subresource = (*subresource).into(),
            ("namespace", [namespace]) => attributes.namespace = (*namespace).into(),
            ("name", [name]) => attributes.name = (*name).into(),
            ("fieldSelector" | "labelSelector", [_]) => {}
            ("serviceAccount", [namespace, name]) => {
                next.user = UserInfo {
                    name: format!("system:serviceaccount:{namespace}:{name}"),
                    groups: vec![
                        "system:serviceaccounts".into(),
                        format!("system:serviceaccounts:{namespace}"),
                        crate::authn::AUTHENTICATED.into(),
                    ],
                    ..UserInfo::default()
                };
            }
            ("check", [verb]) => {
                attributes.verb = (*verb).into();
                let decision = self.authorization.authorize(&next.user, attributes);
                return Ok(Outcome::Opaque(Rc::new(Told(decision))));
            }
            _ => return Err(EvalError::new("no such overload")),
        }
        Ok(Outcome::Opaque(Rc::new(next)))
    }
}

/// An authorizer's word.
#[derive(Debug)]
struct Told(Decision);

impl Opaque for Told {
    fn call(&self, function: &str, _: &[&str]) -> Result<Outcome, EvalError> {
        Ok(match (function, &self.0) {
            ("allowed", decision) => Outcome::Bool(*decision == Decision::Allow),
            ("reason", Decision::Deny(why) | Decision::NoOpinion(why)) => Outcome::Text(why.clone()),
            ("reason" | "error", _) => Outcome::Text(String::new()),
            ("errored", _) => Outcome::Bool(false),
            _ => return Err(EvalError::new("no such overload")),
        })
    }
}
