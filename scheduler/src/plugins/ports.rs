//! NodePorts: no two pods on one port of a host.

use super::{Context, Fit, Reasons, Rejection, State};
use crate::config::Profile;
use crate::queue::Happening;
use crate::view::{PodInfo, Slot, View};

/// Pods without host ports fit everywhere.
pub fn pre_filter(_: &mut View, pod: &PodInfo, _: &Profile, _: &mut State) -> Result<bool, Rejection> {
    Ok(!pod.class.ports.is_empty())
}

/// The ports must be free.
pub fn filter(context: &Context<'_>, slot: Slot, why: Option<&mut Reasons>) -> Fit {
    let used = &context.view.nodes[slot as usize].ports;
    if !context.pod.class.ports.iter().any(|wanted| used.iter().any(|u| u.conflicts(wanted))) {
        return Fit::Yes;
    }
    if let Some(why) = why {
        why.push("node(s) didn't have free ports for the requested pod ports".into());
    }
    Fit::No
}

/// A node came, or a pod left that held one of the ports.
pub fn hint(_: &View, pod: &PodInfo, what: &Happening) -> bool {
    match what {
        Happening::Node { change, .. } => change.added,
        Happening::Left { pod: gone, .. } => {
            gone.class.ports.iter().any(|p| pod.class.ports.iter().any(|wanted| wanted.conflicts(p)))
        }
        _ => false,
    }
}
