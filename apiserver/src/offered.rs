//! Which of the built-in APIs are offered: all of them, but for alpha and beta versions and for what `--runtime-config` says, as upstream's
//! flag does. A kind behind a closed gate is not there whatever the flag says.
//!
//! Keys are a class (`api/all`, `api/ga`, `api/beta`, `api/alpha`, applied in this order), a version (`apps/v1`, `/v1` for
//! the core group) or one resource of it (`apps/v1/deployments`); what is more exact counts more.

use std::collections::{BTreeMap, BTreeSet};

use keelson_machinery::features::{self, Gates};
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources::RESOURCES;
use tracing::warn;

/// Classes of versions, in the order in which they are applied.
const CLASSES: [&str; 4] = ["api/all", "api/ga", "api/beta", "api/alpha"];

/// What is turned off; rows that are not in the table are never.
#[derive(Clone, Debug)]
pub struct Offered {
    off: BTreeSet<(&'static str, &'static str, &'static str)>,
}

impl Default for Offered {
    /// With no word from an operator.
    fn default() -> Self {
        Self::by(features::gates(), &BTreeMap::new())
    }
}

/// The pairs of `--runtime-config`; of the same key the last one counts.
///
/// # Errors
/// In words, what a pair asks for that cannot be had.
pub fn pairs(given: &[String]) -> Result<BTreeMap<String, bool>, String> {
    let mut out = BTreeMap::new();
    for pair in given {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (key.trim(), value.trim());
        let class = CLASSES.contains(&key);
        let on = match value {
            "" if !class => true,
            "true" => true,
            "false" => false,
            "1" | "t" | "T" | "TRUE" | "True" if !class => true,
            "0" | "f" | "F" | "FALSE" | "False" if !class => false,
            // A class may be named alone here, as other keys may.
            "" => true,
            _ if class => return Err(format!("--runtime-config: invalid value {key}={value}")),
            _ => {
                let why = format!("err: strconv.ParseBool: parsing {value:?}: invalid syntax");
                return Err(format!("--runtime-config: invalid value of {key}: {value}, {why}"));
            }
        };
        if !class && !(2..=3).contains(&key.split('/').count()) {
            return Err(format!("--runtime-config: runtime-config invalid key {key}"));
        }
        out.insert(key.to_owned(), on);
    }
    if out.len() == 1 && out.get("api/all") == Some(&false) {
        return Err("--runtime-config: invalid key with only api/all=false".into());
    }
    Ok(out)
}

/// The class of a version by its name.
pub fn class(version: &str) -> &'static str {
    if version.contains("alpha") {
        "api/alpha"
    } else if version.contains("beta") {
        "api/beta"
    } else {
        "api/ga"
    }
}

impl Offered {
    /// What the pairs leave. `others` are groups and versions that are not in the table and may be named too.
    ///
    /// # Errors
    /// In words, which key names nothing.
    pub fn new(pairs: &BTreeMap<String, bool>, others: &[(&str, &str)]) -> Result<Self, String> {
        for key in pairs.keys().filter(|key| !CLASSES.contains(&key.as_str())) {
            known(key, others)?;
        }
        let gates = features::gates();
        for row in RESOURCES.iter().filter(|row| !is_there(gates, row) && wanted(pairs, row)) {
            warn!(resource = row.qualified(), feature = ?row.feature(), "not served: its feature gate is closed");
        }
        Ok(Self::by(gates, pairs))
    }

    fn by(gates: Gates, pairs: &BTreeMap<String, bool>) -> Self {
        let off = RESOURCES.iter().filter(|row| !(is_there(gates, row) && wanted(pairs, row)));
        Self { off: off.map(|row| (row.group, row.version, row.plural)).collect() }
    }

    /// Whether a row is served.
    pub fn has(&self, row: &ResourceDef) -> bool {
        self.off.is_empty() || !self.off.contains(&(row.group, row.version, row.plural))
    }

    /// The rows of the table that are served.
    pub fn rows(&self) -> impl Iterator<Item = &'static ResourceDef> {
        RESOURCES.iter().filter(|row| self.has(row))
    }

    /// Whether a version of a group has any row left.
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.rows().any(|row| row.group == group && row.version == version)
    }
}

/// Whether the gate of a row is open, if it has one.
fn is_there(gates: Gates, row: &ResourceDef) -> bool {
    row.feature().is_none_or(|feature| gates.is_open(feature))
}

/// Whether a row stays: the most exact key that is about it says so; with none, alpha and beta versions do not.
fn wanted(pairs: &BTreeMap<String, bool>, row: &ResourceDef) -> bool {
    let version = format!("{}/{}", row.group, row.version);
    let resource = format!("{version}/{}", row.plural);
    let exact = pairs.get(&resource).or_else(|| pairs.get(&version));
    let by_class = || pairs.get(class(row.version)).or_else(|| pairs.get("api/all"));
    exact.or_else(by_class).copied().unwrap_or(!row.is_optional())
}

/// Refuses a key whose group or version there is not.
fn known(key: &str, others: &[(&str, &str)]) -> Result<(), String> {
    let mut parts = key.split('/');
    let (group, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let all = || RESOURCES.iter().map(|row| (row.group, row.version)).chain(others.iter().copied());
    if !all().any(|(g, _)| g == group) {
        return Err(format!("--runtime-config: unknown api groups {group}"));
    }
    if !all().any(|known| known == (group, version)) {
        return Err(format!("--runtime-config: group version {group}/{version} that has not been registered"));
    }
    match parts.next() {
        Some(plural) if plural.to_lowercase() != plural => {
            let why = "group/version/resource and resource is always lowercase plural, not";
            Err(format!("--runtime-config: invalid key {key}: {why} {plural:?}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_machinery::resources::find;

    fn offered(given: &[&str]) -> Result<Offered, String> {
        let given: Vec<String> = given.iter().map(|pair| (*pair).to_owned()).collect();
        Offered::new(&pairs(&given)?, &[("policy", "v1beta1")])
    }

    #[test]
    fn the_most_exact_key_counts() {
        let row = |text: &str| {
            let parts: Vec<&str> = text.split('/').collect();
            find(parts[0], parts[1], parts[2]).unwrap()
        };
        for (given, served, gone) in [
            (&["apps/v1=false"][..], "batch/v1/jobs", "apps/v1/deployments"),
            (&["apps/v1/deployments=false"], "apps/v1/daemonsets", "apps/v1/deployments"),
            (&["api/all=false", "apps/v1=true"], "apps/v1/deployments", "batch/v1/jobs"),
            (&["api/all=false", "/v1"], "/v1/pods", "batch/v1/jobs"),
            (&["api/ga=false", "batch/v1/jobs=1"], "batch/v1/jobs", "batch/v1/cronjobs"),
            (
                &["autoscaling/v1=false"],
                "autoscaling/v2/horizontalpodautoscalers",
                "autoscaling/v1/horizontalpodautoscalers",
            ),
            (&["policy/v1beta1=true", "policy/v1=false"], "/v1/pods", "policy/v1/poddisruptionbudgets"),
        ] {
            let offered = offered(given).unwrap();
            assert!(offered.has(row(served)), "{given:?}");
            assert!(!offered.has(row(gone)), "{given:?}");
        }
    }

    #[test]
    fn optional_versions_need_a_word_and_their_gate() {
        let open = Gates::default().with(features::Feature::GenericWorkload, true);
        let row = find("scheduling.k8s.io", "v1alpha2", "podgroups").unwrap();
        for (gates, given, expected) in [
            (open, &[][..], false),
            (open, &["scheduling.k8s.io/v1alpha2=true"], true),
            (open, &["scheduling.k8s.io/v1alpha2/workloads=true"], false),
            (open, &["api/alpha=true"], true),
            (open, &["api/all=true"], true),
            (open, &["api/all=true", "api/alpha=false"], false),
            (Gates::default(), &["scheduling.k8s.io/v1alpha2=true"], false),
            (Gates::default(), &["api/all=true"], false),
        ] {
            let given: Vec<String> = given.iter().map(|pair| (*pair).to_owned()).collect();
            assert_eq!(Offered::by(gates, &pairs(&given).unwrap()).has(row), expected, "{gates:?} {given:?}");
        }
        let open = Gates::default().with(features::Feature::StorageVersionMigrator, true);
        let beta = find("storagemigration.k8s.io", "v1beta1", "storageversionmigrations").unwrap();
        for (gates, given, expected) in [
            (open, &[][..], false),
            (open, &["storagemigration.k8s.io/v1beta1=true"], true),
            (open, &["api/beta=true"], true),
            (open, &["api/alpha=true"], false),
            (Gates::default(), &["storagemigration.k8s.io/v1beta1=true"], false),
        ] {
            let given: Vec<String> = given.iter().map(|pair| (*pair).to_owned()).collect();
            assert_eq!(Offered::by(gates, &pairs(&given).unwrap()).has(beta), expected, "{gates:?} {given:?}");
        }
        assert!(!Offered::default().has(row) && !Offered::default().has_version("scheduling.k8s.io", "v1alpha2"));
        assert!(Offered::default().has_version("scheduling.k8s.io", "v1"));
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for (given, part) in [
            (&["api/all=false"][..], "invalid key with only api/all=false"),
            (&["v1=false"], "runtime-config invalid key v1"),
            (&["apps/v7=true"], "group version apps/v7 that has not been registered"),
            (&["nope/v1=true"], "unknown api groups nope"),
            (&["apps/v1=maybe"], "invalid value of apps/v1: maybe"),
            (&["api/beta=maybe"], "invalid value api/beta=maybe"),
            (&["apps/v1/Deployments=false"], "always lowercase plural"),
        ] {
            assert!(offered(given).unwrap_err().contains(part), "{given:?}");
        }
    }
}
