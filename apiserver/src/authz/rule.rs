//! One policy rule: parsed once, asked on every request.

use serde_json::{Value, json};

use crate::access::Attributes;

/// A parsed PolicyRule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) verbs: Vec<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) resources: Vec<String>,
    pub(crate) names: Vec<String>,
    pub(crate) urls: Vec<String>,
}

fn has(list: &[String], word: &str) -> bool {
    list.iter().any(|w| w == "*" || w == word)
}

impl Rule {
    /// The rules of a Role or ClusterRole.
    pub(crate) fn parse_all(rules: &Value) -> Vec<Self> {
        rules.as_array().into_iter().flatten().map(Self::parse).collect()
    }

    fn parse(rule: &Value) -> Self {
        let list = |key: &str| -> Vec<String> {
            rule[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            urls: list("nonResourceURLs"),
        }
    }

    /// The rule as a review shows it.
    pub(crate) fn to_value(&self) -> Value {
        let mut value = json!({ "verbs": self.verbs });
        let parts = [
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.urls),
        ];
        for (key, list) in parts {
            if !list.is_empty() {
                value[key] = json!(list);
            }
        }
        value
    }

    /// Whether the rule allows a request.
    pub(crate) fn allows(&self, asked: &Attributes) -> bool {
        if !has(&self.verbs, &asked.verb) {
            return false;
        }
        if asked.resource.is_empty() {
            return self.has_url(&asked.path);
        }
        has(&self.groups, &asked.group)
            && self.has_resource(&asked.resource, &asked.subresource)
            && (self.names.is_empty() || self.names.contains(&asked.name))
    }

    fn has_url(&self, path: &str) -> bool {
        self.urls.iter().any(|url| url == path || url.strip_suffix('*').is_some_and(|start| path.starts_with(start)))
    }

    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|known| match known.split_once('/') {
            None => known == "*" || (known == resource && subresource.is_empty()),
            Some((left, right)) => right == subresource && !right.is_empty() && (left == "*" || left == resource),
        })
    }

    /// Splits a rule into the smallest requests that it allows, so that each can be looked up in other rules.
    pub(crate) fn atoms(&self) -> Vec<Self> {
        let one = |w: &String| vec![w.clone()];
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            for url in &self.urls {
                atoms.push(Self { verbs: one(verb), urls: one(url), ..Self::default() });
            }
            for group in &self.groups {
                for resource in &self.resources {
                    let atom =
                        Self { verbs: one(verb), groups: one(group), resources: one(resource), ..Self::default() };
                    if self.names.is_empty() {
                        atoms.push(atom.clone());
                    }
                    atoms.extend(self.names.iter().map(|name| Self { names: one(name), ..atom.clone() }));
                }
            }
        }
        atoms
    }

    /// Whether this rule alone allows all that an atom allows.
    pub(crate) fn covers(&self, atom: &Self) -> bool {
        let all = |known: &[String], asked: &[String]| asked.iter().all(|word| has(known, word));
        if !all(&self.verbs, &atom.verbs) {
            return false;
        }
        if let Some(url) = atom.urls.first() {
            return self.has_url(url);
        }
        let resource = |asked: &String| match asked.split_once('/') {
            None => has(&self.resources, asked),
            Some((left, right)) => self.has_resource(left, right) || self.resources.contains(asked),
        };
        all(&self.groups, &atom.groups)
            && atom.resources.iter().all(resource)
            && (self.names.is_empty() || (!atom.names.is_empty() && atom.names.iter().all(|n| self.names.contains(n))))
    }
}
