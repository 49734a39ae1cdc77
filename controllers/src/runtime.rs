//! Runs controllers: workers that take keys from a queue, or one loop; a panic restarts the work of that controller only.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use keelson_client::informer::key;
use keelson_client::{Change, Error, Informer, Key, Object, Queue};
use keelson_metrics::Source;
use tokio::task::JoinSet;
use tracing::{debug, error, warn};

use crate::context::Context;
use crate::metrics::{Stats, Table};

/// Pause before a loop that panicked or ended starts again.
const RESTART: Duration = Duration::from_secs(1);

/// What a look at a key says: when to look again though nothing changed.
pub type Outcome = Result<Option<Duration>, Error>;
/// The queue of a controller.
pub type Keys = Arc<Queue<Key>>;

/// One row of the table of controllers.
pub struct Controller {
    /// Its name, as upstream's command line and logs have it.
    pub name: &'static str,
    /// How it works.
    pub work: Work,
}

/// How a controller works.
pub enum Work {
    /// Looks at keys, several at a time.
    Keyed {
        /// How many keys at a time.
        workers: usize,
        /// Subscribes to what makes keys worth a look.
        watch: fn(&Arc<Context>, &Keys),
        /// Looks at one key: decides by its plan, acts, and says when to look again.
        reconcile: fn(Arc<Context>, Key) -> BoxFuture<'static, Outcome>,
    },
    /// Runs until it is told to stop.
    Loop(fn(Arc<Context>) -> BoxFuture<'static, ()>),
}

/// Runs `controllers` until the context's token is cancelled.
pub async fn run(context: Arc<Context>, controllers: &'static [Controller]) {
    let mut tasks = JoinSet::new();
    let mut table = Vec::with_capacity(controllers.len());
    for controller in controllers {
        match controller.work {
            Work::Keyed { workers, watch, reconcile } => {
                let queue = Keys::default();
                let stats = Stats::new(controller.name, Some(queue.clone()));
                table.push(stats.clone());
                watch(&context, &queue);
                for index in 0..workers {
                    let worker = Worker { index, name: controller.name, queue: queue.clone(), stats: stats.clone() };
                    tasks.spawn(worker.run(context.clone(), reconcile));
                }
            }
            Work::Loop(body) => {
                let stats = Stats::new(controller.name, None);
                table.push(stats.clone());
                tasks.spawn(looping(context.clone(), controller.name, stats, body));
            }
        }
    }
    let table: Arc<dyn Source> = Arc::new(Table(table));
    context.config.metrics.add(&table);
    context.stop.cancelled().await;
    tasks.shutdown().await;
}

/// One of those that take keys from a queue.
struct Worker {
    index: usize,
    name: &'static str,
    queue: Keys,
    stats: Arc<Stats>,
}

impl Worker {
    async fn run(self, context: Arc<Context>, reconcile: fn(Arc<Context>, Key) -> BoxFuture<'static, Outcome>) {
        loop {
            let (key, waited) = self.queue.next_timed().await;
            self.stats.begin(self.index, waited);
            // Making the future is the controller's code too.
            let look = AssertUnwindSafe(async { reconcile(context.clone(), key.clone()).await }).catch_unwind();
            self.after(&key, look.await.ok());
            self.stats.end(self.index);
            self.queue.done(&key);
        }
    }

    /// What follows a look; `None`: it panicked.
    fn after(&self, key: &Key, outcome: Option<Outcome>) {
        let (controller, namespace, name) = (self.name, &key.0, &key.1);
        match outcome {
            Some(Ok(again)) => {
                self.queue.forget(key);
                if let Some(pause) = again {
                    self.queue.add_after(key.clone(), pause);
                }
            }
            // The end of the namespace is the end of what was looked at.
            Some(Err(error)) if error.is_namespace_terminating() => self.queue.forget(key),
            Some(Err(error)) => {
                if error.is_conflict() || error.is_not_found() {
                    debug!(controller, namespace, name, %error, "the cache was behind");
                } else {
                    warn!(controller, namespace, name, %error, "failed; trying again");
                }
                self.queue.retry(key.clone());
            }
            None => {
                error!(controller, namespace, name, "panicked; trying again");
                self.stats.panicked();
                self.queue.retry(key.clone());
            }
        }
    }
}

async fn looping(
    context: Arc<Context>,
    name: &'static str,
    stats: Arc<Stats>,
    body: fn(Arc<Context>) -> BoxFuture<'static, ()>,
) {
    while !context.stop.is_cancelled() {
        if AssertUnwindSafe(async { body(context.clone()).await }).catch_unwind().await.is_err() {
            error!(controller = name, "panicked; starting it again");
            stats.panicked();
        }
        tokio::time::sleep(RESTART).await;
    }
}

/// Each object that changes is a key of the queue.
pub fn watch_own<K: Object>(informer: &Informer<K>, queue: &Keys) {
    let queue = queue.clone();
    informer.subscribe(move |change| {
        if let Some(object) = change.object() {
            queue.add(key(&**object));
        }
    });
}

/// The controller of each object that changes is a key, as it was and as it is; `kind` is the controller's kind.
pub fn watch_owned<K: Object>(informer: &Informer<K>, kind: &'static str, queue: &Keys) {
    let queue = queue.clone();
    informer.subscribe(move |change| {
        for object in [&change.old, &change.new].into_iter().flatten() {
            if let Some(owner) = crate::owners::controller_of(object.metadata()).filter(|o| o.kind == kind) {
                queue.add((object.metadata().namespace.clone().unwrap_or_default(), owner.name.clone()));
            }
        }
    });
}

/// The keys that `of` derives from each change are looked at.
pub fn watch_with<K: Object>(
    informer: &Informer<K>,
    queue: &Keys,
    of: impl Fn(&Change<K>) -> Vec<Key> + Send + Sync + 'static,
) {
    let queue = queue.clone();
    informer.subscribe(move |change| of(change).into_iter().for_each(|key| queue.add(key)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    static LOOKS: Mutex<Vec<String>> = Mutex::new(Vec::new());

    fn look(_: Arc<Context>, key: Key) -> BoxFuture<'static, Outcome> {
        Box::pin(async move {
            let before = {
                let mut looks = LOOKS.lock();
                looks.push(key.1.clone());
                looks.iter().filter(|k| **k == key.1).count()
            };
            assert!(key.1 != "panics" || before > 1, "the first look panics on purpose");
            Ok(None)
        })
    }

    #[tokio::test]
    async fn a_panic_is_followed_by_another_look_and_stops_nobody() {
        let context = Context::for_tests();
        let queue = Keys::default();
        for name in ["panics", "fine"] {
            queue.add((String::new(), name.into()));
        }
        let stats = Stats::new("test", Some(queue.clone()));
        let worker = Worker { index: 0, name: "test", queue, stats: stats.clone() };
        let task = tokio::spawn(worker.run(context, look));
        while LOOKS.lock().len() < 3 {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        task.abort();
        assert_eq!(*LOOKS.lock(), ["panics", "fine", "panics"]);
    }

    static STARTS: AtomicUsize = AtomicUsize::new(0);

    fn breaks_once(context: Arc<Context>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            assert!(STARTS.fetch_add(1, Ordering::SeqCst) > 0, "the first run panics on purpose");
            context.stop.cancel();
        })
    }

    #[tokio::test]
    async fn a_loop_that_panics_starts_again_and_its_neighbour_does_not() {
        static NEIGHBOUR: AtomicUsize = AtomicUsize::new(0);
        static BOTH: &[Controller] = &[
            Controller { name: "breaks", work: Work::Loop(breaks_once) },
            Controller {
                name: "neighbour",
                work: Work::Loop(|context| {
                    Box::pin(async move {
                        NEIGHBOUR.fetch_add(1, Ordering::SeqCst);
                        context.stop.cancelled().await;
                    })
                }),
            },
        ];
        let context = Context::for_tests();
        run(context.clone(), BOTH).await;
        assert_eq!((STARTS.load(Ordering::SeqCst), NEIGHBOUR.load(Ordering::SeqCst)), (2, 1));
    }
}
