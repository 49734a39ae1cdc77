//! Port-forward over a WebSocket as libraries other than Go's do it: each port has a channel for its bytes and one for what
//! went wrong, numbered in the order in which the ports are asked for. On both the first message is the port's number, two
//! bytes, the lower one first. When a connection to a port ends the socket does.

use std::collections::{HashMap, HashSet};

use futures::{SinkExt, StreamExt};
use hyper::upgrade::OnUpgrade;
use keelson_client::spdy::{self, Event, Receiver, Sender};
use tokio_tungstenite::tungstenite::protocol::Message;

use super::Refusal;
use super::websocket::{self, Coding};

/// Protocols of port-forward, the preferred first.
pub const PROTOCOLS: [&str; 3] = [websocket::TUNNEL_PROTOCOL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
/// The runtime's protocol.
const SPDY_FORWARD: &str = "portforward.k8s.io";
/// Most ports of a socket: channels are numbered with a byte.
const MAX_PORTS: usize = 127;

/// The ports that a client names.
pub fn ports(named: &[String]) -> Result<Vec<u16>, Refusal> {
    if named.is_empty() {
        return Err(Refusal(400, "query parameter \"port\" is required".into()));
    }
    if named.len() > MAX_PORTS {
        return Err(Refusal(400, format!("at most {MAX_PORTS} ports go over one connection")));
    }
    let port = |text: &String| match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Refusal(400, format!("unable to parse {text:?} as a port"))),
    };
    named.iter().map(port).collect()
}

/// The runtime's connections to a pod's ports.
pub struct Forward {
    ports: Vec<u16>,
    to: Sender,
    from: Receiver,
    /// Channels by stream.
    channels: HashMap<u32, u8>,
}

impl Forward {
    /// Opens them.
    pub async fn open(url: &str, ports: Vec<u16>) -> Result<Self, Refusal> {
        let (mut to, from) = spdy::dial(url, SPDY_FORWARD).await.map_err(|(code, text)| Refusal(code, text))?;
        let mut channels = HashMap::new();
        for (index, port) in ports.iter().enumerate() {
            let (request, port) = (index.to_string(), port.to_string());
            for (kind, offset) in [("error", 1), ("data", 0)] {
                let headers = [("streamtype", kind), ("port", port.as_str()), ("requestid", request.as_str())];
                let id = to.stream(&headers).await.map_err(Refusal::internal)?;
                // No more than `MAX_PORTS`.
                channels.insert(id, (2 * index + offset) as u8);
            }
        }
        Ok(Self { ports, to, from, channels })
    }

    /// Carries the bytes until one side ends.
    pub async fn carry(mut self, upgrade: OnUpgrade, protocol: &str) {
        let coding = Coding::of(protocol);
        let mut socket = match websocket::socket(upgrade).await {
            Ok(socket) => socket,
            Err(error) => return tracing::debug!(%error, "a connection was not upgraded"),
        };
        let mut goes_on = true;
        for (index, port) in self.ports.iter().enumerate() {
            for channel in [2 * index, 2 * index + 1] {
                goes_on &= socket.feed(coding.encode(channel as u8, &port.to_le_bytes())).await.is_ok();
            }
        }
        goes_on &= socket.flush().await.is_ok();
        let mut ended = HashSet::new();
        while goes_on {
            tokio::select! {
                message = socket.next() => goes_on = match message {
                    Some(Ok(Message::Close(_)) | Err(_)) | None => false,
                    Some(Ok(message)) => self.inward(coding, &message).await.is_ok(),
                },
                event = self.from.next() => match event {
                    Ok(Some(Event::Data(id, bytes, last))) => if let Some(channel) = self.channels.get(&id) {
                        goes_on = bytes.is_empty() || socket.send(coding.encode(*channel, &bytes)).await.is_ok();
                        // Both of a port: why it ended may come after its last byte.
                        goes_on &= !(last && ended.insert(*channel) && ended.contains(&(channel ^ 1)));
                    },
                    Ok(Some(Event::Ping(id))) => goes_on = self.to.pong(id).await.is_ok(),
                    Ok(Some(Event::Reset(id))) => goes_on = !self.channels.contains_key(&id),
                    Ok(Some(Event::GoAway) | None) | Err(_) => goes_on = false,
                },
            }
        }
        websocket::end(socket).await;
    }

    /// What the client sends to a port.
    async fn inward(&mut self, coding: Coding, message: &Message) -> std::io::Result<()> {
        let Some((channel, bytes)) = coding.decode(message) else { return Ok(()) };
        let data = self.channels.iter().find(|(_, known)| **known == channel && channel % 2 == 0);
        match data {
            Some((id, _)) if !bytes.is_empty() => self.to.data(*id, &bytes, false).await,
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_numbers_of_ports() {
        let named = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(ports(&named(&["80", "443"])).ok(), Some(vec![80, 443]));
        for bad in [&[][..], &["0"], &["-1"], &["65536"], &["http"], &["80", ""], &["1"; MAX_PORTS + 1]] {
            assert_eq!(ports(&named(bad)).unwrap_err().0, 400, "{bad:?}");
        }
    }
}
