//! The difference of two texts in unified form, with three lines around every change.

/// Lines around a change.
const CONTEXT: usize = 3;
/// Beyond this product of lengths the middle part is shown as replaced instead of compared.
const MAX_CELLS: usize = 16_000_000;

/// One line of the comparison.
#[derive(Clone, Copy, PartialEq)]
enum Step {
    Same,
    Old,
    New,
}

/// The hunks; "" if there is no difference.
pub fn unified(old: &[String], new: &[String]) -> String {
    let steps = compare(old, new);
    let changed: Vec<usize> = (0..steps.len()).filter(|i| steps[*i] != Step::Same).collect();
    let mut out = String::new();
    let mut at = 0;
    while at < changed.len() {
        let start = changed[at].saturating_sub(CONTEXT);
        let mut end = changed[at];
        while at < changed.len() && changed[at] <= end + 2 * CONTEXT + 1 {
            end = changed[at];
            at += 1;
        }
        hunk(&steps, start, (end + CONTEXT + 1).min(steps.len()), old, new, &mut out);
    }
    out
}

fn hunk(steps: &[Step], start: usize, end: usize, old: &[String], new: &[String], out: &mut String) {
    let count = |range: &[Step], side: Step| range.iter().filter(|s| **s == Step::Same || **s == side).count();
    let (mut o, mut n) = (count(&steps[..start], Step::Old), count(&steps[..start], Step::New));
    let (olds, news) = (count(&steps[start..end], Step::Old), count(&steps[start..end], Step::New));
    out.push_str(&format!("@@ -{} +{} @@\n", range(o, olds), range(n, news)));
    for step in &steps[start..end] {
        let (sign, line) = match step {
            Step::Same => (' ', &old[o]),
            Step::Old => ('-', &old[o]),
            Step::New => ('+', &new[n]),
        };
        o += usize::from(*step != Step::New);
        n += usize::from(*step != Step::Old);
        out.push(sign);
        out.push_str(line);
        out.push('\n');
    }
}

fn range(start: usize, count: usize) -> String {
    match count {
        0 => format!("{start},0"),
        1 => format!("{}", start + 1),
        _ => format!("{},{count}", start + 1),
    }
}

/// The longest common lines; in a replaced part the old lines come first.
fn compare(old: &[String], new: &[String]) -> Vec<Step> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&old[head..old.len() - tail], &new[head..new.len() - tail]);
    let mut steps = vec![Step::Same; head];
    if a.len().saturating_mul(b.len()) > MAX_CELLS {
        steps.extend(a.iter().map(|_| Step::Old));
        steps.extend(b.iter().map(|_| Step::New));
    } else {
        middle(a, b, &mut steps);
    }
    steps.extend(std::iter::repeat_n(Step::Same, tail));
    steps
}

fn middle(a: &[String], b: &[String], steps: &mut Vec<Step>) {
    let width = b.len() + 1;
    let mut best = vec![0_u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            best[i * width + j] = if a[i] == b[j] {
                best[(i + 1) * width + j + 1] + 1
            } else {
                best[(i + 1) * width + j].max(best[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut added = 0;
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            steps.extend(std::iter::repeat_n(Step::New, added));
            added = 0;
            steps.push(Step::Same);
            (i, j) = (i + 1, j + 1);
        } else if j == b.len() || i < a.len() && best[(i + 1) * width + j] >= best[i * width + j + 1] {
            steps.push(Step::Old);
            i += 1;
        } else {
            added += 1;
            j += 1;
        }
    }
    steps.extend(std::iter::repeat_n(Step::New, added));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn changes_are_shown_with_what_is_around_them() {
        let old = lines("a b c d e f g h");
        for (new, expected) in [
            ("a b c d e f g h", ""),
            ("a b c d x f g h", "@@ -2,7 +2,7 @@\n b\n c\n d\n-e\n+x\n f\n g\n h\n"),
            ("b c d e f g h", "@@ -1,4 +1,3 @@\n-a\n b\n c\n d\n"),
        ] {
            assert_eq!(unified(&old, &lines(new)), expected);
        }
    }
}
