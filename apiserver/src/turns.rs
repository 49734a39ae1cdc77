//! An HTTP/2 connection in turns: what its watches have to say at one moment leaves together, in few TLS records and writes.
//!
//! h2 flushes after each frame, and its streams are tasks of their own: an event for sixty watches of one connection would be
//! sixty wake-ups, records and writes. Here the streams that last are part of the connection's task, and what a turn of
//! that task writes is gathered until its end. Nothing waits for more to come: a turn ends when nothing is left to do.
//! Why so: docs/decisions/0015-turns-of-a-connection.md

use std::cell::Cell;
use std::error::Error;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::task::{Context, Poll, Wake, Waker, ready};

use futures::future::{BoxFuture, CatchUnwind};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use hyper::rt::Executor;
use keelson_store::wake;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

/// So much is gathered before it is written, bytes: two TLS records.
const GATHERED_BYTES: usize = 32 << 10;
/// What is at least as long is not copied to gather it, bytes: half of a TLS record.
const LONG_BYTES: usize = 8 << 10;
/// Room for the first that is gathered in a turn, bytes.
const ROOM_BYTES: usize = 2 << 10;

/// What a connection writes in a turn.
struct Gathered<S> {
    stream: S,
    waiting: Vec<u8>,
    /// So much of `waiting` is written.
    written: usize,
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Writes what waits.
    fn poll_leave(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.waiting.len() {
            let wrote = ready!(Pin::new(&mut self.stream).poll_write(context, &self.waiting[self.written..]))?;
            if wrote == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += wrote;
        }
        // Thousands of connections rest: none keeps the room.
        (self.waiting, self.written) = (Vec::new(), 0);
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Gathers `bytes`, or writes them if they are many.
    fn poll_add(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.len() >= LONG_BYTES || self.waiting.len() + bytes.len() > GATHERED_BYTES {
            ready!(self.poll_leave(context))?;
        }
        if bytes.len() >= LONG_BYTES {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        }
        if self.waiting.capacity() == 0 {
            self.waiting.reserve(ROOM_BYTES);
        }
        self.waiting.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }
}

/// A connection's bytes, as hyper has them. The lock is never waited for: both who have it are one task.
pub struct Gathering<S>(Arc<Mutex<Gathered<S>>>);

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().poll_add(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gathered = self.0.lock();
        let mut taken = 0;
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            match gathered.poll_add(context, piece)? {
                Poll::Ready(count) if count == piece.len() => taken += count,
                Poll::Ready(count) => return Poll::Ready(Ok(taken + count)),
                Poll::Pending if taken == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Put off until the end of the turn.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.lock();
        ready!(gathered.poll_leave(context))?;
        Pin::new(&mut gathered.stream).poll_shutdown(context)
    }
}

thread_local! {
    /// Whether the stream that is polled on this thread will last.
    static LASTS: Cell<bool> = const { Cell::new(false) };
}

/// Says that the stream whose answer is being made will last: from now on it is part of its connection's task.
pub fn lasts() {
    LASTS.set(true);
}

/// A stream that lasts. If it panics, it alone ends.
type Lasting = CatchUnwind<AssertUnwindSafe<BoxFuture<'static, ()>>>;

/// Runs the streams of a connection: each as a task, until it turns out that it lasts.
#[derive(Clone)]
pub struct Streams(mpsc::UnboundedSender<Lasting>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let lasting = self.0.clone();
        tokio::spawn(async move {
            let mut stream = stream.boxed();
            let lasts = poll_fn(|context| {
                LASTS.set(false);
                match stream.poll_unpin(context) {
                    Poll::Ready(()) => Poll::Ready(false),
                    Poll::Pending if LASTS.get() => Poll::Ready(true),
                    Poll::Pending => Poll::Pending,
                }
            });
            if lasts.await {
                // If the connection has ended, so has the stream.
                let _ = lasting.send(AssertUnwindSafe(stream).catch_unwind());
            }
        });
    }
}

/// What wakes a connection's task for its streams.
///
/// A stream that sends wakes itself, for h2 tells it then that it may send more, and after two such streams
/// `FuturesUnordered` lets others run: a turn would be over after two watches, with a record and a write for them. So what
/// is woken while streams are polled is polled in the same turn.
struct Bell {
    state: AtomicU8,
    /// Woken after all streams that are woken with one.
    task: Waker,
}

/// Nothing is to be polled.
const SILENT: u8 = 0;
/// Streams are being polled.
const POLLING: u8 = 1;
/// There is something to poll, and the task knows it.
const RUNG: u8 = 2;

impl Bell {
    fn new(task: &Waker) -> Arc<Self> {
        Arc::new(Self { state: AtomicU8::new(SILENT), task: wake::last(task) })
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(RUNG, AcqRel) == SILENT {
            self.task.wake_by_ref();
        }
    }
}

/// Streams of a connection that are part of its task.
struct Together {
    streams: FuturesUnordered<Lasting>,
    /// With the waker of the task that it wakes.
    bell: Option<(Waker, Arc<Bell>)>,
}

impl Together {
    /// Polls those that were woken, each about once.
    fn poll(&mut self, task: &Waker) {
        let bell = match self.bell.take() {
            Some((of, bell)) if of.will_wake(task) => bell,
            _ => Bell::new(task),
        };
        let waker = Waker::from(bell.clone());
        // At least two are polled each time, if so many are to be.
        let done = (0..=self.streams.len() / 2).any(|_| {
            // What was woken before this is found, what is woken later rings.
            bell.state.swap(POLLING, AcqRel);
            while let Poll::Ready(Some(_)) = self.streams.poll_next_unpin(&mut Context::from_waker(&waker)) {}
            bell.state.compare_exchange(POLLING, SILENT, AcqRel, Relaxed).is_ok()
        });
        if !done {
            // It stays rung.
            task.wake_by_ref();
        }
        self.bell = Some((task.clone(), bell));
    }
}

/// A connection with its streams that last. It ends when the connection does.
pub struct Turns<C, S> {
    connection: Pin<Box<C>>,
    gathered: Arc<Mutex<Gathered<S>>>,
    coming: mpsc::UnboundedReceiver<Lasting>,
    lasting: Together,
}

impl<C, S> Turns<C, S> {
    /// Of a connection over `stream`, made of what hyper needs for it.
    pub fn new(stream: S, connection: impl FnOnce(Streams, Gathering<S>) -> C) -> Self {
        let gathered = Arc::new(Mutex::new(Gathered { stream, waiting: Vec::new(), written: 0 }));
        // Not bounded: no more come than the connection has streams.
        let (streams, coming) = mpsc::unbounded_channel();
        let connection = Box::pin(connection(Streams(streams), Gathering(gathered.clone())));
        let lasting = Together { streams: FuturesUnordered::new(), bell: None };
        Self { connection, gathered, coming, lasting }
    }

    /// The connection.
    pub fn connection(&mut self) -> Pin<&mut C> {
        self.connection.as_mut()
    }
}

impl<C: Future<Output = hyper::Result<()>>, S: AsyncWrite + Unpin> Future for Turns<C, S> {
    type Output = Result<(), Box<dyn Error + Send + Sync>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        while let Poll::Ready(Some(stream)) = this.coming.poll_recv(context) {
            this.lasting.streams.push(stream);
        }
        // What they say the connection writes below; one that is done says nothing more.
        this.lasting.poll(context.waker());
        let ended = this.connection.as_mut().poll(context).map_err(Into::into);
        let left = this.gathered.lock().poll_leave(context);
        match (ended, left) {
            (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error.into())),
            (ended, _) => ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::SeqCst;

    use futures::task::{ArcWake, noop_waker, waker};
    use proptest::prelude::*;

    use super::*;

    /// Takes as many bytes at a time as it is told to; nothing for a 0. Then everything.
    #[derive(Default)]
    struct Socket {
        takes: Vec<usize>,
        writes: Vec<Vec<u8>>,
        flushes: usize,
    }

    impl AsyncWrite for Socket {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let count = self.takes.pop().unwrap_or(bytes.len()).min(bytes.len());
            if count == 0 {
                return Poll::Pending;
            }
            self.writes.push(bytes[..count].to_vec());
            Poll::Ready(Ok(count))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A connection that writes and flushes each piece, as far as it can, and then waits.
    struct Frames {
        to: Gathering<Socket>,
        pieces: Vec<Vec<u8>>,
        most: usize,
    }

    impl Future for Frames {
        type Output = hyper::Result<()>;

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
            let this = &mut *self;
            while let Some(piece) = this.pieces.first_mut() {
                let (head, rest) = piece.split_at(piece.len().min(9));
                let slices = [IoSlice::new(head), IoSlice::new(rest)];
                let polled = Pin::new(&mut this.to).poll_write_vectored(context, &slices);
                this.most = this.most.max(this.to.0.lock().waiting.len());
                let Poll::Ready(written) = polled else { return Poll::Pending };
                piece.drain(..written.unwrap());
                if piece.is_empty() {
                    this.pieces.remove(0);
                    assert!(Pin::new(&mut this.to).poll_flush(context).is_ready());
                }
            }
            Poll::Pending
        }
    }

    fn turns(pieces: Vec<Vec<u8>>, takes: Vec<usize>) -> Turns<Frames, Socket> {
        let socket = Socket { takes, ..Socket::default() };
        Turns::new(socket, |_, to| Frames { to, pieces, most: 0 })
    }

    fn turn(turns: &mut Turns<Frames, Socket>) {
        assert!(turns.poll_unpin(&mut Context::from_waker(&noop_waker())).is_pending());
    }

    #[test]
    fn a_turn_is_one_write_and_waits_for_nothing() {
        let frames: Vec<Vec<u8>> = (0..20).map(|index| vec![index; 1_300]).collect();
        let mut many = turns(frames.clone(), Vec::new());
        turn(&mut many);
        assert_eq!(many.gathered.lock().stream.writes, [frames.concat()]);
        // A lone answer has left, and is flushed, when its turn is over; nothing is kept.
        let mut alone = turns(vec![vec![1; 30]], Vec::new());
        turn(&mut alone);
        let gathered = alone.gathered.lock();
        assert_eq!((&gathered.stream.writes, gathered.stream.flushes), (&vec![vec![1; 30]], 1));
        assert_eq!(gathered.waiting.capacity(), 0);
    }

    #[test]
    fn long_pieces_are_not_copied() {
        let pieces = vec![vec![1; 100], vec![2; LONG_BYTES + 9], vec![3; 100]];
        let mut turns = turns(pieces.clone(), Vec::new());
        turn(&mut turns);
        let bytes = pieces.concat();
        let (head, rest) = bytes.split_at(109);
        let (long, last) = rest.split_at(LONG_BYTES);
        assert_eq!(turns.gathered.lock().stream.writes, [head, long, last]);
    }

    #[test]
    fn an_error_ends_the_connection() {
        struct Broken;
        impl AsyncWrite for Broken {
            fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }
        let mut turns = Turns::new(Broken, |_, mut to| {
            poll_fn(move |context| {
                let _ = Pin::new(&mut to).poll_write(context, b"frame");
                Poll::<hyper::Result<()>>::Pending
            })
        });
        assert!(matches!(turns.poll_unpin(&mut Context::from_waker(&noop_waker())), Poll::Ready(Err(_))));
    }

    proptest! {
        #[test]
        fn everything_comes_in_order_and_little_is_kept(
            lengths in prop::collection::vec(prop_oneof![1_usize..2_000, 7_000..40_000_usize], 0..60),
            takes in prop::collection::vec(prop_oneof![Just(0_usize), 1..30_000_usize], 0..80),
        ) {
            let pieces: Vec<Vec<u8>> =
                lengths.iter().enumerate().map(|(index, length)| vec![index as u8; *length]).collect();
            let (expected, refusals) = (pieces.concat(), takes.len());
            let mut turns = turns(pieces, takes);
            for _ in 0..=refusals {
                turn(&mut turns);
            }
            prop_assert_eq!(turns.gathered.lock().stream.writes.concat(), expected);
            prop_assert!(turns.connection().most <= GATHERED_BYTES);
        }
    }

    /// Counts, or remembers what is counted so far.
    struct Counting(Arc<AtomicUsize>, Option<Arc<AtomicUsize>>);

    impl ArcWake for Counting {
        fn wake_by_ref(this: &Arc<Self>) {
            match &this.1 {
                None => this.0.fetch_add(1, SeqCst),
                Some(seen) => seen.swap(this.0.load(SeqCst), SeqCst),
            };
        }
    }

    fn with_streams() -> (Turns<Frames, Socket>, Streams) {
        let mut streams = None;
        let turns = Turns::new(Socket::default(), |lasting, to| {
            streams = Some(lasting);
            Frames { to, pieces: Vec::new(), most: 0 }
        });
        (turns, streams.unwrap())
    }

    #[test]
    fn what_wakes_all_streams_wakes_their_task_once_and_after_them() {
        let (mut turns, streams) = with_streams();
        let wakers = Arc::new(Mutex::new(Vec::new()));
        let polled = Arc::new(AtomicUsize::new(0));
        for _ in 0..60 {
            let (wakers, polled) = (wakers.clone(), polled.clone());
            let stream = poll_fn(move |context| {
                polled.fetch_add(1, SeqCst);
                wakers.lock().push(context.waker().clone());
                Poll::<()>::Pending
            });
            streams.0.send(AssertUnwindSafe(stream.boxed()).catch_unwind()).ok().unwrap();
        }
        let (woken, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(99)));
        let task = waker(Arc::new(Counting(woken.clone(), None)));
        for turn in 1..4 {
            assert!(turns.poll_unpin(&mut Context::from_waker(&task)).is_pending());
            assert_eq!(polled.load(SeqCst), 60 * turn);
            let mut waiting = std::mem::take(&mut *wakers.lock());
            waiting.push(waker(Arc::new(Counting(woken.clone(), Some(seen.clone())))));
            woken.store(0, SeqCst);
            wake::wake_all(waiting);
            assert_eq!((seen.load(SeqCst), woken.load(SeqCst)), (0, 1));
        }
    }

    #[test]
    fn streams_that_wake_themselves_are_all_part_of_a_turn() {
        let (mut turns, streams) = with_streams();
        let polled = Arc::new(Mutex::new(Vec::new()));
        for index in 0..60 {
            let polled = polled.clone();
            let stream = poll_fn(move |context| {
                polled.lock().push(index);
                context.waker().wake_by_ref();
                Poll::<()>::Pending
            });
            streams.0.send(AssertUnwindSafe(stream.boxed()).catch_unwind()).ok().unwrap();
        }
        let woken = Arc::new(AtomicUsize::new(0));
        let task = waker(Arc::new(Counting(woken.clone(), None)));
        for turn in 1..4 {
            assert!(turns.poll_unpin(&mut Context::from_waker(&task)).is_pending());
            let polled = std::mem::take(&mut *polled.lock());
            assert!((0..60).all(|index| polled.contains(&index)) && polled.len() < 70, "{polled:?}");
            // Others run before they are polled again.
            assert_eq!(woken.load(SeqCst), turn);
        }
    }

    #[tokio::test]
    async fn a_stream_moves_when_it_lasts_and_ends_alone() {
        let (send, mut coming) = mpsc::unbounded_channel();
        let streams = Streams(send);
        let (done, mut told) = mpsc::unbounded_channel();
        let say = done.clone();
        streams.execute(async move {
            tokio::task::yield_now().await;
            say.send("short").unwrap();
        });
        assert_eq!(told.recv().await, Some("short"));
        streams.execute(async move {
            tokio::task::yield_now().await;
            lasts();
            tokio::task::yield_now().await;
            done.send("lasting").unwrap();
            panic!("the stream's own");
        });
        let lasting = coming.recv().await.unwrap();
        assert!(told.try_recv().is_err(), "it is not polled where it came from");
        assert!(lasting.await.is_err());
        assert_eq!(told.recv().await, Some("lasting"));
        drop(streams);
        assert!(coming.recv().await.is_none(), "the short one was not moved");
    }
}
