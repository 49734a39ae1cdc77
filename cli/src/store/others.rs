//! Flags of etcd that `keelson store` has no setting for: what asks for nothing that is not so anyway is taken, anything else
//! is refused with the reason. Their `ETCD_` variables are treated alike, and other such variables are pointed out.

use std::collections::BTreeSet;
use std::ffi::OsString;

use anyhow::{Result, bail};

/// What becomes of a flag.
#[derive(Clone, Copy)]
enum Fate {
    /// Any value is taken: it tunes what is not there to be tuned.
    Idle,
    /// These values say what is so anyway; another one is refused for this reason.
    Only(&'static [&'static str], &'static str),
    /// It is refused for this reason.
    No(&'static str),
}

use Fate::{Idle, No, Only};

const OFF: &[&str] = &["false"];
const ON: &[&str] = &["true"];
const NO_V2: &str = "the v2 API is not there";
const NO_DISCOVERY: &str = "there is no discovery service: name the members with --initial-cluster";
const NO_TRACING: &str = "traces are not exported";
const NO_LISTS: &str = "revoked certificates are not looked up: change the CA instead";
const ONE_PAIR: &str = "the same certificate serves both ways: give it both usages";

/// Name without dashes, whether it is a switch, and what becomes of it.
const OTHERS: &[(&str, bool, Fate)] = &[
    ("wal-dir", false, No("the log lies in --data-dir")),
    ("initial-election-tick-advance", true, Idle),
    ("max-snapshots", false, Idle),
    ("max-wals", false, Idle),
    ("backend-bbolt-freelist-type", false, Idle),
    ("backend-batch-interval", false, Idle),
    ("backend-batch-limit", false, Idle),
    ("enable-grpc-gateway", true, Only(OFF, "the gRPC gateway is not there")),
    ("grpc-keepalive-min-time", false, Idle),
    ("socket-reuse-port", true, Only(OFF, "two members never share a port")),
    // It is so anyway.
    ("socket-reuse-address", true, Idle),
    ("raft-read-timeout", false, Idle),
    ("raft-write-timeout", false, Idle),
    ("memory-mlock", true, Only(OFF, "memory is not locked")),
    ("warning-apply-duration", false, Idle),
    ("warning-unary-request-duration", false, Idle),
    ("bootstrap-defrag-threshold-megabytes", false, Idle),
    ("stop-grpc-service-on-defrag", true, Idle),
    ("txn-mode-write-with-shared-buffer", true, Idle),
    ("snapshot-catchup-entries", false, Idle),
    ("max-learners", false, Idle),
    ("set-member-localaddr", true, Only(OFF, "members connect from any of their addresses")),
    ("feature-gates", false, No("there are no feature gates: say what you need with its own flag")),
    ("discovery", false, No(NO_DISCOVERY)),
    ("discovery-endpoints", false, No(NO_DISCOVERY)),
    ("discovery-token", false, No(NO_DISCOVERY)),
    ("discovery-dial-timeout", false, Idle),
    ("discovery-request-timeout", false, Idle),
    ("discovery-keepalive-time", false, Idle),
    ("discovery-keepalive-timeout", false, Idle),
    ("discovery-insecure-transport", true, Idle),
    ("discovery-insecure-skip-tls-verify", true, Idle),
    ("discovery-cert", false, No(NO_DISCOVERY)),
    ("discovery-key", false, No(NO_DISCOVERY)),
    ("discovery-cacert", false, No(NO_DISCOVERY)),
    ("discovery-user", false, No(NO_DISCOVERY)),
    ("discovery-password", false, No(NO_DISCOVERY)),
    ("discovery-fallback", false, Only(&["exit"], NO_DISCOVERY)),
    ("discovery-proxy", false, No(NO_DISCOVERY)),
    ("discovery-srv", false, No(NO_DISCOVERY)),
    ("discovery-srv-name", false, No(NO_DISCOVERY)),
    ("strict-reconfig-check", true, Only(ON, "a change that would cost the majority is always refused")),
    ("pre-vote", true, Only(ON, "members always ask before they stand for election")),
    ("enable-v2", true, Only(OFF, NO_V2)),
    ("enable-v2v3", false, No(NO_V2)),
    ("v2-deprecation", false, Only(&["gone", "write-only-drop-data", "write-only"], NO_V2)),
    ("proxy", false, Only(&["off"], NO_V2)),
    ("proxy-failure-wait", false, Idle),
    ("proxy-refresh-interval", false, Idle),
    ("proxy-dial-timeout", false, Idle),
    ("proxy-write-timeout", false, Idle),
    ("proxy-read-timeout", false, Idle),
    ("client-cert-file", false, No(ONE_PAIR)),
    ("client-key-file", false, No(ONE_PAIR)),
    ("client-crl-file", false, No(NO_LISTS)),
    ("client-cert-allowed-hostname", false, No("clients are let in by their CA: use --trusted-ca-file and roles")),
    ("peer-cert-allowed-cn", false, No("members are let in by their CA: use a --peer-trusted-ca-file of their own")),
    (
        "peer-cert-allowed-hostname",
        false,
        No("members are let in by their CA: use a --peer-trusted-ca-file of their own"),
    ),
    ("peer-client-cert-file", false, No(ONE_PAIR)),
    ("peer-client-key-file", false, No(ONE_PAIR)),
    ("peer-crl-file", false, No(NO_LISTS)),
    // Names in the certificates of members that connect are not looked at.
    ("peer-skip-client-san-verification", true, Idle),
    ("cipher-suites", false, No("the suites are those that are safe today: choose versions with --tls-min-version")),
    ("cors", false, Only(&["*"], "there are no pages to be asked from")),
    ("host-whitelist", false, Only(&["*"], "hosts are not told apart: listen where only they can reach")),
    ("enable-pprof", true, Only(OFF, "there is no profile of a Go program")),
    ("metrics", false, Only(&["basic"], "there are no histograms of single methods")),
    ("logger", false, Only(&["zap"], "logs go to standard error")),
    ("log-outputs", false, Only(&["default", "stderr"], "logs go to standard error")),
    ("enable-log-rotation", true, Only(OFF, "logs go to standard error")),
    ("log-rotation-config-json", false, Idle),
    ("enable-distributed-tracing", true, Only(OFF, NO_TRACING)),
    ("distributed-tracing-address", false, Idle),
    ("distributed-tracing-service-name", false, Idle),
    ("distributed-tracing-instance-id", false, Idle),
    ("distributed-tracing-sampling-rate", false, Idle),
    // Members compare their histories all the time.
    ("corrupt-check-time", false, Idle),
    ("compact-hash-check-enabled", true, Idle),
    ("compact-hash-check-time", false, Idle),
    ("enable-lease-checkpoint", true, Only(ON, "the remaining time of leases is always kept")),
    ("enable-lease-checkpoint-persist", true, Only(ON, "the remaining time of leases is always kept")),
    ("compaction-batch-limit", false, Idle),
    ("compaction-sleep-interval", false, Idle),
    ("downgrade-check-time", false, Idle),
    ("unsafe-no-fsync", true, Only(OFF, "what was acknowledged must be on disk")),
];

/// The command whose flags these are.
const COMMAND: &str = "store";
/// How variables of etcd's flags begin.
const PREFIX: &str = "ETCD_";
/// etcd's variable for what is logged, whose flag all of the program's commands have.
const LOG_LEVEL: &str = "ETCD_LOG_LEVEL";
/// Variables of etcd that belong to no flag of the store's own.
const NOT_FLAGS: &[&str] = &["ETCD_UNSUPPORTED_ARCH", "ETCD_VERIFY", LOG_LEVEL];

fn other(name: &str) -> Option<&'static (&'static str, bool, Fate)> {
    let name = name.strip_prefix("experimental-").unwrap_or(name);
    OTHERS.iter().find(|(known, ..)| *known == name)
}

/// Refuses a value that asks for something that is not so. `what` is how it was written.
fn judge(what: &str, fate: Fate, value: &str) -> Result<()> {
    match fate {
        Idle => Ok(()),
        Only(values, _) if value.is_empty() || values.contains(&value) => Ok(()),
        Only(values, why) => bail!("{what} can only be {} here: {why}", values.join(" or ")),
        No(_) if value.is_empty() => Ok(()),
        No(why) => bail!("{what} is not supported: {why}"),
    }
}

/// Takes etcd's other flags out of a command line of `keelson store`, or says why they cannot be followed. One dash before a
/// flag's name is as good as two.
pub fn without_others(argv: Vec<OsString>) -> Result<Vec<OsString>> {
    // The first argument is the program's name.
    match argv.iter().skip(1).position(|arg| !arg.to_string_lossy().starts_with('-')) {
        Some(at) => sift(argv, at + 1),
        None => Ok(argv),
    }
}

fn sift(argv: Vec<OsString>, command: usize) -> Result<Vec<OsString>> {
    if argv.get(command).is_none_or(|name| name != COMMAND) {
        return Ok(argv);
    }
    let mut rest = argv.into_iter();
    let mut kept: Vec<OsString> = rest.by_ref().take(command + 1).collect();
    while let Some(arg) = rest.next() {
        let text = arg.to_string_lossy().into_owned();
        let dashes = text.len() - text.trim_start_matches('-').len();
        let (name, value) = match text[dashes..].split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (&text[dashes..], None),
        };
        match other(name).filter(|_| (1..=2).contains(&dashes)) {
            Some((_, switch, fate)) => {
                let mut next = || rest.next().map(|value| value.to_string_lossy().into_owned());
                let value = value.or_else(|| if *switch { Some("true".into()) } else { next() });
                judge(&format!("--{name}"), *fate, &value.unwrap_or_default())?;
            }
            // A word, as Go's programs take it; single letters are clap's.
            None if dashes == 1 && name.len() > 1 => kept.push(format!("-{text}").into()),
            None => kept.push(arg),
        }
    }
    Ok(kept)
}

/// Judges etcd's other variables; returns those that nobody knows. `known` are those of flags.
pub fn variables(
    known: &BTreeSet<String>,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<String>> {
    let mut unknown = Vec::new();
    for (name, value) in environment {
        let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        match other(&rest.to_ascii_lowercase().replace('_', "-")) {
            Some((_, _, fate)) => judge(&name, *fate, &value)?,
            None if known.contains(&*name) || NOT_FLAGS.contains(&&*name) => {}
            None => unknown.push(name.into_owned()),
        }
    }
    unknown.sort();
    Ok(unknown)
}

/// What etcd's variable says is to be logged, in this program's words. etcd ends with what it calls panic and fatal, so
/// that these say no more than error.
pub fn log_level() -> Option<String> {
    let level = std::env::var(LOG_LEVEL).ok().filter(|level| !level.is_empty())?;
    Some(log_level_of(&level))
}

fn log_level_of(level: &str) -> String {
    let level = level.to_ascii_lowercase();
    if ["dpanic", "panic", "fatal"].contains(&&*level) { "error".into() } else { level }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sifted(line: &str) -> Result<String, String> {
        let argv = line.split(' ').map(OsString::from).collect();
        let kept = without_others(argv).map_err(|error| error.to_string())?;
        Ok(kept.join(std::ffi::OsStr::new(" ")).to_string_lossy().into_owned())
    }

    #[test]
    fn flags_that_ask_for_nothing_else_are_taken() {
        for (line, want) in [
            ("keelson store --name a", "keelson store --name a"),
            ("keelson store -name a --max-wals 5 --data-dir d", "keelson store --name a --data-dir d"),
            ("keelson store --max-wals=5 --pre-vote --name=a", "keelson store --name=a"),
            ("keelson store --enable-v2=false --experimental-corrupt-check-time 5m", "keelson store"),
            ("keelson store -h", "keelson store -h"),
            ("keelson --log-level=warn store --cors *", "keelson --log-level=warn store"),
            ("keelson server --max-wals 5", "keelson server --max-wals 5"),
            ("keelson store --wal-dir=", "keelson store"),
        ] {
            assert_eq!(sifted(line).as_deref(), Ok(want), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_its_reason() {
        for (line, want) in [
            ("keelson store --wal-dir /w", "--wal-dir is not supported: the log lies in --data-dir"),
            ("keelson store --enable-v2", "--enable-v2 can only be false here: the v2 API is not there"),
            ("keelson store -pre-vote=false", "--pre-vote can only be true here"),
            ("keelson store --discovery-srv example.com", "--initial-cluster"),
            ("keelson store --experimental-enable-distributed-tracing", "traces are not exported"),
        ] {
            let refused = sifted(line).expect_err(line);
            assert!(refused.contains(want), "{line}: {refused}");
        }
    }

    #[test]
    fn variables_are_judged_as_their_flags() {
        let known = BTreeSet::from(["ETCD_NAME".to_owned()]);
        let of = |all: &[(&str, &str)]| {
            let all: Vec<_> = all.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
            variables(&known, all.into_iter()).map_err(|error| error.to_string())
        };
        assert_eq!(of(&[("ETCD_NAME", "a"), ("HOME", "/"), ("ETCD_MAX_WALS", "5")]), Ok(vec![]));
        assert_eq!(of(&[("ETCD_NMAE", "a")]), Ok(vec!["ETCD_NMAE".to_owned()]));
        let refused = of(&[("ETCD_UNSAFE_NO_FSYNC", "true")]).expect_err("refused");
        assert!(refused.starts_with("ETCD_UNSAFE_NO_FSYNC can only be false here"), "{refused}");
    }

    #[test]
    fn levels_of_the_log_are_those_of_etcd() {
        for (level, want) in [("WARN", "warn"), ("debug", "debug"), ("panic", "error"), ("loud", "loud")] {
            assert_eq!(log_level_of(level), want);
        }
    }

    #[test]
    fn no_flag_is_both_followed_and_set_aside() {
        use clap::Args;
        let command = super::super::StoreArgs::augment_args(clap::Command::new("store"));
        for argument in command.get_arguments() {
            let names = argument.get_long().into_iter().chain(argument.get_all_aliases().unwrap_or_default());
            for name in names {
                assert!(other(name).is_none(), "--{name}");
            }
        }
    }
}
