//! The one binary form of what replicates and of what members say to each other: a version byte, then bincode with
//! fixed-size little-endian integers.
//!
//! Invariant: what is encoded with one version decodes to the same value in every release that knows the version.

use bincode::Options;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::MAX_MESSAGE_BYTES;
use crate::types::{Entry, LogId, Part, Proposal};

/// Version of the form.
const VERSION: u8 = 1;

/// Bytes that are not what they should be, or a value that is too large.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not of this form.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// Written by a release that this one does not know.
    #[error("message of version {0}, this release knows version {VERSION}")]
    Version(u8),
}

impl From<bincode::Error> for Error {
    fn from(error: bincode::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

fn options() -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_little_endian()
        .with_limit(MAX_MESSAGE_BYTES as u64)
        .reject_trailing_bytes()
}

/// Encodes a value that takes about so many bytes.
pub fn encode_sized<T: Serialize>(value: &T, about_bytes: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(about_bytes);
    bytes.push(VERSION);
    options().serialize_into(&mut bytes, value)?;
    Ok(bytes)
}

/// Encodes a value.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![VERSION];
    options().serialize_into(&mut bytes, value)?;
    Ok(bytes)
}

/// Decodes a value; all bytes must belong to it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    match bytes.split_first() {
        Some((&VERSION, body)) => Ok(options().deserialize(body)?),
        Some((version, _)) => Err(Error::Version(*version)),
        None => Err(Error::Malformed("it is empty".into())),
    }
}

const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;
const GROUP: u8 = 3;
/// Bytes before each command of a group.
const LENGTH_BYTES: usize = 4;
/// Version, index, term and kind.
const ENTRY_HEADER_BYTES: usize = 18;

/// Bytes that [`put_entry`] adds, for limits.
pub fn entry_size_bytes(entry: &Entry) -> usize {
    ENTRY_HEADER_BYTES
        + match &entry.payload {
            EntryPayload::Normal(proposal) => proposal.size_bytes() + proposal.0.len() * LENGTH_BYTES,
            _ => 0,
        }
}

/// Appends a log entry. The command's bytes are copied as they are.
pub fn put_entry(entry: &Entry, out: &mut impl BufMut) -> Result<(), Error> {
    let log_id = entry.log_id();
    out.put_u8(VERSION);
    out.put_u64_le(log_id.index);
    out.put_u64_le(**log_id.committed_leader_id());
    match &entry.payload {
        EntryPayload::Blank => out.put_u8(BLANK),
        EntryPayload::Normal(proposal) => match &*proposal.0 {
            [part] => {
                out.put_u8(NORMAL);
                out.put_slice(&part.encoded);
            }
            parts => {
                out.put_u8(GROUP);
                for part in parts {
                    put_command(&part.encoded, out)?;
                }
            }
        },
        EntryPayload::Membership(membership) => {
            out.put_u8(MEMBERSHIP);
            out.put_slice(&encode(membership)?);
        }
    }
    Ok(())
}

/// Index and term of an encoded entry.
pub fn entry_id(bytes: &[u8]) -> Result<LogId, Error> {
    if bytes.len() < ENTRY_HEADER_BYTES {
        return Err(Error::Malformed("a log entry is cut short".into()));
    }
    if bytes[0] != VERSION {
        return Err(Error::Version(bytes[0]));
    }
    let mut header = &bytes[1..];
    let index = header.get_u64_le();
    Ok(log_id(header.get_u64_le(), index))
}

/// A log id.
pub fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(term.into(), index)
}

/// Reads an entry that takes all of `bytes`; its command shares them.
pub fn entry(bytes: &Bytes) -> Result<Entry, Error> {
    let log_id = entry_id(bytes)?;
    let body = bytes.slice(ENTRY_HEADER_BYTES..);
    let payload = match bytes[ENTRY_HEADER_BYTES - 1] {
        BLANK if body.is_empty() => EntryPayload::Blank,
        NORMAL => EntryPayload::Normal(Part::from_encoded(body).into()),
        GROUP => EntryPayload::Normal(Proposal(split(body)?.into_iter().map(Part::from_encoded).collect())),
        MEMBERSHIP => EntryPayload::Membership(decode(&body)?),
        kind => return Err(Error::Malformed(format!("a log entry of unknown kind {kind}"))),
    };
    Ok(Entry::new(log_id, payload))
}

/// Entries with their lengths, one after the other.
pub fn put_entries(entries: &[Entry], out: &mut BytesMut) -> Result<(), Error> {
    for entry in entries {
        let start = out.len();
        out.put_u32_le(0);
        put_entry(entry, out)?;
        let length =
            u32::try_from(out.len() - start - 4).map_err(|_| Error::Malformed("an entry is too large".into()))?;
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }
    Ok(())
}

/// Reads what [`put_entries`] wrote.
pub fn entries(mut bytes: Bytes) -> Result<Vec<Entry>, Error> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let cut = || Error::Malformed("a list of log entries is cut short".into());
        if bytes.len() < 4 {
            return Err(cut());
        }
        let length = bytes.get_u32_le() as usize;
        if bytes.len() < length {
            return Err(cut());
        }
        found.push(entry(&bytes.split_to(length))?);
    }
    Ok(found)
}

fn put_command(command: &[u8], out: &mut impl BufMut) -> Result<(), Error> {
    let length = u32::try_from(command.len()).map_err(|_| Error::Malformed("a command is too large".into()))?;
    out.put_u32_le(length);
    out.put_slice(command);
    Ok(())
}

/// Encoded commands with their lengths, one after the other.
pub fn join(commands: &[Bytes]) -> Result<Bytes, Error> {
    let mut out = BytesMut::with_capacity(commands.iter().map(|command| command.len() + LENGTH_BYTES).sum());
    for command in commands {
        put_command(command, &mut out)?;
    }
    Ok(out.freeze())
}

/// Reads what [`join`] wrote; the parts share the bytes.
pub fn split(mut bytes: Bytes) -> Result<Vec<Bytes>, Error> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let cut = || Error::Malformed("a list of commands is cut short".into());
        if bytes.len() < LENGTH_BYTES {
            return Err(cut());
        }
        let length = bytes.get_u32_le() as usize;
        if bytes.len() < length {
            return Err(cut());
        }
        found.push(bytes.split_to(length));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use keelson_store::{Command, Compare, Op, PutRequest, Txn};
    use proptest::prelude::*;

    use super::*;

    fn command(value: &'static str) -> Command {
        let success = vec![Op::Put(PutRequest::new("key", value))];
        Command::Txn(Txn { compare: vec![Compare::mod_revision("key", 7)], success, failure: Vec::new() })
    }

    #[test]
    fn entries_come_back_as_they_were() {
        let part = |value| Part::new(command(value)).unwrap();
        let group = Proposal([part("one"), part("two")].into());
        let membership = openraft::Membership::new_with_defaults(vec![[1, 2].into()], [3]);
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(part("value").into()),
            EntryPayload::Membership(membership),
            EntryPayload::Normal(group),
        ];
        let written: Vec<Entry> =
            payloads.into_iter().zip(5..).map(|(payload, index)| Entry::new(log_id(3, index), payload)).collect();
        let mut bytes = BytesMut::new();
        put_entries(&written, &mut bytes).unwrap();
        let read = entries(bytes.clone().freeze()).unwrap();
        assert_eq!(read.iter().map(RaftEntry::log_id).collect::<Vec<_>>(), [5, 6, 7, 8].map(|index| log_id(3, index)));
        let EntryPayload::Normal(proposal) = &read[1].payload else { panic!("{read:?}") };
        assert_eq!(*proposal.0[0].command().unwrap(), command("value"));
        let EntryPayload::Normal(group) = &read[3].payload else { panic!("{read:?}") };
        let group: Vec<_> = group.0.iter().map(|part| part.command().unwrap()).collect();
        assert_eq!(group.iter().map(|found| &**found).collect::<Vec<_>>(), [&command("one"), &command("two")]);
        assert!(matches!(&read[2].payload, EntryPayload::Membership(m) if m.nodes().count() == 3));
        for cut in 1..bytes.len() {
            if let Ok(some) = entries(bytes.clone().freeze().slice(..cut)) {
                assert!(some.len() < read.len(), "{cut} bytes are not all entries");
            }
        }
    }

    #[test]
    fn the_form_is_stable() {
        // A change here breaks the reading of logs that are on disk: raise VERSION instead.
        let bytes = encode(&Command::LeaseGrant { id: 5, ttl: 60 }).unwrap();
        assert_eq!(bytes, [1, 1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0, 0, 0]);
        let mut entry = Vec::new();
        put_entry(&Entry::new(log_id(2, 9), EntryPayload::Blank), &mut entry).unwrap();
        assert_eq!(entry, [1, 9, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn lists_of_commands_come_back() {
        let commands = [Bytes::from_static(b"one"), Bytes::new(), Bytes::from_static(b"three")];
        let joined = join(&commands).unwrap();
        assert_eq!(split(joined.clone()).unwrap(), commands);
        for cut in 1..joined.len() {
            let whole = split(joined.slice(..cut)).is_ok_and(|found| commands.starts_with(&found));
            assert!(split(joined.slice(..cut)).is_err() || whole, "{cut}");
        }
    }

    #[test]
    fn unknown_versions_are_refused() {
        let mut bytes = encode(&Command::Compact(1)).unwrap();
        bytes[0] = 9;
        assert!(matches!(decode::<Command>(&bytes), Err(Error::Version(9))));
        bytes[0] = 1;
        bytes.push(0);
        assert!(matches!(decode::<Command>(&bytes), Err(Error::Malformed(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Command>(&bytes);
            if let Ok(found) = entries(bytes.clone().into()) {
                let mut again = BytesMut::new();
                put_entries(&found, &mut again).unwrap();
                prop_assert_eq!(entries(again.freeze()).unwrap().len(), found.len());
            }
        }
    }
}
