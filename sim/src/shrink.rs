//! Makes a failing case shorter: fewer faults, less time, fewer workloads, for as long as it fails alike.

use crate::case::Case;
use crate::run::Outcome;

/// Runs that shortening may take.
const RUNS: usize = 80;
/// What is left of the run after its last fault, in milliseconds.
const AFTER: u64 = 5_000;

struct Shrink<'a, F> {
    best: Case,
    kinds: &'a [String],
    run: F,
    left: usize,
}

impl<F: FnMut(&Case) -> Option<Outcome>> Shrink<'_, F> {
    /// Keeps the case if it fails alike.
    fn attempt(&mut self, case: Case) -> bool {
        if self.left == 0 || case == self.best {
            return false;
        }
        self.left -= 1;
        let fails = (self.run)(&case).is_some_and(|outcome| outcome.wrong.iter().any(|kind| self.kinds.contains(kind)));
        if fails {
            self.best = case;
        }
        fails
    }

    /// Leaves out halves of the faults, then quarters, and so on.
    fn fewer_faults(&mut self) {
        let mut size = self.best.plan.len().div_ceil(2);
        while size > 0 && self.left > 0 {
            let mut at = 0;
            while at < self.best.plan.len() {
                let mut case = self.best.clone();
                let end = (at + size).min(case.plan.len());
                case.plan.drain(at..end);
                if !self.attempt(case) {
                    at += size;
                }
            }
            size /= 2;
        }
    }

    /// Ends the run soon after its last fault, then earlier still.
    fn less_time(&mut self) {
        let last = self.best.plan.last().map_or(0, |fault| fault.until);
        let length = self.best.length.min(last + AFTER);
        self.attempt(Case { length, ..self.best.clone() });
        while self.best.length > 1000 {
            let length = self.best.length / 2;
            let plan = self.best.plan.iter().filter(|fault| fault.at < length).cloned().collect();
            if !self.attempt(Case { length, plan, ..self.best.clone() }) {
                break;
            }
        }
    }

    fn fewer_workloads(&mut self) {
        for name in self.best.workloads.clone() {
            let workloads: Vec<String> = self.best.workloads.iter().filter(|other| **other != name).cloned().collect();
            if !workloads.is_empty() {
                self.attempt(Case { workloads, ..self.best.clone() });
            }
        }
    }
}

/// The shortest case found that fails like this one.
pub fn shorten(case: &Case, outcome: &Outcome, run: impl FnMut(&Case) -> Option<Outcome>) -> Case {
    let mut shrink = Shrink { best: case.clone(), kinds: &outcome.wrong, run, left: RUNS };
    shrink.less_time();
    shrink.fewer_workloads();
    shrink.fewer_faults();
    shrink.less_time();
    shrink.best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Wanted;

    #[test]
    fn what_does_not_matter_is_left_out() {
        let all = vec!["all".to_owned()];
        let wanted = Wanted { nodes: None, length: 600_000, nemesis: all.clone(), workloads: all };
        let case = Case::of(1, &wanted).unwrap();
        let guilty = case.plan[case.plan.len() / 2].clone();
        let outcome = |wrong: bool| Outcome {
            wrong: if wrong { vec!["set / lost".into()] } else { Vec::new() },
            ..Outcome::died(1, String::new())
        };
        let runs = |case: &Case| case.plan.contains(&guilty) && case.workloads.contains(&"set".to_owned());
        let short = shorten(&case, &outcome(true), |case| Some(outcome(runs(case))));
        assert_eq!((short.plan, short.workloads), (vec![guilty.clone()], vec!["set".to_owned()]));
        assert!(short.length <= guilty.until + AFTER, "{}", short.length);
    }
}
