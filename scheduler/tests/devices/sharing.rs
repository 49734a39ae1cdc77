//! Devices that several claims share, and devices that have to be made ready.

use super::*;

fn shared(name: &str) -> Value {
    json!({"name": name, "allowMultipleAllocations": true, "attributes": {"model": {"string": "x"}},
        "capacity": {"memory": {"value": "10Gi", "requestPolicy": {"default": "4Gi",
            "validRange": {"min": "1Gi", "max": "8Gi", "step": "1Gi"}}}}})
}

fn memory(amount: &str) -> Value {
    json!({"capacity": {"requests": {"memory": amount}}})
}

/// What each result takes of the memory of its device.
fn asked(core: &mut Core, name: &str, devices: Value) -> Result<Vec<String>, String> {
    claim(core, name, devices, Value::Null);
    pod(core, name, json!([{"name": "x", "resourceClaimName": name}]), Value::Null);
    match core.next(0).expect("a decision") {
        Act::Bind { promise, .. } => {
            let all = promise.devices.iter().filter_map(|r| r.allocation.as_deref()).flat_map(|a| a.devices.iter());
            let results = all.flat_map(|d| d.results.iter().flatten());
            Ok(results
                .map(|r| {
                    let taken = r.consumed_capacity.as_ref().map(|all| all["memory"].0.clone());
                    format!("{}:{}", r.device, taken.unwrap_or_default())
                })
                .collect())
        }
        Act::Fail { message, .. } => Err(message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn shares_add_up_to_what_there_is() {
    let mut core = core();
    slice(&mut core, "p", json!({"nodeName": "n1"}), json!([shared("a")]));
    let none = "0/2 nodes are available: 2 cannot allocate all claims.";
    for (name, devices, expected) in [
        ("default", exactly(json!({})), Ok("a:4Gi")),
        ("too-much", exactly(memory("7Gi")), Err(none)),
        ("beyond-policy", exactly(memory("9Gi")), Err(none)),
        ("no-such-capacity", exactly(json!({"capacity": {"requests": {"lanes": "1"}}})), Err(none)),
        ("rounded", exactly(memory("2500Mi")), Ok("a:3Gi")),
        ("the-rest", exactly(memory("3Gi")), Ok("a:3Gi")),
        ("nothing-left", exactly(memory("1")), Err(none)),
    ] {
        match (asked(&mut core, name, devices), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, [expected], "{name}"),
            (Err(found), Err(expected)) => assert!(found.starts_with(expected), "{name}: {found}"),
            (found, _) => panic!("{name}: {found:?}"),
        }
    }
    // A claim that goes gives back its share.
    core.apply(Change::ResourceClaimGone("d".into(), "the-rest".into()), 0);
    assert_eq!(asked(&mut core, "again", exactly(memory("3Gi"))), Ok(vec!["a:3Gi".to_owned()]));
}

#[test]
fn one_claim_may_have_a_device_twice_unless_it_says_otherwise() {
    let mut core = core();
    let mut devices = vec![shared("a"), shared("b")];
    devices[1]["attributes"]["model"]["string"] = "y".into();
    slice(&mut core, "p", json!({"nodeName": "n1"}), json!(devices));
    let mut two = exactly(memory("2Gi"));
    two["requests"][0]["exactly"]["count"] = 2.into();
    assert_eq!(asked(&mut core, "same", two.clone()), Ok(vec!["a:2Gi".to_owned(), "a:2Gi".to_owned()]));
    two["constraints"] = json!([{"distinctAttribute": "gpu.example.com/model"}]);
    assert_eq!(asked(&mut core, "other", two), Ok(vec!["a:2Gi".to_owned(), "b:2Gi".to_owned()]));
}

#[test]
fn stored_shares_count() {
    let mut core = core();
    slice(&mut core, "p", json!({"nodeName": "n1"}), json!([shared("a")]));
    let result = json!({"request": "r", "driver": DRIVER, "pool": "p", "device": "a", "shareID": "s", "consumedCapacity": {"memory": "8Gi"}});
    claim(&mut core, "old", exactly(json!({})), json!({"allocation": {"devices": {"results": [result]}}}));
    assert!(asked(&mut core, "much", exactly(memory("3Gi"))).is_err());
    assert_eq!(asked(&mut core, "little", exactly(memory("2Gi"))), Ok(vec!["a:2Gi".to_owned()]));
}

#[test]
fn a_device_of_its_own_has_to_be_large_enough() {
    let mut core = core();
    slice(&mut core, "p", json!({"nodeName": "n1"}), json!([device("a", "x", "8Gi"), device("b", "x", "40Gi")]));
    assert_eq!(asked(&mut core, "large", exactly(memory("20Gi"))), Ok(vec!["b:".to_owned()]));
    assert!(asked(&mut core, "larger", exactly(memory("20Gi"))).is_err());
}

#[test]
fn devices_that_are_ready_come_first_and_others_say_for_what_to_wait() {
    let mut core = core();
    let conditional = json!({"name": "far", "bindsToNode": true, "bindingConditions": ["Attached"],
        "bindingFailureConditions": ["Broken"]});
    slice(&mut core, "a-fabric", json!({"allNodes": true}), json!([conditional]));
    slice(&mut core, "z-local", json!({"nodeName": "n2"}), json!([device("near", "x", "8Gi")]));
    let mut found = Vec::new();
    for name in ["c1", "c2"] {
        claim(&mut core, name, exactly(json!({})), Value::Null);
        pod(&mut core, name, json!([{"name": "x", "resourceClaimName": name}]), Value::Null);
        // On each node its own device is first; the second claim takes what is left.
        let Some(Act::Bind { node, promise, .. }) = core.next(0) else { panic!("{name} is to be placed") };
        let allocation = promise.devices[0].allocation.clone().unwrap();
        let result = allocation.devices.as_ref().unwrap().results.as_ref().unwrap()[0].clone();
        if result.device == "far" {
            assert_eq!(result.binding_conditions, Some(vec!["Attached".to_owned()]));
            assert_eq!(result.binding_failure_conditions, Some(vec!["Broken".to_owned()]));
            let selector = serde_json::to_value(&allocation.node_selector).unwrap();
            let field = &selector["nodeSelectorTerms"][0]["matchFields"][0];
            assert_eq!(field["values"], json!([&*node]));
        } else {
            assert_eq!(&*node, "n2");
        }
        found.push(result.device);
    }
    found.sort();
    assert_eq!(found, ["far", "near"]);
}

#[test]
fn the_earlier_alternative_wins() {
    let mut core = core();
    both_pools(&mut core);
    let model = |name: &str| json!([{"cel": {"expression": format!("device.attributes['gpu.example.com'].model == '{name}'")}}]);
    let alternatives = json!({"requests": [{"name": "r", "firstAvailable": [
        {"name": "best", "deviceClassName": "gpu", "selectors": model("y")},
        {"name": "good", "deviceClassName": "gpu", "selectors": model("x")}]}]});
    // Both nodes have one of the alternatives; only the second has the first of them.
    claim(&mut core, "c", alternatives, Value::Null);
    pod(&mut core, "p", json!([{"name": "x", "resourceClaimName": "c"}]), Value::Null);
    assert_eq!(decided(&mut core), Ok(("n2".into(), vec!["r/best=p2/c".into()])));
}
