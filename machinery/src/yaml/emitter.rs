//! Objects as YAML, byte for byte as Kubernetes' own tools write it: keys in natural order, lists at their key's
//! indentation, plain scalars where a reader would take them for the same string, folded at 80 columns.
//!
//! The rules are those of the YAML 1.1 emitter that Kubernetes uses; what reads as a number, a boolean, a time or null is
//! quoted.

use std::cmp::Ordering;

use serde_json::Value;

/// Column after which a space becomes a line break.
const WIDTH: usize = 80;
/// Spaces per level.
const INDENT: usize = 2;

/// Writes a value, its keys in order, with a line break at the end.
pub fn write(value: &Value) -> Result<String, String> {
    let mut out = Writer { text: String::new(), column: 0 };
    out.node(value, 0, false);
    // Also after an empty line, which a text that ends in line breaks leaves unfinished.
    out.text.push('\n');
    Ok(out.text)
}

struct Writer {
    text: String,
    column: usize,
}

impl Writer {
    fn put(&mut self, text: &str) {
        self.text.push_str(text);
        self.column += text.chars().count();
    }

    fn line(&mut self, indent: usize) {
        self.text.push('\n');
        self.text.extend(std::iter::repeat_n(' ', indent));
        self.column = indent;
    }

    /// Writes what follows a key (`after_key`), a dash or the start of the text. Lines of a container start at `indent`.
    fn node(&mut self, value: &Value, indent: usize, after_key: bool) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                let mut keys: Vec<&String> = map.keys().collect();
                keys.sort_by(|a, b| natural(a, b));
                for (at, key) in keys.into_iter().enumerate() {
                    if at > 0 || after_key {
                        self.line(indent);
                    }
                    self.scalar(key, indent, true);
                    self.put(":");
                    self.value(&map[key], indent);
                }
            }
            Value::Array(items) if !items.is_empty() => {
                for (at, item) in items.iter().enumerate() {
                    if at > 0 || after_key {
                        self.line(indent);
                    }
                    self.put("-");
                    match item {
                        Value::Object(map) if !map.is_empty() => {
                            self.put(" ");
                            self.node(item, indent + INDENT, false);
                        }
                        Value::Array(inner) if !inner.is_empty() => {
                            self.put(" ");
                            self.node(item, indent + INDENT, false);
                        }
                        _ => {
                            self.put(" ");
                            self.leaf(item, indent);
                        }
                    }
                }
            }
            leaf => self.leaf(leaf, indent),
        }
    }

    fn value(&mut self, value: &Value, indent: usize) {
        match value {
            Value::Object(map) if !map.is_empty() => self.node(value, indent + INDENT, true),
            Value::Array(items) if !items.is_empty() => self.node(value, indent, true),
            leaf => {
                self.put(" ");
                self.leaf(leaf, indent);
            }
        }
    }

    fn leaf(&mut self, value: &Value, indent: usize) {
        match value {
            Value::Null => self.put("null"),
            Value::Bool(b) => self.put(if *b { "true" } else { "false" }),
            Value::Number(n) => self.put(&number(n)),
            Value::String(text) => self.scalar(text, indent, false),
            Value::Array(_) => self.put("[]"),
            Value::Object(_) => self.put("{}"),
        }
    }

    fn scalar(&mut self, text: &str, indent: usize, is_key: bool) {
        let shape = Shape::of(text);
        if text.contains('\n') && shape.block && !is_key {
            return self.literal(text, indent + INDENT);
        }
        let plain = !text.contains('\n') && reads_as_string(text);
        match plain {
            true if shape.plain => self.plain(text, indent + INDENT, is_key),
            true if shape.single_quoted => self.single_quoted(text, indent + INDENT, is_key),
            _ => self.double_quoted(text, indent + INDENT, is_key),
        }
    }

    fn plain(&mut self, text: &str, indent: usize, is_key: bool) {
        self.folded(text, indent, is_key, false);
    }

    fn single_quoted(&mut self, text: &str, indent: usize, is_key: bool) {
        self.put("'");
        self.folded(text, indent, is_key, true);
        self.put("'");
    }

    fn folded(&mut self, text: &str, indent: usize, is_key: bool, quoted: bool) {
        let chars: Vec<char> = text.chars().collect();
        let mut spaces = false;
        for (at, c) in chars.iter().enumerate() {
            let next_is_space = chars.get(at + 1) == Some(&' ');
            let inside = !quoted || (at > 0 && at < chars.len() - 1);
            if *c == ' ' && !is_key && !spaces && self.column > WIDTH && inside && !next_is_space {
                self.line(indent);
                spaces = true;
                continue;
            }
            if quoted && *c == '\'' {
                self.put("'");
            }
            self.put(c.encode_utf8(&mut [0; 4]));
            spaces = *c == ' ';
        }
    }

    fn double_quoted(&mut self, text: &str, indent: usize, is_key: bool) {
        self.put("\"");
        let chars: Vec<char> = text.chars().collect();
        let mut spaces = false;
        for (at, c) in chars.iter().enumerate() {
            if !printable(*c) || matches!(c, '"' | '\\' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}') {
                self.put(&escaped(*c));
                spaces = false;
                continue;
            }
            let inside = at > 0 && at < chars.len() - 1;
            if *c == ' ' && !is_key && !spaces && self.column > WIDTH && inside {
                self.line(indent);
                if chars[at + 1] == ' ' {
                    self.put("\\");
                }
                spaces = true;
                continue;
            }
            self.put(c.encode_utf8(&mut [0; 4]));
            spaces = *c == ' ';
        }
        self.put("\"");
    }

    fn literal(&mut self, text: &str, indent: usize) {
        self.put("|");
        if text.starts_with([' ', '\n']) {
            self.put(&INDENT.to_string());
        }
        match text.strip_suffix('\n') {
            None => self.put("-"),
            Some(rest) if rest.is_empty() || rest.ends_with('\n') => self.put("+"),
            Some(_) => {}
        }
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            self.line(if line.is_empty() { 0 } else { indent });
            self.put(line);
        }
    }
}

fn number(n: &serde_json::Number) -> String {
    if n.is_f64() {
        let float = n.as_f64().unwrap_or_default();
        let exponent = if float == 0.0 { 0 } else { float.abs().log10().floor() as i32 };
        if (-4..21).contains(&exponent) {
            return if float.fract() == 0.0 { format!("{float:.0}") } else { float.to_string() };
        }
        let text = format!("{float:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |d| ('-', d));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    n.to_string()
}

/// Natural order of keys: letters after everything else, runs of digits by their value.
fn natural(a: &str, b: &str) -> Ordering {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    for at in 0..a.len().min(b.len()) {
        let (x, y) = (a[at], b[at]);
        if x == y {
            continue;
        }
        match (x.is_alphabetic(), y.is_alphabetic()) {
            (true, true) => return x.cmp(&y),
            (true, false) => return Ordering::Greater,
            (false, true) => return Ordering::Less,
            (false, false) => {}
        }
        let nonzero_before =
            (x == '0' || y == '0') && a[..at].iter().rev().take_while(|c| c.is_ascii_digit()).any(|c| *c != '0');
        let start = i64::from(nonzero_before);
        let value = |chars: &[char]| {
            let digits = chars.iter().take_while(|c| c.is_ascii_digit());
            digits.fold((start, 0), |(n, len), c| {
                let digit = i64::from(u32::from(*c) - u32::from('0'));
                (n.wrapping_mul(10).wrapping_add(digit), len + 1)
            })
        };
        let ((x_value, x_len), (y_value, y_len)) = (value(&a[at..]), value(&b[at..]));
        return x_value.cmp(&y_value).then(x_len.cmp(&y_len)).then(x.cmp(&y));
    }
    a.len().cmp(&b.len())
}

/// Which styles a text allows.
struct Shape {
    plain: bool,
    single_quoted: bool,
    block: bool,
}

impl Shape {
    fn of(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        let mut indicators = text.starts_with("---") || text.starts_with("...");
        let (mut breaks, mut special, mut break_space, mut space_break) = (false, false, false, false);
        let mut before = '\0';
        for (at, c) in chars.iter().enumerate() {
            let next_blank = chars.get(at + 1).is_none_or(|c| matches!(c, ' ' | '\t' | '\n' | '\r'));
            indicators |= match c {
                '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`'
                    if at == 0 =>
                {
                    true
                }
                '?' | ':' | '-' if at == 0 => next_blank,
                ':' => next_blank,
                '#' => matches!(before, ' ' | '\t' | '\n' | '\r'),
                _ => false,
            };
            special |= !printable(*c);
            breaks |= *c == '\n';
            break_space |= *c == ' ' && before == '\n';
            space_break |= *c == '\n' && before == ' ';
            before = *c;
        }
        let (first, last) = (chars.first().copied().unwrap_or('\0'), chars.last().copied().unwrap_or('\0'));
        let edges = matches!(first, ' ' | '\n') || matches!(last, ' ' | '\n');
        let odd = space_break || special;
        Self {
            plain: !edges && !break_space && !odd && !breaks && !indicators,
            single_quoted: !break_space && !odd,
            block: last != ' ' && !odd,
        }
    }
}

fn printable(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..) && c != '\u{feff}'
}

fn escaped(c: char) -> String {
    match c {
        '\0' => "\\0".into(),
        '\u{7}' => "\\a".into(),
        '\u{8}' => "\\b".into(),
        '\t' => "\\t".into(),
        '\n' => "\\n".into(),
        '\u{b}' => "\\v".into(),
        '\u{c}' => "\\f".into(),
        '\r' => "\\r".into(),
        '\u{1b}' => "\\e".into(),
        '"' => "\\\"".into(),
        '\\' => "\\\\".into(),
        '\u{85}' => "\\N".into(),
        '\u{2028}' => "\\L".into(),
        '\u{2029}' => "\\P".into(),
        c if u32::from(c) <= 0xff => format!("\\x{:02X}", u32::from(c)),
        c if u32::from(c) <= 0xffff => format!("\\u{:04X}", u32::from(c)),
        c => format!("\\U{:08X}", u32::from(c)),
    }
}

/// Whether a reader takes the plain text for a string, and not for a number, a boolean, a time, null or a merge.
fn reads_as_string(text: &str) -> bool {
    const WORDS: &[&str] = &[
        "", "~", "null", "Null", "NULL", "<<", "y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON",
        "n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF", ".nan", ".NaN", ".NAN", ".inf",
        ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF",
    ];
    if WORDS.contains(&text) {
        return false;
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return true;
    }
    !(is_time(text) || is_base_60(text) || is_integer(&text.replace('_', "")) || is_float(&text.replace('_', "")))
}

fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let of_base =
        |digits: &str, base| !digits.is_empty() && digits.chars().all(|c| c.is_digit(base)) && digits.len() < 65;
    let prefixed = |short: &str, long: &str, base| {
        digits.strip_prefix(short).or(digits.strip_prefix(long)).is_some_and(|rest| of_base(rest, base))
    };
    if prefixed("0x", "0X", 16) || prefixed("0o", "0O", 8) || prefixed("0b", "0B", 2) {
        return true;
    }
    match digits.strip_prefix('0') {
        Some(rest) if !rest.is_empty() => of_base(rest, 8),
        // What is too long for 64 bits is a float, which is quoted just the same.
        _ => of_base(digits, 10),
    }
}

fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let digits = |t: &str| t.chars().all(|c| c.is_ascii_digit());
    let whole = match mantissa.split_once('.') {
        Some((before, after)) => digits(before) && digits(after) && !(before.is_empty() && after.is_empty()),
        None => !mantissa.is_empty() && digits(mantissa),
    };
    whole
        && exponent.is_none_or(|e| {
            let e = e.strip_prefix(['+', '-']).unwrap_or(e);
            !e.is_empty() && digits(e)
        })
}

/// `12:30:45`, which YAML 1.1 takes for a number of base 60.
fn is_base_60(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut parts = text.split(':');
    let first = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let digits = |t: &str| !t.is_empty() && t.chars().all(|c| c.is_ascii_digit() || c == '_');
    let sixtieth = |t: &str| {
        let t = t.split('.').next().unwrap_or_default();
        matches!(t.len(), 1 | 2) && t.parse::<u8>().is_ok_and(|n| n < 60)
    };
    digits(first)
        && first.starts_with(|c: char| c.is_ascii_digit())
        && !rest.is_empty()
        && rest.into_iter().all(sixtieth)
}

/// A date, alone or with a time of day.
fn is_time(text: &str) -> bool {
    let (date, time) = match text.find(['T', 't', ' ']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let number = |t: &str, len: std::ops::RangeInclusive<usize>, max: u32| {
        len.contains(&t.len()) && t.parse::<u32>().is_ok_and(|n| n <= max) && t.chars().all(|c| c.is_ascii_digit())
    };
    let parts: Vec<&str> = date.split('-').collect();
    let [year, month, day] = parts[..] else { return false };
    if !(number(year, 4..=4, 9999) && number(month, 1..=2, 12) && number(day, 1..=2, 31)) {
        return false;
    }
    let Some(time) = time else { return true };
    let clock = match time.find(['Z', '+', '-']) {
        Some(at) => &time[..at],
        None if text.contains(' ') => time,
        None => return false,
    };
    let whole = clock.split('.').next().unwrap_or_default();
    let parts: Vec<&str> = whole.split(':').collect();
    matches!(parts[..], [h, m, s] if number(h, 1..=2, 23) && number(m, 1..=2, 59) && number(s, 1..=2, 59))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_is_read_again() {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "line1\nline2\n", "n": "1", "e": "", "b": "true",
            "t": "2001-01-01", "s": " x ", "y": "no", "c": "a: b #c", "long": "word ".repeat(60), "d": "---", "u": "ä\u{7}",
            "one": "\n", "two": "a\n\n", "lead": " a\nb", "tab": "a\tb\nc", "trail": "a \nb"},
            "list": [1, 1.5, true, null, {}, [], [[1]], {"a": {"b": "c"}}], "metadata": {"name": "x"}});
        let text = write(&object).unwrap();
        assert!(text.contains("\nmetadata:\n  name: x\n"), "{text}");
        assert!(text.contains("k: |\n    line1\n    line2\n"), "{text}");
        assert_eq!(crate::decode::yaml(text.as_bytes()).unwrap().value, object, "{text}");
    }

    #[test]
    fn scalars() {
        for (value, expected) in [
            ("", "\"\""),
            ("a", "a"),
            ("1", "\"1\""),
            ("1_000", "\"1_000\""),
            ("0x1f", "\"0x1f\""),
            ("1e3", "\"1e3\""),
            (".5", "\".5\""),
            ("1.2.3", "1.2.3"),
            ("10.0.0.1", "10.0.0.1"),
            ("12:30:45", "\"12:30:45\""),
            ("12:99", "12:99"),
            ("2026-11-21T08:16:24Z", "\"2026-11-21T08:16:24Z\""),
            ("2026-11-21", "\"2026-11-21\""),
            ("2026-13-21", "2026-13-21"),
            ("yes", "\"yes\""),
            ("null", "\"null\""),
            ("it's", "it's"),
            ("'x'", "'''x'''"),
            ("a: b", "'a: b'"),
            ("a:b", "a:b"),
            ("a #b", "'a #b'"),
            ("- a", "'- a'"),
            ("-a", "-a"),
            ("*", "'*'"),
            ("{a}", "'{a}'"),
            ("a{b}", "a{b}"),
            (" a", "' a'"),
            ("a\tb", "\"a\\tb\""),
            ("a\nb", "|-\n  a\n  b"),
            ("a\nb\n", "|\n  a\n  b"),
            ("a\n\n", "|+\n  a\n"),
            ("a \nb", "\"a \\nb\""),
        ] {
            let text = write(&json!({"k": value})).unwrap();
            assert_eq!(
                text.strip_prefix("k: ").unwrap().trim_end_matches('\n'),
                expected.trim_end_matches('\n'),
                "{value:?}"
            );
        }
    }

    #[test]
    fn keys_are_in_natural_order_and_lists_at_their_key() {
        let text = write(&json!({"a10": 1, "a2": [{"x": 1, "y": [[1, 2]]}], "b": {}, "-": []})).unwrap();
        assert_eq!(text, "'-': []\na2:\n- x: 1\n  \"y\":\n  - - 1\n    - 2\na10: 1\nb: {}\n");
    }

    #[test]
    fn long_texts_are_folded() {
        let text = write(&json!({"m": format!("{} b's: {}", "a".repeat(80), "c".repeat(90))})).unwrap();
        assert_eq!(text, format!("m: '{}\n  b''s: {}'\n", "a".repeat(80), "c".repeat(90)));
    }
}
