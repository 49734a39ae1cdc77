//! What is wrong with a time, as Go's `time.Parse` tells it.

/// The parts of the layout, each with the characters that it takes and the range of its number.
const PARTS: [(&str, usize, &str, u32, u32); 11] = [
    ("2006", 4, "", 0, 9999),
    ("-", 0, "", 0, 0),
    ("01", 2, "month", 1, 12),
    ("-", 0, "", 0, 0),
    // Of days it is known only at the end how many there are.
    ("02", 2, "", 0, 99),
    ("T", 0, "", 0, 0),
    ("15", 2, "hour", 0, 23),
    (":", 0, "", 0, 0),
    ("04", 2, "minute", 0, 59),
    (":", 0, "", 0, 0),
    ("05", 2, "second", 0, 59),
];

/// What is wrong with a time; one of the sixth decimal place must have all six.
pub fn error(text: &str, micro: bool) -> Option<String> {
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let bad = |rest: &str, part: &str| {
        Some(format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {part:?}"))
    };
    let outside = |what: &str| Some(format!("parsing time {text:?}: {what} out of range"));
    let number =
        |text: Option<&str>| text.filter(|t| t.bytes().all(|b| b.is_ascii_digit())).and_then(|t| t.parse::<u32>().ok());
    let (mut rest, mut day) = (text, (0, 0, 0));
    for (part, digits, what, least, most) in PARTS {
        if digits == 0 {
            match rest.strip_prefix(part) {
                Some(after) => rest = after,
                None => return bad(rest, part),
            }
            continue;
        }
        let Some(found) = number(rest.get(..digits)) else { return bad(rest, part) };
        if !(least..=most).contains(&found) {
            return outside(what);
        }
        rest = &rest[digits..];
        match part {
            "2006" => day.0 = found,
            "01" => day.1 = found,
            "02" => day.2 = found,
            _ => {}
        }
    }
    let fraction = rest.strip_prefix(['.', ',']).filter(|after| after.starts_with(|c: char| c.is_ascii_digit()));
    if micro {
        match fraction.filter(|after| number(after.get(..6)).is_some()) {
            Some(after) => rest = &after[6..],
            None => return bad(rest, ".000000"),
        }
    } else if let Some(after) = fraction {
        rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    let after = match rest.strip_prefix('Z') {
        Some(after) => after,
        None => {
            let signed = rest.starts_with(['+', '-']) && rest.get(3..4) == Some(":");
            let zone = (number(rest.get(1..3)), number(rest.get(4..6)));
            match zone {
                (Some(hours), Some(minutes)) if signed => {
                    if hours > 24 {
                        return outside("time zone offset hour");
                    }
                    if minutes > 60 {
                        return outside("time zone offset minute");
                    }
                    &rest[6..]
                }
                _ => return bad(rest, "Z07:00"),
            }
        }
    };
    if !after.is_empty() {
        return Some(format!("parsing time {text:?}: extra text: {after:?}"));
    }
    let part = |n: u32| i8::try_from(n).unwrap_or_default();
    let exists = jiff::civil::Date::new(i16::try_from(day.0).unwrap_or_default(), part(day.1), part(day.2)).is_ok();
    if exists { None } else { outside("day") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_in_gos_words() {
        for (text, micro, expected) in [
            ("yesterday", false, Some("cannot parse \"yesterday\" as \"2006\"")),
            ("", false, Some("cannot parse \"\" as \"2006\"")),
            ("2026-01-02", false, Some("cannot parse \"\" as \"T\"")),
            ("2026-01-02 03:04:05Z", false, Some("cannot parse \" 03:04:05Z\" as \"T\"")),
            ("2026-01-02T03:04:05", false, Some("cannot parse \"\" as \"Z07:00\"")),
            ("2026-1-02T03:04:05Z", false, Some("cannot parse \"1-02T03:04:05Z\" as \"01\"")),
            ("2026-13-02T03:04:05Z", false, Some("parsing time \"2026-13-02T03:04:05Z\": month out of range")),
            ("2026-02-30T03:04:05Z", false, Some("parsing time \"2026-02-30T03:04:05Z\": day out of range")),
            ("2026-02-03T24:04:05Z", false, Some("hour out of range")),
            ("2026-02-03T03:04:05Zx", false, Some("parsing time \"2026-02-03T03:04:05Zx\": extra text: \"x\"")),
            ("2026-02-03T03:04:05.678+01:00", false, None),
            ("2026-02-03T03:04:05Z", true, Some("05.000000Z07:00\": cannot parse \"Z\" as \".000000\"")),
            ("2026-02-03T03:04:05.1Z", true, Some("cannot parse \".1Z\" as \".000000\"")),
            ("2026-02-03T03:04:05.123456789Z", true, Some("cannot parse \"789Z\" as \"Z07:00\"")),
            ("2026-02-03T03:04:05.123456-07:00", true, None),
        ] {
            let told = error(text, micro);
            assert_eq!(told.is_some(), expected.is_some(), "{text}");
            let (told, expected) = (told.unwrap_or_default(), expected.unwrap_or_default());
            assert!(told.ends_with(expected), "{told}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_judged(text in "[0-9TZ:.,é+-]{0,30}", micro: bool) {
            let _ = error(&text, micro);
        }
    }
}
