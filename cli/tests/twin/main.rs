//! kubectl's twin beside the real one: the same command lines against the same server, the same output and exit code.

#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use support::{Server, free_port, kubectl_is_there};

/// Command lines, in the shell's words. None changes anything, so that both programs see the same. `DIR` is the directory
/// with the files below.
const LINES: &str = include_str!("lines.txt");
/// Lines that change kubeconfig files, and lines that change objects, in their order: each program goes through them for itself.
/// Those that begin with `!` are the shell's, with the program in `$K`.
const SETTINGS: &str = include_str!("settings.txt");
const STEPS: &str = include_str!("steps.txt");
/// What is looked at.
const OBJECTS: &str = include_str!("files/objects.yaml");
/// More of it: every kind, with every field that `describe` shows.
const RICH: &str = include_str!("files/rich.yaml");
/// The files that lines name.
const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/twin/files");
/// How often a line may be repeated when the outputs differ: what they show may have changed in between.
const ATTEMPTS: usize = 3;
/// Lines that run at once.
const WORKERS: usize = 4;

const DAYS: [&str; 7] = ["Mon,", "Tue,", "Wed,", "Thu,", "Fri,", "Sat,", "Sun,"];
/// Words of a date: `Mon, 02 Jan 2006 15:04:05 -0700`.
const DATE_WORDS: usize = 6;

fn is_age(word: &str) -> bool {
    let digits = word.trim_end_matches(['s', 'm', 'h']);
    digits.len() < word.len()
        && !digits.is_empty()
        && digits.chars().all(|c| c.is_ascii_digit() || c == 'm' || c == 'h')
}

/// A line without what a moment changes: ages, dates and temporary directories. Where one was, the columns after it may have moved.
fn normal(line: &str) -> String {
    let (mut words, mut changed) = (Vec::new(), false);
    let mut all = line.split_whitespace();
    while let Some(word) = all.next() {
        let is_date = DAYS.contains(&word);
        if is_date {
            all.by_ref().take(DATE_WORDS - 1).for_each(drop);
        }
        changed |= is_date || is_age(word);
        let file = word.contains("/LIVE-") || word.contains("/MERGED-");
        changed |= file;
        words.push(match word.rsplit_once('/') {
            Some((_, name)) if file => name,
            _ if is_date => "DATE",
            _ if is_age(word) => "AGE",
            // Events that came again: `3m (x2 over 46s)`.
            _ if word.strip_suffix(')').is_some_and(is_age) => "AGE)",
            _ => word,
        });
    }
    if changed { words.join(" ") } else { line.trim_end().to_owned() }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// Output and exit code of a command line.
fn said(server: &Server, dir: &Path, program: &str, line: &str) -> String {
    said_with(&server.kubeconfig(), dir, program, line)
}

fn said_with(kubeconfig: &str, dir: &Path, program: &str, line: &str) -> String {
    let line = line.replace("DIR", &dir.to_string_lossy());
    let shell = match line.strip_prefix("! ") {
        Some(shell) => shell.to_owned(),
        None => format!("{program} {line} 2>&1"),
    };
    let output = Command::new("sh")
        .args(["-c", &shell])
        .env("KUBECONFIG", kubeconfig)
        .env("K", program)
        .stdin(Stdio::null())
        // Without the times of the files.
        .env("KUBECTL_EXTERNAL_DIFF", "diff -r -N")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // What the installed kubectl writes differently from newer ones is left out: null times, and the names under which
    // sources of volumes are optional. Some builds of it begin the refusal of a flag with a capital letter.
    let older = |line: &&str| {
        let line = line.trim();
        let optional = ["ConfigMapOptional:", "SecretOptionalName:", "Optional:"].iter().any(|o| line.starts_with(o));
        line != "creationTimestamp: null" && !optional
    };
    let lines: Vec<String> =
        text.lines().filter(older).map(|line| normal(&line.replacen("Error: ", "error: ", 1))).collect();
    format!("{}\nexit {}", lines.join("\n"), output.status.code().unwrap_or(-1))
}

/// What differs on a line, if anything does however often it is repeated.
fn difference(server: &Server, dir: &Path, line: &str) -> Option<String> {
    let twin = format!("{} kubectl", env!("CARGO_BIN_EXE_keelson"));
    let mut found = None;
    for _ in 0..ATTEMPTS {
        let (real, own) = (said(server, dir, "kubectl", line), said(server, dir, &twin, line));
        if real == own {
            return None;
        }
        found = Some(format!("kubectl {line}\n--- kubectl\n{real}\n--- twin\n{own}"));
    }
    found
}

#[test]
fn the_twin_says_what_kubectl_says() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), free_port(), &["--hollow", "2"]);
    copy(Path::new(FILES), dir.path());
    let account = ["get", "serviceaccount", "default", "-o", "name"];
    server.until("the namespace has its account", &account, |out| out == "serviceaccount/default");
    server.apply(OBJECTS);
    let running = ["get", "deployment", "web", "-o", "jsonpath={.status.availableReplicas}"];
    server.until("pods run", &running, |out| out == "2");
    for (kind, path, wanted) in [
        ("statefulset/sts", "{.status.readyReplicas}", "1"),
        ("daemonset/ds", "{.status.numberReady}", "2"),
        ("replicationcontroller/rc", "{.status.readyReplicas}", "1"),
        ("job/job", "{.status.succeeded}", "1"),
        ("crd/things.x.example", "{.status.conditions[?(@.type==\"Established\")].status}", "True"),
        ("resourcequota/q", "{.status.used.configmaps}", "2"),
        ("pdb/pdb", "{.status.currentHealthy}", "2"),
    ] {
        let path = format!("jsonpath={path}");
        server.until(kind, &["get", kind, "-o", &path], |out| out == wanted);
    }
    // After the others, whose pods the quotas in it would refuse.
    server.apply(RICH);
    let ready = ["get", "replicaset", "rs1", "-o", "jsonpath={.status.readyReplicas}"];
    server.until("the last pods run", &ready, |out| out == "1");
    let lines: Vec<&str> = LINES.lines().filter(|line| !line.is_empty()).collect();
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(line) = lines.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(text) = difference(&server, dir.path(), line) {
                        wrong.lock().unwrap().push(text);
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {} lines differ:\n{}", wrong.len(), lines.len(), wrong.join("\n\n"));
}

/// An output without what differs between two clusters and two directories.
fn placeless(text: &str, dir: &Path) -> String {
    const OWN: [&str; 4] = ["uid: ", "resourceVersion: ", "creationTimestamp: ", "time: "];
    let own = |line: &&str| !OWN.iter().any(|key| line.trim_start_matches(['<', '>', ' ', '-']).starts_with(key));
    text.replace(&*dir.to_string_lossy(), "DIR").lines().filter(own).collect::<Vec<_>>().join("\n")
}

/// Lets both programs go through the lines, each with its kubeconfig and in its directory; what they say must be the same.
fn side_by_side(lines: &str, kubeconfigs: [&str; 2], dirs: [&Path; 2]) {
    let programs = ["kubectl".to_owned(), format!("{} kubectl", env!("CARGO_BIN_EXE_keelson"))];
    dirs.iter().for_each(|dir| copy(Path::new(FILES), dir));
    let mut wrong = Vec::new();
    for line in lines.lines().filter(|line| !line.is_empty()) {
        let [real, own] = [0, 1].map(|at| {
            let text = said_with(kubeconfigs[at], dirs[at], &programs[at], line);
            placeless(&text, dirs[at])
        });
        if real != own {
            wrong.push(format!("kubectl {line}\n--- kubectl\n{real}\n--- twin\n{own}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {} lines differ:\n{}", wrong.len(), lines.lines().count(), wrong.join("\n\n"));
}

#[test]
fn the_twin_changes_kubeconfigs_as_kubectl_does() {
    if !kubectl_is_there() {
        return;
    }
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    side_by_side(SETTINGS, ["/nothing", "/nothing"], [one.path(), two.path()]);
}

#[test]
fn the_twin_changes_objects_as_kubectl_does() {
    if !kubectl_is_there() {
        return;
    }
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let servers = [&one, &two].map(|dir| Server::start(&dir.path().join("server"), free_port(), &["--hollow", "1"]));
    let account = ["get", "serviceaccount", "default", "-o", "name"];
    for server in &servers {
        server.until("the namespace has its account", &account, |out| out == "serviceaccount/default");
    }
    let [first, second] = [servers[0].kubeconfig(), servers[1].kubeconfig()];
    let (files, others) = (one.path().join("files"), two.path().join("files"));
    side_by_side(STEPS, [&first, &second], [&files, &others]);
}

#[test]
fn what_the_twin_changes_is_changed() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path(), free_port(), &["--hollow", "2"]);
    let twin = format!("{} kubectl", env!("CARGO_BIN_EXE_keelson"));
    let file = dir.path().join("cm.yaml");
    let file = file.to_string_lossy();
    for (line, expected) in [
        ("create deployment web --image=example:1 --replicas=2".to_owned(), "deployment.apps/web created"),
        ("rollout status deployment/web --timeout=60s".into(), "successfully rolled out"),
        ("scale deployment web --replicas=3".into(), "deployment.apps/web scaled"),
        ("set image deployment/web example=example:2".into(), "deployment.apps/web image updated"),
        ("rollout status deployment/web --timeout=60s".into(), "successfully rolled out"),
        ("rollout undo deployment/web".into(), "deployment.apps/web rolled back"),
        ("rollout history deployment/web".into(), "REVISION  CHANGE-CAUSE\n2         <none>\n3         <none>"),
        ("label deployment web tier=front".into(), "deployment.apps/web labeled"),
        ("label deployment web tier=back".into(), "'tier' already has a value (front), and --overwrite is false"),
        ("annotate deployment web note=x".into(), "deployment.apps/web annotated"),
        (format!("apply -f {file}"), "configmap/cm created"),
        (format!("apply -f {file}"), "configmap/cm unchanged"),
        ("patch configmap cm --type=merge -p '{\"data\":{\"b\":\"2\"}}'".into(), "configmap/cm patched"),
        (format!("apply -f {file}"), "configmap/cm unchanged"),
        (format!("apply --server-side --force-conflicts -f {file}"), "configmap/cm serverside-applied"),
        ("get configmap cm -o jsonpath='{.data}'".into(), "{\"a\":\"1\",\"b\":\"2\"}"),
        (format!("delete -f {file}"), "configmap \"cm\" deleted"),
        ("cordon hollow-1".into(), "node/hollow-1 cordoned"),
        ("drain hollow-1 --force".into(), "node/hollow-1 drained"),
        ("uncordon hollow-1".into(), "node/hollow-1 uncordoned"),
        ("taint nodes hollow-1 a=b:NoSchedule".into(), "node/hollow-1 tainted"),
        ("taint nodes hollow-1 a-".into(), "node/hollow-1 untainted"),
        ("delete deployment web".into(), "deployment.apps \"web\" deleted"),
        ("wait --for=delete pod -l app=web --timeout=60s".into(), ""),
    ] {
        std::fs::write(file.as_ref(), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cm}\ndata: {a: '1'}\n")
            .unwrap();
        let said = said(&server, dir.path(), &twin, &line);
        assert!(said.contains(expected), "{line}: {said}");
    }
}
