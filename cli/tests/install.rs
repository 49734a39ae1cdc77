//! Installs below a directory of the test's own, as a package manager does, and finds nothing left after uninstalling.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use support::keelson;

/// Every path below a directory, with what kind of thing it is and its size.
fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let (path, kind) = entry.map(|entry| (entry.path(), entry.file_type().unwrap())).unwrap();
            let length = std::fs::symlink_metadata(&path).unwrap().len();
            found.insert(path.display().to_string(), format!("{kind:?} {}", if kind.is_dir() { 0 } else { length }));
            if kind.is_dir() {
                open.push(path);
            }
        }
    }
    found
}

#[test]
fn nothing_is_left_after_uninstalling() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_string_lossy().into_owned();
    // What others put there stays.
    std::fs::create_dir_all(dir.path().join("etc/systemd/system")).unwrap();
    std::fs::write(dir.path().join("etc/systemd/system/other.service"), "x").unwrap();
    let before = tree(dir.path());

    let (success, said) =
        keelson(&["install", "--root", &root, "server", "--cluster-init", "--tls-san", "a,b", "--data-dir=/srv/k"]);
    assert!(success && said.contains("disk speed"), "{said}");
    let config = std::fs::read_to_string(dir.path().join("etc/keelson/server.yaml")).unwrap();
    assert!(config.contains("cluster-init: true") && config.contains("tls-san: [\"a\",\"b\"]"), "{config}");
    let unit = std::fs::read_to_string(dir.path().join("etc/systemd/system/keelson-server.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/local/bin/keelson server --config /etc/keelson/server.yaml"), "{unit}");
    let link = dir.path().join("etc/systemd/system/multi-user.target.wants/keelson-server.service");
    assert_eq!(std::fs::read_link(link).unwrap(), Path::new("/etc/systemd/system/keelson-server.service"));

    // Again, with another flag: what was set stays.
    let (success, said) = keelson(&["install", "server", "--name", "x", "--root", &root, "--data-dir=/srv/k"]);
    assert!(success, "{said}");
    let config = std::fs::read_to_string(dir.path().join("etc/keelson/server.yaml")).unwrap();
    assert!(config.contains("cluster-init: true") && config.contains("name: \"x\""), "{config}");
    let (success, said) = keelson(&[
        "install",
        "agent",
        "--root",
        &root,
        "--server=https://a:6443",
        "--token",
        "t",
        "--ca-hash",
        "h",
        "--data-dir=/var/lib/keelson/agent",
    ]);
    assert!(success, "{said}");

    // As the services would.
    for data in ["srv/k/store", "var/lib/keelson/agent/pods"] {
        std::fs::create_dir_all(dir.path().join(data)).unwrap();
    }
    let (success, said) = keelson(&["uninstall", "--root", &root]);
    assert!(!success && said.contains("--yes"), "{said}");
    let (success, said) = keelson(&["reset", "--root", &root, "--role", "agent", "--yes"]);
    assert!(success && !dir.path().join("var/lib/keelson/agent").exists(), "{said}");
    assert!(dir.path().join("srv/k/store").exists());
    let (success, said) = keelson(&["uninstall", "--root", &root, "--yes"]);
    assert!(success, "{said}");
    std::fs::remove_dir_all(dir.path().join("srv")).unwrap();
    std::fs::remove_dir_all(dir.path().join("var")).unwrap();
    assert_eq!(tree(dir.path()), before);
    let (success, said) = keelson(&["uninstall", "--root", &root, "--yes"]);
    assert!(!success && said.contains("nothing"), "{said}");
}

#[test]
fn bad_flags_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_string_lossy().into_owned();
    for (flags, expected) in [
        (&["server", "--data-dir", "relative"][..], "must begin with /"),
        (&["server", "--no-such-flag"], "unexpected argument"),
        (&["server", "--join", "https://a:6443"], "--token"),
        (&["nobody"], "unrecognized subcommand"),
    ] {
        let (success, said) = keelson(&[&["install", "--root", &root], flags].concat());
        assert!(!success && said.contains(expected), "{flags:?}: {said}");
    }
    assert!(tree(dir.path()).is_empty());
}

/// What a run on a machine of its own told, by the name of the file.
fn told(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap_or_default()
}

#[test]
fn a_bare_machine_is_as_it_was_after_uninstalling() {
    let dir = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bare_host.sh");
    let run = std::process::Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--mount-proc", "sh", script])
        .arg(dir.path().join("layer"))
        .args([Path::new(env!("CARGO_BIN_EXE_keelson")), dir.path()])
        .output();
    let Ok(run) = run else {
        eprintln!("SKIPPED: unshare is not installed");
        return;
    };
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    // 1 from unshare itself, before anything is told, is that this is not root.
    if run.status.code() == Some(77) || !dir.path().join("before").exists() {
        eprintln!("SKIPPED: this needs root, namespaces and overlayfs: {said}");
        return;
    }
    let all = || ["install.log", "server.log", "status", "uninstall.log"].map(|name| told(dir.path(), name)).join("\n");
    assert!(run.status.success(), "{said}\n{}", all());
    let (before, running, after) = (told(dir.path(), "before"), told(dir.path(), "running"), told(dir.path(), "after"));
    for trace in ["f etc/keelson/server.yaml", "f var/lib/keelson/admin.kubeconfig", "eth0 10.9.9.100/24"] {
        assert!(running.contains(trace), "{trace} is missing: {running}");
    }
    assert_eq!(after, before);
}
