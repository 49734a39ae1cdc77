//! All CA material of a cluster: what every server holds and a joining server is handed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::authority::Others;
use crate::service_account::SigningKey;
use crate::{Authority, Error};

/// All keys in one file, so that they always fit each other; the files beside it are for people and other tools.
const WHOLE: &str = "keys.json";
/// File names in the PKI directory, in the order of [`Bundle`]'s fields.
const FILES: [&str; 5] = ["ca.crt", "ca.key", "peer-ca.crt", "peer-ca.key", "sa.key"];

/// The cluster's keys.
#[derive(Debug)]
pub struct ClusterPki {
    /// Signs the API's serving certificates and all client certificates, kubelets' included.
    pub cluster: Authority,
    /// Signs the certificates with which members talk to each other.
    pub peer: Authority,
    /// Signs service account tokens.
    pub service_account: SigningKey,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bundle {
    ca_certificate: String,
    ca_key: String,
    peer_ca_certificate: String,
    peer_ca_key: String,
    service_account_key: String,
    #[serde(default, skip_serializing_if = "is_default")]
    others: Others,
    #[serde(default, skip_serializing_if = "is_default")]
    peer_others: Others,
}

fn is_default(others: &Others) -> bool {
    *others == Others::default()
}

impl ClusterPki {
    /// Makes the keys of a new cluster.
    pub fn create() -> Result<Self, Error> {
        Ok(Self {
            cluster: Authority::create("keelson-ca")?,
            peer: Authority::create("keelson-peer-ca")?,
            service_account: SigningKey::create()?,
        })
    }

    /// The keys as JSON: secret, for a joining server only.
    pub fn to_bundle(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(&Bundle {
            ca_certificate: self.cluster.certificate().to_string(),
            ca_key: self.cluster.key().to_string(),
            peer_ca_certificate: self.peer.certificate().to_string(),
            peer_ca_key: self.peer.key().to_string(),
            service_account_key: self.service_account.pem().into(),
            others: self.cluster.others(),
            peer_others: self.peer.others(),
        })
        .map_err(|e| Error::Malformed(e.to_string()))
    }

    /// Reads what [`ClusterPki::to_bundle`] wrote.
    pub fn from_bundle(json: &[u8]) -> Result<Self, Error> {
        // The text of the error is left out: it may quote key material.
        let b: Bundle =
            serde_json::from_slice(json).map_err(|_| Error::Malformed("not a bundle of cluster keys".into()))?;
        Ok(Self {
            cluster: Authority::with_others(&b.ca_certificate, &b.ca_key, b.others)?,
            peer: Authority::with_others(&b.peer_ca_certificate, &b.peer_ca_key, b.peer_others)?,
            service_account: SigningKey::load(&b.service_account_key)?,
        })
    }

    /// The keys with the CAs that follow these ([`Authority::successor`]); accounts' tokens stay good.
    pub fn successor(&self) -> Result<Self, Error> {
        Ok(Self {
            cluster: self.cluster.successor()?,
            peer: self.peer.successor()?,
            service_account: SigningKey::load(self.service_account.pem())?,
        })
    }

    /// Takes over another's CAs ([`Authority::replace`]).
    pub fn replace(&self, new: &Self, retire: bool) -> Result<(), Error> {
        self.cluster.replace(&new.cluster, retire)?;
        self.peer.replace(&new.peer, retire)
    }

    /// Writes the keys into `dir` (0700, files 0600), each file whole or not at all.
    pub fn save(&self, dir: &Path) -> Result<(), Error> {
        let failed = |e| Error::File(dir.display().to_string(), e);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let whole = String::from_utf8(self.to_bundle()?).map_err(|e| Error::Malformed(e.to_string()))?;
        write_private(&dir.join(WHOLE), &whole).map_err(failed)?;
        let contents = [
            self.cluster.trusted(),
            self.cluster.key(),
            self.peer.trusted(),
            self.peer.key(),
            self.service_account.pem().into(),
        ];
        for (name, content) in FILES.iter().zip(contents) {
            write_private(&dir.join(name), &content).map_err(failed)?;
        }
        fs::File::open(dir).and_then(|d| d.sync_all()).map_err(failed)
    }

    /// Reads the keys that [`ClusterPki::save`] wrote; `None` if there are none.
    pub fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let whole = dir.join(WHOLE);
        match fs::read(&whole) {
            Ok(bytes) => return Self::from_bundle(&bytes).map(Some),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::File(whole.display().to_string(), error));
            }
            Err(_) => {}
        }
        if !dir.join(FILES[0]).exists() {
            return Ok(None);
        }
        let read = |name: &str| {
            let file = dir.join(name);
            fs::read_to_string(&file).map_err(|e| Error::File(file.display().to_string(), e))
        };
        Ok(Some(Self {
            cluster: Authority::load(&read(FILES[0])?, &read(FILES[1])?)?,
            peer: Authority::load(&read(FILES[2])?, &read(FILES[3])?)?,
            service_account: SigningKey::load(&read(FILES[4])?)?,
        }))
    }
}

fn write_private(path: &Path, content: &str) -> std::io::Result<()> {
    let part = path.with_extension("part");
    match fs::remove_file(&part) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&part)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&part, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_survive_files_and_bundles() {
        let dir = tempfile::tempdir().unwrap();
        let pki_dir = dir.path().join("pki");
        assert!(ClusterPki::load(&pki_dir).unwrap().is_none());
        let pki = ClusterPki::create().unwrap();
        pki.save(&pki_dir).unwrap();
        for name in FILES {
            assert_eq!(fs::metadata(pki_dir.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        let loaded = ClusterPki::load(&pki_dir).unwrap().unwrap();
        let again = ClusterPki::from_bundle(&loaded.to_bundle().unwrap()).unwrap();
        assert_eq!(again.cluster.certificate(), pki.cluster.certificate());
        assert!(ClusterPki::from_bundle(b"{}").is_err());
    }
}
