//! A process that dies at any step of replacing its state by a snapshot, and snapshots that are damaged: afterwards the old
//! state is there, or the new one, whole.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::steps::die_after;
use crate::{Command, Entry, Fatal, Op, Options, PutRequest, StateMachine, Txn};

/// Steps after which an installation is certainly through.
const MOST_STEPS: u32 = 200;
/// Attempts to copy what a process left.
const MOST_COPIES: usize = 20;
const OLD: &str = "old";
const NEW: &str = "new";

fn open(dir: &Path) -> Result<StateMachine, Fatal> {
    StateMachine::open(dir, Options::default())
}

fn put(machine: &StateMachine, key: &str, value: &str) {
    let put = PutRequest::new(key.to_owned(), value.to_owned());
    let command = Arc::new(Command::Txn(Txn { success: vec![Op::Put(put)], ..Txn::default() }));
    let entry = Entry { index: machine.applied().0 + 1, meta: Bytes::new(), commands: vec![command] };
    machine.apply(&[entry]).expect("applied")[0].as_ref().expect("put");
}

/// A state of some keys, all with one value, on disk.
fn fill(machine: &StateMachine, value: &str, rounds: usize) {
    for _ in 0..rounds {
        (0..10).for_each(|key| put(machine, &format!("k{key}"), value));
    }
    machine.flush().expect("flushed");
}

/// Which state is there, if it is whole.
fn state(machine: &StateMachine) -> String {
    let view = machine.view();
    let value = |key: usize| view.get(format!("k{key}").as_bytes()).map(|kv| kv.value.clone());
    let first = value(0).expect("a key is missing");
    assert!((0..10).all(|key| value(key).as_ref() == Some(&first)), "the states are mixed");
    String::from_utf8(first.to_vec()).expect("text")
}

/// Copies what a process left. Its database goes on in the background and may remove a file meanwhile: then all is copied
/// anew, since what was copied before that belongs to a moment before it.
fn copy(from: &Path, to: &Path) {
    for _ in 0..MOST_COPIES {
        match attempt(from, to) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => fs::remove_dir_all(to).expect("removed"),
            done => return done.expect("copied"),
        }
    }
    panic!("files go while {} is copied, {MOST_COPIES} times", from.display());
}

fn attempt(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => attempt(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

/// A machine with the old state and a checkpoint of the new one, each with where it lies.
fn old_and_new(dir: &Path) -> (StateMachine, std::path::PathBuf) {
    let (machine, leader) = (open(&dir.join("own")).expect("opens"), open(&dir.join("leader")).expect("opens"));
    fill(&machine, OLD, 1);
    fill(&leader, NEW, 3);
    let snapshot = dir.join("snapshot");
    leader.checkpoint(&snapshot).expect("a checkpoint");
    (machine, snapshot)
}

#[test]
fn a_process_that_dies_while_it_installs_has_the_old_state_or_the_new_one() {
    let (mut found, mut through) = (Vec::new(), false);
    for steps in 0..MOST_STEPS {
        let dir = tempfile::tempdir().expect("a directory");
        let (machine, snapshot) = old_and_new(dir.path());
        die_after(Some(steps));
        let installed = machine.install(&snapshot);
        die_after(None);
        // What a process that dies leaves; destructors must not tidy up.
        let left = dir.path().join("left");
        copy(&dir.path().join("own"), &left);
        let after = open(&left).unwrap_or_else(|error| panic!("after {steps} steps: {error}"));
        found.push(state(&after));
        // It is sent another one, which it takes.
        let again = dir.path().join("again");
        open(&dir.path().join("leader")).expect("opens").checkpoint(&again).expect("a checkpoint");
        after.install(&again).unwrap_or_else(|error| panic!("after {steps} steps: {error}"));
        assert_eq!(state(&after), NEW);
        put(&after, "later", "x");
        if installed.is_ok() {
            through = true;
            break;
        }
    }
    assert!(through, "the installation takes more than {MOST_STEPS} steps");
    let switched = found.iter().position(|state| state == NEW).expect("the last one is through");
    assert!(found.len() > 5 && switched > 3, "{found:?}");
    assert!(found[switched..].iter().all(|state| state == NEW), "it does not go back: {found:?}");
}

#[test]
fn a_process_that_dies_at_its_first_start_starts_again() {
    for steps in 0..10 {
        let dir = tempfile::tempdir().expect("a directory");
        die_after(Some(steps));
        let opened = open(dir.path()).map(drop);
        die_after(None);
        let machine = open(dir.path()).unwrap_or_else(|error| panic!("after {steps} steps ({opened:?}): {error}"));
        fill(&machine, OLD, 1);
        assert_eq!(state(&machine), OLD);
    }
}

/// Each file of a snapshot is damaged in several places, or loses its end.
#[test]
fn a_damaged_snapshot_is_refused_or_shows_itself_when_it_is_read() {
    let whole = tempfile::tempdir().expect("a directory");
    let (machine, snapshot) = old_and_new(whole.path());
    drop(machine);
    let files = fs::read_dir(&snapshot).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    let (mut refused, mut tried) = (0, 0);
    for name in files {
        for part in 0..6_usize {
            let dir = tempfile::tempdir().expect("a directory");
            copy(whole.path(), dir.path());
            let (machine, snapshot) = (open(&dir.path().join("own")).expect("opens"), dir.path().join("snapshot"));
            let file = snapshot.join(&name);
            let mut bytes = fs::read(&file).expect("readable");
            let at = bytes.len() * part / 6;
            if bytes.is_empty() {
                continue;
            }
            if part % 2 == 0 {
                bytes[at] ^= 0x04
            } else {
                bytes.truncate(at)
            }
            fs::write(&file, bytes).expect("written");
            tried += 1;
            match machine.install(&snapshot) {
                Err(_) => {
                    refused += 1;
                    assert_eq!(state(&machine), OLD, "{name:?} at {part}/6");
                    put(&machine, "later", "x");
                }
                // The options' file, and what nothing current is in: the state is that of the snapshot.
                Ok(_) => assert_eq!(state(&machine), NEW, "{name:?} at {part}/6"),
            }
        }
    }
    assert!(refused * 2 > tried, "of {tried} damaged snapshots {refused} were refused");
}
