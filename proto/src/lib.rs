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
