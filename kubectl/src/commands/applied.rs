//! `apply view-last-applied`, `set-last-applied` and `edit-last-applied`: what the annotation keeps.

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch, text};
use crate::kinds;
use crate::objects::{FILES, SELECT, from_files, place};
use crate::output::{self, changed};
use crate::session::{Session, encode};
use crate::value::Read;

use super::change::{named, path_of};
use super::create::{LAST_APPLIED, LINE_ENDINGS, WRITE, is_client_dry_run, manager, save_config, write_query};
use super::edit::in_editor;

/// Flags of `view-last-applied`.
pub const VIEW: &[&[Flag]] =
    &[FILES, &[SELECT[0], SELECT[3], text("output", "yaml", "Output format. Must be one of (yaml, json)").short('o')]];
/// Flags of `set-last-applied`.
pub const SET: &[&[Flag]] = &[
    output::FLAGS,
    &[
        FILES[0],
        WRITE[0],
        switch(
            "create-annotation",
            "Will create 'last-applied-configuration' annotations if current objects doesn't have one",
        ),
    ],
];
/// Flags of `edit-last-applied`.
pub const EDIT: &[&[Flag]] = &[output::FLAGS, FILES, &[manager("kubectl-client-side-apply"), WRITE[2], LINE_ENDINGS]];

fn kept(object: &Value) -> Outcome<Value> {
    let text = object["metadata"]["annotations"][LAST_APPLIED].as_str();
    let name = object["metadata"]["name"].text();
    let text = text
        .ok_or_else(|| Failure::new(format!("no last-applied-configuration annotation found on resource: {name}")))?;
    serde_json::from_str(text).map_err(|e| Failure::new(format!("the annotation of {name} is no JSON: {e}")))
}

/// Runs `apply view-last-applied`.
pub async fn view(session: &Session) -> Outcome {
    let form = session.parsed.text("output");
    if !matches!(form, "yaml" | "json") {
        return Err(session
            .parsed
            .usage(format!("Unexpected -o output mode: {form}, the flag 'output' must be one of yaml|json")));
    }
    for (_, object) in named(session, &session.parsed.args).await? {
        // An object that was never applied has nothing to show.
        let Ok(kept) = kept(&object) else { continue };
        match form {
            "json" => println!("{}", serde_json::to_string_pretty(&kept).map_err(|e| Failure::new(e.to_string()))?),
            _ => print!("{}", keelson_machinery::yaml::write(&kept)?),
        }
    }
    Ok(())
}

/// Runs `apply set-last-applied`.
pub async fn set(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if !parsed.is_set("filename") {
        return Err(super::change::nothing_named());
    }
    for mut object in from_files(session).await? {
        let kind = kinds::of_object(session, &object).await?;
        let (namespace, name) = place(session, &object)?;
        let path = kind.object(&namespace, &encode(&name));
        let have = session.get(&path).await?;
        if !parsed.on("create-annotation") && have["metadata"]["annotations"][LAST_APPLIED].is_null() {
            return Err(Failure::new(format!(
                "no last-applied-configuration annotation found on resource: {name}, to create the annotation, run the command with --create-annotation"
            )));
        }
        if kind.namespaced && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = namespace.into();
        }
        if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
            annotations.remove(LAST_APPLIED);
        }
        let wanted = Value::from(crate::output::json::compact(&object) + "\n");
        if have["metadata"]["annotations"][LAST_APPLIED] == wanted {
            println!("set-last-applied {name}: no changes required.");
            continue;
        }
        let patch = json!({"metadata": {"annotations": {LAST_APPLIED: wanted}}});
        let after = match is_client_dry_run(session)? {
            true => have,
            false => {
                session
                    .patch(&format!("{path}{}", write_query(session, "kubectl-last-applied")?), "merge-patch", &patch)
                    .await?
            }
        };
        changed(parsed, &after, "configured")?;
    }
    Ok(())
}

/// Runs `apply edit-last-applied`.
pub async fn edit(session: &Session) -> Outcome {
    for (kind, object) in named(session, &session.parsed.args).await? {
        let before = kept(&object)?;
        let edited = in_editor(&keelson_machinery::yaml::write(&before)?)?;
        let mut objects = Vec::new();
        crate::objects::documents("edited-file", &edited, &mut objects)?;
        let Some(mut after) = objects.pop().filter(|after| *after != before) else {
            println!("Edit cancelled, no changes made.");
            continue;
        };
        save_config(&mut after);
        let patch =
            json!({"metadata": {"annotations": {LAST_APPLIED: after["metadata"]["annotations"][LAST_APPLIED]}}});
        let path = format!("{}{}", path_of(&kind, &object), write_query(session, "kubectl-last-applied")?);
        changed(&session.parsed, &session.patch(&path, "merge-patch", &patch).await?, "edited")?;
    }
    Ok(())
}
