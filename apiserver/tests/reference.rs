//! Discovery and OpenAPI, both versions of it, against the documents recorded from Kubernetes: in a directory named by
//! `KEELSON_REFERENCE` or beside the checkout; without either the tests say that they skip.

mod support;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::BodyExt;
use serde_json::{Map, Value};
use support::Cluster;

fn reference() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference");
    let directory = std::env::var("KEELSON_REFERENCE").map_or(beside, PathBuf::from).join("data");
    if !directory.is_dir() {
        eprintln!("SKIPPED: no recorded documents (neither KEELSON_REFERENCE nor {})", directory.display());
        return None;
    }
    Some(directory)
}

async fn get(cluster: &Cluster, path: &str, accept: &str) -> Value {
    let request = Request::get(path).header(header::ACCEPT, accept).body(Bytes::new()).unwrap();
    let response = cluster.send(request).await;
    assert_eq!(response.status(), 200, "{path}");
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap()
}

fn unpacked(file: &Path) -> Value {
    let mut text = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(file).unwrap()).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn discovery_is_as_recorded() {
    let Some(directory) = reference() else { return };
    let recorded = unpacked(&directory.join("discovery-aggregated-v2.json.gz"));
    let cluster = Cluster::new().await;
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    for path in ["/api", "/apis"] {
        let ours = get(&cluster, path, accept).await;
        let theirs =
            if recorded.get(path).is_some() { &recorded[path] } else { &recorded[path.trim_start_matches('/')] };
        assert!(theirs["items"].as_array().is_some_and(|items| !items.is_empty()), "{path} is recorded");
        assert_eq!(ours["items"], theirs["items"], "{path}");
    }
}

/// Leaves out prose, and the order of what is required.
fn bare(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(key, value)| *key != "description" || !value.is_string());
            let kept: Map<String, Value> = kept
                .map(|(key, value)| {
                    let mut value = bare(value);
                    if let ("required", Some(list)) = (key.as_str(), value.as_array_mut()) {
                        list.sort_by_key(Value::to_string);
                    }
                    (key.clone(), value)
                })
                .collect();
            kept.into()
        }
        Value::Array(items) => items.iter().map(bare).collect(),
        other => other.clone(),
    }
}

#[tokio::test]
async fn schemas_and_operations_are_as_recorded() {
    let Some(directory) = reference() else { return };
    let target = tempfile::tempdir().unwrap();
    let archive = directory.join("openapi-v3.tar.gz");
    let unpacked = Command::new("tar").arg("xzf").arg(&archive).arg("-C").arg(target.path()).status().unwrap();
    assert!(unpacked.success());
    let cluster = Cluster::new().await;
    let root = get(&cluster, "/openapi/v3", "*/*").await;
    let names: Vec<&String> = root["paths"].as_object().unwrap().keys().collect();
    assert_eq!(names.len(), 47);
    for name in names {
        let ours = get(&cluster, &format!("/openapi/v3/{name}"), "application/json").await;
        let file = target.path().join("openapi-v3").join(format!("{}.json", name.replace('/', "__")));
        let theirs: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        for place in ["/paths", "/components/schemas"] {
            let empty = Value::Object(Map::new());
            let (ours, theirs) = (ours.pointer(place).unwrap_or(&empty), theirs.pointer(place).unwrap_or(&empty));
            let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(ours), keys(theirs), "{name} {place}");
            for key in keys(theirs) {
                assert_eq!(bare(&ours[&key]), bare(&theirs[&key]), "{name} {place} {key}");
            }
        }
    }
}

/// A document of version 2 with what it names written out where it is named, and in an order of its own.
fn written_out(document: &Value, value: &Value) -> Value {
    let shared = value["$ref"].as_str().and_then(|name| document.pointer(name.strip_prefix('#')?));
    match value {
        // Definitions name each other in circles; parameters do not.
        Value::Object(_) if value["$ref"].as_str().is_some_and(|name| name.starts_with("#/parameters/")) => {
            written_out(document, shared.expect("what is named is there"))
        }
        Value::Object(fields) => {
            let part = |(key, value): (&String, &Value)| {
                let mut value = written_out(document, value);
                if let ("parameters", Some(list)) = (key.as_str(), value.as_array_mut()) {
                    list.sort_by_key(|parameter| parameter["name"].to_string());
                }
                (key.clone(), value)
            };
            fields.iter().map(part).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.iter().map(|item| written_out(document, item)).collect(),
        other => other.clone(),
    }
}

#[tokio::test]
async fn version_2_is_as_recorded() {
    let Some(directory) = reference() else { return };
    let theirs = unpacked(&directory.join("openapi-v2.json.gz"));
    let ours = get(&Cluster::new().await, "/openapi/v2", "application/json").await;
    for place in ["definitions", "paths", "securityDefinitions", "security"] {
        let (Some(our_parts), Some(their_parts)) = (ours[place].as_object(), theirs[place].as_object()) else {
            assert_eq!(ours[place], theirs[place], "{place}");
            continue;
        };
        assert!(!their_parts.is_empty(), "{place} are recorded");
        assert!(our_parts.keys().eq(their_parts.keys()), "{place}");
        for (key, part) in their_parts {
            let (ours, theirs) = (written_out(&ours, &our_parts[key]), written_out(&theirs, part));
            // Too long to be shown.
            assert!(bare(&ours) == bare(&theirs), "{place} {key}");
        }
    }
}

/// Each row: a path, what a client accepts of it, the code, and a part of the message.
#[tokio::test]
async fn what_is_told_of_the_api_comes_in_the_forms_that_upstream_has() {
    let cluster = Cluster::new().await;
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let (by_name, by_form) = ("406: Not Acceptable", "only the following media types are accepted");
    for (path, accept, code, part) in [
        ("/version", "text/html", 406, by_name),
        ("/version", "application/yaml", 406, by_name),
        ("/version", table, 200, ""),
        ("/api", "text/html", 406, by_name),
        ("/apis", "text/html", 406, by_form),
        ("/apis", aggregated, 200, ""),
        ("/apis/apps", "text/html", 406, by_form),
        ("/apis/apps", aggregated, 406, by_form),
        ("/apis/apps/v1", "text/html", 406, by_name),
        ("/apis/apps/v1", table, 406, by_form),
        ("/apis/apps/v1", "text/html, application/yaml", 200, ""),
        ("/apis/apps/v9", "text/html", 404, "the server could not find"),
        ("/", "text/html", 200, ""),
        ("/nothing/here", "text/html", 404, ""),
        ("/apis/nothing/v1", table, 404, ""),
    ] {
        let request = Request::get(path).header(header::ACCEPT, accept).body(Bytes::new()).unwrap();
        let response = cluster.send(request).await;
        assert_eq!(response.status(), code, "{path} {accept}");
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        // A refusal may be in YAML, too.
        let answer = String::from_utf8_lossy(&bytes);
        assert!(answer.contains(part), "{path} {accept}: {answer}");
    }
}
