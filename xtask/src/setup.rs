//! Makes a machine able to build: Debian packages, and RocksDB compiled once into the machine's cache.
//!
//! Why prebuilt: a clean build of RocksDB takes many minutes and cargo would repeat it per profile and checkout. See
//! `docs/decisions/0003-prebuilt-rocksdb.md`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::platform::Platform;
use crate::shell::{self, output, step};

/// What building needs, as Debian names it.
const BUILD_PACKAGES: &[&str] = &["clang", "libclang-dev", "g++"];

/// `cargo xtask setup`.
pub fn run(platform: &Platform) -> Result<()> {
    packages(&[BUILD_PACKAGES, platform.packages].concat())?;
    if let Some(triple) = platform.triple() {
        shell::run(Command::new("rustup").args(["target", "add", triple]))?;
    }
    rocksdb(platform)
}

/// Installs the Debian packages that are missing.
pub fn packages(wanted: &[&str]) -> Result<()> {
    let missing: Vec<&str> = wanted.iter().copied().filter(|p| !installed(p)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !shell::is_root() {
        bail!("missing packages; run this first: sudo apt-get install {}", missing.join(" "));
    }
    step(&format!("installing {}", missing.join(" ")));
    shell::run(Command::new("apt-get").args(["update", "-qq"]))?;
    shell::run(
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]))
        .is_ok_and(|s| s.contains("ok installed"))
}

/// Makes `.cache/rocksdb` (for another platform `.cache/rocksdb-TRIPLE`) in the checkout point at the machine's archive, building that if it is not there.
fn rocksdb(platform: &Platform) -> Result<()> {
    let lock = fs::read_to_string(shell::repository().join("Cargo.lock")).context("Cargo.lock")?;
    let crate_version = locked_version(&lock, "rocksdb")?;
    let sys_version = locked_version(&lock, "librocksdb-sys")?;
    let dir = shell::cache()?.join("rocksdb").join(format!("{sys_version}-{}", platform.level));
    if !dir.join("librocksdb.a").exists() {
        build_rocksdb(&crate_version, &dir, platform)?;
    }
    link(&dir, &platform.link())
}

fn link(dir: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|to| to == dir) {
        return Ok(());
    }
    fs::create_dir_all(link.parent().context("no parent")?)?;
    match fs::remove_file(link) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("replace {}", link.display()));
        }
        _ => {}
    }
    std::os::unix::fs::symlink(dir, link).with_context(|| format!("link {}", link.display()))
}

fn build_rocksdb(version: &str, dir: &Path, platform: &Platform) -> Result<()> {
    step("building RocksDB once for this machine (6 minutes on 4 cores, 15 on 2)");
    let builder = shell::cache()?.join("rocksdb-builder");
    fs::create_dir_all(builder.join("src"))?;
    fs::write(
        builder.join("Cargo.toml"),
        format!(
            "[package]\nname = \"rocksdb-builder\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n\
             rocksdb = {{ version = \"={version}\", default-features = false, features = [\"bindgen-runtime\", \"lz4\"] }}\n"
        ),
    )?;
    fs::write(builder.join("src/main.rs"), "fn main() {}\n")?;
    let target = builder.join("target");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--target-dir"]).arg(&target).current_dir(&builder);
    platform.apply_to_rocksdb(&mut cargo);
    for inherited in ["ROCKSDB_LIB_DIR", "ROCKSDB_STATIC", "CARGO_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS"] {
        cargo.env_remove(inherited);
    }
    shell::run(&mut cargo)?;
    let archive = newest_archive(&target.join(platform.release()).join("build"))?;
    fs::create_dir_all(dir)?;
    // Copied under another name first, so that an interrupted copy is not taken for the archive.
    fs::copy(&archive, dir.join("librocksdb.a.part"))?;
    fs::rename(dir.join("librocksdb.a.part"), dir.join("librocksdb.a"))?;
    fs::remove_dir_all(&target).context("remove the build's leftovers")
}

fn newest_archive(build: &Path) -> Result<PathBuf> {
    fs::read_dir(build)?
        .filter_map(|entry| Some(entry.ok()?.path().join("out/librocksdb.a")))
        .filter(|path| path.exists())
        .max_by_key(|path| path.metadata().and_then(|m| m.modified()).ok())
        .context("the build left no librocksdb.a")
}

/// Version of `package` in a Cargo.lock.
fn locked_version(lock: &str, package: &str) -> Result<String> {
    let name = format!("name = \"{package}\"");
    lock.lines()
        .skip_while(|line| *line != name)
        .nth(1)
        .and_then(|line| line.strip_prefix("version = \""))
        .map(|line| line.trim_end_matches('"').to_owned())
        .with_context(|| format!("{package} is not in Cargo.lock"))
}

#[cfg(test)]
mod tests {
    use super::locked_version;

    #[test]
    fn version_is_read_from_the_lock_file() {
        let lock = "[[package]]\nname = \"rocksdb\"\nversion = \"0.25.0\"\nsource = \"x\"\n";
        assert_eq!(locked_version(lock, "rocksdb").ok().as_deref(), Some("0.25.0"));
        assert!(locked_version(lock, "rocks").is_err());
    }
}
