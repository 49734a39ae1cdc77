//! Webhook configurations, admission policies and their bindings. Expressions are compiled where the policies run.

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::{has, items, selectors, text};
use crate::names;

const VERSIONS: &[&str] = &["v1", "v1beta1"];

/// An object of the group.
pub fn validate(plural: &str, new: &Value, p: &mut Problems) {
    match plural {
        "validatingwebhookconfigurations" | "mutatingwebhookconfigurations" => {
            let mut seen: Vec<&str> = Vec::new();
            for (index, webhook) in items(&new["webhooks"]).enumerate() {
                let at = format!("webhooks[{index}]");
                self::webhook(webhook, &at, plural.starts_with("mutating"), p);
                let name = text(webhook, "name");
                if seen.contains(&name) && !name.is_empty() {
                    p.duplicate(format!("{at}.name"), &webhook["name"]);
                }
                seen.push(name);
            }
        }
        "validatingadmissionpolicies" => validating(&new["spec"], p),
        "mutatingadmissionpolicies" => mutating(&new["spec"], p),
        _ => binding(&new["spec"], plural.starts_with("validating"), p),
    }
}

fn webhook(webhook: &Value, at: &str, mutating: bool, p: &mut Problems) {
    full_name(&webhook["name"], &format!("{at}.name"), p);
    p.one_of_if_set(format!("{at}.failurePolicy"), &webhook["failurePolicy"], &["Fail", "Ignore"]);
    p.one_of_if_set(format!("{at}.matchPolicy"), &webhook["matchPolicy"], &["Equivalent", "Exact"]);
    let effects = &webhook["sideEffects"];
    if effects.is_null() {
        p.required(format!("{at}.sideEffects"), "must specify one of None, NoneOnDryRun");
    } else {
        p.one_of(format!("{at}.sideEffects"), effects, &["None", "NoneOnDryRun"]);
    }
    let seconds = &webhook["timeoutSeconds"];
    if seconds.as_i64().is_some_and(|n| !(1..=30).contains(&n)) {
        let why = "the timeout value must be between 1 and 30 seconds";
        p.invalid(format!("{at}.timeoutSeconds"), seconds, why);
    }
    for field in ["namespaceSelector", "objectSelector"] {
        if webhook[field].is_object() {
            selectors::label_selector(&webhook[field], &format!("{at}.{field}"), p);
        }
    }
    if mutating {
        p.one_of_if_set(format!("{at}.reinvocationPolicy"), &webhook["reinvocationPolicy"], &["IfNeeded", "Never"]);
    }
    for (index, rule) in items(&webhook["rules"]).enumerate() {
        self::rule(rule, &format!("{at}.rules[{index}]"), p);
    }
    versions(webhook, at, p);
    client(&webhook["clientConfig"], &format!("{at}.clientConfig"), p);
    conditions(&webhook["matchConditions"], &format!("{at}.matchConditions"), p);
}

fn full_name(name: &Value, field: &str, p: &mut Problems) {
    let given = name.as_str().unwrap_or_default();
    if given.is_empty() {
        return p.required(field, "");
    }
    p.named(field, name, names::dns_subdomain(given));
    if given.split('.').count() < 3 {
        p.invalid(field, name, "should be a domain with at least three segments separated by dots");
    }
}

fn versions(webhook: &Value, at: &str, p: &mut Problems) {
    let field = format!("{at}.admissionReviewVersions");
    let list: Vec<&Value> = items(&webhook["admissionReviewVersions"]).collect();
    if list.is_empty() {
        return p.required(field, &format!("must specify one of {}", VERSIONS.join(", ")));
    }
    for (index, version) in list.iter().enumerate() {
        if list[..index].contains(version) {
            p.invalid(format!("{field}[{index}]"), version, "duplicate version");
            continue;
        }
        let problem = names::dns_label_1035(version.as_str().unwrap_or_default());
        p.named(format!("{field}[{index}]"), version, problem);
    }
    if !list.iter().any(|v| VERSIONS.contains(&v.as_str().unwrap_or_default())) {
        let why = format!("must include at least one of {}", VERSIONS.join(", "));
        p.invalid(field, &webhook["admissionReviewVersions"], &why);
    }
}

fn client(config: &Value, at: &str, p: &mut Problems) {
    match (has(config, "url"), has(config, "service")) {
        (true, true) | (false, false) => p.required(at, "exactly one of url or service is required"),
        (true, false) => url(&config["url"], &format!("{at}.url"), p),
        (false, true) => service(&config["service"], &format!("{at}.service"), p),
    }
}

fn url(value: &Value, field: &str, p: &mut Problems) {
    const FORM: &str = "desired format: https://host[/path]";
    let text = value.as_str().unwrap_or_default();
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    if scheme != "https" {
        p.invalid(field, &json!(scheme), &format!("'https' is the only allowed URL scheme; {FORM}"));
    }
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() {
        p.invalid(field, &json!(""), &format!("host must be specified; {FORM}"));
    }
    if host.contains('@') {
        let user = host.split('@').next().unwrap_or_default();
        p.invalid(field, &json!(user), &format!("user information is not permitted in the URL"));
    }
    for (sign, what) in
        [('#', "fragments are not permitted in the URL"), ('?', "query parameters are not permitted in the URL")]
    {
        if let Some((_, part)) = rest.split_once(sign) {
            p.invalid(field, &json!(part), what);
        }
    }
}

fn service(service: &Value, at: &str, p: &mut Problems) {
    for field in ["name", "namespace"] {
        if text(service, field).is_empty() {
            p.required(format!("{at}.{field}"), &format!("service {field} is required"));
        }
    }
    if has(service, "port") && !service["port"].as_i64().is_some_and(|n| (1..=65535).contains(&n)) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        p.invalid(format!("{at}.port"), &service["port"], why);
    }
    let path = &service["path"];
    let given = path.as_str().unwrap_or_default();
    if path.is_null() || given == "/" || given.is_empty() {
        return;
    }
    let field = format!("{at}.path");
    if !given.starts_with('/') {
        p.invalid(&field, path, "must start with a '/'");
    }
    let inner = given.strip_prefix('/').unwrap_or(given);
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    for (index, part) in inner.split('/').enumerate() {
        if part.is_empty() {
            p.invalid(&field, path, &format!("segment[{index}] may not be empty"));
        } else if let Some(problem) = names::dns_subdomain(part) {
            p.invalid(&field, path, &format!("segment[{index}]: {problem}"));
        }
    }
}

fn rule(rule: &Value, at: &str, p: &mut Problems) {
    let list = |field: &str| items(&rule[field]).collect::<Vec<_>>();
    for (field, what) in
        [("operations", "operations"), ("apiGroups", "API groups"), ("apiVersions", "API versions"), ("resources", "")]
    {
        let (values, path) = (list(field), format!("{at}.{field}"));
        if values.is_empty() {
            p.required(&path, "");
        }
        if !what.is_empty() && values.len() > 1 && values.iter().any(|v| **v == "*") {
            p.invalid(&path, &rule[field], &format!("if '*' is present, must not specify other {what}"));
        }
        for (index, value) in values.iter().enumerate() {
            if field != "apiGroups" && **value == "" {
                p.required(format!("{path}[{index}]"), "");
            }
        }
    }
    for (index, operation) in list("operations").iter().enumerate() {
        let known = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
        p.one_of(format!("{at}.operations[{index}]"), operation, &known);
    }
    resources(rule, at, p);
    p.one_of_if_set(format!("{at}.scope"), &rule["scope"], &["*", "Cluster", "Namespaced"]);
}

/// `*` covers what has no slash, `*/*` everything.
fn resources(rule: &Value, at: &str, p: &mut Problems) {
    let field = format!("{at}.resources");
    let list: Vec<&str> = items(&rule["resources"]).filter_map(Value::as_str).collect();
    if list.len() > 1 && list.contains(&"*/*") {
        p.invalid(&field, &rule["resources"], "if '*/*' is present, must not specify other resources");
    }
    if list.contains(&"*") && list.iter().any(|r| *r != "*" && !r.contains('/')) {
        let why = "if '*' is present, must not specify other resources without subresources";
        p.invalid(&field, &rule["resources"], why);
    }
    for (index, resource) in list.iter().enumerate() {
        let Some((name, sub)) = resource.split_once('/') else { continue };
        let at = format!("{field}[{index}]");
        if sub != "*" && list.contains(&format!("{name}/*").as_str()) {
            p.invalid(&at, &json!(resource), &format!("if '{name}/*' is present, must not specify {resource}"));
        }
        if name != "*" && list.contains(&format!("*/{sub}").as_str()) {
            p.invalid(&at, &json!(resource), &format!("if '*/{sub}' is present, must not specify {resource}"));
        }
    }
}

fn conditions(list: &Value, path: &str, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, condition) in items(list).enumerate() {
        let at = format!("{path}[{index}]");
        if text(condition, "expression").trim().is_empty() {
            p.required(format!("{at}.expression"), "");
        }
        let name = text(condition, "name");
        if name.is_empty() {
            p.required(format!("{at}.name"), "");
        } else {
            p.qualified_name(&format!("{at}.name"), name);
            if seen.contains(&name) {
                p.duplicate(format!("{at}.name"), &condition["name"]);
            }
        }
        seen.push(name);
    }
}

fn constraints(spec: &Value, p: &mut Problems) {
    let (part, at) = (&spec["matchConstraints"], "spec.matchConstraints");
    if !part.is_object() {
        return p.required(at, "");
    }
    match_resources(part, at, p);
    if items(&part["resourceRules"]).next().is_none() {
        p.required(format!("{at}.resourceRules"), "");
    }
}

fn match_resources(part: &Value, at: &str, p: &mut Problems) {
    for field in ["namespaceSelector", "objectSelector"] {
        if part[field].is_object() {
            selectors::label_selector(&part[field], &format!("{at}.{field}"), p);
        }
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (index, rule) in items(&part[field]).enumerate() {
            self::rule(rule, &format!("{at}.{field}[{index}]"), p);
        }
    }
    p.one_of_if_set(format!("{at}.matchPolicy"), &part["matchPolicy"], &["Equivalent", "Exact"]);
}

fn param_kind(spec: &Value, p: &mut Problems) {
    let (kind, at) = (&spec["paramKind"], "spec.paramKind");
    if !kind.is_object() {
        return;
    }
    for field in ["apiVersion", "kind"] {
        p.present(kind, field, at);
    }
}

fn variables(spec: &Value, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, variable) in items(&spec["variables"]).enumerate() {
        let at = format!("spec.variables[{index}]");
        let name = text(variable, "name");
        if name.trim().is_empty() {
            p.required(format!("{at}.name"), "name is not specified");
        } else if names::c_identifier(name).is_some() {
            p.invalid(format!("{at}.name"), &variable["name"], "must be a valid CEL identifier");
        } else if seen.contains(&name) {
            p.duplicate(format!("{at}.name"), &variable["name"]);
        }
        seen.push(name);
        if text(variable, "expression").trim().is_empty() {
            p.required(format!("{at}.expression"), "expression is not specified");
        }
    }
}

fn validating(spec: &Value, p: &mut Problems) {
    p.one_of_if_set("spec.failurePolicy", &spec["failurePolicy"], &["Fail", "Ignore"]);
    param_kind(spec, p);
    constraints(spec, p);
    variables(spec, p);
    conditions(&spec["matchConditions"], "spec.matchConditions", p);
    let any = |field: &str| items(&spec[field]).next().is_some();
    if !any("validations") && !any("auditAnnotations") {
        for field in ["validations", "auditAnnotations"] {
            p.required(format!("spec.{field}"), "validations or auditAnnotations must contain at least one item");
        }
    }
    for (index, validation) in items(&spec["validations"]).enumerate() {
        let at = format!("spec.validations[{index}]");
        if text(validation, "expression").trim().is_empty() {
            p.required(format!("{at}.expression"), "expression is not specified");
        }
        let message = text(validation, "message");
        if !message.is_empty() && message.trim().is_empty() {
            p.invalid(format!("{at}.message"), &validation["message"], "message must be non-empty if specified");
        } else if message.trim().contains('\n') {
            p.invalid(format!("{at}.message"), &validation["message"], "must not contain line breaks");
        }
        if has(validation, "reason") {
            let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
            p.one_of(format!("{at}.reason"), &validation["reason"], &reasons);
        }
    }
    for (index, annotation) in items(&spec["auditAnnotations"]).enumerate() {
        let at = format!("spec.auditAnnotations[{index}]");
        if text(annotation, "key").is_empty() {
            p.required(format!("{at}.key"), "");
        }
        if text(annotation, "valueExpression").trim().is_empty() {
            p.required(format!("{at}.valueExpression"), "valueExpression is not specified");
        }
    }
}

fn mutating(spec: &Value, p: &mut Problems) {
    p.one_of_if_set("spec.failurePolicy", &spec["failurePolicy"], &["Fail", "Ignore"]);
    param_kind(spec, p);
    constraints(spec, p);
    variables(spec, p);
    conditions(&spec["matchConditions"], "spec.matchConditions", p);
    if items(&spec["mutations"]).next().is_none() {
        p.required("spec.mutations", "mutations must contain at least one item");
    }
    for (index, mutation) in items(&spec["mutations"]).enumerate() {
        let at = format!("spec.mutations[{index}]");
        let (own, other) = match text(mutation, "patchType") {
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
            "" => {
                p.required(format!("{at}.patchType"), "");
                continue;
            }
            _ => {
                let known = ["ApplyConfiguration", "JSONPatch"];
                p.not_supported(format!("{at}.patchType"), &mutation["patchType"], &known);
                continue;
            }
        };
        if !mutation[own].is_object() {
            let why = format!("must be specified when patchType is {}", text(mutation, "patchType"));
            p.required(format!("{at}.{own}"), &why);
        } else if text(&mutation[own], "expression").trim().is_empty() {
            p.required(format!("{at}.{own}.expression"), "expression is not specified");
        }
        if has(mutation, other) {
            let why = format!("must not be specified when patchType is {}", text(mutation, "patchType"));
            p.invalid(format!("{at}.{other}"), &json!(format!("{{{other}}}")), &why);
        }
    }
    let policies = ["IfNeeded", "Never"];
    match text(spec, "reinvocationPolicy") {
        "" => p.required("spec.reinvocationPolicy", ""),
        _ => p.one_of("spec.reinvocationPolicy", &spec["reinvocationPolicy"], &policies),
    }
}

fn binding(spec: &Value, validating: bool, p: &mut Problems) {
    if text(spec, "policyName").is_empty() {
        p.required("spec.policyName", "");
    } else {
        p.subdomain("spec.policyName", &spec["policyName"]);
    }
    param_ref(&spec["paramRef"], p);
    if spec["matchResources"].is_object() {
        match_resources(&spec["matchResources"], "spec.matchResources", p);
    }
    if !validating {
        return;
    }
    let actions: Vec<&Value> = items(&spec["validationActions"]).collect();
    if actions.is_empty() {
        p.required("spec.validationActions", "at least one validation action is required");
    }
    for (index, action) in actions.iter().enumerate() {
        let field = format!("spec.validationActions[{index}]");
        p.one_of(&field, action, &["Audit", "Deny", "Warn"]);
        if actions[..index].contains(action) {
            p.duplicate(field, action);
        }
    }
    let any = |action: &str| actions.iter().any(|a| **a == action);
    if any("Deny") && any("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response \
                   and headers serves no purpose)";
        p.invalid("spec.validationActions", &spec["validationActions"], why);
    }
}

fn param_ref(reference: &Value, p: &mut Problems) {
    let at = "spec.paramRef";
    if !reference.is_object() {
        return;
    }
    match (!text(reference, "name").is_empty(), has(reference, "selector")) {
        (true, true) => {
            for field in ["name", "selector"] {
                p.forbidden(format!("{at}.{field}"), "name and selector are mutually exclusive");
            }
        }
        (false, false) => {
            for field in ["name", "selector"] {
                p.required(format!("{at}.{field}"), "one of name or selector must be specified");
            }
        }
        (true, false) => {
            p.named(format!("{at}.name"), &reference["name"], names::dns_subdomain(text(reference, "name")))
        }
        (false, true) => selectors::label_selector(&reference["selector"], &format!("{at}.selector"), p),
    }
    let action = &reference["parameterNotFoundAction"];
    if action.is_null() {
        p.required(format!("{at}.parameterNotFoundAction"), "");
    } else {
        p.one_of(format!("{at}.parameterNotFoundAction"), &or_empty(action), &["Allow", "Deny"]);
    }
}
