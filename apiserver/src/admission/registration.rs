//! What configurations of webhooks and policies may say.

use keelson_machinery::cel::{Env, Program, Type};
use keelson_machinery::status::Cause;
use keelson_machinery::{go_url, names, shown};
use serde_json::Value;

use super::review::env;
use super::rules;

/// Most conditions of a webhook or policy.
const MAX_CONDITIONS: usize = 64;
/// Most audit annotations of a policy.
const MAX_ANNOTATIONS: usize = 20;
/// Longest expression of an audit annotation's value, bytes.
const MAX_ANNOTATION_BYTES: usize = 5 << 10;

pub(super) fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

pub(super) fn list(of: &Value) -> impl Iterator<Item = (usize, &Value)> {
    of.as_array().into_iter().flatten().enumerate()
}

/// Problems of an object of the group `admissionregistration.k8s.io`; of what an update leaves as it was none.
pub(crate) fn problems(kind: &str, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut check = Check(Vec::new());
    let changed = |key: &str| old.is_none_or(|old| old[key] != new[key]);
    match kind {
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" if changed("webhooks") => {
            let mut seen: Vec<&str> = Vec::new();
            for (index, hook) in list(&new["webhooks"]) {
                let at = format!("webhooks[{index}]");
                let name = text(hook, "name");
                check.webhook(hook, &at, kind == "MutatingWebhookConfiguration");
                if !name.is_empty() && seen.contains(&name) {
                    check.0.push(Cause::duplicate(format!("{at}.name"), &hook["name"]));
                }
                seen.push(name);
            }
        }
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" if changed("spec") => {
            check.policy(&new["spec"], kind == "MutatingAdmissionPolicy", text(&new["metadata"], "name"));
        }
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" if changed("spec") => {
            check.binding(&new["spec"], kind == "MutatingAdmissionPolicyBinding");
        }
        _ => {}
    }
    check.0
}

/// What is wrong with where a webhook is said to be.
pub(crate) fn client_problems(client: &Value, at: &str) -> Vec<Cause> {
    let (url, service) = (client["url"].as_str(), client["service"].is_object());
    match url {
        Some(_) if service => vec![Cause::required(at, "exactly one of url or service is required")],
        Some(url) => url_problems(url, &format!("{at}.url")),
        None if service => service_problems(&client["service"], &format!("{at}.service")),
        None => vec![Cause::required(at, "exactly one of url or service is required")],
    }
}

fn url_problems(url: &str, at: &str) -> Vec<Cause> {
    let form = "; desired format: https://host[/path]";
    let told = |value: &str, why: &str| Cause::invalid(at, &Value::from(value), why);
    let url = match go_url::parse(url) {
        Ok(url) => url,
        Err(why) => return vec![Cause::required(at, &format!("url must be a valid URL: {why}{form}"))],
    };
    let mut out = Vec::new();
    if url.scheme != "https" {
        out.push(told(&url.scheme, &format!("'https' is the only allowed URL scheme{form}")));
    }
    if url.host.is_empty() {
        out.push(told(&url.host, &format!("host must be specified{form}")));
    }
    if let Some(user) = &url.user {
        out.push(told(user, "user information is not permitted in the URL"));
    }
    if !url.fragment.is_empty() {
        out.push(told(&url.fragment, "fragments are not permitted in the URL"));
    }
    if !url.query.is_empty() {
        out.push(told(&url.query, "query parameters are not permitted in the URL"));
    }
    out
}

fn service_problems(service: &Value, at: &str) -> Vec<Cause> {
    let mut out = Vec::new();
    for key in ["name", "namespace"] {
        if text(service, key).is_empty() {
            out.push(Cause::required(format!("{at}.{key}"), &format!("service {key} is required")));
        }
    }
    if let Some(port) = service["port"].as_i64().filter(|p| !(1..=65535).contains(p)) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        out.push(Cause::invalid(format!("{at}.port"), &port.into(), why));
    }
    let path = service["path"].as_str().filter(|path| !matches!(*path, "" | "/"));
    let Some(path) = path else { return out };
    let told = |why: &str| Cause::invalid(format!("{at}.path"), &service["path"], why);
    if path == "//" {
        out.push(told("segment[0] may not be empty"));
        return out;
    }
    if !path.starts_with('/') {
        out.push(told("must start with a '/'"));
    }
    let mut first = path.chars();
    first.next();
    let steps = first.as_str();
    for (index, step) in steps.strip_suffix('/').unwrap_or(steps).split('/').enumerate() {
        if step.is_empty() {
            out.push(told(&format!("segment[{index}] may not be empty")));
        } else if let Some(problem) = names::dns_subdomain(step) {
            out.push(told(&format!("segment[{index}]: {problem}")));
        }
    }
    out
}

/// Words that no variable may be called.
const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "namespace",
    "null",
    "package",
    "return",
    "true",
    "var",
    "void",
    "while",
];

/// Whether expressions can call something so.
fn is_identifier(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(plain) && !RESERVED.contains(&name)
}

struct Check(Vec<Cause>);

impl Check {
    fn one_of(&mut self, at: &str, value: &Value, supported: &[&str]) {
        if value.as_str().is_some_and(|text| !supported.contains(&text)) {
            self.0.push(Cause::not_supported(at, value, supported));
        }
    }

    fn webhook(&mut self, hook: &Value, at: &str, mutating: bool) {
        let (name, field) = (text(hook, "name"), format!("{at}.name"));
        let problems = names::subdomain_problems(name);
        if name.is_empty() {
            self.0.push(Cause::required(field, ""));
        } else if !problems.is_empty() {
            self.0.push(Cause::invalid(field, &hook["name"], &problems.join(",")));
        } else if name.split('.').count() < 3 {
            let why = "should be a domain with at least three segments separated by dots";
            self.0.push(Cause::invalid(field, &hook["name"], why));
        }
        for (index, rule) in list(&hook["rules"]) {
            self.0.extend(rules::rule(rule, &format!("{at}.rules[{index}]")));
        }
        self.one_of(&format!("{at}.failurePolicy"), &hook["failurePolicy"], &["Fail", "Ignore"]);
        self.one_of(&format!("{at}.matchPolicy"), &hook["matchPolicy"], &["Equivalent", "Exact"]);
        match text(hook, "sideEffects") {
            "" => self.0.push(Cause::required(format!("{at}.sideEffects"), "must specify one of None, NoneOnDryRun")),
            _ => self.one_of(&format!("{at}.sideEffects"), &hook["sideEffects"], &["None", "NoneOnDryRun"]),
        }
        if let Some(seconds) = hook["timeoutSeconds"].as_i64().filter(|s| !(1..=30).contains(s)) {
            let why = "the timeout value must be between 1 and 30 seconds";
            self.0.push(Cause::invalid(format!("{at}.timeoutSeconds"), &seconds.into(), why));
        }
        self.0.extend(rules::selected(hook, &["namespaceSelector", "objectSelector"], at));
        if mutating {
            self.one_of(&format!("{at}.reinvocationPolicy"), &hook["reinvocationPolicy"], &["IfNeeded", "Never"]);
        }
        self.client(&hook["clientConfig"], &format!("{at}.clientConfig"));
        self.conditions(&hook["matchConditions"], at, &env(false, false, false));
        let place = format!("{at}.admissionReviewVersions");
        self.0.extend(rules::review_versions(&hook["admissionReviewVersions"], &place));
    }

    fn client(&mut self, client: &Value, at: &str) {
        self.0.extend(client_problems(client, at));
    }

    fn conditions(&mut self, conditions: &Value, at: &str, env: &Env) {
        let (mut seen, count) = (Vec::new(), list(conditions).count());
        if count > MAX_CONDITIONS {
            self.0.push(Cause::too_many(format!("{at}.matchConditions"), count, MAX_CONDITIONS));
        }
        for (index, condition) in list(conditions) {
            let at = format!("{at}.matchConditions[{index}]");
            self.trimmed(condition, &format!("{at}.expression"), env, &[Type::Bool], "bool");
            match text(condition, "name") {
                "" => self.0.push(Cause::required(format!("{at}.name"), "")),
                name => {
                    for problem in names::qualified_name_problems(name) {
                        self.0.push(Cause::invalid(format!("{at}.name"), &condition["name"], &problem));
                    }
                    if seen.contains(&name) {
                        self.0.push(Cause::duplicate(format!("{at}.name"), &condition["name"]));
                    }
                    seen.push(name);
                }
            }
        }
    }

    /// Checks an expression whose absence is told in words; gives its type.
    fn expression(&mut self, of: &Value, key: &str, at: &str, env: &Env, wanted: &[Type], shown: &str) -> Type {
        let (source, place) = (text(of, key), format!("{at}.{key}"));
        if source.trim().is_empty() {
            self.0.push(Cause::required(place, &format!("{key} is not specified")));
            return Type::Dyn;
        }
        self.compiled(source, &of[key], &place, env, wanted, shown)
    }

    /// Checks the expression of a condition or a patch: without what is around it, in the message too.
    fn trimmed(&mut self, of: &Value, place: &str, env: &Env, wanted: &[Type], shown: &str) {
        let source = text(of, "expression").trim();
        if source.is_empty() {
            self.0.push(Cause::required(place, ""));
        } else {
            self.compiled(source, &source.into(), place, env, wanted, shown);
        }
    }

    fn compiled(&mut self, source: &str, told: &Value, place: &str, env: &Env, wanted: &[Type], shown: &str) -> Type {
        match Program::compile(source, env) {
            Err(why) => {
                self.0.push(Cause::invalid(place, told, &format!("compilation failed: {why}")));
                Type::Dyn
            }
            Ok(program) => {
                let kind = program.kind();
                if !wanted.is_empty() && *kind != Type::Dyn && !wanted.contains(kind) {
                    self.0.push(Cause::invalid(place, told, &format!("must evaluate to {shown} but got {kind}")));
                }
                kind.clone()
            }
        }
    }

    fn policy(&mut self, spec: &Value, mutating: bool, name: &str) {
        self.one_of("spec.failurePolicy", &spec["failurePolicy"], &["Fail", "Ignore"]);
        if spec["paramKind"].is_object() {
            self.0.extend(rules::param_kind(&spec["paramKind"], "spec.paramKind"));
        }
        if !spec["matchConstraints"].is_object() {
            self.0.push(Cause::required("spec.matchConstraints", ""));
        } else {
            self.constraints(&spec["matchConstraints"], "spec.matchConstraints", true, mutating);
        }
        let params = spec["paramKind"].is_object();
        self.conditions(&spec["matchConditions"], "spec", &env(params, false, false));
        let mut env = env(params, false, mutating);
        self.variables(&spec["variables"], mutating, &mut env);
        if mutating {
            self.mutations(&spec["mutations"], &env);
            match text(spec, "reinvocationPolicy") {
                "" => self.0.push(Cause::required("spec.reinvocationPolicy", "")),
                _ => self.one_of("spec.reinvocationPolicy", &spec["reinvocationPolicy"], &["IfNeeded", "Never"]),
            }
        } else {
            self.validations(spec, &env, name);
        }
    }

    /// The variables of a policy: each is known to the expressions after it. A policy that only validates and has none
    /// does not know `variables` either.
    fn variables(&mut self, given: &Value, mutating: bool, env: &mut Env) {
        let mut known: Vec<(String, Type)> = Vec::new();
        if mutating || list(given).next().is_some() {
            env.variables.insert("variables".into(), Type::object("kubernetes.variables", []));
        }
        for (index, variable) in list(given) {
            let at = format!("spec.variables[{index}]");
            let name = text(variable, "name");
            if name.trim().is_empty() {
                self.0.push(Cause::required(format!("{at}.name"), "name is not specified"));
            } else if !is_identifier(name) {
                self.0.push(Cause::invalid(format!("{at}.name"), &variable["name"], "must be a valid CEL identifier"));
            }
            let kind = self.expression(variable, "expression", &at, env, &[], "");
            known.push((name.to_owned(), kind));
            env.variables.insert("variables".into(), Type::object("kubernetes.variables", known.clone()));
        }
    }

    fn validations(&mut self, spec: &Value, env: &Env, name: &str) {
        if list(&spec["validations"]).next().is_none() && list(&spec["auditAnnotations"]).next().is_none() {
            for key in ["validations", "auditAnnotations"] {
                let why = "validations or auditAnnotations must contain at least one item";
                self.0.push(Cause::required(format!("spec.{key}"), why));
            }
        }
        // Whoever makes a message asks nobody for permission.
        let mut of_messages = env.clone();
        of_messages.variables.retain(|name, _| !name.starts_with("authorizer"));
        for (index, validation) in list(&spec["validations"]) {
            let at = format!("spec.validations[{index}]");
            self.expression(validation, "expression", &at, env, &[Type::Bool], "bool");
            let source = text(validation, "messageExpression");
            if !source.is_empty() && source.trim().is_empty() {
                let why = "must be non-empty if specified";
                self.0.push(Cause::invalid(format!("{at}.messageExpression"), &validation["messageExpression"], why));
            } else if !source.is_empty() {
                self.expression(validation, "messageExpression", &at, &of_messages, &[Type::String], "string");
            }
            let message = text(validation, "message");
            if !message.is_empty() && message.trim().is_empty() {
                let why = "must be non-empty if specified";
                self.0.push(Cause::invalid(format!("{at}.message"), &validation["message"], why));
            } else if message.trim().contains(['\n', '\r']) {
                self.0.push(Cause::invalid(
                    format!("{at}.message"),
                    &validation["message"],
                    "must not contain line breaks",
                ));
            }
            let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
            self.one_of(&format!("{at}.reason"), &validation["reason"], &reasons);
        }
        self.annotations(&spec["auditAnnotations"], env, name);
    }

    fn annotations(&mut self, annotations: &Value, env: &Env, name: &str) {
        if list(annotations).count() > MAX_ANNOTATIONS {
            let why = format!("must not have more than {MAX_ANNOTATIONS} auditAnnotations");
            let shown = shown::compact_list("AuditAnnotation", annotations);
            self.0.push(Cause::invalid_shown("spec.auditAnnotations", &shown, &why));
        }
        let mut seen = Vec::new();
        for (index, annotation) in list(annotations) {
            let at = format!("spec.auditAnnotations[{index}]");
            let key = format!("{name}/{}", text(annotation, "key"));
            for problem in names::qualified_name_problems(&key) {
                self.0.push(Cause::invalid(format!("{at}.key"), &Value::from(key.as_str()), &problem));
            }
            if seen.contains(&key) {
                self.0.push(Cause::duplicate(format!("{at}.key"), &annotation["key"]));
            }
            seen.push(key);
            let wanted = [Type::String, Type::Null];
            if text(annotation, "valueExpression").trim().len() > MAX_ANNOTATION_BYTES {
                let why = format!("must not exceed {MAX_ANNOTATION_BYTES} bytes in length");
                self.0.push(Cause::required(format!("{at}.valueExpression"), &why));
                continue;
            }
            let (place, source) = (format!("{at}.valueExpression"), text(annotation, "valueExpression").trim());
            if source.is_empty() {
                self.0.push(Cause::required(place, "valueExpression is not specified"));
            } else {
                let (told, shown) = (&annotation["valueExpression"], "one of [string null_type]");
                self.compiled(source, told, &place, env, &wanted, shown);
            }
        }
    }

    fn mutations(&mut self, mutations: &Value, env: &Env) {
        if list(mutations).next().is_none() {
            self.0.push(Cause::required("spec.mutations", "mutations must contain at least one item"));
        }
        for (index, mutation) in list(mutations) {
            let at = format!("spec.mutations[{index}]");
            let kinds = ["ApplyConfiguration", "JSONPatch"];
            let (own, other) = match text(mutation, "patchType") {
                "JSONPatch" => ("jsonPatch", "applyConfiguration"),
                "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
                "" => {
                    self.0.push(Cause::required(format!("{at}.patchType"), ""));
                    continue;
                }
                _ => {
                    self.0.push(Cause::not_supported(format!("{at}.patchType"), &mutation["patchType"], &kinds));
                    continue;
                }
            };
            let place = format!("{at}.{own}");
            if mutation[own].is_null() {
                let why = format!("must be specified when patchType is {}", text(mutation, "patchType"));
                self.0.push(Cause::required(place, &why));
            } else if own == "jsonPatch" {
                let wanted = [Type::list(Type::Opaque("JSONPatch"))];
                self.trimmed(&mutation[own], &format!("{place}.expression"), env, &wanted, "list(JSONPatch)");
            } else {
                let wanted = [Type::object("Object", [])];
                self.trimmed(&mutation[own], &format!("{place}.expression"), env, &wanted, "Object");
            }
            if !mutation[other].is_null() {
                let why = format!("must not be specified when patchType is {}", text(mutation, "patchType"));
                self.0.push(Cause::invalid(format!("{at}.{other}"), &Value::from(format!("{{{other}}}")), &why));
            }
        }
    }

    fn constraints(&mut self, constraints: &Value, at: &str, required: bool, mutating: bool) {
        self.one_of(&format!("{at}.matchPolicy"), &constraints["matchPolicy"], &["Equivalent", "Exact"]);
        self.0.extend(rules::selected(constraints, &["namespaceSelector", "objectSelector"], at));
        for key in ["resourceRules", "excludeResourceRules"] {
            for (index, rule) in list(&constraints[key]) {
                self.0.extend(rules::rule(rule, &format!("{at}.{key}[{index}]")));
            }
        }
        let rules = &constraints["resourceRules"];
        if required && list(rules).next().is_none() {
            self.0.push(Cause::required(format!("{at}.resourceRules"), ""));
        }
        // What is deleted cannot be changed any more. Upstream names no rule here.
        let operations = list(rules).filter(|_| mutating).flat_map(|(_, rule)| list(&rule["operations"]));
        for (_, operation) in operations {
            self.one_of(&format!("{at}.resourceRules.operations"), operation, &["*", "CONNECT", "CREATE", "UPDATE"]);
        }
    }

    fn binding(&mut self, spec: &Value, mutating: bool) {
        if text(spec, "policyName").is_empty() {
            self.0.push(Cause::required("spec.policyName", ""));
        } else {
            for problem in names::subdomain_problems(text(spec, "policyName")) {
                self.0.push(Cause::invalid("spec.policyName", &spec["policyName"], &problem));
            }
        }
        let reference = &spec["paramRef"];
        if reference.is_object() {
            let (name, selector) = (!text(reference, "name").is_empty(), reference["selector"].is_object());
            if let Some(problem) = names::path_segment(text(reference, "name")).filter(|_| name) {
                self.0.push(Cause::invalid("spec.paramRef.name", &reference["name"], &problem));
            }
            let why = "name and selector are mutually exclusive";
            if name && selector {
                self.0.push(Cause::forbidden("spec.paramRef.name", why));
            }
            self.0.extend(rules::selected(reference, &["selector"], "spec.paramRef"));
            if name && selector {
                self.0.push(Cause::forbidden("spec.paramRef.selector", why));
            } else if !name && !selector {
                self.0.push(Cause::required("spec.paramRef", "one of name or selector must be specified"));
            }
            match text(reference, "parameterNotFoundAction") {
                "" => self.0.push(Cause::required("spec.paramRef.parameterNotFoundAction", "")),
                _ => {
                    let value = &reference["parameterNotFoundAction"];
                    self.one_of("spec.paramRef.parameterNotFoundAction", value, &["Deny", "Allow"]);
                }
            }
        }
        if spec["matchResources"].is_object() {
            self.constraints(&spec["matchResources"], "spec.matchResources", false, mutating);
        }
        if mutating {
            return;
        }
        let actions = &spec["validationActions"];
        let has = |wanted: &str| list(actions).any(|(_, action)| action == wanted);
        if list(actions).next().is_none() {
            let why = "at least one validation action is required";
            self.0.push(Cause::required("spec.validationActions", why));
        }
        for (index, action) in list(actions) {
            self.one_of(&format!("spec.validationActions[{index}]"), action, &["Audit", "Deny", "Warn"]);
            if list(actions).take(index).any(|(_, other)| other == action) {
                self.0.push(Cause::duplicate(format!("spec.validationActions[{index}]"), action));
            }
        }
        if has("Deny") && has("Warn") {
            let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response \
                       and headers serves no purpose)";
            self.0.push(Cause::invalid("spec.validationActions", actions, why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn problems_of_webhooks_come_in_upstreams_order() {
        let hook = json!({"name": "a.b.c", "rules": [{}], "failurePolicy": "x", "timeoutSeconds": 0,
            "reinvocationPolicy": "x", "matchConditions": [{}]});
        let told = problems("MutatingWebhookConfiguration", &json!({"webhooks": [hook.clone(), hook]}), None);
        let fields: Vec<&str> = told.iter().filter_map(|cause| cause.field.strip_prefix("webhooks[1].")).collect();
        let expected = [
            "rules[0].operations",
            "rules[0].apiGroups",
            "rules[0].apiVersions",
            "rules[0].resources",
            "failurePolicy",
            "sideEffects",
            "timeoutSeconds",
            "reinvocationPolicy",
            "clientConfig",
            "matchConditions[0].expression",
            "matchConditions[0].name",
            "admissionReviewVersions",
            "name",
        ];
        assert_eq!(fields, expected);
    }

    /// Each row: where a webhook is said to be, and what is told of that.
    #[test]
    fn places_of_webhooks_are_judged() {
        let service = |path: &str| json!({"service": {"name": "n", "namespace": "ns", "path": path}});
        for (client, told) in [
            (json!({}), vec!["c: Required value: exactly one of url or service is required"]),
            (json!({"url": "https://h", "service": {}}), vec!["c: Required value: exactly one"]),
            (json!({"url": "https://h/p"}), vec![]),
            (
                json!({"url": "https://h:p"}),
                vec!["c.url: Required value: url must be a valid URL: parse \"https://h:p\": "],
            ),
            (
                json!({"url": "arg#back?w/port:h//:s"}),
                vec![
                    "c.url: Invalid value: \"\": 'https'",
                    "c.url: Invalid value: \"\": host must be",
                    "c.url: Invalid value: \"back?w/port:h//:s\": fragments",
                ],
            ),
            (
                json!({"url": "http://h"}),
                vec!["c.url: Invalid value: \"http\": 'https' is the only allowed URL scheme"],
            ),
            (
                json!({"url": "nonsense"}),
                vec!["c.url: Invalid value: \"\": 'https'", "c.url: Invalid value: \"\": host must be"],
            ),
            (json!({"url": "https://u:p@h"}), vec!["c.url: Invalid value: \"u:p\": user information is not permitted"]),
            (json!({"url": "https://h#f"}), vec!["c.url: Invalid value: \"f\": fragments are not permitted"]),
            (json!({"url": "https://h?q=1"}), vec!["c.url: Invalid value: \"q=1\": query parameters are not"]),
            (json!({"service": {}}), vec!["c.service.name: Required", "c.service.namespace: Required"]),
            (
                json!({"service": {"name": "n", "namespace": "ns", "port": 0}}),
                vec!["c.service.port: Invalid value: 0: port is not valid"],
            ),
            (service("/"), vec![]),
            (service("//"), vec!["c.service.path: Invalid value: \"//\": segment[0] may not be empty"]),
            (service("/a//b"), vec!["c.service.path: Invalid value: \"/a//b\": segment[1] may not be empty"]),
            (service("/a/B"), vec!["c.service.path: Invalid value: \"/a/B\": segment[1]: a lowercase"]),
            (
                service("a"),
                vec![
                    "c.service.path: Invalid value: \"a\": must start with a '/'",
                    "c.service.path: Invalid value: \"a\": segment[0] may not",
                ],
            ),
        ] {
            agree(&client_problems(&client, "c"), &told, &client);
        }
    }

    /// Each row: what is said of a policy beside one that is right, and what is told of that.
    #[test]
    fn policies_are_judged() {
        for (kind, part, told) in [
            ("ValidatingAdmissionPolicy", json!({}), vec![]),
            (
                "ValidatingAdmissionPolicy",
                json!({"validations": [{"expression": "variables.a"}]}),
                vec![
                    "spec.validations[0].expression: Invalid value: \"variables.a\": compilation failed: ERROR: <input>:1:1: undeclared",
                ],
            ),
            (
                "ValidatingAdmissionPolicy",
                json!({"validations": [{"expression": "true", "message": "\n", "messageExpression": "authorizer.path('/').check('get').reason()"}]}),
                vec![
                    "spec.validations[0].messageExpression: Invalid value: \"authorizer",
                    "spec.validations[0].message: Invalid value: \"\\n\": must be non-empty",
                ],
            ),
            (
                "ValidatingAdmissionPolicy",
                json!({"validations": [{"expression": "true", "message": "a\n"}, {"expression": "true", "message": "a\rb"}]}),
                vec!["spec.validations[1].message: Invalid value: \"a\\rb\": must not contain line breaks"],
            ),
            (
                "ValidatingAdmissionPolicy",
                json!({"variables": [{"name": " ", "expression": "1"}, {"name": "loop", "expression": "1"}]}),
                vec![
                    "spec.variables[0].name: Required value: name is not specified",
                    "spec.variables[1].name: Invalid value: \"loop\": must be a valid CEL identifier",
                ],
            ),
            (
                "ValidatingAdmissionPolicy",
                json!({"matchConditions": [{"name": "c", "expression": " 1 "}]}),
                vec!["spec.matchConditions[0].expression: Invalid value: \"1\": must evaluate to bool but got int"],
            ),
            (
                "ValidatingAdmissionPolicy",
                json!({"auditAnnotations": [{"key": "k", "valueExpression": " x"}]}),
                vec![
                    "spec.auditAnnotations[0].valueExpression: Invalid value: \" x\": compilation failed: ERROR: <input>:1:1: undeclared",
                ],
            ),
            (
                "ValidatingAdmissionPolicy",
                json!({"validations": [{"expression": "true", "reason": "Unauthorized"}]}),
                vec![
                    "spec.validations[0].reason: Unsupported value: \"Unauthorized\": supported values: \"Forbidden\", \"Invalid\", \"Request",
                ],
            ),
            (
                "ValidatingAdmissionPolicy",
                json!({"auditAnnotations": (0..21).map(|n| json!({"key": format!("k{n}"), "valueExpression": "'x'"})).collect::<Value>()}),
                vec!["spec.auditAnnotations: Invalid value: [{\"Key\":\"k0\",\"ValueExpression\":\"'x'\"},{"],
            ),
            ("MutatingAdmissionPolicy", json!({}), vec![]),
            (
                "MutatingAdmissionPolicy",
                json!({"reinvocationPolicy": "", "matchConstraints": {"resourceRules": rules("DELETE")}}),
                vec![
                    "spec.matchConstraints.resourceRules.operations: Unsupported value: \"DELETE\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"UPDATE\"",
                    "spec.reinvocationPolicy: Required value",
                ],
            ),
        ] {
            judged(kind, &part, &told);
        }
    }

    fn rules(operation: &str) -> Value {
        json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": [operation], "resources": ["pods"]}])
    }

    /// A sound policy with other fields in its spec.
    fn judged(kind: &str, part: &Value, told: &[&str]) {
        let mut policy = json!({"metadata": {"name": "p"}, "spec": {
            "matchConstraints": {"resourceRules": rules("CREATE")}, "validations": [{"expression": "true"}],
            "reinvocationPolicy": "Never", "mutations": [{"patchType": "ApplyConfiguration",
                "applyConfiguration": {"expression": " Object{} "}}]}});
        for (key, value) in part.as_object().into_iter().flatten() {
            policy["spec"][key] = value.clone();
        }
        agree(&problems(kind, &policy, None), told, part);
    }

    /// As many problems as are told, each beginning so.
    fn agree(got: &[Cause], told: &[&str], of: &Value) {
        let got: Vec<String> = got.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        assert_eq!(got.len(), told.len(), "{of}: {got:?}");
        assert!(got.iter().zip(told).all(|(got, told)| got.starts_with(told)), "{of}: {got:?}");
    }
}
