//! Changes of who belongs to the cluster, who leads it and what it remembers.

use std::time::Duration;

use anyhow::{Context, Result};
use keelson_testbed::{Host, until};
use rand::RngExt;
use rand::rngs::StdRng;

use super::disk::{ANY_ID, DOUBT};
use super::{Ask, Victims, names, process, random};

/// How long members may take to be whole again.
const WHOLE: Duration = Duration::from_secs(180);

/// Beside the data of a member that is to be added anew.
const TO_ADD: &str = "to-add";
/// How long after a look at who belongs to the cluster another one follows.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// Removes a member that is dead by then; why not, if it cannot be spared.
pub(super) fn remove(victims: &Victims<'_>, member: usize) -> Result<Option<String>> {
    if victims.hosts.len() < 3 {
        return Ok(Some("too few members to spare one".into()));
    }
    // One that was just added does not vote yet: without this one too, nobody could decide anything any more.
    if (victims.whole)().is_none() {
        return Ok(Some("not before all members vote".into()));
    }
    let host = &victims.hosts[member];
    process::kill(victims, &[member])?;
    if let Err(error) = (victims.ask)(Ask::Remove(member)) {
        return Ok(Some(format!("{} could not be removed: {error:#}", host.name())));
    }
    empty(victims, host)?;
    Ok(None)
}

pub(super) fn replace(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let member = random(victims, rng);
    if let Some(why) = remove(victims, member)? {
        return Ok(why);
    }
    add(victims, member)?;
    Ok(format!("{} lost its disk and was replaced", names(victims, &[member])))
}

/// Empties the disk of a member that is dead, and notes that it is to be added anew.
fn empty(victims: &Victims<'_>, host: &Host<'_>) -> Result<()> {
    std::fs::write(host.dir().join(TO_ADD), "")?;
    victims.system.wipe(host)
}

/// Adds a member anew whose disk is empty.
pub(super) fn add(victims: &Victims<'_>, member: usize) -> Result<()> {
    let host = &victims.hosts[member];
    (victims.ask)(Ask::Add(member))?;
    std::fs::remove_file(host.dir().join(TO_ADD))?;
    victims.system.start(victims.program, host, victims.hosts)
}

pub(super) fn shrink(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let member = random(victims, rng);
    Ok(remove(victims, member)?.unwrap_or_else(|| format!("{} was removed", names(victims, &[member]))))
}

/// Adds whoever has no disk any more, or was removed by a request that had no answer, and starts whoever does not run.
pub(super) fn grow(victims: &Victims<'_>) -> Result<()> {
    readmit(victims)?;
    process::start_all(victims)
}

fn readmit(victims: &Victims<'_>) -> Result<()> {
    let listed = (victims.listed)();
    for (member, host) in victims.hosts.iter().enumerate() {
        let is_out = |listed: &Option<Vec<bool>>| listed.as_ref().is_some_and(|listed| !listed[member]);
        if is_out(&listed) {
            // Who begins anew from its peers is in no list for a moment.
            std::thread::sleep(LOOK_AGAIN);
            if is_out(&(victims.listed)()) {
                process::kill(victims, &[member])?;
                empty(victims, host)?;
            }
        }
        if host.dir().join(TO_ADD).exists() {
            // It may have been listed meanwhile, with an id that is gone with its disk.
            process::kill(victims, &[member])?;
            (victims.ask)(Ask::Remove(member))?;
            victims.system.wipe(host)?;
            add(victims, member)?;
        }
    }
    Ok(())
}

/// Waits until all members run and vote: one that was damaged has begun anew from the others.
/// Damage that has not shown by then would show at any time, also when another one is damaged: who has it is replaced.
pub(super) fn until_whole(victims: &Victims<'_>) -> Result<()> {
    let ids = whole(victims)?;
    for (member, host) in victims.hosts.iter().enumerate() {
        let doubt = host.dir().join(DOUBT);
        let Ok(id) = std::fs::read_to_string(&doubt) else { continue };
        std::fs::remove_file(&doubt)?;
        let hidden = id == ANY_ID || ids.get(member).is_some_and(|now| now.to_string() == id);
        if hidden && remove(victims, member)?.is_none() {
            add(victims, member)?;
            whole(victims)?;
        }
    }
    Ok(())
}

fn whole(victims: &Victims<'_>) -> Result<Vec<u64>> {
    until("all members run and vote", WHOLE, || {
        // A request to remove a member that had no answer may be done only once those run again that it needs. What cannot be
        // added yet is tried again.
        let _ = readmit(victims);
        process::start_all(victims)?;
        Ok((victims.whole)())
    })
    .with_context(|| {
        victims.hosts.iter().map(|host| host.log_end(victims.system.service)).collect::<Vec<_>>().join("\n")
    })
}

/// New certificates for all servers, which go on; now and then new CAs.
pub(super) fn certificates(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let (words, what): (&[&str], _) = match rng.random_range(0..3) {
        0 => (&["certs", "rotate", "--ca"], "CAs and certificates"),
        _ => (&["certs", "rotate"], "certificates"),
    };
    match victims.system.tell(victims.hosts, words) {
        Ok(_) => Ok(format!("{what} are new")),
        Err(error) => Ok(format!("{what} could not be made anew: {error:#}")),
    }
}

pub(super) fn compact(victims: &Victims<'_>, _: &mut StdRng) -> Result<String> {
    Ok(asked("to compact", (victims.ask)(Ask::Compact)))
}

pub(super) fn move_leader(victims: &Victims<'_>, _: &mut StdRng) -> Result<String> {
    Ok(asked("to hand over", (victims.ask)(Ask::MoveLeader)))
}

/// That nobody leads at the moment, or that the leader refuses, is no fault of the harness.
fn asked(what: &str, result: Result<()>) -> String {
    match result {
        Ok(()) => format!("the leader was asked {what}"),
        Err(error) => format!("the leader was asked {what}, in vain: {error:#}"),
    }
}
