//! The ways to seal a value, in upstream's formats: a prefix that names provider and key, then what the cipher needs.

use aws_lc_rs::aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, AES_CBC_IV_LEN, DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey,
    UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use crypto_secretbox::aead::{Aead, KeyInit};
use crypto_secretbox::{Nonce as BoxNonce, XSalsa20Poly1305};

use super::kms::Kms;

/// Bytes of a secretbox's nonce.
const BOX_NONCE_BYTES: usize = 24;

enum Cipher {
    Gcm(LessSafeKey),
    Cbc(Vec<u8>),
    Secretbox(Box<XSalsa20Poly1305>),
    Kms(Box<Kms>),
}

/// A key of a provider.
pub struct Key {
    prefix: Vec<u8>,
    cipher: Cipher,
}

/// Random bytes.
pub(super) fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "no random numbers can be had".to_owned())?;
    Ok(bytes)
}

fn gcm_key(secret: &[u8]) -> Result<LessSafeKey, String> {
    let algorithm = match secret.len() {
        16 => &AES_128_GCM,
        24 => &AES_192_GCM,
        _ => &AES_256_GCM,
    };
    UnboundKey::new(algorithm, secret).map(LessSafeKey::new).map_err(|_| "the key cannot be used".to_owned())
}

/// Seals with AES-GCM under a key of its own: nonce, text, tag.
pub(super) fn gcm_seal(secret: &[u8], place: &[u8], plain: &[u8]) -> Result<Vec<u8>, String> {
    seal_with(&gcm_key(secret)?, place, plain)
}

fn seal_with(key: &LessSafeKey, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, String> {
    let nonce: [u8; NONCE_LEN] = random()?;
    let mut text = plain.to_vec();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(place), &mut text)
        .map_err(|_| "the value cannot be encrypted".to_owned())?;
    Ok([&nonce[..], &text].concat())
}

/// Opens what [`gcm_seal`] made.
pub(super) fn gcm_open(secret: &[u8], place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, String> {
    open_with(&gcm_key(secret)?, place, sealed)
}

fn open_with(key: &LessSafeKey, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, String> {
    let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or_else(unreadable)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| unreadable())?;
    let mut text = text.to_vec();
    let length = key.open_in_place(nonce, Aad::from(place), &mut text).map_err(|_| unreadable())?.len();
    text.truncate(length);
    Ok(text)
}

fn unreadable() -> String {
    "the value cannot be decrypted: it is damaged, or the key is another".to_owned()
}

impl Key {
    /// The key that a plugin holds.
    pub fn of_plugin(name: &str, kms: Kms) -> Self {
        Self { prefix: format!("k8s:enc:kms:v2:{name}:").into_bytes(), cipher: Cipher::Kms(Box::new(kms)) }
    }

    /// The plugin that holds it.
    pub fn plugin(&self) -> Option<&Kms> {
        if let Cipher::Kms(kms) = &self.cipher { Some(kms) } else { None }
    }

    /// Whether a value would be sealed so if it were written now.
    pub fn is_current(&self, sealed: &[u8]) -> bool {
        match (&self.cipher, sealed.strip_prefix(&self.prefix[..])) {
            (_, None) => false,
            (Cipher::Kms(kms), Some(rest)) => kms.is_current(rest),
            _ => true,
        }
    }

    /// A key of the provider `kind` (aesgcm, aescbc or secretbox).
    pub fn new(kind: &str, name: &str, secret: &[u8]) -> Result<Self, String> {
        let cipher = match kind {
            "aesgcm" => Cipher::Gcm(gcm_key(secret)?),
            "aescbc" => {
                cbc_key(secret)?;
                Cipher::Cbc(secret.to_vec())
            }
            _ => {
                let key = XSalsa20Poly1305::new_from_slice(secret).map_err(|_| "the key cannot be used".to_owned())?;
                Cipher::Secretbox(Box::new(key))
            }
        };
        Ok(Self { prefix: format!("k8s:enc:{kind}:v1:{name}:").into_bytes(), cipher })
    }

    /// What values sealed with this key begin with.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Seals a value; `place` is its key in the store, to which an authenticated cipher binds it.
    pub fn seal(&self, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, String> {
        let failed = |_| "the value cannot be encrypted".to_owned();
        let mut out = self.prefix.clone();
        match &self.cipher {
            Cipher::Gcm(key) => out.extend(seal_with(key, place, plain)?),
            Cipher::Kms(kms) => out.extend(kms.seal(place, plain)?),
            Cipher::Cbc(secret) => {
                let key = PaddedBlockEncryptingKey::cbc_pkcs7(cbc_key(secret)?).map_err(failed)?;
                let iv: [u8; AES_CBC_IV_LEN] = random()?;
                let mut text = plain.to_vec();
                let context = aws_lc_rs::cipher::EncryptionContext::Iv128(FixedLength::from(iv));
                key.less_safe_encrypt(&mut text, context).map_err(failed)?;
                out.extend(iv);
                out.extend(text);
            }
            Cipher::Secretbox(key) => {
                let nonce: [u8; BOX_NONCE_BYTES] = random()?;
                out.extend(nonce);
                let text = key.encrypt(&BoxNonce::from(nonce), plain);
                out.extend(text.map_err(|_| "the value cannot be encrypted".to_owned())?);
            }
        }
        Ok(out)
    }

    /// Opens what [`Self::seal`] made.
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, String> {
        let failed = unreadable;
        let rest = sealed.strip_prefix(&self.prefix[..]).ok_or_else(failed)?;
        match &self.cipher {
            Cipher::Gcm(key) => open_with(key, place, rest),
            Cipher::Kms(kms) => kms.open(place, rest),
            Cipher::Cbc(secret) => {
                let (iv, text) = rest.split_at_checked(AES_CBC_IV_LEN).ok_or_else(failed)?;
                let iv = FixedLength::try_from(iv).map_err(|_| failed())?;
                let key = PaddedBlockDecryptingKey::cbc_pkcs7(cbc_key(secret)?).map_err(|_| failed())?;
                let mut text = text.to_vec();
                let length = key.decrypt(&mut text, DecryptionContext::Iv128(iv)).map_err(|_| failed())?.len();
                text.truncate(length);
                Ok(text)
            }
            Cipher::Secretbox(key) => {
                let (nonce, text) = rest.split_at_checked(BOX_NONCE_BYTES).ok_or_else(failed)?;
                let nonce: [u8; BOX_NONCE_BYTES] = nonce.try_into().map_err(|_| failed())?;
                key.decrypt(&BoxNonce::from(nonce), text).map_err(|_| failed())
            }
        }
    }
}

fn cbc_key(secret: &[u8]) -> Result<UnboundCipherKey, String> {
    let algorithm = match secret.len() {
        16 => &AES_128,
        24 => &AES_192,
        _ => &AES_256,
    };
    UnboundCipherKey::new(algorithm, secret).map_err(|_| "the key cannot be used".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_opened_with_the_same_key_only() {
        for (kind, sizes) in [("aesgcm", &[16, 24, 32][..]), ("aescbc", &[16, 24, 32]), ("secretbox", &[32])] {
            for size in sizes {
                let key = Key::new(kind, "key1", &vec![7; *size]).unwrap();
                let sealed = key.seal(b"/registry/secrets/a/b", b"hidden").unwrap();
                assert!(sealed.starts_with(format!("k8s:enc:{kind}:v1:key1:").as_bytes()));
                assert!(!sealed.windows(6).any(|w| w == b"hidden"), "{kind}");
                assert_ne!(
                    sealed,
                    key.seal(b"/registry/secrets/a/b", b"hidden").unwrap(),
                    "{kind}: a nonce is used once"
                );
                assert_eq!(key.open(b"/registry/secrets/a/b", &sealed).unwrap(), b"hidden");
                let mut damaged = sealed.clone();
                *damaged.last_mut().unwrap() ^= 1;
                assert_ne!(key.open(b"/registry/secrets/a/b", &damaged).ok().as_deref(), Some(&b"hidden"[..]));
                assert!(key.open(b"/registry/secrets/a/b", &sealed[..24]).is_err(), "{kind}: cut");
                if kind == "aesgcm" {
                    assert!(key.open(b"/registry/secrets/a/c", &sealed).is_err(), "moved to another place");
                }
                let other = Key::new(kind, "key1", &vec![8; *size]).unwrap();
                assert_ne!(other.open(b"/registry/secrets/a/b", &sealed).ok().as_deref(), Some(&b"hidden"[..]));
            }
        }
    }
}
