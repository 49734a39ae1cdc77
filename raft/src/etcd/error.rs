//! etcd's error codes and texts: clients match on them.

use keelson_store::KvError;
use tonic::{Code, Status};

use crate::ClusterError;

/// Every refusal that has a fixed code and text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No key.
    EmptyKey,
    /// The key must exist and does not.
    KeyNotFound,
    /// A value beside `ignore_value`.
    ValueProvided,
    /// A lease beside `ignore_lease`.
    LeaseProvided,
    /// Too many operations.
    TooManyOps,
    /// A key written twice.
    DuplicateKey,
    /// A sort order or target that is not known.
    InvalidSortOption,
    /// The revision is gone.
    Compacted,
    /// The revision is not there yet.
    FutureRevision,
    /// The quota is used up.
    NoSpace,
    /// No such lease.
    LeaseNotFound,
    /// The lease id is taken.
    LeaseExists,
    /// The TTL is over the limit.
    LeaseTtlTooLarge,
    /// The request is over the size limit.
    TooLarge,
    /// Too many requests under way.
    TooManyRequests,
    /// No such member.
    MemberNotFound,
    /// A peer URL is taken.
    PeerUrlExists,
    /// Bad URLs.
    MemberBadUrls,
    /// The change would leave too few members.
    NotEnoughStarted,
    /// Not a learner.
    NotLearner,
    /// The learner lags.
    LearnerNotReady,
    /// Too many learners.
    TooManyLearners,
    /// Leadership cannot go there.
    BadTransferee,
    /// No leader.
    NoLeader,
    /// Not the leader.
    NotLeader,
    /// The member has stopped.
    Stopped,
    /// It took too long.
    Timeout,
    /// Not served by a learner.
    LearnerCannot,
    /// The member's data is damaged.
    Corrupt,
    /// Downgrade: not a version.
    BadDowngradeVersion,
    /// Downgrade: not one version lower.
    InvalidDowngradeTarget,
    /// Downgrade: none is under way.
    NoDowngrade,
    /// There is no root user.
    RootUserNotExist,
    /// Root lacks the root role.
    RootRoleNotExist,
    /// The user exists.
    UserExists,
    /// No user name.
    UserEmpty,
    /// No such user.
    UserNotFound,
    /// The role exists.
    RoleExists,
    /// No such role.
    RoleNotFound,
    /// No role name.
    RoleEmpty,
    /// Wrong user or password.
    AuthFailed,
    /// Not allowed.
    PermissionDenied,
    /// No permission in the request.
    PermissionNotGiven,
    /// The user lacks the role.
    RoleNotGranted,
    /// The role lacks the permission.
    PermissionNotGranted,
    /// Authentication is off.
    AuthNotEnabled,
    /// A bad token.
    InvalidAuthToken,
    /// root cannot lose what makes it root.
    InvalidAuthManagement,
    /// The token is of an older auth revision.
    AuthOldRevision,
    /// A user without a password cannot log in.
    NoPasswordUser,
}

/// Code and text of each refusal; the texts are all prefixed with `etcdserver: `.
const TABLE: &[(Refusal, Code, &str)] = &[
    (Refusal::EmptyKey, Code::InvalidArgument, "key is not provided"),
    (Refusal::KeyNotFound, Code::InvalidArgument, "key not found"),
    (Refusal::ValueProvided, Code::InvalidArgument, "value is provided"),
    (Refusal::LeaseProvided, Code::InvalidArgument, "lease is provided"),
    (Refusal::TooManyOps, Code::InvalidArgument, "too many operations in txn request"),
    (Refusal::DuplicateKey, Code::InvalidArgument, "duplicate key given in txn request"),
    (Refusal::InvalidSortOption, Code::InvalidArgument, "invalid sort option"),
    (Refusal::Compacted, Code::OutOfRange, "mvcc: required revision has been compacted"),
    (Refusal::FutureRevision, Code::OutOfRange, "mvcc: required revision is a future revision"),
    (Refusal::NoSpace, Code::ResourceExhausted, "mvcc: database space exceeded"),
    (Refusal::LeaseNotFound, Code::NotFound, "requested lease not found"),
    (Refusal::LeaseExists, Code::FailedPrecondition, "lease already exists"),
    (Refusal::LeaseTtlTooLarge, Code::OutOfRange, "too large lease TTL"),
    (Refusal::TooLarge, Code::InvalidArgument, "request is too large"),
    (Refusal::TooManyRequests, Code::ResourceExhausted, "too many requests"),
    (Refusal::MemberNotFound, Code::NotFound, "member not found"),
    (Refusal::PeerUrlExists, Code::FailedPrecondition, "Peer URLs already exists"),
    (Refusal::MemberBadUrls, Code::InvalidArgument, "given member URLs are invalid"),
    (Refusal::NotEnoughStarted, Code::FailedPrecondition, "re-configuration failed due to not enough started members"),
    (Refusal::NotLearner, Code::FailedPrecondition, "can only promote a learner member"),
    (
        Refusal::LearnerNotReady,
        Code::FailedPrecondition,
        "can only promote a learner member which is in sync with leader",
    ),
    (Refusal::TooManyLearners, Code::FailedPrecondition, "too many learner members in cluster"),
    (Refusal::BadTransferee, Code::FailedPrecondition, "bad leader transferee"),
    (Refusal::NoLeader, Code::Unavailable, "no leader"),
    (Refusal::NotLeader, Code::FailedPrecondition, "not leader"),
    (Refusal::Stopped, Code::Unavailable, "server stopped"),
    (Refusal::Timeout, Code::Unavailable, "request timed out"),
    (Refusal::LearnerCannot, Code::FailedPrecondition, "rpc not supported for learner"),
    (Refusal::Corrupt, Code::DataLoss, "corrupt cluster"),
    (Refusal::BadDowngradeVersion, Code::InvalidArgument, "wrong downgrade target version format"),
    (Refusal::InvalidDowngradeTarget, Code::InvalidArgument, "invalid downgrade target version"),
    (Refusal::NoDowngrade, Code::FailedPrecondition, "no inflight downgrade job"),
    (Refusal::RootUserNotExist, Code::FailedPrecondition, "root user does not exist"),
    (Refusal::RootRoleNotExist, Code::FailedPrecondition, "root user does not have root role"),
    (Refusal::UserExists, Code::FailedPrecondition, "user name already exists"),
    (Refusal::UserEmpty, Code::InvalidArgument, "user name is empty"),
    (Refusal::UserNotFound, Code::FailedPrecondition, "user name not found"),
    (Refusal::RoleExists, Code::FailedPrecondition, "role name already exists"),
    (Refusal::RoleNotFound, Code::FailedPrecondition, "role name not found"),
    (Refusal::RoleEmpty, Code::InvalidArgument, "role name is empty"),
    (Refusal::AuthFailed, Code::InvalidArgument, "authentication failed, invalid user ID or password"),
    (Refusal::PermissionDenied, Code::PermissionDenied, "permission denied"),
    (Refusal::PermissionNotGiven, Code::InvalidArgument, "permission not given"),
    (Refusal::RoleNotGranted, Code::FailedPrecondition, "role is not granted to the user"),
    (Refusal::PermissionNotGranted, Code::FailedPrecondition, "permission is not granted to the role"),
    (Refusal::AuthNotEnabled, Code::FailedPrecondition, "authentication is not enabled"),
    (Refusal::InvalidAuthToken, Code::Unauthenticated, "invalid auth token"),
    (Refusal::InvalidAuthManagement, Code::InvalidArgument, "invalid auth management"),
    (Refusal::AuthOldRevision, Code::InvalidArgument, "revision of auth store is old"),
    (Refusal::NoPasswordUser, Code::InvalidArgument, "authentication failed, password was given for no password user"),
];

impl Refusal {
    /// etcd's text, with its prefix.
    pub fn text(self) -> String {
        format!("etcdserver: {}", self.row().1)
    }

    /// The text with its code, as Go's clients write errors.
    pub fn wire_text(self) -> String {
        let code = match self.row().0 {
            Code::PermissionDenied => "PermissionDenied",
            Code::Unauthenticated => "Unauthenticated",
            Code::InvalidArgument => "InvalidArgument",
            _ => "Unknown",
        };
        format!("rpc error: code = {code} desc = {}", self.text())
    }

    fn row(self) -> (Code, &'static str) {
        let found = TABLE.iter().find(|(refusal, ..)| *refusal == self);
        found.map_or((Code::Unknown, "unknown error"), |(_, code, text)| (*code, *text))
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.row().0, refusal.text())
    }
}

/// What a client is told of the store's refusal of what was allowed as users and roles were.
pub fn of_guarded(error: KvError) -> Status {
    match error {
        KvError::SettingsConflict => Refusal::AuthOldRevision.into(),
        error => of_kv(error),
    }
}

/// What a client is told of the store's refusal.
pub fn of_kv(error: KvError) -> Status {
    let refusal = match error {
        KvError::Compacted(_) => Refusal::Compacted,
        KvError::FutureRevision => Refusal::FutureRevision,
        KvError::KeyNotFound => Refusal::KeyNotFound,
        KvError::DuplicateKey => Refusal::DuplicateKey,
        KvError::EmptyKey => Refusal::EmptyKey,
        KvError::LeaseNotFound => Refusal::LeaseNotFound,
        KvError::LeaseExists => Refusal::LeaseExists,
        KvError::LeaseTtlTooLarge => Refusal::LeaseTtlTooLarge,
        KvError::TooLarge => Refusal::TooLarge,
        KvError::TooManyOps => Refusal::TooManyOps,
        KvError::Overloaded | KvError::SettingsConflict => Refusal::TooManyRequests,
        KvError::Unavailable(why) if why.contains("timed out") => Refusal::Timeout,
        KvError::Unavailable(why) => {
            tracing::debug!(why, "a request was refused");
            Refusal::NoLeader
        }
        KvError::Stopped(why) if why.contains("corruption") => {
            tracing::warn!(why, "a request was refused");
            Refusal::Corrupt
        }
        KvError::Stopped(why) => {
            tracing::warn!(why, "a request was refused");
            Refusal::Stopped
        }
    };
    refusal.into()
}

/// What a client is told of the cluster's refusal.
pub fn of_cluster(error: ClusterError) -> Status {
    let refusal = match error {
        ClusterError::MemberNotFound => Refusal::MemberNotFound,
        ClusterError::PeerUrlExists => Refusal::PeerUrlExists,
        ClusterError::BadUrls => Refusal::MemberBadUrls,
        ClusterError::NotEnoughStarted => Refusal::NotEnoughStarted,
        ClusterError::NotLearner => Refusal::NotLearner,
        ClusterError::LearnerNotReady => Refusal::LearnerNotReady,
        ClusterError::TooManyLearners => Refusal::TooManyLearners,
        ClusterError::BadTransferee => Refusal::BadTransferee,
        ClusterError::NotLeader => Refusal::NotLeader,
        ClusterError::Unsupported(why) => return Status::failed_precondition(format!("etcdserver: {why}")),
        ClusterError::Kv(error) => return of_kv(error),
    };
    refusal.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_one_row_and_texts_differ() {
        for (index, (refusal, code, text)) in TABLE.iter().enumerate() {
            assert_eq!(refusal.row(), (*code, *text), "{refusal:?}");
            assert!(TABLE[..index].iter().all(|(_, _, other)| other != text), "{text}");
        }
        let status = Status::from(Refusal::Compacted);
        assert_eq!(status.message(), "etcdserver: mvcc: required revision has been compacted");
    }
}
