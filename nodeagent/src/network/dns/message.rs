//! DNS messages: questions taken apart, answers put together. Only what a name server for a cluster needs.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Bytes of a message over UDP when the client does not say more.
pub const PLAIN_UDP: usize = 512;
/// Bytes of a message over UDP that we send at most.
pub const MAX_UDP: usize = 1232;
/// Bytes of a header.
const HEADER: usize = 12;
/// Bytes of a name.
const MAX_NAME: usize = 255;
/// The class of the Internet.
const INTERNET: u16 = 1;

/// Types of records.
pub mod kind {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// Another name.
    pub const CNAME: u16 = 5;
    /// Who is in charge of a zone.
    pub const SOA: u16 = 6;
    /// The name of an address.
    pub const PTR: u16 = 12;
    /// Text.
    pub const TXT: u16 = 16;
    /// An IPv6 address.
    pub const AAAA: u16 = 28;
    /// A host and port.
    pub const SRV: u16 = 33;
    /// Extension of the protocol.
    pub const OPT: u16 = 41;
    /// Everything.
    pub const ANY: u16 = 255;
}

/// Outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The name exists.
    Good = 0,
    /// The question is malformed.
    Malformed = 1,
    /// The answer could not be had.
    Failed = 2,
    /// The name does not exist.
    NoName = 3,
    /// Not done here.
    NotDone = 4,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Chosen by the client.
    pub id: u16,
    /// The name in lower case, without the last dot.
    pub name: String,
    /// The type of records.
    pub kind: u16,
    /// Whether we may ask others.
    pub recursive: bool,
    /// Bytes that the client takes over UDP.
    pub size: usize,
    /// The question as it came: name, type and class.
    pub raw: Vec<u8>,
    /// Whether the client speaks the extended protocol.
    pub extended: bool,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// Another name.
    Cname(String),
    /// The name of an address.
    Ptr(String),
    /// Port and host.
    Srv(u16, String),
    /// Text.
    Txt(String),
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// What it says.
    pub data: Data,
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// The name at `at`, and where it ends. Compressed names are followed.
pub fn name(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut end = None;
    // Every pointer leads backwards, so this ends.
    let mut limit = at + 1;
    loop {
        let length = usize::from(*bytes.get(at)?);
        match length {
            0 => return Some((name, end.unwrap_or(at + 1))),
            1..=63 => {
                let label = bytes.get(at + 1..at + 1 + length)?;
                if !name.is_empty() {
                    name.push('.');
                }
                name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
                if name.len() > MAX_NAME {
                    return None;
                }
                at += 1 + length;
            }
            0xC0.. => {
                let to = usize::from(number(bytes, at)? & 0x3FFF);
                end.get_or_insert(at + 2);
                if to >= limit {
                    return None;
                }
                (at, limit) = (to, to);
            }
            _ => return None,
        }
    }
}

/// Takes a question apart. The error is what to answer, if anything can be.
pub fn parse(bytes: &[u8]) -> Result<Question, Option<(u16, Code)>> {
    let id = number(bytes, 0).ok_or(None)?;
    let flags = number(bytes, 2).ok_or(None)?;
    if flags & 0x8000 != 0 {
        return Err(None); // an answer
    }
    let malformed = || Some((id, Code::Malformed));
    if flags & 0x7800 != 0 {
        return Err(Some((id, Code::NotDone)));
    }
    if number(bytes, 4) != Some(1) {
        return Err(malformed());
    }
    let (name, end) = name(bytes, HEADER).ok_or_else(malformed)?;
    let kind = number(bytes, end).ok_or_else(malformed)?;
    if number(bytes, end + 2) != Some(INTERNET) {
        return Err(Some((id, Code::NotDone)));
    }
    let raw = bytes.get(HEADER..end + 4).ok_or_else(malformed)?.to_vec();
    let extension = number(bytes, 10).unwrap_or(0) > 0
        && bytes.get(end + 4) == Some(&0)
        && number(bytes, end + 5) == Some(kind::OPT);
    let size = if extension { usize::from(number(bytes, end + 7).unwrap_or(0)) } else { PLAIN_UDP };
    let size = size.clamp(PLAIN_UDP, MAX_UDP);
    Ok(Question { id, name, kind, recursive: flags & 0x0100 != 0, size, raw, extended: extension })
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    for label in name.split('.').filter(|l| !l.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(63)];
        out.push(label.len() as u8);
        out.extend_from_slice(label);
    }
    out.push(0);
}

impl Record {
    fn put(&self, out: &mut Vec<u8>, question: &str, ttl: u32) {
        if self.name == question {
            out.extend_from_slice(&[0xC0, HEADER as u8]);
        } else {
            put_name(out, &self.name);
        }
        let mut data = Vec::new();
        let kind = match &self.data {
            Data::A(ip) => {
                data.extend_from_slice(&ip.octets());
                kind::A
            }
            Data::Aaaa(ip) => {
                data.extend_from_slice(&ip.octets());
                kind::AAAA
            }
            Data::Cname(name) => {
                put_name(&mut data, name);
                kind::CNAME
            }
            Data::Ptr(name) => {
                put_name(&mut data, name);
                kind::PTR
            }
            Data::Srv(port, host) => {
                data.extend_from_slice(&[0, 0, 0, 100]);
                data.extend_from_slice(&port.to_be_bytes());
                put_name(&mut data, host);
                kind::SRV
            }
            Data::Txt(text) => {
                data.push(text.len().min(255) as u8);
                data.extend_from_slice(&text.as_bytes()[..text.len().min(255)]);
                kind::TXT
            }
        };
        put_head(out, kind, ttl, &data);
    }
}

fn put_head(out: &mut Vec<u8>, kind: u16, ttl: u32, data: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&INTERNET.to_be_bytes());
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

/// The authority of a zone, for answers without records.
fn put_authority(out: &mut Vec<u8>, zone: &str, ttl: u32) {
    put_name(out, zone);
    let mut data = Vec::new();
    put_name(&mut data, &format!("ns.dns.{zone}"));
    put_name(&mut data, &format!("hostmaster.{zone}"));
    for value in [1_u32, 7200, 1800, 86_400, ttl] {
        data.extend_from_slice(&value.to_be_bytes());
    }
    put_head(out, kind::SOA, ttl, &data);
}

/// Our own answer: records, or the authority of `zone` if there are none. One that is longer than `limit` has none of
/// them and says that it is cut, so that the client asks over TCP.
pub fn answer(question: &Question, code: Code, records: &[Record], zone: &str, ttl: u32, limit: usize) -> Vec<u8> {
    let whole = build(question, code, records, zone, ttl, false);
    if whole.len() <= limit { whole } else { build(question, code, &[], zone, ttl, true) }
}

fn build(question: &Question, code: Code, records: &[Record], zone: &str, ttl: u32, cut: bool) -> Vec<u8> {
    let authority = records.is_empty() && !cut && !zone.is_empty();
    let mut out = Vec::with_capacity(PLAIN_UDP);
    out.extend_from_slice(&question.id.to_be_bytes());
    let flags = 0x8000
        | 0x0400
        | if cut { 0x0200 } else { 0 }
        | if question.recursive { 0x0100 } else { 0 }
        | 0x0080
        | code as u16;
    out.extend_from_slice(&flags.to_be_bytes());
    for count in [1, records.len() as u16, u16::from(authority), u16::from(question.extended)] {
        out.extend_from_slice(&count.to_be_bytes());
    }
    out.extend_from_slice(&question.raw);
    records.iter().for_each(|record| record.put(&mut out, &question.name, ttl));
    if authority {
        put_authority(&mut out, zone, ttl);
    }
    if question.extended {
        out.push(0);
        out.extend_from_slice(&kind::OPT.to_be_bytes());
        out.extend_from_slice(&(MAX_UDP as u16).to_be_bytes());
        out.extend_from_slice(&[0; 6]);
    }
    out
}

/// An answer without a question, to one that is not understood.
pub fn refusal(id: u16, code: Code) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend_from_slice(&(0x8000 | code as u16).to_be_bytes());
    out.extend_from_slice(&[0; 8]);
    out
}

/// A question of our own.
pub fn question(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    put_name(&mut bytes, name);
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&INTERNET.to_be_bytes());
    bytes
}

/// The addresses and further names in an answer.
pub fn addresses(bytes: &[u8]) -> Vec<Record> {
    read_addresses(bytes).unwrap_or_default()
}

fn read_addresses(bytes: &[u8]) -> Option<Vec<Record>> {
    let mut at = HEADER;
    for _ in 0..number(bytes, 4)? {
        at = name(bytes, at)?.1 + 4;
    }
    let mut records = Vec::new();
    for _ in 0..number(bytes, 6)? {
        let (owner, end) = name(bytes, at)?;
        let (kind, length) = (number(bytes, end)?, usize::from(number(bytes, end + 8)?));
        let data = bytes.get(end + 10..end + 10 + length)?;
        let data = match kind {
            kind::A => Some(Data::A(<[u8; 4]>::try_from(data).ok()?.into())),
            kind::AAAA => Some(Data::Aaaa(<[u8; 16]>::try_from(data).ok()?.into())),
            kind::CNAME => Some(Data::Cname(name(bytes, end + 10)?.0)),
            _ => None,
        };
        records.extend(data.map(|data| Record { name: owner, data }));
        at = end + 10 + length;
    }
    Some(records)
}

/// Where the times to live of an answer are, and the least of them.
pub fn lives(bytes: &[u8]) -> Option<(Vec<usize>, u32)> {
    let mut at = HEADER;
    for _ in 0..number(bytes, 4)? {
        at = name(bytes, at)?.1 + 4;
    }
    let records = number(bytes, 6)?.checked_add(number(bytes, 8)?)?.checked_add(number(bytes, 10)?)?;
    let (mut places, mut least) = (Vec::new(), u32::MAX);
    for _ in 0..records {
        at = name(bytes, at)?.1;
        let kind = number(bytes, at)?;
        let life = u32::from_be_bytes(bytes.get(at + 4..at + 8)?.try_into().ok()?);
        if kind != kind::OPT {
            places.push(at + 4);
            least = least.min(life);
        }
        at += 10 + usize::from(number(bytes, at + 8)?);
    }
    Some((places, least))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(name: &str, kind: u16) -> Vec<u8> {
        super::question(0x1234, name, kind)
    }

    #[test]
    fn questions_and_answers() {
        let asked = parse(&question("Web.Default.svc.cluster.local", kind::A)).unwrap();
        assert_eq!((asked.name.as_str(), asked.id, asked.size), ("web.default.svc.cluster.local", 0x1234, 512));
        let record = Record { name: asked.name.clone(), data: Data::A([10, 96, 0, 5].into()) };
        let bytes = answer(&asked, Code::Good, &[record], "cluster.local", 5, 512);
        assert_eq!(&bytes[..8], [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1]);
        assert_eq!(&bytes[bytes.len() - 4..], [10, 96, 0, 5]);
        assert_eq!(lives(&bytes).unwrap().1, 5);
        assert_eq!(addresses(&bytes)[0].data, Data::A([10, 96, 0, 5].into()));
        let none = answer(&asked, Code::NoName, &[], "cluster.local", 5, 512);
        assert_eq!((none[3] & 15, none[9]), (3, 1));
        assert_eq!(lives(&none).unwrap().1, 5);
    }

    #[test]
    fn long_answers_are_cut() {
        let asked = parse(&question("x.y", kind::A)).unwrap();
        let records: Vec<Record> =
            (0..100).map(|i| Record { name: "x.y".into(), data: Data::A([10, 0, 0, i].into()) }).collect();
        let bytes = answer(&asked, Code::Good, &records, "", 5, 512);
        assert!(bytes.len() <= 512 && bytes[2] & 2 == 2);
        assert!(answer(&asked, Code::Good, &records, "", 5, 65_535).len() > 1000);
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(parse(&[1]), Err(None));
        assert_eq!(parse(&[0, 7, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Err(None));
        assert_eq!(parse(&[0, 7, 0x28, 0, 0, 1, 0, 0, 0, 0, 0, 0]), Err(Some((7, Code::NotDone))));
        assert_eq!(parse(&[0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 5, 1]), Err(Some((7, Code::Malformed))));
        // A name that points at itself.
        assert_eq!(name(&[0xC0, 0], 0), None);
        assert_eq!(name(&[1, b'a', 0, 1, b'b', 0xC0, 0], 3), Some(("b.a".into(), 7)));
    }
}
