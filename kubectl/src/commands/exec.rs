//! `exec` and `attach`.

use std::io::IsTerminal;

use nix::sys::termios::{self, SetArg, Termios};
use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, switch, text};
use crate::objects::{self, FILES};
use crate::session::{Session, encode, query};
use crate::socket;

use super::logs::{default_container, listed, pods_of};

/// Flags of `exec`.
pub const FLAGS: &[&[Flag]] = &[
    &[FILES[0]],
    &[
        text("container", "", "Container name. If omitted, use the kubectl.kubernetes.io/default-container annotation or the first container in the pod.").short('c'),
        text("pod-running-timeout", "1m0s", "The length of time to wait until at least one pod is running"),
        switch("quiet", "Only print output from the remote session").short('q'),
        switch("stdin", "Pass stdin to the container").short('i'),
        switch("tty", "Stdin is a TTY").short('t'),
    ],
];

/// Flags of `attach`.
pub const ATTACH: &[&[Flag]] = &[&[
    text("container", "", "Container name. If omitted, use the kubectl.kubernetes.io/default-container annotation or the first container in the pod.").short('c'),
    text("pod-running-timeout", "1m0s", "The length of time to wait until at least one pod is running"),
    switch("quiet", "Only print output from the remote session").short('q'),
    switch("stdin", "Pass stdin to the container").short('i'),
    switch("tty", "Stdin is a TTY").short('t'),
]];

/// A terminal in raw mode, as long as it lives.
struct Raw(Termios);

impl Raw {
    fn enter() -> Option<Self> {
        let before = termios::tcgetattr(std::io::stdin()).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Columns and rows of the terminal.
fn size() -> Option<(u16, u16)> {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    let output = std::process::Command::new("stty").arg("size").stdin(std::process::Stdio::inherit()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut parts = text.split_whitespace().filter_map(|p| p.parse::<u16>().ok());
    match (parts.next(), parts.next()) {
        (Some(rows), Some(columns)) => Some((columns, rows)),
        _ => Some((number("COLUMNS")?, number("LINES")?)),
    }
}

/// Runs `exec`.
pub async fn exec(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let Some(dashed) = &parsed.after_dash else {
        return Err(match parsed.args.len() {
            0 => parsed.usage("pod, type/name or --filename must be specified"),
            1 => Failure::new("you must specify at least one command for the container"),
            _ => Failure::Plain("error: exec [POD] [COMMAND] is not supported anymore. Use exec [POD] -- [COMMAND] instead\nSee 'kubectl exec -h' for help and examples".into()),
        });
    };
    let from_file;
    let target = match parsed.args.first() {
        Some(target) => target,
        None if parsed.is_set("filename") => {
            from_file = named_in_file(session).await?;
            &from_file
        }
        None => return Err(parsed.usage("pod, type/name or --filename must be specified")),
    };
    if dashed.is_empty() {
        return Err(Failure::new("you must specify at least one command for the container"));
    }
    let target = if target.contains('/') { target.clone() } else { format!("pods/{target}") };
    let (kind, name) = objects::one(session, &[target]).await?;
    let Some(pod) = pods_of(session, &kind, &name).await?.into_iter().next() else {
        return Err(Failure::new("timed out waiting for the condition"));
    };
    if let Some(phase @ ("Succeeded" | "Failed")) = pod["status"]["phase"].as_str() {
        return Err(Failure::new(format!("cannot exec into a container in a completed pod; current phase is {phase}")));
    }
    let container = container_of(session, &pod);
    let stdin = parsed.on("stdin");
    let tty = parsed.on("tty") && stdin && std::io::stdin().is_terminal();
    if parsed.on("tty") && !tty {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    let mut path = path_of(session, &pod, "exec", &container, stdin, tty)?;
    for word in dashed {
        path += &format!("&command={}", encode(word));
    }
    joined(session, &path, stdin, tty).await
}

/// What the file of `--filename` names.
async fn named_in_file(session: &Session) -> Outcome<String> {
    match objects::from_files(session).await?.as_slice() {
        [object] => {
            let kind = crate::kinds::of_object(session, object).await?;
            Ok(format!("{}/{}", kind.qualified_plural(), object["metadata"]["name"].as_str().unwrap_or_default()))
        }
        _ => Err(Failure::new("cannot exec into multiple objects at a time")),
    }
}

/// The container that is meant.
fn container_of(session: &Session, pod: &Value) -> String {
    match session.parsed.text("container") {
        "" => {
            let (container, several) = default_container(pod);
            if several && !session.parsed.on("quiet") {
                eprintln!("Defaulted container \"{container}\" out of: {}", listed(pod));
            }
            container
        }
        given => given.to_owned(),
    }
}

/// The path of a pod's streams.
pub fn path_of(session: &Session, pod: &Value, what: &str, container: &str, stdin: bool, tty: bool) -> Outcome<String> {
    let flag = |on: bool| if on { "true" } else { "" };
    let namespace = match pod["metadata"]["namespace"].as_str() {
        Some(namespace) => namespace.to_owned(),
        None => session.namespace()?,
    };
    Ok(format!(
        "/api/v1/namespaces/{namespace}/pods/{}/{what}{}",
        encode(pod["metadata"]["name"].as_str().unwrap_or_default()),
        query(&[
            ("container", container),
            ("stdin", flag(stdin)),
            ("stdout", "true"),
            ("stderr", flag(!tty)),
            ("tty", flag(tty))
        ])
    ))
}

/// Joins this terminal to the streams at a path.
pub async fn joined(session: &Session, path: &str, stdin: bool, tty: bool) -> Outcome {
    let raw = tty.then(Raw::enter).flatten();
    let result = socket::command(session, path, stdin, if tty { size() } else { None }).await;
    drop(raw);
    result
}

/// Runs `attach`.
pub async fn attach(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let two;
    let target = match parsed.args.as_slice() {
        [target] => target,
        [of, name] => {
            two = format!("{of}/{name}");
            &two
        }
        [] => return Err(Failure::new("at least 1 argument is required for attach")),
        args => {
            return Err(Failure::new(format!(
                "expected POD, TYPE/NAME, or TYPE NAME, (at most 2 arguments) saw {}: [{}]",
                args.len(),
                args.join(" ")
            )));
        }
    };
    let target = if target.contains('/') { target.clone() } else { format!("pods/{target}") };
    let (kind, name) = objects::one(session, &[target]).await?;
    let Some(pod) = pods_of(session, &kind, &name).await?.into_iter().next() else {
        return Err(Failure::new("timed out waiting for the condition"));
    };
    to_pod(session, &pod).await
}

/// Joins this terminal to a container's first process.
pub async fn to_pod(session: &Session, pod: &Value) -> Outcome {
    let parsed = &session.parsed;
    if let Some(phase @ ("Succeeded" | "Failed")) = pod["status"]["phase"].as_str() {
        return Err(Failure::new(format!("cannot attach a container in a completed pod; current phase is {phase}")));
    }
    let container = container_of(session, pod);
    let all = ["containers", "initContainers", "ephemeralContainers"];
    let found = all
        .iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        .find(|c| c["name"] == container.as_str());
    let Some(found) = found else {
        return Err(Failure::new(format!(
            "cannot attach to the container: container {container} not found in pod {}",
            pod["metadata"]["name"].as_str().unwrap_or_default()
        )));
    };
    let stdin = parsed.on("stdin");
    let mut tty = parsed.on("tty");
    if tty && found["tty"] != true {
        tty = false;
        if !parsed.on("quiet") {
            eprintln!("error: Unable to use a TTY - container {container} did not allocate one");
        }
    } else if !tty && found["tty"] == true {
        tty = true;
    }
    tty &= std::io::stdin().is_terminal();
    if stdin && tty && !parsed.on("quiet") {
        eprintln!("If you don't see a command prompt, try pressing enter.");
    }
    let path = path_of(session, pod, "attach", &container, stdin, tty)?;
    joined(session, &path, stdin, tty).await
}
