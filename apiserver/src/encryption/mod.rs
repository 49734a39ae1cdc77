//! Encryption at rest: values of chosen resources are sealed before they go to the store and opened when they are read, so
//! store, log and snapshots hold nothing of them in plain.
//!
//! One process is one server, so the keys are the process's: whatever reads a value opens it by the prefix it begins with.
//! Invariant: a value begins with `k8s:enc:` exactly if it is sealed; a plain one begins with the form's version byte.

mod config;
mod kms;
mod providers;

use std::path::Path;
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::Status;
use keelson_machinery::stored::{Stored, Text};
use keelson_store::KeyValue;

use config::Config;

/// What every sealed value begins with.
const SEALED: &[u8] = b"k8s:enc:";

/// The keys of this process; none: nothing is sealed.
static KEYS: LazyLock<ArcSwapOption<Config>> = LazyLock::new(ArcSwapOption::empty);

/// Reads an EncryptionConfiguration and uses it from now on.
pub fn install(path: &Path) -> Result<(), String> {
    let failed = |why: String| format!("--encryption-provider-config {}: {why}", path.display());
    let bytes = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
    KEYS.store(Some(Arc::new(Config::parse(&bytes).map_err(failed)?)));
    Ok(())
}

/// Whether there is a configuration.
pub fn is_on() -> bool {
    KEYS.load().is_some()
}

/// Whether the plugins of the configuration say that they are well; what is wrong is logged.
pub fn plugins_are_well() -> bool {
    let keys = KEYS.load();
    let ill = keys.as_ref().and_then(|config| config.plugins().find_map(|plugin| plugin.health().err()));
    if let Some(why) = &ill {
        tracing::warn!(why, "a KMS plugin is not well");
    }
    ill.is_none()
}

fn internal(key: &[u8], why: &str) -> Status {
    Status::internal(&format!("{}: {why}", String::from_utf8_lossy(key)))
}

/// A value as it goes to the store.
pub fn seal(def: &ResourceDef, key: &[u8], plain: Bytes) -> Result<Bytes, Status> {
    let keys = KEYS.load();
    let Some(provider) = keys.as_ref().and_then(|config| config.writing(def.group, def.plural)) else {
        return Ok(plain);
    };
    provider.seal(key, &plain).map(Bytes::from).map_err(|why| internal(key, &why))
}

/// A stored value in plain.
fn open(kv: &KeyValue) -> Result<Bytes, Status> {
    let sealed = kv.value.starts_with(SEALED);
    let keys = KEYS.load();
    match keys.as_ref() {
        Some(config) if sealed || config.has_strict() => {
            config.open(&kv.key, &kv.value).map_err(|why| internal(&kv.key, &why))
        }
        None if sealed => Err(internal(
            &kv.key,
            "the value is encrypted, and this server has no keys: \
             start it with --encryption-provider-config",
        )),
        _ => Ok(kv.value.clone()),
    }
}

/// A stored object with its head, opened.
pub fn stored(kv: &KeyValue) -> Result<Stored, Status> {
    Stored::parse(&open(kv)?).map_err(|e| internal(&kv.key, &e.to_string()))
}

/// The JSON of a stored object where it lies; `None` if it must be opened or unpacked for that.
pub fn text(kv: &KeyValue) -> Result<Option<Text<'_>>, Status> {
    if kv.value.starts_with(SEALED) || KEYS.load().as_ref().is_some_and(|config| config.has_strict()) {
        return Ok(None);
    }
    Text::of(&kv.value).map_err(|e| internal(&kv.key, &e.to_string()))
}

/// Whether a value would be sealed otherwise if it were written now: then a write that changes nothing is one.
pub fn is_stale(def: &ResourceDef, kv: &KeyValue) -> bool {
    let keys = KEYS.load();
    let Some(config) = keys.as_ref() else { return false };
    match config.writing(def.group, def.plural) {
        Some(provider) => !provider.is_current(&kv.value),
        None => kv.value.starts_with(SEALED),
    }
}
