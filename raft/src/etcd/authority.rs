//! Lets older etcd clients in: they send a whole URL (`http://host:port`) as HTTP/2 authority, which is not one.
//!
//! Reads the frames of a connection and cuts the scheme off where the authority is a literal. Nothing else changes.
//! What is cut makes entries of the header table smaller here than the client thinks, so entries leave the table no
//! earlier than the client forgets them, and their positions stay the same: all later references hold.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_BYTES: usize = 9;
const READ_BYTES: usize = 16 * 1024;
/// Longest HEADERS frame that is looked at.
const MAX_HEADERS_BYTES: usize = 64 * 1024;
const TYPE_HEADERS: u8 = 1;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
/// Position of `:authority` in HTTP/2's static table.
const AUTHORITY: usize = 1;

enum State {
    /// What is spoken is not known yet.
    Preface,
    /// Frames; this many bytes of the current one pass as they are.
    Frames(usize),
    /// Everything passes.
    Off,
}

/// A stream whose client may send URLs as authorities.
pub struct AuthorityFix<S> {
    /// The stream, for what is written to it.
    pub inner: S,
    state: State,
    /// Read, not looked at.
    raw: BytesMut,
    /// Looked at, not taken.
    done: BytesMut,
}

impl<S> AuthorityFix<S> {
    /// Wraps a stream from its first byte on.
    pub fn new(inner: S) -> Self {
        Self { inner, state: State::Preface, raw: BytesMut::new(), done: BytesMut::new() }
    }

    /// Moves what can be told from `raw` to `done`.
    fn process(&mut self) {
        loop {
            match self.state {
                State::Preface => {
                    let seen = self.raw.len().min(PREFACE.len());
                    if self.raw[..seen] != PREFACE[..seen] {
                        self.state = State::Off;
                    } else if seen == PREFACE.len() {
                        self.done.extend_from_slice(&self.raw.split_to(seen));
                        self.state = State::Frames(0);
                    } else {
                        return;
                    }
                }
                State::Frames(0) => {
                    if !self.frame() {
                        return;
                    }
                }
                State::Frames(left) => {
                    let now = left.min(self.raw.len());
                    if now == 0 {
                        return;
                    }
                    self.done.extend_from_slice(&self.raw.split_to(now));
                    self.state = State::Frames(left - now);
                }
                State::Off => {
                    self.done.extend_from_slice(&self.raw.split());
                    return;
                }
            }
        }
    }

    /// Looks at the next frame's head, and at all of it if it has headers; false if more must be read first.
    fn frame(&mut self) -> bool {
        if self.raw.len() < FRAME_HEAD_BYTES {
            return false;
        }
        let length = usize::from(self.raw[0]) << 16 | usize::from(self.raw[1]) << 8 | usize::from(self.raw[2]);
        if self.raw[3] != TYPE_HEADERS {
            self.state = State::Frames(FRAME_HEAD_BYTES + length);
            return true;
        }
        if length > MAX_HEADERS_BYTES {
            self.state = State::Off;
            return true;
        }
        if self.raw.len() < FRAME_HEAD_BYTES + length {
            return false;
        }
        let frame = self.raw.split_to(FRAME_HEAD_BYTES + length);
        match fix(&frame) {
            Some(fixed) => self.done.extend_from_slice(&fixed),
            None => {
                // A client that begins with a right authority goes on with it.
                self.done.extend_from_slice(&frame);
                self.state = State::Off;
            }
        }
        true
    }
}

/// The frame with its authority made right; `None` if it needs nothing.
fn fix(frame: &[u8]) -> Option<Vec<u8>> {
    let (head, payload) = frame.split_at(FRAME_HEAD_BYTES);
    let flags = head[4];
    let mut begin = usize::from(flags & FLAG_PADDED != 0);
    begin += if flags & FLAG_PRIORITY != 0 { 5 } else { 0 };
    let padding = if flags & FLAG_PADDED != 0 { usize::from(*payload.first()?) } else { 0 };
    let block = payload.get(begin..payload.len().checked_sub(padding)?)?;
    let (from, to, value) = find(block)?;
    let host = value.strip_prefix(b"http://").or_else(|| value.strip_prefix(b"https://"))?;
    let host = host.strip_suffix(b"/").unwrap_or(host);
    // Seven bits of length suffice for every real host.
    let length = u8::try_from(host.len()).ok().filter(|length| *length < 0x7f)?;
    let mut out = head.to_vec();
    out.extend_from_slice(&payload[..begin + from]);
    out.push(length);
    out.extend_from_slice(host);
    out.extend_from_slice(&payload[begin + to..]);
    let size = u32::try_from(out.len() - FRAME_HEAD_BYTES).ok()?.to_be_bytes();
    out[..3].copy_from_slice(&size[1..]);
    Some(out)
}

/// Where the value of a literal authority begins and ends in a block of headers, and the value.
fn find(block: &[u8]) -> Option<(usize, usize, Vec<u8>)> {
    let mut at = 0;
    while at < block.len() {
        let first = block[at];
        let prefix_bits = match first {
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let (index, next) = integer(block, at, prefix_bits)?;
        at = next;
        if first >= 0x80 || (0x20..0x40).contains(&first) {
            continue;
        }
        let mut is_authority = index == AUTHORITY;
        if index == 0 {
            let (name, next) = string(block, at)?;
            is_authority = text(&name).is_some_and(|name| name == b":authority");
            at = next;
        }
        let (value, next) = string(block, at)?;
        if is_authority {
            return Some((at, next, text(&value)?));
        }
        at = next;
    }
    None
}

/// An integer whose first byte has `bits` bits of it.
fn integer(block: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(at)?) & mask;
    let mut next = at + 1;
    if value < mask {
        return Some((value, next));
    }
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(*block.get(next)?);
        next += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value, next));
        }
    }
    None
}

/// A string as it is on the wire.
struct Wire<'a> {
    huffman: bool,
    bytes: &'a [u8],
}

fn string(block: &[u8], at: usize) -> Option<(Wire<'_>, usize)> {
    let huffman = block.get(at)? & 0x80 != 0;
    let (length, begin) = integer(block, at, 7)?;
    let bytes = block.get(begin..begin.checked_add(length)?)?;
    Some((Wire { huffman, bytes }, begin + length))
}

/// The text of a string, if it has only characters that authorities and names have.
fn text(wire: &Wire<'_>) -> Option<Vec<u8>> {
    if !wire.huffman {
        return Some(wire.bytes.to_vec());
    }
    let (mut out, mut code, mut bits) = (Vec::new(), 0_u16, 0_u8);
    for bit in wire.bytes.iter().flat_map(|byte| (0..8).rev().map(move |shift| u16::from(byte >> shift & 1))) {
        (code, bits) = (code << 1 | bit, bits + 1);
        if let Some((symbol, ..)) = CODES.iter().find(|(_, known, length)| (*known, *length) == (code, bits)) {
            out.push(*symbol);
            (code, bits) = (0, 0);
        } else if bits > 8 {
            return None;
        }
    }
    // What is left is padding: ones, less than a byte.
    (bits < 8 && code == (1 << bits) - 1).then_some(out)
}

/// HTTP/2's codes of the characters that authorities have: symbol, code, bits.
const CODES: &[(u8, u16, u8)] = &[
    (b'0', 0x0, 5),
    (b'1', 0x1, 5),
    (b'2', 0x2, 5),
    (b'a', 0x3, 5),
    (b'c', 0x4, 5),
    (b'e', 0x5, 5),
    (b'i', 0x6, 5),
    (b'o', 0x7, 5),
    (b's', 0x8, 5),
    (b't', 0x9, 5),
    (b'%', 0x15, 6),
    (b'-', 0x16, 6),
    (b'.', 0x17, 6),
    (b'/', 0x18, 6),
    (b'3', 0x19, 6),
    (b'4', 0x1a, 6),
    (b'5', 0x1b, 6),
    (b'6', 0x1c, 6),
    (b'7', 0x1d, 6),
    (b'8', 0x1e, 6),
    (b'9', 0x1f, 6),
    (b'A', 0x21, 6),
    (b'_', 0x22, 6),
    (b'b', 0x23, 6),
    (b'd', 0x24, 6),
    (b'f', 0x25, 6),
    (b'g', 0x26, 6),
    (b'h', 0x27, 6),
    (b'l', 0x28, 6),
    (b'm', 0x29, 6),
    (b'n', 0x2a, 6),
    (b'p', 0x2b, 6),
    (b'r', 0x2c, 6),
    (b'u', 0x2d, 6),
    (b':', 0x5c, 7),
    (b'B', 0x5d, 7),
    (b'C', 0x5e, 7),
    (b'D', 0x5f, 7),
    (b'E', 0x60, 7),
    (b'F', 0x61, 7),
    (b'G', 0x62, 7),
    (b'H', 0x63, 7),
    (b'I', 0x64, 7),
    (b'J', 0x65, 7),
    (b'K', 0x66, 7),
    (b'L', 0x67, 7),
    (b'M', 0x68, 7),
    (b'N', 0x69, 7),
    (b'O', 0x6a, 7),
    (b'P', 0x6b, 7),
    (b'Q', 0x6c, 7),
    (b'R', 0x6d, 7),
    (b'S', 0x6e, 7),
    (b'T', 0x6f, 7),
    (b'U', 0x70, 7),
    (b'V', 0x71, 7),
    (b'W', 0x72, 7),
    (b'Y', 0x73, 7),
    (b'j', 0x74, 7),
    (b'k', 0x75, 7),
    (b'q', 0x76, 7),
    (b'v', 0x77, 7),
    (b'w', 0x78, 7),
    (b'x', 0x79, 7),
    (b'y', 0x7a, 7),
    (b'z', 0x7b, 7),
    (b'X', 0xfc, 8),
    (b'Z', 0xfd, 8),
];

impl<S: AsyncRead + Unpin> AsyncRead for AuthorityFix<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.done.is_empty() {
                let now = this.done.len().min(buffer.remaining());
                buffer.put_slice(&this.done[..now]);
                this.done.advance(now);
                return Poll::Ready(Ok(()));
            }
            if matches!(this.state, State::Off) && this.raw.is_empty() {
                return Pin::new(&mut this.inner).poll_read(context, buffer);
            }
            let before = this.raw.len();
            this.raw.resize(before + READ_BYTES, 0);
            let mut space = ReadBuf::new(&mut this.raw[before..]);
            let read = Pin::new(&mut this.inner).poll_read(context, &mut space);
            let count = space.filled().len();
            this.raw.truncate(before + count);
            ready!(read)?;
            if count == 0 {
                // The end: what is left passes as it is.
                if this.raw.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                this.state = State::Off;
            }
            this.process();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn huffman(text: &str) -> Vec<u8> {
        let mut bits = String::new();
        for byte in text.bytes() {
            let (_, code, length) = CODES.iter().find(|(symbol, ..)| *symbol == byte).expect("a known character");
            bits += &format!("{code:0width$b}", width = usize::from(*length));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        let chunks = bits.as_bytes().chunks(8).map(|byte| std::str::from_utf8(byte).expect("bits"));
        let mut out = vec![0x80 | (bits.len() / 8) as u8];
        out.extend(chunks.map(|byte| u8::from_str_radix(byte, 2).expect("bits")));
        out
    }

    fn plain(text: &str) -> Vec<u8> {
        [&[text.len() as u8][..], text.as_bytes()].concat()
    }

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = (payload.len() as u32).to_be_bytes();
        [&size[1..], &[kind, 4, 0, 0, 0, 1], payload].concat()
    }

    /// A method, the authority as a literal that is kept, and a header with a name of its own.
    fn headers(authority: &[u8]) -> Vec<u8> {
        let other = [&[0x40][..], &plain("te"), &plain("trailers")].concat();
        frame(TYPE_HEADERS, &[&[0x83, 0x41][..], authority, &other].concat())
    }

    async fn pass(input: Vec<u8>, step: usize) -> Vec<u8> {
        let (mut near, far) = tokio::io::duplex(step);
        let write = async move {
            near.write_all(&input).await.expect("written");
            drop(near);
        };
        let mut out = Vec::new();
        let mut fix = AuthorityFix::new(far);
        let (_, read) = tokio::join!(write, fix.read_to_end(&mut out));
        read.expect("read");
        out
    }

    #[tokio::test]
    async fn urls_become_authorities_and_nothing_else_changes() {
        let settings = frame(4, &[0; 6]);
        let data = frame(0, &[7; 3000]);
        let cases = [
            (plain("http://127.0.0.1:2379"), plain("127.0.0.1:2379")),
            (huffman("http://127.0.0.1:2379"), plain("127.0.0.1:2379")),
            (huffman("https://etcd-9.example:23799"), plain("etcd-9.example:23799")),
            (huffman("127.0.0.1:2379"), huffman("127.0.0.1:2379")),
            (plain("localhost:2379"), plain("localhost:2379")),
        ];
        for (given, want) in cases {
            let join =
                |authority: &[u8]| [PREFACE, &settings, &headers(authority), &data, &headers(authority)].concat();
            for step in [1, 7, 100_000] {
                assert_eq!(pass(join(&given), step).await, join(&want), "{given:?} in steps of {step}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_not_http2_or_is_cut_off_passes() {
        for text in ["GET /health HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM", "P", ""] {
            assert_eq!(pass(text.as_bytes().to_vec(), 5).await, text.as_bytes());
        }
        let whole = [PREFACE, &headers(&plain("http://a:1"))].concat();
        let cut = whole[..whole.len() - 1].to_vec();
        assert_eq!(pass(cut.clone(), 64).await, cut);
        let nonsense = [PREFACE, &frame(TYPE_HEADERS, &[0x41, 0xff, 0xff, 0xff, 0xff, 0xff])].concat();
        assert_eq!(pass(nonsense.clone(), 64).await, nonsense);
    }
}
