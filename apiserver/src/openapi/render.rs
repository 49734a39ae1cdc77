//! Paths and their operations as OpenAPI version 2 and 3 write them.

use std::io;

use keelson_machinery::cbor;
use keelson_machinery::docs::Docs;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::operations::{Operation, Path, RequestBody, ResponseBody, tag};
use super::parameters;
use super::schema::{Flavour, META, Schemas};
use super::sink::{Section, Sink};
use crate::negotiate::is_cbor_open;

const OBJECTS: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const STREAMS: &[&str] = &["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// Writes paths into a document.
pub struct Renderer<'a> {
    flavour: Flavour,
    docs: &'a Docs,
    /// The schemas that the paths name.
    schemas: Schemas<'a>,
    sink: &'a mut dyn Sink,
    paths: usize,
    /// Parameters that version 2 writes once.
    parameters: Map<String, Value>,
}

impl<'a> Renderer<'a> {
    /// Nothing yet.
    pub fn new(flavour: Flavour, docs: &'a Docs, versions: Vec<(&'a str, &'a str)>, sink: &'a mut dyn Sink) -> Self {
        let schemas = Schemas::new(flavour, docs, versions);
        Self { flavour, docs, schemas, sink, paths: 0, parameters: Map::new() }
    }

    /// Hands over what the paths named; whether there were any.
    pub fn finish(self) -> io::Result<bool> {
        self.schemas.finish(self.sink)?;
        for (name, parameter) in &self.parameters {
            self.sink.entry(Section::Parameters, name, parameter)?;
        }
        Ok(self.paths > 0)
    }

    fn add(&mut self, path: &str, item: &Value) -> io::Result<()> {
        self.paths += 1;
        self.sink.entry(Section::Paths, path, item)
    }

    /// Adds a path of a resource.
    pub fn path(&mut self, path: &Path) -> io::Result<()> {
        let query = |operation: &Operation| -> Vec<&'static str> {
            let pretty = operation.pretty.then_some("pretty");
            operation.parameters.iter().copied().chain(pretty).collect()
        };
        let first = query(&path.operations[0]);
        let in_all = |name: &&&str| path.operations.iter().all(|o| query(o).contains(*name));
        let shared: Vec<&str> = first.iter().filter(in_all).copied().collect();
        let mut item = Map::new();
        for operation in &path.operations {
            let own: Vec<&str> = query(operation).into_iter().filter(|name| !shared.contains(name)).collect();
            let own = own.into_iter().map(|name| self.query(name, operation)).collect();
            let rendered = self.operation(operation, own);
            item.insert(operation.method.to_owned(), rendered);
        }
        let kind = path.operations[0].kind.2;
        let mut all: Vec<_> = shared.iter().map(|n| ((*n, "query"), self.query(n, &path.operations[0]))).collect();
        for name in &path.parameters {
            let parameter = parameters::path(self.flavour, name, kind);
            all.push(((*name, "path"), self.shared(name, parameter)));
        }
        all.sort_by_key(|(place, _)| *place);
        if !all.is_empty() {
            item.insert("parameters".into(), all.into_iter().map(|(_, p)| p).collect());
        }
        self.add(&path.path, &item.into())
    }

    /// Adds a path that is about the API itself; the answer is an object of the type, or a text.
    pub fn plain(
        &mut self,
        path: &str,
        tag: &str,
        id: &str,
        description: &str,
        media: &[&str],
        answer: Option<&str>,
    ) -> io::Result<()> {
        let schema = match answer {
            Some(path) => self.schemas.reference(path),
            None => json!({"type": "string"}),
        };
        let mut operation = json!({"tags": [tag], "description": description, "operationId": id});
        operation["responses"] =
            json!({"200": self.answer("OK", media, Some(schema)), "401": {"description": "Unauthorized"}});
        if self.flavour == Flavour::V2 {
            operation["produces"] = json!(media);
            if answer.is_some() {
                operation["consumes"] = json!(media);
            }
            operation["schemes"] = json!(["https"]);
        }
        self.add(path, &json!({"get": operation}))
    }

    fn query(&mut self, name: &str, operation: &Operation) -> Value {
        let of = if operation.answer == ResponseBody::Text { "Log" } else { operation.kind.2 };
        // `container` and the like are described by the options; `pretty` and the rest by nobody's.
        let patch = operation.body == RequestBody::Patch;
        let parameter = parameters::query(self.docs, self.flavour, name, of, patch);
        self.shared(name, parameter)
    }

    /// In version 2 a parameter is written once and named elsewhere.
    fn shared(&mut self, name: &str, parameter: Value) -> Value {
        if self.flavour == Flavour::V3 {
            return parameter;
        }
        let digest = Sha256::digest(parameter.to_string());
        let key = format!("{name}-{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3]);
        let reference = json!({"$ref": format!("#/parameters/{key}")});
        self.parameters.entry(key).or_insert(parameter);
        reference
    }

    fn answer(&self, description: &str, media: &[&str], schema: Option<Value>) -> Value {
        let mut out = json!({"description": description});
        if let Some(schema) = schema {
            match self.flavour {
                Flavour::V2 => out["schema"] = schema,
                Flavour::V3 => out["content"] = content(media, &schema),
            }
        }
        out
    }

    fn operation(&mut self, operation: &Operation, mut own: Vec<Value>) -> Value {
        let (group, version, kind) = operation.kind;
        let (objects, streams, patches) = (with_cbor(OBJECTS, 0), with_cbor(STREAMS, 1), with_cbor(PATCHES, 2));
        let (media, schema): (Vec<&str>, Value) = match &operation.answer {
            ResponseBody::Object(path) => (objects, self.schemas.reference(path)),
            ResponseBody::Stream(path) => ([objects, streams].concat(), self.schemas.reference(path)),
            ResponseBody::Text => ([vec!["text/plain"], objects].concat(), json!({"type": "string"})),
            ResponseBody::Anything => (vec!["*/*"], json!({"type": "string"})),
        };
        let mut responses = json!({"401": {"description": "Unauthorized"}});
        for code in operation.codes {
            let description = match code {
                201 => "Created",
                202 => "Accepted",
                _ => "OK",
            };
            responses[code.to_string()] = self.answer(description, &media, Some(schema.clone()));
        }
        let of = operation.id.find(|c: char| c.is_uppercase()).map_or("", |at| &operation.id[at..]);
        let mut out = json!({
            "tags": [self.tag_of(of, group, version)], "description": operation.description, "operationId": operation.id,
            "responses": responses, "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        });
        let body = match &operation.body {
            RequestBody::None => None,
            RequestBody::Object(path) => Some((vec!["*/*"], self.schemas.reference(path), true)),
            RequestBody::Patch => Some((patches, self.schemas.reference(&format!("{META}Patch")), true)),
            RequestBody::DeleteOptions => {
                Some((vec!["*/*"], self.schemas.reference(&format!("{META}DeleteOptions")), false))
            }
        };
        if self.flavour == Flavour::V2 {
            out["consumes"] = json!(body.as_ref().map_or(vec!["*/*"], |(media, ..)| media.clone()));
            out["produces"] = json!(media);
            out["schemes"] = json!(["https"]);
        }
        if let Some((media, schema, required)) = body {
            match self.flavour {
                Flavour::V2 => own.insert(0, body_parameter(schema, required)),
                Flavour::V3 => out["requestBody"] = request_body(&media, &schema, required),
            }
        }
        if !own.is_empty() {
            out["parameters"] = own.into();
        }
        out
    }

    /// The tag of an operation: that of the row's group, which its name begins with.
    fn tag_of(&self, id: &str, group: &str, version: &str) -> String {
        let own = tag(group, version);
        // Subresources of another group (scale, eviction) are tagged with the row's.
        let wanted = id.to_lowercase();
        if wanted.starts_with(&own.replace('_', "").to_lowercase()) {
            return own;
        }
        let groups = keelson_machinery::resources::RESOURCES.iter().map(|row| tag(row.group, row.version));
        groups.into_iter().find(|tag| wanted.starts_with(&tag.replace('_', "").to_lowercase())).unwrap_or(own)
    }
}

/// What is said of CBOR, if its gate is open: as an object, a stream and an applied configuration.
const CBOR: [&str; 3] = [cbor::MEDIA_TYPE, "application/cbor;stream=watch", cbor::APPLY_TYPE];

fn with_cbor(types: &[&'static str], which: usize) -> Vec<&'static str> {
    types.iter().copied().chain(is_cbor_open().then_some(CBOR[which])).collect()
}

fn content(media: &[&str], schema: &Value) -> Value {
    let entries = media.iter().map(|media| ((*media).to_owned(), json!({"schema": schema})));
    Value::Object(entries.collect())
}

fn request_body(media: &[&str], schema: &Value, required: bool) -> Value {
    let mut body = json!({"content": content(media, schema)});
    if required {
        body["required"] = true.into();
    }
    body
}

fn body_parameter(schema: Value, required: bool) -> Value {
    let mut body = json!({"name": "body", "in": "body", "schema": schema});
    if required {
        body["required"] = true.into();
    }
    body
}
