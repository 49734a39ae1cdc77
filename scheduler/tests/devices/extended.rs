//! Extended resources that classes of devices stand behind.

use super::*;

fn backed(core: &mut Core) {
    class(
        core,
        "gpu",
        json!({"extendedResourceName": "example.com/gpu",
        "selectors": [{"cel": {"expression": "device.driver == 'gpu.example.com'"}}]}),
    );
}

fn asking(core: &mut Core, name: &str, resource: &str, count: &str) {
    let requests = json!({"cpu": "1", resource: count});
    let object = json!({"metadata": {"name": name, "uid": format!("uid-{name}"), "namespace": "d"},
        "spec": {"schedulerName": "default-scheduler", "containers": [
            {"name": "c", "image": "i", "resources": {"requests": requests}}]}});
    core.apply(Change::Pod(parsed(object)), 0);
}

/// A node that has some of the resource of its own.
fn plugged(core: &mut Core, name: &str, count: &str) {
    let node = json!({"metadata": {"name": name}, "status": {"allocatable":
        {"cpu": "8", "memory": "8Gi", "pods": "100", "example.com/gpu": count}}});
    core.apply(Change::Node(parsed(node)), 0);
}

#[test]
fn a_pod_gets_a_claim_for_what_its_node_lacks() {
    for (resource, count, expected) in [
        ("example.com/gpu", "2", Some(2)),
        ("deviceclass.resource.kubernetes.io/gpu", "1", Some(1)),
        ("example.com/gpu", "3", None),
        ("example.com/other", "1", None),
    ] {
        let mut core = core();
        backed(&mut core);
        both_pools(&mut core);
        asking(&mut core, "p", resource, count);
        let act = core.next(0).expect("a decision");
        match (act, expected) {
            (Act::Bind { promise, .. }, Some(number)) => {
                let [reservation] = &promise.devices[..] else { panic!("{resource}: one claim is to be made") };
                let special = reservation.special.as_ref().unwrap();
                let request = &special.spec.requests.as_ref().unwrap()[0];
                assert_eq!(request.name, "container-0-request-1");
                assert_eq!(request.exactly.as_ref().unwrap().device_class_name, "gpu");
                assert_eq!(special.mappings, [["c".into(), resource.into(), "container-0-request-1".into()]]);
                assert_eq!(devices(reservation.allocation.as_ref().unwrap()).len(), number, "{resource}");
            }
            (Act::Fail { .. }, None) => {}
            (other, _) => panic!("{resource} {count}: {other:?}"),
        }
    }
}

#[test]
fn what_a_node_has_of_its_own_comes_without_a_claim() {
    let mut core = core();
    backed(&mut core);
    plugged(&mut core, "n1", "1");
    core.apply(Change::NodeGone("n2".into()), 0);
    asking(&mut core, "p", "example.com/gpu", "1");
    let Some(Act::Bind { node, promise, .. }) = core.next(0) else { panic!("it is to be placed") };
    assert_eq!((&*node, promise.is_empty()), ("n1", true));
    asking(&mut core, "q", "example.com/gpu", "1");
    assert!(decided(&mut core).unwrap_err().contains("1 Insufficient example.com/gpu"));
}

#[test]
fn devices_are_taken_before_the_claim_is_there_and_by_it_afterwards() {
    let mut core = core();
    backed(&mut core);
    slice(&mut core, "p", json!({"nodeName": "n1"}), json!([device("a", "x", "8Gi"), device("b", "x", "8Gi")]));
    asking(&mut core, "p", "example.com/gpu", "1");
    assert_eq!(decided(&mut core), Ok(("n1".into(), vec!["container-0-request-1=p/a".into()])));
    let made = |uid: &str| {
        json!({
        "metadata": {"name": "p-extended-resources-x", "namespace": "d", "uid": uid,
            "annotations": {"resource.kubernetes.io/extended-resource-claim": "true"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "uid-p", "controller": true}]},
        "spec": {}, "status": {"allocation": {"devices": {"results": [
            {"request": "container-0-request-1", "driver": DRIVER, "pool": "p", "device": "a"}]}}}})
    };
    core.apply(Change::ResourceClaim(parsed(made("u1"))), 0);
    core.finished("uid-p", true, 0);
    asking(&mut core, "q", "example.com/gpu", "1");
    assert_eq!(decided(&mut core), Ok(("n1".into(), vec!["container-0-request-1=p/b".into()])));
    // The claim counts once: when it goes, its device is free.
    core.apply(Change::ResourceClaimGone("d".into(), "p-extended-resources-x".into()), 0);
    asking(&mut core, "r", "example.com/gpu", "1");
    assert_eq!(decided(&mut core), Ok(("n1".into(), vec!["container-0-request-1=p/a".into()])));
}

#[test]
fn a_claim_of_an_attempt_before_goes_first() {
    let mut core = core();
    backed(&mut core);
    both_pools(&mut core);
    let stale = json!({
        "metadata": {"name": "stale", "namespace": "d", "uid": "u",
            "annotations": {"resource.kubernetes.io/extended-resource-claim": "true"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "uid-p", "controller": true}]},
        "spec": {"devices": exactly(json!({}))}});
    core.apply(Change::ResourceClaim(parsed(stale)), 0);
    asking(&mut core, "p", "example.com/gpu", "1");
    let Some(Act::Fail { message, release, .. }) = core.next(0) else { panic!("the claim is in the way") };
    assert!(
        message.starts_with("0/2 nodes are available: 2 cannot schedule extended resource claim. deletion of"),
        "{message}"
    );
    assert!(release.is_some_and(|release| release.delete && &*release.key.1 == "stale"));
    core.told("uid-p", 0);
    core.apply(Change::ResourceClaimGone("d".into(), "stale".into()), 0);
    assert!(matches!(core.next(100_000), Some(Act::Bind { .. })));
}

#[test]
fn strategies_count_the_devices_behind_a_resource() {
    for (strategy, expected) in [("LeastAllocated", "n2"), ("MostAllocated", "n1")] {
        let scoring = json!({"type": strategy, "resources": [{"name": "example.com/gpu", "weight": 1}]});
        let config = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
            "profiles": [{"schedulerName": "default-scheduler",
                "plugins": {"multiPoint": {"disabled": [{"name": "NodeResourcesBalancedAllocation"}]}},
                "pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy": scoring}}]}]});
        let mut core = populated(Core::new(|syms| Config::parse(config, syms), 1).unwrap());
        backed(&mut core);
        // One of two is left on the first node, four of four on the second.
        slice(&mut core, "p", json!({"nodeName": "n1"}), json!([device("a", "x", "8Gi"), device("b", "x", "8Gi")]));
        let four = ["c", "d", "e", "f"].map(|name| device(name, "x", "8Gi"));
        slice(&mut core, "q", json!({"nodeName": "n2"}), json!(four));
        let taken = json!({"metadata": {"name": "other", "namespace": "d", "uid": "o"}, "spec": {},
            "status": {"allocation": {"devices": {"results": [
                {"request": "r", "driver": DRIVER, "pool": "p", "device": "a"}]}}}});
        core.apply(Change::ResourceClaim(parsed(taken)), 0);
        asking(&mut core, "p", "example.com/gpu", "1");
        let (chosen, _) = decided(&mut core).unwrap();
        assert_eq!(chosen, expected, "{strategy}");
    }
}
