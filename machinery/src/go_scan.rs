//! Errors in JSON as the scanner of Go's `encoding/json` tells of them.

use std::fmt::Write as _;

/// What the scanner waits for.
#[derive(Clone, Copy)]
enum Step {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    EndOfValue,
    Text,
    Escape,
    /// So many hexadecimal digits.
    Hexadecimal(u8),
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    /// The rest of a word after its first so many characters.
    Word(&'static str, usize),
}

/// In what a value is.
#[derive(Clone, Copy)]
enum Within {
    Key,
    Field,
    List,
}

struct Scanner {
    step: Step,
    within: Vec<Within>,
}

/// What is wrong with a text as JSON; nothing if it is JSON.
pub fn syntax_error(text: &[u8]) -> Option<String> {
    let mut scanner = Scanner { step: Step::Value, within: Vec::new() };
    // A word or number ends with the text as if there was a blank.
    for byte in text.iter().copied().chain([b' ']) {
        if let Err(place) = scanner.next(byte) {
            return Some(format!("invalid character {} {place}", quoted(byte)));
        }
    }
    let ended = matches!(scanner.step, Step::EndOfValue) && scanner.within.is_empty();
    (!ended).then(|| "unexpected end of JSON input".into())
}

impl Scanner {
    fn next(&mut self, byte: u8) -> Result<(), String> {
        self.step = match (self.step, byte) {
            (
                Step::Value | Step::ValueOrEnd | Step::Key | Step::KeyOrEnd | Step::EndOfValue,
                b' ' | b'\t' | b'\r' | b'\n',
            ) => self.step,
            (Step::Value | Step::ValueOrEnd, _) => return self.begin(byte),
            (Step::KeyOrEnd, b'}') | (Step::EndOfValue, _) => return self.end(byte),
            (Step::Key | Step::KeyOrEnd, b'"') => Step::Text,
            (Step::Key | Step::KeyOrEnd, _) => return Err("looking for beginning of object key string".into()),
            (Step::Text, b'"') => Step::EndOfValue,
            (Step::Text, b'\\') => Step::Escape,
            (Step::Text, 0..0x20) => return Err("in string literal".into()),
            (Step::Text, _) | (Step::Escape, b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"') => Step::Text,
            (Step::Escape, b'u') => Step::Hexadecimal(4),
            (Step::Escape, _) => return Err("in string escape code".into()),
            (Step::Hexadecimal(left), _) if byte.is_ascii_hexdigit() => {
                if left > 1 {
                    Step::Hexadecimal(left - 1)
                } else {
                    Step::Text
                }
            }
            (Step::Hexadecimal(_), _) => return Err("in \\u hexadecimal character escape".into()),
            (Step::Word(word, at), _) if word.as_bytes()[at] == byte => {
                if at + 1 < word.len() {
                    Step::Word(word, at + 1)
                } else {
                    Step::EndOfValue
                }
            }
            (Step::Word(word, at), _) => {
                let expected = char::from(word.as_bytes()[at]);
                return Err(format!("in literal {word} (expecting {expected:?})"));
            }
            _ => return self.number(byte),
        };
        Ok(())
    }

    fn begin(&mut self, byte: u8) -> Result<(), String> {
        self.step = match (self.step, byte) {
            (Step::ValueOrEnd, b']') => return self.end(byte),
            (_, b'{') => {
                self.within.push(Within::Key);
                Step::KeyOrEnd
            }
            (_, b'[') => {
                self.within.push(Within::List);
                Step::ValueOrEnd
            }
            (_, b'"') => Step::Text,
            (_, b'-') => Step::Minus,
            (_, b'0') => Step::Zero,
            (_, b'1'..=b'9') => Step::Digits,
            (_, b't') => Step::Word("true", 1),
            (_, b'f') => Step::Word("false", 1),
            (_, b'n') => Step::Word("null", 1),
            _ => return Err("looking for beginning of value".into()),
        };
        Ok(())
    }

    /// After a value, or at the end of an empty list or object.
    fn end(&mut self, byte: u8) -> Result<(), String> {
        let empty = !matches!(self.step, Step::EndOfValue);
        let within = self.within.pop();
        self.step = match (within, byte) {
            (Some(Within::Key), b'}') if empty => Step::EndOfValue,
            (Some(Within::Key), b':') => {
                self.within.push(Within::Field);
                Step::Value
            }
            (Some(Within::Field), b',') => {
                self.within.push(Within::Key);
                Step::Key
            }
            (Some(Within::List), b',') => {
                self.within.push(Within::List);
                Step::Value
            }
            (Some(Within::Field), b'}') | (Some(Within::List), b']') => Step::EndOfValue,
            (None, _) => return Err("after top-level value".into()),
            (Some(Within::Key), _) => return Err("after object key".into()),
            (Some(Within::Field), _) => return Err("after object key:value pair".into()),
            (Some(Within::List), _) => return Err("after array element".into()),
        };
        Ok(())
    }

    fn number(&mut self, byte: u8) -> Result<(), String> {
        let digit = byte.is_ascii_digit();
        self.step = match (self.step, byte) {
            (Step::Minus, b'0') => Step::Zero,
            (Step::Minus | Step::Digits, _) if digit => Step::Digits,
            (Step::Minus, _) => return Err("in numeric literal".into()),
            (Step::Zero | Step::Digits, b'.') => Step::Point,
            (Step::Point | Step::Fraction, _) if digit => Step::Fraction,
            (Step::Point, _) => return Err("after decimal point in numeric literal".into()),
            (Step::Zero | Step::Digits | Step::Fraction, b'e' | b'E') => Step::Exponent,
            (Step::Exponent, b'+' | b'-') => Step::ExponentSign,
            (Step::Exponent | Step::ExponentSign | Step::ExponentDigits, _) if digit => Step::ExponentDigits,
            (Step::Exponent | Step::ExponentSign, _) => return Err("in exponent of numeric literal".into()),
            _ => {
                self.step = Step::EndOfValue;
                return self.next(byte);
            }
        };
        Ok(())
    }
}

/// A byte as Go quotes it: as the character of that number.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => "'\\''".into(),
        0x07 => "'\\a'".into(),
        0x08 => "'\\b'".into(),
        0x0b => "'\\v'".into(),
        0x0c => "'\\f'".into(),
        b'\\' | b'\n' | b'\r' | b'\t' => format!("{:?}", char::from(byte)),
        0..0x20 | 0x7f => format!("'\\x{byte:02x}'"),
        0x80..=0xa0 | 0xad => format!("'\\u{byte:04x}'"),
        _ => format!("'{}'", char::from(byte)),
    }
}

/// JSON in which what is no text (bytes that are not UTF-8, halves of pairs) is replaced, as Go does.
pub fn replaced(json: &[u8]) -> String {
    let mut text = String::with_capacity(json.len());
    for chunk in json.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    let (mut whole, mut rest) = (String::with_capacity(text.len()), text.as_str());
    while let Some(at) = rest.find('\\') {
        whole.push_str(&rest[..at]);
        rest = &rest[at..];
        let unit = |text: &str| {
            text.strip_prefix("\\u").and_then(|t| t.get(..4)).and_then(|t| u32::from_str_radix(t, 16).ok())
        };
        let taken = match (unit(rest), rest.get(6..).and_then(unit)) {
            (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => 12,
            (Some(0xd800..0xe000), _) => {
                let _ = write!(whole, "{}", char::REPLACEMENT_CHARACTER);
                rest = &rest[6..];
                continue;
            }
            _ => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        whole.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    whole + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_in_gos_words() {
        for (text, expected) in [
            ("", "unexpected end of JSON input"),
            (r#"{"a":1"#, "unexpected end of JSON input"),
            (r#"{"a":1} x"#, "invalid character 'x' after top-level value"),
            (r#"{"a":1}{}"#, "invalid character '{' after top-level value"),
            ("{\"a\":\"b\nc\"}", "invalid character '\\n' in string literal"),
            ("\"\u{1}\"", "invalid character '\\x01' in string literal"),
            (r#""\x""#, "invalid character 'x' in string escape code"),
            (r#""\u12g4""#, "invalid character 'g' in \\u hexadecimal character escape"),
            (r#"{"a":01}"#, "invalid character '1' after object key:value pair"),
            (r#"{"a":1,}"#, "invalid character '}' looking for beginning of object key string"),
            ("{'a':1}", "invalid character '\\'' looking for beginning of object key string"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("[1 2]", "invalid character '2' after array element"),
            (r#"{"a" 1}"#, "invalid character '1' after object key"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1e+", "invalid character ' ' in exponent of numeric literal"),
            ("tru", "invalid character ' ' in literal true (expecting 'e')"),
            ("\u{feff}{}", "invalid character 'ï' looking for beginning of value"),
        ] {
            assert_eq!(syntax_error(text.as_bytes()).as_deref(), Some(expected), "{text}");
        }
        for text in ["{}", " [ ] ", r#"{"a":[1,-0.5e3,{"b":null}],"c":"\ud800é\\"}"#, "0"] {
            assert_eq!(syntax_error(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        assert_eq!(
            replaced(b"\"\xff\xfe\\ud800x\\ud83d\\ude00\\\\ud800\""),
            "\"\u{fffd}\u{fffd}\u{fffd}x\\ud83d\\ude00\\\\ud800\""
        );
    }

    proptest::proptest! {
        /// What serde reads has no error, and what has none is read once it is made text.
        #[test]
        fn the_scanner_agrees_with_the_parser(text in "[\\[\\]{}\",:\\\\u0-9eE+.tfnrualse -]{0,12}") {
            let read = serde_json::from_str::<serde_json::Value>(&text).is_ok();
            let error = syntax_error(text.as_bytes());
            proptest::prop_assert!(!read || error.is_none(), "{}", text);
            let whole = replaced(text.as_bytes());
            let again = serde_json::from_str::<serde_json::Value>(&whole);
            let huge = again.as_ref().is_err_and(|e| e.to_string().contains("out of range"));
            proptest::prop_assert!(error.is_some() || again.is_ok() || huge, "{} {:?}", text, again);
        }
    }
}
