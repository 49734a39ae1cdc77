//! The options of lists and watches, checked before anything is read.

use keelson_machinery::status::{Cause, Status};
use serde_json::json;

use crate::options;
use crate::request::{Query, ResourceRequest};

const MATCH: &str = "resourceVersionMatch";

/// Checks the options of a list or watch.
pub fn check(request: &ResourceRequest) -> Result<(), Status> {
    let query = &request.query;
    for number in ["timeoutSeconds", "limit"] {
        query.number(number)?;
    }
    let causes = if request.verb == "watch" { of_watch(query) } else { of_list(query) };
    options::refuse("ListOptions", causes)
}

fn of_list(query: &Query) -> Vec<Cause> {
    let mut causes = Vec::new();
    let version = query.get("resourceVersion");
    if let Some(given) = query.get(MATCH) {
        if version.is_none() {
            causes
                .push(Cause::forbidden(MATCH, "resourceVersionMatch is forbidden unless resourceVersion is provided"));
        }
        if query.get("continue").is_some() {
            causes.push(Cause::forbidden(MATCH, "resourceVersionMatch is forbidden when continue is provided"));
        }
        if !matches!(given, "Exact" | "NotOlderThan") {
            causes.push(Cause::not_supported(MATCH, &json!(given), &["Exact", "NotOlderThan", ""]));
        }
        if given == "Exact" && version == Some("0") {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            causes.push(Cause::forbidden(MATCH, why));
        }
    }
    if query.get("sendInitialEvents").is_some() {
        causes.push(Cause::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    causes
}

/// Whether a watch that says nothing of initial events begins with them: it says nothing of where it begins either.
pub fn begins_with_all(query: &Query) -> bool {
    query.get("sendInitialEvents").is_none()
        && query.get(MATCH).is_none()
        && matches!(query.get("resourceVersion"), None | Some("0"))
}

fn of_watch(query: &Query) -> Vec<Cause> {
    let mut causes = Vec::new();
    let legacy = begins_with_all(query);
    let given = if legacy { Some("NotOlderThan") } else { query.get(MATCH) };
    let initial = legacy || query.get("sendInitialEvents").is_some();
    if initial && given != Some("NotOlderThan") {
        causes.push(Cause::forbidden(MATCH, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
    }
    let Some(given) = given else { return causes };
    if !initial {
        let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
        causes.push(Cause::forbidden(MATCH, why));
    }
    if given != "NotOlderThan" {
        causes.push(Cause::not_supported(MATCH, &json!(given), &["NotOlderThan"]));
    }
    if query.get("continue").is_some() {
        causes.push(Cause::forbidden(MATCH, "resourceVersionMatch is forbidden when continue is provided"));
    }
    causes
}

/// The version of a list or watch as a number.
pub fn version(text: &str) -> Result<i64, Status> {
    text.parse::<u64>().ok().and_then(|n| i64::try_from(n).ok()).ok_or_else(|| {
        Status::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid \
             syntax"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        for (query, watch, count) in [
            ("", false, 0),
            ("resourceVersionMatch=Exact", false, 1),
            ("resourceVersionMatch=Sometimes", false, 2),
            ("resourceVersion=0&resourceVersionMatch=Exact", false, 1),
            ("resourceVersion=5&resourceVersionMatch=NotOlderThan", false, 0),
            ("sendInitialEvents=true", false, 1),
            ("sendInitialEvents=true", true, 1),
            ("sendInitialEvents=true&resourceVersionMatch=Exact", true, 2),
            ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", true, 0),
            ("resourceVersionMatch=NotOlderThan", true, 1),
            ("resourceVersion=5&resourceVersionMatch=Exact", true, 2),
            ("continue=x", true, 1),
            ("continue=x&resourceVersion=0", true, 1),
            ("continue=x&resourceVersion=5", true, 0),
            ("continue=x&resourceVersion=5&sendInitialEvents=false", true, 1),
        ] {
            let query_of = Query::parse(Some(query));
            let causes = if watch { of_watch(&query_of) } else { of_list(&query_of) };
            assert_eq!(causes.len(), count, "{query} {watch}");
        }
        assert!(version("abc").is_err() && version("-1").is_err());
        assert_eq!(version("7").unwrap(), 7);
    }
}
