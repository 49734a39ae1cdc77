//! Strategic merge patches: merge patches that know which lists are merged and by which key. A list's directives are
//! `$patch` (delete, replace, merge) in its items, `$setElementOrder/<field>`, `$deleteFromPrimitiveList/<field>` and
//! `$retainKeys` beside it.
//!
//! Where there is nothing to merge with, only what bears `$patch` is taken out: other directives stay, and are told as
//! unknown fields later.

use serde_json::{Map, Value};

use crate::fields;
use crate::schema::{Definition, Field, PatchStrategy, Type, definition};
use crate::status::Status;

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder";
const DELETE_VALUES: &str = "$deleteFromPrimitiveList";

/// Applies a patch to an object of a type; of a free-form one if the type is unknown.
pub fn apply(kind: Option<&Definition>, target: &mut Value, patch: &Value) -> Result<(), Status> {
    let Value::Object(patch) = patch else {
        return Err(Status::bad_request("a strategic merge patch is an object"));
    };
    let original = target.as_object().cloned().unwrap_or_default();
    *target = Value::Object(merge_maps(kind.map_or(Shape::Unknown, Shape::Object), original, patch.clone())?);
    Ok(())
}

fn bad(what: &str) -> Status {
    Status::bad_request(format!("invalid patch format of {what}"))
}

/// What is known of the type of a value that a patch opens.
#[derive(Clone, Copy)]
enum Shape<'a> {
    /// Nothing: anything may be in it.
    Unknown,
    /// An object type.
    Object(&'a Definition),
    /// A type of this name whose JSON is not that of its fields, so that nothing in it is found.
    Opaque(&'a str),
    /// A map, in which nothing is opened.
    Map,
}

/// What is below a field, and how that is merged.
struct Below<'a> {
    shape: Shape<'a>,
    list: PatchStrategy,
    replaced: bool,
}

impl<'a> Shape<'a> {
    /// The field of a key, which counts without its case if there is no other.
    fn field(self, key: &str) -> Result<Option<&'a Field>, Status> {
        let unknown = |name: &str| {
            Status::unknown(format!("unable to find api field in struct {name} for the json field {key:?}"))
        };
        match self {
            Self::Unknown => Ok(None),
            Self::Map => {
                let why = "merging an object in json but data type is not struct, instead is: map";
                Err(Status::unknown(why))
            }
            Self::Opaque(name) => Err(unknown(name)),
            Self::Object(kind) => {
                let folded = || kind.fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, f)| f);
                kind.fields.get(key).or_else(folded).map(Some).ok_or_else(|| unknown(kind.name))
            }
        }
    }

    /// What is below a field that holds a list, or anything else.
    fn below(self, key: &str, is_list: bool) -> Result<Below<'a>, Status> {
        let Some(field) = self.field(key)? else {
            return Ok(Below { shape: Self::Unknown, list: PatchStrategy::Replace, replaced: false });
        };
        let inner = match &field.kind {
            Type::List(item) => item,
            _ if is_list => return Err(Status::unknown("expected slice or array type, but got: struct")),
            other => other,
        };
        let shape = match inner {
            Type::Object(path) => definition(path).map_or(Self::Unknown, Shape::Object),
            Type::Map(_) => Self::Map,
            Type::Any if !field.any.is_empty() => Self::Opaque(field.any.rsplit('.').next().unwrap_or_default()),
            Type::List(_) => return Err(Status::unknown("unexpected slice of slice")),
            _ => Self::Unknown,
        };
        Ok(Below { shape, list: field.patch, replaced: field.replaced })
    }
}

fn merge_maps(
    shape: Shape<'_>,
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
) -> Result<Map<String, Value>, Status> {
    match patch.get(DIRECTIVE).map(|directive| (directive.as_str(), directive.clone())) {
        None => {}
        Some((Some("replace"), _)) => {
            patch.remove(DIRECTIVE);
            return Ok(patch);
        }
        Some((Some("delete"), _)) => return Ok(Map::new()),
        Some((_, directive)) => return Err(unknown_directive(&directive, &patch)),
    }
    retain_keys(&mut original, &mut patch)?;
    set_orders(shape, &mut original, &mut patch)?;
    for (key, value) in patch {
        let (key, deletes) = match key.strip_prefix(DELETE_VALUES) {
            Some(field) => (field.strip_prefix('/').ok_or_else(|| bad("primitive list"))?.to_owned(), true),
            None => (key, false),
        };
        let old = original.remove(&key);
        if value.is_null() {
            continue;
        }
        if let Some(merged) = merge_values(shape, &key, old, value, deletes)? {
            original.insert(key, merged);
        }
    }
    Ok(original)
}

/// What becomes of a field that a patch names: `None` if it goes.
fn merge_values(
    shape: Shape<'_>,
    key: &str,
    old: Option<Value>,
    new: Value,
    deletes: bool,
) -> Result<Option<Value>, Status> {
    match (old, new) {
        (Some(Value::Object(old)), Value::Object(new)) => {
            let below = shape.below(key, false)?;
            let merged = if below.replaced { new } else { merge_maps(below.shape, old, new)? };
            Ok(Some(Value::Object(merged)))
        }
        (Some(Value::Array(old)), Value::Array(new)) => {
            Ok(Some(Value::Array(merge_field(&shape.below(key, true)?, old, new, deletes)?)))
        }
        (old, _) if deletes => Ok(old),
        (_, mut new) => {
            discard_nulls(&mut new);
            Ok(without_directives(new))
        }
    }
}

fn merge_field(below: &Below<'_>, old: Vec<Value>, new: Vec<Value>, deletes: bool) -> Result<Vec<Value>, Status> {
    if below.list == PatchStrategy::Replace && !deletes {
        // As it is: directives mean nothing there, and are told as unknown fields.
        return Ok(new);
    }
    let Some(first) = alike(&old, &new)? else { return Ok(old) };
    if !first.is_object() {
        if deletes {
            return Ok(old.into_iter().filter(|item| !new.contains(item)).collect());
        }
        return unite(old, new, below.list);
    }
    match below.list {
        PatchStrategy::MergeBy(by) => merge_items(below.shape, by, old, new),
        _ => Err(Status::unknown("cannot merge lists without merge key for struct")),
    }
}

/// Lists that are merged have items of one type, which is no list. Gives the first item, if there is one.
fn alike(old: &[Value], new: &[Value]) -> Result<Option<Value>, Status> {
    let mut items = old.iter().chain(new);
    let Some(first) = items.next() else { return Ok(None) };
    if first.is_array() {
        return Err(Status::unfit_patch());
    }
    if items.any(|item| go_type(item) != go_type(first)) {
        let lists = [old, new].map(|list| go_value(&Value::Array(list.to_vec())));
        return Err(Status::unknown(format!("list element types are not identical: [{}]", lists.join(" "))));
    }
    Ok(Some(first.clone()))
}

/// The name of a value's type in Go, as it is printed where a type is wanted.
fn go_type(value: &Value) -> &'static str {
    if value.is_null() { "%!s(<nil>)" } else { fields::go_type(value) }
}

/// The refusal of a value where a list belongs.
fn no_list(value: &Value) -> Status {
    Status::unknown(format!("expected a []interface {{}}, but received a {}", go_type(value)))
}

/// The refusal of a value where an object belongs.
fn no_map(value: &Value) -> Status {
    Status::unknown(format!("expected a map[string]interface {{}}, but received a {}", go_type(value)))
}

fn no_key(item: &Value, by: &str) -> Status {
    Status::unknown(format!("map: {} does not contain declared merge key: {by}", go_value(item)))
}

fn unknown_directive(directive: &Value, map: &Map<String, Value>) -> Status {
    let shown = go_value(&Value::Object(map.clone()));
    Status::unknown(format!("unknown patch type: {} in map: {shown}", go_value(directive)))
}

/// Keys of the original that the patch does not retain go.
fn retain_keys(original: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), Status> {
    let Some(keys) = patch.remove(RETAIN) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(bad("retainKeys")) };
    let kept = |key: &str| keys.iter().any(|k| k == key);
    // What the patch sets it must retain.
    let is_directive = |key: &str| key.starts_with(DELETE_VALUES) || key.starts_with(ORDER);
    if patch.iter().any(|(key, value)| !value.is_null() && !is_directive(key) && !kept(key)) {
        return Err(bad("retainKeys"));
    }
    original.retain(|key, _| kept(key));
    Ok(())
}

/// Lists whose order the patch says, merged and sorted.
fn set_orders(
    shape: Shape<'_>,
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
) -> Result<(), Status> {
    let orders: Vec<String> = patch.keys().filter(|key| key.starts_with(ORDER)).cloned().collect();
    for key in orders {
        let order = match patch.remove(&key) {
            Some(Value::Array(order)) => order,
            other => return Err(no_list(&other.unwrap_or_default())),
        };
        let field = key.strip_prefix(ORDER).and_then(|rest| rest.strip_prefix('/'));
        let field = field.ok_or_else(|| bad("setElementOrder list"))?.to_owned();
        let list = |value: Option<Value>| match value {
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(no_list(&other)),
            None => Ok(None),
        };
        let before = list(original.get(&field).cloned())?;
        let changes = list(patch.remove(&field))?;
        let below = shape.below(&field, true)?;
        let by = match below.list {
            PatchStrategy::MergeBy(by) => by,
            _ => "",
        };
        check_order(changes.as_deref().unwrap_or_default(), &order, by)?;
        let first = alike(before.as_deref().unwrap_or_default(), changes.as_deref().unwrap_or_default());
        let merged = match (before.clone(), changes) {
            (None, None) => continue,
            (Some(list), None) => list,
            (None, Some(new)) => new.into_iter().filter_map(without_directives).collect(),
            (Some(old), Some(new)) => merge_field(&below, old, new, false)?,
        };
        let (named, others) = divided(merged, &order, by)?;
        if first?.is_none() {
            return Err(Status::unknown("no elements in any of the given slices"));
        }
        original.insert(field, Value::Array(in_order(named, others, &order, &before.unwrap_or_default(), by)?));
    }
    Ok(())
}

/// What a patch changes stands in its order list, in the same order.
fn check_order(changes: &[Value], order: &[Value], by: &str) -> Result<(), Status> {
    if order.is_empty() || changes.is_empty() {
        return Ok(());
    }
    let mut kept = Vec::with_capacity(changes.len());
    for item in changes {
        if !by.is_empty() && !item.is_object() {
            return Err(no_map(item));
        }
        if by.is_empty() || item.get(DIRECTIVE).is_none_or(|directive| directive != "delete") {
            kept.push(item);
        }
    }
    let mut kept = kept.into_iter().peekable();
    for place in order {
        while kept.next_if(|item| item.get(DIRECTIVE).is_some()).is_some() {}
        let Some(item) = kept.peek() else { return Ok(()) };
        if is_same(item, place, by)? {
            kept.next();
        }
    }
    if kept.peek().is_none() {
        return Ok(());
    }
    Err(Status::unknown(format!(
        "The order in patch list:\n{}\n doesn't match {ORDER} list:\n{}\n",
        go_value(&Value::Array(changes.to_vec())),
        go_value(&Value::Array(order.to_vec()))
    )))
}

/// Whether two items are the same one: by its key, or by its value.
fn is_same(left: &Value, right: &Value, by: &str) -> Result<bool, Status> {
    if by.is_empty() {
        return Ok(left == right);
    }
    let mut keys = Vec::with_capacity(2);
    for item in [left, right] {
        if !item.is_object() {
            return Err(no_map(item));
        }
        keys.push(item.get(by).ok_or_else(|| no_key(item, by))?);
    }
    Ok(keys[0] == keys[1])
}

/// Where an item is in a list: by its key, or by its value.
fn position(list: &[Value], item: &Value, by: &str) -> Option<usize> {
    list.iter().position(|other| {
        if by.is_empty() { other == item } else { other.get(by).is_some_and(|key| Some(key) == item.get(by)) }
    })
}

/// Items that are in a list, and those that are not.
fn divided(items: Vec<Value>, list: &[Value], by: &str) -> Result<(Vec<Value>, Vec<Value>), Status> {
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for item in items {
        if !by.is_empty() {
            if !item.is_object() {
                return Err(no_map(&item));
            }
            if item.get(by).is_none() {
                return Err(no_key(&item, by));
            }
            if let Some(odd) = list.iter().position(|place| !place.is_object()) {
                return Err(Status::unknown(format!("value for key {odd} is not a map")));
            }
        }
        if position(list, &item, by).is_some() { named.push(item) } else { others.push(item) }
    }
    Ok((named, others))
}

/// Items that the patch names in its order, among the others in the original's order; where both lists know two items, the
/// original's order counts.
fn in_order(
    mut named: Vec<Value>,
    mut others: Vec<Value>,
    order: &[Value],
    before: &[Value],
    by: &str,
) -> Result<Vec<Value>, Status> {
    if !by.is_empty()
        && let Some(item) = order.iter().chain(before).find(|item| item.get(by).is_none())
    {
        return Err(if item.is_object() { no_key(item, by) } else { no_map(item) });
    }
    named.sort_by_key(|item| position(order, item, by).unwrap_or(usize::MAX));
    others.sort_by_key(|item| position(before, item, by).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let take_other = match (named.peek(), others.peek()) {
            (None, None) => return Ok(out),
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (Some(named), Some(other)) => {
                matches!((position(before, other, by), position(before, named, by)), (Some(o), Some(n)) if o < n)
            }
        };
        out.extend(if take_other { others.next() } else { named.next() });
    }
}

/// Plain values of both lists, each once.
fn unite(old: Vec<Value>, new: Vec<Value>, strategy: PatchStrategy) -> Result<Vec<Value>, Status> {
    let mut merged: Vec<Value> = Vec::new();
    for item in old.iter().chain(&new) {
        if !merged.contains(item) {
            merged.push(item.clone());
        }
    }
    let by = if let PatchStrategy::MergeBy(by) = strategy { by } else { "" };
    let (named, others) = divided(merged, &new, by)?;
    in_order(named, others, &new, &old, by)
}

fn merge_items(shape: Shape<'_>, by: &str, old: Vec<Value>, new: Vec<Value>) -> Result<Vec<Value>, Status> {
    let (mut list, mut changes, mut replace) = (old, Vec::new(), false);
    for item in new {
        match item.get(DIRECTIVE) {
            None => changes.push(item),
            Some(directive) => match directive.as_str() {
                Some("replace") => replace = true,
                Some("delete") => {
                    let key = item.get(by).ok_or_else(|| no_key(&item, by))?;
                    list.retain(|other| other.get(by) != Some(key));
                }
                Some("merge") => return Err(Status::unknown("merging lists cannot yet be specified in the patch")),
                _ => {
                    let map = item.as_object().cloned().unwrap_or_default();
                    return Err(unknown_directive(directive, &map));
                }
            },
        }
    }
    if replace {
        list = std::mem::take(&mut changes);
    }
    let (before, order) = (list.clone(), changes.clone());
    for item in changes {
        let key = item.get(by).ok_or_else(|| no_key(&item, by))?;
        match (list.iter().position(|other| other.get(by) == Some(key)), item) {
            (Some(at), Value::Object(map)) => {
                let existing = list[at].as_object().cloned().unwrap_or_default();
                list[at] = Value::Object(merge_maps(shape, existing, map)?);
            }
            (_, item) => list.push(item),
        }
    }
    let (named, others) = divided(list, &order, by)?;
    in_order(named, others, &order, &before, by)
}

/// Takes out the fields that are null, however deep.
fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(discard_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}

/// A value without the objects that bear a directive, `None` if it is such a one itself.
fn without_directives(value: Value) -> Option<Value> {
    Some(match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => return None,
        Value::Object(map) => {
            let kept = map.into_iter().filter_map(|(key, value)| Some((key, without_directives(value)?)));
            Value::Object(kept.collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().filter_map(without_directives).collect()),
        other => other,
    })
}

/// A value as Go's `%v` writes it.
pub fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(go_value).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let fields: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go_value(v))).collect();
            format!("map[{}]", fields.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::of_kind;
    use serde_json::json;

    fn patched(base: &Value, patch: Value) -> Result<Value, Status> {
        let mut object = base.clone();
        apply(of_kind("", "v1", "Pod"), &mut object, &patch).map(|()| object)
    }

    #[test]
    fn lists_are_merged_by_their_keys() {
        let base = json!({"metadata": {"finalizers": ["f"]}, "spec": {"nodeSelector": {"a": "1"}, "tolerations": [{"key": "k"}],
            "containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}});
        for (what, patch, path, expected) in [
            (
                "an item is merged",
                json!({"spec": {"containers": [{"name": "a", "image": "2"}]}}),
                "/spec/containers/0/env/0/value",
                json!("1"),
            ),
            (
                "new items come first",
                json!({"spec": {"containers": [{"name": "c"}]}}),
                "/spec/containers/0",
                json!({"name": "c"}),
            ),
            (
                "an item is deleted",
                json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
                "/spec/containers",
                json!([{"name": "b"}]),
            ),
            (
                "a list is replaced",
                json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
                "/spec/containers",
                json!([{"name": "z"}]),
            ),
            ("null deletes", json!({"spec": {"nodeSelector": {"a": null}}}), "/spec/nodeSelector", json!({})),
            (
                "a map is replaced",
                json!({"spec": {"nodeSelector": {"$patch": "replace", "n": "2"}}}),
                "/spec/nodeSelector",
                json!({"n": "2"}),
            ),
            (
                "plain values are united",
                json!({"metadata": {"finalizers": ["g"]}}),
                "/metadata/finalizers",
                json!(["g", "f"]),
            ),
            (
                "values are taken out",
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["f"]}}),
                "/metadata/finalizers",
                json!([]),
            ),
            (
                "the order is set",
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
                "/spec/containers/0/name",
                json!("b"),
            ),
            (
                "keys are retained",
                json!({"spec": {"$retainKeys": ["tolerations"]}}),
                "/spec",
                json!({"tolerations": [{"key": "k"}]}),
            ),
        ] {
            assert_eq!(patched(&base, patch).unwrap().pointer(path), Some(&expected), "{what}");
        }
    }

    #[test]
    fn atomic_lists_are_taken_as_they_are() {
        let base = json!({"spec": {"tolerations": [{"key": "k"}]}});
        // Directives mean nothing in them.
        for list in [json!([{"key": "n"}]), json!([{"$patch": "replace"}])] {
            let patch = json!({"spec": {"tolerations": list}});
            assert_eq!(patched(&base, patch).unwrap().pointer("/spec/tolerations"), Some(&list));
        }
    }

    #[test]
    fn only_patched_objects_lose_their_directives() {
        let base = json!({"spec": {"containers": [{"name": "a"}]}});
        for (patch, path, expected) in [
            // Nothing to merge with: what bears a directive goes, the rest of them stays.
            (
                json!({"spec": {"affinity": {"nodeAffinity": {"$patch": "delete"}, "podAffinity": {"x": null, "y": 1}}}}),
                "/spec/affinity",
                json!({"podAffinity": {"y": 1}}),
            ),
            (
                json!({"spec": {"dnsConfig": {"$patch": "replace", "nameservers": ["x"]}}}),
                "/spec/dnsConfig",
                Value::Null,
            ),
            (
                json!({"spec": {"dnsConfig": {"$setElementOrder/options": []}}}),
                "/spec/dnsConfig",
                json!({"$setElementOrder/options": []}),
            ),
            (
                json!({"spec": {"tolerations": [{"key": "k", "$patch": "explode"}, {"key": "l"}]}}),
                "/spec/tolerations",
                json!([{"key": "l"}]),
            ),
            // A new item of a merged list is taken as it is.
            (
                json!({"spec": {"containers": [{"name": "n", "image": null, "$retainKeys": ["name"]}]}}),
                "/spec/containers/0",
                json!({"name": "n", "image": null, "$retainKeys": ["name"]}),
            ),
        ] {
            let patched = patched(&base, patch.clone()).unwrap();
            assert_eq!(patched.pointer(path).unwrap_or(&Value::Null), &expected, "{patch}");
        }
    }

    #[test]
    fn what_is_said_to_be_replaced_is_not_merged() {
        let mut budget = json!({"spec": {"selector": {"matchLabels": {"a": "b"}, "matchExpressions": []}}});
        let selector = json!({"matchLabels": {"c": "d"}});
        apply(of_kind("policy", "v1", "PodDisruptionBudget"), &mut budget, &json!({"spec": {"selector": selector}}))
            .unwrap();
        assert_eq!(budget["spec"]["selector"], selector);
    }

    #[test]
    fn nothing_in_opaque_types_is_merged() {
        let base = json!({"data": {"spec": {"a": 1}, "b": 1, "list": [1]}});
        for (patch, told) in [
            (json!({"data": {"b": 2, "c": {"d": 1}}}), None),
            (
                json!({"data": {"spec": {"a": 2}}}),
                Some("unable to find api field in struct RawExtension for the json field \"spec\""),
            ),
            (
                json!({"data": {"list": []}}),
                Some("unable to find api field in struct RawExtension for the json field \"list\""),
            ),
        ] {
            let told_now = apply(of_kind("apps", "v1", "ControllerRevision"), &mut base.clone(), &patch);
            assert_eq!(told_now.err().map(|status| status.message).as_deref(), told, "{patch}");
        }
    }

    #[test]
    fn bad_patches_are_told() {
        let base = json!({"metadata": {"finalizers": ["f"]}, "spec": {"containers": [{"name": "a"}]}});
        for (patch, message) in [
            (
                json!({"spec": {"containers": [{"image": "x"}]}}),
                "map: map[image:x] does not contain declared merge key: name",
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "$patch": "explode"}]}}),
                "unknown patch type: explode in map: map[$patch:explode name:a]",
            ),
            (json!({"spec": {"$retainKeys": ["a"], "nodeName": "n"}}), "invalid patch format of retainKeys"),
            (json!({"spec": {"containers": ["x"]}}), "list element types are not identical: [[map[name:a]] [x]]"),
            (json!({"spec": {"containers": [null]}}), "list element types are not identical: [[map[name:a]] [<nil>]]"),
            (json!({"metadata": {"finalizers": [1]}}), "list element types are not identical: [[f] [1]]"),
            (json!({"spec": {"$setElementOrder/containers": "a"}}), "expected a []interface {}, but received a string"),
            (json!({"spec": {"$setElementOrder/containers": ["a"]}}), "value for key 0 is not a map"),
            (
                json!({"spec": {"$setElementOrder/containers": ["a"], "containers": [{"name": "a"}]}}),
                "expected a map[string]interface {}, but received a string",
            ),
            (
                json!({"spec": {"$setElementOrder/containers": [{}]}}),
                "map: map[] does not contain declared merge key: name",
            ),
            (json!({"spec": {"$setElementOrder": [{}]}}), "invalid patch format of setElementOrder list"),
            (json!({"spec": {"$deleteFromPrimitiveList": [{}]}}), "invalid patch format of primitive list"),
            (
                json!({"spec": {"$setElementOrder/nope": [1]}}),
                "unable to find api field in struct PodSpec for the json field \"nope\"",
            ),
            (
                json!({"spec": {"containers": [{"$patch": "replace"}, {"image": "x"}]}}),
                "map: map[image:x] does not contain declared merge key: name",
            ),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "c", "$patch": "delete"}, {"name": "a"}]}}),
                "The order in patch list:\n[map[$patch:delete name:c] map[name:a]]\n doesn't match $setElementOrder list:\n[map[name:b]]\n",
            ),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": {"name": "a"}}}),
                "expected a []interface {}, but received a map[string]interface {}",
            ),
        ] {
            assert_eq!(patched(&base, patch).unwrap_err().message, message);
        }
    }
}
