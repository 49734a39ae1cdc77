//! Transactions that append to lists and read them. Lists show in which order they were appended to, so what depended on
//! what is known, and a cycle of dependencies (with real time among them) shows that transactions were not strictly
//! serializable.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::{Fault, Verdict};
use crate::history::{Operation, Outcome};

/// A step of a transaction. Every appended element is appended once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Read a key's list; what was read is in the answer.
    Read(u64),
    /// Append an element to a key's list.
    Append(u64, u64),
}

/// A transaction; the answer has the lists of its reads in order, as they were before its own appends.
pub type Op = Operation<Vec<Step>, Vec<Vec<u64>>>;

/// Why one transaction comes before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    /// It appended the element before the other's.
    Append,
    /// The other read its element.
    Read,
    /// It read a list without the other's element.
    Missed,
    /// It ended before the other began.
    Time,
}

/// Checks for strict serializability.
pub fn check(history: &[Op]) -> Verdict {
    let mut faults = Vec::new();
    let writers = writers(history);
    let orders = orders(history, &writers, &mut faults);
    if faults.is_empty() {
        let graph = graph(history, &writers, &orders);
        faults.extend(cycles(history, &graph));
    }
    Verdict::of(faults)
}

/// Which transaction appended an element to a key.
fn writers(history: &[Op]) -> BTreeMap<(u64, u64), usize> {
    let mut writers = BTreeMap::new();
    for (i, operation) in history.iter().enumerate() {
        for step in &operation.input {
            if let Step::Append(key, element) = step {
                writers.insert((*key, *element), i);
            }
        }
    }
    writers
}

/// The reads of a transaction.
fn reads(operation: &Op) -> impl Iterator<Item = (u64, &Vec<u64>)> {
    let keys = operation.input.iter().filter_map(|step| match step {
        Step::Read(key) => Some(*key),
        Step::Append(..) => None,
    });
    keys.zip(operation.outcome.ok().into_iter().flatten())
}

/// The order of each key's elements: its longest read, of which all others are beginnings.
fn orders(history: &[Op], writers: &BTreeMap<(u64, u64), usize>, faults: &mut Vec<Fault>) -> BTreeMap<u64, Vec<u64>> {
    let mut orders: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for operation in history {
        for (key, list) in reads(operation) {
            let longest = orders.entry(key).or_default();
            if !longest.starts_with(list) && !list.starts_with(longest) {
                let what = format!("key {key} was read as {longest:?} and as {list:?}");
                faults.push(Fault::new("incompatible-orders", what));
            }
            if list.len() > longest.len() {
                longest.clone_from(list);
            }
        }
    }
    for (key, list) in &orders {
        let mut once = BTreeSet::new();
        for element in list {
            if !once.insert(element) {
                faults.push(Fault::new("duplicate", format!("key {key} has {element} twice")));
            }
            match writers.get(&(*key, *element)).map(|i| &history[*i].outcome) {
                None => faults.push(Fault::new("invented", format!("key {key} has {element}, which nobody appended"))),
                Some(Outcome::Failed) => {
                    faults.push(Fault::new("aborted-read", format!("key {key} has {element} of a failed transaction")));
                }
                Some(_) => {}
            }
        }
        faults.extend(halves(history, *key, list));
    }
    for (key, list) in &mut orders {
        let only = unseen(history, *key, list);
        list.extend(only);
    }
    orders
}

/// A transaction's appends to one key come together: a read that has some of them but not all saw it half done.
fn halves(history: &[Op], key: u64, order: &[u64]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let order: HashSet<u64> = order.iter().copied().collect();
    for operation in history {
        let own: Vec<u64> = appends(operation, key).collect();
        let found = own.iter().filter(|element| order.contains(element)).count();
        if found > 0 && found < own.len() {
            faults.push(Fault::new("half-a-transaction", format!("key {key} has {found} of {own:?}")));
        }
    }
    faults
}

fn appends(operation: &Op, key: u64) -> impl Iterator<Item = u64> {
    operation.input.iter().filter_map(move |step| match step {
        Step::Append(k, element) if *k == key => Some(*element),
        _ => None,
    })
}

/// The single element that was certainly appended to a key but never read: it comes after all others. Of several such
/// the order is not known.
fn unseen(history: &[Op], key: u64, seen: &[u64]) -> Option<u64> {
    let seen: HashSet<u64> = seen.iter().copied().collect();
    let certain = history.iter().filter(|operation| operation.outcome.ok().is_some());
    let mut elements = certain.flat_map(|operation| appends(operation, key)).filter(|element| !seen.contains(element));
    let only = elements.next()?;
    elements.next().is_none().then_some(only)
}

type Graph = Vec<BTreeMap<usize, Why>>;

fn graph(history: &[Op], writers: &BTreeMap<(u64, u64), usize>, orders: &BTreeMap<u64, Vec<u64>>) -> Graph {
    let mut graph: Graph = vec![BTreeMap::new(); history.len()];
    let mut edge = |from: usize, to: usize, why: Why| {
        if from != to {
            let known = graph[from].entry(to).or_insert(why);
            *known = (*known).min(why);
        }
    };
    let mut readers: BTreeMap<u64, Vec<(usize, usize)>> = BTreeMap::new();
    for (reader, operation) in history.iter().enumerate() {
        for (key, list) in reads(operation) {
            readers.entry(key).or_default().push((reader, list.len()));
        }
    }
    for (key, order) in orders {
        let by: Vec<usize> = order.iter().filter_map(|element| writers.get(&(*key, *element)).copied()).collect();
        by.windows(2).for_each(|pair| edge(pair[0], pair[1], Why::Append));
        for (reader, length) in readers.remove(key).unwrap_or_default() {
            if let Some(last) = length.checked_sub(1) {
                edge(by[last], reader, Why::Read);
            }
            // Its own appends come after its reads, so the next other writer is the one that it missed.
            if let Some(next) = by[length..].iter().find(|writer| **writer != reader) {
                edge(reader, *next, Why::Missed);
            }
        }
    }
    for (from, to) in in_time(history) {
        edge(from, to, Why::Time);
    }
    graph
}

/// Pairs of which one ended before the other began; those that follow from others are left out.
fn in_time(history: &[Op]) -> Vec<(usize, usize)> {
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (i, operation) in history.iter().enumerate() {
        if operation.outcome == Outcome::Failed {
            continue;
        }
        // At the same time, starts come first: the clock may be too coarse to tell.
        events.push((operation.start, false, i));
        if operation.outcome.ok().is_some() {
            events.push((operation.end, true, i));
        }
    }
    events.sort_unstable();
    let (mut pairs, mut ended): (Vec<(usize, usize)>, Vec<usize>) = (Vec::new(), Vec::new());
    for (_, ends, i) in events {
        if ends {
            ended.retain(|before| history[*before].end >= history[i].start);
            ended.push(i);
        } else {
            pairs.extend(ended.iter().map(|before| (*before, i)));
        }
    }
    pairs
}

/// One short cycle for each group of transactions that depend on each other.
fn cycles(history: &[Op], graph: &Graph) -> Vec<Fault> {
    let mut faults = Vec::new();
    for group in groups(graph) {
        let Some(cycle) = group.iter().filter_map(|start| shortest(graph, &group, *start)).min_by_key(Vec::len) else {
            continue;
        };
        let reasons: Vec<Why> = cycle.iter().map(|(_, why)| *why).collect();
        let lines = cycle.iter().map(|(i, why)| {
            let operation = &history[*i];
            let (start, end) = (operation.start / 1000, operation.end / 1000);
            let (input, outcome) = (&operation.input, &operation.outcome);
            format!("client {} {start}..{end} us: {input:?} -> {outcome:?}, then by {why:?}", operation.process)
        });
        let what = format!("{} transactions depend on each other in a circle", cycle.len());
        faults.push(Fault { kind: name(&reasons).into(), what, history: lines.collect() });
    }
    faults
}

fn name(reasons: &[Why]) -> &'static str {
    let missed = reasons.iter().filter(|why| **why == Why::Missed).count();
    match (reasons.contains(&Why::Time), missed, reasons.contains(&Why::Read)) {
        (true, ..) => "cycle-with-time",
        (false, 0, false) => "cycle-of-appends",
        (false, 0, true) => "cycle-of-reads",
        (false, 1, _) => "cycle-with-one-missed",
        (false, ..) => "cycle-with-missed",
    }
}

/// Groups of two and more transactions of which each comes before each other (Tarjan's search, without recursion).
fn groups(graph: &Graph) -> Vec<BTreeSet<usize>> {
    let n = graph.len();
    let (mut index, mut low) = (vec![usize::MAX; n], vec![0; n]);
    let (mut on_stack, mut stack, mut groups, mut counter) = (vec![false; n], Vec::new(), Vec::new(), 0);
    for root in 0..n {
        if index[root] != usize::MAX {
            continue;
        }
        let mut work = vec![(root, graph[root].keys())];
        while let Some((node, edges)) = work.last_mut() {
            let node = *node;
            if index[node] == usize::MAX {
                (index[node], low[node]) = (counter, counter);
                counter += 1;
                stack.push(node);
                on_stack[node] = true;
            }
            match edges.next() {
                Some(next) if index[*next] == usize::MAX => work.push((*next, graph[*next].keys())),
                Some(next) if on_stack[*next] => low[node] = low[node].min(index[*next]),
                Some(_) => {}
                None => {
                    work.pop();
                    if let Some((parent, _)) = work.last() {
                        low[*parent] = low[*parent].min(low[node]);
                    }
                    if low[node] == index[node] {
                        let at = stack.iter().rposition(|on| *on == node).unwrap_or(0);
                        let group: BTreeSet<usize> = stack.split_off(at).into_iter().collect();
                        group.iter().for_each(|member| on_stack[*member] = false);
                        if group.len() > 1 {
                            groups.push(group);
                        }
                    }
                }
            }
        }
    }
    groups
}

/// The shortest way from a transaction of a group back to it: each with the reason why the next one follows.
fn shortest(graph: &Graph, group: &BTreeSet<usize>, start: usize) -> Option<Vec<(usize, Why)>> {
    let mut from: BTreeMap<usize, usize> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(node) = queue.pop_front() {
        for next in graph[node].keys().filter(|next| group.contains(next)) {
            if from.contains_key(next) {
                continue;
            }
            from.insert(*next, node);
            if *next == start {
                let (mut path, mut at) = (Vec::new(), start);
                loop {
                    let before = from[&at];
                    path.push((before, graph[before][&at]));
                    at = before;
                    if at == start {
                        break;
                    }
                }
                path.reverse();
                return Some(path);
            }
            queue.push_back(*next);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::Step::{Append, Read};
    use super::*;

    fn txn(start: u64, end: u64, steps: &[Step], lists: &[&[u64]]) -> Op {
        let outcome = Outcome::Ok(lists.iter().map(|list| list.to_vec()).collect());
        Operation { process: 0, start, end, input: steps.to_vec(), outcome }
    }

    fn ended(mut op: Op, outcome: Outcome<Vec<Vec<u64>>>) -> Op {
        op.outcome = outcome;
        op
    }

    #[test]
    fn histories() {
        let first = || txn(1, 2, &[Append(1, 1)], &[]);
        let second = || txn(3, 4, &[Append(1, 2)], &[]);
        let read = |start, list| txn(start, start + 1, &[Read(1)], &[list]);
        // Transactions of one time, on two keys.
        let both = |steps: &[Step], lists: &[&[u64]]| txn(1, 9, steps, lists);
        for (name, history, kinds) in [
            ("in order", vec![first(), second(), read(5, &[1, 2])], vec![]),
            ("lost", vec![first(), second(), read(5, &[1])], vec!["cycle-with-time"]),
            ("stale", vec![first(), read(3, &[]), read(5, &[1])], vec!["cycle-with-time"]),
            ("against time", vec![first(), second(), read(5, &[2, 1])], vec!["cycle-with-time"]),
            (
                "two orders",
                vec![both(&[Append(1, 1)], &[]), both(&[Append(1, 2)], &[]), read(10, &[1, 2]), read(10, &[2, 1])],
                vec!["incompatible-orders"],
            ),
            ("invented", vec![read(5, &[9])], vec!["invented"]),
            ("twice", vec![first(), read(5, &[1, 1])], vec!["duplicate"]),
            ("aborted", vec![ended(first(), Outcome::Failed), read(5, &[1])], vec!["aborted-read"]),
            ("unknown, applied", vec![ended(first(), Outcome::Unknown), read(5, &[1])], vec![]),
            ("unknown, later", vec![ended(first(), Outcome::Unknown), read(5, &[]), read(7, &[1])], vec![]),
            (
                "unknown, undone",
                vec![ended(first(), Outcome::Unknown), read(5, &[1]), read(7, &[])],
                vec!["cycle-with-time"],
            ),
            ("half", vec![both(&[Append(1, 1), Append(1, 2)], &[]), read(10, &[1])], vec!["half-a-transaction"]),
            (
                "write skew",
                vec![
                    both(&[Read(1), Append(2, 1)], &[&[]]),
                    both(&[Read(2), Append(1, 2)], &[&[]]),
                    txn(10, 11, &[Read(1), Read(2)], &[&[2], &[1]]),
                ],
                vec!["cycle-with-missed"],
            ),
            (
                "lost update",
                vec![both(&[Read(1), Append(1, 1)], &[&[]]), both(&[Read(1), Append(1, 2)], &[&[]]), read(10, &[1, 2])],
                vec!["cycle-with-one-missed"],
            ),
            (
                "a circle of reads",
                vec![both(&[Append(1, 1), Read(2)], &[&[2]]), both(&[Append(2, 2), Read(1)], &[&[1]])],
                vec!["cycle-of-reads"],
            ),
            (
                "long fork",
                vec![
                    both(&[Append(1, 1)], &[]),
                    both(&[Append(2, 2)], &[]),
                    both(&[Read(1), Read(2)], &[&[1], &[]]),
                    both(&[Read(1), Read(2)], &[&[], &[2]]),
                ],
                vec!["cycle-with-missed"],
            ),
            (
                "torn",
                vec![both(&[Append(1, 1), Append(2, 1)], &[]), both(&[Read(1), Read(2)], &[&[1], &[]])],
                vec!["cycle-with-one-missed"],
            ),
        ] {
            assert_eq!(check(&history).kinds(), kinds, "{name}: {:?}", check(&history));
        }
    }
}
