//! `keelson server`: puts store, API server, controllers and scheduler together in one process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keelson_apiserver::access::UserInfo;
use keelson_apiserver::{ApiServer, Config, InProcess};
use keelson_client::Client;
use keelson_nodeagent::hollow::HollowConfig;
use keelson_pki::{Authority, CertificateSlot, ClusterPki, Credential, Issued};
use keelson_store::{Kv, LocalKv};
use rand::RngExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::args::ServerArgs;
use crate::identity::{DataDir, Identity, write_private};
use crate::leader;

/// The admin's group: may do everything.
const MASTERS: &str = "system:masters";

/// Runs a server until it is told to stop.
pub async fn run(args: ServerArgs) -> Result<()> {
    let scheduler_config = crate::scheduler::config(args.scheduler_config.as_deref())?;
    let started = Instant::now();
    let data = DataDir::open(&args.data_dir)?;
    let (identity, pki) = member(&args, &data)?;
    let address = SocketAddr::new(args.bind_address, args.secure_port);
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: stop what uses it, or choose another with --secure-port")
    })?;
    let directory = data.join("store");
    let kv: Arc<dyn Kv> = Arc::new(
        tokio::task::spawn_blocking(move || LocalKv::open(&directory)).await?.context("cannot open the store")?,
    );
    let stop = CancellationToken::new();
    let advertised = advertised(&args);
    let server = ApiServer::new(Config {
        kv: kv.clone(),
        pki: pki.clone(),
        service_cidr: identity.service_cidr.clone(),
        extensions: Vec::new(),
        stop: stop.clone(),
    });
    keelson_apiserver::bootstrap::ensure(kv.as_ref(), keelson_apiserver::bootstrap::objects()).await?;
    let serving = serving_certificate(&pki.cluster, &args, advertised)?;
    let tls = keelson_pki::server_config(CertificateSlot::new(&serving)?, pki.cluster.certificate())?;
    let kubeconfig = args.write_kubeconfig.clone().unwrap_or_else(|| data.join("admin.kubeconfig"));
    let url = format!("https://{}", SocketAddr::new(advertised, args.secure_port));
    let info = keelson_apiserver::bootstrap::cluster_info(&url, pki.cluster.certificate(), &[]);
    keelson_apiserver::bootstrap::ensure(kv.as_ref(), vec![info]).await?;
    let admin = pki.cluster.issue_client("kubernetes-admin", &[MASTERS])?;
    let text = keelson_pki::kubeconfig(
        "keelson",
        &url,
        pki.cluster.certificate(),
        "kubernetes-admin",
        Credential::Certificate(&admin),
    );
    write_private(&kubeconfig, text.as_bytes())?;

    let serve = tokio::spawn(keelson_apiserver::serve(server.clone(), listener, tls, stop.clone()));
    components(&args, scheduler_config, &identity, &pki, &kv, &server, &stop);
    tokio::spawn(compact(kv.clone(), args.compaction_interval, stop.clone()));
    info!(%url, milliseconds = started.elapsed().as_millis() as u64, "ready");
    println!("keelson is ready at {url}\n  export KUBECONFIG={}\n  kubectl get nodes", kubeconfig.display());
    terminated().await?;
    info!("stopping");
    stop.cancel();
    serve.await?;
    Ok(())
}

/// What the data directory says, or a new cluster.
fn member(args: &ServerArgs, data: &DataDir) -> Result<(Identity, Arc<ClusterPki>)> {
    let directory = data.join("pki");
    let stored = data.identity()?;
    let pki = match ClusterPki::load(&directory)? {
        Some(pki) => pki,
        None if stored.is_some() => {
            bail!("{} has no keys though a member lives here: restore the directory from a backup", directory.display())
        }
        None => {
            let pki = ClusterPki::create()?;
            pki.save(&directory)?;
            pki
        }
    };
    if let Some(identity) = stored {
        for (flag, given, kept) in [
            ("--service-cidr", &args.service_cidr, &identity.service_cidr),
            ("--cluster-cidr", &args.cluster_cidr, &identity.cluster_cidr),
        ] {
            if given != kept {
                bail!("{flag} {given} differs from {kept}, with which this cluster was made; it cannot be changed");
            }
        }
        return Ok((identity, Arc::new(pki)));
    }
    let mut rng = rand::rng();
    let identity = Identity {
        cluster_id: rng.random(),
        member_id: rng.random_range(1..u64::MAX),
        name: args.name.clone().map_or_else(hostname, Ok)?,
        service_cidr: args.service_cidr.clone(),
        cluster_cidr: args.cluster_cidr.clone(),
    };
    data.record(&identity)?;
    Ok((identity, Arc::new(pki)))
}

/// The host's name in lower case.
pub fn hostname() -> Result<String> {
    let name = nix::unistd::gethostname().context("read the host's name")?;
    name.into_string()
        .map(|n| n.to_lowercase())
        .map_err(|_| anyhow::anyhow!("the host's name is not text: choose one with --name"))
}

/// The address that the kubeconfig names.
fn advertised(args: &ServerArgs) -> IpAddr {
    args.advertise_address.unwrap_or(match args.bind_address {
        any if any.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        address => address,
    })
}

/// The API's certificate, with its CA appended so that joins pinned to the CA's hash can check it.
fn serving_certificate(ca: &Authority, args: &ServerArgs, advertised: IpAddr) -> Result<Issued> {
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
    names.push(advertised.to_string());
    names.extend(hostname());
    names.extend(args.tls_san.iter().cloned());
    if let Some(first) = first_service_address(&args.service_cidr) {
        names.push(first);
    }
    names.sort();
    names.dedup();
    let mut issued = ca.issue_server("keelson-apiserver", &names)?;
    issued.certificate += ca.certificate();
    Ok(issued)
}

fn first_service_address(cidr: &str) -> Option<String> {
    let base: Ipv4Addr = cidr.split_once('/')?.0.parse().ok()?;
    Some(Ipv4Addr::from(u32::from(base) + 1).to_string())
}

/// Starts what runs on the leader, and the pretended nodes.
fn components(
    args: &ServerArgs,
    scheduler_config: Option<serde_json::Value>,
    identity: &Identity,
    pki: &Arc<ClusterPki>,
    kv: &Arc<dyn Kv>,
    server: &Arc<ApiServer>,
    stop: &CancellationToken,
) {
    let client = |user: &str, agent: &str| {
        let user = UserInfo {
            name: user.into(),
            groups: vec![MASTERS.into(), "system:authenticated".into()],
            ..UserInfo::default()
        };
        Client::new(Arc::new(InProcess::new(server.clone(), user)), agent)
    };
    if !args.no_controllers {
        let client = client("system:kube-controller-manager", "kube-controller-manager");
        let mut config = keelson_controllers::Config::new(identity.cluster_cidr.clone(), pki.clone());
        config.node_monitor_grace_period = args.node_monitor_grace_period;
        let task: leader::Task = Box::new(move |fence, running| {
            Box::pin(keelson_controllers::run(client.fenced(fence), config.clone(), running))
        });
        tokio::spawn(leader::run(kv.clone(), "controllers", identity.name.clone(), task, stop.clone()));
    }
    if !args.no_scheduler {
        let client = client("system:kube-scheduler", "kube-scheduler");
        let task: leader::Task = Box::new(move |fence, running| {
            Box::pin(keelson_scheduler::run(client.fenced(fence), scheduler_config.clone(), running))
        });
        tokio::spawn(leader::run(kv.clone(), "scheduler", identity.name.clone(), task, stop.clone()));
    }
    if args.hollow > 0 {
        let config = HollowConfig { count: args.hollow, ..HollowConfig::default() };
        tokio::spawn(keelson_nodeagent::hollow::run(config, client("system:nodes", "kubelet"), stop.clone()));
    }
}

/// Forgets history that is older than one interval.
async fn compact(kv: Arc<dyn Kv>, interval: Duration, stop: CancellationToken) {
    let mut before = kv.view().revision();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        if before > kv.view().compact_revision()
            && let Err(error) = kv.compact(before).await
        {
            warn!(%error, "compaction failed; it is tried again");
        }
        before = kv.view().revision();
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
