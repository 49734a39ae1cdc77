//! `delete`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, Parsed, switch, text};
use crate::kinds::{self, Kind};
use crate::objects::{self, FILES, SELECT};
use crate::session::{Session, encode, query};

/// Flags of `delete`.
pub const FLAGS: &[&[Flag]] = &[
    FILES,
    SELECT,
    &[
        text("cascade", "background", "Must be \"background\", \"orphan\", or \"foreground\".").alone("background"),
        text("dry-run", "none", "Must be \"none\", \"server\", or \"client\".").alone("unchanged"),
        switch("force", "If true, immediately remove resources from API and bypass graceful deletion."),
        text("grace-period", "-1", "Period of time in seconds given to the resource to terminate gracefully."),
        switch("ignore-not-found", "Treat \"resource not found\" as a successful delete."),
        switch("interactive", "If true, delete resource only when user confirms.").short('i'),
        switch("now", "If true, resources are signaled for immediate shutdown (same as --grace-period=1)."),
        text("output", "", "Output mode. Use \"-o name\" for shorter output (resource/name).").short('o'),
        text("raw", "", "Raw URI to DELETE to the server."),
        text(
            "timeout",
            "0s",
            "The length of time to wait before giving up on a delete, zero means determine a timeout from the size of the object",
        ),
        switch("wait", "If true, wait for resources to be gone before returning.").or("true"),
    ],
];

/// Pause between looks whether an object is gone.
const POLL: Duration = Duration::from_millis(100);

/// One object to delete.
struct Doomed {
    kind: Kind,
    namespace: String,
    name: String,
    /// The file that names it.
    source: Option<String>,
}

/// Asks whether the objects are to be deleted.
fn confirmed(all: &[Doomed]) -> Outcome<bool> {
    if all.is_empty() {
        return Ok(true);
    }
    println!("You are about to delete the following {} resource(s):", all.len());
    all.iter().for_each(|d| println!("{}/{}", d.kind.qualified(), d.name));
    print!("Do you want to continue? (y/n): ");
    std::io::Write::flush(&mut std::io::stdout())?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y"))
}

/// Checks flags that do not go together.
fn check(parsed: &Parsed) -> Outcome {
    let selects = parsed.on("all") || parsed.is_set("selector") || parsed.is_set("field-selector");
    let names_nothing = parsed.args.is_empty() && parsed.list("filename").is_empty() && !parsed.is_set("kustomize");
    if names_nothing && selects {
        return Err(Failure::new("at least one resource must be specified to use a selector"));
    }
    if !matches!(parsed.text("output"), "" | "name") {
        return Err(Failure::new(format!(
            "unexpected -o output mode: {}. We only support '-o name'",
            parsed.text("output")
        )));
    }
    if parsed.on("now") && parsed.on("force") {
        return Err(Failure::new("--force and --grace-period greater than 0 cannot be specified together"));
    }
    if parsed.on("all") && parsed.is_set("selector") {
        return Err(Failure::new("setting 'all' parameter but found a non empty selector. "));
    }
    Ok(())
}

/// Runs `delete`.
pub async fn delete(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if parsed.is_set("raw") {
        return super::create::raw(session, http::Method::DELETE).await;
    }
    check(parsed)?;
    let options = options(session)?;
    let mut deleted = Vec::new();
    let mut found = 0;
    let (all, mut failed) = doomed(session).await?;
    if parsed.on("interactive") && !confirmed(&all)? {
        println!("deletion is cancelled");
        return Ok(());
    }
    for doomed in all {
        found += 1;
        let path = doomed.kind.object(&doomed.namespace, &encode(&doomed.name));
        let shown = format!("{} \"{}\"", doomed.kind.qualified(), doomed.name);
        let dry = match parsed.text("dry-run") {
            "client" | "unchanged" => " (dry run)",
            "server" => " (server dry run)",
            _ => "",
        };
        let result = match dry {
            // A dry run asks nobody: what is not there is shown like the rest.
            " (dry run)" => Ok(Value::Null),
            _ => session.delete(&path, &options).await,
        };
        match result {
            Ok(answer) => {
                match parsed.text("output") {
                    "name" => println!("{}/{}", doomed.kind.qualified(), doomed.name),
                    _ if parsed.on("force") => println!("{shown} force deleted{dry}"),
                    _ => println!("{shown} deleted{dry}"),
                }
                if dry.is_empty() {
                    let uid = answer["metadata"]["uid"].as_str().or(answer["details"]["uid"].as_str());
                    deleted.push((path, uid.map(str::to_owned)));
                }
            }
            Err(error) if error.is_not_found() && (parsed.on("ignore-not-found") || parsed.on("all")) => {}
            Err(error) => {
                let error = match &doomed.source {
                    Some(source) => error.when(&format!("error when deleting {}", crate::value::quoted(source))),
                    None => error,
                };
                failed = Some(super::say(failed, error));
            }
        }
    }
    if found == 0 && failed.is_none() {
        println!("No resources found");
    }
    if parsed.on("wait") {
        for (path, uid) in deleted {
            until_gone(session, &path, uid.as_deref()).await?;
        }
    }
    failed.map_or(Ok(()), Err)
}

fn options(session: &Session) -> Outcome<Value> {
    let parsed = &session.parsed;
    for (old, new) in [("true", "background"), ("false", "orphan")] {
        if parsed.text("cascade") == old {
            eprintln!(
                "warning: --cascade={old} is deprecated (boolean value) and can be replaced with --cascade={new}."
            );
        }
    }
    let policy = match parsed.text("cascade") {
        "background" | "true" => "Background",
        "foreground" => "Foreground",
        "orphan" | "false" => "Orphan",
        other => {
            return Err(Failure::new(format!(
                "invalid cascade value ({other}). Must be \"background\", \"foreground\", or \"orphan\""
            )));
        }
    };
    let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy});
    let grace = parsed.number("grace-period")?;
    let grace = match (parsed.on("now"), parsed.on("force"), grace) {
        (true, _, -1) => 1,
        (true, ..) => return Err(Failure::new("--now and --grace-period cannot be specified together")),
        (_, true, -1) => 0,
        (_, true, given) if given > 0 => {
            return Err(Failure::new("--force and --grace-period greater than 0 cannot be specified together"));
        }
        (_, false, 0) => 1,
        (.., given) => given,
    };
    if parsed.on("force") {
        eprintln!(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The \
             resource may continue to run on the cluster indefinitely."
        );
    }
    if grace >= 0 {
        options["gracePeriodSeconds"] = grace.into();
    }
    if parsed.text("dry-run") == "server" {
        options["dryRun"] = json!(["All"]);
    }
    Ok(options)
}

async fn doomed(session: &Session) -> Outcome<(Vec<Doomed>, Option<Failure>)> {
    let parsed = &session.parsed;
    let (mut all, mut failed) = (Vec::new(), None);
    let selector = keelson_machinery::selector::LabelSelector::parse(parsed.text("selector")).map_err(Failure::new)?;
    for (source, object) in objects::each_source(session).await? {
        let object = match object {
            Ok(object) => object,
            Err(error) => {
                failed = Some(super::say(failed, error));
                continue;
            }
        };
        if !selector.matches(|key| object["metadata"]["labels"][key].as_str()) {
            continue;
        }
        let kind = kinds::of_object(session, &object).await.map_err(|e| objects::unmapped(&source, &object, e))?;
        let (namespace, name) = objects::place(session, &object)?;
        all.push(Doomed { kind, namespace, name, source: Some(source) });
    }
    if parsed.args.is_empty() && !parsed.is_set("filename") && !parsed.is_set("kustomize") {
        return Err(Failure::new(
            "You must provide one or more resources by argument or filename.\nExample resource specifications include:\n   '-f rsrc.yaml'\n   '--filename=rsrc.json'\n   '<resource> <name>'\n   '<resource>'",
        ));
    }
    let namespace = session.namespace()?;
    let selected = parsed.is_set("selector") || parsed.is_set("field-selector") || parsed.on("all");
    for target in objects::targets(session, &parsed.args).await? {
        if target.names.is_empty() {
            if !selected {
                return Err(Failure::new("resource(s) were provided, but no name was specified"));
            }
            let within = (!parsed.on("all-namespaces")).then_some(namespace.as_str());
            let query =
                query(&[("labelSelector", parsed.text("selector")), ("fieldSelector", parsed.text("field-selector"))]);
            let list = session.get(&format!("{}{query}", target.kind.path(within))).await.map_err(|error| {
                error.when(&format!(
                    "Unable to find \"{}/{}, Resource={}\" that match label selector {:?}, field selector {:?}",
                    target.kind.group,
                    target.kind.version,
                    target.kind.plural,
                    parsed.text("selector"),
                    parsed.text("field-selector")
                ))
            })?;
            for item in list["items"].as_array().into_iter().flatten() {
                let text = |key: &str| item["metadata"][key].as_str().unwrap_or_default().to_owned();
                all.push(Doomed {
                    kind: target.kind.clone(),
                    namespace: text("namespace"),
                    name: text("name"),
                    source: None,
                });
            }
        } else if selected {
            return Err(Failure::new("name cannot be provided when a selector is specified"));
        }
        if !target.names.is_empty() && target.kind.namespaced && parsed.on("all-namespaces") {
            return Err(Failure::new("a resource cannot be retrieved by name across all namespaces"));
        }
        for name in target.names {
            all.push(Doomed { kind: target.kind.clone(), namespace: namespace.clone(), name, source: None });
        }
    }
    Ok((all, failed))
}

/// Waits until an object, or the one with this uid, is gone.
pub async fn until_gone(session: &Session, path: &str, uid: Option<&str>) -> Outcome {
    let timeout = session.parsed.duration("timeout")?;
    let started = Instant::now();
    loop {
        match session.get(path).await {
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
            Ok(object) if uid.is_some() && object["metadata"]["uid"].as_str() != uid => return Ok(()),
            Ok(_) if !timeout.is_zero() && started.elapsed() > timeout => {
                let name = path.rsplit('/').next().unwrap_or_default();
                return Err(Failure::new(format!("timed out waiting for the condition on {name}")));
            }
            Ok(_) => tokio::time::sleep(POLL).await,
        }
    }
}
