//! Protocols spoken over gRPC, compiled from `proto/`.

/// The container runtime interface, version 1: what the node agent uses of it.
#[allow(missing_docs, clippy::all)]
pub mod cri {
    tonic::include_proto!("runtime.v1");
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
