//! Every limit of the store, with its unit in its name.

/// Most operations (compares included) in one transaction, nested ones counted.
pub const MAX_TXN_OPS: usize = 4096;
/// Deepest nesting of transactions.
pub const MAX_TXN_DEPTH: usize = 8;
/// Longest key.
pub const MAX_KEY_BYTES: usize = 64 * 1024;
/// Largest value: Kubernetes' largest request body (3 MiB) and room for what the server adds.
pub const MAX_VALUE_BYTES: usize = 4 * 1024 * 1024;
/// Most bytes of keys and values in one transaction.
pub const MAX_TXN_BYTES: usize = 8 * 1024 * 1024;
/// Largest TTL of a lease (etcd's own limit).
pub const MAX_LEASE_TTL_SECONDS: i64 = 9_000_000_000;
/// Recent events that watchers find in memory, in bytes of keys and values.
pub const WATCH_RING_BYTES: usize = 8 * 1024 * 1024;
/// Events that wait in one watcher's queue before it falls back to reading history.
pub const WATCH_QUEUE_EVENTS: usize = 1024;
/// Bytes of keys and values that wait in one watcher's queue before it falls back to reading history.
pub const WATCH_QUEUE_BYTES: usize = 8 * 1024 * 1024;
/// Events for which one watcher's queue keeps room when it was emptied.
pub const WATCH_QUEUE_KEPT: usize = 16;
/// Bytes of events after which one step of reading history ends.
pub const WATCH_CATCH_UP_BYTES: usize = 4 * 1024 * 1024;
/// Revisions that a watcher reads from the ring or from history in one step.
pub const WATCH_CATCH_UP_REVISIONS: usize = 512;
/// Most watchers of one store.
pub const MAX_WATCHERS: usize = 200_000;
/// Revisions that one step of the background compaction handles.
pub const COMPACT_STEP_REVISIONS: usize = 512;
/// Bytes of keys and values that an import writes at once.
pub const IMPORT_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Block cache of RocksDB, shared by its write buffers.
pub const BLOCK_CACHE_BYTES: usize = 16 * 1024 * 1024;
/// Write buffer of one column family.
pub const WRITE_BUFFER_BYTES: usize = 16 * 1024 * 1024;
/// The same where flushing must not depend on time: never full.
pub const INLINE_WRITE_BUFFER_BYTES: usize = 64 * 1024 * 1024;
/// Tables of level 0 that are compacted together.
pub const LEVEL_ZERO_FILES: i32 = 8;
/// Tables of level 0 that a flush merges where no thread does it.
pub const INLINE_LEVEL_ZERO_FILES: u64 = 8;
/// Table files kept open.
pub const MAX_OPEN_FILES: i32 = 64;
/// Requests that wait for the local store's writer.
pub const LOCAL_QUEUE_REQUESTS: usize = 8192;
/// Commands that the local store commits with one sync.
pub const LOCAL_BATCH_COMMANDS: usize = 512;
/// Bytes of keys and values in requests that wait for the local store's writer.
pub const LOCAL_QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of keys and values after which the local store's batch is full.
pub const LOCAL_BATCH_BYTES: usize = 16 * 1024 * 1024;
