//! Arguments of plugins: each field is taken over or refused.

use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use keelson_machinery::validation::Problems;
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

/// The arguments of one plugin: where they are, and what is wrong with them.
struct Given<'a> {
    path: String,
    plugin: &'a str,
    args: &'a Value,
    problems: Problems,
}

impl Given<'_> {
    /// The path of a field.
    fn at(&self, field: &str) -> String {
        format!("{}.{field}", self.path)
    }

    /// The arguments without what says whose they are.
    fn parsed<T: DeserializeOwned + Default>(&self) -> Result<T, ConfigError> {
        let Self { path, plugin, .. } = self;
        let mut args = match self.args {
            Value::Null => return Ok(T::default()),
            Value::Object(fields) => fields.clone(),
            other => return Err(invalid(path, other, "has to match plugin args")),
        };
        for (field, expected) in [("kind", format!("{plugin}Args")), ("apiVersion", API_VERSIONS[0].to_owned())] {
            if let Some(given) = args.remove(field).filter(|given| *given != *expected) {
                let why = format!("has to match plugin args: {field} of {plugin} is {expected:?}");
                return Err(invalid(path, given, &why));
            }
        }
        serde_json::from_value(Value::Object(args)).map_err(|e| refused(format!("{path}: {plugin}Args: {e}")))
    }

    fn resources(&mut self, list: &[WireResource], field: &str, most: i64) {
        for (i, WireResource { name, weight }) in list.iter().enumerate() {
            let (field, weight) = (self.at(&format!("{field}[{i}].weight")), weight.unwrap_or_default());
            // None is the default, one.
            if weight < 0 || weight > most {
                let why = if most == 1 {
                    "must be 1".to_owned()
                } else {
                    format!("resource weight of {name} not in valid range (0, {most}]")
                };
                self.problems.invalid(field, &weight.into(), &why);
            }
        }
    }

    fn shape(&mut self, points: &[Point], field: &str) {
        let field = self.at(field);
        if points.is_empty() {
            return self.problems.required(field, "at least one point must be specified");
        }
        let descends = points.windows(2).position(|pair| pair[0].utilization >= pair[1].utilization);
        if let Some(i) = descends.map(|i| i + 1) {
            let why = "values must be sorted in increasing order";
            self.problems.invalid(format!("{field}[{i}].utilization"), &points[i].utilization.into(), why);
        }
        for (i, Point { utilization, score }) in points.iter().enumerate() {
            for (name, value, most) in [("utilization", *utilization, 100), ("score", *score, MAX_SHAPE_SCORE)] {
                let why = format!("not in valid range [0, {most}]");
                if !(0..=most).contains(&value) {
                    self.problems.invalid(format!("{field}[{i}].{name}"), &value.into(), &why);
                }
            }
        }
    }

    /// A default constraint: as a pod's, but without a selector.
    fn constraint(&mut self, list: &[TopologySpreadConstraint], i: usize) {
        let (one, path, p) = (&list[i], self.at(&format!("defaultConstraints[{i}]")), &mut self.problems);
        if one.max_skew <= 0 {
            p.invalid(format!("{path}.maxSkew"), &one.max_skew.into(), "not in valid range (0, inf)");
        }
        match one.topology_key.as_str() {
            "" => p.required(format!("{path}.topologyKey"), "can not be empty"),
            key => p.qualified_name(&format!("{path}.topologyKey"), key),
        }
        match one.when_unsatisfiable.as_str() {
            "" => p.required(format!("{path}.whenUnsatisfiable"), "can not be empty"),
            "DoNotSchedule" | "ScheduleAnyway" => {}
            other => {
                let known = ["DoNotSchedule", "ScheduleAnyway"];
                p.not_supported_shown(format!("{path}.whenUnsatisfiable"), &format!("{other:?}"), &known);
            }
        }
        if one.label_selector.is_some() {
            let why = "constraint must not define a selector, as they deduced for each pod";
            p.forbidden(format!("{path}.labelSelector"), why);
        }
        let same = |other: &TopologySpreadConstraint| {
            (&other.topology_key, &other.when_unsatisfiable) == (&one.topology_key, &one.when_unsatisfiable)
        };
        if list[..i].iter().any(same) {
            let shown = format!("{{{}, {}}}", one.topology_key, one.when_unsatisfiable);
            p.duplicate(path, &shown.into());
        }
    }
}

impl Profile {
    /// Takes over the arguments of a plugin, which are at `path`; tells everything that is wrong with their values.
    pub(super) fn arguments(
        &mut self,
        (path, plugin): (String, &str),
        args: &Value,
        syms: &mut Interner,
    ) -> Result<(), ConfigError> {
        let mut given = Given { path, plugin, args, problems: Problems::default() };
        let all = &mut given;
        match plugin {
            "InterPodAffinity" => self.pod_affinity(all)?,
            "DefaultPreemption" => self.preemption(all)?,
            "NodeResourcesFit" => self.fit(all, syms)?,
            "NodeResourcesBalancedAllocation" => self.balance(all, syms)?,
            "NodeAffinity" => self.node_affinity(&all.parsed()?, syms),
            "PodTopologySpread" => self.spread(all, syms)?,
            "VolumeBinding" => self.volumes(all)?,
            "DynamicResources" => self.device_arguments(all)?,
            other if index(other).is_some() => {
                let NoArgs {} = all.parsed()?;
            }
            other => return Err(refused(format!("pluginConfig names the unknown plugin {other:?}"))),
        }
        match &given.problems.0[..] {
            [] => Ok(()),
            [one] => Err(refused(format!("{}: {}", one.field, one.message))),
            several => {
                let texts: Vec<String> = several.iter().map(|p| format!("{}: {}", p.field, p.message)).collect();
                Err(refused(format!("[{}]", texts.join(", "))))
            }
        }
    }

    fn pod_affinity(&mut self, given: &mut Given<'_>) -> Result<(), ConfigError> {
        let args: AffinityArgs = given.parsed()?;
        self.hard_pod_affinity_weight = args.hard_pod_affinity_weight.unwrap_or(1);
        self.ignore_preferred_terms = args.ignore_preferred_terms_of_existing_pods;
        if !(0..=100).contains(&self.hard_pod_affinity_weight) {
            let (field, weight) = (given.at("hardPodAffinityWeight"), self.hard_pod_affinity_weight);
            given.problems.invalid(field, &weight.into(), "not in valid range [0, 100]");
        }
        Ok(())
    }

    fn preemption(&mut self, given: &mut Given<'_>) -> Result<(), ConfigError> {
        const NAMES: [&str; 2] = ["minCandidateNodesPercentage", "minCandidateNodesAbsolute"];
        let args: PreemptionArgs = given.parsed()?;
        let percentage = args.min_candidate_nodes_percentage.unwrap_or(10);
        let absolute = args.min_candidate_nodes_absolute.unwrap_or(100);
        if !(0..=100).contains(&percentage) {
            given.problems.invalid(given.at(NAMES[0]), &percentage.into(), "not in valid range [0, 100]");
        }
        if absolute < 0 {
            given.problems.invalid(given.at(NAMES[1]), &absolute.into(), "not in valid range [0, inf)");
        }
        if percentage == 0 && absolute == 0 {
            for (name, other) in [(NAMES[0], NAMES[1]), (NAMES[1], NAMES[0])] {
                let why = format!("cannot be zero at the same time as {other}");
                given.problems.invalid(given.at(name), &0.into(), &why);
            }
        }
        let count = |number: i64| usize::try_from(number).unwrap_or_default();
        (self.min_candidates_percentage, self.min_candidates) = (count(percentage), count(absolute));
        Ok(())
    }

    fn fit(&mut self, given: &mut Given<'_>, syms: &mut Interner) -> Result<(), ConfigError> {
        let args: FitArgs = given.parsed()?;
        for (i, name) in args.ignored_resources.iter().enumerate() {
            given.problems.qualified_name(&given.at(&format!("ignoredResources[{i}]")), name);
        }
        for (i, group) in args.ignored_resource_groups.iter().enumerate() {
            let field = given.at(&format!("ignoredResourceGroups[{i}]"));
            if group.contains('/') {
                let why = "resource group name can't contain '/'";
                given.problems.invalid(field.as_str(), &group.as_str().into(), why);
            }
            given.problems.qualified_name(&field, group);
        }
        self.ignored_resources = args.ignored_resources.iter().map(|name| syms.sym(name)).collect();
        self.ignored_groups = args.ignored_resource_groups;
        let Some(strategy) = args.scoring_strategy else { return Ok(()) };
        let resources = strategy.resources.unwrap_or_default();
        given.resources(&resources, "scoringStrategy.resources", MAX_RESOURCE_WEIGHT);
        if !resources.is_empty() {
            self.fit_resources = weighted(&resources, syms);
        }
        let kind = strategy.r#type.unwrap_or_default();
        let ratio = strategy.requested_to_capacity_ratio;
        let of_ratio = kind == "RequestedToCapacityRatio";
        let points = ratio.as_ref().map_or(&[][..], |ratio| &ratio.shape);
        if of_ratio || ratio.is_some() {
            given.shape(points, "scoringStrategy.shape");
        }
        self.strategy = match kind.as_str() {
            _ if of_ratio => Strategy::RequestedToCapacityRatio(scaled(points)),
            "LeastAllocated" => Strategy::LeastAllocated,
            "MostAllocated" => Strategy::MostAllocated,
            other => {
                let known = ["LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"];
                let field = given.at("scoringStrategy.type");
                given.problems.not_supported_shown(field, &format!("{other:?}"), &known);
                return Ok(());
            }
        };
        Ok(())
    }

    fn balance(&mut self, given: &mut Given<'_>, syms: &mut Interner) -> Result<(), ConfigError> {
        let BalanceArgs { resources } = given.parsed()?;
        let resources = resources.unwrap_or_default();
        for (i, one) in resources.iter().enumerate() {
            if resources[..i].iter().any(|before| before.name == one.name) {
                let field = given.at(&format!("resources[{i}].name"));
                given.problems.duplicate(field, &one.name.as_str().into());
            }
        }
        given.resources(&resources, "resources", 1);
        if !resources.is_empty() {
            self.balanced_resources = weighted(&resources, syms).into_iter().map(|r| r.0).collect();
        }
        Ok(())
    }

    fn node_affinity(&mut self, args: &NodeAffinityArgs, syms: &mut Interner) {
        let Some(affinity) = &args.added_affinity else { return };
        let required = affinity.required_during_scheduling_ignored_during_execution.as_ref();
        self.added_affinity = required.map(|r| r.node_selector_terms.iter().map(|t| NodeTerm::new(t, syms)).collect());
        let preferred = affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        self.added_preferences = preferred.map(|p| (p.weight, NodeTerm::new(&p.preference, syms))).collect();
    }

    fn spread(&mut self, given: &mut Given<'_>, syms: &mut Interner) -> Result<(), ConfigError> {
        let args: SpreadArgs = given.parsed()?;
        let list = &args.default_constraints;
        let kind = args.defaulting_type.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("System");
        let (field, shown) = (given.at("defaultingType"), format!("{kind:?}"));
        match kind {
            "System" if list.is_empty() => return Ok(()),
            "System" => given.problems.invalid_shown(field, &shown, "when .defaultConstraints are not empty"),
            "List" => {}
            _ => given.problems.not_supported_shown(field, &shown, &["System", "List"]),
        }
        for i in 0..list.len() {
            given.constraint(list, i);
        }
        self.system_defaults = false;
        self.default_constraints = list.iter().map(|c| Spread::new(c, &Labels::new(), syms)).collect();
        Ok(())
    }

    fn volumes(&mut self, given: &mut Given<'_>) -> Result<(), ConfigError> {
        let args: VolumeArgs = given.parsed()?;
        if let Some(seconds) = args.bind_timeout_seconds {
            self.volume_patience = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
            if seconds < 0 {
                let why = "invalid BindTimeoutSeconds, should not be a negative value";
                given.problems.invalid(given.at("bindTimeoutSeconds"), &seconds.into(), why);
            }
        }
        if let Some(shape) = &args.shape {
            let why = "unexpected field `shape`, remove it or turn on the feature gate StorageCapacityScoring";
            given.problems.invalid(given.at("shape"), shape, why);
        }
        Ok(())
    }

    fn device_arguments(&mut self, given: &mut Given<'_>) -> Result<(), ConfigError> {
        let args: DeviceArgs = given.parsed()?;
        // The search has a limit of steps, so that it needs none of time; a wrong value is refused all the same.
        for (field, text) in [("filterTimeout", args.filter_timeout), ("bindingTimeout", args.binding_timeout)] {
            let Some(text) = text else { continue };
            let (negative, length) = text.strip_prefix('-').map_or((false, text.as_str()), |rest| (true, rest));
            let path = given.at(field);
            let Some(length) = duration(length) else {
                return Err(refused(format!("{path}: time: invalid duration {text:?}")));
            };
            let binds = field == "bindingTimeout";
            if binds && (negative || length < LEAST_DEVICE_PATIENCE) {
                given.problems.invalid(path, &text.into(), "must be at least 1 second");
            } else if binds {
                self.device_patience = length;
            } else if negative {
                given.problems.invalid(path, &text.into(), "must be zero or positive");
            }
        }
        Ok(())
    }
}

/// Resources with their weights; one that has none counts once.
fn weighted(list: &[WireResource], syms: &mut Interner) -> Vec<(Resource, i64)> {
    let mut resource = |name: &str| match name {
        "cpu" => Resource::Cpu,
        "memory" => Resource::Memory,
        other => Resource::Other(syms.sym(other)),
    };
    let weight = |weight: Option<i64>| weight.filter(|weight| *weight != 0).unwrap_or(1);
    list.iter().map(|r| (resource(&r.name), weight(r.weight))).collect()
}

/// A shape with the scores of plugins.
fn scaled(points: &[Point]) -> Vec<(i64, i64)> {
    points.iter().map(|Point { utilization, score }| (*utilization, score * (MAX_SCORE / MAX_SHAPE_SCORE))).collect()
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
