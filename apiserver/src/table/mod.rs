//! Answers in the forms that people's tools ask for: Table and PartialObjectMetadata.

mod columns;
mod network;
mod others;
mod pod;
mod storage;
mod text;
mod workloads;

use keelson_machinery::conversion;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use crate::negotiate::{Accepted, Format};
use crate::request::Query;
use columns::Printer;

/// One object in another form.
pub fn single(def: &ResourceDef, accepted: Accepted, object: &Value, query: &Query) -> Result<Value, Status> {
    Ok(match accepted.format {
        Format::Metadata => partial(accepted, object),
        Format::Table => {
            let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            table(&shown(def, Some(object)), accepted, std::slice::from_ref(object), metadata, query)?
        }
        Format::Object => object.clone(),
        Format::MetadataList => {
            let what = go_name(def, "");
            let message =
                format!("you requested PartialObjectMetadataList, but the requested object is not a list ({what})");
            return Err(Status { message, ..Status::not_acceptable("") });
        }
    })
}

/// Whether an answer about a row has other forms: its own objects and scales, not a Status.
pub fn is_shown(def: &ResourceDef, object: &Value) -> bool {
    object["kind"] == def.kind || object["kind"] == "Scale"
}

/// A collection in another form.
pub fn list(
    def: &ResourceDef,
    accepted: Accepted,
    items: &[Value],
    metadata: Value,
    query: &Query,
) -> Result<Value, Status> {
    Ok(match accepted.format {
        Format::MetadataList => {
            // Within a list the kind is not repeated on the wire, but JSON has always had it.
            let items: Vec<Value> = items.iter().map(|item| partial(accepted, item)).collect();
            json!({
                "kind": "PartialObjectMetadataList", "apiVersion": accepted.meta_version(), "metadata": metadata, "items": items,
            })
        }
        Format::Table => table(&shown(def, None), accepted, items, metadata, query)?,
        Format::Object => {
            let items: Vec<Value> = items.iter().map(|item| list_item(def, item)).collect();
            json!({"kind": def.list_kind(), "apiVersion": def.api_version(), "metadata": metadata, "items": items})
        }
        Format::Metadata => {
            let what = go_name(def, "List");
            let message = format!("you requested PartialObjectMetadata, but the requested object is a list ({what})");
            return Err(Status { message, ..Status::not_acceptable("") });
        }
    })
}

/// An object as lists have it: those of built-in kinds say what it is once, not in each item.
fn list_item(def: &ResourceDef, item: &Value) -> Value {
    let mut item = item.clone();
    if let (false, Some(fields)) = (def.custom, item.as_object_mut()) {
        fields.retain(|key, _| key != "apiVersion" && key != "kind");
    }
    item
}

/// The type that upstream's messages name.
fn go_name(def: &ResourceDef, suffix: &str) -> String {
    let group = def.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
    format!("*{group}.{}{suffix}", def.kind)
}

/// The metadata of an object: of the one behind its versions, without the annotations in which a version keeps what it has
/// no fields for.
pub fn partial(accepted: Accepted, object: &Value) -> Value {
    let mut metadata = object["metadata"].clone();
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let notes = conversion::version_annotations(text("apiVersion"), text("kind"));
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|key, _| !notes.contains(&key.as_str()));
        if annotations.is_empty() {
            metadata.as_object_mut().map(|m| m.remove("annotations"));
        }
    }
    json!({"kind": "PartialObjectMetadata", "apiVersion": accepted.meta_version(), "metadata": metadata})
}

/// How one object is shown: by its kind's printer, or by the columns of its definition.
enum Shown<'a> {
    BuiltIn(&'static Printer),
    Custom(&'a ResourceDef),
}

impl Shown<'_> {
    fn columns(&self) -> Vec<Value> {
        match self {
            Self::BuiltIn(printer) => printer.columns.iter().map(columns::definition).collect(),
            Self::Custom(def) => std::iter::once(&columns::NAME)
                .chain(def.columns.iter().map(|(c, _)| c))
                .map(columns::definition)
                .collect(),
        }
    }

    fn cells(&self, object: &Value) -> Vec<Value> {
        match self {
            // An autoscaler of the older version is shown as the newer one that it stands for.
            Self::BuiltIn(printer) if object["apiVersion"] == "autoscaling/v1" && object["kind"] != "Scale" => {
                (printer.cells)(&keelson_machinery::scaling::to_v2(object))
            }
            Self::BuiltIn(printer) => (printer.cells)(object),
            Self::Custom(def) => {
                let cells = crate::crd::cells(def, object, |since| text::age(&since.into()));
                std::iter::once(text::name(object)).chain(cells).collect()
            }
        }
    }
}

fn shown<'a>(def: &'a ResourceDef, object: Option<&Value>) -> Shown<'a> {
    match object {
        Some(object) if object["kind"] == "Scale" && def.kind != "Scale" => Shown::BuiltIn(&columns::SCALE),
        _ if def.custom => Shown::Custom(def),
        _ => Shown::BuiltIn(columns::of(def)),
    }
}

/// The cells of an object and what a row shows beside them.
fn row(shown: &Shown<'_>, accepted: Accepted, item: &Value, query: &Query) -> Value {
    let mut row = json!({"cells": shown.cells(item)});
    if item["kind"] == "Pod"
        && let Some(conditions) = pod::row_conditions(item)
    {
        row["conditions"] = conditions;
    }
    row["object"] = match query.get("includeObject") {
        Some("Object") => item.clone(),
        Some("None") => Value::Null,
        _ => partial(accepted, item),
    };
    row
}

/// The columns of a kind's tables.
pub fn columns_of(def: &ResourceDef) -> Value {
    shown(def, None).columns().into()
}

/// The row of one object in a kind's table.
pub fn row_of(def: &ResourceDef, accepted: Accepted, item: &Value, query: &Query) -> Value {
    row(&shown(def, None), accepted, item, query)
}

/// Refuses a table of something that rows do not show.
pub fn check(query: &Query) -> Result<(), Status> {
    match query.get("includeObject").filter(|given| !matches!(*given, "Metadata" | "Object" | "None")) {
        None => Ok(()),
        Some(other) => Err(Status::bad_request(format!(
            "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', \
             'Object', 'None', or empty"
        ))),
    }
}

fn table(
    shown: &Shown<'_>,
    accepted: Accepted,
    items: &[Value],
    metadata: Value,
    query: &Query,
) -> Result<Value, Status> {
    check(query)?;
    let mut items: Vec<&Value> = items.iter().collect();
    if items.first().is_some_and(|item| item["kind"] == "FlowSchema") {
        // They are shown in the order in which they are tried.
        items.sort_by_key(|item| item["spec"]["matchingPrecedence"].as_i64());
    }
    let rows: Vec<Value> = items.into_iter().map(|item| row(shown, accepted, item, query)).collect();
    Ok(json!({
        "kind": "Table", "apiVersion": accepted.meta_version(), "metadata": metadata, "columnDefinitions": shown.columns(),
        "rows": rows,
    }))
}
