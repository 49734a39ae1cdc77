//! `wait`.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch, text};
use crate::kinds::{self, Kind};
use crate::objects::{self, FILES, SELECT, Target};
use crate::output::jsonpath::{Template, relaxed, text_of};
use crate::output::{self, Format, name_of};
use crate::session::{Session, encode, query};

/// Flags of `wait`.
pub const FLAGS: &[&[Flag]] = &[
    output::FLAGS,
    SELECT,
    &[
        FILES[0],
        FILES[2].or("true"),
        text(
            "for",
            "",
            "The condition to wait on: [create|delete|condition=condition-name[=condition-value]|jsonpath='{JSONPath expression}'=[JSONPath value]].",
        ),
        switch("local", "If true, annotation will NOT contact api-server but run locally."),
        text(
            "timeout",
            "30s",
            "The length of time to wait before giving up. Zero means check once and don't wait, negative means wait for a week.",
        ),
    ],
];

/// Pause between looks.
const POLL: Duration = Duration::from_millis(100);

enum For {
    Create,
    Delete,
    Condition(String, String),
    Path(Template, Option<String>),
}

impl For {
    fn parse(text: &str) -> Outcome<Self> {
        if let Some(rest) = text.strip_prefix("condition=") {
            let (name, value) = rest.split_once('=').unwrap_or((rest, "true"));
            return Ok(Self::Condition(name.to_lowercase(), value.to_lowercase()));
        }
        if let Some(rest) = text.strip_prefix("jsonpath=") {
            let rest = rest.trim_matches(['\'', '"']);
            // The value comes after the path: an equals sign in the path's filters is inside of its braces.
            let end = rest.rfind('}').map_or(0, |at| at + 1);
            let (path, value) = match rest[end..].find('=') {
                Some(at) => (&rest[..end + at], Some(rest[end + at + 1..].trim_matches(['\'', '"']).to_owned())),
                None => (rest, None),
            };
            let path = path.trim_matches(['\'', '"']);
            if path.is_empty() {
                return Err(Failure::new("jsonpath expression cannot be empty"));
            }
            match value.as_deref() {
                Some("") => {
                    return Err(Failure::new(
                        "jsonpath wait has to have a value after equal sign, like --for=jsonpath='{.status.readyReplicas}'=3",
                    ));
                }
                Some(value) if value.contains('=') => {
                    return Err(Failure::new(
                        "jsonpath wait format must be --for=jsonpath='{.status.readyReplicas}'=3 or \
                         --for=jsonpath='{.status.readyReplicas}'",
                    ));
                }
                _ => {}
            }
            let wrong = |_| {
                Failure::new(
                    "unexpected path string, expected a 'name1.name2' or '.name1.name2' or '{name1.name2}' or \
                     '{.name1.name2}'",
                )
            };
            return Ok(Self::Path(relaxed(path).and_then(|path| Template::parse(&path, false)).map_err(wrong)?, value));
        }
        match text.to_lowercase().as_str() {
            "create" => Ok(Self::Create),
            "delete" => Ok(Self::Delete),
            _ => Err(Failure::new(format!("unrecognized condition: {text:?}"))),
        }
    }

    fn is_met(&self, object: Option<&Value>) -> Outcome<bool> {
        Ok(match (self, object) {
            (Self::Create, found) => found.is_some(),
            (Self::Delete, found) => found.is_none(),
            (_, None) => false,
            (Self::Condition(name, value), Some(object)) => {
                let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
                conditions.clone().any(|c| {
                    let lower = |v: &Value| v.as_str().unwrap_or_default().to_lowercase();
                    lower(&c["type"]) == *name && lower(&c["status"]) == *value
                })
            }
            (Self::Path(template, value), Some(object)) => {
                let found = template.values(object);
                if found.len() > 1 {
                    return Err(Failure::new("given jsonpath expression matches more than one value"));
                }
                match (value, found.first()) {
                    (_, None) => false,
                    (None, Some(_)) => true,
                    (Some(_), Some(found)) if found.is_object() || found.is_array() => {
                        return Err(Failure::new("jsonpath leads to a nested object or list which is not supported"));
                    }
                    (Some(value), Some(found)) => text_of(found) == *value,
                }
            }
        })
    }
}

/// Runs `wait`.
pub async fn wait(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    if parsed.text("for").is_empty() {
        return Err(Failure::new("unrecognized condition: \"\""));
    }
    let wanted = For::parse(parsed.text("for"))?;
    if parsed.on("local") && !parsed.is_set("filename") {
        return Err(Failure::new(
            "you must specify resources by --filename when --local is set.\nExample resource specifications include:\n   \
             '-f rsrc.yaml'\n   '--filename=rsrc.json'",
        ));
    }
    if parsed.args.is_empty() && !parsed.is_set("filename") {
        return Err(super::change::nothing_named());
    }
    let timeout = match parsed.text("timeout").strip_prefix('-') {
        Some(_) => Duration::from_secs(7 * 24 * 3600),
        None => parsed.duration("timeout")?,
    };
    let started = Instant::now();
    let mut awaited = awaited(session, &wanted).await?;
    while awaited.is_empty() && matches!(wanted, For::Create) && started.elapsed() < timeout {
        tokio::time::sleep(POLL).await;
        awaited = self::awaited(session, &wanted).await?;
    }
    if awaited.is_empty() && !matches!(wanted, For::Delete) {
        return Err(Failure::new("no matching resources found"));
    }
    let mut failed = None;
    for (kind, path, uid) in awaited {
        // When the time is over, it is over for all that is left, however it stands.
        let late = !timeout.is_zero() && failed.is_some() && started.elapsed() >= timeout;
        let name = path.rsplit('/').next().unwrap_or_default();
        let done = match late {
            true => Err(Failure::new(format!("timed out waiting for the condition on {}/{name}", kind.plural))),
            false => until(session, &wanted, (&kind, &path, uid.as_deref()), started, timeout).await,
        };
        if let Err(error) = done {
            failed = Some(super::say(failed, error));
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn until(
    session: &Session,
    wanted: &For,
    (kind, path, uid): (&Kind, &str, Option<&str>),
    started: Instant,
    timeout: Duration,
) -> Outcome {
    let name = path.rsplit('/').next().unwrap_or_default();
    loop {
        let found = match session.get(path).await {
            Ok(object) => Some(object),
            Err(error) if error.is_not_found() && matches!(wanted, For::Create | For::Delete) => None,
            Err(error) => return Err(error),
        };
        // Another object of the name means that the awaited one is gone.
        let is_other =
            |o: &Value| uid.is_some() && matches!(wanted, For::Delete) && o["metadata"]["uid"].as_str() != uid;
        let found = found.filter(|o| !is_other(o));
        if wanted.is_met(found.as_ref())? {
            let shown = found.as_ref().map_or_else(|| format!("{}/{name}", kind.qualified()), name_of);
            return match (Format::of(&session.parsed)?, found) {
                (Format::Default, None) => {
                    println!("{shown} deleted");
                    Ok(())
                }
                (Format::Default, Some(_)) => {
                    println!("{shown} condition met");
                    Ok(())
                }
                (format, object) => {
                    print!("{}", format.print(&object.unwrap_or_default(), false)?);
                    Ok(())
                }
            };
        }
        if timeout.is_zero() {
            return Err(match wanted {
                For::Create => Failure::new("timed out waiting for the condition"),
                _ => Failure::new(format!("condition not met for {}/{name}", kind.plural)),
            });
        }
        if started.elapsed() >= timeout {
            return Err(match wanted {
                For::Create => Failure::new("timed out waiting for the condition"),
                _ => Failure::new(format!("timed out waiting for the condition on {}/{name}", kind.plural)),
            });
        }
        tokio::time::sleep(POLL).await;
    }
}

type Awaited = (Kind, String, Option<String>);

async fn awaited(session: &Session, wanted: &For) -> Outcome<Vec<Awaited>> {
    let parsed = &session.parsed;
    let mut found = Vec::new();
    let namespace = session.namespace()?;
    for object in objects::from_files(session).await? {
        let kind = kinds::of_object(session, &object).await?;
        let (namespace, name) = objects::place(session, &object)?;
        let path = kind.object(&namespace, &encode(&name));
        found.push((kind, path, None));
    }
    for Target { kind, names } in objects::targets(session, &parsed.args).await? {
        if parsed.on("all-namespaces") && !names.is_empty() {
            return Err(Failure::new("a resource cannot be retrieved by name across all namespaces"));
        }
        for name in &names {
            let path = kind.object(&namespace, &encode(name));
            let uid = match wanted {
                For::Create => None,
                _ => session.get(&path).await.ok().and_then(|o| o["metadata"]["uid"].as_str().map(str::to_owned)),
            };
            if uid.is_none() && matches!(wanted, For::Delete) {
                continue;
            }
            if uid.is_none() && matches!(wanted, For::Condition(..) | For::Path(..)) {
                session.get(&path).await?;
            }
            found.push((kind.clone(), path, uid));
        }
        if names.is_empty() {
            if !parsed.on("all") && !parsed.is_set("selector") && !parsed.is_set("field-selector") {
                return Err(Failure::new("resource(s) were provided, but no name was specified"));
            }
            let within = (!parsed.on("all-namespaces")).then_some(namespace.as_str());
            let query =
                query(&[("labelSelector", parsed.text("selector")), ("fieldSelector", parsed.text("field-selector"))]);
            let list = session.get(&format!("{}{query}", kind.path(within))).await?;
            for item in list["items"].as_array().into_iter().flatten() {
                let text = |key: &str| item["metadata"][key].as_str().unwrap_or_default();
                let path = kind.object(text("namespace"), &encode(text("name")));
                found.push((kind.clone(), path, Some(text("uid").to_owned())));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions() {
        let object = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        for (text, met) in [
            ("condition=Ready", true),
            ("condition=ready=true", true),
            ("condition=Ready=False", false),
            ("condition=Other", false),
            ("jsonpath={.status.phase}=Running", true),
            ("jsonpath='{.status.phase}'=Failed", false),
            ("jsonpath={.status.phase}", true),
            ("jsonpath={.status.nothing}", false),
            ("jsonpath={.status.conditions[?(@.type==\"Ready\")].status}=True", true),
            ("create", true),
            ("delete", false),
        ] {
            assert_eq!(For::parse(text).unwrap().is_met(Some(&object)).unwrap(), met, "{text}");
        }
        assert!(For::parse("delete").unwrap().is_met(None).unwrap());
        for bad in ["x", "jsonpath=", "jsonpath={.a}=", "jsonpath={.a}=b=c"] {
            assert!(For::parse(bad).is_err(), "{bad}");
        }
        for path in ["{.status.conditions}=x", "{.status.conditions[0].*}=x"] {
            assert!(For::parse(&format!("jsonpath={path}")).unwrap().is_met(Some(&object)).is_err(), "{path}");
        }
    }
}
