//! What machines that join may do: what kubeadm grants with objects of its own is a rule here, and no object that somebody
//! could delete by mistake.

use crate::access::{Attributes, UserInfo};
use crate::authn::ANONYMOUS;

/// Whether the request is a step of joining, or of renewing a node's certificate.
pub(super) fn allows(user: &UserInfo, asked: &Attributes) -> bool {
    let member = |group: &str| user.groups.iter().any(|known| known == group);
    let verb = asked.verb.as_str();
    match (asked.group.as_str(), asked.resource.as_str(), asked.subresource.as_str()) {
        ("certificates.k8s.io", "certificatesigningrequests", "") => {
            member("system:bootstrappers") && matches!(verb, "create" | "get" | "list" | "watch")
        }
        // These two let an approver say yes by itself.
        ("certificates.k8s.io", "certificatesigningrequests", "nodeclient") => {
            member("system:bootstrappers") && verb == "create"
        }
        ("certificates.k8s.io", "certificatesigningrequests", "selfnodeclient") => {
            member("system:nodes") && verb == "create"
        }
        // Who joins knows nobody yet; the document is signed for those who have a token. A node looks there whether the CAs
        // are still the same before it replaces its certificates.
        ("", "configmaps", "") => {
            let document = (asked.namespace.as_str(), asked.name.as_str()) == ("kube-public", "cluster-info");
            (user.name == ANONYMOUS || member("system:nodes")) && verb == "get" && document
        }
        _ => false,
    }
}
