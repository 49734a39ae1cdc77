//! Bindings: a pod gets its node, once, and only a pod that is not going away. One at a time as upstream serves them, and many
//! in one request for schedulers in a hurry.
//!
//! Bindings of one request are separate transactions that are under way together, so that they share the store's next write to
//! disk. One transaction for all would give all pods one resource version, and a client whose watch broke between two events
//! of one version would never see the second.

use std::collections::BTreeMap;

use futures::future::join_all;
use http::{Method, Response};
use keelson_client::{Body, Fence};
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources;
use keelson_machinery::status::{Cause, Status};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::{Admission, Attributes, Operation, UserInfo};
use crate::admission::InBulk;
use crate::objects::WriteError;
use crate::verbs::Call;
use crate::{ApiServer, body, options, strategy};

/// Where many bindings are posted.
pub const PATH: &str = "/keelson/v1/bindings";
/// Most bindings of one request.
const MAX_BINDINGS: usize = 1000;
/// Attempts while others write the same pod.
const ATTEMPTS: usize = 5;

type Answer = Result<Response<Body>, Status>;

/// Which pod goes where.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Binding<'a> {
    namespace: &'a str,
    name: &'a str,
    /// The pod must still have this uid; empty: any.
    #[serde(default)]
    uid: &'a str,
    /// The pod must still be of this version; empty: any.
    #[serde(default)]
    resource_version: &'a str,
    node: &'a str,
}

/// Serves `pods/binding` and `bindings`.
pub async fn create(server: &ApiServer, call: &Call<'_>, pod: &str) -> Answer {
    options::check(call, "CreateOptions", false)?;
    let (mut body, mut warnings) = (call.object()?, Vec::new());
    let said = |key: &str| body.value[key].as_str().unwrap_or_default();
    let (version, kind) = (said("apiVersion"), said("kind"));
    if !matches!((version, kind), ("v1", "Binding") | ("", "")) {
        let def = resources::find("", "v1", "bindings").ok_or_else(Status::no_such_path)?;
        return Err(strategy::other_kind(def, version, kind));
    }
    server.conform_as(call, ("", "v1", "Binding"), &mut body, &mut warnings)?;
    let object = body.value;
    let (metadata, target) = (&object["metadata"], &object["target"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if ![pod, ""].contains(&text(&metadata["name"]).as_str()) {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let mut problems = Vec::new();
    if !["Node", ""].contains(&text(&target["kind"]).as_str()) {
        problems.push(Cause::not_supported("target.kind", &target["kind"], &["Node", "<empty>"]));
    }
    if text(&target["name"]).is_empty() {
        problems.push(Cause::required("target.name", ""));
    }
    let problems: Vec<String> = problems.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    match &problems[..] {
        [] => {}
        [one] => return Err(Status::unknown(one.clone())),
        many => return Err(Status::unknown(format!("[{}]", many.join(", ")))),
    }
    if pod.is_empty() {
        return Err(Status::bad_request("Name parameter required."));
    }
    let (uid, resource_version) = (text(&metadata["uid"]), text(&metadata["resourceVersion"]));
    let node = text(&target["name"]);
    let namespace = &call.request.namespace;
    let binding = Binding { namespace, name: pod, uid: &uid, resource_version: &resource_version, node: &node };
    let dry_run = call.dry_run()?;
    let ask = Ask { user: call.user, dry_run, fence: call.fence };
    let gains = Gains::Metadata(admitted(server, &binding, metadata, &ask, &mut warnings).await?);
    bind(server, &binding, gains, &ask).await?;
    let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    call.answer(201, &done, &warnings)
}

/// Serves [`PATH`]: a list of bindings; the answer lists for each null or the Status that refuses it.
pub async fn create_many(
    server: &ApiServer,
    user: &UserInfo,
    method: &Method,
    bytes: &[u8],
    fence: Option<&Fence>,
) -> Answer {
    if *method != Method::POST {
        return Err(Status::method_not_allowed());
    }
    let bindings: Vec<Binding<'_>> =
        serde_json::from_slice(bytes).map_err(|e| Status::bad_request(format!("the list of bindings: {e}")))?;
    if bindings.len() > MAX_BINDINGS {
        return Err(Status::bad_request(format!("at most {MAX_BINDINGS} bindings may be posted at once")));
    }
    let ask = Ask { user, dry_run: false, fence };
    let mut together = BTreeMap::new();
    for namespace in bindings.iter().map(|b| b.namespace) {
        if together.contains_key(namespace) {
            continue;
        }
        let attributes = Attributes {
            verb: "create".into(),
            version: "v1".into(),
            resource: "pods".into(),
            subresource: "binding".into(),
            namespace: namespace.into(),
            ..Attributes::default()
        };
        server.authorize(user, &attributes)?;
        // What is refused to all is told to each with its name.
        let admitted = admitted_together(server, namespace, &ask).await.unwrap_or_default();
        together.insert(namespace, admitted);
    }
    let bind = async |binding: &Binding<'_>| {
        let gains = match together.get(binding.namespace) {
            Some(Some(bulk)) => Gains::Labels(bulk.labels(&server.objects, binding.node)?),
            _ => Gains::Metadata(admitted(server, binding, &Value::Null, &ask, &mut Vec::new()).await?),
        };
        bind(server, binding, gains, &ask).await
    };
    let results = join_all(bindings.iter().map(bind)).await;
    let list: Vec<Value> = results
        .into_iter()
        .map(|result| match result {
            Ok(()) => Ok(Value::Null),
            Err(status) => serde_json::to_value(&status).map_err(|e| Status::internal(&e.to_string())),
        })
        .collect::<Result<_, _>>()?;
    Ok(body::value(200, &Value::from(list)))
}

fn pods() -> Result<&'static ResourceDef, Status> {
    resources::find("", "v1", "pods").ok_or_else(Status::no_such_path)
}

/// Who asks for a binding, and how.
struct Ask<'a> {
    user: &'a UserInfo,
    dry_run: bool,
    fence: Option<&'a Fence>,
}

/// The metadata of a binding as admission leaves it.
async fn admitted(
    server: &ApiServer,
    binding: &Binding<'_>,
    metadata: &Value,
    ask: &Ask<'_>,
    warnings: &mut Vec<String>,
) -> Result<Value, Status> {
    let mut object = json!({"kind": "Binding", "apiVersion": "v1", "metadata": metadata,
        "target": {"kind": "Node", "name": binding.node}});
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"]["name"] = binding.name.into();
    object["metadata"]["namespace"] = binding.namespace.into();
    let mut admission = admission(binding.namespace, binding.name, Some(&mut object), ask, warnings)?;
    server.admit(&mut admission).await?;
    Ok(object["metadata"].take())
}

/// Admits what many bindings of a namespace have in common; `None`: each is to be admitted alone.
async fn admitted_together(server: &ApiServer, namespace: &str, ask: &Ask<'_>) -> Result<Option<InBulk>, Status> {
    server.admit_in_bulk(&mut admission(namespace, "", None, ask, &mut Vec::new())?).await
}

/// What admission sees of a binding.
fn admission<'a>(
    namespace: &'a str,
    name: &'a str,
    object: Option<&'a mut Value>,
    ask: &'a Ask<'_>,
    warnings: &'a mut Vec<String>,
) -> Result<Admission<'a>, Status> {
    Ok(Admission {
        operation: Operation::Create,
        def: pods()?,
        subresource: "binding",
        namespace,
        name,
        user: ask.user,
        object,
        old: None,
        dry_run: ask.dry_run,
        warnings,
    })
}

/// What a binding brings its pod beside the node.
enum Gains {
    /// Labels and annotations of the binding, as admission left it.
    Metadata(Value),
    /// Labels of the node, of a binding that was admitted with others.
    Labels(Vec<(&'static str, String)>),
}

impl Gains {
    fn give(&self, pod: &mut Value) {
        match self {
            Self::Metadata(metadata) => {
                for kind in ["labels", "annotations"] {
                    for (key, value) in metadata[kind].as_object().into_iter().flatten() {
                        pod["metadata"][kind][key] = value.clone();
                    }
                }
            }
            Self::Labels(labels) => {
                for (label, value) in labels {
                    pod["metadata"]["labels"][label] = value.as_str().into();
                }
            }
        }
    }
}

/// Writes one binding that was admitted.
async fn bind(server: &ApiServer, binding: &Binding<'_>, gains: Gains, ask: &Ask<'_>) -> Result<(), Status> {
    if binding.node.is_empty() {
        return Err(Status::unknown("target.name: Required value"));
    }
    let def = pods()?;
    for _ in 0..ATTEMPTS {
        let Some((mut pod, revision)) = server.objects.get(def, binding.namespace, binding.name)? else {
            return Err(Status::not_found("", "pods", binding.name));
        };
        check(&pod, binding)?;
        pod["spec"]["nodeName"] = binding.node.into();
        // The node it has is no longer one that it may get.
        if let Some(status) = pod["status"].as_object_mut() {
            status.remove("nominatedNodeName");
        }
        set_scheduled(&mut pod);
        gains.give(&mut pod);
        if ask.dry_run {
            return Ok(());
        }
        match server.objects.put(def, &pod, revision, ask.fence, Default::default()).await {
            Ok(_) => return Ok(()),
            Err(WriteError::Changed) => {}
            Err(WriteError::Status(status)) => return Err(status),
        }
    }
    Err(Status::modified("", "pods/binding", binding.name))
}

/// Whether the pod may be bound as it is.
fn check(pod: &Value, binding: &Binding<'_>) -> Result<(), Status> {
    let conflict = |why: &str| Err(Status::conflict("", "pods/binding", binding.name, why));
    for (key, what, wanted) in
        [("uid", "UID", binding.uid), ("resourceVersion", "ResourceVersion", binding.resource_version)]
    {
        let found = pod["metadata"][key].as_str().unwrap_or_default();
        if wanted.is_empty() || wanted == found {
            continue;
        }
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: /registry/pods/{}/{}, ResourceVersion: 0, AdditionalErrorMsg: \
             Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}",
            binding.namespace, binding.name
        );
        return Err(Status::conflict("", "pods", binding.name, &why));
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        return conflict(&format!("pod {} is being deleted, cannot be assigned to a host", binding.name));
    }
    match pod["spec"]["nodeName"].as_str() {
        None | Some("") => {}
        Some(bound) => return conflict(&format!("pod {} is already assigned to node {bound:?}", binding.name)),
    }
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        return conflict(&format!("pod {} has non-empty .spec.schedulingGates", binding.name));
    }
    Ok(())
}

fn set_scheduled(pod: &mut Value) {
    let condition =
        json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": strategy::now()});
    crate::eviction::set_condition(&mut pod["status"], condition);
}
