//! The Maintenance service: status, hashes, snapshots, leadership, alarms.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use keelson_proto::etcd::etcdserverpb as pb;
use keelson_store::ChainHash;
use pb::alarm_request::AlarmAction;
use pb::downgrade_request::DowngradeAction;
use pb::maintenance_server::Maintenance;
use tonic::{Request, Response, Status};

use super::auth::Caller;
use super::error::{Refusal, of_cluster, of_kv};
use super::{API_VERSION, Front, alarm, snapshot};

/// The service.
pub struct MaintenanceService(pub Arc<Front>);

/// A chain hash as etcd's messages can carry it.
fn short(hash: ChainHash) -> u32 {
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

type Parts = Pin<Box<dyn Stream<Item = Result<pb::SnapshotResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn alarm(&self, request: Request<pb::AlarmRequest>) -> Result<Response<pb::AlarmResponse>, Status> {
        let caller = Caller::of(&self.0, &request)?;
        let request = request.into_inner();
        let action = AlarmAction::try_from(request.action).map_err(|_| Status::invalid_argument("unknown action"))?;
        if action != AlarmAction::Get {
            caller.admin()?;
        }
        let kind = request.alarm();
        let alarms = match action {
            AlarmAction::Get => alarm::list(&self.0, request.member_id, kind),
            AlarmAction::Activate => alarm::activate(&self.0, request.member_id, kind).await?,
            AlarmAction::Deactivate => alarm::deactivate(&self.0, request.member_id, kind).await?,
        };
        Ok(Response::new(pb::AlarmResponse { header: self.0.header_now(), alarms }))
    }

    async fn status(&self, _request: Request<pb::StatusRequest>) -> Result<Response<pb::StatusResponse>, Status> {
        let front = &self.0;
        let (standing, size) = (front.cluster.standing(), front.kv.status().db_size as i64);
        let mut errors = standing.errors;
        if standing.leader == 0 {
            errors.push(Refusal::NoLeader.text());
        }
        errors.extend(
            alarm::list(front, 0, pb::AlarmType::None)
                .into_iter()
                .map(|alarm| format!("memberID:{} alarm:{} ", alarm.member_id, alarm.alarm().as_str_name())),
        );
        Ok(Response::new(pb::StatusResponse {
            header: front.header_now(),
            version: API_VERSION.into(),
            storage_version: API_VERSION.into(),
            db_size: size,
            db_size_in_use: size,
            db_size_quota: front.options.quota_bytes as i64,
            leader: standing.leader,
            raft_index: standing.committed,
            raft_applied_index: standing.applied,
            raft_term: standing.term,
            is_learner: standing.is_learner,
            errors,
            downgrade_info: None,
        }))
    }

    /// Space comes back by itself: there is nothing to do.
    async fn defragment(
        &self,
        request: Request<pb::DefragmentRequest>,
    ) -> Result<Response<pb::DefragmentResponse>, Status> {
        Caller::of(&self.0, &request)?.admin()?;
        Ok(Response::new(pb::DefragmentResponse { header: None }))
    }

    async fn hash(&self, request: Request<pb::HashRequest>) -> Result<Response<pb::HashResponse>, Status> {
        Caller::of(&self.0, &request)?.admin()?;
        let (revision, hash) = self.0.cluster.hash_at(0).map_err(of_kv)?;
        Ok(Response::new(pb::HashResponse { header: self.0.header(revision), hash: short(hash) }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        Caller::of(&self.0, &request)?.admin()?;
        let asked = request.into_inner().revision;
        let view = self.0.kv.view();
        if asked > 0 && asked < view.compact_revision() {
            return Err(Refusal::Compacted.into());
        }
        let (revision, hash) = self.0.cluster.hash_at(asked).map_err(of_kv)?;
        Ok(Response::new(pb::HashKvResponse {
            header: self.0.header(view.revision()),
            hash: short(hash),
            compact_revision: view.compact_revision(),
            hash_revision: revision,
        }))
    }

    type SnapshotStream = Parts;

    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Result<Response<Parts>, Status> {
        Caller::of(&self.0, &request)?.admin()?;
        Ok(Response::new(Box::pin(snapshot::stream(self.0.clone()).await?)))
    }

    async fn move_leader(
        &self,
        request: Request<pb::MoveLeaderRequest>,
    ) -> Result<Response<pb::MoveLeaderResponse>, Status> {
        Caller::of(&self.0, &request)?.admin()?;
        let cluster = &self.0.cluster;
        if cluster.standing().leader != cluster.member_id() {
            return Err(Refusal::NotLeader.into());
        }
        cluster.move_leader(request.into_inner().target_id).await.map_err(of_cluster)?;
        Ok(Response::new(pb::MoveLeaderResponse { header: self.0.header(0) }))
    }

    async fn downgrade(
        &self,
        request: Request<pb::DowngradeRequest>,
    ) -> Result<Response<pb::DowngradeResponse>, Status> {
        Caller::of(&self.0, &request)?.admin()?;
        let request = request.into_inner();
        match DowngradeAction::try_from(request.action) {
            Ok(DowngradeAction::Validate) => {
                if !one_lower(&request.version)? {
                    return Err(Refusal::InvalidDowngradeTarget.into());
                }
                Ok(Response::new(pb::DowngradeResponse { header: self.0.header_now(), version: API_VERSION.into() }))
            }
            Ok(DowngradeAction::Cancel) => Err(Refusal::NoDowngrade.into()),
            // The data is not etcd's: older etcds read it only from a snapshot.
            _ => Err(Status::unimplemented("etcdserver: downgrades are not supported; restore a snapshot instead")),
        }
    }
}

/// Whether a version is one minor version below ours.
fn one_lower(version: &str) -> Result<bool, Refusal> {
    let parse = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.split('.').map(str::parse);
        let (major, minor) = (parts.next()?.ok()?, parts.next()?.ok()?);
        parts.all(|part| part.is_ok()).then_some((major, minor))
    };
    let (major, minor) = parse(version).ok_or(Refusal::BadDowngradeVersion)?;
    Ok(parse(API_VERSION).is_some_and(|ours| ours == (major, minor + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn downgrades_go_one_minor_version() {
        for (version, want) in [
            ("3.6.0", Ok(true)),
            ("3.6", Ok(true)),
            ("3.5.0", Ok(false)),
            ("3.7.0", Ok(false)),
            ("2.6.0", Ok(false)),
            ("3", Err(Refusal::BadDowngradeVersion)),
            ("a.b", Err(Refusal::BadDowngradeVersion)),
        ] {
            assert_eq!(one_lower(version), want, "{version}");
        }
    }
}
