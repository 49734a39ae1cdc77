//! Leases: none ends before its time, its keys go together, and who holds a lock is fenced from those that held it.

use serde::{Deserialize, Serialize};

use super::{Fault, Verdict};

/// A lease as its holder knows it. Times are nanoseconds since the run began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its id.
    pub id: i64,
    /// Its time to live, nanoseconds.
    pub ttl: u64,
    /// When each answered grant or renewal was sent: its time begins then at the earliest.
    pub renewed: Vec<u64>,
    /// When the holder asked for its end, if it did.
    pub revoked: Option<u64>,
    /// Keys attached to it.
    pub keys: u64,
    /// Looks at its keys.
    pub looks: Vec<Look>,
}

/// A linearizable read of all keys of a lease at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// When it was sent.
    pub start: u64,
    /// When the answer was there.
    pub end: u64,
    /// How many of the keys were there.
    pub found: u64,
}

/// Checks leases; clocks that tick apart may shorten a lease by `uncertainty` nanoseconds.
pub fn check(leases: &[Lease], uncertainty: u64) -> Verdict {
    let mut faults = Vec::new();
    for lease in leases {
        let mut gone = false;
        for look in &lease.looks {
            let fault = |kind: &str, what: String| Fault::new(kind, format!("lease {:x}: {what}", lease.id));
            if look.found > 0 && look.found < lease.keys {
                faults.push(fault("half-a-lease", format!("{} of its {} keys were there", look.found, lease.keys)));
            }
            if look.found > 0 && gone {
                faults.push(fault("back-again", "its keys were gone and came back".into()));
            }
            if look.found > 0 {
                continue;
            }
            gone = true;
            let renewed = lease.renewed.iter().filter(|at| **at < look.start).max();
            let revoked = lease.revoked.is_some_and(|at| at < look.end);
            if let Some(renewed) = renewed.filter(|_| !revoked) {
                let ends = (renewed + lease.ttl).saturating_sub(uncertainty);
                if look.end < ends {
                    let early = (ends - look.end) / 1_000_000;
                    faults.push(fault("early", format!("its keys were gone {early} ms before its time")));
                }
            }
        }
    }
    Verdict::of(faults)
}

/// A write made by the holder of a lock, guarded by the revision at which the holder's key was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    /// The store's revision of the write.
    pub revision: i64,
    /// The creation revision of the holder's key: later holders have higher ones.
    pub token: i64,
    /// Who wrote.
    pub holder: u32,
}

/// Checks that after a write of a holder no earlier holder wrote, and that a token has one holder.
pub fn check_fences(writes: &[Fenced]) -> Verdict {
    let mut sorted: Vec<&Fenced> = writes.iter().collect();
    sorted.sort_by_key(|write| write.revision);
    let mut faults = Vec::new();
    for pair in sorted.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        if b.token < a.token {
            let what = format!("client {} wrote at {} with token {}", b.holder, b.revision, b.token);
            faults.push(Fault::new("not-fenced", format!("{what} after {} was in force", a.token)));
        }
        if b.token == a.token && b.holder != a.holder {
            let what = format!("token {} was held by clients {} and {}", a.token, a.holder, b.holder);
            faults.push(Fault::new("two-holders", what));
        }
    }
    Verdict::of(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases() {
        let look = |start, found| Look { start, end: start + 1, found };
        for (name, renewed, revoked, looks, kinds) in [
            ("there", vec![0], None, vec![look(50, 2)], vec![]),
            ("gone in time", vec![0], None, vec![look(50, 2), look(120, 0)], vec![]),
            ("gone early", vec![0], None, vec![look(50, 0)], vec!["early"]),
            ("within the uncertainty", vec![0], None, vec![look(95, 0)], vec![]),
            ("renewed, gone early", vec![0, 60], None, vec![look(120, 0)], vec!["early"]),
            ("renewed after the look", vec![0, 130], None, vec![look(120, 0)], vec![]),
            ("revoked", vec![0], Some(40), vec![look(50, 0)], vec![]),
            ("half", vec![0], None, vec![look(150, 1)], vec!["half-a-lease"]),
            ("back", vec![0], None, vec![look(120, 0), look(130, 2)], vec!["back-again"]),
        ] {
            let lease = Lease { id: 1, ttl: 100, renewed, revoked, keys: 2, looks };
            assert_eq!(check(&[lease], 10).kinds(), kinds, "{name}");
        }
    }

    #[test]
    fn fences() {
        let write = |revision, token, holder| Fenced { revision, token, holder };
        for (name, writes, kinds) in [
            ("one after the other", vec![write(5, 1, 1), write(6, 1, 1), write(9, 7, 2)], vec![]),
            ("given out of order", vec![write(9, 7, 2), write(5, 1, 1)], vec![]),
            ("an old holder writes", vec![write(5, 1, 1), write(9, 7, 2), write(10, 1, 1)], vec!["not-fenced"]),
            ("two hold it", vec![write(5, 1, 1), write(6, 1, 2)], vec!["two-holders"]),
        ] {
            assert_eq!(check_fences(&writes).kinds(), kinds, "{name}");
        }
    }
}
