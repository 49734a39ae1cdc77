//! Answers in the forms that people's tools ask for: Table and PartialObjectMetadata.

mod columns;
mod network;
mod others;
mod pod;
mod storage;
mod text;
mod workloads;

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
            table(printer(def, object), accepted, std::slice::from_ref(object), metadata, query)?
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
        Format::Table => table(columns::of(def), accepted, items, metadata, query)?,
        Format::Object => json!({
            "kind": format!("{}List", def.kind), "apiVersion": def.api_version(), "metadata": metadata, "items": items,
        }),
        Format::Metadata => {
            let what = go_name(def, "List");
            let message = format!("you requested PartialObjectMetadata, but the requested object is a list ({what})");
            return Err(Status { message, ..Status::not_acceptable("") });
        }
    })
}

/// The type that upstream's messages name.
fn go_name(def: &ResourceDef, suffix: &str) -> String {
    let group = def.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
    format!("*{group}.{}{suffix}", def.kind)
}

/// The metadata of an object.
pub fn partial(accepted: Accepted, object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": accepted.meta_version(), "metadata": object["metadata"]})
}

fn printer(def: &ResourceDef, object: &Value) -> &'static Printer {
    if object["kind"] == "Scale" { &columns::SCALE } else { columns::of(def) }
}

/// What of an object a row shows beside its cells.
fn row(printer: &Printer, accepted: Accepted, item: &Value, query: &Query) -> Result<Value, Status> {
    let mut row = json!({"cells": (printer.cells)(item)});
    if item["kind"] == "Pod"
        && let Some(conditions) = pod::row_conditions(item)
    {
        row["conditions"] = conditions;
    }
    match query.get("includeObject") {
        None | Some("Metadata") => row["object"] = partial(accepted, item),
        Some("Object") => row["object"] = item.clone(),
        Some("None") => {}
        Some(other) => {
            return Err(Status::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', \
                 'Object', 'None', or empty"
            )));
        }
    }
    Ok(row)
}

fn table(
    printer: &Printer,
    accepted: Accepted,
    items: &[Value],
    metadata: Value,
    query: &Query,
) -> Result<Value, Status> {
    let definitions: Vec<Value> = printer.columns.iter().map(columns::definition).collect();
    let rows = items.iter().map(|item| row(printer, accepted, item, query)).collect::<Result<Vec<_>, _>>()?;
    Ok(
        json!({"kind": "Table", "apiVersion": accepted.meta_version(), "metadata": metadata, "columnDefinitions": definitions, "rows": rows}),
    )
}
