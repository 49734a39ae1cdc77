//! `create poddisruptionbudget`, `create priorityclass` and `create quota`.

use serde_json::{Map, Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch, text};
use crate::output;
use crate::session::Session;

use super::super::create::{SAVE, WRITE, generate};
use super::super::run::pairs;
use super::super::set::quantities;
use super::{name, object};

/// Flags of `create poddisruptionbudget`.
pub const DISRUPTION_BUDGET: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        text("max-unavailable", "", "The maximum number or percentage of unavailable pods this budget requires."),
        text("min-available", "", "The minimum number or percentage of available pods this budget requires."),
        text("selector", "", "A label selector to use for this budget."),
    ],
];
/// Flags of `create priorityclass`.
pub const PRIORITY_CLASS: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        text(
            "description",
            "",
            "description is an arbitrary string that usually provides guidelines on when this priority class should be used.",
        ),
        switch(
            "global-default",
            "global-default specifies whether this PriorityClass should be considered as the default priority.",
        ),
        text(
            "preemption-policy",
            "PreemptLowerPriority",
            "preemption-policy is the policy for preempting pods with lower priority.",
        ),
        text("value", "0", "the value of this priority class."),
    ],
];
/// Flags of `create quota`.
pub const QUOTA: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        text("hard", "", "A comma-delimited set of resource=quantity pairs that define a hard limit."),
        text(
            "scopes",
            "",
            "A comma-delimited set of quota scopes that must all match each object tracked by the quota.",
        ),
    ],
];

/// A selector's text as the API writes it.
fn label_selector(text: &str) -> Outcome<Value> {
    keelson_machinery::selector::LabelSelector::parse(text).map_err(|why| {
        Failure::new(format!("couldn't parse the selector string {}: {why}", crate::value::quoted(text)))
    })?;
    if text.contains("!=") {
        return Err(Failure::new("\"!=\" is not a valid label selector operator"));
    }
    if text.split(',').all(|part| part.contains('=') && !part.contains('!') && !part.contains('(')) {
        return Ok(json!({"matchLabels": pairs(&text.replace("==", "="))?}));
    }
    let mut wanted = json!({"matchExpressions": []});
    for part in requirements(text) {
        let part = part.trim();
        let word = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
        let values = |text: &str| -> Vec<String> {
            let inside = text.split_once('(').map_or("", |(_, rest)| rest.trim_end_matches(')'));
            let mut all: Vec<String> = inside.split(',').map(|v| v.trim().to_owned()).collect();
            all.sort();
            all
        };
        let expression = match part {
            p if p.contains(" notin ") => json!({"key": word(p), "operator": "NotIn", "values": values(p)}),
            p if p.contains(" in ") => json!({"key": word(p), "operator": "In", "values": values(p)}),
            p if p.contains('=') => {
                let (key, value) = p.split_once('=').unwrap_or((p, ""));
                wanted["matchLabels"][key.trim()] = value.trim_start_matches('=').trim().into();
                continue;
            }
            p if p.starts_with('!') => json!({"key": p[1..].trim(), "operator": "DoesNotExist"}),
            p => json!({"key": p, "operator": "Exists"}),
        };
        if let Some(all) = wanted["matchExpressions"].as_array_mut() {
            all.push(expression);
        }
    }
    Ok(wanted)
}

/// The parts of a selector: commas inside of parentheses part nothing.
fn requirements(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Runs `create poddisruptionbudget`.
pub async fn disruption_budget(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    name(session)?;
    if parsed.text("selector").is_empty() {
        return Err(Failure::new("a selector must be specified"));
    }
    let amount = |text: &str| text.parse::<i64>().map_or_else(|_| json!(text), |n| json!(n));
    let mut object = object("policy/v1", "PodDisruptionBudget", name(session)?);
    object["spec"] = json!({"selector": label_selector(parsed.text("selector"))?});
    for flag in ["max-unavailable", "min-available"] {
        let digits = parsed.text(flag).strip_suffix('%').unwrap_or(parsed.text(flag));
        let amount = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
        if !parsed.text(flag).is_empty() && !amount {
            return Err(Failure::new(format!("invalid format specified for {flag}")));
        }
    }
    match (parsed.text("min-available"), parsed.text("max-unavailable")) {
        ("", "") => return Err(Failure::new("one of min-available or max-unavailable must be specified")),
        (min, "") => object["spec"]["minAvailable"] = amount(min),
        ("", max) => object["spec"]["maxUnavailable"] = amount(max),
        _ => return Err(Failure::new("min-available and max-unavailable cannot be both specified")),
    }
    object["status"] = json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
    generate(session, object).await
}

/// Runs `create priorityclass`.
pub async fn priority_class(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let mut object = object("scheduling.k8s.io/v1", "PriorityClass", name(session)?);
    object["value"] = parsed.number("value")?.into();
    object["preemptionPolicy"] = parsed.text("preemption-policy").into();
    if parsed.on("global-default") {
        object["globalDefault"] = true.into();
    }
    if !parsed.text("description").is_empty() {
        object["description"] = parsed.text("description").into();
    }
    generate(session, object).await
}

/// Runs `create quota`.
pub async fn quota(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let mut object = object("v1", "ResourceQuota", name(session)?);
    let hard: Map<String, Value> = quantities(parsed.text("hard"))?;
    object["spec"] = json!({});
    if !hard.is_empty() {
        object["spec"]["hard"] = hard.into();
    }
    let scopes: Vec<&str> = parsed.text("scopes").split(',').filter(|_| !parsed.text("scopes").is_empty()).collect();
    if scopes.contains(&"") {
        return Err(Failure::new("invalid resource quota scope \"\""));
    }
    if !scopes.is_empty() {
        object["spec"]["scopes"] = json!(scopes);
    }
    object["status"] = json!({});
    generate(session, object).await
}
