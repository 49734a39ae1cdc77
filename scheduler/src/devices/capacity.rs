//! Devices that several claims share (KEP-5075): how much of each capacity a request takes, and what is left.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1 as api;
use keelson_machinery::quantity::{Format, Quantity};

/// Amounts by the name of the capacity, as the device has it.
pub type Amounts = BTreeMap<String, Quantity>;

/// A capacity of a device and how requests may take of it.
#[derive(Clone, Debug)]
pub struct Capacity {
    /// Its name, as the slice has it.
    pub name: String,
    /// How much there is.
    pub value: Quantity,
    policy: Option<Policy>,
}

/// What requests may take.
#[derive(Clone, Debug)]
struct Policy {
    default: Option<Quantity>,
    /// Only these, ascending.
    values: Vec<Quantity>,
    range: Option<Range>,
}

#[derive(Clone, Debug)]
struct Range {
    least: Quantity,
    most: Option<Quantity>,
    step: Option<Quantity>,
}

impl Capacity {
    /// From the API's form; `None` if its amount is none.
    pub fn new(name: &str, from: &api::DeviceCapacity) -> Option<Self> {
        let parse = |q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| Quantity::parse(&q.0).ok();
        let policy = from.request_policy.as_ref().map(|policy| Policy {
            default: policy.default.as_ref().and_then(parse),
            values: policy.valid_values.iter().flatten().filter_map(parse).collect(),
            range: policy.valid_range.as_ref().and_then(|range| {
                Some(Range {
                    least: parse(&range.min)?,
                    most: range.max.as_ref().and_then(parse),
                    step: range.step.as_ref().and_then(parse).filter(|step| !step.is_zero()),
                })
            }),
        });
        Some(Self { name: name.to_owned(), value: parse(&from.value)?, policy })
    }

    /// What a request for this much takes, rounded up as the policy says; `None` if it may not have it.
    fn taken(&self, asked: Option<&Quantity>) -> Option<Quantity> {
        let Some(asked) = asked else {
            let default = self.policy.as_ref().and_then(|policy| policy.default);
            return Some(default.unwrap_or(self.value));
        };
        let Some(policy) = &self.policy else { return Some(*asked) };
        if let Some(range) = &policy.range {
            return range.rounded(asked);
        }
        match policy.values.is_empty() {
            true => Some(*asked),
            false => policy.values.iter().find(|value| *value >= asked).copied(),
        }
    }
}

impl Range {
    /// The least allowed amount that is enough.
    fn rounded(&self, asked: &Quantity) -> Option<Quantity> {
        let rounded = match &self.step {
            _ if *asked <= self.least => self.least,
            None => *asked,
            Some(step) => {
                // Whole units, as upstream of this version counts.
                let (step, least) = (step.units(), self.least.units());
                let steps = (asked.units().checked_sub(least)?).checked_add(step - 1)? / step;
                Quantity::from_units(steps.checked_mul(step)?.checked_add(least)?, Format::BinarySi)
            }
        };
        self.most.is_none_or(|most| rounded <= most).then_some(rounded)
    }
}

/// Whether two names of capacities are the same: one without domain is of the driver's.
fn same(one: &str, other: &str, driver: &str) -> bool {
    super::qualified(one, driver) == super::qualified(other, driver)
}

/// What a request takes of a device that is shared, beside what others have; `None` if that is too much or not allowed.
pub fn share(device: &[Capacity], driver: &str, asked: &Amounts, others: &[&Amounts]) -> Option<Amounts> {
    if !asked.keys().all(|name| device.iter().any(|capacity| same(&capacity.name, name, driver))) {
        return None;
    }
    let mut taken = Amounts::new();
    for capacity in device {
        let wanted = asked.iter().find(|(name, _)| same(name, &capacity.name, driver)).map(|(_, amount)| amount);
        let mine = capacity.taken(wanted)?;
        let used = others.iter().filter_map(|amounts| amounts.get(&capacity.name));
        if used.fold(mine, |sum, one| sum + *one) > capacity.value {
            return None;
        }
        taken.insert(capacity.name.clone(), mine);
    }
    Some(taken)
}

/// Whether a device that is not shared has at least what is asked for.
pub fn enough(device: &[Capacity], driver: &str, asked: &Amounts) -> bool {
    asked.iter().all(|(name, amount)| {
        device.iter().any(|capacity| same(&capacity.name, name, driver) && capacity.value >= *amount)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn amounts(of: &[(&str, &str)]) -> Amounts {
        of.iter().map(|(name, amount)| ((*name).to_owned(), Quantity::parse(amount).unwrap())).collect()
    }

    #[test]
    fn requests_are_rounded_up_or_refused() {
        let range = json!({"default": "2Gi", "validRange": {"min": "1Gi", "max": "8Gi", "step": "1Gi"}});
        let values = json!({"default": "2Gi", "validValues": ["2Gi", "6Gi"]});
        let open = json!({"default": "2Gi", "validRange": {"min": "1Gi"}});
        let table: Vec<(Value, Option<&str>, Option<&str>)> = vec![
            (Value::Null, None, Some("10Gi")),
            (Value::Null, Some("3Gi"), Some("3Gi")),
            (Value::Null, Some("11Gi"), None),
            (range.clone(), None, Some("2Gi")),
            (range.clone(), Some("1"), Some("1Gi")),
            (range.clone(), Some("2500Mi"), Some("3Gi")),
            (range.clone(), Some("8Gi"), Some("8Gi")),
            (range, Some("8193Mi"), None),
            (values.clone(), None, Some("2Gi")),
            (values.clone(), Some("3Gi"), Some("6Gi")),
            (values, Some("7Gi"), None),
            (open.clone(), Some("1500Mi"), Some("1500Mi")),
            (open, Some("5Mi"), Some("1Gi")),
        ];
        for (policy, asked, expected) in table {
            let mut object = json!({"value": "10Gi"});
            if !policy.is_null() {
                object["requestPolicy"] = policy.clone();
            }
            let from: api::DeviceCapacity = serde_json::from_value(object).unwrap();
            let device = [Capacity::new("memory", &from).unwrap()];
            let asked_amounts = asked.map(|a| amounts(&[("gpu.example.com/memory", a)])).unwrap_or_default();
            let found = share(&device, "gpu.example.com", &asked_amounts, &[]);
            assert_eq!(found, expected.map(|e| amounts(&[("memory", e)])), "{policy} {asked:?}");
        }
    }

    #[test]
    fn others_count_and_unknown_names_are_refused() {
        let from: api::DeviceCapacity = serde_json::from_value(json!({"value": "10"})).unwrap();
        let device = [Capacity::new("slots", &from).unwrap()];
        let used = amounts(&[("slots", "7")]);
        assert!(share(&device, "d", &amounts(&[("slots", "3")]), &[&used]).is_some());
        assert!(share(&device, "d", &amounts(&[("slots", "4")]), &[&used]).is_none());
        assert!(share(&device, "d", &amounts(&[("lanes", "1")]), &[]).is_none());
        assert!(enough(&device, "d", &amounts(&[("slots", "10")])));
        assert!(!enough(&device, "d", &amounts(&[("slots", "11")])));
        assert!(!enough(&device, "d", &amounts(&[("e/slots", "1")])));
    }
}
