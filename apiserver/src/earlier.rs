//! Kinds of earlier releases, off by default: which of them are served, as admission plugins and `--runtime-config` say.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::admission::{self, pod_preset, security_policy};
use crate::offered;

/// A kind: group and version, plural, the plugin that needs it, its definition.
struct Kind {
    api: (&'static str, &'static str),
    plural: &'static str,
    plugin: &'static str,
    definition: fn() -> Value,
}

/// All of them.
const KINDS: &[Kind] = &[
    Kind {
        api: ("settings.k8s.io", "v1alpha1"),
        plural: "podpresets",
        plugin: pod_preset::NAME,
        definition: pod_preset::definition,
    },
    Kind {
        api: ("policy", "v1beta1"),
        plural: "podsecuritypolicies",
        plugin: security_policy::NAME,
        definition: security_policy::definition,
    },
];

impl Kind {
    /// What `--runtime-config` says of this kind; the most exact key counts.
    fn wanted(&self, pairs: &BTreeMap<String, bool>) -> Option<bool> {
        let api = format!("{}/{}", self.api.0, self.api.1);
        let exact = pairs.get(&format!("{api}/{}", self.plural)).or_else(|| pairs.get(&api));
        exact.or_else(|| pairs.get(offered::class(self.api.1))).or_else(|| pairs.get("api/all")).copied()
    }
}

/// Groups and versions of these kinds: `--runtime-config` may name them.
pub fn versions() -> Vec<(&'static str, &'static str)> {
    KINDS.iter().map(|kind| kind.api).collect()
}

/// The definitions of the kinds that are served. `pairs` are those of `--runtime-config`.
///
/// # Errors
/// In words, what a pair asks for that cannot be had.
pub fn definitions(plugins: &admission::Settings, pairs: &BTreeMap<String, bool>) -> Result<Vec<Value>, String> {
    let mut out = Vec::new();
    for kind in KINDS {
        match (plugins.enables(kind.plugin), kind.wanted(pairs)) {
            (true, Some(false)) => {
                return Err(format!("--runtime-config: the admission plugin {} needs {}", kind.plugin, kind.plural));
            }
            (true, _) | (_, Some(true)) => out.push((kind.definition)()),
            _ => {}
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd;

    #[test]
    fn kinds_are_served_if_a_plugin_or_a_flag_wants_them() {
        let names = |plugins: &[&str], runtime: &[&str]| -> Result<Vec<String>, String> {
            let enabled = plugins.iter().map(|name| (*name).to_owned()).collect();
            let runtime: Vec<String> = runtime.iter().map(|pair| (*pair).to_owned()).collect();
            let settings = admission::Settings { enabled, ..admission::Settings::default() };
            let made = definitions(&settings, &offered::pairs(&runtime)?)?;
            Ok(made.iter().map(|d| d["spec"]["names"]["plural"].as_str().unwrap().to_owned()).collect())
        };
        for (plugins, runtime, expected) in [
            (&[][..], &[][..], Ok(&[][..])),
            (&["PodPreset"], &[], Ok(&["podpresets"])),
            (&["PodSecurityPolicy"], &[], Ok(&["podsecuritypolicies"])),
            (&[], &["policy/v1beta1=true"], Ok(&["podsecuritypolicies"])),
            (&[], &["policy/v1beta1/podsecuritypolicies"], Ok(&["podsecuritypolicies"])),
            (&[], &["api/all=true"], Ok(&["podpresets", "podsecuritypolicies"])),
            (&[], &["api/all=true", "api/alpha=false"], Ok(&["podsecuritypolicies"])),
            (&[], &["apps/v1=true"], Ok(&[])),
            (&[], &["apps/v1=false"], Ok(&[])),
            (&[], &["api/all=true", "policy/v1beta1=false"], Ok(&["podpresets"])),
            (&[], &["policy/v1beta1=maybe"], Err("invalid value")),
            (&["PodSecurityPolicy"], &["policy/v1beta1=false"], Err("needs podsecuritypolicies")),
        ] {
            match (names(plugins, runtime), expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{plugins:?} {runtime:?}"),
                (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
                (got, _) => panic!("{plugins:?} {runtime:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn the_definitions_are_good_ones() {
        for kind in KINDS {
            let mut object = (kind.definition)();
            crd::definition::prepare(&mut object, None);
            let (causes, _) = crd::definition::validate(&object, None);
            // A group without a dot is for the server alone.
            let left: Vec<_> = causes.iter().filter(|cause| cause.field != "spec.group").collect();
            assert!(left.is_empty(), "{}: {left:?}", kind.plural);
        }
    }
}
