//! Names that are not the cluster's: asked of the node's own name servers, and remembered for as long as they say.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::message::{self, Question};

/// Longest wait for one server.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often the servers are asked before giving up.
const TRIES: usize = 2;
/// Answers that are remembered; beyond, the old ones go, or all.
const REMEMBERED: usize = 10_000;
/// Longest time that an answer is remembered.
const MAX_LIFE: Duration = Duration::from_secs(30);
/// Bytes of an answer.
const MAX_ANSWER: usize = 65_535;

struct Kept {
    bytes: Vec<u8>,
    since: Instant,
    until: Instant,
}

/// The other servers and what they said.
pub struct Upstream {
    servers: Vec<SocketAddr>,
    kept: Mutex<HashMap<(String, u16, bool), Kept>>,
}

impl Upstream {
    /// Asks these servers, in their order.
    pub fn new(servers: impl Iterator<Item = IpAddr>) -> Self {
        Self { servers: servers.map(|ip| SocketAddr::new(ip, 53)).collect(), kept: Mutex::default() }
    }

    /// The answer to a question that came as `bytes`.
    pub async fn ask(&self, question: &Question, bytes: &[u8], tcp: bool) -> io::Result<Vec<u8>> {
        let key = (question.name.clone(), question.kind, tcp);
        if let Some(answer) = self.remembered(&key, question.id) {
            return Ok(answer);
        }
        let mut failure = io::Error::other("the node knows no name server");
        for _ in 0..TRIES {
            for server in &self.servers {
                let asked = async { if tcp { over_tcp(*server, bytes).await } else { over_udp(*server, bytes).await } };
                match tokio::time::timeout(TIMEOUT, asked).await {
                    Ok(Ok(answer)) => {
                        self.remember(key, &answer);
                        return Ok(answer);
                    }
                    Ok(Err(error)) => failure = error,
                    Err(_) => failure = io::ErrorKind::TimedOut.into(),
                }
            }
        }
        Err(failure)
    }

    fn remembered(&self, key: &(String, u16, bool), id: u16) -> Option<Vec<u8>> {
        let kept = self.kept.lock();
        let found = kept.get(key).filter(|k| Instant::now() < k.until)?;
        let mut bytes = found.bytes.clone();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        let age = u32::try_from(found.since.elapsed().as_secs()).unwrap_or(u32::MAX);
        for at in message::lives(&bytes)?.0 {
            let life: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            let left = u32::from_be_bytes(life).saturating_sub(age);
            bytes[at..at + 4].copy_from_slice(&left.to_be_bytes());
        }
        Some(bytes)
    }

    fn remember(&self, key: (String, u16, bool), bytes: &[u8]) {
        let Some((_, least)) = message::lives(bytes) else { return };
        let failed = bytes.get(3).is_none_or(|flags| !matches!(flags & 15, 0 | 3));
        let cut = bytes.get(2).is_none_or(|flags| flags & 2 != 0);
        let life = Duration::from_secs(least.into()).min(MAX_LIFE);
        if failed || cut || life.is_zero() || least == u32::MAX {
            return;
        }
        let now = Instant::now();
        let mut kept = self.kept.lock();
        if kept.len() >= REMEMBERED {
            kept.retain(|_, k| k.until > now);
        }
        if kept.len() >= REMEMBERED {
            kept.clear();
        }
        kept.insert(key, Kept { bytes: bytes.to_vec(), since: now, until: now + life });
    }
}

async fn over_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    // A port of its own for each question: who guesses answers must guess that too.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let mut question = question.to_vec();
    let (theirs, ours) = ([question[0], question[1]], rand::random::<[u8; 2]>());
    question[..2].copy_from_slice(&ours);
    socket.send(&question).await?;
    let mut buffer = vec![0; MAX_ANSWER];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if length > 12 && buffer[..2] == ours {
            buffer.truncate(length);
            buffer[..2].copy_from_slice(&theirs);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_framed(&mut stream, question).await?;
    read_framed(&mut stream).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Writes a message with its length before it.
pub async fn write_framed(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).map_err(|_| io::Error::other("a message is too long"))?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await
}

/// Reads a message with its length before it; `None` at the end of the stream.
pub async fn read_framed(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    };
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}
