//! Faults in the simulated world: one table, and the plan of a run, which follows from its seed. Each fault has its own
//! dice, so that a plan can be shortened without changing what is left.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::FutureExt;
use futures::future::BoxFuture;
use keelson_raft::Change;
use keelson_store::Kv;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::world::World;

/// Quiet between faults, in milliseconds.
const QUIET: (u64, u64) = (200, 4000);
/// One fault in so many begins while the one before is still there.
const OVERLAP: u32 = 4;
/// The same in runs in which faults are rare, so that what takes long happens between them.
const RARE_QUIET: (u64, u64) = (8_000, 30_000);
/// One run in so many is such a run.
const RARE: u32 = 4;
/// Revisions that a compaction keeps at most.
const KEPT: i64 = 100;

/// How often it is looked, about every second, whether a new member votes.
const ROLL_LOOKS: u32 = 30;

/// What a fault acts upon, and its dice.
struct Act {
    world: Arc<World>,
    dice: StdRng,
}

type Begin = fn(Act) -> BoxFuture<'static, String>;

/// A row of the table.
pub struct Row {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// How long it lasts, in milliseconds, at least and at most.
    lasts: (u64, u64),
    begin: Begin,
}

macro_rules! rows {
    ($(($name:literal, $about:literal, $least:literal..$most:literal, $begin:path)),+ $(,)?) => {
        /// All faults.
        pub const TABLE: &[Row] = &[
            $(Row { name: $name, about: $about, lasts: ($least, $most), begin: |act| $begin(act).boxed() }),+
        ];
    };
}

rows![
    ("kill", "one member is killed", 100..6000, kill_one),
    ("kill-leader", "the leader is killed", 100..6000, kill_leader),
    ("kill-majority", "more than half are killed", 100..4000, kill_majority),
    ("kill-all", "all members are killed at once", 100..2000, kill_all),
    ("storm", "members are killed and started again in quick succession", 100..500, storm),
    ("blink", "the leader is killed and started again at once, some times", 100..500, blink),
    ("power-cut", "one member loses its power in the middle of an operation of its disk", 500..4000, power_cut),
    ("power-cut-all", "all members lose their power, each in the middle of an operation", 500..4000, power_cut_all),
    ("restart", "one member after another is restarted in order", 100..1000, restart),
    ("pause", "one member does not run for a while", 1000..8000, pause_one),
    ("pause-leader", "the leader does not run for a while", 1000..8000, pause_leader),
    ("isolate", "one member is cut off", 1000..15000, isolate_one),
    ("isolate-leader", "the leader is cut off", 1000..8000, isolate_leader),
    ("split", "a random majority and the rest do not hear each other", 1000..8000, split),
    ("one-way", "one member does not hear another, which hears it", 1000..8000, one_way),
    ("deaf-leader", "the leader is heard and hears nobody", 1000..8000, deaf_leader),
    ("bridge", "two halves that only one member connects", 1000..8000, bridge),
    ("flap", "one member's link goes down and up", 100..500, flap),
    ("loss", "a share of the packets between members is lost", 2000..8000, loss),
    ("far", "one member is far away", 2000..8000, far),
    ("slow-disk", "one member's disk is slow to sync", 1000..8000, slow_disk),
    ("disk-full", "one member's disk is full", 1000..6000, disk_full),
    ("disk-error", "writes to one member's disk fail", 500..4000, disk_error),
    ("sync-error", "syncs of one member's disk fail", 500..4000, sync_error),
    ("bit-flip", "a bit of one member's log is flipped while it is dead", 100..3000, bit_flip),
    ("table-rot", "a bit of one member's tables is flipped while it is dead", 100..3000, table_rot),
    ("torn-table", "a table of one member loses its end while it is dead", 100..3000, torn_table),
    ("diverge", "the history of one member is forged while it is dead", 100..3000, diverge),
    ("drift", "clocks tick faster and slower", 3000..15000, drift),
    ("jump", "the clock of one member jumps ahead", 100..500, jump),
    ("lag-twice", "one member is cut off, comes back for a moment and is cut off again", 5000..12000, lag_twice),
    (
        "snapshot-rot",
        "one member is cut off, and bits of the snapshots flip that it gets then",
        5000..15000,
        snapshot_rot
    ),
    ("replace", "one member's disk is lost, and another one joins in its place", 500..4000, replace),
    ("roll", "one member after another is replaced", 500..2000, roll),
    ("compact", "history is compacted", 100..500, compact),
    ("move-leader", "the leader hands over", 100..1000, move_leader),
];

/// The rows of a list of names; `all` stands for all of them.
pub fn find(names: &[String]) -> Result<Vec<&'static Row>> {
    let mut rows = Vec::new();
    for name in names {
        match TABLE.iter().find(|row| row.name == name) {
            Some(row) => rows.push(row),
            None if name == "all" => rows.extend(TABLE),
            None if name == "none" => {}
            None => {
                let known: Vec<&str> = TABLE.iter().map(|row| row.name).collect();
                bail!("there is no nemesis {name}: there are {}, all and none", known.join(", "));
            }
        }
    }
    Ok(rows)
}

/// A fault of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// When it begins, milliseconds since the run began.
    pub at: u64,
    /// When it ends.
    pub until: u64,
    /// The row of the table.
    pub name: String,
    /// Its dice.
    pub dice: u64,
}

/// Faults for so many milliseconds.
pub fn plan(rows: &[&'static Row], length: u64, dice: &mut StdRng) -> Vec<Planned> {
    let (mut plan, mut at) = (Vec::new(), 0);
    let quiet = if dice.random_range(0..RARE) == 0 { RARE_QUIET } else { QUIET };
    while !rows.is_empty() {
        at += dice.random_range(quiet.0..quiet.1);
        if at >= length {
            break;
        }
        let row = rows[dice.random_range(0..rows.len())];
        let until = at + dice.random_range(row.lasts.0..=row.lasts.1);
        plan.push(Planned { at, until, name: row.name.into(), dice: dice.random() });
        if quiet == RARE_QUIET || dice.random_range(0..OVERLAP) > 0 {
            at = until;
        }
    }
    plan
}

impl Planned {
    /// Begins it; says what was done to whom.
    pub async fn begin(&self, world: &Arc<World>) -> String {
        let Some(row) = TABLE.iter().find(|row| row.name == self.name) else {
            return format!("there is no fault {}", self.name);
        };
        (row.begin)(Act { world: world.clone(), dice: StdRng::seed_from_u64(self.dice) }).await
    }
}

impl Act {
    fn random(&mut self) -> usize {
        let count = self.world.count();
        self.dice.random_range(0..count)
    }

    fn leader(&mut self) -> usize {
        let random = self.random();
        self.world.leader().unwrap_or(random)
    }

    /// A random order of all members.
    fn shuffled(&mut self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.world.count()).collect();
        order.shuffle(&mut self.dice);
        order
    }

    async fn wait(&mut self, millis: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.dice.random_range(millis))).await;
    }

    fn kill(&self, members: &[usize]) -> String {
        members.iter().for_each(|member| self.world.kill(*member));
        format!("killed {members:?}")
    }

    /// Keeps two groups from hearing each other.
    fn part(&self, one: &[usize], other: &[usize]) -> String {
        for a in one {
            for b in other {
                self.world.net.cut(*a, *b);
                self.world.net.cut(*b, *a);
            }
        }
        format!("{one:?} | {other:?}")
    }

    fn others(&self, member: usize) -> Vec<usize> {
        (0..self.world.count()).filter(|other| *other != member).collect()
    }

    fn cut_power(&mut self, member: usize) {
        let world = Arc::downgrade(&self.world);
        let operations = self.dice.random_range(1..30);
        let cut = move || {
            if let Some(world) = world.upgrade() {
                world.kill(member);
            }
        };
        self.world.with(member, |found| found.disk.cut_power_after(operations, Arc::new(cut)));
    }
}

async fn kill_one(mut act: Act) -> String {
    let member = act.random();
    act.kill(&[member])
}

async fn kill_leader(mut act: Act) -> String {
    let member = act.leader();
    act.kill(&[member])
}

async fn kill_majority(mut act: Act) -> String {
    let order = act.shuffled();
    act.kill(&order[..order.len() / 2 + 1])
}

async fn kill_all(mut act: Act) -> String {
    let order = act.shuffled();
    act.kill(&order)
}

async fn storm(mut act: Act) -> String {
    let times = act.dice.random_range(3..8);
    for _ in 0..times {
        let member = act.random();
        act.world.kill(member);
        act.wait(0..400).await;
        act.world.start(member);
        act.wait(0..800).await;
    }
    format!("{times} kills and restarts")
}

async fn blink(mut act: Act) -> String {
    let times = act.dice.random_range(1..6);
    for _ in 0..times {
        let member = act.leader();
        act.world.kill(member);
        act.wait(0..60).await;
        act.world.start(member);
        act.wait(500..3000).await;
    }
    format!("{times} kills and restarts of the leader")
}

async fn power_cut(mut act: Act) -> String {
    let member = act.random();
    act.cut_power(member);
    format!("the power of {member} goes soon")
}

async fn power_cut_all(mut act: Act) -> String {
    (0..act.world.count()).for_each(|member| act.cut_power(member));
    "the power of all goes soon".into()
}

async fn restart(mut act: Act) -> String {
    let order = act.shuffled();
    for member in &order {
        act.world.shut_down(*member).await;
        act.wait(0..500).await;
        act.world.start(*member);
        act.wait(100..3000).await;
    }
    format!("restarted {order:?}")
}

async fn pause_one(mut act: Act) -> String {
    let member = act.random();
    act.world.pause(member);
    format!("paused {member}")
}

async fn pause_leader(mut act: Act) -> String {
    let member = act.leader();
    act.world.pause(member);
    format!("paused {member}")
}

async fn isolate_one(mut act: Act) -> String {
    let member = act.random();
    act.part(&[member], &act.others(member))
}

async fn isolate_leader(mut act: Act) -> String {
    let member = act.leader();
    act.part(&[member], &act.others(member))
}

async fn split(mut act: Act) -> String {
    let order = act.shuffled();
    let (one, other) = order.split_at(order.len() / 2 + 1);
    act.part(one, other)
}

async fn one_way(mut act: Act) -> String {
    let order = act.shuffled();
    let [deaf, heard, ..] = order[..] else { return "there is one member".into() };
    act.world.net.cut(heard, deaf);
    format!("{deaf} does not hear {heard}")
}

async fn deaf_leader(mut act: Act) -> String {
    let leader = act.leader();
    act.others(leader).iter().for_each(|other| act.world.net.cut(*other, leader));
    format!("{leader} hears nobody")
}

async fn bridge(mut act: Act) -> String {
    let order = act.shuffled();
    let Some((between, rest)) = order.split_first() else { return "there is no member".into() };
    let (one, other) = rest.split_at(rest.len() / 2);
    format!("{}, both hear {between}", act.part(one, other))
}

async fn flap(mut act: Act) -> String {
    let member = act.random();
    for _ in 0..act.dice.random_range(3..8) {
        act.part(&[member], &act.others(member));
        act.wait(50..900).await;
        act.world.net.heal();
        act.wait(50..900).await;
    }
    format!("{member} came and went")
}

async fn loss(mut act: Act) -> String {
    let percent = act.dice.random_range(5..40);
    act.world.net.set_loss(f64::from(percent) / 100.0);
    format!("{percent} % of the packets between members are lost")
}

async fn far(mut act: Act) -> String {
    let (member, millis) = (act.random(), act.dice.random_range(20..400));
    act.world.net.set_far(member, Duration::from_millis(millis));
    format!("{member} is {millis} ms away")
}

async fn slow_disk(mut act: Act) -> String {
    let (member, millis) = (act.random(), act.dice.random_range(20..2000));
    act.world.with(member, |found| found.disk.set_slow(Duration::from_millis(millis)));
    format!("syncs of {member} take {millis} ms")
}

async fn disk_full(mut act: Act) -> String {
    let member = act.random();
    act.world.excuse(member);
    act.world.with(member, |found| found.disk.set_full(true));
    format!("the disk of {member} is full")
}

async fn disk_error(mut act: Act) -> String {
    let member = act.random();
    act.world.excuse(member);
    act.world.with(member, |found| found.disk.set_broken(true));
    format!("writes of {member} fail")
}

async fn sync_error(mut act: Act) -> String {
    let member = act.random();
    act.world.excuse(member);
    act.world.with(member, |found| found.disk.set_unsyncable(true));
    format!("syncs of {member} fail")
}

async fn bit_flip(mut act: Act) -> String {
    let member = act.random();
    if act.world.count() < 3 || act.world.any_excused() || !act.world.is_whole() {
        return "not while another disk is in doubt".into();
    }
    act.world.kill(member);
    act.world.excuse(member);
    match act.world.with(member, |found| found.disk.flip_bit()) {
        Some(place) => format!("{member}: {place}"),
        None => "nothing was written yet".into(),
    }
}

/// Kills a member whose loss the others can bear; `None` if there is none.
fn victim(act: &mut Act) -> Option<usize> {
    let member = act.random();
    if act.world.count() < 3 || act.world.any_excused() || !act.world.is_whole() {
        return None;
    }
    act.world.kill(member);
    Some(member)
}

const IN_DOUBT: &str = "not while another disk is in doubt";

/// A random table or catalogue of tables below a directory, and its content.
fn table(dir: &Path, dice: &mut StdRng) -> io::Result<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for generation in fs::read_dir(dir)? {
        let generation = generation?;
        if !generation.file_type()?.is_dir() {
            continue;
        }
        for entry in fs::read_dir(generation.path())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(".sst") || name.starts_with("MANIFEST") {
                found.push(path);
            }
        }
    }
    found.sort();
    let path = found.get(dice.random_range(0..found.len().max(1))).ok_or(io::ErrorKind::NotFound)?;
    Ok((path.clone(), fs::read(path)?))
}

/// A place in a file that does not depend on its exact length: that follows from the machine's time as well.
fn place(content: &[u8], dice: &mut StdRng) -> usize {
    let within = (content.len() / 2 + 1).next_power_of_two() / 2;
    dice.random_range(0..within.max(1))
}

/// Another file takes the place of one that may be linked to elsewhere.
fn exchange(path: &Path, content: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    fs::write(&part, content)?;
    fs::rename(part, path)
}

async fn table_rot(mut act: Act) -> String {
    let Some(member) = victim(&mut act) else { return IN_DOUBT.into() };
    let mut dice = StdRng::seed_from_u64(act.dice.random());
    let told = act.world.damage(member, |dir| {
        let (path, mut content) = table(dir, &mut dice)?;
        let byte = place(&content, &mut dice);
        *content.get_mut(byte).ok_or(io::ErrorKind::UnexpectedEof)? ^= 1 << dice.random_range(0..8);
        exchange(&path, &content)?;
        Ok("a bit of a table is flipped".into())
    });
    format!("{member}: {told}")
}

async fn torn_table(mut act: Act) -> String {
    let Some(member) = victim(&mut act) else { return IN_DOUBT.into() };
    let mut dice = StdRng::seed_from_u64(act.dice.random());
    let told = act.world.damage(member, |dir| {
        let (path, content) = table(dir, &mut dice)?;
        exchange(&path, &content[..place(&content, &mut dice)])?;
        Ok("a table has lost its end".into())
    });
    format!("{member}: {told}")
}

async fn diverge(mut act: Act) -> String {
    let Some(member) = victim(&mut act) else { return IN_DOUBT.into() };
    let forge = |dir: &Path| keelson_store::damage::forge_history(dir).map_err(io::Error::other);
    let told = act.world.damage(member, |dir| forge(dir).map(|()| "its history is forged".into()));
    format!("{member}: {told}")
}

async fn roll(mut act: Act) -> String {
    let order = act.shuffled();
    let mut replaced = Vec::new();
    for member in order {
        for _ in 0..ROLL_LOOKS {
            if act.world.is_whole() && !act.world.any_excused() {
                break;
            }
            act.wait(900..1100).await;
        }
        if act.world.count() < 3 || act.world.any_excused() || !act.world.is_whole() {
            break;
        }
        act.world.kill(member);
        act.world.wipe(member);
        act.wait(0..1000).await;
        act.world.start(member);
        replaced.push(member);
    }
    format!("replaced {replaced:?}")
}

async fn drift(mut act: Act) -> String {
    let paces: Vec<u64> = (0..act.world.count()).map(|_| act.dice.random_range(950..1050)).collect();
    for (member, pace) in paces.iter().enumerate() {
        act.world.with(member, |found| found.clock.set_pace(*pace));
    }
    format!("clocks tick at {paces:?} per mille")
}

async fn jump(mut act: Act) -> String {
    let (member, millis) = (act.random(), act.dice.random_range(100..10_000));
    act.world.with(member, |found| found.clock.jump(millis));
    act.world.jumped(millis);
    format!("the clock of {member} jumps ahead by {millis} ms")
}

async fn lag_twice(mut act: Act) -> String {
    let member = act.random();
    let others = act.others(member);
    act.part(&[member], &others);
    act.wait(5000..12_000).await;
    act.world.net.heal();
    act.wait(50..2000).await;
    act.part(&[member], &others)
}

async fn snapshot_rot(mut act: Act) -> String {
    let member = act.random();
    act.part(&[member], &act.others(member));
    act.wait(3000..10_000).await;
    act.world.net.heal();
    let percent = act.dice.random_range(20..90);
    act.world.net.set_rot(f64::from(percent) / 100.0);
    format!("{member} was cut off, {percent} % of the snapshots have a bit flipped from now on")
}

async fn replace(mut act: Act) -> String {
    let member = act.random();
    if act.world.count() < 3 || act.world.any_excused() || !act.world.is_whole() {
        return "no member can be spared".into();
    }
    act.world.kill(member);
    act.world.wipe(member);
    act.wait(0..2000).await;
    act.world.start(member);
    format!("{member} lost its disk and is replaced")
}

async fn compact(mut act: Act) -> String {
    let keep = act.dice.random_range(0..KEPT);
    let Some((at, replica)) = act.world.replicas().into_iter().next() else { return "nobody runs".into() };
    let revision = replica.view().revision() - keep;
    // A refusal is no fault of the harness.
    let told = tokio::time::timeout(Duration::from_secs(2), replica.compact(revision.max(1))).await;
    format!("{at} was asked to compact {revision}: {told:?}")
}

async fn move_leader(act: Act) -> String {
    let Some(leader) = act.world.leader() else { return "nobody leads".into() };
    let replicas = act.world.replicas();
    let heir = replicas.iter().find(|(at, _)| *at != leader).map(|(at, _)| *at);
    let (Some(heir), Some((_, replica))) = (heir, replicas.iter().find(|(at, _)| *at == leader)) else {
        return "there is nobody else".into();
    };
    let change = replica.change(Change::Transfer(act.world.with(heir, |found| found.id)));
    let told = tokio::time::timeout(Duration::from_secs(2), change).await;
    format!("{leader} was asked to hand over to {heir}: {told:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_unique() {
        assert_eq!(find(&["all".into()]).unwrap().len(), TABLE.len());
        assert_eq!(find(&["kill".into(), "none".into()]).unwrap().len(), 1);
        assert!(find(&["earthquake".into()]).is_err());
        let names: std::collections::BTreeSet<&str> = TABLE.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), TABLE.len());
    }

    #[test]
    fn a_plan_follows_from_its_seed() {
        let rows = find(&["all".into()]).unwrap();
        let plan = |seed| plan(&rows, 60_000, &mut StdRng::seed_from_u64(seed));
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
        assert!(
            (1..9).map(|seed| plan(seed).len()).max() > Some(5) && plan(1).iter().all(|fault| fault.at < fault.until)
        );
    }
}
