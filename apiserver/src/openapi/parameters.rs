//! The parameters of operations: where they are, what they are, and which operations have which.

use keelson_machinery::docs::Docs;
use serde_json::{Value, json};

use super::schema::{Flavour, META};

/// Of lists and watches.
pub const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "shardSelector",
    "timeoutSeconds",
    "watch",
];
/// Of creations and updates.
pub const CREATE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
/// Of patches.
pub const PATCH: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];
/// Of deletions.
pub const DELETE: &[&str] = &[
    "dryRun",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "orphanDependents",
    "propagationPolicy",
];
/// Of deletions of collections.
pub const DELETE_COLLECTION: &[&str] = &[
    "continue",
    "dryRun",
    "fieldSelector",
    "gracePeriodSeconds",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "labelSelector",
    "limit",
    "orphanDependents",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "shardSelector",
    "timeoutSeconds",
];
/// Of logs.
pub const LOG: &[&str] = &[
    "container",
    "follow",
    "insecureSkipTLSVerifyBackend",
    "limitBytes",
    "previous",
    "sinceSeconds",
    "stream",
    "tailLines",
    "timestamps",
];
/// Of connections, by the kind of their options.
pub const CONNECT: &[(&str, &[&str])] = &[
    ("NodeProxyOptions", &["path"]),
    ("PodAttachOptions", &["container", "stderr", "stdin", "stdout", "tty"]),
    ("PodExecOptions", &["command", "container", "stderr", "stdin", "stdout", "tty"]),
    ("PodPortForwardOptions", &["ports"]),
    ("PodProxyOptions", &["path"]),
    ("ServiceProxyOptions", &["path"]),
];

const NUMBERS: &[&str] =
    &["gracePeriodSeconds", "limit", "limitBytes", "ports", "sinceSeconds", "tailLines", "timeoutSeconds"];
const FLAGS: &[&str] = &[
    "allowWatchBookmarks",
    "follow",
    "force",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "insecureSkipTLSVerifyBackend",
    "orphanDependents",
    "previous",
    "sendInitialEvents",
    "stderr",
    "stdin",
    "stdout",
    "timestamps",
    "tty",
    "watch",
];

/// The text of a parameter of the query; `of` is the kind of the operation.
fn text(docs: &Docs, name: &str, of: &str, patch: bool) -> String {
    let own = match name {
        "pretty" => {
            "If 'true', then the output is pretty printed. Defaults to 'false' unless the user-agent indicates a browser or \
             command-line HTTP tool (curl and wget)."
        }
        "shardSelector" => "An expression that chooses a part of the objects by a hash of their metadata. Not served.",
        _ => "",
    };
    if !own.is_empty() {
        return own.into();
    }
    let options = match name {
        "dryRun" => format!("{META}DeleteOptions"),
        _ if of == "Log" => "api.core.v1.PodLogOptions".into(),
        _ if of.ends_with("Options") => format!("api.core.v1.{of}"),
        "fieldManager" | "force" if patch => format!("{META}PatchOptions"),
        "fieldManager" | "fieldValidation" => format!("{META}CreateOptions"),
        _ if DELETE.contains(&name) => format!("{META}DeleteOptions"),
        _ => format!("{META}ListOptions"),
    };
    docs.of(&format!("{options}.{name}")).unwrap_or_default()
}

/// A parameter of the query.
pub fn query(docs: &Docs, flavour: Flavour, name: &str, of: &str, patch: bool) -> Value {
    let kind = if NUMBERS.contains(&name) {
        "integer"
    } else if FLAGS.contains(&name) {
        "boolean"
    } else {
        "string"
    };
    parameter(flavour, name, "query", kind, text(docs, name, of, patch))
}

/// A parameter of the path.
pub fn path(flavour: Flavour, name: &str, kind: &str) -> Value {
    let text = match name {
        "namespace" => "object name and auth scope, such as for teams and projects".to_owned(),
        "path" => "path to the resource".into(),
        _ => format!("name of the {kind}"),
    };
    let mut out = parameter(flavour, name, "path", "string", text);
    out["required"] = true.into();
    out
}

fn parameter(flavour: Flavour, name: &str, place: &str, kind: &str, text: String) -> Value {
    match flavour {
        Flavour::V2 => json!({"name": name, "in": place, "type": kind, "uniqueItems": true, "description": text}),
        Flavour::V3 => {
            json!({"name": name, "in": place, "description": text, "schema": {"type": kind, "uniqueItems": true}})
        }
    }
}
