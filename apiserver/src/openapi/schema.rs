//! Schemas of types, as OpenAPI version 2 and 3 write them, from the schema table and the texts that describe it.

use std::collections::HashSet;
use std::io;

use keelson_machinery::docs::Docs;
use keelson_machinery::protobuf;
use keelson_machinery::schema::{self, Definition, Field, PatchStrategy, Type};
use serde_json::{Map, Value, json};

use super::enums;
use super::sink::{Section, Sink};

/// Path of the types that all groups share.
pub const META: &str = "apimachinery.pkg.apis.meta.v1.";
const QUANTITY: &str = "apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "apimachinery.pkg.apis.meta.v1.MicroTime";
const RAW: &str = "apimachinery.pkg.runtime.RawExtension";

/// Required by the API's crate but not by the API, beyond the metadata of kinds.
const NOT_REQUIRED: &[&str] = &[
    "api.core.v1.ConfigMapEnvSource.name",
    "api.core.v1.ConfigMapKeySelector.name",
    "api.core.v1.ConfigMapProjection.name",
    "api.core.v1.ConfigMapVolumeSource.name",
    "api.core.v1.LocalObjectReference.name",
    "api.core.v1.SecretEnvSource.name",
    "api.core.v1.SecretKeySelector.name",
    "api.core.v1.SecretProjection.name",
];
/// Required by the API but not by its crate.
const REQUIRED: &[&str] = &["api.core.v1.Event.metadata", "api.events.v1.Event.eventTime"];

/// Fields with a zero as default though they may be left out.
const ZEROS: &[&str] = &[
    "api.apps.v1.StatefulSetOrdinals.start",
    "api.authentication.v1.TokenRequestStatus.token",
    "api.autoscaling.v1.ScaleSpec.replicas",
    "api.batch.v1.PodFailurePolicyOnPodConditionsPattern.status",
    "api.core.v1.GRPCAction.service",
    "api.core.v1.NodeRuntimeHandler.name",
    "api.core.v1.ReplicationControllerSpec.minReadySeconds",
    "api.flowcontrol.v1.FlowSchemaSpec.matchingPrecedence",
    "api.flowcontrol.v1.QueuingConfiguration.handSize",
    "api.flowcontrol.v1.QueuingConfiguration.queueLengthLimit",
    "api.flowcontrol.v1.QueuingConfiguration.queues",
    "api.rbac.v1.RoleRef.apiGroup",
    "apimachinery.pkg.apis.meta.v1.APIGroup.preferredVersion",
];
/// Fields without a default though they are always there.
const NO_ZEROS: &[&str] = &[
    "api.authentication.v1.TokenRequestSpec.boundObjectRef",
    "api.authentication.v1.TokenReviewSpec.token",
    "api.core.v1.ImageVolumeStatus.imageRef",
];

/// Values that fields have when nobody sets them, beyond the zeros that the types tell.
const DEFAULTS: &[(&str, &str)] = &[
    ("api.core.v1.AzureDiskVolumeSource.cachingMode", "ReadWrite"),
    ("api.core.v1.AzureDiskVolumeSource.fsType", "ext4"),
    ("api.core.v1.AzureDiskVolumeSource.kind", "Shared"),
    ("api.core.v1.ContainerPort.protocol", "TCP"),
    ("api.core.v1.ISCSIPersistentVolumeSource.iscsiInterface", "default"),
    ("api.core.v1.ISCSIVolumeSource.iscsiInterface", "default"),
    ("api.core.v1.RBDPersistentVolumeSource.keyring", "/etc/ceph/keyring"),
    ("api.core.v1.RBDPersistentVolumeSource.pool", "rbd"),
    ("api.core.v1.RBDPersistentVolumeSource.user", "admin"),
    ("api.core.v1.RBDVolumeSource.keyring", "/etc/ceph/keyring"),
    ("api.core.v1.RBDVolumeSource.pool", "rbd"),
    ("api.core.v1.RBDVolumeSource.user", "admin"),
    ("api.core.v1.ScaleIOPersistentVolumeSource.fsType", "xfs"),
    ("api.core.v1.ScaleIOPersistentVolumeSource.storageMode", "ThinProvisioned"),
    ("api.core.v1.ScaleIOVolumeSource.fsType", "xfs"),
    ("api.core.v1.ScaleIOVolumeSource.storageMode", "ThinProvisioned"),
    ("api.core.v1.ServicePort.protocol", "TCP"),
    ("api.resource.v1.DeviceToleration.operator", "Equal"),
];

/// A type, the field that says which of the others counts, and the others with its values for them.
type Union = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Types of which one field says which of the others counts.
const UNIONS: &[Union] = &[
    ("api.core.v1.AppArmorProfile", "type", &[("localhostProfile", "LocalhostProfile")]),
    ("api.core.v1.PodSchedulingGroup", "", &[("podGroupName", "PodGroupName")]),
    ("api.core.v1.SeccompProfile", "type", &[("localhostProfile", "LocalhostProfile")]),
    ("api.flowcontrol.v1.LimitResponse", "type", &[("queuing", "Queuing")]),
    ("api.flowcontrol.v1.PriorityLevelConfigurationSpec", "type", &[("exempt", "Exempt"), ("limited", "Limited")]),
    (
        "api.flowcontrol.v1.Subject",
        "kind",
        &[("group", "Group"), ("serviceAccount", "ServiceAccount"), ("user", "User")],
    ),
    ("api.scheduling.v1alpha2.PodGroupSchedulingPolicy", "", &[("basic", "Basic"), ("gang", "Gang")]),
    ("api.scheduling.v1alpha2.PodGroupTemplateReference", "", &[("workload", "Workload")]),
];

/// The version of OpenAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// 2.0.
    V2,
    /// 3.0.
    V3,
}

/// The schemas of a document: those asked for and all that they name.
pub struct Schemas<'a> {
    flavour: Flavour,
    docs: &'a Docs,
    /// Group and version of the options of deletion and the events of watches.
    versions: Vec<(&'a str, &'a str)>,
    /// Names of those that are done or open.
    known: HashSet<String>,
    open: Vec<String>,
}

/// The name that documents have for a type.
pub fn name_of(path: &str) -> String {
    let path = path
        .replace("apiextensions_apiserver", "apiextensions-apiserver")
        .replace("kube_aggregator", "kube-aggregator");
    format!("io.k8s.{path}")
}

impl<'a> Schemas<'a> {
    /// None yet.
    pub fn new(flavour: Flavour, docs: &'a Docs, versions: Vec<(&'a str, &'a str)>) -> Self {
        Self { flavour, docs, versions, known: HashSet::new(), open: Vec::new() }
    }

    /// A reference to a type, which becomes a part of the document.
    pub fn reference(&mut self, path: &str) -> Value {
        let name = name_of(path);
        let place = if self.flavour == Flavour::V2 { "definitions" } else { "components/schemas" };
        let reference = json!({"$ref": format!("#/{place}/{name}")});
        if self.known.insert(name) {
            self.open.push(path.to_owned());
        }
        reference
    }

    /// Hands over all schemas.
    pub fn finish(mut self, sink: &mut dyn Sink) -> io::Result<()> {
        while let Some(path) = self.open.pop() {
            let schema = self.schema(&path);
            sink.entry(Section::Schemas, &name_of(&path), &schema)?;
        }
        Ok(())
    }

    fn schema(&mut self, path: &str) -> Value {
        let mut out = match path {
            QUANTITY | INT_OR_STRING => self.either(path),
            TIME | MICRO_TIME => json!({"type": "string", "format": "date-time"}),
            _ => match schema::definition(path) {
                Some(definition) => self.object(definition),
                None if path.ends_with("WatchEvent") => self.watch_event(),
                None => match path.strip_suffix("List").and_then(schema::definition) {
                    Some(item) => self.list(path, item),
                    None if path.rsplit('.').next().is_some_and(|name| name.starts_with("JSON")) => json!({}),
                    None => json!({"type": "object"}),
                },
            },
        };
        if let Some(text) = self.docs.of(path).filter(|text| !text.is_empty()) {
            out["description"] = text.into();
        }
        out
    }

    /// What may be a number or a text.
    fn either(&self, path: &str) -> Value {
        match (self.flavour, path) {
            (Flavour::V2, QUANTITY) => json!({"type": "string"}),
            (Flavour::V2, _) => json!({"type": "string", "format": "int-or-string"}),
            (Flavour::V3, QUANTITY) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
            (Flavour::V3, _) => json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        }
    }

    fn object(&mut self, definition: &'static Definition) -> Value {
        let path = definition.path;
        let mut names: Vec<&str> = definition.fields.keys().copied().collect();
        names.sort();
        let mut kinds: Vec<_> = schema::kinds_of(path).collect();
        let is_kind = !kinds.is_empty();
        if path == "apimachinery.pkg.apis.meta.v1.DeleteOptions" {
            kinds = self.versions.iter().map(|(g, v)| (*g, *v, "DeleteOptions")).collect();
        }
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for name in names {
            let field = &definition.fields[name];
            let of_kind = is_kind && matches!(name, "apiVersion" | "kind");
            let full = format!("{path}.{name}");
            let needed = field.required && name != "metadata" && !NOT_REQUIRED.contains(&full.as_str());
            if !of_kind && needed || REQUIRED.contains(&full.as_str()) {
                required.push(name);
            }
            properties.insert(
                name.to_owned(),
                if of_kind { self.type_field(name) } else { self.property(path, name, field) },
            );
        }
        let mut out = json!({"type": "object", "properties": properties});
        if !required.is_empty() {
            // In the order of the API's own structs, which number their fields as they come.
            required.sort_by_key(|name| protobuf::number_of(path, name));
            out["required"] = json!(required);
        }
        if definition.atomic {
            out["x-kubernetes-map-type"] = "atomic".into();
        }
        if let Some((_, discriminator, fields)) = UNIONS.iter().find(|(of, ..)| *of == path) {
            let fields: Map<String, Value> = fields.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
            let mut union = json!({"fields-to-discriminateBy": fields});
            if !discriminator.is_empty() {
                union["discriminator"] = (*discriminator).into();
            }
            out["x-kubernetes-unions"] = json!([union]);
        }
        if !kinds.is_empty() {
            kinds.sort_unstable();
            out["x-kubernetes-group-version-kind"] = gvks(&kinds);
        }
        out
    }

    /// `apiVersion` or `kind`.
    fn type_field(&self, name: &str) -> Value {
        let text = self.docs.of(&format!("{META}TypeMeta.{name}")).unwrap_or_default();
        json!({"type": "string", "description": text})
    }

    fn list(&mut self, path: &str, item: &'static Definition) -> Value {
        let text = |name: &str| self.docs.of(&format!("{path}.{name}")).unwrap_or_default();
        let (of_metadata, of_items) = (text("metadata"), text("items"));
        let metadata = self.reference(&format!("{META}ListMeta"));
        let metadata = self.beside(metadata, json!({"description": of_metadata, "default": {}}));
        let items = json!({"type": "array", "description": of_items, "items": self.reference(item.path)});
        let mut kinds: Vec<_> = schema::kinds_of(item.path).collect();
        kinds.sort_unstable();
        let lists: Vec<(&str, &str, String)> = kinds.iter().map(|(g, v, k)| (*g, *v, format!("{k}List"))).collect();
        let lists: Vec<(&str, &str, &str)> = lists.iter().map(|(g, v, k)| (*g, *v, k.as_str())).collect();
        json!({
            "type": "object", "required": ["items"],
            "properties": {
                "apiVersion": self.type_field("apiVersion"), "kind": self.type_field("kind"), "metadata": metadata, "items": items,
            },
            "x-kubernetes-group-version-kind": gvks(&lists),
        })
    }

    fn watch_event(&mut self) -> Value {
        let text = self.docs.of(&format!("{META}WatchEvent.object")).unwrap_or_default();
        let object = self.reference(RAW);
        let object = self.beside(object, json!({"description": text}));
        let kinds: Vec<_> = self.versions.iter().map(|(g, v)| (*g, *v, "WatchEvent")).collect();
        let kind = if self.flavour == Flavour::V2 {
            json!({"type": "string"})
        } else {
            json!({"type": "string", "default": ""})
        };
        json!({
            "type": "object", "required": ["type", "object"], "properties": {"type": kind, "object": object},
            "x-kubernetes-group-version-kind": gvks(&kinds),
        })
    }

    /// A reference with what is said of this use of it.
    fn beside(&self, reference: Value, mut said: Value) -> Value {
        if said["description"] == ""
            && let Some(fields) = said.as_object_mut()
        {
            fields.remove("description");
        }
        if self.flavour == Flavour::V2 {
            if let Some(fields) = said.as_object_mut() {
                fields.remove("default");
            }
            said["$ref"] = reference["$ref"].clone();
            return said;
        }
        if said.as_object().is_none_or(Map::is_empty) {
            return reference;
        }
        said["allOf"] = json!([reference]);
        said
    }

    fn property(&mut self, path: &str, name: &str, field: &Field) -> Value {
        let full = format!("{path}.{name}");
        let values = enums::values(&full);
        let mut said = Map::new();
        let mut text = self.docs.of(&full).unwrap_or_default();
        let of_items = values.is_some() && matches!(field.kind, Type::List(_) | Type::Map(_));
        if let Some(values) = values.filter(|_| !of_items) {
            text += "\n\nPossible enum values:";
            values.iter().for_each(|value| text += &format!("\n - `{value:?}`"));
            said.insert("enum".into(), json!(values));
        }
        if !text.is_empty() {
            said.insert("description".into(), text.into());
        }
        if let Some(default) = default(&full, field, self.flavour) {
            said.insert("default".into(), default);
        }
        markers(&full, field, &mut said);
        let mut kind = self.of_type(&field.kind, field.any);
        if of_items {
            let items = if matches!(field.kind, Type::List(_)) { "items" } else { "additionalProperties" };
            kind[items]["enum"] = json!(values);
        }
        if kind.get("$ref").is_some() {
            return self.beside(kind, said.into());
        }
        let mut out = kind;
        if let Some(fields) = out.as_object_mut() {
            fields.append(&mut said);
        }
        out
    }

    fn of_type(&mut self, kind: &Type, any: &str) -> Value {
        match kind {
            Type::Any => match any {
                "" | "serde_json.Value" => json!({"type": "object"}),
                path => self.reference(path),
            },
            Type::String => json!({"type": "string"}),
            Type::Int32 => json!({"type": "integer", "format": "int32"}),
            Type::Int64 => json!({"type": "integer", "format": "int64"}),
            Type::Float64 => json!({"type": "number", "format": "double"}),
            Type::Bool => json!({"type": "boolean"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::Quantity => self.reference(QUANTITY),
            Type::IntOrString => self.reference(INT_OR_STRING),
            Type::Time => self.reference(TIME),
            Type::MicroTime => self.reference(MICRO_TIME),
            Type::List(item) => json!({"type": "array", "items": self.of_type(item, any)}),
            Type::Map(item) => json!({"type": "object", "additionalProperties": self.of_type(item, any)}),
            Type::Object(path) => self.reference(path),
        }
    }
}

/// Kinds as the extension of the API has them.
fn gvks(kinds: &[(&str, &str, &str)]) -> Value {
    kinds.iter().map(|(group, version, kind)| json!({"group": group, "version": version, "kind": kind})).collect()
}

/// What a field is when nobody sets it. Version 2 does not tell.
fn default(full: &str, field: &Field, flavour: Flavour) -> Option<Value> {
    if flavour == Flavour::V2 {
        return None;
    }
    if let Some((_, value)) = DEFAULTS.iter().find(|(of, _)| *of == full) {
        return Some((*value).into());
    }
    match full {
        "api.core.v1.ReplicationControllerSpec.replicas" => return Some(1.into()),
        "api.core.v1.AzureDiskVolumeSource.readOnly" | "api.core.v1.FileKeySelector.optional" => {
            return Some(false.into());
        }
        _ => {}
    }
    let (path, name) = full.rsplit_once('.')?;
    let present = field.present && !keelson_machinery::presence::is_pointer(path, name) && !NO_ZEROS.contains(&full);
    if !present && !ZEROS.contains(&full) {
        return None;
    }
    Some(match field.kind {
        Type::String => "".into(),
        Type::Int32 | Type::Int64 | Type::Float64 => 0.into(),
        Type::Bool => false.into(),
        Type::Object(_) => json!({}),
        _ => return None,
    })
}

/// How a field is merged.
fn markers(full: &str, field: &Field, said: &mut Map<String, Value>) {
    let mut say = |key: &str, value: Value| said.insert(format!("x-kubernetes-{key}"), value);
    if !field.list_type.is_empty() {
        say("list-type", field.list_type.into());
    }
    if let schema::ListStrategy::Map(keys) = &field.list {
        say("list-map-keys", json!(keys));
    }
    let retain = if field.retain_keys { ",retainKeys" } else { "" };
    match field.patch {
        PatchStrategy::MergeBy(key) => {
            say("patch-strategy", format!("merge{retain}").into());
            say("patch-merge-key", key.into());
        }
        PatchStrategy::MergeValues => {
            say("patch-strategy", format!("merge{retain}").into());
        }
        PatchStrategy::Replace if field.retain_keys => {
            say("patch-strategy", "retainKeys".into());
        }
        PatchStrategy::Replace if full == "api.policy.v1.PodDisruptionBudgetSpec.selector" => {
            say("patch-strategy", "replace".into());
        }
        PatchStrategy::Replace => {}
    }
    if field.atomic && !matches!(field.kind, Type::List(_)) {
        say("map-type", "atomic".into());
    }
    if matches!(
        full,
        "api.core.v1.PersistentVolumeSpec.claimRef"
            | "api.core.v1.PersistentVolumeClaimStatus.allocatedResourceStatuses"
    ) {
        say("map-type", "granular".into());
    }
}
