//! What the documents say, and that they say it of everything.

use std::collections::HashSet;

use keelson_machinery::resources::RESOURCES;

use crate::offered::Offered;

use super::*;
use crate::openapi::operations::paths;

fn references<'a>(value: &'a Value, found: &mut HashSet<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|v| references(v, found));
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

fn version_2() -> Value {
    let mut text = Text::new(Vec::new(), Flavour::V2);
    assert!(document::version_2(&Offered::default(), &mut text).unwrap());
    serde_json::from_slice(&text.finish().unwrap()).unwrap()
}

fn version_3(name: &str) -> Option<Value> {
    let mut text = Text::new(Vec::new(), Flavour::V3);
    let found = document::version_3(name, &Offered::default(), &mut text).unwrap();
    let document = serde_json::from_slice(&text.finish().unwrap()).unwrap();
    found.then_some(document)
}

#[test]
fn every_reference_has_a_definition() {
    let document = version_2();
    let mut found = HashSet::new();
    references(&document, &mut found);
    for reference in found {
        let pointer = reference.trim_start_matches('#');
        assert!(document.pointer(pointer).is_some_and(Value::is_object), "{reference}");
    }
    for name in document::names(&Offered::default()) {
        let document = version_3(&name).unwrap_or_else(|| panic!("{name}"));
        let mut found = HashSet::new();
        references(&document, &mut found);
        for reference in found {
            assert!(
                document.pointer(reference.trim_start_matches('#')).is_some_and(Value::is_object),
                "{name}: {reference}"
            );
        }
    }
    assert!(version_3("apis/none/v1").is_none());
}

#[test]
fn operations_have_names_of_their_own() {
    let mut seen = HashSet::new();
    for path in RESOURCES.iter().flat_map(paths) {
        for operation in path.operations {
            assert!(seen.insert(operation.id.clone()), "{} {}", path.path, operation.id);
        }
    }
    for id in [
        "listCoreV1PodForAllNamespaces",
        "watchAppsV1NamespacedDeploymentList",
        "deleteRbacAuthorizationV1CollectionClusterRole",
        "connectCoreV1GetNamespacedPodProxyWithPath",
        "replaceCoreV1NamespaceFinalize",
        "patchAppsV1NamespacedDeploymentScale",
    ] {
        assert!(seen.contains(id), "{id}");
    }
}

#[test]
fn schemas_say_how_lists_are_merged_and_what_is_required() {
    let document = version_3("apis/apps/v1").unwrap();
    let schemas = &document["components"]["schemas"];
    let ports = &schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"];
    assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
    assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
    assert_eq!(schemas["io.k8s.api.core.v1.PodSpec"]["required"], json!(["containers"]));
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(
        deployment["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "version": "v1", "kind": "Deployment"}])
    );
    assert!(deployment.get("required").is_none());
    assert_eq!(deployment["properties"]["spec"]["default"], json!({}));
    let strategy = &schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["strategy"];
    assert_eq!(strategy["x-kubernetes-patch-strategy"], "retainKeys");
}

#[test]
fn hashes_differ_and_documents_are_tagged() {
    let customs = crd::Table::default();
    let hashes = hashes(&customs);
    assert_eq!(hashes.values().collect::<HashSet<_>>().len(), hashes.len());
    let documents = Documents::default();
    let hash = &hashes["version"];
    let ask = |query: &str, headers: &HeaderMap| {
        documents.serve("/openapi/v3/version", &Query::parse(Some(query)), headers, &customs, &[]).unwrap().unwrap()
    };
    let answer = ask(&format!("hash={hash}"), &HeaderMap::new());
    assert_eq!(
        (answer.status(), &answer.headers()[header::CACHE_CONTROL]),
        (http::StatusCode::OK, &"public, immutable".parse().unwrap())
    );
    assert_eq!(answer.headers()[header::VARY], "Accept");
    let whole = documents.serve("/openapi/v2", &Query::default(), &HeaderMap::new(), &customs, &[]).unwrap().unwrap();
    let varies: Vec<_> = whole.headers().get_all(header::VARY).iter().collect();
    assert_eq!(varies, ["Accept-Encoding", "Accept"]);
    let moved = ask("hash=0", &HeaderMap::new());
    assert_eq!(moved.status(), 301);
    assert!(moved.headers()[header::LOCATION].to_str().unwrap().ends_with(hash));
    let mut headers = HeaderMap::new();
    headers.insert(header::IF_NONE_MATCH, format!("\"{hash}\"").parse().unwrap());
    assert_eq!(ask("", &headers).status(), 304);
    headers.insert(header::ACCEPT, "text/html".parse().unwrap());
    let refused = documents.serve("/openapi/v2", &Query::default(), &headers, &customs, &[]).unwrap().unwrap_err();
    assert_eq!(refused.code, 406);
    assert!(documents.serve("/openapi/v3/apis/none/v1", &Query::default(), &headers, &customs, &[]).is_none());
}

#[test]
fn the_protobuf_form_has_the_definitions() {
    let mut whole = gnostic::Document::default();
    assert!(document::version_2(&Offered::default(), &mut whole).unwrap());
    let bytes = whole.finish();

    for text in ["2.0", "io.k8s.api.core.v1.Pod", "x-kubernetes-patch-merge-key", "readCoreV1NamespacedPod"] {
        assert!(bytes.windows(text.len()).any(|w| w == text.as_bytes()), "{text}");
    }
}
