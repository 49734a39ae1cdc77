//! An agent's certificates are replaced in time while it works; its node is deleted, and it comes back. A client writes
//! meanwhile; `--nocapture` prints how long it could not.

mod common;

use common::load::Load;
use common::{Cluster, PATIENCE};
use keelson_testbed::{Start, until};

/// How long certificates are good for; they are replaced when 60% of that is over.
const LIFETIME: &str = "--certificate-lifetime=30s";
/// How many certificates the agent has had when it is shown that it replaces them.
const RENEWALS: usize = 2;
const NODE: &str = "/api/v1/nodes/agent-1";

#[test]
fn an_agent_renews_its_certificates_and_comes_back() {
    let start = Start { server_flags: vec![LIFETIME.into()], ..Start::default() };
    let Some(cluster) = Cluster::start("agl", 3, 1, &start) else { return };
    let hosts = cluster.testbed.hosts().unwrap();
    let (server, agent) = (&hosts[0], &hosts[3]);
    let (kubeconfig, files) = (server.kubeconfig(), cluster.testbed.dir().join("client"));
    // The admin's certificate is replaced as well: it is read anew for each write.
    let load = Load::start(move || keelson_testbed::Api::new(&kubeconfig, &files));
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let asked = || -> anyhow::Result<usize> {
        let list = server.api()?.get(requests)?;
        Ok(list["items"].as_array().map_or(0, Vec::len))
    };
    println!("| step | longest time without an acknowledged write |\n|---|---|");
    load.during("certificates of servers and of the agent are replaced", || {
        let before = asked().unwrap();
        until("the agent asks for certificates", PATIENCE, || Ok((asked()? >= before + RENEWALS).then_some(())))
            .unwrap();
        let node = server.api().unwrap().get(NODE).unwrap();
        let ready =
            node["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready").cloned();
        assert_eq!(ready.unwrap()["status"], "True", "{}", agent.log_end("keelson"));
    });
    load.during("the agent stops and its node is deleted", || {
        agent.kill("keelson").unwrap();
        server.api().unwrap().call("DELETE", NODE, None).unwrap();
    });
    load.during("it starts again and is a node as before", || {
        let join = server.join_command(keelson_testbed::Role::Agent).unwrap();
        agent.start_agent(&join, &[]).unwrap();
        agent.wait_node_ready(&server.api().unwrap()).unwrap();
    });
    assert!(load.end() > 0);
}
