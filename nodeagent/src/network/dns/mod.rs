//! The cluster's name server, on every node: pods ask the node they run on, so that no name depends on another machine.

mod message;
mod records;
mod upstream;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::process::Command;
use tokio::sync::Semaphore;

use crate::agent::Agent;
use crate::spec::dns::parse as parse_resolv_conf;
use message::{Code, Question};
use records::{Answer, Cluster};
use upstream::Upstream;

/// The port of name servers.
const PORT: u16 = 53;
/// How long clients may keep an answer, seconds.
const LIFE: u32 = 5;
/// Questions that are worked on at once.
const AT_ONCE: usize = 1000;
/// A TCP connection without a question is closed after this time.
const QUIET: Duration = Duration::from_secs(10);
/// Bytes of a message over TCP.
const MAX_TCP: usize = 65_535;
/// Pause before listening is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Names that a chain of names may have.
const MAX_CHAIN: usize = 8;

struct Server {
    agent: Arc<Agent>,
    zone: String,
    upstream: Upstream,
    permits: Arc<Semaphore>,
}

impl Cluster for Agent {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(&(namespace.to_owned(), name.to_owned()))
    }

    fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>> {
        self.endpoints.of(&(namespace.to_owned(), name.to_owned()))
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        // A namespace without pods and Services has no names to ask for.
        self.services.list().iter().any(|s| s.metadata.namespace.as_deref() == Some(namespace))
            || self.pods.list().iter().any(|p| p.metadata.namespace.as_deref() == Some(namespace))
    }

    fn service_at(&self, ip: IpAddr) -> Option<(String, String)> {
        let ip = ip.to_string();
        let has = |s: &&Arc<Service>| s.spec.as_ref().is_some_and(|s| s.cluster_ips.iter().flatten().any(|c| *c == ip));
        let all = self.services.list();
        let found = all.iter().find(has)?;
        Some((found.metadata.namespace.clone()?, found.metadata.name.clone()?))
    }

    fn endpoint_at(&self, ip: IpAddr) -> Option<(String, String, String)> {
        self.endpoints.named(&ip.to_string())
    }
}

/// Serves names on this node for ever, at each of the addresses.
pub async fn run(agent: Arc<Agent>, addresses: Vec<IpAddr>) {
    agent.services.synced().await;
    let node = parse_resolv_conf(&std::fs::read_to_string(&agent.config.resolv_conf).unwrap_or_default());
    let others = node.servers.iter().filter_map(|s| s.parse().ok()).filter(|ip| !addresses.contains(ip));
    let server = Arc::new(Server {
        upstream: Upstream::new(others),
        zone: agent.config.cluster_domain.trim_end_matches('.').to_ascii_lowercase(),
        permits: Arc::new(Semaphore::new(AT_ONCE)),
        agent,
    });
    let at = |address: IpAddr| {
        let server = server.clone();
        async move {
            loop {
                if let Err(error) = serve(&server, address).await {
                    tracing::error!(%address, %error, "the cluster's name server cannot listen; trying again");
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    futures::future::join_all(addresses.into_iter().map(at)).await;
}

/// Gives the node the name server's address: pods' packets to it end here.
async fn own(address: IpAddr) -> io::Result<()> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let output =
        Command::new("ip").args(["address", "replace", &format!("{address}/{length}"), "dev", "lo"]).output().await?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("ip address replace: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

async fn serve(server: &Arc<Server>, address: IpAddr) -> io::Result<()> {
    own(address).await?;
    let at = SocketAddr::new(address, PORT);
    let socket = Arc::new(UdpSocket::bind(at).await?);
    let listener = TcpListener::bind(at).await?;
    let mut buffer = vec![0; MAX_TCP];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                let Ok((length, peer)) = received else { continue };
                let Ok(permit) = server.permits.clone().try_acquire_owned() else { continue };
                let (server, socket, bytes) = (server.clone(), socket.clone(), buffer[..length].to_vec());
                tokio::spawn(async move {
                    if let Some(answer) = server.answer(&bytes, false).await {
                        // A client that is gone does not matter.
                        let _ = socket.send_to(&answer, peer).await;
                    }
                    drop(permit);
                });
            }
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let Ok(permit) = server.permits.clone().try_acquire_owned() else { continue };
                let server = server.clone();
                tokio::spawn(async move {
                    if let Err(error) = server.connection(stream).await {
                        tracing::debug!(%error, "a connection to the name server ended");
                    }
                    drop(permit);
                });
            }
        }
    }
}

impl Server {
    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let read = tokio::time::timeout(QUIET, upstream::read_framed(&mut stream)).await;
            let Some(bytes) = read.map_err(io::Error::other)?? else { return Ok(()) };
            let Some(answer) = self.answer(&bytes, true).await else { return Ok(()) };
            upstream::write_framed(&mut stream, &answer).await?;
        }
    }

    async fn answer(&self, bytes: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let question = match message::parse(bytes) {
            Ok(question) => question,
            Err(refusal) => return refusal.map(|(id, code)| message::refusal(id, code)),
        };
        let limit = if tcp { MAX_TCP } else { question.size };
        match records::resolve(&*self.agent, &self.zone, &question.name, question.kind) {
            Answer::Ours(code, mut list) => {
                self.follow(&question, &mut list).await;
                Some(message::answer(&question, code, &list, &self.zone, LIFE, limit))
            }
            Answer::Elsewhere => match self.upstream.ask(&question, bytes, tcp).await {
                Ok(answer) => Some(answer),
                Err(error) => {
                    tracing::debug!(name = question.name, %error, "a name could not be resolved");
                    Some(message::answer(&question, Code::Failed, &[], "", LIFE, limit))
                }
            },
        }
    }

    /// Adds what a name of another name leads to.
    async fn follow(&self, question: &Question, list: &mut Vec<message::Record>) {
        for _ in 0..MAX_CHAIN {
            let Some(message::Data::Cname(target)) = list.last().map(|r| r.data.clone()) else { return };
            match records::resolve(&*self.agent, &self.zone, &target, question.kind) {
                Answer::Ours(_, more) if !more.is_empty() => list.extend(more),
                Answer::Ours(..) => return,
                Answer::Elsewhere => {
                    list.extend(self.addresses_elsewhere(question, &target).await);
                    return;
                }
            }
        }
    }

    async fn addresses_elsewhere(&self, question: &Question, target: &str) -> Vec<message::Record> {
        let bytes = message::question(question.id, target, question.kind);
        let Ok(asked) = message::parse(&bytes) else { return Vec::new() };
        match self.upstream.ask(&asked, &bytes, true).await {
            Ok(answer) => message::addresses(&answer),
            Err(error) => {
                tracing::debug!(name = target, %error, "an external name could not be resolved");
                Vec::new()
            }
        }
    }
}
