//! The admission chain: what objects become, and what is refused, between decoding and storing.

mod cache;
mod certificates;
mod classes;
mod escalation;
mod event_rate_limit;
mod image_policy;
mod limit_ranger;
mod matching;
mod mirror_pods;
mod namespace_lifecycle;
mod node_audiences;
mod node_restriction;
mod optional;
mod owners;
mod pod_groups;
pub(crate) mod pod_preset;
mod pod_security;
mod pods;
mod policies;
mod pull_images;
pub(crate) mod registration;
pub(crate) mod review;
mod rules;
mod security_checks;
pub(crate) mod security_policy;
mod service_account;
#[cfg(test)]
mod tests;
mod tolerations;
mod topology_labels;
mod webhooks;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelson_machinery::status::Status;
use serde_json::Value;

use crate::access::{Admission, AdmissionPlugin, Round};
use crate::authz::Authorization;
use crate::hooks::Hooks;
use crate::objects::Objects;
use crate::{crd, strategy};

/// What plugins are made from.
pub struct Parts {
    /// The replica.
    pub objects: Objects,
    /// For the checks of RBAC writes.
    pub authorization: Arc<Authorization>,
    /// The rows of custom resources.
    pub customs: Arc<crd::Table>,
    /// Calls of webhooks.
    pub hooks: Arc<Hooks>,
    /// What plugins are to know, by name.
    pub configs: HashMap<String, Value>,
}

/// Takes over an object that an extension changed: it is brought into the form of its kind again. Whether it is another.
fn refit(request: &mut Admission<'_>, customs: &crd::Table, mut changed: Value) -> Result<bool, Status> {
    let def = request.def;
    let custom = customs.find(def.group, def.version, def.plural).filter(|_| def.custom);
    let of_other_kind = !request.subresource.is_empty() && changed["kind"] != def.kind;
    let formed = match &custom {
        Some(custom) => crd::strategy::conform(custom, &mut changed),
        // A binding, an eviction: what a subresource takes is of another kind.
        None if of_other_kind => Ok(Vec::new()),
        None => keelson_machinery::conform::conform(def, &mut changed),
    };
    formed.map_err(|why| {
        Status::internal(&format!("an admission extension made an object that cannot be read: {why}"))
    })?;
    if !of_other_kind {
        strategy::complete(def, &mut changed, request.old);
    }
    let Some(object) = request.object.as_deref_mut() else { return Ok(false) };
    for key in ["name", "namespace", "uid", "resourceVersion", "managedFields"] {
        if object["metadata"].get(key) != changed["metadata"].get(key) && key != "managedFields" {
            let why = format!("an admission extension changed metadata.{key}");
            return Err(Status::internal(&why));
        }
        if let Some(value) = object["metadata"].get(key) {
            changed["metadata"][key] = value.clone();
        }
    }
    let differs = *object != changed;
    *object = changed;
    Ok(differs)
}

/// Which plugins are used, and how.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Plugins beside those that are on by default.
    pub enabled: Vec<String>,
    /// Plugins that are off.
    pub disabled: Vec<String>,
    /// What plugins need to know (AdmissionConfiguration).
    pub config: Option<PathBuf>,
}

/// Plugins of upstream's chain whose kinds are not served: there is nothing for them to do, on or off.
const WITHOUT_KIND: [&str; 1] = ["ClusterTrustBundleAttest"];
/// The plugin that counts against quotas.
pub(crate) const RESOURCE_QUOTA: &str = "ResourceQuota";

impl Settings {
    /// The plugins' own configurations, by name.
    fn configs(&self) -> Result<HashMap<String, Value>, String> {
        let Some(path) = &self.config else { return Ok(HashMap::new()) };
        let failed = |path: &Path, why: String| format!("--admission-control-config-file {}: {why}", path.display());
        let read = |path: &Path| {
            let bytes = std::fs::read(path).map_err(|e| failed(path, e.to_string()))?;
            keelson_machinery::decode::yaml(&bytes).map(|d| d.value).map_err(|why| failed(path, why))
        };
        let config = read(path)?;
        if config["kind"] != "AdmissionConfiguration" || config["apiVersion"] != "apiserver.config.k8s.io/v1" {
            return Err(failed(path, "must be an AdmissionConfiguration of apiserver.config.k8s.io/v1".into()));
        }
        let mut out = HashMap::new();
        for plugin in config["plugins"].as_array().into_iter().flatten() {
            let own = match plugin["path"].as_str().filter(|path| !path.is_empty()) {
                Some(own) => read(&path.parent().unwrap_or(Path::new(".")).join(own))?,
                None => plugin["configuration"].clone(),
            };
            out.insert(plugin["name"].as_str().unwrap_or_default().to_owned(), own);
        }
        Ok(out)
    }

    /// Whether a plugin is used.
    pub(crate) fn enables(&self, name: &str) -> bool {
        let among = |names: &[String]| names.iter().any(|known| known == name);
        let by_default = CHAIN.iter().any(|(known, on, _)| *known == name && *on);
        (by_default || among(&self.enabled)) && !among(&self.disabled)
    }

    fn check(&self) -> Result<(), String> {
        for (flag, names) in [("enable", &self.enabled), ("disable", &self.disabled)] {
            for name in names {
                let known = CHAIN.iter().any(|(row, ..)| row == name && *row != "RBACEscalation");
                if !known && !WITHOUT_KIND.contains(&name.as_str()) {
                    return Err(format!("{flag}-admission-plugins plugin {name:?} is unknown"));
                }
                if flag == "enable" && self.disabled.contains(name) {
                    return Err(format!(
                        "[{name}] in enable-admission-plugins and disable-admission-plugins overlapped"
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Parts {
    /// What a plugin is to know; null if nothing is said.
    fn config(&self, plugin: &str) -> Value {
        self.configs.get(plugin).cloned().unwrap_or_default()
    }
}

/// Makes a plugin.
pub type Make = fn(&Parts) -> Result<Box<dyn AdmissionPlugin>, String>;

/// The plugins in their order, and whether they are on by default. Adding one is adding a row.
pub const CHAIN: &[(&str, bool, Make)] = &[
    ("AlwaysAdmit", false, |_| Ok(Box::new(optional::AlwaysAdmit))),
    ("NamespaceAutoProvision", false, |parts| Ok(Box::new(optional::NamespaceAutoProvision(parts.objects.clone())))),
    ("NamespaceLifecycle", true, |parts| Ok(Box::new(namespace_lifecycle::NamespaceLifecycle(parts.objects.clone())))),
    ("NamespaceExists", false, |parts| Ok(Box::new(optional::NamespaceExists(parts.objects.clone())))),
    ("LimitPodHardAntiAffinityTopology", false, |_| Ok(Box::new(optional::LimitPodHardAntiAffinityTopology))),
    (pod_preset::NAME, false, |parts| Ok(Box::new(pod_preset::PodPreset::new(parts)))),
    ("LimitRanger", true, |parts| Ok(Box::new(limit_ranger::LimitRanger(parts.objects.clone())))),
    ("ServiceAccount", true, |parts| Ok(Box::new(service_account::ServiceAccount(parts.objects.clone())))),
    ("NodeRestriction", true, |parts| Ok(Box::new(node_restriction::NodeRestriction::new(parts)))),
    ("TaintNodesByCondition", true, |_| Ok(Box::new(pods::TaintNodesByCondition))),
    ("AlwaysPullImages", false, |_| Ok(Box::new(pull_images::AlwaysPullImages))),
    ("ImagePolicyWebhook", false, |parts| {
        let made = image_policy::ImagePolicyWebhook::new(&parts.config("ImagePolicyWebhook"))?;
        Ok(Box::new(made))
    }),
    ("PodSecurity", true, |parts| {
        let made = pod_security::PodSecurity::new(parts.objects.clone(), &parts.config("PodSecurity"))?;
        Ok(Box::new(made))
    }),
    (security_policy::NAME, false, |parts| Ok(Box::new(security_policy::PodSecurityPolicy::new(parts)))),
    ("PodNodeSelector", false, |parts| {
        Ok(Box::new(optional::PodNodeSelector(parts.objects.clone(), parts.config("PodNodeSelector"))))
    }),
    ("Priority", true, |parts| Ok(Box::new(pods::Priority(parts.objects.clone())))),
    ("DefaultTolerationSeconds", true, |_| Ok(Box::new(pods::DefaultTolerationSeconds))),
    ("PodTolerationRestriction", false, |parts| Ok(Box::new(tolerations::PodTolerationRestriction::new(parts)?))),
    ("EventRateLimit", false, |parts| {
        let made = event_rate_limit::EventRateLimit::new(&parts.config("EventRateLimit"))?;
        Ok(Box::new(made))
    }),
    ("ExtendedResourceToleration", false, |_| Ok(Box::new(optional::ExtendedResourceToleration))),
    ("DefaultStorageClass", true, |parts| Ok(Box::new(classes::DefaultStorageClass(parts.objects.clone())))),
    ("PodGroupProtection", true, |_| Ok(Box::new(pod_groups::PodGroupProtection))),
    ("StorageObjectInUseProtection", true, |_| Ok(Box::new(classes::StorageObjectInUseProtection))),
    ("OwnerReferencesPermissionEnforcement", false, |parts| {
        Ok(Box::new(owners::OwnerReferencesPermissionEnforcement::new(parts)))
    }),
    ("PersistentVolumeClaimResize", true, |parts| {
        Ok(Box::new(classes::PersistentVolumeClaimResize(parts.objects.clone())))
    }),
    ("RuntimeClass", true, |parts| Ok(Box::new(classes::RuntimeClass(parts.objects.clone())))),
    ("CertificateApproval", true, |parts| Ok(Box::new(certificates::Approval(parts.authorization.clone())))),
    ("CertificateSigning", true, |parts| Ok(Box::new(certificates::Signing(parts.authorization.clone())))),
    ("CertificateSubjectRestriction", true, |_| Ok(Box::new(certificates::SubjectRestriction))),
    ("DefaultIngressClass", true, |parts| Ok(Box::new(classes::DefaultIngressClass(parts.objects.clone())))),
    ("PodGroupWorkloadExists", true, |parts| Ok(Box::new(pod_groups::PodGroupWorkloadExists(parts.objects.clone())))),
    ("DenyServiceExternalIPs", false, |_| Ok(Box::new(optional::DenyServiceExternalIPs))),
    (topology_labels::NAME, true, |parts| Ok(Box::new(topology_labels::PodTopologyLabels(parts.objects.clone())))),
    ("NodeDeclaredFeatureValidator", true, |parts| {
        Ok(Box::new(pods::NodeDeclaredFeatureValidator(parts.objects.clone())))
    }),
    ("PodResizeValidator", true, |parts| Ok(Box::new(pods::PodResizeValidator(parts.objects.clone())))),
    ("MutatingAdmissionPolicy", true, |parts| Ok(Box::new(policies::Mutating::new(parts)))),
    ("MutatingAdmissionWebhook", true, |parts| Ok(Box::new(webhooks::Mutating::new(parts)))),
    ("ValidatingAdmissionPolicy", true, |parts| Ok(Box::new(policies::Validating::new(parts)))),
    ("ValidatingAdmissionWebhook", true, |parts| Ok(Box::new(webhooks::Validating::new(parts)))),
    (RESOURCE_QUOTA, true, |_| Ok(Box::new(topology_labels::CountedWithTheWrite))),
    ("RBACEscalation", true, |parts| Ok(Box::new(escalation::Escalation(parts.authorization.clone())))),
    ("AlwaysDeny", false, |_| Ok(Box::new(optional::AlwaysDeny))),
];

/// What bindings that were admitted together bring their pods.
#[derive(Clone, Copy, Debug)]
pub struct InBulk {
    /// Whether a pod gets the labels that say where its node is.
    places: bool,
}

impl InBulk {
    /// The labels of a pod that is bound to a node.
    pub fn labels(self, objects: &Objects, node: &str) -> Result<Vec<(&'static str, String)>, Status> {
        if self.places { topology_labels::of_node(objects, node) } else { Ok(Vec::new()) }
    }
}

/// The chain, made.
pub struct Chain(Vec<(&'static str, Box<dyn AdmissionPlugin>)>);

impl Chain {
    /// Makes the plugins of [`CHAIN`] that are wanted.
    pub fn new(mut parts: Parts, settings: &Settings) -> Result<Self, String> {
        settings.check()?;
        parts.configs = settings.configs()?;
        let wanted = CHAIN.iter().filter(|(name, ..)| settings.enables(name));
        wanted.map(|(name, _, make)| Ok((*name, make(&parts)?))).collect::<Result<_, String>>().map(Self)
    }

    /// Lets every plugin change the object; all once more if an extension changed it after others had seen it.
    pub async fn mutate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let mut round = Round::default();
        for (_, plugin) in &self.0 {
            plugin.mutate(request, &mut round).await?;
        }
        if round.begin_again() {
            for (_, plugin) in &self.0 {
                plugin.mutate(request, &mut round).await?;
            }
        }
        Ok(())
    }

    /// Admits all bindings of a namespace that bring nothing but their node, in one go and without an object for each;
    /// `request` has none. `Ok(None)`: some plugin wants to see each of them.
    pub async fn in_bulk(&self, request: &mut Admission<'_>) -> Result<Option<InBulk>, Status> {
        if self.0.iter().any(|(_, plugin)| plugin.sees_each(request)) {
            return Ok(None);
        }
        self.mutate(request).await?;
        self.validate(request).await?;
        Ok(Some(InBulk { places: self.0.iter().any(|(name, _)| *name == topology_labels::NAME) }))
    }

    /// Lets every plugin refuse the object as it is now.
    pub async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        for (_, plugin) in &self.0 {
            plugin.validate(request).await?;
        }
        Ok(())
    }
}
