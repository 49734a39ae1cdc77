//! KubeSchedulerConfiguration: profiles, plugins and their arguments. What is asked for and not there is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::class::Spread;
use crate::extender::Extender;
use crate::intern::{Interner, Sym};
use crate::plugins::fit::Resource;
use crate::plugins::{PLUGINS, index, points};
use crate::selector::{Labels, NodeTerm};

/// The versions that are read.
const API_VERSIONS: [&str; 1] = ["kubescheduler.config.k8s.io/v1"];
/// The scheduler of pods that name none.
pub const DEFAULT_NAME: &str = "default-scheduler";
/// Highest weight of a resource.
const MAX_RESOURCE_WEIGHT: i64 = 100;
/// Highest score of a point of a shape.
const MAX_SHAPE_SCORE: i64 = 10;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not of the form.
    #[error("the scheduler configuration cannot be read: {0}")]
    Form(String),
    /// It asks for something that does not exist or is not served.
    #[error("the scheduler configuration is refused: {0}")]
    Refused(String),
}

fn refused(why: impl Into<String>) -> ConfigError {
    ConfigError::Refused(why.into())
}

/// How the scheduler works.
#[derive(Clone, Debug)]
pub struct Config {
    /// One per scheduler name.
    pub profiles: Vec<Profile>,
    /// Programs that have a say.
    pub extenders: Vec<Extender>,
    /// Pause after a pod's first failed attempt.
    pub initial_backoff: Duration,
    /// Longest pause.
    pub max_backoff: Duration,
}

/// A plugin that runs, and how much its score counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enabled {
    /// Its place in [`PLUGINS`].
    pub plugin: usize,
    /// Weight of its score.
    pub weight: i64,
}

/// How nodes are scored by what they have left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The emptier the better.
    LeastAllocated,
    /// The fuller the better.
    MostAllocated,
    /// By a function of the share in use: points of (percent, score up to 100).
    RequestedToCapacityRatio(Vec<(i64, i64)>),
}

/// How pods of one scheduler name are scheduled.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The name.
    pub name: String,
    /// Percentage of nodes to find before scoring; 0: fewer the more nodes there are.
    pub percentage: u32,
    /// What filters, in order.
    pub filters: Vec<Enabled>,
    /// What scores.
    pub scores: Vec<Enabled>,
    /// Whether more important pods push others out.
    pub preempts: bool,
    /// Whether gates are honoured.
    pub gates: bool,
    /// Whether claims of devices are looked at.
    pub devices: bool,
    /// Weight of placed pods' required affinity towards an incoming pod.
    pub hard_pod_affinity_weight: i64,
    /// Preferences of placed pods do not count.
    pub ignore_preferred_terms: bool,
    /// How nodes are scored by what they have left.
    pub strategy: Strategy,
    /// Resources that this looks at, with weights.
    pub fit_resources: Vec<(Resource, i64)>,
    /// Resources that should be used evenly.
    pub balanced_resources: Vec<Resource>,
    /// Extended resources that filters leave to others.
    pub ignored_resources: Vec<Sym>,
    /// Affinity that all pods of the profile have.
    pub added_affinity: Option<Vec<NodeTerm>>,
    /// Preferences that all pods of the profile have.
    pub added_preferences: Vec<(i32, NodeTerm)>,
    /// Spread constraints of pods that have none.
    pub default_constraints: Vec<Spread>,
    /// These are upstream's own.
    pub system_defaults: bool,
    /// Fewest candidates of preemption, as a percentage of the nodes.
    pub min_candidates_percentage: usize,
    /// Fewest candidates of preemption.
    pub min_candidates: usize,
}

impl Profile {
    /// Whether a resource is left to others.
    pub fn ignores(&self, resource: Sym) -> bool {
        self.ignored_resources.contains(&resource)
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Wire {
    api_version: String,
    kind: String,
    #[allow(dead_code)]
    parallelism: Option<IgnoredAny>,
    percentage_of_nodes_to_score: Option<u32>,
    pod_initial_backoff_seconds: Option<u64>,
    pod_max_backoff_seconds: Option<u64>,
    profiles: Vec<WireProfile>,
    extenders: Vec<Value>,
    // Where the server listens and how it elects a leader is decided by flags here.
    #[allow(dead_code)]
    leader_election: Option<IgnoredAny>,
    #[allow(dead_code)]
    client_connection: Option<IgnoredAny>,
    #[allow(dead_code)]
    enable_profiling: Option<IgnoredAny>,
    #[allow(dead_code)]
    enable_contention_profiling: Option<IgnoredAny>,
    #[allow(dead_code)]
    delay_cache_until_active: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct WireProfile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<u32>,
    plugins: BTreeMap<String, WireSet>,
    plugin_config: Vec<WireArgs>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct WireSet {
    enabled: Vec<WirePlugin>,
    disabled: Vec<WirePlugin>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct WirePlugin {
    name: String,
    weight: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireArgs {
    name: String,
    #[serde(default)]
    args: Value,
}

impl Config {
    /// What runs without a file.
    pub fn standard(syms: &mut Interner) -> Self {
        Self {
            profiles: vec![Profile::standard(DEFAULT_NAME, syms)],
            extenders: Vec::new(),
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(10),
        }
    }

    /// Reads a configuration (as JSON or already parsed YAML).
    pub fn parse(value: Value, syms: &mut Interner) -> Result<Self, ConfigError> {
        let wire: Wire = serde_json::from_value(value).map_err(|e| ConfigError::Form(e.to_string()))?;
        if wire.kind != "KubeSchedulerConfiguration" || !API_VERSIONS.contains(&wire.api_version.as_str()) {
            let (kind, version) = (&wire.kind, &wire.api_version);
            return Err(refused(format!(
                "expected KubeSchedulerConfiguration of {}, not {kind} of {version}",
                API_VERSIONS[0]
            )));
        }
        let mut this = Self::standard(syms);
        for extender in &wire.extenders {
            this.extenders.push(Extender::parse(extender, syms)?);
        }
        if this.extenders.iter().filter(|e| e.binds()).count() > 1 {
            return Err(refused("extenders: found more than one extender that implements bind"));
        }
        if let Some(seconds) = wire.pod_initial_backoff_seconds {
            this.initial_backoff = Duration::from_secs(seconds);
        }
        if let Some(seconds) = wire.pod_max_backoff_seconds {
            this.max_backoff = Duration::from_secs(seconds);
        }
        if this.initial_backoff.is_zero() || this.max_backoff < this.initial_backoff {
            return Err(refused("podInitialBackoffSeconds must be greater than 0 and at most podMaxBackoffSeconds"));
        }
        if !wire.profiles.is_empty() {
            this.profiles.clear();
        }
        for profile in &wire.profiles {
            this.profiles.push(Profile::parse(profile, syms)?);
        }
        for (i, profile) in this.profiles.iter_mut().enumerate() {
            let own = wire.profiles.get(i).and_then(|p| p.percentage_of_nodes_to_score);
            profile.percentage = own.or(wire.percentage_of_nodes_to_score).unwrap_or(0);
            if profile.percentage > 100 {
                return Err(refused("percentageOfNodesToScore: not in valid range [0-100]"));
            }
        }
        let mut names: Vec<&str> = this.profiles.iter().map(|p| p.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|w| w[0] == w[1]) {
            return Err(refused(format!("two profiles have the scheduler name {:?}", pair[0])));
        }
        Ok(this)
    }
}

/// Plugins of the points that matter, while enabling and disabling is applied.
struct Sets {
    filters: Vec<Enabled>,
    scores: Vec<Enabled>,
    others: Vec<usize>,
}

impl Sets {
    fn standard() -> Self {
        let all = |point: u16| {
            let rows = PLUGINS.iter().enumerate().filter(move |(_, p)| p.points & point != 0);
            rows.map(|(plugin, p)| Enabled { plugin, weight: p.weight }).collect::<Vec<_>>()
        };
        let others = (0..PLUGINS.len()).filter(|i| PLUGINS[*i].points & (points::FILTER | points::SCORE) == 0);
        Self { filters: all(points::PRE_FILTER | points::FILTER), scores: all(points::SCORE), others: others.collect() }
    }

    fn apply(&mut self, set: &WireSet, point: u16) -> Result<(), ConfigError> {
        for WirePlugin { name, .. } in &set.disabled {
            let gone = |plugin: usize| name == "*" || PLUGINS[plugin].name == name;
            if point & (points::FILTER | points::PRE_FILTER) != 0 {
                self.filters.retain(|e| !gone(e.plugin));
            }
            if point & points::SCORE != 0 {
                self.scores.retain(|e| !gone(e.plugin));
            }
            if point & (points::POST_FILTER | points::PRE_ENQUEUE) != 0 {
                self.others.retain(|p| !(gone(*p) && PLUGINS[*p].points & point != 0));
            }
        }
        for WirePlugin { name, weight } in &set.enabled {
            let plugin = index(name).ok_or_else(|| refused(format!("there is no plugin {name:?}")))?;
            let row = &PLUGINS[plugin];
            if point != u16::MAX && row.points & point == 0 {
                return Err(refused(format!("plugin {name:?} does not act at this point")));
            }
            let enabled = Enabled { plugin, weight: weight.filter(|w| *w != 0).unwrap_or(row.weight.max(1)) };
            let put = |list: &mut Vec<Enabled>| match list.iter_mut().find(|e| e.plugin == plugin) {
                Some(old) => *old = enabled,
                None => list.push(enabled),
            };
            if row.points & point & (points::FILTER | points::PRE_FILTER) != 0 {
                put(&mut self.filters);
            }
            if row.points & point & points::SCORE != 0 {
                put(&mut self.scores);
            }
            if row.points & (points::FILTER | points::SCORE) == 0 && !self.others.contains(&plugin) {
                self.others.push(plugin);
            }
        }
        Ok(())
    }
}

impl Profile {
    /// Upstream's default profile under a name.
    pub fn standard(name: &str, syms: &mut Interner) -> Self {
        let sets = Sets::standard();
        let spread = |key: &str, max_skew: i32, syms: &mut Interner| Spread {
            max_skew,
            key: syms.sym(key),
            hard: false,
            selector: Default::default(),
            min_domains: 1,
            honor_affinity: true,
            honor_taints: false,
        };
        Self {
            name: name.to_owned(),
            percentage: 0,
            filters: sets.filters,
            scores: sets.scores,
            preempts: true,
            gates: true,
            devices: true,
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms: false,
            strategy: Strategy::LeastAllocated,
            fit_resources: vec![(Resource::Cpu, 1), (Resource::Memory, 1)],
            balanced_resources: vec![Resource::Cpu, Resource::Memory],
            ignored_resources: Vec::new(),
            added_affinity: None,
            added_preferences: Vec::new(),
            default_constraints: vec![
                spread("kubernetes.io/hostname", 3, syms),
                spread("topology.kubernetes.io/zone", 5, syms),
            ],
            system_defaults: true,
            min_candidates_percentage: 10,
            min_candidates: 100,
        }
    }

    fn parse(wire: &WireProfile, syms: &mut Interner) -> Result<Self, ConfigError> {
        let mut this = Self::standard(wire.scheduler_name.as_deref().unwrap_or(DEFAULT_NAME), syms);
        let mut sets = Sets::standard();
        // What is said of a point wins over what is said of all points.
        if let Some(set) = wire.plugins.get("multiPoint") {
            sets.apply(set, u16::MAX)?;
        }
        for (point, set) in wire.plugins.iter().filter(|(p, _)| *p != "multiPoint") {
            let found = points::NAMES.iter().find(|(name, _)| name == point);
            let (_, bits) = found.ok_or_else(|| refused(format!("there is no extension point {point:?}")))?;
            sets.apply(set, *bits)?;
        }
        let has = |name: &str| sets.others.iter().any(|p| PLUGINS[*p].name == name);
        this.preempts = has("DefaultPreemption");
        this.gates = has("SchedulingGates");
        this.devices = sets.filters.iter().any(|f| PLUGINS[f.plugin].name == "DynamicResources");
        this.filters = sets.filters;
        this.scores = sets.scores;
        for WireArgs { name, args } in &wire.plugin_config {
            this.arguments(name, args, syms)?;
        }
        Ok(this)
    }

    fn arguments(&mut self, name: &str, args: &Value, syms: &mut Interner) -> Result<(), ConfigError> {
        let known = |fields: &[&str]| -> Result<(), ConfigError> {
            let mut given = args.as_object().into_iter().flatten().map(|(k, _)| k.as_str());
            let unknown = given.find(|k| !matches!(*k, "apiVersion" | "kind") && !fields.contains(k));
            unknown.map_or(Ok(()), |k| Err(refused(format!("{name}Args has no field {k:?}"))))
        };
        let number = |key: &str, default: i64| args[key].as_i64().unwrap_or(default);
        match name {
            "InterPodAffinity" => {
                known(&["hardPodAffinityWeight", "ignorePreferredTermsOfExistingPods"])?;
                self.hard_pod_affinity_weight = number("hardPodAffinityWeight", 1);
                if !(0..=100).contains(&self.hard_pod_affinity_weight) {
                    return Err(refused("hardPodAffinityWeight: not in valid range [0-100]"));
                }
                self.ignore_preferred_terms = args["ignorePreferredTermsOfExistingPods"].as_bool().unwrap_or(false);
            }
            "DefaultPreemption" => {
                known(&["minCandidateNodesPercentage", "minCandidateNodesAbsolute"])?;
                self.min_candidates_percentage = number("minCandidateNodesPercentage", 10).clamp(0, 100) as usize;
                self.min_candidates = number("minCandidateNodesAbsolute", 100).max(0) as usize;
            }
            "NodeResourcesFit" => {
                known(&["ignoredResources", "ignoredResourceGroups", "scoringStrategy"])?;
                self.fit_arguments(args, syms)?;
            }
            "NodeResourcesBalancedAllocation" => {
                known(&["resources"])?;
                if !args["resources"].is_null() {
                    self.balanced_resources = resources(&args["resources"], syms)?.into_iter().map(|r| r.0).collect();
                }
            }
            "NodeAffinity" => {
                known(&["addedAffinity"])?;
                self.affinity_arguments(&args["addedAffinity"], syms)?;
            }
            "PodTopologySpread" => {
                known(&["defaultConstraints", "defaultingType"])?;
                self.spread_arguments(args, syms)?;
            }
            "VolumeBinding" => known(&["bindTimeoutSeconds", "shape"])?,
            "DynamicResources" => known(&["filterTimeout", "bindingTimeout"])?,
            other if index(other).is_some() => known(&[])?,
            other => return Err(refused(format!("pluginConfig names the unknown plugin {other:?}"))),
        }
        Ok(())
    }

    fn fit_arguments(&mut self, args: &Value, syms: &mut Interner) -> Result<(), ConfigError> {
        let names = args["ignoredResources"].as_array().into_iter().flatten().filter_map(Value::as_str);
        self.ignored_resources = names.map(|n| syms.sym(n)).collect();
        if args["ignoredResourceGroups"].as_array().is_some_and(|g| !g.is_empty()) {
            return Err(refused("ignoredResourceGroups is not served: list the resources in ignoredResources"));
        }
        let strategy = &args["scoringStrategy"];
        if strategy.is_null() {
            return Ok(());
        }
        if !strategy["resources"].is_null() {
            self.fit_resources = resources(&strategy["resources"], syms)?;
        }
        self.strategy = match strategy["type"].as_str().unwrap_or("LeastAllocated") {
            "LeastAllocated" => Strategy::LeastAllocated,
            "MostAllocated" => Strategy::MostAllocated,
            "RequestedToCapacityRatio" => {
                Strategy::RequestedToCapacityRatio(shape(&strategy["requestedToCapacityRatio"]["shape"])?)
            }
            other => return Err(refused(format!("there is no scoring strategy {other:?}"))),
        };
        Ok(())
    }

    fn affinity_arguments(&mut self, added: &Value, syms: &mut Interner) -> Result<(), ConfigError> {
        if added.is_null() {
            return Ok(());
        }
        let affinity: NodeAffinity =
            serde_json::from_value(added.clone()).map_err(|e| ConfigError::Form(e.to_string()))?;
        let required = affinity.required_during_scheduling_ignored_during_execution;
        self.added_affinity = required.map(|r| r.node_selector_terms.iter().map(|t| NodeTerm::new(t, syms)).collect());
        let preferred = affinity.preferred_during_scheduling_ignored_during_execution.unwrap_or_default();
        self.added_preferences = preferred.iter().map(|p| (p.weight, NodeTerm::new(&p.preference, syms))).collect();
        Ok(())
    }

    fn spread_arguments(&mut self, args: &Value, syms: &mut Interner) -> Result<(), ConfigError> {
        let list: Vec<TopologySpreadConstraint> = match &args["defaultConstraints"] {
            Value::Null => Vec::new(),
            list => serde_json::from_value(list.clone()).map_err(|e| ConfigError::Form(e.to_string()))?,
        };
        match args["defaultingType"].as_str() {
            Some("System") if list.is_empty() => return Ok(()),
            Some("System") => return Err(refused("defaultConstraints: when .defaultingType is System, must be empty")),
            Some("List") | None => {}
            Some(other) => return Err(refused(format!("there is no defaultingType {other:?}"))),
        }
        if list.iter().any(|c| c.label_selector.is_some()) {
            return Err(refused("defaultConstraints: constraint must not define a selector"));
        }
        self.system_defaults = false;
        self.default_constraints = list.iter().map(|c| Spread::new(c, &Labels::new(), syms)).collect();
        Ok(())
    }
}

fn resources(list: &Value, syms: &mut Interner) -> Result<Vec<(Resource, i64)>, ConfigError> {
    let mut resources = Vec::new();
    for entry in list.as_array().into_iter().flatten() {
        let name = entry["name"].as_str().ok_or_else(|| refused("a resource without name"))?;
        let weight = entry["weight"].as_i64().unwrap_or(1);
        if !(1..=MAX_RESOURCE_WEIGHT).contains(&weight) {
            return Err(refused(format!("resource weight of {name} not in valid range [1-100]")));
        }
        let resource = match name {
            "cpu" => Resource::Cpu,
            "memory" => Resource::Memory,
            other => Resource::Other(syms.sym(other)),
        };
        resources.push((resource, weight));
    }
    Ok(resources)
}

fn shape(points: &Value) -> Result<Vec<(i64, i64)>, ConfigError> {
    let mut shape = Vec::new();
    for point in points.as_array().into_iter().flatten() {
        let (at, score) = (point["utilization"].as_i64().unwrap_or(0), point["score"].as_i64().unwrap_or(0));
        let ascends = shape.last().is_none_or(|(before, _)| at > *before);
        if !(0..=100).contains(&at) || !(0..=MAX_SHAPE_SCORE).contains(&score) || !ascends {
            return Err(refused("shape: utilization must ascend within 0-100, score must be within 0-10"));
        }
        shape.push((at, score * (crate::plugins::MAX_SCORE / MAX_SHAPE_SCORE)));
    }
    if shape.is_empty() {
        return Err(refused("shape: at least one point must be specified"));
    }
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(mut value: Value) -> Result<Config, ConfigError> {
        value["apiVersion"] = API_VERSIONS[0].into();
        value["kind"] = "KubeSchedulerConfiguration".into();
        Config::parse(value, &mut Interner::default())
    }

    #[test]
    fn profiles() {
        let config = parse(json!({"profiles": [{
            "schedulerName": "packs",
            "plugins": {
                "multiPoint": {"disabled": [{"name": "ImageLocality"}]},
                "score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeResourcesFit", "weight": 5}]},
                "postFilter": {"disabled": [{"name": "DefaultPreemption"}]},
            },
            "pluginConfig": [{"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "MostAllocated"}}}],
        }]}))
        .unwrap();
        let profile = &config.profiles[0];
        assert_eq!(profile.name, "packs");
        let fit = index("NodeResourcesFit").unwrap();
        assert_eq!(profile.scores, [Enabled { plugin: fit, weight: 5 }]);
        assert_eq!(profile.strategy, Strategy::MostAllocated);
        assert!(!profile.preempts && profile.gates);
        assert!(profile.filters.iter().any(|f| f.plugin == fit));
    }

    #[test]
    fn refusals() {
        for (value, part) in [
            (json!({"profils": []}), "unknown field"),
            (json!({"extenders": [{}]}), "urlPrefix"),
            (json!({"profiles": [{"plugins": {"score": {"enabled": [{"name": "Nice"}]}}}]}), "no plugin"),
            (json!({"profiles": [{"plugins": {"scores": {}}}]}), "extension point"),
            (json!({"profiles": [{}, {}]}), "two profiles"),
            (json!({"podInitialBackoffSeconds": 20}), "podMaxBackoffSeconds"),
            (json!({"profiles": [{"pluginConfig": [{"name": "Nice"}]}]}), "unknown plugin"),
            (
                json!({"profiles": [{"pluginConfig": [{"name": "InterPodAffinity", "args": {"weight": 1}}]}]}),
                "no field",
            ),
            (json!({"percentageOfNodesToScore": 101}), "0-100"),
        ] {
            let error = parse(value.clone()).unwrap_err().to_string();
            assert!(error.contains(part), "{value}: {error}");
        }
    }
}
