//! `cargo xtask chaos`: builds the server for release and hands over to `keelson chaos`.

use anyhow::{Result, bail};

use crate::shell::{self, command, run, step};
use crate::{setup, test};

/// Beside what a cluster needs: the etcd that the harness must find nothing wrong with.
const PACKAGES: &[&str] = &["etcd-server", "e2fsprogs"];

/// Runs it with `args`.
pub fn run_chaos(args: &[String]) -> Result<()> {
    if !shell::is_root() {
        bail!("members run in network namespaces, which need root: run `sudo -E env PATH=$PATH cargo xtask chaos`");
    }
    setup::run()?;
    setup::packages(&[test::CLUSTER_PACKAGES, PACKAGES].concat())?;
    step("building for release");
    run(&mut command("cargo", &["build", "--release", "--package", "keelson"]))?;
    let built = shell::target_dir()?.join("release/keelson");
    run(command(&built.to_string_lossy(), &["chaos"]).args(args))
}
