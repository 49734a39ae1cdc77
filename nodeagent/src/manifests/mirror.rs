//! Mirrors: what the API shows of static pods. They follow the static pod; what others do to them is undone.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use keelson_client::{Error, Key};
use serde_json::json;

use crate::agent::Agent;
use crate::spec::pod;

/// Annotation of static pods: a hash of the manifest.
pub const HASH: &str = "kubernetes.io/config.hash";
/// Annotation: where the manifest is from.
pub const SOURCE: &str = "kubernetes.io/config.source";
/// Annotation: when the manifest was first seen.
pub const SEEN: &str = "kubernetes.io/config.seen";
/// Annotation of mirrors: the hash of what they mirror.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// After this time a mirror that could not be written is tried again.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

fn annotation<'a>(of: &'a Pod, key: &str) -> Option<&'a String> {
    of.metadata.annotations.as_ref()?.get(key)
}

/// Whether a pod of the API mirrors a static one; such pods are not run.
pub fn is_mirror(of: &Pod) -> bool {
    annotation(of, MIRROR).is_some()
}

/// Namespace and name.
pub fn key_of(of: &Pod) -> Key {
    (of.metadata.namespace.clone().unwrap_or_default(), of.metadata.name.clone().unwrap_or_default())
}

/// What is to be done about a mirror.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// It goes, since it mirrors something else or somebody deletes it; then a new one is made.
    Replace,
    /// One is made.
    Create,
    /// It gets the status.
    Report,
    /// It is as it should be.
    Nothing,
}

fn next(of: &Pod, status: &PodStatus, mirror: Option<&Pod>) -> Next {
    match mirror {
        None => Next::Create,
        Some(m) if m.metadata.deletion_timestamp.is_some() || annotation(m, MIRROR) != annotation(of, HASH) => {
            Next::Replace
        }
        Some(m) if m.status.as_ref() == Some(status) => Next::Nothing,
        Some(_) => Next::Report,
    }
}

/// The mirror of a static pod.
fn mirror_of(of: &Pod, node: &str, node_uid: &str) -> Pod {
    let mut mirror = Pod { spec: of.spec.clone(), ..Pod::default() };
    let mut annotations = of.metadata.annotations.clone().unwrap_or_default();
    if let Some(hash) = annotations.get(HASH).cloned() {
        annotations.insert(MIRROR.into(), hash);
    }
    mirror.metadata.annotations = Some(annotations);
    (mirror.metadata.name, mirror.metadata.namespace) = (of.metadata.name.clone(), of.metadata.namespace.clone());
    mirror.metadata.labels = of.metadata.labels.clone();
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.into(),
        uid: node_uid.into(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    mirror
}

impl Agent {
    /// Keeps a static pod's status, and brings its mirror in line as far as the API can be reached.
    pub(crate) async fn report_static(self: &Arc<Self>, of: &Pod, status: PodStatus) {
        self.pods.set_status(&pod::uid(of), &status);
        let Err(error) = self.follow_static(of, status).await else { return };
        tracing::debug!(pod = pod::title(of), %error, "the mirror of a static pod is behind");
        let (agent, uid) = (self.clone(), pod::uid(of));
        tokio::spawn(async move {
            tokio::time::sleep(AGAIN).await;
            agent.pods.wake(&uid);
        });
    }

    async fn follow_static(&self, of: &Pod, status: PodStatus) -> Result<(), Error> {
        let key = key_of(of);
        let node_uid = self.node_uid.lock().clone();
        // Without its Node object a mirror has no owner; the report comes again when the node is registered.
        if node_uid.is_empty() || !self.pods.is_listed() {
            return Ok(());
        }
        let api = self.config.client.namespaced::<Pod>(&key.0);
        let mut mirror = self.pods.mirror(&key);
        if next(of, &status, mirror.as_deref()) == Next::Replace
            && let Some(old) = mirror.take()
        {
            self.remove_mirror(&old).await?;
        }
        let mirror = match mirror {
            Some(mirror) => (*mirror).clone(),
            None => match api.create(&mirror_of(of, &self.config.node_name, &node_uid)).await {
                // The watch will show it.
                Err(error) if error.is_already_exists() => return Ok(()),
                result => result?,
            },
        };
        let mut written = mirror.clone();
        if next(of, &status, Some(&mirror)) == Next::Report {
            let mut wanted = mirror;
            wanted.status = Some(status);
            written = match api.replace_status(&key.1, &wanted).await {
                // A newer one is on its way.
                Err(error) if error.is_conflict() || error.is_not_found() => return Ok(()),
                result => result?,
            };
        }
        self.pods.set_mirror(&key, Some(written));
        Ok(())
    }

    async fn remove_mirror(&self, mirror: &Pod) -> Result<(), Error> {
        let (namespace, name) = key_of(mirror);
        let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": mirror.metadata.uid}});
        match self.config.client.namespaced::<Pod>(&namespace).delete(&name, &options).await {
            Err(error) if error.is_conflict() || error.is_not_found() => {}
            result => result?,
        }
        self.pods.set_mirror(&(namespace, name), None);
        Ok(())
    }

    /// Removes the mirrors of pods that are no more.
    pub(super) async fn remove_orphaned_mirrors(&self) {
        for mirror in self.pods.orphaned_mirrors() {
            if let Err(error) = self.remove_mirror(&mirror).await {
                tracing::debug!(pod = pod::title(&mirror), %error, "a mirror without its pod stays for now");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_follow_their_pods() {
        let of: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n",
            "annotations": {HASH: "1"}}, "spec": {"containers": []}}))
        .unwrap();
        let status = |phase: &str| PodStatus { phase: Some(phase.into()), ..PodStatus::default() };
        let mut mirror = mirror_of(&of, "node", "u");
        assert!(is_mirror(&mirror) && !is_mirror(&of));
        assert_eq!(next(&of, &status("Running"), None), Next::Create);
        assert_eq!(next(&of, &status("Running"), Some(&mirror)), Next::Report);
        mirror.status = Some(status("Running"));
        assert_eq!(next(&of, &status("Running"), Some(&mirror)), Next::Nothing);
        let mut going = mirror.clone();
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(next(&of, &status("Running"), Some(&going)), Next::Replace);
        mirror.metadata.annotations.as_mut().unwrap().insert(MIRROR.into(), "2".into());
        assert_eq!(next(&of, &status("Running"), Some(&mirror)), Next::Replace);
    }
}
