//! Kinds of earlier releases, off by default: which of them are served, as admission plugins and `--runtime-config` say.

use serde_json::Value;

use crate::admission::{self, pod_preset, security_policy};

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
    /// Whether a key of `--runtime-config` is about this kind: its version, itself, or a class of APIs.
    fn is(&self, key: &str) -> bool {
        let api = format!("{}/{}", self.api.0, self.api.1);
        key == api || key == format!("{api}/{}", self.plural) || self.class() == key
    }

    /// The class of APIs that it belongs to by its version's name.
    fn class(&self) -> &'static str {
        if self.api.1.contains("alpha") { "api/alpha" } else { "api/beta" }
    }
}

/// The definitions of the kinds that are served. `runtime` are the pairs of `--runtime-config`.
///
/// # Errors
/// In words, what a pair asks for that cannot be had.
pub fn definitions(plugins: &admission::Settings, runtime: &[String]) -> Result<Vec<Value>, String> {
    let mut wanted: Vec<Option<bool>> = vec![None; KINDS.len()];
    for pair in runtime {
        let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
        let on = match value {
            "true" | "" => true,
            "false" => false,
            _ => return Err(format!("--runtime-config: invalid value {pair:?}")),
        };
        let mut known = matches!(key, "api/all" | "api/ga" | "api/beta" | "api/alpha");
        for (kind, wanted) in KINDS.iter().zip(&mut wanted) {
            if kind.is(key) || key == "api/all" {
                *wanted = Some(on);
                known = true;
            }
        }
        let served = keelson_machinery::resources::RESOURCES.iter().any(|row| key == row.api_version());
        match (known, served, on) {
            (true, ..) | (_, true, true) => {}
            (_, true, false) => return Err(format!("--runtime-config: {key} cannot be turned off")),
            (false, false, _) => return Err(format!("--runtime-config: unknown api version {key:?}")),
        }
    }
    let mut out = Vec::new();
    for (kind, wanted) in KINDS.iter().zip(wanted) {
        match (plugins.enables(kind.plugin), wanted) {
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
            let made = definitions(&settings, &runtime)?;
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
            (&[], &["apps/v1=false"], Err("cannot be turned off")),
            (&[], &["apps/v7=true"], Err("unknown api version")),
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
