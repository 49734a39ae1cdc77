//! A definition as the server uses it, and the row that it makes of the resource table.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock, OnceLock};

use keelson_machinery::jsonpath::JsonPath;
use keelson_machinery::resource::{Column, ResourceDef, Scope, Subresource};
use keelson_machinery::resources::find;
use keelson_machinery::status::Status;
use keelson_machinery::stored::{self, Stored};
use keelson_machinery::structural::{Schema, apply_defaults, drop_forbidden_nulls, prune};
use keelson_store::KeyValue;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{conversion, definition};
use crate::hooks::Hooks;
use crate::objects::parse;

/// Objects that a webhook converts at once.
const CONVERTED_AT_ONCE: usize = 500;
/// Verbs of custom resources, in the order in which discovery lists them.
const VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
const SUB_VERBS: &[&str] = &["get", "patch", "update"];

/// One version of a definition.
#[derive(Debug)]
pub struct Version {
    /// Its name.
    pub name: String,
    /// Whether clients may use it.
    pub served: bool,
    /// The warning that its users get, "" for none.
    pub warning: String,
    /// Paths of the scale subresource: spec replicas, status replicas, label selector ("" for none).
    pub scale: Option<[String; 3]>,
    /// The row.
    pub def: &'static ResourceDef,
    schema: OnceLock<Schema>,
    given: OnceLock<Value>,
}

/// A definition.
pub struct Definition {
    /// Its name: plural and group.
    pub name: String,
    /// The version in which objects are stored.
    pub storage: String,
    /// Its versions, as they are listed.
    pub versions: Vec<Version>,
    /// It is being deleted: nothing new is made.
    pub terminating: bool,
    /// `spec.conversion`.
    pub conversion: Value,
    /// Cancelled when objects are served in another way, or not any more: who watches them begins anew.
    pub ended: CancellationToken,
    /// The definition as it is stored; schemas are read from it when they are first needed.
    source: Arc<KeyValue>,
    hooks: Option<Arc<Hooks>>,
    /// A digest of all that says how objects are served.
    served_as: u64,
}

/// A version of a custom resource that a request is about.
#[derive(Clone)]
pub struct Custom {
    /// The definition.
    pub definition: Arc<Definition>,
    /// Which of its versions.
    pub index: usize,
    /// Stored objects that were converted beforehand, many at once, by their keys in the store and revisions.
    pub ahead: Option<Arc<Ahead>>,
}

/// Converted objects.
pub type Ahead = HashMap<(Vec<u8>, i64), Value>;

impl std::fmt::Debug for Custom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.definition.name, self.version().name)
    }
}

impl Definition {
    /// What tells this state of the definition from every other.
    pub fn identity(&self) -> String {
        format!("{}@{} ", self.name, self.source.mod_revision)
    }

    /// The revision before which the definition did not exist, so nobody can have seen its objects.
    pub fn since(&self) -> i64 {
        self.source.create_revision
    }

    /// Takes the place of an earlier state of the definition. Watches of its objects go on if nothing changed for them.
    pub(super) fn succeed(&mut self, earlier: &Self) {
        if self.served_as == earlier.served_as {
            self.ended = earlier.ended.clone();
        } else {
            earlier.ended.cancel();
        }
    }

    /// A definition as it was read from the store; `None` if it is not established.
    pub fn of(object: &Value, source: &Arc<KeyValue>, hooks: Option<Arc<Hooks>>) -> Option<Self> {
        let established = object["status"]["conditions"]
            .as_array()
            .is_some_and(|list| list.iter().any(|c| c["type"] == "Established" && c["status"] == "True"));
        if !established {
            return None;
        }
        let spec = &object["spec"];
        let list = spec["versions"].as_array()?;
        let preferred = preferred(list);
        let versions = list
            .iter()
            .map(|version| Version {
                name: text(version, "name"),
                served: version["served"] == true,
                warning: warning(spec, version, &preferred),
                scale: scale_paths(version),
                def: row(object, version),
                schema: OnceLock::new(),
                given: OnceLock::new(),
            })
            .collect();
        let terminating = object["metadata"]["deletionTimestamp"].is_string();
        // Schemas are not read here: the generation stands for them, of which one is the deletion's.
        let changes = object["metadata"]["generation"].as_i64().unwrap_or(0) - i64::from(terminating);
        Some(Self {
            name: text(&object["metadata"], "name"),
            storage: list.iter().find(|v| v["storage"] == true).map(|v| text(v, "name"))?,
            versions,
            terminating,
            conversion: spec["conversion"].clone(),
            ended: CancellationToken::new(),
            source: source.clone(),
            hooks,
            served_as: digest((changes, &object["status"]["acceptedNames"], source.create_revision)),
        })
    }

    /// A definition that the server provides without it being stored.
    ///
    /// # Errors
    /// If it is none, in words.
    pub fn own(mut object: Value) -> Result<Self, String> {
        let name = text(&object["metadata"], "name");
        definition::prepare(&mut object, None);
        object["metadata"]["uid"] = name.as_str().into();
        object["status"]["acceptedNames"] = object["spec"]["names"].clone();
        object["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
        let def = find(super::GROUP, "v1", super::PLURAL).ok_or("there are no definitions")?;
        let value = stored::encode(def, &object).map_err(|e| e.to_string())?;
        let key = format!("{}{name}", def.prefix()).into();
        let source = KeyValue { key, value, create_revision: 0, mod_revision: 0, version: 1, lease: 0 };
        Self::of(&object, &Arc::new(source), None).ok_or_else(|| format!("{name} is no definition"))
    }

    /// A version that clients may use.
    pub fn serve(self: &Arc<Self>, version: &str) -> Option<Custom> {
        let index = self.versions.iter().position(|v| v.served && v.name == version)?;
        Some(Custom { definition: self.clone(), index, ahead: None })
    }

    /// The schema of a version.
    pub fn schema(&self, index: usize) -> &Schema {
        self.versions[index].schema.get_or_init(|| Schema::parse(&self.schema_source(index)))
    }

    /// The schema of a version as it was given, kept: what apply walks.
    pub fn schema_given(&self, index: usize) -> &Value {
        self.versions[index].given.get_or_init(|| self.schema_source(index))
    }

    /// The schema of a version as it was given.
    pub fn schema_source(&self, index: usize) -> Value {
        let object = parse(&self.source).unwrap_or_default();
        object["spec"]["versions"][index]["schema"]["openAPIV3Schema"].clone()
    }
}

fn digest(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

impl Custom {
    /// The version.
    pub fn version(&self) -> &Version {
        &self.definition.versions[self.index]
    }

    /// The row.
    pub fn def(&self) -> &'static ResourceDef {
        self.version().def
    }

    /// The schema.
    pub fn schema(&self) -> &Schema {
        self.definition.schema(self.index)
    }

    /// Whether reading many objects asks a webhook.
    pub fn asks_others(&self) -> bool {
        conversion::asks_others(&self.definition.conversion)
    }

    /// The same row with these stored objects converted beforehand, where they need it: the webhook is asked for
    /// [`CONVERTED_AT_ONCE`] of them at a time.
    pub fn with_ahead<'k>(&self, stored: impl Iterator<Item = &'k Arc<KeyValue>>) -> Result<Self, Status> {
        let definition = &self.definition;
        let mut made = Ahead::new();
        let mut rest = stored.peekable();
        while rest.peek().is_some() {
            let (mut keys, mut objects) = (Vec::new(), Vec::new());
            for kv in rest.by_ref().take(CONVERTED_AT_ONCE) {
                let (mut object, index) = self.as_stored(kv)?;
                if index != Some(self.index) {
                    object["kind"] = self.def().kind.into();
                    keys.push((kv.key.to_vec(), kv.mod_revision));
                    objects.push(object);
                }
            }
            let version = self.def().api_version();
            let converted =
                conversion::convert_all(&definition.conversion, definition.hooks.as_ref(), objects, &version)?;
            made.extend(keys.into_iter().zip(converted));
        }
        Ok(Self { ahead: Some(Arc::new(made)), ..self.clone() })
    }

    /// An object in the version in which it is stored, and which of the definition's that is.
    fn as_stored(&self, kv: &KeyValue) -> Result<(Value, Option<usize>), Status> {
        let mut object = parse(kv)?;
        let stored_version = object["apiVersion"].as_str().and_then(|v| v.rsplit('/').next()).unwrap_or_default();
        let stored_index = self.definition.versions.iter().position(|v| v.name == stored_version);
        if let Some(index) = stored_index {
            fit(self.definition.schema(index), &mut object);
        }
        Ok((object, stored_index))
    }

    /// An object as it is stored, in this version: brought into the form of the schemas as they are now.
    pub fn read(&self, kv: &KeyValue) -> Result<Value, Status> {
        let known = self.ahead.as_ref().and_then(|ahead| ahead.get(&(kv.key.to_vec(), kv.mod_revision)));
        if let Some(converted) = known {
            let mut object = converted.clone();
            prune(self.schema(), &mut object);
            return Ok(object);
        }
        let (mut object, stored_index) = self.as_stored(kv)?;
        if stored_index != Some(self.index) {
            object["kind"] = self.def().kind.into();
            let definition = &self.definition;
            object = conversion::convert(
                &definition.conversion,
                definition.hooks.as_ref(),
                object,
                &self.def().api_version(),
            )?;
            prune(self.schema(), &mut object);
        }
        Ok(object)
    }

    /// Whether an object would be stored in another version if it were written now: then a write that changes nothing is one.
    pub fn is_stale(&self, kv: &KeyValue) -> bool {
        // Most definitions have one version, and none goes while something is stored in it: nothing needs to be parsed.
        if self.definition.versions.len() < 2 {
            return false;
        }
        let stored = parse(kv).unwrap_or_default();
        let version = stored["apiVersion"].as_str().and_then(|v| v.rsplit('/').next());
        version.is_some_and(|version| version != self.definition.storage)
    }

    /// The same, encoded like any stored object.
    pub fn stored(&self, kv: &KeyValue) -> Result<Stored, Status> {
        let malformed = |e: stored::Malformed| Status::internal(&e.to_string());
        let value = stored::encode(self.def(), &self.read(kv)?).map_err(malformed)?;
        Stored::parse(&value).map_err(malformed)
    }

    /// An object of this version as it goes to the store.
    pub fn to_storage(&self, object: &Value) -> Result<Value, Status> {
        let definition = &self.definition;
        match definition.versions.iter().find(|v| v.name == definition.storage) {
            Some(version) if version.name != self.version().name => conversion::convert(
                &definition.conversion,
                definition.hooks.as_ref(),
                object.clone(),
                &version.def.api_version(),
            ),
            _ => Ok(object.clone()),
        }
    }
}

/// Prunes and defaults.
fn fit(schema: &Schema, object: &mut Value) {
    prune(schema, object);
    drop_forbidden_nulls(schema, object);
    apply_defaults(schema, object);
}

fn text(of: &Value, key: &str) -> String {
    of[key].as_str().unwrap_or_default().to_owned()
}

/// The version that a warning of deprecation recommends: the one of highest priority that is not deprecated.
fn preferred(versions: &[Value]) -> String {
    let mut names: Vec<String> =
        versions.iter().filter(|v| v["served"] == true && v["deprecated"] != true).map(|v| text(v, "name")).collect();
    names.sort_by(|a, b| super::by_priority(a, b));
    names.into_iter().next().unwrap_or_default()
}

fn warning(spec: &Value, version: &Value, preferred: &str) -> String {
    if version["deprecated"] != true {
        return String::new();
    }
    if let Some(own) = version["deprecationWarning"].as_str() {
        return own.to_owned();
    }
    let (group, kind) = (text(spec, "group"), text(&spec["names"], "kind"));
    let old = format!("{group}/{} {kind} is deprecated", text(version, "name"));
    // Only a version that goes before the deprecated one is recommended.
    if preferred.is_empty() || super::by_priority(preferred, &text(version, "name")).is_gt() {
        return old;
    }
    format!("{old}; use {group}/{preferred} {kind}")
}

fn scale_paths(version: &Value) -> Option<[String; 3]> {
    let scale = version["subresources"].get("scale").filter(|s| s.is_object())?;
    Some(["specReplicasPath", "statusReplicasPath", "labelSelectorPath"].map(|key| text(scale, key)))
}

/// The row of a version. Rows live as long as the process; equal ones are made once, so memory grows only with the number
/// of different names, columns and selectable fields that definitions ever had.
fn row(object: &Value, version: &Value) -> &'static ResourceDef {
    static ROWS: LazyLock<Mutex<HashMap<String, &'static ResourceDef>>> = LazyLock::new(Mutex::default);
    let (spec, names) = (&object["spec"], &object["status"]["acceptedNames"]);
    let identity = json!([
        spec["group"],
        spec["scope"],
        names,
        version["name"],
        version["subresources"].as_object().map(|s| s.keys().collect::<Vec<_>>()),
        version["additionalPrinterColumns"],
        version["selectableFields"],
    ])
    .to_string();
    ROWS.lock().entry(identity).or_insert_with(|| Box::leak(Box::new(make(spec, names, version))))
}

fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn leak_list<T>(list: Vec<T>) -> &'static [T] {
    Box::leak(list.into_boxed_slice())
}

fn make(spec: &Value, names: &Value, version: &Value) -> ResourceDef {
    let word = |of: &Value, key: &str| leak(of[key].as_str().unwrap_or_default());
    let words =
        |of: &Value| leak_list(of.as_array().into_iter().flatten().filter_map(Value::as_str).map(leak).collect());
    let subresources = &version["subresources"];
    let mut subs = Vec::new();
    if subresources["status"].is_object() {
        subs.push(Subresource { name: "status", kind: ("", "", ""), verbs: SUB_VERBS });
    }
    if subresources["scale"].is_object() {
        subs.push(Subresource { name: "scale", kind: ("autoscaling", "v1", "Scale"), verbs: SUB_VERBS });
    }
    let selectable = version["selectableFields"].as_array().into_iter().flatten();
    let selectable = selectable.filter_map(|f| f["jsonPath"].as_str()).map(|path| leak(path.trim_start_matches('.')));
    ResourceDef {
        group: word(spec, "group"),
        version: word(version, "name"),
        kind: word(names, "kind"),
        plural: word(names, "plural"),
        singular: word(names, "singular"),
        short_names: words(&names["shortNames"]),
        categories: words(&names["categories"]),
        scope: if spec["scope"] == "Cluster" { Scope::Cluster } else { Scope::Namespaced },
        verbs: VERBS,
        has_status: subresources["status"].is_object(),
        subresources: leak_list(subs),
        selectable_fields: leak_list(selectable.collect()),
        list_kind: word(names, "listKind"),
        custom: true,
        columns: leak_list(columns(version)),
    }
}

/// What the column that stands in for absent ones is described as.
const AGE: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not \
    guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is \
    represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: \
    https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

fn columns(version: &Value) -> Vec<(Column, &'static str)> {
    let list = version["additionalPrinterColumns"].as_array().filter(|list| !list.is_empty());
    let Some(list) = list else {
        let age = Column { name: "Age", kind: "date", format: "", description: AGE, priority: 0 };
        return vec![(age, ".metadata.creationTimestamp")];
    };
    list.iter()
        .filter(|column| column["jsonPath"].as_str().is_some_and(|path| JsonPath::parse(path).is_ok()))
        .map(|column| {
            let path = text(column, "jsonPath");
            let description = match column["description"].as_str() {
                Some(given) if !given.is_empty() => given.to_owned(),
                _ => format!("Custom resource definition column (in JSONPath format): {path}"),
            };
            let made = Column {
                name: leak(&text(column, "name")),
                kind: leak(&text(column, "type")),
                format: leak(&text(column, "format")),
                description: leak(&description),
                priority: column["priority"].as_i64().and_then(|p| i32::try_from(p).ok()).unwrap_or(0),
            };
            (made, leak(&path))
        })
        .collect()
}
