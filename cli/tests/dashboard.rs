//! The page for browsers, in a browser. Skips where there is no chromium.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use support::{Server, free_port, kubectl_is_there};

/// How long the browser lets the page's own clock run, in milliseconds of its time.
const BROWSER_MILLIS: u32 = 15_000;

/// What passes the browser's questions on, and the address to open.
struct Dashboard {
    child: Child,
    url: String,
}

impl Dashboard {
    fn start(server: &Server) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_keelson"))
            .args(["dashboard", "--kubeconfig", &server.kubeconfig()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Self { child, url: url.trim().to_owned() }
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs chromium without a window; it ends by itself.
fn browse(dir: &std::path::Path, args: &[&str], url: &str) -> String {
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
        .arg(format!("--user-data-dir={}", dir.join("browser").display()))
        .arg(format!("--virtual-time-budget={BROWSER_MILLIS}"))
        .args(args)
        .arg(url)
        .env("HOME", dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_browser_shows_the_cluster() {
    if !kubectl_is_there() {
        return;
    }
    if Command::new("chromium").arg("--version").output().is_err() {
        eprintln!("SKIPPED: chromium is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), free_port(), &["--hollow", "4"]);
    server.until("nodes are there", &["get", "nodes", "-o", "name"], |out| out.lines().count() == 4);
    for (name, image, replicas) in [("web", "example:1", 3), ("shop", "shop:2", 2)] {
        server.run(&["create", "deployment", name, "--image", image, &format!("--replicas={replicas}")]);
    }
    server.run(&["cordon", "hollow-3"]);
    let available = ["get", "deployment", "web", "-o", "jsonpath={.status.availableReplicas}"];
    server.until("pods run", &available, |out| out == "3");

    let dashboard = Dashboard::start(&server);
    let page = browse(dir.path(), &["--dump-dom"], &dashboard.url);
    for part in ["data-ready=\"true\"", "hollow-3", "cordoned", "leader", "web", "uncordon", "ScalingReplicaSet"] {
        assert!(page.contains(part), "{part} is not on the page:\n{page}");
    }
    // Without the secret part of the address there is nothing.
    let (base, _) = dashboard.url.rsplit_once('/').and_then(|(rest, _)| rest.rsplit_once('/')).unwrap();
    assert!(!browse(dir.path(), &["--dump-dom"], &format!("{base}/status")).contains("hollow"));
    if let Some(picture) = std::env::var_os("KEELSON_SCREENSHOT") {
        let picture = format!("--screenshot={}", picture.to_string_lossy());
        browse(dir.path(), &[&picture, "--window-size=1280,1180"], &dashboard.url);
    }
}
