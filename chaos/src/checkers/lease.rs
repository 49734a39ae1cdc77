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

/// How much earlier than told a lease may end, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Uncertainty {
    /// Since clocks tick apart.
    pub always: u64,
    /// When clocks jumped ahead, and by how much.
    pub jumps: Vec<(u64, u64)>,
}

impl Uncertainty {
    fn between(&self, from: u64, to: u64) -> u64 {
        let jumps = self.jumps.iter().filter(|(at, _)| (from..=to).contains(at)).map(|(_, by)| by);
        self.always.saturating_add(jumps.sum())
    }
}

/// Checks leases; clocks that tick apart or jump may shorten them.
pub fn check(leases: &[Lease], uncertainty: &Uncertainty) -> Verdict {
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
                let ends = (renewed + lease.ttl).saturating_sub(uncertainty.between(*renewed, look.end));
                if look.end < ends {
                    let early = (ends - look.end) / 1_000_000;
                    faults.push(fault("early", format!("its keys were gone {early} ms before its time")));
                }
            }
        }
    }
    Verdict::of(faults)
}

/// A lease that few renew, and how those who look at it saw it go. Times are nanoseconds since the run began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Long {
    /// Its id.
    pub id: i64,
    /// Its time to live.
    pub ttl: u64,
    /// When its time began at the latest: when the last request to grant or renew it can have had its effect.
    pub began: u64,
    /// Answered looks at its keys since then: when each was sent and answered, how many keys it found, and the term.
    pub seen: Vec<(u64, u64, u64, u64)>,
}

/// How late a lease may end.
#[derive(Clone, Copy, Debug)]
pub struct Lateness {
    /// Without any fault.
    pub always: u64,
    /// For each change of leader: how seldom it is recorded what is left.
    pub each_term: u64,
    /// Longest time between two answered looks that does not count as time in which nobody led.
    pub between: u64,
    /// How much slower than time the clocks of members may tick, in thousandths: a lease that is kept long by changes of
    /// leader is late by this part of all its life, not only of its time to live.
    pub slower: u64,
}

/// Checks that leases end: after their time, what changes of leader may add to it, and the time in which nobody answered.
/// Before what is left of a lease is first recorded, when half of its time is over, whoever takes over gives it all of it
/// again, and records it a while later.
pub fn check_late(leases: &[Long], lateness: Lateness) -> Verdict {
    let mut faults = Vec::new();
    for lease in leases {
        let (mut last, mut terms) = (lease.began, None);
        let mut unrecorded = lease.began.saturating_add(lease.ttl / 2).saturating_add(lateness.always);
        let mut end = lease.began.saturating_add(lease.ttl).saturating_add(lateness.always);
        for (start, answered, found, term) in &lease.seen {
            if answered.saturating_sub(last) > lateness.between {
                end = end.saturating_add(answered.saturating_sub(last));
            }
            let before_change = std::mem::replace(&mut last, *answered);
            if let Some(before) = terms.replace((*term).max(terms.unwrap_or(0)))
                && *term > before
            {
                if before_change < unrecorded {
                    end = end.max(answered.saturating_add(lease.ttl).saturating_add(lateness.always));
                    unrecorded = unrecorded.max(answered.saturating_add(lateness.each_term));
                }
                end = end.saturating_add(lateness.each_term.saturating_mul(term - before));
            }
            let slow = start.saturating_sub(lease.began).saturating_mul(lateness.slower) / 1000;
            let end = end.saturating_add(slow);
            if *found > 0 && *start > end {
                let late = (start - end) / 1_000_000;
                let what = format!("lease {:x}: its keys were there {late} ms after they must have gone", lease.id);
                faults.push(Fault::new("late", what));
                break;
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
            assert_eq!(check(&[lease], &Uncertainty { always: 10, jumps: Vec::new() }).kinds(), kinds, "{name}");
        }
    }

    #[test]
    fn leases_end() {
        let lateness = Lateness { always: 10, each_term: 20, between: 30, slower: 0 };
        // One look every 25, until the end.
        let looks = |end: u64, terms: &[u64]| -> Vec<(u64, u64, u64, u64)> {
            let term = |at: u64| terms.iter().filter(|begin| **begin <= at).count() as u64;
            (0..=end / 25).map(|n| (n * 25, n * 25 + 1, 1, term(n * 25))).collect()
        };
        let silent = |from: u64, to: u64, end: u64| -> Vec<(u64, u64, u64, u64)> {
            looks(end, &[]).into_iter().filter(|look| look.0 < from || look.0 > to).collect()
        };
        for (name, seen, kinds) in [
            ("in time", looks(100, &[]), vec![]),
            ("late", looks(125, &[]), vec!["late"]),
            ("a change of leader in between", looks(175, &[30]), vec![]),
            ("late all the same", looks(200, &[30]), vec!["late"]),
            ("two changes", looks(200, &[30, 60]), vec![]),
            ("reset by each change", looks(300, &[30, 60, 90]), vec!["late"]),
            ("nobody answered for a while", silent(40, 90, 175), vec![]),
            ("late after that", silent(40, 90, 225), vec!["late"]),
        ] {
            assert_eq!(check_late(&[Long { id: 1, ttl: 100, began: 0, seen }], lateness).kinds(), kinds, "{name}");
        }
        let slower = Lateness { slower: 100, ..lateness };
        for (name, end, terms, kinds) in [
            ("slow clocks", 100, vec![], vec![]),
            ("no clock is that slow", 125, vec![], vec!["late"]),
            ("slow also while changes of leader kept it", 200, vec![30, 60], vec![]),
            ("longer than those and clocks explain", 350, vec![30, 60], vec!["late"]),
        ] {
            let long = Long { id: 1, ttl: 100, began: 0, seen: looks(end, &terms) };
            assert_eq!(check_late(&[long], slower).kinds(), kinds, "{name}");
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
