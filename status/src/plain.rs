//! The report as text for a terminal or a mail.

use std::fmt::Write;

use crate::model::{Report, Severity};
use crate::words::{bytes, micros, span};

/// Workloads and nodes that are shown; the rest is counted.
const ROWS: usize = 20;

/// All of it as text.
pub fn text(report: &Report) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "cluster {} at {} ({})\n", report.cluster_id, report.server, report.version);
    members(report, &mut out);
    nodes(report, &mut out);
    let broken: Vec<_> = report.workloads.iter().filter(|workload| !workload.is_whole()).collect();
    let pods = &report.pods;
    let _ = writeln!(
        out,
        "\npods {} ({} running, {} pending, {} failed), workloads {} ({} not whole)",
        pods.total,
        pods.running,
        pods.pending,
        pods.failed,
        report.workloads.len(),
        broken.len()
    );
    findings(report, &mut out);
    out
}

fn table(rows: &[Vec<String>], out: &mut String) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}   ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

fn header(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn members(report: &Report, out: &mut String) {
    let mut rows = vec![header(&[
        "SERVER", "ROLE", "TERM", "APPLIED", "LAG", "FSYNC", "WATCHERS", "REQUESTS", "STORE", "MEMORY", "UP", "VERSION",
    ])];
    for member in &report.members {
        let figures = &member.figures;
        let mut row = vec![member.name.clone(), member.role.clone()];
        match &member.error {
            Some(error) => row.push(error.clone()),
            None => row.extend([
                member.term.to_string(),
                member.applied_index.to_string(),
                member.lag_entries.to_string(),
                format!("{}/{}", micros(figures.sync_median_micros), micros(figures.sync_slow_micros)),
                figures.watchers.to_string(),
                figures.requests.to_string(),
                bytes(member.store_bytes),
                bytes(figures.memory_bytes),
                span(i64::try_from(figures.uptime_seconds).unwrap_or(i64::MAX)),
                figures.version.clone(),
            ]),
        }
        rows.push(row);
    }
    table(&rows, out);
}

fn nodes(report: &Report, out: &mut String) {
    out.push('\n');
    let mut rows = vec![header(&["NODE", "READY", "PODS", "VERSION", "ADDRESS", ""])];
    for node in report.nodes.iter().take(ROWS) {
        let mut remarks = node.pressures.clone();
        remarks.extend(node.cordoned.then(|| "cordoned".to_owned()));
        rows.push(vec![
            node.name.clone(),
            node.ready.clone(),
            format!("{}/{}", node.pods, node.pod_capacity),
            node.version.clone(),
            node.address.clone(),
            remarks.join(" "),
        ]);
    }
    table(&rows, out);
    if report.nodes.len() > ROWS {
        let _ = writeln!(out, "... and {} more", report.nodes.len() - ROWS);
    }
}

fn findings(report: &Report, out: &mut String) {
    if report.findings.is_empty() {
        let _ = writeln!(out, "\nall is well");
        return;
    }
    out.push('\n');
    for finding in &report.findings {
        let mark = match finding.severity {
            Severity::Critical => "CRITICAL",
            Severity::Warning => "WARNING",
            Severity::Info => "INFO",
        };
        let _ = writeln!(out, "{mark:<9} {}\n          -> {}", finding.what, finding.advice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Finding, Member, Node};

    #[test]
    fn columns_stand_below_each_other() {
        let down =
            Member { name: "b".into(), role: "follower".into(), error: Some("no answer".into()), ..Member::default() };
        let up = Member { name: "long-name".into(), role: "leader".into(), term: 7, ..Member::default() };
        let nodes = (0..30).map(|n| Node { name: format!("n{n}"), ..Node::default() }).collect();
        let finding = Finding { severity: Severity::Critical, what: "w".into(), advice: "do".into() };
        let text = text(&Report { members: vec![up, down], nodes, findings: vec![finding], ..Report::default() });
        assert!(text.contains("SERVER      ROLE       TERM"), "{text}");
        assert!(text.contains("b           follower   no answer\n"), "{text}");
        assert!(text.contains("... and 10 more") && text.contains("CRITICAL  w\n          -> do"), "{text}");
    }
}
