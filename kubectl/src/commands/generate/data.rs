//! `create configmap` and `create secret`.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, repeated, switch, text};
use crate::output;
use crate::session::Session;

use super::super::create::{SAVE, WRITE, generate};
use super::{name, object};

const SOURCES: &[Flag] = &[
    repeated("from-file", "Key file can be specified using its file path, or with a key: --from-file=[key=]source."),
    repeated("from-literal", "Specify a key and literal value to insert (i.e. mykey=somevalue)"),
    repeated("from-env-file", "Specify the path to a file to read lines of key=val pairs."),
    switch("append-hash", "Append a hash of the configmap or secret to its name."),
];
/// Flags of `create configmap`.
pub const DATA: &[&[Flag]] = &[output::FLAGS, WRITE, &[SAVE], SOURCES];
/// Flags of `create secret generic`.
pub const SECRET: &[&[Flag]] =
    &[output::FLAGS, WRITE, &[SAVE], SOURCES, &[text("type", "", "The type of secret to create")]];
/// Flags of `create secret tls`.
pub const TLS: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        text("cert", "", "Path to PEM encoded public key certificate."),
        text("key", "", "Path to private key associated with given certificate."),
        switch("append-hash", "Append a hash of the secret to its name."),
    ],
];
/// Flags of `create secret docker-registry`.
pub const REGISTRY: &[&[Flag]] = &[
    output::FLAGS,
    WRITE,
    &[
        SAVE,
        text("docker-username", "", "Username for Docker registry authentication"),
        text("docker-password", "", "Password for Docker registry authentication"),
        repeated("from-file", "A file with the registry's configuration: [.dockerconfigjson=]path."),
        text("docker-email", "", "Email for Docker registry"),
        text("docker-server", "https://index.docker.io/v1/", "Server location for Docker registry"),
        switch("append-hash", "Append a hash of the secret to its name."),
    ],
];
fn unreadable(path: &str, error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(format!("error reading {path}: no such file or directory")),
        _ => Failure::new(format!("error reading {path}: {error}")),
    }
}

/// The entries that a file, or the files of a directory give: `[key=]path`.
fn from_file(source: &str, all: &mut Vec<(String, Vec<u8>)>) -> Outcome {
    let (key, path) = match source.split_once('=') {
        Some((key, path)) => (Some(key), path),
        None => (None, source),
    };
    if source.is_empty() {
        return Ok(());
    }
    match key {
        _ if path.contains('=') => {
            return Err(Failure::new("key names or file paths cannot contain '='"));
        }
        Some("") => return Err(Failure::new(format!("key name for file path {path} missing"))),
        Some(key) if path.is_empty() => return Err(Failure::new(format!("file path for key name {key} missing"))),
        _ => {}
    }
    let wrong = |e: std::io::Error| unreadable(path, &e);
    if Path::new(path).is_dir() {
        if key.is_some() {
            return Err(Failure::new("cannot give a key name for a directory path"));
        }
        let mut files: Vec<_> = std::fs::read_dir(path)
            .map_err(wrong)?
            .filter_map(|e| Some(e.ok()?.path()))
            .filter(|p| p.is_file())
            .collect();
        files.sort();
        for file in files {
            let key = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            all.push((key, std::fs::read(&file).map_err(wrong)?));
        }
        return Ok(());
    }
    let own = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
    all.push((key.map_or(own, str::to_owned), std::fs::read(path).map_err(wrong)?));
    Ok(())
}

/// The entries that files and literals give: text, or bytes that are none.
fn entries(session: &Session) -> Outcome<Vec<(String, Vec<u8>)>> {
    let parsed = &session.parsed;
    if parsed.is_set("from-env-file") && (parsed.is_set("from-file") || parsed.is_set("from-literal")) {
        return Err(Failure::new("from-env-file cannot be combined with from-file or from-literal"));
    }
    let is_secret = parsed.command.contains("secret");
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    for source in parsed.all("from-file") {
        from_file(&source, &mut all)?;
    }
    for literal in parsed.all("from-literal") {
        let (key, value) = literal
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| Failure::new(format!("invalid literal source {literal}, expected key=value")))?;
        all.push((key.to_owned(), value.as_bytes().to_vec()));
    }
    for path in parsed.all("from-env-file") {
        let content = std::fs::read_to_string(&path).map_err(|e| unreadable(&path, &e))?;
        for line in content.lines().map(str::trim_start).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let (key, value) = match line.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None => (line.to_owned(), std::env::var(line).unwrap_or_default()),
            };
            let starts = |c: char| c.is_ascii_alphabetic() || matches!(c, '-' | '_' | '.');
            if !key.starts_with(starts) || !key.chars().all(|c| starts(c) || c.is_ascii_digit()) {
                return Err(super::super::set::invalid_variable(&key));
            }
            all.push((key, value.into_bytes()));
        }
    }
    for (at, (key, _)) in all.iter().enumerate() {
        let twice = all[..at].iter().any(|(before, _)| before == key);
        if twice && is_secret {
            return Err(Failure::new(format!("cannot add key {key}, another key by that name already exists")));
        }
        if twice {
            return Err(Failure::new(format!(
                "cannot add key {key:?}, another key by that name already exists in Data for ConfigMap {:?}",
                session.parsed.args.first().map_or("", |a| a)
            )));
        }
        let problems = keelson_machinery::names::config_key_problems(key);
        if !problems.is_empty() {
            let wrong = if is_secret { "valid key name for a Secret" } else { "a valid key name for a ConfigMap:" };
            return Err(Failure::new(format!("{key:?} is not {wrong} {}", problems.join(", "))));
        }
    }
    Ok(all)
}

/// Runs `create configmap`.
pub async fn config_map(session: &Session) -> Outcome {
    let mut object = object("v1", "ConfigMap", name(session)?);
    for (key, bytes) in entries(session)? {
        match String::from_utf8(bytes) {
            Ok(text) => object["data"][key] = text.into(),
            Err(error) => object["binaryData"][key] = STANDARD.encode(error.as_bytes()).into(),
        }
    }
    append_digest(session, &mut object);
    generate(session, object).await
}

/// Puts a digest of the content behind the name, if that is asked for.
fn append_digest(session: &Session, object: &mut Value) {
    if session.parsed.on("append-hash") {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let digest = crate::kustomize::digest(object, &name);
        object["metadata"]["name"] = format!("{name}-{digest}").into();
    }
}

/// Runs `create secret generic`.
pub async fn secret(session: &Session) -> Outcome {
    let mut object = object("v1", "Secret", name(session)?);
    for (key, bytes) in entries(session)? {
        object["data"][key] = STANDARD.encode(bytes).into();
    }
    if !session.parsed.text("type").is_empty() {
        object["type"] = session.parsed.text("type").into();
    }
    append_digest(session, &mut object);
    generate(session, object).await
}

/// Runs `create secret tls`.
pub async fn tls_secret(session: &Session) -> Outcome {
    let read = |flag: &str| -> Outcome<Vec<u8>> {
        let path = session.parsed.text(flag);
        if path.is_empty() {
            return Err(Failure::new("key and cert must be specified"));
        }
        let wrong = |e| Failure::new(format!("Cannot read file {path}, {}", crate::failure::opening(path, &e)));
        let bytes = std::fs::read(path).map_err(wrong)?;
        let (what, marker) = if flag == "cert" { ("certificate", "-----BEGIN ") } else { ("key", "-----BEGIN ") };
        match String::from_utf8_lossy(&bytes).contains(marker) {
            true => Ok(bytes),
            false => Err(Failure::new(format!("tls: failed to find any PEM data in {what} input"))),
        }
    };
    let mut object = object("v1", "Secret", name(session)?);
    object["type"] = "kubernetes.io/tls".into();
    let (cert, key) = (read("cert")?, read("key")?);
    if let Some(why) = keelson_pki::key_problem(&String::from_utf8_lossy(&cert), &String::from_utf8_lossy(&key)) {
        return Err(Failure::new(why));
    }
    object["data"] = json!({"tls.crt": STANDARD.encode(cert), "tls.key": STANDARD.encode(key)});
    append_digest(session, &mut object);
    generate(session, object).await
}

/// Runs `create secret docker-registry`.
pub async fn registry_secret(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let mut object = object("v1", "Secret", name(session)?);
    object["type"] = "kubernetes.io/dockerconfigjson".into();
    if parsed.is_set("from-file") {
        object["data"] = json!({});
        for (key, bytes) in entries(session)? {
            let key = if key.ends_with(".json") { ".dockerconfigjson".to_owned() } else { key };
            object["data"][key] = STANDARD.encode(bytes).into();
        }
        append_digest(session, &mut object);
        return generate(session, object).await;
    }
    let (user, password) = (parsed.text("docker-username"), parsed.text("docker-password"));
    if user.is_empty() || password.is_empty() || parsed.text("docker-server").is_empty() {
        return Err(Failure::new(
            "either --from-file or the combination of --docker-username, --docker-password and --docker-server is required",
        ));
    }
    let quoted = |text: &str| Value::from(text).to_string();
    // Written in the order of the fields, which the names of registries and users must not change.
    let email = match parsed.text("docker-email") {
        "" => String::new(),
        email => format!("\"email\":{},", quoted(email)),
    };
    let config = format!(
        "{{\"auths\":{{{}:{{\"username\":{},\"password\":{},{email}\"auth\":{}}}}}}}",
        quoted(parsed.text("docker-server")),
        quoted(user),
        quoted(password),
        quoted(&STANDARD.encode(format!("{user}:{password}")))
    );
    object["data"] = json!({".dockerconfigjson": STANDARD.encode(config)});
    append_digest(session, &mut object);
    generate(session, object).await
}
