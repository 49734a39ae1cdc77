//! RBAC's roles and bindings, parsed and indexed by subject; rebuilt only when one of them changed.
//!
//! Invariant: the policy in use is that of the replica's current view. Views that follow each other share what did not
//! change, so that to see that nothing did costs little however many roles and bindings there are.

use std::collections::HashMap;
use std::sync::Arc;

use keelson_machinery::resources::find;
use keelson_machinery::selector::LabelSelector;
use keelson_store::{KeyRange, View};
use serde_json::Value;

use super::Authorization;
use super::rule::Rule;
use crate::access::UserInfo;

const GROUP: &str = "rbac.authorization.k8s.io";
const PLURALS: [&str; 4] = ["clusterroles", "clusterrolebindings", "roles", "rolebindings"];

/// The rules that a binding grants, or what is missing for that.
type Grant = Result<Arc<Vec<Rule>>, String>;

/// Grants by namespace ("" for cluster role bindings), then subject (`u:` or `g:` and the name).
type Grants = HashMap<String, HashMap<String, Vec<Grant>>>;
/// Rules of roles by namespace and name.
type Roles = HashMap<(String, String), Arc<Vec<Rule>>>;

/// All of RBAC.
#[derive(Default)]
pub(super) struct Policy {
    /// The view that it was compared with last.
    view: Option<View>,
    grants: Arc<Grants>,
    roles: Arc<Roles>,
}

impl Authorization {
    /// The policy of the current view.
    pub(super) fn policy(&self) -> Arc<Policy> {
        let view = self.objects.kv.view();
        let current = self.policy.load_full();
        let before = current.view.as_ref();
        if before.is_some_and(|before| before.revision() == view.revision()) {
            return current;
        }
        let fresh = if before.is_some_and(|before| is_same(before, &view)) {
            Policy { view: Some(view), grants: current.grants.clone(), roles: current.roles.clone() }
        } else {
            self.build(view)
        };
        let fresh = Arc::new(fresh);
        self.policy.store(fresh.clone());
        fresh
    }

    fn build(&self, view: View) -> Policy {
        let list = |plural| find(GROUP, "v1", plural).map(|def| self.objects.all(def, "")).unwrap_or_default();
        let cluster_roles = list("clusterroles");
        let mut roles = Roles::new();
        for role in cluster_roles.iter().chain(&list("roles")) {
            let key = (text(&role["metadata"]["namespace"]), text(&role["metadata"]["name"]));
            roles.insert(key, Arc::new(rules_of(role, &cluster_roles, 0)));
        }
        let mut policy = Policy { view: Some(view), roles: Arc::new(roles), ..Policy::default() };
        let mut grants = Grants::new();
        for binding in list("clusterrolebindings").iter().chain(&list("rolebindings")) {
            policy.bind(binding, &mut grants);
        }
        policy.grants = Arc::new(grants);
        policy
    }
}

/// Roles aggregated by roles that are aggregated themselves; three levels are in use (admin, edit, view).
const MAX_AGGREGATION_DEPTH: u32 = 8;

/// A role's own rules and those that it aggregates.
fn rules_of(role: &Value, cluster_roles: &[Value], depth: u32) -> Vec<Rule> {
    let mut rules = Rule::parse_all(&role["rules"]);
    if depth == MAX_AGGREGATION_DEPTH {
        return rules;
    }
    for selector in role["aggregationRule"]["clusterRoleSelectors"].as_array().into_iter().flatten() {
        for other in cluster_roles.iter().filter(|r| r["metadata"]["name"] != role["metadata"]["name"]) {
            if selects(selector, &other["metadata"]["labels"]) {
                for rule in rules_of(other, cluster_roles, depth + 1) {
                    if !rules.contains(&rule) {
                        rules.push(rule);
                    }
                }
            }
        }
    }
    rules
}

fn selects(selector: &Value, labels: &Value) -> bool {
    LabelSelector::from_object(selector).is_ok_and(|selector| selector.matches(|key| labels[key].as_str()))
}

/// Whether two views show the same roles and bindings.
fn is_same(one: &View, other: &View) -> bool {
    let mut defs = PLURALS.iter().filter_map(|plural| find(GROUP, "v1", plural));
    defs.all(|def| one.same(other, &KeyRange::prefix(def.prefix())))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn subject_key(subject: &Value, namespace: &str) -> Option<String> {
    let name = subject["name"].as_str()?;
    match subject["kind"].as_str()? {
        "User" => Some(format!("u:{name}")),
        "Group" => Some(format!("g:{name}")),
        "ServiceAccount" => {
            let home = subject["namespace"].as_str().filter(|n| !n.is_empty()).unwrap_or(namespace);
            Some(format!("u:system:serviceaccount:{home}:{name}"))
        }
        _ => None,
    }
}

impl Policy {
    fn bind(&self, binding: &Value, grants: &mut Grants) {
        let namespace = text(&binding["metadata"]["namespace"]);
        let reference = &binding["roleRef"];
        let grant = self.role(reference, &namespace);
        for subject in binding["subjects"].as_array().into_iter().flatten() {
            if let Some(key) = subject_key(subject, &namespace) {
                let grants = grants.entry(namespace.clone()).or_default();
                grants.entry(key).or_default().push(grant.clone());
            }
        }
    }

    /// The rules of a role reference, seen from a binding's namespace.
    pub(super) fn role(&self, reference: &Value, namespace: &str) -> Grant {
        let (kind, name) = (text(&reference["kind"]), text(&reference["name"]));
        let home = if kind == "Role" { namespace } else { "" };
        let missing = || format!("{}.{GROUP} {name:?} not found", kind.to_lowercase());
        self.roles.get(&(home.to_owned(), name.clone())).cloned().ok_or_else(missing)
    }

    fn granted<'a>(&'a self, user: &'a UserInfo, namespace: &'a str) -> impl Iterator<Item = &'a Grant> {
        let keys: Vec<String> =
            std::iter::once(format!("u:{}", user.name)).chain(user.groups.iter().map(|g| format!("g:{g}"))).collect();
        let local = (!namespace.is_empty()).then(|| self.grants.get(namespace)).flatten();
        self.grants.get("").into_iter().chain(local).flat_map(move |by_subject| {
            let found: Vec<&Grant> = keys.iter().filter_map(|key| by_subject.get(key)).flatten().collect();
            found
        })
    }

    /// All rules that a user has in a namespace, the cluster's included.
    pub(super) fn rules<'a>(&'a self, user: &'a UserInfo, namespace: &'a str) -> impl Iterator<Item = &'a Rule> {
        self.granted(user, namespace).filter_map(|grant| grant.as_ref().ok()).flat_map(|rules| rules.iter())
    }

    /// The roles that a user's bindings name and that do not exist.
    pub(super) fn missing(&self, user: &UserInfo, namespace: &str) -> Option<String> {
        let missing: Vec<&str> =
            self.granted(user, namespace).filter_map(|g| g.as_ref().err()).map(String::as_str).collect();
        match missing.as_slice() {
            [] => None,
            [one] => Some((*one).to_owned()),
            many => Some(format!("[{}]", many.join(", "))),
        }
    }
}
