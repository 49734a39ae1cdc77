//! StatefulSets: pods with a stable identity and claims of their own, made and replaced in order.

mod identity;
mod plan;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{self as core, PersistentVolumeClaim, PodTemplateSpec};
use keelson_client::{Change, Error, Key, PatchType};
use serde_json::json;

use crate::context::{Context, ORPHANS};
use crate::history::{self, History};
use crate::kept::Pod;
use crate::owners::{self, Selector, controller_of};
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_own, watch_owned, watch_with};
use plan::{Pods, Revision, Shape, Step};

const COMPONENT: &str = "statefulset-controller";
/// Label of a revision: its hash.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.stateful_sets, queue);
    watch_owned(&context.cache.pods, "StatefulSet", queue);
    let weak = Arc::downgrade(context);
    watch_with(&context.cache.pods, queue, move |change: &Change<Pod>| {
        let (Some(pod), Some(context)) = (&change.new, weak.upgrade()) else { return Vec::new() };
        if controller_of(&pod.metadata).is_some() {
            return Vec::new();
        }
        let sets = context.cache.stateful_sets.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
        let matching = sets.iter().filter(|s| identity::is_member(s, &**pod) && selector(s).matches(&pod.metadata));
        matching.map(|s| keelson_client::informer::key(&**s)).collect()
    });
}

fn selector(set: &StatefulSet) -> Selector {
    Selector::new(&set.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default())
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(set) = context.cache.stateful_sets.get(&key) else { return Ok(None) };
    let Some(spec) = set.spec.as_ref() else { return Ok(None) };
    let selector = selector(&set);
    let status = set.status.clone().unwrap_or_default();
    let subject = history::Subject {
        template: &spec.template,
        hash_label: HASH_LABEL,
        collisions: status.collision_count.unwrap_or(0),
    };
    let history = history::settle(&context, &*set, &selector, subject).await?;
    let update = history::name(&history.update).to_owned();
    let current = status.current_revision.filter(|c| history.all.iter().any(|r| history::name(r) == c));
    let current = current.unwrap_or_else(|| update.clone());
    let uid = set.metadata.uid.clone().unwrap_or_default();
    let mut candidates = context.cache.pods.owned_by(&uid);
    candidates.extend(context.cache.pods.by(ORPHANS, &key.0));
    candidates.retain(|p| identity::is_member(&set, &**p));
    let claimed = owners::claim(&context.client, &*set, |o| selector.matches(&o.metadata), candidates).await?;
    let now = context.now().0;
    let shape = Shape::of(&set);
    let pods = by_ordinal(&set, claimed);
    let look = Look { context: &context, set: &set, history: &history, current: &current };
    let result = match set.metadata.deletion_timestamp {
        None => look.act(&shape, &pods, plan::steps(&shape, &pods, &update, now)).await,
        // Of a set that goes only the status is kept up.
        Some(_) => Ok(()),
    };
    // Whatever was done is in the cache by now.
    let pods = by_ordinal(&set, context.cache.pods.owned_by(&uid));
    let status = plan::status(&shape, &set, &pods, (&current, &update), history.collisions, now);
    if set.status.as_ref() != Some(&status) {
        let changed = StatefulSet { status: Some(status), ..(*set).clone() };
        let written = context.client.namespaced::<StatefulSet>(&key.0).replace_status(&key.1, &changed).await?;
        context.settle(&context.cache.stateful_sets, &written).await;
    }
    result?;
    let in_use = |name: &str| name == current || name == update || pods.values().any(|p| identity::revision(p) == name);
    let surplus = history::beyond(&history.all, in_use, spec.revision_history_limit.unwrap_or(10));
    history::trim(&context, &key.0, surplus).await?;
    Ok(pods::next_available(pods.values().map(|p| &**p), shape.min_ready, now))
}

fn by_ordinal(set: &StatefulSet, pods: Vec<Arc<Pod>>) -> Pods {
    pods.into_iter().filter_map(|p| Some((identity::ordinal(set, &p.metadata)?, p))).collect()
}

fn titled(verb: &str) -> String {
    verb[..1].to_uppercase() + &verb[1..]
}

/// Why a pod's claims are not all there.
#[derive(Debug, Default)]
struct Unclaimed {
    why: Vec<String>,
    /// What the API said last.
    cause: Option<Error>,
}

impl Unclaimed {
    /// As one message: several are in a list.
    fn text(&self) -> String {
        match &self.why[..] {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        }
    }

    fn into_error(self) -> Error {
        let text = self.text();
        self.cause.unwrap_or_else(|| Error::Transport(std::io::Error::other(text)))
    }
}

/// One look at a StatefulSet.
struct Look<'a> {
    context: &'a Context,
    set: &'a Arc<StatefulSet>,
    history: &'a History,
    current: &'a str,
}

impl Look<'_> {
    fn namespace(&self) -> &str {
        self.set.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Name and template of a revision.
    fn template(&self, revision: Revision) -> (String, PodTemplateSpec) {
        let wanted = match revision {
            Revision::Update => history::name(&self.history.update),
            Revision::Current => self.current,
        };
        let kept = self.history.all.iter().find(|r| history::name(r) == wanted).and_then(|r| history::template_of(r));
        let ours = || self.set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        (wanted.to_owned(), kept.unwrap_or_else(ours))
    }

    async fn act(&self, shape: &Shape, pods: &Pods, steps: Vec<Step>) -> Result<(), Error> {
        for (ordinal, pod) in pods.iter().filter(|(o, _)| !shape.holds(**o)) {
            self.own_claims(*ordinal, pod, true).await?;
        }
        for step in steps {
            match step {
                Step::Create(ordinal, revision) => self.create(ordinal, revision).await?,
                Step::Check(ordinal) => {
                    if let Some(pod) = pods.get(&ordinal) {
                        self.check(ordinal, pod).await?;
                    }
                }
                Step::Delete(ordinal) | Step::Restart(ordinal) => {
                    if let Some(pod) = pods.get(&ordinal) {
                        self.delete(pod).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells how an action on a pod of the set went.
    fn tell(&self, verb: &str, pod: &str, result: &Result<(), Error>) {
        match result {
            Ok(()) => self.tell_done(verb, pod),
            Err(error) if error.is_namespace_terminating() => {}
            Err(error) => self.tell_failed(verb, pod, &error.to_string()),
        }
    }

    fn tell_done(&self, verb: &str, pod: &str) {
        let message = format!("{verb} Pod {pod} in StatefulSet {} successful", identity::name_of(self.set));
        let reason = format!("Successful{}", titled(verb));
        self.context.recorder(COMPONENT).normal(&**self.set, &reason, message);
    }

    fn tell_failed(&self, verb: &str, pod: &str, why: &str) {
        let message = format!("{verb} Pod {pod} in StatefulSet {} failed error: {why}", identity::name_of(self.set));
        let reason = format!("Failed{}", titled(verb));
        self.context.recorder(COMPONENT).warning(&**self.set, &reason, message);
    }

    /// Tells how making a claim of a pod went.
    fn tell_claim(&self, claim: &str, pod: &str, result: &Result<(), Error>) {
        let (set, recorder) = (identity::name_of(self.set), self.context.recorder(COMPONENT));
        match result {
            Ok(()) => {
                let message = format!("create Claim {claim} Pod {pod} in StatefulSet {set} success");
                recorder.normal(&**self.set, "SuccessfulCreate", message);
            }
            Err(error) if error.is_namespace_terminating() => {}
            Err(error) => {
                let message = format!("create Claim {claim} for Pod {pod} in StatefulSet {set} failed error: {error}");
                recorder.warning(&**self.set, "FailedCreate", message);
            }
        }
    }

    /// Makes the claims of an ordinal that are missing; says why that fails.
    async fn claim(&self, ordinal: i32) -> Result<(), Unclaimed> {
        let api = self.context.client.namespaced::<PersistentVolumeClaim>(self.namespace());
        let mut failed = Unclaimed::default();
        for claim in identity::claims(self.set, ordinal) {
            let name = claim.metadata.name.clone().unwrap_or_default();
            if let Some(there) = self.context.cache.claims.named(self.namespace(), &name) {
                if there.metadata.deletion_timestamp.is_some() {
                    failed.why.push(format!("pvc {name} is being deleted"));
                }
                continue;
            }
            let pod = identity::pod_name(self.set, ordinal);
            match api.create(&claim).await {
                Ok(written) => {
                    self.tell_claim(&name, &pod, &Ok(()));
                    self.context.settle(&self.context.cache.claims, &written).await;
                }
                Err(error) => {
                    failed.why.push(format!("failed to create PVC {name}: {error}"));
                    let already = error.is_already_exists();
                    let result = Err(error);
                    if !already {
                        self.tell_claim(&name, &pod, &result);
                    }
                    failed.cause = result.err();
                }
            }
        }
        if failed.why.is_empty() { Ok(()) } else { Err(failed) }
    }

    async fn create(&self, ordinal: i32, revision: Revision) -> Result<(), Error> {
        let what = identity::pod_name(self.set, ordinal);
        if self.has_stale_claim(ordinal) {
            return Ok(());
        }
        if let Err(unclaimed) = self.claim(ordinal).await {
            if !unclaimed.cause.as_ref().is_some_and(Error::is_namespace_terminating) {
                self.tell_failed("create", &what, &unclaimed.text());
            }
            return Err(unclaimed.into_error());
        }
        let (name, template) = self.template(revision);
        let pod = identity::pod(self.set, &template, ordinal, &name);
        let created = self.context.client.namespaced::<core::Pod>(self.namespace()).create(&pod).await;
        let result = match created {
            Ok(written) => {
                let version = written.metadata.resource_version.unwrap_or_default();
                self.context.settle_at(&self.context.cache.pods, &version).await;
                Ok(())
            }
            // One that is not ours has the name, or the cache is behind: the next look tells.
            Err(error) if error.is_already_exists() => return Err(error),
            Err(error) => Err(error),
        };
        self.tell("create", &what, &result);
        result
    }

    /// Whether a claim of the ordinal goes with a pod that was there before: another one has to wait for its end.
    fn has_stale_claim(&self, ordinal: i32) -> bool {
        let pod = identity::pod_name(self.set, ordinal);
        let live = self.context.cache.pods.named(self.namespace(), &pod);
        let live = live.as_ref().and_then(|p| p.metadata.uid.as_deref());
        let names = identity::claim_names(self.set, ordinal);
        let claims = names.iter().filter_map(|name| self.context.cache.claims.named(self.namespace(), name));
        claims.into_iter().any(|claim| identity::goes_with_another(&claim, &pod, live))
    }

    async fn delete(&self, pod: &Arc<Pod>) -> Result<(), Error> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let options = json!({"preconditions": {"uid": pod.metadata.uid}});
        let result = match self.context.client.namespaced::<Pod>(self.namespace()).delete(name, &options).await {
            Err(error) if error.is_not_found() || error.is_conflict() => return Ok(()),
            result => result,
        };
        self.tell("delete", name, &result);
        if result.is_ok() {
            self.context.settle_gone(&self.context.cache.pods, &**pod).await;
        }
        result
    }

    /// Corrects what somebody changed.
    async fn check(&self, ordinal: i32, pod: &Arc<Pod>) -> Result<(), Error> {
        if pods::phase(pod) == "Pending" {
            self.claim(ordinal).await.map_err(Unclaimed::into_error)?;
        }
        self.own_claims(ordinal, pod, false).await?;
        let mut changed = pod.metadata.whole();
        if !identity::identify(self.set, &mut changed, ordinal) {
            return Ok(());
        }
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let api = self.context.client.namespaced::<core::Pod>(self.namespace());
        // The cache does not have all of a pod.
        let live = api.get_opt(name).await?.filter(|live| live.metadata.uid == pod.metadata.uid);
        let Some(mut live) = live else { return Ok(()) };
        if !identity::identify(self.set, &mut live.metadata, ordinal) {
            return Ok(());
        }
        let result = match api.replace(name, &live).await {
            Ok(written) => {
                let version = written.metadata.resource_version.unwrap_or_default();
                self.context.settle_at(&self.context.cache.pods, &version).await;
                Ok(())
            }
            // It changed meanwhile: the next look corrects what it is then.
            Err(error) if error.is_conflict() => return Err(error),
            Err(error) => Err(error),
        };
        self.tell("update", name, &result);
        result
    }

    async fn own_claims(&self, ordinal: i32, pod: &Pod, condemned: bool) -> Result<(), Error> {
        let api = self.context.client.namespaced::<PersistentVolumeClaim>(self.namespace());
        for name in identity::claim_names(self.set, ordinal) {
            let Some(claim) = self.context.cache.claims.named(self.namespace(), &name) else { continue };
            let Some(owners) = identity::claim_owners(self.set, pod, condemned, &claim) else { continue };
            let patch = json!({"metadata": {"uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version,
                "ownerReferences": owners}});
            let written = api.patch(&name, None, PatchType::Merge, &patch).await?;
            self.context.settle(&self.context.cache.claims, &written).await;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_in_one_message() {
        for (why, expected) in
            [(vec!["pvc a is being deleted"], "pvc a is being deleted"), (vec!["one", "two"], "[one, two]")]
        {
            let unclaimed = Unclaimed { why: why.into_iter().map(str::to_owned).collect(), cause: None };
            assert_eq!(unclaimed.text(), expected);
        }
        assert_eq!(titled("create"), "Create");
    }
}
