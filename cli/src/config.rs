//! The config file and durations: a file's keys become flags, so that there is one table of settings.

use std::ffi::{OsStr, OsString};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Puts the flags of the file named by `--config` (or `KEELSON_CONFIG`) before those typed, which therefore win; a key
/// whose environment variable is set is left out, so that the environment wins too.
pub fn with_file(argv: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(file) = named_file(&argv) else { return Ok(argv) };
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read the config file {file:?}"))?;
    let flags = flags(&text).with_context(|| format!("config file {file:?}"))?;
    let mut result: Vec<OsString> = argv.iter().take(2).cloned().collect();
    result.extend(
        flags.into_iter().filter(|(key, _)| std::env::var_os(variable(key)).is_none()).map(|(_, flag)| flag.into()),
    );
    result.extend(argv.into_iter().skip(2));
    Ok(result)
}

fn named_file(argv: &[OsString]) -> Option<OsString> {
    let mut rest = argv.iter();
    while let Some(arg) = rest.next() {
        if arg == OsStr::new("--config") {
            return rest.next().cloned();
        }
        if let Some(file) = arg.to_str().and_then(|a| a.strip_prefix("--config=")) {
            return Some(file.into());
        }
    }
    std::env::var_os("KEELSON_CONFIG")
}

fn variable(key: &str) -> String {
    format!("KEELSON_{}", key.replace('-', "_").to_uppercase())
}

/// Flags of a YAML mapping: `key: value`, `key: true`, `key: [a, b]`.
fn flags(yaml: &str) -> Result<Vec<(String, String)>> {
    let value: Value = serde_saphyr::from_str(yaml).context("not YAML")?;
    let Value::Object(map) = value else { bail!("must be a mapping of flag names to values") };
    let mut flags = Vec::new();
    for (key, value) in map {
        let text = match value {
            Value::Bool(false) | Value::Null => continue,
            Value::Bool(true) => {
                flags.push((key.clone(), format!("--{key}")));
                continue;
            }
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            Value::Array(list) => list.iter().map(scalar).collect::<Result<Vec<_>>>()?.join(","),
            Value::Object(_) => bail!("{key}: a mapping is not a value of a flag"),
        };
        flags.push((key.clone(), format!("--{key}={text}")));
    }
    Ok(flags)
}

fn scalar(value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => bail!("{other} is not text or a number"),
    }
}

/// Parses `1h30m`, `40s`, `300ms`.
pub fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let millis = match &rest[..unit] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
        rest = &rest[unit..];
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::{duration, flags};
    use std::time::Duration;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("40s", Some(40_000)),
            ("1h30m", Some(5_400_000)),
            ("300ms", Some(300)),
            ("", None),
            ("5", None),
            ("s", None),
            ("5d", None),
        ] {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn a_file_becomes_flags() {
        let got =
            flags("name: a\nhollow: 3\ncluster-init: true\nno-scheduler: false\ntls-san: [a.example, b.example]\n")
                .unwrap();
        let got: Vec<_> = got.into_iter().map(|(_, flag)| flag).collect();
        assert_eq!(got, ["--cluster-init", "--hollow=3", "--name=a", "--tls-san=a.example,b.example"]);
        assert!(flags("[1]").is_err());
        assert!(flags("a: {b: c}").is_err());
    }
}
