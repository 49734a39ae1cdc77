//! The flags of a command line: parsed as pflag does, from tables from which help derives.

use std::collections::BTreeMap;
use std::num::IntErrorKind;

use crate::failure::{Failure, Outcome};

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing, or `=true` and `=false`.
    Bool,
    /// A value.
    Text,
    /// A value after `=`; without one this.
    Optional(&'static str),
}

/// What a value must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Any text.
    Text,
    /// A whole number.
    Number,
    /// A duration.
    Duration,
    /// A value that may be given several times.
    List,
}

/// One flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// Its one-letter form.
    pub short: Option<char>,
    /// What it takes.
    pub takes: Takes,
    /// What its value must look like.
    pub form: Form,
    /// What it is when it is not given.
    pub default: &'static str,
    /// What help says.
    pub help: &'static str,
}

/// The flag that keeps the command line in the object that it changes.
pub const RECORD: Flag = switch("record", "Record current kubectl command in the resource annotation.");

/// A flag with a value. A default that is a number or a duration says that values are.
pub const fn text(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, short: None, takes: Takes::Text, form: form_of(default.as_bytes()), default, help }
}

/// A flag that may be given several times.
pub const fn repeated(name: &'static str, help: &'static str) -> Flag {
    Flag { name, short: None, takes: Takes::Text, form: Form::List, default: "", help }
}

/// A flag that is given or not.
pub const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag { name, short: None, takes: Takes::Bool, form: Form::Text, default: "false", help }
}

const fn form_of(default: &[u8]) -> Form {
    match default {
        [b'-', b'1'] => Form::Number,
        [b'0'..=b'9', .., b's'] => Form::Duration,
        [b'0'..=b'9', rest @ ..] => {
            let mut at = 0;
            while at < rest.len() {
                if !rest[at].is_ascii_digit() {
                    return Form::Text;
                }
                at += 1;
            }
            Form::Number
        }
        _ => Form::Text,
    }
}

impl Flag {
    /// With a one-letter form.
    pub const fn short(mut self, short: char) -> Self {
        self.short = Some(short);
        self
    }

    /// With another default.
    pub const fn or(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }

    /// With values that may be any text.
    pub const fn plain(mut self) -> Self {
        self.form = Form::Text;
        self
    }

    /// With a value that stands for the flag alone.
    pub const fn alone(mut self, value: &'static str) -> Self {
        self.takes = Takes::Optional(value);
        self
    }
}

/// A parsed command line.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// The command, for messages: `kubectl get`.
    pub command: String,
    values: BTreeMap<&'static str, Vec<String>>,
    /// Flags in the order in which they were given.
    given: Vec<(&'static str, String)>,
    defaults: BTreeMap<&'static str, &'static str>,
    /// Arguments that are no flags.
    pub args: Vec<String>,
    /// Arguments after `--`.
    pub after_dash: Option<Vec<String>>,
}

impl Parsed {
    /// Parses `args`. With `interspersed` off, the first argument that is no flag ends the flags.
    pub fn of(command: &str, args: &[String], tables: &[&[Flag]], interspersed: bool) -> Outcome<Self> {
        let flags: Vec<Flag> = tables.iter().flat_map(|table| table.iter().copied()).collect();
        let mut parsed = Self { command: command.to_owned(), ..Self::default() };
        for flag in &flags {
            // A command's own flags come before those of every command, and hide them.
            parsed.defaults.entry(flag.name).or_insert(flag.default);
        }
        let wrong = |what: String| Failure::Error(format!("{what}\nSee '{command} --help' for usage."));
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            if arg == "--" {
                parsed.after_dash = Some(rest.cloned().collect());
                break;
            }
            if let Some(long) = arg.strip_prefix("--") {
                let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v)));
                let flag = flags.iter().find(|f| f.name == name);
                let flag = flag.ok_or_else(|| wrong(format!("unknown flag: --{name}")))?;
                let value = match (value, flag.takes) {
                    (Some(value), _) => value.to_owned(),
                    (None, Takes::Bool) => "true".into(),
                    (None, Takes::Optional(alone)) => alone.to_owned(),
                    (None, Takes::Text) => {
                        let next = rest.next().cloned();
                        next.ok_or_else(|| wrong(format!("flag needs an argument: --{name}")))?
                    }
                };
                parsed.set(flag, value, &wrong)?;
            } else if arg.len() > 1 && arg.starts_with('-') {
                parsed.shorts(&arg[1..], &flags, &mut rest, &wrong)?;
            } else {
                parsed.args.push(arg.clone());
                if !interspersed {
                    parsed.args.extend(rest.by_ref().cloned());
                }
            }
        }
        Ok(parsed)
    }

    fn shorts(
        &mut self,
        cluster: &str,
        flags: &[Flag],
        rest: &mut std::slice::Iter<'_, String>,
        wrong: &impl Fn(String) -> Failure,
    ) -> Outcome {
        for (at, c) in cluster.char_indices() {
            let flag = flags.iter().find(|f| f.short == Some(c));
            let flag = flag.ok_or_else(|| wrong(format!("unknown shorthand flag: '{c}' in -{}", &cluster[at..])))?;
            let after = &cluster[at + c.len_utf8()..];
            let value = match (after.strip_prefix('='), flag.takes) {
                (Some(value), _) => value.to_owned(),
                (None, Takes::Bool) => {
                    self.set(flag, "true".into(), wrong)?;
                    continue;
                }
                (None, Takes::Optional(alone)) => {
                    self.set(flag, alone.to_owned(), wrong)?;
                    continue;
                }
                (None, Takes::Text) if !after.is_empty() => after.to_owned(),
                (None, Takes::Text) => {
                    let next = rest.next().cloned();
                    next.ok_or_else(|| wrong(format!("flag needs an argument: '{c}' in -{cluster}")))?
                }
            };
            return self.set(flag, value, wrong);
        }
        Ok(())
    }

    fn set(&mut self, flag: &Flag, value: String, wrong: &impl Fn(String) -> Failure) -> Outcome {
        let shown = flag.short.map_or(format!("--{}", flag.name), |s| format!("-{s}, --{}", flag.name));
        if flag.takes == Takes::Bool && bool_of(&value).is_none() {
            let why = format!("strconv.ParseBool: parsing {value:?}: invalid syntax");
            return Err(wrong(format!("invalid argument {value:?} for {shown:?} flag: {why}")));
        }
        let why = match flag.form {
            Form::Number => number_error(&value),
            Form::Duration => duration_error(&value),
            Form::Text | Form::List => None,
        };
        if let Some(why) = why {
            return Err(wrong(format!("invalid argument {value:?} for {shown:?} flag: {why}")));
        }
        if flag.name == RECORD.name {
            eprintln!("Flag --record has been deprecated, --record will be removed in the future");
        }
        self.given.push((flag.name, value.clone()));
        self.values.entry(flag.name).or_default().push(value);
        Ok(())
    }

    /// The command line, as `--record` keeps it.
    pub fn change_cause(&self) -> String {
        let path = self.command.split(' ').map(str::to_owned);
        let flags = self.given.iter().map(|(name, value)| format!("--{name}={value}"));
        path.chain(self.args.iter().cloned()).chain(flags).collect::<Vec<_>>().join(" ")
    }

    /// Whether the flag is on the command line.
    pub fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// A flag's value, the last if it was given several times.
    pub fn text(&self, name: &str) -> &str {
        match self.values.get(name).and_then(|values| values.last()) {
            Some(value) => value,
            None => self.defaults.get(name).copied().unwrap_or_default(),
        }
    }

    /// Whether a switch is on.
    pub fn on(&self, name: &str) -> bool {
        bool_of(self.text(name)).unwrap_or(false)
    }

    /// All values of a flag, as they were given.
    pub fn all(&self, name: &str) -> Vec<String> {
        match self.values.get(name) {
            Some(values) => values.clone(),
            None => Some(self.text(name)).filter(|t| !t.is_empty()).map(str::to_owned).into_iter().collect(),
        }
    }

    /// All values of a flag, split at commas.
    pub fn list(&self, name: &str) -> Vec<String> {
        self.all(name).iter().flat_map(|v| v.split(',')).filter(|v| !v.is_empty()).map(str::to_owned).collect()
    }

    /// A flag's whole number.
    pub fn number(&self, name: &str) -> Outcome<i64> {
        let text = self.text(name);
        text.parse().map_err(|_| {
            let why = format!("strconv.ParseInt: parsing {text:?}: invalid syntax");
            let usage = format!("See '{} --help' for usage.", self.command);
            Failure::Error(format!("invalid argument {text:?} for \"--{name}\" flag: {why}\n{usage}"))
        })
    }

    /// A flag's duration, such as `5s` or `1m30s`; `0` is none.
    pub fn duration(&self, name: &str) -> Outcome<std::time::Duration> {
        let text = self.text(name);
        // What is less than nothing has no meaning anywhere; where that is an error, it is asked for.
        duration(text.strip_prefix('-').map_or(text, |_| "0")).ok_or_else(|| {
            let why = format!("time: invalid duration {text:?}");
            let usage = format!("See '{} --help' for usage.", self.command);
            Failure::Error(format!("invalid argument {text:?} for \"--{name}\" flag: {why}\n{usage}"))
        })
    }

    /// Whether a duration is less than nothing.
    pub fn is_negative(&self, name: &str) -> bool {
        self.text(name).starts_with('-')
    }

    /// An error about the arguments.
    pub fn usage(&self, message: impl Into<String>) -> Failure {
        Failure::Usage(message.into(), self.command.clone())
    }
}

fn bool_of(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn number_error(text: &str) -> Option<String> {
    let why = match text.parse::<i64>() {
        Ok(_) => return None,
        Err(error) if matches!(error.kind(), IntErrorKind::PosOverflow | IntErrorKind::NegOverflow) => {
            "value out of range"
        }
        Err(_) => "invalid syntax",
    };
    Some(format!("strconv.ParseInt: parsing {text:?}: {why}"))
}

fn duration_error(text: &str) -> Option<String> {
    if duration(text.strip_prefix('-').unwrap_or(text)).is_some() {
        return None;
    }
    let has_unit = text.chars().any(|c| !c.is_ascii_digit() && !matches!(c, '.' | '-' | '+'));
    Some(match has_unit || text.is_empty() {
        true => format!("time: invalid duration {text:?}"),
        false => format!("time: missing unit in duration {text:?}"),
    })
}

/// A duration as Go writes it.
pub fn duration(text: &str) -> Option<std::time::Duration> {
    if text == "0" {
        return Some(std::time::Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| at + digits);
        let factor = match &rest[digits..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += rest[..digits].parse::<f64>().ok()? * factor;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then(|| std::time::Duration::try_from_secs_f64(seconds).ok()).flatten()
}

/// The lines of help for a table of flags.
pub fn help(tables: &[&[Flag]]) -> String {
    let mut flags: Vec<&Flag> = tables.iter().flat_map(|table| table.iter()).collect();
    flags.sort_by_key(|f| f.name);
    let line = |flag: &&Flag| {
        let short = flag.short.map_or("    ".into(), |s| format!("-{s}, "));
        let default = match (flag.form, flag.takes) {
            (Form::List, _) => format!("[{}]", flag.default),
            (_, Takes::Bool) | (Form::Number | Form::Duration, _) => flag.default.to_owned(),
            (Form::Text, _) => format!("'{}'", flag.default),
        };
        format!("    {short}--{}={default}:\n\t{}\n\n", flag.name, flag.help)
    };
    flags.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &[Flag] = &[
        text("output", "", "").short('o'),
        switch("watch", "").short('w'),
        switch("all", "").short('A'),
        text("dry-run", "none", "").alone("unchanged"),
    ];

    fn parse(args: &[&str]) -> Outcome<Parsed> {
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        Parsed::of("kubectl get", &args, &[FLAGS], true)
    }

    #[test]
    fn forms_of_flags() {
        for (args, output, watch, rest) in [
            (&["pods", "-o", "yaml"][..], "yaml", false, &["pods"][..]),
            (&["-oyaml", "pods"], "yaml", false, &["pods"]),
            (&["-o=yaml", "-w"], "yaml", true, &[]),
            (&["-wo", "yaml"], "yaml", true, &[]),
            (&["--output=a=b", "--watch=false"], "a=b", false, &[]),
            (&["--output", "x", "--", "-w"], "x", false, &[]),
            (&["-"], "", false, &["-"]),
        ] {
            let parsed = parse(args).unwrap();
            assert_eq!((parsed.text("output"), parsed.on("watch")), (output, watch), "{args:?}");
            assert_eq!(parsed.args, rest, "{args:?}");
        }
        assert_eq!(parse(&["--dry-run"]).unwrap().text("dry-run"), "unchanged");
        assert_eq!(parse(&[]).unwrap().text("dry-run"), "none");
    }

    #[test]
    fn wrong_flags() {
        for (args, expected) in [
            (&["--foo"][..], "error: unknown flag: --foo\nSee 'kubectl get --help' for usage."),
            (&["-wz"], "error: unknown shorthand flag: 'z' in -z\nSee 'kubectl get --help' for usage."),
            (&["-o"], "error: flag needs an argument: 'o' in -o\nSee 'kubectl get --help' for usage."),
            (
                &["--watch=x"],
                "error: invalid argument \"x\" for \"-w, --watch\" flag: strconv.ParseBool: parsing \"x\": invalid syntax\n\
                 See 'kubectl get --help' for usage.",
            ),
        ] {
            assert_eq!(parse(args).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn durations() {
        let seconds = |text| duration(text).map(|d| d.as_secs_f64());
        assert_eq!(seconds("1m30s"), Some(90.0));
        assert_eq!(seconds("0"), Some(0.0));
        assert_eq!(seconds("1.5h"), Some(5400.0));
        assert_eq!(seconds("250ms"), Some(0.25));
        for bad in ["", "5", "s", "1x"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
