//! Words of an expression.

use super::CompileError;
use super::shown;

/// A word.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Ident(String),
    Int(i64),
    /// A number one beyond the largest: only its negative is one.
    MinInt,
    Uint(u64),
    Double(f64),
    String(String),
    Bytes(Vec<u8>),
    Symbol(&'static str),
    End,
}

const SYMBOLS: [&str; 28] = [
    "==", "!=", "<=", ">=", "&&", "||", ".?", "[?", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", "(", ")", "[",
    "]", "{", "}", ".", ",", "=", ";",
];

/// The words with their byte offsets; the last is [`Token::End`].
pub(super) fn tokens(source: &str) -> Result<Vec<(Token, usize)>, CompileError> {
    let bytes = source.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte.is_ascii_whitespace() {
            at += 1;
        } else if source[at..].starts_with("//") {
            at += source[at..].find('\n').unwrap_or(source.len() - at);
        } else if let Some((token, end)) = quoted(source, at)? {
            out.push((token, at));
            at = end;
        } else if byte.is_ascii_alphabetic() || byte == b'_' {
            let end = bytes[at..].iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_'));
            let end = end.map_or(bytes.len(), |n| at + n);
            out.push((Token::Ident(source[at..end].to_owned()), at));
            at = end;
        } else if byte == b'`' {
            let end = source[at + 1..].find('`').ok_or_else(|| unknown(source, at))?;
            out.push((Token::Ident(source[at + 1..at + 1 + end].to_owned()), at));
            at += end + 2;
        } else if byte.is_ascii_digit() || (byte == b'.' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)) {
            let (token, end) = number(source, at)?;
            out.push((token, at));
            at = end;
        } else {
            let symbol = SYMBOLS.iter().find(|s| source[at..].starts_with(**s)).ok_or_else(|| unknown(source, at))?;
            out.push((Token::Symbol(symbol), at));
            at += symbol.len();
        }
    }
    out.push((Token::End, source.len()));
    Ok(out)
}

fn unknown(source: &str, at: usize) -> CompileError {
    let found = source[at..].chars().next().unwrap_or_default();
    CompileError(shown(source, at, &format!("Syntax error: token recognition error at: '{found}'")))
}

fn number(source: &str, at: usize) -> Result<(Token, usize), CompileError> {
    let bytes = source.as_bytes();
    let invalid = |what: &str| CompileError(shown(source, at, what));
    if source[at..].starts_with("0x") || source[at..].starts_with("0X") {
        let digits = bytes[at + 2..].iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let end = at + 2 + digits;
        let value = u64::from_str_radix(&source[at + 2..end], 16).map_err(|_| invalid("invalid int literal"))?;
        if matches!(bytes.get(end), Some(b'u' | b'U')) {
            return Ok((Token::Uint(value), end + 1));
        }
        return i64::try_from(value).map(|v| (Token::Int(v), end)).map_err(|_| invalid("invalid int literal"));
    }
    let digits = |from: usize| from + bytes[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut end = digits(at);
    let mut whole = true;
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
        end = digits(end + 1);
        whole = false;
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        if bytes.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
            end = digits(end + 1 + sign);
            whole = false;
        }
    }
    let text = &source[at..end];
    if !whole {
        return text.parse().map(|v| (Token::Double(v), end)).map_err(|_| invalid("invalid double literal"));
    }
    let value: u64 = text.parse().map_err(|_| invalid("invalid int literal"))?;
    if matches!(bytes.get(end), Some(b'u' | b'U')) {
        return Ok((Token::Uint(value), end + 1));
    }
    match i64::try_from(value) {
        Ok(value) => Ok((Token::Int(value), end)),
        Err(_) if value == i64::MIN.unsigned_abs() => Ok((Token::MinInt, end)),
        Err(_) => Err(invalid("invalid int literal")),
    }
}

/// A string or bytes literal that begins here, with its end.
fn quoted(source: &str, at: usize) -> Result<Option<(Token, usize)>, CompileError> {
    let rest = &source[at..];
    let prefix = rest.bytes().take_while(|b| matches!(b, b'r' | b'R' | b'b' | b'B')).count();
    if prefix > 2 || !matches!(rest.as_bytes().get(prefix), Some(b'"' | b'\'')) {
        return Ok(None);
    }
    let flags = rest[..prefix].to_ascii_lowercase();
    let (raw, bytes) = (flags.contains('r'), flags.contains('b'));
    let quote = &rest[prefix..=prefix];
    let triple = quote.repeat(3);
    let (delimiter, long) = if rest[prefix..].starts_with(&triple) { (triple.as_str(), true) } else { (quote, false) };
    let start = at + prefix + delimiter.len();
    let open = || CompileError(shown(source, at, &format!("Syntax error: token recognition error at: '{rest}'")));
    let mut end = start;
    loop {
        let left = &source[end..];
        if left.starts_with(delimiter) {
            break;
        }
        let next = left.chars().next().ok_or_else(open)?;
        if next == '\n' && !long {
            return Err(open());
        }
        end += next.len_utf8();
        if next == '\\' && !raw {
            end += source[end..].chars().next().ok_or_else(open)?.len_utf8();
        }
    }
    let body = &source[start..end];
    let content = if raw { body.as_bytes().to_vec() } else { unescape(body, bytes).ok_or_else(open)? };
    let token =
        if bytes { Token::Bytes(content) } else { Token::String(String::from_utf8(content).map_err(|_| open())?) };
    Ok(Some((token, end + delimiter.len())))
}

/// The bytes that a literal's text stands for.
fn unescape(body: &str, bytes: bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(body.len());
    let chars: Vec<char> = body.chars().collect();
    let mut at = 0;
    let push = |out: &mut Vec<u8>, c: char| out.extend(c.encode_utf8(&mut [0; 4]).bytes());
    while at < chars.len() {
        if chars[at] != '\\' {
            push(&mut out, chars[at]);
            at += 1;
            continue;
        }
        let kind = *chars.get(at + 1)?;
        let (digits, radix, skip) = match kind {
            'x' | 'X' => (2, 16, 2),
            'u' => (4, 16, 2),
            'U' => (8, 16, 2),
            '0'..='3' => (3, 8, 1),
            _ => {
                push(&mut out, simple(kind)?);
                at += 2;
                continue;
            }
        };
        let text: String = chars.get(at + skip..at + skip + digits)?.iter().collect();
        let code = u32::from_str_radix(&text, radix).ok()?;
        // In bytes these name a byte, in text a character.
        match u8::try_from(code) {
            Ok(byte) if bytes && digits < 4 => out.push(byte),
            _ => push(&mut out, char::from_u32(code)?),
        }
        at += skip + digits;
    }
    Some(out)
}

fn simple(kind: char) -> Option<char> {
    Some(match kind {
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        '\\' | '"' | '\'' | '`' | '?' => kind,
        _ => return None,
    })
}
