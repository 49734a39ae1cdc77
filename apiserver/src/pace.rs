//! How often watchers are written to: what comes fast for many of them leaves in groups.
//!
//! A write to a connection costs many times what an event in it does. So writes to watchers are counted as time that they
//! take. Who was written to a moment ago and has something again waits until that time has passed, together with all
//! others who do: a lone event leaves at once, however many it is for, and the events of a burst for many watchers share
//! frames, TLS records and writes. What is for few watchers never waits. One timer serves all watchers, and runs only
//! while somebody waits. Why so: docs/decisions/0016-a-watchers-pace.md

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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

/// What a write to one watcher counts as, microseconds: with a connection of its own it takes a processor 10 to 28.
const WRITE_MICROSECONDS: u64 = 20;
/// The same where watches share a connection, and so its writes: 4 to 8.
const SHARED_MICROSECONDS: u64 = 5;
/// Less than this is not waited for, microseconds: timers are no more exact.
const SHORTEST_MICROSECONDS: u64 = 1_000;
/// The most that is waited for, microseconds.
const LONGEST_MICROSECONDS: u64 = 20_000;
/// Who was not written to for as long does not wait, microseconds.
const LATELY_MICROSECONDS: u64 = 100_000;

/// The number of a beat, at which those who wait go on.
type Beat = u64;

/// The pace of all watchers of a server.
pub struct Pace {
    started: Instant,
    /// Until when the writes so far take, microseconds from the start.
    busy: AtomicU64,
    beats: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    wakers: Vec<Waker>,
    /// What they will write takes so long, microseconds.
    writes: u64,
    /// Whether a task waits for the beat.
    awaited: bool,
}

impl Pace {
    /// Without anybody who waits.
    pub fn new() -> Arc<Self> {
        let (busy, beats) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { started: Instant::now(), busy, beats, waiting: Mutex::default() })
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// Counts writes that take so long, microseconds.
    fn count(&self, more: u64) {
        let now = self.now();
        let _ = self
            .busy
            .fetch_update(Relaxed, Relaxed, |busy| Some((busy.max(now) + more).min(now + LONGEST_MICROSECONDS)));
    }

    /// How long the writes so far still take, microseconds.
    fn left(&self) -> u64 {
        self.busy.load(Relaxed).saturating_sub(self.now())
    }

    /// Wakes `waker` at the beat after the one that is returned, for a write that takes so long.
    fn wait(self: &Arc<Self>, waker: Waker, write: u64) -> Beat {
        let mut waiting = self.waiting.lock();
        waiting.wakers.push(waker);
        waiting.writes += write;
        if !std::mem::replace(&mut waiting.awaited, true) {
            tokio::spawn(self.clone().beat());
        }
        self.beats.load(Relaxed)
    }

    /// Waits until the time of all writes has passed, those included that come meanwhile, but not for ever.
    async fn calm(&self) {
        let latest = self.now() + LONGEST_MICROSECONDS;
        loop {
            let left = self.left().min(latest.saturating_sub(self.now()));
            if left == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_micros(left)).await;
        }
    }

    /// Beats until nobody waits.
    async fn beat(self: Arc<Self>) {
        loop {
            self.calm().await;
            let (wakers, writes) = {
                let mut waiting = self.waiting.lock();
                if waiting.wakers.is_empty() {
                    waiting.awaited = false;
                    return;
                }
                // With the lock: who is in the list sees it when it is woken, and who comes later has seen it.
                self.beats.fetch_add(1, Relaxed);
                (std::mem::take(&mut waiting.wakers), std::mem::take(&mut waiting.writes))
            };
            // Before they write: those of them who have something again wait for all.
            self.count(writes);
            wake_all(wakers);
        }
    }
}

/// A watch's answer, at a server's pace. `shared`: others have the same connection.
pub fn paced(response: Response<Body>, pace: &Arc<Pace>, shared: bool) -> Response<Body> {
    let (pace, write) = (pace.clone(), if shared { SHARED_MICROSECONDS } else { WRITE_MICROSECONDS });
    let paced = |body| Paced { body: Seldom::new(body), pace, write, said: false, written: None, waits: None };
    response.map(|body| paced(body).boxed_unsync())
}

struct Paced {
    body: Seldom<Body>,
    pace: Arc<Pace>,
    /// What a write takes, microseconds.
    write: u64,
    /// Whether something was said, and more may be.
    said: bool,
    /// When there was nothing more to be said, microseconds from the start.
    written: Option<u64>,
    /// The beat after which it goes on.
    waits: Option<Beat>,
}

impl Paced {
    /// Whether what comes now has to wait.
    fn has_to_wait(&mut self) -> bool {
        if let Some(beat) = self.waits {
            return beat == self.pace.beats.load(Relaxed);
        }
        let lately = |written: u64| self.pace.now() < written + LATELY_MICROSECONDS;
        if !self.written.is_some_and(lately) || self.pace.left() < SHORTEST_MICROSECONDS {
            return false;
        }
        self.waits = Some(self.pace.wait(self.body.waker(), self.write));
        true
    }

    /// Nothing more is to be said for now.
    fn rests(&mut self) {
        let waited = self.waits.take().is_some();
        if std::mem::take(&mut self.said) {
            self.written = Some(self.pace.now());
            // Who waited was counted at the beat.
            if !waited {
                self.pace.count(self.write);
            }
        }
    }
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        // Who waits is not asked, and so not woken by each event.
        if !this.body.is_rung(context) || this.has_to_wait() {
            return Poll::Pending;
        }
        let polled = this.body.poll(|body, context| Pin::new(body).poll_frame(context));
        if polled.is_ready() {
            this.said = true;
        } else if !this.body.is_rung(context) {
            // One who only lets others run has more, which does not wait.
            this.rests();
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
        started: Instant,
    }

    impl Watcher {
        fn new(pace: &Arc<Pace>) -> (UnboundedSender<u8>, Self, Arc<AtomicUsize>) {
            let (send, events) = unbounded();
            let polled = Arc::new(AtomicUsize::new(0));
            let response = Response::new(Events(events, polled.clone()).boxed_unsync());
            let mut watcher = Self { body: paced(response, pace, false).into_body(), started: pace.started };
            assert!(watcher.body.frame().now_or_never().is_none());
            (send, watcher, polled)
        }

        /// What is written, and when, milliseconds from the beginning; `None` at the end.
        async fn next(&mut self) -> Option<(u64, Vec<u8>)> {
            let mut written = self.body.frame().await?.unwrap().into_data().unwrap().to_vec();
            while let Some(Some(more)) = self.body.frame().now_or_never() {
                written.extend(more.unwrap().into_data().unwrap());
            }
            Some((self.started.elapsed().as_millis() as u64, written))
        }
    }

    async fn until(pace: &Pace, milliseconds: u64) {
        tokio::time::sleep_until(pace.started + Duration::from_millis(milliseconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_for_few_never_waits_and_what_comes_fast_for_many_leaves_together() {
        let pace = Pace::new();
        let (send, mut watcher, polled) = Watcher::new(&pace);
        let (other, mut others, _) = Watcher::new(&pace);
        let say = |events: &[u8]| events.iter().for_each(|event| send.unbounded_send(*event).unwrap());
        until(&pace, 12).await;
        for event in 0..20 {
            say(&[event]);
            assert_eq!(watcher.next().await, Some((12, vec![event])));
        }
        // 500 writes in all are 10 ms.
        pace.count(479 * WRITE_MICROSECONDS);
        let before = polled.load(Ordering::SeqCst);
        for event in 20..30 {
            say(&[event]);
            assert!(watcher.body.frame().now_or_never().is_none());
        }
        assert_eq!(polled.load(Ordering::SeqCst), before, "who waits is not asked");
        assert_eq!(pace.waiting.lock().wakers.len(), 1);
        other.unbounded_send(7).unwrap();
        assert_eq!(others.next().await, Some((12, vec![7])), "it was not written to lately");
        assert_eq!(watcher.next().await, Some((22, (20..30).collect())));
        say(&[30]);
        assert_eq!(watcher.next().await, Some((22, vec![30])), "the two writes at the beat are soon over");
        until(&pace, 24).await;
        assert!(!pace.waiting.lock().awaited, "nobody waits, and no timer runs");
        until(&pace, 130).await;
        pace.count(1_000_000);
        say(&[31]);
        assert_eq!(watcher.next().await, Some((130, vec![31])));
        // The end comes after the last event, and no later.
        say(&[32]);
        drop(send);
        assert_eq!(watcher.next().await, Some((150, vec![32])));
        assert_eq!(watcher.next().await, None);
        assert_eq!(pace.started.elapsed(), Duration::from_millis(150));
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
        let read = paced(Response::new(body), &pace, true).into_body().collect().await.unwrap().to_bytes();
        assert_eq!((read.len(), pace.started.elapsed()), (50, Duration::ZERO));
    }

    proptest! {
        #[test]
        fn all_comes_in_order_and_soon(
            steps in prop::collection::vec((0..9_000_u64, prop_oneof![Just(0), 0..50_000_u64]), 1..200),
        ) {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_all().start_paused(true).build().unwrap().block_on(async {
                let pace = Pace::new();
                let (send, mut watcher, _) = Watcher::new(&pace);
                let (count, others) = (steps.len(), pace.clone());
                let sending = tokio::spawn(async move {
                    let mut sent = Vec::new();
                    for (event, (gap, writes)) in steps.into_iter().enumerate() {
                        tokio::time::sleep(Duration::from_micros(gap)).await;
                        others.count(writes);
                        sent.push(others.now() / 1_000);
                        send.unbounded_send(event as u8).unwrap();
                    }
                    sent
                });
                let mut came = Vec::new();
                while let Some((at, events)) = watcher.next().await {
                    came.extend(events.into_iter().map(|event| (at, event)));
                }
                assert!(came.iter().map(|(_, event)| *event).eq((0..count).map(|event| event as u8)));
                let sent = sending.await.unwrap();
                let most = LONGEST_MICROSECONDS / 1_000 + 1;
                assert!(came.iter().zip(&sent).all(|((at, _), sent)| at - sent <= most), "{came:?} {sent:?}");
            });
        }
    }
}
