//! What drivers of claimed devices told the cluster of this node goes when they are gone: nobody must be given a device that
//! nobody can make ready. A driver publishes its slices itself, and again when it is back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::resource::v1::ResourceSlice;
use keelson_client::{Error, ListParams};
use serde_json::json;

use super::Claims;
use crate::agent::Agent;

/// A driver that is gone this long has left: shorter is a new start of it, or of the agent.
const LEFT: Duration = Duration::from_secs(30);
/// How often it is looked whether one has.
const LOOK: Duration = Duration::from_secs(10);

impl Claims {
    /// Drivers that left: they are not asked for again.
    fn left(&self, now: Instant) -> Vec<String> {
        let mut gone = self.gone.lock();
        let left: Vec<String> = gone
            .iter()
            .filter(|(_, since)| now.duration_since(**since) >= LEFT)
            .map(|(name, _)| name.clone())
            .collect();
        gone.retain(|name, _| !left.contains(name));
        left
    }

    fn is_here(&self, driver: &str) -> bool {
        self.drivers.lock().contains_key(driver) || self.gone.lock().contains_key(driver)
    }
}

/// Removes slices of drivers that left, for ever.
pub(crate) async fn run(agent: Arc<Agent>) {
    // Those whose drivers left while the agent was away are found once.
    let mut due = true;
    tokio::time::sleep(LEFT).await;
    loop {
        due |= !agent.claims.left(Instant::now()).is_empty();
        if due {
            due = match remove(&agent).await {
                Ok(()) => false,
                Err(error) => {
                    tracing::warn!(%error, "slices of drivers that left may still be there");
                    true
                }
            };
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn remove(agent: &Agent) -> Result<(), Error> {
    let api = agent.config.client.cluster::<ResourceSlice>();
    let mine = format!("spec.nodeName={}", agent.config.node_name);
    let all = api.list(&ListParams { field_selector: Some(mine), ..ListParams::default() }).await?.items;
    for slice in all.into_iter().filter(|slice| !agent.claims.is_here(&slice.spec.driver)) {
        let Some(name) = slice.metadata.name else { continue };
        match api.delete(&name, &json!({})).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => tracing::info!(slice = name, driver = slice.spec.driver, "the slice of a driver that left is removed"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_driver_may_be_away_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::new(dir.path());
        let versions = ["v1.DRAPlugin".to_owned()];
        claims.welcome("d", dir.path(), &versions).unwrap();
        assert!(claims.is_here("d") && !claims.is_here("other"));
        claims.dismiss("d");
        let now = Instant::now();
        assert!(claims.is_here("d") && claims.left(now).is_empty());
        assert_eq!(claims.left(now + LEFT), ["d"]);
        assert!(!claims.is_here("d"));
        claims.dismiss("d");
        claims.welcome("d", dir.path(), &versions).unwrap();
        assert!(claims.left(now + 2 * LEFT).is_empty() && claims.is_here("d"));
    }
}
