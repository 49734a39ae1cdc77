//! Filling templates in.

use serde_json::Value;

use super::functions::{call, is_true, shown};
use super::parse::{Node, Parsed, Pipe, Place, Term};

/// Templates in templates, at most.
const DEEPEST: usize = 1000;

enum Flow {
    On,
    Break,
    Continue,
}

struct Run<'a> {
    parsed: &'a Parsed,
    strict: bool,
    variables: Vec<(String, Value)>,
    depth: usize,
    out: &'a mut String,
}

/// Fills a template in; an error says where.
pub fn run(parsed: &Parsed, data: &Value, strict: bool, out: &mut String) -> Result<(), String> {
    let mut run = Run { parsed, strict, variables: vec![("$".into(), data.clone())], depth: 0, out };
    run.nodes(&parsed.nodes, data).map(|_| ())
}

fn at(place: &Place, why: String) -> String {
    format!("{}:{}: executing \"output\" at <{}>: {why}", place.line, place.column, place.text)
}

impl Run<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, String> {
        for node in nodes {
            match self.node(node, dot)? {
                Flow::On => {}
                other => return Ok(other),
            }
        }
        Ok(Flow::On)
    }

    fn scoped(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, String> {
        let depth = self.variables.len();
        let flow = self.nodes(nodes, dot);
        self.variables.truncate(depth);
        flow
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, String> {
        let depth = self.variables.len();
        let flow = match node {
            Node::Text(text) => {
                self.out.push_str(text);
                return Ok(Flow::On);
            }
            Node::Action(pipe) => {
                let value = self.pipe(pipe, dot)?;
                if pipe.variables.is_empty() {
                    self.out.push_str(&if value.is_null() { "<no value>".into() } else { shown(&value) });
                }
                return Ok(Flow::On);
            }
            Node::If(branches) => {
                let mut flow = Flow::On;
                for (condition, nodes) in branches {
                    let holds = match condition {
                        Some(pipe) => is_true(&self.pipe(pipe, dot)?),
                        None => true,
                    };
                    if holds {
                        flow = self.scoped(nodes, dot)?;
                        break;
                    }
                }
                flow
            }
            Node::With(pipe, nodes, otherwise) => {
                let value = self.pipe(pipe, dot)?;
                match is_true(&value) {
                    true => self.scoped(nodes, &value)?,
                    false => self.scoped(otherwise, dot)?,
                }
            }
            Node::Range(pipe, nodes, otherwise) => self.range(pipe, nodes, otherwise, dot)?,
            Node::Template(name, pipe, place) => {
                self.template(name, pipe.as_ref(), place, dot)?;
                Flow::On
            }
            Node::Break => Flow::Break,
            Node::Continue => Flow::Continue,
        };
        self.variables.truncate(depth);
        Ok(flow)
    }

    fn template(&mut self, name: &str, pipe: Option<&Pipe>, place: &Place, dot: &Value) -> Result<(), String> {
        let value = pipe.map_or(Ok(Value::Null), |pipe| self.pipe(pipe, dot))?;
        let parsed = self.parsed;
        let nodes = parsed.named.get(name).ok_or_else(|| at(place, format!("template {name:?} not defined")))?;
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(at(place, "exceeded maximum template depth (1000)".into()));
        }
        let outer = std::mem::replace(&mut self.variables, vec![("$".into(), value.clone())]);
        let done = self.nodes(nodes, &value);
        self.variables = outer;
        self.depth -= 1;
        done.map(|_| ())
    }

    fn range(&mut self, pipe: &Pipe, nodes: &[Node], otherwise: &[Node], dot: &Value) -> Result<Flow, String> {
        let value = self.value(pipe, dot)?;
        let items: Vec<(Value, Value)> = match value {
            Value::Array(items) => items.into_iter().enumerate().map(|(at, v)| (Value::from(at), v)).collect(),
            Value::Object(map) => map.into_iter().map(|(key, v)| (Value::from(key), v)).collect(),
            Value::Null => Vec::new(),
            Value::Number(n) if n.is_i64() => {
                (0..n.as_i64().unwrap_or(0)).map(|n| (Value::from(n), Value::from(n))).collect()
            }
            other => return Err(at(&pipe.place, format!("range can't iterate over {}", shown(&other)))),
        };
        if items.is_empty() {
            return self.scoped(otherwise, dot);
        }
        for (key, item) in items {
            let depth = self.variables.len();
            match pipe.variables.as_slice() {
                [value] => self.set(value, item.clone(), pipe.declares),
                [index, value] => {
                    self.set(index, key, pipe.declares);
                    self.set(value, item.clone(), pipe.declares);
                }
                _ => {}
            }
            let flow = self.nodes(nodes, &item)?;
            self.variables.truncate(depth);
            if matches!(flow, Flow::Break) {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn set(&mut self, name: &str, value: Value, declares: bool) {
        match self.variables.iter_mut().rev().find(|(have, _)| have == name) {
            Some(slot) if !declares => slot.1 = value,
            _ => self.variables.push((name.to_owned(), value)),
        }
    }

    /// A pipe's value, put into its variables.
    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, String> {
        let value = self.value(pipe, dot)?;
        for name in &pipe.variables {
            self.set(name, value.clone(), pipe.declares);
        }
        Ok(value)
    }

    fn value(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value, String> {
        let mut last: Option<Value> = None;
        for (command, place) in &pipe.commands {
            last = Some(self.command(command, dot, last, place)?);
        }
        Ok(last.unwrap_or_default())
    }

    fn command(&mut self, terms: &[Term], dot: &Value, last: Option<Value>, place: &Place) -> Result<Value, String> {
        let Some(first) = terms.first() else { return Ok(Value::Null) };
        let Term::Function(name) = first else {
            if terms.len() > 1 || last.is_some() {
                return Err(at(place, "can't give argument to non-function".into()));
            }
            return self.term(first, dot, place);
        };
        let mut arguments = Vec::new();
        for term in &terms[1..] {
            let value = self.term(term, dot, place)?;
            // These two look at no more than they need.
            let decided = match name.as_str() {
                "and" => !is_true(&value),
                "or" => is_true(&value),
                _ => false,
            };
            if decided {
                return Ok(value);
            }
            arguments.push(value);
        }
        arguments.extend(last);
        call(name, arguments).map_err(|why| at(place, calling(name, &why)))
    }

    fn term(&mut self, term: &Term, dot: &Value, place: &Place) -> Result<Value, String> {
        match term {
            Term::Literal(value) => Ok(value.clone()),
            Term::Nil => Err(at(place, "nil is not a command".into())),
            Term::Function(name) => call(name, Vec::new()).map_err(|why| at(place, calling(name, &why))),
            Term::Field(fields, place) => self.fields(dot, fields, place),
            Term::Variable(name, fields, place) => {
                let value = self.variables.iter().rev().find(|(have, _)| have == name).map(|(_, v)| v.clone());
                self.fields(&value.unwrap_or_default(), fields, place)
            }
            Term::Pipe(pipe, fields) => {
                let value = self.pipe(pipe, dot)?;
                self.fields(&value, fields, place)
            }
        }
    }

    fn fields(&self, value: &Value, fields: &[String], place: &Place) -> Result<Value, String> {
        let mut here = value;
        for field in fields {
            here = match here {
                Value::Object(map) => match map.get(field) {
                    Some(value) => value,
                    None if self.strict => {
                        return Err(at(place, format!("map has no entry for key {field:?}")));
                    }
                    None => &Value::Null,
                },
                Value::Null => &Value::Null,
                _ => return Err(at(place, format!("can't evaluate field {field} in type interface {{}}"))),
            };
        }
        Ok(here.clone())
    }
}
/// What is wrong with a call: how many arguments it has, or what it does.
fn calling(name: &str, why: &str) -> String {
    if why.starts_with("wrong number of args") { why.to_owned() } else { format!("error calling {name}: {why}") }
}
