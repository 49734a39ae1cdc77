//! Many seeds, each in a process of its own, some at a time. One that fails is run again, to see that it does the same,
//! and is made shorter.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;

use crate::case::Case;
use crate::run::Outcome;
use crate::shrink;

/// How long a process may take in real time.
const PROCESS: Duration = Duration::from_secs(1800);
/// How often a process is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// What a seed may print.
const PRINTED_BYTES: u64 = 1 << 20;

/// How cases are run.
pub struct Runner {
    /// Processes at a time.
    pub jobs: usize,
    /// Whether each case is run twice, to see that it does the same.
    pub twice: bool,
    /// Whether failing cases are made shorter.
    pub shrink: bool,
    /// Where failing cases go.
    pub out: PathBuf,
    /// A built-in bug that is switched on.
    pub bug: Option<String>,
}

/// What came of many cases.
#[derive(Default)]
pub struct Sum {
    /// How many were run.
    pub cases: usize,
    /// Outcomes of those that failed, with the shortened case.
    pub failed: Vec<(Outcome, Case)>,
    /// Operations that were checked.
    pub operations: usize,
    /// Faults that were made.
    pub faults: usize,
    /// Members that began anew from their peers.
    pub healed: u64,
    /// Requests, answers and their parts on the network.
    pub packets: u64,
    /// Simulated milliseconds.
    pub simulated: u64,
    /// Real milliseconds of all processes.
    pub took: u64,
    /// Workloads whose checker gave up, and how often.
    pub undecided: BTreeMap<String, usize>,
}

impl Runner {
    /// Runs one case in a process of its own.
    pub fn one(&self, case: &Case) -> Result<Outcome> {
        let file = tempfile::NamedTempFile::new()?;
        serde_json::to_writer(&file, case)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--case").arg(file.path()).arg("--json");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        if let Some(bug) = &self.bug {
            command.env("KEELSON_BUG", bug);
        }
        let mut child = command.spawn().context("cannot start a simulation")?;
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if began.elapsed() > PROCESS {
                child.kill()?;
                child.wait()?;
                bail!("seed {} did not end within {PROCESS:?}", case.seed);
            }
            std::thread::sleep(LOOK);
        };
        let mut text = String::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(PRINTED_BYTES).read_to_string(&mut text)?;
        }
        serde_json::from_str(&text).with_context(|| format!("seed {} ended with {status} and no outcome", case.seed))
    }

    /// Runs all cases; tells of failures as they come.
    pub fn all(&self, cases: &[Case]) -> Result<Sum> {
        let (next, sum) = (AtomicUsize::new(0), Mutex::new(Sum::default()));
        std::thread::scope(|scope| {
            let worker = || {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    self.add(case, &sum)?;
                }
                Ok::<(), anyhow::Error>(())
            };
            let workers: Vec<_> = (0..self.jobs.max(1)).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_for_each(|worker| match worker.join() {
                Ok(result) => result,
                Err(_) => bail!("a thread panicked"),
            })
        })?;
        Ok(sum.into_inner())
    }

    fn add(&self, case: &Case, sum: &Mutex<Sum>) -> Result<()> {
        // A process that dies or hangs is a finding like others.
        let mut outcome = self.one(case).unwrap_or_else(|error| Outcome::died(case.seed, format!("{error:#}")));
        if self.twice || !outcome.clean {
            let again = self.one(case).unwrap_or_else(|error| Outcome::died(case.seed, format!("{error:#}")));
            if again.trace != outcome.trace {
                let what = format!("not the same twice: {} and {}", outcome.trace, again.trace);
                outcome.wrong.push(what);
                outcome.clean = false;
            }
        }
        let mut kept = case.clone();
        if !outcome.clean {
            println!("seed {}: {}", case.seed, outcome.wrong.join("; "));
            if self.shrink {
                kept = shrink::shorten(case, &outcome, |case| self.one(case).ok());
            }
            let file = self.keep(&kept)?;
            let (faults, seconds) = (kept.plan.len(), kept.length as f64 / 1000.0);
            println!("seed {}: {faults} faults in {seconds} s: keelson-sim --case {}", case.seed, file.display());
        }
        let mut sum = sum.lock();
        sum.cases += 1;
        sum.operations += outcome.operations;
        sum.faults += outcome.faults;
        sum.healed += outcome.healed;
        sum.packets += outcome.packets;
        sum.simulated += outcome.simulated;
        sum.took += outcome.took;
        for name in &outcome.undecided {
            *sum.undecided.entry(name.clone()).or_default() += 1;
        }
        if !outcome.clean {
            sum.failed.push((outcome, kept));
        }
        Ok(())
    }

    fn keep(&self, case: &Case) -> Result<PathBuf> {
        std::fs::create_dir_all(&self.out).with_context(|| self.out.display().to_string())?;
        let file = self.out.join(format!("seed-{}.json", case.seed));
        std::fs::write(&file, serde_json::to_string(case)?)?;
        Ok(file)
    }
}

/// Cases from a file: one, or one a line; lines that begin with `#` are remarks.
pub fn read(file: &Path) -> Result<Vec<Case>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines.map(|line| serde_json::from_str(line).with_context(|| file.display().to_string())).collect()
}

impl Sum {
    /// For people.
    pub fn summary(&self, real: Duration) -> String {
        let hours = self.simulated as f64 / 3.6e6;
        let (minutes, seconds) = (real.as_secs_f64() / 60.0, real.as_secs_f64());
        let times = self.simulated as f64 / 1000.0 / seconds;
        let alone = self.simulated as f64 / self.took.max(1) as f64;
        let undecided: usize = self.undecided.values().sum();
        format!(
            "{} seeds, {} failed, {undecided} histories not decided\n\
             {hours:.2} simulated hours in {seconds:.0} s: {times:.0} times real time, {alone:.0} times for each process, \
             {:.0} seeds a minute\n\
             {} operations checked, {} faults, {} members began anew, {} packets",
            self.cases,
            self.failed.len(),
            self.cases as f64 / minutes,
            self.operations,
            self.faults,
            self.healed,
            self.packets,
        )
    }
}
