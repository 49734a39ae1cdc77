//! Drawings of a report, as SVG inside the page.

use std::fmt::Write;

use crate::report::{Report, Second, escape};

/// Size of the timeline, in its own units.
const WIDTH: f64 = 1060.0;
const LEFT: f64 = 100.0;
/// Heights: a fault's row, a member's row, a plot.
const ROW: f64 = 16.0;
const PLOT: f64 = 120.0;
/// Latencies that are drawn, milliseconds, on a logarithmic scale.
const FASTEST: f64 = 0.1;
const SLOWEST: f64 = 10_000.0;
/// Lines of a fault's history that are drawn; all of them are in the text.
const MAX_BARS: usize = 60;

struct Drawing {
    svg: String,
    y: f64,
    /// Nanoseconds that the width stands for.
    span: f64,
}

impl Drawing {
    fn x(&self, at: u64) -> f64 {
        LEFT + (WIDTH - LEFT) * (at as f64 / self.span).min(1.0)
    }

    fn label(&mut self, text: &str) {
        let _ = write!(self.svg, "<text x=0 y={:.1}>{}</text>", self.y + 11.0, escape(text));
    }

    fn bar(&mut self, from: u64, to: u64, colour: &str, title: &str) {
        let (x, end) = (self.x(from), self.x(to));
        let _ = write!(
            self.svg,
            "<rect x={x:.1} y={:.1} width={:.1} height={:.1} fill='{colour}'><title>{}</title></rect>",
            self.y + 2.0,
            (end - x).max(1.5),
            ROW - 4.0,
            escape(title)
        );
    }

    fn line(&mut self, seconds: &[Second], colour: &str, height: impl Fn(&Second) -> Option<f64>) {
        let mut path = String::new();
        for (i, second) in seconds.iter().enumerate() {
            let Some(share) = height(second) else { continue };
            let (x, y) = (self.x(i as u64 * 1_000_000_000), self.y + PLOT * (1.0 - share.clamp(0.0, 1.0)));
            let _ = write!(path, "{}{x:.1} {y:.1} ", if path.is_empty() { "M" } else { "L" });
        }
        let _ = write!(self.svg, "<path d='{path}' fill=none stroke='{colour}' stroke-width=1.2 />");
    }
}

/// Faults, leaders, throughput and latency over time.
pub fn timeline(report: &Report) -> String {
    let mut drawing = Drawing { svg: String::new(), y: 0.0, span: (report.took as f64).max(1.0) };
    let mut names: Vec<&str> = report.faults.iter().map(|fault| fault.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        drawing.label(name);
        for fault in report.faults.iter().filter(|fault| fault.name == name) {
            drawing.bar(fault.start, fault.end, "#d9822b", &fault.what);
        }
        drawing.y += ROW;
    }
    for member in 0..usize::from(report.nodes) {
        drawing.label(&format!("leader {}", member + 1));
        for (i, led) in report.leaders.iter().enumerate().filter(|(_, led)| led.member == Some(member)) {
            let until = report.leaders.get(i + 1).map_or(report.took, |next| next.at);
            drawing.bar(led.at, until, "#2b6cd9", "leads");
        }
        drawing.y += ROW;
    }
    let mut minutes = 0;
    let step = (report.took / 60_000_000_000 / 12).max(1);
    while minutes * 60_000_000_000 < report.took {
        let x = drawing.x(minutes * 60_000_000_000);
        let _ = write!(drawing.svg, "<text x={x:.1} y={:.1}>{minutes} min</text>", drawing.y + 11.0);
        minutes += step;
    }
    drawing.y += ROW * 1.5;
    let most = report.seconds.iter().map(|s| s.ok + s.failed).max().unwrap_or(1).max(1) as f64;
    drawing.label(&format!("{most:.0}/s"));
    drawing.line(&report.seconds, "#176b2c", |second| Some(second.ok as f64 / most));
    drawing.line(&report.seconds, "#b00020", |second| Some(second.failed as f64 / most));
    drawing.y += PLOT + ROW;
    drawing.label("10 s");
    let scale = |ms: f64| (ms > 0.0).then(|| (ms.max(FASTEST) / FASTEST).ln() / (SLOWEST / FASTEST).ln());
    drawing.line(&report.seconds, "#bbb", |second| scale(second.max));
    drawing.line(&report.seconds, "#9a6700", |second| scale(second.p99));
    drawing.line(&report.seconds, "#2b6cd9", |second| scale(second.p50));
    drawing.y += PLOT;
    drawing.label("0.1 ms");
    drawing.y += ROW;
    format!(
        "<svg viewBox='0 0 {WIDTH} {:.0}'>{}</svg><p>Green: operations answered in a second; red: not answered. Below, \
         on a logarithmic scale: median (blue), 99th percentile (brown) and slowest (grey) of the answered ones.</p>",
        drawing.y, drawing.svg
    )
}

/// Gaps that are drawn, nanoseconds, on a logarithmic scale.
const SHORTEST_GAP: f64 = 1e7;
const LONGEST_GAP: f64 = 1e11;

/// Each fault's time without a write as a dot, a row for each kind.
pub fn gaps(kinds: &[(&str, Vec<u64>)]) -> String {
    let mut drawing = Drawing { svg: String::new(), y: 0.0, span: 1.0 };
    let x = |gap: f64| {
        let share = (gap.clamp(SHORTEST_GAP, LONGEST_GAP) / SHORTEST_GAP).ln() / (LONGEST_GAP / SHORTEST_GAP).ln();
        LEFT * 2.0 + (WIDTH - LEFT * 2.5) * share
    };
    for (name, gaps) in kinds {
        drawing.label(name);
        for gap in gaps {
            let (x, y) = (x(*gap as f64), drawing.y + ROW / 2.0);
            let _ = write!(drawing.svg, "<circle cx={x:.1} cy={y:.1} r=3 fill='#2b6cd9' fill-opacity=.4 />");
        }
        drawing.y += ROW;
    }
    for (at, text) in [(1e7, "10 ms"), (1e8, "0.1 s"), (1e9, "1 s"), (1e10, "10 s"), (1e11, "100 s")] {
        let (x, y) = (x(at), drawing.y + 11.0);
        let _ = write!(
            drawing.svg,
            "<path d='M{x:.1} 0V{:.1}' stroke='#ddd' /><text x={x:.1} y={y:.1}>{text}</text>",
            drawing.y
        );
    }
    drawing.y += ROW;
    format!("<svg viewBox='0 0 {WIDTH} {:.0}'>{}</svg>", drawing.y, drawing.svg)
}

/// A short history: each operation that names its times as a bar, all as text.
pub fn history(lines: &[String]) -> String {
    let timed: Vec<(u64, u64, &str)> = lines.iter().filter_map(|line| times(line)).take(MAX_BARS).collect();
    let mut page = String::new();
    let begin = timed.iter().map(|(start, ..)| *start).min().unwrap_or(0);
    let end = timed.iter().map(|(_, end, _)| *end).max().unwrap_or(0);
    if end > begin {
        let mut drawing = Drawing { svg: String::new(), y: 0.0, span: (end - begin) as f64 * 1.6 };
        for (start, end, line) in timed {
            drawing.bar(start - begin, end - begin, "#2b6cd9", line);
            let x = drawing.x(end - begin) + 4.0;
            let what = line.split(" us: ").nth(1).unwrap_or(line);
            let short: String = what.chars().take(90).collect();
            let _ = write!(drawing.svg, "<text x={x:.1} y={:.1}>{}</text>", drawing.y + 11.0, escape(&short));
            drawing.y += ROW;
        }
        page = format!("<svg viewBox='0 0 {WIDTH} {:.0}'>{}</svg>", drawing.y, drawing.svg);
    }
    if !lines.is_empty() {
        page += &format!("<pre>{}</pre>", escape(&lines.join("\n")));
    }
    page
}

/// The times in `client 3 120..450 us: ...`.
fn times(line: &str) -> Option<(u64, u64, &str)> {
    let range = line.split(" us: ").next()?.rsplit(' ').next()?;
    let (start, end) = range.split_once("..")?;
    Some((start.parse().ok()?, end.parse().ok()?, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_drawn_from_left_to_right() {
        let page = gaps(&[("kill", vec![1_000_000_000, 10_000_000_000])]);
        let at: Vec<f64> = page.split("cx=").skip(1).filter_map(|part| part.split(' ').next()?.parse().ok()).collect();
        assert!(at.len() == 2 && at[0] < at[1] && page.contains(">kill<"), "{page}");
    }

    #[test]
    fn a_history_is_drawn() {
        let lines = ["client 1 10..20 us: Write(1) -> <ok>".to_owned(), "what else there is to say".to_owned()];
        let page = history(&lines);
        assert!(page.matches("<rect").count() == 1 && page.contains("&lt;ok&gt;") && page.contains("what else"));
        assert_eq!(times(&lines[1]), None);
    }
}
