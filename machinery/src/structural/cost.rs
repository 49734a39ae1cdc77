//! What an expression may cost at worst: the estimate by which rules are refused that could run for too long.
//!
//! The numbers are those of Kubernetes, so that a rule is accepted here exactly if it is accepted there: every step costs one,
//! texts a tenth of their length, a list of the expression ten, a loop its body times the longest list. Lengths that the schema
//! does not limit are what the largest request can hold.

use std::collections::BTreeMap;

use super::{Additional, Schema};
use crate::cel::{Env, Expr, Kind, Kinds, Macro, Program, Type, escape};

/// Bytes of the largest request.
pub(super) const REQUEST_BYTES: u64 = 3 * 1024 * 1024;
/// Part of a text's length that reading it costs.
const TEXT: f64 = 0.1;
/// Part of a regular expression's length that it costs for each character.
const REGEX: f64 = 0.25;
/// What making a list, a map and an object costs.
const MADE: (u64, u64, u64) = (10, 30, 40);
/// What looking for an address and for a range in a range costs: both are of at most 16 bytes.
const CONTAINED: (u64, u64) = (4, 7);
/// Longest regular expression of a format.
const FORMAT_REGEX: u64 = 128;
/// Longest name of a format.
const FORMAT_SIZE: u64 = 64;
/// What asking the authorizer costs.
const CHECK: u64 = 350_000;
/// Longest durations and points in time as JSON, bytes.
const TIME_BYTES: u64 = 32;
/// A date as JSON, bytes.
const DATE_BYTES: u64 = 12;
/// Most attributes, and most capacities, of a device.
const DEVICE_ENTRIES: u64 = 32;
/// Longest name of a driver or domain, of an attribute, and longest text of one, characters.
const DEVICE_DOMAIN: u64 = 63;
/// See [`DEVICE_DOMAIN`].
const DEVICE_NAME: u64 = 32;
/// See [`DEVICE_DOMAIN`].
const DEVICE_VALUE: u64 = 64;

/// A value as the schema declares it, with the sizes that follow.
#[derive(Debug, Default)]
pub(super) struct Declared {
    /// Most characters, items or entries.
    most: u64,
    /// Fewest bytes of it as JSON.
    least_bytes: u64,
    /// Items or values.
    element: Option<Box<Declared>>,
    /// Keys of a map: nothing limits them.
    keys: Option<Box<Declared>>,
    fields: BTreeMap<String, Declared>,
    /// Values of a map that are asked for by name are known to be such as its other values are.
    named: bool,
}

impl Declared {
    fn simple(least_bytes: u64, most: u64) -> Self {
        Self { most, least_bytes, ..Self::default() }
    }

    /// What a schema declares.
    pub fn of(schema: &Schema) -> Option<Self> {
        if schema.int_or_string {
            return Some(Self::simple(1, schema.length.1.map_or(REQUEST_BYTES - 2, |most| most.saturating_mul(4))));
        }
        Some(match schema.kind.as_str() {
            "array" => {
                let element = Self::of(schema.items.as_deref()?)?;
                let fitting = (REQUEST_BYTES - 2) / (element.least_bytes + 1);
                let most = schema.item_count.1.unwrap_or(fitting);
                Self { most, least_bytes: 2, element: Some(Box::new(element)), ..Self::default() }
            }
            "object" => match &schema.additional {
                Some(Additional::Schema(values)) => {
                    let element = Self::of(values)?;
                    let fitting = (REQUEST_BYTES - 2) / (element.least_bytes + 6);
                    let most = schema.property_count.1.unwrap_or(fitting);
                    let keys = Some(Box::new(Self::simple(2, u64::MAX >> 1)));
                    Self { most, least_bytes: 2, element: Some(Box::new(element)), keys, ..Self::default() }
                }
                _ => Self::object(schema),
            },
            "string" => match (schema.format.as_str(), schema.length.1) {
                ("byte", Some(most)) => Self::simple(2, most),
                ("duration", _) => Self::simple(3, TIME_BYTES),
                ("date", _) => Self::simple(DATE_BYTES, DATE_BYTES),
                ("date-time", _) => Self::simple(21, TIME_BYTES),
                // A limit counts characters, of which each may take four bytes.
                (_, Some(most)) => Self::simple(2, most.saturating_mul(4)),
                _ if !schema.allowed.is_empty() => {
                    let texts = schema.allowed.iter().filter_map(|value| value.as_str());
                    Self::simple(2, texts.map(|text| text.len() as u64).max().unwrap_or(0))
                }
                _ => Self::simple(2, REQUEST_BYTES - 2),
            },
            "boolean" => Self::simple(4, 0),
            "integer" | "number" => Self::simple(1, 0),
            _ => return None,
        })
    }

    fn object(schema: &Schema) -> Self {
        let mut made = Self::simple(2, 0);
        for (name, property) in &schema.properties {
            let (Some(field), Some(escaped)) = (Self::of(property), escape(name)) else { continue };
            if schema.required.contains(name) && property.default.is_none() {
                made.least_bytes += name.len() as u64 + field.least_bytes + 4;
            }
            made.fields.insert(escaped, field);
        }
        made
    }

    /// A device as selectors see it, with the limits that the API has for what it says.
    fn device() -> Self {
        let map = |keys: u64, element: Self, named: bool| {
            let (element, keys) = (Some(Box::new(element)), Some(Box::new(Self::simple(0, keys))));
            Self { most: DEVICE_ENTRIES, element, keys, named, ..Self::default() }
        };
        let inner = |value: u64, named: bool| map(DEVICE_NAME, Self::simple(0, value), named);
        let fields = [
            ("driver", Self::simple(0, DEVICE_DOMAIN)),
            ("attributes", map(DEVICE_DOMAIN, inner(DEVICE_VALUE, true), false)),
            ("capacity", map(DEVICE_DOMAIN, inner(0, false), false)),
        ];
        Self { fields: fields.map(|(name, field)| (name.to_owned(), field)).into(), ..Self::default() }
    }

    /// How often such a value can be there where nothing limits that.
    pub fn most_in_a_request(&self) -> u64 {
        REQUEST_BYTES / (self.least_bytes + 1)
    }
}

/// A size at worst: characters, items or entries.
fn part(size: u64, factor: f64) -> u64 {
    let cost = (size as f64 * factor).ceil();
    if cost >= 18_446_744_073_709_551_615.0 { u64::MAX } else { cost as u64 }
}

fn sum(costs: impl IntoIterator<Item = u64>) -> u64 {
    costs.into_iter().fold(0, u64::saturating_add)
}

/// Where a value comes from.
#[derive(Clone, Copy)]
enum Origin<'d> {
    /// It is made by the expression.
    Made,
    /// It is of the object, but not where the schema declares anything.
    Undeclared,
    /// It is what the schema declares.
    Declared(&'d Declared),
}

/// What is known of an expression.
#[derive(Clone)]
struct Known<'d> {
    cost: u64,
    /// Its size, if it is told by the expression itself.
    size: Option<(u64, u64)>,
    origin: Origin<'d>,
    kind: Type,
}

impl<'d> Known<'d> {
    /// Its least and greatest size.
    fn sizes(&self) -> (u64, u64) {
        match (self.size, self.origin) {
            (Some(size), _) => size,
            (None, Origin::Declared(declared)) => (0, declared.most),
            _ if matches!(
                self.kind,
                Type::Bool | Type::Int | Type::Uint | Type::Double | Type::Duration | Type::Timestamp
            ) =>
            {
                (1, 1)
            }
            _ => (0, u64::MAX),
        }
    }

    fn most(&self) -> u64 {
        self.sizes().1
    }

    fn element(&self) -> Origin<'d> {
        match self.origin {
            Origin::Declared(declared) => declared.element.as_deref().map_or(Origin::Undeclared, Origin::Declared),
            other => other,
        }
    }

    /// Greatest size of the items of a list of texts; `None` if its items are no texts.
    fn element_size(&self) -> Option<u64> {
        let Type::List(item) = &self.kind else { return None };
        let item = Known { cost: 0, size: None, origin: self.element(), kind: (**item).clone() };
        matches!(item.kind, Type::String | Type::Bytes).then(|| item.most())
    }
}

struct Estimate<'e, 'd> {
    kinds: &'e Kinds,
    root: &'d Declared,
    scope: Vec<(&'e str, Known<'d>)>,
}

/// What an expression about a value that is declared so may cost at worst.
pub(super) fn estimate(expr: &Expr, kinds: &Kinds, root: &Declared) -> u64 {
    Estimate { kinds, root, scope: Vec::new() }.of(expr).cost
}

/// What a selector of devices may cost at worst.
pub(crate) fn of_device_selector(source: &str, program: &Program, env: &Env) -> u64 {
    estimate(program.expr(), &program.kinds(source, env), &Declared::device())
}

impl<'e, 'd> Estimate<'e, 'd> {
    fn made(&self, expr: &Expr, cost: u64, size: Option<(u64, u64)>) -> Known<'d> {
        Known { cost, size, origin: Origin::Made, kind: self.kinds.of(expr) }
    }

    fn of(&mut self, expr: &'e Expr) -> Known<'d> {
        match &expr.kind {
            Kind::Null | Kind::Bool(_) | Kind::Int(_) | Kind::Uint(_) | Kind::Double(_) => {
                self.made(expr, 0, Some((1, 1)))
            }
            Kind::String(text) => {
                let size = text.chars().count() as u64;
                self.made(expr, 0, Some((size, size)))
            }
            Kind::Bytes(bytes) => self.made(expr, 0, Some((bytes.len() as u64, bytes.len() as u64))),
            Kind::Ident(name) => {
                let local = self.scope.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone());
                let global = || Known { origin: Origin::Declared(self.root), ..self.made(expr, 1, None) };
                Known { cost: 1, ..local.unwrap_or_else(global) }
            }
            Kind::Select { operand, field, .. } => {
                let operand = self.of(operand);
                let steps = matches!(operand.kind, Type::Map(..) | Type::Object(_) | Type::Param(_));
                let origin = match operand.origin {
                    Origin::Declared(declared) => {
                        let value = declared.element.as_deref().filter(|_| declared.named);
                        declared.fields.get(field).or(value).map_or(Origin::Undeclared, Origin::Declared)
                    }
                    other => other,
                };
                let cost = operand.cost.saturating_add(u64::from(steps));
                Known { origin, ..self.made(expr, cost, None) }
            }
            Kind::Has { operand, .. } => {
                let cost = self.of(operand).cost;
                self.made(expr, cost, None)
            }
            Kind::List(items) => {
                let cost = sum(items.iter().map(|(item, _)| self.of(item).cost));
                let size = items.len() as u64;
                self.made(expr, cost.saturating_add(MADE.0), Some((size, size)))
            }
            Kind::Map(entries) => {
                let cost = sum(entries.iter().flat_map(|(k, v, _)| [self.of(k).cost, self.of(v).cost]));
                let size = entries.len() as u64;
                self.made(expr, cost.saturating_add(MADE.1), Some((size, size)))
            }
            Kind::Struct { fields, .. } => {
                let cost = sum(fields.iter().map(|(_, value, _)| self.of(value).cost));
                self.made(expr, cost.saturating_add(MADE.2), None)
            }
            Kind::Call { function, target, arguments } => self.call(expr, function, target.as_deref(), arguments),
            Kind::Macro { name, range, variables, arguments } => {
                self.repeated(expr, *name, range, variables, arguments)
            }
        }
    }

    fn call(&mut self, expr: &'e Expr, function: &str, target: Option<&'e Expr>, arguments: &'e [Expr]) -> Known<'d> {
        let target = target.filter(|target| !self.kinds.is_namespace(target)).map(|target| self.of(target));
        let arguments: Vec<Known<'d>> = arguments.iter().map(|argument| self.of(argument)).collect();
        let before = sum(target.iter().chain(&arguments).map(|known| known.cost));
        match (function, &arguments[..]) {
            ("_&&_" | "_||_", [..]) => return self.made(expr, before, None),
            ("_?_:_", [condition, yes, no]) => {
                let cost = condition.cost.saturating_add(yes.cost.max(no.cost));
                let (yes, no) = (yes.sizes(), no.sizes());
                return self.made(expr, cost, Some((yes.0.min(no.0), yes.1.max(no.1))));
            }
            ("_[_]", [value, _]) => {
                return Known { origin: value.element(), ..self.made(expr, before.saturating_add(1), None) };
            }
            _ => {}
        }
        let (own, size) = own_cost(function, target.as_ref(), &arguments);
        self.made(expr, before.saturating_add(own), size)
    }

    /// A macro: what its loop does besides the expressions that are given to it costs, too.
    fn repeated(
        &mut self,
        expr: &'e Expr,
        name: Macro,
        range: &'e Expr,
        variables: &'e [String],
        arguments: &'e [Expr],
    ) -> Known<'d> {
        let over = self.of(range);
        let depth = self.scope.len();
        let item = |origin, kind| Known { cost: 1, size: None, origin, kind };
        let keys = match over.origin {
            Origin::Declared(declared) => declared.keys.as_deref().map_or(Origin::Undeclared, Origin::Declared),
            other => other,
        };
        let bound = match (&over.kind, name) {
            (_, Macro::Bind) => vec![over.clone()],
            (Type::Optional(of), _) => vec![item(over.origin, (**of).clone())],
            (_, Macro::OptMap | Macro::OptFlatMap) => vec![item(over.origin, Type::Dyn)],
            (Type::Map(key, value), _) => vec![item(keys, (**key).clone()), item(over.element(), (**value).clone())],
            (Type::List(of), _) if variables.len() == 2 => {
                vec![item(Origin::Made, Type::Int), item(over.element(), (**of).clone())]
            }
            (Type::List(of), _) => vec![item(over.element(), (**of).clone())],
            _ => vec![item(Origin::Undeclared, Type::Dyn), item(Origin::Undeclared, Type::Dyn)],
        };
        self.scope.extend(variables.iter().map(String::as_str).zip(bound));
        let given: Vec<u64> = arguments.iter().map(|argument| self.of(argument).cost).collect();
        self.scope.truncate(depth);
        let (first, last) = (given.first().copied().unwrap_or(0), given.last().copied().unwrap_or(0));
        let chosen = given.len() == 2;
        // Taking a result into the list: the list so far, a list of one, and putting them together.
        let appended = |value: u64| value.saturating_add(2 + MADE.0);
        // At the start; for each item; at the end.
        let (start, each, end) = match name {
            Macro::All => (0, last.saturating_add(3), 1),
            Macro::Exists => (0, last.saturating_add(4), 1),
            Macro::ExistsOne => (0, last.saturating_add(2), 2),
            Macro::Filter => (MADE.0, last.saturating_add(appended(1)), 1),
            Macro::Map | Macro::TransformList if chosen => (MADE.0, first.saturating_add(appended(last)), 1),
            Macro::Map | Macro::TransformList => (MADE.0, appended(last), 1),
            Macro::TransformMap | Macro::TransformMapEntry if chosen => {
                (MADE.1, first.saturating_add(last).saturating_add(3), 1)
            }
            Macro::TransformMap | Macro::TransformMapEntry => (MADE.1, last.saturating_add(3), 1),
            // Upstream it is a loop over an empty list.
            Macro::Bind => return self.made(expr, sum([over.cost, last, MADE.0]), None),
            Macro::OptMap | Macro::OptFlatMap => {
                return self.made(expr, over.cost.saturating_mul(2).saturating_add(last).saturating_add(3), None);
            }
        };
        let cost = sum([over.cost, start, over.most().saturating_mul(each), end]);
        let kept = (0, over.most());
        let origin = if name == Macro::Filter { over.origin } else { Origin::Made };
        Known { origin, ..self.made(expr, cost, Some(kept)) }
    }
}

type Cost = (u64, Option<(u64, u64)>);

/// What a function costs beside its arguments, and how large its result is.
fn own_cost(function: &str, target: Option<&Known<'_>>, arguments: &[Known<'_>]) -> Cost {
    let text = |known: &Known<'_>| part(known.most(), TEXT);
    match (function, target, arguments) {
        ("bytes", None, [one]) => (text(one), Some((one.sizes().0, one.most().saturating_mul(4)))),
        ("string", None, [one]) if matches!(one.kind, Type::Bytes) => {
            (text(one), Some((one.sizes().0 / 4, one.most())))
        }
        ("quote", ..) => {
            let one = target.or(arguments.first());
            let most = one.map_or(u64::MAX, Known::most);
            (part(most, TEXT), Some((2, most.saturating_mul(2).saturating_add(2))))
        }
        ("format", Some(format), _) => (text(format), None),
        ("startsWith" | "endsWith", Some(_), [start]) => (text(start), None),
        ("@in", None, [_, list]) if matches!(list.kind, Type::List(_) | Type::Dyn) => (list.most(), None),
        ("matches", Some(of), [regex]) => (searched(of, regex), None),
        ("find" | "findAll", Some(of), [regex, ..]) => (searched(of, regex), Some(of.sizes())),
        ("contains", Some(of), [part]) => (text(of).saturating_mul(text(part)), None),
        ("_+_", None, [left, right]) => added(left, right),
        ("_==_", None, [left, right]) if equal_cost(left, right).is_some() => {
            (equal_cost(left, right).unwrap_or_default(), None)
        }
        ("_==_" | "_!=_", None, [left, right]) => (part(left.most().min(right.most()), TEXT), None),
        ("_<_" | "_<=_" | "_>_" | "_>=_", None, [left, right]) if matches!(left.kind, Type::String | Type::Bytes) => {
            (part(left.most().min(right.most()), TEXT), None)
        }
        ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", Some(of), _) => match &of.kind {
            Type::List(_) => {
                let each = 1u64.saturating_add(of.element_size().map_or(0, |size| part(size, TEXT)));
                (of.most().saturating_mul(each), None)
            }
            _ => (text(of), None),
        },
        ("lowerAscii" | "upperAscii" | "substring" | "trim", Some(of), _) => (text(of), Some(of.sizes())),
        ("charAt", Some(_), _) => (1, Some((0, 1))),
        ("replace", Some(of), [from, to, ..]) => (part(of.most(), 2.0 * TEXT), Some((0, replaced(of, from, to)))),
        ("split", Some(of), _) => (part(of.most(), 2.0 * TEXT), Some((0, of.most()))),
        ("join", Some(list), _) => {
            let items = list.element_size().map_or(0, |size| list.most().saturating_mul(size));
            let between = arguments.first().map_or(0, |s| s.most().saturating_mul(list.most().saturating_sub(1)));
            let size = items.saturating_add(between);
            (part(size, TEXT), Some((0, size)))
        }
        ("url", None, [one]) => (text(one), Some(one.sizes())),
        ("validate", Some(_), [one]) => (part(text(one), FORMAT_REGEX as f64 * REGEX), None),
        ("containsIP" | "containsCIDR", Some(_), [one]) => {
            let read = if matches!(one.kind, Type::String) { text(one) } else { 0 };
            let compared = if function == "containsIP" { CONTAINED.0 } else { CONTAINED.1 };
            (compared.saturating_add(read), None)
        }
        ("check", Some(_), _) => (CHECK, None),
        _ => (1, None),
    }
}

/// What it costs to tell whether two values are equal that only functions deal with; that they are not is told at length.
fn equal_cost(left: &Known<'_>, right: &Known<'_>) -> Option<u64> {
    match (&left.kind, &right.kind) {
        (Type::Opaque(one), Type::Opaque(other)) if one == other => match *one {
            "net.IP" | "net.CIDR" | "kubernetes.Quantity" | "kubernetes.Semver" => Some(1),
            "kubernetes.NamedFormat" => Some(part(FORMAT_SIZE, TEXT)),
            "kubernetes.URL" => Some(part(right.size.map_or(1, |(_, most)| most), TEXT)),
            name if name.starts_with("kubernetes.authorization.") => Some(1),
            _ => None,
        },
        _ => None,
    }
}

/// Finding a regular expression: one more than the text's length, so that an empty text counts.
fn searched(of: &Known<'_>, regex: &Known<'_>) -> u64 {
    part(of.most().saturating_add(1), TEXT).saturating_mul(part(regex.most(), REGEX))
}

fn added(left: &Known<'_>, right: &Known<'_>) -> Cost {
    let (a, b) = (left.sizes(), right.sizes());
    let size = (a.0.saturating_add(b.0), a.1.saturating_add(b.1));
    match left.kind {
        Type::String | Type::Bytes => (part(size.1, TEXT), Some(size)),
        Type::List(_) => (1, Some(size)),
        Type::Dyn => (part(size.1, TEXT).max(1), Some(size)),
        _ => (1, None),
    }
}

/// Greatest size of a text in which others are replaced.
fn replaced(of: &Known<'_>, from: &Known<'_>, to: &Known<'_>) -> u64 {
    let least = from.sizes().0;
    if least == 0 {
        return of.most().saturating_add(1).saturating_mul(to.most()).saturating_add(of.most());
    }
    if to.most() <= least { of.most() } else { of.most().div_ceil(least).saturating_mul(to.most()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::structural::type_of;
    use serde_json::json;

    /// Each row: a rule about lists of texts of at most so many characters and items, and what each item costs.
    #[test]
    fn loops_cost_what_their_bodies_do() {
        let cost = |schema: serde_json::Value, rule: &str| {
            let schema = Schema::parse(&schema);
            let env = Env::of([("self", type_of(&schema, false))]);
            let program = Program::compile(rule, &env).unwrap();
            estimate(program.expr(), &program.kinds(rule, &env), &Declared::of(&schema).unwrap())
        };
        for (most, each) in [(16, 11), (63, 30), (253, 106), (1024, 414)] {
            let list = json!({"type": "array", "maxItems": 100, "items": {"type": "string", "maxLength": most}});
            assert_eq!(cost(list, "self.all(x, x.contains('gpu'))"), 100 * each + 2, "{most}");
        }
        let text = |most: u64| json!({"type": "string", "maxLength": most});
        let numbers = json!({"type": "array", "maxItems": 10, "items": {"type": "integer"}});
        for (schema, rule, expected) in [
            (text(10), "self == 'abc'", 2),
            (text(10), "self.size() > 1", 3),
            (text(10), "self.startsWith('abcdefghijk')", 3),
            (text(10), "self.matches('^[a-z]+$')", 1 + 5 * 2),
            (text(10), "true ? self == 'abc' : true", 2),
            (text(10), "has({'a': 1}.a) || self == ''", 30 + 1),
            (numbers.clone(), "self.all(x, x > 0)", 1 + 10 * (3 + 2) + 1),
            (numbers.clone(), "self.exists(x, x > 0)", 1 + 10 * (4 + 2) + 1),
            (numbers.clone(), "self.map(x, x * 2).size() == 1", 1 + 10 + 10 * (2 + 12) + 1 + 1 + 1),
            (numbers.clone(), "3 in self", 1 + 10),
            (numbers, "self.isSorted()", 1 + 10),
            (json!({"type": "object", "properties": {"a": {"type": "integer"}}}), "self.a == 1", 2),
            (json!({"type": "object", "properties": {"a": {"type": "string"}}}), "self.a == 'x'", 3),
            (text(10), "quantity(self) == quantity('1Gi')", 1 + 1 + 1 + 1),
            (text(10), "cidr(self) == cidr('10.0.0.0/8')", 1 + 1 + 1 + 1),
            (text(10), "cidr(self).containsIP('10.0.0.1')", 1 + 1 + 4 + 1),
            (text(10), "url(self) == url('/a')", 1 + 4 + 1 + 1),
            (text(10), "!format.uuid().validate(self).hasValue()", 1 + 1 + 4 * 32 + 1 + 1),
        ] {
            assert_eq!(cost(schema, rule), expected, "{rule}");
        }
        assert!(cost(text(10), "optional.of(1).optMap(x, x + 1).value() == 2") < 20);
        // That two amounts are not equal is told at length.
        assert!(cost(text(10), "quantity(self) != quantity('1Gi')") > 1_000_000_000);
        let unbounded = json!({"type": "array", "items": {"type": "string"}});
        assert!(cost(unbounded, "self.all(x, self.all(y, x == y))") > 1_000_000_000);
    }

    /// The costs of upstream's own test of selectors.
    #[test]
    fn selectors_cost_what_a_device_can_hold() {
        const OF: &str = "device.attributes['dra.example.com']";
        let ten = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]";
        let nested =
            (0..7).fold("int('1'.find('[0-9]*')) < 100".to_owned(), |body, i| format!("{ten}.all(x{i}, {body})"));
        for (expression, expected) in [
            ("true".into(), 0),
            ("'dra.example.com' in device.attributes".into(), 3),
            ("device.driver == ''".into(), 2),
            ("device.driver == 'dra.example.com'".into(), 4),
            (format!("{OF}.name"), 4),
            (format!("{OF}['name']"), 4),
            (format!("cel.bind(dra, {OF}, dra.name)"), 15),
            (format!("{OF}.name > 0"), 5),
            (format!("{OF}.name == 'fish'"), 5),
            (format!("{OF}.name.exists(x, x > 0)"), 5 + 6 * 64),
            (format!("{OF}.names.all(x, x != '')"), 5 + 4 * 64),
            (format!("{OF}.names.size() == 2"), 6),
            (format!("{OF}.name.isGreaterThan(semver('0.0.1'))"), 6),
            ("device.capacity['dra.example.com'].name.isGreaterThan(quantity('1Ki'))".into(), 6),
            ("device.attributes.exists_one(x, x == 'dra.example.com')".into(), 164),
            (format!("{OF}.exists_one(x, x == 'services')"), 133),
            ("device.capacity['dra.example.com'].exists_one(x, x == 'memory')".into(), 133),
            (format!("{OF}.services.split('example').size() >= 2"), 19),
            (format!("{OF}.services.matches('[^a]?sym')"), 18),
            (nested, 85_555_551),
            ("device.allowMultipleAllocations == true".into(), 3),
        ] {
            let env = crate::cel::devices::env();
            let program = Program::compile(&expression, &env).unwrap();
            assert_eq!(of_device_selector(&expression, &program, &env), expected, "{expression}");
        }
    }

    #[test]
    fn sizes_follow_from_what_is_declared() {
        for (schema, least, most) in [
            (json!({"type": "string"}), 2, REQUEST_BYTES - 2),
            (json!({"type": "string", "maxLength": 5}), 2, 20),
            (json!({"type": "string", "enum": ["a", "abc"]}), 2, 3),
            (json!({"x-kubernetes-int-or-string": true}), 1, REQUEST_BYTES - 2),
            (json!({"x-kubernetes-int-or-string": true, "maxLength": 5}), 1, 20),
            (json!({"type": "array", "items": {"type": "integer"}}), 2, (REQUEST_BYTES - 2) / 2),
            (json!({"type": "object", "additionalProperties": {"type": "boolean"}}), 2, (REQUEST_BYTES - 2) / 10),
            (json!({"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}), 12, 0),
        ] {
            let declared = Declared::of(&Schema::parse(&schema)).unwrap();
            assert_eq!((declared.least_bytes, declared.most), (least, most), "{schema}");
        }
    }
}
