//! Who asks, and what they may do.
//!
//! Invariant: while authentication is on, no key is read or written for anyone whose roles do not say so; this holds for
//! every operation inside a transaction, for previous values and for what leases are attached to; a change that was allowed
//! is refused when users or roles have changed before it takes effect.

mod service;
mod table;
pub mod token;

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use keelson_store::{Compare, Guards, KeyRange, LeaseId, Op, PutRequest, Txn, View};
use prost::Message as _;
pub use service::AuthService;
use table::{Access, AuthState, ROLES, Rights, SECRET, Table, USERS, names};
use tonic::{Request, Status};

use super::Front;
use super::bolt::Writer;
use super::error::Refusal;
use super::tls::PeerName;

/// Rights as of the last auth revision that was seen.
#[derive(Default)]
pub struct Cache(ArcSwapOption<Table>);

impl Cache {
    fn table(&self, view: &View) -> Arc<Table> {
        let state = AuthState::of(view);
        if let Some(table) = &*self.0.load()
            && table.state == state
        {
            return table.clone();
        }
        let table = Arc::new(Table::read(view));
        self.0.store(Some(table.clone()));
        table
    }
}

/// Who asks.
#[derive(Clone)]
pub enum Caller {
    /// Authentication is off: anyone may do anything.
    Anyone,
    /// A user, with rights as of a state of authentication.
    User(String, Arc<Rights>, AuthState),
    /// Nobody known.
    Nobody,
}

impl Caller {
    /// Who sent a request: by its token, or by the certificate of its connection.
    pub fn of<T>(front: &Front, request: &Request<T>) -> Result<Self, Status> {
        let view = front.kv.view();
        let table = front.auth.table(&view);
        if !table.state.enabled {
            return Ok(Self::Anyone);
        }
        let header = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok());
        let Some(token) = header("token").or_else(|| header("authorization")) else {
            let name = request.extensions().get::<PeerName>().and_then(|name| name.0.clone());
            let known = name.and_then(|name| {
                table.rights(&name).map(|rights| Self::User(name.to_string(), rights.clone(), table.state))
            });
            return Ok(known.unwrap_or(Self::Nobody));
        };
        let token = token.strip_prefix("Bearer ").unwrap_or(token);
        let secret = view.setting(SECRET).cloned().unwrap_or_default();
        let bearer = front.options.tokens.check(&secret, token).ok_or(Refusal::InvalidAuthToken)?;
        if bearer.revision.is_some_and(|revision| revision < table.state.revision) {
            return Err(Refusal::AuthOldRevision.into());
        }
        let user = table::user(&view, &bearer.user).filter(|user| bearer.is_current(user));
        match (user, table.rights(&bearer.user)) {
            (Some(_), Some(rights)) => Ok(Self::User(bearer.user, rights.clone(), table.state)),
            _ => Err(Refusal::InvalidAuthToken.into()),
        }
    }

    /// What must still hold when what was allowed is done: users and roles are as they were when it was.
    pub fn guards(&self) -> Guards {
        match self {
            Self::User(_, _, state) => vec![(Bytes::from_static(table::STATE), Some(state.encode()))],
            Self::Anyone | Self::Nobody => Guards::new(),
        }
    }

    fn rights(&self) -> Result<Option<&Rights>, Refusal> {
        match self {
            Self::Anyone => Ok(None),
            Self::User(_, rights, _) => Ok(Some(rights)),
            Self::Nobody => Err(Refusal::UserEmpty),
        }
    }

    /// `Ok` for anyone who is known.
    pub fn known(&self) -> Result<(), Refusal> {
        self.rights().map(|_| ())
    }

    /// `Ok` for those who may do everything.
    pub fn admin(&self) -> Result<(), Refusal> {
        let allowed = self.rights()?.is_none_or(|rights| rights.root);
        if allowed { Ok(()) } else { Err(Refusal::PermissionDenied) }
    }

    fn may(&self, access: Access, range: &KeyRange) -> Result<(), Refusal> {
        let allowed = self.rights()?.is_none_or(|rights| rights.allow(access, range));
        if allowed { Ok(()) } else { Err(Refusal::PermissionDenied) }
    }

    /// `Ok` if all keys of an interval may be read.
    pub fn read(&self, range: &KeyRange) -> Result<(), Refusal> {
        self.may(Access::Read, range)
    }

    /// `Ok` if all keys of an interval may be written.
    pub fn write(&self, range: &KeyRange) -> Result<(), Refusal> {
        self.may(Access::Write, range)
    }

    /// `Ok` if a key may be put so: also what its lease holds already must be the caller's to write, since the lease's
    /// end would delete it.
    pub fn put(&self, view: &View, put: &PutRequest) -> Result<(), Refusal> {
        let range = KeyRange::Key(put.key.clone());
        self.write(&range)?;
        // A value that is kept tells nothing, but one that comes back does.
        if put.prev_kv {
            self.read(&range)?;
        }
        if put.lease == 0 { Ok(()) } else { self.lease(view, put.lease, Access::Write) }
    }

    /// `Ok` if all keys of a lease may be written.
    pub fn revoke(&self, view: &View, lease: LeaseId) -> Result<(), Refusal> {
        self.lease(view, lease, Access::Write)
    }

    /// `Ok` if all keys of a lease may be read.
    pub fn list_lease(&self, view: &View, lease: LeaseId) -> Result<(), Refusal> {
        self.lease(view, lease, Access::Read)
    }

    fn lease(&self, view: &View, lease: LeaseId, access: Access) -> Result<(), Refusal> {
        let Some(lease) = view.lease(lease).filter(|_| !matches!(self, Self::Anyone)) else { return self.known() };
        self.known()?;
        lease.keys().try_for_each(|key| self.may(access, &KeyRange::Key(key.clone())))
    }

    /// `Ok` if everything that a transaction may do, whichever way it goes, may be done.
    pub fn txn(&self, view: &View, txn: &Txn) -> Result<(), Refusal> {
        if matches!(self, Self::Anyone) {
            return Ok(());
        }
        txn.compare.iter().try_for_each(|Compare { range, .. }| self.read(range))?;
        txn.success.iter().chain(&txn.failure).try_for_each(|op| match op {
            Op::Range(request) => self.read(&request.range),
            Op::Put(put) => self.put(view, put),
            Op::Delete(delete) => {
                self.write(&delete.range)?;
                if delete.prev_kv { self.read(&delete.range) } else { Ok(()) }
            }
            Op::Txn(inner) => self.txn(view, inner),
        })
    }
}

/// Writes one of etcd's buckets of users, roles and settings into a snapshot.
pub(super) fn export(view: &View, bucket: &[u8], out: &mut Writer) -> io::Result<()> {
    out.begin(bucket);
    match bucket {
        b"auth" => {
            let state = AuthState::of(view);
            out.put(b"authEnabled", &[u8::from(state.enabled)])?;
            out.put(b"authRevision", &state.revision.to_be_bytes())?;
        }
        b"authUsers" => {
            for name in names(view, USERS) {
                let user = table::user(view, &name).unwrap_or_default();
                out.put(name.as_bytes(), &user.encode_to_vec())?;
            }
        }
        _ => {
            for name in names(view, ROLES) {
                let role = table::role(view, &name).unwrap_or_default();
                out.put(name.as_bytes(), &role.encode_to_vec())?;
            }
        }
    }
    out.end()
}

/// The settings that users, roles and state of an etcd snapshot become.
pub(super) fn import(enabled: bool, revision: u64, users: &Pairs, roles: &Pairs) -> Pairs {
    let mut settings = vec![(STATE_NAME.to_vec(), AuthState { enabled, revision }.encode().to_vec())];
    let named = |prefix: &[u8], (name, value): &(Vec<u8>, Vec<u8>)| ([prefix, name].concat(), value.clone());
    settings.extend(users.iter().map(|user| named(USERS, user)));
    settings.extend(roles.iter().map(|role| named(ROLES, role)));
    if enabled {
        settings.push((SECRET.to_vec(), service::fresh_secret()));
    }
    settings
}

/// Names and values.
pub(super) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

const STATE_NAME: &[u8] = table::STATE;
