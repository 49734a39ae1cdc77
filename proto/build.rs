//! Compiles the protocol files: one list. What reflection shows is written beside the generated code.

use std::path::PathBuf;

use prost::Message;

/// The files that are not part of the etcd API, relative to `proto/`.
const FILES: &[&str] = &[
    "cri.proto",
    "peer.proto",
    "containerd_events.proto",
    "csi.proto",
    "plugin_registration.proto",
    "kms.proto",
    "deviceplugin.proto",
    "dra.proto",
];
/// The files of the etcd API, and what is served beside it.
const ETCD_FILES: &[&str] =
    &["rpc.proto", "v3lock.proto", "v3election.proto", "health.proto", "reflection.proto", "reflection_v1alpha.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().build_transport(true).bytes(".keelson.peer.v1").compile_fds(descriptors)?;
    let descriptors = protox::compile(ETCD_FILES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("etcd.descriptors"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(true)
        // A key or value is a slice of the request that brought it, not a copy.
        .bytes(".etcdserverpb")
        .bytes(".mvccpb")
        .bytes(".authpb")
        .bytes(".v3lockpb")
        .bytes(".v3electionpb")
        .compile_fds(descriptors)?;
    Ok(())
}
