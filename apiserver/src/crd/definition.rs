//! CustomResourceDefinitions themselves: their defaults, what they may say, and how they begin to be deleted.

use base64::Engine as _;
use keelson_machinery::names::{dns_label_1035, dns_subdomain};
use keelson_machinery::status::Cause;
use keelson_machinery::structural::{Schema, source};
use keelson_machinery::{go_url, names, shown};
use serde_json::{Value, json};

use super::names::set_condition;
use crate::admission::registration;

/// The finalizer that deletes a definition's objects.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Annotation that approves a definition in a group of the community.
pub const APPROVED: &str = "api-approved.kubernetes.io";
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
/// Longest warning of a deprecated version, bytes.
const MAX_WARNING_BYTES: usize = 256;
/// Most fields by which objects of a version can be selected.
const MAX_SELECTABLE_FIELDS: usize = 8;
const NOT_WEBHOOK: &str = "should not be set when strategy is not set to Webhook";

/// Whether a group belongs to the community.
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

fn list(of: &Value) -> impl Iterator<Item = &Value> {
    of.as_array().into_iter().flatten()
}

/// Fills in defaults and what the server keeps: the versions in which objects are or were stored.
pub fn prepare(object: &mut Value, old: Option<&Value>) {
    if !object["spec"].is_object() {
        return;
    }
    let names = &mut object["spec"]["names"];
    if let Some(kind) = names["kind"].as_str().map(str::to_owned) {
        for (key, value) in [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List"))] {
            if names[key].as_str().unwrap_or_default().is_empty() {
                names[key] = value.into();
            }
        }
    }
    let conversion = &mut object["spec"]["conversion"];
    if conversion.is_null() {
        *conversion = json!({"strategy": "None"});
    }
    if let Some(service) = object.pointer_mut("/spec/conversion/webhook/clientConfig/service")
        && service.is_object()
        && service.get("port").is_none()
    {
        service["port"] = 443.into();
    }
    if object["spec"]["preserveUnknownFields"] == false
        && let Some(spec) = object["spec"].as_object_mut()
    {
        spec.remove("preserveUnknownFields");
    }
    let storage = list(&object["spec"]["versions"]).find(|v| v["storage"] == true).map(|v| v["name"].clone());
    match old {
        None => {
            let stored = storage.map_or(Value::Null, |name| json!([name]));
            object["status"] =
                json!({"acceptedNames": {"kind": "", "plural": ""}, "conditions": null, "storedVersions": stored});
        }
        // A status may leave out what a migration has emptied, whatever the storage version is.
        Some(old) if old["spec"] == object["spec"] => {}
        Some(_) => {
            let stored = &mut object["status"]["storedVersions"];
            if let (Some(name), Some(known)) = (storage, stored.as_array_mut())
                && !known.contains(&name)
            {
                known.push(name);
            }
        }
    }
}

/// Marks a definition whose deletion begins.
pub fn terminate(object: &mut Value) {
    let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    if !finalizers.iter().any(|f| f == CLEANUP) {
        finalizers.push(CLEANUP.into());
    }
    object["metadata"]["finalizers"] = finalizers.into();
    let condition = json!({"type": "Terminating", "status": "True", "reason": "InstanceDeletionPending",
        "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon"});
    set_condition(&mut object["status"], condition);
}

/// What is wrong with a definition; warnings beside it.
pub fn validate(object: &Value, old: Option<&Value>) -> (Vec<Cause>, Vec<String>) {
    let mut check = Check { causes: Vec::new(), warnings: Vec::new() };
    let (new, before) = (&object["spec"], old.map(|old| &old["spec"]));
    if old.is_none() {
        check.name(object);
    }
    check.names(&new["names"]);
    check.group(new);
    check.versions(object, old);
    check.parts(new, before);
    let fixed = old.is_some_and(established);
    check.conversion(new, before, fixed);
    check.preserved(new, before);
    check.approval(object, old);
    if let Some(before) = before {
        // The names of objects in the store follow from these.
        check.same(&new["group"], &before["group"], "spec.group");
        check.same(&new["names"]["plural"], &before["names"]["plural"], "spec.names.plural");
        if fixed {
            check.same(&new["scope"], &before["scope"], "spec.scope");
            check.same(&new["names"]["kind"], &before["names"]["kind"], "spec.names.kind");
        }
    }
    (check.causes, check.warnings)
}

/// What is wrong with a new status: its names. Which versions are stored is for whoever writes it to know.
pub fn validate_status(object: &Value) -> Vec<Cause> {
    let mut check = Check { causes: Vec::new(), warnings: Vec::new() };
    check.forms_of_names(&object["status"]["acceptedNames"], "status.acceptedNames");
    check.causes
}

fn established(object: &Value) -> bool {
    list(&object["status"]["conditions"]).any(|c| c["type"] == "Established" && c["status"] == "True")
}

struct Check {
    causes: Vec<Cause>,
    warnings: Vec<String>,
}

impl Check {
    fn invalid(&mut self, field: impl Into<String>, value: &Value, why: &str) {
        self.causes.push(Cause::invalid(field, value, why));
    }

    fn invalid_shown(&mut self, field: impl Into<String>, shown: &str, why: &str) {
        self.causes.push(Cause::invalid_shown(field, shown, why));
    }

    fn required(&mut self, field: impl Into<String>, why: &str) {
        self.causes.push(Cause::required(field, why));
    }

    fn same(&mut self, new: &Value, old: &Value, field: &str) {
        if new != old {
            self.invalid(field, new, "field is immutable");
        }
    }

    fn name(&mut self, object: &Value) {
        let spec = &object["spec"];
        if object["metadata"]["name"] != format!("{}.{}", text(&spec["names"], "plural"), text(spec, "group")) {
            self.invalid("metadata.name", &object["metadata"]["name"], "must be spec.names.plural+\".\"+spec.group");
        }
    }

    fn group(&mut self, spec: &Value) {
        let group = text(spec, "group");
        if group.is_empty() {
            self.required("spec.group", "");
        } else if let Some(problem) = dns_subdomain(group) {
            self.invalid("spec.group", &spec["group"], &problem);
        } else if !group.contains('.') {
            self.invalid("spec.group", &spec["group"], "should be a domain with at least one dot");
        }
        match text(spec, "scope") {
            "Cluster" | "Namespaced" => {}
            "" => self.required("spec.scope", ""),
            _ => self.causes.push(Cause::not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"])),
        }
    }

    fn names(&mut self, names: &Value) {
        for key in ["plural", "singular", "kind", "listKind"] {
            if text(names, key).is_empty() {
                self.required(format!("spec.names.{key}"), "");
            }
        }
        self.forms_of_names(names, "spec.names");
    }

    /// Of the names that are there.
    fn forms_of_names(&mut self, names: &Value, at: &str) {
        for key in ["plural", "singular", "kind", "listKind"] {
            let (given, field) = (text(names, key), format!("{at}.{key}"));
            if given.is_empty() {
                continue;
            }
            if let Some(problem) = dns_label_1035(&given.to_lowercase()).filter(|_| key.ends_with("ind")) {
                let why = format!("may have mixed case, but should otherwise match: {problem}");
                self.invalid(field, &names[key], &why);
            } else if let Some(problem) = dns_label_1035(given).filter(|_| !key.ends_with("ind")) {
                self.invalid(field, &names[key], &problem);
            }
        }
        for key in ["shortNames", "categories"] {
            for (index, name) in list(&names[key]).enumerate() {
                if let Some(problem) = name.as_str().and_then(dns_label_1035) {
                    self.invalid(format!("{at}.{key}[{index}]"), name, &problem);
                }
            }
            if key == "shortNames" && !text(names, "kind").is_empty() && names["kind"] == names["listKind"] {
                self.invalid(format!("{at}.listKind"), &names["listKind"], "kind and listKind may not be the same");
            }
        }
    }

    /// Unknown fields are no longer kept for whole kinds; a definition that did so before may go on.
    fn preserved(&mut self, spec: &Value, before: Option<&Value>) {
        if spec["preserveUnknownFields"] != true {
            return;
        }
        let schemas = || list(&spec["versions"]).map(|version| &version["schema"]["openAPIV3Schema"]);
        if schemas().any(|schema| Schema::parse(schema).has_defaults()) {
            let why = "must be false in order to use defaults in the schema";
            self.invalid("spec.preserveUnknownFields", &Value::Bool(true), why);
        }
        if before.is_some_and(|old| old["preserveUnknownFields"] == true) {
            return;
        }
        let why =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        self.invalid("spec.preserveUnknownFields", &spec["preserveUnknownFields"], why);
    }

    fn versions(&mut self, object: &Value, old: Option<&Value>) {
        let versions: Vec<&Value> = list(&object["spec"]["versions"]).collect();
        // Long with long schemas, and seldom needed.
        let shown = || shown_versions(&versions);
        let names: Vec<&str> = versions.iter().map(|v| text(v, "name")).collect();
        if let Some(problem) = names.first().and_then(|name| dns_label_1035(name)) {
            self.invalid("spec.version", &versions[0]["name"], &problem);
        }
        for (index, version) in versions.iter().enumerate() {
            let at = format!("spec.versions[{index}]");
            if let Some(problem) = dns_label_1035(names[index]) {
                self.invalid(format!("{at}.name"), &version["name"], &problem);
            }
            if let Some(warning) = version["deprecationWarning"].as_str() {
                for why in deprecation_problems(version["deprecated"] == true, warning) {
                    self.invalid(format!("{at}.deprecationWarning"), &version["deprecationWarning"], &why);
                }
            }
            if version["schema"]["openAPIV3Schema"].is_null() {
                self.required(format!("{at}.schema.openAPIV3Schema"), "");
            }
        }
        let storage: Vec<&&Value> = versions.iter().filter(|v| v["storage"] == true).collect();
        if storage.len() != 1 {
            self.invalid_shown("spec.versions", &shown(), "must have exactly one version marked as storage version");
        }
        if (1..names.len()).any(|i| names[..i].contains(&names[i])) {
            self.invalid_shown("spec.versions", &shown(), "must contain unique version names");
        }
        self.stored(object, old, &names, storage.last().map(|v| text(v, "name")));
    }

    fn stored(&mut self, object: &Value, old: Option<&Value>, names: &[&str], storage: Option<&str>) {
        let known = &object["status"]["storedVersions"];
        let stored: Vec<&str> = list(known).filter_map(Value::as_str).collect();
        if stored.is_empty() {
            self.invalid("status.storedVersions", known, "must have at least one stored version");
            return;
        }
        for (index, version) in stored.iter().enumerate().filter(|(_, v)| !names.contains(v)) {
            let why = format!(
                "missing from spec.versions; {version} was previously a storage version, and must remain in spec.versions until a \
                 storage migration ensures no data remains persisted in {version} and removes {version} from status.storedVersions"
            );
            self.invalid(format!("status.storedVersions[{index}]"), &known[index], &why);
        }
        if let (None, Some(storage)) = (old, storage)
            && !stored.contains(&storage)
        {
            self.invalid("status.storedVersions", known, &format!("must have the storage version {storage}"));
        }
    }

    /// Schemas, subresources, columns and selectable fields: told once if all versions share them.
    fn parts(&mut self, spec: &Value, old: Option<&Value>) {
        let versions: Vec<&Value> = list(&spec["versions"]).collect();
        for (index, version) in versions.iter().enumerate() {
            let place = |key: &str, shared: bool| {
                if shared { format!("spec.{key}") } else { format!("spec.versions[{index}].{key}") }
            };
            let before = old.and_then(|old| list(&old["versions"]).find(|v| v["name"] == version["name"]));
            let same_schema = shared(&versions, |v| &v["schema"]);
            if !(same_schema && index > 0) && version["schema"]["openAPIV3Schema"].is_object() {
                let at = if same_schema { "spec.validation".to_owned() } else { place("schema", false) };
                let schema = &version["schema"]["openAPIV3Schema"];
                // What was accepted once stays acceptable.
                if before.is_none_or(|before| before["schema"]["openAPIV3Schema"] != *schema) {
                    // One version's status counts for a schema that all share.
                    let of_status = |v: &Value| v["subresources"]["status"].is_object();
                    let has_status =
                        if same_schema { versions.iter().any(|v| of_status(v)) } else { of_status(version) };
                    let (causes, warnings) = source::problems(schema, &format!("{at}.openAPIV3Schema"), has_status);
                    self.causes.extend(causes);
                    self.warnings.extend(warnings);
                }
            }
            for (key, check) in [
                ("subresources", Self::subresources as fn(&mut Self, &Value, &str)),
                ("additionalPrinterColumns", Self::columns),
            ] {
                let same = shared(&versions, |v| &v[key]);
                if !(same && index > 0) {
                    check(self, &version[key], &place(key, same));
                }
            }
            let same = shared(&versions, |v| &v["selectableFields"]) && same_schema;
            if !(same && index > 0) {
                self.selectable(version, &place("selectableFields", same));
            }
        }
    }

    fn subresources(&mut self, subresources: &Value, at: &str) {
        let scale = &subresources["scale"];
        if !scale.is_object() {
            return;
        }
        for (key, under, optional) in [
            ("specReplicasPath", ".spec", false),
            ("statusReplicasPath", ".status", false),
            ("labelSelectorPath", "", true),
        ] {
            let (path, field) = (text(scale, key), format!("{at}.scale.{key}"));
            if path.is_empty() {
                if !optional {
                    self.required(field, "");
                }
            } else if !simple(path) {
                self.invalid(field, &scale[key], "must be a simple json path starting with .");
            } else if !under.is_empty() && !path.starts_with(&format!("{under}.")) {
                self.invalid(field, &scale[key], &format!("should be a json path under {under}"));
            } else if optional && !path.starts_with(".spec.") && !path.starts_with(".status.") {
                self.invalid(field, &scale[key], "should be a json path under either .spec or .status");
            }
        }
    }

    fn columns(&mut self, columns: &Value, at: &str) {
        for (index, column) in list(columns).enumerate() {
            let at = format!("{at}[{index}]");
            if text(column, "name").is_empty() {
                self.required(format!("{at}.name"), "");
            }
            match text(column, "type") {
                "" => self.required(format!("{at}.type"), &format!("must be one of {}", COLUMN_TYPES.join(","))),
                kind if !COLUMN_TYPES.contains(&kind) => {
                    let why = format!("must be one of {}", COLUMN_TYPES.join(","));
                    self.invalid(format!("{at}.type"), &column["type"], &why);
                }
                _ => {}
            }
            let format = text(column, "format");
            if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
                let why = format!("must be one of {}", COLUMN_FORMATS.join(","));
                self.invalid(format!("{at}.format"), &column["format"], &why);
            }
            match text(column, "jsonPath") {
                "" => self.required(format!("{at}.JSONPath"), ""),
                path if !path.starts_with('.') => {
                    self.invalid(
                        format!("{at}.JSONPath"),
                        &column["jsonPath"],
                        "must be a simple json path starting with .",
                    );
                }
                _ => {}
            }
        }
    }

    fn selectable(&mut self, version: &Value, at: &str) {
        if list(&version["selectableFields"]).next().is_none() {
            return;
        }
        let schema = Schema::parse(&version["schema"]["openAPIV3Schema"]);
        let mut seen = Vec::new();
        for (index, field) in list(&version["selectableFields"]).enumerate() {
            let (path, at) = (text(field, "jsonPath"), format!("{at}[{index}].jsonPath"));
            if path.is_empty() {
                self.required(at, "");
                continue;
            }
            let (found, root) = match schema.follow(path, false) {
                Ok(found) => found,
                Err(why) => {
                    self.invalid(at, &field["jsonPath"], &format!("is an invalid path: {why}"));
                    continue;
                }
            };
            if root == "metadata" {
                self.invalid(at.clone(), &field["jsonPath"], "must not point to fields in metadata");
            }
            if !matches!(found.kind.as_str(), "string" | "boolean" | "integer") {
                let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
                self.invalid(at.clone(), &field["jsonPath"], why);
            }
            if seen.contains(&path) {
                self.causes.push(Cause::duplicate(at, &field["jsonPath"]));
            } else {
                seen.push(path);
            }
        }
        if seen.len() > MAX_SELECTABLE_FIELDS {
            self.causes.push(Cause::too_many(at, seen.len(), MAX_SELECTABLE_FIELDS));
        }
    }

    fn conversion(&mut self, spec: &Value, before: Option<&Value>, fixed: bool) {
        let conversion = &spec["conversion"];
        let (config, reviews) =
            (&conversion["webhook"]["clientConfig"], &conversion["webhook"]["conversionReviewVersions"]);
        let strategy = text(conversion, "strategy");
        if strategy != "None" && spec["preserveUnknownFields"] == true {
            let why = "must be None if spec.preserveUnknownFields is true";
            self.invalid("spec.conversion.strategy", &conversion["strategy"], why);
        }
        match strategy {
            "Webhook" => {
                let at = "spec.conversion.webhookClientConfig";
                if config.is_null() {
                    self.required(at, "required when strategy is set to Webhook");
                } else {
                    self.causes.extend(registration::client_problems(config, at));
                    // What could not be used before may stay so.
                    let known = before.map(|old| text(&old["conversion"]["webhook"]["clientConfig"], "caBundle"));
                    let strict = fixed && known.is_none_or(|known| known.is_empty() || is_bundle(known));
                    let bundle = text(config, "caBundle");
                    if strict && !bundle.is_empty() && !is_bundle(bundle) {
                        let why = "unable to load root certificates: unable to parse bytes as PEM block";
                        self.invalid(format!("{at}.caBundle"), &config["caBundle"], why);
                    }
                }
                self.review_versions(reviews);
            }
            other => {
                if other.is_empty() {
                    self.required("spec.conversion.strategy", "");
                } else if other != "None" {
                    let supported = ["None", "Webhook"];
                    let cause = Cause::not_supported("spec.conversion.strategy", &conversion["strategy"], &supported);
                    self.causes.push(cause);
                }
                if !config.is_null() {
                    self.causes.push(Cause::forbidden("spec.conversion.webhookClientConfig", NOT_WEBHOOK));
                }
                if list(reviews).next().is_some() {
                    self.causes.push(Cause::forbidden("spec.conversion.conversionReviewVersions", NOT_WEBHOOK));
                }
            }
        }
    }

    fn review_versions(&mut self, reviews: &Value) {
        let at = "spec.conversion.conversionReviewVersions";
        let given: Vec<&str> = list(reviews).filter_map(Value::as_str).collect();
        if given.is_empty() {
            self.required(at, "");
            return;
        }
        for (index, version) in given.iter().enumerate() {
            if given[..index].contains(version) {
                self.invalid(format!("{at}[{index}]"), &reviews[index], "duplicate version");
            } else if let Some(problem) = dns_label_1035(version) {
                self.invalid(format!("{at}[{index}]"), &reviews[index], &problem);
            }
        }
        if !given.iter().any(|version| matches!(*version, "v1" | "v1beta1")) {
            self.invalid(at, reviews, "must include at least one of v1, v1beta1");
        }
    }

    /// Whether the community agreed to a definition in one of its groups. What was said before may stay.
    fn approval(&mut self, object: &Value, old: Option<&Value>) {
        let given =
            |object: &Value| object["metadata"]["annotations"][APPROVED].as_str().unwrap_or_default().to_owned();
        let (now, field) = (given(object), format!("metadata.annotations[{APPROVED}]"));
        let state = Approval::of(&now);
        if !is_protected(text(&object["spec"], "group")) || old.is_some_and(|old| Approval::of(&given(old)) == state) {
            return;
        }
        let see = "see https://github.com/kubernetes/enhancements/pull/1111";
        let wanted = format!("protected groups must have approval annotation {APPROVED:?}");
        match state {
            Approval::Given | Approval::Bypassed => {}
            Approval::Missing => self.required(field, &format!("{wanted}, {see}")),
            Approval::Invalid => {
                let why = format!("{wanted} with either a URL or a reason starting with \"unapproved\", {see}");
                self.invalid(field, &Value::from(now), &why);
            }
        }
    }
}

/// What the annotation says of the community's approval.
#[derive(PartialEq, Eq)]
enum Approval {
    Missing,
    Bypassed,
    Given,
    Invalid,
}

impl Approval {
    fn of(annotation: &str) -> Self {
        match annotation {
            "" => Self::Missing,
            reason if reason.starts_with("unapproved") => Self::Bypassed,
            url => match go_url::parse_request(url) {
                Ok(url) if !url.host.is_empty() && !url.scheme.is_empty() => Self::Given,
                _ => Self::Invalid,
            },
        }
    }
}

/// Whether a bundle in base64 holds certificates.
fn is_bundle(encoded: &str) -> bool {
    let pem = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default();
    keelson_pki::is_bundle(&String::from_utf8_lossy(&pem))
}

/// What is wrong with the warning of a deprecated version.
fn deprecation_problems(deprecated: bool, warning: &str) -> Vec<String> {
    if !deprecated {
        return vec!["can only be set for deprecated versions".into()];
    }
    let mut out = Vec::new();
    if warning.len() > MAX_WARNING_BYTES {
        out.push(format!("must be <= {MAX_WARNING_BYTES} characters long"));
    }
    if warning.is_empty() {
        out.push("must not be an empty string".into());
    }
    if let Some((at, _)) = warning.char_indices().find(|(_, c)| !names::is_printable(*c)) {
        out.push(format!("must only contain printable UTF-8 characters; non-printable character found at index {at}"));
    }
    out
}

/// A path may be anything that begins with a dot: what it does not lead to is not there.
fn simple(path: &str) -> bool {
    path.starts_with('.')
}

/// Whether all versions say the same of something.
fn shared<'a>(versions: &[&'a Value], of: impl Fn(&'a Value) -> &'a Value) -> bool {
    versions.windows(2).all(|pair| of(pair[0]) == of(pair[1]))
}

/// Parts of a version that stand above all of them if they share them.
const HOISTED: [&str; 4] = ["schema", "subresources", "additionalPrinterColumns", "selectableFields"];

/// Versions as messages show them: what all share is in none of them.
fn shown_versions(versions: &[&Value]) -> String {
    let hoisted: Vec<&str> = HOISTED.into_iter().filter(|key| shared(versions, |v| &v[*key])).collect();
    let own = versions.iter().map(|version| {
        let fields = version.as_object().into_iter().flatten();
        let fields = fields.filter(|(key, _)| !hoisted.contains(&key.as_str()));
        Value::Object(fields.map(|(key, value)| (key.clone(), value.clone())).collect())
    });
    shown::compact_list("CRDVersion", &own.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(parts: &Value) -> Value {
        let version =
            json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}});
        let mut object = json!({"metadata": {"name": "foos.ex.k8s.io", "annotations": {APPROVED: "unapproved"}}, "spec": {
            "group": "ex.k8s.io", "scope": "Cluster", "names": {"plural": "foos", "kind": "Foo"}, "versions": [version]}});
        for (path, value) in parts.as_object().into_iter().flatten() {
            match object.pointer_mut(path) {
                Some(place) => *place = value.clone(),
                None => object["spec"][path] = value.clone(),
            }
        }
        prepare(&mut object, None);
        object
    }

    #[test]
    fn a_status_has_its_names_judged() {
        let names =
            json!({"status": {"acceptedNames": {"plural": "a_b", "kind": "K", "listKind": "K"}, "storedVersions": []}});
        let got: Vec<String> = validate_status(&names).into_iter().map(|cause| cause.field).collect();
        assert_eq!(got, ["status.acceptedNames.plural", "status.acceptedNames.listKind"]);
        assert!(validate_status(&json!({"status": {}})).is_empty());
    }

    /// Each row: what is said instead (by a pointer, or by a field of the spec), and how what is told of that begins.
    #[test]
    fn definitions_are_judged() {
        let approval = format!("/metadata/annotations/{APPROVED}");
        let column = json!([{"name": "a", "type": "string", "jsonPath": ".b"}]);
        let twice = json!([
            {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}},
            {"name": "v1", "served": true, "schema": {"openAPIV3Schema": {"type": "object"}}, "additionalPrinterColumns": column}]);
        let webhook =
            json!({"strategy": "Odd", "webhook": {"clientConfig": {"url": "x"}, "conversionReviewVersions": ["v1"]}});
        let strict = json!({"/spec/versions/0/schema/openAPIV3Schema": {"type": "object", "properties": {
            "a": {"type": "string", "default": "x"}}}, "preserveUnknownFields": true});
        for (parts, told) in [
            (json!({}), vec![]),
            (json!({&approval: "https://x/y"}), vec![]),
            (json!({&approval: "a b://x"}), vec!["metadata.annotations[api-approved.kubernetes.io]: Invalid value"]),
            (json!({"conversion": {}}), vec!["spec.conversion.strategy: Required value"]),
            (
                json!({"conversion": webhook}),
                vec![
                    "spec.conversion.strategy: Unsupported value: \"Odd\"",
                    "spec.conversion.webhookClientConfig: Forbidden",
                    "spec.conversion.conversionReviewVersions: Forbidden",
                ],
            ),
            (
                json!({"versions": twice}),
                vec![
                    "spec.versions: Invalid value: [{\"Name\":\"v1\",\"Served\":true,\"Storage\":true,\"Deprecated\":false,\
                     \"DeprecationWarning\":null,\"Schema\":null,\"Subresources\":null,\"AdditionalPrinterColumns\":null,\
                     \"SelectableFields\":null},{\"Name\":\"v1\",\"Served\":true,\"Storage\":false,\"Deprecated\":false,\
                     \"DeprecationWarning\":null,\"Schema\":null,\"Subresources\":null,\"AdditionalPrinterColumns\":[{\"Name\":\"a\",",
                ],
            ),
            (
                strict,
                vec![
                    "spec.preserveUnknownFields: Invalid value: true: must be false in order to use defaults",
                    "spec.preserveUnknownFields: Invalid value: true: cannot set to true",
                ],
            ),
        ] {
            let causes = validate(&definition(&parts), None).0;
            let got: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
            assert_eq!(got.len(), told.len(), "{parts}: {got:#?}");
            assert!(got.iter().zip(&told).all(|(got, told)| got.starts_with(told)), "{parts}: {got:#?}");
        }
    }

    #[test]
    fn an_approval_may_not_be_taken_back() {
        let with = |annotation: &str| {
            let mut object = definition(&json!({}));
            object["metadata"]["annotations"][APPROVED] = annotation.into();
            object
        };
        for (new, old, told) in [
            ("", "", 0),
            ("", "unapproved", 1),
            ("bad", "worse", 0),
            ("bad", "https://x", 1),
            ("unapproved", "https://x", 0),
        ] {
            assert_eq!(validate(&with(new), Some(&with(old))).0.len(), told, "{new} after {old}");
        }
    }

    #[test]
    fn warnings_of_deprecated_versions_are_printable() {
        assert_eq!(
            deprecation_problems(true, "a\u{a0}b"),
            ["must only contain printable UTF-8 characters; non-printable character found at index 1"]
        );
        assert!(deprecation_problems(true, "é b").is_empty());
    }
}
