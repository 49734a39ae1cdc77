//! Who may do what: `system:masters`, the node authorizer, then RBAC.

mod escalation;
mod explain;
mod node;
pub(crate) use node::node_of;
mod rbac;
mod rule;
#[cfg(test)]
mod tests;

use arc_swap::ArcSwap;
use keelson_machinery::status::Status;
use serde_json::Value;

use crate::access::{Attributes, Authorizer, Decision, UserInfo};
use crate::objects::Objects;

/// Group that may do everything, whatever RBAC says.
pub const MASTERS: &str = "system:masters";

/// The chain of authorizers, over the replica.
pub struct Authorization {
    pub(crate) objects: Objects,
    policy: ArcSwap<rbac::Policy>,
}

impl Authorization {
    /// Over the replica.
    pub fn new(objects: Objects) -> Self {
        let policy = ArcSwap::from_pointee(rbac::Policy::default());
        Self { objects, policy }
    }

    /// What RBAC lets a user do in a namespace ("" for the cluster only): resource rules and path rules in the form of
    /// SelfSubjectRulesReview's status.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Value>, Vec<Value>) {
        let policy = self.policy();
        let (mut resources, mut paths) = (Vec::new(), Vec::new());
        for rule in policy.rules(user, namespace) {
            if rule.urls.is_empty() { resources.push(rule.to_value()) } else { paths.push(rule.to_value()) }
        }
        (resources, paths)
    }
}

impl Authorizer for Authorization {
    fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        if user.groups.iter().any(|g| g == MASTERS) {
            return Decision::Allow;
        }
        let node = self.authorize_node(user, attributes);
        if node == Decision::Allow {
            return node;
        }
        let policy = self.policy();
        if policy.rules(user, &attributes.namespace).any(|rule| rule.allows(attributes)) {
            return Decision::Allow;
        }
        let missing = policy.missing(user, &attributes.namespace);
        match (missing, node) {
            (Some(missing), _) => Decision::NoOpinion(format!("RBAC: {missing}")),
            (None, Decision::NoOpinion(why)) => Decision::NoOpinion(why),
            (None, _) => Decision::NoOpinion(String::new()),
        }
    }
}

/// The 403 for a decision that is not [`Decision::Allow`].
pub fn refusal(user: &UserInfo, attributes: &Attributes, reason: &str) -> Status {
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let Attributes { verb, group, resource, subresource, namespace, name, path, .. } = attributes;
    if resource.is_empty() {
        return Status::forbidden("", "", "", &format!("User {:?} cannot {verb} path {path:?}{reason}", user.name));
    }
    let full = if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
    let place =
        if namespace.is_empty() { "at the cluster scope".into() } else { format!("in the namespace {namespace:?}") };
    let why = format!("User {:?} cannot {verb} resource {full:?} in API group {group:?} {place}{reason}", user.name);
    Status::forbidden(group, resource, name, &why)
}
