//! Compiles the protocol files: one list.

/// The files, relative to `proto/`.
const FILES: &[&str] = &["cri.proto", "peer.proto", "health.proto", "containerd_events.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().build_transport(true).bytes(".keelson.peer.v1").compile_fds(descriptors)?;
    Ok(())
}
