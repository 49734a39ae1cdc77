//! Feature gates: what an operator may open or close (`--feature-gates`), under upstream's names and with its words.
//!
//! A gate is for the whole process, as it is upstream: it is set once, before anything is served.

use std::sync::OnceLock;

/// A feature that can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// CBOR as an encoding of requests and answers (KEP-4222; alpha).
    CborServingAndStorage,
    /// `Workload` and `PodGroup` objects, and pods that name their group (KEP-4671; alpha).
    GenericWorkload,
    /// Pods of a group are bound together or not at all (KEP-4671; alpha, needs `GenericWorkload`).
    GangScheduling,
    /// `StorageVersionMigration` objects and their controller (KEP-4192; beta, closed).
    StorageVersionMigrator,
}

/// One row for each: its name, and whether it is open unless somebody says otherwise.
const FEATURES: &[(Feature, &str, bool)] = &[
    (Feature::CborServingAndStorage, "CBORServingAndStorage", false),
    (Feature::GenericWorkload, "GenericWorkload", false),
    (Feature::GangScheduling, "GangScheduling", false),
    (Feature::StorageVersionMigrator, "StorageVersionMigrator", false),
];

/// Which gates are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gates(u32);

impl Default for Gates {
    fn default() -> Self {
        FEATURES.iter().filter(|(_, _, open)| *open).fold(Self(0), |gates, (feature, ..)| gates.with(*feature, true))
    }
}

impl Gates {
    /// Reads `Name=true` pairs; of the same name the last one counts.
    ///
    /// # Errors
    /// In upstream's words, which pair cannot be read or names a gate that is not here.
    pub fn parse(pairs: &[String]) -> Result<Self, String> {
        let mut gates = Self::default();
        for pair in pairs.iter().filter(|pair| !pair.is_empty()) {
            let Some((name, value)) = pair.split_once('=') else {
                return Err(format!("--feature-gates: missing bool value for {}", pair.trim()));
            };
            let (name, value) = (name.trim(), value.trim());
            let open = match value {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                _ => {
                    let why = format!("err: strconv.ParseBool: parsing {value:?}: invalid syntax");
                    return Err(format!("--feature-gates: invalid value of {name}={value}, {why}"));
                }
            };
            let Some((feature, ..)) = FEATURES.iter().find(|(_, known, _)| *known == name) else {
                let known: Vec<&str> = FEATURES.iter().map(|(_, name, _)| *name).collect();
                let why = format!("those that can be changed here are {}", known.join(", "));
                return Err(format!("--feature-gates: unrecognized feature gate: {name}; {why}"));
            };
            gates = gates.with(*feature, open);
        }
        if gates.is_open(Feature::GangScheduling) && !gates.is_open(Feature::GenericWorkload) {
            return Err("--feature-gates: GangScheduling needs GenericWorkload=true as well".into());
        }
        Ok(gates)
    }

    /// These, but for one.
    #[must_use]
    pub fn with(self, feature: Feature, open: bool) -> Self {
        let bit = 1 << feature as u32;
        Self(if open { self.0 | bit } else { self.0 & !bit })
    }

    /// Whether a feature is there.
    pub fn is_open(self, feature: Feature) -> bool {
        self.0 & 1 << feature as u32 != 0
    }
}

static GATES: OnceLock<Gates> = OnceLock::new();

/// Sets the gates of this process; the first call counts.
pub fn install(gates: Gates) {
    let _ = GATES.set(gates);
}

/// The gates of this process.
pub fn gates() -> Gates {
    GATES.get().copied().unwrap_or_default()
}

/// Whether a feature is there in this process.
pub fn is_open(feature: Feature) -> bool {
    gates().is_open(feature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_read_or_refused() {
        for (pairs, open) in [
            (&[][..], &[][..]),
            (&["CBORServingAndStorage=true"], &[Feature::CborServingAndStorage]),
            (&["CBORServingAndStorage=true", "CBORServingAndStorage=F"], &[]),
            (&["GenericWorkload=1", " GangScheduling = T "], &[Feature::GenericWorkload, Feature::GangScheduling]),
            (&[""], &[]),
        ] {
            let pairs: Vec<String> = pairs.iter().map(|&pair| pair.into()).collect();
            let gates = Gates::parse(&pairs).unwrap();
            for (feature, ..) in FEATURES {
                assert_eq!(gates.is_open(*feature), open.contains(feature), "{pairs:?}: {feature:?}");
            }
        }
        for (pair, why) in [
            ("CBORServingAndStorage", "missing bool value for CBORServingAndStorage"),
            ("CBORServingAndStorage=maybe", "invalid value of CBORServingAndStorage=maybe, err: strconv.ParseBool"),
            ("Nothing=true", "unrecognized feature gate: Nothing"),
            ("GangScheduling=true", "GangScheduling needs GenericWorkload=true"),
        ] {
            let refused = Gates::parse(&[pair.into()]).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
