//! What the program is built for: this machine's own platform, or another one by a cross-compiler of Debian's.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::shell;

/// The flag that names a platform.
#[derive(Args, Clone, Debug, Default)]
pub struct TargetArgs {
    /// Build for another platform than this machine's: aarch64-unknown-linux-gnu
    #[arg(long, value_name = "TRIPLE")]
    pub target: Option<String>,
}

/// A platform, as the tools that build for it name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// The compiler's name; of the machine's own it is only known to differ from those of [`CROSS`].
    triple: Option<&'static str>,
    /// Flags of rustc, which RocksDB's build reads as well: its checksums need the processor's instructions.
    flags: &'static str,
    /// What tells the processor's level in the name of RocksDB's archive.
    pub level: &'static str,
    /// What Debian calls it; nothing for the machine's own.
    debian: Option<&'static str>,
    /// The prefix of GNU's tools for it.
    tools: &'static str,
    /// What building for it needs besides what building needs.
    pub packages: &'static [&'static str],
}

/// What RocksDB needs for its checksums, which servers with such processors have.
const ARM_FLAGS: &str = "-Ctarget-feature=+crc,+aes";
const ARM_LEVEL: &str = "aarch64-crc-aes";

/// The machine's own.
const NATIVE: Platform = Platform {
    triple: None,
    flags: if cfg!(target_arch = "aarch64") { ARM_FLAGS } else { "-Ctarget-cpu=x86-64-v2" },
    level: if cfg!(target_arch = "aarch64") { ARM_LEVEL } else { "x86-64-v2" },
    debian: None,
    tools: "",
    packages: &[],
};

/// The others.
const CROSS: &[Platform] = &[Platform {
    triple: Some("aarch64-unknown-linux-gnu"),
    flags: ARM_FLAGS,
    level: ARM_LEVEL,
    debian: Some("arm64"),
    tools: "aarch64-linux-gnu-",
    packages: &["gcc-aarch64-linux-gnu", "g++-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
}];

impl Default for Platform {
    fn default() -> Self {
        NATIVE
    }
}

impl Platform {
    /// The one that was asked for.
    pub fn of(args: &TargetArgs) -> Result<Self> {
        let Some(triple) = &args.target else { return Ok(NATIVE) };
        let known: Vec<&str> = CROSS.iter().filter_map(|p| p.triple).collect();
        match CROSS.iter().find(|platform| platform.triple == Some(triple)) {
            Some(platform) => Ok(*platform),
            None => bail!("--target {triple}: known are {}", known.join(", ")),
        }
    }

    /// Its name where it is not the machine's own.
    pub fn triple(&self) -> Option<&'static str> {
        self.triple
    }

    /// Where a workspace's checkout keeps or links RocksDB for it.
    pub fn link(&self) -> PathBuf {
        let name = self.triple.map_or_else(|| "rocksdb".to_owned(), |triple| format!("rocksdb-{triple}"));
        shell::repository().join(".cache").join(name)
    }

    /// Where cargo puts a release build for it, below the target directory.
    pub fn release(&self) -> PathBuf {
        self.triple.map(PathBuf::from).unwrap_or_default().join("release")
    }

    /// The tool of this name that understands its programs.
    pub fn tool(&self, name: &str) -> String {
        format!("{}{name}", self.tools)
    }

    /// What Debian calls it.
    pub fn debian(&self) -> Result<String> {
        match self.debian {
            Some(name) => Ok(name.to_owned()),
            None => Ok(shell::output(&mut shell::command("dpkg", &["--print-architecture"]))?.trim().to_owned()),
        }
    }

    /// Makes a call of cargo build for it; the compiler's flags are in `.cargo/config.toml`.
    pub fn apply(&self, cargo: &mut Command) {
        let Some(triple) = self.triple else { return };
        let (upper, lower) = (triple.to_uppercase().replace('-', "_"), triple.replace('-', "_"));
        cargo
            .args(["--target", triple])
            .env(format!("CARGO_TARGET_{upper}_LINKER"), self.tool("gcc"))
            .env(format!("CC_{lower}"), self.tool("gcc"))
            .env(format!("CXX_{lower}"), self.tool("g++"))
            .env(format!("AR_{lower}"), self.tool("ar"))
            .env(
                format!("BINDGEN_EXTRA_CLANG_ARGS_{lower}"),
                format!("-I/usr/{}/include", self.tools.trim_end_matches('-')),
            )
            .env("ROCKSDB_LIB_DIR", self.link());
    }

    /// The same for the build of RocksDB itself, which has no configuration file to read.
    pub fn apply_to_rocksdb(&self, cargo: &mut Command) {
        match self.triple {
            Some(_) => {
                self.apply(cargo);
                cargo.env("RUSTFLAGS", self.flags);
            }
            None => drop(cargo.env("RUSTFLAGS", self.flags).env("CC", "clang").env("CXX", "clang++")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(triple: &str) -> Result<Platform> {
        Platform::of(&TargetArgs { target: Some(triple.to_owned()) })
    }

    #[test]
    fn another_platform_has_its_own_tools_and_archive() {
        let (own, arm) = (Platform::of(&TargetArgs::default()).unwrap(), named("aarch64-unknown-linux-gnu").unwrap());
        assert_eq!((own.tool("strip"), arm.tool("strip")), ("strip".into(), "aarch64-linux-gnu-strip".into()));
        assert_ne!(own.link(), arm.link());
        assert_eq!(arm.debian().unwrap(), "arm64");
        let mut cargo = Command::new("cargo");
        arm.apply(&mut cargo);
        let linker = cargo.get_envs().find(|(key, _)| *key == "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER");
        assert_eq!(linker.unwrap().1.unwrap(), "aarch64-linux-gnu-gcc");
        assert!(named("sparc-unknown-linux-gnu").unwrap_err().to_string().contains("known are aarch64"));
    }
}
