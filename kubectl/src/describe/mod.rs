//! `describe`: an object in words and tables, with what belongs to it and its events.

mod access;
mod common;
mod generic;
mod node;
pub mod pod;
mod policies;
mod services;
pub mod sheet;
mod storage;
mod volumes;
mod workloads;

use serde_json::Value;

use common::events_of;
pub use common::{list, owner as controller_of, selector as selector_text};
pub use node::requests_of;
use sheet::Sheet;

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch, text};
use crate::kinds::{self, Kind};
use crate::objects::{self, FILES, SELECT};
use crate::session::{Session, encode};
use crate::value::Read;

/// Flags of `describe`.
pub const FLAGS: &[&[Flag]] = &[
    FILES,
    &[
        SELECT[0],
        SELECT[2],
        text("chunk-size", "500", "Return large lists in chunks rather than all at once. Pass 0 to disable."),
        switch("show-events", "If true, display events related to the described object.").or("true"),
    ],
];

/// Runs `describe`.
pub async fn describe(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let has_files = parsed.is_set("filename") || parsed.is_set("kustomize");
    if parsed.args.is_empty() && !has_files {
        return Err(Failure::new(
            "You must specify the type of resource to describe. Use \"kubectl api-resources\" for a complete list of \
             supported resources.",
        ));
    }
    let (mut failed, mut first) = (None, true);
    let (all, by_prefix) = find(session).await?;
    // What is not there may be the beginning of a name, but only of one kind.
    let missing = |found: &Found| found.as_ref().is_err_and(Failure::is_not_found);
    if let [kinds, _] = parsed.args.as_slice()
        && kinds.contains(',')
        && all.iter().any(missing)
    {
        return Err(Failure::new("you may only specify a single resource type"));
    }
    for found in all {
        match found {
            Ok((kind, object)) => match one(session, &kind, &object).await {
                Ok(text) if by_prefix => println!("{text}"),
                Ok(text) => print!("{}{text}", if first { "" } else { "\n\n" }),
                Err(error) => failed = Some(super::commands::say(failed, error)),
            },
            Err(error) => failed = Some(super::commands::say(failed, error)),
        }
        first = false;
    }
    if first && failed.is_none() {
        match parsed.on("all-namespaces") {
            true => eprintln!("No resources found"),
            false => eprintln!("No resources found in {} namespace.", session.namespace()?),
        }
    }
    failed.map_or(Ok(()), Err)
}

type Found = Outcome<(Kind, Value)>;

/// The objects that are named, or a failure in the place of each that is not there; and whether only the beginning of
/// their names was given.
async fn find(session: &Session) -> Outcome<(Vec<Found>, bool)> {
    let parsed = &session.parsed;
    let (mut all, mut by_prefix): (Vec<Found>, bool) = (Vec::new(), false);
    for object in objects::from_files(session).await? {
        let kind = kinds::of_object(session, &object).await?;
        let (namespace, name) = objects::place(session, &object)?;
        let read = session.get(&kind.object(&namespace, &encode(&name))).await;
        all.push(read.map(|object| (kind, object)));
    }
    let namespace = session.namespace()?;
    let within = (!parsed.on("all-namespaces")).then_some(namespace.as_str());
    let targets = objects::targets(session, &parsed.args).await?;
    let single = targets.len() == 1 && targets[0].names.len() == 1;
    for target in targets {
        let mut kind = target.kind;
        if kind.group == "autoscaling" && kind.kind == "HorizontalPodAutoscaler" {
            // The newest version says all.
            kind.version = "v2".into();
        }
        if target.names.is_empty() {
            let mut pairs = vec![("labelSelector", parsed.text("selector"))];
            pairs.retain(|(_, value)| !value.is_empty());
            for mut object in list(session, &kind.path(within), &pairs).await? {
                typed(&kind, &mut object);
                all.push(Ok((kind.clone(), object)));
            }
            continue;
        }
        if !parsed.text("selector").is_empty() {
            return Err(Failure::new("name cannot be provided when a selector is specified"));
        }
        if parsed.on("all-namespaces") {
            return Err(Failure::new("a resource cannot be retrieved by name across all namespaces"));
        }
        for name in &target.names {
            match session.get(&kind.object(&namespace, &encode(name))).await {
                Err(error) if error.is_not_found() && single => {
                    // The beginning of a name will do, if there is no such object.
                    let mut matching = list(session, &kind.path(within), &[]).await.unwrap_or_default();
                    matching.retain(|o| o["metadata"]["name"].text().starts_with(name.as_str()));
                    by_prefix = !matching.is_empty();
                    if matching.is_empty() {
                        all.push(Err(error));
                    }
                    matching.iter_mut().for_each(|object| typed(&kind, object));
                    all.extend(matching.into_iter().map(|object| Ok((kind.clone(), object))));
                }
                read => all.push(read.map(|object| (kind.clone(), object))),
            }
        }
    }
    Ok((all, by_prefix))
}

fn typed(kind: &Kind, object: &mut Value) {
    object["apiVersion"] = kind.api_version().into();
    object["kind"] = kind.kind.clone().into();
}

/// The description of an object.
async fn one(session: &Session, kind: &Kind, object: &Value) -> Outcome<String> {
    let mut sheet = Sheet::default();
    let w = &mut sheet;
    let wanted = session.parsed.on("show-events");
    let found = if wanted { related_events(session, kind, object).await } else { None };
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod::pod(w, object, found),
        ("", "ConfigMap") => access::config_map(w, object, found),
        ("", "Secret") => access::secret(w, object),
        ("", "Endpoints") => services::old_endpoints(w, object, found),
        ("", "LimitRange") => policies::limit_range(w, object),
        ("", "ResourceQuota") => policies::quota(w, object),
        ("", "PersistentVolume") => storage::volume(w, object, found),
        ("batch", "Job") => workloads::job(w, object, found),
        ("batch", "CronJob") => workloads::cron_job(w, object, found),
        ("networking.k8s.io", "Ingress") => services::ingress(session, w, object, found).await,
        ("networking.k8s.io", "IngressClass") => services::ingress_class(w, object, found),
        ("networking.k8s.io", "ServiceCIDR") => services::service_cidr(w, object, found),
        ("networking.k8s.io", "IPAddress") => services::ip_address(w, object, found),
        ("networking.k8s.io", "NetworkPolicy") => services::network_policy(w, object),
        ("discovery.k8s.io", "EndpointSlice") => services::endpoint_slice(w, object, found),
        ("storage.k8s.io", "StorageClass") => storage::storage_class(w, object, found),
        ("storage.k8s.io", "VolumeAttributesClass") => storage::attributes_class(w, object, found),
        ("storage.k8s.io", "CSINode") => storage::csi_node(w, object, found),
        ("policy", "PodDisruptionBudget") => policies::budget(w, object, found),
        ("scheduling.k8s.io", "PriorityClass") => policies::priority_class(w, object, found),
        ("autoscaling", "HorizontalPodAutoscaler") => policies::autoscaler(w, object, found),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => access::role(w, object),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => access::binding(w, object),
        ("certificates.k8s.io", "CertificateSigningRequest") => access::certificate_request(w, object, found)?,
        _ => with_more(session, w, kind, object, found).await?,
    }
    Ok(sheet.finish())
}

/// The kinds whose description needs other objects, and all others.
async fn with_more(
    session: &Session,
    w: &mut Sheet,
    kind: &Kind,
    object: &Value,
    found: Option<Vec<Value>>,
) -> Outcome {
    let (namespace, name) = (object["metadata"]["namespace"].text(), object["metadata"]["name"].text());
    let of = |plural: &str| format!("/api/v1/namespaces/{namespace}/{plural}");
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Service") => {
            let slices = services::slices(session, namespace, name).await;
            services::service(w, object, &slices, found);
        }
        ("", "ServiceAccount") => {
            let secrets = list(session, &of("secrets"), &[]).await.ok();
            access::service_account(w, object, secrets, found);
        }
        ("", "PersistentVolumeClaim") => {
            let mut pods = list(session, &of("pods"), &[]).await?;
            let owners = object["metadata"]["ownerReferences"].items();
            pods.retain(|pod| {
                let mounts = |v: &Value| v["persistentVolumeClaim"]["claimName"] == name;
                pod["spec"]["volumes"].items().iter().any(mounts)
                    || owners.iter().any(|o| o["kind"] == "Pod" && o["uid"] == pod["metadata"]["uid"])
            });
            storage::claim(w, object, &pods, found);
        }
        ("", "Namespace") => {
            let all = |plural: &str| format!("/api/v1/namespaces/{name}/{plural}");
            let quotas = list(session, &all("resourcequotas"), &[]).await.ok();
            let limits = list(session, &all("limitranges"), &[]).await.ok();
            policies::namespace(w, object, quotas, limits);
        }
        ("", "Node") => {
            let fields = format!("spec.nodeName={name},status.phase!=Succeeded,status.phase!=Failed");
            let pods = list(session, "/api/v1/pods", &[("fieldSelector", &fields)]).await.ok();
            let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", encode(name));
            node::node(w, object, session.get(&lease).await, pods, found);
        }
        ("", "ReplicationController") | ("apps", "ReplicaSet") => {
            workloads::replicas(w, object, &workloads::phases(session, object).await?, found);
        }
        ("apps", "StatefulSet") => {
            workloads::stateful_set(w, object, &workloads::phases(session, object).await?, found);
        }
        ("apps", "DaemonSet") => {
            workloads::daemon_set(w, object, &workloads::phases(session, object).await?, found);
        }
        ("apps", "Deployment") => {
            let path = format!("/apis/apps/v1/namespaces/{namespace}/replicasets");
            let selector = common::selector(&object["spec"]["selector"]);
            let sets = list(session, &path, &[("labelSelector", &selector)]).await.unwrap_or_default();
            workloads::deployment(w, object, &sets, found);
        }
        _ => generic::generic(w, object, found),
    }
    Ok(())
}

/// The events about an object.
pub async fn related_events(session: &Session, kind: &Kind, object: &Value) -> Option<Vec<Value>> {
    let uid = object["metadata"]["uid"].text();
    match kind.kind.as_str() {
        "Pod" if kind.group.is_empty() => {
            let mirror = object["metadata"]["annotations"]["kubernetes.io/config.mirror"].text();
            events_of(session, object, "", if mirror.is_empty() { uid } else { mirror }).await
        }
        "Node" if kind.group.is_empty() => {
            let mut all = events_of(session, object, "Node", uid).await?;
            all.extend(events_of(session, object, "Node", object["metadata"]["name"].text()).await.unwrap_or_default());
            Some(all)
        }
        name => events_of(session, object, name, uid).await,
    }
}
