//! Credential plugins: programs that print an ExecCredential.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::failure::{Failure, Outcome};

/// The token that a user's plugin prints, if it has one.
pub fn from_exec(user: &Value) -> Outcome<Option<String>> {
    let exec = &user["exec"];
    let Some(program) = exec["command"].as_str() else { return Ok(None) };
    let version = exec["apiVersion"].as_str().unwrap_or("client.authentication.k8s.io/v1");
    let mut command = Command::new(program);
    command.args(exec["args"].as_array().into_iter().flatten().filter_map(Value::as_str));
    for variable in exec["env"].as_array().into_iter().flatten() {
        if let (Some(name), Some(value)) = (variable["name"].as_str(), variable["value"].as_str()) {
            command.env(name, value);
        }
    }
    let info = json!({"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": false}});
    let output =
        command.env("KUBERNETES_EXEC_INFO", info.to_string()).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let failed = |why: String| Failure::new(format!("getting credentials: exec: {why}"));
    let output = output.map_err(|error| failed(format!("executable {program} failed: {error}")))?;
    if !output.status.success() {
        return Err(failed(format!(
            "executable {program} failed with exit code {}",
            output.status.code().unwrap_or(-1)
        )));
    }
    let credential: Value =
        serde_json::from_slice(&output.stdout).map_err(|error| failed(format!("decoding stdout: {error}")))?;
    match credential["status"]["token"].as_str() {
        Some(token) => Ok(Some(token.to_owned())),
        None => Err(failed(format!("{program} gave no token; certificates from plugins are not supported yet"))),
    }
}
