//! Which fields are written even when nobody set them: in Kubernetes' own structs these are the fields without `omitempty`
//! and all structs that are not pointers. Required fields are known from the schema; the others are in the tables here.

use serde_json::{Map, Value};

use crate::schema::{Definition, Type, definition};

/// Object fields beyond `metadata`, `spec` and `status` that are always there.
const OBJECTS: &[(&str, &str)] = &[
    ("api.apps.v1.DaemonSetSpec", "updateStrategy"),
    ("api.apps.v1.DeploymentSpec", "strategy"),
    ("api.apps.v1.ReplicaSetSpec", "template"),
    ("api.apps.v1.StatefulSetSpec", "updateStrategy"),
    ("api.authentication.v1.SelfSubjectReviewStatus", "userInfo"),
    ("api.authentication.v1.TokenReviewStatus", "user"),
    ("api.core.v1.Container", "resources"),
    ("api.core.v1.ContainerStatus", "lastState"),
    ("api.core.v1.ContainerStatus", "state"),
    ("api.core.v1.EphemeralContainer", "resources"),
    ("api.core.v1.Event", "source"),
    ("api.core.v1.NodeDaemonEndpoints", "kubeletEndpoint"),
    ("api.core.v1.NodeStatus", "daemonEndpoints"),
    ("api.core.v1.NodeStatus", "nodeInfo"),
    ("api.core.v1.PersistentVolumeClaimSpec", "resources"),
    ("api.core.v1.PodTemplate", "template"),
    ("api.core.v1.ServiceStatus", "loadBalancer"),
    ("api.discovery.v1.Endpoint", "conditions"),
    ("api.events.v1.Event", "deprecatedSource"),
    ("api.events.v1.Event", "regarding"),
    ("api.flowcontrol.v1.LimitedPriorityLevelConfiguration", "limitResponse"),
    ("api.networking.v1.IngressServiceBackend", "port"),
    ("api.networking.v1.IngressStatus", "loadBalancer"),
    ("api.networking.v1.NetworkPolicySpec", "podSelector"),
    ("api.resource.v1.AllocationResult", "devices"),
    ("api.resource.v1.ResourceClaimSpec", "devices"),
    ("apiextensions_apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus", "acceptedNames"),
];

/// Optional scalars, lists and times that are always there.
const OTHERS: &[(&str, &str)] = &[
    ("api.apps.v1.StatefulSetSpec", "serviceName"),
    ("api.apps.v1.StatefulSetStatus", "availableReplicas"),
    ("api.authentication.v1.TokenRequestSpec", "boundObjectRef"),
    ("api.authentication.v1.TokenRequestStatus", "expirationTimestamp"),
    ("api.autoscaling.v2.HorizontalPodAutoscalerStatus", "currentMetrics"),
    ("api.core.v1.ContainerStateRunning", "startedAt"),
    ("api.core.v1.ContainerStateTerminated", "finishedAt"),
    ("api.core.v1.ContainerStateTerminated", "startedAt"),
    ("api.core.v1.Event", "eventTime"),
    ("api.core.v1.Event", "firstTimestamp"),
    ("api.core.v1.Event", "lastTimestamp"),
    ("api.core.v1.Event", "reportingComponent"),
    ("api.core.v1.Event", "reportingInstance"),
    ("api.core.v1.EventSeries", "lastObservedTime"),
    ("api.core.v1.ResourceFieldSelector", "divisor"),
    ("api.discovery.v1.EndpointSlice", "endpoints"),
    ("api.discovery.v1.EndpointSlice", "ports"),
    ("api.events.v1.Event", "deprecatedFirstTimestamp"),
    ("api.events.v1.Event", "deprecatedLastTimestamp"),
    ("api.flowcontrol.v1.ResourcePolicyRule", "namespaces"),
    ("api.policy.v1.PodDisruptionBudgetStatus", "currentHealthy"),
    ("api.policy.v1.PodDisruptionBudgetStatus", "desiredHealthy"),
    ("api.policy.v1.PodDisruptionBudgetStatus", "disruptionsAllowed"),
    ("api.policy.v1.PodDisruptionBudgetStatus", "expectedPods"),
    ("api.rbac.v1.ClusterRole", "rules"),
    ("api.rbac.v1.Role", "rules"),
    ("api.scheduling.v1.PriorityClass", "value"),
    ("api.storage.v1.CSINodeDriver", "topologyKeys"),
    ("api.storage.v1.VolumeError", "time"),
    ("apiextensions_apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus", "conditions"),
];

/// Required fields that are pointers: null when absent.
const POINTERS: &[(&str, &str)] = &[
    ("api.apps.v1.DaemonSetSpec", "selector"),
    ("api.apps.v1.DeploymentSpec", "selector"),
    ("api.apps.v1.ReplicaSetSpec", "selector"),
    ("api.apps.v1.StatefulSetSpec", "selector"),
    ("api.core.v1.ScaleIOPersistentVolumeSource", "secretRef"),
    ("api.core.v1.ScaleIOVolumeSource", "secretRef"),
];

/// Required fields that are left out when absent all the same.
const OMITTED: &[(&str, &str)] = &[
    ("api.admissionregistration.v1.ValidatingAdmissionPolicyBindingSpec", "validationActions"),
    ("api.admissionregistration.v1.MutatingWebhook", "sideEffects"),
    ("api.admissionregistration.v1.ValidatingWebhook", "sideEffects"),
    ("api.admissionregistration.v1.ValidatingAdmissionPolicyBindingSpec", "policyName"),
    ("api.core.v1.ContainerRestartRule", "action"),
    ("api.core.v1.ContainerRestartRuleOnExitCodes", "operator"),
    ("api.core.v1.PodCertificateProjection", "keyType"),
    ("api.core.v1.PodCertificateProjection", "signerName"),
    ("api.networking.v1.HTTPIngressPath", "pathType"),
    ("api.networking.v1.IPAddressSpec", "parentRef"),
    ("api.networking.v1.ParentReference", "name"),
    ("api.networking.v1.ParentReference", "resource"),
];

/// Times of conditions that are always there.
const CONDITION_TIMES: &[&str] = &["lastTransitionTime", "lastUpdateTime", "lastProbeTime", "lastHeartbeatTime"];

/// Whether a field of a type is written even when it is empty.
pub fn is_present(path: &str, field: &str, kind: &Type, required: bool) -> bool {
    let is_in = |table: &[(&str, &str)]| table.contains(&(path, field));
    if is_in(OMITTED) {
        return false;
    }
    let part = matches!(kind, Type::Object(_)) && matches!(field, "metadata" | "spec" | "status");
    let condition = path.ends_with("Condition") && CONDITION_TIMES.contains(&field) && !path.contains(".v2beta");
    required || part || condition || is_in(OBJECTS) || is_in(OTHERS)
}

/// Writes the fields that are always there and are absent.
pub fn fill(definition: &Definition, map: &mut Map<String, Value>) {
    for (name, field) in &definition.fields {
        if field.present && !map.contains_key(*name) && !matches!(*name, "apiVersion" | "kind") {
            map.insert((*name).to_owned(), zero(definition.path, name, &field.kind));
        }
    }
}

/// Lists and maps that are always there are null when they are empty, as the store has them.
pub fn settle(definition: &Definition, map: &mut Map<String, Value>) {
    for (name, value) in map.iter_mut() {
        let Some(field) = definition.fields.get(name.as_str()) else { continue };
        let empty = match value {
            Value::Array(list) => matches!(field.kind, Type::List(_)) && list.is_empty(),
            Value::Object(inner) => matches!(field.kind, Type::Map(_)) && inner.is_empty(),
            _ => false,
        };
        if empty && field.present {
            *value = Value::Null;
        } else {
            settle_value(&field.kind, value);
        }
    }
}

fn settle_value(kind: &Type, value: &mut Value) {
    match (kind, value) {
        (Type::Object(path), Value::Object(map)) => {
            if let Some(definition) = self::definition(path) {
                settle(definition, map);
            }
        }
        (Type::List(item), Value::Array(list)) if matches!(**item, Type::Object(_)) => {
            list.iter_mut().for_each(|value| settle_value(item, value));
        }
        _ => {}
    }
}

/// An object of a type in which nobody set anything.
pub fn empty(definition: &Definition) -> Value {
    let mut map = Map::new();
    fill(definition, &mut map);
    Value::Object(map)
}

/// Whether a required field is a pointer, which has no zero value.
pub fn is_pointer(path: &str, field: &str) -> bool {
    POINTERS.contains(&(path, field))
}

fn zero(path: &str, field: &str, kind: &Type) -> Value {
    if POINTERS.contains(&(path, field)) || OTHERS.contains(&(path, field)) && matches!(kind, Type::Object(_)) {
        return Value::Null;
    }
    match kind {
        Type::String => "".into(),
        Type::Int32 | Type::Int64 | Type::Float64 | Type::IntOrString => 0.into(),
        Type::Bool => false.into(),
        Type::Quantity => "0".into(),
        Type::Object(path) => definition(path).map_or(Value::Null, empty),
        Type::Any | Type::Bytes | Type::Time | Type::MicroTime | Type::List(_) | Type::Map(_) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::of_kind;
    use serde_json::json;

    #[test]
    fn empty_objects_have_what_is_always_written() {
        for (group, version, kind, expected) in [
            ("", "v1", "ConfigMap", json!({"metadata": {}})),
            ("", "v1", "Service", json!({"metadata": {}, "spec": {}, "status": {"loadBalancer": {}}})),
            (
                "apps",
                "v1",
                "Deployment",
                json!({"metadata": {}, "status": {}, "spec": {"selector": null, "strategy": {},
                    "template": {"metadata": {}, "spec": {"containers": null}}}}),
            ),
            ("rbac.authorization.k8s.io", "v1", "Role", json!({"metadata": {}, "rules": null})),
        ] {
            assert_eq!(empty(of_kind(group, version, kind).unwrap()), expected, "{kind}");
        }
    }

    #[test]
    fn a_list_where_anything_may_stand_stays() {
        let class = of_kind("resource.k8s.io", "v1", "DeviceClass").unwrap();
        let mut object = json!({"spec": {"selectors": [], "config": [{"opaque": {"driver": "d", "parameters": []}}]}});
        settle(class, object.as_object_mut().unwrap());
        assert_eq!(object["spec"]["config"][0]["opaque"]["parameters"], json!([]));
    }

    #[test]
    fn tables_name_fields_that_exist() {
        for (path, field) in OBJECTS.iter().chain(OTHERS).chain(POINTERS).chain(OMITTED) {
            assert!(definition(path).is_some_and(|d| d.fields.contains_key(field)), "{path} {field}");
        }
    }
}
