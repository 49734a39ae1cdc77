//! The systemd units of a server and of an agent.

use std::path::Path;

use super::place::{Role, config_path};

/// What differs between the roles' units: the description, and lines of the service.
fn lines(role: Role) -> (&'static str, &'static str) {
    match role {
        Role::Server => (
            "Keelson server: Kubernetes' control plane and its store",
            // Others take over when a server ends; it hands leadership on first.
            "Type=notify\nTimeoutStartSec=0\nTimeoutStopSec=30\nOOMScoreAdjust=-900\n",
        ),
        Role::Agent => (
            "Keelson agent: runs pods on this machine",
            // Pods go on while the agent is away, and it makes their control groups itself.
            "Type=notify\nTimeoutStartSec=0\nKillMode=process\nDelegate=yes\nTasksMax=infinity\nOOMScoreAdjust=-999\n",
        ),
    }
}

/// The text of a role's unit, which runs `binary`.
pub fn text(role: Role, binary: &Path) -> String {
    let (description, more) = lines(role);
    let (name, binary, config) = (role.name(), binary.display(), config_path(role));
    let config = config.display();
    let after = match role {
        Role::Server => "network-online.target time-sync.target",
        Role::Agent => "network-online.target time-sync.target containerd.service",
    };
    format!(
        "# Written by `keelson install {name}`; `keelson uninstall` removes it.\n\
         [Unit]\nDescription={description}\nWants=network-online.target\nAfter={after}\n\n\
         [Service]\nExecStart={binary} {name} --config {config}\nEnvironment=KEELSON_LOG_FORMAT=text\n\
         Restart=always\nRestartSec=2\nLimitNOFILE=1048576\n{more}\n\
         [Install]\nWantedBy=multi-user.target\n"
    )
}
