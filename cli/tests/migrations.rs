//! Storage version migrations as users meet them: off, and once they are on, objects in today's version.

mod support;

use support::{Server, free_port, kubectl_is_there};

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  names: {kind: Widget, plural: widgets}
  scope: Namespaced
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
  - {name: v2, served: true, storage: false, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
"#;
const OBJECTS: &str = r#"
apiVersion: example.com/v1
kind: Widget
metadata: {name: a}
spec: {size: 1}
---
apiVersion: example.com/v1
kind: Widget
metadata: {name: b}
spec: {size: 2}
"#;
const SWAP: &str = r#"[{"op": "replace", "path": "/spec/versions/0/storage", "value": false},
    {"op": "replace", "path": "/spec/versions/1/storage", "value": true}]"#;
/// Two of one resource: the second runs once the first has ended, and leaves all as it is.
const MIGRATIONS: &str = r#"
apiVersion: storagemigration.k8s.io/v1beta1
kind: StorageVersionMigration
metadata: {name: first}
spec: {resource: {group: example.com, resource: widgets}}
---
apiVersion: storagemigration.k8s.io/v1beta1
kind: StorageVersionMigration
metadata: {name: second}
spec: {resource: {group: example.com, resource: widgets}}
---
apiVersion: storagemigration.k8s.io/v1beta1
kind: StorageVersionMigration
metadata: {name: secrets}
spec: {resource: {group: "", resource: secrets}}
"#;
const VERSIONS: [&str; 4] = ["get", "widgets", "-o", "jsonpath={.items[*].metadata.resourceVersion}"];
const STORED: [&str; 5] = ["get", "crd", "widgets.example.com", "-o", "jsonpath={.status.storedVersions}"];

#[test]
fn a_migration_writes_objects_in_the_version_of_today() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut flags = vec!["--feature-gates", "StorageVersionMigrator=true"];
    let server = Server::start(dir.path(), free_port(), &flags);
    let groups = server.run(&["get", "--raw", "/apis"]);
    assert!(!groups.contains("storagemigration"), "the gate alone serves nothing");
    drop(server);
    flags.extend(["--runtime-config", "storagemigration.k8s.io/v1beta1=true"]);
    let server = Server::start(dir.path(), free_port(), &flags);
    server.apply(DEFINITION);
    server.until("the definition is served", &["get", "--raw", "/apis/example.com"], |out| out.contains("v2"));
    server.apply(OBJECTS);
    server.run(&["patch", "crd", "widgets.example.com", "--type=json", "-p", SWAP]);
    server.until("both versions are stored", &STORED, |out| out == r#"["v1","v2"]"#);
    let before = server.run(&VERSIONS);
    server.apply(MIGRATIONS);
    let conditions = "jsonpath={.items[*].status.conditions[*].type}";
    let all = ["get", "storageversionmigrations", "-o", conditions];
    server.until("all have succeeded", &all, |out| out == "Succeeded Succeeded Succeeded");
    assert_eq!(server.run(&STORED), r#"["v2"]"#);
    let after = server.run(&VERSIONS);
    let differ = |(old, new): (&str, &str)| old != new;
    assert!(before.split(' ').zip(after.split(' ')).all(differ), "each was written: {before}; {after}");
    let condition = r#"jsonpath={.status.conditions[?(@.type=="StorageMigrating")].reason}"#;
    assert_eq!(server.run(&["get", "crd", "widgets.example.com", "-o", condition]), "MigrationSucceeded");
    let managers =
        server.run(&["get", "widget", "a", "--show-managed-fields", "-o", "jsonpath={.metadata.managedFields}"]);
    assert!(!managers.contains("migrator"), "it owns nothing: {managers}");
}
