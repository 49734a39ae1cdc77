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

const SYMBOLS: [&str; 26] = [
    "==", "!=", "<=", ">=", "&&", "||", ".?", "[?", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", "(", ")", "[",
    "]", "{", "}", ".", ",",
];

/// An expression in words.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// With their byte offsets; the last is [`Token::End`].
    pub tokens: Vec<(Token, usize)>,
    /// What is no word, with its byte offset, as upstream's library tells it. The parser goes on behind it.
    pub unknown: Vec<(usize, String)>,
}

impl Words {
    /// Skips what is no word: from `at` to the character at which that was found out. Gives where to go on.
    fn skip(&mut self, source: &str, at: usize, end: usize) -> usize {
        let message = format!("Syntax error: token recognition error at: '{}'", &source[at..end]);
        self.unknown.push((at, shown(source, at, &message)));
        end
    }
}

/// Where the character behind the one at an offset begins.
fn behind(source: &str, at: usize) -> usize {
    source[at..].chars().next().map_or(source.len(), |c| at + c.len_utf8())
}

/// The words of an expression.
pub(super) fn tokens(source: &str) -> Result<Words, CompileError> {
    let bytes = source.as_bytes();
    let mut words = Words::default();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte.is_ascii_whitespace() {
            at += 1;
        } else if source[at..].starts_with("//") {
            at += source[at..].find('\n').unwrap_or(source.len() - at);
        } else if let Some(found) = quoted(source, at)? {
            at = match found {
                Ok((token, end)) => {
                    words.tokens.push((token, at));
                    end
                }
                Err(end) => words.skip(source, at, end),
            };
        } else if byte.is_ascii_alphabetic() || byte == b'_' {
            let end = bytes[at..].iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_'));
            let end = end.map_or(bytes.len(), |n| at + n);
            words.tokens.push((Token::Ident(source[at..end].to_owned()), at));
            at = end;
        } else if byte == b'`' {
            let Some(end) = source[at + 1..].find('`') else {
                at = words.skip(source, at, source.len());
                continue;
            };
            words.tokens.push((Token::Ident(source[at + 1..at + 1 + end].to_owned()), at));
            at += end + 2;
        } else if byte.is_ascii_digit() || (byte == b'.' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)) {
            let (token, end) = number(source, at)?;
            words.tokens.push((token, at));
            at = end;
        } else if let Some(symbol) = SYMBOLS.iter().find(|s| source[at..].starts_with(**s)) {
            words.tokens.push((Token::Symbol(symbol), at));
            at += symbol.len();
        } else {
            // What begins a longer symbol is found to be none by what follows.
            let begun = matches!(byte, b'=' | b'&' | b'|') && at + 1 < source.len();
            let end = behind(source, at);
            at = words.skip(source, at, if begun { behind(source, end) } else { end });
        }
    }
    words.tokens.push((Token::End, source.len()));
    Ok(words)
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
        let value: Option<f64> = text.parse().ok().filter(|v: &f64| v.is_finite());
        return value.map(|v| (Token::Double(v), end)).ok_or_else(|| invalid("invalid double literal"));
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

/// A word with its end; or where it is found that there is none.
type Found = Result<(Token, usize), usize>;

/// A string or bytes literal that begins here.
fn quoted(source: &str, at: usize) -> Result<Option<Found>, CompileError> {
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
    let end = match body_end(source, start, delimiter, raw, long) {
        Ok(end) => end,
        // Upstream's scanner goes back to the longest word that it has seen: an empty text, or the prefix as a name.
        Err(_) if long => {
            let empty = if bytes { Token::Bytes(Vec::new()) } else { Token::String(String::new()) };
            return Ok(Some(Ok((empty, at + prefix + 2))));
        }
        Err(_) if prefix > 0 => return Ok(Some(Ok((Token::Ident(rest[..prefix].to_owned()), at + prefix)))),
        Err(end) => return Ok(Some(Err(end))),
    };
    let invalid = || CompileError(shown(source, at, "Syntax error: invalid string literal"));
    let body = &source[start..end];
    let content = if raw { body.as_bytes().to_vec() } else { unescape(body, bytes).ok_or_else(invalid)? };
    let token =
        if bytes { Token::Bytes(content) } else { Token::String(String::from_utf8(content).map_err(|_| invalid())?) };
    Ok(Some(Ok((token, end + delimiter.len()))))
}

/// Where the delimiter of a literal is whose text begins at `start`; or the end of the character that cannot be in it.
fn body_end(source: &str, start: usize, delimiter: &str, raw: bool, long: bool) -> Result<usize, usize> {
    let mut end = start;
    loop {
        let left = &source[end..];
        if left.starts_with(delimiter) {
            return Ok(end);
        }
        end = match left.chars().next() {
            None => return Err(source.len()),
            Some('\n' | '\r') if !long => return Err(end + 1),
            Some('\\') if !raw => escape_end(source, end + 1)?,
            Some(next) => end + next.len_utf8(),
        };
    }
}

/// The end of an escape whose backslash is before `at`; or that of the character that does not belong in it.
fn escape_end(source: &str, at: usize) -> Result<usize, usize> {
    let mut left = source[at..].chars();
    let (digits, radix): (usize, u32) = match left.next() {
        Some('x' | 'X') => (2, 16),
        Some('u') => (4, 16),
        Some('U') => (8, 16),
        Some('0'..='3') => (2, 8),
        Some(kind) if simple(kind).is_some() => (0, 16),
        _ => return Err(behind(source, at)),
    };
    match left.take(digits).position(|c| !c.is_digit(radix)) {
        Some(wrong) => Err(behind(source, at + 1 + wrong)),
        None if source.len() < at + 1 + digits => Err(source.len()),
        None => Ok(at + 1 + digits),
    }
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
