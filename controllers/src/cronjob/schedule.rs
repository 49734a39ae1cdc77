//! Cron schedules: five fields, names of months and days, steps and ranges, `@daily` and the like, and `@every 1h30m`.

use k8s_openapi::jiff::civil::{Date, DateTime};
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

/// How far ahead a next time is looked for: beyond every leap year that is left out.
const HORIZON_YEARS: i64 = 9;
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const SHORTHANDS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// A field: a bit for each value, and whether it is a bare `*` or `?`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    bits: u64,
    any: bool,
}

impl Field {
    fn has(self, value: i64) -> bool {
        u32::try_from(value).is_ok_and(|v| v < 64 && self.bits >> v & 1 == 1)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    Fields { minute: Field, hour: Field, day: Field, month: Field, weekday: Field },
    Every(SignedDuration),
}

/// A schedule in its time zone.
#[derive(Clone, Debug)]
pub struct Schedule {
    rule: Rule,
    zone: TimeZone,
}

fn number(text: &str, names: &[&str], first: u64) -> Option<u64> {
    let named = names.iter().position(|n| text.eq_ignore_ascii_case(n)).map(|i| i as u64 + first);
    named.or_else(|| text.parse().ok())
}

fn field(text: &str, low: u64, high: u64, names: &[&str]) -> Option<Field> {
    let (mut bits, mut any) = (0_u64, false);
    for part in text.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
        let step: u64 = step.map_or(Some(1), |s| s.parse().ok()).filter(|s| *s > 0)?;
        let (from, to) = match range {
            "*" | "?" => {
                any |= step == 1;
                (low, high)
            }
            _ => match range.split_once('-') {
                Some((a, b)) => (number(a, names, low)?, number(b, names, low)?),
                None => {
                    let one = number(range, names, low)?;
                    (one, if part.contains('/') { high } else { one })
                }
            },
        };
        if from < low || to > high || from > to {
            return None;
        }
        for value in (from..=to).step_by(usize::try_from(step).ok()?) {
            bits |= 1 << value;
        }
    }
    Some(Field { bits, any })
}

/// Go's way of writing durations: `1h30m`.
fn duration(text: &str) -> Option<SignedDuration> {
    let (mut total, mut digits) = (0.0_f64, String::new());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_ascii_digit() || c == '.' {
            digits.push(c);
            continue;
        }
        let unit = match (c, chars.peek()) {
            ('m', Some('s')) => {
                chars.next();
                0.001
            }
            ('h', _) => 3600.0,
            ('m', _) => 60.0,
            ('s', _) => 1.0,
            _ => return None,
        };
        total += std::mem::take(&mut digits).parse::<f64>().ok()? * unit;
    }
    // Whole seconds, and never none.
    digits.is_empty().then(|| SignedDuration::from_secs((total as i64).max(1)))
}

impl Schedule {
    /// Reads a schedule; without a zone it is in UTC.
    pub fn parse(text: &str, zone: Option<&str>) -> Result<Self, String> {
        let (inline, text) = match text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) {
            Some(rest) => rest.split_once(' ').map_or((None, rest), |(zone, rest)| (Some(zone), rest.trim())),
            None => (None, text.trim()),
        };
        let zone = match zone.or(inline) {
            Some(name) => TimeZone::get(name).map_err(|_| format!("unknown time zone {name}"))?,
            None => TimeZone::UTC,
        };
        if let Some(every) = text.strip_prefix("@every ") {
            let every = duration(every).ok_or_else(|| format!("failed to parse duration {text}"))?;
            return Ok(Self { rule: Rule::Every(every), zone });
        }
        let text = SHORTHANDS.iter().find(|(name, _)| *name == text).map_or(text, |(_, fields)| *fields);
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: {fields:?}", fields.len()));
        };
        let read = |text, low, high, names| {
            field(text, low, high, names).ok_or_else(|| format!("failed to parse field {text:?}"))
        };
        let mut weekday = read(weekday, 0, 7, &DAYS)?;
        // Sunday is 0 and 7.
        weekday.bits |= weekday.bits >> 7 & 1;
        let rule = Rule::Fields {
            minute: read(minute, 0, 59, &[])?,
            hour: read(hour, 0, 23, &[])?,
            day: read(day, 1, 31, &[])?,
            month: read(month, 1, 12, &MONTHS)?,
            weekday,
        };
        Ok(Self { rule, zone })
    }

    /// The zone.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The first time after `after`.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.rule {
            Rule::Every(every) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(*every).ok()
            }
            Rule::Fields { minute, hour, day, month, weekday } => {
                let start = after.to_zoned(self.zone.clone());
                let mut date = start.date();
                let end = date.checked_add(HORIZON_YEARS.years()).ok()?;
                while date <= end {
                    if month.has(date.month().into()) && Self::day_fits(*day, *weekday, date) {
                        let found = self.on(date, *hour, *minute, after);
                        if found.is_some() {
                            return found;
                        }
                    }
                    date = date.tomorrow().ok()?;
                }
                None
            }
        }
    }

    /// If both day and weekday are restricted, either may fit.
    fn day_fits(day: Field, weekday: Field, date: Date) -> bool {
        let (by_day, by_weekday) =
            (day.has(date.day().into()), weekday.has(date.weekday().to_sunday_zero_offset().into()));
        if day.any || weekday.any { by_day && by_weekday } else { by_day || by_weekday }
    }

    /// The first time on a day that is after `after`. A local time that does not exist on that day is left out.
    fn on(&self, date: Date, hour: Field, minute: Field, after: Timestamp) -> Option<Timestamp> {
        for h in (0..24).filter(|h| hour.has(*h)) {
            for m in (0..60).filter(|m| minute.has(*m)) {
                let local: DateTime = date.at(h as i8, m as i8, 0, 0);
                let zoned: Zoned = local.to_zoned(self.zone.clone()).ok()?;
                if zoned.datetime() == local && zoned.timestamp() > after {
                    return Some(zoned.timestamp());
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_times() {
        for (text, zone, after, expected) in [
            ("* * * * *", None, "2026-01-01T00:00:30Z", "2026-01-01T00:01:00Z"),
            ("* * * * *", None, "2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"),
            ("*/15 * * * *", None, "2026-01-01T00:46:00Z", "2026-01-01T01:00:00Z"),
            ("5/20 * * * *", None, "2026-01-01T00:26:00Z", "2026-01-01T00:45:00Z"),
            ("0 9-17/4 * * mon-fri", None, "2026-01-02T17:00:00Z", "2026-01-05T09:00:00Z"),
            ("0 0 13 * 5", None, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 * * 7", None, "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("0 0 29 2 *", None, "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 29 FEB ?", None, "2028-03-01T00:00:00Z", "2032-02-29T00:00:00Z"),
            ("@hourly", None, "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"),
            ("@every 1h30m", None, "2026-01-01T00:00:00.5Z", "2026-01-01T01:30:00Z"),
            ("0 8 * * *", Some("Europe/Berlin"), "2026-07-01T00:00:00Z", "2026-07-01T06:00:00Z"),
            ("TZ=Asia/Tokyo 0 8 * * *", None, "2026-07-01T00:00:00Z", "2026-07-01T23:00:00Z"),
            ("30 2 * * *", Some("Europe/Berlin"), "2026-03-28T12:00:00Z", "2026-03-30T00:30:00Z"),
        ] {
            let schedule = Schedule::parse(text, zone).unwrap();
            let next = schedule.next(after.parse().unwrap()).unwrap();
            assert_eq!(next.to_string(), expected, "{text} {zone:?}");
        }
        assert_eq!(Schedule::parse("0 0 30 2 *", None).unwrap().next(Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for text in
            ["", "* * * *", "60 * * * *", "* * 0 * *", "5-1 * * * *", "*/0 * * * *", "x * * * *", "@every x", "@never"]
        {
            assert!(Schedule::parse(text, None).is_err(), "{text:?}");
        }
        assert!(Schedule::parse("* * * * *", Some("Nowhere/Land")).is_err());
    }
}
