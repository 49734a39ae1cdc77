//! TLS for clients from certificate files, read again when they change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Where the certificates are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate and what is between it and its CA.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The CA of clients; with it every client must have a certificate.
    pub client_ca: Option<PathBuf>,
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {0}: {1}")]
    File(PathBuf, String),
    /// The certificates do not fit together.
    #[error("the certificates cannot be used: {0}")]
    Config(String),
}

/// The current TLS configuration, replaced when the files change.
pub struct TlsSlot {
    files: TlsFiles,
    config: ArcSwap<ServerConfig>,
}

impl TlsSlot {
    /// Reads the files.
    pub fn load(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let config = configure(&files)?;
        Ok(Arc::new(Self { files, config: ArcSwap::from_pointee(config) }))
    }

    /// What handshakes are made with from now on.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }

    /// Follows changes of the files until `stop`; unusable ones are reported and not used.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut seen = self.changed();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let now = self.changed();
            if now == seen {
                continue;
            }
            seen = now;
            match configure(&self.files) {
                Ok(config) => {
                    self.config.store(Arc::new(config));
                    tracing::info!(file = %self.files.certificate.display(), "the certificate was read again");
                }
                Err(error) => tracing::warn!(%error, "the old certificate stays in use"),
            }
        }
    }

    fn changed(&self) -> Vec<Option<SystemTime>> {
        let files = [Some(&self.files.certificate), Some(&self.files.key), self.files.client_ca.as_ref()];
        files.into_iter().flatten().map(|file| std::fs::metadata(file).and_then(|meta| meta.modified()).ok()).collect()
    }
}

fn certificates(file: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |error: rustls::pki_types::pem::Error| TlsError::File(file.clone(), error.to_string());
    let found: Vec<_> =
        CertificateDer::pem_file_iter(file).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if found.is_empty() { Err(TlsError::File(file.clone(), "there is no certificate in it".into())) } else { Ok(found) }
}

fn configure(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let config = |error: &dyn std::fmt::Display| TlsError::Config(error.to_string());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| config(&error))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| config(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                .build()
                .map_err(|error| config(&error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| TlsError::File(files.key.clone(), error.to_string()))?;
    let mut made = builder.with_single_cert(certificates(&files.certificate)?, key).map_err(|error| config(&error))?;
    made.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(made)
}

/// The common name in a client's certificate, if it showed one; beside each of its requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerName(pub Option<Arc<str>>);

impl PeerName {
    /// What the client of a connection showed.
    pub fn of<S>(socket: &tokio_rustls::server::TlsStream<S>) -> Self {
        let certificate = socket.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let subject = certificate.and_then(|certificate| keelson_pki::subject_of(certificate).ok());
        Self(subject.map(|(name, _)| name.into()))
    }
}
