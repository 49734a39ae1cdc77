//! Label selectors over pods and namespaces, node selector terms over interned node labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::intern::{Interner, Sym};

/// Sorted labels of a pod or namespace.
pub type Labels = Vec<(Arc<str>, Arc<str>)>;

/// Labels in the sorted form.
pub fn labels(map: &BTreeMap<String, String>) -> Labels {
    map.iter().map(|(k, v)| (k.as_str().into(), v.as_str().into())).collect()
}

/// The value of a label.
pub fn label<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok().map(|i| &*labels[i].1)
}

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// One of the values.
    In,
    /// None of the values, or absent.
    NotIn,
    /// There.
    Exists,
    /// Not there.
    DoesNotExist,
    /// A number greater than the value (nodes only).
    Gt,
    /// A number less than the value (nodes only).
    Lt,
    /// Never: an operator that does not exist.
    Never,
}

impl Op {
    fn parse(text: &str) -> Self {
        match text {
            "In" => Self::In,
            "NotIn" => Self::NotIn,
            "Exists" => Self::Exists,
            "DoesNotExist" => Self::DoesNotExist,
            "Gt" => Self::Gt,
            "Lt" => Self::Lt,
            _ => Self::Never,
        }
    }
}

/// A label selector in one canonical order, so that equal ones are equal. `None` instead of a selector selects nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(Vec<(Arc<str>, Op, Vec<Arc<str>>)>);

impl Selector {
    /// From the API's form.
    pub fn new(selector: &LabelSelector) -> Self {
        let mut requirements: Vec<_> = selector
            .match_labels
            .iter()
            .flatten()
            .map(|(key, value)| (key.as_str().into(), Op::In, vec![value.as_str().into()]))
            .collect();
        for expression in selector.match_expressions.iter().flatten() {
            let mut values: Vec<Arc<str>> = expression.values.iter().flatten().map(|v| v.as_str().into()).collect();
            values.sort();
            requirements.push((expression.key.as_str().into(), Op::parse(&expression.operator), values));
        }
        requirements.sort();
        Self(requirements)
    }

    /// All these labels.
    pub fn of_labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let mut this = Self::default();
        for (key, value) in labels {
            this.require(key, value);
        }
        this
    }

    /// Adds the requirement that a label has a value.
    pub fn require(&mut self, key: &str, value: &str) {
        self.0.push((key.into(), Op::In, vec![value.into()]));
        self.0.sort();
    }

    /// Adds all requirements of another.
    pub fn and(&mut self, other: &Self) {
        self.0.extend(other.0.iter().cloned());
        self.0.sort();
        self.0.dedup();
    }

    /// Whether it has no requirement.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether labels satisfy all requirements.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, op, values)| {
            let value = label(labels, key);
            let listed = || value.is_some_and(|v| values.iter().any(|w| **w == *v));
            match op {
                Op::In => listed(),
                Op::NotIn => !listed(),
                Op::Exists => value.is_some(),
                Op::DoesNotExist => value.is_none(),
                Op::Gt | Op::Lt | Op::Never => false,
            }
        })
    }
}

/// A requirement on a node's label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeRequirement {
    key: Sym,
    op: Op,
    values: Vec<Sym>,
}

/// A term of a node selector: all requirements must hold; one without any selects nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeTerm {
    labels: Vec<NodeRequirement>,
    fields: Vec<(Op, Vec<Arc<str>>)>,
}

/// Sorted interned labels of a node.
pub type NodeLabels = Vec<(Sym, Sym)>;

/// The value of a node's label.
pub fn node_label(labels: &NodeLabels, key: Sym) -> Option<Sym> {
    labels.binary_search_by_key(&key, |(k, _)| *k).ok().map(|i| labels[i].1)
}

impl NodeTerm {
    /// From the API's form.
    pub fn new(term: &NodeSelectorTerm, syms: &mut Interner) -> Self {
        let mut labels = Vec::new();
        for expression in term.match_expressions.iter().flatten() {
            labels.push(Self::requirement(expression, syms));
        }
        let field = |f: &NodeSelectorRequirement| {
            let op = if f.key == "metadata.name" { Op::parse(&f.operator) } else { Op::Never };
            (op, f.values.iter().flatten().map(|v| v.as_str().into()).collect())
        };
        Self { labels, fields: term.match_fields.iter().flatten().map(field).collect() }
    }

    fn requirement(expression: &NodeSelectorRequirement, syms: &mut Interner) -> NodeRequirement {
        NodeRequirement {
            key: syms.sym(&expression.key),
            op: Op::parse(&expression.operator),
            values: expression.values.iter().flatten().map(|v| syms.sym(v)).collect(),
        }
    }

    /// Whether a node satisfies the term.
    pub fn matches(&self, name: &str, labels: &NodeLabels, syms: &Interner) -> bool {
        !(self.labels.is_empty() && self.fields.is_empty()) && self.holds(name, labels, syms)
    }

    /// The nodes that the term names by `metadata.name`; `None` if it names none.
    pub fn named(&self) -> Option<Vec<Arc<str>>> {
        let mut named: Option<Vec<Arc<str>>> = None;
        for (_, values) in self.fields.iter().filter(|(op, _)| *op == Op::In) {
            named = Some(match named {
                None => values.clone(),
                Some(names) => names.into_iter().filter(|n| values.contains(n)).collect(),
            });
        }
        named
    }

    fn holds(&self, name: &str, labels: &NodeLabels, syms: &Interner) -> bool {
        let number = |sym: Sym| syms.text(sym).parse::<i64>().ok();
        let compare = |value: Option<Sym>, r: &NodeRequirement, holds: fn(i64, i64) -> bool| {
            let pair = (value.and_then(number), r.values.first().copied().and_then(number));
            matches!(pair, (Some(a), Some(b)) if r.values.len() == 1 && holds(a, b))
        };
        self.labels.iter().all(|r| {
            let value = node_label(labels, r.key);
            let listed = || value.is_some_and(|v| r.values.contains(&v));
            match r.op {
                Op::In => listed(),
                Op::NotIn => !listed(),
                Op::Exists => value.is_some(),
                Op::DoesNotExist => value.is_none(),
                Op::Gt => compare(value, r, |a, b| a > b),
                Op::Lt => compare(value, r, |a, b| a < b),
                Op::Never => false,
            }
        }) && self.fields.iter().all(|(op, values)| {
            let listed = values.iter().any(|v| **v == *name);
            match op {
                Op::In => listed,
                Op::NotIn => !listed,
                _ => false,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors() {
        let pod = vec![("a".into(), "1".into()), ("b".into(), "2".into())];
        for (selector, expected) in [
            (json!({}), true),
            (json!({"matchLabels": {"a": "1", "b": "2"}}), true),
            (json!({"matchLabels": {"a": "2"}}), false),
            (json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["2"]}]}), true),
            (json!({"matchExpressions": [{"key": "c", "operator": "NotIn", "values": ["2"]}]}), true),
            (json!({"matchExpressions": [{"key": "c", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "c", "operator": "DoesNotExist"}]}), true),
            (json!({"matchExpressions": [{"key": "a", "operator": "Strange"}]}), false),
        ] {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(Selector::new(&parsed).matches(&pod), expected, "{selector}");
        }
    }

    #[test]
    fn node_terms() {
        let mut syms = Interner::default();
        let mut labels: NodeLabels = [("zone", "z"), ("n", "7")].map(|(k, v)| (syms.sym(k), syms.sym(v))).to_vec();
        labels.sort();
        for (term, expected) in [
            (json!({}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z", "y"]}]}), true),
            (json!({"matchExpressions": [{"key": "n", "operator": "Gt", "values": ["6"]}]}), true),
            (json!({"matchExpressions": [{"key": "n", "operator": "Lt", "values": ["7"]}]}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "Gt", "values": ["6"]}]}), false),
            (json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["me"]}]}), true),
            (json!({"matchFields": [{"key": "metadata.uid", "operator": "In", "values": ["me"]}]}), false),
        ] {
            let parsed: NodeSelectorTerm = serde_json::from_value(term.clone()).unwrap();
            assert_eq!(NodeTerm::new(&parsed, &mut syms).matches("me", &labels, &syms), expected, "{term}");
        }
    }
}
