//! A set: each element is a key of its own; reads take the whole range at once.

use std::collections::BTreeSet;

use async_trait::async_trait;
use keelson_proto::etcd::etcdserverpb as pb;
use parking_lot::Mutex;

use super::{Checked, Workload, persist};
use crate::checkers::Verdict;
use crate::checkers::set::{self, Input, Op};
use crate::context::Process;
use crate::etcd;

/// Elements of one set; then the next is begun, so that reads stay small.
const PER_SET: usize = 2000;
/// Longest pause between operations of a client.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// The workload.
#[derive(Default)]
pub struct Sets {
    /// A history for each set.
    histories: Mutex<Vec<Vec<Op>>>,
}

impl Sets {
    /// The set in use.
    fn current(&self) -> usize {
        let mut histories = self.histories.lock();
        if histories.last().is_none_or(|history| history.len() >= PER_SET) {
            histories.push(Vec::new());
        }
        histories.len() - 1
    }

    fn note(&self, set: usize, operation: Op) {
        if let Some(history) = self.histories.lock().get_mut(set) {
            history.push(operation);
        }
    }
}

fn prefix(set: usize) -> String {
    format!("set/{set}/")
}

fn elements(answer: &pb::RangeResponse) -> BTreeSet<u64> {
    answer.kvs.iter().filter_map(etcd::number).collect()
}

#[async_trait]
impl Workload for Sets {
    async fn client(&self, process: &mut Process) {
        while process.goes_on() {
            let (set, client) = (self.current(), process.client());
            let operation = if process.below(10) == 0 {
                let call = client.range(etcd::read_all(&prefix(set)));
                process.perform(Input::Read, false, call, elements).await.0
            } else {
                let element = process.shared.unique();
                let key = format!("{}{element}", prefix(set));
                let call = client.put(&key, element.to_string(), 0);
                process.perform(Input::Add(element), true, call, |_| BTreeSet::new()).await.0
            };
            self.note(set, operation);
            process.think(PAUSE).await;
        }
    }

    async fn finish(&self, process: &mut Process) -> anyhow::Result<()> {
        let sets = self.histories.lock().len();
        for set in 0..sets {
            for client in process.clients().to_vec() {
                let start = process.shared.now();
                let answer = persist("the last read of a set", || client.range(etcd::read_all(&prefix(set)))).await?;
                let (end, outcome) = (process.shared.now(), crate::history::Outcome::Ok(elements(&answer)));
                self.note(set, Op { process: process.id, start, end, input: Input::Read, outcome });
            }
        }
        Ok(())
    }

    fn check(&self) -> Checked {
        let histories = self.histories.lock();
        let verdict = histories.iter().fold(Verdict::Valid, |verdict, history| verdict.and(set::check(history)));
        Checked { operations: histories.iter().map(Vec::len).sum(), verdict }
    }
}
