//! The write-ahead log on disk: segments of frames of records. One thread writes; see `log` for what Raft sees.
//!
//! Invariants: what [`Wal::write`] returned for is on disk; a segment begins with a frame that repeats the log's state
//! (vote, purged and committed ids), so that any earlier segment may go; a damaged record that was once synced is
//! never taken for the end of the log.

pub mod files;
mod frame;
mod segment;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use files::{Files, LogFile};

use crate::codec;
use crate::limits::FIRST_SEGMENT_BYTES;
use crate::limits::SEGMENT_BYTES;
use crate::types::{LogId, Vote};

const ENTRY: u8 = 1;
const VOTE: u8 = 2;
const TRUNCATE: u8 = 3;
const PURGED: u8 = 4;
const COMMITTED: u8 = 5;
/// Kind and length before a record's data.
const RECORD_HEADER_BYTES: usize = 5;

/// Where an entry's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The segment's number.
    pub segment: u64,
    /// First byte in it.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
}

/// What the log knows besides its entries.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The last vote.
    pub vote: Option<Vote>,
    /// The last entry that was purged.
    pub purged: Option<LogId>,
    /// The last entry known to be committed. Not synced by itself.
    pub committed: Option<LogId>,
}

/// Records to be written in one frame, together with what they change.
#[derive(Default)]
pub struct Records {
    bytes: Vec<u8>,
    /// Index, offset in `bytes` and length of each entry.
    entries: Vec<(u64, u32, u32)>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
}

impl Records {
    fn record(&mut self, kind: u8, write: impl FnOnce(&mut Vec<u8>) -> Result<(), codec::Error>) -> io::Result<u32> {
        self.bytes.push(kind);
        let length_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        write(&mut self.bytes)?;
        let length = self.bytes.len() - length_at - 4;
        if length as u64 > SEGMENT_BYTES / 2 {
            let why = format!("a log record of {length} bytes is larger than half a segment");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        self.bytes[length_at..length_at + 4].copy_from_slice(&(length as u32).to_le_bytes());
        Ok(length as u32)
    }

    /// Adds an entry.
    pub fn entry(&mut self, index: u64, entry: &crate::types::Entry) -> io::Result<()> {
        let offset = (self.bytes.len() + RECORD_HEADER_BYTES) as u32;
        let length = self.record(ENTRY, |out| codec::put_entry(entry, out))?;
        self.entries.push((index, offset, length));
        Ok(())
    }

    /// Adds a vote.
    pub fn vote(&mut self, vote: Vote) -> io::Result<()> {
        self.value(VOTE, &vote)?;
        self.vote = Some(vote);
        Ok(())
    }

    /// Removes all entries from this index on.
    pub fn truncate(&mut self, first: u64) -> io::Result<()> {
        self.value(TRUNCATE, &first)
    }

    /// Forgets all entries up to this one.
    pub fn purged(&mut self, log_id: LogId) -> io::Result<()> {
        self.value(PURGED, &log_id)?;
        self.purged = Some(log_id);
        Ok(())
    }

    /// Notes that all entries up to this one are committed.
    pub fn committed(&mut self, log_id: LogId) -> io::Result<()> {
        self.value(COMMITTED, &log_id)?;
        self.committed = Some(log_id);
        Ok(())
    }

    fn value<T: serde::Serialize>(&mut self, kind: u8, value: &T) -> io::Result<()> {
        self.record(kind, |out| {
            out.extend(codec::encode(value)?);
            Ok(())
        })?;
        Ok(())
    }

    /// Bytes that they take.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Adds others behind these.
    pub fn append(&mut self, other: Self) {
        let base = self.bytes.len() as u32;
        self.bytes.extend(other.bytes);
        self.entries.extend(other.entries.into_iter().map(|(index, offset, length)| (index, base + offset, length)));
        self.vote = other.vote.or(self.vote.take());
        self.purged = other.purged.or(self.purged.take());
        self.committed = other.committed.or(self.committed.take());
    }
}

struct Segment {
    file: Arc<dyn LogFile>,
    /// Highest index that it holds an entry of.
    last_index: u64,
}

/// The open log.
pub struct Wal {
    files: Arc<dyn Files>,
    segment_bytes: u64,
    pool: segment::Pool,
    segments: BTreeMap<u64, Segment>,
    active: segment::Header,
    offset: u64,
    sequence: u64,
    state: State,
}

/// What was found on disk.
#[derive(Default)]
pub struct Recovered {
    /// Vote, purged, committed.
    pub state: State,
    /// The entries after the purged one, without gaps.
    pub entries: Vec<(LogId, Place)>,
    /// The segments' files.
    pub files: Vec<(u64, Arc<dyn LogFile>)>,
}

/// What was synced is not there any more.
#[derive(Debug, thiserror::Error)]
#[error(
    "the Raft log is damaged: {0}; the member begins anew from its peers at its next start if they can replace it: \
     otherwise remove its data directory and join again"
)]
pub struct Damaged(pub String);

fn corrupt(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Damaged(what))
}

impl Wal {
    /// Opens or creates the log.
    pub fn open(files: Arc<dyn Files>) -> io::Result<(Self, Recovered)> {
        segment::remove_spares(&*files)?;
        let mut reader = Reader::default();
        let numbers = segment::list(&*files)?;
        for (at, number) in numbers.iter().enumerate() {
            reader.segment(&*files, *number, at + 1 == numbers.len())?;
        }
        reader.whole()?;
        let Reader { mut recovered, segments, active, offset, sequence } = reader;
        let pool = segment::Pool::start(files.clone())?;
        let (state, segment_bytes) = (recovered.state.clone(), files.segment_bytes());
        let mut wal = Self { files, segment_bytes, pool, segments, active, offset, sequence, state };
        if wal.segments.is_empty() {
            wal.first()?;
        }
        recovered.files = wal.segments.iter().map(|(number, segment)| (*number, segment.file.clone())).collect();
        Ok((wal, recovered))
    }

    /// Makes the very first segment: not filled with zeros, so that a new member is ready at once.
    fn first(&mut self) -> io::Result<()> {
        let name = segment::name(1);
        self.files.create(&name, self.segment_bytes, false)?;
        let file = self.files.open(&name)?;
        self.files.sync()?;
        self.begin(1, file)
    }

    /// Begins to write to a fresh file.
    fn begin(&mut self, number: u64, file: Arc<dyn LogFile>) -> io::Result<()> {
        let salt = self.files.salt()? ^ number;
        self.active = segment::Header { number, salt, sequence: self.sequence };
        let mut state = Records::default();
        if let Some(vote) = self.state.vote {
            state.vote(vote)?;
        }
        if let Some(purged) = self.state.purged {
            state.purged(purged)?;
        }
        if let Some(committed) = self.state.committed {
            state.committed(committed)?;
        }
        let mut buffer = frame::begin();
        buffer.extend(&state.bytes);
        frame::finish(&mut buffer, salt, self.sequence);
        let mut bytes = self.active.encode().to_vec();
        bytes.extend(buffer);
        file.write_all_at(&bytes, 0)?;
        self.sequence += 1;
        self.offset = bytes.len() as u64;
        self.segments.insert(number, Segment { file, last_index: 0 });
        Ok(())
    }

    /// Writes one frame and syncs it. Returns where the entries are. After an error the log must not be written any
    /// more: what is on disk is unknown.
    pub fn write(&mut self, records: Records) -> io::Result<Written> {
        let mut written = Written::default();
        let next = self.active.number + 1;
        let file = if self.offset + frame::size_bytes(records.size_bytes()) as u64 > self.segment_bytes {
            Some(self.pool.take(next)?)
        } else if next == 2 && self.offset > FIRST_SEGMENT_BYTES {
            // The very first segment has no blocks yet, which makes each sync dearer.
            self.pool.take_if_ready(next)?
        } else {
            None
        };
        if let Some(file) = file {
            self.begin(next, file.clone())?;
            written.opened = Some((next, file));
        }
        let mut buffer = frame::begin();
        buffer.extend(&records.bytes);
        frame::finish(&mut buffer, self.active.salt, self.sequence);
        let number = self.active.number;
        let Some(segment) = self.segments.get_mut(&number) else {
            return Err(io::Error::other("the log has no segment to write to"));
        };
        segment.file.write_all_at(&buffer, self.offset)?;
        let body = self.offset as u32 + frame::HEADER_BYTES as u32;
        for (index, offset, length) in records.entries {
            segment.last_index = segment.last_index.max(index);
            written.places.push((index, Place { segment: number, offset: body + offset, length }));
        }
        self.offset += buffer.len() as u64;
        self.sequence += 1;
        self.state.vote = records.vote.or(self.state.vote);
        self.state.committed = records.committed.or(self.state.committed);
        self.state.purged = records.purged.or(self.state.purged);
        Ok(written)
    }

    /// Gives back the segments before the active one that hold nothing after what was purged. To be called once the write that
    /// said so is on disk: without it the entries in them would be missing.
    pub fn release(&mut self) -> io::Result<Vec<u64>> {
        let Some(index) = self.state.purged.map(|purged| purged.index) else { return Ok(Vec::new()) };
        let mut released = Vec::new();
        while let Some((&number, segment)) = self.segments.first_key_value()
            && number < self.active.number
            && segment.last_index <= index
        {
            self.segments.remove(&number);
            self.pool.give_back(number)?;
            released.push(number);
        }
        Ok(released)
    }
}

/// What a write did.
#[derive(Default)]
pub struct Written {
    /// Where entries are now.
    pub places: Vec<(u64, Place)>,
    /// A new segment.
    pub opened: Option<(u64, Arc<dyn LogFile>)>,
}

/// Reads an entry's bytes.
pub fn read(file: &dyn LogFile, place: Place) -> io::Result<Bytes> {
    Ok(segment::read_at(file, u64::from(place.offset), place.length as usize)?.into())
}

/// Reads segments in order.
struct Reader {
    recovered: Recovered,
    segments: BTreeMap<u64, Segment>,
    active: segment::Header,
    offset: u64,
    sequence: u64,
}

impl Default for Reader {
    fn default() -> Self {
        let active = segment::Header { number: 0, salt: 0, sequence: 1 };
        Self { recovered: Recovered::default(), segments: BTreeMap::new(), active, offset: 0, sequence: 1 }
    }
}

impl Reader {
    fn segment(&mut self, files: &dyn Files, number: u64, last: bool) -> io::Result<()> {
        let name = segment::name(number);
        let bytes = files.read(&name)?;
        let damaged = |what: &str| corrupt(format!("{what} in {name}"));
        let Some(header) = segment::Header::decode(&bytes).filter(|header| header.number == number) else {
            // A crash between the file's naming and its first write leaves this, and only at the end.
            return if last { files.remove(&name) } else { Err(damaged("no header")) };
        };
        if self.active.number != 0 && (self.active.number + 1 != number || self.sequence != header.sequence) {
            return Err(damaged("frames are missing before the first"));
        }
        self.sequence = header.sequence;
        let mut at = segment::HEADER_BYTES;
        let mut last_index = 0;
        while let Some(frame) = frame::read(&bytes, at, header.salt, self.sequence) {
            let body = &bytes[frame.body..frame.body + frame.length];
            last_index = last_index.max(self.records(body, number, frame.body)?);
            self.sequence += 1;
            at = frame.end();
        }
        if frame::later_frame(&bytes, at, header.salt, self.sequence) {
            return Err(damaged(&format!("a frame that was synced does not check at byte {at}")));
        }
        self.segments.insert(number, Segment { file: files.open(&name)?, last_index });
        (self.active, self.offset) = (header, at as u64);
        Ok(())
    }

    /// Reads the records of a frame; returns the highest index of its entries.
    fn records(&mut self, mut body: &[u8], segment: u64, base: usize) -> io::Result<u64> {
        let (whole, mut last_index) = (body.len(), 0);
        while let Some((header, rest)) = body.split_at_checked(RECORD_HEADER_BYTES) {
            let length = header[1..].iter().rev().fold(0, |sum, b| (sum << 8) | usize::from(*b));
            let Some((data, rest)) = rest.split_at_checked(length) else {
                return Err(corrupt(format!("a record is cut short in segment {segment}")));
            };
            let offset = (base + whole - rest.len() - length) as u32;
            let place = Place { segment, offset, length: length as u32 };
            match header[0] {
                ENTRY => last_index = last_index.max(self.entry(codec::entry_id(data)?, place)?),
                VOTE => self.recovered.state.vote = Some(codec::decode(data)?),
                TRUNCATE => self.truncate(codec::decode(data)?),
                PURGED => self.purge(codec::decode(data)?),
                COMMITTED => self.recovered.state.committed = Some(codec::decode(data)?),
                kind => return Err(corrupt(format!("a record of unknown kind {kind} in segment {segment}"))),
            }
            body = rest;
        }
        if body.is_empty() {
            Ok(last_index)
        } else {
            Err(corrupt(format!("a record is cut short in segment {segment}")))
        }
    }

    fn entry(&mut self, log_id: LogId, place: Place) -> io::Result<u64> {
        let index = log_id.index;
        let entries = &mut self.recovered.entries;
        let stale = self.recovered.state.purged.is_some_and(|purged| index <= purged.index);
        if !stale {
            // The entries before the first found may have gone with their segments: `whole` looks at that.
            if let Some((last, _)) = entries.last()
                && index != last.index + 1
            {
                return Err(corrupt(format!("entry {index} follows entry {}", last.index)));
            }
            entries.push((log_id, place));
        }
        Ok(index)
    }

    /// Checks that nothing is missing between what was purged and the first entry.
    fn whole(&self) -> io::Result<()> {
        let purged = self.recovered.state.purged.map(|purged| purged.index);
        let next = purged.map_or(0, |purged| purged + 1);
        match self.recovered.entries.first() {
            Some((first, _)) if first.index != next => {
                Err(corrupt(format!("the first entry is {} where {next} is needed", first.index)))
            }
            _ => Ok(()),
        }
    }

    fn truncate(&mut self, first: u64) {
        let entries = &mut self.recovered.entries;
        entries.truncate(entries.partition_point(|(log_id, _)| log_id.index < first));
    }

    fn purge(&mut self, log_id: LogId) {
        let state = &mut self.recovered.state;
        state.purged = state.purged.max(Some(log_id));
        let entries = &mut self.recovered.entries;
        let gone = entries.partition_point(|(found, _)| found.index <= log_id.index);
        entries.drain(..gone);
    }
}

#[cfg(test)]
mod tests;
