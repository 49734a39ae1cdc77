//! The parser: by precedence, with a limit on depth; macros become nodes of their own.

use super::ast::{Expr, Kind};
use super::lexer::{Token, Words, tokens};
use super::{CompileError, macros, shown};

/// Deepest nesting.
const MAX_DEPTH: usize = 120;
/// Constants and names among what may begin an expression.
const CONSTANTS: &str = "'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";
/// What may begin an expression, as upstream's parser lists it.
const STARTS: &str = "'.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

type Parsed = Result<Expr, CompileError>;

struct Parser<'s> {
    source: &'s str,
    binds: bool,
    tokens: Vec<(Token, usize)>,
    next: usize,
    depth: usize,
    /// What was told so far, with its place.
    problems: Vec<(usize, String)>,
    /// Something was told and no word has fitted since: nothing more is told until one does.
    recovers: bool,
}

/// Parses an expression; `binds`: whether `cel.bind` is a macro.
pub(super) fn parse(source: &str, binds: bool) -> Parsed {
    let Words { tokens, unknown } = tokens(source)?;
    let mut parser = Parser { source, binds, tokens, next: 0, depth: 0, problems: unknown, recovers: false };
    let parsed = parser.whole();
    let (at, mut problems) = (parser.at(), parser.problems);
    if problems.is_empty() {
        return parsed;
    }
    // What a macro says of an expression that is none is not told.
    problems.extend(parsed.err().filter(|stopped| stopped.0.contains("Syntax error")).map(|stopped| (at, stopped.0)));
    // What is wrong with words and with what they make is told in the order of the places.
    problems.sort_by_key(|(at, _)| *at);
    let texts: Vec<String> = problems.into_iter().map(|(_, text)| text).collect();
    Err(CompileError(texts.join("\n")))
}

impl Parser<'_> {
    /// An expression and nothing behind it.
    fn whole(&mut self) -> Parsed {
        let expr = self.expression()?;
        let (word, left) = (self.word(), self.tokens.len() - self.next);
        Err(self.problem(&match left {
            _ if self.recovers => return Ok(expr),
            0 | 1 => return Ok(expr),
            // One word too many is left out by upstream's parser, several are where it stops.
            2 => format!("extraneous input '{word}' expecting <EOF>"),
            _ => format!("mismatched input '{word}' expecting <EOF>"),
        }))
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.next].0
    }

    fn at(&self) -> usize {
        self.tokens[self.next].1
    }

    fn word(&self) -> &str {
        match self.tokens.get(self.next + 1) {
            Some((_, next)) => {
                let at = self.at();
                let unknown =
                    self.problems.iter().map(|(place, _)| *place).filter(|place| (at + 1..*next).contains(place));
                self.source[at..unknown.min().unwrap_or(*next)].trim_end()
            }
            None => "<EOF>",
        }
    }

    fn problem(&self, what: &str) -> CompileError {
        CompileError(shown(self.source, self.at(), &format!("Syntax error: {what}")))
    }

    /// Tells a problem from which the parser goes on.
    fn tell(&mut self, what: &str) {
        if !self.recovers {
            let problem = self.problem(what);
            self.problems.push((self.at(), problem.0));
        }
        self.recovers = true;
    }

    fn advance(&mut self) -> Token {
        let token = self.tokens[self.next].0.clone();
        self.next = (self.next + 1).min(self.tokens.len() - 1);
        self.recovers = false;
        token
    }

    fn take(&mut self, symbol: &str) -> bool {
        let here = matches!(self.peek(), Token::Symbol(s) if *s == symbol);
        if here {
            self.next += 1;
            self.recovers = false;
        }
        here
    }

    /// Takes a symbol. As upstream's parser does, one word before it is left out, and it may be missing where what stands
    /// there could follow it.
    fn expect(&mut self, symbol: &str) -> Result<(), CompileError> {
        if self.take(symbol) {
            return Ok(());
        }
        let word = self.word_or_end().to_owned();
        if self.tokens.get(self.next + 1).is_some_and(|(token, _)| matches!(token, Token::Symbol(s) if *s == symbol)) {
            self.tell(&format!("extraneous input '{word}' expecting '{symbol}'"));
            self.advance();
            self.take(symbol);
            return Ok(());
        }
        if self.could_follow(symbol) {
            self.tell(&format!("missing '{symbol}' at '{word}'"));
            return Ok(());
        }
        if self.recovers {
            return Err(CompileError(String::new()));
        }
        Err(self.problem(&format!("mismatched input '{word}' expecting '{symbol}'")))
    }

    /// Whether the next word could stand behind a symbol that is not there.
    fn could_follow(&self, symbol: &str) -> bool {
        if symbol == ":" {
            return !self.starts_nothing();
        }
        let mut open = Vec::new();
        for (token, _) in &self.tokens[..self.next] {
            match token {
                Token::Symbol("(") => open.push(")"),
                Token::Symbol("[" | "[?") => open.push("]"),
                Token::Symbol("{") => open.push("}"),
                Token::Symbol(")" | "]" | "}") => {
                    open.pop();
                }
                _ => {}
            }
        }
        open.pop();
        match (self.peek(), open.last()) {
            (Token::End, around) => around.is_none(),
            (Token::Symbol(","), around) => around.is_some(),
            (Token::Symbol(found), Some(around)) => found == around,
            _ => false,
        }
    }

    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, CompileError>) -> Result<T, CompileError> {
        if self.depth == MAX_DEPTH {
            return Err(self.problem(&format!("expression recursion limit exceeded: {MAX_DEPTH}")));
        }
        self.depth += 1;
        let out = inner(self);
        self.depth -= 1;
        out
    }

    fn expression(&mut self) -> Parsed {
        self.deeper(|p| {
            let condition = p.binary(0)?;
            let at = p.at();
            if !p.take("?") {
                return Ok(condition);
            }
            let yes = p.binary(0)?;
            p.expect(":")?;
            let no = p.expression()?;
            Ok(operator(at, "_?_:_", vec![condition, yes, no]))
        })
    }

    fn binary(&mut self, level: usize) -> Parsed {
        const LEVELS: [&[(&str, &str)]; 5] = [
            &[("||", "_||_")],
            &[("&&", "_&&_")],
            &[
                ("==", "_==_"),
                ("!=", "_!=_"),
                ("<=", "_<=_"),
                (">=", "_>=_"),
                ("<", "_<_"),
                (">", "_>_"),
                ("in", "@in"),
            ],
            &[("+", "_+_"), ("-", "_-_")],
            &[("*", "_*_"), ("/", "_/_"), ("%", "_%_")],
        ];
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        let mut chain = 0;
        loop {
            let found = operators.iter().find(|(word, _)| match self.peek() {
                Token::Symbol(symbol) => symbol == word,
                Token::Ident(name) => name == word,
                _ => false,
            });
            let Some((_, function)) = found else { return Ok(left) };
            // A long chain is a deep tree too.
            chain += 1;
            if chain > 4 * MAX_DEPTH {
                return Err(self.problem("expression has too many operators in a row"));
            }
            let at = self.at();
            self.advance();
            let right = self.binary(level + 1)?;
            left = operator(at, function, vec![left, right]);
        }
    }

    fn unary(&mut self) -> Parsed {
        let at = self.at();
        if self.take("!") {
            let inner = self.deeper(Self::unary)?;
            return Ok(operator(at, "!_", vec![inner]));
        }
        if !self.take("-") {
            return self.member();
        }
        let kind = match self.peek() {
            Token::Int(n) => Kind::Int(-n),
            Token::MinInt => Kind::Int(i64::MIN),
            Token::Double(n) => Kind::Double(-n),
            _ => {
                let inner = self.deeper(Self::unary)?;
                return Ok(operator(at, "-_", vec![inner]));
            }
        };
        self.advance();
        self.postfix(Expr { at, kind })
    }

    fn member(&mut self) -> Parsed {
        let primary = self.primary()?;
        self.postfix(primary)
    }

    fn postfix(&mut self, mut expr: Expr) -> Parsed {
        let mut chain = 0;
        loop {
            chain += 1;
            if chain > 4 * MAX_DEPTH {
                return Err(self.problem("expression has too many selections in a row"));
            }
            let at = self.at();
            if self.take(".") {
                expr = self.selection(expr, at)?;
            } else if self.take(".?") {
                let field = self.name(at)?;
                expr = Expr { at, kind: Kind::Select { operand: Box::new(expr), field, optional: true } };
            } else if matches!(self.peek(), Token::Symbol("[" | "[?")) {
                let optional = matches!(self.advance(), Token::Symbol("[?"));
                let index = self.expression()?;
                self.expect("]")?;
                expr = operator(at, if optional { "_[?_]" } else { "_[_]" }, vec![expr, index]);
            } else if let (Token::Symbol("{"), Some(name)) = (self.peek(), dotted(&expr)) {
                expr = self.structure(at, name)?;
            } else {
                return Ok(expr);
            }
        }
    }

    fn selection(&mut self, operand: Expr, at: usize) -> Parsed {
        let field = self.name(at)?;
        let open = self.at();
        if !self.take("(") {
            return Ok(Expr { at, kind: Kind::Select { operand: Box::new(operand), field, optional: false } });
        }
        let arguments = self.arguments()?;
        let target = Some(Box::new(operand));
        macros::expand(
            self.source,
            self.binds,
            Expr { at: open, kind: Kind::Call { function: field, target, arguments } },
        )
    }

    fn name(&mut self, at: usize) -> Result<String, CompileError> {
        match self.peek().clone() {
            Token::Ident(name) => {
                self.advance();
                Ok(name)
            }
            Token::End => Err(self.problem("no viable alternative at input '.'")),
            _ => {
                let input = self.source[at..self.at() + self.word().len()].to_owned();
                Err(self.problem(&format!("no viable alternative at input '{input}'")))
            }
        }
    }

    fn arguments(&mut self) -> Result<Vec<Expr>, CompileError> {
        let mut list = Vec::new();
        if self.take(")") {
            return Ok(list);
        }
        loop {
            if list.is_empty() && self.starts_nothing() {
                return Err(self.problem(&format!(
                    "mismatched input '{}' expecting {{'[', '{{', '(', ')', {STARTS}",
                    self.word_or_end()
                )));
            }
            list.push(self.expression()?);
            if !self.take(",") {
                self.expect(")")?;
                return Ok(list);
            }
        }
    }

    fn starts_nothing(&self) -> bool {
        is_no_start(self.peek())
    }

    fn word_or_end(&self) -> &str {
        if *self.peek() == Token::End { "<EOF>" } else { self.word() }
    }

    fn primary(&mut self) -> Parsed {
        let at = self.at();
        if self.starts_nothing() {
            return self.deeper(|p| p.nothing(at));
        }
        let kind = match self.advance() {
            Token::Int(n) => Kind::Int(n),
            Token::Uint(n) => Kind::Uint(n),
            Token::Double(n) => Kind::Double(n),
            Token::String(text) => Kind::String(text),
            Token::Bytes(bytes) => Kind::Bytes(bytes),
            Token::Ident(name) => return self.identifier(at, name),
            Token::Symbol(".") => {
                let name = self.name(at)?;
                return self.identifier(at, name);
            }
            Token::Symbol("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                return Ok(inner);
            }
            Token::Symbol("[") => Kind::List(self.items()?),
            Token::Symbol("[?") => {
                // `[?x]` as a literal: the first item is optional.
                let first = self.expression()?;
                let mut items = vec![(first, true)];
                if self.take(",") {
                    items.extend(self.items()?);
                } else {
                    self.expect("]")?;
                }
                Kind::List(items)
            }
            Token::Symbol("{") => Kind::Map(self.entries()?),
            _ => Kind::Null,
        };
        Ok(Expr { at, kind })
    }

    /// At a word with which no expression begins: it is left out if one begins behind it. Else there is none, and the parser
    /// goes on with what could follow one.
    fn nothing(&mut self, at: usize) -> Parsed {
        let word = self.word_or_end().to_owned();
        let expected = format!("expecting {{'[', '{{', '(', {STARTS}");
        if self.next + 2 < self.tokens.len() && !is_no_start(&self.tokens[self.next + 1].0) {
            self.tell(&format!("extraneous input '{word}' {expected}"));
            self.advance();
            return self.unary();
        }
        self.tell(&format!("mismatched input '{word}' {expected}"));
        Ok(Expr { at, kind: Kind::Null })
    }

    fn identifier(&mut self, at: usize, name: String) -> Parsed {
        let kind = match name.as_str() {
            "true" => Kind::Bool(true),
            "false" => Kind::Bool(false),
            "null" => Kind::Null,
            _ if matches!(self.peek(), Token::Symbol("(")) => {
                let open = self.at();
                self.advance();
                let arguments = self.arguments()?;
                let call = Expr { at: open, kind: Kind::Call { function: name, target: None, arguments } };
                return macros::expand(self.source, self.binds, call);
            }
            "in" | "as" | "break" | "const" | "continue" | "else" | "for" | "function" | "if" | "import" | "let"
            | "loop" | "package" | "namespace" | "return" | "var" | "void" | "while" => {
                let what = format!("Syntax error: reserved identifier: {name}");
                return Err(CompileError(shown(self.source, at, what.trim_start_matches("Syntax error: "))));
            }
            _ => Kind::Ident(name),
        };
        Ok(Expr { at, kind })
    }

    fn items(&mut self) -> Result<Vec<(Expr, bool)>, CompileError> {
        let mut list = Vec::new();
        self.first_item("'[', ']', '{', '('", "]")?;
        while !self.ends_items("]")? {
            let optional = self.take("?");
            list.push((self.expression()?, optional));
            if !self.take(",") {
                self.behind_item("]")?;
                break;
            }
        }
        Ok(list)
    }

    fn entries(&mut self) -> Result<Vec<(Expr, Expr, bool)>, CompileError> {
        let mut list = Vec::new();
        self.first_item("'[', '{', '}', '('", "}")?;
        while !self.ends_items("}")? {
            let optional = self.take("?");
            let key = self.expression()?;
            self.expect(":")?;
            list.push((key, self.expression()?, optional));
            if !self.take(",") {
                self.behind_item("}")?;
                break;
            }
        }
        Ok(list)
    }

    /// Where a list or map begins: an item, its end, or a comma and its end. One word before them is left out.
    fn first_item(&mut self, opening: &str, end: &str) -> Result<(), CompileError> {
        let fits = |token: &Token| match token {
            Token::Symbol(symbol) if matches!(*symbol, "?" | ",") || *symbol == end => true,
            token => !is_no_start(token),
        };
        if !fits(self.peek()) {
            let word = self.word_or_end();
            let expected = format!("expecting {{{opening}, '.', ',', '-', '!', '?', {CONSTANTS}");
            if !self.tokens.get(self.next + 1).is_some_and(|(token, _)| fits(token)) {
                return Err(self.problem(&format!("mismatched input '{word}' {expected}")));
            }
            self.tell(&format!("extraneous input '{word}' {expected}"));
            self.advance();
        }
        // A comma may stand before the end of nothing, too.
        if matches!(self.tokens.get(self.next + 1), Some((Token::Symbol(symbol), _)) if *symbol == end) {
            self.take(",");
        }
        Ok(())
    }

    /// Whether the items end here. Where no item begins their end is missing.
    fn ends_items(&mut self, end: &str) -> Result<bool, CompileError> {
        let none = self.starts_nothing() && !matches!(self.peek(), Token::Symbol("?"));
        if none {
            self.expect(end)?;
        }
        Ok(none)
    }

    /// The end of the items behind one that no comma follows.
    fn behind_item(&mut self, end: &str) -> Result<(), CompileError> {
        if self.take(end) {
            return Ok(());
        }
        let (word, expected) = (self.word_or_end().to_owned(), format!("expecting {{'{end}', ','}}"));
        let next = self.tokens.get(self.next + 1).map(|(token, _)| token);
        if next.is_some_and(|token| matches!(token, Token::Symbol(symbol) if *symbol == "," || *symbol == end)) {
            self.tell(&format!("extraneous input '{word}' {expected}"));
            self.advance();
            self.take(",");
            return self.expect(end);
        }
        if self.recovers {
            return Err(CompileError(String::new()));
        }
        Err(self.problem(&format!("mismatched input '{word}' {expected}")))
    }

    fn structure(&mut self, at: usize, name: String) -> Parsed {
        self.expect("{")?;
        let (mut fields, mut colons) = (Vec::new(), Vec::new());
        while !self.take("}") {
            let optional = self.take("?");
            let field = self.name(self.at())?;
            colons.push(self.at());
            self.expect(":")?;
            fields.push((field, self.expression()?, optional));
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(Expr { at, kind: Kind::Struct { name, fields, colons } })
    }
}

/// Whether no expression begins with a word.
fn is_no_start(token: &Token) -> bool {
    match token {
        Token::End => true,
        Token::Symbol(symbol) => !matches!(*symbol, "[" | "[?" | "{" | "(" | "." | "-" | "!"),
        _ => false,
    }
}

/// The name `a.b.C` that a chain of selections spells.
pub(super) fn dotted(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Ident(name) => Some(name.clone()),
        Kind::Select { operand, field, optional: false } => Some(format!("{}.{field}", dotted(operand)?)),
        _ => None,
    }
}

fn operator(at: usize, function: &str, arguments: Vec<Expr>) -> Expr {
    Expr { at, kind: Kind::Call { function: function.to_owned(), target: None, arguments } }
}
