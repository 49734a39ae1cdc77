//! What is wrong with arguments of plugins, and how that is told: upstream's paths and words.

use serde_json::{Value, json};

use super::{API_VERSIONS, Config};
use crate::intern::Interner;

/// A plugin, arguments that it refuses, and what it says.
type Refusal = (&'static str, Value, &'static str);

fn told(plugin: &str, args: &Value) -> String {
    let value = json!({"apiVersion": API_VERSIONS[0], "kind": "KubeSchedulerConfiguration",
        "profiles": [{"pluginConfig": [{"name": plugin, "args": args}]}]});
    Config::parse(value, &mut Interner::default()).unwrap_err().to_string()
}

fn of_waiting_and_preempting() -> Vec<Refusal> {
    vec![
        (
            "VolumeBinding",
            json!({"shape": []}),
            "shape: Invalid value: []: unexpected field `shape`, remove it or turn on the feature gate \
             StorageCapacityScoring",
        ),
        (
            "VolumeBinding",
            json!({"bindTimeoutSeconds": -1}),
            "bindTimeoutSeconds: Invalid value: -1: invalid BindTimeoutSeconds, should not be a negative value",
        ),
        (
            "DynamicResources",
            json!({"bindingTimeout": "500ms"}),
            "bindingTimeout: Invalid value: \"500ms\": must be at least 1 second",
        ),
        (
            "DynamicResources",
            json!({"filterTimeout": "-1s"}),
            "filterTimeout: Invalid value: \"-1s\": must be zero or positive",
        ),
        ("DynamicResources", json!({"filterTimeout": "soon"}), "filterTimeout: time: invalid duration \"soon\""),
        (
            "DefaultPreemption",
            json!({"minCandidateNodesPercentage": 101}),
            "minCandidateNodesPercentage: Invalid value: 101: not in valid range [0, 100]",
        ),
        (
            "InterPodAffinity",
            json!({"hardPodAffinityWeight": 101}),
            "hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]",
        ),
    ]
}

fn of_scores() -> Vec<Refusal> {
    let point = |utilization: i64, score: i64| json!({"utilization": utilization, "score": score});
    let ratio = |shape: Value| json!({"scoringStrategy": {"type": "RequestedToCapacityRatio", "requestedToCapacityRatio": {"shape": shape}}});
    vec![
        (
            "NodeResourcesFit",
            json!({"ignoredResourceGroups": ["a/b"]}),
            "ignoredResourceGroups[0]: Invalid value: \"a/b\": resource group name can't contain '/'",
        ),
        (
            "NodeResourcesFit",
            json!({"scoringStrategy": {"type": "Best"}}),
            "scoringStrategy.type: Unsupported value: \"Best\": supported values: \"LeastAllocated\", \
             \"MostAllocated\", \"RequestedToCapacityRatio\"",
        ),
        (
            "NodeResourcesFit",
            json!({"scoringStrategy": {"type": "MostAllocated", "resources": [{"name": "cpu", "weight": 101}]}}),
            "scoringStrategy.resources[0].weight: Invalid value: 101: resource weight of cpu not in valid range (0, 100]",
        ),
        (
            "NodeResourcesFit",
            ratio(json!([])),
            "scoringStrategy.shape: Required value: at least one point must be specified",
        ),
        (
            "NodeResourcesFit",
            ratio(json!([point(5, 1), point(5, 2)])),
            "scoringStrategy.shape[1].utilization: Invalid value: 5: values must be sorted in increasing order",
        ),
        (
            "NodeResourcesFit",
            ratio(json!([point(5, 11)])),
            "scoringStrategy.shape[0].score: Invalid value: 11: not in valid range [0, 10]",
        ),
        (
            "NodeResourcesBalancedAllocation",
            json!({"resources": [{"name": "cpu", "weight": 2}]}),
            "resources[0].weight: Invalid value: 2: must be 1",
        ),
        (
            "NodeResourcesBalancedAllocation",
            json!({"resources": [{"name": "cpu"}, {"name": "cpu"}]}),
            "resources[1].name: Duplicate value: \"cpu\"",
        ),
    ]
}

fn of_spreading() -> Vec<Refusal> {
    let spread = |mut constraint: Value| {
        for (key, value) in [("maxSkew", json!(1)), ("topologyKey", "k".into())] {
            if constraint.get(key).is_none() {
                constraint[key] = value;
            }
        }
        json!({"defaultingType": "List", "defaultConstraints": [constraint]})
    };
    vec![
        (
            "PodTopologySpread",
            json!({"defaultingType": "Mine"}),
            "defaultingType: Unsupported value: \"Mine\": supported values: \"System\", \"List\"",
        ),
        (
            "PodTopologySpread",
            json!({"defaultConstraints": [{"maxSkew": 1, "topologyKey": "k", "whenUnsatisfiable": "ScheduleAnyway"}]}),
            "defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty",
        ),
        (
            "PodTopologySpread",
            spread(json!({"whenUnsatisfiable": "Never"})),
            "defaultConstraints[0].whenUnsatisfiable: Unsupported value: \"Never\": supported values: \
             \"DoNotSchedule\", \"ScheduleAnyway\"",
        ),
        (
            "PodTopologySpread",
            spread(json!({"whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 0})),
            "defaultConstraints[0].maxSkew: Invalid value: 0: not in valid range (0, inf)",
        ),
        (
            "PodTopologySpread",
            spread(json!({"whenUnsatisfiable": "ScheduleAnyway", "topologyKey": ""})),
            "defaultConstraints[0].topologyKey: Required value: can not be empty",
        ),
        (
            "PodTopologySpread",
            spread(json!({"whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}})),
            "defaultConstraints[0].labelSelector: Forbidden: constraint must not define a selector, as they deduced \
             for each pod",
        ),
    ]
}

#[test]
fn arguments_are_refused_in_upstream_s_words() {
    for (plugin, args, expected) in [of_waiting_and_preempting(), of_scores(), of_spreading()].into_iter().flatten() {
        let error = told(plugin, &args);
        assert!(error.contains(&format!("profiles[0].pluginConfig[0].args.{expected}")), "{args}: {error}");
    }
}

#[test]
fn all_that_is_wrong_is_told() {
    let error = told("DefaultPreemption", &json!({"minCandidateNodesPercentage": 0, "minCandidateNodesAbsolute": 0}));
    let path = "profiles[0].pluginConfig[0].args.minCandidateNodes";
    let each = ["Percentage", "Absolute"].into_iter().zip(["Absolute", "Percentage"]).map(|(one, other)| {
        format!("{path}{one}: Invalid value: 0: cannot be zero at the same time as minCandidateNodes{other}")
    });
    assert!(error.ends_with(&format!("[{}]", each.collect::<Vec<_>>().join(", "))), "{error}");
}
