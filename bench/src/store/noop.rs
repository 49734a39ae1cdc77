//! A server that answers every request at once and does nothing: what the load client can do at most.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use keelson_proto::etcd::etcdserverpb as pb;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::frames::{self, Frame, Kind};
use super::{Options, Report, put_call, row};

/// Measures puts to nobody.
pub async fn run(report: &mut Report, options: &Options) -> Result<()> {
    for (clients, total) in [(1, 20_000), (64, 400_000), (256, 400_000), (1000, 400_000)] {
        let (found, address) = tokio::sync::oneshot::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = std::thread::spawn(move || serve(found, stopped));
        let address = address.await.context("the server did not start")?;
        let measured = super::lean::load(vec![address], clients, options.amount(total), put_call(256)).await?;
        row(report, format!("nobody: put 256 B, {clients} clients"), &measured, Duration::ZERO, 0);
        drop(stop);
        server.join().map_err(|_| anyhow::anyhow!("the server ended badly"))??;
    }
    Ok(())
}

/// Serves on one thread until told to stop.
fn serve(found: tokio::sync::oneshot::Sender<SocketAddr>, stopped: tokio::sync::oneshot::Receiver<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let _ = found.send(listener.local_addr()?);
        let accepting = async {
            loop {
                let (socket, _) = listener.accept().await?;
                tokio::spawn(connection(socket));
            }
        };
        tokio::select! {
            ended = accepting => ended,
            // Its end is the sign.
            _ = stopped => Ok(()),
        }
    })
}

async fn connection(mut socket: TcpStream) -> Result<()> {
    socket.set_nodelay(true)?;
    let header = pb::ResponseHeader { cluster_id: 1, member_id: 1, revision: 1 << 20, raft_term: 2 };
    let answer = pb::PutResponse { header: Some(header), prev_kv: None }.encode_to_vec();
    let (mut read, mut write, mut greeted, mut received) = (Vec::with_capacity(64 * 1024), Vec::new(), false, 0);
    frames::settings(&mut write);
    frames::window(&mut write, frames::ROOM_BYTES);
    loop {
        socket.write_all(&write).await?;
        write.clear();
        if socket.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
        let mut rest = &read[..];
        if !greeted {
            let Some(after) = rest.strip_prefix(frames::PREFACE) else { continue };
            (rest, greeted) = (after, true);
        }
        while let Some((frame, after)) = Frame::read(rest)? {
            match frame.kind {
                Kind::Data => received += frame.body.len() as u32,
                Kind::Settings if !frame.is_acknowledgement() => frames::settings_taken(&mut write),
                _ => {}
            }
            if frame.ends_stream() {
                frames::response(&mut write, frame.stream, &answer);
            }
            rest = after;
        }
        if received > frames::ROOM_BYTES / 2 {
            frames::window(&mut write, std::mem::take(&mut received));
        }
        let gone = read.len() - rest.len();
        read.drain(..gone);
        read.reserve(64 * 1024);
    }
}
