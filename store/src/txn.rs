//! Transactions as pure functions of the state: checks of form, guards, operations, undo.
//!
//! Invariant: a transaction that fails leaves the state as it was; one that succeeds changes each key at
//! most once, so that (key, revision) names a version.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::limits::{MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_DEPTH, MAX_TXN_OPS, MAX_VALUE_BYTES};
use crate::record::join;
use crate::view::State;
use crate::{
    Compare, CompareOp, CompareTarget, DeleteRequest, KeyRange, KeyValue, KvError, Op, OpResponse, PutRequest,
    RangeRequest, RangeResponse, Revision, Txn, TxnResponse, View,
};

/// One key's change in a revision.
pub(crate) struct Change {
    pub key: Bytes,
    pub old: Option<Arc<KeyValue>>,
    pub new: Option<Arc<KeyValue>>,
}

/// Checks what can be told without looking at the state: empty keys, duplicates, limits.
pub fn check(txn: &Txn) -> Result<(), KvError> {
    Form::default().txn(txn, 1)?;
    if txn.size_bytes() > MAX_TXN_BYTES {
        return Err(KvError::TooLarge);
    }
    for branch in [&txn.success, &txn.failure] {
        // One operation does not meet another one.
        if !matches!(branch[..], [] | [Op::Range(_) | Op::Put(_) | Op::Delete(_)]) {
            Written::default().branch(branch)?;
        }
    }
    Ok(())
}

/// Whether a transaction reads a named revision somewhere.
pub(crate) fn reads_history(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        Op::Range(request) => request.revision > 0,
        Op::Txn(inner) => reads_history(inner),
        Op::Put(_) | Op::Delete(_) => false,
    })
}

/// Counts operations and checks each one's form.
#[derive(Default)]
struct Form {
    ops: usize,
}

impl Form {
    fn txn(&mut self, txn: &Txn, depth: usize) -> Result<(), KvError> {
        self.ops += txn.compare.len() + txn.success.len() + txn.failure.len();
        if depth > MAX_TXN_DEPTH || self.ops > MAX_TXN_OPS {
            return Err(KvError::TooManyOps);
        }
        for compare in &txn.compare {
            check_range(&compare.range)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                Op::Range(request) => check_range(&request.range)?,
                Op::Delete(request) => check_range(&request.range)?,
                Op::Put(request) => check_put(request)?,
                Op::Txn(inner) => self.txn(inner, depth + 1)?,
            }
        }
        Ok(())
    }
}

fn check_put(put: &PutRequest) -> Result<(), KvError> {
    if put.key.is_empty() {
        return Err(KvError::EmptyKey);
    }
    if put.key.len() > MAX_KEY_BYTES || put.value.len() > MAX_VALUE_BYTES {
        return Err(KvError::TooLarge);
    }
    Ok(())
}

fn check_range(range: &KeyRange) -> Result<(), KvError> {
    match range {
        KeyRange::Key(key) if key.is_empty() => Err(KvError::EmptyKey),
        _ => Ok(()),
    }
}

/// The keys and intervals that one way through a transaction writes.
#[derive(Clone, Default)]
struct Written {
    puts: BTreeSet<Bytes>,
    deleted_keys: BTreeSet<Bytes>,
    deleted_ranges: Vec<KeyRange>,
}

impl Written {
    /// Adds a branch; refuses a key put twice, or put and deleted.
    fn branch(&mut self, ops: &[Op]) -> Result<(), KvError> {
        for op in ops {
            match op {
                Op::Range(_) => {}
                Op::Delete(delete) => {
                    let first_put = self.puts.range(delete.range.start().clone()..).next();
                    if first_put.is_some_and(|key| delete.range.contains(key)) {
                        return Err(KvError::DuplicateKey);
                    }
                    match &delete.range {
                        KeyRange::Key(key) => drop(self.deleted_keys.insert(key.clone())),
                        range => self.deleted_ranges.push(range.clone()),
                    }
                }
                Op::Put(put) => {
                    let deleted = self.deleted_keys.contains(&put.key)
                        || self.deleted_ranges.iter().any(|range| range.contains(&put.key));
                    if deleted || !self.puts.insert(put.key.clone()) {
                        return Err(KvError::DuplicateKey);
                    }
                }
                Op::Txn(inner) => {
                    let (mut other, before) = (self.clone(), self.deleted_ranges.len());
                    self.branch(&inner.success)?;
                    other.branch(&inner.failure)?;
                    self.puts.append(&mut other.puts);
                    self.deleted_keys.append(&mut other.deleted_keys);
                    self.deleted_ranges.extend(other.deleted_ranges.drain(before..));
                }
            }
        }
        Ok(())
    }
}

/// A transaction under way.
pub(crate) struct Running<'a> {
    state: &'a mut State,
    /// The revision that its changes get.
    revision: Revision,
    changes: Vec<Change>,
}

/// Runs a checked transaction. The state's revision is not yet raised.
pub(crate) fn run(state: &mut State, txn: &Txn) -> Result<(bool, Vec<OpResponse>, Vec<Change>), KvError> {
    let revision = state.revision + 1;
    let mut running = Running { state, revision, changes: Vec::new() };
    match running.txn(txn) {
        Ok((succeeded, responses)) => Ok((succeeded, responses, running.changes)),
        Err(error) => {
            running.undo();
            Err(error)
        }
    }
}

/// Deletes keys outside a transaction (a revoked lease's).
pub(crate) fn delete_keys(state: &mut State, keys: &[Bytes]) -> Vec<Change> {
    let revision = state.revision + 1;
    let mut running = Running { state, revision, changes: Vec::new() };
    for key in keys {
        let old = running.state.get(key).cloned();
        running.change(key.clone(), old, None);
    }
    running.changes
}

impl Running<'_> {
    fn txn(&mut self, txn: &Txn) -> Result<(bool, Vec<OpResponse>), KvError> {
        let succeeded = txn.compare.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let mut responses = Vec::with_capacity(ops.len());
        for op in ops {
            responses.push(match op {
                Op::Range(request) => OpResponse::Range(self.range(request)?),
                Op::Put(request) => OpResponse::Put(self.put(request)?),
                Op::Delete(request) => self.delete(request),
                Op::Txn(inner) => {
                    let (succeeded, responses) = self.txn(inner)?;
                    OpResponse::Txn(succeeded, responses)
                }
            });
        }
        Ok((succeeded, responses))
    }

    fn holds(&self, compare: &Compare) -> bool {
        if let KeyRange::Key(key) = &compare.range {
            return compares(compare, self.state.get(key).map(|kv| &**kv));
        }
        let mut kvs = self.state.range(&compare.range, None).peekable();
        if kvs.peek().is_none() {
            return compares(compare, None);
        }
        kvs.all(|kv| compares(compare, Some(kv)))
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, KvError> {
        if request.revision > self.state.revision {
            return Err(KvError::FutureRevision);
        }
        let current = request.revision <= 0 || (request.revision == self.state.revision && self.changes.is_empty());
        if current { Ok(self.state.query_current(request)) } else { self.state.disk.query_past(request) }
    }

    fn put(&mut self, put: &PutRequest) -> Result<Option<Arc<KeyValue>>, KvError> {
        let old = self.state.get(&put.key).cloned();
        if old.is_none() && (put.ignore_value || put.ignore_lease) {
            return Err(KvError::KeyNotFound);
        }
        let old_value = old.as_ref().filter(|_| put.ignore_value).map(|kv| kv.value.clone());
        let lease = old.as_ref().filter(|_| put.ignore_lease).map_or(put.lease, |kv| kv.lease);
        if lease != 0 && self.state.leases.get(&lease).is_none() {
            return Err(KvError::LeaseNotFound);
        }
        let (key, value) = join(&put.key, old_value.as_ref().unwrap_or(&put.value));
        let kv = KeyValue {
            key: key.clone(),
            value,
            create_revision: old.as_ref().map_or(self.revision, |kv| kv.create_revision),
            mod_revision: self.revision,
            version: old.as_ref().map_or(0, |kv| kv.version) + 1,
            lease,
        };
        let previous = old.clone().filter(|_| put.prev_kv);
        self.change(key, old, Some(Arc::new(kv)));
        Ok(previous)
    }

    fn delete(&mut self, request: &DeleteRequest) -> OpResponse {
        let found: Vec<_> = self.state.range(&request.range, None).cloned().collect();
        for kv in &found {
            self.change(kv.key.clone(), Some(kv.clone()), None);
        }
        OpResponse::Delete(found.len() as i64, if request.prev_kv { found } else { Vec::new() })
    }

    fn change(&mut self, key: Bytes, old: Option<Arc<KeyValue>>, new: Option<Arc<KeyValue>>) {
        self.state.replace(&key, old.as_ref(), new.clone());
        self.changes.push(Change { key, old, new });
    }

    fn undo(&mut self) {
        while let Some(Change { key, old, new }) = self.changes.pop() {
            self.state.replace(&key, new.as_ref(), old);
        }
    }
}

fn compares(compare: &Compare, kv: Option<&KeyValue>) -> bool {
    let number = |attribute: fn(&KeyValue) -> i64| kv.map_or(0, attribute);
    let ordering = match &compare.target {
        CompareTarget::Version(version) => number(|kv| kv.version).cmp(version),
        CompareTarget::CreateRevision(revision) => number(|kv| kv.create_revision).cmp(revision),
        CompareTarget::ModRevision(revision) => number(|kv| kv.mod_revision).cmp(revision),
        CompareTarget::Lease(lease) => number(|kv| kv.lease).cmp(lease),
        CompareTarget::Value(value) => match kv {
            Some(kv) => kv.value.cmp(value),
            None => return false,
        },
    };
    match compare.op {
        CompareOp::Equal => ordering.is_eq(),
        CompareOp::NotEqual => ordering.is_ne(),
        CompareOp::Greater => ordering.is_gt(),
        CompareOp::Less => ordering.is_lt(),
    }
}

/// Whether a transaction only reads, whichever way it goes.
pub fn only_reads(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).all(|op| match op {
        Op::Range(_) => true,
        Op::Txn(inner) => only_reads(inner),
        Op::Put(_) | Op::Delete(_) => false,
    })
}

impl View {
    /// Runs a transaction that only reads ([`only_reads`]) on this picture; may block on disk if it names revisions.
    pub fn read_txn(&self, txn: &Txn) -> Result<TxnResponse, KvError> {
        check(txn)?;
        let mut state = State::clone(&self.0);
        let (succeeded, responses, changes) = run(&mut state, txn)?;
        debug_assert!(changes.is_empty(), "a reading transaction changes nothing");
        Ok(TxnResponse { revision: self.revision(), succeeded, responses })
    }
}
