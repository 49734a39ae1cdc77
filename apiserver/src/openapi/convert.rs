//! Paths and schemas of one version of OpenAPI in the form of the other: what definitions and other servers say once.

use serde_json::{Map, Value, json};

/// Places of schemas in the two versions.
const V2: &str = "#/definitions/";
const V3: &str = "#/components/schemas/";
/// What a parameter says of its values in version 2, and its schema in version 3.
const OF_VALUES: [&str; 9] =
    ["type", "format", "items", "uniqueItems", "default", "enum", "minimum", "maximum", "pattern"];

/// Replaces references that begin with `from`.
fn refer(value: &mut Value, from: &str, to: &str) {
    each_reference(value, &mut |reference| {
        if let Some(name) = reference.strip_prefix(from) {
            *reference = format!("{to}{name}");
        }
    });
}

/// Calls back with each reference in a document's part.
pub fn each_reference(value: &mut Value, found: &mut dyn FnMut(&mut String)) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get_mut("$ref") {
                found(reference);
            }
            fields.values_mut().for_each(|value| each_reference(value, found));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| each_reference(value, found)),
        _ => {}
    }
}

/// A custom resource's schema in version 2, which knows neither alternatives nor null: what it cannot say is left open.
pub fn schema_to_v2(schema: &Value) -> Value {
    let Value::Object(given) = schema else { return schema.clone() };
    let open = given.get("nullable") == Some(&Value::Bool(true));
    let any = open || given.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
    let loose = open || given.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    let mut out = Map::new();
    for (key, value) in given {
        let made = match key.as_str() {
            "nullable" | "allOf" | "anyOf" | "oneOf" | "not" => continue,
            "$ref" => value.clone(),
            "type" if any => continue,
            "properties" | "items" | "additionalProperties" | "required" if loose => continue,
            "properties" => {
                let fields = value.as_object().into_iter().flatten();
                fields.map(|(name, of)| (name.clone(), schema_to_v2(of))).collect::<Map<_, _>>().into()
            }
            "items" | "additionalProperties" => schema_to_v2(value),
            _ => value.clone(),
        };
        out.insert(key.clone(), made);
    }
    // What refers to a schema and says something beside it does so through a list of one.
    if let Some([only]) = given.get("allOf").and_then(Value::as_array).map(Vec::as_slice)
        && let Some(reference) = only.get("$ref")
    {
        out.insert("$ref".into(), reference.clone());
    }
    let mut out = Value::Object(out);
    refer(&mut out, V3, V2);
    out
}

/// A path of version 3 in version 2.
pub fn path_to_v2(item: &Value) -> Value {
    let parameter = |given: &Value| {
        let mut out = given.clone();
        let Some(fields) = out.as_object_mut() else { return out };
        if let Some(Value::Object(schema)) = fields.remove("schema") {
            fields.extend(schema);
        }
        out
    };
    let list = |given: &Value| -> Vec<Value> { given.as_array().into_iter().flatten().map(parameter).collect() };
    let mut out = Map::new();
    for (key, given) in item.as_object().into_iter().flatten() {
        if key == "parameters" {
            out.insert(key.clone(), list(given).into());
            continue;
        }
        let mut operation = given.clone();
        let mut parameters = list(&given["parameters"]);
        if let Some(body) = operation.as_object_mut().and_then(|fields| fields.remove("requestBody")) {
            let (media, schema) = content(&body["content"]);
            operation["consumes"] = media.into();
            parameters.insert(0, json!({"name": "body", "in": "body", "required": true, "schema": schema}));
        }
        operation["parameters"] = parameters.into();
        let mut produces = Vec::new();
        for (_, answer) in operation["responses"].as_object_mut().into_iter().flatten() {
            let taken = answer.as_object_mut().and_then(|fields| fields.remove("content"));
            if let Some(taken) = taken {
                let (media, schema) = content(&taken);
                produces = media;
                answer["schema"] = schema;
            }
        }
        operation["produces"] = produces.into();
        out.insert(key.clone(), operation);
    }
    let mut out = Value::Object(out);
    refer(&mut out, V3, V2);
    out
}

/// Media types and schema of a body.
fn content(given: &Value) -> (Vec<String>, Value) {
    let fields = given.as_object();
    let media = fields.into_iter().flatten().map(|(media, _)| media.clone()).collect();
    let schema = fields.and_then(|fields| fields.values().next()).map(|first| first["schema"].clone());
    (media, schema.unwrap_or_default())
}

/// A whole document of version 2 in version 3.
pub fn document_to_v3(document: &Value) -> Value {
    let resolved = |given: &Value| match given["$ref"].as_str().and_then(|r| r.strip_prefix("#/parameters/")) {
        Some(name) => document["parameters"][name].clone(),
        None => given.clone(),
    };
    let parameter = |given: Value| {
        let Value::Object(fields) = given else { return given };
        let (of_values, mut rest): (Map<String, Value>, Map<String, Value>) =
            fields.into_iter().partition(|(key, _)| OF_VALUES.contains(&key.as_str()));
        if !of_values.is_empty() {
            rest.insert("schema".into(), of_values.into());
        }
        Value::Object(rest)
    };
    let bodies = |media: &Value, schema: &Value| -> Value {
        let media = media.as_array().into_iter().flatten().filter_map(Value::as_str);
        let made: Map<String, Value> = media.map(|m| (m.to_owned(), json!({"schema": schema}))).collect();
        if made.is_empty() { json!({"*/*": {"schema": schema}}) } else { made.into() }
    };
    let mut paths = Map::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        let mut made = item.clone();
        for (key, value) in made.as_object_mut().into_iter().flatten() {
            let list = if key == "parameters" { &*value } else { &value["parameters"] };
            let all: Vec<Value> = list.as_array().into_iter().flatten().map(&resolved).collect();
            let (body, others): (Vec<Value>, Vec<Value>) = all.into_iter().partition(|p| p["in"] == "body");
            let others: Vec<Value> = others.into_iter().map(parameter).collect();
            if key == "parameters" {
                *value = others.into();
                continue;
            }
            if !value.is_object() {
                continue;
            }
            value["parameters"] = others.into();
            if let Some(body) = body.first() {
                value["requestBody"] = json!({"content": bodies(&value["consumes"], &body["schema"])});
            }
            let produces = value["produces"].clone();
            for (_, answer) in value["responses"].as_object_mut().into_iter().flatten() {
                if let Some(schema) = answer.as_object_mut().and_then(|fields| fields.remove("schema")) {
                    answer["content"] = bodies(&produces, &schema);
                }
            }
            for key in ["consumes", "produces", "schemes"] {
                value.as_object_mut().and_then(|fields| fields.remove(key));
            }
        }
        paths.insert(path.clone(), made);
    }
    let mut out = json!({"openapi": "3.0.0", "info": document["info"], "paths": paths,
        "components": {"schemas": document["definitions"]}});
    refer(&mut out, V2, V3);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_lose_what_the_older_version_cannot_say() {
        for (given, expected) in [
            (json!({"type": "string", "nullable": true, "description": "d"}), json!({"description": "d"})),
            (
                json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
                json!({"x-kubernetes-int-or-string": true}),
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string", "not": {}}}}}),
                json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}}),
            ),
            (
                json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {}}}),
                json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
            ),
            (
                json!({"allOf": [{"$ref": "#/components/schemas/M"}], "description": "d"}),
                json!({"$ref": "#/definitions/M", "description": "d"}),
            ),
        ] {
            assert_eq!(schema_to_v2(&given), expected, "{given}");
        }
    }

    #[test]
    fn paths_are_the_same_there_and_back() {
        let path = json!({
            "parameters": [{"name": "name", "in": "path", "required": true, "schema": {"type": "string"}}],
            "put": {"parameters": [{"name": "dryRun", "in": "query", "schema": {"type": "string", "uniqueItems": true}}],
                "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/K"}}}},
                "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/K"}}}}}},
        });
        let old = path_to_v2(&path);
        assert_eq!(old["parameters"][0]["type"], "string");
        assert_eq!(old["put"]["parameters"][0]["schema"]["$ref"], "#/definitions/K");
        assert_eq!(old["put"]["responses"]["200"]["schema"]["$ref"], "#/definitions/K");
        let document =
            json!({"swagger": "2.0", "info": {}, "paths": {"/k": old}, "definitions": {"K": {"type": "object"}}});
        let new = document_to_v3(&document);
        assert_eq!(new["paths"]["/k"], path);
        assert_eq!(new["components"]["schemas"]["K"]["type"], "object");
    }
}
