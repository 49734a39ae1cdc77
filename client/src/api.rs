//! Typed access to one kind over any [`Transport`].

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use http_body_util::{BodyExt, BodyStream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status};
use k8s_openapi::{ClusterResourceScope, Metadata, NamespaceResourceScope, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::transport::{Body, Fence, Transport};

/// What can go wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused: its Status, with HTTP code in `code`.
    #[error("{}", .0.message.as_deref().unwrap_or("the server refused the request"))]
    Status(Box<Status>),
    /// No answer came; a write may or may not have been carried out.
    #[error("no answer from the server: {0}")]
    Transport(#[from] std::io::Error),
    /// The answer was not what the API promises.
    #[error("unexpected answer: {0}")]
    Decode(#[from] serde_json::Error),
}

impl Error {
    /// HTTP code of a refusal, 0 otherwise.
    pub fn code(&self) -> u16 {
        match self {
            Self::Status(s) => s.code.unwrap_or(0) as u16,
            _ => 0,
        }
    }
    /// The object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }
    /// Conflict with another writer.
    pub fn is_conflict(&self) -> bool {
        self.code() == 409
    }
    /// A create of what exists already.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Status(s) if s.reason.as_deref() == Some("AlreadyExists"))
    }
    /// Nothing new may come into the namespace any more.
    pub fn is_namespace_terminating(&self) -> bool {
        matches!(self, Self::Status(status) if status.details.as_ref().is_some_and(|d| {
            d.causes.iter().flatten().any(|c| c.reason.as_deref() == Some("NamespaceTerminating"))
        }))
    }
    /// The revision asked for is compacted: list again.
    pub fn is_gone(&self) -> bool {
        self.code() == 410
    }
}

/// Bound of all kinds that [`Api`] serves.
pub trait Object:
    Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
}
impl<T> Object for T where
    T: Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + Clone + Send + Sync + 'static
{
}

/// Options of list and watch; field names are the API's.
#[derive(Clone, Debug, Default)]
pub struct ListParams {
    /// `labelSelector`
    pub label_selector: Option<String>,
    /// `fieldSelector`
    pub field_selector: Option<String>,
    /// `limit` (0: none)
    pub limit: u32,
    /// `continue`
    pub continue_token: Option<String>,
    /// `resourceVersion`
    pub resource_version: Option<String>,
}

/// The kinds of patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' strategic merge.
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchType {
    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Apply => "application/apply-patch+yaml",
        }
    }
}

/// A page of objects.
#[derive(Clone, Debug)]
pub struct List<K> {
    /// The objects.
    pub items: Vec<K>,
    /// Resource version of the snapshot: where to start watching.
    pub resource_version: String,
    /// Token for the next page.
    pub continue_token: Option<String>,
}

/// One event of a watch.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE", bound(deserialize = "K: DeserializeOwned"))]
pub enum WatchEvent<K> {
    /// The object now matches.
    Added(K),
    /// The object changed and still matches.
    Modified(K),
    /// The object is gone or matches no longer.
    Deleted(K),
    /// Nothing at or below this resource version comes any more.
    Bookmark(serde_json::Value),
    /// The watch ends.
    Error(Box<Status>),
}

/// Access to the API as one identity.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    user_agent: Arc<str>,
    fence: Option<Fence>,
}

impl Client {
    /// A client over `transport`; `user_agent` is also the field manager of its writes.
    pub fn new(transport: Arc<dyn Transport>, user_agent: &str) -> Self {
        Self { transport, user_agent: user_agent.into(), fence: None }
    }

    /// The same client under another user agent (a component's name).
    pub fn with_user_agent(&self, user_agent: &str) -> Self {
        Self { user_agent: user_agent.into(), ..self.clone() }
    }

    /// The same client whose writes are refused once the lease behind `fence` is lost.
    pub fn fenced(&self, fence: Fence) -> Self {
        Self { fence: Some(fence), ..self.clone() }
    }

    /// All objects of a kind: cluster-scoped ones, or those of all namespaces.
    pub fn all<K: Object>(&self) -> Api<K> {
        Api { client: self.clone(), namespace: None, kind: PhantomData }
    }

    /// Objects of a cluster-scoped kind.
    pub fn cluster<K: Object + Resource<Scope = ClusterResourceScope>>(&self) -> Api<K> {
        self.all()
    }

    /// Objects of a kind in one namespace.
    pub fn namespaced<K: Object + Resource<Scope = NamespaceResourceScope>>(&self, namespace: &str) -> Api<K> {
        Api { client: self.clone(), namespace: Some(namespace.into()), kind: PhantomData }
    }

    /// Sends any request; returns the response whatever its status.
    pub async fn send(
        &self,
        method: http::Method,
        path_and_query: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<http::Response<Body>, Error> {
        self.send_accepting(JSON, method, path_and_query, content_type, body).await
    }

    async fn send_accepting(
        &self,
        accept: &str,
        method: http::Method,
        path_and_query: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<http::Response<Body>, Error> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(path_and_query)
            .header(http::header::ACCEPT, accept)
            .header(http::header::USER_AGENT, &*self.user_agent);
        if let Some(content_type) = content_type {
            request = request.header(http::header::CONTENT_TYPE, content_type);
        }
        let mut request = request.body(body).map_err(std::io::Error::other)?;
        if let Some(fence) = &self.fence {
            request.extensions_mut().insert(fence.clone());
        }
        Ok(self.transport.call(request).await?)
    }

    /// Sends a request and decodes its JSON answer, or the Status of a refusal.
    pub async fn request<T: DeserializeOwned>(
        &self,
        method: http::Method,
        path_and_query: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<T, Error> {
        let response = self.send(method, path_and_query, content_type, body).await?;
        let response = refuse(response).await?;
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok(serde_json::from_slice(&bytes)?)
    }
}

impl Client {
    /// Reads a JSON answer in the form that `accept` names.
    pub async fn read<T: DeserializeOwned>(&self, path_and_query: &str, accept: &str) -> Result<T, Error> {
        let response = self.send_accepting(accept, http::Method::GET, path_and_query, None, Bytes::new()).await?;
        let bytes = refuse(response).await?.into_body().collect().await?.to_bytes();
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// The lines of an answer that stays open.
    pub async fn lines(
        &self,
        path_and_query: &str,
        accept: &str,
    ) -> Result<impl Stream<Item = Result<String, Error>> + Send + use<>, Error> {
        let response = self.send_accepting(accept, http::Method::GET, path_and_query, None, Bytes::new()).await?;
        let response = refuse(response).await?;
        let reader = tokio_util::io::StreamReader::new(
            BodyStream::new(response.into_body()).try_filter_map(|f| async { Ok(f.into_data().ok()) }).boxed(),
        );
        let lines = tokio_util::codec::FramedRead::new(
            reader,
            tokio_util::codec::LinesCodec::new_with_max_length(MAX_WATCH_EVENT_BYTES),
        );
        Ok(lines.map(|line| Ok(line.map_err(std::io::Error::other)?)))
    }
}

/// The usual form of answers.
const JSON: &str = "application/json";

/// Turns a response that is not a success into [`Error::Status`].
async fn refuse(response: http::Response<Body>) -> Result<http::Response<Body>, Error> {
    if response.status().is_success() || response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await?.to_bytes();
    let mut status: Status = serde_json::from_slice(&bytes).unwrap_or_else(|_| Status {
        message: Some(String::from_utf8_lossy(&bytes).into_owned()),
        ..Status::default()
    });
    status.code = Some(code.into());
    Err(Error::Status(Box::new(status)))
}

/// Typed access to one kind, in one namespace or across all.
#[derive(Clone)]
pub struct Api<K> {
    client: Client,
    namespace: Option<String>,
    kind: PhantomData<fn() -> K>,
}

impl<K: Object> Api<K> {
    fn path(&self, name: Option<&str>, subresource: Option<&str>, query: &[(&str, &str)]) -> String {
        let mut path = if K::GROUP.is_empty() {
            format!("/api/{}", K::VERSION)
        } else {
            format!("/apis/{}/{}", K::GROUP, K::VERSION)
        };
        if let Some(namespace) = &self.namespace {
            path += "/namespaces/";
            path += namespace;
        }
        for part in [Some(K::URL_PATH_SEGMENT), name, subresource].into_iter().flatten() {
            path.push('/');
            path += part;
        }
        let mut separator = '?';
        for (key, value) in query.iter().filter(|(_, v)| !v.is_empty()) {
            path.push(separator);
            path += key;
            path.push('=');
            path.extend(percent_encode(value));
            separator = '&';
        }
        path
    }

    fn list_query<'a>(params: &'a ListParams, limit: &'a str) -> Vec<(&'a str, &'a str)> {
        vec![
            ("labelSelector", params.label_selector.as_deref().unwrap_or("")),
            ("fieldSelector", params.field_selector.as_deref().unwrap_or("")),
            ("limit", if params.limit == 0 { "" } else { limit }),
            ("continue", params.continue_token.as_deref().unwrap_or("")),
            ("resourceVersion", params.resource_version.as_deref().unwrap_or("")),
        ]
    }

    /// Reads one object.
    pub async fn get(&self, name: &str) -> Result<K, Error> {
        self.client.request(http::Method::GET, &self.path(Some(name), None, &[]), None, Bytes::new()).await
    }

    /// Reads one object; `None` if it does not exist.
    pub async fn get_opt(&self, name: &str) -> Result<Option<K>, Error> {
        match self.get(name).await {
            Ok(object) => Ok(Some(object)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Lists objects.
    pub async fn list(&self, params: &ListParams) -> Result<List<K>, Error> {
        self.list_as(params).await
    }

    /// Lists objects without decoding them.
    pub(crate) async fn list_raw(&self, params: &ListParams) -> Result<List<Box<serde_json::value::RawValue>>, Error> {
        self.list_as(params).await
    }

    async fn list_as<T: DeserializeOwned>(&self, params: &ListParams) -> Result<List<T>, Error> {
        #[derive(Deserialize)]
        #[serde(bound(deserialize = "T: DeserializeOwned"))]
        struct Raw<T> {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta,
            items: Option<Vec<T>>,
        }
        let limit = params.limit.to_string();
        let path = self.path(None, None, &Self::list_query(params, &limit));
        let raw: Raw<T> = self.client.request(http::Method::GET, &path, None, Bytes::new()).await?;
        Ok(List {
            items: raw.items.unwrap_or_default(),
            resource_version: raw.metadata.resource_version.unwrap_or_default(),
            continue_token: raw.metadata.continue_.filter(|t| !t.is_empty()),
        })
    }

    /// Watches from `params.resource_version` on, with bookmarks. Ends with the connection; start again from the last
    /// resource version seen.
    pub async fn watch(
        &self,
        params: &ListParams,
    ) -> Result<impl Stream<Item = Result<WatchEvent<K>, Error>> + Send + use<K>, Error> {
        Ok(self.watch_lines(params).await?.map(|line| Ok(serde_json::from_str(&line?)?)))
    }

    /// Like [`Api::watch`], with events as they come.
    pub(crate) async fn watch_lines(
        &self,
        params: &ListParams,
    ) -> Result<impl Stream<Item = Result<String, Error>> + Send + use<K>, Error> {
        let limit = String::new();
        let mut query = Self::list_query(params, &limit);
        query.extend([("watch", "true"), ("allowWatchBookmarks", "true")]);
        self.client.lines(&self.path(None, None, &query), JSON).await
    }

    /// Creates an object.
    pub async fn create(&self, object: &K) -> Result<K, Error> {
        self.write(http::Method::POST, None, None, object).await
    }

    /// Replaces an object; its resource version, if set, must be the current one.
    pub async fn replace(&self, name: &str, object: &K) -> Result<K, Error> {
        self.write(http::Method::PUT, Some(name), None, object).await
    }

    /// Replaces an object's status.
    pub async fn replace_status(&self, name: &str, object: &K) -> Result<K, Error> {
        self.write(http::Method::PUT, Some(name), Some("status"), object).await
    }

    /// Posts to a subresource (`binding`, `eviction`, `token`, ...).
    pub async fn create_subresource<I: Serialize, O: DeserializeOwned>(
        &self,
        name: &str,
        subresource: &str,
        body: &I,
    ) -> Result<O, Error> {
        let path = self.path(Some(name), Some(subresource), &[]);
        self.client.request(http::Method::POST, &path, Some("application/json"), serde_json::to_vec(body)?.into()).await
    }

    /// Replaces a subresource (`approval`, `scale`, ...).
    pub async fn replace_subresource<I: Serialize, O: DeserializeOwned>(
        &self,
        name: &str,
        subresource: &str,
        body: &I,
    ) -> Result<O, Error> {
        let path = self.path(Some(name), Some(subresource), &[]);
        self.client.request(http::Method::PUT, &path, Some("application/json"), serde_json::to_vec(body)?.into()).await
    }

    async fn write(
        &self,
        method: http::Method,
        name: Option<&str>,
        subresource: Option<&str>,
        object: &K,
    ) -> Result<K, Error> {
        let path = self.path(name, subresource, &[]);
        self.client.request(method, &path, Some("application/json"), serde_json::to_vec(object)?.into()).await
    }

    /// Patches an object, or its `subresource`.
    pub async fn patch(
        &self,
        name: &str,
        subresource: Option<&str>,
        patch_type: PatchType,
        patch: &serde_json::Value,
    ) -> Result<K, Error> {
        let manager = if patch_type == PatchType::Apply { &*self.client.user_agent } else { "" };
        let path = self.path(Some(name), subresource, &[("fieldManager", manager)]);
        self.client
            .request(http::Method::PATCH, &path, Some(patch_type.content_type()), serde_json::to_vec(patch)?.into())
            .await
    }

    /// Applies fields to an object, or its `subresource`, in the name of `manager`, whoever owned them. `fields` is the object
    /// with nothing else, with its kind and name.
    pub async fn apply(
        &self,
        name: &str,
        subresource: Option<&str>,
        manager: &str,
        fields: &serde_json::Value,
    ) -> Result<K, Error> {
        let path = self.path(Some(name), subresource, &[("fieldManager", manager), ("force", "true")]);
        let kind = PatchType::Apply.content_type();
        self.client.request(http::Method::PATCH, &path, Some(kind), serde_json::to_vec(fields)?.into()).await
    }

    /// Patches an object, or its `subresource`, and does not read what the server answers it is now.
    pub async fn patch_unread(
        &self,
        name: &str,
        subresource: Option<&str>,
        patch_type: PatchType,
        patch: &serde_json::Value,
    ) -> Result<(), Error> {
        let (path, body) = (self.path(Some(name), subresource, &[]), serde_json::to_vec(patch)?.into());
        let _: serde::de::IgnoredAny =
            self.client.request(http::Method::PATCH, &path, Some(patch_type.content_type()), body).await?;
        Ok(())
    }

    /// Deletes an object. `options` is a `DeleteOptions` object or null.
    pub async fn delete(&self, name: &str, options: &serde_json::Value) -> Result<(), Error> {
        let body = if options.is_null() { Bytes::new() } else { serde_json::to_vec(options)?.into() };
        let _: serde::de::IgnoredAny = self
            .client
            .request(http::Method::DELETE, &self.path(Some(name), None, &[]), Some("application/json"), body)
            .await?;
        Ok(())
    }
}

/// Longest line of a watch that is accepted.
pub const MAX_WATCH_EVENT_BYTES: usize = 16 << 20;

fn percent_encode(value: &str) -> impl Iterator<Item = char> + '_ {
    value.bytes().flat_map(|b| {
        let plain = b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        let hex = |n: u8| char::from_digit(n.into(), 16).unwrap_or('0').to_ascii_uppercase();
        let chars =
            if plain { [Some(char::from(b)), None, None] } else { [Some('%'), Some(hex(b >> 4)), Some(hex(b & 15))] };
        chars.into_iter().flatten()
    })
}
