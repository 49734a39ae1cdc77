//! The log on disk: reopening, purging, torn ends and damage.

use std::fs;

use openraft::EntryPayload;
use openraft::entry::RaftEntry;

use super::*;
use crate::types::{Entry, Part, Proposal};

fn open(dir: &std::path::Path) -> io::Result<(Wal, Recovered)> {
    Wal::open(Arc::new(files::Directory::open(dir)?))
}

fn entry(index: u64, bytes: usize) -> Entry {
    let proposal = Proposal::from(Part::from_encoded(vec![index as u8; bytes].into()));
    Entry::new(codec::log_id(1, index), EntryPayload::Normal(proposal))
}

fn entries(indexes: std::ops::RangeInclusive<u64>, bytes: usize) -> Records {
    let mut records = Records::default();
    for index in indexes {
        records.entry(index, &entry(index, bytes)).unwrap();
    }
    records
}

fn indexes(recovered: &Recovered) -> Vec<u64> {
    recovered.entries.iter().map(|(log_id, _)| log_id.index).collect()
}

#[test]
fn what_was_written_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, recovered) = open(dir.path()).unwrap();
    assert!(recovered.entries.is_empty() && recovered.state.vote.is_none());
    let vote = Vote::new_committed(3, 7);
    let mut records = entries(0..=2, 100);
    records.vote(vote).unwrap();
    wal.write(records).unwrap();
    let mut cut = Records::default();
    cut.truncate(2).unwrap();
    wal.write(cut).unwrap();
    let mut more = entries(2..=4, 50);
    more.committed(codec::log_id(1, 3)).unwrap();
    let written = wal.write(more).unwrap();
    drop(wal);
    let (_wal, recovered) = open(dir.path()).unwrap();
    assert_eq!(indexes(&recovered), [0, 1, 2, 3, 4]);
    assert_eq!((recovered.state.vote, recovered.state.committed), (Some(vote), Some(codec::log_id(1, 3))));
    assert_eq!(recovered.entries[2].1, written.places[0].1);
    let bytes = read(&*recovered.files[0].1, recovered.entries[4].1).unwrap();
    assert_eq!(codec::entry_size_bytes(&codec::entry(&bytes).unwrap()), codec::entry_size_bytes(&entry(4, 50)));
}

#[test]
fn purged_segments_go_and_state_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    let vote = Vote::new_committed(2, 1);
    let mut first = Records::default();
    first.vote(vote).unwrap();
    wal.write(first).unwrap();
    let mut gone = Vec::new();
    for index in 0..=30 {
        wal.write(entries(index..=index, 3 * 1024 * 1024)).unwrap();
        if index % 10 == 9 {
            let mut purge = Records::default();
            purge.purged(codec::log_id(1, index - 2)).unwrap();
            wal.write(purge).unwrap();
            gone.extend(wal.release().unwrap());
        }
    }
    assert!(gone.len() >= 3, "{gone:?}");
    drop(wal);
    let (_wal, recovered) = open(dir.path()).unwrap();
    assert_eq!(indexes(&recovered), [28, 29, 30]);
    assert_eq!((recovered.state.vote, recovered.state.purged), (Some(vote), Some(codec::log_id(1, 27))));
    assert!(recovered.files.iter().all(|(number, _)| !gone.contains(number)));
}

#[test]
fn a_purge_beyond_the_end_empties_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    wal.write(entries(0..=3, 10)).unwrap();
    let mut purge = Records::default();
    purge.purged(codec::log_id(4, 100)).unwrap();
    wal.write(purge).unwrap();
    wal.write(entries(101..=102, 10)).unwrap();
    drop(wal);
    let (_wal, recovered) = open(dir.path()).unwrap();
    assert_eq!(indexes(&recovered), [101, 102]);
}

#[test]
fn a_torn_end_is_cut_and_damage_before_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    let mut ends = Vec::new();
    for index in 0..=2 {
        ends.push(wal.write(entries(index..=index, 100)).unwrap().places[0].1);
    }
    drop(wal);
    let path = dir.path().join(segment::name(1));
    let whole = fs::read(&path).unwrap();
    for (place, kept) in [(ends[2], Some(2)), (ends[1], None), (ends[0], None)] {
        let mut damaged = whole.clone();
        damaged[place.offset as usize + 20] ^= 0x40;
        fs::write(&path, &damaged).unwrap();
        match (open(dir.path()), kept) {
            (Ok((_, recovered)), Some(kept)) => assert_eq!(recovered.entries.len(), kept),
            (Err(error), None) => assert!(error.to_string().contains("damaged"), "{error}"),
            (Ok((_, recovered)), None) => panic!("damage was taken for the end after {}", recovered.entries.len()),
            (Err(error), Some(_)) => panic!("{error}"),
        }
    }
    fs::write(&path, &whole).unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    wal.write(entries(3..=3, 10)).unwrap();
    drop(wal);
    assert_eq!(open(dir.path()).unwrap().1.entries.len(), 4);
}

#[test]
fn a_segment_that_was_only_named_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    wal.write(entries(0..=0, 10)).unwrap();
    drop(wal);
    fs::write(dir.path().join(segment::name(2)), vec![0; 4096]).unwrap();
    let (mut wal, recovered) = open(dir.path()).unwrap();
    assert_eq!(recovered.entries.len(), 1);
    wal.write(entries(1..=1, 10)).unwrap();
    fs::remove_file(dir.path().join(segment::name(1))).unwrap();
    drop(wal);
    assert!(open(dir.path()).unwrap().1.entries.is_empty(), "nothing is left without segments");
}
