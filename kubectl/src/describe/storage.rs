//! Persistent volumes, claims on them, and classes of storage.

use serde_json::Value;

use super::common::{annotations, events, labels, marks, on_a_line};
use super::pod::yes;
use super::sheet::{Sheet, row};
use super::volumes::source;
use crate::value::{Read, ago, amount, date, or};

/// Access modes in their short forms.
fn modes(list: &Value) -> String {
    const SHORT: [(&str, &str); 4] =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let have = list.texts();
    SHORT.iter().filter(|(long, _)| have.contains(long)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

fn class(object: &Value) -> String {
    let annotation = object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].text();
    or(annotation, object["spec"]["storageClassName"].text()).to_owned()
}

fn status(w: &mut Sheet, object: &Value) {
    let deleted = &object["metadata"]["deletionTimestamp"];
    match deleted.is_there() {
        true => row!(w, 0, "Status:\tTerminating (lasts {})", ago(deleted)),
        false => row!(w, 0, "Status:\t{}", object["status"]["phase"].text()),
    }
}

/// Describes a persistent volume.
pub fn volume(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    let spec = &object["spec"];
    row!(w, 0, "Name:\t{}", object["metadata"]["name"].text());
    marks(w, object);
    row!(w, 0, "Finalizers:\t[{}]", object["metadata"]["finalizers"].texts().join(" "));
    row!(w, 0, "StorageClass:\t{}", class(object));
    status(w, object);
    let claim = &spec["claimRef"];
    let claim = match claim.is_there() {
        true => format!("{}/{}", claim["namespace"].text(), claim["name"].text()),
        false => String::new(),
    };
    row!(w, 0, "Claim:\t{claim}");
    row!(w, 0, "Reclaim Policy:\t{}", spec["persistentVolumeReclaimPolicy"].text());
    row!(w, 0, "Access Modes:\t{}", modes(&spec["accessModes"]));
    if spec["volumeMode"].is_there() {
        row!(w, 0, "VolumeMode:\t{}", spec["volumeMode"].text());
    }
    row!(w, 0, "Capacity:\t{}", amount(&spec["capacity"]["storage"]));
    affinity(w, &spec["nodeAffinity"]["required"]);
    row!(w, 0, "Message:\t{}", object["status"]["message"].text());
    row!(w, 0, "Source:");
    source(w, spec, true);
    events(w, found);
}

fn affinity(w: &mut Sheet, required: &Value) {
    row!(w, 0, "Node Affinity:\t{}", if required.is_there() { "" } else { "<none>" });
    if required.is_null() {
        return;
    }
    let terms = required["nodeSelectorTerms"].items();
    row!(w, 1, "Required Terms:\t{}", if terms.is_empty() { "<none>" } else { "" });
    for (at, term) in terms.iter().enumerate() {
        expressions(w, 2, at, term["matchExpressions"].items());
    }
}

fn expressions(w: &mut Sheet, level: usize, term: usize, all: &[Value]) {
    let indent = "  ".repeat(level);
    w.put(&format!("{indent}Term {term}:\t"));
    if all.is_empty() {
        w.put("<none>\n");
    }
    for (at, e) in all.iter().enumerate() {
        if at > 0 {
            w.put(&format!("{indent}\t"));
        }
        let mut text = format!("{} {}", e["key"].text(), or(&e["operator"].text().to_lowercase(), "in"));
        if !e["values"].items().is_empty() {
            text += &format!(" [{}]", e["values"].texts().join(", "));
        }
        w.put(&text);
        w.put("\n");
    }
}

/// Describes a claim; `pods` use it.
pub fn claim(w: &mut Sheet, object: &Value, pods: &[Value], found: Option<Vec<Value>>) {
    body(w, object, "", true);
    let mut names: Vec<String> = pods.iter().map(|p| p["metadata"]["name"].text().to_owned()).collect();
    names.sort();
    super::common::below(w, "", "Used By", &names);
    let conditions = object["status"]["conditions"].items();
    if !conditions.is_empty() {
        row!(w, 0, "Conditions:");
        row!(w, 1, "Type\tStatus\tLastProbeTime\tLastTransitionTime\tReason\tMessage");
        row!(w, 1, "----\t------\t-----------------\t------------------\t------\t-------");
    }
    for c in conditions {
        let (probe, changed) = (date(&c["lastProbeTime"]), date(&c["lastTransitionTime"]));
        let (kind, status) = (c["type"].text(), c["status"].text());
        row!(w, 1, "{kind} \t{status} \t{probe} \t{changed} \t{} \t{}", c["reason"].text(), c["message"].text());
    }
    events(w, found);
}

/// The template of an ephemeral volume's claim, inside a pod's description.
pub fn template(w: &mut Sheet, template: &Value) {
    if template.is_there() {
        body(w, template, "    ", false);
    }
}

/// A map inside a volume: each part of a line is indented, as the original does.
fn indented(w: &mut Sheet, title: &str, map: &Value, sign: &str) {
    let entries: Vec<String> = map.pairs().into_iter().map(|(k, v)| format!("    {k}{sign}{v}")).collect();
    let none = if entries.is_empty() { "    <none>\n" } else { "" };
    w.put(&format!("    {title}:\t{none}"));
    for (at, entry) in entries.iter().enumerate() {
        w.put(&format!("{}{entry}\n", if at == 0 { "" } else { "        \t" }));
    }
}

fn body(w: &mut Sheet, object: &Value, indent: &str, whole: bool) {
    let (metadata, spec) = (&object["metadata"], &object["spec"]);
    if whole {
        super::common::names(w, object);
    }
    row!(w, 0, "{indent}StorageClass:\t{}", class(object));
    if whole {
        status(w, object);
    }
    let volume = spec["volumeName"].text();
    row!(w, 0, "{indent}Volume:\t{volume}");
    if whole {
        labels(w, "Labels", &metadata["labels"]);
        annotations(w, "Annotations", &metadata["annotations"]);
        row!(w, 0, "Finalizers:\t[{}]", metadata["finalizers"].texts().join(" "));
    } else {
        indented(w, "Labels", &metadata["labels"], "=");
        indented(w, "Annotations", &metadata["annotations"], ": ");
    }
    let (capacity, modes) = match volume {
        "" => (String::new(), String::new()),
        _ => (amount(&object["status"]["capacity"]["storage"]), modes(&object["status"]["accessModes"])),
    };
    row!(w, 0, "{indent}Capacity:\t{capacity}");
    row!(w, 0, "{indent}Access Modes:\t{modes}");
    if spec["volumeMode"].is_there() {
        row!(w, 0, "{indent}VolumeMode:\t{}", spec["volumeMode"].text());
    }
    let from = &spec["dataSource"];
    if from.is_there() {
        row!(w, 0, "{indent}DataSource:");
        if from["apiGroup"].is_there() {
            row!(w, 1, "{indent}APIGroup:\t{}", from["apiGroup"].text());
        }
        row!(w, 1, "{indent}Kind:\t{}", from["kind"].text());
        row!(w, 1, "{indent}Name:\t{}", from["name"].text());
    }
}

/// Describes a class of storage.
pub fn storage_class(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    let annotations = &object["metadata"]["annotations"];
    row!(w, 0, "Name:\t{}", object["metadata"]["name"].text());
    let is_default =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
            .iter()
            .any(|key| annotations[key] == "true");
    row!(w, 0, "IsDefaultClass:\t{}", if is_default { "Yes" } else { "No" });
    row!(w, 0, "Annotations:\t{}", on_a_line(annotations));
    row!(w, 0, "Provisioner:\t{}", object["provisioner"].text());
    row!(w, 0, "Parameters:\t{}", on_a_line(&object["parameters"]));
    let grows = &object["allowVolumeExpansion"];
    row!(w, 0, "AllowVolumeExpansion:\t{}", if grows.is_there() { yes(grows) } else { "<unset>" });
    let options = object["mountOptions"].texts();
    row!(w, 0, "MountOptions:{}", if options.is_empty() { "\t<none>" } else { "" });
    options.into_iter().for_each(|o| row!(w, 1, "{o}"));
    for (label, field) in [("ReclaimPolicy", "reclaimPolicy"), ("VolumeBindingMode", "volumeBindingMode")] {
        if object[field].is_there() {
            row!(w, 0, "{label}:\t{}", object[field].text());
        }
    }
    if object["allowedTopologies"].is_there() {
        let terms = object["allowedTopologies"].items();
        row!(w, 0, "AllowedTopologies:\t{}", if terms.is_empty() { "<none>" } else { "" });
        for (at, term) in terms.iter().enumerate() {
            expressions(w, 1, at, term["matchLabelExpressions"].items());
        }
    }
    events(w, found);
}

/// Describes a class of volume attributes.
pub fn attributes_class(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    row!(w, 0, "Name:\t{}", object["metadata"]["name"].text());
    row!(w, 0, "Annotations:\t{}", on_a_line(&object["metadata"]["annotations"]));
    row!(w, 0, "DriverName:\t{}", object["driverName"].text());
    row!(w, 0, "Parameters:\t{}", on_a_line(&object["parameters"]));
    events(w, found);
}

/// Describes a node's storage drivers.
pub fn csi_node(w: &mut Sheet, object: &Value, found: Option<Vec<Value>>) {
    row!(w, 0, "Name:\t{}", object["metadata"]["name"].text());
    marks(w, object);
    row!(w, 0, "CreationTimestamp:\t{}", date(&object["metadata"]["creationTimestamp"]));
    row!(w, 0, "Spec:");
    if object["spec"]["drivers"].is_there() {
        row!(w, 1, "Drivers:");
    }
    for driver in object["spec"]["drivers"].items() {
        row!(w, 2, "{}:", driver["name"].text());
        row!(w, 3, "Node ID:\t{}", driver["nodeID"].text());
        if driver["allocatable"]["count"].is_there() {
            row!(w, 3, "Allocatables:");
            row!(w, 4, "Count:\t{}", driver["allocatable"]["count"].number());
        }
        if driver["topologyKeys"].is_there() {
            row!(w, 3, "Topology Keys:\t[{}]", driver["topologyKeys"].texts().join(" "));
        }
    }
    events(w, found);
}
