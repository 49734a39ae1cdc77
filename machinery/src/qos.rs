//! A pod's quality-of-service class, which follows from what its containers ask for and may use.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::quantity::Quantity;

/// Resources that count.
const COMPUTE: [&str; 2] = ["cpu", "memory"];

/// `Guaranteed` when every container has limits for processor and memory and asks for as much; `BestEffort` when none
/// says anything; else `Burstable`.
pub fn class(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    let whole = &spec["resources"];
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    let mut all_limited = true;
    let mut count = |resources: &Value| {
        add(&resources["requests"], &mut requests);
        all_limited &= add(&resources["limits"], &mut limits) == COMPUTE.len();
    };
    if whole["requests"].is_object() || whole["limits"].is_object() {
        count(whole);
    } else {
        for list in ["containers", "initContainers"] {
            spec[list].as_array().into_iter().flatten().for_each(|container| count(&container["resources"]));
        }
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if all_limited && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

/// Adds up what is above zero; returns how many resources there were.
fn add(from: &Value, sums: &mut BTreeMap<&'static str, i64>) -> usize {
    let mut found = 0;
    for name in COMPUTE {
        let quantity = from[name].as_str().and_then(|text| Quantity::parse(text).ok());
        if let Some(millis) = quantity.map(|q| q.millis()).filter(|millis| *millis > 0) {
            let sum = sums.entry(name).or_default();
            *sum = sum.saturating_add(millis);
            found += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::class;
    use serde_json::json;

    #[test]
    fn classes() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        for (containers, expected) in [
            (json!([{}]), "BestEffort"),
            (json!([{"resources": {"requests": {"cpu": "0"}}}]), "BestEffort"),
            (json!([{"resources": {"requests": {"cpu": "1"}}}]), "Burstable"),
            (json!([{"resources": {"limits": both}}]), "Burstable"),
            (json!([{"resources": {"requests": both, "limits": both}}]), "Guaranteed"),
            (json!([{"resources": {"requests": both, "limits": {"cpu": "1000m", "memory": "1Gi"}}}]), "Guaranteed"),
            (json!([{"resources": {"requests": both, "limits": both}}, {}]), "Burstable"),
            (json!([{"resources": {"requests": {"cpu": "1"}, "limits": both}}]), "Burstable"),
        ] {
            assert_eq!(class(&json!({"spec": {"containers": containers}})), expected, "{containers}");
        }
        let whole = json!({"spec": {"containers": [{}], "resources": {"requests": both, "limits": both}}});
        assert_eq!(class(&whole), "Guaranteed");
    }
}
