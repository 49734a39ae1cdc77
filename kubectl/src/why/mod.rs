//! `why`: why an object is not as it should be, in one answer, and `explain-scheduling`, the part of it about nodes.

mod others;
mod pod;
mod scheduling;
mod verdicts;

use serde_json::Value;
pub use verdicts::table as explained;

use crate::describe::related_events;
use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, text};
use crate::kinds::Kind;
use crate::objects;
use crate::session::{Session, encode};
use crate::value::{Read, ago, or};

/// Flags of `why`.
pub const FLAGS: &[&[Flag]] = &[&[text("events", "5", "Events that are shown, the last ones.")]];

/// What was found out: lines with their levels.
#[derive(Default)]
pub struct Answer {
    lines: Vec<String>,
    advice: Vec<String>,
}

impl Answer {
    /// Adds a line.
    pub fn say(&mut self, level: usize, line: impl AsRef<str>) {
        self.lines.push(format!("{}{}", "  ".repeat(level), line.as_ref().trim_end()));
    }

    /// Adds something that can be done, once.
    pub fn advise(&mut self, line: impl Into<String>) {
        let line = line.into();
        if !self.advice.contains(&line) {
            self.advice.push(line);
        }
    }

    fn print(&self) {
        self.lines.iter().for_each(|line| println!("{line}"));
        if !self.advice.is_empty() {
            println!("what helps:");
        }
        self.advice.iter().for_each(|line| println!("  - {line}"));
    }
}

/// Runs `why`.
pub async fn why(session: &Session) -> Outcome {
    let (kind, name) = target(session).await?;
    let namespace = session.namespace()?;
    let mut answer = Answer::default();
    match session.get(&kind.object(&namespace, &encode(&name))).await {
        Ok(object) => explain(session, &kind, &object, &mut answer).await?,
        Err(error) if error.is_not_found() => {
            missing(session, &kind, &name, &mut answer).await.then_some(()).ok_or(error)?
        }
        Err(error) => return Err(error),
    }
    answer.print();
    Ok(())
}

async fn target(session: &Session) -> Outcome<(Kind, String)> {
    match session.parsed.args.as_slice() {
        [] => Err(session.parsed.usage("KIND/NAME is required, as in: kubectl why pod/web-1")),
        [name] if !name.contains('/') => objects::one(session, &[format!("pods/{name}")]).await,
        args => objects::one(session, args).await,
    }
}

/// Runs `explain-scheduling`.
pub async fn explain_scheduling(session: &Session) -> Outcome {
    let (kind, name) = target(session).await?;
    if kind.plural != "pods" {
        return Err(Failure::new(format!("only pods are scheduled, not {}", kind.plural)));
    }
    let path = kind.object(&session.namespace()?, &encode(&name));
    let pod = session.get(&path).await?;
    match session.get(&format!("{path}/scheduling")).await {
        Ok(said) => {
            print!("{}", explained(&said));
            return Ok(());
        }
        // Another server, or one whose scheduler runs elsewhere: judged from what can be seen.
        Err(error) if matches!(error.status(), 404 | 503) => {}
        Err(error) => return Err(error),
    }
    let mut answer = Answer::default();
    match pod["spec"]["nodeName"].text() {
        "" => answer.say(0, format!("pod/{name} has no node yet")),
        node => answer.say(0, format!("pod/{name} runs on {node}; as things are now, without counting it:")),
    }
    scheduling::nodes(session, &pod, 0, &mut answer).await?;
    answer.print();
    Ok(())
}

/// Explains any object.
async fn explain(session: &Session, kind: &Kind, object: &Value, answer: &mut Answer) -> Outcome {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod::explain(session, object, 0, answer).await?,
        ("apps", _) | ("batch", "Job") | ("", "ReplicationController") => {
            others::workload(session, kind, object, answer).await?;
        }
        ("", "Service") => others::service(session, object, answer).await?,
        ("", "PersistentVolumeClaim") => others::claim(session, object, 0, answer).await?,
        ("", "Node") => others::node(object, answer),
        _ => others::any(kind, object, answer),
    }
    ending(object, answer);
    events(session, kind, object, answer).await
}

/// Who holds an object that is to go.
fn ending(object: &Value, answer: &mut Answer) {
    let metadata = &object["metadata"];
    if metadata["deletionTimestamp"].is_null() {
        return;
    }
    let asked = ago(&metadata["deletionTimestamp"]);
    let grace = metadata["deletionGracePeriodSeconds"].number();
    answer.say(1, format!("it was asked to go; its grace of {grace}s ended {asked} ago"));
    for finalizer in metadata["finalizers"].texts() {
        let owner = match finalizer {
            "kubernetes" => "the namespace controller, which empties the namespace first",
            "foregroundDeletion" => "the garbage collector, which waits for the objects that this one owns",
            "orphan" => "the garbage collector, which takes this owner off its objects",
            "kubernetes.io/pvc-protection" => "the claim controller: a pod still uses the claim",
            "kubernetes.io/pv-protection" => "the volume controller: the volume is still bound",
            "batch.kubernetes.io/job-tracking" => "the job controller, which has to count the pod",
            "service.kubernetes.io/load-balancer-cleanup" => "the cloud's service controller",
            "customresourcecleanup.apiextensions.k8s.io" => "the API server, which deletes the objects of the kind",
            other => other.split('/').next().unwrap_or(other),
        };
        answer.say(1, format!("finalizer {finalizer}: held by {owner}"));
    }
    for condition in object["status"]["conditions"].items() {
        if condition["status"] == "True" && condition["type"].text().starts_with("Namespace") {
            answer.say(1, format!("{}: {}", condition["type"].text(), condition["message"].text()));
        }
    }
    if metadata["finalizers"].items().is_empty() && object["kind"] == "Pod" {
        answer.say(1, "it waits for its node to end the containers");
    }
}

async fn events(session: &Session, kind: &Kind, object: &Value, answer: &mut Answer) -> Outcome {
    let most = usize::try_from(session.parsed.number("events")?).unwrap_or(0);
    let mut found = related_events(session, kind, object).await.unwrap_or_default();
    let last = |e: &Value| or(e["lastTimestamp"].text(), e["eventTime"].text()).to_owned();
    found.sort_by_key(last);
    if found.is_empty() || most == 0 {
        return Ok(());
    }
    answer.say(0, "events:");
    for event in &found[found.len().saturating_sub(most)..] {
        let count = event["count"].number().max(event["series"]["count"].number());
        let times = if count > 1 { format!(" (x{count})") } else { String::new() };
        let when = ago(&Value::from(last(event)));
        let (kind, reason) = (event["type"].text(), event["reason"].text());
        answer.say(1, format!("{when} ago{times}  {kind} {reason}: {}", event["message"].text().trim()));
    }
    Ok(())
}

/// An object that is not there: what events and owners say of it.
async fn missing(session: &Session, kind: &Kind, name: &str, answer: &mut Answer) -> bool {
    let Ok(namespace) = session.namespace() else { return false };
    let stub = serde_json::json!({"kind": kind.kind, "metadata": {"name": name, "namespace": if kind.namespaced { namespace.as_str() } else { "" }}});
    let found = related_events(session, kind, &stub).await.unwrap_or_default();
    if found.is_empty() {
        return false;
    }
    answer.say(0, format!("{}/{name} does not exist (any more)", kind.qualified()));
    events(session, kind, &stub, answer).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_holds_what_is_to_go() {
        let mut answer = Answer::default();
        ending(&json!({"metadata": {}}), &mut answer);
        assert!(answer.lines.is_empty());
        let object = json!({"kind": "PersistentVolumeClaim", "metadata": {"deletionTimestamp": "2020-01-01T00:00:00Z",
            "finalizers": ["kubernetes.io/pvc-protection", "x.example/own"]}});
        ending(&object, &mut answer);
        assert!(answer.lines[1].contains("a pod still uses the claim"));
        assert!(answer.lines[2].contains("held by x.example"));
    }
}
