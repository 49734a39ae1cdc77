//! Random commands on the state machine and on a simple model of it, with compactions, crashes that lose what was not
//! flushed, and checkpoints: the current state, every readable past, every watch and every answer must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use keelson_store::{
    Applied, Command, Compare, DeleteRequest, Entry, EventKind, KeyRange, KeyValue, KvError, LeaseId, Op, Options,
    PutRequest, RangeRequest, Revision, StateMachine, Txn, WatchRequest,
};
use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

const KEYS: [&str; 6] = ["a", "a/b", "a/b\0c", "a/c", "b", "\u{0}"];

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<Command>),
    Flush,
    /// The process dies: what is in the files stays, and the log is applied again.
    Crash,
    Reopen,
    /// The state moves to a new machine that knew nothing.
    Install,
}

fn range() -> impl Strategy<Value = KeyRange> {
    let name = || prop::sample::select(&KEYS[..]).prop_map(|name| Bytes::from_static(name.as_bytes()));
    prop_oneof![
        4 => name().prop_map(KeyRange::Key),
        2 => name().prop_map(KeyRange::prefix),
        1 => (name(), name()).prop_map(|(from, to)| KeyRange::Range(from, to)),
        1 => name().prop_map(KeyRange::From),
    ]
}

fn put() -> impl Strategy<Value = Op> {
    (prop::sample::select(&KEYS[..]), 0..4u8, 0..4i64, any::<bool>()).prop_map(|(key, value, lease, prev_kv)| {
        let value = vec![value; usize::from(value) * 10];
        Op::Put(PutRequest { lease, prev_kv, ..PutRequest::new(key, value) })
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => put(),
        2 => (range(), any::<bool>()).prop_map(|(range, prev_kv)| Op::Delete(DeleteRequest { range, prev_kv })),
        1 => range().prop_map(|range| Op::Range(RangeRequest::new(range))),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let guard = prop::sample::select(&KEYS[..]).prop_map(|key| Compare::create_revision(key, 0));
    prop_oneof![
        8 => op().prop_map(|op| Command::Txn(Txn { success: vec![op], ..Txn::default() })),
        4 => (vec(guard, 0..2), vec(op(), 0..4), vec(op(), 0..3))
            .prop_map(|(compare, success, failure)| Command::Txn(Txn { compare, success, failure })),
        2 => (1..4i64).prop_map(|id| Command::LeaseGrant { id, ttl: 60 }),
        1 => (1..4i64).prop_map(|id| Command::LeaseRevoke { id }),
        1 => (1..60i64).prop_map(Command::Compact),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => vec(command(), 1..5).prop_map(Step::Apply),
        1 => Just(Step::Flush),
        1 => Just(Step::Crash),
        1 => Just(Step::Reopen),
        1 => Just(Step::Install),
    ]
}

type Keys = BTreeMap<Bytes, KeyValue>;
type Seen = (EventKind, Bytes, Revision, Option<KeyValue>);

/// The whole history, kept naively: one map per revision.
struct Model {
    at: BTreeMap<Revision, Keys>,
    compact_revision: Revision,
    leases: BTreeSet<LeaseId>,
}

impl Model {
    fn new() -> Self {
        Self { at: BTreeMap::from([(1, Keys::new())]), compact_revision: 0, leases: BTreeSet::new() }
    }

    fn revision(&self) -> Revision {
        *self.at.keys().next_back().expect("never empty")
    }

    fn now(&self) -> &Keys {
        &self.at[&self.revision()]
    }

    fn store(&mut self, keys: Keys) {
        if keys != *self.now() {
            self.at.insert(self.revision() + 1, keys);
        }
    }

    /// Applies a command, or says why it is refused.
    fn apply(&mut self, command: &Command) -> Result<(), KvError> {
        match command {
            Command::Txn(txn) => {
                keelson_store::check(txn)?;
                let holds = txn.compare.iter().all(|compare| match &compare.range {
                    KeyRange::Key(key) => !self.now().contains_key(key),
                    _ => unreachable!("guards name one key"),
                });
                let mut keys = self.now().clone();
                for op in if holds { &txn.success } else { &txn.failure } {
                    self.op(&mut keys, op)?;
                }
                self.store(keys);
            }
            Command::LeaseGrant { id, .. } => {
                if !self.leases.insert(*id) {
                    return Err(KvError::LeaseExists);
                }
            }
            Command::LeaseRevoke { id } => {
                if !self.leases.remove(id) {
                    return Err(KvError::LeaseNotFound);
                }
                let mut keys = self.now().clone();
                keys.retain(|_, kv| kv.lease != *id);
                self.store(keys);
            }
            Command::Compact(revision) => {
                if *revision > self.revision() {
                    return Err(KvError::FutureRevision);
                }
                if *revision <= self.compact_revision {
                    return Err(KvError::Compacted(self.compact_revision));
                }
                self.compact_revision = *revision;
            }
            Command::LeaseCheckpoint(_) | Command::Settings(_) | Command::TxnIf(..) | Command::LeaseRevokeIf(..) => {
                unreachable!("the model makes none")
            }
        }
        Ok(())
    }

    fn op(&self, keys: &mut Keys, op: &Op) -> Result<(), KvError> {
        match op {
            Op::Put(put) => {
                if put.lease != 0 && !self.leases.contains(&put.lease) {
                    return Err(KvError::LeaseNotFound);
                }
                let revision = self.revision() + 1;
                let old = keys.get(&put.key);
                let kv = KeyValue {
                    key: put.key.clone(),
                    value: put.value.clone(),
                    create_revision: old.map_or(revision, |kv| kv.create_revision),
                    mod_revision: revision,
                    version: old.map_or(0, |kv| kv.version) + 1,
                    lease: put.lease,
                };
                keys.insert(put.key.clone(), kv);
            }
            Op::Delete(delete) => keys.retain(|key, _| !delete.range.contains(key)),
            Op::Range(_) | Op::Txn(_) => {}
        }
        Ok(())
    }

    /// The events from a revision on, those of one revision ordered by key.
    fn events(&self, from: Revision, range: &KeyRange) -> Vec<Seen> {
        let mut found = Vec::new();
        for (revision, keys) in self.at.range(from..) {
            let Some(before) = self.at.get(&(revision - 1)) else { continue };
            let names: BTreeSet<_> = before.keys().chain(keys.keys()).filter(|key| range.contains(key)).collect();
            for key in names {
                if before.get(key) == keys.get(key) {
                    continue;
                }
                let kind = if keys.contains_key(key) { EventKind::Put } else { EventKind::Delete };
                let prev = before.get(key).filter(|_| *revision > self.compact_revision).cloned();
                found.push((kind, key.clone(), *revision, prev));
            }
        }
        found
    }
}

struct Sut {
    /// Before its directory, so that it closes first.
    machine: StateMachine,
    dir: TempDir,
    log: Vec<Entry>,
}

/// In memory where there is such a file system: the test is about order, not about syncs.
fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { 64 };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn open(dir: &Path) -> StateMachine {
    StateMachine::open(dir, Options { wal: false, watch_ring_bytes: 1_500, ..Options::default() }).expect("opens")
}

/// Names and lengths of all files.
fn listing(dir: &Path) -> BTreeMap<std::path::PathBuf, u64> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("listed") {
        let path = entry.expect("listed").path();
        match path.is_dir() {
            true => found.extend(listing(&path)),
            false => found.extend([(path.clone(), path.metadata().map_or(0, |file| file.len()))]),
        }
    }
    found
}

/// The files as a crash would leave them: copied at a moment in which the database changed none of them.
fn copy_as_of_a_crash(from: &Path) -> TempDir {
    loop {
        let to = directory();
        let before = listing(from);
        let copied = before.keys().try_for_each(|file| {
            let target = to.path().join(file.strip_prefix(from).expect("it lies there"));
            std::fs::create_dir_all(target.parent().expect("it has a parent"))?;
            std::fs::copy(file, target).map(|_| ())
        });
        if copied.is_ok() && listing(from) == before {
            return to;
        }
    }
}

impl Sut {
    fn new() -> Self {
        let dir = directory();
        let machine = open(dir.path());
        Self { dir, machine, log: Vec::new() }
    }

    fn apply(&mut self, commands: &[Command]) -> Vec<Result<Applied, KvError>> {
        let first = self.log.len();
        for command in commands {
            let index = self.log.len() as u64 + 1;
            let meta = Bytes::from(index.to_string());
            self.log.push(Entry { index, meta, commands: vec![std::sync::Arc::new(command.clone())] });
        }
        self.machine.apply(&self.log[first..]).expect("not fatal")
    }

    fn crash(self) -> Self {
        let (durable, hash) = (self.machine.flushed_index().expect("readable"), self.machine.view().hash());
        let dir = copy_as_of_a_crash(self.dir.path());
        let machine = open(dir.path());
        let (applied, meta) = machine.applied();
        assert!(applied >= durable, "what counted as durable is there");
        assert!(applied == 0 || meta == applied.to_string(), "the blob belongs to the applied entry");
        machine.apply(&self.log[applied as usize..]).expect("not fatal");
        assert_eq!(machine.view().hash(), hash, "the log leads to the same state");
        Self { dir, machine, log: self.log }
    }

    fn reopen(self) -> Self {
        let Self { dir, machine, log } = self;
        drop(machine);
        let machine = open(dir.path());
        assert_eq!(machine.applied().0, log.len() as u64);
        Self { dir, machine, log }
    }

    fn install(self) -> Self {
        let dir = directory();
        let copy = dir.path().join("snapshot");
        let info = self.machine.checkpoint(&copy).expect("a checkpoint");
        assert_eq!(info.hash, self.machine.view().hash());
        let machine = open(dir.path());
        assert_eq!(machine.install(&copy), Ok(info));
        Self { dir, machine, log: self.log }
    }
}

fn check_state(machine: &StateMachine, model: &Model) {
    let view = machine.view();
    assert_eq!((view.revision(), view.compact_revision()), (model.revision(), model.compact_revision));
    assert!(view.range(&KeyRange::From(Bytes::new())).map(|kv| &**kv).eq(model.now().values()));
    assert!(view.leases().map(|lease| lease.id).eq(model.leases.iter().copied()));
    for lease in view.leases() {
        let attached = model.now().values().filter(|kv| kv.lease == lease.id).map(|kv| &kv.key);
        assert!(lease.keys().eq(attached), "attachments of lease {}", lease.id);
    }
}

fn check_history(machine: &StateMachine, model: &Model, range: &KeyRange) {
    let view = machine.view();
    for (revision, keys) in &model.at {
        let answer = view.query(&RangeRequest { revision: *revision, ..RangeRequest::new(range.clone()) });
        if *revision < model.compact_revision {
            assert_eq!(answer, Err(KvError::Compacted(model.compact_revision)));
            continue;
        }
        let found: Vec<_> = answer.expect("readable").kvs.iter().map(|kv| KeyValue::clone(kv)).collect();
        let expected: Vec<_> = keys.values().filter(|kv| range.contains(&kv.key)).cloned().collect();
        assert_eq!(found, expected, "at revision {revision}");
    }
}

fn check_watch(machine: &StateMachine, model: &Model, range: &KeyRange) {
    let from = model.compact_revision.max(2);
    let mut watch = machine.watch(WatchRequest::new(range.clone(), from)).expect("opens");
    let mut found: Vec<Seen> = Vec::new();
    let mut pauses = 0;
    while pauses < 5 {
        match watch.next().now_or_never() {
            Some(batch) => {
                let batch = batch.expect("the watch goes on").expect("the watch is not cut");
                found.extend(batch.events.iter().map(|event| {
                    // Below the compact revision a previous value may or may not be there.
                    let known = event.kv.mod_revision > model.compact_revision;
                    let prev = event.prev.as_ref().filter(|_| known).map(|kv| KeyValue::clone(kv));
                    (event.kind, event.kv.key.clone(), event.kv.mod_revision, prev)
                }));
            }
            None => pauses += 1,
        }
    }
    assert!(found.is_sorted_by_key(|seen| seen.2), "revisions rise");
    found.sort_by(|a, b| (a.2, &a.1).cmp(&(b.2, &b.1)));
    assert_eq!(found, model.events(from, range));
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_machine_agrees_with_the_model(steps in vec(step(), 1..25), range in range()) {
        let mut model = Model::new();
        let mut sut = Sut::new();
        for step in steps {
            match step {
                Step::Apply(commands) => {
                    let answers = sut.apply(&commands);
                    for (command, answer) in commands.iter().zip(answers) {
                        let expected = model.apply(command);
                        prop_assert_eq!(answer.as_ref().err(), expected.as_ref().err(), "{:?}", command);
                        if let Ok(Applied::Txn(response)) = &answer {
                            prop_assert_eq!(response.revision, model.revision());
                        }
                    }
                }
                Step::Flush => prop_assert_eq!(sut.machine.flush(), Ok(sut.machine.applied().0)),
                Step::Crash => sut = sut.crash(),
                Step::Reopen => sut = sut.reopen(),
                Step::Install => sut = sut.install(),
            }
            check_state(&sut.machine, &model);
        }
        check_history(&sut.machine, &model, &range);
        check_watch(&sut.machine, &model, &range);
    }
}
