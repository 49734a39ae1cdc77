//! Device classes, claims and slices.

use serde_json::{Value, json};

use super::check::{Problems, or_empty, quantity};
use super::{entries, has, items, selectors, text};
use crate::{cel, names, shown};

/// Longest selector of devices, bytes.
const MAX_EXPRESSION_BYTES: usize = 10 << 10;

/// An object of the group, or a change of it.
pub fn validate(plural: &str, subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    if subresource == "status" {
        return;
    }
    match plural {
        "deviceclasses" => class(&new["spec"], p),
        "resourceclaims" => {
            // What may not change is looked at no further.
            if old.is_none_or(|old| old["spec"] == new["spec"]) {
                claim(&new["spec"], "spec", p);
            } else {
                p.invalid_shown("spec", &shown::compact("ResourceClaimSpec", &new["spec"]), "field is immutable");
            }
        }
        "resourceclaimtemplates" => {
            if old.is_none_or(|old| old["spec"] == new["spec"]) {
                claim(&new["spec"]["spec"], "spec.spec", p);
            } else {
                let shown = shown::compact("ResourceClaimTemplateSpec", &new["spec"]);
                p.invalid_shown("spec", &shown, "field is immutable");
            }
        }
        "resourceslices" => slice(&new["spec"], old.map(|o| &o["spec"]), p),
        _ => {}
    }
}

fn class(spec: &Value, p: &mut Problems) {
    for (index, selector) in items(&spec["selectors"]).enumerate() {
        cel_selector(selector, &format!("spec.selectors[{index}]"), p);
    }
    for (index, config) in items(&spec["config"]).enumerate() {
        configuration(config, &format!("spec.config[{index}]"), p);
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
    match cel::Program::compile(text, &device_variables()) {
        Err(why) => p.invalid(field, source, &format!("compilation failed: {why}")),
        Ok(program) if !matches!(program.kind(), cel::Type::Bool | cel::Type::Dyn) => {
            let why = format!("must evaluate to bool or the unknown type, not {}", program.kind());
            p.invalid(field, source, &why);
        }
        Ok(_) => {}
    }
}

/// What a selector of devices may refer to.
pub fn device_variables() -> cel::Env {
    let named = |kind: cel::Type| cel::Type::map(cel::Type::map(kind));
    let fields = [
        ("driver", cel::Type::String),
        ("attributes", named(cel::Type::Dyn)),
        ("capacity", named(cel::Type::Opaque("kubernetes.Quantity"))),
        ("allowMultipleAllocations", cel::Type::Bool),
    ];
    let fields = fields.map(|(name, kind)| (name.to_owned(), kind));
    cel::Env::of([("device", cel::Type::object("kubernetes.DRADevice", fields))])
}

fn configuration(config: &Value, at: &str, p: &mut Problems) {
    let opaque = &config["opaque"];
    if !opaque.is_object() {
        return p.required(format!("{at}.opaque"), "");
    }
    driver(&opaque["driver"], &format!("{at}.opaque.driver"), p);
    match &opaque["parameters"] {
        Value::Null => p.required(format!("{at}.opaque.parameters"), ""),
        Value::Object(_) => {}
        _ => {
            let why = "must be a valid JSON object";
            p.invalid(format!("{at}.opaque.parameters"), &json!("<value omitted>"), why);
        }
    }
}

fn driver(name: &Value, field: &str, p: &mut Problems) {
    if name.as_str().unwrap_or_default().is_empty() {
        return p.required(field, "");
    }
    p.subdomain(field, name);
}

fn claim(spec: &Value, path: &str, p: &mut Problems) {
    let devices = &spec["devices"];
    let at = format!("{path}.devices");
    let mut names: Vec<String> = Vec::new();
    for (index, request) in items(&devices["requests"]).enumerate() {
        let name = text(request, "name").to_owned();
        if names.contains(&name) {
            p.duplicate(format!("{at}.requests[{index}]"), &request["name"]);
        }
        self::request(request, &format!("{at}.requests[{index}]"), p);
        names.push(name);
    }
    let mut known = names.clone();
    for request in items(&devices["requests"]) {
        let subs = items(&request["firstAvailable"]);
        known.extend(subs.map(|sub| format!("{}/{}", text(request, "name"), text(sub, "name"))));
    }
    for (index, constraint) in items(&devices["constraints"]).enumerate() {
        let at = format!("{at}.constraints[{index}]");
        references(&constraint["requests"], &known, &format!("{at}.requests"), p);
        match (has(constraint, "matchAttribute"), has(constraint, "distinctAttribute")) {
            (true, _) => qualified(&constraint["matchAttribute"], &format!("{at}.matchAttribute"), p),
            (_, true) => qualified(&constraint["distinctAttribute"], &format!("{at}.distinctAttribute"), p),
            _ => p.required(format!("{at}.matchAttribute"), ""),
        }
    }
    for (index, config) in items(&devices["config"]).enumerate() {
        let at = format!("{at}.config[{index}]");
        references(&config["requests"], &known, &format!("{at}.requests"), p);
        configuration(config, &at, p);
    }
}

fn references(list: &Value, known: &[String], path: &str, p: &mut Problems) {
    for (index, name) in items(list).enumerate() {
        if !known.iter().any(|k| name == k) {
            let why =
                "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
            p.invalid(format!("{path}[{index}]"), name, why);
        }
        if items(list).take(index).any(|other| other == name) {
            p.duplicate(format!("{path}[{index}]"), name);
        }
    }
}

fn qualified(name: &Value, field: &str, p: &mut Problems) {
    let whole = name.as_str().unwrap_or_default();
    match whole.split_once('/') {
        Some((domain, id)) => {
            p.named(field, name, names::dns_subdomain(domain));
            p.named(field, name, names::c_identifier(id));
        }
        None => p.invalid(field, name, "a fully qualified name must be a domain and a name separated by a slash"),
    }
}

fn request(request: &Value, at: &str, p: &mut Problems) {
    label_name(request, at, p);
    let (exactly, any) = (&request["exactly"], items(&request["firstAvailable"]).next().is_some());
    match (exactly.is_object(), any) {
        (false, false) => p.required(at, "exactly one of `exactly` or `firstAvailable` is required"),
        (true, true) => {
            let why = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            p.invalid_shown(at, &shown::compact("DeviceRequest", request), why);
        }
        (true, false) => device(exactly, &format!("{at}.exactly"), p),
        (false, true) => {
            for (index, sub) in items(&request["firstAvailable"]).enumerate() {
                let at = format!("{at}.firstAvailable[{index}]");
                label_name(sub, &at, p);
                device(sub, &at, p);
            }
        }
    }
}

fn label_name(holder: &Value, at: &str, p: &mut Problems) {
    if text(holder, "name").is_empty() {
        p.required(format!("{at}.name"), "");
    } else {
        p.label(format!("{at}.name"), &holder["name"]);
    }
}

fn device(request: &Value, at: &str, p: &mut Problems) {
    if text(request, "deviceClassName").is_empty() {
        p.required(format!("{at}.deviceClassName"), "");
    } else {
        p.subdomain(format!("{at}.deviceClassName"), &request["deviceClassName"]);
    }
    for (index, selector) in items(&request["selectors"]).enumerate() {
        cel_selector(selector, &format!("{at}.selectors[{index}]"), p);
    }
    match text(request, "allocationMode") {
        "All" => {
            if request["count"].as_i64().unwrap_or(0) != 0 {
                let why = "must not be specified when allocationMode is 'All'";
                p.invalid(format!("{at}.count"), &request["count"], why);
            }
        }
        "ExactCount" => {
            if request["count"].as_i64().unwrap_or(0) <= 0 {
                p.invalid(
                    format!("{at}.count"),
                    &json!(request["count"].as_i64().unwrap_or(0)),
                    "must be greater than zero",
                );
            }
        }
        _ => {
            let field = format!("{at}.allocationMode");
            p.not_supported(field, &or_empty(&request["allocationMode"]), &["All", "ExactCount"]);
        }
    }
}

fn slice(spec: &Value, old: Option<&Value>, p: &mut Problems) {
    driver(&spec["driver"], "spec.driver", p);
    let pool = &spec["pool"];
    if text(pool, "name").is_empty() {
        p.required("spec.pool.name", "");
    } else {
        for part in text(pool, "name").split('/') {
            p.named("spec.pool.name", &json!(part), names::dns_subdomain(part));
        }
    }
    if pool["resourceSliceCount"].as_i64().unwrap_or(0) <= 0 {
        let shown = json!(pool["resourceSliceCount"].as_i64().unwrap_or(0));
        p.invalid("spec.pool.resourceSliceCount", &shown, "must be greater than zero");
    }
    if pool["generation"].as_i64().is_some_and(|n| n < 0) {
        p.invalid("spec.pool.generation", &pool["generation"], "must be greater than or equal to zero");
    }
    where_it_is(spec, p);
    let mut seen: Vec<&str> = Vec::new();
    for (index, device) in items(&spec["devices"]).enumerate() {
        let at = format!("spec.devices[{index}]");
        let name = text(device, "name");
        if seen.contains(&name) {
            p.duplicate(&at, &device["name"]);
        }
        seen.push(name);
        slice_device(device, &at, p);
    }
    let Some(old) = old else { return };
    p.immutable("spec.pool.name", &spec["pool"]["name"], &old["pool"]["name"]);
    for field in ["driver", "nodeName"] {
        p.immutable(format!("spec.{field}"), &spec[field], &old[field]);
    }
}

fn where_it_is(spec: &Value, p: &mut Problems) {
    let set: Vec<&str> = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"]
        .into_iter()
        .filter(|field| has(spec, field) && spec[*field] != false && spec[*field] != "")
        .collect();
    let why = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match set[..] {
        [] => p.required("spec", why),
        [_] => {}
        _ => {
            let list: Vec<String> = set.iter().map(|field| format!("`{field}`")).collect();
            let shown = json!(format!("{{{}}}", list.join(", ")));
            p.invalid("spec", &shown, &format!("{why}, but multiple fields are set"));
        }
    }
    if !text(spec, "nodeName").is_empty() {
        p.subdomain("spec.nodeName", &spec["nodeName"]);
    }
    if spec["nodeSelector"].is_object() {
        selectors::node_selector(&spec["nodeSelector"], "spec.nodeSelector", p);
    }
}

fn slice_device(device: &Value, at: &str, p: &mut Problems) {
    label_name(device, at, p);
    for (name, attribute) in entries(&device["attributes"]) {
        attribute_name(name, &format!("{at}.attributes"), p);
        let kinds = ["int", "bool", "string", "version", "ints", "bools", "strings", "versions"];
        let count = kinds.iter().filter(|kind| has(attribute, kind)).count();
        let field = format!("{at}.attributes[{name}]");
        if count != 1 {
            let shown = shown::compact("DeviceAttribute", attribute);
            let why = "exactly one value must be specified";
            if count == 0 {
                p.required(&field, why);
            } else {
                p.invalid_shown(&field, &shown, why);
            }
        }
        if text(attribute, "string").len() > 64 {
            p.too_long(format!("{field}.string"), 64);
        }
    }
    for (name, capacity) in entries(&device["capacity"]) {
        attribute_name(name, &format!("{at}.capacity"), p);
        let _ = quantity(&capacity["value"]);
    }
}

fn attribute_name(name: &str, field: &str, p: &mut Problems) {
    if name.is_empty() {
        return p.required(field, "name required");
    }
    let (domain, id) = name.split_once('/').map_or((None, name), |(d, i)| (Some(d), i));
    if let Some(domain) = domain {
        p.named(field, &json!(domain), names::dns_subdomain(domain));
    }
    p.named(field, &json!(id), names::c_identifier(id));
}
