//! `/statusz` and `/flagz`: what runs here, as text for people. Whoever asks for JSON is told that there is none.

use std::time::Instant;

use http::{HeaderMap, Response, header};
use keelson_client::Body;
use keelson_machinery::status::Status;

use crate::body;

/// Said first: the text is for people.
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging \
                       purposes only.";
/// Flags whose values are secret.
const SECRET: [&str; 1] = ["--token"];

/// Answers a path; `None` if it is neither of these.
pub fn serve(path: &str, headers: &HeaderMap, started: Instant) -> Option<Result<Response<Body>, Status>> {
    let text = match path {
        "/statusz" => status(started),
        "/flagz" => flags(std::env::args().skip(1)),
        _ => return None,
    };
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    let plain = |one: &str| matches!(one.split(';').next().unwrap_or_default().trim(), "*/*" | "text/*" | "text/plain");
    if !accept.split(',').any(plain) {
        return Some(Err(Status::not_acceptable("text/plain")));
    }
    Some(Ok(body::text(200, format!("{} {}\n{WARNING}\n\n{text}", env!("CARGO_PKG_NAME"), &path[1..]))))
}

fn status(started: Instant) -> String {
    let up = started.elapsed().as_secs();
    let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
    format!(
        "Up: {hours} hr {minutes:02} min {seconds:02} sec\nBinary version: {}\nPaths: /healthz /livez /metrics /readyz /statusz /version\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// `--flag value` and `--flag=value`, one on a line.
fn flags(arguments: impl Iterator<Item = String>) -> String {
    let mut out = String::new();
    let mut secret = false;
    for argument in arguments {
        let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
        if name.starts_with("--") {
            secret = SECRET.contains(&name);
            out += if out.is_empty() { "" } else { "\n" };
            out += name.trim_start_matches('-');
        }
        let value = if name.starts_with("--") { value } else { argument.as_str() };
        if !value.is_empty() {
            out += "=";
            out += if secret { "<hidden>" } else { value };
        }
    }
    out + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_all_there_is() {
        for (path, accept, code) in [
            ("/statusz", "*/*", 200),
            ("/statusz", "text/plain", 200),
            ("/statusz", "application/json", 406),
            ("/flagz", "application/json;v=v1alpha1;g=config.k8s.io;as=Flagz", 406),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            let got = serve(path, &headers, Instant::now()).unwrap();
            assert_eq!(got.map_or_else(|s| s.code, |r| r.status().as_u16()), code, "{path} {accept}");
        }
        assert!(serve("/other", &HeaderMap::new(), Instant::now()).is_none());
    }

    #[test]
    fn flags_are_told_without_secrets() {
        let given = ["server", "--token=abc", "--data-dir", "/x", "--token", "abc", "--hollow=3"];
        let told = flags(given.into_iter().skip(1).map(str::to_owned));
        assert_eq!(told, "token=<hidden>\ndata-dir=/x\ntoken=<hidden>\nhollow=3\n");
    }
}
