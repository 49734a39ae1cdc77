//! Where members are reached, and how their connections are secured.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig};

/// What secures the connections between members. Read at each new connection, so that certificates can change.
#[derive(Clone)]
pub struct PeerTls {
    /// Towards members that connect.
    pub server: Arc<ArcSwap<ServerConfig>>,
    /// Towards members that are connected to.
    pub client: Arc<ArcSwap<ClientConfig>>,
    /// Name that every member's certificate carries; `None`: it carries the host that the member is reached at.
    pub name: Option<&'static str>,
}

impl PeerTls {
    /// Configurations that never change, for certificates that all carry one name.
    pub fn fixed(server: Arc<ServerConfig>, client: Arc<ClientConfig>, name: &'static str) -> Self {
        let (server, client) = (Arc::new(ArcSwap::new(server)), Arc::new(ArcSwap::new(client)));
        Self { server, client, name: Some(name) }
    }
}

/// One address of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `host:port`.
    pub authority: String,
    /// Whether TLS is spoken there.
    pub secure: bool,
}

impl Target {
    /// The addresses in a member's record: `host:port`, or URLs with commas between them.
    pub fn list(address: &str) -> Vec<Self> {
        let target = |text: &str| {
            let (secure, authority) = match text.split_once("://") {
                Some((scheme, authority)) => (scheme != "http", authority),
                None => (true, text),
            };
            Self { authority: authority.trim_end_matches('/').to_owned(), secure }
        };
        address.split(',').filter(|text| !text.is_empty()).map(target).collect()
    }

    /// The host without its port and brackets.
    pub fn host(&self) -> &str {
        let host = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        for (text, want) in [
            ("10.0.0.1:2380", vec![("10.0.0.1:2380", true, "10.0.0.1")]),
            ("http://a:1/,https://[::1]:2", vec![("a:1", false, "a"), ("[::1]:2", true, "::1")]),
            ("", vec![]),
        ] {
            let found = Target::list(text);
            let found: Vec<_> = found.iter().map(|t| (t.authority.as_str(), t.secure, t.host())).collect();
            assert_eq!(found, want, "{text}");
        }
    }
}
