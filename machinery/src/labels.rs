//! The text form of label selectors (`a=b,c in (d,e),!f`), read token by token with upstream's messages.

use crate::names;
use crate::selector::LabelOp;

/// A requirement: key and comparison.
pub type Requirement = (String, LabelOp);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    End,
    Error,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Less,
    NotEquals,
    Open,
    Close,
    In,
    NotIn,
    Identifier,
}

const BINARY: &str = "in, notin, =, ==, !=, gt, lt";

/// Reads a selector.
pub fn parse(text: &str) -> Result<Vec<Requirement>, String> {
    let mut parser = Parser { tokens: lex(text), at: 0 };
    let mut requirements = Vec::new();
    loop {
        let (token, literal) = parser.peek_value();
        match token {
            Token::Identifier | Token::Not => {
                let requirement = parser.requirement().map_err(|why| format!("unable to parse requirement: {why}"))?;
                requirements.push(requirement);
                let (token, literal) = parser.next_value();
                match token {
                    Token::End => return Ok(requirements),
                    Token::Comma => {
                        let (token, literal) = parser.peek_value();
                        if !matches!(token, Token::Identifier | Token::Not) {
                            return Err(format!("found '{literal}', expected: identifier after ','"));
                        }
                    }
                    _ => return Err(format!("found '{literal}', expected: ',' or 'end of string'")),
                }
            }
            Token::End => return Ok(requirements),
            _ => return Err(format!("found '{literal}', expected: !, identifier, or 'end of string'")),
        }
    }
}

fn is_symbol(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn symbol(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::Close,
        "," => Token::Comma,
        "!" => Token::Not,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::Greater,
        "<" => Token::Less,
        "!=" => Token::NotEquals,
        "(" => Token::Open,
        _ => return None,
    })
}

fn lex(text: &str) -> Vec<(Token, String)> {
    let chars: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < chars.len() {
        if matches!(chars[at], ' ' | '\t' | '\r' | '\n') {
            at += 1;
        } else if is_symbol(chars[at]) {
            // The longest symbol that there is.
            let two: String = chars[at..chars.len().min(at + 2)].iter().collect();
            let one = chars[at].to_string();
            let (token, literal) = match symbol(&two).filter(|_| two.chars().count() == 2) {
                Some(token) => (token, two),
                None => (symbol(&one).unwrap_or(Token::Error), one),
            };
            at += literal.chars().count();
            tokens.push((token, literal));
        } else {
            let end = (at..chars.len())
                .find(|i| is_symbol(chars[*i]) || matches!(chars[*i], ' ' | '\t' | '\r' | '\n'))
                .unwrap_or(chars.len());
            let word: String = chars[at..end].iter().collect();
            let token = match word.as_str() {
                "in" => Token::In,
                "notin" => Token::NotIn,
                _ => Token::Identifier,
            };
            tokens.push((token, word));
            at = end;
        }
    }
    tokens.push((Token::End, String::new()));
    tokens
}

struct Parser {
    tokens: Vec<(Token, String)>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> (Token, String) {
        self.tokens.get(self.at).cloned().unwrap_or((Token::End, String::new()))
    }

    /// Where a value is expected, `in` and `notin` are words like others.
    fn peek_value(&self) -> (Token, String) {
        match self.peek() {
            (Token::In | Token::NotIn, literal) => (Token::Identifier, literal),
            other => other,
        }
    }

    fn next_value(&mut self) -> (Token, String) {
        let next = self.peek_value();
        self.at += 1;
        next
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (mut token, mut literal) = self.next_value();
        let absent = token == Token::Not;
        if absent {
            (token, literal) = self.next_value();
        }
        if token != Token::Identifier {
            return Err(format!("found '{literal}', expected: identifier"));
        }
        let key = literal;
        let problems = names::qualified_name_problems(&key);
        if !problems.is_empty() {
            return Err(format!("<nil>: Invalid value: {key:?}: {}", problems.join("; ")));
        }
        if absent {
            return Ok((key, LabelOp::DoesNotExist));
        }
        if matches!(self.peek_value().0, Token::End | Token::Comma) {
            return Ok((key, LabelOp::Exists));
        }
        let (token, literal) = self.peek();
        self.at += 1;
        let op = match token {
            Token::In => LabelOp::In(self.values()?),
            Token::NotIn => LabelOp::NotIn(self.values()?),
            Token::Equals | Token::DoubleEquals => LabelOp::In(vec![self.value()?]),
            Token::NotEquals => LabelOp::NotIn(vec![self.value()?]),
            Token::Greater => LabelOp::Greater(number(&self.value()?)?),
            Token::Less => LabelOp::Less(number(&self.value()?)?),
            _ => return Err(format!("found '{literal}', expected: {BINARY}")),
        };
        if let LabelOp::In(values) | LabelOp::NotIn(values) = &op {
            let mut sorted = values.clone();
            sorted.sort();
            check_values(&key, &sorted)?;
        }
        Ok((key, op))
    }

    fn value(&mut self) -> Result<String, String> {
        if matches!(self.peek_value().0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next_value() {
            (Token::Identifier, literal) => Ok(literal),
            (_, literal) => Err(format!("found '{literal}', expected: identifier")),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let (token, literal) = self.next_value();
        if token != Token::Open {
            return Err(format!("found '{literal}' expected: '('"));
        }
        let (token, literal) = self.peek_value();
        match token {
            Token::Identifier | Token::Comma => {
                let values = self.list()?;
                if self.next_value().0 != Token::Close {
                    return Err(format!("found '{literal}', expected: ')'"));
                }
                Ok(values)
            }
            Token::Close => {
                self.at += 1;
                Ok(vec![String::new()])
            }
            _ => Err(format!("found '{literal}', expected: ',', ')' or identifier")),
        }
    }

    fn list(&mut self) -> Result<Vec<String>, String> {
        let mut values: Vec<String> = Vec::new();
        let add = |values: &mut Vec<String>, value: String| {
            if !values.contains(&value) {
                values.push(value);
            }
        };
        loop {
            match self.next_value() {
                (Token::Identifier, literal) => {
                    add(&mut values, literal);
                    match self.peek_value() {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => return Ok(values),
                        (_, literal) => return Err(format!("found '{literal}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        add(&mut values, String::new());
                    }
                    match self.peek_value().0 {
                        Token::Close => {
                            add(&mut values, String::new());
                            return Ok(values);
                        }
                        Token::Comma => {
                            self.at += 1;
                            add(&mut values, String::new());
                        }
                        _ => {}
                    }
                }
                (_, literal) => return Err(format!("found '{literal}', expected: ',', or identifier")),
            }
        }
    }
}

fn number(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| {
        format!("values[0]: Invalid value: {text:?}: for 'Gt', 'Lt' operators, the value must be an integer")
    })
}

fn check_values(key: &str, values: &[String]) -> Result<(), String> {
    let mut all = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let problems = names::label_value_problems(value);
        if !problems.is_empty() {
            all.push(format!("values[{index}][{key}]: Invalid value: {value:?}: {}", problems.join("; ")));
        }
    }
    match all.as_slice() {
        [] => Ok(()),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn what_is_no_selector_is_told() {
        for (text, why) in [
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("!!x", "unable to parse requirement: found '!', expected: identifier"),
            ("a=b,", "found '', expected: identifier after ','"),
            (",", "found ',', expected: !, identifier, or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("a in (b c)", "unable to parse requirement: found 'c', expected: ',' or ')'"),
        ] {
            assert_eq!(parse(text).unwrap_err(), why, "{text}");
        }
        assert_eq!(parse("a in (),b notin (x,),!c,d==e").unwrap().len(), 4);
    }
}
