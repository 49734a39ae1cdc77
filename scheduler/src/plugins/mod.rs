//! The plugins: one row each in [`PLUGINS`], in upstream's order. What a profile can name, what runs in a cycle and what an
//! explanation lists all derive from the rows.

pub mod affinity;
pub mod devices;
pub mod features;
pub mod fit;
pub mod gang;
pub mod images;
pub mod ports;
pub mod preemption;
pub mod spread;
pub mod statics;
pub mod volumes;

use std::borrow::Cow;

use keelson_machinery::features::{Feature, Gates};

use crate::config::Profile;
use crate::queue::Happening;
use crate::view::{PodInfo, Slot, View};

/// The best score.
pub const MAX_SCORE: i64 = 100;

/// Points at which a plugin can be enabled and disabled.
pub mod points {
    /// Before a pod may wait to be scheduled.
    pub const PRE_ENQUEUE: u16 = 1;
    /// Order of the queue.
    pub const QUEUE_SORT: u16 = 2;
    /// Once per pod, before nodes are filtered.
    pub const PRE_FILTER: u16 = 4;
    /// Which nodes can take the pod.
    pub const FILTER: u16 = 8;
    /// When none can.
    pub const POST_FILTER: u16 = 16;
    /// Once per pod, before nodes are scored.
    pub const PRE_SCORE: u16 = 32;
    /// Which nodes suit best.
    pub const SCORE: u16 = 64;
    /// Holding what the pod needs.
    pub const RESERVE: u16 = 128;
    /// Before the pod is bound.
    pub const PRE_BIND: u16 = 256;
    /// Binding.
    pub const BIND: u16 = 512;
    /// Before the pod goes on to be bound.
    pub const PERMIT: u16 = 1024;
    /// Names on the wire.
    pub const NAMES: [(&str, u16); 12] = [
        ("preEnqueue", PRE_ENQUEUE),
        ("queueSort", QUEUE_SORT),
        ("preFilter", PRE_FILTER),
        ("filter", FILTER),
        ("postFilter", POST_FILTER),
        ("preScore", PRE_SCORE),
        ("score", SCORE),
        ("reserve", RESERVE),
        ("permit", PERMIT),
        ("preBind", PRE_BIND),
        ("bind", BIND),
        ("postBind", 0),
    ];
}

/// What a filter says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It can take the pod.
    Yes,
    /// Not now; fewer pods there could help.
    No,
    /// Not whatever pods leave.
    Never,
}

/// Reasons why a node is refused, as users read them.
pub type Reasons = Vec<Cow<'static, str>>;

/// The pod cannot be scheduled whatever the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Why.
    pub reason: String,
    /// Not even if other pods leave.
    pub never: bool,
}

impl Rejection {
    /// One that other pods' leaving does not change.
    pub fn never(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), never: true }
    }
}

/// What the plugins work out once per pod.
#[derive(Default)]
pub struct State {
    /// Spread constraints.
    pub spread: spread::State,
    /// Pod affinity.
    pub affinity: affinity::State,
    /// Volumes.
    pub volumes: volumes::State,
    /// Devices.
    pub devices: devices::State,
}

/// What a filter or score reads.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The cluster.
    pub view: &'a View,
    /// The pod.
    pub pod: &'a PodInfo,
    /// Its profile.
    pub profile: &'a Profile,
    /// What was worked out.
    pub state: &'a State,
}

/// Works out what a filter needs; `false` if it has nothing to say about the pod.
pub type PreFilter = fn(&mut View, &PodInfo, &Profile, &mut State) -> Result<bool, Rejection>;
/// Judges a node; lists the reasons if asked to.
pub type Filter = fn(&Context<'_>, Slot, Option<&mut Reasons>) -> Fit;
/// Takes into account that a pod comes to (1) or goes from (-1) a node while the cycle tries something out.
pub type Adjust = fn(&mut View, &PodInfo, &mut State, &PodInfo, Slot, i64);
/// Works out what a score needs; `false` if all nodes are equal to it.
pub type PreScore = fn(&mut View, &PodInfo, &Profile, &mut State, &[Slot]) -> bool;
/// Scores nodes from 0 to [`MAX_SCORE`].
pub type Score = fn(&Context<'_>, &[Slot], &mut [i64]);
/// Whether something that happened can make a pod schedulable that the plugin refused.
pub type Hint = fn(&View, &PodInfo, &Happening) -> bool;

/// A plugin.
pub struct Plugin {
    /// Upstream's name.
    pub name: &'static str,
    /// Weight of its score unless a profile says otherwise.
    pub weight: i64,
    /// Where it acts.
    pub points: u16,
    /// Its bit in cached verdicts, for filters that look only at labels and taints of the node.
    pub verdict: u8,
    /// Once per pod before filtering.
    pub pre_filter: Option<PreFilter>,
    /// Per node.
    pub filter: Option<Filter>,
    /// While something is tried out.
    pub adjust: Option<Adjust>,
    /// Once per pod before scoring.
    pub pre_score: Option<PreScore>,
    /// Over all nodes left.
    pub score: Option<Score>,
    /// When to try again.
    pub hint: Hint,
    /// The feature without which it does not exist.
    pub feature: Option<Feature>,
}

impl Plugin {
    /// Whether it exists with these gates.
    pub fn exists(&self, gates: Gates) -> bool {
        self.feature.is_none_or(|feature| gates.is_open(feature))
    }
}

const NONE: Plugin = Plugin {
    name: "",
    weight: 0,
    points: 0,
    verdict: 0,
    pre_filter: None,
    filter: None,
    adjust: None,
    pre_score: None,
    score: None,
    hint: |_, _, _| false,
    feature: None,
};

use points::{
    BIND, FILTER, PERMIT, POST_FILTER, PRE_BIND, PRE_ENQUEUE, PRE_FILTER, PRE_SCORE, QUEUE_SORT, RESERVE, SCORE,
};

/// All plugins, in the order in which they run.
pub static PLUGINS: &[Plugin] = &[
    Plugin { name: "SchedulingGates", points: PRE_ENQUEUE, ..NONE },
    Plugin { name: "PrioritySort", points: QUEUE_SORT, ..NONE },
    Plugin {
        name: "NodeUnschedulable",
        points: FILTER,
        verdict: statics::UNSCHEDULABLE,
        hint: statics::taints_changed,
        ..NONE
    },
    Plugin { name: "NodeName", points: FILTER, verdict: statics::NODE_NAME, hint: statics::node_added, ..NONE },
    Plugin {
        name: "TaintToleration",
        weight: 3,
        points: FILTER | PRE_SCORE | SCORE,
        verdict: statics::TAINT,
        pre_score: Some(statics::pre_score_taints),
        score: Some(statics::score_taints),
        hint: statics::taints_changed,
        ..NONE
    },
    Plugin {
        name: "NodeAffinity",
        weight: 2,
        points: PRE_FILTER | FILTER | PRE_SCORE | SCORE,
        verdict: statics::AFFINITY,
        pre_filter: Some(statics::pre_filter_affinity),
        pre_score: Some(statics::pre_score_affinity),
        score: Some(statics::score_affinity),
        hint: statics::labels_changed,
        ..NONE
    },
    Plugin {
        name: "NodePorts",
        points: PRE_FILTER | FILTER,
        pre_filter: Some(ports::pre_filter),
        filter: Some(ports::filter),
        hint: ports::hint,
        ..NONE
    },
    Plugin {
        name: "NodeResourcesFit",
        weight: 1,
        points: PRE_FILTER | FILTER | PRE_SCORE | SCORE,
        filter: Some(fit::filter),
        score: Some(fit::score),
        hint: fit::hint,
        ..NONE
    },
    Plugin {
        name: "VolumeRestrictions",
        points: PRE_FILTER | FILTER,
        pre_filter: Some(volumes::pre_filter_restrictions),
        filter: Some(volumes::filter_restrictions),
        hint: volumes::hint_restrictions,
        ..NONE
    },
    Plugin {
        name: "NodeVolumeLimits",
        points: PRE_FILTER | FILTER,
        pre_filter: Some(volumes::pre_filter_limits),
        filter: Some(volumes::filter_limits),
        hint: volumes::hint_limits,
        ..NONE
    },
    Plugin {
        name: "VolumeBinding",
        points: PRE_FILTER | FILTER | PRE_SCORE | SCORE | RESERVE | PRE_BIND,
        pre_filter: Some(volumes::pre_filter_binding),
        filter: Some(volumes::filter_binding),
        hint: volumes::hint_binding,
        ..NONE
    },
    Plugin {
        name: "VolumeZone",
        points: PRE_FILTER | FILTER,
        pre_filter: Some(volumes::pre_filter_zone),
        filter: Some(volumes::filter_zone),
        hint: volumes::hint_binding,
        ..NONE
    },
    Plugin {
        name: "PodTopologySpread",
        weight: 2,
        points: PRE_FILTER | FILTER | PRE_SCORE | SCORE,
        pre_filter: Some(spread::pre_filter),
        filter: Some(spread::filter),
        adjust: Some(spread::adjust),
        pre_score: Some(spread::pre_score),
        score: Some(spread::score),
        hint: spread::hint,
        ..NONE
    },
    Plugin {
        name: "InterPodAffinity",
        weight: 2,
        points: PRE_FILTER | FILTER | PRE_SCORE | SCORE,
        pre_filter: Some(affinity::pre_filter),
        filter: Some(affinity::filter),
        adjust: Some(affinity::adjust),
        pre_score: Some(affinity::pre_score),
        score: Some(affinity::score),
        hint: affinity::hint,
        ..NONE
    },
    Plugin {
        name: "DynamicResources",
        weight: 2,
        points: PRE_ENQUEUE | PRE_FILTER | FILTER | POST_FILTER | PRE_SCORE | SCORE | RESERVE | PRE_BIND,
        pre_filter: Some(devices::pre_filter),
        filter: Some(devices::filter),
        pre_score: Some(devices::pre_score),
        score: Some(devices::score),
        hint: devices::hint,
        ..NONE
    },
    Plugin { name: "DefaultPreemption", points: POST_FILTER, ..NONE },
    Plugin {
        name: "NodeResourcesBalancedAllocation",
        weight: 1,
        points: PRE_SCORE | SCORE,
        pre_score: Some(fit::pre_score_balanced),
        score: Some(fit::score_balanced),
        ..NONE
    },
    Plugin {
        name: "ImageLocality",
        weight: 1,
        points: SCORE,
        pre_score: Some(images::pre_score),
        score: Some(images::score),
        ..NONE
    },
    Plugin { name: "DefaultBinder", points: BIND, ..NONE },
    Plugin {
        name: "NodeDeclaredFeatures",
        points: PRE_FILTER | FILTER,
        pre_filter: Some(features::pre_filter),
        filter: Some(features::filter),
        hint: features::hint,
        ..NONE
    },
    Plugin {
        name: gang::NAME,
        points: PRE_ENQUEUE | PERMIT,
        hint: gang::hint,
        feature: Some(Feature::GangScheduling),
        ..NONE
    },
];

/// The place of a plugin in [`PLUGINS`].
pub fn index(name: &str) -> Option<usize> {
    PLUGINS.iter().position(|p| p.name == name)
}

/// Brings raw scores to 0..=100: the highest becomes 100, in reverse the lowest stays high.
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let highest = scores.iter().copied().max().unwrap_or(0);
    for score in scores.iter_mut() {
        *score = match (highest, reverse) {
            (0, true) => MAX_SCORE,
            (0, false) => 0,
            (_, true) => MAX_SCORE - MAX_SCORE * *score / highest,
            (_, false) => MAX_SCORE * *score / highest,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_points_hold() {
        for (i, plugin) in PLUGINS.iter().enumerate() {
            assert_eq!(index(plugin.name), Some(i), "{}", plugin.name);
            assert!(plugin.score.is_none() || plugin.weight != 0, "{}: a score needs a weight", plugin.name);
            assert!(plugin.filter.is_none() || plugin.points & FILTER != 0, "{}", plugin.name);
            assert!(plugin.score.is_none() || plugin.points & SCORE != 0, "{}", plugin.name);
        }
    }

    #[test]
    fn scores_are_normalized() {
        for (raw, reverse, expected) in
            [([0, 5, 10], false, [0, 50, 100]), ([0, 5, 10], true, [100, 50, 0]), ([0, 0, 0], true, [100, 100, 100])]
        {
            let mut scores = raw;
            normalize(&mut scores, reverse);
            assert_eq!(scores, expected);
        }
    }
}
