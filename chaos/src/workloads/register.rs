//! Single keys as registers. Keys are given up after a while for new ones, since the search for an order of a key's
//! operations takes the longer the more there are.

use async_trait::async_trait;
use keelson_proto::etcd::etcdserverpb as pb;
use parking_lot::Mutex;

use super::{Checked, Workload};
use crate::checkers::register::{self, Action, Input, Op, Output};
use crate::context::Process;
use crate::etcd::{self, number, revision};

/// Keys in use at a time.
const KEYS: u64 = 4;
/// Operations of a key.
const PER_KEY: u64 = 250;
/// Longest pause between operations of a client.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// The workload.
#[derive(Default)]
pub struct Registers {
    history: Mutex<Vec<Op>>,
}

#[async_trait]
impl Workload for Registers {
    async fn client(&self, process: &mut Process) {
        // The last value that this client saw, so that swaps succeed now and then.
        let mut seen = 0;
        while process.goes_on() {
            let done = self.history.lock().len() as u64;
            let key = done / (KEYS * PER_KEY) * KEYS + process.below(KEYS);
            let value = process.shared.unique();
            let action = match process.below(10) {
                0..4 => Action::Read,
                4..7 => Action::Write(value),
                7..9 => Action::Swap(seen, value),
                _ => Action::Delete,
            };
            let operation = perform(process, Input { key, action }).await;
            if let Some(output) = operation.outcome.ok() {
                seen = match operation.input.action {
                    Action::Read => output.value.unwrap_or(seen),
                    _ => value,
                };
            }
            self.history.lock().push(operation);
            process.think(PAUSE).await;
        }
    }

    fn check(&self) -> Checked {
        let history = self.history.lock();
        Checked { operations: history.len(), verdict: register::check(&history) }
    }
}

async fn perform(process: &mut Process, input: Input) -> Op {
    let (client, key) = (process.client(), format!("register/{}", input.key));
    let output = |value, done, header: &Option<pb::ResponseHeader>| Output { value, done, revision: revision(header) };
    match input.action {
        Action::Read => {
            let call = client.range(etcd::read(&key));
            let told = |answer: &pb::RangeResponse| output(answer.kvs.first().and_then(number), true, &answer.header);
            process.perform(input, false, call, told).await.0
        }
        Action::Write(value) => {
            let call = client.put(&key, value.to_string(), 0);
            process.perform(input, true, call, |answer| output(None, true, &answer.header)).await.0
        }
        Action::Swap(from, to) => {
            let request = pb::TxnRequest {
                compare: vec![etcd::has_value(&key, &from.to_string())],
                success: vec![etcd::put_op(&key, to.to_string())],
                failure: vec![],
            };
            let call = client.txn(request);
            process.perform(input, true, call, |answer| output(None, answer.succeeded, &answer.header)).await.0
        }
        Action::Delete => {
            let call = client.delete(&key);
            process.perform(input, true, call, |answer| output(None, answer.deleted > 0, &answer.header)).await.0
        }
    }
}
