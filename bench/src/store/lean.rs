//! A load client that costs little: gRPC requests over HTTP/2 frames that it writes itself, since what a full client takes
//! on the same processors is not there for the servers that are measured.
//!
//! Invariant: a request counts as done when its stream ended after an answer had come; one that ends without an answer,
//! as refused ones do, ends the measurement with an error.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Measured;
use super::frames::{self, Frame, Kind};

/// Most connections: as many clients share each.
pub const CONNECTIONS: usize = 48;
/// Bytes that one read takes at most.
const READ_BYTES: usize = 64 * 1024;
/// Room that a server gives a new connection for what it is sent.
const FIRST_WINDOW: i64 = 65_535;
/// An answer that takes so long never comes.
const PATIENCE: Duration = Duration::from_secs(30);

/// One request: the method's path and the encoded message.
pub type Call = (&'static str, Vec<u8>);

/// What all connections share.
struct Work<F> {
    next: AtomicUsize,
    total: usize,
    call: F,
}

/// A stream that waits for its end.
struct Waiting {
    begun: Instant,
    answered: bool,
}

struct Connection<F> {
    socket: TcpStream,
    work: Arc<Work<F>>,
    authority: String,
    /// Clients that have no request under way.
    idle: usize,
    waiting: HashMap<u32, Waiting>,
    next_stream: u32,
    /// Bytes that the server still takes.
    window: i64,
    /// A request that was made but did not fit into the window.
    held: Option<Call>,
    /// Bytes received since the server was last given room for more.
    received: u32,
    read: Vec<u8>,
    write: Vec<u8>,
    latencies: Vec<Duration>,
    /// Requests that the server broke off.
    reset: usize,
}

/// One request in so many may be broken off by the server: more say that something else is wrong.
const RESETS: usize = 1000;

/// Does `total` calls with so many clients at once, each of which waits for its answer before it asks again. All of it runs
/// on one thread of its own.
pub async fn load<F>(servers: Vec<SocketAddr>, clients: usize, total: usize, call: F) -> Result<Measured>
where
    F: Fn(usize) -> Call + Send + Sync + 'static,
{
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(all(&servers, clients, total, call))
    };
    tokio::task::spawn_blocking(run).await?
}

async fn all<F>(servers: &[SocketAddr], clients: usize, total: usize, call: F) -> Result<Measured>
where
    F: Fn(usize) -> Call + Send + Sync + 'static,
{
    let work = Arc::new(Work { next: AtomicUsize::new(0), total, call });
    let count = clients.min(CONNECTIONS);
    let mut connections = Vec::new();
    for at in 0..count {
        let own = clients / count + usize::from(at < clients % count);
        connections.push(Connection::open(servers[at % servers.len()], own, work.clone()).await?);
    }
    let started = Instant::now();
    let tasks: Vec<_> = connections.into_iter().map(|connection| tokio::spawn(connection.run())).collect();
    let (mut latencies, mut reset) = (Vec::with_capacity(total), 0);
    for task in tasks {
        let (own, broken) = task.await??;
        latencies.extend(own);
        reset += broken;
    }
    if reset > 0 {
        eprintln!("    {reset} of {total} requests were reset by the server and do not count");
    }
    if reset > total / RESETS {
        bail!("the server reset {reset} of {total} requests");
    }
    Ok(Measured::new(latencies, started.elapsed()))
}

impl<F: Fn(usize) -> Call> Connection<F> {
    async fn open(server: SocketAddr, clients: usize, work: Arc<Work<F>>) -> Result<Self> {
        let mut socket = TcpStream::connect(server).await.with_context(|| format!("cannot reach {server}"))?;
        socket.set_nodelay(true)?;
        let mut hello = frames::PREFACE.to_vec();
        frames::settings(&mut hello);
        frames::window(&mut hello, frames::ROOM_BYTES);
        socket.write_all(&hello).await?;
        Ok(Self {
            socket,
            work,
            authority: server.to_string(),
            idle: clients,
            waiting: HashMap::new(),
            next_stream: 1,
            window: FIRST_WINDOW,
            held: None,
            received: 0,
            read: Vec::with_capacity(READ_BYTES),
            write: Vec::new(),
            latencies: Vec::new(),
            reset: 0,
        })
    }

    /// The next request, if there is one and the server has room for it.
    fn next(&mut self) -> Option<Call> {
        if self.idle == 0 {
            return None;
        }
        let call = self.held.take().or_else(|| {
            let number = self.work.next.fetch_add(1, Ordering::Relaxed);
            (number < self.work.total).then(|| (self.work.call)(number))
        })?;
        if (call.1.len() + frames::MESSAGE_HEAD_BYTES) as i64 > self.window {
            self.held = Some(call);
            return None;
        }
        Some(call)
    }

    /// How long each request took, and how many were broken off.
    async fn run(mut self) -> Result<(Vec<Duration>, usize)> {
        loop {
            while let Some((path, message)) = self.next() {
                let stream = self.next_stream;
                frames::request(&mut self.write, stream, path, &self.authority, &message);
                self.window -= (message.len() + frames::MESSAGE_HEAD_BYTES) as i64;
                self.waiting.insert(stream, Waiting { begun: Instant::now(), answered: false });
                self.next_stream += 2;
                self.idle -= 1;
            }
            if self.waiting.is_empty() && self.held.is_none() {
                return Ok((self.latencies, self.reset));
            }
            if !self.write.is_empty() {
                self.socket.write_all(&self.write).await?;
                self.write.clear();
            }
            let more = tokio::time::timeout(PATIENCE, self.socket.read_buf(&mut self.read)).await;
            if more.context("no answer")?? == 0 {
                bail!("the server closed the connection");
            }
            self.take()?;
        }
    }

    /// Takes the frames that have come.
    fn take(&mut self) -> Result<()> {
        let bytes = std::mem::take(&mut self.read);
        let mut rest = &bytes[..];
        while let Some((frame, after)) = Frame::read(rest)? {
            self.frame(&frame)?;
            rest = after;
        }
        let left = rest.len();
        let mut bytes = bytes;
        bytes.drain(..bytes.len() - left);
        bytes.reserve(READ_BYTES);
        self.read = bytes;
        if self.received > frames::ROOM_BYTES / 2 {
            frames::window(&mut self.write, std::mem::take(&mut self.received));
        }
        Ok(())
    }

    fn frame(&mut self, frame: &Frame) -> Result<()> {
        match frame.kind {
            Kind::Data => {
                self.received += frame.body.len() as u32;
                if let Some(waiting) = self.waiting.get_mut(&frame.stream) {
                    waiting.answered |= !frame.body.is_empty();
                }
            }
            Kind::Settings if !frame.is_acknowledgement() => frames::settings_taken(&mut self.write),
            Kind::Ping if !frame.is_acknowledgement() => frames::pong(&mut self.write, frame.body),
            Kind::Window if frame.stream == 0 => self.window += i64::from(frame.number()?),
            Kind::Reset => {
                // One that has ended already may be reset, too: that says nothing.
                if self.waiting.remove(&frame.stream).is_some() {
                    self.reset += 1;
                    self.idle += 1;
                }
                return Ok(());
            }
            Kind::GoAway => bail!("the server ends the connection"),
            _ => {}
        }
        if frame.ends_stream() {
            let Some(ended) = self.waiting.remove(&frame.stream) else { return Ok(()) };
            if !ended.answered {
                bail!("a request was refused");
            }
            self.latencies.push(ended.begun.elapsed());
            self.idle += 1;
        }
        Ok(())
    }
}
