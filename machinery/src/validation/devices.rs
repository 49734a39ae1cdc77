//! Device classes, claims and claim templates. For slices see [`super::device_slices`], for what was given to claims
//! [`super::device_results`].

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::volumes::csi_driver_name as driver;
use super::{container, has, items, meta, text};
use crate::structural::of_device_selector;
use crate::{cel, names, shown};

/// Longest selector of devices, bytes.
const MAX_EXPRESSION_BYTES: usize = 10 << 10;
/// Most requests, constraints, configurations or selectors.
pub const MAX_ITEMS: usize = 32;
/// Most alternatives of a request.
const MAX_ALTERNATIVES: usize = 8;
/// Most tolerations of a request.
const MAX_TOLERATIONS: usize = 16;
/// Longest parameters of a driver, bytes.
pub const MAX_PARAMETER_BYTES: usize = 10 << 10;
/// Longest name of an attribute, without its domain.
const MAX_ID_BYTES: usize = 32;
/// Longest name of a pool.
const MAX_POOL_BYTES: usize = 253;

/// An object of the group, or a change of it.
pub fn validate(plural: &str, subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    match (plural, subresource) {
        ("resourceclaims", "status") => super::device_results::update(new, old.unwrap_or(&Value::Null), p),
        (_, "status") => {}
        ("deviceclasses", _) => class(&new["spec"], p),
        ("resourceclaims", _) => {
            // What may not change is looked at no further.
            if old.is_none() {
                claim(&new["spec"], "spec", p);
            } else if old.is_some_and(|old| old["spec"] != new["spec"]) {
                p.invalid_shown("spec", &shown::compact("ResourceClaimSpec", &new["spec"]), "field is immutable");
            }
        }
        ("resourceclaimtemplates", _) => {
            if old.is_none() {
                let metadata = &new["spec"]["metadata"];
                meta::annotations(&metadata["annotations"], "spec.metadata.annotations", p);
                meta::labels(&metadata["labels"], "spec.metadata.labels", p);
                claim(&new["spec"]["spec"], "spec.spec", p);
            } else if old.is_some_and(|old| old["spec"] != new["spec"]) {
                let shown = shown::compact("ResourceClaimTemplateSpec", &new["spec"]);
                p.invalid_shown("spec", &shown, "field is immutable");
            }
        }
        ("resourceslices", _) => super::device_slices::slice(&new["spec"], old.map(|o| &o["spec"]), p),
        _ => {}
    }
}

/// The items of a list, of which there are not too many. Of too many none is looked at.
pub fn list(list: &Value, max: usize, at: &str, p: &mut Problems, mut check: impl FnMut(&Value, &str, &mut Problems)) {
    let count = items(list).count();
    if count > max {
        return p.too_many(at, count, max);
    }
    for (index, item) in items(list).enumerate() {
        check(item, &format!("{at}[{index}]"), p);
    }
}

/// As [`list`], of items that differ in their keys.
pub fn set(
    values: &Value,
    max: usize,
    at: &str,
    p: &mut Problems,
    key: impl Fn(&Value) -> Value,
    check: impl FnMut(&Value, &str, &mut Problems),
) {
    list(values, max, at, p, check);
    let keys: Vec<Value> = items(values).map(key).collect();
    if keys.len() > max {
        return;
    }
    for (index, key) in keys.iter().enumerate() {
        if keys[..index].contains(key) {
            p.duplicate(format!("{at}[{index}]"), key);
        }
    }
}

/// The key of items that have a name.
pub fn by_name(item: &Value) -> Value {
    or_empty(&item["name"])
}

fn class(spec: &Value, p: &mut Problems) {
    list(&spec["selectors"], MAX_ITEMS, "spec.selectors", p, cel_selector);
    list(&spec["config"], MAX_ITEMS, "spec.config", p, configuration);
    if has(spec, "extendedResourceName") && !container::is_extended(text(spec, "extendedResourceName")) {
        let why = "must be a valid extended resource name";
        p.invalid("spec.extendedResourceName", &spec["extendedResourceName"], why);
    }
}

fn cel_selector(selector: &Value, at: &str, p: &mut Problems) {
    if !selector["cel"].is_object() {
        return p.required(format!("{at}.cel"), "");
    }
    let (field, source) = (format!("{at}.cel.expression"), &selector["cel"]["expression"]);
    let text = source.as_str().unwrap_or_default();
    if text.len() > MAX_EXPRESSION_BYTES {
        return p.too_long(field, MAX_EXPRESSION_BYTES);
    }
    let env = cel::devices::env();
    match cel::Program::compile(text, &env) {
        Err(why) => p.invalid(field, source, &format!("compilation failed: {why}")),
        Ok(program) if !matches!(program.kind(), cel::Type::Bool | cel::Type::Dyn) => {
            let why = format!("must evaluate to bool or the unknown type, not {}", program.kind());
            p.invalid(field, source, &why);
        }
        Ok(program) if of_device_selector(text, &program, &env) > cel::devices::MAX_COST => {
            p.forbidden(field, "too complex, exceeds cost limit");
        }
        Ok(_) => {}
    }
}

/// Parameters for a driver.
pub fn configuration(config: &Value, at: &str, p: &mut Problems) {
    let opaque = &config["opaque"];
    if !opaque.is_object() {
        return p.required(format!("{at}.opaque"), "");
    }
    driver(&opaque["driver"], &format!("{at}.opaque.driver"), p);
    parameters(&opaque["parameters"], &format!("{at}.opaque.parameters"), p);
}

/// An object of any form.
pub fn parameters(value: &Value, field: &str, p: &mut Problems) {
    if value.is_null() {
        p.required(field, "");
    } else if value.to_string().len() > MAX_PARAMETER_BYTES {
        p.too_long(field, MAX_PARAMETER_BYTES);
    } else if !value.is_object() {
        p.invalid(field, &json!("<value omitted>"), "must be a valid JSON object");
    }
}

fn claim(spec: &Value, path: &str, p: &mut Problems) {
    let devices = &spec["devices"];
    let at = format!("{path}.devices");
    set(&devices["requests"], MAX_ITEMS, &format!("{at}.requests"), p, by_name, request);
    list(&devices["constraints"], MAX_ITEMS, &format!("{at}.constraints"), p, |constraint, at, p| {
        references(&constraint["requests"], devices, &format!("{at}.requests"), p);
        match (has(constraint, "matchAttribute"), has(constraint, "distinctAttribute")) {
            (true, _) => fully_qualified(&constraint["matchAttribute"], &format!("{at}.matchAttribute"), p),
            (_, true) => fully_qualified(&constraint["distinctAttribute"], &format!("{at}.distinctAttribute"), p),
            _ => {
                let why = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set";
                p.required(at, why);
            }
        }
    });
    list(&devices["config"], MAX_ITEMS, &format!("{at}.config"), p, |config, at, p| {
        references(&config["requests"], devices, &format!("{at}.requests"), p);
        configuration(config, at, p);
    });
}

/// Requests that are named elsewhere in the claim, each once.
pub fn references(names: &Value, devices: &Value, at: &str, p: &mut Problems) {
    set(names, MAX_ITEMS, at, p, Value::clone, |name, at, p| reference(name, devices, at, p));
}

/// A request of these, or an alternative of one.
pub fn reference(name: &Value, devices: &Value, field: &str, p: &mut Problems) {
    let why = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    let parts: Vec<&str> = name.as_str().unwrap_or_default().split('/').collect();
    if parts.len() > 2 {
        return p.invalid(field, &or_empty(name), why);
    }
    for part in &parts {
        p.label(field, &json!(part));
    }
    let request = items(&devices["requests"]).find(|request| text(request, "name") == parts[0]);
    let known = request.is_some_and(|request| {
        parts.get(1).is_none_or(|sub| items(&request["firstAvailable"]).any(|other| text(other, "name") == *sub))
    });
    if !known {
        p.invalid(field, &or_empty(name), why);
    }
}

/// A name with or without a domain. Of more parts nothing is asked.
pub fn qualified(name: &str, field: &str, p: &mut Problems) {
    match name.split('/').collect::<Vec<_>>()[..] {
        [id] => identifier(id, field, p),
        [domain, id] => {
            if domain.is_empty() {
                p.invalid(field, &json!(""), "the domain must not be empty");
            } else {
                driver(&json!(domain), field, p);
            }
            if id.is_empty() {
                p.invalid(field, &json!(""), "the name must not be empty");
            } else {
                identifier(id, field, p);
            }
        }
        _ => {}
    }
}

fn identifier(id: &str, field: &str, p: &mut Problems) {
    if id.len() > MAX_ID_BYTES {
        p.too_long(field, MAX_ID_BYTES);
    }
    p.named(field, &json!(id), names::c_identifier(id));
}

fn fully_qualified(name: &Value, field: &str, p: &mut Problems) {
    let whole = name.as_str().unwrap_or_default();
    qualified(whole, field, p);
    if !whole.contains('/') {
        p.invalid(field, name, "a fully qualified name must be a domain and a name separated by a slash");
    }
}

/// The name of a pool of devices: subdomains with slashes between them.
pub fn pool_name(name: &Value, field: &str, p: &mut Problems) {
    let whole = name.as_str().unwrap_or_default();
    if whole.is_empty() {
        return p.required(field, "");
    }
    if whole.len() > MAX_POOL_BYTES {
        p.too_long(field, MAX_POOL_BYTES);
    }
    for part in whole.split('/') {
        p.subdomain(field, &json!(part));
    }
}

fn request(request: &Value, at: &str, p: &mut Problems) {
    p.label(format!("{at}.name"), &request["name"]);
    let (exactly, any) = (&request["exactly"], items(&request["firstAvailable"]).next().is_some());
    match (exactly.is_object(), any) {
        (false, false) => p.required(at, "exactly one of `exactly` or `firstAvailable` is required"),
        (true, true) => {
            let why = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            p.invalid(at, &Value::Null, why);
        }
        (true, false) => device(exactly, &format!("{at}.exactly"), p),
        (false, true) => {
            let at = format!("{at}.firstAvailable");
            set(&request["firstAvailable"], MAX_ALTERNATIVES, &at, p, by_name, |sub, at, p| {
                p.label(format!("{at}.name"), &sub["name"]);
                device(sub, at, p);
            });
        }
    }
}

fn device(request: &Value, at: &str, p: &mut Problems) {
    if text(request, "deviceClassName").is_empty() {
        p.required(format!("{at}.deviceClassName"), "");
    } else {
        p.subdomain(format!("{at}.deviceClassName"), &request["deviceClassName"]);
    }
    list(&request["selectors"], MAX_ITEMS, &format!("{at}.selectors"), p, cel_selector);
    let count = json!(request["count"].as_i64().unwrap_or(0));
    match text(request, "allocationMode") {
        "All" if count != 0 => {
            p.invalid(format!("{at}.count"), &count, "must not be specified when allocationMode is 'All'");
        }
        "All" => {}
        "ExactCount" if count.as_i64() <= Some(0) => {
            p.invalid(format!("{at}.count"), &count, "must be greater than zero");
        }
        "ExactCount" => {}
        _ => {
            let field = format!("{at}.allocationMode");
            p.not_supported(field, &or_empty(&request["allocationMode"]), &["All", "ExactCount"]);
        }
    }
    list(&request["tolerations"], MAX_TOLERATIONS, &format!("{at}.tolerations"), p, toleration);
}

fn toleration(toleration: &Value, at: &str, p: &mut Problems) {
    if !text(toleration, "key").is_empty() {
        p.qualified_name(&format!("{at}.key"), text(toleration, "key"));
    }
    match text(toleration, "operator") {
        "Exists" if !text(toleration, "value").is_empty() => {
            p.invalid(format!("{at}.value"), &toleration["value"], "must be empty for operator `Exists`");
        }
        "Exists" => {}
        "Equal" => label_value(&toleration["value"], &format!("{at}.value"), p),
        "" => p.required(format!("{at}.operator"), ""),
        _ => p.not_supported(format!("{at}.operator"), &toleration["operator"], &["Equal", "Exists"]),
    }
    if !text(toleration, "effect").is_empty() {
        p.one_of(format!("{at}.effect"), &toleration["effect"], EFFECTS);
    }
}

/// What a taint of a device may do.
pub const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

/// A value that a label could have.
pub fn label_value(value: &Value, field: &str, p: &mut Problems) {
    for problem in names::label_value_problems(value.as_str().unwrap_or_default()) {
        p.invalid(field, &or_empty(value), &problem);
    }
}
