//! Random clusters and pods, small enough that rules meet each other often.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";
const NAMESPACES: [&str; 3] = ["one", "two", "three"];
const APPS: [&str; 3] = ["web", "db", "cache"];
const IMAGES: [&str; 3] = ["registry.k8s.io/a:1", "registry.k8s.io/b:1", "registry.k8s.io/c:1"];

/// A source of objects.
pub struct Maker {
    random: StdRng,
    made: usize,
}

impl Maker {
    /// The same seed makes the same objects.
    pub fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), made: 0 }
    }

    /// A number below `below`.
    pub fn below(&mut self, below: usize) -> usize {
        self.random.random_range(0..below)
    }

    /// True one time in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of some.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        *of.choose(&mut self.random).unwrap_or_else(|| panic!("nothing to choose from"))
    }

    /// One of the namespaces.
    pub fn namespace(&mut self) -> &'static str {
        self.one(&NAMESPACES)
    }

    /// All namespaces.
    pub fn namespaces() -> [&'static str; 3] {
        NAMESPACES
    }

    fn number(&mut self) -> usize {
        self.made += 1;
        self.made
    }

    /// A node.
    pub fn node(&mut self, name: &str) -> Value {
        let mut labels = json!({HOST: name, "disk": self.one(&["ssd", "hdd"]), "size": self.below(4).to_string()});
        if !self.once_in(6) {
            labels[ZONE] = self.one(&["z1", "z2", "z3"]).into();
        }
        let mut taints = Vec::new();
        for key in ["dedicated", "slow"] {
            if self.once_in(4) {
                let effect = self.one(&["NoSchedule", "PreferNoSchedule", "NoExecute"]);
                taints.push(json!({"key": key, "value": self.one(&["x", "y"]), "effect": effect}));
            }
        }
        let images: Vec<Value> = IMAGES
            .iter()
            .filter(|_| self.random.random_bool(0.4))
            .map(|i| json!({"names": [i], "sizeBytes": 300_000_000}))
            .collect();
        let declared = if self.once_in(2) { json!(["RestartAllContainersOnContainerExits"]) } else { Value::Null };
        json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {"taints": taints, "unschedulable": self.once_in(8)},
            "status": {
                "allocatable": {"cpu": self.one(&["2", "4", "3500m"]), "memory": self.one(&["4Gi", "8Gi"]),
                    "pods": self.one(&["4", "10"]), "example.com/gpu": self.one(&["0", "2"])},
                "images": images,
                "declaredFeatures": declared,
            },
        })
    }

    /// A pod without a node.
    pub fn pod(&mut self) -> Value {
        let number = self.number();
        let mut spec = json!({"schedulerName": "default-scheduler", "priority": self.one(&[0, 0, 5, 10])});
        let containers = 1 + self.below(2);
        spec["containers"] = (0..containers).map(|i| self.container(i)).collect();
        if self.once_in(4) {
            spec["initContainers"] = json!([self.container(9)]);
        }
        self.restrictions(&mut spec);
        let mut affinity = json!({});
        self.node_affinity(&mut affinity);
        for which in ["podAffinity", "podAntiAffinity"] {
            self.pod_affinity(&mut affinity, which);
        }
        spec["affinity"] = affinity;
        let rules = self.below(4).saturating_sub(1);
        spec["topologySpreadConstraints"] = (0..rules).map(|_| self.spread()).collect();
        json!({
            "metadata": {"name": format!("pod-{number}"), "uid": format!("uid-{number}"), "namespace": self.namespace(),
                "labels": {"app": self.one(&APPS), "tier": self.one(&["1", "2"])}},
            "spec": spec,
        })
    }

    fn container(&mut self, number: usize) -> Value {
        let mut requests = json!({});
        if !self.once_in(3) {
            requests["cpu"] = self.one(&["100m", "500m", "1"]).into();
        }
        if !self.once_in(3) {
            requests["memory"] = self.one(&["128Mi", "1Gi"]).into();
        }
        if self.once_in(6) {
            requests["example.com/gpu"] = "1".into();
        }
        let mut ports = Vec::new();
        if number == 0 && self.once_in(4) {
            let ip = self.one(&["", "10.0.0.1", "10.0.0.2"]);
            ports.push(json!({"hostPort": self.one(&[80, 443]), "protocol": self.one(&["TCP", "UDP"]), "hostIP": ip}));
        }
        let mut container = json!({"name": format!("c{number}"), "image": self.one(&IMAGES), "resources": {"requests": requests}, "ports": ports});
        if self.once_in(12) {
            let action = self.one(&["Restart", "RestartAllContainers"]);
            container["restartPolicyRules"] =
                json!([{"action": action, "exitCodes": {"operator": "In", "values": [1]}}]);
        }
        container
    }

    fn restrictions(&mut self, spec: &mut Value) {
        if self.once_in(6) {
            spec["nodeSelector"] = json!({"disk": self.one(&["ssd", "hdd"])});
        }
        let mut tolerations = Vec::new();
        if self.once_in(2) {
            let key = self.one(&["dedicated", "slow", "node.kubernetes.io/unschedulable"]);
            let effect = self.one(&["", "NoSchedule", "PreferNoSchedule"]);
            tolerations.push(json!({"key": key, "operator": "Exists", "effect": effect}));
        }
        if self.once_in(3) {
            tolerations.push(json!({"key": "dedicated", "operator": "Equal", "value": "x"}));
        }
        spec["tolerations"] = tolerations.into();
    }

    /// A term of node affinity.
    pub fn node_term(&mut self) -> Value {
        let expression = match self.below(5) {
            0 => json!({"key": "disk", "operator": "In", "values": ["ssd"]}),
            1 => json!({"key": ZONE, "operator": "NotIn", "values": ["z1"]}),
            2 => json!({"key": ZONE, "operator": "Exists"}),
            3 => json!({"key": "size", "operator": "Gt", "values": ["1"]}),
            _ => json!({"key": ZONE, "operator": "DoesNotExist"}),
        };
        json!({"matchExpressions": [expression]})
    }

    fn node_affinity(&mut self, affinity: &mut Value) {
        if self.once_in(5) {
            let terms: Vec<Value> = (0..1 + self.below(2)).map(|_| self.node_term()).collect();
            affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
                json!({"nodeSelectorTerms": terms});
        }
        if self.once_in(3) {
            let terms: Vec<Value> =
                (0..2).map(|_| json!({"weight": 1 + self.below(50), "preference": self.node_term()})).collect();
            affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] = terms.into();
        }
    }

    fn selector(&mut self) -> Value {
        match self.below(8) {
            0 => json!({}),
            1 => Value::Null,
            2 => json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "db"]}]}),
            3 => json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["1"]}]}),
            _ => json!({"matchLabels": {"app": self.one(&APPS)}}),
        }
    }

    fn term(&mut self) -> Value {
        let mut term = json!({"topologyKey": self.one(&[ZONE, HOST, "disk"]), "labelSelector": self.selector()});
        match self.below(5) {
            0 => term["namespaces"] = json!([self.namespace()]),
            1 => term["namespaceSelector"] = json!({"matchLabels": {"team": self.one(&["a", "b"])}}),
            2 => term["namespaceSelector"] = json!({}),
            _ => {}
        }
        term
    }

    fn pod_affinity(&mut self, affinity: &mut Value, which: &str) {
        if self.once_in(5) {
            let terms: Vec<Value> = (0..1 + self.below(2)).map(|_| self.term()).collect();
            affinity[which]["requiredDuringSchedulingIgnoredDuringExecution"] = terms.into();
        }
        if self.once_in(4) {
            let terms: Vec<Value> = (0..1 + self.below(2))
                .map(|_| json!({"weight": 1 + self.below(100), "podAffinityTerm": self.term()}))
                .collect();
            affinity[which]["preferredDuringSchedulingIgnoredDuringExecution"] = terms.into();
        }
    }

    fn spread(&mut self) -> Value {
        let mut rule = json!({
            "maxSkew": 1 + self.below(2), "topologyKey": self.one(&[ZONE, HOST, "disk"]),
            "whenUnsatisfiable": self.one(&["DoNotSchedule", "ScheduleAnyway"]),
            "labelSelector": {"matchLabels": {"app": self.one(&APPS)}},
        });
        if self.once_in(3) {
            rule["nodeAffinityPolicy"] = "Ignore".into();
        }
        if self.once_in(3) {
            rule["nodeTaintsPolicy"] = "Honor".into();
        }
        if self.once_in(4) {
            rule["matchLabelKeys"] = json!(["tier"]);
        }
        if rule["whenUnsatisfiable"] == "DoNotSchedule" && self.once_in(3) {
            rule["minDomains"] = (1 + self.below(4)).into();
        }
        rule
    }
}
