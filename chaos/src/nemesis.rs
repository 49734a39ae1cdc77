//! Faults in the real world: one table. A fault begins, lasts, and ends; what it begins it ends, also when the run is
//! cut short, since everything is inside hosts that are removed.

use std::time::Duration;

use anyhow::{Result, bail};
use keelson_testbed::Host;
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

use crate::system::{DATA, Program, System};

/// Free space that a filled disk keeps, in bytes.
const DISK_SIZE: &str = "600M";
/// Restarts in a storm.
const STORM: u32 = 6;
/// Share of packets that are lost, in percent.
const LOSS: u32 = 20;

/// What faults act upon.
pub struct Victims<'a> {
    /// The program that is tested.
    pub system: &'static System,
    /// Where it is.
    pub program: &'a Program,
    /// The members' hosts.
    pub hosts: &'a [Host<'a>],
    /// Which member leads, if one says so.
    pub leader: &'a dyn Fn() -> Option<usize>,
    /// Has a member compact history, or hand over leadership.
    pub ask: &'a dyn Fn(Ask) -> Result<()>,
}

/// What a fault asks a member to do through its API.
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
}

/// A row of the table.
pub struct Row {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// How long it lasts, in milliseconds, at least and at most.
    pub lasts: (u64, u64),
    /// Begins it; says what was done to whom.
    begin: fn(&Victims<'_>, &mut StdRng) -> Result<String>,
    /// Ends it.
    end: fn(&Victims<'_>) -> Result<()>,
    /// Whether `--nemesis all` includes it.
    pub in_all: bool,
}

/// All faults.
pub const TABLE: &[Row] = &[
    Row {
        name: "kill",
        about: "kill -9 of one member",
        lasts: (500, 6000),
        begin: kill_one,
        end: start_all,
        in_all: true,
    },
    Row {
        name: "kill-leader",
        about: "kill -9 of the leader",
        lasts: (500, 6000),
        begin: kill_leader,
        end: start_all,
        in_all: true,
    },
    Row {
        name: "kill-majority",
        about: "kill -9 of more than half",
        lasts: (500, 4000),
        begin: kill_majority,
        end: start_all,
        in_all: true,
    },
    Row {
        name: "kill-all",
        about: "kill -9 of all members at once",
        lasts: (200, 2000),
        begin: kill_all,
        end: start_all,
        in_all: true,
    },
    Row {
        name: "storm",
        about: "members are killed and started again in quick succession",
        lasts: (100, 500),
        begin: storm,
        end: start_all,
        in_all: true,
    },
    Row {
        name: "pause",
        about: "SIGSTOP of one member for longer than elections, then SIGCONT",
        lasts: (1500, 7000),
        begin: pause_one,
        end: resume_all,
        in_all: true,
    },
    Row {
        name: "pause-leader",
        about: "SIGSTOP of the leader, then SIGCONT",
        lasts: (1500, 7000),
        begin: pause_leader,
        end: resume_all,
        in_all: true,
    },
    Row {
        name: "isolate",
        about: "one member is cut off",
        lasts: (1500, 8000),
        begin: isolate_one,
        end: heal,
        in_all: true,
    },
    Row {
        name: "isolate-leader",
        about: "the leader is cut off",
        lasts: (1500, 8000),
        begin: isolate_leader,
        end: heal,
        in_all: true,
    },
    Row {
        name: "split",
        about: "a random majority and the rest do not hear each other",
        lasts: (1500, 8000),
        begin: split,
        end: heal,
        in_all: true,
    },
    Row {
        name: "one-way",
        about: "one member does not hear another, which hears it",
        lasts: (1500, 8000),
        begin: one_way,
        end: heal,
        in_all: true,
    },
    Row {
        name: "bridge",
        about: "two halves that only one member connects",
        lasts: (1500, 8000),
        begin: bridge,
        end: heal,
        in_all: true,
    },
    Row {
        name: "flap",
        about: "one member's link goes down and up",
        lasts: (100, 500),
        begin: flap,
        end: heal,
        in_all: true,
    },
    Row {
        name: "loss",
        about: "a fifth of the packets between members is lost",
        lasts: (3000, 8000),
        begin: loss,
        end: heal,
        in_all: true,
    },
    Row {
        name: "disk-full",
        about: "one member's disk (a small one) is full",
        lasts: (2000, 6000),
        begin: fill,
        end: empty,
        in_all: false,
    },
    Row {
        name: "replace",
        about: "one member's disk is lost: it is removed, and another one joins in its place",
        lasts: (500, 4000),
        begin: replace,
        end: start_all,
        in_all: true,
    },
    Row {
        name: "compact",
        about: "history is compacted",
        lasts: (100, 500),
        begin: compact,
        end: nothing,
        in_all: false,
    },
    Row {
        name: "move-leader",
        about: "the leader hands over",
        lasts: (100, 1000),
        begin: move_leader,
        end: nothing,
        in_all: true,
    },
];

/// The rows of a list of names; `all` stands for those that every workload stands.
pub fn find(names: &[String]) -> Result<Vec<&'static Row>> {
    let mut rows = Vec::new();
    for name in names {
        match TABLE.iter().find(|row| row.name == name) {
            Some(row) => rows.push(row),
            None if name == "all" => rows.extend(TABLE.iter().filter(|row| row.in_all)),
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
    heal(victims)?;
    resume_all(victims)?;
    empty(victims)?;
    start_all(victims)
}

fn random(victims: &Victims<'_>, rng: &mut StdRng) -> usize {
    rng.random_range(0..victims.hosts.len())
}

fn leader(victims: &Victims<'_>, rng: &mut StdRng) -> usize {
    (victims.leader)().unwrap_or_else(|| random(victims, rng))
}

/// A random order of all members; the first half and one more are a majority.
fn shuffled(victims: &Victims<'_>, rng: &mut StdRng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..victims.hosts.len()).collect();
    order.shuffle(rng);
    order
}

fn kill(victims: &Victims<'_>, members: &[usize]) -> Result<String> {
    // Signals first, so that they die together.
    for member in members {
        victims.hosts[*member].signal(victims.system.process, Signal::SIGKILL)?;
    }
    for member in members {
        victims.hosts[*member].kill(victims.system.process)?;
    }
    Ok(format!("kill -9 {}", names(victims, members)))
}

fn names(victims: &Victims<'_>, members: &[usize]) -> String {
    members.iter().map(|member| victims.hosts[*member].name()).collect::<Vec<_>>().join(", ")
}

fn kill_one(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    kill(victims, &[random(victims, rng)])
}

fn kill_leader(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    kill(victims, &[leader(victims, rng)])
}

fn kill_majority(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let order = shuffled(victims, rng);
    kill(victims, &order[..order.len() / 2 + 1])
}

fn kill_all(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    kill(victims, &shuffled(victims, rng))
}

fn start_all(victims: &Victims<'_>) -> Result<()> {
    victims.hosts.iter().try_for_each(|host| victims.system.start(victims.program, host, victims.hosts))
}

fn storm(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    for _ in 0..STORM {
        kill_one(victims, rng)?;
        std::thread::sleep(Duration::from_millis(rng.random_range(0..400)));
        start_all(victims)?;
        std::thread::sleep(Duration::from_millis(rng.random_range(0..800)));
    }
    Ok(format!("{STORM} kills and restarts"))
}

fn pause(victims: &Victims<'_>, member: usize) -> Result<String> {
    victims.hosts[member].signal(victims.system.process, Signal::SIGSTOP)?;
    Ok(format!("SIGSTOP {}", victims.hosts[member].name()))
}

fn pause_one(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    pause(victims, random(victims, rng))
}

fn pause_leader(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    pause(victims, leader(victims, rng))
}

fn resume_all(victims: &Victims<'_>) -> Result<()> {
    victims.hosts.iter().try_for_each(|host| host.signal(victims.system.process, Signal::SIGCONT))
}

/// Has a host drop what comes from others, all of it or a share in percent. Clients are not members and get through.
fn deafen(host: &Host<'_>, to: &[&Host<'_>], percent: u32) -> Result<()> {
    if to.is_empty() {
        return Ok(());
    }
    let from: Vec<_> = to.iter().map(|host| host.address().to_string()).collect();
    let share = if percent == 100 { String::new() } else { format!("numgen random mod 100 < {percent}") };
    let rules = format!(
        "add table inet chaos; add chain inet chaos input {{ type filter hook input priority 0; }}; \
         add rule inet chaos input ip saddr {{ {} }} {share} drop",
        from.join(", ")
    );
    host.run("nft", &[&rules]).map(drop)
}

/// Keeps two groups from hearing each other.
fn part(victims: &Victims<'_>, one: &[usize], other: &[usize]) -> Result<String> {
    let hosts = |members: &[usize]| members.iter().map(|m| &victims.hosts[*m]).collect::<Vec<_>>();
    for host in hosts(one) {
        deafen(host, &hosts(other), 100)?;
    }
    for host in hosts(other) {
        deafen(host, &hosts(one), 100)?;
    }
    Ok(format!("{} | {}", names(victims, one), names(victims, other)))
}

fn others(victims: &Victims<'_>, member: usize) -> Vec<usize> {
    (0..victims.hosts.len()).filter(|other| *other != member).collect()
}

fn isolate_one(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let member = random(victims, rng);
    part(victims, &[member], &others(victims, member))
}

fn isolate_leader(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let member = leader(victims, rng);
    part(victims, &[member], &others(victims, member))
}

fn split(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let order = shuffled(victims, rng);
    let (one, other) = order.split_at(order.len() / 2 + 1);
    part(victims, one, other)
}

fn one_way(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let order = shuffled(victims, rng);
    let (Some(deaf), Some(heard)) = (order.first(), order.get(1)) else { return Ok("there is one member".into()) };
    deafen(&victims.hosts[*deaf], &[&victims.hosts[*heard]], 100)?;
    Ok(format!("{} does not hear {}", victims.hosts[*deaf].name(), victims.hosts[*heard].name()))
}

fn bridge(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let order = shuffled(victims, rng);
    let Some((between, rest)) = order.split_first() else { return Ok("there is no member".into()) };
    let (one, other) = rest.split_at(rest.len() / 2);
    let parted = part(victims, one, other)?;
    Ok(format!("{parted}, both hear {}", victims.hosts[*between].name()))
}

fn flap(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let member = random(victims, rng);
    let rest = others(victims, member);
    for _ in 0..rng.random_range(3..8) {
        part(victims, &[member], &rest)?;
        std::thread::sleep(Duration::from_millis(rng.random_range(50..900)));
        heal(victims)?;
        std::thread::sleep(Duration::from_millis(rng.random_range(50..900)));
    }
    Ok(format!("{} came and went", victims.hosts[member].name()))
}

fn loss(victims: &Victims<'_>, _: &mut StdRng) -> Result<String> {
    for (i, host) in victims.hosts.iter().enumerate() {
        let rest: Vec<&Host<'_>> = others(victims, i).into_iter().map(|other| &victims.hosts[other]).collect();
        deafen(host, &rest, LOSS)?;
    }
    Ok(format!("{LOSS} % of the packets between members are lost"))
}

fn heal(victims: &Victims<'_>) -> Result<()> {
    for host in victims.hosts {
        // Two commands: deleting a table that is not there is an error.
        host.run("nft", &["add table inet chaos; delete table inet chaos"])?;
    }
    Ok(())
}

/// Gives a member's data a small disk of its own: a file system in a file. Before the member starts.
pub fn small_disk(host: &Host<'_>) -> Result<()> {
    let image = "/var/lib/keelson/disk";
    host.run("truncate", &["--size", DISK_SIZE, image])?;
    host.run("mkfs.ext4", &["-q", "-F", image])?;
    host.run("mkdir", &["-p", DATA])?;
    host.run("mount", &["-o", "loop", image, DATA]).map(drop)
}

fn fill(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let host = &victims.hosts[random(victims, rng)];
    // Ends with an error when the disk is full, which is what is wanted.
    let command = format!("mountpoint -q {DATA} || exit 9; dd if=/dev/zero of={DATA}/ballast bs=64k 2>/dev/null; true");
    host.run("sh", &["-c", &command])?;
    Ok(format!("the disk of {} is full", host.name()))
}

fn empty(victims: &Victims<'_>) -> Result<()> {
    for host in victims.hosts {
        host.run("rm", &["-f", &format!("{DATA}/ballast")])?;
    }
    // A member that could not write has ended.
    start_all(victims)
}

fn replace(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    if victims.hosts.len() < 3 {
        return Ok("too few members to spare one".into());
    }
    let member = random(victims, rng);
    let host = &victims.hosts[member];
    kill(victims, &[member])?;
    if let Err(error) = (victims.ask)(Ask::Remove(member)) {
        return Ok(format!("{} could not be removed: {error:#}", host.name()));
    }
    host.run("find", &[DATA, "-mindepth", "1", "-delete"])?;
    (victims.ask)(Ask::Add(member))?;
    victims.system.start(victims.program, host, victims.hosts)?;
    Ok(format!("{} lost its disk and was replaced", host.name()))
}

fn compact(victims: &Victims<'_>, _: &mut StdRng) -> Result<String> {
    Ok(asked("to compact", (victims.ask)(Ask::Compact)))
}

fn move_leader(victims: &Victims<'_>, _: &mut StdRng) -> Result<String> {
    Ok(asked("to hand over", (victims.ask)(Ask::MoveLeader)))
}

/// That nobody leads at the moment, or that the leader refuses, is no fault of the harness.
fn asked(what: &str, result: Result<()>) -> String {
    match result {
        Ok(()) => format!("the leader was asked {what}"),
        Err(error) => format!("the leader was asked {what}, in vain: {error:#}"),
    }
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

    #[test]
    fn names_are_found_and_unique() {
        let all = find(&["all".into()]).unwrap();
        assert!(all.len() > 10 && find(&["kill".into(), "none".into()]).unwrap().len() == 1);
        assert!(find(&["earthquake".into()]).is_err());
        let mut names: Vec<&str> = TABLE.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
    }

    #[test]
    fn a_seed_gives_one_order() {
        let rows = find(&["all".into()]).unwrap();
        let order = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..20).filter_map(|_| choose(&rows, &mut rng)).map(|row| row.name).collect::<Vec<_>>()
        };
        assert_eq!(order(7), order(7));
        assert_ne!(order(7), order(8));
    }
}
