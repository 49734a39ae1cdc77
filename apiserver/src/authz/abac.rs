//! ABAC: a file with a policy on each line (`abac.authorization.kubernetes.io/v1beta1`).

use std::path::Path;

use serde_json::Value;

use crate::access::{Attributes, UserInfo};
use crate::authn::AUTHENTICATED;

/// A line of the file.
#[derive(Clone, Debug, Default)]
struct Policy {
    user: String,
    group: String,
    read_only: bool,
    group_of_resource: String,
    resource: String,
    namespace: String,
    path: String,
}

/// All lines; one that fits is enough.
#[derive(Debug, Default)]
pub struct Abac(Vec<Policy>);

impl Abac {
    /// Reads a policy file.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Self::parse(&text).map_err(|why| format!("error reading policy file {}, {why}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let policies = lines.map(|(number, line)| {
            let parsed: Value = serde_json::from_str(line).map_err(|e| format!("line {number}: {e}"))?;
            if parsed["kind"] != "Policy" || parsed["apiVersion"] != "abac.authorization.kubernetes.io/v1beta1" {
                return Err(format!("line {number}: not a Policy of abac.authorization.kubernetes.io/v1beta1"));
            }
            Ok(Policy::of(&parsed["spec"]))
        });
        policies.collect::<Result<Vec<_>, _>>().map(Self)
    }

    /// Whether a line allows what is asked.
    pub fn allows(&self, user: &UserInfo, asked: &Attributes) -> bool {
        self.0.iter().any(|policy| policy.allows(user, asked))
    }
}

fn fits(known: &str, wanted: &str) -> bool {
    known == "*" || known == wanted
}

impl Policy {
    fn of(spec: &Value) -> Self {
        let text = |key: &str| spec[key].as_str().unwrap_or_default().to_owned();
        let mut policy = Self {
            user: text("user"),
            group: text("group"),
            read_only: spec["readonly"] == true,
            group_of_resource: text("apiGroup"),
            resource: text("resource"),
            namespace: text("namespace"),
            path: text("nonResourcePath"),
        };
        // Everybody means everybody who proved who they are.
        if policy.user == "*" || policy.group == "*" {
            (policy.user, policy.group) = (String::new(), AUTHENTICATED.into());
        }
        policy
    }

    fn allows(&self, user: &UserInfo, asked: &Attributes) -> bool {
        let named = !self.user.is_empty() || !self.group.is_empty();
        let who = named
            && (self.user.is_empty() || self.user == user.name)
            && (self.group.is_empty() || user.groups.contains(&self.group));
        let reads = matches!(asked.verb.as_str(), "get" | "list" | "watch");
        who && (reads || !self.read_only) && self.is_about(asked)
    }

    fn is_about(&self, asked: &Attributes) -> bool {
        if asked.resource.is_empty() {
            let start = self.path.strip_suffix('*');
            return fits(&self.path, &asked.path) || start.is_some_and(|start| asked.path.starts_with(start));
        }
        fits(&self.namespace, &asked.namespace)
            && fits(&self.resource, &asked.resource)
            && fits(&self.group_of_resource, &asked.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_fits_allows() {
        let text = r#"
# comment
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"alice","namespace":"*","resource":"*","apiGroup":"*"}}
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"group":"readers","namespace":"a","resource":"pods","readonly":true}}
{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"*","nonResourcePath":"/version*"}}
"#;
        let abac = Abac::parse(text).unwrap();
        let user =
            |name: &str, group: &str| UserInfo { name: name.into(), groups: vec![group.into()], ..UserInfo::default() };
        let pods = |verb: &str, namespace: &str| Attributes {
            verb: verb.into(),
            resource: "pods".into(),
            namespace: namespace.into(),
            ..Attributes::default()
        };
        let path = |path: &str| Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
        for (who, asked, may) in [
            (user("alice", ""), pods("create", "b"), true),
            (user("alice", ""), path("/metrics"), false),
            (user("bob", "readers"), pods("list", "a"), true),
            (user("bob", "readers"), pods("create", "a"), false),
            (user("bob", "readers"), pods("list", "b"), false),
            (user("bob", AUTHENTICATED), path("/version/x"), true),
            (user("bob", ""), path("/version"), false),
        ] {
            assert_eq!(abac.allows(&who, &asked), may, "{who:?} {asked:?}");
        }
        assert!(Abac::parse("{}").unwrap_err().contains("line 1"));
        assert!(Abac::parse("x").is_err());
    }
}
