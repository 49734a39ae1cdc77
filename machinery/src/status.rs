//! `metav1.Status`: every refusal of the API, with Kubernetes' reasons and messages.

use serde::{Deserialize, Serialize};

/// One cause of a refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Machine-readable: FieldValueRequired, FieldValueInvalid, ...
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub reason: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub message: String,
    /// Path of the field.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub field: String,
}

/// Structured part of a refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// Object name.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub name: String,
    /// API group.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub group: String,
    /// Resource plural, or kind for validation errors.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub kind: String,
    /// uid of the object.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub uid: String,
    /// The causes.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub causes: Vec<Cause>,
    /// Seconds to wait before trying again.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub retry_after_seconds: i32,
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// A refusal (or, for some deletes, the success message) as the API sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Success or Failure.
    pub status: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub message: String,
    /// Machine-readable: NotFound, AlreadyExists, Conflict, Invalid, ...
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub reason: String,
    /// Details.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub details: Option<Box<Details>>,
    /// HTTP code.
    pub code: u16,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}
