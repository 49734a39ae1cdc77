//! Resource quantities: `500m`, `1Gi`, `1e3`. Kept as billionths in 128 bits, so every suffix of the API fits exactly.

use std::cmp::Ordering;
use std::fmt;

/// Billionths in one.
const ONE: i128 = 1_000_000_000;
/// Largest whole amount that is kept: what the API caps at.
const MAX: i128 = i64::MAX as i128 * ONE;

/// How a quantity was written; kept when it is written again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Powers of ten: m, k, M.
    #[default]
    DecimalSi,
    /// Powers of two: Ki, Mi.
    BinarySi,
    /// Scientific: e3, E6.
    DecimalExponent,
}

/// An amount.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity, as the API says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not of the form.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Form,
    /// The suffix is unknown.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// No digits before a suffix beyond 64 bits.
    #[error("unable to parse numeric part of quantity")]
    Number,
}

const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

impl Quantity {
    /// Reads a quantity. More than nine decimal places are rounded away from zero, amounts beyond 63 bits are capped.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        Self::of(text, &Parts::of(text)?)
    }

    /// A quantity's text as the API gives it back: the canonical form, unless the text itself is taken for it.
    pub fn canonical(text: &str) -> Result<String, QuantityError> {
        let parts = Parts::of(text)?;
        let read = Self::of(text, &parts)?;
        Ok(if parts.are_kept() { text.to_owned() } else { read.to_string() })
    }

    fn of(text: &str, parts: &Parts<'_>) -> Result<Self, QuantityError> {
        if parts.whole.len() + parts.fraction.len() == 0 && !parts.are_few() {
            return Err(QuantityError::Number);
        }
        let magnitude = magnitude(parts.whole, parts.fraction, parts.multiplier);
        Ok(Self { nanos: if text.starts_with('-') { -magnitude } else { magnitude }, format: parts.format })
    }

    /// A whole amount.
    pub fn from_units(units: i64, format: Format) -> Self {
        Self { nanos: i128::from(units) * ONE, format }
    }

    /// A number of thousandths.
    pub fn from_millis(millis: i64) -> Self {
        Self { nanos: i128::from(millis) * (ONE / 1000), format: Format::DecimalSi }
    }

    /// Whole units, rounded away from zero.
    pub fn units(&self) -> i64 {
        saturate(round_up(self.nanos, ONE))
    }

    /// The next whole number of units, away from zero.
    pub fn rounded_up(self) -> Self {
        Self { nanos: round_up(self.nanos, ONE) * ONE, ..self }
    }

    /// Thousandths, rounded away from zero.
    pub fn millis(&self) -> i64 {
        saturate(round_up(self.nanos, ONE / 1000))
    }

    /// The same amount without parts of a thousandth, rounded away from zero.
    pub fn in_millis(self) -> Self {
        Self { nanos: round_up(self.nanos, ONE / 1000) * (ONE / 1000), ..self }
    }

    /// Whether nothing.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether less than nothing.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }
}

impl std::ops::Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: (self.nanos + other.nanos).clamp(-MAX, MAX), format }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + Self { nanos: -other.nanos, format: other.format }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// The canonical form: no fraction, the largest suffix that allows this.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi && self.nanos.abs() >= 1024 * ONE {
            let (mut units, mut power) = (round_up(self.nanos, ONE), 0);
            while units % 1024 == 0 && power < BINARY.len() {
                units /= 1024;
                power += 1;
            }
            return write!(f, "{units}{}", if power == 0 { "" } else { BINARY[power - 1] });
        }
        let (mut number, mut step) = (self.nanos, 0);
        while number % 1000 == 0 && step + 1 < DECIMAL.len() {
            number /= 1000;
            step += 1;
        }
        let (suffix, exponent) = DECIMAL[step];
        match self.format {
            Format::DecimalExponent if exponent != 0 => write!(f, "{number}e{exponent}"),
            _ => write!(f, "{number}{suffix}"),
        }
    }
}

/// What a suffix multiplies by: a power of two or of ten.
#[derive(Clone, Copy)]
enum Multiplier {
    Binary(u32),
    Decimal(i32),
}

/// A quantity's text, taken apart.
struct Parts<'a> {
    /// Digits before the point, without leading zeros.
    whole: &'a str,
    /// Digits behind it.
    fraction: &'a str,
    format: Format,
    multiplier: Multiplier,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Self, QuantityError> {
        let digits = |text: &'a str| text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let (whole, rest) = digits(text.strip_prefix(['+', '-']).unwrap_or(text));
        let (fraction, suffix) = rest.strip_prefix('.').map_or(("", rest), digits);
        let exponent = suffix.trim_start_matches(|c: char| "eEinumkKMGTP".contains(c));
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        if text.is_empty() || !exponent.bytes().all(|b| b.is_ascii_digit()) {
            return Err(QuantityError::Form);
        }
        let (format, multiplier) = suffix_of(suffix)?;
        Ok(Self { whole: whole.trim_start_matches('0'), fraction, format, multiplier })
    }

    /// Whether the digits are so few that the API's library reads them as one 64-bit number.
    fn are_few(&self) -> bool {
        let (whole, fraction) = (self.whole.len().max(1), self.fraction.len());
        match self.multiplier {
            Multiplier::Binary(bits) => fraction == 0 && whole + bits as usize * 3 / 10 <= 14,
            Multiplier::Decimal(exponent) => whole + fraction <= 18 && i64::from(exponent) - fraction as i64 >= -9,
        }
    }

    /// Whether the library takes the text for canonical: `1.125` and `0500m` stay what they are.
    fn are_kept(&self) -> bool {
        let digits = || self.whole.bytes().chain(self.fraction.bytes());
        self.are_few()
            && match self.multiplier {
                Multiplier::Binary(_) => self.whole.parse::<u64>().is_ok_and(|number| number % 8 != 0),
                Multiplier::Decimal(exponent) => {
                    (i64::from(exponent) - self.fraction.len() as i64) % 3 == 0
                        && !self.whole.is_empty()
                        && !digits().rev().take(3).all(|digit| digit == b'0')
                }
            }
    }
}

fn suffix_of(suffix: &str) -> Result<(Format, Multiplier), QuantityError> {
    if let Some(index) = BINARY.iter().position(|s| *s == suffix) {
        return Ok((Format::BinarySi, Multiplier::Binary(10 * (index as u32 + 1))));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::DecimalSi, Multiplier::Decimal(*exponent)));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).and_then(|exponent| exponent.parse().ok());
    exponent.map(|n| (Format::DecimalExponent, Multiplier::Decimal(n))).ok_or(QuantityError::Suffix)
}

/// `whole.fraction` times the multiplier in billionths, rounded up, capped.
fn magnitude(whole: &str, fraction: &str, multiplier: Multiplier) -> i128 {
    // Digits as one number with `scale` decimal places; those far beyond what is kept only matter for rounding up.
    let (mut number, mut scale, mut lost) = (0_i128, 0_i32, false);
    for (digits, decimals) in [(whole, false), (fraction, true)] {
        for digit in digits.bytes().map(|b| i128::from(b - b'0')) {
            if number > MAX && !decimals {
                return MAX;
            }
            if decimals && (number > MAX || scale >= 18) {
                lost |= digit != 0;
                continue;
            }
            number = number * 10 + digit;
            scale += i32::from(decimals);
        }
    }
    if number == 0 {
        return i128::from(lost);
    }
    let exponent = match multiplier {
        Multiplier::Binary(bits) => match number.checked_mul(1 << bits) {
            Some(scaled) => {
                number = scaled;
                9 - scale
            }
            None => return MAX,
        },
        Multiplier::Decimal(exponent) => exponent.saturating_add(9 - scale),
    };
    for _ in 0..exponent.clamp(0, 40) {
        number = number.saturating_mul(10);
    }
    if exponent < 0 {
        let divisor = 10_i128.checked_pow(exponent.unsigned_abs().min(38)).unwrap_or(i128::MAX);
        number = round_up(number, divisor);
    }
    (number + i128::from(lost && exponent <= 0)).min(MAX)
}

fn round_up(number: i128, divisor: i128) -> i128 {
    let (quotient, rest) = (number / divisor, number % divisor);
    quotient + if rest == 0 { 0 } else { rest.signum() }
}

fn saturate(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms() {
        for (text, expected) in [
            ("0", "0"),
            ("1", "1"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("100Mi", "100Mi"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1000", "1k"),
            ("1e3", "1e3"),
            ("10e2", "1e3"),
            ("-250m", "-250m"),
            ("+5", "5"),
            (".5", "500m"),
            ("5.", "5"),
            ("0.0000000001", "1n"),
            ("12E", "9223372036854775807"),
            ("3n", "3n"),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().to_string(), expected, "{text}");
        }
        let (form, suffix, number) = (QuantityError::Form, QuantityError::Suffix, QuantityError::Number);
        for (bad, expected) in [
            ("", form),
            ("1x", form),
            ("1..2", form),
            ("1.5.5", form),
            ("1 Gi", form),
            ("--1", suffix),
            ("1+1.0M", form),
            ("true", form),
            ("1ki", suffix),
            ("1e", suffix),
            ("1Ki5", suffix),
            ("-3.01e-", suffix),
            ("Ei", number),
            ("e-12", number),
        ] {
            assert_eq!(Quantity::parse(bad).unwrap_err(), expected, "{bad}");
        }
    }

    #[test]
    fn texts_taken_for_canonical_are_kept() {
        for (text, expected) in [
            ("1.125", "1.125"),
            ("1.500", "1.500"),
            ("1.000", "1"),
            ("0.125", "125m"),
            ("1.5", "1500m"),
            ("1.024k", "1.024k"),
            ("0500m", "0500m"),
            ("05", "05"),
            ("+5", "+5"),
            ("1E3", "1E3"),
            ("1e+3", "1e+3"),
            ("1e2", "100"),
            ("12E", "12E"),
            ("01Gi", "01Gi"),
            ("08Gi", "8Gi"),
            ("1025Mi", "1025Mi"),
            ("1024Mi", "1Gi"),
            ("00", "0"),
            ("Gi", "0"),
            (".", "0"),
        ] {
            assert_eq!(Quantity::canonical(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn arithmetic() {
        let quantity = |t| Quantity::parse(t).unwrap();
        assert!(quantity("1Gi") > quantity("1G"));
        assert_eq!(quantity("1"), quantity("1000m"));
        assert_eq!((quantity("100m") + quantity("1")).to_string(), "1100m");
        assert_eq!((quantity("1Gi") - quantity("512Mi")).to_string(), "512Mi");
        assert_eq!((quantity("1500m").units(), quantity("1.0001").millis()), (2, 1001));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            if let Ok(quantity) = Quantity::parse(&text) {
                proptest::prop_assert_eq!(Quantity::parse(&quantity.to_string()).unwrap(), quantity);
            }
        }

        #[test]
        fn canonical_form_is_the_same_amount(number in -1_000_000_i64..1_000_000, suffix in "(|m|k|M|G|Ki|Mi|Gi|n|u)") {
            let quantity = Quantity::parse(&format!("{number}{suffix}")).unwrap();
            let again = Quantity::parse(&quantity.to_string()).unwrap();
            proptest::prop_assert_eq!(again, quantity);
            proptest::prop_assert_eq!(again.to_string(), quantity.to_string());
        }
    }
}
