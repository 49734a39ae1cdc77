//! JSONPath templates as trees: what stands between braces is a list of steps, each of which takes what the one before found.

/// A step, or a text between braces.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// Text as it stands.
    Text(String),
    /// The steps of one pair of braces.
    List(Vec<Node>),
    /// `.name`; "" is the value itself.
    Field(String),
    /// `[start:end:step]`, `[index]`, `[*]`
    Slice(Slice),
    /// `[?(left operator right)]`; without an operator what `left` finds has to be there.
    Filter(Vec<Node>, String, Vec<Node>),
    /// `[a,b]`
    Union(Vec<Vec<Node>>),
    /// `.*`
    Wildcard,
    /// `..`
    Recursive,
    /// A number or a truth value.
    Literal(serde_json::Value),
    /// A bare word: `range`, `end`, or one that nobody knows.
    Word(String),
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Slice {
    /// The first item; negative from the end.
    pub start: Option<i64>,
    /// The item after the last one.
    pub end: Option<i64>,
    /// Whether `end` was not given but follows from a single index.
    pub single: bool,
    /// Every how many items one is taken.
    pub step: Option<i64>,
}

/// Parses a template.
pub fn parse(text: &str) -> Result<Vec<Node>, String> {
    let mut parser = Parser { letters: text.chars().collect(), at: 0 };
    let mut nodes = Vec::new();
    loop {
        let start = parser.at;
        while parser.peek().is_some_and(|c| c != '{') {
            parser.at += 1;
        }
        if parser.at > start {
            nodes.push(Node::Text(parser.since(start)));
        }
        if parser.next().is_none() {
            return Ok(nodes);
        }
        let mut steps = Vec::new();
        parser.action(&mut steps)?;
        nodes.push(Node::List(steps));
    }
}

/// The steps of a text that stands for itself inside of another.
fn inner(text: &str) -> Result<Vec<Node>, String> {
    match parse(&format!("{{{text}}}"))?.into_iter().next() {
        Some(Node::List(steps)) => Ok(steps),
        _ => Ok(Vec::new()),
    }
}

fn ends_word(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | '.' | ',' | '[' | ']' | '$' | '@' | '{' | '}')
}

struct Parser {
    letters: Vec<char>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.letters.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += 1;
        Some(next)
    }

    fn since(&self, start: usize) -> String {
        self.letters[start..self.at].iter().collect()
    }

    fn starts(&self, with: &str) -> bool {
        with.chars().enumerate().all(|(i, c)| self.letters.get(self.at + i) == Some(&c))
    }

    /// The steps up to the brace that closes.
    fn action(&mut self, steps: &mut Vec<Node>) -> Result<(), String> {
        loop {
            if self.starts("[?(") {
                self.at += 3;
                steps.push(self.filter()?);
                continue;
            }
            if self.starts("..") {
                if steps.last() == Some(&Node::Recursive) {
                    return Err("invalid multiple recursive descent".into());
                }
                self.at += 2;
                steps.push(Node::Recursive);
                if self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_') {
                    steps.push(self.field());
                }
                continue;
            }
            match self.next() {
                None | Some('\n' | '\r') => return Err("unclosed action".into()),
                Some('}') => return Ok(()),
                Some(' ' | '@' | '$') => {}
                Some('[') => self.bracket(steps)?,
                Some(quote @ ('"' | '\'')) => steps.push(self.quoted(quote)?),
                Some('.') => steps.push(self.field()),
                Some(c) if c == '+' || c == '-' || c.is_ascii_digit() => {
                    self.at -= 1;
                    steps.push(self.number()?);
                }
                Some(c) if c.is_alphanumeric() || c == '_' => {
                    self.at -= 1;
                    steps.push(self.word());
                }
                Some(c) => {
                    return Err(format!("unrecognized character in action: U+{:04X} '{c}'", u32::from(c)));
                }
            }
        }
    }

    fn word(&mut self) -> Node {
        let start = self.at;
        while self.peek().is_some_and(|c| !ends_word(c)) {
            self.at += 1;
        }
        match self.since(start).as_str() {
            "true" => Node::Literal(true.into()),
            "false" => Node::Literal(false.into()),
            word => Node::Word(word.to_owned()),
        }
    }

    fn number(&mut self) -> Result<Node, String> {
        let start = self.at;
        if matches!(self.peek(), Some('+' | '-')) {
            self.at += 1;
        }
        while self.peek().is_some_and(|c| c == '.' || c.is_ascii_digit()) {
            self.at += 1;
        }
        let text = self.since(start);
        let number = match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(whole), _) => serde_json::Value::from(whole),
            (_, Ok(number)) => serde_json::Value::from(number),
            _ => return Err(format!("cannot parse number {text}")),
        };
        Ok(Node::Literal(number))
    }

    fn field(&mut self) -> Node {
        let mut name = String::new();
        while let Some(c) = self.peek().filter(|c| !ends_word(*c)) {
            self.at += 1;
            match c {
                '\\' => name.extend(self.next()),
                c => name.push(c),
            }
        }
        if name == "*" { Node::Wildcard } else { Node::Field(name) }
    }

    fn quoted(&mut self, quote: char) -> Result<Node, String> {
        let start = self.at - 1;
        loop {
            match self.next() {
                None | Some('\n') => return Err("unterminated quoted string".into()),
                Some(c) if c == quote && self.letters[self.at - 2] != '\\' => break,
                Some(_) => {}
            }
        }
        let text = self.since(start);
        match super::unquoted(&text) {
            Some(text) => Ok(Node::Text(text)),
            None => Err(format!("unquote string {text} error invalid syntax")),
        }
    }

    fn bracket(&mut self, steps: &mut Vec<Node>) -> Result<(), String> {
        let start = self.at;
        loop {
            match self.next() {
                None | Some('\n') => return Err("unterminated array".into()),
                Some(']') => break,
                Some(_) => {}
            }
        }
        let text: String = self.letters[start..self.at - 1].iter().collect();
        let parts: Vec<&str> = text.split(',').collect();
        if parts.len() > 1 {
            let parts = parts.iter().map(|part| inner(&format!("[{}]", part.trim_matches(' '))));
            steps.push(Node::Union(parts.collect::<Result<_, _>>()?));
        } else if let Some(key) =
            text.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')).filter(|t| !t.contains('\''))
        {
            steps.extend(inner(&format!(".{key}"))?);
        } else {
            steps.push(Node::Slice(slice(&text)?));
        }
        Ok(())
    }

    fn filter(&mut self) -> Result<Node, String> {
        let start = self.at;
        let (mut quote, mut closed) = (None, false);
        loop {
            match self.next() {
                None | Some('\n') => return Err("unterminated filter".into()),
                Some(c @ ('"' | '\'')) => match quote {
                    None => quote = Some(c),
                    Some(open) => closed |= open == c && self.letters[self.at - 2] != '\\',
                },
                Some(')') if quote.is_some() == closed => break,
                Some(_) => {}
            }
        }
        let text: String = self.letters[start..self.at - 1].iter().collect();
        if self.next() != Some(']') {
            return Err("unclosed array expect ]".into());
        }
        let is_operator = |c: char| matches!(c, '!' | '<' | '>' | '=');
        let parts = text.find(is_operator).filter(|at| *at > 0).and_then(|at| {
            let rest = &text[at..];
            let end = rest.find(|c| !is_operator(c))?;
            Some((&text[..at], &rest[..end], &rest[end..]))
        });
        Ok(match parts {
            Some((left, operator, right)) => Node::Filter(inner(left)?, operator.to_owned(), inner(right)?),
            None => Node::Filter(inner(&text)?, "exists".into(), Vec::new()),
        })
    }
}

/// `start:end:step`, where everything may be left out.
fn slice(text: &str) -> Result<Slice, String> {
    let invalid = || format!("invalid array index {text}");
    if text == "*" {
        return Ok(Slice::default());
    }
    let parts: Vec<&str> = text.split(':').collect();
    let is_number = |part: &&str| part.strip_prefix('-').unwrap_or(part).chars().all(|c| c.is_ascii_digit());
    if parts.len() > 3 || !parts.iter().all(is_number) {
        return Err(invalid());
    }
    let number = |at: usize| match parts.get(at).filter(|part| !part.is_empty()) {
        Some(part) => part.parse::<i64>().map(Some).map_err(|_| format!("array index {part} is not a number")),
        None => Ok(None),
    };
    let (start, single) = (number(0)?, parts.len() == 1);
    let end = if single { Some(start.unwrap_or(0) + 1) } else { number(1)? };
    Ok(Slice { start, end, single, step: number(2)? })
}
