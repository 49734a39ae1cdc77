//! Workloads, groups of pods, and the group that a pod names.

use serde_json::{Value, json};

use crate::{changed, created, expect, pod};

const GROUP: &str = "scheduling.k8s.io";

fn template(name: &str, policy: Value) -> Value {
    json!({"name": name, "schedulingPolicy": policy})
}

#[test]
fn workloads() {
    let gang = json!({"gang": {"minCount": 4}});
    let nine: Vec<Value> = (0..9).map(|i| template(&format!("t{i}"), gang.clone())).collect();
    for (spec, expected) in [
        (json!({"podGroupTemplates": [template("a", gang.clone()), template("b", json!({"basic": {}}))]}), &[][..]),
        (
            json!({"controllerRef": {"apiGroup": "batch", "kind": "Job", "name": "j"},
                "podGroupTemplates": [template("a", gang.clone())]}),
            &[],
        ),
        (json!({}), &["spec.podGroupTemplates: Required value"]),
        (json!({"podGroupTemplates": nine}), &["spec.podGroupTemplates: Too many: 9: must have at most 8 items"]),
        (
            json!({"podGroupTemplates": [template("a", gang.clone()), template("a", gang.clone())]}),
            &["spec.podGroupTemplates[1]: Duplicate value: {\"Name\":\"a\",\"SchedulingPolicy\":{\"Basic\":null,\
               \"Gang\":{\"MinCount\":4}},\"SchedulingConstraints\":null,\"ResourceClaims\":null,\"DisruptionMode\":null,\
               \"PriorityClassName\":\"\",\"Priority\":null}"],
        ),
        (
            json!({"podGroupTemplates": [template("", json!({}))]}),
            &[
                "spec.podGroupTemplates[0].name: Required value",
                "spec.podGroupTemplates[0].schedulingPolicy: Invalid value: \"\": must specify one of: `basic`, `gang`",
            ],
        ),
        (
            json!({"podGroupTemplates": [template("a", json!({"basic": {}, "gang": {"minCount": -1}}))]}),
            &[
                "spec.podGroupTemplates[0].schedulingPolicy: Invalid value: \"{basic, gang}\": must specify exactly one of: \
                 `basic`, `gang`",
                "spec.podGroupTemplates[0].schedulingPolicy.gang.minCount: Invalid value: -1: must be greater than or equal to 1",
            ],
        ),
        (
            json!({"podGroupTemplates": [template("a", json!({"gang": {}}))]}),
            &["spec.podGroupTemplates[0].schedulingPolicy.gang.minCount: Required value"],
        ),
        (
            json!({"controllerRef": {"kind": "a/b"}, "podGroupTemplates": [template("a", gang.clone())]}),
            &[
                "spec.controllerRef.kind: Invalid value: \"a/b\": may not contain '/'",
                "spec.controllerRef.name: Required value",
            ],
        ),
    ] {
        expect(created(GROUP, "workloads", json!({"spec": spec})), expected, &spec);
    }
    let old = json!({"spec": {"podGroupTemplates": [template("a", gang.clone())]}});
    let mut new = old.clone();
    new["spec"]["podGroupTemplates"][0]["schedulingPolicy"]["gang"]["minCount"] = 5.into();
    new["spec"]["controllerRef"] = json!({"kind": "Job", "name": "j"});
    expect(
        changed(GROUP, "workloads", "", new.clone(), Some(old)),
        &[
            "spec.controllerRef: Invalid value: {\"APIGroup\":\"\",\"Kind\":\"Job\",\"Name\":\"j\"}: field is immutable",
            "spec.podGroupTemplates: Invalid value: [{\"Name\":\"a\",\"SchedulingPolicy\":{\"Basic\":null,\"Gang\":\
             {\"MinCount\":5}},\"SchedulingConstraints\":null,\"ResourceClaims\":null,\"DisruptionMode\":null,\
             \"PriorityClassName\":\"\",\"Priority\":null}]: field is immutable",
        ],
        &new,
    );
}

#[test]
fn groups() {
    for (spec, expected) in [
        (json!({"schedulingPolicy": {"gang": {"minCount": 1}}}), &[][..]),
        (
            json!({"schedulingPolicy": {"basic": {}},
                "podGroupTemplateRef": {"workload": {"workloadName": "w.x", "podGroupTemplateName": "t"}}}),
            &[],
        ),
        (json!({}), &["spec.schedulingPolicy: Invalid value: \"\": must specify one of: `basic`, `gang`"]),
        (
            json!({"schedulingPolicy": {"basic": {}}, "podGroupTemplateRef": {}}),
            &["spec.podGroupTemplateRef: Invalid value: \"\": must specify one of: `workload`"],
        ),
        (
            json!({"schedulingPolicy": {"basic": {}}, "podGroupTemplateRef": {"workload": {}}}),
            &[
                "spec.podGroupTemplateRef.workload.podGroupTemplateName: Required value",
                "spec.podGroupTemplateRef.workload.workloadName: Required value",
            ],
        ),
    ] {
        expect(created(GROUP, "podgroups", json!({"spec": spec})), expected, &spec);
    }
    let group = |count: i64| json!({"spec": {"schedulingPolicy": {"gang": {"minCount": count}}}});
    expect(
        changed(GROUP, "podgroups", "", group(2), Some(group(3))),
        &["spec.schedulingPolicy: Invalid value: {\"Basic\":null,\"Gang\":{\"MinCount\":2}}: field is immutable"],
        &json!("a count"),
    );
    expect(changed(GROUP, "podgroups", "", group(3), Some(group(3))), &[], &json!("nothing"));
    let mut status = group(3);
    status["status"] =
        json!({"conditions": [{"type": "PodGroupScheduled", "status": "Maybe", "reason": "Unschedulable"}]});
    expect(
        changed(GROUP, "podgroups", "status", status.clone(), Some(group(3))),
        &[
            "status.conditions[0].lastTransitionTime: Required value: must be set",
            "status.conditions[0].status: Unsupported value: \"Maybe\": supported values: \"False\", \"True\", \"Unknown\"",
        ],
        &status,
    );
}

#[test]
fn the_group_of_a_pod() {
    let with = |group: Value| pod(json!({"schedulingGroup": group, "restartPolicy": "Never"}));
    for (group, expected) in [
        (json!({"podGroupName": "g.x"}), None),
        (json!({}), Some("spec.schedulingGroup: Invalid value: \"\": must specify one of: `podGroupName`")),
        (
            json!({"podGroupName": "G"}),
            Some("spec.schedulingGroup.podGroupName: Invalid value: \"G\": a lowercase RFC 1123"),
        ),
    ] {
        let found = created("", "pods", with(group.clone()));
        let about: Vec<&String> = found.iter().filter(|told| told.contains("schedulingGroup")).collect();
        assert_eq!(about.len(), usize::from(expected.is_some()), "{group}: {found:?}");
        assert!(expected.is_none_or(|text| about[0].starts_with(text)), "{group}: {found:?}");
    }
    let found = changed("", "pods", "", with(json!({"podGroupName": "b"})), Some(with(json!({"podGroupName": "a"}))));
    assert!(found.iter().any(|told| told.contains("pod updates may not change fields")), "{found:?}");
}
