//! HorizontalPodAutoscalers: as many replicas as metrics ask for.

mod measure;
mod metrics;
mod plan;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::Method;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec, MetricStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::discovery;
use keelson_client::informer::key;
use keelson_client::{Change, Error, Key};
use keelson_machinery::selector::LabelSelector;
use parking_lot::Mutex;
use serde_json::Value;

use crate::context::Context;
use crate::owners::Labelled;
use crate::runtime::{Keys, Outcome, watch_with};
use measure::{Asked, Refusal};
use plan::Memory;

const COMPONENT: &str = "horizontal-pod-autoscaler";
/// How often each is looked at.
const PERIOD: Duration = Duration::from_secs(15);
/// Autoscalers that are remembered.
const REMEMBERED: usize = 65_536;

/// What autoscalers remember, by uid. It is lost with the leader: what follows is a slower fall, not a faster one.
static MEMORIES: LazyLock<Mutex<HashMap<String, Memory>>> = LazyLock::new(Mutex::default);

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_with(&context.cache.autoscalers, queue, |change: &Change<HorizontalPodAutoscaler>| {
        // What is written into the status is no reason for another look: sizes need their time to have an effect.
        let spec =
            |o: &Option<Arc<HorizontalPodAutoscaler>>| o.as_ref().map(|o| (o.metadata.uid.clone(), o.spec.clone()));
        let same = spec(&change.old) == spec(&change.new);
        change.object().filter(|_| !same).map(|o| key(&**o)).into_iter().collect()
    });
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(scaler) = context.cache.autoscalers.get(&key) else { return Ok(None) };
    if scaler.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let mut look = Look { context: &context, changed: (*scaler).clone(), now: context.now() };
    look.step(&scaler).await?;
    if look.changed.status != scaler.status {
        let api = context.client.namespaced::<HorizontalPodAutoscaler>(&key.0);
        let written = api.replace_status(&key.1, &look.changed).await?;
        context.settle(&context.cache.autoscalers, &written).await;
    }
    Ok(Some(PERIOD))
}

/// A target's scale subresource.
struct Target {
    path: String,
    scale: Value,
    selector: String,
}

impl Target {
    fn wanted(&self) -> i32 {
        self.scale["spec"]["replicas"].as_i64().unwrap_or(0) as i32
    }

    fn present(&self) -> i32 {
        self.scale["status"]["replicas"].as_i64().unwrap_or(0) as i32
    }
}

/// One look at an autoscaler.
struct Look<'a> {
    context: &'a Arc<Context>,
    changed: HorizontalPodAutoscaler,
    now: Time,
}

impl Look<'_> {
    fn spec(&self) -> HorizontalPodAutoscalerSpec {
        self.changed.spec.clone()
    }

    fn namespace(&self) -> String {
        self.changed.metadata.namespace.clone().unwrap_or_default()
    }

    fn set(&mut self, kind: &str, holds: bool, reason: &str, message: impl Into<String>) {
        let conditions = self.changed.status.get_or_insert_default().conditions.get_or_insert_default();
        let mut new = HorizontalPodAutoscalerCondition {
            type_: kind.into(),
            status: if holds { "True" } else { "False" }.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_transition_time: Some(self.now.clone()),
        };
        match conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(old) => {
                if old.status == new.status {
                    new.last_transition_time = old.last_transition_time.clone();
                }
                *old = new;
            }
            None => conditions.push(new),
        }
    }

    async fn target(&self) -> Result<Target, Error> {
        let reference = self.spec().scale_target_ref;
        let version = reference.api_version.clone().unwrap_or_default();
        let (group, _) = version.rsplit_once('/').unwrap_or(("", &version));
        let (resources, _) = discovery::resources(&self.context.client).await?;
        let resource = resources.iter().find(|r| r.group == group && r.kind == reference.kind).ok_or_else(|| {
            let why = format!("no matches for kind {:?} in group {group:?}", reference.kind);
            Error::Transport(std::io::Error::other(why))
        })?;
        let path = format!("{}/scale", resource.path(&self.namespace(), &reference.name));
        let scale: Value = self.context.client.read(&path, "application/json").await?;
        let selector = scale["status"]["selector"].as_str().unwrap_or_default().to_owned();
        Ok(Target { path, scale, selector })
    }

    async fn step(&mut self, scaler: &HorizontalPodAutoscaler) -> Result<(), Error> {
        let recorder = self.context.recorder(COMPONENT);
        self.changed.status.get_or_insert_default().observed_generation = scaler.metadata.generation;
        let target = match self.target().await {
            Ok(target) => target,
            Err(error) => {
                recorder.warning(scaler, "FailedGetScale", error.to_string());
                let message = format!("the HPA controller was unable to get the target's current scale: {error}");
                self.set("AbleToScale", false, "FailedGetScale", message);
                return Ok(());
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        self.set("AbleToScale", true, "SucceededGetScale", message);
        let (spec, current) = (self.spec(), target.wanted());
        self.remember(|memory, now| memory.begin(current, now));
        let status = self.changed.status.get_or_insert_default();
        status.current_replicas = Some(current);
        status.current_metrics = None;
        let minimum = spec.min_replicas.unwrap_or(1);
        let (wanted, why) = if current == 0 && minimum != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            self.set("ScalingActive", false, "ScalingDisabled", message);
            (0, String::new())
        } else if current > spec.max_replicas {
            (spec.max_replicas, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < minimum {
            (minimum, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            match self.ask(scaler, &target).await {
                Ok(found) => found,
                Err(why) => {
                    // The size stays as it is.
                    recorder.warning(scaler, "FailedComputeMetricsReplicas", why);
                    return Ok(());
                }
            }
        };
        self.resize(scaler, &target, wanted, why).await
    }

    /// Why the pods of the target cannot be told from those of others: reason and message.
    fn unclear(&self, target: &Target) -> Option<(&'static str, String)> {
        if let Err(error) = LabelSelector::parse(&target.selector) {
            let why = format!("couldn't convert selector into a corresponding internal selector object: {error}");
            return Some(("InvalidSelector", why));
        }
        self.remember(|memory, _| memory.selector.clone_from(&target.selector));
        let pods = self.pods(target);
        let namespace = self.namespace();
        let mut others = Vec::new();
        for scaler in self.context.cache.autoscalers.in_namespace(&namespace) {
            let uid = scaler.metadata.uid.as_deref().unwrap_or_default();
            let selector = MEMORIES.lock().get(uid).map(|m| m.selector.clone()).filter(|s| !s.is_empty());
            let Some(selector) = selector.and_then(|s| LabelSelector::parse(&s).ok()) else { continue };
            if pods.iter().any(|p| selector.matches(|key| p.metadata.label(key))) {
                others.push(format!("{namespace}/{}", scaler.metadata.name.as_deref().unwrap_or_default()));
            }
        }
        others.sort();
        (others.len() > 1).then(|| {
            let others = others.join(" ");
            let why = format!("pods by selector {} are controlled by multiple HPAs: [{others}]", target.selector);
            ("AmbiguousSelector", why)
        })
    }

    /// The size that the metrics ask for, within limits, and why; or why there is none.
    async fn ask(&mut self, scaler: &HorizontalPodAutoscaler, target: &Target) -> Result<(i32, String), String> {
        let (spec, current) = (self.spec(), target.wanted());
        let recorder = self.context.recorder(COMPONENT);
        if target.selector.is_empty() {
            recorder.warning(scaler, "SelectorRequired", "selector is required");
            self.set("ScalingActive", false, "InvalidSelector", "the HPA target's scale is missing a selector");
            return Err("selector is required".into());
        }
        if let Some((reason, why)) = self.unclear(target) {
            recorder.warning(scaler, reason, why.clone());
            self.set("ScalingActive", false, reason, why.clone());
            return Err(why);
        }
        let (mut best, mut statuses, mut refusals): (Option<Asked>, Vec<MetricStatus>, Vec<Refusal>) =
            (None, Vec::new(), Vec::new());
        for metric in spec.metrics.iter().flatten() {
            match self.measure(metric, target).await {
                Ok(asked) => {
                    statuses.push(asked.status.clone());
                    if best.as_ref().is_none_or(|b| asked.size > b.size) {
                        best = Some(asked);
                    }
                }
                Err(refusal) => {
                    recorder.warning(scaler, refusal.reason, refusal.why.clone());
                    statuses.push(MetricStatus::default());
                    refusals.push(refusal);
                }
            }
        }
        let (asked, refused) = (statuses.len(), refusals.len());
        self.changed.status.get_or_insert_default().current_metrics = Some(statuses);
        // Nothing is taken away while something is not known.
        let best = best.filter(|best| refusals.is_empty() || best.size >= current);
        let Some(best) = best else {
            let Some(first) = refusals.into_iter().next() else { return Err("there are no metrics".into()) };
            let message = format!("the HPA was unable to compute the replica count: {}", first.why);
            self.set("ScalingActive", false, first.reason, message);
            return Err(format!(
                "invalid metrics ({refused} invalid out of {asked}), first error is: {}{}",
                first.context, first.why
            ));
        };
        let message = format!("the HPA was able to successfully calculate a replica count from {}", best.what);
        self.set("ScalingActive", true, "ValidMetricFound", message);
        let limited = self.remember(|memory, now| memory.limit(&spec, current, best.size, now));
        self.set("AbleToScale", true, limited.able.0, limited.able.1);
        self.set("ScalingLimited", limited.limited.0, limited.limited.1.0, limited.limited.1.1);
        let why = if best.size > current {
            format!("{} above target", best.what)
        } else {
            "All metrics below target".to_owned()
        };
        Ok((limited.size, why))
    }

    fn remember<T>(&self, work: impl FnOnce(&mut Memory, k8s_openapi::jiff::Timestamp) -> T) -> T {
        let mut memories = MEMORIES.lock();
        if memories.len() >= REMEMBERED {
            memories.clear();
        }
        let uid = self.changed.metadata.uid.clone().unwrap_or_default();
        work(memories.entry(uid).or_default(), self.now.0)
    }

    async fn resize(
        &mut self,
        scaler: &HorizontalPodAutoscaler,
        target: &Target,
        wanted: i32,
        why: String,
    ) -> Result<(), Error> {
        let current = target.wanted();
        if wanted != current {
            let recorder = self.context.recorder(COMPONENT);
            let mut scale = target.scale.clone();
            scale["spec"]["replicas"] = wanted.into();
            let body = serde_json::to_vec(&scale)?.into();
            let sent: Result<serde::de::IgnoredAny, Error> =
                self.context.client.request(Method::PUT, &target.path, Some("application/json"), body).await;
            if let Err(error) = sent {
                let message = format!("New size: {wanted}; reason: {why}; error: {error}");
                recorder.warning(scaler, "FailedRescale", message);
                let message = format!("the HPA controller was unable to update the target scale: {error}");
                self.set("AbleToScale", false, "FailedUpdateScale", message);
                return Ok(());
            }
            let message = format!("the HPA controller was able to update the target scale to {wanted}");
            self.set("AbleToScale", true, "SucceededRescale", message);
            recorder.normal(scaler, "SuccessfulRescale", format!("New size: {wanted}; reason: {why}"));
            self.remember(|memory, now| memory.note(wanted - current, now));
            self.changed.status.get_or_insert_default().last_scale_time = Some(self.now.clone());
        }
        self.changed.status.get_or_insert_default().desired_replicas = wanted;
        Ok(())
    }
}
