//! Claims that keep their pods from nodes let go of their devices.

use super::*;

/// A claim that has the device of `n1`, with what its status says beside.
fn taken(core: &mut Core, more: Value) {
    let mut result = json!({"request": "r", "driver": DRIVER, "pool": "p1", "device": "a"});
    let mut status = json!({"allocation": {"nodeSelector": {"nodeSelectorTerms": [{"matchFields": [
        {"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]}}});
    for (key, value) in more.as_object().unwrap() {
        match key.as_str() {
            "conditions" => {
                result["bindingConditions"] = json!(["Attached"]);
                result["bindingFailureConditions"] = json!(["Broken"]);
                status["devices"] = json!([{"driver": DRIVER, "pool": "p1", "device": "a", "conditions": value}]);
            }
            "time" => status["allocation"]["allocationTimestamp"] = value.clone(),
            _ => status[key] = value.clone(),
        }
    }
    status["allocation"]["devices"] = json!({"results": [result]});
    claim(core, "c", exactly(json!({})), status);
}

fn condition(kind: &str) -> Value {
    json!([{"type": kind, "status": "True", "reason": "r", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}])
}

#[test]
fn only_what_nobody_else_uses_is_let_go() {
    let completed = "deallocation of ResourceClaim completed, preemption";
    let still = "still not schedulable, preemption";
    let user = |uid: &str| json!({"reservedFor": [{"resource": "pods", "name": "x", "uid": uid}]});
    let waiting = |time: &str| json!({"conditions": [], "time": time});
    let early = "1970-01-01T00:00:00Z";
    for (what, more, cordoned, expected) in [
        ("elsewhere, idle", json!({}), true, Some((completed, true))),
        ("elsewhere, its own", user("uid-p"), true, Some((completed, true))),
        ("elsewhere, another's", user("uid-q"), true, Some((still, false))),
        ("near", json!({}), false, None),
        ("broken", json!({"conditions": condition("Broken")}), false, Some((completed, true))),
        ("ready", json!({"conditions": condition("Attached")}), false, None),
        ("waiting", waiting("1970-01-01T00:10:00Z"), false, None),
        ("too late", waiting(early), false, Some((completed, true))),
    ] {
        let mut core = core();
        core.view.now = 1000;
        both_pools(&mut core);
        taken(&mut core, more);
        if cordoned {
            let node = json!({"metadata": {"name": "n1"}, "spec": {"unschedulable": true},
                "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "100"}}});
            core.apply(Change::Node(parsed(node)), 0);
        }
        pod(&mut core, "p", json!([{"name": "x", "resourceClaimName": "c"}]), Value::Null);
        match (core.next(0).expect("a decision"), expected) {
            (Act::Bind { node, .. }, None) => assert_eq!(&*node, "n1", "{what}"),
            (Act::Fail { message, release, .. }, Some((words, released))) => {
                assert!(message.contains(words), "{what}: {message}");
                let key = release.map(|release| (release.key.1.to_string(), release.uid, release.delete));
                assert_eq!(key, released.then(|| ("c".to_owned(), "uid-c".to_owned(), false)), "{what}");
            }
            (other, _) => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn once_let_go_the_pod_goes_elsewhere() {
    let mut core = core();
    both_pools(&mut core);
    taken(&mut core, json!({"conditions": condition("Broken")}));
    pod(&mut core, "p", json!([{"name": "x", "resourceClaimName": "c"}]), Value::Null);
    assert!(decided(&mut core).unwrap_err().contains("2 resourceclaim not available on the node"));
    core.told("uid-p", 0);
    assert!(core.next(50_000).is_none(), "nothing happened yet");
    claim(&mut core, "c", exactly(json!({})), Value::Null);
    assert!(matches!(core.next(100_000), Some(Act::Bind { .. })));
}

#[test]
fn a_profile_may_keep_claims_as_they_are() {
    let config = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "profiles": [{"plugins": {"postFilter": {"disabled": [{"name": "DynamicResources"}]}}}]});
    let mut core = Core::new(|syms| Config::parse(config, syms), 7).unwrap();
    let node =
        json!({"metadata": {"name": "n2"}, "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "100"}}});
    core.apply(Change::Node(parsed(node)), 0);
    class(&mut core, "gpu", json!({}));
    taken(&mut core, json!({}));
    pod(&mut core, "p", json!([{"name": "x", "resourceClaimName": "c"}]), Value::Null);
    let Some(Act::Fail { message, release, .. }) = core.next(0) else { panic!("it is to fail") };
    assert!(release.is_none() && !message.contains("ResourceClaim"), "{message}");
}
