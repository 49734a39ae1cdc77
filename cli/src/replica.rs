//! This server's part of the cluster: a new one, one that was here before, or one that joins.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use keelson_pki::ClusterPki;
use keelson_raft::{Change, Node, PeerTls, Replica, Setup, Tuning};
use keelson_store::MonotonicClock;
use rand::RngExt;
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::args::ServerArgs;
use crate::identity::{DataDir, Identity};
use crate::join;
use crate::server::hostname;

/// Port for the other servers.
const PEER_PORT: u16 = 2380;

/// Addresses at which this server is reached.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The API's, as others and the kubeconfig name it.
    pub api: SocketAddr,
    /// For the other servers; port 0 lets the system choose.
    peer: SocketAddr,
}

impl Addresses {
    /// What the flags say, and what the host's routes say where they are silent.
    pub fn of(args: &ServerArgs) -> Result<Self> {
        let alone = !args.cluster_init && args.join.is_none() && args.peer_address.is_none();
        let host = match (args.advertise_address, args.bind_address) {
            (Some(given), _) => given,
            (None, bound) if !bound.is_unspecified() => bound,
            (None, _) if alone => IpAddr::V4(Ipv4Addr::LOCALHOST),
            (None, _) => own_address().context("name this host's address with --advertise-address")?,
        };
        let peer = match args.peer_address {
            Some(given) => given,
            None if alone => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            None => SocketAddr::new(host, PEER_PORT),
        };
        Ok(Self { api: SocketAddr::new(host, args.secure_port), peer })
    }
}

/// The address from which this host speaks to others. Nothing is sent.
fn own_address() -> Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // An address of the documentation's range: only the route matters.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).context("this host has no route to others")?;
    Ok(socket.local_addr()?.ip())
}

/// The keys and the identity that this server has, gets from the cluster it joins, or makes.
pub async fn identity(args: &ServerArgs, data: &DataDir) -> Result<(Identity, Arc<ClusterPki>)> {
    let directory = data.join("pki");
    let stored = data.identity()?;
    let pki = ClusterPki::load(&directory)?;
    if let Some(identity) = stored {
        let Some(pki) = pki else {
            let directory = directory.display();
            bail!("{directory} has no keys though a member lives here: restore the directory from a backup");
        };
        let pki = Arc::new(pki);
        same_cluster(args, &identity, &pki)?;
        return Ok((identity, pki));
    }
    let mut rng = rand::rng();
    let name = args.name.clone().map_or_else(hostname, Ok)?;
    let member_id = rng.random_range(1..u64::MAX);
    if let Some(url) = &args.join {
        let Some(token) = crate::args::join_token(args.token.as_deref(), args.token_file.as_deref())? else {
            bail!("joining needs --token (or --token-file); `keelson token create --server` makes one");
        };
        info!(%url, "joining");
        let welcome = join::ask(url, &token, args.ca_hash.as_deref().unwrap_or_default()).await?;
        let pki = ClusterPki::from_bundle(welcome.keys.get().as_bytes())?;
        pki.save(&directory)?;
        let identity = Identity {
            cluster_id: welcome.cluster_id,
            member_id,
            name,
            service_cidr: welcome.service_cidr,
            cluster_cidr: welcome.cluster_cidr,
            peers: welcome.peers,
        };
        data.record(&identity)?;
        return Ok((identity, Arc::new(pki)));
    }
    let pki = match pki {
        Some(pki) => pki,
        None => {
            let pki = ClusterPki::create()?;
            pki.save(&directory)?;
            pki
        }
    };
    let identity = Identity {
        cluster_id: rng.random_range(1..u64::MAX),
        member_id,
        name,
        service_cidr: args.service_cidr.clone(),
        cluster_cidr: args.cluster_cidr.clone(),
        peers: Vec::new(),
    };
    data.record(&identity)?;
    Ok((identity, Arc::new(pki)))
}

/// Refuses flags that belong to another cluster than the data directory.
fn same_cluster(args: &ServerArgs, identity: &Identity, pki: &ClusterPki) -> Result<()> {
    let joined = !identity.peers.is_empty();
    for (flag, given, kept, default) in [
        ("--service-cidr", &args.service_cidr, &identity.service_cidr, crate::args::DEFAULT_SERVICE_CIDR),
        ("--cluster-cidr", &args.cluster_cidr, &identity.cluster_cidr, crate::args::DEFAULT_CLUSTER_CIDR),
    ] {
        // A member that joined took these from its cluster: its command line need not repeat them.
        if given != kept && !(joined && given == default) {
            bail!("{flag} {given} differs from {kept}, with which this cluster was made; it cannot be changed");
        }
    }
    if let Some(hash) = &args.ca_hash {
        let own = keelson_pki::public_key_hash(&pki.cluster.certificate())?;
        if !pki.cluster.is_known(hash) {
            bail!(
                "the data directory belongs to another cluster: its CA is {own}, --ca-hash says {hash}; choose another \
                 directory with --data-dir, or remove this one to let the member begin anew"
            );
        }
    }
    Ok(())
}

/// Opens the replica, and makes it a part of its cluster.
pub async fn open(data: &DataDir, addresses: Addresses, identity: &Identity, tls: PeerTls) -> Result<Replica> {
    let listener = TcpListener::bind(addresses.peer).await.with_context(|| {
        format!("cannot listen on {} for other servers: choose another with --peer-address", addresses.peer)
    })?;
    let peer_address = listener.local_addr()?.to_string();
    let replica = Replica::open(Setup {
        cluster_id: identity.cluster_id,
        id: identity.member_id,
        dir: data.join("store"),
        version: crate::life::version::own().into(),
        clock: Arc::new(MonotonicClock::default()),
        listeners: vec![(listener, true)],
        tls: Some(tls),
        tuning: Tuning::default(),
    })
    .await?;
    let node = Node {
        name: identity.name.clone(),
        peer_address,
        client_urls: vec![format!("https://{}", addresses.api)],
        joining: false,
    };
    if !replica.is_initialized().await? {
        if identity.peers.is_empty() {
            replica.initialize(node).await?;
        } else {
            replica.join(node, &identity.peers).await.context("the cluster did not take this server in")?;
        }
        return Ok(replica);
    }
    let id = identity.member_id;
    let changed = |(found, known, _): &(u64, Node, bool)| {
        *found == id && (known.peer_address != node.peer_address || known.client_urls != node.client_urls)
    };
    if replica.nodes().iter().any(changed) {
        let replica = replica.clone();
        // Others may have to come up first, so this does not hold the start up.
        tokio::spawn(async move {
            while let Err(error) = replica.change(Change::Update(id, node.clone())).await {
                warn!(%error, "cannot tell the cluster this server's new address yet");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        });
    }
    Ok(replica)
}
