//! A few requests to the API through curl: enough to deploy a sample and to wait, without TLS in `cargo xtask`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::run;

/// The API as one kubeconfig says.
pub struct Api {
    server: String,
    /// How long a request may take.
    seconds: u32,
    files: [(&'static str, PathBuf); 3],
}

/// How long a request may take.
const SECONDS: u32 = 10;

impl Api {
    /// The same at another address, with another limit to the seconds that a request may take.
    pub fn at(self, server: &str, seconds: u32) -> Self {
        Self { server: server.to_owned(), seconds, ..self }
    }

    /// From a kubeconfig of `keelson server`; keys are written to `dir` for curl, readable by their owner only.
    pub fn new(kubeconfig: &Path, dir: &Path) -> Result<Self> {
        let bytes = fs::read(kubeconfig).with_context(|| kubeconfig.display().to_string())?;
        // `keelson` writes JSON, which is YAML, with one cluster and one user.
        let config: Value = serde_json::from_slice(&bytes).with_context(|| kubeconfig.display().to_string())?;
        let value = |of: &str, key: &str| {
            let found = config.pointer(of).and_then(|part| part[key].as_str());
            found.with_context(|| format!("{} has no {key}", kubeconfig.display()))
        };
        fs::create_dir_all(dir)?;
        let file = |option, of: &str, key: &str| -> Result<_> {
            let path = dir.join(key);
            let bytes = STANDARD.decode(value(of, key)?).with_context(|| format!("{key} is not base64"))?;
            run::write_whole(&path, &bytes)?;
            Ok((option, path))
        };
        const CLUSTER: &str = "/clusters/0/cluster";
        const USER: &str = "/users/0/user";
        Ok(Self {
            server: value(CLUSTER, "server")?.to_owned(),
            seconds: SECONDS,
            files: [
                file("--cacert", CLUSTER, "certificate-authority-data")?,
                file("--cert", USER, "client-certificate-data")?,
                file("--key", USER, "client-key-data")?,
            ],
        })
    }

    /// Sends a request; an answer other than 2xx is an error with the server's words.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Vec<u8>> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--request", method]);
        curl.args(["--max-time", &self.seconds.to_string()]);
        curl.args(["--write-out", "\n%{http_code}"]);
        for (option, file) in &self.files {
            curl.arg(option).arg(file);
        }
        if body.is_some() {
            curl.args(["--header", "Content-Type: application/json", "--data-binary", "@-"]);
        }
        curl.arg(format!("{}{path}", self.server));
        curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = curl.spawn().context("cannot start curl")?;
        if let (Some(mut stdin), Some(body)) = (child.stdin.take(), body) {
            stdin.write_all(body.to_string().as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("{method} {path}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let end = output.stdout.iter().rposition(|byte| *byte == b'\n').context("curl wrote no status")?;
        let (answer, status) = (&output.stdout[..end], &output.stdout[end + 1..]);
        if !status.starts_with(b"2") {
            let told: Option<Value> = serde_json::from_slice(answer).ok();
            let message = told.and_then(|t| Some(t["message"].as_str()?.to_owned()));
            let message = message.unwrap_or_else(|| String::from_utf8_lossy(answer).into_owned());
            bail!("{method} {path}: {} {message}", String::from_utf8_lossy(status));
        }
        Ok(answer.to_vec())
    }

    /// Reads an object or a list.
    pub fn get(&self, path: &str) -> Result<Value> {
        serde_json::from_slice(&self.call("GET", path, None)?).with_context(|| format!("GET {path}"))
    }

    /// Creates an object, unless one of its name is there.
    pub fn create(&self, path: &str, object: &Value) -> Result<()> {
        match self.call("POST", path, Some(object)) {
            Err(error) if error.to_string().contains(": 409 ") => Ok(()),
            result => result.map(drop),
        }
    }
}
