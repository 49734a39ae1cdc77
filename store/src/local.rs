//! A [`Kv`] of one member: the state machine, one writer thread that commits groups with one sync, and one thread
//! that revokes expired leases.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use parking_lot::Mutex;

use crate::limits::{LOCAL_BATCH_BYTES, LOCAL_BATCH_COMMANDS, LOCAL_QUEUE_BYTES, LOCAL_QUEUE_REQUESTS};
use crate::{
    Applied, Clock, Command, Entry, Fatal, Guards, Kv, KvError, KvStatus, LeaseClock, LeaseId, LeaseStatus,
    MonotonicClock, Options, RangeRequest, RangeResponse, Revision, SettingsChange, StateMachine, Txn, TxnResponse,
    View, Watch, WatchRequest,
};

const LEASE_TICK: Duration = Duration::from_millis(500);

type Answer = Result<Applied, KvError>;

struct Request {
    command: Command,
    /// The command's share of the queue's bytes.
    bytes: usize,
    answer: Option<oneshot::Sender<Answer>>,
}

/// A single-member store. Every acknowledged write is synced to RocksDB's log.
pub struct LocalKv {
    machine: Arc<StateMachine>,
    leases: Arc<LeaseClock>,
    /// Held from a look at the leases' clock until what follows from it is queued.
    checkpointing: Arc<Mutex<()>>,
    requests: Option<SyncSender<Request>>,
    queued_bytes: Arc<AtomicUsize>,
    stop_ticking: Option<SyncSender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl LocalKv {
    /// Opens or creates the store in `dir`, on the machine's clock.
    pub fn open(dir: &Path) -> Result<Self, Fatal> {
        Self::open_with(dir, Options::default(), Arc::new(MonotonicClock::default()))
    }

    /// Opens or creates the store in `dir`. `options.wal` is always on here.
    pub fn open_with(dir: &Path, options: Options, clock: Arc<dyn Clock>) -> Result<Self, Fatal> {
        let machine = Arc::new(StateMachine::open(dir, Options { wal: true, ..options })?);
        let leases = Arc::new(LeaseClock::new(clock));
        leases.lead(&machine.view(), 0);
        let (requests, received) = sync_channel(LOCAL_QUEUE_REQUESTS);
        let (stop_ticking, stopped) = sync_channel(1);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let writer = spawn("store-write", {
            let (machine, queued_bytes) = (machine.clone(), queued_bytes.clone());
            move || write(&machine, &received, &queued_bytes)
        })?;
        let checkpointing = Arc::new(Mutex::new(()));
        let ticker = spawn("store-leases", {
            let (machine, leases, requests) = (machine.clone(), leases.clone(), requests.clone());
            let order = checkpointing.clone();
            move || {
                while stopped.recv_timeout(LEASE_TICK) == Err(RecvTimeoutError::Timeout) {
                    let _order = order.lock();
                    tick(&machine, &leases, &requests);
                }
            }
        })?;
        let (requests, stop_ticking, threads) = (Some(requests), Some(stop_ticking), vec![ticker, writer]);
        Ok(Self { machine, leases, checkpointing, requests, queued_bytes, stop_ticking, threads })
    }

    /// The state machine underneath.
    pub fn machine(&self) -> &Arc<StateMachine> {
        &self.machine
    }

    fn submit(&self, command: Command) -> BoxFuture<'_, Answer> {
        let (answer, answered) = oneshot::channel();
        let sent = self.enqueue(command, answer);
        async move {
            sent?;
            answered.await.map_err(|_| stopped())?
        }
        .boxed()
    }

    fn enqueue(&self, command: Command, answer: oneshot::Sender<Answer>) -> Result<(), KvError> {
        let Some(requests) = &self.requests else { return Err(stopped()) };
        let bytes = command.size_bytes();
        let release = || self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) > LOCAL_QUEUE_BYTES {
            release();
            return Err(KvError::Overloaded);
        }
        requests.try_send(Request { command, bytes, answer: Some(answer) }).map_err(|error| {
            release();
            match error {
                TrySendError::Full(_) => KvError::Overloaded,
                TrySendError::Disconnected(_) => stopped(),
            }
        })
    }

    fn submit_unit(&self, command: Command) -> BoxFuture<'_, Result<(), KvError>> {
        let answer = self.submit(command);
        async move { answer.await.map(|_| ()) }.boxed()
    }
}

impl Drop for LocalKv {
    fn drop(&mut self) {
        self.stop_ticking = None;
        self.requests = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.machine.stop("the store is closed");
    }
}

fn stopped() -> KvError {
    KvError::Stopped("the store's writer has stopped".into())
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Fatal> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map_err(|error| Fatal::Io(format!("cannot start thread {name}: {error}")))
}

/// The writer: takes what has queued up, applies it as one batch, answers.
fn write(machine: &StateMachine, received: &Receiver<Request>, queued_bytes: &AtomicUsize) {
    while let Ok(first) = received.recv() {
        let first_index = machine.applied().0 + 1;
        let (mut answers, mut entries, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut next = Some(first);
        while let Some(request) = next {
            queued_bytes.fetch_sub(request.bytes, Ordering::Relaxed);
            bytes += request.bytes;
            let index = first_index + entries.len() as u64;
            answers.push(request.answer);
            entries.push(Entry { index, meta: Bytes::new(), commands: vec![Arc::new(request.command)] });
            let full = entries.len() >= LOCAL_BATCH_COMMANDS || bytes >= LOCAL_BATCH_BYTES;
            next = if full { None } else { received.try_recv().ok() };
        }
        match machine.apply(&entries) {
            Ok(results) => answers.into_iter().zip(results).for_each(|(answer, result)| reply(answer, result)),
            Err(fatal) => answers.into_iter().for_each(|answer| reply(answer, Err(fatal.clone().into()))),
        }
    }
}

fn reply(answer: Option<oneshot::Sender<Answer>>, result: Answer) {
    if let Some(answer) = answer {
        // Whoever asked may have gone.
        let _ = answer.send(result);
    }
}

/// Revokes expired leases and records the remaining time of long ones.
fn tick(machine: &StateMachine, leases: &LeaseClock, requests: &SyncSender<Request>) {
    let due = leases.tick(&machine.view());
    let mut commands: Vec<_> = due.expired.into_iter().map(|id| Command::LeaseRevoke { id }).collect();
    if !due.checkpoints.is_empty() {
        commands.push(Command::LeaseCheckpoint(due.checkpoints));
    }
    for command in commands {
        // When the queue is full a later tick tries again.
        let _ = requests.try_send(Request { command, bytes: 0, answer: None });
    }
}

impl Kv for LocalKv {
    fn view(&self) -> View {
        self.machine.view()
    }

    fn barrier(&self) -> BoxFuture<'_, Result<Revision, KvError>> {
        futures::future::ready(Ok(self.machine.view().revision())).boxed()
    }

    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, KvError> {
        self.machine.view().query(request)
    }

    fn txn_if(&self, guards: Guards, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, KvError>> {
        let answer = match crate::check(&txn) {
            Ok(()) if guards.is_empty() => self.submit(Command::Txn(txn)),
            Ok(()) => self.submit(Command::TxnIf(guards, txn)),
            Err(error) => futures::future::ready(Err(error)).boxed(),
        };
        async move {
            match answer.await? {
                Applied::Txn(response) => Ok(response),
                Applied::Done(_) => Err(KvError::Stopped("a transaction got another command's answer".into())),
            }
        }
        .boxed()
    }

    fn watch(&self, request: WatchRequest) -> Result<Watch, KvError> {
        self.machine.watch(request)
    }

    fn progress(&self) {
        self.machine.progress();
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), KvError>> {
        self.submit_unit(Command::Compact(revision))
    }

    fn change_settings(&self, change: SettingsChange) -> BoxFuture<'_, Result<(), KvError>> {
        self.submit_unit(Command::Settings(change))
    }

    fn lease_grant(&self, id: LeaseId, ttl: i64) -> BoxFuture<'_, Result<LeaseId, KvError>> {
        async move {
            let chosen = if id == 0 { choose_lease_id(&self.machine.view()) } else { id };
            self.submit(Command::LeaseGrant { id: chosen, ttl }).await?;
            Ok(chosen)
        }
        .boxed()
    }

    fn lease_revoke_if(&self, guards: Guards, id: LeaseId) -> BoxFuture<'_, Result<(), KvError>> {
        let free = guards.is_empty();
        self.submit_unit(if free { Command::LeaseRevoke { id } } else { Command::LeaseRevokeIf(guards, id) })
    }

    fn lease_keep_alive(&self, id: LeaseId) -> BoxFuture<'_, Result<i64, KvError>> {
        let (renewed, taking_back) = {
            let _order = self.checkpointing.lock();
            let renewed = self.leases.renew(&self.machine.view(), id);
            let take_back = renewed.as_ref().is_ok_and(|renewed| renewed.take_back);
            (renewed, take_back.then(|| self.submit_unit(Command::LeaseCheckpoint(vec![(id, 0)]))))
        };
        async move {
            if let Some(taking_back) = taking_back {
                taking_back.await?;
                self.leases.taken_back(id);
            }
            Ok(renewed?.ttl)
        }
        .boxed()
    }

    fn lease_status(&self, id: LeaseId) -> BoxFuture<'_, Result<LeaseStatus, KvError>> {
        futures::future::ready(self.leases.status(&self.machine.view(), id)).boxed()
    }

    fn leases(&self) -> Vec<LeaseId> {
        self.machine.view().leases().map(|lease| lease.id).collect()
    }

    fn status(&self) -> KvStatus {
        let view = self.machine.view();
        KvStatus {
            is_leader: true,
            applied_index: view.applied_index(),
            revision: view.revision(),
            db_size: self.machine.size_bytes(),
            ..KvStatus::default()
        }
    }

    fn leadership(&self) -> Pin<Box<dyn Stream<Item = bool> + Send>> {
        futures::stream::once(futures::future::ready(true)).chain(futures::stream::pending()).boxed()
    }
}

/// A random positive id that is free in `view`, seeded by the operating system.
pub fn choose_lease_id(view: &View) -> LeaseId {
    loop {
        let id = (RandomState::new().build_hasher().finish() >> 1) as LeaseId;
        if id != 0 && view.lease(id).is_none() {
            return id;
        }
    }
}
