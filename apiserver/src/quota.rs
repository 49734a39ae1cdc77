//! ResourceQuota: what a namespace may hold, counted in the transaction that writes the object.
//!
//! Invariant: an object and the usage that it adds are written together, guarded by the revision of each quota that was
//! looked at; so a quota is never exceeded, however many writers there are.

use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use keelson_machinery::pod_resources::{Amounts, add, amounts};
use keelson_machinery::quantity::Quantity;
use keelson_machinery::quota as usage;
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::resources::find;
use keelson_machinery::status::Status;
use keelson_machinery::stored;
use keelson_store::{Compare, Op, PutRequest};
use serde_json::Value;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::objects::{Extra, Objects, RACE, parse};

/// Writers of namespaces with quotas take turns in this many queues, so that they do not get in each other's way.
const QUEUES: usize = 64;

/// The queues; none if quotas do not count.
pub struct Turns(Vec<std::sync::Arc<Mutex<()>>>);

impl Turns {
    /// The queues, if quotas count.
    pub fn new(counts: bool) -> Self {
        Self((0..if counts { QUEUES } else { 0 }).map(|_| std::sync::Arc::default()).collect())
    }

    /// [`charge`], if quotas count.
    pub fn charge(
        &self,
        objects: &Objects,
        def: &ResourceDef,
        subresource: &str,
        new: &Value,
        old: Option<&Value>,
        extra: &mut Extra,
    ) -> Result<(), Status> {
        if self.0.is_empty() { Ok(()) } else { charge(objects, def, subresource, new, old, extra) }
    }

    /// Waits for the turn of a writer of a namespace, if it has quotas.
    pub async fn take(&self, objects: &Objects, def: &ResourceDef, namespace: &str) -> Option<OwnedMutexGuard<()>> {
        if self.0.is_empty() || def.scope == Scope::Cluster || quotas(objects, namespace).is_empty() {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        namespace.hash(&mut hasher);
        let queue = &self.0[hasher.finish() as usize % QUEUES];
        Some(queue.clone().lock_owned().await)
    }
}

/// The quotas of a namespace with their revisions.
fn quotas(objects: &Objects, namespace: &str) -> Vec<(Value, i64)> {
    let Some(def) = find("", "v1", "resourcequotas").filter(|_| !namespace.is_empty()) else { return Vec::new() };
    let view = objects.kv.view();
    let range = Objects::range(def, namespace);
    let stored = view.range(&range);
    stored.filter_map(|kv| Some((parse(kv).ok()?, kv.mod_revision))).collect()
}

/// What a write does to what is counted.
enum Counted {
    /// It adds to it, and may not be too much.
    Within,
    /// It adds to it: what is written has been given already.
    Anyway,
}

/// Whether the quotas of a namespace count what is written to an object: as upstream, pods when they are created and resized,
/// services and claims of both sorts whenever they themselves are written, a volume claim's status too, other objects when
/// they are created.
fn counted(def: &ResourceDef, subresource: &str, is_new: bool) -> Option<Counted> {
    if def.scope == Scope::Cluster || !usage::is_counted(def.group, def.plural) {
        return None;
    }
    let within = match (def.group, def.plural, subresource) {
        ("", "persistentvolumeclaims", "status") => return Some(Counted::Anyway),
        ("", "pods", "resize")
        | ("" | "resource.k8s.io", "services" | "persistentvolumeclaims" | "resourceclaims", "") => true,
        (_, _, subresource) => is_new && subresource.is_empty(),
    };
    within.then_some(Counted::Within)
}

/// Adds to a write what the quotas of its namespace need, or refuses it. `old` is the object before an update.
fn charge(
    objects: &Objects,
    def: &ResourceDef,
    subresource: &str,
    new: &Value,
    old: Option<&Value>,
    extra: &mut Extra,
) -> Result<(), Status> {
    let Some(how) = counted(def, subresource, old.is_none()) else { return Ok(()) };
    let namespace = new["metadata"]["namespace"].as_str().unwrap_or_default();
    let list = quotas(objects, namespace);
    let (now, kind) = (Timestamp::now(), (def.group, def.plural));
    let limited: Vec<Limited<'_>> = list.iter().map(Limited::of).filter(|limited| limited.applies(kind, new)).collect();
    if limited.is_empty() {
        return Ok(());
    }
    let refuse = |why: String| {
        Status::forbidden(def.group, def.plural, new["metadata"]["name"].as_str().unwrap_or_default(), &why)
    };
    for limited in &limited {
        limited.is_ready(kind, new).map_err(refuse)?;
    }
    let all = usage::usage(def.group, def.plural, new, now);
    let negative: Vec<&str> =
        all.iter().filter(|(_, amount)| amount.is_negative()).map(|(name, _)| name.as_str()).collect();
    if !negative.is_empty() {
        return Err(refuse(format!("quota usage is negative for resource(s): {}", negative.join(","))));
    }
    let before = old.map(|old| usage::usage(def.group, def.plural, old, now)).unwrap_or_default();
    for limited in limited {
        // What was not counted before adds all that it is now.
        let was = old.is_some_and(|old| limited.applies(kind, old));
        let added = if was { more(&all, &before) } else { all.clone() };
        let Some(counted) = limited.with(&added, matches!(how, Counted::Within)).map_err(refuse)? else { continue };
        limited.write(counted, namespace, extra)?;
    }
    Ok(())
}

/// What is more than before: a quota is given back what is less when it is counted anew.
fn more(now: &Amounts, before: &Amounts) -> Amounts {
    let more =
        |(name, amount): (&String, &Quantity)| (name.clone(), *amount - before.get(name).copied().unwrap_or_default());
    now.iter().map(more).filter(|(_, amount)| !amount.is_negative()).collect()
}

/// A quota with what it limits and what of it is used.
struct Limited<'a> {
    quota: &'a Value,
    revision: i64,
    hard: Amounts,
    used: Amounts,
}

impl<'a> Limited<'a> {
    fn of((quota, revision): &'a (Value, i64)) -> Self {
        let (hard, used) = (amounts(&quota["status"]["hard"]), amounts(&quota["status"]["used"]));
        Self { quota, revision: *revision, hard, used }
    }

    fn name(&self) -> &str {
        self.quota["metadata"]["name"].as_str().unwrap_or_default()
    }

    fn applies(&self, kind: (&str, &str), object: &Value) -> bool {
        usage::applies(self.quota, self.hard.keys().map(String::as_str), kind, object)
    }

    /// Whether the object says what it must, and what is used is known.
    fn is_ready(&self, (group, plural): (&str, &str), new: &Value) -> Result<(), String> {
        let names = self.hard.keys().map(String::as_str).filter(|name| usage::limits(name, group, plural));
        let names: Vec<&str> = names.collect();
        if (group, plural) == ("", "pods")
            && let Some(unsaid) = usage::unsaid(new, names.iter().copied())
        {
            return Err(format!("failed quota: {}: {unsaid}", self.name()));
        }
        if names.iter().any(|name| !self.used.contains_key(*name)) {
            return Err(format!("status unknown for quota: {}, resources: {}", self.name(), names.join(",")));
        }
        Ok(())
    }

    /// What is used then, if something that is limited is added.
    fn with(&self, added: &Amounts, within: bool) -> Result<Option<Amounts>, String> {
        let limited = |(name, amount): &(&String, &Quantity)| !amount.is_zero() && self.hard.contains_key(*name);
        let added: Amounts = added.iter().filter(limited).map(|(name, amount)| (name.clone(), *amount)).collect();
        let mut used = self.used.clone();
        add(&mut used, &added);
        let over: Vec<&String> = added.keys().filter(|name| within && used[*name] > self.hard[*name]).collect();
        if over.is_empty() {
            return Ok((!added.is_empty()).then_some(used));
        }
        let shown = |of: &Amounts| {
            let amount = |name: &&String| format!("{name}={}", of.get(*name).copied().unwrap_or_default());
            over.iter().map(amount).collect::<Vec<_>>().join(",")
        };
        Err(format!(
            "exceeded quota: {}, requested: {}, used: {}, limited: {}",
            self.name(),
            shown(&added),
            shown(&self.used),
            shown(&self.hard)
        ))
    }

    /// Adds the quota with another usage to a write, if it is not changed meanwhile.
    fn write(&self, used: Amounts, namespace: &str, extra: &mut Extra) -> Result<(), Status> {
        let def = find("", "v1", "resourcequotas").ok_or_else(Status::no_such_path)?;
        let mut quota = self.quota.clone();
        for (name, amount) in used {
            quota["status"]["used"][name] = amount.to_string().into();
        }
        let key = Objects::key(def, namespace, self.name());
        let value = stored::encode(def, &quota).map_err(|e| Status::internal(&e.to_string()))?;
        let value = crate::encryption::seal(def, &key, value)?;
        let race = Status {
            reason: RACE.into(),
            ..Status::conflict("", "resourcequotas", self.name(), "it was counted at the same moment")
        };
        extra.guards.push((Compare::mod_revision(key.clone(), self.revision), race));
        extra.ops.push(Op::Put(PutRequest::new(key, value)));
        Ok(())
    }
}
