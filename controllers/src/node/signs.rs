//! Signs of life of nodes, noted as they come: a look at all nodes then costs no more than comparing times.
//!
//! Invariant: a sign is a change of a node's Lease or of its Ready condition's heartbeat, timed by this process's clock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use keelson_client::Change;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Where nodes keep their leases.
pub const LEASES: &str = "kube-node-lease";
/// A new node may be silent for this long, or for the grace period if that is longer.
const STARTUP_GRACE: Duration = Duration::from_secs(60);

/// A shorter grace period is quick: it asks for more renewals than nodes make by themselves.
pub const QUICK: Duration = Duration::from_secs(40);
/// With so many nodes or more, the silence of all of them is rather this server's.
const MANY: usize = 3;

/// The last sign of life of a node.
struct Sign {
    at: Instant,
    /// Whether it has ever reported.
    reported: bool,
    /// For how long it renews its lease; it does so four times in that time.
    lease: Option<Duration>,
    /// It was asked to renew its lease more often.
    asked: bool,
}

#[derive(Default)]
struct Heard {
    signs: HashMap<String, Sign>,
    /// Whether a node changed in a way that has to be judged.
    changed: bool,
}

/// What was heard of all nodes.
#[derive(Clone, Default)]
pub struct Signs(Arc<Mutex<Heard>>);

fn heartbeat(node: &Node) -> Option<(Option<Timestamp>, bool)> {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|c| c.type_ == "Ready")?;
    let reported = ready.reason.as_deref() != Some("NodeStatusNeverUpdated");
    Some((ready.last_heartbeat_time.as_ref().map(|t| t.0), reported))
}

/// Whether two versions of a node differ in what is judged: all but times.
fn differ(old: &Node, new: &Node) -> bool {
    let conditions = |node: &Node| {
        let all = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
        all.map(|c| (c.type_.clone(), c.status.clone())).collect::<Vec<_>>()
    };
    let spec = |node: &Node| node.spec.as_ref().map(|s| (s.unschedulable, s.taints.clone()));
    old.metadata.uid != new.metadata.uid
        || old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
        || old.metadata.labels != new.metadata.labels
        || spec(old) != spec(new)
        || conditions(old) != conditions(new)
}

impl Signs {
    /// A node changed; tells whether it has to be judged anew at once.
    pub fn node(&self, change: &Change<Node>, now: Instant) -> bool {
        let Some(name) = change.object().and_then(|n| n.metadata.name.as_deref()) else { return false };
        let mut heard = self.0.lock();
        let Some(new) = &change.new else {
            heard.signs.remove(name);
            heard.changed = true;
            return true;
        };
        let (before, after) = (change.old.as_deref().and_then(heartbeat), heartbeat(new));
        let reported = after.is_some_and(|(_, reported)| reported);
        match heard.signs.get_mut(name) {
            Some(sign) => {
                sign.reported |= reported;
                if before.map(|(at, _)| at) != after.map(|(at, _)| at) {
                    sign.at = now;
                }
            }
            None => drop(heard.signs.insert(name.to_owned(), Sign { at: now, reported, lease: None, asked: false })),
        }
        let judged = change.old.as_ref().is_none_or(|old| differ(old, new));
        heard.changed |= judged;
        judged
    }

    /// A lease changed.
    pub fn lease(&self, change: &Change<Lease>, now: Instant) {
        let Some(new) = change.new.as_ref().filter(|l| l.metadata.namespace.as_deref() == Some(LEASES)) else { return };
        let renewed = |lease: &Lease| lease.spec.as_ref().and_then(|s| s.renew_time.as_ref().map(|t| t.0));
        if change.old.as_ref().and_then(|old| renewed(old)) == renewed(new) {
            return;
        }
        let name = new.metadata.name.as_deref().unwrap_or_default();
        let seconds = new.spec.as_ref().and_then(|s| s.lease_duration_seconds).and_then(|n| u64::try_from(n).ok());
        if let Some(sign) = self.0.lock().signs.get_mut(name) {
            sign.at = now;
            // Only what the node itself wrote: what it was asked for it may not know of yet.
            sign.lease = seconds.map(Duration::from_secs);
        }
    }

    /// The nodes that renew leases which are longer than `wanted`; each is told of once.
    pub fn slow(&self, wanted: Duration) -> Vec<String> {
        let mut heard = self.0.lock();
        let slow = heard.signs.iter_mut().filter(|(_, s)| !s.asked && s.lease.is_some_and(|lease| lease > wanted));
        slow.map(|(name, sign)| {
            sign.asked = true;
            name.clone()
        })
        .collect()
    }

    /// The node could not be asked.
    pub fn ask_again(&self, name: &str) {
        if let Some(sign) = self.0.lock().signs.get_mut(name) {
            sign.asked = false;
        }
    }

    /// The nodes that gave no sign for the grace period, or for two renewals of their leases if the period is quicker.
    pub fn silent(&self, grace: Duration, now: Instant) -> Vec<String> {
        let heard = self.0.lock();
        let quick = grace < QUICK;
        let silence = |sign: &Sign| now.saturating_duration_since(sign.at);
        let deaf = quick
            && heard.signs.len() >= MANY
            && heard.signs.values().map(silence).min().is_some_and(|least| least > grace / 2);
        let late = |sign: &Sign| {
            let grace = match sign.lease {
                _ if deaf => QUICK,
                // Two renewals may be late, however seldom the node makes them.
                Some(lease) if quick => grace.max((lease / 2).min(QUICK)),
                _ => grace,
            };
            silence(sign) > if sign.reported { grace } else { grace.max(STARTUP_GRACE) }
        };
        heard.signs.iter().filter(|(_, sign)| late(sign)).map(|(name, _)| name.clone()).collect()
    }

    /// Whether anything has to be judged since this was asked last.
    pub fn take_changed(&self) -> bool {
        std::mem::take(&mut self.0.lock().changed)
    }

    /// Nobody is blamed for the time until now.
    pub fn forgive(&self, now: Instant) {
        self.0.lock().signs.values_mut().for_each(|sign| sign.at = now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const GRACE: Duration = Duration::from_secs(40);

    fn node(heartbeat: &str, rest: Value) -> Arc<Node> {
        let mut whole = json!({"metadata": {"name": "n"}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": heartbeat}]}});
        keelson_machinery::patch::merge(&mut whole, &rest);
        Arc::new(serde_json::from_value(whole).unwrap())
    }

    fn lease(namespace: &str, name: &str, renewed: &str) -> Arc<Lease> {
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"renewTime": renewed}}),
            )
            .unwrap(),
        )
    }

    const EARLY: &str = "2026-01-01T00:00:00.000000Z";
    const LATE: &str = "2026-01-01T00:00:10.000000Z";

    #[test]
    fn changes_of_heartbeats_and_leases_are_signs() {
        let beat = |at: &str| node(at, json!({}));
        type Event = Box<dyn Fn(&Signs, Instant)>;
        let nodes = |old: Arc<Node>, new: Arc<Node>| -> Event {
            Box::new(move |s, now| {
                s.node(&Change { old: Some(old.clone()), new: Some(new.clone()) }, now);
            })
        };
        let leases = |old: Arc<Lease>, new: Arc<Lease>| -> Event {
            Box::new(move |s, now| s.lease(&Change { old: Some(old.clone()), new: Some(new.clone()) }, now))
        };
        let own = |at: &str| lease(LEASES, "n", at);
        let table: Vec<(&str, Event, bool)> = vec![
            ("nothing", Box::new(|_, _| {}), false),
            ("a heartbeat", nodes(beat(EARLY), beat(LATE)), true),
            ("another change", nodes(beat(EARLY), node(EARLY, json!({"metadata": {"labels": {"a": "b"}}}))), false),
            ("a renewed lease", leases(own(EARLY), own(LATE)), true),
            ("a lease that is as it was", leases(own(EARLY), own(EARLY)), false),
            ("another node's", leases(lease(LEASES, "m", EARLY), lease(LEASES, "m", LATE)), false),
            ("a lease elsewhere", leases(lease("d", "n", EARLY), lease("d", "n", LATE)), false),
        ];
        for (what, event, alive) in table {
            let (signs, start) = (Signs::default(), Instant::now());
            signs.node(&Change { old: None, new: Some(beat(EARLY)) }, start);
            event(&signs, start + GRACE);
            let late = start + GRACE + Duration::from_millis(1);
            assert_eq!(signs.silent(GRACE, late).is_empty(), alive, "{what}");
            signs.forgive(late);
            assert!(signs.silent(GRACE, late).is_empty(), "{what}");
        }
    }

    #[test]
    fn a_quick_grace_period_is_for_nodes_that_renew_quickly() {
        let quick = Duration::from_secs(2);
        let own = |name: &str, at: &str, seconds: i64| {
            let mut lease = (*lease(LEASES, name, at)).clone();
            lease.spec.get_or_insert_default().lease_duration_seconds = i32::try_from(seconds).ok();
            Arc::new(lease)
        };
        for (what, names, asked, seconds, others_after, silent_after) in [
            ("quick", &["n"][..], false, 3, None, 2),
            ("a lease that was shortened but not yet renewed", &["n"], true, 40, None, 20),
            ("slow", &["n"], false, 40, None, 20),
            ("very slow", &["n"], false, 600, None, 40),
            ("one of many", &["n", "o", "p"], false, 3, Some(1), 2),
            ("all of many: it is rather this server that hears nothing", &["n", "o", "p"], false, 3, None, 40),
        ] {
            let (signs, start) = (Signs::default(), Instant::now());
            for name in names {
                let new = node(EARLY, json!({"metadata": {"name": name}}));
                signs.node(&Change { old: None, new: Some(new) }, start);
                signs.lease(&Change { old: None, new: Some(own(name, EARLY, seconds)) }, start);
            }
            if asked {
                assert_eq!(signs.slow(Duration::from_secs(3)), ["n"], "{what}");
                assert!(signs.slow(Duration::from_secs(3)).is_empty(), "{what}: asked once");
                signs.ask_again("n");
                assert_eq!(signs.slow(Duration::from_secs(3)).len(), 1, "{what}");
                let shortened = Change { old: Some(own("n", EARLY, seconds)), new: Some(own("n", EARLY, 3)) };
                signs.lease(&shortened, start);
            }
            let after = |millis: u64| start + Duration::from_millis(millis);
            if let Some(seconds) = others_after {
                for name in &names[1..] {
                    signs.lease(
                        &Change { old: Some(own(name, EARLY, 3)), new: Some(own(name, LATE, 3)) },
                        after(seconds * 1000 + 500),
                    );
                }
            }
            assert!(signs.silent(quick, after(silent_after * 1000 - 1)).is_empty(), "{what}");
            assert!(signs.silent(quick, after(silent_after * 1000 + 1)).contains(&"n".to_owned()), "{what}");
        }
    }

    #[test]
    fn a_node_that_never_reported_has_more_time() {
        let new = node(EARLY, json!({"status": {"conditions": []}}));
        let (signs, start) = (Signs::default(), Instant::now());
        signs.node(&Change { old: None, new: Some(new.clone()) }, start);
        let (early, late) = (start + Duration::from_secs(59), start + Duration::from_secs(61));
        assert!(signs.silent(GRACE, early).is_empty());
        assert_eq!(signs.silent(GRACE, late), ["n"]);
        signs.node(&Change { old: Some(new), new: None }, late);
        assert!(signs.silent(GRACE, late).is_empty(), "what is gone is not silent");
    }

    #[test]
    fn heartbeats_alone_are_no_reason_to_judge() {
        let base = node(EARLY, json!({}));
        for (what, new, expected) in [
            ("a heartbeat", node(LATE, json!({})), false),
            ("not ready", node(EARLY, json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})), true),
            ("a taint", node(EARLY, json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}})), true),
            ("a label", node(EARLY, json!({"metadata": {"labels": {"zone": "z"}}})), true),
            ("another of that name", node(EARLY, json!({"metadata": {"uid": "u"}})), true),
        ] {
            let (signs, now) = (Signs::default(), Instant::now());
            assert!(signs.node(&Change { old: None, new: Some(base.clone()) }, now) && signs.take_changed());
            assert_eq!(signs.node(&Change { old: Some(base.clone()), new: Some(new) }, now), expected, "{what}");
            assert_eq!((signs.take_changed(), signs.take_changed()), (expected, false), "{what}");
        }
    }
}
