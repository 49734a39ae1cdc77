//! Objects in the store: reading them from this member's replica and writing them in one transaction each.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use keelson_client::Fence;
use keelson_machinery::conversion;
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::resources;
use keelson_machinery::status::Status;
use keelson_machinery::stored;
use keelson_store::{Compare, DeleteRequest, KeyRange, KeyValue, Kv, KvError, Op, PutRequest, Revision, Txn};
use serde_json::Value;

use crate::encryption;
use crate::request::ResourceRequest;

/// Reads and writes objects.
#[derive(Clone)]
pub struct Objects {
    /// The store.
    pub kv: Arc<dyn Kv>,
}

/// What a write did not do because a guard failed.
#[derive(Debug)]
pub enum WriteError {
    /// The object is not as it was when it was read.
    Changed,
    /// Anything else, as the client sees it.
    Status(Status),
}

impl From<Status> for WriteError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// An object that must be there before another is written, and that somebody else may have written.
pub struct First {
    /// Its key.
    pub key: Bytes,
    /// Its stored form.
    pub value: Bytes,
    /// The refusal if the key is taken.
    pub taken: Status,
}

/// Reason of a guard's refusal that has the caller begin anew.
pub const RACE: &str = "AllocationRace";

/// Further parts of a write's transaction.
#[derive(Default)]
pub struct Extra {
    /// Written before, at a revision of their own; taken back if the write is refused.
    pub first: Vec<First>,
    /// Further guards: if one of these fails the write is refused with the Status beside it.
    pub guards: Vec<(Compare, Status)>,
    /// Further operations.
    pub ops: Vec<Op>,
    /// Lease to attach the object to.
    pub lease: i64,
}

impl Objects {
    /// Store key of an object.
    pub fn key(def: &ResourceDef, namespace: &str, name: &str) -> Bytes {
        def.key(namespace, name).into()
    }

    /// The range of all objects of a row, or of one namespace.
    pub fn range(def: &ResourceDef, namespace: &str) -> KeyRange {
        KeyRange::prefix(Self::prefix(def, namespace))
    }

    /// What the keys of a collection begin with.
    pub fn prefix(def: &ResourceDef, namespace: &str) -> String {
        if namespace.is_empty() { def.prefix() } else { format!("{}{namespace}/", def.prefix()) }
    }

    /// The stored form of an object on this member.
    pub fn find(&self, def: &ResourceDef, namespace: &str, name: &str) -> Option<Arc<KeyValue>> {
        self.kv.view().get(&Self::key(def, namespace, name)).cloned()
    }

    /// Refuses a new object with the reason [`RACE`] if its namespace has changed since this was asked for: nothing comes
    /// into one whose end began, or came, after admission looked at it.
    pub fn namespace_guard(&self, request: &ResourceRequest) -> Option<(Compare, Status)> {
        let def = resources::find("", "v1", "namespaces").filter(|_| request.def.scope == Scope::Namespaced)?;
        let found = self.find(def, "", &request.namespace)?;
        // What is told if that happens again and again is put into words by who gives up.
        let race = Status { reason: RACE.into(), ..Status::default() };
        Some((Compare::mod_revision(found.key.clone(), found.mod_revision), race))
    }

    /// An object, parsed, with its revision.
    pub fn get(&self, def: &ResourceDef, namespace: &str, name: &str) -> Result<Option<(Value, Revision)>, Status> {
        self.find(def, namespace, name)
            .map(|kv| Ok((conversion::from_stored(def, parse(&kv)?), kv.mod_revision)))
            .transpose()
    }

    /// All objects of a row (of one namespace, if one is named), parsed.
    pub fn list(&self, def: &ResourceDef, namespace: &str) -> Result<Vec<Value>, Status> {
        self.kv.view().range(&Self::range(def, namespace)).map(|kv| parse(kv)).collect()
    }

    /// An object by group, version and plural; `None` also for a value that cannot be read (it is logged).
    pub fn object(&self, group: &str, version: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let kv = self.find(resources::find(group, version, plural)?, namespace, name)?;
        readable(&kv)
    }

    /// All objects of a row (of one namespace, if one is named) that can be read.
    pub fn all(&self, def: &ResourceDef, namespace: &str) -> Vec<Value> {
        self.kv.view().range(&Self::range(def, namespace)).filter_map(|kv| readable(kv)).collect()
    }

    /// Writes an object if its key was last changed at `expected` (0: if it does not exist). Returns the new revision.
    pub async fn put(
        &self,
        def: &ResourceDef,
        object: &Value,
        expected: Revision,
        fence: Option<&Fence>,
        extra: Extra,
    ) -> Result<Revision, WriteError> {
        let key = key_of(def, object);
        let row = conversion::stored_row(def).unwrap_or(def);
        let value =
            stored::encode(row, &conversion::to_stored(def, object)).map_err(|e| Status::internal(&e.to_string()))?;
        let value = encryption::seal(def, &key, value)?;
        let put = Op::Put(PutRequest { lease: extra.lease, ..PutRequest::new(key.clone(), value) });
        self.write(key, expected, put, fence, extra).await
    }

    /// Deletes an object if its key was last changed at `expected`. Returns the revision of the deletion.
    pub async fn delete(
        &self,
        def: &ResourceDef,
        object: &Value,
        expected: Revision,
        fence: Option<&Fence>,
        extra: Extra,
    ) -> Result<Revision, WriteError> {
        let key = key_of(def, object);
        let delete = Op::Delete(DeleteRequest { range: KeyRange::Key(key.clone()), prev_kv: false });
        self.write(key, expected, delete, fence, extra).await
    }

    async fn write(
        &self,
        key: Bytes,
        expected: Revision,
        op: Op,
        fence: Option<&Fence>,
        extra: Extra,
    ) -> Result<Revision, WriteError> {
        let before = self.write_first(&extra.first, fence).await?;
        let mut compare = vec![Compare::mod_revision(key.clone(), expected)];
        compare.extend(fence.map(|f| Compare::create_revision(f.key.clone(), f.create_revision)));
        compare.extend(extra.guards.iter().map(|(guard, _)| guard.clone()));
        let mut success = vec![op];
        success.extend(extra.ops);
        let started = Instant::now();
        let response = self.kv.txn(Txn { compare, success, failure: vec![] }).await.map_err(status_of)?;
        crate::metrics::STORE_WRITES.took(started.elapsed());
        if response.succeeded {
            return Ok(response.revision);
        }
        self.take_back(extra.first, before).await;
        let view = self.kv.view();
        if let Some(fence) = fence
            && view.get(&fence.key).map_or(0, |kv| kv.create_revision) != fence.create_revision
        {
            let why = "the leader lease of the writer is lost";
            return Err(Status::conflict("", "leases", &String::from_utf8_lossy(&fence.key), why).into());
        }
        if view.get(&key).map_or(0, |kv| kv.mod_revision) != expected {
            return Err(WriteError::Changed);
        }
        Err(extra.guards.into_iter().next().map_or(WriteError::Changed, |(_, status)| status.into()))
    }
}

impl Objects {
    /// Writes what must be there before, all or nothing. Returns the revision.
    async fn write_first(&self, first: &[First], fence: Option<&Fence>) -> Result<Revision, WriteError> {
        let Some(one) = first.first() else { return Ok(0) };
        let mut compare: Vec<Compare> = first.iter().map(|one| Compare::create_revision(one.key.clone(), 0)).collect();
        compare.extend(fence.map(|f| Compare::create_revision(f.key.clone(), f.create_revision)));
        let puts = first.iter().map(|one| Op::Put(PutRequest::new(one.key.clone(), one.value.clone())));
        let txn = Txn { compare, success: puts.collect(), failure: vec![] };
        let response = self.kv.txn(txn).await.map_err(status_of)?;
        if response.succeeded { Ok(response.revision) } else { Err(one.taken.clone().into()) }
    }

    /// Deletes what was written before a write that was refused. What stays because the store is away is found by the
    /// repair of addresses.
    async fn take_back(&self, first: Vec<First>, revision: Revision) {
        if first.is_empty() {
            return;
        }
        let compare = first.iter().map(|one| Compare::mod_revision(one.key.clone(), revision)).collect();
        let delete = |one: First| Op::Delete(DeleteRequest { range: KeyRange::Key(one.key), prev_kv: false });
        let txn = Txn { compare, success: first.into_iter().map(delete).collect(), failure: vec![] };
        if let Err(error) = self.kv.txn(txn).await {
            tracing::info!(%error, "what was written for a refused write stays for now");
        }
    }
}

fn key_of(def: &ResourceDef, object: &Value) -> Bytes {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    Objects::key(def, text("namespace"), text("name"))
}

/// Parses a stored object; its resource version is the key's revision.
pub fn parse(kv: &KeyValue) -> Result<Value, Status> {
    encryption::stored(kv)?
        .to_value(kv.mod_revision)
        .map_err(|e| Status::internal(&format!("{}: {e}", String::from_utf8_lossy(&kv.key))))
}

fn readable(kv: &KeyValue) -> Option<Value> {
    parse(kv).inspect_err(|status| tracing::error!(error = status.message, "an object cannot be read")).ok()
}

/// What the client sees of the store's refusals.
pub fn status_of(error: KvError) -> Status {
    match error {
        KvError::Compacted(_) => Status::expired("The provided resource version is too old."),
        KvError::FutureRevision => Status::timeout("Too large resource version"),
        KvError::Overloaded => {
            Status::too_many_requests("the store has too many requests under way, please try again later", 1)
        }
        KvError::TooLarge | KvError::TooManyOps => Status::too_large("etcdserver: request is too large"),
        KvError::Unavailable(why) => {
            Status::unavailable(format!("the store has no leader right now ({why}), please try again"))
        }
        other => Status::internal(&other.to_string()),
    }
}
