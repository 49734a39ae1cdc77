//! API Priority and Fairness: requests are sorted into priority levels by FlowSchemas; each level has seats of its own, and
//! flows that want more than there is take turns.
//!
//! Invariants: a level never has more requests under way than seats; what waits is bounded by its queues' lengths and by
//! [`MAX_WAIT`]; the exempt level never waits. Without FlowSchemas everything shares one limit.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use keelson_machinery::resources::find;
use keelson_machinery::status::Status;
use keelson_store::KeyRange;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::access::{Attributes, UserInfo};
use crate::objects::{Objects, parse};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
/// Requests under way at once over all levels, watches and streams not counted (upstream: 400 reading and 200 writing).
const SEATS: f64 = 600.0;
/// A request waits no longer than this for a seat.
const MAX_WAIT: Duration = Duration::from_secs(15);
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
    seats: usize,
    /// Number of queues, length of each, and how many a flow may choose from; `None`: nothing waits.
    queues: Option<(usize, usize, usize)>,
}

#[derive(Default)]
struct Policy {
    revision: i64,
    mark: (usize, i64),
    schemas: Vec<Schema>,
    levels: HashMap<String, Arc<Level>>,
}

/// A priority level.
struct Level {
    shape: Shape,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    busy: usize,
    queues: Vec<VecDeque<oneshot::Sender<Permit>>>,
    next: usize,
}

/// A seat; given back when it is dropped.
pub struct Permit {
    level: Option<Arc<Level>>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(level) = self.level.take() {
            level.release();
        }
    }
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
        Self { objects, policy: ArcSwap::default() }
    }

    /// Waits for a seat; a refusal if there is none to be had.
    pub async fn acquire(&self, user: &UserInfo, asked: &Attributes) -> Result<(Permit, Sorted), Status> {
        let policy = self.policy();
        let schema = policy.schemas.iter().find(|schema| schema.matches(user, asked));
        let name = schema.map_or(CATCH_ALL, |schema| schema.level.as_str());
        let level = policy.levels.get(name).or_else(|| policy.levels.get(CATCH_ALL));
        let Some(level) = level.cloned() else { return Ok((Permit { level: None }, Sorted::default())) };
        let sorted =
            Sorted { schema: schema.map(|s| s.uid.clone()).unwrap_or_default(), level: level.shape.uid.clone() };
        if level.shape.exempt {
            return Ok((Permit { level: None }, sorted));
        }
        let mut hasher = DefaultHasher::new();
        schema.map(|schema| &schema.name).hash(&mut hasher);
        match schema.map_or("", |schema| schema.by.as_str()) {
            "ByUser" => user.name.hash(&mut hasher),
            "ByNamespace" => asked.namespace.hash(&mut hasher),
            _ => {}
        }
        drop(policy);
        let full = || Status::too_many_requests("Too many requests, please try again later.", 1);
        let waiting = match level.enter(hasher.finish()) {
            Entry::Seat(permit) => return Ok((permit, sorted)),
            Entry::Full => return Err(full()),
            Entry::Wait(waiting) => waiting,
        };
        match tokio::time::timeout(MAX_WAIT, waiting).await {
            Ok(Ok(permit)) => Ok((permit, sorted)),
            _ => Err(full()),
        }
    }

    fn policy(&self) -> Arc<Policy> {
        let view = self.objects.kv.view();
        let current = self.policy.load_full();
        if current.revision == view.revision() && current.revision > 0 {
            return current;
        }
        let ranges = ["flowschemas", "prioritylevelconfigurations"]
            .map(|plural| KeyRange::prefix(find(GROUP, "v1", plural).map(|def| def.prefix()).unwrap_or_default()));
        let stored = || ranges.iter().flat_map(|range| view.range(range));
        let mark = stored().fold((0, 0), |(n, max), kv| (n + 1, max.max(kv.mod_revision)));
        let fresh = if mark == current.mark {
            // The levels are shared: who is under way in them stays counted.
            let schemas = current.schemas.iter().map(Schema::copy).collect();
            Policy { revision: view.revision(), mark, schemas, levels: current.levels.clone() }
        } else {
            let read = |range| view.range(range).filter_map(|kv| parse(kv).ok()).collect::<Vec<_>>();
            Policy::new(&read(&ranges[0]), &read(&ranges[1]), view.revision(), mark, &current.levels)
        };
        let fresh = Arc::new(fresh);
        self.policy.store(fresh.clone());
        fresh
    }
}

impl Policy {
    fn new(
        schemas: &[Value],
        levels: &[Value],
        revision: i64,
        mark: (usize, i64),
        before: &HashMap<String, Arc<Level>>,
    ) -> Self {
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
            let shape = Shape {
                uid: text(&level["metadata"], "uid").to_owned(),
                exempt: spec["type"] == "Exempt",
                seats: ((SEATS * shares(level) / total).ceil() as usize).max(1),
                queues: (response["type"] == "Queue")
                    .then(|| (number("queues", 64), number("queueLengthLimit", 50), number("handSize", 8))),
            };
            let known = before.get(&name).filter(|known| known.shape == shape).cloned();
            (name, known.unwrap_or_else(|| Arc::new(Level::new(shape))))
        });
        let levels = levels.collect();
        let mut schemas: Vec<Schema> = schemas.iter().map(Schema::new).collect();
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        Self { revision, mark, schemas, levels }
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

    fn copy(&self) -> Self {
        Self {
            precedence: self.precedence,
            name: self.name.clone(),
            uid: self.uid.clone(),
            level: self.level.clone(),
            by: self.by.clone(),
            rules: self.rules.clone(),
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

impl Level {
    fn new(shape: Shape) -> Self {
        let count = shape.queues.map_or(0, |(count, ..)| count);
        let queues = (0..count).map(|_| VecDeque::new()).collect();
        Self { shape, state: Mutex::new(State { queues, ..State::default() }) }
    }

    fn enter(self: &Arc<Self>, flow: u64) -> Entry {
        let mut state = self.state.lock();
        let nobody_waits = state.queues.iter().all(VecDeque::is_empty);
        if state.busy < self.shape.seats && nobody_waits {
            state.busy += 1;
            return Entry::Seat(Permit { level: Some(self.clone()) });
        }
        let Some((count, length, hand)) = self.shape.queues else { return Entry::Full };
        // A flow always has the same few queues to choose from: a greedy one fills those, and others still have theirs.
        let dealt = (0..hand.min(count) as u64).map(|i| {
            let mut hasher = DefaultHasher::new();
            (flow, i).hash(&mut hasher);
            hasher.finish() as usize % count
        });
        let Some(queue) = dealt.min_by_key(|index| state.queues[*index].len()) else { return Entry::Full };
        // Those that gave up waiting hold no place.
        state.queues[queue].retain(|waiter| !waiter.is_closed());
        if state.queues[queue].len() >= length {
            return Entry::Full;
        }
        let (sender, receiver) = oneshot::channel();
        state.queues[queue].push_back(sender);
        Entry::Wait(receiver)
    }

    /// Gives a seat to the next that waits: the queues take turns.
    fn release(self: &Arc<Self>) {
        loop {
            let waiter = {
                let mut state = self.state.lock();
                let count = state.queues.len();
                let turn = (0..count).map(|i| (state.next + i) % count).find(|i| !state.queues[*i].is_empty());
                let Some(turn) = turn else {
                    state.busy = state.busy.saturating_sub(1);
                    return;
                };
                state.next = (turn + 1) % count;
                state.queues[turn].pop_front()
            };
            let Some(waiter) = waiter else { continue };
            match waiter.send(Permit { level: Some(self.clone()) }) {
                Ok(()) => return,
                // It gave up; its permit comes back without a seat changing hands.
                Err(mut permit) => permit.level = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn level(seats: usize, queues: Option<(usize, usize, usize)>) -> Arc<Level> {
        Arc::new(Level::new(Shape { uid: "u".into(), exempt: false, seats, queues }))
    }

    #[tokio::test]
    async fn seats_are_limited_and_waiters_take_turns() {
        let level = level(1, Some((8, 2, 2)));
        let Entry::Seat(first) = level.enter(1) else { panic!("the first gets the seat") };
        let Entry::Wait(mut second) = level.enter(1) else { panic!("the second waits") };
        let Entry::Wait(third) = level.enter(2) else { panic!("another flow waits too") };
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
        let _first = level_.enter(1);
        let _second = level_.enter(1);
        assert!(matches!(level_.enter(1), Entry::Full));
        let rejecting = level(1, None);
        let _first = rejecting.enter(1);
        assert!(matches!(rejecting.enter(1), Entry::Full));
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
