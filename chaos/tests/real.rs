//! Short runs in the real world: the machine's etcd, in which nothing wrong may be found, and the binary under test.
//! Skipped, with the reason, without root, etcd or the binary.

use std::path::{Path, PathBuf};

use clap::Parser;
use keelson_chaos::{ChaosArgs, run};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: ChaosArgs,
}

/// Runs with flags, unless something is missing, and expects no fault.
fn expect_clean(name: &str, flags: &str, program: &Path) {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED: members run in network namespaces, which need root");
    }
    if !program.exists() {
        return eprintln!("SKIPPED: {} is not there", program.display());
    }
    let out = tempfile::tempdir().expect("a directory");
    let words = format!("chaos --name {name} --minutes 0.5 {flags}");
    let mut args = Command::parse_from(words.split_whitespace()).args;
    args.out = Some(out.path().join("report"));
    args.keelson = Some(if program.ends_with("keelson") { program.to_owned() } else { "/bin/true".into() });
    let report = run(&args).expect("the run can be made");
    assert!(report.is_clean(), "{}\nagain: {}", report.summary(), report.again);
    let operations: usize = report.workloads.iter().map(|workload| workload.checked.operations).sum();
    assert!(operations > 500 && !report.faults.is_empty(), "{}", report.summary());
    assert!(out.path().join("report/report.html").exists() && out.path().join("report/report.json").exists());
}

#[test]
fn nothing_is_wrong_with_etcd() {
    expect_clean("chetcd", "--seed 5 --system etcd", Path::new("/usr/bin/etcd"));
}

#[test]
fn nothing_is_wrong_with_keelson() {
    let exe = std::env::current_exe().expect("this program");
    let built: PathBuf = exe.ancestors().nth(2).expect("target/PROFILE").join("keelson");
    expect_clean("chkeel", "--seed 5 --system keelson", &built);
    expect_clean("chkeel", "--seed 6 --system keelson --nemesis kill-all,kill-leader,storm", &built);
}
