//! Protobuf's wire format: varints, keys and a bounded reader.

use super::Error;

/// Varint.
pub const VARINT: u8 = 0;
/// Eight bytes.
pub const FIXED64: u8 = 1;
/// Length and bytes.
pub const BYTES: u8 = 2;
/// Four bytes.
pub const FIXED32: u8 = 5;
/// Groups, which are read over.
const GROUP_START: u8 = 3;
const GROUP_END: u8 = 4;
/// Deepest nesting of groups that is read over.
const MAX_GROUPS: usize = 10;

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Length of a varint.
pub fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends a field's key.
pub fn put_key(out: &mut Vec<u8>, number: u32, wire: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire));
}

/// Length of a field's key.
pub fn key_len(number: u32) -> usize {
    varint_len(u64::from(number) << 3)
}

/// Appends a field of bytes.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_key(out, number, BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a varint field.
pub fn put_number(out: &mut Vec<u8>, number: u32, value: u64) {
    put_key(out, number, VARINT);
    put_varint(out, value);
}

/// Puts the length of what follows `start` in front of it.
pub fn put_length_before(out: &mut Vec<u8>, start: usize) {
    let length = out.len() - start;
    let size = varint_len(length as u64);
    out.resize(out.len() + size, 0);
    out.copy_within(start..start + length, start + size);
    let mut value = length as u64;
    for byte in &mut out[start..start + size] {
        *byte = value as u8 | 0x80;
        value >>= 7;
    }
    out[start + size - 1] &= 0x7f;
}

/// A value as the wire has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raw<'a> {
    /// Varint.
    Varint(u64),
    /// Eight bytes.
    Fixed64(u64),
    /// Bytes.
    Bytes(&'a [u8]),
    /// Four bytes.
    Fixed32(u32),
}

/// Reads fields off a message.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next field, if there is one; groups are read over.
    pub fn field(&mut self) -> Result<Option<(u32, Raw<'a>)>, Error> {
        while !self.0.is_empty() {
            let key = self.varint()?;
            let wire = (key & 7) as u8;
            let number = u32::try_from(key >> 3).ok().filter(|n| (1..1 << 29).contains(n));
            let number = number.ok_or_else(|| Error::Malformed(format!("proto: illegal tag {}", key >> 3)))?;
            match self.value(wire)? {
                Some(value) => return Ok(Some((number, value))),
                None => self.skip_group(0)?,
            }
        }
        Ok(None)
    }

    /// A value; `None` at the start of a group.
    fn value(&mut self, wire: u8) -> Result<Option<Raw<'a>>, Error> {
        Ok(Some(match wire {
            VARINT => Raw::Varint(self.varint()?),
            FIXED64 => Raw::Fixed64(u64::from_le_bytes(*self.array::<8>()?)),
            FIXED32 => Raw::Fixed32(u32::from_le_bytes(*self.array::<4>()?)),
            BYTES => {
                let length = usize::try_from(self.varint()?).map_err(|_| Error::UnexpectedEnd)?;
                if length > self.0.len() {
                    return Err(Error::UnexpectedEnd);
                }
                let (bytes, rest) = self.0.split_at(length);
                self.0 = rest;
                Raw::Bytes(bytes)
            }
            GROUP_START => return Ok(None),
            GROUP_END => return Err(Error::Malformed("proto: wiretype end group for non-group".into())),
            other => return Err(Error::Malformed(format!("proto: illegal wireType {other}"))),
        }))
    }

    fn skip_group(&mut self, depth: usize) -> Result<(), Error> {
        if depth >= MAX_GROUPS {
            return Err(Error::TooDeep);
        }
        loop {
            let wire = (self.varint()? & 7) as u8;
            if wire == GROUP_END {
                return Ok(());
            }
            if self.value(wire)?.is_none() {
                self.skip_group(depth + 1)?;
            }
        }
    }

    /// A varint.
    pub fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0_u64;
        for (index, &byte) in self.0.iter().enumerate() {
            if index == 9 && byte > 1 || index > 9 {
                return Err(Error::Malformed("proto: integer overflow".into()));
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.0 = &self.0[index + 1..];
                return Ok(value);
            }
        }
        Err(Error::UnexpectedEnd)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Error> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(Error::UnexpectedEnd)?;
        self.0 = rest;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_with_their_length() {
        for value in [0, 1, 127, 128, 300, 16383, 16384, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
            let mut reader = Reader(&out);
            assert_eq!(reader.varint().unwrap(), value);
            assert!(reader.0.is_empty());
        }
    }

    #[test]
    fn lengths_are_put_before() {
        for length in [0_usize, 1, 127, 128, 20_000] {
            let mut out = vec![9];
            out.extend(std::iter::repeat_n(7, length));
            put_length_before(&mut out, 1);
            let mut reader = Reader(&out[1..]);
            assert_eq!(reader.varint().unwrap(), length as u64);
            assert_eq!(reader.0, vec![7; length]);
        }
    }

    #[test]
    fn malformed_fields_are_refused() {
        for (bytes, why) in [
            (&[0x0a, 5, 1][..], "unexpected EOF"),
            (&[0x08, 0x80], "unexpected EOF"),
            (&[0x0f], "proto: illegal wireType 7"),
            (&[0x0c], "proto: wiretype end group for non-group"),
            (&[0x00, 0], "proto: illegal tag 0"),
            (&[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2], "proto: integer overflow"),
            (&[0x0b; 30], "proto: exceeded max depth"),
            (&[0x09, 1, 2], "unexpected EOF"),
        ] {
            let mut reader = Reader(bytes);
            let error = loop {
                match reader.field() {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("{bytes:?} is accepted"),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.to_string(), why);
        }
        // A group with a field in it is read over.
        let mut reader = Reader(&[0x0b, 0x10, 1, 0x0c, 0x18, 2]);
        assert_eq!(reader.field().unwrap(), Some((3, Raw::Varint(2))));
    }
}
