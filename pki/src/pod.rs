//! Keys of pods, with the empty request by which a signer is told of them.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, RsaKeySize};

use crate::Error;

/// A key for a pod: PKCS#8 in PEM, and a signing request (DER) that says nothing but the public key. `kind` is as a projected
/// volume names it: `RSA3072`, `RSA4096`, `ECDSAP256`, `ECDSAP384`, `ECDSAP521` or `ED25519`.
pub fn pod_key(kind: &str) -> Result<(String, Vec<u8>), Error> {
    let key = match kind {
        "RSA3072" => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072),
        "RSA4096" => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_4096),
        "ECDSAP256" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        "ECDSAP384" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        "ECDSAP521" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512),
        "ED25519" => KeyPair::generate_for(&rcgen::PKCS_ED25519),
        other => return Err(Error::Malformed(format!("keys of type {other:?} cannot be made"))),
    }?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_say_nothing_but_the_key() {
        for kind in ["ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519", "RSA3072"] {
            let (key, request) = pod_key(kind).unwrap();
            assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"), "{kind}");
            let pem = rcgen::KeyPair::from_pem(&key).unwrap();
            let held = pem.public_key_raw();
            assert!(request.windows(held.len()).any(|part| part == held), "{kind}: the public key is in the request");
        }
        assert!(pod_key("RSA1024").is_err());
    }
}
