//! Out of a lost quorum: a stopped server goes on alone with all it has.

use std::path::Path;

use anyhow::{Context, Result};
use keelson_raft::Node;

use crate::identity::DataDir;

/// Makes the member of this directory the only one of its cluster.
pub async fn run(data_dir: &Path) -> Result<()> {
    let data = DataDir::open(data_dir)?;
    let identity =
        data.identity()?.with_context(|| format!("no server lives in {}: name its --data-dir", data_dir.display()))?;
    let node = Node { name: identity.name.clone(), ..Node::default() };
    keelson_raft::force_new_cluster(&data.join("store"), identity.member_id, node).await?;
    println!(
        "{} is now the only server of its cluster. Start it; then wipe each other server (keelson reset --yes) and let \
         it join anew with a token from `keelson token create --server --print-join-command`",
        identity.name
    );
    Ok(())
}
