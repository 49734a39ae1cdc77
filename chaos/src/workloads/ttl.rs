//! Long leases that are seldom renewed: changes of leader neither cut them short nor give them all of their time again.

use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::lock::{grant, renew};
use super::{Checked, Workload};
use crate::checkers::lease::{self, Lateness, Lease, Long, Look, Uncertainty};
use crate::context::Process;
use crate::etcd;

/// Time to live, seconds.
const TTL: i64 = 40;
/// Longest pause between looks.
const STEP: Duration = Duration::from_millis(1500);
/// How much earlier than told a lease may end: clocks of members may tick five in a hundred slower or faster.
const UNCERTAINTY: u64 = 4_000_000_000;
/// How long a request may have its effect after its client gave up.
const AFTERMATH: u64 = 6_000_000_000;
/// What a lease may be late: the leader's look at the clock, the commit; its time is recorded every tenth of it but at least
/// every five seconds, and whoever takes over allows for the time without a leader. Clocks may tick five in a hundred slower.
const LATENESS: Lateness =
    Lateness { always: 4_000_000_000, each_term: 10_000_000_000, between: 3_000_000_000, slower: 50 };
const SECOND: u64 = 1_000_000_000;

/// The workload.
#[derive(Default)]
pub struct Ttls {
    jumps: Mutex<Vec<(u64, u64)>>,
    leases: Mutex<Vec<(Lease, Long)>>,
}

#[async_trait]
impl Workload for Ttls {
    async fn client(&self, process: &mut Process) {
        while process.goes_on() {
            if let Some(lease) = hold(process).await {
                self.leases.lock().push(lease);
            }
            process.pause(STEP).await;
        }
    }

    async fn finish(&self, process: &mut Process) -> anyhow::Result<()> {
        *self.jumps.lock() = process.shared.jumps();
        Ok(())
    }

    fn check(&self) -> Checked {
        let uncertainty = Uncertainty { always: UNCERTAINTY, jumps: self.jumps.lock().clone() };
        let (leases, longs): (Vec<_>, Vec<_>) = self.leases.lock().iter().cloned().unzip();
        let operations = leases.iter().map(|lease| lease.looks.len() + lease.renewed.len()).sum();
        let verdict = lease::check(&leases, &uncertainty).and(lease::check_late(&longs, LATENESS));
        Checked { operations, verdict }
    }
}

/// One lease with one key, renewed once at most, until it has gone.
async fn hold(process: &mut Process) -> Option<(Lease, Long)> {
    let (id, sent) = grant(process, TTL).await?;
    let ttl = TTL.unsigned_abs() * SECOND;
    let mut lease = Lease { id, ttl, renewed: vec![sent], revoked: None, keys: 1, looks: Vec::new() };
    let mut long = Long { id, ttl, began: process.shared.now(), seen: Vec::new() };
    let key = format!("ttl/{}", process.shared.unique());
    let client = process.client();
    process.perform((), true, client.put(&key, "held".into(), id), |_| ()).await.1?;
    // Some are renewed at any time of their life.
    let renewal = (process.below(2) == 0).then(|| sent + process.below(TTL.unsigned_abs()) * SECOND);
    let mut due = renewal;
    while process.goes_on() {
        if due.is_some_and(|at| process.shared.now() >= at) {
            due = None;
            let (sent, client) = (process.shared.now(), process.client());
            let (_, renewed) = process.perform((), true, renew(&client, id), |()| ()).await;
            if renewed.is_some() {
                lease.renewed.push(sent);
            }
            long.began = process.shared.now() + if renewed.is_some() { 0 } else { AFTERMATH };
            long.seen.clear();
        }
        let client = process.client();
        let (look, answer) = process.perform((), false, client.range(etcd::read(&key)), |_| ()).await;
        if let Some(answer) = answer {
            let found = answer.count.unsigned_abs();
            let term = answer.header.map_or(0, |header| header.raft_term);
            lease.looks.push(Look { start: look.start, end: look.end, found });
            if look.start >= long.began {
                long.seen.push((look.start, look.end, found, term));
            }
            if found == 0 && due.is_none() {
                break;
            }
        }
        process.pause(STEP).await;
    }
    Some((lease, long))
}
