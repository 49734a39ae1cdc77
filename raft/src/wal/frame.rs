//! Frames: the unit in which the log is written and synced.
//!
//! A frame is `crc32c, length, sequence, body`, padded to eight bytes. Sequences rise by one, and a frame is written
//! only after the one before it was synced. So a frame that does not check is the torn end of the log if nothing valid
//! follows it, and corruption otherwise.

/// Bytes before a frame's body.
pub const HEADER_BYTES: usize = 16;
/// Frames begin at multiples of this.
const ALIGNMENT: usize = 8;

/// A frame found in a segment.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where its body begins in the segment.
    pub body: usize,
    /// Length of the body.
    pub length: usize,
}

impl Frame {
    /// Where the next frame begins.
    pub fn end(&self) -> usize {
        aligned(self.body + self.length)
    }
}

/// Bytes that a frame with a body of this length takes.
pub fn size_bytes(body: usize) -> usize {
    aligned(HEADER_BYTES + body)
}

fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// Makes room for a header at the start of a frame's buffer.
pub fn begin() -> Vec<u8> {
    vec![0; HEADER_BYTES]
}

/// Fills in the header of a buffer from [`begin`] and pads it. `salt` is the segment's.
pub fn finish(buffer: &mut Vec<u8>, salt: u64, sequence: u64) {
    let length = (buffer.len() - HEADER_BYTES) as u32;
    buffer[4..8].copy_from_slice(&length.to_le_bytes());
    buffer[8..16].copy_from_slice(&sequence.to_le_bytes());
    let crc = checksum(&buffer[4..], salt);
    buffer[..4].copy_from_slice(&crc.to_le_bytes());
    buffer.resize(aligned(buffer.len()), 0);
}

fn checksum(bytes: &[u8], salt: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), bytes)
}

/// The frame at `offset` if it is whole and has this sequence.
pub fn read(segment: &[u8], offset: usize, salt: u64, sequence: u64) -> Option<Frame> {
    let (header, rest) = segment.get(offset..)?.split_at_checked(HEADER_BYTES)?;
    let number =
        |range: std::ops::Range<usize>| header[range].iter().rev().fold(0, |sum, b| (sum << 8) | u64::from(*b));
    let length = number(4..8) as usize;
    if number(8..16) != sequence || length > rest.len() {
        return None;
    }
    let frame = Frame { body: offset + HEADER_BYTES, length };
    let covered = &segment[offset + 4..frame.body + length];
    (number(0..4) == u64::from(checksum(covered, salt))).then_some(frame)
}

/// Whether a valid frame of a later sequence begins after `offset`.
pub fn later_frame(segment: &[u8], offset: usize, salt: u64, sequence: u64) -> bool {
    let mut at = offset + ALIGNMENT;
    while let Some(bytes) = segment.get(at + 8..at + 16) {
        let found = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
        if found > sequence && read(segment, at, salt, found).is_some() {
            return true;
        }
        at += ALIGNMENT;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(bodies: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (body, sequence) in bodies.iter().zip(1..) {
            let mut frame = begin();
            frame.extend_from_slice(body);
            finish(&mut frame, 7, sequence);
            bytes.extend(frame);
        }
        bytes
    }

    #[test]
    fn frames_follow_each_other() {
        let bytes = segment(&[b"one", b"", b"three is longer"]);
        let (mut at, mut found) = (0, Vec::new());
        while let Some(frame) = read(&bytes, at, 7, found.len() as u64 + 1) {
            found.push(&bytes[frame.body..frame.body + frame.length]);
            at = frame.end();
        }
        assert_eq!(found, [&b"one"[..], b"", b"three is longer"]);
        assert_eq!(at, bytes.len());
        assert_eq!(read(&bytes, 0, 8, 1), None, "another segment's salt");
        assert_eq!(read(&bytes, 0, 7, 2), None, "another sequence");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = segment(&[b"one", b"two"]);
        let first = read(&bytes, 0, 7, 1).unwrap();
        for bit in 0..(first.body + first.length) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&damaged, 0, 7, 1), None, "bit {bit}");
            assert!(later_frame(&damaged, 0, 7, 1), "the second frame shows that the first was synced");
        }
        let mut torn = bytes;
        torn[first.end()] ^= 1;
        assert!(!later_frame(&torn, first.end(), 7, 2), "nothing follows a torn end");
    }
}
