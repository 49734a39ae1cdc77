//! `apply`: what a file says, merged with what is there and what was applied before.

use keelson_machinery::schema::{Definition, Field, PatchStrategy, Type, definition, of_kind};
use serde_json::{Map, Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, switch, text};
use crate::kinds;
use crate::objects::{FILES, each_source, place, unmapped};
use crate::output::{self, Format, changed};
use crate::session::{Session, encode, query};

use super::applyset::ApplySet;
use super::create::{LAST_APPLIED, WRITE, is_client_dry_run, manager, save_config, write_query};

/// Flags of `apply`.
pub const FLAGS: &[&[Flag]] = &[
    output::FLAGS,
    FILES,
    &[
        WRITE[0],
        manager("kubectl-client-side-apply"),
        WRITE[2],
        switch("all", "Select all resources in the namespace of the specified resource types."),
        text("applyset", "", "The name of the ApplySet that tracks which resources are being managed."),
        text("cascade", "background", "Must be \"background\", \"orphan\", or \"foreground\".").alone("background"),
        switch("force", "If true, immediately remove resources from API and bypass graceful deletion."),
        switch("force-conflicts", "If true, server-side apply will force the changes against conflicts."),
        text("grace-period", "-1", "Period of time in seconds given to the resource to terminate gracefully."),
        switch("openapi-patch", "If true, use openapi to calculate diff when the openapi presents.").or("true"),
        switch("overwrite", "Automatically resolve conflicts between the modified and live configuration.").or("true"),
        crate::flags::RECORD,
        switch("prune", "Automatically delete resource objects, that do not appear in the configs."),
        repeated("prune-allowlist", "Overwrite the default allowlist with <group/version/kind> for --prune"),
        text("selector", "", "Selector (label query) to filter on").short('l'),
        switch("server-side", "If true, apply runs in the server instead of the client."),
        text("subresource", "", "If specified, apply will operate on the subresource of the requested object."),
        text("timeout", "0s", "The length of time to wait before giving up on a delete."),
        switch("wait", "If true, wait for resources to be gone before returning."),
    ],
];

/// Checks flags that do not go together, before anything is applied.
fn check(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if !parsed.args.is_empty() {
        return Err(parsed.usage(format!("Unexpected args: [{}]", parsed.args.join(" "))));
    }
    let (on_server, dry_run) = (parsed.on("server-side"), parsed.text("dry-run"));
    is_client_dry_run(session)?;
    write_query(session, "")?;
    let refused = match parsed.text("cascade") {
        "background" | "foreground" | "orphan" | "true" | "false" => None,
        other => {
            Some(format!("invalid cascade value ({other}). Must be \"background\", \"foreground\", or \"orphan\""))
        }
    };
    let refused = refused.or_else(|| {
        let wrong = match () {
            () if !parsed.is_set("filename") && !parsed.is_set("kustomize") => "must specify one of -f and -k",
            () if parsed.on("force-conflicts") && !on_server => "--force-conflicts only works with --server-side",
            () if dry_run == "client" && on_server => {
                "--dry-run=client doesn't work with --server-side (did you mean --dry-run=server instead?)"
            }
            () if parsed.is_set("subresource") && !on_server => "--subresource can only be specified for --server-side",
            () if parsed.on("force") && on_server => "--force cannot be used with --server-side",
            () if parsed.on("force") && dry_run == "server" => "--dry-run=server cannot be used with --force",
            () if parsed.on("prune") && on_server && parsed.text("applyset").is_empty() => {
                "--prune is in alpha and doesn't currently work on objects created by server-side apply"
            }
            () => return None,
        };
        Some(wrong.to_owned())
    });
    match refused {
        Some(wrong) => Err(Failure::new(wrong)),
        None => super::prune::check(session),
    }
}

/// Runs `apply`.
pub async fn apply(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if parsed.is_set("applyset") {
        if std::env::var("KUBECTL_APPLYSET").as_deref() != Ok("true") {
            return Err(Failure::new("unknown flag: --applyset\nSee 'kubectl apply --help' for usage."));
        }
        super::applyset::check_namespace(session).await?;
    }
    check(session)?;
    let selector = keelson_machinery::selector::LabelSelector::parse(parsed.text("selector")).map_err(Failure::new)?;
    let (mut objects, mut unread) = (Vec::new(), None);
    for (source, object) in each_source(session).await? {
        match object {
            Ok(object) => objects.push((source, object)),
            Err(error) => unread = Some(super::say(unread, error)),
        }
    }
    objects.retain(|(_, object)| selector.matches(|key| object["metadata"]["labels"][key].as_str()));
    if let Some(error) = unread.take_if(|_| objects.is_empty()) {
        return Err(error);
    }
    objects.iter_mut().for_each(|(_, object)| super::create::record(session, object));
    if objects.is_empty() {
        return Err(Failure::new("no objects passed to apply"));
    }
    if parsed.on("prune") && parsed.text("applyset").is_empty() {
        super::prune::allowed(session).await?;
    }
    let set = match parsed.text("applyset") {
        "" => None,
        _ => Some(ApplySet::open(session, &mut objects).await?),
    };
    let shows = Format::of(parsed)?.is_object();
    let (mut failed, mut seen, mut shown): (Option<Failure>, Vec<String>, Vec<Value>) = (None, Vec::new(), Vec::new());
    for (source, object) in objects {
        match one(session, &source, object, &mut seen).await {
            Ok((after, _)) if shows => shown.push(after),
            Ok((after, done)) => changed(parsed, &after, done)?,
            Err(error) => failed = Some(super::say(failed, error)),
        }
    }
    if !shown.is_empty() {
        show(parsed, shown)?;
    }
    if let Some(error) = unread {
        failed = Some(super::say(failed, error));
    }
    if failed.is_none() && parsed.on("prune") {
        let gone = match &set {
            Some(set) => set.left_over(session, &seen).await?,
            None => super::prune::candidates(session, &seen).await?,
        };
        super::prune::delete(session, gone).await?;
    }
    if let Some(set) = set.filter(|_| failed.is_none()) {
        set.close(session).await?;
    }
    failed.map_or(Ok(()), Err)
}

/// Shows what was applied: one object, or several as a list.
fn show(parsed: &crate::flags::Parsed, mut shown: Vec<Value>) -> Outcome {
    let format = Format::of(parsed)?;
    let managed = parsed.on("show-managed-fields");
    if shown.len() == 1 {
        print!("{}", format.print(&shown.remove(0), managed)?);
        return Ok(());
    }
    let mut whole = output::list(shown);
    whole["metadata"] = json!({});
    match format {
        Format::Json => {
            if !managed {
                output::strip_managed(&mut whole);
            }
            // The list is one of this program's own, in the order of its type; the objects are the server's.
            let items = output::json::compact(&whole["items"]);
            let text = format!("{{\"kind\":\"List\",\"apiVersion\":\"v1\",\"metadata\":{{}},\"items\":{items}}}");
            println!("{}", output::json::spread(&text));
        }
        format => print!("{}", format.print(&whole, managed)?),
    }
    Ok(())
}

/// Applies one object, and notes its path.
async fn one(session: &Session, source: &str, object: Value, seen: &mut Vec<String>) -> Outcome<(Value, &'static str)> {
    let kind = kinds::of_object(session, &object).await.map_err(|error| unmapped(source, &object, error))?;
    let (namespace, name) = place(session, &object)?;
    if name.is_empty() {
        if let Some(generated) = object["metadata"]["generateName"].as_str() {
            return Err(Failure::new(format!("from {generated}: cannot use generate name with apply")));
        }
        return Err(Failure::new(format!(
            "error when retrieving current configuration of:\nResource: \"{group}/{version}, Resource={plural}\", \
             GroupVersionKind: \"{group}/{version}, Kind={kind}\"\nName: \"\", Namespace: \"{namespace}\"\nfrom server for: {}: \
             resource name may not be empty",
            crate::value::quoted(source),
            group = kind.group,
            version = kind.version,
            plural = kind.plural,
            kind = kind.kind
        )));
    }
    seen.push(kind.object(&namespace, &name));
    match session.parsed.on("server-side") {
        true => server_side(session, &kind, &namespace, object).await,
        false => client_side(session, source, &kind, &namespace, object).await,
    }
}

/// The patch that applies `modified` to `current`, and its form.
pub fn patch(kind: &kinds::Kind, modified: &Value, current: &Value) -> (&'static str, Value) {
    let kept = current["metadata"]["annotations"][LAST_APPLIED].as_str();
    let original: Value = kept.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let types = of_kind(&kind.group, &kind.version, &kind.kind);
    let form = if types.is_some() { "strategic-merge-patch" } else { "merge-patch" };
    (form, Value::Object(three_way(types, &original, modified, current)))
}

async fn server_side(
    session: &Session,
    kind: &kinds::Kind,
    namespace: &str,
    object: Value,
) -> Outcome<(Value, &'static str)> {
    let parsed = &session.parsed;
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let subresource = match parsed.text("subresource") {
        "" => String::new(),
        name => format!("/{name}"),
    };
    let manager = if !parsed.is_set("field-manager") { "kubectl" } else { parsed.text("field-manager") };
    let force = if parsed.on("force-conflicts") { "true" } else { "false" };
    let dry_run = if parsed.text("dry-run") == "server" { "All" } else { "" };
    let query =
        query(&[("fieldManager", manager), ("force", force), ("dryRun", dry_run), ("fieldValidation", "Strict")]);
    let path = format!("{}{subresource}{query}", kind.object(namespace, &encode(name)));
    let applied = session.patch(&path, "apply-patch", &object).await.map_err(|error| match error.status() {
        409 => conflict(error),
        _ => error,
    })?;
    Ok((applied, "serverside-applied"))
}

fn conflict(error: Failure) -> Failure {
    let Failure::Server(status) = error else { return error };
    Failure::new(format!(
        "{}\nPlease review the fields above--they currently have other managers. Here\nare the ways you can resolve this \
         warning:\n* If you intend to manage all of these fields, please re-run the apply\n  command with the \
         `--force-conflicts` flag.\n* If you do not intend to manage all of the fields, please edit your\n  manifest to remove \
         references to the fields that should keep their\n  current managers.\n* You may co-own fields by updating your manifest \
         to match the existing\n  value; in this case, you'll become the manager if the other manager(s)\n  stop managing the \
         field (remove it from their configuration).\nSee https://kubernetes.io/docs/reference/using-api/server-side-apply/#conflicts",
        status["message"].as_str().unwrap_or_default()
    ))
}

async fn client_side(
    session: &Session,
    source: &str,
    kind: &kinds::Kind,
    namespace: &str,
    mut modified: Value,
) -> Outcome<(Value, &'static str)> {
    let parsed = &session.parsed;
    let name = modified["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if kind.namespaced && modified["metadata"]["namespace"].is_null() {
        modified["metadata"]["namespace"] = namespace.into();
    }
    save_config(&mut modified);
    let path = kind.object(namespace, &encode(&name));
    let current = match session.get(&path).await {
        Ok(current) => current,
        Err(error) if error.is_not_found() => {
            if is_client_dry_run(session)? {
                return Ok((modified, "created"));
            }
            let path = format!("{}{}", kind.path(Some(namespace)), write_query(session, "kubectl-client-side-apply")?);
            let what = format!("error when creating {}", crate::value::quoted(source));
            return Ok((session.post(&path, &modified).await.map_err(|error| error.when(&what))?, "created"));
        }
        Err(error) => return Err(error),
    };
    let kept = current["metadata"]["annotations"][LAST_APPLIED].as_str();
    if kept.is_none() {
        eprintln!(
            "Warning: resource {}/{name} is missing the {LAST_APPLIED} annotation which is required by kubectl apply. kubectl \
             apply should only be used on resources created declaratively by either kubectl create --save-config or kubectl \
             apply. The missing annotation will be patched automatically.",
            kind.plural
        );
    }
    let original: Value = kept.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let types = of_kind(&kind.group, &kind.version, &kind.kind);
    let patch = three_way(types, &original, &modified, &current);
    if is_client_dry_run(session)? {
        // What is there is shown as it is: nothing was asked for.
        return Ok((current, "configured"));
    }
    if patch.is_empty() {
        return Ok((current, "unchanged"));
    }
    let form = if types.is_some() { "strategic-merge-patch" } else { "merge-patch" };
    let path = format!("{path}{}", write_query(session, "kubectl-client-side-apply")?);
    let after = match session.patch(&path, form, &patch.into()).await {
        Err(error) if parsed.on("force") && matches!(error.status(), 409 | 422) => {
            return anew(session, kind, namespace, &name, &modified).await;
        }
        other => other?,
    };
    Ok((after, "configured"))
}

/// Deletes an object that cannot be changed into what is wanted, and makes it again.
async fn anew(
    session: &Session,
    kind: &kinds::Kind,
    namespace: &str,
    name: &str,
    modified: &Value,
) -> Outcome<(Value, &'static str)> {
    let path = kind.object(namespace, &encode(name));
    let mut options = json!({"propagationPolicy": "Background"});
    let grace = session.parsed.number("grace-period")?;
    if grace >= 0 {
        options["gracePeriodSeconds"] = grace.into();
    }
    session.delete(&path, &options).await?;
    super::delete::until_gone(session, &path, None).await?;
    let path = format!("{}{}", kind.path(Some(namespace)), write_query(session, "kubectl-client-side-apply")?);
    Ok((session.post(&path, modified).await?, "configured"))
}

fn object_type(kind: &Type) -> Option<&'static Definition> {
    match kind {
        Type::Object(path) => definition(path),
        Type::List(item) => object_type(item),
        _ => None,
    }
}

/// The patch that makes `current` what `modified` says, and takes away what only `original` said.
fn three_way(types: Option<&Definition>, original: &Value, modified: &Value, current: &Value) -> Map<String, Value> {
    let mut patch = Map::new();
    for (key, wanted) in modified.as_object().into_iter().flatten() {
        let field = types.and_then(|t| t.fields.get(key.as_str()));
        let inner = field.and_then(|f| object_type(&f.kind));
        match (wanted, &current[key]) {
            (Value::Null, _) => {}
            (Value::Object(_), Value::Object(_)) if field.is_some_and(|f| f.replaced) => {
                if *wanted != current[key] {
                    patch.insert(key.clone(), wanted.clone());
                }
            }
            (Value::Object(_), have @ Value::Object(_)) => {
                let mut change = three_way(inner, &original[key], wanted, have);
                if !change.is_empty() {
                    if field.is_some_and(|f| f.retain_keys) {
                        let keys: Vec<&String> = wanted.as_object().into_iter().flatten().map(|(k, _)| k).collect();
                        change.insert("$retainKeys".into(), json!(keys));
                    }
                    patch.insert(key.clone(), change.into());
                }
            }
            (Value::Array(new), Value::Array(have)) => lists(key, field, &original[key], new, have, &mut patch),
            (wanted, have) if wanted == have => {}
            (wanted, _) => {
                patch.insert(key.clone(), wanted.clone());
            }
        }
    }
    for key in original.as_object().into_iter().flatten().map(|(key, _)| key) {
        if modified.get(key).is_none_or(Value::is_null) && current.get(key).is_some() {
            patch.insert(key.clone(), Value::Null);
        }
    }
    patch
}

fn lists(key: &str, field: Option<&Field>, old: &Value, new: &[Value], have: &[Value], patch: &mut Map<String, Value>) {
    let old = old.as_array().map_or(&[][..], Vec::as_slice);
    match field.map(|f| f.patch) {
        Some(PatchStrategy::MergeBy(by)) => {
            let inner = field.and_then(|f| object_type(&f.kind));
            let find = |list: &[Value], id: &Value| list.iter().find(|item| item[by] == *id).cloned();
            let (mut items, mut order) = (Vec::new(), Vec::new());
            for item in new {
                let id = &item[by];
                order.push(json!({by: id}));
                match find(have, id) {
                    None => items.push(item.clone()),
                    Some(current) => {
                        let mut change = three_way(inner, &find(old, id).unwrap_or_default(), item, &current);
                        if !change.is_empty() {
                            if field.is_some_and(|f| f.retain_keys) {
                                let keys: Vec<&String> =
                                    item.as_object().into_iter().flatten().map(|(k, _)| k).collect();
                                change.insert("$retainKeys".into(), json!(keys));
                            }
                            change.insert(by.into(), id.clone());
                            items.push(change.into());
                        }
                    }
                }
            }
            for item in old {
                if find(new, &item[by]).is_none() && find(have, &item[by]).is_some() {
                    items.push(json!({"$patch": "delete", by: item[by]}));
                }
            }
            if !items.is_empty() {
                patch.insert(format!("$setElementOrder/{key}"), order.into());
                patch.insert(key.to_owned(), items.into());
            }
        }
        Some(PatchStrategy::MergeValues) => {
            let added: Vec<&Value> = new.iter().filter(|v| !have.contains(v)).collect();
            let gone: Vec<&Value> = old.iter().filter(|v| !new.contains(v) && have.contains(v)).collect();
            if !gone.is_empty() {
                patch.insert(format!("$deleteFromPrimitiveList/{key}"), json!(gone));
            }
            if !added.is_empty() || !gone.is_empty() {
                patch.insert(format!("$setElementOrder/{key}"), json!(new));
            }
            if !added.is_empty() {
                patch.insert(key.to_owned(), json!(added));
            }
        }
        _ if new == have => {}
        _ => {
            patch.insert(key.to_owned(), json!(new));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replaced_is_sent_whole() {
        let types = of_kind("policy", "v1", "PodDisruptionBudget");
        let budget = |labels: Value| json!({"spec": {"selector": {"matchLabels": labels}}});
        let (was, wanted) = (budget(json!({"a": "b", "c": "d"})), budget(json!({"a": "b"})));
        assert_eq!(Value::from(three_way(types, &was, &wanted, &was)), wanted);
        assert!(three_way(types, &was, &was, &was).is_empty());
    }

    fn deployment(containers: Value, replicas: Option<i64>) -> Value {
        let mut object = json!({"spec": {"template": {"spec": {"containers": containers}}}});
        if let Some(replicas) = replicas {
            object["spec"]["replicas"] = replicas.into();
        }
        object
    }

    #[test]
    fn what_others_set_stays_and_what_was_dropped_goes() {
        let types = of_kind("apps", "v1", "Deployment");
        assert!(types.is_some());
        let first = deployment(
            json!([{"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "b"}]),
            Some(2),
        );
        let live = deployment(
            json!([{"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}], "imagePullPolicy": "Always"},
                {"name": "b", "image": "b"}, {"name": "injected", "image": "c"}]),
            Some(5),
        );
        // Nothing is asked for that is not there but the size.
        assert_eq!(Value::Object(three_way(types, &first, &first, &live)), json!({"spec": {"replicas": 2}}));
        let second = deployment(json!([{"name": "a", "image": "a:2"}]), None);
        let expected = json!({"spec": {"replicas": null, "template": {"spec": {
            "$setElementOrder/containers": [{"name": "a"}],
            "containers": [{"name": "a", "image": "a:2", "env": null}, {"$patch": "delete", "name": "b"}]}}}});
        assert_eq!(Value::Object(three_way(types, &first, &second, &live)), expected);
        assert!(
            three_way(types, &second, &second, &deployment(json!([{"name": "a", "image": "a:2", "x": 1}]), Some(1)))
                .is_empty()
        );
    }

    #[test]
    fn custom_kinds_replace_their_lists() {
        let (old, new) = (json!({"spec": {"l": [1], "gone": 1}}), json!({"spec": {"l": [1, 2]}}));
        assert_eq!(Value::Object(three_way(None, &old, &new, &old)), json!({"spec": {"l": [1, 2], "gone": null}}));
    }
}
