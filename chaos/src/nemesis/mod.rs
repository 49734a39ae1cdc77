//! Faults in the real world: one table. A fault begins, lasts, and ends; what it begins it ends, also when the run is
//! cut short, since everything is inside hosts that are removed.

mod agents;
mod disk;
mod load;
mod members;
mod network;
mod process;

use std::time::Duration;

use anyhow::{Result, bail};
use keelson_testbed::Host;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

use crate::system::{Program, System};

pub use disk::small_disk;
pub use load::flood;

/// What faults act upon.
pub struct Victims<'a> {
    /// The program that is tested.
    pub system: &'static System,
    /// Where it is.
    pub program: &'a Program,
    /// The members' hosts.
    pub hosts: &'a [Host<'a>],
    /// The hosts of agents.
    pub agents: &'a [Host<'a>],
    /// Which member leads, if one says so.
    pub leader: &'a dyn Fn() -> Option<usize>,
    /// Has a member or the harness do something.
    pub ask: &'a dyn Fn(Ask) -> Result<()>,
    /// Which members the cluster counts as its own, as its leader says.
    pub listed: &'a dyn Fn() -> Option<Vec<bool>>,
    /// The ids of all members if all run and vote, so that the disk of one may be lost.
    pub whole: &'a dyn Fn() -> Option<Vec<u64>>,
}

/// What a fault asks a member to do through its API, or the harness' own clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Compact history up to some revisions ago.
    Compact,
    /// Hand over leadership.
    MoveLeader,
    /// Remove a member for good.
    Remove(usize),
    /// Add a member at the place of the one that was removed.
    Add(usize),
    /// Overload all members for a while.
    Flood(Duration),
}

/// What a fault needs beside members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// To be asked for by its name: not every workload stands it.
    Name,
    /// Disks of their own.
    Disks,
    /// Our own program: others do not promise to stand it.
    Ours,
    /// Disks of their own, and our own program.
    OurDisks,
    /// Another build, `--other`.
    Other,
    /// Servers of a cluster, not stores.
    Servers,
    /// Hosts of agents.
    Agents,
    /// Hosts of agents that have containers.
    Containers,
}

/// A row of the table.
pub struct Row {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// How long it lasts, in milliseconds, at least and at most.
    pub lasts: (u64, u64),
    /// What it needs.
    pub needs: Needs,
    /// Begins it; says what was done to whom.
    begin: fn(&Victims<'_>, &mut StdRng) -> Result<String>,
    /// Ends it.
    end: fn(&Victims<'_>) -> Result<()>,
}

macro_rules! rows {
    ($(($name:literal, $about:literal, $least:literal..$most:literal, $needs:ident, $begin:path, $end:path)),+ $(,)?) => {
        /// All faults.
        pub const TABLE: &[Row] = &[$(Row {
            name: $name, about: $about, lasts: ($least, $most), needs: Needs::$needs, begin: $begin, end: $end,
        }),+];
    };
}

rows![
    ("kill", "kill -9 of one member", 500..6000, Nothing, process::kill_one, process::start_all),
    ("kill-leader", "kill -9 of the leader", 500..6000, Nothing, process::kill_leader, process::start_all),
    ("kill-majority", "kill -9 of more than half", 500..4000, Nothing, process::kill_majority, process::start_all),
    ("kill-all", "kill -9 of all members at once", 200..2000, Nothing, process::kill_all, process::start_all),
    ("storm", "members are killed and started again quickly", 100..500, Nothing, process::storm, process::start_all),
    (
        "restart",
        "one member after another is restarted in order",
        100..500,
        Nothing,
        process::restart,
        process::start_all
    ),
    (
        "upgrade",
        "one member after another becomes the other build",
        100..500,
        Other,
        process::upgrade,
        process::start_all
    ),
    (
        "clock",
        "a member goes on with a clock that has jumped by hours",
        100..500,
        Nothing,
        process::clock,
        process::start_all
    ),
    (
        "pause",
        "SIGSTOP of one member for longer than elections",
        1500..7000,
        Nothing,
        process::pause_one,
        process::resume_all
    ),
    ("pause-leader", "SIGSTOP of the leader", 1500..7000, Nothing, process::pause_leader, process::resume_all),
    ("isolate", "one member is cut off", 1500..8000, Nothing, network::isolate_one, network::heal),
    ("isolate-leader", "the leader is cut off", 1500..8000, Nothing, network::isolate_leader, network::heal),
    ("split", "a majority and the rest do not hear each other", 1500..8000, Nothing, network::split, network::heal),
    (
        "one-way",
        "one member does not hear another, which hears it",
        1500..8000,
        Nothing,
        network::one_way,
        network::heal
    ),
    ("deaf-leader", "the leader is heard and hears nobody", 1500..8000, Nothing, network::deaf_leader, network::heal),
    ("bridge", "two halves that only one member connects", 1500..8000, Nothing, network::bridge, network::heal),
    ("flap", "one member's link goes down and up", 100..500, Nothing, network::flap, network::heal),
    (
        "lag",
        "one member is cut off until it needs a snapshot",
        10000..20000,
        Nothing,
        network::isolate_one,
        network::heal
    ),
    (
        "lag-twice",
        "one member is sent snapshots twice in a row",
        8000..12000,
        Nothing,
        network::lag_twice,
        network::heal
    ),
    ("loss", "a fifth of the packets between members is lost", 3000..8000, Nothing, network::loss, network::heal),
    ("delay", "one member's link is narrow and delays", 3000..8000, Nothing, network::delay, network::heal),
    ("duplicate", "a third of the packets comes twice", 3000..8000, Nothing, network::duplicate, network::heal),
    ("disk-full", "one member's disk is full", 2000..6000, Disks, disk::fill, disk::empty),
    ("disk-error", "one member's disk fails; what was not synced is lost", 500..3000, Disks, disk::error, disk::repair),
    (
        "power-cut",
        "one member's power goes: what was not synced is lost",
        500..4000,
        Disks,
        disk::power_cut,
        disk::repair
    ),
    ("power-cut-all", "the power of all goes at once", 500..3000, Disks, disk::power_cut_all, disk::repair),
    ("slow-disk", "one member's disk is slow to sync", 100..1000, Disks, disk::slow, disk::thaw),
    ("stuck-disk", "one member's disk does not answer for a while", 2000..7000, Disks, disk::stick, disk::thaw),
    ("bit-flip", "a bit of a dead member's log flips", 100..1000, OurDisks, disk::flip_log, members::until_whole),
    ("table-rot", "a bit of a dead member's tables flips", 100..1000, OurDisks, disk::flip_table, members::until_whole),
    (
        "torn-table",
        "a table of a dead member loses its end",
        100..1000,
        OurDisks,
        disk::tear_table,
        members::until_whole
    ),
    (
        "snapshot-rot",
        "one member's disk is lost, and a bit flips of the snapshot that it gets",
        100..1000,
        OurDisks,
        disk::flip_snapshot,
        members::until_whole
    ),
    (
        "replace",
        "one member's disk is lost, another joins in its place",
        500..4000,
        Nothing,
        members::replace,
        members::grow
    ),
    ("shrink", "one member is removed, and another is added later", 2000..8000, Ours, members::shrink, members::grow),
    ("compact", "history is compacted", 100..500, Name, members::compact, nothing),
    ("move-leader", "the leader hands over", 100..1000, Nothing, members::move_leader, nothing),
    ("overload", "a thousand clients and slow watchers", 100..500, Nothing, load::overload, nothing),
    (
        "certificates",
        "a server's certificates are made anew",
        100..500,
        Servers,
        members::certificates,
        process::start_all
    ),
    ("kill-agent", "kill -9 of an agent", 500..8000, Agents, agents::kill, agents::start_all),
    ("pause-agent", "SIGSTOP of an agent", 1500..8000, Agents, agents::pause, agents::resume_all),
    (
        "isolate-agent",
        "an agent and the servers do not hear each other",
        1500..8000,
        Agents,
        agents::isolate,
        network::heal
    ),
    (
        "kill-containerd",
        "kill -9 of an agent's containerd",
        500..3000,
        Containers,
        agents::kill_containerd,
        agents::start_all
    ),
];

/// What a run has for faults.
#[derive(Clone, Copy, Debug)]
pub struct Offers {
    /// Our own program is tested.
    pub ours: bool,
    /// There is another build of it.
    pub other: bool,
    /// Members are servers.
    pub servers: bool,
    /// How many agents there are.
    pub agents: u8,
    /// They have containers.
    pub containers: bool,
}

impl Needs {
    /// Whether `all` has what needs this.
    fn in_all(self, offers: &Offers) -> bool {
        self != Needs::Name && self.lacks(offers).is_none()
    }

    /// What is missing for it.
    fn lacks(self, offers: &Offers) -> Option<&'static str> {
        match self {
            Needs::Ours | Needs::OurDisks if !offers.ours => Some("--system keelson or server"),
            Needs::Other if !offers.other => Some("--other BUILD"),
            Needs::Servers if !offers.servers => Some("--system server"),
            Needs::Agents if offers.agents == 0 => Some("--system server --agents N"),
            Needs::Containers if offers.agents == 0 || !offers.containers => Some("--agents N --containers"),
            _ => None,
        }
    }

    /// Whether it needs disks of their own.
    pub fn disks(self) -> bool {
        matches!(self, Needs::Disks | Needs::OurDisks)
    }
}

/// The rows of a list of names; `all` stands for those that every workload stands and for which there is what they need.
pub fn find(names: &[String], offers: &Offers) -> Result<Vec<&'static Row>> {
    let mut rows = Vec::new();
    for name in names {
        match TABLE.iter().find(|row| row.name == name) {
            Some(row) => match row.needs.lacks(offers) {
                Some(lack) => bail!("nemesis {name} needs {lack}"),
                None => rows.push(row),
            },
            None if name == "all" => rows.extend(TABLE.iter().filter(|row| row.needs.in_all(offers))),
            None if name == "none" => {}
            None => {
                let known: Vec<&str> = TABLE.iter().map(|row| row.name).collect();
                bail!("there is no nemesis {name}: there are {}, all and none", known.join(", "));
            }
        }
    }
    Ok(rows)
}

impl Row {
    /// Begins the fault; says what was done, and for how long it is to last.
    pub fn begin(&self, victims: &Victims<'_>, rng: &mut StdRng) -> Result<(String, Duration)> {
        let done = (self.begin)(victims, rng)?;
        Ok((done, Duration::from_millis(rng.random_range(self.lasts.0..=self.lasts.1))))
    }

    /// Ends it.
    pub fn end(&self, victims: &Victims<'_>) -> Result<()> {
        (self.end)(victims)
    }
}

/// Ends every fault, whichever there is.
pub fn end_all(victims: &Victims<'_>) -> Result<()> {
    network::heal(victims)?;
    process::resume_all(victims)?;
    disk::thaw(victims)?;
    disk::empty(victims)?;
    agents::resume_all(victims)?;
    members::grow(victims)?;
    agents::start_all(victims)
}

fn random(victims: &Victims<'_>, rng: &mut StdRng) -> usize {
    rng.random_range(0..victims.hosts.len())
}

fn leader(victims: &Victims<'_>, rng: &mut StdRng) -> usize {
    let random = random(victims, rng);
    (victims.leader)().unwrap_or(random)
}

/// A random order of all members; the first half and one more are a majority.
fn shuffled(victims: &Victims<'_>, rng: &mut StdRng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..victims.hosts.len()).collect();
    order.shuffle(rng);
    order
}

fn others(victims: &Victims<'_>, member: usize) -> Vec<usize> {
    (0..victims.hosts.len()).filter(|other| *other != member).collect()
}

fn names(victims: &Victims<'_>, members: &[usize]) -> String {
    members.iter().map(|member| victims.hosts[*member].name()).collect::<Vec<_>>().join(", ")
}

fn nothing(_: &Victims<'_>) -> Result<()> {
    Ok(())
}

/// The order of faults of a seed: the table's rows, each with an own dice.
pub fn choose<'r>(rows: &[&'r Row], rng: &mut StdRng) -> Option<&'r Row> {
    if rows.is_empty() {
        return None;
    }
    let at = rng.next_u32() as usize % rows.len();
    Some(rows[at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const ALONE: Offers = Offers { ours: true, other: false, servers: false, agents: 0, containers: false };

    #[test]
    fn names_are_found_and_unique() {
        let all = find(&["all".into()], &ALONE).unwrap();
        assert!(all.len() > 10 && find(&["kill".into(), "none".into()], &ALONE).unwrap().len() == 1);
        assert!(find(&["earthquake".into()], &ALONE).is_err());
        let mut names: Vec<&str> = TABLE.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
    }

    #[test]
    fn what_is_not_there_is_left_out_of_all_and_refused_by_name() {
        let names = |offers: &Offers| -> Vec<&str> {
            find(&["all".into()], offers).unwrap().iter().map(|row| row.name).collect()
        };
        let (etcd, all) = (
            Offers { ours: false, ..ALONE },
            Offers { other: true, servers: true, agents: 2, containers: true, ..ALONE },
        );
        assert!(!names(&etcd).contains(&"bit-flip") && names(&ALONE).contains(&"bit-flip"));
        assert!(names(&all).len() == TABLE.len() - 1 && !names(&all).contains(&"compact"));
        for (name, lack) in [("upgrade", "--other"), ("kill-agent", "--agents"), ("certificates", "server")] {
            let error = find(&[name.into()], &ALONE).err().unwrap().to_string();
            assert!(error.contains(lack), "{error}");
            assert!(find(&[name.into()], &all).is_ok());
        }
    }

    #[test]
    fn a_seed_gives_one_order() {
        let rows = find(&["all".into()], &ALONE).unwrap();
        let order = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..20).filter_map(|_| choose(&rows, &mut rng)).map(|row| row.name).collect::<Vec<_>>()
        };
        assert_eq!(order(7), order(7));
        assert_ne!(order(7), order(8));
    }
}
