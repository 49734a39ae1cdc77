//! Faults of a member's disk, which is a file system of its own in a file.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use keelson_testbed::{Host, until};
use nix::libc;
use nix::sys::signal::Signal;
use rand::RngExt;
use rand::rngs::StdRng;

use super::{Victims, members, process, random, shuffled};
use crate::system::DATA;

/// Size of a disk, most of which is never written.
const DISK_SIZE: &str = "3G";
/// The file that it is in, as the host sees it.
const IMAGE: &str = "/var/lib/keelson/disk";
/// How long a file system may be busy.
const BUSY: Duration = Duration::from_secs(15);
/// Stops of a slow disk.
const STOPS: u32 = 8;
/// The request that ends a file system (`_IOR('X', 125, u32)`), and ext4's way to do so without writing what it has not
/// written yet.
const SHUTDOWN: libc::c_ulong = 0x8004_587d;
const GOING_DOWN_NO_FLUSH: u32 = 2;

/// Gives a member's data a small disk of its own: a file system in a file. Before the member starts.
pub fn small_disk(host: &Host<'_>) -> Result<()> {
    host.run("truncate", &["--size", DISK_SIZE, IMAGE])?;
    host.run("mkfs.ext4", &["-q", "-F", IMAGE])?;
    host.run("mkdir", &["-p", DATA])?;
    mount(host)
}

fn mount(host: &Host<'_>) -> Result<()> {
    // Data that nobody synced stays unwritten for long.
    host.run("mount", &["-o", "loop,commit=300,noatime", IMAGE, DATA]).map(drop)
}

/// The data's directory as seen from here.
fn data(host: &Host<'_>) -> Result<PathBuf> {
    host.inside(Path::new(DATA))
}

/// Ends the file system of a member.
fn crash(host: &Host<'_>) -> Result<()> {
    let root = File::open(data(host)?).with_context(|| format!("the disk of {}", host.name()))?;
    let flags = GOING_DOWN_NO_FLUSH;
    // SAFETY: the file is open, and the call reads the number that it is given and writes nothing.
    let result = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &flags) };
    nix::errno::Errno::result(result).map(drop).with_context(|| format!("end the disk of {}", host.name()))
}

/// Takes up again what is on a disk that has ended.
fn revive(host: &Host<'_>) -> Result<()> {
    until(&format!("the disk of {} is free", host.name()), BUSY, || {
        host.run("umount", &[DATA])?;
        Ok(Some(()))
    })?;
    mount(host)
}

/// Cuts the power of members: they are stopped, what they have not synced is lost, and they are dead.
fn cut_power(victims: &Victims<'_>, members: &[usize]) -> Result<()> {
    for member in members {
        victims.hosts[*member].signal(victims.system.process, Signal::SIGSTOP)?;
    }
    members.iter().try_for_each(|member| crash(&victims.hosts[*member]))?;
    process::kill(victims, members)?;
    members.iter().try_for_each(|member| revive(&victims.hosts[*member]))
}

pub(super) fn power_cut(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let member = random(victims, rng);
    cut_power(victims, &[member])?;
    Ok(format!("the power of {} went", victims.hosts[member].name()))
}

pub(super) fn power_cut_all(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    cut_power(victims, &shuffled(victims, rng))?;
    Ok("the power of all went".into())
}

/// Reads from what is in memory may go on; every write and sync fails.
pub(super) fn error(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let host = &victims.hosts[random(victims, rng)];
    crash(host)?;
    Ok(format!("the disk of {} fails", host.name()))
}

/// Replaces what has failed; whoever did not end by itself is killed.
pub(super) fn repair(victims: &Victims<'_>) -> Result<()> {
    for (member, host) in victims.hosts.iter().enumerate() {
        // Only a file system that has ended refuses this.
        if host.run("touch", &[&format!("{DATA}/alive")]).is_err() {
            process::kill(victims, &[member])?;
            revive(host)?;
        }
    }
    process::start_all(victims)
}

pub(super) fn slow(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let host = &victims.hosts[random(victims, rng)];
    for _ in 0..STOPS {
        host.run("fsfreeze", &["--freeze", DATA])?;
        std::thread::sleep(Duration::from_millis(rng.random_range(50..900)));
        host.run("fsfreeze", &["--unfreeze", DATA])?;
        std::thread::sleep(Duration::from_millis(rng.random_range(10..300)));
    }
    Ok(format!("the disk of {} stopped {STOPS} times", host.name()))
}

pub(super) fn stick(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let host = &victims.hosts[random(victims, rng)];
    host.run("fsfreeze", &["--freeze", DATA])?;
    Ok(format!("the disk of {} does not answer", host.name()))
}

pub(super) fn thaw(victims: &Victims<'_>) -> Result<()> {
    for host in victims.hosts {
        // Fails where nothing is frozen, or where there is no such disk.
        host.run("sh", &["-c", &format!("fsfreeze --unfreeze {DATA} 2>/dev/null; true")])?;
    }
    Ok(())
}

pub(super) fn fill(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    let host = &victims.hosts[random(victims, rng)];
    // Most of it is only reserved; the rest ends with an error when the disk is full, which is what is wanted.
    let command = format!(
        "mountpoint -q {DATA} || exit 9; \
         fallocate -l $(($(df --output=avail -B 1M {DATA} | tail -n 1) - 8))M {DATA}/ballast; \
         dd if=/dev/zero of={DATA}/ballast2 bs=64k 2>/dev/null; true"
    );
    host.run("sh", &["-c", &command])?;
    Ok(format!("the disk of {} is full", host.name()))
}

pub(super) fn empty(victims: &Victims<'_>) -> Result<()> {
    for host in victims.hosts {
        host.run("rm", &["-f", &format!("{DATA}/ballast"), &format!("{DATA}/ballast2")])?;
    }
    // A member that could not write has ended.
    process::start_all(victims)
}

/// All files below a directory.
fn files(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { files(&entry.path(), found)? } else { found.push(entry.path()) }
    }
    Ok(())
}

/// Beside the data of a member that was damaged: its id then, or [`ANY_ID`].
pub(super) const DOUBT: &str = "doubt";
/// In place of the id of a member that was damaged before it had one.
pub(super) const ANY_ID: &str = "any";
/// How long a snapshot's files are looked for at a member that was added, and how often.
const RECEIVING: Duration = Duration::from_secs(10);
const RECEIVING_LOOKS: Duration = Duration::from_millis(1);
const IN_DOUBT: &str = "not while another disk is in doubt";

/// Kills a member whose loss the others can bear and damages one of its files that `wanted` names.
fn damage(
    victims: &Victims<'_>,
    rng: &mut StdRng,
    wanted: fn(&str) -> bool,
    how: fn(Vec<u8>, &mut StdRng) -> Vec<u8>,
) -> Result<String> {
    let Some(ids) = (victims.whole)().filter(|ids| ids.len() >= 3) else { return Ok(IN_DOUBT.into()) };
    let member = random(victims, rng);
    fs::write(victims.hosts[member].dir().join(DOUBT), ids[member].to_string())?;
    process::kill(victims, &[member])?;
    let mut found = Vec::new();
    files(&data(&victims.hosts[member])?, &mut found)?;
    found.retain(|path| wanted(&path.to_string_lossy()));
    found.sort();
    let Some(path) = found.get(rng.random_range(0..found.len().max(1))) else {
        return Ok("there is no such file".into());
    };
    let content = fs::read(path).with_context(|| path.display().to_string())?;
    fs::write(path, how(content, rng)).with_context(|| path.display().to_string())?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("{}: {name} is damaged", victims.hosts[member].name()))
}

/// Flips a bit in the older half of what is not zero: the newest part of a log may be a torn end.
fn flip(mut content: Vec<u8>, rng: &mut StdRng) -> Vec<u8> {
    let used = content.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    let byte = rng.random_range(0..used / 2 + 1);
    if let Some(byte) = content.get_mut(byte) {
        *byte ^= 1 << rng.random_range(0..8);
    }
    content
}

fn tear(mut content: Vec<u8>, rng: &mut StdRng) -> Vec<u8> {
    content.truncate(rng.random_range(0..content.len().max(1)));
    content
}

fn is_log(path: &str) -> bool {
    path.contains("/log/") && path.ends_with(".log")
}

fn is_table(path: &str) -> bool {
    path.contains("/state/") && path.ends_with(".sst")
}

pub(super) fn flip_log(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    damage(victims, rng, is_log, flip)
}

pub(super) fn flip_table(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    damage(victims, rng, is_table, flip)
}

fn is_received(path: &str) -> bool {
    path.contains("/snapshots/")
}

/// A member is added anew, and a bit of a file flips that it receives, before or after it looked at it.
pub(super) fn flip_snapshot(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    if (victims.whole)().is_none_or(|ids| ids.len() < 3) {
        return Ok(IN_DOUBT.into());
    }
    let member = random(victims, rng);
    let host = &victims.hosts[member];
    if let Some(why) = members::remove(victims, member)? {
        return Ok(why);
    }
    fs::write(host.dir().join(DOUBT), ANY_ID)?;
    members::add(victims, member)?;
    let by = Instant::now() + RECEIVING;
    while Instant::now() < by {
        // Directories come and go meanwhile.
        let mut found = Vec::new();
        let _ = data(host).and_then(|dir| files(&dir, &mut found));
        found.retain(|path| is_received(&path.to_string_lossy()));
        for path in found {
            if let Some(name) = flip_in_place(&path, rng)? {
                return Ok(format!("{}: {name} of a snapshot is damaged", host.name()));
            }
        }
        std::thread::sleep(RECEIVING_LOOKS);
    }
    Ok(format!("{} was added anew and received no snapshot", host.name()))
}

/// Flips a bit of a file that is being written; its name, if there was one to flip.
fn flip_in_place(path: &Path, rng: &mut StdRng) -> Result<Option<String>> {
    let Ok(file) = fs::OpenOptions::new().read(true).write(true).open(path) else { return Ok(None) };
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(None);
    }
    let (at, mut byte) = (rng.random_range(0..length), [0]);
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ (1 << rng.random_range(0..8))], at)?;
    Ok(Some(path.file_name().unwrap_or_default().to_string_lossy().into_owned()))
}

pub(super) fn tear_table(victims: &Victims<'_>, rng: &mut StdRng) -> Result<String> {
    damage(victims, rng, is_table, tear)
}
