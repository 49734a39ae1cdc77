//! Who may do what: RBAC over the replica.
//!
//! Rules are parsed once and kept until an RBAC object changes: the newest mod revision and the number of RBAC objects in
//! the view say whether they have.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources;
use keelson_store::KeyRange;
use serde::Deserialize;
use serde_json::Value;

use crate::access::{Attributes, Authorizer, Decision, UserInfo};
use crate::objects::{Objects, parse};

const GROUP: &str = "rbac.authorization.k8s.io";
/// Members of this group may do everything, whatever the rules say.
const MASTERS: &str = "system:masters";

/// The chain of authorizers.
pub fn chain(objects: Objects) -> Arc<dyn Authorizer> {
    Arc::new(Rbac { objects, rules: ArcSwap::from_pointee(Rules::default()) })
}

/// One rule of a role, as the API writes it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Rule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
}

impl Rule {
    fn covers(&self, a: &Attributes) -> bool {
        let any = |list: &[String], wanted: &str| list.iter().any(|x| x == "*" || x == wanted);
        if !any(&self.verbs, &a.verb) {
            return false;
        }
        if a.resource.is_empty() {
            return self
                .non_resource_urls
                .iter()
                .any(|u| u == "*" || *u == a.path || u.strip_suffix('*').is_some_and(|p| a.path.starts_with(p)));
        }
        let resource =
            if a.subresource.is_empty() { a.resource.clone() } else { format!("{}/{}", a.resource, a.subresource) };
        let of_all = |r: &String| !a.subresource.is_empty() && r.strip_prefix("*/") == Some(a.subresource.as_str());
        any(&self.api_groups, &a.group)
            && (any(&self.resources, &resource) || self.resources.iter().any(of_all))
            && (self.resource_names.is_empty() || self.resource_names.contains(&a.name))
    }
}

/// Who a binding names, and what it gives them.
#[derive(Clone, Debug, Default)]
struct Grants {
    /// By user name (`system:serviceaccount:ns:name` for accounts).
    users: HashMap<String, Vec<Arc<[Rule]>>>,
    /// By group.
    groups: HashMap<String, Vec<Arc<[Rule]>>>,
}

#[derive(Default)]
struct Rules {
    /// Newest mod revision and number of the RBAC objects seen.
    seen: (i64, usize),
    cluster: Grants,
    namespaces: HashMap<String, Grants>,
}

struct Rbac {
    objects: Objects,
    rules: ArcSwap<Rules>,
}

impl Rbac {
    fn current(&self) -> Arc<Rules> {
        let view = self.objects.kv.view();
        let range = KeyRange::prefix(format!("/registry/{GROUP}/"));
        let (mut newest, mut count) = (0, 0);
        for kv in view.range(&range) {
            newest = newest.max(kv.mod_revision);
            count += 1;
        }
        let rules = self.rules.load_full();
        if rules.seen == (newest, count) {
            return rules;
        }
        let rules = Arc::new(self.build((newest, count)));
        self.rules.store(rules.clone());
        rules
    }

    fn build(&self, seen: (i64, usize)) -> Rules {
        let mut rules = Rules { seen, ..Rules::default() };
        let role_rules = |role: &Value| -> Arc<[Rule]> {
            serde_json::from_value::<Vec<Rule>>(role["rules"].clone()).unwrap_or_default().into()
        };
        let mut cluster_roles = HashMap::new();
        for role in self.list("clusterroles") {
            cluster_roles.insert(name(&role).to_owned(), role_rules(&role));
        }
        let mut roles = HashMap::new();
        for role in self.list("roles") {
            roles.insert((namespace(&role).to_owned(), name(&role).to_owned()), role_rules(&role));
        }
        for binding in self.list("clusterrolebindings") {
            if let Some(granted) = cluster_roles.get(role_ref(&binding)) {
                bind(&mut rules.cluster, &binding, granted);
            }
        }
        for binding in self.list("rolebindings") {
            let namespace = namespace(&binding).to_owned();
            let granted = match binding["roleRef"]["kind"].as_str() {
                Some("ClusterRole") => cluster_roles.get(role_ref(&binding)),
                _ => roles.get(&(namespace.clone(), role_ref(&binding).to_owned())),
            };
            if let Some(granted) = granted {
                bind(rules.namespaces.entry(namespace).or_default(), &binding, granted);
            }
        }
        rules
    }

    fn list(&self, plural: &str) -> Vec<Value> {
        let Some(def): Option<&ResourceDef> = resources::find(GROUP, "v1", plural) else { return Vec::new() };
        self.objects.kv.view().range(&Objects::range(def, "")).filter_map(|kv| parse(kv).ok()).collect()
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

fn role_ref(binding: &Value) -> &str {
    binding["roleRef"]["name"].as_str().unwrap_or_default()
}

fn bind(grants: &mut Grants, binding: &Value, rules: &Arc<[Rule]>) {
    for subject in binding["subjects"].as_array().into_iter().flatten() {
        let name = subject["name"].as_str().unwrap_or_default();
        let (map, key) = match subject["kind"].as_str() {
            Some("User") => (&mut grants.users, name.to_owned()),
            Some("Group") => (&mut grants.groups, name.to_owned()),
            Some("ServiceAccount") => {
                let of = subject["namespace"].as_str().unwrap_or_else(|| namespace(binding));
                (&mut grants.users, format!("system:serviceaccount:{of}:{name}"))
            }
            _ => continue,
        };
        map.entry(key).or_default().push(rules.clone());
    }
}

impl Grants {
    fn allow(&self, user: &UserInfo, attributes: &Attributes) -> bool {
        let of_user = self.users.get(&user.name).into_iter();
        let of_groups = user.groups.iter().filter_map(|g| self.groups.get(g));
        of_user.chain(of_groups).flatten().any(|rules| rules.iter().any(|rule| rule.covers(attributes)))
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        if user.groups.iter().any(|g| g == MASTERS) {
            return Decision::Allow;
        }
        let rules = self.current();
        let allowed = rules.cluster.allow(user, attributes)
            || rules.namespaces.get(&attributes.namespace).is_some_and(|grants| grants.allow(user, attributes));
        if allowed { Decision::Allow } else { Decision::NoOpinion(String::new()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_cover_what_they_say() {
        let rule: Rule = serde_json::from_value(serde_json::json!({
            "verbs": ["get"], "apiGroups": [""], "resources": ["pods", "*/status"], "resourceNames": ["a"]
        }))
        .unwrap();
        let ask = |verb: &str, resource: &str, subresource: &str, name: &str| Attributes {
            verb: verb.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..Attributes::default()
        };
        for (attributes, expected) in [
            (ask("get", "pods", "", "a"), true),
            (ask("get", "pods", "", "b"), false),
            (ask("list", "pods", "", "a"), false),
            (ask("get", "pods", "log", "a"), false),
            (ask("get", "nodes", "status", "a"), true),
            (ask("get", "secrets", "", "a"), false),
        ] {
            assert_eq!(rule.covers(&attributes), expected, "{attributes:?}");
        }
        let urls: Rule =
            serde_json::from_value(serde_json::json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/api/*"]}))
                .unwrap();
        let path = |path: &str| Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
        assert!(urls.covers(&path("/healthz")) && urls.covers(&path("/api/v1")) && !urls.covers(&path("/metrics")));
    }
}
