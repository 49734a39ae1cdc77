//! Schedules of CronJobs: five fields or a name such as `@hourly`.

use std::num::IntErrorKind;

/// Names for schedules.
const NAMED: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
/// Fields with their least and greatest value and the names of their values.
const FIELDS: &[(i64, i64, &[&str])] = &[
    (0, 59, &[]),
    (0, 23, &[]),
    (1, 31, &[]),
    (1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    (0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

/// Why Go loads no time zone of this name; `None`: it does.
pub fn location_problem(name: &str) -> Option<String> {
    if matches!(name, "" | "Local") {
        return None;
    }
    if name.contains("..") || name.starts_with(['/', '\\']) {
        return Some("time: invalid location name".to_owned());
    }
    jiff::tz::TimeZone::get(name).is_err().then(|| format!("unknown time zone {name}"))
}

/// Whether a text is a schedule; else why not.
pub fn check(schedule: &str) -> Result<(), String> {
    let mut schedule = schedule;
    if let Some(rest) = schedule.strip_prefix("TZ=").or_else(|| schedule.strip_prefix("CRON_TZ=")) {
        // Upstream's parser slices up to a space that is not there.
        let Some((zone, rest)) = rest.split_once(' ') else {
            return Err("invalid schedule format: runtime error: slice bounds out of range [:-1]".to_owned());
        };
        if let Some(why) = location_problem(zone) {
            return Err(format!("provided bad location {zone}: {why}"));
        }
        schedule = rest.trim();
    }
    if schedule.starts_with('@') {
        if let Some(span) = schedule.strip_prefix("@every ") {
            return span_problem(span).map_or(Ok(()), |why| Err(format!("failed to parse duration {schedule}: {why}")));
        }
        let known = NAMED.contains(&schedule);
        return if known { Ok(()) } else { Err(format!("unrecognized descriptor: {schedule}")) };
    }
    let words: Vec<&str> = schedule.split_whitespace().collect();
    if words.len() != FIELDS.len() {
        let shown = words.join(" ");
        return Err(format!("expected exactly {} fields, found {}: [{shown}]", FIELDS.len(), words.len()));
    }
    for (word, (least, most, names)) in words.iter().zip(FIELDS) {
        for part in word.split(',').filter(|part| !part.is_empty()) {
            range(part, *least, *most, names)?;
        }
    }
    Ok(())
}

/// What is wrong with a span of time as Go writes it, such as `1h30m`, in Go's words.
pub fn span_problem(text: &str) -> Option<String> {
    const UNITS: &[&str] = &["ns", "us", "µs", "μs", "ms", "s", "m", "h"];
    let invalid = || Some(format!("time: invalid duration {text:?}"));
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return None;
    }
    if rest.is_empty() {
        return invalid();
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (digits, after) = rest.split_at(number);
        if digits.matches('.').count() > 1 || !digits.contains(|c: char| c.is_ascii_digit()) {
            return invalid();
        }
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        if unit.is_empty() {
            return Some(format!("time: missing unit in duration {text:?}"));
        }
        if !UNITS.contains(&unit) {
            return Some(format!("time: unknown unit {unit:?} in duration {text:?}"));
        }
        rest = next;
    }
    None
}

fn range(text: &str, least: i64, most: i64, names: &[&str]) -> Result<(), String> {
    let steps: Vec<&str> = text.split('/').collect();
    let limits: Vec<&str> = steps[0].split('-').collect();
    let number = |word: &str| {
        let lower = word.to_ascii_lowercase();
        if let Some(index) = names.iter().position(|name| *name == lower) {
            return Ok(index as i64 + least);
        }
        let parsed = word.parse::<i64>().map_err(|why| {
            let what = match why.kind() {
                IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
                _ => "invalid syntax",
            };
            format!("failed to parse int from {word}: strconv.Atoi: parsing {word:?}: {what}")
        })?;
        if parsed < 0 { Err(format!("negative number ({parsed}) not allowed: {word}")) } else { Ok(parsed) }
    };
    let (start, mut end) = if matches!(limits[0], "*" | "?") {
        (least, most)
    } else {
        let start = number(limits[0])?;
        let end = match limits[..] {
            [_] => start,
            [_, end] => number(end)?,
            _ => return Err(format!("too many hyphens: {text}")),
        };
        (start, end)
    };
    let mut step = 1;
    match steps[..] {
        [_] => {}
        [_, given] => {
            step = number(given)?;
            // `N/step` is from N to the end.
            if limits.len() == 1 && !matches!(limits[0], "*" | "?") {
                end = most;
            }
        }
        _ => return Err(format!("too many slashes: {text}")),
    }
    if start < least {
        return Err(format!("beginning of range ({start}) below minimum ({least}): {text}"));
    }
    if end > most {
        return Err(format!("end of range ({end}) above maximum ({most}): {text}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn zones_are_looked_up_as_go_does() {
        for (schedule, expected) in [
            ("TZ=0", "invalid schedule format: runtime error: slice bounds out of range [:-1]"),
            ("CRON_TZ=../x * * * * *", "provided bad location ../x: time: invalid location name"),
            ("TZ=/x * * * * *", "provided bad location /x: time: invalid location name"),
            ("TZ=x * * * * *", "provided bad location x: unknown time zone x"),
        ] {
            assert_eq!(check(schedule), Err(expected.to_owned()), "{schedule}");
        }
        assert_eq!(check("TZ=Local * * * * *"), Ok(()));
    }

    #[test]
    fn schedules() {
        for good in [
            "* * * * *",
            "*/5 1-3 1,15 jan mon-fri",
            "@hourly",
            "@every 1h30m",
            "@every 1.5s",
            "@every 0",
            "0 0 31 12 0",
            "5/10 * * * ?",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("every tuesday", "expected exactly 5 fields, found 2: [every tuesday]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("60/0 * * * *", "beginning of range (60) beyond end of range (59): 60/0"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            (
                "99999999999999999999 * * * *",
                "failed to parse int from 99999999999999999999: strconv.Atoi: parsing \"99999999999999999999\": value out of range",
            ),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("@often", "unrecognized descriptor: @often"),
            ("@every 1x", "failed to parse duration @every 1x: time: unknown unit \"x\" in duration \"1x\""),
            ("@every 5", "failed to parse duration @every 5: time: missing unit in duration \"5\""),
            ("@every soon", "failed to parse duration @every soon: time: invalid duration \"soon\""),
            ("@every ", "failed to parse duration @every : time: invalid duration \"\""),
        ] {
            assert_eq!(check(bad).unwrap_err(), why);
        }
    }
}
