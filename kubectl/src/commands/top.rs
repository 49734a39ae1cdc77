//! `top`: what nodes and pods use, as metrics.k8s.io tells.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::describe::sheet::aligned;
use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch, text};
use crate::objects::SELECT;
use crate::session::{Session, encode, query};
use crate::value::{Read, quantity};

/// Flags of `top node`.
pub const NODE: &[&[Flag]] = &[&[
    SELECT[0],
    switch("no-headers", "If present, print output without headers"),
    switch("show-capacity", "Print node resources based on Capacity instead of Allocatable(default) of the nodes."),
    switch("show-swap", "Print node resources related to swap memory."),
    text(
        "sort-by",
        "",
        "If non-empty, sort nodes list using specified field. The field can be either 'cpu' or 'memory'.",
    ),
    switch("use-protocol-buffers", "Enables using protocol-buffers to access Metrics API.").or("true"),
]];

/// Flags of `top pod`.
pub const POD: &[&[Flag]] = &[&[
    SELECT[0],
    SELECT[1],
    SELECT[2],
    switch("containers", "If present, print usage of containers within a pod."),
    switch("no-headers", "If present, print output without headers."),
    switch("show-swap", "Print pod resources related to swap memory."),
    text(
        "sort-by",
        "",
        "If non-empty, sort pods list using specified field. The field can be either 'cpu' or 'memory'.",
    ),
    switch("sum", "Print the sum of the resource usage"),
    switch("use-protocol-buffers", "Enables using protocol-buffers to access Metrics API.").or("true"),
]];

const ROOT: &str = "/apis/metrics.k8s.io/v1beta1";
const MIB: i64 = 1 << 20;
/// A pod that is older than this and has no metrics is a fault.
const GRACE_SECONDS: i64 = 120;

/// Processor time in thousandths of a core, and bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    cpu: i64,
    memory: i64,
    swap: Option<i64>,
}

impl Usage {
    fn of(usage: &Value) -> Self {
        let swap = usage["swap"].is_there().then(|| quantity(&usage["swap"]).units());
        Self { cpu: quantity(&usage["cpu"]).millis(), memory: quantity(&usage["memory"]).units(), swap }
    }

    fn plus(self, other: Self) -> Self {
        let swap = match (self.swap, other.swap) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(0) + b.unwrap_or(0)),
        };
        Self { cpu: self.cpu + other.cpu, memory: self.memory + other.memory, swap }
    }

    /// As cells; with swap if it is asked for.
    fn cells(&self, swap: bool) -> String {
        let mut text = format!("{}m\t{}Mi", self.cpu, self.memory / MIB);
        if swap {
            text += &self.swap.map_or("\t<unknown>".into(), |swap| format!("\t{}Mi", swap / MIB));
        }
        text
    }
}

async fn metrics(session: &Session, path: &str) -> Outcome<Vec<Value>> {
    let answer = session.get(path).await.map_err(|error| match error.status() {
        // The group is not there, rather than an object of it.
        404 if matches!(&error, Failure::Server(s) if s["details"]["name"].text().is_empty()) => {
            Failure::new("Metrics API not available")
        }
        503 => Failure::new("Metrics API not available"),
        _ => error,
    })?;
    Ok(match answer["items"].as_array() {
        Some(items) => items.clone(),
        None => vec![answer],
    })
}

type Key = fn(&Usage) -> i64;

fn sort_key(session: &Session) -> Outcome<Option<Key>> {
    match session.parsed.text("sort-by") {
        "" => Ok(None),
        "cpu" => Ok(Some(|u| u.cpu)),
        "memory" => Ok(Some(|u| u.memory)),
        "swap" => Ok(Some(|u| u.swap.unwrap_or(0))),
        _ => Err(Failure::new("--sort-by accepts only cpu or memory")),
    }
}

/// Lines of cells as a table: no column is narrower than a heading would be.
fn table(lines: &[String]) -> String {
    aligned(&(lines.join("\n") + "\n"), 3)
}

/// Runs `top node`.
pub async fn node(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let key = sort_key(session)?;
    if parsed.args.len() > 1 {
        return Err(parsed.usage("node [NAME | -l label]"));
    }
    let name = parsed.args.first();
    if name.is_some() && !parsed.text("selector").is_empty() {
        return Err(Failure::new("only one of NAME or --selector can be provided"));
    }
    let selector = query(&[("labelSelector", parsed.text("selector"))]);
    let tail = name.map_or(selector.clone(), |name| format!("/{}", encode(name)));
    let used = metrics(session, &format!("{ROOT}/nodes{tail}")).await?;
    if used.is_empty() {
        return Err(Failure::new("metrics not available yet"));
    }
    let nodes = session.get(&format!("/api/v1/nodes{tail}")).await?;
    let nodes = nodes["items"].as_array().cloned().unwrap_or_else(|| vec![nodes.clone()]);
    let field = if parsed.on("show-capacity") { "capacity" } else { "allocatable" };
    let swap = parsed.on("show-swap");
    let mut rows: Vec<(String, Usage, &Value)> = Vec::new();
    for node in &nodes {
        let metadata = &node["metadata"];
        if let Some(own) = used.iter().find(|m| m["metadata"]["name"] == metadata["name"]) {
            rows.push((metadata["name"].text().into(), Usage::of(&own["usage"]), &node["status"][field]));
        }
    }
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    if let Some(key) = key {
        rows.sort_by_key(|(_, usage, _)| -key(usage));
    }
    let mut lines = Vec::new();
    if !parsed.on("no-headers") {
        lines.push(format!(
            "NAME\tCPU(cores)\tCPU(%)\tMEMORY(bytes)\tMEMORY(%){}",
            if swap { "\tSWAP(bytes)\tSWAP(%)" } else { "" }
        ));
    }
    for (name, usage, whole) in &rows {
        let percent =
            |part: i64, whole: i64| if whole == 0 { "<unknown>".into() } else { format!("{}%", part * 100 / whole) };
        let cpu = percent(usage.cpu, quantity(&whole["cpu"]).millis());
        let memory = percent(usage.memory, quantity(&whole["memory"]).units());
        let swap = match (swap, usage.swap) {
            (false, _) => String::new(),
            (true, None) => "\t<unknown>\t<unknown>".into(),
            (true, Some(swap)) => format!("\t{}Mi\t<unknown>", swap / MIB),
        };
        lines.push(format!("{name}\t{}m\t{cpu}\t{}Mi\t{memory}{swap}", usage.cpu, usage.memory / MIB));
    }
    let seen: Vec<&str> = rows.iter().map(|r| r.0.as_str()).collect();
    let wide = if swap { "\t<unknown>\t<unknown>" } else { "" };
    for node in nodes.iter().filter(|n| !seen.contains(&n["metadata"]["name"].text())) {
        let name = node["metadata"]["name"].text();
        lines.push(format!("{name}\t<unknown>\t<unknown>\t<unknown>\t<unknown>{wide}"));
    }
    print!("{}", table(&lines));
    Ok(())
}

/// Runs `top pod`.
pub async fn pod(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let key = sort_key(session)?;
    if parsed.args.len() > 1 {
        return Err(parsed.usage("pod [NAME | -l label]"));
    }
    let name = parsed.args.first();
    if name.is_some() && !(parsed.text("selector").is_empty() && parsed.text("field-selector").is_empty()) {
        return Err(Failure::new("only one of NAME or selector can be provided"));
    }
    let all = parsed.on("all-namespaces");
    let namespace = session.namespace()?;
    let within = if all { String::new() } else { format!("/namespaces/{namespace}") };
    let selectors = [("labelSelector", parsed.text("selector")), ("fieldSelector", parsed.text("field-selector"))];
    let tail = name.map_or_else(|| query(&selectors), |name| format!("/{}", encode(name)));
    let mut used = metrics(session, &format!("{ROOT}{within}/pods{tail}")).await?;
    if used.is_empty() {
        return nothing(session, &format!("/api/v1{within}/pods{}", query(&selectors))).await;
    }
    let place = |m: &Value| (m["metadata"]["namespace"].text().to_owned(), m["metadata"]["name"].text().to_owned());
    let total =
        |m: &Value| m["containers"].items().iter().map(|c| Usage::of(&c["usage"])).fold(Usage::default(), Usage::plus);
    used.sort_by_key(place);
    if let Some(key) = key {
        used.sort_by_key(|m| -key(&total(m)));
    }
    print_pods(session, &used, total);
    Ok(())
}

fn print_pods(session: &Session, used: &[Value], total: impl Fn(&Value) -> Usage) {
    let parsed = &session.parsed;
    let (all, by_container, swap) = (parsed.on("all-namespaces"), parsed.on("containers"), parsed.on("show-swap"));
    let mut lines = Vec::new();
    let mut columns = Vec::new();
    if all {
        columns.push("NAMESPACE");
    }
    columns.push(if by_container { "POD" } else { "NAME" });
    if by_container {
        columns.push("NAME");
    }
    let labels = columns.len();
    columns.extend(["CPU(cores)", "MEMORY(bytes)"]);
    if swap {
        columns.push("SWAP(bytes)");
    }
    if !parsed.on("no-headers") {
        lines.push(columns.join("\t"));
    }
    let mut sum = Usage::default();
    for pod in used {
        let metadata = &pod["metadata"];
        let start = if all { format!("{}\t", metadata["namespace"].text()) } else { String::new() };
        let name = metadata["name"].text();
        let whole = total(pod);
        sum = sum.plus(whole);
        if !by_container {
            lines.push(format!("{start}{name}\t{}", whole.cells(swap)));
            continue;
        }
        let containers: BTreeMap<&str, Usage> =
            pod["containers"].items().iter().map(|c| (c["name"].text(), Usage::of(&c["usage"]))).collect();
        lines.extend(containers.iter().map(|(c, usage)| format!("{start}{name}\t{c}\t{}", usage.cells(swap))));
    }
    if parsed.on("sum") {
        let empty = "\t".repeat(labels);
        lines.push(format!("{empty}________\t________"));
        lines.push(format!("{empty}{}", sum.cells(swap)));
    }
    print!("{}", table(&lines));
}

/// There are no metrics: because there are no pods, or because they are too new.
async fn nothing(session: &Session, path: &str) -> Outcome {
    let pods = session.get(path).await?;
    let now = jiff::Timestamp::now();
    for pod in pods["items"].items() {
        let (namespace, name) = (pod["metadata"]["namespace"].text(), pod["metadata"]["name"].text());
        let Ok(created) = pod["metadata"]["creationTimestamp"].text().parse::<jiff::Timestamp>() else { continue };
        let age = now.duration_since(created).as_secs();
        if age > GRACE_SECONDS {
            return Err(Failure::new(format!("Metrics not available for pod {namespace}/{name}, age: {age}s")));
        }
    }
    if !pods["items"].items().is_empty() {
        return Err(Failure::new("metrics not available yet"));
    }
    match session.parsed.on("all-namespaces") {
        true => eprintln!("No resources found"),
        false => eprintln!("No resources found in {} namespace.", session.namespace()?),
    }
    Ok(())
}
