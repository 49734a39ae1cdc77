//! Protocols spoken over gRPC, compiled from `proto/`.

/// The container runtime interface, version 1: what the node agent uses of it.
#[allow(missing_docs, clippy::all)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// What holds the keys of keys, version 2.
#[allow(missing_docs, clippy::all)]
pub mod kms {
    tonic::include_proto!("v2");
}

/// The etcd v3 API, each package under its own name, since they refer to each other by it.
#[allow(missing_docs, clippy::all)]
pub mod etcd {
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    pub mod authpb {
        tonic::include_proto!("authpb");
    }
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }
    pub mod v3electionpb {
        tonic::include_proto!("v3electionpb");
    }
    /// gRPC's reflection.
    pub mod reflection {
        tonic::include_proto!("grpc.reflection.v1");
    }
    /// gRPC's reflection under its older name, which many clients still use.
    pub mod reflection_v1alpha {
        tonic::include_proto!("grpc.reflection.v1alpha");
    }

    /// All files of the API as a serialized `FileDescriptorSet`.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/etcd.descriptors"));
}

/// What members of one cluster say to each other.
#[allow(missing_docs, clippy::all)]
pub mod peer {
    tonic::include_proto!("keelson.peer.v1");
}

/// gRPC's health check.
#[allow(missing_docs, clippy::all)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// The stream of events that containerd has beside the container runtime interface.
#[allow(missing_docs, clippy::all)]
pub mod containerd_events {
    tonic::include_proto!("containerd.services.events.v1");
}

/// The Container Storage Interface, as far as a node's agent speaks it.
#[allow(missing_docs)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// How plugins make themselves known.
#[allow(missing_docs)]
pub mod plugin_registration {
    tonic::include_proto!("pluginregistration");
}

/// How plugins offer devices.
#[allow(missing_docs, clippy::all)]
pub mod deviceplugin {
    tonic::include_proto!("v1beta1");
}

/// How drivers make claimed devices ready.
#[allow(missing_docs, clippy::all)]
pub mod dra {
    tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
}
