//! Runs the requests of a connection in the connection's own task: what they answer at the same time is written at once,
//! and no request is handed from thread to thread.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use hyper::rt::Executor;
use parking_lot::Mutex;

/// Takes the requests that a connection brings. How many there are is bounded by the streams that the connection allows.
#[derive(Clone, Default)]
pub struct Inline(Arc<Mutex<Vec<BoxFuture<'static, ()>>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Inline {
    fn execute(&self, request: F) {
        self.0.lock().push(Box::pin(request));
    }
}

/// A connection with its requests; ends when the connection does.
pub struct Driven<C> {
    connection: Pin<Box<C>>,
    new: Inline,
    requests: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl<C> Driven<C> {
    /// Drives a connection that was given `new` as its executor.
    pub fn new(connection: C, new: Inline) -> Self {
        Self { connection: Box::pin(connection), new, requests: FuturesUnordered::new() }
    }

    /// The connection.
    pub fn connection(&mut self) -> Pin<&mut C> {
        self.connection.as_mut()
    }
}

impl<C: Future> Future for Driven<C> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<C::Output> {
        let driven = &mut *self;
        loop {
            if let Poll::Ready(ended) = driven.connection.as_mut().poll(context) {
                return Poll::Ready(ended);
            }
            driven.requests.extend(driven.new.0.lock().drain(..));
            // A request that has something to write wakes the connection, which is this task: the connection is polled
            // again for all of them together.
            while let Poll::Ready(Some(())) = driven.requests.poll_next_unpin(context) {}
            if driven.new.0.lock().is_empty() {
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn requests_run_beside_the_connection_and_end_with_it() {
        let (new, done) = (Inline::default(), Arc::new(AtomicUsize::new(0)));
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let (first, second) = (done.clone(), done.clone());
        new.execute(async move {
            tokio::task::yield_now().await;
            first.fetch_add(1, Ordering::SeqCst);
            let _ = end.send(());
        });
        new.execute(async move {
            let _held = second;
            std::future::pending::<()>().await;
        });
        let connection = async move { ended.await.is_ok() };
        assert!(Driven::new(connection, new).await);
        assert_eq!((done.load(Ordering::SeqCst), Arc::strong_count(&done)), (1, 1), "what was under way is dropped");
    }
}
