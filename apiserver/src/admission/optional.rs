//! Plugins that are off unless they are asked for: what pods, namespaces and Services may be.

use super::pods::{created, list};
use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::objects::Objects;
use keelson_machinery::resource::Scope;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

fn items(of: &Value) -> impl Iterator<Item = &Value> {
    of.as_array().into_iter().flatten()
}

fn refuse(request: &Admission<'_>, why: &str) -> Status {
    Status::forbidden(request.def.group, request.def.plural, request.name, why)
}

fn is_namespace(request: &Admission<'_>) -> bool {
    (request.def.group, request.def.plural) == ("", "namespaces")
}

/// Whether a request is about an object in a namespace that is not there.
fn lacks_namespace(objects: &Objects, request: &Admission<'_>) -> bool {
    request.def.scope == Scope::Namespaced
        && !is_namespace(request)
        && !request.namespace.is_empty()
        && objects.object("", "v1", "namespaces", "", request.namespace).is_none()
}

/// Makes the namespace of what is created.
pub(super) struct NamespaceAutoProvision(pub(super) Objects);

#[async_trait::async_trait]
impl AdmissionPlugin for NamespaceAutoProvision {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        if request.dry_run || request.operation != Operation::Create || !lacks_namespace(&self.0, request) {
            return Ok(());
        }
        let made =
            crate::bootstrap::create_if_absent(&*self.0.kv, crate::bootstrap::namespace(request.namespace)).await;
        made.map(|_| ()).map_err(|why| Status::internal(&why.to_string()))
    }
}

/// Refuses what is in a namespace that is not there.
pub(super) struct NamespaceExists(pub(super) Objects);

#[async_trait::async_trait]
impl AdmissionPlugin for NamespaceExists {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        match lacks_namespace(&self.0, request) {
            true => Err(Status::not_found("", "namespaces", request.namespace)),
            false => Ok(()),
        }
    }
}

/// No Service takes addresses that others may have.
pub(super) struct DenyServiceExternalIPs;

#[async_trait::async_trait]
impl AdmissionPlugin for DenyServiceExternalIPs {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        if (request.def.group, request.def.plural, request.subresource) != ("", "services", "") {
            return Ok(());
        }
        let ips = |object: Option<&Value>| object.map(|o| o["spec"]["externalIPs"].clone()).unwrap_or_default();
        let (new, old) = (ips(request.object.as_deref()), ips(request.old));
        match items(&new).all(|ip| items(&old).any(|known| known == ip)) {
            true => Ok(()),
            false => Err(refuse(request, "Use of external IPs is denied by admission control")),
        }
    }
}

/// Pods keep others away from their node at most.
pub(super) struct LimitPodHardAntiAffinityTopology;

#[async_trait::async_trait]
impl AdmissionPlugin for LimitPodHardAntiAffinityTopology {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        if (request.def.group, request.def.plural, request.subresource) != ("", "pods", "") {
            return Ok(());
        }
        let Some(pod) = request.object.as_deref() else { return Ok(()) };
        let terms = &pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        match items(terms).map(|term| text(term, "topologyKey")).find(|key| *key != "kubernetes.io/hostname") {
            None => Ok(()),
            Some(key) => Err(refuse(
                request,
                &format!(
                    "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key \
                     kubernetes.io/hostname is allowed"
                ),
            )),
        }
    }
}

/// Pods that ask for a device tolerate the taint with which its nodes are kept free.
pub(super) struct ExtendedResourceToleration;

#[async_trait::async_trait]
impl AdmissionPlugin for ExtendedResourceToleration {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        let Some(pod) = created(request, "pods") else { return Ok(()) };
        let mut wanted = std::collections::BTreeSet::new();
        for container in CONTAINERS.into_iter().flat_map(|key| items(&pod["spec"][key])) {
            let requests = container["resources"]["requests"].as_object().into_iter().flatten();
            wanted.extend(requests.map(|(name, _)| name.clone()).filter(|name| is_extended(name)));
        }
        let Some(tolerations) = list(&mut pod["spec"], "tolerations") else { return Ok(()) };
        for key in wanted {
            let toleration = json!({"key": key, "operator": "Exists", "effect": "NoSchedule"});
            if !tolerations.contains(&toleration) {
                tolerations.push(toleration);
            }
        }
        Ok(())
    }
}

fn is_extended(name: &str) -> bool {
    let Some((domain, _)) = name.split_once('/') else { return false };
    domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io") && !name.starts_with("requests.")
}

/// Namespaces say on which nodes their pods may be.
pub(super) struct PodNodeSelector(pub(super) Objects, pub(super) Value);

#[async_trait::async_trait]
impl AdmissionPlugin for PodNodeSelector {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        const ANNOTATION: &str = "scheduler.alpha.kubernetes.io/node-selector";
        let (name, home) = (request.name.to_owned(), request.namespace.to_owned());
        let Some(pod) = created(request, "pods") else { return Ok(()) };
        let namespace = self.0.object("", "v1", "namespaces", "", &home).unwrap_or_default();
        let own = namespace["metadata"]["annotations"][ANNOTATION].as_str();
        let config = &self.1["podNodeSelectorPluginConfig"];
        let selector = own.unwrap_or_else(|| text(config, "clusterDefaultNodeSelector")).to_owned();
        let whitelist = config[&home].as_str().map(pairs);
        let spec = &mut pod["spec"];
        for (key, value) in pairs(&selector) {
            if spec["nodeSelector"].get(&key).is_some_and(|given| *given != value.as_str()) {
                let why = "pod node label selector conflicts with its namespace node label selector";
                return Err(Status::forbidden("", "pods", &name, why));
            }
            if !spec["nodeSelector"].is_object() {
                spec["nodeSelector"] = json!({});
            }
            spec["nodeSelector"][&key] = value.into();
        }
        let chosen = spec["nodeSelector"].as_object().into_iter().flatten();
        let outside = |(key, value): (&String, &Value)| {
            whitelist.as_ref().is_some_and(|known| !known.iter().any(|(k, v)| k == key && value == v))
        };
        match chosen.into_iter().any(outside) {
            true => {
                let why = "pod node label selector labels conflict with its namespace whitelist";
                Err(Status::forbidden("", "pods", &name, why))
            }
            false => Ok(()),
        }
    }
}

/// `a=b,c=d` taken apart.
fn pairs(selector: &str) -> Vec<(String, String)> {
    let parts = selector.split(',').filter_map(|part| part.split_once('='));
    parts.map(|(key, value)| (key.trim().to_owned(), value.trim_start_matches('=').trim().to_owned())).collect()
}

/// Refuses everything.
pub(super) struct AlwaysDeny;

#[async_trait::async_trait]
impl AdmissionPlugin for AlwaysDeny {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        Err(refuse(request, "admission control is denying all modifications"))
    }

    fn sees_each(&self, _: &Admission<'_>) -> bool {
        true
    }
}

/// Refuses nothing.
pub(super) struct AlwaysAdmit;

#[async_trait::async_trait]
impl AdmissionPlugin for AlwaysAdmit {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_extended() {
        for (name, expected) in
            [("example.com/gpu", true), ("cpu", false), ("kubernetes.io/x", false), ("requests.example.com/a", false)]
        {
            assert_eq!(is_extended(name), expected, "{name}");
        }
    }
}
