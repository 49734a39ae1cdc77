//! The network between nodes as an overlay, and what balancers outside ask nodes. One server, two agents with containers.

mod common;

use std::net::Ipv4Addr;

use common::{Cluster, Kubectl, PATIENCE};
use keelson_testbed::{Role, Start, image, until};
use serde_json::Value;

const SERVICE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: hello}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: hello}
  ports: [{port: 80, targetPort: 8080}]
";

#[test]
fn pods_meet_through_an_overlay() {
    if common::needs().is_ok() && !common::has_vxlan() {
        eprintln!("SKIPPED: the kernel has no VXLAN");
        return;
    }
    let start = Start { agent_flags: vec!["--cni".into(), "vxlan".into()], ..Start::default() };
    let Some(cluster) = Cluster::start("overlay", 1, 2, &start) else { return };
    let kubectl = cluster.kubectl(1);
    kubectl.wait("get serviceaccount default", |_| true);
    kubectl.ok(&format!("create deployment hello --image={} --replicas=4", image::WEB[0]));
    kubectl.ok("rollout status deployment/hello --timeout=60s");
    let pods = pods(&kubectl);
    let on = |node: &str| pods.iter().find(|pod| pod["spec"]["nodeName"] == node).unwrap();
    let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap().to_owned();
    for (from, to) in [("agent-1", "agent-2"), ("agent-2", "agent-1")] {
        let (from, other) = (name(on(from)), on(to));
        let ask = format!("exec {from} -- wget -qO- http://{}:8080/", other["status"]["podIP"].as_str().unwrap());
        let wanted = format!("hello from {}, version 1\n", name(other));
        kubectl.wait(&ask, |page| page == wanted);
    }
    for host in cluster.testbed.hosts().unwrap().iter().filter(|host| host.role() == Role::Agent) {
        let routes = host.run("ip", &["route"]).unwrap();
        assert!(routes.lines().any(|route| route.contains("dev keelson.1 ") && route.contains("onlink")), "{routes}");
    }
    nodes_tell_of_their_endpoints(&cluster, &kubectl);
}

fn pods(kubectl: &Kubectl) -> Vec<Value> {
    let list: Value = serde_json::from_str(&kubectl.ok("get pods -l app=hello -o json")).unwrap();
    list["items"].as_array().unwrap().clone()
}

/// A balancer asks each node whether it has endpoints of its own.
fn nodes_tell_of_their_endpoints(cluster: &Cluster, kubectl: &Kubectl) {
    kubectl.feed("apply -f -", SERVICE);
    let port = kubectl.ok("get service hello -o 'jsonpath={.spec.healthCheckNodePort}'");
    let hosts = cluster.testbed.hosts().unwrap();
    let server = hosts.iter().find(|host| host.role() == Role::Server).unwrap();
    let told = |count: usize| {
        let ready =
            |pods: &[Value], node: &str| pods.iter().filter(|p| p["spec"]["nodeName"] == node).count().min(count);
        for host in hosts.iter().filter(|host| host.role() == Role::Agent) {
            until(&format!("{} tells of its endpoints", host.name()), PATIENCE, || {
                let url = format!("http://{}:{port}/healthz", host.address());
                let out = server.run("curl", &["-s", "-w", " %{http_code}", &url])?;
                let wanted = if count == 0 { 0 } else { ready(&pods(kubectl), &host.name()) };
                let code = if wanted == 0 { " 503" } else { " 200" };
                if out.contains(&format!("\"localEndpoints\":{wanted}")) && out.ends_with(code) {
                    return Ok(Some(()));
                }
                anyhow::bail!("{out}, not {wanted}")
            })
            .unwrap();
        }
    };
    told(4);
    kubectl.ok("scale deployment hello --replicas=0");
    told(0);
}

/// Nodes that come one after another: more than could be noticed if anybody waited for the next report.
const NEWCOMERS: u8 = 20;

/// A node that there is only in the API.
fn newcomer(index: u8, via: Ipv4Addr) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Node", "metadata": {{"name": "newcomer-{index}"}},
        "spec": {{"podCIDR": "10.244.{index}.0/24", "podCIDRs": ["10.244.{index}.0/24"]}},
        "status": {{"addresses": [{{"type": "InternalIP", "address": "{via}"}}]}}}}"#
    )
}

#[test]
fn ways_to_new_nodes_are_there_at_once() {
    let Some(cluster) = Cluster::start("ways", 1, 1, &Start::default()) else { return };
    let kubectl = cluster.kubectl(1);
    let hosts = cluster.testbed.hosts().unwrap();
    let agent = hosts.iter().find(|host| host.role() == Role::Agent).unwrap();
    let routes = || agent.run("ip", &["route", "show", "proto", "107"]);
    let [a, b, c, _] = agent.address().octets();
    let mut made = 0;
    // All of them within the patience for one: who looked only every ten seconds would need three times as long.
    let all = until("all are reached, one after another", PATIENCE, || {
        let index = 200 + made;
        if !routes()?.contains(&format!("10.244.{index}.0/24 via {a}.{b}.{c}.{index} ")) {
            // The first time it is made; then it is there.
            kubectl.feed("create -f -", &newcomer(index, Ipv4Addr::new(a, b, c, index)));
            return Ok(None);
        }
        made += 1;
        Ok((made == NEWCOMERS).then_some(()))
    });
    all.unwrap_or_else(|e| panic!("{made} of {NEWCOMERS}: {e:#}\n{}", agent.log_end("keelson")));
    // What leads nowhere goes, also while no agent looks.
    kubectl.ok("delete node newcomer-200");
    until("its route is gone", PATIENCE, || Ok((!routes()?.contains("10.244.200.0/24")).then_some(()))).unwrap();
    agent.kill("keelson").unwrap();
    kubectl.ok("delete node newcomer-201");
    cluster.testbed.bring_up(&Start::default(), &|_| {}).unwrap();
    until("so is that one", PATIENCE, || Ok((!routes()?.contains("10.244.201.0/24")).then_some(()))).unwrap();
    assert!(routes().unwrap().contains("10.244.202.0/24"));
}
