//! Schedulers that take over from each other, on a pretended API: whatever is late, lost or refused, no node gets more than it
//! has, no two pods share a port of a node, no pod is bound twice, and in the end no pod waits that a node could take.

use std::collections::{BTreeMap, VecDeque};

use keelson_scheduler::config::{Config, ConfigError};
use keelson_scheduler::core::{Act, Change, Core};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// What happens in one run.
const STEPS: usize = 400;
const NODES: usize = 4;
/// Of each node.
const MILLICPU: u64 = 2000;
const MAX_PODS: usize = 6;
/// Longer than any pause of a pod, milliseconds.
const LONG: u64 = 400_000;

#[derive(Clone, Debug)]
struct Pod {
    cpu: u64,
    port: Option<u16>,
    priority: i64,
    node: Option<String>,
    going: bool,
    bindings: usize,
}

impl Pod {
    fn object(&self, uid: &str) -> Value {
        let mut container =
            json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": format!("{}m", self.cpu)}}});
        if let Some(port) = self.port {
            container["ports"] = json!([{"containerPort": port, "hostPort": port, "protocol": "TCP"}]);
        }
        let mut pod = json!({
            "metadata": {"name": uid, "uid": uid, "namespace": "d"},
            "spec": {"schedulerName": "default-scheduler", "priority": self.priority, "containers": [container]},
        });
        if let Some(node) = &self.node {
            pod["spec"]["nodeName"] = node.as_str().into();
        }
        if self.going {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        pod
    }
}

/// The API: what is, and what happened in which order.
#[derive(Default)]
struct Api {
    pods: BTreeMap<String, Pod>,
    nodes: BTreeMap<String, Value>,
    pod_log: Vec<(String, Option<Value>)>,
    node_log: Vec<Value>,
    /// Whose writes are taken.
    leader: usize,
    made: usize,
}

impl Api {
    fn changed(&mut self, uid: &str) {
        let object = self.pods.get(uid).map(|p| p.object(uid));
        self.pod_log.push((uid.to_owned(), object));
    }

    fn add_node(&mut self) {
        let name = format!("node-{}", self.nodes.len());
        let node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": {"cpu": format!("{MILLICPU}m"), "memory": "8Gi", "pods": MAX_PODS.to_string()}},
        });
        self.nodes.insert(name, node.clone());
        self.node_log.push(node);
    }

    fn create(&mut self, random: &mut StdRng) {
        self.made += 1;
        let uid = format!("pod-{}", self.made);
        let port = random.random_bool(0.3).then(|| 8000 + random.random_range(0..2));
        let pod = Pod {
            cpu: 100 * random.random_range(1..9),
            port,
            priority: if random.random_bool(0.15) { 100 } else { 0 },
            node: None,
            going: false,
            bindings: 0,
        };
        self.pods.insert(uid.clone(), pod);
        self.changed(&uid);
    }

    fn delete(&mut self, uid: &str) {
        match self.pods.get_mut(uid) {
            Some(pod) if pod.node.is_some() => pod.going = true,
            Some(_) => drop(self.pods.remove(uid)),
            None => return,
        }
        self.changed(uid);
    }

    /// A node ended a pod that was deleted.
    fn ended(&mut self, uid: &str) {
        if self.pods.get(uid).is_some_and(|p| p.going) {
            self.pods.remove(uid);
            self.changed(uid);
        }
    }

    /// As the binding subresource: the pod must be there and without a node, the writer must lead.
    fn bind(&mut self, leader: usize, uid: &str, node: &str) -> bool {
        let Some(pod) = self.pods.get_mut(uid).filter(|p| p.node.is_none() && leader == self.leader) else {
            return false;
        };
        pod.node = Some(node.to_owned());
        pod.bindings += 1;
        self.changed(uid);
        self.check(node);
        true
    }

    /// What must hold on a node.
    fn check(&self, node: &str) {
        let there: Vec<&Pod> = self.pods.values().filter(|p| p.node.as_deref() == Some(node)).collect();
        let cpu: u64 = there.iter().map(|p| p.cpu).sum();
        assert!(cpu <= MILLICPU && there.len() <= MAX_PODS, "{node} is over-committed: {there:?}");
        let mut ports: Vec<u16> = there.iter().filter_map(|p| p.port).collect();
        ports.sort_unstable();
        assert!(ports.windows(2).all(|two| two[0] != two[1]), "a port of {node} twice: {there:?}");
        assert!(there.iter().all(|p| p.bindings == 1), "bound twice: {there:?}");
    }

    /// Whether a node could take a pod now.
    fn fits(&self, pod: &Pod) -> bool {
        self.nodes.keys().any(|node| {
            let there: Vec<&Pod> = self.pods.values().filter(|p| p.node.as_ref() == Some(node)).collect();
            let cpu: u64 = there.iter().map(|p| p.cpu).sum();
            let free = pod.port.is_none_or(|port| there.iter().all(|p| p.port != Some(port)));
            cpu + pod.cpu <= MILLICPU && there.len() < MAX_PODS && free
        })
    }
}

/// A scheduler, what it has not heard yet and what it wrote that has not arrived.
struct Scheduler {
    core: Core,
    leader: usize,
    pods_heard: usize,
    nodes_heard: usize,
    under_way: VecDeque<Act>,
}

fn decode<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{e}: {value}"))
}

impl Scheduler {
    /// Takes over: from now on only its writes are taken. It lists first.
    fn take_over(api: &mut Api, seed: u64, now: u64) -> Self {
        api.leader += 1;
        let core =
            Core::new(|syms| Ok::<_, ConfigError>(Config::standard(syms)), seed).unwrap_or_else(|e| panic!("{e}"));
        let (pods_heard, nodes_heard) = (api.pod_log.len(), api.node_log.len());
        let mut this = Self { core, leader: api.leader, pods_heard, nodes_heard, under_way: VecDeque::new() };
        for node in api.nodes.values() {
            this.core.apply(Change::Node(Box::new(decode(node))), now);
        }
        for (uid, pod) in &api.pods {
            this.core.apply(Change::Pod(Box::new(decode(&pod.object(uid)))), now);
        }
        this
    }

    fn hear_pod(&mut self, api: &Api, now: u64) -> bool {
        let Some((uid, object)) = api.pod_log.get(self.pods_heard) else { return false };
        self.pods_heard += 1;
        let change = match object {
            Some(object) => Change::Pod(Box::new(decode(object))),
            None => Change::PodGone(uid.clone()),
        };
        self.core.apply(change, now);
        true
    }

    fn hear_node(&mut self, api: &Api, now: u64) -> bool {
        let Some(node) = api.node_log.get(self.nodes_heard) else { return false };
        self.nodes_heard += 1;
        self.core.apply(Change::Node(Box::new(decode(node))), now);
        true
    }

    fn decide(&mut self, now: u64) -> bool {
        let act = self.core.next(now);
        let decided = act.is_some();
        self.under_way.extend(act);
        decided
    }

    /// One of its writes arrives.
    fn arrive(&mut self, api: &mut Api, which: usize, now: u64) -> bool {
        let Some(act) = self.under_way.remove(which) else { return false };
        match act {
            Act::Bind { pod, node, .. } => {
                let taken = api.bind(self.leader, &pod.uid, &node);
                self.core.finished(&pod.uid, taken, now);
            }
            Act::Fail { pod, victims, .. } => {
                // A deposed leader deletes nobody.
                if self.leader == api.leader {
                    victims.iter().for_each(|victim| api.delete(&victim.uid));
                }
                self.core.told(&pod.uid, now);
            }
            Act::Ask { .. } | Act::Consult { .. } | Act::Group { .. } => panic!("there are no extenders and no groups"),
        }
        true
    }
}

/// Something at random happens.
fn step(api: &mut Api, schedulers: &mut Vec<Scheduler>, random: &mut StdRng, now: u64) {
    let any = |random: &mut StdRng, api: &Api| {
        let at = random.random_range(0..api.pods.len().max(1));
        api.pods.keys().nth(at).cloned().unwrap_or_default()
    };
    let of = random.random_range(0..schedulers.len());
    match random.random_range(0..100) {
        0..15 => api.create(random),
        15..20 => {
            let uid = any(random, api);
            api.delete(&uid);
        }
        20..28 => {
            let uid = any(random, api);
            api.ended(&uid);
        }
        28..30 if api.nodes.len() < NODES => api.add_node(),
        30..33 => {
            // The old one does not know yet that it is over; it goes on for a while.
            let seed = random.random();
            let next = Scheduler::take_over(api, seed, now);
            schedulers.push(next);
            if schedulers.len() > 3 {
                schedulers.remove(0);
            }
        }
        33..55 => drop(schedulers[of].hear_pod(api, now)),
        55..58 => drop(schedulers[of].hear_node(api, now)),
        58..80 => drop(schedulers[of].decide(now)),
        _ => {
            let which = random.random_range(0..schedulers[of].under_way.len().max(1));
            schedulers[of].arrive(api, which, now);
        }
    }
}

/// Lets the last leader hear and do everything.
fn settle(api: &mut Api, leader: &mut Scheduler, mut now: u64) {
    for _ in 0..50 {
        loop {
            let mut busy = leader.hear_pod(api, now) | leader.hear_node(api, now);
            busy |= leader.decide(now) | leader.arrive(api, 0, now);
            if !busy {
                break;
            }
        }
        let going: Vec<String> = api.pods.iter().filter(|(_, p)| p.going).map(|(uid, _)| uid.clone()).collect();
        going.iter().for_each(|uid| api.ended(uid));
        // Whatever pauses is due.
        now += LONG;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn leaders_change_and_nothing_is_placed_twice(seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut api = Api::default();
        api.add_node();
        let mut schedulers = vec![Scheduler::take_over(&mut api, seed, 0)];
        for now in 0..STEPS as u64 {
            step(&mut api, &mut schedulers, &mut random, now * 50);
        }
        let mut leader = schedulers.pop().unwrap_or_else(|| panic!("there is always one"));
        settle(&mut api, &mut leader, STEPS as u64 * 50);
        for (uid, pod) in api.pods.iter().filter(|(_, p)| p.node.is_none()) {
            prop_assert!(!api.fits(pod), "{} waits though a node could take it: {:?}", uid, pod);
        }
    }
}
