//! What FlowSchemas and priority levels say: which request belongs to which level, and what each level has.

use std::collections::HashMap;
use std::sync::Arc;

use keelson_store::View;
use serde_json::Value;

use super::level::{Level, Shape};
use crate::access::{Attributes, UserInfo};

/// Requests under way at once over all levels, watches and streams not counted (upstream: 400 reading and 200 writing).
const SEATS: f64 = 600.0;
/// Level of what no FlowSchema matches, and the limit when there are none.
const CATCH_ALL: &str = "catch-all";

/// A FlowSchema.
pub(super) struct Schema {
    pub(super) precedence: i64,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) level: String,
    pub(super) by: String,
    pub(super) rules: Vec<Value>,
}

#[derive(Default)]
pub(super) struct Policy {
    /// The view that it was compared with last.
    pub(super) view: Option<View>,
    pub(super) schemas: Arc<Vec<Schema>>,
    pub(super) levels: Arc<HashMap<String, Arc<Level>>>,
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

fn list(of: &Value) -> impl Iterator<Item = &Value> {
    of.as_array().into_iter().flatten()
}

fn names(of: &Value, wanted: &str) -> bool {
    list(of).any(|item| item == "*" || item == wanted)
}

impl Policy {
    /// The FlowSchema of a request, if any is about it, and its level, if there is one.
    pub(super) fn sort(&self, user: &UserInfo, asked: &Attributes) -> (Option<&Schema>, Option<&Arc<Level>>) {
        let schema = self.schemas.iter().find(|schema| schema.matches(user, asked));
        let name = schema.map_or(CATCH_ALL, |schema| schema.level.as_str());
        (schema, self.levels.get(name).or_else(|| self.levels.get(CATCH_ALL)))
    }

    pub(super) fn new(schemas: &[Value], levels: &[Value], view: View, before: &HashMap<String, Arc<Level>>) -> Self {
        let shares = |level: &Value| {
            let spec = &level["spec"];
            let part = if spec["type"] == "Exempt" { &spec["exempt"] } else { &spec["limited"] };
            part["nominalConcurrencyShares"].as_f64().unwrap_or(if spec["type"] == "Exempt" { 0.0 } else { 30.0 })
        };
        let total: f64 = levels.iter().map(shares).sum::<f64>().max(1.0);
        let levels = levels.iter().map(|level| {
            let (name, spec) = (text(&level["metadata"], "name").to_owned(), &level["spec"]);
            let response = &spec["limited"]["limitResponse"];
            let queuing = &response["queuing"];
            let number = |key: &str, default: u64| queuing[key].as_u64().unwrap_or(default).clamp(1, 10_000) as usize;
            let seats = ((SEATS * shares(level) / total).ceil() as usize).max(1);
            let part = if spec["type"] == "Exempt" { &spec["exempt"] } else { &spec["limited"] };
            let percent =
                |key: &str| part[key].as_f64().map(|percent| (seats as f64 * percent / 100.0).round() as usize);
            let shape = Shape {
                uid: text(&level["metadata"], "uid").to_owned(),
                exempt: spec["type"] == "Exempt",
                seats,
                lends: percent("lendablePercent").unwrap_or(0).min(seats),
                borrows: percent("borrowingLimitPercent"),
                queues: (response["type"] == "Queue")
                    .then(|| (number("queues", 64), number("queueLengthLimit", 50), number("handSize", 8))),
            };
            let known = before.get(&name).filter(|known| known.shape == shape).cloned();
            (name, known.unwrap_or_else(|| Arc::new(Level::new(shape))))
        });
        let levels = levels.collect();
        let mut schemas: Vec<Schema> = schemas.iter().map(Schema::new).collect();
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        Self { view: Some(view), schemas: Arc::new(schemas), levels: Arc::new(levels) }
    }
}

impl Schema {
    pub(super) fn new(object: &Value) -> Self {
        let spec = &object["spec"];
        Self {
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
            name: text(&object["metadata"], "name").to_owned(),
            uid: text(&object["metadata"], "uid").to_owned(),
            level: text(&spec["priorityLevelConfiguration"], "name").to_owned(),
            by: text(&spec["distinguisherMethod"], "type").to_owned(),
            rules: list(&spec["rules"]).cloned().collect(),
        }
    }

    pub(super) fn matches(&self, user: &UserInfo, asked: &Attributes) -> bool {
        self.rules.iter().any(|rule| {
            list(&rule["subjects"]).any(|subject| is_subject(subject, user))
                && match asked.resource.is_empty() {
                    true => list(&rule["nonResourceRules"]).any(|rule| path_matches(rule, asked)),
                    false => list(&rule["resourceRules"]).any(|rule| resource_matches(rule, asked)),
                }
        })
    }
}

fn is_subject(subject: &Value, user: &UserInfo) -> bool {
    match text(subject, "kind") {
        "User" => matches!(text(&subject["user"], "name"), name if name == "*" || name == user.name),
        "Group" => {
            let name = text(&subject["group"], "name");
            name == "*" || user.groups.iter().any(|group| group == name)
        }
        "ServiceAccount" => {
            let account = &subject["serviceAccount"];
            let prefix = format!("system:serviceaccount:{}:", text(account, "namespace"));
            let name = text(account, "name");
            user.name.strip_prefix(&prefix).is_some_and(|own| name == "*" || own == name)
        }
        _ => false,
    }
}

fn path_matches(rule: &Value, asked: &Attributes) -> bool {
    let url = |known: &str| {
        known == "*"
            || known == asked.path
            || known.strip_suffix('*').is_some_and(|start| asked.path.starts_with(start))
    };
    names(&rule["verbs"], &asked.verb) && list(&rule["nonResourceURLs"]).filter_map(Value::as_str).any(url)
}

fn resource_matches(rule: &Value, asked: &Attributes) -> bool {
    let full = match asked.subresource.is_empty() {
        true => asked.resource.clone(),
        false => format!("{}/{}", asked.resource, asked.subresource),
    };
    let place = match asked.namespace.is_empty() {
        true => rule["clusterScope"] == true,
        false => names(&rule["namespaces"], &asked.namespace),
    };
    place
        && names(&rule["verbs"], &asked.verb)
        && names(&rule["apiGroups"], &asked.group)
        && names(&rule["resources"], &full)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_match_subjects_and_rules() {
        let schema = Schema::new(&json!({"metadata": {"name": "s"}, "spec": {"rules": [{
            "subjects": [{"kind": "Group", "group": {"name": "g"}}, {"kind": "ServiceAccount", "serviceAccount": {"namespace": "n", "name": "*"}}],
            "resourceRules": [{"verbs": ["*"], "apiGroups": [""], "resources": ["pods", "pods/status"], "namespaces": ["a"]}],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz/*"]}]}]}}));
        let user =
            |name: &str, group: &str| UserInfo { name: name.into(), groups: vec![group.into()], ..UserInfo::default() };
        let pods = |namespace: &str, subresource: &str| Attributes {
            verb: "get".into(),
            resource: "pods".into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            ..Attributes::default()
        };
        for (user, asked, expected) in [
            (user("u", "g"), pods("a", ""), true),
            (user("u", "g"), pods("a", "status"), true),
            (user("u", "g"), pods("a", "exec"), false),
            (user("u", "g"), pods("b", ""), false),
            (user("u", "g"), pods("", ""), false),
            (user("u", "h"), pods("a", ""), false),
            (user("system:serviceaccount:n:x", "h"), pods("a", ""), true),
            (
                user("u", "g"),
                Attributes { verb: "get".into(), path: "/healthz/x".into(), ..Attributes::default() },
                true,
            ),
        ] {
            assert_eq!(schema.matches(&user, &asked), expected, "{} {asked:?}", user.name);
        }
    }
}
