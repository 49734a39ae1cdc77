//! Slices: the devices that a driver has to give.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::check::{Problems, or_empty, quantity};
use super::devices::{self, by_name, list, set};
use super::volumes::csi_driver_name as driver;
use super::{entries, has, items, policies, selectors, text};
use crate::quantity::Quantity;
use crate::shown;

/// Most devices of a slice.
const MAX_DEVICES: usize = 128;
/// The same, of devices with taints or counters.
const MAX_RICH_DEVICES: usize = 64;
/// Most attributes and capacities of a device.
const MAX_PROPERTIES: usize = 32;
/// Longest text of an attribute.
const MAX_VALUE_BYTES: usize = 64;
/// Most sets of counters.
const MAX_COUNTER_SETS: usize = 8;
/// Most counters of a set.
const MAX_COUNTERS: usize = 32;
/// Most sets of counters that a device takes of.
const MAX_CONSUMED: usize = 2;
/// Most taints of a device.
const MAX_TAINTS: usize = 16;
/// Most conditions of binding.
const MAX_BINDING_CONDITIONS: usize = 4;
/// Most amounts that may be asked for.
const MAX_AMOUNTS: usize = 10;

const ONE_PLACE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
const ONE_PLACE_OF_DEVICE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when \
                                   `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
const UNSET_OR_TRUE: &str = "must be either unset or set to true";

/// A slice, or a change of it.
pub fn slice(spec: &Value, old: Option<&Value>, p: &mut Problems) {
    driver(&spec["driver"], "spec.driver", p);
    let pool = &spec["pool"];
    devices::pool_name(&pool["name"], "spec.pool.name", p);
    if pool["resourceSliceCount"].as_i64().unwrap_or(0) <= 0 {
        let shown = json!(pool["resourceSliceCount"].as_i64().unwrap_or(0));
        p.invalid("spec.pool.resourceSliceCount", &shown, "must be greater than zero");
    }
    if pool["generation"].as_i64().is_some_and(|n| n < 0) {
        p.invalid("spec.pool.generation", &pool["generation"], "must be greater than or equal to zero");
    }
    if let Some(old) = old {
        p.immutable("spec.pool.name", &pool["name"], &old["pool"]["name"]);
        for field in ["driver", "nodeName"] {
            p.immutable(format!("spec.{field}"), &spec[field], &old[field]);
        }
    }
    where_it_is(spec, p);
    if has(spec, "sharedCounters") && has(spec, "devices") {
        p.invalid("spec", &json!(""), "only one of `sharedCounters` or `devices` is allowed");
    }
    let rich = |device: &Value| ["taints", "consumesCounters"].iter().any(|f| items(&device[*f]).next().is_some());
    let most = if items(&spec["devices"]).any(rich) { MAX_RICH_DEVICES } else { MAX_DEVICES };
    set(&spec["devices"], most, "spec.devices", p, by_name, |new, at, p| {
        let before = old.and_then(|old| items(&old["devices"]).find(|d| text(d, "name") == text(new, "name")));
        device(new, before, spec["perDeviceNodeSelection"] == true, at, p);
    });
    set(&spec["sharedCounters"], MAX_COUNTER_SETS, "spec.sharedCounters", p, by_name, |set, at, p| {
        counters(set, "name", at, p);
    });
}

/// Values that only true is allowed of; whether they are true.
fn only_true(holder: &Value, key: &str, at: &str, p: &mut Problems) -> bool {
    if holder[key] == false {
        p.invalid(format!("{at}.{key}"), &holder[key], UNSET_OR_TRUE);
    }
    holder[key] == true
}

fn where_it_is(spec: &Value, p: &mut Problems) {
    let mut set = Vec::new();
    if has(spec, "nodeName") {
        if text(spec, "nodeName").is_empty() {
            p.invalid("spec.nodeName", &spec["nodeName"], "must be either unset or set to a non-empty string");
        } else {
            set.push("`nodeName`");
            p.subdomain("spec.nodeName", &spec["nodeName"]);
        }
    }
    if spec["nodeSelector"].is_object() {
        set.push("`nodeSelector`");
        selectors::node_selector(&spec["nodeSelector"], "spec.nodeSelector", p);
        let terms = &spec["nodeSelector"]["nodeSelectorTerms"];
        if items(terms).count() != 1 {
            let shown: Vec<String> = items(terms).map(|term| shown::compact("NodeSelectorTerm", term)).collect();
            let shown = if terms.is_array() { format!("[{}]", shown.join(",")) } else { "null".to_owned() };
            p.invalid_shown("spec.nodeSelector.nodeSelectorTerms", &shown, "must have exactly one node selector term");
        }
    }
    if only_true(spec, "allNodes", "spec", p) {
        set.push("`allNodes`");
    }
    if only_true(spec, "perDeviceNodeSelection", "spec", p) {
        set.push("`perDeviceNodeSelection`");
    }
    match set.len() {
        0 => p.required("spec", ONE_PLACE),
        1 => {}
        _ => {
            let shown = json!(format!("{{{}}}", set.join(", ")));
            p.invalid("spec", &shown, &format!("{ONE_PLACE}, but multiple fields are set"));
        }
    }
}

fn device(device: &Value, before: Option<&Value>, own_place: bool, at: &str, p: &mut Problems) {
    p.label(format!("{at}.name"), &device["name"]);
    let count = entries(&device["attributes"]).count() + entries(&device["capacity"]).count();
    if count > MAX_PROPERTIES {
        let why = format!("the total number of attributes and capacities must not exceed {MAX_PROPERTIES}");
        p.invalid(at, &json!(count), &why);
    }
    for (name, value) in entries(&device["attributes"]) {
        devices::qualified(name, &format!("{at}.attributes"), p);
        attribute(value, &format!("{at}.attributes[{name}]"), p);
    }
    for (name, value) in entries(&device["capacity"]) {
        devices::qualified(name, &format!("{at}.capacity"), p);
        let at = format!("{at}.capacity[{name}].requestPolicy");
        if !value["requestPolicy"].is_null() && device["allowMultipleAllocations"] != true {
            p.forbidden(at, "allowMultipleAllocations must be true");
        } else if !value["requestPolicy"].is_null() {
            request_policy(&value["value"], &value["requestPolicy"], &at, p);
        }
    }
    if before.is_none_or(|old| old["taints"] != device["taints"]) {
        list(&device["taints"], MAX_TAINTS, &format!("{at}.taints"), p, taint);
    }
    let of_set = |item: &Value| or_empty(&item["counterSet"]);
    set(&device["consumesCounters"], MAX_CONSUMED, &format!("{at}.consumesCounters"), p, of_set, |taken, at, p| {
        counters(taken, "counterSet", at, p);
    });
    if own_place {
        place(device, at, p);
    } else if ["nodeName", "nodeSelector", "allNodes"].iter().any(|field| has(device, field)) {
        let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in \
                   the ResourceSlice spec";
        p.invalid(at, &Value::Null, why);
    }
    binding(device, at, p);
}

fn place(device: &Value, at: &str, p: &mut Problems) {
    let mut set = Vec::new();
    if has(device, "nodeName") {
        if text(device, "nodeName").is_empty() {
            p.invalid(format!("{at}.nodeName"), &device["nodeName"], "must not be empty");
        } else {
            set.push("`nodeName`");
            p.subdomain(format!("{at}.nodeName"), &device["nodeName"]);
        }
    }
    if device["nodeSelector"].is_object() {
        set.push("`nodeSelector`");
        selectors::node_selector(&device["nodeSelector"], &format!("{at}.nodeSelector"), p);
    }
    if only_true(device, "allNodes", at, p) {
        set.push("`allNodes`");
    }
    match set.len() {
        0 => p.required(at, ONE_PLACE_OF_DEVICE),
        1 => {}
        _ => p.invalid(at, &json!(format!("{{{}}}", set.join(", "))), ONE_PLACE_OF_DEVICE),
    }
}

fn attribute(attribute: &Value, at: &str, p: &mut Problems) {
    let kinds = ["int", "bool", "string", "version", "ints", "bools", "strings", "versions"];
    if text(attribute, "string").len() > MAX_VALUE_BYTES {
        p.too_long(format!("{at}.string"), MAX_VALUE_BYTES);
    }
    if has(attribute, "version") {
        let field = format!("{at}.version");
        if policies::semantic_version(text(attribute, "version")).is_none() {
            let why = "must be a string compatible with semver.org spec 2.0.0";
            p.invalid(field.as_str(), &attribute["version"], why);
        }
        if text(attribute, "version").len() > MAX_VALUE_BYTES {
            p.too_long(field, MAX_VALUE_BYTES);
        }
    }
    let why = "exactly one value must be specified";
    match kinds.iter().filter(|kind| has(attribute, kind)).count() {
        0 => p.invalid(at, &json!(""), why),
        1 => {}
        _ => p.invalid_shown(at, &shown::compact("DeviceAttribute", attribute), why),
    }
}

/// A set of counters, or what is taken of one.
fn counters(holder: &Value, name: &str, at: &str, p: &mut Problems) {
    if p.present(holder, name, at) {
        p.label(format!("{at}.{name}"), &holder[name]);
    }
    let (field, count) = (format!("{at}.counters"), entries(&holder["counters"]).count());
    if count == 0 {
        p.required(field, "");
    } else if count > MAX_COUNTERS {
        p.too_many(field, count, MAX_COUNTERS);
    } else {
        for (name, _) in entries(&holder["counters"]) {
            p.label(format!("{field}[{name}]"), &json!(name));
        }
    }
}

fn taint(taint: &Value, at: &str, p: &mut Problems) {
    p.qualified_name(&format!("{at}.key"), text(taint, "key"));
    devices::label_value(&taint["value"], &format!("{at}.value"), p);
    if p.present(taint, "effect", at) {
        p.one_of(format!("{at}.effect"), &taint["effect"], devices::EFFECTS);
    }
}

/// What must be so before a device is bound, and what must not.
pub fn binding(holder: &Value, at: &str, p: &mut Problems) {
    let (good, bad) = (&holder["bindingConditions"], &holder["bindingFailureConditions"]);
    let (good_at, bad_at) = (format!("{at}.bindingConditions"), format!("{at}.bindingFailureConditions"));
    for (names, at) in [(good, &good_at), (bad, &bad_at)] {
        list(names, MAX_BINDING_CONDITIONS, at, p, |name, at, p| {
            p.qualified_name(at, name.as_str().unwrap_or_default());
        });
        let mut seen = BTreeSet::new();
        for (index, name) in items(names).enumerate() {
            if !seen.insert(name.as_str()) {
                p.duplicate(format!("{at}[{index}]"), name);
            }
        }
    }
    for (index, name) in items(bad).enumerate() {
        if items(good).any(|other| other == name) {
            let why = "bindingFailureConditions must not overlap with bindingConditions";
            p.invalid(format!("{bad_at}[{index}]"), name, why);
        }
    }
    match (items(good).next().is_some(), items(bad).next().is_some()) {
        (false, true) => {
            p.invalid_shown(
                good_at,
                &good.to_string(),
                "bindingConditions are required to use bindingFailureConditions",
            );
        }
        (true, false) => {
            p.invalid_shown(bad_at, &bad.to_string(), "bindingFailureConditions are required to use bindingConditions");
        }
        _ => {}
    }
}

/// Which amounts of a capacity may be asked for.
fn request_policy(whole: &Value, policy: &Value, at: &str, p: &mut Problems) {
    let whole = quantity(whole).unwrap_or_default();
    let chosen = items(&policy["validValues"]).next().is_some();
    let range = &policy["validRange"];
    match (chosen, range.is_null()) {
        (true, false) => {
            let why = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
            p.forbidden(at, why);
        }
        (true, true) => match quantity(&policy["default"]) {
            None => p.required(format!("{at}.default"), "required when validValues is defined"),
            Some(default) => amounts(&default, &whole, &policy["validValues"], &format!("{at}.validValues"), p),
        },
        (false, false) => match quantity(&policy["default"]) {
            None => p.required(format!("{at}.default"), "required when validRange is defined"),
            Some(default) => amount_range(&default, &whole, range, &format!("{at}.validRange"), p),
        },
        (false, true) => {}
    }
}

fn amounts(default: &Quantity, whole: &Quantity, given: &Value, at: &str, p: &mut Problems) {
    let amounts: Vec<Quantity> = items(given).map(|value| quantity(value).unwrap_or_default()).collect();
    for (index, pair) in amounts.windows(2).enumerate() {
        if pair[0] > pair[1] {
            let field = format!("{at}[{}]", index + 1);
            p.invalid(field, &json!(pair[1].to_string()), "values must be sorted in ascending order");
        }
    }
    let key = |value: &Value| json!(quantity(value).unwrap_or_default().units().to_string());
    set(given, MAX_AMOUNTS, at, p, key, |value, at, p| {
        let amount = quantity(value).unwrap_or_default();
        if amount > *whole {
            p.invalid(at, &json!(amount.to_string()), &format!("option is larger than capacity value: {whole}"));
        }
    });
    if amounts.len() > MAX_AMOUNTS || !amounts.contains(default) {
        let why = "default value is not valid according to the requestPolicy";
        p.invalid(at, &json!(default.to_string()), why);
    }
}

fn amount_range(default: &Quantity, whole: &Quantity, range: &Value, at: &str, p: &mut Problems) {
    let Some(min) = quantity(&range["min"]) else {
        return p.required(format!("{at}.min"), "required when validRange is defined");
    };
    let mut told = |bad: bool, field: &str, value: &Quantity, why: String| {
        if bad {
            p.invalid(format!("{at}.{field}"), &json!(value.to_string()), &why);
        }
    };
    told(min > *whole, "min", &min, format!("min is larger than capacity value: {whole}"));
    told(*default < min, "min", default, format!("default is less than min: {min}"));
    let max = quantity(&range["max"]);
    if let Some(max) = &max {
        told(min > *max, "max", &min, format!("min is larger than max: {max}"));
        told(max > whole, "max", max, format!("max is larger than capacity value: {whole}"));
        told(default > max, "max", default, format!("default is more than max: {max}"));
    }
    if let Some(step) = quantity(&range["step"]) {
        let first = min + step;
        let why = format!("one step {first} is larger than capacity value: {whole}");
        told(first > *whole, "step", &step, why);
        for value in [Some(default), max.as_ref()].into_iter().flatten() {
            let why = format!("value is not a multiple of a given step ({step}) from ({min})");
            let off = step.units() != 0 && (value.units() - min.units()) % step.units() != 0;
            told(off, "step", value, why);
        }
    }
}
