//! The forms of pods that are measured: what they ask for, and what has to be there before them.

use serde_json::{Value, json};

/// A form of pods.
pub struct Form {
    /// Its name for `--only`.
    pub key: &'static str,
    /// Its name in the report.
    pub name: &'static str,
    /// What the pods' spec says beside containers.
    pub spec: fn(usize) -> Value,
    /// CPU that each asks for.
    pub cpu: &'static str,
    /// Pods, as many as are measured.
    pub pods: usize,
    /// Every n-th pod fits nowhere; 0: all fit.
    pub misfits: usize,
    /// What has to be there before.
    pub before: Before,
}

/// What has to be there before the pods are created.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// Every node is full of less important pods.
    FullNodes,
    /// A claim for each pod that is bound to a volume.
    BoundClaims,
    /// A claim for each pod whose volume is made once the pod has a node.
    OpenClaims,
}

/// CPU of the pods that fill nodes: two of them fill a node.
pub const FILLER_CPU: &str = "1900m";
/// The priority of the others.
pub const PRIORITY_CLASS: &str = "bench-important";
/// Label of nodes: their zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";
/// Zones of the cluster.
pub const ZONES: usize = 10;

const FORM: Form =
    Form { key: "", name: "", spec: |_| json!({}), cpu: "10m", pods: 3_000, misfits: 0, before: Before::Nothing };

fn spread(key: &str, when: &str) -> Value {
    json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"app": "burst"}}}]})
}

fn near(key: &str, label: &str, value: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {label: value}}, "topologyKey": key})
}

fn group(number: usize) -> String {
    format!("g{}", number % 10)
}

fn required(kind: &str, term: Value) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
}

fn preferred(kind: &str, term: Value) -> Value {
    json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 1, "podAffinityTerm": term}]}}})
}

fn in_zones(zones: &[&str]) -> Value {
    json!({"matchExpressions": [{"key": ZONE, "operator": "In", "values": zones}]})
}

fn node_affinity() -> Value {
    json!({"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [in_zones(&["zone-1", "zone-2", "zone-3"])]},
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 5, "preference": in_zones(&["zone-1"])}]}}})
}

fn by_namespace(number: usize) -> Value {
    let mut term = near(HOST, "group", &group(number));
    term["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": "default"}});
    required("podAntiAffinity", term)
}

fn claimant(number: usize) -> Value {
    json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": format!("claim-{number}")}}]})
}

/// The cases; the first is that of the reference figures.
pub const FORMS: &[Form] = &[
    Form { key: "basic", name: "nothing special", pods: 10_000, ..FORM },
    Form { key: "node-affinity", name: "required and preferred node affinity", spec: |_| node_affinity(), ..FORM },
    Form { key: "spread-zones", name: "spread over zones, required", spec: |_| spread(ZONE, "DoNotSchedule"), ..FORM },
    Form { key: "spread-hosts", name: "spread over hosts, required", spec: |_| spread(HOST, "DoNotSchedule"), ..FORM },
    Form {
        key: "spread-preferred",
        name: "spread over hosts, preferred",
        spec: |_| spread(HOST, "ScheduleAnyway"),
        ..FORM
    },
    Form {
        key: "affinity",
        name: "required pod affinity, by zone",
        spec: |_| required("podAffinity", near(ZONE, "app", "burst")),
        ..FORM
    },
    Form {
        key: "affinity-preferred",
        name: "preferred pod affinity, by host",
        spec: |_| preferred("podAffinity", near(HOST, "app", "burst")),
        ..FORM
    },
    Form {
        key: "anti-affinity",
        name: "required pod anti-affinity, by host, ten groups",
        spec: |i| required("podAntiAffinity", near(HOST, "group", &group(i))),
        ..FORM
    },
    Form { key: "anti-affinity-namespaces", name: "the same with a namespace selector", spec: by_namespace, ..FORM },
    Form {
        key: "anti-affinity-preferred",
        name: "preferred pod anti-affinity, by host, ten groups",
        spec: |i| preferred("podAntiAffinity", near(HOST, "group", &group(i))),
        ..FORM
    },
    Form { key: "unschedulable", name: "every fifth fits nowhere", misfits: 5, ..FORM },
    Form { key: "volumes", name: "claims that are bound", spec: claimant, before: Before::BoundClaims, ..FORM },
    Form {
        key: "volumes-late",
        name: "claims whose volume is made for the node",
        spec: claimant,
        before: Before::OpenClaims,
        ..FORM
    },
    Form {
        key: "preemption",
        name: "preemption, one victim each",
        spec: |_| json!({"priorityClassName": PRIORITY_CLASS}),
        cpu: "2",
        pods: 2_000,
        before: Before::FullNodes,
        ..FORM
    },
];

/// A pod of a form.
pub fn pod(app: &str, number: usize, cpu: &str, more: &Value) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("{app}-{number}"), "labels": {"app": app, "group": group(number)}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "registry.k8s.io/pause:3.10",
            "resources": {"requests": {"cpu": cpu, "memory": "16Mi"}}}]}});
    for (key, value) in more.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

impl Form {
    /// One of its pods.
    pub fn pod(&self, number: usize) -> Value {
        let misfit = self.misfits > 0 && number.is_multiple_of(self.misfits);
        pod("burst", number, if misfit { "100" } else { self.cpu }, &(self.spec)(number))
    }

    /// How many of its pods get a node.
    pub fn fitting(&self, pods: usize) -> usize {
        if self.misfits == 0 { pods } else { pods - pods.div_ceil(self.misfits) }
    }
}

/// A claim, and the volume that it is bound to if it is to be bound.
pub fn claim(number: usize, bound: bool) -> (Value, Option<Value>) {
    let name = format!("claim-{number}");
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}});
    let volume = bound.then(|| {
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("volume-{number}")},
            "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Mi"}, "storageClassName": "",
                "persistentVolumeReclaimPolicy": "Retain", "csi": {"driver": "disks.example.com", "volumeHandle": name},
                "claimRef": {"namespace": "default", "name": name}}})
    });
    spec["storageClassName"] = if bound { "".into() } else { "local-path".into() };
    if bound {
        spec["volumeName"] = format!("volume-{number}").into();
    }
    let object = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec});
    (object, volume)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_differ_and_count() {
        let mut keys: Vec<&str> = FORMS.iter().map(|form| form.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), FORMS.len());
        for form in FORMS {
            let misfits =
                (0..50).filter(|i| form.pod(*i)["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "100");
            assert_eq!(form.fitting(50), 50 - misfits.count(), "{}", form.key);
        }
    }
}
