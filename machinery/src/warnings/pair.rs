//! A certificate and its key as texts (PEM): what Go's library would say that is to serve them.

use crate::base64_text::{self, Form};

const CERTIFICATE: &str = "CERTIFICATE";
const KEY: &str = "PRIVATE KEY";

/// Why a server could not use a certificate and a key. What they say is looked at no further than that it has their form.
pub fn problem(certificate: &[u8], key: &[u8]) -> Option<String> {
    let blocks = blocks(certificate);
    let Some(first) = blocks.iter().find(|block| block.kind == CERTIFICATE) else {
        return Some(match kinds(&blocks)[..] {
            [] => "tls: failed to find any PEM data in certificate input".into(),
            [kind] if kind.ends_with(KEY) => {
                "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have \
                 been switched"
                    .into()
            }
            ref skipped => format!(
                "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following \
                 types: [{}]",
                skipped.join(" ")
            ),
        });
    };
    let blocks = self::blocks(key);
    let is_key = |block: &&Block| block.kind == KEY || block.kind.ends_with(" PRIVATE KEY");
    let Some(key) = blocks.iter().find(is_key) else {
        return Some(match kinds(&blocks)[..] {
            [] => "tls: failed to find any PEM data in key input".into(),
            [CERTIFICATE] => "tls: found a certificate rather than a key in the PEM for the private key".into(),
            ref skipped => format!(
                "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the \
                 following types: [{}]",
                skipped.join(" ")
            ),
        });
    };
    let Some((content, rest)) = sequence(&first.bytes) else { return Some("x509: malformed certificate".into()) };
    if sequence(content).is_none() {
        return Some("x509: malformed tbs certificate".into());
    }
    if !rest.is_empty() {
        return Some("x509: trailing data".into());
    }
    sequence(&key.bytes).is_none().then(|| "tls: failed to parse private key".into())
}

struct Block {
    kind: String,
    bytes: Vec<u8>,
}

fn kinds(blocks: &[Block]) -> Vec<&str> {
    blocks.iter().map(|block| block.kind.as_str()).collect()
}

/// The blocks of a text; what is none is skipped.
fn blocks(text: &[u8]) -> Vec<Block> {
    let text = String::from_utf8_lossy(text);
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.trim_end().strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) else {
            continue;
        };
        let mut body = String::new();
        let mut ended = false;
        for line in lines.by_ref() {
            if line.starts_with("-----") {
                ended = line.trim_end() == format!("-----END {kind}-----");
                break;
            }
            // Headers come before the body.
            if !line.contains(':') {
                body.extend(line.split_whitespace());
            }
        }
        if let (true, Ok(bytes)) = (ended, base64_text::decode(Form::Standard, body.as_bytes())) {
            found.push(Block { kind: kind.to_owned(), bytes });
        }
    }
    found
}

/// The content of a sequence (DER) at the front of bytes, and what is behind it.
fn sequence(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let [0x30, first, rest @ ..] = bytes else { return None };
    let (length, rest) = match *first {
        short @ 0..0x80 => (usize::from(short), rest),
        long => {
            let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            if !(1..=4).contains(&digits.len()) {
                return None;
            }
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_pair_is_told() {
        let pem = |kind: &str, body: &str| format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n");
        // A sequence of an empty sequence.
        let (certificate, key) = (pem("CERTIFICATE", "MAIwAA=="), pem("EC PRIVATE KEY", "MAA="));
        for (first, second, expected) in [
            ("", "", Some("tls: failed to find any PEM data in certificate input")),
            ("-----BEGIN CERTIFICATE-----\nMAA=", "", Some("tls: failed to find any PEM data in certificate input")),
            (&pem("CERTIFICATE", "?"), "", Some("tls: failed to find any PEM data in certificate input")),
            (
                &key,
                &key,
                Some(
                    "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may \
                     have been switched",
                ),
            ),
            (
                &format!("{}{}", pem("A", "MAA="), pem("B", "MAA=")),
                &key,
                Some(
                    "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the \
                     following types: [A B]",
                ),
            ),
            (&certificate, "x", Some("tls: failed to find any PEM data in key input")),
            (
                &certificate,
                &certificate,
                Some("tls: found a certificate rather than a key in the PEM for the private key"),
            ),
            (&pem("CERTIFICATE", "AAAA"), &key, Some("x509: malformed certificate")),
            (&pem("CERTIFICATE", "MAA="), &key, Some("x509: malformed tbs certificate")),
            (&certificate, &pem("PRIVATE KEY", "AAAA"), Some("tls: failed to parse private key")),
            (&certificate, &key, None),
        ] {
            assert_eq!(problem(first.as_bytes(), second.as_bytes()).as_deref(), expected, "{first}{second}");
        }
    }
}
