//! What happens to every object between decoding and the store: identity, metadata rules, generation, status.

use keelson_machinery::names;
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::status::{Cause, Status};
use keelson_machinery::{defaults, presence, qos, schema, validate};
use rand::RngExt;
use serde_json::{Value, json};

use crate::access::UserInfo;
use crate::request::ResourceRequest;
use crate::{admission, certificates, crd};

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
        let (group, v) = version.rsplit_once('/').unwrap_or(("", version));
        return Err(Status::bad_request(format!(
            "{} in version {v:?} cannot be handled as a {}: no kind {kind:?} is registered for version {:?}",
            if kind.is_empty() { "the object" } else { kind },
            def.kind,
            if group.is_empty() { v.to_owned() } else { version.to_owned() },
        )));
    }
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
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
        Scope::Cluster if !namespace.is_empty() => {
            return Err(Status::bad_request("namespace is not allowed for cluster-scoped resources"));
        }
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

/// Brings a body into the form of its kind; gives the unknown fields, which are removed.
pub fn conform(request: &ResourceRequest, object: &mut Value) -> Result<Vec<String>, Status> {
    conform_text(request, object).map_err(|why| cannot_be_handled(request.def, &why))
}

/// The same, with what is wrong as text.
pub fn conform_text(request: &ResourceRequest, object: &mut Value) -> Result<Vec<String>, String> {
    match &request.custom {
        Some(custom) => crd::strategy::conform(custom, object),
        None => keelson_machinery::conform::conform(request.def, object),
    }
}

/// The refusal of a body that is not of the form of its kind.
pub fn cannot_be_handled(def: &ResourceDef, why: &str) -> Status {
    let kind = def.kind;
    Status::bad_request(format!("{kind} in version {:?} cannot be handled as a {kind}: {why}", def.version))
}

/// Gives a new object its identity and defaults.
pub fn prepare_create(request: &ResourceRequest, object: &mut Value) -> Result<(), Status> {
    let def = request.def;
    let metadata =
        object["metadata"].as_object_mut().ok_or_else(|| Status::bad_request("metadata must be an object"))?;
    if metadata.get("resourceVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty()) {
        return Err(Status::internal("resourceVersion should not be set on objects to be created"));
    }
    let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        let prefix = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default();
        if prefix.is_empty() {
            let cause = Cause::required("metadata.name", "name or generateName is required");
            return Err(Status::invalid(def.group, def.kind, "", vec![cause]));
        }
        let generated = generate_name(prefix);
        metadata.insert("name".into(), generated.into());
    }
    for server_side in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
        metadata.remove(server_side);
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), now().into());
    if has_generation(def) {
        metadata.insert("generation".into(), 1.into());
    }
    // A node comes with the status that its agent saw.
    if def.has_status && def.plural != "nodes" {
        reset_status(def, object);
        if (def.group, def.plural) == ("", "persistentvolumes") {
            object["status"]["lastPhaseTransitionTime"] = now().into();
        }
    }
    crate::jobs::prepare(def, object);
    if crd::is_definition(def) {
        crd::definition::prepare(object, None);
    }
    Ok(())
}

/// Gives an object the status of one that nobody has acted on yet.
fn reset_status(def: &ResourceDef, object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
        if let Some(definition) = schema::of_kind(def.group, def.version, def.kind) {
            presence::fill(definition, map);
        }
    }
    defaults::set(def, object);
    if (def.group, def.plural) == ("", "pods") {
        object["status"]["phase"] = "Pending".into();
        settle_status(def, object);
    }
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

/// Kinds whose main resource counts generations: those with a spec and a status of their own.
fn has_generation(def: &ResourceDef) -> bool {
    def.custom
        || (def.has_status
            && !matches!(
                def.plural,
                "namespaces"
                    | "nodes"
                    | "services"
                    | "persistentvolumes"
                    | "persistentvolumeclaims"
                    | "resourcequotas"
                    | "certificatesigningrequests"
            ))
        || def.plural == "networkpolicies"
        || (def.group == "admissionregistration.k8s.io" && !def.plural.ends_with("bindings"))
}

/// Merges an update with what is stored: identity stays, status belongs to the status subresource (and vice versa), a
/// changed spec counts a generation.
pub fn prepare_update(request: &ResourceRequest, old: &Value, new: &mut Value) {
    let (def, subresource) = (request.def, request.subresource.as_str());
    if matches!(subresource, "status" | "approval") {
        let status = new.get("status").cloned();
        let conditions_metadata = new["metadata"].clone();
        *new = old.clone();
        // Labels, annotations and finalizers may be written with the status, as upstream lets kubelets do; not so those
        // of custom resources.
        if def.custom
            && let Some(fields) = conditions_metadata.get("managedFields")
        {
            new["metadata"]["managedFields"] = fields.clone();
        }
        for key in ["labels", "annotations", "finalizers", "ownerReferences"] {
            if let Some(value) = conditions_metadata.get(key).filter(|_| !def.custom) {
                new["metadata"][key] = value.clone();
            }
        }
        match status {
            Some(status) => new["status"] = status,
            None => {
                new.as_object_mut().map(|m| m.remove("status"));
            }
        }
    } else if def.has_status {
        match old.get("status") {
            Some(status) => new["status"] = status.clone(),
            None => {
                new.as_object_mut().map(|m| m.remove("status"));
            }
        }
    }
    if certificates::is_request(def) {
        certificates::prepare_update(subresource, old, new);
    }
    let kept = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "name",
        "namespace",
        "generateName",
    ];
    for key in kept {
        match old["metadata"].get(key) {
            Some(value) => new["metadata"][key] = value.clone(),
            None => {
                new["metadata"].as_object_mut().map(|m| m.remove(key));
            }
        }
    }
    if crd::is_definition(def) {
        crd::definition::prepare(new, Some(old));
    }
    let changed = match def.custom {
        true => crd::strategy::counts_generation(def.has_status, old, new),
        false => {
            matches!(subresource, "" | "scale")
                && (old.get("spec") != new.get("spec") || old.get("webhooks") != new.get("webhooks"))
        }
    };
    if has_generation(def) && changed {
        new["metadata"]["generation"] = (old["metadata"]["generation"].as_i64().unwrap_or(0) + 1).into();
    }
}

/// Checks a new or changed object; all problems are told at once.
pub fn check(
    request: &ResourceRequest,
    new: &Value,
    old: Option<&Value>,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let def = request.def;
    let mut causes = metadata_causes(def, &new["metadata"]);
    causes.extend(validate::validate(def, new, old));
    if let Some(custom) = &request.custom {
        causes.extend(crd::strategy::check(custom, &request.subresource, new, old));
    } else if certificates::is_request(def) {
        causes.extend(certificates::problems(&request.subresource, new, old));
    } else if def.group == "admissionregistration.k8s.io" {
        causes.extend(admission::registration::problems(def.kind, new, old));
    } else if crd::is_definition(def) {
        let (problems, odd) = crd::definition::validate(new, old);
        causes.extend(problems);
        warnings.extend(odd);
    }
    if causes.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(def.group, def.kind, new["metadata"]["name"].as_str().unwrap_or_default(), causes))
}

fn metadata_causes(def: &ResourceDef, metadata: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let name = metadata["name"].as_str().unwrap_or_default();
    let problem = match (def.group, def.plural) {
        ("rbac.authorization.k8s.io", _) => names::path_segment(name),
        ("", "namespaces" | "services") => names::dns_label(name),
        ("certificates.k8s.io", _) => names::dns_subdomain(name),
        _ => names::dns_subdomain(name),
    };
    causes.extend(problem.map(|p| Cause::invalid("metadata.name", &metadata["name"], &p)));
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        causes.extend(names::qualified_name(key).map(|p| Cause::invalid("metadata.labels", &json!(key), &p)));
        let text = value.as_str().unwrap_or_default();
        causes.extend(names::label_value(text).map(|p| Cause::invalid("metadata.labels", value, &p)));
    }
    for (key, _) in metadata["annotations"].as_object().into_iter().flatten() {
        let lower = key.to_lowercase();
        causes.extend(names::qualified_name(&lower).map(|p| Cause::invalid("metadata.annotations", &json!(key), &p)));
    }
    causes
}
