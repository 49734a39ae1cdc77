//! Amounts of resources: requests of pods, what nodes have left.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts by resource name, in thousandths (cpu: millicores; memory: millibytes).
pub type Amounts = BTreeMap<String, i128>;

/// Units of quantities, in thousandths of one.
const UNITS: &[(&str, i128)] = &[
    ("Ki", 1000 << 10),
    ("Mi", 1000 << 20),
    ("Gi", 1000 << 30),
    ("Ti", 1000 << 40),
    ("Pi", 1000 << 50),
    ("Ei", 1000 << 60),
    ("m", 1),
    ("k", 1_000_000),
    ("M", 1_000_000_000),
    ("G", 1_000_000_000_000),
    ("T", 1_000_000_000_000_000),
    ("P", 1_000_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000_000),
];

/// A quantity in thousandths, rounded up; what is no quantity counts as 0 (the API refuses such).
pub fn milli(quantity: &Quantity) -> i128 {
    let text = quantity.0.as_str();
    let found = UNITS.iter().find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|number| (number, *unit)));
    let (number, unit) = found.unwrap_or((text, 1000));
    match number.split_once('.') {
        None => number.parse::<i128>().map(|n| n.saturating_mul(unit)).unwrap_or(0),
        Some(_) => number.parse::<f64>().map(|n| (n * unit as f64).ceil() as i128).unwrap_or(0),
    }
}

/// What a pod asks for: the sum of its containers, or the largest init container if that is more.
pub fn requests(spec: &PodSpec) -> Amounts {
    let mut sum = Amounts::new();
    let of = |container: &k8s_openapi::api::core::v1::Container| -> Amounts {
        let requests = container.resources.as_ref().and_then(|r| r.requests.clone()).unwrap_or_default();
        requests.iter().map(|(name, quantity)| (name.clone(), milli(quantity))).collect()
    };
    for container in &spec.containers {
        add(&mut sum, &of(container));
    }
    for container in spec.init_containers.iter().flatten() {
        for (name, amount) in of(container) {
            let entry = sum.entry(name).or_default();
            *entry = (*entry).max(amount);
        }
    }
    for (name, quantity) in spec.overhead.iter().flatten() {
        *sum.entry(name.clone()).or_default() += milli(quantity);
    }
    sum
}

/// Adds amounts.
pub fn add(sum: &mut Amounts, amounts: &Amounts) {
    for (name, amount) in amounts {
        *sum.entry(name.clone()).or_default() += amount;
    }
}

/// Whether a pod still uses its node.
pub fn occupies(pod: &Pod) -> bool {
    !matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, expected) in
            [("1", 1000), ("250m", 250), ("1.5", 1500), ("1Ki", 1_024_000), ("2M", 2_000_000_000), ("x", 0)]
        {
            assert_eq!(milli(&Quantity(text.into())), expected, "{text}");
        }
    }
}
