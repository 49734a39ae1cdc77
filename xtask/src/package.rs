//! `cargo xtask package`: a Debian package of the release build, made with dpkg-deb.
//!
//! The package holds the program, documentation and the licence; what a machine becomes is decided by `keelson install`, whose files are not the package's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::platform::{Platform, TargetArgs};
use crate::setup;
use crate::shell::{self, command, output, run, step};

/// Where the package and what goes into it are made.
#[derive(Args)]
pub struct PackageArgs {
    /// Where to put the package (default: target/package)
    #[arg(long)]
    out: Option<PathBuf>,
    /// Package this program instead of building one
    #[arg(long)]
    binary: Option<PathBuf>,
    #[command(flatten)]
    target: TargetArgs,
}

/// Builds the package; prints where it is.
pub fn package(args: &PackageArgs) -> Result<()> {
    let platform = Platform::of(&args.target)?;
    let binary = match &args.binary {
        Some(given) => given.clone(),
        None => build(&platform)?,
    };
    let out = match &args.out {
        Some(out) => out.clone(),
        None => shell::target_dir()?.join("package"),
    };
    let version = version(&fs::read(&binary).with_context(|| binary.display().to_string())?)?;
    let architecture = platform.debian()?;
    let floor = glibc_floor(&output(Command::new(platform.tool("objdump")).arg("-T").arg(&binary))?)?;
    let tree = out.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    fill(&tree, &binary, &platform)?;
    let kilobytes = fs::metadata(&binary)?.len() / 1024;
    let control = control(&version, &architecture, &floor, kilobytes);
    write(&tree.join("DEBIAN/control"), &control, 0o644)?;
    write(&tree.join("DEBIAN/prerm"), PRERM, 0o755)?;
    let package = out.join(format!("keelson_{version}_{architecture}.deb"));
    run(Command::new("dpkg-deb").args(["--build", "--root-owner-group", "-Zxz"]).arg(&tree).arg(&package))?;
    fs::remove_dir_all(&tree)?;
    println!("{} ({} KiB; needs glibc {floor})", package.display(), fs::metadata(&package)?.len() / 1024);
    Ok(())
}

fn build(platform: &Platform) -> Result<PathBuf> {
    setup::run(platform)?;
    step("building the release");
    let mut cargo = command("cargo", &["build", "--release", "--package", "keelson"]);
    platform.apply(&mut cargo);
    run(&mut cargo)?;
    Ok(shell::target_dir()?.join(platform.release()).join("keelson"))
}

/// The version that a program carries: it is read, not asked, for it may be for another machine than this.
fn version(program: &[u8]) -> Result<String> {
    let mark = b"keelson-version=";
    let at = program.windows(mark.len()).position(|bytes| bytes == mark).context("the program names no version")?;
    let rest = program[at + mark.len()..].iter();
    let text: String =
        rest.take_while(|byte| byte.is_ascii_digit() || **byte == b'.').map(|byte| char::from(*byte)).collect();
    Ok(text)
}

/// Before the program goes: a service of it would restart for ever without.
const PRERM: &str = "#!/bin/sh\nset -e\nif [ \"$1\" = remove ] && [ -e /etc/keelson/installed.json ]; then\n    echo \
                     'keelson is installed as a service: keelson uninstall --yes (or --keep-data) first' >&2\n    exit \
                     1\nfi\n";

fn fill(tree: &Path, binary: &Path, platform: &Platform) -> Result<()> {
    let program = tree.join("usr/bin/keelson");
    write(&program, "", 0o755)?;
    fs::copy(binary, &program).with_context(|| binary.display().to_string())?;
    run(Command::new(platform.tool("strip")).arg("--strip-debug").arg(&program))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let documents = tree.join("usr/share/doc/keelson");
    for (from, to) in [("README.md", "README.md"), ("LICENSE", "copyright"), ("docs/operations.md", "operations.md")] {
        let from = shell::repository().join(from);
        write(&documents.join(to), &fs::read_to_string(&from).with_context(|| from.display().to_string())?, 0o644)?;
    }
    Ok(())
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, text).with_context(|| path.display().to_string())?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

fn control(version: &str, architecture: &str, floor: &str, kilobytes: u64) -> String {
    format!(
        "Package: keelson\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: Keelson's authors\n\
         Installed-Size: {kilobytes}\nDepends: libc6 (>= {floor}), libstdc++6, libgcc-s1, iproute2\n\
         Recommends: nftables, containerd, runc, containernetworking-plugins, ca-certificates\n\
         Section: admin\nPriority: optional\n\
         Description: Kubernetes' control plane, its datastore and its node agent as one program\n \
         One program makes servers, nodes and a store that speaks etcd's protocol. Nothing becomes a\n \
         service before `keelson install server` or `keelson install agent` is run.\n"
    )
}

/// The newest version of glibc's symbols that a program needs: older systems cannot run it.
fn glibc_floor(symbols: &str) -> Result<String> {
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let text = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let (major, minor) = text.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.split('.').next()?.parse::<u32>().ok()?))
    });
    match versions.max() {
        Some((major, minor)) => Ok(format!("{major}.{minor}")),
        None => bail!("the program names no glibc: it is not for this system"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_symbol_counts() {
        let symbols = "x (GLIBC_2.2.5) read\nx (GLIBC_2.34) y\nx (GLIBC_2.17) z\nx (GLIBCXX_3.4.29) w\n";
        assert_eq!(glibc_floor(symbols).unwrap(), "2.34");
        assert!(glibc_floor("nothing").is_err());
        assert!(control("1.2.3", "amd64", "2.34", 5).contains("Depends: libc6 (>= 2.34)"));
    }
}
