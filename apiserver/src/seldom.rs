//! What seldom happens beside what happens all the time.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::Stream;
use parking_lot::Mutex;

/// What is only polled when it was woken itself. A task that is woken for another reason pays one look at a flag for its
/// timers and for the signal to stop, instead of a poll of each.
pub struct Seldom<S> {
    polled: S,
    bell: Arc<Bell>,
    /// Whom the bell wakes.
    task: Option<Waker>,
}

struct Bell {
    rung: AtomicBool,
    /// It stays when it was woken: the next poll need not bring it again.
    task: Mutex<Option<Waker>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        if let Some(task) = &*self.task.lock() {
            task.wake_by_ref();
        }
    }
}

impl<S> Seldom<S> {
    /// Around what is polled.
    pub fn new(polled: S) -> Self {
        Self { polled, bell: Arc::new(Bell { rung: AtomicBool::new(true), task: Mutex::default() }), task: None }
    }

    /// Whether it was woken since it was polled; if not, the task will be woken when it is.
    pub fn is_rung(&mut self, context: &mut Context<'_>) -> bool {
        // Registered before the flag is looked at: who rings after that wakes the task.
        if self.task.as_ref().is_none_or(|task| !task.will_wake(context.waker())) {
            *self.bell.task.lock() = Some(context.waker().clone());
            self.task = Some(context.waker().clone());
        }
        self.bell.rung.load(Ordering::Acquire)
    }

    /// Wakes it, and with it the task.
    pub fn waker(&self) -> Waker {
        self.bell.clone().into()
    }

    /// What is polled.
    pub fn get(&self) -> &S {
        &self.polled
    }

    /// Polls it, whether it was woken or not.
    pub fn poll<T>(&mut self, poll: impl FnOnce(&mut S, &mut Context<'_>) -> Poll<T>) -> Poll<T> {
        // Taken back before it is looked at, and no later than that for all processors: who rings meanwhile is seen here
        // or rings again.
        self.bell.rung.swap(false, Ordering::AcqRel);
        let waker = self.waker();
        let polled = poll(&mut self.polled, &mut Context::from_waker(&waker));
        if polled.is_ready() {
            // It may have more, and was not asked to wake anybody for that.
            self.bell.rung.store(true, Ordering::Release);
        }
        polled
    }
}

impl<S: Stream + Unpin> Stream for Seldom<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if !self.is_rung(context) {
            return Poll::Pending;
        }
        self.poll(|stream, context| Pin::new(stream).poll_next(context))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::StreamExt;
    use futures::channel::mpsc;
    use futures::task::noop_waker;

    use super::*;

    /// Counts how often it is polled.
    struct Counted<S>(S, Arc<AtomicUsize>);

    impl<S: Stream + Unpin> Stream for Counted<S> {
        type Item = S::Item;

        fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            self.0.poll_next_unpin(context)
        }
    }

    #[tokio::test]
    async fn nothing_is_missed_and_nothing_is_polled_in_vain() {
        let (send, receive) = mpsc::unbounded();
        let polled = Arc::new(AtomicUsize::new(0));
        let mut seldom = Seldom::new(Counted(receive, polled.clone()));
        for _ in 0..5 {
            assert_eq!(futures::poll!(seldom.next()), Poll::Pending);
        }
        assert_eq!(polled.load(Ordering::SeqCst), 1);
        // Another task looks; the bell is to wake that one from now on.
        let (first, second) = (noop_waker(), futures::task::waker(Arc::new(Other::default())));
        for waker in [&first, &second] {
            assert_eq!(seldom.poll_next_unpin(&mut Context::from_waker(waker)), Poll::Pending);
        }
        send.unbounded_send(1).unwrap();
        send.unbounded_send(2).unwrap();
        assert_eq!((seldom.next().await, seldom.next().await), (Some(1), Some(2)));
        // One task that waits is woken each time, not only the first.
        let (tell, mut told) = mpsc::unbounded();
        let waiting = tokio::spawn(async move {
            while let Some(item) = seldom.next().await {
                tell.unbounded_send(item).unwrap();
            }
        });
        for item in 3..9 {
            tokio::task::yield_now().await;
            send.unbounded_send(item).unwrap();
            assert_eq!(told.next().await, Some(item));
        }
        drop(send);
        waiting.await.unwrap();
    }

    #[derive(Default)]
    struct Other(AtomicUsize);

    impl futures::task::ArcWake for Other {
        fn wake_by_ref(this: &Arc<Self>) {
            this.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}
