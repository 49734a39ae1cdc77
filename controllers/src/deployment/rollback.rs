//! Going back to an earlier revision, as an annotation of the Deployment asks for it: what `extensions/v1beta1` had a field
//! for.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::sets::{self, HASH_LABEL, is_of_template};

/// Annotation of a Deployment: the revision to go back to, 0 for the one before the newest.
const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";
const NOT_FOUND: &str = "DeploymentRollbackRevisionNotFound";
const UNCHANGED: &str = "DeploymentRollbackTemplateUnchanged";

/// What becomes of the wish.
#[derive(Debug)]
pub enum Outcome {
    /// It goes back to this revision, which this set has.
    To { revision: i64, set: Arc<ReplicaSet> },
    /// Nothing is done but to take the wish back.
    Refused { reason: &'static str, message: String },
}

/// The revision to go back to, if that is asked for.
pub fn asked(deployment: &Deployment) -> Option<i64> {
    deployment.metadata.annotations.as_ref()?.get(ROLLBACK_TO)?.parse().ok()
}

/// The revision before the newest, 0 if there is none.
fn last_revision(sets: &[Arc<ReplicaSet>]) -> i64 {
    let mut revisions: Vec<i64> = sets.iter().map(|s| sets::revision(&s.metadata)).collect();
    revisions.sort_unstable();
    revisions.iter().rev().nth(1).copied().unwrap_or(0)
}

/// Decides; `to` is the revision that is asked for.
pub fn plan(deployment: &Deployment, sets: &[Arc<ReplicaSet>], to: i64) -> Outcome {
    let refused = |reason, message: String| Outcome::Refused { reason, message };
    let revision = if to == 0 { last_revision(sets) } else { to };
    if revision == 0 {
        return refused(NOT_FOUND, "Unable to find last revision.".into());
    }
    let Some(set) = sets.iter().find(|s| sets::revision(&s.metadata) == revision) else {
        return refused(NOT_FOUND, "Unable to find the revision to rollback to.".into());
    };
    if deployment.spec.as_ref().is_some_and(|spec| is_of_template(set, &spec.template)) {
        let name = deployment.metadata.name.as_deref().unwrap_or_default();
        let message = format!("The rollback revision contains the same template as current deployment {name:?}");
        return refused(UNCHANGED, message);
    }
    Outcome::To { revision, set: set.clone() }
}

/// The Deployment without the wish and, if it goes back, with the set's template and annotations.
pub fn apply(deployment: &Deployment, outcome: &Outcome) -> Deployment {
    let mut changed = deployment.clone();
    if let Outcome::To { set, .. } = outcome {
        let mut template = set.spec.as_ref().and_then(|s| s.template.clone()).unwrap_or_default();
        let metadata = template.metadata.get_or_insert_default();
        if let Some(labels) = &mut metadata.labels {
            labels.remove(HASH_LABEL);
        }
        changed.spec.get_or_insert_default().template = template;
        let annotations = changed.metadata.annotations.get_or_insert_default();
        annotations.retain(|key, _| sets::is_own_annotation(key));
        let theirs = set.metadata.annotations.iter().flatten().filter(|(key, _)| !sets::is_own_annotation(key));
        annotations.extend(theirs.map(|(key, value)| (key.clone(), value.clone())));
    }
    if let Some(annotations) = &mut changed.metadata.annotations {
        annotations.remove(ROLLBACK_TO);
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(name: &str, revision: i64, image: &str) -> Arc<ReplicaSet> {
        let found = json!({"metadata": {"name": name, "annotations": {
            sets::REVISION: revision.to_string(), "note": name, "deployment.kubernetes.io/desired-replicas": "3"}},
            "spec": {"selector": {}, "template": {"metadata": {"labels": {"a": "b", HASH_LABEL: name}},
                "spec": {"containers": [{"name": "c", "image": image}]}}}});
        Arc::new(serde_json::from_value(found).unwrap())
    }

    fn deployment(to: &str) -> Deployment {
        serde_json::from_value(
            json!({"metadata": {"name": "d", "annotations": {ROLLBACK_TO: to, "note": "new", "x": "y",
            sets::REVISION: "3"}}, "spec": {"selector": {}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "3"}]}}}}),
        )
        .unwrap()
    }

    #[test]
    fn goes_back_or_says_why_not() {
        let all = [set("one", 1, "1"), set("two", 2, "2"), set("three", 3, "3")];
        for (to, sets, expected) in [
            (1, &all[..], "1"),
            (0, &all[..], "2"),
            (3, &all[..], "The rollback revision contains the same template as current deployment \"d\""),
            (7, &all[..], "Unable to find the revision to rollback to."),
            (0, &all[..1], "Unable to find last revision."),
            (0, &[], "Unable to find last revision."),
        ] {
            let found = match plan(&deployment("0"), sets, to) {
                Outcome::To { revision, .. } => revision.to_string(),
                Outcome::Refused { message, .. } => message,
            };
            assert_eq!(found, expected, "{to}");
        }
        for (text, expected) in [("0", Some(0)), ("12", Some(12)), ("x", None), ("", None)] {
            assert_eq!(asked(&deployment(text)), expected, "{text}");
        }
    }

    #[test]
    fn the_template_and_annotations_of_the_revision_come_back() {
        let before = deployment("1");
        let outcome = plan(&before, &[set("one", 1, "1")], 1);
        let after = apply(&before, &outcome);
        let template = after.spec.unwrap().template;
        assert_eq!(template.spec.unwrap().containers[0].image.as_deref(), Some("1"));
        let keys =
            |map: Option<std::collections::BTreeMap<String, String>>| map.unwrap().into_keys().collect::<Vec<_>>();
        assert_eq!(keys(template.metadata.unwrap().labels), ["a"]);
        assert_eq!(after.metadata.annotations.as_ref().unwrap()["note"], "one");
        assert_eq!(keys(after.metadata.annotations), [sets::REVISION, "note"]);
        let refused = apply(&before, &plan(&before, &[], 1));
        assert_eq!(keys(refused.metadata.annotations), [sets::REVISION, "note", "x"]);
    }
}
