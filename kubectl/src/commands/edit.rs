//! `edit`: objects in an editor, which opens again with what is wrong until it is right or given up.

use std::process::Command as Process;

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch, text};
use crate::kinds::{self, Kind};
use crate::objects::{self, FILES, documents, place};
use crate::output::{self, Format, json, name_of, strip_managed};
use crate::session::{Session, encode};

use super::change::{difference, path_of};
use super::create::{LINE_ENDINGS, SAVE, WRITE, manager, save_config, write_query};

/// Flags of `edit`.
pub const FLAGS: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    &[
        manager("kubectl-edit"),
        WRITE[2],
        crate::flags::RECORD,
        SAVE,
        LINE_ENDINGS,
        switch("output-patch", "Output the patch if the resource is edited."),
        text("subresource", "", "If specified, edits the subresource of the requested object."),
    ],
];

/// What an edited text begins with.
pub const HEADER: &str = "# Please edit the object below. Lines beginning with a '#' will be ignored,\n\
                          # and an empty file will abort the edit. If an error occurs while saving this file will be\n\
                          # reopened with the relevant failures.\n#\n";

/// An object as it is on the server.
struct Before {
    kind: Kind,
    object: Value,
}

/// Runs `edit`.
pub async fn edit(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if !matches!(parsed.text("output"), "" | "json" | "yaml") {
        return Err(Failure::new(format!(
            "unable to match a printer suitable for the output format {:?}, allowed formats are: json,yaml",
            parsed.text("output")
        )));
    }
    let mut all = chosen(session).await?;
    let as_json = parsed.text("output") == "json";
    let whole = match all.as_slice() {
        [one] => one.object.clone(),
        _ => json!({"apiVersion": "v1", "kind": "List", "metadata": {},
            "items": all.iter().map(|b| b.object.clone()).collect::<Vec<_>>()}),
    };
    let original = match as_json {
        true => json::pretty(&whole) + "\n",
        false => keelson_machinery::yaml::write(&whole)?,
    };
    let (mut shown, mut problems) = (original.clone(), String::new());
    loop {
        let edited = in_editor(&format!("{HEADER}{problems}{shown}"))?;
        let content: String = edited.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect();
        if content == shown {
            return match problems.is_empty() {
                true => {
                    println!("Edit cancelled, no changes made.");
                    Ok(())
                }
                false => {
                    given_up(&format!("{HEADER}{problems}{shown}"), "Edit cancelled, no valid changes were saved.")
                }
            };
        }
        if content.trim().is_empty() {
            return match problems.is_empty() {
                true => {
                    println!("Edit cancelled, saved file was empty.");
                    Ok(())
                }
                false => given_up(&edited, "Edit cancelled, saved file was empty."),
            };
        }
        let mut objects = Vec::new();
        let wrong = match documents("edited-file", &content, &mut objects) {
            Ok(()) if original == content => {
                println!("Edit cancelled, no changes made.");
                return Ok(());
            }
            Ok(()) => written(session, &mut all, objects).await,
            Err(error) => Err(error),
        };
        match wrong {
            Ok(()) => return Ok(()),
            Err(error @ Failure::Code(_)) => return Err(error),
            Err(error) => {
                problems = comment(&error.to_string());
                shown = content;
            }
        }
    }
}

/// The objects to edit.
async fn chosen(session: &Session) -> Outcome<Vec<Before>> {
    let parsed = &session.parsed;
    let mut all = Vec::new();
    if parsed.args.is_empty() && !parsed.is_set("filename") && !parsed.is_set("kustomize") {
        return Err(super::change::nothing_named());
    }
    for (kind, mut object) in objects::all_of(session, &parsed.args).await? {
        if !parsed.text("subresource").is_empty() {
            object = session.get(&path(session, &kind, &object)).await?;
        }
        strip_managed(&mut object);
        all.push(Before { kind, object });
    }
    if all.is_empty() {
        return Err(Failure::new("edit cancelled, no objects found"));
    }
    Ok(all)
}

/// Why the last text was not taken, as comments.
fn comment(why: &str) -> String {
    let lines: String = why.lines().map(|line| format!("# {line}\n")).collect();
    format!("{lines}#\n")
}

/// Keeps what was typed before it is given up.
fn given_up(text: &str, why: &str) -> Outcome {
    let file = tempfile::Builder::new().prefix("kubectl-edit-").suffix(".yaml").tempfile()?;
    std::fs::write(file.path(), text)?;
    let (_, path) = file.keep().map_err(|e| Failure::new(e.to_string()))?;
    println!("A copy of your changes has been stored to \"{}\"", path.display());
    Err(Failure::new(why))
}

fn path(session: &Session, kind: &Kind, object: &Value) -> String {
    match session.parsed.text("subresource") {
        "" => path_of(kind, object),
        name => format!("{}/{name}", path_of(kind, object)),
    }
}

/// Writes what was changed. What the server took is what later attempts start from.
async fn written(session: &Session, all: &mut [Before], objects: Vec<Value>) -> Outcome {
    let parsed = &session.parsed;
    let mut refused = None;
    for mut after in objects {
        let kind = kinds::of_object(session, &after).await?;
        let (_, name) = place(session, &after)?;
        let same = |b: &&mut Before| b.kind == kind && b.object["metadata"]["name"].as_str() == Some(&name);
        let Some(before) = all.iter_mut().find(same) else {
            return Err(Failure::new(format!(
                "At least one of apiVersion, kind and name was changed: {}",
                encode(&name)
            )));
        };
        if parsed.on("save-config") {
            save_config(&mut after);
        }
        let Some(patch) = difference(&before.object, &after) else {
            if parsed.is_set("output-patch") || all.len() == 1 {
                println!("{} skipped", name_of(&after));
            }
            continue;
        };
        if parsed.on("output-patch") {
            println!("Patch: {}", json::compact(&patch));
        }
        let path = format!("{}{}", path(session, &kind, &before.object), write_query(session, "kubectl-edit")?);
        match session.patch(&path, "merge-patch", &patch).await {
            Ok(made) => {
                match Format::of(parsed)? {
                    Format::Default => println!("{} edited", name_of(&made)),
                    format => print!("{}", format.print(&made, parsed.on("show-managed-fields"))?),
                }
                before.object = made;
                strip_managed(&mut before.object);
            }
            Err(Failure::Server(status)) => {
                let what = format!("{} {:?}", kind.qualified_plural(), name);
                let reason = status["reason"].as_str().unwrap_or_default();
                match reason {
                    "Invalid" => eprintln!("error: {what} is invalid"),
                    _ => eprintln!(
                        "error: {what} could not be patched: {}",
                        status["message"].as_str().unwrap_or_default()
                    ),
                }
                if !matches!(reason, "Invalid" | "BadRequest" | "Conflict") {
                    eprintln!("You can run `kubectl replace -f` to try this update again.");
                    return Err(Failure::Code(1));
                }
                refused = Some(Failure::Server(status));
            }
            Err(other) => return Err(other),
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Lets somebody change a text.
pub fn in_editor(text: &str) -> Outcome<String> {
    let file = tempfile::Builder::new().prefix("kubectl-edit-").suffix(".yaml").tempfile()?;
    std::fs::write(file.path(), text)?;
    let editor =
        ["KUBE_EDITOR", "EDITOR"].iter().find_map(|name| std::env::var(name).ok()).unwrap_or_else(|| "vi".into());
    let status = Process::new("sh").arg("-c").arg(format!("{editor} \"$0\"")).arg(file.path()).status();
    match status {
        Ok(status) if status.success() => Ok(std::fs::read_to_string(file.path())?),
        Ok(_) => Err(Failure::new(format!("there was a problem with the editor \"{editor}\""))),
        Err(error) => Err(Failure::new(format!("unable to launch the editor \"{editor}\": {error}"))),
    }
}
