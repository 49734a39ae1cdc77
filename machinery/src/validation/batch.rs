//! Jobs and CronJobs.

use serde_json::{Value, json};

use super::apps::shown_selector;
use super::check::{Problems, or_empty};
use super::{has, items, meta, pod, selectors, text};
use crate::names;
use crate::selector::LabelSelector;
use crate::shown;

/// Longest name of a CronJob: eleven characters are added for its Jobs.
const CRON_JOB_NAME_MAX: usize = 52;
/// Most completions of an indexed Job with a limit of failed indexes.
const MAX_FAILED_INDEXES: i64 = 100_000;
/// From how many completions on a limit for each index goes with few failed indexes and few pods at once, and how few.
const MANY_COMPLETIONS: i64 = 100_000;
const FEW_PODS: i64 = 10_000;
/// Longest name of who manages a Job, and longest list of indexes of a rule, bytes.
const MAX_MANAGED_BY: usize = 63;
const MAX_INDEXES_BYTES: usize = 64 << 10;
/// Most rules of a policy, and values of a rule.
const MAX_RULES: usize = 20;
const MAX_VALUES: usize = 255;
const INDEXED_ONLY: &str = "requires indexed completion mode";

/// An object of the group, or a change of it.
pub fn validate(plural: &str, subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    if subresource == "status" {
        if let ("jobs", Some(old)) = (plural, old) {
            super::job_status::update(new, old, p);
        }
        return;
    }
    match plural {
        "jobs" => job(new, old, p),
        "cronjobs" => cron_job(new, old, p),
        _ => {}
    }
}

fn job(new: &Value, old: Option<&Value>, p: &mut Problems) {
    let spec = &new["spec"];
    if spec["completionMode"] == "Indexed"
        && let Some(completions) = spec["completions"].as_i64().filter(|n| *n > 0)
    {
        // The longest name of a pod must be a name too.
        host_name(&new["metadata"], completions - 1, p);
    }
    generated_selector(new, p);
    whole_spec(spec, p);
    if let Some(old) = old {
        update(spec, &old["spec"], old["status"]["active"].as_i64().unwrap_or(0) > 0, p);
    }
}

fn host_name(metadata: &Value, last: i64, p: &mut Problems) {
    let pod = format!("{}-{last}", text(metadata, "name"));
    if !names::label_problems(&pod).is_empty() {
        let why = format!("will not able to create pod with invalid DNS label: {pod}");
        p.invalid("metadata.name", &metadata["name"], &why);
    }
}

fn match_labels(spec: &Value, p: &mut Problems) {
    let labels = &spec["template"]["metadata"]["labels"];
    // One that cannot be read is told of elsewhere.
    let Ok(selector) = LabelSelector::from_object(&spec["selector"]) else { return };
    if spec["selector"].is_null() || !selector.matches(|key| labels[key].as_str()) {
        p.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`");
    }
}

/// A Job that does not bring its own selector has the generated one.
fn generated_selector(job: &Value, p: &mut Problems) {
    let spec = &job["spec"];
    if spec["manualSelector"] == true || spec["selector"].is_null() {
        return;
    }
    let (uid, name) = (&job["metadata"]["uid"], &job["metadata"]["name"]);
    let labels = &spec["template"]["metadata"]["labels"];
    let wanted = [
        ("batch.kubernetes.io/controller-uid", uid),
        ("batch.kubernetes.io/job-name", name),
        ("controller-uid", uid),
        ("job-name", name),
    ];
    for (key, value) in wanted {
        let field = format!("spec.template.metadata.labels[{key}]");
        let why = format!("must be '{}'", value.as_str().unwrap_or_default());
        match labels.get(key) {
            None => p.required(field, &why),
            Some(given) if given != value => p.invalid(field, labels, &why),
            Some(_) => {}
        }
    }
    // Any selector will do that the generated labels meet.
    let own = |key: &str| wanted.iter().find(|(k, _)| *k == key).and_then(|(_, value)| value.as_str());
    if LabelSelector::from_object(&spec["selector"]).is_ok_and(|selector| !selector.matches(own)) {
        p.invalid_shown("spec.selector", &shown_selector(&spec["selector"]), "`selector` not auto-generated");
    }
}

fn job_spec(spec: &Value, path: &str, p: &mut Problems) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        p.not_negative(format!("{path}.{field}"), &spec[field]);
    }
    let indexed = spec["completionMode"] == "Indexed";
    p.one_of_if_set(format!("{path}.completionMode"), &spec["completionMode"], &["NonIndexed", "Indexed"]);
    if indexed {
        indexed_limits(spec, path, p);
    } else if spec["completionMode"].is_null() || spec["completionMode"] == "NonIndexed" {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if has(spec, field) {
                p.invalid(format!("{path}.{field}"), &spec[field], INDEXED_ONLY);
            }
        }
    }
    if has(spec, "maxFailedIndexes") && !has(spec, "backoffLimitPerIndex") {
        p.required(format!("{path}.backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if has(spec, "managedBy") {
        let field = format!("{path}.managedBy");
        domain_path(&spec["managedBy"], &field, p);
        if text(spec, "managedBy").len() > MAX_MANAGED_BY {
            p.too_long(field, MAX_MANAGED_BY);
        }
    }
    if has(spec, "podReplacementPolicy") {
        let field = format!("{path}.podReplacementPolicy");
        if has(spec, "podFailurePolicy") {
            p.one_of(field, &spec["podReplacementPolicy"], &["Failed"]);
        } else {
            p.one_of(field, &spec["podReplacementPolicy"], &["Failed", "TerminatingOrFailed"]);
        }
    }
    template(spec, path, p);
    if spec["podFailurePolicy"].is_object() {
        failure_policy(spec, &format!("{path}.podFailurePolicy"), p);
    }
    if spec["successPolicy"].is_object() {
        success_policy(spec, indexed, &format!("{path}.successPolicy"), p);
    }
}

/// A name such as `acme.io/foo`.
pub fn domain_path(value: &Value, field: &str, p: &mut Problems) {
    let whole = value.as_str().unwrap_or_default();
    if whole.is_empty() {
        return p.required(field, "");
    }
    for (part, why) in names::domain_path_problems(whole) {
        p.invalid(field, &json!(part), &why);
    }
}

fn indexed_limits(spec: &Value, path: &str, p: &mut Problems) {
    let completions = spec["completions"].as_i64();
    if completions.is_none() {
        p.required(format!("{path}.completions"), "when completion mode is Indexed");
    }
    if spec["parallelism"].as_i64().is_some_and(|n| n > MAX_FAILED_INDEXES) {
        let why = format!("must be less than or equal to {MAX_FAILED_INDEXES} when completion mode is Indexed");
        p.invalid(format!("{path}.parallelism"), &spec["parallelism"], &why);
    }
    let completions = completions.unwrap_or(i64::MAX);
    if (MANY_COMPLETIONS + 1..i64::MAX).contains(&completions) && has(spec, "backoffLimitPerIndex") {
        if !has(spec, "maxFailedIndexes") {
            let why = format!("must be specified when completions is above {MANY_COMPLETIONS}");
            p.required(format!("{path}.maxFailedIndexes"), &why);
        }
        for field in ["parallelism", "maxFailedIndexes"] {
            if spec[field].as_i64().is_some_and(|n| n > FEW_PODS) {
                let why = format!(
                    "must be less than or equal to {FEW_PODS} when completions are above {MANY_COMPLETIONS} and used with \
                     backoff limit per index"
                );
                p.invalid(format!("{path}.{field}"), &spec[field], &why);
            }
        }
    }
    if spec["maxFailedIndexes"].as_i64().is_some_and(|n| n > completions) {
        let why = "must be less than or equal to completions";
        p.invalid(format!("{path}.maxFailedIndexes"), &spec["maxFailedIndexes"], why);
    }
    if spec["maxFailedIndexes"].as_i64().is_some_and(|n| n > MAX_FAILED_INDEXES) {
        let why = format!("must be less than or equal to {MAX_FAILED_INDEXES}");
        p.invalid(format!("{path}.maxFailedIndexes"), &spec["maxFailedIndexes"], &why);
    }
}

fn template(spec: &Value, path: &str, p: &mut Problems) {
    pod::template(&spec["template"], &format!("{path}.template"), p);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    let field = format!("{path}.template.spec.restartPolicy");
    match policy.as_str().unwrap_or_default() {
        "" | "Always" => p.required(field, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" | "Never" => {
            if spec["podFailurePolicy"].is_object() && policy != "Never" {
                let why = "only \"Never\" is supported when podFailurePolicy is specified";
                p.invalid(field, policy, why);
            }
        }
        _ => p.not_supported(field, policy, &["OnFailure", "Never"]),
    }
}

fn failure_policy(spec: &Value, path: &str, p: &mut Problems) {
    let rules: Vec<&Value> = items(&spec["podFailurePolicy"]["rules"]).collect();
    if rules.len() > MAX_RULES {
        p.too_many(format!("{path}.rules"), rules.len(), MAX_RULES);
    }
    let pod = &spec["template"]["spec"];
    let containers: Vec<&str> =
        items(&pod["containers"]).chain(items(&pod["initContainers"])).map(|c| text(c, "name")).collect();
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("{path}.rules[{index}]");
        let action = text(rule, "action");
        match action {
            "" => p.required(format!("{at}.action"), "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"),
            "FailIndex" if !has(spec, "backoffLimitPerIndex") => {
                p.invalid(format!("{at}.action"), &rule["action"], "requires the backoffLimitPerIndex to be set");
            }
            _ => p.one_of(format!("{at}.action"), &rule["action"], &["Count", "FailIndex", "FailJob", "Ignore"]),
        }
        let (codes, conditions) = (&rule["onExitCodes"], items(&rule["onPodConditions"]).count());
        if codes.is_object() {
            exit_codes(codes, &containers, &format!("{at}.onExitCodes"), p);
        }
        if conditions > MAX_RULES {
            p.too_many(format!("{at}.onPodConditions"), conditions, MAX_RULES);
        }
        for (i, condition) in items(&rule["onPodConditions"]).enumerate() {
            pod_condition(condition, &format!("{at}.onPodConditions[{i}]"), p);
        }
        let message = match (codes.is_object(), conditions > 0) {
            (true, true) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (false, false) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => continue,
        };
        p.0.push(crate::status::Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {message}"),
            field: at,
        });
    }
}

fn exit_codes(codes: &Value, containers: &[&str], at: &str, p: &mut Problems) {
    if has(codes, "containerName") && !containers.contains(&text(codes, "containerName")) {
        let why = "must be one of the container or initContainer names in the pod template";
        p.invalid(format!("{at}.containerName"), &codes["containerName"], why);
    }
    let operator = text(codes, "operator");
    match operator {
        "" => p.required(format!("{at}.operator"), "valid values: [\"In\" \"NotIn\"]"),
        _ => p.one_of(format!("{at}.operator"), &codes["operator"], &["In", "NotIn"]),
    }
    let values: Vec<&Value> = items(&codes["values"]).collect();
    if values.is_empty() {
        p.invalid(format!("{at}.values"), &codes["values"], "at least one value is required");
    } else if values.len() > MAX_VALUES {
        p.too_many(format!("{at}.values"), values.len(), MAX_VALUES);
    }
    let numbers: Vec<i64> = values.iter().map(|value| value.as_i64().unwrap_or(0)).collect();
    for (index, value) in values.iter().enumerate() {
        if operator == "In" && numbers[index] == 0 {
            p.invalid(format!("{at}.values[{index}]"), value, "must not be 0 for the In operator");
        }
        if numbers[..index].contains(&numbers[index]) {
            p.duplicate(format!("{at}.values[{index}]"), value);
        }
    }
    if !numbers.is_sorted() {
        p.invalid(format!("{at}.values"), &codes["values"], "must be ordered");
    }
}

fn pod_condition(condition: &Value, at: &str, p: &mut Problems) {
    p.qualified_name(&format!("{at}.type"), text(condition, "type"));
    match text(condition, "status") {
        "" => p.required(format!("{at}.status"), "valid values: [\"False\" \"True\" \"Unknown\"]"),
        _ => p.one_of(format!("{at}.status"), &condition["status"], &["False", "True", "Unknown"]),
    }
}

fn success_policy(spec: &Value, indexed: bool, path: &str, p: &mut Problems) {
    let policy = &spec["successPolicy"];
    if !indexed {
        p.invalid_shown(path, &shown::compact("SuccessPolicy", policy), INDEXED_ONLY);
        return;
    }
    let rules: Vec<&Value> = items(&policy["rules"]).collect();
    if rules.is_empty() {
        p.required(format!("{path}.rules"), "at least one rules must be specified when the successPolicy is specified");
    }
    if rules.len() > MAX_RULES {
        p.too_many(format!("{path}.rules"), rules.len(), MAX_RULES);
    }
    let completions = spec["completions"].as_i64().unwrap_or(0);
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("{path}.rules[{index}]");
        let (count, indexes) = (rule["succeededCount"].as_i64(), rule["succeededIndexes"].as_str());
        if count.is_none() && indexes.is_none() {
            p.required(&at, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut total = None;
        if let Some(text) = indexes {
            if text.len() > MAX_INDEXES_BYTES {
                p.too_long(format!("{at}.succeededIndexes"), MAX_INDEXES_BYTES);
            }
            match parse_indexes(text, completions) {
                Ok(found) => total = Some(found),
                Err(why) => {
                    let why = format!("error parsing succeededIndexes: {why}");
                    p.invalid(format!("{at}.succeededIndexes"), &json!(text), &why);
                    total = Some(0);
                }
            }
        }
        if let Some(count) = count {
            let field = format!("{at}.succeededCount");
            p.not_negative(&field, &json!(count));
            if count > completions {
                let why = format!("must be less than or equal to {completions} (the number of specified completions)");
                p.invalid(&field, &json!(count), &why);
            }
            if let Some(total) = total.filter(|total| count > *total) {
                let why = format!(
                    "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
                );
                p.invalid(&field, &json!(count), &why);
            }
        }
    }
}

/// Counts the indexes of `0-2,5`.
pub fn parse_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut total, mut previous) = (0, None);
    let number = |text: &str| {
        text.parse::<i64>()
            .map_err(|_| format!("cannot convert string to integer for index: {text:?}"))
            .and_then(|n| if n >= completions { Err(format!("too large index: {text:?}")) } else { Ok(n) })
    };
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let limits: Vec<&str> = part.split('-').collect();
        if limits.len() > 2 {
            return Err(format!(
                "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
            ));
        }
        let first = number(limits[0])?;
        let last = limits.get(1).map(|text| number(text)).transpose()?;
        // An interval is read whole before it is held against the one before it.
        for (before, after) in [last.map(|last| (first, last)), previous.map(|p| (p, first))].into_iter().flatten() {
            if before >= after {
                return Err(format!("non-increasing order, previous: {before}, current: {after}"));
            }
        }
        let last = last.unwrap_or(first);
        total += last - first + 1;
        previous = Some(last);
    }
    Ok(total)
}

/// What may not change in a Job; `runs` if there are pods of it still.
fn update(spec: &Value, before: &Value, runs: bool, p: &mut Problems) {
    // The rules of the whole spec are checked with the update a second time.
    whole_spec(spec, p);
    if spec["selector"] != before["selector"] {
        p.invalid_shown("spec.selector", &shown_selector(&spec["selector"]), "field is immutable");
    }
    // While a Job is suspended and its pods are gone, where the next ones go and what they ask for may change
    // (MutableSchedulingDirectivesForSuspendedJobs and MutablePodResourcesForSuspendedJobs, open since v1.36).
    let free = before["suspend"] == true && !runs;
    let scheduling = |spec: &Value| {
        let mut template = spec["template"].clone();
        if free {
            for list in ["containers", "initContainers"] {
                let containers = template["spec"].get_mut(list).and_then(Value::as_array_mut);
                let amounts = containers.into_iter().flatten().filter_map(|c| c.get_mut("resources")?.as_object_mut());
                amounts.for_each(|amounts| amounts.retain(|key, _| !matches!(key.as_str(), "requests" | "limits")));
            }
            for key in ["labels", "annotations"] {
                template["metadata"].as_object_mut().map(|m| m.remove(key));
            }
            for key in ["nodeSelector", "tolerations", "schedulingGates"] {
                template["spec"].as_object_mut().map(|m| m.remove(key));
            }
            if let Some(affinity) = template["spec"].get_mut("affinity").and_then(Value::as_object_mut) {
                affinity.remove("nodeAffinity");
                if affinity.is_empty() {
                    template["spec"].as_object_mut().map(|m| m.remove("affinity"));
                }
            }
        }
        template
    };
    if scheduling(spec) != scheduling(before) {
        let shown = shown::compact("PodTemplateSpec", &spec["template"]);
        p.invalid_shown("spec.template", &shown, "field is immutable");
    }
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        if spec[field] != before[field] {
            let shown = match field {
                "podFailurePolicy" if spec[field].is_object() => shown::compact("PodFailurePolicy", &spec[field]),
                "successPolicy" if spec[field].is_object() => shown::compact("SuccessPolicy", &spec[field]),
                _ => spec[field].to_string(),
            };
            p.invalid_shown(format!("spec.{field}"), &shown, "field is immutable");
        }
    }
    if spec["completions"] != before["completions"] {
        // An indexed Job may grow when its parallelism grows with it.
        let elastic = spec["completionMode"] == "Indexed" && spec["completions"] == spec["parallelism"];
        if spec["completionMode"] != "Indexed" {
            p.invalid("spec.completions", &spec["completions"], "field is immutable");
        } else if !elastic && has(spec, "completions") {
            let why = "can only be modified in tandem with spec.parallelism";
            p.invalid("spec.completions", &spec["completions"], why);
        }
    }
}

/// The spec of a Job that has its selector by now; that of a template has none.
fn whole_spec(spec: &Value, p: &mut Problems) {
    job_spec(spec, "spec", p);
    if spec["selector"].is_null() {
        p.required("spec.selector", "");
    } else {
        selectors::label_selector(&spec["selector"], "spec.selector", p);
    }
    match_labels(spec, p);
}

fn cron_job(new: &Value, old: Option<&Value>, p: &mut Problems) {
    let spec = &new["spec"];
    if old.is_none() && text(&new["metadata"], "name").len() > CRON_JOB_NAME_MAX {
        let why = format!("must be no more than {CRON_JOB_NAME_MAX} characters");
        p.invalid("metadata.name", &new["metadata"]["name"], &why);
    }
    if text(spec, "schedule").is_empty() {
        p.required("spec.schedule", "");
    } else {
        let zoned_before = old.is_some_and(|old| text(&old["spec"], "schedule").contains("TZ"));
        check_schedule(spec, zoned_before, p);
    }
    if has(spec, "timeZone") && old.is_none_or(|old| old["spec"]["timeZone"] != spec["timeZone"]) {
        time_zone(&spec["timeZone"], p);
    }
    p.not_negative("spec.startingDeadlineSeconds", &spec["startingDeadlineSeconds"]);
    match text(spec, "concurrencyPolicy") {
        "" => p.required("spec.concurrencyPolicy", ""),
        _ => p.one_of("spec.concurrencyPolicy", &spec["concurrencyPolicy"], &["Allow", "Forbid", "Replace"]),
    }
    for field in ["successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        p.not_negative(format!("spec.{field}"), &spec[field]);
    }
    let template = &spec["jobTemplate"];
    meta::labels(&template["metadata"]["labels"], "spec.jobTemplate.labels", p);
    job_spec(&template["spec"], "spec.jobTemplate.spec", p);
    if has(&template["spec"], "selector") {
        let shown = shown_selector(&template["spec"]["selector"]);
        p.invalid_shown("spec.jobTemplate.spec.selector", &shown, "`selector` will be auto-generated");
    }
    if template["spec"]["manualSelector"] == true {
        p.not_supported("spec.jobTemplate.spec.manualSelector", &json!(true), &["nil", "false"]);
    }
}

fn check_schedule(spec: &Value, zoned_before: bool, p: &mut Problems) {
    let schedule = text(spec, "schedule");
    if let Err(why) = super::cron::check(schedule) {
        p.invalid("spec.schedule", &spec["schedule"], &why);
    }
    if schedule.contains("TZ") {
        let why = match (zoned_before, has(spec, "timeZone")) {
            (true, true) => "cannot use both timeZone field and TZ or CRON_TZ in schedule",
            (true, false) => return,
            (false, _) => "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        };
        p.invalid("spec.schedule", &spec["schedule"], why);
    }
}

fn time_zone(zone: &Value, p: &mut Problems) {
    let name = zone.as_str().unwrap_or_default();
    if name.is_empty() {
        return p.invalid("spec.timeZone", zone, "timeZone must be nil or non-empty string");
    }
    let part = |part: &str| {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+');
        !matches!(part, "." | "..")
            && !part.starts_with('-')
            && (1..=14).contains(&part.len())
            && part.bytes().all(good)
    };
    if !name.split('/').all(part) {
        return p.invalid("spec.timeZone", zone, &format!("unknown time zone {name}"));
    }
    if name.eq_ignore_ascii_case("Local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        p.invalid("spec.timeZone", zone, why);
    }
    if let Some(why) = super::cron::location_problem(name) {
        p.invalid("spec.timeZone", &or_empty(zone), &why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_of_a_job_may_change() {
        let job = |suspend: bool, image: &str, node_selector: Value, amounts: Value| {
            json!({"metadata": {"name": "j", "namespace": "d"}, "spec": {
                "suspend": suspend, "parallelism": 1, "completions": 1, "backoffLimit": 6, "completionMode": "NonIndexed",
                "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
                    "restartPolicy": "Never", "nodeSelector": node_selector,
                    "containers": [{"name": "c", "image": image, "resources": amounts}]}}}})
        };
        let none = || json!({});
        let (more, claim) =
            (json!({"requests": {"cpu": "2"}, "limits": {"cpu": "3"}}), json!({"claims": [{"name": "a"}]}));
        let running = job(false, "x", none(), none());
        let suspended = job(true, "x", none(), none());
        let near = |kind: &str| {
            let mut near = suspended.clone();
            near["spec"]["template"]["spec"]["affinity"] =
                json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": []}});
            near
        };
        for (before, after, runs, allowed) in [
            (&running, suspended.clone(), true, true),
            (&suspended, running.clone(), false, true),
            (&suspended, job(false, "x", json!({"zone": "a"}), none()), false, true),
            (&suspended, job(false, "x", json!({"zone": "a"}), none()), true, false),
            (&running, job(true, "x", json!({"zone": "a"}), none()), false, false),
            (&suspended, job(true, "y", none(), none()), false, false),
            (&suspended, job(true, "x", none(), more.clone()), false, true),
            (&suspended, job(true, "x", none(), more.clone()), true, false),
            (&suspended, job(true, "x", none(), claim), false, false),
            (&running, job(false, "x", none(), more), false, false),
            (&suspended, near("nodeAffinity"), false, true),
            (&near("nodeAffinity"), suspended.clone(), false, true),
            (&suspended, near("podAffinity"), false, false),
        ] {
            let mut problems = Problems::default();
            update(&after["spec"], &before["spec"], runs, &mut problems);
            let template = problems.0.iter().any(|cause| cause.field == "spec.template");
            assert_eq!(!template, allowed, "{after}");
        }
    }

    #[test]
    fn an_interval_of_indexes_is_read_whole_before_it_is_compared() {
        for (text, expected) in [
            ("", Ok(0)),
            ("0-2,4", Ok(4)),
            ("3,1-9", Err("too large index: \"9\"")),
            ("3,1-x", Err("cannot convert string to integer for index: \"x\"")),
            ("3,2-1", Err("non-increasing order, previous: 2, current: 1")),
            ("3,1-2", Err("non-increasing order, previous: 3, current: 1")),
            (
                "0-1-2",
                Err(
                    "the fragment \"0-1-2\" violates the requirement that an index interval can have at most two parts separated by '-'",
                ),
            ),
        ] {
            assert_eq!(parse_indexes(text, 5), expected.map_err(String::from), "{text}");
        }
    }
}
