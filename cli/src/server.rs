//! `keelson server`: puts store, API server, controllers and scheduler together in one process.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keelson_apiserver::access::UserInfo;
use keelson_apiserver::bootstrap::BootstrapError;
use keelson_apiserver::{ApiServer, Config, Extension, InProcess, Settings, endpoints};
use keelson_client::Client;
use keelson_nodeagent::hollow::HollowConfig;
use keelson_pki::ClusterPki;
use keelson_raft::{Cluster, Replica};
use keelson_store::{Kv, KvError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::args::ServerArgs;
use crate::identity::{DataDir, Identity};
use crate::life::address::{self, Address};
use crate::life::care::Care;
use crate::life::certs::{Keeper, Place};
use crate::life::{backup, notify, rotate, status, version};
use crate::replica::{self, Addresses};
use crate::{etcd, heal, join, leader, member, resident};

/// The admin's group: may do everything.
const MASTERS: &str = "system:masters";
/// Pause between tries to write the first objects while there is no leader.
const LEADER_RETRY: Duration = Duration::from_millis(20);
/// How often the files with the authorities of clients are looked at.
const AUTHORITIES_INTERVAL: Duration = Duration::from_secs(10);
/// How often a server that waits for others says so.
const WAITING_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Runs a server until it is told to stop, from its peers' data if its own is damaged.
pub async fn run(args: ServerArgs) -> Result<()> {
    let store = args.data_dir.join("store");
    heal::or_again(&store, run_once(args).await)
}

async fn run_once(args: ServerArgs) -> Result<()> {
    let scheduler = crate::scheduler::config(args.scheduler_config.as_deref())?;
    let started = Instant::now();
    if args.join.is_none() {
        // Before the range is written for good.
        args.mask_sizes.within(&args.cluster_cidr)?;
    }
    let data = DataDir::open(&args.data_dir)?;
    version::admit(&args.data_dir)?;
    let address = SocketAddr::new(args.bind_address, args.secure_port);
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: stop what uses it, or choose another with --secure-port")
    })?;
    let addresses = Addresses::of(&args)?;
    let (identity, pki) = replica::identity(&args, &data).await?;
    let keeper = Keeper::new(pki, place(&args, &data, &identity, addresses), args.certificate_lifetime)?;
    let identity = heal::server(&data, identity, keeper.peers()).await?;
    let replica = replica::open(&data, addresses, &identity, keeper.peers()).await?;
    let care = Care::new(replica.clone(), identity, keeper, &data);
    let stop = CancellationToken::new();
    let result =
        serve(&args, &data, Member { addresses, care, replica: replica.clone(), scheduler }, listener, started, &stop);
    let result = result.await;
    stop.cancel();
    replica.shutdown().await;
    result
}

/// This server as a member of its cluster.
struct Member {
    addresses: Addresses,
    care: Arc<Care>,
    replica: Replica,
    /// KubeSchedulerConfiguration, if one is given.
    scheduler: Option<serde_json::Value>,
}

/// Serves until a signal comes or the store fails.
async fn serve(
    args: &ServerArgs,
    data: &DataDir,
    member: Member,
    listener: TcpListener,
    started: Instant,
    stop: &CancellationToken,
) -> Result<()> {
    let Member { addresses, care, replica, scheduler } = member;
    let (identity, pki) = (care.identity.clone(), care.keeper.pki().clone());
    let failed = replica.failed();
    let kv: Arc<dyn Kv> = Arc::new(replica.clone());
    let settings = args.access.settings()?;
    trust_clients(&care.keeper, &settings, stop)?;
    let server = ApiServer::new(Config {
        kv: kv.clone(),
        pki: pki.clone(),
        service_cidr: identity.service_cidr.clone(),
        extensions: extensions(&replica, &care),
        settings,
        stop: stop.clone(),
    })
    .map_err(anyhow::Error::msg)?;
    care.serves(server.clone());
    if let Some(address) = args.etcd_listen {
        etcd::listen(address, data, &pki).await?.serve(&replica, data, &pki, care.keeper.slot(), stop)?;
    }
    let vip = vip(args)?;
    let (url, tls) = (format!("https://{}", addresses.api), care.keeper.server());
    let mut serving = tokio::spawn(keelson_apiserver::serve(server.clone(), listener, tls, stop.clone()));
    let caring = tokio::spawn(take_care(args.clone(), care.clone(), vip, stop.clone()));
    let ready = async {
        first_objects(kv.as_ref(), &url, &pki, &identity.service_cidr).await?;
        server.bootstrapped();
        components(args, scheduler, &identity, &pki, &kv, &server, stop)?;
        let place = endpoints::Place {
            kv: kv.clone(),
            client: client(&server, "system:apiserver", "kube-apiserver"),
            id: identity.member_id,
            address: addresses.api,
            service_cidr: identity.service_cidr.clone(),
        };
        tokio::spawn(place.keep(stop.clone()));
        tokio::spawn(compact(replica.clone(), identity.member_id, args.compaction_interval, stop.clone()));
        info!(%url, milliseconds = started.elapsed().as_millis() as u64, "ready");
        println!(
            "keelson is ready at {url}\n  export KUBECONFIG={}\n  kubectl get nodes",
            care.keeper.kubeconfig().display()
        );
        notify::tell(notify::READY);
        Ok::<Infallible, anyhow::Error>(resident::give_back().await)
    };
    tokio::select! {
        result = ready => match result? {},
        result = terminated() => result?,
        reason = failed => bail!("the store stopped: {reason}"),
        ended = &mut serving => bail!("the API server ended: {ended:?}"),
    }
    info!("stopping");
    notify::tell(notify::STOPPING);
    stop.cancel();
    caring.await?;
    serving.await?;
    Ok(())
}

/// What a server does for itself until `stop`: certificates, copies, the virtual address.
async fn take_care(args: ServerArgs, care: Arc<Care>, vip: Option<Address>, stop: CancellationToken) {
    let address = async {
        if let Some(vip) = vip {
            address::run(care.clone(), vip, stop.clone()).await;
        }
    };
    let copies = backup::run(care.clone(), args, stop.clone());
    tokio::join!(care.keeper.clone().run(stop.clone()), copies, address);
}

/// Writes what every cluster has, once there is a leader; says what it waits for.
async fn first_objects(kv: &dyn Kv, url: &str, pki: &ClusterPki, service_cidr: &str) -> Result<()> {
    let waiting = Instant::now();
    let mut said = Duration::ZERO;
    loop {
        let mut objects = keelson_apiserver::bootstrap::objects();
        let ca = pki.cluster.trusted();
        objects.push(keelson_apiserver::bootstrap::cluster_info(url, &ca, &[]));
        objects.push(keelson_apiserver::bootstrap::service_cidr(service_cidr));
        objects.push(keelson_apiserver::bootstrap::extension_authentication(&ca, &ca));
        match keelson_apiserver::bootstrap::ensure(kv, objects).await {
            Ok(_) => return Ok(()),
            Err(BootstrapError::Store(KvError::Unavailable(why))) => {
                if waiting.elapsed() - said > WAITING_LOG_INTERVAL {
                    said = waiting.elapsed();
                    info!(%why, "waiting for a majority of the servers: start the others");
                }
                tokio::time::sleep(LEADER_RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The host's name in lower case.
pub fn hostname() -> Result<String> {
    let name = nix::unistd::gethostname().context("read the host's name")?;
    name.into_string()
        .map(|n| n.to_lowercase())
        .map_err(|_| anyhow::anyhow!("the host's name is not text: choose one with --name"))
}

/// Paths beside the resources.
fn extensions(replica: &Replica, care: &Arc<Care>) -> Vec<(&'static str, Extension)> {
    let mut extensions = vec![
        join::extension(replica.clone(), care.identity.clone(), care.keeper.pki().clone()),
        member::extension(replica.clone()),
        rotate::extension(care.clone()),
    ];
    extensions.extend(status::extensions(care));
    extensions
}

/// The virtual address, if there is to be one.
fn vip(args: &ServerArgs) -> Result<Option<Address>> {
    args.vip.as_deref().map(|vip| Address::parse(vip, args.vip_interface.as_deref())).transpose()
}

/// Names and places of this server's certificates.
fn place(args: &ServerArgs, data: &DataDir, identity: &Identity, addresses: Addresses) -> Place {
    let mut names: Vec<String> = [
        "localhost",
        "127.0.0.1",
        "::1",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(str::to_owned)
    .to_vec();
    names.push(addresses.api.ip().to_string());
    names.extend(hostname());
    names.extend(vip(args).into_iter().flatten().map(|address| address.ip().to_string()));
    names.extend(args.tls_san.iter().cloned());
    names.extend(keelson_apiserver::first_service_address(&identity.service_cidr).map(|first| first.to_string()));
    names.sort();
    names.dedup();
    Place {
        name: identity.name.clone(),
        names,
        url: format!("https://{}", addresses.api),
        keys: data.join("pki"),
        kubeconfig: args.write_kubeconfig.clone().unwrap_or_else(|| data.join("admin.kubeconfig")),
    }
}

/// Starts what runs on the leader, and the pretended nodes.
fn components(
    args: &ServerArgs,
    scheduler: Option<serde_json::Value>,
    identity: &Identity,
    pki: &Arc<ClusterPki>,
    kv: &Arc<dyn Kv>,
    server: &Arc<ApiServer>,
    stop: &CancellationToken,
) -> Result<()> {
    if !args.no_controllers {
        let client = client(server, "system:kube-controller-manager", "kube-controller-manager");
        let mut config = keelson_controllers::Config::new(identity.cluster_cidr.clone(), pki.clone());
        config.service_cidr = identity.service_cidr.clone();
        config.node_monitor_grace_period = args.node_monitor_grace_period;
        config.local_path = !args.no_local_path;
        config.metrics = server.metric_sources().clone();
        config.node_cidr_mask_sizes = args.mask_sizes.within(&identity.cluster_cidr)?;
        let task: leader::Task = Box::new(move |fence, running| {
            Box::pin(keelson_controllers::run(client.fenced(fence), config.clone(), running))
        });
        tokio::spawn(leader::run(kv.clone(), "controllers", identity.name.clone(), task, stop.clone()));
    }
    if !args.no_scheduler {
        let asking = client(server, "system:kube-scheduler", "kube-scheduler");
        server.set_advisor(crate::scheduler::advisor(asking, scheduler.clone()));
        let client = client(server, "system:kube-scheduler", "kube-scheduler");
        let metrics = server.metric_sources().clone();
        let task: leader::Task = Box::new(move |fence, running| {
            Box::pin(keelson_scheduler::run(client.fenced(fence), scheduler.clone(), metrics.clone(), running))
        });
        tokio::spawn(leader::run(kv.clone(), "scheduler", identity.name.clone(), task, stop.clone()));
    }
    if args.hollow > 0 {
        let config = HollowConfig { count: args.hollow, ..HollowConfig::default() };
        tokio::spawn(keelson_nodeagent::hollow::run(config, client(server, "system:nodes", "kubelet"), stop.clone()));
    }
    Ok(())
}

/// A client of the API server in this process.
pub fn client(server: &Arc<ApiServer>, user: &str, agent: &str) -> Client {
    let user = UserInfo {
        name: user.into(),
        groups: vec![MASTERS.into(), "system:authenticated".into()],
        ..UserInfo::default()
    };
    Client::new(Arc::new(InProcess::new(server.clone(), user)), agent)
}

/// Forgets history that is older than one interval. Every member counts the time; the leader asks for it.
async fn compact(replica: Replica, id: u64, interval: Duration, stop: CancellationToken) {
    let mut before = replica.view().revision();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        if before > replica.view().compact_revision()
            && replica.standing().leader == id
            && let Err(error) = replica.compact(before).await
        {
            warn!(%error, "compaction failed; it is tried again");
        }
        before = replica.view().revision();
    }
}

/// Waits for SIGTERM or SIGINT.
pub async fn terminated() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    Ok(())
}

/// Trusts the authorities of clients that the settings name, and others when their files change.
fn trust_clients(keeper: &Arc<Keeper>, settings: &Settings, stop: &CancellationToken) -> Result<()> {
    let known = settings.authentication.authorities().map_err(anyhow::Error::msg)?;
    keeper.trust_clients(known.clone())?;
    let (own, keeper, stop) = (settings.authentication.clone(), keeper.clone(), stop.clone());
    let following = follow_authorities(known, move || own.authorities(), move |all| keeper.trust_clients(all));
    tokio::spawn(async move { stop.run_until_cancelled(following).await });
    Ok(())
}

/// Reads the authorities of clients again now and then; whom they vouch for is let in from the next connection on.
async fn follow_authorities(
    mut known: String,
    read: impl Fn() -> Result<String, String>,
    trust: impl Fn(String) -> Result<()>,
) {
    loop {
        tokio::time::sleep(AUTHORITIES_INTERVAL).await;
        let now = match read() {
            Ok(now) if now == known => continue,
            Ok(now) => now,
            Err(why) => {
                tracing::error!(%why, "the authorities of clients cannot be read; those known before are trusted on");
                continue;
            }
        };
        match trust(now.clone()) {
            Ok(()) => info!("other authorities of clients are trusted now"),
            Err(error) => tracing::error!(%error, "the authorities of clients cannot be used"),
        }
        known = now;
    }
}
