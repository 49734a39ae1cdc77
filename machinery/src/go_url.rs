//! URLs as Go's `net/url` reads them, with its words for what cannot be read: messages of the API repeat them.

/// What the API asks of a URL.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Url {
    /// In lower case; "" if there is none.
    pub scheme: String,
    /// Name and password, as they are written in a URL; none if there is no `@`.
    pub user: Option<String>,
    /// Host with port.
    pub host: String,
    /// What stands behind `?`.
    pub query: String,
    /// What stands behind `#`.
    pub fragment: String,
}

/// The parts of a URL in which other characters may stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Host,
    Zone,
    Other,
}

/// Reads a URL that may be relative.
pub fn parse(text: &str) -> Result<Url, String> {
    let (whole, fragment) = text.split_once('#').unwrap_or((text, ""));
    let told = |of: &str, why: String| format!("parse {}: {why}", quoted(of));
    let mut url = read(whole, false).map_err(|why| told(whole, why))?;
    url.fragment = unescape(fragment, Part::Other).map_err(|why| told(text, why))?;
    Ok(url)
}

/// Reads a URL as it stands in a request: with a path or a scheme, and without a fragment.
pub fn parse_request(text: &str) -> Result<Url, String> {
    read(text, true).map_err(|why| format!("parse {}: {why}", quoted(text)))
}

fn read(text: &str, of_request: bool) -> Result<Url, String> {
    if text.bytes().any(|b| b < b' ' || b == 0x7f) {
        return Err("net/url: invalid control character in URL".into());
    }
    if text.is_empty() && of_request {
        return Err("empty url".into());
    }
    let mut url = Url::default();
    if text == "*" {
        return Ok(url);
    }
    let (scheme, rest) = scheme(text)?;
    url.scheme = scheme.to_ascii_lowercase();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    url.query = query.to_owned();
    if !rest.starts_with('/') {
        return match rest.split('/').next() {
            _ if !url.scheme.is_empty() => Ok(url),
            _ if of_request => Err("invalid URI for request".into()),
            Some(segment) if segment.contains(':') => Err("first path segment in URL cannot contain colon".into()),
            _ => unescape(rest, Part::Other).map(|_| url),
        };
    }
    let far = !url.scheme.is_empty() || (!of_request && !rest.starts_with("///"));
    let path = match rest.strip_prefix("//").filter(|_| far) {
        Some(rest) => {
            let end = rest.find('/').unwrap_or(rest.len());
            authority(&rest[..end], &mut url)?;
            &rest[end..]
        }
        None => rest,
    };
    unescape(path, Part::Other).map(|_| url)
}

fn scheme(text: &str) -> Result<(&str, &str), String> {
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if index > 0 => {}
            b':' if index == 0 => return Err("missing protocol scheme".into()),
            b':' => return Ok((&text[..index], &text[index + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

fn authority(text: &str, url: &mut Url) -> Result<(), String> {
    let Some((user, of_host)) = text.rsplit_once('@') else {
        url.host = host(text)?;
        return Ok(());
    };
    url.host = host(of_host)?;
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&b);
    if !user.bytes().all(allowed) {
        return Err("net/url: invalid userinfo".into());
    }
    let part = |part: &str| Ok::<_, String>(escape(&unescape(part, Part::Other)?));
    url.user = Some(match user.split_once(':') {
        Some((name, password)) => format!("{}:{}", part(name)?, part(password)?),
        None => part(user)?,
    });
    Ok(())
}

fn host(text: &str) -> Result<String, String> {
    let port = |port: &str| {
        let good = port.is_empty() || port.strip_prefix(':').is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
        if good { Ok(()) } else { Err(format!("invalid port {port:?} after host")) }
    };
    if text.starts_with('[') {
        let end = text.rfind(']').ok_or("missing ']' in host")?;
        port(&text[end + 1..])?;
        if let Some(zone) = text[..end].find("%25") {
            let address = unescape(&text[..zone], Part::Host)?;
            let zone = unescape(&text[zone..end], Part::Zone)?;
            return Ok(address + &zone + &unescape(&text[end..], Part::Host)?);
        }
    } else if let Some(colon) = text.rfind(':') {
        port(&text[colon..])?;
    }
    unescape(text, Part::Host)
}

/// A part of a URL without its escapes.
fn unescape(text: &str, part: Part) -> Result<String, String> {
    let (bytes, mut out) = (text.as_bytes(), Vec::with_capacity(text.len()));
    let mut at = 0;
    while let Some(byte) = bytes.get(at).copied() {
        if byte != b'%' {
            if part != Part::Other && byte.is_ascii() && !stands_in_host(byte) {
                return Err(format!("invalid character {:?} in host name", char::from(byte).to_string()));
            }
            out.push(byte);
            at += 1;
            continue;
        }
        let digits = bytes.get(at + 1..at + 3).and_then(|two| std::str::from_utf8(two).ok());
        let code = digits.filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()));
        let code = code.and_then(|two| u8::from_str_radix(two, 16).ok());
        let shown = || String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 3)]).into_owned();
        match code {
            // A host name has escapes for what is no ASCII only.
            Some(code) if part == Part::Host && code.is_ascii() && code != b'%' => return Err(bad_escape(&shown())),
            Some(code)
                if part == Part::Zone && code.is_ascii() && !matches!(code, b'%' | b' ') && !stands_in_host(code) =>
            {
                return Err(bad_escape(&shown()));
            }
            Some(code) => out.push(code),
            None => return Err(bad_escape(&shown())),
        }
        at += 3;
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

fn bad_escape(shown: &str) -> String {
    format!("invalid URL escape {shown:?}")
}

fn stands_in_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]<>\"".contains(&byte)
}

/// A text as Go's `%q` shows it.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_ascii_control() && !matches!(c, '\n' | '\r' | '\t') => {
                out.push_str(&format!("\\x{:02x}", u32::from(c)));
            }
            '\'' => out.push(c),
            other => out.extend(other.escape_debug()),
        }
    }
    out.push('"');
    out
}

/// A name or password as it is written in a URL.
fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b if b.is_ascii_alphanumeric() || b"-_.~$&+,;=".contains(&b) => out.push(char::from(b)),
            other => out.push_str(&format!("%{other:02X}")),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row: a URL with its scheme, user, host, query and fragment.
    #[test]
    fn urls_have_parts() {
        for (text, [scheme, user, host, query, fragment]) in [
            ("", ["", "-", "", "", ""]),
            ("HTTPS://h:1/p?q=1#f", ["https", "-", "h:1", "q=1", "f"]),
            ("https://u:p!@h", ["https", "u:p%21", "h", "", ""]),
            ("https:opaque", ["https", "-", "", "", ""]),
            ("arg#back?w/port:h//:s", ["", "-", "", "", "back?w/port:h//:s"]),
            ("https://[fe80::1%25en0]:80/", ["https", "-", "[fe80::1%en0]:80", "", ""]),
            ("https://h?", ["https", "-", "h", "", ""]),
            ("*", ["", "-", "", "", ""]),
        ] {
            let url = parse(text).unwrap();
            let got = [&url.scheme, url.user.as_deref().unwrap_or("-"), &url.host, &url.query, &url.fragment];
            assert_eq!(got, [scheme, user, host, query, fragment], "{text}");
        }
    }

    #[test]
    fn what_is_no_url_is_told_in_gos_words() {
        for (text, why) in [
            ("https://a b", r#"parse "https://a b": invalid character " " in host name"#),
            ("https://a:xx#f", r#"parse "https://a:xx": invalid port ":xx" after host"#),
            ("https://[::1", r#"parse "https://[::1": missing ']' in host"#),
            ("https://a%zz", r#"parse "https://a%zz": invalid URL escape "%zz""#),
            ("https://a%41", r#"parse "https://a%41": invalid URL escape "%41""#),
            ("https://a/%4", r#"parse "https://a/%4": invalid URL escape "%4""#),
            ("https://u p@a", r#"parse "https://u p@a": net/url: invalid userinfo"#),
            ("://a", r#"parse "://a": missing protocol scheme"#),
            ("1https://a", r#"parse "1https://a": first path segment in URL cannot contain colon"#),
            ("a\u{7f}\u{7}'\"", r#"parse "a\x7f\a'\"": net/url: invalid control character in URL"#),
        ] {
            assert_eq!(parse(text).unwrap_err(), why, "{text}");
        }
        assert_eq!(parse_request("a").unwrap_err(), r#"parse "a": invalid URI for request"#);
        assert_eq!(parse_request("https://h").map(|url| url.host).as_deref(), Ok("h"));
    }
}
