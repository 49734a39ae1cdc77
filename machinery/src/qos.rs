//! The quality of service that a pod gets from its requests and limits.

use serde_json::Value;

use crate::prepare::is_positive;
use crate::quantity::Quantity;

/// Amounts that count.
const COUNTED: [&str; 2] = ["cpu", "memory"];

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn class(spec: &Value) -> &'static str {
    // Amounts of the pod as a whole go before those of its containers.
    if spec["resources"].is_object() && any_amount(&spec["resources"]) {
        return if is_guaranteed(&spec["resources"]) { "Guaranteed" } else { "Burstable" };
    }
    let containers =
        ["initContainers", "containers"].iter().flat_map(|field| spec[*field].as_array().into_iter().flatten());
    let (mut any, mut all) = (false, true);
    for container in containers {
        any |= any_amount(&container["resources"]);
        all &= is_guaranteed(&container["resources"]);
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn any_amount(resources: &Value) -> bool {
    let has = |list: &str| COUNTED.iter().any(|name| is_positive(resources[list].get(*name)));
    has("requests") || has("limits")
}

/// Both amounts are limited, and what is requested is the limit.
fn is_guaranteed(resources: &Value) -> bool {
    COUNTED.iter().all(|name| {
        let amount = |list: &str| resources[list][*name].as_str().and_then(|text| Quantity::parse(text).ok());
        let limit = amount("limits").filter(|q| !q.is_zero());
        limit.is_some_and(|limit| amount("requests").is_none_or(|request| request == limit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes() {
        let full = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        for (spec, expected) in [
            (json!({"containers": [{}]}), "BestEffort"),
            (json!({"containers": [{"resources": {"requests": {"cpu": "0"}}}]}), "BestEffort"),
            (json!({"containers": [{"resources": full}]}), "Guaranteed"),
            (json!({"containers": [{"resources": full}, {}]}), "Burstable"),
            (json!({"containers": [{"resources": {"limits": {"cpu": "1"}}}]}), "Burstable"),
        ] {
            assert_eq!(class(&spec), expected, "{spec}");
        }
    }
}
