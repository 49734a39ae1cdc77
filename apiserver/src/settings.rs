//! What an operator may choose of the API server beyond its addresses: files and names, as the command line gives them.

use std::path::PathBuf;
use std::time::Duration;

use crate::{admission, audit, authn, authz};

/// The choices; the default is upstream's, with every optional part off.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What is recorded of requests.
    pub audit: audit::Settings,
    /// How users prove who they are.
    pub authentication: authn::Settings,
    /// Who decides what users may do.
    pub authorization: authz::Settings,
    /// Which admission plugins are used.
    pub admission: admission::Settings,
    /// Which resources are stored sealed (EncryptionConfiguration).
    pub encryption: Option<PathBuf>,
    /// APIs that are on or off, as `key=value` (`--runtime-config`).
    pub runtime_config: Vec<String>,
    /// Features that are open or not, as `Name=true` (`--feature-gates`).
    pub feature_gates: Vec<String>,
}

/// Reads durations as flags and configuration files write them: `300ms`, `1.5s`, `5m`, `1h30m`.
pub fn duration(text: &str) -> Option<Duration> {
    /// Units with their nanoseconds.
    const UNITS: [(&str, u64); 6] = [
        ("ns", 1),
        ("us", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let (mut total, mut rest) = (Duration::ZERO, text);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(number);
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (_, nanos) = UNITS.iter().find(|(name, _)| *name == &tail[..unit])?;
        let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u64>().ok() };
        if whole.is_empty() && part.is_empty() || part.len() > 9 {
            return None;
        }
        total = total.checked_add(Duration::from_nanos(digits(whole)?.checked_mul(*nanos)?))?;
        let share = u128::from(digits(part)?) * u128::from(*nanos) / 10_u128.pow(part.len() as u32);
        total = total.checked_add(Duration::from_nanos(u64::try_from(share).ok()?))?;
        rest = &tail[unit..];
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("40s", Some(40_000)),
            ("1h30m", Some(5_400_000)),
            ("300ms", Some(300)),
            ("1.5s", Some(1500)),
            (".5s", Some(500)),
            ("5000us", Some(5)),
            ("", None),
            ("5", None),
            ("s", None),
            (".s", None),
            ("5d", None),
            ("1.2.3s", None),
            ("99999999999999999999s", None),
            ("99999999999999h", None),
        ] {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }
}
