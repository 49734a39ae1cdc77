//! What expressions are, mean and cost.

use serde_json::{Value as Json, json};

use super::*;

fn env() -> Env {
    let object = Type::object(
        "Thing",
        [
            ("n".to_owned(), Type::Int),
            ("s".to_owned(), Type::String),
            ("at".to_owned(), Type::Timestamp),
            ("list".to_owned(), Type::list(Type::Int)),
            ("map".to_owned(), Type::map(Type::String)),
            ("a__dash__b".to_owned(), Type::Bool),
        ],
    );
    Env { patches: true, binds: true, ..Env::of([("self", object), ("any", Type::Dyn)]) }
}

fn run(source: &str) -> Result<Json, String> {
    let data =
        json!({"n": 3, "s": "text", "at": "2024-02-29T10:20:30Z", "list": [3, 1, 2], "map": {"k": "v"}, "a-b": true});
    let any = json!({"x": [1, "two", null], "y": {"z": 1.5}, "e": {}});
    let env = env();
    let program = Program::compile(source, &env).map_err(|e| e.to_string())?;
    let mut bindings = Bindings::new();
    bindings.insert("self", Value::of(&data, env.variables.get("self")));
    bindings.insert("any", Value::of(&any, None));
    let result = program.eval(&bindings, &Budget::new(100_000)).map_err(|e| e.to_string())?;
    result.to_json().ok_or_else(|| "no JSON".to_owned())
}

#[test]
fn values() {
    for (source, expected) in [
        ("1 + 2 * 3 - 4 / 2 % 3", json!(5)),
        ("self.n > 2 && self.s.startsWith('te') ? 'yes' : 'no'", json!("yes")),
        ("self.list.all(x, x > 0) && self.list.exists(x, x == 2) && self.list.exists_one(x, x < 2)", json!(true)),
        ("self.list.map(x, x * 2)", json!([6, 2, 4])),
        ("self.list.filter(x, x > 1)", json!([3, 2])),
        ("optional.unwrap([optional.of(1), optional.none()]) + [optional.of(2)].unwrapOpt()", json!([1, 2])),
        ("[self.list.first().value(), self.list.last().value()]", json!([3, 2])),
        ("self.list.map(x, x > 1, string(x))", json!(["3", "2"])),
        ("self.map.all(k, k.size() == 1) && 'k' in self.map && self.map['k'] == 'v'", json!(true)),
        ("has(self.map.k) && !has(self.map.j) && has(self.s)", json!(true)),
        ("self.a__dash__b", json!(true)),
        ("any.?y.?q.orValue(7) + any.x[0]", json!(8)),
        ("any.y.z == 1.5 && any.x[2] == null && any.x.size() == 3", json!(true)),
        ("false && any.nope || true", json!(true)),
        ("any.nope == 1 || true", json!(true)),
        ("self.at.getFullYear() == 2024 && self.at.getMonth() == 1 && self.at.getDayOfWeek() == 4", json!(true)),
        (
            "duration('1h30m').getMinutes() + (timestamp('2024-01-01T00:00:00Z') - timestamp('2023-12-31T00:00:00Z')).getHours()",
            json!(114),
        ),
        ("'a,b,c'.split(',').join('-') + 'ABC'.lowerAscii() + 'hello'.substring(1, 3)", json!("a-b-cabcel")),
        ("'%s has %d, %.2f'.format(['x', 3, 1.5])", json!("x has 3, 1.50")),
        ("quantity('1Gi').isGreaterThan(quantity('1G')) && isQuantity('50m') && !isQuantity('x')", json!(true)),
        (
            "ip('10.0.0.1').family() == 4 && cidr('10.0.0.0/8').containsIP('10.2.3.4') && !isIP('300.1.1.1')",
            json!(true),
        ),
        ("url('https://h:8443/p?q=1').getPort() + url('https://h/p').getHostname()", json!("8443h")),
        ("semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('v1.2', true)", json!(true)),
        ("sets.contains([1, 2, 3], [3, 1]) && [1, 2].sum() == 3 && [1, 5, 2].max() == 5", json!(true)),
        ("cel.bind(x, self.n * 2, x + x)", json!(12)),
        ("optional.of(1).optMap(x, x + 1).value()", json!(2)),
        ("{'a': [false], 'b': [true, ?optional.none()]}", json!({"a": [false], "b": [true]})),
        ("[1, 2].transformMap(i, v, i > 0, v)", json!({"1": 2})),
        ("Object{spec: Object.spec{replicas: 3}}", json!({"spec": {"replicas": 3}})),
        ("r'\\d' + '\\u00e9\\n' + \"\"\"x\"\"\"", json!("\\dé\nx")),
        ("'abc'.matches('^a.c$') && 'abc'.matches('b')", json!(true)),
        ("type(1) == int && dyn([1, 2]) != []", json!(true)),
        ("format.dns1123Label().validate('ok').hasValue() || format.named('uuid').hasValue()", json!(true)),
        ("-9223372036854775808 < 0 && 0x10 == 16 && 1u + 2u == 3u && 1.5 > 1", json!(true)),
    ] {
        assert_eq!(run(source), Ok(expected), "{source}");
    }
}

#[test]
fn runtime_errors() {
    for (source, expected) in [
        ("any.nope == 1", "no such key: nope"),
        ("any.x[9]", "index out of bounds: 9"),
        ("1 / (self.n - 3)", "division by zero"),
        ("9223372036854775807 + self.n", "integer overflow"),
        ("any.y < 1", "no such overload"),
        ("int('x')", "type conversion error from 'string' to 'int'"),
        ("self.list.all(x, any.nope)", "no such key: nope"),
    ] {
        assert_eq!(run(source), Err(expected.to_owned()), "{source}");
    }
}

#[test]
fn predicates_that_are_none_are_told_where_their_macro_is_called() {
    for (source, applied) in [
        ("self.list.all(x, x)", "_&&_' applied to '(bool, int)'"),
        ("self.list.exists(x, x)", "_||_' applied to '(bool, int)'"),
        ("self.list.exists_one(x, x)", "_?_:_' applied to '(int, int, int)'"),
        ("self.list.filter(x, x)", "_?_:_' applied to '(int, list(int), list(int))'"),
        ("self.map.map(k, k, 1.0)", "_?_:_' applied to '(string, list(double), list(double))'"),
    ] {
        let open = source.find('(').unwrap();
        let told = format!(
            "ERROR: <input>:1:{}: found no matching overload for '{applied}\n | {source}\n | {}^",
            open + 1,
            ".".repeat(open)
        );
        assert_eq!(run(source), Err(told), "{source}");
    }
    assert_eq!(run("[?optional.of(self.n), ?optional.none()].size() == 1"), run("true"));
    assert!(run("1e400 > 1.0").unwrap_err().contains("invalid double literal"));
}

#[test]
fn addresses_and_urls_are_refused_in_gos_words() {
    let address = |text: &str, why: &str| {
        format!("IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): {why}")
    };
    let range = |text: &str, why: &str| {
        format!("network address parse error during conversion from string: netip.ParsePrefix({text:?}): {why}")
    };
    for (source, told) in [
        ("ip('zz')", address("zz", "unable to parse IP")),
        ("ip('1.2.3')", address("1.2.3", "IPv4 address too short")),
        ("ip('1.2.3.4.5')", address("1.2.3.4.5", "IPv4 address too long")),
        ("ip('1.2.3.256')", address("1.2.3.256", "IPv4 field has value >255")),
        ("ip('1.2.03.4')", address("1.2.03.4", "IPv4 field has octet with leading zero")),
        ("ip('1.2.x.4')", address("1.2.x.4", "unexpected character (at \"x.4\")")),
        ("ip('::ffff:1.2.3.4')", "IPv4-mapped IPv6 address \"::ffff:1.2.3.4\" is not allowed".into()),
        ("ip('fe80::1%eth0')", "IP address \"fe80::1%eth0\" with zone value is not allowed".into()),
        ("cidr('10.0.0.0')", range("10.0.0.0", "no '/'")),
        ("cidr('10.0.0.0/33')", range("10.0.0.0/33", "prefix length out of range")),
        ("cidr('10.0.0.0/08')", range("10.0.0.0/08", "bad bits after slash: \"08\"")),
        (
            "url('x').getHost()",
            "URL parse error during conversion from string: parse \"x\": invalid URI for request".into(),
        ),
    ] {
        assert_eq!(run(source), Err(told), "{source}");
    }
    let path = "url('https://h/with space/%20?a=b#c').getEscapedPath() == '/with%20space/%20'";
    assert_eq!(run(path), run("true"));
}

#[test]
fn what_does_not_compile() {
    for (source, expected) in [
        ("self.", "ERROR: <input>:1:6: Syntax error: no viable alternative at input '.'\n | self.\n | .....^"),
        (
            "self.n == 'x'",
            "ERROR: <input>:1:8: found no matching overload for '_==_' applied to '(int, string)'\n | self.n == 'x'\n | .......^",
        ),
        ("self.nope > 1", "ERROR: <input>:1:5: undefined field 'nope'\n | self.nope > 1\n | ....^"),
        (
            "nosuch(other)",
            "ERROR: <input>:1:7: undeclared reference to 'nosuch' (in container '')\n | nosuch(other)\n | ......^\n\
             ERROR: <input>:1:8: undeclared reference to 'other' (in container '')\n | nosuch(other)\n | .......^",
        ),
        ("nosuch", "ERROR: <input>:1:1: undeclared reference to 'nosuch' (in container '')\n | nosuch\n | ^"),
        (
            "bogus(",
            "ERROR: <input>:1:7: Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', ')', '.', '-', '!', 'true', \
             'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | bogus(\n | ......^",
        ),
        (
            "Object{spec: }",
            "ERROR: <input>:1:14: Syntax error: mismatched input '}' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', \
             'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}\n | Object{spec: }\n | .............^",
        ),
        (
            "JSONPatch{op: 'add', foo: 1}",
            "ERROR: <input>:1:25: undefined field 'foo'\n | JSONPatch{op: 'add', foo: 1}\n | ........................^",
        ),
        (
            "JSONPatch{op: 1}",
            "ERROR: <input>:1:13: expected type of field 'op' is 'string' but provided type is 'int'\n | JSONPatch{op: 1}\n | ............^",
        ),
        (
            "self.s.startsWith(1)",
            "ERROR: <input>:1:18: found no matching overload for 'startsWith' applied to 'string.(int)'\n | self.s.startsWith(1)\n | .................^",
        ),
    ] {
        assert_eq!(run(source), Err(expected.to_owned()), "{source}");
    }
    for source in [
        "(".repeat(500),
        "1+".repeat(5000) + "1",
        "'open".to_owned(),
        "self.list.all(1, true)".to_owned(),
        "1 = 2".to_owned(),
        "$".to_owned(),
        "a\u{1F600}b".to_owned(),
    ] {
        assert!(run(&source).is_err(), "{}", &source[..source.len().min(40)]);
    }
}

#[test]
fn syntax_errors_are_told_one_after_another() {
    let start = "expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, \
                 BYTES, IDENTIFIER}";
    let items = "expecting {'[', ']', '{', '(', '.', ',', '-', '!', '?', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, \
                 NUM_UINT, STRING, BYTES, IDENTIFIER}";
    // Each row: what is told of an expression, with the columns.
    for (source, expected) in [
        ("'a", &[(1, "token recognition error at: ''a'"), (3, &format!("mismatched input '<EOF>' {start}"))][..]),
        ("self.n == 1 &", &[(13, "token recognition error at: '&'")]),
        ("self.n = 1", &[(8, "token recognition error at: '= '"), (10, "extraneous input '1' expecting <EOF>")]),
        (
            "*@a | b",
            &[
                (1, &format!("extraneous input '*' {start}")),
                (2, "token recognition error at: '@'"),
                (5, "token recognition error at: '| '"),
                (7, "extraneous input 'b' expecting <EOF>"),
            ],
        ),
        ("1 + $", &[(5, "token recognition error at: '$'"), (6, &format!("mismatched input '<EOF>' {start}"))]),
        ("1 + +", &[(5, &format!("mismatched input '+' {start}")), (6, &format!("mismatched input '<EOF>' {start}"))]),
        ("?", &[(1, &format!("mismatched input '?' {start}")), (2, &format!("mismatched input '<EOF>' {start}"))]),
        (
            r#""\xFh""#,
            &[
                (1, r#"token recognition error at: '"\xFh'"#),
                (6, r#"token recognition error at: '"'"#),
                (7, &format!("mismatched input '<EOF>' {start}")),
            ],
        ),
        ("size(self", &[(10, "missing ')' at '<EOF>'")]),
        ("[size(self", &[(11, "mismatched input '<EOF>' expecting ')'")]),
        ("(self.n + 1))", &[(13, "extraneous input ')' expecting <EOF>")]),
        ("self.n 1 2", &[(8, "mismatched input '1' expecting <EOF>")]),
        ("self.n in [1, 2,", &[(17, "missing ']' at '<EOF>'")]),
        ("self.n in [1, 2", &[(16, "mismatched input '<EOF>' expecting {']', ','}")]),
        ("self.n in [1 2]", &[(14, "extraneous input '2' expecting {']', ','}")]),
        ("{'a': 1,", &[(9, "missing '}' at '<EOF>'")]),
        ("self.n in [", &[(12, &format!("mismatched input '<EOF>' {items}"))]),
        ("true ? 1 2", &[(10, "missing ':' at '2'")]),
        ("self.n == == 1", &[(11, &format!("extraneous input '==' {start}"))]),
    ] {
        let shown = |(column, what): &(usize, &str)| {
            format!("ERROR: <input>:1:{column}: Syntax error: {what}\n | {source}\n | {}^", ".".repeat(column - 1))
        };
        let expected: Vec<String> = expected.iter().map(shown).collect();
        assert_eq!(run(source), Err(expected.join("\n")), "{source}");
    }
}

#[test]
fn an_endless_expression_runs_out_of_budget() {
    let bomb = "[0,1,2,3,4,5,6,7,8,9].all(a, [0,1,2,3,4,5,6,7,8,9].all(b, [0,1,2,3,4,5,6,7,8,9].all(c, \
                [0,1,2,3,4,5,6,7,8,9].all(d, [0,1,2,3,4,5,6,7,8,9].all(e, a + b + c + d + e >= 0))))) || true";
    assert_eq!(run(bomb), Err("operation cancelled: actual cost limit exceeded".to_owned()));
}

#[test]
fn names_that_cel_cannot_write_are_spelled_out() {
    for (name, spelled) in [
        ("a-b", "a__dash__b"),
        ("a.b/c", "a__dot__b__slash__c"),
        ("if", "__if__"),
        ("a__b", "a__underscores__b"),
        ("plain", "plain"),
    ] {
        assert_eq!(escape(name).as_deref(), Some(spelled));
        assert_eq!(types::unescape(spelled), name);
    }
    assert_eq!(escape("é"), None);
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_compiler_panic(text in "[a-z0-9.()\\[\\]{}'\"?:+*/%<>=!&|, \\\\\\n-]{0,60}") {
        let _ = Program::compile(&text, &env());
    }
}

/// Each row: an expression, and the first line of what is told of its literals; "" if they are good.
#[test]
fn literals_are_looked_at() {
    for (source, told) in [
        ("[1, 2, 3].size() == 3", ""),
        ("[1, 'a'].size() == 2", "ERROR: <input>:1:5: expected type 'int' but found 'string'"),
        ("[any.x, 'a'].size() == 2", ""),
        ("{'a': 1, 'b': 'c'}.size() == 2", "ERROR: <input>:1:15: expected type 'int' but found 'string'"),
        ("{'a': 1, 2: 3}.size() == 2", "ERROR: <input>:1:10: expected type 'string' but found 'int'"),
        ("'%s %d'.format(['a', 1]) == 'a 1'", ""),
        ("duration('1h') > duration('5m')", ""),
        ("duration('an hour') > duration('5m')", "ERROR: <input>:1:10: invalid duration argument"),
        ("timestamp('2024-01-01') == self.at", "ERROR: <input>:1:11: invalid timestamp argument"),
        ("self.s.matches('^[a-z]+$')", ""),
        ("self.s.matches('(')", "ERROR: <input>:1:16: invalid matches argument"),
    ] {
        let got = Program::compile(source, &env()).map_or_else(|e| e.to_string(), |_| String::new());
        assert_eq!(got.lines().next().unwrap_or_default(), told, "{source}");
    }
}
