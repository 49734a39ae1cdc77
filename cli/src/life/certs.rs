//! A server's certificates: made in memory, replaced long before they end and whenever the CA changes, without a
//! connection noticing. `keelson certs` lists them and replaces them now.
//!
//! Invariant: a CA that signs is trusted by every server before it signs, and stays trusted until it is retired.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use keelson_pki::{CertificateSlot, ClusterPki, Issued, ServerSlot};
use keelson_raft::{PEER_NAME, PeerTls};
use keelson_status::Certificate;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// The admin's name.
const ADMIN: &str = "admin";
/// A certificate is replaced when this part of its life is over.
const RENEWAL: f64 = 0.6;
/// It is looked at least so often, and again so soon after a failure.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
const SHORTEST_SLEEP: Duration = Duration::from_secs(1);

/// What a server is told to do with its certificates.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Order {
    /// Issue all anew.
    Renew,
    /// Trust the CA of these keys from now on; go on signing with the present one.
    Trust(Box<RawValue>),
    /// Sign with these keys from now on; those before stay trusted.
    Sign(Box<RawValue>),
    /// Sign with these keys, and trust no other CA any more.
    Retire(Box<RawValue>),
}

/// Where a server's certificates are used.
pub struct Keeper {
    pki: Arc<ClusterPki>,
    place: Place,
    api: Arc<CertificateSlot>,
    server: Arc<ServerSlot>,
    peer: PeerTls,
    issued: Mutex<[Issued; 2]>,
    /// Further CAs whose certificates clients may bring, PEM.
    client_authorities: Mutex<String>,
}

/// Who the server is, and where its files are.
pub struct Place {
    /// Its name.
    pub name: String,
    /// Names and addresses of its API.
    pub names: Vec<String>,
    /// Its API.
    pub url: String,
    /// Where the keys are.
    pub keys: PathBuf,
    /// The admin's kubeconfig.
    pub kubeconfig: PathBuf,
}

impl Keeper {
    /// Issues the first certificates.
    pub fn new(pki: Arc<ClusterPki>, place: Place, lifetime: Duration) -> Result<Arc<Self>> {
        for authority in [&pki.cluster, &pki.peer] {
            authority.set_lifetime(lifetime);
        }
        let [api, peer] = issue(&pki, &place)?;
        let slot = CertificateSlot::new(&api)?;
        let server = ServerSlot::new(keelson_pki::server_config(slot.clone(), &pki.cluster.trusted())?);
        let peer_tls = PeerTls {
            server: Arc::new(ArcSwap::new(keelson_pki::peer_server_config(&peer, &pki.peer.trusted())?)),
            client: Arc::new(ArcSwap::new(keelson_pki::peer_client_config(&peer, &pki.peer.trusted())?)),
            name: Some(PEER_NAME),
        };
        let keeper = Self {
            pki,
            place,
            api: slot,
            server,
            peer: peer_tls,
            issued: Mutex::new([api, peer]),
            client_authorities: Mutex::default(),
        };
        keeper.write_kubeconfig()?;
        Ok(Arc::new(keeper))
    }

    /// Lets clients in that have a certificate of one of these CAs as well.
    pub fn trust_clients(&self, authorities: String) -> Result<()> {
        *self.client_authorities.lock() = authorities;
        self.secure()
    }

    /// Whom the API trusts, from the next connection on.
    fn secure(&self) -> Result<()> {
        let authorities = self.pki.cluster.trusted().to_string() + &self.client_authorities.lock();
        self.server.replace(keelson_pki::server_config(self.api.clone(), &authorities)?);
        Ok(())
    }

    /// Where the admin's kubeconfig is.
    pub fn kubeconfig(&self) -> &std::path::Path {
        &self.place.kubeconfig
    }

    /// The API's certificate, for what else is served with it.
    pub fn slot(&self) -> Arc<CertificateSlot> {
        self.api.clone()
    }

    /// What secures the API.
    pub fn server(&self) -> Arc<ServerSlot> {
        self.server.clone()
    }

    /// What secures connections to other servers.
    pub fn peers(&self) -> PeerTls {
        self.peer.clone()
    }

    /// The cluster's keys.
    pub fn pki(&self) -> &Arc<ClusterPki> {
        &self.pki
    }

    /// Issues all certificates anew and uses them for connections from now on.
    pub fn renew(&self) -> Result<()> {
        let [api, peer] = issue(&self.pki, &self.place)?;
        self.api.replace(&api)?;
        self.secure()?;
        self.peer.server.store(keelson_pki::peer_server_config(&peer, &self.pki.peer.trusted())?);
        self.peer.client.store(keelson_pki::peer_client_config(&peer, &self.pki.peer.trusted())?);
        *self.issued.lock() = [api, peer];
        self.write_kubeconfig()
    }

    /// The admin's way in.
    fn write_kubeconfig(&self) -> Result<()> {
        let admin = self.pki.cluster.issue_user(ADMIN, &format!("{ADMIN}-uid"), &["system:masters"])?;
        let credential = keelson_pki::Credential::Certificate(&admin);
        let ca = self.pki.cluster.trusted();
        let text = keelson_pki::kubeconfig("keelson", &self.place.url, &ca, ADMIN, credential);
        crate::identity::write_private(&self.place.kubeconfig, text.as_bytes())
    }

    /// Does what it is told.
    pub async fn follow(self: &Arc<Self>, order: Order) -> Result<()> {
        let keeper = self.clone();
        tokio::task::spawn_blocking(move || keeper.obey(order)).await?
    }

    fn obey(&self, order: Order) -> Result<()> {
        let keys = |text: &RawValue| ClusterPki::from_bundle(text.get().as_bytes()).context("read the new keys");
        let (new, retire) = match &order {
            Order::Renew => return self.renew(),
            Order::Trust(text) => {
                // The same keys as now, with the new ones among those that are trusted.
                let (coming, present) = (keys(text)?, ClusterPki::from_bundle(&self.pki.to_bundle()?)?);
                coming.replace(&present, false)?;
                (coming, false)
            }
            Order::Sign(text) => (keys(text)?, false),
            Order::Retire(text) => (keys(text)?, true),
        };
        // On disk first: a server that stops here begins again with what the others expect of it.
        let saved = ClusterPki::from_bundle(&self.pki.to_bundle()?)?;
        saved.replace(&new, retire)?;
        saved.save(&self.place.keys)?;
        self.pki.replace(&new, retire)?;
        self.renew()?;
        info!(retire, "the cluster's CAs have changed; new certificates are in use");
        Ok(())
    }

    /// The certificates that are in use.
    pub fn list(&self) -> Vec<Certificate> {
        let [api, peer] = self.issued.lock().clone();
        let rows = [
            ("api", &*api.certificate, true),
            ("peer", &peer.certificate, true),
            ("ca", &self.pki.cluster.certificate(), false),
            ("peer-ca", &self.pki.peer.certificate(), false),
        ];
        let row = |(name, pem, renews): &(&str, &str, bool)| {
            let facts = keelson_pki::facts_of(pem).ok()?;
            Some(Certificate {
                name: (*name).to_owned(),
                subject: facts.subject,
                issuer: facts.issuer,
                not_before: facts.not_before,
                not_after: facts.not_after,
                renews: *renews,
            })
        };
        rows.iter().filter_map(row).collect()
    }

    /// Replaces certificates in time until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut retry = None;
        loop {
            let life = self.pki.cluster.lifetime();
            let sleep = retry.take().unwrap_or_else(|| life.mul_f64(RENEWAL)).clamp(SHORTEST_SLEEP, LONGEST_SLEEP);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(sleep) => {}
            }
            if !self.is_due() {
                continue;
            }
            let keeper = self.clone();
            match tokio::task::spawn_blocking(move || keeper.renew()).await {
                Ok(Ok(())) => info!("new certificates are in use"),
                Ok(Err(error)) => {
                    error!(error = format!("{error:#}"), "the certificates cannot be replaced; trying again");
                    retry = Some(SHORTEST_SLEEP);
                }
                Err(error) => error!(%error, "the certificates cannot be replaced"),
            }
        }
    }

    /// Whether a certificate has lived for its part.
    fn is_due(&self) -> bool {
        let (now, life) = (jiff::Timestamp::now().as_second(), self.pki.cluster.lifetime());
        let left = life.mul_f64(1.0 - RENEWAL).as_secs();
        self.list().iter().any(|certificate| {
            certificate.renews && certificate.not_after.saturating_sub(now) <= i64::try_from(left).unwrap_or(i64::MAX)
        })
    }
}

/// The API's certificate, with the CAs appended so that joins pinned to a CA's hash can check it, and the peers'.
fn issue(pki: &ClusterPki, place: &Place) -> Result<[Issued; 2]> {
    let mut api = pki.cluster.issue_server("keelson-apiserver", &place.names)?;
    api.certificate += &pki.cluster.trusted();
    let peer = pki.peer.issue_peer(&place.name, &[PEER_NAME.to_owned()])?;
    Ok([api, peer])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeper(dir: &std::path::Path) -> Arc<Keeper> {
        let place = Place {
            name: "a".into(),
            names: vec!["localhost".into()],
            url: "https://localhost:1".into(),
            keys: dir.join("pki"),
            kubeconfig: dir.join("admin.kubeconfig"),
        };
        Keeper::new(Arc::new(ClusterPki::create().unwrap()), place, Duration::from_secs(1000)).unwrap()
    }

    fn raw(pki: &ClusterPki) -> Box<RawValue> {
        RawValue::from_string(String::from_utf8(pki.to_bundle().unwrap()).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn the_authorities_follow_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = keeper(dir.path());
        assert!(!keeper.is_due());
        let old = keeper.pki.cluster.certificate();
        let next = keeper.pki.successor().unwrap();
        let new = next.cluster.certificate();
        let trusts = |pem: &str| keeper.pki.cluster.trusted().contains(pem.trim());
        keeper.follow(Order::Trust(raw(&next))).await.unwrap();
        assert_eq!(keeper.pki.cluster.certificate(), old, "nothing is signed with it yet");
        assert!(trusts(&old) && trusts(&new));
        keeper.follow(Order::Sign(raw(&next))).await.unwrap();
        assert_eq!(keeper.pki.cluster.certificate(), new);
        assert!(trusts(&old) && trusts(&new));
        let loaded = ClusterPki::load(&dir.path().join("pki")).unwrap().unwrap();
        assert_eq!(loaded.cluster.trusted(), keeper.pki.cluster.trusted());
        keeper.follow(Order::Retire(raw(&keeper.pki))).await.unwrap();
        assert!(!trusts(&old) && trusts(&new));
        keeper.follow(Order::Renew).await.unwrap();
        let names: Vec<_> = keeper.list().into_iter().map(|certificate| certificate.name).collect();
        assert_eq!(names, ["api", "peer", "ca", "peer-ca"]);
    }
}
