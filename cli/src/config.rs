//! The config file: a file's keys become flags, so that there is one table of settings.

use std::ffi::{OsStr, OsString};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub use keelson_apiserver::settings::duration;

/// The commands that take a config file.
const COMMANDS: [&str; 2] = ["server", "agent"];

/// Puts the flags of the file named by `--config` (or `KEELSON_CONFIG`) before those typed, which therefore win; a key
/// whose environment variable is set is left out, so that the environment wins too.
pub fn with_file(argv: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(file) = named_file(&argv) else { return Ok(argv) };
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read the config file {file:?}"))?;
    let flags = flags(&text).with_context(|| format!("config file {file:?}"))?;
    // Behind the command whose flags they are.
    let Some(command) = argv.iter().position(|arg| COMMANDS.iter().any(|command| arg == command)) else {
        return Ok(argv);
    };
    let missing = flags
        .into_iter()
        .filter(|(key, _)| std::env::var_os(variable(key)).is_none() && !is_given(&argv, key))
        .map(|(_, flag)| flag.into());
    let (before, after) = argv.split_at(command + 1);
    Ok(before.iter().cloned().chain(missing).chain(after.iter().cloned()).collect())
}

/// Whether the command line has a flag: a list there takes the place of the file's, it is not added to it.
fn is_given(argv: &[OsString], key: &str) -> bool {
    let flag = format!("--{key}");
    let is = |arg: &str| arg == flag || arg.strip_prefix(&flag).is_some_and(|rest| rest.starts_with('='));
    argv.iter().filter_map(|arg| arg.to_str()).any(is)
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

#[cfg(test)]
mod tests {
    use super::{flags, variable, with_file};
    use clap::CommandFactory;
    use std::ffi::OsString;

    /// One mechanism: what is a flag is an environment variable and a key, without exception.
    #[test]
    fn each_flag_has_its_variable() {
        let command = crate::args::Args::command();
        for name in super::COMMANDS {
            let command = command.find_subcommand(name).unwrap();
            let longs = command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg)));
            for (long, arg) in longs {
                assert_eq!(arg.get_env(), Some(OsString::from(variable(long)).as_os_str()), "{name} --{long}");
                assert!(arg.get_help().is_some(), "{name} --{long} says nothing of itself");
            }
        }
    }

    #[test]
    fn the_command_line_wins_wherever_the_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.yaml");
        std::fs::write(&file, "hollow: 3\ntls-san: [a]\n").unwrap();
        let file = file.to_string_lossy().into_owned();
        let merged = |args: &[&str]| {
            let argv = args.iter().map(|arg| arg.replace("FILE", &file).into()).collect();
            let merged: Vec<String> =
                with_file(argv).unwrap().into_iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
            merged.join(" ").replace(&file, "FILE")
        };
        for (given, want) in [
            (&["k", "server", "--config=FILE"][..], "k server --hollow=3 --tls-san=a --config=FILE"),
            (
                &["k", "--log-level", "debug", "agent", "--config", "FILE"],
                "k --log-level debug agent --hollow=3 --tls-san=a --config FILE",
            ),
            (
                &["k", "install", "server", "--config=FILE", "--tls-san=b", "--hollow", "1"],
                "k install server --config=FILE --tls-san=b --hollow 1",
            ),
            (&["k", "token", "--config=FILE"], "k token --config=FILE"),
        ] {
            assert_eq!(merged(given), want);
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
