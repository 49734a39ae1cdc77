//! `--sort-by`: values are compared as kubectl compares them, and equal ones come out in the order in which Go's `sort.Sort`
//! leaves them. That sort is not stable, but it always does the same, so scripts see one order from both programs.

use std::borrow::Cow;

use keelson_machinery::quantity::Quantity;
use serde_json::Value;

use crate::failure::{Failure, Outcome};

use super::jsonpath::{Template, relaxed};

/// Sorts rows by what a path finds in their objects.
pub fn by_path<T>(rows: &mut Vec<T>, path: &str, object: impl Fn(&T) -> &Value) -> Outcome {
    let path = relaxed(path)?;
    let template = Template::bare(&path).map_err(Failure::new)?;
    let key = |row: &T| -> Result<Option<Value>, String> {
        let found = template.find(object(row))?;
        Ok(found.into_iter().next().and_then(|piece| piece.into_iter().next()).map(Cow::into_owned))
    };
    let keys: Vec<Option<Value>> = rows.iter().map(key).collect::<Result<_, _>>().map_err(Failure::new)?;
    if !keys.is_empty() && keys.iter().all(Option::is_none) {
        return Err(Failure::new(format!("couldn't find any field with path \"{path}\" in the list of objects")));
    }
    if keys.iter().flatten().count() > 1
        && let Some(kind) = keys.iter().flatten().find_map(unsortable)
    {
        return Err(Failure::new(format!("Field {path} is an unsortable type: {kind}")));
    }
    by_keys(rows, &keys);
    Ok(())
}

/// Sorts rows by the key of each; those without one come first.
pub fn by_keys<T>(rows: &mut Vec<T>, keys: &[Option<Value>]) {
    let mut sorter = Sorter { order: (0..rows.len()).collect(), keys };
    sorter.sort();
    let mut taken: Vec<Option<T>> = std::mem::take(rows).into_iter().map(Some).collect();
    rows.extend(sorter.order.iter().filter_map(|at| taken[*at].take()));
}

/// What Go calls a value that has no order.
fn unsortable(value: &Value) -> Option<&'static str> {
    match value {
        Value::Bool(_) => Some("bool"),
        Value::Array(_) => Some("[]interface {}"),
        Value::Object(_) => Some("map[string]interface {}"),
        _ => None,
    }
}

/// Whether a value comes before another: quantities by their amount.
fn less(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Null, b) => !b.is_null(),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a < b,
            _ => a.as_f64() < b.as_f64(),
        },
        (Value::String(a), Value::String(b)) => match (Quantity::parse(a), Quantity::parse(b)) {
            (Ok(a), Ok(b)) => a < b,
            _ => a < b,
        },
        _ => false,
    }
}

/// Ranges up to this length are sorted by insertion.
const SHORT: usize = 12;
/// Ranges from this length on take their pivot from nine items.
const LONG: usize = 50;
/// Out of order items that are moved before a range counts as unsorted.
const MOVES: usize = 5;
/// The exchanges after which a range counts as descending.
const DESCENDING: usize = 12;

/// A pattern-defeating quicksort, step by step as Go takes it.
struct Sorter<'a> {
    order: Vec<usize>,
    keys: &'a [Option<Value>],
}

impl Sorter<'_> {
    fn less(&self, i: usize, j: usize) -> bool {
        match (&self.keys[self.order[i]], &self.keys[self.order[j]]) {
            (None, _) => true,
            (_, None) => false,
            (Some(a), Some(b)) => less(a, b),
        }
    }

    fn swap(&mut self, i: usize, j: usize) {
        self.order.swap(i, j);
    }

    fn sort(&mut self) {
        let length = self.order.len();
        self.quick(0, length, usize::BITS - length.leading_zeros());
    }

    fn quick(&mut self, mut a: usize, mut b: usize, mut limit: u32) {
        let (mut balanced, mut partitioned) = (true, true);
        loop {
            let length = b - a;
            if length <= SHORT {
                return self.insertion(a, b);
            }
            if limit == 0 {
                return self.heap(a, b);
            }
            if !balanced {
                self.scatter(a, b);
                limit -= 1;
            }
            let (mut pivot, swaps) = self.pivot(a, b);
            let mut ascending = swaps == 0;
            if swaps == DESCENDING {
                self.order[a..b].reverse();
                pivot = (b - 1) - (pivot - a);
                ascending = true;
            }
            if balanced && partitioned && ascending && self.nearly_sorted(a, b) {
                return;
            }
            if a > 0 && !self.less(a - 1, pivot) {
                a = self.equal_part(a, b, pivot);
                continue;
            }
            let (middle, already) = self.part(a, b, pivot);
            partitioned = already;
            let (left, right) = (middle - a, b - middle);
            balanced = left.min(right) >= length / 8;
            if left < right {
                self.quick(a, middle, limit);
                a = middle + 1;
            } else {
                self.quick(middle + 1, b, limit);
                b = middle;
            }
        }
    }

    fn insertion(&mut self, a: usize, b: usize) {
        for i in a + 1..b {
            let mut j = i;
            while j > a && self.less(j, j - 1) {
                self.swap(j, j - 1);
                j -= 1;
            }
        }
    }

    fn heap(&mut self, a: usize, b: usize) {
        let length = b - a;
        for i in (0..length.saturating_sub(1) / 2 + 1).rev() {
            self.sift(i, length, a);
        }
        for i in (0..length).rev() {
            self.swap(a, a + i);
            self.sift(0, i, a);
        }
    }

    fn sift(&mut self, low: usize, high: usize, first: usize) {
        let mut root = low;
        loop {
            let mut child = 2 * root + 1;
            if child >= high {
                return;
            }
            if child + 1 < high && self.less(first + child, first + child + 1) {
                child += 1;
            }
            if !self.less(first + root, first + child) {
                return;
            }
            self.swap(first + root, first + child);
            root = child;
        }
    }

    /// Moves a few items to places that only the length decides, against orders that make the pivots bad.
    fn scatter(&mut self, a: usize, b: usize) {
        let length = b - a;
        if length < 8 {
            return;
        }
        let mut random = length as u64;
        let mask = (1usize << (usize::BITS - length.leading_zeros())) - 1;
        let at = a + (length / 4) * 2;
        for i in 0..3 {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            let mut other = usize::try_from(random & mask as u64).unwrap_or(0);
            if other >= length {
                other -= length;
            }
            self.swap(at - 1 + i, a + other);
        }
    }

    /// The pivot, and how many exchanges it took to find it.
    fn pivot(&self, a: usize, b: usize) -> (usize, usize) {
        let length = b - a;
        let (mut swaps, quarter) = (0, length / 4);
        let (mut i, mut j, mut k) = (a + quarter, a + quarter * 2, a + quarter * 3);
        if length >= LONG {
            i = self.median([i - 1, i, i + 1], &mut swaps);
            j = self.median([j - 1, j, j + 1], &mut swaps);
            k = self.median([k - 1, k, k + 1], &mut swaps);
        }
        (self.median([i, j, k], &mut swaps), swaps)
    }

    fn median(&self, [mut a, mut b, mut c]: [usize; 3], swaps: &mut usize) -> usize {
        let mut order = |a: &mut usize, b: &mut usize| {
            if self.less(*b, *a) {
                *swaps += 1;
                std::mem::swap(a, b);
            }
        };
        order(&mut a, &mut b);
        order(&mut b, &mut c);
        order(&mut a, &mut b);
        b
    }

    fn nearly_sorted(&mut self, a: usize, b: usize) -> bool {
        let mut i = a + 1;
        for _ in 0..MOVES {
            while i < b && !self.less(i, i - 1) {
                i += 1;
            }
            if i == b {
                return true;
            }
            if b - a < LONG {
                return false;
            }
            self.swap(i, i - 1);
            if i - a >= 2 {
                let mut j = i - 1;
                while j >= 1 && self.less(j, j - 1) {
                    self.swap(j, j - 1);
                    j -= 1;
                }
            }
            if b - i >= 2 {
                let mut j = i + 1;
                while j < b && self.less(j, j - 1) {
                    self.swap(j, j - 1);
                    j += 1;
                }
            }
        }
        false
    }

    fn equal_part(&mut self, a: usize, b: usize, pivot: usize) -> usize {
        self.swap(a, pivot);
        let (mut i, mut j) = (a + 1, b - 1);
        loop {
            while i <= j && !self.less(a, i) {
                i += 1;
            }
            while i <= j && self.less(a, j) {
                j -= 1;
            }
            if i > j {
                return i;
            }
            self.swap(i, j);
            i += 1;
            j -= 1;
        }
    }

    fn part(&mut self, a: usize, b: usize, pivot: usize) -> (usize, bool) {
        self.swap(a, pivot);
        let (mut i, mut j, mut already) = (a + 1, b - 1, true);
        loop {
            while i <= j && self.less(i, a) {
                i += 1;
            }
            while i <= j && !self.less(j, a) {
                j -= 1;
            }
            if i > j {
                self.swap(j, a);
                return (j, already);
            }
            already = false;
            self.swap(i, j);
            i += 1;
            j -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sorted(values: &[Value]) -> Vec<Value> {
        let mut rows: Vec<Value> = values.iter().map(|v| json!({"v": v})).collect();
        by_path(&mut rows, ".v", |row| row).unwrap();
        rows.into_iter().map(|row| row["v"].clone()).collect()
    }

    #[test]
    fn texts_numbers_and_quantities() {
        for (given, expected) in [
            (json!(["a10", "a9", "a1"]), json!(["a1", "a10", "a9"])),
            (json!(["1500Mi", "1Gi", "1Ti", "5"]), json!(["5", "1Gi", "1500Mi", "1Ti"])),
            (json!([3, 1, 2]), json!([1, 2, 3])),
            (json!(["b", "1x", "a"]), json!(["1x", "a", "b"])),
        ] {
            assert_eq!(json!(sorted(given.as_array().unwrap())), expected);
        }
    }

    #[test]
    fn long_lists_of_every_shape_are_sorted() {
        // Lengths on both sides of each of the sort's limits.
        for length in [13u64, 49, 50, 130, 1000] {
            for shape in 0..5u64 {
                let value = |i: u64| match shape {
                    0 => i,
                    1 => length - i,
                    2 => i.wrapping_mul(2_654_435_761) % 97,
                    3 => i % 3,
                    _ => i ^ 1,
                };
                let values: Vec<Value> = (0..length).map(|i| json!(value(i))).collect();
                let mut expected: Vec<u64> = (0..length).map(value).collect();
                expected.sort_unstable();
                assert_eq!(json!(sorted(&values)), json!(expected), "shape {shape}, length {length}");
            }
        }
    }

    #[test]
    fn what_cannot_be_sorted_is_refused() {
        for (rows, path, expected) in [
            (json!([{"a": true}, {"a": false}]), ".a", "unsortable type: bool"),
            (json!([{"a": {}}, {"a": {}}]), "a", "unsortable type: map[string]interface {}"),
            (json!([{"a": 1}]), ".b", "couldn't find any field with path \"{.b}\""),
            (json!([{"a": 1}]), "{.a}{.b}", "unexpected path string"),
            (json!([{"a": 1}]), "a[", "unterminated array"),
        ] {
            let mut rows = rows.as_array().unwrap().clone();
            let error = by_path(&mut rows, path, |row| row).unwrap_err().to_string();
            assert!(error.contains(expected), "{path}: {error}");
        }
    }
}
