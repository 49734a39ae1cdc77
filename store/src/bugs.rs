//! Bugs that systems of this kind have had, built in again on purpose, to see that the chaos harness finds them.
//!
//! Invariant: without the feature `bugs`, which no release has, none of them exists.

/// All bugs that can be switched on with the variable `KEELSON_BUG`.
pub const NAMES: &[&str] = &["leader-restore", "stale-read", "early-lease", "lost-event", "repeated-event"];

/// Whether a bug is switched on.
#[cfg(feature = "bugs")]
pub fn is_on(name: &str) -> bool {
    static CHOSEN: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| std::env::var("KEELSON_BUG").unwrap_or_default());
    *CHOSEN == name
}

/// Whether a bug is switched on: never.
#[cfg(not(feature = "bugs"))]
#[inline]
pub fn is_on(_name: &str) -> bool {
    false
}
