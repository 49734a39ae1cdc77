//! Read barriers that many readers share.
//!
//! Invariant: whoever asks for a barrier gets one that began after the question.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use keelson_store::KvError;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Rounds that are under way at once.
const ROUNDS: usize = 2;

type Round = Shared<BoxFuture<'static, Result<(), KvError>>>;

/// Gathers readers into rounds.
pub struct Barrier {
    running: Arc<Semaphore>,
    /// A round that has not begun.
    next: Arc<Mutex<Option<Round>>>,
}

impl Default for Barrier {
    fn default() -> Self {
        Self { running: Arc::new(Semaphore::new(ROUNDS)), next: Arc::default() }
    }
}

impl Barrier {
    /// Joins the next round; `round` is run if this is its first reader.
    pub fn join(&self, round: impl FnOnce() -> BoxFuture<'static, Result<(), KvError>> + Send + 'static) -> Round {
        let mut next = self.next.lock();
        if let Some(round) = &*next {
            return round.clone();
        }
        let (running, slot) = (self.running.clone(), self.next.clone());
        let gathered = async move {
            let _running = running.acquire_owned().await;
            *slot.lock() = None;
            round().await
        };
        // No task of its own, which would cost more than the round: whichever reader is left drives it on when another one
        // loses patience.
        let shared = gathered.boxed().shared();
        *next = Some(shared.clone());
        shared
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn readers_share_rounds_that_began_after_them() {
        let barrier = Barrier::default();
        let begun = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Semaphore::new(0));
        let join = || {
            let (begun, gate) = (begun.clone(), gate.clone());
            barrier.join(move || {
                begun.fetch_add(1, Ordering::SeqCst);
                async move {
                    gate.acquire().await.map_err(|error| KvError::Stopped(error.to_string()))?.forget();
                    Ok(())
                }
                .boxed()
            })
        };
        let mut early = Vec::new();
        for _ in 0..ROUNDS {
            early.push(tokio::spawn(join()));
            while begun.load(Ordering::SeqCst) < early.len() {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(begun.load(Ordering::SeqCst), ROUNDS);
        let impatient = join();
        let late: Vec<_> = (0..10).map(|_| tokio::spawn(join())).collect();
        tokio::task::yield_now().await;
        drop(impatient);
        assert_eq!(begun.load(Ordering::SeqCst), ROUNDS, "all that came late wait for one round");
        gate.add_permits(ROUNDS + 1);
        for round in early.into_iter().chain(late) {
            assert_eq!(round.await.expect("no panic"), Ok(()));
        }
        assert_eq!(begun.load(Ordering::SeqCst), ROUNDS + 1);
    }
}
