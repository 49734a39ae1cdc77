//! Where tasks run: on the runtime as they are, or in a [`Scope`], which is a simulated process that can be stopped,
//! continued and killed with all that runs in it.
//!
//! Invariant: outside of a scope every function here is tokio's own.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::TokioRuntime;
use parking_lot::Mutex;
use rand::rngs::{StdRng, ThreadRng};
use rand::{Rng, SeedableRng, TryRng};
use tokio::task::{AbortHandle, JoinError, JoinHandle};

thread_local! {
    static CURRENT: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// Finished tasks are forgotten whenever so many have gathered.
const FORGET_TASKS: usize = 256;

/// A simulated process. All of a simulation runs on one thread.
#[derive(Clone)]
pub struct Scope(Arc<Inner>);

struct Inner {
    run: Mutex<Run>,
    dice: Mutex<StdRng>,
}

#[derive(Default)]
struct Run {
    paused: bool,
    killed: bool,
    /// Tasks that wanted to run while it was paused.
    waiting: Vec<Waker>,
    tasks: Vec<AbortHandle>,
}

/// Restores the scope that was there before.
struct Entered(Option<Scope>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|current| *current.borrow_mut() = self.0.take());
    }
}

impl Scope {
    /// A process with its own dice.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Inner { run: Mutex::default(), dice: Mutex::new(StdRng::seed_from_u64(seed)) }))
    }

    /// The one that the caller runs in.
    pub fn current() -> Option<Self> {
        CURRENT.with(|current| current.borrow().clone())
    }

    /// Whether the caller runs in one.
    pub fn is_simulated() -> bool {
        CURRENT.with(|current| current.borrow().is_some())
    }

    fn enter(&self) -> Entered {
        Entered(CURRENT.with(|current| current.borrow_mut().replace(self.clone())))
    }

    /// Runs a future in it, with all that it spawns.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = tokio::spawn(Scoped { scope: self.clone(), future: Box::pin(future) });
        let mut run = self.0.run.lock();
        if run.killed {
            task.abort();
        } else {
            if run.tasks.len() % FORGET_TASKS == FORGET_TASKS - 1 {
                run.tasks.retain(|task| !task.is_finished());
            }
            run.tasks.push(task.abort_handle());
        }
        task
    }

    /// Nothing in it runs until [`Scope::resume`].
    pub fn pause(&self) {
        self.0.run.lock().paused = true;
    }

    /// Lets it run again.
    pub fn resume(&self) {
        let waiting = {
            let mut run = self.0.run.lock();
            run.paused = false;
            std::mem::take(&mut run.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Nothing in it ever runs again.
    pub fn kill(&self) {
        let tasks = {
            let mut run = self.0.run.lock();
            run.killed = true;
            run.waiting.clear();
            std::mem::take(&mut run.tasks)
        };
        tasks.iter().for_each(AbortHandle::abort);
    }

    /// Whether it was killed.
    pub fn is_killed(&self) -> bool {
        self.0.run.lock().killed
    }

    /// A random number.
    pub fn random(&self) -> u64 {
        self.0.dice.lock().next_u64()
    }
}

struct Scoped<F> {
    scope: Scope,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut run = self.scope.0.run.lock();
            if run.killed {
                return Poll::Pending;
            }
            if run.paused {
                run.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        let _entered = self.scope.enter();
        self.future.as_mut().poll(context)
    }
}

/// Spawns a task, in the caller's scope if it has one.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match Scope::current() {
        None => tokio::spawn(future),
        Some(scope) => scope.spawn(future),
    }
}

/// Runs what may block beside the tasks; at once in a scope, whose world has one thread.
pub async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if Scope::is_simulated() { Ok(run()) } else { tokio::task::spawn_blocking(run).await }
}

/// The dice of the caller's scope, or of its thread.
pub fn dice() -> Dice {
    Scope::current().map_or_else(|| Dice::Thread(rand::rng()), Dice::Scope)
}

/// The dice of the caller's scope, or of its thread.
pub enum Dice {
    /// The thread's.
    Thread(ThreadRng),
    /// The scope's.
    Scope(Scope),
}

impl TryRng for Dice {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        match self {
            Self::Thread(dice) => dice.try_next_u32(),
            Self::Scope(scope) => scope.0.dice.lock().try_next_u32(),
        }
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        match self {
            Self::Thread(dice) => dice.try_next_u64(),
            Self::Scope(scope) => scope.0.dice.lock().try_next_u64(),
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        match self {
            Self::Thread(dice) => dice.try_fill_bytes(bytes),
            Self::Scope(scope) => scope.0.dice.lock().try_fill_bytes(bytes),
        }
    }
}

/// Tokio for openraft, with its tasks in the scope of whoever spawns them.
#[derive(Debug)]
pub struct Executor(TokioRuntime);

impl AsyncRuntime for Executor {
    type JoinError = JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = Dice;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> Dice {
        dice()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        self.0.block_on(future)
    }

    async fn spawn_blocking<F, T>(run: F) -> Result<T, io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        blocking(run).await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn turns() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_scope_is_paused_and_killed_with_all_it_spawned() {
        let scope = Scope::new(1);
        let (ticks, mut ticked) = tokio::sync::mpsc::channel(1024);
        let (gone, mut dropped) = tokio::sync::mpsc::channel::<()>(1);
        scope.spawn(async move {
            spawn(async move {
                let _gone = gone;
                loop {
                    let _ = ticks.try_send(Scope::is_simulated());
                    tokio::task::yield_now().await;
                }
            });
        });
        turns().await;
        assert!(ticked.try_recv().unwrap() && !Scope::is_simulated());
        scope.pause();
        turns().await;
        while ticked.try_recv().is_ok() {}
        turns().await;
        assert!(ticked.try_recv().is_err(), "it is paused");
        scope.resume();
        turns().await;
        assert!(ticked.try_recv().is_ok());
        scope.kill();
        assert_eq!(dropped.recv().await, None, "what it held is dropped");
        assert!(scope.is_killed() && scope.spawn(async {}).await.is_err());
    }
}
