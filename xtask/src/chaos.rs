//! `cargo xtask chaos`: builds the server for release and hands over to `keelson chaos`.

use anyhow::{Result, bail};

use crate::platform::Platform;
use crate::shell::{self, command, run, step};
use crate::{setup, test};

/// Beside what a cluster needs: the etcd that the harness must find nothing wrong with.
const PACKAGES: &[&str] = &["etcd-server", "e2fsprogs"];

/// Runs it with `args`.
pub fn run_chaos(args: &[String]) -> Result<()> {
    if let Some(rest) = simulated(args) {
        setup::run(&Platform::default())?;
        step("building the simulation for release");
        run(&mut command("cargo", &["build", "--release", "--package", "keelson-sim"]))?;
        let built = shell::target_dir()?.join("release/keelson-sim");
        return run(command(&built.to_string_lossy(), &[]).args(rest));
    }
    if !shell::is_root() {
        bail!("members run in network namespaces, which need root: run `sudo -E env PATH=$PATH cargo xtask chaos`");
    }
    setup::run(&Platform::default())?;
    setup::packages(&[test::CLUSTER_PACKAGES, PACKAGES].concat())?;
    step("building for release");
    run(&mut command("cargo", &["build", "--release", "--package", "keelson"]))?;
    let built = shell::target_dir()?.join("release/keelson");
    run(command(&built.to_string_lossy(), &["chaos"]).args(args))
}

/// The other arguments if the world is to be a simulated one.
fn simulated(args: &[String]) -> Option<Vec<String>> {
    let at = args.windows(2).position(|pair| pair == ["--world", "sim"]);
    let (at, words) = at.map(|at| (at, 2)).or(args.iter().position(|arg| arg == "--world=sim").map(|at| (at, 1)))?;
    let mut rest = args.to_vec();
    rest.drain(at..at + words);
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worlds_are_told_apart() {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(simulated(&list("--seed 1")), None);
        assert_eq!(simulated(&list("--world sim --seed 1")), Some(list("--seed 1")));
        assert_eq!(simulated(&list("--seed 1 --world=sim")), Some(list("--seed 1")));
    }
}
