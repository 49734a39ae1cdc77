//! The etcd port of `keelson server`: etcd's API on the server's own store, for tools that read it directly.
//!
//! Invariant: only certificates of the cluster's CA that are in the admins' group get in: who reads here reads every
//! Secret, and what is written here passes no admission.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use keelson_pki::{CertificateSlot, ClusterPki};
use keelson_raft::Replica;
use keelson_raft::etcd::tls::ClientTls;
use keelson_raft::etcd::{Front, Options, serve};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::identity::{DataDir, write_private};

/// Who may use the port.
const ADMINS: &str = "system:masters";

/// A port that is listened on, not yet served.
pub struct Port {
    listener: TcpListener,
    files: Files,
}

/// What a client needs.
struct Files {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

/// Listens, and writes the files that etcdctl takes.
pub async fn listen(address: SocketAddr, data: &DataDir, pki: &ClusterPki) -> Result<Port> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: stop what uses it, or choose another with --etcd-listen")
    })?;
    let files = Files {
        ca: data.join("etcd-ca.crt"),
        certificate: data.join("etcd-client.crt"),
        key: data.join("etcd-client.key"),
    };
    let admin = pki.cluster.issue_client("etcd-admin", &[ADMINS])?;
    write_private(&files.ca, pki.cluster.trusted().as_bytes())?;
    write_private(&files.certificate, admin.certificate.as_bytes())?;
    write_private(&files.key, admin.key.as_bytes())?;
    Ok(Port { listener, files })
}

impl Port {
    /// Serves until `stop`.
    pub fn serve(
        self,
        replica: &Replica,
        data: &DataDir,
        pki: &ClusterPki,
        slot: Arc<CertificateSlot>,
        stop: &CancellationToken,
    ) -> Result<()> {
        let config = keelson_pki::mutual_server_config(slot, &pki.cluster.trusted())?;
        let options = Options { spool_dir: data.join("spool"), ..Options::default() };
        let front = Front::new(Arc::new(replica.clone()), Arc::new(replica.clone()), options);
        let Files { ca, certificate, key } = &self.files;
        info!(
            address = %self.listener.local_addr()?, ca = %ca.display(), certificate = %certificate.display(),
            key = %key.display(), "serving etcd's API"
        );
        let tls = ClientTls::fixed(config, Some(ADMINS));
        tokio::spawn(serve::serve(serve::routes(&front), self.listener, Some(tls), stop.clone()));
        Ok(())
    }
}
