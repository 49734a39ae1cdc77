//! Leases with keys, and locks by them. Lease holders renew for a while and then stop, to see their keys go; lock holders
//! guard what they write by the creation of their key.

use std::time::Duration;

use async_trait::async_trait;
use keelson_proto::etcd::etcdserverpb as pb;
use parking_lot::Mutex;
use tokio_stream::wrappers::ReceiverStream;

use super::{Checked, Workload};
use crate::checkers::lease::{self, Fenced, Lease, Look, Uncertainty};
use crate::context::Process;
use crate::etcd::{self, Answer, Client, Failure};

/// Time to live of leases, seconds.
const TTL: i64 = 3;
/// Keys of a lease.
const KEYS: u64 = 3;
/// Renewals before a holder stops.
const RENEWALS: u64 = 4;
/// Pause between renewals and looks.
const STEP: Duration = Duration::from_millis(400);
/// How much earlier than told a lease may end: clocks of members may differ in how they tick.
const UNCERTAINTY: u64 = 500_000_000;
/// The lock, and what it guards.
const LOCK: &str = "lock/holder";
const GUARDED: &str = "lock/guarded";

/// The workload.
#[derive(Default)]
pub struct Locks {
    jumps: Mutex<Vec<(u64, u64)>>,
    leases: Mutex<Vec<Lease>>,
    fenced: Mutex<Vec<Fenced>>,
}

#[async_trait]
impl Workload for Locks {
    async fn client(&self, process: &mut Process) {
        while process.goes_on() {
            if process.id.is_multiple_of(2) {
                if let Some(lease) = hold_lease(process).await {
                    self.leases.lock().push(lease);
                }
            } else {
                self.hold_lock(process).await;
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
        let (leases, fenced) = (self.leases.lock(), self.fenced.lock());
        let looks: usize = leases.iter().map(|lease| lease.looks.len() + lease.renewed.len()).sum();
        let verdict = lease::check(&leases, &uncertainty).and(lease::check_fences(&fenced));
        Checked { operations: looks + fenced.len(), verdict }
    }
}

/// A lease; its time begins at the earliest when the request was sent.
pub(super) async fn grant(process: &mut Process, ttl: i64) -> Option<(i64, u64)> {
    let (sent, client) = (process.shared.now(), process.client());
    let mut leases = client.leases();
    let call = etcd::limited(leases.lease_grant(pb::LeaseGrantRequest { ttl, id: 0 }));
    let (_, answer) = process.perform((), true, call, |_| ()).await;
    Some((answer?.id, sent))
}

/// Renews a lease once; refused if it has ended.
pub(super) async fn renew(client: &Client, id: i64) -> Answer<()> {
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    let unknown = |why: String| Failure::Unknown(why);
    requests.send(pb::LeaseKeepAliveRequest { id }).await.map_err(|e| unknown(e.to_string()))?;
    let mut leases = client.leases();
    let mut answers = etcd::limited(leases.lease_keep_alive(ReceiverStream::new(stream))).await?;
    let message = tokio::time::timeout(STEP * 5, answers.message()).await;
    match message {
        Ok(Ok(Some(answer))) if answer.ttl > 0 => Ok(()),
        Ok(Ok(Some(_))) => Err(Failure::Refused("the lease has ended".into())),
        other => Err(unknown(format!("{other:?}"))),
    }
}

async fn hold_lease(process: &mut Process) -> Option<Lease> {
    let (id, sent) = grant(process, TTL).await?;
    let prefix = format!("lease/{}/", process.shared.unique());
    let success =
        (0..KEYS).map(|n| etcd::put_with_lease_op(&format!("{prefix}{n}"), "held".into(), id)).collect::<Vec<_>>();
    let client = process.client();
    let call = client.txn(pb::TxnRequest { success, ..Default::default() });
    process.perform((), true, call, |_| ()).await.1?;
    let mut lease = Lease {
        id,
        ttl: TTL.unsigned_abs() * 1_000_000_000,
        renewed: vec![sent],
        revoked: None,
        keys: KEYS,
        looks: vec![],
    };
    let renewals = process.below(RENEWALS);
    let end = process.shared.now() + 4 * lease.ttl;
    for step in 0.. {
        if !process.goes_on() || process.shared.now() > end {
            break;
        }
        if step < renewals {
            let (sent, client) = (process.shared.now(), process.client());
            let call = renew(&client, id);
            if process.perform((), true, call, |()| ()).await.1.is_some() {
                lease.renewed.push(sent);
            }
        } else if step == renewals && process.below(4) == 0 {
            lease.revoked = Some(process.shared.now());
            let client = process.client();
            let mut leases = client.leases();
            let call = etcd::limited(leases.lease_revoke(pb::LeaseRevokeRequest { id }));
            process.perform((), true, call, |_| ()).await;
        }
        let client = process.client();
        let request = pb::RangeRequest { count_only: true, ..etcd::read_all(&prefix) };
        let call = client.range(request);
        let (look, answer) = process.perform((), false, call, |_| ()).await;
        if let Some(answer) = answer {
            let found = answer.count.unsigned_abs();
            lease.looks.push(Look { start: look.start, end: look.end, found });
            if found == 0 && step > renewals + 2 {
                break;
            }
        }
        process.pause(STEP).await;
    }
    Some(lease)
}

impl Locks {
    /// Takes the lock if it is free, writes a few times under its guard, and lets go (or forgets to).
    async fn hold_lock(&self, process: &mut Process) {
        let Some((id, _)) = grant(process, TTL).await else { return };
        let client = process.client();
        let request = pb::TxnRequest {
            compare: vec![etcd::written_at(LOCK, 0)],
            success: vec![etcd::put_with_lease_op(LOCK, process.id.to_string(), id)],
            failure: vec![],
        };
        let call = client.txn(request);
        let (_, answer) = process.perform((), true, call, |_| ()).await;
        let Some(answer) = answer.filter(|answer| answer.succeeded) else { return };
        // The revision of the transaction is the one at which the key was created.
        let token = etcd::revision(&answer.header);
        for _ in 0..process.below(12) {
            let client = process.client();
            let request = pb::TxnRequest {
                compare: vec![etcd::created_at(LOCK, token)],
                success: vec![etcd::put_op(GUARDED, format!("{token}"))],
                failure: vec![],
            };
            let call = client.txn(request);
            let (_, answer) = process.perform((), true, call, |_| ()).await;
            match answer {
                Some(answer) if answer.succeeded => {
                    let revision = etcd::revision(&answer.header);
                    self.fenced.lock().push(Fenced { revision, token, holder: process.id });
                }
                Some(_) => return,
                None => {}
            }
            process.pause(STEP).await;
        }
        if process.below(2) == 0 {
            let client = process.client();
            let mut leases = client.leases();
            let call = etcd::limited(leases.lease_revoke(pb::LeaseRevokeRequest { id }));
            process.perform((), true, call, |_| ()).await;
        }
    }
}
