//! A run's report: JSON, and one HTML page that needs nothing else.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::checkers::Verdict;
use crate::context::{Sample, Shared};
use crate::plot;
use crate::run::ChaosArgs;
use crate::workloads::Checked;

/// How long after a fault's end a lack of writes counts as its doing, nanoseconds.
const AFTERMATH: u64 = 10_000_000_000;

/// A fault that was made.
#[derive(Clone, Debug, Serialize)]
pub struct FaultWindow {
    /// The row of the table.
    pub name: String,
    /// What was done to whom.
    pub what: String,
    /// When it began, nanoseconds since the run began.
    pub start: u64,
    /// When it ended.
    pub end: u64,
    /// The longest time without a successful write from its beginning until some seconds after its end, nanoseconds.
    pub gap: u64,
}

/// Who led from when on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Led {
    /// Since when, nanoseconds since the run began.
    pub at: u64,
    /// Which member, from 0; nobody during elections.
    pub member: Option<usize>,
}

/// What came of a workload.
#[derive(Clone, Debug, Serialize)]
pub struct WorkloadReport {
    /// The row of the table.
    pub name: String,
    /// What it does.
    pub about: String,
    /// The verdict.
    #[serde(flatten)]
    pub checked: Checked,
}

/// A second of the run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Second {
    /// Operations that were answered.
    pub ok: u64,
    /// Operations that were not.
    pub failed: u64,
    /// The median of the answered ones' times, milliseconds.
    pub p50: f64,
    /// Their 99th percentile.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The command that runs the same again.
    pub again: String,
    /// The seed.
    pub seed: u64,
    /// What was tested.
    pub system: String,
    /// How many members.
    pub nodes: u8,
    /// How long it took, nanoseconds.
    pub took: u64,
    /// The faults in order.
    pub faults: Vec<FaultWindow>,
    /// Leaders in order.
    pub leaders: Vec<Led>,
    /// Each second.
    pub seconds: Vec<Second>,
    /// Each workload.
    pub workloads: Vec<WorkloadReport>,
    /// What a system must not do, beyond what checkers judge: not coming back, not answering at the end.
    pub broken: Vec<String>,
}

impl Report {
    /// Before the workloads are judged.
    pub fn new(args: &ChaosArgs, seed: u64, shared: &Shared, faults: Vec<FaultWindow>, leaders: Vec<Led>) -> Self {
        let again = format!(
            "cargo xtask chaos --seed {seed} --minutes {} --pace {} --nodes {} --nemesis {} --workload {} --system {}",
            args.minutes,
            args.pace,
            args.nodes,
            args.nemesis.join(","),
            args.workload.join(","),
            args.system
        );
        Self::of(again, &args.system, args.nodes, shared, faults, leaders)
    }

    /// The same for a run that `again` repeats.
    pub fn of(
        again: String,
        system: &str,
        nodes: u8,
        shared: &Shared,
        mut faults: Vec<FaultWindow>,
        leaders: Vec<Led>,
    ) -> Self {
        let samples = shared.samples();
        let writes = write_ends(&samples);
        for fault in &mut faults {
            fault.gap = gap(&writes, fault.start, fault.end.saturating_add(AFTERMATH).min(shared.now()));
        }
        Self {
            again,
            seed: shared.seed,
            system: system.to_owned(),
            nodes,
            took: shared.now(),
            faults,
            leaders,
            seconds: seconds(&samples),
            workloads: Vec::new(),
            broken: Vec::new(),
        }
    }

    /// Whether nothing wrong was found.
    pub fn is_clean(&self) -> bool {
        self.broken.is_empty() && !self.workloads.iter().any(|workload| workload.checked.verdict.is_invalid())
    }

    /// A few lines for the terminal.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for workload in &self.workloads {
            let (name, checked) = (&workload.name, &workload.checked);
            let _ = writeln!(text, "  {name:<10} {:>8} operations  {}", checked.operations, word(&checked.verdict));
            if let Verdict::Invalid { faults } = &checked.verdict {
                faults.iter().for_each(|fault| text += &format!("    {}: {}\n", fault.kind, fault.what));
            }
        }
        self.broken.iter().for_each(|broken| text += &format!("  {broken}\n"));
        let gaps = self.gaps();
        if let (Some(median), Some(longest)) = (gaps.get(gaps.len() / 2), gaps.last()) {
            let _ = writeln!(
                text,
                "  {} faults; longest time without a write: median {:.1} s, most {:.1} s",
                gaps.len(),
                *median as f64 / 1e9,
                *longest as f64 / 1e9
            );
        }
        text + if self.is_clean() { "  CLEAN" } else { "  FAULTY" }
    }

    /// The gaps of all faults, in order of their length.
    fn gaps(&self) -> Vec<u64> {
        let mut gaps: Vec<u64> = self.faults.iter().map(|fault| fault.gap).collect();
        gaps.sort_unstable();
        gaps
    }

    /// Writes `report.json` and `report.html`.
    pub fn write(&self, out: &Path) -> Result<()> {
        std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
        std::fs::write(out.join("report.json"), serde_json::to_vec_pretty(self)?)?;
        std::fs::write(out.join("report.html"), self.html()).with_context(|| out.display().to_string())
    }

    fn html(&self) -> String {
        let verdict = if self.is_clean() { "clean" } else { "faulty" };
        let mut page = format!(
            "<!doctype html><html lang=en><meta charset=utf-8><title>{system}, seed {seed}: {verdict}</title>\
             <style>{STYLE}</style><h1>{nodes} members of {system}: <span class={verdict}>{verdict}</span></h1>\
             <p>{took:.0} s. Again: <code>{again}</code></p>",
            system = escape(&self.system),
            seed = self.seed,
            nodes = self.nodes,
            took = self.took as f64 / 1e9,
            again = escape(&self.again),
        );
        self.broken.iter().for_each(|broken| page += &format!("<p class=faulty>{}</p>", escape(broken)));
        page += "<h2>Verdicts</h2><table><tr><th>workload<th>operations<th>verdict<th>what is checked</tr>";
        for workload in &self.workloads {
            let (checked, word) = (&workload.checked, word(&workload.checked.verdict));
            let (name, about) = (escape(&workload.name), escape(&workload.about));
            let _ = write!(page, "<tr><td>{name}<td>{}<td class={word}>{word}<td>{about}</tr>", checked.operations);
        }
        page += "</table>";
        self.workloads.iter().for_each(|workload| page += &evidence(workload));
        page += "<h2>Timeline</h2>";
        page += &plot::timeline(self);
        page += "<h2>Time without a successful write, by fault</h2>";
        page += &plot::gaps(&self.gaps_by_fault());
        page += &self.gap_table();
        let count = self.faults.len();
        let _ = write!(page, "<details><summary>All {count} faults</summary>{}</details>", self.fault_table());
        page
    }

    /// The gaps of each kind of fault in order of their length; kinds with the longest gaps first.
    fn gaps_by_fault(&self) -> Vec<(&str, Vec<u64>)> {
        let mut kinds: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for fault in &self.faults {
            kinds.entry(&fault.name).or_default().push(fault.gap);
        }
        kinds.values_mut().for_each(|gaps| gaps.sort_unstable());
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, gaps)| std::cmp::Reverse(gaps.last().copied()));
        kinds
    }

    fn gap_table(&self) -> String {
        let mut table = String::from("<table><tr><th>fault<th>times<th>median<th>nine of ten within<th>longest</tr>");
        for (name, gaps) in self.gaps_by_fault() {
            let at =
                |share: usize| gaps.get(gaps.len() * share / 100).or(gaps.last()).copied().unwrap_or(0) as f64 / 1e9;
            let (name, count) = (escape(name), gaps.len());
            let _ = write!(
                table,
                "<tr><td>{name}<td>{count}<td>{:.2} s<td>{:.2} s<td>{:.2} s</tr>",
                at(50),
                at(90),
                at(100)
            );
        }
        table + "</table>"
    }

    fn fault_table(&self) -> String {
        let mut table = String::from("<table><tr><th>at<th>fault<th>what<th>lasted<th>no write for</tr>");
        for fault in &self.faults {
            let _ = write!(
                table,
                "<tr><td>{:.1} s<td>{}<td>{}<td>{:.1} s<td>{:.2} s</tr>",
                fault.start as f64 / 1e9,
                escape(&fault.name),
                escape(&fault.what),
                (fault.end - fault.start) as f64 / 1e9,
                fault.gap as f64 / 1e9
            );
        }
        table + "</table>"
    }
}

const STYLE: &str = "body{font:15px sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}\
    table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:left}\
    .clean,.valid{color:#176b2c}.faulty,.invalid{color:#b00020;font-weight:bold}.undecided{color:#9a6700}\
    pre{background:#f6f6f6;padding:.8em;overflow:auto}svg{width:100%;height:auto}svg text{font:11px sans-serif}";

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Valid => "valid",
        Verdict::Undecided { .. } => "undecided",
        Verdict::Invalid { .. } => "invalid",
    }
}

/// What a checker objects to, with the shortest histories that show it.
fn evidence(workload: &WorkloadReport) -> String {
    match &workload.checked.verdict {
        Verdict::Valid => String::new(),
        Verdict::Undecided { about } => {
            format!("<p class=undecided>{}: not decided: {}</p>", escape(&workload.name), escape(about))
        }
        Verdict::Invalid { faults } => {
            let mut text = format!("<h2>What is wrong in {}</h2>", escape(&workload.name));
            for fault in faults {
                let _ = write!(text, "<h3>{}</h3><p>{}</p>", escape(&fault.kind), escape(&fault.what));
                text += &plot::history(&fault.history);
            }
            text
        }
    }
}

/// For text inside HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// When successful writes were answered, in order.
fn write_ends(samples: &[Sample]) -> Vec<u64> {
    let mut ends: Vec<u64> = samples.iter().filter(|s| s.ok && s.write).map(|s| s.start + s.took).collect();
    ends.sort_unstable();
    ends
}

/// The longest time between successful writes that touches `start..end`.
fn gap(ends: &[u64], start: u64, end: u64) -> u64 {
    let first = ends.partition_point(|at| *at < start);
    let inside = ends[first..].iter().take_while(|at| **at <= end);
    let mut last = if first > 0 { ends[first - 1] } else { 0 };
    let mut longest = 0;
    for at in inside.copied().chain([end]) {
        longest = longest.max(at.saturating_sub(last));
        last = at;
    }
    longest
}

fn seconds(samples: &[Sample]) -> Vec<Second> {
    let length = samples.iter().map(|s| (s.start + s.took) / 1_000_000_000 + 1).max().unwrap_or(0);
    let mut took: Vec<Vec<f64>> = vec![Vec::new(); length as usize];
    let mut seconds = vec![Second::default(); length as usize];
    for sample in samples {
        let at = ((sample.start + sample.took) / 1_000_000_000) as usize;
        if sample.ok {
            seconds[at].ok += 1;
            took[at].push(sample.took as f64 / 1e6);
        } else {
            seconds[at].failed += 1;
        }
    }
    for (second, mut took) in seconds.iter_mut().zip(took) {
        took.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| took.get((took.len() as f64 * share) as usize).or(took.last()).copied().unwrap_or(0.0);
        (second.p50, second.p99, second.max) = (at(0.5), at(0.99), at(1.0));
    }
    seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(start: u64, took: u64, ok: bool) -> Sample {
        Sample { start, took, ok, write: true }
    }

    #[test]
    fn gaps_are_measured_over_the_faults_beginning_and_end() {
        let samples = [sample(0, 10, true), sample(10, 10, true), sample(30, 5, false), sample(60, 10, true)];
        let writes = write_ends(&samples);
        assert_eq!(gap(&writes, 25, 80), 50, "from 20 to 70");
        assert_eq!(gap(&writes, 25, 50), 30, "still nothing at the end");
        assert_eq!(gap(&[], 25, 50), 50);
    }

    #[test]
    fn seconds_have_percentiles() {
        let million = 1_000_000;
        let samples: Vec<Sample> =
            (1..=100).map(|i| sample(0, i * million, true)).chain([sample(0, 5, false)]).collect();
        let seconds = seconds(&samples);
        assert_eq!((seconds.len(), seconds[0].ok, seconds[0].failed), (1, 100, 1));
        assert_eq!((seconds[0].p50, seconds[0].p99, seconds[0].max), (51.0, 100.0, 100.0));
    }
}
