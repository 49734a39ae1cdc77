//! A bare member of the store, for measuring: replica and etcd front without the rest of the program, so that a release
//! build of it takes minutes less. Takes the flags that `keelson-bench store --keelson` passes.

use std::collections::BTreeMap;
use std::sync::Arc;

use keelson_raft::etcd::{Front, Options, serve};
use keelson_raft::{Node, Replica, Setup, Tuning};
use keelson_store::MonotonicClock;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The flags by name, without their dashes.
fn flags() -> BTreeMap<String, String> {
    let words: Vec<String> = std::env::args().skip_while(|word| !word.starts_with("--")).collect();
    words.chunks_exact(2).map(|pair| (pair[0].trim_start_matches('-').to_owned(), pair[1].clone())).collect()
}

fn authority(url: &str) -> String {
    url.trim_start_matches("http://").to_owned()
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let flags = flags();
    let flag = |name: &str| flags.get(name).cloned().ok_or_else(|| format!("--{name} is missing"));
    let (own, client_url) = (flag("name")?, flag("listen-client-urls")?);
    let mut members = BTreeMap::new();
    let mut id = 0;
    for (number, member) in (1..).zip(flag("initial-cluster")?.split(',')) {
        let (name, url) = member.split_once('=').ok_or("--initial-cluster takes NAME=URL,...")?;
        id = if name == own { number } else { id };
        members.insert(number, Node::at(name, &[url.to_owned()])?);
    }
    let dir = std::path::PathBuf::from(flag("data-dir")?);
    std::fs::create_dir_all(&dir)?;
    let replica = Replica::open(Setup {
        cluster_id: 1,
        id,
        dir: dir.join("store"),
        version: "bare".into(),
        clock: Arc::new(MonotonicClock::default()),
        listeners: vec![(TcpListener::bind(authority(&flag("listen-peer-urls")?)).await?, false)],
        tls: None,
        tuning: Tuning { snapshot_commands: 100_000, ..Tuning::default() },
    })
    .await?;
    replica.form(members).await?;
    let options = Options { spool_dir: dir.join("spool"), ..Options::default() };
    let front = Front::new(Arc::new(replica.clone()), Arc::new(replica.clone()), options);
    let listener = TcpListener::bind(authority(&client_url)).await?;
    serve::serve(serve::routes(&front), listener, None, CancellationToken::new()).await;
    Ok(())
}
