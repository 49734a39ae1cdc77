//! The Auth service: users, roles, logging in.

use std::sync::Arc;

use bytes::Bytes;
use keelson_proto::etcd::authpb::{Role, User};
use keelson_proto::etcd::etcdserverpb as pb;
use keelson_store::{KvError, SettingsChange, View};
use pb::auth_server::Auth;
use prost::Message;
use rand::RngExt;
use tonic::{Request, Response, Status};

use super::super::Front;
use super::super::error::{Refusal, of_kv};
use super::Caller;
use super::table::{AuthState, ROLES, ROOT, SECRET, STATE, USERS, names, role, role_key, user, user_key};

/// Bytes of the secret that signs tokens.
const SECRET_BYTES: usize = 32;
/// How often a change is tried again that another one has overtaken.
const ATTEMPTS: usize = 16;

/// The service.
pub struct AuthService(pub Arc<Front>);

type Writes = Vec<(Bytes, Option<Bytes>)>;

/// A secret that nobody knows.
pub(super) fn fresh_secret() -> Vec<u8> {
    let mut secret = vec![0; SECRET_BYTES];
    rand::rng().fill(&mut secret[..]);
    secret
}

/// What a change of users and roles does; `None`: it is so already.
type Plan = Result<Option<(AuthState, Writes)>, Refusal>;

fn set(name: Bytes, message: &impl Message) -> (Bytes, Option<Bytes>) {
    (name, Some(message.encode_to_vec().into()))
}

fn found_user(view: &View, name: &str) -> Result<User, Refusal> {
    user(view, name).ok_or(Refusal::UserNotFound)
}

fn found_role(view: &View, name: &str) -> Result<Role, Refusal> {
    role(view, name).ok_or(Refusal::RoleNotFound)
}

/// The hash that is kept of a password.
async fn hash(password: String, cost: u32) -> Result<Bytes, Status> {
    let hashed = crate::task::blocking(move || bcrypt::hash(password, cost)).await;
    let hashed = hashed.map_err(|error| Status::internal(error.to_string()))?;
    hashed.map(Bytes::from).map_err(|error| Status::invalid_argument(format!("etcdserver: {error}")))
}

impl AuthService {
    /// Plans a change on the current state and carries it out, again if another change came between.
    async fn change(&self, plan: impl Fn(&View, AuthState) -> Plan) -> Result<(), Status> {
        for _ in 0..ATTEMPTS {
            self.0.kv.barrier().await.map_err(of_kv)?;
            let view = self.0.kv.view();
            let state = AuthState::of(&view);
            let Some((mut next, mut writes)) = plan(&view, state)? else { return Ok(()) };
            next.revision = state.revision + 1;
            writes.push((Bytes::from_static(STATE), Some(next.encode())));
            let guards = vec![(Bytes::from_static(STATE), view.setting(STATE).cloned())];
            match self.0.kv.change_settings(SettingsChange { guards, writes }).await {
                Err(KvError::SettingsConflict) => {}
                done => return done.map_err(of_kv),
            }
        }
        Err(Refusal::TooManyRequests.into())
    }

    fn header(&self) -> Option<pb::ResponseHeader> {
        self.0.header_now()
    }

    fn admin<T>(&self, request: Request<T>) -> Result<T, Status> {
        Caller::of(&self.0, &request)?.admin()?;
        Ok(request.into_inner())
    }

    /// Checks a password.
    async fn log_in(&self, name: &str, password: String) -> Result<User, Status> {
        let found = user(&self.0.kv.view(), name).ok_or(Refusal::AuthFailed)?;
        if found.options.is_some_and(|options| options.no_password) {
            return Err(Refusal::NoPasswordUser.into());
        }
        let hashed = String::from_utf8_lossy(&found.password).into_owned();
        let right = crate::task::blocking(move || bcrypt::verify(password, &hashed).unwrap_or(false)).await;
        if right.unwrap_or(false) { Ok(found) } else { Err(Refusal::AuthFailed.into()) }
    }
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        self.admin(request)?;
        self.change(|view, state| {
            if state.enabled {
                return Ok(None);
            }
            let root = user(view, ROOT).ok_or(Refusal::RootUserNotExist)?;
            if !root.roles.iter().any(|role| role == ROOT) {
                return Err(Refusal::RootRoleNotExist);
            }
            // A new secret: tokens of earlier times are void.
            let secret = (Bytes::from_static(SECRET), Some(fresh_secret().into()));
            Ok(Some((AuthState { enabled: true, ..state }, vec![secret])))
        })
        .await?;
        Ok(Response::new(pb::AuthEnableResponse { header: self.header() }))
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        self.admin(request)?;
        let off =
            |_: &View, state: AuthState| Ok(state.enabled.then(|| (AuthState { enabled: false, ..state }, Vec::new())));
        self.change(off).await?;
        Ok(Response::new(pb::AuthDisableResponse { header: self.header() }))
    }

    async fn auth_status(
        &self,
        _request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        let state = AuthState::of(&self.0.kv.view());
        Ok(Response::new(pb::AuthStatusResponse {
            header: self.header(),
            enabled: state.enabled,
            auth_revision: state.revision,
        }))
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        let pb::AuthenticateRequest { name, password } = request.into_inner();
        self.0.kv.barrier().await.map_err(of_kv)?;
        let state = AuthState::of(&self.0.kv.view());
        if !state.enabled {
            return Err(Refusal::AuthNotEnabled.into());
        }
        let user = self.log_in(&name, password).await?;
        let secret = self.0.kv.view().setting(SECRET).cloned().unwrap_or_default();
        let token = self.0.options.tokens.issue(&secret, &user, state.revision).map_err(Status::internal)?;
        Ok(Response::new(pb::AuthenticateResponse { header: self.header(), token }))
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        let request = self.admin(request)?;
        if request.name.is_empty() {
            return Err(Refusal::UserEmpty.into());
        }
        let no_password = request.options.is_some_and(|options| options.no_password);
        let password =
            if no_password { Bytes::new() } else { hash(request.password, self.0.options.bcrypt_cost).await? };
        let (name, options) = (request.name, request.options);
        self.change(|view, state| {
            if user(view, &name).is_some() {
                return Err(Refusal::UserExists);
            }
            let added = User { name: name.clone().into(), password: password.clone(), roles: Vec::new(), options };
            Ok(Some((state, vec![set(user_key(&name), &added)])))
        })
        .await?;
        Ok(Response::new(pb::AuthUserAddResponse { header: self.header() }))
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let name = request.into_inner().name;
        if !matches!(&caller, Caller::User(own, ..) if *own == name) {
            caller.admin()?;
        }
        let roles = found_user(&self.0.kv.view(), &name)?.roles;
        Ok(Response::new(pb::AuthUserGetResponse { header: self.header(), roles }))
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        self.admin(request)?;
        let users = names(&self.0.kv.view(), USERS);
        Ok(Response::new(pb::AuthUserListResponse { header: self.header(), users }))
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        let name = self.admin(request)?.name;
        self.change(|view, state| {
            if state.enabled && name == ROOT {
                return Err(Refusal::InvalidAuthManagement);
            }
            found_user(view, &name)?;
            Ok(Some((state, vec![(user_key(&name), None)])))
        })
        .await?;
        Ok(Response::new(pb::AuthUserDeleteResponse { header: self.header() }))
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        let request = self.admin(request)?;
        let (name, password) = (request.name, hash(request.password, self.0.options.bcrypt_cost).await?);
        self.change(|view, state| {
            let changed = User { password: password.clone(), ..found_user(view, &name)? };
            Ok(Some((state, vec![set(user_key(&name), &changed)])))
        })
        .await?;
        Ok(Response::new(pb::AuthUserChangePasswordResponse { header: self.header() }))
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        let pb::AuthUserGrantRoleRequest { user: name, role: granted } = self.admin(request)?;
        self.change(|view, state| {
            let mut user = found_user(view, &name)?;
            if granted != ROOT {
                found_role(view, &granted)?;
            }
            let Err(at) = user.roles.binary_search(&granted) else { return Ok(None) };
            user.roles.insert(at, granted.clone());
            Ok(Some((state, vec![set(user_key(&name), &user)])))
        })
        .await?;
        Ok(Response::new(pb::AuthUserGrantRoleResponse { header: self.header() }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        let pb::AuthUserRevokeRoleRequest { name, role: revoked } = self.admin(request)?;
        self.change(|view, state| {
            if state.enabled && name == ROOT && revoked == ROOT {
                return Err(Refusal::InvalidAuthManagement);
            }
            let mut user = found_user(view, &name)?;
            let at = user.roles.iter().position(|role| *role == revoked).ok_or(Refusal::RoleNotGranted)?;
            user.roles.remove(at);
            Ok(Some((state, vec![set(user_key(&name), &user)])))
        })
        .await?;
        Ok(Response::new(pb::AuthUserRevokeRoleResponse { header: self.header() }))
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        let name = self.admin(request)?.name;
        if name.is_empty() {
            return Err(Refusal::RoleEmpty.into());
        }
        self.change(|view, state| {
            if role(view, &name).is_some() {
                return Err(Refusal::RoleExists);
            }
            let added = Role { name: name.clone().into(), key_permission: Vec::new() };
            Ok(Some((state, vec![set(role_key(&name), &added)])))
        })
        .await?;
        Ok(Response::new(pb::AuthRoleAddResponse { header: self.header() }))
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let (name, view) = (request.into_inner().role, self.0.kv.view());
        let own = |user_name: &str| user(&view, user_name).is_some_and(|user| user.roles.contains(&name));
        if !matches!(&caller, Caller::User(user_name, ..) if own(user_name)) {
            caller.admin()?;
        }
        let perm = found_role(&view, &name)?.key_permission;
        Ok(Response::new(pb::AuthRoleGetResponse { header: self.header(), perm }))
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        self.admin(request)?;
        let roles = names(&self.0.kv.view(), ROLES);
        Ok(Response::new(pb::AuthRoleListResponse { header: self.header(), roles }))
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        let name = self.admin(request)?.role;
        self.change(|view, state| {
            if state.enabled && name == ROOT {
                return Err(Refusal::InvalidAuthManagement);
            }
            found_role(view, &name)?;
            let mut writes = vec![(role_key(&name), None)];
            for user_name in names(view, USERS) {
                let mut changed = found_user(view, &user_name)?;
                let before = changed.roles.len();
                changed.roles.retain(|role| *role != name);
                if changed.roles.len() < before {
                    writes.push(set(user_key(&user_name), &changed));
                }
            }
            Ok(Some((state, writes)))
        })
        .await?;
        Ok(Response::new(pb::AuthRoleDeleteResponse { header: self.header() }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        let pb::AuthRoleGrantPermissionRequest { name, perm } = self.admin(request)?;
        let perm = perm.ok_or(Refusal::PermissionNotGiven)?;
        self.change(|view, state| {
            let mut role = found_role(view, &name)?;
            let same = |known: &&mut keelson_proto::etcd::authpb::Permission| {
                known.key == perm.key && known.range_end == perm.range_end
            };
            match role.key_permission.iter_mut().find(same) {
                Some(known) => known.perm_type = perm.perm_type,
                None => role.key_permission.push(perm.clone()),
            }
            role.key_permission.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(Some((state, vec![set(role_key(&name), &role)])))
        })
        .await?;
        Ok(Response::new(pb::AuthRoleGrantPermissionResponse { header: self.header() }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        let pb::AuthRoleRevokePermissionRequest { role: name, key, range_end } = self.admin(request)?;
        self.change(|view, state| {
            let mut role = found_role(view, &name)?;
            let before = role.key_permission.len();
            role.key_permission.retain(|known| known.key != key || known.range_end != range_end);
            if role.key_permission.len() == before {
                return Err(Refusal::PermissionNotGranted);
            }
            Ok(Some((state, vec![set(role_key(&name), &role)])))
        })
        .await?;
        Ok(Response::new(pb::AuthRoleRevokePermissionResponse { header: self.header() }))
    }
}
