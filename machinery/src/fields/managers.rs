//! Who owns which fields: `metadata.managedFields` as a map, kept up by updates and by server-side apply.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::path::PathElement;
use super::reconcile;
use super::set::FieldSet;
use super::shape::Node;
use super::typed::{self, Comparison};

/// Most managers that got fields by updating; the oldest beyond are merged into one.
const MAX_UPDATE_MANAGERS: usize = 10;
/// The manager that the oldest updates are merged into.
const OLD_UPDATES: &str = "ancient-changes";

/// Metadata that nobody owns, because the server writes it.
const UNOWNED_METADATA: &[&str] = &[
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
];

/// Who writes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer<'a> {
    /// Name of the manager.
    pub manager: &'a str,
    /// `apiVersion` of what it sends.
    pub api_version: &'a str,
    /// Subresource that it writes, or "".
    pub subresource: &'a str,
    /// Current time.
    pub now: &'a str,
}

/// Identity of an entry. Appliers keep theirs when they change to another version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    manager: String,
    operation: &'static str,
    version: String,
    subresource: String,
}

const APPLY: &str = "Apply";
const UPDATE: &str = "Update";

impl Id {
    fn new(manager: &str, operation: &'static str, version: &str, subresource: &str) -> Self {
        let version = if operation == APPLY { "" } else { version };
        Self { manager: manager.into(), operation, version: version.into(), subresource: subresource.into() }
    }

    /// The text by whose order conflicts are told: the entry in JSON without its fields.
    fn identifier(&self) -> String {
        let text = |text: &str| Value::from(text).to_string();
        let mut out = format!("{{\"manager\":{},\"operation\":{}", text(&self.manager), text(self.operation));
        for (key, value) in [("apiVersion", &self.version), ("subresource", &self.subresource)] {
            if !value.is_empty() {
                out += &format!(",{key:?}:{}", text(value));
            }
        }
        out + "}"
    }

    /// As conflicts name it.
    fn shown(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            out += &format!(" with subresource {:?}", self.subresource);
        }
        if self.operation == UPDATE {
            out += &format!(" using {}", self.version);
        }
        out
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    set: FieldSet,
    version: String,
    time: Option<String>,
}

impl Entry {
    /// The time as it is written: a scale is another object, and what it says of times does not come over.
    fn written_time(&self, id: &Id) -> Option<&str> {
        self.time.as_deref().filter(|_| id.subresource != "scale")
    }
}

/// The managers of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managed {
    entries: BTreeMap<Id, Entry>,
}

/// A field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager, as messages name it.
    pub manager: String,
    /// The field.
    pub path: String,
}

/// Why an apply failed.
#[derive(Debug)]
pub enum ApplyError {
    /// Others own fields that would change.
    Conflicts(Vec<Conflict>),
    /// The values do not merge.
    Merge(String),
}

/// An object in a version: the schema of that version and the object in it; `None` for versions that do not exist.
pub type Convert<'a> = dyn Fn(&str, &Value) -> Option<(Node<'a>, Value)> + 'a;

/// What both operations need to know of an object's kind.
pub struct Kind<'a> {
    /// Its schema in the writer's version.
    pub node: Node<'a>,
    /// Other versions of it.
    pub convert: &'a Convert<'a>,
    /// Fields that the request cannot change.
    pub ignored: &'a FieldSet,
}

impl Kind<'_> {
    /// What a request changed between two objects without their managers.
    pub fn changes(&self, old: &Value, new: &Value) -> Comparison {
        without(typed::compare(self.node, old, new), self.ignored)
    }
}

/// `metadata.managedFields` after an update that gives other values only to fields that its writer, and nobody else, owns by
/// updates already: the list that is stored, with another time. Most writes are such, and reading and writing all sets of fields
/// costs more than anything else about them. `None`: there is more to be noted.
pub fn renewed(kind: &Kind<'_>, list: &Value, writer: &Writer<'_>, changes: &Comparison) -> Option<Value> {
    let entries = list.as_array().filter(|all| all.len() <= MAX_UPDATE_MANAGERS)?;
    let taken = changes.modified.union(&changes.added).difference(&UNOWNED);
    if !changes.removed.difference(&UNOWNED).is_empty() || taken.is_empty() {
        return None;
    }
    let is =
        |entry: &Value, key: &str, wanted: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default() == wanted;
    let mut own = None;
    for (at, entry) in entries.iter().enumerate() {
        let plain = is(entry, "apiVersion", writer.api_version) && is(entry, "fieldsType", "FieldsV1");
        if !plain || is(entry, "subresource", "scale") {
            return None;
        }
        let fields = entry.get("fieldsV1").filter(|fields| fields.is_object())?;
        let theirs = is(entry, "manager", writer.manager) && is(entry, "operation", UPDATE);
        if theirs && is(entry, "subresource", writer.subresource) {
            // Twice the same is one; and then something is wrong with the list.
            (own.replace(at).is_none() && taken.is_within(fields)).then_some(())?;
        } else if taken.meets(fields) {
            return None;
        }
    }
    let stale = |fields: &Map<String, Value>| reconcile::is_stale(kind.node, fields);
    if entries.iter().filter_map(|entry| entry.get("fieldsV1")?.as_object()).any(stale) {
        return None;
    }
    let mut list = entries.clone();
    list[own?].as_object_mut()?.insert("time".into(), writer.now.into());
    let place = |entry: &Value| {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        let [version, subresource] = ["apiVersion", "subresource"].map(|key| text(key).unwrap_or_default());
        (text("operation"), text("time"), text("manager"), version, subresource)
    };
    if list.len() > 1 {
        list.sort_by_cached_key(place);
    }
    Some(Value::Array(list))
}

impl Managed {
    /// Reads `metadata.managedFields`.
    pub fn decode(list: Option<&Value>) -> Result<Self, String> {
        let mut out = Self::default();
        for (index, entry) in list.and_then(Value::as_array).into_iter().flatten().enumerate() {
            let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
            let operation = match text("operation") {
                APPLY => APPLY,
                UPDATE => UPDATE,
                _ => return Err("operation must be `Apply` or `Update`".into()),
            };
            let version = text("apiVersion");
            if version.is_empty() {
                return Err("apiVersion must not be empty".into());
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {index}")),
                other => return Err(format!("invalid fieldsType {other:?} in managed fields entry {index}")),
            }
            let set = match entry.get("fieldsV1") {
                Some(fields) => FieldSet::from_v1(fields)?,
                None => FieldSet::default(),
            };
            let manager = Some(text("manager")).filter(|m| !m.is_empty()).unwrap_or("unknown");
            let id = Id::new(manager, operation, version, text("subresource"));
            let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
            out.entries.insert(id, Entry { set, version: version.into(), time });
        }
        Ok(out)
    }

    /// As `metadata.managedFields`; `None` if nobody owns anything.
    pub fn encode(&self) -> Option<Value> {
        let mut entries: Vec<(&Id, &Entry)> = self.entries.iter().filter(|(_, e)| !e.set.is_empty()).collect();
        let place = |id: &'_ Id, entry: &'_ Entry| {
            let time = entry.written_time(id).map(str::to_owned);
            (id.operation, time, id.manager.clone(), entry.version.clone(), id.subresource.clone())
        };
        entries.sort_by_cached_key(|(id, entry)| place(id, entry));
        let list: Vec<Value> = entries.into_iter().map(|(id, entry)| encode_entry(id, entry)).collect();
        (!list.is_empty()).then_some(Value::Array(list))
    }

    /// Whether nobody owns anything.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The same managers, each set with its version changed by `change`: `None` drops the manager.
    pub fn map(&self, change: impl Fn(&str, &FieldSet) -> Option<(String, FieldSet)>) -> Self {
        let entries = self.entries.iter().filter_map(|(id, entry)| {
            let (version, set) = change(&entry.version, &entry.set)?;
            let id = Id::new(&id.manager, id.operation, &version, &id.subresource);
            Some((id, Entry { set, version, time: entry.time.clone() }))
        });
        Self { entries: entries.collect() }
    }

    /// Notes an update from one object to another.
    pub fn update(&mut self, kind: &Kind<'_>, writer: &Writer<'_>, old: &Value, new: &Value) {
        self.update_by(kind, writer, old, new, kind.changes(old, new));
    }

    /// As [`Managed::update`], where what changed is known.
    pub fn update_by(&mut self, kind: &Kind<'_>, writer: &Writer<'_>, old: &Value, new: &Value, changes: Comparison) {
        let id = Id::new(writer.manager, UPDATE, writer.api_version, writer.subresource);
        self.reconcile(kind, writer.api_version, old);
        // The writer's earlier entry counts as another's: it loses what is removed and keeps the rest.
        let Ok(changes) = self.take_changed(kind, writer.api_version, None, (old, new, changes), true) else { return };
        let mut taken = match changes.modified.is_empty() {
            true => changes.added,
            false => changes.modified.union(&changes.added),
        };
        taken.subtract(&UNOWNED);
        if !taken.is_empty() {
            let set = match self.entries.get(&id) {
                Some(before) => before.set.union(&taken),
                None => taken,
            };
            let entry = Entry { set, version: writer.api_version.into(), time: Some(writer.now.into()) };
            self.entries.insert(id, entry);
        }
        self.cap();
    }

    /// Applies a configuration: gives the new object, or `None` if it is as it was.
    pub fn apply(
        &mut self,
        kind: &Kind<'_>,
        writer: &Writer<'_>,
        live: &Value,
        config: &Value,
        force: bool,
    ) -> Result<Option<Value>, ApplyError> {
        let id = Id::new(writer.manager, APPLY, writer.api_version, writer.subresource);
        self.reconcile(kind, writer.api_version, live);
        let merged = typed::merge(kind.node, Some(live), Some(config)).map_err(ApplyError::Merge)?;
        let merged = merged.unwrap_or_else(|| json!({}));
        let last = self.entries.get(&id).cloned();
        let set = typed::field_set(kind.node, config).without(kind.ignored);
        let time = last.as_ref().and_then(|l| l.time.clone());
        self.entries.insert(id.clone(), Entry { set, version: writer.api_version.into(), time });
        let new = match &last {
            Some(last) if !last.set.is_empty() => self.prune(kind, writer.api_version, merged, last),
            _ => merged,
        };
        let changed = (live, &new, kind.changes(live, &new));
        self.take_changed(kind, writer.api_version, Some(&id), changed, force).map_err(ApplyError::Conflicts)?;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.set = entry.set.difference(&UNOWNED);
            if entry.set.is_empty() {
                self.entries.remove(&id);
            }
        }
        if new == *live {
            return Ok(None);
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.time = Some(writer.now.into());
        }
        Ok(Some(new))
    }

    /// Puts all sets right that were written by another schema of the kind; `version` is that of `live`.
    fn reconcile(&mut self, kind: &Kind<'_>, version: &str, live: &Value) {
        let mut others: BTreeMap<String, Option<Node<'_>>> = BTreeMap::new();
        for entry in self.entries.values_mut() {
            let node = if entry.version == version {
                Some(kind.node)
            } else {
                // What has no version any more is dropped when changes are noted.
                let seen = others.entry(entry.version.clone());
                *seen.or_insert_with(|| (kind.convert)(&entry.version, live).map(|(node, _)| node))
            };
            if let Some(set) = node.and_then(|node| reconcile::reconciled(node, &entry.set)) {
                entry.set = set;
            }
        }
    }

    /// Takes away from all other managers what changed; without `force` this is refused where they own it.
    fn take_changed(
        &mut self,
        kind: &Kind<'_>,
        version: &str,
        own: Option<&Id>,
        (old, new, changes): (&Value, &Value, Comparison),
        force: bool,
    ) -> Result<Comparison, Vec<Conflict>> {
        let mut versions: BTreeMap<String, Option<Comparison>> = BTreeMap::new();
        versions.insert(version.into(), Some(changes));
        let mut conflicts = Vec::new();
        let mut left: Vec<(Id, Option<FieldSet>)> = Vec::new();
        for (id, entry) in &self.entries {
            if own == Some(id) {
                continue;
            }
            let changes = versions.entry(entry.version.clone()).or_insert_with(|| {
                let (node, old) = (kind.convert)(&entry.version, old)?;
                let (_, new) = (kind.convert)(&entry.version, new)?;
                Some(without(typed::compare(node, &old, &new), kind.ignored))
            });
            let Some(changes) = changes else {
                // A version that is no longer served: its fields cannot be named any more.
                left.push((id.clone(), None));
                continue;
            };
            let lost = entry.set.intersection(&changes.modified).union(&entry.set.intersection(&changes.added));
            let named = lost.paths().into_iter().map(|path| Conflict { manager: id.shown(), path });
            if !lost.is_empty() {
                conflicts.push((id.identifier(), named.collect::<Vec<_>>()));
            }
            let rest = entry.set.difference(&lost).difference(&changes.removed);
            if rest != entry.set {
                left.push((id.clone(), Some(rest)));
            }
        }
        if !force && !conflicts.is_empty() {
            conflicts.sort_by(|a, b| a.0.cmp(&b.0));
            return Err(conflicts.into_iter().flat_map(|(_, of_manager)| of_manager).collect());
        }
        for (id, rest) in left {
            match (rest, self.entries.get_mut(&id)) {
                (Some(rest), Some(entry)) => entry.set = rest,
                _ => {
                    self.entries.remove(&id);
                }
            }
        }
        self.entries.retain(|_, entry| !entry.set.is_empty());
        Ok(versions.remove(version).flatten().unwrap_or_default())
    }

    /// Removes what the applier had before and does not name any more, unless others own it. This is done in the version in
    /// which it had them.
    fn prune(&self, kind: &Kind<'_>, version: &str, merged: Value, last: &Entry) -> Value {
        let view = match last.version == version {
            true => Some((kind.node, merged.clone())),
            false => (kind.convert)(&last.version, &merged),
        };
        let Some((node, whole)) = view else { return merged };
        let gone = last.set.with_named_parents(node);
        let pruned = typed::remove(node, &whole, &gone).unwrap_or_else(|| json!({}));
        let pruned = self.add_back_owned(kind, (node, &last.version), &whole, pruned);
        let named = |value: &Value| typed::field_set(node, value).with_named_parents(node);
        let dangling = named(&whole).difference(&named(&pruned)).intersection(&gone);
        let left = typed::remove(node, &whole, &dangling).unwrap_or_else(|| json!({}));
        match last.version == version {
            true => left,
            false => (kind.convert)(version, &left).map_or(merged, |(_, left)| left),
        }
    }

    /// Puts back what pruning took although some manager owns it; all are of `version`, which goes first, for conversions may
    /// need what is put back there.
    fn add_back_owned(
        &self,
        kind: &Kind<'_>,
        (node, version): (Node<'_>, &str),
        merged: &Value,
        mut pruned: Value,
    ) -> Value {
        let mut owned: BTreeMap<&str, FieldSet> = BTreeMap::new();
        for entry in self.entries.values() {
            let all = owned.entry(&entry.version).or_default();
            *all = all.union(&entry.set);
        }
        let back = |node: Node<'_>, merged: &Value, pruned: &Value, set: &FieldSet| {
            let named = |value: &Value| typed::field_set(node, value).with_named_parents(node);
            let gone = named(merged).difference(&named(pruned).union(&set.with_named_parents(node)));
            typed::remove(node, merged, &gone).unwrap_or_else(|| json!({}))
        };
        if let Some(set) = owned.remove(version) {
            pruned = back(node, merged, &pruned, &set);
        }
        for (other, set) in owned {
            let (Some((node, merged)), Some((_, now))) =
                ((kind.convert)(other, merged), (kind.convert)(other, &pruned))
            else {
                continue;
            };
            let kept = back(node, &merged, &now, &set);
            pruned = (kind.convert)(version, &kept).map_or(pruned, |(_, kept)| kept);
        }
        pruned
    }

    /// Merges the oldest updates into one manager per version while there are too many.
    fn cap(&mut self) {
        let mut updates: Vec<(Option<String>, Id)> = self
            .entries
            .iter()
            .filter(|(id, _)| id.operation == UPDATE)
            .map(|(id, entry)| (entry.time.clone(), id.clone()))
            .collect();
        if updates.len() <= MAX_UPDATE_MANAGERS {
            return;
        }
        updates.sort();
        let mut count = updates.len();
        let mut first_of: BTreeMap<String, Id> = BTreeMap::new();
        for (time, id) in updates {
            if count <= MAX_UPDATE_MANAGERS {
                break;
            }
            let version = id.version.clone();
            let Some(first) = first_of.get(&version) else {
                first_of.insert(version, id);
                continue;
            };
            let bucket = Id::new(OLD_UPDATES, UPDATE, &version, "");
            if !self.entries.contains_key(&bucket)
                && let Some(entry) = self.entries.remove(first)
            {
                self.entries.insert(bucket.clone(), entry);
            }
            let merged = self.entries.remove(&id).map(|e| e.set).unwrap_or_default();
            if let Some(entry) = self.entries.get_mut(&bucket) {
                entry.set = entry.set.union(&merged);
                entry.time = time;
            }
            count -= 1;
        }
    }
}

fn without(mut changes: Comparison, ignored: &FieldSet) -> Comparison {
    for set in [&mut changes.added, &mut changes.modified, &mut changes.removed] {
        set.strip(ignored);
    }
    changes
}

static UNOWNED: LazyLock<FieldSet> = LazyLock::new(|| {
    let mut set = FieldSet::of(&[&["apiVersion"], &["kind"], &["metadata"]]);
    for name in UNOWNED_METADATA {
        set.insert(&[PathElement::Field("metadata".into()), PathElement::Field((*name).into())]);
    }
    set
});

fn encode_entry(id: &Id, entry: &Entry) -> Value {
    let mut map = Map::new();
    map.insert("manager".into(), id.manager.as_str().into());
    map.insert("operation".into(), id.operation.into());
    map.insert("apiVersion".into(), entry.version.as_str().into());
    if let Some(time) = entry.written_time(id) {
        map.insert("time".into(), time.into());
    }
    map.insert("fieldsType".into(), "FieldsV1".into());
    map.insert("fieldsV1".into(), entry.set.to_v1());
    if !id.subresource.is_empty() {
        map.insert("subresource".into(), id.subresource.as_str().into());
    }
    Value::Object(map)
}
