//! Every limit of the etcd API, with its unit in its name; etcd's own defaults where it has them.

use std::time::Duration;

/// Most operations in one branch of a transaction, unless configured.
pub const MAX_TXN_OPS: usize = 128;
/// Largest request, unless configured.
pub const MAX_REQUEST_BYTES: usize = 1536 * 1024;
/// What a message may be larger than the request in it.
pub const MESSAGE_OVERHEAD_BYTES: usize = 512 * 1024;
/// How often an idle watch that asked for it is told of progress, unless configured.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
/// How often watches are asked for progress while a client waits for it.
pub const PROGRESS_RETRY: Duration = Duration::from_millis(100);
/// Shortest TTL of a lease, unless configured: one and a half of etcd's default election timeouts, rounded up.
pub const MIN_LEASE_TTL_SECONDS: i64 = 2;
/// Answers that wait in one stream for its client.
pub const STREAM_ANSWERS: usize = 16;
/// Watches of one stream.
pub const WATCHES_PER_STREAM: usize = 20_000;
/// Keys of a read from which it leaves the threads that answer short requests.
pub const INLINE_RANGE_KEYS: i64 = 500;
/// Bytes of keys and values in one part of a streamed read.
pub const RANGE_STREAM_PART_BYTES: usize = 1024 * 1024;
/// Keys in one part of a streamed read.
pub const RANGE_STREAM_PART_KEYS: i64 = 2_000;
/// TTL of the lease of a lock or an election whose client brings none.
pub const SESSION_TTL_SECONDS: i64 = 60;
/// Requests of one connection under way at once.
pub const STREAMS_PER_CONNECTION: u32 = 16_384;
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of clients at once.
pub const MAX_CONNECTIONS: usize = 20_000;
/// How often the size of the data is compared with its quota.
pub const QUOTA_LOOK: Duration = Duration::from_millis(500);
/// How long a token is good, unless configured.
pub const TOKEN_TTL: Duration = Duration::from_secs(300);
/// Bytes of a snapshot in one message.
pub const SNAPSHOT_PART_BYTES: usize = 32 * 1024;
/// What a password's hash costs to compute, as a power of two, unless configured.
pub const BCRYPT_COST: u32 = 10;
/// How often a silent client is asked whether it lives, and how long its answer may take, unless configured.
pub const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(20));
