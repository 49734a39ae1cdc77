//! What runs pods, and the data that they read.

use serde_json::{Value, json};

use crate::{changed, created, expect};

const LABELS: &str =
    "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`";

const BIG: &str = "spec.template.spec.volumes[1].name: Invalid value: \"B\": a lowercase RFC 1123 label must consist of \
    lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or \
    '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

fn template() -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[test]
fn templates_are_looked_at_if_the_selector_can_be_read() {
    let bad = json!({"matchExpressions": [{"key": "a", "operator": "In"}]});
    let why = "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'";
    let unread = "spec.selector: Invalid value: {\"matchExpressions\":[{\"key\":\"a\",\"operator\":\"In\"}]}";
    let other = json!({"matchLabels": {"a": "c"}});
    let broken = |labels: Value| json!({"metadata": {"labels": labels}, "spec": {"containers": []}});
    for (plural, selector, expected) in [
        ("deployments", &bad, vec![why.to_owned(), format!("{unread}: invalid label selector")]),
        ("statefulsets", &bad, vec![why.to_owned(), unread.to_owned()]),
        ("daemonsets", &bad, vec![why.to_owned(), "spec.template.spec.containers: Required value".to_owned()]),
        ("deployments", &other, vec![LABELS.to_owned(), "spec.template.spec.containers: Required value".to_owned()]),
    ] {
        let object = json!({"metadata": {"name": "n", "namespace": "d"},
            "spec": {"selector": selector, "template": broken(json!({"a": "b"}))}});
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        expect(created("apps", plural, object.clone()), &expected, &object);
    }
}

#[test]
fn claims_of_stateful_sets_are_looked_at_when_they_are_new() {
    let claim = |modes: Value| json!({"metadata": {"name": "data"}, "spec": {"accessModes": modes}});
    let set = |claims: Value| {
        let mut template = template();
        template["spec"]["restartPolicy"] = "Always".into();
        template["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}, {"name": "B", "emptyDir": {}}]);
        json!({"metadata": {"name": "n", "namespace": "d"}, "spec": {"podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"}, "replicas": -1, "selector": {"matchLabels": {"a": "b"}},
            "template": template, "volumeClaimTemplates": claims}})
    };
    let at = "spec.volumeClaimTemplates";
    let rest = ["spec.replicas: Invalid value: -1: must be greater than or equal to 0", BIG];
    let object = set(json!([claim(json!(["ReadWriteOnce"])), claim(json!([]))]));
    let mut expected = vec![
        format!("{at}[0].spec.resources[storage]: Required value"),
        format!("{at}[1].spec.accessModes: Required value: at least 1 access mode is required"),
        format!("{at}[1].spec.resources[storage]: Required value"),
    ];
    expected.extend(rest.map(str::to_owned));
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    expect(created("apps", "statefulsets", object.clone()), &expected, &object);
    expect(changed("apps", "statefulsets", "", object.clone(), Some(object.clone())), &rest, &object);
}

#[test]
fn updates_of_replication_controllers_are_looked_at_by_two() {
    let controller = |replicas: i64, selector: Value| {
        json!({"metadata": {"name": "n", "namespace": "d"},
            "spec": {"replicas": replicas, "selector": selector, "template": template()}})
    };
    let (old, new) = (controller(1, json!({"a": "b"})), controller(-1, json!({"a": "c"})));
    let few = "spec.replicas: Invalid value: -1: must be greater than or equal to 0";
    expect(created("", "replicationcontrollers", new.clone()), &[few, LABELS], &new);
    expect(changed("", "replicationcontrollers", "", new.clone(), Some(old)), &[few, LABELS, LABELS], &new);
}

#[test]
fn labels_that_a_job_is_given_are_told_of_in_its_template_alone() {
    let name = "a".repeat(64);
    let labels = json!({"controller-uid": "u", "batch.kubernetes.io/controller-uid": "u", "job-name": name,
        "batch.kubernetes.io/job-name": name});
    let object = json!({"metadata": {"name": name, "namespace": "d", "uid": "u", "labels": labels}, "spec": {
        "selector": {"matchLabels": {"controller-uid": "u"}}, "template": {"metadata": {"labels": labels},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    let why = format!("spec.template.labels: Invalid value: \"{name}\": must be no more than 63 bytes");
    expect(created("batch", "jobs", object.clone()), &[&why, &why], &object);
}

#[test]
fn exit_codes_are_said() {
    for (codes, shown) in [(json!({"operator": "In"}), "null"), (json!({"operator": "In", "values": []}), "[]")] {
        let policy = json!({"rules": [{"action": "FailJob", "onExitCodes": codes}]});
        let object = json!({"metadata": {"name": "n", "namespace": "d"}, "spec": {"manualSelector": true,
            "selector": {"matchLabels": {"a": "b"}}, "podFailurePolicy": policy, "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
        let field = "spec.podFailurePolicy.rules[0].onExitCodes.values";
        let expected = format!("{field}: Invalid value: {shown}: at least one value is required");
        expect(created("batch", "jobs", object.clone()), &[&expected], &object);
    }
}

#[test]
fn registries_configurations_are_objects() {
    use base64::Engine as _;
    let shown = "data[.dockercfg]: Invalid value: \"<secret contents redacted>\"";
    let other = "into Go value of type map[string]interface {}";
    for (text, expected) in [
        ("{\"auths\": {}}", None),
        ("null", None),
        ("", Some("unexpected end of JSON input".to_owned())),
        ("x", Some("invalid character 'x' looking for beginning of value".to_owned())),
        ("[]", Some(format!("json: cannot unmarshal array {other}"))),
        ("\"a\"", Some(format!("json: cannot unmarshal string {other}"))),
        ("7", Some(format!("json: cannot unmarshal number {other}"))),
        ("true", Some(format!("json: cannot unmarshal bool {other}"))),
    ] {
        let data = base64::engine::general_purpose::STANDARD.encode(text);
        let object = json!({"metadata": {"name": "n", "namespace": "d"}, "type": "kubernetes.io/dockercfg",
            "data": {".dockercfg": data}});
        let expected: Vec<String> = expected.iter().map(|why| format!("{shown}: {why}")).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        expect(created("", "secrets", object.clone()), &expected, &object);
    }
}

#[test]
fn init_containers_that_end_are_not_restarted_to_be_resized() {
    let set = |policy: &str, image: &str| {
        let mut template = template();
        let resize = json!([{"resourceName": "cpu", "restartPolicy": policy}]);
        template["spec"]["initContainers"] = json!([
            {"name": "i", "image": image, "resizePolicy": resize},
            {"name": "s", "image": image, "resizePolicy": resize, "restartPolicy": "Always"}]);
        json!({"metadata": {"name": "n", "namespace": "d"}, "spec": {"selector": {"a": "b"}, "template": template}})
    };
    let why = "spec.template.spec.initContainers[0].resizePolicy[0].restartPolicy: Invalid value: \"RestartContainer\": \
        must not be set to 'RestartContainer' for non-sidecar initContainers";
    let bad = set("RestartContainer", "i");
    expect(created("", "replicationcontrollers", bad.clone()), &[why], &bad);
    expect(created("", "replicationcontrollers", set("NotRequired", "i")), &[], &bad);
    // Who had it keeps it.
    for (old, expected) in [(set("NotRequired", "i"), &[why, why][..]), (set("RestartContainer", "j"), &[])] {
        expect(changed("", "replicationcontrollers", "", bad.clone(), Some(old)), expected, &bad);
    }
}
