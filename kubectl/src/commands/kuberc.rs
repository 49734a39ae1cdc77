//! `kuberc`: a person's own defaults of flags and names of commands, in a file beside the kubeconfig.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, switch, text};
use crate::session::Session;
use crate::value::Read;

/// Flags of `kuberc view`.
pub const VIEW: &[&[Flag]] = &[&[text("output", "yaml", "Output format. One of: (json, yaml).").short('o')]];
/// Flags of `kuberc set`.
pub const SET: &[&[Flag]] = &[&[
    repeated("appendarg", "Arguments to put behind those of the command line, for an alias"),
    text("command", "", "The command that is meant"),
    text("name", "", "The alias' name"),
    repeated("option", "A flag and its default: flag=value"),
    switch("overwrite", "Replace an entry that is there"),
    repeated("prependarg", "Arguments to put before those of the command line, for an alias"),
    text("section", "", "What is set: defaults or aliases"),
]];

/// Where the preferences are: `KUBERC`, or `kuberc` beside the kubeconfig in the home directory. `off` is nowhere.
fn place() -> Option<PathBuf> {
    match std::env::var_os("KUBERC") {
        Some(off) if off == "off" => None,
        Some(path) if !path.is_empty() => Some(path.into()),
        _ => Some(PathBuf::from(std::env::var_os("HOME")?).join(".kube/kuberc")),
    }
}

fn read(path: &PathBuf) -> Outcome<Option<Value>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::new(crate::failure::opening(&path.to_string_lossy(), &error))),
    };
    serde_saphyr::from_str(&text)
        .map(Some)
        .map_err(|error| Failure::new(format!("kuberc: {} cannot be read: {error}", path.display())))
}

/// The preferences of this person, if there are any.
pub fn preferences() -> Outcome<Value> {
    let found = place().map(|path| read(&path)).transpose()?.flatten().unwrap_or_default();
    let version = found["apiVersion"].text();
    if found.is_object() && !matches!(version, "kubectl.config.k8s.io/v1alpha1" | "kubectl.config.k8s.io/v1beta1") {
        eprintln!("W: kuberc: {version:?} is no version that is known here; the preferences are not used");
        return Ok(Value::Null);
    }
    Ok(found)
}

fn texts(value: &Value) -> Vec<String> {
    value.texts().into_iter().map(str::to_owned).collect()
}

/// The command line with an alias replaced by what it stands for.
pub fn expanded(preferences: &Value, args: Vec<String>) -> Vec<String> {
    let Some(first) = args.first() else { return args };
    let Some(alias) = preferences["aliases"].items().iter().find(|alias| alias["name"] == first.as_str()) else {
        return args;
    };
    let mut all: Vec<String> = alias["command"].text().split_whitespace().map(str::to_owned).collect();
    all.extend(texts(&alias["prependArgs"]));
    all.extend(args[1..].iter().cloned());
    all.extend(texts(&alias["appendArgs"]));
    with_options(alias, all)
}

/// The command line with the defaults of the command before it, so that what is typed wins.
pub fn defaulted(preferences: &Value, path: &str, args: Vec<String>) -> Vec<String> {
    let of = preferences["defaults"].items().iter().chain(preferences["overrides"].items());
    match of.into_iter().find(|default| default["command"] == path) {
        Some(default) => with_options(default, args),
        None => args,
    }
}

/// Adds the options of an entry that the command line does not have.
fn with_options(entry: &Value, mut args: Vec<String>) -> Vec<String> {
    let options = entry["options"].items().iter().chain(entry["flags"].items());
    for option in options {
        let flag = format!("--{}", option["name"].text());
        let typed = |arg: &String| *arg == flag || arg.starts_with(&format!("{flag}="));
        if !args.iter().take_while(|a| *a != "--").any(typed) {
            let at = args.iter().position(|a| a == "--").unwrap_or(args.len());
            args.insert(at, format!("{flag}={}", option["default"].shown()));
        }
    }
    args
}

/// Runs `kuberc view`.
pub async fn view(session: &Session) -> Outcome {
    let Some(found) = place().map(|path| read(&path)).transpose()?.flatten() else {
        return Err(Failure::new("there is no kuberc"));
    };
    match session.parsed.text("output") {
        "json" => println!("{}", crate::output::json::pretty(&found)),
        "yaml" => print!("{}", keelson_machinery::yaml::write(&found)?),
        other => return Err(Failure::new(format!("--output must be 'yaml' or 'json', not {other:?}"))),
    }
    Ok(())
}

/// Runs `kuberc set`.
pub async fn set(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let path = place().ok_or_else(|| Failure::new("preferences are off: KUBERC=off"))?;
    let section = parsed.text("section");
    if !matches!(section, "defaults" | "aliases") {
        return Err(Failure::new("--section must be one of: defaults, aliases"));
    }
    if parsed.text("command").is_empty() {
        return Err(Failure::new("--command is required"));
    }
    let mut entry = json!({"command": parsed.text("command")});
    let key = match section {
        "aliases" if parsed.text("name").is_empty() => return Err(Failure::new("--name is required for an alias")),
        "aliases" => {
            entry["name"] = parsed.text("name").into();
            for (flag, field) in [("prependarg", "prependArgs"), ("appendarg", "appendArgs")] {
                if parsed.is_set(flag) {
                    entry[field] = json!(parsed.all(flag));
                }
            }
            "name"
        }
        _ => "command",
    };
    let mut options = Vec::new();
    for option in parsed.all("option") {
        let (name, value) =
            option.split_once('=').ok_or_else(|| Failure::new(format!("{option:?} is no option: flag=value")))?;
        options.push(json!({"name": name, "default": value}));
    }
    if !options.is_empty() {
        entry["options"] = options.into();
    }
    let empty = json!({"apiVersion": "kubectl.config.k8s.io/v1beta1", "kind": "Preference"});
    let mut whole = read(&path)?.unwrap_or(empty);
    let mut entries = whole[section].items().to_vec();
    let same = |have: &Value| have[key] == entry[key];
    if entries.iter().any(same) && !parsed.on("overwrite") {
        return Err(Failure::new(format!("{} is there already; --overwrite replaces it", entry[key])));
    }
    entries.retain(|have| !same(have));
    entries.push(entry);
    whole[section] = entries.into();
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&path, keelson_machinery::yaml::write(&whole)?)?;
    println!("Updated {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn aliases_and_defaults() {
        let preferences = json!({
            "aliases": [{"name": "getn", "command": "get", "prependArgs": ["nodes"], "options": [{"name": "output", "default": "wide"}]}],
            "defaults": [{"command": "delete", "options": [{"name": "interactive", "default": "true"}]}],
        });
        for (typed, expected) in [
            ("getn", "get nodes --output=wide"),
            ("getn a --output json", "get nodes a --output json"),
            ("get pods", "get pods"),
        ] {
            assert_eq!(expanded(&preferences, words(typed)), words(expected));
        }
        for (typed, expected) in [
            ("pod x", "pod x --interactive=true"),
            ("pod x --interactive=false", "pod x --interactive=false"),
            ("pod -- x", "pod --interactive=true -- x"),
        ] {
            assert_eq!(defaulted(&preferences, "delete", words(typed)), words(expected));
        }
    }
}
