//! Bars of what a benchmark found, one picture for each figure that several rows have.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::report::Report;

/// Width of the picture, of the names and of the longest bar, pixels.
const WIDTH: usize = 760;
const NAMES: usize = 330;
const LONGEST: f64 = 330.0;
/// Height of a row.
const ROW: usize = 24;

/// A picture for each column: its name and its SVG text.
pub fn pictures(report: &Report, title: &str) -> Vec<(String, String)> {
    let mut columns: Vec<&str> = Vec::new();
    for (name, _) in report.rows.iter().flat_map(|row| &row.figures) {
        if !columns.contains(name) {
            columns.push(name);
        }
    }
    let picture = |column: &str| {
        let bars: Vec<(&str, f64, &str)> = report
            .rows
            .iter()
            .filter_map(|row| {
                let (_, shown) = row.figures.iter().find(|(name, _)| *name == column)?;
                Some((row.what.as_str(), number(shown)?, shown.as_str()))
            })
            .collect();
        (bars.len() > 1).then(|| (column.to_owned(), svg(&format!("{title}: {column}"), &bars)))
    };
    columns.into_iter().filter_map(picture).collect()
}

/// Writes the pictures as `TITLE-COLUMN.svg`.
pub fn write(report: &Report, title: &str, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    for (column, picture) in pictures(report, title) {
        let name: String = column.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let path = dir.join(format!("{title}-{name}.svg").to_lowercase());
        std::fs::write(&path, picture).with_context(|| format!("write {}", path.display()))?;
        eprintln!("    {}", path.display());
    }
    Ok(())
}

/// The number that a figure begins with.
fn number(shown: &str) -> Option<f64> {
    let end = shown.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(shown.len());
    shown[..end].parse().ok()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn svg(title: &str, bars: &[(&str, f64, &str)]) -> String {
    let highest = bars.iter().map(|(_, value, _)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let height = ROW * (bars.len() + 2);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\
         <text x=\"8\" y=\"{ROW}\" font-weight=\"bold\">{}</text>\n",
        escaped(title)
    );
    for (row, (name, value, shown)) in bars.iter().enumerate() {
        let (top, width) = (ROW * (row + 1) + 10, (LONGEST * value / highest).max(1.0));
        let (base, end) = (top + 14, NAMES as f64 + width + 6.0);
        // Writing to text does not fail.
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{base}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{top}\" width=\"{width:.1}\" height=\"{}\" fill=\"#3b6ea5\"/>\
             <text x=\"{end:.1}\" y=\"{base}\" fill=\"#444\">{}</text>",
            NAMES - 8,
            escaped(name),
            ROW - 6,
            escaped(shown)
        );
    }
    text + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_with_several_numbers_become_pictures() {
        let mut report = Report::default();
        report.add("a & b", vec![("rate", "10/s".into()), ("note", "none".into())]);
        report.add("c", vec![("rate", "5.5/s".into()), ("p99", "2 ms".into())]);
        let pictures = pictures(&report, "t");
        assert_eq!(pictures.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["rate"]);
        let (_, picture) = &pictures[0];
        assert!(picture.contains("a &amp; b") && picture.contains(">5.5/s<"), "{picture}");
        assert!(picture.contains("width=\"330.0\"") && picture.contains("width=\"181.5\""), "{picture}");
    }
}
