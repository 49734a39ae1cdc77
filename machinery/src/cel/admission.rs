//! What the expressions of admission policies and of webhooks' conditions see.

use super::{Env, Type};

/// What is known of the namespace of an object: less than it has.
fn namespace() -> Type {
    let texts = |names: &'static [&str]| names.iter().map(|name| ((*name).to_owned(), Type::String));
    let times = |names: &'static [&str]| names.iter().map(|name| ((*name).to_owned(), Type::Timestamp));
    let others = |fields: [(&str, Type); 5]| fields.map(|(name, kind)| (name.to_owned(), kind));
    let metadata = texts(&["name", "generateName", "namespace", "UID", "resourceVersion"])
        .chain(times(&["creationTimestamp", "deletionTimestamp"]))
        .chain(others([
            ("labels", Type::map(Type::String)),
            ("annotations", Type::map(Type::String)),
            ("deletionGracePeriodSeconds", Type::Int),
            ("generation", Type::Int),
            ("finalizers", Type::list(Type::String)),
        ]));
    let condition = texts(&["status", "type", "message", "reason"]).chain(times(&["lastTransitionTime"]));
    let condition = Type::object("kubernetes.NamespaceCondition", condition);
    let status = texts(&["phase"]).chain([("conditions".to_owned(), Type::list(condition))]);
    let parts = [
        ("metadata".to_owned(), Type::object("kubernetes.NamespaceMetadata", metadata)),
        (
            "spec".to_owned(),
            Type::object("kubernetes.NamespaceSpec", [("finalizers".to_owned(), Type::list(Type::String))]),
        ),
        ("status".to_owned(), Type::object("kubernetes.NamespaceStatus", status)),
    ];
    Type::object("kubernetes.Namespace", parts)
}

/// The types of what expressions see.
pub fn env(params: bool, variables: bool, patches: bool) -> Env {
    let text = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), Type::String)).collect::<Vec<_>>();
    let kind = Type::object("kubernetes.GroupVersionKind", text(&["group", "version", "kind"]));
    let resource = Type::object("kubernetes.GroupVersionResource", text(&["group", "version", "resource"]));
    let mut user = text(&["username", "uid"]);
    user.push(("groups".into(), Type::list(Type::String)));
    user.push(("extra".into(), Type::map(Type::list(Type::String))));
    let mut fields = text(&["requestSubResource", "subResource", "name", "namespace", "operation"]);
    fields.extend([
        ("kind".to_owned(), kind.clone()),
        ("requestKind".to_owned(), kind),
        ("resource".to_owned(), resource.clone()),
        ("requestResource".to_owned(), resource),
        ("userInfo".to_owned(), Type::object("kubernetes.UserInfo", user)),
        ("dryRun".to_owned(), Type::Bool),
        ("options".to_owned(), Type::Dyn),
    ]);
    let mut env = Env::of([
        ("object", Type::Dyn),
        ("oldObject", Type::Dyn),
        ("request", Type::object("kubernetes.AdmissionRequest", fields)),
        ("namespaceObject", namespace()),
        ("authorizer", Type::Opaque("kubernetes.authorization.Authorizer")),
        ("authorizer.requestResource", Type::Opaque("kubernetes.authorization.ResourceCheck")),
    ]);
    if params {
        env.variables.insert("params".into(), Type::Dyn);
    }
    if variables {
        env.variables.insert("variables".into(), Type::Dyn);
    }
    env.patches = patches;
    env
}

#[cfg(test)]
mod tests {
    use super::super::Program;
    use super::*;

    #[test]
    fn fields_of_the_namespace_are_known() {
        for (expression, problem) in [
            ("namespaceObject.metadata.labels['a'] == 'b'", None),
            ("namespaceObject.metadata.name.startsWith('x') && namespaceObject.status.phase == 'Active'", None),
            ("'a' in namespaceObject.spec.finalizers", None),
            ("namespaceObject.foo", Some("undefined field 'foo'")),
            ("namespaceObject.metadata.uid == ''", Some("undefined field 'uid'")),
            ("namespaceObject.metadata.generation == 'x'", Some("'_==_' applied to '(int, string)'")),
        ] {
            let compiled = Program::compile(expression, &env(false, false, false));
            let told = compiled.err().map(|error| error.0);
            assert_eq!(told.is_some(), problem.is_some(), "{expression}: {told:?}");
            assert!(told.unwrap_or_default().contains(problem.unwrap_or_default()), "{expression}");
        }
    }
}
