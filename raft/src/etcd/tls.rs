//! TLS from certificate files, read again when they change: towards clients, and between members.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::peer_tls::PeerTls;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Where the certificates are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate and what is between it and its CA.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The CA of whoever is at the other end.
    pub ca: Option<PathBuf>,
    /// Whether who connects must have a certificate of that CA.
    pub verify: bool,
    /// Members are connected to whoever they are.
    pub unverified: bool,
    /// What is spoken.
    pub versions: TlsVersions,
}

/// Versions of TLS, if not all that are safe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlsVersions {
    /// Nothing above 1.2.
    pub only_12: bool,
    /// Nothing below 1.3.
    pub only_13: bool,
}

impl TlsVersions {
    fn list(self) -> Vec<&'static SupportedProtocolVersion> {
        match (self.only_12, self.only_13) {
            (true, _) => vec![&TLS12],
            (_, true) => vec![&TLS13],
            _ => vec![&TLS13, &TLS12],
        }
    }
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
    config: Arc<ArcSwap<ServerConfig>>,
    /// For connecting to others with the same identity.
    client: Arc<ArcSwap<ClientConfig>>,
}

impl TlsSlot {
    /// Reads the files.
    pub fn load(files: TlsFiles) -> Result<Arc<Self>, TlsError> {
        let (server, client) = configure(&files)?;
        let (config, client) = (Arc::new(ArcSwap::from_pointee(server)), Arc::new(ArcSwap::from_pointee(client)));
        Ok(Arc::new(Self { files, config, client }))
    }

    /// What secures connections between members, which keeps following the files.
    pub fn peers(&self) -> PeerTls {
        PeerTls { server: self.config.clone(), client: self.client.clone(), name: None }
    }

    /// What secures connections of clients, which keeps following the files.
    pub fn clients(&self) -> ClientTls {
        ClientTls { config: self.config.clone(), group: None }
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
                Ok((server, client)) => {
                    self.config.store(Arc::new(server));
                    self.client.store(Arc::new(client));
                    tracing::info!(file = %self.files.certificate.display(), "the certificate was read again");
                }
                Err(error) => tracing::warn!(%error, "the old certificate stays in use"),
            }
        }
    }

    fn changed(&self) -> Vec<Option<SystemTime>> {
        let files = [Some(&self.files.certificate), Some(&self.files.key), self.files.ca.as_ref()];
        files.into_iter().flatten().map(|file| std::fs::metadata(file).and_then(|meta| meta.modified()).ok()).collect()
    }
}

/// What secures connections of clients.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ArcSwap<ServerConfig>>,
    /// The group (organization) that a client's certificate must name.
    group: Option<&'static str>,
}

impl ClientTls {
    /// One that never changes. With a group, `config` must demand certificates.
    pub fn fixed(config: Arc<ServerConfig>, group: Option<&'static str>) -> Self {
        Self { config: Arc::new(ArcSwap::new(config)), group }
    }

    /// Shakes hands; returns who the client is.
    pub async fn accept(&self, socket: TcpStream) -> io::Result<(TlsStream<TcpStream>, PeerName)> {
        let socket = TlsAcceptor::from(self.config.load_full()).accept(socket).await?;
        let certificate = socket.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let subject = certificate.and_then(|certificate| keelson_pki::subject_of(certificate).ok());
        if let Some(wanted) = self.group
            && !subject.as_ref().is_some_and(|(_, groups)| groups.iter().any(|group| group == wanted))
        {
            let name = subject.map(|(name, _)| name).unwrap_or_default();
            let why = format!("the certificate of {name:?} is not of the group {wanted}");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let name = PeerName(subject.map(|(name, _)| name.into()));
        Ok((socket, name))
    }
}

fn certificates(file: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |error: rustls::pki_types::pem::Error| TlsError::File(file.clone(), error.to_string());
    let found: Vec<_> =
        CertificateDer::pem_file_iter(file).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if found.is_empty() { Err(TlsError::File(file.clone(), "there is no certificate in it".into())) } else { Ok(found) }
}

fn roots(file: &PathBuf) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| TlsError::Config(error.to_string()))?;
    }
    Ok(roots)
}

fn configure(files: &TlsFiles) -> Result<(ServerConfig, ClientConfig), TlsError> {
    fn config(error: impl std::fmt::Display) -> TlsError {
        TlsError::Config(error.to_string())
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let roots = files.ca.as_ref().map(roots).transpose()?.unwrap_or_else(RootCertStore::empty);
    let versions = files.versions.list();
    let server = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&versions);
    let server = server.map_err(config)?;
    let server = if files.verify {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone().into(), provider.clone());
        server.with_client_cert_verifier(verifier.build().map_err(config)?)
    } else {
        server.with_no_client_auth()
    };
    let failed = |error: rustls::pki_types::pem::Error| TlsError::File(files.key.clone(), error.to_string());
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(failed)?;
    let chain = certificates(&files.certificate)?;
    let mut server = server.with_single_cert(chain.clone(), key.clone_key()).map_err(config)?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions).map_err(config)?;
    let mut client = if files.unverified {
        keelson_pki::client_config_unverified(keelson_pki::Identity::None).map_err(config)?
    } else {
        client.with_root_certificates(roots).with_client_auth_cert(chain, key).map_err(config)?
    };
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok((server, client))
}

/// The common name in a client's certificate, if it showed one; beside each of its requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerName(pub Option<Arc<str>>);
