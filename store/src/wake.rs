//! Waking many at once: first everybody, and then, once each, who is one task for several of them.
//!
//! Else a connection with sixty watches would begin to write when the first of them was woken, and again for those that
//! were woken meanwhile.

use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Wake, Waker};

thread_local! {
    /// Whom [`wake_all`] is to wake last, while it runs on this thread.
    static LAST: RefCell<Option<Vec<Waker>>> = const { RefCell::new(None) };
}

/// Wakes all of `wakers`, in order, and then those made by [`last`] that these have woken.
pub fn wake_all(wakers: Vec<Waker>) {
    /// Wakes them in the end, whatever happens meanwhile.
    struct Ended;
    impl Drop for Ended {
        fn drop(&mut self) {
            let last = LAST.try_with(|last| last.take()).ok().flatten();
            last.into_iter().flatten().for_each(Waker::wake);
        }
    }
    let begins = |last: &RefCell<Option<Vec<Waker>>>| {
        let mut last = last.borrow_mut();
        let outermost = last.is_none();
        last.get_or_insert_default();
        outermost
    };
    // One within another only adds to it.
    let _ended = LAST.try_with(begins).unwrap_or(false).then(|| Ended);
    wakers.into_iter().for_each(Waker::wake);
}

/// A waker of the same task as `waker` that, within [`wake_all`], wakes it after all others; else at once.
pub fn last(waker: &Waker) -> Waker {
    Arc::new(Last(waker.clone())).into()
}

struct Last(Waker);

impl Wake for Last {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let put_off = |last: &RefCell<Option<Vec<Waker>>>| {
            let mut last = last.borrow_mut();
            last.as_mut().map(|last| last.push(self.0.clone())).is_some()
        };
        if !LAST.try_with(put_off).unwrap_or(false) {
            self.0.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    /// Notes its name, or wakes another one.
    enum Noting {
        Name(&'static str, Arc<Mutex<Vec<&'static str>>>),
        Passes(Waker),
        WakesAll(Mutex<Vec<Waker>>),
        Panics,
    }

    impl Wake for Noting {
        fn wake(self: Arc<Self>) {
            match &*self {
                Noting::Name(name, noted) => noted.lock().push(name),
                Noting::Passes(other) => other.wake_by_ref(),
                Noting::WakesAll(others) => wake_all(others.lock().drain(..).collect()),
                Noting::Panics => panic!("a waker's own"),
            }
        }
    }

    #[test]
    fn a_task_of_many_is_woken_after_all() {
        let noted = Arc::new(Mutex::default());
        let name = |name| Waker::from(Arc::new(Noting::Name(name, noted.clone())));
        let passes = |to: &Waker| Waker::from(Arc::new(Noting::Passes(to.clone())));
        let task = last(&name("task"));
        let seen = || std::mem::take(&mut *noted.lock());
        task.wake_by_ref();
        assert_eq!(seen(), ["task"], "alone it is woken at once");
        wake_all(vec![name("a"), passes(&task), name("b")]);
        assert_eq!(seen(), ["a", "b", "task"]);
        // One within another ends nothing.
        let within = Noting::WakesAll(Mutex::new(vec![passes(&task), name("c")]));
        wake_all(vec![Waker::from(Arc::new(within)), name("d")]);
        assert_eq!(seen(), ["c", "d", "task"]);
        let panics = vec![passes(&task), Waker::from(Arc::new(Noting::Panics)), name("e")];
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wake_all(panics))).is_err());
        assert_eq!(seen(), ["task"], "it is not forgotten");
        task.wake_by_ref();
        assert_eq!(seen(), ["task"], "the next is not put off for ever");
    }
}
