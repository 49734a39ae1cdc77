//! Tests of the machine's insides: durability marks, compaction on disk, damage, checkpoints, watches across both.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};

use crate::disk::{Disk, Family};
use crate::record;
use crate::{
    Applied, Clock, Command, DeleteRequest, Entry, EventKind, Fatal, KeyRange, KvError, LeaseClock, Op, Options,
    PutRequest, RangeRequest, Renewed, Revision, StateMachine, Txn, Watch, WatchBatch, WatchRequest,
};

fn open(dir: &Path) -> StateMachine {
    StateMachine::open(dir, Options { wal: false, watch_ring_bytes: 2_000, ..Options::default() }).expect("opens")
}

fn apply(machine: &StateMachine, command: Command) -> Result<Applied, KvError> {
    let index = machine.applied().0 + 1;
    let meta = Bytes::from(format!("meta {index}"));
    let entry = Entry { index, meta, commands: vec![Arc::new(command)] };
    machine.apply(&[entry]).expect("not fatal").pop().expect("one answer")
}

fn txn(op: Op) -> Command {
    Command::Txn(Txn { success: vec![op], ..Txn::default() })
}

fn put(machine: &StateMachine, key: &str, value: &str) -> Revision {
    let put = PutRequest::new(Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    apply(machine, txn(Op::Put(put))).expect("put");
    machine.view().revision()
}

fn delete(machine: &StateMachine, key: &'static str) -> Revision {
    let range = KeyRange::Key(Bytes::from_static(key.as_bytes()));
    apply(machine, txn(Op::Delete(DeleteRequest { range, prev_kv: false }))).expect("deleted");
    machine.view().revision()
}

fn watch_all(machine: &StateMachine, start_revision: Revision) -> Watch {
    let request = WatchRequest::new(KeyRange::From(Bytes::new()), start_revision);
    machine.watch(request).expect("the watch opens")
}

/// What a watch has to say without waiting for anybody else.
fn ready(watch: &mut Watch) -> Vec<Result<WatchBatch, KvError>> {
    let mut found = Vec::new();
    let mut quiet = 0;
    while quiet < 20 {
        match watch.next().now_or_never() {
            Some(Some(item)) => found.push(item),
            Some(None) => break,
            // A cursor that reads history pauses between steps.
            None => quiet += 1,
        }
    }
    found
}

fn ready_revisions(watch: &mut Watch) -> Vec<Revision> {
    let batches = ready(watch).into_iter().map(|item| item.expect("the watch is not cut"));
    batches.flat_map(|batch| batch.events).map(|event| event.kv.mod_revision).collect()
}

fn data_keys(disk: &Disk) -> usize {
    let mut cursor = disk.raw_iterator(Family::Data).expect("the family is there");
    cursor.seek_to_first();
    let mut count = 0;
    while cursor.valid() {
        count += 1;
        cursor.next();
    }
    count
}

#[test]
fn only_flushed_entries_count_as_durable() {
    let dir = tempfile::tempdir().expect("a directory");
    let machine = open(dir.path());
    put(&machine, "a", "1");
    assert_eq!(machine.flushed_index(), Ok(0));
    assert_eq!(machine.flush(), Ok(1));
    put(&machine, "a", "2");
    assert_eq!((machine.flushed_index(), machine.applied().0), (Ok(1), 2));
    machine.apply(&[Entry { index: 9, meta: "member".into(), commands: Vec::new() }]).expect("applied");
    drop(machine);
    let machine = open(dir.path());
    assert_eq!(machine.applied(), (9, Bytes::from("member")));
    assert_eq!(machine.view().get(b"a").expect("there").value, "2");
}

#[test]
fn the_same_commands_give_the_same_hash_however_they_are_batched() {
    let (one, two) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (one, two) = (open(one.path()), open(two.path()));
    let commands: Vec<_> =
        (0..20).map(|at| txn(Op::Put(PutRequest::new(format!("k{}", at % 3), format!("v{at}"))))).collect();
    let entry = |(at, command): (usize, &Command)| Entry {
        index: at as u64 + 1,
        meta: Bytes::new(),
        commands: vec![Arc::new(command.clone())],
    };
    let entries: Vec<_> = commands.iter().enumerate().map(entry).collect();
    one.apply(&entries).expect("applied");
    for entry in entries {
        two.apply(&[entry]).expect("applied");
    }
    assert_eq!(one.view().hash(), two.view().hash());
    assert_eq!(one.hash_at(7), two.hash_at(7));
    assert_ne!(one.hash_at(7), one.hash_at(8));
    assert_eq!(one.hash_at(900), Err(KvError::FutureRevision));
}

#[test]
fn a_transaction_reads_history_that_its_own_batch_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let machine = open(dir.path());
    let read = RangeRequest { revision: 2, ..RangeRequest::new(KeyRange::Key("a".into())) };
    let commands = [
        txn(Op::Put(PutRequest::new("a", "1"))),
        txn(Op::Put(PutRequest::new("a", "2"))),
        Command::Txn(Txn { success: vec![Op::Put(PutRequest::new("a", "3")), Op::Range(read)], ..Txn::default() }),
    ];
    let entries: Vec<_> = (1..)
        .zip(commands)
        .map(|(index, c)| Entry { index, meta: Bytes::new(), commands: vec![Arc::new(c)] })
        .collect();
    let answers = machine.apply(&entries).expect("applied");
    let Ok(Applied::Txn(response)) = &answers[2] else { panic!("{answers:?}") };
    let crate::OpResponse::Range(found) = &response.responses[1] else { panic!("{response:?}") };
    assert_eq!(found.kvs[0].value, "1");
}

#[test]
fn compaction_drops_versions_and_tombstones_below_and_keeps_the_rest() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = {
        let machine = open(dir.path());
        put(&machine, "a", "1");
        put(&machine, "a", "2");
        put(&machine, "gone", "1");
        delete(&machine, "gone");
        put(&machine, "b", "1");
        delete(&machine, "b");
        put(&machine, "a", "3");
        machine.view().0.disk.clone()
    };
    assert_eq!(data_keys(&disk), 7);
    let before_last = 7;
    let mut from = 0;
    while from < before_last {
        from = disk.compact_step(from, before_last, 2).expect("compacts");
    }
    // a@3, the tombstone of b at the compact revision itself, a@8.
    assert_eq!(data_keys(&disk), 3);
    assert_eq!(disk.compact_step(7, 8, 10), Ok(8));
    assert_eq!(data_keys(&disk), 1);
}

#[test]
fn an_idle_compactor_finishes_what_it_was_asked_before_it_is_dropped_or_after_reopening() {
    let dir = tempfile::tempdir().expect("a directory");
    let machine = open(dir.path());
    for at in 0..50 {
        put(&machine, "a", &at.to_string());
    }
    let last = machine.view().revision();
    apply(&machine, Command::Compact(last)).expect("compacted");
    drop(machine);
    let machine = open(dir.path());
    assert_eq!(machine.view().compact_revision(), last);
    let disk = machine.view().0.disk.clone();
    while disk.pair(record::COMPACTED_KEY).expect("readable").is_none_or(|(progress, _)| progress < last) {
        std::thread::yield_now();
    }
    assert_eq!(data_keys(&disk), 1);
    assert_eq!(machine.view().get(b"a").expect("there").value, "49");
}

#[test]
fn damage_that_a_checkpoint_finds_stops_the_machine() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let machine = StateMachine::open(&state, Options { inline: true, ..Options::default() }).expect("opens");
    let checkpoint = |at: usize| machine.checkpoint(&dir.path().join(format!("checkpoint-{at}")));
    put(&machine, "a", "1");
    checkpoint(0).expect("a checkpoint");
    for generation in std::fs::read_dir(&state).expect("readable").flatten().filter(|found| found.path().is_dir()) {
        for file in std::fs::read_dir(generation.path()).expect("readable").flatten().map(|found| found.path()) {
            if file.extension().is_some_and(|extension| extension == "sst") {
                let mut bytes = std::fs::read(&file).expect("readable");
                bytes[0] ^= 1;
                std::fs::write(&file, bytes).expect("written");
            }
        }
    }
    // Tables are merged when there are enough, and read then.
    let found = (1..100).find_map(|at| {
        put(&machine, "a", &at.to_string());
        checkpoint(at).err()
    });
    assert!(matches!(found, Some(Fatal::Corrupt(_))), "{found:?}");
    assert!(matches!(machine.failure(), Some(Fatal::Corrupt(_))), "it begins anew instead of failing at each start");
}

#[test]
fn damage_is_refused_when_it_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let machine = open(dir.path());
    let revision = put(&machine, "a", "good");
    put(&machine, "a", "newer");
    let disk = machine.view().0.disk.clone();
    let db_key = record::data_key(b"a", revision);
    let mut bad = disk.raw_get(Family::Data, &db_key).expect("there");
    *bad.last_mut().expect("not empty") ^= 1;
    disk.raw_put(Family::Data, &db_key, &bad);
    let request = RangeRequest { revision, ..RangeRequest::new(KeyRange::Key("a".into())) };
    assert!(matches!(machine.view().query(&request), Err(KvError::Stopped(why)) if why.contains("corruption")));
    let read = Entry { index: 9, meta: Bytes::new(), commands: vec![Arc::new(txn(Op::Range(request)))] };
    assert!(machine.apply(std::slice::from_ref(&read)).is_err(), "a member must not answer unlike the others");
    assert!(machine.apply(&[]).is_err(), "and it stays stopped");
    // A damaged current version is found at start.
    let newest = record::data_key(b"a", revision + 1);
    disk.raw_put(Family::Data, &newest, &bad);
    drop((machine, disk));
    assert!(matches!(StateMachine::open(dir.path(), Options::default()), Err(Fatal::Corrupt(_))));
}

#[test]
fn watchers_go_from_history_to_ring_to_live() {
    let dir = tempfile::tempdir().expect("a directory");
    let machine = open(dir.path());
    let value = "v".repeat(100);
    for at in 0..60 {
        put(&machine, &format!("k{}", at % 7), &value);
    }
    let mut watch = watch_all(&machine, 2);
    let last = machine.view().revision();
    assert_eq!(ready_revisions(&mut watch), (2..=last).collect::<Vec<_>>());
    let live = put(&machine, "k1", "live");
    assert_eq!(ready_revisions(&mut watch), [live]);
    drop(machine);
    let machine = open(dir.path());
    let mut watch = watch_all(&machine, live - 1);
    let found = ready(&mut watch);
    let events = &found[0].as_ref().expect("history").events;
    assert_eq!((events.len(), events[1].kv.value.as_ref()), (2, &b"live"[..]));
    assert_eq!(events[1].prev.as_ref().expect("had a value").value.len(), 100);
}

#[test]
fn history_begins_with_the_first_change() {
    let dir = tempfile::tempdir().expect("a directory");
    let machine = open(dir.path());
    let mut early = watch_all(&machine, 1);
    let value = "v".repeat(100);
    let last = (0..60).map(|at| put(&machine, &format!("k{}", at % 7), &value)).last().expect("some");
    // The ring has lost the beginning by now.
    for watch in [&mut early, &mut watch_all(&machine, 1)] {
        assert_eq!(ready_revisions(watch), (2..=last).collect::<Vec<_>>());
    }
}

#[test]
fn a_slow_watcher_is_cut_only_by_compaction() {
    let dir = tempfile::tempdir().expect("a directory");
    let machine = open(dir.path());
    let first = put(&machine, "k", "v");
    let mut slow = watch_all(&machine, first);
    let mut other = watch_all(&machine, first);
    assert_eq!(ready_revisions(&mut other), [first]);
    for _ in 0..100 {
        put(&machine, "k", "value of some length, so that the ring forgets the first ones");
    }
    let last = machine.view().revision();
    apply(&machine, Command::Compact(last)).expect("compacted");
    assert_eq!(ready(&mut slow).pop().expect("an end").err(), Some(KvError::Compacted(last)));
    assert!(slow.next().now_or_never().expect("ended").is_none());
    assert_eq!(ready_revisions(&mut other), (first + 1..=last).collect::<Vec<_>>(), "its queue had room");
}

#[test]
fn a_checkpoint_replaces_the_state_and_watches_go_on() {
    let (from, to) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (leader, follower) = (open(from.path()), open(to.path()));
    for machine in [&leader, &follower] {
        apply(machine, Command::LeaseGrant { id: 5, ttl: 60 }).expect("granted");
        put(machine, "a", "1");
    }
    let mut watch = watch_all(&follower, 0);
    let held = follower.view();
    let put_leased = PutRequest { lease: 5, ..PutRequest::new("b", "2") };
    apply(&leader, txn(Op::Put(put_leased))).expect("put");
    let deleted = delete(&leader, "a");
    let copy = from.path().join("snapshot");
    let info = leader.checkpoint(&copy).expect("a checkpoint");
    assert_eq!((info.applied, info.revision, info.meta.clone()), (4, deleted, leader.applied().1));
    put(&leader, "later", "x");
    assert_eq!(follower.install(&copy).expect("installed"), info);
    let view = follower.view();
    assert_eq!((view.revision(), view.hash(), follower.applied().0), (info.revision, info.hash, 4));
    assert_eq!(view.lease(5).expect("there").keys().collect::<Vec<_>>(), ["b"]);
    assert!(held.get(b"a").is_some(), "an older view still shows its state");
    let kinds: Vec<_> = ready(&mut watch)
        .into_iter()
        .flat_map(|batch| batch.expect("the watch is not cut").events.clone())
        .map(|event| (event.kind, event.kv.mod_revision))
        .collect();
    assert_eq!(kinds, [(EventKind::Put, deleted - 1), (EventKind::Delete, deleted)]);
    let next = put(&follower, "c", "3");
    assert_eq!(ready_revisions(&mut watch), [next]);
    follower.flush().expect("flushed");
    drop((watch, view, held, follower));
    let names = |dir: &Path| {
        let entries = std::fs::read_dir(dir).expect("listed");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("listed").file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(to.path()), ["CURRENT", "state-2"]);
    let follower = open(to.path());
    assert_eq!(follower.view().revision(), next);
}

#[test]
fn a_checkpoint_beyond_a_compaction_cuts_watches() {
    let (from, to) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (leader, follower) = (open(from.path()), open(to.path()));
    for at in 0..5 {
        put(&leader, "a", &at.to_string());
    }
    let mut watch = watch_all(&follower, 0);
    let last = leader.view().revision();
    apply(&leader, Command::Compact(last)).expect("compacted");
    let copy = from.path().join("snapshot");
    leader.checkpoint(&copy).expect("a checkpoint");
    follower.install(&copy).expect("installed");
    assert_eq!(ready(&mut watch).pop().expect("an end").err(), Some(KvError::Compacted(last)));
}

#[test]
fn a_damaged_member_heals_by_a_checkpoint() {
    let (from, to) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let (leader, follower) = (open(from.path()), open(to.path()));
    let mut watch = watch_all(&follower, 0);
    put(&leader, "a", "1");
    follower.fail(&Fatal::Corrupt("found by a test".into()));
    assert_eq!(follower.apply(&[]), Err(Fatal::Corrupt("found by a test".into())));
    assert!(matches!(ready(&mut watch).pop(), Some(Err(KvError::Stopped(_)))));
    let copy = from.path().join("snapshot");
    leader.checkpoint(&copy).expect("a checkpoint");
    follower.install(&copy).expect("installed");
    assert_eq!(follower.failure(), None);
    let mut watch = watch_all(&follower, 2);
    let next = put(&follower, "b", "2");
    assert_eq!(ready_revisions(&mut watch), [2, next]);
}

#[test]
fn a_directory_that_is_no_checkpoint_is_refused_and_changes_nothing() {
    let (dir, other) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let machine = open(dir.path());
    let revision = put(&machine, "a", "1");
    assert!(machine.install(other.path()).is_err());
    assert!(machine.install(&other.path().join("none")).is_err());
    assert_eq!(put(&machine, "a", "2"), revision + 1);
}

/// A clock that tests move.
#[derive(Default)]
struct Hands(std::sync::atomic::AtomicU64);

impl Clock for Hands {
    fn now_millis(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[test]
fn leases_expire_after_their_time_and_not_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let machine = open(dir.path());
    let hands = Arc::new(Hands::default());
    let clock = LeaseClock::new(hands.clone());
    let set = |millis| hands.0.store(millis, std::sync::atomic::Ordering::SeqCst);
    apply(&machine, Command::LeaseGrant { id: 1, ttl: 10 }).expect("granted");
    apply(&machine, Command::LeaseGrant { id: 2, ttl: 1000 }).expect("granted");
    let view = machine.view();
    assert!(matches!(clock.renew(&view, 1), Err(KvError::Unavailable(_))));
    clock.lead(&view, 0);
    set(9_999);
    assert_eq!(clock.tick(&view).expired, []);
    assert_eq!(clock.renew(&view, 1), Ok(Renewed { ttl: 10, take_back: true }), "its last second is on its way");
    set(19_998);
    assert_eq!(clock.tick(&view).expired, []);
    assert_eq!(clock.status(&view, 1).expect("known").remaining_ttl, 0, "less than a second is left");
    set(19_999);
    assert_eq!(clock.tick(&view).expired, [1]);
    assert_eq!(clock.tick(&view).expired, [], "it is being revoked");
    assert_eq!(clock.renew(&view, 1), Err(KvError::LeaseNotFound));
    set(23_000);
    assert_eq!(clock.tick(&view).expired, [1], "the revocation was lost");
    apply(&machine, Command::LeaseRevoke { id: 1 }).expect("revoked");
    next_leader_keeps_what_was_left(&machine, &hands, &clock);
}

/// A lease of 1000 seconds whose time began at 0.
fn next_leader_keeps_what_was_left(machine: &StateMachine, hands: &Arc<Hands>, clock: &LeaseClock) {
    let set = |millis| hands.0.store(millis, std::sync::atomic::Ordering::SeqCst);
    set(99_999);
    assert_eq!(clock.tick(&machine.view()).checkpoints, []);
    set(100_000);
    let due = clock.tick(&machine.view());
    assert_eq!((due.expired, due.checkpoints.clone()), (vec![], vec![(2, 900)]), "soon after it was taken over");
    apply(machine, Command::LeaseCheckpoint(due.checkpoints)).expect("recorded");
    set(200_000);
    assert_eq!(clock.tick(&machine.view()).checkpoints, [(2, 800)]);
    let next_leader = LeaseClock::new(hands.clone());
    next_leader.lead(&machine.view(), 1_000);
    assert_eq!(next_leader.status(&machine.view(), 2).expect("known").remaining_ttl, 901);
    let renewed = |take_back| Ok(Renewed { ttl: 1000, take_back });
    assert_eq!(next_leader.renew(&machine.view(), 2), renewed(true));
    assert_eq!(next_leader.renew(&machine.view(), 2), renewed(true), "it was not taken back yet");
    apply(machine, Command::LeaseCheckpoint(vec![(2, 0)])).expect("recorded");
    next_leader.taken_back(2);
    assert_eq!(next_leader.renew(&machine.view(), 2), renewed(false));
    set(499_999);
    assert_eq!(next_leader.tick(&machine.view()).checkpoints, [], "it was renewed");
    set(500_000);
    let due = next_leader.tick(&machine.view());
    assert_eq!(due.checkpoints, [(2, 700)]);
    assert_eq!(next_leader.renew(&machine.view(), 2), renewed(true), "it is under way");
    next_leader.resign();
    assert_eq!(next_leader.tick(&machine.view()), crate::Due::default());
}

#[test]
fn settings_are_there_after_reopening() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |value: &'static str| {
        Command::Settings(crate::SettingsChange {
            guards: Vec::new(),
            writes: vec![("user/a".into(), Some(value.into())), ("user/b".into(), None)],
        })
    };
    {
        let machine = open(dir.path());
        let before = machine.view().revision();
        apply(&machine, write("1")).expect("accepted");
        apply(&machine, write("2")).expect("accepted");
        assert_eq!(machine.view().revision(), before, "settings have no revision");
        machine.flush().expect("flushed");
    }
    let machine = open(dir.path());
    let view = machine.view();
    let found: Vec<_> = view.settings(b"user/").map(|(name, value)| (&name[..], &value[..])).collect();
    assert_eq!(found, [(&b"user/a"[..], &b"2"[..])]);
}
