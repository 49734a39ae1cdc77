//! Regular expressions as Go's `regexp` reads them: its errors, and the same expression for the engine that we have.

use std::fmt::Write as _;

use regex::{Regex, RegexBuilder};

/// Bytes that a compiled expression may take.
const MAX_BYTES: usize = 10 << 20;
/// Most repetitions that a count may ask for.
const MAX_COUNT: usize = 1000;
/// A count's number that is no number any more.
const HUGE: usize = 100_000_000;

/// Compiles an expression; the error is worded as Go words it.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let translated = translate(pattern).map_err(|why| format!("error parsing regexp: {why}"))?;
    RegexBuilder::new(&translated).size_limit(MAX_BYTES).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "error parsing regexp: expression too large".into(),
        other => format!("error parsing regexp: {}", other.to_string().lines().last().unwrap_or_default()),
    })
}

fn refused(what: &str, at: &str) -> String {
    format!("{what}: `{at}`")
}

fn invalid_escape(at: &str) -> String {
    refused("invalid escape sequence", at)
}

struct Parser<'a> {
    whole: &'a str,
    rest: &'a str,
    /// The expression for our engine.
    made: String,
    /// Groups that are open.
    open: usize,
    /// Whether there is something that can be repeated.
    operand: bool,
    /// Where the last repetition began, if nothing came after it.
    repeated: Option<&'a str>,
}

fn translate(pattern: &str) -> Result<String, String> {
    let made = String::with_capacity(pattern.len());
    let mut parser = Parser { whole: pattern, rest: pattern, made, open: 0, operand: false, repeated: None };
    while !parser.rest.is_empty() {
        parser.next()?;
    }
    if parser.open > 0 {
        return Err(refused("missing closing )", pattern));
    }
    Ok(parser.made)
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Result<(), String> {
        let first = self.rest.chars().next().unwrap_or_default();
        if matches!(first, '*' | '+' | '?') {
            return self.repeat(&self.rest[1..]);
        }
        if first == '{'
            && let Some((least, most, after)) = count(self.rest)
        {
            if least > MAX_COUNT || most.is_some_and(|most| most > MAX_COUNT || most < least) {
                return Err(refused("invalid repeat count", &self.rest[..self.rest.len() - after.len()]));
            }
            return self.repeat(after);
        }
        self.repeated = None;
        self.operand = !matches!(first, '(' | '|');
        match first {
            '(' => return self.group(),
            ')' => {
                self.open = self.open.checked_sub(1).ok_or_else(|| refused("unexpected )", self.whole))?;
                self.made.push(')');
            }
            '|' | '^' | '$' | '.' => self.made.push(first),
            '[' => return self.class(),
            '\\' => return self.escaped(),
            _ => self.literal(first),
        }
        self.rest = &self.rest[first.len_utf8()..];
        Ok(())
    }

    fn literal(&mut self, c: char) {
        self.made.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
    }

    fn repeat(&mut self, after: &'a str) -> Result<(), String> {
        let before = self.rest;
        let after = after.strip_prefix('?').unwrap_or(after);
        if let Some(last) = self.repeated {
            return Err(refused("invalid nested repetition operator", &last[..last.len() - after.len()]));
        }
        let taken = &before[..before.len() - after.len()];
        if !self.operand {
            return Err(refused("missing argument to repetition operator", taken));
        }
        self.made.push_str(taken);
        (self.repeated, self.rest) = (Some(before), after);
        Ok(())
    }

    fn group(&mut self) -> Result<(), String> {
        let text = self.rest;
        let Some(inner) = text.strip_prefix("(?") else {
            self.open += 1;
            self.made.push('(');
            self.rest = &text[1..];
            return Ok(());
        };
        if let Some(named) =
            inner.strip_prefix("P<").or_else(|| inner.strip_prefix('<')).filter(|named| !named.is_empty())
        {
            let Some(end) = named.find('>') else { return Err(refused("invalid named capture", text)) };
            let (name, after) = (&named[..end], &named[end + 1..]);
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            let taken = &text[..text.len() - after.len()];
            if name.is_empty() || !name.bytes().all(word) {
                return Err(refused("invalid named capture", taken));
            }
            self.open += 1;
            // Its name is of no use, and need not begin with a letter.
            self.made.push('(');
            self.rest = after;
            return Ok(());
        }
        let (mut negative, mut flag) = (false, false);
        for (at, c) in inner.char_indices() {
            let taken = &text[..2 + at + c.len_utf8()];
            match c {
                'i' | 'm' | 's' | 'U' => flag = true,
                '-' if !negative => (negative, flag) = (true, false),
                ':' | ')' if !negative || flag => {
                    self.open += usize::from(c == ':');
                    // Nothing is set by no flags.
                    self.made.push_str(if taken == "(?)" { "" } else { taken });
                    self.rest = &text[taken.len()..];
                    return Ok(());
                }
                _ => return Err(refused("invalid or unsupported Perl syntax", taken)),
            }
        }
        Err(refused("missing closing )", self.whole))
    }

    fn escaped(&mut self) -> Result<(), String> {
        let text = self.rest;
        let second = text[1..].chars().next();
        match second {
            Some('A' | 'z' | 'B') => self.made.push_str(&text[..2]),
            Some('b') => self.made.push_str("(?-u:\\b)"),
            Some('C') => return Err(invalid_escape("\\C")),
            Some('Q') => {
                let (quoted, after) = text[2..].split_once("\\E").unwrap_or((&text[2..], ""));
                quoted.chars().for_each(|c| self.literal(c));
                self.rest = after;
                return Ok(());
            }
            _ => {
                if let Some((class, after)) = named_class(text)? {
                    let _ = write!(self.made, "[{class}]");
                    self.rest = after;
                } else {
                    let (c, after) = character(text)?;
                    self.literal(c);
                    self.rest = after;
                }
                return Ok(());
            }
        }
        self.rest = &text[2..];
        Ok(())
    }

    fn class(&mut self) -> Result<(), String> {
        let (whole, mut text) = (self.rest, &self.rest[1..]);
        self.made.push('[');
        if let Some(after) = text.strip_prefix('^') {
            self.made.push('^');
            text = after;
        }
        let mut first = true;
        while first || !text.starts_with(']') {
            first = false;
            if text.starts_with("[:")
                && let Some(end) = text.find(":]")
            {
                let name = &text[..end + 2];
                if !POSIX.contains(&name[2..end].trim_start_matches('^')) {
                    return Err(refused("invalid character class range", name));
                }
                self.made.push_str(name);
                text = &text[name.len()..];
                continue;
            }
            if let Some((class, after)) = named_class(text)? {
                let _ = write!(self.made, "[{class}]");
                text = after;
                continue;
            }
            let begun = text;
            let low;
            (low, text) = class_character(text, whole)?;
            let mut high = low;
            if let Some(after) = text.strip_prefix('-').filter(|after| !after.is_empty() && !after.starts_with(']')) {
                (high, text) = class_character(after, whole)?;
                if high < low {
                    let range = &begun[..begun.len() - text.len()];
                    return Err(refused("invalid character class range", range));
                }
            }
            let _ = write!(self.made, "\\x{{{:x}}}-\\x{{{:x}}}", u32::from(low), u32::from(high));
        }
        self.made.push(']');
        self.rest = &text[1..];
        Ok(())
    }
}

/// The classes that have a name in brackets and colons.
const POSIX: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word",
    "xdigit",
];

/// A count in braces: least, most, and what comes after it. What is none is taken as it is written.
fn count(text: &str) -> Option<(usize, Option<usize>, &str)> {
    let number = |text: &str| {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let zero = digits > 1 && text.starts_with('0');
        (digits > 0 && !zero).then(|| (text[..digits].parse().unwrap_or(HUGE), digits))
    };
    let (least, digits) = number(&text[1..])?;
    let text = &text[1 + digits..];
    if let Some(after) = text.strip_prefix('}') {
        return Some((least, Some(least), after));
    }
    let text = text.strip_prefix(',')?;
    if let Some(after) = text.strip_prefix('}') {
        return Some((least, None, after));
    }
    let (most, digits) = number(text)?;
    text[digits..].strip_prefix('}').map(|after| (least, Some(most), after))
}

/// A class with a name (`\d`, `\pL`, `\P{Greek}`) as the inside of one in brackets, and what comes after it.
fn named_class(text: &str) -> Result<Option<(String, &str)>, String> {
    let Some(rest) = text.strip_prefix('\\') else { return Ok(None) };
    let perl = match rest.chars().next() {
        Some('d') => "0-9",
        Some('D') => "^0-9",
        Some('s') => "\\t\\n\\x0C\\r\\x20",
        Some('S') => "^\\t\\n\\x0C\\r\\x20",
        Some('w') => "0-9A-Za-z_",
        Some('W') => "^0-9A-Za-z_",
        Some('p' | 'P') => {
            let bad = |at: &str| refused("invalid character class range", at);
            let Some(name) = rest[1..].chars().next() else { return Ok(None) };
            let length = match name {
                '{' => rest.find('}').ok_or_else(|| bad(text))? + 2,
                name => 2 + name.len_utf8(),
            };
            let class = &text[..length];
            // What has no such name is no class.
            Regex::new(class).map_err(|_| bad(class))?;
            return Ok(Some((class.into(), &text[length..])));
        }
        _ => return Ok(None),
    };
    Ok(Some((perl.into(), &rest[1..])))
}

fn class_character<'a>(text: &'a str, whole: &str) -> Result<(char, &'a str), String> {
    match text.chars().next() {
        None => Err(refused("missing closing ]", whole)),
        Some('\\') => character(text),
        Some(c) => Ok((c, &text[c.len_utf8()..])),
    }
}

/// The character that an escape sequence stands for, and what comes after it.
fn character(text: &str) -> Result<(char, &str), String> {
    let Some(c) = text[1..].chars().next() else {
        return Err(refused("trailing backslash at end of expression", ""));
    };
    let after = &text[1 + c.len_utf8()..];
    let bad = |after: &str| Err(invalid_escape(&text[..text.len() - after.len()]));
    let is_octal = |c: char| ('0'..='7').contains(&c);
    match c {
        '0'..='7' if c == '0' || after.starts_with(is_octal) => {
            let digits = text[1..].chars().take(3).take_while(|c| is_octal(*c)).count();
            let value = u32::from_str_radix(&text[1..1 + digits], 8).ok().and_then(char::from_u32);
            value.map_or_else(|| bad(after), |c| Ok((c, &text[1 + digits..])))
        }
        'x' => {
            let (digits, rest) = match after.strip_prefix('{') {
                Some(inner) => match inner.split_once('}') {
                    Some((digits, rest)) => (digits, rest),
                    None => return bad(""),
                },
                None => match after.get(..2) {
                    Some(digits) => (digits, &after[2..]),
                    None => return bad(""),
                },
            };
            match u32::from_str_radix(digits, 16).ok().and_then(char::from_u32) {
                Some(c) => Ok((c, rest)),
                None => bad(rest),
            }
        }
        'a' => Ok(('\x07', after)),
        'f' => Ok(('\x0c', after)),
        'n' => Ok(('\n', after)),
        'r' => Ok(('\r', after)),
        't' => Ok(('\t', after)),
        'v' => Ok(('\x0b', after)),
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => Ok((c, after)),
        _ => bad(after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_in_gos_words() {
        for (pattern, expected) in [
            ("a**", "invalid nested repetition operator: `**`"),
            ("a*??", "invalid nested repetition operator: `*??`"),
            ("*a", "missing argument to repetition operator: `*`"),
            ("a|*", "missing argument to repetition operator: `*`"),
            ("a{1001}", "invalid repeat count: `{1001}`"),
            ("a{2,1}", "invalid repeat count: `{2,1}`"),
            ("\\1", "invalid escape sequence: `\\1`"),
            ("\\y", "invalid escape sequence: `\\y`"),
            ("(?=a)b", "invalid or unsupported Perl syntax: `(?=`"),
            ("(?!a)b", "invalid or unsupported Perl syntax: `(?!`"),
            ("(?<=a)b", "invalid named capture: `(?<=a)b`"),
            ("(?P<1-x>a)", "invalid named capture: `(?P<1-x>`"),
            ("a\\", "trailing backslash at end of expression: ``"),
            ("a)b", "unexpected ): `a)b`"),
            ("(a", "missing closing ): `(a`"),
            ("x[a", "missing closing ]: `[a`"),
            ("[z-a]", "invalid character class range: `z-a`"),
            ("[[:foo:]]", "invalid character class range: `[:foo:]`"),
            ("\\p{Foo}", "invalid character class range: `\\p{Foo}`"),
        ] {
            assert_eq!(compile(pattern).unwrap_err(), format!("error parsing regexp: {expected}"));
        }
    }

    #[test]
    fn expressions_match_what_gos_match() {
        for (pattern, matching, other) in [
            ("^a{,3}$", "a{,3}", "aaa"),
            ("^{$", "{", "a"),
            ("^[[a]+$", "[a[", "b"),
            ("^[a&&b]+$", "a&b", "c"),
            ("^\\d+$", "12", "٣"),
            ("^\\w\\s$", "a ", "é "),
            ("^\\Qa.b\\E$", "a.b", "axb"),
            ("^\\<\\/\\-$", "</-", "a"),
            ("^(?i)ab$", "aB", "ac"),
            ("^(?P<1>a)\\x41\\101$", "aAA", "a"),
            ("^[^\\d[:upper:]-]$", "a", "-"),
            ("^[]a]$", "]", "b"),
        ] {
            let regex = compile(pattern).unwrap();
            assert!(regex.is_match(matching) && !regex.is_match(other), "{pattern}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_compiled_or_refused(text in "[a-d0-9é(){}\\[\\]\\\\*+?|^$.,:<>=!pPQExdDbUis-]{0,16}") {
            let _ = compile(&text);
        }
    }
}
