//! Rules of the kernel's packet filter, handed over by `nft` as one transaction: all of it or nothing.

use std::io;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Applies a script.
pub async fn apply(script: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("nft (package nftables) cannot be run: {e}")))?;
    let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("nft has no input"))?;
    let script = script.to_owned();
    // Written beside the reading of its errors, so that neither waits for the other.
    let writing = tokio::spawn(async move { stdin.write_all(script.as_bytes()).await });
    let output = child.wait_with_output().await?;
    // A script that is refused half-way is not read to its end.
    let _ = writing.await;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("nft: {}", text.lines().take(3).collect::<Vec<_>>().join(" "))))
}
