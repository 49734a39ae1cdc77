//! Logs of containers: the files that the runtime writes (time, stream, full or partial, text), as clients ask for them.

use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, StreamBody};
use jiff::Timestamp;
use keelson_proto::cri::ContainerState;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;

use super::{Answer, Query, Refusal, Server, full};
use crate::spec::pod as pod_spec;

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;
/// Chunks that wait for a slow client.
const PENDING: usize = 4;
/// How often a followed file is looked at.
const POLL: Duration = Duration::from_millis(100);
/// How many of these pass between two looks whether the container still runs.
const POLLS_PER_LOOK: u32 = 10;

/// What is wanted of a log.
#[derive(Clone, Debug, Default)]
struct Wanted {
    follow: bool,
    timestamps: bool,
    tail: Option<u64>,
    since: Option<Timestamp>,
    /// Bytes that may still be sent.
    limit: Option<u64>,
    /// `stdout` or `stderr` alone.
    stream: Option<&'static [u8]>,
}

fn wanted(query: &Query) -> Result<Wanted, Refusal> {
    let number = |key: &str| -> Result<Option<u64>, Refusal> {
        let parse = |text: &str| text.parse().map_err(|_| Refusal(400, format!("{key}: {text:?} is not a number")));
        query.get(key).map(parse).transpose()
    };
    let seconds = number("sinceSeconds")?;
    let since = match (query.get("sinceTime"), seconds) {
        (Some(text), _) => Some(text.parse().map_err(|_| Refusal(400, format!("sinceTime: {text:?} is not a time")))?),
        (None, Some(seconds)) => {
            Some(Timestamp::now() - jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX / 2)))
        }
        _ => None,
    };
    let stream: Option<&'static [u8]> = match query.get("stream") {
        Some("Stdout") => Some(b"stdout"),
        Some("Stderr") => Some(b"stderr"),
        _ => None,
    };
    Ok(Wanted {
        follow: query.flag("follow"),
        timestamps: query.flag("timestamps"),
        tail: number("tailLines")?,
        since,
        limit: number("limitBytes")?,
        stream,
    })
}

/// Serves the log of a container.
pub async fn serve(server: &Server, namespace: &str, pod: &str, container: &str, query: &Query) -> Answer {
    let wanted = wanted(query)?;
    let object = server.pod(namespace, pod)?;
    if !pod_spec::names(&object).any(|n| n == container) {
        return Err(Refusal(404, format!("container \"{container}\" not found in pod \"{pod}\"")));
    }
    let runs = server.runs(&object, container).await?;
    let previous = query.flag("previous");
    let Some(run) = runs.get(usize::from(previous)) else {
        let text = if previous {
            format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")
        } else {
            let reason = pod_spec::waiting_reason(&object, container).unwrap_or("ContainerCreating");
            format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}")
        };
        return Err(Refusal(400, text));
    };
    let status = server.agent.runtime.container(&run.id).await?;
    if status.log_path.is_empty() {
        return Err(Refusal(500, format!("container \"{container}\" has no log file")));
    }
    let path = PathBuf::from(&status.log_path);
    let mut follow = Follow { server_runtime: server.agent.runtime.clone(), id: run.id.clone(), path, wanted };
    let (sender, receiver) = mpsc::channel(PENDING);
    tokio::spawn(async move {
        if let Err(error) = follow.run(&sender).await {
            tracing::debug!(%error, "a log could not be read to its end");
        }
    });
    let frames = futures::stream::unfold(receiver, |mut receiver| async move {
        let bytes: Bytes = receiver.recv().await?;
        Some((Ok::<_, std::io::Error>(http_body::Frame::data(bytes)), receiver))
    });
    let mut response = http::Response::new(full(Bytes::new()));
    *response.body_mut() = StreamBody::new(frames).boxed_unsync();
    let text = http::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(http::header::CONTENT_TYPE, text);
    Ok(response)
}

/// One line of a log file taken apart.
struct Line<'a> {
    time: &'a [u8],
    stream: &'a [u8],
    /// Whether the next line goes on where this one ends.
    partial: bool,
    text: &'a [u8],
}

fn line(bytes: &[u8]) -> Option<Line<'_>> {
    let mut parts = bytes.splitn(4, |b| *b == b' ');
    let (time, stream, tags, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some(Line { time, stream, partial: tags.first() == Some(&b'P'), text })
}

impl Wanted {
    /// Appends what the client gets of a line; false once the limit is reached.
    fn render(&mut self, bytes: &[u8], out: &mut BytesMut) -> bool {
        let Some(line) = line(bytes) else { return true };
        if self.stream.is_some_and(|s| s != line.stream) {
            return true;
        }
        if let Some(since) = self.since {
            let time = std::str::from_utf8(line.time).ok().and_then(|t| t.parse::<Timestamp>().ok());
            if time.is_some_and(|t| t < since) {
                return true;
            }
        }
        let start = out.len();
        if self.timestamps {
            out.extend_from_slice(line.time);
            out.extend_from_slice(b" ");
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.extend_from_slice(b"\n");
        }
        if let Some(limit) = &mut self.limit {
            let grown = (out.len() - start) as u64;
            if grown >= *limit {
                out.truncate(start + usize::try_from(*limit).unwrap_or(usize::MAX));
                *limit = 0;
                return false;
            }
            *limit -= grown;
        }
        true
    }
}

struct Follow {
    server_runtime: crate::cri::Runtime,
    id: String,
    path: PathBuf,
    wanted: Wanted,
}

impl Follow {
    async fn run(&mut self, sender: &mpsc::Sender<Bytes>) -> std::io::Result<()> {
        let mut file = File::open(&self.path).await?;
        if let Some(lines) = self.wanted.tail {
            let at = tail_offset(&mut file, lines).await?;
            file.seek(SeekFrom::Start(at)).await?;
        }
        let mut rest = BytesMut::new();
        let mut polls = 0;
        let mut over = false;
        loop {
            rest.reserve(CHUNK);
            let read = file.read_buf(&mut rest).await?;
            if !self.send(&mut rest, sender).await {
                return Ok(());
            }
            if read > 0 {
                continue;
            }
            if over || !self.wanted.follow {
                return Ok(());
            }
            polls += 1;
            if polls % POLLS_PER_LOOK == 0 {
                if rotated(&file, &self.path).await {
                    file = File::open(&self.path).await?;
                    continue;
                }
                // What was written until the end is read once more after it was seen.
                over = self.ended().await;
            }
            tokio::select! {
                () = sender.closed() => return Ok(()),
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// Sends all whole lines; false if no more is wanted.
    async fn send(&mut self, rest: &mut BytesMut, sender: &mpsc::Sender<Bytes>) -> bool {
        let Some(end) = rest.iter().rposition(|b| *b == b'\n') else { return true };
        let lines = rest.split_to(end + 1);
        let mut out = BytesMut::with_capacity(lines.len());
        let mut more = true;
        for bytes in lines[..end].split(|b| *b == b'\n') {
            more = self.wanted.render(bytes, &mut out);
            if !more {
                break;
            }
        }
        if !out.is_empty() && sender.send(out.freeze()).await.is_err() {
            return false;
        }
        more
    }

    async fn ended(&self) -> bool {
        match self.server_runtime.container(&self.id).await {
            Ok(status) => status.state() != ContainerState::ContainerRunning,
            Err(status) => status.code() == tonic::Code::NotFound,
        }
    }
}

/// Whether the path now names another file.
async fn rotated(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata().await, tokio::fs::metadata(path).await) {
        (Ok(open), Ok(named)) => open.ino() != named.ino(),
        _ => false,
    }
}

/// Where the last `lines` lines of the file begin. Parts of a line count as one with the line's end.
async fn tail_offset(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let mut end = file.metadata().await?.len();
    if lines == 0 {
        return Ok(end);
    }
    let mut seen = 0;
    let mut first = true;
    let mut buffer = vec![0; CHUNK];
    while end > 0 {
        let start = end.saturating_sub(CHUNK as u64);
        let length = (end - start) as usize;
        file.seek(SeekFrom::Start(start)).await?;
        file.read_exact(&mut buffer[..length]).await?;
        for at in (0..length).rev() {
            if buffer[at] != b'\n' {
                continue;
            }
            // The newline that ends the file ends its last line and begins none.
            if std::mem::take(&mut first) && start + at as u64 + 1 == end {
                continue;
            }
            seen += 1;
            if seen == lines {
                return Ok(start + at as u64 + 1);
            }
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.5Z stdout F one\n2026-01-01T00:00:02Z stderr P tw\n2026-01-01T00:00:02Z stderr F o\n2026-01-01T00:00:03Z stdout F \n";

    fn render(mut wanted: Wanted) -> String {
        let mut out = BytesMut::new();
        for bytes in LOG.trim_end_matches('\n').as_bytes().split(|b| *b == b'\n') {
            if !wanted.render(bytes, &mut out) {
                break;
            }
        }
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn lines_as_clients_want_them() {
        let all = Wanted::default();
        assert_eq!(render(all.clone()), "one\ntwo\n\n");
        assert_eq!(render(Wanted { stream: Some(b"stderr"), ..all.clone() }), "two\n");
        assert_eq!(render(Wanted { since: Some("2026-01-01T00:00:02Z".parse().unwrap()), ..all.clone() }), "two\n\n");
        assert_eq!(render(Wanted { limit: Some(5), ..all.clone() }), "one\nt");
        assert!(render(Wanted { timestamps: true, ..all }).starts_with("2026-01-01T00:00:01.5Z one\n"));
    }

    #[tokio::test]
    async fn the_tail_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for (content, lines, wanted) in [
            ("a\nb\nc\n", 1, 4),
            ("a\nb\nc\n", 2, 2),
            ("a\nb\nc\n", 9, 0),
            ("a\nb\nc\n", 0, 6),
            ("", 3, 0),
            ("a\nb", 1, 2),
        ] {
            std::fs::write(&path, content).unwrap();
            let mut file = File::open(&path).await.unwrap();
            assert_eq!(tail_offset(&mut file, lines).await.unwrap(), wanted, "{content:?} {lines}");
        }
    }
}
