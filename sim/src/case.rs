//! What is run: all that a seed decides, written out, so that a case can be kept, shortened and run again.

use anyhow::{Context, Result};
use keelson_chaos::workloads;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::nemesis::{self, Planned};

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Decides everything that is not written out here.
    pub seed: u64,
    /// Members.
    pub nodes: u8,
    /// How long clients and faults go on, in milliseconds.
    pub length: u64,
    /// What clients do.
    pub workloads: Vec<String>,
    /// How long packets take, in microseconds, at least and at most.
    pub packets: (u64, u64),
    /// Entries after which a member takes a snapshot.
    pub snapshot_entries: u64,
    /// Entries that it keeps before a snapshot.
    pub kept_entries: u64,
    /// How much longer than in the real world clients pause.
    pub pace: f64,
    /// The faults.
    pub plan: Vec<Planned>,
}

/// What is asked for on the command line; what is not follows from the seed.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Members.
    pub nodes: Option<u8>,
    /// How long clients and faults go on, in milliseconds.
    pub length: u64,
    /// Faults to choose from.
    pub nemesis: Vec<String>,
    /// What clients do, or `any`: a few, as the seed says.
    pub workloads: Vec<String>,
}

/// How long packets take: a machine room, a country, a continent.
const PACKETS: &[(u64, u64)] = &[(100, 600), (500, 3000), (2000, 20_000)];

impl Case {
    /// The case of a seed.
    pub fn of(seed: u64, wanted: &Wanted) -> Result<Self> {
        let mut dice = StdRng::seed_from_u64(seed ^ 0x5eed);
        let nodes = [1, 3, 3, 3, 3, 5][dice.random_range(0..6)];
        let packets = PACKETS[dice.random_range(0..PACKETS.len())];
        let snapshot_entries = [20, 60, 200, 1000][dice.random_range(0..4)];
        let kept_entries = [0, 10, 100][dice.random_range(0..3)];
        let pace = [30.0, 100.0, 300.0][dice.random_range(0..3)];
        let mut workloads = chosen(&wanted.workloads, &mut dice)?;
        let forgets = |name: &String| workloads::find(name).is_some_and(|row| row.forgets);
        // Watches are checked against all of history.
        if workloads.iter().any(|name| name == "watch") && workloads.iter().any(forgets) {
            let forgetful = dice.random_range(0..2) == 0;
            workloads.retain(|name| if forgetful { name != "watch" } else { !forgets(name) });
        }
        // A run in which a few kinds of faults meet finds more than one with a little of all.
        let all = nemesis::find(&wanted.nemesis)?;
        let some: Vec<_> = all.iter().filter(|_| dice.random_range(0..10) < 4).copied().collect();
        let mut rows = if some.is_empty() || wanted.nemesis != ["all"] { all } else { some };
        if workloads.iter().any(|name| name == "watch") {
            rows.retain(|row| row.name != "compact");
        }
        let plan = nemesis::plan(&rows, wanted.length, &mut dice);
        let (nodes, length) = (wanted.nodes.unwrap_or(nodes), wanted.length);
        Ok(Self { seed, nodes, length, workloads, packets, snapshot_entries, kept_entries, pace, plan })
    }
}

fn chosen(names: &[String], dice: &mut StdRng) -> Result<Vec<String>> {
    let known: Vec<&str> = workloads::TABLE.iter().map(|row| row.name).collect();
    let of = |name: &String| {
        workloads::find(name).with_context(|| format!("there is no workload {name}: there are {}", known.join(", ")))
    };
    match names {
        [one] if one == "all" => Ok(known.iter().map(|name| (*name).to_owned()).collect()),
        [one] if one == "any" => {
            let mut some: Vec<_> = known.iter().filter(|_| dice.random_range(0..3) == 0).collect();
            if some.is_empty() {
                some.push(&known[dice.random_range(0..known.len())]);
            }
            Ok(some.iter().map(|name| (**name).to_owned()).collect())
        }
        names => names.iter().map(|name| of(name).map(|row| row.name.to_owned())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_follows_from_its_seed_and_survives_a_file() {
        let wanted = Wanted { nodes: None, length: 60_000, nemesis: vec!["all".into()], workloads: vec!["any".into()] };
        let case = Case::of(3, &wanted).unwrap();
        assert_eq!(case, Case::of(3, &wanted).unwrap());
        assert_ne!(case, Case::of(4, &wanted).unwrap());
        let text = serde_json::to_string(&case).unwrap();
        assert_eq!(case, serde_json::from_str(&text).unwrap());
        assert!(Case::of(3, &Wanted { workloads: vec!["nothing".into()], ..wanted }).is_err());
    }
}
