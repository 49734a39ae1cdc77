//! The Cluster service: members.

use std::sync::Arc;

use keelson_proto::etcd::etcdserverpb as pb;
use pb::cluster_server::Cluster;
use tonic::{Request, Response, Status};

use super::Front;
use super::auth::Caller;
use super::error::of_cluster;
use crate::Member;

/// The service.
pub struct ClusterService(pub Arc<Front>);

fn member(member: Member) -> pb::Member {
    pb::Member {
        id: member.id,
        name: member.name,
        peer_ur_ls: member.peer_urls,
        client_ur_ls: member.client_urls,
        is_learner: member.is_learner,
    }
}

impl ClusterService {
    async fn members(&self, linearizable: bool) -> Result<Vec<pb::Member>, Status> {
        let members = self.0.cluster.members(linearizable).await.map_err(of_cluster)?;
        Ok(members.into_iter().map(member).collect())
    }

    /// The header of answers about members: they have no revision.
    fn header(&self) -> Option<pb::ResponseHeader> {
        self.0.header(0)
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_add(
        &self,
        request: Request<pb::MemberAddRequest>,
    ) -> Result<Response<pb::MemberAddResponse>, Status> {
        Caller::of(&self.0, &request)?.admin()?;
        let request = request.into_inner();
        let added = self.0.cluster.add(request.peer_ur_ls, request.is_learner).await.map_err(of_cluster)?;
        let members = self.members(false).await?;
        Ok(Response::new(pb::MemberAddResponse { header: self.header(), member: Some(member(added)), members }))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Result<Response<pb::MemberRemoveResponse>, Status> {
        Caller::of(&self.0, &request)?.admin()?;
        self.0.cluster.remove(request.into_inner().id).await.map_err(of_cluster)?;
        let members = self.members(false).await?;
        Ok(Response::new(pb::MemberRemoveResponse { header: self.header(), members }))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Result<Response<pb::MemberUpdateResponse>, Status> {
        Caller::of(&self.0, &request)?.admin()?;
        let request = request.into_inner();
        self.0.cluster.update(request.id, request.peer_ur_ls).await.map_err(of_cluster)?;
        let members = self.members(false).await?;
        Ok(Response::new(pb::MemberUpdateResponse { header: self.header(), members }))
    }

    async fn member_list(
        &self,
        request: Request<pb::MemberListRequest>,
    ) -> Result<Response<pb::MemberListResponse>, Status> {
        let members = self.members(request.into_inner().linearizable).await?;
        Ok(Response::new(pb::MemberListResponse { header: self.header(), members }))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Result<Response<pb::MemberPromoteResponse>, Status> {
        Caller::of(&self.0, &request)?.admin()?;
        self.0.cluster.promote(request.into_inner().id).await.map_err(of_cluster)?;
        let members = self.members(false).await?;
        Ok(Response::new(pb::MemberPromoteResponse { header: self.header(), members }))
    }
}
