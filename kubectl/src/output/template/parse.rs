//! Templates as trees.

use std::collections::HashMap;

use serde_json::Value;

/// A piece of a template.
#[derive(Clone, Debug)]
pub enum Node {
    /// Text that stands as it is.
    Text(String),
    /// A value, or the setting of variables.
    Action(Pipe),
    /// Conditions in turn with what stands for them; the last may be without.
    If(Vec<(Option<Pipe>, Vec<Node>)>),
    /// For each item, or else.
    Range(Pipe, Vec<Node>, Vec<Node>),
    /// With a value as the dot, or else.
    With(Pipe, Vec<Node>, Vec<Node>),
    /// Another template with a value.
    Template(String, Option<Pipe>, Place),
    /// Ends the innermost range.
    Break,
    /// Goes to the next item.
    Continue,
}

/// Where something stands: line, column and its text.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 0.
    pub column: usize,
    /// The text of the action.
    pub text: String,
}

/// Commands of which each hands its value to the next.
#[derive(Clone, Debug)]
pub struct Pipe {
    /// Variables that get the value.
    pub variables: Vec<String>,
    /// Whether these are declared here.
    pub declares: bool,
    /// The commands.
    pub commands: Vec<(Vec<Term>, Place)>,
    /// Where it stands.
    pub place: Place,
}

/// A word of a command.
#[derive(Clone, Debug)]
pub enum Term {
    /// `.a.b`, or `.`
    Field(Vec<String>, Place),
    /// `$x.a`
    Variable(String, Vec<String>, Place),
    /// A function's name.
    Function(String),
    /// `(...)`, and fields of its value.
    Pipe(Box<Pipe>, Vec<String>),
    /// A literal.
    Literal(Value),
    /// `nil`
    Nil,
}

/// A template and those that it defines.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The template.
    pub nodes: Vec<Node>,
    /// Others by name.
    pub named: HashMap<String, Vec<Node>>,
}

/// Why a template is not understood, and in which line.
pub type Wrong = (usize, String);

enum Piece {
    Text(String),
    Action(String, Place),
}

/// Parses a template.
pub fn parse(source: &str) -> Result<Parsed, Wrong> {
    let mut parser = Parser { pieces: pieces(source)?, at: 0, parsed: Parsed::default(), scopes: vec!["$".into()] };
    let (nodes, end) = parser.nodes(false)?;
    if let Some((word, place)) = end {
        return Err((place.line, format!("unexpected {{{{{word}}}}}")));
    }
    parser.parsed.nodes = nodes;
    Ok(parser.parsed)
}

/// Splits a template at its actions, and trims the text beside them where they say so.
fn pieces(source: &str) -> Result<Vec<Piece>, Wrong> {
    let mut out = Vec::new();
    let (mut rest, mut trim) = (source, false);
    let line_of = |rest: &str| source[..source.len() - rest.len()].matches('\n').count() + 1;
    loop {
        let start = rest.find("{{");
        let mut text = &rest[..start.unwrap_or(rest.len())];
        if trim {
            text = text.trim_start();
        }
        let Some(start) = start else {
            out.push(Piece::Text(text.to_owned()));
            return Ok(out);
        };
        let inner = &rest[start + 2..];
        let line = line_of(inner);
        let before = &source[..source.len() - inner.len()];
        let column = before.len() - before.rfind('\n').map_or(0, |at| at + 1);
        let trims = inner.starts_with('-') && inner[1..].starts_with(char::is_whitespace);
        if trims {
            text = text.trim_end();
        }
        out.push(Piece::Text(text.to_owned()));
        let inner = if trims { &inner[1..] } else { inner };
        let end = end_of(inner).map_err(|why| (line, why.to_owned()))?;
        let mut action = &inner[..end];
        trim = action.ends_with('-') && action[..action.len() - 1].ends_with(char::is_whitespace);
        if trim {
            action = &action[..action.len() - 1];
        }
        let before = action.len() - action.trim_start().len();
        let action = action.trim();
        if !action.starts_with("/*") {
            let place = Place { line, column: column + usize::from(trims) + before, text: action.to_owned() };
            out.push(Piece::Action(action.to_owned(), place));
        }
        rest = &inner[end + 2..];
    }
}

/// Where an action ends: at `}}` outside of quotes and comments.
fn end_of(text: &str) -> Result<usize, &'static str> {
    const UNCLOSED: &str = "unclosed action";
    let trimmed = text.trim_start();
    if trimmed.starts_with("/*") {
        let start = text.len() - trimmed.len();
        let close = start + trimmed.find("*/").ok_or("unclosed comment")?;
        return text[close..].find("}}").map(|at| close + at).ok_or("comment ends before closing delimiter");
    }
    let mut letters = text.char_indices();
    while let Some((at, c)) = letters.next() {
        match c {
            '}' if text[at..].starts_with("}}") => return Ok(at),
            '`' => {
                letters.by_ref().find(|(_, c)| *c == '`').ok_or("unterminated raw quoted string")?;
            }
            '"' | '\'' => loop {
                let unterminated =
                    if c == '"' { "unterminated quoted string" } else { "unterminated character constant" };
                match letters.next().ok_or(unterminated)?.1 {
                    '\\' => {
                        letters.next();
                    }
                    end if end == c => break,
                    _ => {}
                }
            },
            _ => {}
        }
    }
    Err(UNCLOSED)
}

struct Parser {
    pieces: Vec<Piece>,
    at: usize,
    parsed: Parsed,
    scopes: Vec<String>,
}

type Nodes = (Vec<Node>, Option<(String, Place)>);

impl Parser {
    /// Nodes until an `end` or `else`, which is returned.
    fn nodes(&mut self, inside: bool) -> Result<Nodes, Wrong> {
        let mut nodes = Vec::new();
        let mut line = 1;
        while self.at < self.pieces.len() {
            self.at += 1;
            let (action, place) = match &self.pieces[self.at - 1] {
                Piece::Text(text) => {
                    if !text.is_empty() {
                        nodes.push(Node::Text(text.clone()));
                    }
                    continue;
                }
                Piece::Action(action, place) => (action.clone(), place.clone()),
            };
            line = place.line;
            let (word, rest) = match action.split_once(|c: char| c.is_whitespace() || c == '(') {
                Some((word, _)) => (word, action[word.len()..].trim()),
                None => (action.as_str(), ""),
            };
            match word {
                "end" => return Ok((nodes, Some(("end".into(), place)))),
                "else" => return Ok((nodes, Some((format!("else {rest}").trim().to_owned(), place)))),
                "break" if rest.is_empty() => nodes.push(Node::Break),
                "continue" if rest.is_empty() => nodes.push(Node::Continue),
                "if" | "range" | "with" => nodes.push(self.block(word, rest, &place)?),
                "define" | "block" => {
                    let mut words = Words::new(rest, &place);
                    let name = words.name()?;
                    let argument = words.rest.trim().to_owned();
                    let scopes = std::mem::replace(&mut self.scopes, vec!["$".into()]);
                    let body = self.body(&place)?;
                    self.scopes = scopes;
                    self.parsed.named.insert(name.clone(), body);
                    if word == "block" {
                        let pipe = self.pipe(&argument, &place)?;
                        nodes.push(Node::Template(name, Some(pipe), place));
                    }
                }
                "template" => {
                    let mut words = Words::new(rest, &place);
                    let name = words.name()?;
                    let column = place.column + place.text.len() - rest.len();
                    let argument = words.rest.trim().to_owned();
                    let pipe = if argument.is_empty() { None } else { Some(self.pipe(&argument, &place)?) };
                    let text = format!("{{{{{}}}}}", place.text);
                    nodes.push(Node::Template(name, pipe, Place { column, text, ..place }));
                }
                _ => nodes.push(Node::Action(self.pipe(&action, &place)?)),
            }
        }
        if inside { Err((line, "unexpected EOF".into())) } else { Ok((nodes, None)) }
    }

    /// Nodes until `end`.
    fn body(&mut self, place: &Place) -> Result<Vec<Node>, Wrong> {
        match self.nodes(true)? {
            (nodes, Some((word, _))) if word == "end" => Ok(nodes),
            _ => Err((place.line, "unexpected {{else}} in define clause".into())),
        }
    }

    fn block(&mut self, word: &str, rest: &str, place: &Place) -> Result<Node, Wrong> {
        let depth = self.scopes.len();
        let pipe = self.pipe(rest, place)?;
        let (first, end) = self.nodes(true)?;
        let end = end.map(|(word, _)| word).unwrap_or_default();
        let mut otherwise = Vec::new();
        if let Some(more) = end.strip_prefix("else") {
            let more = more.trim().to_owned();
            match more.split_once(char::is_whitespace) {
                Some((again @ ("if" | "with"), condition)) => {
                    otherwise.push(self.block(again, condition.trim(), place)?);
                }
                _ if more.is_empty() => otherwise = self.body(place)?,
                _ => return Err((place.line, format!("unexpected <{more}> in else"))),
            }
        }
        self.scopes.truncate(depth);
        Ok(match word {
            "if" => Node::If(vec![(Some(pipe), first), (None, otherwise)]),
            "range" => Node::Range(pipe, first, otherwise),
            _ => Node::With(pipe, first, otherwise),
        })
    }

    fn pipe(&mut self, text: &str, place: &Place) -> Result<Pipe, Wrong> {
        let mut words = Words::new(text, place);
        let pipe = words.pipe(&mut self.scopes, false)?;
        match words.rest.trim() {
            "" => Ok(pipe),
            rest => Err((place.line, format!("unexpected {:?} in command", &rest[..1]))),
        }
    }
}

/// The words of an action.
struct Words<'a> {
    rest: &'a str,
    place: &'a Place,
}

impl<'a> Words<'a> {
    fn new(rest: &'a str, place: &'a Place) -> Self {
        Self { rest, place }
    }

    fn wrong<T>(&self, why: impl Into<String>) -> Result<T, Wrong> {
        Err((self.place.line, why.into()))
    }

    /// Where the words from `start` to here stand.
    fn from(&self, start: &str) -> Place {
        let text = start[..start.len() - self.rest.len()].trim_end();
        let column = self.place.column + self.place.text.len().saturating_sub(start.len());
        Place { line: self.place.line, column, text: text.to_owned() }
    }

    fn name(&mut self) -> Result<String, Wrong> {
        match self.literal() {
            Some(Value::String(name)) => Ok(name),
            _ => self.wrong("unexpected name in template clause"),
        }
    }

    fn pipe(&mut self, scopes: &mut Vec<String>, nested: bool) -> Result<Pipe, Wrong> {
        let (variables, declares) = self.variables(scopes)?;
        let (mut commands, mut command) = (Vec::new(), Vec::new());
        self.rest = self.rest.trim_start();
        let (whole, mut start) = (self.rest, self.rest);
        loop {
            self.rest = self.rest.trim_start();
            match self.rest.chars().next() {
                None => break,
                Some(')') if nested => break,
                Some('|') => {
                    let place = self.from(start);
                    self.rest = &self.rest[1..];
                    if command.is_empty() {
                        return self.wrong("missing value for command");
                    }
                    commands.push((std::mem::take(&mut command), place));
                    start = self.rest.trim_start();
                }
                Some(_) => command.push(self.term(scopes)?),
            }
        }
        if command.is_empty() {
            const BLOCKS: [&str; 4] = ["if", "range", "with", "template"];
            let word = self.place.text.split_whitespace().next().unwrap_or_default();
            let is_block = BLOCKS.contains(&word) && !nested && commands.is_empty();
            let what = if is_block { word } else { "command" };
            return self.wrong(format!("missing value for {what}"));
        }
        commands.push((command, self.from(start)));
        if declares {
            scopes.extend(variables.iter().cloned());
        }
        let place = self.from(whole);
        Ok(Pipe { variables, declares, commands, place })
    }

    /// `$a, $b :=` at the start.
    fn variables(&mut self, scopes: &[String]) -> Result<(Vec<String>, bool), Wrong> {
        let start = self.rest;
        let mut names = Vec::new();
        loop {
            self.rest = self.rest.trim_start();
            let Some(name) = self.variable() else { break };
            names.push(name);
            self.rest = self.rest.trim_start();
            if let Some(rest) = self.rest.strip_prefix(":=") {
                self.rest = rest;
                return Ok((names, true));
            }
            if let Some(rest) = self.rest.strip_prefix('=') {
                self.rest = rest;
                if let Some(unknown) = names.iter().find(|n| !scopes.contains(n)) {
                    return self.wrong(format!("undefined variable {unknown:?}"));
                }
                return Ok((names, false));
            }
            match self.rest.strip_prefix(',') {
                Some(rest) => self.rest = rest,
                None => break,
            }
        }
        self.rest = start;
        Ok((Vec::new(), false))
    }

    fn variable(&mut self) -> Option<String> {
        let rest = self.rest.strip_prefix('$')?;
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        self.rest = &rest[end..];
        Some(format!("${}", &rest[..end]))
    }

    fn fields(&mut self) -> Vec<String> {
        let mut fields = Vec::new();
        while let Some(rest) = self.rest.strip_prefix('.') {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            if end == 0 {
                break;
            }
            fields.push(rest[..end].to_owned());
            self.rest = &rest[end..];
        }
        fields
    }

    /// A word has to end where it ends: `.current-context` is none.
    fn ends(&self) -> Result<(), Wrong> {
        match self.rest.chars().next() {
            Some(c) if !c.is_whitespace() && !matches!(c, '.' | ',' | '|' | ':' | ')' | '(') => {
                self.wrong(format!("bad character U+{:04X} {c:?}", u32::from(c)))
            }
            _ => Ok(()),
        }
    }

    fn term(&mut self, scopes: &mut Vec<String>) -> Result<Term, Wrong> {
        let first = self.rest.chars().next().unwrap_or(' ');
        if first == '.' && !self.rest[1..].starts_with(|c: char| c.is_ascii_digit()) {
            let start = self.rest;
            let fields = self.fields();
            if fields.is_empty() {
                self.rest = &self.rest[1..];
            }
            self.ends()?;
            // A chain of fields stands where its second one does.
            let mut place = self.from(start);
            if fields.len() > 1 {
                place.column += fields[0].len() + 1;
            }
            return Ok(Term::Field(fields, place));
        }
        if first == '$' {
            let name = self.variable().unwrap_or_default();
            if !scopes.contains(&name) {
                return self.wrong(format!("undefined variable {name:?}"));
            }
            let (start, fields) = (self.rest, self.fields());
            self.ends()?;
            let mut place = self.from(start);
            place.text.insert_str(0, &name);
            return Ok(Term::Variable(name, fields, place));
        }
        if first == '(' {
            self.rest = &self.rest[1..];
            let pipe = self.pipe(scopes, true)?;
            match self.rest.strip_prefix(')') {
                Some(rest) => self.rest = rest,
                None => return self.wrong("unclosed left paren"),
            }
            return Ok(Term::Pipe(Box::new(pipe), self.fields()));
        }
        if let Some(value) = self.literal() {
            return Ok(Term::Literal(value));
        }
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        if !word.is_empty() {
            self.ends()?;
        }
        match word {
            "" => self.wrong(format!("unexpected {first:?} in command")),
            "nil" => Ok(Term::Nil),
            "true" | "false" => Ok(Term::Literal(Value::Bool(word == "true"))),
            name if super::functions::is_known(name) => Ok(Term::Function(name.to_owned())),
            name => self.wrong(format!("function {name:?} not defined")),
        }
    }

    /// A text, a letter or a number.
    fn literal(&mut self) -> Option<Value> {
        let first = self.rest.chars().next()?;
        match first {
            '`' => {
                let end = self.rest[1..].find('`')? + 1;
                let text = self.rest[1..end].to_owned();
                self.rest = &self.rest[end + 1..];
                Some(Value::String(text))
            }
            '"' | '\'' => {
                let (mut text, mut letters) = (String::new(), self.rest.char_indices().skip(1));
                let end = loop {
                    match letters.next()? {
                        (at, c) if c == first => break at,
                        (_, '\\') => text.push(match letters.next()?.1 {
                            'n' => '\n',
                            't' => '\t',
                            'r' => '\r',
                            'u' => {
                                let digits: String = letters.by_ref().take(4).map(|(_, c)| c).collect();
                                char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?
                            }
                            other => other,
                        }),
                        (_, c) => text.push(c),
                    }
                };
                self.rest = &self.rest[end + 1..];
                match first {
                    '"' => Some(Value::String(text)),
                    _ => Some(Value::from(u32::from(text.chars().next()?))),
                }
            }
            '0'..='9' | '-' | '+' | '.' => {
                let number = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_');
                let end = self.rest.find(|c| !number(c)).unwrap_or(self.rest.len());
                let text = self.rest[..end].trim_start_matches('+').replace('_', "");
                let value = match text.strip_prefix("0x") {
                    Some(hex) => Value::from(i64::from_str_radix(hex, 16).ok()?),
                    None => match text.parse::<i64>() {
                        Ok(whole) => Value::from(whole),
                        Err(_) => Value::from(text.parse::<f64>().ok()?),
                    },
                };
                self.rest = &self.rest[end..];
                Some(value)
            }
            _ => None,
        }
    }
}
