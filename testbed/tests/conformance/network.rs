//! Services, names and ports of pods on two nodes, with addresses of both families.

use std::collections::BTreeSet;

use keelson_testbed::{Role, until};

use super::{apply, cluster, is_ready, object, pod_becomes};
use crate::common::{self, Cluster, Kubectl, PATIENCE};

const DUAL: &[&str] =
    &["--cluster-cidr", "10.244.0.0/16,fd00:244::/48", "--service-cidr", "10.96.0.0/16,fd00:96::/108"];

/// Requests after which every one of two pods has answered, but for a chance of one in a thousand million.
const MANY: u32 = 30;

/// A web pod with two ports.
const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: web}}
spec:
  nodeName: NODE
  hostname: HOST
  subdomain: SUBDOMAIN
  containers:
  - {name: c, image: "keelson.local/web:1", readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}, ports: [{name: main, containerPort: 8080}]}
  - name: more
    image: keelson.local/web:2
    env: [{name: PORT, value: "8081"}]
    ports: [{name: second, containerPort: 8081}]
    readinessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1}
"#;

/// Two web pods, one on each node, and the rest.
fn apply_all(kubectl: &Kubectl) {
    for (name, node, host, subdomain) in [("web-1", "agent-1", "first", "heads"), ("web-2", "agent-2", "web-2", "\"\"")]
    {
        let pod = WEB.replace("NAME", name).replace("NODE", node);
        apply(kubectl, &pod.replace("HOST", host).replace("SUBDOMAIN", subdomain));
    }
    apply(kubectl, OBJECTS);
}

/// A pod that asks, and Services of every sort.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: asks}
spec: {nodeName: agent-1, containers: [{name: c, image: "keelson.local/web:1"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: one, port: 80, targetPort: main}, {name: two, port: 81, targetPort: second}]}
---
apiVersion: v1
kind: Service
metadata: {name: both}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{name: tcp, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: mixed}
spec: {type: NodePort, ports: [{name: tcp, port: 80, targetPort: 8080}, {name: udp, protocol: UDP, port: 80, targetPort: 53}]}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {type: NodePort, sessionAffinity: ClientIP, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: heads}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: foo.example.com}
"#;

struct Net<'a> {
    cluster: &'a Cluster,
    kubectl: Kubectl,
}

/// The pods that have answered.
fn who(said: &str) -> BTreeSet<String> {
    ["first", "web-1", "web-2"].iter().filter(|pod| said.contains(**pod)).map(|pod| (*pod).to_owned()).collect()
}

impl Net<'_> {
    fn field(&self, what: &str, path: &str) -> String {
        self.kubectl.ok(&format!("get {what} -o 'jsonpath={{{path}}}'"))
    }

    /// Asks from the pod until the answer is as wanted.
    fn by_pod(&self, command: &str, wanted: impl Fn(&str) -> bool) -> String {
        self.kubectl.wait(&format!("exec asks -- {command}"), wanted)
    }

    fn get(&self, url: &str) -> String {
        self.kubectl.run(&format!("exec asks -- wget -qO- http://{url}/")).out
    }

    /// What many requests from the pod get.
    fn many(&self, url: &str) -> String {
        let turns = (0..MANY).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        self.kubectl.run(&format!("exec asks -- sh -c 'for i in {turns}; do wget -qO- http://{url}/; done'")).out
    }

    /// What many requests from outside get.
    fn curl_many(&self, address: &str) -> String {
        self.curl(&format!("http://{address}/?[1-{MANY}]"))
    }

    /// Asks from a node that is not one of the agents.
    fn curl(&self, url: &str) -> String {
        let hosts = self.cluster.testbed.hosts().unwrap();
        let server = hosts.iter().find(|host| host.role() == Role::Server).unwrap();
        server.run("curl", &["-s", "-m", "5", url]).unwrap_or_default()
    }
}

#[test]
fn services_names_and_ports() {
    if common::needs().is_ok() && !common::has_vxlan() {
        eprintln!("SKIPPED: the kernel has no VXLAN, in which pods of nodes without addresses of IPv6 have their own");
        return;
    }
    let Some(cluster) = cluster("confnet", DUAL, &["--cni", "vxlan"]) else { return };
    let kubectl = cluster.kubectl(1);
    apply_all(&kubectl);
    for name in ["web-1", "web-2", "asks"] {
        pod_becomes(&kubectl, name, "is ready", is_ready);
    }
    let net = Net { cluster: &cluster, kubectl };
    pods_are_reached(&net);
    services_are_served(&net);
    clients_keep_their_pod(&net);
    types_change(&net);
    names_are_answered(&net);
    host_ports_do_not_conflict(&net);
    endpoints_without_selector(&net);
    a_service_of_nobody(&net);
    protocols_share_a_port(&net);
    a_pod_reaches_itself(&net);
    the_api_passes_through(&net);
    policies_deny(&net);
}

/// A Service whose selector no pod matches has endpoints that are empty, and they go with it.
fn a_service_of_nobody(net: &Net<'_>) {
    apply(
        &net.kubectl,
        "{apiVersion: v1, kind: Service, metadata: {name: lonely}, spec: {selector: {app: lonely}, ports: [{port: 80}]}}",
    );
    let slices = "get endpointslices -l kubernetes.io/service-name=lonely -o";
    net.kubectl.wait(&format!("{slices} name"), |out| out.lines().count() == 1);
    let endpoints = net.kubectl.ok(&format!("{slices} 'jsonpath={{.items[*].endpoints[*].addresses}}'"));
    assert_eq!(endpoints, "");
    net.kubectl.wait("get endpoints lonely -o name", |out| out.contains("endpoints/lonely"));
    net.kubectl.ok("delete service lonely");
    net.kubectl.wait(&format!("{slices} name"), str::is_empty);
    net.kubectl.wait("get endpoints --ignore-not-found lonely -o name", str::is_empty);
}

fn pods_are_reached(net: &Net<'_>) {
    for (name, said) in [("web-1", "first"), ("web-2", "web-2")] {
        let ips = net.field(&format!("pod {name}"), ".status.podIPs[*].ip");
        let (v4, v6) = ips.split_once(' ').unwrap();
        for address in [v4.to_owned(), format!("[{v6}]")] {
            let page = format!("hello from {said}, version 1\n");
            net.by_pod(&format!("wget -qO- http://{address}:8080/"), |out| out == page);
            // From a node, another one's pods too.
            for host in net.cluster.testbed.hosts().unwrap().iter().filter(|h| h.role() == Role::Agent) {
                until(&format!("{} asks {address}", host.name()), PATIENCE, || {
                    Ok((host.run("curl", &["-s", "-m", "2", &format!("http://{address}:8080/")])? == page)
                        .then_some(()))
                })
                .unwrap();
            }
        }
    }
}

fn services_are_served(net: &Net<'_>) {
    let both: BTreeSet<String> = ["first".to_owned(), "web-2".to_owned()].into();
    let node = net.field("node agent-2", ".status.addresses[?(@.type==\"InternalIP\")].address");
    let node = node.split(' ').next().unwrap().to_owned();
    assert_eq!(who(&net.many("web")), both);
    assert!(net.get("web:81").contains("version 2"), "the second port leads to the second container");
    for ip in net.field("service both", ".spec.clusterIPs[*]").split(' ') {
        let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        assert_eq!(who(&net.many(&ip)), both, "{ip}");
    }
    let port = net.field("service both", ".spec.ports[0].nodePort");
    assert_eq!(who(&net.curl_many(&format!("{node}:{port}"))), both);
    // What answers no more is asked no more.
    net.kubectl.ok("label pod web-1 app-");
    let other: BTreeSet<String> = ["web-2".to_owned()].into();
    until("one endpoint is left", PATIENCE, || Ok((who(&net.many("web")) == other).then_some(()))).unwrap();
    net.kubectl.ok("label pod web-1 app=web");
    until("both are back", PATIENCE, || Ok((who(&net.many("web")) == both).then_some(()))).unwrap();
}

fn clients_keep_their_pod(net: &Net<'_>) {
    let addresses = net.field("node agent-2", ".status.addresses[*].address");
    let node = addresses.split(' ').next().unwrap().to_owned();
    let port = net.field("service sticky", ".spec.ports[0].nodePort");
    let by_port = format!("{node}:{port}");
    let ways = ["its address", "a node's port"];
    let ask = |way: &str| if way == ways[0] { net.many("sticky") } else { net.curl_many(&by_port) };
    for affinity in ["ClientIP", "None", "ClientIP"] {
        net.kubectl.ok(&format!("patch service sticky -p '{{\"spec\":{{\"sessionAffinity\":\"{affinity}\"}}}}'"));
        let wanted = if affinity == "None" { 2 } else { 1 };
        for way in ways {
            until(&format!("{affinity} by {way}"), PATIENCE, || Ok((who(&ask(way)).len() == wanted).then_some(())))
                .unwrap();
        }
    }
}

/// ClusterIP, ExternalName, NodePort and back.
fn types_change(net: &Net<'_>) {
    let patch = |spec: &str| net.kubectl.ok(&format!("patch service outside --type merge -p '{{\"spec\":{spec}}}'"));
    for (spec, node_port) in [
        (
            r#"{"type":"ClusterIP","externalName":null,"selector":{"app":"web"},"ports":[{"port":80,"targetPort":8080}]}"#,
            false,
        ),
        (
            r#"{"type":"ExternalName","externalName":"web.default.svc.cluster.local","clusterIP":null,"clusterIPs":null,"ports":null,"selector":null}"#,
            false,
        ),
        (
            r#"{"type":"NodePort","externalName":null,"selector":{"app":"web"},"ports":[{"port":80,"targetPort":8080}]}"#,
            true,
        ),
        (
            r#"{"type":"ExternalName","externalName":"web.default.svc.cluster.local","clusterIP":null,"clusterIPs":null,"ports":null,"selector":null}"#,
            false,
        ),
    ] {
        patch(spec);
        net.by_pod("wget -qO- http://outside/", |out| out.contains("hello from"));
        if node_port {
            let port = net.field("service outside", ".spec.ports[0].nodePort");
            let address = net.field("node agent-1", ".status.addresses[0].address");
            until("its node port", PATIENCE, || {
                Ok(net.curl(&format!("http://{address}:{port}/")).contains("hello from").then_some(()))
            })
            .unwrap();
        }
    }
}

fn names_are_answered(net: &Net<'_>) {
    let ip = |what: &str, path: &str| net.field(what, path);
    let web = ip("service web", ".spec.clusterIP");
    let (one, two) = (ip("pod web-1", ".status.podIP"), ip("pod web-2", ".status.podIP"));
    let dashed = one.replace('.', "-");
    let reversed = |ip: &str| ip.split('.').rev().collect::<Vec<_>>().join(".");
    for (name, kind, wanted) in [
        ("kubernetes.default.svc.cluster.local".to_owned(), "a", vec!["10.96.0.1"]),
        ("web.default.svc.cluster.local".to_owned(), "a", vec![web.as_str()]),
        ("both.default.svc.cluster.local".to_owned(), "aaaa", vec!["fd00:96::"]),
        ("heads.default.svc.cluster.local".to_owned(), "a", vec![&one, &two]),
        ("first.heads.default.svc.cluster.local".to_owned(), "a", vec![&one]),
        (format!("{dashed}.default.pod.cluster.local"), "a", vec![&one]),
        ("_http._tcp.heads.default.svc.cluster.local".to_owned(), "srv", vec!["8080", "first.heads.default"]),
        ("_one._tcp.web.default.svc.cluster.local".to_owned(), "srv", vec!["80 web.default"]),
        (format!("{}.in-addr.arpa", reversed(&web)), "ptr", vec!["web.default.svc.cluster.local"]),
    ] {
        net.by_pod(&format!("nslookup -type={kind} {name}"), |out| {
            wanted.iter().all(|text| out.replace("\t", " ").contains(text))
        });
    }
    net.kubectl.ok("patch service outside --type merge -p '{\"spec\":{\"externalName\":\"foo.example.com\"}}'");
    net.by_pod("nslookup -type=cname outside.default.svc.cluster.local", |out| out.contains("foo.example.com"));
    // Names in parts, by the search path.
    for name in ["web", "web.default", "web.default.svc"] {
        net.by_pod(&format!("wget -qO- http://{name}/"), |out| out.contains("hello from"));
    }
    let fqdn = net.kubectl.ok("exec web-1 -c c -- busybox hostname -f");
    assert_eq!(fqdn.trim(), "first.heads.default.svc.cluster.local");
}

/// One port three times on one node: by another address or another protocol it is another one.
fn host_ports_do_not_conflict(net: &Net<'_>) {
    let address = net.field("node agent-2", ".status.addresses[0].address");
    let pod = |name: &str, ip: &str, protocol: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeSelector: {{kubernetes.io/hostname: agent-2}}, \
             containers: [{{name: c, image: 'keelson.local/web:1', ports: [{{containerPort: 8080, hostPort: 54323, \
             hostIP: {ip}, protocol: {protocol}}}]}}]}}}}"
        )
    };
    for (name, ip, protocol) in
        [("port-1", "127.0.0.1", "TCP"), ("port-2", address.as_str(), "TCP"), ("port-3", address.as_str(), "UDP")]
    {
        apply(&net.kubectl, &pod(name, ip, protocol));
        pod_becomes(&net.kubectl, name, "is ready", is_ready);
    }
    until("the second pod answers at the node's port", PATIENCE, || {
        Ok(net.curl(&format!("http://{address}:54323/")).contains("hello from port-2").then_some(()))
    })
    .unwrap();
    let hosts = net.cluster.testbed.hosts().unwrap();
    let host = hosts.iter().find(|host| host.name() == "agent-2").unwrap();
    let page = host.run("curl", &["-s", "-m", "5", "http://127.0.0.1:54323/"]).unwrap();
    assert!(page.contains("hello from port-1"), "{page}");
}

/// Endpoints that somebody else keeps: several slices, one Service.
fn endpoints_without_selector(net: &Net<'_>) {
    let (one, two) = (net.field("pod web-1", ".status.podIP"), net.field("pod web-2", ".status.podIP"));
    let slice = |name: &str, ip: &str, ports: &str| {
        format!(
            "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: {name}, labels: \
             {{kubernetes.io/service-name: own}}}}, ports: [{ports}], endpoints: [{{addresses: [{ip}]}}]}}\n"
        )
    };
    let (first, second) = ("{name: one, port: 8080}", "{name: two, port: 8081}");
    let service = "{apiVersion: v1, kind: Service, metadata: {name: own}, spec: {ports: [{name: one, port: 80}, {name: two, port: 81}]}}\n";
    apply(
        &net.kubectl,
        &(service.to_owned()
            + &slice("own-1", &one, first)
            + &slice("own-2", &two, first)
            + &slice("own-3", &two, second)),
    );
    let both: BTreeSet<String> = ["first".to_owned(), "web-2".to_owned()].into();
    until("both slices are used", PATIENCE, || Ok((who(&net.many("own")) == both).then_some(()))).unwrap();
    net.by_pod("wget -qO- http://own:81/", |out| out.contains("version 2"));
    // The same through Endpoints, which are mirrored.
    apply(
        &net.kubectl,
        &format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: mirrored}}, spec: {{ports: [{{port: 80}}]}}}}\n---\n\
             {{apiVersion: v1, kind: Endpoints, metadata: {{name: mirrored}}, subsets: [{{addresses: [{{ip: {one}}}], ports: [{{port: 8080}}]}}]}}"
        ),
    );
    net.by_pod("wget -qO- http://mirrored/", |out| out.contains("hello from first"));
    let slices = object(&net.kubectl, "endpointslices -l kubernetes.io/service-name=mirrored");
    assert_eq!(slices["items"].as_array().map(Vec::len), Some(1), "{slices:#}");
}

/// One port of a Service leads to web servers by TCP and to the cluster's name servers by UDP.
fn protocols_share_a_port(net: &Net<'_>) {
    let slices = net.kubectl.ok(
        "get endpointslices -n kube-system -l kubernetes.io/service-name=kube-dns -o 'jsonpath={.items[*].endpoints[*].addresses[*]}'",
    );
    let name_servers =
        slices.split_whitespace().filter(|ip| !ip.contains(':')).collect::<Vec<_>>().join("]}, {addresses: [");
    let web = net.field("pod web-2", ".status.podIP");
    for (port, protocol, number, addresses) in
        [("tcp", "TCP", 8080, web.as_str()), ("udp", "UDP", 53, name_servers.as_str())]
    {
        apply(
            &net.kubectl,
            &format!(
                "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: mixed-{port}, labels: \
                 {{kubernetes.io/service-name: mixed}}}}, ports: [{{name: {port}, protocol: {protocol}, port: {number}}}], \
                 endpoints: [{{addresses: [{addresses}]}}]}}"
            ),
        );
    }
    let address = net.field("service mixed", ".spec.clusterIP");
    net.by_pod("wget -qO- http://mixed/", |out| out.contains("hello from web-2"));
    let name = "kubernetes.default.svc.cluster.local";
    net.by_pod(&format!("nslookup -port=80 {name} {address}"), |out| out.contains("10.96.0.1"));
    // And at each node's port, from outside.
    let port: u16 = net.field("service mixed", ".spec.ports[1].nodePort").parse().unwrap();
    for node in ["agent-1", "agent-2"] {
        let node = net.field(&format!("node {node}"), ".status.addresses[0].address");
        until(&format!("a name server answers at {node}:{port}"), PATIENCE, || asks_a_name(&node, port, name)).unwrap();
    }
}

/// Asks for a name's address by UDP, as the machine that the hosts are on.
fn asks_a_name(address: &str, port: u16, name: &str) -> anyhow::Result<Option<()>> {
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
    socket.send_to(&question, (address, port))?;
    let mut answer = [0; 512];
    let (length, _) = socket.recv_from(&mut answer)?;
    Ok(answer[..length].ends_with(&[10, 96, 0, 1]).then_some(()))
}

/// The proxy verbs of pods and Services, and logs by the API.
fn the_api_passes_through(net: &Net<'_>) {
    for path in [
        "pods/web-2:8080/proxy/",
        "pods/http:web-2:8080/proxy/index.html",
        "services/web:one/proxy/",
        "services/http:web:one/proxy/index.html",
    ] {
        let page = net.kubectl.wait(&format!("get --raw /api/v1/namespaces/default/{path}"), |_| true);
        assert!(page.contains("hello from"), "{path}: {page}");
    }
    let log = net.kubectl.ok("get --raw /api/v1/namespaces/default/pods/web-2/log?container=c");
    assert!(log.contains("serving version 1"), "{log}");
    logs_come_over_websockets(net);
}

fn logs_come_over_websockets(net: &Net<'_>) {
    use std::io::{Read, Write};
    let proxy = net.kubectl.follow("proxy --port=0", "proxy");
    // The port is the end of its first line.
    let port = |text: &str| text.strip_suffix('\n')?.rsplit(':').next()?.parse::<u16>().ok();
    let port = port(&proxy.wait("kubectl's proxy serves", |text| port(text).is_some())).unwrap();
    for (protocol, words) in [("binary.k8s.io", "serving version 1"), ("base64.binary.k8s.io", "c2VydmluZyB2ZXJzaW9u")]
    {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "GET /api/v1/namespaces/default/pods/web-2/log?container=c HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        )
        .unwrap();
        let (mut bytes, mut some) = (Vec::new(), [0; 4096]);
        let text = loop {
            let length = stream.read(&mut some).unwrap();
            bytes.extend_from_slice(&some[..length]);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if length == 0 || text.contains(words) {
                break text;
            }
        };
        assert!(text.starts_with("HTTP/1.1 101 ") && text.contains(words), "{protocol}: {text}");
        // The answer to that key is the example of RFC 6455.
        assert!(text.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{text}");
    }
}

const NOBODY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
";

/// Some ports, from one pod, and from the addresses of one range with an exception.
const SOME: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
  - {from: [{podSelector: {matchLabels: {may: ask}}}], ports: [{port: main}]}
";

/// Pods of one app may go nowhere but to one range of IPv6.
const OUT: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out}
spec:
  podSelector: {matchLabels: {may: ask}}
  policyTypes: [Egress]
  egress:
  - {to: [{ipBlock: {cidr: 'fd00:244::/48'}}], ports: [{protocol: TCP, port: 8080, endPort: 8090}]}
";

/// The same Services by the other way of serving them.
#[test]
fn services_by_iptables() {
    if common::needs().is_ok() && !common::has_vxlan() {
        eprintln!("SKIPPED: the kernel has no VXLAN");
        return;
    }
    let Some(cluster) = cluster("confipt", DUAL, &["--proxy-mode", "iptables", "--cni", "vxlan"]) else { return };
    let kubectl = cluster.kubectl(1);
    apply_all(&kubectl);
    for name in ["web-1", "web-2", "asks"] {
        pod_becomes(&kubectl, name, "is ready", is_ready);
    }
    let net = Net { cluster: &cluster, kubectl };
    services_are_served(&net);
    clients_keep_their_pod(&net);
    protocols_share_a_port(&net);
    a_pod_reaches_itself(&net);
}

/// Through a Service whose only endpoint the pod is.
fn a_pod_reaches_itself(net: &Net<'_>) {
    net.kubectl.ok("label pod asks app=asks");
    apply(
        &net.kubectl,
        "{apiVersion: v1, kind: Service, metadata: {name: itself}, spec: {selector: {app: asks}, ports: [{port: 80, targetPort: 8080}]}}",
    );
    net.by_pod("wget -qO- http://itself/", |page| page.contains("hello from asks"));
}

/// Policies hold for addresses of both families.
fn policies_deny(net: &Net<'_>) {
    let ips = net.field("pod web-2", ".status.podIPs[*].ip");
    let (v4, v6) = ips.split_once(' ').unwrap();
    let reaches = |address: &str, port: u16| {
        net.kubectl.run(&format!("exec asks -- sh -c 'busybox timeout 2 wget -qO- http://{address}:{port}/'")).code
            == Some(0)
    };
    let six = format!("[{v6}]");
    // Rows: addresses and ports, and whether they are reached.
    let becomes = |what: &str, rows: &[(&str, u16, bool)]| {
        until(what, PATIENCE, || {
            let wrong = rows.iter().find(|(address, port, wanted)| reaches(address, *port) != *wanted);
            match wrong {
                Some(row) => anyhow::bail!("{row:?}"),
                None => Ok(Some(())),
            }
        })
        .unwrap();
    };
    becomes("all is open", &[(v4, 8080, true), (&six, 8080, true), (&six, 8081, true)]);
    apply(&net.kubectl, NOBODY);
    becomes("all is denied", &[(v4, 8080, false), (&six, 8080, false)]);
    apply(&net.kubectl, SOME);
    becomes("others are denied", &[(v4, 8080, false), (&six, 8080, false)]);
    net.kubectl.ok("label pod asks may=ask");
    becomes("a named port is open", &[(v4, 8080, true), (&six, 8080, true), (v4, 8081, false), (&six, 8081, false)]);
    net.kubectl.ok("delete networkpolicy web");
    apply(&net.kubectl, OUT);
    becomes("only IPv6 is open outwards", &[(v4, 8080, false), (&six, 8080, true), (&six, 8081, true)]);
    net.kubectl.ok("delete networkpolicy out");
    becomes("all is open again", &[(v4, 8080, true), (&six, 8080, true)]);
}
