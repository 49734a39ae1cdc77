//! Streams over WebSocket: several channels on one connection, as Kubernetes' remote commands use them.

use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use keelson_client::{connection, spdy};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::failure::{Failure, Outcome};
use crate::session::Session;

/// The protocol: the first byte of a message is its channel; channel 255 closes another.
const PROTOCOL: &str = "v5.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
/// Bytes of a refusal that are read.
const MAX_REFUSAL: usize = 64 << 10;
/// Bytes read from standard input at once.
const CHUNK_BYTES: usize = 32 << 10;

/// A connection of its own to the server, for HTTP/1.1; with the server's authority.
pub async fn dial(session: &Session) -> Outcome<(Box<dyn connection::Stream>, String, bool)> {
    let access = session.access()?;
    let uri: http::Uri =
        access.server.parse().map_err(|_| Failure::new(format!("{} is not the address of a server", access.server)))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let secure = uri.scheme_str() != Some("http");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let mut tls = access.tls.clone();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tls = secure.then(|| connection::Tls::with(tls, access.server_name.as_deref().unwrap_or(&host)));
    let stream = connection::connect_as(&host, port, tls.as_ref()).await?;
    let authority = uri.authority().map_or_else(|| host.clone(), |a| a.to_string());
    Ok((stream, authority, secure))
}

/// A connection that the server has turned into SPDY streams of a protocol.
pub async fn spdy(session: &Session, path: &str, protocol: &str) -> Outcome<(spdy::Sender, spdy::Receiver)> {
    let (stream, authority, _) = dial(session).await?;
    let access = session.access()?;
    let mut request = http::Request::post(path)
        .header("Host", authority)
        .header("Connection", "Upgrade")
        .header("Upgrade", "SPDY/3.1")
        .header("X-Stream-Protocol-Version", protocol);
    for (name, value) in session.identity()? {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| Failure::new(e.to_string()))?;
    let mut response = connection::exchange(stream, request).await?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        let code = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_REFUSAL).collect().await;
        let body = body.map_err(|e| Failure::new(format!("{}: {e}", access.server)))?.to_bytes();
        return Err(refusal(code, &body));
    }
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(|e| Failure::new(e.to_string()))?;
    Ok(spdy::over(Box::new(TokioIo::new(upgraded))))
}

fn refusal(code: u16, body: &[u8]) -> Failure {
    let mut status: Value = serde_json::from_slice(body).unwrap_or_default();
    if !status.is_object() {
        status = serde_json::json!({"message": String::from_utf8_lossy(body).trim()});
    }
    status["code"] = code.into();
    Failure::Server(status)
}

/// Opens a stream to a path of the API.
async fn open(session: &Session, path: &str) -> Outcome<WebSocketStream<Box<dyn connection::Stream>>> {
    let (stream, authority, secure) = dial(session).await?;
    let mut request = http::Request::get(format!("{}://{authority}{path}", if secure { "wss" } else { "ws" }))
        .header("Host", authority)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", generate_key())
        .header("Sec-WebSocket-Protocol", PROTOCOL);
    for (name, value) in session.identity()? {
        request = request.header(name, value);
    }
    let request = request.body(()).map_err(|e| Failure::new(e.to_string()))?;
    match client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => {
            Err(refusal(response.status().as_u16(), &response.body().clone().unwrap_or_default()))
        }
        Err(error) => Err(Failure::new(format!("error dialing backend: {error}"))),
    }
}

/// A message on a channel.
fn framed(channel: u8, data: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(data.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(data);
    Message::Binary(Bytes::from(bytes))
}

/// Runs a command at `path`, its streams joined to this process's; returns when it has ended.
pub async fn command(session: &Session, path: &str, stdin: bool, size: Option<(u16, u16)>) -> Outcome {
    let input = stdin.then(tokio::io::stdin);
    let streams = (input, tokio::io::stdout(), tokio::io::stderr());
    let status = exchange(session, path, streams, size).await?;
    ended(&status)
}

/// Runs a command at `path` with other streams: its input, its output and its error output. Returns the Status at its
/// end, which is empty if the connection ended without one.
pub async fn exchange(
    session: &Session,
    path: &str,
    streams: (Option<impl AsyncRead + Unpin>, impl AsyncWrite + Unpin, impl AsyncWrite + Unpin),
    size: Option<(u16, u16)>,
) -> Outcome<Vec<u8>> {
    let (from, mut out, mut err) = streams;
    let (mut sink, mut stream) = open(session, path).await?.split();
    if let Some((width, height)) = size {
        let size = serde_json::json!({"Width": width, "Height": height}).to_string();
        sink.send(framed(RESIZE, size.as_bytes())).await.map_err(|e| Failure::new(e.to_string()))?;
    }
    let input = async {
        if let Some(mut from) = from {
            let mut buffer = vec![0; CHUNK_BYTES];
            while let Ok(read @ 1..) = from.read(&mut buffer).await {
                if sink.send(framed(STDIN, &buffer[..read])).await.is_err() {
                    return std::future::pending().await;
                }
            }
            let _ = sink.send(framed(CLOSE, &[STDIN])).await;
        }
        std::future::pending::<()>().await;
    };
    let output = async {
        while let Some(message) = stream.next().await {
            let bytes = match message {
                Ok(Message::Binary(bytes)) => bytes,
                Ok(Message::Close(_)) | Err(Error::ConnectionClosed) => break,
                Ok(_) => continue,
                Err(error) => return Err(Failure::new(format!("the stream broke: {error}"))),
            };
            match bytes.split_first() {
                Some((&STDOUT, data)) => {
                    out.write_all(data).await?;
                    out.flush().await?;
                }
                Some((&STDERR, data)) => {
                    err.write_all(data).await?;
                    err.flush().await?;
                }
                Some((&ERROR, data)) if !data.is_empty() => return Ok(data.to_vec()),
                _ => {}
            }
        }
        Ok(Vec::new())
    };
    tokio::select! {
        result = output => result,
        () = input => Ok(Vec::new()),
    }
}

/// What the Status at a command's end says.
pub fn ended(data: &[u8]) -> Outcome {
    if data.is_empty() {
        return Ok(());
    }
    let status: Value = serde_json::from_slice(data).unwrap_or_default();
    if status["status"] == "Success" {
        return Ok(());
    }
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let exit =
        causes.clone().find(|c| c["reason"] == "ExitCode").and_then(|c| c["message"].as_str()?.parse::<u8>().ok());
    match exit {
        Some(code) => {
            eprintln!("command terminated with exit code {code}");
            Err(Failure::Code(code))
        }
        None => Err(Failure::new(status["message"].as_str().unwrap_or_default().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn exit_codes() {
        let status = |value: Value| ended(value.to_string().as_bytes());
        assert!(status(json!({"status": "Success"})).is_ok());
        let failed = json!({"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}});
        assert_eq!(status(failed).unwrap_err().code(), 3);
        assert_eq!(status(json!({"status": "Failure", "message": "x"})).unwrap_err().to_string(), "error: x");
    }
}
