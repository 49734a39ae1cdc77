//! Which binding lets a user do something: what access reviews tell. Looked up anew each time; no request waits for it.

use keelson_machinery::resources::find;
use serde_json::Value;

use super::{Authorization, MASTERS};
use crate::access::{Attributes, UserInfo};

const GROUP: &str = "rbac.authorization.k8s.io";

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

impl Authorization {
    /// The binding that allows what is asked, as reviews show it; `None` if something else does.
    pub fn explain(&self, user: &UserInfo, asked: &Attributes) -> Option<String> {
        if !self.has_rbac() || user.groups.iter().any(|group| group == MASTERS) {
            return None;
        }
        let policy = self.policy();
        let kinds = [
            ("clusterrolebindings", "ClusterRoleBinding", true),
            ("rolebindings", "RoleBinding", !asked.namespace.is_empty()),
        ];
        for (plural, kind, _) in kinds.into_iter().filter(|(.., looked_at)| *looked_at) {
            let namespace = if plural == "rolebindings" { asked.namespace.as_str() } else { "" };
            for binding in self.objects.all(find(GROUP, "v1", plural)?, namespace) {
                let Some(subject) = subject(&binding, user, namespace) else { continue };
                let reference = &binding["roleRef"];
                let Ok(rules) = policy.role(reference, namespace) else { continue };
                if rules.iter().any(|rule| rule.allows(asked)) {
                    let name = text(&binding["metadata"], "name");
                    let name = if namespace.is_empty() { name.to_owned() } else { format!("{name}/{namespace}") };
                    return Some(format!(
                        "RBAC: allowed by {kind} {name:?} of {} {:?} to {subject}",
                        text(reference, "kind"),
                        text(reference, "name")
                    ));
                }
            }
        }
        None
    }
}

/// The subject of a binding that a user is.
fn subject(binding: &Value, user: &UserInfo, namespace: &str) -> Option<String> {
    binding["subjects"].as_array().into_iter().flatten().find_map(|subject| {
        let (kind, name) = (text(subject, "kind"), text(subject, "name"));
        match kind {
            "User" if user.name == name => Some(format!("User {name:?}")),
            "Group" if user.groups.iter().any(|group| group == name) => Some(format!("Group {name:?}")),
            "ServiceAccount" => {
                let own = text(subject, "namespace");
                let home = if own.is_empty() { namespace } else { own };
                let full = format!("system:serviceaccount:{home}:{name}");
                (user.name == full).then(|| format!("ServiceAccount {:?}", format!("{name}/{home}")))
            }
            _ => None,
        }
    })
}
