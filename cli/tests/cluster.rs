//! Three servers as their user starts them: who may join, what a dead leader costs, how a lost disk is replaced.

mod support;

use std::path::Path;

use support::members::{join_flags, member, until_whole};
use support::{free_port, keelson, kubectl_is_there};

#[test]
fn three_servers_survive_a_dead_leader_and_a_lost_disk() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ports = [(); 3].map(|()| (free_port(), free_port()));
    let first = member(dir.path(), "a", ports[0], &["--cluster-init".into()]);
    let flags = join_flags(&first, true);
    let mut servers = vec![first];
    for (name, ports) in [("b", ports[1]), ("c", ports[2])] {
        servers.push(member(dir.path(), name, ports, &flags));
    }
    let leader = until_whole(&servers[2], &["a", "b", "c"]);
    for (at, server) in servers.iter().enumerate() {
        server.run(&["create", "configmap", &format!("by-{at}")]);
    }
    servers[2].until(
        "all servers are behind the kubernetes Service",
        &["get", "endpoints", "kubernetes", "-o", "jsonpath={.subsets[*].ports[*].port}"],
        |out| out.split(' ').count() == 3,
    );

    // kill -9 of the leader: the others go on, and what was acknowledged is there.
    let dead = ["a", "b", "c"].iter().position(|name| *name == leader).unwrap();
    drop(servers.remove(dead));
    servers[0].until("writes go on", &["create", "configmap", "after"], |out| out.contains("created"));
    for name in ["by-0", "by-1", "by-2", "after"] {
        servers[1].run(&["get", "configmap", name]);
    }

    // It comes back, without being told to join, and catches up.
    servers.insert(dead, member(dir.path(), &leader, ports[dead], &[]));
    servers[dead].run(&["get", "configmap", "after"]);
    until_whole(&servers[dead], &["a", "b", "c"]);

    // A member that lost its disk joins under its name and takes the place of its former self.
    let other = (dead + 1) % 3;
    drop(servers.remove(other));
    let name = ["a", "b", "c"][other];
    std::fs::remove_dir_all(dir.path().join(name)).unwrap();
    let answers = (other + 1) % 3;
    let (url, token) = (format!("https://127.0.0.1:{}", ports[answers].0), flags[3].clone());
    let flags = [vec!["--join".to_owned(), url, "--token".to_owned(), token], flags[4..].to_vec()].concat();
    servers.insert(other, member(dir.path(), name, ports[other], &flags));
    until_whole(&servers[other], &["a", "b", "c"]);
    servers[other].run(&["get", "configmap", "after"]);
}

#[test]
fn who_may_not_join_is_told_why() {
    if !kubectl_is_there() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let first = member(dir.path(), "a", (free_port(), free_port()), &["--cluster-init".into()]);
    let server = join_flags(&first, true);
    let node = join_flags(&first, false);
    let (url, token, hash) = (server[1].as_str(), server[3].as_str(), server[5].as_str());
    let other_hash = format!("sha256:{}", "0".repeat(64));
    let nobody = format!("https://127.0.0.1:{}", free_port());
    let data_dir = dir.path().join("b").to_string_lossy().into_owned();
    for (url, token, hash, expected) in [
        (url, "aaaaaa.bbbbbbbbbbbbbbbb", hash, "does not know the token"),
        (url, node[3].as_str(), hash, "not one for servers"),
        (url, token, other_hash.as_str(), "check --join and --ca-hash"),
        (url, token, "md5:00", "sha256"),
        (nobody.as_str(), token, hash, "cannot reach"),
    ] {
        let port = free_port().to_string();
        let mut args = vec!["server", "--bind-address", "127.0.0.1", "--secure-port", &port, "--data-dir", &data_dir];
        args.extend(["--join", url, "--token", token, "--ca-hash", hash]);
        let (success, said) = keelson(&args);
        assert!(!success && said.contains(expected), "{expected}: {said}");
        assert!(!said.contains(token), "a token is in what it said: {said}");
    }
    assert!(!Path::new(&data_dir).join("member.json").exists(), "nothing is left of a join that failed");
}
