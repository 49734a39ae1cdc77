//! Which member of which cluster a data directory belongs to: what it says, or what a new member is.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use keelson_raft::{Node, PeerTls, Roll, ask_roll, cluster};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::flags::StoreArgs;
use crate::identity::{DataDir, write_private};

/// How often a new member asks the cluster it belongs to.
const ASK_TIMES: u32 = 30;
const ASK_EVERY: Duration = Duration::from_secs(1);

/// The member that a data directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreIdentity {
    /// The cluster's id.
    pub cluster_id: u64,
    /// The member's id.
    pub member_id: u64,
    /// The member's name when it was made.
    pub name: String,
    /// Its peer URLs when it was made.
    pub peer_urls: Vec<String>,
    /// The members that the cluster is made with, this one among them; none for a member that was added.
    pub founders: BTreeMap<u64, (String, Vec<String>)>,
}

impl StoreIdentity {
    /// The founding members as records of the cluster.
    pub fn nodes(&self) -> Result<BTreeMap<u64, Node>> {
        let node = |(id, (name, urls)): (&u64, &(String, Vec<String>))| Ok((*id, Node::at(name, urls)?));
        self.founders.iter().map(node).collect()
    }

    /// A member of a cluster that is made of `members`.
    pub fn founding(name: &str, members: &[(String, Vec<String>)], token: &str) -> Result<Self> {
        let id = |urls: &[String]| cluster::member_id_of(urls, token);
        let founders: BTreeMap<_, _> = members.iter().map(|member| (id(&member.1), member.clone())).collect();
        if founders.len() != members.len() {
            bail!("--initial-cluster has the same peer URLs for two members");
        }
        let Some((_, peer_urls)) = members.iter().find(|(known, _)| known == name) else {
            bail!("--initial-cluster does not name this member, {name}");
        };
        let ids: Vec<u64> = founders.keys().copied().collect();
        let (cluster_id, member_id) = (cluster::cluster_id_of(&ids), id(peer_urls));
        Ok(Self { cluster_id, member_id, name: name.to_owned(), peer_urls: peer_urls.clone(), founders })
    }

    /// What the data directory says.
    pub fn read(data: &DataDir) -> Result<Option<Self>> {
        let file = data.join("store.json");
        match std::fs::read(&file) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", file.display()))?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| file.display().to_string()),
        }
    }

    /// Records the member; done last, so that a start cut short begins anew.
    pub fn write(&self, data: &DataDir) -> Result<()> {
        write_private(&data.join("store.json"), &serde_json::to_vec_pretty(self)?)
    }
}

/// What the data directory says, or a new member.
pub async fn identity(args: &StoreArgs, data: &DataDir, tls: Option<PeerTls>) -> Result<StoreIdentity> {
    if let Some(stored) = StoreIdentity::read(data)? {
        if stored.name != args.name {
            warn!(stored = stored.name, given = args.name, "the member has another name than when it was made");
        }
        return Ok(stored);
    }
    let members = args.initial_members()?;
    let identity = match args.initial_cluster_state.as_str() {
        "existing" => added(args, &members, tls).await?,
        _ => StoreIdentity::founding(&args.name, &members, &args.initial_cluster_token)?,
    };
    identity.write(data)?;
    Ok(identity)
}

/// A member that was added to a cluster: the cluster knows its id by its peer URLs.
async fn added(args: &StoreArgs, members: &[(String, Vec<String>)], tls: Option<PeerTls>) -> Result<StoreIdentity> {
    let others = members.iter().filter(|(name, _)| *name != args.name).flat_map(|(_, urls)| urls.clone());
    let others: Vec<String> = others.collect();
    let mut own = args.initial_advertise_peer_urls.clone();
    own.sort();
    let mut last = None;
    for round in 0..ASK_TIMES {
        if round > 0 {
            tokio::time::sleep(ASK_EVERY).await;
        }
        let Roll { cluster_id, members, .. } = match ask_roll(&others, tls.clone()).await {
            Ok(roll) => roll,
            Err(error) => {
                last = Some(error);
                continue;
            }
        };
        let Some((member_id, node, _)) = members.iter().find(|(_, node, _)| node.peer_urls() == own) else {
            let known: Vec<_> = members.iter().flat_map(|(_, node, _)| node.peer_urls()).collect();
            bail!(
                "the cluster has no member with the peer URLs {own:?}, only {known:?}: add this one with \
                 `etcdctl member add` first"
            );
        };
        if !node.name.is_empty() {
            bail!("the cluster's member {member_id:x} with these peer URLs has started before: remove and add it anew");
        }
        return Ok(StoreIdentity {
            cluster_id,
            member_id: *member_id,
            name: args.name.clone(),
            peer_urls: own,
            founders: BTreeMap::new(),
        });
    }
    let error = last.map_or_else(String::new, |error| error.to_string());
    bail!("no member of the cluster answers: {error}; check --initial-cluster")
}
