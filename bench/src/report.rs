//! What a benchmark found: rows of named figures, as a Markdown table or JSON.

use serde::Serialize;

/// Rows in the order in which they were measured.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The rows.
    pub rows: Vec<Row>,
    /// Whether something failed that must not.
    #[serde(skip)]
    pub failed: bool,
}

/// One thing that was measured.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was done.
    pub what: String,
    /// Name and value of each figure; a value has its unit.
    pub figures: Vec<(&'static str, String)>,
}

impl Report {
    /// Adds a row, and says it to those who wait.
    pub fn add(&mut self, what: impl Into<String>, figures: Vec<(&'static str, String)>) {
        let row = Row { what: what.into(), figures };
        let shown: Vec<String> = row.figures.iter().map(|(name, value)| format!("{name} {value}")).collect();
        eprintln!("    {}: {}", row.what, shown.join(", "));
        self.rows.push(row);
    }

    /// Adds what could not be measured, and why. `ours`: the program that is measured must not fail so, and neither may the
    /// benchmark pass.
    pub fn fail(&mut self, what: impl Into<String>, error: &anyhow::Error, ours: bool) {
        self.failed |= ours;
        self.add(what, vec![("failed", format!("{error:#}").replace('\n', " "))]);
    }

    /// A Markdown table with a column for each name of a figure.
    pub fn table(&self, title: &str) -> String {
        let mut columns: Vec<&str> = Vec::new();
        for (name, _) in self.rows.iter().flat_map(|row| &row.figures) {
            if !columns.contains(name) {
                columns.push(name);
            }
        }
        let mut text = format!("| {title} | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
        for row in &self.rows {
            let value = |column: &str| {
                row.figures.iter().find(|(name, _)| *name == column).map_or("-", |(_, value)| value.as_str())
            };
            let cells: Vec<&str> = columns.iter().map(|column| value(column)).collect();
            text += &format!("| {} | {} |\n", row.what, cells.join(" | "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn figures_get_columns_by_name() {
        let mut report = Report::default();
        report.add("a", vec![("rate", "1/s".into())]);
        report.add("b", vec![("p99", "2 ms".into()), ("rate", "3/s".into())]);
        assert_eq!(report.table("t"), "| t | rate | p99 |\n|---|---|---|\n| a | 1/s | - |\n| b | 3/s | 2 ms |\n");
    }

    #[test]
    fn only_our_own_failures_fail_the_benchmark() {
        let mut report = Report::default();
        for (ours, want) in [(false, false), (true, true), (false, true)] {
            report.fail("a", &anyhow::anyhow!("two\nlines"), ours);
            assert_eq!(report.failed, want);
        }
        assert_eq!(report.rows[0].figures, [("failed", "two lines".to_owned())]);
    }
}
