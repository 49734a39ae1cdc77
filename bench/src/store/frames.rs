//! The frames of HTTP/2 that a load client writes and reads, and those of a server that answers nothing.

use anyhow::{Context, Result, bail};

/// What a client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Room that is given to the other side for one connection.
pub const ROOM_BYTES: u32 = 16 * 1024 * 1024;
/// Bytes before a message: not compressed, and its length.
pub const MESSAGE_HEAD_BYTES: usize = 5;
const HEAD_BYTES: usize = 9;
/// Larger ones are not announced by this side.
const MAX_FRAME_BYTES: usize = 16 * 1024;

const ACKNOWLEDGEMENT: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A piece of a message.
    Data,
    /// Headers or trailers.
    Headers,
    /// The end of a stream by force.
    Reset,
    /// Settings or their acknowledgement.
    Settings,
    /// A question whether the other side is there.
    Ping,
    /// The end of the connection.
    GoAway,
    /// Room for more.
    Window,
    /// What is of no interest here.
    Other,
}

impl Kind {
    const fn of(code: u8) -> Self {
        match code {
            0 => Self::Data,
            1 => Self::Headers,
            3 => Self::Reset,
            4 => Self::Settings,
            6 => Self::Ping,
            7 => Self::GoAway,
            8 => Self::Window,
            _ => Self::Other,
        }
    }
}

/// A frame as it was received.
pub struct Frame<'a> {
    /// What it is.
    pub kind: Kind,
    flags: u8,
    /// The stream it belongs to, 0 for the connection.
    pub stream: u32,
    /// What it carries.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first frame and what follows it; none if it is not whole yet.
    pub fn read(bytes: &'a [u8]) -> Result<Option<(Self, &'a [u8])>> {
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if length > MAX_FRAME_BYTES {
            bail!("a frame of {length} bytes");
        }
        let Some((body, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        Ok(Some((Self { kind: Kind::of(head[3]), flags: head[4], stream, body }, rest)))
    }

    /// Whether it answers one of this side's.
    pub fn is_acknowledgement(&self) -> bool {
        self.flags & ACKNOWLEDGEMENT != 0
    }

    /// Whether nothing follows on its stream.
    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, Kind::Data | Kind::Headers) && self.flags & END_STREAM != 0
    }

    /// The number that it carries.
    pub fn number(&self) -> Result<u32> {
        let bytes = self.body.first_chunk().context("a frame is cut short")?;
        Ok(u32::from_be_bytes(*bytes))
    }
}

fn head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    out.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// This side has no wishes.
pub fn settings(out: &mut Vec<u8>) {
    head(out, 0, 4, 0, 0);
}

/// The other side's settings were taken.
pub fn settings_taken(out: &mut Vec<u8>) {
    head(out, 0, 4, ACKNOWLEDGEMENT, 0);
}

/// Answers a ping.
pub fn pong(out: &mut Vec<u8>, body: &[u8]) {
    head(out, body.len(), 6, ACKNOWLEDGEMENT, 0);
    out.extend_from_slice(body);
}

/// Gives the other side room on the connection.
pub fn window(out: &mut Vec<u8>, bytes: u32) {
    head(out, 4, 8, 0, 0);
    out.extend_from_slice(&bytes.to_be_bytes());
}

/// A header with a name of the static table, added to the table of the connection. Names and values are short enough for
/// lengths of one byte.
fn kept(out: &mut Vec<u8>, name: u8, value: &str) {
    out.extend_from_slice(&[0x40 | name, value.len() as u8]);
    out.extend_from_slice(value.as_bytes());
}

/// A whole request. What is the same in each is named by its number in the connection's table after the first.
pub fn request(out: &mut Vec<u8>, stream: u32, path: &str, authority: &str, message: &[u8]) {
    // POST, http.
    let mut block = vec![0x83, 0x86];
    block.extend_from_slice(&[0x04, path.len() as u8]);
    block.extend_from_slice(path.as_bytes());
    if stream == 1 {
        kept(&mut block, 1, authority);
        kept(&mut block, 31, "application/grpc");
        block.extend_from_slice(b"\x40\x02te\x08trailers");
    } else {
        block.extend_from_slice(&[0x80 | 64, 0x80 | 63, 0x80 | 62]);
    }
    head(out, block.len(), 1, END_HEADERS, stream);
    out.extend_from_slice(&block);
    data(out, stream, message, END_STREAM);
}

fn data(out: &mut Vec<u8>, stream: u32, message: &[u8], flags: u8) {
    head(out, message.len() + MESSAGE_HEAD_BYTES, 0, flags, stream);
    out.push(0);
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
}

/// A whole answer.
pub fn response(out: &mut Vec<u8>, stream: u32, message: &[u8]) {
    const HEADERS: &[u8] = b"\x88\x0f\x10\x10application/grpc";
    const TRAILERS: &[u8] = b"\x00\x0bgrpc-status\x010";
    head(out, HEADERS.len(), 1, END_HEADERS, stream);
    out.extend_from_slice(HEADERS);
    data(out, stream, message, 0);
    head(out, TRAILERS.len(), 1, END_HEADERS | END_STREAM, stream);
    out.extend_from_slice(TRAILERS);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_when_they_are_whole() {
        let mut bytes = Vec::new();
        response(&mut bytes, 7, b"abc");
        window(&mut bytes, 9);
        for cut in 0..HEAD_BYTES + 19 {
            assert!(Frame::read(&bytes[..cut]).unwrap().is_none(), "{cut}");
        }
        let (mut rest, mut found) = (&bytes[..], Vec::new());
        while let Some((frame, after)) = Frame::read(rest).unwrap() {
            found.push((frame.kind, frame.stream, frame.ends_stream()));
            rest = after;
        }
        let want =
            [(Kind::Headers, 7, false), (Kind::Data, 7, false), (Kind::Headers, 7, true), (Kind::Window, 0, false)];
        assert_eq!(found, want);
        assert!(rest.is_empty());
        assert!(Frame::read(&[0xff; 20]).is_err(), "larger than any that was asked for");
    }
}
