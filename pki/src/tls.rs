//! TLS configurations: all of TLS 1.2 and 1.3 over aws-lc-rs, named explicitly.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo, X509Certificate};

use crate::{Error, Issued};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| Error::Malformed(format!("not a PEM certificate: {e}")))?;
    if chain.is_empty() { Err(Error::Malformed("no certificate in the PEM".into())) } else { Ok(chain) }
}

/// Whether a text holds certificates.
pub fn is_bundle(pem: &str) -> bool {
    certificates(pem).is_ok_and(|found| !found.is_empty())
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::Malformed("not a PEM private key".into()))
}

fn roots(ca: &str) -> Result<Arc<RootCertStore>, Error> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(ca)? {
        store.add(certificate)?;
    }
    Ok(store.into())
}

fn certified(issued: &Issued) -> Result<CertifiedKey, Error> {
    let key = provider().key_provider.load_private_key(private_key(&issued.key)?)?;
    Ok(CertifiedKey::new(certificates(&issued.certificate)?, key))
}

/// A serving certificate that can be replaced while connections go on.
#[derive(Debug)]
pub struct CertificateSlot(ArcSwap<CertifiedKey>);

impl CertificateSlot {
    /// A slot that holds `issued`.
    pub fn new(issued: &Issued) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self(ArcSwap::from_pointee(certified(issued)?))))
    }

    /// Replaces the certificate for connections from now on.
    pub fn replace(&self, issued: &Issued) -> Result<(), Error> {
        self.0.store(Arc::new(certified(issued)?));
        Ok(())
    }
}

impl ResolvesServerCert for CertificateSlot {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// How a server secures connections; it can be replaced while connections go on.
#[derive(Debug)]
pub struct ServerSlot(ArcSwap<ServerConfig>);

impl ServerSlot {
    /// A slot that holds `config`.
    pub fn new(config: Arc<ServerConfig>) -> Arc<Self> {
        Arc::new(Self(ArcSwap::new(config)))
    }

    /// What new connections get.
    pub fn load(&self) -> Arc<ServerConfig> {
        self.0.load_full()
    }

    /// Replaces it for connections from now on.
    pub fn replace(&self, config: Arc<ServerConfig>) {
        self.0.store(config);
    }
}

/// For the API server: clients may present a certificate of `client_ca`; without one they are anonymous or bring a token.
pub fn server_config(slot: Arc<CertificateSlot>, client_ca: &str) -> Result<Arc<ServerConfig>, Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(client_ca)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| Error::Malformed(e.to_string()))?;
    serve(verifier, slot, &[b"h2", b"http/1.1"])
}

/// For clients that must present a certificate of `client_ca`.
pub fn mutual_server_config(slot: Arc<CertificateSlot>, client_ca: &str) -> Result<Arc<ServerConfig>, Error> {
    serve(required(client_ca)?, slot, &[b"h2", b"http/1.1"])
}

fn required(ca: &str) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider());
    verifier.build().map_err(|e| Error::Malformed(e.to_string()))
}

/// For traffic between members: only certificates of the peer CA, on both sides.
pub fn peer_server_config(issued: &Issued, peer_ca: &str) -> Result<Arc<ServerConfig>, Error> {
    serve(required(peer_ca)?, CertificateSlot::new(issued)?, &[b"h2"])
}

fn serve(
    verifier: Arc<dyn ClientCertVerifier>,
    slot: Arc<CertificateSlot>,
    protocols: &[&[u8]],
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(slot);
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// How a client proves who it is on the TLS level.
pub enum Identity<'a> {
    /// With a certificate.
    Certificate(&'a Issued),
    /// Not at all (it may send a token).
    None,
}

/// For clients of a server whose certificate `ca` signed. No ALPN is set: the caller chooses.
pub fn client_config(ca: &str, identity: Identity<'_>) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca)?);
    Ok(match identity {
        Identity::Certificate(issued) => {
            builder.with_client_auth_cert(certificates(&issued.certificate)?, private_key(&issued.key)?)?
        }
        Identity::None => builder.with_no_client_auth(),
    })
}

/// For members that call each other.
pub fn peer_client_config(issued: &Issued, peer_ca: &str) -> Result<Arc<ClientConfig>, Error> {
    let mut config = client_config(peer_ca, Identity::Certificate(issued))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// SHA-256 of a certificate as lower-case hex digits.
pub fn fingerprint_of(der: &CertificateDer<'_>) -> String {
    Sha256::digest(der).iter().map(|b| format!("{b:02x}")).collect()
}

/// Why a private key (PEM) is not that of the first of the certificates, as Go says it; `None`: it is, or one of them
/// cannot be read.
pub fn key_problem(certificates: &str, key: &str) -> Option<&'static str> {
    let certificate = CertificateDer::pem_slice_iter(certificates.as_bytes()).flatten().next()?;
    let (_, certificate) = X509Certificate::from_der(&certificate).ok()?;
    let key = provider().key_provider.load_private_key(private_key(key).ok()?).ok()?;
    let own = key.public_key()?;
    let (_, own) = SubjectPublicKeyInfo::from_der(&own).ok()?;
    let named = certificate.public_key();
    if own.algorithm.algorithm != named.algorithm.algorithm {
        return Some("tls: private key type does not match public key type");
    }
    (own.raw != named.raw).then_some("tls: private key does not match public key")
}

/// `sha256:<hex>` of a certificate's public key (SubjectPublicKeyInfo), as kubeadm's `--discovery-token-ca-cert-hash`.
pub fn public_key_hash(certificate: &str) -> Result<String, Error> {
    hash_of(&certificates(certificate)?[0])
}

fn hash_of(der: &CertificateDer<'_>) -> Result<String, Error> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| Error::Malformed(e.to_string()))?;
    let digest = Sha256::digest(certificate.public_key().raw);
    Ok(format!("sha256:{}", digest.iter().map(|b| format!("{b:02x}")).collect::<String>()))
}

/// Common name and organisations of a certificate that TLS has verified.
pub fn subject_of(der: &CertificateDer<'_>) -> Result<(String, Vec<String>), Error> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| Error::Malformed(e.to_string()))?;
    let text = |a: &x509_parser::prelude::AttributeTypeAndValue<'_>| a.as_str().unwrap_or_default().to_owned();
    let name = certificate.subject().iter_common_name().next().map(text).unwrap_or_default();
    Ok((name, certificate.subject().iter_organization().map(text).collect()))
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whose it is.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// From when it is good, seconds since 1970.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
}

/// The common name of the first certificate of a PEM text.
pub(crate) fn name_of(pem: &str) -> Result<String, Error> {
    subject_of(&certificates(pem)?[0]).map(|(name, _)| name)
}

/// Whether one of the certificates of a PEM text has a key with this hash ([`public_key_hash`]).
pub fn has_key_hash(pem: &str, hash: &str) -> bool {
    let all = certificates(pem).unwrap_or_default();
    all.iter().any(|der| hash_of(der).is_ok_and(|known| known.eq_ignore_ascii_case(hash)))
}

/// Reads the first certificate of a PEM text.
pub fn facts_of(pem: &str) -> Result<Facts, Error> {
    let der = &certificates(pem)?[0];
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| Error::Malformed(e.to_string()))?;
    Ok(Facts {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// The uid in a certificate's subject; empty if it has none, an error if it has several.
pub fn uid_of(der: &CertificateDer<'_>) -> Result<String, Error> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| Error::Malformed(e.to_string()))?;
    let oid = x509_parser::oid_registry::Oid::from(&crate::UID_OID)
        .map_err(|_| Error::Malformed("the uid attribute's number".into()))?;
    let mut found = certificate.subject().iter_by_oid(&oid);
    let uid = found.next().map(|a| a.as_str().unwrap_or_default().to_owned()).unwrap_or_default();
    match found.next() {
        Some(_) => Err(Error::Malformed("expected 1 UID, but found multiple in the subject".into())),
        None => Ok(uid),
    }
}

/// Accepts a server only if the public key of `ca` hashes to the pin and `ca` signed the server's certificate.
#[derive(Debug)]
struct Pinned {
    hash: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|c| hash_of(c).is_ok_and(|h| h == self.hash));
        let Some(ca) = pinned else {
            return Err(rustls::Error::General(format!(
                "no certificate of the server's chain has the key hash {}",
                self.hash
            )));
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// For the first contact of a join: trusts the CA whose key hash the administrator gave. The server must send its CA in
/// the chain, as [`CertificateSlot`]s do whose certificate was made with the CA appended.
pub fn client_config_pinned(ca_hash: &str) -> Result<ClientConfig, Error> {
    let digits = ca_hash.strip_prefix("sha256:").unwrap_or_default();
    if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::Malformed(format!("{ca_hash:?} is not a CA hash: it looks like sha256:<64 hex digits>")));
    }
    let verifier = Pinned { hash: ca_hash.to_ascii_lowercase(), provider: provider() };
    Ok(ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Accepts any server. The signatures of the handshake are still checked, so the other side has the key it shows.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// For pods' own TLS (probes, hooks, the API's proxy): their certificates are signed by nobody the cluster knows, and
/// the question is whether they answer, not who they are. And for people who say `--insecure-skip-tls-verify`. Never for
/// traffic between parts of the cluster.
pub fn client_config_unverified(identity: Identity<'_>) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider())));
    Ok(match identity {
        Identity::Certificate(issued) => {
            builder.with_client_auth_cert(certificates(&issued.certificate)?, private_key(&issued.key)?)?
        }
        Identity::None => builder.with_no_client_auth(),
    })
}

/// Checks certificates of clients against one authority (or several), after TLS accepted them for any.
#[derive(Debug)]
pub struct ClientVerifier(Arc<dyn rustls::server::danger::ClientCertVerifier>);

impl ClientVerifier {
    /// For certificates that `ca` (PEM) signed.
    pub fn new(ca: &str) -> Result<Self, Error> {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca)?, provider()).build();
        verifier.map(Self).map_err(|e| Error::Malformed(e.to_string()))
    }

    /// Whether a chain is good now.
    pub fn accepts(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((own, others)) = chain.split_first() else { return false };
        self.0.verify_client_cert(own, others, UnixTime::now()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;
    use std::io::{Read, Write};

    #[test]
    fn a_key_is_held_against_its_certificate() {
        let ca = Authority::create("ca").unwrap();
        let [one, other] = ["one", "other"].map(|name| ca.issue_client(name, &[]).unwrap());
        let (rsa, _) = crate::pod_key("RSA3072").unwrap();
        for (key, expected) in [
            (&one.key, None),
            (&other.key, Some("tls: private key does not match public key")),
            (&rsa, Some("tls: private key type does not match public key type")),
            (&"none".to_owned(), None),
        ] {
            assert_eq!(key_problem(&one.certificate, key), expected);
        }
        assert_eq!(key_problem("none", &one.key), None);
    }

    /// Those who know only one of the CAs go on, whichever it is, as long as both are trusted.
    #[test]
    fn nobody_notices_a_new_authority() {
        let ca = Authority::create("ca").unwrap();
        let (old, old_hash) = (ca.certificate(), public_key_hash(&ca.certificate()).unwrap());
        let admin = ca.issue_client("admin", &[]).unwrap();
        ca.replace(&ca.successor().unwrap(), false).unwrap();
        let mut issued = ca.issue_server("api", &["localhost".into()]).unwrap();
        issued.certificate += &ca.trusted();
        let server = server_config(CertificateSlot::new(&issued).unwrap(), &ca.trusted()).unwrap();
        let fresh = ca.issue_client("admin", &[]).unwrap();
        let hash = public_key_hash(&ca.certificate()).unwrap();
        for (roots, identity) in [(&old, &admin), (&ca.certificate(), &admin), (&old, &fresh), (&ca.trusted(), &fresh)]
        {
            handshake(client_config(roots, Identity::Certificate(identity)).unwrap(), server.clone()).unwrap();
        }
        for hash in [&old_hash, &hash] {
            handshake(client_config_pinned(hash).unwrap(), server.clone()).unwrap();
        }
        // An agent that still knows only the former CA is called with a new certificate.
        let agent = ca.issue_server("agent", &["localhost".into()]).unwrap();
        let agent = server_config(CertificateSlot::new(&agent).unwrap(), &old).unwrap();
        handshake(client_config(&ca.trusted(), Identity::Certificate(&fresh)).unwrap(), agent).unwrap();
        assert!(has_key_hash(&ca.trusted(), &old_hash) && !has_key_hash(&ca.certificate(), &old_hash));
    }

    /// Shakes hands in memory; returns the client's error.
    fn handshake(client: ClientConfig, server: Arc<ServerConfig>) -> Result<(), rustls::Error> {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(client), name)?;
        let mut server = rustls::ServerConnection::new(server)?;
        for _ in 0..10 {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            server.read_tls(&mut &bytes[..]).unwrap();
            server.process_new_packets()?;
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets()?;
        }
        client.writer().write_all(b"x").unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut &bytes[..]).unwrap();
        server.process_new_packets()?;
        server.reader().read_exact(&mut [0]).map_err(|e| rustls::Error::General(e.to_string()))
    }

    #[test]
    fn who_trusts_whom() {
        let (ca, other) = (Authority::create("ca").unwrap(), Authority::create("other").unwrap());
        let mut issued = ca.issue_server("api", &["localhost".into()]).unwrap();
        issued.certificate += &ca.certificate();
        let server = |peer: bool| match peer {
            true => peer_server_config(&issued, &ca.certificate()).unwrap(),
            false => server_config(CertificateSlot::new(&issued).unwrap(), &ca.certificate()).unwrap(),
        };
        let admin = ca.issue_client("admin", &["system:masters"]).unwrap();
        let stranger = other.issue_client("admin", &["system:masters"]).unwrap();
        let with = |issued| client_config(&ca.certificate(), Identity::Certificate(issued)).unwrap();
        let hash = public_key_hash(&ca.certificate()).unwrap();
        let wrong = public_key_hash(&other.certificate()).unwrap();
        assert!(handshake(with(&admin), server(false)).is_ok());
        assert!(handshake(client_config(&ca.certificate(), Identity::None).unwrap(), server(false)).is_ok());
        assert!(handshake(client_config(&other.certificate(), Identity::None).unwrap(), server(false)).is_err());
        assert!(handshake(with(&stranger), server(false)).is_err());
        assert!(handshake(client_config_pinned(&hash).unwrap(), server(false)).is_ok());
        assert!(handshake(client_config_pinned(&wrong).unwrap(), server(false)).is_err());
        assert!(handshake(with(&admin), server(true)).is_ok());
        assert!(handshake(client_config(&ca.certificate(), Identity::None).unwrap(), server(true)).is_err());
        assert!(client_config_pinned("sha256:12").is_err());
    }
}
