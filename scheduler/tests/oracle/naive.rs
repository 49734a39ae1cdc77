//! The documented semantics, written down as directly as possible: over plain JSON, counting everything anew for each question.

mod volumes;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
pub use volumes::DRIVER;

/// A cluster as lists of objects.
#[derive(Default, Clone)]
pub struct Cluster {
    /// Nodes.
    pub nodes: Vec<Value>,
    /// Pods that have a node.
    pub pods: Vec<Value>,
    /// Labels of namespaces.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// Pods for which preemption makes room, and where.
    pub nominated: Vec<(Value, String)>,
    /// Arguments of the plugins.
    pub args: BTreeMap<String, Value>,
    /// Claims by namespace and name.
    pub claims: BTreeMap<(String, String), Value>,
    /// Volumes by name.
    pub volumes: BTreeMap<String, Value>,
    /// Storage classes by name.
    pub classes: BTreeMap<String, Value>,
    /// Node and volume of each attachment.
    pub attachments: BTreeMap<usize, (String, String)>,
    /// Most volumes of the driver on a node.
    pub limits: BTreeMap<String, i64>,
    /// Pods without constraints of their own are spread by those of the system, for the services that select them: namespace
    /// and selector.
    pub services: Option<Vec<(String, Value)>>,
}

fn list<'a>(value: &'a Value) -> impl Iterator<Item = &'a Value> + Clone + 'a {
    value.as_array().map_or(&[][..], |a| &a[..]).iter()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

fn namespace(object: &Value) -> &str {
    text(&object["metadata"]["namespace"])
}

fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["labels"].get(key)?.as_str()
}

fn required(affinity: &Value) -> &Value {
    &affinity["requiredDuringSchedulingIgnoredDuringExecution"]
}

fn preferred(affinity: &Value) -> &Value {
    &affinity["preferredDuringSchedulingIgnoredDuringExecution"]
}

fn requirement(r: &Value, value: Option<&str>) -> bool {
    let listed = value.is_some_and(|v| list(&r["values"]).any(|w| text(w) == v));
    match text(&r["operator"]) {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        op => {
            let (Some(a), Some(b)) = (value.and_then(|v| v.parse::<i64>().ok()), text(&r["values"][0]).parse().ok())
            else {
                return false;
            };
            if op == "Gt" { a > b } else { a < b }
        }
    }
}

/// Whether a label selector selects labels; null selects nothing.
fn selects(selector: &Value, get: impl Fn(&str) -> Option<String>) -> bool {
    if selector.is_null() {
        return false;
    }
    selector["matchLabels"].as_object().into_iter().flatten().all(|(k, v)| get(k).as_deref() == v.as_str())
        && list(&selector["matchExpressions"]).all(|r| requirement(r, get(text(&r["key"])).as_deref()))
}

fn selects_pod(selector: &Value, pod: &Value) -> bool {
    selects(selector, |k| label(pod, k).map(str::to_owned))
}

/// Whether a constraint of a pod counts another: by its selector, and by the values that the pod has of its keys.
fn spread_selects(constraint: &Value, owner: &Value, other: &Value) -> bool {
    let same = |key: &Value| label(owner, text(key)).is_none_or(|value| label(other, text(key)) == Some(value));
    selects_pod(&constraint["labelSelector"], other) && list(&constraint["matchLabelKeys"]).all(same)
}

fn tolerates(pod: &Value, taint: &Value, only_preferences: bool) -> bool {
    list(&pod["spec"]["tolerations"]).any(|t| {
        let any = |key: &str| text(&t[key]).is_empty();
        if only_preferences && !any("effect") && text(&t["effect"]) != "PreferNoSchedule" {
            return false;
        }
        (any("effect") || t["effect"] == taint["effect"])
            && (any("key") || t["key"] == taint["key"])
            && (t["operator"] == "Exists" || (!any("key") && text(&t["value"]) == text(&taint["value"])))
    })
}

fn untolerated(pod: &Value, node: &Value) -> bool {
    list(&node["spec"]["taints"]).any(|t| t["effect"] != "PreferNoSchedule" && !tolerates(pod, t, false))
}

fn term_holds(term: &Value, node: &Value) -> bool {
    let (labels, fields) = (list(&term["matchExpressions"]), list(&term["matchFields"]));
    (labels.clone().count() > 0 || fields.clone().count() > 0)
        && labels.clone().all(|r| requirement(r, label(node, text(&r["key"]))))
        && fields.clone().all(|r| requirement(r, Some(name(node))))
}

fn affine(pod: &Value, node: &Value) -> bool {
    let selector = pod["spec"]["nodeSelector"].as_object().into_iter().flatten();
    let affinity = required(&pod["spec"]["affinity"]["nodeAffinity"]);
    selector.into_iter().all(|(k, v)| label(node, k) == v.as_str())
        && (affinity.is_null() || list(&affinity["nodeSelectorTerms"]).any(|t| term_holds(t, node)))
}

fn amount(value: &Value, milli: bool) -> i64 {
    let quantity = text(value);
    let factor = if milli { 1000 } else { 1 };
    let plain = |t: &str| t.parse::<i64>().unwrap_or(0);
    for (unit, by) in [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30)] {
        if let Some(number) = quantity.strip_suffix(unit) {
            return plain(number) * by * factor;
        }
    }
    match quantity.strip_suffix('m') {
        Some(thousandths) if milli => plain(thousandths),
        _ => plain(quantity) * factor,
    }
}

/// What a pod requests of a resource: all containers, or the largest of those that run before.
fn request(pod: &Value, resource: &str, default: i64) -> i64 {
    let of = |c: &Value| match c["resources"]["requests"].get(resource) {
        Some(quantity) => amount(quantity, resource == "cpu"),
        None => default,
    };
    let running: i64 = list(&pod["spec"]["containers"]).map(of).sum();
    running.max(list(&pod["spec"]["initContainers"]).map(of).max().unwrap_or(0))
}

fn ports(pod: &Value) -> Vec<(i64, String, String)> {
    let or =
        |value: &Value, default: &str| if text(value).is_empty() { default.into() } else { text(value).to_owned() };
    let all = list(&pod["spec"]["containers"]).flat_map(|c| list(&c["ports"]));
    all.filter_map(|p| Some((p["hostPort"].as_i64()?, or(&p["protocol"], "TCP"), or(&p["hostIP"], "0.0.0.0"))))
        .collect()
}

/// The value at `x` of lines through points; scores of points are tenths.
fn on_line(shape: &Value, x: i64) -> i64 {
    let points: Vec<(i64, i64)> =
        list(shape).map(|p| (p["utilization"].as_i64().unwrap_or(0), p["score"].as_i64().unwrap_or(0) * 10)).collect();
    let Some(after) = points.iter().position(|(at, _)| x <= *at) else { return points[points.len() - 1].1 };
    if after == 0 {
        return points[0].1;
    }
    let ((x0, y0), (x1, y1)) = (points[after - 1], points[after]);
    y0 + (y1 - y0) * (x - x0) / (x1 - x0)
}

impl Cluster {
    fn on<'a>(&'a self, node: &'a Value) -> impl Iterator<Item = &'a Value> {
        self.pods.iter().filter(|p| text(&p["spec"]["nodeName"]) == name(node))
    }

    fn node_of(&self, pod: &Value) -> Option<&Value> {
        self.nodes.iter().find(|n| name(n) == text(&pod["spec"]["nodeName"]))
    }

    fn used(&self, node: &Value, resource: &str, default: i64) -> i64 {
        self.on(node).map(|p| request(p, resource, default)).sum()
    }

    /// The plugin that refuses a node, if one does; also if the more important pods come for which room is made there.
    pub fn refuses(&self, pod: &Value, node: &Value) -> Option<&'static str> {
        let priority = |p: &Value| p["spec"]["priority"].as_i64().unwrap_or(0);
        let here = |(other, at): &&(Value, String)| at == name(node) && priority(other) >= priority(pod);
        let coming: Vec<&(Value, String)> = self.nominated.iter().filter(here).collect();
        if !coming.is_empty() {
            let mut with = self.clone();
            for (other, at) in coming {
                let mut placed = other.clone();
                placed["spec"]["nodeName"] = at.as_str().into();
                with.pods.push(placed);
            }
            let crowded = with.refuses_now(pod, node, self.affinity_matters(pod));
            if crowded.is_some() {
                return crowded;
            }
        }
        self.refuses_now(pod, node, true)
    }

    fn refuses_now(&self, pod: &Value, node: &Value, affinity: bool) -> Option<&'static str> {
        let cordon = serde_json::json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"});
        if node["spec"]["unschedulable"] == true && !tolerates(pod, &cordon, false) {
            return Some("NodeUnschedulable");
        }
        if untolerated(pod, node) {
            return Some("TaintToleration");
        }
        let added = required(&self.argument("NodeAffinity", "addedAffinity"))["nodeSelectorTerms"].clone();
        if !affine(pod, node) || (!added.is_null() && !list(&added).any(|t| term_holds(t, node))) {
            return Some("NodeAffinity");
        }
        let conflict = |a: &(i64, String, String), b: &(i64, String, String)| {
            a.0 == b.0 && a.1 == b.1 && (a.2 == b.2 || a.2 == "0.0.0.0" || b.2 == "0.0.0.0")
        };
        if ports(pod).iter().any(|a| self.on(node).any(|p| ports(p).iter().any(|b| conflict(a, b)))) {
            return Some("NodePorts");
        }
        let allocatable = |resource: &str| amount(&node["status"]["allocatable"][resource], resource == "cpu");
        let lacks = |resource: &&str| {
            let wanted = request(pod, resource, 0);
            wanted > 0 && wanted > allocatable(resource) - self.used(node, resource, 0)
        };
        if self.on(node).count() as i64 + 1 > allocatable("pods")
            || ["cpu", "memory", "example.com/gpu"].iter().any(lacks)
        {
            return Some("NodeResourcesFit");
        }
        if let Some(plugin) = self.volumes_refuse(pod, node) {
            return Some(plugin);
        }
        if !self.spread_allows(pod, node) {
            return Some("PodTopologySpread");
        }
        if affinity && !self.affinity_allows(pod, node) {
            return Some("InterPodAffinity");
        }
        let restarts = |c: &Value| list(&c["restartPolicyRules"]).any(|r| r["action"] == "RestartAllContainers");
        let needs = list(&pod["spec"]["containers"]).chain(list(&pod["spec"]["initContainers"])).any(restarts);
        let declares =
            || list(&node["status"]["declaredFeatures"]).any(|f| f == "RestartAllContainersOnContainerExits");
        (needs && !declares()).then_some("NodeDeclaredFeatures")
    }

    /// Whether the pod or one that has a node requires something: otherwise the plugin is left out, as upstream leaves it out,
    /// and what pods require that have no node yet does not count.
    fn affinity_matters(&self, pod: &Value) -> bool {
        let own = |which: &str| list(required(&pod["spec"]["affinity"][which])).count() > 0;
        let kept_out = |other: &Value, at: &Value| {
            list(required(&other["spec"]["affinity"]["podAntiAffinity"]))
                .any(|t| self.term_selects(t, other, pod) && label(at, text(&t["topologyKey"])).is_some())
        };
        own("podAffinity")
            || own("podAntiAffinity")
            || self.pods.iter().any(|other| self.node_of(other).is_some_and(|at| kept_out(other, at)))
    }

    fn argument(&self, plugin: &str, name: &str) -> Value {
        self.args.get(plugin).map_or(Value::Null, |args| args[name].clone())
    }

    fn constraints(&self, pod: &Value, when: &str) -> Vec<Value> {
        let all =
            self.defaults(pod).unwrap_or_else(|| list(&pod["spec"]["topologySpreadConstraints"]).cloned().collect());
        all.into_iter().filter(|c| c["whenUnsatisfiable"] == when).collect()
    }

    /// The system's constraints for a pod that has none: none too if no service selects it.
    fn defaults(&self, pod: &Value) -> Option<Vec<Value>> {
        let services = self.services.as_ref()?;
        if list(&pod["spec"]["topologySpreadConstraints"]).next().is_some() {
            return None;
        }
        let mut labels = serde_json::Map::new();
        for (_, selector) in services.iter().filter(|(of, _)| of == namespace(pod)) {
            if selects_pod(&serde_json::json!({"matchLabels": selector}), pod) {
                labels.extend(selector.as_object().cloned().unwrap_or_default());
            }
        }
        if labels.is_empty() {
            return Some(Vec::new());
        }
        let rule = |key: &str, skew: i64| {
            serde_json::json!({"maxSkew": skew, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels}})
        };
        Some(vec![rule("kubernetes.io/hostname", 3), rule("topology.kubernetes.io/zone", 5)])
    }

    fn included(&self, constraint: &Value, pod: &Value, node: &Value) -> bool {
        (constraint["nodeAffinityPolicy"] == "Ignore" || affine(pod, node))
            && (constraint["nodeTaintsPolicy"] != "Honor" || !untolerated(pod, node))
    }

    fn counted(&self, constraint: &Value, pod: &Value, node: &Value) -> i64 {
        let counts = |p: &&Value| {
            namespace(p) == namespace(pod)
                && p["metadata"]["deletionTimestamp"].is_null()
                && spread_selects(constraint, pod, p)
        };
        self.on(node).filter(counts).count() as i64
    }

    fn spread_allows(&self, pod: &Value, node: &Value) -> bool {
        let rules = self.constraints(pod, "DoNotSchedule");
        let has_all = |n: &Value| rules.iter().all(|c| label(n, text(&c["topologyKey"])).is_some());
        rules.iter().all(|c| {
            let key = text(&c["topologyKey"]);
            let Some(domain) = label(node, key) else { return false };
            let mut domains: BTreeMap<&str, i64> = BTreeMap::new();
            for other in self.nodes.iter().filter(|n| has_all(n) && self.included(c, pod, n)) {
                *domains.entry(label(other, key).unwrap_or_default()).or_default() += self.counted(c, pod, other);
            }
            let few = (domains.len() as i64) < c["minDomains"].as_i64().unwrap_or(1);
            let least = if few { 0 } else { domains.values().copied().min().unwrap_or(0) };
            let itself = i64::from(spread_selects(c, pod, pod));
            domains.get(domain).copied().unwrap_or(0) + itself - least <= c["maxSkew"].as_i64().unwrap_or(1)
        })
    }

    /// Whether a term of a pod selects another.
    fn term_selects(&self, term: &Value, owner: &Value, other: &Value) -> bool {
        let by_labels = &term["namespaceSelector"];
        let none = BTreeMap::new();
        let labels = self.namespaces.get(namespace(other)).unwrap_or(&none);
        let inside = if list(&term["namespaces"]).count() == 0 && by_labels.is_null() {
            namespace(owner) == namespace(other)
        } else {
            list(&term["namespaces"]).any(|n| text(n) == namespace(other))
                || selects(by_labels, |k| labels.get(k).cloned())
        };
        inside && selects_pod(&term["labelSelector"], other)
    }

    /// Whether two nodes are in one domain of a label.
    fn together(&self, key: &Value, a: &Value, b: &Value) -> bool {
        label(a, text(key)).is_some() && label(a, text(key)) == label(b, text(key))
    }

    fn affinity_allows(&self, pod: &Value, node: &Value) -> bool {
        let near = required(&pod["spec"]["affinity"]["podAffinity"]);
        let apart = required(&pod["spec"]["affinity"]["podAntiAffinity"]);
        let placed = || self.pods.iter().filter_map(|p| Some((p, self.node_of(p)?)));
        let kept_out = placed().any(|(p, at)| {
            list(required(&p["spec"]["affinity"]["podAntiAffinity"]))
                .any(|t| self.term_selects(t, p, pod) && self.together(&t["topologyKey"], node, at))
        });
        let keeps_out = list(apart).any(|t| {
            placed().any(|(p, at)| self.term_selects(t, pod, p) && self.together(&t["topologyKey"], node, at))
        });
        let all = |other: &Value| list(near).all(|t| self.term_selects(t, pod, other));
        let keys = list(near).all(|t| label(node, text(&t["topologyKey"])).is_some());
        let satisfied =
            list(near).all(|t| placed().any(|(p, at)| all(p) && self.together(&t["topologyKey"], node, at)));
        let nobody =
            list(near).all(|t| !placed().any(|(p, at)| all(p) && label(at, text(&t["topologyKey"])).is_some()));
        !kept_out && !keeps_out && keys && (satisfied || (nobody && all(pod)))
    }

    /// The score of each of the nodes by a plugin.
    pub fn score(&self, plugin: &str, pod: &Value, nodes: &[&Value]) -> Vec<i64> {
        let each = |of: &dyn Fn(&Value) -> i64| nodes.iter().map(|n| of(n)).collect::<Vec<_>>();
        match plugin {
            "TaintToleration" => {
                let raw = each(&|n| {
                    let soft = list(&n["spec"]["taints"]).filter(|t| t["effect"] == "PreferNoSchedule");
                    soft.filter(|t| !tolerates(pod, t, true)).count() as i64
                });
                let most = raw.iter().copied().max().unwrap_or(0);
                raw.into_iter().map(|s| if most == 0 { 100 } else { 100 - 100 * s / most }).collect()
            }
            "NodeAffinity" => {
                let raw = each(&|n| {
                    let added = self.argument("NodeAffinity", "addedAffinity");
                    let terms = list(preferred(&pod["spec"]["affinity"]["nodeAffinity"]));
                    terms
                        .chain(list(preferred(&added)))
                        .filter(|t| term_holds(&t["preference"], n))
                        .map(|t| t["weight"].as_i64().unwrap_or(0))
                        .sum()
                });
                let most = raw.iter().copied().max().unwrap_or(0);
                raw.into_iter().map(|s| if most == 0 { 0 } else { 100 * s / most }).collect()
            }
            "NodeResourcesFit" => each(&|n| self.by_strategy(pod, n)),
            "NodeResourcesBalancedAllocation" => each(&|n| self.balanced(pod, n)),
            "ImageLocality" => each(&|n| self.images(pod, n)),
            // Without claims that have alternatives all nodes are equal to it; claims have tests of their own.
            "DynamicResources" => each(&|_| 0),
            "PodTopologySpread" => self.spread_scores(pod, nodes),
            "InterPodAffinity" => self.affinity_scores(pod, nodes),
            other => panic!("the oracle does not know {other}"),
        }
    }

    fn by_strategy(&self, pod: &Value, node: &Value) -> i64 {
        let strategy = self.argument("NodeResourcesFit", "scoringStrategy");
        let standard = serde_json::json!([{"name": "cpu", "weight": 1}, {"name": "memory", "weight": 1}]);
        let resources = if strategy["resources"].is_null() { &standard } else { &strategy["resources"] };
        let (mut sum, mut weights) = (0, 0);
        for resource in list(resources) {
            let (which, weight) = (text(&resource["name"]), resource["weight"].as_i64().unwrap_or(1));
            let default = match which {
                "cpu" => 100,
                "memory" => 200 << 20,
                _ => 0,
            };
            let (own, allocatable) =
                (request(pod, which, default), amount(&node["status"]["allocatable"][which], which == "cpu"));
            // An extended resource counts only for pods that want it.
            if allocatable == 0 || own == 0 {
                continue;
            }
            let requested = self.used(node, which, default) + own;
            let score = match text(&strategy["type"]) {
                "MostAllocated" => requested.min(allocatable) * 100 / allocatable,
                "RequestedToCapacityRatio" => {
                    let share = if requested > allocatable { 100 } else { requested * 100 / allocatable };
                    on_line(&strategy["requestedToCapacityRatio"]["shape"], share)
                }
                _ if requested > allocatable => 0,
                _ => (allocatable - requested) * 100 / allocatable,
            };
            if strategy["type"] == "RequestedToCapacityRatio" && score == 0 {
                continue;
            }
            sum += score * weight;
            weights += weight;
        }
        match (weights, text(&strategy["type"])) {
            (0, _) => 0,
            (_, "RequestedToCapacityRatio") => (sum as f64 / weights as f64).round() as i64,
            _ => sum / weights,
        }
    }

    fn balanced(&self, pod: &Value, node: &Value) -> i64 {
        if ["cpu", "memory"].iter().all(|r| request(pod, r, 0) == 0) {
            return 0;
        }
        let even = |with_pod: bool| {
            let share = |resource: &&str| {
                let allocatable = amount(&node["status"]["allocatable"][resource], *resource == "cpu");
                let own = if with_pod { request(pod, resource, 0) } else { 0 };
                let used = self.used(node, resource, 0) + own;
                (allocatable > 0).then(|| (used as f64 / allocatable as f64).min(1.0))
            };
            let shares: Vec<f64> = ["cpu", "memory"].iter().filter_map(share).collect();
            let deviation = if let [a, b] = shares[..] { ((a - b) / 2.0).abs() } else { 0.0 };
            ((1.0 - deviation) * 100.0) as i64
        };
        50 + (50 + even(true) - even(false)) / 2
    }

    fn images(&self, pod: &Value, node: &Value) -> i64 {
        let size = |node: &Value, image: &str| {
            let has = |i: &&Value| list(&i["names"]).any(|n| text(n) == image);
            list(&node["status"]["images"]).find(has).and_then(|i| i["sizeBytes"].as_i64())
        };
        let images: Vec<&Value> =
            list(&pod["spec"]["containers"]).chain(list(&pod["spec"]["initContainers"])).map(|c| &c["image"]).collect();
        let sum: i64 = (images.iter())
            .filter_map(|image| {
                let here = size(node, text(image))?;
                let nodes = self.nodes.iter().filter(|n| size(n, text(image)).is_some()).count();
                Some((here as f64 * (nodes as f64 / self.nodes.len() as f64)) as i64)
            })
            .sum();
        let (least, most) = (23 << 20, (1000 << 20) * images.len() as i64);
        100 * (sum.clamp(least, most) - least) / (most - least)
    }

    fn spread_scores(&self, pod: &Value, nodes: &[&Value]) -> Vec<i64> {
        let rules = self.constraints(pod, "ScheduleAnyway");
        // Nodes that lack a label do not count, but they do for the system's constraints.
        let lenient = self.defaults(pod).is_some();
        let has_all = |n: &Value| lenient || rules.iter().all(|c| label(n, text(&c["topologyKey"])).is_some());
        let candidates: Vec<&&Value> = nodes.iter().filter(|n| has_all(n)).collect();
        let raw = |node: &Value| {
            let mut score = 0.0;
            for c in &rules {
                let key = text(&c["topologyKey"]);
                let domains: BTreeSet<_> = candidates.iter().map(|n| label(n, key).unwrap_or_default()).collect();
                if label(node, key).is_none() {
                    continue;
                }
                let (pods, size) = if key == "kubernetes.io/hostname" {
                    (self.counted(c, pod, node), candidates.len())
                } else {
                    let mine = |n: &&Value| {
                        has_all(n) && self.together(&c["topologyKey"], n, node) && self.included(c, pod, n)
                    };
                    (self.nodes.iter().filter(mine).map(|n| self.counted(c, pod, n)).sum(), domains.len())
                };
                score += pods as f64 * (size as f64 + 2.0).ln() + (c["maxSkew"].as_i64().unwrap_or(1) - 1) as f64;
            }
            score.round() as i64
        };
        let raws: Vec<Option<i64>> = nodes.iter().map(|n| has_all(n).then(|| raw(n))).collect();
        let (least, most) =
            (raws.iter().flatten().min().copied().unwrap_or(0), raws.iter().flatten().max().copied().unwrap_or(0));
        let normal = |score: i64| if most == 0 { 100 } else { 100 * (most + least - score) / most };
        raws.into_iter().map(|r| r.map_or(0, normal)).collect()
    }

    fn affinity_scores(&self, pod: &Value, nodes: &[&Value]) -> Vec<i64> {
        let affinity = |p: &'_ Value, which: &str| p["spec"]["affinity"][which].clone();
        let weight = |t: &Value| t["weight"].as_i64().unwrap_or(0);
        let hard = self.argument("InterPodAffinity", "hardPodAffinityWeight").as_i64().unwrap_or(1);
        let ignores = self.argument("InterPodAffinity", "ignorePreferredTermsOfExistingPods") == true;
        let raw = |node: &Value| {
            let mut sum = 0;
            for (other, at) in self.pods.iter().filter_map(|p| Some((p, self.node_of(p)?))) {
                for (which, sign) in [("podAffinity", 1), ("podAntiAffinity", -1)] {
                    for t in list(preferred(&affinity(pod, which))) {
                        let term = &t["podAffinityTerm"];
                        if self.term_selects(term, pod, other) && self.together(&term["topologyKey"], node, at) {
                            sum += sign * weight(t);
                        }
                    }
                    for t in list(preferred(&affinity(other, which))).filter(|_| !ignores) {
                        let term = &t["podAffinityTerm"];
                        if self.term_selects(term, other, pod) && self.together(&term["topologyKey"], node, at) {
                            sum += sign * weight(t);
                        }
                    }
                }
                for term in list(required(&affinity(other, "podAffinity"))) {
                    if self.term_selects(term, other, pod) && self.together(&term["topologyKey"], node, at) {
                        sum += hard;
                    }
                }
            }
            sum
        };
        let raws: Vec<i64> = nodes.iter().map(|n| raw(n)).collect();
        let (least, most) = (raws.iter().min().copied().unwrap_or(0), raws.iter().max().copied().unwrap_or(0));
        let normal =
            |s: i64| if most > least { (100.0 * ((s - least) as f64 / (most - least) as f64)) as i64 } else { 0 };
        raws.into_iter().map(normal).collect()
    }
}
