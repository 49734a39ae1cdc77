//! Who asks for what: the types that authentication, authorization and admission share with the pipeline.

use std::collections::{BTreeMap, BTreeSet};

use keelson_machinery::resource::ResourceDef;
use keelson_machinery::status::Status;
use serde_json::Value;

/// An authenticated user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// Name.
    pub name: String,
    /// uid, may be empty.
    pub uid: String,
    /// Groups, `system:authenticated` included.
    pub groups: Vec<String>,
    /// Extra attributes.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What is asked for, as authorizers see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// get, list, watch, create, update, patch, delete, deletecollection; lower-case HTTP method for non-resource paths.
    pub verb: String,
    /// Group of the resource.
    pub group: String,
    /// Version of the resource.
    pub version: String,
    /// Plural; "" for non-resource requests.
    pub resource: String,
    /// Subresource or "".
    pub subresource: String,
    /// Namespace or "".
    pub namespace: String,
    /// Object name or "".
    pub name: String,
    /// The path, for non-resource requests.
    pub path: String,
    /// Fields that a list or watch asks to be equal to a value.
    pub fields: Vec<(String, String)>,
}

/// An authorizer's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allow,
    /// No, whatever others say; with a reason.
    Deny(String),
    /// Not mine to say; with a reason.
    NoOpinion(String),
}

/// Decides whether a user may do something. Called on every request: no I/O, no lock held for long.
pub trait Authorizer: Send + Sync + 'static {
    /// The decision.
    fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision;
}

/// Operation that admission sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Create.
    Create,
    /// Update or patch.
    Update,
    /// Delete.
    Delete,
    /// exec, attach, portforward, proxy.
    Connect,
}

/// What admission looks at and, in the mutating phase, changes.
pub struct Admission<'a> {
    /// Operation.
    pub operation: Operation,
    /// The row.
    pub def: &'static ResourceDef,
    /// Subresource or "".
    pub subresource: &'a str,
    /// Namespace or "".
    pub namespace: &'a str,
    /// Name, may be empty on create.
    pub name: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
    /// The new object (create, update).
    pub object: Option<&'a mut Value>,
    /// The object as stored (update, delete).
    pub old: Option<&'a Value>,
    /// Whether nothing will be written.
    pub dry_run: bool,
    /// Warning headers to send.
    pub warnings: &'a mut Vec<String>,
}

/// What steps of the admission chain tell each other while they change an object: whether the chain runs once more, and
/// which extensions are asked again then.
#[derive(Debug, Default)]
pub struct Round {
    again: bool,
    wanted: bool,
    asked: BTreeMap<&'static str, Asked>,
}

/// What one step knows of the extensions that it asked.
#[derive(Debug, Default)]
struct Asked {
    /// Those that want to see the object again if it is changed after them.
    eligible: BTreeSet<String>,
    /// Those of them to whom that happened.
    due: BTreeSet<String>,
    /// The object as the step left it.
    left: Option<Value>,
}

impl Asked {
    fn changed(&mut self) {
        self.due.append(&mut self.eligible);
    }
}

impl Round {
    /// Whether the chain runs for the second time.
    pub fn is_again(&self) -> bool {
        self.again
    }

    /// A step begins with the object as it is.
    pub fn enter(&mut self, step: &'static str, object: Option<&Value>) {
        let again = self.again;
        let asked = self.asked.entry(step).or_default();
        if again && asked.left.as_ref() != object {
            asked.changed();
        }
    }

    /// A step is done.
    pub fn leave(&mut self, step: &'static str, object: Option<&Value>) {
        if !self.again {
            self.asked.entry(step).or_default().left = object.cloned();
        }
    }

    /// Whether a step asks an extension: in the first round each, in the second those that others' changes concern.
    pub fn asks(&self, step: &str, key: &str) -> bool {
        !self.again || self.asked.get(step).is_some_and(|asked| asked.due.contains(key))
    }

    /// An extension was asked. If it changed the object, those asked before it are due again; `eligible` says whether it
    /// wants to see what later ones do.
    pub fn note(&mut self, step: &'static str, key: &str, eligible: bool, changed: bool) {
        let asked = self.asked.entry(step).or_default();
        if changed {
            asked.changed();
            self.wanted = true;
        }
        if eligible {
            asked.eligible.insert(key.to_owned());
        }
    }

    /// Begins the second round, if there is to be one.
    pub(crate) fn begin_again(&mut self) -> bool {
        self.again = self.wanted && !self.again;
        self.again
    }
}

/// One step of the admission chain: a file and a row in `admission::CHAIN`.
#[async_trait::async_trait]
pub trait AdmissionPlugin: Send + Sync + 'static {
    /// May change the object or refuse.
    async fn mutate(&self, request: &mut Admission<'_>, round: &mut Round) -> Result<(), Status> {
        let _ = (request, round);
        Ok(())
    }
    /// May refuse.
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let _ = request;
        Ok(())
    }
    /// Whether it looks at the object of each of many bindings, or may refuse one but not another: then each is admitted
    /// alone. `request` is one without an object.
    fn sees_each(&self, request: &Admission<'_>) -> bool {
        let _ = request;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn extensions_are_asked_again_if_others_changed_the_object_after_them() {
        // Which of the extensions wants to be asked again, which changes the object, what the server's own steps do in the
        // second round: who is asked then.
        for (eligible, changes, own, expected) in [
            ([true, true], [false, false], false, None),
            ([true, true], [true, false], false, Some(vec![])),
            ([true, true], [false, true], false, Some(vec!["0"])),
            ([false, true], [false, true], false, Some(vec![])),
            ([true, true], [true, true], true, Some(vec!["0", "1"])),
            ([false, false], [true, true], true, Some(vec![])),
        ] {
            let mut round = Round::default();
            let before = json!({"n": 1});
            round.enter("step", Some(&before));
            for (index, (eligible, changes)) in eligible.into_iter().zip(changes).enumerate() {
                let key = index.to_string();
                assert!(round.asks("step", &key), "all are asked in the first round");
                round.note("step", &key, eligible, changes);
            }
            round.leave("step", Some(&before));
            assert_eq!(round.begin_again(), expected.is_some(), "{eligible:?} {changes:?}");
            let Some(expected) = expected else { continue };
            round.enter("step", Some(&if own { json!({"n": 2}) } else { before }));
            let asked: Vec<&str> = ["0", "1"].into_iter().filter(|key| round.asks("step", key)).collect();
            assert_eq!(asked, expected, "{eligible:?} {changes:?} {own}");
            assert!(!round.begin_again(), "there is no third round");
        }
    }
}
