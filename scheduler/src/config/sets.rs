//! Which plugins run where: what a profile enables and disables, at all points or at one.

use keelson_machinery::features::{self, Gates};

use super::{ConfigError, Enabled, Profile, WirePlugin, WireSet, refused};
use crate::plugins::{PLUGINS, gang, index, points};

/// Points that a plugin needs for another.
const NEEDS: [(u16, &str, u16, &str); 2] = [
    (
        points::FILTER,
        "filter",
        points::PRE_FILTER | points::RESERVE | points::PRE_BIND,
        "preFilter, reserve and preBind",
    ),
    (points::SCORE, "score", points::PRE_SCORE, "preScore"),
];

/// Plugins while enabling and disabling is applied.
pub(super) struct Sets {
    /// In which order they run.
    order: Vec<usize>,
    /// Where each acts, by its place in [`PLUGINS`].
    on: Vec<u16>,
    /// Weights of their scores.
    weights: Vec<i64>,
    /// Which plugins there are.
    gates: Gates,
}

impl Sets {
    /// Upstream's defaults.
    pub(super) fn standard() -> Self {
        Self::by(features::gates())
    }

    fn by(gates: Gates) -> Self {
        Self {
            order: (0..PLUGINS.len()).collect(),
            on: PLUGINS.iter().map(|p| if p.exists(gates) { p.points } else { 0 }).collect(),
            weights: PLUGINS.iter().map(|p| p.weight.max(1)).collect(),
            gates,
        }
    }

    /// What is said of one point, or of all; the point's name is for refusals.
    pub(super) fn apply(&mut self, set: &WireSet, point: u16, called: &str) -> Result<(), ConfigError> {
        let interface = || format!("{}{}Plugin", called[..1].to_ascii_uppercase(), &called[1..]);
        for WirePlugin { name, .. } in &set.disabled {
            for (on, plugin) in self.on.iter_mut().zip(PLUGINS) {
                if name == "*" || plugin.name == name {
                    *on &= !point;
                }
            }
        }
        for WirePlugin { name, weight } in &set.enabled {
            let plugin = index(name).filter(|plugin| PLUGINS[*plugin].exists(self.gates));
            let plugin = plugin.ok_or_else(|| refused(format!("{} {name:?} does not exist", interface())))?;
            let acts = PLUGINS[plugin].points & point;
            if acts == 0 {
                return Err(refused(format!("plugin {name:?} does not extend {} plugin", interface())));
            }
            if self.on[plugin] == 0 {
                // What was off comes after what was on.
                self.order.retain(|other| *other != plugin);
                self.order.push(plugin);
            }
            self.on[plugin] |= acts;
            if let Some(weight) = weight.filter(|weight| *weight != 0) {
                if acts & points::SCORE != 0 && !(1..=super::MAX_WEIGHT).contains(&weight) {
                    return Err(refused(format!("weight of {name}: {weight} is not in 1..={}", super::MAX_WEIGHT)));
                }
                self.weights[plugin] = weight;
            }
        }
        Ok(())
    }

    fn acts(&self, name: &str, point: u16) -> bool {
        index(name).is_some_and(|plugin| self.on[plugin] & point != 0)
    }

    fn at(&self, point: u16) -> Vec<Enabled> {
        let there = self.order.iter().filter(|plugin| self.on[**plugin] & point != 0);
        there.map(|plugin| Enabled { plugin: *plugin, weight: self.weights[*plugin] }).collect()
    }

    /// Refuses what cannot be done.
    fn check(&self) -> Result<(), ConfigError> {
        for (on, plugin) in self.on.iter().zip(PLUGINS) {
            for (point, name, others, names) in NEEDS {
                let needed = plugin.points & others;
                if on & point != 0 && on & needed != needed {
                    return Err(refused(format!("{} cannot act at {name} without {names}", plugin.name)));
                }
            }
        }
        if !self.acts("PrioritySort", points::QUEUE_SORT) {
            return Err(refused("no queue sort plugin is enabled"));
        }
        Ok(())
    }

    /// Puts the result into a profile.
    pub(super) fn put_into(&self, profile: &mut Profile) -> Result<(), ConfigError> {
        self.check()?;
        profile.filters = self.at(points::FILTER);
        profile.scores = self.at(points::SCORE);
        profile.preempts = self.acts("DefaultPreemption", points::POST_FILTER);
        profile.gates = self.acts("SchedulingGates", points::PRE_ENQUEUE);
        profile.devices = self.acts("DynamicResources", points::FILTER);
        profile.releases = profile.devices && self.acts("DynamicResources", points::POST_FILTER);
        profile.binds = self.acts("DefaultBinder", points::BIND);
        profile.gangs = self.acts(gang::NAME, points::PERMIT);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use keelson_machinery::features::Feature;

    use super::*;

    #[test]
    fn gangs_are_a_plugin_where_their_gate_is_open() {
        let open = Gates::default().with(Feature::GenericWorkload, true).with(Feature::GangScheduling, true);
        let plugin = |name: &str| WirePlugin { name: name.into(), weight: None };
        let enable = WireSet { enabled: vec![plugin(gang::NAME)], disabled: Vec::new() };
        let disable = WireSet { enabled: Vec::new(), disabled: vec![plugin(gang::NAME)] };
        let mut sets = Sets::by(open);
        assert!(sets.acts(gang::NAME, points::PERMIT) && sets.acts(gang::NAME, points::PRE_ENQUEUE));
        sets.apply(&disable, points::PERMIT, "permit").unwrap();
        assert!(!sets.acts(gang::NAME, points::PERMIT) && sets.acts(gang::NAME, points::PRE_ENQUEUE));
        sets.apply(&enable, points::PERMIT, "permit").unwrap();
        assert!(sets.acts(gang::NAME, points::PERMIT));
        let mut sets = Sets::by(Gates::default());
        assert!(!sets.acts(gang::NAME, points::PERMIT));
        let refused = sets.apply(&enable, points::PERMIT, "permit").unwrap_err().to_string();
        assert!(refused.contains("PermitPlugin \"GangScheduling\" does not exist"), "{refused}");
    }
}
