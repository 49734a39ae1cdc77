//! Files that are read again when they change: encryption, authentication, authorization and audit policy. A file that cannot
//! be used leaves what holds as it is and is told of.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::{ApiServer, Settings, audit, authn, encryption};

/// How often the files are looked at.
const INTERVAL: Duration = Duration::from_secs(10);

type Load = Box<dyn Fn(&ApiServer) -> Result<(), String> + Send>;

/// Files that go together, and what is done when one of them changes.
struct Watched {
    what: &'static str,
    files: Vec<PathBuf>,
    /// Hash of what was last loaded or refused.
    seen: Vec<u8>,
    load: Load,
}

impl Watched {
    fn new(
        what: &'static str,
        files: impl IntoIterator<Item = Option<PathBuf>>,
        load: impl Fn(&ApiServer) -> Result<(), String> + Send + 'static,
    ) -> Self {
        let files: Vec<PathBuf> = files.into_iter().flatten().collect();
        let seen = fingerprint(&files);
        Self { what, files, seen, load: Box::new(load) }
    }

    /// Loads the files if they are others than before; whether they were loaded.
    fn look(&mut self, server: &ApiServer) -> bool {
        let now = fingerprint(&self.files);
        if now == self.seen {
            return false;
        }
        self.seen = now;
        match (self.load)(server) {
            Ok(()) => {
                tracing::info!(what = self.what, "changed files were loaded");
                true
            }
            Err(why) => {
                tracing::error!(what = self.what, %why, "changed files cannot be used; what was loaded before holds on");
                false
            }
        }
    }
}

fn fingerprint(files: &[PathBuf]) -> Vec<u8> {
    let mut hash = Sha256::new();
    for file in files {
        // A file that is being replaced may be away for a moment.
        let bytes = std::fs::read(file).unwrap_or_default();
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    hash.finalize().to_vec()
}

fn watched(settings: &Settings) -> Vec<Watched> {
    let mut out = Vec::new();
    if let Some(path) = settings.encryption.clone() {
        let load = move |server: &ApiServer| {
            let _ = server;
            encryption::install(&path)
        };
        out.push(Watched::new("encryption", [settings.encryption.clone()], load));
    }
    let own = settings.authentication.clone();
    let files = [&own.config, &own.token_file, &own.client_ca_file, &own.front_proxy.ca_file].map(Clone::clone);
    let load = move |server: &ApiServer| {
        let made = authn::Authentication::load(server.objects.clone(), server.pki.clone(), &own)?
            .noting(server.token_uses.clone());
        server.authenticator.store(Arc::new(made));
        Ok(())
    };
    out.push(Watched::new("authentication", files, load));
    let own = settings.authorization.clone();
    let files = [own.config.clone(), own.abac_file.clone()];
    out.push(Watched::new("authorization", files, move |server| {
        server.authorizer.replace(own.load()?);
        Ok(())
    }));
    let own = settings.audit.clone();
    let files = [own.policy.clone()];
    out.push(Watched::new("audit policy", files, move |server| {
        server.auditor.replace(audit::Auditor::policy_of(&own)?);
        Ok(())
    }));
    out.retain(|watched| !watched.files.is_empty());
    out
}

/// Starts to look at the files that an operator named.
pub fn start(server: &Arc<ApiServer>, settings: &Settings) {
    let mut all = watched(settings);
    if all.is_empty() {
        return;
    }
    let (server, stop) = (server.clone(), server.stop.clone());
    let look = async move {
        loop {
            tokio::time::sleep(INTERVAL).await;
            all.iter_mut().for_each(|watched| {
                watched.look(&server);
            });
        }
    };
    tokio::spawn(async move { stop.run_until_cancelled(look).await });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart_by_what_is_in_them() {
        let directory = tempfile::tempdir().unwrap();
        let files = [directory.path().join("a"), directory.path().join("b")];
        let write = |index: usize, text: &str| std::fs::write(&files[index], text).unwrap();
        let absent = fingerprint(&files);
        write(0, "x");
        write(1, "");
        let first = fingerprint(&files);
        write(0, "");
        write(1, "x");
        let second = fingerprint(&files);
        write(1, "x");
        assert_eq!(fingerprint(&files), second, "the same text again is no change");
        assert!(absent != first && first != second);
    }
}
