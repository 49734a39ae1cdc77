//! `cp`: files and directories to and from containers, as tar archives through `exec`.

use std::path::{Component, Path, PathBuf};

use serde_json::json;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio_util::io::SyncIoBridge;

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch, text};
use crate::session::{Session, encode};
use crate::socket;

use super::exec::path_of;
use super::logs::default_container;

/// Flags of `cp`.
pub const FLAGS: &[&[Flag]] = &[&[
    text("container", "", "Container name. If omitted, use the kubectl.kubernetes.io/default-container annotation or the first container in the pod.").short('c'),
    switch("no-preserve", "The copied file/directory's ownership and permissions will not be preserved in the container"),
    text("retries", "0", "Set number of retries to complete a copy operation from a container."),
]];

/// Bytes that wait between an archive and the connection.
const BUFFER: usize = 256 << 10;

/// A file here, or in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Spec {
    namespace: String,
    pod: String,
    file: String,
}

fn spec(text: &str) -> Outcome<Spec> {
    let local = |file: &str| Spec { namespace: String::new(), pod: String::new(), file: file.to_owned() };
    let Some((pod, file)) = text.split_once(':') else { return Ok(local(text)) };
    // `./a:b` and `/a:b` are here.
    if pod.starts_with('.') || pod.starts_with('/') {
        return Ok(local(text));
    }
    let wrong = || Failure::new("filespec must match the canonical format: [[namespace/]pod:]file/path");
    match pod.split('/').collect::<Vec<_>>().as_slice() {
        [""] => Err(wrong()),
        [pod] => Ok(Spec { namespace: String::new(), pod: (*pod).into(), file: file.into() }),
        [namespace, pod] => Ok(Spec { namespace: (*namespace).into(), pod: (*pod).into(), file: file.into() }),
        _ => Err(wrong()),
    }
}

/// Runs `cp`.
pub async fn copy(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let [from, to] = parsed.args.as_slice() else {
        return Err(Failure::new("source and destination are required"));
    };
    let (from, to) = (spec(from)?, spec(to)?);
    match (from.pod.is_empty(), to.pod.is_empty()) {
        (false, false) => Err(Failure::new("one of src or dest must be a local file specification")),
        (true, true) => Err(Failure::new("one of src or dest must be a remote file specification")),
        _ if from.file.is_empty() || to.file.is_empty() => Err(Failure::new("filepath can not be empty")),
        (true, false) => upload(session, &from.file, &to).await,
        (false, true) => download(session, &from, &to.file).await,
    }
}

/// The path at which a command runs in the container.
async fn command(session: &Session, at: &Spec, words: &[&str], stdin: bool) -> Outcome<String> {
    let namespace = if at.namespace.is_empty() { session.namespace()? } else { at.namespace.clone() };
    let pod = session.get(&format!("/api/v1/namespaces/{namespace}/pods/{}", encode(&at.pod))).await?;
    let container = match session.parsed.text("container") {
        "" => default_container(&pod).0,
        given => given.to_owned(),
    };
    let named = json!({"metadata": {"namespace": namespace, "name": at.pod}});
    let mut path = path_of(session, &named, "exec", &container, stdin, false)?;
    words.iter().for_each(|word| path += &format!("&command={}", encode(word)));
    Ok(path)
}

async fn is_directory(session: &Session, at: &Spec) -> Outcome<bool> {
    let path = command(session, at, &["test", "-d", &at.file], false).await?;
    let nothing = None::<tokio::io::Empty>;
    let status = socket::exchange(session, &path, (nothing, tokio::io::sink(), tokio::io::sink()), None).await?;
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap_or_default();
    Ok(status["status"] == "Success")
}

/// The last name of a path.
fn base(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

async fn upload(session: &Session, from: &str, to: &Spec) -> Outcome {
    let source = PathBuf::from(from);
    if std::fs::symlink_metadata(&source).is_err() {
        return Err(Failure::new(format!("{from} doesn't exist in local filesystem")));
    }
    let mut target = to.file.trim_end_matches('/').to_owned();
    if target.is_empty() {
        target = "/".into();
    }
    if is_directory(session, &Spec { file: target.clone(), ..to.clone() }).await? {
        target = format!("{}/{}", target.trim_end_matches('/'), base(from));
    }
    let (directory, name) = match target.rsplit_once('/') {
        Some(("", name)) => ("/".to_owned(), name.to_owned()),
        Some((directory, name)) => (directory.to_owned(), name.to_owned()),
        None => (".".to_owned(), target.clone()),
    };
    let mut words = vec!["tar"];
    match session.parsed.on("no-preserve") {
        true => words.extend(["--no-same-permissions", "--no-same-owner", "-xmf", "-"]),
        false => words.extend(["-xmf", "-"]),
    }
    words.extend(["-C", &directory]);
    let path = command(session, to, &words, true).await?;
    let (reader, writer) = tokio::io::duplex(BUFFER);
    let packing = tokio::task::spawn_blocking(move || pack(&source, &name, SyncIoBridge::new(writer)));
    let streams = (Some(reader), tokio::io::stdout(), tokio::io::stderr());
    let status = socket::exchange(session, &path, streams, None).await?;
    socket::ended(&status)?;
    packing.await.map_err(|e| Failure::new(e.to_string()))??;
    Ok(())
}

/// Writes a file or a directory as an archive in which it is called `name`.
fn pack(source: &Path, name: &str, mut out: SyncIoBridge<DuplexStream>) -> Outcome {
    let mut archive = tar::Builder::new(&mut out);
    archive.follow_symlinks(false);
    match std::fs::symlink_metadata(source)?.is_dir() {
        true => archive.append_dir_all(name, source)?,
        false => archive.append_path_with_name(source, name)?,
    }
    archive.finish()?;
    drop(archive);
    Ok(out.shutdown()?)
}

async fn download(session: &Session, from: &Spec, to: &str) -> Outcome {
    let path = command(session, from, &["tar", "cf", "-", &from.file], false).await?;
    let (reader, mut writer) = tokio::io::duplex(BUFFER);
    let (prefix, to) = (clean(&from.file), to.to_owned());
    let name = base(&from.file).to_owned();
    let note = format!("{} {}", from.namespace, from.pod);
    let unpacking = tokio::task::spawn_blocking(move || {
        let target = if Path::new(&to).is_dir() { Path::new(&to).join(&name) } else { PathBuf::from(&to) };
        unpack(SyncIoBridge::new(reader), &prefix, &target, note.trim())
    });
    let nothing = None::<tokio::io::Empty>;
    let status = socket::exchange(session, &path, (nothing, &mut writer, tokio::io::stderr()), None).await;
    writer.shutdown().await?;
    drop(writer);
    let unpacked = unpacking.await.map_err(|e| Failure::new(e.to_string()))?;
    socket::ended(&status?)?;
    unpacked
}

/// A path without its root and without `.` and `..`, as tar stores it.
fn clean(path: &str) -> PathBuf {
    Path::new(path).components().filter(|c| matches!(c, Component::Normal(_))).collect()
}

/// Writes the files of an archive below `target`, which stands for `prefix`. Nothing is written outside of it.
fn unpack(from: impl std::io::Read, prefix: &Path, target: &Path, pod: &str) -> Outcome {
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        let name = clean(&name.to_string_lossy());
        let Ok(rest) = name.strip_prefix(prefix) else {
            return Err(Failure::new(format!(
                "tar contents corrupted: {} is not below {}",
                name.display(),
                prefix.display()
            )));
        };
        let place = if rest.as_os_str().is_empty() { target.to_owned() } else { target.join(rest) };
        let kind = entry.header().entry_type();
        if kind.is_symlink() || kind.is_hard_link() {
            let link = entry.link_name()?.map(|l| l.display().to_string()).unwrap_or_default();
            eprintln!(
                "warning: skipping symlink: {:?} -> {link:?} (consider using \"kubectl exec {pod} -- tar cf - ...\")",
                place.display().to_string()
            );
            continue;
        }
        if kind.is_dir() {
            std::fs::create_dir_all(&place)?;
            continue;
        }
        if let Some(parent) = place.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent)?;
        }
        let mut file = std::fs::File::create(&place)?;
        std::io::copy(&mut entry, &mut file)?;
        if let Ok(mode) = entry.header().mode() {
            use std::os::unix::fs::PermissionsExt;
            file.set_permissions(std::fs::Permissions::from_mode(mode & 0o777))?;
        }
    }
    // What stands behind the archive has to be read too, or the other side never ends.
    let mut rest = archive.into_inner();
    std::io::copy(&mut rest, &mut std::io::sink())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_here_and_in_pods() {
        let of = |namespace: &str, pod: &str, file: &str| Spec {
            namespace: namespace.into(),
            pod: pod.into(),
            file: file.into(),
        };
        for (text, expected) in [
            ("/a/b", of("", "", "/a/b")),
            ("./a:b", of("", "", "./a:b")),
            ("p:/a", of("", "p", "/a")),
            ("ns/p:a", of("ns", "p", "a")),
        ] {
            assert_eq!(spec(text).unwrap(), expected);
        }
        assert!(spec(":x").is_err() && spec("a/b/c:x").is_err());
        assert_eq!(base("/a/b/"), "b");
    }

    #[test]
    fn archives_stay_below_their_target() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = Vec::new();
        let mut archive = tar::Builder::new(&mut bytes);
        for (name, text) in [("etc/x/one", "1"), ("etc/x/deep/two", "2")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o640);
            archive.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        archive.finish().unwrap();
        drop(archive);
        let target = dir.path().join("out");
        unpack(&bytes[..], Path::new("etc/x"), &target, "p").unwrap();
        assert_eq!(std::fs::read_to_string(target.join("deep/two")).unwrap(), "2");
        let wrong = unpack(&bytes[..], Path::new("other"), &target, "p").unwrap_err().to_string();
        assert!(wrong.contains("corrupted"), "{wrong}");
        // A name that leads upwards stays where it belongs.
        assert_eq!(clean("../../etc/passwd"), Path::new("etc/passwd"));
    }
}
