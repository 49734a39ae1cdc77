//! Small kinds: disruption budgets, priority classes, leases, runtime classes, the status of admission policies.

use serde_json::{Value, json};

use super::check::Problems;
use super::{has, meta, selectors, text};
use crate::shown;

/// Highest priority that users may give.
const MAX_USER_PRIORITY: i64 = 1_000_000_000;
/// Classes that the system has, with their values.
const SYSTEM_CLASSES: &[(&str, i64)] =
    &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

/// An object of one of the groups, or a change of it.
pub fn validate(plural: &str, subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    match plural {
        "poddisruptionbudgets" => budget(subresource, new, p),
        "priorityclasses" => priority_class(new, old, p),
        "leases" => lease(new, p),
        "leasecandidates" => lease_candidate(new, old, p),
        "runtimeclasses" => runtime_class(new, old, p),
        _ => {}
    }
}

/// What was found when the expressions of an admission policy were checked.
pub fn checked(status: &Value, p: &mut Problems) {
    for (index, warning) in super::items(&status["typeChecking"]["expressionWarnings"]).enumerate() {
        let at = format!("status.typeChecking.expressionWarnings[{index}]");
        p.present(warning, "warning", &at);
        if text(warning, "fieldRef").trim().is_empty() {
            p.required(format!("{at}.fieldRef"), "");
        }
    }
    meta::conditions(&status["conditions"], "status.conditions", p);
}

fn budget(subresource: &str, new: &Value, p: &mut Problems) {
    if subresource == "status" {
        meta::conditions(&new["status"]["conditions"], "status.conditions", p);
        for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
            p.not_negative(format!("status.{field}"), &new["status"][field]);
        }
        return;
    }
    let spec = &new["spec"];
    if has(spec, "minAvailable") && has(spec, "maxUnavailable") {
        let why = "minAvailable and maxUnavailable cannot be both set";
        p.invalid_shown("spec", &shown::compact("PDBSpec", spec), why);
    }
    for field in ["minAvailable", "maxUnavailable"] {
        if has(spec, field) {
            p.int_or_percent(&format!("spec.{field}"), &spec[field]);
            p.at_most_100_percent(&format!("spec.{field}"), &spec[field]);
        }
    }
    if spec["selector"].is_object() {
        selectors::label_selector(&spec["selector"], "spec.selector", p);
    }
    let policies = ["AlwaysAllow", "IfHealthyBudget"];
    p.one_of_if_set("spec.unhealthyPodEvictionPolicy", &spec["unhealthyPodEvictionPolicy"], &policies);
}

fn priority_class(new: &Value, old: Option<&Value>, p: &mut Problems) {
    let (name, value) = (text(&new["metadata"], "name"), new["value"].as_i64().unwrap_or(0));
    if let Some(old) = old {
        if old["value"] != new["value"] {
            p.forbidden("value", "may not be changed in an update.");
        }
        p.immutable("preemptionPolicy", &new["preemptionPolicy"], &old["preemptionPolicy"]);
        return;
    }
    if name.starts_with("system-") {
        let prefix = "priority class names with 'system-' prefix are reserved for system use only. error: ";
        match SYSTEM_CLASSES.iter().find(|(n, _)| *n == name) {
            None => p.forbidden("metadata.name", &format!("{prefix}{name} is not a known system priority class")),
            Some((_, expected)) if *expected != value => {
                p.forbidden("metadata.name", &format!("{prefix}value of {name} PriorityClass must be {expected}"));
            }
            Some(_) if new["globalDefault"] == true => {
                p.forbidden("metadata.name", &format!("{prefix}globalDefault of {name} PriorityClass must be false"));
            }
            Some(_) => {}
        }
    } else if value > MAX_USER_PRIORITY {
        let why = format!("maximum allowed value of a user defined priority is {MAX_USER_PRIORITY}");
        p.forbidden("value", &why);
    }
    match new["preemptionPolicy"].as_str() {
        Some("") => p.required("preemptionPolicy", ""),
        _ => p.one_of_if_set("preemptionPolicy", &new["preemptionPolicy"], &["PreemptLowerPriority", "Never"]),
    }
}

fn lease(new: &Value, p: &mut Problems) {
    let spec = &new["spec"];
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|n| n <= 0) {
        p.invalid("spec.leaseDurationSeconds", &spec["leaseDurationSeconds"], "must be greater than 0");
    }
    p.not_negative("spec.leaseTransitions", &spec["leaseTransitions"]);
    if has(spec, "strategy") {
        lease_strategy(&spec["strategy"], "spec.strategy", p);
    }
    if !text(spec, "preferredHolder").is_empty() && text(spec, "strategy").is_empty() {
        p.forbidden("spec.preferredHolder", "may only be specified if `strategy` is defined");
    }
}

/// By what rule a leader is chosen: a known one or one of a domain. The field is named twice.
fn lease_strategy(strategy: &Value, at: &str, p: &mut Problems) {
    let (name, field) = (strategy.as_str().unwrap_or_default(), format!("{at}.strategy"));
    if !name.contains('/') {
        p.one_of(field, strategy, &["OldestEmulationVersion"]);
    } else {
        p.qualified_name(&field, name);
    }
}

/// A candidate for a lease says which version it is.
fn lease_candidate(new: &Value, old: Option<&Value>, p: &mut Problems) {
    let spec = &new["spec"];
    p.present(spec, "leaseName", "spec");
    let version = |field: &str, p: &mut Problems| {
        let parsed = semantic_version(text(spec, field));
        if parsed.is_none() && !text(spec, field).is_empty() {
            p.invalid(format!("spec.{field}"), &spec[field], "must be a valid semantic version");
        }
        parsed
    };
    let emulation = version("emulationVersion", p);
    p.present(spec, "binaryVersion", "spec");
    let binary = version("binaryVersion", p);
    let given = !text(spec, "binaryVersion").is_empty() && !text(spec, "emulationVersion").is_empty();
    if given && binary.unwrap_or_default() < emulation.unwrap_or_default() {
        let why = "must be greater than or equal to `emulationVersion`";
        p.invalid("spec.binaryVersion", &spec["binaryVersion"], why);
    }
    if p.present(spec, "strategy", "spec") {
        let oldest = text(spec, "strategy") == "OldestEmulationVersion";
        if oldest && emulation.unwrap_or_default() == (0, 0, 0) {
            let why = "must be specified when `strategy` is 'OldestEmulationVersion'";
            p.required("spec.emulationVersion", why);
        }
        lease_strategy(&spec["strategy"], "spec.strategy", p);
    }
    if let Some(old) = old {
        p.immutable("spec.leaseName", &spec["leaseName"], &old["spec"]["leaseName"]);
    }
}

/// The numbers of `1.2.3-rc.1+build`.
pub fn semantic_version(text: &str) -> Option<(u64, u64, u64)> {
    let good = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let (rest, build) = text.split_once('+').map_or((text, None), |(r, b)| (r, Some(b)));
    let (core, before) = rest.split_once('-').map_or((rest, None), |(r, b)| (r, Some(b)));
    let plain = |part: &str| part == "0" || !part.starts_with('0');
    let is_number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    // A number of what came before the version has no zeros in front either.
    let before_good = before.is_none_or(|parts| parts.split('.').all(|p| good(p) && (plain(p) || !is_number(p))));
    let build_good = build.is_none_or(|parts| parts.split('.').all(good));
    let number = |part: &str| plain(part).then(|| part.parse().ok()).flatten();
    let numbers: Vec<&str> = core.split('.').collect();
    let [major, minor, patch] = numbers[..] else { return None };
    let digits = numbers.iter().all(|n| !n.is_empty() && is_number(n));
    (digits && build_good && before_good).then_some(())?;
    Some((number(major)?, number(minor)?, number(patch)?))
}

fn runtime_class(new: &Value, old: Option<&Value>, p: &mut Problems) {
    if text(new, "handler").is_empty() {
        p.required("handler", "");
    } else {
        p.label("handler", &new["handler"]);
    }
    if new["overhead"].is_object() {
        let amounts = json!({"limits": new["overhead"]["podFixed"]});
        super::container::resources(&amounts, "overhead", None, p);
    }
    let scheduling = &new["scheduling"];
    meta::labels(&scheduling["nodeSelector"], "scheduling.nodeSelector", p);
    selectors::tolerations(&scheduling["tolerations"], "scheduling.tolerations", p);
    for (index, toleration) in super::items(&scheduling["tolerations"]).enumerate() {
        if super::items(&scheduling["tolerations"]).take(index).any(|other| other == toleration) {
            let shown = shown::compact("Toleration", toleration);
            p.duplicate_shown(format!("scheduling.tolerations[{index}]"), &shown);
        }
    }
    if let Some(old) = old {
        p.immutable("handler", &new["handler"], &old["handler"]);
    }
}
