//! Runs client libraries that people use against the real binary, where they are installed.

mod support;

use std::process::Command;

use support::{Server, free_port, kubectl_is_there};

/// The Python that is used: `KEELSON_PYTHON` names another than the first in the path.
fn python() -> Option<String> {
    let python = std::env::var("KEELSON_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python).args(["-c", "import kubernetes"]).output().is_ok_and(|o| o.status.success());
    if !there {
        eprintln!(
            "SKIPPED: {python} has no package `kubernetes` (pip install kubernetes; KEELSON_PYTHON names a virtual environment's)"
        );
    }
    there.then_some(python)
}

#[test]
fn the_python_client_works() {
    if !kubectl_is_there() {
        return;
    }
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), free_port(), &["--hollow", "1"]);
    let account = ["get", "serviceaccount", "default", "-o", "name"];
    server.until("the namespace has its account", &account, |out| out == "serviceaccount/default");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client.py");
    let output = Command::new(python).arg(script).arg(server.kubeconfig()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().ends_with("ok"), "{said}");
}
