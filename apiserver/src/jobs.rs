//! Jobs: their selector and the labels of their pods are made from their uid, so that no two Jobs share pods.

use keelson_machinery::resource::ResourceDef;
use serde_json::{Value, json};

const UID: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
const NAME: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];

/// Completes a new Job that does not select its pods itself; it has its uid and name.
pub fn prepare(def: &ResourceDef, object: &mut Value) {
    if (def.group, def.plural) != ("batch", "jobs")
        || !object["spec"].is_object()
        || object["spec"]["manualSelector"] == true
    {
        return;
    }
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    let (uid, name) = (text("uid"), text("name"));
    let spec = &mut object["spec"];
    for key in UID {
        spec["template"]["metadata"]["labels"][key] = uid.as_str().into();
    }
    for key in NAME {
        spec["template"]["metadata"]["labels"][key] = name.as_str().into();
    }
    if !spec["selector"].is_object() {
        spec["selector"] = json!({});
    }
    spec["selector"]["matchLabels"][UID[0]] = uid.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_selects_its_own_pods() {
        let Some(def) = keelson_machinery::resources::find("batch", "v1", "jobs") else { panic!("jobs are served") };
        let mut job = json!({"metadata": {"uid": "u", "name": "j"}, "spec": {"template": {"spec": {}}}});
        prepare(def, &mut job);
        assert_eq!(job["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
        let labels = &job["spec"]["template"]["metadata"]["labels"];
        assert_eq!(
            (labels["controller-uid"].as_str(), labels["batch.kubernetes.io/job-name"].as_str()),
            (Some("u"), Some("j"))
        );
        let mut manual = json!({"metadata": {"uid": "u"}, "spec": {"manualSelector": true, "template": {}}});
        let before = manual.clone();
        prepare(def, &mut manual);
        assert_eq!(manual, before);
    }
}
