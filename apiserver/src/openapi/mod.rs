//! OpenAPI: what explains the API to tools. Documents are made from the resource table and the schema table when somebody asks
//! for one, and kept compressed; those of version 3 about custom resources are made anew each time.

mod convert;
mod document;
mod enums;
mod gnostic;
mod operations;
mod others;
mod parameters;
mod render;
mod schema;
mod sink;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Response, header};
use keelson_client::Body;
use keelson_machinery::docs::Docs;
use keelson_machinery::status::Status;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha512};

use self::others::{Merged, Others};
use self::schema::{Flavour, META, Schemas};
use self::sink::Text;
use crate::aggregation::Remote;
use crate::request::Query;
use crate::{body, crd, respond};

const JSON: &str = "application/json";
/// The protobuf form of version 2, and a name under which it is asked for too.
const PROTOBUF: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
];
/// Compressed documents that are kept: those of version 3, and two forms of version 2.
const MAX_KEPT: usize = 64;

/// The documents that were asked for, compressed with gzip.
#[derive(Default)]
pub struct Documents(Mutex<HashMap<String, (String, Bytes)>>);

impl Documents {
    /// Serves a path below `/openapi`; `None` if it is none.
    pub fn serve(
        &self,
        path: &str,
        query: &Query,
        headers: &HeaderMap,
        customs: &crd::Table,
        remotes: &[Arc<Remote>],
    ) -> Option<Result<Response<Body>, Status>> {
        let path = path.strip_prefix("/openapi/")?.trim_end_matches('/');
        Some(match path {
            "v2" => self.version_2(headers, customs, remotes),
            "v3" => Ok(root(customs, remotes)),
            _ => self.version_3(path.strip_prefix("v3/")?, query, headers, (customs, remotes))?,
        })
    }

    fn version_3(
        &self,
        name: &str,
        query: &Query,
        headers: &HeaderMap,
        (customs, remotes): (&crd::Table, &[Arc<Remote>]),
    ) -> Option<Result<Response<Body>, Status>> {
        let foreign = remotes.iter().find(|row| row.available && foreign_name(row) == name);
        let hash = match foreign {
            Some(row) => foreign_hash(row),
            None => hashes(customs).remove(name)?,
        };
        if let Some(asked) = query.get("hash").filter(|asked| *asked != hash) {
            tracing::debug!(name, asked, "an older document was asked for");
            let mut response = respond::bytes(301, JSON, Bytes::new());
            if let Ok(place) = format!("/openapi/v3/{name}?hash={hash}").parse() {
                response.headers_mut().insert(header::LOCATION, place);
            }
            return Some(Ok(response));
        }
        if let Err(status) = choose(headers, &[JSON]) {
            return Some(Err(status));
        }
        let mut response = match not_modified(headers, &hash) {
            Some(response) => response,
            None => match self.document(name, customs, foreign) {
                Ok(document) => written(headers, JSON, document?),
                Err(status) => return Some(Err(status)),
            },
        };
        if query.get("hash").is_some() {
            // The name of this answer has its hash in it, so it is good for ever.
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        }
        tagged(&mut response, &hash);
        Some(Ok(response))
    }

    /// A compressed document of version 3.
    fn document(
        &self,
        name: &str,
        customs: &crd::Table,
        foreign: Option<&Arc<Remote>>,
    ) -> Result<Option<Bytes>, Status> {
        if let Some(document) = foreign.and_then(|row| row.document()) {
            return compress(convert::document_to_v3(&document).to_string().as_bytes()).map(Some);
        }
        if let ["apis", group, version] = name.split('/').collect::<Vec<_>>()[..]
            && let Some(document) = crd::openapi::document(customs, group, version)
        {
            return compress(document.to_string().as_bytes()).map(Some);
        }
        self.kept(name, "", || {
            let mut text = Text::new(encoder(), Flavour::V3);
            let found = document::version_3(name, customs.offered(), &mut text)?;
            let whole = text.finish()?.finish()?;
            Ok(found.then_some(whole))
        })
    }

    fn version_2(
        &self,
        headers: &HeaderMap,
        customs: &crd::Table,
        remotes: &[Arc<Remote>],
    ) -> Result<Response<Body>, Status> {
        // The name with an @ is no media type that clients can parse, so the other one is what the answer says.
        let media = match choose(headers, &[JSON, PROTOBUF[0], PROTOBUF[1]])? {
            JSON => JSON,
            _ => PROTOBUF[1],
        };
        let hash = hash_of(&state(customs, remotes));
        let whole = |sink: &mut dyn sink::Sink| {
            let others = Others::new(customs, remotes);
            let mut merged = Merged::new(sink, &others);
            document::version_2(customs.offered(), &mut merged)?;
            merged.finish()
        };
        let mut response = match not_modified(headers, &hash) {
            Some(response) => response,
            None => {
                let document = if media == JSON {
                    self.kept("v2", &hash, || {
                        let mut text = Text::new(encoder(), Flavour::V2);
                        whole(&mut text)?;
                        text.finish()?.finish().map(Some)
                    })
                } else {
                    self.kept("v2 protobuf", &hash, || {
                        let mut document = gnostic::Document::default();
                        whole(&mut document)?;
                        let mut encoder = encoder();
                        encoder.write_all(&document.finish())?;
                        encoder.finish().map(Some)
                    })
                };
                written(headers, media, document?.unwrap_or_default())
            }
        };
        // Upstream says of this document, and not of those of version 3, that it may come compressed.
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        tagged(&mut response, &hash);
        Ok(response)
    }

    /// A compressed document, made if it is not kept, or not in this state.
    fn kept(
        &self,
        name: &str,
        state: &str,
        make: impl FnOnce() -> io::Result<Option<Vec<u8>>>,
    ) -> Result<Option<Bytes>, Status> {
        if let Some((_, document)) = self.0.lock().get(name).filter(|(known, _)| known == state) {
            return Ok(Some(document.clone()));
        }
        let Some(document) = make().map_err(|e| Status::internal(&e.to_string()))? else { return Ok(None) };
        let document = Bytes::from(document);
        let mut kept = self.0.lock();
        if kept.len() < MAX_KEPT || kept.contains_key(name) {
            kept.insert(name.to_owned(), (state.to_owned(), document.clone()));
        }
        Ok(Some(document))
    }
}

/// The list of documents of version 3.
fn root(customs: &crd::Table, remotes: &[Arc<Remote>]) -> Response<Body> {
    let here = |name: &str, hash: &str| format!("/openapi/v3/{name}?hash={hash}");
    let served = remotes.iter().filter(|row| row.available).map(|row| {
        let name = foreign_name(row);
        let url = row.explained_at().unwrap_or_else(|| here(&name, &foreign_hash(row)));
        (name, url)
    });
    let own = hashes(customs).into_iter().map(|(name, hash)| {
        let url = here(&name, &hash);
        (name, url)
    });
    let paths: BTreeMap<String, Value> =
        own.chain(served).map(|(name, url)| (name, json!({"serverRelativeURL": url}))).collect();
    body::text(200, json!({"paths": paths}).to_string())
}

/// The name of the document of version 3 about another server's group and version.
fn foreign_name(row: &Remote) -> String {
    format!("apis/{}/{}", row.group, row.version)
}

fn foreign_hash(row: &Remote) -> String {
    hash_of(&format!("{} {}", foreign_name(row), row.seen()))
}

/// What the document of version 2 depends on.
fn state(customs: &crd::Table, remotes: &[Arc<Remote>]) -> String {
    let own = customs.groups().into_iter().flat_map(|(_, definitions)| definitions);
    let mut out: String = own.map(|definition| definition.identity()).collect();
    remotes.iter().filter(|row| row.available).for_each(|row| out += &row.seen());
    format!("v2 {out}")
}

/// The documents of version 3 there are, with their hashes.
fn hashes(customs: &crd::Table) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> =
        document::names(customs.offered()).into_iter().map(|name| (name.clone(), hash_of(&name))).collect();
    for (group, definitions) in customs.groups() {
        let mut by_version: BTreeMap<&str, String> = BTreeMap::new();
        for definition in &definitions {
            for version in definition.versions.iter().filter(|v| v.served) {
                *by_version.entry(version.def.version).or_default() += &definition.identity();
            }
        }
        for (version, identity) in by_version {
            let name = format!("apis/{group}/{version}");
            all.insert(name.clone(), hash_of(&format!("{name} {identity}")));
        }
        all.entry(format!("apis/{group}")).or_insert_with(|| hash_of(&group));
    }
    all
}

/// The schemas of the metadata of objects and lists, by name, in version 3: definitions name them.
pub fn metadata() -> &'static BTreeMap<String, Value> {
    /// Keeps what it is given.
    #[derive(Default)]
    struct Kept(BTreeMap<String, Value>);
    impl sink::Sink for Kept {
        fn entry(&mut self, _: sink::Section, name: &str, value: &Value) -> io::Result<()> {
            self.0.insert(name.to_owned(), value.clone());
            Ok(())
        }
    }
    static METADATA: LazyLock<BTreeMap<String, Value>> = LazyLock::new(|| {
        let docs = Docs::unpack();
        let mut schemas = Schemas::new(Flavour::V3, &docs, Vec::new());
        for kind in ["ObjectMeta", "ListMeta"] {
            schemas.reference(&format!("{META}{kind}"));
        }
        let mut kept = Kept::default();
        // Keeping cannot fail.
        let _ = schemas.finish(&mut kept);
        kept.0
    });
    &METADATA
}

pub(crate) use convert::{path_to_v2, schema_to_v2};

/// The hash of a document: it depends on nothing but this program's version and the document's identity.
fn hash_of(identity: &str) -> String {
    let digest = Sha512::digest(format!("{} {identity}", env!("CARGO_PKG_VERSION")));
    digest.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// The media type that the client prefers of those there are.
fn choose(headers: &HeaderMap, all: &[&'static str]) -> Result<&'static str, Status> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty()).unwrap_or("*/*");
    let wanted = accept.split(',').map(|part| part.split(';').next().unwrap_or_default().trim());
    let found = wanted.filter_map(|wanted| match wanted {
        "*/*" | "application/*" => all.first().copied(),
        _ => all.iter().copied().find(|media| *media == wanted),
    });
    let found = found.collect::<Vec<_>>();
    found.first().copied().ok_or_else(|| {
        let message = format!("406: Not Acceptable\n\nAvailable representations: {}", all.join(", "));
        Status { message, ..Status::not_acceptable("") }
    })
}

fn not_modified(headers: &HeaderMap, hash: &str) -> Option<Response<Body>> {
    let known = headers.get(header::IF_NONE_MATCH)?.to_str().ok()?;
    known.split(',').any(|tag| tag.trim().trim_matches('"') == hash).then(|| {
        let mut response = Response::new(body::full(Bytes::new()));
        *response.status_mut() = http::StatusCode::NOT_MODIFIED;
        response
    })
}

fn tagged(response: &mut Response<Body>, hash: &str) {
    if let Ok(tag) = format!("\"{hash}\"").parse() {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
}

fn encoder() -> GzEncoder<Vec<u8>> {
    GzEncoder::new(Vec::new(), flate2::Compression::default())
}

fn compress(document: &[u8]) -> Result<Bytes, Status> {
    let mut encoder = encoder();
    let written = encoder.write_all(document).and_then(|()| encoder.finish());
    written.map(Bytes::from).map_err(|e| Status::internal(&e.to_string()))
}

/// A compressed document as the client takes it.
fn written(headers: &HeaderMap, media: &'static str, document: Bytes) -> Response<Body> {
    if respond::accepts_gzip(headers) {
        let mut response = respond::bytes(200, media, document);
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        return response;
    }
    let mut plain = Vec::with_capacity(document.len() * 12);
    match flate2::read::GzDecoder::new(&document[..]).read_to_end(&mut plain) {
        Ok(_) => respond::bytes(200, media, plain),
        Err(error) => body::refusal(&Status::internal(&error.to_string())),
    }
}

#[cfg(test)]
mod tests;
