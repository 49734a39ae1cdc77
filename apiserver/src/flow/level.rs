//! A priority level: who has its seats, who waits for them, and how those take turns.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::access::Attributes;

/// Part of the old demand that is remembered when it falls: a level keeps what it needed a moment ago.
const MEMORY: f64 = 0.977;

/// Part of a level's own seats that one request may take.
const WIDEST_PART: f64 = 0.15;

/// A priority level as it is configured.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    pub(super) uid: String,
    pub(super) exempt: bool,
    /// Seats that are its own.
    pub(super) seats: usize,
    /// Seats of these that it may lend.
    pub(super) lends: usize,
    /// Seats beside these that it may borrow; `None`: any number.
    pub(super) borrows: Option<usize>,
    /// Number of queues, length of each, and how many a flow may choose from; `None`: nothing waits.
    pub(super) queues: Option<(usize, usize, usize)>,
}

impl Shape {
    /// Most seats that one request may take where requests wait: no more than a part of the level's own, so that a few lists
    /// do not have all of them.
    pub(super) fn widest(&self) -> usize {
        let Some((.., hand)) = self.queues else { return usize::MAX };
        ((self.seats as f64 * WIDEST_PART).ceil() as usize).min(self.seats / hand.max(1)).max(1)
    }
}

/// A priority level.
pub(super) struct Level {
    pub(super) shape: Shape,
    pub(super) state: Mutex<State>,
}

/// One that waits for seats.
pub(super) struct Waiter {
    pub(super) width: usize,
    pub(super) door: oneshot::Sender<Permit>,
    pub(super) what: Box<Waiting>,
}

/// What is told of a request that waits.
pub(super) struct Waiting {
    pub(super) schema: String,
    /// What tells its flow from others of the schema.
    pub(super) flow: String,
    pub(super) arrived: jiff::Timestamp,
    pub(super) user: String,
    pub(super) asked: Attributes,
}

/// What became of a level's requests.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) executing: u64,
    pub(super) dispatched: u64,
    pub(super) rejected: u64,
    pub(super) timed_out: u64,
    /// Waited and were gone when it was their turn.
    pub(super) gone: u64,
}

#[derive(Default)]
pub(super) struct State {
    /// Seats at the moment: its own, without those that are lent, with those that are borrowed.
    pub(super) limit: usize,
    pub(super) busy: usize,
    /// Most seats that were wanted at once since seats were last settled.
    pub(super) peak: usize,
    /// What is expected to be wanted, from the past.
    pub(super) demand: f64,
    pub(super) queues: Vec<VecDeque<Waiter>>,
    pub(super) next: usize,
    pub(super) counts: Counts,
}

impl State {
    /// A request begins.
    pub(super) fn take(&mut self, width: usize) {
        self.busy += width;
        self.counts.executing += 1;
        self.counts.dispatched += 1;
    }

    /// One ends.
    pub(super) fn give(&mut self, width: usize) {
        self.busy = self.busy.saturating_sub(width);
        self.counts.executing = self.counts.executing.saturating_sub(1);
    }

    pub(super) fn wanted(&self) -> usize {
        let waiting = self.queues.iter().flatten().filter(|waiter| !waiter.door.is_closed());
        self.busy + waiting.map(|waiter| waiter.width).sum::<usize>()
    }

    /// Whether a request of this width may begin: it fits, or nobody else is there.
    pub(super) fn has_room(&self, width: usize) -> bool {
        self.busy + width <= self.limit || self.busy == 0
    }
}

/// Seats; given back when it is dropped.
pub struct Permit {
    pub(super) level: Option<Arc<Level>>,
    pub(super) width: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(level) = self.level.take() {
            level.release(self.width);
        }
    }
}

/// What becomes of a request at a level's door.
pub(super) enum Entry {
    Seat(Permit),
    Wait(oneshot::Receiver<Permit>),
    Full,
}

impl Permit {
    /// One that takes no seat.
    pub(super) fn free() -> Self {
        Self { level: None, width: 0 }
    }
}

impl Level {
    pub(super) fn new(shape: Shape) -> Self {
        let count = shape.queues.map_or(0, |(count, ..)| count);
        let queues = (0..count).map(|_| VecDeque::new()).collect();
        let limit = shape.seats;
        Self { shape, state: Mutex::new(State { limit, queues, ..State::default() }) }
    }

    pub(super) fn permit(self: &Arc<Self>, width: usize) -> Permit {
        Permit { level: Some(self.clone()), width }
    }

    /// What the level is expected to want, from the most that it wanted since it was last asked.
    pub(super) fn observed(&self) -> f64 {
        let mut state = self.state.lock();
        let peak = state.peak.max(state.wanted()) as f64;
        state.demand = if peak >= state.demand { peak } else { MEMORY * state.demand + (1.0 - MEMORY) * peak };
        state.peak = 0;
        // What is wanted now counts at once, what was wanted fades.
        state.demand.max(peak)
    }

    /// Gives the level another number of seats. Of what is taken nothing is taken away.
    pub(super) fn resize(self: &Arc<Self>, limit: usize) {
        self.state.lock().limit = limit.max(1);
        self.admit();
    }

    pub(super) fn enter(self: &Arc<Self>, flow: u64, width: usize, what: impl FnOnce() -> Box<Waiting>) -> Entry {
        let mut state = self.state.lock();
        let nobody_waits = state.queues.iter().all(VecDeque::is_empty);
        if nobody_waits && state.has_room(width) {
            state.take(width);
            state.peak = state.peak.max(state.busy);
            return Entry::Seat(self.permit(width));
        }
        let Some((count, length, hand)) = self.shape.queues else {
            state.peak = state.peak.max(state.busy + width);
            state.counts.rejected += 1;
            return Entry::Full;
        };
        // A flow always has the same few queues to choose from: a greedy one fills those, and others still have theirs.
        let dealt = (0..hand.min(count) as u64).map(|i| {
            let mut hasher = DefaultHasher::new();
            (flow, i).hash(&mut hasher);
            hasher.finish() as usize % count
        });
        let Some(queue) = dealt.min_by_key(|index| state.queues[*index].len()) else { return Entry::Full };
        // Those that gave up waiting hold no place.
        let before = state.queues[queue].len();
        state.queues[queue].retain(|waiter| !waiter.door.is_closed());
        state.counts.gone += (before - state.queues[queue].len()) as u64;
        if state.queues[queue].len() >= length {
            state.counts.rejected += 1;
            return Entry::Full;
        }
        let (door, receiver) = oneshot::channel();
        state.queues[queue].push_back(Waiter { width, door, what: what() });
        state.peak = state.peak.max(state.wanted());
        Entry::Wait(receiver)
    }

    /// Gives seats back, and to the next that wait.
    pub(super) fn release(self: &Arc<Self>, width: usize) {
        {
            let mut state = self.state.lock();
            state.give(width);
        }
        self.admit();
    }

    /// Lets in those that wait as long as there is room for the next: the queues take turns.
    pub(super) fn admit(self: &Arc<Self>) {
        loop {
            let waiter = {
                let mut state = self.state.lock();
                let count = state.queues.len();
                let turn = (0..count).map(|i| (state.next + i) % count).find(|i| !state.queues[*i].is_empty());
                let Some(turn) = turn else { return };
                let gone = state.queues[turn].front().is_some_and(|waiter| waiter.door.is_closed());
                let room = state.queues[turn].front().is_some_and(|waiter| state.has_room(waiter.width));
                if !gone && !room {
                    return;
                }
                state.next = (turn + 1) % count;
                let waiter = state.queues[turn].pop_front();
                match &waiter {
                    Some(waiter) if !gone => state.take(waiter.width),
                    _ => state.counts.gone += 1,
                }
                waiter.filter(|_| !gone)
            };
            let Some(Waiter { width, door, .. }) = waiter else { continue };
            if let Err(mut permit) = door.send(self.permit(width)) {
                // It gave up just now: its seats are free again.
                permit.level = None;
                let mut state = self.state.lock();
                state.give(width);
                state.counts.dispatched = state.counts.dispatched.saturating_sub(1);
                state.counts.gone += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of a request of the tests.
    fn what() -> Box<Waiting> {
        let (schema, flow, user) = ("s".into(), "f".into(), "u".into());
        Box::new(Waiting { schema, flow, arrived: jiff::Timestamp::UNIX_EPOCH, user, asked: Attributes::default() })
    }

    fn level(seats: usize, queues: Option<(usize, usize, usize)>) -> Arc<Level> {
        Arc::new(Level::new(shape(seats, queues)))
    }

    fn shape(seats: usize, queues: Option<(usize, usize, usize)>) -> Shape {
        Shape { uid: "u".into(), exempt: false, seats, lends: 0, borrows: None, queues }
    }

    #[test]
    fn one_request_takes_a_part_of_the_seats() {
        for (seats, hand, widest) in [(600, 8, 75), (245, 6, 37), (49, 6, 8), (20, 2, 3), (7, 8, 1), (1, 1, 1)] {
            assert_eq!(shape(seats, Some((64, 50, hand))).widest(), widest, "{seats} {hand}");
        }
        assert_eq!(shape(13, None).widest(), usize::MAX, "what is refused at once waits for nothing");
    }

    #[tokio::test]
    async fn wide_requests_take_several_seats_and_the_widest_run_alone() {
        let level = level(4, Some((1, 10, 1)));
        let Entry::Seat(wide) = level.enter(1, 3, what) else { panic!("there is room for three") };
        let Entry::Wait(second) = level.enter(1, 2, what) else { panic!("there is no room for two more") };
        let Entry::Wait(mut third) = level.enter(1, 10, what) else { panic!("nobody overtakes") };
        drop(wide);
        let second = second.await.unwrap();
        assert_eq!(level.state.lock().busy, 2);
        assert!(third.try_recv().is_err(), "it is wider than what is left");
        drop(second);
        let third = third.await.unwrap();
        assert_eq!(level.state.lock().busy, 10, "wider than the level, but alone");
        let Entry::Wait(last) = level.enter(1, 1, what) else { panic!("nothing runs beside it") };
        drop(third);
        drop(last.await.unwrap());
        assert_eq!(level.state.lock().busy, 0);
    }

    #[tokio::test]
    async fn borrowed_seats_are_used_at_once_and_given_back_as_they_become_free() {
        let level = level(1, Some((1, 10, 1)));
        let Entry::Seat(first) = level.enter(1, 1, what) else { panic!("the first gets the seat") };
        let Entry::Wait(second) = level.enter(1, 1, what) else { panic!("the second waits") };
        assert!(level.observed() >= 2.0);
        level.resize(2);
        let second = second.await.unwrap();
        level.resize(1);
        let Entry::Wait(mut third) = level.enter(1, 1, what) else { panic!("two are busy on one seat") };
        drop(first);
        assert!(third.try_recv().is_err(), "the borrowed seat goes back first");
        drop(second);
        drop(third.await.unwrap());
    }

    #[tokio::test]
    async fn seats_are_limited_and_waiters_take_turns() {
        let level = level(1, Some((8, 2, 2)));
        let Entry::Seat(first) = level.enter(1, 1, what) else { panic!("the first gets the seat") };
        let Entry::Wait(mut second) = level.enter(1, 1, what) else { panic!("the second waits") };
        let Entry::Wait(third) = level.enter(2, 1, what) else { panic!("another flow waits too") };
        assert!(second.try_recv().is_err(), "the seat is taken");
        drop(third);
        drop(first);
        let permit = second.await.unwrap();
        assert_eq!(level.state.lock().busy, 1);
        drop(permit);
        assert_eq!(level.state.lock().busy, 0, "one that gave up does not keep a seat");
    }

    #[tokio::test]
    async fn full_queues_and_levels_without_queues_refuse() {
        let level_ = level(1, Some((1, 1, 1)));
        let _first = level_.enter(1, 1, what);
        let _second = level_.enter(1, 1, what);
        assert!(matches!(level_.enter(1, 1, what), Entry::Full));
        let rejecting = level(1, None);
        let _first = rejecting.enter(1, 1, what);
        assert!(matches!(rejecting.enter(1, 1, what), Entry::Full));
    }
}
