//! Who may look at devices that others use: claims with admin access are for namespaces that a label names for it. Who may
//! write what into a claim's status: who binds is somebody else than the drivers, and a driver may speak for its node only.

use std::collections::{BTreeMap, BTreeSet};

use keelson_machinery::names::dns_subdomain;
use keelson_machinery::status::Cause;
use serde_json::Value;

use crate::access::{Attributes, Authorizer, Decision, UserInfo};
use crate::authn::{NODE_NAME, account_of};
use crate::authz;
use crate::objects::Objects;
use crate::request::ResourceRequest;
use crate::verbs::Call;

/// The label that lets a namespace have admin access, with the value `true`.
const LABEL: &str = "resource.kubernetes.io/admin-access";

/// What is wrong with a new claim or template, or with what was given to a claim. Requests do not change, and what was
/// granted once is not asked again.
pub fn problems(objects: &Objects, request: &ResourceRequest, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let path = match (request.def.group, request.def.plural, request.subresource.as_str()) {
        ("resource.k8s.io", "resourceclaims", "") => "/spec/devices/requests",
        ("resource.k8s.io", "resourceclaimtemplates", "") => "/spec/spec/devices/requests",
        ("resource.k8s.io", "resourceclaims", "status") => "/status/allocation/devices/results",
        _ => return Vec::new(),
    };
    let granted = match request.subresource.as_str() {
        "status" => old.is_some_and(|old| asks(old, path)),
        _ => old.is_some(),
    };
    if granted || !asks(new, path) {
        return Vec::new();
    }
    let namespace = objects.object("", "v1", "namespaces", "", &request.namespace).unwrap_or_default();
    if namespace["metadata"]["labels"][LABEL] == "true" {
        return Vec::new();
    }
    let why = format!("admin access to devices requires the `{LABEL}: true` label on the containing namespace");
    vec![Cause::forbidden("", &why)]
}

/// What the user may not change in a claim's status, beside what the right to write statuses gives: where the claim is
/// allocated and who uses it takes `resourceclaims/binding`, what is told of a driver's devices `resourceclaims/driver`.
pub fn denied(authorizer: &dyn Authorizer, call: &Call<'_>, new: &Value, old: &Value) -> Vec<Cause> {
    let request = call.request;
    if (request.def.group, request.def.plural, request.subresource.as_str())
        != ("resource.k8s.io", "resourceclaims", "status")
    {
        return Vec::new();
    }
    let asking = Asking { authorizer, user: call.user, attributes: request.attributes() };
    let (new, old) = (&new["status"], &old["status"]);
    asking.binding(new, old).into_iter().chain(asking.devices(new, old)).collect()
}

/// Who changes a claim's status, and the attributes of the request.
struct Asking<'a> {
    authorizer: &'a dyn Authorizer,
    user: &'a UserInfo,
    attributes: Attributes,
}

impl Asking<'_> {
    /// The refusal of a verb on a part of the status, in words.
    fn refusal(&self, verb: String, part: &str, namespace: &str, name: &str) -> Option<String> {
        let (subresource, namespace, name) = (part.into(), namespace.into(), name.into());
        let attributes =
            Attributes { verb, subresource, namespace, name, fields: Vec::new(), ..self.attributes.clone() };
        match self.authorizer.authorize(self.user, &attributes) {
            Decision::Allow => None,
            Decision::Deny(why) | Decision::NoOpinion(why) => {
                Some(authz::refusal(self.user, &attributes, &why).message)
            }
        }
    }

    fn binding(&self, new: &Value, old: &Value) -> Option<Cause> {
        if same(&new["allocation"], &old["allocation"]) && same(&new["reservedFor"], &old["reservedFor"]) {
            return None;
        }
        let verb = &self.attributes.verb;
        let refused = self.refusal(verb.clone(), "binding", "", "")?;
        let why = format!(
            "changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb={verb:?} \
             permission: {refused}"
        );
        Some(Cause::forbidden("status", &why))
    }

    fn devices(&self, new: &Value, old: &Value) -> Vec<Cause> {
        let asked = &self.attributes;
        let mut verbs = vec![format!("arbitrary-node:{}", asked.verb)];
        if node_of(&new["allocation"]).is_some_and(|node| is_on(self.user, node)) {
            verbs.insert(0, format!("associated-node:{}", asked.verb));
        }
        let refused = changed_drivers(new, old).into_iter().filter_map(|driver| {
            // Any of the verbs is enough; of the refusals the first one is told.
            let told: Option<Vec<String>> =
                verbs.iter().map(|verb| self.refusal(verb.clone(), "driver", &asked.namespace, driver)).collect();
            told?.into_iter().next()
        });
        let why = |refused: String| {
            format!(
                "changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{}]\" permission: {refused}",
                verbs.join(" ")
            )
        };
        refused.map(|refused| Cause::forbidden("status.devices", &why(refused))).collect()
    }
}

/// Whether two parts of a status say the same: nothing and an empty list do.
fn same(new: &Value, old: &Value) -> bool {
    let nothing = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    new == old || nothing(new) && nothing(old)
}

/// The drivers of whose devices something else is told than before.
fn changed_drivers<'a>(new: &'a Value, old: &'a Value) -> BTreeSet<&'a str> {
    let list = |status: &'a Value| {
        let text = |device: &'a Value, key: &str| device[key].as_str().unwrap_or_default();
        let keyed = move |device| (["driver", "pool", "device", "shareID"].map(|key| text(device, key)), device);
        let devices = status["devices"].as_array().into_iter().flatten();
        devices.map(keyed).collect::<BTreeMap<[&'a str; 4], &'a Value>>()
    };
    let (new, old) = (list(new), list(old));
    let keys = new.keys().chain(old.keys());
    keys.filter(|key| new.get(*key) != old.get(*key)).map(|[driver, ..]| *driver).collect()
}

/// The one node that an allocation is for.
fn node_of(allocation: &Value) -> Option<&str> {
    let one = |list: &'_ Value| list.as_array().is_some_and(|list| list.len() == 1);
    let terms = &allocation["nodeSelector"]["nodeSelectorTerms"];
    let fields = &terms[0]["matchFields"];
    let (field, values) = (&fields[0], &fields[0]["values"]);
    let alone = one(terms) && same(&terms[0]["matchExpressions"], &Value::Null) && one(fields) && one(values);
    (alone && field["key"] == "metadata.name" && field["operator"] == "In").then(|| values[0].as_str()).flatten()
}

/// Whether a user is an account whose token is of a pod on this node.
fn is_on(user: &UserInfo, node: &str) -> bool {
    let names = user.extra.get(NODE_NAME).map(Vec::as_slice);
    account_of(&user.name).is_some() && names.is_some_and(|names| names == [node]) && dns_subdomain(node).is_none()
}

/// Whether requests, or what they were given, have admin access.
fn asks(object: &Value, path: &str) -> bool {
    let list = object.pointer(path).and_then(Value::as_array);
    list.into_iter().flatten().any(|one| one["exactly"]["adminAccess"] == true || one["adminAccess"] == true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_asks_for_admin_access() {
        for (request, expected) in [
            (json!({"exactly": {"adminAccess": true}}), true),
            (json!({"exactly": {"adminAccess": false}}), false),
            (json!({"exactly": {}}), false),
            (json!({"firstAvailable": [{}]}), false),
            (json!({"adminAccess": true}), true),
        ] {
            let claim = json!({"spec": {"devices": {"requests": [{"name": "a"}, request]}}});
            assert_eq!(asks(&claim, "/spec/devices/requests"), expected, "{claim}");
        }
        assert!(!asks(&json!({}), "/spec/devices/requests"));
    }

    /// Allows what is listed.
    struct Rules(&'static [&'static str]);

    impl Authorizer for Rules {
        fn authorize(&self, _: &UserInfo, a: &Attributes) -> Decision {
            let asked = format!("{} {}/{} {} {}", a.verb, a.resource, a.subresource, a.namespace, a.name);
            if self.0.contains(&asked.trim_end()) { Decision::Allow } else { Decision::NoOpinion("no".into()) }
        }
    }

    /// The refusals of a change by a driver on a node.
    fn told(old: &Value, new: &Value, node: &str, allowed: &'static [&'static str]) -> Vec<String> {
        let extra = [(NODE_NAME.to_owned(), vec![node.to_owned()])].into();
        let user = UserInfo { name: "system:serviceaccount:ns:driver".into(), extra, ..UserInfo::default() };
        let attributes = Attributes {
            verb: "update".into(),
            group: "resource.k8s.io".into(),
            resource: "resourceclaims".into(),
            subresource: "status".into(),
            namespace: "ns".into(),
            name: "claim".into(),
            ..Attributes::default()
        };
        let asking = Asking { authorizer: &Rules(allowed), user: &user, attributes };
        let causes: Vec<Cause> = asking.binding(new, old).into_iter().chain(asking.devices(new, old)).collect();
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn parts_of_a_status_take_rights_of_their_own() {
        let on = |node: &str| {
            let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
            json!({"nodeSelector": {"nodeSelectorTerms": [{"matchFields": [field]}]}})
        };
        let device = |driver: &str, data: &str| json!({"driver": driver, "pool": "p", "device": "d", "data": data});
        let (one, other) = (device("a", "1"), device("a", "2"));
        let bound = json!({"allocation": on("n1"), "devices": [one]});
        const BIND: &str = "update resourceclaims/binding";
        const OWN: &str = "associated-node:update resourceclaims/driver ns a";
        const ANY: &str = "arbitrary-node:update resourceclaims/driver ns a";
        const DRIVER: &str = "status.devices: changing status.devices requires";
        // The status before and after, the node of who asks, what is allowed, and the refusals.
        for (old, new, node, allowed, expected) in [
            (json!({}), json!({"devices": [], "reservedFor": []}), "n1", &[][..], &[][..]),
            (json!({}), json!({"allocation": on("n1")}), "n1", &[BIND], &[]),
            (
                json!({}),
                json!({"allocation": on("n1")}),
                "n1",
                &[ANY],
                &[
                    "status: changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"update\" permission: resourceclaims.resource.k8s.io is forbidden: User \"system:serviceaccount:ns:driver\" cannot update resource \"resourceclaims/binding\" in API group \"resource.k8s.io\" at the cluster scope: no",
                ],
            ),
            (bound.clone(), json!({}), "n1", &[ANY, OWN], &["status: changing status.allocation"]),
            (json!({}), json!({"reservedFor": [{"name": "pod"}]}), "n1", &[], &["status: changing status.allocation"]),
            (bound.clone(), json!({"allocation": on("n1"), "devices": [other]}), "n1", &[OWN], &[]),
            (bound.clone(), json!({"allocation": on("n1"), "devices": [other]}), "n1", &[ANY], &[]),
            (
                bound.clone(),
                json!({"allocation": on("n1"), "devices": [other]}),
                "n2",
                &[OWN],
                &[
                    "verb=\"[arbitrary-node:update]\" permission: resourceclaims.resource.k8s.io \"a\" is forbidden: User \"system:serviceaccount:ns:driver\" cannot arbitrary-node:update resource \"resourceclaims/driver\" in API group \"resource.k8s.io\" in the namespace \"ns\": no",
                ],
            ),
            (
                bound.clone(),
                json!({"allocation": on("n1"), "devices": [other]}),
                "n1",
                &[BIND],
                &[
                    "verb=\"[associated-node:update arbitrary-node:update]\" permission: resourceclaims.resource.k8s.io \"a\" is forbidden: User \"system:serviceaccount:ns:driver\" cannot associated-node:update",
                ],
            ),
            (
                bound.clone(),
                json!({"allocation": on("n1"), "devices": [one, device("b", "1")]}),
                "n1",
                &[OWN],
                &["cannot associated-node:update"],
            ),
            (
                bound.clone(),
                json!({"allocation": on("n1"), "devices": [device("b", "1")]}),
                "n1",
                &[],
                &[DRIVER, DRIVER],
            ),
            (bound.clone(), json!({"allocation": on("n1")}), "n1", &[OWN], &[]),
        ] {
            let told = told(&old, &new, node, allowed);
            assert_eq!(told.len(), expected.len(), "{old} {new} {allowed:?}: {told:?}");
            for (told, part) in told.iter().zip(expected) {
                assert!(told.replace("Forbidden: ", "").contains(part), "{told}");
            }
        }
    }

    #[test]
    fn an_allocation_is_for_one_node_if_it_says_nothing_else() {
        let term = |fields: Value, expressions: Value| json!({"nodeSelector": {"nodeSelectorTerms": [{"matchFields": fields, "matchExpressions": expressions}]}});
        let named =
            |operator: &str, values: Value| json!([{"key": "metadata.name", "operator": operator, "values": values}]);
        for (allocation, expected) in [
            (term(named("In", json!(["n"])), json!(null)), Some("n")),
            (term(named("In", json!(["n"])), json!([{"key": "zone", "operator": "Exists"}])), None),
            (term(named("NotIn", json!(["n"])), json!(null)), None),
            (term(named("In", json!(["n", "m"])), json!(null)), None),
            (term(json!([]), json!(null)), None),
            (json!(null), None),
            (json!({"nodeSelector": {"nodeSelectorTerms": [{}, {}]}}), None),
        ] {
            assert_eq!(node_of(&allocation), expected, "{allocation}");
        }
    }
}
