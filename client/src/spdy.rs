//! As much of SPDY/3.1 as a client of a runtime's streaming server needs: open streams, send, receive, close.
//!
//! Header blocks must be one zlib stream over the connection. What is sent is that, in stored blocks; what comes is not
//! needed, so no compression is implemented.

use std::collections::HashMap;

use crate::connection::{self, Stream};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

/// Longest frame that is accepted; the format allows 16 MiB.
const MAX_FRAME: usize = 1 << 20;
/// Longest text of a refusal that is read.
const MAX_REFUSAL: usize = 64 << 10;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;

/// A connection to a streaming server: the half that sends.
pub struct Sender {
    io: WriteHalf<Box<dyn Stream>>,
    /// The next stream's id; those of clients are odd.
    next: u32,
    begun: bool,
}

/// The half that receives.
pub struct Receiver {
    io: ReadHalf<Box<dyn Stream>>,
    buffer: BytesMut,
}

/// What comes in.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of a stream, and whether they were its last.
    Data(u32, Bytes, bool),
    /// The stream was cut.
    Reset(u32),
    /// To be sent back.
    Ping(u32),
    /// The connection ends.
    GoAway,
}

/// Connects to a URL of the runtime's streaming server. `Err` with a code is the server's refusal.
pub async fn dial(url: &str, protocol: &str) -> Result<(Sender, Receiver), (u16, String)> {
    let internal = |e: &dyn std::fmt::Display| (500, e.to_string());
    let (stream, path, authority) = open(url).await.map_err(|e| internal(&e))?;
    let request = Request::post(path)
        .header(header::HOST, authority)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .header("x-stream-protocol-version", protocol)
        .body(Empty::<Bytes>::new())
        .map_err(|e| internal(&e))?;
    let mut response = connection::exchange(stream, request).await.map_err(|e| internal(&e))?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        let code = response.status().as_u16();
        let text = Limited::new(response.into_body(), MAX_REFUSAL).collect().await.map_err(|e| internal(&e))?;
        return Err((code, String::from_utf8_lossy(&text.to_bytes()).into_owned()));
    }
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(|e| internal(&e))?;
    Ok(over(Box::new(TokioIo::new(upgraded))))
}

/// The two halves of a connection that has been upgraded.
pub fn over(stream: Box<dyn Stream>) -> (Sender, Receiver) {
    let (reader, writer) = tokio::io::split(stream);
    (Sender { io: writer, next: 1, begun: false }, Receiver { io: reader, buffer: BytesMut::new() })
}

/// A connection to the server of a URL, with the URL's path and authority.
pub async fn open(url: &str) -> std::io::Result<(Box<dyn Stream>, String, String)> {
    let uri: http::Uri = url.parse().map_err(std::io::Error::other)?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(80);
    if uri.scheme_str() != Some("http") {
        // It listens on the loopback interface, so that TLS would protect nothing.
        return Err(std::io::Error::other(format!("the runtime's streaming server is not at an http URL: {url}")));
    }
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    Ok((connection::connect(&host, port, None).await?, path, authority))
}

fn control(kind: u16, flags: u8, payload: &[u8]) -> BytesMut {
    let mut frame = BytesMut::with_capacity(8 + payload.len());
    frame.put_u16(0x8000 | 3);
    frame.put_u16(kind);
    frame.put_u32(u32::from(flags) << 24 | payload.len() as u32);
    frame.put_slice(payload);
    frame
}

/// Headers as a piece of a zlib stream: a stored block, then an empty one as a flush mark.
fn header_block(headers: &[(&str, &str)], first: bool) -> BytesMut {
    let mut plain = BytesMut::new();
    plain.put_u32(headers.len() as u32);
    for (name, value) in headers {
        for text in [name, value] {
            plain.put_u32(text.len() as u32);
            plain.put_slice(text.as_bytes());
        }
    }
    let mut out = BytesMut::new();
    if first {
        out.put_slice(&[0x78, 0x01]);
    }
    for block in [&plain[..], &[]] {
        // Our headers are a few dozen bytes, far below the 65,535 of a block.
        let length = block.len() as u16;
        out.put_u8(0);
        out.put_u16_le(length);
        out.put_u16_le(!length);
        out.put_slice(block);
    }
    out
}

impl Sender {
    /// Opens a stream with these (lower-case) headers.
    pub async fn stream(&mut self, headers: &[(&str, &str)]) -> std::io::Result<u32> {
        let id = self.next;
        self.next += 2;
        let mut payload = BytesMut::new();
        payload.put_u32(id);
        payload.put_u32(0);
        payload.put_u16(0);
        payload.put_slice(&header_block(headers, !std::mem::replace(&mut self.begun, true)));
        self.io.write_all(&control(SYN_STREAM, 0, &payload)).await?;
        Ok(id)
    }

    /// Sends bytes, and with `last` ends our side of the stream.
    pub async fn data(&mut self, stream: u32, bytes: &[u8], last: bool) -> std::io::Result<()> {
        let mut head = BytesMut::with_capacity(8);
        head.put_u32(stream);
        head.put_u32(u32::from(if last { FIN } else { 0 }) << 24 | bytes.len() as u32);
        self.io.write_all(&head).await?;
        self.io.write_all(bytes).await
    }

    /// Answers a ping.
    pub async fn pong(&mut self, id: u32) -> std::io::Result<()> {
        self.io.write_all(&control(PING, 0, &id.to_be_bytes())).await
    }
}

impl Receiver {
    /// The next event; `None` at the end. May be dropped while it waits.
    pub async fn next(&mut self) -> std::io::Result<Option<Event>> {
        loop {
            if let Some(event) = parse(&mut self.buffer)? {
                match event {
                    Parsed::Event(event) => return Ok(Some(event)),
                    Parsed::Nothing => continue,
                }
            }
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

enum Parsed {
    Event(Event),
    Nothing,
}

/// Takes one frame out of the buffer if it is there as a whole.
fn parse(buffer: &mut BytesMut) -> std::io::Result<Option<Parsed>> {
    let Some(head) = buffer.get(..8) else { return Ok(None) };
    let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    let (flags, length) = (head[4], u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize);
    if length > MAX_FRAME {
        return Err(std::io::Error::other(format!("a frame of {length} bytes is too long")));
    }
    if buffer.len() < 8 + length {
        return Ok(None);
    }
    buffer.advance(8);
    let mut payload = buffer.split_to(length).freeze();
    if word & 0x8000_0000 == 0 {
        return Ok(Some(Parsed::Event(Event::Data(word, payload, flags & FIN != 0))));
    }
    let id = if payload.len() >= 4 { payload.get_u32() } else { 0 };
    Ok(Some(match (word & 0xffff) as u16 {
        RST_STREAM => Parsed::Event(Event::Reset(id)),
        PING => Parsed::Event(Event::Ping(id)),
        GOAWAY => Parsed::Event(Event::GoAway),
        _ => Parsed::Nothing,
    }))
}

/// Streams of a connection by id, each with its channel.
pub type Streams = HashMap<u32, u8>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_block_is_a_zlib_stream_of_stored_blocks() {
        let block = header_block(&[("a", "bc")], true);
        let plain = [0, 0, 0, 1, 0, 0, 0, 1, b'a', 0, 0, 0, 2, b'b', b'c'];
        let mut wanted = vec![0x78, 0x01, 0, 15, 0, 240, 255];
        wanted.extend(plain);
        wanted.extend([0, 0, 0, 255, 255]);
        assert_eq!(block, wanted);
        assert_eq!(header_block(&[], false)[0], 0);
    }

    #[test]
    fn frames_come_in_pieces() {
        let mut bytes = BytesMut::new();
        bytes.put_slice(&control(2, 0, &[0, 0, 0, 1, 9, 9])); // a reply, of no interest
        bytes.put_slice(&[0, 0, 0, 3, 1, 0, 0, 2, b'h', b'i']);
        bytes.put_slice(&control(PING, 0, &7_u32.to_be_bytes()));
        let mut buffer = BytesMut::new();
        let mut events = Vec::new();
        for byte in bytes {
            buffer.put_u8(byte);
            while let Some(parsed) = parse(&mut buffer).unwrap() {
                if let Parsed::Event(event) = parsed {
                    events.push(event);
                }
            }
        }
        assert_eq!(events, [Event::Data(3, Bytes::from_static(b"hi"), true), Event::Ping(7)]);
        let mut long = BytesMut::from(&[0, 0, 0, 1, 0, 255, 255, 255][..]);
        assert!(parse(&mut long).is_err());
    }
}
