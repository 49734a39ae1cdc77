//! Reads how lists, maps and objects are merged from the comments of the `k8s-pb` crate, whose messages carry the markers
//! of the API's sources (`+listType=map`, `+patchMergeKey=name`, ...). What that crate does not have is in
//! [`SAME_AS`] and [`SETS`].

use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Markers of one field.
#[derive(Clone, Default)]
pub struct Marks {
    /// `atomic`, `set`, `map` or "" for lists.
    pub list: String,
    /// Keys of a list map.
    pub keys: Vec<String>,
    /// Whether a map or object is one value.
    pub atomic: bool,
    /// Key by which strategic merge patches merge the list; `-` merges plain values; "" replaces.
    pub merge_key: String,
    /// Whether strategic merge patches replace the keys that they do not retain.
    pub retain_keys: bool,
    /// Whether strategic merge patches replace it, if it is an object.
    pub replaced: bool,
}

/// Markers of all messages: by type path, then by field name without separators in lower case.
#[derive(Default)]
pub struct Markers {
    fields: HashMap<String, HashMap<String, Marks>>,
    atomic: Vec<String>,
}

/// Types without markers of their own there, with the ones whose markers they share.
const SAME_AS: &[(&str, &str)] = &[
    (
        "api.admissionregistration.v1.MutatingAdmissionPolicySpec",
        "api.admissionregistration.v1beta1.MutatingAdmissionPolicySpec",
    ),
    ("api.core.v1.EphemeralContainer", "api.core.v1.EphemeralContainerCommon"),
    ("api.admissionregistration.v1.RuleWithOperations", "api.admissionregistration.v1.Rule"),
    ("api.admissionregistration.v1.NamedRuleWithOperations", "api.admissionregistration.v1.Rule"),
    ("api.admissionregistration.v1.NamedRuleWithOperations", "api.admissionregistration.v1.RuleWithOperations"),
];

/// Lists of newer types that are merged by a key: type, field, key, and whether a patch replaces the keys that it does not
/// retain (absent: patches replace the whole list).
const KEYED: &[(&str, &str, &str, Option<bool>)] = &[
    ("api.scheduling.v1alpha2.PodGroupSpec", "resourceClaims", "name", Some(true)),
    ("api.scheduling.v1alpha2.PodGroupStatus", "conditions", "type", Some(false)),
    ("api.scheduling.v1alpha2.PodGroupStatus", "resourceClaimStatuses", "name", Some(true)),
    ("api.scheduling.v1alpha2.PodGroupTemplate", "resourceClaims", "name", Some(true)),
    ("api.scheduling.v1alpha2.WorkloadSpec", "podGroupTemplates", "name", None),
];

/// Lists of newer types: how they are merged.
const LISTS: &[(&str, &str, &str)] = &[
    ("api.scheduling.v1alpha2.PodGroupSchedulingConstraints", "topology", "atomic"),
    ("api.core.v1.NodeAllocatableResourceClaimStatus", "containers", "set"),
    ("api.core.v1.PodStatus", "nodeAllocatableResourceClaimStatuses", "atomic"),
    ("api.resource.v1.DeviceAttribute", "bools", "atomic"),
    ("api.resource.v1.DeviceAttribute", "ints", "atomic"),
    ("api.resource.v1.DeviceAttribute", "strings", "atomic"),
    ("api.resource.v1.DeviceAttribute", "versions", "atomic"),
];

impl Markers {
    /// Reads all messages below a directory; `module` is the path so far.
    pub fn collect(&mut self, directory: &Path, module: &str) -> std::io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            let inner = if module.is_empty() { name.clone() } else { format!("{module}.{name}") };
            if path.is_dir() {
                self.collect(&path, &inner)?;
            } else if name == "mod.rs" {
                self.read(module, &fs::read_to_string(&path)?);
            }
        }
        Ok(())
    }

    /// The markers of a field.
    pub fn field(&self, kind: &str, json: &str) -> Marks {
        if let Some((.., list)) = LISTS.iter().find(|(of, name, _)| (*of, *name) == (kind, json)) {
            return Marks { list: (*list).into(), ..Marks::default() };
        }
        if let Some((.., key, patch)) = KEYED.iter().find(|(of, name, ..)| (*of, *name) == (kind, json)) {
            let merge_key = patch.map_or("", |_| key);
            return Marks {
                list: "map".into(),
                keys: vec![(*key).into()],
                merge_key: merge_key.into(),
                retain_keys: *patch == Some(true),
                ..Marks::default()
            };
        }
        let same = SAME_AS.iter().filter(|(new, _)| *new == kind).map(|(_, old)| *old);
        let mut found =
            same.chain([kind]).filter_map(|kind| self.fields.get(&key(kind)).and_then(|f| f.get(&plain(json))));
        found.next().cloned().unwrap_or_default()
    }

    /// Whether an object type is one value.
    pub fn is_atomic(&self, kind: &str) -> bool {
        self.atomic.contains(&key(kind))
    }

    fn read(&mut self, module: &str, source: &str) {
        let (mut kind, mut marks, mut atomic) = (String::new(), Marks::default(), false);
        for line in source.lines().map(str::trim) {
            if let Some(marker) = line.strip_prefix("/// +") {
                note(marker.trim_start_matches("k8s:"), &mut marks, &mut atomic);
            } else if let Some(name) = line.strip_prefix("pub struct ") {
                kind = format!("{module}.{}", plain(name.trim_end_matches(" {").trim_end_matches('{').trim()));
                if std::mem::take(&mut atomic) {
                    self.atomic.push(kind.clone());
                }
                marks = Marks::default();
            } else if let Some((field, _)) = line.strip_prefix("pub ").and_then(|l| l.split_once(':')) {
                let field = plain(field.trim_start_matches("r#"));
                marks.atomic |= std::mem::take(&mut atomic);
                self.fields.entry(kind.clone()).or_default().insert(field, std::mem::take(&mut marks));
            }
        }
    }
}

fn note(marker: &str, marks: &mut Marks, atomic: &mut bool) {
    let (name, value) = marker.split_once('=').unwrap_or((marker, ""));
    match name {
        "listType" => marks.list = value.into(),
        "listMapKey" if !marks.keys.iter().any(|k| k == value) => marks.keys.push(value.into()),
        "structType" | "mapType" if value == "atomic" => *atomic = true,
        "patchMergeKey" => marks.merge_key = value.into(),
        "patchStrategy" => {
            marks.retain_keys |= value.contains("retainKeys");
            marks.replaced |= value == "replace";
            if value.contains("merge") && marks.merge_key.is_empty() {
                marks.merge_key = "-".into();
            }
        }
        _ => {}
    }
}

/// The path of a type with its name as [`plain`] has it: messages write acronyms as words.
fn key(path: &str) -> String {
    let (module, name) = path.rsplit_once('.').unwrap_or(("", path));
    format!("{module}.{}", plain(name))
}

/// A name without case and separators: `pod_i_ps` and `podIPs` are the same field.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '_' | '-')).flat_map(char::to_lowercase).collect()
}
