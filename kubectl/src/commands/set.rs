//! `set`: images, environment, resources and service accounts of pod templates.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, switch, text};
use crate::objects::{FILES, SELECT};
use crate::output::{self, changed};
use crate::session::Session;

use super::change::{difference, named, path_of};
use super::create::{WRITE, is_client_dry_run, manager, write_query};

/// Flags of all of them.
pub const FLAGS: &[&[Flag]] = &[output::FLAGS, FILES, COMMON];
/// Flags of `set serviceaccount`, which takes no selector.
pub const ACCOUNT: &[&[Flag]] = &[output::FLAGS, FILES, &[SELECT[3], WRITE[0], manager("kubectl-set"), LOCAL]];
const LOCAL: Flag = switch("local", "If true, set will NOT contact api-server but run locally.");
const COMMON: &[Flag] = &[SELECT[0], SELECT[3], WRITE[0], manager("kubectl-set"), LOCAL];
const CONTAINERS: Flag =
    text("containers", "*", "The names of containers in the selected pod templates to change.").short('c');
/// Flags of `set env`.
pub const ENV: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    COMMON,
    &[
        CONTAINERS,
        repeated("env", "Specify a key-value pair for an environment variable to set into each container.").short('e'),
        text("from", "", "The name of a resource from which to inject environment variables"),
        repeated("keys", "Comma-separated list of keys to import from specified resource"),
        switch("list", "If true, display the environment and any changes in the standard format."),
        switch("overwrite", "If true, allow environment to be overwritten, otherwise reject updates that overwrite existing environment.").or("true"),
        text("prefix", "", "Prefix to append to variable names"),
        switch("resolve", "If true, show secret or configmap references when listing variables"),
    ],
];
/// Flags of `set resources`.
pub const RESOURCES: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    COMMON,
    &[
        CONTAINERS,
        text("limits", "", "The resource requirement requests for this container."),
        text("requests", "", "The resource requirement requests for this container."),
    ],
];

/// The pod spec of an object, wherever it is.
pub fn pod_spec(object: &mut Value) -> Option<&mut Value> {
    let path = match object["kind"].as_str()? {
        "Pod" => "/spec",
        "CronJob" => "/spec/jobTemplate/spec/template/spec",
        _ => "/spec/template/spec",
    };
    object.pointer_mut(path)
}

/// Splits arguments into the resources and what comes after them.
fn split(args: &[String], is_change: impl Fn(&str) -> bool) -> (&[String], &[String]) {
    let at = args.iter().position(|a| is_change(a)).unwrap_or(args.len());
    args.split_at(at)
}

fn without_template(kind: &crate::kinds::Kind, object: &Value) -> Failure {
    Failure::new(format!(
        "{}/{} the object is not a pod or does not have a pod template: *{}.{}",
        kind.qualified_plural(),
        object["metadata"]["name"].as_str().unwrap_or_default(),
        kind.version,
        kind.kind
    ))
}

async fn each(
    session: &Session,
    resources: &[String],
    done: &str,
    mut change: impl FnMut(&mut Value) -> Outcome,
) -> Outcome {
    for (kind, before) in named(session, resources).await? {
        let mut after = before.clone();
        let Some(spec) = pod_spec(&mut after) else {
            return Err(without_template(&kind, &before));
        };
        change(spec)?;
        let patch = difference(&before, &after);
        let local = session.parsed.on("local");
        if patch.is_none() && !local {
            continue;
        }
        if !local && !is_client_dry_run(session)? {
            let patch = patch.unwrap_or_default();
            let path = format!("{}{}", path_of(&kind, &before), write_query(session, "kubectl-set")?);
            after = session.patch(&path, "merge-patch", &patch).await?;
        }
        changed(&session.parsed, &after, done)?;
    }
    Ok(())
}

/// The containers of a pod spec, init containers included, that a pattern names.
fn containers<'a>(spec: &'a mut Value, pattern: &str) -> Vec<&'a mut Value> {
    let pattern = pattern.to_owned();
    let Some(spec) = spec.as_object_mut() else { return Vec::new() };
    let lists = spec.iter_mut().filter(|(key, _)| matches!(key.as_str(), "containers" | "initContainers"));
    let all = lists.flat_map(|(_, list)| list.as_array_mut().into_iter().flatten());
    let fits = |name: &str| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    };
    all.filter(|c| fits(c["name"].as_str().unwrap_or_default())).collect()
}

/// Runs `set image`.
pub async fn image(session: &Session) -> Outcome {
    let (resources, pairs) = split(&session.parsed.args, |a| a.contains('='));
    if session.parsed.args.is_empty() && !session.parsed.is_set("filename") {
        return Err(super::change::nothing_named());
    }
    if pairs.is_empty() {
        crate::objects::targets(session, resources).await?;
        return Err(Failure::new("at least one image update is required"));
    }
    each(session, resources, "image updated", |spec| {
        for pair in pairs {
            let (name, image) = pair.split_once('=').unwrap_or((pair, ""));
            let mut found = containers(spec, name);
            if found.is_empty() {
                return Err(Failure::new(format!("unable to find container named \"{name}\"")));
            }
            found.iter_mut().for_each(|container| container["image"] = image.into());
        }
        Ok(())
    })
    .await
}

/// Runs `set env`.
pub async fn env(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let (resources, pairs) = split(&parsed.args, |a| a.contains('=') || a.ends_with('-'));
    let pairs: Vec<String> = pairs.iter().cloned().chain(parsed.all("env")).collect();
    if parsed.on("list") {
        for (_, mut object) in named(session, resources).await? {
            let shown = output::name_of(&object);
            let name = shown.split_once('/').map_or("", |(_, name)| name);
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            for container in pod_spec(&mut object).map(|s| containers(s, parsed.text("containers"))).unwrap_or_default()
            {
                println!("# {kind} {name}, container {}", container["name"].as_str().unwrap_or_default());
                for variable in container["env"].as_array().into_iter().flatten() {
                    println!("{}", listed(session, variable).await?);
                }
            }
        }
        return Ok(());
    }
    if resources.is_empty() && !parsed.is_set("filename") {
        return Err(Failure::new("one or more resources must be specified as <resource> <name> or <resource>/<name>"));
    }
    let injected = injected(session).await?;
    each(session, resources, "env updated", |spec| {
        for container in containers(spec, parsed.text("containers")) {
            for variable in &injected {
                put(container, variable, parsed.on("overwrite"))?;
            }
            for pair in &pairs {
                variable(container, pair, parsed.on("overwrite"))?;
            }
        }
        Ok(())
    })
    .await
}

/// The variables that `--from` brings: one for each key of a config map or a secret.
async fn injected(session: &Session) -> Outcome<Vec<Value>> {
    let parsed = &session.parsed;
    if parsed.text("from").is_empty() {
        return Ok(Vec::new());
    }
    let (kind, name) = crate::objects::one(session, &[parsed.text("from").to_owned()]).await?;
    let source = match kind.plural.as_str() {
        "configmaps" => "configMapKeyRef",
        "secrets" => "secretKeyRef",
        _ => return Err(Failure::new("unsupported resource specified in --from")),
    };
    let object = session.get(&kind.object(&session.namespace()?, &name)).await?;
    let keys = parsed.list("keys");
    let data = object["data"].as_object().into_iter().flatten().map(|(key, _)| key);
    let variable = |key: &String| {
        let letters =
            key.to_uppercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect::<String>();
        if letters != *key {
            eprintln!("Warning: key {key} transferred to {letters}");
        }
        json!({"name": format!("{}{letters}", parsed.text("prefix")), "valueFrom": {source: {"key": key, "name": name}}})
    };
    Ok(data.filter(|key| keys.is_empty() || keys.contains(key)).map(variable).collect())
}

fn put(container: &mut Value, new: &Value, overwrite: bool) -> Outcome {
    if !container["env"].is_array() {
        container["env"] = json!([]);
    }
    let Some(env) = container["env"].as_array_mut() else { return Ok(()) };
    match env.iter_mut().find(|v| v["name"] == new["name"]) {
        Some(_) if !overwrite => {
            let name = new["name"].as_str().unwrap_or_default();
            Err(Failure::new(format!("'{name}' already has a value, and --overwrite is false")))
        }
        Some(have) => {
            *have = new.clone();
            Ok(())
        }
        None => {
            env.push(new.clone());
            Ok(())
        }
    }
}

/// A variable as `--list` shows it; with `--resolve`, what it refers to is looked up.
async fn listed(session: &Session, variable: &Value) -> Outcome<String> {
    let name = variable["name"].as_str().unwrap_or_default();
    if variable["valueFrom"].is_null() {
        return Ok(format!("{name}={}", variable["value"].as_str().unwrap_or_default()));
    }
    for (field, plural, word) in [("secretKeyRef", "secrets", "secret"), ("configMapKeyRef", "configmaps", "configmap")]
    {
        let from = &variable["valueFrom"][field];
        if from.is_null() {
            continue;
        }
        let (object, key) = (from["name"].as_str().unwrap_or_default(), from["key"].as_str().unwrap_or_default());
        if session.parsed.on("resolve") {
            let path = format!("/api/v1/namespaces/{}/{plural}/{object}", session.namespace()?);
            let value = session.get(&path).await?["data"][key].clone();
            let text = value.as_str().unwrap_or_default();
            let text = match word {
                "secret" => String::from_utf8_lossy(&STANDARD.decode(text).unwrap_or_default()).into_owned(),
                _ => text.to_owned(),
            };
            return Ok(format!("{name}={text}"));
        }
        return Ok(format!("# {name} from {word} {object}, key {key}"));
    }
    let path = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
    match path {
        Some(path) => Ok(format!("# {name} from field path {path}")),
        None => {
            let resource = variable["valueFrom"]["resourceFieldRef"]["resource"].as_str().unwrap_or_default();
            Ok(format!("# {name} from resource field {resource}"))
        }
    }
}

fn variable(container: &mut Value, pair: &str, overwrite: bool) -> Outcome {
    if !container["env"].is_array() {
        container["env"] = json!([]);
    }
    let Some(env) = container["env"].as_array_mut() else { return Ok(()) };
    let (name, value) = match (pair.split_once('='), pair.strip_suffix('-')) {
        (Some((name, value)), _) => (name, Some(value)),
        (None, Some(name)) => (name, None),
        _ => return Err(Failure::new(format!("environment variables must be of the form key=value: {pair}"))),
    };
    let at = env.iter().position(|v| v["name"] == name);
    match (at, value) {
        (Some(_), Some(_)) if !overwrite => {
            return Err(Failure::new(format!("'{name}' already has a value, and --overwrite is false")));
        }
        (Some(at), Some(value)) => env[at] = json!({"name": name, "value": value}),
        (None, Some(value)) => env.push(json!({"name": name, "value": value})),
        (Some(at), None) => drop(env.remove(at)),
        (None, None) => {}
    }
    if env.is_empty()
        && let Some(container) = container.as_object_mut()
    {
        container.remove("env");
    }
    Ok(())
}

/// `cpu=100m,memory=1Gi` as a map.
pub fn quantities(text: &str) -> Outcome<Map<String, Value>> {
    let pair = |part: &str| {
        let (key, value) = part
            .split_once('=')
            .ok_or_else(|| Failure::new(format!("Invalid argument syntax {part}, expected <resource>=<value>")))?;
        if keelson_machinery::quantity::Quantity::parse(value).is_err() {
            return Err(Failure::new(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ));
        }
        Ok((key.to_owned(), Value::from(value)))
    };
    text.split(',').filter(|p| !p.is_empty()).map(pair).collect()
}

/// Runs `set resources`.
pub async fn resources(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if parsed.args.is_empty() && !parsed.is_set("filename") {
        return Err(super::change::nothing_named());
    }
    let (limits, requests) = (quantities(parsed.text("limits"))?, quantities(parsed.text("requests"))?);
    if limits.is_empty() && requests.is_empty() {
        return Err(Failure::new(
            "you must specify an update to requests or limits (in the form of --requests/--limits)",
        ));
    }
    each(session, &parsed.args, "resource requirements updated", |spec| {
        let mut found = containers(spec, parsed.text("containers"));
        if found.is_empty() {
            return Err(Failure::new(format!("unable to find container named {}", parsed.text("containers"))));
        }
        for container in &mut found {
            for (field, values) in [("limits", &limits), ("requests", &requests)] {
                for (key, value) in values {
                    container["resources"][field][key] = value.clone();
                }
            }
        }
        Ok(())
    })
    .await
}

/// Runs `set serviceaccount`.
pub async fn service_account(session: &Session) -> Outcome {
    let Some((account, resources)) = session.parsed.args.split_last() else {
        return Err(Failure::new("serviceaccount is required"));
    };
    each(session, resources, "serviceaccount updated", |spec| {
        spec["serviceAccountName"] = account.clone().into();
        Ok(())
    })
    .await
}

/// Flags of `set selector`.
pub const SELECTOR: &[&[Flag]] = &[
    output::FLAGS,
    &[
        FILES[0],
        FILES[2].or("true"),
        SELECT[3],
        WRITE[0],
        manager("kubectl-set"),
        LOCAL,
        text(
            "resource-version",
            "",
            "If non-empty, the selectors update will only succeed if this is the current resource-version for the object.",
        ),
    ],
];

/// Runs `set selector`.
pub async fn selector(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let Some((wanted, resources)) = parsed.args.split_last() else {
        return Err(Failure::new("one or more resources must be specified as <resource> <name> or <resource>/<name>"));
    };
    let pairs = super::run::pairs(wanted)?;
    for (kind, before) in named(session, resources).await? {
        let mut after = before.clone();
        match kind.plural.as_str() {
            "services" | "replicationcontrollers" => after["spec"]["selector"] = pairs.clone().into(),
            _ => return Err(Failure::new("setting a selector is only supported for Services")),
        }
        if !parsed.text("resource-version").is_empty() {
            after["metadata"]["resourceVersion"] = parsed.text("resource-version").into();
        }
        replaced(session, &kind, &before, after, "selector updated").await?;
    }
    Ok(())
}

/// Puts an object in the place of another, as far as flags let it.
async fn replaced(
    session: &Session,
    kind: &crate::kinds::Kind,
    before: &Value,
    mut after: Value,
    done: &str,
) -> Outcome {
    if !session.parsed.on("local") && !is_client_dry_run(session)? {
        let path = format!("{}{}", path_of(kind, before), write_query(session, "kubectl-set")?);
        after = session.put(&path, &after).await?;
    }
    changed(&session.parsed, &after, done)
}

/// Flags of `set subject`.
pub const SUBJECT: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    COMMON,
    &[
        repeated("group", "Groups to bind to the role"),
        repeated("serviceaccount", "Service accounts to bind to the role"),
        repeated("user", "Usernames to bind to the role"),
    ],
];

/// Runs `set subject`.
pub async fn subject(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if parsed.args.is_empty() && !parsed.is_set("filename") {
        return Err(super::change::nothing_named());
    }
    let mut subjects = Vec::new();
    for (flag, kind) in [("user", "User"), ("group", "Group")] {
        for name in parsed.list(flag) {
            subjects.push(json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}));
        }
    }
    for account in parsed.list("serviceaccount") {
        let (namespace, name) = account
            .split_once(':')
            .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
            .ok_or_else(|| Failure::new("serviceaccount must be <namespace>:<name>"))?;
        subjects.push(json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}));
    }
    if subjects.is_empty() {
        return Err(Failure::new("you must specify at least one value of user, group or serviceaccount"));
    }
    for (kind, before) in named(session, &parsed.args).await? {
        if !matches!(kind.kind.as_str(), "RoleBinding" | "ClusterRoleBinding") {
            let name = before["metadata"]["name"].as_str().unwrap_or_default();
            return Err(Failure::new(format!(
                "{}/{name} setting subjects is only supported for RoleBinding/ClusterRoleBinding",
                kind.qualified_plural()
            )));
        }
        let mut after = before.clone();
        if !after["subjects"].is_array() {
            after["subjects"] = json!([]);
        }
        if let Some(have) = after["subjects"].as_array_mut() {
            let new: Vec<Value> = subjects.iter().filter(|s| !have.contains(s)).cloned().collect();
            have.extend(new);
        }
        replaced(session, &kind, &before, after, "subjects updated").await?;
    }
    Ok(())
}
