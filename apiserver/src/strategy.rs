//! What happens to every object between decoding and the store: identity, metadata rules, generation, status.

use keelson_machinery::base64_text::{self, Form};
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::status::{Cause, Status};
use keelson_machinery::{conform, conversion, defaults, prepare, presence, qos, resources, rules, schema, validation};
use rand::RngExt;
use serde_json::{Value, json};

use crate::access::UserInfo;
use crate::request::ResourceRequest;
use crate::verbs::{Call, patch};
use crate::{admission, aggregation, body, certificates, crd, former, services};

/// Longest prefix that `generateName` contributes.
const GENERATE_NAME_MAX: usize = 58;
/// Characters of generated suffixes: no vowels, nothing that looks alike (apimachinery's `SafeEncodeString` alphabet).
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;

/// Current time as the API writes it.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Refuses a body that is of another kind, name or namespace than the request's path, and fills in what the path says.
pub fn fit(request: &ResourceRequest, object: &mut Value) -> Result<(), Status> {
    let def = request.def;
    if def.custom {
        crd::strategy::fit(request, object)?;
    }
    let (kind, version) =
        (object["kind"].as_str().unwrap_or_default(), object["apiVersion"].as_str().unwrap_or_default());
    if kind.is_empty() && version.is_empty() {
        object["kind"] = def.kind.into();
        object["apiVersion"] = def.api_version().into();
    } else if kind != def.kind || version != def.api_version() {
        return Err(other_kind(def, version, kind));
    }
    if object["metadata"].is_null() {
        object["metadata"] = json!({});
    } else if !object["metadata"].is_object() {
        conform(request, object)?;
    }
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    match def.scope {
        Scope::Namespaced if request.namespace.is_empty() => {
            return Err(Status::bad_request("an empty namespace may not be set during creation"));
        }
        Scope::Namespaced if namespace.is_empty() => object["metadata"]["namespace"] = request.namespace.clone().into(),
        Scope::Namespaced if namespace != request.namespace => {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        Scope::Cluster if !namespace.is_empty() => without_namespace(def, object),
        _ => {}
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if !request.name.is_empty() && !name.is_empty() && name != request.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            request.name
        )));
    }
    Ok(())
}

/// Takes the namespace out of what an object of the cluster brings: it has none, and nobody is told.
pub fn without_namespace(def: &ResourceDef, object: &mut Value) {
    if let (Scope::Cluster, Some(metadata)) = (def.scope, object["metadata"].as_object_mut()) {
        metadata.remove("namespace");
    }
}

/// The refusal of a body of another kind than belongs there.
pub fn other_kind(def: &ResourceDef, version: &str, kind: &str) -> Status {
    let (group, v) = version.split_once('/').unwrap_or(("", version));
    let why = match registered(def.group, group, v, kind) {
        Some(_) if former::is_of(def, group, kind) => {
            return Status::bad_request(format!(
                "the API version in the data ({version}) does not match the expected API version ({})",
                def.api_version()
            ));
        }
        Some(other) => unknown_conversion(&other, def),
        None => not_registered(def.group, version, kind),
    };
    Status::bad_request(format!("{kind} in version {v:?} cannot be handled as a {}: {why}", def.kind))
}

/// The refusal of a body of a subresource that has a kind of its own, given with its package in Go, where this one's is another.
pub fn other_than((package, own): (&str, &str), served: &str, version: &str, kind: &str) -> Status {
    let (group, v) = version.split_once('/').unwrap_or(("", version));
    let why = match registered(served, group, v, kind) {
        Some(other) => format!("converting ({other}) to ({package}.{own}): unknown conversion"),
        None => not_registered(served, version, kind),
    };
    Status::bad_request(format!("{kind} in version {v:?} cannot be handled as a {own}: {why}"))
}

/// What knows the kinds of a group: definitions and APIServices are served upstream by servers of their own, which know no
/// other kinds. The name is the place in upstream's source from its last `pkg` on; the first two were never seen in an answer.
fn scheme(group: &str) -> &'static str {
    match group {
        "apiextensions.k8s.io" => "pkg/apiserver/apiserver.go:54",
        "apiregistration.k8s.io" => "pkg/apiserver/scheme/scheme.go:32",
        _ => "pkg/api/legacyscheme/scheme.go:30",
    }
}

/// What Go calls the type of a kind, if it is known where the objects of a group are served: that of a resource, its lists, or one
/// that every version of the API has.
pub fn registered(served: &str, group: &str, version: &str, kind: &str) -> Option<String> {
    const EVERYWHERE: [&str; 7] =
        ["CreateOptions", "DeleteOptions", "GetOptions", "ListOptions", "PatchOptions", "UpdateOptions", "WatchEvent"];
    const UNVERSIONED: [&str; 5] = ["APIGroup", "APIGroupList", "APIResourceList", "APIVersions", "Status"];
    let here = scheme(group) == scheme(served);
    let known = |kind: &str| {
        here && (resources::find_kind(group, version, kind).is_some() || former::is_known(group, version, kind))
    };
    let list = |item: &str| here && item.is_empty() && group.is_empty() || known(item);
    let own = known(kind) || kind.strip_suffix("List").is_some_and(list);
    let first = (group, version) == ("", "v1");
    let core = first && UNVERSIONED.contains(&kind);
    let versions = || resources::RESOURCES.iter().any(|r| (r.group, r.version) == (group, version));
    let common = EVERYWHERE.contains(&kind) && (first || here && versions());
    match own {
        true => Some(format!("{version}.{kind}")),
        false => (core || common).then(|| format!("v1.{kind}")),
    }
}

/// What is said of a kind that nobody knows where the objects of a group are served.
pub fn not_registered(served: &str, version: &str, kind: &str) -> String {
    let scheme = scheme(served);
    format!("no kind {kind:?} is registered for version {version:?} in scheme {scheme:?}")
}

/// What is said of a kind where another belongs.
pub fn unknown_conversion(from: &str, to: &ResourceDef) -> String {
    let group = match to.group.split('.').next() {
        // Events of both APIs are one type.
        None | Some("" | "events") => "core",
        Some(group) => group,
    };
    format!("converting ({from}) to ({group}.{}): unknown conversion", to.kind)
}

/// Brings an object that was read from a request's body into the form of its kind; gives the unknown fields, which are removed.
pub fn conform_body(call: &Call<'_>, object: &mut Value) -> Result<Vec<String>, Status> {
    let told = conform_text(call.request, object);
    told.map_err(|why| cannot_be_handled(call.request.def, &body::with_literal(call.headers, call.body, why)))
}

/// Brings an object into the form of its kind; gives the unknown fields, which are removed.
pub fn conform(request: &ResourceRequest, object: &mut Value) -> Result<Vec<String>, Status> {
    conform_text(request, object).map_err(|why| cannot_be_handled(request.def, &why))
}

/// The same, with what is wrong as text.
pub fn conform_text(request: &ResourceRequest, object: &mut Value) -> Result<Vec<String>, String> {
    match &request.custom {
        Some(custom) => crd::strategy::conform(custom, object),
        None => conform::conform(request.def, object),
    }
}

/// The refusal of a body that is not of the form of its kind.
pub fn cannot_be_handled(def: &ResourceDef, why: &str) -> Status {
    let kind = def.kind;
    Status::bad_request(format!("{kind} in version {:?} cannot be handled as a {kind}: {why}", def.version))
}

/// Takes out of a new object's metadata what only the server writes.
pub fn wipe_system_metadata(object: &mut Value) {
    let Some(metadata) = object["metadata"].as_object_mut() else { return };
    for key in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        metadata.remove(key);
    }
}

/// Leaves of owners that are named several times alike the first, and tells of the others.
pub fn dedup_owners(object: &mut Value, after_admission: bool, warnings: &mut Vec<String>) {
    let Some(list) = object["metadata"].get_mut("ownerReferences").and_then(Value::as_array_mut) else { return };
    let (mut kept, mut uids): (Vec<Value>, Vec<String>) = (Vec::with_capacity(list.len()), Vec::new());
    for owner in list.drain(..) {
        if kept.contains(&owner) {
            uids.push(owner["uid"].as_str().unwrap_or_default().to_owned());
        } else {
            kept.push(owner);
        }
    }
    *list = kept;
    if uids.is_empty() {
        return;
    }
    let when = if after_admission { " after mutating admission happens" } else { "" };
    let told = format!(
        ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may reject \
         such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
        uids.join(", ")
    );
    // Another attempt says it again.
    if !warnings.contains(&told) {
        warnings.push(told);
    }
}

/// Gives a new object its identity and defaults.
pub fn prepare_create(request: &ResourceRequest, object: &mut Value, warnings: &mut Vec<String>) -> Result<(), Status> {
    let def = request.def;
    let metadata =
        object["metadata"].as_object_mut().ok_or_else(|| Status::bad_request("metadata must be an object"))?;
    if metadata.get("resourceVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty()) {
        return Err(Status::unknown("resourceVersion should not be set on objects to be created"));
    }
    let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        let prefix = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default();
        let generated = if !prefix.is_empty() {
            generate_name(prefix)
        } else if (def.group, def.plural) == ("", "limitranges") {
            uuid::Uuid::new_v4().to_string()
        } else {
            let cause = Cause::required("metadata.name", "name or generateName is required");
            return Err(Status::invalid(def.group, def.kind, "", vec![cause]));
        };
        metadata.insert("name".into(), generated.into());
    }
    for server_side in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
        metadata.remove(server_side);
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), now().into());
    let first = if def.custom { Some(1) } else { rules::first_generation(&rules::of(def)) };
    // Kinds that count no generations keep what the client says.
    if let Some(generation) = first {
        metadata.insert("generation".into(), generation.into());
    }
    if def.custom {
        if def.has_status {
            object.as_object_mut().map(|map| map.remove("status"));
        }
        return Ok(());
    }
    // A generated name may be what other fields are filled in with.
    defaults::set(def, object);
    prepare::create(def, object, &now());
    if (def.group, def.plural) == ("", "pods") {
        warnings.extend(prepare::app_armor(object));
    }
    services::prepare(def, object, None);
    settle(def, object);
    aggregation::local::prepare(def, object);
    if crd::is_definition(def) {
        crd::definition::prepare(object, None);
    }
    Ok(())
}

/// Brings what a new object's status says of its spec up to date: admission may have changed that.
pub fn settle_status(def: &ResourceDef, object: &mut Value) {
    if (def.group, def.plural) == ("", "pods") && object["status"].is_object() {
        object["status"]["qosClass"] = qos::class(object).into();
    }
}

/// Fills in what the client may leave out, before anything looks at the object.
/// Custom resources have it from their schemas.
pub fn complete(def: &ResourceDef, object: &mut Value, old: Option<&Value>) {
    if def.custom {
        return;
    }
    defaults::set(def, object);
    if def.group == "autoscaling" {
        // By way of the version that is stored, so that annotations say what they will say.
        *object = conversion::from_stored(def, conversion::to_stored(def, object).into_owned());
    }
    if crd::is_definition(def) {
        crd::definition::prepare(object, old);
    }
}

/// Writes into a certificate request who made it.
pub fn record_requester(def: &ResourceDef, object: &mut Value, user: &UserInfo) {
    if certificates::is_request(def) {
        certificates::record_requester(object, user);
    }
}

/// A name from `generateName`.
pub fn generate_name(prefix: &str) -> String {
    let mut end = prefix.len().min(GENERATE_NAME_MAX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let mut rng = rand::rng();
    let suffix: String =
        (0..SUFFIX_LENGTH).map(|_| char::from(SUFFIX_ALPHABET[rng.random_range(0..SUFFIX_ALPHABET.len())])).collect();
    format!("{}{suffix}", &prefix[..end])
}

/// Merges an update with what is stored: identity stays, status belongs to the status subresource (and vice versa), a
/// changed spec counts a generation.
pub fn prepare_update(request: &ResourceRequest, old: &Value, new: &mut Value, counts_anyway: bool) {
    let (def, subresource) = (request.def, request.subresource.as_str());
    let generation = old["metadata"].get("generation").cloned();
    set(&mut new["metadata"], "generation", generation);
    if def.custom {
        crd::strategy::prepare_update(def, subresource, old, new);
    } else {
        prepare::update(def, subresource, old, new, &now());
        if subresource.is_empty() {
            services::prepare(def, new, Some(old));
        }
        if certificates::is_request(def) {
            certificates::prepare_update(subresource, old, new);
        }
        settle(def, new);
    }
    keep_identity(old, new);
    if crd::is_definition(def) {
        crd::definition::prepare(new, Some(old));
    }
    let changed = match def.custom {
        true => crd::strategy::counts_generation(def.has_status, old, new),
        false => subresource != "status" && rules::counts(&rules::of(def), old, new),
    };
    if changed || counts_anyway {
        new["metadata"]["generation"] = (old["metadata"]["generation"].as_i64().unwrap_or(0) + 1).into();
    }
}

/// What an update leaves out or may not say stays; what it says otherwise is left to validation.
fn keep_identity(old: &Value, new: &mut Value) {
    let old = &old["metadata"];
    for key in ["uid", "name", "namespace"] {
        if new["metadata"][key].as_str().unwrap_or_default().is_empty() {
            set(&mut new["metadata"], key, old.get(key).cloned());
        }
    }
    set(&mut new["metadata"], "creationTimestamp", old.get("creationTimestamp").cloned());
    // Validation refuses it for an object that nobody has deleted.
    if old["deletionTimestamp"].is_string() {
        set(&mut new["metadata"], "deletionTimestamp", old.get("deletionTimestamp").cloned());
    }
    if new["metadata"]["deletionGracePeriodSeconds"].is_null() {
        set(&mut new["metadata"], "deletionGracePeriodSeconds", old.get("deletionGracePeriodSeconds").cloned());
    }
    new["metadata"].as_object_mut().map(|m| m.remove("selfLink"));
}

fn settle(def: &ResourceDef, object: &mut Value) {
    if let (Some(definition), Some(map)) = (schema::of_kind(def.group, def.version, def.kind), object.as_object_mut()) {
        presence::settle(definition, map);
    }
}

fn set(object: &mut Value, key: &str, value: Option<Value>) {
    let Some(map) = object.as_object_mut() else { return };
    match value {
        Some(value) => map.insert(key.to_owned(), value),
        None => map.remove(key),
    };
}

/// Checks a new or changed object; all problems are told at once, after those that were found already.
pub fn check(
    call: &Call<'_>,
    new: &Value,
    old: Option<&Value>,
    found: Vec<Cause>,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let (request, def, already) = (call.request, call.request.def, found.len());
    let mut causes = found;
    causes.extend(problems(request, new, old, warnings));
    if causes.is_empty() {
        warnings.extend(odd_values(request, new, old));
        return Ok(());
    }
    if let Some(shown) = with_said_empty(call, new, old, &causes[already..]) {
        causes.splice(already.., shown);
    }
    Err(Status::invalid(
        rules::error_group(def),
        def.kind,
        new["metadata"]["name"].as_str().unwrap_or_default(),
        causes,
    ))
}

/// The same problems as messages of an object that has the empty lists and maps which its body says: they are shown. None
/// if there are none, or if they would make other problems.
fn with_said_empty(call: &Call<'_>, new: &Value, old: Option<&Value>, causes: &[Cause]) -> Option<Vec<Cause>> {
    let (request, def) = (call.request, call.request.def);
    if def.custom || !request.subresource.is_empty() {
        return None;
    }
    let said = match request.verb {
        "create" | "update" => call.object().ok()?.value,
        "patch" => patch::said(call, old)?,
        _ => return None,
    };
    let mut object = new.clone();
    if !conform::put_back_empty(def, &said, &mut object) {
        return None;
    }
    let shown = problems(request, &object, old, &mut Vec::new());
    let same = |one: &Cause, other: &Cause| (&one.reason, &one.field) == (&other.reason, &other.field);
    (shown.len() == causes.len() && shown.iter().zip(causes).all(|(one, other)| same(one, other))).then_some(shown)
}

fn problems(request: &ResourceRequest, new: &Value, old: Option<&Value>, warnings: &mut Vec<String>) -> Vec<Cause> {
    let def = request.def;
    let mut causes = validation::validate(def, &request.subresource, new, old);
    if let Some(custom) = &request.custom {
        causes.extend(crd::strategy::check(custom, &request.subresource, new, old));
    } else if certificates::is_request(def) {
        causes.extend(certificates::problems(&request.subresource, new, old));
    } else if def.group == "admissionregistration.k8s.io" {
        causes.extend(admission::registration::problems(def.kind, new, old));
    } else if crd::is_definition(def) && request.subresource == "status" && old.is_some() {
        causes.extend(crd::definition::validate_status(new));
    } else if crd::is_definition(def) {
        let (problems, odd) = crd::definition::validate(new, old);
        causes.extend(problems);
        warnings.extend(odd);
    }
    causes
}

/// What an object's author is told of values that are taken.
fn odd_values(request: &ResourceRequest, new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut told = keelson_machinery::warnings::of(request.def, &request.subresource, new, old);
    if (request.def.group, request.def.plural) == ("", "secrets") && told.is_empty() {
        told.extend(key_problem(new).map(str::to_owned));
    }
    told
}

/// Why the key of a secret for TLS is not that of its certificate.
fn key_problem(secret: &Value) -> Option<&'static str> {
    if secret["type"] != "kubernetes.io/tls" {
        return None;
    }
    let text = |key: &str| {
        let bytes = base64_text::decode(Form::Standard, secret["data"][key].as_str()?.as_bytes()).ok()?;
        String::from_utf8(bytes).ok()
    };
    keelson_pki::key_problem(&text("tls.crt")?, &text("tls.key")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_no_resource_are_known_too() {
        let def = resources::find("", "v1", "configmaps").unwrap();
        let registered = |from: &str| format!("converting ({from}) to (core.ConfigMap): unknown conversion");
        let in_scheme = |version: &str, kind: &str| not_registered(def.group, version, kind);
        for (version, kind, expected) in [
            ("v1", "ConfigMapList", registered("v1.ConfigMapList")),
            ("v1", "List", registered("v1.List")),
            ("v1", "Status", registered("v1.Status")),
            ("autoscaling/v2", "DeleteOptions", registered("v1.DeleteOptions")),
            ("autoscaling/v2", "Status", in_scheme("autoscaling/v2", "Status")),
            ("apps/v1", "List", in_scheme("apps/v1", "List")),
            ("v9", "DeleteOptions", in_scheme("v9", "DeleteOptions")),
        ] {
            let message = other_kind(def, version, kind).message;
            assert!(message.ends_with(&expected), "{message}");
        }
        let definitions = resources::find("apiextensions.k8s.io", "v1", "customresourcedefinitions").unwrap();
        let services = resources::find("apiregistration.k8s.io", "v1", "apiservices").unwrap();
        for (def, version, kind, expected) in [
            (definitions, "v1", "ConfigMap", "scheme \"pkg/apiserver/apiserver.go:54\""),
            (definitions, "apiextensions.k8s.io/v0", "CustomResourceDefinition", "apiserver/apiserver.go:54\""),
            (
                definitions,
                "apiextensions.k8s.io/v1beta1",
                "CustomResourceDefinition",
                "(apiextensions.k8s.io/v1beta1) does not match the expected API version (apiextensions.k8s.io/v1)",
            ),
            (
                definitions,
                "v1",
                "Status",
                "(v1.Status) to (apiextensions.CustomResourceDefinition): unknown conversion",
            ),
            (services, "apiregistration.k8s.io/v2", "APIService", "scheme/scheme.go:32\""),
            (
                services,
                "apiregistration.k8s.io/v1",
                "APIServiceList",
                "(apiregistration.APIService): unknown conversion",
            ),
            (def, "apiregistration.k8s.io/v1", "APIService", "legacyscheme/scheme.go:30\""),
        ] {
            let message = other_kind(def, version, kind).message;
            assert!(message.ends_with(expected), "{message}");
        }
    }

    #[test]
    fn a_kind_of_another_version_is_refused_for_that_only() {
        for (row, version, kind, expected) in [
            (("apps", "v1", "deployments"), "apps/v1beta2", "Deployment", "match the expected API version (apps/v1)"),
            (("apps", "v1", "deployments"), "extensions/v1beta1", "Deployment", "the expected API version (apps/v1)"),
            (("apps", "v1", "deployments"), "apps/v1beta2", "DaemonSet", "(v1beta2.DaemonSet) to (apps.Deployment): "),
            (
                ("autoscaling", "v2", "horizontalpodautoscalers"),
                "autoscaling/v1",
                "HorizontalPodAutoscaler",
                "version (autoscaling/v2)",
            ),
            (
                ("autoscaling", "v2", "horizontalpodautoscalers"),
                "autoscaling/v2beta2",
                "HorizontalPodAutoscaler",
                "no kind \"H",
            ),
            (("", "v1", "events"), "events.k8s.io/v1", "Event", "data (events.k8s.io/v1) does not"),
            (("events.k8s.io", "v1", "events"), "v1", "Pod", "converting (v1.Pod) to (core.Event): "),
        ] {
            let def = resources::find(row.0, row.1, row.2).unwrap();
            let message = other_kind(def, version, kind).message;
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn owners_are_named_once() {
        let owner = |uid: &str, controller: bool| json!({"kind": "Node", "uid": uid, "controller": controller});
        for (owners, kept, told) in [
            (vec![owner("a", true), owner("b", false)], 2, ""),
            (vec![owner("a", true), owner("a", false)], 2, ""),
            (vec![owner("a", true), owner("a", true), owner("b", true), owner("a", true)], 2, "observed: a, a"),
        ] {
            for (after, when) in [(false, "entries;"), (true, "entries after mutating admission happens;")] {
                let mut object = json!({"metadata": {"ownerReferences": owners}});
                let mut warnings = Vec::new();
                dedup_owners(&mut object, after, &mut warnings);
                assert_eq!(object["metadata"]["ownerReferences"].as_array().unwrap().len(), kept);
                assert_eq!(warnings.len(), usize::from(!told.is_empty()));
                assert!(warnings.iter().all(|text| text.ends_with(told) && text.contains(when)), "{warnings:?}");
            }
        }
    }
}
