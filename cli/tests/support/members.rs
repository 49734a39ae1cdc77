//! Clusters of several servers on this machine.

use std::path::Path;

use super::{PATIENCE, Server, keelson};

/// The flags of the command that `keelson token create` prints.
pub fn join_flags(first: &Server, server: bool) -> Vec<String> {
    let kubeconfig = first.kubeconfig();
    let mut args = vec!["token", "create", "--print-join-command", "--kubeconfig", &kubeconfig];
    args.extend(server.then_some("--server"));
    let (success, said) = keelson(&args);
    assert!(success, "{said}");
    let flags: Vec<String> = said.split_whitespace().map(str::to_owned).collect();
    assert_eq!(&flags[..2], if server { ["keelson", "server"] } else { ["keelson", "agent"] });
    flags[2..].to_vec()
}

/// Starts a server with ports for its API and its peers.
pub fn member(dir: &Path, name: &str, ports: (u16, u16), more: &[String]) -> Server {
    let peer = format!("127.0.0.1:{}", ports.1);
    let mut flags = vec!["--name", name, "--peer-address", &peer];
    flags.extend(more.iter().map(String::as_str));
    Server::start(&dir.join(name), ports.0, &flags)
}

/// Name, role and whether it answers, of each member.
pub fn members(server: &Server) -> Vec<(String, String, bool)> {
    let (success, said) = keelson(&["member", "list", "--output", "json", "--kubeconfig", &server.kubeconfig()]);
    assert!(success, "{said}");
    let rows: serde_json::Value = serde_json::from_str(&said).unwrap();
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let row = |row: &serde_json::Value| (text(row, "name"), text(row, "role"), row.get("error").is_none());
    rows.as_array().unwrap().iter().map(row).collect()
}

/// Waits until all of `names`, and no others, are voters that answer; returns who leads.
pub fn until_whole(server: &Server, names: &[&str]) -> String {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let mut found = members(server);
        found.sort();
        let whole = found.iter().map(|(name, ..)| name.as_str()).eq(names.iter().copied());
        let votes = found.iter().all(|(_, role, answers)| *answers && role != "learner");
        if let Some((leader, ..)) = found.iter().find(|(_, role, _)| role == "leader" && whole && votes) {
            return leader.clone();
        }
        assert!(std::time::Instant::now() < deadline, "{found:?}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
