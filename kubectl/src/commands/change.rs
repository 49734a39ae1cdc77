//! `patch`, and what commands that change objects share.

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, RECORD, switch, text};
use crate::kinds::Kind;
use crate::objects::{self, FILES};
use crate::output::{self, Format, changed, name_of, strip_managed};
use crate::session::{Session, encode};

use super::create::{WRITE, is_client_dry_run, manager, write_query};

/// Flags of `patch`.
pub const PATCH: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    &[
        WRITE[0],
        RECORD,
        manager("kubectl-patch"),
        switch("local", "If true, patch will operate on the content of the file, not the server-side resource."),
        text("patch", "", "The patch to be applied to the resource JSON file.").short('p'),
        text("patch-file", "", "A file containing a patch to be applied to the resource."),
        text("subresource", "", "If specified, patches the subresource of the requested object."),
        text("type", "strategic", "The type of patch being provided; one of [json merge strategic]"),
    ],
];

/// Path of an object that was read.
pub fn path_of(kind: &Kind, object: &Value) -> String {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    kind.object(text("namespace"), &encode(text("name")))
}

/// The objects that arguments name; a kind alone is an error.
pub async fn named(session: &Session, args: &[String]) -> Outcome<Vec<(Kind, Value)>> {
    if args.is_empty() && !session.parsed.is_set("filename") && !session.parsed.is_set("kustomize") {
        return Err(nothing_named());
    }
    objects::read(session, args).await
}

/// The objects that arguments name, and what of it failed.
pub async fn each_named(session: &Session, args: &[String]) -> Outcome<(Vec<(Kind, Value)>, Option<Failure>)> {
    if args.is_empty() && !session.parsed.is_set("filename") && !session.parsed.is_set("kustomize") {
        return Err(nothing_named());
    }
    objects::each(session, args).await
}

/// The objects that arguments name, where `--selector` says something else than which.
pub async fn named_by_name(session: &Session, args: &[String]) -> Outcome<Vec<(Kind, Value)>> {
    if args.is_empty() && !session.parsed.is_set("filename") && !session.parsed.is_set("kustomize") {
        return Err(nothing_named());
    }
    objects::read_by_name(session, args).await
}

/// The refusal of a command line that names nothing.
pub fn nothing_named() -> Failure {
    Failure::new(
        "You must provide one or more resources by argument or filename.\nExample resource specifications include:\n   '-f rsrc.yaml'\n   '--filename=rsrc.json'\n   '<resource> <name>'\n   '<resource>'",
    )
}

/// Runs `patch`.
pub async fn patch(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let local = parsed.on("local");
    let form = match parsed.text("type") {
        "strategic" => "strategic-merge-patch",
        "merge" => "merge-patch",
        "json" => "json-patch",
        other => {
            return Err(Failure::new(format!("--type must be one of [json merge strategic], not {other:?}")));
        }
    };
    let text = match (parsed.text("patch"), parsed.text("patch-file")) {
        ("", "") => {
            return Err(Failure::new("must specify --patch or --patch-file containing the contents of the patch"));
        }
        ("", file) => std::fs::read_to_string(file)
            .map_err(|e| Failure::new(format!("unable to read patch file: {}", crate::failure::opening(file, &e))))?,
        (given, "") => given.to_owned(),
        _ => return Err(Failure::new("cannot specify --patch and --patch-file together")),
    };
    // What begins like JSON is the server's to understand.
    let is_json = text.trim_start().starts_with(['{', '[']);
    let patch = match serde_json::from_str(&text) {
        Ok(patch) => patch,
        Err(error) if is_json && error.is_eof() => {
            return Err(Failure::Plain("Error from server (BadRequest): unexpected end of JSON input".into()));
        }
        Err(_) => {
            keelson_machinery::decode::yaml(text.as_bytes())
                .map_err(|e| Failure::new(format!("unable to parse {text:?}: {e}")))?
                .value
        }
    };
    let subresource = match parsed.text("subresource") {
        "" => String::new(),
        name => format!("/{name}"),
    };
    for (kind, before) in named(session, &parsed.args).await? {
        let plain = format!("{}{subresource}", path_of(&kind, &before));
        let before = if subresource.is_empty() || local { before } else { session.get(&plain).await.unwrap_or(before) };
        let path = format!("{plain}{}", write_query(session, "kubectl-patch")?);
        let after = match local || is_client_dry_run(session)? {
            true => here(&kind, &before, form, &patch)?,
            false => session.patch(&path, form, &patch).await.map_err(|error| match error.status() {
                415 => error.because(&format!(
                    "application/{form}+json is not supported by {}, Kind={}: ",
                    kind.api_version(),
                    kind.kind
                )),
                _ => error,
            })?,
        };
        let after = recorded(session, &plain, after).await?;
        let mut same = (before.clone(), after.clone());
        strip_managed(&mut same.0);
        strip_managed(&mut same.1);
        let done = if same.0 == same.1 { "patched (no change)" } else { "patched" };
        match Format::of(parsed)? {
            // kubectl says nothing of a dry run here.
            Format::Default => println!("{} {done}", name_of(&after)),
            _ => changed(parsed, &after, done)?,
        }
    }
    Ok(())
}

/// Keeps the command line in an object that was patched, if that is asked for.
async fn recorded(session: &Session, path: &str, object: Value) -> Outcome<Value> {
    if !session.parsed.on("record") || session.parsed.on("local") || is_client_dry_run(session)? {
        return Ok(object);
    }
    let mut patch = serde_json::json!({"metadata": {}});
    super::create::record(session, &mut patch);
    session.patch(&format!("{path}{}", write_query(session, "kubectl-patch")?), "merge-patch", &patch).await
}

/// Applies a patch without asking the server.
fn here(kind: &Kind, before: &Value, form: &str, patch: &Value) -> Outcome<Value> {
    let mut after = before.clone();
    let types = keelson_machinery::schema::of_kind(&kind.group, &kind.version, &kind.kind);
    let done = match form {
        "json-patch" => keelson_machinery::patch::json(&mut after, patch),
        "strategic-merge-patch" if types.is_some() => keelson_machinery::strategic::apply(types, &mut after, patch),
        _ => {
            keelson_machinery::patch::merge(&mut after, patch);
            Ok(())
        }
    };
    done.map(|()| after).map_err(|status| Failure::new(status.message.clone()))
}

/// The merge patch (RFC 7386) that makes `after` of `before`; `None` if they are the same.
pub fn difference(before: &Value, after: &Value) -> Option<Value> {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = serde_json::Map::new();
            for key in old.keys().filter(|k| !new.contains_key(*k)) {
                patch.insert(key.clone(), Value::Null);
            }
            for (key, value) in new {
                let change = match old.get(key) {
                    Some(had) => difference(had, value),
                    None => Some(value.clone()),
                };
                patch.extend(change.map(|c| (key.clone(), c)));
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        (a, b) if a == b => None,
        (_, after) => Some(after.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_difference_applied_gives_the_other() {
        let before = json!({"a": 1, "b": {"c": [1], "d": 2}, "e": "x"});
        for after in [
            json!({"a": 1, "b": {"c": [1, 2]}, "f": null}),
            json!({}),
            json!({"a": 2, "b": {"c": [1], "d": 2}, "e": "x"}),
        ] {
            let mut patched = before.clone();
            keelson_machinery::patch::merge(&mut patched, &difference(&before, &after).unwrap());
            let mut expected = after.clone();
            expected.as_object_mut().unwrap().retain(|_, v| !v.is_null());
            assert_eq!(patched, expected);
        }
        assert_eq!(difference(&before, &before), None);
    }
}
