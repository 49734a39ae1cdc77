//! What every [`Kv`] must do: run against the local store here and against the replicated one by its own tests.
//!
//! Each function uses its own keys, so all can run on one store, also at once.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;

use crate::{
    Compare, CompareOp, CompareTarget, DeleteRequest, Event, EventKind, KeyRange, Kv, KvError, Lens, Only, Op,
    OpResponse, PutRequest, RangeRequest, Revision, SettingsChange, SortTarget, Txn, TxnResponse, Watch, WatchRequest,
};

type Store = Arc<dyn Kv>;

/// Runs the whole contract.
pub async fn all(kv: Store) {
    puts_and_reads(&kv).await;
    guards(&kv).await;
    refusals(&kv).await;
    failed_transactions_change_nothing(&kv).await;
    nested_transactions(&kv).await;
    ranges(&kv).await;
    watches_live(&kv).await;
    watches_of_a_concern(&kv).await;
    watches_from_the_past(&kv).await;
    watch_progress(&kv).await;
    slow_watchers_lose_nothing(&kv).await;
    leases(&kv).await;
    settings(&kv).await;
    compaction(&kv).await;
}

async fn put(kv: &Store, key: &str, value: &str) -> Revision {
    let put = PutRequest::new(Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    run(kv, vec![Op::Put(put)]).await.revision
}

async fn delete(kv: &Store, range: KeyRange) -> Revision {
    run(kv, vec![Op::Delete(DeleteRequest { range, prev_kv: false })]).await.revision
}

async fn run(kv: &Store, success: Vec<Op>) -> TxnResponse {
    kv.txn(Txn { success, ..Txn::default() }).await.expect("the transaction is accepted")
}

async fn refused(kv: &Store, success: Vec<Op>) -> KvError {
    kv.txn(Txn { success, ..Txn::default() }).await.expect_err("the transaction is refused")
}

fn key(name: &'static str) -> KeyRange {
    KeyRange::Key(Bytes::from_static(name.as_bytes()))
}

fn prefix(name: &'static str) -> KeyRange {
    KeyRange::prefix(Bytes::from_static(name.as_bytes()))
}

fn names(kv: &Store, request: &RangeRequest) -> Vec<String> {
    let found = kv.range(request).expect("the range is readable");
    found.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

async fn events(watch: &mut Watch, count: usize) -> Vec<Arc<Event>> {
    let mut found: Vec<Arc<Event>> = Vec::new();
    while found.len() < count {
        let batch = watch.next().await.expect("the watch goes on").expect("the watch is not cut");
        assert!(batch.events.iter().all(|event| event.kv.mod_revision <= batch.revision), "a batch covers its events");
        found.extend(batch.events);
    }
    found
}

/// Revisions, versions and bookkeeping of single keys.
pub async fn puts_and_reads(kv: &Store) {
    let first = put(kv, "c/put/a", "1").await;
    let second = put(kv, "c/put/a", "2").await;
    assert!(second > first);
    let view = kv.view();
    let found = view.get(b"c/put/a").expect("the key is there");
    assert_eq!(
        (&found.value[..], found.create_revision, found.mod_revision, found.version),
        (&b"2"[..], first, second, 2)
    );
    let past = kv.range(&RangeRequest { revision: first, ..RangeRequest::new(key("c/put/a")) }).expect("history");
    assert_eq!((&past.kvs[0].value[..], past.kvs[0].version), (&b"1"[..], 1));
    assert!(kv.barrier().await.expect("a barrier") >= second);
    let before = view.revision();
    let nothing = delete(kv, key("c/put/none")).await;
    assert!(nothing >= before && kv.view().get(b"c/put/none").is_none());
    delete(kv, key("c/put/a")).await;
    assert!(kv.view().get(b"c/put/a").is_none() && view.get(b"c/put/a").is_some(), "a view does not change");
    let again = put(kv, "c/put/a", "3").await;
    let view = kv.view();
    let found = view.get(b"c/put/a").expect("the key is there again");
    assert_eq!((found.create_revision, found.version), (again, 1));
    let future = kv.range(&RangeRequest { revision: again + 1_000_000, ..RangeRequest::new(key("c/put/a")) });
    assert_eq!(future, Err(KvError::FutureRevision));
}

/// Comparisons choose the branch.
pub async fn guards(kv: &Store) {
    let revision = put(kv, "c/guard", "x").await;
    let value = |op, value: &'static str| Compare {
        range: key("c/guard"),
        target: CompareTarget::Value(Bytes::from_static(value.as_bytes())),
        op,
    };
    let absent = |target, op| Compare { range: key("c/guard/none"), target, op };
    let cases = [
        (Compare::mod_revision("c/guard", revision), true),
        (Compare::mod_revision("c/guard", revision + 1), false),
        (Compare::create_revision("c/guard", 0), false),
        (Compare::create_revision("c/guard/none", 0), true),
        (value(CompareOp::Equal, "x"), true),
        (value(CompareOp::Less, "y"), true),
        (value(CompareOp::NotEqual, "x"), false),
        (absent(CompareTarget::Value(Bytes::new()), CompareOp::Equal), false),
        (absent(CompareTarget::Value(Bytes::new()), CompareOp::NotEqual), false),
        (absent(CompareTarget::Version(1), CompareOp::Less), true),
        (Compare { range: prefix("c/guard"), ..absent(CompareTarget::Version(0), CompareOp::Greater) }, true),
        (Compare { range: prefix("c/guard"), ..absent(CompareTarget::Version(1), CompareOp::Greater) }, false),
    ];
    for (compare, expected) in cases {
        let read = Op::Range(RangeRequest::new(key("c/guard")));
        let txn = Txn { compare: vec![compare.clone()], success: vec![read], failure: Vec::new() };
        let response = kv.txn(txn).await.expect("the transaction is accepted");
        assert_eq!((response.succeeded, response.responses.len()), (expected, usize::from(expected)), "{compare:?}");
    }
}

/// Malformed requests are refused with etcd's reasons.
pub async fn refusals(kv: &Store) {
    let plain = |name: &'static str| PutRequest::new(name, "v");
    let drop = |range| Op::Delete(DeleteRequest { range, prev_kv: false });
    assert_eq!(refused(kv, vec![Op::Put(plain(""))]).await, KvError::EmptyKey);
    assert_eq!(refused(kv, vec![Op::Put(plain("c/r")), Op::Put(plain("c/r"))]).await, KvError::DuplicateKey);
    assert_eq!(refused(kv, vec![Op::Put(plain("c/r")), drop(prefix("c/"))]).await, KvError::DuplicateKey);
    assert_eq!(refused(kv, vec![drop(prefix("c/r")), Op::Put(plain("c/r"))]).await, KvError::DuplicateKey);
    let keep = PutRequest { ignore_value: true, ..plain("c/r/none") };
    assert_eq!(refused(kv, vec![Op::Put(keep)]).await, KvError::KeyNotFound);
    let leased = PutRequest { lease: 404, ..plain("c/r") };
    assert_eq!(refused(kv, vec![Op::Put(leased)]).await, KvError::LeaseNotFound);
    let large = PutRequest::new("c/r", vec![0; crate::limits::MAX_VALUE_BYTES + 1]);
    assert_eq!(refused(kv, vec![Op::Put(large)]).await, KvError::TooLarge);
    let many = vec![Op::Range(RangeRequest::new(key("c/r"))); crate::limits::MAX_TXN_OPS + 1];
    assert_eq!(refused(kv, many).await, KvError::TooManyOps);
    let future = RangeRequest { revision: Revision::MAX, ..RangeRequest::new(key("c/r")) };
    assert_eq!(refused(kv, vec![Op::Range(future)]).await, KvError::FutureRevision);
}

/// An operation that fails late takes the earlier ones back.
pub async fn failed_transactions_change_nothing(kv: &Store) {
    put(kv, "c/undo/kept", "old").await;
    let before = kv.view();
    let ops = vec![
        Op::Put(PutRequest::new("c/undo/kept", "new")),
        Op::Put(PutRequest::new("c/undo/added", "new")),
        Op::Put(PutRequest { lease: 404, ..PutRequest::new("c/undo/leased", "new") }),
    ];
    assert_eq!(refused(kv, ops).await, KvError::LeaseNotFound);
    let view = kv.view();
    assert_eq!(view.get(b"c/undo/kept"), before.get(b"c/undo/kept"));
    assert_eq!(view.count(&prefix("c/undo/")), 1);
}

/// Nested transactions see what the outer one did, and share its revision.
pub async fn nested_transactions(kv: &Store) {
    let inner = Txn {
        compare: vec![Compare::create_revision("c/nest/a", 0)],
        success: vec![Op::Put(PutRequest::new("c/nest/wrong", "v"))],
        failure: vec![Op::Put(PutRequest::new("c/nest/b", "v")), Op::Range(RangeRequest::new(prefix("c/nest/")))],
    };
    let response = run(kv, vec![Op::Put(PutRequest::new("c/nest/a", "v")), Op::Txn(inner)]).await;
    let OpResponse::Txn(false, inner) = &response.responses[1] else { panic!("{response:?}") };
    let OpResponse::Range(found) = &inner[1] else { panic!("{inner:?}") };
    assert_eq!(found.count, 2);
    assert!(found.kvs.iter().all(|kv| kv.mod_revision == response.revision));
}

/// Limits, order, counts, filters, and the past.
pub async fn ranges(kv: &Store) {
    let mut revisions = Vec::new();
    for name in ["c/range/b", "c/range/a", "c/range/c"] {
        revisions.push(put(kv, name, name).await);
    }
    let all = RangeRequest::new(prefix("c/range/"));
    assert_eq!(names(kv, &all), ["c/range/a", "c/range/b", "c/range/c"]);
    let limited = kv.range(&RangeRequest { limit: 2, ..all.clone() }).expect("readable");
    assert_eq!((limited.kvs.len(), limited.more, limited.count), (2, true, 3));
    let exact = kv.range(&RangeRequest { limit: 3, ..all.clone() }).expect("readable");
    assert_eq!((exact.kvs.len(), exact.more), (3, false));
    let counted = kv.range(&RangeRequest { count_only: true, ..all.clone() }).expect("readable");
    assert_eq!((counted.kvs.len(), counted.count), (0, 3));
    let newest = RangeRequest { sort: SortTarget::Mod, descend: true, limit: 2, ..all.clone() };
    assert_eq!(names(kv, &newest), ["c/range/c", "c/range/a"]);
    let filtered = RangeRequest { mod_revision: (revisions[1], revisions[1]), ..all.clone() };
    assert_eq!(names(kv, &filtered), ["c/range/a"]);
    let keys = kv.range(&RangeRequest { keys_only: true, ..all.clone() }).expect("readable");
    assert!(keys.kvs.iter().all(|kv| kv.value.is_empty()));
    delete(kv, key("c/range/b")).await;
    let past = RangeRequest { revision: revisions[1], ..all.clone() };
    assert_eq!(names(kv, &past), ["c/range/a", "c/range/b"]);
    let view = kv.view();
    let rest: Vec<_> = view.range_from(&all.range, b"c/range/a").map(|kv| kv.key.clone()).collect();
    assert_eq!(rest, ["c/range/c"]);
    let reversed = KeyRange::Range(Bytes::from_static(b"c/range/z"), Bytes::from_static(b"c/range/a"));
    assert_eq!(view.count(&reversed), 0);
}

/// Live watches: kinds, previous values, atomic revisions, only what is asked for.
pub async fn watches_live(kv: &Store) {
    let watch = |range| kv.watch(WatchRequest::new(range, 0)).expect("the watch opens");
    let mut by_prefix = watch(prefix("c/live/"));
    let mut by_key = watch(key("c/live/b"));
    let mut by_range = watch(KeyRange::Range(Bytes::from_static(b"c/live/a"), Bytes::from_static(b"c/live/b")));
    put(kv, "c/live/a", "1").await;
    put(kv, "c/other", "1").await;
    let both = vec![Op::Put(PutRequest::new("c/live/a", "2")), Op::Put(PutRequest::new("c/live/b", "2"))];
    let together = run(kv, both).await.revision;
    let deleted = delete(kv, prefix("c/live/")).await;
    let found = events(&mut by_prefix, 5).await;
    let shape: Vec<_> = found.iter().map(|event| (event.kind, &event.kv.key[7..], event.prev.is_some())).collect();
    assert_eq!(
        shape,
        [
            (EventKind::Put, &b"a"[..], false),
            (EventKind::Put, b"a", true),
            (EventKind::Put, b"b", false),
            (EventKind::Delete, b"a", true),
            (EventKind::Delete, b"b", true),
        ]
    );
    assert_eq!((found[1].kv.mod_revision, found[2].kv.mod_revision), (together, together));
    assert_eq!(found[1].prev.as_ref().map(|kv| kv.value.clone()), Some(Bytes::from_static(b"1")));
    assert_eq!((found[4].kv.mod_revision, found[4].kv.value.len()), (deleted, 0));
    assert_eq!(events(&mut by_key, 2).await.len(), 2);
    assert_eq!(events(&mut by_range, 3).await.len(), 3);
}

/// Watches of what concerns something: before a change, after it, or when nobody can tell; and what they have seen.
pub async fn watches_of_a_concern(kv: &Store) {
    /// A byte of a value; values that begin with "?" say nothing.
    fn byte(value: &[u8], at: usize) -> Option<&[u8]> {
        if value.starts_with(b"?") { None } else { Some(value.get(at..=at).unwrap_or_default()) }
    }
    let lens = |field| Lens { read: byte, field };
    let open = |field, concern: &'static str, start_revision| {
        let only = Some(Only { lens: lens(field), concern: concern.into() });
        kv.watch(WatchRequest { range: prefix("c/only/"), start_revision, only }).expect("the watch opens")
    };
    let first = put(kv, "c/only/before", "z").await;
    let wanted = [(0, "a"), (0, "b"), (1, "1"), (0, "")];
    let mut live = wanted.map(|(field, concern)| open(field, concern, 0));
    drop(open(0, "a", 0));
    for (name, value) in [("x", "a1"), ("x", "b1"), ("y", "b2"), ("y", "?"), ("y", "b2"), ("x", "")] {
        put(kv, &format!("c/only/{name}"), value).await;
    }
    delete(kv, prefix("c/only/")).await;
    let expected: [&[&str]; 4] = [
        &["a1", "b1", "?", "b2"],
        &["b1", "b2", "?", "b2", "", "y-"],
        &["a1", "b1", "?", "b2", ""],
        &["?", "b2", "", "x-"],
    ];
    let text = |event: &Arc<Event>| match event.kind {
        EventKind::Delete => format!("{}-", String::from_utf8_lossy(&event.kv.key[7..])),
        EventKind::Put => String::from_utf8_lossy(&event.kv.value).into_owned(),
    };
    for (at, watch) in live.iter_mut().enumerate() {
        let found = events(watch, expected[at].len()).await;
        // The end of a transaction's deletions comes with those that are wanted.
        let found: Vec<_> = found.iter().map(text).collect();
        assert_eq!(found, expected[at], "{:?}", wanted[at]);
    }
    let end = put(kv, "c/only/end", "c").await;
    kv.progress();
    for watch in &mut live {
        let batch = watch.next().await.expect("the watch goes on").expect("the watch is not cut");
        assert!(batch.events.is_empty() && batch.revision >= end, "{batch:?}");
        assert!(watch.seen().is_some_and(|seen| seen >= end), "nothing is left of what is before the end");
    }
    // From the past: nothing that is wanted is missing, in order.
    let mut past = open(0, "b", first);
    assert_eq!(past.seen(), None);
    let found: Vec<_> = events(&mut past, expected[1].len()).await.iter().map(text).collect();
    assert!(expected[1].iter().all(|text| found.iter().any(|found| found == text)), "{found:?}");
}

/// A watch from a past revision delivers history, then goes on live without gap or repetition.
pub async fn watches_from_the_past(kv: &Store) {
    let mut revisions = Vec::new();
    for value in ["1", "2", "3"] {
        revisions.push(put(kv, "c/past", value).await);
    }
    let request = WatchRequest::new(key("c/past"), revisions[1]);
    let mut watch = kv.watch(request).expect("the watch opens");
    let found = events(&mut watch, 2).await;
    assert_eq!(found.iter().map(|event| event.kv.mod_revision).collect::<Vec<_>>(), revisions[1..]);
    assert_eq!(found[0].prev.as_ref().map(|kv| kv.mod_revision), Some(revisions[0]));
    let live = put(kv, "c/past", "4").await;
    let found = events(&mut watch, 1).await;
    assert_eq!((found.len(), found[0].kv.mod_revision), (1, live));
    let request = WatchRequest::new(key("c/past"), kv.view().revision() + 2);
    let mut future = kv.watch(request).expect("the watch opens");
    put(kv, "c/past", "too early").await;
    let wanted = put(kv, "c/past", "5").await;
    assert_eq!(events(&mut future, 1).await[0].kv.mod_revision, wanted);
}

/// Progress is reported on request, never before the events it covers.
pub async fn watch_progress(kv: &Store) {
    let mut watch = kv.watch(WatchRequest::new(key("c/progress"), 0)).expect("the watch opens");
    let own = put(kv, "c/progress", "v").await;
    let other = put(kv, "c/progress/other", "v").await;
    kv.progress();
    assert_eq!(events(&mut watch, 1).await[0].kv.mod_revision, own);
    kv.progress();
    let batch = watch.next().await.expect("the watch goes on").expect("the watch is not cut");
    assert!(batch.events.is_empty() && batch.revision >= other, "{batch:?}");
}

/// A watcher that does not read overflows its queue and still gets everything, once and in order.
pub async fn slow_watchers_lose_nothing(kv: &Store) {
    let mut watch = kv.watch(WatchRequest::new(prefix("c/slow/"), 0)).expect("the watch opens");
    let count = crate::limits::WATCH_QUEUE_EVENTS + crate::limits::WATCH_CATCH_UP_REVISIONS + 10;
    let value = "v".repeat(16);
    let mut written = Vec::new();
    for chunk in (0..count).collect::<Vec<_>>().chunks(64) {
        let puts = chunk.iter().map(|at| put(kv, if at % 3 == 0 { "c/slow/x" } else { "c/slow/y" }, &value));
        written.extend(futures::future::join_all(puts).await);
    }
    written.sort_unstable();
    let found: Vec<_> = events(&mut watch, count).await.iter().map(|event| event.kv.mod_revision).collect();
    assert_eq!(found, written);
}

/// Leases hold keys and delete them in one revision.
pub async fn leases(kv: &Store) {
    let id = kv.lease_grant(0, 60).await.expect("granted");
    assert_eq!(kv.lease_grant(id, 60).await, Err(KvError::LeaseExists));
    assert_eq!(kv.lease_grant(0, i64::MAX).await, Err(KvError::LeaseTtlTooLarge));
    for name in ["c/lease/b", "c/lease/a"] {
        run(kv, vec![Op::Put(PutRequest { lease: id, ..PutRequest::new(name, "v") })]).await;
    }
    run(kv, vec![Op::Put(PutRequest { lease: id, ..PutRequest::new("c/lease/detached", "v") })]).await;
    put(kv, "c/lease/detached", "w").await;
    run(kv, vec![Op::Put(PutRequest { ignore_lease: true, ..PutRequest::new("c/lease/a", "w") })]).await;
    assert!(kv.leases().contains(&id));
    assert_eq!(kv.lease_keep_alive(id).await, Ok(60));
    let status = kv.lease_status(id).await.expect("known");
    assert_eq!((status.granted_ttl, status.keys), (60, vec![Bytes::from("c/lease/a"), Bytes::from("c/lease/b")]));
    assert!(status.remaining_ttl <= 60 && status.remaining_ttl > 0);
    let mut watch = kv.watch(WatchRequest::new(prefix("c/lease/"), 0)).expect("the watch opens");
    kv.lease_revoke(id).await.expect("revoked");
    let found = events(&mut watch, 2).await;
    assert!(found.iter().all(|event| event.kind == EventKind::Delete));
    assert_eq!(found[0].kv.mod_revision, found[1].kv.mod_revision);
    assert_eq!(kv.view().count(&prefix("c/lease/")), 1);
    assert_eq!(kv.lease_revoke(id).await, Err(KvError::LeaseNotFound));
    assert_eq!(kv.lease_keep_alive(id).await, Err(KvError::LeaseNotFound));
}

/// Compaction keeps what is at its revision and refuses what is below.
pub async fn compaction(kv: &Store) {
    let first = put(kv, "c/compact/a", "1").await;
    put(kv, "c/compact/b", "1").await;
    delete(kv, key("c/compact/b")).await;
    let kept = put(kv, "c/compact/a", "2").await;
    put(kv, "c/compact/a", "3").await;
    assert_eq!(kv.compact(Revision::MAX).await, Err(KvError::FutureRevision));
    kv.compact(kept).await.expect("compacted");
    assert_eq!(kv.compact(kept).await, Err(KvError::Compacted(kept)));
    let at = |revision| kv.range(&RangeRequest { revision, ..RangeRequest::new(prefix("c/compact/")) });
    assert_eq!(at(first), Err(KvError::Compacted(kept)));
    assert_eq!(at(kept).expect("still there").kvs[0].value, "2");
    let watch = |start_revision| kv.watch(WatchRequest::new(prefix("c/compact/"), start_revision));
    assert_eq!(watch(first).err(), Some(KvError::Compacted(kept)));
    let mut watch = watch(kept).expect("the watch opens");
    let found = events(&mut watch, 2).await;
    assert_eq!(found[0].kv.mod_revision, kept);
}

/// Settings change atomically and only while their guards hold; they have no revision.
pub async fn settings(kv: &Store) {
    let one = |name: &'static str, value: Option<&'static str>| {
        vec![(Bytes::from_static(name.as_bytes()), value.map(|value| Bytes::from_static(value.as_bytes())))]
    };
    let change = |guards, writes| kv.change_settings(SettingsChange { guards, writes });
    change(one("c/set/a", None), one("c/set/a", Some("1"))).await.expect("it was absent");
    assert_eq!(kv.view().setting(b"c/set/a").map(|value| &value[..]), Some(&b"1"[..]));
    let refused = change(one("c/set/a", None), one("c/set/b", Some("2"))).await;
    assert_eq!(refused, Err(KvError::SettingsConflict));
    assert_eq!(kv.view().settings(b"c/set/").count(), 1, "a refused change changes nothing");
    let before = kv.view().revision();
    let txn = || Txn { success: vec![Op::Put(PutRequest::new("c/set/key", "v"))], ..Txn::default() };
    let id = kv.lease_grant(0, 60).await.expect("granted");
    assert_eq!(kv.txn_if(one("c/set/a", Some("2")), txn()).await, Err(KvError::SettingsConflict));
    assert_eq!(kv.lease_revoke_if(one("c/set/a", None), id).await, Err(KvError::SettingsConflict));
    assert_eq!((kv.view().revision(), kv.leases().contains(&id)), (before, true), "what is refused changes nothing");
    kv.txn_if(one("c/set/a", Some("1")), txn()).await.expect("the guard holds");
    kv.lease_revoke_if(one("c/set/a", Some("1")), id).await.expect("the guard holds");
    assert!(kv.view().get(b"c/set/key").is_some() && !kv.leases().contains(&id));
    change(one("c/set/a", Some("1")), one("c/set/a", None)).await.expect("it is what it was");
    assert_eq!(kv.view().setting(b"c/set/a"), None);
}
