//! Explanations: why a pod goes where it goes, node by node, and what would happen if the cluster were another. Both work on
//! a copy of the cluster and write nothing.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::scheduling::v1::PriorityClass;
use keelson_client::{Client, Error, ListParams};
use keelson_machinery::features::{self, Feature};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{Config, ConfigError};
use crate::core::{Act, Change, Core, Standing};
use crate::cycle::Cycle;
use crate::extender::Advice;
use crate::intern::Interner;
use crate::plugins::{PLUGINS, gang};
use crate::pod_groups::Policy;
use crate::source::snapshot;
use crate::wire;
use crate::workloads::Pods;

/// Most pods that a question may add.
const MAX_PODS: usize = 10_000;
/// Most nodes that a question may add.
const MAX_NODES: usize = 10_000;
/// When pods that pause have paused, milliseconds.
const LATER: u64 = 60_000;
/// What a pod says while it is gated.
const GATED: &str = "Scheduling is blocked due to non-empty scheduling gates";

/// Why a question is not answered.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// There is no such pod or node.
    #[error("{0} not found")]
    NotFound(String),
    /// The question makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The cluster cannot be read.
    #[error("{0}")]
    Client(#[from] Error),
    /// The scheduler is not configured as it should be.
    #[error("{0}")]
    Config(#[from] ConfigError),
}

/// What a node says to a pod.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeVerdict {
    /// The node.
    pub node: String,
    /// The plugin that refuses the pod there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused_by: Option<&'static str>,
    /// Why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
    /// Sum of the weighted scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<i64>,
    /// Weighted score by plugin.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub scores: BTreeMap<&'static str, i64>,
}

/// Why a pod goes where it goes.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Namespace and name.
    pub pod: String,
    /// Its profile.
    pub scheduler: String,
    /// The node it has.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub current_node: String,
    /// Why no node is looked at, if none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocked: Option<String>,
    /// The nodes with the highest score: one of them would be chosen now.
    pub best: Vec<String>,
    /// Every node; the best first, then those that refuse.
    pub nodes: Vec<NodeVerdict>,
    /// How the group stands that it is scheduled with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupStanding>,
}

/// How a group of pods stands.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupStanding {
    /// Its name.
    pub name: String,
    /// `gang` or `basic`; absent if the group is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<&'static str>,
    /// How many pods a gang must have nodes for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_count: Option<usize>,
    /// How many pods it has.
    pub pods: usize,
    /// How many of them have nodes.
    pub scheduled: usize,
    /// How many of those that wait would have nodes too if they were tried together now, on a cluster as it is.
    pub would_fit: usize,
}

impl GroupStanding {
    fn new(name: &str, standing: &Standing) -> Self {
        let (policy, min_count) = match standing.policy {
            None => (None, None),
            Some(Policy::Basic) => (Some("basic"), None),
            Some(Policy::Gang(least)) => (Some("gang"), Some(least)),
        };
        let Standing { pods, placed, would_fit, .. } = *standing;
        Self { name: name.to_owned(), policy, min_count, pods, scheduled: placed, would_fit }
    }
}

/// What if?
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WhatIf {
    /// Pods that would be created, or workloads with such.
    pub pods: Vec<Value>,
    /// How many of each.
    pub replicas: Option<usize>,
    /// Nodes that would be drained: their pods go elsewhere, except those of daemon sets.
    pub drain: Vec<String>,
    /// Nodes that would be lost with all their pods, which come back elsewhere.
    pub lose: Vec<String>,
    /// Nodes that would be added.
    pub add_nodes: Option<AddNodes>,
}

/// Nodes that would be added.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AddNodes {
    /// They are like this one.
    pub like: String,
    /// How many.
    pub count: usize,
}

/// What would happen.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outlook {
    /// Nodes by the pods that would go there.
    pub placed: BTreeMap<String, String>,
    /// Reasons by the pods that would find no node.
    pub unschedulable: BTreeMap<String, String>,
    /// Those of them that find none now either.
    pub waiting: Vec<String>,
    /// Pods that would be pushed out.
    pub preempted: Vec<String>,
    /// Pods that would go with their node and that no controller makes anew.
    pub lost: Vec<String>,
}

/// The cluster as it is now, in a scheduler of its own.
struct Copy {
    core: Core,
    nodes: BTreeMap<String, wire::Node>,
    pods: BTreeMap<(String, String), wire::Pod>,
    priorities: BTreeMap<String, PriorityClass>,
}

impl Copy {
    async fn of(client: &Client, config: Option<&Value>) -> Result<Self, Unanswered> {
        Self::new(snapshot(client, features::is_open(Feature::GenericWorkload)).await?, config)
    }

    fn new(changes: Vec<Change>, config: Option<&Value>) -> Result<Self, Unanswered> {
        let config = |syms: &mut Interner| match config {
            Some(value) => Config::parse(value.clone(), syms),
            None => Ok(Config::standard(syms)),
        };
        let mut this = Self {
            core: Core::new(config, 0)?,
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            priorities: BTreeMap::new(),
        };
        for change in changes {
            match &change {
                Change::Node(node) => drop(this.nodes.insert(node.metadata.name.clone(), (**node).clone())),
                Change::Pod(pod) => {
                    let key = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
                    this.pods.insert(key, (**pod).clone());
                }
                _ => {}
            }
            this.core.apply(change, 0);
        }
        Ok(this)
    }

    /// The pod as if it had no node.
    fn take(&mut self, namespace: &str, name: &str) -> Option<wire::Pod> {
        let mut pod = self.pods.get(&(namespace.to_owned(), name.to_owned()))?.clone();
        self.core.apply(Change::PodGone(pod.metadata.uid.clone()), 0);
        // What the scheduler made for it where it is, it would make anew elsewhere.
        if let Some((namespace, name)) = self.core.view.devices.special(&pod.metadata.uid).cloned() {
            self.core.apply(Change::ResourceClaimGone(namespace.to_string(), name.to_string()), 0);
        }
        pod.spec.node_name.clear();
        Some(pod)
    }

    fn explain(&mut self, namespace: &str, name: &str) -> Result<Explanation, Unanswered> {
        let known = self.pods.get(&(namespace.to_owned(), name.to_owned())).cloned();
        let current = known.as_ref().map(|pod| pod.spec.node_name.clone());
        // Before the pod is taken out: it counts in its group.
        let standing = known.and_then(|pod| {
            let info = self.core.view.compile(&pod);
            self.core.standing(&info)
        });
        let pod = self.take(namespace, name).ok_or_else(|| Unanswered::NotFound(format!("pod {namespace}/{name}")))?;
        let info = self.core.view.compile(&pod);
        let mut explanation = Explanation {
            pod: info.full_name(),
            scheduler: info.class.scheduler.to_string(),
            current_node: current.unwrap_or_default(),
            blocked: None,
            best: Vec::new(),
            nodes: Vec::new(),
            group: standing.as_ref().zip(info.class.group.as_ref()).map(|(s, name)| GroupStanding::new(name, s)),
        };
        let Some(profile) = self.core.profile(&info.class.scheduler).cloned() else {
            explanation.blocked = Some(format!("no profile is called {:?}", info.class.scheduler));
            return Ok(explanation);
        };
        let order = self.core.view.order();
        match Cycle::start(&mut self.core.view, &profile, &info) {
            Err((plugin, rejection)) => {
                explanation.blocked = Some(format!("{}: {}", PLUGINS[plugin].name, rejection.reason));
            }
            Ok(cycle) => explanation.nodes = verdicts(cycle, &order),
        }
        if let Some(why) =
            standing.and_then(|standing| standing.blocked).filter(|_| explanation.current_node.is_empty())
        {
            explanation.blocked = Some(format!("{}: {why}", gang::NAME));
        }
        if info.gated && profile.gates {
            explanation.blocked = Some(GATED.into());
        }
        explanation.nodes.sort_by(|a, b| b.score.cmp(&a.score).then_with(|| a.node.cmp(&b.node)));
        let highest = explanation.nodes.first().and_then(|n| n.score);
        let best = explanation.nodes.iter().filter(|n| n.score.is_some() && n.score == highest);
        explanation.best = best.map(|n| n.node.clone()).collect();
        Ok(explanation)
    }

    fn what_if(&mut self, question: &WhatIf) -> Result<Outlook, Unanswered> {
        let before: HashSet<String> = self.core.queue.pods().map(|queued| queued.pod.full_name()).collect();
        let mut asked = self.new_pods(question)?;
        let mut lost = Vec::new();
        for name in &question.drain {
            let node = self.nodes.get_mut(name).ok_or_else(|| Unanswered::NotFound(format!("node {name:?}")))?;
            node.spec.unschedulable = true;
            self.core.apply(Change::Node(Box::new(node.clone())), LATER);
            asked.extend(self.evict(name, &mut lost));
        }
        for name in &question.lose {
            self.nodes.remove(name).ok_or_else(|| Unanswered::NotFound(format!("node {name:?}")))?;
            self.core.apply(Change::NodeGone(name.clone()), LATER);
            asked.extend(self.evict(name, &mut lost));
        }
        self.more_nodes(question)?;
        for pod in asked {
            self.core.apply(Change::Pod(Box::new(pod)), LATER);
        }
        let outlook = self.decide();
        let waiting = outlook.unschedulable.keys().filter(|pod| before.contains(*pod)).cloned().collect();
        Ok(Outlook { lost, waiting, ..outlook })
    }

    fn new_pods(&mut self, question: &WhatIf) -> Result<Vec<wire::Pod>, Unanswered> {
        let mut meant = Pods::default();
        for object in &question.pods {
            meant.add(object).map_err(Unanswered::Invalid)?;
        }
        if meant.pods.is_empty() && !question.pods.is_empty() {
            return Err(Unanswered::Invalid("there is no pod in what is asked about".into()));
        }
        let times = question.replicas.unwrap_or(1);
        let all = meant.pods.iter().map(|(_, count)| count.saturating_mul(times)).fold(0, usize::saturating_add);
        if all > MAX_PODS {
            return Err(Unanswered::Invalid(format!("at most {MAX_PODS} pods can be asked about at once")));
        }
        for (kind, namespace, name, selector) in meant.owners {
            self.core.apply(Change::Owner(kind, namespace, name, Some(selector)), LATER);
        }
        let mut pods = Vec::new();
        for (value, count) in meant.pods {
            let owned = value["metadata"]["ownerReferences"].is_array();
            let pod: wire::Pod =
                serde_json::from_value(value).map_err(|e| Unanswered::Invalid(format!("the pod: {e}")))?;
            let replicas = count * times;
            for number in 0..replicas {
                let mut pod = pod.clone();
                let meta = &mut pod.metadata;
                if meta.namespace.is_empty() {
                    meta.namespace = "default".into();
                }
                if replicas > 1 || owned || meta.name.is_empty() {
                    let base = if meta.name.is_empty() { "pod" } else { meta.name.as_str() };
                    meta.name = format!("{base}-{number}");
                }
                meta.uid = format!("what-if/{}/{}/{}", meta.namespace, meta.name, pods.len());
                self.complete(&mut pod);
                pods.push(pod);
            }
        }
        Ok(pods)
    }

    /// Fills in what the API server would, as far as it decides where a pod goes.
    fn complete(&self, pod: &mut wire::Pod) {
        let spec = &mut pod.spec;
        if spec.scheduler_name.is_empty() {
            spec.scheduler_name = crate::config::DEFAULT_NAME.into();
        }
        for container in spec.containers.iter_mut().chain(&mut spec.init_containers) {
            let wire::Resources { requests, limits } = &mut container.resources;
            for (name, limit) in limits {
                requests.entry(name.clone()).or_insert_with(|| limit.clone());
            }
        }
        let class = match spec.priority_class_name.as_str() {
            "" => self.priorities.values().find(|class| class.global_default == Some(true)),
            name => self.priorities.get(name),
        };
        if let (None, Some(class)) = (spec.priority, class) {
            spec.priority = class.value;
            if spec.preemption_policy.is_empty() {
                spec.preemption_policy = class.preemption_policy.clone().unwrap_or_default();
            }
        }
    }

    /// Takes a node's pods away. Returns those that would come back elsewhere: those that a controller makes anew, except a
    /// daemon set's, which belong to their node; adds those that nobody makes anew to `lost`.
    fn evict(&mut self, node: &str, lost: &mut Vec<String>) -> Vec<wire::Pod> {
        let here = self.pods.values().filter(|p| {
            let ended = matches!(p.status.phase.as_str(), "Succeeded" | "Failed");
            p.spec.node_name == node && p.metadata.deletion_timestamp.is_none() && !ended
        });
        let mut keys = Vec::new();
        for pod in here {
            let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
            match pod.metadata.owner_references.iter().find(|o| o.controller) {
                Some(owner) if matches!(owner.kind.as_str(), "DaemonSet" | "Node") => {}
                Some(_) => keys.push((namespace.clone(), name.clone())),
                None => lost.push(format!("{namespace}/{name}")),
            }
        }
        keys.iter().filter_map(|(namespace, name)| self.take(namespace, name)).collect()
    }

    fn more_nodes(&mut self, question: &WhatIf) -> Result<(), Unanswered> {
        let Some(AddNodes { like, count }) = &question.add_nodes else { return Ok(()) };
        if *count > MAX_NODES {
            return Err(Unanswered::Invalid(format!("at most {MAX_NODES} nodes can be added")));
        }
        let model = self.nodes.get(like).ok_or_else(|| Unanswered::NotFound(format!("node {like:?}")))?.clone();
        for number in 0..*count {
            let mut node = model.clone();
            node.metadata.name = format!("{like}-new-{number}");
            node.metadata.labels.insert("kubernetes.io/hostname".into(), node.metadata.name.clone());
            self.core.apply(Change::Node(Box::new(node)), LATER);
        }
        Ok(())
    }

    /// Decides on all pods that wait, as if all writes succeeded.
    fn decide(&mut self) -> Outlook {
        let mut outlook = Outlook::default();
        for now in [LATER, 2 * LATER] {
            while let Some(act) = self.core.next(now) {
                self.carry_out(act, now, &mut outlook);
            }
        }
        outlook
    }

    fn carry_out(&mut self, act: Act, now: u64, outlook: &mut Outlook) {
        match act {
            Act::Ask { pod, nodes } => {
                // What a program outside would say is not known: it agrees.
                let advice = Advice { scores: nodes.into_iter().map(|n| (n, 0)).collect(), ..Advice::default() };
                if let Some(act) = self.core.advised(&pod.uid, Ok(advice), now) {
                    self.carry_out(act, now, outlook);
                }
            }
            Act::Consult { pod, candidates } => {
                if let Some(act) = self.core.consulted(&pod.uid, Ok(candidates), now) {
                    self.carry_out(act, now, outlook);
                }
            }
            Act::Group { .. } => {}
            Act::Bind { pod, node, .. } => {
                outlook.unschedulable.remove(&pod.full_name());
                outlook.placed.insert(pod.full_name(), node.to_string());
                self.core.finished(&pod.uid, true, now);
            }
            Act::Fail { pod, message, victims, .. } => {
                outlook.unschedulable.insert(pod.full_name(), message);
                self.core.told(&pod.uid, now);
                for victim in victims {
                    outlook.placed.remove(&victim.full_name());
                    outlook.preempted.push(victim.full_name());
                    self.core.apply(Change::PodGone(victim.uid.to_string()), now);
                }
            }
        }
    }
}

fn verdicts(mut cycle: Cycle<'_>, order: &Arc<Vec<u32>>) -> Vec<NodeVerdict> {
    let mut nodes = Vec::with_capacity(order.len());
    let mut feasible = Vec::new();
    for slot in order.iter() {
        let node = cycle.view.nodes[*slot as usize].name.to_string();
        let (refused_by, reasons) = match cycle.verdict(*slot) {
            Some((plugin, reasons)) => (Some(plugin), reasons),
            None => {
                feasible.push((*slot, nodes.len()));
                (None, Vec::new())
            }
        };
        nodes.push(NodeVerdict { node, refused_by, reasons, score: None, scores: BTreeMap::new() });
    }
    let slots: Vec<u32> = feasible.iter().map(|(slot, _)| *slot).collect();
    let scores = cycle.score(&slots);
    for (i, (_, at)) in feasible.iter().enumerate() {
        nodes[*at].score = Some(scores.total[i]);
        nodes[*at].scores =
            scores.parts.iter().map(|(plugin, weight, part)| (PLUGINS[*plugin].name, weight * part[i])).collect();
    }
    nodes
}

/// Explains where a pod goes, as the cluster is now.
pub async fn explain(
    client: &Client,
    config: Option<&Value>,
    namespace: &str,
    name: &str,
) -> Result<Value, Unanswered> {
    let explanation = Copy::of(client, config).await?.explain(namespace, name)?;
    Ok(json!(explanation))
}

/// Tells what would happen if.
pub async fn what_if(client: &Client, config: Option<&Value>, question: &[u8]) -> Result<Value, Unanswered> {
    let question: WhatIf =
        serde_json::from_slice(question).map_err(|e| Unanswered::Invalid(format!("the question: {e}")))?;
    let mut copy = Copy::of(client, config).await?;
    let classes = client.cluster::<PriorityClass>().list(&ListParams::default()).await?.items;
    copy.priorities = classes.into_iter().map(|c| (c.metadata.name.clone().unwrap_or_default(), c)).collect();
    Ok(json!(copy.what_if(&question)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Copy {
        let node = |name: &str, cpu: &str| {
            let value = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
                "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "10"}}});
            Change::Node(Box::new(serde_json::from_value(value).unwrap()))
        };
        let pod = |name: &str, cpu: &str, node: &str| {
            let value = json!({
                "metadata": {"name": name, "namespace": "default", "uid": name,
                    "ownerReferences": [{"kind": "ReplicaSet", "name": "r", "controller": true}]},
                "spec": {"nodeName": node, "schedulerName": "default-scheduler", "containers": [
                    {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
            Change::Pod(Box::new(serde_json::from_value(value).unwrap()))
        };
        let mut bare = pod("bare", "0", "a");
        if let Change::Pod(pod) = &mut bare {
            pod.metadata.owner_references.clear();
        }
        let all = vec![node("a", "2"), node("b", "4"), pod("one", "1", "a"), pod("big", "8", ""), bare];
        Copy::new(all, None).unwrap()
    }

    #[test]
    fn a_pod_is_explained_node_by_node() {
        let explanation = cluster().explain("default", "one").unwrap();
        assert_eq!((explanation.current_node.as_str(), explanation.nodes.len()), ("a", 2));
        assert_eq!(explanation.best, ["b"]);
        assert!(explanation.nodes[0].scores.contains_key("NodeResourcesFit"), "{explanation:?}");
        let explanation = cluster().explain("default", "big").unwrap();
        assert!(explanation.best.is_empty());
        assert_eq!(explanation.nodes[0].refused_by, Some("NodeResourcesFit"));
        assert_eq!(explanation.nodes[0].reasons, ["Insufficient cpu"]);
        assert!(matches!(cluster().explain("default", "none"), Err(Unanswered::NotFound(_))));
    }

    #[test]
    fn questions_are_answered() {
        let ask = |question: Value| cluster().what_if(&serde_json::from_value(question).unwrap());
        let outlook = ask(json!({"lose": ["a"]})).unwrap();
        assert_eq!((outlook.placed["default/one"].as_str(), outlook.lost.len()), ("b", 1));
        assert_eq!(outlook.waiting, ["default/big"]);
        assert!(outlook.unschedulable["default/big"].starts_with("0/1 nodes are available: 1 Insufficient cpu."));
        let pod = json!({"metadata": {"name": "new"}, "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}});
        let outlook = ask(json!({"pods": [pod], "replicas": 3})).unwrap();
        assert_eq!((outlook.placed.len(), outlook.unschedulable.len()), (2, 2), "{outlook:?}");
        let deployment = json!({"kind": "Deployment", "metadata": {"name": "w"}, "spec": {"replicas": 2,
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod["spec"]}}});
        let outlook = ask(json!({"pods": [deployment]})).unwrap();
        assert_eq!(outlook.placed.keys().collect::<Vec<_>>(), ["default/w-0", "default/w-1"]);
        assert!(ask(json!({"pods": [{"kind": "Service"}]})).is_err());
        let outlook = ask(json!({"pods": [pod], "replicas": 3, "addNodes": {"like": "b", "count": 1}})).unwrap();
        assert_eq!(outlook.placed.len(), 3, "{outlook:?}");
        assert!(matches!(ask(json!({"drain": ["z"]})), Err(Unanswered::NotFound(_))));
        // Limits stand in for requests that are not given, as in the API.
        let limited = json!({"metadata": {"name": "new"}, "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "5"}}}]}});
        let outlook = ask(json!({"pods": [limited]})).unwrap();
        assert!(outlook.unschedulable["default/new"].contains("2 Insufficient cpu"), "{outlook:?}");
    }
}
