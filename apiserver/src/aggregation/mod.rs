//! API aggregation: groups and versions that other servers serve, as APIServices say, behind this server's door.
//!
//! A request is authenticated and authorized here, then handed on with the identity of the front proxy and headers that
//! say who asks. Every member follows the APIServices; the one that leads writes whether they are available.

mod availability;
pub(crate) mod local;
pub(crate) mod merged;
mod proxy;
mod specs;

use std::sync::Arc;

use arc_swap::ArcSwap;
use keelson_machinery::resources::find;
use keelson_pki::{ClusterPki, Identity, Issued};
use rustls::ClientConfig;
use serde_json::{Value, json};

use crate::access::UserInfo;
use crate::crd;
use crate::hooks::Hooks;
use crate::objects::Objects;

pub use availability::start;
pub use local::built_in;
pub use proxy::{Passed, serve};

/// Group of the APIServices.
const GROUP: &str = "apiregistration.k8s.io";
/// Name in the certificate with which requests are handed on.
pub const FRONT_PROXY: &str = "front-proxy-client";
/// Certificate authorities of the host, for services without a bundle of their own.
const HOST_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A group and version that another server serves.
pub struct Remote {
    /// Group.
    pub group: String,
    /// Version.
    pub version: String,
    group_priority: i64,
    version_priority: i64,
    /// uid and what of the spec counts: another server needs another connection.
    identity: String,
    namespace: String,
    service: String,
    port: u16,
    tls: Result<Arc<ClientConfig>, String>,
    /// Whether it can be asked, as its status says.
    pub available: bool,
    /// Its resources as aggregated discovery lists them, once they are known.
    resources: ArcSwap<Value>,
    /// What its OpenAPI says.
    specs: ArcSwap<specs::Specs>,
}

/// The groups and versions of other servers.
pub struct Table {
    rows: ArcSwap<Vec<Arc<Remote>>>,
    identity: Result<Issued, String>,
    hooks: Arc<Hooks>,
}

impl Table {
    /// An empty table; `pki` signs the front proxy's certificate.
    pub fn new(pki: &ClusterPki, hooks: Arc<Hooks>) -> Self {
        let identity = pki.cluster.issue_client(FRONT_PROXY, &[]).map_err(|e| e.to_string());
        Self { rows: ArcSwap::default(), identity, hooks }
    }

    /// The server behind a path, if it is another's.
    pub fn find(&self, path: &str) -> Option<Arc<Remote>> {
        let rows = self.rows.load();
        if rows.is_empty() {
            return None;
        }
        let (explains, path) = match path.strip_prefix("/openapi/v3") {
            Some(path) => (true, path),
            None => (false, path),
        };
        let mut parts = path.strip_prefix("/apis/")?.split('/');
        let (group, version) = (parts.next()?, parts.next()?);
        let row = rows.iter().find(|row| row.group == group && row.version == version)?;
        // A server without version 3 is explained here, by what its version 2 says.
        (!explains || row.specs.load().version_3.is_some()).then(|| row.clone())
    }

    /// All of them, those that count most first.
    pub fn all(&self) -> Arc<Vec<Arc<Remote>>> {
        self.rows.load_full()
    }

    /// Takes over the APIServices as they are stored now.
    fn refresh(&self, objects: &Objects) {
        let Some(def) = find(GROUP, "v1", "apiservices") else { return };
        let before = self.rows.load_full();
        let stored = objects.all(def, "");
        let mut rows: Vec<Arc<Remote>> = stored
            .iter()
            .filter(|object| object["spec"]["service"].is_object())
            .map(|object| Arc::new(self.remote(object, &before)))
            .collect();
        rows.sort_by(|a, b| {
            let priority = |row: &Remote| (-row.group_priority, row.group.clone(), -row.version_priority);
            priority(a).cmp(&priority(b)).then_with(|| crd::by_priority(&a.version, &b.version))
        });
        self.rows.store(Arc::new(rows));
    }

    fn remote(&self, object: &Value, before: &[Arc<Remote>]) -> Remote {
        let spec = &object["spec"];
        let text = |of: &Value, key: &str| of[key].as_str().unwrap_or_default().to_owned();
        let identity =
            json!([object["metadata"]["uid"], spec["service"], spec["caBundle"], spec["insecureSkipTLSVerify"]]);
        let identity = identity.to_string();
        let known = before.iter().find(|row| row.identity == identity);
        let available = available(object).is_some_and(|condition| condition["status"] == "True");
        Remote {
            group: text(spec, "group"),
            version: text(spec, "version"),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or(0),
            version_priority: spec["versionPriority"].as_i64().unwrap_or(0),
            namespace: text(&spec["service"], "namespace"),
            service: text(&spec["service"], "name"),
            port: spec["service"]["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
            tls: known.map_or_else(|| self.tls(spec), |known| known.tls.clone()),
            available,
            resources: ArcSwap::new(known.map_or_else(|| Arc::new(json!([])), |known| known.resources.load_full())),
            specs: ArcSwap::new(known.map_or_else(Arc::default, |known| known.specs.load_full())),
            identity,
        }
    }

    fn tls(&self, spec: &Value) -> Result<Arc<ClientConfig>, String> {
        use base64::Engine;
        let identity = Identity::Certificate(self.identity.as_ref().map_err(Clone::clone)?);
        if spec["insecureSkipTLSVerify"] == true {
            let tls = keelson_pki::client_config_unverified(identity);
            return tls.map(Arc::new).map_err(|e| e.to_string());
        }
        let authorities = match spec["caBundle"].as_str().filter(|bundle| !bundle.is_empty()) {
            Some(bundle) => {
                let pem = base64::engine::general_purpose::STANDARD.decode(bundle).map_err(|e| e.to_string())?;
                String::from_utf8(pem).map_err(|e| e.to_string())?
            }
            None => std::fs::read_to_string(HOST_AUTHORITIES).map_err(|e| format!("{HOST_AUTHORITIES}: {e}"))?,
        };
        keelson_pki::client_config(&authorities, identity).map(Arc::new).map_err(|e| e.to_string())
    }
}

/// Who asks when the aggregator itself does.
fn aggregator() -> UserInfo {
    let groups = vec!["system:masters".into()];
    UserInfo { name: "system:kube-aggregator".into(), groups, ..UserInfo::default() }
}

/// The condition `Available` of an APIService.
fn available(object: &Value) -> Option<&Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Available")
}

impl Remote {
    fn name(&self) -> String {
        format!("{}.{}", self.version, self.group)
    }

    /// What its documents depend on, as far as is known here.
    pub fn seen(&self) -> String {
        format!("{} {} {}", self.identity, self.resources.load(), self.specs.load().identity())
    }

    /// Its OpenAPI document of version 2, if it has one.
    pub fn document(&self) -> Option<Value> {
        self.specs.load().document()
    }

    /// Where its OpenAPI document of version 3 is, if it has one of its own.
    pub fn explained_at(&self) -> Option<String> {
        self.specs.load().version_3.clone()
    }

    fn group_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server behind an APIService, never asked.
    pub fn remote(group: &str, version: &str, group_priority: i64, version_priority: i64) -> Arc<Remote> {
        Arc::new(Remote {
            group: group.into(),
            version: version.into(),
            group_priority,
            version_priority,
            identity: String::new(),
            namespace: String::new(),
            service: String::new(),
            port: 443,
            tls: Err("nobody is asked".into()),
            available: true,
            resources: ArcSwap::new(Arc::new(json!([]))),
            specs: ArcSwap::default(),
        })
    }
}
