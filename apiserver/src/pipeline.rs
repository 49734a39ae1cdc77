//! A request's way: one visible list of layers, then the verb.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response};
use keelson_client::{Body, Fence, Transport};
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::Status;
use keelson_store::Kv;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::access::{Admission, AdmissionPlugin, Attributes, Authorizer, Decision, UserInfo};
use crate::authn::Authenticator;
use crate::objects::{Objects, status_of};
use crate::request::{ResourceRequest, Target, target};
use crate::verbs::Call;
use crate::{admission, body, discovery, subresources};

/// Requests under way at once, watches and streams not counted (upstream: 400 reading and 200 writing).
const MAX_INFLIGHT: usize = 600;
/// Events expire after this, seconds.
const EVENT_TTL_SECONDS: i64 = 3600;
/// Events of this span share a lease, seconds.
const EVENT_LEASE_SPAN_SECONDS: i64 = 60;

/// Serves a path outside the resource table (member administration and the like); authorized by path like any other.
pub type Extension = Arc<dyn Fn(Method, Bytes) -> BoxFuture<'static, Result<Response<Body>, Status>> + Send + Sync>;

/// What an API server is made of.
pub struct Config {
    /// The store.
    pub kv: Arc<dyn Kv>,
    /// Keys for service account tokens and certificates.
    pub pki: Arc<keelson_pki::ClusterPki>,
    /// Addresses of Services, such as `10.96.0.0/16`.
    pub service_cidr: String,
    /// Further paths.
    pub extensions: Vec<(&'static str, Extension)>,
    /// Cancelled when the server stops: ends watches.
    pub stop: CancellationToken,
}

/// The API server.
pub struct ApiServer {
    pub(crate) objects: Objects,
    pub(crate) pki: Arc<keelson_pki::ClusterPki>,
    pub(crate) service_cidr: String,
    pub(crate) stop: CancellationToken,
    pub(crate) authenticator: Authenticator,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    admission: Vec<Box<dyn AdmissionPlugin>>,
    extensions: Vec<(&'static str, Extension)>,
    inflight: Semaphore,
    event_lease: tokio::sync::Mutex<(i64, i64)>,
}

/// A request's answer before it becomes bytes.
type Answer = Result<Response<Body>, Status>;

impl ApiServer {
    /// Puts a server together.
    pub fn new(config: Config) -> Arc<Self> {
        let objects = Objects { kv: config.kv };
        Arc::new(Self {
            authenticator: Authenticator::new(objects.clone(), config.pki.clone()),
            authorizer: crate::authz::chain(objects.clone()),
            admission: admission::chain(&objects),
            objects,
            pki: config.pki,
            service_cidr: config.service_cidr,
            stop: config.stop,
            extensions: config.extensions,
            inflight: Semaphore::new(MAX_INFLIGHT),
            event_lease: tokio::sync::Mutex::new((0, 0)),
        })
    }

    /// Carries out a request of an authenticated user. Never panics and always answers.
    pub async fn call(&self, user: UserInfo, request: Request<Bytes>) -> Response<Body> {
        match AssertUnwindSafe(self.layers(user, request)).catch_unwind().await {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => body::refusal(&status),
            Err(_) => {
                tracing::error!("a request panicked; it was answered with 500");
                body::refusal(&Status::internal("the request panicked"))
            }
        }
    }

    async fn layers(&self, user: UserInfo, request: Request<Bytes>) -> Answer {
        let (mut parts, bytes) = request.into_parts();
        let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
        let target = target(&parts.method, &parts.uri)?;
        let user = self.impersonate(user, &parts.headers)?;
        let attributes = target.attributes(&parts.method);
        self.authorize(&user, &attributes)?;
        let fence = parts.extensions.remove::<Fence>();
        match target {
            Target::Path(path) => self.path(&parts.method, &path, &parts.headers, bytes).await,
            Target::Resource(request) => {
                let call = Call {
                    request: &request,
                    user: &user,
                    headers: &parts.headers,
                    body: &bytes,
                    fence: fence.as_ref(),
                };
                if matches!(request.verb, "watch") || subresources::is_stream(&request.subresource) {
                    return self.dispatch(&call, upgrade, &parts.uri).await;
                }
                let Ok(_permit) = self.inflight.try_acquire() else {
                    return Err(Status::too_many_requests("Too many requests, please try again later.", 1));
                };
                self.dispatch(&call, upgrade, &parts.uri).await
            }
        }
    }

    async fn dispatch(&self, call: &Call<'_>, upgrade: Option<hyper::upgrade::OnUpgrade>, uri: &http::Uri) -> Answer {
        let ResourceRequest { def, verb, ref subresource, .. } = *call.request;
        if !subresource.is_empty() && subresource != "status" {
            return subresources::serve(self, call, upgrade, uri).await;
        }
        if subresource.is_empty() && !def.verbs.contains(&verb) {
            return Err(Status::method_not_allowed());
        }
        if subresource.is_empty() && verb == "create" && subresources::is_virtual(def) {
            return subresources::create_virtual(self, call).await;
        }
        match verb {
            "get" => self.get(call).await,
            "list" => self.list(call).await,
            "watch" => self.watch(call).await,
            "create" if subresource.is_empty() => self.create(call).await,
            "update" => self.update(call).await,
            "patch" => self.patch(call).await,
            "delete" if subresource.is_empty() => self.delete(call).await,
            "deletecollection" => self.delete_collection(call).await,
            _ => Err(Status::method_not_allowed()),
        }
    }

    async fn path(&self, method: &Method, path: &str, headers: &HeaderMap, bytes: Bytes) -> Answer {
        if let Some((_, extension)) = self.extensions.iter().find(|(p, _)| *p == path) {
            return extension(method.clone(), bytes).await;
        }
        if *method != Method::GET && *method != Method::HEAD {
            return Err(Status::no_such_path());
        }
        match path {
            "/healthz" | "/livez" => Ok(body::text(200, "ok")),
            "/readyz" => self.objects.kv.barrier().await.map(|_| body::text(200, "ok")).map_err(status_of),
            "/openid/v1/jwks" => Ok(body::value(200, &self.pki.service_account.jwks())),
            _ => discovery::serve(path, headers).ok_or_else(Status::no_such_path),
        }
    }

    /// The one place where requests are authorized.
    fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Result<(), Status> {
        let reason = match self.authorizer.authorize(user, attributes) {
            Decision::Allow => return Ok(()),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => reason,
        };
        if attributes.resource.is_empty() {
            let why = format!("User {:?} cannot {} path {:?}", user.name, attributes.verb, attributes.path);
            return Err(Status::forbidden("", "", "", &why));
        }
        let what = match attributes.subresource.as_str() {
            "" => attributes.resource.clone(),
            sub => format!("{}/{sub}", attributes.resource),
        };
        let place = if attributes.namespace.is_empty() || attributes.resource == "namespaces" {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", attributes.namespace)
        };
        let mut why = format!(
            "User {:?} cannot {} resource {what:?} in API group {:?} {place}",
            user.name, attributes.verb, attributes.group
        );
        if !reason.is_empty() {
            why = format!("{why}: {reason}");
        }
        Err(Status::forbidden(&attributes.group, &attributes.resource, &attributes.name, &why))
    }

    /// `Impersonate-*` headers: the user becomes another if it may.
    fn impersonate(&self, user: UserInfo, headers: &HeaderMap) -> Result<UserInfo, Status> {
        let all = |name: &str| {
            headers.get_all(name).iter().filter_map(|v| v.to_str().ok().map(str::to_owned)).collect::<Vec<_>>()
        };
        let (names, groups) = (all("impersonate-user"), all("impersonate-group"));
        if names.is_empty() {
            if groups.is_empty() && all("impersonate-uid").is_empty() {
                return Ok(user);
            }
            return Err(Status::bad_request("requested [{Group}] without impersonating a user"));
        }
        let name = names[0].clone();
        let may = |resource: &str, group: &str, namespace: &str, name: &str| {
            self.authorize(
                &user,
                &Attributes {
                    verb: "impersonate".into(),
                    group: group.into(),
                    resource: resource.into(),
                    namespace: namespace.into(),
                    name: name.into(),
                    ..Attributes::default()
                },
            )
        };
        let mut other = UserInfo { name: name.clone(), groups, ..UserInfo::default() };
        match name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
            Some((namespace, account)) => {
                may("serviceaccounts", "", namespace, account)?;
                if other.groups.is_empty() {
                    other.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
                }
            }
            None => may("users", "", "", &name)?,
        }
        for group in &other.groups {
            may("groups", "", "", group)?;
        }
        if let Some(uid) = all("impersonate-uid").into_iter().next() {
            may("uids", "authentication.k8s.io", "", &uid)?;
            other.uid = uid;
        }
        for (header, value) in headers {
            if let Some(key) = header.as_str().strip_prefix("impersonate-extra-") {
                let value = value.to_str().unwrap_or_default().to_owned();
                may(&format!("userextras/{key}"), "authentication.k8s.io", "", &value)?;
                other.extra.entry(key.to_owned()).or_default().push(value);
            }
        }
        let automatic = if name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
        if !other.groups.iter().any(|g| g == automatic) {
            other.groups.push(automatic.into());
        }
        Ok(other)
    }

    /// Runs the admission chain: all mutating steps, then all validating ones.
    pub(crate) async fn admit(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        for plugin in &self.admission {
            plugin.mutate(request).await?;
        }
        for plugin in &self.admission {
            plugin.validate(request).await?;
        }
        Ok(())
    }

    /// Makes this member's view new enough for a read: a barrier, unless the client asked for any version.
    pub(crate) async fn fresh(&self, version: Option<&str>) -> Result<(), Status> {
        match version {
            Some("0") => Ok(()),
            Some(text) => {
                let wanted: i64 = text.parse().map_err(|_| {
                    Status::bad_request(format!(
                        "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
                    ))
                })?;
                if self.objects.kv.view().revision() >= wanted {
                    return Ok(());
                }
                let revision = self.objects.kv.barrier().await.map_err(status_of)?;
                if revision < wanted {
                    return Err(Status::timeout(format!("Too large resource version: {wanted}, current: {revision}")));
                }
                Ok(())
            }
            None => self.objects.kv.barrier().await.map(|_| ()).map_err(status_of),
        }
    }

    /// The lease that lets events expire; one for all events of about a minute.
    pub(crate) async fn event_lease(&self, def: &ResourceDef) -> Result<i64, Status> {
        if def.plural != "events" {
            return Ok(0);
        }
        let now = jiff::Timestamp::now().as_second();
        let mut lease = self.event_lease.lock().await;
        if lease.0 == 0 || now - lease.1 >= EVENT_LEASE_SPAN_SECONDS {
            let ttl = EVENT_TTL_SECONDS + EVENT_LEASE_SPAN_SECONDS;
            *lease = (self.objects.kv.lease_grant(0, ttl).await.map_err(status_of)?, now);
        }
        Ok(lease.0)
    }
}

/// The client transport for components in the same process: the same semantics as over HTTPS, without sockets.
pub struct InProcess {
    server: Arc<ApiServer>,
    user: UserInfo,
}

impl InProcess {
    /// Calls `server` as `user`.
    pub fn new(server: Arc<ApiServer>, user: UserInfo) -> Self {
        Self { server, user }
    }
}

impl Transport for InProcess {
    fn call(&self, request: Request<Bytes>) -> BoxFuture<'_, std::io::Result<Response<Body>>> {
        async move { Ok(self.server.call(self.user.clone(), request).await) }.boxed()
    }
}
