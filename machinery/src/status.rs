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

/// What goes with a refusal without being part of its reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// Where a list goes on that could not be continued as asked.
    pub continue_token: String,
    /// Warnings that were found before the refusal.
    pub warnings: Vec<String>,
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
    /// What goes with the refusal.
    #[serde(skip)]
    pub beside: Option<Box<Beside>>,
    /// HTTP code.
    pub code: u16,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

/// The kind of the object that a refusal is.
const KIND: &str = "Status";

impl Status {
    fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { status: "Failure".into(), message: message.into(), reason: reason.into(), code, ..Self::default() }
    }

    fn with_details(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.details =
            Some(Box::new(Details { name: name.into(), group: group.into(), kind: kind.into(), ..Details::default() }));
        self
    }

    /// The answer to a delete that is done: names what was deleted.
    pub fn deleted(group: &str, plural: &str, name: &str, uid: &str) -> Self {
        let mut status =
            Self { status: "Success".into(), code: 200, ..Self::default() }.with_details(group, plural, name);
        if let Some(details) = &mut status.details {
            details.uid = uid.into();
        }
        status
    }

    /// 404 for an object.
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        Self::failure(404, "NotFound", format!("{} {name:?} not found", qualified(plural, group)))
            .with_details(group, plural, name)
    }

    /// 404 for a path.
    pub fn no_such_path() -> Self {
        let mut status = Self::failure(404, "NotFound", "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    /// 404 for a path of which nothing is known: no object of the API, a page.
    pub fn no_such_page() -> Self {
        Self::failure(404, "", "404 page not found")
    }

    /// Whether the refusal is sent as plain text.
    pub fn is_page(&self) -> bool {
        self.code == 404 && self.reason.is_empty() && self.details.is_none()
    }

    /// 409 for a create of what exists.
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        Self::failure(409, "AlreadyExists", format!("{} {name:?} already exists", qualified(plural, group)))
            .with_details(group, plural, name)
    }

    /// 409 with a reason.
    pub fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(plural, group));
        Self::failure(409, "Conflict", message).with_details(group, plural, name)
    }

    /// 409 because another writer came first.
    pub fn modified(group: &str, plural: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, plural, name, why)
    }

    /// 422 with causes.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let mut errors: Vec<String> = Vec::with_capacity(causes.len());
        for text in causes.iter().map(|c| format!("{}: {}", c.field, c.message)) {
            // The message tells every problem once.
            if !errors.contains(&text) {
                errors.push(text);
            }
        }
        let list = match &errors[..] {
            [] => String::new(),
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut status =
            Self::failure(422, "Invalid", format!("{} {name:?} is invalid: {list}", qualified(kind, group)))
                .with_details(group, kind, name);
        if let Some(details) = &mut status.details {
            details.causes = causes;
        }
        status
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    /// 403 for a resource; `group`, `plural` and `name` may be empty.
    pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let what = qualified(plural, group);
        let message = match (plural.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{what} is forbidden: {why}"),
            (false, false) => format!("{what} {name:?} is forbidden: {why}"),
        };
        Self::failure(403, "Forbidden", message).with_details(group, plural, name)
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let mut status =
            Self::failure(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
        status.details = Some(Box::default());
        status
    }

    /// 406.
    pub fn not_acceptable(accepted: &str) -> Self {
        let message = format!("only the following media types are accepted: {accepted}");
        Self::failure(406, "NotAcceptable", message)
    }

    /// 415.
    pub fn unsupported_media_type(accepted: &str) -> Self {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::failure(415, "UnsupportedMediaType", message)
    }

    /// 422 for a JSON patch that does not fit the object.
    pub fn unfit_patch() -> Self {
        let mut status =
            Self::failure(422, "Invalid", "the server rejected our request due to an error in our request");
        status.details = Some(Box::default());
        status
    }

    /// 415 for a patch of a kind that is not known.
    pub fn unsupported_patch() -> Self {
        let mut status = Self::failure(415, "UnsupportedMediaType", "415: Unsupported Media Type");
        status.details = Some(Box::default());
        status
    }

    /// 413.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::failure(413, "RequestEntityTooLarge", message)
    }

    /// 410: the resource version is compacted.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, "Expired", message)
    }

    /// 500.
    pub fn internal(why: &str) -> Self {
        let mut status = Self::failure(500, "InternalError", format!("Internal error occurred: {why}"));
        let cause = Cause { message: why.into(), ..Cause::default() };
        status.details = Some(Box::new(Details { causes: vec![cause], ..Details::default() }));
        status
    }

    /// 500 for what upstream reports without a reason.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::failure(500, "", message)
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::failure(503, "ServiceUnavailable", message)
    }

    /// 504.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::failure(504, "Timeout", message)
    }

    /// 504: a version that is not there yet.
    pub fn too_large_version(wanted: i64, current: i64, retry_after_seconds: i32) -> Self {
        let mut status = Self::timeout(format!("Timeout: Too large resource version: {wanted}, current: {current}"));
        let cause = Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        };
        status.details = Some(Box::new(Details { causes: vec![cause], retry_after_seconds, ..Details::default() }));
        status
    }

    /// 429.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: i32) -> Self {
        let mut status = Self::failure(429, "TooManyRequests", message);
        status.details = Some(Box::new(Details { retry_after_seconds, ..Details::default() }));
        status
    }

    /// The same with a token that continues the refused list.
    pub fn continued_by(mut self, token: String) -> Self {
        self.beside.get_or_insert_default().continue_token = token;
        self
    }

    /// The same with warnings that were found before it.
    pub fn with_warnings(mut self, warnings: Vec<String>) -> Self {
        if !warnings.is_empty() {
            self.beside.get_or_insert_default().warnings = warnings;
        }
        self
    }

    /// The JSON that is sent: with kind, apiVersion and metadata.
    pub fn to_value(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value["kind"] = KIND.into();
        value["apiVersion"] = "v1".into();
        let token = self.beside.as_ref().map_or("", |b| b.continue_token.as_str());
        value["metadata"] =
            if token.is_empty() { serde_json::json!({}) } else { serde_json::json!({"continue": token}) };
        value
    }
}

impl Cause {
    /// A field that must be set.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message = if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        Self { reason: "FieldValueRequired".into(), message, field: field.into() }
    }

    /// A value that is not allowed there.
    pub fn invalid(field: impl Into<String>, value: &serde_json::Value, detail: &str) -> Self {
        Self::invalid_shown(field, &crate::shown::value(value), detail)
    }

    /// A value that is not allowed, shown as given.
    pub fn invalid_shown(field: impl Into<String>, shown: &str, detail: &str) -> Self {
        let message = format!("Invalid value: {shown}: {detail}");
        Self { reason: "FieldValueInvalid".into(), message, field: field.into() }
    }

    /// A value outside a fixed set; `supported` in the order in which it is shown.
    pub fn not_supported(field: impl Into<String>, value: &serde_json::Value, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let shown = crate::shown::value(value);
        let message = format!("Unsupported value: {shown}: supported values: {}", list.join(", "));
        Self { reason: "FieldValueNotSupported".into(), message, field: field.into() }
    }

    /// A text of too many bytes.
    pub fn too_long(field: impl Into<String>, bytes: usize) -> Self {
        let message = format!("Too long: may not be more than {bytes} bytes");
        Self { reason: "FieldValueTooLong".into(), message, field: field.into() }
    }

    /// A value that may be there once.
    pub fn duplicate(field: impl Into<String>, value: &serde_json::Value) -> Self {
        Self {
            reason: "FieldValueDuplicate".into(),
            message: format!("Duplicate value: {}", crate::shown::value(value)),
            field: field.into(),
        }
    }

    /// A value that names nothing.
    pub fn not_found(field: impl Into<String>, value: &serde_json::Value) -> Self {
        Self {
            reason: "FieldValueNotFound".into(),
            message: format!("Not found: {}", crate::shown::value(value)),
            field: field.into(),
        }
    }

    /// More items than allowed.
    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        let message = format!("Too many: {actual}: must have at most {max} items");
        Self { reason: "FieldValueTooMany".into(), message, field: field.into() }
    }

    /// Something that may not be set.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self { reason: "FieldValueForbidden".into(), message: format!("Forbidden: {detail}"), field: field.into() }
    }
}

fn qualified(plural: &str, group: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}
