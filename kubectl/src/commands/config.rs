//! `config`: kubeconfig files.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::config::entry;
use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch, text};
use crate::output::{self, Format, table};
use crate::session::Session;
use crate::shape;

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
        minify(&mut config, &session.config.context_name(parsed))?;
    }
    match (parsed.on("flatten"), parsed.on("raw")) {
        (true, _) => flatten(&mut config)?,
        (false, false) => redact(&mut config),
        (false, true) => {}
    }
    let config = shape::written(&config);
    match Format::of(parsed)? {
        Format::Default => print!("{}", keelson_machinery::yaml::write(&config)?),
        Format::Json => println!("{}", crate::output::json::spread(&in_order(&config))),
        format => print!("{}", format.print(&config, true)?),
    }
    Ok(())
}

/// Leaves only what the context needs.
fn minify(config: &mut Value, name: &str) -> Outcome {
    if name.is_empty() {
        return Err(Failure::new("current-context must exist in order to minify"));
    }
    let context = entry(config, "contexts", name).cloned();
    let context = context.ok_or_else(|| Failure::new(format!("cannot locate context {name}")))?;
    for (list, word) in [("clusters", "cluster"), ("users", "user")] {
        let wanted = context[word].as_str().unwrap_or_default();
        if !wanted.is_empty() && entry(config, list, wanted).is_none() {
            return Err(Failure::new(format!("cannot locate {word} {wanted}")));
        }
    }
    for (list, wanted) in
        [("contexts", json!(name)), ("clusters", context["cluster"].clone()), ("users", context["user"].clone())]
    {
        if let Some(entries) = config[list].as_array_mut() {
            entries.retain(|e| e["name"] == wanted);
        }
    }
    config["current-context"] = name.into();
    Ok(())
}

/// Puts files into it.
fn flatten(config: &mut Value) -> Outcome {
    for (list, key, files) in [
        ("clusters", "cluster", &["certificate-authority"][..]),
        ("users", "user", &["client-certificate", "client-key"]),
    ] {
        for one in config[list].as_array_mut().into_iter().flatten() {
            for file in files {
                let Some(path) = one[key][file].as_str().filter(|path| !path.is_empty()).map(str::to_owned) else {
                    continue;
                };
                let bytes = std::fs::read(&path).map_err(|e| Failure::new(crate::failure::opening(&path, &e)))?;
                one[key][format!("{file}-data")] = STANDARD.encode(bytes).into();
                one[key][*file] = Value::Null;
            }
        }
    }
    Ok(())
}

/// Hides secrets.
fn redact(config: &mut Value) {
    for (list, key) in [("clusters", "cluster"), ("users", "user")] {
        for one in config[list].as_array_mut().into_iter().flatten() {
            for secret in
                ["certificate-authority-data", "client-certificate-data", "client-key-data", "token", "password"]
            {
                if one[key].get(secret).is_some() {
                    one[key][secret] = if secret.ends_with("-data") { "DATA+OMITTED" } else { "REDACTED" }.into();
                }
            }
        }
    }
}

/// A configuration as JSON in the order in which kubectl's type has its fields.
fn in_order(value: &Value) -> String {
    const ORDER: [&str; 35] = [
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
        "auth-provider",
        "exec",
        "command",
        "args",
        "env",
        "installHint",
        "provideClusterInfo",
        "interactiveMode",
    ];
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            // A plugin's version of the API comes after its environment.
            let name =
                |key: &str| if key == "apiVersion" && map.contains_key("command") { "env" } else { key }.to_owned();
            keys.sort_by_key(|key| {
                let place = ORDER.iter().position(|known| *known == name(key)).unwrap_or(ORDER.len());
                (place, *key == "apiVersion")
            });
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
    let missing = parsed.args.iter().find(|name| entry(config, "contexts", name).is_none());
    if !parsed.args.is_empty() {
        contexts.retain(|c| parsed.args.iter().any(|a| c["name"] == a.as_str()));
    }
    let told = missing.map_or(Ok(()), |name| Err(Failure::new(format!("context {name} not found"))));
    if parsed.text("output") == "name" {
        contexts.iter().for_each(|c| println!("{}", text(&c["name"])));
        return told;
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
    told
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
