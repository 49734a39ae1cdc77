//! What a command works on: objects named on its command line, and objects in files.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, Parsed, repeated, switch, text};
use crate::kinds::{self, Kind};
use crate::session::{Session, encode};

/// Flags that name files.
pub const FILES: &[Flag] = &[
    repeated("filename", "Filename, directory, or URL to files.").short('f'),
    text("kustomize", "", "Process the kustomization directory.").short('k'),
    switch("recursive", "Process the directory used in -f, --filename recursively.").short('R'),
];

/// Flags that select objects.
pub const SELECT: &[Flag] = &[
    text("selector", "", "Selector (label query) to filter on, supports '=', '==', '!=', 'in', 'notin'.").short('l'),
    text("field-selector", "", "Selector (field query) to filter on, supports '=', '==', and '!='."),
    switch("all-namespaces", "If present, list the requested object(s) across all namespaces.").short('A'),
    switch("all", "Select all resources in the namespace of the specified resource types."),
];

/// Objects of a kind: all, or those with names.
#[derive(Clone, Debug)]
pub struct Target {
    /// The kind.
    pub kind: Kind,
    /// The names; empty for all.
    pub names: Vec<String>,
}

/// Reads `pods`, `pods a b`, `pod/a svc/b` and `pods,services`.
pub async fn targets(session: &Session, args: &[String]) -> Outcome<Vec<Target>> {
    let Some(first) = args.first() else { return Ok(Vec::new()) };
    let slashes = args.iter().filter(|a| a.contains('/')).count();
    if slashes == 0 {
        let mut targets = Vec::new();
        let named = args.len() > 1;
        for name in first.split(',') {
            let category = kinds::category(session, name).await.unwrap_or_default();
            if category.len() > 1 && named {
                return Err(Failure::new("you must specify only one resource"));
            }
            let found = if category.is_empty() { vec![kinds::resolve(session, name).await?] } else { category };
            targets.extend(found.into_iter().map(|kind| Target { kind, names: args[1..].to_vec() }));
        }
        return Ok(targets);
    }
    let mut targets: Vec<Target> = Vec::new();
    for arg in args {
        let Some((kind, name)) = arg.split_once('/') else {
            return Err(Failure::new(
                "there is no need to specify a resource type as a separate argument when passing arguments in \
                 resource/name form (e.g. 'kubectl get resource/<resource_name>' instead of 'kubectl get resource \
                 resource/<resource_name>'",
            ));
        };
        if name.contains('/') {
            return Err(Failure::new("arguments in resource/name form may not have more than one slash"));
        }
        if name.is_empty() || kind.is_empty() {
            return Err(Failure::new("arguments in resource/name form must have a single resource and name"));
        }
        let kind = kinds::resolve(session, kind).await?;
        match targets.last_mut().filter(|t| t.kind == kind) {
            Some(target) => target.names.push(name.to_owned()),
            None => targets.push(Target { kind, names: vec![name.to_owned()] }),
        }
    }
    Ok(targets)
}

/// One object named on a command line.
pub async fn one(session: &Session, args: &[String]) -> Outcome<(Kind, String)> {
    let targets = targets(session, args).await?;
    match targets.as_slice() {
        [Target { kind, names }] if names.len() == 1 => Ok((kind.clone(), names[0].clone())),
        _ => Err(session.parsed.usage("one object is expected, as in TYPE/NAME or TYPE NAME")),
    }
}

/// Reads the objects that targets, selectors and files name; a kind without names is all of its objects.
pub async fn all_of(session: &Session, args: &[String]) -> Outcome<Vec<(Kind, Value)>> {
    collect(session, args, true, true).await
}

/// The same, and what of it failed.
pub async fn each_of_all(session: &Session, args: &[String]) -> Outcome<(Vec<(Kind, Value)>, Option<Failure>)> {
    collected(session, args, true, true).await
}

/// Reads the objects that targets, selectors and files name.
pub async fn read(session: &Session, args: &[String]) -> Outcome<Vec<(Kind, Value)>> {
    collect(session, args, false, true).await
}

/// Reads the objects that targets and files name, whatever the selectors say.
pub async fn read_by_name(session: &Session, args: &[String]) -> Outcome<Vec<(Kind, Value)>> {
    collect(session, args, false, false).await
}

/// Reads the objects that targets, selectors and files name, and says what of it failed.
pub async fn each(session: &Session, args: &[String]) -> Outcome<(Vec<(Kind, Value)>, Option<Failure>)> {
    collected(session, args, false, true).await
}

async fn collect(session: &Session, args: &[String], unnamed: bool, selects: bool) -> Outcome<Vec<(Kind, Value)>> {
    match collected(session, args, unnamed, selects).await? {
        (objects, None) => Ok(objects),
        (_, Some(error)) => Err(error),
    }
}

async fn collected(
    session: &Session,
    args: &[String],
    unnamed: bool,
    selects: bool,
) -> Outcome<(Vec<(Kind, Value)>, Option<Failure>)> {
    let parsed = &session.parsed;
    let (mut objects, mut failed) = (Vec::new(), None);
    for (_, object) in each_source(session).await? {
        match from_file(session, object).await {
            Ok(found) => objects.push(found),
            Err(error) => failed = Some(error.after(failed)),
        }
    }
    let namespace = session.namespace()?;
    let selects = selects && (parsed.is_set("selector") || parsed.is_set("field-selector"));
    for target in targets(session, args).await? {
        if !target.names.is_empty() && selects {
            return Err(Failure::new("name cannot be provided when a selector is specified"));
        }
        for name in &target.names {
            match session.get(&target.kind.object(&namespace, &encode(name))).await {
                Ok(object) => objects.push((target.kind.clone(), object)),
                Err(error) => failed = Some(error.after(failed)),
            }
        }
        if target.names.is_empty() {
            if !selects && !parsed.on("all") && !unnamed {
                return Err(Failure::new("resource(s) were provided, but no name was specified"));
            }
            let within = (!parsed.on("all-namespaces")).then_some(namespace.as_str());
            let query = crate::session::query(&[
                ("labelSelector", parsed.text("selector")),
                ("fieldSelector", parsed.text("field-selector")),
            ]);
            let mut list = session.get(&format!("{}{query}", target.kind.path(within))).await?;
            let items = crate::output::items_of(&target.kind, &mut list);
            objects.extend(items.into_iter().map(|item| (target.kind.clone(), item)));
        }
    }
    Ok((objects, failed))
}

/// An object that a file names, as the server has it; with `--local` as the file has it.
async fn from_file(session: &Session, object: Outcome<Value>) -> Outcome<(Kind, Value)> {
    let object = object?;
    let kind = kinds::of_object(session, &object).await?;
    if session.parsed.on("local") {
        return Ok((kind, object));
    }
    let (namespace, name) = place(session, &object)?;
    let found = session.get(&kind.object(&namespace, &encode(&name))).await?;
    Ok((kind, found))
}

/// Namespace and name of an object from a file.
pub fn place(session: &Session, object: &Value) -> Outcome<(String, String)> {
    let given = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let asked = session.parsed.text("namespace");
    if !given.is_empty() && !asked.is_empty() && given != asked {
        return Err(Failure::new(format!(
            "the namespace from the provided object \"{given}\" does not match the namespace \"{asked}\". You must pass \
             '--namespace={given}' to perform this operation."
        )));
    }
    let namespace = if given.is_empty() { session.namespace()? } else { given.to_owned() };
    Ok((namespace, object["metadata"]["name"].as_str().unwrap_or_default().to_owned()))
}

/// The objects in the files that `-f` names; Lists are taken apart.
pub async fn from_files(session: &Session) -> Outcome<Vec<Value>> {
    Ok(from_sources(session).await?.into_iter().map(|(_, object)| object).collect())
}

/// Says of an object's kind that is not known where the object is from.
pub fn unmapped(source: &str, object: &Value, error: Failure) -> Failure {
    let text = |key: &str| crate::value::quoted(object["metadata"][key].as_str().unwrap_or_default());
    match error {
        Failure::Error(why) if why.starts_with("no matches for kind") => Failure::Error(format!(
            "resource mapping not found for name: {} namespace: {} from {}: {why}",
            text("name"),
            text("namespace"),
            crate::value::quoted(source)
        )),
        other => other,
    }
}

/// The objects in the files that `-f` names, each with the file that it is from; the first bad file ends it.
pub async fn from_sources(session: &Session) -> Outcome<Vec<(String, Value)>> {
    each_source(session).await?.into_iter().map(|(source, object)| Ok((source, object?))).collect()
}

/// The objects in the files that `-f` names, each with the file that it is from, and what is wrong with the others.
pub async fn each_source(session: &Session) -> Outcome<Vec<(String, Outcome<Value>)>> {
    let parsed = &session.parsed;
    // What `set serviceaccount` sets looks like an object's name, and `replace` looks at no arguments.
    let sets_name = parsed.command.ends_with("set serviceaccount") || parsed.command.ends_with(" replace");
    if (parsed.is_set("kustomize") || parsed.is_set("filename"))
        && !sets_name
        && parsed.args.iter().any(|a| !is_change(a))
    {
        return Err(Failure::new(
            "when paths, URLs, or stdin is provided as input, you may not specify resource arguments as well",
        ));
    }
    if parsed.is_set("kustomize") && parsed.is_set("filename") {
        return Err(Failure::new("only one of -f or -k can be specified"));
    }
    if parsed.is_set("kustomize") {
        let directory = parsed.text("kustomize");
        let built = crate::kustomize::build(directory)?;
        return Ok(built.into_iter().map(|object| (directory.to_owned(), Ok(object))).collect());
    }
    let mut found = Vec::new();
    for name in parsed.list("filename") {
        for (source, text) in sources(parsed, &name)? {
            let mut objects = Vec::new();
            let read =
                documents(&source, &text, &mut objects).map_err(|error| undecodable(parsed, &source, &text, error));
            found.extend(objects.into_iter().map(|object| (source.clone(), Ok(object))));
            found.extend(read.err().map(|error| (source.clone(), Err(error))));
        }
    }
    Ok(found)
}

/// What commands that do not validate say of a document that names no kind.
fn undecodable(parsed: &Parsed, source: &str, text: &str, error: Failure) -> Failure {
    let validates = ["kubectl create", "kubectl apply", "kubectl replace"].contains(&parsed.command.as_str());
    let message = error.to_string();
    let lacks = |what: &str| message.contains(&format!("{what} not set"));
    if validates || !message.contains("error validating data: ") || !lacks("kind") {
        return error;
    }
    let values = split(text).into_iter().filter_map(|d| keelson_machinery::decode::yaml(d.as_bytes()).ok());
    let without = values.map(|decoded| decoded.value).find(|value| value["kind"].is_null()).unwrap_or_default();
    let shown = crate::output::json::compact(&without);
    Failure::new(format!("unable to decode {}: Object 'Kind' is missing in '{shown}'", crate::value::quoted(source)))
}

/// Whether an argument says what to change rather than what to change it of: `key=value` and `key-`.
fn is_change(argument: &str) -> bool {
    argument.contains('=') || argument.ends_with('-')
}

fn sources(parsed: &Parsed, name: &str) -> Outcome<Vec<(String, String)>> {
    if name == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(vec![("STDIN".into(), text)]);
    }
    if name.starts_with("http://") || name.starts_with("https://") {
        return Ok(vec![(name.to_owned(), fetched(name)?)]);
    }
    let path = Path::new(name);
    if !path.exists() {
        return Err(Failure::new(format!("the path \"{name}\" does not exist")));
    }
    let mut files = Vec::new();
    if path.is_dir() {
        walk(path, parsed.on("recursive"), &mut files)?
    } else {
        files.push(path.to_owned())
    }
    if files.is_empty() {
        return Err(Failure::new(format!("error reading [{name}]: recognized file extensions are [.json .yaml .yml]")));
    }
    files.into_iter().map(|f| Ok((f.to_string_lossy().into_owned(), std::fs::read_to_string(&f)?))).collect()
}

/// What is at a URL. curl has the proxies, roots and redirects of this host right already.
fn fetched(url: &str) -> Outcome<String> {
    const ARGUMENTS: [&str; 6] =
        ["--silent", "--show-error", "--location", "--write-out", "\n%{http_code}", "--max-time"];
    const SECONDS: &str = "60";
    /// What curl ends with when nobody listens.
    const REFUSED: i32 = 7;
    let run = std::process::Command::new("curl").args(ARGUMENTS).args([SECONDS, "--", url]).output();
    let output = run.map_err(|e| Failure::new(format!("unable to read URL {url:?}: curl cannot be run: {e}")))?;
    if output.status.code() == Some(REFUSED) {
        let host = url.split("://").nth(1).unwrap_or(url).split('/').next().unwrap_or_default();
        return Err(Failure::Plain(format!(
            "The connection to the server {host} was refused - did you specify the right host or port?"
        )));
    }
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failure::new(format!("unable to read URL {url:?}, {said}")));
    }
    let text = String::from_utf8(output.stdout)
        .map_err(|_| Failure::new(format!("unable to read URL {url:?}: it is no text")))?;
    let (text, code) = text.rsplit_once('\n').unwrap_or((&text, ""));
    match http::StatusCode::from_bytes(code.as_bytes()) {
        Ok(status) if !status.is_success() => {
            let (number, reason) = (status.as_u16(), status.canonical_reason().unwrap_or_default());
            Err(Failure::new(format!(
                "unable to read URL {url:?}, server reported {number} {reason}, status code={number}"
            )))
        }
        _ => Ok(text.to_owned()),
    }
}

fn walk(dir: &Path, deep: bool, files: &mut Vec<PathBuf>) -> Outcome {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir)?.filter_map(|e| Some(e.ok()?.path())).collect();
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            if deep {
                walk(&entry, deep, files)?;
            }
        } else if matches!(entry.extension().and_then(|e| e.to_str()), Some("json" | "yaml" | "yml")) {
            files.push(entry);
        }
    }
    Ok(())
}

/// Parses the documents of a text.
pub fn documents(source: &str, text: &str, objects: &mut Vec<Value>) -> Outcome {
    let wrong = |why: String| Failure::new(format!("error parsing {source}: {why}"));
    if text.trim_start().starts_with('{') {
        for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
            add(source, value.map_err(|e| wrong(e.to_string()))?, objects)?;
        }
        return Ok(());
    }
    for document in split(text) {
        let value = keelson_machinery::decode::yaml(document.as_bytes())
            .map_err(|why| wrong(format!("error converting YAML to JSON: {why}")))?
            .value;
        if !value.is_null() {
            add(source, value, objects)?;
        }
    }
    Ok(())
}

/// The documents of a YAML stream.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line == "---" || line.starts_with("--- ") {
            documents.push(String::new());
        } else if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    documents.retain(|d| d.lines().any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#')));
    documents
}

fn add(source: &str, value: Value, objects: &mut Vec<Value>) -> Outcome {
    let kind = value["kind"].as_str().unwrap_or_default();
    let missing = match (value["apiVersion"].as_str().unwrap_or_default(), kind) {
        ("", "") => "[apiVersion not set, kind not set]",
        ("", _) => "apiVersion not set",
        (_, "") => "kind not set",
        _ => "",
    };
    if !missing.is_empty() {
        return Err(Failure::new(format!(
            "error validating {source:?}: error validating data: {missing}; if you choose to ignore these errors, turn validation off with --validate=false"
        )));
    }
    match (kind.ends_with("List"), value["items"].as_array()) {
        (true, Some(items)) => items.iter().cloned().try_for_each(|item| add(source, item, objects)),
        _ => {
            objects.push(value);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists() {
        let text = "# c\n---\napiVersion: v1\nkind: A\n---\n\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: B}\n";
        let mut objects = Vec::new();
        documents("x", text, &mut objects).unwrap();
        assert_eq!(objects.iter().map(|o| o["kind"].as_str().unwrap()).collect::<Vec<_>>(), ["A", "B"]);
        documents("x", "{\"apiVersion\":\"v1\",\"kind\":\"C\"}", &mut objects).unwrap();
        assert_eq!(objects[2]["kind"], "C");
        assert!(documents("x", "a: b\n", &mut objects).unwrap_err().to_string().contains("kind not set"));
        assert!(documents("x", "a: [\n", &mut objects).unwrap_err().to_string().contains("error parsing x"));
    }
}
