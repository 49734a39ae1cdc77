//! The examples of RFC 8949 (appendix A), what upstream refuses, bytes of schemas, events, and whatever else may come.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::schema;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An item that is no map is read as the value of one.
fn read(item: &str) -> Result<Value, String> {
    let whole = [&[0xa1, 0x41, b'x'][..], &bytes(item)].concat();
    decode(&whole).map(|mut value| value["x"].take())
}

fn written(value: &Value) -> String {
    let whole = encode(&json!({"x": value}));
    assert_eq!(&whole[..6], &[&SELF_DESCRIBED[..], &[0xa1, 0x41, b'x']].concat());
    hex(&whole[6..])
}

/// Each example: what it says as JSON, and how that is written again if not in the same way.
const EXAMPLES: &[(&str, &str, &str)] = &[
    ("00", "0", ""),
    ("01", "1", ""),
    ("0a", "10", ""),
    ("17", "23", ""),
    ("1818", "24", ""),
    ("1819", "25", ""),
    ("1864", "100", ""),
    ("1903e8", "1000", ""),
    ("1a000f4240", "1000000", ""),
    ("1b000000e8d4a51000", "1000000000000", ""),
    ("1b7fffffffffffffff", "9223372036854775807", ""),
    ("3b7fffffffffffffff", "-9223372036854775808", ""),
    ("20", "-1", ""),
    ("29", "-10", ""),
    ("3863", "-100", ""),
    ("3903e7", "-1000", ""),
    ("f90000", "0.0", ""),
    ("f98000", "-0.0", ""),
    ("f93c00", "1.0", ""),
    ("fb3ff199999999999a", "1.1", ""),
    ("f93e00", "1.5", ""),
    ("f97bff", "65504.0", ""),
    ("fa47c35000", "100000.0", ""),
    ("fa7f7fffff", "3.4028234663852886e38", ""),
    ("fb7e37e43c8800759c", "1.0e300", ""),
    ("f90001", "5.960464477539063e-8", ""),
    ("f90400", "0.00006103515625", ""),
    ("f9c400", "-4.0", ""),
    ("fbc010666666666666", "-4.1", ""),
    ("f4", "false", ""),
    ("f5", "true", ""),
    ("f6", "null", ""),
    (
        "c074323031332d30332d32315432303a30343a30305a",
        r#""2013-03-21T20:04:00Z""#,
        "54323031332d30332d32315432303a30343a30305a",
    ),
    ("c11a514b67b0", r#""2013-03-21T20:04:00Z""#, "54323031332d30332d32315432303a30343a30305a"),
    ("c1fb41d452d9ec200000", r#""2013-03-21T20:04:00.5Z""#, "56323031332d30332d32315432303a30343a30302e355a"),
    ("d74401020304", r#""01020304""#, "483031303230333034"),
    ("d64401020304", r#""AQIDBA==""#, "484151494442413d3d"),
    ("d542fbff", r#""-_8""#, "432d5f38"),
    ("d5d642fbff", r#""+/8=""#, "442b2f383d"),
    ("d582d641614161", r#"["YQ==", "YQ"]"#, "8244"),
    ("d818456449455446", r#""dIETF""#, "456449455446"),
    (
        "d82076687474703a2f2f7777772e6578616d706c652e636f6d",
        r#""http://www.example.com""#,
        "56687474703a2f2f7777772e6578616d706c652e636f6d",
    ),
    ("c48221196ab3", "[-2, 27315]", "8221196ab3"),
    ("40", r#""""#, ""),
    ("4401020304", r#""\u0001\u0002\u0003\u0004""#, ""),
    ("60", r#""""#, "40"),
    ("6161", r#""a""#, "4161"),
    ("6449455446", r#""IETF""#, "4449455446"),
    ("62225c", r#""\"\\""#, "42225c"),
    ("62c3bc", r#""\u00fc""#, "42c3bc"),
    ("63e6b0b4", r#""\u6c34""#, "43e6b0b4"),
    ("64f0908591", r#""\ud800\udd51""#, "44f0908591"),
    ("41ff", r#""\ufffd""#, "43efbfbd"),
    ("80", "[]", ""),
    ("83010203", "[1, 2, 3]", ""),
    ("8301820203820405", "[1, [2, 3], [4, 5]]", ""),
    (
        "98190102030405060708090a0b0c0d0e0f101112131415161718181819",
        "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25]",
        "",
    ),
    ("a0", "{}", ""),
    ("a26161016162820203", r#"{"a": 1, "b": [2, 3]}"#, "a24161014162820203"),
    ("826161a161626163", r#"["a", {"b": "c"}]"#, "824161a141624163"),
    ("5f42010243030405ff", r#""\u0001\u0002\u0003\u0004\u0005""#, "450102030405"),
    ("7f657374726561646d696e67ff", r#""streaming""#, "4973747265616d696e67"),
    ("9fff", "[]", "80"),
    ("9f018202039f0405ffff", "[1, [2, 3], [4, 5]]", "8301820203820405"),
    ("83019f0203ff820405", "[1, [2, 3], [4, 5]]", "8301820203820405"),
    ("bf61610161629f0203ffff", r#"{"a": 1, "b": [2, 3]}"#, "a24161014162820203"),
    ("bf6346756ef563416d7421ff", r#"{"Amt": -2, "Fun": true}"#, "a243416d74214346756ef5"),
    ("d9d9f7d9d9f701", "1", "01"),
    // Keys in the order of their encoding: shorter ones first.
    ("a342626201416102426161f6", r#"{"a": 2, "bb": 1, "aa": null}"#, "a3416102426161f642626201"),
];

#[test]
fn the_examples_of_the_specification_are_read_and_written() {
    for (example, value, again) in EXAMPLES {
        // Floats by another reader: that of JSON may be off by the last bit.
        let float = value.parse::<f64>().ok().filter(|_| value.contains('.'));
        let value = float.map_or_else(|| serde_json::from_str(value).unwrap(), Value::from);
        let read = read(example).unwrap_or_else(|why| panic!("{example}: {why}"));
        assert_eq!(read.to_string(), value.to_string(), "{example}");
        let again = if again.is_empty() { example } else { again };
        assert!(written(&read).starts_with(again), "{example}: {}", written(&read));
    }
}

#[test]
fn what_has_no_form_in_json_is_refused_in_upstreams_words() {
    let not_accepted = "cbor: data item of cbor type primitives is not accepted by protocol: ";
    let cannot = "cbor: cannot unmarshal";
    let nested = "81".repeat(MAX_NESTED_LEVELS);
    let tags = format!("81{}01", "c6".repeat(MAX_NESTED_LEVELS + 2));
    for (item, why) in [
        ("1bffffffffffffffff", format!("{cannot} positive integer into Go value of type int64 (18446744073709551615 overflows Go's int64)")),
        ("3bffffffffffffffff", format!("{cannot} negative integer into Go value of type int64 (-18446744073709551616 overflows Go's int64)")),
        ("c249010000000000000000", "cbor: data item of cbor type tag is not accepted by protocol: bignum".into()),
        ("c6c349010000000000000000", "cbor: data item of cbor type tag is not accepted by protocol: bignum".into()),
        ("c201", "cbor: tag number 2 or 3 must be followed by byte string, got positive integer".into()),
        ("f97c00", format!("{not_accepted}floating-point infinity")),
        ("f97e00", format!("{not_accepted}floating-point NaN")),
        ("f9fc00", format!("{not_accepted}floating-point infinity")),
        ("fa7f800000", format!("{not_accepted}floating-point infinity")),
        ("fa7fc00000", format!("{not_accepted}floating-point NaN")),
        ("faff800000", format!("{not_accepted}floating-point infinity")),
        ("fb7ff0000000000000", format!("{not_accepted}floating-point infinity")),
        ("fb7ff8000000000000", format!("{not_accepted}floating-point NaN")),
        ("fbfff0000000000000", format!("{not_accepted}floating-point infinity")),
        ("c1f97e00", format!("{not_accepted}floating-point NaN")),
        ("f7", format!("{not_accepted}simple value 23 is not recognized")),
        ("f0", format!("{not_accepted}simple value 16 is not recognized")),
        ("f8ff", format!("{not_accepted}simple value 255 is not recognized")),
        ("f818", "cbor: invalid simple value 24 for type primitives".into()),
        ("f814", "cbor: invalid simple value 20 for type primitives".into()),
        ("ff", "cbor: unexpected \"break\" code".into()),
        ("bf01ff", "cbor: unexpected \"break\" code".into()),
        ("1c", "cbor: invalid additional information 28 for type positive integer".into()),
        ("fd", "cbor: invalid additional information 29 for type primitives".into()),
        ("3f", "cbor: invalid additional information 31 for type negative integer".into()),
        ("df01", "cbor: invalid additional information 31 for type tag".into()),
        ("a201020304", format!("{cannot} positive integer into Go value of type string")),
        ("a1f601", format!("{cannot} primitives into Go value of type string")),
        ("a2414101414102", "cbor: found duplicate map key \"A\" at map element index 1".into()),
        ("a2414101614102", "cbor: found duplicate map key \"A\" at map element index 1".into()),
        ("a25f426865436c6c6fff015f416844656c6c6fff02", "cbor: found duplicate map key \"hello\" at map element index 1".into()),
        ("6180", "cbor: invalid UTF-8 string".into()),
        ("7f61c361bcff", "cbor: invalid UTF-8 string".into()),
        ("5f6161ff", "cbor: wrong element type UTF-8 text string for indefinite-length byte string".into()),
        ("7f7f6161ffff", "cbor: indefinite-length UTF-8 text string chunk is not definite-length".into()),
        ("c06474657874", "cbor: cannot set text for time.Time: parsing time \"text\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"text\" as \"2006\"".into()),
        ("c054323030362d30312d30325431353a30343a30355a", "cbor: tag number 0 must be followed by text string, got byte string".into()),
        ("c14161", "cbor: tag number 1 must be followed by integer or floating-point number, got byte string".into()),
        ("c11b0000003afff44181", "cbor: decoded time cannot be represented in RFC3339 format with sub-second precision: Time.MarshalText: year outside of range [0,9999]".into()),
        ("", "unexpected EOF".into()),
        ("19", "unexpected EOF".into()),
        ("8201", "unexpected EOF".into()),
        ("9f01", "unexpected EOF".into()),
        ("5f4101", "unexpected EOF".into()),
        ("c6", "unexpected EOF".into()),
        ("5a7fffffff", "unexpected EOF".into()),
        ("9a7fffffff", "unexpected EOF".into()),
        ("9a80000000", "cbor: exceeded max number of elements 2147483647 for CBOR array".into()),
        ("ba80000000", "cbor: exceeded max number of key-value pairs 2147483647 for CBOR map".into()),
        ("9bffffffffffffffff", "cbor: array length 18446744073709551615 is too large, it would cause integer overflow".into()),
        ("5bffffffffffffffff", "cbor: byte string length 18446744073709551615 is too large, causing integer overflow".into()),
        ("0000", "cbor: 1 bytes of extraneous data starting at index 4".into()),
        (&format!("{nested}80"), "cbor: exceeded max nested level 64".into()),
        (&tags, "cbor: exceeded max nested level 64".into()),
    ] {
        assert_eq!(read(item).unwrap_err(), why, "{item}");
    }
    assert_eq!(decode(&[]).unwrap_err(), "EOF");
    assert_eq!(decode(&[0x80]).unwrap_err(), format!("{cannot} array into Go value of type map[string]interface {{}}"));
    assert_eq!(decode(&[0xf6]), Ok(Value::Null));
    // As deep as may be.
    assert!(read(&format!("{}80", "81".repeat(MAX_NESTED_LEVELS - 2))).is_ok());
}

#[test]
fn bytes_of_a_schema_are_bytes() {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "AQID"}});
    let raw = encode(&secret);
    let marked = [0xd6, 0x43, 1, 2, 3];
    assert!(raw.windows(5).any(|w| w == marked), "{}", hex(&raw));
    let list = encode(&json!({"apiVersion": "v1", "kind": "SecretList", "items": [{"data": {"a": "AQID"}}]}));
    assert!(list.windows(5).any(|w| w == marked), "{}", hex(&list));
    let definition = schema::of_kind("", "v1", "Secret").unwrap();
    assert_eq!(decode_typed(&raw, definition).unwrap(), Typed { value: secret.clone(), unknown: None });
    assert_eq!(decode(&raw).unwrap(), secret);
    // Data as it may come: base64 as bytes, or bytes with any mark.
    for (item, expected) in [
        ("4441514944", Ok("AQID")),
        ("d643010203", Ok("AQID")),
        ("d543010203", Ok("AQID")),
        ("d743010203", Ok("AQID")),
        ("40", Ok("")),
        ("4121", Err("cbor: failed to decode base64 from byte string: illegal base64 data at input byte 0")),
        (
            "6441514944",
            Err("cbor: cannot unmarshal UTF-8 text string into Go struct field v1.Secret.data of type []uint8"),
        ),
    ] {
        let whole = [&b"\xa1\x44data\xa1\x41a"[..], &bytes(item)].concat();
        let read = decode_typed(&whole, definition).map(|typed| typed.value["data"]["a"].clone());
        assert_eq!(read, expected.map(Value::from).map_err(str::to_owned), "{item}");
    }
}

/// Rows of text: what a request says in diagnostic notation's place, JSON, and what is said of it.
#[test]
fn objects_are_read_by_their_schema() {
    let deployment = schema::of_kind("apps", "v1", "Deployment").unwrap();
    let field = "cbor: cannot unmarshal";
    for (object, expected) in [
        (json!({"spec": {"replicas": 3}}), Ok(None)),
        (json!({"spec": {"replicas": null}}), Ok(None)),
        (json!({"spec": {"replicas": 3, "z": 1}, "a": 1}), Ok(Some(0))),
        (json!({"spec": {"replicas": 3, "zzzzzzzzz": 1}}), Ok(Some(1))),
        (json!({"metadata": {"labels": {"any": "a"}}}), Ok(None)),
        (
            json!({"spec": {"replicas": "x"}}),
            Err(format!("{field} byte string into Go struct field v1.Deployment.spec of type int32")),
        ),
        (
            json!({"spec": {"replicas": 1.5}}),
            Err(format!("{field} primitives into Go struct field v1.Deployment.spec of type int32")),
        ),
        (
            json!({"spec": {"replicas": 2_147_483_648_i64}}),
            Err(format!(
                "{field} positive integer into Go struct field v1.Deployment.spec of type int32 (2147483648 overflows int32)"
            )),
        ),
        (
            json!({"spec": []}),
            Err(format!(
                "{field} array into Go struct field v1.Deployment.spec of type v1.DeploymentSpec (cannot decode CBOR array to struct without toarray option)"
            )),
        ),
        (
            json!({"metadata": {"name": 1}}),
            Err(format!("{field} positive integer into Go struct field v1.Deployment.metadata of type string")),
        ),
        (
            json!({"metadata": {"labels": {"a": true}}}),
            Err(format!("{field} primitives into Go struct field v1.Deployment.metadata of type string")),
        ),
    ] {
        let said = decode_typed(&encode(&object), deployment).map(|typed| typed.unknown);
        let expected = expected
            .map(|at: Option<usize>| at.map(|at| format!("cbor: found unknown field at map element index {at}")));
        assert_eq!(said, expected, "{object}");
    }
    for (raw, why) in [
        (&b"\xa2\x44kind\x41a\x64kind\x41a"[..], "cbor: found duplicate map key \"kind\" at map element index 1"),
        (b"\xa2\x41x\x01\x61x\x02", "cbor: found duplicate map key \"x\" at map element index 1"),
        (b"\xa2\x20\x01\x20\x02", "cbor: found duplicate map key -1 at map element index 1"),
        (
            b"\xa1\x80\x01",
            "cbor: cannot unmarshal array into Go value of type string (map key is of type array and cannot be used to match struct field name)",
        ),
    ] {
        assert_eq!(decode_typed(raw, deployment).unwrap_err(), why);
    }
    // What is not known is gone past, whatever it is.
    let odd = b"\xa2\x41x\x9f\xbf\x5f\x41\xffff\x00";
    assert!(decode_typed(odd, deployment).is_err());
    let odd = [&b"\xa2\x41x"[..], &bytes("9fbf5f41ffff82d7f681c102ffff"), b"\x44kind\x41k"].concat();
    let typed = decode_typed(&odd, deployment).unwrap();
    assert_eq!((typed.value, typed.unknown.is_some()), (json!({"kind": "k"}), true));
}

#[test]
fn an_object_says_what_it_is() {
    let told = "unable to determine group/version/kind: ";
    for (raw, expected) in [
        (&b"\xd9\xd9\xf7\xa3\x4aapiVersion\x41v\x64kind\x41k\x41x\x80"[..], Ok(("v", "k"))),
        (b"\xa0", Ok(("", ""))),
        (b"\xf6", Ok(("", ""))),
        (b"\xa1\x44kind\xf6", Ok(("", ""))),
        (b"", Err("EOF")),
        (b"\xa1", Err("unexpected EOF")),
        (b"x", Err("unexpected EOF")),
        (b"\x41x", Err("cbor: cannot unmarshal byte string into Go value of type v1.TypeMeta")),
        (
            b"\x80",
            Err(
                "cbor: cannot unmarshal array into Go value of type v1.TypeMeta (cannot decode CBOR array to struct without toarray option)",
            ),
        ),
        (
            b"\xa1\x44kind\x01",
            Err("cbor: cannot unmarshal positive integer into Go struct field v1.TypeMeta.kind of type string"),
        ),
        (b"\xa2\x41a\x01\x41a\x01", Err("cbor: found duplicate map key \"a\" at map element index 1")),
    ] {
        let expected = expected.map(|(v, k)| (v.to_owned(), k.to_owned())).map_err(|why| format!("{told}{why}"));
        assert_eq!(interpret(raw), expected, "{}", hex(raw));
    }
}

#[test]
fn events_and_lists_are_written_in_parts() {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let event = watch_event("ADDED", &encode(&object));
    assert_eq!(&event[..22], b"\xd9\xd9\xf7\xa2\x44type\x45ADDED\x46object");
    assert_eq!(decode(&event).unwrap(), json!({"type": "ADDED", "object": object}));
    let (metadata, secret) =
        (json!({"resourceVersion": "7"}), json!({"metadata": {"name": "s"}, "data": {"a": "AQID"}}));
    let whole = json!({"kind": "SecretList", "apiVersion": "v1", "metadata": metadata, "items": [secret, secret]});
    let mut list = Vec::new();
    list_begin("SecretList", 2, &mut list);
    item(("", "v1", "Secret"), &secret, &mut list);
    item(("", "v1", "Secret"), &secret, &mut list);
    list.extend(list_end(&metadata, "v1"));
    assert_eq!(decode(&list).unwrap(), whole);
    assert_eq!(hex(&list), hex(&encode(&whole)));
}

#[test]
fn halves_are_what_they_are() {
    for bits in 0..=u16::MAX {
        let float = super::decode::from_half(bits);
        if float.is_finite() {
            assert_eq!(super::encode::to_half(float as f32), Some(bits), "{bits:04x} is {float}");
        }
    }
    for float in [1.0e-8_f32, 65505.0, 65536.0, 0.1, f32::MIN_POSITIVE, 1.000_001] {
        assert_eq!(super::encode::to_half(float), None, "{float}");
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-100_i64..100).prop_map(Value::from),
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Value::from),
        any::<f32>().prop_filter("finite", |f| f.is_finite()).prop_map(|f| Value::from(f64::from(f))),
        ".*".prop_map(Value::from),
        any::<Vec<u8>>().prop_map(|bytes| STANDARD.encode(bytes).into()),
    ];
    leaf.prop_recursive(6, 64, 40, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..40).prop_map(Value::from),
            prop::collection::btree_map(".{0,30}", inner, 0..40)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_was_written_is_read(value in any_value()) {
        let object = json!({"x": value});
        let raw = encode(&object);
        let read = decode(&raw).map_err(TestCaseError::fail)?;
        // Text tells floats from whole numbers, and zeros by their sign.
        prop_assert_eq!(read.to_string(), object.to_string());
        prop_assert_eq!(encode(&read), raw);
    }

    #[test]
    fn any_bytes_are_read_or_refused(raw: Vec<u8>) {
        other_bytes(&raw);
    }

    /// Heads that promise much, in the places where they may be.
    #[test]
    fn any_heads_are_read_or_refused(
        raw in prop::collection::vec(prop_oneof![
            prop::sample::select(&[0x5f_u8, 0x7f, 0x9f, 0xbf, 0xff, 0xa1, 0xa2, 0x81, 0x82, 0x9b, 0xbb, 0xd6, 0xd9, 0xf7, 0xc0, 0xc1,
                0xc2, 0xf6, 0x41, 0x61, 0x00][..]),
            any::<u8>(),
        ], 0..200)
    ) {
        other_bytes(&raw);
        other_bytes(&[&[0xa1, 0x41, b'x'], &raw[..]].concat());
    }

    #[test]
    fn changed_objects_are_read_or_refused(at in 0_usize..400, byte: u8) {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "n", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}}}],
                "priority": -5, "hostNetwork": true}});
        let mut raw = encode(&object);
        let at = at % raw.len();
        raw[at] = byte;
        other_bytes(&raw);
        other_bytes(&raw[..at]);
    }
}

/// What is read is written and read as the same; what is held is not much more than what came.
fn other_bytes(raw: &[u8]) {
    let _ = interpret(raw);
    if let Ok(value) = decode(raw) {
        let again =
            if value.is_null() { Value::Null } else { decode(&encode(&value)).expect("what was read is written") };
        assert_eq!(again.to_string(), value.to_string(), "{}", hex(raw));
        assert!(count(&value) <= raw.len(), "{}", hex(raw));
    }
    let pod = schema::of_kind("", "v1", "Pod").unwrap();
    if let Ok(typed) = decode_typed(raw, pod) {
        assert!(count(&typed.value) <= raw.len(), "{}", hex(raw));
    }
}

/// Values in a value.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}
