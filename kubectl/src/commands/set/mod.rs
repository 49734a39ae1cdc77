//! `set`: images, resources and service accounts of pod templates, and what else is set of objects.

mod env;
pub use env::{env, invalid_variable};

use serde_json::{Map, Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, RECORD, repeated, switch, text};
use crate::kinds::Kind;
use crate::objects::{FILES, SELECT};
use crate::output::{self, changed};
use crate::session::Session;

use super::change::{difference, each_named, named, path_of};
use super::create::{WRITE, is_client_dry_run, manager, write_query};

/// Flags of all of them.
pub const FLAGS: &[&[Flag]] = &[output::FLAGS, FILES, COMMON];
/// Flags of `set serviceaccount`, which takes no selector.
pub const ACCOUNT: &[&[Flag]] = &[output::FLAGS, FILES, &[SELECT[3], WRITE[0], manager("kubectl-set"), LOCAL, RECORD]];
const LOCAL: Flag = switch("local", "If true, set will NOT contact api-server but run locally.");
const COMMON: &[Flag] = &[SELECT[0], SELECT[3], WRITE[0], manager("kubectl-set"), LOCAL, RECORD];
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

/// Splits arguments into the resources and the changes (`what` they are of) that come after them.
fn split<'a>(
    args: &'a [String],
    what: &str,
    is_change: impl Fn(&str) -> bool,
) -> Outcome<(&'a [String], &'a [String])> {
    let at = args.iter().position(|a| is_change(a)).unwrap_or(args.len());
    let (resources, changes) = args.split_at(at);
    match changes.iter().find(|a| !is_change(a)) {
        Some(late) => Err(Failure::new(format!("all resources must be specified before {what} changes: {late}"))),
        None => Ok((resources, changes)),
    }
}

/// Whether an argument sets something: `name=value`.
fn is_pair(argument: &str) -> bool {
    argument.find('=').is_some_and(|at| at > 0)
}

fn without_template(kind: &Kind, object: &Value) -> Failure {
    Failure::new(format!(
        "{}/{} the object is not a pod or does not have a pod template: *{}.{}",
        kind.qualified_plural(),
        object["metadata"]["name"].as_str().unwrap_or_default(),
        kind.version,
        kind.kind
    ))
}

/// Changes the pod spec of each object; what goes wrong with one does not keep the others from being changed.
async fn each(
    session: &Session,
    resources: &[String],
    done: &str,
    mut change: impl FnMut(&Kind, &mut Value) -> (Outcome, bool),
) -> Outcome {
    if session.parsed.on("local") && !session.parsed.is_set("filename") {
        return Err(match done {
            "image updated" | "resource requirements updated" => Failure::new(
                "you must specify resources by --filename when --local is set.\nExample resource specifications include:\n   \
                 '-f rsrc.yaml'\n   '--filename=rsrc.json'",
            ),
            _ => super::change::nothing_named(),
        });
    }
    let (found, mut failed) = each_named(session, resources).await?;
    for (kind, before) in found {
        let mut after = before.clone();
        let done = match pod_spec(&mut after) {
            None => Err(without_template(&kind, &before)),
            Some(_) => {
                let (told, changed) = change(&kind, &mut after);
                if let Err(error) = told {
                    failed = Some(super::say(failed, error));
                }
                if !changed {
                    continue;
                }
                write(session, &kind, &before, after, done).await
            }
        };
        if let Err(error) = done {
            failed = Some(super::say(failed, error));
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn write(session: &Session, kind: &Kind, before: &Value, mut after: Value, done: &str) -> Outcome {
    let mut patch = difference(before, &after);
    let local = session.parsed.on("local");
    // An account is set again; the others say nothing where nothing changes.
    if patch.is_none() && !local && !done.starts_with("serviceaccount") {
        return Ok(());
    }
    if session.parsed.on("record") {
        super::create::record(session, &mut after);
        patch = difference(before, &after);
    }
    if !local && !is_client_dry_run(session)? {
        let patch = patch.unwrap_or_else(|| json!({}));
        let path = format!("{}{}", path_of(kind, before), write_query(session, "kubectl-set")?);
        after = session.patch(&path, "merge-patch", &patch).await?;
    }
    changed(&session.parsed, &after, done)
}

/// The containers of a pod spec, init containers included, that a pattern names.
fn containers<'a>(spec: &'a mut Value, pattern: &str) -> Vec<&'a mut Value> {
    let pattern = pattern.to_owned();
    let Some(spec) = spec.as_object_mut() else { return Vec::new() };
    let lists = spec.iter_mut().filter(|(key, _)| matches!(key.as_str(), "containers" | "initContainers"));
    let all = lists.flat_map(|(_, list)| list.as_array_mut().into_iter().flatten());
    let fits = |name: &str| match pattern.split_once('*') {
        Some((start, end)) => name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end),
        None => name == pattern,
    };
    all.filter(|c| fits(c["name"].as_str().unwrap_or_default())).collect()
}

/// Runs `set image`.
pub async fn image(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let (resources, pairs) = split(&parsed.args, "image", is_pair)?;
    if parsed.args.is_empty() && !parsed.is_set("filename") {
        return Err(super::change::nothing_named());
    }
    if pairs.is_empty() {
        crate::objects::targets(session, resources).await?;
        return Err(Failure::new("at least one image update is required"));
    }
    each(session, resources, "image updated", |_, object| {
        let (mut told, mut any) = (None, false);
        for pair in pairs {
            let (name, image) = pair.split_once('=').unwrap_or((pair, ""));
            // Only the star alone stands for several containers.
            let all = pod_spec(object).map(|spec| containers(spec, "*")).unwrap_or_default();
            let mut found: Vec<_> = all.into_iter().filter(|c| name == "*" || c["name"] == name).collect();
            if found.is_empty() {
                told = Some(super::say(told, Failure::new(format!("unable to find container named \"{name}\""))));
            }
            any |= !found.is_empty();
            found.iter_mut().for_each(|container| container["image"] = image.into());
        }
        (told.map_or(Ok(()), Err), any)
    })
    .await
}

/// `cpu=100m,memory=1Gi` as a map.
pub fn quantities(text: &str) -> Outcome<Map<String, Value>> {
    let pair = |part: &str| {
        let (key, value) = part
            .split_once('=')
            .filter(|(_, value)| !value.contains('='))
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
    each(session, &parsed.args, "resource requirements updated", |_, object| {
        let mut found = pod_spec(object).map(|spec| containers(spec, parsed.text("containers"))).unwrap_or_default();
        if found.is_empty() {
            let name = parsed.text("containers");
            return (Err(Failure::new(format!("unable to find container named {name}"))), false);
        }
        for container in &mut found {
            for (field, values) in [("limits", &limits), ("requests", &requests)] {
                for (key, value) in values {
                    container["resources"][field][key] = value.clone();
                }
            }
        }
        (Ok(()), true)
    })
    .await
}

/// Runs `set serviceaccount`.
pub async fn service_account(session: &Session) -> Outcome {
    let Some((account, resources)) = session.parsed.args.split_last() else {
        return Err(Failure::new("serviceaccount is required"));
    };
    each(session, resources, "serviceaccount updated", |_, object| {
        if let Some(spec) = pod_spec(object) {
            spec["serviceAccountName"] = account.clone().into();
        }
        (Ok(()), true)
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
        RECORD,
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
    let (wanted, resources) = match parsed.args.split_last() {
        Some((wanted, resources)) if !resources.is_empty() || parsed.is_set("filename") => (wanted, resources),
        Some(_) => return Err(super::change::nothing_named()),
        None => {
            return Err(Failure::new(
                "one or more resources must be specified as <resource> <name> or <resource>/<name>",
            ));
        }
    };
    let pairs = super::run::pairs(wanted).map_err(|error| {
        let parsed = keelson_machinery::selector::LabelSelector::parse(wanted);
        match (parsed, wanted.split_once(" in ").or(wanted.split_once(" notin "))) {
            (Ok(_), Some((key, values))) => {
                let operator = if wanted.contains(" notin ") { "NotIn" } else { "In" };
                let values = values.trim_matches(['(', ')', ' ']).replace(',', " ");
                Failure::new(format!("match expression [{{{key} {operator} [{values}]}}] not supported on this object"))
            }
            _ => error,
        }
    })?;
    let (found, mut failed) = each_named(session, resources).await?;
    for (kind, before) in found {
        let mut after = before.clone();
        let done = match kind.plural.as_str() {
            "services" => {
                after["spec"]["selector"] = pairs.clone().into();
                if !parsed.text("resource-version").is_empty() {
                    after["metadata"]["resourceVersion"] = parsed.text("resource-version").into();
                }
                replaced(session, &kind, &before, after, "selector updated").await
            }
            _ => Err(Failure::new("setting a selector is only supported for Services")),
        };
        if let Err(error) = done {
            failed = Some(super::say(failed, error));
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Puts an object in the place of another, as far as flags let it.
async fn replaced(session: &Session, kind: &Kind, before: &Value, mut after: Value, done: &str) -> Outcome {
    super::create::record(session, &mut after);
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
                kind.plural
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
        if after != before {
            replaced(session, &kind, &before, after, "subjects updated").await?;
        }
    }
    Ok(())
}
