//! Deployments: a ReplicaSet per template, rolled over within maxSurge and maxUnavailable.

mod plan;
mod rollback;
mod sets;
mod status;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::informer::key;
use keelson_client::{Change, Error, Key, PatchType};
use serde_json::json;

use crate::context::Context;
use crate::kept::Pod;
use crate::owners::{self, Selector, controller_of, is_empty_selector};
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_own, watch_owned, watch_with};
use plan::Recreate;
use sets::{Bounds, name, replicas};

const COMPONENT: &str = "deployment-controller";

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.deployments, queue);
    watch_owned(&context.cache.replica_sets, "Deployment", queue);
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.replica_sets, queue, move |change: &Change<ReplicaSet>| {
        let (Some(set), Some(context)) = (&change.new, weak.upgrade()) else { return Vec::new() };
        if controller_of(&set.metadata).is_some() {
            return Vec::new();
        }
        let deployments = context.cache.deployments.in_namespace(set.metadata.namespace.as_deref().unwrap_or_default());
        deployments.iter().filter(|d| selector(d).matches(&set.metadata)).map(|d| key(&**d)).collect()
    });
    // A Recreate waits for the last pod of the old template to be gone.
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.pods, queue, move |change: &Change<Pod>| {
        let (Some(pod), None, Some(context)) = (&change.old, &change.new, weak.upgrade()) else { return Vec::new() };
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let owner = controller_of(&pod.metadata).filter(|o| o.kind == "ReplicaSet");
        let set = owner.and_then(|o| context.cache.replica_sets.named(&namespace, &o.name));
        let deployment = set.and_then(|s| controller_of(&s.metadata).map(|o| o.name.clone()));
        deployment.map(|d| (namespace, d)).into_iter().collect()
    });
}

fn selector(deployment: &Deployment) -> Selector {
    Selector::new(&deployment.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default())
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(deployment) = context.cache.deployments.get(&key) else { return Ok(None) };
    let Some(spec) = deployment.spec.as_ref() else { return Ok(None) };
    let recorder = context.recorder(COMPONENT);
    if is_empty_selector(&spec.selector) {
        let message = "This deployment is selecting all pods. A non-empty selector is required.";
        recorder.warning(&*deployment, "SelectingAll", message);
        return Ok(None);
    }
    let matcher = selector(&deployment);
    let candidates = context.cache.replica_sets.in_namespace(&key.0);
    let sets = owners::claim(&context.client, &*deployment, |o| matcher.matches(&o.metadata), candidates).await?;
    let now = context.now();
    let mut look = Look { context: &context, deployment, now, sets };
    if look.deployment.metadata.deletion_timestamp.is_some() {
        return look.write_status(false).await;
    }
    look.note_pause().await?;
    if !look.paused()
        && let Some(to) = rollback::asked(&look.deployment)
    {
        look.roll_back(to).await?;
        return Ok(None);
    }
    let rolling = look.step().await?;
    look.write_status(rolling).await
}

/// One look at a Deployment.
struct Look<'a> {
    context: &'a Arc<Context>,
    deployment: Arc<Deployment>,
    now: Time,
    sets: Vec<Arc<ReplicaSet>>,
}

impl Look<'_> {
    fn paused(&self) -> bool {
        self.deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false)
    }

    fn split(&self) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
        match &self.deployment.spec {
            Some(spec) => sets::split(self.sets.clone(), &spec.template),
            None => (None, self.sets.clone()),
        }
    }

    /// Says in Progressing that the Deployment is paused, or no longer; the deadline does not run meanwhile.
    async fn note_pause(&mut self) -> Result<(), Error> {
        if status::deadline(&self.deployment).is_none() {
            return Ok(());
        }
        let mut changed = (*self.deployment).clone();
        let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
        let current = status::find(conditions, "Progressing").and_then(|c| c.reason.clone());
        if current.as_deref() == Some("ProgressDeadlineExceeded") {
            return Ok(());
        }
        let noted = current.as_deref() == Some("DeploymentPaused");
        let (reason, message) = match (self.paused(), noted) {
            (true, false) => ("DeploymentPaused", "Deployment is paused"),
            (false, true) => ("DeploymentResumed", "Deployment is resumed"),
            _ => return Ok(()),
        };
        status::set_condition(
            conditions,
            status::condition("Progressing", "Unknown", reason, message.to_owned(), &self.now),
        );
        self.replace_status(changed).await
    }

    async fn replace_status(&mut self, changed: Deployment) -> Result<(), Error> {
        let namespace = changed.metadata.namespace.clone().unwrap_or_default();
        let name = changed.metadata.name.clone().unwrap_or_default();
        let written = self.context.client.namespaced::<Deployment>(&namespace).replace_status(&name, &changed).await?;
        self.deployment = Arc::new(written);
        self.context.settle(&self.context.cache.deployments, &*self.deployment).await;
        Ok(())
    }

    /// Takes the next step; tells whether it is one of a roll-out.
    async fn step(&mut self) -> Result<bool, Error> {
        let Some(spec) = self.deployment.spec.clone() else { return Ok(false) };
        let bounds = Bounds::of(&spec);
        let (new, old) = self.split();
        if self.paused() || plan::was_scaled(&bounds, new.as_ref(), &old) {
            let new = self.refresh(new, &old).await?;
            let before = self.deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
            self.resize(&bounds, plan::scaled(&bounds, before, new.as_ref(), &old)).await?;
            if self.paused() {
                self.trim(&old).await?;
            }
            return Ok(false);
        }
        if bounds.recreate {
            self.recreate(&bounds, new, &old).await?;
        } else {
            let new = match self.refresh(new, &old).await? {
                Some(new) => new,
                None => self.create(&bounds, plan::first_size(&bounds, &old), &old).await?,
            };
            self.resize(&bounds, plan::rolled(&bounds, &new, &old)).await?;
        }
        let (new, old) = self.split();
        let now = status::status(&self.deployment, new.as_ref(), &self.sets, false, &self.now);
        if status::is_complete(&self.deployment, &now) {
            self.trim(&old).await?;
        }
        Ok(true)
    }

    async fn recreate(
        &mut self,
        bounds: &Bounds,
        new: Option<Arc<ReplicaSet>>,
        old: &[Arc<ReplicaSet>],
    ) -> Result<(), Error> {
        let new = self.refresh(new, old).await?;
        let pods = &self.context.cache.pods;
        let uids = old.iter().filter_map(|s| s.metadata.uid.as_deref());
        let old_pods_run = uids.flat_map(|uid| pods.owned_by(uid)).any(|p| !pods::is_finished(&p));
        match plan::recreated(old, old_pods_run) {
            Recreate::Empty(sizes) => self.resize(bounds, sizes).await,
            Recreate::Wait => Ok(()),
            Recreate::Fill => {
                let new = match new {
                    Some(new) => new,
                    None => self.create(bounds, bounds.wanted, old).await?,
                };
                self.resize(bounds, vec![(name(&new).to_owned(), bounds.wanted)]).await
            }
        }
    }

    /// Brings the annotations of the template's set up to date, and the Deployment's revision.
    async fn refresh(
        &mut self,
        new: Option<Arc<ReplicaSet>>,
        old: &[Arc<ReplicaSet>],
    ) -> Result<Option<Arc<ReplicaSet>>, Error> {
        let Some(mut new) = new else { return Ok(None) };
        let latest = old.iter().map(|s| sets::revision(&s.metadata)).max().unwrap_or(0);
        if let Some(changed) = sets::refreshed(&self.deployment, &new, latest) {
            new = self.write_set(&changed).await?;
        }
        self.note_revision(sets::revision(&new.metadata)).await?;
        let conditions = self.deployment.status.iter().flat_map(|s| s.conditions.iter().flatten());
        if status::deadline(&self.deployment).is_some() && !conditions.into_iter().any(|c| c.type_ == "Progressing") {
            let message = format!("Found new replica set {:?}", name(&new));
            self.progressing("FoundNewReplicaSet", message).await?;
        }
        Ok(Some(new))
    }

    async fn note_revision(&mut self, revision: i64) -> Result<(), Error> {
        if sets::revision(&self.deployment.metadata) == revision {
            return Ok(());
        }
        let metadata = &self.deployment.metadata;
        let patch = json!({"metadata": {"uid": metadata.uid, "annotations": {sets::REVISION: revision.to_string()}}});
        let api = self.context.client.namespaced::<Deployment>(metadata.namespace.as_deref().unwrap_or_default());
        // By way of the status: a change of annotations by the other way makes a new generation.
        let name = metadata.name.as_deref().unwrap_or_default();
        self.deployment = Arc::new(api.patch(name, Some("status"), PatchType::Merge, &patch).await?);
        Ok(())
    }

    async fn progressing(&mut self, reason: &str, message: String) -> Result<(), Error> {
        let mut changed = (*self.deployment).clone();
        let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
        let new = status::condition("Progressing", "True", reason, message, &self.now);
        status::set_condition(conditions, new);
        self.replace_status(changed).await
    }

    /// Makes the set of the template.
    async fn create(&mut self, bounds: &Bounds, size: i32, old: &[Arc<ReplicaSet>]) -> Result<Arc<ReplicaSet>, Error> {
        let revision = old.iter().map(|s| sets::revision(&s.metadata)).max().unwrap_or(0) + 1;
        let wanted = sets::fresh(&self.deployment, size, bounds, revision);
        let namespace = self.deployment.metadata.namespace.clone().unwrap_or_default();
        let api = self.context.client.namespaced::<ReplicaSet>(&namespace);
        let set = match api.create(&wanted).await {
            Ok(set) => set,
            Err(error) if error.is_already_exists() => match self.collided(&wanted).await? {
                Some(ours) => ours,
                None => return Err(error),
            },
            Err(error) if error.is_namespace_terminating() => return Err(error),
            Err(error) => {
                let message = format!("Failed to create new replica set {:?}: {error}", name(&wanted));
                self.create_failed(message).await?;
                return Err(error);
            }
        };
        if size > 0 {
            let message = format!("Scaled up replica set {} from 0 to {size}", name(&set));
            self.context.recorder(COMPONENT).normal(&*self.deployment, "ScalingReplicaSet", message);
        }
        self.context.settle(&self.context.cache.replica_sets, &set).await;
        let set = Arc::new(set);
        self.sets.push(set.clone());
        self.note_revision(revision).await?;
        if status::deadline(&self.deployment).is_some() {
            let message = format!("Created new replica set {:?}", name(&set));
            self.progressing("NewReplicaSetCreated", message).await?;
        }
        Ok(set)
    }

    async fn create_failed(&mut self, message: String) -> Result<(), Error> {
        self.context.recorder(COMPONENT).warning(&*self.deployment, "ReplicaSetCreateError", message.clone());
        if status::deadline(&self.deployment).is_none() {
            return Ok(());
        }
        let mut changed = (*self.deployment).clone();
        let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
        let new = status::condition("Progressing", "False", "ReplicaSetCreateError", message, &self.now);
        status::set_condition(conditions, new);
        self.replace_status(changed).await
    }

    /// Goes back to the template of an earlier revision, and tells so.
    async fn roll_back(&mut self, to: i64) -> Result<(), Error> {
        let outcome = rollback::plan(&self.deployment, &self.sets, to);
        if let rollback::Outcome::Refused { reason, message } = &outcome {
            self.context.recorder(COMPONENT).warning(&*self.deployment, reason, message.clone());
        }
        let changed = rollback::apply(&self.deployment, &outcome);
        let (namespace, name) = key(&changed);
        let written = self.context.client.namespaced::<Deployment>(&namespace).replace(&name, &changed).await?;
        self.deployment = Arc::new(written);
        self.context.settle(&self.context.cache.deployments, &*self.deployment).await;
        if let rollback::Outcome::To { revision, .. } = outcome {
            let message = format!("Rolled back deployment {name:?} to revision {revision}");
            self.context.recorder(COMPONENT).normal(&*self.deployment, "DeploymentRollback", message);
        }
        Ok(())
    }

    /// A set of that name is there: ours after all, or another, whose name the next attempt avoids.
    async fn collided(&mut self, wanted: &ReplicaSet) -> Result<Option<ReplicaSet>, Error> {
        let namespace = self.deployment.metadata.namespace.clone().unwrap_or_default();
        let there = self.context.client.namespaced::<ReplicaSet>(&namespace).get(name(wanted)).await?;
        let template = self.deployment.spec.as_ref().map(|s| &s.template);
        let uid = self.deployment.metadata.uid.as_deref();
        if owners::is_controlled_by(&there.metadata, uid) && template.is_some_and(|t| sets::is_of_template(&there, t)) {
            return Ok(Some(there));
        }
        let mut changed = (*self.deployment).clone();
        let status = changed.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        self.replace_status(changed).await?;
        Ok(None)
    }

    /// Writes the sizes and tells of each.
    async fn resize(&mut self, bounds: &Bounds, sizes: plan::Sizes) -> Result<(), Error> {
        for (set, size) in sizes {
            let Some(before) = self.sets.iter().find(|s| name(s) == set).cloned() else { continue };
            let Some(changed) = sets::resized(&before, size, bounds) else { continue };
            self.write_set(&changed).await?;
            let was = replicas(&before);
            if was != size {
                let direction = if size > was { "up" } else { "down" };
                let message = format!("Scaled {direction} replica set {set} from {was} to {size}");
                self.context.recorder(COMPONENT).normal(&*self.deployment, "ScalingReplicaSet", message);
            }
        }
        Ok(())
    }

    async fn write_set(&mut self, changed: &ReplicaSet) -> Result<Arc<ReplicaSet>, Error> {
        let namespace = changed.metadata.namespace.as_deref().unwrap_or_default();
        let api = self.context.client.namespaced::<ReplicaSet>(namespace);
        let written = Arc::new(api.replace(name(changed), changed).await?);
        self.context.settle(&self.context.cache.replica_sets, &*written).await;
        for set in &mut self.sets {
            if name(set) == name(&written) {
                *set = written.clone();
            }
        }
        Ok(written)
    }

    /// Deletes old sets beyond the history's limit.
    async fn trim(&self, old: &[Arc<ReplicaSet>]) -> Result<(), Error> {
        let Some(spec) = self.deployment.spec.as_ref() else { return Ok(()) };
        let namespace = self.deployment.metadata.namespace.as_deref().unwrap_or_default();
        let api = self.context.client.namespaced::<ReplicaSet>(namespace);
        for surplus in plan::beyond_history(old, spec.revision_history_limit) {
            match api.delete(&surplus, &serde_json::Value::Null).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes the status if it differs; says when to look for a stuck roll-out.
    async fn write_status(&mut self, rolling: bool) -> Outcome {
        // The sets' own statuses may be newer by now than when this look began.
        let fresh = |s: &Arc<ReplicaSet>| self.context.cache.replica_sets.get(&key(&**s)).unwrap_or_else(|| s.clone());
        self.sets = self.sets.iter().map(fresh).collect();
        let (new, _) = self.split();
        let status = status::status(&self.deployment, new.as_ref(), &self.sets, rolling, &self.now);
        let again: Option<Duration> =
            if rolling { status::stuck_check(&self.deployment, &status, &self.now) } else { None };
        if self.deployment.status.as_ref() != Some(&status) {
            let changed = Deployment { status: Some(status), ..(*self.deployment).clone() };
            self.replace_status(changed).await?;
        }
        Ok(again)
    }
}
