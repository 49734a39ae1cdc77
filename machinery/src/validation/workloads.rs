//! Groups of pods that are scheduled together: workloads, their groups, and the group that a pod names (KEP-4671). Rules and
//! messages are those of v1.36, with the gates of topology, shared claims and preemption of groups closed.

use serde_json::Value;

use super::check::Problems;
use super::{has, items, meta, text};
use crate::{names, shown};

/// Most templates of a workload.
const MAX_TEMPLATES: usize = 8;

/// An object of the group, or a change of it.
pub fn validate(plural: &str, subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    match (plural, old) {
        ("workloads", None) => workload(&new["spec"], p),
        ("workloads", Some(old)) => same_workload(&new["spec"], &old["spec"], p),
        ("podgroups", None) => {
            if has(&new["spec"], "podGroupTemplateRef") {
                template_reference(&new["spec"]["podGroupTemplateRef"], "spec.podGroupTemplateRef", p);
            }
            policy(&new["spec"]["schedulingPolicy"], "spec.schedulingPolicy", p);
        }
        ("podgroups", Some(_)) if subresource == "status" => {
            meta::conditions(&new["status"]["conditions"], "status.conditions", p);
        }
        ("podgroups", Some(old)) => same_group(&new["spec"], &old["spec"], p),
        _ => {}
    }
}

/// The group that a pod names, at a path: the kind of group is chosen by which field is set, and there is one.
pub fn scheduling_group(group: &Value, at: &str, p: &mut Problems) {
    match group["podGroupName"].as_str() {
        Some(_) => p.subdomain(format!("{at}.podGroupName"), &group["podGroupName"]),
        None => p.invalid(at, &"".into(), "must specify one of: `podGroupName`"),
    }
}

fn workload(spec: &Value, p: &mut Problems) {
    if spec["controllerRef"].is_object() {
        controller(&spec["controllerRef"], "spec.controllerRef", p);
    }
    let count = items(&spec["podGroupTemplates"]).count();
    match count {
        0 => p.required("spec.podGroupTemplates", ""),
        count if count > MAX_TEMPLATES => p.too_many("spec.podGroupTemplates", count, MAX_TEMPLATES),
        _ => {}
    }
    if count > MAX_TEMPLATES {
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, template) in items(&spec["podGroupTemplates"]).enumerate() {
        let at = format!("spec.podGroupTemplates[{index}]");
        let name = text(template, "name");
        if seen.contains(&name) {
            p.duplicate_shown(&at, &shown::compact("PodGroupTemplate", template));
        }
        seen.push(name);
        if p.present(template, "name", &at) {
            p.label(format!("{at}.name"), &template["name"]);
        }
        policy(&template["schedulingPolicy"], &format!("{at}.schedulingPolicy"), p);
    }
}

/// What a workload was made from: a group of the API, a kind and a name.
fn controller(reference: &Value, at: &str, p: &mut Problems) {
    if !text(reference, "apiGroup").is_empty() {
        p.subdomain(format!("{at}.apiGroup"), &reference["apiGroup"]);
    }
    for key in ["kind", "name"] {
        if p.present(reference, key, at) {
            p.named(format!("{at}.{key}"), &reference[key], names::path_segment(text(reference, key)));
        }
    }
}

/// The template that a group was made from.
fn template_reference(reference: &Value, at: &str, p: &mut Problems) {
    if !reference["workload"].is_object() {
        p.invalid(at, &"".into(), "must specify one of: `workload`");
        return;
    }
    let (workload, at) = (&reference["workload"], format!("{at}.workload"));
    if p.present(workload, "workloadName", &at) {
        p.subdomain(format!("{at}.workloadName"), &workload["workloadName"]);
    }
    if p.present(workload, "podGroupTemplateName", &at) {
        p.label(format!("{at}.podGroupTemplateName"), &workload["podGroupTemplateName"]);
    }
}

/// How the pods of a group are scheduled: in one of two ways.
fn policy(policy: &Value, at: &str, p: &mut Problems) {
    match (has(policy, "basic"), has(policy, "gang")) {
        (false, false) => p.invalid(at, &"".into(), "must specify one of: `basic`, `gang`"),
        (true, true) => p.invalid(at, &"{basic, gang}".into(), "must specify exactly one of: `basic`, `gang`"),
        _ => {}
    }
    if !has(policy, "gang") {
        return;
    }
    let (count, at) = (&policy["gang"]["minCount"], format!("{at}.gang.minCount"));
    match count.as_i64().unwrap_or(0) {
        0 => p.required(at, ""),
        less if less < 0 => p.invalid(at, count, "must be greater than or equal to 1"),
        _ => {}
    }
}

fn same_workload(new: &Value, old: &Value, p: &mut Problems) {
    if new["controllerRef"] != old["controllerRef"] {
        let shown = match &new["controllerRef"] {
            Value::Null => "null".into(),
            reference => shown::compact("TypedLocalReference", reference),
        };
        p.invalid_shown("spec.controllerRef", &shown, "field is immutable");
    }
    if new["podGroupTemplates"] != old["podGroupTemplates"] {
        let each: Vec<String> =
            items(&new["podGroupTemplates"]).map(|template| shown::compact("PodGroupTemplate", template)).collect();
        p.invalid_shown("spec.podGroupTemplates", &format!("[{}]", each.join(",")), "field is immutable");
    }
}

fn same_group(new: &Value, old: &Value, p: &mut Problems) {
    for (field, kind) in [
        ("podGroupTemplateRef", "PodGroupTemplateReference"),
        ("schedulingPolicy", "PodGroupSchedulingPolicy"),
        ("schedulingConstraints", "PodGroupSchedulingConstraints"),
    ] {
        if new[field] != old[field] {
            let shown = if has(new, field) { shown::compact(kind, &new[field]) } else { "null".into() };
            p.invalid_shown(format!("spec.{field}"), &shown, "field is immutable");
        }
    }
    for field in ["resourceClaims", "disruptionMode", "priorityClassName", "priority"] {
        p.immutable(format!("spec.{field}"), &new[field], &old[field]);
    }
}
