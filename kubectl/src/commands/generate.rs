//! `create KIND`: objects made from flags.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, switch, text};
use crate::kinds;
use crate::output;
use crate::session::{Session, encode};

use super::create::{SAVE, WRITE, generate};
use super::run::pairs;
use super::set::quantities;

/// Flags of commands that take a name alone.
pub const PLAIN: &[&[Flag]] = &[output::FLAGS, WRITE, &[SAVE]];
const SOURCES: &[Flag] = &[
    repeated("from-file", "Key file can be specified using its file path, or with a key: --from-file=[key=]source."),
    repeated("from-literal", "Specify a key and literal value to insert (i.e. mykey=somevalue)"),
    repeated("from-env-file", "Specify the path to a file to read lines of key=val pairs."),
    switch("append-hash", "Append a hash of the configmap or secret to its name."),
];
/// Flags of `create configmap`.
pub const DATA: &[&[Flag]] = &[output::FLAGS, WRITE, &[SAVE], SOURCES];
/// Flags of `create secret generic`.
pub const SECRET: &[&[Flag]] =
    &[output::FLAGS, WRITE, &[SAVE], SOURCES, &[text("type", "", "The type of secret to create")]];
/// Flags of `create secret tls`.
pub const TLS: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        text("cert", "", "Path to PEM encoded public key certificate."),
        text("key", "", "Path to private key associated with given certificate."),
        switch("append-hash", "Append a hash of the secret to its name."),
    ],
];
/// Flags of `create secret docker-registry`.
pub const REGISTRY: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        text("docker-username", "", "Username for Docker registry authentication"),
        text("docker-password", "", "Password for Docker registry authentication"),
        repeated("from-file", "A file with the registry's configuration: [.dockerconfigjson=]path."),
        text("docker-email", "", "Email for Docker registry"),
        text("docker-server", "https://index.docker.io/v1/", "Server location for Docker registry"),
        switch("append-hash", "Append a hash of the secret to its name."),
    ],
];
/// Flags of `create deployment`.
pub const DEPLOYMENT: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        repeated("image", "Image names to run. A deployment can have multiple images set for multi-container pod."),
        text("port", "-1", "The containerPort that this deployment exposes."),
        text("replicas", "1", "Number of replicas to create. Default is 1.").short('r'),
    ],
];
/// Flags of `create job`.
pub const JOB: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        text("image", "", "Image name to run."),
        text("from", "", "The name of the resource to create a Job from (only cronjob is supported)."),
    ],
];
/// Flags of `create cronjob`.
pub const CRON_JOB: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        text("image", "", "Image name to run."),
        text("restart", "", "Job's restart policy. supported values: OnFailure, Never"),
        text("schedule", "", "A schedule in the Cron format the job should be run with."),
    ],
];
/// Flags of `create role`.
pub const ROLE: &[&[Flag]] = &[output::FLAGS, WRITE, RULE];
/// Flags of `create clusterrole`.
pub const CLUSTER_ROLE: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    RULE,
    &[
        repeated("non-resource-url", "A partial url that user should have access to."),
        text("aggregation-rule", "", "An aggregation label selector for combining ClusterRoles."),
    ],
];
const RULE: &[Flag] = &[
    SAVE,
    repeated("verb", "Verb that applies to the resources contained in the rule"),
    repeated("resource", "Resource that the rule applies to"),
    repeated(
        "resource-name",
        "Resource in the white list that the rule applies to, repeat this flag for multiple items",
    ),
];
/// Flags of `create rolebinding`.
pub const BINDING: &[&[Flag]] =
    &[output::FLAGS, WRITE, SUBJECTS, &[text("role", "", "Role this RoleBinding should reference")]];
/// Flags of `create clusterrolebinding`.
pub const CLUSTER_BINDING: &[&[Flag]] = &[output::FLAGS, WRITE, SUBJECTS];
const SUBJECTS: &[Flag] = &[
    SAVE,
    text("clusterrole", "", "ClusterRole this binding should reference"),
    repeated("user", "Usernames to bind to the role. The flag can be repeated to add multiple users."),
    repeated("group", "Groups to bind to the role. The flag can be repeated to add multiple groups."),
    repeated("serviceaccount", "Service accounts to bind to the role, in the format <namespace>:<name>."),
];
const TCP: Flag = repeated("tcp", "Port pairs can be specified as '<port>:<targetPort>'.");
/// Flags of `create service clusterip`.
pub const CLUSTER_IP: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        TCP,
        text(
            "clusterip",
            "",
            "Assign your own ClusterIP or set to 'None' for a 'headless' service (no loadbalancing).",
        ),
    ],
];
/// Flags of `create service externalname`.
pub const EXTERNAL_NAME: &[&[Flag]] =
    &[output::FLAGS, WRITE, &[SAVE, TCP, text("external-name", "", "External name of service")]];
/// Flags of `create service nodeport`.
pub const NODE_PORT: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[SAVE, TCP, text("node-port", "0", "Port used to expose the service on each node in a cluster.")],
];
/// Flags of `create service loadbalancer`.
pub const LOAD_BALANCER: &[&[Flag]] = &[output::FLAGS, WRITE, &[SAVE, TCP]];
/// Flags of `create ingress`.
pub const INGRESS: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        repeated("annotation", "Annotation to insert in the ingress object, in the format annotation=value"),
        text("class", "", "Ingress Class to be used"),
        text("default-backend", "", "Default service for backend, in format of svcname:port"),
        repeated("rule", "Rule in format host/path=service:port[,tls=secretname]."),
    ],
];
/// Flags of `create poddisruptionbudget`.
pub const DISRUPTION_BUDGET: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        text("max-unavailable", "", "The maximum number or percentage of unavailable pods this budget requires."),
        text("min-available", "", "The minimum number or percentage of available pods this budget requires."),
        text("selector", "", "A label selector to use for this budget."),
    ],
];
/// Flags of `create priorityclass`.
pub const PRIORITY_CLASS: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        text(
            "description",
            "",
            "description is an arbitrary string that usually provides guidelines on when this priority class should be used.",
        ),
        switch(
            "global-default",
            "global-default specifies whether this PriorityClass should be considered as the default priority.",
        ),
        text(
            "preemption-policy",
            "PreemptLowerPriority",
            "preemption-policy is the policy for preempting pods with lower priority.",
        ),
        text("value", "0", "the value of this priority class."),
    ],
];
/// Flags of `create quota`.
pub const QUOTA: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        text("hard", "", "A comma-delimited set of resource=quantity pairs that define a hard limit."),
        text(
            "scopes",
            "",
            "A comma-delimited set of quota scopes that must all match each object tracked by the quota.",
        ),
    ],
];

fn name(session: &Session) -> Outcome<&str> {
    match session.parsed.args.as_slice() {
        [name] => Ok(name),
        args => Err(Failure::Plain(format!(
            "error: exactly one NAME is required, got {}\nSee '{} -h' for help and examples",
            args.len(),
            session.parsed.command
        ))),
    }
}

fn object(api_version: &str, kind: &str, name: &str) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}})
}

/// Checks the flags that a command cannot do without; this comes before anything else is looked at.
fn all_set(session: &Session, flags: &[&str]) -> Outcome {
    let missing: Vec<String> =
        flags.iter().filter(|flag| !session.parsed.is_set(flag)).map(|flag| format!("{flag:?}")).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(format!("required flag(s) {} not set", missing.join(", ")))),
    }
}

fn required(session: &Session, flag: &str) -> Outcome<String> {
    match session.parsed.text(flag) {
        "" => Err(Failure::new(format!("required flag(s) {flag:?} not set"))),
        given => Ok(given.to_owned()),
    }
}

/// Runs `create namespace`.
pub async fn namespace(session: &Session) -> Outcome {
    let mut object = object("v1", "Namespace", name(session)?);
    object["spec"] = json!({});
    object["status"] = json!({});
    generate(session, object).await
}

/// Runs `create serviceaccount`.
pub async fn service_account(session: &Session) -> Outcome {
    generate(session, object("v1", "ServiceAccount", name(session)?)).await
}

fn unreadable(path: &str, error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(format!("error reading {path}: no such file or directory")),
        _ => Failure::new(format!("error reading {path}: {error}")),
    }
}

/// The entries that a file, or the files of a directory give: `[key=]path`.
fn from_file(source: &str, all: &mut Vec<(String, Vec<u8>)>) -> Outcome {
    let (key, path) = match source.split_once('=') {
        Some((key, path)) => (Some(key), path),
        None => (None, source),
    };
    match key {
        _ if path.contains('=') => {
            return Err(Failure::new("key names or file paths cannot contain '='"));
        }
        Some("") => return Err(Failure::new(format!("key name for file path {path} missing"))),
        _ => {}
    }
    let wrong = |e: std::io::Error| unreadable(path, &e);
    if Path::new(path).is_dir() {
        if key.is_some() {
            return Err(Failure::new("cannot give a key name for a directory path"));
        }
        let mut files: Vec<_> = std::fs::read_dir(path)
            .map_err(wrong)?
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.is_file())
            .collect();
        files.sort();
        for file in files {
            let key = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            all.push((key, std::fs::read(&file).map_err(wrong)?));
        }
        return Ok(());
    }
    let own = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
    all.push((key.map_or(own, str::to_owned), std::fs::read(path).map_err(wrong)?));
    Ok(())
}

/// The entries that files and literals give: text, or bytes that are none.
fn entries(session: &Session) -> Outcome<Vec<(String, Vec<u8>)>> {
    let parsed = &session.parsed;
    if parsed.is_set("from-env-file") && (parsed.is_set("from-file") || parsed.is_set("from-literal")) {
        return Err(Failure::new("from-env-file cannot be combined with from-file or from-literal"));
    }
    let is_secret = parsed.command.contains("secret");
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for source in parsed.all("from-file") {
        from_file(&source, &mut all)?;
    }
    for literal in parsed.all("from-literal") {
        let (key, value) = literal
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| Failure::new(format!("invalid literal source {literal}, expected key=value")))?;
        all.push((key.to_owned(), value.as_bytes().to_vec()));
    }
    for path in parsed.all("from-env-file") {
        let content = std::fs::read_to_string(&path).map_err(|e| unreadable(&path, &e))?;
        for line in content.lines().map(str::trim_start).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let (key, value) = match line.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None => (line.to_owned(), std::env::var(line).unwrap_or_default()),
            };
            all.push((key, value.into_bytes()));
        }
    }
    for (at, (key, _)) in all.iter().enumerate() {
        let twice = all[..at].iter().any(|(before, _)| before == key);
        if twice && is_secret {
            return Err(Failure::new(format!("cannot add key {key}, another key by that name already exists")));
        }
        if twice {
            return Err(Failure::new(format!(
                "cannot add key {key:?}, another key by that name already exists in Data for ConfigMap {:?}",
                session.parsed.args.first().map_or("", |a| a)
            )));
        }
        let valid = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !valid {
            return Err(Failure::new(format!(
                "{key:?} is not a valid key name for a ConfigMap: a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
            )));
        }
    }
    Ok(all)
}

/// Runs `create configmap`.
pub async fn config_map(session: &Session) -> Outcome {
    let mut object = object("v1", "ConfigMap", name(session)?);
    for (key, bytes) in entries(session)? {
        match String::from_utf8(bytes) {
            Ok(text) => object["data"][key] = text.into(),
            Err(error) => object["binaryData"][key] = STANDARD.encode(error.as_bytes()).into(),
        }
    }
    append_digest(session, &mut object);
    generate(session, object).await
}

/// Puts a digest of the content behind the name, if that is asked for.
fn append_digest(session: &Session, object: &mut Value) {
    if session.parsed.on("append-hash") {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let digest = crate::kustomize::digest(object, &name);
        object["metadata"]["name"] = format!("{name}-{digest}").into();
    }
}

/// Runs `create secret generic`.
pub async fn secret(session: &Session) -> Outcome {
    let mut object = object("v1", "Secret", name(session)?);
    for (key, bytes) in entries(session)? {
        object["data"][key] = STANDARD.encode(bytes).into();
    }
    if !session.parsed.text("type").is_empty() {
        object["type"] = session.parsed.text("type").into();
    }
    if object["type"].is_null() {
        object["type"] = "Opaque".into();
    }
    append_digest(session, &mut object);
    if session.parsed.text("type").is_empty()
        && let Some(map) = object.as_object_mut()
    {
        map.remove("type");
    }
    generate(session, object).await
}

/// Runs `create secret tls`.
pub async fn tls_secret(session: &Session) -> Outcome {
    let read = |flag: &str| -> Outcome<Vec<u8>> {
        let path = session.parsed.text(flag);
        if path.is_empty() {
            return Err(Failure::new("key and cert must be specified"));
        }
        let wrong = |e| Failure::new(format!("Cannot read file {path}, {}", crate::failure::opening(path, &e)));
        let bytes = std::fs::read(path).map_err(wrong)?;
        let (what, marker) = if flag == "cert" { ("certificate", "-----BEGIN ") } else { ("key", "-----BEGIN ") };
        match String::from_utf8_lossy(&bytes).contains(marker) {
            true => Ok(bytes),
            false => Err(Failure::new(format!("tls: failed to find any PEM data in {what} input"))),
        }
    };
    let mut object = object("v1", "Secret", name(session)?);
    object["type"] = "kubernetes.io/tls".into();
    object["data"] = json!({"tls.crt": STANDARD.encode(read("cert")?), "tls.key": STANDARD.encode(read("key")?)});
    generate(session, object).await
}

/// Runs `create secret docker-registry`.
pub async fn registry_secret(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let mut object = object("v1", "Secret", name(session)?);
    object["type"] = "kubernetes.io/dockerconfigjson".into();
    if parsed.is_set("from-file") {
        object["data"] = json!({});
        for (key, bytes) in entries(session)? {
            let key = if key.ends_with(".json") { ".dockerconfigjson".to_owned() } else { key };
            object["data"][key] = STANDARD.encode(bytes).into();
        }
        append_digest(session, &mut object);
        return generate(session, object).await;
    }
    let (user, password) = (parsed.text("docker-username"), parsed.text("docker-password"));
    if user.is_empty() || password.is_empty() || parsed.text("docker-server").is_empty() {
        return Err(Failure::new(
            "either --from-file or the combination of --docker-username, --docker-password and --docker-server is required",
        ));
    }
    let quoted = |text: &str| Value::from(text).to_string();
    // Written in the order of the fields, which the names of registries and users must not change.
    let email = match parsed.text("docker-email") {
        "" => String::new(),
        email => format!("\"email\":{},", quoted(email)),
    };
    let config = format!(
        "{{\"auths\":{{{}:{{\"username\":{},\"password\":{},{email}\"auth\":{}}}}}}}",
        quoted(parsed.text("docker-server")),
        quoted(user),
        quoted(password),
        quoted(&STANDARD.encode(format!("{user}:{password}")))
    );
    object["data"] = json!({".dockerconfigjson": STANDARD.encode(config)});
    append_digest(session, &mut object);
    generate(session, object).await
}

fn command(session: &Session) -> Option<Value> {
    session.parsed.after_dash.as_ref().filter(|c| !c.is_empty()).map(|c| json!(c))
}

/// A container's name from its image: the last part of the path, without tag and digest.
fn container_name(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    let name = name.split(['@', ':']).next().unwrap_or(name);
    name.to_lowercase().replace('_', "-")
}

/// Runs `create deployment`.
pub async fn deployment(session: &Session) -> Outcome {
    all_set(session, &["image"])?;
    let (name, parsed) = (name(session)?, &session.parsed);
    let images = parsed.list("image");
    if images.len() > 1 && parsed.after_dash.is_some() {
        return Err(Failure::new("cannot specify multiple --image options and command"));
    }
    let port = parsed.number("port")?;
    let container = |image: &String| {
        let mut container = json!({"name": container_name(image), "image": image, "resources": {}});
        if let Some(command) = command(session) {
            container["command"] = command;
        }
        if port >= 0 {
            container["ports"] = json!([{"containerPort": port}]);
        }
        container
    };
    let mut object = object("apps/v1", "Deployment", name);
    object["metadata"]["labels"] = json!({"app": name});
    object["spec"] = json!({
        "replicas": parsed.number("replicas")?,
        "selector": {"matchLabels": {"app": name}},
        "strategy": {},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": images.iter().map(container).collect::<Vec<_>>()}},
    });
    object["status"] = json!({});
    generate(session, object).await
}

fn job_spec(session: &Session, name: &str, restart: &str) -> Outcome<Value> {
    let image = required(session, "image")?;
    let mut container = json!({"name": name, "image": image, "resources": {}});
    if let Some(command) = command(session) {
        container["command"] = command;
    }
    Ok(json!({"template": {"metadata": {}, "spec": {"containers": [container], "restartPolicy": restart}}}))
}

/// Runs `create job`.
pub async fn job(session: &Session) -> Outcome {
    let (name, parsed) = (name(session)?, &session.parsed);
    let mut object = object("batch/v1", "Job", name);
    if parsed.is_set("image") == parsed.is_set("from") {
        return Err(Failure::new("either --image or --from must be specified"));
    }
    if parsed.is_set("from") && command(session).is_some() {
        return Err(Failure::new("cannot specify --from and command"));
    }
    match parsed.text("from").split_once('/') {
        Some((kind, from)) => {
            let kind = kinds::resolve(session, kind).await?;
            if kind.plural != "cronjobs" {
                session.get(&kind.object(&session.namespace()?, &encode(from))).await?;
                return Err(Failure::new(format!("unknown object type *{}.{}", kind.version, kind.kind)));
            }
            let cron = session.get(&kind.object(&session.namespace()?, &encode(from))).await?;
            let template = &cron["spec"]["jobTemplate"];
            object["spec"] = template["spec"].clone();
            object["metadata"]["labels"] = template["metadata"]["labels"].clone();
            object["metadata"]["annotations"] = template["metadata"]["annotations"].clone();
            object["metadata"]["annotations"]["cronjob.kubernetes.io/instantiate"] = "manual".into();
            object["metadata"]["ownerReferences"] = json!([{"apiVersion": "batch/v1", "kind": "CronJob", "name": from,
                "uid": cron["metadata"]["uid"], "controller": true}]);
        }
        None if parsed.is_set("from") => return Err(Failure::new("from must be an existing cronjob")),
        None => {
            object["spec"] = job_spec(session, name, "Never")?;
        }
    }
    object["status"] = json!({});
    generate(session, object).await
}

/// Runs `create cronjob`.
pub async fn cron_job(session: &Session) -> Outcome {
    all_set(session, &["image", "schedule"])?;
    let (name, parsed) = (name(session)?, &session.parsed);
    let restart = if parsed.text("restart").is_empty() { "OnFailure" } else { parsed.text("restart") };
    let mut object = object("batch/v1", "CronJob", name);
    object["spec"] = json!({
        "schedule": required(session, "schedule")?,
        "jobTemplate": {"metadata": {"name": name}, "spec": job_spec(session, name, restart)?},
    });
    object["status"] = json!({});
    generate(session, object).await
}

/// Checks verbs: those of paths must be HTTP's, others are warned of.
fn check_verbs(verbs: &[String], urls: &[String]) -> Outcome {
    if !urls.is_empty() {
        const VERBS: [&str; 8] = ["get", "post", "put", "delete", "patch", "head", "options", "*"];
        if let Some(verb) = verbs.iter().find(|v| !VERBS.contains(&v.as_str())) {
            return Err(Failure::new(format!("invalid verb: '{verb}' for nonResourceURL")));
        }
        if urls.iter().any(|url| url != "*" && !url.starts_with('/')) {
            return Err(Failure::new("nonResourceURL should start with /"));
        }
    }
    const STANDARD_VERBS: [&str; 13] = [
        "*",
        "get",
        "list",
        "watch",
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
        "use",
        "bind",
        "escalate",
        "impersonate",
    ];
    if urls.is_empty() {
        for verb in verbs.iter().filter(|v| !STANDARD_VERBS.contains(&v.as_str())) {
            eprintln!("Warning: '{verb}' is not a standard resource verb");
        }
    }
    Ok(())
}

async fn rules(session: &Session) -> Outcome<Vec<Value>> {
    let parsed = &session.parsed;
    let (verbs, names, urls) = (parsed.list("verb"), parsed.list("resource-name"), parsed.list("non-resource-url"));
    if verbs.is_empty() {
        return Err(Failure::new("at least one verb must be specified"));
    }
    // All verbs are all verbs, whatever is named beside.
    let verbs = if verbs.iter().any(|v| v == "*") { vec!["*".to_owned()] } else { verbs };
    check_verbs(&verbs, &urls)?;
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for text in parsed.list("resource") {
        let (resource, subresource) = text.split_once('/').map_or((text.as_str(), ""), |(r, s)| (r, s));
        let (group, plural) = match resource {
            "*" => (String::new(), "*".to_owned()),
            resource => {
                let kind = kinds::resolve(session, resource).await.map_err(|error| {
                    match (error, resource.split_once('.')) {
                        (Failure::Error(_), Some((name, group))) => Failure::Plain(format!(
                            "the server doesn't have a resource type {name:?} in group {group:?}"
                        )),
                        (Failure::Error(said), None) => Failure::Plain(said),
                        (other, _) => other,
                    }
                })?;
                (kind.group, kind.plural)
            }
        };
        let full = if subresource.is_empty() { plural } else { format!("{plural}/{subresource}") };
        match groups.iter_mut().find(|(g, _)| *g == group) {
            Some((_, list)) if list.contains(&full) => {}
            Some((_, list)) => list.push(full),
            None => groups.push((group, vec![full])),
        }
    }
    if groups.is_empty() && urls.is_empty() {
        return Err(Failure::new(match parsed.command.ends_with("clusterrole") {
            true => "one of resource or nonResourceURL must be specified",
            false => "at least one resource must be specified",
        }));
    }
    groups.sort();
    let rule = |(group, resources): &(String, Vec<String>)| {
        let mut rule = json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
        if !names.is_empty() {
            rule["resourceNames"] = json!(names);
        }
        rule
    };
    let mut all: Vec<Value> = groups.iter().map(rule).collect();
    if !urls.is_empty() {
        all.push(json!({"nonResourceURLs": urls, "verbs": verbs}));
    }
    Ok(all)
}

/// Runs `create role`.
pub async fn role(session: &Session) -> Outcome {
    let mut object = object("rbac.authorization.k8s.io/v1", "Role", name(session)?);
    object["rules"] = rules(session).await?.into();
    generate(session, object).await
}

/// Runs `create clusterrole`.
pub async fn cluster_role(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let mut object = object("rbac.authorization.k8s.io/v1", "ClusterRole", name(session)?);
    match parsed.text("aggregation-rule") {
        "" => object["rules"] = rules(session).await?.into(),
        labels => {
            if ["verb", "resource", "resource-name", "non-resource-url"].iter().any(|flag| parsed.is_set(flag)) {
                return Err(Failure::new(
                    "aggregation rule must be specified without nonResourceURLs, verbs, resources or resourceNames",
                ));
            }
            object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": pairs(labels)?}]});
            object["rules"] = Value::Null;
        }
    }
    generate(session, object).await
}

fn subjects(session: &Session) -> Outcome<Vec<Value>> {
    let parsed = &session.parsed;
    let group = "rbac.authorization.k8s.io";
    let mut subjects = Vec::new();
    for user in parsed.all("user") {
        subjects.push(json!({"apiGroup": group, "kind": "User", "name": user}));
    }
    for name in parsed.all("group") {
        subjects.push(json!({"apiGroup": group, "kind": "Group", "name": name}));
    }
    for account in parsed.all("serviceaccount") {
        let parts = account.split_once(':').filter(|(namespace, name)| !namespace.is_empty() && !name.contains(':'));
        let Some((namespace, name)) = parts.filter(|(_, name)| !name.is_empty()) else {
            return Err(Failure::new("serviceaccount must be <namespace>:<name>"));
        };
        subjects.push(json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}));
    }
    Ok(subjects)
}

async fn binding(session: &Session, kind: &str, role: (&str, &str)) -> Outcome {
    let group = "rbac.authorization.k8s.io";
    let mut object = object("rbac.authorization.k8s.io/v1", kind, name(session)?);
    object["roleRef"] = json!({"apiGroup": group, "kind": role.0, "name": role.1});
    let subjects = subjects(session)?;
    if !subjects.is_empty() {
        object["subjects"] = subjects.into();
    }
    generate(session, object).await
}

/// Runs `create rolebinding`.
pub async fn role_binding(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    name(session)?;
    match (parsed.text("clusterrole"), parsed.text("role")) {
        ("", "") => Err(Failure::new("exactly one of clusterrole or role must be specified")),
        (role, "") => binding(session, "RoleBinding", ("ClusterRole", role)).await,
        ("", role) => binding(session, "RoleBinding", ("Role", role)).await,
        _ => Err(Failure::new("exactly one of clusterrole or role must be specified")),
    }
}

/// Runs `create clusterrolebinding`.
pub async fn cluster_role_binding(session: &Session) -> Outcome {
    all_set(session, &["clusterrole"])?;
    let role = required(session, "clusterrole")?;
    binding(session, "ClusterRoleBinding", ("ClusterRole", &role)).await
}

async fn service(session: &Session, kind: &str) -> Outcome {
    let (name, parsed) = (name(session)?, &session.parsed);
    let mut ports = Vec::new();
    for pair in parsed.list("tcp") {
        let (port, target) = pair.split_once(':').unwrap_or((&pair, &pair));
        let number: u16 =
            port.parse().map_err(|_| Failure::new(format!("strconv.ParseUint: parsing {port:?}: invalid syntax")))?;
        let target = match target.parse::<i64>() {
            Ok(number) if !(0..=65535).contains(&number) => {
                return Err(Failure::new("must be between 1 and 65535, inclusive"));
            }
            Ok(number) => json!(number),
            Err(_) => json!(target),
        };
        let label = pair.replace(':', "-");
        let mut entry = json!({"name": label, "port": number, "protocol": "TCP", "targetPort": target});
        if parsed.is_set("node-port") && parsed.number("node-port")? != 0 {
            entry["nodePort"] = parsed.number("node-port")?.into();
        }
        ports.push(entry);
    }
    let mut object = object("v1", "Service", name);
    object["metadata"]["labels"] = json!({"app": name});
    object["spec"] = json!({"type": kind, "selector": {"app": name}});
    if kind == "ExternalName" {
        object["spec"]["externalName"] = required(session, "external-name")?.into();
    } else if ports.is_empty() && parsed.text("clusterip") != "None" {
        return Err(Failure::new("at least one tcp port specifier must be provided"));
    }
    if !ports.is_empty() {
        object["spec"]["ports"] = ports.into();
    }
    if !parsed.text("clusterip").is_empty() {
        object["spec"]["clusterIP"] = parsed.text("clusterip").into();
    }
    object["status"] = json!({"loadBalancer": {}});
    generate(session, object).await
}

/// Runs `create service clusterip`.
pub async fn cluster_ip(session: &Session) -> Outcome {
    service(session, "ClusterIP").await
}

/// Runs `create service nodeport`.
pub async fn node_port(session: &Session) -> Outcome {
    service(session, "NodePort").await
}

/// Runs `create service loadbalancer`.
pub async fn load_balancer(session: &Session) -> Outcome {
    service(session, "LoadBalancer").await
}

/// Runs `create service externalname`.
pub async fn external_name(session: &Session) -> Outcome {
    service(session, "ExternalName").await
}

fn backend(text: &str) -> Outcome<Value> {
    let (service, port) = text
        .split_once(':')
        .ok_or_else(|| Failure::new("default-backend should be in format servicename:serviceport"))?;
    let port = port.parse::<u16>().map_or_else(|_| json!({"name": port}), |n| json!({"number": n}));
    Ok(json!({"service": {"name": service, "port": port}}))
}

/// Notes that a host is served with TLS; hosts of one secret share an entry.
fn secured(tls: &mut Vec<Value>, host: &str, secure: &str) {
    let secret = secure.split_once('=').map(|(_, secret)| secret);
    let same = |entry: &&mut Value| secret.is_some() && entry["secretName"].as_str() == secret;
    if let Some(hosts) = tls.iter_mut().find(same).and_then(|entry| entry["hosts"].as_array_mut()) {
        hosts.push(host.into());
        return;
    }
    let mut entry = json!({"hosts": [host]});
    if let Some(secret) = secret {
        entry["secretName"] = secret.into();
    }
    tls.push(entry);
}

/// Runs `create ingress`.
pub async fn ingress(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let mut object = object("networking.k8s.io/v1", "Ingress", name(session)?);
    object["spec"] = json!({});
    let (mut rules, mut tls): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
    for rule in parsed.all("rule") {
        let wrong = || {
            Failure::new(format!(
                "rule {rule} is invalid and should be in format host/path=svcname:svcport[,tls[=secret]]"
            ))
        };
        let (place, rest) = rule.split_once('=').ok_or_else(wrong)?;
        let (service, secure) = rest.split_once(',').map_or((rest, None), |(s, t)| (s, Some(t)));
        let (host, path) = place.split_once('/').ok_or_else(wrong)?;
        let (path, kind) = match path.strip_suffix('*') {
            Some(prefix) => (prefix, "Prefix"),
            None => (path, "Exact"),
        };
        let entry =
            json!({"path": format!("/{path}"), "pathType": kind, "backend": backend(service).map_err(|_| wrong())?});
        match rules.iter_mut().find(|r| r["host"].as_str().unwrap_or_default() == host) {
            Some(rule) => rule["http"]["paths"].as_array_mut().map(|p| p.push(entry)).unwrap_or_default(),
            None => {
                let mut rule = json!({"http": {"paths": [entry]}});
                if !host.is_empty() {
                    rule["host"] = host.into();
                }
                rules.push(rule);
            }
        }
        if let Some(secure) = secure {
            secured(&mut tls, host, secure);
        }
    }
    if rules.is_empty() && parsed.text("default-backend").is_empty() {
        return Err(Failure::new(
            "not enough information provided: every ingress has to either specify a default-backend (which catches all traffic) or a list of rules (which catch specific paths)",
        ));
    }
    if !rules.is_empty() {
        object["spec"]["rules"] = rules.into();
    }
    if !tls.is_empty() {
        object["spec"]["tls"] = tls.into();
    }
    if !parsed.text("class").is_empty() {
        object["spec"]["ingressClassName"] = parsed.text("class").into();
    }
    if !parsed.text("default-backend").is_empty() {
        object["spec"]["defaultBackend"] = backend(parsed.text("default-backend"))?;
    }
    for annotation in parsed.all("annotation") {
        let (key, value) = annotation.split_once('=').ok_or_else(|| {
            Failure::new(format!("annotation {annotation} is invalid and should be in format key=[value]"))
        })?;
        object["metadata"]["annotations"][key] = value.into();
    }
    object["status"] = json!({"loadBalancer": {}});
    generate(session, object).await
}

/// A selector's text as the API writes it.
fn label_selector(text: &str) -> Outcome<Value> {
    keelson_machinery::selector::LabelSelector::parse(text).map_err(|why| {
        Failure::new(format!("couldn't parse the selector string {}: {why}", crate::value::quoted(text)))
    })?;
    if text.split(',').all(|part| part.contains('=') && !part.contains('!') && !part.contains('(')) {
        return Ok(json!({"matchLabels": pairs(&text.replace("==", "="))?}));
    }
    let mut wanted = json!({"matchExpressions": []});
    for part in requirements(text) {
        let part = part.trim();
        let word = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
        let values = |text: &str| -> Vec<String> {
            let inside = text.split_once('(').map_or("", |(_, rest)| rest.trim_end_matches(')'));
            let mut all: Vec<String> = inside.split(',').map(|v| v.trim().to_owned()).collect();
            all.sort();
            all
        };
        let expression = match part {
            p if p.contains(" notin ") => json!({"key": word(p), "operator": "NotIn", "values": values(p)}),
            p if p.contains(" in ") => json!({"key": word(p), "operator": "In", "values": values(p)}),
            p if p.contains("!=") => {
                let (key, value) = p.split_once("!=").unwrap_or((p, ""));
                json!({"key": key.trim(), "operator": "NotIn", "values": [value.trim()]})
            }
            p if p.contains('=') => {
                let (key, value) = p.split_once('=').unwrap_or((p, ""));
                wanted["matchLabels"][key.trim()] = value.trim_start_matches('=').trim().into();
                continue;
            }
            p if p.starts_with('!') => json!({"key": p[1..].trim(), "operator": "DoesNotExist"}),
            p => json!({"key": p, "operator": "Exists"}),
        };
        if let Some(all) = wanted["matchExpressions"].as_array_mut() {
            all.push(expression);
        }
    }
    Ok(wanted)
}

/// The parts of a selector: commas inside of parentheses part nothing.
fn requirements(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Runs `create poddisruptionbudget`.
pub async fn disruption_budget(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    name(session)?;
    if parsed.text("selector").is_empty() {
        return Err(Failure::new("a selector must be specified"));
    }
    let amount = |text: &str| text.parse::<i64>().map_or_else(|_| json!(text), |n| json!(n));
    let mut object = object("policy/v1", "PodDisruptionBudget", name(session)?);
    object["spec"] = json!({"selector": label_selector(parsed.text("selector"))?});
    match (parsed.text("min-available"), parsed.text("max-unavailable")) {
        ("", "") => return Err(Failure::new("one of min-available or max-unavailable must be specified")),
        (min, "") => object["spec"]["minAvailable"] = amount(min),
        ("", max) => object["spec"]["maxUnavailable"] = amount(max),
        _ => return Err(Failure::new("min-available and max-unavailable cannot be both specified")),
    }
    object["status"] = json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
    generate(session, object).await
}

/// Runs `create priorityclass`.
pub async fn priority_class(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let mut object = object("scheduling.k8s.io/v1", "PriorityClass", name(session)?);
    object["value"] = parsed.number("value")?.into();
    object["preemptionPolicy"] = parsed.text("preemption-policy").into();
    if parsed.on("global-default") {
        object["globalDefault"] = true.into();
    }
    if !parsed.text("description").is_empty() {
        object["description"] = parsed.text("description").into();
    }
    generate(session, object).await
}

/// Runs `create quota`.
pub async fn quota(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let mut object = object("v1", "ResourceQuota", name(session)?);
    let hard: Map<String, Value> = quantities(parsed.text("hard"))?;
    object["spec"] = json!({});
    if !hard.is_empty() {
        object["spec"]["hard"] = hard.into();
    }
    if !parsed.list("scopes").is_empty() {
        object["spec"]["scopes"] = json!(parsed.list("scopes"));
    }
    object["status"] = json!({});
    generate(session, object).await
}
