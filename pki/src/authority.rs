//! A certificate authority: a key that signs certificates, and certificate signing requests.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, string::Ia5String,
};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509CertificationRequest};

use crate::{Error, subject};

/// Life of a CA certificate.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Life of a certificate that an authority issues on its own account.
const LEAF_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Certificates start this much earlier than now, for clocks that differ.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// A certificate chain and its key, as PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its private key (PKCS #8).
    pub key: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// A CA: its certificate (PEM) and key, and the CAs before or after it that are trusted too. It can be replaced while it
/// is in use: what is signed or trusted from then on follows.
pub struct Authority {
    state: ArcSwap<State>,
    leaf_seconds: AtomicU64,
    generation: AtomicU64,
}

/// A CA's keys at one time.
struct State {
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
    others: Others,
}

/// The other CAs of an authority, before and after it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Others {
    /// Certificates that are trusted as well.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trusted: Vec<String>,
    /// This CA's key, certified by the one before it: for those who know only that one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cross: Option<String>,
    /// Hashes of the keys of CAs that are no longer trusted: by them machines that joined long ago know the cluster.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<String>,
}

impl Authority {
    /// Makes a new CA called `name`.
    pub fn create(name: &str) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let certificate = ca_params(name)?.self_signed(&key)?.pem();
        Self::load(&certificate, &key.serialize_pem())
    }

    /// Reads a CA from its PEM certificate and key. Further certificates in the PEM are trusted as well.
    pub fn load(certificate: &str, key: &str) -> Result<Self, Error> {
        let mut all = split(certificate).into_iter();
        let own = all.next().ok_or_else(|| Error::Malformed("no certificate in the PEM".into()))?;
        Self::with_others(&own, key, Others { trusted: all.collect(), ..Others::default() })
    }

    /// Reads a CA with the others of it.
    pub fn with_others(certificate: &str, key: &str, others: Others) -> Result<Self, Error> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        let state = State { certificate: certificate.to_owned(), key: key.to_owned(), issuer, others };
        Ok(Self {
            state: ArcSwap::from_pointee(state),
            leaf_seconds: AtomicU64::new(LEAF_LIFETIME.as_secs()),
            generation: AtomicU64::new(0),
        })
    }

    /// The CA's certificate, PEM.
    pub fn certificate(&self) -> Arc<str> {
        self.state.load().certificate.as_str().into()
    }

    /// All certificates that are trusted, PEM, this CA's own first.
    pub fn trusted(&self) -> Arc<str> {
        let state = self.state.load();
        let all = std::iter::once(&state.certificate).chain(&state.others.trusted);
        all.map(|pem| ended(pem)).collect::<String>().into()
    }

    /// The other CAs.
    pub fn others(&self) -> Others {
        self.state.load().others.clone()
    }

    /// The CA's private key, PEM: for the member's own files and for joining members, nothing else.
    pub fn key(&self) -> Arc<str> {
        self.state.load().key.as_str().into()
    }

    /// Whether a hash of a CA's key means this cluster: it is that of a CA which is, was or will be its own.
    pub fn is_known(&self, hash: &str) -> bool {
        let state = self.state.load();
        let now = std::iter::once(&state.certificate).chain(&state.others.trusted);
        let mut hashes = now.filter_map(|pem| crate::public_key_hash(pem).ok()).chain(state.others.retired.clone());
        hashes.any(|known| known.eq_ignore_ascii_case(hash))
    }

    /// A CA to follow this one: of the same name, with a key of its own that this one certifies.
    pub fn successor(&self) -> Result<Self, Error> {
        let state = self.state.load_full();
        let (key, params) = (KeyPair::generate()?, ca_params(&crate::name_of(&state.certificate)?)?);
        let cross = params.signed_by(&key, &state.issuer)?.pem();
        let certificate = params.self_signed(&key)?.pem();
        let mut trusted = vec![state.certificate.clone()];
        trusted.extend(state.others.trusted.iter().filter(|pem| **pem != certificate).cloned());
        let others = Others { trusted, cross: Some(cross), retired: state.others.retired.clone() };
        Self::with_others(&certificate, &key.serialize_pem(), others)
    }

    /// Takes over another's keys. CAs that were trusted stay so, unless `retire`: then only `new`'s own is.
    pub fn replace(&self, new: &Self, retire: bool) -> Result<(), Error> {
        let (old, new) = (self.state.load_full(), new.state.load_full());
        let mut others = new.others.clone();
        let before = std::iter::once(&old.certificate).chain(&old.others.trusted);
        if retire {
            for pem in before.chain(&new.others.trusted).filter(|pem| **pem != new.certificate) {
                others.retired.push(crate::public_key_hash(pem)?);
            }
            (others.trusted, others.cross) = (Vec::new(), None);
        } else {
            others.trusted.extend(before.cloned());
        }
        others.retired.extend(old.others.retired.iter().cloned());
        let mut seen = std::collections::HashSet::from([new.certificate.clone()]);
        others.trusted.retain(|pem| seen.insert(pem.clone()));
        others.retired.sort();
        others.retired.dedup();
        let made = Self::with_others(&new.certificate, &new.key, others)?;
        self.state.store(made.state.load_full());
        self.generation.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Changes with each replacement: what was issued before should be issued anew.
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// The life of certificates that this authority issues on its own account.
    pub fn lifetime(&self) -> Duration {
        Duration::from_secs(self.leaf_seconds.load(Relaxed))
    }

    /// Sets that life.
    pub fn set_lifetime(&self, lifetime: Duration) {
        self.leaf_seconds.store(lifetime.as_secs().max(1), Relaxed);
    }

    /// Issues a certificate for a client; organisations are Kubernetes' groups.
    pub fn issue_client(&self, user: &str, groups: &[&str]) -> Result<Issued, Error> {
        self.issue_user(user, "", groups)
    }

    /// The same for a user with a uid, which is in the subject's [`crate::UID_OID`].
    pub fn issue_user(&self, user: &str, uid: &str, groups: &[&str]) -> Result<Issued, Error> {
        let mut attributes = attributes(user, groups);
        if !uid.is_empty() {
            attributes.push((&crate::UID_OID, uid));
        }
        let named = subject::name(&attributes);
        self.issue(params(user, self.lifetime())?, &[ExtendedKeyUsagePurpose::ClientAuth], Some(&named))
    }

    /// Issues a certificate for a server; a name that parses as an IP address becomes one.
    pub fn issue_server(&self, common_name: &str, names: &[String]) -> Result<Issued, Error> {
        let mut params = params(common_name, self.lifetime())?;
        params.subject_alt_names = alternative_names(names)?;
        self.issue(params, &[ExtendedKeyUsagePurpose::ServerAuth], None)
    }

    /// Issues a certificate for a member that is server and client at once.
    pub fn issue_peer(&self, common_name: &str, names: &[String]) -> Result<Issued, Error> {
        let mut params = params(common_name, self.lifetime())?;
        params.subject_alt_names = alternative_names(names)?;
        self.issue(params, &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth], None)
    }

    /// Issues a certificate, with this subject (DER) if one is given.
    fn issue(
        &self,
        mut params: CertificateParams,
        usages: &[ExtendedKeyUsagePurpose],
        named: Option<&[u8]>,
    ) -> Result<Issued, Error> {
        let (key, state) = (KeyPair::generate()?, self.state.load());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        let made = params.signed_by(&key, &state.issuer)?;
        let certificate = state.chained(state.named(made.der(), named)?);
        Ok(Issued { certificate, key: key.serialize_pem() })
    }

    /// Signs a request, keeping its subject and alternative names; `usages` are names as the CSR API writes them
    /// ("client auth", "digital signature", ...) and replace what the request asks for. The request's own signature is
    /// verified. Whether the signer's rules allow it is for the caller to decide first ([`read_csr`]).
    pub fn sign_csr(&self, pem: &str, usages: &[String], lifetime: Duration) -> Result<String, Error> {
        let (mut request, state) = (CertificateSigningRequestParams::from_pem(pem)?, self.state.load());
        validity(&mut request.params, lifetime.min(self.lifetime()));
        request.params.is_ca = IsCa::ExplicitNoCa;
        request.params.key_usages = usages.iter().filter_map(|u| key_usage(u)).collect();
        request.params.extended_key_usages = usages.iter().filter_map(|u| extended_key_usage(u)).collect();
        // The subject is the request's own, to the byte.
        let asked = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| Error::Malformed(e.to_string()))?;
        let (_, asked) = X509CertificationRequest::from_der(&asked).map_err(|e| Error::Malformed(e.to_string()))?;
        let named = asked.certification_request_info.subject.as_raw();
        let made = request.signed_by(&state.issuer)?;
        Ok(state.chained(state.named(made.der(), Some(named))?))
    }
}

impl State {
    /// A certificate of this CA as PEM, with this subject if one is given.
    fn named(&self, der: &[u8], named: Option<&[u8]>) -> Result<String, Error> {
        let renamed = match named {
            Some(named) => {
                let key = KeyPair::from_pem(&self.key)?;
                Some(subject::replaced(der, subject::IN_CERTIFICATE, named, &key)?)
            }
            None => None,
        };
        Ok(subject::pem("CERTIFICATE", renamed.as_deref().unwrap_or(der)))
    }

    /// A leaf with the certificate by which those who know only the former CA can check it.
    fn chained(&self, leaf: String) -> String {
        match &self.others.cross {
            Some(cross) => ended(&leaf) + cross,
            None => leaf,
        }
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate()).finish_non_exhaustive()
    }
}

fn ca_params(name: &str) -> Result<CertificateParams, Error> {
    let mut params = params(name, CA_LIFETIME)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

/// The certificates of a PEM text, each by itself.
fn split(pem: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let parts = pem.split_inclusive(END).filter(|part| part.contains("-----BEGIN CERTIFICATE-----"));
    parts.map(|part| format!("{}\n", part.trim())).collect()
}

/// A PEM text that another one can follow.
fn ended(pem: &str) -> String {
    if pem.ends_with('\n') { pem.to_owned() } else { format!("{pem}\n") }
}

/// What a request asks a certificate for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CsrSubject {
    /// Common name.
    pub common_name: String,
    /// Organisations.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ips: Vec<IpAddr>,
    /// Whether there are names of other kinds (e-mail, URI).
    pub other_names: bool,
}

/// Reads a request and verifies its signature.
pub fn read_csr(pem: &str) -> Result<CsrSubject, Error> {
    let params = CertificateSigningRequestParams::from_pem(pem)?.params;
    let der =
        CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|e| Error::Malformed(e.to_string()))?;
    subject::framed(&der)?;
    let (_, request) = X509CertificationRequest::from_der(&der).map_err(|e| Error::Malformed(e.to_string()))?;
    let name = &request.certification_request_info.subject;
    let mut subject = CsrSubject::default();
    // Of several common names the last counts, as in upstream's reading.
    for given in name.iter_common_name() {
        subject.common_name = text(given)?;
    }
    for given in name.iter_organization() {
        subject.organizations.push(text(given)?);
    }
    for name in &params.subject_alt_names {
        match name {
            SanType::DnsName(dns) => subject.dns.push(dns.to_string()),
            SanType::IpAddress(ip) => subject.ips.push(*ip),
            _ => subject.other_names = true,
        }
    }
    Ok(subject)
}

/// Makes a key and a request for it; returns (request, key) as PEM.
pub fn certificate_request(user: &str, groups: &[&str], names: &[String]) -> Result<(String, String), Error> {
    let key = KeyPair::generate()?;
    let mut params = params(user, LEAF_LIFETIME)?;
    params.subject_alt_names = alternative_names(names)?;
    let request = params.serialize_request(&key)?;
    let named = subject::name(&attributes(user, groups));
    let der = subject::replaced(request.der(), subject::IN_REQUEST, &named, &key)?;
    Ok((subject::pem("CERTIFICATE REQUEST", &der), key.serialize_pem()))
}

/// A user's name and groups as attributes of a subject.
fn attributes<'a>(user: &'a str, groups: &[&'a str]) -> Vec<(&'static [u64], &'a str)> {
    let groups = groups.iter().map(|group| (subject::ORGANIZATION, *group));
    groups.chain([(subject::COMMON_NAME, user)]).collect()
}

fn params(common_name: &str, lifetime: Duration) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    validity(&mut params, lifetime);
    Ok(params)
}

fn validity(params: &mut CertificateParams, lifetime: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
}

fn alternative_names(names: &[String]) -> Result<Vec<SanType>, Error> {
    names
        .iter()
        .map(|name| match name.parse::<IpAddr>() {
            Ok(ip) => Ok(SanType::IpAddress(ip)),
            Err(_) => Ok(SanType::DnsName(Ia5String::try_from(name.as_str())?)),
        })
        .collect()
}

fn text(attribute: &AttributeTypeAndValue<'_>) -> Result<String, Error> {
    let unreadable = |_| Error::Malformed("a name in the request is not in a supported encoding".into());
    attribute.as_str().map(str::to_owned).map_err(unreadable)
}

fn key_usage(name: &str) -> Option<KeyUsagePurpose> {
    Some(match name {
        "signing" | "digital signature" => KeyUsagePurpose::DigitalSignature,
        "content commitment" => KeyUsagePurpose::ContentCommitment,
        "key encipherment" => KeyUsagePurpose::KeyEncipherment,
        "data encipherment" => KeyUsagePurpose::DataEncipherment,
        "key agreement" => KeyUsagePurpose::KeyAgreement,
        _ => return None,
    })
}

fn extended_key_usage(name: &str) -> Option<ExtendedKeyUsagePurpose> {
    Some(match name {
        "client auth" => ExtendedKeyUsagePurpose::ClientAuth,
        "server auth" => ExtendedKeyUsagePurpose::ServerAuth,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_keeps_its_subject_and_names() {
        let (csr, _key) =
            certificate_request("system:node:a", &["system:nodes"], &["a".into(), "10.0.0.1".into()]).unwrap();
        let subject = read_csr(&csr).unwrap();
        assert_eq!(subject.common_name, "system:node:a");
        assert_eq!(subject.organizations, ["system:nodes"]);
        assert_eq!((subject.dns.len(), subject.ips.len(), subject.other_names), (1, 1, false));
        let ca = Authority::create("ca").unwrap();
        let signed = ca.sign_csr(&csr, &["client auth".into()], Duration::from_secs(60)).unwrap();
        assert!(signed.contains("BEGIN CERTIFICATE"));
    }

    #[test]
    fn every_group_is_in_the_certificate() {
        let ca = Authority::create("ca").unwrap();
        let groups = [
            "a",
            "b",
            "a group with a long name that needs more than one byte for its length, and then some more, and more, and more still",
        ];
        let der_of = |pem: &str| rustls_pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let verified = |pem: &str| {
            let roots = crate::tls::ClientVerifier::new(&ca.trusted()).unwrap();
            roots.accepts(&[der_of(pem)])
        };
        let (csr, _) = certificate_request("jane", &groups, &[]).unwrap();
        assert_eq!(read_csr(&csr).unwrap().organizations, groups);
        let signed = ca.sign_csr(&csr, &["client auth".into()], Duration::from_secs(3600)).unwrap();
        let issued = ca.issue_user("jane", "u-1", &groups).unwrap().certificate;
        for pem in [&signed, &issued] {
            assert_eq!(
                crate::subject_of(&der_of(pem)).unwrap(),
                ("jane".to_owned(), groups.map(str::to_owned).to_vec())
            );
            assert!(verified(pem), "the signature is over what is there");
        }
        assert_eq!(crate::uid_of(&der_of(&issued)).unwrap(), "u-1");
        assert_eq!(crate::uid_of(&der_of(&signed)).unwrap(), "");
    }

    #[test]
    fn a_tampered_request_is_refused() {
        let (csr, _) = certificate_request("a", &[], &[]).unwrap();
        let (other, _) = certificate_request("b", &[], &[]).unwrap();
        let half = csr.len() / 2;
        let mixed = format!("{}{}", &csr[..half], &other[half.min(other.len())..]);
        assert!(read_csr(&mixed).is_err());
        assert!(read_csr("nonsense").is_err());
    }

    #[test]
    fn a_successor_takes_over_and_the_former_is_retired() {
        let ca = Authority::create("ca").unwrap();
        let (first, hash) = (ca.certificate(), crate::public_key_hash(&ca.certificate()).unwrap());
        let next = ca.successor().unwrap();
        assert_eq!(crate::facts_of(&next.certificate()).unwrap().subject, "CN=ca");
        ca.replace(&next, false).unwrap();
        assert_eq!((ca.generation(), ca.certificate()), (1, next.certificate()));
        assert_eq!(split(&ca.trusted()), [next.certificate().to_string(), first.to_string()]);
        // The leaf brings the certificate that leads to the former CA.
        assert_eq!(split(&ca.issue_client("a", &[]).unwrap().certificate).len(), 2);
        let again = Authority::load(&ca.trusted(), &ca.key()).unwrap();
        assert_eq!(again.trusted(), ca.trusted());
        ca.replace(&next, true).unwrap();
        assert_eq!(ca.trusted(), next.certificate());
        assert_eq!(split(&ca.issue_client("a", &[]).unwrap().certificate).len(), 1);
        assert!(ca.is_known(&hash) && !ca.is_known("sha256:00"));
        assert_eq!(ca.others().retired, [hash]);
    }

    #[test]
    fn debug_output_has_no_keys() {
        let ca = Authority::create("ca").unwrap();
        let leaf = ca.issue_client("a", &["g"]).unwrap();
        assert!(!format!("{ca:?}{leaf:?}").contains("PRIVATE"));
    }
}
