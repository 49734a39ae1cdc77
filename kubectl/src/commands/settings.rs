//! `config set-cluster`, `set-context`, `set-credentials`, `set`, `unset` and what deletes and renames entries.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::config::{Config, entry, entry_mut};
use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, switch, text};
use crate::session::Session;
use crate::shape::{self, Holds, LISTS};

/// Flags of `config set-cluster`.
pub const SET_CLUSTER: &[&[Flag]] = &[&[
    text("certificate-authority", "", "Path to certificate-authority file for the cluster entry in kubeconfig"),
    switch("insecure-skip-tls-verify", "insecure-skip-tls-verify for the cluster entry in kubeconfig"),
    text("server", "", "server for the cluster entry in kubeconfig"),
    text("tls-server-name", "", "tls-server-name for the cluster entry in kubeconfig"),
    switch("embed-certs", "embed-certs for the cluster entry in kubeconfig"),
    text("proxy-url", "", "proxy-url for the cluster entry in kubeconfig"),
]];
/// Flags of `config set-context`.
pub const SET_CONTEXT: &[&[Flag]] = &[&[
    switch("current", "Modify the current context"),
    text("cluster", "", "cluster for the context entry in kubeconfig"),
    text("namespace", "", "namespace for the context entry in kubeconfig"),
    text("user", "", "user for the context entry in kubeconfig"),
]];
/// Flags of `config set-credentials`.
pub const SET_CREDENTIALS: &[&[Flag]] = &[&[
    switch("embed-certs", "Embed client cert/key for the user entry in kubeconfig"),
    text("exec-api-version", "", "API version of the exec credential plugin for the user entry in kubeconfig"),
    text("auth-provider", "", "Auth provider for the user entry in kubeconfig"),
    repeated("auth-provider-arg", "'key=value' arguments for the auth provider"),
    text("client-certificate", "", "Path to client-certificate file for the user entry in kubeconfig"),
    text("client-key", "", "Path to client-key file for the user entry in kubeconfig"),
    repeated("exec-env", "'key=value' environment values for the exec credential plugin"),
    text(
        "exec-interactive-mode",
        "",
        "InteractiveMode of the exec credentials plugin for the user entry in kubeconfig",
    ),
    switch(
        "exec-provide-cluster-info",
        "ProvideClusterInfo of the exec credentials plugin for the user entry in kubeconfig",
    ),
    text("password", "", "password for the user entry in kubeconfig"),
    text("token", "", "token for the user entry in kubeconfig"),
    text("username", "", "username for the user entry in kubeconfig"),
    repeated("exec-arg", "New arguments for the exec credential plugin command for the user entry in kubeconfig"),
    text("exec-command", "", "Command for the exec credential plugin for the user entry in kubeconfig"),
]];
/// Flags of `config set`.
pub const SET: &[&[Flag]] = &[&[switch(
    "set-raw-bytes",
    "When writing a []byte PROPERTY_VALUE, write the given string directly without base64 decoding.",
)]];

fn print_help(session: &Session) {
    let path = session.parsed.command.trim_start_matches("kubectl ");
    if let Some(command) = super::COMMANDS.iter().find(|c| c.path == path) {
        print!("{}", crate::help::of_command(command));
    }
}

/// A refusal with the command's help before it.
fn with_help(session: &Session, message: impl Into<String>) -> Failure {
    print_help(session);
    Failure::new(message)
}

/// The refusal of a number of arguments that does not fit.
fn unexpected(session: &Session, args: &[String]) -> Failure {
    let word = if session.parsed.command.ends_with("set-credentials") { "unexpected" } else { "Unexpected" };
    with_help(session, format!("{word} args: [{}]", args.join(" ")))
}

fn one_name(session: &Session) -> Outcome<&str> {
    match session.parsed.args.as_slice() {
        [name] => Ok(name),
        args => Err(unexpected(session, args)),
    }
}

/// Runs `config use-context`.
pub async fn use_context(session: &Session) -> Outcome {
    let name = one_name(session)?;
    if name.is_empty() {
        return Err(Failure::new("empty context names are not allowed"));
    }
    if entry(&session.config.merged, "contexts", name).is_none() {
        return Err(Failure::new(format!("no context exists with the name: {name:?}")));
    }
    Config::change(&session.config.new_file(), |config| {
        config["current-context"] = name.into();
        Ok(())
    })?;
    println!("Switched to context {name:?}.");
    Ok(())
}

async fn remove(session: &Session, list: &str, word: &str) -> Outcome {
    let name = match session.parsed.args.as_slice() {
        [name] => name.as_str(),
        _ if list == "users" => return Err(session.parsed.usage("user to delete is required")),
        _ => {
            print_help(session);
            return Ok(());
        }
    };
    let file = session.config.file_with(list, name);
    if entry(&session.config.merged, list, name).is_none() {
        return Err(Failure::new(format!("cannot delete {word} {name}, not in {}", file.display())));
    }
    if list == "contexts" && session.config.merged["current-context"] == name {
        eprintln!(
            "warning: this removed your active context, use \"kubectl config use-context\" to select a different one"
        );
    }
    Config::change(&file, |config| {
        if let Some(entries) = config[list].as_array_mut() {
            entries.retain(|e| e["name"] != name);
        }
        Ok(())
    })?;
    println!("deleted {word} {name} from {}", file.display());
    Ok(())
}

/// Runs `config delete-cluster`.
pub async fn delete_cluster(session: &Session) -> Outcome {
    remove(session, "clusters", "cluster").await
}

/// Runs `config delete-context`.
pub async fn delete_context(session: &Session) -> Outcome {
    remove(session, "contexts", "context").await
}

/// Runs `config delete-user`.
pub async fn delete_user(session: &Session) -> Outcome {
    remove(session, "users", "user").await
}

/// Runs `config rename-context`.
pub async fn rename_context(session: &Session) -> Outcome {
    let [old, new] = session.parsed.args.as_slice() else {
        return Err(unexpected(session, &session.parsed.args));
    };
    let (merged, file) = (&session.config.merged, session.config.file_with("contexts", old));
    let refused = |why: String| Failure::new(format!("cannot rename the context {old:?}, {why} {}", file.display()));
    if entry(merged, "contexts", old).is_none() {
        return Err(refused("it's not in".into()));
    }
    if entry(merged, "contexts", new).is_some() {
        return Err(refused(format!("the context {new:?} already exists in")));
    }
    Config::change(&file, |config| {
        for context in config["contexts"].as_array_mut().into_iter().flatten() {
            if context["name"] == old.as_str() {
                context["name"] = new.as_str().into();
            }
        }
        if config["current-context"] == old.as_str() {
            config["current-context"] = new.as_str().into();
        }
        Ok(())
    })?;
    println!("Context {old:?} renamed to {new:?}.");
    Ok(())
}

/// Changes an entry's fields; says whether it was there.
fn set(session: &Session, list: &str, name: &str, change: impl FnOnce(&mut Map<String, Value>)) -> Outcome<bool> {
    let there = entry(&session.config.merged, list, name).is_some();
    Config::change(&session.config.file_with(list, name), |config| {
        if let Some(found) = entry_mut(config, list, name).and_then(Value::as_object_mut) {
            change(found);
        }
        Ok(())
    })?;
    Ok(there)
}

/// The content of a file that is to be embedded, in base64.
fn embedded(flag: &str, path: &str) -> Outcome<Value> {
    let bytes = std::fs::read(path).map_err(|e| {
        let why = crate::failure::reason(&e);
        Failure::new(format!("could not stat {flag} file {path}: stat {path}: {why}"))
    })?;
    Ok(STANDARD.encode(bytes).into())
}

/// What a flag that names a file sets: its path, or its content if it is to be embedded.
fn file_fields(session: &Session, flag: &'static str) -> Outcome<Vec<(String, Value)>> {
    let (parsed, data) = (&session.parsed, format!("{flag}-data"));
    let path = parsed.text(flag);
    if !parsed.is_set(flag) {
        return Ok(Vec::new());
    }
    if parsed.on("embed-certs") && !path.is_empty() {
        return Ok(vec![(data, embedded(flag, path)?), (flag.into(), Value::Null)]);
    }
    let path = if path.is_empty() { String::new() } else { std::path::absolute(path)?.to_string_lossy().into_owned() };
    Ok(vec![(flag.into(), path.into()), (data, Value::Null)])
}

/// Runs `config set-cluster`.
pub async fn set_cluster(session: &Session) -> Outcome {
    let (name, parsed) = (one_name(session)?, &session.parsed);
    if name.is_empty() {
        return Err(Failure::new("you must specify a non-empty cluster name"));
    }
    let (insecure, has_ca) = (parsed.on("insecure-skip-tls-verify"), !parsed.text("certificate-authority").is_empty());
    if insecure && has_ca {
        return Err(Failure::new("you cannot specify a certificate authority and insecure mode at the same time"));
    }
    if parsed.on("embed-certs") && !has_ca {
        return Err(Failure::new("you must specify a --certificate-authority to embed"));
    }
    let authority = file_fields(session, "certificate-authority")?;
    set(session, "clusters", name, |cluster| {
        if parsed.is_set("server") {
            // The name that the former server's certificate had.
            cluster.remove("tls-server-name");
        }
        for flag in ["server", "tls-server-name", "proxy-url"] {
            if parsed.is_set(flag) {
                cluster.insert(flag.into(), parsed.text(flag).into());
            }
        }
        // Who does not ask for it again gets a server that is verified.
        cluster.insert("insecure-skip-tls-verify".into(), insecure.into());
        if insecure {
            cluster.remove("certificate-authority");
            cluster.remove("certificate-authority-data");
        }
        cluster.extend(authority);
    })?;
    println!("Cluster {name:?} set.");
    Ok(())
}

/// Runs `config set-context`.
pub async fn set_context(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let current = session.config.merged["current-context"].as_str().unwrap_or_default().to_owned();
    if parsed.args.len() > 1 {
        return Err(unexpected(session, &parsed.args));
    }
    let name = match (parsed.on("current"), parsed.args.first()) {
        (true, None) if current.is_empty() => return Err(Failure::new("no current context is set")),
        (true, None) => current,
        (true, Some(_)) => return Err(Failure::new("you cannot specify both a context name and --current")),
        (false, Some(name)) if !name.is_empty() => name.clone(),
        _ => return Err(Failure::new("you must specify a non-empty context name or --current")),
    };
    let there = set(session, "contexts", &name, |context| {
        for flag in ["cluster", "user", "namespace"].into_iter().filter(|f| parsed.is_set(f)) {
            context.insert(flag.into(), parsed.text(flag).into());
        }
    })?;
    println!("Context {name:?} {}.", if there { "modified" } else { "created" });
    Ok(())
}

/// What a list of `key=value` and `key-` sets and removes.
struct Changes {
    set: Vec<(String, String)>,
    remove: Vec<String>,
}

fn changes(session: &Session, flag: &str) -> Outcome<Changes> {
    let mut changes = Changes { set: Vec::new(), remove: Vec::new() };
    for given in session.parsed.list(flag) {
        match (given.split_once('='), given.strip_suffix('-')) {
            (Some((key, value)), _) => changes.set.push((key.to_owned(), value.to_owned())),
            (None, Some(key)) => changes.remove.push(key.to_owned()),
            _ => return Err(with_help(session, format!("invalid {flag} format: {given}"))),
        }
    }
    Ok(changes)
}

/// Runs `config set-credentials`.
pub async fn set_credentials(session: &Session) -> Outcome {
    let (name, parsed) = (one_name(session)?, &session.parsed);
    let (provider, env) = (changes(session, "auth-provider-arg")?, changes(session, "exec-env")?);
    if !matches!(parsed.text("exec-interactive-mode"), "" | "Never" | "Always" | "IfAvailable") {
        return Err(Failure::new("invalid interactive mode type, can be only IfAvailable, Never, Always"));
    }
    if name.is_empty() {
        return Err(Failure::new("you must specify a non-empty user name"));
    }
    let given = |flag: &str| !parsed.text(flag).is_empty();
    let (has_token, has_basic) = (given("token"), given("username") || given("password"));
    if has_token && has_basic {
        return Err(Failure::new(
            "you cannot specify more than one authentication method at the same time: --token, --username/--password",
        ));
    }
    if parsed.on("embed-certs") && !given("client-certificate") && !given("client-key") {
        return Err(Failure::new("you must specify a --client-certificate or --client-key to embed"));
    }
    let mut files = file_fields(session, "client-certificate")?;
    files.extend(file_fields(session, "client-key")?);
    set(session, "users", name, |user| {
        user.extend(files);
        for flag in ["token", "username", "password"].into_iter().filter(|flag| parsed.is_set(flag)) {
            user.insert(flag.into(), parsed.text(flag).into());
        }
        auth_provider(session, user, &provider);
        exec(session, user, &env);
        // One way to authenticate takes the place of the other.
        if has_token && !has_basic {
            user.retain(|key, _| !matches!(key.as_str(), "username" | "password"));
        }
        if has_basic && !has_token {
            user.remove("token");
        }
    })?;
    println!("User {name:?} set.");
    Ok(())
}

fn auth_provider(session: &Session, user: &mut Map<String, Value>, args: &Changes) {
    if session.parsed.is_set("auth-provider") {
        let name = session.parsed.text("auth-provider");
        if user.get("auth-provider").is_none_or(|have| have["name"] != name) {
            user.insert("auth-provider".into(), json!({"name": name, "config": {}}));
        }
    }
    let Some(provider) = user.get_mut("auth-provider") else { return };
    if !provider["config"].is_object() {
        provider["config"] = json!({});
    }
    if let Some(config) = provider["config"].as_object_mut() {
        args.remove.iter().for_each(|key| drop(config.remove(key)));
        config.extend(args.set.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))));
    }
}

fn exec(session: &Session, user: &mut Map<String, Value>, env: &Changes) {
    let parsed = &session.parsed;
    if parsed.is_set("exec-command") {
        let exec = user.entry("exec").or_insert_with(|| json!({}));
        exec["command"] = parsed.text("exec-command").into();
        exec["args"] = Value::Null;
    }
    // Nothing of it is kept where no command is.
    let Some(exec) = user.get_mut("exec") else { return };
    for (flag, key) in [("exec-api-version", "apiVersion"), ("exec-interactive-mode", "interactiveMode")] {
        if parsed.is_set(flag) {
            exec[key] = parsed.text(flag).into();
        }
    }
    if parsed.is_set("exec-provide-cluster-info") {
        exec["provideClusterInfo"] = parsed.on("exec-provide-cluster-info").into();
    }
    if parsed.is_set("exec-arg") {
        exec["args"] = json!(parsed.list("exec-arg"));
    }
    let mut variables: Vec<Value> = exec["env"].as_array().cloned().unwrap_or_default();
    variables.retain(|have| !env.remove.iter().any(|name| have["name"] == name.as_str()));
    for (name, value) in &env.set {
        match variables.iter_mut().find(|have| have["name"] == name.as_str()) {
            Some(have) => have["value"] = value.as_str().into(),
            None => variables.push(json!({"name": name, "value": value})),
        }
    }
    exec["env"] = if variables.is_empty() { Value::Null } else { variables.into() };
}

/// A property: `clusters.my.name.server`, where names of entries may have dots in them.
enum Property {
    /// A field of the configuration itself.
    Top(&'static str, Option<&'static str>, Holds),
    /// An entry as a whole.
    Entry(&'static str, String),
    /// A field of an entry.
    Field(&'static str, String, &'static str, Holds),
    /// All entries.
    List(&'static str),
}

fn property(path: &str) -> Outcome<Property> {
    let parts: Vec<&str> = path.split('.').collect();
    let (first, rest) = parts.split_first().map_or(("", &[][..]), |(first, rest)| (*first, rest));
    match (first, rest) {
        ("current-context", []) => return Ok(Property::Top("current-context", None, Holds::Text)),
        ("preferences", ["colors"]) => return Ok(Property::Top("preferences", Some("colors"), Holds::Bool)),
        _ => {}
    }
    let Some((list, _)) = LISTS.into_iter().find(|(list, _)| *list == first) else {
        return Err(Failure::new(format!("unable to parse {path} after [] at api.Config")));
    };
    if rest.is_empty() {
        return Ok(Property::List(list));
    }
    let known = |part: &&str| shape::fields(list).iter().find(|(field, _)| field == part);
    let found = rest.iter().enumerate().skip(1).find_map(|(at, part)| known(part).map(|field| (at, field)));
    let nested = rest.iter().skip(1).any(|part| matches!(*part, "exec" | "auth-provider"));
    match found {
        Some((at, (field, holds))) if at + 1 == rest.len() && !nested => {
            Ok(Property::Field(list, rest[..at].join("."), field, *holds))
        }
        None if !nested => Ok(Property::Entry(list, rest.join("."))),
        _ => Err(Failure::new(format!("unable to parse one or more field values of {path}"))),
    }
}

fn value_of(session: &Session, text: &str, holds: Holds) -> Outcome<Value> {
    Ok(match holds {
        Holds::Text => text.into(),
        Holds::Bool => match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true.into(),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false.into(),
            _ => return Err(Failure::new(format!("strconv.ParseBool: parsing {text:?}: invalid syntax"))),
        },
        Holds::Bytes if session.parsed.on("set-raw-bytes") => STANDARD.encode(text).into(),
        Holds::Bytes => match STANDARD.decode(text) {
            Ok(_) => text.into(),
            Err(error) => {
                let at = match error {
                    base64::DecodeError::InvalidByte(at, _) => at,
                    _ => text.len() / 4 * 4,
                };
                let why = format!("error decoding input value: illegal base64 data at input byte {at}");
                return Err(Failure::new(why));
            }
        },
    })
}

/// Runs `config set`.
pub async fn set_property(session: &Session) -> Outcome {
    let [path, text] = session.parsed.args.as_slice() else {
        return Err(unexpected(session, &session.parsed.args));
    };
    match property(path)? {
        Property::Top(key, inner, holds) => {
            let value = value_of(session, text, holds)?;
            Config::change(&session.config.new_file(), |config| {
                match inner {
                    Some(inner) => config[key][inner] = value,
                    None => config[key] = value,
                }
                Ok(())
            })?;
        }
        Property::Field(list, name, field, holds) => {
            let value = value_of(session, text, holds)?;
            set(session, list, &name, |entry| drop(entry.insert(field.into(), value)))?;
        }
        Property::Entry(..) | Property::List(_) => return Err(Failure::new("can't set a map to a value")),
    }
    println!("Property {path:?} set.");
    Ok(())
}

/// Runs `config unset`.
pub async fn unset(session: &Session) -> Outcome {
    let [path] = session.parsed.args.as_slice() else {
        return Err(unexpected(session, &session.parsed.args));
    };
    let merged = &session.config.merged;
    match property(path)? {
        Property::Top(key, inner, _) => {
            Config::change(&session.config.file_with_current(), |config| {
                match (inner, config[key].as_object_mut()) {
                    (Some(inner), Some(map)) => drop(map.remove(inner)),
                    _ => config[key] = Value::Null,
                }
                Ok(())
            })?;
        }
        Property::List(list) => {
            for file in &session.config.files {
                Config::change(file, |config| {
                    config[list] = json!([]);
                    Ok(())
                })?;
            }
        }
        Property::Entry(list, name) => Config::change(&session.config.file_with(list, &name), |config| {
            if let Some(entries) = config[list].as_array_mut() {
                entries.retain(|e| e["name"] != name.as_str());
            }
            Ok(())
        })?,
        Property::Field(list, name, ..) if entry(merged, list, &name).is_none() => {
            return Err(Failure::new(format!("current map key `{name}` is invalid")));
        }
        Property::Field(list, name, field, _) => drop(set(session, list, &name, |entry| drop(entry.remove(field)))?),
    }
    println!("Property {path:?} unset.");
    Ok(())
}
