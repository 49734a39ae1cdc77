//! Namespaces, quotas, limits, budgets, priorities and autoscalers.

use std::collections::BTreeSet;

use keelson_machinery::quantity::Quantity;
use serde_json::Value;

use super::common::{dated_conditions, events, marks, names, on_a_line, selector_or_none};
use super::sheet::{Sheet, row};
use crate::value::{Read, amount, date, or, quantity, quoted};

/// Describes a namespace with its quotas and limits; `None` where the server has none of the kind.
pub fn namespace(w: &mut Sheet, object: &Value, quotas: Option<Vec<Value>>, limits: Option<Vec<Value>>) {
    row!(w, 0, "Name:\t{}", object["metadata"]["name"].text());
    marks(w, object);
    row!(w, 0, "Status:\t{}", object["status"]["phase"].text());
    if !object["status"]["conditions"].items().is_empty() {
        dated_conditions(w, object);
    }
    if let Some(quotas) = quotas {
        row!(w, 0, "");
        quotas_of(w, quotas);
    }
    if let Some(limits) = limits {
        row!(w, 0, "");
        if limits.is_empty() {
            row!(w, 0, "No LimitRange resource.");
            return;
        }
        row!(w, 0, "Resource Limits");
        row!(w, 0, " Type\tResource\tMin\tMax\tDefault Request\tDefault Limit\tMax Limit/Request Ratio");
        row!(w, 0, " ----\t--------\t---\t---\t---------------\t-------------\t-----------------------");
        limits.iter().for_each(|l| limits_of(w, l, " "));
    }
}

fn scopes(w: &mut Sheet, quota: &Value, level: usize, star: &str) {
    let mut scopes = quota["spec"]["scopes"].texts();
    scopes.sort_unstable();
    if !scopes.is_empty() {
        row!(w, level, "Scopes:\t{}", scopes.join(", "));
    }
    for scope in scopes {
        let text = match scope {
            "Terminating" => {
                "Matches all pods that have an active deadline. These pods have a limited lifespan on a node before being actively terminated by the system."
            }
            "NotTerminating" => {
                "Matches all pods that do not have an active deadline. These pods usually include long running pods whose container command is not expected to terminate."
            }
            "BestEffort" => {
                "Matches all pods that do not have resource requirements set. These pods have a best effort quality of service."
            }
            "NotBestEffort" => {
                "Matches all pods that have at least one resource requirement set. These pods have a burstable or guaranteed quality of service."
            }
            _ => continue,
        };
        row!(w, level, "{star} {text}");
    }
}

fn quotas_of(w: &mut Sheet, mut quotas: Vec<Value>) {
    if quotas.is_empty() {
        row!(w, 0, "No resource quota.");
        return;
    }
    quotas.sort_by(|a, b| a["metadata"]["name"].text().cmp(b["metadata"]["name"].text()));
    row!(w, 0, "Resource Quotas");
    for quota in &quotas {
        row!(w, 1, "Name:\t{}", quota["metadata"]["name"].text());
        scopes(w, quota, 1, "*");
        row!(w, 1, "Resource\tUsed\tHard");
        row!(w, 1, "--------\t---\t---");
        for (name, hard) in quota["status"]["hard"].as_object().into_iter().flatten() {
            row!(w, 1, "{name}\t{}\t{}", amount(&quota["status"]["used"][name]), amount(hard));
        }
    }
}

/// Describes a quota.
pub fn quota(w: &mut Sheet, object: &Value) {
    names(w, object);
    scopes(w, object, 0, " *");
    row!(w, 0, "Resource\tUsed\tHard");
    row!(w, 0, "--------\t----\t----");
    for (name, hard) in object["status"]["hard"].as_object().into_iter().flatten() {
        let used = &object["status"]["used"][name];
        // The amount in use is shown in the form of the limit.
        let binary = |v: &Value| v.text().ends_with('i');
        let used = match binary(used) != binary(hard) && used.is_there() {
            true => {
                let format = if binary(hard) {
                    keelson_machinery::quantity::Format::BinarySi
                } else {
                    keelson_machinery::quantity::Format::DecimalSi
                };
                Quantity::from_units(quantity(used).units(), format).to_string()
            }
            false => amount(used),
        };
        row!(w, 0, "{name}\t{used}\t{}", amount(hard));
    }
}

fn limits_of(w: &mut Sheet, range: &Value, prefix: &str) {
    const FIELDS: [&str; 5] = ["min", "max", "defaultRequest", "default", "maxLimitRequestRatio"];
    for item in range["spec"]["limits"].items() {
        let names: BTreeSet<&String> =
            FIELDS.iter().flat_map(|f| item[f].as_object().into_iter().flatten().map(|(name, _)| name)).collect();
        for name in names {
            let cell = |field: &&str| {
                if item[field][name].is_there() { amount(&item[field][name]) } else { "-".into() }
            };
            let cells: Vec<String> = FIELDS.iter().map(cell).collect();
            row!(w, 0, "{prefix}{}\t{name}\t{}", item["type"].text(), cells.join("\t"));
        }
    }
}

/// Describes a range of limits.
pub fn limit_range(w: &mut Sheet, object: &Value) {
    names(w, object);
    row!(w, 0, "Type\tResource\tMin\tMax\tDefault Request\tDefault Limit\tMax Limit/Request Ratio");
    row!(w, 0, "----\t--------\t---\t---\t---------------\t-------------\t-----------------------");
    limits_of(w, object, "");
}

/// Describes a disruption budget.
pub fn budget(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    let (spec, status) = (&object["spec"], &object["status"]);
    names(w, object);
    if spec["minAvailable"].is_there() {
        row!(w, 0, "Min available:\t{}", spec["minAvailable"].shown());
    } else if spec["maxUnavailable"].is_there() {
        row!(w, 0, "Max unavailable:\t{}", spec["maxUnavailable"].shown());
    }
    let selector = match spec["selector"].is_there() {
        true => selector_or_none(&spec["selector"]),
        false => "<unset>".into(),
    };
    row!(w, 0, "Selector:\t{selector}");
    row!(w, 0, "Status:");
    for (label, field) in [
        ("Allowed disruptions", "disruptionsAllowed"),
        ("Current", "currentHealthy"),
        ("Desired", "desiredHealthy"),
        ("Total", "expectedPods"),
    ] {
        row!(w, 2, "{label}:\t{}", status[field].number());
    }
    events(w, found);
}

/// Describes a class of priority.
pub fn priority_class(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    row!(w, 0, "Name:\t{}", object["metadata"]["name"].text());
    row!(w, 0, "Value:\t{}", object["value"].number());
    row!(w, 0, "GlobalDefault:\t{}", object["globalDefault"].is_true());
    row!(w, 0, "PreemptionPolicy:\t{}", or(object["preemptionPolicy"].text(), "PreemptLowerPriority"));
    row!(w, 0, "Description:\t{}", object["description"].text());
    row!(w, 0, "Annotations:\t{}", on_a_line(&object["metadata"]["annotations"]));
    events(w, found);
}

/// Describes an autoscaler.
pub fn autoscaler(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    let (spec, status) = (&object["spec"], &object["status"]);
    let target = &spec["scaleTargetRef"];
    names(w, object);
    marks(w, object);
    row!(w, 0, "CreationTimestamp:\t{}", date(&object["metadata"]["creationTimestamp"]));
    row!(w, 0, "Reference:\t{}/{}", target["kind"].text(), target["name"].text());
    row!(w, 0, "Metrics:\t( current / target )");
    for (at, metric) in spec["metrics"].items().iter().enumerate() {
        row!(w, 1, "{}", measure(metric, &status["currentMetrics"][at]));
    }
    row!(w, 0, "Min replicas:\t{}", or(&spec["minReplicas"].shown(), "<unset>"));
    row!(w, 0, "Max replicas:\t{}", spec["maxReplicas"].number());
    let behavior = &spec["behavior"];
    if behavior.is_there() {
        row!(w, 0, "Behavior:");
        for (label, field) in [("Scale Up", "scaleUp"), ("Scale Down", "scaleDown")] {
            direction(w, label, &behavior[field]);
        }
    }
    let (have, want) = (status["currentReplicas"].number(), status["desiredReplicas"].number());
    row!(w, 0, "{} pods:\t{have} current / {want} desired", target["kind"].text());
    let conditions = status["conditions"].items();
    if !conditions.is_empty() {
        row!(w, 0, "Conditions:");
        row!(w, 1, "Type\tStatus\tReason\tMessage");
        row!(w, 1, "----\t------\t------\t-------");
    }
    for c in conditions {
        let text = |key: &str| c[key].text();
        row!(w, 1, "{}\t{}\t{}\t{}", text("type"), text("status"), text("reason"), text("message"));
    }
    events(w, found);
}

/// A metric: its name, what it is and what it should be.
fn measure(metric: &Value, now: &Value) -> String {
    let kind = metric["type"].text();
    let field = format!("{}{}", kind[..1.min(kind.len())].to_lowercase(), &kind[1.min(kind.len())..]);
    let (of, current) = (&metric[&field], &now[&field]["current"]);
    let target = &of["target"];
    let name = of["metric"]["name"].text();
    let known = |key: &str| if current[key].is_there() { amount(&current[key]) } else { "<unknown>".into() };
    let average = target["averageValue"].is_there();
    match kind {
        "External" if average => {
            let (now, to) = (known("averageValue"), amount(&target["averageValue"]));
            format!("{} (target average value):\t{now} / {to}", quoted(name))
        }
        "External" => format!("{} (target value):\t{} / {}", quoted(name), known("value"), amount(&target["value"])),
        "Pods" => format!("{} on pods:\t{} / {}", quoted(name), known("averageValue"), amount(&target["averageValue"])),
        "Object" => {
            let on = format!("{}/{}", of["describedObject"]["kind"].text(), of["describedObject"]["name"].text());
            let (word, key) =
                if target["type"] == "AverageValue" { ("average value", "averageValue") } else { ("value", "value") };
            format!("\"{name}\" on {on} (target {word}):\t{} / {}", known(key), amount(&target[key]))
        }
        "Resource" | "ContainerResource" => {
            let of_container = match of["container"].text() {
                "" => String::new(),
                container => format!(" of container \"{container}\""),
            };
            let start = format!("resource {}{of_container} on pods", of["name"].text());
            if average {
                return format!("{start}:\t{} / {}", known("averageValue"), amount(&target["averageValue"]));
            }
            let now = match current["averageUtilization"].is_there() {
                true => format!("{}% ({})", current["averageUtilization"].number(), amount(&current["averageValue"])),
                false => "<unknown>".into(),
            };
            let to = match target["averageUtilization"].is_there() {
                true => format!("{}%", target["averageUtilization"].number()),
                false => "<auto>".into(),
            };
            format!("{start}  (as a percentage of request):\t{now} / {to}")
        }
        other => format!("<unknown metric type {}>", quoted(other)),
    }
}

fn direction(w: &mut Sheet, label: &str, rules: &Value) {
    if rules.is_null() {
        return;
    }
    row!(w, 1, "{label}:");
    if rules["stabilizationWindowSeconds"].is_there() {
        row!(w, 2, "Stabilization Window: {} seconds", rules["stabilizationWindowSeconds"].number());
    }
    if rules["policies"].items().is_empty() {
        return;
    }
    row!(w, 2, "Select Policy: {}", or(rules["selectPolicy"].text(), "Max"));
    row!(w, 2, "Policies:");
    for p in rules["policies"].items() {
        let (value, period) = (p["value"].number(), p["periodSeconds"].number());
        row!(w, 3, "- Type: {}\tValue: {value}\tPeriod: {period} seconds", p["type"].text());
    }
}
