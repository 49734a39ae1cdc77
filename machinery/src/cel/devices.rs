//! What the expressions that choose devices see (KEP-4381): a driver, attributes and capacities by domain.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::semver::Semver;
use super::value::{Key, LazyMap, Value};
use super::{Bindings, Budget, Env, EvalError, Program, Type};
use crate::quantity::Quantity;

/// Most that one evaluation may cost.
pub const MAX_COST: u64 = 1_000_000;

/// An attribute of a device.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// true or false
    Bool(bool),
    /// a whole number
    Int(i64),
    /// text
    Text(String),
    /// a semantic version
    Version(String),
    /// several of them
    List(Vec<Attribute>),
}

impl Attribute {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Int(*value),
            Self::Text(text) => Value::text(text),
            // What the API let pass is a version.
            Self::Version(text) => {
                Semver::parse(text, false).map_or_else(|| Value::text(text), |version| Value::Semver(Rc::new(version)))
            }
            Self::List(items) => Value::list(items.iter().map(Self::value).collect()),
        }
    }
}

/// A device as expressions see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Device {
    /// Its driver.
    pub driver: String,
    /// Attributes by domain and name.
    pub attributes: BTreeMap<String, BTreeMap<String, Attribute>>,
    /// Capacities by domain and name.
    pub capacity: BTreeMap<String, BTreeMap<String, Quantity>>,
    /// Whether several claims may have it at once.
    pub shared: bool,
}

impl Device {
    /// An attribute by its full name `domain/name`.
    pub fn attribute(&self, full_name: &str) -> Option<&Attribute> {
        let (domain, name) = full_name.split_once('/')?;
        self.attributes.get(domain)?.get(name)
    }
}

/// A map by domain; one that is not there is empty, so that `device.attributes["x"].y` lacks `y` and not the domain.
struct ByDomain<'a>(BTreeMap<&'a str, Value<'a>>);

impl<'a> LazyMap<'a> for ByDomain<'a> {
    fn get(&self, key: &str) -> Option<Result<Value<'a>, EvalError>> {
        Some(Ok(self.0.get(key).cloned().unwrap_or_else(|| Value::Map(Rc::default()))))
    }
}

fn by_domain<'a, T>(all: &'a BTreeMap<String, BTreeMap<String, T>>, value: impl Fn(&'a T) -> Value<'a>) -> Value<'a> {
    let domain = |names: &'a BTreeMap<String, T>| {
        let entries = names.iter().map(|(name, one)| (Key::String(name.clone()), value(one)));
        Value::Map(Rc::new(entries.collect()))
    };
    Value::Lazy(Rc::new(ByDomain(all.iter().map(|(name, names)| (name.as_str(), domain(names))).collect())))
}

/// The types of what expressions see.
pub fn env() -> Env {
    let fields = [
        ("driver", Type::String),
        ("attributes", Type::map(Type::map(Type::Dyn))),
        ("capacity", Type::map(Type::map(Type::Opaque("kubernetes.Quantity")))),
        ("allowMultipleAllocations", Type::Bool),
    ];
    let fields = fields.map(|(name, kind)| (name.to_owned(), kind));
    Env { binds: true, ..Env::of([("device", Type::object("kubernetes.DRADevice", fields))]) }
}

/// Whether an expression chooses a device.
///
/// # Errors
/// What went wrong in the evaluation, and a value that is neither true nor false.
pub fn matches(program: &Program, device: &Device) -> Result<bool, EvalError> {
    let fields = BTreeMap::from([
        ("driver", Value::text(&device.driver)),
        ("attributes", by_domain(&device.attributes, Attribute::value)),
        ("capacity", by_domain(&device.capacity, |amount| Value::Quantity(*amount))),
        ("allowMultipleAllocations", Value::Bool(device.shared)),
    ]);
    let device = Value::Object("kubernetes.DRADevice", Rc::new(fields));
    match program.eval(&Bindings::from([("device", device)]), &Budget::new(MAX_COST))? {
        Value::Bool(chosen) => Ok(chosen),
        other => Err(EvalError::new(format!("must evaluate to bool, got {}", other.kind()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_choose_devices() {
        let device = Device {
            driver: "gpu.example.com".into(),
            attributes: BTreeMap::from([(
                "gpu.example.com".into(),
                BTreeMap::from([
                    ("model".into(), Attribute::Text("A100".into())),
                    ("slots".into(), Attribute::Int(4)),
                    ("ecc".into(), Attribute::Bool(true)),
                    ("firmware".into(), Attribute::Version("1.2.3".into())),
                ]),
            )]),
            capacity: BTreeMap::from([(
                "gpu.example.com".into(),
                BTreeMap::from([("memory".into(), Quantity::parse("40Gi").unwrap())]),
            )]),
            shared: false,
        };
        for (expression, expected) in [
            ("device.driver == 'gpu.example.com'", Ok(true)),
            ("device.attributes['gpu.example.com'].model == 'A100'", Ok(true)),
            ("device.attributes['gpu.example.com'].slots > 4", Ok(false)),
            ("device.attributes['gpu.example.com'].ecc", Ok(true)),
            ("device.attributes['gpu.example.com'].firmware.isGreaterThan(semver('1.0.0'))", Ok(true)),
            ("device.capacity['gpu.example.com'].memory.compareTo(quantity('32Gi')) >= 0", Ok(true)),
            ("has(device.attributes['other.example.com'].model)", Ok(false)),
            ("device.attributes['other.example.com'].model == 'x'", Err("no such key: model")),
            ("device.allowMultipleAllocations", Ok(false)),
        ] {
            let program = Program::compile(expression, &env()).unwrap();
            let found = matches(&program, &device);
            assert_eq!(
                found.as_ref().map_err(|why| why.message.as_str()),
                expected.as_ref().map_err(|why| *why),
                "{expression}"
            );
        }
        assert!(Program::compile("device.maker == 'x'", &env()).is_err());
        assert_eq!(device.attribute("gpu.example.com/slots"), Some(&Attribute::Int(4)));
        assert_eq!(device.attribute("slots"), None);
    }
}
