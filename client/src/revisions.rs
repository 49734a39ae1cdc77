//! Waiting for a revision: who waits is woken once, when it is there, and not by every change before it.
//!
//! Invariant: nobody waits for a revision that is not above the newest.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;

#[derive(Default)]
struct State {
    newest: u64,
    waiting: BTreeMap<u64, Vec<oneshot::Sender<()>>>,
}

/// The newest revision, and who waits for later ones.
#[derive(Default)]
pub(crate) struct Revisions(Mutex<State>);

impl Revisions {
    /// The newest.
    pub(crate) fn newest(&self) -> u64 {
        self.0.lock().newest
    }

    /// A revision is there. Whether it is newer than what was.
    pub(crate) fn advance(&self, to: u64) -> bool {
        let mut state = self.0.lock();
        if to <= state.newest {
            return false;
        }
        state.newest = to;
        while let Some(first) = state.waiting.first_entry().filter(|entry| *entry.key() <= to) {
            for one in first.remove() {
                // Who gave up waiting does not mind.
                let _ = one.send(());
            }
        }
        true
    }

    /// Waits until a revision, or a later one, is there.
    pub(crate) async fn reached(&self, revision: u64) {
        let there = {
            let mut state = self.0.lock();
            if revision <= state.newest {
                return;
            }
            let (sender, there) = oneshot::channel();
            let waiting = state.waiting.entry(revision).or_default();
            waiting.retain(|other| !other.is_closed());
            waiting.push(sender);
            there
        };
        // The sender is dropped unused only with all of this.
        let _ = there.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn each_is_woken_by_its_revision() {
        let revisions = Revisions::default();
        assert!(revisions.advance(5) && !revisions.advance(5) && !revisions.advance(4));
        assert!(revisions.reached(5).now_or_never().is_some(), "it is there already");
        let mut sixth = Box::pin(revisions.reached(6));
        let mut eighth = Box::pin(revisions.reached(8));
        assert!(sixth.as_mut().now_or_never().is_none() && eighth.as_mut().now_or_never().is_none());
        revisions.advance(7);
        assert!(sixth.as_mut().now_or_never().is_some() && eighth.as_mut().now_or_never().is_none());
        revisions.advance(8);
        assert!(eighth.as_mut().now_or_never().is_some());
        assert!(revisions.0.lock().waiting.is_empty() && revisions.newest() == 8);
    }
}
