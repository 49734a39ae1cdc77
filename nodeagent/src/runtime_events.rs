//! What the runtime tells by itself: containers that started or ended. CRI's own stream where the runtime has it,
//! otherwise containerd's events; where there is neither, the regular relist must do.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keelson_proto::containerd_events::{SubscribeRequest, TaskEvent};
use keelson_proto::cri::GetEventsRequest;
use prost::Message;

use crate::agent::Agent;

/// Pause before the stream is opened again.
const RETRY: Duration = Duration::from_secs(1);
/// When a container is looked at after an event of it: after the first pause, then the second, and so on.
const ECHOES: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(150), Duration::from_secs(1)];
/// The containers of CRI in containerd, when one ends or runs out of memory.
const FILTER: &str = r#"namespace=="k8s.io",topic~="^/tasks/(exit|oom)$""#;

/// Follows the runtime's events for ever.
pub async fn follow(agent: Arc<Agent>) {
    loop {
        match cri(&agent).await {
            Err(status) if status.code() == tonic::Code::Unimplemented => {
                if let Err(status) = containerd(&agent).await {
                    tracing::debug!(error = status.message(), "the runtime has no stream of events");
                }
            }
            Err(status) => tracing::debug!(error = status.message(), "the runtime's events ended"),
            Ok(()) => {}
        }
        agent.evented.store(false, Ordering::Relaxed);
        // What happened meanwhile was not told.
        agent.relist.notify_one();
        tokio::time::sleep(RETRY).await;
    }
}

async fn cri(agent: &Agent) -> Result<(), tonic::Status> {
    let mut events = agent.runtime.pods.clone().get_container_events(GetEventsRequest {}).await?.into_inner();
    agent.evented.store(true, Ordering::Relaxed);
    while let Some(event) = events.message().await? {
        let uid = event.pod_sandbox_status.and_then(|s| s.metadata).map(|m| m.uid);
        match uid.filter(|uid| !uid.is_empty()) {
            Some(uid) => agent.pods.wake(&uid),
            None => agent.changed(&event.container_id),
        }
    }
    Ok(())
}

async fn containerd(agent: &Arc<Agent>) -> Result<(), tonic::Status> {
    let ask = SubscribeRequest { filters: vec![FILTER.into()] };
    let mut events = agent.runtime.events.clone().subscribe(ask).await?.into_inner();
    agent.evented.store(true, Ordering::Relaxed);
    while let Some(envelope) = events.message().await? {
        let packed = envelope.event.unwrap_or_default();
        match TaskEvent::decode(packed.value.as_slice()) {
            Ok(event) => echo(agent, event.container_id),
            Err(error) => tracing::debug!(%error, topic = envelope.topic, "an event that is not understood"),
        }
    }
    Ok(())
}

/// The runtime's own bookkeeping hears of an event at the same time as we do, so what it says of the container is asked
/// for again a little later.
fn echo(agent: &Arc<Agent>, id: String) {
    let agent = agent.clone();
    tokio::spawn(async move {
        for pause in ECHOES {
            tokio::time::sleep(pause).await;
            agent.changed(&id);
        }
    });
}
