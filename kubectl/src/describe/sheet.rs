//! Text in columns: a cell ends with a tab, and cells that stand below each other in lines without a gap are as wide as
//! the widest of them.

/// Spaces after the widest cell of a column.
const PADDING: usize = 2;

/// A text whose columns are aligned when it is finished.
#[derive(Default)]
pub struct Sheet {
    done: String,
    open: String,
}

/// Writes a line at a level of indentation, with the arguments of `format!`.
macro_rules! row {
    ($sheet:expr, $level:expr, $($arg:tt)*) => { $sheet.line($level, &format!($($arg)*)) };
}
pub(super) use row;

impl Sheet {
    /// Adds text; what a terminal would obey is made visible.
    pub fn put(&mut self, text: &str) {
        if text.contains(['\u{1b}', '\r']) {
            self.open.push_str(&text.replace('\u{1b}', "^[").replace('\r', "\\r"));
        } else {
            self.open.push_str(text);
        }
    }

    /// Adds a line, two spaces further right for each level.
    pub fn line(&mut self, level: usize, text: &str) {
        self.put(&"  ".repeat(level));
        self.put(text);
        self.open.push('\n');
    }

    /// Aligns what there is: columns of what follows do not look at it.
    pub fn flush(&mut self) {
        let open = std::mem::take(&mut self.open);
        self.done.push_str(&aligned(&open, PADDING));
    }

    /// The text with its tabs, not aligned.
    pub fn raw(self) -> String {
        self.done + &self.open
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        self.flush();
        self.done
    }
}

/// Aligns the columns of a text.
pub fn aligned(text: &str, padding: usize) -> String {
    let lines: Vec<Vec<&str>> = text.split('\n').map(|line| line.split('\t').collect()).collect();
    let mut out = String::with_capacity(text.len() * 2);
    format(&lines, (0, lines.len()), padding, &mut Vec::new(), &mut out);
    out
}

fn format(lines: &[Vec<&str>], range: (usize, usize), padding: usize, widths: &mut Vec<usize>, out: &mut String) {
    let column = widths.len();
    let (mut first, end) = range;
    let mut at = first;
    while at < end {
        if column + 1 >= lines[at].len() {
            at += 1;
            continue;
        }
        write(lines, (first, at), widths, out);
        first = at;
        let mut width = 0;
        while at < end && column + 1 < lines[at].len() {
            width = width.max(lines[at][column].chars().count() + padding);
            at += 1;
        }
        widths.push(width);
        format(lines, (first, at), padding, widths, out);
        widths.pop();
        first = at;
    }
    write(lines, (first, end), widths, out);
}

fn write(lines: &[Vec<&str>], range: (usize, usize), widths: &[usize], out: &mut String) {
    for at in range.0..range.1 {
        for (column, cell) in lines[at].iter().enumerate() {
            out.push_str(cell);
            if let Some(width) = widths.get(column) {
                out.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
            }
        }
        if at + 1 < lines.len() {
            out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_end_where_a_line_has_no_such_cell() {
        for (text, expected) in [
            ("a:\tb\nlonger:\tc\n", "a:       b\nlonger:  c\n"),
            ("a:\tb\nplain\nlonger:\tc\n", "a:  b\nplain\nlonger:  c\n"),
            ("a\tb\tc\nx\tlonger\ty\nz\tw\n", "a  b       c\nx  longer  y\nz  w\n"),
            ("a\t\tb\nccc\t\td\n", "a      b\nccc    d\n"),
            ("no tab", "no tab"),
        ] {
            assert_eq!(aligned(text, 2), expected);
        }
    }

    #[test]
    fn a_flush_ends_columns() {
        let mut sheet = Sheet::default();
        sheet.line(0, "a\tb");
        sheet.flush();
        row!(sheet, 1, "{}\tb", "longer\u{1b}");
        assert_eq!(sheet.finish(), "a  b\n  longer^[  b\n");
    }
}
