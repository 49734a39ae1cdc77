//! Every limit of the replicated store, with its unit in its name.

/// Largest message between members, and largest value that the codec reads.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of entries that one message to a follower carries, unless a single entry is larger.
pub const APPEND_BYTES: usize = 2 * 1024 * 1024;
/// Entries that one message to a follower carries.
pub const APPEND_ENTRIES: u64 = 4096;
/// Size of one segment of the log.
pub const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes after which the log leaves its very first segment for a prepared one, if one is ready.
pub const FIRST_SEGMENT_BYTES: u64 = 64 * 1024;
/// Bytes that one frame of the log gathers before it is written.
pub const FRAME_BYTES: usize = 4 * 1024 * 1024;
/// Writes that wait for the log's thread.
pub const LOG_QUEUE_WRITES: usize = 1024;
/// Bytes of recent entries kept in memory.
pub const LOG_CACHE_BYTES: usize = 8 * 1024 * 1024;
/// The same of a member that is alone: it reads them only to apply them, at once.
pub const ALONE_LOG_CACHE_BYTES: usize = 1024 * 1024;
/// Commands after which a snapshot is taken and the log before it may go.
pub const SNAPSHOT_COMMANDS: u64 = 50_000;
/// Bytes of commands after which the same happens.
pub const SNAPSHOT_BYTES: u64 = 256 * 1024 * 1024;
/// Entries kept before the last snapshot for followers that lag a little.
pub const KEPT_ENTRIES: u64 = 1_000;
/// Log entries that one step applies.
pub const APPLY_ENTRIES: usize = 512;
/// Bytes of commands that one step applies.
pub const APPLY_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of commands that were proposed here and are not yet answered.
pub const PROPOSED_BYTES: usize = 64 * 1024 * 1024;
/// Commands that were proposed here and are not yet answered.
pub const PROPOSED_COMMANDS: usize = 16 * 1024;
/// Commands that share one log entry.
pub const GROUP_COMMANDS: usize = 1024;
/// Bytes of commands that share one log entry, unless a single one is larger.
pub const GROUP_BYTES: usize = 1024 * 1024;
/// Groups of commands that a member has proposed and that are not yet answered.
pub const GROUPS: usize = 4;
/// Commands that must wait for another group to begin beside those that are under way, where entries go to other members.
pub const GROUP_WORTH_COMMANDS: usize = 256;
/// The same of a member that is alone.
pub const CHEAP_GROUP_WORTH_COMMANDS: usize = 32;
/// Commands of a group after which so many are expected again.
pub const HOLD_WORTH_COMMANDS: usize = 4;
/// Commands up to which all that are expected are waited for.
pub const HOLD_ALL_COMMANDS: usize = 32;
/// Most that holds which ended without all that were expected count for: a power of two, of entries that begin with fewer.
pub const MOST_MISSED: u32 = 6;
/// How long commands wait for others that are expected.
pub const HOLD_MILLIS: u64 = 1;
/// How often the leader tells that it lives.
pub const HEARTBEAT_MILLIS: u64 = 100;
/// Shortest silence of the leader after which a member stands for election.
pub const ELECTION_MIN_MILLIS: u64 = 500;
/// Longest such silence.
pub const ELECTION_MAX_MILLIS: u64 = 750;
/// Longest time for one request to another member, snapshots excepted.
pub const PEER_REQUEST_MILLIS: u64 = 5_000;
/// Pause before replication to a member that cannot be reached is tried again.
pub const PEER_RETRY_MILLIS: u64 = 100;
/// Longest time to connect to another member.
pub const PEER_CONNECT_MILLIS: u64 = 1_000;
/// Requests of other members that are served at once on one connection.
pub const PEER_STREAMS: u32 = 1_024;
/// Largest frame that another member sends: an append of many commands goes in a few.
pub const PEER_FRAME_BYTES: u32 = 256 * 1024;
/// Bytes of a snapshot in one message.
pub const SNAPSHOT_CHUNK_BYTES: usize = 1024 * 1024;
/// Bytes of a snapshot that are sent to one member in a second at most: the disk and the network are needed for writes.
pub const SNAPSHOT_BYTES_PER_SECOND: u64 = 100 * 1024 * 1024;
/// Longest time that the transfer of a snapshot may take.
pub const SNAPSHOT_TRANSFER_MILLIS: u64 = 600_000;
/// How long a leader waits for the members that it asked to confirm it before it asks the others as well.
pub const CONFIRM_HEDGE_MILLIS: u64 = 20;
/// How long a request waits for a leader to be elected.
pub const LEADER_WAIT_MILLIS: u64 = 5_000;
/// How often a member looks whether Raft has failed.
pub const FAILURE_LOOK_MILLIS: u64 = 100;
/// How often members compare their histories.
pub const COMPARE_MILLIS: u64 = 5_000;
/// Pause before members compare again while it is not known that a majority has this member's history: after its start, when
/// what it found on its disk may be wrong, and while one of them differs.
pub const COMPARE_AGAIN_MILLIS: u64 = 500;
/// How often expired leases are looked for.
pub const LEASE_TICK_MILLIS: u64 = 500;
/// How often learners are looked at for promotion.
pub const PROMOTION_MILLIS: u64 = 200;
/// A learner that lags by at most this many entries is promoted.
pub const PROMOTION_LAG_ENTRIES: u64 = 200;
/// How often a leader that seems gone is looked for.
pub const SUSPICION_PROBES: usize = 3;
/// Longest time of one such look.
pub const SUSPICION_PROBE_MILLIS: u64 = 100;
/// How long a member lets another one stand for election first.
pub const SUSPICION_STAGGER_MILLIS: u64 = 100;
/// How often a member without a leader asks whether it was removed.
pub const REMOVAL_LOOK_MILLIS: u64 = 1_000;
/// Looks after which it asks the others whatever it sees.
pub const REMOVAL_ASK_LOOKS: u64 = 10;
