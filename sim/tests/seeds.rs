//! Some seeds, and the cases that once failed, run by the built program.

use std::path::Path;
use std::process::{Command, Output};

/// Runs the program; it may use two processors.
fn simulate(out: &Path, words: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keelson-sim"));
    command.args(["--jobs", "2", "--out"]).arg(out).args(words.split_whitespace());
    command.output().expect("the program runs")
}

fn expect_clean(words: &str) {
    let out = tempfile::tempdir().expect("a directory");
    let Output { status, stdout, stderr } = simulate(out.path(), words);
    let (told, errors) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "keelson-sim {words}: {status}\n{told}{errors}");
    assert!(told.contains(" 0 failed"), "{told}");
}

#[test]
fn a_seed_does_the_same_twice() {
    expect_clean("--seeds 1..3 --minutes 0.1 --twice");
}

#[test]
fn seeds_are_clean() {
    expect_clean("--seeds 100..106 --minutes 0.2");
}

#[test]
fn cases_that_once_failed_are_clean() {
    expect_clean(&format!("--case {}/cases.jsonl", env!("CARGO_MANIFEST_DIR")));
}

#[test]
fn nonsense_is_refused() {
    let out = tempfile::tempdir().expect("a directory");
    for words in ["--nemesis earthquake", "--workload nothing", "--seeds 5", "--case nowhere.json"] {
        let Output { status, stderr, .. } = simulate(out.path(), words);
        assert_eq!(status.code(), Some(1), "{words}");
        assert!(!stderr.is_empty(), "{words}");
    }
}
