//! Images made on the spot from Debian's busybox-static, since a testbed needs no registry and no network.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The image whose container holds a pod's namespaces.
pub const PAUSE: &str = "keelson.local/pause:1";
/// A small web server; `:2` differs in what it answers, for updates.
pub const WEB: [&str; 2] = ["keelson.local/web:1", "keelson.local/web:2"];
/// Says its arguments: an image with an entry point and arguments of its own.
pub const TALK: &str = "keelson.local/talk:1";
/// The port of the web server.
pub const WEB_PORT: u16 = 8080;

/// Where a statically linked busybox may be.
const BUSYBOX: &[&str] = &["/bin/busybox", "/usr/bin/busybox", "/usr/lib/initramfs-tools/bin/busybox"];
/// Commands that the image offers, as links to busybox.
const COMMANDS: &[&str] = &[
    "cat", "date", "df", "echo", "env", "false", "grep", "head", "hostname", "httpd", "id", "ip", "kill", "ls",
    "mkdir", "nc", "netstat", "nslookup", "ping", "ps", "rm", "sed", "sh", "sleep", "tail", "tar", "test", "top",
    "touch", "true", "uname", "vi", "wc", "wget",
];
/// Reaps what is left to it, and ends at once when it is told to.
const PAUSE_SCRIPT: &str = "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait $!; done";
/// Says on which pod it runs; logs requests.
const WEB_SCRIPT: &str = r#"trap 'kill $!; exit 0' TERM INT
mkdir -p /www && echo "hello from $(hostname), version $VERSION" > /www/index.html
echo "serving version $VERSION on port $PORT"
httpd -f -vv -p $PORT -h /www 2>&1 & wait $!"#;
/// Size of tar's blocks in bytes.
const BLOCK: usize = 512;

/// One archive with all images, as `ctr images import` takes it.
pub fn archive() -> Result<Vec<u8>> {
    let layer = layer(&busybox()?);
    let diff = hex(&layer);
    let mut tar = Tar::default();
    tar.file("layer.tar", 0o644, &layer)?;
    let mut manifest = Vec::new();
    let mut add = |name: &str, entry: Value, variables: Vec<String>| -> Result<()> {
        let config = config(&diff, &entry, variables);
        let file = format!("{}.json", hex(config.as_bytes()));
        tar.file(&file, 0o644, config.as_bytes())?;
        manifest.push(json!({"Config": file, "RepoTags": [name], "Layers": ["layer.tar"]}));
        Ok(())
    };
    let script = |text: &str| json!({"Entrypoint": ["/bin/sh", "-c", text]});
    add(PAUSE, script(PAUSE_SCRIPT), Vec::new())?;
    add(TALK, json!({"Entrypoint": ["/bin/echo", "entrypoint"], "Cmd": ["default"]}), Vec::new())?;
    for (i, name) in WEB.iter().enumerate() {
        add(name, script(WEB_SCRIPT), vec![format!("VERSION={}", i + 1), format!("PORT={WEB_PORT}")])?;
    }
    tar.file("manifest.json", 0o644, Value::Array(manifest).to_string().as_bytes())?;
    Ok(tar.finish())
}

fn busybox() -> Result<Vec<u8>> {
    let Some(path) = BUSYBOX.iter().map(Path::new).find(|path| path.exists()) else {
        bail!("busybox is not installed: apt-get install busybox-static");
    };
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    // In an image without libraries a dynamic program could not start.
    if names_a_loader(&bytes) != Some(false) {
        bail!("{} is not statically linked: apt-get install busybox-static", path.display());
    }
    Ok(bytes)
}

/// Whether a 64-bit little-endian ELF program has a PT_INTERP header, which names the loader of its libraries.
fn names_a_loader(elf: &[u8]) -> Option<bool> {
    const INTERP: usize = 3;
    let number = |at: usize, length: usize| {
        let bytes = elf.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for i in 0..count {
        let at = offset.checked_add(i * size)?;
        if number(at, 4)? == INTERP {
            return Some(true);
        }
    }
    Some(false)
}

fn layer(busybox: &[u8]) -> Vec<u8> {
    let mut tar = Tar::default();
    for directory in ["bin/", "etc/", "tmp/", "www/"] {
        tar.entry(directory, if directory == "tmp/" { 0o1777 } else { 0o755 }, b'5', "", &[]);
    }
    tar.entry("bin/busybox", 0o755, b'0', "", busybox);
    for command in COMMANDS {
        tar.entry(&format!("bin/{command}"), 0o777, b'2', "busybox", &[]);
    }
    tar.entry("etc/passwd", 0o644, b'0', "", b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n");
    tar.finish()
}

fn config(layer: &str, entry: &Value, variables: Vec<String>) -> String {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let mut env = vec!["PATH=/bin".to_owned()];
    env.extend(variables);
    json!({"architecture": architecture, "os": "linux",
        "config": {"Entrypoint": entry["Entrypoint"], "Cmd": entry["Cmd"], "Env": env},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]}})
    .to_string()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tar archive (ustar); times are zero, so that the same content gives the same bytes.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        if name.len() > 100 {
            bail!("{name} is too long a name for the archive");
        }
        self.entry(name, mode, b'0', "", content);
        Ok(())
    }

    /// `kind` as in tar: `0` file, `2` link to `target`, `5` directory. Names have up to 100 bytes.
    fn entry(&mut self, name: &str, mode: u32, kind: u8, target: &str, content: &[u8]) {
        let mut header = [0u8; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}").as_bytes());
        put(108, b"0000000\x000000000");
        put(124, format!("{:011o}", content.len()).as_bytes());
        put(136, b"00000000000");
        put(148, b"        "); // the checksum counts as spaces
        put(156, &[kind]);
        put(157, target.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_loader_is_found() {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[32], elf[54], elf[56], elf[64]) = (64, 56, 1, 1);
        assert_eq!(names_a_loader(&elf), Some(false));
        elf[64] = 3;
        assert_eq!(names_a_loader(&elf), Some(true));
        assert_eq!(names_a_loader(&elf[..64]), None, "cut short");
        assert_eq!(names_a_loader(b"#!/bin/sh\n"), None);
    }

    #[test]
    fn tar_reads_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.tar");
        std::fs::write(&file, layer(b"#!/bin/true\n")).unwrap();
        let out = Command::new("tar").arg("-tvf").arg(&file).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        for expected in ["drwxrwxrwt", "bin/sh -> busybox", "etc/passwd"] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
}
