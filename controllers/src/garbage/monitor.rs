//! Follows one kind's metadata for the garbage collector.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, Status};
use keelson_client::Error;
use keelson_client::discovery::{ApiResource, METADATA_LIST, METADATA_ONLY, PartialObject};
use keelson_client::lean::without_managed_fields;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Collector;

/// Pause after a failure or the end of a watch.
const RETRY: Duration = Duration::from_millis(500);
/// Objects of one page.
const PAGE_OBJECTS: usize = 1000;

#[derive(Deserialize)]
struct Page {
    metadata: ListMeta,
    items: Option<Vec<PartialObject>>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Follows `resource` until `stop`; `first` is told when the first list is in.
pub async fn run(
    collector: Arc<Collector>,
    resource: Arc<ApiResource>,
    first: oneshot::Sender<()>,
    stop: CancellationToken,
) {
    let mut monitor = Monitor { collector, resource, first: Some(first) };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            result = monitor.follow() => if let Err(error) = result {
                debug!(resource = monitor.resource.qualified(), %error, "cannot list or watch; trying again");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

struct Monitor {
    collector: Arc<Collector>,
    resource: Arc<ApiResource>,
    first: Option<oneshot::Sender<()>>,
}

impl Monitor {
    async fn follow(&mut self) -> Result<(), Error> {
        let mut version = self.list().await?;
        if let Some(first) = self.first.take() {
            let _ = first.send(());
        }
        loop {
            let path =
                format!("{}?watch=true&allowWatchBookmarks=true&resourceVersion={version}", self.resource.path("", ""));
            let events = self.collector.client.lines(&path, METADATA_ONLY).await?;
            futures::pin_mut!(events);
            while let Some(line) = events.next().await {
                let line = line?;
                let event: Event<'_> = serde_json::from_str(&line)?;
                if event.kind == "ERROR" {
                    let status: Status = serde_json::from_str(event.object.get())?;
                    return Err(Error::Status(Box::new(status)));
                }
                let object: PartialObject = serde_json::from_str(&without_managed_fields(event.object.get()))?;
                version = object.metadata.resource_version.clone().unwrap_or(version);
                let uid = object.metadata.uid.clone().unwrap_or_default();
                match event.kind {
                    "ADDED" | "MODIFIED" => self.collector.upsert(&self.resource, &object),
                    "DELETED" => self.collector.gone(&uid)?,
                    _ => {}
                }
            }
            tokio::time::sleep(RETRY / 10).await;
        }
    }

    async fn list(&self) -> Result<String, Error> {
        let (mut fresh, mut token) = (HashSet::<String>::new(), String::new());
        loop {
            let path = format!("{}?limit={PAGE_OBJECTS}&continue={token}", self.resource.path("", ""));
            let page: Page = self.collector.client.read(&path, METADATA_LIST).await?;
            for object in page.items.unwrap_or_default() {
                fresh.extend(object.metadata.uid.clone());
                self.collector.upsert(&self.resource, &object);
            }
            token = page.metadata.continue_.unwrap_or_default();
            if token.is_empty() {
                for uid in self.collector.known(&self.resource).iter().filter(|uid| !fresh.contains(*uid)) {
                    self.collector.gone(uid)?;
                }
                return Ok(page.metadata.resource_version.unwrap_or_default());
            }
        }
    }
}
