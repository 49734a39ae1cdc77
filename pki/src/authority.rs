//! A certificate authority: a key that signs certificates, and certificate signing requests.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, string::Ia5String,
};

use crate::Error;

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

/// A CA: its certificate (PEM) and key.
pub struct Authority {
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new CA called `name`.
    pub fn create(name: &str) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = params(name, &[], CA_LIFETIME)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key)?.pem();
        Self::load(&certificate, &key.serialize_pem())
    }

    /// Reads a CA from its PEM certificate and key.
    pub fn load(certificate: &str, key: &str) -> Result<Self, Error> {
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key)?)?;
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), issuer })
    }

    /// The CA's certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The CA's private key, PEM: for the member's own files and for joining members, nothing else.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Issues a certificate for a client; organisations are Kubernetes' groups.
    pub fn issue_client(&self, user: &str, groups: &[&str]) -> Result<Issued, Error> {
        self.issue(params(user, groups, LEAF_LIFETIME)?, &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// The same for a user with a uid, which is in the subject's [`crate::UID_OID`].
    pub fn issue_user(&self, user: &str, uid: &str, groups: &[&str]) -> Result<Issued, Error> {
        let mut params = params(user, groups, LEAF_LIFETIME)?;
        params.distinguished_name.push(DnType::CustomDnType(crate::UID_OID.to_vec()), uid);
        self.issue(params, &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    /// Issues a certificate for a server; a name that parses as an IP address becomes one.
    pub fn issue_server(&self, common_name: &str, names: &[String]) -> Result<Issued, Error> {
        let mut params = params(common_name, &[], LEAF_LIFETIME)?;
        params.subject_alt_names = alternative_names(names)?;
        self.issue(params, &[ExtendedKeyUsagePurpose::ServerAuth])
    }

    /// Issues a certificate for a member that is server and client at once.
    pub fn issue_peer(&self, common_name: &str, names: &[String]) -> Result<Issued, Error> {
        let mut params = params(common_name, &[], LEAF_LIFETIME)?;
        params.subject_alt_names = alternative_names(names)?;
        self.issue(params, &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth])
    }

    fn issue(&self, mut params: CertificateParams, usages: &[ExtendedKeyUsagePurpose]) -> Result<Issued, Error> {
        let key = KeyPair::generate()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { certificate, key: key.serialize_pem() })
    }

    /// Signs a request, keeping its subject and alternative names; `usages` are names as the CSR API writes them
    /// ("client auth", "digital signature", ...) and replace what the request asks for. The request's own signature is
    /// verified. Whether the signer's rules allow it is for the caller to decide first ([`read_csr`]).
    pub fn sign_csr(&self, pem: &str, usages: &[String], lifetime: Duration) -> Result<String, Error> {
        let mut request = CertificateSigningRequestParams::from_pem(pem)?;
        validity(&mut request.params, lifetime.min(LEAF_LIFETIME));
        request.params.is_ca = IsCa::ExplicitNoCa;
        request.params.key_usages = usages.iter().filter_map(|u| key_usage(u)).collect();
        request.params.extended_key_usages = usages.iter().filter_map(|u| extended_key_usage(u)).collect();
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
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
    let mut subject = CsrSubject::default();
    for (kind, value) in params.distinguished_name.iter() {
        match kind {
            DnType::CommonName => subject.common_name = text(value)?,
            DnType::OrganizationName => subject.organizations.push(text(value)?),
            _ => {}
        }
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
    let mut params = params(user, groups, LEAF_LIFETIME)?;
    params.subject_alt_names = alternative_names(names)?;
    Ok((params.serialize_request(&key)?.pem()?, key.serialize_pem()))
}

fn params(common_name: &str, organizations: &[&str], lifetime: Duration) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    let mut name = DistinguishedName::new();
    for organization in organizations {
        name.push(DnType::OrganizationName, *organization);
    }
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

fn text(value: &DnValue) -> Result<String, Error> {
    Ok(match value {
        DnValue::Utf8String(s) => s.clone(),
        DnValue::PrintableString(s) => s.as_str().to_owned(),
        DnValue::Ia5String(s) => s.as_str().to_owned(),
        _ => return Err(Error::Malformed("a name in the request is not in a supported encoding".into())),
    })
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
    fn a_tampered_request_is_refused() {
        let (csr, _) = certificate_request("a", &[], &[]).unwrap();
        let (other, _) = certificate_request("b", &[], &[]).unwrap();
        let half = csr.len() / 2;
        let mixed = format!("{}{}", &csr[..half], &other[half.min(other.len())..]);
        assert!(read_csr(&mixed).is_err());
        assert!(read_csr("nonsense").is_err());
    }

    #[test]
    fn debug_output_has_no_keys() {
        let ca = Authority::create("ca").unwrap();
        let leaf = ca.issue_client("a", &["g"]).unwrap();
        assert!(!format!("{ca:?}{leaf:?}").contains("PRIVATE"));
    }
}
