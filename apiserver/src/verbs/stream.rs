//! A whole collection, written in pieces while the client reads: what is held for it is one piece and the view, which
//! shares its memory with the store, however long the list is.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use keelson_client::Body;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::Status;
use keelson_machinery::{cbor, protobuf, stored};
use keelson_store::{KeyRange, KeyValue, View};
use serde_json::{Value, json};

use super::Call;
use super::list::Selectors;
use crate::negotiate::{Accepted, Format, Media};
use crate::objects::parse;
use crate::request::ResourceRequest;
use crate::{respond, table};

/// Size of a piece, bytes: a list that fits is sent whole, with its length.
const PIECE_BYTES: usize = 128 << 10;
/// Room for the last object of a piece, bytes.
const SPARE_BYTES: usize = 8 << 10;
/// What is kept of a list in protobuf while its length is counted, bytes: so much need not be encoded twice.
const KEPT_BYTES: usize = 1 << 20;
/// Objects that are looked at for a piece, whether they are chosen or not.
const MAX_LOOKED_AT: usize = 4096;

/// What is written of an object.
enum Form {
    /// All of it, without how items of the kind begin (empty for custom resources, whose lists do not leave it out).
    Json(Vec<u8>),
    Row,
    Metadata,
    Protobuf(protobuf::List),
    ProtobufMetadata(protobuf::List),
    Cbor,
    CborMetadata,
}

/// Where the writing of a list is.
struct Writer {
    view: View,
    range: KeyRange,
    request: ResourceRequest,
    selectors: Selectors,
    /// Whether all objects are chosen: then nothing needs to be known of them.
    all: bool,
    accepted: Accepted,
    form: Form,
    /// What comes after the last item.
    end: Bytes,
    /// The key after which the next piece begins.
    after: Option<Bytes>,
    any: bool,
    ended: bool,
}

/// Whether lists of a kind can be written in pieces in a form. Flow schemas are shown in an order of their own.
pub(crate) fn is_written_so(def: &ResourceDef, accepted: Accepted) -> bool {
    match (accepted.media, accepted.format) {
        (Media::Json, Format::Table) => def.plural != "flowschemas",
        (Media::Json, Format::Object | Format::MetadataList) => true,
        (Media::Protobuf, Format::Object) => protobuf::is_known(&def.api_version(), def.kind),
        (Media::Protobuf, Format::MetadataList) => true,
        (Media::Cbor, Format::Object | Format::MetadataList) => true,
        _ => false,
    }
}

fn other(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

impl Writer {
    /// Adds the next piece. An object that cannot be read ends the list in its middle: that is no complete list.
    fn piece(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let end = out.len() + PIECE_BYTES;
        if self.after.is_some() {
            // There is more, mostly as much again; the last object of a piece goes beyond its end.
            out.reserve(PIECE_BYTES + SPARE_BYTES);
        }
        let (view, range, after) = (self.view.clone(), self.range.clone(), self.after.take());
        let mut rest: Box<dyn Iterator<Item = _>> = match &after {
            Some(key) => Box::new(view.range_from(&range, key)),
            None => Box::new(view.range(&range)),
        };
        for _ in 0..MAX_LOOKED_AT {
            let Some(kv) = rest.next() else {
                out.extend_from_slice(&self.end);
                self.ended = true;
                return Ok(());
            };
            self.item(kv, out).inspect_err(|error| {
                let key = String::from_utf8_lossy(&kv.key);
                tracing::error!(%error, %key, "a list ends at an object that cannot be read");
            })?;
            self.after = Some(kv.key.clone());
            if out.len() >= end {
                break;
            }
        }
        Ok(())
    }

    /// Adds an object, if it is chosen.
    fn item(&mut self, kv: &KeyValue, out: &mut Vec<u8>) -> io::Result<()> {
        if let (true, Form::Json(intro)) = (self.all, &self.form)
            && let Some(text) = self.request.text(kv).map_err(|status| other(status.message))?
        {
            if self.any {
                out.push(b',');
            }
            self.any = true;
            text.write_item(intro, kv.mod_revision, out);
            return Ok(());
        }
        let stored = self.request.stored(kv).map_err(|status| other(status.message))?;
        if !self.selectors.matches(&stored.head) {
            return Ok(());
        }
        let in_json = matches!(self.form, Form::Json(_) | Form::Row | Form::Metadata);
        if self.any && in_json {
            out.push(b',');
        }
        self.any = true;
        match &mut self.form {
            Form::Json(intro) => stored.write_item(intro, kv.mod_revision, out),
            Form::Row => {
                let row = table::row_of(self.request.def, self.accepted, &self.shown(kv)?, &self.request.query);
                serde_json::to_writer(out, &row)?;
            }
            Form::Metadata => serde_json::to_writer(out, &table::partial(self.accepted, &self.shown(kv)?))?,
            Form::Protobuf(list) => {
                list.push_stored(&stored, kv.mod_revision).map_err(other)?;
                out.append(list.written());
            }
            Form::ProtobufMetadata(_) => {
                let metadata = table::partial(self.accepted, &self.shown(kv)?);
                let Form::ProtobufMetadata(list) = &mut self.form else { return Ok(()) };
                list.push_value(&metadata).map_err(other)?;
                out.append(list.written());
            }
            Form::Cbor => {
                let def = self.request.def;
                let mut object = stored.to_value(kv.mod_revision).map_err(other)?;
                if let (false, Some(fields)) = (def.custom, object.as_object_mut()) {
                    fields.retain(|key, _| key != "apiVersion" && key != "kind");
                }
                cbor::item((def.group, def.version, def.kind), &object, out);
            }
            Form::CborMetadata => cbor::item(("", "", ""), &table::partial(self.accepted, &self.shown(kv)?), out),
        }
        Ok(())
    }

    /// The object of which something is shown: that behind its versions, unless the version's own is asked for.
    fn shown(&self, kv: &KeyValue) -> io::Result<Value> {
        let behind =
            self.request.def.group == "autoscaling" && self.request.query.get("includeObject") != Some("Object");
        let object = if behind { parse(kv) } else { self.request.value(kv) };
        object.map_err(|status| other(status.message))
    }

    /// What comes before the items, and the first of them. Protobuf says lengths first: they are counted.
    async fn begin(&mut self, metadata: &Value) -> io::Result<Vec<u8>> {
        let def = self.request.def;
        let mut first = match &self.form {
            Form::Json(_) => {
                let (kind, version) = (def.list_kind(), def.api_version());
                format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"items\":[")
            }
            Form::Row => {
                let (version, columns) = (self.accepted.meta_version(), table::columns_of(def));
                format!(
                    "{{\"kind\":\"Table\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"columnDefinitions\":{columns},\
                     \"rows\":["
                )
            }
            Form::Metadata => {
                let version = self.accepted.meta_version();
                format!(
                    "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},\"items\":["
                )
            }
            Form::Protobuf(_) | Form::ProtobufMetadata(_) => return self.begin_counted(metadata).await,
            Form::Cbor | Form::CborMetadata => return self.begin_numbered().await,
        }
        .into_bytes();
        while !self.ended && first.len() < PIECE_BYTES {
            self.piece(&mut first)?;
        }
        Ok(first)
    }

    /// CBOR says first how many items there are.
    async fn begin_numbered(&mut self) -> io::Result<Vec<u8>> {
        let def = self.request.def;
        let kind = if matches!(self.form, Form::Cbor) { def.list_kind() } else { "PartialObjectMetadataList".into() };
        let mut first = Vec::new();
        cbor::list_begin(&kind, self.count().await?, &mut first);
        while !self.ended && first.len() < PIECE_BYTES {
            self.piece(&mut first)?;
        }
        Ok(first)
    }

    /// How many objects are chosen.
    async fn count(&self) -> io::Result<usize> {
        let (mut count, mut after): (usize, Option<Bytes>) = (0, None);
        loop {
            let looked_at = {
                let mut rest: Box<dyn Iterator<Item = _>> = match &after {
                    Some(key) => Box::new(self.view.range_from(&self.range, key)),
                    None => Box::new(self.view.range(&self.range)),
                };
                let mut last = None;
                for kv in rest.by_ref().take(MAX_LOOKED_AT) {
                    let stored = self.request.stored(kv).map_err(|status| other(status.message))?;
                    count += usize::from(self.selectors.matches(&stored.head));
                    last = Some(kv.key.clone());
                }
                last
            };
            match looked_at {
                Some(last) => after = Some(last),
                None => return Ok(count),
            }
            tokio::task::yield_now().await;
        }
    }

    async fn begin_counted(&mut self, metadata: &Value) -> io::Result<Vec<u8>> {
        let (mut length, mut kept, mut piece) = (0, Vec::new(), Vec::new());
        let mut place = (None, false);
        while !self.ended {
            self.piece(&mut piece)?;
            length += piece.len();
            // What comes once something was left out is only counted.
            if kept.len() == length - piece.len() && kept.len() < KEPT_BYTES {
                kept.append(&mut piece);
                place = (self.after.clone(), self.ended);
            }
            piece.clear();
            tokio::task::yield_now().await;
        }
        (self.after, self.ended) = place;
        let (Form::Protobuf(list) | Form::ProtobufMetadata(list)) = &self.form else { return Ok(kept) };
        let mut first = list.head(metadata, length - self.end.len()).map_err(other)?;
        first.append(&mut kept);
        Ok(first)
    }
}

fn form_of(def: &ResourceDef, accepted: Accepted) -> Result<Form, protobuf::Error> {
    Ok(match (accepted.media, accepted.format) {
        (Media::Protobuf, Format::Object) => Form::Protobuf(protobuf::List::new(&def.api_version(), def.kind)?),
        (Media::Protobuf, _) => {
            Form::ProtobufMetadata(protobuf::List::new(accepted.meta_version(), "PartialObjectMetadata")?)
        }
        (Media::Cbor, Format::Object) => Form::Cbor,
        (Media::Cbor, _) => Form::CborMetadata,
        (_, Format::Table) => Form::Row,
        (_, Format::MetadataList | Format::Metadata) => Form::Metadata,
        (_, Format::Object) if def.custom => Form::Json(Vec::new()),
        (_, Format::Object) => Form::Json(stored::intro(def)),
    })
}

/// The objects of a range of a view that the selectors choose, as a list.
pub(crate) async fn list(
    call: &Call<'_>,
    view: View,
    range: KeyRange,
    selectors: Selectors,
) -> Result<Response<Body>, Status> {
    let (def, accepted) = (call.request.def, call.accepted()?);
    if accepted.format == Format::Table {
        table::check(&call.request.query)?;
    }
    let mut metadata = json!({"resourceVersion": view.revision().to_string()});
    if def.custom && accepted.format == Format::Object {
        // Upstream's lists of custom resources always have the field.
        metadata["continue"] = "".into();
    }
    let internal = |error: &dyn std::fmt::Display| Status::internal(&error.to_string());
    let form = form_of(def, accepted).map_err(|error| internal(&error))?;
    let end = match accepted.media {
        Media::Protobuf => Bytes::from_static(&protobuf::LIST_END),
        Media::Cbor if accepted.format == Format::Object => cbor::list_end(&metadata, &def.api_version()).into(),
        Media::Cbor => cbor::list_end(&metadata, accepted.meta_version()).into(),
        _ => Bytes::from_static(b"]}"),
    };
    let (request, all) = (call.request.clone(), selectors.select_all());
    let mut writer =
        Writer { view, range, request, selectors, all, accepted, form, end, after: None, any: false, ended: false };
    let first = writer.begin(&metadata).await.map_err(|error| internal(&error))?;
    if writer.ended {
        return Ok(respond::bytes(200, accepted.media.content_type(), first));
    }
    Ok(answer(writer, first, call.headers))
}

/// The answer whose first piece is written.
fn answer(writer: Writer, first: Vec<u8>, headers: &HeaderMap) -> Response<Body> {
    let gzip = respond::accepts_gzip(headers)
        .then(|| GzEncoder::new(Vec::with_capacity(PIECE_BYTES / 4), Compression::fast()));
    let mut response = respond::bytes(200, writer.accepted.media.content_type(), Bytes::new());
    if gzip.is_some() {
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
    response
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
