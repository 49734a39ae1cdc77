//! Versions of keys on their way into the database, in the order of their keys: each finds its place near the one before it,
//! which costs about half of what finding it anew does.

use rocksdb::{ColumnFamily, WriteBatch};

/// Versions of one batch. Their keys in the database differ, so that their order does not matter.
#[derive(Default)]
pub(crate) struct Versions {
    /// Keys and records, one after the other.
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// Where one is: its key's first byte, its record's, and its end.
struct Place {
    key: usize,
    record: usize,
    end: usize,
}

impl Versions {
    pub fn add(&mut self, key: &[u8], record: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(record);
        self.places.push(Place { key: start, record: start + key.len(), end: self.bytes.len() });
    }

    /// Adds all to a batch; none are left here.
    pub fn write(&mut self, family: &ColumnFamily, batch: &mut WriteBatch) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut places = std::mem::take(&mut self.places);
        places.sort_by(|one, other| bytes[one.key..one.record].cmp(&bytes[other.key..other.record]));
        for Place { key, record, end } in places {
            batch.put_cf(family, &bytes[key..record], &bytes[record..end]);
        }
    }
}
