//! Who may do what: `system:masters` first, then the authorizers in their order; the first that decides does.

mod abac;
mod config_check;
mod escalation;
mod explain;
mod joining;
mod modes;
mod node;
pub(crate) mod placed;
pub use modes::{ALLOWED_TTL, DENIED_TTL, Mode, Settings};
pub(crate) use node::node_of;
mod rbac;
mod rule;
#[cfg(test)]
mod tests;
mod webhook;

use std::sync::Arc;

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
    modes: ArcSwap<Vec<Mode>>,
    placed: placed::Placed,
}

impl Authorization {
    /// Over the replica: nodes, then RBAC.
    pub fn new(objects: Objects) -> Self {
        Self::with(objects, vec![Mode::Node, Mode::Rbac])
    }

    /// Over the replica, with these authorizers in this order.
    pub fn with(objects: Objects, modes: Vec<Mode>) -> Self {
        let policy = ArcSwap::from_pointee(rbac::Policy::default());
        Self { objects, policy, modes: ArcSwap::from_pointee(modes), placed: placed::Placed::default() }
    }

    /// Asks others from now on.
    pub fn replace(&self, modes: Vec<Mode>) {
        self.modes.store(Arc::new(modes));
    }

    /// Whether roles and bindings count at all.
    pub(crate) fn has_rbac(&self) -> bool {
        self.modes.load().iter().any(|mode| matches!(mode, Mode::Rbac))
    }

    fn by_roles(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        let policy = self.policy();
        if policy.rules(user, &attributes.namespace).any(|rule| rule.allows(attributes)) {
            return Decision::Allow;
        }
        let missing = policy.missing(user, &attributes.namespace);
        Decision::NoOpinion(missing.map(|missing| format!("RBAC: {missing}")).unwrap_or_default())
    }

    fn ask(&self, mode: &Mode, user: &UserInfo, attributes: &Attributes) -> Decision {
        match mode {
            Mode::AlwaysAllow => Decision::Allow,
            Mode::AlwaysDeny => Decision::NoOpinion("Everything is forbidden.".into()),
            Mode::Abac(abac) if abac.allows(user, attributes) => Decision::Allow,
            Mode::Abac(_) => Decision::NoOpinion("No policy matched.".into()),
            Mode::Rbac => self.by_roles(user, attributes),
            Mode::Node if joining::allows(user, attributes) => Decision::Allow,
            Mode::Node => self.authorize_node(user, attributes),
            Mode::Webhook(webhook) => webhook.decide(user, attributes),
        }
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
        let mut reasons = Vec::new();
        for mode in self.modes.load().iter() {
            match self.ask(mode, user, attributes) {
                Decision::NoOpinion(why) => reasons.push(why),
                decided => return decided,
            }
        }
        reasons.retain(|why| !why.is_empty());
        Decision::NoOpinion(reasons.join("\n"))
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
