//! API Priority and Fairness: requests are sorted into priority levels by FlowSchemas; each level has seats of its own, and
//! flows that want more than there is take turns.
//!
//! A level that does not use its seats lends some of them; one that needs more than its own borrows what is lent. How much each
//! may is in its configuration; who has which seats is settled anew every [`SETTLE_INTERVAL`], from what each used meanwhile.
//! A list takes as many seats as its objects are worth, so that a few huge lists do not pass for a few small requests.
//!
//! Invariants: a level never has more seats taken than it has at the moment, but for one request that is wider than all of
//! them, which then runs alone; what waits is bounded by its queues' lengths and by [`MAX_WAIT`]; the exempt level never
//! waits. Without FlowSchemas everything shares one limit.

pub mod dump;
mod level;
mod policy;
mod shares;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::{HeaderValue, Response, header};
use http_body::Body as _;
use keelson_client::Body;
use keelson_machinery::resources::find;
use keelson_store::KeyRange;
use parking_lot::Mutex;

use self::level::{Entry, Level, Permit, Shape, Waiting};
use self::policy::{Policy, Schema};
use self::shares::shared_out;
use crate::access::{Attributes, UserInfo};
use crate::body;
use crate::objects::{Objects, parse};
use crate::request::ResourceRequest;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Headers that tell how a request was sorted.
const FLOW_SCHEMA: &str = "x-kubernetes-pf-flowschema-uid";
const PRIORITY_LEVEL: &str = "x-kubernetes-pf-prioritylevel-uid";
/// A request waits no longer than this for a seat.
const MAX_WAIT: Duration = Duration::from_secs(15);
/// How long a list that is written while it is read keeps its seats (upstream's limit of a request).
const MAX_WRITE: Duration = Duration::from_secs(60);
/// How often seats are lent and given back.
const SETTLE_INTERVAL: Duration = Duration::from_secs(10);
/// Objects of a list that are worth a seat.
const OBJECTS_PER_SEAT: usize = 100;
/// Most seats of one request.
const MAX_WIDTH: usize = 10;

/// What a request is told that finds no seat, and when it is to come again, seconds.
const TOO_MANY: &str = "Too many requests, please try again later.";
const RETRY_AFTER: &str = "1";

/// An answer whose seats are given back when its last piece is written, or when the client takes too long to read it.
/// One that is written whole already holds none.
pub(crate) fn seated(response: Response<Body>, seats: impl Send + 'static) -> Response<Body> {
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    let seats = Arc::new(Mutex::new(Some(seats)));
    let late = Arc::downgrade(&seats);
    tokio::spawn(async move {
        tokio::time::sleep(MAX_WRITE).await;
        if let Some(seats) = late.upgrade() {
            seats.lock().take();
        }
    });
    body::holding(response, seats)
}

/// The answer to a request that finds no seat: upstream's filter, which stands before the resources, writes
/// text and no Status.
pub(crate) fn too_many() -> Response<Body> {
    let mut response = body::text(429, format!("{TOO_MANY}\n"));
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// What a request was sorted into: for the answer's headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sorted {
    /// uid of the FlowSchema.
    pub schema: String,
    /// uid of the priority level.
    pub level: String,
}

impl Sorted {
    fn of(schema: Option<&Schema>, level: Option<&Arc<Level>>) -> Self {
        let uid = |uid: Option<&String>| uid.cloned().unwrap_or_default();
        Self { schema: uid(schema.map(|schema| &schema.uid)), level: uid(level.map(|level| &level.shape.uid)) }
    }

    /// Tells the client of an answer.
    pub(crate) fn tell(self, response: &mut Response<Body>) {
        for (name, uid) in [(FLOW_SCHEMA, self.schema), (PRIORITY_LEVEL, self.level)] {
            if let (false, Ok(value)) = (uid.is_empty(), uid.parse()) {
                response.headers_mut().insert(name, value);
            }
        }
    }
}

/// The controller of flows.
pub struct Flow {
    objects: Objects,
    policy: ArcSwap<Policy>,
    settled: Mutex<Option<Instant>>,
}

impl Flow {
    /// Over the replica.
    pub fn new(objects: Objects) -> Self {
        Self { objects, policy: ArcSwap::default(), settled: Mutex::default() }
    }

    /// What a request is sorted into that takes no seat: it lasts, or costs next to nothing.
    pub fn sorted(&self, user: &UserInfo, asked: &Attributes) -> Sorted {
        let policy = self.policy();
        let (schema, level) = policy.sort(user, asked);
        Sorted::of(schema, level)
    }

    /// Waits for as many seats as a request is wide; nothing if there are none to be had. What it was sorted into is told
    /// either way.
    pub async fn acquire(&self, user: &UserInfo, asked: &Attributes, width: usize) -> (Option<Permit>, Sorted) {
        let policy = self.policy();
        self.settle(&policy);
        let (schema, level) = policy.sort(user, asked);
        let sorted = Sorted::of(schema, level);
        let Some(level) = level.filter(|level| !level.shape.exempt).cloned() else {
            return (Some(Permit::free()), sorted);
        };
        let mut hasher = DefaultHasher::new();
        schema.map(|schema| &schema.name).hash(&mut hasher);
        let flow = match schema.map_or("", |schema| schema.by.as_str()) {
            "ByUser" => user.name.as_str(),
            "ByNamespace" => asked.namespace.as_str(),
            _ => "",
        };
        flow.hash(&mut hasher);
        // Only of what waits is anything kept.
        let what = || {
            let schema = schema.map_or_else(String::new, |schema| schema.name.clone());
            let (user, asked) = (user.name.clone(), asked.clone());
            Box::new(Waiting { schema, flow: flow.to_owned(), arrived: jiff::Timestamp::now(), user, asked })
        };
        let entry = level.enter(hasher.finish(), width.min(level.shape.widest()), what);
        drop(policy);
        let waiting = match entry {
            Entry::Seat(permit) => return (Some(permit), sorted),
            Entry::Full => return (None, sorted),
            Entry::Wait(waiting) => waiting,
        };
        match tokio::time::timeout(MAX_WAIT, waiting).await {
            Ok(Ok(permit)) => (Some(permit), sorted),
            _ => {
                level.state.lock().counts.timed_out += 1;
                (None, sorted)
            }
        }
    }

    /// How many seats a list is worth: of objects that are read, whether they are all answered or not.
    pub fn width_of_list(&self, request: &ResourceRequest) -> usize {
        if request.verb != "list" {
            return 1;
        }
        let found = self.objects.kv.view().count(&Objects::range(request.def, &request.namespace));
        let limit = request.query.get("limit").and_then(|text| text.parse::<usize>().ok()).filter(|limit| *limit > 0);
        let unselective = ["labelSelector", "fieldSelector"].iter().all(|key| request.query.get(key).is_none());
        let read = match limit {
            // A selector may have to look at more than it answers.
            Some(limit) if unselective => found.min(limit),
            Some(limit) => found.min(limit.saturating_mul(2)),
            None => found,
        };
        read.div_ceil(OBJECTS_PER_SEAT).clamp(1, MAX_WIDTH)
    }

    /// Lends and gives back seats, if it is time.
    fn settle(&self, policy: &Policy) {
        let now = Instant::now();
        {
            // Who comes while another settles goes on.
            let Some(mut settled) = self.settled.try_lock() else { return };
            if settled.is_some_and(|at| now.duration_since(at) < SETTLE_INTERVAL) {
                return;
            }
            *settled = Some(now);
        }
        let levels: Vec<&Arc<Level>> = policy.levels.values().filter(|level| !level.shape.exempt).collect();
        let demands: Vec<(Shape, f64)> = levels.iter().map(|level| (level.shape.clone(), level.observed())).collect();
        for (level, limit) in levels.iter().zip(shared_out(&demands)) {
            level.resize(limit);
        }
    }

    fn policy(&self) -> Arc<Policy> {
        let view = self.objects.kv.view();
        let current = self.policy.load_full();
        let before = current.view.as_ref();
        if before.is_some_and(|before| before.revision() == view.revision()) {
            return current;
        }
        let ranges = ["flowschemas", "prioritylevelconfigurations"]
            .map(|plural| KeyRange::prefix(find(GROUP, "v1", plural).map(|def| def.prefix()).unwrap_or_default()));
        let same = before.is_some_and(|before| ranges.iter().all(|range| before.same(&view, range)));
        let fresh = if same {
            // The levels are shared: who is under way in them stays counted.
            Policy { view: Some(view), schemas: current.schemas.clone(), levels: current.levels.clone() }
        } else {
            let read = |range| view.range(range).filter_map(|kv| parse(kv).ok()).collect::<Vec<_>>();
            Policy::new(&read(&ranges[0]), &read(&ranges[1]), view.clone(), &current.levels)
        };
        let fresh = Arc::new(fresh);
        self.policy.store(fresh.clone());
        fresh
    }
}
