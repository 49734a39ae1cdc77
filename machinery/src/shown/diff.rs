//! The difference of two texts in unified form, with three lines around every change.

use std::collections::HashMap;
use std::ops::Range;

/// Lines around a change.
const CONTEXT: usize = 3;
/// Beyond this product of lengths the middle part is shown as replaced instead of compared.
const MAX_CELLS: usize = 16_000_000;
/// From so many lines on those that are more than one in a hundred are too many to look at each.
const LONG: usize = 200;

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

/// What becomes of each line; in a replaced part the old lines come first.
fn compare(old: &[String], new: &[String]) -> Vec<Step> {
    let blocks = if old.len().saturating_mul(new.len()) > MAX_CELLS {
        let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
        let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(|(a, b)| a == b).count();
        vec![Block { old: 0, new: 0, size: head }, Block { old: old.len() - tail, new: new.len() - tail, size: tail }]
    } else {
        Matcher::new(old, new).blocks()
    };
    let mut steps = Vec::with_capacity(old.len().max(new.len()));
    let (mut o, mut n) = (0, 0);
    for block in blocks.into_iter().chain([Block { old: old.len(), new: new.len(), size: 0 }]) {
        steps.extend(std::iter::repeat_n(Step::Old, block.old - o));
        steps.extend(std::iter::repeat_n(Step::New, block.new - n));
        steps.extend(std::iter::repeat_n(Step::Same, block.size));
        (o, n) = (block.old + block.size, block.new + block.size);
    }
    steps
}

/// Lines that follow each other in both texts: where they begin, and how many they are.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    old: usize,
    new: usize,
    size: usize,
}

/// Finds what two texts have in common as upstream's library does (go-difflib, after Python's `difflib`): the longest block
/// first, then the longest ones before and behind it. That is not always the least to change.
struct Matcher<'a> {
    old: &'a [String],
    new: &'a [String],
    /// Where each line is in the new text. In a long one those that are there often are left out: they begin no block.
    places: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Matcher<'a> {
    fn new(old: &'a [String], new: &'a [String]) -> Self {
        let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, line) in new.iter().enumerate() {
            places.entry(line).or_default().push(index);
        }
        if new.len() >= LONG {
            places.retain(|_, at| at.len() <= new.len() / 100 + 1);
        }
        Self { old, new, places }
    }

    /// All blocks in order.
    fn blocks(&self) -> Vec<Block> {
        let mut found = Vec::new();
        let mut parts = vec![(0..self.old.len(), 0..self.new.len())];
        while let Some((old, new)) = parts.pop() {
            let block = self.longest(&old, &new);
            if block.size > 0 {
                found.push(block);
                parts.push((old.start..block.old, new.start..block.new));
                parts.push((block.old + block.size..old.end, block.new + block.size..new.end));
            }
        }
        found.sort_unstable();
        found
    }

    /// The first of the longest blocks in a part of both texts.
    fn longest(&self, old: &Range<usize>, new: &Range<usize>) -> Block {
        let mut best = Block { old: old.start, new: new.start, size: 0 };
        // How long the block is that ends with the line before and a line of the new text.
        let mut before: HashMap<usize, usize> = HashMap::new();
        for i in old.clone() {
            let mut now = HashMap::new();
            let at = self.places.get(self.old[i].as_str()).map(Vec::as_slice).unwrap_or_default();
            for &j in at.iter().filter(|j| new.contains(j)) {
                let size = 1 + j.checked_sub(1).and_then(|j| before.get(&j)).copied().unwrap_or_default();
                now.insert(j, size);
                if size > best.size {
                    best = Block { old: i + 1 - size, new: j + 1 - size, size };
                }
            }
            before = now;
        }
        // Lines that are there often may be beside it.
        while best.old > old.start && best.new > new.start && self.old[best.old - 1] == self.new[best.new - 1] {
            best = Block { old: best.old - 1, new: best.new - 1, size: best.size + 1 };
        }
        let end = |block: &Block| (block.old + block.size, block.new + block.size);
        while let (o, n) = end(&best)
            && o < old.end
            && n < new.end
            && self.old[o] == self.new[n]
        {
            best.size += 1;
        }
        best
    }
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

    #[test]
    fn the_longest_block_stays_even_if_more_lines_could() {
        let (old, new) = (lines("a b c d e f g"), lines("e f g a x b x c x d"));
        let expected = "@@ -1,7 +1,10 @@\n-a\n-b\n-c\n-d\n e\n f\n g\n+a\n+x\n+b\n+x\n+c\n+x\n+d\n";
        assert_eq!(unified(&old, &new), expected);
    }

    #[test]
    fn what_is_often_in_a_long_text_begins_no_block() {
        let text = |own: &str| -> Vec<String> {
            let rest = (0..LONG).flat_map(|n| [format!("line{n}"), "}".to_owned()]);
            lines(own).into_iter().chain(rest).collect()
        };
        let expected = "@@ -1,6 +1,7 @@\n-a\n-}\n-b\n+x\n+y\n+}\n+z\n line0\n }\n line1\n";
        assert_eq!(unified(&text("a } b"), &text("x y } z")), expected);
        let expected = "@@ -1,3 +1,4 @@\n-a\n+x\n+y\n }\n-b\n+z\n";
        assert_eq!(unified(&lines("a } b"), &lines("x y } z")), expected);
    }
}
