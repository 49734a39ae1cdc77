//! What pods and containers say of their security, and the small steps with which policies read and change it.

use serde_json::{Value, json};

/// Where containers of a pod are, in the order in which they are looked at.
pub const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// The items of a list, none if it is no list.
pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// A text, empty if it is none.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The texts of a list, sorted, each once.
pub fn set(list: &Value) -> std::collections::BTreeSet<String> {
    items(list).filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The containers of a pod with the paths of their fields.
pub fn containers(pod: &Value) -> impl Iterator<Item = (String, &Value)> {
    CONTAINERS.into_iter().flat_map(|key| {
        let list = items(&pod["spec"][key]).enumerate();
        list.map(move |(index, container)| (format!("spec.{key}[{index}]"), container))
    })
}

/// What counts for a container: what it says itself, else what its pod says.
pub fn effective<'a>(pod: &'a Value, container: &'a Value, key: &str) -> &'a Value {
    match &container["securityContext"][key] {
        Value::Null => &pod["spec"]["securityContext"][key],
        own => own,
    }
}

/// Sets a field of a security context, which is made if it is absent.
pub fn put(of: &mut Value, key: &str, value: Value) {
    if !of["securityContext"].is_object() {
        of["securityContext"] = json!({});
    }
    of["securityContext"][key] = value;
}

/// Whether a number is in one of the ranges.
pub fn within(ranges: &Value, number: i64) -> bool {
    items(ranges).any(|range| {
        let bound = |key: &str| range[key].as_i64().unwrap_or_default();
        bound("min") <= number && number <= bound("max")
    })
}

/// Ranges as messages show them: `[{1 10} {20 30}]`.
pub fn ranges(of: &Value) -> String {
    let shown: Vec<String> = items(of).map(|range| format!("{{{} {}}}", range["min"], range["max"])).collect();
    format!("[{}]", shown.join(" "))
}

/// The least id of the first range.
pub fn least(strategy: &Value) -> Option<Value> {
    strategy["ranges"].get(0).map(|range| range["min"].clone())
}

/// A profile in the form that annotations had: `runtime/default`, `unconfined`, `localhost/x`.
pub fn profile(of: &Value) -> String {
    match text(&of["type"]) {
        "RuntimeDefault" => "runtime/default".into(),
        "Unconfined" => "unconfined".into(),
        "Localhost" => format!("localhost/{}", text(&of["localhostProfile"])),
        _ => String::new(),
    }
}

/// The reverse of [`profile`]; `None` if it is no profile.
pub fn profile_of(name: &str) -> Option<Value> {
    Some(match name {
        "runtime/default" | "docker/default" => json!({"type": "RuntimeDefault"}),
        "unconfined" => json!({"type": "Unconfined"}),
        _ => json!({"type": "Localhost", "localhostProfile": name.strip_prefix("localhost/")?}),
    })
}
