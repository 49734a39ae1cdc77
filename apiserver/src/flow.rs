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

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::Response;
use http_body::Body as _;
use http_body_util::BodyExt;
use keelson_client::Body;
use keelson_machinery::resources::find;
use keelson_machinery::status::Status;
use keelson_store::{KeyRange, View};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::access::{Attributes, UserInfo};
use crate::objects::{Objects, parse};
use crate::request::ResourceRequest;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Requests under way at once over all levels, watches and streams not counted (upstream: 400 reading and 200 writing).
const SEATS: f64 = 600.0;
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
/// Part of the old demand that is remembered when it falls: a level keeps what it needed a moment ago.
const MEMORY: f64 = 0.977;
/// Level of what no FlowSchema matches, and the limit when there are none.
const CATCH_ALL: &str = "catch-all";

/// A FlowSchema.
struct Schema {
    precedence: i64,
    name: String,
    uid: String,
    level: String,
    by: String,
    rules: Vec<Value>,
}

/// A priority level as it is configured.
#[derive(Clone, Debug, PartialEq)]
struct Shape {
    uid: String,
    exempt: bool,
    /// Seats that are its own.
    seats: usize,
    /// Seats of these that it may lend.
    lends: usize,
    /// Seats beside these that it may borrow; `None`: any number.
    borrows: Option<usize>,
    /// Number of queues, length of each, and how many a flow may choose from; `None`: nothing waits.
    queues: Option<(usize, usize, usize)>,
}

#[derive(Default)]
struct Policy {
    /// The view that it was compared with last.
    view: Option<View>,
    schemas: Arc<Vec<Schema>>,
    levels: Arc<HashMap<String, Arc<Level>>>,
}

/// A priority level.
struct Level {
    shape: Shape,
    state: Mutex<State>,
}

/// One that waits for seats.
struct Waiter {
    width: usize,
    door: oneshot::Sender<Permit>,
    what: Box<Waiting>,
}

/// What is told of a request that waits.
struct Waiting {
    schema: String,
    /// What tells its flow from others of the schema.
    flow: String,
    arrived: jiff::Timestamp,
    user: String,
    asked: Attributes,
}

/// What became of a level's requests.
#[derive(Default)]
struct Counts {
    executing: u64,
    dispatched: u64,
    rejected: u64,
    timed_out: u64,
    /// Waited and were gone when it was their turn.
    gone: u64,
}

#[derive(Default)]
struct State {
    /// Seats at the moment: its own, without those that are lent, with those that are borrowed.
    limit: usize,
    busy: usize,
    /// Most seats that were wanted at once since seats were last settled.
    peak: usize,
    /// What is expected to be wanted, from the past.
    demand: f64,
    queues: Vec<VecDeque<Waiter>>,
    next: usize,
    counts: Counts,
}

impl State {
    /// A request begins.
    fn take(&mut self, width: usize) {
        self.busy += width;
        self.counts.executing += 1;
        self.counts.dispatched += 1;
    }

    /// One ends.
    fn give(&mut self, width: usize) {
        self.busy = self.busy.saturating_sub(width);
        self.counts.executing = self.counts.executing.saturating_sub(1);
    }

    fn wanted(&self) -> usize {
        let waiting = self.queues.iter().flatten().filter(|waiter| !waiter.door.is_closed());
        self.busy + waiting.map(|waiter| waiter.width).sum::<usize>()
    }

    /// Whether a request of this width may begin: it fits, or nobody else is there.
    fn has_room(&self, width: usize) -> bool {
        self.busy + width <= self.limit || self.busy == 0
    }
}

/// Seats; given back when it is dropped.
pub struct Permit {
    level: Option<Arc<Level>>,
    width: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(level) = self.level.take() {
            level.release(self.width);
        }
    }
}

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
    response.map(|body| {
        let whole = body.map_frame(move |frame| {
            let _seated = &seats;
            frame
        });
        whole.boxed_unsync()
    })
}

/// What a request was sorted into: for the answer's headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sorted {
    /// uid of the FlowSchema.
    pub schema: String,
    /// uid of the priority level.
    pub level: String,
}

/// The controller of flows.
pub struct Flow {
    objects: Objects,
    policy: ArcSwap<Policy>,
    settled: Mutex<Option<Instant>>,
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

fn list(of: &Value) -> impl Iterator<Item = &Value> {
    of.as_array().into_iter().flatten()
}

fn names(of: &Value, wanted: &str) -> bool {
    list(of).any(|item| item == "*" || item == wanted)
}

impl Flow {
    /// Over the replica.
    pub fn new(objects: Objects) -> Self {
        Self { objects, policy: ArcSwap::default(), settled: Mutex::default() }
    }

    /// Waits for as many seats as a request is wide; a refusal if there are none to be had.
    pub async fn acquire(&self, user: &UserInfo, asked: &Attributes, width: usize) -> Result<(Permit, Sorted), Status> {
        let policy = self.policy();
        self.settle(&policy);
        let schema = policy.schemas.iter().find(|schema| schema.matches(user, asked));
        let name = schema.map_or(CATCH_ALL, |schema| schema.level.as_str());
        let level = policy.levels.get(name).or_else(|| policy.levels.get(CATCH_ALL));
        let Some(level) = level.cloned() else {
            return Ok((Permit::free(), Sorted::default()));
        };
        let sorted =
            Sorted { schema: schema.map(|s| s.uid.clone()).unwrap_or_default(), level: level.shape.uid.clone() };
        if level.shape.exempt {
            return Ok((Permit::free(), sorted));
        }
        let mut hasher = DefaultHasher::new();
        schema.map(|schema| &schema.name).hash(&mut hasher);
        let flow = match schema.map_or("", |schema| schema.by.as_str()) {
            "ByUser" => user.name.as_str(),
            "ByNamespace" => asked.namespace.as_str(),
            _ => "",
        };
        flow.hash(&mut hasher);
        let full = || Status::too_many_requests("Too many requests, please try again later.", 1);
        // Only of what waits is anything kept.
        let what = || {
            let schema = schema.map_or_else(String::new, |schema| schema.name.clone());
            let (user, asked) = (user.name.clone(), asked.clone());
            Box::new(Waiting { schema, flow: flow.to_owned(), arrived: jiff::Timestamp::now(), user, asked })
        };
        let entry = level.enter(hasher.finish(), width, what);
        drop(policy);
        let waiting = match entry {
            Entry::Seat(permit) => return Ok((permit, sorted)),
            Entry::Full => return Err(full()),
            Entry::Wait(waiting) => waiting,
        };
        match tokio::time::timeout(MAX_WAIT, waiting).await {
            Ok(Ok(permit)) => Ok((permit, sorted)),
            _ => {
                level.state.lock().counts.timed_out += 1;
                Err(full())
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

/// The seats of each level, from what each is expected to want: its own as far as it wants them; what is left of those that may
/// be lent goes to levels that want more, in proportion to their own seats.
fn shared_out(levels: &[(Shape, f64)]) -> Vec<usize> {
    let wanted = |demand: f64| demand.ceil().max(1.0) as usize;
    // What a level keeps in any case, and the most that it may come to.
    let floor = |shape: &Shape| shape.seats.saturating_sub(shape.lends).max(1);
    let roof = |shape: &Shape| shape.borrows.map_or(usize::MAX, |more| shape.seats.saturating_add(more));
    let mut limits: Vec<usize> = levels
        .iter()
        .map(|(shape, demand)| wanted(*demand).clamp(floor(shape), shape.seats.max(floor(shape))))
        .collect();
    let total: usize = levels.iter().map(|(shape, _)| shape.seats).sum();
    let mut left = total.saturating_sub(limits.iter().sum());
    while left > 0 {
        let hungry: Vec<usize> =
            (0..levels.len()).filter(|i| limits[*i] < wanted(levels[*i].1).min(roof(&levels[*i].0))).collect();
        let weight: usize = hungry.iter().map(|i| levels[*i].0.seats.max(1)).sum();
        if hungry.is_empty() {
            break;
        }
        let round = left;
        for i in hungry {
            let (shape, demand) = &levels[i];
            let part = (round * shape.seats.max(1) / weight).max(1).min(left);
            let given = part.min(wanted(*demand).min(roof(shape)) - limits[i]);
            limits[i] += given;
            left -= given;
            if left == 0 {
                break;
            }
        }
    }
    // What nobody wants goes back to where it belongs, so that a level that wakes up has its own seats at once.
    for (limit, (shape, _)) in limits.iter_mut().zip(levels) {
        let given = left.min(shape.seats.saturating_sub(*limit));
        *limit += given;
        left -= given;
    }
    limits
}

impl Policy {
    fn new(schemas: &[Value], levels: &[Value], view: View, before: &HashMap<String, Arc<Level>>) -> Self {
        let shares = |level: &Value| {
            let spec = &level["spec"];
            let part = if spec["type"] == "Exempt" { &spec["exempt"] } else { &spec["limited"] };
            part["nominalConcurrencyShares"].as_f64().unwrap_or(if spec["type"] == "Exempt" { 0.0 } else { 30.0 })
        };
        let total: f64 = levels.iter().map(shares).sum::<f64>().max(1.0);
        let levels = levels.iter().map(|level| {
            let (name, spec) = (text(&level["metadata"], "name").to_owned(), &level["spec"]);
            let response = &spec["limited"]["limitResponse"];
            let queuing = &response["queuing"];
            let number = |key: &str, default: u64| queuing[key].as_u64().unwrap_or(default).clamp(1, 10_000) as usize;
            let seats = ((SEATS * shares(level) / total).ceil() as usize).max(1);
            let part = if spec["type"] == "Exempt" { &spec["exempt"] } else { &spec["limited"] };
            let percent =
                |key: &str| part[key].as_f64().map(|percent| (seats as f64 * percent / 100.0).round() as usize);
            let shape = Shape {
                uid: text(&level["metadata"], "uid").to_owned(),
                exempt: spec["type"] == "Exempt",
                seats,
                lends: percent("lendablePercent").unwrap_or(0).min(seats),
                borrows: percent("borrowingLimitPercent"),
                queues: (response["type"] == "Queue")
                    .then(|| (number("queues", 64), number("queueLengthLimit", 50), number("handSize", 8))),
            };
            let known = before.get(&name).filter(|known| known.shape == shape).cloned();
            (name, known.unwrap_or_else(|| Arc::new(Level::new(shape))))
        });
        let levels = levels.collect();
        let mut schemas: Vec<Schema> = schemas.iter().map(Schema::new).collect();
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        Self { view: Some(view), schemas: Arc::new(schemas), levels: Arc::new(levels) }
    }
}

impl Schema {
    fn new(object: &Value) -> Self {
        let spec = &object["spec"];
        Self {
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
            name: text(&object["metadata"], "name").to_owned(),
            uid: text(&object["metadata"], "uid").to_owned(),
            level: text(&spec["priorityLevelConfiguration"], "name").to_owned(),
            by: text(&spec["distinguisherMethod"], "type").to_owned(),
            rules: list(&spec["rules"]).cloned().collect(),
        }
    }

    fn matches(&self, user: &UserInfo, asked: &Attributes) -> bool {
        self.rules.iter().any(|rule| {
            list(&rule["subjects"]).any(|subject| is_subject(subject, user))
                && match asked.resource.is_empty() {
                    true => list(&rule["nonResourceRules"]).any(|rule| path_matches(rule, asked)),
                    false => list(&rule["resourceRules"]).any(|rule| resource_matches(rule, asked)),
                }
        })
    }
}

fn is_subject(subject: &Value, user: &UserInfo) -> bool {
    match text(subject, "kind") {
        "User" => matches!(text(&subject["user"], "name"), name if name == "*" || name == user.name),
        "Group" => {
            let name = text(&subject["group"], "name");
            name == "*" || user.groups.iter().any(|group| group == name)
        }
        "ServiceAccount" => {
            let account = &subject["serviceAccount"];
            let prefix = format!("system:serviceaccount:{}:", text(account, "namespace"));
            let name = text(account, "name");
            user.name.strip_prefix(&prefix).is_some_and(|own| name == "*" || own == name)
        }
        _ => false,
    }
}

fn path_matches(rule: &Value, asked: &Attributes) -> bool {
    let url = |known: &str| {
        known == "*"
            || known == asked.path
            || known.strip_suffix('*').is_some_and(|start| asked.path.starts_with(start))
    };
    names(&rule["verbs"], &asked.verb) && list(&rule["nonResourceURLs"]).filter_map(Value::as_str).any(url)
}

fn resource_matches(rule: &Value, asked: &Attributes) -> bool {
    let full = match asked.subresource.is_empty() {
        true => asked.resource.clone(),
        false => format!("{}/{}", asked.resource, asked.subresource),
    };
    let place = match asked.namespace.is_empty() {
        true => rule["clusterScope"] == true,
        false => names(&rule["namespaces"], &asked.namespace),
    };
    place
        && names(&rule["verbs"], &asked.verb)
        && names(&rule["apiGroups"], &asked.group)
        && names(&rule["resources"], &full)
}

/// What becomes of a request at a level's door.
enum Entry {
    Seat(Permit),
    Wait(oneshot::Receiver<Permit>),
    Full,
}

impl Permit {
    /// One that takes no seat.
    fn free() -> Self {
        Self { level: None, width: 0 }
    }
}

impl Level {
    fn new(shape: Shape) -> Self {
        let count = shape.queues.map_or(0, |(count, ..)| count);
        let queues = (0..count).map(|_| VecDeque::new()).collect();
        let limit = shape.seats;
        Self { shape, state: Mutex::new(State { limit, queues, ..State::default() }) }
    }

    fn permit(self: &Arc<Self>, width: usize) -> Permit {
        Permit { level: Some(self.clone()), width }
    }

    /// What the level is expected to want, from the most that it wanted since it was last asked.
    fn observed(&self) -> f64 {
        let mut state = self.state.lock();
        let peak = state.peak.max(state.wanted()) as f64;
        state.demand = if peak >= state.demand { peak } else { MEMORY * state.demand + (1.0 - MEMORY) * peak };
        state.peak = 0;
        // What is wanted now counts at once, what was wanted fades.
        state.demand.max(peak)
    }

    /// Gives the level another number of seats. Of what is taken nothing is taken away.
    fn resize(self: &Arc<Self>, limit: usize) {
        self.state.lock().limit = limit.max(1);
        self.admit();
    }

    fn enter(self: &Arc<Self>, flow: u64, width: usize, what: impl FnOnce() -> Box<Waiting>) -> Entry {
        let mut state = self.state.lock();
        let nobody_waits = state.queues.iter().all(VecDeque::is_empty);
        if nobody_waits && state.has_room(width) {
            state.take(width);
            state.peak = state.peak.max(state.busy);
            return Entry::Seat(self.permit(width));
        }
        let Some((count, length, hand)) = self.shape.queues else {
            state.peak = state.peak.max(state.busy + width);
            state.counts.rejected += 1;
            return Entry::Full;
        };
        // A flow always has the same few queues to choose from: a greedy one fills those, and others still have theirs.
        let dealt = (0..hand.min(count) as u64).map(|i| {
            let mut hasher = DefaultHasher::new();
            (flow, i).hash(&mut hasher);
            hasher.finish() as usize % count
        });
        let Some(queue) = dealt.min_by_key(|index| state.queues[*index].len()) else { return Entry::Full };
        // Those that gave up waiting hold no place.
        let before = state.queues[queue].len();
        state.queues[queue].retain(|waiter| !waiter.door.is_closed());
        state.counts.gone += (before - state.queues[queue].len()) as u64;
        if state.queues[queue].len() >= length {
            state.counts.rejected += 1;
            return Entry::Full;
        }
        let (door, receiver) = oneshot::channel();
        state.queues[queue].push_back(Waiter { width, door, what: what() });
        state.peak = state.peak.max(state.wanted());
        Entry::Wait(receiver)
    }

    /// Gives seats back, and to the next that wait.
    fn release(self: &Arc<Self>, width: usize) {
        {
            let mut state = self.state.lock();
            state.give(width);
        }
        self.admit();
    }

    /// Lets in those that wait as long as there is room for the next: the queues take turns.
    fn admit(self: &Arc<Self>) {
        loop {
            let waiter = {
                let mut state = self.state.lock();
                let count = state.queues.len();
                let turn = (0..count).map(|i| (state.next + i) % count).find(|i| !state.queues[*i].is_empty());
                let Some(turn) = turn else { return };
                let gone = state.queues[turn].front().is_some_and(|waiter| waiter.door.is_closed());
                let room = state.queues[turn].front().is_some_and(|waiter| state.has_room(waiter.width));
                if !gone && !room {
                    return;
                }
                state.next = (turn + 1) % count;
                let waiter = state.queues[turn].pop_front();
                match &waiter {
                    Some(waiter) if !gone => state.take(waiter.width),
                    _ => state.counts.gone += 1,
                }
                waiter.filter(|_| !gone)
            };
            let Some(Waiter { width, door, .. }) = waiter else { continue };
            if let Err(mut permit) = door.send(self.permit(width)) {
                // It gave up just now: its seats are free again.
                permit.level = None;
                let mut state = self.state.lock();
                state.give(width);
                state.counts.dispatched = state.counts.dispatched.saturating_sub(1);
                state.counts.gone += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What is told of a request of the tests.
    fn what() -> Box<Waiting> {
        let (schema, flow, user) = ("s".into(), "f".into(), "u".into());
        Box::new(Waiting { schema, flow, arrived: jiff::Timestamp::UNIX_EPOCH, user, asked: Attributes::default() })
    }

    fn level(seats: usize, queues: Option<(usize, usize, usize)>) -> Arc<Level> {
        Arc::new(Level::new(shape(seats, 0, None, queues)))
    }

    fn shape(seats: usize, lends: usize, borrows: Option<usize>, queues: Option<(usize, usize, usize)>) -> Shape {
        Shape { uid: "u".into(), exempt: false, seats, lends, borrows, queues }
    }

    /// Each row: levels with their seats, what they may lend and borrow, and what they want; how many seats each gets.
    #[test]
    fn seats_are_lent_where_they_are_not_needed() {
        for (levels, expected) in [
            // Nobody wants more than is theirs: all keep their own.
            (vec![(10, 5, None, 3.0), (20, 0, None, 4.0)], vec![10, 20]),
            // One wants more: it gets what the other may lend, and no more.
            (vec![(10, 5, None, 1.0), (20, 0, None, 100.0)], vec![5, 25]),
            // What is needed at home is not lent.
            (vec![(10, 5, None, 8.0), (20, 0, None, 100.0)], vec![8, 22]),
            // A level may be kept from borrowing.
            (vec![(10, 10, None, 1.0), (20, 0, Some(3), 100.0)], vec![7, 23]),
            (vec![(10, 10, None, 1.0), (20, 0, Some(0), 100.0)], vec![10, 20]),
            // Two that borrow share in proportion to what they have.
            (vec![(30, 30, None, 0.0), (10, 0, None, 100.0), (20, 0, None, 100.0)], vec![1, 19, 40]),
        ] {
            let given: Vec<(Shape, f64)> = levels
                .iter()
                .map(|(seats, lends, borrows, demand)| (shape(*seats, *lends, *borrows, None), *demand))
                .collect();
            let got = shared_out(&given);
            let total = |list: &[usize]| list.iter().sum::<usize>();
            assert_eq!(total(&got), levels.iter().map(|level| level.0).sum::<usize>(), "no seat is lost: {got:?}");
            let close = got.iter().zip(&expected).all(|(a, b): (&usize, &usize)| a.abs_diff(*b) <= 1);
            assert!(close, "{levels:?}: {got:?}");
        }
    }

    #[tokio::test]
    async fn wide_requests_take_several_seats_and_the_widest_run_alone() {
        let level = level(4, Some((1, 10, 1)));
        let Entry::Seat(wide) = level.enter(1, 3, what) else { panic!("there is room for three") };
        let Entry::Wait(second) = level.enter(1, 2, what) else { panic!("there is no room for two more") };
        let Entry::Wait(mut third) = level.enter(1, 10, what) else { panic!("nobody overtakes") };
        drop(wide);
        let second = second.await.unwrap();
        assert_eq!(level.state.lock().busy, 2);
        assert!(third.try_recv().is_err(), "it is wider than what is left");
        drop(second);
        let third = third.await.unwrap();
        assert_eq!(level.state.lock().busy, 10, "wider than the level, but alone");
        let Entry::Wait(last) = level.enter(1, 1, what) else { panic!("nothing runs beside it") };
        drop(third);
        drop(last.await.unwrap());
        assert_eq!(level.state.lock().busy, 0);
    }

    #[tokio::test]
    async fn borrowed_seats_are_used_at_once_and_given_back_as_they_become_free() {
        let level = level(1, Some((1, 10, 1)));
        let Entry::Seat(first) = level.enter(1, 1, what) else { panic!("the first gets the seat") };
        let Entry::Wait(second) = level.enter(1, 1, what) else { panic!("the second waits") };
        assert!(level.observed() >= 2.0);
        level.resize(2);
        let second = second.await.unwrap();
        level.resize(1);
        let Entry::Wait(mut third) = level.enter(1, 1, what) else { panic!("two are busy on one seat") };
        drop(first);
        assert!(third.try_recv().is_err(), "the borrowed seat goes back first");
        drop(second);
        drop(third.await.unwrap());
    }

    #[tokio::test]
    async fn seats_are_limited_and_waiters_take_turns() {
        let level = level(1, Some((8, 2, 2)));
        let Entry::Seat(first) = level.enter(1, 1, what) else { panic!("the first gets the seat") };
        let Entry::Wait(mut second) = level.enter(1, 1, what) else { panic!("the second waits") };
        let Entry::Wait(third) = level.enter(2, 1, what) else { panic!("another flow waits too") };
        assert!(second.try_recv().is_err(), "the seat is taken");
        drop(third);
        drop(first);
        let permit = second.await.unwrap();
        assert_eq!(level.state.lock().busy, 1);
        drop(permit);
        assert_eq!(level.state.lock().busy, 0, "one that gave up does not keep a seat");
    }

    #[tokio::test]
    async fn full_queues_and_levels_without_queues_refuse() {
        let level_ = level(1, Some((1, 1, 1)));
        let _first = level_.enter(1, 1, what);
        let _second = level_.enter(1, 1, what);
        assert!(matches!(level_.enter(1, 1, what), Entry::Full));
        let rejecting = level(1, None);
        let _first = rejecting.enter(1, 1, what);
        assert!(matches!(rejecting.enter(1, 1, what), Entry::Full));
    }

    #[test]
    fn schemas_match_subjects_and_rules() {
        let schema = Schema::new(&json!({"metadata": {"name": "s"}, "spec": {"rules": [{
            "subjects": [{"kind": "Group", "group": {"name": "g"}}, {"kind": "ServiceAccount", "serviceAccount": {"namespace": "n", "name": "*"}}],
            "resourceRules": [{"verbs": ["*"], "apiGroups": [""], "resources": ["pods", "pods/status"], "namespaces": ["a"]}],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz/*"]}]}]}}));
        let user =
            |name: &str, group: &str| UserInfo { name: name.into(), groups: vec![group.into()], ..UserInfo::default() };
        let pods = |namespace: &str, subresource: &str| Attributes {
            verb: "get".into(),
            resource: "pods".into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            ..Attributes::default()
        };
        for (user, asked, expected) in [
            (user("u", "g"), pods("a", ""), true),
            (user("u", "g"), pods("a", "status"), true),
            (user("u", "g"), pods("a", "exec"), false),
            (user("u", "g"), pods("b", ""), false),
            (user("u", "g"), pods("", ""), false),
            (user("u", "h"), pods("a", ""), false),
            (user("system:serviceaccount:n:x", "h"), pods("a", ""), true),
            (
                user("u", "g"),
                Attributes { verb: "get".into(), path: "/healthz/x".into(), ..Attributes::default() },
                true,
            ),
        ] {
            assert_eq!(schema.matches(&user, &asked), expected, "{} {asked:?}", user.name);
        }
    }
}
