//! URLs, addresses and ranges of addresses.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;

use super::EvalError;
use super::eval::Budget;
use super::value::{Key, Value};
use crate::go_url;

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
    /// Reads a URL as it stands in a request, but for a fragment, which is left out.
    pub fn parse(text: &str) -> Result<Self, String> {
        go_url::parse_request(text)?;
        let url = go_url::parse(text)?;
        let text = text.split_once('#').map_or(text, |(before, _)| before);
        let rest = text.split_once('?').map_or(text, |(before, _)| before);
        let rest = rest.get(url.scheme.len() + usize::from(!url.scheme.is_empty())..).unwrap_or_default();
        let path = match rest.strip_prefix("//") {
            Some(far) => far.find('/').map_or("", |slash| &far[slash..]),
            None if rest.starts_with('/') => rest,
            None => "",
        };
        Ok(Self { scheme: url.scheme, host: url.host, path: escaped_path(path), query: url.query })
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

/// A path as Go writes it: as it was, or with its own escapes where some are missing.
fn escaped_path(path: &str) -> String {
    let plain_byte = |b: u8| b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&b);
    if path.bytes().all(|b| plain_byte(b) || b"!'()*[]%".contains(&b)) {
        return path.to_owned();
    }
    let (bytes, mut at, mut out) = (path.as_bytes(), 0, String::new());
    while at < bytes.len() {
        let code = path.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let code = code.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let byte = code.unwrap_or(bytes[at]);
        at += if code.is_some() { 3 } else { 1 };
        if plain_byte(byte) { out.push(char::from(byte)) } else { out += &format!("%{byte:02X}") }
    }
    out
}

/// Why Go's parser of addresses refuses a text; one that has a zone is an address to it.
fn unread(text: &str) -> Option<String> {
    let told = |why: &str| Some(format!("ParseAddr({text:?}): {why}"));
    let (address, zone) = text.split_once('%').map_or((text, None), |(address, zone)| (address, Some(zone)));
    match text.chars().find(|c| matches!(c, '.' | ':' | '%')) {
        None => told("unable to parse IP"),
        Some('%') => told("missing IPv6 address"),
        Some(':') if zone == Some("") => told("zone must be a non-empty string"),
        Some(':') if address.parse::<Ipv6Addr>().is_ok() => None,
        Some(':') => match address.find(|c: char| !(c.is_ascii_hexdigit() || matches!(c, ':' | '.'))) {
            Some(at) => told(&format!("unexpected character, want colon (at {:?})", &address[at..])),
            None => told("each group must have 4 or less digits"),
        },
        Some(_) => unread_v4(text).and_then(|why| told(&why)),
    }
}

fn unread_v4(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split('.').collect();
    for (index, part) in parts.iter().enumerate() {
        if let Some(at) = part.find(|c: char| !c.is_ascii_digit()) {
            let before: usize = parts[..index].iter().map(|part| part.len() + 1).sum();
            return Some(format!("unexpected character (at {:?})", &text[before + at..]));
        }
        if part.len() > 1 && part.starts_with('0') {
            return Some("IPv4 field has octet with leading zero".into());
        }
        if part.parse::<u16>().map_or(!part.is_empty(), |n| n > 255) {
            return Some("IPv4 field has value >255".into());
        }
        if part.is_empty() {
            let before: usize = parts[..index].iter().map(|part| part.len() + 1).sum();
            return Some(format!(
                "IPv4 field must have at least one digit (at {:?})",
                &text[before.saturating_sub(1)..]
            ));
        }
        if index > 3 {
            return Some("IPv4 address too long".into());
        }
    }
    (parts.len() < 4).then(|| "IPv4 address too short".into())
}

/// Reads an address without zone; IPv4 in IPv6 is refused, as upstream does.
fn address(text: &str) -> Result<IpAddr, String> {
    if let Some(why) = unread(text) {
        return Err(format!("IP Address {text:?} parse error during conversion from string: {why}"));
    }
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
        }
        Ok(ip) => Ok(ip),
        Err(_) => Err(format!("IP address {text:?} with zone value is not allowed")),
    }
}

fn range(text: &str) -> Result<(IpAddr, u8), String> {
    let told = |why: String| {
        format!("network address parse error during conversion from string: netip.ParsePrefix({text:?}): {why}")
    };
    let (ip, bits) = text.rsplit_once('/').ok_or_else(|| told("no '/'".into()))?;
    if let Some(why) = unread(ip) {
        return Err(told(why));
    }
    if ip.contains('%') {
        return Err(told("IPv6 zones cannot be present in a prefix".into()));
    }
    let ip = address(ip).map_err(|_| format!("IPv4-mapped IPv6 address {text:?} is not allowed"))?;
    let is_number = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit());
    if !is_number || (bits.len() > 1 && bits.starts_with('0')) {
        return Err(told(format!("bad bits after slash: {bits:?}")));
    }
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let bits = bits.parse().ok().filter(|bits| *bits <= most);
    Ok((ip, bits.ok_or_else(|| told("prefix length out of range".into()))?))
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
        "isURL" => Ok(Value::Bool(Url::parse(text).is_ok())),
        "url" => Url::parse(text)
            .map(|url| Value::Url(Rc::new(url)))
            .map_err(|why| EvalError::new(format!("URL parse error during conversion from string: {why}"))),
        "isIP" => Ok(Value::Bool(address(text).is_ok())),
        "ip" => address(text).map(Value::Ip).map_err(EvalError::new),
        "ip.isCanonical" => address(text).map(|ip| Value::Bool(ip.to_string() == text)).map_err(EvalError::new),
        "isCIDR" => Ok(Value::Bool(range(text).is_ok())),
        "cidr" => range(text).map(|(ip, bits)| Value::Cidr(ip, bits)).map_err(EvalError::new),
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
    Some(match (name, rest) {
        ("containsIP", [Value::Ip(other)]) => Ok(within(*other, (ip, bits)).into()),
        ("containsIP", [Value::String(text)]) => {
            address(text).map(|other| within(other, (ip, bits)).into()).map_err(EvalError::new)
        }
        ("containsCIDR", [Value::Cidr(other, n)]) => Ok((bits <= *n && within(*other, (ip, bits))).into()),
        ("containsCIDR", [Value::String(text)]) => {
            range(text).map(|(other, n)| (bits <= n && within(other, (ip, bits))).into()).map_err(EvalError::new)
        }
        ("ip", []) => Ok(Value::Ip(ip)),
        ("masked", []) => Ok(Value::Cidr(masked(ip, bits), bits)),
        ("prefixLength", []) => Ok(Value::Int(bits.into())),
        _ => return None,
    })
}
