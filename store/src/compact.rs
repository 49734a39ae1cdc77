//! The background thread that forgets compacted history, step by step.
//!
//! Invariant: progress is stored with the deletions of each step, so an interrupted compaction goes on where it was.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::disk::Disk;
use crate::limits::COMPACT_STEP_REVISIONS;
use crate::record::COMPACTED_KEY;
use crate::{Fatal, Revision};

/// The latest compaction asked for; an older one is part of it.
type Target = Arc<Mutex<Option<(Arc<Disk>, Revision)>>>;

/// Handle of the compaction thread; dropping it stops the thread after its current step.
pub(crate) struct Compactor {
    /// There is no thread: whoever asks compacts.
    inline: bool,
    target: Target,
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Compactor {
    pub fn start(inline: bool) -> Result<Self, Fatal> {
        let target = Target::default();
        if inline {
            return Ok(Self { inline, target, wake: None, thread: None });
        }
        // One token is enough: whoever takes it looks at the latest target.
        let (wake, woken) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("store-compact".into())
            .spawn({
                let target = target.clone();
                move || run(&target, &woken)
            })
            .map_err(|error| Fatal::Io(format!("cannot start the compaction thread: {error}")))?;
        Ok(Self { inline, target, wake: Some(wake), thread: Some(thread) })
    }

    /// Forgets what lies below `revision`, soon.
    pub fn request(&self, disk: Arc<Disk>, revision: Revision) {
        if revision <= 0 {
            return;
        }
        *self.target.lock() = Some((disk, revision));
        if self.inline {
            work(&self.target);
        }
        if let Some(wake) = &self.wake {
            // A full channel means that the thread will look anyway.
            let _ = wake.try_send(());
        }
    }

    /// Forgets any compaction of a database that is going away.
    pub fn cancel(&self) {
        *self.target.lock() = None;
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.cancel();
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(target: &Target, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        work(target);
    }
}

/// Compacts until nothing is asked for.
fn work(target: &Target) {
    loop {
        let Some((disk, revision)) = target.lock().clone() else { break };
        match step(&disk, revision) {
            Ok(true) => {
                let mut latest = target.lock();
                if matches!(&*latest, Some((other, to)) if *to == revision && Arc::ptr_eq(other, &disk)) {
                    *latest = None;
                }
            }
            Ok(false) => {}
            Err(fatal) => {
                disk.fail(&fatal);
                *target.lock() = None;
            }
        }
    }
}

/// Does one step; true when there is nothing left to do.
fn step(disk: &Disk, to: Revision) -> Result<bool, Fatal> {
    let from = disk.pair(COMPACTED_KEY)?.map_or(0, |(progress, _)| progress);
    Ok(from >= to || disk.compact_step(from, to, COMPACT_STEP_REVISIONS)? >= to)
}
