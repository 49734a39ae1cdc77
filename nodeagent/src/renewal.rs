//! The agent's certificates are replaced long before they end, and when the cluster's CA changes; connections go on.
//!
//! Invariant: a new CA is trusted only because a server that the present CAs vouch for named it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use keelson_pki::{CertificateSlot, Identity, Issued, ServerSlot, client_config, facts_of, server_config};
use parking_lot::Mutex;

use crate::join::{self, Credentials, JoinError};

/// A certificate is replaced when so many hundredths of its life are over.
const RENEWAL_PERCENT: i64 = 60;
/// It is looked at so many times in a life, within these bounds.
const LOOKS: u32 = 20;
const LONGEST: Duration = Duration::from_secs(3600);
const SHORTEST: Duration = Duration::from_secs(1);

/// Is given how to call the servers from now on.
pub type Renewed = Arc<dyn Fn(rustls::ClientConfig) + Send + Sync>;

/// Whose certificates are replaced.
pub struct Renewal {
    /// The node's name.
    pub node: String,
    /// Names and addresses of its own server.
    pub names: Vec<String>,
    /// Where certificates are kept.
    pub data_dir: PathBuf,
    /// Who is told.
    pub renewed: Option<Renewed>,
    credentials: Mutex<Credentials>,
    serving: Mutex<Issued>,
    slot: Arc<CertificateSlot>,
    server: Arc<ServerSlot>,
}

impl Renewal {
    /// Begins with the certificates of the start.
    pub fn new(
        node: String,
        names: Vec<String>,
        data_dir: PathBuf,
        credentials: Credentials,
        serving: Issued,
        renewed: Option<Renewed>,
    ) -> Result<Self, keelson_pki::Error> {
        let slot = CertificateSlot::new(&serving)?;
        let server = ServerSlot::new(server_config(slot.clone(), &credentials.ca)?);
        let (credentials, serving) = (Mutex::new(credentials), Mutex::new(serving));
        Ok(Self { node, names, data_dir, renewed, credentials, serving, slot, server })
    }

    /// What secures the agent's own server.
    pub fn server(&self) -> Arc<ServerSlot> {
        self.server.clone()
    }

    /// Replaces certificates in time, for ever.
    pub async fn run(&self) {
        loop {
            tokio::time::sleep(self.pause()).await;
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "the agent's certificates cannot be replaced yet; trying again");
            }
        }
    }

    fn pause(&self) -> Duration {
        let shortest = [&self.credentials.lock().client.certificate, &self.serving.lock().certificate]
            .iter()
            .filter_map(|pem| facts_of(pem).ok())
            .map(|facts| facts.not_after - facts.not_before)
            .min();
        let life = Duration::from_secs(shortest.and_then(|life| u64::try_from(life).ok()).unwrap_or(0));
        (life / LOOKS).clamp(SHORTEST, LONGEST)
    }

    /// Replaces what has to be.
    async fn look(&self) -> Result<(), JoinError> {
        let credentials = self.credentials.lock().clone();
        let ca = join::current_ca(&credentials).await?;
        let changed = ca != credentials.ca;
        if changed {
            join::store_ca(&self.data_dir, &ca)?;
            tracing::info!("the cluster's CAs have changed");
        }
        let mut credentials = Credentials { ca, ..credentials };
        let renews = changed || is_due(&credentials.client, now());
        if renews {
            credentials.client = join::renew_client(&credentials, &self.node, &self.data_dir).await?;
            tracing::info!("the agent has a new certificate for the servers");
        }
        if renews {
            let tls = client_config(&credentials.ca, Identity::Certificate(&credentials.client))?;
            if let Some(renewed) = &self.renewed {
                renewed(tls);
            }
            *self.credentials.lock() = credentials.clone();
        }
        let serving_is_due = is_due(&self.serving.lock(), now());
        if changed || serving_is_due {
            let issued = join::renew_serving(&credentials, &self.node, &self.names, &self.data_dir).await?;
            self.slot.replace(&issued)?;
            self.server.replace(server_config(self.slot.clone(), &credentials.ca)?);
            *self.serving.lock() = issued;
            tracing::info!("the agent's server has a new certificate");
        }
        Ok(())
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Whether a certificate has lived for its part, or cannot be read.
fn is_due(issued: &Issued, now: i64) -> bool {
    facts_of(&issued.certificate)
        .map_or(true, |facts| (now - facts.not_before) * 100 >= (facts.not_after - facts.not_before) * RENEWAL_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_due_before_they_end() {
        let ca = keelson_pki::Authority::create("ca").unwrap();
        let issued = ca.issue_client("system:node:a", &[]).unwrap();
        let facts = facts_of(&issued.certificate).unwrap();
        let life = facts.not_after - facts.not_before;
        for (percent, due) in [(0, false), (59, false), (61, true), (110, true)] {
            assert_eq!(is_due(&issued, facts.not_before + life * percent / 100), due, "{percent}");
        }
        assert!(is_due(&Issued { certificate: "x".into(), key: String::new() }, 0));
    }
}
