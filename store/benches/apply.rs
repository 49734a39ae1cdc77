//! `cargo bench -p keelson-store`: what applying puts costs one member's state machine, by the number of keys and of puts
//! that share a log entry. Between two entries a buffer larger than the processor's caches is read, as the members'
//! other work does to them; `-- warm` leaves that out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use keelson_store::{Command, Entry, Op, Options, PutRequest, StateMachine, Txn};

/// Bytes of a value.
const VALUE_BYTES: usize = 256;
/// Puts that are timed in each case.
const PUTS: usize = 60_000;
/// Bytes that are read between two entries.
const OTHER_BYTES: usize = 32 << 20;

fn put(key: usize, value: &Bytes) -> Arc<Command> {
    // As they come over the wire: key and value are slices of a larger buffer.
    let op = Op::Put(PutRequest::new(Bytes::from(format!("bench/key/{key:08}")), value.clone()));
    Arc::new(Command::Txn(Txn { success: vec![op], ..Txn::default() }))
}

struct Filled {
    machine: StateMachine,
    index: u64,
    value: Bytes,
}

impl Filled {
    fn apply(&mut self, keys: impl Iterator<Item = usize>) -> Duration {
        self.index += 1;
        let commands = keys.map(|key| put(key, &self.value)).collect();
        let entry = Entry { index: self.index, meta: Bytes::from_static(b"meta"), commands };
        let begun = Instant::now();
        self.machine.apply(&[entry]).expect("applied");
        begun.elapsed()
    }
}

fn main() {
    let warm = std::env::args().any(|argument| argument == "warm");
    let other = vec![1u8; OTHER_BYTES];
    for keys in [10_000, 1_000_000] {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let machine = StateMachine::open(dir.path(), Options::default()).expect("opened");
        let mut filled = Filled { machine, index: 0, value: Bytes::from(vec![b'x'; VALUE_BYTES]) };
        for chunk in 0..keys / 500 {
            filled.apply(chunk * 500..(chunk + 1) * 500);
        }
        for group in [1, 16, 64, 256] {
            let (mut took, mut next, mut seen) = (Duration::ZERO, 1usize, 0u64);
            for _ in 0..PUTS / group {
                if !warm {
                    seen += other.iter().step_by(64).map(|byte| u64::from(*byte)).sum::<u64>();
                }
                let mut random = || {
                    next = next.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (next >> 33) % keys
                };
                let chosen: Vec<usize> = (0..group).map(|_| random()).collect();
                took += filled.apply(chosen.into_iter());
            }
            assert!(warm || seen > 0);
            let each = took.as_secs_f64() * 1e6 / (PUTS / group * group) as f64;
            println!("{keys} keys, {group} puts in an entry: {each:.2} us each");
        }
    }
}
