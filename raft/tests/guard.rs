//! Locks and elections while authentication is on: who may not touch the keys that they stand for gets neither.

use std::sync::Arc;

use keelson_proto::etcd::etcdserverpb as pb;
use keelson_proto::etcd::{authpb, v3electionpb, v3lockpb};
use keelson_raft::etcd::auth::AuthService;
use keelson_raft::etcd::election::ElectionService;
use keelson_raft::etcd::kv::KvService;
use keelson_raft::etcd::lock::LockService;
use keelson_raft::etcd::{Front, Options};
use keelson_raft::{Member, SingleMember};
use keelson_store::{Kv, LocalKv};
use pb::auth_server::Auth;
use pb::kv_server::Kv as KvApi;
use tonic::{Code, Request, Status};
use v3electionpb::election_server::Election;
use v3lockpb::lock_server::Lock;

/// A request with a user's token.
fn of<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        request.metadata_mut().insert("token", token.parse().expect("a token"));
    }
    request
}

async fn token(auth: &AuthService, name: &str) -> String {
    let login = pb::AuthenticateRequest { name: name.into(), password: "pw".into() };
    auth.authenticate(Request::new(login)).await.expect("logged in").into_inner().token
}

/// Makes root and a user who may read and write below `locks/`, and turns authentication on.
async fn guarded(auth: &AuthService) {
    for name in ["root", "lena"] {
        let add = pb::AuthUserAddRequest { name: name.into(), password: "pw".into(), ..Default::default() };
        auth.user_add(Request::new(add)).await.expect("a user");
    }
    for role in ["root", "locker"] {
        auth.role_add(Request::new(pb::AuthRoleAddRequest { name: role.into() })).await.expect("a role");
    }
    let below = authpb::Permission {
        perm_type: authpb::permission::Type::Readwrite.into(),
        key: "locks/".into(),
        range_end: "locks0".into(),
    };
    let grant = pb::AuthRoleGrantPermissionRequest { name: "locker".into(), perm: Some(below) };
    auth.role_grant_permission(Request::new(grant)).await.expect("granted");
    for (user, role) in [("root", "root"), ("lena", "locker")] {
        let grant = pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        auth.user_grant_role(Request::new(grant)).await.expect("granted");
    }
    auth.auth_enable(Request::new(pb::AuthEnableRequest {})).await.expect("on");
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.err().map_or(Code::Ok, |status| status.code())
}

#[tokio::test]
async fn locks_and_elections_need_the_rights_to_their_keys() {
    let dir = tempfile::tempdir().expect("a directory");
    let kv = Arc::new(LocalKv::open(dir.path()).expect("a store"));
    let member = Member { id: 1, name: "m".into(), ..Member::default() };
    let cluster = Arc::new(SingleMember::new(kv.clone(), 7, member));
    let front = Front::new(kv.clone(), cluster, Options { bcrypt_cost: 4, ..Options::default() });
    let (auth, locks, elections) =
        (AuthService(front.clone()), LockService(front.clone()), ElectionService(front.clone()));
    guarded(&auth).await;
    let (root, lena) = (token(&auth, "root").await, token(&auth, "lena").await);
    // A lease with a key that only root may touch.
    let foreign = kv.lease_grant(0, 60).await.expect("a lease");
    let put = pb::PutRequest { key: "secret".into(), value: "s".into(), lease: foreign, ..Default::default() };
    KvService(front.clone()).put(of(&root, put)).await.expect("put");
    for (who, name, lease, want) in [
        (&lena, "locks/own", 0, Code::Ok),
        (&lena, "others/lock", 0, Code::PermissionDenied),
        (&lena, "locks/foreign-lease", foreign, Code::PermissionDenied),
        (&String::new(), "locks/nobody", 0, Code::InvalidArgument),
        (&"forged.token".to_owned(), "locks/forged", 0, Code::Unauthenticated),
        (&root, "others/lock", 0, Code::Ok),
    ] {
        let lock = v3lockpb::LockRequest { name: name.into(), lease };
        assert_eq!(code(locks.lock(of(who, lock)).await), want, "lock {name}");
        let campaign =
            v3electionpb::CampaignRequest { name: format!("{name}-office").into(), lease, value: "v".into() };
        assert_eq!(code(elections.campaign(of(who, campaign)).await), want, "campaign {name}");
        let leader = v3electionpb::LeaderRequest { name: format!("{name}-office").into() };
        let seen = code(elections.leader(of(who, leader)).await);
        // Reading an election needs no lease: this one has no leader.
        let want = if lease == 0 { want } else { Code::Unknown };
        assert_eq!(seen, want, "leader {name}");
    }
    let held = locks.lock(of(&root, v3lockpb::LockRequest { name: "others/held".into(), lease: 0 })).await;
    let key = held.expect("locked").into_inner().key;
    let unlock = |who: &str| locks.unlock(of(who, v3lockpb::UnlockRequest { key: key.clone() }));
    assert_eq!(code(unlock(&lena).await), Code::PermissionDenied);
    assert!(kv.view().get(&key).is_some(), "it is still held");
    assert_eq!(code(unlock(&root).await), Code::Ok);
    assert!(kv.view().get(&key).is_none());
}
