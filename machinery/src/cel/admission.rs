//! What the expressions of admission policies and of webhooks' conditions see.

use super::{Env, Type};

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
        ("namespaceObject", Type::Dyn),
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
