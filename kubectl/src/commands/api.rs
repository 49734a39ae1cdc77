//! `api-resources`, `api-versions`, `cluster-info`, `version` and `options`.

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, help, repeated, switch, text};
use crate::kinds::discover;
use crate::output::{json, table};
use crate::session::{GLOBAL, Session};

/// Flags of `api-resources`.
pub const RESOURCES: &[&[Flag]] = &[&[
    text("api-group", "", "Limit to resources in the specified API group."),
    switch("cached", "Use the cached list of resources if available."),
    repeated("categories", "Limit to resources that belong to the specified categories."),
    switch(
        "namespaced",
        "If false, non-namespaced resources will be returned, otherwise returning namespaced resources by default.",
    )
    .or("true"),
    switch("no-headers", "When using the default or custom-column output format, don't print headers."),
    text("output", "", "Output format. One of: (wide, name).").short('o'),
    text("sort-by", "", "If non-empty, sort list of resources using specified field. One of (name, kind)."),
    repeated("verbs", "Limit to resources that support the specified verbs."),
]];
/// Flags of `version`.
pub const VERSION: &[&[Flag]] = &[&[
    switch("client", "If true, shows client version only (no server required)."),
    text("output", "", "One of 'yaml' or 'json'.").short('o'),
]];
/// The version of kubectl whose behaviour this is.
pub const CLIENT: &str = "v1.36.2";

fn no_arguments(session: &Session) -> Outcome {
    match session.parsed.args.as_slice() {
        [] => Ok(()),
        args => Err(session.parsed.usage(format!("unexpected arguments: [{}]", args.join(" ")))),
    }
}

/// Runs `api-resources`.
pub async fn resources(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    no_arguments(session)?;
    let (verbs, categories) = (parsed.list("verbs"), parsed.list("categories"));
    let mut kinds = discover(session).await?;
    kinds.retain(|kind| {
        (!parsed.is_set("api-group") || kind.group == parsed.text("api-group"))
            && (!parsed.is_set("namespaced") || kind.namespaced == parsed.on("namespaced"))
            && verbs.iter().all(|v| kind.verbs.contains(v))
            && categories.iter().all(|c| kind.categories.contains(c))
            && !kind.verbs.is_empty()
    });
    // Of a resource in several versions the first is the preferred one.
    let mut seen = std::collections::HashSet::new();
    kinds.retain(|kind| seen.insert((kind.group.clone(), kind.plural.clone())));
    match parsed.text("sort-by") {
        "" => kinds.sort_by(|a, b| (&a.group, &a.plural).cmp(&(&b.group, &b.plural))),
        "name" => kinds.sort_by(|a, b| a.plural.cmp(&b.plural)),
        "kind" => kinds.sort_by(|a, b| a.kind.cmp(&b.kind)),
        _ => return Err(Failure::new("--sort-by accepts only name or kind")),
    }
    let wide = match parsed.text("output") {
        "" => false,
        "wide" => true,
        "name" => {
            kinds.iter().for_each(|kind| println!("{}", kind.qualified_plural()));
            return Ok(());
        }
        other => return Err(Failure::new(format!("--output {other} is not available"))),
    };
    let mut rows = Vec::new();
    if !parsed.on("no-headers") {
        rows.push(["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"].map(str::to_owned).to_vec());
        if wide {
            rows[0].extend(["VERBS".to_owned(), "CATEGORIES".to_owned()]);
        }
    }
    for kind in &kinds {
        let mut row = vec![
            kind.plural.clone(),
            kind.short_names.join(","),
            kind.api_version(),
            kind.namespaced.to_string(),
            kind.kind.clone(),
        ];
        if wide {
            row.extend([kind.verbs.join(","), kind.categories.join(",")]);
        }
        rows.push(row);
    }
    print!("{}", table::align(&rows));
    Ok(())
}

/// Runs `api-versions`.
pub async fn versions(session: &Session) -> Outcome {
    no_arguments(session)?;
    let groups = session.get("/apis").await?;
    let core = session.get("/api").await?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut all: Vec<String> = core["versions"].as_array().into_iter().flatten().map(text).collect();
    for group in groups["groups"].as_array().into_iter().flatten() {
        all.extend(group["versions"].as_array().into_iter().flatten().map(|v| text(&v["groupVersion"])));
    }
    all.sort();
    all.iter().for_each(|version| println!("{version}"));
    Ok(())
}

/// Runs `cluster-info`.
pub async fn cluster_info(session: &Session) -> Outcome {
    use std::io::IsTerminal;
    let services = session
        .get("/api/v1/namespaces/kube-system/services?labelSelector=kubernetes.io%2Fcluster-service%3Dtrue")
        .await?;
    let server = &session.access()?.server;
    let colour = |code: u8, text: &str| match std::io::stdout().is_terminal() {
        true => format!("\u{1b}[0;{code}m{text}\u{1b}[0m"),
        false => text.to_owned(),
    };
    println!("{} is running at {}", colour(32, "Kubernetes control plane"), colour(33, server));
    for service in services["items"].as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (name, namespace) = (text(&service["metadata"]["name"]), text(&service["metadata"]["namespace"]));
        let shown = match service["metadata"]["labels"]["kubernetes.io/name"].as_str() {
            Some(label) => label.to_owned(),
            None => name.clone(),
        };
        let port = service["spec"]["ports"][0]["name"].as_str().map_or(String::new(), |p| format!(":{p}"));
        let url = format!("{server}/api/v1/namespaces/{namespace}/services/{name}{port}/proxy");
        println!("{} is running at {}", colour(32, &shown), colour(33, &url));
    }
    println!("\nTo further debug and diagnose cluster problems, use 'kubectl cluster-info dump'.");
    Ok(())
}

/// This program's platform, as Go names it.
#[cfg(target_arch = "aarch64")]
const PLATFORM: &str = "linux/arm64";
#[cfg(not(target_arch = "aarch64"))]
const PLATFORM: &str = "linux/amd64";

/// Runs `version`.
pub async fn version(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if !parsed.args.is_empty() {
        return Err(Failure::new(format!("extra arguments: [{}]", parsed.args.join(" "))));
    }
    let server = if parsed.on("client") { Ok(Value::Null) } else { session.get("/version").await };
    let client = json!({"major": "1", "minor": "36", "gitVersion": CLIENT, "platform": PLATFORM});
    let mut whole = json!({"clientVersion": client, "kustomizeVersion": "none"});
    if let Ok(server) = &server
        && !server.is_null()
    {
        whole["serverVersion"] = server.clone();
    }
    match parsed.text("output") {
        "" => {
            println!("Client Version: {CLIENT}");
            if let Some(version) = whole["serverVersion"]["gitVersion"].as_str() {
                println!("Server Version: {version}");
            }
        }
        "json" => println!("{}", json::pretty(&whole).replace("    ", "  ")),
        "yaml" => print!("{}", keelson_machinery::yaml::write(&whole)?),
        _ => return Err(Failure::new("--output must be 'yaml' or 'json'")),
    }
    server.map(|_| ())
}

/// Runs `options`.
pub async fn options(_: &Session) -> Outcome {
    println!("The following options can be passed to any command:\n");
    print!("{}", help(&[GLOBAL]));
    Ok(())
}
