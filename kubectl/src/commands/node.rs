//! `cordon`, `uncordon`, `drain` and `taint`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch, text};
use crate::kinds;
use crate::objects::SELECT;
use crate::output::{self, Format, changed};
use crate::session::{Session, encode, query};

use super::create::{WRITE, is_client_dry_run, manager};

/// Flags of `cordon` and `uncordon`.
pub const CORDON: &[&[Flag]] = &[&[SELECT[0], WRITE[0]]];
/// Flags of `drain`.
pub const DRAIN: &[&[Flag]] = &[&[
    SELECT[0],
    WRITE[0],
    text("chunk-size", "500", "Return large lists in chunks rather than all at once."),
    switch(
        "delete-emptydir-data",
        "Continue even if there are pods using emptyDir (local data that will be deleted when the node is drained).",
    ),
    switch("disable-eviction", "Force drain to use delete, even if eviction is supported."),
    switch("force", "Continue even if there are pods that do not declare a controller."),
    text("grace-period", "-1", "Period of time in seconds given to each pod to terminate gracefully."),
    switch("ignore-daemonsets", "Ignore DaemonSet-managed pods."),
    text("pod-selector", "", "Label selector to filter pods on the node"),
    text(
        "skip-wait-for-delete-timeout",
        "0",
        "If pod DeletionTimestamp older than N seconds, skip waiting for the pod.",
    ),
    text("timeout", "0s", "The length of time to wait before giving up, zero means infinite"),
]];
/// Flags of `taint`.
pub const TAINT: &[&[Flag]] = &[
    output::FLAGS,
    &[
        SELECT[0],
        SELECT[3],
        WRITE[0],
        manager("kubectl-taint"),
        WRITE[2],
        switch(
            "overwrite",
            "If true, allow taints to be overwritten, otherwise reject taint updates that overwrite existing taints.",
        ),
    ],
];

/// Pause between looks whether pods are gone, and between tries to evict.
const POLL: Duration = Duration::from_millis(500);
/// Pause after an eviction that a disruption budget refused.
const BUDGET_RETRY: Duration = Duration::from_secs(5);

/// The nodes that arguments or a selector name.
async fn nodes(session: &Session, names: &[String]) -> Outcome<Vec<Value>> {
    let parsed = &session.parsed;
    if parsed.is_set("selector") && !names.is_empty() && !parsed.command.ends_with("taint") {
        return Err(parsed
            .usage("error: cannot specify both a node name and a --selector option".trim_start_matches("error: ")));
    }
    let mut nodes = Vec::new();
    if parsed.is_set("selector") || (parsed.is_set("all") && parsed.on("all")) {
        let list =
            session.get(&format!("/api/v1/nodes{}", query(&[("labelSelector", parsed.text("selector"))]))).await?;
        for node in list["items"].as_array().into_iter().flatten() {
            let mut node = node.clone();
            node["apiVersion"] = "v1".into();
            node["kind"] = "Node".into();
            nodes.push(node);
        }
    }
    for name in names {
        let name = name.rsplit('/').next().unwrap_or_default();
        nodes.push(session.get(&format!("/api/v1/nodes/{}", encode(name))).await?);
    }
    if nodes.is_empty() && names.is_empty() && !parsed.is_set("selector") {
        return Err(parsed.usage(format!("USAGE: {} NODE [flags]", parsed.command.trim_start_matches("kubectl "))));
    }
    Ok(nodes)
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

async fn schedulable(session: &Session, node: &Value, wanted: bool) -> Outcome {
    let unschedulable = node["spec"]["unschedulable"] == true;
    let word = if wanted { "uncordoned" } else { "cordoned" };
    let dry = match session.parsed.text("dry-run") {
        "none" => "",
        "server" => " (server dry run)",
        _ => " (dry run)",
    };
    if unschedulable != wanted {
        println!("node/{} already {word}{dry}", name(node));
        return Ok(());
    }
    if !is_client_dry_run(session)? {
        let patch = json!({"spec": {"unschedulable": if wanted { Value::Null } else { true.into() }}});
        let dry_run = if session.parsed.text("dry-run") == "server" { "All" } else { "" };
        let path = format!("/api/v1/nodes/{}{}", encode(name(node)), query(&[("dryRun", dry_run)]));
        session.patch(&path, "merge-patch", &patch).await?;
    }
    println!("node/{} {word}{dry}", name(node));
    Ok(())
}

/// Runs `cordon`.
pub async fn cordon(session: &Session) -> Outcome {
    for node in nodes(session, &session.parsed.args).await? {
        schedulable(session, &node, false).await?;
    }
    Ok(())
}

/// Runs `uncordon`.
pub async fn uncordon(session: &Session) -> Outcome {
    for node in nodes(session, &session.parsed.args).await? {
        schedulable(session, &node, true).await?;
    }
    Ok(())
}

/// Pods, each with a reason.
type Reasons = Vec<(&'static str, String)>;

/// Why a pod must not be evicted, or is left alone.
enum Stay {
    Refuse(&'static str),
    Ignore(&'static str),
}

fn stays(session: &Session, pod: &Value) -> Option<Stay> {
    let parsed = &session.parsed;
    if pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        return Some(Stay::Ignore(""));
    }
    let finished = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let controller =
        pod["metadata"]["ownerReferences"].as_array().into_iter().flatten().find(|o| o["controller"] == true);
    if controller.is_some_and(|c| c["kind"] == "DaemonSet") && !finished {
        return Some(match parsed.on("ignore-daemonsets") {
            true => Stay::Ignore("ignoring DaemonSet-managed Pods"),
            false => Stay::Refuse("cannot delete DaemonSet-managed Pods (use --ignore-daemonsets to ignore)"),
        });
    }
    if finished {
        return None;
    }
    let empty_dir = pod["spec"]["volumes"].as_array().into_iter().flatten().any(|v| v.get("emptyDir").is_some());
    if empty_dir && !parsed.on("delete-emptydir-data") {
        return Some(Stay::Refuse("cannot delete Pods with local storage (use --delete-emptydir-data to override)"));
    }
    if controller.is_none() && !parsed.on("force") {
        return Some(Stay::Refuse(
            "cannot delete cannot delete Pods that declare no controller (use --force to override)",
        ));
    }
    None
}

/// What is said of pods: each reason once, with the pods that it is for.
fn grouped(all: &Reasons) -> Vec<String> {
    let mut reasons: Vec<&str> = all.iter().map(|(why, _)| *why).collect();
    reasons.sort_unstable();
    reasons.dedup();
    let texts = reasons.iter().map(|reason| {
        let pods: Vec<&str> = all.iter().filter(|(why, _)| why == reason).map(|(_, pod)| pod.as_str()).collect();
        format!("{reason}: {}", pods.join(", "))
    });
    texts.collect()
}

/// Runs `drain`.
pub async fn drain(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    keelson_machinery::selector::LabelSelector::parse(parsed.text("pod-selector"))
        .map_err(|_| Failure::new("--pod-selector=<pod_selector> must be a valid label selector"))?;
    let nodes = nodes(session, &parsed.args).await?;
    for node in &nodes {
        schedulable(session, node, false).await?;
    }
    // A node that cannot be drained does not keep the others from it.
    let (mut pending, mut failed) = (Vec::new(), None);
    for node in &nodes {
        if let Err(error) = drain_one(session, node, nodes.len() == 1).await {
            pending.push(name(node));
            failed = Some(super::say(failed, error));
        }
    }
    if !pending.is_empty() {
        eprintln!("There are pending nodes to be drained:");
        pending.iter().for_each(|node| eprintln!(" {node}"));
    }
    failed.map_or(Ok(()), Err)
}

/// Empties a node; `alone` if it is the only one.
async fn drain_one(session: &Session, node: &Value, alone: bool) -> Outcome {
    let parsed = &session.parsed;
    let fields = format!("spec.nodeName={}", name(node));
    let query = query(&[("fieldSelector", &fields), ("labelSelector", parsed.text("pod-selector"))]);
    let list = session.get(&format!("/api/v1/pods{query}")).await?;
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    let mut evicted: Vec<Value> = Vec::new();
    let (mut refused, mut ignored) = (Reasons::new(), Reasons::new());
    for pod in pods {
        let shown = format!("{}/{}", pod["metadata"]["namespace"].as_str().unwrap_or_default(), name(&pod));
        match stays(session, &pod) {
            Some(Stay::Refuse(why)) => refused.push((why, shown)),
            Some(Stay::Ignore("")) => {}
            Some(Stay::Ignore(why)) => ignored.push((why, shown)),
            None => {
                let finished = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
                let owned = pod["metadata"]["ownerReferences"].as_array().is_some_and(|o| !o.is_empty());
                if !finished && !owned {
                    ignored.push(("deleting Pods that declare no controller", shown));
                }
                evicted.push(pod);
            }
        }
    }
    if !refused.is_empty() {
        let reasons = grouped(&refused);
        let all = match reasons.as_slice() {
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        eprintln!("error: unable to drain node {:?} due to error: {all}, continuing command...", name(node));
        return Err(Failure::Plain(if alone { reasons.join("\n") } else { all }));
    }
    if !ignored.is_empty() {
        eprintln!("Warning: {}", grouped(&ignored).join("; "));
    }
    if is_client_dry_run(session)? {
        evicted.iter().for_each(|pod| {
            println!(
                "evicting pod {}/{} (dry run)",
                pod["metadata"]["namespace"].as_str().unwrap_or_default(),
                name(pod)
            )
        });
        println!("node/{} drained (dry run)", name(node));
        return Ok(());
    }
    if parsed.text("dry-run") == "server" {
        println!("node/{} drained (server dry run)", name(node));
        return Ok(());
    }
    let all = evicted.iter().map(|pod| evict(session, pod));
    for result in futures::future::join_all(all).await {
        result?;
    }
    println!("node/{} drained", name(node));
    Ok(())
}

async fn evict(session: &Session, pod: &Value) -> Outcome {
    let parsed = &session.parsed;
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
    let path = format!("/api/v1/namespaces/{namespace}/pods/{}", encode(name(pod)));
    let mut options = json!({});
    if parsed.number("grace-period")? >= 0 {
        options["gracePeriodSeconds"] = parsed.number("grace-period")?.into();
    }
    let (started, timeout) = (Instant::now(), parsed.duration("timeout")?);
    let late = || !timeout.is_zero() && started.elapsed() > timeout;
    loop {
        println!("evicting pod {namespace}/{}", name(pod));
        let result = match parsed.on("disable-eviction") {
            true => session.delete(&path, &options).await,
            false => {
                let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "deleteOptions": options,
                    "metadata": {"name": name(pod), "namespace": namespace}});
                session.post(&format!("{path}/eviction"), &eviction).await
            }
        };
        match result {
            Ok(_) => break,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) if error.status() == 429 && !late() => {
                eprintln!(
                    "error when evicting pods/{:?} -n {namespace:?} (will retry after 5s): {}",
                    name(pod),
                    error.to_string().replace("Error from server (TooManyRequests): ", "")
                );
                tokio::time::sleep(BUDGET_RETRY).await;
            }
            Err(error) => {
                return Err(Failure::new(format!(
                    "error when evicting pods/{:?} -n {namespace:?}: {error}",
                    name(pod)
                )));
            }
        }
    }
    loop {
        match session.get(&path).await {
            Ok(now) if now["metadata"]["uid"] == pod["metadata"]["uid"] => {}
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {
                println!("pod/{} evicted", name(pod));
                return Ok(());
            }
        }
        if late() {
            return Err(Failure::new(format!(
                "error when waiting for pod {:?} terminating: global timeout reached: {}",
                name(pod),
                parsed.text("timeout")
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Runs `taint`.
pub async fn taint(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let effect = |text: &str| matches!(text, "NoSchedule" | "PreferNoSchedule" | "NoExecute");
    let is_change = |a: &&String| {
        a.ends_with('-') || a.rsplit_once(':').is_some_and(|(_, e)| effect(e.trim_end_matches('-'))) || a.contains('=')
    };
    let first = parsed.args.iter().position(|a| is_change(&a)).unwrap_or(parsed.args.len());
    let (resources, changes) = parsed.args.split_at(first);
    let Some((kind, names)) = resources.split_first() else {
        return Err(Failure::new("one or more resources must be specified as <resource> <name>"));
    };
    if kind.contains('/') {
        return Err(Failure::Plain(format!("the server doesn't have a resource type {kind:?}")));
    }
    if kinds::resolve(session, kind).await?.plural != "nodes" {
        return Err(Failure::new(format!("invalid resource type {kind}, only node types are supported")));
    }
    if changes.is_empty() {
        return Err(Failure::new("at least one taint update is required"));
    }
    check_taints(parsed, changes)?;
    let (mut found, mut failed) = (Vec::new(), None);
    match names {
        [] => found = nodes(session, names).await?,
        // A node that is not there does not keep the others from being tainted.
        names => {
            for one in names {
                match nodes(session, std::slice::from_ref(one)).await {
                    Ok(nodes) => found.extend(nodes),
                    Err(error) => failed = Some(super::say(failed, error)),
                }
            }
        }
    }
    for node in found {
        if let Err(error) = taint_one(session, &node, changes).await {
            failed = Some(super::say(failed, error));
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn taint_one(session: &Session, node: &Value, changes: &[String]) -> Outcome {
    let parsed = &session.parsed;
    let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let (mut removed, before) = (false, taints.len());
    for change in changes {
        removed |= apply_taint(change, &mut taints, parsed.on("overwrite"), name(node))?;
    }
    // Taints that only got other values were modified.
    let modified = !removed && taints.len() == before;
    let patch = json!({"spec": {"taints": taints}});
    let path = format!("/api/v1/nodes/{}", encode(name(node)));
    let dry_run = if parsed.text("dry-run") == "server" { "All" } else { "" };
    let after = match is_client_dry_run(session)? {
        true => {
            let mut after = node.clone();
            keelson_machinery::patch::merge(&mut after, &patch);
            after
        }
        false => session.patch(&format!("{path}{}", query(&[("dryRun", dry_run)])), "merge-patch", &patch).await?,
    };
    let done = match (removed, modified) {
        (true, _) => "untainted",
        (false, true) => "modified",
        (false, false) => "tainted",
    };
    match Format::of(parsed)? {
        // kubectl says nothing of a dry run here.
        Format::Default => println!("node/{} {done}", name(&after)),
        _ => changed(parsed, &after, done)?,
    }
    Ok(())
}

/// Checks taints before any node is looked at.
fn check_taints(parsed: &crate::flags::Parsed, changes: &[String]) -> Outcome {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    let gone: Vec<&str> =
        changes.iter().filter_map(|c| c.strip_suffix('-')).map(|c| c.split([':', '=']).next().unwrap_or(c)).collect();
    for change in changes.iter().filter(|change| !change.ends_with('-')) {
        let (pair, effect) = change.rsplit_once(':').unwrap_or((change, ""));
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let Some(why) = keelson_machinery::names::qualified_name(key) {
            return Err(parsed.usage(format!("invalid taint spec: {change}, {why}")));
        }
        if effect.is_empty() {
            return Err(parsed.usage(format!("invalid taint spec: {change}")));
        }
        if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            return Err(parsed.usage(format!("invalid taint effect: {effect}, unsupported taint effect")));
        }
        if gone.contains(&key) {
            return Err(Failure::new(format!(
                "can not both modify and remove the following taint(s) in the same command: {key}="
            )));
        }
        if seen.contains(&(key, effect)) {
            return Err(parsed
                .usage(format!("duplicated taints with the same key and effect: {{{key} {value} {effect} <nil>}}")));
        }
        seen.push((key, effect));
    }
    Ok(())
}

/// Changes a list of taints; says whether one was taken away.
fn apply_taint(change: &str, taints: &mut Vec<Value>, overwrite: bool, node: &str) -> Outcome<bool> {
    if let Some(gone) = change.strip_suffix('-') {
        let (key, effect) = gone.split_once(':').map_or((gone, None), |(k, e)| (k, Some(e)));
        let key = key.split('=').next().unwrap_or_default();
        let before = taints.len();
        taints.retain(|t| !(t["key"] == key && effect.is_none_or(|e| t["effect"] == e)));
        if taints.len() == before {
            return Err(Failure::new(format!("taint {gone:?} not found")));
        }
        return Ok(true);
    }
    let (pair, effect) =
        change.rsplit_once(':').ok_or_else(|| Failure::new(format!("invalid taint spec: {change}")))?;
    if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        return Err(Failure::new(format!("invalid taint effect: {effect}, unsupported taint effect")));
    }
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    let mut taint = json!({"key": key, "effect": effect});
    if !value.is_empty() {
        taint["value"] = value.into();
    }
    match taints.iter().position(|t| t["key"] == key && t["effect"] == effect) {
        Some(at) if overwrite => taints[at] = taint,
        Some(_) => {
            return Err(Failure::new(format!(
                "node {node} already has {key} taint(s) with same effect(s) and --overwrite is false"
            )));
        }
        None => taints.push(taint),
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints() {
        let mut taints = Vec::new();
        assert!(!apply_taint("a=b:NoSchedule", &mut taints, false, "n").unwrap());
        assert_eq!(taints, [json!({"key": "a", "value": "b", "effect": "NoSchedule"})]);
        let twice = apply_taint("a=c:NoSchedule", &mut taints, false, "n").unwrap_err().to_string();
        assert!(twice.contains("already has a taint(s) with same effect(s)"), "{twice}");
        assert!(apply_taint("a=c:Never", &mut taints, false, "n").is_err());
        assert!(apply_taint("a:NoSchedule-", &mut taints, false, "n").unwrap());
        assert!(taints.is_empty());
        assert!(apply_taint("a-", &mut taints, false, "n").is_err());
    }
}
