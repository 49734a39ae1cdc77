//! The protobuf form of version 2 (package `openapi.v2` of gnostic), for clients that ask for it before JSON.
//!
//! Only what the documents of [`super::document`] have is written. Extensions are YAML there; JSON is YAML.

use std::io;

use serde_json::{Map, Value, json};

use super::sink::{self, Section, Sink};
use crate::wire::Message;

/// Writes the fields of an object that begin with `x-`.
fn extensions(out: &mut Message, number: u32, of: &Value) {
    let extensions = of.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with("x-"));
    let extensions: Map<String, Value> = extensions.map(|(k, v)| (k.clone(), v.clone())).collect();
    out.named(number, &Value::Object(extensions), any);
}

fn any(value: &Value) -> Message {
    let mut out = Message::default();
    out.bytes(2, format!("{value}\n").as_bytes());
    out
}

/// One alternative of several.
fn one_of(number: u32, message: Message) -> Message {
    let mut out = Message::default();
    out.message(number, message);
    out
}

/// The document, taken part by part.
#[derive(Default)]
pub struct Document {
    paths: Message,
    definitions: Message,
    parameters: Message,
}

impl Sink for Document {
    fn entry(&mut self, section: Section, name: &str, value: &Value) -> io::Result<()> {
        let mut pair = Message::default();
        pair.bytes(1, name.as_bytes());
        let (place, number, message) = match section {
            Section::Paths => (&mut self.paths, 2, path_item(value)),
            Section::Schemas => (&mut self.definitions, 1, schema(value)),
            Section::Parameters => (&mut self.parameters, 1, parameter(value)),
        };
        pair.message(2, message);
        place.message(number, pair);
        Ok(())
    }
}

impl Document {
    /// The whole.
    pub fn finish(self) -> Vec<u8> {
        let (mut out, mut about) = (Message::default(), Message::default());
        out.bytes(1, b"2.0");
        let info = sink::info();
        about.text(1, &info["title"]);
        about.text(2, &info["version"]);
        out.message(2, about);
        out.message(8, self.paths);
        out.message(9, self.definitions);
        out.message(10, self.parameters);
        let mut requirement = Message::default();
        requirement.named(1, &json!({"BearerToken": []}), |_| Message::default());
        out.message(12, requirement);
        let mut security = Message::default();
        security.named(1, &sink::bearer_token(), |value| {
            let mut key = Message::default();
            key.text(1, &value["type"]);
            key.text(2, &value["name"]);
            key.text(3, &value["in"]);
            key.text(4, &value["description"]);
            one_of(2, key)
        });
        out.message(13, security);
        out.0
    }
}

fn path_item(item: &Value) -> Message {
    let mut out = Message::default();
    for (number, method) in
        [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")]
    {
        if item[method].is_object() {
            out.message(number, operation(&item[method]));
        }
    }
    parameters(&mut out, 9, &item["parameters"]);
    extensions(&mut out, 10, item);
    out
}

fn parameters(out: &mut Message, number: u32, list: &Value) {
    for item in list.as_array().into_iter().flatten() {
        out.message(
            number,
            match item.get("$ref") {
                Some(reference) => {
                    let mut message = Message::default();
                    message.text(1, reference);
                    one_of(2, message)
                }
                None => one_of(1, parameter(item)),
            },
        );
    }
}

fn operation(operation: &Value) -> Message {
    let mut out = Message::default();
    out.texts(1, &operation["tags"]);
    out.text(3, &operation["description"]);
    out.text(5, &operation["operationId"]);
    out.texts(6, &operation["produces"]);
    out.texts(7, &operation["consumes"]);
    parameters(&mut out, 8, &operation["parameters"]);
    let mut responses = Message::default();
    responses.named(1, &operation["responses"], |value| {
        let mut response = Message::default();
        response.text(1, &value["description"]);
        if value["schema"].is_object() {
            response.message(2, one_of(1, schema(&value["schema"])));
        }
        one_of(1, response)
    });
    out.message(9, responses);
    out.texts(10, &operation["schemes"]);
    extensions(&mut out, 13, operation);
    out
}

fn parameter(parameter: &Value) -> Message {
    let mut out = Message::default();
    if parameter["in"] == "body" {
        out.text(1, &parameter["description"]);
        out.text(2, &parameter["name"]);
        out.text(3, &parameter["in"]);
        out.flag(4, &parameter["required"]);
        out.message(5, schema(&parameter["schema"]));
        return one_of(1, out);
    }
    let in_path = parameter["in"] == "path";
    out.flag(1, &parameter["required"]);
    out.text(2, &parameter["in"]);
    out.text(3, &parameter["description"]);
    out.text(4, &parameter["name"]);
    out.text(if in_path { 5 } else { 6 }, &parameter["type"]);
    out.flag(if in_path { 19 } else { 20 }, &parameter["uniqueItems"]);
    one_of(2, one_of(if in_path { 4 } else { 3 }, out))
}

fn schema(schema: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, &schema["$ref"]);
    out.text(2, &schema["format"]);
    out.text(4, &schema["description"]);
    out.texts(19, &schema["required"]);
    for value in schema["enum"].as_array().into_iter().flatten() {
        out.message(20, any(value));
    }
    if schema["additionalProperties"].is_object() {
        out.message(21, one_of(1, self::schema(&schema["additionalProperties"])));
    }
    if let Some(kind) = schema["type"].as_str() {
        let mut message = Message::default();
        message.bytes(1, kind.as_bytes());
        out.message(22, message);
    }
    if schema["items"].is_object() {
        out.message(23, one_of(1, self::schema(&schema["items"])));
    }
    if schema["properties"].is_object() {
        let mut properties = Message::default();
        properties.named(1, &schema["properties"], self::schema);
        out.message(25, properties);
    }
    extensions(&mut out, 31, schema);
    out
}
