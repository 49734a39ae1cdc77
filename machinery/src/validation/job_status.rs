//! What the status of a Job may say: counters, times and conditions that fit each other. A rule is asked only of what
//! changed, so that a status that breaks it from before does not stand in the way of others.

use serde_json::{Value, json};

use super::batch::parse_indexes;
use super::check::{Problems, or_empty};
use super::{has, items, text};
use crate::shown;
use crate::status::Cause;

const CONDITIONS: &str = "status.conditions";

/// A Job before or after a change, with what is asked of it often.
struct Job<'a> {
    spec: &'a Value,
    status: &'a Value,
}

impl<'a> Job<'a> {
    fn of(object: &'a Value) -> Self {
        Self { spec: &object["spec"], status: &object["status"] }
    }

    fn is(&self, kind: &str) -> bool {
        self.condition(kind, "True")
    }

    fn condition(&self, kind: &str, status: &str) -> bool {
        items(&self.status["conditions"]).any(|c| text(c, "type") == kind && text(c, "status") == status)
    }

    fn finished(&self) -> bool {
        self.is("Complete") || self.is("Failed")
    }

    fn number(&self, field: &str) -> i64 {
        self.status[field].as_i64().unwrap_or(0)
    }

    fn completions(&self) -> Option<i64> {
        self.spec["completions"].as_i64()
    }
}

/// What is wrong with a change of the status.
pub fn update(new: &Value, old: &Value, p: &mut Problems) {
    let (now, before) = (Job::of(new), Job::of(old));
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        p.not_negative(format!("status.{field}"), &now.status[field]);
    }
    uncounted(&now, p);
    conditions(&now, &before, p);
    times(&now, &before, p);
    counters(&now, &before, p);
    indexes(&now, &before, p);
}

/// A problem of the conditions as a whole, which are not shown.
fn condition_problem(why: &str, p: &mut Problems) {
    let message = format!("Invalid value: {why}");
    p.0.push(Cause { reason: "FieldValueInvalid".into(), message, field: CONDITIONS.into() });
}

fn uncounted(now: &Job<'_>, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for list in ["succeeded", "failed"] {
        for (index, uid) in items(&now.status["uncountedTerminatedPods"][list]).enumerate() {
            let field = format!("status.uncountedTerminatedPods.{list}[{index}]");
            match uid.as_str().unwrap_or_default() {
                "" => p.invalid(field, uid, "must not be empty"),
                known if seen.contains(&known) => p.duplicate(field, uid),
                other => seen.push(other),
            }
        }
    }
}

fn conditions(now: &Job<'_>, before: &Job<'_>, p: &mut Problems) {
    let changed = |kind: &str| now.is(kind) != before.is(kind);
    let (complete, failed) = (now.is("Complete"), now.is("Failed"));
    let (met, target) = (now.is("SuccessCriteriaMet"), now.is("FailureTarget"));
    let failed_indexes_changed = now.status["failedIndexes"] != before.status["failedIndexes"];
    let has_policy = has(now.spec, "successPolicy");
    let rules = [
        (
            complete && failed && (changed("Complete") || changed("Failed")),
            "cannot set Complete=True and Failed=true conditions",
        ),
        (
            complete && target && (changed("Complete") || changed("FailureTarget")),
            "cannot set Complete=True and FailureTarget=true conditions",
        ),
        (
            failed && !target && (changed("Failed") || failed_indexes_changed),
            "cannot set Failed=True condition without the FailureTarget=true condition",
        ),
        (
            complete && !met && (changed("Complete") || changed("SuccessCriteriaMet")),
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        ),
        (met && failed, "cannot set SuccessCriteriaMet=True and Failed=true conditions"),
        (met && target, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions"),
        (
            has_policy && !met && complete,
            "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
        ),
        (before.is("Failed") && !failed, "cannot disable the terminal Failed=True condition"),
        (before.is("Complete") && !complete, "cannot disable the terminal Complete=True condition"),
        (before.is("FailureTarget") && !target, "cannot disable the terminal FailureTarget=True condition"),
        (before.is("SuccessCriteriaMet") && !met, "cannot disable the SuccessCriteriaMet=True condition"),
        (
            before.is("Complete") && !before.is("SuccessCriteriaMet") && met,
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions",
        ),
    ];
    for (_, why) in rules.iter().filter(|(broken, _)| *broken) {
        condition_problem(why, p);
    }
}

fn times(now: &Job<'_>, before: &Job<'_>, p: &mut Problems) {
    let changed = |field: &str| now.status[field] != before.status[field];
    let (start, end) = (&now.status["startTime"], &now.status["completionTime"]);
    let complete = now.is("Complete");
    if complete != before.is("Complete") || changed("completionTime") {
        if has(now.status, "completionTime") && !complete {
            let why = "cannot set completionTime when there is no Complete=True condition";
            p.invalid("status.completionTime", end, why);
        }
        if !has(now.status, "completionTime") && complete {
            p.required("status.completionTime", "completionTime is required for Complete jobs");
        }
    }
    // Times of one form are in order as texts.
    if (changed("startTime") || changed("completionTime"))
        && let (Some(start), Some(finish)) = (start.as_str(), end.as_str())
        && finish < start
    {
        p.invalid("status.completionTime", end, "must be equal to or after `startTime`");
    }
    let finish_changed = now.finished() != before.finished();
    let empty_and_suspended = now.spec["suspend"] == true && now.completions() == Some(0);
    if (finish_changed || changed("startTime")) && !empty_and_suspended && start.is_null() && now.finished() {
        p.required("status.startTime", "startTime is required for finished job");
    }
    if !end.is_null() && !before.status["completionTime"].is_null() && changed("completionTime") {
        p.invalid("status.completionTime", end, "field is immutable");
    }
    let resumes = before.condition("Suspended", "True") && now.condition("Suspended", "False");
    let started = !before.status["startTime"].is_null();
    if changed("startTime") && started && !resumes && now.spec["suspend"] != true {
        p.invalid("status.startTime", start, "field is immutable for unsuspended job once set");
    }
}

fn counters(now: &Job<'_>, before: &Job<'_>, p: &mut Problems) {
    let changed = |field: &str| now.status[field] != before.status[field];
    let (finished, finish_changed) = (now.finished(), now.finished() != before.finished());
    if finished && now.number("active") > 0 && (finish_changed || changed("active")) {
        p.invalid("status.active", &now.status["active"], "active>0 is invalid for finished job");
    }
    let pods = &now.status["uncountedTerminatedPods"];
    let any = ["succeeded", "failed"].iter().any(|list| items(&pods[*list]).next().is_some());
    if finished && any && (finish_changed || changed("uncountedTerminatedPods")) {
        let shown = shown::compact("UncountedTerminatedPods", pods);
        p.invalid_shown("status.uncountedTerminatedPods", &shown, "must be empty for finished job");
    }
    if finished && now.number("terminating") > 0 && (finish_changed || changed("terminating")) {
        let why = "terminating>0 is invalid for finished job";
        p.invalid("status.terminating", &now.status["terminating"], why);
    }
    if now.number("ready") > now.number("active") && (changed("ready") || changed("active")) {
        p.invalid("status.ready", &now.status["ready"], "cannot set more ready pods than active");
    }
    if now.number("failed") < before.number("failed") {
        p.invalid("status.failed", &json!(now.number("failed")), "cannot decrease the failed counter");
    }
    // Where there are as many pods as completions, both may shrink.
    let shrinks = now.spec["completionMode"] == "Indexed" && now.spec["completions"] == now.spec["parallelism"];
    if !shrinks && now.number("succeeded") < before.number("succeeded") {
        p.invalid("status.succeeded", &json!(now.number("succeeded")), "cannot decrease the succeeded counter");
    }
}

fn indexes(now: &Job<'_>, before: &Job<'_>, p: &mut Problems) {
    let (done, failed) = (&now.status["completedIndexes"], &now.status["failedIndexes"]);
    let done_changed = or_empty(done) != or_empty(&before.status["completedIndexes"]);
    let failed_changed = *failed != before.status["failedIndexes"];
    let (done_text, failed_text) = (done.as_str().unwrap_or_default(), failed.as_str());
    if done_changed {
        if let Some(Err(why)) = now.completions().map(|n| parse_indexes(done_text, n)) {
            p.invalid("status.completedIndexes", done, &format!("error parsing completedIndexes: {why}"));
        }
        if !done_text.is_empty() && now.spec["completionMode"] != "Indexed" {
            let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
            p.invalid("status.completedIndexes", done, why);
        }
    }
    let limited = has(now.spec, "backoffLimitPerIndex");
    if let (true, Some(failed_text)) = (failed_changed, failed_text) {
        let parsed = now.completions().filter(|_| limited).map(|n| parse_indexes(failed_text, n));
        if let Some(Err(why)) = parsed {
            p.invalid("status.failedIndexes", failed, &format!("error parsing failedIndexes: {why}"));
        }
        if !limited {
            let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
            p.invalid("status.failedIndexes", failed, why);
        }
    }
    if let (true, Some(failed_text), Some(_)) = (done_changed || failed_changed, failed_text, now.completions())
        && let Some(index) = overlap(done_text, failed_text)
    {
        let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
        p.invalid("status.failedIndexes", failed, &why);
    }
}

/// The first index that is in both lists of ranges; what cannot be read is told of elsewhere.
fn overlap(one: &str, other: &str) -> Option<i64> {
    let ranges = |text: &str| -> Vec<(i64, i64)> {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        text.split(',').filter_map(range).collect()
    };
    let theirs = ranges(other);
    let common = |(a, b): (i64, i64)| theirs.iter().find(|(x, y)| a <= *y && *x <= b).map(|(x, _)| a.max(*x));
    ranges(one).into_iter().find_map(common)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_job_that_runs_stays() {
        let status = |time: &Value| json!({"spec": {}, "status": {"startTime": time}});
        for later in [json!("2026-01-01T00:00:01Z"), Value::Null] {
            let mut p = Problems::default();
            update(&status(&later), &status(&json!("2026-01-01T00:00:00Z")), &mut p);
            let found: Vec<&str> = p.0.iter().map(|c| c.message.as_str()).collect();
            assert_eq!(found, [format!("Invalid value: {later}: field is immutable for unsuspended job once set")]);
        }
    }

    #[test]
    fn a_status_fits_itself_and_what_was() {
        let start = "2026-01-01T00:00:00Z";
        let done = json!([{"type": "SuccessCriteriaMet", "status": "True"}, {"type": "Complete", "status": "True"}]);
        let indexed =
            json!({"completionMode": "Indexed", "completions": 3, "parallelism": 2, "backoffLimitPerIndex": 1});
        for (spec, before, now, expected) in [
            (
                json!({}),
                json!({"startTime": start}),
                json!({"startTime": start, "completionTime": "2026-01-01T00:01:00Z", "conditions": done}),
                vec![],
            ),
            (
                json!({}),
                json!({}),
                json!({"conditions": done}),
                vec![
                    "status.completionTime: Required value: completionTime is required for Complete jobs",
                    "status.startTime: Required value: startTime is required for finished job",
                ],
            ),
            (
                json!({}),
                json!({"failed": 2, "succeeded": 2}),
                json!({"failed": 1, "succeeded": 1, "ready": 1}),
                vec![
                    "status.ready: Invalid value: 1: cannot set more ready pods than active",
                    "status.failed: Invalid value: 1: cannot decrease the failed counter",
                    "status.succeeded: Invalid value: 1: cannot decrease the succeeded counter",
                ],
            ),
            (
                json!({}),
                json!({}),
                json!({"conditions": [{"type": "Failed", "status": "True"}], "startTime": start, "active": 1}),
                vec![
                    "status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition",
                    "status.active: Invalid value: 1: active>0 is invalid for finished job",
                ],
            ),
            (
                indexed,
                json!({}),
                json!({"completedIndexes": "0-1", "failedIndexes": "1"}),
                vec![
                    "status.failedIndexes: Invalid value: \"1\": failedIndexes and completedIndexes overlap at index: 1",
                ],
            ),
            (
                json!({}),
                json!({}),
                json!({"uncountedTerminatedPods": {"succeeded": ["a", ""], "failed": ["a"]}}),
                vec![
                    "status.uncountedTerminatedPods.succeeded[1]: Invalid value: \"\": must not be empty",
                    "status.uncountedTerminatedPods.failed[0]: Duplicate value: \"a\"",
                ],
            ),
        ] {
            let mut p = Problems::default();
            update(&json!({"spec": spec, "status": now}), &json!({"spec": spec, "status": before}), &mut p);
            let found: Vec<String> = p.0.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
            assert_eq!(found, expected, "{now}");
        }
    }
}
