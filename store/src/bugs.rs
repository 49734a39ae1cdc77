//! Bugs that systems of this kind have had, built in again on purpose, to see that the chaos harness finds them.
//!
//! Invariant: without the feature `bugs`, which no release has, none of them exists.

/// All bugs that can be switched on with the variable `KEELSON_BUG`.
pub const NAMES: &[&str] = &[
    // A leader that was killed goes on leading in its term, without the end of its log.
    "leader-restore",
    // Reads do not ask the leader.
    "stale-read",
    // A new leader takes all leases for expired.
    "early-lease",
    // A watch that reads history leaves an event out.
    "lost-event",
    // A watch that is resumed repeats an event.
    "repeated-event",
    // Entries count as written before they are on disk.
    "early-ack",
    // A vote is not written down.
    "forgotten-vote",
    // The applied index reaches the disk before the data.
    "applied-ahead",
    // After a snapshot was installed, watches go on from before where they were.
    "watch-back",
    // After a start and a compaction the revision is that of the newest key, though later ones were deleted.
    "falling-revision",
    // A new leader gives leases all of their time again.
    "lease-reset",
    // A renewed lease keeps what was recorded of it before, for the next leader to take.
    "stale-checkpoint",
    // The applied index that reaches the disk is that of the batch before: after a crash entries are applied twice.
    "applied-behind",
    // A compaction forgets the deletion at its own revision.
    "lost-tombstone",
];

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
