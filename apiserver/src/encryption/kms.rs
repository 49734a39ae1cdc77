//! Keys that another process holds (KMS v2): a plugin behind a unix socket encrypts the seed from which the keys of values
//! are derived. It is asked when a seed is made, when one is met that is not known yet, and now and then which of its keys is
//! current; everything else happens here.
//!
//! Objects are read and written in places that do not wait for anything else, so the plugin is spoken to on a thread of its
//! own and callers wait for that thread.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use keelson_proto::kms::key_management_service_client::KeyManagementServiceClient;
use keelson_proto::kms::{
    DecryptRequest, EncryptRequest, EncryptResponse, EncryptedDekSourceType, EncryptedObject, StatusRequest,
    StatusResponse,
};
use parking_lot::Mutex;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::net::UnixStream;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

use super::providers::{gcm_open, gcm_seal, random};

/// Bytes of a seed and of a key.
const SEED_BYTES: usize = 32;
/// Bytes from which, with the seed, a value's key is derived.
const INFO_BYTES: usize = 32;
/// How often the plugin is asked which key is current.
const STATUS_INTERVAL: Duration = Duration::from_secs(60);
/// For how long a seed is used for writing while the plugin does not say that it is well.
const MAX_SEED_AGE: Duration = Duration::from_secs(180);
/// For how long what the plugin said of itself answers health checks: that it is well, that it is not.
const HEALTH_LASTS: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(3)];
/// Longest that the plugin may take for an answer, unless the configuration says otherwise.
pub(super) const TIMEOUT: Duration = Duration::from_secs(3);
/// Seeds of which the plain form is remembered.
const MAX_SEEDS: usize = 1000;
/// Questions that wait for the plugin at once.
const MAX_WAITING: usize = 256;
/// Longest key ID, bytes.
const MAX_KEY_ID_BYTES: usize = 1024;

/// A question to the plugin, with where the answer goes.
enum Question {
    Status(SyncSender<Result<StatusResponse, String>>),
    Encrypt(Vec<u8>, SyncSender<Result<EncryptResponse, String>>),
    Decrypt(Box<EncryptedObject>, SyncSender<Result<Vec<u8>, String>>),
}

/// A seed, as values are sealed with it.
struct Seed {
    plain: [u8; SEED_BYTES],
    sealed: EncryptResponse,
}

/// A key in plain, and whether it is a seed.
type Source = (Vec<u8>, bool);

/// What is known of the plugin.
#[derive(Default)]
struct State {
    current: Option<Arc<Seed>>,
    /// When the plugin was last asked, and when it last was well.
    asked: Option<Instant>,
    well: Option<Instant>,
}

/// A plugin.
pub struct Kms {
    name: String,
    questions: mpsc::Sender<Question>,
    state: Mutex<State>,
    /// When a health check last asked it, and what it said.
    health: Mutex<Option<(Instant, Result<(), String>)>>,
    /// Plain seeds by the hash of their sealed form.
    known: Mutex<HashMap<[u8; 32], Source>>,
}

struct Bytes32;

impl KeyType for Bytes32 {
    fn len(&self) -> usize {
        SEED_BYTES
    }
}

/// The key of a value.
fn derived(seed: &[u8], info: &[u8]) -> Result<[u8; SEED_BYTES], String> {
    let failed = |_| "the key cannot be derived".to_owned();
    let mut key = [0; SEED_BYTES];
    let prk = Prk::new_less_safe(HKDF_SHA256, seed);
    prk.expand(&[info], Bytes32).map_err(failed)?.fill(&mut key).map_err(failed)?;
    Ok(key)
}

impl Kms {
    /// Begins to speak to the plugin `name` behind a socket; it need not be there yet.
    pub fn new(name: &str, socket: PathBuf, timeout: Duration) -> Result<Self, String> {
        let (questions, incoming) = mpsc::channel(MAX_WAITING);
        let thread = std::thread::Builder::new().name(format!("kms-{name}"));
        thread.spawn(move || speak(socket, timeout, incoming)).map_err(|e| format!("no thread can be started: {e}"))?;
        let (state, health, known) = Default::default();
        Ok(Self { name: name.to_owned(), questions, state, health, known })
    }

    /// Asks the plugin and waits for its answer, without keeping other work of a runtime from going on.
    fn ask<T: Send>(&self, question: impl FnOnce(SyncSender<Result<T, String>>) -> Question) -> Result<T, String> {
        let (answer, answers) = sync_channel(1);
        let failed = |why: &str| format!("kms plugin {:?}: {why}", self.name);
        self.questions.try_send(question(answer)).map_err(|_| failed("too many questions wait for it"))?;
        let receive = || answers.recv().map_err(|_| failed("it is no longer spoken to"))?.map_err(|why| failed(&why));
        match Handle::try_current().map(|handle| handle.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(receive),
            _ => receive(),
        }
    }

    /// The ID of its key, if it is well.
    fn key_id(&self) -> Result<String, String> {
        self.ask(Question::Status).and_then(|status| match status.healthz.as_str() {
            "ok" if !status.key_id.is_empty() && status.key_id.len() <= MAX_KEY_ID_BYTES => Ok(status.key_id),
            "ok" => Err(format!("kms plugin {:?}: its key has no usable ID", self.name)),
            other => Err(format!("kms plugin {:?} is not well: {other:?}", self.name)),
        })
    }

    /// Whether it is well, as it said a moment ago or says now.
    pub fn health(&self) -> Result<(), String> {
        let mut health = self.health.lock();
        let lasts = |told: &Result<(), String>| HEALTH_LASTS[usize::from(told.is_err())];
        match &*health {
            Some((at, told)) if at.elapsed() < lasts(told) => told.clone(),
            _ => {
                let told = self.key_id().map(drop);
                *health = Some((Instant::now(), told.clone()));
                told
            }
        }
    }

    /// The seed for writing: a new one if the plugin's key is another now.
    fn current(&self) -> Result<Arc<Seed>, String> {
        let mut state = self.state.lock();
        let due = state.asked.is_none_or(|asked| asked.elapsed() >= STATUS_INTERVAL);
        if let (Some(seed), false) = (&state.current, due) {
            return Ok(seed.clone());
        }
        let status = self.key_id();
        state.asked = Some(Instant::now());
        match (status, state.current.clone()) {
            (Ok(key), Some(seed)) if seed.sealed.key_id == key => {
                state.well = state.asked;
                Ok(seed)
            }
            (Ok(_), _) => {
                let seed = self.new_seed()?;
                state.well = state.asked;
                state.current = Some(seed.clone());
                Ok(seed)
            }
            (Err(why), Some(seed)) if state.well.is_some_and(|well| well.elapsed() < MAX_SEED_AGE) => {
                tracing::warn!(%why, "a KMS plugin does not say which key is current; the known one is used on");
                Ok(seed)
            }
            (Err(why), _) => {
                state.asked = None;
                Err(why)
            }
        }
    }

    fn new_seed(&self) -> Result<Arc<Seed>, String> {
        let plain: [u8; SEED_BYTES] = random()?;
        let sealed = self.ask(|answer| Question::Encrypt(plain.to_vec(), answer))?;
        if sealed.ciphertext.is_empty() || sealed.key_id.is_empty() || sealed.ciphertext == plain {
            return Err(format!("kms plugin {:?}: its answer is no encrypted seed", self.name));
        }
        self.remember(&sealed.ciphertext, &plain, true);
        Ok(Arc::new(Seed { plain, sealed }))
    }

    fn remember(&self, sealed: &[u8], plain: &[u8], is_seed: bool) {
        let mut known = self.known.lock();
        if known.len() >= MAX_SEEDS {
            known.clear();
        }
        known.insert(Sha256::digest(sealed).into(), (plain.to_vec(), is_seed));
    }

    /// Seals a value.
    pub fn seal(&self, place: &[u8], plain: &[u8]) -> Result<Vec<u8>, String> {
        let seed = self.current()?;
        let info: [u8; INFO_BYTES] = random()?;
        let mut data = info.to_vec();
        data.extend(gcm_seal(&derived(&seed.plain, &info)?, place, plain)?);
        let object = EncryptedObject {
            encrypted_data: data,
            key_id: seed.sealed.key_id.clone(),
            encrypted_dek_source: seed.sealed.ciphertext.clone(),
            annotations: seed.sealed.annotations.clone(),
            encrypted_dek_source_type: EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed.into(),
        };
        Ok(object.encode_to_vec())
    }

    /// Opens a value.
    pub fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, String> {
        let object =
            EncryptedObject::decode(sealed).map_err(|_| "the value is no object of a KMS plugin".to_owned())?;
        let is_seed = object.encrypted_dek_source_type == i32::from(EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed);
        let hash: [u8; 32] = Sha256::digest(&object.encrypted_dek_source).into();
        let known = self.known.lock().get(&hash).cloned();
        let (source, _) = match known.filter(|(_, kind)| *kind == is_seed) {
            Some(known) => known,
            None => {
                let asked = EncryptedObject { encrypted_data: Vec::new(), ..object.clone() };
                let plain = self.ask(|answer| Question::Decrypt(Box::new(asked), answer))?;
                self.remember(&object.encrypted_dek_source, &plain, is_seed);
                (plain, is_seed)
            }
        };
        if !is_seed {
            return gcm_open(&source, place, &object.encrypted_data);
        }
        let damaged = || "the value cannot be decrypted: it is damaged".to_owned();
        let (info, data) = object.encrypted_data.split_at_checked(INFO_BYTES).ok_or_else(damaged)?;
        gcm_open(&derived(&source, info)?, place, data)
    }

    /// Whether a value is sealed with the seed that writes use now.
    pub fn is_current(&self, sealed: &[u8]) -> bool {
        let Ok(object) = EncryptedObject::decode(sealed) else { return false };
        let Ok(seed) = self.current() else { return true };
        object.key_id == seed.sealed.key_id
    }
}

/// The thread that speaks to the plugin.
fn speak(socket: PathBuf, timeout: Duration, mut questions: mpsc::Receiver<Question>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "a KMS plugin cannot be spoken to"),
    };
    runtime.block_on(async {
        let endpoint = Endpoint::from_static("http://kms.plugin").timeout(timeout).connect_timeout(timeout);
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        }));
        let client = KeyManagementServiceClient::new(channel);
        while let Some(question) = questions.recv().await {
            tokio::spawn(answer(client.clone(), question));
        }
    });
}

async fn answer(mut client: KeyManagementServiceClient<Channel>, question: Question) {
    let failed = |status: tonic::Status| status.message().to_owned();
    let uid = uuid::Uuid::new_v4().to_string();
    // Who does not wait any longer misses nothing.
    match question {
        Question::Status(answer) => {
            let told = client.status(StatusRequest {}).await.map(tonic::Response::into_inner);
            let _ = answer.send(told.map_err(failed));
        }
        Question::Encrypt(plaintext, answer) => {
            let told = client.encrypt(EncryptRequest { plaintext, uid }).await.map(tonic::Response::into_inner);
            let _ = answer.send(told.map_err(failed));
        }
        Question::Decrypt(object, answer) => {
            let EncryptedObject { encrypted_dek_source: ciphertext, key_id, annotations, .. } = *object;
            let told = client.decrypt(DecryptRequest { ciphertext, uid, key_id, annotations }).await;
            let _ = answer.send(told.map(|told| told.into_inner().plaintext).map_err(failed));
        }
    }
}

#[cfg(test)]
#[path = "../../tests/support/kms.rs"]
mod plugin;

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::plugin::Plugin;
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn values_are_sealed_with_keys_that_the_plugin_holds() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("kms.sock");
        let kms = Kms::new("test", socket.clone(), Duration::from_secs(60)).unwrap();
        let why = kms.seal(b"/a", b"hidden").unwrap_err();
        assert!(why.starts_with("kms plugin \"test\": "), "{why}");
        let plugin = Plugin::default();
        plugin.key.store(1, Ordering::SeqCst);
        plugin.serve(&socket);
        // The plugin is there now: a channel that failed tries again.
        let sealed = (0..100).find_map(|_| kms.seal(b"/a", b"hidden").ok()).expect("the plugin answers");
        assert!(!sealed.windows(6).any(|w| w == b"hidden"));
        assert_eq!(kms.open(b"/a", &sealed).unwrap(), b"hidden");
        assert!(kms.open(b"/b", &sealed).is_err(), "moved to another place");
        let other = kms.seal(b"/a", b"hidden").unwrap();
        assert_ne!(other, sealed, "each value has a key of its own");
        assert_eq!(plugin.seals.load(Ordering::SeqCst), 1, "one seed serves many values");

        // Another process, which has the plugin but not the seed.
        let again = Kms::new("test", socket.clone(), Duration::from_secs(60)).unwrap();
        assert_eq!(again.open(b"/a", &sealed).unwrap(), b"hidden");
        assert_eq!(again.open(b"/a", &other).unwrap(), b"hidden");
        assert_eq!(plugin.opens.load(Ordering::SeqCst), 1, "a seed is asked for once");

        // The plugin turns its key: new values use it, old ones are still read and count as stale.
        plugin.key.store(2, Ordering::SeqCst);
        kms.state.lock().asked = None;
        let turned = kms.seal(b"/a", b"hidden").unwrap();
        assert_eq!(EncryptedObject::decode(&turned[..]).unwrap().key_id, "2");
        assert!(kms.is_current(&turned) && !kms.is_current(&sealed));
        assert_eq!(kms.open(b"/a", &sealed).unwrap(), b"hidden");
        assert!(kms.open(b"/a", b"nonsense").is_err());
    }
}
