//! Stores with the etcd API.

use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use keelson_proto::etcd::etcdserverpb as pb;

use super::Reach;
use crate::etcd::{self, Client};
use crate::nemesis::{self, Ask};

/// How long a member may take to say who leads.
const STATUS: Duration = Duration::from_millis(500);
/// How long a change of the membership is tried, and how often.
const MEMBERSHIP: Duration = Duration::from_secs(30);
const MEMBERSHIP_PAUSE: Duration = Duration::from_millis(300);
/// Revisions that a compaction keeps.
const KEPT: i64 = 300;
/// 1 while members come or go.
const CHANGING: &str = "keelson_membership_changing";

/// The members of a store.
pub struct Stores {
    /// A client of each.
    pub clients: Vec<Client>,
    /// Where others reach each.
    pub peers: Vec<String>,
}

#[async_trait]
impl Reach for Stores {
    async fn leader(&self) -> Option<usize> {
        leader(&self.clients).await
    }

    async fn listed(&self) -> Option<Vec<bool>> {
        let client = &self.clients[self.leader().await?];
        let request = pb::MemberListRequest { linearizable: true };
        let listed = etcd::limited(client.members().member_list(request)).await.ok()?.members;
        let is_listed = |peer: &String| listed.iter().any(|found| found.peer_ur_ls.contains(peer));
        Some(self.peers.iter().map(is_listed).collect())
    }

    async fn whole(&self) -> Option<Vec<u64>> {
        whole(&self.clients, self.clients.len()).await
    }

    async fn ask(&self, ask: Ask) -> Result<()> {
        patiently(&self.clients, &self.peers, ask).await
    }

    async fn serves(&self, member: usize) -> Result<()> {
        let put = self.clients[member].put("serving", member.to_string(), 0).await;
        put.map(drop).map_err(|failure| anyhow::anyhow!("{failure:?}"))
    }
}

async fn statuses(clients: &[Client]) -> Vec<Option<pb::StatusResponse>> {
    let mut asked = Vec::new();
    for client in clients {
        let client = client.clone();
        asked.push(tokio::spawn(async move { tokio::time::timeout(STATUS, client.status()).await.ok()?.ok() }));
    }
    let mut answers = Vec::new();
    for answer in asked {
        answers.push(answer.await.ok().flatten());
    }
    answers
}

/// The member that says it leads, in the highest term in which one says so.
async fn leader(clients: &[Client]) -> Option<usize> {
    let answers = statuses(clients).await;
    let leads = |status: &&pb::StatusResponse| {
        status.leader != 0 && status.header.as_ref().is_some_and(|header| header.member_id == status.leader)
    };
    let leaders = answers.iter().enumerate().filter_map(|(i, a)| a.as_ref().filter(leads).map(|a| (a.raft_term, i)));
    leaders.max().map(|(_, member)| member)
}

/// The ids of all members, if all answer and vote.
async fn whole(clients: &[Client], count: usize) -> Option<Vec<u64>> {
    let id = |status: &Option<pb::StatusResponse>| {
        let status = status.as_ref().filter(|status| status.leader != 0 && !status.is_learner)?;
        Some(status.header.as_ref()?.member_id)
    };
    let ids = statuses(clients).await.iter().map(id).collect::<Option<Vec<u64>>>()?;
    for client in clients {
        // Others than ours do not tell.
        if client.metric(CHANGING).await.ok()?.is_some_and(|changing| changing != 0.0) {
            return None;
        }
    }
    let request = pb::MemberListRequest::default();
    let listed = etcd::limited(clients[0].members().member_list(request)).await.ok()?;
    let votes = |member: &pb::Member| !member.is_learner && ids.contains(&member.id);
    (listed.members.len() == count && listed.members.iter().all(votes)).then_some(ids)
}

/// Changes of the membership wait for a leader and for the change before; other requests need not succeed.
async fn patiently(clients: &[Client], peers: &[String], ask: Ask) -> Result<()> {
    let deadline = tokio::time::Instant::now() + MEMBERSHIP;
    loop {
        // No leader is needed for what clients do.
        if let Ask::Flood(lasts) = ask {
            nemesis::flood(clients, lasts).await;
            return Ok(());
        }
        match obey(clients, peers, ask).await {
            Err(_) if matches!(ask, Ask::Remove(_) | Ask::Add(_)) && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(MEMBERSHIP_PAUSE).await;
            }
            result => return result,
        }
    }
}

async fn obey(clients: &[Client], peers: &[String], ask: Ask) -> Result<()> {
    let at = leader(clients).await.context("nobody leads")?;
    let client = &clients[at];
    let failed = |failure| anyhow::anyhow!("{failure:?}");
    match ask {
        Ask::Compact => {
            let answer = client.range(etcd::read("serving")).await.map_err(failed)?;
            client.compact((etcd::revision(&answer.header) - KEPT).max(1)).await.map_err(failed)?;
        }
        Ask::Remove(member) => {
            let listed = etcd::limited(client.members().member_list(pb::MemberListRequest::default())).await;
            let listed = listed.map_err(failed)?.members;
            // Not there any more: an earlier attempt succeeded without an answer.
            if let Some(found) = listed.iter().find(|found| found.peer_ur_ls.contains(&peers[member])) {
                let request = pb::MemberRemoveRequest { id: found.id };
                etcd::limited(client.members().member_remove(request)).await.map_err(failed)?;
            }
        }
        Ask::Add(member) => {
            let listed = etcd::limited(client.members().member_list(pb::MemberListRequest::default())).await;
            if !listed.map_err(failed)?.members.iter().any(|found| found.peer_ur_ls.contains(&peers[member])) {
                let request = pb::MemberAddRequest { peer_ur_ls: vec![peers[member].clone()], is_learner: false };
                etcd::limited(client.members().member_add(request)).await.map_err(failed)?;
            }
        }
        Ask::Flood(_) => {}
        Ask::MoveLeader => {
            let heads = statuses(clients).await;
            let ids = heads.iter().enumerate().filter(|(i, _)| *i != at);
            let target = ids.filter_map(|(_, s)| Some(s.as_ref()?.header.as_ref()?.member_id)).next();
            let request = pb::MoveLeaderRequest { target_id: target.context("nobody else is there")? };
            etcd::limited(client.maintenance().move_leader(request)).await.map_err(failed)?;
        }
    }
    Ok(())
}
