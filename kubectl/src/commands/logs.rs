//! `logs`.

use std::io::Write;

use bytes::Bytes;
use futures::StreamExt;
use http::Method;
use http_body_util::BodyStream;
use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, Parsed, switch, text};
use crate::kinds::Kind;
use crate::objects::{self, SELECT};
use crate::session::{Session, encode, query};

use super::rollout::selector_of;

/// Flags of `logs`.
pub const FLAGS: &[&[Flag]] = &[&[
    SELECT[0],
    switch("all-containers", "Get all containers' logs in the pod(s)."),
    switch("all-pods", "Get logs from all pod(s). Sets prefix to true."),
    text("container", "", "Print the logs of this container").short('c'),
    switch("follow", "Specify if the logs should be streamed.").short('f'),
    switch("ignore-errors", "If watching / following pod logs, allow for any errors that occur to be non-fatal"),
    switch(
        "insecure-skip-tls-verify-backend",
        "Skip verifying the identity of the kubelet that logs are requested from.",
    ),
    text("limit-bytes", "0", "Maximum bytes of logs to return. Defaults to no limit."),
    text(
        "max-log-requests",
        "5",
        "Specify maximum number of concurrent logs to follow when using by a selector. Defaults to 5.",
    ),
    text("pod-running-timeout", "20s", "The length of time to wait until at least one pod is running"),
    switch("prefix", "Prefix each log line with the log source (pod name and container name)"),
    switch("previous", "If true, print the logs for the previous instance of the container in a pod if it exists.")
        .short('p'),
    text("since", "0s", "Only return logs newer than a relative duration like 5s, 2m, or 3h. Defaults to all logs."),
    text("since-time", "", "Only return logs after a specific date (RFC3339). Defaults to all logs."),
    text(
        "tail",
        "-1",
        "Lines of recent log file to display. Defaults to -1 with no selector, showing all log lines otherwise 10, if a selector is provided.",
    ),
    switch("timestamps", "Include timestamps on each line in the log output"),
]];

/// Pause between looks for a workload's first pod.
const POLL: std::time::Duration = std::time::Duration::from_millis(200);

/// The pods that a workload's name stands for, the best one first.
pub async fn pods_of(session: &Session, kind: &Kind, name: &str) -> Outcome<Vec<Value>> {
    let namespace = session.namespace()?;
    let object = session.get(&kind.object(&namespace, &encode(name))).await?;
    if kind.plural == "pods" {
        return Ok(vec![object]);
    }
    let selector = match kind.plural.as_str() {
        "services" | "replicationcontrollers" => {
            let pairs = object["spec"]["selector"].as_object().cloned().unwrap_or_default();
            let pair = |(k, v): (&String, &Value)| format!("{k}={}", v.as_str().unwrap_or_default());
            pairs.iter().map(pair).collect::<Vec<_>>().join(",")
        }
        "deployments" | "replicasets" | "statefulsets" | "daemonsets" | "jobs" => {
            selector_of(&object["spec"]["selector"])
        }
        _ => {
            return Err(Failure::new(format!(
                "{} *{}.{}: selector for *{}.{} not implemented",
                if session.parsed.command.ends_with(" logs") { "cannot get the logs from" } else { "cannot attach to" },
                kind.version,
                kind.kind,
                kind.version,
                kind.kind
            )));
        }
    };
    // The first pod may be about to be made.
    let waits = session.parsed.duration("pod-running-timeout").unwrap_or_default();
    let started = std::time::Instant::now();
    loop {
        let found = selected(session, &selector).await?;
        if !found.is_empty() || started.elapsed() >= waits {
            return Ok(found);
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn selected(session: &Session, selector: &str) -> Outcome<Vec<Value>> {
    let namespace = session.namespace()?;
    let list =
        session.get(&format!("/api/v1/namespaces/{namespace}/pods{}", query(&[("labelSelector", selector)]))).await?;
    let mut pods = list["items"].as_array().cloned().unwrap_or_default();
    pods.sort_by_key(|p| p["status"]["phase"] != "Running");
    Ok(pods)
}

/// The container that is meant when none is named, and whether that has to be said.
pub fn default_container(pod: &Value) -> (String, bool) {
    let annotation = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    let names: Vec<&str> =
        pod["spec"]["containers"].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect();
    match annotation {
        Some(name) if names.contains(&name) => (name.to_owned(), false),
        _ => (names.first().copied().unwrap_or_default().to_owned(), names.len() > 1),
    }
}

/// All containers of a pod, init containers first.
fn containers(pod: &Value) -> Vec<String> {
    let of = |field: &str| pod["spec"][field].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str());
    of("initContainers").chain(of("containers")).chain(of("ephemeralContainers")).map(str::to_owned).collect()
}

/// Checks flags that do not go together, and values that mean nothing.
fn check(parsed: &Parsed) -> Outcome {
    let since_time = parsed.text("since-time");
    let wrong = match () {
        () if parsed.is_set("since") && !since_time.is_empty() => {
            "at most one of `sinceTime` or `sinceSeconds` may be specified".to_owned()
        }
        () if !since_time.is_empty() && since_time.parse::<jiff::Timestamp>().is_err() => {
            let start: String = since_time.chars().take_while(|c| !c.is_ascii_digit()).collect();
            let shown = if start.is_empty() { since_time } else { &start };
            format!("parsing time {since_time:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {shown:?} as \"2006\"")
        }
        () if parsed.is_negative("since") => "--since must be greater than 0".into(),
        () if parsed.on("all-containers") && !parsed.text("container").is_empty() => {
            format!("--all-containers=true should not be specified with container name {}", parsed.text("container"))
        }
        () if parsed.number("limit-bytes")? < 0 => "--limit-bytes must be greater than 0".into(),
        () if parsed.number("tail")? < -1 => "--tail must be greater than or equal to -1".into(),
        () => return Ok(()),
    };
    Err(Failure::new(wrong))
}

/// The pods that the selector names.
async fn chosen(session: &Session) -> Outcome<Vec<Value>> {
    let selector = session.parsed.text("selector");
    selected(session, selector).await.map_err(|error| {
        error.when(&format!(
            "Unable to find \"/v1, Resource=pods\" that match label selector {selector:?}, field selector \"\""
        ))
    })
}

/// Runs `logs`.
pub async fn logs(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let mut args = parsed.args.clone();
    let mut container = parsed.text("container").to_owned();
    let by_selector = parsed.is_set("selector");
    if by_selector && !args.is_empty() {
        return Err(parsed.usage("only a selector (-l) or a POD name is allowed"));
    }
    if (args.is_empty() && !by_selector) || args.len() > 2 {
        return Err(parsed.usage("expected 'logs [-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]'.\nPOD or TYPE/NAME is a required argument for the logs command"));
    }
    if args.len() == 2 && !args[1].contains('/') && container.is_empty() {
        container = args.remove(1);
    }
    let (pods, workload) = match args.first() {
        None => (chosen(session).await?, true),
        Some(arg) => {
            let arg = if arg.contains('/') { arg.clone() } else { format!("pods/{arg}") };
            let (kind, name) = objects::one(session, &[arg]).await?;
            let all = pods_of(session, &kind, &name).await.map_err(|error| match error.is_not_found() {
                true => Failure::new(format!(
                    "error from server (NotFound): {} {name:?} not found in namespace {:?}",
                    kind.qualified_plural(),
                    session.namespace().unwrap_or_default()
                )),
                false => error,
            })?;
            if kind.plural != "pods" && all.len() > 1 && !parsed.on("all-pods") {
                let first = all[0]["metadata"]["name"].as_str().unwrap_or_default();
                eprintln!("Found {} pods, using pod/{first}", all.len());
            }
            let count = if parsed.on("all-pods") { all.len() } else { 1 };
            (all.into_iter().take(count).collect(), parsed.on("all-pods"))
        }
    };
    check(parsed)?;
    if pods.is_empty() {
        if by_selector {
            eprintln!("No resources found in {} namespace.", session.namespace()?);
            return Ok(());
        }
        return Err(Failure::new("timed out waiting for the condition"));
    }
    for pod in pods.iter().filter(|_| !container.is_empty()) {
        if !containers(pod).contains(&container) {
            let pod = pod["metadata"]["name"].as_str().unwrap_or_default();
            return Err(Failure::new(format!("container {container} is not valid for pod {pod}")));
        }
    }
    let streams = streams(parsed, &pods, &container);
    let limit = usize::try_from(parsed.number("max-log-requests")?).unwrap_or(0);
    if parsed.on("follow") && streams.len() > limit {
        return Err(Failure::new(format!(
            "you are attempting to follow {} log streams, but maximum allowed concurrency is {limit}, use --max-log-requests to increase the limit",
            streams.len()
        )));
    }
    let prefix = parsed.on("prefix") || parsed.on("all-pods");
    if parsed.on("follow") {
        let all = streams.iter().map(|(pod, container)| stream(session, pod, container, prefix, workload));
        for result in futures::future::join_all(all).await {
            result?;
        }
        return Ok(());
    }
    for (pod, container) in &streams {
        stream(session, pod, container, prefix, workload).await?;
    }
    Ok(())
}

/// The pods' containers whose logs are wanted: names of pod and container.
fn streams(parsed: &Parsed, pods: &[Value], container: &str) -> Vec<(String, String)> {
    let mut streams = Vec::new();
    for pod in pods {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let wanted = match (parsed.on("all-containers"), container.is_empty()) {
            (true, _) => containers(pod),
            (false, false) => vec![container.to_owned()],
            (false, true) => {
                let (first, several) = default_container(pod);
                if several {
                    eprintln!("Defaulted container \"{first}\" out of: {}", listed(pod));
                }
                vec![first]
            }
        };
        streams.extend(wanted.into_iter().map(|c| (name.clone(), c)));
    }
    streams
}

/// The containers of a pod as the message about a default lists them.
pub fn listed(pod: &Value) -> String {
    let of = |field: &str, mark: &str| {
        let all = pod["spec"][field].as_array().into_iter().flatten();
        all.map(|c| format!("{}{mark}", c["name"].as_str().unwrap_or_default())).collect::<Vec<_>>()
    };
    [of("containers", ""), of("ephemeralContainers", " (ephem)"), of("initContainers", " (init)")].concat().join(", ")
}

async fn stream(session: &Session, pod: &str, container: &str, prefix: bool, by_selector: bool) -> Outcome {
    let parsed = &session.parsed;
    let since = parsed.duration("since")?.as_secs();
    let since = if since == 0 { String::new() } else { since.to_string() };
    let tail = match parsed.number("tail")? {
        -1 if by_selector && !parsed.is_set("tail") => "10".into(),
        n if n < 0 => String::new(),
        n => n.to_string(),
    };
    let flag = |name: &str| if parsed.on(name) { "true" } else { "" };
    let bytes = if parsed.number("limit-bytes")? > 0 { parsed.text("limit-bytes") } else { "" };
    let query = query(&[
        ("container", container),
        ("follow", flag("follow")),
        ("previous", flag("previous")),
        ("timestamps", flag("timestamps")),
        ("insecureSkipTLSVerifyBackend", flag("insecure-skip-tls-verify-backend")),
        ("sinceSeconds", &since),
        ("sinceTime", parsed.text("since-time")),
        ("tailLines", &tail),
        ("limitBytes", bytes),
    ]);
    let path = format!("/api/v1/namespaces/{}/pods/{}/log{query}", session.namespace()?, encode(pod));
    let response = session.send(Method::GET, &path, "*/*", None, Bytes::new()).await?;
    let mut frames = BodyStream::new(response.into_body());
    let mut at_start = true;
    while let Some(frame) = frames.next().await {
        let Ok(data) = frame?.into_data() else { continue };
        let mut out = std::io::stdout().lock();
        if !prefix {
            out.write_all(&data)?;
        } else {
            for line in data.split_inclusive(|b| *b == b'\n') {
                if at_start {
                    write!(out, "[pod/{pod}/{container}] ")?;
                }
                out.write_all(line)?;
                at_start = line.ends_with(b"\n");
            }
        }
        out.flush()?;
    }
    Ok(())
}
