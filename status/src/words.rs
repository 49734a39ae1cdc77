//! Numbers as people read them.

/// `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// `5d`, `3h`, `12m`, `40s`: the largest unit of which there are at least two.
pub fn span(seconds: i64) -> String {
    match seconds.unsigned_abs() {
        n if n < 120 => format!("{n}s"),
        n if n < 7200 => format!("{}m", n / 60),
        n if n < 172_800 => format!("{}h", n / 3600),
        n => format!("{}d", n / 86_400),
    }
}

/// `0.4 ms`, `12 ms`.
pub fn micros(count: u32) -> String {
    let millis = f64::from(count) / 1000.0;
    if millis >= 10.0 { format!("{millis:.0} ms") } else { format!("{millis:.1} ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (count, want) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (200 << 20, "200 MiB"), (3 << 30, "3.0 GiB")]
        {
            assert_eq!(bytes(count), want);
        }
        for (seconds, want) in [(5, "5s"), (119, "119s"), (120, "2m"), (7200, "2h"), (200_000, "2d"), (-60, "60s")] {
            assert_eq!(span(seconds), want);
        }
        assert_eq!((micros(420), micros(12_400)), ("0.4 ms".into(), "12 ms".into()));
    }
}
