//! The thread that a replica's Raft runs on: its core, the tasks that replicate to other members, what they ask of this one,
//! and groups of commands on their way into the log.
//!
//! A log entry is handed about fifty times from one of these tasks to the next. On a runtime of many threads each of those may
//! wake a thread; here it is an entry of a queue. What takes long (the disk, large steps of the state machine, snapshots)
//! is done elsewhere, so that heartbeats are not late.
//!
//! Invariant: the thread ends with the runtime that the replica was opened in, or when it was shut down.

use std::future::Future;
use std::io;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::task::Scope;

/// Where the tasks of a replica run.
pub struct Thread(Option<Own>);

struct Own {
    runtime: Handle,
    /// The runtime that it was started in.
    outer: Handle,
    /// Ends the thread when it is dropped; tells when that has happened.
    end: Mutex<Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>>,
}

impl Thread {
    /// Starts one. In a simulation, which has one thread, tasks run where they are.
    pub fn start() -> io::Result<Self> {
        if Scope::is_simulated() {
            return Ok(Self(None));
        }
        let runtime = Builder::new_current_thread().enable_all().thread_name("raft-blocking").build()?;
        let handle = runtime.handle().clone();
        let (alive, wanted) = oneshot::channel::<()>();
        let (gone, ended) = oneshot::channel();
        std::thread::Builder::new().name("raft".into()).spawn(move || {
            // That nobody wants it any more shows as an error.
            let _ = runtime.block_on(wanted);
            runtime.shutdown_background();
            // Whoever waited may have gone.
            let _ = gone.send(());
        })?;
        // A runtime that ends drops its tasks, and with this one what keeps the thread alive.
        let (end, told) = oneshot::channel::<()>();
        drop(tokio::spawn(async move {
            let _alive = alive;
            let _ = told.await;
        }));
        let end = Mutex::new(Some((end, ended)));
        Ok(Self(Some(Own { runtime: handle, outer: Handle::current(), end })))
    }

    /// Runs a task there.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match &self.0 {
            Some(own) => own.runtime.spawn(future),
            None => crate::task::spawn(future),
        }
    }

    /// Runs elsewhere what may take long.
    pub fn spawn_outside<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match &self.0 {
            Some(own) => own.outer.spawn(future),
            None => crate::task::spawn(future),
        }
    }

    /// Ends it; what its tasks held is free when this returns.
    pub async fn end(&self) {
        let end = self.0.as_ref().and_then(|own| own.end.lock().take());
        if let Some((end, ended)) = end {
            drop(end);
            let _ = ended.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::TryRecvError;

    use super::*;

    #[test]
    fn it_ends_with_the_runtime_that_it_was_started_in_or_when_it_is_told() {
        for told in [true, false] {
            let outer = Builder::new_current_thread().enable_all().build().expect("a runtime");
            let (held, gone) = std::sync::mpsc::channel::<()>();
            let thread = outer.block_on(async {
                let thread = Thread::start().expect("a thread");
                let ran = thread.spawn(async { std::thread::current().name().map(str::to_owned) });
                assert_eq!(ran.await.expect("it ran").as_deref(), Some("raft"));
                thread.spawn(async move {
                    let _held = held;
                    std::future::pending::<()>().await;
                });
                thread
            });
            if told {
                outer.block_on(thread.end());
                assert_eq!(gone.try_recv(), Err(TryRecvError::Disconnected), "its tasks are dropped");
            } else {
                drop(outer);
                assert!(gone.recv().is_err(), "its tasks are dropped");
            }
        }
    }
}
