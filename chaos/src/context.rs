//! What every client of a run shares: the members, the clock, the seed, and a record of when operations succeeded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::etcd::{Answer, Client, Failure};
use crate::history::{Operation, Outcome};

/// Operations of one workload that are noted for plots; further ones are checked but not drawn.
const MAX_SAMPLES: usize = 2_000_000;
/// Pause after an operation without an answer.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// One operation as the plots need it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// When it began, nanoseconds since the run began.
    pub start: u64,
    /// How long it took, nanoseconds.
    pub took: u64,
    /// Whether it was answered.
    pub ok: bool,
    /// Whether it was a write.
    pub write: bool,
}

/// Makes one client for each member.
pub type Connect = Box<dyn Fn() -> anyhow::Result<Vec<Client>> + Send + Sync>;

/// What all clients of a run share.
pub struct Shared {
    /// Makes one client for each member.
    connect: Connect,
    /// The run's seed.
    pub seed: u64,
    /// How much longer than usual clients pause between operations.
    pub pace: f64,
    /// Whether what is tested is to keep what only we promise.
    pub ours: bool,
    /// When clocks of members jumped ahead, and by how much, nanoseconds.
    jumps: Mutex<Vec<(u64, u64)>>,
    /// The servers of a cluster, if that is what is tested.
    #[cfg(feature = "api")]
    pub cluster: Option<crate::kube::Cluster>,
    /// Cancelled when clients should end.
    pub stop: CancellationToken,
    began: Instant,
    samples: Mutex<Vec<Sample>>,
    unique: AtomicU64,
}

impl Shared {
    /// For a run that begins now.
    pub fn new(connect: Connect, seed: u64) -> Self {
        Self {
            connect,
            seed,
            pace: 1.0,
            ours: false,
            jumps: Mutex::default(),
            #[cfg(feature = "api")]
            cluster: None,
            stop: CancellationToken::new(),
            began: Instant::now(),
            samples: Mutex::default(),
            unique: AtomicU64::new(1),
        }
    }

    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Notes when clocks of members jumped ahead, and by how much.
    pub fn note_jumps(&self, jumps: Vec<(u64, u64)>) {
        *self.jumps.lock() = jumps;
    }

    /// What was noted so.
    pub fn jumps(&self) -> Vec<(u64, u64)> {
        self.jumps.lock().clone()
    }

    /// What was sampled.
    pub fn samples(&self) -> Vec<Sample> {
        self.samples.lock().clone()
    }

    /// How many members there are, of which `stores` have the etcd API.
    fn places(&self, stores: usize) -> usize {
        #[cfg(feature = "api")]
        let stores = stores.max(self.cluster.as_ref().map_or(0, |cluster| cluster.servers().len()));
        stores.max(1)
    }

    /// A number that no other call of this run gets.
    pub fn unique(&self) -> u64 {
        self.unique.fetch_add(1, Ordering::Relaxed)
    }
}

/// One client: it does one operation at a time, at a member that it leaves when that does not answer.
pub struct Process {
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// Which one it is.
    pub id: u32,
    /// Its own dice.
    pub rng: StdRng,
    clients: Vec<Client>,
    at: usize,
    /// How many members there are.
    places: usize,
}

impl Process {
    /// The `id`th client of a run.
    pub fn new(shared: Arc<Shared>, id: u32) -> anyhow::Result<Self> {
        let clients = (shared.connect)()?;
        let rng = StdRng::seed_from_u64(shared.seed ^ (u64::from(id) << 32));
        let places = shared.places(clients.len());
        Ok(Self { at: id as usize % places, shared, id, rng, clients, places })
    }

    /// Whether it should go on.
    pub fn goes_on(&self) -> bool {
        !self.shared.stop.is_cancelled()
    }

    /// The member it talks to.
    pub fn client(&self) -> Client {
        self.clients[self.at].clone()
    }

    /// The API of the server that it talks to.
    #[cfg(feature = "api")]
    pub fn kube(&self) -> crate::kube::Kube {
        self.kubes()[self.at].clone()
    }

    /// The API of every server.
    #[cfg(feature = "api")]
    pub fn kubes(&self) -> &[crate::kube::Kube] {
        self.shared.cluster.as_ref().map_or(&[], |cluster| cluster.servers())
    }

    /// Which member that is.
    pub fn member(&self) -> usize {
        self.at
    }

    /// Every member, for reads at the end.
    pub fn clients(&self) -> &[Client] {
        &self.clients
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.rng.random_range(0..end)
    }

    /// Pauses between operations for up to `longest`, times the run's pace.
    pub async fn think(&mut self, longest: Duration) {
        self.pause(longest.mul_f64(self.shared.pace)).await;
    }

    /// Pauses for up to `longest`, or until the run ends.
    pub async fn pause(&mut self, longest: Duration) {
        let pause = longest.mul_f64(self.rng.random_range(0.0..1.0));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.shared.stop.cancelled() => {}
        }
    }

    /// Does an operation and notes when it began and ended and what came of it. A read without an answer has failed.
    pub async fn perform<I, T, O>(
        &mut self,
        input: I,
        write: bool,
        call: impl Future<Output = Answer<T>>,
        output: impl FnOnce(&T) -> O,
    ) -> (Operation<I, O>, Option<T>) {
        let start = self.shared.now();
        let answer = call.await;
        let end = self.shared.now();
        let sample = Sample { start, took: end - start, ok: answer.is_ok(), write };
        {
            let mut samples = self.shared.samples.lock();
            if samples.len() < MAX_SAMPLES {
                samples.push(sample);
            }
        }
        let (outcome, answer) = match answer {
            Ok(answer) => (Outcome::Ok(output(&answer)), Some(answer)),
            Err(Failure::Unknown(_)) if write => (Outcome::Unknown, None),
            Err(_) => (Outcome::Failed, None),
        };
        if answer.is_none() {
            self.at = (self.at + 1) % self.places;
            self.pause(AFTER_FAILURE).await;
        }
        (Operation { process: self.id, start, end, input, outcome }, answer)
    }
}
