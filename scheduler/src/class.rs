//! What a pod asks of a node, compiled once. Pods of one template share one [`Class`], so what is worked out for one of them
//! holds for all.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PodAffinityTerm, Taint, Toleration, TopologySpreadConstraint};

use crate::devices::extended::{Ask, asks};
use crate::intern::{Interner, Sym};
use crate::resources::{Requests, requests};
use crate::selector::{Labels, NodeTerm, Selector, labels};
use crate::wire::{Pod, Volume};

/// What a pod asks for. Equal for pods that every filter and score treats alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Class {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Which scheduler it asks for.
    pub scheduler: Arc<str>,
    /// Its priority.
    pub priority: i32,
    /// It never preempts others.
    pub never_preempts: bool,
    /// What it requests.
    pub requests: Requests,
    /// What its containers request of resources that devices may stand behind.
    pub extended: Vec<Ask>,
    /// Tolerations.
    pub tolerations: Vec<Tolerates>,
    /// `spec.nodeSelector`, sorted.
    pub node_selector: Vec<(Sym, Sym)>,
    /// Required node affinity: one of the terms.
    pub required: Option<Vec<NodeTerm>>,
    /// Preferred node affinity.
    pub preferred: Vec<(i32, NodeTerm)>,
    /// Host ports.
    pub ports: Vec<HostPort>,
    /// Images, one per container, normalized.
    pub images: Vec<Sym>,
    /// Containers, init containers too.
    pub containers: u32,
    /// Topology spread constraints of its own.
    pub spread: Vec<Spread>,
    /// Required pod affinity.
    pub affinity: Vec<Term>,
    /// Required pod anti-affinity.
    pub anti_affinity: Vec<Term>,
    /// Preferred pod affinity (weight above 0) and anti-affinity (below).
    pub preferred_pods: Vec<(i32, Term)>,
    /// Volumes that matter.
    pub volumes: Vec<VolumeUse>,
    /// What it needs of its node's agent ([`crate::plugins::features`]).
    pub features: u8,
    /// The controller that owns it: kind and name.
    pub owner: Option<(Arc<str>, Arc<str>)>,
    /// The name of the group that it is scheduled with.
    pub group: Option<Arc<str>>,
}

/// A toleration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tolerates {
    key: Arc<str>,
    value: Arc<str>,
    effect: Arc<str>,
    operator: Operator,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Operator {
    Equal,
    Exists,
    Gt,
    Lt,
}

impl Tolerates {
    fn new(toleration: &Toleration) -> Self {
        let text = |t: &Option<String>| t.as_deref().unwrap_or_default().into();
        Self {
            key: text(&toleration.key),
            value: text(&toleration.value),
            effect: text(&toleration.effect),
            operator: match toleration.operator.as_deref() {
                Some("Exists") => Operator::Exists,
                Some("Gt") => Operator::Gt,
                Some("Lt") => Operator::Lt,
                _ => Operator::Equal,
            },
        }
    }

    /// Whether it tolerates a taint.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        if !self.effect.is_empty() && *self.effect != taint.effect {
            return false;
        }
        if !self.key.is_empty() && *self.key != taint.key {
            return false;
        }
        let value = taint.value.as_deref().unwrap_or_default();
        match self.operator {
            Operator::Exists => true,
            // An empty key goes with Exists only.
            Operator::Equal => !self.key.is_empty() && *self.value == *value,
            Operator::Gt | Operator::Lt => match (value.parse::<i64>(), self.value.parse::<i64>()) {
                (Ok(taint), Ok(own)) if self.operator == Operator::Gt => taint > own,
                (Ok(taint), Ok(own)) => taint < own,
                _ => false,
            },
        }
    }

    /// Whether it counts for taints that are only preferences.
    pub fn for_preferences(&self) -> bool {
        self.effect.is_empty() || &*self.effect == "PreferNoSchedule"
    }
}

/// A port of the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The port.
    pub port: i32,
    /// TCP, UDP or SCTP.
    pub protocol: Arc<str>,
    /// The address; `0.0.0.0` for all.
    pub ip: Arc<str>,
}

impl HostPort {
    /// Whether both cannot be used on one host.
    pub fn conflicts(&self, other: &Self) -> bool {
        let all = |ip: &str| ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || all(&self.ip) || all(&other.ip))
    }
}

/// A topology spread constraint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spread {
    /// Most difference between a domain and the emptiest.
    pub max_skew: i32,
    /// The label whose values are the domains.
    pub key: Sym,
    /// It must hold (`DoNotSchedule`).
    pub hard: bool,
    /// Which pods count; with `matchLabelKeys` merged in.
    pub selector: Selector,
    /// With fewer domains than this, the emptiest counts as 0.
    pub min_domains: i32,
    /// Nodes that the pod's node affinity excludes do not count.
    pub honor_affinity: bool,
    /// Nodes whose taints the pod does not tolerate do not count.
    pub honor_taints: bool,
}

impl Spread {
    /// From the API's form, for a pod with these labels.
    pub fn new(constraint: &TopologySpreadConstraint, labels: &Labels, syms: &mut Interner) -> Self {
        let mut selector = constraint.label_selector.as_ref().map(Selector::new).unwrap_or_default();
        for key in constraint.match_label_keys.iter().flatten() {
            // A key that the pod lacks is left out; an API server that merged the keys itself left the same result.
            if let Some(value) = crate::selector::label(labels, key) {
                let mut one = Selector::default();
                one.require(key, value);
                selector.and(&one);
            }
        }
        Self {
            max_skew: constraint.max_skew,
            key: syms.sym(&constraint.topology_key),
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            selector,
            min_domains: constraint.min_domains.unwrap_or(1),
            honor_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

/// Which namespaces a term looks into.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespaces {
    /// By name, sorted.
    pub names: Vec<Arc<str>>,
    /// By labels.
    pub selector: Option<Selector>,
}

/// A term of pod affinity or anti-affinity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term {
    /// Whose pods.
    pub namespaces: Namespaces,
    /// Which pods; `None`: none.
    pub selector: Option<Selector>,
    /// What is near: nodes with the same value of this label.
    pub key: Sym,
}

impl Term {
    fn new(term: &PodAffinityTerm, namespace: &str, syms: &mut Interner) -> Self {
        let mut names: Vec<Arc<str>> = term.namespaces.iter().flatten().map(|n| n.as_str().into()).collect();
        let selector = term.namespace_selector.as_ref().map(Selector::new);
        if names.is_empty() && selector.is_none() {
            names.push(namespace.into());
        }
        names.sort();
        Self {
            namespaces: Namespaces { names, selector },
            selector: term.label_selector.as_ref().map(Selector::new),
            key: syms.sym(&term.topology_key),
        }
    }
}

/// A volume that filters look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VolumeUse {
    /// A claim, and the volume's name if the claim is made for this pod alone.
    Claim(Arc<str>, Option<Arc<str>>),
    /// A disk that only readers may share: what it is, and whether it is only read.
    Disk(Arc<str>, bool),
    /// An iSCSI or Ceph disk, that readers may share.
    Shared(Arc<str>, bool),
    /// An inline volume of a CSI driver.
    Inline(Arc<str>),
}

impl VolumeUse {
    /// What filters look at of a volume; of a disk that several monitors know, one for each, since any in common is a conflict.
    fn all(volume: &Volume, pod: &str) -> Vec<Self> {
        let Some(disk) = &volume.rbd else { return Self::new(volume, pod).into_iter().collect() };
        let each = disk.monitors.iter().map(|monitor| format!("rbd/{monitor}/{}/{}", disk.pool, disk.image));
        each.map(|name| Self::Shared(name.into(), disk.read_only)).collect()
    }

    fn new(volume: &Volume, pod: &str) -> Option<Self> {
        if let Some(claim) = &volume.persistent_volume_claim {
            return Some(Self::Claim(claim.claim_name.as_str().into(), None));
        }
        if volume.ephemeral.is_some() {
            return Some(Self::Claim(format!("{pod}-{}", volume.name).into(), Some(volume.name.as_str().into())));
        }
        if let Some(disk) = &volume.gce_persistent_disk {
            return Some(Self::Shared(format!("gce/{}", disk.pd_name).into(), disk.read_only));
        }
        if let Some(disk) = &volume.aws_elastic_block_store {
            return Some(Self::Disk(format!("aws/{}", disk.volume_id).into(), disk.read_only));
        }
        if let Some(disk) = &volume.iscsi {
            return Some(Self::Shared(format!("iscsi/{}", disk.iqn).into(), disk.read_only));
        }
        volume.csi.as_ref().map(|c| Self::Inline(c.driver.as_str().into()))
    }
}

impl Class {
    /// What a pod asks for.
    pub fn new(pod: &Pod, syms: &mut Interner) -> Self {
        let (meta, spec) = (&pod.metadata, &pod.spec);
        let labels = labels(&meta.labels);
        let mut node_selector: Vec<_> = spec.node_selector.iter().map(|(k, v)| (syms.sym(k), syms.sym(v))).collect();
        node_selector.sort_unstable();
        let mut this = Self {
            namespace: meta.namespace.as_str().into(),
            scheduler: spec.scheduler_name.as_str().into(),
            priority: spec.priority.unwrap_or(0),
            never_preempts: spec.preemption_policy == "Never",
            requests: requests(pod, syms),
            extended: asks(spec, syms),
            tolerations: spec.tolerations.iter().map(Tolerates::new).collect(),
            node_selector,
            ports: host_ports(pod),
            images: spec.containers.iter().map(|c| syms.sym(&normalized_image(&c.image))).collect(),
            containers: (spec.containers.len() + spec.init_containers.len()) as u32,
            spread: spec.topology_spread_constraints.iter().map(|c| Spread::new(c, &labels, syms)).collect(),
            volumes: spec.volumes.iter().flat_map(|v| VolumeUse::all(v, &meta.name)).collect(),
            features: crate::plugins::features::needed(spec),
            owner: (meta.owner_references.iter().find(|o| o.controller))
                .map(|o| (o.kind.as_str().into(), o.name.as_str().into())),
            labels,
            group: spec.scheduling_group.as_ref().map(|group| group.pod_group_name.as_str().into()),
            ..Self::default()
        };
        this.images.extend(spec.init_containers.iter().map(|c| syms.sym(&normalized_image(&c.image))));
        this.affinities(pod, syms);
        this
    }

    fn affinities(&mut self, pod: &Pod, syms: &mut Interner) {
        let Some(affinity) = &pod.spec.affinity else { return };
        let namespace = &pod.metadata.namespace;
        if let Some(node) = &affinity.node_affinity {
            let required = node.required_during_scheduling_ignored_during_execution.as_ref();
            self.required = required.map(|r| r.node_selector_terms.iter().map(|t| NodeTerm::new(t, syms)).collect());
            for term in node.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
                self.preferred.push((term.weight, NodeTerm::new(&term.preference, syms)));
            }
        }
        if let Some(near) = &affinity.pod_affinity {
            let required = near.required_during_scheduling_ignored_during_execution.iter().flatten();
            self.affinity = required.map(|t| Term::new(t, namespace, syms)).collect();
            for term in near.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
                self.preferred_pods.push((term.weight, Term::new(&term.pod_affinity_term, namespace, syms)));
            }
        }
        if let Some(apart) = &affinity.pod_anti_affinity {
            let required = apart.required_during_scheduling_ignored_during_execution.iter().flatten();
            self.anti_affinity = required.map(|t| Term::new(t, namespace, syms)).collect();
            for term in apart.preferred_during_scheduling_ignored_during_execution.iter().flatten() {
                self.preferred_pods.push((-term.weight, Term::new(&term.pod_affinity_term, namespace, syms)));
            }
        }
    }

    /// Whether it tolerates a taint.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|t| t.tolerates(taint))
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let sidecars = pod.spec.init_containers.iter().filter(|c| c.restart_policy == "Always");
    let ports = pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports).filter(|p| p.host_port > 0);
    let or = |text: &str, default: &str| if text.is_empty() { default.into() } else { text.into() };
    let mut ports: Vec<HostPort> = ports
        .map(|p| HostPort { port: p.host_port, protocol: or(&p.protocol, "TCP"), ip: or(&p.host_ip, "0.0.0.0") })
        .collect();
    ports.sort();
    ports.dedup();
    ports
}

/// An image's name with a tag, as nodes report it.
pub fn normalized_image(name: &str) -> String {
    if name.rfind(':') <= name.rfind('/') { format!("{name}:latest") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tolerations() {
        let taint: Taint = serde_json::from_value(json!({"key": "k", "value": "5", "effect": "NoSchedule"})).unwrap();
        for (toleration, expected) in [
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "value": "5"}), true),
            (json!({"key": "k", "value": "6"}), false),
            (json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "j", "operator": "Exists"}), false),
            (json!({"key": "k", "operator": "Gt", "value": "4"}), true),
            (json!({"key": "k", "operator": "Lt", "value": "4"}), false),
        ] {
            let parsed: Toleration = serde_json::from_value(toleration.clone()).unwrap();
            assert_eq!(Tolerates::new(&parsed).tolerates(&taint), expected, "{toleration}");
        }
    }

    #[test]
    fn images_and_ports() {
        assert_eq!(normalized_image("a/b"), "a/b:latest");
        assert_eq!(normalized_image("r:5000/b"), "r:5000/b:latest");
        assert_eq!(normalized_image("b:1"), "b:1");
        let port = |ip: &str| HostPort { port: 1, protocol: "TCP".into(), ip: ip.into() };
        assert!(port("0.0.0.0").conflicts(&port("1.1.1.1")));
        assert!(!port("1.1.1.2").conflicts(&port("1.1.1.1")));
    }
}
