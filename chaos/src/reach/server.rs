//! Servers with the Kubernetes API.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Reach;
use crate::etcd::Failure;
use crate::kube::{CONFIG_MAPS, Kube, PODS, code, text};
use crate::nemesis::Ask;

/// Where servers tell who belongs to them.
const MEMBERS: &str = "/keelson/v1/members";
/// How long a server may take to tell.
const TOLD: Duration = Duration::from_secs(2);
/// How long a change of the membership is tried, and how often.
const MEMBERSHIP: Duration = Duration::from_secs(30);
const MEMBERSHIP_PAUSE: Duration = Duration::from_millis(300);
/// Clients of a flood.
const CLIENTS: usize = 300;

/// The servers of a cluster.
pub struct Servers {
    /// The API of each.
    pub kubes: Vec<Kube>,
    /// Their names.
    pub names: Vec<String>,
}

fn failed(failure: Failure) -> anyhow::Error {
    anyhow::anyhow!("{failure:?}")
}

impl Servers {
    /// The members as any server tells them.
    async fn members(&self) -> Option<Vec<Value>> {
        for kube in &self.kubes {
            if let Ok(Ok(told)) = tokio::time::timeout(TOLD, kube.get(MEMBERS)).await {
                return told.as_array().cloned();
            }
        }
        None
    }

    async fn change(&self, change: &Value) -> Result<()> {
        let mut last = anyhow::anyhow!("there is no server");
        for kube in &self.kubes {
            match kube.ask(Method::POST, MEMBERS, Some("application/json"), Some(change)).await {
                Ok(_) => return Ok(()),
                Err(failure) => last = failed(failure),
            }
        }
        Err(last)
    }

    /// Removes a server; that it is gone already is as good.
    async fn remove(&self, member: usize) -> Result<()> {
        let deadline = tokio::time::Instant::now() + MEMBERSHIP;
        loop {
            let result = self.change(&json!({"remove": self.names[member]})).await;
            let listed = self.members().await.context("no server tells its members");
            let there = |row: &Value| text(row, "/name") == self.names[member];
            match (result, listed) {
                (_, Ok(rows)) if !rows.iter().any(there) => return Ok(()),
                (Err(error), _) if tokio::time::Instant::now() > deadline => return Err(error),
                (Ok(()), _) if tokio::time::Instant::now() > deadline => bail!("{} stays", self.names[member]),
                _ => tokio::time::sleep(MEMBERSHIP_PAUSE).await,
            }
        }
    }

    async fn flood(&self, lasts: Duration) {
        let mut running = JoinSet::new();
        for i in 0..CLIENTS {
            let kube = self.kubes[i % self.kubes.len()].clone();
            running.spawn(async move {
                let map = json!({"metadata": {"name": format!("flood-{i}")}});
                loop {
                    // A refusal is an answer, too.
                    let _ = kube.get(&PODS.path("", "")).await;
                    let _ = kube.create(&CONFIG_MAPS.path("default", ""), &map).await;
                    let _ = kube.delete(&CONFIG_MAPS.path("default", &format!("flood-{i}"))).await;
                }
            });
        }
        tokio::time::sleep(lasts).await;
        running.shutdown().await;
    }
}

#[async_trait]
impl Reach for Servers {
    async fn leader(&self) -> Option<usize> {
        let rows = self.members().await?;
        let row = rows.iter().find(|row| text(row, "/role") == "leader")?;
        self.names.iter().position(|name| name == text(row, "/name"))
    }

    async fn listed(&self) -> Option<Vec<bool>> {
        let rows = self.members().await?;
        // Who does not know the leader may not know who belongs to the cluster.
        rows.iter().find(|row| text(row, "/role") == "leader")?;
        Some(self.names.iter().map(|name| rows.iter().any(|row| text(row, "/name") == name)).collect())
    }

    async fn whole(&self) -> Option<Vec<u64>> {
        let rows = self.members().await?;
        let sound = |row: &Value| row.get("error").is_none() && text(row, "/role") != "learner";
        if rows.len() != self.names.len() || !rows.iter().all(sound) {
            return None;
        }
        let id = |name: &String| {
            let row = rows.iter().find(|row| text(row, "/name") == name)?;
            u64::from_str_radix(text(row, "/id"), 16).ok()
        };
        self.names.iter().map(id).collect()
    }

    async fn ask(&self, ask: Ask) -> Result<()> {
        match ask {
            Ask::Compact => bail!("servers compact by themselves"),
            Ask::MoveLeader => {
                let leader = self.leader().await.context("nobody leads")?;
                let heir = (leader + 1) % self.names.len();
                self.change(&json!({"transferLeader": self.names[heir]})).await
            }
            Ask::Remove(member) => self.remove(member).await,
            // It adds itself when it joins.
            Ask::Add(_) => Ok(()),
            Ask::Flood(lasts) => {
                self.flood(lasts).await;
                Ok(())
            }
        }
    }

    async fn serves(&self, member: usize) -> Result<()> {
        let (kube, name) = (&self.kubes[member], format!("serving-{member}"));
        let map = json!({"metadata": {"name": name}});
        match kube.create(&CONFIG_MAPS.path("default", ""), &map).await {
            Err(failure) if code(&failure) != 409 => return Err(failed(failure)),
            _ => {}
        }
        kube.delete(&CONFIG_MAPS.path("default", &name)).await.map(drop).map_err(failed)
    }
}
