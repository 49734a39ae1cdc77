//! A server or store that has to begin anew from its peers does so by itself: it starts again in its own process, has the
//! others replace it, and goes on under a fresh id.

use std::os::unix::process::CommandExt;
use std::path::Path;

use anyhow::{Context, Result};
use keelson_raft::wire::World;
use keelson_raft::{PeerTls, heal};
use tracing::{error, info};

use crate::identity::{DataDir, Identity};
use crate::store::StoreIdentity;

/// Says in the new program for which sentence it was started: one that cannot be served is not tried for ever.
const STARTED_FOR: &str = "KEELSON_BEGINS_ANEW";

/// What a program that has ended with `result` does: starts again if its member was sentenced meanwhile.
pub fn or_again(dir: &Path, result: Result<()>) -> Result<()> {
    let Err(why) = result else { return Ok(()) };
    let Ok(Some(sentence)) = heal::sentence(dir) else { return Err(why) };
    let fresh = format!("{:x}", sentence.fresh);
    if std::env::var(STARTED_FOR).is_ok_and(|before| before == fresh) {
        return Err(why);
    }
    error!(why = format!("{why:#}"), "the member cannot go on as it is and begins anew from its peers");
    let program = std::env::current_exe().context("cannot find this program to start it again")?;
    // Returns only if it fails.
    let failed = std::process::Command::new(program).args(std::env::args_os().skip(1)).env(STARTED_FOR, fresh).exec();
    Err(why.context(format!("cannot start again: {failed}")))
}

async fn prepare(dir: &Path, tls: Option<PeerTls>) -> Result<Option<heal::Anew>> {
    let anew = heal::prepare(dir, tls, &World::default()).await?;
    if let Some(anew) = &anew {
        info!(member = format!("{:x}", anew.id), "the others have replaced this member: it goes on under a fresh id");
    }
    Ok(anew)
}

/// The member of a server's directory, under a fresh id if it has to begin anew.
pub async fn server(data: &DataDir, identity: Identity, tls: PeerTls) -> Result<Identity> {
    let dir = data.join("store");
    let Some(anew) = prepare(&dir, Some(tls)).await? else { return Ok(identity) };
    let identity = Identity { member_id: anew.id, peers: anew.peers, ..identity };
    data.record(&identity)?;
    heal::done(&dir)?;
    Ok(identity)
}

/// The same of a store's.
pub async fn store(data: &DataDir, identity: StoreIdentity, tls: Option<PeerTls>) -> Result<StoreIdentity> {
    let dir = data.join("store");
    let Some(anew) = prepare(&dir, tls).await? else { return Ok(identity) };
    // It does not make the cluster with the founders any more: it was added to it.
    let identity = StoreIdentity { member_id: anew.id, founders: Default::default(), ..identity };
    identity.write(data)?;
    heal::done(&dir)?;
    Ok(identity)
}
