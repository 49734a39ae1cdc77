//! `port-forward`: ports of this host that lead to ports of a pod.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use keelson_client::spdy::Event;

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, text};
use crate::objects;
use crate::session::{Session, encode};
use crate::socket;
use crate::value::Read;

use super::logs::pods_of;

/// Flags of `port-forward`.
pub const FLAGS: &[&[Flag]] = &[&[
    text("address", "localhost", "Addresses to listen on (comma separated)."),
    text("pod-running-timeout", "1m0s", "The length of time to wait until at least one pod is running"),
]];

/// The protocol of the streams.
const PROTOCOL: &str = "portforward.k8s.io";
/// Bytes read at once.
const CHUNK_BYTES: usize = 32 << 10;

/// A port here, 0 for any, and the port of the pod.
type Ports = (u16, u16);

/// Runs `port-forward`.
pub async fn forward(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let [target, wanted @ ..] = parsed.args.as_slice() else {
        return Err(parsed.usage("TYPE/NAME and list of ports are required for port-forward"));
    };
    if wanted.is_empty() {
        return Err(parsed.usage("TYPE/NAME and list of ports are required for port-forward"));
    }
    if parsed.is_negative("pod-running-timeout") || parsed.duration("pod-running-timeout")?.is_zero() {
        return Err(parsed.usage("--pod-running-timeout must be higher than zero"));
    }
    let target = if target.contains('/') { target.clone() } else { format!("pods/{target}") };
    let (kind, name) = objects::one(session, &[target]).await?;
    let namespace = session.namespace()?;
    let service = match kind.plural.as_str() {
        "services" => Some(session.get(&kind.object(&namespace, &encode(&name))).await?),
        _ => None,
    };
    let Some(pod) = pods_of(session, &kind, &name).await?.into_iter().next() else {
        return Err(Failure::new("timed out waiting for the condition"));
    };
    let ports = wanted.iter().map(|text| ports(text, &pod, service.as_ref())).collect::<Outcome<Vec<_>>>()?;
    let phase = pod["status"]["phase"].text();
    if phase != "Running" {
        return Err(Failure::new(format!("unable to forward port because pod is not running. Current status={phase}")));
    }
    let path = format!("/api/v1/namespaces/{namespace}/pods/{}/portforward", encode(pod["metadata"]["name"].text()));
    let mut listeners = Vec::new();
    for (local, remote) in ports {
        listeners.extend(listen(&parsed.list("address"), local, remote).await?);
    }
    let all = listeners.into_iter().map(|(listener, port)| serve(session, listener, port, &path));
    futures::future::try_join_all(all).await.map(|_| ())
}

/// Listens on every address; it is enough if one of several works.
async fn listen(addresses: &[String], local: u16, remote: u16) -> Outcome<Vec<(TcpListener, u16)>> {
    let (mut listeners, mut wrong, mut local) = (Vec::new(), Vec::new(), local);
    for address in addresses {
        let hosts: &[&str] = match address.as_str() {
            "localhost" => &["127.0.0.1", "::1"],
            other => &[other],
        };
        for host in hosts {
            match TcpListener::bind((*host, local)).await {
                Ok(listener) => {
                    // What the first address got, the others have to get too.
                    local = listener.local_addr()?.port();
                    let shown = if host.contains(':') { format!("[{host}]") } else { (*host).to_owned() };
                    println!("Forwarding from {shown}:{local} -> {remote}");
                    listeners.push((listener, remote));
                }
                Err(error) => wrong.push(format!("unable to create listener: Error {error}")),
            }
        }
    }
    if listeners.is_empty() {
        eprintln!(
            "Unable to listen on port {local}: Listeners failed to create with the following errors: [{}]",
            wrong.join(" ")
        );
        return Err(Failure::new(format!("unable to listen on any of the requested ports: [{{{local} {remote}}}]")));
    }
    Ok(listeners)
}

async fn serve(session: &Session, listener: TcpListener, remote: u16, path: &str) -> Outcome {
    let local = listener.local_addr()?.port();
    let mut open = futures::stream::FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                println!("Handling connection for {local}");
                open.push(async move {
                    if let Err(error) = carry(session, stream, remote, path).await {
                        eprintln!("an error occurred forwarding {local} -> {remote}: {error}");
                    }
                });
            }
            Some(()) = futures::StreamExt::next(&mut open), if !open.is_empty() => {}
        }
    }
}

/// Carries one connection over streams of its own: one for its bytes and one for what goes wrong.
async fn carry(session: &Session, local: TcpStream, remote: u16, path: &str) -> Outcome {
    let (mut to, mut from) = socket::spdy(session, path, PROTOCOL).await?;
    let port = remote.to_string();
    let headers = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", "0")];
    let errors = to.stream(&headers("error")).await?;
    to.data(errors, &[], true).await?;
    let data = to.stream(&headers("data")).await?;
    let (mut reader, mut writer) = local.into_split();
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut sending, mut said) = (true, Vec::new());
    loop {
        tokio::select! {
            read = reader.read(&mut buffer), if sending => {
                let length = read.unwrap_or(0);
                sending = length > 0;
                to.data(data, &buffer[..length], !sending).await?;
            }
            event = from.next() => match event? {
                Some(Event::Data(id, bytes, last)) if id == data => {
                    writer.write_all(&bytes).await?;
                    if last {
                        break;
                    }
                }
                Some(Event::Data(_, bytes, _)) => said.extend_from_slice(&bytes),
                Some(Event::Ping(id)) => to.pong(id).await?,
                Some(Event::Reset(id)) if id != data => {}
                Some(Event::Reset(_) | Event::GoAway) | None => break,
            }
        }
        if !said.is_empty() {
            return Err(Failure::Plain(String::from_utf8_lossy(&said).trim().to_owned()));
        }
    }
    Ok(writer.shutdown().await?)
}

/// `8080:80`, `80`, `:80` or `8080:http`; of a service the ports are those of its pods.
fn ports(text: &str, pod: &Value, service: Option<&Value>) -> Outcome<Ports> {
    let (local, remote) = text.split_once(':').map_or((None, text), |(local, remote)| (Some(local), remote));
    let number = |text: &str| {
        text.parse::<u16>().map_err(|_| {
            Failure::new(format!("error parsing port {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"))
        })
    };
    let remote_number = match service {
        Some(service) => of_service(service, pod, remote)?,
        None => match remote.parse::<u16>() {
            Ok(0) => return Err(Failure::new("remote port must be > 0")),
            Ok(number) => number,
            Err(_) => named(pod, remote).ok_or_else(|| {
                Failure::new(format!("Pod '{}' does not have a named port '{remote}'", pod["metadata"]["name"].text()))
            })?,
        },
    };
    let local = match local {
        Some("") => 0,
        Some(local) => number(local)?,
        // A named port keeps its own number here.
        None => remote.parse().unwrap_or(remote_number),
    };
    Ok((local, remote_number))
}

fn named(pod: &Value, name: &str) -> Option<u16> {
    let ports = pod["spec"]["containers"].items().iter().flat_map(|c| c["ports"].items());
    ports.filter(|p| p["name"] == name).find_map(|p| u16::try_from(p["containerPort"].number()).ok())
}

fn of_service(service: &Value, pod: &Value, wanted: &str) -> Outcome<u16> {
    let fits = |p: &&Value| p["name"] == wanted || p["port"].number().to_string() == wanted;
    let name = service["metadata"]["name"].text();
    let port = service["spec"]["ports"].items().iter().find(fits).ok_or_else(|| {
        Failure::new(match wanted.parse::<u16>() {
            Ok(_) => format!("Service {name} does not have a service port {wanted}"),
            Err(_) => format!("Service '{name}' does not have a named port '{wanted}'"),
        })
    })?;
    if service["spec"]["clusterIP"] == "None" {
        return Ok(u16::try_from(port["port"].number()).unwrap_or(0));
    }
    let target = &port["targetPort"];
    let found = match target.as_i64() {
        Some(number) => u16::try_from(number).ok(),
        None => named(pod, target.text()),
    };
    found.ok_or_else(|| Failure::new(format!("Pod does not have the port {} of service {name}", target.shown())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_here_and_there() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]}});
        let service = json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "10.0.0.1",
            "ports": [{"name": "web", "port": 80, "targetPort": "http"}, {"port": 443, "targetPort": 8443}]}});
        for (text, of, expected) in [
            ("80", None, (80, 80)),
            ("8000:80", None, (8000, 80)),
            (":80", None, (0, 80)),
            ("http", None, (8080, 8080)),
            ("9:http", None, (9, 8080)),
            ("80", Some(&service), (80, 8080)),
            ("web", Some(&service), (8080, 8080)),
            ("1:443", Some(&service), (1, 8443)),
        ] {
            assert_eq!(ports(text, &pod, of).unwrap(), expected, "{text}");
        }
        for (text, of) in [("x", None), ("0", None), ("y:80", None), ("81", Some(&service))] {
            assert!(ports(text, &pod, of).is_err(), "{text}");
        }
    }
}
