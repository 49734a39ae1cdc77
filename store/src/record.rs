//! How keys, versions, revisions and the machine's own state look on disk.
//!
//! Invariants: encoded data keys sort as (user key ascending, revision descending); every record
//! begins with a crc32c over its database key and its content, so that a record can neither rot nor
//! be found under another key unnoticed.

use bytes::Bytes;

use crate::{EventKind, Fatal, KeyValue, LeaseId, Revision};

/// First byte of the state record; a store of another format is refused.
const FORMAT: u8 = 1;
const CRC_BYTES: usize = 4;
const REVISION_BYTES: usize = 8;
/// Kind, create revision, version, lease.
const VERSION_HEAD_BYTES: usize = 1 + 3 * 8;

/// A hash of the whole history up to a revision.
pub type ChainHash = [u8; 32];

/// One stored version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// A value.
    Put(KeyValue),
    /// The key was deleted.
    Tombstone,
}

/// What one revision changed, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RevisionRecord {
    pub hash: ChainHash,
    pub changes: Vec<(EventKind, Bytes)>,
}

/// The machine's own state, written with every batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StateRecord {
    pub applied: u64,
    pub revision: Revision,
    pub compact_revision: Revision,
    pub hash: ChainHash,
    pub meta: Bytes,
}

/// Appends the order-preserving, self-delimiting form of a user key.
fn escape(key: &[u8], out: &mut Vec<u8>) {
    for &byte in key {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
    out.extend_from_slice(&[0, 1]);
}

/// The first possible database key of a user key's versions (the newest ones).
pub(crate) fn key_prefix(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 2 + REVISION_BYTES);
    escape(key, &mut out);
    out
}

/// Puts the database key of one version in the place of what `out` holds.
pub(crate) fn put_data_key(key: &[u8], revision: Revision, out: &mut Vec<u8>) {
    out.clear();
    escape(key, out);
    out.extend_from_slice(&(!(revision as u64)).to_be_bytes());
}

/// The database key of one version. Seeking to it finds the newest version at or below `revision`.
pub(crate) fn data_key(key: &[u8], revision: Revision) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 2 + REVISION_BYTES);
    put_data_key(key, revision, &mut out);
    out
}

/// Splits a database key into the escaped user key and the revision.
pub(crate) fn split_data_key(db_key: &[u8]) -> Result<(&[u8], Revision), Fatal> {
    let at = db_key.len().checked_sub(REVISION_BYTES).ok_or_else(|| corrupt("data key", db_key))?;
    let (head, tail) = db_key.split_at(at);
    let mut inverted = [0; REVISION_BYTES];
    inverted.copy_from_slice(tail);
    Ok((head, !u64::from_be_bytes(inverted) as Revision))
}

/// The user key in an escaped one.
pub(crate) fn unescape(escaped: &[u8]) -> Result<Vec<u8>, Fatal> {
    let body = escaped.strip_suffix(&[0, 1]).ok_or_else(|| corrupt("data key", escaped))?;
    let mut out = Vec::with_capacity(body.len());
    let mut bytes = body.iter();
    while let Some(&byte) = bytes.next() {
        out.push(byte);
        if byte == 0 && bytes.next() != Some(&0xff) {
            return Err(corrupt("data key", escaped));
        }
    }
    Ok(out)
}

/// Database key of a revision.
pub(crate) fn revision_key(revision: Revision) -> [u8; REVISION_BYTES] {
    (revision as u64).to_be_bytes()
}

/// Revision of a database key.
pub(crate) fn split_revision_key(db_key: &[u8]) -> Result<Revision, Fatal> {
    let raw: [u8; REVISION_BYTES] = db_key.try_into().map_err(|_| corrupt("revision key", db_key))?;
    Ok(u64::from_be_bytes(raw) as Revision)
}

/// Database key of a lease.
pub(crate) fn lease_key(id: LeaseId) -> Vec<u8> {
    let mut out = LEASE_PREFIX.to_vec();
    out.extend_from_slice(&id.to_be_bytes());
    out
}

/// Database key of a setting.
pub(crate) fn setting_key(name: &[u8]) -> Vec<u8> {
    [SETTING_PREFIX, name].concat()
}

/// Encodes a setting's value.
pub(crate) fn encode_setting(db_key: &[u8], value: &[u8]) -> Vec<u8> {
    seal(db_key, [&[0; CRC_BYTES], value].concat())
}

/// Name and value of a setting found under `db_key`.
pub(crate) fn decode_setting(db_key: &[u8], record: &[u8]) -> Result<(Bytes, Bytes), Fatal> {
    let name = db_key.strip_prefix(SETTING_PREFIX).ok_or_else(|| corrupt("setting", db_key))?;
    Ok(join(name, unseal("setting", db_key, record)?))
}

/// Where settings begin in the meta family.
pub(crate) const SETTING_PREFIX: &[u8] = b"setting/";
/// Where leases begin in the meta family.
pub(crate) const LEASE_PREFIX: &[u8] = b"lease/";
/// Key of the state record in the meta family.
pub(crate) const STATE_KEY: &[u8] = b"state";
/// Key of the background compaction's progress in the meta family.
pub(crate) const COMPACTED_KEY: &[u8] = b"compacted";

fn corrupt(what: &str, db_key: &[u8]) -> Fatal {
    Fatal::Corrupt(format!("{what} {} is damaged", db_key.escape_ascii()))
}

fn seal(db_key: &[u8], mut record: Vec<u8>) -> Vec<u8> {
    seal_in(db_key, &mut record);
    record
}

fn seal_in(db_key: &[u8], record: &mut [u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(db_key), &record[CRC_BYTES..]);
    record[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
}

fn unseal<'a>(what: &str, db_key: &[u8], record: &'a [u8]) -> Result<&'a [u8], Fatal> {
    let Some((crc, body)) = record.split_at_checked(CRC_BYTES) else { return Err(corrupt(what, db_key)) };
    if crc == crc32c::crc32c_append(crc32c::crc32c(db_key), body).to_le_bytes() {
        Ok(body)
    } else {
        Err(corrupt(what, db_key))
    }
}

/// Reads fixed-size fields off a checked record.
struct Reader<'a> {
    what: &'static str,
    db_key: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn open(what: &'static str, db_key: &'a [u8], record: &'a [u8]) -> Result<Self, Fatal> {
        Ok(Self { what, db_key, rest: unseal(what, db_key, record)? })
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Fatal> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or_else(|| corrupt(self.what, self.db_key))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fatal> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn i64(&mut self) -> Result<i64, Fatal> {
        self.array().map(i64::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Fatal> {
        self.array().map(u32::from_le_bytes)
    }

    fn u8(&mut self) -> Result<u8, Fatal> {
        Ok(self.array::<1>()?[0])
    }
}

const KIND_PUT: u8 = 0;
const KIND_DELETE: u8 = 1;

fn kind_byte(kind: EventKind) -> u8 {
    match kind {
        EventKind::Put => KIND_PUT,
        EventKind::Delete => KIND_DELETE,
    }
}

/// Encodes a version; `None` is a tombstone.
pub(crate) fn encode_version(db_key: &[u8], version: Option<&KeyValue>) -> Vec<u8> {
    let value_len = version.map_or(0, |kv| kv.value.len());
    let mut out = Vec::with_capacity(CRC_BYTES + VERSION_HEAD_BYTES + value_len);
    put_version(db_key, version, &mut out);
    out
}

/// Puts an encoded version in the place of what `out` holds.
pub(crate) fn put_version(db_key: &[u8], version: Option<&KeyValue>, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&[0; CRC_BYTES]);
    match version {
        None => out.push(KIND_DELETE),
        Some(kv) => {
            out.push(KIND_PUT);
            out.extend_from_slice(&kv.create_revision.to_le_bytes());
            out.extend_from_slice(&kv.version.to_le_bytes());
            out.extend_from_slice(&kv.lease.to_le_bytes());
            out.extend_from_slice(&kv.value);
        }
    }
    seal_in(db_key, out);
}

/// Decodes a version found under `db_key`.
pub(crate) fn decode_version(db_key: &[u8], record: &[u8]) -> Result<Version, Fatal> {
    let mut reader = Reader::open("version", db_key, record)?;
    match reader.u8()? {
        KIND_DELETE => Ok(Version::Tombstone),
        KIND_PUT => {
            let (create_revision, version, lease) = (reader.i64()?, reader.i64()?, reader.i64()?);
            let (escaped, mod_revision) = split_data_key(db_key)?;
            let (key, value) = join(&unescape(escaped)?, reader.rest);
            Ok(Version::Put(KeyValue { key, value, create_revision, mod_revision, version, lease }))
        }
        _ => Err(corrupt("version", db_key)),
    }
}

/// Copies a key and its value into one allocation of their exact size, so that neither keeps a larger
/// buffer (a request, a block of the log) alive.
pub(crate) fn join(key: &[u8], value: &[u8]) -> (Bytes, Bytes) {
    let mut both = Vec::with_capacity(key.len() + value.len());
    both.extend_from_slice(key);
    both.extend_from_slice(value);
    let mut key_bytes = Bytes::from(both);
    let value_bytes = key_bytes.split_off(key.len());
    (key_bytes, value_bytes)
}

/// Encodes what a revision changed.
pub(crate) fn encode_revision(db_key: &[u8], record: &RevisionRecord) -> Vec<u8> {
    let mut out = Vec::new();
    let changes = record.changes.iter().map(|(kind, key)| (*kind, key));
    put_revision(db_key, &record.hash, changes, &mut out);
    out
}

/// Puts what a revision changed, encoded, in the place of what `out` holds.
pub(crate) fn put_revision<'a>(
    db_key: &[u8],
    hash: &ChainHash,
    changes: impl ExactSizeIterator<Item = (EventKind, &'a Bytes)>,
    out: &mut Vec<u8>,
) {
    out.clear();
    out.extend_from_slice(&[0; CRC_BYTES]);
    out.extend_from_slice(hash);
    out.extend_from_slice(&(changes.len() as u32).to_le_bytes());
    for (kind, key) in changes {
        out.push(kind_byte(kind));
        out.extend_from_slice(&(key.len() as u32).to_le_bytes());
        out.extend_from_slice(key);
    }
    seal_in(db_key, out);
}

/// Decodes what a revision changed.
pub(crate) fn decode_revision(db_key: &[u8], record: &[u8]) -> Result<RevisionRecord, Fatal> {
    let mut reader = Reader::open("revision", db_key, record)?;
    let hash = reader.array()?;
    let count = reader.u32()?;
    let mut changes = Vec::new();
    for _ in 0..count {
        let kind = match reader.u8()? {
            KIND_PUT => EventKind::Put,
            KIND_DELETE => EventKind::Delete,
            _ => return Err(corrupt("revision", db_key)),
        };
        let len = reader.u32()? as usize;
        changes.push((kind, Bytes::copy_from_slice(reader.take(len)?)));
    }
    Ok(RevisionRecord { hash, changes })
}

/// Encodes the machine's own state.
pub(crate) fn encode_state(state: &StateRecord) -> Vec<u8> {
    let mut out = vec![0; CRC_BYTES];
    out.push(FORMAT);
    out.extend_from_slice(&state.applied.to_le_bytes());
    out.extend_from_slice(&state.revision.to_le_bytes());
    out.extend_from_slice(&state.compact_revision.to_le_bytes());
    out.extend_from_slice(&state.hash);
    out.extend_from_slice(&state.meta);
    seal(STATE_KEY, out)
}

/// Decodes the machine's own state.
pub(crate) fn decode_state(record: &[u8]) -> Result<StateRecord, Fatal> {
    let mut reader = Reader::open("state record", STATE_KEY, record)?;
    let format = reader.u8()?;
    if format != FORMAT {
        return Err(Fatal::Corrupt(format!("the store has format {format}, this program knows {FORMAT}")));
    }
    Ok(StateRecord {
        applied: reader.array().map(u64::from_le_bytes)?,
        revision: reader.i64()?,
        compact_revision: reader.i64()?,
        hash: reader.array()?,
        meta: Bytes::copy_from_slice(reader.rest),
    })
}

/// Encodes a pair of numbers: a lease's granted and checkpointed TTL, or a progress and 0.
pub(crate) fn encode_pair(db_key: &[u8], pair: (i64, i64)) -> Vec<u8> {
    let mut out = vec![0; CRC_BYTES];
    out.extend_from_slice(&pair.0.to_le_bytes());
    out.extend_from_slice(&pair.1.to_le_bytes());
    seal(db_key, out)
}

/// Decodes a pair of numbers.
pub(crate) fn decode_pair(db_key: &[u8], record: &[u8]) -> Result<(i64, i64), Fatal> {
    let mut reader = Reader::open("record", db_key, record)?;
    Ok((reader.i64()?, reader.i64()?))
}

/// Lease id of a lease's database key.
pub(crate) fn split_lease_key(db_key: &[u8]) -> Result<LeaseId, Fatal> {
    let raw = db_key.strip_prefix(LEASE_PREFIX).ok_or_else(|| corrupt("lease key", db_key))?;
    Ok(LeaseId::from_be_bytes(raw.try_into().map_err(|_| corrupt("lease key", db_key))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_keys_sort_by_key_then_newest_first() {
        let keys: [&[u8]; 7] = [b"\0", b"\0\0", b"\0\x01", b"a", b"a\0", b"a\0b", b"ab"];
        let mut encoded: Vec<Vec<u8>> = Vec::new();
        for key in keys {
            encoded.push(data_key(key, 900));
            encoded.push(data_key(key, 7));
        }
        assert!(encoded.is_sorted(), "{encoded:?}");
        for key in keys {
            let db_key = data_key(key, 7);
            let (escaped, revision) = split_data_key(&db_key).expect("splits");
            assert_eq!((unescape(escaped).expect("unescapes").as_slice(), revision), (key, 7));
        }
    }

    #[test]
    fn damaged_records_are_refused() {
        let kv = KeyValue {
            key: "k".into(),
            value: "value".into(),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            lease: 9,
        };
        let db_key = data_key(b"k", 3);
        let record = encode_version(&db_key, Some(&kv));
        assert_eq!(decode_version(&db_key, &record).expect("decodes"), Version::Put(kv));
        for at in 0..record.len() {
            let mut bad = record.clone();
            bad[at] ^= 1;
            assert!(matches!(decode_version(&db_key, &bad), Err(Fatal::Corrupt(_))), "byte {at}");
        }
        assert!(decode_version(&data_key(b"k", 4), &record).is_err(), "a record under another key");
        assert!(decode_version(&db_key, &record[..3]).is_err());
    }
}
