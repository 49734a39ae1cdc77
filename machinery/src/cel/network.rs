//! URLs, addresses and ranges of addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use super::EvalError;
use super::eval::Budget;
use super::value::{Key, Value};

/// An absolute URL or an absolute path, in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
}

type Evaluated<'a> = Result<Value<'a>, EvalError>;

impl Url {
    /// Reads a URL.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || text.bytes().any(|b| b <= b' ' || b == 0x7f) || !escapes_are_good(text) {
            return None;
        }
        let text = text.split_once('#').map_or(text, |(before, _)| before);
        let (rest, query) = text.split_once('?').unwrap_or((text, ""));
        if let Some((scheme, after)) = rest.split_once("://") {
            let good = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
            let slash = after.find('/').unwrap_or(after.len());
            let host = after[..slash].rsplit_once('@').map_or(&after[..slash], |(_, host)| host);
            let port = host.rsplit_once(':').filter(|(name, _)| !name.contains('[') || name.ends_with(']'));
            let port_is_good = port.is_none_or(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
            return (good && port_is_good).then(|| Self {
                scheme: scheme.to_ascii_lowercase(),
                host: host.to_owned(),
                path: after[slash..].to_owned(),
                query: query.to_owned(),
            });
        }
        rest.starts_with('/').then(|| Self {
            scheme: String::new(),
            host: String::new(),
            path: rest.to_owned(),
            query: query.to_owned(),
        })
    }

    fn hostname(&self) -> &str {
        match self.host.strip_prefix('[').and_then(|h| h.split_once(']')) {
            Some((inside, _)) => inside,
            None => self.host.split_once(':').map_or(&self.host, |(name, _)| name),
        }
    }

    fn port(&self) -> &str {
        let after = self.host.rsplit_once(']').map_or(self.host.as_str(), |(_, after)| after);
        after.rsplit_once(':').map_or("", |(_, port)| port)
    }
}

fn escapes_are_good(text: &str) -> bool {
    let bytes = text.as_bytes();
    let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    bytes.iter().enumerate().all(|(i, b)| *b != b'%' || hex(i + 1) && hex(i + 2))
}

/// Reads an address without zone; IPv4 in IPv6 is refused, as upstream does.
fn address(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text.parse().ok()?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => None,
        ip => Some(ip),
    }
}

fn range(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = text.split_once('/')?;
    let ip = address(ip)?;
    let bits: u8 = bits.parse().ok().filter(|_| !(bits.len() > 1 && bits.starts_with('0')))?;
    (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, bits))
}

fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

fn within(ip: IpAddr, (base, bits): (IpAddr, u8)) -> bool {
    ip.is_ipv4() == base.is_ipv4() && masked(ip, bits) == masked(base, bits)
}

pub(super) fn call<'a>(name: &str, values: &[Value<'a>], _: &Budget) -> Option<Evaluated<'a>> {
    match values {
        [Value::String(text)] => from_text(name, text),
        [Value::Url(url)] => Some(Ok(of_url(name, url)?)),
        [Value::Ip(ip)] => Some(Ok(of_ip(name, *ip)?)),
        [Value::Cidr(ip, bits), rest @ ..] => of_range(name, (*ip, *bits), rest),
        _ => None,
    }
}

fn from_text<'a>(name: &str, text: &str) -> Option<Evaluated<'a>> {
    Some(match name {
        "isURL" => Ok(Value::Bool(Url::parse(text).is_some())),
        "url" => Url::parse(text)
            .map(|url| Value::Url(Rc::new(url)))
            .ok_or_else(|| EvalError::new(format!("URL parse error during conversion from string: parse {text:?}"))),
        "isIP" => Ok(Value::Bool(address(text).is_some())),
        "ip" => address(text)
            .map(Value::Ip)
            .ok_or_else(|| EvalError::new(format!("IP Address {text:?} parse error during conversion from string"))),
        "ip.isCanonical" => match address(text) {
            Some(ip) => Ok(Value::Bool(ip.to_string() == text)),
            None => Err(EvalError::new(format!("IP Address {text:?} parse error during conversion from string"))),
        },
        "isCIDR" => Ok(Value::Bool(range(text).is_some())),
        "cidr" => range(text).map(|(ip, bits)| Value::Cidr(ip, bits)).ok_or_else(|| {
            EvalError::new(format!("network address parse error during conversion from string: {text:?}"))
        }),
        _ => return None,
    })
}

fn of_url<'a>(name: &str, url: &Url) -> Option<Value<'a>> {
    Some(match name {
        "getScheme" => Value::owned(&*url.scheme),
        "getHost" => Value::owned(&*url.host),
        "getHostname" => Value::owned(url.hostname()),
        "getPort" => Value::owned(url.port()),
        "getEscapedPath" => Value::owned(&*url.path),
        "getQuery" => {
            let mut map: BTreeMap<Key, Vec<Value<'a>>> = BTreeMap::new();
            for pair in url.query.split('&').filter(|p| !p.is_empty()) {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                map.entry(Key::String(plain(key))).or_default().push(Value::owned(plain(value)));
            }
            Value::Map(Rc::new(map.into_iter().map(|(k, v)| (k, Value::list(v))).collect()))
        }
        _ => return None,
    })
}

fn plain(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], code) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn of_ip<'a>(name: &str, ip: IpAddr) -> Option<Value<'a>> {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    };
    let link_local_multicast = match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    Some(match name {
        "family" => Value::Int(if ip.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => ip.is_unspecified().into(),
        "isLoopback" => ip.is_loopback().into(),
        "isLinkLocalMulticast" => link_local_multicast.into(),
        "isLinkLocalUnicast" => link_local.into(),
        "isGlobalUnicast" => {
            let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
            (!(broadcast || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local)).into()
        }
        _ => return None,
    })
}

fn of_range<'a>(name: &str, (ip, bits): (IpAddr, u8), rest: &[Value<'_>]) -> Option<Evaluated<'a>> {
    let bad =
        |text: &str| EvalError::new(format!("network address parse error during conversion from string: {text:?}"));
    Some(match (name, rest) {
        ("containsIP", [Value::Ip(other)]) => Ok(within(*other, (ip, bits)).into()),
        ("containsIP", [Value::String(text)]) => {
            address(text).map(|other| within(other, (ip, bits)).into()).ok_or_else(|| bad(text))
        }
        ("containsCIDR", [Value::Cidr(other, n)]) => Ok((bits <= *n && within(*other, (ip, bits))).into()),
        ("containsCIDR", [Value::String(text)]) => {
            range(text).map(|(other, n)| (bits <= n && within(other, (ip, bits))).into()).ok_or_else(|| bad(text))
        }
        ("ip", []) => Ok(Value::Ip(ip)),
        ("masked", []) => Ok(Value::Cidr(masked(ip, bits), bits)),
        ("prefixLength", []) => Ok(Value::Int(bits.into())),
        _ => return None,
    })
}
