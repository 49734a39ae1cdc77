//! Devices that are made ready after they were chosen (KEP-5007): what drivers say in a claim's status.

use k8s_openapi::api::resource::v1::{AllocatedDeviceStatus, AllocationResult, DeviceRequestAllocationResult};

/// Whether the devices of a claim are ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// All of them, or they never need to be made so.
    Ready,
    /// Not all of them yet.
    Waiting,
    /// One of them will never be: why.
    Failed(String),
}

fn results(allocation: &AllocationResult) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    allocation.devices.iter().flat_map(|devices| devices.results.iter().flatten())
}

/// Whether a pod that gets these devices has to wait for conditions.
pub fn conditional(allocation: &AllocationResult) -> bool {
    results(allocation).any(|result| result.binding_conditions.as_ref().is_some_and(|all| !all.is_empty()))
}

/// What the drivers say.
pub fn readiness(allocation: &AllocationResult, statuses: &[AllocatedDeviceStatus]) -> Readiness {
    let mut waiting = false;
    for result in results(allocation) {
        let about = |status: &&AllocatedDeviceStatus| {
            (&status.driver, &status.pool, &status.device) == (&result.driver, &result.pool, &result.device)
        };
        let status = statuses.iter().find(about);
        let conditions = status.into_iter().flat_map(|status| status.conditions.iter().flatten());
        let holds = |name: &String| conditions.clone().find(|c| c.type_ == *name && c.status == "True");
        if let Some(failed) = result.binding_failure_conditions.iter().flatten().find_map(holds) {
            let (device, kind, why) = (&result.device, &failed.type_, &failed.message);
            return Readiness::Failed(format!("device binding failed: device {device}, condition {kind}: {why}"));
        }
        waiting |= !result.binding_conditions.iter().flatten().all(|name| holds(name).is_some());
    }
    if waiting { Readiness::Waiting } else { Readiness::Ready }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn conditions_decide() {
        let result = json!({"request": "r", "driver": "d", "pool": "p", "device": "a",
            "bindingConditions": ["Attached", "Powered"], "bindingFailureConditions": ["Broken"]});
        let allocation: AllocationResult = serde_json::from_value(json!({"devices": {"results": [result]}})).unwrap();
        assert!(conditional(&allocation));
        let condition = |kind: &str, status: &str| {
            json!({"type": kind, "status": status, "reason": "r", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let about = |device: &str, conditions: Value| json!([{"driver": "d", "pool": "p", "device": device, "conditions": conditions}]);
        let both = json!([condition("Attached", "True"), condition("Powered", "True")]);
        let broken = "device binding failed: device a, condition Broken: m";
        for (statuses, expected) in [
            (json!([]), Readiness::Waiting),
            (about("a", json!([condition("Attached", "True")])), Readiness::Waiting),
            (about("a", json!([condition("Attached", "True"), condition("Powered", "False")])), Readiness::Waiting),
            (about("a", both.clone()), Readiness::Ready),
            (about("b", both), Readiness::Waiting),
            (about("a", json!([condition("Broken", "True")])), Readiness::Failed(broken.into())),
            (about("a", json!([condition("Broken", "False")])), Readiness::Waiting),
        ] {
            let parsed: Vec<AllocatedDeviceStatus> = serde_json::from_value(statuses.clone()).unwrap();
            assert_eq!(readiness(&allocation, &parsed), expected, "{statuses}");
        }
        assert_eq!(readiness(&AllocationResult::default(), &[]), Readiness::Ready);
    }
}
