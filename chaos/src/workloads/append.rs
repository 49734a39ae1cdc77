//! Transactions on lists: each reads its keys and writes what it appends if nobody wrote to any of them since.

use async_trait::async_trait;
use keelson_proto::etcd::etcdserverpb as pb;
use parking_lot::Mutex;

use super::{Checked, Workload};
use crate::checkers::append::{self, Op, Step};
use crate::context::Process;
use crate::etcd::{self, Answer, Client, Failure};

/// Keys in use at a time.
const KEYS: u64 = 5;
/// Transactions before other keys are used, which keeps lists short.
const PER_GENERATION: u64 = 300;
/// Longest pause between transactions of a client.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// The workload.
#[derive(Default)]
pub struct Lists {
    history: Mutex<Vec<Op>>,
}

#[async_trait]
impl Workload for Lists {
    async fn client(&self, process: &mut Process) {
        while process.goes_on() {
            let first = self.history.lock().len() as u64 / PER_GENERATION * KEYS;
            let steps: Vec<Step> = (0..1 + process.below(4)).map(|_| step(process, first)).collect();
            let client = process.client();
            let write = steps.iter().any(|step| matches!(step, Step::Append(..)));
            let call = run(&client, &steps);
            let (operation, _) = process.perform(steps.clone(), write, call, Vec::clone).await;
            self.history.lock().push(operation);
            process.think(PAUSE).await;
        }
    }

    fn check(&self) -> Checked {
        let history = self.history.lock();
        Checked { operations: history.len(), verdict: append::check(&history) }
    }
}

fn step(process: &mut Process, first: u64) -> Step {
    let key = first + process.below(KEYS);
    if process.below(2) == 0 { Step::Read(key) } else { Step::Append(key, process.shared.unique()) }
}

/// Reads all keys at once, then commits if they are as they were. Lost races are failures that took no effect.
async fn run(client: &Client, steps: &[Step]) -> Answer<Vec<Vec<u64>>> {
    let mut keys: Vec<u64> = steps.iter().map(key).collect();
    keys.sort_unstable();
    keys.dedup();
    let success = keys.iter().map(|key| etcd::range_op(etcd::read(&name(*key)))).collect();
    let before = client.txn(pb::TxnRequest { success, ..Default::default() }).await;
    // Nothing is written yet.
    let before = before.map_err(|failure| match failure {
        Failure::Refused(why) | Failure::Unknown(why) => Failure::Refused(why),
    })?;
    let found: Vec<(Vec<u64>, i64)> = etcd::ranges(&before)
        .iter()
        .map(|range| {
            range.kvs.first().map_or((Vec::new(), 0), |pair| (parse(&etcd::text(&pair.value)), pair.mod_revision))
        })
        .collect();
    let place = |wanted: u64| keys.iter().position(|key| *key == wanted).unwrap_or(0);
    let mut lists: Vec<Vec<u64>> = found.iter().map(|(list, _)| list.clone()).collect();
    let mut answers = Vec::new();
    for step in steps {
        match step {
            Step::Read(key) => answers.push(found[place(*key)].0.clone()),
            Step::Append(key, element) => lists[place(*key)].push(*element),
        }
    }
    let changed: Vec<usize> = (0..keys.len()).filter(|i| lists[*i].len() > found[*i].0.len()).collect();
    if changed.is_empty() {
        return Ok(answers);
    }
    let request = pb::TxnRequest {
        compare: keys.iter().zip(&found).map(|(key, (_, revision))| etcd::written_at(&name(*key), *revision)).collect(),
        success: changed.iter().map(|i| etcd::put_op(&name(keys[*i]), format(&lists[*i]))).collect(),
        failure: vec![],
    };
    if client.txn(request).await?.succeeded {
        return Ok(answers);
    }
    Err(Failure::Refused("somebody else wrote".into()))
}

fn key(step: &Step) -> u64 {
    match step {
        Step::Read(key) | Step::Append(key, _) => *key,
    }
}

fn name(key: u64) -> String {
    format!("append/{key}")
}

fn parse(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(|element| element.parse().ok()).collect()
}

fn format(list: &[u64]) -> String {
    list.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}
