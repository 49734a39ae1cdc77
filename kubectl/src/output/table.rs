//! Tables: the server's, printed with columns as wide as their widest cell.

use serde_json::Value;

use crate::kinds::Kind;

/// Least width of a column, padding included.
const MIN_WIDTH: usize = 6;
/// Spaces between columns.
const PADDING: usize = 3;

/// Rows of cells as text. A row's last cell is not padded, and does not widen its column.
pub fn align(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    measure(rows, &mut widths);
    rows.iter().map(|row| line(row, &widths)).collect()
}

/// Widens `widths` to hold the rows: a watch keeps the widths it began with.
pub fn measure(rows: &[Vec<String>], widths: &mut Vec<usize>) {
    for row in rows {
        for (at, cell) in row.iter().enumerate().take(row.len().saturating_sub(1)) {
            if widths.len() <= at {
                widths.push(MIN_WIDTH);
            }
            widths[at] = widths[at].max(cell.chars().count() + PADDING);
        }
    }
}

/// One row.
pub fn line(row: &[String], widths: &[usize]) -> String {
    let mut text = String::new();
    for (at, cell) in row.iter().enumerate() {
        text.push_str(cell);
        if at + 1 < row.len() {
            let width = widths.get(at).copied().unwrap_or(MIN_WIDTH);
            text.extend(std::iter::repeat_n(
                ' ',
                width.saturating_sub(cell.chars().count()).max(usize::from(width > 0)),
            ));
        }
    }
    text.push('\n');
    text
}

/// What of a server's table is shown.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Columns of lower priority too.
    pub wide: bool,
    /// A column with the namespace first.
    pub namespace: bool,
    /// Names with their kind before them.
    pub kind: Option<Kind>,
    /// Labels that get a column.
    pub labels: Vec<String>,
    /// All labels in a column.
    pub all_labels: bool,
    /// No titles.
    pub no_headers: bool,
    /// A column with the kind of event first.
    pub events: bool,
}

impl View {
    /// The titles.
    pub fn titles(&self, table: &Value) -> Vec<String> {
        let mut titles = Vec::new();
        if self.events {
            titles.push("EVENT".to_owned());
        }
        if self.namespace {
            titles.push("NAMESPACE".to_owned());
        }
        titles.extend(self.columns(table).map(|(_, c)| c["name"].as_str().unwrap_or_default().to_uppercase()));
        titles.extend(self.labels.iter().map(|l| l.rsplit('/').next().unwrap_or(l).to_uppercase()));
        if self.all_labels {
            titles.push("LABELS".to_owned());
        }
        titles
    }

    fn columns<'a>(&self, table: &'a Value) -> impl Iterator<Item = (usize, &'a Value)> + use<'a> {
        let wide = self.wide;
        let columns = table["columnDefinitions"].as_array().map_or(&[][..], Vec::as_slice);
        columns.iter().enumerate().filter(move |(_, c)| wide || c["priority"].as_i64().unwrap_or(0) == 0)
    }

    /// The cells of a row; `columns` is the table that defines them.
    pub fn row(&self, columns: &Value, row: &Value, event: &str) -> Vec<String> {
        let metadata = &row["object"]["metadata"];
        let mut cells = Vec::new();
        if self.events {
            cells.push(event.to_owned());
        }
        if self.namespace {
            cells.push(metadata["namespace"].as_str().unwrap_or_default().to_owned());
        }
        for (at, column) in self.columns(columns) {
            let mut cell = text(&row["cells"][at]);
            if column["format"] == "name"
                && let Some(kind) = &self.kind
            {
                cell = format!("{}/{cell}", kind.qualified());
            }
            cells.push(cell);
        }
        let label = |key: &str| metadata["labels"][key].as_str().unwrap_or_default().to_owned();
        cells.extend(self.labels.iter().map(|l| label(l)));
        if self.all_labels {
            cells.push(labels(&metadata["labels"]));
        }
        cells
    }

    /// A whole table with its titles.
    pub fn rows(&self, table: &Value) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        if !self.no_headers {
            rows.push(self.titles(table));
        }
        rows.extend(table["rows"].as_array().into_iter().flatten().map(|row| self.row(table, row, "")));
        rows
    }
}

/// `a=b,c=d`, or `<none>`.
pub fn labels(labels: &Value) -> String {
    let pairs: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",") }
}

fn text(cell: &Value) -> String {
    match cell {
        Value::Null => "<none>".into(),
        Value::String(text) => match text.split_once(['\n', '\r']) {
            Some((first, _)) => format!("{first}..."),
            None => text.clone(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = |rows: &[&[&str]]| {
            rows.iter().map(|r| r.iter().map(|c| (*c).to_owned()).collect()).collect::<Vec<Vec<_>>>()
        };
        assert_eq!(align(&rows(&[&["NAME", "AGE"], &["a-long-name", "5m"]])), "NAME          AGE\na-long-name   5m\n");
        assert_eq!(align(&rows(&[&["N", "A", "B"], &["x", "y", "z"]])), "N     A     B\nx     y     z\n");
    }

    #[test]
    fn a_view_adds_and_leaves_out_columns() {
        let table = json!({"columnDefinitions": [{"name": "Name", "format": "name"}, {"name": "Node", "priority": 1}],
            "rows": [{"cells": ["a", "n"], "object": {"metadata": {"namespace": "ns", "labels": {"x": "1"}}}}]});
        let view = View { namespace: true, labels: vec!["x".into()], ..View::default() };
        assert_eq!(view.rows(&table), [["NAMESPACE", "NAME", "X"], ["ns", "a", "1"]]);
        let view = View { wide: true, all_labels: true, no_headers: true, ..View::default() };
        assert_eq!(view.rows(&table), [["a", "n", "x=1"]]);
    }
}
