//! String formats that are checked; others are noted only.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine as _;

/// Formats that this version knows.
const KNOWN: &[&str] = &[
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "date-time",
    "datetime",
    "int32",
    "int64",
    "float",
    "double",
    "k8s-short-name",
    "k8s-long-name",
];

/// Whether a format has a meaning.
pub fn is_known_format(format: &str) -> bool {
    KNOWN.contains(&format)
}

/// Whether a text is of a format; one that is not checked passes.
pub fn matches_format(format: &str, text: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    match format {
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => is_mac(text),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => is_uuid(format, text),
        "uri" => text.starts_with('/') || text.split_once(':').is_some_and(|(scheme, _)| is_scheme(scheme)),
        "email" => text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty()),
        "hostname" => !text.is_empty() && text.len() <= 255 && text.split('.').all(is_host_label),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "duration" => is_duration(text),
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "hexcolor" => {
            let hex = text.strip_prefix('#').unwrap_or(text);
            matches!(hex.len(), 3 | 6) && hex.bytes().all(|b| b.is_ascii_hexdigit())
        }
        "ssn" => {
            let parts: Vec<&str> = text.split(['-', ' ']).collect();
            matches!(parts[..], [a, b, c] if a.len() == 3 && b.len() == 2 && c.len() == 4 && parts.iter().all(|p| digits(p)))
        }
        "k8s-short-name" => crate::names::dns_label(text).is_none(),
        "k8s-long-name" => crate::names::dns_subdomain(text).is_none(),
        _ => true,
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let Ok(length) = length.parse::<u8>() else { return false };
    (address.parse::<Ipv4Addr>().is_ok() && length <= 32) || (address.parse::<Ipv6Addr>().is_ok() && length <= 128)
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    matches!(parts.len(), 6 | 8) && parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_uuid(format: &str, text: &str) -> bool {
    let hex: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    let whole = hex.len() == 32 && hex.iter().all(u8::is_ascii_hexdigit) && matches!(text.len(), 32 | 36);
    whole && format.strip_prefix("uuid").is_none_or(|v| v.is_empty() || v.as_bytes() == &hex[12..13])
}

fn is_scheme(scheme: &str) -> bool {
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= 63
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Go's durations (`1h30m`), and the spelled-out ones (`3 days`).
fn is_duration(text: &str) -> bool {
    let mut rest = text.trim().trim_start_matches(['-', '+']);
    if rest == "0" {
        return true;
    }
    let mut parts = 0;
    while !rest.is_empty() {
        let number = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let unit: usize = rest[number..].chars().take_while(|c| !c.is_ascii_digit()).map(char::len_utf8).sum();
        let name = rest[number..number + unit].trim().trim_end_matches('s');
        let known =
            ["n", "u", "µ", "m", "", "h", "d", "w", "day", "week", "hour", "hr", "minute", "min", "second", "sec"];
        if number == 0 || unit == 0 || !known.contains(&name) {
            return false;
        }
        parts += 1;
        rest = &rest[number + unit..];
    }
    parts > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("ipv4", "1.2.3.4", "1.2.3"),
            ("ipv6", "::1", "1.2.3.4"),
            ("cidr", "10.0.0.0/8", "10.0.0.0"),
            ("date-time", "2020-01-01T00:00:00Z", "yesterday"),
            ("date", "2020-01-01", "2020-1-1"),
            ("duration", "1h30m", "1x"),
            ("duration", "3 days", "days"),
            ("uuid4", "f47ac10b-58cc-4372-a567-0e02b2c3d479", "f47ac10b-58cc-1372-a567-0e02b2c3d479"),
            ("byte", "YQ==", "a"),
            ("mac", "01:23:45:67:89:ab", "01:23"),
            ("hostname", "a.b-c", "-a"),
            ("email", "a@b", "a"),
            ("uri", "https://x", "x y"),
        ] {
            assert!(matches_format(format, good), "{format} {good}");
            assert!(!matches_format(format, bad), "{format} {bad}");
        }
        assert!(matches_format("nonsense", "x") && !is_known_format("nonsense"));
    }
}
