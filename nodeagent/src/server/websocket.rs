//! Exec and attach over WebSocket, translated to the SPDY streams of the runtime, and SPDY carried inside a WebSocket.
//!
//! Messages begin with the number of a channel: 0 standard input, 1 output, 2 error output, 3 the end's Status, 4 window
//! sizes. In version 5 a message on 255 closes the channel that it names.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, Response, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use keelson_client::Body;
use keelson_client::connection::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, frame::coding::CloseCode};

use super::{Answer, Refusal, full};
use keelson_client::spdy::{Event, Receiver, Sender, Streams};

/// Bytes read from a tunnelled connection at a time.
const CHUNK: usize = 32 << 10;
/// Channel of standard input.
const STDIN: u8 = 0;
/// Channel of the end's Status.
const ERROR: u8 = 3;
/// Channel of window sizes.
const RESIZE: u8 = 4;
/// Says that a channel is closed.
const CLOSE: u8 = 255;
/// Protocols of exec and attach, the preferred first.
pub const COMMAND_PROTOCOLS: [&str; 4] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io"];
/// Protocol of port-forward: a WebSocket that carries a SPDY connection.
pub const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";

pub(super) type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// Whether the request wants a WebSocket.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The first of `ours` that the client offers too.
pub fn choose(headers: &HeaderMap, ours: &[&'static str]) -> Result<&'static str, Refusal> {
    let offered: Vec<&str> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(',').map(str::trim))
        .collect();
    let found = ours.iter().find(|o| offered.contains(o)).copied();
    found.ok_or_else(|| {
        Refusal(
            400,
            format!(
                "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {ours:?}"
            ),
        )
    })
}

/// The answer that makes the connection a WebSocket.
pub fn accept(headers: &HeaderMap, protocol: &'static str) -> Answer {
    let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| Refusal(400, "missing Sec-WebSocket-Key".into()))?;
    let mut response: Response<Body> = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let value = |text: &str| header::HeaderValue::from_str(text).map_err(Refusal::internal);
    for (name, text) in [
        (header::CONNECTION, "Upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()).as_str()),
        (header::SEC_WEBSOCKET_PROTOCOL, protocol),
    ] {
        response.headers_mut().insert(name, value(text)?);
    }
    Ok(response)
}

pub(super) async fn socket(upgrade: OnUpgrade) -> Result<Socket, hyper::Error> {
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgrade.await?), Role::Server, None).await)
}

/// How messages of a protocol look.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Coding {
    base64: bool,
    close: bool,
}

impl Coding {
    pub(super) fn of(protocol: &str) -> Self {
        Self { base64: protocol.contains("base64"), close: protocol.starts_with("v5") }
    }

    pub(super) fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            return Message::text(format!("{channel}{}", STANDARD.encode(bytes)));
        }
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(channel);
        message.extend_from_slice(bytes);
        Message::binary(message)
    }

    /// Channel and content; `None` for what carries nothing.
    pub(super) fn decode(self, message: &Message) -> Option<(u8, Bytes)> {
        let data = match message {
            Message::Binary(bytes) => bytes.clone(),
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            _ => return None,
        };
        let channel = *data.first()?;
        if self.base64 {
            return Some((channel.checked_sub(b'0')?, STANDARD.decode(&data[1..]).ok()?.into()));
        }
        Some((channel, data.slice(1..)))
    }
}

/// Carries exec or attach: `streams` of the runtime's connection by id, each with its channel.
pub async fn command(upgrade: OnUpgrade, protocol: &str, mut to: Sender, mut from: Receiver, streams: Streams) {
    let coding = Coding::of(protocol);
    let mut socket = match socket(upgrade).await {
        Ok(socket) => socket,
        Err(error) => return tracing::debug!(%error, "a connection was not upgraded"),
    };
    let id_of = |channel: u8| streams.iter().find(|(_, c)| **c == channel).map(|(id, _)| *id);
    // An empty message tells the client that the streams are there.
    let lowest = streams.values().filter(|c| (1..=ERROR).contains(*c)).min().copied().unwrap_or(ERROR);
    let mut result = socket.send(coding.encode(lowest, &[])).await.is_ok();
    while result {
        tokio::select! {
            message = socket.next() => result = match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => false,
                Some(Ok(message)) => inward(&mut to, coding, &message, id_of).await.is_ok(),
            },
            event = from.next() => match event {
                Ok(Some(Event::Data(id, bytes, _))) => if let Some(channel) = streams.get(&id) {
                    result = bytes.is_empty() || socket.send(coding.encode(*channel, &bytes)).await.is_ok();
                },
                Ok(Some(Event::Ping(id))) => result = to.pong(id).await.is_ok(),
                Ok(Some(Event::Reset(_))) => {}
                Ok(Some(Event::GoAway) | None) | Err(_) => break,
            },
        }
    }
    end(socket).await;
}

pub(super) async fn end(mut socket: Socket) {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    // The client may be gone already.
    let _ = socket.close(Some(frame)).await;
}

async fn inward(
    to: &mut Sender,
    coding: Coding,
    message: &Message,
    id_of: impl Fn(u8) -> Option<u32>,
) -> std::io::Result<()> {
    match coding.decode(message) {
        Some((CLOSE, which)) if coding.close => match which.first().and_then(|channel| id_of(*channel)) {
            Some(id) => to.data(id, &[], true).await,
            None => Ok(()),
        },
        Some((channel @ (STDIN | RESIZE), bytes)) => match id_of(channel) {
            Some(id) if !bytes.is_empty() => to.data(id, &bytes, false).await,
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Carries a connection inside the messages of a WebSocket.
pub async fn tunnel(upgrade: OnUpgrade, inner: Box<dyn Stream>) {
    let mut socket = match socket(upgrade).await {
        Ok(socket) => socket,
        Err(error) => return tracing::debug!(%error, "a connection was not upgraded"),
    };
    let (mut reader, mut writer) = tokio::io::split(inner);
    let mut buffer = vec![0; CHUNK];
    loop {
        let goes_on = tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) => writer.write_all(&bytes).await.is_ok(),
                Some(Ok(Message::Text(text))) => writer.write_all(text.as_bytes()).await.is_ok(),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => true,
                Some(Ok(Message::Close(_)) | Err(_)) | None => false,
            },
            read = reader.read(&mut buffer) => match read {
                Ok(n) if n > 0 => socket.send(Message::binary(buffer[..n].to_vec())).await.is_ok(),
                _ => false,
            },
        };
        if !goes_on {
            break;
        }
    }
    end(socket).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_protocol_of_those_offered() {
        let mut headers = HeaderMap::new();
        headers.append(header::SEC_WEBSOCKET_PROTOCOL, "channel.k8s.io, v4.channel.k8s.io".parse().unwrap());
        headers.append(header::SEC_WEBSOCKET_PROTOCOL, "v5.channel.k8s.io".parse().unwrap());
        assert_eq!(choose(&headers, &COMMAND_PROTOCOLS).unwrap(), "v5.channel.k8s.io");
        assert_eq!(choose(&headers, &[TUNNEL_PROTOCOL]).unwrap_err().0, 400);
    }

    #[test]
    fn messages_of_both_codings() {
        let binary = Coding::of("v4.channel.k8s.io");
        assert_eq!(binary.decode(&binary.encode(1, b"x")), Some((1, Bytes::from_static(b"x"))));
        let text = Coding::of("v4.base64.channel.k8s.io");
        assert_eq!(text.encode(1, b"x"), Message::text("1eA=="));
        assert_eq!(text.decode(&Message::text("0eA==")), Some((0, Bytes::from_static(b"x"))));
        assert_eq!(binary.decode(&Message::binary(vec![])), None);
        assert!(Coding::of("v5.channel.k8s.io").close && !binary.close);
    }
}
