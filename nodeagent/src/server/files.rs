//! The machine's own logs (`/logs/`): the files below `/var/log`, and lists of its directories.

use std::fmt::Write;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::AsyncReadExt;

use super::{Answer, Refusal, answer};

/// Where they are.
pub const ROOT: &str = "/var/log";
/// Bytes read at a time.
const CHUNK: usize = 64 << 10;
/// Entries of a directory that are listed.
const MAX_ENTRIES: usize = 10_000;

fn missing() -> Refusal {
    Refusal(404, "404 page not found\n".into())
}

/// The file meant, which must be below `root` whatever links there are.
async fn find(root: &Path, parts: &[&str]) -> Result<PathBuf, Refusal> {
    let wanted: PathBuf = parts.iter().collect();
    if wanted.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(missing());
    }
    let root = tokio::fs::canonicalize(root).await.map_err(|_| missing())?;
    let found = tokio::fs::canonicalize(root.join(&wanted)).await.map_err(|_| missing())?;
    if found.starts_with(&root) { Ok(found) } else { Err(missing()) }
}

/// Serves a file or the list of a directory; `path` is the request's own.
pub async fn serve(root: &Path, parts: &[&str], path: &str) -> Answer {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    let found = find(root, &parts).await?;
    let kind = tokio::fs::metadata(&found).await.map_err(|_| missing())?;
    if kind.is_dir() {
        if !path.ends_with('/') {
            let mut response = answer(301, "text/plain; charset=utf-8", "");
            let to = http::HeaderValue::from_str(&format!("{path}/")).map_err(Refusal::internal)?;
            response.headers_mut().insert(http::header::LOCATION, to);
            return Ok(response);
        }
        return Ok(answer(200, "text/html; charset=utf-8", list(&found).await.map_err(Refusal::internal)?));
    }
    // A pipe or a device could hold the request for ever.
    if !kind.is_file() {
        return Err(missing());
    }
    let file = tokio::fs::File::open(&found).await.map_err(Refusal::internal)?;
    // What is written while it is read is left for the next request.
    let frames = futures::stream::unfold(file.take(kind.len()), |mut file| async move {
        let mut some = vec![0; CHUNK];
        match file.read(&mut some).await {
            Ok(0) => None,
            Ok(length) => {
                some.truncate(length);
                Some((Ok(http_body::Frame::data(Bytes::from(some))), file))
            }
            Err(error) => Some((Err(error), file)),
        }
    });
    let mut response = answer(200, "text/plain; charset=utf-8", "");
    *response.body_mut() = StreamBody::new(frames).boxed_unsync();
    Ok(response)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;")
}

async fn list(dir: &Path) -> std::io::Result<String> {
    let mut entries = tokio::fs::read_dir(dir).await?;
    let mut names = Vec::new();
    while let Some(entry) = entries.next_entry().await? {
        let slash = if entry.file_type().await.is_ok_and(|kind| kind.is_dir()) { "/" } else { "" };
        names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
        if names.len() >= MAX_ENTRIES {
            break;
        }
    }
    names.sort_unstable();
    let mut page = String::from("<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n");
    for name in names {
        // Writing to a string cannot fail.
        let _ = writeln!(page, "<a href=\"{0}\">{0}</a>", escaped(&name));
    }
    Ok(page + "</pre>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(root: &Path, path: &str) -> (u16, String) {
        let parts: Vec<&str> = path.split('/').collect();
        match serve(root, &parts, &format!("/logs/{path}")).await {
            Ok(response) => {
                let code = response.status().as_u16();
                let bytes = response.into_body().collect().await.unwrap().to_bytes();
                (code, String::from_utf8_lossy(&bytes).into_owned())
            }
            Err(Refusal(code, text)) => (code, text),
        }
    }

    #[tokio::test]
    async fn only_what_is_below_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir_all(root.join("pods<")).unwrap();
        std::fs::write(root.join("syslog"), "a line\n").unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("out")).unwrap();
        std::os::unix::fs::symlink("syslog", root.join("in")).unwrap();
        for (path, code, text) in [
            ("syslog", 200, "a line\n"),
            ("in", 200, "a line\n"),
            ("", 200, "<a href=\"syslog\">syslog</a>"),
            ("", 200, "pods&lt;/"),
            ("pods<", 301, ""),
            ("out", 404, "not found"),
            ("../secret", 404, "not found"),
            ("pods</../../secret", 404, "not found"),
            ("none", 404, "not found"),
        ] {
            let found = get(&root, path).await;
            assert!(found.0 == code && found.1.contains(text), "{path}: {found:?}");
        }
    }
}
