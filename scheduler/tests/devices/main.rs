//! Devices for pods: what claims get, why they get nothing, and that no device is ever given twice.

mod extended;
mod releasing;
mod sharing;

use std::collections::BTreeSet;

use k8s_openapi::api::resource::v1::AllocationResult;
use keelson_scheduler::config::{Config, ConfigError};
use keelson_scheduler::core::{Act, Change, Core};
use proptest::prelude::*;
use serde_json::{Value, json};

const DRIVER: &str = "gpu.example.com";

fn parsed<T: serde::de::DeserializeOwned>(value: Value) -> Box<T> {
    Box::new(serde_json::from_value(value).unwrap())
}

fn core() -> Core {
    populated(Core::new(|syms| Ok::<_, ConfigError>(Config::standard(syms)), 7).unwrap())
}

/// With two nodes and a class.
fn populated(mut core: Core) -> Core {
    for (name, zone) in [("n1", "a"), ("n2", "b")] {
        let node = json!({"metadata": {"name": name, "labels": {"zone": zone}},
            "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "100"}}});
        core.apply(Change::Node(parsed(node)), 0);
    }
    class(&mut core, "gpu", json!({"selectors": [{"cel": {"expression": "device.driver == 'gpu.example.com'"}}]}));
    core
}

fn class(core: &mut Core, name: &str, spec: Value) {
    core.apply(Change::DeviceClass(parsed(json!({"metadata": {"name": name}, "spec": spec}))), 0);
}

/// A slice that is its whole pool; `place` says from where its devices can be used.
fn slice(core: &mut Core, pool: &str, place: Value, devices: Value) {
    let mut spec = json!({"driver": DRIVER, "pool": {"name": pool, "generation": 1, "resourceSliceCount": 1},
        "devices": devices});
    for (key, value) in place.as_object().unwrap() {
        spec[key] = value.clone();
    }
    core.apply(Change::ResourceSlice(parsed(json!({"metadata": {"name": format!("s-{pool}")}, "spec": spec}))), 0);
}

fn device(name: &str, model: &str, memory: &str) -> Value {
    json!({"name": name, "attributes": {"model": {"string": model}, "example.com/socket": {"int": 1}},
        "capacity": {"memory": {"value": memory}}})
}

fn claim(core: &mut Core, name: &str, devices: Value, status: Value) {
    let object = json!({"metadata": {"name": name, "namespace": "d", "uid": format!("uid-{name}")},
        "spec": {"devices": devices}, "status": status});
    core.apply(Change::ResourceClaim(parsed(object)), 0);
}

fn pod(core: &mut Core, name: &str, claims: Value, statuses: Value) {
    let object = json!({"metadata": {"name": name, "uid": format!("uid-{name}"), "namespace": "d"},
        "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c", "image": "i"}], "resourceClaims": claims},
        "status": {"resourceClaimStatuses": statuses}});
    core.apply(Change::Pod(parsed(object)), 0);
}

fn exactly(more: Value) -> Value {
    let mut request = json!({"deviceClassName": "gpu"});
    for (key, value) in more.as_object().unwrap() {
        request[key] = value.clone();
    }
    json!({"requests": [{"name": "r", "exactly": request}]})
}

/// What an allocation has, as `request=pool/device`.
fn devices(allocation: &AllocationResult) -> Vec<String> {
    let results = allocation.devices.iter().flat_map(|d| d.results.iter().flatten());
    results.map(|r| format!("{}={}/{}", r.request, r.pool, r.device)).collect()
}

/// The next decision: node and devices of all claims, or why not.
fn decided(core: &mut Core) -> Result<(String, Vec<String>), String> {
    match core.next(0).expect("a decision") {
        Act::Bind { node, promise, .. } => {
            let all = promise.devices.iter().filter_map(|r| r.allocation.as_deref()).flat_map(devices);
            Ok((node.to_string(), all.collect()))
        }
        Act::Fail { message, .. } => Err(message),
        Act::Ask { .. } | Act::Consult { .. } | Act::Group { .. } => panic!("there are no extenders and no groups"),
    }
}

fn both_pools(core: &mut Core) {
    slice(core, "p1", json!({"nodeName": "n1"}), json!([device("a", "x", "8Gi"), device("b", "x", "40Gi")]));
    slice(core, "p2", json!({"nodeName": "n2"}), json!([device("c", "y", "40Gi"), device("d", "x", "40Gi")]));
}

#[test]
fn claims_get_what_they_ask_for() {
    let cel = |expression: &str| json!([{"cel": {"expression": expression}}]);
    let model = |name: &str| cel(&format!("device.attributes['gpu.example.com'].model == '{name}'"));
    let large = cel("device.capacity['gpu.example.com'].memory.compareTo(quantity('16Gi')) >= 0");
    let two = |constraint: Value| {
        json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "gpu"}}, {"name": "s", "exactly": {"deviceClassName": "gpu"}}],
            "constraints": [constraint]})
    };
    let none = "0/2 nodes are available: 2 cannot allocate all claims.";
    for (asked, expected) in [
        (exactly(json!({"selectors": model("y")})), Ok(("n2", vec!["r=p2/c"]))),
        (exactly(json!({"selectors": large, "count": 2})), Ok(("n2", vec!["r=p2/c", "r=p2/d"]))),
        (exactly(json!({"selectors": model("x"), "count": 2})), Ok(("n1", vec!["r=p1/a", "r=p1/b"]))),
        (exactly(json!({"selectors": model("z")})), Err(none)),
        (exactly(json!({"count": 3})), Err(none)),
        (exactly(json!({"allocationMode": "All", "selectors": model("y")})), Ok(("n2", vec!["r=p2/c"]))),
        (two(json!({"matchAttribute": "gpu.example.com/model"})), Ok(("n1", vec!["r=p1/a", "s=p1/b"]))),
        (two(json!({"distinctAttribute": "gpu.example.com/model"})), Ok(("n2", vec!["r=p2/c", "s=p2/d"]))),
        (two(json!({"matchAttribute": "gpu.example.com/absent"})), Err(none)),
        (
            json!({"requests": [{"name": "r", "firstAvailable": [
                {"name": "best", "deviceClassName": "gpu", "selectors": model("z")},
                {"name": "good", "deviceClassName": "gpu", "selectors": model("y")}]}]}),
            Ok(("n2", vec!["r/good=p2/c"])),
        ),
        (
            exactly(json!({"deviceClassName": "absent"})),
            Err("0/2 nodes are available: request r: device class absent does not exist."),
        ),
        (
            exactly(json!({"selectors": cel("device.attributes['gpu.example.com'].speed > 1")})),
            Err("0/2 nodes are available: 2 request r: selector #0: CEL runtime error: no such key: speed."),
        ),
    ] {
        let mut core = core();
        both_pools(&mut core);
        claim(&mut core, "c", asked.clone(), Value::Null);
        pod(&mut core, "p", json!([{"name": "x", "resourceClaimName": "c"}]), Value::Null);
        let found = decided(&mut core);
        match expected {
            Ok((node, devices)) => {
                let devices: Vec<String> = devices.into_iter().map(str::to_owned).collect();
                assert_eq!(found, Ok((node.to_owned(), devices)), "{asked}");
            }
            Err(why) => {
                let said = found.expect_err(&asked.to_string());
                assert!(said.starts_with(why), "{asked}: {said}");
            }
        }
    }
}

#[test]
fn a_device_is_given_once_and_comes_back() {
    let mut core = core();
    slice(&mut core, "p1", json!({"nodeName": "n1"}), json!([device("a", "x", "8Gi")]));
    for name in ["c1", "c2"] {
        claim(&mut core, name, exactly(json!({})), Value::Null);
    }
    pod(&mut core, "p1", json!([{"name": "x", "resourceClaimName": "c1"}]), Value::Null);
    assert_eq!(decided(&mut core), Ok(("n1".into(), vec!["r=p1/a".into()])));
    // The claim's new status has not come yet: what was decided counts.
    pod(&mut core, "p2", json!([{"name": "x", "resourceClaimName": "c2"}]), Value::Null);
    assert!(decided(&mut core).unwrap_err().contains("cannot allocate all claims"));
    // The first placement came to nothing: the device is free.
    core.finished("uid-p1", false, 0);
    core.told("uid-p2", 0);
    core.apply(Change::PodGone("uid-p1".into()), 0);
    claim(&mut core, "c2", exactly(json!({})), Value::Null);
    let act = core.next(100_000).expect("the second is tried again");
    assert!(matches!(act, Act::Bind { .. }), "{act:?}");
}

#[test]
fn a_claim_that_has_devices_binds_the_pod_to_its_node() {
    let mut core = core();
    both_pools(&mut core);
    let status = json!({
        "allocation": {"devices": {"results": [{"request": "r", "driver": DRIVER, "pool": "p2", "device": "c"}]},
            "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]}},
        "reservedFor": [{"resource": "pods", "name": "other", "uid": "uid-other"}]});
    claim(&mut core, "c", exactly(json!({})), status);
    pod(&mut core, "p", json!([{"name": "x", "resourceClaimName": "c"}]), Value::Null);
    assert_eq!(decided(&mut core), Ok(("n2".into(), vec!["r=p2/c".into()])));
    // And nobody else gets what it has.
    claim(
        &mut core,
        "e",
        exactly(json!({"selectors": [{"cel": {"expression": "device.attributes['gpu.example.com'].model == 'y'"}}]})),
        Value::Null,
    );
    pod(&mut core, "q", json!([{"name": "x", "resourceClaimName": "e"}]), Value::Null);
    assert!(decided(&mut core).unwrap_err().contains("2 cannot allocate all claims"));
}

#[test]
fn a_pod_waits_for_the_claim_that_is_made_for_it() {
    let mut core = core();
    both_pools(&mut core);
    let from = json!([{"name": "x", "resourceClaimTemplateName": "t"}]);
    pod(&mut core, "p", from.clone(), Value::Null);
    assert!(core.next(0).is_none(), "there is nothing to try before the claim is there");
    let mut made = json!({"metadata": {"name": "p-x", "namespace": "d", "uid": "uid-made", "ownerReferences": [
        {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "uid-other", "controller": true}]}, "spec": {"devices": exactly(json!({}))}});
    core.apply(Change::ResourceClaim(parsed(made.clone())), 0);
    pod(&mut core, "p", from, json!([{"name": "x", "resourceClaimName": "p-x"}]));
    let why = "ResourceClaim d/p-x was not created for Pod d/p (Pod is not owner)";
    assert!(decided(&mut core).unwrap_err().contains(why));
    core.told("uid-p", 0);
    made["metadata"]["ownerReferences"][0]["uid"] = "uid-p".into();
    core.apply(Change::ResourceClaim(parsed(made)), 0);
    assert!(matches!(core.next(100_000), Some(Act::Bind { .. })));
}

#[test]
fn taints_counters_and_places_count() {
    let mut core = core();
    let tainted = json!({"name": "t", "taints": [{"key": "broken", "effect": "NoSchedule"}]});
    slice(&mut core, "p1", json!({"nodeName": "n1"}), json!([tainted]));
    let tolerations = json!([{"key": "broken", "operator": "Exists"}]);
    let part = |name: &str| json!({"name": name, "consumesCounters": [{"counterSet": "m", "counters": {"memory": {"value": "6Gi"}}}]});
    let spec = json!({"driver": DRIVER, "pool": {"name": "p2", "generation": 2, "resourceSliceCount": 2}});
    let (mut parts, mut sums) = (spec.clone(), spec);
    parts["devices"] = json!([part("half"), part("other")]);
    parts["nodeSelector"] =
        json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}]});
    sums["sharedCounters"] = json!([{"name": "m", "counters": {"memory": {"value": "10Gi"}}}]);
    sums["allNodes"] = true.into();
    let publish = |core: &mut Core, name: &str, spec: &Value| {
        core.apply(Change::ResourceSlice(parsed(json!({"metadata": {"name": name}, "spec": spec}))), 0);
    };
    publish(&mut core, "parts", &parts);
    let mut number = 0;
    let mut ask = |core: &mut Core, devices: Value| {
        number += 1;
        claim(core, &format!("c{number}"), devices, Value::Null);
        pod(
            core,
            &format!("p{number}"),
            json!([{"name": "x", "resourceClaimName": format!("c{number}")}]),
            Value::Null,
        );
        decided(core).map_err(|_| ())
    };
    assert_eq!(ask(&mut core, exactly(json!({}))), Err(()), "tainted here, half a pool there");
    assert_eq!(ask(&mut core, exactly(json!({"tolerations": tolerations}))), Ok(("n1".into(), vec!["r=p1/t".into()])));
    publish(&mut core, "sums", &sums);
    assert_eq!(ask(&mut core, exactly(json!({"count": 2}))), Err(()), "together they want more than there is");
    assert_eq!(ask(&mut core, exactly(json!({}))), Ok(("n2".into(), vec!["r=p2/half".into()])));
    assert_eq!(ask(&mut core, exactly(json!({}))), Err(()), "the rest is too little for the other");
    assert_eq!(ask(&mut core, exactly(json!({"adminAccess": true}))), Ok(("n1".into(), vec!["r=p1/t".into()])));
}

/// Whether requests for models can be satisfied with these devices, by trying everything.
fn possible(free: &[u8], wanted: &[u8]) -> bool {
    let Some((first, rest)) = wanted.split_first() else { return true };
    (0..free.len()).any(|i| {
        let mut left = free.to_vec();
        let model = left.remove(i);
        // A request names a model or, with 9, takes any.
        (*first == 9 || *first == model) && possible(&left, rest)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Claims come one after another: each gets devices exactly if there is a way, and none that another has.
    #[test]
    fn devices_are_given_exactly_if_there_is_a_way(
        there in prop::collection::vec(0..3_u8, 0..6),
        claims in prop::collection::vec(prop::collection::vec(prop_oneof![0..3_u8, Just(9)], 1..4), 1..5),
    ) {
        let mut core = core();
        let all: Vec<Value> = there.iter().enumerate().map(|(i, m)| device(&format!("d{i}"), &m.to_string(), "1Gi")).collect();
        slice(&mut core, "p", json!({"nodeName": "n1"}), json!(all));
        let mut given: BTreeSet<String> = BTreeSet::new();
        for (n, wanted) in claims.iter().enumerate() {
            let requests: Vec<Value> = wanted.iter().enumerate().map(|(r, model)| {
                let mut exact = json!({"deviceClassName": "gpu"});
                if *model != 9 {
                    let expression = format!("device.attributes['gpu.example.com'].model == '{model}'");
                    exact["selectors"] = json!([{"cel": {"expression": expression}}]);
                }
                json!({"name": format!("r{r}"), "exactly": exact})
            }).collect();
            claim(&mut core, &format!("c{n}"), json!({"requests": requests}), Value::Null);
            pod(&mut core, &format!("p{n}"), json!([{"name": "x", "resourceClaimName": format!("c{n}")}]), Value::Null);
            let free: Vec<u8> = (0..there.len()).filter(|i| !given.contains(&format!("p/d{i}"))).map(|i| there[i]).collect();
            match decided(&mut core) {
                Ok((node, devices)) => {
                    prop_assert_eq!(node, "n1");
                    prop_assert_eq!(devices.len(), wanted.len());
                    for (one, model) in devices.iter().zip(wanted) {
                        let (_, name) = one.split_once('=').unwrap();
                        prop_assert!(given.insert(name.to_owned()), "{} is given twice", name);
                        let index: usize = name.strip_prefix("p/d").unwrap().parse().unwrap();
                        prop_assert!(*model == 9 || there[index] == *model);
                    }
                }
                Err(why) => prop_assert!(!possible(&free, wanted), "{} of {:?} for {:?}", why, free, wanted),
            }
        }
    }
}
