//! Linearizability: is there an order of the operations, each between its start and its end, that a single copy of the
//! thing would have answered alike? The search is that of Wing and Gong with Lowe's memory of states already seen.
//!
//! An operation of unknown outcome may come at any place after its start, or not at all.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

use crate::history::{Operation, Outcome};

/// What a single copy does.
pub trait Model {
    /// What is asked.
    type Input: Clone + Debug;
    /// What is answered.
    type Output: Clone + Debug;
    /// What it remembers.
    type State: Clone + Eq + Hash + Default;

    /// The state after an operation; `None` if this cannot be its answer in that state. Without an answer any will do.
    fn step(state: &Self::State, input: &Self::Input, output: Option<&Self::Output>) -> Option<Self::State>;

    /// Whether an operation can change the state. Leaving out one that cannot does not make a good history bad.
    fn changes(input: &Self::Input) -> bool;
}

/// An operation of a model.
pub type Op<M> = Operation<<M as Model>::Input, <M as Model>::Output>;

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is such an order.
    Order,
    /// There is none.
    None,
    /// The search took more steps than allowed.
    GaveUp,
}

/// Searches for an order of `history` in up to `budget` steps.
pub fn search<M: Model>(history: &[Op<M>], budget: usize) -> Found {
    let mut list = List::new::<M>(history);
    let mut seen: HashSet<(Vec<u64>, M::State)> = HashSet::new();
    let mut placed = vec![0u64; history.len().div_ceil(64)];
    let mut state = M::State::default();
    let mut stack: Vec<(usize, M::State)> = Vec::new();
    let mut at = list.next[0];
    for _ in 0..budget {
        if list.open == 0 {
            return Found::Order;
        }
        // An end before anything that could be placed: what ends here has to be placed earlier, so go back.
        if at == 0 || list.is_end(at) {
            let Some((last, before)) = stack.pop() else { return Found::None };
            state = before;
            placed[last / 64] &= !(1 << (last % 64));
            list.restore(last);
            at = list.next[list.start_of(last)];
            continue;
        }
        let index = list.operation(at);
        let operation = &history[index];
        if let Some(after) = M::step(&state, &operation.input, operation.outcome.ok()) {
            placed[index / 64] |= 1 << (index % 64);
            if seen.insert((placed.clone(), after.clone())) {
                stack.push((index, std::mem::replace(&mut state, after)));
                list.remove(index);
                at = list.next[0];
                continue;
            }
            placed[index / 64] &= !(1 << (index % 64));
        }
        at = list.next[at];
    }
    Found::GaveUp
}

/// The shortest part of a bad history that is bad as well: its beginning, without operations that change nothing and
/// are not needed.
pub fn shorten<M: Model>(history: &[Op<M>], budget: usize) -> Vec<Op<M>> {
    let bad = |part: &[Op<M>]| search::<M>(part, budget) == Found::None;
    let mut ends: Vec<u64> = history.iter().map(|operation| operation.end).collect();
    ends.sort_unstable();
    // Every beginning of a good history is good, so the first bad one can be found by halving.
    let first = ends.partition_point(|end| !bad(&until::<M>(history, *end)));
    let mut part = ends.get(first).map_or_else(|| history.to_vec(), |end| until::<M>(history, *end));
    let mut i = 0;
    while i < part.len() {
        if !M::changes(&part[i].input) {
            let left = part.remove(i);
            if bad(&part) {
                continue;
            }
            part.insert(i, left);
        }
        i += 1;
    }
    part
}

/// The history as it was known at `time`.
fn until<M: Model>(history: &[Op<M>], time: u64) -> Vec<Op<M>> {
    let begun = history.iter().filter(|operation| operation.start <= time).cloned();
    let known = begun.map(|mut operation| {
        if operation.end > time {
            operation.outcome = Outcome::Unknown;
        }
        operation
    });
    known.filter(|o| matches!(o.outcome, Outcome::Ok(_)) || M::changes(&o.input)).collect()
}

/// Starts and ends in the order of time, as a list from which operations are taken and put back. Position 0 is the
/// list's head; an operation `i` has its start at `2 i + 1` and its end at `2 i + 2`.
struct List {
    next: Vec<usize>,
    previous: Vec<usize>,
    known: Vec<bool>,
    /// Operations with an answer that are not placed yet.
    open: usize,
}

impl List {
    fn new<M: Model>(history: &[Op<M>]) -> Self {
        let mut events: Vec<(u64, bool, usize)> = Vec::new();
        let mut known = vec![false; history.len()];
        for (i, operation) in history.iter().enumerate() {
            match operation.outcome {
                Outcome::Failed => continue,
                Outcome::Ok(_) => {
                    known[i] = true;
                    events.push((operation.end, true, 2 * i + 2));
                }
                Outcome::Unknown => {}
            }
            events.push((operation.start, false, 2 * i + 1));
        }
        // At the same time, starts come first: the clock may be too coarse to tell.
        events.sort_unstable();
        let size = 2 * history.len() + 1;
        let mut list = Self { next: vec![0; size], previous: vec![0; size], known, open: 0 };
        list.open = list.known.iter().filter(|known| **known).count();
        let mut last = 0;
        for (_, _, position) in events {
            list.next[last] = position;
            list.previous[position] = last;
            last = position;
        }
        list.previous[0] = last;
        list
    }

    fn is_end(&self, position: usize) -> bool {
        position.is_multiple_of(2)
    }

    fn operation(&self, position: usize) -> usize {
        (position - 1) / 2
    }

    fn start_of(&self, operation: usize) -> usize {
        2 * operation + 1
    }

    fn remove(&mut self, operation: usize) {
        self.unlink(2 * operation + 1);
        if self.known[operation] {
            self.unlink(2 * operation + 2);
            self.open -= 1;
        }
    }

    fn restore(&mut self, operation: usize) {
        if self.known[operation] {
            self.link(2 * operation + 2);
            self.open += 1;
        }
        self.link(2 * operation + 1);
    }

    fn unlink(&mut self, position: usize) {
        let (before, after) = (self.previous[position], self.next[position]);
        self.next[before] = after;
        self.previous[after] = before;
    }

    fn link(&mut self, position: usize) {
        let (before, after) = (self.previous[position], self.next[position]);
        self.next[before] = position;
        self.previous[after] = position;
    }
}
