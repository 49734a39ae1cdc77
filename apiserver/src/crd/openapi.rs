//! OpenAPI v3 documents of the groups and versions that definitions serve.

use std::io;

use keelson_machinery::resource::Scope;
use serde_json::{Map, Value, json};

use super::{Custom, Table};
use crate::openapi;

/// Name of the metadata's schema.
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// The document of a group and version; `None` if no definition serves it.
pub fn document(table: &Table, group: &str, version: &str) -> Option<Value> {
    let (_, definitions) = table.groups().into_iter().find(|(name, _)| name == group)?;
    let customs: Vec<Custom> = definitions.iter().filter_map(|d| d.serve(version)).collect();
    if customs.is_empty() {
        return None;
    }
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for custom in &customs {
        let (name, list) = names(custom);
        schemas.insert(name.clone(), kind_schema(custom));
        schemas.insert(list.clone(), list_schema(custom, &name));
        add_paths(custom, &name, &list, &mut paths);
    }
    schemas.extend(openapi::metadata().clone());
    Some(json!({
        "openapi": "3.0.0", "info": {"title": "Kubernetes CRD Swagger", "version": "v0.1.0"},
        "paths": paths, "components": {"schemas": schemas},
    }))
}

/// Hands over the paths, or else the schemas, of all that definitions serve, in the form of version 2: one kind at a time,
/// so that no more than one is in memory.
pub fn version_2(
    table: &Table,
    wants_paths: bool,
    take: &mut dyn FnMut(&str, &Value) -> io::Result<()>,
) -> io::Result<()> {
    for (_, definitions) in table.groups() {
        for definition in &definitions {
            for version in definition.versions.iter().filter(|version| version.served) {
                let Some(custom) = definition.serve(&version.name) else { continue };
                let (name, list) = names(&custom);
                if wants_paths {
                    let mut paths = Map::new();
                    add_paths(&custom, &name, &list, &mut paths);
                    paths.iter().try_for_each(|(path, item)| take(path, &openapi::path_to_v2(item)))?;
                } else {
                    take(&name, &openapi::schema_to_v2(&kind_schema(&custom)))?;
                    take(&list, &openapi::schema_to_v2(&list_schema(&custom, &name)))?;
                }
            }
        }
    }
    Ok(())
}

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert \
    recognized schemas to the latest internal value, and may reject unrecognized values. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the \
    endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

fn string(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn reference(name: &str, description: &str) -> Value {
    json!({"description": description, "allOf": [{"$ref": format!("#/components/schemas/{name}")}]})
}

/// Schema names of a kind and its list: the group reversed, version and kind.
fn names(custom: &Custom) -> (String, String) {
    let def = custom.def();
    let mut group: Vec<&str> = def.group.split('.').collect();
    group.reverse();
    let base = format!("{}.{}", group.join("."), def.version);
    (format!("{base}.{}", def.kind), format!("{base}.{}", def.list_kind()))
}

fn kinds(custom: &Custom, kind: &str) -> Value {
    json!([{"group": custom.def().group, "kind": kind, "version": custom.def().version}])
}

fn list_schema(custom: &Custom, name: &str) -> Value {
    let def = custom.def();
    json!({
        "description": format!("{} is a list of {}", def.list_kind(), def.kind),
        "type": "object", "required": ["items"],
        "properties": {
            "apiVersion": string(API_VERSION), "kind": string(KIND),
            "metadata": reference(LIST_META, "Standard list metadata."),
            "items": {"description": format!("List of {}.", def.plural), "type": "array",
                "items": {"$ref": format!("#/components/schemas/{name}")}},
        },
        "x-kubernetes-group-version-kind": kinds(custom, &def.list_kind()),
    })
}

fn kind_schema(custom: &Custom) -> Value {
    let mut schema = custom.definition.schema_source(custom.index);
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    schema["properties"]["apiVersion"] = string(API_VERSION);
    schema["properties"]["kind"] = string(KIND);
    schema["properties"]["metadata"] = reference(META, "Standard object's metadata.");
    schema["x-kubernetes-group-version-kind"] = kinds(custom, custom.def().kind);
    schema
}

fn add_paths(custom: &Custom, name: &str, list: &str, paths: &mut Map<String, Value>) {
    let def = custom.def();
    let gvk = json!({"group": def.group, "version": def.version, "kind": def.kind});
    let parameter =
        |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let operation = |action: &str, parameters: &[&str], schema: &str| {
        let content = json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{schema}")}}});
        let mut operation = json!({
            "operationId": format!("{action}{}{}", def.version, def.kind),
            "parameters": parameters.iter().map(|p| parameter(p)).collect::<Vec<_>>(),
            "responses": {"200": {"description": "OK", "content": content}},
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk,
        });
        if matches!(action, "post" | "put") {
            operation["requestBody"] = json!({"content": content});
        }
        operation
    };
    let base = format!("/apis/{}/{}", def.group, def.version);
    let place = if def.scope == Scope::Namespaced { "/namespaces/{namespace}" } else { "" };
    let writes = ["dryRun", "fieldManager", "fieldValidation"];
    let lists = ["continue", "fieldSelector", "labelSelector", "limit", "resourceVersion", "watch"];
    let collection = format!("{base}{place}/{}", def.plural);
    let one = format!("{collection}/{{name}}");
    let in_path = |name: &str| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}});
    let mut of_collection = Vec::new();
    if !place.is_empty() {
        of_collection.push(in_path("namespace"));
    }
    let of_one: Vec<Value> = std::iter::once(in_path("name")).chain(of_collection.clone()).collect();
    let item = json!({
        "parameters": of_one,
        "get": operation("get", &["resourceVersion"], name),
        "put": operation("put", &writes, name),
        "patch": operation("patch", &["dryRun", "fieldManager", "fieldValidation", "force"], name),
        "delete": operation("delete", &["dryRun", "gracePeriodSeconds", "propagationPolicy"], name),
    });
    for sub in def.subresources {
        paths.insert(
            format!("{one}/{}", sub.name),
            json!({"parameters": of_one, "get": operation("get", &[], name), "put": operation("put", &writes, name), "patch": operation("patch", &writes, name)}),
        );
    }
    paths.insert(one, item);
    paths.insert(
        collection,
        json!({
            "parameters": of_collection,
            "get": operation("list", &lists, list),
            "post": operation("post", &writes, name),
            "delete": operation("deletecollection", &lists, name),
        }),
    );
    if !place.is_empty() {
        paths.insert(format!("{base}/{}", def.plural), json!({"get": operation("list", &lists, list)}));
    }
}
