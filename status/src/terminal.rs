//! The terminal page: the report, drawn anew with each answer of the servers.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Cell, Paragraph, Row, Sparkline, Table, Wrap};

use crate::model::{Member, Report, Severity};
use crate::words::{bytes, micros, span};

/// Points of the request rate that are remembered.
const HISTORY: usize = 240;
/// Rows of a panel's frame and header.
const FRAME_ROWS: u16 = 3;
/// Fewest rows for what is wrong.
const FINDING_ROWS: u16 = 6;
/// A write to disk that takes longer is shown in yellow.
const SLOW_SYNC_MICROS: u32 = 25_000;

/// What is shown.
#[derive(Default)]
pub struct Page {
    report: Report,
    /// Why the latest question was not answered.
    error: Option<String>,
    /// Requests in a second, the newest last.
    rates: VecDeque<u64>,
    /// Rows of the findings that are scrolled away.
    scroll: u16,
}

impl Page {
    /// Takes a new report, `seconds` after the one before it.
    pub fn answered(&mut self, report: Report, seconds: f64) {
        let requests = |report: &Report| report.members.iter().map(|member| member.figures.requests).sum::<u64>();
        if !self.report.members.is_empty() && seconds > 0.0 {
            let rate = requests(&report).saturating_sub(requests(&self.report)) as f64 / seconds;
            self.rates.push_back(rate.round() as u64);
            while self.rates.len() > HISTORY {
                self.rates.pop_front();
            }
        }
        self.report = report;
        self.error = None;
    }

    /// Notes that no server answered; what was known stays visible.
    pub fn failed(&mut self, why: String) {
        self.error = Some(why);
    }

    /// Scrolls what is wrong by so many rows.
    pub fn scroll(&mut self, rows: i32) {
        let now = i32::from(self.scroll) + rows;
        self.scroll = u16::try_from(now.clamp(0, 1000)).unwrap_or(0);
    }

    /// Draws it.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let members = u16::try_from(self.report.members.len()).unwrap_or(u16::MAX).clamp(1, 9) + FRAME_ROWS;
        let [head, top, middle, bottom] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(members),
            Constraint::Min(6),
            Constraint::Length((frame.area().height / 3).max(FINDING_ROWS)),
        ])
        .areas(frame.area());
        let [nodes, right] = Layout::horizontal([Constraint::Percentage(55), Constraint::Percentage(45)]).areas(middle);
        let [rate, workloads] = Layout::vertical([Constraint::Length(5), Constraint::Min(3)]).areas(right);
        self.draw_head(frame, head);
        self.draw_members(frame, top);
        self.draw_nodes(frame, nodes);
        self.draw_rate(frame, rate);
        self.draw_workloads(frame, workloads);
        self.draw_findings(frame, bottom);
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let report = &self.report;
        let state = match (&self.error, report.findings.first().map(|finding| finding.severity)) {
            (Some(why), _) => Span::styled(format!(" no answer: {why} "), Style::new().white().on_red().bold()),
            (None, Some(Severity::Critical)) => Span::styled(" broken ", Style::new().white().on_red().bold()),
            (None, Some(Severity::Warning)) => Span::styled(" needs care ", Style::new().black().on_yellow().bold()),
            (None, _) => Span::styled(" well ", Style::new().black().on_green().bold()),
        };
        let pods = &report.pods;
        let line = Line::from(vec![
            Span::styled(" keelson ", Style::new().bold()),
            state,
            Span::raw(format!(
                "  cluster {}   via {}   {} pods: {} running, {} pending   ",
                report.cluster_id, report.server, pods.total, pods.running, pods.pending
            )),
            Span::styled("q quits, \u{2191}\u{2193} scroll", Style::new().dim()),
        ]);
        frame.render_widget(Paragraph::new(line), area);
    }

    fn draw_members(&self, frame: &mut Frame<'_>, area: Rect) {
        let header = [
            "server", "role", "term", "applied", "lag", "fsync", "watchers", "requests", "store", "memory", "up",
            "version",
        ];
        let widths = [16, 9, 6, 10, 6, 17, 9, 11, 10, 10, 6, 10].map(Constraint::Length);
        let rows = self.report.members.iter().map(member_row);
        let table = Table::new(rows, widths).header(head_row(&header)).block(panel("servers"));
        frame.render_widget(table, area);
    }

    fn draw_nodes(&self, frame: &mut Frame<'_>, area: Rect) {
        let room = usize::from(area.height.saturating_sub(FRAME_ROWS));
        let mut nodes: Vec<_> = self.report.nodes.iter().collect();
        // Those that need care are always seen.
        nodes.sort_by_key(|node| node.ready == "True" && node.pressures.is_empty());
        let rows = nodes.into_iter().take(room).map(|node| {
            let ready = match node.ready.as_str() {
                "True" => Span::styled("ready", Style::new().green()),
                _ => Span::styled("not ready", Style::new().red().bold()),
            };
            let mut remarks = node.pressures.clone();
            remarks.extend(node.cordoned.then(|| "cordoned".to_owned()));
            Row::new(vec![
                Cell::from(node.name.clone()),
                Cell::from(ready),
                Cell::from(format!("{}/{}", node.pods, node.pod_capacity)),
                Cell::from(node.version.clone()),
                Cell::from(remarks.join(" ").yellow()),
            ])
        });
        let widths = [
            Constraint::Min(12),
            Constraint::Length(10),
            Constraint::Length(9),
            Constraint::Length(14),
            Constraint::Length(14),
        ];
        let ready = self.report.nodes.iter().filter(|node| node.ready == "True").count();
        let title = format!("nodes: {ready} of {} ready", self.report.nodes.len());
        let table =
            Table::new(rows, widths).header(head_row(&["node", "state", "pods", "version", ""])).block(panel(&title));
        frame.render_widget(table, area);
    }

    fn draw_rate(&self, frame: &mut Frame<'_>, area: Rect) {
        let width = usize::from(area.width.saturating_sub(2));
        let data: Vec<u64> = self.rates.iter().skip(self.rates.len().saturating_sub(width)).copied().collect();
        let title = format!("requests: {} a second", data.last().copied().unwrap_or(0));
        let line = Sparkline::default().data(&data).style(Style::new().fg(Color::Cyan)).block(panel(&title));
        frame.render_widget(line, area);
    }

    fn draw_workloads(&self, frame: &mut Frame<'_>, area: Rect) {
        let room = usize::from(area.height.saturating_sub(FRAME_ROWS));
        let mut workloads: Vec<_> = self.report.workloads.iter().collect();
        workloads.sort_by_key(|workload| workload.is_whole());
        let rows = workloads.into_iter().take(room).map(|workload| {
            let style = if workload.is_whole() { Style::new().green() } else { Style::new().yellow().bold() };
            Row::new(vec![
                Cell::from(format!("{}/{}", workload.namespace, workload.name)),
                Cell::from(workload.kind.clone()).dim(),
                Cell::from(format!("{}/{}", workload.ready, workload.desired)).style(style),
            ])
        });
        let widths = [Constraint::Min(16), Constraint::Length(12), Constraint::Length(9)];
        let whole = self.report.workloads.iter().filter(|workload| workload.is_whole()).count();
        let title = format!("workloads: {whole} of {} whole", self.report.workloads.len());
        let table = Table::new(rows, widths).header(head_row(&["name", "kind", "ready"])).block(panel(&title));
        frame.render_widget(table, area);
    }

    fn draw_findings(&self, frame: &mut Frame<'_>, area: Rect) {
        let mut lines = Vec::new();
        for finding in &self.report.findings {
            let (mark, style) = match finding.severity {
                Severity::Critical => ("\u{2716} ", Style::new().red().bold()),
                Severity::Warning => ("\u{25b2} ", Style::new().yellow()),
                Severity::Info => ("\u{2022} ", Style::new().cyan()),
            };
            lines.push(Line::from(vec![Span::styled(mark, style), Span::styled(finding.what.clone(), style)]));
            lines.push(Line::from(vec![Span::raw("  \u{2192} ").dim(), Span::raw(finding.advice.clone())]));
        }
        if lines.is_empty() {
            lines.push(Line::from("\u{2714} all is well".green()));
        }
        let text = Paragraph::new(lines).wrap(Wrap { trim: false }).scroll((self.scroll, 0));
        frame.render_widget(text.block(panel("what is wrong, and what to do")), area);
    }
}

fn panel(title: &str) -> Block<'static> {
    let title = Span::styled(format!(" {title} "), Style::new().bold());
    Block::bordered().border_type(BorderType::Rounded).border_style(Style::new().fg(Color::DarkGray)).title(title)
}

fn head_row(names: &[&str]) -> Row<'static> {
    let cells = names.iter().map(|name| Cell::from((*name).to_owned()));
    Row::new(cells).style(Style::new().fg(Color::Gray).add_modifier(Modifier::UNDERLINED))
}

fn member_row(member: &Member) -> Row<'static> {
    let name = Cell::from(member.name.clone()).bold();
    if let Some(error) = &member.error {
        let cells = vec![name, Cell::from("down").red().bold(), Cell::from(""), Cell::from(error.clone()).red()];
        return Row::new(cells);
    }
    let figures = &member.figures;
    let role = match member.role.as_str() {
        "leader" => Cell::from("leader").green().bold(),
        "learner" => Cell::from("learner").cyan(),
        other => Cell::from(other.to_owned()),
    };
    let sync = format!("{} / {}", micros(figures.sync_median_micros), micros(figures.sync_slow_micros));
    let sync = if figures.sync_slow_micros > SLOW_SYNC_MICROS { Cell::from(sync).yellow() } else { Cell::from(sync) };
    let lag = Cell::from(member.lag_entries.to_string());
    Row::new(vec![
        name,
        role,
        Cell::from(member.term.to_string()),
        Cell::from(member.applied_index.to_string()),
        if member.lag_entries > 100 { lag.yellow() } else { lag },
        sync,
        Cell::from(figures.watchers.to_string()),
        Cell::from(figures.requests.to_string()),
        Cell::from(bytes(member.store_bytes)),
        Cell::from(bytes(figures.memory_bytes)),
        Cell::from(span(i64::try_from(figures.uptime_seconds).unwrap_or(i64::MAX))),
        Cell::from(figures.version.clone()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Finding, Node, Workload};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn drawn(page: &Page, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| page.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    fn report(requests: u64) -> Report {
        let mut up = Member { name: "a".into(), role: "leader".into(), term: 3, ..Member::default() };
        up.figures.requests = requests;
        let down = Member { name: "b".into(), error: Some("refused".into()), ..Member::default() };
        let nodes = (0..60)
            .map(|n| Node {
                name: format!("node-{n}"),
                ready: if n == 59 { "False" } else { "True" }.into(),
                ..Node::default()
            })
            .collect();
        let workload =
            Workload { namespace: "d".into(), name: "web".into(), desired: 3, ready: 1, ..Workload::default() };
        let finding = Finding { severity: Severity::Critical, what: "it burns".into(), advice: "put it out".into() };
        Report {
            members: vec![up, down],
            nodes,
            workloads: vec![workload],
            findings: vec![finding],
            ..Report::default()
        }
    }

    #[test]
    fn all_panels_are_there_and_what_is_broken_comes_first() {
        let mut page = Page::default();
        page.answered(report(100), 2.0);
        page.answered(report(140), 2.0);
        let seen = drawn(&page, 140, 40);
        for part in [
            "leader",
            "refused",
            "node-59",
            "not ready",
            "59 of 60 ready",
            "20 a second",
            "d/web",
            "1/3",
            "it burns",
            "put it out",
            " broken ",
        ] {
            assert!(seen.contains(part), "{part}:\n{seen}");
        }
        page.failed("nobody there".into());
        assert!(drawn(&page, 140, 40).contains("no answer: nobody there"));
    }

    #[test]
    fn a_small_terminal_is_no_failure() {
        let mut page = Page::default();
        page.answered(report(1), 1.0);
        page.scroll(-5);
        page.scroll(3);
        for (width, height) in [(1, 1), (20, 5), (80, 24)] {
            drawn(&page, width, height);
        }
    }
}
