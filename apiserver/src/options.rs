//! The options of writing requests, checked before anything else happens.

use keelson_machinery::status::{Cause, Status};
use keelson_machinery::validation::{MAX_MANAGER, unprintable};
use serde_json::json;

use crate::verbs::Call;

/// Checks the options of a create, update or patch; `kind` is that of the options as messages have it.
pub fn check(call: &Call<'_>, kind: &str, apply: bool) -> Result<(), Status> {
    let query = &call.request.query;
    let mut causes = Vec::new();
    let manager = query.get("fieldManager").unwrap_or_default();
    if kind == "PatchOptions" {
        if apply && manager.is_empty() {
            causes.push(Cause::required("fieldManager", "is required for apply patch"));
        }
        if !apply && query.has("force") {
            causes.push(Cause::forbidden("force", "may not be specified for non-apply patch"));
        }
    }
    if manager.len() > MAX_MANAGER {
        causes.push(Cause::too_long("fieldManager", MAX_MANAGER));
    }
    causes.extend(unprintable(manager).map(|why| Cause::invalid("fieldManager", &json!(manager), &why)));
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
