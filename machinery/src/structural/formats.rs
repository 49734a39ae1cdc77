//! String formats that are checked; others are noted only.

use std::net::IpAddr;

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

/// Whether a format is one of texts: those of numbers say nothing of a text.
pub fn is_of_text(format: &str) -> bool {
    is_known_format(format) && !matches!(format, "int32" | "int64" | "float" | "double")
}

/// Whether a text is of a format; one that is not checked passes.
pub fn matches_format(format: &str, text: &str) -> bool {
    match format {
        "ipv4" => text.contains('.') && is_address(text),
        "ipv6" => text.contains(':') && is_address(text),
        "cidr" => is_cidr(text),
        "mac" => is_mac(text),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => is_uuid(format, text),
        "uri" => is_uri(text),
        "email" => is_email(text),
        "hostname" => is_hostname(text),
        "byte" => !text.is_empty() && base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "date" => is_date(text),
        "date-time" | "datetime" => is_date_time(text),
        "duration" => is_duration(text),
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "hexcolor" => {
            let hex = text.strip_prefix('#').unwrap_or(text);
            matches!(hex.len(), 3 | 6) && hex.bytes().all(|b| b.is_ascii_hexdigit())
        }
        "rgbcolor" => is_rgb(text),
        "ssn" => is_security_number(text),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "creditcard" => is_card(text),
        "k8s-short-name" => crate::names::dns_label(text).is_none(),
        "k8s-long-name" => crate::names::dns_subdomain(text).is_none(),
        _ => true,
    }
}

/// An address; zeros in front of the numbers of an IPv4 address do no harm here.
fn is_address(text: &str) -> bool {
    let number = |part: &str| {
        let digits = part.trim_start_matches('0');
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_digit())
            && (digits.is_empty() || digits.parse::<u8>().is_ok())
    };
    text.parse::<IpAddr>().is_ok() || (text.split('.').count() == 4 && text.split('.').all(number))
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let most = if address.contains(':') { 128 } else { 32 };
    let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    digits && length.parse::<u8>().is_ok_and(|length| length <= most) && is_address(address)
}

/// Octets with colons or dashes between them, or pairs of them with dots: 6, 8 or 20.
fn is_mac(text: &str) -> bool {
    [(':', 2), ('-', 2), ('.', 4)].into_iter().any(|(between, digits)| {
        let mut parts = text.split(between);
        matches!(text.split(between).count() * digits, 12 | 16 | 40)
            && parts.all(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit()))
    })
}

/// Each of the four dashes may be left out.
fn is_uuid(format: &str, text: &str) -> bool {
    let mut rest = text;
    for (index, digits) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if index > 0 {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
        match rest.split_at_checked(digits) {
            Some((part, tail)) if part.bytes().all(|b| b.is_ascii_hexdigit()) => rest = tail,
            _ => return false,
        }
    }
    let hex: Vec<u8> = text.bytes().filter(|b| *b != b'-').map(|b| b.to_ascii_lowercase()).collect();
    let version = format.strip_prefix("uuid").unwrap_or_default().as_bytes();
    rest.is_empty()
        && (version.is_empty() || version == &hex[12..13])
        && (!matches!(version, b"4" | b"5") || matches!(hex[16], b'8' | b'9' | b'a' | b'b'))
}

/// An absolute URI or an absolute path.
fn is_uri(text: &str) -> bool {
    let scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    };
    !text.bytes().any(|b| b.is_ascii_control())
        && (text == "*" || text.starts_with('/') || text.split_once(':').is_some_and(|(name, _)| scheme(name)))
}

/// `local@domain`, also after a name and in angle brackets.
fn is_email(text: &str) -> bool {
    let address = text.trim().strip_suffix('>').and_then(|named| named.split_once('<')).map_or(text.trim(), |(_, a)| a);
    let atom = |atom: &str| {
        let plain = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c);
        !atom.is_empty() && atom.chars().all(plain)
    };
    let dotted = |part: &str| part.split('.').all(atom);
    let quoted = |part: &str| part.len() > 1 && part.starts_with('"') && part.ends_with('"');
    address.rsplit_once('@').is_some_and(|(local, domain)| (dotted(local) || quoted(local)) && dotted(domain))
}

/// A name on the Internet. Of several labels the last has two characters at least; a single one has no dash but after its
/// first character.
fn is_hostname(text: &str) -> bool {
    let labels: Vec<&str> = text.split('.').collect();
    let plain = |c: char| c.is_ascii_alphanumeric() || (!c.is_ascii() && c.is_alphanumeric());
    let inner = |label: &&str| {
        label.starts_with(plain) && label.ends_with(plain) && label.chars().all(|c| plain(c) || c == '-')
    };
    let shape = match labels[..] {
        [only] => {
            only.starts_with(plain) && {
                let rest = only.strip_prefix(plain).unwrap_or_default();
                rest.strip_prefix('-').unwrap_or(rest).chars().all(plain)
            }
        }
        _ => {
            let last = labels.last().copied().unwrap_or_default();
            labels.iter().all(inner) && last.len() > 1 && !last.contains("--")
        }
    };
    shape && text.len() <= 255 && labels.iter().all(|label| label.len() <= 63)
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()
}

fn is_date_time(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let Some((date, time)) = lower.split_once('t') else { return false };
    let Some((clock, rest)) = time.split_at_checked(8) else { return false };
    let two = |part: &str, most: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit()) && part <= most;
    let colons = |text: &str, most: &[&str]| {
        text.split(':').count() == most.len() && text.split(':').zip(most).all(|(part, most)| two(part, most))
    };
    // Any character may be before the fraction.
    let mut after = rest.chars();
    let zone = match (after.next(), after.as_str().trim_start_matches(|c: char| c.is_ascii_digit())) {
        (Some(_), zone) if zone.len() < after.as_str().len() && !zone.is_empty() && !zone.starts_with(':') => zone,
        _ => rest,
    };
    let offset = zone.strip_prefix(['+', '-']).is_some_and(|offset| colons(offset, &["99", "99"]));
    is_date(date) && colons(clock, &["23", "59", "59"]) && (zone == "z" || offset)
}

/// Go's durations (`1h30m`), and any text that tells of an amount in words (`3 days`).
fn is_duration(text: &str) -> bool {
    is_go_duration(text) || has_amount(text)
}

fn is_go_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    let mut parts = 0;
    while !rest.is_empty() {
        let number = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let unit: usize =
            rest[number..].chars().take_while(|c| !c.is_ascii_digit() && *c != '.').map(char::len_utf8).sum();
        let amount = &rest[..number];
        let written = amount.matches('.').count() < 2 && amount.bytes().any(|b| b.is_ascii_digit());
        if !written || !matches!(&rest[number..number + unit], "ns" | "us" | "µs" | "μs" | "ms" | "s" | "m" | "h") {
            return false;
        }
        parts += 1;
        rest = &rest[number + unit..];
    }
    parts > 0
}

fn has_amount(text: &str) -> bool {
    const EXACT: &[&str] = &["ns", "us", "µs", "ms", "s", "m", "h", "hr", "d", "w"];
    const BEGIN: &[&str] = &["nano", "micro", "milli", "sec", "min", "hour", "day", "week"];
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        rest = rest[at..].trim_start_matches(|c: char| c.is_ascii_digit());
        let word = rest.trim_start();
        let end = word.find(|c: char| !(c.is_ascii_alphabetic() || c == 'µ')).unwrap_or(word.len());
        let unit = word[..end].to_lowercase();
        if EXACT.contains(&unit.as_str()) || BEGIN.iter().any(|begin| unit.starts_with(begin)) {
            return true;
        }
    }
    false
}

fn is_rgb(text: &str) -> bool {
    let inside = text.strip_prefix("rgb(").and_then(|rest| rest.strip_suffix(')'));
    let number = |part: &str| {
        let part = part.trim();
        part.bytes().all(|b| b.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
            && part.parse::<u8>().is_ok()
    };
    inside.is_some_and(|inside| inside.split(',').count() == 3 && inside.split(',').all(number))
}

/// Nine digits; a dash or a space may be after the third and the fifth.
fn is_security_number(text: &str) -> bool {
    let mut rest = text;
    for (index, digits) in [3, 2, 4].into_iter().enumerate() {
        if index > 0 {
            rest = rest.strip_prefix(['-', ' ']).unwrap_or(rest);
        }
        match rest.split_at_checked(digits) {
            Some((part, tail)) if part.bytes().all(|b| b.is_ascii_digit()) => rest = tail,
            _ => return false,
        }
    }
    rest.is_empty()
}

/// The digits of a text without spaces and dashes, if it consists of them; a last `X` is ten if `x` says so.
fn digits(text: &str, x: bool) -> Option<Vec<u32>> {
    let plain: Vec<char> = text.chars().filter(|c| !matches!(c, ' ' | '-')).collect();
    let last = plain.len().checked_sub(1)?;
    let digit = |(at, c): (usize, &char)| if x && at == last && *c == 'X' { Some(10) } else { c.to_digit(10) };
    plain.iter().enumerate().map(digit).collect()
}

fn is_isbn10(text: &str) -> bool {
    digits(text, true).is_some_and(|d| d.len() == 10 && d.iter().zip(1..).map(|(d, at)| d * at).sum::<u32>() % 11 == 0)
}

fn is_isbn13(text: &str) -> bool {
    let weighed = |d: &[u32]| d.iter().zip([1, 3].into_iter().cycle()).map(|(d, weight)| d * weight).sum::<u32>();
    digits(text, false).is_some_and(|d| d.len() == 13 && weighed(&d) % 10 == 0)
}

/// The number of a credit card, by its check digit.
fn is_card(text: &str) -> bool {
    let double = |d: u32| if d > 4 { 2 * d - 9 } else { 2 * d };
    let sum = |d: &[u32]| -> u32 {
        d.iter().rev().enumerate().map(|(at, d)| if at % 2 == 1 { double(*d) } else { *d }).sum()
    };
    digits(text, false).is_some_and(|d| (13..=19).contains(&d.len()) && sum(&d) % 10 == 0)
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
            ("mac", "0123.4567.89ab", "01:23-45:67:89:ab"),
            ("uri", "https://x", "x y"),
            ("uri", "/a b", "a/b"),
            ("ipv4", "010.1.2.3", "1.2.3.256"),
            ("ipv6", "::ffff:1.2.3.4", "::g"),
            ("cidr", "2001:db8::/64", "10.0.0.0/33"),
            ("hostname", "example.com", "a_b.example"),
            ("hostname", "a-b", "my-host"),
            ("hostname", "a.bc", "a.b"),
            ("email", "N <a.b@c>", "a b@c"),
            ("email", "a@b.example", "a@@b"),
            ("byte", "YQ==", ""),
            ("uuid", "f47ac10b58cc4372a5670e02b2c3d479", "f47ac10b-58cc-4372-a567"),
            ("uuid5", "f47ac10b-58cc-5372-a567-0e02b2c3d479", "f47ac10b-58cc-5372-1567-0e02b2c3d479"),
            ("date-time", "2020-01-01t23:59:59.5+02:00", "2020-01-01 00:00:00Z"),
            ("date-time", "2020-01-01T00:00:00-00:00", "2020-01-01T24:00:00Z"),
            ("duration", "1.5h", "1.5.h"),
            ("duration", "in 2 weeks", "2"),
            ("rgbcolor", "rgb(1, 2,255)", "rgb(1,2,256)"),
            ("ssn", "111-22-3333", "111-2-33333"),
            ("isbn10", "0-306-40615-2", "0306406153"),
            ("isbn13", "978-0-306-40615-7", "9780306406158"),
            ("creditcard", "4111 1111 1111 1111", "4111111111111112"),
        ] {
            assert!(matches_format(format, good), "{format} {good}");
            assert!(!matches_format(format, bad), "{format} {bad}");
        }
        assert!(matches_format("nonsense", "x") && !is_known_format("nonsense"));
    }
}
