//! From a manifest's text to pods of this node: defaults, checks, and the identity that follows from the content.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;
use keelson_machinery::resources::find;
use keelson_machinery::{defaults, validation};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::mirror::{HASH, SEEN, SOURCE};

/// Where a manifest is.
pub struct Source {
    /// `file` or `http`.
    pub kind: &'static str,
    /// The path or URL.
    pub place: String,
}

/// The pods in a manifest, by uid.
pub fn pods(text: &str, node: &str, source: &Source) -> Result<HashMap<String, Pod>, String> {
    if text.trim().is_empty() {
        return Ok(HashMap::new());
    }
    let document: Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    let list = match document["kind"].as_str() {
        Some("Pod") => vec![document],
        Some("PodList" | "List") => document["items"].as_array().cloned().unwrap_or_default(),
        other => return Err(format!("its kind is {other:?}, not Pod or PodList")),
    };
    list.into_iter().map(|object| pod(object, node, source)).collect()
}

fn pod(mut object: Value, node: &str, source: &Source) -> Result<(String, Pod), String> {
    let name = object["metadata"]["name"].as_str().filter(|n| !n.is_empty()).ok_or("a pod without a name")?.to_owned();
    let digest = Sha256::digest(format!("{node}\0{}\0{object}", source.place));
    let uid: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let def = find("", "v1", "pods").ok_or("there are no pods")?;
    object["apiVersion"] = "v1".into();
    object["kind"] = "Pod".into();
    let metadata = &mut object["metadata"];
    metadata["name"] = format!("{name}-{}", node.to_lowercase()).into();
    if metadata["namespace"].as_str().is_none_or(str::is_empty) {
        metadata["namespace"] = "default".into();
    }
    metadata["uid"] = uid.clone().into();
    metadata["creationTimestamp"] = format!("{:.0}", jiff::Timestamp::now()).into();
    if !metadata["annotations"].is_object() {
        metadata["annotations"] = json!({});
    }
    metadata["annotations"][HASH] = uid.clone().into();
    metadata["annotations"][SOURCE] = source.kind.into();
    metadata["annotations"][SEEN] = jiff::Timestamp::now().to_string().into();
    if !object["spec"].is_object() {
        return Err(format!("pod {name} has no spec"));
    }
    object["spec"]["nodeName"] = node.into();
    // Nothing drives a static pod from its node.
    let everything = json!({"operator": "Exists", "effect": "NoExecute"});
    match object["spec"]["tolerations"].as_array_mut() {
        Some(list) if !list.contains(&everything) => list.push(everything),
        Some(_) => {}
        None => object["spec"]["tolerations"] = json!([everything]),
    }
    object["status"] = json!({"phase": "Pending"});
    defaults::set(def, &mut object);
    refuse_references(&object, &name)?;
    let causes = validation::validate(def, "", &object, None);
    if let Some(cause) = causes.first() {
        return Err(format!("pod {name}: {}: {}", cause.field, cause.message));
    }
    let pod = serde_json::from_value(object).map_err(|e| format!("pod {name}: {e}"))?;
    Ok((uid, pod))
}

/// A static pod runs without the API, so it must not need objects of it.
fn refuse_references(object: &Value, name: &str) -> Result<(), String> {
    let spec = &object["spec"];
    if spec["serviceAccountName"].as_str().is_some_and(|account| !account.is_empty()) {
        return Err(format!("static pod {name} may not reference a service account"));
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        for kind in ["secret", "configMap", "persistentVolumeClaim"] {
            if !volume[kind].is_null() {
                return Err(format!("static pod {name} may not reference a {kind}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i}]}}";

    #[test]
    fn manifests_become_pods_of_the_node() {
        let source = Source { kind: "file", place: "/m/p.yaml".into() };
        let found = pods(GOOD, "node-1", &source).unwrap();
        let (uid, pod) = found.iter().next().unwrap();
        assert_eq!((uid.len(), pod.metadata.name.as_deref()), (32, Some("p-node-1")));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(pod.metadata.annotations.as_ref().unwrap()[SOURCE], "file");
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!((spec.restart_policy.as_deref(), spec.node_name.as_deref()), (Some("Always"), Some("node-1")));
        let again = pods(GOOD, "node-1", &source).unwrap();
        assert_eq!(again.keys().next(), Some(uid), "the same content is the same pod");
        let list = format!("{{kind: List, items: [{GOOD}, {}]}}", GOOD.replace("name: p", "name: q"));
        assert_eq!(pods(&list, "n", &source).unwrap().len(), 2);
        assert!(pods(" \n", "n", &source).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_static_pod_is_said() {
        let source = Source { kind: "file", place: "/m/p.yaml".into() };
        for (text, wanted) in [
            ("kind: Service", "not Pod"),
            ("{kind: Pod, metadata: {}, spec: {}}", "without a name"),
            ("{kind: Pod, metadata: {name: p}}", "no spec"),
            ("{kind: Pod, metadata: {name: p}, spec: {containers: []}}", "spec.containers"),
            (&GOOD.replace("spec: {", "spec: {serviceAccountName: a, "), "service account"),
            (&GOOD.replace("spec: {", "spec: {volumes: [{name: v, secret: {secretName: s}}], "), "secret"),
            ("kind: [", ""),
        ] {
            let refused = pods(text, "n", &source).unwrap_err();
            assert!(refused.contains(wanted), "{text}: {refused}");
        }
    }
}
