//! The node agent: registers a node, keeps its lease and runs its pods; also hollow nodes for tests and trials.
//!
//! Invariant: all that an agent knows can be had again from the API and the container runtime, so it may die any time.

mod admit;
pub mod agent;
mod allotment;
mod cadvisor;
mod cgroup;
mod cgroup_counts;
mod claims;
mod cni;
mod cpus;
mod cri;
mod csi;
mod devices;
mod events;
mod handler;
pub mod hollow;
mod hollow_status;
mod interfaces;
pub mod join;
pub mod leave;
mod local_storage;
mod machine;
mod manifests;
mod memories;
mod network;
pub mod node;
mod node_events;
mod objects;
mod placement;
mod pod_status;
mod pods;
mod pressure;
mod probe;
mod probe_counts;
pub mod renewal;
mod resize;
mod runtime_events;
mod server;
mod shutdown;
mod spec;
mod stats;
mod strays;
mod summary;
mod topology;
mod userns;
mod volumes;
mod worker;

pub use agent::{Agent, AgentConfig, AgentError};
pub use cni::PodNetwork;
pub use cpus::{CpuPolicy, CpuSet};
pub use manifests::Manifests;
pub use memories::{MemoryPolicy, parse_reserved};
#[doc(hidden)]
pub use network::measure;
pub use network::proxy::ProxyMode;
pub use placement::Placement;
pub use pressure::Thresholds;
pub use shutdown::Shutdown;
pub use spec::pages::SwapBehavior;
pub use topology::{TopologyPolicy, TopologyScope};
