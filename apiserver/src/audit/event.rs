//! An audit event as `audit.k8s.io/v1` writes it, and its old one-line form.

use serde::Serialize;
use serde_json::Value;

use super::policy::{Level, Stage};
use crate::access::Attributes;

/// What an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// Plural.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    /// Namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    /// Version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// Revision that the request names.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Subresource.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

impl ObjectRef {
    /// What a request is about; `None` if it is about no resource.
    pub fn of(asked: &Attributes) -> Option<Self> {
        (!asked.resource.is_empty()).then(|| Self {
            resource: asked.resource.clone(),
            namespace: asked.namespace.clone(),
            name: asked.name.clone(),
            api_group: asked.group.clone(),
            api_version: asked.version.clone(),
            subresource: asked.subresource.clone(),
            ..Self::default()
        })
    }
}

/// An event.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Always `Event`.
    pub kind: &'static str,
    /// Always `audit.k8s.io/v1`.
    pub api_version: &'static str,
    /// How much is recorded.
    pub level: Level,
    /// One for all events of a request.
    #[serde(rename = "auditID")]
    pub audit_id: String,
    /// The moment.
    pub stage: Stage,
    /// Path and query.
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    /// Verb, or the method in lower case.
    pub verb: String,
    /// Who asked.
    pub user: Value,
    /// As whom.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub impersonated_user: Value,
    /// What permits that.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub authentication_metadata: Value,
    /// From where.
    #[serde(rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<String>,
    /// With what.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_agent: String,
    /// About what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<ObjectRef>,
    /// How it ended.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub response_status: Value,
    /// The body.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub request_object: Value,
    /// The answer's body.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub response_object: Value,
    /// When it came.
    pub request_received_timestamp: String,
    /// When this stage was reached.
    pub stage_timestamp: String,
    /// What layers had to say.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
}

impl Event {
    /// The event as one line of JSON, without the line's end.
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The event as one line of the old form.
    pub fn legacy(&self) -> String {
        let text = |value: &Value, other: &str| value.as_str().unwrap_or(other).to_owned();
        let groups = |user: &Value, other: &str| match user["groups"].as_array() {
            Some(groups) if !groups.is_empty() => {
                let quoted: Vec<String> = groups.iter().map(|g| format!("{:?}", text(g, ""))).collect();
                format!("\"{}\"", quoted.join(",").replace('"', "\\\""))
            }
            _ => format!("{other:?}"),
        };
        let namespace = self.object_ref.as_ref().map_or("", |o| o.namespace.as_str());
        let code = self.response_status["code"].as_u64();
        format!(
            "{} AUDIT: id={:?} stage={:?} ip={:?} method={:?} user={:?} groups={} as={:?} asgroups={} user-agent={:?} \
             namespace={:?} uri={:?} response=\"{}\"",
            self.request_received_timestamp,
            self.audit_id,
            format!("{:?}", self.stage),
            self.source_ips.first().map_or("<unknown>", String::as_str),
            self.verb,
            text(&self.user["username"], "<none>"),
            groups(&self.user, "<none>"),
            text(&self.impersonated_user["username"], "<self>"),
            groups(&self.impersonated_user, "<lookup>"),
            self.user_agent,
            if namespace.is_empty() { "<none>" } else { namespace },
            self.request_uri,
            code.map_or_else(|| "<deferred>".to_owned(), |code| code.to_string()),
        )
    }
}

/// The current time as events have it.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}
