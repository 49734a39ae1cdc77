//! The contract on the local store, and what is special about it: it survives being closed and killed.

use std::sync::Arc;

use keelson_store::{Kv, LocalKv, Op, PutRequest, Txn, contract};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_store_keeps_the_contract() {
    let dir = tempfile::tempdir().expect("a directory");
    contract::all(Arc::new(LocalKv::open(dir.path()).expect("opens"))).await;
}

#[tokio::test]
async fn acknowledged_writes_are_in_the_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let copy = tempfile::tempdir().expect("a directory");
    let kv = LocalKv::open(dir.path()).expect("opens");
    let lease = kv.lease_grant(7, 60).await.expect("granted");
    let put = Op::Put(PutRequest { lease, ..PutRequest::new("key", "value") });
    let written = kv.txn(Txn { success: vec![put], ..Txn::default() }).await.expect("written");
    // What a crash would leave: the files as they are while the store is open.
    copy_tree(dir.path(), copy.path());
    let again = LocalKv::open(copy.path()).expect("opens after a crash");
    let view = again.view();
    assert_eq!((view.revision(), view.hash()), (written.revision, kv.view().hash()));
    assert_eq!(view.get(b"key"), kv.view().get(b"key"));
    assert_eq!(again.lease_status(7).await.expect("known").keys, ["key"]);
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("listed");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).expect("created");
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}
