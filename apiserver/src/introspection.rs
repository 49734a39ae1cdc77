//! `/statusz` and `/flagz`: what runs here, as text for people, and as objects of `config.k8s.io` for programs that ask for them by
//! kind, group and version.

use std::collections::BTreeMap;
use std::time::Instant;

use http::{HeaderMap, Response, header};
use keelson_client::Body;
use keelson_machinery::status::Status;
use serde_json::json;

use crate::body;

/// Said first: the text is for people.
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging \
                       purposes only.";
/// Flags whose values are secret.
const SECRET: [&str; 1] = ["token"];

/// Group of the structured answers.
const GROUP: &str = "config.k8s.io";
/// Their versions.
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
/// Where the server says how it is.
const PATHS: [&str; 7] = ["/flagz", "/healthz", "/livez", "/metrics", "/readyz", "/statusz", "/version"];

/// What a client takes.
#[derive(Debug, PartialEq, Eq)]
enum Wanted<'a> {
    Text,
    /// Of this version.
    Json(&'a str),
}

/// The first form of an `Accept` header that there is; JSON only if the header names kind, group and version.
fn wanted<'a>(accept: &'a str, kind: &str) -> Option<Wanted<'a>> {
    accept.split(',').find_map(|clause| {
        let mut parts = clause.split(';').map(str::trim);
        match parts.next().unwrap_or_default() {
            "*/*" | "text/*" | "text/plain" => Some(Wanted::Text),
            "application/json" | "application/*" => {
                let given: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
                let of = |key: &str| given.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
                let fits = of("as") == Some(kind) && of("g") == Some(GROUP);
                of("v").filter(|version| fits && VERSIONS.contains(version)).map(Wanted::Json)
            }
            _ => None,
        }
    })
}

/// Answers a path; `None` if it is neither of these.
pub fn serve(path: &str, headers: &HeaderMap, started: Instant) -> Option<Result<Response<Body>, Status>> {
    let kind = match path {
        "/statusz" => "Statusz",
        "/flagz" => "Flagz",
        _ => return None,
    };
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let accept = if accept.is_empty() { "*/*" } else { accept };
    let text = match (wanted(accept, kind), kind) {
        (None, _) => return Some(Err(Status::not_acceptable("text/plain"))),
        (Some(Wanted::Json(version)), _) => return Some(structured(kind, version, started)),
        (Some(Wanted::Text), "Statusz") => status(started),
        (Some(Wanted::Text), _) => {
            flags(std::env::args().skip(1)).iter().map(|(name, value)| format!("{name}={value}\n")).collect()
        }
    };
    Some(Ok(body::text(200, format!("{} {}\n{WARNING}\n\n{text}", env!("CARGO_PKG_NAME"), &path[1..]))))
}

fn structured(kind: &str, version: &str, started: Instant) -> Result<Response<Body>, Status> {
    let metadata = json!({"name": env!("CARGO_PKG_NAME")});
    let mut answer = json!({"kind": kind, "apiVersion": format!("{GROUP}/{version}"), "metadata": metadata});
    if kind == "Flagz" {
        answer["flags"] = flags(std::env::args().skip(1)).into_iter().collect::<BTreeMap<_, _>>().into_iter().collect();
    } else {
        let up = started.elapsed();
        let since = jiff::Timestamp::now().checked_sub(up).map_err(|e| Status::internal(&e.to_string()))?;
        answer["startTime"] = since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        answer["uptimeSeconds"] = up.as_secs().into();
        answer["goVersion"] = "".into();
        answer["binaryVersion"] = env!("CARGO_PKG_VERSION").into();
        answer["paths"] = json!(PATHS);
    }
    Ok(body::json(200, answer.to_string()))
}

fn status(started: Instant) -> String {
    let up = started.elapsed().as_secs();
    let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
    format!(
        "Up: {hours} hr {minutes:02} min {seconds:02} sec\nBinary version: {}\nPaths: {}\n",
        env!("CARGO_PKG_VERSION"),
        PATHS.join(" ")
    )
}

/// `--flag value` and `--flag=value` as pairs; a flag without a value is true.
fn flags(arguments: impl Iterator<Item = String>) -> Vec<(String, String)> {
    let mut out: Vec<(String, String)> = Vec::new();
    for argument in arguments {
        match (argument.strip_prefix("--"), out.last_mut()) {
            (Some(flag), _) => {
                let (name, value) = flag.split_once('=').unwrap_or((flag, "true"));
                out.push((name.to_owned(), value.to_owned()));
            }
            (None, Some((_, value))) => *value = argument,
            // The command itself.
            (None, None) => {}
        }
    }
    for (name, value) in &mut out {
        if SECRET.contains(&name.as_str()) {
            *value = "<hidden>".to_owned();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_by_what_a_client_takes() {
        let json = |version: &str, kind: &str| format!("application/json;v={version};g=config.k8s.io;as={kind}");
        for (accept, expected) in [
            ("*/*", Some(Wanted::Text)),
            ("text/plain", Some(Wanted::Text)),
            ("application/json", None),
            ("application/json, text/plain", Some(Wanted::Text)),
            (json("v1beta1", "Statusz").as_str(), Some(Wanted::Json("v1beta1"))),
            (json("v1beta1", "Flagz").as_str(), None),
            (json("v2", "Statusz").as_str(), None),
            ("application/json;v=v1beta1;g=config.k8s.io", None),
            ("application/xml", None),
        ] {
            assert_eq!(wanted(accept, "Statusz"), expected, "{accept}");
        }
        let mut headers = HeaderMap::new();
        assert_eq!(serve("/flagz", &headers, Instant::now()).unwrap().unwrap().status(), 200);
        headers.insert(header::ACCEPT, "application/json".parse().unwrap());
        assert_eq!(serve("/flagz", &headers, Instant::now()).unwrap().unwrap_err().code, 406);
        assert!(serve("/other", &HeaderMap::new(), Instant::now()).is_none());
    }

    #[test]
    fn flags_are_told_without_secrets() {
        let given = ["server", "--token=abc", "--data-dir", "/x", "--no-agent", "--token", "abc", "--hollow=3"];
        let told = flags(given.into_iter().map(str::to_owned));
        let told: Vec<(&str, &str)> = told.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let hidden = ("token", "<hidden>");
        assert_eq!(told, [hidden, ("data-dir", "/x"), ("no-agent", "true"), hidden, ("hollow", "3")]);
    }
}
