//! The walk: commands one after the other, and what they said, with what must differ made alike.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::cluster::{Cluster, Kind, PATIENCE, url};

/// A step's name and what it said.
type Said = Vec<(String, String)>;

/// Users and roles, from none to authentication that is on.
const AUTHENTICATION: &[(&str, &[&str])] = &[
    ("auth-enable-early", &["auth", "enable"]),
    ("role-add", &["role", "add", "reader"]),
    ("role-add-again", &["role", "add", "reader"]),
    ("role-grant", &["role", "grant-permission", "reader", "read", "pub/", "pub0"]),
    ("role-grant-prefix", &["role", "grant-permission", "reader", "readwrite", "own/", "--prefix=true"]),
    ("role-grant-absent", &["role", "grant-permission", "nobody", "read", "x"]),
    ("role-get", &["role", "get", "reader"]),
    ("role-get-absent", &["role", "get", "nobody"]),
    ("role-list", &["role", "list"]),
    ("user-add", &["user", "add", "ann:secret"]),
    ("user-add-again", &["user", "add", "ann:secret"]),
    ("user-add-no-password", &["user", "add", "cn", "--no-password"]),
    ("user-grant", &["user", "grant-role", "ann", "reader"]),
    ("user-grant-absent-role", &["user", "grant-role", "ann", "nobody"]),
    ("user-grant-absent-user", &["user", "grant-role", "bob", "reader"]),
    ("user-get", &["user", "get", "ann"]),
    ("user-get-detail", &["user", "get", "ann", "--detail"]),
    ("user-list", &["user", "list"]),
    ("auth-enable-no-root", &["auth", "enable"]),
    ("root-add", &["user", "add", "root:toor"]),
    ("root-role", &["role", "add", "root"]),
    ("root-grant", &["user", "grant-role", "root", "root"]),
    ("put-before-auth", &["put", "pub/1", "x"]),
    ("auth-enable", &["auth", "enable"]),
    ("auth-enable-again", &["auth", "enable"]),
    ("auth-nobody-get", &["get", "pub/1"]),
    ("auth-nobody-put", &["put", "pub/1", "x"]),
    ("auth-nobody-user-list", &["user", "list"]),
    ("auth-wrong-password", &["--user=ann:wrong", "get", "pub/1"]),
    ("auth-unknown-user", &["--user=zoe:x", "get", "pub/1"]),
    ("auth-read", &["--user=ann:secret", "get", "pub/1"]),
    ("auth-read-range", &["--user=ann:secret", "get", "pub/", "--prefix"]),
    ("auth-read-beyond", &["--user=ann:secret", "get", "a"]),
    ("auth-read-wide", &["--user=ann:secret", "get", "", "--prefix"]),
    ("auth-write", &["--user=ann:secret", "put", "own/1", "x"]),
    ("auth-write-prev", &["--user=ann:secret", "put", "own/1", "y", "--prev-kv"]),
    ("auth-write-beyond", &["--user=ann:secret", "put", "pub/1", "x"]),
    ("auth-del", &["--user=ann:secret", "del", "own/1"]),
    ("auth-del-beyond", &["--user=ann:secret", "del", "pub/1"]),
    ("auth-user-list", &["--user=ann:secret", "user", "list"]),
    ("auth-user-get-own", &["--user=ann:secret", "user", "get", "ann"]),
    ("auth-user-get-other", &["--user=ann:secret", "user", "get", "root"]),
    ("auth-role-get-own", &["--user=ann:secret", "role", "get", "reader"]),
    ("auth-root-get", &["--user=root:toor", "get", "a"]),
    ("auth-root-delete", &["--user=root:toor", "user", "delete", "root"]),
    ("auth-root-revoke", &["--user=root:toor", "user", "revoke-role", "root", "root"]),
    ("role-revoke", &["--user=root:toor", "role", "revoke-permission", "reader", "own/", "--prefix=true"]),
    ("role-revoke-again", &["--user=root:toor", "role", "revoke-permission", "reader", "own/", "--prefix=true"]),
    ("auth-write-revoked", &["--user=ann:secret", "put", "own/1", "x"]),
    ("user-revoke", &["--user=root:toor", "user", "revoke-role", "ann", "reader"]),
    ("user-revoke-again", &["--user=root:toor", "user", "revoke-role", "ann", "reader"]),
    ("auth-read-revoked", &["--user=ann:secret", "get", "pub/1"]),
    ("role-delete", &["--user=root:toor", "role", "delete", "reader"]),
    ("role-delete-again", &["--user=root:toor", "role", "delete", "reader"]),
    ("user-delete", &["--user=root:toor", "user", "delete", "ann"]),
    ("user-delete-again", &["--user=root:toor", "user", "delete", "ann"]),
];

struct Walk<'a> {
    cluster: &'a Cluster,
    endpoints: Vec<String>,
    said: Said,
}

/// Runs the walk.
pub fn run(cluster: &Cluster) -> Said {
    let members = cluster.clients.len() - 2;
    let mut walk = Walk { cluster, endpoints: cluster.endpoints(members), said: Vec::new() };
    walk.keys();
    walk.transactions();
    walk.watches();
    walk.leases();
    walk.coordination();
    walk.history();
    walk.endpoints(members);
    walk.snapshots();
    walk.mirror();
    walk.check();
    walk.members(members);
    walk.authentication();
    walk.said
}

/// Whether a word is an id or a hash: hexadecimal and long.
fn is_id(word: &str) -> bool {
    word.len() >= 12 && word.chars().all(|c| c.is_ascii_hexdigit()) && word.chars().any(|c| c.is_ascii_digit())
}

/// Makes alike what differs from run to run: ids, ports, durations, times.
fn normalized(cluster: &Cluster, text: &str) -> String {
    let mut text = text.to_owned();
    for (at, port) in cluster.clients.iter().enumerate() {
        text = text.replace(&format!("127.0.0.1:{port}"), &format!("<client {at}>"));
    }
    for (at, port) in cluster.peers.iter().enumerate() {
        text = text.replace(&format!("127.0.0.1:{port}"), &format!("<peer {at}>"));
    }
    text = text.replace(cluster.dir.path().to_string_lossy().as_ref(), "<dir>");
    // The client library logs with times and random names: what the user is told follows on lines of its own.
    let lines = text.lines().filter(|line| !line.starts_with("{\"level\""));
    let mut ids: BTreeMap<String, usize> = BTreeMap::new();
    let mut out = String::new();
    for line in lines {
        let line = line.split("took = ").next().unwrap_or_default();
        let line = line.split_once("remaining(").map_or(line.to_owned(), |(before, after)| {
            let rest = after.split_once(')').map_or("", |(_, rest)| rest);
            format!("{before}remaining(<some>){rest}")
        });
        let line = in_order(&line);
        let mut word = String::new();
        for c in line.chars().chain(['\n']) {
            if c.is_ascii_alphanumeric() {
                word.push(c);
                continue;
            }
            if is_id(&word) {
                let next = ids.len();
                let number = *ids.entry(std::mem::take(&mut word)).or_insert(next);
                out.push_str(&format!("<id {number}>"));
            } else {
                out.push_str(&std::mem::take(&mut word));
            }
            out.push(c);
        }
    }
    // Some texts pad ids to 16 digits, of which one that begins with a zero has fewer.
    while out.contains("  <id ") {
        out = out.replace("  <id ", " <id ");
    }
    out
}

/// The keys of a lease in order: etcd lists them as its hash table has them.
fn in_order(line: &str) -> String {
    const OPEN: &str = "attached keys([";
    let Some((before, (keys, after))) =
        line.split_once(OPEN).and_then(|(before, rest)| Some((before, rest.split_once("])")?)))
    else {
        return line.to_owned();
    };
    let mut keys: Vec<&str> = keys.split(' ').collect();
    keys.sort_unstable();
    format!("{before}{OPEN}{}]){after}", keys.join(" "))
}

/// A command that goes on, read line by line.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    /// The next so many lines.
    fn next(&self, count: usize) -> String {
        let mut text = String::new();
        for _ in 0..count {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => text += &(line + "\n"),
                Err(_) => return text + "<no more>\n",
            }
        }
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Walk<'_> {
    /// Runs a command and notes what it said under `name`.
    fn step_with(&mut self, name: &str, args: &[&str], stdin: &str) -> String {
        let output = self.cluster.etcdctl(&self.endpoints, args, stdin);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let code = output.status.code().unwrap_or(-1);
        self.note(name, &format!("{out}{err}[exit {code}]"));
        out.into_owned()
    }

    fn step(&mut self, name: &str, args: &[&str]) -> String {
        self.step_with(name, args, "")
    }

    /// Runs a command whose lines come in any order; so do the members that it lists.
    fn step_sorted(&mut self, name: &str, args: &[&str]) -> String {
        let said = self.step(name, args);
        if let Some((_, noted)) = self.said.last_mut() {
            let mut lines: Vec<String> = noted
                .lines()
                .map(|line| match line.strip_prefix("ETCD_INITIAL_CLUSTER=") {
                    Some(members) => {
                        let mut members: Vec<_> = members.trim_matches('"').split(',').collect();
                        members.sort_unstable();
                        members.join(",")
                    }
                    None => line.split_once(">, ").map_or(line, |(_, rest)| rest).to_owned(),
                })
                .collect();
            lines.sort_unstable();
            *noted = lines.join("\n");
        }
        said
    }

    /// Runs a command whose output says nothing that could be compared.
    fn quiet(&self, args: &[&str]) -> String {
        let output = self.cluster.etcdctl(&self.endpoints, args, "");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn note(&mut self, name: &str, text: &str) {
        self.said.push((name.to_owned(), normalized(self.cluster, text)));
    }

    /// Starts a command that goes on.
    fn start(&self, args: &[&str]) -> Running {
        let mut command = self.cluster.command(&self.endpoints, args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("etcdctl starts");
        let out = BufReader::new(child.stdout.take().expect("its output"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Running { child, lines }
    }

    fn keys(&mut self) {
        self.step("version", &["version"]);
        self.step("put", &["put", "a", "1"]);
        self.step("put-prev", &["put", "a", "2", "--prev-kv"]);
        self.step("put-ignore-value", &["put", "a", "--ignore-value"]);
        self.step("put-ignore-value-absent", &["put", "absent", "--ignore-value"]);
        self.step("put-ignore-lease-absent", &["put", "absent", "x", "--ignore-lease"]);
        self.step_with("put-stdin", &["put", "piped"], "from a pipe");
        self.step("put-lease-absent", &["put", "a", "3", "--lease=7587000000000001"]);
        self.step("put-empty-key", &["put", "", "x"]);
        for (at, key) in ["b", "c", "d", "dir/x", "dir/y", "dir/z"].iter().enumerate() {
            self.step("put-more", &["put", key, &format!("value {at}")]);
        }
        let json = ["-w", "json"];
        for (name, args) in [
            ("get", &["get", "a"][..]),
            ("get-absent", &["get", "nothing"]),
            ("get-range", &["get", "a", "d"]),
            ("get-prefix", &["get", "dir/", "--prefix"]),
            ("get-from-key", &["get", "dir/y", "--from-key"]),
            ("get-all", &["get", "", "--prefix", "--keys-only"]),
            ("get-limit", &["get", "", "--prefix", "--limit=2"]),
            ("get-count", &["get", "", "--prefix", "--count-only", "-w", "fields"]),
            ("get-value-only", &["get", "a", "--print-value-only"]),
            ("get-rev", &["get", "a", "--rev=2"]),
            ("get-rev-future", &["get", "a", "--rev=100000"]),
            ("get-serializable", &["get", "a", "--consistency=s"]),
            ("get-hex", &["get", "a", "--hex"]),
        ] {
            self.step(name, args);
            if name != "get-count" {
                let with_revisions: Vec<&str> = args.iter().chain(&json).copied().collect();
                let text = self.quiet(&with_revisions);
                let body = text.split_once("\"revision\"").map_or(text.as_str(), |(_, body)| body);
                // After the header, which names members and terms.
                let body = body.split_once('}').map_or(body, |(_, body)| body);
                self.note(&format!("{name}-json"), body);
            }
        }
        for target in ["CREATE", "KEY", "MODIFY", "VALUE", "VERSION"] {
            for order in ["ASCEND", "DESCEND"] {
                let (sort, order) = (format!("--sort-by={target}"), format!("--order={order}"));
                self.step("get-sorted", &["get", "", "--prefix", &sort, &order, "--limit=4"]);
            }
        }
        self.step("del", &["del", "d"]);
        self.step("del-absent", &["del", "d"]);
        self.step("del-prev", &["del", "c", "--prev-kv"]);
        self.step("del-range", &["del", "dir/x", "dir/z"]);
        self.step("del-prefix", &["del", "dir/", "--prefix"]);
        self.step("del-from-key", &["put", "z/1", "x"]);
        self.step("del-from-key", &["del", "z", "--from-key"]);
        self.step("get-after-del", &["get", "", "--prefix"]);
    }

    fn transactions(&mut self) {
        let txns = [
            ("txn-success", "value(\"a\") = \"2\"\n\nput t \"yes\"\nget a\n\nput t \"no\"\n\n"),
            ("txn-failure", "mod(\"a\") = \"1\"\n\nput t \"yes\"\n\nput t \"no\"\nget t\ndel t\n\n"),
            ("txn-create", "create(\"new\") = \"0\"\nver(\"a\") > \"1\"\n\nput new \"1\"\n\nget new\n\n"),
            ("txn-again", "create(\"new\") = \"0\"\n\nput new \"1\"\n\nget new\n\n"),
            ("txn-empty", "\n\n\n"),
            ("txn-duplicate", "\nput twice 1\nput twice 2\n\n\n"),
            ("txn-bad", "nonsense\n\n\n\n"),
        ];
        for (name, text) in txns {
            self.step_with(name, &["txn"], text);
            self.step_with(&format!("{name}-interactive"), &["txn", "-i"], text);
        }
        self.step("get-after-txn", &["get", "", "--prefix"]);
    }

    fn watches(&mut self) {
        let plain = self.start(&["watch", "w", "--prefix"]);
        let prev = self.start(&["watch", "w1", "--prev-kv"]);
        let exec = self.start(&["watch", "w1", "--", "sh", "-c", "echo $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY"]);
        // They do not say when they have begun.
        std::thread::sleep(Duration::from_secs(2));
        self.step("watched-put", &["put", "w1", "one"]);
        self.step("watched-put", &["put", "w1", "two"]);
        self.step("watched-put", &["put", "w2", "three"]);
        self.step("watched-del", &["del", "w1"]);
        self.note("watch-prefix", &plain.next(12));
        self.note("watch-prev", &prev.next(11));
        self.note("watch-exec", &exec.next(6));
        let revision: i64 = self.revision();
        let past = self.start(&["watch", "w1", &format!("--rev={}", revision - 3)]);
        self.note("watch-past", &past.next(8));
        let mut interactive = self.start(&["watch", "-i"]);
        let mut stdin = interactive.child.stdin.take().expect("its input");
        let _ = std::io::Write::write_all(&mut stdin, format!("watch w --prefix --rev={}\n", revision - 3).as_bytes());
        self.note("watch-interactive", &interactive.next(11));
    }

    /// The current revision.
    fn revision(&self) -> i64 {
        let text = self.quiet(&["get", "nothing", "-w", "json"]);
        let (_, rest) = text.split_once("\"revision\":").unwrap_or_default();
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0)
    }

    /// The id in what `lease grant` says.
    fn grant(&self, ttl: &str) -> String {
        self.quiet(&["lease", "grant", ttl]).split_whitespace().nth(1).unwrap_or_default().to_owned()
    }

    fn leases(&mut self) {
        self.step("lease-grant", &["lease", "grant", "600"]);
        let lease = self.grant("600");
        let with = format!("--lease={lease}");
        self.step("put-lease", &["put", "leased/1", "x", &with]);
        self.step("put-lease", &["put", "leased/2", "x", &with]);
        self.step("put-ignore-lease", &["put", "leased/1", "y", "--ignore-lease"]);
        self.step("lease-timetolive", &["lease", "timetolive", &lease]).clear();
        self.step("lease-timetolive-keys", &["lease", "timetolive", &lease, "--keys"]);
        self.step("lease-keep-alive-once", &["lease", "keep-alive", "--once", &lease]);
        let alive = self.start(&["lease", "keep-alive", &lease]);
        self.note("lease-keep-alive", &alive.next(1));
        drop(alive);
        self.step("lease-list", &["lease", "list"]);
        self.step("lease-revoke", &["lease", "revoke", &lease]);
        self.step("lease-revoke-again", &["lease", "revoke", &lease]);
        self.step("lease-timetolive-absent", &["lease", "timetolive", &lease]);
        self.step("lease-keep-alive-absent", &["lease", "keep-alive", "--once", &lease]);
        self.step("lease-keys-gone", &["get", "leased/", "--prefix"]);
        self.step("lease-grant-bad", &["lease", "grant", "99999999999"]);
        let short = self.grant("1");
        self.step("put-lease", &["put", "short", "x", &format!("--lease={short}")]);
        std::thread::sleep(Duration::from_secs(6));
        self.step("lease-expired", &["get", "short"]);
    }

    fn coordination(&mut self) {
        self.step("lock-command", &["lock", "mutex", "echo", "in the lock"]);
        let held = self.start(&["lock", "held"]);
        let key = held.next(1);
        self.note("lock", &key);
        let waiting = self.start(&["lock", "held", "echo", "second"]);
        std::thread::sleep(Duration::from_secs(1));
        self.note("lock-waits", &format!("{:?}", waiting.lines.try_recv().is_err()));
        let lease = key.trim().rsplit('/').next().unwrap_or_default().to_owned();
        self.step("lock-holder-dies", &["lease", "revoke", &lease]);
        self.note("lock-passes-on", &waiting.next(1));
        drop((held, waiting));
        let leader = self.start(&["elect", "office", "first"]);
        self.note("elect", &leader.next(2));
        let observer = self.start(&["elect", "-l", "office"]);
        self.note("elect-observed", &observer.next(2));
    }

    fn history(&mut self) {
        self.step("compaction", &["compaction", "5"]);
        self.step("compaction-again", &["compaction", "5"]);
        self.step("compaction-future", &["compaction", "1000000"]);
        let revision = self.revision().to_string();
        self.quiet(&["compaction", &revision, "--physical"]);
        self.step("get-compacted", &["get", "a", "--rev=5"]);
        let compacted = self.start(&["watch", "a", "--rev=3"]);
        self.note("watch-compacted", &compacted.next(1));
    }

    fn endpoints(&mut self, members: usize) {
        self.step_sorted("endpoint-health", &["endpoint", "health"]);
        self.step_sorted("endpoint-health-cluster", &["endpoint", "health", "--cluster"]);
        let status = self.quiet(&["endpoint", "status", "--cluster"]);
        // Sizes, terms and indexes are each program's own.
        let told: Vec<String> = status.lines().map(|line| line.split(", ").count().to_string()).collect();
        self.note("endpoint-status", &format!("{told:?} leaders {}", status.matches("true").count()));
        let hashes = self.quiet(&["endpoint", "hashkv", "--cluster"]);
        let hashes: Vec<_> = hashes.lines().filter_map(|line| line.rsplit(", ").next()).collect();
        let same = hashes.windows(2).all(|pair| pair[0] == pair[1]);
        self.note("endpoint-hashkv-agree", &format!("{} hashes, equal: {same}", hashes.len()));
        self.step("endpoint-hashkv", &["endpoint", "hashkv"]);
        self.step("defrag", &["defrag"]);
        self.step("alarm-list", &["alarm", "list"]);
        self.step("alarm-disarm", &["alarm", "disarm"]);
        if members > 1 {
            self.move_leader(members);
        }
    }

    fn move_leader(&mut self, members: usize) {
        let leader = |walk: &Self| {
            let status = walk.quiet(&["endpoint", "status"]);
            let rows: Vec<Vec<String>> =
                status.lines().map(|line| line.split(", ").map(str::to_owned).collect()).collect();
            let leads = rows.iter().position(|row| row.get(4).is_some_and(|leads| leads == "true"));
            (rows, leads)
        };
        let (rows, Some(leads)) = leader(self) else { return self.note("move-leader", "nobody leads") };
        let to = (leads + 1) % members;
        let id = rows[to].get(1).cloned().unwrap_or_default();
        let output = self.cluster.etcdctl(&[url(self.cluster.clients[leads])], &["move-leader", &id], "");
        self.note("move-leader", &format!("moved: {}", output.status.success()));
        let (_, now) = leader(self);
        self.note("move-leader-moved", &format!("{}", now == Some(to)));
        let other = (to + 1) % members;
        let output = self.cluster.etcdctl(&[url(self.cluster.clients[other])], &["move-leader", &id], "");
        let told = String::from_utf8_lossy(&output.stderr);
        self.note("move-leader-not-leader", told.split(" at ").next().unwrap_or_default());
    }

    fn snapshots(&mut self) {
        let one = vec![self.endpoints[0].clone()];
        let all = std::mem::replace(&mut self.endpoints, one);
        let file = self.cluster.path("backup.db");
        self.step("snapshot-save", &["snapshot", "save", &file]);
        let status = self.step("snapshot-status", &["snapshot", "status", &file]);
        let fields: Vec<&str> = status.trim().split(", ").collect();
        // Hash, revision, keys, size. Leases of what was killed may end at any time.
        let there =
            fields.get(1).is_some_and(|found| found.parse().is_ok_and(|at: i64| (1..=self.revision()).contains(&at)));
        self.note("snapshot-revision", &there.to_string());
        // What one program has saved the other's tools restore: etcd's own here.
        let target = self.cluster.path("restored");
        self.step("snapshot-restore", &["snapshot", "restore", &file, "--data-dir", &target]);
        let there = std::path::Path::new(&target).join("member/snap/db").exists();
        self.note("snapshot-restored", &there.to_string());
        self.endpoints = all;
    }

    fn mirror(&mut self) {
        let target = url(self.cluster.clients[0]);
        let args = ["make-mirror", "--prefix=mirrored/", "--dest-prefix=copy/", "--no-dest-prefix=false", &target];
        self.quiet(&["put", "mirrored/1", "one"]);
        let mirror = self.start(&args);
        std::thread::sleep(Duration::from_secs(3));
        self.quiet(&["put", "mirrored/2", "two"]);
        std::thread::sleep(Duration::from_secs(2));
        drop(mirror);
        self.step("make-mirror", &["get", "copy/", "--prefix"]);
    }

    fn check(&mut self) {
        let text = self.quiet(&["check", "datascale", "--load=s", "--auto-compact=true"]);
        let failed: Vec<_> = text.lines().filter(|line| line.contains("FAIL")).collect();
        self.note("check-datascale", &format!("passed: {} {failed:?}", text.contains("PASS")));
    }

    fn members(&mut self, members: usize) {
        self.step_sorted("member-list", &["member", "list"]);
        let urls = format!("--peer-urls={}", url(self.cluster.peers[members]));
        let added = self.step_sorted("member-add-learner", &["member", "add", "learner", "--learner", &urls]);
        let id = added.split_whitespace().nth(1).unwrap_or_default().to_owned();
        // etcd makes ids of URLs and seconds, and looks at ids first.
        std::thread::sleep(Duration::from_millis(1100));
        self.step("member-add-taken", &["member", "add", "other", &urls]);
        self.step("member-promote-unready", &["member", "promote", &id]);
        let other = format!("--peer-urls={}", url(self.cluster.peers[members + 1]));
        self.step("member-update", &["member", "update", &id, &other]);
        let listed = self.quiet(&["member", "list"]);
        self.note(
            "member-listed",
            &format!("{} unstarted {}", listed.lines().count(), listed.matches("unstarted").count()),
        );
        self.step("member-remove", &["member", "remove", &id]);
        self.step("member-remove-absent", &["member", "remove", &id]);
        self.step("member-add-bad-url", &["member", "add", "x", "--peer-urls=nonsense"]);
        if members > 1 {
            let added = self.step("member-add-voter", &["member", "add", "voter", &urls]);
            let id = added.split_whitespace().nth(1).unwrap_or_default().to_owned();
            self.quiet(&["member", "remove", &id]);
        }
    }

    fn authentication(&mut self) {
        for (name, args) in AUTHENTICATION {
            self.step(name, args);
        }
        let allowed = "\nput own/2 \"x\"\nget pub/1\n\n\n";
        self.quiet(&["--user=root:toor", "role", "add", "writer"]);
        self.quiet(&["--user=root:toor", "role", "grant-permission", "writer", "write", "own/", "--prefix=true"]);
        self.quiet(&["--user=root:toor", "user", "add", "wes:pw"]);
        self.quiet(&["--user=root:toor", "user", "grant-role", "wes", "writer"]);
        self.step_with("auth-txn-read-beyond", &["--user=wes:pw", "txn"], allowed);
        self.step_with("auth-txn", &["--user=wes:pw", "txn"], "\nput own/2 \"x\"\n\n\n");
        self.step_with("auth-txn-compare-beyond", &["--user=wes:pw", "txn"], "value(\"a\") = \"2\"\n\n\n\n");
        self.step("auth-write-only-prev", &["--user=wes:pw", "put", "own/2", "z", "--prev-kv"]);
        self.step("auth-write-only-get", &["--user=wes:pw", "get", "own/2"]);
        self.step_with("user-passwd", &["--user=root:toor", "user", "passwd", "wes", "--interactive=false"], "new\n");
        self.step("auth-old-password", &["--user=wes:pw", "put", "own/2", "z"]);
        self.step("auth-new-password", &["--user=wes:new", "put", "own/2", "z"]);
        self.step("auth-disable-stranger", &["--user=wes:new", "auth", "disable"]);
        self.step("auth-disable", &["--user=root:toor", "auth", "disable"]);
        self.step("auth-disabled", &["get", "own/2"]);
        // Whom the client logs in as matters no more.
        self.step("auth-disabled-user", &["--user=wes:new", "get", "own/2"]);
        debug_assert!(matches!(self.cluster.kind, Kind::Keelson | Kind::Etcd));
    }
}
