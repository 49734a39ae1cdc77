//! Which of a definition's names are accepted: those that no other definition of the group has.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::strategy::now;

/// The status that a definition should have, given the accepted names of the others of its group; `None` if it has it.
pub fn status(object: &Value, others: &[&Value]) -> Option<Value> {
    let (accepted, conflict) = accept(object, others);
    let mut status = object["status"].clone();
    status["acceptedNames"] = accepted;
    let names_condition = match &conflict {
        None => {
            json!({"type": "NamesAccepted", "status": "True", "reason": "NoConflicts", "message": "no conflicts found"})
        }
        Some((reason, message)) => {
            json!({"type": "NamesAccepted", "status": "False", "reason": reason, "message": message})
        }
    };
    set_condition(&mut status, names_condition);
    if condition(&status, "Established") != Some("True") {
        let established = match conflict {
            None => {
                json!({"type": "Established", "status": "True", "reason": "InitialNamesAccepted", "message": "the initial names have been accepted"})
            }
            Some(_) => {
                json!({"type": "Established", "status": "False", "reason": "NotAccepted", "message": "not all names are accepted"})
            }
        };
        set_condition(&mut status, established);
    }
    if let Some(approved) = approval(object) {
        set_condition(&mut status, approved);
    }
    (status != object["status"]).then_some(status)
}

/// Groups of the community need its approval.
fn approval(object: &Value) -> Option<Value> {
    let group = object["spec"]["group"].as_str()?;
    if !super::definition::is_protected(group) {
        return None;
    }
    let annotation = object["metadata"]["annotations"][super::definition::APPROVED].as_str().unwrap_or_default();
    let (status, reason, message) = match annotation {
        "" => ("False", "MissingAnnotation", "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111".to_owned()),
        text if text.starts_with("unapproved") => ("False", "UnapprovedAnnotation", format!("not approved: {text:?}")),
        url => ("True", "ApprovedAnnotation", format!("approved in {url}")),
    };
    Some(
        json!({"type": "KubernetesAPIApprovalPolicyConformant", "status": status, "reason": reason, "message": message}),
    )
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a str> {
    let found = status["conditions"].as_array()?.iter().find(|c| c["type"] == kind)?;
    found["status"].as_str()
}

/// Sets a condition; the time of the last transition changes with its status only.
pub fn set_condition(status: &mut Value, mut new: Value) {
    let mut list = status["conditions"].as_array().cloned().unwrap_or_default();
    match list.iter_mut().find(|c| c["type"] == new["type"]) {
        Some(old) => {
            new["lastTransitionTime"] =
                if old["status"] == new["status"] { old["lastTransitionTime"].clone() } else { now().into() };
            if let Some(generation) = old.get("observedGeneration") {
                new["observedGeneration"] = generation.clone();
            }
            *old = new;
        }
        None => {
            new["lastTransitionTime"] = now().into();
            list.push(new);
        }
    }
    status["conditions"] = list.into();
}

fn accept(object: &Value, others: &[&Value]) -> (Value, Option<(&'static str, String)>) {
    let (mut resources, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    let strings = |of: &Value| -> Vec<String> {
        of.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    for other in others {
        let names = &other["status"]["acceptedNames"];
        let text = |key: &str| names[key].as_str().unwrap_or_default().to_owned();
        resources.extend([text("plural"), text("singular")]);
        resources.extend(strings(&names["shortNames"]));
        kinds.extend([text("kind"), text("listKind")]);
    }
    let (wanted, before) = (&object["spec"]["names"], &object["status"]["acceptedNames"]);
    let mut accepted = before.as_object().cloned().unwrap_or_default();
    let word = |key: &str, taken: &BTreeSet<String>, reason: &'static str, accepted: &mut Map<String, Value>| {
        let name = wanted[key].as_str().unwrap_or_default();
        if before[key] != name && taken.contains(name) {
            return Some((reason, format!("{name:?} is already in use")));
        }
        if !name.is_empty() {
            accepted.insert(key.to_owned(), name.into());
        }
        None
    };
    // Of several conflicts the last one is told.
    let mut conflict = word("plural", &resources, "PluralConflict", &mut accepted);
    conflict = word("singular", &resources, "SingularConflict", &mut accepted).or(conflict);
    let short = strings(&wanted["shortNames"]);
    let known = strings(&before["shortNames"]);
    let taken: Vec<String> = short
        .iter()
        .filter(|name| !known.contains(name) && resources.contains(*name))
        .map(|name| format!("{name:?} is already in use"))
        .collect();
    match &taken[..] {
        [] if short.is_empty() => drop(accepted.remove("shortNames")),
        [] => drop(accepted.insert("shortNames".into(), json!(short))),
        [one] => conflict = Some(("ShortNamesConflict", one.clone())),
        several => conflict = Some(("ShortNamesConflict", format!("[{}]", several.join(", ")))),
    }
    conflict = word("kind", &kinds, "KindConflict", &mut accepted).or(conflict);
    conflict = word("listKind", &kinds, "ListKindConflict", &mut accepted).or(conflict);
    match wanted["categories"].as_array().filter(|list| !list.is_empty()) {
        Some(categories) => accepted.insert("categories".into(), json!(categories)),
        None => accepted.remove("categories"),
    };
    (accepted.into(), conflict)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crd(plural: &str, kind: &str) -> Value {
        json!({"spec": {"group": "g.example.com", "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind,
            "listKind": format!("{kind}List")}}, "status": {"acceptedNames": {"kind": "", "plural": ""}}})
    }

    #[test]
    fn the_first_keeps_its_names() {
        let mut first = crd("widgets", "Widget");
        first["status"] = status(&first, &[]).unwrap();
        assert_eq!(condition(&first["status"], "Established"), Some("True"));
        assert_eq!(status(&first, &[]), None, "nothing changes the second time");
        let second = crd("gadgets", "Widget");
        let got = status(&second, &[&first]).unwrap();
        assert_eq!(got["acceptedNames"], json!({"kind": "", "plural": "gadgets"}));
        assert_eq!(got["conditions"][0]["reason"], "ListKindConflict");
        assert_eq!(got["conditions"][0]["message"], "\"WidgetList\" is already in use");
        assert_eq!(got["conditions"][1]["message"], "not all names are accepted");
    }

    #[test]
    fn the_last_of_several_conflicts_is_told() {
        let mut first = crd("widgets", "Widget");
        first["spec"]["names"]["shortNames"] = json!(["w", "wi"]);
        first["status"] = status(&first, &[]).unwrap();
        let mut second = crd("gadgets", "Gadget");
        for (key, value, reason, message) in [
            ("singular", json!("widget"), "SingularConflict", "\"widget\" is already in use"),
            ("shortNames", json!(["w", "g"]), "ShortNamesConflict", "\"w\" is already in use"),
            (
                "shortNames",
                json!(["w", "wi"]),
                "ShortNamesConflict",
                "[\"w\" is already in use, \"wi\" is already in use]",
            ),
            ("kind", json!("Widget"), "KindConflict", "\"Widget\" is already in use"),
        ] {
            second["spec"]["names"][key] = value;
            let got = status(&second, &[&first]).unwrap();
            assert_eq!(
                (&got["conditions"][0]["reason"], &got["conditions"][0]["message"]),
                (&json!(reason), &json!(message))
            );
        }
    }
}
