//! `config`: kubeconfig files.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::config::{Config, entry, entry_mut};
use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, switch, text};
use crate::output::{self, Format, table};
use crate::session::Session;
use crate::value::or;

/// Flags of `config view`.
pub const VIEW: &[&[Flag]] = &[
    output::FLAGS,
    &[
        switch("flatten", "Flatten the resulting kubeconfig file into self-contained output."),
        switch("merge", "Merge the full hierarchy of kubeconfig files").or("true"),
        switch("minify", "Remove all information not used by current-context from the output"),
        switch("raw", "Display raw byte data and sensitive data"),
    ],
];
/// Flags of `config get-contexts`.
pub const GET_CONTEXTS: &[&[Flag]] = &[&[
    switch("no-headers", "When using the default or custom-column output format, don't print headers."),
    text("output", "", "Output format. One of: (name).").short('o'),
]];
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

/// Runs `config current-context`.
pub async fn current_context(session: &Session) -> Outcome {
    match session.config.merged["current-context"].as_str().filter(|c| !c.is_empty()) {
        Some(current) => {
            println!("{current}");
            Ok(())
        }
        None => Err(Failure::new("current-context is not set")),
    }
}

/// Runs `config view`.
pub async fn view(session: &Session) -> Outcome {
    if !session.parsed.on("merge") && session.parsed.text("kubeconfig").is_empty() {
        return Err(Failure::new("if merge==false a precise file must be specified"));
    }
    let parsed = &session.parsed;
    if !parsed.args.is_empty() {
        return Err(parsed.usage(format!("unexpected arguments: [{}]", parsed.args.join(" "))));
    }
    let mut config = session.config.merged.clone();
    if parsed.on("minify") {
        let name = session.config.context_name(parsed);
        let Some(context) = entry(&config, "contexts", &name).cloned() else {
            return Err(Failure::new("cannot locate context ".to_owned() + &name));
        };
        let keep = |list: &str, name: &Value| {
            let found: Vec<Value> = session.config.merged[list]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|e| e["name"] == *name)
                .cloned()
                .collect();
            Value::from(found)
        };
        config["contexts"] = keep("contexts", &json!(name));
        config["clusters"] = keep("clusters", &context["cluster"]);
        config["users"] = keep("users", &context["user"]);
        config["current-context"] = name.into();
    }
    for (list, key) in [("clusters", "cluster"), ("users", "user")] {
        for one in config[list].as_array_mut().into_iter().flatten() {
            for secret in
                ["certificate-authority-data", "client-certificate-data", "client-key-data", "token", "password"]
            {
                if !parsed.on("raw") && !parsed.on("flatten") && one[key].get(secret).is_some() {
                    let shown = if secret.ends_with("-data") { "DATA+OMITTED" } else { "REDACTED" };
                    one[key][secret] = shown.into();
                }
            }
        }
    }
    for list in ["clusters", "contexts", "users"] {
        if config[list].as_array().is_some_and(Vec::is_empty) {
            config[list] = Value::Null;
        }
    }
    if config["preferences"].is_null() {
        config["preferences"] = json!({});
    }
    match Format::of(parsed)? {
        Format::Default => print!("{}", keelson_machinery::yaml::write(&config)?),
        Format::Json => println!("{}", crate::output::json::spread(&in_order(&config))),
        format => print!("{}", format.print(&config, true)?),
    }
    Ok(())
}

/// A configuration as JSON in the order in which kubectl's type has its fields.
fn in_order(value: &Value) -> String {
    const ORDER: [&str; 28] = [
        "kind",
        "apiVersion",
        "preferences",
        "clusters",
        "users",
        "contexts",
        "current-context",
        "name",
        "context",
        "cluster",
        "user",
        "namespace",
        "server",
        "tls-server-name",
        "insecure-skip-tls-verify",
        "certificate-authority",
        "certificate-authority-data",
        "proxy-url",
        "disable-compression",
        "client-certificate",
        "client-certificate-data",
        "client-key",
        "client-key-data",
        "token",
        "tokenFile",
        "username",
        "password",
        "exec",
    ];
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_by_key(|key| ORDER.iter().position(|known| known == key).unwrap_or(ORDER.len()));
            let pairs = keys.iter().map(|key| format!("{}:{}", Value::from(key.as_str()), in_order(&map[*key])));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(in_order).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

/// Runs `config get-contexts`.
pub async fn get_contexts(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let config = &session.config.merged;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if !matches!(parsed.text("output"), "" | "name") {
        return Err(Failure::new(format!(
            "--output {} is not available in kubectl config get-contexts; resetting to default output format",
            parsed.text("output")
        )));
    }
    let mut contexts: Vec<&Value> = config["contexts"].as_array().into_iter().flatten().collect();
    contexts.sort_by_key(|c| text(&c["name"]));
    if let Some(wanted) = parsed.args.first() {
        contexts.retain(|c| parsed.args.iter().any(|a| c["name"] == a.as_str()));
        if contexts.is_empty() {
            if !parsed.on("no-headers") && parsed.text("output").is_empty() {
                println!("CURRENT   NAME   CLUSTER   AUTHINFO   NAMESPACE");
            }
            return Err(Failure::new(format!("context {wanted} not found")));
        }
    }
    if parsed.text("output") == "name" {
        contexts.iter().for_each(|c| println!("{}", text(&c["name"])));
        return Ok(());
    }
    let mut rows = Vec::new();
    if !parsed.on("no-headers") {
        rows.push(["CURRENT", "NAME", "CLUSTER", "AUTHINFO", "NAMESPACE"].map(str::to_owned).to_vec());
    }
    for context in contexts {
        let current = if context["name"] == config["current-context"] { "*" } else { "" };
        let of = &context["context"];
        rows.push(vec![
            current.into(),
            text(&context["name"]),
            text(&of["cluster"]),
            text(&of["user"]),
            text(&of["namespace"]),
        ]);
    }
    print!("{}", table::align(&rows));
    Ok(())
}

fn names(session: &Session, list: &str, title: &str) {
    let mut names: Vec<&str> =
        session.config.merged[list].as_array().into_iter().flatten().filter_map(|e| e["name"].as_str()).collect();
    names.sort_unstable();
    println!("{title}");
    names.iter().for_each(|name| println!("{name}"));
}

/// Runs `config get-clusters`.
pub async fn get_clusters(session: &Session) -> Outcome {
    names(session, "clusters", "NAME");
    Ok(())
}

/// Runs `config get-users`.
pub async fn get_users(session: &Session) -> Outcome {
    names(session, "users", "NAME");
    Ok(())
}

/// The refusal of a number of arguments that does not fit: with the command's help before it.
fn unexpected(session: &Session, args: &[String]) -> Failure {
    let path = session.parsed.command.trim_start_matches("kubectl ");
    if let Some(command) = super::COMMANDS.iter().find(|c| c.path == path) {
        print!("{}", crate::help::of_command(command));
    }
    Failure::new(format!("Unexpected args: [{}]", args.join(" ")))
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
    if entry(&session.config.merged, "contexts", name).is_none() {
        return Err(Failure::new(format!("no context exists with the name: {name:?}")));
    }
    let file = session.config.files.first().cloned().unwrap_or_default();
    Config::change(&file, |config| {
        config["current-context"] = name.into();
        Ok(())
    })?;
    println!("Switched to context {name:?}.");
    Ok(())
}

async fn remove(session: &Session, list: &str, word: &str) -> Outcome {
    let name = one_name(session)?;
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
    let merged = &session.config.merged;
    if entry(merged, "contexts", old).is_none() {
        return Err(Failure::new(format!(
            "cannot rename the context {old:?}, it's not in {}",
            session.config.file_with("contexts", old).display()
        )));
    }
    if entry(merged, "contexts", new).is_some() {
        return Err(Failure::new(format!(
            "cannot rename the context {old:?}, the context {new:?} already exists in {}",
            session.config.file_with("contexts", new).display()
        )));
    }
    Config::change(&session.config.file_with("contexts", old), |config| {
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

/// Writes fields of an entry from flags; says whether it was there.
fn set(session: &Session, list: &str, name: &str, fields: &[(&str, Value)]) -> Outcome<bool> {
    let there = entry(&session.config.merged, list, name).is_some();
    Config::change(&session.config.file_with(list, name), |config| {
        if let Some(found) = entry_mut(config, list, name) {
            fields.iter().for_each(|(key, value)| found[*key] = value.clone());
        }
        Ok(())
    })?;
    Ok(there)
}

/// A file's flag: its path, or its content if it is to be embedded.
fn file_field(session: &Session, flag: &'static str, fields: &mut Vec<(String, Value)>) -> Outcome {
    let path = session.parsed.text(flag);
    if path.is_empty() {
        return Ok(());
    }
    match session.parsed.on("embed-certs") {
        true => {
            let bytes = std::fs::read(path).map_err(|e| {
                let why = crate::failure::reason(&e);
                Failure::new(format!("could not stat {flag} file {path}: stat {path}: {why}"))
            })?;
            fields.push((format!("{flag}-data"), STANDARD.encode(bytes).into()));
        }
        false => fields.push((flag.to_owned(), std::path::absolute(path)?.to_string_lossy().into_owned().into())),
    }
    Ok(())
}

/// Runs `config set-cluster`.
pub async fn set_cluster(session: &Session) -> Outcome {
    let (name, parsed) = (one_name(session)?, &session.parsed);
    let mut fields: Vec<(String, Value)> = Vec::new();
    for (flag, key) in [("server", "server"), ("proxy-url", "proxy-url"), ("tls-server-name", "tls-server-name")] {
        if parsed.is_set(flag) {
            fields.push((key.into(), parsed.text(flag).into()));
        }
    }
    if parsed.is_set("insecure-skip-tls-verify") {
        fields.push(("insecure-skip-tls-verify".into(), parsed.on("insecure-skip-tls-verify").into()));
    }
    file_field(session, "certificate-authority", &mut fields)?;
    let fields: Vec<(&str, Value)> = fields.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    set(session, "clusters", name, &fields)?;
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
        (false, Some(name)) => name.clone(),
        _ => return Err(Failure::new("you must specify a non-empty context name or --current")),
    };
    let flags = ["cluster", "user", "namespace"].into_iter().filter(|f| parsed.is_set(f));
    let fields: Vec<(&str, Value)> = flags.map(|f| (f, parsed.text(f).into())).collect();
    let there = set(session, "contexts", &name, &fields)?;
    println!("Context {name:?} {}.", if there { "modified" } else { "created" });
    Ok(())
}

/// Runs `config set-credentials`.
pub async fn set_credentials(session: &Session) -> Outcome {
    let (name, parsed) = (one_name(session)?, &session.parsed);
    let mut fields: Vec<(String, Value)> = Vec::new();
    if parsed.is_set("token") && (parsed.is_set("username") || parsed.is_set("password")) {
        return Err(Failure::new(
            "you cannot specify more than one authentication method at the same time: --token, --username/--password",
        ));
    }
    for flag in ["username", "password"] {
        if parsed.is_set(flag) {
            fields.push((flag.into(), parsed.text(flag).into()));
        }
    }
    if parsed.is_set("token") {
        fields.push(("token".into(), parsed.text("token").into()));
    }
    if !parsed.text("exec-command").is_empty() {
        let mut exec = json!({"command": parsed.text("exec-command"), "apiVersion": parsed.text("exec-api-version"), "interactiveMode": or(parsed.text("exec-interactive-mode"), "IfAvailable"), "provideClusterInfo": parsed.on("exec-provide-cluster-info")});
        let env: Vec<Value> = parsed
            .all("exec-env")
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect();
        if !env.is_empty() {
            exec["env"] = env.into();
        }
        let args = parsed.all("exec-arg");
        if !args.is_empty() {
            exec["args"] = json!(args);
        }
        fields.push(("exec".into(), exec));
    }
    file_field(session, "client-certificate", &mut fields)?;
    file_field(session, "client-key", &mut fields)?;
    let fields: Vec<(&str, Value)> = fields.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
    set(session, "users", name, &fields)?;
    println!("User {name:?} set.");
    Ok(())
}

/// Flags of `config set`.
pub const SET: &[&[Flag]] = &[&[switch(
    "set-raw-bytes",
    "When writing a []byte PROPERTY_VALUE, write the given string directly without base64 decoding.",
)]];

/// The steps to a property: `clusters.my.name.server`, where names of entries may have dots in them.
fn property(config: &Value, path: &str) -> Outcome<Vec<String>> {
    let wrong = || Failure::new(format!("unable to parse path {path:?}"));
    let (list, rest) = path.split_once('.').unwrap_or((path, ""));
    if !matches!(list, "clusters" | "contexts" | "users") || rest.is_empty() {
        return Ok(path.split('.').map(str::to_owned).collect());
    }
    let names = config[list].as_array().into_iter().flatten().filter_map(|e| e["name"].as_str());
    let fits = |name: &&str| rest == *name || rest.strip_prefix(*name).is_some_and(|r| r.starts_with('.'));
    let name = match names.filter(fits).max_by_key(|n| n.len()) {
        Some(name) => name.to_owned(),
        None => rest.rsplit_once('.').ok_or_else(wrong)?.0.to_owned(),
    };
    let fields = rest[name.len()..].trim_start_matches('.');
    let mut steps = vec![list.to_owned(), name];
    steps.extend(fields.split('.').filter(|f| !f.is_empty()).map(str::to_owned));
    Ok(steps)
}

/// Runs `config set`.
pub async fn set_property(session: &Session) -> Outcome {
    let [path, value] = session.parsed.args.as_slice() else {
        return Err(unexpected(session, &session.parsed.args));
    };
    let steps = property(&session.config.merged, path)?;
    let file = file_of(session, &steps);
    let is_bytes = steps.last().is_some_and(|s| s.ends_with("-data"));
    let value: Value = match value.as_str() {
        text if is_bytes && session.parsed.on("set-raw-bytes") => STANDARD.encode(text).into(),
        "true" => true.into(),
        "false" => false.into(),
        text => text.into(),
    };
    Config::change(&file, |config| {
        *slot(config, &steps)? = value;
        Ok(())
    })?;
    println!("Property {path:?} set.");
    Ok(())
}

/// Runs `config unset`.
pub async fn unset(session: &Session) -> Outcome {
    let [path] = session.parsed.args.as_slice() else {
        return Err(unexpected(session, &session.parsed.args));
    };
    let steps = match path.split('.').collect::<Vec<_>>().as_slice() {
        [list @ ("clusters" | "contexts" | "users"), name] => vec![(*list).to_owned(), (*name).to_owned()],
        ["current-context" | "clusters" | "contexts" | "users" | "preferences" | "extensions", ..] => {
            property(&session.config.merged, path)?
        }
        [first, ..] => return Err(Failure::new(format!("unable to parse {first} after [] at api.Config"))),
        [] => return Ok(()),
    };
    let file = file_of(session, &steps);
    Config::change(&file, |config| {
        let Some((last, before)) = steps.split_last() else { return Ok(()) };
        if let [list] = before
            && let Some(entries) = config[list.as_str()].as_array_mut()
        {
            entries.retain(|e| e["name"] != last.as_str());
            return Ok(());
        }
        let parent = if before.is_empty() { config } else { slot(config, before)? };
        if let Some(map) = parent.as_object_mut() {
            map.remove(last);
        }
        Ok(())
    })?;
    println!("Property {path:?} unset.");
    Ok(())
}

fn file_of(session: &Session, steps: &[String]) -> std::path::PathBuf {
    match steps {
        [list, name, ..] => session.config.file_with(list, name),
        _ => session.config.files.first().cloned().unwrap_or_default(),
    }
}

fn slot<'a>(config: &'a mut Value, steps: &[String]) -> Outcome<&'a mut Value> {
    let (mut here, rest) = match steps {
        [list, name, rest @ ..] if matches!(list.as_str(), "clusters" | "contexts" | "users") => {
            let found = entry_mut(config, list, name);
            (found.ok_or_else(|| Failure::new(format!("{list} is no list")))?, rest)
        }
        rest => (config, rest),
    };
    for step in rest {
        if !here.is_object() {
            *here = json!({});
        }
        here = &mut here[step.as_str()];
    }
    Ok(here)
}
