//! Times as Go's `time.Parse` reads them, with its errors: what no date library here tells is which part of the layout
//! a text fails at.

use jiff::SignedDuration;
use jiff::civil::DateTime;

/// How exact a time is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// RFC 3339; parts of a second may be there.
    Seconds,
    /// RFC 3339 with six digits of a second.
    Micros,
}

impl Layout {
    fn text(self) -> &'static str {
        match self {
            Self::Seconds => "2006-01-02T15:04:05Z07:00",
            Self::Micros => "2006-01-02T15:04:05.000000Z07:00",
        }
    }
}

/// Reads a time, and gives it in UTC. Errors are those of `time.Parse`; besides, UTC's year has to be of four digits.
pub fn parse(layout: Layout, text: &str) -> Result<DateTime, String> {
    let mut reader = Reader { layout, text, rest: text.as_bytes() };
    let year = reader.year()?;
    let month = reader.number("-", "01", true, 1..=12, "month")?;
    let day = reader.number("-", "02", true, 0..=99, "day")?;
    let hour = reader.number("T", "15", false, 0..=23, "hour")?;
    let minute = reader.number(":", "04", true, 0..=59, "minute")?;
    let second = reader.number(":", "05", true, 0..=59, "second")?;
    let nanos = reader.fraction()?;
    let offset = reader.offset()?;
    if !reader.rest.is_empty() {
        return Err(reader.outside(&format!("extra text: {}", quoted(reader.rest))));
    }
    let local = DateTime::new(year, month, day, hour, minute, second, nanos);
    let local = local.map_err(|_| reader.outside("day out of range"))?;
    let utc = local.checked_sub(SignedDuration::from_secs(offset)).ok().filter(|utc| utc.year() >= 0);
    utc.ok_or_else(|| reader.outside("year out of range"))
}

struct Reader<'a> {
    layout: Layout,
    text: &'a str,
    /// What was not read yet.
    rest: &'a [u8],
}

impl Reader<'_> {
    fn unread(&self, rest: &[u8], element: &str) -> String {
        let (text, layout) = (quoted(self.text.as_bytes()), self.layout.text());
        format!("parsing time {text} as \"{layout}\": cannot parse {} as \"{element}\"", quoted(rest))
    }

    fn outside(&self, why: &str) -> String {
        format!("parsing time {}: {why}", quoted(self.text.as_bytes()))
    }

    fn year(&mut self) -> Result<i16, String> {
        let digits = self.rest.get(..4).filter(|year| year.iter().all(u8::is_ascii_digit));
        let Some(digits) = digits else { return Err(self.unread(self.rest, "2006")) };
        self.rest = self.rest.get(4..).unwrap_or_default();
        Ok(digits.iter().fold(0, |year, digit| year * 10 + i16::from(digit - b'0')))
    }

    /// What stands between two elements, then a number of two digits; one is enough unless two are asked for.
    fn number(
        &mut self,
        between: &str,
        element: &str,
        two: bool,
        within: std::ops::RangeInclusive<i8>,
        name: &str,
    ) -> Result<i8, String> {
        self.rest = self.rest.strip_prefix(between.as_bytes()).ok_or_else(|| self.unread(self.rest, between))?;
        let (number, rest) = match self.rest {
            [a, b, rest @ ..] if a.is_ascii_digit() && b.is_ascii_digit() => (two_digits(*a, *b), rest),
            [a, rest @ ..] if a.is_ascii_digit() && !two => (two_digits(b'0', *a), rest),
            _ => return Err(self.unread(self.rest, element)),
        };
        self.rest = rest;
        if within.contains(&number) { Ok(number) } else { Err(self.outside(&format!("{name} out of range"))) }
    }

    /// Nanoseconds behind the seconds; a comma will do for the point.
    fn fraction(&mut self) -> Result<i32, String> {
        let digits = match self.rest {
            [b'.' | b',', rest @ ..] => rest.iter().take_while(|digit| digit.is_ascii_digit()).count(),
            _ => 0,
        };
        let taken = match self.layout {
            Layout::Seconds => digits,
            Layout::Micros if digits < 6 => return Err(self.unread(self.rest, ".000000")),
            Layout::Micros => 6,
        };
        if taken == 0 {
            return Ok(0);
        }
        let (read, rest) = self.rest.split_at(1 + taken);
        self.rest = rest;
        let digits = read.iter().skip(1).chain(std::iter::repeat(&b'0')).take(9);
        Ok(digits.fold(0, |nanos, digit| nanos * 10 + i32::from(digit - b'0')))
    }

    /// Seconds east of UTC.
    fn offset(&mut self) -> Result<i64, String> {
        let (sign, hours, minutes, rest) = match self.rest {
            [b'Z', rest @ ..] => (b'+', 0, 0, rest),
            [sign @ (b'+' | b'-'), a, b, b':', c, d, rest @ ..] if [a, b, c, d].iter().all(|x| x.is_ascii_digit()) => {
                (*sign, two_digits(*a, *b), two_digits(*c, *d), rest)
            }
            _ => return Err(self.unread(self.rest, "Z07:00")),
        };
        for (number, most, name) in [(hours, 24, "hour"), (minutes, 60, "minute")] {
            if number > most {
                return Err(self.outside(&format!("time zone offset {name} out of range")));
            }
        }
        self.rest = rest;
        let east = i64::from(hours) * 3600 + i64::from(minutes) * 60;
        Ok(if sign == b'-' { -east } else { east })
    }
}

fn two_digits(tens: u8, ones: u8) -> i8 {
    (tens - b'0') as i8 * 10 + (ones - b'0') as i8
}

/// Between quotation marks; bytes that are no printable ASCII as hexadecimal numbers.
fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for byte in bytes {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(*byte)]),
            b' '..=0x7f => out.push(char::from(*byte)),
            _ => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_utc() {
        for (layout, text, expected) in [
            (Layout::Seconds, "2026-01-02T03:04:05Z", "2026-01-02T03:04:05"),
            (Layout::Seconds, "2026-01-02T03:04:05.6789+01:00", "2026-01-02T02:04:05.6789"),
            (Layout::Seconds, "2026-01-02T3:04:05,5-24:60", "2026-01-03T04:04:05.5"),
            (Layout::Micros, "2026-01-02T03:04:05.000001Z", "2026-01-02T03:04:05.000001"),
        ] {
            assert_eq!(parse(layout, text).map(|time| time.to_string()).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn errors_name_the_part_of_the_layout() {
        for (layout, text, rest, element) in [
            (Layout::Seconds, "", "", "2006"),
            (Layout::Seconds, "20a0-01-01", "20a0-01-01", "2006"),
            (Layout::Seconds, "2020", "", "-"),
            (Layout::Seconds, "2020-1-01T00:00:00Z", "1-01T00:00:00Z", "01"),
            (Layout::Seconds, "2020-01-01", "", "T"),
            (Layout::Seconds, "2020-01-01 00:00:00", " 00:00:00", "T"),
            (Layout::Seconds, "2020-01-01T00:00Z", "Z", ":"),
            (Layout::Seconds, "2020-01-01T00:00:00", "", "Z07:00"),
            (Layout::Seconds, "2020-01-01T00:00:00+0100", "+0100", "Z07:00"),
            (Layout::Micros, "2020-01-01T00:00:00Z", "Z", ".000000"),
            (Layout::Micros, "2020-01-01T00:00:00.123Z", ".123Z", ".000000"),
            (Layout::Micros, "2020-01-01T00:00:00.123456789Z", "789Z", "Z07:00"),
            (Layout::Seconds, "mañana", r"ma\xc3\xb1ana", "2006"),
        ] {
            let text = &quoted(text.as_bytes())[1..].trim_end_matches('"').to_owned();
            let given = if text.contains(r"\x") { "mañana" } else { text };
            let expected =
                format!("parsing time \"{text}\" as \"{}\": cannot parse \"{rest}\" as \"{element}\"", layout.text());
            assert_eq!(parse(layout, given).unwrap_err(), expected);
        }
        for (text, why) in [
            ("2020-13-01T00:00:00Z", "month out of range"),
            ("2020-02-30T00:00:00Z", "day out of range"),
            ("2020-02-00T00:00:00Z", "day out of range"),
            ("2020-02-01T24:00:00Z", "hour out of range"),
            ("2020-02-01T00:60:00Z", "minute out of range"),
            ("2020-02-01T00:00:60Z", "second out of range"),
            ("2020-02-01T00:00:00+25:00", "time zone offset hour out of range"),
            ("2020-02-01T00:00:00Zulu", "extra text: \"ulu\""),
        ] {
            assert_eq!(parse(Layout::Seconds, text).unwrap_err(), format!("parsing time \"{text}\": {why}"));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9TZ:.,é+-]{0,30}", micros: bool) {
            let _ = parse(if micros { Layout::Micros } else { Layout::Seconds }, &text);
        }
    }
}
