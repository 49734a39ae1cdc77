//! Puts the report together: every server's figures, and what the store holds of nodes, workloads and events.

use std::collections::HashMap;
use std::sync::Arc;

use keelson_apiserver::objects::Objects;
use keelson_machinery::resources;
use keelson_machinery::stored::Stored;
use keelson_raft::Cluster;
use keelson_status::{Event, Figures, Member, Node, Pods, Report, Workload, judge};
use keelson_store::{Kv, View};
use serde_json::Value;

use super::care::{Care, Question};

/// Events that are shown.
const EVENTS: usize = 60;
/// Events that are read for that; more are passed over.
const EVENTS_READ: usize = 5000;

/// The report as of now.
pub async fn report(care: &Arc<Care>) -> Report {
    let members = members(care).await;
    let view = care.replica.view();
    let mut report = Report {
        cluster_id: format!("{:x}", care.identity.cluster_id),
        time: jiff::Timestamp::now().as_second(),
        server: care.identity.name.clone(),
        version: super::version::own().into(),
        members,
        ..Report::default()
    };
    // Reading ten thousand pods must not hold up who serves others.
    let read = tokio::task::spawn_blocking(move || {
        let (pods, on_nodes) = pods(&view);
        (nodes(&view, &on_nodes), pods, workloads(&view), events(&view))
    });
    if let Ok((nodes, pods, workloads, events)) = read.await {
        (report.nodes, report.pods, report.workloads, report.events) = (nodes, pods, workloads, events);
    }
    report.findings = judge(&report);
    report
}

async fn members(care: &Care) -> Vec<Member> {
    let leader = care.replica.standing().leader;
    let asked = care.replica.nodes().into_iter().map(|(id, node, votes)| async move {
        let mut member = Member {
            id: format!("{id:x}"),
            role: match votes {
                _ if id == leader => "leader",
                true => "follower",
                false => "learner",
            }
            .into(),
            address: node.peer_address.clone(),
            name: node.name,
            ..Member::default()
        };
        match care.replica.status_of(id).await {
            Ok(status) => {
                member.term = status.term;
                member.applied_index = status.applied_index;
                member.revision = status.revision;
                member.store_bytes = status.db_size;
                let answer = care.ask(id, &Question::Figures).await.ok();
                let figures = answer.and_then(|answer| serde_json::from_slice::<Figures>(&answer).ok());
                // A member of an older version tells only what it always told.
                member.figures = figures.unwrap_or_else(|| Figures { version: status.version, ..Figures::default() });
            }
            Err(error) => member.error = Some(error.to_string()),
        }
        member
    });
    let mut members = futures::future::join_all(asked).await;
    let furthest = members.iter().map(|member| member.applied_index).max().unwrap_or(0);
    for member in members.iter_mut().filter(|member| member.error.is_none()) {
        member.lag_entries = furthest - member.applied_index;
    }
    members.sort_by(|a, b| a.name.cmp(&b.name));
    members
}

/// What is stored of a resource.
fn stored<'a>(view: &'a View, group: &str, version: &str, plural: &str) -> impl Iterator<Item = Stored> + 'a {
    let row = resources::find(group, version, plural);
    let range = row.map(|row| Objects::range(row, ""));
    let entries = range.into_iter().flat_map(|range| view.range(&range).cloned().collect::<Vec<_>>());
    entries.filter_map(|entry| Stored::parse(&entry.value).ok())
}

fn values<'a>(view: &'a View, group: &str, version: &str, plural: &str) -> impl Iterator<Item = Value> + 'a {
    stored(view, group, version, plural).filter_map(|stored| serde_json::from_slice(&stored.json).ok())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn number(value: &Value) -> i32 {
    value.as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0)
}

/// Pods by phase and by node. Their heads tell both, so they are not parsed.
fn pods(view: &View) -> (Pods, HashMap<String, u64>) {
    let (mut pods, mut on_nodes) = (Pods::default(), HashMap::new());
    let selectable = resources::find("", "v1", "pods").map_or(&[][..], |row| row.selectable_fields);
    let at = |name: &str| selectable.iter().position(|known| *known == name);
    for stored in stored(view, "", "v1", "pods") {
        let field = |name: &str| at(name).and_then(|at| stored.head.fields.get(at)).map_or("", String::as_str);
        pods.total += 1;
        let phase = field("status.phase");
        match phase {
            "Running" => pods.running += 1,
            "Succeeded" => pods.succeeded += 1,
            "Failed" => pods.failed += 1,
            _ => pods.pending += 1,
        }
        if !matches!(phase, "Succeeded" | "Failed") {
            *on_nodes.entry(field("spec.nodeName").to_owned()).or_default() += 1;
        }
    }
    (pods, on_nodes)
}

fn nodes(view: &View, on_nodes: &HashMap<String, u64>) -> Vec<Node> {
    let node = |value: Value| {
        let status = &value["status"];
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready").cloned().unwrap_or_default();
        let pressing = |condition: &&Value| condition["type"] != "Ready" && condition["status"] == "True";
        let addresses = status["addresses"].as_array().cloned().unwrap_or_default();
        let name = text(&value["metadata"]["name"]);
        Node {
            ready: match text(&ready["status"]) {
                none if none.is_empty() => "Unknown".into(),
                ready => ready,
            },
            message: text(&ready["message"]),
            version: text(&status["nodeInfo"]["kubeletVersion"]),
            address: addresses
                .iter()
                .find(|address| address["type"] == "InternalIP")
                .map(|address| text(&address["address"]))
                .unwrap_or_default(),
            cordoned: value["spec"]["unschedulable"] == true,
            pressures: conditions.iter().filter(pressing).map(|condition| text(&condition["type"])).collect(),
            pods: on_nodes.get(&name).copied().unwrap_or(0),
            pod_capacity: text(&status["capacity"]["pods"]).parse().unwrap_or(0),
            name,
        }
    };
    values(view, "", "v1", "nodes").map(node).collect()
}

/// Where a kind keeps its numbers: kind, resource, wanted, ready, updated.
const KINDS: [(&str, &str, &str, &str, &str); 3] = [
    ("Deployment", "deployments", "/spec/replicas", "/status/readyReplicas", "/status/updatedReplicas"),
    ("StatefulSet", "statefulsets", "/spec/replicas", "/status/readyReplicas", "/status/updatedReplicas"),
    (
        "DaemonSet",
        "daemonsets",
        "/status/desiredNumberScheduled",
        "/status/numberReady",
        "/status/updatedNumberScheduled",
    ),
];

fn workloads(view: &View) -> Vec<Workload> {
    let mut workloads = Vec::new();
    for (kind, plural, desired, ready, updated) in KINDS {
        workloads.extend(values(view, "apps", "v1", plural).map(|value| {
            let at = |path: &str| value.pointer(path).map(number).unwrap_or(0);
            let conditions = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let failing = conditions.iter().find(|condition| {
                matches!(condition["type"].as_str(), Some("Available" | "Progressing"))
                    && condition["status"] == "False"
                    || condition["type"] == "ReplicaFailure" && condition["status"] == "True"
            });
            Workload {
                kind: kind.into(),
                namespace: text(&value["metadata"]["namespace"]),
                name: text(&value["metadata"]["name"]),
                desired: at(desired),
                ready: at(ready),
                updated: at(updated),
                message: failing.map(|condition| text(&condition["message"])).unwrap_or_default(),
            }
        }));
    }
    workloads
}

fn events(view: &View) -> Vec<Event> {
    let seconds = |value: &Value| {
        let time = value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
        time.map(|time| time.as_second())
    };
    let event = |value: Value| {
        let about = &value["involvedObject"];
        let times = ["lastTimestamp", "eventTime", "firstTimestamp"];
        let time = times.iter().find_map(|key| seconds(&value[*key]));
        Event {
            time: time.or_else(|| seconds(&value["metadata"]["creationTimestamp"])).unwrap_or(0),
            kind: text(&value["type"]),
            reason: text(&value["reason"]),
            object: format!("{}/{}", text(&about["kind"]), text(&about["name"])),
            namespace: text(&about["namespace"]),
            message: text(&value["message"]),
            count: number(&value["count"]).max(1),
        }
    };
    let mut events: Vec<Event> = values(view, "", "v1", "events").take(EVENTS_READ).map(event).collect();
    events.sort_by_key(|event| std::cmp::Reverse(event.time));
    events.truncate(EVENTS);
    events
}
