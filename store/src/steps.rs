//! Steps between which a process may die while it replaces its state: tests let it die at each of them.
//!
//! Invariant: in the program nothing happens here.

use std::io;

#[cfg(test)]
thread_local! {
    /// Steps that are left on this thread; none: it lives on.
    static LEFT: std::cell::Cell<Option<u32>> = const { std::cell::Cell::new(None) };
}

/// This thread's process dies when it has done so many further steps; with `None` it lives.
#[cfg(test)]
pub(crate) fn die_after(steps: Option<u32>) {
    LEFT.set(steps);
}

/// The process may die here: nothing after it is done then.
#[cfg(test)]
pub(crate) fn step() -> io::Result<()> {
    match LEFT.get() {
        None => Ok(()),
        Some(0) => Err(io::Error::other("the process has died")),
        Some(left) => {
            LEFT.set(Some(left - 1));
            Ok(())
        }
    }
}

/// The process may die here, in tests.
#[cfg(not(test))]
#[inline]
pub(crate) fn step() -> io::Result<()> {
    Ok(())
}
