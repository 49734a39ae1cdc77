//! Certificates that a member makes for itself (`--auto-tls`, `--peer-auto-tls`): what is sent is encrypted, but nobody
//! knows to whom.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use keelson_pki::Authority;
use tracing::{info, warn};

use crate::identity::{DataDir, write_private};

/// Where they are, in the data directory.
const DIR: &str = "auto-tls";
/// A year of the flag.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The files of a certificate and its key.
pub struct Pair {
    pub certificate: std::path::PathBuf,
    pub key: std::path::PathBuf,
}

/// The pair for one use, for these URLs; made anew when there is none that is still good.
pub fn pair(data: &DataDir, what: &str, urls: &[String], years: u32) -> Result<Pair> {
    let dir = data.join(DIR);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let pair = Pair { certificate: dir.join(format!("{what}.crt")), key: dir.join(format!("{what}.key")) };
    if is_good(&pair.certificate) && pair.key.exists() {
        return Ok(pair);
    }
    let authority = Authority::create(&format!("keelson {what} {DIR}"))?;
    authority.set_lifetime(YEAR * years.max(1));
    let issued = authority.issue_peer("keelson store", &hosts(urls))?;
    // The key first: a certificate without its key would be taken for a whole pair.
    write_private(&pair.key, issued.key.as_bytes())?;
    write_private(&pair.certificate, issued.certificate.as_bytes())?;
    info!(certificate = %pair.certificate.display(), "made a certificate; who connects cannot know whose it is");
    Ok(pair)
}

/// Whether a certificate is there and has not expired.
fn is_good(certificate: &Path) -> bool {
    let Ok(pem) = std::fs::read_to_string(certificate) else { return false };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
    match keelson_pki::facts_of(&pem) {
        Ok(facts) => now < facts.not_after,
        Err(error) => {
            warn!(%error, certificate = %certificate.display(), "the certificate is damaged; it is made anew");
            false
        }
    }
}

/// The hosts of URLs, without ports.
fn hosts(urls: &[String]) -> Vec<String> {
    let host = |url: &String| {
        let authority = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest).trim_end_matches('/');
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']').to_owned()
    };
    let mut hosts: Vec<_> = urls.iter().map(host).filter(|host| !host.is_empty()).collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_pair_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let urls = ["https://127.0.0.1:2379".to_owned(), "https://[::1]:1".to_owned(), "https://a:2".to_owned()];
        assert_eq!(hosts(&urls), ["127.0.0.1", "::1", "a"]);
        let first = pair(&data, "client", &urls, 1).unwrap();
        let made = std::fs::read(&first.certificate).unwrap();
        assert_eq!(std::fs::metadata(&first.key).unwrap().permissions().mode() & 0o777, 0o600);
        let again = pair(&data, "client", &urls, 1).unwrap();
        assert_eq!(std::fs::read(&again.certificate).unwrap(), made);
        std::fs::write(&first.certificate, "damaged").unwrap();
        pair(&data, "client", &urls, 1).unwrap();
        assert_ne!(std::fs::read(&first.certificate).unwrap(), b"damaged");
    }
}
