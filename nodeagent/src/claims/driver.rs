//! The driver behind a socket: asked to make the devices of a claim ready, and to take them back. Both can be asked again.

use std::path::Path;
use std::time::Duration;

use http::uri::PathAndQuery;
use keelson_proto::dra::{
    Claim, NodePrepareResourcesRequest, NodePrepareResourcesResponse, NodeUnprepareResourcesRequest,
    NodeUnprepareResourcesResponse,
};
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::Channel;

use super::record::{Device, Record};
use crate::csi::channel;

/// The versions of the protocol, as plugins name them, with the paths of its calls. The first that a driver speaks is used.
const VERSIONS: &[(&str, &str, &str)] = &[
    (
        "v1.DRAPlugin",
        "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources",
        "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodeUnprepareResources",
    ),
    (
        "v1beta1.DRAPlugin",
        "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodePrepareResources",
        "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodeUnprepareResources",
    ),
];
/// Longest wait for an answer (upstream: 45 s).
const PATIENCE: Duration = Duration::from_secs(45);

/// A driver.
#[derive(Clone)]
pub struct Driver {
    channel: Channel,
    prepare: PathAndQuery,
    unprepare: PathAndQuery,
}

impl Driver {
    /// The driver of a socket, if it speaks a version of the protocol that is known here.
    pub fn new(name: &str, socket: &Path, versions: &[String]) -> Result<Self, String> {
        let spoken = VERSIONS.iter().find(|(version, ..)| versions.iter().any(|v| v == version));
        let Some((_, prepare, unprepare)) = spoken else {
            let ours: Vec<&str> = VERSIONS.iter().map(|(version, ..)| *version).collect();
            return Err(format!("DRA driver {name} speaks {versions:?}, none of {ours:?}"));
        };
        Ok(Self {
            channel: channel(socket).map_err(|e| e.to_string())?,
            prepare: PathAndQuery::from_static(prepare),
            unprepare: PathAndQuery::from_static(unprepare),
        })
    }

    async fn call<A, B>(&self, path: &PathAndQuery, asked: A) -> Result<B, String>
    where
        A: prost::Message + 'static,
        B: prost::Message + Default + 'static,
    {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await.map_err(|e| e.to_string())?;
        let mut request = Request::new(asked);
        request.set_timeout(PATIENCE);
        let codec = tonic_prost::ProstCodec::default();
        let answer = client.unary(request, path.clone(), codec).await.map_err(|e| e.message().to_owned())?;
        Ok(answer.into_inner())
    }

    /// Makes the devices of a claim ready.
    pub async fn prepare(&self, record: &Record) -> Result<Vec<Device>, String> {
        let asked = NodePrepareResourcesRequest { claims: vec![claim(record)] };
        let mut answer: NodePrepareResourcesResponse = self.call(&self.prepare, asked).await?;
        let mine = answer.claims.remove(&record.uid).ok_or("the answer does not have the claim")?;
        if !mine.error.is_empty() {
            return Err(mine.error);
        }
        let devices = mine.devices.into_iter();
        Ok(devices.map(|d| Device { requests: d.request_names, ids: d.cdi_device_ids }).collect())
    }

    /// Takes them back.
    pub async fn unprepare(&self, record: &Record) -> Result<(), String> {
        let asked = NodeUnprepareResourcesRequest { claims: vec![claim(record)] };
        let mut answer: NodeUnprepareResourcesResponse = self.call(&self.unprepare, asked).await?;
        let mine = answer.claims.remove(&record.uid).ok_or("the answer does not have the claim")?;
        if mine.error.is_empty() { Ok(()) } else { Err(mine.error) }
    }
}

fn claim(record: &Record) -> Claim {
    Claim { namespace: record.namespace.clone(), uid: record.uid.clone(), name: record.name.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_version_is_spoken() {
        let socket = Path::new("/nowhere");
        let of = |versions: &[&str]| {
            let versions: Vec<String> = versions.iter().map(|v| (*v).to_owned()).collect();
            Driver::new("d", socket, &versions).map(|d| d.prepare.path().to_owned())
        };
        assert!(of(&["v1beta1.DRAPlugin", "v1.DRAPlugin"]).unwrap().contains(".v1.DRAPlugin"));
        assert!(of(&["v1beta1.DRAPlugin"]).unwrap().contains(".v1beta1.DRAPlugin"));
        assert!(of(&["v1alpha9.Node"]).unwrap_err().contains("v1alpha9.Node"));
    }
}
