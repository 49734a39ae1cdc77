//! Asks the metrics APIs.

use k8s_openapi::api::autoscaling::v2::{CrossVersionObjectReference, MetricIdentifier};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use keelson_client::{Client, Error};
use keelson_machinery::quantity::Quantity;
use serde_json::Value;

use super::plan::{Moments, Values};

const JSON: &str = "application/json";

/// A selector as the query has it.
pub fn text_of(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return String::new() };
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let expressions = selector.match_expressions.iter().flatten().map(|e| {
        let values = e.values.as_deref().unwrap_or_default().join(",");
        match e.operator.as_str() {
            "In" => format!("{} in ({values})", e.key),
            "NotIn" => format!("{} notin ({values})", e.key),
            "Exists" => e.key.clone(),
            _ => format!("!{}", e.key),
        }
    });
    labels.chain(expressions).collect::<Vec<_>>().join(",")
}

fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

async fn read(client: &Client, path: &str, what: &str) -> Result<Value, String> {
    client.read::<Value>(path, JSON).await.map_err(|error| match &error {
        // The path says nothing to people; what was asked for does.
        Error::Status(s) if s.code == Some(404) && s.details.as_ref().is_none_or(|d| d.name.is_none()) => {
            format!("the server could not find the requested resource ({what})")
        }
        // The server of the metrics cannot be reached: what says so is no Status.
        Error::Status(s) if s.code == Some(503) && s.reason.is_none() => {
            format!("the server is currently unable to handle the request ({what})")
        }
        _ => error.to_string(),
    })
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

fn millis(value: &Value) -> Option<i64> {
    let text = value.as_str().map(str::to_owned).or_else(|| value.as_i64().map(|n| n.to_string()))?;
    Quantity::parse(&text).ok().map(|q| q.millis())
}

/// How a window of time is written: as Go writes durations.
fn window(text: &str) -> Option<SignedDuration> {
    text.parse::<SignedDuration>().ok()
}

/// From when on a sample was measured.
fn since(pod: &Value) -> Option<Timestamp> {
    let at: Timestamp = pod["timestamp"].as_str()?.parse().ok()?;
    at.checked_sub(pod["window"].as_str().and_then(window).unwrap_or_default()).ok()
}

/// What the pods use of a resource, all their containers or one, and since when that was measured.
pub async fn resource(
    client: &Client,
    namespace: &str,
    selector: &str,
    name: &str,
    container: Option<&str>,
) -> Result<(Values, Moments), String> {
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={}", encode(selector));
    let list = read(client, &path, "get pods.metrics.k8s.io").await.map_err(|e| {
        format!("unable to get metrics for resource {name}: unable to fetch metrics from resource metrics API: {e}")
    })?;
    if items(&list).is_empty() {
        return Err(format!(
            "unable to get metrics for resource {name}: no metrics returned from resource metrics API"
        ));
    }
    let (mut values, mut moments) = (Values::new(), Moments::new());
    for pod in items(&list) {
        let containers = pod["containers"].as_array().into_iter().flatten();
        let chosen = containers.filter(|c| container.is_none_or(|wanted| c["name"] == wanted));
        let used: Vec<Option<i64>> = chosen.map(|c| millis(&c["usage"][name])).collect();
        let total = (!used.is_empty()).then(|| used.into_iter().sum::<Option<i64>>()).flatten();
        if let (Some(total), Some(pod)) = (total, pod["metadata"]["name"].as_str()) {
            values.insert(pod.to_owned(), total);
        }
        if let (Some(since), Some(pod)) = (since(pod), pod["metadata"]["name"].as_str()) {
            moments.insert(pod.to_owned(), since);
        }
    }
    Ok((values, moments))
}

/// A metric that each pod has.
pub async fn pods(
    client: &Client,
    namespace: &str,
    selector: &str,
    metric: &MetricIdentifier,
) -> Result<Values, String> {
    let path = format!(
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/pods/*/{}?labelSelector={}&metricLabelSelector={}",
        metric.name,
        encode(selector),
        encode(&text_of(metric.selector.as_ref()))
    );
    let what = format!("get pods.custom.metrics.k8s.io *: {}", metric.name);
    let list = read(client, &path, &what).await.map_err(|e| {
        format!("unable to get metric {}: unable to fetch metrics from custom metrics API: {e}", metric.name)
    })?;
    let value = |item: &Value| Some((item["describedObject"]["name"].as_str()?.to_owned(), millis(&item["value"])?));
    let values: Values = items(&list).iter().filter_map(value).collect();
    if values.is_empty() {
        return Err(format!("unable to get metric {}: no metrics returned from custom metrics API", metric.name));
    }
    Ok(values)
}

/// A metric of one object; `resource` is its kind's path segment with its group.
pub async fn object(
    client: &Client,
    namespace: &str,
    resource: &str,
    described: &CrossVersionObjectReference,
    metric: &MetricIdentifier,
) -> Result<i64, String> {
    let path = format!(
        "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/{resource}/{}/{}?metricLabelSelector={}",
        described.name,
        metric.name,
        encode(&text_of(metric.selector.as_ref()))
    );
    let what = format!("get {resource}.custom.metrics.k8s.io {}", described.name);
    // The order of the words is upstream's.
    let refuse = |why: String| {
        format!("unable to get metric {}: {} on {namespace} {}/{why}", metric.name, described.kind, described.name)
    };
    let list = read(client, &path, &what)
        .await
        .map_err(|e| refuse(format!("unable to fetch metrics from custom metrics API: {e}")))?;
    let found = items(&list).first().and_then(|item| millis(&item["value"]));
    found.ok_or_else(|| refuse("no value returned from custom metrics API".into()))
}

/// A metric of something outside: the sum of its series.
pub async fn external(client: &Client, namespace: &str, metric: &MetricIdentifier) -> Result<i64, String> {
    let path = format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{}?labelSelector={}",
        metric.name,
        encode(&text_of(metric.selector.as_ref()))
    );
    let what = format!("get {}.external.metrics.k8s.io", metric.name);
    let refuse = |why: &str| {
        let selector = crate::owners::shown(metric.selector.as_ref());
        format!("unable to get external metric {namespace}/{}/{selector}: {why}", metric.name)
    };
    let list = read(client, &path, &what)
        .await
        .map_err(|e| refuse(&format!("unable to fetch metrics from external metrics API: {e}")))?;
    if items(&list).is_empty() {
        return Err(refuse("no metrics returned from external metrics API"));
    }
    Ok(items(&list).iter().filter_map(|item| millis(&item["value"])).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_become_text() {
        let selector = |value: Value| -> LabelSelector { serde_json::from_value(value).unwrap() };
        let given = selector(json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}]}));
        assert_eq!(text_of(Some(&given)), "a=b,c in (d,e),!f");
        assert_eq!(text_of(None), "");
        assert_eq!(encode("a in (b,c)"), "a%20in%20%28b%2Cc%29");
    }

    #[test]
    fn samples_have_a_beginning() {
        for (sample, expected) in [
            (json!({"timestamp": "2026-01-01T00:01:00Z", "window": "30s"}), Some("2026-01-01T00:00:30Z")),
            (json!({"timestamp": "2026-01-01T00:01:00Z", "window": "1m0.5s"}), Some("2025-12-31T23:59:59.5Z")),
            (json!({"timestamp": "2026-01-01T00:01:00Z"}), Some("2026-01-01T00:01:00Z")),
            (json!({"window": "30s"}), None),
        ] {
            assert_eq!(since(&sample), expected.map(|at| at.parse().unwrap()), "{sample}");
        }
    }
}
