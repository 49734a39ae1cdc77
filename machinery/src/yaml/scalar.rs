//! What a scalar means.

use std::sync::LazyLock;

use regex::Regex;

use crate::base64_text::{self, Form};

/// A scalar's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// Nothing.
    Null,
    /// true or false.
    Bool(bool),
    /// A whole number: of 64 bits, with a sign or without.
    Int(i128),
    /// Any other number, also those that are none.
    Float(f64),
    /// Text.
    Text(String),
}

/// Words that are no texts.
const WORDS: &[(&[&str], Scalar)] = &[
    (&["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"], Scalar::Bool(true)),
    (&["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"], Scalar::Bool(false)),
    (&["", "~", "null", "Null", "NULL"], Scalar::Null),
    (&[".nan", ".NaN", ".NAN"], Scalar::Float(f64::NAN)),
    (&[".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"], Scalar::Float(f64::INFINITY)),
    (&["-.inf", "-.Inf", "-.INF"], Scalar::Float(f64::NEG_INFINITY)),
];
/// Before the names of the language's own types.
const OWN_TAGS: &str = "tag:yaml.org,2002:";

static FLOAT: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$").ok());

impl Scalar {
    /// A scalar without quotes, or with a tag.
    pub fn resolve(tag: Option<&str>, text: &str) -> Result<Self, String> {
        let own = tag.map(|tag| tag.strip_prefix(OWN_TAGS));
        match own {
            None => Ok(Self::plain(text)),
            Some(Some("binary")) => {
                let bytes = base64_text::decode(Form::Standard, text.as_bytes());
                let bytes = bytes.map_err(|_| "yaml: !!binary value contains invalid base64 data")?;
                Ok(Self::Text(String::from_utf8_lossy(&bytes).into_owned()))
            }
            Some(Some(wanted @ ("bool" | "int" | "float" | "null"))) => {
                let value = Self::plain(text);
                match (wanted, &value) {
                    ("float", Self::Int(number)) => Ok(Self::Float(*number as f64)),
                    _ if value.name() == wanted => Ok(value),
                    _ => Err(format!("yaml: cannot decode !!{} `{text}` as a !!{wanted}", value.name())),
                }
            }
            Some(_) => Ok(Self::Text(text.to_owned())),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Text(_) => "str",
        }
    }

    fn plain(text: &str) -> Self {
        if let Some((_, value)) = WORDS.iter().find(|(words, _)| words.contains(&text)) {
            return value.clone();
        }
        let number = match text.as_bytes().first() {
            Some(b'.') => text.parse().ok().filter(|_| is_float(text)).map(Self::Float),
            Some(b'0'..=b'9' | b'+' | b'-') => {
                let plain = text.replace('_', "");
                let float = || plain.parse().ok().filter(|float: &f64| is_float(&plain) && float.is_finite());
                whole(&plain).map(Self::Int).or_else(|| float().map(Self::Float))
            }
            _ => None,
        };
        number.unwrap_or_else(|| Self::Text(text.to_owned()))
    }
}

fn is_float(text: &str) -> bool {
    FLOAT.as_ref().is_some_and(|form| form.is_match(text))
}

/// A whole number in the base that its prefix says; `0` alone stands for eight.
fn whole(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (base, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.bytes().all(|digit| digit.is_ascii_alphanumeric()) {
        return None;
    }
    let number = i128::from(u64::from_str_radix(digits, base).ok()?);
    let signed = text.starts_with(['-', '+']);
    let number = if negative { -number } else { number };
    (!signed || i64::try_from(number).is_ok()).then_some(number)
}
