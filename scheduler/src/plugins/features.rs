//! NodeDeclaredFeatures: what a pod needs of its node's agent, and what nodes say that theirs can do.

use super::{Context, Fit, Reasons, Rejection, State};
use crate::config::Profile;
use crate::queue::Happening;
use crate::view::{PodInfo, Slot, View};
use crate::wire::{Container, PodSpec};

/// Features that pods can need, as nodes name them; a set of them is a bit for each.
const NAMES: [&str; 2] = ["RestartAllContainersOnContainerExits", "UserNamespacesHostNetworkSupport"];
/// See [`NAMES`].
const RESTART_ALL: u8 = 1;
/// See [`NAMES`].
const USERS_ON_HOST_NETWORK: u8 = 2;

/// The features that a pod needs.
pub fn needed(spec: &PodSpec) -> u8 {
    let restarts_all = |c: &Container| c.restart_policy_rules.iter().any(|rule| rule.action == "RestartAllContainers");
    let mut set = 0;
    if spec.containers.iter().chain(&spec.init_containers).any(restarts_all) {
        set |= RESTART_ALL;
    }
    if spec.host_network && spec.host_users == Some(false) {
        set |= USERS_ON_HOST_NETWORK;
    }
    set
}

/// The features of those that a node declares which pods can need.
pub fn declared(names: &[String]) -> u8 {
    let known = NAMES.iter().enumerate().filter(|(_, name)| names.iter().any(|declared| declared == *name));
    known.fold(0, |set, (i, _)| set | 1 << i)
}

/// Most pods need nothing.
pub fn pre_filter(_: &mut View, pod: &PodInfo, _: &Profile, _: &mut State) -> Result<bool, Rejection> {
    Ok(pod.class.features != 0)
}

/// The node must declare all that the pod needs.
pub fn filter(context: &Context<'_>, slot: Slot, why: Option<&mut Reasons>) -> Fit {
    if context.pod.class.features & !context.view.nodes[slot as usize].features == 0 {
        return Fit::Yes;
    }
    if let Some(why) = why {
        why.push("node(s) didn't match Pod's required features".into());
    }
    Fit::Never
}

/// A node came or declares other features, and has what the pod needs now.
pub fn hint(view: &View, pod: &PodInfo, what: &Happening) -> bool {
    match what {
        Happening::Node { slot, change } if change.added || change.features => {
            pod.class.features & !view.nodes[*slot as usize].features == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn few_pods_need_something() {
        let rules = |action: &str| json!([{"action": action, "exitCodes": {"operator": "In", "values": [1]}}]);
        for (what, spec, expected) in [
            ("nothing", json!({"containers": [{"name": "c"}]}), 0),
            ("a rule for one container", json!({"containers": [{"restartPolicyRules": rules("Restart")}]}), 0),
            ("one for all", json!({"containers": [{"restartPolicyRules": rules("RestartAllContainers")}]}), 1),
            ("in the beginning", json!({"initContainers": [{"restartPolicyRules": rules("RestartAllContainers")}]}), 1),
            ("users of its own", json!({"hostUsers": false}), 0),
            ("on the host's network", json!({"hostUsers": false, "hostNetwork": true}), 2),
            ("the host's users", json!({"hostUsers": true, "hostNetwork": true}), 0),
        ] {
            assert_eq!(needed(&serde_json::from_value(spec).unwrap()), expected, "{what}");
        }
        let all = NAMES.map(str::to_owned);
        assert_eq!((declared(&all), declared(&[]), declared(&["Other".into(), all[1].clone()])), (3, 0, 2));
    }
}
