//! KubeSchedulerConfiguration: profiles, plugins and their arguments. What is asked for and not there is refused.

mod arguments;
#[cfg(test)]
mod refusals;
mod sets;

use std::collections::BTreeMap;
use std::time::Duration;

use keelson_machinery::features::{self, Feature};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::class::Spread;
use crate::extender::Extender;
use crate::intern::{Interner, Sym};
use crate::plugins::fit::Resource;
use crate::plugins::{PLUGINS, points};
use crate::selector::NodeTerm;
use sets::Sets;

/// The versions that are read.
const API_VERSIONS: [&str; 1] = ["kubescheduler.config.k8s.io/v1"];
/// The scheduler of pods that name none.
pub const DEFAULT_NAME: &str = "default-scheduler";
/// How long volumes and devices may take to be ready.
const PATIENCE: Duration = Duration::from_secs(600);
/// Highest weight of a score: with more a sum might overflow.
const MAX_WEIGHT: i64 = i32::MAX as i64;

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

/// As upstream tells of a value that a field cannot have.
fn invalid(field: &str, value: impl std::fmt::Display, why: &str) -> ConfigError {
    refused(format!("{field}: Invalid value: {value}: {why}"))
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
    /// Fields that were given and change nothing.
    pub idle: Vec<&'static str>,
    /// Whether pods that name a group are tried together.
    pub groups: bool,
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
    /// Whether idle claims let go of devices so that pods can go elsewhere.
    pub releases: bool,
    /// Whether pods are bound, if no extender does it.
    pub binds: bool,
    /// Whether gangs are bound together or not at all.
    pub gangs: bool,
    /// How long volumes may take to be bound.
    pub volume_patience: Duration,
    /// How long devices may take to be ready.
    pub device_patience: Duration,
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
    /// Prefixes of such resources.
    pub ignored_groups: Vec<String>,
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
    pub fn ignores(&self, resource: Sym, name: &str) -> bool {
        let group = || name.split_once('/').is_some_and(|(group, _)| self.ignored_groups.iter().any(|g| g == group));
        self.ignored_resources.contains(&resource) || (!self.ignored_groups.is_empty() && group())
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Wire {
    api_version: String,
    kind: String,
    parallelism: Option<i64>,
    percentage_of_nodes_to_score: Option<u32>,
    pod_initial_backoff_seconds: Option<u64>,
    pod_max_backoff_seconds: Option<u64>,
    profiles: Vec<WireProfile>,
    extenders: Vec<Value>,
    leader_election: Option<IgnoredAny>,
    client_connection: Option<IgnoredAny>,
    enable_profiling: Option<IgnoredAny>,
    enable_contention_profiling: Option<IgnoredAny>,
    delay_cache_until_active: Option<IgnoredAny>,
}

impl Wire {
    /// Fields that are given and change nothing here: flags decide, or there is nothing to decide.
    fn idle(&self) -> Vec<&'static str> {
        [
            ("parallelism", self.parallelism.is_some()),
            ("leaderElection", self.leader_election.is_some()),
            ("clientConnection", self.client_connection.is_some()),
            ("enableProfiling", self.enable_profiling.is_some()),
            ("enableContentionProfiling", self.enable_contention_profiling.is_some()),
            ("delayCacheUntilActive", self.delay_cache_until_active.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
        .collect()
    }
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
            idle: Vec::new(),
            groups: features::is_open(Feature::GenericWorkload),
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
        if let Some(parallelism) = wire.parallelism.filter(|parallelism| *parallelism < 1) {
            return Err(invalid("parallelism", parallelism, "should be an integer value greater than zero"));
        }
        let mut this = Self { idle: wire.idle(), ..Self::standard(syms) };
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
        if this.initial_backoff.is_zero() {
            return Err(invalid("podInitialBackoffSeconds", 0, "must be greater than 0"));
        }
        if this.max_backoff < this.initial_backoff {
            let why = "must be greater than or equal to PodInitialBackoffSeconds";
            return Err(invalid("podMaxBackoffSeconds", this.max_backoff.as_secs(), why));
        }
        if !wire.profiles.is_empty() {
            this.profiles.clear();
        }
        for (i, profile) in wire.profiles.iter().enumerate() {
            this.profiles.push(Profile::parse(&format!("profiles[{i}]"), profile, syms)?);
        }
        for (i, profile) in this.profiles.iter_mut().enumerate() {
            let own = wire.profiles.get(i).and_then(|p| p.percentage_of_nodes_to_score);
            profile.percentage = own.or(wire.percentage_of_nodes_to_score).unwrap_or(0);
            if profile.percentage > 100 {
                let of = if own.is_some() { format!("profiles[{i}].") } else { String::new() };
                let field = format!("{of}percentageOfNodesToScore");
                return Err(invalid(&field, profile.percentage, "not in valid range [0-100]"));
            }
        }
        if let Some(profile) = this.profiles.iter().find(|p| !p.binds)
            && !this.extenders.iter().any(Extender::binds)
        {
            return Err(refused(format!("profile {:?}: at least one bind plugin is needed", profile.name)));
        }
        for (i, profile) in this.profiles.iter().enumerate() {
            if this.profiles[..i].iter().any(|before| before.name == profile.name) {
                return Err(refused(format!("profiles[{i}].schedulerName: Duplicate value: {:?}", profile.name)));
            }
        }
        Ok(this)
    }
}

impl Profile {
    /// Upstream's default profile under a name.
    pub fn standard(name: &str, syms: &mut Interner) -> Self {
        let spread = |key: &str, max_skew: i32, syms: &mut Interner| Spread {
            max_skew,
            key: syms.sym(key),
            hard: false,
            selector: Default::default(),
            min_domains: 1,
            honor_affinity: true,
            honor_taints: false,
        };
        let at = |point: u16| {
            let rows = PLUGINS.iter().enumerate().filter(move |(_, p)| p.points & point != 0);
            rows.map(|(plugin, p)| Enabled { plugin, weight: p.weight.max(1) }).collect::<Vec<_>>()
        };
        Self {
            name: name.to_owned(),
            percentage: 0,
            filters: at(points::FILTER),
            scores: at(points::SCORE),
            binds: true,
            gangs: features::is_open(Feature::GangScheduling),
            preempts: true,
            gates: true,
            devices: true,
            releases: true,
            volume_patience: PATIENCE,
            device_patience: PATIENCE,
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms: false,
            strategy: Strategy::LeastAllocated,
            fit_resources: vec![(Resource::Cpu, 1), (Resource::Memory, 1)],
            balanced_resources: vec![Resource::Cpu, Resource::Memory],
            ignored_resources: Vec::new(),
            ignored_groups: Vec::new(),
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

    fn parse(path: &str, wire: &WireProfile, syms: &mut Interner) -> Result<Self, ConfigError> {
        let mut this = Self::standard(wire.scheduler_name.as_deref().unwrap_or(DEFAULT_NAME), syms);
        let mut sets = Sets::standard();
        // What is said of a point wins over what is said of all points.
        if let Some(set) = wire.plugins.get("multiPoint") {
            sets.apply(set, u16::MAX, "preFilter")?;
        }
        for (point, set) in wire.plugins.iter().filter(|(p, _)| *p != "multiPoint") {
            let found = points::NAMES.iter().find(|(name, _)| name == point);
            let (_, bits) = found.ok_or_else(|| refused(format!("there is no extension point {point:?}")))?;
            sets.apply(set, *bits, point)?;
        }
        sets.put_into(&mut this)?;
        for (i, WireArgs { name, args }) in wire.plugin_config.iter().enumerate() {
            let path = format!("{path}.pluginConfig[{i}]");
            if wire.plugin_config[..i].iter().any(|before| before.name == *name) {
                return Err(refused(format!("{path}: Duplicate value: {name:?}")));
            }
            this.arguments((format!("{path}.args"), name), args, syms)?;
        }
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::index;
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

    fn plugin(name: &str, args: Value) -> Value {
        json!({"profiles": [{"pluginConfig": [{"name": name, "args": args}]}]})
    }

    fn points(sets: Value) -> Value {
        json!({"profiles": [{"plugins": sets}]})
    }

    #[test]
    fn what_is_given_is_taken_over() {
        let config =
            parse(json!({"parallelism": 16, "leaderElection": {"leaderElect": false}, "profiles": [{"pluginConfig": [
            {"name": "VolumeBinding", "args": {"kind": "VolumeBindingArgs", "bindTimeoutSeconds": 30}},
            {"name": "DynamicResources", "args": {"bindingTimeout": "1m30s"}},
            {"name": "NodeResourcesFit", "args": {"ignoredResourceGroups": ["example.com"]}},
        ], "plugins": {"bind": {"disabled": [{"name": "*"}], "enabled": [{"name": "DefaultBinder"}]}}}]}))
            .unwrap();
        assert_eq!(config.idle, ["parallelism", "leaderElection"]);
        let profile = &config.profiles[0];
        assert_eq!((profile.volume_patience.as_secs(), profile.device_patience.as_secs()), (30, 90));
        assert!(profile.ignores(Sym(9), "example.com/gpu") && !profile.ignores(Sym(9), "other.com/gpu"));
    }

    #[test]
    fn refusals() {
        for (value, part) in [
            (json!({"profils": []}), "unknown field"),
            (json!({"extenders": [{}]}), "urlPrefix"),
            (
                json!({"profiles": [{"plugins": {"score": {"enabled": [{"name": "Nice"}]}}}]}),
                "ScorePlugin \"Nice\" does not exist",
            ),
            (json!({"profiles": [{"plugins": {"scores": {}}}]}), "extension point"),
            (json!({"profiles": [{}, {}]}), "profiles[1].schedulerName: Duplicate value: \"default-scheduler\""),
            (
                json!({"podInitialBackoffSeconds": 20}),
                "podMaxBackoffSeconds: Invalid value: 10: must be greater than or equal to PodInitialBackoffSeconds",
            ),
            (
                json!({"podInitialBackoffSeconds": 0}),
                "podInitialBackoffSeconds: Invalid value: 0: must be greater than 0",
            ),
            (json!({"profiles": [{"pluginConfig": [{"name": "Nice"}]}]}), "unknown plugin"),
            (
                json!({"profiles": [{"pluginConfig": [{"name": "InterPodAffinity", "args": {"weight": 1}}]}]}),
                "unknown field",
            ),
            (
                plugin("ImageLocality", json!([])),
                "profiles[0].pluginConfig[0].args: Invalid value: []: has to match plugin args",
            ),
            (
                json!({"profiles": [{"pluginConfig": [{"name": "ImageLocality"}, {"name": "ImageLocality"}]}]}),
                "profiles[0].pluginConfig[1]: Duplicate value: \"ImageLocality\"",
            ),
            (plugin("ImageLocality", json!({"size": 1})), "unknown field"),
            (plugin("NodeAffinity", json!({"kind": "Other"})), "NodeAffinityArgs"),
            (json!({"parallelism": 0}), "greater than zero"),
            (points(json!({"queueSort": {"disabled": [{"name": "*"}]}})), "queue sort"),
            (points(json!({"bind": {"disabled": [{"name": "DefaultBinder"}]}})), "bind plugin"),
            (points(json!({"preFilter": {"disabled": [{"name": "NodePorts"}]}})), "cannot act at filter"),
            (points(json!({"reserve": {"disabled": [{"name": "VolumeBinding"}]}})), "cannot act at filter"),
            (
                points(json!({"score": {"enabled": [{"name": "NodePorts"}]}})),
                "plugin \"NodePorts\" does not extend ScorePlugin plugin",
            ),
            (points(json!({"score": {"enabled": [{"name": "ImageLocality", "weight": -1}]}})), "is not in"),
            (
                json!({"percentageOfNodesToScore": 101}),
                "percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]",
            ),
            (
                json!({"profiles": [{"percentageOfNodesToScore": 101}]}),
                "profiles[0].percentageOfNodesToScore: Invalid value: 101",
            ),
        ] {
            let error = parse(value.clone()).unwrap_err().to_string();
            assert!(error.contains(part), "{value}: {error}");
        }
    }
}
