//! A log as messages of a WebSocket, for clients that can read nothing else as it comes (browsers).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use keelson_client::Body;
use keelson_machinery::status::Status;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, frame::coding::CloseCode};

use super::Answer;
use crate::body;

/// Protocols, the preferred first: bytes as they are, and as text.
const PROTOCOLS: [&str; 2] = ["binary.k8s.io", "base64.binary.k8s.io"];

/// Whether the request wants a WebSocket.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The protocol: none where the client names none, which means bytes as they are.
fn choose(headers: &HeaderMap) -> Result<Option<&'static str>, Status> {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let offered: Vec<&str> = offered.flat_map(|v| v.split(',').map(str::trim)).filter(|v| !v.is_empty()).collect();
    let found = PROTOCOLS.into_iter().find(|ours| offered.contains(ours));
    if found.is_none() && !offered.is_empty() {
        let why = format!("requested protocol(s) are not supported: {offered:?}; supports {PROTOCOLS:?}");
        return Err(Status::bad_request(why));
    }
    Ok(found)
}

/// Answers with a WebSocket over which the log goes.
pub fn answer(headers: &HeaderMap, upgrade: Option<OnUpgrade>, log: Response<Body>) -> Answer {
    let protocol = choose(headers)?;
    let key = headers.get(header::SEC_WEBSOCKET_KEY);
    let (Some(key), Some(upgrade)) = (key, upgrade) else {
        return Err(Status::bad_request("missing Sec-WebSocket-Key"));
    };
    let mut response = Response::new(body::full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accepted = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    let accepted = accepted.map_err(|e| Status::internal(&e.to_string()))?;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
    if let Some(protocol) = protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    let text = protocol == Some(PROTOCOLS[1]);
    tokio::spawn(async move {
        if let Err(error) = carry(upgrade, log.into_body(), text).await {
            tracing::debug!(%error, "a log's WebSocket ended early");
        }
    });
    Ok(response)
}

async fn carry(upgrade: OnUpgrade, mut log: Body, text: bool) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let io = TokioIo::new(upgrade.await?);
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    loop {
        tokio::select! {
            frame = log.frame() => match frame {
                Some(frame) => if let Ok(bytes) = frame?.into_data() {
                    let message = if text { Message::text(STANDARD.encode(&bytes)) } else { Message::binary(bytes) };
                    socket.send(message).await?;
                },
                None => break,
            },
            // What the client says is of no interest, but that it is still there is.
            message = socket.next() => match message {
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(message) => drop(message?),
            },
        }
    }
    socket.close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() })).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols() {
        for (offered, wanted) in [
            ("", Some(None)),
            ("binary.k8s.io", Some(Some("binary.k8s.io"))),
            ("x, base64.binary.k8s.io", Some(Some("base64.binary.k8s.io"))),
            ("base64.binary.k8s.io,binary.k8s.io", Some(Some("binary.k8s.io"))),
            ("channel.k8s.io", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, offered.parse().unwrap());
            assert_eq!(choose(&headers).ok(), wanted, "{offered}");
        }
    }
}
