//! Subjects with several attributes of one kind: a user's groups are its certificate's organisations, and the library that
//! makes certificates knows one of each kind. Such a subject is put in afterwards, and what was signed is signed again.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, SigningKey};

use crate::Error;

/// Tags of DER.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const NUMBER_OF_KIND: u8 = 0x06;
const TEXT: u8 = 0x0c;
const BITS: u8 = 0x03;
/// Which of its fields is a certificate's subject, and a request's.
pub const IN_CERTIFICATE: usize = 5;
pub const IN_REQUEST: usize = 1;
/// Kinds of attributes.
pub const COMMON_NAME: &[u64] = &[2, 5, 4, 3];
pub const ORGANIZATION: &[u64] = &[2, 5, 4, 10];
/// Characters of a line of PEM.
const LINE: usize = 64;

fn malformed() -> Error {
    Error::Malformed("not DER of a certificate or a request for one".into())
}

/// An element with its tag and length, and what is behind it.
fn element(der: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let (head, length) = match der {
        [_, short, ..] if *short < 0x80 => (2, usize::from(*short)),
        [_, long, rest @ ..] => {
            let count = usize::from(long & 0x7f);
            let digits = rest.get(..count).filter(|_| (1..=4).contains(&count)).ok_or_else(malformed)?;
            (2 + count, digits.iter().fold(0, |all, digit| all << 8 | usize::from(*digit)))
        }
        _ => return Err(malformed()),
    };
    der.split_at_checked(head + length).ok_or_else(malformed)
}

/// What is in an element.
fn content(element: &[u8]) -> Result<&[u8], Error> {
    let head = match element {
        [_, short, ..] if *short < 0x80 => 2,
        [_, long, ..] => 2 + usize::from(long & 0x7f),
        _ => return Err(malformed()),
    };
    element.get(head..).ok_or_else(malformed)
}

/// Makes an element.
fn made(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..0x80 => out.push(short as u8),
        long => {
            let digits: Vec<u8> = long.to_be_bytes().into_iter().skip_while(|digit| *digit == 0).collect();
            out.push(0x80 | digits.len() as u8);
            out.extend(digits);
        }
    }
    out.extend(content);
    out
}

/// A kind of attribute by its number.
fn number(arcs: &[u64]) -> Vec<u8> {
    let [first, second, rest @ ..] = arcs else { return Vec::new() };
    let mut out = Vec::new();
    for arc in std::iter::once(&(first * 40 + second)).chain(rest) {
        let mut digits = vec![(arc & 0x7f) as u8];
        let mut left = arc >> 7;
        while left > 0 {
            digits.push((left & 0x7f) as u8 | 0x80);
            left >>= 7;
        }
        out.extend(digits.iter().rev());
    }
    made(NUMBER_OF_KIND, &out)
}

/// A name made of attributes: their kinds and texts.
pub fn name(attributes: &[(&[u64], &str)]) -> Vec<u8> {
    let all: Vec<u8> = attributes
        .iter()
        .flat_map(|(kind, text)| {
            let pair = [number(kind), made(TEXT, text.as_bytes())].concat();
            made(SET, &made(SEQUENCE, &pair))
        })
        .collect();
    made(SEQUENCE, &all)
}

/// A certificate, or a request for one, with another subject, signed by `key`. `field` is [`IN_CERTIFICATE`] or
/// [`IN_REQUEST`].
pub fn replaced(der: &[u8], field: usize, subject: &[u8], key: &KeyPair) -> Result<Vec<u8>, Error> {
    let (signed, rest) = element(content(element(der)?.0)?)?;
    let (algorithm, _) = element(rest)?;
    let (mut out, mut left, mut index) = (Vec::with_capacity(signed.len() + subject.len()), content(signed)?, 0);
    while !left.is_empty() {
        let (part, behind) = element(left)?;
        out.extend(if index == field { subject } else { part });
        (left, index) = (behind, index + 1);
    }
    let signed = made(SEQUENCE, &out);
    let signature = made(BITS, &[&[0][..], &key.sign(&signed)?].concat());
    Ok(made(SEQUENCE, &[&signed[..], algorithm, &signature].concat()))
}

/// Checks the frame of a request: what its signature does not cover, and the reader of requests takes with any tag.
pub fn framed(der: &[u8]) -> Result<(), Error> {
    let (request, behind) = element(der)?;
    let (signed, rest) = element(content(request)?)?;
    let (algorithm, rest) = element(rest)?;
    let (signature, more) = element(rest)?;
    let (kind, _) = element(content(algorithm)?)?;
    let tags = [request[0], signed[0], algorithm[0], kind[0], signature[0]];
    let whole = behind.is_empty() && more.is_empty();
    if whole && tags == [SEQUENCE, SEQUENCE, SEQUENCE, NUMBER_OF_KIND, BITS] { Ok(()) } else { Err(malformed()) }
}

/// DER as PEM.
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(LINE).map(|at| &text[at..text.len().min(at + LINE)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_requests_are_framed() {
        let (pem, _) = crate::certificate_request("jane", &["a"], &[]).unwrap();
        let text: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = STANDARD.decode(text).unwrap();
        framed(&der).unwrap();
        let signed = content(element(&der).unwrap().0).unwrap();
        let (signed, rest) = element(signed).unwrap();
        let algorithm = element(rest).unwrap().0;
        let signed_at = der.len() - signed.len() - rest.len();
        let algorithm_at = signed_at + signed.len();
        for at in [0, signed_at, algorithm_at, algorithm_at + 2, algorithm_at + algorithm.len()] {
            for tag in (0..=u8::MAX).filter(|tag| *tag != der[at]) {
                let mut broken = der.clone();
                broken[at] = tag;
                assert!(framed(&broken).is_err(), "tag {tag:#x} at {at}");
            }
        }
        assert!(framed(&[&der[..], &[0]].concat()).is_err(), "something behind it");
        for length in 0..der.len() {
            assert!(framed(&der[..length]).is_err(), "the first {length} bytes");
        }
    }
}
