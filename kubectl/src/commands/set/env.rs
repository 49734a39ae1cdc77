//! `set env`: variables of containers, set, removed, taken from maps and secrets, and listed.

use std::io::Read as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::quantity::Quantity;
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::session::Session;
use crate::value::{Read, quoted};

use super::{containers, each, is_pair, pod_spec, split};

/// The refusal of a variable's name.
pub fn invalid_variable(name: &str) -> Failure {
    Failure::new(format!(
        "{} is not a valid key name: a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or \
         '.', and must not start with a digit (e.g. 'my.env-name',  or 'MY_ENV.NAME',  or 'MyEnvName1', regex used for validation \
         is '[-._a-zA-Z][-._a-zA-Z0-9]*')",
        quoted(name)
    ))
}

/// Names of variables may have any printable letters; only an argument has to look like an older name.
fn check_name(pair: &Given, name: &str) -> Outcome {
    let starts = |c: char| c.is_ascii_alphabetic() || matches!(c, '-' | '_' | '.');
    let strict = name.starts_with(starts) && name.chars().all(|c| starts(c) || c.is_ascii_digit());
    let relaxed = !name.is_empty() && name.chars().all(|c| matches!(c, ' '..='~') && c != '=');
    match pair {
        Given::Argument(_) if !strict => Err(invalid_variable(name)),
        Given::Line(_) if !relaxed => Err(invalid_variable(name)),
        _ => Ok(()),
    }
}

/// Where a variable is given.
enum Given {
    Argument(String),
    Line(String),
}

/// What is to be done with the variables.
struct Changes {
    set: Vec<Value>,
    removed: Vec<String>,
}

impl Changes {
    fn of(session: &Session, pairs: &[String], injected: Vec<Value>) -> Outcome<Self> {
        let parsed = &session.parsed;
        let mut all: Vec<Given> = parsed.all("env").into_iter().map(Given::Argument).collect();
        for pair in pairs {
            match pair.as_str() {
                "-" => {
                    let mut text = String::new();
                    std::io::stdin().read_to_string(&mut text)?;
                    all.extend(
                        text.lines()
                            .filter(|l| !l.is_empty() && !l.starts_with('#'))
                            .map(|line| Given::Line(line.to_owned())),
                    );
                }
                pair => all.push(Given::Argument(pair.to_owned())),
            }
        }
        let mut changes = Self { set: injected, removed: Vec::new() };
        for pair in &all {
            let (Given::Argument(text) | Given::Line(text)) = pair;
            match (text.split_once('='), text.strip_suffix('-')) {
                (Some((name, value)), _) => {
                    check_name(pair, name)?;
                    changes.set.push(json!({"name": name, "value": value}));
                }
                (None, Some(name)) => changes.removed.push(name.to_owned()),
                _ => return Err(Failure::new(format!("environment variables must be of the form key=value: {text}"))),
            }
        }
        if changes.set.iter().any(|new| changes.removed.iter().any(|name| new["name"] == *name)) {
            return Err(Failure::new(
                "can not both modify and remove the same environment variable in the same command",
            ));
        }
        Ok(changes)
    }

    /// The first variable that a container has already.
    fn taken(&self, container: &Value) -> Option<String> {
        let had = |new: &Value| container["env"].items().iter().find(|have| have["name"] == new["name"]).cloned();
        let have = self.set.iter().find_map(had)?;
        Some(format!(
            "'{}' already has a value ({}), and --overwrite is false",
            have["name"].text(),
            have["value"].text()
        ))
    }

    fn apply(&self, container: &mut Value) {
        if !container["env"].is_array() {
            container["env"] = json!([]);
        }
        let Some(env) = container["env"].as_array_mut() else { return };
        for new in &self.set {
            match env.iter_mut().find(|have| have["name"] == new["name"]) {
                Some(have) => *have = new.clone(),
                None => env.push(new.clone()),
            }
        }
        env.retain(|have| !self.removed.iter().any(|name| have["name"] == *name));
        if env.is_empty()
            && let Some(container) = container.as_object_mut()
        {
            container.remove("env");
        }
    }
}

/// Runs `set env`.
pub async fn env(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let (resources, pairs) = split(&parsed.args, "environment", |a| is_pair(a) || a.ends_with('-'))?;
    if resources.is_empty() && !parsed.is_set("filename") {
        return Err(Failure::new("one or more resources must be specified as <resource> <name> or <resource>/<name>"));
    }
    let changes = Changes::of(session, pairs, injected(session).await?)?;
    if parsed.on("list") {
        for (_, mut object) in super::named(session, resources).await? {
            let whole = object.clone();
            for container in pod_spec(&mut object).map(|s| containers(s, parsed.text("containers"))).unwrap_or_default()
            {
                changes.apply(container);
                list(session, &whole, container).await?;
            }
        }
        return Ok(());
    }
    each(session, resources, "env updated", |kind, object| {
        let (shown, name) = (object["kind"].text().to_owned(), object["metadata"]["name"].text().to_owned());
        let found = pod_spec(object).map(|spec| containers(spec, parsed.text("containers"))).unwrap_or_default();
        if found.is_empty() {
            let pattern = quoted(parsed.text("containers"));
            eprintln!("Warning: {shown}/{name} does not have any containers matching {pattern}");
            return (Ok(()), false);
        }
        for container in found {
            if let Some(why) = changes.taken(container).filter(|_| !parsed.on("overwrite")) {
                return (Err(Failure::new(format!("{}/{name} {why}", kind.plural))), false);
            }
            changes.apply(container);
        }
        (Ok(()), true)
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

/// Lists a container's variables; with `--resolve`, with what they refer to.
async fn list(session: &Session, object: &Value, container: &Value) -> Outcome {
    let kind = object["kind"].text();
    println!("# {kind} {}, container {}", object["metadata"]["name"].text(), container["name"].text());
    let mut failed = Vec::new();
    for variable in container["env"].items() {
        let name = variable["name"].text();
        if !variable["valueFrom"].is_there() {
            println!("{name}={}", variable["value"].text());
            continue;
        }
        let told = described(&variable["valueFrom"]);
        if !session.parsed.on("resolve") {
            println!("# {name} from {told}");
            continue;
        }
        match resolved(session, object, container, &variable["valueFrom"]).await {
            Ok(value) => println!("{name}={value}"),
            Err(why) => {
                println!("# {name} from {told}");
                failed.push(format!(
                    "error retrieving reference for {name}: {}",
                    why.to_string().trim_start_matches("error: ")
                ));
            }
        }
    }
    for why in failed {
        eprintln!("{why}");
    }
    Ok(())
}

/// Where a variable's value is from, in words.
fn described(from: &Value) -> String {
    for (field, word) in [("secretKeyRef", "secret"), ("configMapKeyRef", "configmap")] {
        if from[field].is_there() {
            return format!("{word} {}, key {}", from[field]["name"].text(), from[field]["key"].text());
        }
    }
    if from["fieldRef"].is_there() {
        return format!("field path {}", from["fieldRef"]["fieldPath"].text());
    }
    let resource = &from["resourceFieldRef"];
    let container = resource["containerName"].text();
    let before = if container.is_empty() { String::new() } else { format!("{container}/") };
    format!("resource field {before}{}", resource["resource"].text())
}

async fn resolved(session: &Session, object: &Value, container: &Value, from: &Value) -> Outcome<String> {
    for (field, plural) in [("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")] {
        if !from[field].is_there() {
            continue;
        }
        let (name, key) = (from[field]["name"].text(), from[field]["key"].text());
        let found = session.get(&format!("/api/v1/namespaces/{}/{plural}/{name}", session.namespace()?)).await?;
        let Some(value) = found["data"][key].as_str() else {
            return Err(Failure::new(format!("key {key} not found in {} {name}", &plural[..plural.len() - 1])));
        };
        return Ok(match plural {
            "secrets" => String::from_utf8_lossy(&STANDARD.decode(value).unwrap_or_default()).into_owned(),
            _ => value.to_owned(),
        });
    }
    if from["fieldRef"].is_there() {
        return of_field(object, from["fieldRef"]["fieldPath"].text());
    }
    of_resource(object, container, &from["resourceFieldRef"])
}

/// What a path into the object's metadata leads to; what only a running pod has cannot be told.
fn of_field(object: &Value, path: &str) -> Outcome<String> {
    let metadata = &object["metadata"];
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        return match map {
            "metadata.labels" => Ok(metadata["labels"][key].text().to_owned()),
            "metadata.annotations" => Ok(metadata["annotations"][key].text().to_owned()),
            _ => Err(Failure::new(format!("fieldPath {} does not support subscript", quoted(path)))),
        };
    }
    let map = |of: &Value| of.pairs().iter().map(|(k, v)| format!("{k}={}", quoted(v))).collect::<Vec<_>>().join("\n");
    match path {
        "metadata.name" | "metadata.namespace" | "metadata.uid" => {
            Ok(metadata[&path["metadata.".len()..]].text().to_owned())
        }
        "metadata.labels" => Ok(map(&metadata["labels"])),
        "metadata.annotations" => Ok(map(&metadata["annotations"])),
        _ => Err(Failure::new(format!("unsupported fieldPath: {path}"))),
    }
}

/// What a container asks for, in the unit that the variable wants it in.
fn of_resource(object: &Value, own: &Value, from: &Value) -> Outcome<String> {
    let mut object = object.clone();
    let name = from["containerName"].text();
    let found = pod_spec(&mut object).map(|spec| containers(spec, "*")).unwrap_or_default();
    let other = found.into_iter().find(|c| c["name"] == name).map(|c| c.clone());
    let container = if name.is_empty() { Some(own.clone()) } else { other };
    let Some(container) = container else {
        return Err(Failure::new(format!("container {name} not found")));
    };
    let resource = from["resource"].text();
    let (list, what) = resource.split_once('.').unwrap_or((resource, ""));
    if !matches!(list, "limits" | "requests") {
        return Err(Failure::new(format!("unsupported container resource : {resource}")));
    }
    let amount = crate::value::quantity(&container["resources"][list][what]).millis();
    let unit = match Quantity::parse(&from["divisor"].shown()).map(|unit| unit.millis()) {
        Ok(unit) if unit > 0 => unit,
        _ => 1000,
    };
    Ok(((amount + unit - 1) / unit).to_string())
}
