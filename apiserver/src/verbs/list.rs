//! GET of a collection: a range of one immutable view, concatenated; pages are cut from the same revision.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Response;
use keelson_client::Body;
use keelson_machinery::base64_text;
use keelson_machinery::decode::go_json_error;
use keelson_machinery::protobuf;
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::selector::{FieldSelector, LabelSelector};
use keelson_machinery::status::Status;
use keelson_machinery::stored::{self, Head, Stored};
use keelson_store::{KeyRange, KeyValue, Lens, Only, RangeRequest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

use super::{Call, stream};
use crate::negotiate::{Accepted, Format, Media};
use crate::objects::{Objects, parse, status_of};
use crate::request::ResourceRequest;
use crate::{ApiServer, body, listing, respond, table};

/// Where the next page begins, written as upstream writes it.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Continue {
    /// Version of this form.
    v: String,
    /// Revision of all pages; negative for the current one.
    rv: i64,
    /// First key of the page, without the prefix of the collection.
    start: String,
}

/// Version of continue tokens.
const TOKEN_VERSION: &str = "meta.k8s.io/v1";
/// The revision of a token that goes on with what is there now.
const INCONSISTENT: i64 = -1;
const EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new \
                       list without the continue parameter, or use the continue token in this response to retrieve the \
                       remainder of the results. Continuing with the provided token results in an inconsistent list - \
                       objects that were created, modified, or deleted between the time the first chunk was returned and \
                       now may show up in the list.";

/// Both selectors of a request.
pub(crate) struct Selectors {
    labels: LabelSelector,
    fields: FieldSelector,
    name: String,
}

impl Selectors {
    /// Reads them from the query; a name in the path (a watch of one object) counts as a field selector.
    pub(crate) fn of(request: &ResourceRequest) -> Result<Self, Status> {
        let labels = LabelSelector::parse(request.query.get("labelSelector").unwrap_or_default())
            .map_err(Status::bad_request)?;
        let fields = FieldSelector::parse(request.def, request.query.get("fieldSelector").unwrap_or_default())
            .map_err(Status::bad_request)?;
        Ok(Self { labels, fields, name: request.name.clone() })
    }

    /// Whether an object is chosen.
    pub(crate) fn matches(&self, head: &Head) -> bool {
        (self.name.is_empty() || self.name == head.name)
            && self.labels.matches(|k| head.label(k))
            && self.fields.matches(head)
    }

    /// The keys among which the chosen objects are: one, if their name and namespace are asked for.
    pub(crate) fn range(&self, request: &ResourceRequest) -> KeyRange {
        let named = (!self.name.is_empty()).then_some(self.name.as_str()).or_else(|| self.fields.name());
        match named {
            Some(name) if !request.namespace.is_empty() || request.def.scope == Scope::Cluster => {
                KeyRange::Key(Objects::key(request.def, &request.namespace, name))
            }
            _ => Objects::range(request.def, &request.namespace),
        }
    }

    /// What the changes that a watcher sees concern, as the store can tell: agents watch the pods of their node, and none
    /// is to be woken for those of thousands of others.
    pub(crate) fn only(&self) -> Option<Only> {
        let (field, value) = self.fields.field()?;
        let concern = value.to_owned().into();
        Some(Only { lens: Lens { read: stored::field, field }, concern })
    }

    /// Whether every object is chosen.
    pub(crate) fn select_all(&self) -> bool {
        self.labels == LabelSelector::default() && self.fields == FieldSelector::default() && self.name.is_empty()
    }
}

/// A page of stored objects.
pub(crate) struct Page {
    revision: i64,
    /// The objects, with what is known of them without parsing.
    pub(crate) items: Vec<(Arc<KeyValue>, Stored)>,
    next: Option<String>,
    remaining: Option<usize>,
}

impl Page {
    /// The metadata of a list that is answered in this form.
    pub(crate) fn metadata(&self, def: &ResourceDef, accepted: Accepted) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Some(token) = &self.next {
            metadata["continue"] = token.clone().into();
            if let Some(remaining) = self.remaining {
                metadata["remainingItemCount"] = remaining.into();
            }
        } else if def.custom && accepted.format == Format::Object {
            // Upstream's lists of custom resources always have the field.
            metadata["continue"] = "".into();
        }
        metadata
    }

    /// The list in protobuf.
    fn protobuf(&self, def: &ResourceDef, metadata: &Value) -> Result<Vec<u8>, protobuf::Error> {
        let mut list = protobuf::List::new(&def.api_version(), def.kind)?;
        for (kv, stored) in &self.items {
            list.push_stored(stored, kv.mod_revision)?;
        }
        list.finish(metadata)
    }
}

impl ApiServer {
    /// Serves a collection. Objects that a webhook converts are all converted before they are looked at.
    pub(crate) async fn list(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let custom = call.request.custom.as_ref().filter(|custom| custom.asks_others());
        let Some(custom) = custom else { return self.list_stored(call).await };
        self.fresh(call.request.query.get("resourceVersion")).await?;
        let view = self.objects.kv.view();
        let range = Objects::range(call.request.def, &call.request.namespace);
        let custom = custom.with_ahead(view.range(&range))?;
        let request = ResourceRequest { custom: Some(custom), ..call.request.clone() };
        self.list_stored(&Call { request: &request, ..*call }).await
    }

    async fn list_stored(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let def = call.request.def;
        if let Some(selectors) = self.whole(call)? {
            self.fresh(call.request.query.get("resourceVersion")).await?;
            let range = selectors.range(call.request);
            let mut response = stream::list(call, self.objects.kv.view(), range, selectors).await?;
            call.deprecated(&mut response);
            return Ok(response);
        }
        let page = self.page(call).await?;
        let accepted = call.accepted()?;
        let metadata = page.metadata(def, accepted);
        if accepted.format == Format::Object && accepted.media == Media::Protobuf {
            let bytes = page.protobuf(def, &metadata).map_err(|e| Status::internal(&e.to_string()))?;
            return Ok(respond::bytes(200, protobuf::MEDIA_TYPE, bytes));
        }
        if accepted != Accepted::default() || call.pretty() {
            // What is shown of an object is that of the one behind its versions.
            let behind = accepted.format != Format::Object
                && def.group == "autoscaling"
                && call.request.query.get("includeObject") != Some("Object");
            let value = |kv: &Arc<KeyValue>| if behind { parse(kv) } else { call.request.value(kv) };
            let items = page.items.iter().map(|(kv, _)| value(kv)).collect::<Result<Vec<_>, _>>()?;
            let list = table::list(def, accepted, &items, metadata, &call.request.query)?;
            let mut response = respond::object(200, accepted.media, &list, call.pretty())?;
            call.deprecated(&mut response);
            return Ok(response);
        }
        let size: usize = page.items.iter().map(|(_, s)| s.json.len() + 40).sum();
        let mut out = Vec::with_capacity(size + 200);
        out.extend_from_slice(
            format!(
                "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                def.list_kind(),
                def.api_version()
            )
            .as_bytes(),
        );
        let intro = if def.custom { Vec::new() } else { stored::intro(def) };
        for (index, (kv, stored)) in page.items.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            stored.write_item(&intro, kv.mod_revision, &mut out);
        }
        out.extend_from_slice(b"]}");
        let mut response = body::json(200, out);
        call.deprecated(&mut response);
        Ok(response)
    }

    /// The selectors of a list that is wanted whole and as it is now: it is written while it is read.
    fn whole(&self, call: &Call<'_>) -> Result<Option<Selectors>, Status> {
        let (request, accepted) = (call.request, call.accepted()?);
        listing::check(request)?;
        let version = request.query.get("resourceVersion");
        version.map(listing::version).transpose()?;
        let limited = request.query.number("limit")?.is_some_and(|limit| limit > 0) && version != Some("0");
        let past =
            request.query.get("continue").is_some() || request.query.get("resourceVersionMatch") == Some("Exact");
        // Only JSON is written otherwise for people.
        let pretty = accepted.media == Media::Json && call.pretty();
        let other = !stream::is_written_so(request.def, accepted) || pretty;
        if limited || past || other { Ok(None) } else { Selectors::of(request).map(Some) }
    }

    /// The objects that a request for a collection chooses.
    pub(crate) async fn page(&self, call: &Call<'_>) -> Result<Page, Status> {
        let request = call.request;
        listing::check(request)?;
        let selectors = Selectors::of(request)?;
        let mut limit = usize::try_from(request.query.number("limit")?.unwrap_or(0)).unwrap_or(0);
        let prefix = Objects::prefix(request.def, &request.namespace);
        let range = KeyRange::prefix(prefix.clone());
        let (version, exact) = (request.query.get("resourceVersion"), request.query.get("resourceVersionMatch"));
        version.map(listing::version).transpose()?;
        // Lists from the watch cache know no limit.
        if version == Some("0") {
            limit = 0;
        }
        let (revision, start) = match request.query.get("continue") {
            Some(token) => {
                let token = decode_token(token)?;
                if version.is_some_and(|v| v != "0") {
                    return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
                }
                (token.rv.max(0), Some(format!("{prefix}{}", token.start)))
            }
            None if exact == Some("Exact") => (version.and_then(|v| v.parse().ok()).unwrap_or(0), None),
            None => (0, None),
        };
        self.fresh(if revision > 0 { Some("0") } else { version }).await?;
        let view = self.objects.kv.view();
        let at = if revision > 0 { revision } else { view.revision() };
        let keys: Box<dyn Iterator<Item = Arc<KeyValue>> + '_> = if at == view.revision() {
            match &start {
                Some(start) => {
                    let rest: Vec<_> = view.range(&from(range, start)).cloned().collect();
                    Box::new(rest.into_iter())
                }
                None => Box::new(view.range(&range).cloned()),
            }
        } else {
            Box::new(self.past(range.clone(), &prefix, start.as_deref(), at).await?.into_iter())
        };
        cut(request, keys, &selectors, limit, at, &prefix)
    }

    /// Keys of an interval at a past revision, from `start` on.
    async fn past(
        &self,
        range: KeyRange,
        prefix: &str,
        start: Option<&str>,
        revision: i64,
    ) -> Result<Vec<Arc<KeyValue>>, Status> {
        let range = match start {
            Some(start) => from(range, start),
            None => range,
        };
        let kv = self.objects.kv.clone();
        let request = RangeRequest { revision, ..RangeRequest::new(range) };
        let answer = tokio::task::spawn_blocking(move || kv.range(&request))
            .await
            .map_err(|e| Status::internal(&e.to_string()))?;
        match answer {
            Ok(response) => Ok(response.kvs),
            Err(keelson_store::KvError::Compacted(_)) if start.is_some() => {
                let start = start.unwrap_or_default().strip_prefix(prefix).unwrap_or_default();
                Err(Status::expired(EXPIRED).continued_by(encode_token(INCONSISTENT, start.to_owned())?))
            }
            Err(keelson_store::KvError::Compacted(_)) => {
                Err(Status::expired("The resourceVersion for the provided list is too old."))
            }
            Err(keelson_store::KvError::FutureRevision) => {
                Err(Status::too_large_version(revision, self.objects.kv.view().revision(), 0))
            }
            Err(error) => Err(status_of(error)),
        }
    }
}

/// Takes the first `limit` chosen objects (0: all) and says how it goes on.
fn cut(
    request: &ResourceRequest,
    keys: impl Iterator<Item = Arc<KeyValue>>,
    selectors: &Selectors,
    limit: usize,
    revision: i64,
    prefix: &str,
) -> Result<Page, Status> {
    let mut keys = keys;
    let mut page = Page { revision, items: Vec::new(), next: None, remaining: None };
    for kv in keys.by_ref() {
        let stored = request.stored(&kv)?;
        if !selectors.matches(&stored.head) {
            continue;
        }
        if limit > 0 && page.items.len() == limit {
            let (last, _) = &page.items[limit - 1];
            let key = String::from_utf8_lossy(&last.key);
            let start = format!("{}\0", key.strip_prefix(prefix).unwrap_or(&key));
            page.next = Some(encode_token(revision, start)?);
            // With selectors the number is not known without reading on, and upstream leaves it out too.
            page.remaining = selectors.select_all().then(|| keys.count() + 1);
            break;
        }
        page.items.push((kv, stored));
    }
    Ok(page)
}

/// The part of an interval from a key on.
fn from(range: KeyRange, start: &str) -> KeyRange {
    match range {
        KeyRange::Range(_, end) => KeyRange::Range(start.to_owned().into(), end),
        other => other,
    }
}

fn encode_token(rv: i64, start: String) -> Result<String, Status> {
    let token = Continue { v: TOKEN_VERSION.into(), rv, start };
    let json = serde_json::to_vec(&token).map_err(|e| Status::internal(&e.to_string()))?;
    Ok(URL_SAFE_NO_PAD.encode(json))
}

fn decode_token(token: &str) -> Result<Continue, Status> {
    let refused = |why: &str| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
    let bytes = base64_text::decode(base64_text::Form::UrlUnpadded, token.as_bytes())
        .map_err(|at| refused(&format!("illegal base64 data at input byte {at}")))?;
    let token: Continue = serde_json::from_slice(&bytes).map_err(|error| refused(&go_json_error(&bytes, &error)))?;
    if token.v != TOKEN_VERSION {
        return Err(refused(&format!("server does not recognize this encoded version {}", token.v)));
    }
    if token.rv == 0 {
        return Err(refused(&format!("incorrect encoded start resourceVersion (version {TOKEN_VERSION})")));
    }
    if token.start.is_empty() {
        return Err(refused(&format!("encoded start key empty (version {TOKEN_VERSION})")));
    }
    // A start may not lead out of the collection.
    let start = token.start.strip_prefix('/').unwrap_or(&token.start);
    if start.ends_with('/') || start.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(refused(&token.start));
    }
    Ok(Continue { start: start.to_owned(), ..token })
}
