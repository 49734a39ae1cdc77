//! Overload: more clients than anybody planned for, and watchers that do not read.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use keelson_proto::etcd::etcdserverpb as pb;
use pb::watch_request::RequestUnion;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::{Ask, Victims};
use crate::etcd::{self, Client};

/// Clients that write and read as fast as they are answered.
const CLIENTS: usize = 1000;
/// Watchers that ask for everything and read nothing.
const WATCHERS: usize = 200;
/// Keys that they write to.
const KEYS: usize = 50;
/// Size of what they write.
const VALUE_BYTES: usize = 1024;

pub(super) fn overload(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let lasts = Duration::from_millis(rng.random_range(2000..5000));
    (victims.ask)(Ask::Flood(lasts))?;
    Ok(format!("{CLIENTS} clients and {WATCHERS} watchers that do not read, for {:.1} s", lasts.as_secs_f64()))
}

/// Floods the members for a while. What comes of its requests is nobody's concern.
pub async fn flood(clients: &[Client], lasts: Duration) {
    let value: Arc<str> = "x".repeat(VALUE_BYTES).into();
    let mut running = JoinSet::new();
    for i in 0..CLIENTS {
        let (client, value) = (clients[i % clients.len()].clone(), value.clone());
        running.spawn(async move {
            let key = format!("flood/{}", i % KEYS);
            loop {
                // A refusal is an answer, too.
                let _ = client.put(&key, value.to_string(), 0).await;
                let _ = client.range(etcd::read(&key)).await;
            }
        });
    }
    for i in 0..WATCHERS {
        let client = clients[i % clients.len()].clone();
        running.spawn(async move {
            let _silent = watch(&client).await;
            std::future::pending::<()>().await;
        });
    }
    tokio::time::sleep(lasts).await;
    running.shutdown().await;
}

/// A watch whose answers nobody reads.
async fn watch(client: &Client) -> Option<tonic::Streaming<pb::WatchResponse>> {
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    let create = pb::WatchCreateRequest {
        key: etcd::bytes("flood/"),
        range_end: etcd::prefix_end("flood/"),
        ..Default::default()
    };
    let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    requests.send(request).await.ok()?;
    let answer = client.watches().watch(ReceiverStream::new(stream)).await.ok()?;
    // The request stream stays open as long as the watch.
    tokio::spawn(async move { requests.closed().await });
    Some(answer.into_inner())
}
