//! `metrics.k8s.io`: what nodes and pods use of processors and memory, as the nodes' agents count it. Nothing is stored:
//! agents are asked when somebody asks, and their answers are kept for a few seconds.

mod agents;
mod pretended;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::Response;
use keelson_client::Body;
use keelson_machinery::resource::{Column, ResourceDef, Scope};
use keelson_machinery::resources::find as built_in;
use keelson_machinery::selector::{FieldSelector, LabelSelector};
use keelson_machinery::status::Status;
use keelson_machinery::stored::Head;
use serde_json::{Value, json};

pub use agents::Readings;
use agents::{Reading, Sample};

use crate::objects::{Objects, parse};
use crate::verbs::Call;
use crate::{ApiServer, respond, table};

/// The group.
const GROUP: &str = "metrics.k8s.io";
/// What is in the version that agents of this program give: others are not asked, and need a server of metrics of their own.
const OWN_AGENT: &str = "+keelson";
/// The label of nodes that only pretend.
const PRETENDED: &str = "keelson.dev/hollow";

/// A row of this group. It is none of the table's: its objects are computed, and another server of metrics may take over.
const fn row(kind: &'static str, plural: &'static str, scope: Scope) -> ResourceDef {
    ResourceDef {
        group: GROUP,
        version: "v1beta1",
        kind,
        plural,
        singular: "",
        short_names: &[],
        categories: &[],
        scope,
        verbs: &["get", "list"],
        subresources: &[],
        selectable_fields: &[],
        has_status: false,
        list_kind: "",
        custom: true,
        columns: COLUMNS,
    }
}

const COLUMNS: &[(Column, &str)] = &[
    (Column::new("Window", "string", "The time over which the use was measured."), ".window"),
    (Column::new("Measured", "string", "When the measurement ended."), ".timestamp"),
];

/// The rows.
pub static ROWS: &[ResourceDef] =
    &[row("NodeMetrics", "nodes", Scope::Cluster), row("PodMetrics", "pods", Scope::Namespaced)];

/// The row of a group, version and plural.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static ResourceDef> {
    ROWS.iter().find(|row| row.group == group && row.version == version && row.plural == plural)
}

/// The rows that are served: none before the first node that can be asked.
///
/// A cluster without nodes, or with other agents' nodes, looks as upstream's does: `metrics.k8s.io` is not there.
pub fn served(objects: &Objects) -> &'static [ResourceDef] {
    let Some(nodes) = built_in("", "v1", "nodes") else { return &[] };
    let own = |kv: &Arc<keelson_store::KeyValue>| {
        // Most nodes of other agents are told by their text alone: a cluster of them is not parsed with each discovery.
        let stored = crate::encryption::stored(kv).ok();
        if !stored.is_some_and(|s| std::str::from_utf8(&s.json).is_ok_and(|text| text.contains(OWN_AGENT))) {
            return false;
        }
        let version =
            parse(kv).ok().and_then(|node| Some(node["status"]["nodeInfo"]["kubeletVersion"].as_str()?.to_owned()));
        version.is_some_and(|version| version.contains(OWN_AGENT))
    };
    if objects.kv.view().range(&Objects::range(nodes, "")).any(own) { ROWS } else { &[] }
}

/// Whether a request is about one of these rows.
pub fn is_computed(call: &Call<'_>) -> bool {
    call.request.def.group == GROUP && ROWS.iter().any(|row| std::ptr::eq(row, call.request.def))
}

/// Which objects of a row a request means.
struct Chosen<'a> {
    namespace: &'a str,
    name: &'a str,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Chosen<'_> {
    /// Those objects of a built-in row, with their heads.
    fn of(&self, objects: &Objects, def: &ResourceDef) -> Vec<(Head, Value)> {
        let view = objects.kv.view();
        let matching = |kv: &Arc<keelson_store::KeyValue>| {
            let head = crate::encryption::stored(kv).ok()?.head;
            let named = self.name.is_empty() || self.name == head.name;
            let fits = named && self.labels.matches(|key| head.label(key)) && self.fields.matches(&head);
            Some((head, parse(kv).ok().filter(|_| fits)?))
        };
        if !self.name.is_empty() {
            return objects.find(def, self.namespace, self.name).iter().filter_map(matching).collect();
        }
        view.range(&Objects::range(def, self.namespace)).filter_map(matching).collect()
    }
}

fn quantities(sample: &Sample) -> Value {
    json!({"cpu": format!("{}n", sample.cpu_nanocores), "memory": format!("{}Ki", sample.memory_bytes.div_ceil(1024))})
}

/// What both kinds of objects begin with.
fn object(def: &ResourceDef, head: &Head, reading: &Reading) -> Value {
    let labels: BTreeMap<&str, &str> = head.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let mut metadata = json!({"name": head.name, "creationTimestamp": crate::strategy::now()});
    if !head.namespace.is_empty() {
        metadata["namespace"] = head.namespace.clone().into();
    }
    if !labels.is_empty() {
        metadata["labels"] = json!(labels);
    }
    json!({
        "kind": def.kind, "apiVersion": def.api_version(), "metadata": metadata,
        "timestamp": reading.time, "window": format!("{}s", agents::WINDOW.as_secs()),
    })
}

fn is_pretended(node: &Head) -> bool {
    node.label(PRETENDED).is_some()
}

impl ApiServer {
    /// Answers a get or list.
    pub(crate) async fn usage(&self, call: &Call<'_>) -> Result<Response<Body>, Status> {
        let request = call.request;
        self.fresh(None).await?;
        if served(&self.objects).is_empty() {
            return Err(Status::no_such_page());
        }
        let query = |key| request.query.get(key).unwrap_or_default();
        let chosen = Chosen {
            namespace: &request.namespace,
            name: &request.name,
            labels: LabelSelector::parse(query("labelSelector")).map_err(Status::bad_request)?,
            fields: FieldSelector::parse(request.def, query("fieldSelector")).map_err(Status::bad_request)?,
        };
        let items = match request.def.scope {
            Scope::Cluster => self.node_usage(request.def, &chosen).await?,
            Scope::Namespaced => self.pod_usage(request.def, &chosen).await?,
        };
        if request.verb == "get" {
            let name = [&request.namespace, &request.name].map(String::as_str).join("/");
            let missing = || Status::not_found(GROUP, &request.def.kind.to_lowercase(), name.trim_start_matches('/'));
            return call.answer(200, items.first().ok_or_else(missing)?, &[]);
        }
        let accepted = call.accepted()?;
        let list = table::list(request.def, accepted, &items, json!({}), &request.query)?;
        respond::object(200, accepted.media, &list, call.pretty())
    }

    async fn node_usage(&self, def: &ResourceDef, chosen: &Chosen<'_>) -> Result<Vec<Value>, Status> {
        let nodes = built_in("", "v1", "nodes").ok_or_else(Status::no_such_path)?;
        let nodes = chosen.of(&self.objects, nodes);
        let real = nodes.iter().filter(|(head, _)| !is_pretended(head)).map(|(head, _)| head.name.clone());
        let readings = self.readings.of(self, real.collect()).await;
        let pods = match nodes.iter().any(|(head, _)| is_pretended(head)) {
            true => pretended::by_node(&self.objects),
            false => BTreeMap::new(),
        };
        let item = |(head, _): &(Head, Value)| {
            let reading = match is_pretended(head) {
                true => Arc::new(pretended::node(pods.get(&head.name).copied().unwrap_or_default())),
                false => readings.get(&head.name)?.clone(),
            };
            let mut item = object(def, head, &reading);
            item["usage"] = quantities(reading.node.as_ref()?);
            Some(item)
        };
        Ok(nodes.iter().filter_map(item).collect())
    }

    async fn pod_usage(&self, def: &ResourceDef, chosen: &Chosen<'_>) -> Result<Vec<Value>, Status> {
        let pods = built_in("", "v1", "pods").ok_or_else(Status::no_such_path)?;
        let mut pods = chosen.of(&self.objects, pods);
        pods.retain(|(_, pod)| pod["status"]["phase"] == "Running" && pod["spec"]["nodeName"].is_string());
        let node_of = |pod: &Value| pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
        let nodes: BTreeSet<String> = pods.iter().map(|(_, pod)| node_of(pod)).collect();
        let (pretending, real) = nodes.into_iter().partition::<BTreeSet<_>, _>(|name| self.is_pretended(name));
        let readings = self.readings.of(self, real).await;
        let item = |(head, pod): &(Head, Value)| {
            let node = node_of(pod);
            let (reading, containers) = if pretending.contains(&node) {
                (Arc::new(Reading::now()), pretended::containers(pod))
            } else {
                let reading = readings.get(&node)?.clone();
                let containers = reading.pods.get(&(head.namespace.clone(), head.name.clone()))?.clone();
                (reading, containers)
            };
            let mut item = object(def, head, &reading);
            let usage = |(name, sample): &(String, Sample)| json!({"name": name, "usage": quantities(sample)});
            item["containers"] = containers.iter().map(usage).collect();
            Some(item)
        };
        Ok(pods.iter().filter_map(item).collect())
    }

    fn is_pretended(&self, node: &str) -> bool {
        let found = built_in("", "v1", "nodes").and_then(|def| self.objects.find(def, "", node));
        found.and_then(|kv| crate::encryption::stored(&kv).ok()).is_some_and(|stored| is_pretended(&stored.head))
    }
}
