//! The short way of the requests that come most, reads and writes of keys: what routing, streams and boxes of a general
//! gRPC server cost is more than what these requests do.
//!
//! Invariant: a request gets the same answer as from the service behind the router; what is not plain (compressed, another
//! method than POST) goes there.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body as Slow;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use keelson_proto::etcd::etcdserverpb::kv_server::Kv;
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Code, Response, Status};

use super::calls::UnderWay;
use super::kv::KvService;

/// Compression flag and length before a message.
const HEAD_BYTES: usize = 5;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// A method with a short way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Range,
    Put,
    DeleteRange,
    Txn,
}

impl Call {
    const ALL: [Self; 4] = [Self::Range, Self::Put, Self::DeleteRange, Self::Txn];

    /// Where it is asked for.
    pub fn path(self) -> &'static str {
        match self {
            Self::Range => "/etcdserverpb.KV/Range",
            Self::Put => "/etcdserverpb.KV/Put",
            Self::DeleteRange => "/etcdserverpb.KV/DeleteRange",
            Self::Txn => "/etcdserverpb.KV/Txn",
        }
    }

    /// The method that a request is for, if it can take the short way.
    pub fn of<B>(request: &http::Request<B>) -> Option<Self> {
        let path = request.uri().path();
        let call = Self::ALL.into_iter().find(|call| call.path() == path)?;
        let headers = request.headers();
        let plain = request.method() == Method::POST
            && headers.get(CONTENT_TYPE).is_some_and(|kind| kind == GRPC)
            && headers.get("grpc-encoding").is_none_or(|encoding| encoding == "identity");
        plain.then_some(call)
    }
}

/// An answer's body.
pub enum Answer {
    /// One message, then the trailers.
    Message(Bytes),
    /// The trailers of a request that was done.
    Trailers,
    /// Nothing more.
    End,
    /// Whatever the router answers to a call, if it is one.
    Routed(Slow, Option<UnderWay>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut *self {
            Self::Message(message) => {
                let message = std::mem::take(message);
                *self = Self::Trailers;
                Poll::Ready(Some(Ok(Frame::data(message))))
            }
            Self::Trailers => {
                *self = Self::End;
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Self::End => Poll::Ready(None),
            Self::Routed(body, call) => {
                let frame = std::task::ready!(Pin::new(body).poll_frame(context));
                if let (Some(call), Some(Ok(frame))) = (call, &frame)
                    && let Some(trailers) = frame.trailers_ref()
                {
                    call.ended_as(trailers);
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Message(_) | Self::Trailers => false,
            Self::End => true,
            Self::Routed(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Routed(body, _) => body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

/// Answers a request.
pub async fn answer(service: &Arc<KvService>, call: Call, request: http::Request<Incoming>) -> http::Response<Answer> {
    let mut under_way = service.0.calls.begin(call.path());
    let answer = answered(service, call, request).await;
    if let Some(under_way) = &mut under_way {
        under_way.ended(answer.as_ref().err().map_or(Code::Ok, Status::code));
    }
    match answer {
        Ok((metadata, message)) => {
            let mut response = http::Response::new(Answer::Message(message));
            *response.headers_mut() = metadata.into_headers();
            response.headers_mut().insert(CONTENT_TYPE, GRPC);
            response
        }
        Err(status) => status.into_http::<tonic::body::Body>().map(|_| Answer::End),
    }
}

async fn answered(
    service: &KvService,
    call: Call,
    request: http::Request<Incoming>,
) -> Result<(MetadataMap, Bytes), Status> {
    let (head, body) = request.into_parts();
    let message = receive(body, service.most_bytes()).await?;
    let metadata = MetadataMap::from_headers(head.headers);
    macro_rules! run {
        ($method:ident) => {{
            let message = Message::decode(message).map_err(|error| Status::internal(error.to_string()))?;
            encoded(service.$method(tonic::Request::from_parts(metadata, head.extensions, message)).await?)
        }};
    }
    match call {
        Call::Range => run!(range),
        Call::Put => run!(put),
        Call::DeleteRange => run!(delete_range),
        Call::Txn => run!(txn),
    }
}

fn encoded(response: Response<impl Message>) -> Result<(MetadataMap, Bytes), Status> {
    let (metadata, message, _) = response.into_parts();
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(HEAD_BYTES + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).map_err(|_| Status::resource_exhausted("the answer is larger than 4 GiB"))?);
    message.encode(&mut out).map_err(|error| Status::internal(error.to_string()))?;
    Ok((metadata, out.freeze()))
}

/// The one message of a request. It shares the bytes that were received if they came in one piece.
async fn receive<B>(mut body: B, most_bytes: usize) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut whole = Bytes::new();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| Status::new(Code::Unknown, error.to_string()))?;
        // Trailers of a request say nothing here.
        let Ok(piece) = frame.into_data() else { continue };
        if whole.is_empty() {
            whole = piece;
        } else {
            let length = announced(&whole).unwrap_or(0).min(most_bytes) + HEAD_BYTES;
            let mut joined = BytesMut::from(whole);
            joined.reserve(length.saturating_sub(joined.len()));
            joined.extend_from_slice(&piece);
            whole = joined.freeze();
        }
        if whole.first().is_some_and(|flag| *flag != 0) {
            let why = "protocol error: received message with compressed-flag but no grpc-encoding was specified";
            return Err(Status::internal(why));
        }
        if let Some(length) = announced(&whole).filter(|length| *length > most_bytes) {
            let why = format!(
                "Error, decoded message length too large: found {length} bytes, the limit is: {most_bytes} bytes"
            );
            return Err(Status::out_of_range(why));
        }
        if whole.len() > HEAD_BYTES + announced(&whole).unwrap_or(0) && announced(&whole).is_some() {
            return Err(Status::internal("Unexpected data after the message of a unary request"));
        }
    }
    match announced(&whole) {
        Some(length) if whole.len() == HEAD_BYTES + length => {
            whole.advance(HEAD_BYTES);
            Ok(whole)
        }
        Some(_) => Err(Status::internal("Unexpected EOF decoding stream.")),
        None => Err(Status::internal("Missing request message.")),
    }
}

/// The message's length, once its head is there.
fn announced(whole: &[u8]) -> Option<usize> {
    let head = whole.first_chunk::<HEAD_BYTES>()?;
    Some(u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize)
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;

    use super::*;

    async fn received(pieces: &[&[u8]]) -> Result<Bytes, Status> {
        let frames = pieces.iter().map(|piece| Ok::<_, axum::Error>(Frame::data(Bytes::copy_from_slice(piece))));
        receive(StreamBody::new(futures::stream::iter(frames.collect::<Vec<_>>())), 8).await
    }

    #[tokio::test]
    async fn a_message_is_read_from_pieces_or_refused() {
        for (name, pieces, want) in [
            ("in one piece", vec![&b"\0\0\0\0\x03abc"[..]], Ok(&b"abc"[..])),
            ("empty", vec![b"\0\0\0\0\0"], Ok(b"")),
            ("in pieces", vec![b"\0\0", b"\0\0\x03a", b"", b"bc"], Ok(b"abc")),
            ("the largest", vec![b"\0\0\0\0\x08", b"abcdefgh"], Ok(b"abcdefgh")),
            ("too large", vec![b"\0\0\0\0\x09"], Err(Code::OutOfRange)),
            ("too large by far", vec![b"\0\xff\xff\xff\xff"], Err(Code::OutOfRange)),
            ("compressed", vec![b"\x01\0\0\0\x03abc"], Err(Code::Internal)),
            ("cut short", vec![b"\0\0\0\0\x03ab"], Err(Code::Internal)),
            ("with more behind it", vec![b"\0\0\0\0\x03abc", b"\0"], Err(Code::Internal)),
            ("nothing", vec![], Err(Code::Internal)),
            ("half a head", vec![b"\0\0"], Err(Code::Internal)),
        ] {
            let found = received(&pieces).await.map_err(|status| status.code());
            assert_eq!(found, want.map(Bytes::copy_from_slice), "{name}");
        }
    }

    #[test]
    fn only_plain_requests_take_the_short_way() {
        let request = |path: &str, method: &str, kind: &str, encoding: &str| {
            let request = http::Request::builder().uri(path).method(method).header("content-type", kind);
            request.header("grpc-encoding", encoding).body(()).unwrap()
        };
        let (put, grpc) = ("/etcdserverpb.KV/Put", "application/grpc");
        assert_eq!(Call::of(&request(put, "POST", grpc, "identity")), Some(Call::Put));
        assert_eq!(Call::of(&request(put, "GET", grpc, "identity")), None);
        assert_eq!(Call::of(&request(put, "POST", "application/json", "identity")), None);
        assert_eq!(Call::of(&request(put, "POST", grpc, "gzip")), None);
        assert_eq!(Call::of(&request("/etcdserverpb.KV/Compact", "POST", grpc, "identity")), None);
    }
}
