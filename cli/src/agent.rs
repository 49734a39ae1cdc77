//! `keelson agent`: joins this machine to a cluster, or comes back to it, and runs the pods that are bound to it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use keelson_client::https::{Https, transport_of};
use keelson_client::{Client, Transport};
use keelson_nodeagent::hollow::{self, HollowConfig};
use keelson_nodeagent::join::{self, Credentials};
use keelson_nodeagent::{Agent, AgentConfig, CpuPolicy, Manifests, MemoryPolicy, Placement, Shutdown};
use keelson_pki::{Identity, client_config};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::args::AgentArgs;
use crate::identity::DataDir;
use crate::life::notify;
use crate::resident;

/// How often the list of servers is brought up to date.
const SERVERS_REFRESH: Duration = Duration::from_secs(30);

/// Where programs leave descriptions of devices, as runtimes look for them.
const CDI_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// The name service's address in clusters without a Service for it.
const DEFAULT_CLUSTER_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
/// Pause before the name service's address is asked for again.
const NAME_SERVICE_RETRY: Duration = Duration::from_secs(1);

/// Runs the agent until it is told to stop. Pods go on running then.
pub async fn run(args: AgentArgs) -> Result<()> {
    let data = DataDir::open(&args.data_dir)?;
    let name = args.name.clone().map_or_else(crate::server::hostname, Ok)?;
    if args.hollow > 0 {
        return pretend(&args, &name).await;
    }
    let runtime_socket = socket(&args.runtime_endpoint)?;
    let (https, credentials) = connect(&args, &name).await?;
    let (node_ip, other_node_ip) = node_ips(&args.node_ip, &https).await?;
    let client = Client::new(https.clone() as Arc<dyn Transport>, "kubelet");
    let stop = CancellationToken::new();
    tokio::spawn(follow_servers(https.clone(), client.clone(), stop.clone()));
    let cluster_dns = match args.cluster_dns {
        Some(address) => address,
        None => tokio::select! {
            address = name_service(&client) => address,
            result = crate::server::terminated() => return result,
        },
    };
    let (caller, joined) = (https.clone(), credentials);
    let config = AgentConfig {
        node_name: name.clone(),
        client,
        runtime_socket,
        data_dir: args.data_dir.clone(),
        log_dir: args.log_dir.clone().unwrap_or_else(|| "/var/log/pods".into()),
        cni_conf_dir: args.cni_conf_dir.clone(),
        node_ip,
        other_node_ip,
        port: args.port,
        credentials: joined,
        renewed: Some(Arc::new(move |tls| caller.replace_tls(tls))),
        cluster_cidr: args.cluster_cidr.clone(),
        resolv_conf: args.resolv_conf.clone(),
        cluster_dns: Some(cluster_dns),
        serve_dns: !args.no_dns,
        cluster_domain: args.cluster_domain.clone(),
        proxy: !args.no_proxy,
        proxy_mode: args.proxy_mode,
        cdi_dirs: CDI_DIRS.map(PathBuf::from).into(),
        eviction: args.eviction_hard,
        cpu_policy: cpu_policy(&args)?,
        placement: placement(&args)?,
        swap: args.memory_swap_behavior,
        allowed_sysctls: args.allowed_unsafe_sysctls.clone(),
        manifests: manifests(&args)?,
        pod_network: args.cni,
        shutdown: Some(Shutdown {
            grace: args.shutdown_grace_period,
            critical: args.shutdown_grace_period_critical_pods,
            program: "systemctl".into(),
        }),
    };
    info!(node = name, %node_ip, servers = ?https.servers(), "the agent starts");
    notify::tell(notify::READY);
    let running = Agent::run(config, stop.clone());
    tokio::pin!(running);
    tokio::select! {
        result = &mut running => result?,
        never = resident::give_back() => match never {},
        result = crate::server::terminated() => {
            result?;
            info!("stopping; pods go on running unless the machine goes down");
            stop.cancel();
            running.await?;
        }
    }
    drop(data);
    Ok(())
}

/// Pretends nodes until it is told to stop.
async fn pretend(args: &AgentArgs, name: &str) -> Result<()> {
    let (https, _) = connect(args, name).await?;
    let client = Client::new(https.clone() as Arc<dyn Transport>, "kubelet");
    let stop = CancellationToken::new();
    tokio::spawn(follow_servers(https, client.clone(), stop.clone()));
    let config = HollowConfig { prefix: format!("{name}-"), count: args.hollow, ..HollowConfig::default() };
    notify::tell(notify::READY);
    tokio::select! {
        () = hollow::run(config, client, stop.clone()) => {}
        result = crate::server::terminated() => result?,
    }
    stop.cancel();
    Ok(())
}

/// The node's address and that of the other family, if it has one.
async fn node_ips(given: &[IpAddr], https: &Https) -> Result<(IpAddr, Option<IpAddr>)> {
    Ok(match *given {
        [] => (own_address(&https.servers()).await?, None),
        [ip] => (ip, None),
        [ip, other] if ip.is_ipv4() != other.is_ipv4() => (ip, Some(other)),
        _ => bail!("--node-ip: one address, or one of IPv4 and one of IPv6"),
    })
}

/// A transport with the node's identity: from a kubeconfig, an earlier join or a join now.
async fn connect(args: &AgentArgs, name: &str) -> Result<(Arc<Https>, Option<Credentials>)> {
    if let Some(kubeconfig) = &args.kubeconfig {
        let https = transport_of(kubeconfig)
            .with_context(|| format!("cannot use {}: name another with --kubeconfig", kubeconfig.display()))?;
        let credentials = join::credentials_of(kubeconfig)?;
        return Ok((Arc::new(https), credentials));
    }
    if args.server.is_empty() {
        bail!("name a server with --server https://HOST:6443 (and --token and --ca-hash), or a --kubeconfig");
    }
    let token = crate::args::join_token(args.token.as_deref(), args.token_file.as_deref())?;
    let (Some(token), Some(hash)) = (&token, &args.ca_hash) else {
        bail!(
            "joining needs --token (or --token-file) and --ca-hash; `keelson token create --print-join-command` prints both"
        );
    };
    let credentials = join::join(&args.server, token, hash, name, &args.data_dir).await?;
    let tls = client_config(&credentials.ca, Identity::Certificate(&credentials.client))?;
    Ok((Arc::new(Https::to_any(&credentials.servers, tls, None)), Some(credentials)))
}

fn socket(endpoint: &str) -> Result<PathBuf> {
    match endpoint.strip_prefix("unix://") {
        Some(path) => Ok(path.into()),
        None if endpoint.starts_with('/') => Ok(endpoint.into()),
        None => bail!(
            "--runtime-endpoint {endpoint}: only Unix sockets are supported, such as unix:///run/containerd/containerd.sock"
        ),
    }
}

fn cpu_policy(args: &AgentArgs) -> Result<CpuPolicy> {
    match (args.cpu_manager_policy.as_str(), &args.reserved_cpus) {
        ("none", _) => Ok(CpuPolicy::None),
        ("static", reserved) if reserved.0.is_empty() => {
            bail!(
                "--cpu-manager-policy static: name the processors that pods must leave to the system with --reserved-cpus, such as 0"
            )
        }
        ("static", reserved) => Ok(CpuPolicy::Static(reserved.clone())),
        (other, _) => bail!("--cpu-manager-policy {other}: none and static are known"),
    }
}

fn placement(args: &AgentArgs) -> Result<Placement> {
    let reserved = keelson_nodeagent::parse_reserved(&args.reserved_memory)
        .map_err(|why| anyhow::anyhow!("--reserved-memory: {why}"))?;
    let memory = match args.memory_manager_policy.as_str() {
        "None" => MemoryPolicy::None,
        "Static" if reserved.is_empty() => bail!(
            "--memory-manager-policy Static: say what pods must leave to the system with --reserved-memory, such as \
             0:memory=1Gi"
        ),
        "Static" => MemoryPolicy::Static(reserved),
        other => bail!("--memory-manager-policy {other}: None and Static are known"),
    };
    Ok(Placement { policy: args.topology_manager_policy, scope: args.topology_manager_scope, memory })
}

fn manifests(args: &AgentArgs) -> Result<Manifests> {
    Ok(Manifests {
        path: args.pod_manifest_path.clone(),
        url: manifest_url(args.manifest_url.as_deref())?,
        headers: headers(&args.manifest_url_header)?,
        ca: args.manifest_url_ca.clone(),
    })
}

fn manifest_url(url: Option<&str>) -> Result<Option<http::Uri>> {
    let Some(url) = url.filter(|url| !url.is_empty()) else { return Ok(None) };
    let parsed: http::Uri = url.parse().with_context(|| format!("--manifest-url {url}"))?;
    if !matches!(parsed.scheme_str(), Some("http" | "https")) || parsed.host().is_none() {
        bail!("--manifest-url {url}: write http://HOST/PATH or https://HOST/PATH");
    }
    Ok(Some(parsed))
}

/// Headers as `NAME:VALUE`.
fn headers(list: &[String]) -> Result<Vec<(String, String)>> {
    let header = |text: &String| {
        let (name, value) = text.split_once(':').context("--manifest-url-header: write NAME:VALUE")?;
        Ok((name.trim().to_owned(), value.trim().to_owned()))
    };
    list.iter().map(header).collect()
}

/// The address from which the first server that can be routed to would be called.
async fn own_address(servers: &[String]) -> Result<IpAddr> {
    for server in servers {
        let Ok(uri) = server.parse::<http::Uri>() else { continue };
        let (host, port) = (uri.host().unwrap_or_default().trim_matches(['[', ']']), uri.port_u16().unwrap_or(443));
        for address in tokio::net::lookup_host((host, port)).await.into_iter().flatten() {
            let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
            let socket = tokio::net::UdpSocket::bind(any).await?;
            if socket.connect(address).await.is_ok() {
                return Ok(socket.local_addr()?.ip());
            }
        }
    }
    bail!("the node's address cannot be told from the servers' addresses: set it with --node-ip")
}

/// Keeps the transport's list of servers as the `kubernetes` endpoints say; those named at the start stay behind them.
async fn follow_servers(https: Arc<Https>, client: Client, stop: CancellationToken) {
    let given = https.servers();
    loop {
        match client.namespaced::<Endpoints>("default").get_opt("kubernetes").await {
            Ok(endpoints) => {
                let mut servers = endpoints.map(|e| urls(&e)).unwrap_or_default();
                servers.extend(given.iter().filter(|g| !servers.contains(g)).cloned().collect::<Vec<_>>());
                https.set_servers(&servers);
            }
            Err(error) => warn!(%error, "the list of servers could not be read; the known ones are used"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SERVERS_REFRESH) => {}
        }
    }
}

/// The address of the cluster's name service, as soon as the API says which that is.
async fn name_service(client: &Client) -> IpAddr {
    loop {
        match client.namespaced::<Service>("kube-system").get_opt("kube-dns").await {
            Ok(service) => {
                let address = service.and_then(|s| s.spec?.cluster_ip?.parse().ok());
                return address.unwrap_or(DEFAULT_CLUSTER_DNS);
            }
            Err(error) => warn!(%error, "the name service's address could not be read; trying again"),
        }
        tokio::time::sleep(NAME_SERVICE_RETRY).await;
    }
}

fn urls(endpoints: &Endpoints) -> Vec<String> {
    let mut urls = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let https = |p: &&k8s_openapi::api::core::v1::EndpointPort| p.name.as_deref() == Some("https");
        let Some(port) = subset.ports.iter().flatten().find(https).map(|p| p.port) else { continue };
        for address in subset.addresses.iter().flatten() {
            let host = if address.ip.contains(':') { format!("[{}]", address.ip) } else { address.ip.clone() };
            urls.push(format!("https://{host}:{port}"));
        }
    }
    urls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_the_endpoints() {
        let endpoints: Endpoints = serde_json::from_value(serde_json::json!({"subsets": [{
            "addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "ports": [{"name": "https", "port": 6443}]}]}))
        .unwrap();
        assert_eq!(urls(&endpoints), ["https://10.0.0.1:6443", "https://[fd00::1]:6443"]);
        assert!(urls(&Endpoints::default()).is_empty());
    }

    #[test]
    fn runtime_endpoints() {
        assert_eq!(socket("unix:///run/x.sock").unwrap(), PathBuf::from("/run/x.sock"));
        assert_eq!(socket("/run/x.sock").unwrap(), PathBuf::from("/run/x.sock"));
        assert!(socket("tcp://1.2.3.4:5").is_err());
    }
}
