//! Decides the sizes of a Deployment's ReplicaSets: within maxSurge above and maxUnavailable below what is asked for.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::sets::{Bounds, actual, available, desired, max_before, name, replicas};

/// New sizes, by name, in the order in which they are to be written; a set may be resized twice.
pub type Sizes = Vec<(String, i32)>;
type Set = Arc<ReplicaSet>;

fn total(sets: &[&Set]) -> i32 {
    sets.iter().map(|s| replicas(s)).sum()
}

fn active<'a>(sets: impl Iterator<Item = &'a Set>) -> Vec<&'a Set> {
    sets.filter(|s| replicas(s) > 0).collect()
}

/// Whether the Deployment was scaled since its sets were: then scaling comes before any roll-out.
pub fn was_scaled(bounds: &Bounds, new: Option<&Set>, old: &[Set]) -> bool {
    active(new.into_iter().chain(old)).iter().any(|s| desired(s).is_some_and(|d| d != bounds.wanted))
}

/// The size of a set that is made for the template now.
pub fn first_size(bounds: &Bounds, old: &[Set]) -> i32 {
    grown(bounds, 0, total(&old.iter().collect::<Vec<_>>()))
}

/// The size that the new set may have while the others hold `others` pods.
fn grown(bounds: &Bounds, current: i32, others: i32) -> i32 {
    if bounds.recreate {
        return bounds.wanted;
    }
    let room = bounds.maximum() - current - others;
    if room <= 0 { current } else { current + room.min(bounds.wanted - current) }
}

/// Sizes after the Deployment was scaled, or while it is paused: pods are spread over the active sets in proportion.
pub fn scaled(bounds: &Bounds, deployment_replicas: i32, new: Option<&Set>, old: &[Set]) -> Sizes {
    let everyone: Vec<&Set> = new.into_iter().chain(old).collect();
    let mut running = active(everyone.iter().copied());
    if running.len() <= 1 {
        let newest = running.first().copied().or(new).or_else(|| old.last());
        return newest.map(|s| (name(s).to_owned(), bounds.wanted)).into_iter().collect();
    }
    if let Some(new) = new
        && replicas(new) == bounds.wanted
        && desired(new) == Some(bounds.wanted)
        && available(new) == bounds.wanted
    {
        // The new set holds all: what the old ones still have is surplus.
        return active(old.iter()).iter().map(|s| (name(s).to_owned(), 0)).collect();
    }
    if bounds.recreate {
        // The old ones are emptied next; only what they note of the size changes.
        return running.iter().map(|s| (name(s).to_owned(), replicas(s))).collect();
    }
    let allowed = if bounds.wanted > 0 { bounds.maximum() } else { 0 };
    let to_add = allowed - total(&everyone);
    let newer = |s: &&Set| std::cmp::Reverse(s.metadata.creation_timestamp.as_ref().map(|t| t.0));
    match to_add >= 0 {
        true => running.sort_by_key(|s| (std::cmp::Reverse(replicas(s)), newer(s))),
        false => running.sort_by_key(|s| (std::cmp::Reverse(replicas(s)), std::cmp::Reverse(newer(s)))),
    }
    let mut added = 0;
    let mut sizes = Sizes::new();
    for set in &running {
        let part = if to_add == 0 { 0 } else { proportion(bounds, deployment_replicas, set, to_add, added) };
        added += part;
        sizes.push((name(set).to_owned(), replicas(set) + part));
    }
    if let Some(first) = sizes.first_mut()
        && to_add != 0
    {
        // What rounding left over goes to the largest.
        first.1 = (first.1 + to_add - added).max(0);
    }
    sizes
}

/// The part of `to_add` that falls to a set, `added` of which is given already.
fn proportion(bounds: &Bounds, deployment_replicas: i32, set: &Set, to_add: i32, added: i32) -> i32 {
    let size = replicas(set);
    if size == 0 || to_add == added {
        return 0;
    }
    let part = if bounds.wanted == 0 {
        -size
    } else {
        let before = max_before(set).unwrap_or(deployment_replicas);
        if before == 0 {
            return 0;
        }
        (f64::from(size) * f64::from(bounds.maximum()) / f64::from(before)).round() as i32 - size
    };
    let left = to_add - added;
    if to_add > 0 { part.min(left) } else { part.max(left) }
}

/// The next step of a rolling update: first the new set grows, then the old ones shrink.
pub fn rolled(bounds: &Bounds, new: &Set, old: &[Set]) -> Sizes {
    let current = replicas(new);
    let old_total = total(&old.iter().collect::<Vec<_>>());
    let size = if current > bounds.wanted { bounds.wanted } else { grown(bounds, current, old_total) };
    if size != current {
        return vec![(name(new).to_owned(), size)];
    }
    if old_total == 0 {
        return Sizes::new();
    }
    let minimum = bounds.wanted - bounds.unavailable;
    let new_unavailable = current - available(new);
    let mut may_go = current + old_total - minimum - new_unavailable;
    if may_go <= 0 {
        return Sizes::new();
    }
    // Pods that are not available go first, in steps of their own: nobody misses them.
    let mut steps = Sizes::new();
    let mut sizes: Vec<(String, i32)> = old.iter().map(|s| (name(s).to_owned(), replicas(s))).collect();
    for (size, set) in sizes.iter_mut().zip(old) {
        let unhealthy = (replicas(set) - available(set)).max(0).min(may_go);
        size.1 -= unhealthy;
        may_go -= unhealthy;
        if unhealthy > 0 {
            steps.push(size.clone());
        }
    }
    // A set that was made smaller a moment ago still counts what it loses: what may go by the sets' sizes is the limit.
    let surplus = available(new) + old.iter().map(|s| available(s)).sum::<i32>() - minimum;
    let mut surplus = surplus.min(may_go).max(0);
    for size in &mut sizes {
        let gone = size.1.min(surplus);
        size.1 -= gone;
        surplus -= gone;
        if gone > 0 {
            steps.push(size.clone());
        }
    }
    steps
}

/// What a Recreate does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Recreate {
    /// The old sets are emptied.
    Empty(Sizes),
    /// Their pods still run.
    Wait,
    /// The new set is filled.
    Fill,
}

/// The next step of a Recreate; `old_pods_run` says whether any pod of an old set is not at its end.
pub fn recreated(old: &[Set], old_pods_run: bool) -> Recreate {
    let running = active(old.iter());
    if !running.is_empty() {
        return Recreate::Empty(running.iter().map(|s| (name(s).to_owned(), 0)).collect());
    }
    if old_pods_run { Recreate::Wait } else { Recreate::Fill }
}

/// Old sets beyond the history's limit that hold nothing, the oldest revisions first.
pub fn beyond_history(old: &[Set], limit: Option<i32>) -> Vec<String> {
    let Some(limit) = limit.and_then(|l| usize::try_from(l).ok()) else { return Vec::new() };
    let mut alive: Vec<&Set> = old.iter().filter(|s| s.metadata.deletion_timestamp.is_none()).collect();
    let surplus = alive.len().saturating_sub(limit);
    alive.sort_by_key(|s| super::sets::revision(&s.metadata));
    let empty = |s: &&&Set| {
        let observed = s.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0);
        actual(s) == 0 && replicas(s) == 0 && s.metadata.generation.unwrap_or(0) <= observed
    };
    alive.iter().take(surplus).filter(empty).map(|s| name(s).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(name: &str, size: i32, available: i32, max: i32) -> Set {
        let second = name.bytes().last().unwrap_or(b'0') % 10;
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:0{second}Z"), "annotations": {
                    "deployment.kubernetes.io/desired-replicas": "10",
                    "deployment.kubernetes.io/max-replicas": max.to_string()}},
                "spec": {"replicas": size, "selector": {}},
                "status": {"replicas": size, "availableReplicas": available}}))
            .unwrap(),
        )
    }

    fn bounds(wanted: i32, surge: i32, unavailable: i32) -> Bounds {
        Bounds { wanted, surge, unavailable, recreate: false }
    }

    fn shown(sizes: &Sizes) -> String {
        sizes.iter().map(|(name, size)| format!("{name}={size}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn rollouts_keep_their_bounds() {
        for (what, bounds, new, old, expected) in [
            ("grows into the surge", bounds(4, 1, 1), set("n", 0, 0, 5), vec![set("o", 4, 4, 5)], "n=1"),
            ("then the old shrinks", bounds(4, 1, 1), set("n", 1, 0, 5), vec![set("o", 4, 4, 5)], "o=3"),
            ("and the new grows", bounds(4, 1, 1), set("n", 1, 0, 5), vec![set("o", 3, 3, 5)], "n=2"),
            ("new ones are not ready", bounds(4, 1, 1), set("n", 2, 0, 5), vec![set("o", 3, 3, 5)], ""),
            ("new ones are ready", bounds(4, 1, 1), set("n", 2, 2, 5), vec![set("o", 3, 3, 5)], "o=1"),
            ("the last", bounds(4, 1, 1), set("n", 4, 4, 5), vec![set("o", 1, 1, 5)], "o=0"),
            ("too many", bounds(2, 1, 1), set("n", 4, 4, 5), vec![], "n=2"),
            (
                "sick ones go first",
                bounds(4, 0, 1),
                set("n", 0, 0, 4),
                vec![set("o", 2, 0, 4), set("p", 2, 2, 4)],
                "o=1",
            ),
            (
                "what a set loses is counted until it is gone",
                bounds(8, 2, 1),
                set("n", 3, 2, 10),
                vec![set("o", 2, 0, 10), set("p", 5, 6, 10)],
                "o=0",
            ),
            ("no unavailability", bounds(3, 1, 0), set("n", 1, 0, 4), vec![set("o", 3, 3, 4)], ""),
        ] {
            assert_eq!(shown(&rolled(&bounds, &new, &old)), expected, "{what}");
        }
    }

    #[test]
    fn a_rollout_ends_and_never_leaves_its_bounds() {
        for (wanted, surge, unavailable) in [(1, 1, 0), (1, 0, 1), (4, 1, 1), (10, 3, 2), (7, 0, 1), (5, 5, 5)] {
            let bounds = bounds(wanted, surge, unavailable);
            let (mut new, mut old) = ((0, 0), (wanted, wanted));
            for step in 0.. {
                assert!(step < 200, "no end: {bounds:?}");
                let sizes = rolled(&bounds, &set("n", new.0, new.1, 0), &[set("o", old.0, old.1, 0)]);
                for (name, size) in &sizes {
                    if name == "n" {
                        new = (*size, new.1.min(*size));
                    } else {
                        old = (*size, old.1.min(*size));
                    }
                }
                assert!(new.0 + old.0 <= wanted + surge, "{bounds:?}: {new:?} {old:?}");
                assert!(new.1 + old.1 >= wanted - unavailable, "{bounds:?}: {new:?} {old:?}");
                if sizes.is_empty() && new.1 < new.0 {
                    new.1 += 1;
                } else if sizes.is_empty() {
                    break;
                }
            }
            assert_eq!((new, old), ((wanted, wanted), (0, 0)), "{bounds:?}");
        }
    }

    #[test]
    fn scaling_is_spread_in_proportion() {
        let (new, old) = (set("n2", 5, 5, 13), vec![set("o1", 8, 8, 13)]);
        for (what, bounds, expected) in [
            ("up", bounds(15, 5, 0), "o1=12 n2=8"),
            ("down", bounds(5, 2, 0), "o1=4 n2=3"),
            ("to nothing", bounds(0, 0, 1), "o1=0 n2=0"),
        ] {
            assert_eq!(shown(&scaled(&bounds, 10, Some(&new), &old)), expected, "{what}");
        }
        assert_eq!(shown(&scaled(&bounds(7, 1, 0), 3, Some(&set("n", 3, 3, 4)), &[set("o", 0, 0, 4)])), "n=7");
        assert_eq!(shown(&scaled(&bounds(10, 1, 0), 3, Some(&set("n", 10, 10, 4)), &[set("o", 2, 0, 4)])), "o=0");
        assert_eq!(shown(&scaled(&bounds(3, 1, 0), 3, None, &[])), "");
    }

    #[test]
    fn recreate_waits_for_the_last_pod() {
        let (full, empty) = ([set("o", 2, 2, 2)], [set("o", 0, 0, 2)]);
        assert_eq!(recreated(&full, true), Recreate::Empty(vec![("o".into(), 0)]));
        assert_eq!(recreated(&empty, true), Recreate::Wait);
        assert_eq!(recreated(&empty, false), Recreate::Fill);
    }

    #[test]
    fn history_is_cut_at_its_limit() {
        let old: Vec<Set> = [("a", 0, "1"), ("b", 0, "2"), ("c", 1, "3"), ("d", 0, "4")]
            .map(|(name, size, revision)| {
                let mut s = (*set(name, size, size, 1)).clone();
                s.metadata
                    .annotations
                    .get_or_insert_default()
                    .insert(super::super::sets::REVISION.into(), revision.into());
                Arc::new(s)
            })
            .into();
        for (limit, expected) in [(None, ""), (Some(4), ""), (Some(3), "a"), (Some(1), "a b"), (Some(0), "a b d")] {
            assert_eq!(beyond_history(&old, limit).join(" "), expected, "{limit:?}");
        }
    }
}
