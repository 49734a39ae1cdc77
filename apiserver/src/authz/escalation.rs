//! Nobody hands out through RBAC what they do not have themselves, unless they may `escalate` or `bind`.

use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::rule::Rule;
use super::{Authorization, MASTERS};
use crate::access::{Attributes, Authorizer, Decision, UserInfo};

impl Authorization {
    /// Checks a write of a role or binding; other resources pass. An update that leaves the granted rules as they are
    /// passes too.
    pub fn check_escalation(
        &self,
        user: &UserInfo,
        def: &ResourceDef,
        namespace: &str,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        if def.group != "rbac.authorization.k8s.io" || user.groups.iter().any(|g| g == MASTERS) {
            return Ok(());
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let same = |key: &str| old.is_some_and(|old| old[key] == object[key]);
        let (rules, verb, plural, target) = match def.plural {
            "roles" | "clusterroles" => {
                let aggregates = object.get("aggregationRule").is_some_and(|rule| !rule.is_null());
                if same("rules") && same("aggregationRule") {
                    return Ok(());
                }
                // What an aggregating role will grant is open-ended: only who has everything may write one.
                let everything = Rule {
                    verbs: vec!["*".into()],
                    groups: vec!["*".into()],
                    resources: vec!["*".into()],
                    ..Rule::default()
                };
                let mut rules = Rule::parse_all(&object["rules"]);
                rules.extend((aggregates && !same("aggregationRule")).then_some(everything));
                (rules, "escalate", def.plural, name)
            }
            "rolebindings" | "clusterrolebindings" => {
                if same("roleRef") && same("subjects") {
                    return Ok(());
                }
                let reference = &object["roleRef"];
                let target = reference["name"].as_str().unwrap_or_default();
                let plural = if reference["kind"] == "Role" { "roles" } else { "clusterroles" };
                if self.allowed(user, "bind", plural, namespace, target) {
                    return Ok(());
                }
                let rules = self
                    .policy()
                    .role(reference, namespace)
                    .map_err(|_| Status::not_found(def.group, def.plural, target))?;
                (rules.as_ref().clone(), "bind", plural, target)
            }
            _ => return Ok(()),
        };
        let missing = self.beyond(user, namespace, &rules);
        let everything =
            missing.iter().any(|rule| rule.verbs == ["*"] && rule.groups == ["*"] && rule.resources == ["*"]);
        if everything && verb == "escalate" && object["aggregationRule"].is_object() && !same("aggregationRule") {
            let why = "must have cluster-admin privileges to use the aggregationRule";
            return Err(Status::forbidden(def.group, def.plural, name, why));
        }
        if missing.is_empty() || self.allowed(user, verb, plural, namespace, target) {
            return Ok(());
        }
        let list: Vec<String> = compact(&missing).iter().map(describe).collect();
        let why = format!(
            "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            user.groups,
            list.join("\n")
        );
        Err(Status::forbidden(def.group, def.plural, name, &why))
    }

    fn allowed(&self, user: &UserInfo, verb: &str, plural: &str, namespace: &str, name: &str) -> bool {
        let attributes = Attributes {
            verb: verb.into(),
            group: "rbac.authorization.k8s.io".into(),
            version: "v1".into(),
            resource: plural.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        };
        self.authorize(user, &attributes) == Decision::Allow
    }

    /// The parts of `rules` that the user does not have.
    fn beyond(&self, user: &UserInfo, namespace: &str, rules: &[Rule]) -> Vec<Rule> {
        let policy = self.policy();
        let atoms = rules.iter().flat_map(Rule::atoms);
        atoms.filter(|atom| !policy.rules(user, namespace).any(|own| own.covers(atom))).collect()
    }
}

/// Rules that differ only in their verbs as one, sorted as they are shown.
fn compact(rules: &[Rule]) -> Vec<Rule> {
    let mut out: Vec<Rule> = Vec::new();
    for rule in rules {
        let same = |other: &&mut Rule| {
            (&other.groups, &other.resources, &other.names, &other.urls)
                == (&rule.groups, &rule.resources, &rule.names, &rule.urls)
        };
        match out.iter_mut().find(same) {
            Some(known) => {
                let new = rule.verbs.iter().filter(|verb| !known.verbs.contains(verb)).cloned().collect::<Vec<_>>();
                known.verbs.extend(new);
            }
            None => out.push(rule.clone()),
        }
    }
    out.sort_by_key(describe);
    out
}

fn describe(rule: &Rule) -> String {
    let parts = [
        ("NonResourceURLs", &rule.urls),
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.names),
        ("Verbs", &rule.verbs),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{}", go_list(list)))
        .collect();
    format!("{{{}}}", parts.join(", "))
}

/// A list as Go's `%q` writes it: no commas.
fn go_list(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(" "))
}
