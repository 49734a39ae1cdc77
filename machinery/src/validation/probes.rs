//! Probes and hooks of containers, and when a container is started again.

use serde_json::{Value, json};

use super::check::{Problems, or_empty};
use super::{has, items, text};

/// Most rules of when a container is started again, and exit codes of one.
const MAX_RULES: usize = 20;
const MAX_EXIT_CODES: usize = 255;

/// Probes and hooks of a container that runs along; `grace` is how many seconds its pod may take to end.
pub fn running(container: &Value, at: &str, grace: i64, p: &mut Problems) {
    for hook in ["postStart", "preStop"] {
        let handler = &container["lifecycle"][hook];
        if handler.is_object() {
            let at = format!("{at}.lifecycle.{hook}");
            handlers(handler, &["exec", "httpGet", "tcpSocket", "sleep"], grace, &at, p);
        }
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[field].is_object() {
            probe(&container[field], field, grace, &format!("{at}.{field}"), p);
        }
    }
}

fn probe(probe: &Value, field: &str, grace: i64, at: &str, p: &mut Problems) {
    handlers(probe, &["exec", "httpGet", "tcpSocket", "grpc"], grace, at, p);
    for number in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        p.not_negative(format!("{at}.{number}"), &probe[number]);
    }
    let own = &probe["terminationGracePeriodSeconds"];
    if own.as_i64().is_some_and(|g| g <= 0) {
        p.invalid(format!("{at}.terminationGracePeriodSeconds"), own, "must be greater than 0");
    }
    if field == "readinessProbe" {
        if !own.is_null() {
            let why = "must not be set for readinessProbes";
            p.invalid(format!("{at}.terminationGracePeriodSeconds"), own, why);
        }
    } else if probe["successThreshold"].as_i64().is_some_and(|n| n != 1) {
        p.invalid(format!("{at}.successThreshold"), &probe["successThreshold"], "must be 1");
    }
}

fn handlers(handler: &Value, kinds: &[&str], grace: i64, at: &str, p: &mut Problems) {
    let set: Vec<&&str> = kinds.iter().filter(|kind| has(handler, kind)).collect();
    if set.is_empty() {
        p.required(at, "must specify a handler type");
    }
    for (index, kind) in set.into_iter().enumerate() {
        let (inner, at) = (&handler[*kind], format!("{at}.{kind}"));
        if index > 0 {
            p.forbidden(at, "may not specify more than 1 handler type");
            continue;
        }
        match *kind {
            "exec" if items(&inner["command"]).next().is_none() => p.required(format!("{at}.command"), ""),
            "httpGet" => http_get(inner, &at, p),
            "tcpSocket" => p.port_or_name(&format!("{at}.port"), &inner["port"]),
            "grpc" => p.port(format!("{at}.port"), &inner["port"]),
            "sleep" => {
                let seconds = inner["seconds"].as_i64().unwrap_or(0);
                if !(0..=grace).contains(&seconds) {
                    let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    p.invalid(at, &json!(seconds), &why);
                }
            }
            _ => {}
        }
    }
}

fn http_get(action: &Value, at: &str, p: &mut Problems) {
    p.present(action, "path", at);
    p.port_or_name(&format!("{at}.port"), &action["port"]);
    p.one_of(format!("{at}.scheme"), &action["scheme"], &["HTTP", "HTTPS"]);
    for header in items(&action["httpHeaders"]) {
        let name = text(header, "name");
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            let why = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for \
                       validation is '[-A-Za-z0-9]+')";
            p.invalid(format!("{at}.httpHeaders"), &or_empty(&header["name"]), why);
        }
    }
}

/// When a container is started again; one that runs before the others may say `Always` without rules too.
pub fn restart(container: &Value, at: &str, p: &mut Problems) {
    let (policy, rules) = (&container["restartPolicy"], &container["restartPolicyRules"]);
    let count = items(rules).count();
    if policy.is_null() {
        if count > 0 {
            p.required(format!("{at}.restartPolicy"), "must specify restartPolicy when restart rules are used");
        }
    } else {
        p.one_of(format!("{at}.restartPolicy"), policy, &["Always", "Never", "OnFailure"]);
    }
    let path = format!("{at}.restartPolicyRules");
    if count > MAX_RULES {
        p.too_many(&path, count, MAX_RULES);
    }
    for (index, rule) in items(rules).enumerate() {
        let at = format!("{path}[{index}]");
        p.one_of(format!("{at}.action"), &rule["action"], &["Restart", "RestartAllContainers"]);
        let codes = &rule["exitCodes"];
        if !codes.is_object() {
            p.required(format!("{at}.exitCodes"), "must be specified");
            continue;
        }
        p.one_of(format!("{at}.exitCodes.operator"), &codes["operator"], &["In", "NotIn"]);
        if items(&codes["values"]).count() > MAX_EXIT_CODES {
            p.too_many(format!("{at}.exitCodes.values"), items(&codes["values"]).count(), MAX_EXIT_CODES);
        }
    }
}

/// Whether what one container does may start all of them again.
pub fn may_restart_all(spec: &Value) -> bool {
    let rules = |c: &Value| items(&c["restartPolicyRules"]).any(|rule| rule["action"] == "RestartAllContainers");
    ["containers", "initContainers"].iter().any(|list| items(&spec[*list]).any(rules))
}

/// Whether a container that ended with a code is started again: by its rules, its own policy or the pod's.
pub fn may_restart(container: &Value, spec: &Value, code: i64) -> bool {
    let fits = |rule: &Value| {
        let listed = items(&rule["exitCodes"]["values"]).any(|value| *value == code);
        match text(&rule["exitCodes"], "operator") {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    };
    if items(&container["restartPolicyRules"]).any(|rule| rule["action"] == "Restart" && fits(rule)) {
        return true;
    }
    match container["restartPolicy"].as_str().unwrap_or(text(spec, "restartPolicy")) {
        "OnFailure" => code != 0,
        "Never" => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rule: impl Fn(&mut Problems)) -> Vec<String> {
        let mut p = Problems::default();
        rule(&mut p);
        p.0.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn probes_and_hooks_are_held_to_their_rules() {
        for (container, expected) in [
            (json!({"livenessProbe": {"grpc": {"port": 80}, "successThreshold": 1}}), vec![]),
            (
                json!({"livenessProbe": {"exec": {}, "terminationGracePeriodSeconds": 0, "successThreshold": 2}}),
                vec![
                    "c.livenessProbe.exec.command: Required value",
                    "c.livenessProbe.terminationGracePeriodSeconds: Invalid value: 0: must be greater than 0",
                    "c.livenessProbe.successThreshold: Invalid value: 2: must be 1",
                ],
            ),
            (
                json!({"readinessProbe": {"tcpSocket": {"port": "a--b"}, "terminationGracePeriodSeconds": 3}}),
                vec![
                    "c.readinessProbe.tcpSocket.port: Invalid value: \"a--b\": must not contain consecutive hyphens",
                    "c.readinessProbe.terminationGracePeriodSeconds: Invalid value: 3: must not be set for readinessProbes",
                ],
            ),
            (
                json!({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}, "postStart": {}}}),
                vec![
                    "c.lifecycle.postStart: Required value: must specify a handler type",
                    "c.lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than \
                     terminationGracePeriodSeconds (30)",
                ],
            ),
        ] {
            assert_eq!(found(|p| running(&container, "c", 30, p)), expected, "{container}");
        }
    }

    #[test]
    fn rules_of_starting_again() {
        for (container, expected) in [
            (json!({"restartPolicy": "Always"}), vec![]),
            (
                json!({"restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [3]}}]}),
                vec!["c.restartPolicy: Required value: must specify restartPolicy when restart rules are used"],
            ),
            (
                json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Stop", "exitCodes": {"operator": "Equals"}}]}),
                vec![
                    "c.restartPolicyRules[0].action: Unsupported value: \"Stop\": supported values: \"Restart\", \
                     \"RestartAllContainers\"",
                    "c.restartPolicyRules[0].exitCodes.operator: Unsupported value: \"Equals\": supported values: \"In\", \
                     \"NotIn\"",
                ],
            ),
        ] {
            assert_eq!(found(|p| restart(&container, "c", p)), expected, "{container}");
        }
    }
}
