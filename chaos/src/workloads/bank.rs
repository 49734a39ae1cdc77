//! Accounts: money is moved by transactions that compare both accounts; all are read at once, also at past revisions.

use std::collections::BTreeMap;

use async_trait::async_trait;
use keelson_proto::etcd::etcdserverpb as pb;
use parking_lot::Mutex;

use super::{Checked, Workload, persist};
use crate::checkers::bank::{self, Input, Op};
use crate::context::Process;
use crate::etcd::{self, Answer, Client, Failure};

/// Accounts, and what each begins with.
const ACCOUNTS: u64 = 6;
const BEGIN: i64 = 100;
/// How far back reads of the past go, in revisions.
const PAST: u64 = 200;
/// Longest pause between operations of a client.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

/// The workload.
#[derive(Default)]
pub struct Bank {
    history: Mutex<Vec<Op>>,
    /// The revision at which all accounts were there.
    opened: Mutex<i64>,
}

fn name(account: u64) -> String {
    format!("bank/{account}")
}

fn balances(answer: &pb::RangeResponse) -> BTreeMap<u64, i64> {
    let balance = |pair| {
        let account = etcd::text(&pb_key(pair)).strip_prefix("bank/")?.parse().ok()?;
        Some((account, etcd::number(pair)?))
    };
    answer.kvs.iter().filter_map(balance).collect()
}

fn pb_key(pair: &keelson_proto::etcd::mvccpb::KeyValue) -> bytes::Bytes {
    pair.key.clone()
}

#[async_trait]
impl Workload for Bank {
    async fn prepare(&self, process: &mut Process) -> anyhow::Result<()> {
        let client = process.client();
        let success = (0..ACCOUNTS).map(|account| etcd::put_op(&name(account), BEGIN.to_string())).collect::<Vec<_>>();
        let request = pb::TxnRequest { success, ..Default::default() };
        let answer = persist("opening accounts", || client.txn(request.clone())).await?;
        *self.opened.lock() = etcd::revision(&answer.header);
        Ok(())
    }

    async fn client(&self, process: &mut Process) {
        let mut last = 0;
        while process.goes_on() {
            let client = process.client();
            let operation = if process.below(2) == 0 {
                let (opened, back) = (*self.opened.lock(), process.below(PAST) as i64);
                let revision = if process.below(2) == 0 && last - back >= opened { last - back } else { 0 };
                let call = client.range(pb::RangeRequest { revision, ..etcd::read_all("bank/") });
                let (operation, answer) = process.perform(Input::Read, false, call, balances).await;
                last = answer.map_or(last, |answer| etcd::revision(&answer.header));
                operation
            } else {
                let (from, to) = (process.below(ACCOUNTS), process.below(ACCOUNTS));
                let input = Input::Move { from, to, amount: 1 + process.below(20) as i64 };
                let call = transfer(&client, input.clone());
                process.perform(input, true, call, |()| BTreeMap::new()).await.0
            };
            self.history.lock().push(operation);
            process.think(PAUSE).await;
        }
    }

    fn check(&self) -> Checked {
        let history = self.history.lock();
        Checked { operations: history.len(), verdict: bank::check(&history, ACCOUNTS as i64 * BEGIN) }
    }
}

async fn transfer(client: &Client, input: Input) -> Answer<()> {
    let Input::Move { from, to, amount } = input else { return Ok(()) };
    if from == to {
        return Ok(());
    }
    let reads = [from, to].map(|account| etcd::range_op(etcd::read(&name(account)))).to_vec();
    let before = client.txn(pb::TxnRequest { success: reads, ..Default::default() }).await;
    let before = before.map_err(|_| Failure::Refused("not read".into()))?;
    let found: Vec<(i64, i64)> = etcd::ranges(&before)
        .iter()
        .filter_map(|range| range.kvs.first())
        .filter_map(|pair| Some((etcd::number(pair)?, pair.mod_revision)))
        .collect();
    let [(has, has_at), (gets, gets_at)] = found.as_slice() else {
        return Err(Failure::Refused("an account is missing".into()));
    };
    if *has < amount {
        return Ok(());
    }
    let request = pb::TxnRequest {
        compare: vec![etcd::written_at(&name(from), *has_at), etcd::written_at(&name(to), *gets_at)],
        success: vec![
            etcd::put_op(&name(from), (has - amount).to_string()),
            etcd::put_op(&name(to), (gets + amount).to_string()),
        ],
        failure: vec![],
    };
    client.txn(request).await.map(|_| ())
}
