//! `create -f` and `replace`.

use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, RECORD, switch, text};
use crate::kinds;
use crate::objects::{self, FILES, place};
use crate::output::{self, changed};
use crate::session::{Session, encode, query};
use crate::value::quoted;

/// Flags of commands that write.
pub const WRITE: &[Flag] = &[
    text("dry-run", "none", "Must be \"none\", \"server\", or \"client\".").alone("unchanged"),
    manager("kubectl-create"),
    text("validate", "strict", "Must be one of: strict (or true), warn, ignore (or false).").alone("strict"),
];

/// The flag that names who owns the fields that a command sets.
pub const fn manager(default: &'static str) -> Flag {
    text("field-manager", default, "Name of the manager used to track field ownership.")
}

/// The flag of editors on systems with other line endings.
pub const LINE_ENDINGS: Flag =
    switch("windows-line-endings", "Taken for compatibility: edited files have the line endings of this system.");
/// The flag that keeps what was written in the annotation that `apply` reads.
pub const SAVE: Flag =
    switch("save-config", "If true, the configuration of current object will be saved in its annotation.");

/// Flags of `create -f`.
pub const FLAGS: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    WRITE,
    &[
        switch("edit", "Edit the API resource before creating"),
        text("raw", "", "Raw URI to POST to the server."),
        SAVE,
        LINE_ENDINGS,
        text("selector", "", "Selector (label query) to filter on").short('l'),
    ],
];

/// Flags of `replace`.
pub const REPLACE: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    &[
        WRITE[0],
        manager("kubectl-replace"),
        WRITE[2],
        switch("force", "If true, immediately remove resources from API and bypass graceful deletion."),
        text("grace-period", "-1", "Period of time in seconds given to the resource to terminate gracefully."),
        text("raw", "", "Raw URI to PUT to the server."),
        SAVE,
        switch("wait", "If true, wait for resources to be gone before returning."),
        text("subresource", "", "If specified, replaces the subresource of the requested object."),
        text("cascade", "background", "Must be \"background\", \"orphan\", or \"foreground\".").alone("background"),
        text("timeout", "0s", "The length of time to wait before giving up on a delete."),
        RECORD,
    ],
];

/// The annotation that keeps what was applied.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The annotation that says what changed an object.
pub const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";

/// Keeps the command line in an object, if that is asked for or was done before.
pub fn record(session: &Session, object: &mut Value) {
    let parsed = &session.parsed;
    let had = object["metadata"]["annotations"].get(CHANGE_CAUSE).is_some();
    if parsed.on("record") || (had && !parsed.is_set("record") && parsed.command == "kubectl apply") {
        object["metadata"]["annotations"][CHANGE_CAUSE] = parsed.change_cause().into();
    }
}

/// Whether `--dry-run` keeps the command from asking the server to change anything.
pub fn is_client_dry_run(session: &Session) -> Outcome<bool> {
    match session.parsed.text("dry-run") {
        "none" | "server" => Ok(false),
        "client" => Ok(true),
        "unchanged" => {
            eprintln!("W: --dry-run is deprecated and can be replaced with --dry-run=client.");
            Ok(true)
        }
        old @ ("true" | "false") => {
            let new = if old == "true" { "client" } else { "none" };
            eprintln!("W: --dry-run={old} is deprecated (boolean value) and can be replaced with --dry-run={new}.");
            Ok(old == "true")
        }
        other => {
            Err(Failure::new(format!("Invalid dry-run value ({other}). Must be \"none\", \"server\", or \"client\".")))
        }
    }
}

/// The query of a write.
pub fn write_query(session: &Session, manager: &str) -> Outcome<String> {
    let parsed = &session.parsed;
    let validation = match parsed.text("validate") {
        "true" | "strict" => "Strict",
        "warn" => "Warn",
        "false" | "ignore" => "Ignore",
        "" => "",
        other => {
            return Err(Failure::new(format!(
                "invalid - validate option {other:?}; must be one of: strict (or true), warn, ignore (or false)"
            )));
        }
    };
    let manager = if parsed.text("field-manager").is_empty() { manager } else { parsed.text("field-manager") };
    let dry_run = if parsed.text("dry-run") == "server" { "All" } else { "" };
    Ok(query(&[("dryRun", dry_run), ("fieldManager", manager), ("fieldValidation", validation)]))
}

/// Keeps the whole object, which was made of flags, in its annotation.
pub fn save_typed(object: &mut Value) {
    let text = crate::output::json::typed(object) + "\n";
    object["metadata"]["annotations"][LAST_APPLIED] = text.into();
}

/// Keeps the whole object in its annotation.
pub fn save_config(object: &mut Value) {
    if let Some(annotations) = object["metadata"].get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
        if annotations.is_empty()
            && let Some(metadata) = object["metadata"].as_object_mut()
        {
            metadata.remove("annotations");
        }
    }
    let mut kept = object.clone();
    if !kept["metadata"]["annotations"].is_object() {
        kept["metadata"]["annotations"] = json!({});
    }
    let text = crate::output::json::compact(&kept) + "\n";
    object["metadata"]["annotations"][LAST_APPLIED] = text.into();
}

/// Creates an object that a file has, in the namespace that counts if it names none.
async fn create_found(session: &Session, source: &str, mut object: Value) -> Outcome {
    let kind = kinds::of_object(session, &object).await.map_err(|error| objects::unmapped(source, &object, error))?;
    if kind.namespaced && object["metadata"]["namespace"].is_null() {
        object["metadata"]["namespace"] = session.namespace()?.into();
    }
    create(session, object).await.map_err(|error| error.when(&format!("error when creating {}", quoted(source))))
}

/// Creates an object that flags describe. Most refusals say what failed before they say why.
pub async fn generate(session: &Session, object: Value) -> Outcome {
    let what = match object["kind"].as_str().unwrap_or_default() {
        "Secret" => "failed to create secret ".to_owned(),
        "PodDisruptionBudget" => "failed to create poddisruptionbudgets: ".into(),
        "ResourceQuota" => "failed to create quota: ".into(),
        "Service" => format!("failed to create {} service: ", object["spec"]["type"].as_str().unwrap_or_default()),
        "Namespace" | "Role" | "ClusterRole" => return create(session, object).await,
        kind => format!("failed to create {}: ", kind.to_lowercase()),
    };
    create(session, object).await.map_err(|error| match error {
        // The message of an invalid object, which otherwise is made of its causes.
        error @ Failure::Server(_) => error.because(&what),
        other => other,
    })
}

/// Creates an object; with a client's dry run it is only handed back.
pub async fn create(session: &Session, mut object: Value) -> Outcome {
    let kind = kinds::of_object(session, &object).await?;
    if session.parsed.on("save-config") {
        match output::is_typed(&session.parsed.command) {
            true => save_typed(&mut object),
            false => save_config(&mut object),
        }
    }
    if kind.namespaced && object["metadata"]["namespace"].is_null() && session.parsed.is_set("namespace") {
        object["metadata"]["namespace"] = session.namespace()?.into();
    }
    let (namespace, _) = place(session, &object)?;
    if is_client_dry_run(session)? {
        return changed(&session.parsed, &object, "created");
    }
    let path = format!("{}{}", kind.path(Some(&namespace)), write_query(session, "kubectl-create")?);
    let made = session.post(&path, &object).await?;
    changed(&session.parsed, &made, "created")
}

/// Runs `create -f`.
pub async fn create_files(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if parsed.is_set("raw") {
        return raw(session, Method::POST).await;
    }
    if let Some(word) = parsed.args.first() {
        return Err(Failure::Plain(format!(
            "error: Unexpected args: [{}]\nSee 'kubectl create -h' for help and examples",
            if parsed.args.len() == 1 { word.clone() } else { parsed.args.join(" ") }
        )));
    }
    if !parsed.is_set("filename") && !parsed.is_set("kustomize") {
        return Err(Failure::new("must specify one of -f and -k"));
    }
    let mut failed = None;
    let selector = keelson_machinery::selector::LabelSelector::parse(parsed.text("selector")).map_err(Failure::new)?;
    let mut none = true;
    for (source, object) in objects::each_source(session).await? {
        let made = match object {
            Ok(object) if !selector.matches(|key| object["metadata"]["labels"][key].as_str()) => continue,
            Ok(object) if parsed.on("edit") => edited(session, object).await,
            Ok(object) => create_found(session, &source, object).await,
            Err(error) => Err(error),
        };
        none = false;
        if let Err(error) = made {
            failed = Some(super::say(failed, error));
        }
    }
    if none {
        return Err(Failure::new("no objects passed to create"));
    }
    failed.map_or(Ok(()), Err)
}

/// Creates what somebody makes of an object in an editor.
async fn edited(session: &Session, object: Value) -> Outcome {
    let text = format!("{}{}", super::edit::HEADER, keelson_machinery::yaml::write(&object)?);
    let edited = super::edit::in_editor(&text)?;
    let mut objects = Vec::new();
    objects::documents("edited-file", &edited, &mut objects)?;
    if objects.is_empty() || objects == [object] {
        println!("Edit cancelled, no changes made.");
        return Ok(());
    }
    for object in objects {
        create_found(session, "edited-file", object).await?;
    }
    Ok(())
}

/// Sends a file as it is to a path.
pub async fn raw(session: &Session, method: Method) -> Outcome {
    let parsed = &session.parsed;
    let files = parsed.list("filename");
    let path = parsed.text("raw");
    if files.is_empty() && method != Method::DELETE {
        return Err(Failure::new("must specify one of -f and -k"));
    }
    if !path.starts_with('/') {
        let given = quoted(path);
        return Err(Failure::new(format!("--raw must be a valid URL path: parse {given}: invalid URI for request")));
    }
    let body = match files.as_slice() {
        [] if method == Method::DELETE => Vec::new(),
        [one] if one == "-" => {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes)?;
            bytes
        }
        [one] => std::fs::read(one).map_err(|e| Failure::new(crate::failure::opening(one, &e)))?,
        _ => return Err(Failure::new("--raw can only use a single local file or stdin")),
    };
    let kind = (!body.is_empty()).then_some("application/json");
    let response = session.send(method, path, "application/json, */*", kind, body.into()).await?;
    let bytes = response.into_body().collect().await?.to_bytes();
    print!("{}", String::from_utf8_lossy(&bytes));
    Ok(())
}

/// Runs `replace`.
pub async fn replace(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if parsed.is_set("raw") {
        return raw(session, Method::PUT).await;
    }
    if !parsed.is_set("filename") && !parsed.is_set("kustomize") {
        return Err(Failure::new("must specify one of -f and -k"));
    }
    for flag in ["grace-period", "timeout"] {
        if parsed.is_set(flag) && !parsed.on("force") {
            return Err(Failure::new(format!("--{flag} must have --force specified")));
        }
    }
    if parsed.on("force") && parsed.text("dry-run") != "none" {
        return Err(Failure::new("--dry-run can not be used when --force is set"));
    }
    let cascade = parsed.text("cascade");
    if !matches!(cascade, "background" | "foreground" | "orphan") {
        return Err(Failure::new(format!(
            "invalid cascade value ({cascade}). Must be \"background\", \"foreground\", or \"orphan\""
        )));
    }
    let mut failed = None;
    let found = objects::each_source(session).await?;
    if parsed.on("force") {
        for (source, object) in found.iter().filter_map(|(source, object)| Some((source, object.as_ref().ok()?))) {
            remove_first(session, source, object).await?;
        }
    }
    for (source, object) in found {
        let what = format!("error when replacing {}", quoted(&source));
        let done = match object {
            Ok(object) => replace_one(session, &source, object).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            failed = Some(super::say(failed, error.when(&what)));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Deletes what is to be made anew.
async fn remove_first(session: &Session, source: &str, object: &Value) -> Outcome {
    let parsed = &session.parsed;
    let kind = kinds::of_object(session, object).await.map_err(|error| objects::unmapped(source, object, error))?;
    let (namespace, name) = place(session, object)?;
    let path = kind.object(&namespace, &encode(&name));
    let policy = match parsed.text("cascade") {
        "foreground" => "Foreground",
        "orphan" => "Orphan",
        _ => "Background",
    };
    let mut options = json!({"propagationPolicy": policy, "gracePeriodSeconds": 0});
    if parsed.number("grace-period")? > 0 {
        options["gracePeriodSeconds"] = parsed.number("grace-period")?.into();
    }
    match session.delete(&path, &options).await {
        Err(error) if !error.is_not_found() => return Err(error),
        Ok(_) => println!("{} deleted", deleted_name(object)),
        Err(_) => {}
    }
    super::delete::until_gone(session, &path, None).await
}

async fn replace_one(session: &Session, source: &str, mut object: Value) -> Outcome {
    let parsed = &session.parsed;
    let subresource = match parsed.text("subresource") {
        "" => String::new(),
        name => format!("/{name}"),
    };
    let kind = kinds::of_object(session, &object).await.map_err(|error| objects::unmapped(source, &object, error))?;
    let (namespace, name) = place(session, &object)?;
    if kind.namespaced && object["metadata"]["namespace"].is_null() {
        object["metadata"]["namespace"] = namespace.clone().into();
    }
    let path = kind.object(&namespace, &encode(&name));
    if parsed.on("save-config") {
        save_config(&mut object);
    }
    if is_client_dry_run(session)? {
        return changed(parsed, &object, "replaced");
    }
    if parsed.on("force") {
        let path = format!("{}{}", kind.path(Some(&namespace)), write_query(session, "kubectl-replace")?);
        let made = session.post(&path, &object).await?;
        return changed(parsed, &made, "replaced");
    }
    let path = format!("{path}{subresource}{}", write_query(session, "kubectl-replace")?);
    let made = session.put(&path, &object).await?;
    changed(parsed, &made, "replaced")
}

/// `pod "x"`, as a deletion is told.
pub fn deleted_name(object: &Value) -> String {
    let name = output::name_of(object);
    let (kind, name) = name.split_once('/').unwrap_or((&name, ""));
    format!("{kind} \"{name}\"")
}
