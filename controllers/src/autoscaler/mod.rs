//! HorizontalPodAutoscalers: as many replicas as metrics ask for.

mod metrics;
mod plan;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::Method;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition,
    HorizontalPodAutoscalerSpec, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus,
    PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::discovery;
use keelson_client::{Error, Key};
use keelson_machinery::quantity::Quantity;
use keelson_machinery::selector::LabelSelector;
use parking_lot::Mutex;
use serde_json::Value;

use crate::context::Context;
use crate::pods;
use crate::runtime::{Keys, Outcome, watch_own};
use plan::{Memory, Tolerance, Values};

const COMPONENT: &str = "horizontal-pod-autoscaler";
/// How often each is looked at.
const PERIOD: Duration = Duration::from_secs(15);
/// Autoscalers that are remembered.
const REMEMBERED: usize = 65_536;

/// What autoscalers remember, by uid. It is lost with the leader: what follows is a slower fall, not a faster one.
static MEMORIES: LazyLock<Mutex<HashMap<String, Memory>>> = LazyLock::new(Mutex::default);

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.autoscalers, queue);
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

/// What a metric asks for.
struct Asked {
    size: i32,
    what: String,
    status: MetricStatus,
}

/// Why a metric asks for nothing: reason and message.
type Refusal = (&'static str, String);

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
        self.changed.status.get_or_insert_default().current_replicas = Some(target.present());
        let minimum = spec.min_replicas.unwrap_or(1);
        let (wanted, why) = if current == 0 && minimum != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            self.set("ScalingActive", false, "ScalingDisabled", message);
            self.changed.status.get_or_insert_default().desired_replicas = 0;
            return Ok(());
        } else if current > spec.max_replicas {
            (spec.max_replicas, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < minimum {
            (minimum, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            match self.ask(scaler, &target).await {
                Some(found) => found,
                None => {
                    // The size stays as it is.
                    self.changed.status.get_or_insert_default().desired_replicas = current;
                    return Ok(());
                }
            }
        };
        self.resize(scaler, &target, wanted, why).await
    }

    /// The size that the metrics ask for, within limits.
    async fn ask(&mut self, scaler: &HorizontalPodAutoscaler, target: &Target) -> Option<(i32, String)> {
        let (spec, current) = (self.spec(), target.wanted());
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
                Err(refusal) => refusals.push(refusal),
            }
        }
        self.changed.status.get_or_insert_default().current_metrics = (!statuses.is_empty()).then_some(statuses);
        let recorder = self.context.recorder(COMPONENT);
        let blind = best.is_none() || (!refusals.is_empty() && best.as_ref().is_some_and(|b| b.size < current));
        if let Some((reason, why)) = refusals.first().filter(|_| blind) {
            // Nothing is taken away while something is not known.
            recorder.warning(scaler, reason, why.clone());
            let message = format!("the HPA was unable to compute the replica count: {why}");
            recorder.warning(scaler, "FailedComputeMetricsReplicas", format!("invalid metrics: {why}"));
            self.set("ScalingActive", false, reason, message);
            return None;
        }
        let best = best?;
        let message = format!("the HPA was able to successfully calculate a replica count from {}", best.what);
        self.set("ScalingActive", true, "ValidMetricFound", message);
        let limited = self.remember(|memory, now| memory.limit(&spec, current, best.size, now));
        self.set("AbleToScale", true, limited.able.0, limited.able.1);
        self.set("ScalingLimited", limited.limited.0, limited.limited.1.0, limited.limited.1.1);
        let why = if limited.size > current {
            format!("{} above target", best.what)
        } else {
            "All metrics below target".to_owned()
        };
        Some((limited.size, why))
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

    fn pods(&self, target: &Target) -> Vec<Arc<Pod>> {
        let Ok(selector) = LabelSelector::parse(&target.selector) else { return Vec::new() };
        let mut pods = self.context.cache.pods.in_namespace(&self.namespace());
        pods.retain(|p| selector.matches(|key| p.metadata.labels.as_ref()?.get(key).map(String::as_str)));
        pods
    }

    /// What one metric asks for.
    async fn measure(&self, metric: &MetricSpec, target: &Target) -> Result<Asked, Refusal> {
        let (client, namespace) = (&self.context.client, self.namespace());
        if let Some(source) = &metric.resource {
            let values = metrics::resource(client, &namespace, &target.selector, &source.name, None).await;
            return self.resource(metric, target, values, &source.name, None, &source.target);
        }
        if let Some(source) = &metric.container_resource {
            let only = Some(source.container.as_str());
            let values = metrics::resource(client, &namespace, &target.selector, &source.name, only).await;
            return self.resource(metric, target, values, &source.name, only, &source.target);
        }
        if let Some(source) = &metric.pods {
            let reason = "FailedGetPodsMetric";
            let mut values = metrics::pods(client, &namespace, &target.selector, &source.metric)
                .await
                .map_err(|e| (reason, format!("failed to get pods metric value: {e}")))?;
            let groups = plan::group(&self.pods(target), &mut values, false, self.now.0);
            let wanted = amount(source.target.average_value.as_ref());
            let tolerance = Tolerance::of(&self.spec());
            let (size, _, average) = plan::by_pods(target.wanted(), &values, &groups, None, wanted, tolerance)
                .map_err(|e| (reason, format!("failed to get pods metric value: {e}")))?;
            let current = MetricValueStatus { average_value: Some(text(average)), ..MetricValueStatus::default() };
            let status = MetricStatus {
                type_: metric.type_.clone(),
                pods: Some(PodsMetricStatus { metric: source.metric.clone(), current }),
                ..MetricStatus::default()
            };
            return Ok(Asked { size, what: format!("pods metric {}", source.metric.name), status });
        }
        self.outside(metric, target).await
    }

    fn resource(
        &self,
        metric: &MetricSpec,
        target: &Target,
        values: Result<Values, String>,
        name: &str,
        container: Option<&str>,
        goal: &MetricTarget,
    ) -> Result<Asked, Refusal> {
        let reason = if container.is_some() { "FailedGetContainerResourceMetric" } else { "FailedGetResourceMetric" };
        let utilization = goal.average_utilization.is_some();
        let what = if utilization { "utilization" } else { "usage" };
        let refuse = |e: String| (reason, format!("failed to get {name} {what}: {e}"));
        let mut values = values.map_err(refuse)?;
        let pods = self.pods(target);
        let groups = plan::group(&pods, &mut values, name == "cpu", self.now.0);
        let requests = if utilization { Some(requests(&pods, name, container).map_err(refuse)?) } else { None };
        let wanted = goal.average_utilization.map_or_else(|| amount(goal.average_value.as_ref()), i64::from);
        let tolerance = Tolerance::of(&self.spec());
        let (size, percent, average) =
            plan::by_pods(target.wanted(), &values, &groups, requests.as_ref(), wanted, tolerance).map_err(refuse)?;
        let current = MetricValueStatus {
            average_utilization: utilization.then_some(percent as i32),
            average_value: Some(text(average)),
            value: None,
        };
        let mut status = MetricStatus { type_: metric.type_.clone(), ..MetricStatus::default() };
        match container {
            Some(container) => {
                status.container_resource =
                    Some(ContainerResourceMetricStatus { container: container.into(), name: name.into(), current });
            }
            None => status.resource = Some(ResourceMetricStatus { name: name.into(), current }),
        }
        let of_what = if utilization { "resource utilization (percentage of request)" } else { "resource" };
        Ok(Asked { size, what: format!("{name} {of_what}"), status })
    }

    /// Metrics of other objects and of things outside.
    async fn outside(&self, metric: &MetricSpec, target: &Target) -> Result<Asked, Refusal> {
        let (client, namespace) = (&self.context.client, self.namespace());
        let (usage, goal, what, mut status) = if let Some(source) = &metric.object {
            let refuse = |e: String| ("FailedGetObjectMetric", format!("failed to get object metric value: {e}"));
            let described = &source.described_object;
            let version = described.api_version.clone().unwrap_or_default();
            let (group, _) = version.rsplit_once('/').unwrap_or(("", &version));
            let (resources, _) = discovery::resources(client).await.map_err(|e| refuse(e.to_string()))?;
            let resource = resources.iter().find(|r| r.group == group && r.kind == described.kind);
            let resource = resource.map(|r| r.qualified().trim_end_matches('.').to_owned());
            let resource = resource.ok_or_else(|| refuse(format!("no kind {} is known", described.kind)))?;
            let usage =
                metrics::object(client, &namespace, &resource, described, &source.metric).await.map_err(refuse)?;
            let object = ObjectMetricStatus {
                described_object: described.clone(),
                metric: source.metric.clone(),
                current: MetricValueStatus::default(),
            };
            let status = MetricStatus { object: Some(object), ..MetricStatus::default() };
            (usage, &source.target, format!("{} metric {}", described.kind, source.metric.name), status)
        } else if let Some(source) = &metric.external {
            let refuse = |e: String| ("FailedGetExternalMetric", format!("failed to get external metric: {e}"));
            let usage = metrics::external(client, &namespace, &source.metric).await.map_err(refuse)?;
            let external =
                ExternalMetricStatus { metric: source.metric.clone(), current: MetricValueStatus::default() };
            let status = MetricStatus { external: Some(external), ..MetricStatus::default() };
            (usage, &source.target, format!("external metric {}", source.metric.name), status)
        } else {
            return Err(("InvalidMetricSourceType", format!("unknown metric source type {:?}", metric.type_)));
        };
        let each = goal.average_value.is_some();
        let wanted = amount(goal.average_value.as_ref().or(goal.value.as_ref()));
        let ready = self.pods(target).iter().filter(|p| pods::is_ready(p)).count();
        let tolerance = Tolerance::of(&self.spec());
        let size = plan::by_value(target.wanted(), ready, usage, wanted, each, tolerance);
        let current = if each {
            let average = usage / i64::from(target.present().max(1));
            MetricValueStatus { average_value: Some(text(average)), ..MetricValueStatus::default() }
        } else {
            MetricValueStatus { value: Some(text(usage)), ..MetricValueStatus::default() }
        };
        status.type_ = metric.type_.clone();
        if let Some(object) = &mut status.object {
            object.current = current.clone();
        }
        if let Some(external) = &mut status.external {
            external.current = current;
        }
        Ok(Asked { size, what, status })
    }
}

fn amount(quantity: Option<&Text>) -> i64 {
    quantity.and_then(|q| Quantity::parse(&q.0).ok()).map_or(0, |q| q.millis())
}

fn text(millis: i64) -> Text {
    Text(Quantity::from_millis(millis).to_string())
}

/// What the pods request of a resource, in thousandths: all containers that go on running, or one.
fn requests(pods: &[Arc<Pod>], name: &str, container: Option<&str>) -> Result<Values, String> {
    let mut all = BTreeMap::new();
    for pod in pods {
        let pod_name = pod.metadata.name.clone().unwrap_or_default();
        let spec = pod.spec.as_ref();
        let sidecars = spec.iter().flat_map(|s| s.init_containers.iter().flatten());
        let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let containers = spec.iter().flat_map(|s| &s.containers).chain(sidecars);
        let chosen: Vec<&Container> = containers.filter(|c| container.is_none_or(|n| c.name == n)).collect();
        if chosen.is_empty() && container.is_some() {
            let container = container.unwrap_or_default();
            return Err(format!("container {container} not found in Pod {pod_name}"));
        }
        let mut total = 0;
        for container in chosen {
            let request = container.resources.as_ref().and_then(|r| r.requests.as_ref()?.get(name));
            let Some(request) = request else {
                return Err(format!("missing request for {name} in container {} of Pod {pod_name}", container.name));
            };
            total += amount(Some(request));
        }
        all.insert(pod_name, total);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_of_pods() {
        let pod: Arc<Pod> = Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
                "containers": [{"name": "a", "resources": {"requests": {"cpu": "250m"}}}, {"name": "b", "resources": {"requests": {"cpu": 1}}}],
                "initContainers": [{"name": "once"}, {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1m"}}}]}}))
            .unwrap(),
        );
        let pods = [pod];
        let of = |name: &str, container| requests(&pods, name, container).map(|r| r["p"]);
        assert_eq!(of("cpu", None), Ok(1251));
        assert_eq!(of("cpu", Some("a")), Ok(250));
        assert_eq!(of("memory", None), Err("missing request for memory in container a of Pod p".into()));
        assert_eq!(of("cpu", Some("x")), Err("container x not found in Pod p".into()));
    }
}
