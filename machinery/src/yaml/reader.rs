//! Reading a document.
//!
//! The parser is a port of the same C library as that of Go's reader, so its errors and their places are the same; what its
//! events mean is told here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use libyaml_safer::{Error, ErrorKind, Event, EventData, Mark, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

use super::scalar::Scalar;
use crate::decode::{MAX_DEPTH, TOO_DEEP};
use crate::shown;

/// From so many nodes on, aliases are counted.
const FEW_NODES: usize = 1000;
/// So many that come by aliases are never too many.
const FEW_ALIASED: usize = 100;
/// Of so many nodes almost all may come by aliases, of the second number a tenth.
const ALIASED_RANGE: (f64, f64) = (400_000.0, 4_000_000.0);

/// What was read.
#[derive(Debug)]
pub struct Document {
    /// The value; of keys that come twice the last counts.
    pub value: Value,
    /// The keys that come twice, each with its line.
    pub repeated: Vec<String>,
}

/// Reads the first document of a text; what follows it is not looked at. Errors are those of Go's reader.
pub fn read(text: &[u8]) -> Result<Document, String> {
    // The parser expects a line break at the end of a text in lines, and panics in a few more places where the original goes
    // on: nothing of it is used afterwards, so a panic is one more error of the document.
    let ended = needs_break(text).then(|| [text, b"\n"].concat());
    let composed = std::panic::catch_unwind(|| {
        let mut input = ended.as_deref().unwrap_or(text);
        let end = ended.as_ref().map(Vec::len);
        let mut parser = Parser::new();
        parser.set_input_string(&mut input);
        Composer { parser, anchors: HashMap::new(), end }.document()
    });
    let root = composed.map_err(|_| "yaml: unknown problem parsing YAML content")??;
    let mut decoder = Decoder::default();
    let value = match root {
        Some(root) => decoder.value(&root)?.json()?,
        None => Value::Null,
    };
    Ok(Document { value, repeated: decoder.repeated })
}

/// Whether a text ends within a line.
fn needs_break(text: &[u8]) -> bool {
    let last = text.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    !last.trim_ascii().is_empty()
}

/// A part of a document.
struct Node {
    /// From one.
    line: u64,
    /// How many lists and maps are within each other here.
    height: usize,
    content: Content,
}

enum Content {
    /// A scalar, with its tag; `true` if it has no quotes.
    Scalar(Option<String>, String, bool),
    List(Vec<Rc<Node>>),
    Map(Vec<(Rc<Node>, Rc<Node>)>),
    Alias(Rc<Node>),
}

/// Makes a tree of events.
struct Composer<'a> {
    parser: Parser<&'a mut &'a [u8]>,
    /// What has a name; nothing for what is not at its end.
    anchors: HashMap<String, Option<Rc<Node>>>,
    /// Where the text ends, in bytes, if a line break was put there.
    end: Option<usize>,
}

impl Composer<'_> {
    fn document(mut self) -> Result<Option<Rc<Node>>, String> {
        loop {
            match self.next()?.data {
                EventData::StreamStart { .. } => {}
                EventData::DocumentStart { .. } => break,
                _ => return Ok(None),
            }
        }
        let first = self.next()?;
        let root = self.node(first, 0)?;
        // What follows at once belongs to the document.
        self.next()?;
        Ok(root)
    }

    fn next(&mut self) -> Result<Event, String> {
        self.parser.parse().map_err(|error| told(&error, self.end))
    }

    /// The node that begins with an event; `None` for an event that ends one.
    fn node(&mut self, event: Event, depth: usize) -> Result<Option<Rc<Node>>, String> {
        let line = event.start_mark.line + 1;
        if depth > MAX_DEPTH {
            return Err(TOO_DEEP.into());
        }
        let (anchor, content) = match event.data {
            EventData::Scalar { anchor, tag, mut value, plain_implicit, style, .. } => {
                let in_lines = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
                if in_lines && self.end.is_some_and(|end| event.end_mark.index >= end as u64) && value.ends_with('\n') {
                    value.pop();
                }
                (anchor, Content::Scalar(tag, value, plain_implicit))
            }
            EventData::Alias { anchor } => match self.anchors.get(&anchor) {
                None => return Err(format!("yaml: unknown anchor '{anchor}' referenced")),
                Some(None) => return Err(format!("yaml: anchor '{anchor}' value contains itself")),
                Some(Some(node)) => (None, Content::Alias(node.clone())),
            },
            EventData::SequenceStart { anchor, .. } => {
                self.open(&anchor);
                let mut items = Vec::new();
                while let Some(item) = self.child(depth)? {
                    items.push(item);
                }
                (anchor, Content::List(items))
            }
            EventData::MappingStart { anchor, .. } => {
                self.open(&anchor);
                let mut fields = Vec::new();
                while let Some(key) = self.child(depth)? {
                    let Some(value) = self.child(depth)? else { break };
                    fields.push((key, value));
                }
                (anchor, Content::Map(fields))
            }
            _ => return Ok(None),
        };
        let node = Rc::new(Node { line, height: height(&content), content });
        if node.height > MAX_DEPTH {
            return Err(TOO_DEEP.into());
        }
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, Some(node.clone()));
        }
        Ok(Some(node))
    }

    fn child(&mut self, depth: usize) -> Result<Option<Rc<Node>>, String> {
        let event = self.next()?;
        self.node(event, depth + 1)
    }

    fn open(&mut self, anchor: &Option<String>) {
        self.anchors.extend(anchor.iter().map(|anchor| (anchor.clone(), None)));
    }
}

fn height(content: &Content) -> usize {
    match content {
        Content::Scalar(..) => 0,
        Content::List(items) => 1 + items.iter().map(|item| item.height).max().unwrap_or(0),
        Content::Map(fields) => 1 + fields.iter().map(|(key, value)| key.height.max(value.height)).max().unwrap_or(0),
        Content::Alias(node) => node.height,
    }
}

/// Said of a text in quotes that is still open where the document ends.
const OPEN_QUOTE: &str = "found unexpected end of stream";

/// An error of the parser. Of the two places that it knows the first counts that is not on the document's first line, and
/// lines are counted from zero but by the scanner. `end` is where a line break was put: anything else that is wrong at the end
/// is so on a line of its own anyway.
fn told(error: &Error, end: Option<usize>) -> String {
    let line = |mark: Option<Mark>| {
        let beyond = |mark: &Mark| error.problem() == OPEN_QUOTE && end.is_some_and(|end| mark.index >= end as u64);
        mark.map_or(0, |mark| mark.line - u64::from(beyond(&mark)))
    };
    let line = match (line(error.problem_mark()), line(error.context_mark())) {
        (0, 0) => return format!("yaml: {}", error.problem()),
        (0, context) => context,
        (problem, _) => problem + u64::from(error.kind() == ErrorKind::Scanner),
    };
    format!("yaml: line {line}: {}", error.problem())
}

/// A value with keys of any type, as YAML has them.
enum Read {
    Scalar(Scalar),
    List(Vec<Read>),
    Map(Vec<(Scalar, Read)>),
}

/// Gives nodes their meaning.
#[derive(Default)]
struct Decoder {
    repeated: Vec<String>,
    /// Nodes so far, and those of them that came by aliases.
    nodes: usize,
    aliased: usize,
    /// Aliases that the present node is in.
    aliases: usize,
}

impl Decoder {
    fn value(&mut self, node: &Node) -> Result<Read, String> {
        self.nodes += 1;
        self.aliased += usize::from(self.aliases > 0);
        if self.aliased > FEW_ALIASED && self.nodes > FEW_NODES && self.share() > allowed_share(self.nodes) {
            return Err("yaml: document contains excessive aliasing".into());
        }
        match &node.content {
            Content::Scalar(None, text, false) => Ok(Read::Scalar(Scalar::Text(text.clone()))),
            Content::Scalar(tag, text, _) => Scalar::resolve(tag.as_deref(), text).map(Read::Scalar),
            Content::List(items) => items.iter().map(|item| self.value(item)).collect::<Result<_, _>>().map(Read::List),
            Content::Map(_) => {
                let mut fields = Fields::default();
                self.fields(node, &mut fields)?;
                Ok(Read::Map(fields.list))
            }
            Content::Alias(named) => self.within_alias(|decoder| decoder.value(named)),
        }
    }

    fn within_alias<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        self.aliases += 1;
        let result = read(self);
        self.aliases -= 1;
        result
    }

    fn share(&self) -> f64 {
        self.aliased as f64 / self.nodes as f64
    }

    /// Sets a map's fields among others.
    fn fields(&mut self, node: &Node, fields: &mut Fields) -> Result<(), String> {
        let Content::Map(pairs) = &node.content else { return Ok(()) };
        for (key, value) in pairs {
            if is_merge(key) {
                self.merge(value, fields)?;
                continue;
            }
            let key = match self.value(key)? {
                Read::Scalar(key) => key,
                other => return Err(format!("yaml: invalid map key: {}", other.shown())),
            };
            let line = value.line;
            let value = self.value(value)?;
            if !fields.known.insert(shown_scalar(&key)) {
                self.repeated.push(format!("line {line}: key {} already set in map", shown_scalar(&key)));
            }
            fields.list.push((key, value));
        }
        Ok(())
    }

    /// Lays the maps of a merge key under what comes later.
    fn merge(&mut self, node: &Node, fields: &mut Fields) -> Result<(), String> {
        match &node.content {
            Content::Map(_) => self.fields(node, fields),
            Content::Alias(named) if matches!(named.content, Content::Map(_)) => {
                self.within_alias(|decoder| decoder.fields(named, fields))
            }
            Content::List(maps) if !maps.iter().any(|map| matches!(map.content, Content::List(_))) => {
                // Those that stand first count most.
                maps.iter().rev().try_for_each(|map| self.merge(map, fields))
            }
            _ => Err("yaml: map merge requires map or sequence of maps as the value".into()),
        }
    }
}

fn allowed_share(nodes: usize) -> f64 {
    let (few, many) = ALIASED_RANGE;
    0.99 - 0.89 * ((nodes as f64 - few) / (many - few)).clamp(0.0, 1.0)
}

/// The fields of a map as they come.
#[derive(Default)]
struct Fields {
    list: Vec<(Scalar, Read)>,
    known: BTreeSet<String>,
}

fn is_merge(key: &Node) -> bool {
    match &key.content {
        Content::Scalar(tag, text, plain) => {
            text == "<<" && (*plain || tag.as_deref() == Some("tag:yaml.org,2002:merge"))
        }
        _ => false,
    }
}

/// A scalar as Go's `%#v` shows it.
fn shown_scalar(scalar: &Scalar) -> String {
    match scalar {
        Scalar::Null => "<nil>".into(),
        Scalar::Bool(value) => value.to_string(),
        Scalar::Int(number) => number.to_string(),
        Scalar::Float(number) => number.to_string(),
        Scalar::Text(text) => shown::quoted(text),
    }
}

impl Read {
    /// The value as Go's `%#v` shows it.
    fn shown(&self) -> String {
        let inner = |value: &Self| match value {
            Self::Scalar(Scalar::Null) => "interface {}(nil)".into(),
            value => value.shown(),
        };
        match self {
            Self::Scalar(scalar) => shown_scalar(scalar),
            Self::List(items) => {
                format!("[]interface {{}}{{{}}}", items.iter().map(inner).collect::<Vec<_>>().join(", "))
            }
            Self::Map(fields) => {
                let fields: BTreeMap<String, String> =
                    fields.iter().map(|(key, value)| (shown_scalar(key), inner(value))).collect();
                let fields: Vec<String> = fields.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
                format!("map[interface {{}}]interface {{}}{{{}}}", fields.join(", "))
            }
        }
    }

    /// The value as JSON.
    fn json(self) -> Result<Value, String> {
        match self {
            Self::Scalar(scalar) => json_of(scalar),
            Self::List(items) => items.into_iter().map(Self::json).collect::<Result<_, _>>().map(Value::Array),
            Self::Map(fields) => {
                let mut map = Map::new();
                for (key, value) in fields {
                    let value = value.json()?;
                    map.insert(name(key, &value)?, value);
                }
                Ok(Value::Object(map))
            }
        }
    }
}

/// The name of a field whose key may have another type.
fn name(key: Scalar, value: &Value) -> Result<String, String> {
    match key {
        Scalar::Text(text) => Ok(text),
        Scalar::Null => Err(format!(
            "Unsupported map key of type: %!s(<nil>), key: <nil>, value: {}",
            match value {
                Value::String(text) => shown::quoted(text),
                Value::Null => "<nil>".into(),
                other => other.to_string(),
            }
        )),
        Scalar::Float(number) if number.is_nan() => Ok(".nan".into()),
        Scalar::Float(number) if number.is_infinite() => Ok(if number > 0.0 { ".inf" } else { "-.inf" }.into()),
        other => Ok(shown_scalar(&other)),
    }
}

fn json_of(scalar: Scalar) -> Result<Value, String> {
    let float = |number: f64| Number::from_f64(number).map(Value::Number);
    match scalar {
        Scalar::Null => Ok(Value::Null),
        Scalar::Bool(value) => Ok(value.into()),
        Scalar::Text(text) => Ok(text.into()),
        Scalar::Int(number) => match i64::try_from(number) {
            Ok(number) => Ok(number.into()),
            Err(_) => Ok(float(number as f64).unwrap_or_default()),
        },
        // Whole numbers are written without a point, and read again as such.
        Scalar::Float(number) if number.fract() == 0.0 && number.abs() < i64::MAX as f64 => Ok((number as i64).into()),
        Scalar::Float(number) => float(number).ok_or_else(|| {
            let shown = if number.is_nan() {
                "NaN"
            } else if number > 0.0 {
                "+Inf"
            } else {
                "-Inf"
            };
            format!("json: unsupported value: {shown}")
        }),
    }
}
