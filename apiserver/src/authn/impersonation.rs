//! Acting as somebody else. What permits it are modes, asked one after the other: those of KEP-5284, in which a rule says both
//! whom one may be and what one may do as them, and the older one, in which `impersonate` permits everything.

use http::HeaderMap;
use keelson_machinery::names::{dns_label, dns_subdomain, domain_path_problems};
use keelson_machinery::status::Status;

use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED};
use crate::access::{Attributes, Authorizer, Decision, UserInfo};
use crate::authz;

/// Group of the constrained modes' rules.
const GROUP: &str = "authentication.k8s.io";
/// Extra attribute of an account's token that names the node of its pod.
pub(crate) const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// What stands for an account's extra attributes where it acts as its own node: the same on all nodes.
const NODE_KEYS: &str = "authentication.kubernetes.io/associated-node-keys";
/// From so many groups or extra values on, all of them are asked for at once first.
const MANY: usize = 4;
/// What a header begins with that names an extra attribute.
const EXTRA: &str = "impersonate-extra-";

/// As whom a request acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acting {
    /// The user.
    pub user: UserInfo,
    /// The verb of the constrained mode that permits it, "" for the older one.
    pub constraint: String,
}

/// A way to be permitted, in the order in which they are asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    UserInfo,
    Legacy,
}

/// The mode's name in verbs.
const MODES: [(Mode, &str); 5] = [
    (Mode::AssociatedNode, "associated-node"),
    (Mode::ArbitraryNode, "arbitrary-node"),
    (Mode::ServiceAccount, "serviceaccount"),
    (Mode::UserInfo, "user-info"),
    (Mode::Legacy, ""),
];

/// The user that a request wants to act as, if it asks for that and `user` may; `asked` is what it wants to do. Its headers lose
/// what asks for it: nobody further on may take it for something to do once more.
pub(crate) fn impersonate(
    headers: &mut HeaderMap,
    user: &UserInfo,
    asked: impl FnOnce() -> Attributes,
    authorizer: &dyn Authorizer,
) -> Result<Option<Acting>, Status> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    let asked = asked();
    let mut first = None;
    for (mode, name) in MODES.into_iter().filter(|(mode, _)| mode.is_for(&wanted, user)) {
        match (Check { mode, name, user, authorizer }).all(&wanted, &asked) {
            Ok(acting) => return Ok(Some(acting)),
            Err(status) => drop(first.get_or_insert(status)),
        }
    }
    Err(first.unwrap_or_else(|| Status::internal("all impersonation modes failed")))
}

/// The user that the headers describe, as they do.
fn wanted(headers: &mut HeaderMap) -> Result<Option<UserInfo>, Status> {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect()
    };
    let first = |name: &str| all(name).into_iter().next().unwrap_or_default();
    let extra: Vec<String> =
        headers.keys().map(|key| key.as_str().to_owned()).filter(|k| k.starts_with(EXTRA)).collect();
    let wanted = UserInfo {
        name: first("impersonate-user"),
        uid: first("impersonate-uid"),
        groups: all("impersonate-group"),
        extra: extra.iter().map(|key| (crate::request::percent_decoded(&key[EXTRA.len()..]), all(key))).collect(),
    };
    if wanted.name.is_empty() {
        let nothing = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        return if nothing { Ok(None) } else { Err(without_a_name(&wanted)) };
    }
    for name in
        ["impersonate-user", "impersonate-uid", "impersonate-group"].into_iter().chain(extra.iter().map(|k| &**k))
    {
        headers.remove(name);
    }
    Ok(Some(wanted))
}

/// Namespace and name of the account that a user's name names.
pub(crate) fn account_of(name: &str) -> Option<(&str, &str)> {
    let (namespace, name) = name.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (dns_label(namespace).is_none() && dns_subdomain(name).is_none()).then_some((namespace, name))
}

/// The node that a user's name names.
fn node_of(name: &str) -> Option<&str> {
    name.strip_prefix("system:node:").filter(|name| dns_subdomain(name).is_none())
}

impl Mode {
    /// Whether it can permit to be that user at all.
    fn is_for(self, wanted: &UserInfo, user: &UserInfo) -> bool {
        let only_name = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let (node, account) = (node_of(&wanted.name), account_of(&wanted.name));
        match self {
            Self::AssociatedNode => {
                let own = user.extra.get(NODE_NAME).filter(|names| names.len() == 1).map(|names| names[0].as_str());
                only_name && node.is_some() && own == node && account_of(&user.name).is_some()
            }
            Self::ArbitraryNode => only_name && node.is_some(),
            Self::ServiceAccount => only_name && account.is_some(),
            Self::UserInfo => node.is_none() && account.is_none(),
            Self::Legacy => true,
        }
    }
}

/// One mode's questions.
struct Check<'a> {
    mode: Mode,
    name: &'static str,
    user: &'a UserInfo,
    authorizer: &'a dyn Authorizer,
}

impl Check<'_> {
    fn is_constrained(&self) -> bool {
        self.mode != Mode::Legacy
    }

    fn all(&self, wanted: &UserInfo, asked: &Attributes) -> Result<Acting, Status> {
        if self.is_constrained() {
            let verb = format!("impersonate-on:{}:{}", self.name, asked.verb);
            self.ask(&Attributes { verb, ..asked.clone() })?;
        }
        let mut user = wanted.clone();
        self.name(wanted, &mut user)?;
        if !wanted.uid.is_empty() {
            self.ask(&self.about(GROUP, "uids", &wanted.uid))?;
        }
        self.groups(&wanted.groups)?;
        self.extra(wanted)?;
        let known = match user.name.as_str() {
            ANONYMOUS => Some(UNAUTHENTICATED),
            _ if user.groups.iter().any(|group| group == UNAUTHENTICATED) => None,
            _ => Some(AUTHENTICATED),
        };
        if let Some(group) = known.filter(|known| !user.groups.iter().any(|group| group == known)) {
            user.groups.push(group.into());
        }
        let constraint = if self.is_constrained() { self.verb() } else { String::new() };
        Ok(Acting { user, constraint })
    }

    fn verb(&self) -> String {
        if self.is_constrained() { format!("impersonate:{}", self.name) } else { "impersonate".into() }
    }

    fn about(&self, group: &str, resource: &str, name: &str) -> Attributes {
        Attributes {
            verb: self.verb(),
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    /// Group of the rules about users, accounts, nodes and groups.
    fn group(&self) -> &'static str {
        if self.is_constrained() { GROUP } else { "" }
    }

    fn ask(&self, attributes: &Attributes) -> Result<(), Status> {
        let refused = |user: &UserInfo| match self.authorizer.authorize(user, attributes) {
            Decision::Allow => Ok(()),
            Decision::Deny(why) | Decision::NoOpinion(why) => Err(authz::refusal(user, attributes, &why)),
        };
        if self.mode != Mode::AssociatedNode {
            return refused(self.user);
        }
        // That the account is on that node is known by now; a rule permits it for all nodes.
        let keys = self.user.extra.keys().cloned().collect();
        refused(&UserInfo { extra: [(NODE_KEYS.to_owned(), keys)].into(), ..self.user.clone() })
    }

    /// Whether the name may be had; groups that follow from it are added.
    fn name(&self, wanted: &UserInfo, user: &mut UserInfo) -> Result<(), Status> {
        let group = self.group();
        if let Some(node) = node_of(&wanted.name).filter(|_| self.is_constrained()) {
            user.groups = vec!["system:nodes".into()];
            return self.ask(&self.about(group, "nodes", if self.mode == Mode::AssociatedNode { "*" } else { node }));
        }
        let Some((namespace, name)) = account_of(&wanted.name) else {
            return self.ask(&self.about(group, "users", &wanted.name));
        };
        if wanted.groups.is_empty() {
            user.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
        }
        self.ask(&Attributes { namespace: namespace.into(), ..self.about(group, "serviceaccounts", name) })
    }

    fn groups(&self, groups: &[String]) -> Result<(), Status> {
        let about = |name: &str| self.about(self.group(), "groups", name);
        if self.is_constrained() {
            for (forbidden, shown) in [("", "the empty string group"), (authz::MASTERS, "the system:masters group")] {
                if groups.iter().any(|group| group == forbidden) {
                    let why = format!("impersonating {shown} is not allowed");
                    return Err(authz::refusal(self.user, &about(forbidden), &why));
                }
            }
            if groups.len() >= MANY && self.ask(&about("*")).is_ok() {
                return Ok(());
            }
        }
        groups.iter().try_for_each(|group| self.ask(&about(group)))
    }

    fn extra(&self, wanted: &UserInfo) -> Result<(), Status> {
        let about =
            |key: &str, value: &str| Attributes { subresource: key.into(), ..self.about(GROUP, "userextras", value) };
        if self.is_constrained() {
            if let Some(why) = wanted.extra.iter().find_map(|(key, values)| extra_problem(key, values)) {
                return Err(authz::refusal(self.user, &about("", ""), &why));
            }
            let values: usize = wanted.extra.values().map(Vec::len).sum();
            if values >= MANY && self.ask(&about("*", "*")).is_ok() {
                return Ok(());
            }
        }
        for (key, values) in &wanted.extra {
            values.iter().try_for_each(|value| self.ask(&about(key, value)))?;
        }
        Ok(())
    }
}

/// Why an extra attribute cannot be had in a constrained mode.
fn extra_problem(key: &str, values: &[String]) -> Option<String> {
    if key.is_empty() {
        return Some("impersonating the empty string key in extra is not allowed".into());
    }
    let problems = domain_path_problems(key);
    if !problems.is_empty() {
        let told = problems.iter().map(|(part, why)| format!("extra.key: Invalid value: {part:?}: {why}"));
        let told = told.collect::<Vec<_>>().join(", ");
        let told = if problems.len() > 1 { format!("[{told}]") } else { told };
        return Some(format!("impersonating an invalid key in extra is not allowed: {told}"));
    }
    if key.to_lowercase() != key {
        return Some(format!("impersonating a non-lowercase key in extra is not allowed: {key:?}"));
    }
    if values.iter().any(String::is_empty) {
        return Some("impersonating the empty string value in extra is not allowed".into());
    }
    None
}

/// The refusal of headers that say as whom a request acts, but for the name; in Go's words, as upstream's.
fn without_a_name(wanted: &UserInfo) -> Status {
    let list = |values: &[String]| {
        format!("[]string{{{}}}", values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(", "))
    };
    let groups = if wanted.groups.is_empty() { "[]string(nil)".into() } else { list(&wanted.groups) };
    let entries: Vec<String> = wanted.extra.iter().map(|(key, values)| format!("{key:?}:{}", list(values))).collect();
    let extra = match entries.is_empty() {
        true => "map[string][]string(nil)".to_owned(),
        false => format!("map[string][]string{{{}}}", entries.join(", ")),
    };
    Status::bad_request(format!(
        "requested &user.DefaultInfo{{Name:\"\", UID:{:?}, Groups:{groups}, Extra:{extra}}} without impersonating a user name",
        wanted.uid
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use parking_lot::Mutex;

    use super::*;

    const ACCOUNT: &str = "system:serviceaccount:ns:agent";

    /// Headers, what is allowed, and who acts under which constraint, or what is told.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], Result<(&'a str, &'a str), &'a str>);

    /// Allows what is listed and notes what it was asked.
    struct Rules(Vec<&'static str>, Mutex<Vec<String>>);

    impl Authorizer for Rules {
        fn authorize(&self, user: &UserInfo, a: &Attributes) -> Decision {
            let extra: Vec<&str> = user.extra.keys().map(String::as_str).filter(|key| *key == NODE_KEYS).collect();
            let full = [&a.group, &a.resource, &a.subresource, &a.namespace, &a.name, &a.path];
            let full = full.into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(" ");
            let text = format!("{} {full}", a.verb);
            self.1.lock().push(format!("{text}{}", if extra.is_empty() { "" } else { " (bare)" }));
            if self.0.contains(&text.as_str()) { Decision::Allow } else { Decision::NoOpinion("no".into()) }
        }
    }

    fn pods() -> Attributes {
        let (verb, resource, namespace) = ("list".into(), "pods".into(), "ns".into());
        Attributes { verb, version: "v1".into(), resource, namespace, ..Attributes::default() }
    }

    fn asked(headers: &[(&str, &str)], user: &UserInfo, rules: &Rules) -> Result<Option<Acting>, Status> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let answer = impersonate(&mut map, user, pods, rules);
        assert!(map.is_empty() || !matches!(answer, Ok(Some(_))), "{map:?}");
        answer
    }

    fn agent(node: &str) -> UserInfo {
        UserInfo {
            name: ACCOUNT.into(),
            extra: [(NODE_NAME.to_owned(), vec![node.to_owned()])].into(),
            ..UserInfo::default()
        }
    }

    const ON_USER: &str = "impersonate-on:user-info:list pods ns";
    const USER: &str = "impersonate:user-info authentication.k8s.io users jane";
    const FOUR: &[(&str, &str)] = &[
        ("impersonate-user", "jane"),
        ("impersonate-group", "a"),
        ("impersonate-group", "b"),
        ("impersonate-group", "c"),
        ("impersonate-group", "d"),
    ];
    const THREE: &[(&str, &str)] = FOUR.split_at(4).0;
    const CASES: &[Case<'_>] = &[
        (
            &[("impersonate-user", "jane")],
            &[ON_USER, USER],
            Ok(("jane [system:authenticated]", "impersonate:user-info")),
        ),
        (&[("impersonate-user", "jane")], &["impersonate users jane"], Ok(("jane [system:authenticated]", ""))),
        // What fails first is told.
        (
            &[("impersonate-user", "jane")],
            &[],
            Err(
                "pods is forbidden: User \"system:serviceaccount:ns:agent\" cannot impersonate-on:user-info:list resource \"pods\" in API group \"\" in the namespace \"ns\": no",
            ),
        ),
        (
            &[("impersonate-user", "jane")],
            &[ON_USER],
            Err(
                "users.authentication.k8s.io \"jane\" is forbidden: User \"system:serviceaccount:ns:agent\" cannot impersonate:user-info resource \"users\" in API group \"authentication.k8s.io\" at the cluster scope: no",
            ),
        ),
        (
            &[("impersonate-user", "system:anonymous")],
            &[ON_USER, "impersonate:user-info authentication.k8s.io users system:anonymous"],
            Ok(("system:anonymous [system:unauthenticated]", "impersonate:user-info")),
        ),
        (
            &[("impersonate-user", "jane"), ("impersonate-group", "system:unauthenticated")],
            &["impersonate users jane", "impersonate groups system:unauthenticated"],
            Ok(("jane [system:unauthenticated]", "")),
        ),
        (
            &[("impersonate-user", "jane"), ("impersonate-uid", "u")],
            &[ON_USER, USER],
            Err("uids.authentication.k8s.io \"u\" is forbidden"),
        ),
        (
            &[("impersonate-user", "jane"), ("impersonate-group", "system:masters")],
            &[ON_USER, USER, "impersonate:user-info authentication.k8s.io groups system:masters"],
            Err("impersonating the system:masters group is not allowed"),
        ),
        (
            &[("impersonate-user", "jane"), ("impersonate-group", "")],
            &[ON_USER, USER],
            Err("impersonating the empty string group is not allowed"),
        ),
        // Many at once.
        (
            FOUR,
            &[ON_USER, USER, "impersonate:user-info authentication.k8s.io groups *"],
            Ok(("jane [a b c d system:authenticated]", "impersonate:user-info")),
        ),
        (
            THREE,
            &[ON_USER, USER, "impersonate:user-info authentication.k8s.io groups *"],
            Err("groups.authentication.k8s.io \"a\" is forbidden"),
        ),
        // Extra attributes.
        (
            &[("impersonate-user", "jane"), ("impersonate-extra-acme.io%2ffoo", "v")],
            &[ON_USER, USER, "impersonate:user-info authentication.k8s.io userextras acme.io/foo v"],
            Ok(("jane [system:authenticated] acme.io/foo=v", "impersonate:user-info")),
        ),
        (
            &[("impersonate-user", "jane"), ("impersonate-extra-scopes", "v")],
            &[ON_USER, USER],
            Err(
                "impersonating an invalid key in extra is not allowed: extra.key: Invalid value: \"scopes\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
        ),
        (
            &[("impersonate-user", "jane"), ("impersonate-extra-scopes", "v")],
            &["impersonate users jane", "impersonate authentication.k8s.io userextras scopes v"],
            Ok(("jane [system:authenticated] scopes=v", "")),
        ),
        (
            &[("impersonate-user", "jane"), ("impersonate-extra-acme.io%2f%46oo", "v")],
            &[ON_USER, USER],
            Err("impersonating a non-lowercase key in extra is not allowed: \"acme.io/Foo\""),
        ),
        (
            &[("impersonate-user", "jane"), ("impersonate-extra-acme.io%2ffoo", "")],
            &[ON_USER, USER],
            Err("impersonating the empty string value in extra is not allowed"),
        ),
        // Accounts.
        (
            &[("impersonate-user", "system:serviceaccount:a:b")],
            &[
                "impersonate-on:serviceaccount:list pods ns",
                "impersonate:serviceaccount authentication.k8s.io serviceaccounts a b",
            ],
            Ok((
                "system:serviceaccount:a:b [system:serviceaccounts system:serviceaccounts:a system:authenticated]",
                "impersonate:serviceaccount",
            )),
        ),
        (
            &[("impersonate-user", "system:serviceaccount:a:b"), ("impersonate-group", "g")],
            &[
                "impersonate-on:serviceaccount:list pods ns",
                "impersonate:serviceaccount authentication.k8s.io serviceaccounts a b",
            ],
            Err("cannot impersonate resource \"serviceaccounts\" in API group \"\" in the namespace \"a\""),
        ),
        (
            &[("impersonate-user", "system:serviceaccount:a:b:c")],
            &[ON_USER, "impersonate:user-info authentication.k8s.io users system:serviceaccount:a:b:c"],
            Ok(("system:serviceaccount:a:b:c [system:authenticated]", "impersonate:user-info")),
        ),
        // Nodes.
        (
            &[("impersonate-user", "system:node:n2")],
            &[
                "impersonate-on:arbitrary-node:list pods ns",
                "impersonate:arbitrary-node authentication.k8s.io nodes n2",
            ],
            Ok(("system:node:n2 [system:nodes system:authenticated]", "impersonate:arbitrary-node")),
        ),
        (
            &[("impersonate-user", "system:node:n1")],
            &[
                "impersonate-on:associated-node:list pods ns",
                "impersonate:associated-node authentication.k8s.io nodes *",
            ],
            Ok(("system:node:n1 [system:nodes system:authenticated]", "impersonate:associated-node")),
        ),
        (
            &[("impersonate-user", "system:node:n2")],
            &[
                "impersonate-on:associated-node:list pods ns",
                "impersonate:associated-node authentication.k8s.io nodes *",
            ],
            Err("cannot impersonate-on:arbitrary-node:list"),
        ),
        (
            &[("impersonate-user", "system:node:n1")],
            &["impersonate users system:node:n1"],
            Ok(("system:node:n1 [system:authenticated]", "")),
        ),
        (
            &[("impersonate-uid", "u")],
            &[],
            Err("UID:\"u\", Groups:[]string(nil), Extra:map[string][]string(nil)} without impersonating a user name"),
        ),
    ];

    #[test]
    fn modes_permit_what_they_are_for() {
        for (headers, allowed, expected) in CASES {
            let rules = Rules(allowed.to_vec(), Mutex::default());
            match (asked(headers, &agent("n1"), &rules), expected) {
                (Ok(Some(acting)), Ok((user, constraint))) => {
                    let extra: Vec<String> =
                        acting.user.extra.iter().map(|(k, v)| format!(" {k}={}", v.join(","))).collect();
                    let shown = format!("{} [{}]{}", acting.user.name, acting.user.groups.join(" "), extra.concat());
                    assert_eq!((shown.as_str(), acting.constraint.as_str()), (*user, *constraint), "{headers:?}");
                }
                (Err(status), Err(part)) => assert!(status.message.contains(part), "{headers:?}: {}", status.message),
                (other, _) => panic!("{headers:?} {allowed:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_account_acts_as_its_own_node_without_what_tells_nodes_apart() {
        let rules = Rules(Vec::new(), Mutex::default());
        assert!(asked(&[("impersonate-user", "system:node:n1")], &agent("n1"), &rules).is_err());
        let first = rules.1.lock().first().cloned();
        assert_eq!(first.as_deref(), Some("impersonate-on:associated-node:list pods ns (bare)"));
        // Only accounts are on nodes.
        for other in [
            UserInfo { name: "me".into(), ..agent("n1") },
            UserInfo { extra: BTreeMap::new(), ..agent("n1") },
            UserInfo { extra: [(NODE_NAME.to_owned(), vec!["n1".into(), "n1".into()])].into(), ..agent("n1") },
        ] {
            let rules = Rules(Vec::new(), Mutex::default());
            let refused = asked(&[("impersonate-user", "system:node:n1")], &other, &rules).unwrap_err();
            assert!(refused.message.contains("impersonate-on:arbitrary-node:list"), "{}", refused.message);
        }
        assert!(asked(&[("x", "y")], &agent("n1"), &Rules(Vec::new(), Mutex::default())).unwrap().is_none());
    }
}
