//! Measures what one metric asks for: fetches values, and words results and refusals as upstream does.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
    ObjectMetricSource, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use keelson_client::discovery;
use keelson_machinery::quantity::Quantity;
use keelson_machinery::selector::LabelSelector;

use super::metrics;
use super::plan::{self, Moments, Tolerance, Values};
use super::{Look, Target};
use crate::kept::Pod;
use crate::owners::{Labelled, shown};
use crate::pods;

const NO_PODS: &str = "no pods returned by selector while calculating replica count";

/// What a metric asks for.
pub struct Asked {
    pub size: i32,
    pub what: String,
    pub status: MetricStatus,
}

/// Why a metric asks for nothing.
#[derive(Debug)]
pub struct Refusal {
    pub reason: &'static str,
    /// What conditions and events say.
    pub why: String,
    /// What stands before it where all metrics are summed up.
    pub context: String,
}

impl Look<'_> {
    pub(super) fn pods(&self, target: &Target) -> Vec<Arc<Pod>> {
        let Ok(selector) = LabelSelector::parse(&target.selector) else { return Vec::new() };
        let mut pods = self.context.cache.pods.in_namespace(&self.namespace());
        pods.retain(|p| selector.matches(|key| p.metadata.label(key)));
        pods
    }

    /// What one metric asks for.
    pub(super) async fn measure(&self, metric: &MetricSpec, target: &Target) -> Result<Asked, Refusal> {
        let (client, namespace) = (&self.context.client, self.namespace());
        let mut asked = if let Some(source) = &metric.resource {
            let values = metrics::resource(client, &namespace, &target.selector, &source.name, None).await;
            self.resource(target, values, &source.name, None, &source.target)?
        } else if let Some(source) = &metric.container_resource {
            let only = Some(source.container.as_str());
            let values = metrics::resource(client, &namespace, &target.selector, &source.name, only).await;
            self.resource(target, values, &source.name, only, &source.target)?
        } else if let Some(source) = &metric.pods {
            let context = "failed to get pods metric value: ".to_owned();
            let refuse = |why| Refusal { reason: "FailedGetPodsMetric", why, context: context.clone() };
            let mut values =
                metrics::pods(client, &namespace, &target.selector, &source.metric).await.map_err(refuse)?;
            let pods = self.pods(target);
            if pods.is_empty() {
                return Err(refuse(NO_PODS.into()));
            }
            let groups = plan::group(&pods, &mut values, None, self.now.0);
            let wanted = amount(source.target.average_value.as_ref());
            let tolerance = Tolerance::of(&self.spec());
            let (size, _, average) =
                plan::by_pods(target.wanted(), &values, &groups, None, wanted, tolerance).map_err(refuse)?;
            let pods = PodsMetricStatus { metric: source.metric.clone(), current: averaged(average) };
            let status = MetricStatus { pods: Some(pods), ..MetricStatus::default() };
            Asked { size, what: format!("pods metric {}", source.metric.name), status }
        } else if let Some(source) = &metric.object {
            self.object(target, source).await?
        } else {
            self.external(target, metric).await?
        };
        asked.status.type_.clone_from(&metric.type_);
        Ok(asked)
    }

    fn resource(
        &self,
        target: &Target,
        values: Result<(Values, Moments), String>,
        name: &str,
        container: Option<&str>,
        goal: &MetricTarget,
    ) -> Result<Asked, Refusal> {
        let utilization = goal.average_utilization.is_some();
        let what = if utilization { "utilization" } else { "usage" };
        let (reason, kind) = match container {
            Some(_) => ("FailedGetContainerResourceMetric", "container"),
            None => ("FailedGetResourceMetric", "resource"),
        };
        let refuse = |why: String| Refusal {
            reason,
            why: format!("failed to get {name} {what}: {why}"),
            context: format!("failed to get {name} {kind} metric value: "),
        };
        let (mut values, moments) = values.map_err(refuse)?;
        let pods = self.pods(target);
        if pods.is_empty() {
            return Err(refuse(NO_PODS.into()));
        }
        let groups = plan::group(&pods, &mut values, (name == "cpu").then_some(&moments), self.now.0);
        let requests = if utilization { Some(requests(&pods, name, container).map_err(refuse)?) } else { None };
        let wanted = goal.average_utilization.map_or_else(|| amount(goal.average_value.as_ref()), i64::from);
        let tolerance = Tolerance::of(&self.spec());
        let (size, percent, average) =
            plan::by_pods(target.wanted(), &values, &groups, requests.as_ref(), wanted, tolerance).map_err(refuse)?;
        let current =
            MetricValueStatus { average_utilization: utilization.then_some(percent as i32), ..averaged(average) };
        let mut status = MetricStatus::default();
        let of_what = if utilization { " utilization (percentage of request)" } else { "" };
        let what = match container {
            Some(container) => {
                status.container_resource =
                    Some(ContainerResourceMetricStatus { container: container.into(), name: name.into(), current });
                format!("{name} container resource{of_what}")
            }
            None => {
                status.resource = Some(ResourceMetricStatus { name: name.into(), current });
                format!("{name} resource{of_what}")
            }
        };
        Ok(Asked { size, what, status })
    }

    /// A metric of another object.
    async fn object(&self, target: &Target, source: &ObjectMetricSource) -> Result<Asked, Refusal> {
        let (client, described, name) = (&self.context.client, &source.described_object, &source.metric.name);
        let average = source.target.average_value.as_ref();
        let context = match average {
            Some(_) => format!("failed to get object metric value: failed to get {name} object metric: "),
            None => "failed to get object metric value: ".to_owned(),
        };
        let refuse = |why: String| Refusal { reason: "FailedGetObjectMetric", why, context: context.clone() };
        let version = described.api_version.clone().unwrap_or_default();
        let (group, _) = version.rsplit_once('/').unwrap_or(("", &version));
        let (resources, _) = discovery::resources(client).await.map_err(|e| refuse(e.to_string()))?;
        let resource = resources.iter().find(|r| r.group == group && r.kind == described.kind);
        let resource = resource
            .map(|r| r.qualified().trim_end_matches('.').to_owned())
            .ok_or_else(|| refuse(format!("no matches for kind {:?} in group {group:?}", described.kind)))?;
        let usage =
            metrics::object(client, &self.namespace(), &resource, described, &source.metric).await.map_err(refuse)?;
        let (size, current) = self.of_value(target, usage, &source.target);
        let what = match average {
            // Upstream calls it so.
            Some(_) => format!("external metric {name}({})", shown(source.metric.selector.as_ref())),
            None => format!("{} metric {name}", described.kind),
        };
        let object = ObjectMetricStatus { described_object: described.clone(), metric: source.metric.clone(), current };
        Ok(Asked { size, what, status: MetricStatus { object: Some(object), ..MetricStatus::default() } })
    }

    /// A metric of something outside the cluster.
    async fn external(&self, target: &Target, metric: &MetricSpec) -> Result<Asked, Refusal> {
        let Some(source) = &metric.external else {
            let why = format!("unknown metric source type {:?}", metric.type_);
            return Err(Refusal { reason: "InvalidMetricSourceType", why, context: String::new() });
        };
        let name = &source.metric.name;
        let refuse = |why: String| Refusal {
            reason: "FailedGetExternalMetric",
            why,
            context: format!("failed to get {name} external metric value: failed to get {name} external metric: "),
        };
        let usage = metrics::external(&self.context.client, &self.namespace(), &source.metric).await.map_err(refuse)?;
        let (size, current) = self.of_value(target, usage, &source.target);
        let what = format!("external metric {name}({})", shown(source.metric.selector.as_ref()));
        let external = ExternalMetricStatus { metric: source.metric.clone(), current };
        Ok(Asked { size, what, status: MetricStatus { external: Some(external), ..MetricStatus::default() } })
    }

    /// The size for one value, as a whole or for each replica, and how the status has it.
    fn of_value(&self, target: &Target, usage: i64, goal: &MetricTarget) -> (i32, MetricValueStatus) {
        let tolerance = Tolerance::of(&self.spec());
        if goal.average_value.is_some() {
            let (size, each) = plan::by_share(target.present(), usage, amount(goal.average_value.as_ref()), tolerance);
            return (size, averaged(each));
        }
        let ready = self.pods(target).iter().filter(|p| pods::phase(p) == "Running" && pods::is_ready(p)).count();
        let size = plan::by_value(target.wanted(), ready, usage, amount(goal.value.as_ref()), tolerance);
        (size, MetricValueStatus { value: Some(text(usage)), ..MetricValueStatus::default() })
    }
}

fn averaged(millis: i64) -> MetricValueStatus {
    MetricValueStatus { average_value: Some(text(millis)), ..MetricValueStatus::default() }
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
        let whole = spec.and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get(name));
        if let Some(whole) = whole.filter(|_| container.is_none()) {
            all.insert(pod_name, amount(Some(whole)));
            continue;
        }
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
        let pod: Arc<Pod> = Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"resources": {"requests": {"cpu": "2"}},
                "containers": [{"name": "a"}]}}))
            .unwrap(),
        );
        assert_eq!(requests(&[pod], "cpu", None).map(|r| r["p"]), Ok(2000));
    }
}
