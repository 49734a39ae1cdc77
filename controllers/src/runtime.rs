//! Runs controllers: workers that take keys from a queue, or one loop; a panic restarts the work of that controller only.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use keelson_client::informer::key;
use keelson_client::{Change, Error, Informer, Key, Object, Queue};
use tokio::task::JoinSet;
use tracing::{debug, error, warn};

use crate::context::Context;

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
    for controller in controllers {
        match controller.work {
            Work::Keyed { workers, watch, reconcile } => {
                let queue = Keys::default();
                watch(&context, &queue);
                for _ in 0..workers {
                    tasks.spawn(worker(context.clone(), controller.name, queue.clone(), reconcile));
                }
            }
            Work::Loop(body) => {
                tasks.spawn(looping(context.clone(), controller.name, body));
            }
        }
    }
    context.stop.cancelled().await;
    tasks.shutdown().await;
}

async fn worker(
    context: Arc<Context>,
    name: &'static str,
    queue: Keys,
    reconcile: fn(Arc<Context>, Key) -> BoxFuture<'static, Outcome>,
) {
    loop {
        let key = queue.next().await;
        let look = AssertUnwindSafe(async { reconcile(context.clone(), key.clone()).await }).catch_unwind();
        match look.await {
            Ok(Ok(again)) => {
                queue.forget(&key);
                if let Some(pause) = again {
                    queue.add_after(key.clone(), pause);
                }
            }
            // The end of the namespace is the end of what was looked at.
            Ok(Err(error)) if error.is_namespace_terminating() => queue.forget(&key),
            Ok(Err(error)) => {
                if error.is_conflict() || error.is_not_found() {
                    debug!(controller = name, namespace = key.0, name = key.1, %error, "the cache was behind");
                } else {
                    warn!(controller = name, namespace = key.0, name = key.1, %error, "failed; trying again");
                }
                queue.retry(key.clone());
            }
            Err(_) => {
                error!(controller = name, namespace = key.0, name = key.1, "panicked; trying again");
                queue.retry(key.clone());
            }
        }
        queue.done(&key);
    }
}

async fn looping(context: Arc<Context>, name: &'static str, body: fn(Arc<Context>) -> BoxFuture<'static, ()>) {
    while !context.stop.is_cancelled() {
        if AssertUnwindSafe(async { body(context.clone()).await }).catch_unwind().await.is_err() {
            error!(controller = name, "panicked; starting it again");
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
        let task = tokio::spawn(worker(context, "test", queue, look));
        while LOOKS.lock().len() < 3 {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        task.abort();
        assert_eq!(*LOOKS.lock(), ["panics", "fine", "panics"]);
    }
}
