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

use super::create::{SAVE, WRITE, create};
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
const RULE: &[Flag] =
    &[
        SAVE,
        repeated("verb", "Verb that applies to the resources contained in the rule"),
        repeated("resource", "Resource that the rule applies to"),
        repeated("resource-name",
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
    create(session, object).await
}

/// Runs `create serviceaccount`.
pub async fn service_account(session: &Session) -> Outcome {
    create(session, object("v1", "ServiceAccount", name(session)?)).await
}

/// The entries that files and literals give: text, or bytes that are none.
fn entries(session: &Session) -> Outcome<Vec<(String, Vec<u8>)>> {
    let parsed = &session.parsed;
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for source in parsed.all("from-file") {
        let (key, path) = match source.split_once('=') {
            Some((key, path)) => (Some(key), path),
            None => (None, source.as_str()),
        };
        let wrong = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => Failure::new(format!("error reading {path}: no such file or directory")),
            _ => Failure::new(format!("error reading {path}: {e}")),
        };
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
            continue;
        }
        let own = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
        all.push((key.map_or(own, str::to_owned), std::fs::read(path).map_err(wrong)?));
    }
    for literal in parsed.all("from-literal") {
        let (key, value) = literal
            .split_once('=')
            .ok_or_else(|| Failure::new(format!("invalid literal source {literal}, expected key=value")))?;
        all.push((key.to_owned(), value.as_bytes().to_vec()));
    }
    for path in parsed.all("from-env-file") {
        let content = std::fs::read_to_string(&path).map_err(|e| Failure::new(format!("error reading {path}: {e}")))?;
        for line in content.lines().map(str::trim_start).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let (key, value) = match line.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None => (line.to_owned(), std::env::var(line).unwrap_or_default()),
            };
            all.push((key, value.into_bytes()));
        }
    }
    for (at, (key, _)) in all.iter().enumerate() {
        if all[..at].iter().any(|(before, _)| before == key) {
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
    create(session, object).await
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
    create(session, object).await
}

/// Runs `create secret tls`.
pub async fn tls_secret(session: &Session) -> Outcome {
    let read = |flag: &str| -> Outcome<Vec<u8>> {
        let path = session.parsed.text(flag);
        if path.is_empty() {
            return Err(Failure::new("key and cert must be specified"));
        }
        std::fs::read(path).map_err(|e| Failure::new(format!("open {path}: {e}")))
    };
    let mut object = object("v1", "Secret", name(session)?);
    object["type"] = "kubernetes.io/tls".into();
    object["data"] = json!({"tls.crt": STANDARD.encode(read("cert")?), "tls.key": STANDARD.encode(read("key")?)});
    create(session, object).await
}

/// Runs `create secret docker-registry`.
pub async fn registry_secret(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let (user, password) = (required(session, "docker-username")?, required(session, "docker-password")?);
    let mut entry =
        json!({"username": user, "password": password, "auth": STANDARD.encode(format!("{user}:{password}"))});
    if !parsed.text("docker-email").is_empty() {
        entry["email"] = parsed.text("docker-email").into();
    }
    let config = json!({"auths": {parsed.text("docker-server"): entry}});
    let mut object = object("v1", "Secret", name(session)?);
    object["type"] = "kubernetes.io/dockerconfigjson".into();
    object["data"] = json!({".dockerconfigjson": STANDARD.encode(config.to_string())});
    create(session, object).await
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
    let (name, parsed) = (name(session)?, &session.parsed);
    let images = parsed.list("image");
    if images.is_empty() {
        return Err(Failure::new("required flag(s) \"image\" not set"));
    }
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
    create(session, object).await
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
    match parsed.text("from").split_once('/') {
        Some((kind, from)) => {
            let kind = kinds::resolve(session, kind).await?;
            if kind.plural != "cronjobs" {
                return Err(Failure::new("from must be an existing cronjob"));
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
            if !parsed.is_set("image") {
                return Err(Failure::new("either --image or --from must be specified"));
            }
            object["spec"] = job_spec(session, name, "Never")?;
        }
    }
    object["status"] = json!({});
    create(session, object).await
}

/// Runs `create cronjob`.
pub async fn cron_job(session: &Session) -> Outcome {
    let (name, parsed) = (name(session)?, &session.parsed);
    let restart = if parsed.text("restart").is_empty() { "OnFailure" } else { parsed.text("restart") };
    let mut object = object("batch/v1", "CronJob", name);
    object["spec"] = json!({
        "schedule": required(session, "schedule")?,
        "jobTemplate": {"metadata": {"name": name}, "spec": job_spec(session, name, restart)?},
    });
    object["status"] = json!({});
    create(session, object).await
}

async fn rules(session: &Session) -> Outcome<Vec<Value>> {
    let parsed = &session.parsed;
    let (verbs, names, urls) = (parsed.list("verb"), parsed.list("resource-name"), parsed.list("non-resource-url"));
    if verbs.is_empty() {
        return Err(Failure::new("at least one verb must be specified"));
    }
    if !urls.is_empty() {
        return Ok(vec![json!({"nonResourceURLs": urls, "verbs": verbs})]);
    }
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for text in parsed.list("resource") {
        let (resource, subresource) = text.split_once('/').map_or((text.as_str(), ""), |(r, s)| (r, s));
        let (group, plural) = match resource {
            "*" => (String::new(), "*".to_owned()),
            resource => {
                let kind = kinds::resolve(session, resource).await?;
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
    if groups.is_empty() {
        return Err(Failure::new("at least one resource must be specified"));
    }
    groups.sort();
    let rule = |(group, resources): &(String, Vec<String>)| {
        let mut rule = json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
        if !names.is_empty() {
            rule["resourceNames"] = json!(names);
        }
        rule
    };
    Ok(groups.iter().map(rule).collect())
}

/// Runs `create role`.
pub async fn role(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    for refused in ["non-resource-url", "aggregation-rule"] {
        if parsed.is_set(refused) {
            return Err(Failure::new(format!(
                "unknown flag: --{refused}\nSee 'kubectl create role --help' for usage."
            )));
        }
    }
    let mut object = object("rbac.authorization.k8s.io/v1", "Role", name(session)?);
    object["rules"] = rules(session).await?.into();
    create(session, object).await
}

/// Runs `create clusterrole`.
pub async fn cluster_role(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let mut object = object("rbac.authorization.k8s.io/v1", "ClusterRole", name(session)?);
    match parsed.text("aggregation-rule") {
        "" => object["rules"] = rules(session).await?.into(),
        labels => {
            object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": pairs(labels)?}]});
            object["rules"] = Value::Null;
        }
    }
    create(session, object).await
}

fn subjects(session: &Session) -> Outcome<Vec<Value>> {
    let parsed = &session.parsed;
    let group = "rbac.authorization.k8s.io";
    let mut subjects = Vec::new();
    for user in parsed.list("user") {
        subjects.push(json!({"apiGroup": group, "kind": "User", "name": user}));
    }
    for name in parsed.list("group") {
        subjects.push(json!({"apiGroup": group, "kind": "Group", "name": name}));
    }
    for account in parsed.list("serviceaccount") {
        let Some((namespace, name)) = account.split_once(':') else {
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
    create(session, object).await
}

/// Runs `create rolebinding`.
pub async fn role_binding(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    match (parsed.text("clusterrole"), parsed.text("role")) {
        ("", "") => Err(Failure::new("exactly one of clusterrole or role must be specified")),
        (role, "") => binding(session, "RoleBinding", ("ClusterRole", role)).await,
        ("", role) => binding(session, "RoleBinding", ("Role", role)).await,
        _ => Err(Failure::new("exactly one of clusterrole or role must be specified")),
    }
}

/// Runs `create clusterrolebinding`.
pub async fn cluster_role_binding(session: &Session) -> Outcome {
    let role = required(session, "clusterrole")?;
    binding(session, "ClusterRoleBinding", ("ClusterRole", &role)).await
}

async fn service(session: &Session, kind: &str) -> Outcome {
    let (name, parsed) = (name(session)?, &session.parsed);
    let mut ports = Vec::new();
    for pair in parsed.list("tcp") {
        let (port, target) = pair.split_once(':').unwrap_or((&pair, &pair));
        let number: u16 =
            port.parse().map_err(|_| Failure::new(format!("strconv.Atoi: parsing {port:?}: invalid syntax")))?;
        let target = target.parse::<u16>().map_or_else(|_| json!(target), |n| json!(n));
        let label = pair.replace(':', "-");
        let mut entry = json!({"name": label, "port": number, "protocol": "TCP", "targetPort": target});
        if parsed.number("node-port")? > 0 {
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
    create(session, object).await
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
    let (service, port) =
        text.split_once(':').ok_or_else(|| Failure::new(format!("service and port are expected in {text:?}")))?;
    let port = port.parse::<u16>().map_or_else(|_| json!({"name": port}), |n| json!({"number": n}));
    Ok(json!({"service": {"name": service, "port": port}}))
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
        let entry = json!({"path": format!("/{path}"), "pathType": kind, "backend": backend(service)?});
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
            let mut entry = json!({"hosts": [host]});
            if let Some(secret) = secure.strip_prefix("tls=") {
                entry["secretName"] = secret.into();
            }
            tls.push(entry);
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
    create(session, object).await
}

/// Runs `create poddisruptionbudget`.
pub async fn disruption_budget(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if parsed.text("selector").is_empty() {
        return Err(Failure::new("a selector must be specified"));
    }
    let amount = |text: &str| text.parse::<i64>().map_or_else(|_| json!(text), |n| json!(n));
    let mut object = object("policy/v1", "PodDisruptionBudget", name(session)?);
    object["spec"] = json!({"selector": {"matchLabels": pairs(parsed.text("selector"))?}});
    match (parsed.text("min-available"), parsed.text("max-unavailable")) {
        ("", "") => return Err(Failure::new("one of min-available or max-unavailable must be specified")),
        (min, "") => object["spec"]["minAvailable"] = amount(min),
        ("", max) => object["spec"]["maxUnavailable"] = amount(max),
        _ => return Err(Failure::new("min-available and max-unavailable cannot be both specified")),
    }
    object["status"] = json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
    create(session, object).await
}

/// Runs `create priorityclass`.
pub async fn priority_class(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if !parsed.is_set("value") {
        return Err(Failure::new("required flag(s) \"value\" not set"));
    }
    let mut object = object("scheduling.k8s.io/v1", "PriorityClass", name(session)?);
    object["value"] = parsed.number("value")?.into();
    object["preemptionPolicy"] = parsed.text("preemption-policy").into();
    if parsed.on("global-default") {
        object["globalDefault"] = true.into();
    }
    if !parsed.text("description").is_empty() {
        object["description"] = parsed.text("description").into();
    }
    create(session, object).await
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
    create(session, object).await
}
