//! Which plugins run where: what a profile enables and disables, at all points or at one.

use super::{ConfigError, Enabled, Profile, WirePlugin, WireSet, refused};
use crate::plugins::{PLUGINS, index, points};

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
}

impl Sets {
    /// Upstream's defaults.
    pub(super) fn standard() -> Self {
        Self {
            order: (0..PLUGINS.len()).collect(),
            on: PLUGINS.iter().map(|p| p.points).collect(),
            weights: PLUGINS.iter().map(|p| p.weight.max(1)).collect(),
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
            let plugin = index(name).ok_or_else(|| refused(format!("{} {name:?} does not exist", interface())))?;
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
        Ok(())
    }
}
