//! Arguments of plugins: each field is taken over or refused.

use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{API_VERSIONS, ConfigError, Profile, Strategy, invalid, refused};
use crate::class::Spread;
use crate::intern::Interner;
use crate::plugins::fit::Resource;
use crate::plugins::{MAX_SCORE, index};
use crate::selector::{Labels, NodeTerm};

/// Highest weight of a resource.
const MAX_RESOURCE_WEIGHT: i64 = 100;
/// Highest score of a point of a shape.
const MAX_SHAPE_SCORE: i64 = 10;
/// Shortest wait for devices, as upstream allows it.
const LEAST_DEVICE_PATIENCE: Duration = Duration::from_secs(1);

/// Declares arguments: unknown fields are refused, missing ones are the default.
macro_rules! arguments {
    ($($name:ident { $($field:ident: $kind:ty,)* })*) => {$(
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        struct $name { $($field: $kind,)* }
    )*};
}

arguments! {
    AffinityArgs { hard_pod_affinity_weight: Option<i64>, ignore_preferred_terms_of_existing_pods: bool, }
    PreemptionArgs { min_candidate_nodes_percentage: Option<i64>, min_candidate_nodes_absolute: Option<i64>, }
    FitArgs {
        ignored_resources: Vec<String>,
        ignored_resource_groups: Vec<String>,
        scoring_strategy: Option<WireStrategy>,
    }
    WireStrategy {
        r#type: Option<String>,
        resources: Option<Vec<WireResource>>,
        requested_to_capacity_ratio: Option<Ratio>,
    }
    WireResource { name: String, weight: Option<i64>, }
    Ratio { shape: Vec<Point>, }
    Point { utilization: i64, score: i64, }
    BalanceArgs { resources: Option<Vec<WireResource>>, }
    NodeAffinityArgs { added_affinity: Option<NodeAffinity>, }
    SpreadArgs { default_constraints: Vec<TopologySpreadConstraint>, defaulting_type: Option<String>, }
    VolumeArgs { bind_timeout_seconds: Option<i64>, shape: Option<Value>, }
    DeviceArgs { filter_timeout: Option<String>, binding_timeout: Option<String>, }
    NoArgs {}
}

/// The arguments of a plugin without what says whose they are.
fn parsed<T: DeserializeOwned + Default>(plugin: &str, args: &Value) -> Result<T, ConfigError> {
    let mut args = match args {
        Value::Null => return Ok(T::default()),
        Value::Object(fields) => fields.clone(),
        _ => return Err(refused(format!("the arguments of {plugin} are not an object"))),
    };
    for (field, expected) in [("kind", format!("{plugin}Args")), ("apiVersion", API_VERSIONS[0].to_owned())] {
        if let Some(given) = args.remove(field).filter(|given| *given != *expected) {
            return Err(refused(format!("{field} of the arguments of {plugin} is {given}, not {expected:?}")));
        }
    }
    serde_json::from_value(Value::Object(args)).map_err(|e| refused(format!("{plugin}Args: {e}")))
}

impl Profile {
    /// Takes over the arguments of a plugin.
    pub(super) fn arguments(&mut self, name: &str, args: &Value, syms: &mut Interner) -> Result<(), ConfigError> {
        match name {
            "InterPodAffinity" => self.pod_affinity(&parsed(name, args)?),
            "DefaultPreemption" => self.preemption(&parsed(name, args)?),
            "NodeResourcesFit" => self.fit(parsed(name, args)?, syms),
            "NodeResourcesBalancedAllocation" => {
                let BalanceArgs { resources: given } = parsed(name, args)?;
                if let Some(given) = given {
                    self.balanced_resources = resources(&given, syms)?.into_iter().map(|r| r.0).collect();
                }
                Ok(())
            }
            "NodeAffinity" => {
                self.node_affinity(&parsed(name, args)?, syms);
                Ok(())
            }
            "PodTopologySpread" => self.spread(&parsed(name, args)?, syms),
            "VolumeBinding" => self.volumes(&parsed(name, args)?),
            "DynamicResources" => self.device_arguments(&parsed(name, args)?),
            other if index(other).is_some() => parsed::<NoArgs>(name, args).map(drop),
            other => Err(refused(format!("pluginConfig names the unknown plugin {other:?}"))),
        }
    }

    fn pod_affinity(&mut self, args: &AffinityArgs) -> Result<(), ConfigError> {
        self.hard_pod_affinity_weight = args.hard_pod_affinity_weight.unwrap_or(1);
        if !(0..=100).contains(&self.hard_pod_affinity_weight) {
            return Err(invalid("hardPodAffinityWeight", self.hard_pod_affinity_weight, "not in valid range [0, 100]"));
        }
        self.ignore_preferred_terms = args.ignore_preferred_terms_of_existing_pods;
        Ok(())
    }

    fn preemption(&mut self, args: &PreemptionArgs) -> Result<(), ConfigError> {
        let percentage = args.min_candidate_nodes_percentage.unwrap_or(10);
        let absolute = args.min_candidate_nodes_absolute.unwrap_or(100);
        if !(0..=100).contains(&percentage) {
            return Err(invalid("minCandidateNodesPercentage", percentage, "not in valid range [0, 100]"));
        }
        let count = usize::try_from(absolute).map_err(|_| refused("minCandidateNodesAbsolute: must not be below 0"))?;
        if percentage == 0 && absolute == 0 {
            return Err(refused("minCandidateNodesPercentage and minCandidateNodesAbsolute: cannot both be zero"));
        }
        (self.min_candidates_percentage, self.min_candidates) = (percentage as usize, count);
        Ok(())
    }

    fn fit(&mut self, args: FitArgs, syms: &mut Interner) -> Result<(), ConfigError> {
        if let Some(group) = args.ignored_resource_groups.iter().find(|group| group.contains('/')) {
            return Err(refused(format!("ignoredResourceGroups: {group:?}: resource group name can't contain '/'")));
        }
        self.ignored_resources = args.ignored_resources.iter().map(|name| syms.sym(name)).collect();
        self.ignored_groups = args.ignored_resource_groups;
        let Some(strategy) = args.scoring_strategy else { return Ok(()) };
        if let Some(given) = &strategy.resources {
            self.fit_resources = resources(given, syms)?;
        }
        let ratio = strategy.requested_to_capacity_ratio;
        self.strategy = match strategy.r#type.as_deref().unwrap_or("LeastAllocated") {
            "RequestedToCapacityRatio" => {
                Strategy::RequestedToCapacityRatio(shape(&ratio.map_or_else(Vec::new, |ratio| ratio.shape))?)
            }
            _ if ratio.is_some() => return Err(refused("requestedToCapacityRatio is of another scoring strategy")),
            "LeastAllocated" => Strategy::LeastAllocated,
            "MostAllocated" => Strategy::MostAllocated,
            other => return Err(refused(format!("there is no scoring strategy {other:?}"))),
        };
        Ok(())
    }

    fn node_affinity(&mut self, args: &NodeAffinityArgs, syms: &mut Interner) {
        let Some(affinity) = &args.added_affinity else { return };
        let required = affinity.required_during_scheduling_ignored_during_execution.as_ref();
        self.added_affinity = required.map(|r| r.node_selector_terms.iter().map(|t| NodeTerm::new(t, syms)).collect());
        let preferred = affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        self.added_preferences = preferred.map(|p| (p.weight, NodeTerm::new(&p.preference, syms))).collect();
    }

    fn spread(&mut self, args: &SpreadArgs, syms: &mut Interner) -> Result<(), ConfigError> {
        let list = &args.default_constraints;
        match args.defaulting_type.as_deref() {
            Some("System") if list.is_empty() => return Ok(()),
            Some("System") => return Err(refused("defaultConstraints: when .defaultingType is System, must be empty")),
            Some("List") | None => {}
            Some(other) => return Err(refused(format!("there is no defaultingType {other:?}"))),
        }
        if list.iter().any(|c| c.label_selector.is_some()) {
            return Err(refused("defaultConstraints: constraint must not define a selector"));
        }
        if list.iter().any(|c| c.max_skew < 1 || c.topology_key.is_empty()) {
            return Err(refused("defaultConstraints: maxSkew must be above 0 and topologyKey be given"));
        }
        self.system_defaults = false;
        self.default_constraints = list.iter().map(|c| Spread::new(c, &Labels::new(), syms)).collect();
        Ok(())
    }

    fn volumes(&mut self, args: &VolumeArgs) -> Result<(), ConfigError> {
        if args.shape.is_some() {
            return Err(refused(
                "VolumeBindingArgs.shape needs the scoring of storage capacity, which is off by default",
            ));
        }
        if let Some(seconds) = args.bind_timeout_seconds {
            let seconds = u64::try_from(seconds).map_err(|_| refused("bindTimeoutSeconds: must not be below 0"))?;
            self.volume_patience = Duration::from_secs(seconds);
        }
        Ok(())
    }

    fn device_arguments(&mut self, args: &DeviceArgs) -> Result<(), ConfigError> {
        let read = |name: &str, text: &str| {
            duration(text).ok_or_else(|| refused(format!("{name}: {text:?} is no duration, as 10s or 1m30s")))
        };
        if let Some(text) = &args.binding_timeout {
            self.device_patience = read("bindingTimeout", text)?;
            if self.device_patience < LEAST_DEVICE_PATIENCE {
                return Err(refused("bindingTimeout: must be at least 1s"));
            }
        }
        // The search has a limit of steps, so that it needs none of time; a wrong value is refused all the same.
        args.filter_timeout.as_deref().map_or(Ok(()), |text| read("filterTimeout", text).map(drop))
    }
}

fn resources(list: &[WireResource], syms: &mut Interner) -> Result<Vec<(Resource, i64)>, ConfigError> {
    let mut resources = Vec::new();
    for WireResource { name, weight } in list {
        let weight = weight.filter(|weight| *weight != 0).unwrap_or(1);
        if name.is_empty() {
            return Err(refused("a resource without name"));
        }
        if !(1..=MAX_RESOURCE_WEIGHT).contains(&weight) {
            return Err(refused(format!("resource weight of {name} not in valid range [1-100]")));
        }
        let resource = match name.as_str() {
            "cpu" => Resource::Cpu,
            "memory" => Resource::Memory,
            other => Resource::Other(syms.sym(other)),
        };
        resources.push((resource, weight));
    }
    Ok(resources)
}

fn shape(points: &[Point]) -> Result<Vec<(i64, i64)>, ConfigError> {
    let mut shape: Vec<(i64, i64)> = Vec::new();
    for Point { utilization: at, score } in points {
        let ascends = shape.last().is_none_or(|(before, _)| at > before);
        if !(0..=100).contains(at) || !(0..=MAX_SHAPE_SCORE).contains(score) || !ascends {
            return Err(refused("shape: utilization must ascend within 0-100, score must be within 0-10"));
        }
        shape.push((*at, score * (MAX_SCORE / MAX_SHAPE_SCORE)));
    }
    if shape.is_empty() {
        return Err(refused("shape: at least one point must be specified"));
    }
    Ok(shape)
}

/// A duration as in `1h30m`, `1.5s`, `300ms`.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut sum) = (text, Duration::ZERO);
    if text == "0" {
        return Some(sum);
    }
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit = &rest[end..];
        let (length, seconds) = [("ms", 0.001), ("us", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)]
            .into_iter()
            .find_map(|(name, seconds)| unit.starts_with(name).then_some((name.len(), seconds)))?;
        sum = sum.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &unit[length..];
        if rest.is_empty() {
            return Some(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("0", Some(0)),
            ("10m0s", Some(600_000)),
            ("1h30m", Some(5_400_000)),
            ("1.5s", Some(1500)),
            ("300ms", Some(300)),
            ("", None),
            ("5", None),
            ("5x", None),
            ("s", None),
            ("-1s", None),
        ] {
            assert_eq!(duration(text).map(|d| d.as_millis()), millis, "{text:?}");
        }
    }
}
