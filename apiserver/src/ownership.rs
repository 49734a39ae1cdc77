//! Field ownership of requests: who the writer is, what a request cannot change, and `metadata.managedFields` kept up.

use keelson_machinery::fields::{
    ApplyError, Conflict, FieldSet, Kind, Managed, Node, Writer, compare, field_set, renewed, validate, validate_stored,
};
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::{Cause, Details, Status};
use keelson_machinery::validation::MAX_ANNOTATION_BYTES;
use keelson_machinery::{conform, conversion, presence, schema};
use serde_json::{Map, Value, json};

use crate::request::ResourceRequest;
use crate::strategy;
use crate::verbs::Call;

/// Longest name of a manager, bytes.
const MAX_MANAGER_BYTES: usize = 128;
/// The manager that fields belong to that were there before anything was tracked.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The manager whose client-side configuration is taken over by server-side apply.
const KUBECTL: &str = "kubectl";
/// Where client-side apply keeps what it applied last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The writer's name: what the request says, else the first word of the client's name.
pub fn manager(call: &Call<'_>) -> String {
    if let Some(name) = call.request.query.get("fieldManager") {
        return name.to_owned();
    }
    let agent = call.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let first = agent.split('/').next().unwrap_or_default();
    let mut name = String::new();
    for c in first.chars().filter(|c| !c.is_control()) {
        if name.len() + c.len_utf8() > MAX_MANAGER_BYTES {
            break;
        }
        name.push(c);
    }
    if name.is_empty() { "unknown".to_owned() } else { name }
}

/// Fields that a request to a subresource ("" for the object itself) does not change.
fn ignored(def: &ResourceDef, subresource: &str) -> FieldSet {
    match (subresource, def.group, def.plural) {
        ("", ..) if def.has_status => FieldSet::of(&[&["status"]]),
        ("finalize", "", "namespaces") => FieldSet::of(&[&["status"]]),
        ("status", "apps", "deployments") => FieldSet::of(&[&["spec"], &["metadata", "labels"]]),
        ("status", "", "pods") => {
            FieldSet::of(&[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]])
        }
        ("status", "networking.k8s.io", "servicecidrs")
        | (
            "status",
            "storage.k8s.io"
            | "flowcontrol.apiserver.k8s.io"
            | "admissionregistration.k8s.io"
            | "apiregistration.k8s.io",
            _,
        ) => FieldSet::of(&[&["spec"], &["metadata"]]),
        ("status", ..) if def.custom => FieldSet::of(&[&["spec"], &["metadata"]]),
        ("status", ..) => FieldSet::of(&[&["spec"]]),
        _ => FieldSet::default(),
    }
}

/// The schema of a row's kind.
fn node(request: &ResourceRequest) -> Node<'_> {
    match &request.custom {
        Some(custom) => Node::Custom(custom.definition.schema_given(custom.index)),
        None => built_in(request.def),
    }
}

fn built_in(def: &ResourceDef) -> Node<'static> {
    schema::of_kind(def.group, def.version, def.kind).map_or(Node::Free, Node::Object)
}

/// An object of the row in another of its versions, with that version's schema.
fn convert<'a>(request: &'a ResourceRequest, version: &str, object: &Value) -> Option<(Node<'a>, Value)> {
    let def = request.def;
    if version == def.api_version() && object["apiVersion"] == version {
        return Some((node(request), object.clone()));
    }
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    // What is owned under another group's name cannot be followed.
    if group != def.group {
        return None;
    }
    if let Some(custom) = &request.custom {
        let index = custom.definition.versions.iter().position(|v| v.name == version)?;
        let mut object = object.clone();
        object["apiVersion"] = custom.definition.versions[index].def.api_version().into();
        return Some((Node::Custom(custom.definition.schema_given(index)), object));
    }
    let other = keelson_machinery::resources::find_kind(group, version, def.kind)?;
    Some((built_in(other), conversion::convert(object, other)?))
}

/// A copy without managers, which are often the most of it.
fn without_managers(object: &Value) -> Value {
    let Value::Object(whole) = object else { return object.clone() };
    let copy = |(key, value): (&String, &Value)| {
        let value = match value {
            Value::Object(metadata) if key == "metadata" => {
                let kept = metadata.iter().filter(|(key, _)| *key != "managedFields");
                Value::Object(kept.map(|(key, value)| (key.clone(), value.clone())).collect())
            }
            value => value.clone(),
        };
        (key.clone(), value)
    };
    Value::Object(whole.iter().map(copy).collect())
}

fn set_managers(object: &mut Value, managed: &Managed) {
    let Some(metadata) = object["metadata"].as_object_mut() else { return };
    match managed.encode() {
        Some(list) => metadata.insert("managedFields".into(), list),
        None => metadata.remove("managedFields"),
    };
}

/// The managers that an update starts from: those it sends, if it may and they can be read, else the stored ones.
fn starting(live: &Value, new: &Value, subresource: &str) -> Managed {
    let stored = || Managed::decode(live["metadata"].get("managedFields")).unwrap_or_default();
    if !subresource.is_empty() {
        return stored();
    }
    let sent = new["metadata"].get("managedFields");
    // One empty entry is how a client says that it wants none.
    if sent.and_then(Value::as_array).is_some_and(|list| list.len() == 1 && is_empty_entry(&list[0])) {
        return Managed::default();
    }
    match Managed::decode(sent) {
        Ok(managed) if !managed.is_empty() => managed,
        _ => stored(),
    }
}

fn is_empty_entry(entry: &Value) -> bool {
    entry.as_object().is_none_or(|e| e.values().all(|v| v.is_null() || v == ""))
}

/// Notes in the object who wrote which fields; `live` is the stored object or `None` for a new one.
pub fn track(call: &Call<'_>, live: Option<&Value>, new: &mut Value) {
    track_as(call.request, &call.request.subresource, &manager(call), live, new);
}

/// The name under which the server itself writes.
pub const SERVER: &str = "kube-apiserver";

/// As [`track`], for a writer that is not the one who asks.
pub fn track_as(request: &ResourceRequest, subresource: &str, name: &str, live: Option<&Value>, new: &mut Value) {
    let def = request.def;
    let empty = || schema::of_kind(def.group, def.version, def.kind).map_or_else(|| json!({}), presence::empty);
    let stored = live.map_or(&Value::Null, |live| &live["metadata"]["managedFields"]);
    let sent = new["metadata"].get("managedFields");
    // Mostly nothing is said of managers, or what is stored.
    let given =
        sent.is_some_and(|sent| sent != stored).then(|| starting(live.unwrap_or(&Value::Null), new, subresource));
    if let Some(metadata) = new["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    // Requests for certificates never are tracked: upstream's schema has their text for a list, which no text fits.
    if crate::certificates::is_request(def) {
        return;
    }
    let before = live.map_or_else(empty, without_managers);
    let (version, now) = (def.api_version(), strategy::now());
    let writer = Writer { manager: name, api_version: &version, subresource, now: &now };
    let ignored = ignored(def, subresource);
    let convert = |version: &str, object: &Value| convert(request, version, object);
    let kind = Kind { node: node(request), convert: &convert, ignored: &ignored };
    // What does not fit its schema is not tracked: the stored object of a custom resource whose schema changed, or a new one
    // that is about to be refused. Those of built-in kinds fit.
    let fits = |object: &Value| validate_stored(kind.node, object).is_ok();
    if def.custom && !(fits(&before) && fits(new)) {
        let managed = given.unwrap_or_else(|| Managed::decode(Some(stored)).unwrap_or_default());
        return set_managers(new, &managed);
    }
    let changes = kind.changes(&before, new);
    if given.is_none()
        && let Some(list) = renewed(&kind, stored, &writer, &changes)
    {
        new["metadata"]["managedFields"] = list;
        return;
    }
    let mut managed = given.unwrap_or_else(|| Managed::decode(Some(stored)).unwrap_or_default());
    // An object whose managers were wiped stays untracked until it is applied.
    if live.is_some() && managed.is_empty() {
        return;
    }
    managed.update_by(&kind, &writer, &before, new, changes);
    set_managers(new, &managed);
}

/// Notes in an object that is only answered who sent which of its fields.
pub fn track_virtual(call: &Call<'_>, object: &mut Value, group: &str) {
    let kind = object["kind"].as_str().unwrap_or_default();
    let Some(definition) = schema::of_kind(group, "v1", kind) else { return };
    let version = format!("{group}/v1");
    let (name, now) = (manager(call), strategy::now());
    let writer = Writer { manager: &name, api_version: &version, subresource: &call.request.subresource, now: &now };
    let ignored = FieldSet::of(&[&["status"]]);
    let node = Node::Object(definition);
    let convert = |_: &str, object: &Value| Some((node, object.clone()));
    let mut managed = Managed::default();
    let kind = Kind { node, convert: &convert, ignored: &ignored };
    managed.update(&kind, &writer, &presence::empty(definition), object);
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    set_managers(object, &managed);
}

/// Lays an applied configuration over the stored object (`None`: there is none yet).
pub fn apply(call: &Call<'_>, live: Option<&Value>, config: &Value, force: bool) -> Result<Value, Status> {
    apply_as(call.request, &call.request.subresource, &manager(call), live, config, force)
}

/// As [`apply`], for a writer that is not the one who asks.
pub fn apply_as(
    request: &ResourceRequest,
    subresource: &str,
    name: &str,
    live: Option<&Value>,
    config: &Value,
    force: bool,
) -> Result<Value, Status> {
    let def = request.def;
    let node = node(request);
    if config["metadata"].get("managedFields").is_some_and(Value::is_array) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    validate(node, config).map_err(|why| untypable(def, config, &why))?;
    let empty = schema::of_kind(def.group, def.version, def.kind).map_or_else(|| json!({}), presence::empty);
    let mut managed = Managed::decode(live.and_then(|l| l["metadata"].get("managedFields")))
        .map_err(|why| Status::unknown(format!("failed to decode managed fields: {why}")))?;
    let before = live.map_or_else(|| empty.clone(), without_managers);
    let (version, now) = (def.api_version(), strategy::now());
    let writer = Writer { manager: name, api_version: &version, subresource, now: &now };
    let ignored = ignored(def, subresource);
    let convert = |version: &str, object: &Value| convert(request, version, object);
    let kind = Kind { node, convert: &convert, ignored: &ignored };
    if def.custom && live.is_some() {
        validate_stored(node, &before).map_err(|why| untypable_live(def, &before, &why))?;
    }
    if managed.is_empty() && live.is_some() {
        let untracked = Writer { manager: BEFORE_FIRST_APPLY, ..writer.clone() };
        managed.update(&kind, &untracked, &empty, &before);
    }
    let mut attempt = managed.clone();
    let mut result = attempt.apply(&kind, &writer, &before, config, force);
    if let Err(ApplyError::Conflicts(conflicts)) = &result
        && name == KUBECTL
    {
        let left = beyond_last_applied(node, &version, &before, conflicts);
        if left.is_empty() {
            attempt = managed;
            result = attempt.apply(&kind, &writer, &before, config, true);
        } else {
            return Err(conflict(&left));
        }
    }
    let mut new = match result {
        Ok(new) => new.unwrap_or(before),
        Err(ApplyError::Conflicts(conflicts)) => return Err(conflict(&conflicts)),
        Err(ApplyError::Merge(why)) => {
            return Err(untypable_live(def, config, &why));
        }
    };
    set_managers(&mut new, &attempt);
    if name == KUBECTL {
        keep_last_applied(&mut new, config);
    }
    Ok(new)
}

/// Tells client-side apply what was applied, if it was used for the object before and the annotations have the room.
fn keep_last_applied(new: &mut Value, config: &Value) {
    let Some(annotations) = new["metadata"].get_mut("annotations").and_then(Value::as_object_mut) else { return };
    if annotations.get(LAST_APPLIED).and_then(Value::as_str).is_none_or(str::is_empty) {
        return;
    }
    let mut config = config.clone();
    if let Some(said) = config["metadata"].get_mut("annotations").and_then(Value::as_object_mut) {
        said.remove(LAST_APPLIED);
        if said.is_empty() {
            config["metadata"].as_object_mut().map(|metadata| metadata.remove("annotations"));
        }
    }
    annotations.insert(LAST_APPLIED.into(), format!("{config}\n").into());
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if bytes > MAX_ANNOTATION_BYTES {
        annotations.remove(LAST_APPLIED);
    }
}

/// Conflicts about fields that were not applied on the client's side before: those may be taken over.
/// Only what is in the object as it was applied counts, and only if it was applied in the same version.
fn beyond_last_applied(node: Node<'_>, version: &str, live: &Value, conflicts: &[Conflict]) -> Vec<Conflict> {
    let text = live["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap_or_default();
    let Ok(last) = serde_json::from_str::<Value>(text) else { return conflicts.to_vec() };
    if last["apiVersion"] != version || validate(node, &last).is_err() || validate(node, live).is_err() {
        return conflicts.to_vec();
    }
    let changed = compare(node, &last, live);
    let owned = field_set(node, &last).difference(&changed.modified).difference(&changed.removed).paths();
    conflicts.iter().filter(|c| !owned.contains(&c.path)).cloned().collect()
}

fn shown(def: &ResourceDef, object: &Value) -> String {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    let group = if def.group.is_empty() { "/".to_owned() } else { format!("{}/", def.group) };
    format!("{}/{}; {group}{}, Kind={}", text("namespace"), text("name"), def.version, def.kind)
}

fn untypable_live(def: &ResourceDef, live: &Value, why: &str) -> Status {
    Status::unknown(format!("failed to create typed live object ({}): {why}", shown(def, live)))
}

fn untypable(def: &ResourceDef, config: &Value, why: &str) -> Status {
    Status::unknown(format!("failed to create typed patch object ({}): {why}", shown(def, config)))
}

/// The refusal of an applied object that is not of the form of its kind; it names the configuration.
pub fn unconvertible(def: &ResourceDef, config: &Value, object: &Value, why: String) -> Status {
    let (kind, why) =
        (format!("{}, Kind={}", def.api_version(), def.kind), conform::unstructured_error(def, object, why));
    Status::unknown(format!(
        "failed to convert new object ({}) to proper version: unable to convert unstructured object to {}{kind}: {why}",
        shown(def, config),
        if def.group.is_empty() { "/" } else { "" },
    ))
}

/// 409 for an apply, with a cause for each field.
fn conflict(conflicts: &[Conflict]) -> Status {
    let causes = conflicts.iter().map(|c| Cause {
        reason: "FieldManagerConflict".into(),
        message: format!("conflict with {}", c.manager),
        field: c.path.clone(),
    });
    let message = match conflicts {
        [one] => format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.path),
        many => {
            let mut lines = Vec::new();
            let mut managers: Vec<&str> = many.iter().map(|c| c.manager.as_str()).collect();
            managers.dedup();
            for name in managers {
                lines.push(format!("conflicts with {name}:"));
                lines.extend(many.iter().filter(|c| c.manager == name).map(|c| format!("- {}", c.path)));
            }
            format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
        }
    };
    Status {
        status: "Failure".into(),
        message,
        reason: "Conflict".into(),
        details: Some(Box::new(Details { causes: causes.collect(), ..Details::default() })),
        code: 409,
        ..Status::default()
    }
}

/// Gives a write that changes nothing but the times of managers the stored times, so that it is no write.
pub fn keep_times(old: &Value, new: &mut Value) {
    if same_but_times(old, new) {
        let stored = old["metadata"]["managedFields"].clone();
        new["metadata"]["managedFields"] = stored;
    }
}

/// Whether two objects have managers and are equal but for these managers' times.
fn same_but_times(old: &Value, new: &Value) -> bool {
    let managers = |object: &Value| object["metadata"]["managedFields"].as_array().map_or(0, Vec::len);
    let (Some(before), Some(now)) = (old.as_object(), new.as_object()) else { return false };
    managers(old) > 0
        && managers(old) == managers(new)
        && equal_but(before, now, "metadata", |before, now| {
            let (Some(before), Some(now)) = (before.as_object(), now.as_object()) else { return false };
            equal_but(before, now, "managedFields", |before, now| {
                let (Some(before), Some(now)) = (before.as_array(), now.as_array()) else { return false };
                before.iter().zip(now).all(|pair| match pair {
                    (Value::Object(before), Value::Object(now)) => equal_but(before, now, "time", |_, _| true),
                    (before, now) => before == now,
                })
            })
        })
}

/// Whether two maps have the same keys with equal values, of which one is judged on its own.
fn equal_but(
    old: &Map<String, Value>,
    new: &Map<String, Value>,
    special: &str,
    judge: impl Fn(&Value, &Value) -> bool,
) -> bool {
    old.len() == new.len()
        && old.iter().all(|(key, before)| match new.get(key) {
            Some(now) if key == special => judge(before, now),
            Some(now) => before == now,
            None => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_applied_configuration_is_kept_while_there_is_room() {
        let object = |last: &str| json!({"metadata": {"annotations": {LAST_APPLIED: last, "a": "b"}}});
        let config = json!({"metadata": {"annotations": {LAST_APPLIED: "other"}}, "data": {"x": "y"}});
        let large = json!({"data": {"x": "y".repeat(MAX_ANNOTATION_BYTES)}});
        let told = "{\"data\":{\"x\":\"y\"},\"metadata\":{}}\n";
        for (before, config, expected) in
            [("{}", &config, json!(told)), ("", &config, json!("")), ("{}", &large, Value::Null)]
        {
            let mut new = object(before);
            keep_last_applied(&mut new, config);
            assert_eq!(new["metadata"]["annotations"].get(LAST_APPLIED).unwrap_or(&Value::Null), &expected);
            assert_eq!(new["metadata"]["annotations"]["a"], "b");
        }
    }

    #[test]
    fn times_are_kept_only_where_nothing_else_changes() {
        let object = |data: &str, fields: &str, time: Option<&str>| {
            let mut entry = json!({"manager": "m", "operation": "Update", "fieldsV1": {fields: {}}});
            if let Some(time) = time {
                entry["time"] = time.into();
            }
            json!({"metadata": {"name": "o", "managedFields": [entry]}, "data": data})
        };
        let old = object("a", "f:data", Some("1"));
        for (case, new, kept) in [
            ("the same", object("a", "f:data", Some("2")), true),
            ("another value of the same field, as each renewal of a lease", object("b", "f:data", Some("2")), false),
            ("another field is owned", object("a", "f:other", Some("2")), false),
            ("a time that is no more", object("a", "f:data", None), false),
            ("nobody owns anything", json!({"metadata": {"name": "o"}, "data": "a"}), false),
            (
                "more in the metadata",
                {
                    let mut new = object("a", "f:data", Some("2"));
                    new["metadata"]["labels"] = json!({});
                    new
                },
                false,
            ),
        ] {
            let mut after = new.clone();
            keep_times(&old, &mut after);
            let expected = if kept { &old } else { &new };
            assert_eq!(after, *expected, "{case}");
        }
    }
}
