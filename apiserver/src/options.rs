//! The options of writing requests, checked before anything else happens.

use keelson_machinery::status::{Cause, Status};
use serde_json::json;

use crate::verbs::Call;

/// Longest `fieldManager`, bytes.
const MAX_MANAGER_BYTES: usize = 128;

/// Checks the options of a create, update or patch; `kind` is that of the options as messages have it.
pub fn check(call: &Call<'_>, kind: &str, apply: bool) -> Result<(), Status> {
    let query = &call.request.query;
    let mut causes = Vec::new();
    if kind == "PatchOptions" {
        if apply && query.get("fieldManager").is_none() {
            causes.push(Cause::required("fieldManager", "is required for apply patch"));
        }
        if !apply && query.has("force") {
            causes.push(Cause::forbidden("force", "may not be specified for non-apply patch"));
        }
    }
    let manager = query.get("fieldManager").unwrap_or_default();
    if manager.len() > MAX_MANAGER_BYTES {
        causes.push(Cause::too_long("fieldManager", MAX_MANAGER_BYTES));
    }
    for (at, c) in manager.char_indices().filter(|(_, c)| c.is_control()) {
        let why = format!("invalid character {} (at position {at})", unicode(c));
        let message = format!("Invalid value: {}: {why}", go_quoted(manager));
        causes.push(Cause { reason: "FieldValueInvalid".into(), message, field: "fieldManager".into() });
    }
    causes.extend(dry_run(query.all("dryRun")));
    match query.get("fieldValidation").unwrap_or_default() {
        "" | "Ignore" | "Warn" | "Strict" => {}
        other => {
            let supported = ["", "Ignore", "Strict", "Warn"];
            causes.push(Cause::not_supported("fieldValidation", &json!(other), &supported));
        }
    }
    refuse(kind, causes)
}

/// Problems of `dryRun`.
pub fn dry_run(values: &[String]) -> Option<Cause> {
    let good = values.iter().all(|v| v == "All");
    (!good).then(|| Cause::not_supported("dryRun", &json!(values), &["All"]))
}

/// 422 for options, if there are problems.
pub fn refuse(kind: &str, causes: Vec<Cause>) -> Result<(), Status> {
    if causes.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", kind, "", causes)) }
}

fn unicode(c: char) -> String {
    format!("U+{:04X}", u32::from(c))
}

/// A text as Go's `%q` writes it.
fn go_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dry_run_may_be() {
        for (given, good) in
            [(&[][..], true), (&["All"], true), (&["All", "All"], true), (&[""], false), (&["all"], false)]
        {
            let given: Vec<String> = given.iter().map(|v| (*v).to_owned()).collect();
            assert_eq!(dry_run(&given).is_none(), good, "{given:?}");
        }
        let refusal = dry_run(&[String::new()]).map(|cause| cause.message);
        assert_eq!(refusal.as_deref(), Some(r#"Unsupported value: [""]: supported values: "All""#));
    }
}
