//! Events about the node itself, as `kubectl describe node` shows them: that its agent started, and what it came to be.

use crate::agent::Agent;
use crate::node::State;

/// How a node fares: ready, and short of memory, disk and processes.
type Fares = [bool; 4];

/// Reasons of events for each of it: when it is so, and when it is not.
const REASONS: [(&str, &str); 4] = [
    ("NodeReady", "NodeNotReady"),
    ("NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
    ("NodeHasDiskPressure", "NodeHasNoDiskPressure"),
    ("NodeHasInsufficientPID", "NodeHasSufficientPID"),
];

/// What is news after what was told before; all of it is to an agent that has told nothing yet.
fn news(before: Option<Fares>, now: Fares) -> Vec<&'static str> {
    let changed = |at: &usize| before.is_none_or(|before| before[*at] != now[*at]);
    // What comes last is what people wait for.
    let order = [1, 2, 3, 0].into_iter().filter(changed);
    order.map(|at| if now[at] { REASONS[at].0 } else { REASONS[at].1 }).collect()
}

impl Agent {
    /// Tells what changed of the node since it was reported last.
    pub(crate) fn tell_of_node(&self, state: &State) {
        let pressure = state.pressure;
        let now = [state.not_ready.is_none(), pressure.memory, pressure.disk, pressure.pids];
        let before = self.told_of_node.lock().replace(now);
        let name = &self.config.node_name;
        if before.is_none() {
            self.events.node(name, false, "Starting", "Starting kubelet.");
        }
        for reason in news(before, now) {
            self.events.node(name, false, reason, format!("Node {name} status is now: {reason}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_news_is_told() {
        let fine = [true, false, false, false];
        let all = ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"];
        assert_eq!(news(None, fine), all);
        assert!(news(Some(fine), fine).is_empty());
        assert_eq!(news(Some(fine), [false, false, true, false]), ["NodeHasDiskPressure", "NodeNotReady"]);
    }
}
