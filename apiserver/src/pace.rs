//! How often a watcher is written to: what comes fast leaves in groups.
//!
//! A write to a connection costs many times what an event in it does. So time is divided into periods, the same for all
//! watchers, and what a watch has to say after it was written in a period, and had nothing more, waits for the next one: the
//! first event after a pause leaves at once, and those of a burst share frames, TLS records and writes. One timer for all
//! watchers runs while somebody waits. Why so: docs/decisions/0016-a-watchers-pace.md

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use keelson_client::Body;
use keelson_store::wake::wake_all;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::seldom::Seldom;

/// Length of a period, and so the most that an event waits for others.
const PERIOD_MICROSECONDS: u64 = 5_000;

/// The number of a period, from 1 on.
type Period = u64;

/// What ends the periods of all watchers of a server.
pub struct Pace {
    started: Instant,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// For the end of which period; rising.
    wakers: Vec<(Period, Waker)>,
    /// Whether a task waits for the end of the period.
    awaited: bool,
}

impl Pace {
    /// Begins with the first period.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), waiting: Mutex::default() })
    }

    fn period(&self) -> Period {
        self.started.elapsed().as_micros() as u64 / PERIOD_MICROSECONDS + 1
    }

    fn end(&self, period: Period) -> Instant {
        self.started + Duration::from_micros(period * PERIOD_MICROSECONDS)
    }

    /// Wakes `waker` at the end of a period, if it has not ended.
    fn wait(self: &Arc<Self>, period: Period, waker: impl FnOnce() -> Waker) -> bool {
        let mut waiting = self.waiting.lock();
        // Looked at under the lock: who is woken at the end of a period is in the list before.
        if self.period() > period {
            return false;
        }
        waiting.wakers.push((period, waker()));
        if !std::mem::replace(&mut waiting.awaited, true) {
            tokio::spawn(self.clone().wake());
        }
        true
    }

    /// Wakes who waits at the end of each period, until nobody does.
    async fn wake(self: Arc<Self>) {
        loop {
            tokio::time::sleep_until(self.end(self.period())).await;
            let over = {
                let mut waiting = self.waiting.lock();
                if waiting.wakers.is_empty() {
                    waiting.awaited = false;
                    return;
                }
                // It may be late, and others wait for the end of the next one already.
                let now = self.period();
                let over = waiting.wakers.partition_point(|(period, _)| *period < now);
                let later = waiting.wakers.split_off(over);
                std::mem::replace(&mut waiting.wakers, later)
            };
            wake_all(over.into_iter().map(|(_, waker)| waker).collect());
        }
    }
}

/// A watch's answer, at a server's pace.
pub fn paced(response: Response<Body>, pace: &Arc<Pace>) -> Response<Body> {
    let paced = |body| Paced { body: Seldom::new(body), pace: pace.clone(), written: 0, rests: false, waits: 0 };
    response.map(|body| paced(body).boxed_unsync())
}

struct Paced {
    body: Seldom<Body>,
    pace: Arc<Pace>,
    /// When something was written last.
    written: Period,
    /// Nothing more was to be said then.
    rests: bool,
    /// The period whose end is waited for, or was.
    waits: Period,
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if !this.body.is_rung(context) {
            return Poll::Pending;
        }
        let now = this.pace.period();
        if this.rests && this.written == now {
            // Who is not polled meanwhile is not woken by each event.
            if this.waits == now || this.pace.wait(now, || this.body.waker()) {
                this.waits = now;
                return Poll::Pending;
            }
        }
        let polled = this.body.poll(|body, context| Pin::new(body).poll_frame(context));
        match polled {
            Poll::Ready(_) => (this.written, this.rests) = (now, false),
            // One who only lets others run has more: it is not put off.
            Poll::Pending => this.rests = !this.body.is_rung(context),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.get().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.get().size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
    use futures::{FutureExt, StreamExt};
    use proptest::prelude::*;

    use super::*;

    /// Says all that has come in one frame, and counts how often it is polled.
    struct Events(UnboundedReceiver<u8>, Arc<AtomicUsize>);

    impl http_body::Body for Events {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            let mut all = Vec::new();
            loop {
                match self.0.poll_next_unpin(context) {
                    Poll::Ready(Some(event)) => all.push(event),
                    Poll::Ready(None) if all.is_empty() => return Poll::Ready(None),
                    Poll::Pending if all.is_empty() => return Poll::Pending,
                    _ => return Poll::Ready(Some(Ok(Frame::data(all.into())))),
                }
            }
        }
    }

    /// A watcher that reads on as soon as it has something, as connections do.
    struct Watcher {
        body: Body,
        begun: Instant,
    }

    impl Watcher {
        fn new(pace: &Arc<Pace>) -> (UnboundedSender<u8>, Self, Arc<AtomicUsize>) {
            let (send, events) = unbounded();
            let polled = Arc::new(AtomicUsize::new(0));
            let response = Response::new(Events(events, polled.clone()).boxed_unsync());
            let mut watcher = Self { body: paced(response, pace).into_body(), begun: pace.started };
            assert!(watcher.body.frame().now_or_never().is_none());
            (send, watcher, polled)
        }

        /// What is written, and when, milliseconds from the beginning; `None` at the end.
        async fn next(&mut self) -> Option<(u64, Vec<u8>)> {
            let mut written = self.body.frame().await?.unwrap().into_data().unwrap().to_vec();
            while let Some(Some(more)) = self.body.frame().now_or_never() {
                written.extend(more.unwrap().into_data().unwrap());
            }
            Some((self.begun.elapsed().as_millis() as u64, written))
        }
    }

    async fn until(pace: &Pace, milliseconds: u64) {
        tokio::time::sleep_until(pace.started + Duration::from_millis(milliseconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_leaves_at_once_and_what_comes_fast_together() {
        let pace = Pace::new();
        let (send, mut watcher, polled) = Watcher::new(&pace);
        let say = |events: &[u8]| events.iter().for_each(|event| send.unbounded_send(*event).unwrap());
        until(&pace, 12).await;
        say(&[1]);
        assert_eq!(watcher.next().await, Some((12, vec![1])));
        assert!(!pace.waiting.lock().awaited, "nobody waits, and no timer runs");
        let before = polled.load(Ordering::SeqCst);
        for event in 2..10 {
            say(&[event]);
            assert!(watcher.body.frame().now_or_never().is_none());
        }
        assert_eq!(polled.load(Ordering::SeqCst), before, "who waits is not asked");
        assert_eq!(pace.waiting.lock().wakers.len(), 1);
        assert_eq!(watcher.next().await, Some((15, (2..10).collect())));
        say(&[10]);
        assert_eq!(watcher.next().await, Some((20, vec![10])));
        until(&pace, 26).await;
        assert!(!pace.waiting.lock().awaited);
        say(&[11]);
        assert_eq!(watcher.next().await, Some((26, vec![11])));
        // Others are not concerned.
        let (other, mut others, _) = Watcher::new(&pace);
        say(&[12]);
        other.unbounded_send(7).unwrap();
        assert_eq!(others.next().await, Some((26, vec![7])));
        // The end comes after the last event, and no later.
        drop(send);
        assert_eq!(watcher.next().await, Some((30, vec![12])));
        assert_eq!(watcher.next().await, None);
        assert_eq!(pace.started.elapsed(), Duration::from_millis(30));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_there_already_is_not_put_off() {
        let mut pieces = (0..50_u8).collect::<Vec<_>>().into_iter();
        let mut yields = false;
        // It lets others run between its pieces.
        let stream = futures::stream::poll_fn(move |context| {
            yields = !yields;
            if yields {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(pieces.next().map(|piece| Ok(Frame::data(Bytes::from(vec![piece])))))
        });
        let pace = Pace::new();
        let body = http_body_util::StreamBody::new(stream).boxed_unsync();
        let read = paced(Response::new(body), &pace).into_body().collect().await.unwrap().to_bytes();
        assert_eq!((read.len(), pace.started.elapsed()), (50, Duration::ZERO));
    }

    proptest! {
        #[test]
        fn all_comes_in_order_and_soon_and_seldom(gaps in prop::collection::vec(0..9_000_u64, 1..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let pace = Pace::new();
                let (send, mut watcher, _) = Watcher::new(&pace);
                let (count, began) = (gaps.len(), pace.started);
                let sent = tokio::spawn(async move {
                    let mut sent = Vec::new();
                    for (event, gap) in gaps.into_iter().enumerate() {
                        tokio::time::sleep(Duration::from_micros(gap)).await;
                        sent.push(began.elapsed().as_millis() as u64);
                        send.unbounded_send(event as u8).unwrap();
                    }
                    sent
                });
                let mut written = Vec::new();
                while let Some(next) = watcher.next().await {
                    written.push(next);
                }
                let sent = sent.await.unwrap();
                let came: Vec<(u64, u8)> =
                    written.iter().flat_map(|(at, events)| events.iter().map(|event| (*at, *event))).collect();
                assert!(came.iter().map(|(_, event)| *event).eq((0..count).map(|event| event as u8)));
                let period = PERIOD_MICROSECONDS / 1000;
                assert!(came.iter().zip(&sent).all(|((at, _), sent)| at - sent <= period), "{came:?} {sent:?}");
                assert!(written.windows(2).all(|two| two[0].0 / period < two[1].0 / period), "{written:?}");
            });
        }
    }
}
