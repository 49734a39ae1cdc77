//! What holds of Kubernetes' objects at every revision, whoever leads: judged on all changes in their order.

use std::collections::{BTreeMap, BTreeSet};

use super::{Fault, MAX_FAULTS, Verdict};
use crate::kube::observe::Change;
use crate::kube::reduce::{Fact, Of};

/// Objects of a kind as they are at a revision, by namespace and name.
type Objects = BTreeMap<(String, String), Fact>;

/// The state at a revision, by replaying changes.
#[derive(Default)]
struct State(BTreeMap<&'static str, Objects>);

impl State {
    fn of(&self, kind: &str) -> impl Iterator<Item = &Fact> {
        self.0.get(kind).into_iter().flat_map(BTreeMap::values)
    }

    /// Applies a change; returns the version before.
    fn apply(&mut self, change: &Change) -> Option<Fact> {
        let objects = self.0.entry(change.kind).or_default();
        let key = (change.fact.namespace.clone(), change.fact.name.clone());
        if change.removed { objects.remove(&key) } else { objects.insert(key, change.fact.clone()) }
    }
}

fn name(fact: &Fact) -> String {
    if fact.namespace.is_empty() { fact.name.clone() } else { format!("{}/{}", fact.namespace, fact.name) }
}

/// A pod's node, phase, readiness and CPU.
fn pod(fact: &Fact) -> Option<(&str, &str, bool, u64)> {
    match &fact.of {
        Of::Pod { node, phase, ready, cpu, .. } => Some((node, phase, *ready, *cpu)),
        _ => None,
    }
}

fn is_over(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// Something that is checked at every change.
type Check = fn(&State, &Change, Option<&Fact>) -> Option<Fault>;

fn replay(changes: &[Change], checks: &[Check]) -> Verdict {
    let (mut state, mut faults) = (State::default(), Vec::new());
    for (at, change) in changes.iter().enumerate() {
        let before = state.apply(change);
        for mut fault in checks.iter().filter_map(|check| check(&state, change, before.as_ref())) {
            fault.history = story(&changes[..=at], change);
            faults.push(fault);
        }
        if faults.len() >= MAX_FAULTS {
            break;
        }
    }
    Verdict::of(faults)
}

/// Changes before a fault that its history has.
const STORY: usize = 30;

/// What happened in a namespace (or to objects in none) up to a change, a line each.
fn story(changes: &[Change], of: &Change) -> Vec<String> {
    let here = changes.iter().rev().filter(|change| change.fact.namespace == of.fact.namespace);
    let line = |change: &Change| {
        let (fact, gone) = (&change.fact, if change.removed { " is gone" } else { "" });
        let going = if fact.going { ", goes" } else { "" };
        format!("revision {}: {} {}{gone}{going}: {:?}", change.revision, change.kind, name(fact), fact.of)
    };
    let mut lines: Vec<String> = here.take(STORY).map(line).collect();
    lines.reverse();
    lines
}

fn fault(kind: &str, change: &Change, what: String) -> Option<Fault> {
    Some(Fault::new(kind, format!("at revision {}: {what}", change.revision)))
}

/// No pod is bound twice, no node has more than it offers, and no port of a node has two pods.
pub fn scheduling(changes: &[Change]) -> Verdict {
    replay(changes, &[bound_twice, over_committed, port_shared])
}

/// The port of its host that a pod has, if it has one.
fn port(fact: &Fact) -> Option<u64> {
    match &fact.of {
        Of::Pod { port, .. } => Some(*port).filter(|port| *port != 0),
        _ => None,
    }
}

fn port_shared(state: &State, change: &Change, _: Option<&Fact>) -> Option<Fault> {
    let ((node, phase, ..), mine) = (pod(&change.fact)?, port(&change.fact)?);
    if node.is_empty() || is_over(phase) || change.removed {
        return None;
    }
    let here = |other: &&Fact| pod(other).is_some_and(|p| p.0 == node && !is_over(p.1)) && port(other) == Some(mine);
    let other = state.of("pods").filter(here).find(|other| other.uid != change.fact.uid)?;
    fault("port-shared", change, format!("{} and {} have port {mine} of node {node}", name(&change.fact), name(other)))
}

fn bound_twice(_: &State, change: &Change, before: Option<&Fact>) -> Option<Fault> {
    let ((old, ..), (new, ..)) = (pod(before?)?, pod(&change.fact)?);
    let same = before?.uid == change.fact.uid;
    let what = || format!("pod {} went from node {old} to {new:?}", name(&change.fact));
    if same && !old.is_empty() && old != new { fault("bound-twice", change, what()) } else { None }
}

fn over_committed(state: &State, change: &Change, before: Option<&Fact>) -> Option<Fault> {
    let (node, ..) = pod(&change.fact)?;
    let bound_before =
        before.filter(|before| before.uid == change.fact.uid).and_then(pod).is_some_and(|p| !p.0.is_empty());
    if node.is_empty() || bound_before || change.removed {
        return None;
    }
    let offers = state.of("nodes").find(|found| found.name == node);
    let Some(Of::Node { cpu, pods }) = offers.map(|fact| &fact.of) else { return None };
    let there = state.of("pods").filter_map(pod).filter(|p| p.0 == node && !is_over(p.1));
    let (count, asked) = there.fold((0, 0), |(count, asked), p| (count + 1, asked + p.3));
    let what = || format!("node {node} has {count} pods that ask for {asked} m of CPU, and offers {pods} and {cpu} m");
    if asked > *cpu || count > *pods { fault("over-committed", change, what()) } else { None }
}

/// No quota is exceeded.
pub fn quotas(changes: &[Change]) -> Verdict {
    replay(changes, &[exceeded])
}

fn exceeded(state: &State, change: &Change, before: Option<&Fact>) -> Option<Fault> {
    pod(&change.fact)?;
    if before.is_some() || change.removed {
        return None;
    }
    let namespace = &change.fact.namespace;
    let quota = state.of("resourcequotas").find(|quota| quota.namespace == *namespace)?;
    let Of::Quota { pods, cpu } = quota.of else { return None };
    // One without grace that was told to go does not count any more, though it may be seen once more.
    let there = state.of("pods").filter(|found| found.namespace == *namespace && !found.going).filter_map(pod);
    let (count, asked) = there.filter(|p| !is_over(p.1)).fold((0, 0), |(count, asked), p| (count + 1, asked + p.3));
    let over = pods.is_some_and(|most| count > most) || cpu.is_some_and(|most| asked > most);
    let what =
        || format!("{namespace} has {count} pods that ask for {asked} m of CPU: {pods:?} and {cpu:?} m are allowed");
    if over { fault("quota-exceeded", change, what()) } else { None }
}

/// Roll-outs have no more and no fewer pods than they may.
pub fn rollouts(changes: &[Change]) -> Verdict {
    replay(changes, &[surge, availability])
}

/// The Deployment that owns a ReplicaSet.
fn deployment<'s>(state: &'s State, set: &Fact) -> Option<(&'s Fact, u64, u64, u64)> {
    let found = state.of("deployments").find(|found| found.uid == set.owner)?;
    match found.of {
        Of::Deployment { replicas, surge, unavailable } => Some((found, replicas, surge, unavailable)),
        _ => None,
    }
}

fn surge(state: &State, change: &Change, before: Option<&Fact>) -> Option<Fault> {
    let Of::ReplicaSet { replicas: now } = change.fact.of else { return None };
    let was = match before.map(|before| &before.of) {
        Some(Of::ReplicaSet { replicas }) => *replicas,
        _ => 0,
    };
    if now <= was || change.removed {
        return None;
    }
    let (owner, wanted, surge, _) = deployment(state, &change.fact)?;
    let sets = state.of("replicasets").filter(|set| set.owner == owner.uid);
    let sum: u64 = sets.map(|set| if let Of::ReplicaSet { replicas } = set.of { replicas } else { 0 }).sum();
    let what = || format!("{}: {sum} pods are wanted, {wanted} and {surge} more are allowed", name(owner));
    if sum > wanted + surge { fault("too-many", change, what()) } else { None }
}

/// A ready pod is taken away only if enough others are ready.
fn availability(state: &State, change: &Change, before: Option<&Fact>) -> Option<Fault> {
    let (_, _, ready, _) = pod(before?)?;
    let leaves = ready && !before?.going && (change.fact.going || change.removed);
    if !leaves || change.fact.owner_kind != "ReplicaSet" {
        return None;
    }
    let set = state.of("replicasets").find(|set| set.uid == change.fact.owner)?;
    let (owner, wanted, _, unavailable) = deployment(state, set)?;
    let sets: BTreeSet<&str> =
        state.of("replicasets").filter(|set| set.owner == owner.uid).map(|set| set.uid.as_str()).collect();
    let of = state.of("pods").filter(|found| sets.contains(found.owner.as_str()) && !found.going);
    let left = of.filter_map(pod).filter(|p| p.2).count() as u64;
    let what = || format!("{}: {left} of {wanted} pods are ready, {unavailable} may be missing", name(owner));
    if left + unavailable < wanted { fault("too-few", change, what()) } else { None }
}

/// Of each identity of a StatefulSet there is one pod at a time: one that ran goes in order before the next comes, and no
/// ordinal is made before those below it.
pub fn identities(changes: &[Change]) -> Verdict {
    replay(changes, &[torn_away, out_of_order])
}

fn torn_away(_: &State, change: &Change, before: Option<&Fact>) -> Option<Fault> {
    let (before, (_, phase, ..)) = (before?, pod(before?)?);
    let replaced = !change.removed && before.uid != change.fact.uid;
    let torn = replaced || (change.removed && !before.going && !change.fact.going && phase == "Running");
    if before.owner_kind != "StatefulSet" || !torn {
        return None;
    }
    fault("two-identities", change, format!("{} was {phase} and is another one at once", name(before)))
}

fn ordinal(fact: &Fact) -> Option<(&str, u64)> {
    let (set, ordinal) = fact.name.rsplit_once('-')?;
    Some((set, ordinal.parse().ok()?))
}

fn out_of_order(state: &State, change: &Change, before: Option<&Fact>) -> Option<Fault> {
    pod(&change.fact)?;
    if change.fact.owner_kind != "StatefulSet" || before.is_some() || change.removed {
        return None;
    }
    let (set, number) = ordinal(&change.fact)?;
    let there: BTreeSet<u64> = state
        .of("pods")
        .filter(|found| found.owner == change.fact.owner)
        .filter_map(|found| ordinal(found).filter(|(of, _)| *of == set))
        .map(|(_, number)| number)
        .collect();
    let missing = (0..number).find(|below| !there.contains(below))?;
    fault("out-of-order", change, format!("{} was made while {set}-{missing} was not there", name(&change.fact)))
}

/// A Job has exactly as many successes as it asks for, and never more pods at work than it may.
pub fn jobs(changes: &[Change]) -> Verdict {
    let mut verdict = replay(changes, &[parallel]);
    let (mut jobs, mut succeeded): (BTreeMap<&str, &Change>, BTreeMap<&str, BTreeSet<&str>>) = Default::default();
    let mut faults = Vec::new();
    for change in changes {
        if let Some((_, "Succeeded", ..)) = pod(&change.fact) {
            succeeded.entry(&change.fact.owner).or_default().insert(&change.fact.uid);
        }
        let Of::Job { succeeded: now, complete, completions, .. } = change.fact.of else { continue };
        if let Some(before) = jobs.insert(&change.fact.uid, change)
            && let Of::Job { succeeded: then, complete: was, .. } = before.fact.of
            && (now < then || (was && !complete))
        {
            faults.extend(fault(
                "went-back",
                change,
                format!("{}: {then} had succeeded, then {now}", name(&change.fact)),
            ));
        }
        if now > completions {
            let what = format!("{}: {now} succeeded of {completions}", name(&change.fact));
            faults.extend(fault("too-many-successes", change, what));
        }
    }
    for (uid, job) in jobs {
        let Of::Job { completions, complete: true, .. } = job.fact.of else { continue };
        let count = succeeded.get(uid).map_or(0, BTreeSet::len) as u64;
        if count != completions {
            let what = format!("{}: {count} pods succeeded, {completions} were to", name(&job.fact));
            faults.extend(fault("not-exactly", job, what));
        }
    }
    verdict = verdict.and(Verdict::of(faults));
    verdict
}

fn parallel(state: &State, change: &Change, before: Option<&Fact>) -> Option<Fault> {
    pod(&change.fact)?;
    if change.fact.owner_kind != "Job" || before.is_some() || change.removed {
        return None;
    }
    let job = state.of("jobs").find(|job| job.uid == change.fact.owner)?;
    let Of::Job { parallelism, .. } = job.of else { return None };
    let pods = state.of("pods").filter(|found| found.owner == job.uid && !found.going);
    let active = pods.filter_map(pod).filter(|p| !is_over(p.1)).count() as u64;
    let what = || format!("{}: {active} pods at work, {parallelism} are allowed", name(job));
    if active > parallelism { fault("too-parallel", change, what()) } else { None }
}

/// A namespace that is gone has left nothing behind, and nothing comes into it any more.
pub fn namespaces(changes: &[Change]) -> Verdict {
    replay(changes, &[left_behind, into_nowhere])
}

fn left_behind(state: &State, change: &Change, _: Option<&Fact>) -> Option<Fault> {
    if change.kind != "namespaces" || !change.removed {
        return None;
    }
    let mut all = state.0.values().flat_map(BTreeMap::values);
    let left = all.find(|fact| fact.namespace == change.fact.name)?;
    fault("left-behind", change, format!("{} is there without its namespace", name(left)))
}

fn into_nowhere(state: &State, change: &Change, before: Option<&Fact>) -> Option<Fault> {
    if before.is_some() || change.removed || change.fact.namespace.is_empty() {
        return None;
    }
    let there = state.of("namespaces").find(|namespace| namespace.name == change.fact.namespace);
    match there {
        // What comes in just after it was told to go goes with it.
        Some(_) => None,
        // What was there before the first look is not known to be gone.
        None if state.of("namespaces").next().is_none() => None,
        _ => fault(
            "into-nowhere",
            change,
            format!("{} {} came into a namespace that is gone", change.kind, name(&change.fact)),
        ),
    }
}

/// Leases have one holder at a time: whoever takes over counts one up, and the one before does not come back unnoticed.
pub fn leases(changes: &[Change]) -> Verdict {
    replay(changes, &[unnoticed])
}

fn unnoticed(_: &State, change: &Change, before: Option<&Fact>) -> Option<Fault> {
    let (Of::Lease { holder: old, transitions: then, .. }, Of::Lease { holder: new, transitions: now, .. }) =
        (&before?.of, &change.fact.of)
    else {
        return None;
    };
    if change.removed || before?.uid != change.fact.uid {
        return None;
    }
    let what = || format!("{}: from {old} ({then}) to {new} ({now})", name(&change.fact));
    let taken = !old.is_empty() && !new.is_empty() && old != new;
    if now < then || (taken && now == then) { fault("two-holders", change, what()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(namespace: &str, name: &str, uid: &str, of: Of) -> Fact {
        Fact { uid: uid.into(), namespace: namespace.into(), name: name.into(), of, ..Fact::default() }
    }

    fn pod_on(name: &str, uid: &str, node: &str, phase: &str, cpu: u64) -> Fact {
        let of = Of::Pod { node: node.into(), phase: phase.into(), ready: phase == "Running", cpu, port: 0 };
        fact("n", name, uid, of)
    }

    fn with_port(name: &str, node: &str, port: u64) -> Fact {
        let of = Of::Pod { node: node.into(), phase: "Running".into(), ready: true, cpu: 0, port };
        fact("n", name, name, of)
    }

    /// Changes in order: kind, whether it is a removal, the object.
    fn changes(list: Vec<(&'static str, bool, Fact)>) -> Vec<Change> {
        let change = |(i, (kind, removed, fact)): (usize, (&'static str, bool, Fact))| Change {
            revision: i as i64 + 1,
            kind,
            removed,
            fact,
        };
        list.into_iter().enumerate().map(change).collect()
    }

    fn owned(fact: Fact, kind: &str, owner: &str) -> Fact {
        Fact { owner: owner.into(), owner_kind: kind.into(), ..fact }
    }

    #[test]
    fn pods_are_bound_once_and_fit() {
        let node = ("nodes", false, fact("", "a", "na", Of::Node { cpu: 1000, pods: 2 }));
        let put = |pod: Fact| ("pods", false, pod);
        for (case, list, kinds) in [
            (
                "one",
                vec![
                    node.clone(),
                    put(pod_on("p", "1", "", "Pending", 500)),
                    put(pod_on("p", "1", "a", "Pending", 500)),
                ],
                vec![],
            ),
            (
                "twice",
                vec![put(pod_on("p", "1", "b", "Pending", 1)), put(pod_on("p", "1", "c", "Pending", 1))],
                vec!["bound-twice"],
            ),
            (
                "anew",
                vec![
                    put(pod_on("p", "1", "b", "Pending", 1)),
                    ("pods", true, pod_on("p", "1", "b", "Pending", 1)),
                    put(pod_on("p", "2", "c", "Pending", 1)),
                ],
                vec![],
            ),
            (
                "too much",
                vec![
                    node.clone(),
                    put(pod_on("p", "1", "a", "Running", 600)),
                    put(pod_on("q", "2", "a", "Pending", 600)),
                ],
                vec!["over-committed"],
            ),
            ("a port", vec![put(with_port("p", "a", 80)), put(with_port("q", "b", 80))], vec![]),
            ("two", vec![put(with_port("p", "a", 80)), put(with_port("q", "a", 81))], vec![]),
            ("one port twice", vec![put(with_port("p", "a", 80)), put(with_port("q", "a", 80))], vec!["port-shared"]),
            (
                "ended",
                vec![node, put(pod_on("p", "1", "a", "Succeeded", 600)), put(pod_on("q", "2", "a", "Pending", 600))],
                vec![],
            ),
        ] {
            assert_eq!(scheduling(&changes(list)).kinds(), kinds, "{case}");
        }
    }

    #[test]
    fn quotas_hold() {
        let quota = ("resourcequotas", false, fact("n", "q", "q", Of::Quota { pods: Some(1), cpu: Some(1000) }));
        let put = |name: &str, phase: &str, cpu| ("pods", false, pod_on(name, name, "", phase, cpu));
        for (case, list, kinds) in [
            ("one", vec![quota.clone(), put("a", "Pending", 100)], vec![]),
            ("two", vec![quota.clone(), put("a", "Pending", 1), put("b", "Pending", 1)], vec!["quota-exceeded"]),
            ("after one ended", vec![quota.clone(), put("a", "Succeeded", 1), put("b", "Pending", 1)], vec![]),
            ("too large", vec![quota, put("a", "Pending", 1001)], vec!["quota-exceeded"]),
        ] {
            assert_eq!(quotas(&changes(list)).kinds(), kinds, "{case}");
        }
    }

    #[test]
    fn rollouts_have_as_many_as_they_may() {
        let deployment =
            ("deployments", false, fact("n", "d", "d", Of::Deployment { replicas: 2, surge: 1, unavailable: 0 }));
        let set = |name: &str, replicas| {
            ("replicasets", false, owned(fact("n", name, name, Of::ReplicaSet { replicas }), "Deployment", "d"))
        };
        let pod = |name: &str, going| {
            let pod = owned(pod_on(name, name, "a", "Running", 1), "ReplicaSet", "x");
            ("pods", false, Fact { going, ..pod })
        };
        for (case, list, kinds) in [
            ("in bounds", vec![deployment.clone(), set("x", 2), set("y", 1)], vec![]),
            ("too many", vec![deployment.clone(), set("x", 2), set("y", 2)], vec!["too-many"]),
            (
                "one goes of three",
                vec![
                    deployment.clone(),
                    set("x", 2),
                    pod("1", false),
                    pod("2", false),
                    pod("3", false),
                    pod("3", true),
                ],
                vec![],
            ),
            (
                "one goes of two",
                vec![deployment, set("x", 2), pod("1", false), pod("2", false), pod("2", true)],
                vec!["too-few"],
            ),
        ] {
            assert_eq!(rollouts(&changes(list)).kinds(), kinds, "{case}");
        }
    }

    #[test]
    fn identities_are_one_at_a_time() {
        let pod = |name: &str, uid: &str, going| Fact {
            going,
            ..owned(pod_on(name, uid, "a", "Running", 1), "StatefulSet", "s")
        };
        for (case, list, kinds) in [
            (
                "in order",
                vec![("pods", false, pod("s-0", "1", false)), ("pods", false, pod("s-1", "2", false))],
                vec![],
            ),
            ("a gap", vec![("pods", false, pod("s-1", "2", false))], vec!["out-of-order"]),
            (
                "goes",
                vec![
                    ("pods", false, pod("s-0", "1", false)),
                    ("pods", false, pod("s-0", "1", true)),
                    ("pods", true, pod("s-0", "1", true)),
                    ("pods", false, pod("s-0", "2", false)),
                ],
                vec![],
            ),
            (
                "torn away",
                vec![("pods", false, pod("s-0", "1", false)), ("pods", true, pod("s-0", "1", false))],
                vec!["two-identities"],
            ),
            (
                "replaced",
                vec![("pods", false, pod("s-0", "1", false)), ("pods", false, pod("s-0", "2", false))],
                vec!["two-identities"],
            ),
        ] {
            assert_eq!(identities(&changes(list)).kinds(), kinds, "{case}");
        }
    }

    #[test]
    fn jobs_end_exactly() {
        let job = |succeeded, complete| {
            ("jobs", false, fact("n", "j", "j", Of::Job { completions: 2, parallelism: 1, succeeded, complete }))
        };
        let pod = |uid: &str, phase: &str| ("pods", false, owned(pod_on(uid, uid, "a", phase, 1), "Job", "j"));
        let both = |more: Vec<(&'static str, bool, Fact)>| {
            let mut list = vec![
                job(0, false),
                pod("1", "Pending"),
                pod("1", "Succeeded"),
                pod("2", "Pending"),
                pod("2", "Succeeded"),
            ];
            list.extend(more);
            list
        };
        for (case, list, kinds) in [
            ("two", both(vec![job(2, true)]), vec![]),
            ("one more", both(vec![pod("3", "Succeeded"), job(2, true)]), vec!["not-exactly"]),
            ("counted too far", both(vec![job(3, false)]), vec!["too-many-successes"]),
            ("back", both(vec![job(2, false), job(1, false)]), vec!["went-back"]),
            ("too parallel", vec![job(0, false), pod("1", "Pending"), pod("2", "Pending")], vec!["too-parallel"]),
        ] {
            assert_eq!(jobs(&changes(list)).kinds(), kinds, "{case}");
        }
    }

    #[test]
    fn namespaces_leave_nothing() {
        let namespace = |going| Fact { going, ..fact("", "n", "n", Of::Other) };
        let map = || fact("n", "m", "m", Of::Other);
        for (case, list, kinds) in [
            (
                "empty",
                vec![
                    ("namespaces", false, namespace(false)),
                    ("configmaps", false, map()),
                    ("configmaps", true, map()),
                    ("namespaces", true, namespace(true)),
                ],
                vec![],
            ),
            (
                "left",
                vec![
                    ("namespaces", false, namespace(false)),
                    ("configmaps", false, map()),
                    ("namespaces", true, namespace(true)),
                ],
                vec!["left-behind"],
            ),
            (
                "while it goes",
                vec![
                    ("namespaces", false, namespace(false)),
                    ("namespaces", false, namespace(true)),
                    ("configmaps", false, map()),
                ],
                vec![],
            ),
            (
                "late",
                vec![
                    ("namespaces", false, fact("", "other", "o", Of::Other)),
                    ("namespaces", false, namespace(true)),
                    ("namespaces", true, namespace(true)),
                    ("configmaps", false, map()),
                ],
                vec!["into-nowhere"],
            ),
        ] {
            assert_eq!(namespaces(&changes(list)).kinds(), kinds, "{case}");
        }
    }

    #[test]
    fn leases_have_one_holder() {
        let lease = |holder: &str, transitions| {
            (
                "leases",
                false,
                fact("n", "l", "l", Of::Lease { holder: holder.into(), transitions, renewed: String::new() }),
            )
        };
        for (case, list, kinds) in [
            ("renewed", vec![lease("a", 0), lease("a", 0)], vec![]),
            ("taken", vec![lease("a", 0), lease("b", 1)], vec![]),
            ("unnoticed", vec![lease("a", 1), lease("b", 1)], vec!["two-holders"]),
            ("back", vec![lease("a", 2), lease("a", 1)], vec!["two-holders"]),
        ] {
            assert_eq!(leases(&changes(list)).kinds(), kinds, "{case}");
        }
    }
}
