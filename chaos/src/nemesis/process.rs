//! Faults of processes: killed, paused, restarted, restarted as another build or with another clock.

use std::time::Duration;

use anyhow::Result;
use keelson_testbed::until;
use nix::sys::signal::Signal;
use rand::RngExt;
use rand::rngs::StdRng;

use super::{Victims, leader, names, random, shuffled};

/// Restarts in a storm.
const STORM: u32 = 6;
/// How long a member may take to end in order; then it is killed.
const ORDERLY: Duration = Duration::from_secs(10);
/// How far the clock of a member jumps, in seconds.
const JUMP_SECONDS: std::ops::Range<u64> = 0..1_000_000;

pub(super) fn kill(victims: &Victims<'_>, members: &[usize]) -> Result<String> {
    // Signals first, so that they die together.
    for member in members {
        victims.hosts[*member].signal(victims.system.process, Signal::SIGKILL)?;
    }
    for member in members {
        victims.hosts[*member].kill(victims.system.process)?;
    }
    Ok(format!("kill -9 {}", names(victims, members)))
}

pub(super) fn kill_one(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    kill(victims, &[random(victims, rng)])
}

pub(super) fn kill_leader(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    kill(victims, &[leader(victims, rng)])
}

pub(super) fn kill_majority(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let order = shuffled(victims, rng);
    kill(victims, &order[..order.len() / 2 + 1])
}

pub(super) fn kill_all(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    kill(victims, &shuffled(victims, rng))
}

pub(super) fn start_all(victims: &Victims<'_>) -> Result<()> {
    victims.hosts.iter().try_for_each(|host| victims.system.start(victims.program, host, victims.hosts))
}

pub(super) fn storm(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    for _ in 0..STORM {
        kill_one(victims, rng)?;
        std::thread::sleep(Duration::from_millis(rng.random_range(0..400)));
        start_all(victims)?;
        std::thread::sleep(Duration::from_millis(rng.random_range(0..800)));
    }
    Ok(format!("{STORM} kills and restarts"))
}

/// Asks a member to end, waits for it, and kills it if it does not.
fn end(victims: &Victims<'_>, member: usize) -> Result<()> {
    let (host, process) = (&victims.hosts[member], victims.system.process);
    host.signal(process, Signal::SIGTERM)?;
    let ended = until("it ends", ORDERLY, || Ok(host.processes(process)?.is_empty().then_some(())));
    if ended.is_err() {
        host.kill(process)?;
    }
    Ok(())
}

/// Restarts one after another, with what `change` does in between.
fn roll(victims: &Victims<'_>, rng: &mut StdRng, change: impl Fn(usize) -> Result<()>) -> Result<Vec<usize>> {
    let order = shuffled(victims, rng);
    for member in &order {
        end(victims, *member)?;
        change(*member)?;
        victims.system.start(victims.program, &victims.hosts[*member], victims.hosts)?;
        std::thread::sleep(Duration::from_millis(rng.random_range(500..3000)));
    }
    Ok(order)
}

pub(super) fn restart(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let order = roll(victims, rng, |_| Ok(()))?;
    Ok(format!("restarted {}", names(victims, &order)))
}

/// To the other build, and back the next time.
pub(super) fn upgrade(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let other = !victims.program.is_other(&victims.hosts[0]);
    let order = roll(victims, rng, |member| victims.program.set_other(&victims.hosts[member], other))?;
    let build = if other { "the other build" } else { "this build" };
    Ok(format!("{} are {build} now", names(victims, &order)))
}

/// The clocks that a member reads are those of a time namespace: the machine's are everybody's.
pub(super) fn clock(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let (member, seconds) = (random(victims, rng), rng.random_range(JUMP_SECONDS));
    kill(victims, &[member])?;
    victims.program.set_clock(&victims.hosts[member], seconds)?;
    victims.system.start(victims.program, &victims.hosts[member], victims.hosts)?;
    Ok(format!("the clock of {} is {seconds} s ahead", names(victims, &[member])))
}

fn pause(victims: &Victims<'_>, member: usize) -> Result<String> {
    victims.hosts[member].signal(victims.system.process, Signal::SIGSTOP)?;
    Ok(format!("SIGSTOP {}", victims.hosts[member].name()))
}

pub(super) fn pause_one(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    pause(victims, random(victims, rng))
}

pub(super) fn pause_leader(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    pause(victims, leader(victims, rng))
}

pub(super) fn resume_all(victims: &Victims<'_>) -> Result<()> {
    victims.hosts.iter().try_for_each(|host| host.signal(victims.system.process, Signal::SIGCONT))
}
