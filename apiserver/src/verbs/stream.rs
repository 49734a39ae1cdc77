//! A whole collection as JSON, written in pieces while the client reads: what is held for it is one piece and the view, which
//! shares its memory with the store, however long the list is.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use keelson_client::Body;
use keelson_machinery::stored;
use keelson_store::{KeyRange, View};
use serde_json::json;

use super::Call;
use super::list::Selectors;
use crate::request::ResourceRequest;
use crate::{body, respond};

/// Size of a piece, bytes: a list that fits is sent whole, with its length.
const PIECE_BYTES: usize = 128 << 10;
/// Objects that are looked at for a piece, whether they are chosen or not.
const MAX_LOOKED_AT: usize = 4096;

/// Where the writing of a list is.
struct Writer {
    view: View,
    range: KeyRange,
    request: ResourceRequest,
    selectors: Selectors,
    /// How items of the kind begin, which lists leave out; empty for custom resources.
    intro: Vec<u8>,
    /// The key after which the next piece begins.
    after: Option<Bytes>,
    any: bool,
    ended: bool,
}

impl Writer {
    /// Adds the next piece. An object that cannot be read ends the list in its middle: that is no complete list.
    fn piece(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let end = out.len() + PIECE_BYTES;
        let (view, after) = (self.view.clone(), self.after.take());
        let mut rest: Box<dyn Iterator<Item = _>> = match &after {
            Some(key) => Box::new(view.range_from(&self.range, key)),
            None => Box::new(view.range(&self.range)),
        };
        for _ in 0..MAX_LOOKED_AT {
            let Some(kv) = rest.next() else {
                out.extend_from_slice(b"]}");
                self.ended = true;
                return Ok(());
            };
            let stored = self.request.stored(kv).map_err(|status| {
                tracing::error!(%status, key = %String::from_utf8_lossy(&kv.key), "a list ends at an object that cannot be read");
                io::Error::other(status.message)
            })?;
            if self.selectors.matches(&stored.head) {
                if self.any {
                    out.push(b',');
                }
                self.any = true;
                match self.intro.is_empty() {
                    true => stored.write_json(kv.mod_revision, out),
                    false => stored.write_item(&self.intro, kv.mod_revision, out),
                }
            }
            self.after = Some(kv.key.clone());
            if out.len() >= end {
                break;
            }
        }
        Ok(())
    }
}

/// The objects of a range of a view that the selectors choose, as a list.
pub(crate) fn list(call: &Call<'_>, view: View, range: KeyRange, selectors: Selectors) -> io::Result<Response<Body>> {
    let def = call.request.def;
    let mut metadata = json!({"resourceVersion": view.revision().to_string()});
    if def.custom {
        // Upstream's lists of custom resources always have the field.
        metadata["continue"] = "".into();
    }
    let intro = if def.custom { Vec::new() } else { stored::intro(def) };
    let mut writer =
        Writer { view, range, request: call.request.clone(), selectors, intro, after: None, any: false, ended: false };
    let mut first = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        def.list_kind(),
        def.api_version()
    )
    .into_bytes();
    while !writer.ended && first.len() < PIECE_BYTES {
        writer.piece(&mut first)?;
    }
    if writer.ended {
        return Ok(body::json(200, first));
    }
    let gzip = respond::accepts_gzip(call.headers)
        .then(|| GzEncoder::new(Vec::with_capacity(PIECE_BYTES / 4), Compression::fast()));
    let compressed = gzip.is_some();
    let mut response = body::json(200, Bytes::new());
    if compressed {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    let pieces = futures::stream::unfold(Some((writer, first, gzip)), |state| async move {
        let (mut writer, mut plain, mut gzip) = state?;
        loop {
            let told = if plain.is_empty() && !writer.ended { writer.piece(&mut plain) } else { Ok(()) };
            let last = writer.ended;
            match told.and_then(|()| pack(&mut gzip, std::mem::take(&mut plain), last)) {
                Err(error) => return Some((Err(error), None)),
                Ok(bytes) if bytes.is_empty() && !last => {}
                Ok(bytes) => return Some((Ok(bytes), (!last).then_some((writer, plain, gzip)))),
            }
        }
    });
    *response.body_mut() = StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync();
    Ok(response)
}

/// A piece as it is sent.
fn pack(gzip: &mut Option<GzEncoder<Vec<u8>>>, plain: Vec<u8>, last: bool) -> io::Result<Bytes> {
    let Some(mut encoder) = gzip.take() else { return Ok(plain.into()) };
    encoder.write_all(&plain)?;
    if last {
        return Ok(encoder.finish()?.into());
    }
    let packed = std::mem::take(encoder.get_mut());
    *gzip = Some(encoder);
    Ok(packed.into())
}
