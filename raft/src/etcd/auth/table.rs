//! Users and roles as the settings have them, and what they permit.
//!
//! Settings: `auth/state` holds whether authentication is on and a revision that each change raises; `auth/user/NAME` and
//! `auth/role/NAME` hold etcd's own messages; `auth/secret` signs tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::etcd::authpb::{Permission, Role, User, permission::Type};
use keelson_store::{KeyRange, View};
use prost::Message;

/// Name of the setting that says whether authentication is on.
pub const STATE: &[u8] = b"auth/state";
/// Name of the setting that signs tokens.
pub const SECRET: &[u8] = b"auth/secret";
/// What users' settings begin with.
pub const USERS: &[u8] = b"auth/user/";
/// What roles' settings begin with.
pub const ROLES: &[u8] = b"auth/role/";
/// The user and the role that may do everything.
pub const ROOT: &str = "root";

/// Whether authentication is on, and how often users and roles have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthState {
    /// Whether it is on.
    pub enabled: bool,
    /// Raised by each change.
    pub revision: u64,
}

impl AuthState {
    /// What a view says; without a setting nothing was ever changed.
    pub fn of(view: &View) -> Self {
        Self::decode(view.setting(STATE))
    }

    fn decode(setting: Option<&Bytes>) -> Self {
        let parse = |bytes: &Bytes| {
            let (flag, revision) = bytes.split_first()?;
            Some(Self { enabled: *flag == 1, revision: u64::from_be_bytes(revision.try_into().ok()?) })
        };
        setting.and_then(parse).unwrap_or(Self { enabled: false, revision: 1 })
    }

    /// As a setting's value.
    pub fn encode(self) -> Bytes {
        let mut bytes = vec![u8::from(self.enabled)];
        bytes.extend(self.revision.to_be_bytes());
        bytes.into()
    }
}

/// Name of a user's setting.
pub fn user_key(name: &str) -> Bytes {
    [USERS, name.as_bytes()].concat().into()
}

/// Name of a role's setting.
pub fn role_key(name: &str) -> Bytes {
    [ROLES, name.as_bytes()].concat().into()
}

/// A user, if it is there.
pub fn user(view: &View, name: &str) -> Option<User> {
    view.setting(&user_key(name)).and_then(|bytes| User::decode(bytes.clone()).ok())
}

/// A role, if it is there.
pub fn role(view: &View, name: &str) -> Option<Role> {
    view.setting(&role_key(name)).and_then(|bytes| Role::decode(bytes.clone()).ok())
}

/// All users' names in order.
pub fn names(view: &View, prefix: &[u8]) -> Vec<String> {
    let name = |name: &Bytes| String::from_utf8_lossy(&name[prefix.len()..]).into_owned();
    view.settings(prefix).map(|(key, _)| name(key)).collect()
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read.
    Read,
    /// To write.
    Write,
}

/// Where an interval ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Vec<u8>),
    Never,
}

/// Intervals that do not touch, in order.
#[derive(Clone, Debug, Default)]
struct Intervals(Vec<(Vec<u8>, End)>);

fn bounds(range: &KeyRange) -> (Vec<u8>, End) {
    match range {
        KeyRange::Key(key) => (key.to_vec(), End::Before([key, &[0][..]].concat())),
        KeyRange::Range(start, end) => (start.to_vec(), End::Before(end.to_vec())),
        KeyRange::From(start) => (start.to_vec(), End::Never),
    }
}

impl Intervals {
    fn of(mut all: Vec<(Vec<u8>, End)>) -> Self {
        all.sort();
        let mut merged: Vec<(Vec<u8>, End)> = Vec::new();
        for (start, end) in all {
            match merged.last_mut() {
                Some((_, last)) if *last >= End::Before(start.clone()) => *last = end.max(last.clone()),
                _ => merged.push((start, end)),
            }
        }
        Self(merged)
    }

    fn contain(&self, range: &KeyRange) -> bool {
        let (start, end) = bounds(range);
        self.0.iter().any(|(from, to)| *from <= start && *to >= end)
    }
}

/// What a user may do.
#[derive(Clone, Debug, Default)]
pub struct Rights {
    /// Everything.
    pub root: bool,
    read: Intervals,
    write: Intervals,
}

impl Rights {
    /// Whether all keys of an interval may be accessed.
    pub fn allow(&self, access: Access, range: &KeyRange) -> bool {
        let intervals = match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
        };
        self.root || intervals.contain(range)
    }
}

/// All rights at one auth revision.
#[derive(Debug)]
pub struct Table {
    /// The state that it was made from.
    pub state: AuthState,
    users: BTreeMap<String, Arc<Rights>>,
}

impl Table {
    /// Reads users and roles.
    pub fn read(view: &View) -> Self {
        let state = AuthState::of(view);
        if !state.enabled {
            return Self { state, users: BTreeMap::new() };
        }
        let roles: BTreeMap<String, Role> =
            names(view, ROLES).into_iter().filter_map(|name| Some((name.clone(), role(view, &name)?))).collect();
        let users = names(view, USERS).into_iter().filter_map(|name| user(view, &name).map(|user| (name, user)));
        let users = users.map(|(name, user)| (name, Arc::new(rights(&user, &roles)))).collect();
        Self { state, users }
    }

    /// What a user may do; `None` if there is no such user.
    pub fn rights(&self, user: &str) -> Option<&Arc<Rights>> {
        self.users.get(user)
    }
}

fn rights(user: &User, roles: &BTreeMap<String, Role>) -> Rights {
    let (mut read, mut write) = (Vec::new(), Vec::new());
    let permissions = user.roles.iter().filter_map(|name| roles.get(name)).flat_map(|role| &role.key_permission);
    for permission in permissions {
        let bounds = bounds(&interval(permission));
        if matches!(permission.perm_type(), Type::Read | Type::Readwrite) {
            read.push(bounds.clone());
        }
        if matches!(permission.perm_type(), Type::Write | Type::Readwrite) {
            write.push(bounds);
        }
    }
    let root = user.roles.iter().any(|role| role == ROOT);
    Rights { root, read: Intervals::of(read), write: Intervals::of(write) }
}

fn interval(permission: &Permission) -> KeyRange {
    super::super::convert::key_range(permission.key.clone(), permission.range_end.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(kind: Type, key: &str, range_end: &str) -> Permission {
        let range_end = if range_end == "0" { Bytes::from_static(b"\0") } else { range_end.to_owned().into() };
        Permission { perm_type: kind.into(), key: key.to_owned().into(), range_end }
    }

    #[test]
    fn intervals_of_several_roles_are_joined() {
        let role = |name: &str, key_permission| Role { name: name.to_owned().into(), key_permission };
        let one = role("one", vec![permission(Type::Readwrite, "a", "c"), permission(Type::Read, "x", "")]);
        let two = role("two", vec![permission(Type::Read, "c", "e"), permission(Type::Write, "y", "0")]);
        let roles = BTreeMap::from([("one".to_owned(), one), ("two".to_owned(), two)]);
        let user = User { roles: vec!["one".into(), "two".into()], ..User::default() };
        let rights = rights(&user, &roles);
        let range = |start: &'static str, end: &'static str| KeyRange::Range(start.into(), end.into());
        for (access, asked, want) in [
            (Access::Read, range("a", "e"), true),
            (Access::Read, range("b", "d"), true),
            (Access::Read, range("b", "f"), false),
            (Access::Read, KeyRange::Key("x".into()), true),
            (Access::Read, range("x", "y"), false),
            (Access::Write, range("a", "e"), false),
            (Access::Write, range("a", "c"), true),
            (Access::Write, KeyRange::From("yy".into()), true),
            (Access::Write, KeyRange::From("x".into()), false),
            (Access::Read, KeyRange::Key("y".into()), false),
        ] {
            assert_eq!(rights.allow(access, &asked), want, "{access:?} {asked:?}");
        }
    }

    #[test]
    fn the_state_is_read_as_it_was_written() {
        for state in [AuthState { enabled: true, revision: 7 }, AuthState { enabled: false, revision: 1 }] {
            assert_eq!(AuthState::decode(Some(&state.encode())), state);
        }
        assert_eq!(AuthState::decode(Some(&Bytes::from_static(b"x"))).revision, 1);
        assert_eq!(AuthState::decode(None), AuthState { enabled: false, revision: 1 });
    }
}
