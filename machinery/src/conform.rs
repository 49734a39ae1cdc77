//! Brings a decoded object into the form of its type: unknown fields are taken out and told, values of a wrong type are
//! refused with the words of the API's decoder, nulls and empty optional lists and maps are left out, times and
//! quantities get their canonical form.

use std::num::IntErrorKind;

use serde_json::{Map, Value};

use crate::base64_text;
use crate::go_time::{self, Layout};
use crate::go_types;
use crate::place::Place;
use crate::presence;
use crate::protobuf;
use crate::quantity::Quantity;
use crate::resource::ResourceDef;
use crate::schema::{self, Definition, Type};

/// Most unknown fields that are told (they are all removed).
const MAX_UNKNOWN: usize = 100;

/// Conforms an object of a row's kind. Gives the paths of unknown fields (`spec.containers[0].imagee`), in order; an
/// object without a known type is left as it is.
pub fn conform(def: &ResourceDef, object: &mut Value) -> Result<Vec<String>, String> {
    let Some(definition) = schema::of_kind(def.group, def.version, def.kind) else { return Ok(Vec::new()) };
    let unknown = conform_to(definition, object)?;
    if (def.group, def.plural) == ("apps", "daemonsets") {
        template_generation(&object["metadata"]["annotations"])?;
    }
    Ok(unknown)
}

/// The annotation of a DaemonSet that is a field of another version must be a number.
fn template_generation(annotations: &Value) -> Result<(), String> {
    let Some(text) = annotations[crate::prepare::TEMPLATE_GENERATION].as_str() else { return Ok(()) };
    let why = match text.parse::<i64>() {
        Ok(_) => return Ok(()),
        Err(why) if matches!(why.kind(), IntErrorKind::PosOverflow | IntErrorKind::NegOverflow) => "value out of range",
        Err(_) => "invalid syntax",
    };
    Err(format!("strconv.ParseInt: parsing {text:?}: {why}"))
}

/// Conforms an object to a type.
pub fn conform_to(definition: &Definition, object: &mut Value) -> Result<Vec<String>, String> {
    let mut walk = Walk { unknown: Vec::new() };
    match object {
        Value::Object(map) => walk.object(definition, map, &Place::Root)?,
        other => {
            return Err(format!("json: cannot unmarshal {} into Go value of type v1.{}", name(other), definition.name));
        }
    }
    Ok(walk.unknown)
}

/// Puts back the empty lists and maps that a body says and that were taken out of its object, as far as they are still
/// not there: upstream's messages tell them from those that were not said. Gives whether there were any.
pub fn put_back_empty(def: &ResourceDef, body: &Value, object: &mut Value) -> bool {
    let (Some(definition), Some(said)) = (schema::of_kind(def.group, def.version, def.kind), body.as_object()) else {
        return false;
    };
    let Some(object) = object.as_object_mut() else { return false };
    // Of its own metadata and status nothing is shown as a whole.
    let said = said.iter().filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status"));
    said.fold(false, |any, (key, said)| empty_field(definition, key, said, object) || any)
}

fn empty_field(definition: &Definition, key: &str, said: &Value, object: &mut Map<String, Value>) -> bool {
    let Some(field) = definition.fields.get(key) else { return false };
    let is_empty = match (&field.kind, said) {
        (Type::List(_), Value::Array(list)) => list.is_empty(),
        (Type::Map(_), Value::Object(map)) => map.is_empty(),
        _ => false,
    };
    match object.get_mut(key) {
        None | Some(Value::Null) if is_empty => {
            object.insert(key.to_owned(), said.clone());
            true
        }
        Some(now) => empty_inside(&field.kind, said, now),
        None => false,
    }
}

fn empty_inside(kind: &Type, said: &Value, now: &mut Value) -> bool {
    match (kind, said, now) {
        (Type::Object(path), Value::Object(said), Value::Object(now)) => {
            let Some(definition) = schema::definition(path) else { return false };
            said.iter().fold(false, |any, (key, said)| empty_field(definition, key, said, now) || any)
        }
        (Type::List(item), Value::Array(said), Value::Array(now)) if said.len() == now.len() => {
            said.iter().zip(now).fold(false, |any, (said, now)| empty_inside(item, said, now) || any)
        }
        (Type::Map(item), Value::Object(said), Value::Object(now)) => said
            .iter()
            .fold(false, |any, (key, said)| now.get_mut(key).is_some_and(|now| empty_inside(item, said, now)) || any),
        _ => false,
    }
}

/// What is wrong with an object that was not read from text, in the words of the API's converter: the first value of a wrong
/// form, or else `why`, which is said where it is read from text.
pub fn unstructured_error(def: &ResourceDef, object: &Value, why: String) -> String {
    let definition = schema::of_kind(def.group, def.version, def.kind);
    if let Some(told) = definition.and_then(|definition| unfit(&Type::Object(definition.path), None, object)) {
        return told;
    }
    if why.starts_with("illegal base64") {
        return format!("error decoding from json: {why}");
    }
    // Values that read themselves do not know where they are.
    let parts =
        why.split_once(" into Go struct field ").and_then(|(what, rest)| Some((what, rest.split_once(" of type ")?.1)));
    match parts {
        Some((what, kind)) => format!("{what} into Go value of type {kind}"),
        None => why,
    }
}

/// `named` is the name of the value's own type of text, if it has one.
fn unfit(kind: &Type, named: Option<&str>, value: &Value) -> Option<String> {
    let go = |value: &Value| match value {
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        _ => "int64",
    };
    match (kind, value) {
        (_, Value::Null)
        | (Type::Any, _)
        | (Type::String | Type::Bytes, Value::String(_))
        | (Type::Bool, Value::Bool(_)) => None,
        (Type::Object(path), Value::Object(map)) => {
            let definition = schema::definition(path)?;
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_by_key(|key| protobuf::place_of(path, key).map_or(0, |place| place + 1));
            keys.into_iter().find_map(|key| {
                let field = definition.fields.get(key.as_str())?;
                unfit(&field.kind, go_types::find(definition.name, key), &map[key])
            })
        }
        (Type::List(item), Value::Array(list)) => list.iter().find_map(|inner| unfit(item, named, inner)),
        (Type::Map(item), Value::Object(map)) => map.values().find_map(|inner| unfit(item, None, inner)),
        (Type::List(_) | Type::Bytes, other) => Some(format!("cannot restore slice from {}", go(other))),
        (Type::Map(_), other) => Some(format!("cannot restore map from {}", go(other))),
        (Type::Object(_), other) => Some(format!("cannot restore struct from: {}", go(other))),
        // A number is a letter to Go.
        (Type::String, Value::Number(n)) if !n.is_f64() => {
            Some(format!("cannot convert int64 to {}", named.unwrap_or("string")))
        }
        (Type::String, _) => Some("unrecognized type: string".into()),
        (Type::Bool, _) => Some("unrecognized type: bool".into()),
        (Type::Int32 | Type::Int64, value) => {
            let of = if matches!(kind, Type::Int32) { "int32" } else { "int64" };
            match value.as_f64() {
                Some(number) if number.fract() != 0.0 => Some(format!("cannot convert float64 to {of}")),
                Some(_) => None,
                None => Some(format!("unrecognized type: {of}")),
            }
        }
        (Type::Float64, value) => (!value.is_number()).then(|| "unrecognized type: float64".into()),
        (Type::Quantity | Type::IntOrString | Type::Time | Type::MicroTime, _) => None,
    }
}

/// Lists for which saying that there is nothing is something else than saying nothing: no default takes their place.
const SAID_EMPTY: &[(&str, &str)] = &[("api.autoscaling.v2.HPAScalingRules", "policies")];

/// The type of schemas.
const SCHEMA: &str = "JSONSchemaProps";

/// Brings schemas within a schema into form that are read by themselves, for something else may stand there: of what they do
/// not know nothing is told, and errors have the place of the field alone.
fn part_of_schema(definition: &Definition, key: &str, value: &mut Value, at: &Place<'_>) -> Result<(), String> {
    let inner = |schema: &mut Map<String, Value>| {
        Walk { unknown: Vec::new() }.object(definition, schema, &Place::Root).map_err(|why| {
            let parts = why.split_once(" into Go struct field ");
            match parts.and_then(|(what, rest)| Some((what, rest.split_once(" of type ")?.1))) {
                Some((what, kind)) => format!("{what} into Go struct field {SCHEMA}.{} of type {kind}", at.fields()),
                None => why,
            }
        })
    };
    match (key, &mut *value) {
        ("additionalItems" | "additionalProperties" | "items", Value::Object(schema)) => inner(schema),
        ("additionalItems" | "additionalProperties", Value::Bool(_) | Value::Null) => Ok(()),
        ("additionalItems" | "additionalProperties", _) => Err("boolean or JSON schema expected".into()),
        ("items", Value::Array(list)) if !list.is_empty() => {
            list.iter_mut().filter_map(Value::as_object_mut).try_for_each(inner)
        }
        ("items", _) => {
            *value = Value::Null;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Types whose maps of amounts are none of resources.
const DEVICES: &str = "api.resource.";

/// Amounts of resources are kept to a thousandth, rounded up.
fn whole_millis(amounts: &mut Value) {
    for amount in amounts.as_object_mut().into_iter().flatten().map(|(_, amount)| amount) {
        let parsed = amount.as_str().and_then(|text| Quantity::parse(text).ok());
        if let Some(rounded) = parsed.map(Quantity::in_millis).filter(|rounded| Some(*rounded) != parsed) {
            *amount = rounded.to_string().into();
        }
    }
}

/// Up to here whole numbers are exact.
const MAX_WHOLE: f64 = (1_u64 << 53) as f64;

struct Walk {
    unknown: Vec<String>,
}

impl Walk {
    fn object(&mut self, definition: &Definition, map: &mut Map<String, Value>, at: &Place<'_>) -> Result<(), String> {
        map.retain(|key, _| {
            let known = definition.fields.contains_key(key.as_str());
            if !known && self.unknown.len() < MAX_UNKNOWN {
                self.unknown.push(Place::Field(at, key).path());
            }
            known
        });
        for (key, value) in map.iter_mut() {
            let Some(field) = definition.fields.get(key.as_str()) else { continue };
            let place = Place::Field(at, key);
            self.value((definition.name, &field.kind), value, &place)?;
            if definition.name == SCHEMA {
                part_of_schema(definition, key, value, &place)?;
            }
            let amounts = matches!(&field.kind, Type::Map(item) if **item == Type::Quantity);
            if amounts && !definition.path.starts_with(DEVICES) {
                whole_millis(value);
            }
        }
        // Empty lists and maps that are always written stay for now: whoever sent them owns them.
        let field = |key: &str| definition.fields.get(key).map(|f| (&f.kind, f.present));
        map.retain(|key, value| match (value, field(key)) {
            (Value::Null, _) => false,
            (Value::Object(m), Some((Type::Map(_), present))) => present || !m.is_empty(),
            (Value::Array(l), Some((Type::List(_), present))) => {
                present || !l.is_empty() || SAID_EMPTY.contains(&(definition.path, key.as_str()))
            }
            _ => true,
        });
        // The API's structs leave out an optional scalar that has its zero value, unless they point to it.
        map.retain(|key, value| {
            let zero = match value {
                Value::String(text) => text.is_empty(),
                Value::Bool(truth) => !*truth,
                Value::Number(number) => number.as_f64() == Some(0.0),
                _ => false,
            };
            let scalar =
                |kind: &Type| matches!(kind, Type::String | Type::Bool | Type::Int32 | Type::Int64 | Type::Float64);
            !zero || definition.fields.get(key.as_str()).is_none_or(|f| f.keeps_zero || !scalar(&f.kind))
        });
        presence::fill(definition, map);
        Ok(())
    }

    /// `of` is the name of the type that has the field.
    fn value(&mut self, (of, kind): (&str, &Type), value: &mut Value, at: &Place<'_>) -> Result<(), String> {
        if value.is_null() || *kind == Type::Any {
            return Ok(());
        }
        match (kind, &mut *value) {
            (Type::Object(path), Value::Object(map)) => match schema::definition(path) {
                Some(definition) => self.object(definition, map, at),
                None => Ok(()),
            },
            (Type::List(item), Value::Array(list)) => {
                for (index, element) in list.iter_mut().enumerate() {
                    element_of(item, element);
                    self.value((of, item), element, &Place::Index(at, index))?;
                }
                Ok(())
            }
            (Type::Map(item), Value::Object(map)) => {
                for (key, element) in map.iter_mut() {
                    element_of(item, element);
                    self.value((of, item), element, &Place::Key(at, key))?;
                }
                Ok(())
            }
            _ => scalar((of, kind), value, at),
        }
    }
}

/// A null in a list or map is the type's empty value.
fn element_of(kind: &Type, element: &mut Value) {
    if element.is_null() {
        *element = match kind {
            Type::String | Type::Bytes => "".into(),
            Type::Int32 | Type::Int64 | Type::Float64 => 0.into(),
            Type::Bool => false.into(),
            Type::Object(_) | Type::Map(_) => Map::new().into(),
            Type::List(_) => Vec::<Value>::new().into(),
            Type::Quantity => "0".into(),
            Type::Any | Type::IntOrString | Type::Time | Type::MicroTime => return,
        };
    }
}

fn scalar((of, kind): (&str, &Type), value: &mut Value, at: &Place<'_>) -> Result<(), String> {
    let mismatch = |value: &Value| {
        let given = match value {
            Value::Number(n) if matches!(kind, Type::Int32 | Type::Int64 | Type::IntOrString) => format!("number {n}"),
            other => name(other).to_owned(),
        };
        let (fields, of_type) = (at.fields(), field_type(of, kind, at));
        format!("json: cannot unmarshal {given} into Go struct field {of}.{fields} of type {of_type}")
    };
    match (kind, &*value) {
        (Type::String, Value::String(_)) | (Type::Bool, Value::Bool(_)) => Ok(()),
        (Type::Float64, Value::Number(number)) => {
            // A whole number is written as one.
            let whole = number.as_f64().filter(|n| number.is_f64() && n.fract() == 0.0 && n.abs() < MAX_WHOLE);
            if let Some(whole) = whole {
                *value = (whole as i64).into();
            }
            Ok(())
        }
        (Type::Int32 | Type::IntOrString, Value::Number(n)) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {
            Ok(())
        }
        (Type::Int64, Value::Number(n)) if n.as_i64().is_some() => Ok(()),
        (Type::IntOrString, Value::String(_)) => Ok(()),
        (Type::Bytes, Value::String(text)) => check_base64(text),
        // The API's type reads whatever it is given as text.
        (Type::Quantity, given) => {
            let text = match given {
                Value::String(text) => Quantity::canonical(text.trim_matches(' ')),
                other => Quantity::canonical(&other.to_string()),
            };
            *value = text.map_err(|e| e.to_string())?.into();
            Ok(())
        }
        (Type::Time | Type::MicroTime, Value::String(text)) => {
            *value = time(kind, text)?.into();
            Ok(())
        }
        (_, other) => Err(mismatch(other)),
    }
}

/// The Go type of a field of a type.
fn field_type(of: &str, kind: &Type, at: &Place<'_>) -> String {
    let named = crate::go_types::find(of, at.field());
    match (kind, named) {
        (Type::String, Some(name)) => name.into(),
        (Type::List(item), Some(name)) if **item == Type::String => format!("[]{name}"),
        (Type::Map(item), _) if **item == Type::Quantity => "v1.ResourceList".into(),
        _ => go_type(kind),
    }
}

/// The canonical form of a time.
fn time(kind: &Type, text: &str) -> Result<String, String> {
    Ok(match kind {
        Type::MicroTime => go_time::parse(Layout::Micros, text)?.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        _ => go_time::parse(Layout::Seconds, text)?.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    })
}

fn check_base64(text: &str) -> Result<(), String> {
    match base64_text::decode(base64_text::Form::Standard, text.as_bytes()) {
        Ok(_) => Ok(()),
        Err(at) => Err(format!("illegal base64 data at input byte {at}")),
    }
}

/// What the decoder calls a JSON value.
fn name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The Go type that the decoder names.
pub(crate) fn go_type(kind: &Type) -> String {
    match kind {
        Type::Any => "interface {}".into(),
        Type::String | Type::Time | Type::MicroTime | Type::Quantity => "string".into(),
        Type::Int32 | Type::IntOrString => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::Float64 => "float64".into(),
        Type::Bool => "bool".into(),
        Type::Bytes => "[]uint8".into(),
        Type::List(item) => format!("[]{}", go_type(item)),
        Type::Map(item) => format!("map[string]{}", go_type(item)),
        Type::Object(path) => {
            let parts: Vec<&str> = path.rsplitn(3, '.').collect();
            format!("{}.{}", parts.get(1).unwrap_or(&"v1"), parts.first().unwrap_or(path))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;
    use serde_json::json;

    fn conformed(group: &str, plural: &str, mut object: Value) -> (Value, Result<Vec<String>, String>) {
        let told = conform(find(group, "v1", plural).unwrap(), &mut object);
        (object, told)
    }

    #[test]
    fn the_generation_of_a_template_is_a_number() {
        for (text, told) in [
            ("7", None),
            ("x", Some("strconv.ParseInt: parsing \"x\": invalid syntax")),
            ("99999999999999999999", Some("strconv.ParseInt: parsing \"99999999999999999999\": value out of range")),
        ] {
            let set = json!({"metadata": {"annotations": {"deprecated.daemonset.template.generation": text}}});
            assert_eq!(conformed("apps", "daemonsets", set).1.err().as_deref(), told);
        }
    }

    #[test]
    fn unknown_fields_are_told_and_removed() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "bogusTop": 1, "metadata": {"name": "p", "bogusMeta": {}},
            "spec": {"containers": [{"name": "c", "bogus1": true, "ports": [{"containerPort": 1, "bogusPort": 2}]}],
                     "nodeSelector": null, "volumes": [], "securityContext": {}}});
        let (pod, told) = conformed("", "pods", pod);
        let expected =
            ["bogusTop", "metadata.bogusMeta", "spec.containers[0].bogus1", "spec.containers[0].ports[0].bogusPort"];
        assert_eq!(told.unwrap(), expected);
        let left = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1}], "resources": {}}], "securityContext": {}},
            "status": {}});
        assert_eq!(pod, left);
    }

    #[test]
    fn what_was_said_empty_is_put_back() {
        let body =
            json!({"metadata": {"labels": {}}, "spec": {"rules": [], "tls": [{"hosts": []}], "defaultBackend": {}}});
        let (mut ingress, _) = conformed("networking.k8s.io", "ingresses", body.clone());
        assert_eq!(ingress["spec"], json!({"tls": [{}], "defaultBackend": {}}));
        let row = find("networking.k8s.io", "v1", "ingresses").unwrap();
        assert!(put_back_empty(row, &body, &mut ingress));
        assert_eq!(ingress["spec"], body["spec"]);
        assert_eq!(ingress["metadata"], json!({}));
        // What has come in between stays.
        let mut other = json!({"spec": {"rules": [{"host": "h"}], "tls": []}});
        assert!(!put_back_empty(row, &body, &mut other));
        assert_eq!(other["spec"]["rules"][0]["host"], "h");
    }

    #[test]
    fn amounts_of_resources_are_rounded_up_to_thousandths() {
        let amounts = json!({"cpu": "0.0001", "memory": "1e3", "x.io/a": "100n", "x.io/c": "-0.0001"});
        let rounded = json!({"cpu": "1m", "memory": "1e3", "x.io/a": "1m", "x.io/c": "-1m"});
        let (quota, _) = conformed("", "resourcequotas", json!({"spec": {"hard": amounts}}));
        let hard = quota["spec"]["hard"].as_object().unwrap();
        assert_eq!(Some(hard), rounded.as_object());
    }

    #[test]
    fn wrong_types_are_refused_in_the_decoders_words() {
        let cannot = "json: cannot unmarshal";
        for (group, plural, object, expected) in [
            (
                "apps",
                "deployments",
                json!({"spec": {"replicas": "x"}}),
                format!("{cannot} string into Go struct field DeploymentSpec.spec.replicas of type int32"),
            ),
            (
                "",
                "configmaps",
                json!({"data": {"a": []}}),
                format!("{cannot} array into Go struct field ConfigMap.data of type string"),
            ),
            (
                "",
                "configmaps",
                json!({"metadata": "x"}),
                format!("{cannot} string into Go struct field ConfigMap.metadata of type v1.ObjectMeta"),
            ),
            (
                "",
                "configmaps",
                json!({"metadata": {"labels": {"a": 1}}}),
                format!("{cannot} number into Go struct field ObjectMeta.metadata.labels of type string"),
            ),
            ("", "secrets", json!({"data": {"a": "!"}}), "illegal base64 data at input byte 0".into()),
            (
                "coordination.k8s.io",
                "leases",
                json!({"spec": {"renewTime": "yesterday"}}),
                "parsing time \"yesterday\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"yesterday\" as \"2006\""
                    .into(),
            ),
            (
                "",
                "services",
                json!({"spec": {"ports": [{"targetPort": 1.5}]}}),
                format!("{cannot} number 1.5 into Go struct field ServicePort.spec.ports.targetPort of type int32"),
            ),
            (
                "",
                "limitranges",
                json!({"spec": {"limits": [{"max": {"cpu": true}}]}}),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".into(),
            ),
        ] {
            assert_eq!(conformed(group, plural, object).1.unwrap_err(), expected);
        }
    }

    #[test]
    fn types_with_a_name_are_told_by_it() {
        let cannot = "json: cannot unmarshal";
        for (group, plural, object, expected) in [
            (
                "",
                "services",
                json!({"spec": {"type": 5}}),
                format!("{cannot} number into Go struct field ServiceSpec.spec.type of type v1.ServiceType"),
            ),
            (
                "",
                "persistentvolumeclaims",
                json!({"spec": {"accessModes": "x"}}),
                format!(
                    "{cannot} string into Go struct field PersistentVolumeClaimSpec.spec.accessModes of type \
                     []v1.PersistentVolumeAccessMode"
                ),
            ),
            (
                "",
                "resourcequotas",
                json!({"spec": {"hard": []}}),
                format!("{cannot} array into Go struct field ResourceQuotaSpec.spec.hard of type v1.ResourceList"),
            ),
            (
                "",
                "resourcequotas",
                json!({"spec": {"hard": {"cpu": true}}}),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".into(),
            ),
            (
                "",
                "services",
                json!({"spec": {"ports": [{"targetPort": 1.5}]}}),
                format!("{cannot} number 1.5 into Go struct field ServicePort.spec.ports.targetPort of type int32"),
            ),
            (
                "apiextensions.k8s.io",
                "customresourcedefinitions",
                json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {"additionalProperties": "x"}}}]}}),
                "boolean or JSON schema expected".into(),
            ),
        ] {
            assert_eq!(conformed(group, plural, object).1.unwrap_err(), expected);
        }
    }

    #[test]
    fn values_get_their_canonical_form() {
        let pod = json!({"metadata": {"creationTimestamp": "2026-01-02T03:04:05.6+01:00", "labels": {"a": null}},
            "spec": {"containers": [{"resources": {"limits": {"cpu": 1, "memory": "1024Mi"}}}]}});
        let (pod, told) = conformed("", "pods", pod);
        assert_eq!(told.unwrap(), Vec::<String>::new());
        assert_eq!(pod["metadata"], json!({"creationTimestamp": "2026-01-02T02:04:05Z", "labels": {"a": ""}}));
        assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"], json!({"cpu": "1", "memory": "1Gi"}));
    }

    #[test]
    fn objects_that_were_not_read_from_text_are_told_in_the_converters_words() {
        let def = crate::resources::find("apps", "v1", "deployments").unwrap();
        let container = |part: Value| json!({"spec": {"template": {"spec": {"containers": [part]}}}});
        let quantity = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
        for (object, told) in [
            (json!({"spec": {"replicas": "x"}}), "unrecognized type: int32"),
            (json!({"spec": {"replicas": 1.5}}), "cannot convert float64 to int32"),
            (json!({"spec": {"paused": 1}}), "unrecognized type: bool"),
            (json!({"spec": []}), "cannot restore struct from: slice"),
            (json!({"metadata": {"labels": "x"}}), "cannot restore map from string"),
            (json!({"metadata": {"finalizers": [1]}}), "cannot convert int64 to string"),
            (json!({"metadata": {"labels": {"a": true}}}), "unrecognized type: string"),
            (container(json!({"name": 1.5})), "unrecognized type: string"),
            (container(json!({"imagePullPolicy": 1})), "cannot convert int64 to v1.PullPolicy"),
            (container(json!({"resources": {"limits": {"cpu": "x"}}})), quantity),
            // The first in the order of the type's fields.
            (
                json!({"spec": {"paused": 1, "replicas": "x"}, "metadata": {"labels": 1}}),
                "cannot restore map from int64",
            ),
            (json!({"spec": {"paused": 1, "replicas": "x"}}), "unrecognized type: int32"),
        ] {
            let why = conform(def, &mut object.clone()).unwrap_err();
            assert_eq!(unstructured_error(def, &object, why), told, "{object}");
        }
        let surge = "json: cannot unmarshal bool into Go struct field X.spec.maxSurge of type int32";
        let told = "json: cannot unmarshal bool into Go value of type int32";
        assert_eq!(unstructured_error(def, &json!({}), surge.into()), told);
    }

    #[test]
    fn schemas_within_schemas_are_read_by_themselves() {
        let def = crate::resources::find("apiextensions.k8s.io", "v1", "customresourcedefinitions").unwrap();
        let crd = |schema: Value| json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": {"properties": {"a": schema}}}}]}});
        let place = "JSONSchemaProps.spec.versions.schema.openAPIV3Schema.properties";
        let unknown = "spec.versions[0].schema.openAPIV3Schema.properties.a.foo";
        for (schema, read, told) in [
            (
                json!({"items": {"type": "string", "foo": 1, "nullable": false, "items": {"title": ""}}, "foo": 1}),
                json!({"items": {"type": "string", "items": {}}}),
                vec![unknown],
            ),
            (
                json!({"additionalProperties": {"type": "string", "foo": 1}}),
                json!({"additionalProperties": {"type": "string"}}),
                vec![],
            ),
            (json!({"items": "x", "additionalProperties": false}), json!({"additionalProperties": false}), vec![]),
            (json!({"items": []}), json!({}), vec![]),
        ] {
            let mut object = crd(schema);
            assert_eq!(conform(def, &mut object).unwrap(), told);
            let schema = "/spec/versions/0/schema";
            assert_eq!(object.pointer(schema), crd(read).pointer(schema));
        }
        for (schema, why) in [
            (
                json!({"items": {"type": ["x"]}}),
                format!("json: cannot unmarshal array into Go struct field {place}.items of type string"),
            ),
            (
                json!({"additionalProperties": {"items": {"maxLength": "x"}}}),
                format!(
                    "json: cannot unmarshal string into Go struct field {place}.additionalProperties of type int64"
                ),
            ),
            (json!({"additionalProperties": 1}), "boolean or JSON schema expected".into()),
        ] {
            assert_eq!(conform(def, &mut crd(schema)).unwrap_err(), why);
        }
    }
}
