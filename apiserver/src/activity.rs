//! What a connection does, so that one that does nothing is closed: after upstream's times, and for the price of a few
//! atomic numbers instead of a timer for each request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

/// A connection without requests is closed after this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// The head of a request must have come within this from its first byte, and that of the first from the beginning.
const HEADER_TIMEOUT: Duration = Duration::from_secs(32);

/// What one connection does.
pub struct Activity {
    started: Instant,
    requests: AtomicUsize,
    /// When the last request ended.
    idle: AtomicU64,
    /// When the first byte of the head came that is not complete, in milliseconds from one on; 0: there is none.
    head: AtomicU64,
}

/// A request under way.
pub struct Request(Arc<Activity>);

impl Activity {
    /// Of a connection that begins; `with_heads`: its requests come one after another, so that a byte between them begins
    /// the next one's head.
    pub fn new(with_heads: bool) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            requests: AtomicUsize::new(0),
            idle: AtomicU64::new(0),
            head: AtomicU64::new(u64::from(with_heads)),
        })
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Bytes came.
    pub fn came(&self) {
        if self.requests.load(Relaxed) == 0 && self.head.load(Relaxed) == 0 {
            self.head.store(self.now() + 1, Relaxed);
        }
    }

    /// A request's head is complete.
    pub fn begin(self: &Arc<Self>) -> Request {
        self.requests.fetch_add(1, Relaxed);
        self.head.store(0, Relaxed);
        Request(self.clone())
    }

    /// How long until the connection is to be looked at again; `None`: it is over.
    fn left(&self, now: Duration) -> Option<Duration> {
        if self.requests.load(Relaxed) > 0 {
            return Some(HEADER_TIMEOUT);
        }
        let (since, limit) = match self.head.load(Relaxed) {
            0 => (self.idle.load(Relaxed), IDLE_TIMEOUT),
            head => (head - 1, HEADER_TIMEOUT),
        };
        // A head may begin while nobody looks.
        let left = (Duration::from_millis(since) + limit).saturating_sub(now);
        (!left.is_zero()).then_some(left.min(HEADER_TIMEOUT))
    }

    /// Waits until the connection is over.
    pub async fn over(&self) {
        while let Some(left) = self.left(self.started.elapsed()) {
            tokio::time::sleep(left).await;
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.0.idle.store(self.0.now(), Relaxed);
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_over_when_it_does_nothing() {
        // Requests under way, when the last ended and when a head began in seconds; how long is left at some second.
        for (requests, idle, head, now, left) in [
            (0, 0, Some(0), 31, Some(1)),
            (0, 0, Some(0), 32, None),
            (1, 0, None, 1_000, Some(32)),
            (0, 0, None, 1, Some(32)),
            (0, 1_000, None, 1_089, Some(1)),
            (0, 1_000, None, 1_090, None),
            (0, 1_000, Some(1_080), 1_090, Some(22)),
            (0, 1_000, Some(1_080), 1_112, None),
            (2, 1_000, Some(1_080), 2_000, Some(32)),
        ] {
            let activity = Activity::new(false);
            activity.requests.store(requests, Relaxed);
            activity.idle.store(idle * 1_000, Relaxed);
            activity.head.store(head.map_or(0, |at| at * 1_000 + 1), Relaxed);
            let found = activity.left(Duration::from_secs(now));
            assert_eq!(found, left.map(Duration::from_secs), "{requests} {idle} {head:?} {now}");
        }
    }

    #[test]
    fn a_head_begins_with_its_first_byte_and_ends_with_its_request() {
        let heads = |activity: &Activity| activity.head.load(Relaxed) > 0;
        assert!(heads(&Activity::new(true)), "the first is waited for from the beginning");
        let activity = Activity::new(false);
        assert!(!heads(&activity));
        activity.came();
        let began = activity.head.load(Relaxed);
        activity.came();
        assert_eq!(activity.head.load(Relaxed), began, "another byte does not put the end off");
        let (first, second) = (activity.begin(), activity.begin());
        activity.came();
        assert!(!heads(&activity), "bytes of a body are no head");
        drop(first);
        activity.came();
        assert!(!heads(&activity));
        drop(second);
        assert_eq!(activity.requests.load(Relaxed), 0);
        activity.came();
        assert!(heads(&activity));
    }
}
