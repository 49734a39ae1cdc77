//! A request's way: one visible list of layers, then the verb.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, header};
use http_body::Body as _;
use keelson_client::{Body, Fence, Transport};
use keelson_machinery::features;
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::status::Status;
use keelson_store::Kv;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::access::{Admission, Attributes, Authorizer, Decision, UserInfo};
use crate::authn::Authentication;
use crate::hooks::Hooks;
use crate::objects::{Objects, status_of};
use crate::request::{Query, ResourceRequest, Target, attributes_of, deadline, target};
use crate::verbs::{Call, patch};
use crate::{
    Settings, admission, aggregation, audit, authn, authz, bindings, body, components, crd, discovery, earlier,
    encryption, flow, flow_status, health, introspection, legacy_tokens, metrics, negotiate, offered, openapi, quota,
    reload, respond, scheduling, service_ranges, streams, subresources, usage,
};

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
    /// What an operator may choose.
    pub settings: Settings,
    /// Cancelled when the server stops: ends watches.
    pub stop: CancellationToken,
}

/// The API server.
pub struct ApiServer {
    pub(crate) objects: Objects,
    pub(crate) pki: Arc<keelson_pki::ClusterPki>,
    pub(crate) service_cidr: String,
    pub(crate) stop: CancellationToken,
    pub(crate) authenticator: ArcSwap<Authentication>,
    pub(crate) authorizer: Arc<authz::Authorization>,
    pub(crate) customs: Arc<crd::Table>,
    pub(crate) aggregated: aggregation::Table,
    documents: openapi::Documents,
    metrics: metrics::Metrics,
    sources: keelson_metrics::Sources,
    pub(crate) agents: streams::Agents,
    pub(crate) readings: usage::Readings,
    pub(crate) advisor: std::sync::OnceLock<scheduling::Advisor>,
    pub(crate) turns: quota::Turns,
    pub(crate) token_uses: Arc<legacy_tokens::Uses>,
    admission: admission::Chain,
    extensions: Vec<(&'static str, Extension)>,
    flow: flow::Flow,
    pub(crate) auditor: Arc<audit::Auditor>,
    event_lease: tokio::sync::Mutex<(i64, i64)>,
    bootstrapped: AtomicBool,
    started: Instant,
}

/// A request whose answer could not be told is refused before anything is done.
fn acceptable(call: &Call<'_>) -> Result<(), Status> {
    let request = call.request;
    let own = request.def.subresources.iter().find(|sub| sub.name == request.subresource);
    let served = own.map_or(request.subresource.is_empty(), |sub| sub.verbs.contains(&request.verb));
    match request.subresource.as_str() {
        "log" => negotiate::text(call.headers),
        // Of what the other side of a connection says nothing is known, and what is not served is refused as that.
        other if subresources::is_stream(other) || !served => Ok(()),
        _ if request.verb == "patch" => patch::is_known(call).and_then(|()| call.accepted().map(|_| ())),
        _ => call.accepted().map(|_| ()),
    }
}

/// A refusal by a resource, in CBOR if the client wants that; what stands before resources has no CBOR, and the rest is told
/// further out.
fn in_its_form(headers: &HeaderMap, answer: Answer) -> Answer {
    match answer {
        Err(status) if status.code != 405 && !status.is_page() => {
            let media = negotiate::media_of_resources_refusal(headers);
            if media != negotiate::Media::Cbor {
                return Err(status);
            }
            audit::refused(&status);
            Ok(respond::refusal(media, &status))
        }
        answer => answer,
    }
}

/// A request's answer before it becomes bytes.
type Answer = Result<Response<Body>, Status>;

impl ApiServer {
    /// Puts a server together and starts what it does in the background; to be called inside a runtime.
    ///
    /// # Errors
    /// In words, what is wrong with the settings.
    pub fn new(config: Config) -> Result<Arc<Self>, String> {
        if let Some(path) = &config.settings.encryption {
            encryption::install(path)?;
        }
        features::install(features::Gates::parse(&config.settings.feature_gates)?);
        service_ranges::parse_all(&config.service_cidr).map_err(|status| status.message)?;
        let auditor = Arc::new(audit::Auditor::load(&config.settings.audit)?);
        let objects = Objects { kv: config.kv };
        let modes = config.settings.authorization.load()?;
        let authorizer = Arc::new(authz::Authorization::with(objects.clone(), modes));
        let hooks = Arc::new(Hooks::new(objects.clone()));
        let wanted = offered::pairs(&config.settings.runtime_config)?;
        let own = earlier::definitions(&config.settings.admission, &wanted)?;
        let offered = offered::Offered::new(&wanted, &earlier::versions())?;
        let customs = Arc::new(crd::Table::new(hooks.clone(), own, offered)?);
        let flow = flow::Flow::new(objects.clone());
        let token_uses: Arc<legacy_tokens::Uses> = Arc::default();
        let server = Arc::new(Self {
            customs: customs.clone(),
            aggregated: aggregation::Table::new(&config.pki, hooks.clone()),
            advisor: std::sync::OnceLock::new(),
            documents: openapi::Documents::default(),
            metrics: metrics::Metrics::default(),
            sources: Default::default(),
            authenticator: ArcSwap::from_pointee(
                Authentication::load(objects.clone(), config.pki.clone(), &config.settings.authentication)?
                    .noting(token_uses.clone()),
            ),
            token_uses,
            admission: admission::Chain::new(
                admission::Parts {
                    objects: objects.clone(),
                    authorization: authorizer.clone(),
                    customs,
                    hooks,
                    configs: Default::default(),
                },
                &config.settings.admission,
            )?,
            turns: quota::Turns::new(config.settings.admission.enables(admission::RESOURCE_QUOTA)),
            authorizer,
            agents: streams::Agents::new(&config.pki),
            readings: usage::Readings::default(),
            objects,
            pki: config.pki,
            service_cidr: config.service_cidr,
            stop: config.stop,
            extensions: config.extensions,
            flow,
            auditor,
            event_lease: tokio::sync::Mutex::new((0, 0)),
            bootstrapped: AtomicBool::new(false),
            started: Instant::now(),
        });
        crd::controller::start(&server);
        authz::placed::start(&server);
        flow_status::start(&server);
        legacy_tokens::start(&server);
        aggregation::start(&server);
        reload::start(&server, &config.settings);
        Ok(server)
    }

    /// The first objects are written ([`crate::bootstrap::ensure`]): from now on the server says that it is ready.
    pub fn bootstrapped(&self) {
        self.bootstrapped.store(true, Ordering::Release);
    }

    /// How many requests there were and are.
    pub fn figures(&self) -> metrics::Figures {
        self.metrics.figures()
    }

    /// The webhooks that cannot be reached at the moment.
    pub fn failing_webhooks(&self) -> Vec<crate::hooks::Failing> {
        self.customs.hooks().map(|hooks| hooks.failing()).unwrap_or_default()
    }

    /// Where other parts of the process add what `/metrics` shows.
    pub fn metric_sources(&self) -> &keelson_metrics::Sources {
        &self.sources
    }

    /// Carries out a request of an authenticated user. Never panics and always answers.
    pub async fn call(&self, user: UserInfo, request: Request<Bytes>) -> Response<Body> {
        let gzip = respond::accepts_gzip(request.headers());
        let answer = self.auditor.around(user, request, |user, request| self.answer(user, request)).await;
        respond::compressed(gzip, answer).await
    }

    async fn answer(&self, user: UserInfo, request: Request<Bytes>) -> Response<Body> {
        let accept = request.headers().get(header::ACCEPT).cloned();
        match AssertUnwindSafe(self.layers(user, request)).catch_unwind().await {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => {
                audit::refused(&status);
                respond::refusal(negotiate::media_of_refused(accept.as_ref()), &status)
            }
            Err(_) => {
                self.auditor.panicked().await;
                tracing::error!("a request panicked; it was answered with 500");
                body::refusal(&Status::internal("the request panicked"))
            }
        }
    }

    async fn layers(&self, user: UserInfo, request: Request<Bytes>) -> Answer {
        let begun = Instant::now();
        let (mut parts, bytes) = request.into_parts();
        let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
        let user = self.impersonate(user, &mut parts)?;
        if let Some(remote) = self.aggregated.find(parts.uri.path()) {
            self.authorize(&user, &attributes_of(&parts.method, &parts.uri))?;
            let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
            let peer = parts.extensions.get::<audit::Peer>().copied();
            let passed =
                aggregation::Passed { method: &parts.method, headers: &parts.headers, path, body: bytes, peer };
            return Ok(aggregation::serve(self, &remote, &user, passed, upgrade).await);
        }
        let target = target(&parts.method, &parts.uri, &self.customs);
        let limit = match &target {
            Ok(Target::Resource(request)) if lasts(request) => None,
            _ => deadline(parts.uri.query())?,
        };
        let target = match target {
            Ok(target) => target,
            Err(unknown) => {
                self.authorize(&user, &attributes_of(&parts.method, &parts.uri))?;
                return Err(unknown);
            }
        };
        let attributes = target.attributes(&parts.method);
        let fence = parts.extensions.remove::<Fence>();
        match target {
            Target::Path(path) => {
                self.authorize(&user, &attributes)?;
                let mut response = match path.as_str() {
                    bindings::PATH => bindings::create_many(self, &user, &parts.method, &bytes, fence.as_ref()).await?,
                    scheduling::WHAT_IF if parts.method == Method::POST => {
                        self.advise(scheduling::Question::WhatIf(bytes)).await?
                    }
                    _ => self.path(&parts, &path, bytes).await?,
                };
                self.flow.sorted(&user, &attributes).tell(&mut response);
                Ok(response)
            }
            Target::Resource(request) => {
                let started = Instant::now();
                let (headers, fence) = (&parts.headers, fence.as_ref());
                let call = Call { request: &request, user: &user, headers, body: &bytes, fence, counts_anyway: false };
                let answer = match self.authorize(&user, &attributes) {
                    Ok(()) => {
                        let answer = self.resource(&call, &attributes, upgrade, &parts.uri);
                        respond::within(limit, begun, answer).await
                    }
                    Err(refusal) => Err(refusal),
                };
                let code = answer.as_ref().map_or_else(|status| status.code, |response| response.status().as_u16());
                let apply = body::content_type(&parts.headers).starts_with("application/apply-patch");
                let bytes = answer.as_ref().ok().and_then(|response| response.body().size_hint().exact());
                self.metrics.answered(&request, apply, code, started.elapsed(), bytes);
                let deprecated = deprecation(&request);
                if deprecated.is_some() {
                    self.metrics.deprecated(&request);
                }
                let Some(warning) = deprecated.or_else(|| orphaning(&call)) else { return answer };
                let media = negotiate::media_of_refusal(&parts.headers);
                let mut response = answer.unwrap_or_else(|status| {
                    audit::refused(&status);
                    respond::refusal(media, &status)
                });
                body::warn(&mut response, &[warning.to_owned()]);
                Ok(response)
            }
        }
    }

    /// A request for a resource, within the limit of those at once. Answer and refusal tell how it was sorted.
    async fn resource(
        &self,
        call: &Call<'_>,
        attributes: &Attributes,
        upgrade: Option<hyper::upgrade::OnUpgrade>,
        uri: &http::Uri,
    ) -> Answer {
        let request = call.request;
        let (answer, sorted) = if lasts(request) {
            (self.lasting(call, upgrade, uri).await, self.flow.sorted(call.user, attributes))
        } else {
            match self.flow.acquire(call.user, attributes, self.flow.width_of_list(request)).await {
                (Some(permit), sorted) => {
                    let held = self.metrics.under_way(request);
                    let answer = in_its_form(call.headers, self.dispatch(call, upgrade, uri).await);
                    let answer = match request.verb {
                        "list" => answer.map(|response| flow::seated(response, (permit, held))),
                        _ => answer,
                    };
                    (answer, sorted)
                }
                (None, sorted) => (Ok(flow::too_many()), sorted),
            }
        };
        let mut response = answer.unwrap_or_else(|status| {
            audit::refused(&status);
            respond::refusal(negotiate::media_of_refusal(call.headers), &status)
        });
        sorted.tell(&mut response);
        Ok(response)
    }

    /// A watch or a stream; it counts as long as its answer is read.
    async fn lasting(&self, call: &Call<'_>, upgrade: Option<hyper::upgrade::OnUpgrade>, uri: &http::Uri) -> Answer {
        let held = self.metrics.long_running(call.request);
        let response = in_its_form(call.headers, self.dispatch(call, upgrade, uri).await)?;
        Ok(body::holding(response, held))
    }

    async fn dispatch(&self, call: &Call<'_>, upgrade: Option<hyper::upgrade::OnUpgrade>, uri: &http::Uri) -> Answer {
        let ResourceRequest { def, verb, ref subresource, .. } = *call.request;
        if !subresource.is_empty() && subresource != "status" {
            acceptable(call)?;
            return subresources::serve(self, call, upgrade, uri).await;
        }
        if subresources::is_virtual(def) && !call.request.name.is_empty() {
            return Err(Status::no_such_path());
        }
        misplaced(call.request)?;
        if subresource.is_empty() && !def.verbs.contains(&verb) {
            return Err(Status::method_not_allowed());
        }
        acceptable(call)?;
        if subresource.is_empty() && verb == "create" && subresources::is_virtual(def) {
            return subresources::create_virtual(self, call).await;
        }
        if usage::is_computed(call) {
            return self.usage(call).await;
        }
        if components::is_computed(call) {
            return self.components(call).await;
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

    async fn path(&self, parts: &http::request::Parts, path: &str, bytes: Bytes) -> Answer {
        let (method, headers) = (&parts.method, &parts.headers);
        if let Some((_, extension)) = self.extensions.iter().find(|(p, _)| *p == path) {
            return extension(method.clone(), bytes).await;
        }
        let query = Query::parse(parts.uri.query());
        if path.starts_with("/openapi/") {
            let answer = self.documents.serve(path, &query, headers, &self.customs, &self.aggregated.all());
            return answer.unwrap_or_else(|| Err(Status::no_such_path()));
        }
        let well = async { self.objects.kv.barrier().await.is_ok() };
        let state = health::State {
            bootstrapped: self.bootstrapped.load(Ordering::Acquire),
            stopping: self.stop.is_cancelled(),
        };
        if let Some(answer) = health::serve(path, &query, well, state).await {
            return Ok(answer);
        }
        if let Some(answer) = introspection::serve(path, headers, self.started) {
            return answer;
        }
        if let Some(table) = flow::dump::serve(&self.flow, path, &query) {
            return Ok(respond::bytes(200, "text/plain; charset=utf-8", table));
        }
        match path {
            "/metrics" if *method == Method::DELETE => {
                self.metrics.reset();
                Ok(respond::bytes(200, "text/plain; charset=utf-8", "metrics reset\n".to_owned()))
            }
            "/metrics" => {
                let groups = self.customs.groups();
                let definitions = groups.iter().flat_map(|(_, definitions)| definitions);
                let customs = definitions.flat_map(|d| d.versions.iter().take(1).map(|v| v.def));
                let rows = self.customs.offered().rows().chain(customs);
                let mut text = self.metrics.text(&self.objects.kv.view(), rows);
                flow::dump::figures(&self.flow, &mut text);
                text += &self.sources.text();
                Ok(respond::bytes(200, metrics::CONTENT_TYPE, text))
            }
            "/openid/v1/jwks" | "/.well-known/openid-configuration" if *method != Method::GET => {
                Err(Status::method_not_allowed())
            }
            "/openid/v1/jwks" => {
                negotiate::exactly(headers, "application/jwk-set+json")?;
                let keys = self.pki.service_account.jwks().to_string();
                Ok(respond::kept_for_an_hour(respond::bytes(200, "application/jwk-set+json", keys)))
            }
            "/.well-known/openid-configuration" => {
                let host = headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default();
                let answer = json!({
                    "issuer": keelson_pki::service_account::ISSUER, "jwks_uri": format!("https://{host}/openid/v1/jwks"),
                    "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": [self.pki.service_account.algorithm()],
                });
                Ok(respond::kept_for_an_hour(body::value(200, &answer)))
            }
            _ => {
                let (computed, remotes) = (usage::served(&self.objects), self.aggregated.all());
                match discovery::serve(path, headers, computed, &self.customs, &remotes) {
                    Some(_) if *method != Method::GET => Err(Status::method_not_allowed()),
                    answer => answer.unwrap_or_else(|| Err(Status::no_such_page())),
                }
            }
        }
    }

    /// The one place where requests are authorized.
    pub(crate) fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Result<(), Status> {
        let (word, reason, result) = match self.authorizer.authorize(user, attributes) {
            Decision::Allow => ("allow", None, Ok(())),
            Decision::Deny(reason) | Decision::NoOpinion(reason) => {
                let refusal = authz::refusal(user, attributes, &reason);
                ("forbid", Some(reason), Err(refusal))
            }
        };
        audit::annotate("authorization.k8s.io/decision", || word.into());
        audit::annotate("authorization.k8s.io/reason", || {
            reason.or_else(|| self.authorizer.explain(user, attributes)).unwrap_or_default()
        });
        result
    }

    /// `Impersonate-*` headers: the user becomes another if it may.
    fn impersonate(&self, user: UserInfo, parts: &mut http::request::Parts) -> Result<UserInfo, Status> {
        let http::request::Parts { method, uri, headers, .. } = parts;
        let asked = || match target(method, uri, &self.customs) {
            Ok(target) => target.attributes(method),
            Err(_) => attributes_of(method, uri),
        };
        match authn::impersonate(headers, &user, asked, &*self.authorizer)? {
            Some(acting) => {
                audit::impersonated(&acting);
                Ok(acting.user)
            }
            None => Ok(user),
        }
    }

    /// Runs the admission chain for what is validated nowhere else: all mutating steps, then all validating ones.
    pub(crate) async fn admit(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        self.admission.mutate(request).await?;
        self.admission.validate(request).await
    }

    /// Admits many bindings of a namespace at once, if nobody wants to see each.
    pub(crate) async fn admit_in_bulk(&self, request: &mut Admission<'_>) -> Result<Option<admission::InBulk>, Status> {
        self.admission.in_bulk(request).await
    }

    /// Runs the mutating steps of the admission chain.
    pub(crate) async fn admit_changes(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        self.admission.mutate(request).await
    }

    /// Runs the validating steps of the admission chain: of an object that its kind allows.
    pub(crate) async fn admit_result(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        self.admission.validate(request).await
    }

    /// Makes this member's view new enough for a read: a barrier, unless the client asked for any version.
    pub(crate) async fn fresh(&self, version: Option<&str>) -> Result<(), Status> {
        match version {
            Some("0") => Ok(()),
            Some(text) => {
                let wanted = text.parse::<u64>().ok().and_then(|n| i64::try_from(n).ok()).ok_or_else(|| {
                    Status::unknown(format!(
                        "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
                    ))
                })?;
                if self.objects.kv.view().revision() >= wanted {
                    return Ok(());
                }
                let revision = self.objects.kv.barrier().await.map_err(status_of)?;
                if revision < wanted {
                    return Err(Status::too_large_version(wanted, revision, 1));
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

/// Whether a request is answered for as long as its client reads.
fn lasts(request: &ResourceRequest) -> bool {
    request.verb == "watch" || subresources::is_stream(&request.subresource)
}

/// Refuses requests whose path has a name too many or too few for their verb.
fn misplaced(request: &ResourceRequest) -> Result<(), Status> {
    if !request.subresource.is_empty() {
        return Ok(());
    }
    let unnamed = request.name.is_empty();
    let nowhere = request.def.scope == Scope::Namespaced && request.namespace.is_empty();
    match request.verb {
        "create" if !unnamed => Err(Status::method_not_allowed()),
        "update" | "patch" if unnamed => Err(Status::method_not_allowed()),
        "create" | "deletecollection" if nowhere && !request.def.custom => Err(Status::method_not_allowed()),
        "get" | "update" | "patch" | "delete" if nowhere && !request.def.custom => Err(Status::no_such_path()),
        _ => Ok(()),
    }
}

/// What is told of rows that are going out of use.
fn deprecation(request: &ResourceRequest) -> Option<&'static str> {
    match (request.def.group, request.def.plural) {
        ("", "endpoints") => Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
        ("", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        _ => None,
    }
}

/// What is told of a deletion of jobs that does not say what becomes of their pods.
fn orphaning(call: &Call<'_>) -> Option<&'static str> {
    let request = call.request;
    let jobs = (request.def.group, request.def.plural) == ("batch", "jobs");
    if !jobs || !request.subresource.is_empty() || !matches!(request.verb, "delete" | "deletecollection") {
        return None;
    }
    let options = crate::deletion::read_options(call).ok()?;
    (options["propagationPolicy"].is_null() && options["orphanDependents"].is_null()).then_some(
        "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or \
         set propagationPolicy=Orphan to suppress this warning",
    )
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
