//! A queue of keys: a key that is added many times is worked on once, never by two workers at a time, and after a failure
//! again with a growing pause.
//!
//! Invariants: a key added while it is worked on is given out again after [`Queue::done`]; the queue holds each key at
//! most once, so its size is bounded by the number of keys.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Pause after the first failure of a key; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

struct State<T> {
    /// Keys to work on, and since when.
    ready: VecDeque<(T, Instant)>,
    /// How many were put into `ready`.
    added: u64,
    /// How many failed.
    retried: u64,
    /// Keys that wait in `ready`, or are to be added to it when their worker is done.
    dirty: HashSet<T>,
    working: HashSet<T>,
    /// When a key is due, and the same in the order of time.
    due: HashMap<T, Instant>,
    order: BTreeSet<(Instant, T)>,
    failures: HashMap<T, u32>,
}

/// The queue.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

impl<T: Hash + Ord + Clone> Default for Queue<T> {
    fn default() -> Self {
        let state = State {
            ready: VecDeque::new(),
            added: 0,
            retried: 0,
            dirty: HashSet::new(),
            working: HashSet::new(),
            due: HashMap::new(),
            order: BTreeSet::new(),
            failures: HashMap::new(),
        };
        Self { state: Mutex::new(state), wake: Notify::new() }
    }
}

impl<T: Hash + Ord + Clone> State<T> {
    fn add(&mut self, key: T) -> bool {
        if !self.dirty.insert(key.clone()) || self.working.contains(&key) {
            return false;
        }
        self.push(key);
        true
    }

    fn push(&mut self, key: T) {
        self.added += 1;
        self.ready.push_back((key, Instant::now()));
    }

    /// Makes the keys ready whose time has come.
    fn ripen(&mut self, now: Instant) {
        while self.order.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.order.pop_first() {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }
}

impl<T: Hash + Ord + Clone> Queue<T> {
    /// Adds a key.
    pub fn add(&self, key: T) {
        if self.state.lock().add(key) {
            self.wake.notify_one();
        }
    }

    /// Adds a key after a pause; of several pauses the shortest counts.
    pub fn add_after(&self, key: T, pause: Duration) {
        if pause.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + pause;
        let mut state = self.state.lock();
        if let Some(earlier) = state.due.get(&key).copied() {
            if earlier <= at {
                return;
            }
            state.order.remove(&(earlier, key.clone()));
        }
        state.due.insert(key.clone(), at);
        state.order.insert((at, key));
        drop(state);
        self.wake.notify_one();
    }

    /// Adds a key after a failure: the pause doubles each time until [`Queue::forget`].
    pub fn retry(&self, key: T) {
        let failures = {
            let mut state = self.state.lock();
            state.retried += 1;
            let count = state.failures.entry(key.clone()).or_default();
            *count = count.saturating_add(1);
            *count
        };
        let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(20));
        self.add_after(key, pause.min(LONGEST_PAUSE));
    }

    /// The key worked: its next failure is again a first one.
    pub fn forget(&self, key: &T) {
        self.state.lock().failures.remove(key);
    }

    /// Waits for a key to work on; [`Queue::done`] must follow.
    pub async fn next(&self) -> T {
        self.next_timed().await.0
    }

    /// How many wait, how many were ever added, and how many of these after a failure.
    pub fn counts(&self) -> (usize, u64, u64) {
        let state = self.state.lock();
        (state.ready.len(), state.added, state.retried)
    }

    /// As [`Queue::next`], with how long the key waited for a worker.
    pub async fn next_timed(&self) -> (T, Duration) {
        loop {
            let next = {
                let mut state = self.state.lock();
                state.ripen(Instant::now());
                if let Some((key, since)) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.working.insert(key.clone());
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return (key, since.elapsed());
                }
                state.order.first().map(|(at, _)| *at)
            };
            match next {
                Some(at) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => self.wake.notified().await,
            }
        }
    }

    /// The worker of a key is done with it.
    pub fn done(&self, key: &T) {
        let mut state = self.state.lock();
        state.working.remove(key);
        if state.dirty.contains(key) {
            state.push(key.clone());
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Keys that wait to be worked on now.
    pub fn depth(&self) -> usize {
        self.state.lock().ready.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_given_out_once_and_again_if_it_changed_meanwhile() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert_eq!(queue.next().await, "b");
        assert_eq!(queue.depth(), 0);
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a");
        queue.done(&"b");
        assert_eq!(queue.depth(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_make_the_pause_grow_up_to_its_limit() {
        let queue = Queue::default();
        let mut pauses = Vec::new();
        for _ in 0..20 {
            let start = Instant::now();
            queue.retry("a");
            let key = queue.next().await;
            pauses.push(start.elapsed());
            queue.done(&key);
        }
        assert!(pauses[0] >= FIRST_PAUSE && pauses[0] < FIRST_PAUSE * 2);
        assert!(pauses.windows(2).all(|w| w[1] >= w[0]));
        assert!(pauses[19] >= LONGEST_PAUSE && pauses[19] < LONGEST_PAUSE * 2);
        queue.forget(&"a");
        let start = Instant::now();
        queue.retry("a");
        queue.next().await;
        assert!(start.elapsed() < FIRST_PAUSE * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_shortest_pause_counts() {
        let queue = Queue::default();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(9));
        queue.add_after("a", Duration::from_secs(3));
        queue.add_after("a", Duration::from_secs(5));
        queue.next().await;
        assert_eq!(start.elapsed().as_secs(), 3);
        queue.done(&"a");
        assert!(queue.state.lock().order.is_empty() && queue.state.lock().due.is_empty());
    }
}
