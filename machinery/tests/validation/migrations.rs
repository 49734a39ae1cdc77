//! Storage version migrations.

use serde_json::{Value, json};

use super::{changed, created, expect};

const GROUP: &str = "storagemigration.k8s.io";
const PLURAL: &str = "storageversionmigrations";

#[test]
fn a_migration_names_a_resource_for_good() {
    let of = |group: &str, plural: &str| json!({"spec": {"resource": {"group": group, "resource": plural}}});
    for (object, expected) in [
        (of("", "secrets"), &[][..]),
        (of("example.com", "crontabs"), &[]),
        (json!({"spec": {}}), &["spec.resource.resource: Required value: resource is required to be set"]),
        (
            of("", "Secrets"),
            &[
                "spec.resource.resource: Invalid value: \"Secrets\": a DNS-1035 label must consist of lower case alphanumeric \
                 characters or '-', start with an alphabetic character, and end with an alphanumeric character \
                 (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
            ],
        ),
    ] {
        expect(created(GROUP, PLURAL, object.clone()), expected, &object);
    }
    expect(
        changed(GROUP, PLURAL, "", of("", "pods"), Some(of("", "secrets"))),
        &["spec: Invalid value: {\"Resource\":{\"group\":\"\",\"resource\":\"pods\"}}: field is immutable"],
        &json!("another resource"),
    );
}

#[test]
fn a_migration_ends_once() {
    let with = |version: &str, conditions: &[(&str, &str)]| {
        let conditions: Vec<Value> = (conditions.iter())
            .map(|(kind, status)| {
                json!({"type": kind, "status": status, "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect();
        json!({"spec": {"resource": {"resource": "pods"}}, "status": {"resourceVersion": version, "conditions": conditions}})
    };
    let running = with("7", &[("Running", "True")]);
    for (old, new, expected) in [
        (with("", &[]), running.clone(), None),
        (running.clone(), with("7", &[("Running", "False"), ("Succeeded", "True")]), None),
        (running.clone(), with("8", &[("Running", "True")]), Some(("resourceVersion", "field is immutable"))),
        (with("", &[]), with("x", &[]), Some(("resourceVersion", "resource version is not well formed: x"))),
        (
            running.clone(),
            with("7", &[("Running", "True"), ("Failed", "True")]),
            Some(("conditions", "Running condition cannot be true when failed condition is true")),
        ),
        (
            running,
            with("7", &[("Succeeded", "True"), ("Failed", "True")]),
            Some(("conditions", "Both success and failed conditions cannot be true at the same time")),
        ),
        (
            with("7", &[("Succeeded", "True")]),
            with("7", &[]),
            Some(("conditions", "Success condition cannot be set to false once it is true")),
        ),
    ] {
        let found = changed(GROUP, PLURAL, "status", new.clone(), Some(old));
        assert_eq!(found.len(), usize::from(expected.is_some()), "{new}: {found:?}");
        if let Some((field, why)) = expected {
            assert!(found[0].starts_with(&format!("status.{field}: ")) && found[0].ends_with(why), "{found:?}");
        }
    }
}
