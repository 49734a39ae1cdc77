//! Groups of pods: tried together, bound together or not at all, and told so in upstream's words.

use std::collections::{BTreeMap, BTreeSet};

use keelson_machinery::features::{self, Feature, Gates};
use keelson_scheduler::config::{Config, ConfigError};
use keelson_scheduler::core::{Act, Change, Core, Standing};
use keelson_scheduler::pod_groups::Policy;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

const NO_CPU: &str = "0/3 nodes are available: 3 Insufficient cpu.";
const OTHERS: &str = "pod group is unschedulable, waiting for minCount pods from a gang to be scheduled";
const ROOM: &str = "pod group is unschedulable, pod group is waiting for preemption to complete";
/// Longer than any pause of a pod, milliseconds.
const LONG: u64 = 20_000;

/// A scheduler that looks at gangs.
fn scheduler(config: Option<Value>) -> Core {
    features::install(Gates::default().with(Feature::GenericWorkload, true).with(Feature::GangScheduling, true));
    let config = |syms: &mut _| match config {
        Some(value) => Config::parse(value, syms),
        None => Ok::<_, ConfigError>(Config::standard(syms)),
    };
    Core::new(config, 1).unwrap()
}

fn node(name: &str, cpu: u64) -> Change {
    let value = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": format!("{cpu}m"), "memory": "8Gi", "pods": "20"}}});
    Change::Node(Box::new(serde_json::from_value(value).unwrap()))
}

fn group(name: &str, policy: Value) -> Change {
    let value = json!({"metadata": {"name": name, "namespace": "d", "uid": format!("uid-{name}")},
        "spec": {"schedulingPolicy": policy}});
    Change::PodGroup(Box::new(serde_json::from_value(value).unwrap()))
}

fn gang(name: &str, least: u64) -> Change {
    group(name, json!({"gang": {"minCount": least}}))
}

/// A pod; its uid is its name.
fn pod(name: &str, group: &str, cpu: u64, more: &Value) -> Change {
    let mut value = json!({
        "metadata": {"name": name, "uid": name, "namespace": "d"},
        "spec": {"schedulerName": "default-scheduler",
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": format!("{cpu}m")}}}]},
    });
    if !group.is_empty() {
        value["spec"]["schedulingGroup"] = json!({"podGroupName": group});
    }
    for (key, field) in more.as_object().into_iter().flatten() {
        value["spec"][key] = field.clone();
    }
    Change::Pod(Box::new(serde_json::from_value(value).unwrap()))
}

/// All that is decided: nodes or messages by pod, what groups are told, who is pushed out.
#[derive(Debug, Default, PartialEq)]
struct Decided {
    bound: BTreeMap<String, String>,
    failed: BTreeMap<String, String>,
    nominated: BTreeMap<String, String>,
    groups: Vec<(String, bool, String, String)>,
    victims: Vec<String>,
}

/// Decides until nothing is left; every write succeeds.
fn decide(core: &mut Core, now: u64) -> Decided {
    let mut out = Decided::default();
    let mut told = Vec::new();
    while let Some(act) = core.next(now) {
        match act {
            Act::Bind { pod, node, .. } => {
                assert!(out.bound.insert(pod.name.to_string(), node.to_string()).is_none(), "bound twice");
                core.finished(&pod.uid, true, now);
            }
            Act::Fail { pod, message, victims, nominate, .. } => {
                let more = message.find(" preemption:").unwrap_or(message.len());
                let message = message[..more].trim_end_matches(" no new claims to deallocate,");
                out.failed.insert(pod.name.to_string(), message.to_owned());
                if let Some(node) = nominate {
                    out.nominated.insert(pod.name.to_string(), node.to_string());
                }
                out.victims.extend(victims.iter().map(|victim| victim.name.to_string()));
                told.push(pod.uid.clone());
            }
            Act::Group { key, told, .. } => {
                out.groups.push((key.1.to_string(), told.scheduled, told.reason.to_string(), told.message.to_string()));
            }
            Act::Ask { .. } | Act::Consult { .. } => panic!("there are no extenders"),
        }
        // Whatever was decided on a group is told before a part of it is tried again.
        if !core.has_pending() {
            told.drain(..).for_each(|uid| core.told(&uid, now));
        }
    }
    out.victims.sort();
    out
}

fn texts<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn told(name: &str, scheduled: bool, message: &str) -> Vec<(String, bool, String, String)> {
    let reason = if scheduled { "Scheduled" } else { "Unschedulable" };
    vec![(name.into(), scheduled, reason.into(), message.into())]
}

/// Three nodes for one pod each, with these pods of `g`.
fn crowded(policy: Option<Change>, pods: usize) -> Core {
    let mut core = scheduler(None);
    for name in ["n1", "n2", "n3"] {
        core.apply(node(name, 1000), 0);
    }
    policy.into_iter().for_each(|policy| core.apply(policy, 0));
    for i in 0..pods {
        core.apply(pod(&format!("p{i}"), "g", 800, &Value::Null), i as u64);
    }
    core
}

#[test]
fn pods_of_a_group_are_bound_together_or_not_at_all() {
    for (what, policy, pods, bound, failed, groups) in [
        ("no group", None, 4, 0, texts([]), vec![]),
        ("too few pods", Some(gang("g", 4)), 3, 0, texts([]), vec![]),
        ("room for all", Some(gang("g", 3)), 3, 3, texts([]), told("g", true, "")),
        (
            "room for three of four",
            Some(gang("g", 4)),
            4,
            0,
            texts([("p0", OTHERS), ("p1", OTHERS), ("p2", OTHERS), ("p3", NO_CPU)]),
            told("g", false, "pod group is unschedulable"),
        ),
        ("more than it needs", Some(gang("g", 2)), 4, 3, texts([("p3", NO_CPU)]), told("g", true, "")),
        ("each for itself", Some(group("g", json!({"basic": {}}))), 4, 3, texts([("p3", NO_CPU)]), told("g", true, "")),
    ] {
        let mut core = crowded(policy, pods);
        let decided = decide(&mut core, LONG);
        assert_eq!((decided.bound.len(), decided.failed, decided.groups), (bound, failed, groups), "{what}");
        assert_eq!(core.view.placed_count(), bound, "{what}: the view is as before");
    }
}

#[test]
fn a_gang_waits_for_what_it_lacks() {
    let mut core = crowded(None, 2);
    assert_eq!(decide(&mut core, 10), Decided::default(), "there is no group");
    core.apply(gang("g", 4), 20);
    core.apply(pod("p2", "g", 800, &Value::Null), 20);
    assert_eq!(decide(&mut core, 20), Decided::default(), "a pod is missing");
    core.apply(pod("gated", "g", 800, &json!({"schedulingGates": [{"name": "x"}]})), 30);
    let decided = decide(&mut core, 30);
    assert_eq!(decided.failed, texts([("p0", OTHERS), ("p1", OTHERS), ("p2", OTHERS)]), "one is gated, and counts");
    assert!(decided.bound.is_empty());
    core.apply(node("n4", 1000), 40);
    core.apply(pod("gated", "g", 800, &Value::Null), 40);
    let decided = decide(&mut core, 40);
    assert_eq!((decided.bound.len(), decided.groups), (4, told("g", true, "")));
    // Others that come later are no longer held up, and the group stays scheduled.
    core.apply(pod("late", "g", 800, &Value::Null), 50);
    let decided = decide(&mut core, 50);
    assert!(decided.failed.contains_key("late") && decided.groups.is_empty(), "{decided:?}");
}

#[test]
fn a_new_node_brings_the_whole_gang() {
    let mut core = crowded(Some(gang("g", 4)), 4);
    assert_eq!(decide(&mut core, 10).bound.len(), 0);
    core.apply(node("n4", 1000), 20_000);
    let decided = decide(&mut core, 20_000);
    assert_eq!((decided.bound.len(), decided.failed.len(), decided.groups), (4, 0, told("g", true, "")));
    assert_eq!(decided.bound.values().collect::<BTreeSet<_>>().len(), 4, "one on each node");
}

#[test]
fn a_pod_that_is_being_told_holds_its_gang() {
    let mut core = crowded(Some(gang("g", 4)), 4);
    let mut untold = Vec::new();
    while let Some(act) = core.next(10) {
        if let Act::Fail { pod, .. } = act {
            untold.push(pod.uid.clone());
        }
    }
    assert_eq!(untold.len(), 4);
    core.apply(node("n4", 1000), LONG);
    for uid in &untold[..3] {
        core.told(uid, LONG);
        assert!(core.next(LONG).is_none(), "one is still being told");
    }
    core.told(&untold[3], LONG);
    assert_eq!(decide(&mut core, LONG).bound.len(), 4);
}

/// The three nodes are full of unimportant pods.
fn with_unimportant(least: u64, pods: usize) -> Core {
    let mut core = crowded(Some(gang("g", least)), 0);
    for i in 1..=3 {
        let more = json!({"nodeName": format!("n{i}"), "priority": 1});
        core.apply(pod(&format!("low{i}"), "", 800, &more), 0);
    }
    for i in 0..pods {
        core.apply(pod(&format!("p{i}"), "g", 800, &json!({"priority": 10})), 0);
    }
    core
}

#[test]
fn room_is_made_for_all_or_for_none() {
    let mut core = with_unimportant(4, 4);
    let decided = decide(&mut core, 10);
    assert_eq!((decided.bound.len(), decided.failed.len(), decided.victims.len()), (0, 4, 0), "{decided:?}");
    assert_eq!((core.view.placed_count(), decided.nominated.len()), (3, 0), "{decided:?}");
    assert_eq!(decided.groups, told("g", false, "pod group is unschedulable"));

    let mut core = with_unimportant(3, 3);
    core.apply(node("n4", 1000), 0);
    let decided = decide(&mut core, 10);
    assert_eq!(decided.victims.len(), 2, "one has room already: {decided:?}");
    assert_eq!(decided.nominated.values().collect::<BTreeSet<_>>().len(), 3, "a node is kept for each: {decided:?}");
    assert_eq!(decided.failed.values().filter(|message| *message == ROOM).count(), 1, "{decided:?}");
    assert_eq!(decided.groups, told("g", false, ROOM));
    assert_eq!(core.view.placed_count(), 3, "they are there until they go");
    for (i, victim) in decided.victims.iter().enumerate() {
        core.apply(Change::PodGone(victim.clone()), LONG * (1 + i as u64));
        let bound = decide(&mut core, LONG * (1 + i as u64)).bound.len();
        assert_eq!(bound, [0, 3][i], "after {} went", i + 1);
    }
}

#[test]
fn pods_with_different_schedulers_are_told_so() {
    let config = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "profiles": [{"schedulerName": "default-scheduler"}, {"schedulerName": "other"}]});
    let mut core = scheduler(Some(config));
    core.apply(node("n1", 8000), 0);
    core.apply(gang("g", 2), 0);
    core.apply(pod("a", "g", 100, &Value::Null), 0);
    core.apply(pod("b", "g", 100, &json!({"schedulerName": "other"})), 1);
    let decided = decide(&mut core, 10);
    let why = "all pods in a single pod group should have the same .spec.schedulerName set, got: \"other\" and \
               \"default-scheduler\"";
    assert_eq!(decided.failed, texts([("a", why), ("b", why)]));
    assert!(decided.bound.is_empty() && decided.groups.is_empty());
}

#[test]
fn without_the_plugin_pods_of_a_gang_go_alone() {
    let config = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "profiles": [{"plugins": {"multiPoint": {"disabled": [{"name": "GangScheduling"}]}}}]});
    let mut core = scheduler(Some(config));
    core.apply(node("n1", 1000), 0);
    core.apply(gang("g", 4), 0);
    core.apply(pod("a", "g", 800, &Value::Null), 0);
    assert_eq!(decide(&mut core, 10).bound.len(), 1);
}

#[test]
fn who_takes_over_goes_on_with_the_rest() {
    let mut core = crowded(Some(gang("g", 3)), 0);
    for i in 0..3 {
        let more = if i < 2 { json!({"nodeName": format!("n{}", i + 1)}) } else { Value::Null };
        core.apply(pod(&format!("p{i}"), "g", 800, &more), 0);
    }
    let decided = decide(&mut core, 10);
    assert_eq!((decided.bound, decided.groups), (texts([("p2", "n3")]), told("g", true, "")));
    // A binding that is refused is tried again, with those that have nodes.
    let mut core = crowded(Some(gang("g", 3)), 3);
    for i in 0..3 {
        let Some(Act::Bind { pod, .. }) = core.next(10) else { panic!("all are bound") };
        core.finished(&pod.uid, i > 0, 10);
    }
    assert!(matches!(core.next(10), Some(Act::Group { .. })));
    assert!(core.next(10).is_none(), "it pauses");
    assert_eq!(decide(&mut core, LONG).bound.len(), 1);
}

#[test]
fn how_a_gang_stands_is_told_without_a_change() {
    for (policy, pods, placed, expected) in [
        (None, 2, 0, (None, 2, 0, 2, true)),
        (Some(gang("g", 4)), 3, 0, (Some(Policy::Gang(4)), 3, 0, 3, true)),
        (Some(gang("g", 4)), 4, 0, (Some(Policy::Gang(4)), 4, 0, 3, false)),
        (Some(gang("g", 4)), 4, 2, (Some(Policy::Gang(4)), 4, 2, 1, false)),
        (Some(group("g", json!({"basic": {}}))), 1, 0, (Some(Policy::Basic), 1, 0, 1, false)),
    ] {
        let mut core = crowded(policy, pods);
        for i in 0..placed {
            core.apply(pod(&format!("p{i}"), "g", 800, &json!({"nodeName": format!("n{}", i + 1)})), 5);
        }
        let Change::Pod(asked) = pod("p0", "g", 800, &Value::Null) else { panic!("a pod") };
        let asked = core.view.compile(&asked);
        let Standing { policy, pods, placed, would_fit, blocked } = core.standing(&asked).unwrap();
        assert_eq!((policy, pods, placed, would_fit, blocked.is_some()), expected);
        assert_eq!(core.view.placed_count(), placed, "the view is as before");
        let Change::Pod(single) = pod("single", "", 800, &Value::Null) else { panic!("a pod") };
        let single = core.view.compile(&single);
        assert!(core.standing(&single).is_none());
    }
}

#[derive(Clone, Debug)]
struct Known {
    gang: Option<usize>,
    cpu: u64,
    node: Option<String>,
}

/// What must hold of a scheduler's numbers: those of a node are the sum of its pods, and no node has more than it can.
fn check_rows(core: &Core, pods: &BTreeMap<String, Known>) {
    let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
    for (node, info) in core.view.all_placed() {
        *sums.entry(node).or_default() += pods[&*info.name].cpu as i64;
    }
    for (row, entry) in core.view.rows.iter().zip(&core.view.nodes).filter(|(_, entry)| entry.present) {
        assert_eq!(row.cpu, sums.get(&*entry.name).copied().unwrap_or(0), "{}", entry.name);
        assert!(row.cpu <= row.allocatable_cpu, "{} has too much", entry.name);
    }
}

/// A cluster of random gangs, single pods and nodes that come and go.
struct World {
    random: StdRng,
    core: Core,
    /// How many pods each gang needs.
    least: Vec<usize>,
    /// Gangs whose object is not there.
    missing: Vec<usize>,
    pods: BTreeMap<String, Known>,
    nodes: usize,
    made: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let least: Vec<usize> = (0..random.random_range(1..6)).map(|_| random.random_range(1..6)).collect();
        let missing = (0..least.len()).collect();
        Self { random, core: scheduler(None), least, missing, pods: BTreeMap::new(), nodes: 0, made: 0 }
    }

    fn add_node(&mut self, cpu: u64, now: u64) {
        self.nodes += 1;
        self.core.apply(node(&format!("n{}", self.nodes), cpu), now);
    }

    fn add_gang(&mut self, number: usize, now: u64) {
        self.core.apply(gang(&format!("g{number}"), self.least[number] as u64), now);
    }

    fn add_pod(&mut self, now: u64) {
        self.made += 1;
        let random = &mut self.random;
        let gang = random.random_bool(0.8).then(|| random.random_range(0..self.least.len()));
        let (name, cpu) = (format!("p{}", self.made), 100 * random.random_range(1..9));
        let group = gang.map_or(String::new(), |gang| format!("g{gang}"));
        let more = json!({"priority": if gang.is_none() { 0 } else { random.random_range(0..2) * 10 }});
        self.core.apply(pod(&name, &group, cpu, &more), now);
        self.pods.insert(name, Known { gang, cpu, node: None });
    }

    fn step(&mut self, now: u64) {
        match self.random.random_range(0..10) {
            0..=1 => {
                let cpu = self.random.random_range(2..20) * 100;
                self.add_node(cpu, now);
            }
            2 if !self.missing.is_empty() => {
                let at = self.random.random_range(0..self.missing.len());
                let gang = self.missing.swap_remove(at);
                self.add_gang(gang, now);
            }
            2..=7 => self.add_pod(now),
            _ => {
                let at = self.random.random_range(0..self.pods.len().max(1));
                if let Some(name) = self.pods.keys().nth(at).cloned() {
                    self.pods.remove(&name);
                    self.core.apply(Change::PodGone(name), now);
                }
            }
        }
    }

    /// Room for all, and all groups are there.
    fn complete(&mut self, now: u64) {
        for gang in std::mem::take(&mut self.missing) {
            self.add_gang(gang, now);
        }
        (0..10).for_each(|_| self.add_node(20_000, now));
    }

    /// Lets the scheduler decide; of a gang of which a pod is bound, enough must have nodes then.
    fn decide(&mut self, seed: u64, now: u64) {
        let decided = decide(&mut self.core, now);
        for (name, node) in &decided.bound {
            self.pods.get_mut(name).unwrap().node = Some(node.clone());
        }
        for (gang, least) in self.least.iter().enumerate() {
            let of_gang = |known: &&Known| known.gang == Some(gang);
            let placed = self.pods.values().filter(of_gang).filter(|known| known.node.is_some()).count();
            let new = decided.bound.keys().any(|name| self.pods[name].gang == Some(gang));
            assert!(!new || placed >= *least, "seed {seed}: {placed} of gang {gang} are bound, {least} are needed");
        }
        for victim in decided.victims {
            // Two pods may want the same one to go.
            if self.pods.remove(&victim).is_some() {
                self.core.apply(Change::PodGone(victim), now);
            }
        }
        check_rows(&self.core, &self.pods);
    }
}

/// Whenever a pod of a gang is bound, enough of the gang have nodes when the scheduler is done; and in the end, with room for
/// all, every complete gang is bound.
fn random_gangs(seed: u64) {
    let (mut world, mut now) = (World::new(seed), 0);
    for _ in 0..80 {
        now += world.random.random_range(0..3000);
        world.step(now);
        world.decide(seed, now);
    }
    world.complete(now);
    for _ in 0..4 {
        now += 10 * LONG;
        world.decide(seed, now);
    }
    for (gang, least) in world.least.iter().enumerate() {
        let all: Vec<&Known> = world.pods.values().filter(|known| known.gang == Some(gang)).collect();
        let waiting = all.iter().filter(|known| known.node.is_none()).count();
        assert!(
            waiting == 0 || all.len() < *least,
            "seed {seed}: {waiting} of gang {gang} wait although there is room"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 150 } else { 2000 }))]

    #[test]
    fn random_gangs_are_never_partially_bound(seed in any::<u64>()) {
        random_gangs(seed);
    }
}
