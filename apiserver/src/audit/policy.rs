//! The audit policy: how much is recorded of which request (`audit.k8s.io/v1`).

use std::path::Path;

use keelson_machinery::decode;
use serde::Serialize;
use serde_json::Value;

use crate::access::{Attributes, UserInfo};

/// How much is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who, what, when; no bodies.
    Metadata,
    /// The request's body too.
    Request,
    /// The answer's body too.
    RequestResponse,
}

/// A moment at which an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Stage {
    /// Before anything was done.
    RequestReceived,
    /// The head of a long answer was sent.
    ResponseStarted,
    /// All was sent.
    ResponseComplete,
    /// The server failed badly.
    Panic,
}

const STAGES: [(&str, Stage); 4] = [
    ("RequestReceived", Stage::RequestReceived),
    ("ResponseStarted", Stage::ResponseStarted),
    ("ResponseComplete", Stage::ResponseComplete),
    ("Panic", Stage::Panic),
];

/// What a policy says of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How much is recorded.
    pub level: Level,
    /// Stages that are left out.
    pub omitted: Vec<Stage>,
    /// Whether `metadata.managedFields` is left out of bodies.
    pub omit_managed_fields: bool,
}

/// Resources that a rule is about.
#[derive(Clone, Debug, Default)]
struct Resources {
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
}

#[derive(Clone, Debug, Default)]
struct Rule {
    verdict: Verdict,
    users: Vec<String>,
    groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    urls: Vec<String>,
}

/// A policy; the first rule that matches decides.
#[derive(Clone, Debug, Default)]
pub struct Policy(Vec<Rule>);

fn texts(of: &Value) -> Vec<String> {
    of.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn list(of: &Value) -> impl Iterator<Item = &Value> {
    of.as_array().into_iter().flatten()
}

fn stages(of: &Value, at: &str) -> Result<Vec<Stage>, String> {
    let known = |name: &String| {
        let found = STAGES.iter().find(|(known, _)| known == name).map(|(_, stage)| *stage);
        found.ok_or_else(|| {
            format!("{at}: Unsupported value: {name:?}: supported values: \"Panic\", \"RequestReceived\", \"ResponseComplete\", \"ResponseStarted\"")
        })
    };
    texts(of).iter().map(known).collect()
}

impl Policy {
    /// Reads a policy file.
    pub fn load(path: &Path) -> Result<Self, String> {
        let failed = |why: String| format!("loading audit policy file {}: {why}", path.display());
        let bytes = std::fs::read(path).map_err(|e| failed(format!("failed to read file: {e}")))?;
        Self::parse(&bytes).map_err(failed)
    }

    /// Reads a policy.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let policy = decode::yaml(bytes)?.value;
        if policy["kind"] != "Policy" || policy["apiVersion"] != "audit.k8s.io/v1" {
            return Err("must be a Policy of audit.k8s.io/v1".into());
        }
        let omitted = stages(&policy["omitStages"], "omitStages")?;
        let omit_managed_fields = policy["omitManagedFields"] == true;
        let rules = list(&policy["rules"]).enumerate().map(|(index, rule)| {
            let mut parsed = Rule::parse(rule, &format!("rules[{index}]"))?;
            parsed.verdict.omitted.extend(&omitted);
            parsed.verdict.omit_managed_fields = rule["omitManagedFields"].as_bool().unwrap_or(omit_managed_fields);
            Ok::<_, String>(parsed)
        });
        let rules = rules.collect::<Result<Vec<_>, _>>()?;
        if rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".into());
        }
        Ok(Self(rules))
    }

    /// What is recorded of a request; `user` is unknown when authentication failed.
    pub fn verdict(&self, user: Option<&UserInfo>, asked: &Attributes) -> Verdict {
        let found = self.0.iter().find(|rule| rule.matches(user, asked));
        found.map(|rule| rule.verdict.clone()).unwrap_or_default()
    }
}

impl Rule {
    fn parse(rule: &Value, at: &str) -> Result<Self, String> {
        let level = match rule["level"].as_str().unwrap_or_default() {
            "None" => Level::None,
            "Metadata" => Level::Metadata,
            "Request" => Level::Request,
            "RequestResponse" => Level::RequestResponse,
            "" => return Err(format!("{at}.level: Required value")),
            other => {
                return Err(format!(
                    "{at}.level: Unsupported value: {other:?}: supported values: \"Metadata\", \"None\", \"Request\", \"RequestResponse\""
                ));
            }
        };
        let resources = list(&rule["resources"]).map(|r| Resources {
            group: r["group"].as_str().unwrap_or_default().to_owned(),
            resources: texts(&r["resources"]),
            names: texts(&r["resourceNames"]),
        });
        let parsed = Self {
            verdict: Verdict {
                level,
                omitted: stages(&rule["omitStages"], &format!("{at}.omitStages"))?,
                omit_managed_fields: false,
            },
            users: texts(&rule["users"]),
            groups: texts(&rule["userGroups"]),
            verbs: texts(&rule["verbs"]),
            resources: resources.collect(),
            namespaces: texts(&rule["namespaces"]),
            urls: texts(&rule["nonResourceURLs"]),
        };
        let about_resources = !parsed.resources.is_empty() || !parsed.namespaces.is_empty();
        if about_resources && !parsed.urls.is_empty() {
            return Err(format!(
                "{at}.nonResourceURLs: Invalid value: rules cannot apply to both regular resources and non-resource URLs"
            ));
        }
        Ok(parsed)
    }

    fn matches(&self, user: Option<&UserInfo>, asked: &Attributes) -> bool {
        let among = |list: &[String], wanted: &str| list.is_empty() || list.iter().any(|item| item == wanted);
        if let Some(user) = user {
            let in_group = self.groups.is_empty() || self.groups.iter().any(|group| user.groups.contains(group));
            if !among(&self.users, &user.name) || !in_group {
                return false;
            }
        }
        if !among(&self.verbs, &asked.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return self.is_about(asked);
        }
        if !self.urls.is_empty() {
            return asked.resource.is_empty() && self.urls.iter().any(|url| path_matches(url, &asked.path));
        }
        true
    }

    fn is_about(&self, asked: &Attributes) -> bool {
        if asked.resource.is_empty() || !(self.namespaces.is_empty() || self.namespaces.contains(&asked.namespace)) {
            return false;
        }
        self.resources.is_empty() || self.resources.iter().any(|rule| rule.contains(asked))
    }
}

impl Resources {
    fn contains(&self, asked: &Attributes) -> bool {
        if self.group != asked.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let full = match asked.subresource.is_empty() {
            true => asked.resource.clone(),
            false => format!("{}/{}", asked.resource, asked.subresource),
        };
        let named = self.names.is_empty() || self.names.contains(&asked.name);
        named
            && self.resources.iter().any(|known| {
                known == "*"
                    || *known == full
                    || known.strip_suffix("/*").is_some_and(|plural| plural == asked.resource)
                    || (!asked.subresource.is_empty()
                        && known.strip_prefix("*/").is_some_and(|sub| sub == asked.subresource))
            })
    }
}

fn path_matches(known: &str, path: &str) -> bool {
    known == "*" || known == path || known.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- {level: None, users: ["system:kube-proxy"], verbs: [watch]}
- {level: Metadata, resources: [{group: "", resources: [secrets, "pods/*", "*/scale"]}], omitManagedFields: false}
- {level: Request, namespaces: [kube-system], omitStages: [ResponseStarted]}
- {level: RequestResponse, resources: [{group: apps, resources: [deployments], resourceNames: [web]}]}
- {level: None, nonResourceURLs: ["/healthz*", "/version"]}
- {level: Metadata, userGroups: ["system:authenticated"]}
"#;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy = Policy::parse(POLICY.as_bytes()).unwrap();
        let user = |name: &str| UserInfo {
            name: name.into(),
            groups: vec!["system:authenticated".into()],
            ..UserInfo::default()
        };
        let of = |group: &str, resource: &str, sub: &str, namespace: &str, name: &str| Attributes {
            verb: "watch".into(),
            group: group.into(),
            resource: resource.into(),
            subresource: sub.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        };
        let path = |path: &str| Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
        for (who, asked, level) in [
            ("system:kube-proxy", of("", "endpoints", "", "", ""), Level::None),
            ("eve", of("", "secrets", "", "a", "s"), Level::Metadata),
            ("eve", of("", "pods", "exec", "a", "s"), Level::Metadata),
            ("eve", of("", "replicationcontrollers", "scale", "a", "s"), Level::Metadata),
            ("eve", of("", "configmaps", "", "kube-system", "s"), Level::Request),
            ("eve", of("apps", "deployments", "", "a", "web"), Level::RequestResponse),
            ("eve", of("apps", "deployments", "", "a", "other"), Level::Metadata),
            ("eve", path("/healthz/ping"), Level::None),
            ("eve", path("/metrics"), Level::Metadata),
        ] {
            assert_eq!(policy.verdict(Some(&user(who)), &asked).level, level, "{who} {asked:?}");
        }
        let stranger = UserInfo { name: "x".into(), ..UserInfo::default() };
        assert_eq!(policy.verdict(Some(&stranger), &path("/metrics")).level, Level::None, "no rule is about them");
        let secrets = policy.verdict(Some(&user("eve")), &of("", "secrets", "", "a", "s"));
        assert!(!secrets.omit_managed_fields && secrets.omitted == [Stage::RequestReceived]);
        let system = policy.verdict(Some(&user("eve")), &of("", "configmaps", "", "kube-system", ""));
        assert!(system.omit_managed_fields && system.omitted.contains(&Stage::ResponseStarted));
    }

    #[test]
    fn policies_that_cannot_be_meant_are_refused() {
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
        for (text, why) in [
            ("kind: Policy".to_owned(), "audit.k8s.io/v1"),
            (head.to_owned(), "0 rules"),
            (format!("{head}rules: [{{level: All}}]"), "rules[0].level: Unsupported value: \"All\""),
            (format!("{head}rules: [{{}}]"), "rules[0].level: Required value"),
            (format!("{head}omitStages: [Late]\nrules: [{{level: None}}]"), "omitStages: Unsupported value"),
            (
                format!("{head}rules: [{{level: None, namespaces: [a], nonResourceURLs: [\"/x\"]}}]"),
                "cannot apply to both",
            ),
        ] {
            let error = Policy::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
